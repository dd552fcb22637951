/* The functions of the vDSO by the addresses that its symbol table gives: looked up once, as a C library does. */
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>

/* The address of an exported function of the vDSO; NULL: this kernel's has none of that name, or there is no vDSO. */
static inline void *vdso_function(const char *name)
{
	const ElfW(Ehdr) *elf = (const void *)getauxval(AT_SYSINFO_EHDR);

	if (!elf)
		return NULL;
	const char *base = (const char *)elf, *strings = NULL;
	const ElfW(Phdr) *segment = (const void *)(base + elf->e_phoff);
	const ElfW(Dyn) *dynamic = NULL;
	const ElfW(Sym) *symbols = NULL;
	const Elf32_Word *hash = NULL;
	long slide = 0;

	for (int i = 0; i < elf->e_phnum; i++) {
		if (segment[i].p_type == PT_LOAD)
			slide = (long)base + segment[i].p_offset - segment[i].p_vaddr;
		if (segment[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(base + segment[i].p_offset);
	}
	for (; dynamic->d_tag != DT_NULL; dynamic++) {
		const void *there = (const void *)(slide + dynamic->d_un.d_ptr);

		if (dynamic->d_tag == DT_STRTAB)
			strings = there;
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = there;
		if (dynamic->d_tag == DT_HASH)
			hash = there;
	}
	check(strings && symbols && hash);
	for (Elf32_Word i = 0; i < hash[1]; i++)
		if (symbols[i].st_shndx != SHN_UNDEF && !strcmp(strings + symbols[i].st_name, name))
			return (void *)(slide + symbols[i].st_value);
	return NULL;
}
