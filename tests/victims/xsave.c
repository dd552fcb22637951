/* xsave [THREADS]: each thread fills every component of the XSAVE area that this CPU has (x87, SSE, AVX, AVX-512, PKRU,
   AMX) with values of its own, stays in an instruction that touches none, and compares. */
#include "victim.h"
#include <cpuid.h>

enum { SIZE = 16384, HEADER = 512, TILECFG = 17, TILEDATA = 18, PKRU = 9, ALL = 0x602e7 };
static volatile int go, there;
static unsigned sizes[32], offsets[32];
static uint64_t components;

static void *work(void *number)
{
	unsigned char *in = aligned_alloc(64, SIZE), *out = aligned_alloc(64, SIZE);

	memset(in, 0, SIZE);
	memset(out, 0, SIZE);
	*(uint16_t *)in = 0xb7f; /* FCW: towards plus infinity; MXCSR: towards zero */
	*(uint32_t *)(in + 24) = 0x7f80;
	in[4] = 0xff; /* all of the x87 registers in use; each ten bytes, of a normal number */
	for (int i = 0; i < 8; i++) {
		*(uint64_t *)(in + 32 + 16 * i) = scramble((long)number * 8 + i) | 1UL << 63;
		*(uint16_t *)(in + 40 + 16 * i) = 0x3fff + i;
	}
	for (int i = 160; i < 416; i++)
		in[i] = scramble((long)number * 512 + i);
	for (int c = 2; c < 32; c++)
		for (unsigned i = 0; components >> c & 1 && i < sizes[c]; i++)
			in[offsets[c] + i] = scramble(((long)number * 32 + c) * 8192 + i);
	if (components >> PKRU & 1)
		*(uint64_t *)(in + offsets[PKRU]) = 0x55555550;
	if (components >> TILECFG & 1) {
		unsigned char *tiles = memset(in + offsets[TILECFG], 0, 64);

		tiles[0] = 1; /* palette; eight tiles of sixteen rows of 64 bytes */
		for (int i = 0; i < 8; i++)
			tiles[16 + 2 * i] = 64, tiles[48 + i] = 16;
	}
	*(uint64_t *)(in + HEADER) = components;
	__atomic_add_fetch(&there, 1, __ATOMIC_SEQ_CST);
	asm volatile("xrstor (%[in])\n1:\tcmpl $0, %[go]\n\tje 1b\n\txsave (%[out])\n\t"
		     : : [in] "r"(in), [out] "r"(out), [go] "m"(go), "a"(components), "d"(components >> 32) : "memory");
	asm volatile("fninit");
	check(*(uint64_t *)(out + HEADER) == components, "%#lx", *(uint64_t *)(out + HEADER));
	check(*(uint32_t *)in == *(uint32_t *)out && in[4] == out[4] && !memcmp(in + 24, out + 24, 4));
	check(!memcmp(in + 32, out + 32, 384));
	for (int c = 2; c < 32; c++)
		check(!(components >> c & 1) || !memcmp(in + offsets[c], out + offsets[c], sizes[c]), "component %d", c);
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned a, b, c, d;
	int count = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t threads[count];

	check(__get_cpuid_count(13, 0, &a, &b, &c, &d) && c <= SIZE);
	components = a & ALL;
	if (components >> TILEDATA & 1 && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILEDATA))
		components &= ~(3UL << TILECFG);
	for (int i = 2; i < 32; i++)
		if (__get_cpuid_count(13, i, &a, &b, &c, &d))
			sizes[i] = a, offsets[i] = b;
	for (long i = 0; i < count; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)i));
	while (there != count)
		usleep(1000);
	ready();
	wait_told();
	go = 1;
	for (int i = 0; i < count; i++)
		check(!pthread_join(threads[i], NULL));
	printf("%#lx\n", components);
	fflush(stdout);
	pass();
}
