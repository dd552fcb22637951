/* The functions of the vDSO, found the way a C library does: once, by the symbols of the image at AT_SYSINFO_EHDR. */
#include <link.h>
#include <sys/auxv.h>

struct opaque_params { /* struct vgetrandom_opaque_params, linux/random.h */
	uint32_t size, prot, flags, reserved[13];
};

static struct {
	long (*clock_gettime)(clockid_t, struct timespec *);
	long (*gettimeofday)(struct timeval *, void *);
	long (*time)(time_t *);
	long (*clock_getres)(clockid_t, struct timespec *);
	long (*getcpu)(unsigned *, unsigned *, void *);
	ssize_t (*getrandom)(void *, size_t, unsigned, void *, size_t);
} vdso;

static inline void *vdso_symbol(const char *name)
{
	const uint8_t *base = (const uint8_t *)getauxval(AT_SYSINFO_EHDR);
	const ElfW(Ehdr) *elf = (const ElfW(Ehdr) *)base;
	const ElfW(Shdr) *sections;

	if (!base)
		return NULL;
	check(!memcmp(elf->e_ident, ELFMAG, SELFMAG), "no ELF header at %p", (void *)base);
	sections = (const ElfW(Shdr) *)(base + elf->e_shoff);
	for (int i = 0; i < elf->e_shnum; i++) {
		const ElfW(Sym) *symbols = (const ElfW(Sym) *)(base + sections[i].sh_offset);
		const char *names;

		if (sections[i].sh_type != SHT_DYNSYM)
			continue;
		names = (const char *)base + sections[sections[i].sh_link].sh_offset;
		for (uint64_t j = 0; j < sections[i].sh_size / sizeof(*symbols); j++)
			if (symbols[j].st_value && !strcmp(names + symbols[j].st_name, name))
				return (void *)(base + symbols[j].st_value);
	}
	return NULL;
}

static inline void vdso_look_up(void)
{
	*(void **)&vdso.clock_gettime = vdso_symbol("__vdso_clock_gettime");
	*(void **)&vdso.gettimeofday = vdso_symbol("__vdso_gettimeofday");
	*(void **)&vdso.time = vdso_symbol("__vdso_time");
	*(void **)&vdso.clock_getres = vdso_symbol("__vdso_clock_getres");
	*(void **)&vdso.getcpu = vdso_symbol("__vdso_getcpu");
	*(void **)&vdso.getrandom = vdso_symbol("__vdso_getrandom");
}
