/* registers [THREADS]: each thread has values of its own in every general register, the arithmetic flags, and the bases
   of FS and GS, and stays in an instruction that uses none of them until it is told. */
#include "victim.h"
#include <asm/prctl.h>

enum { REGISTERS = 15 };
static volatile int go, there;
static __thread uint64_t wanted[REGISTERS], seen[REGISTERS], local;
static __thread uint64_t *place;

/* rsp alone keeps its meaning; everything else is taken from and put where FS and the stack say. */
__attribute__((noinline)) static void hold(uint64_t *in, uint64_t *out)
{
	asm volatile("push %%rbp\n\tpush %%rbx\n\tpush %%rsi\n\tmov %%rdi, %%rax\n\t"
		     "mov 8(%%rax), %%rbx\n\tmov 16(%%rax), %%rcx\n\tmov 24(%%rax), %%rdx\n\tmov 32(%%rax), %%rsi\n\t"
		     "mov 40(%%rax), %%rdi\n\tmov 48(%%rax), %%rbp\n\tmov 56(%%rax), %%r8\n\tmov 64(%%rax), %%r9\n\t"
		     "mov 72(%%rax), %%r10\n\tmov 80(%%rax), %%r11\n\tmov 88(%%rax), %%r12\n\tmov 96(%%rax), %%r13\n\t"
		     "mov 104(%%rax), %%r14\n\tmov 112(%%rax), %%r15\n\tmov (%%rax), %%rax\n\tstd\n"
		     "1:\tcmpl $0, %[go]\n\tje 1b\n\t"
		     "pushf\n\tpush %%rax\n\tmov 16(%%rsp), %%rax\n\tmov %%rbx, 8(%%rax)\n\tmov %%rcx, 16(%%rax)\n\t"
		     "mov %%rdx, 24(%%rax)\n\tmov %%rsi, 32(%%rax)\n\tmov %%rdi, 40(%%rax)\n\tmov %%rbp, 48(%%rax)\n\t"
		     "mov %%r8, 56(%%rax)\n\tmov %%r9, 64(%%rax)\n\tmov %%r10, 72(%%rax)\n\tmov %%r11, 80(%%rax)\n\t"
		     "mov %%r12, 88(%%rax)\n\tmov %%r13, 96(%%rax)\n\tmov %%r14, 104(%%rax)\n\tmov %%r15, 112(%%rax)\n\t"
		     "mov %%rax, %%rbx\n\tpop %%rax\n\tmov %%rax, (%%rbx)\n\tpop %%rax\n\tcld\n\tadd $8, %%rsp\n\tpop %%rbx\n\t"
		     "pop %%rbp\n\t"
		     : "+D"(in), "+S"(out)
		     : [go] "m"(go)
		     : "memory", "cc", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
}

static void *work(void *number)
{
	unsigned long fs, gs, before, mine = scramble((long)number + 1) & 0x7ffffffff000;

	place = &local;
	for (int i = 0; i < REGISTERS; i++)
		wanted[i] = scramble((long)number * REGISTERS + i);
	check(!syscall(SYS_arch_prctl, ARCH_SET_GS, mine) && !syscall(SYS_arch_prctl, ARCH_GET_FS, &before));
	__atomic_add_fetch(&there, 1, __ATOMIC_SEQ_CST);
	hold(wanted, seen);
	for (int i = 0; i < REGISTERS; i++)
		check(seen[i] == wanted[i], "register %d: %#lx", i, seen[i]);
	check(!syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) && gs == mine, "%#lx", gs);
	check(!syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) && fs == before && place == &local);
	return NULL;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t threads[count];

	for (long i = 0; i < count; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)i));
	while (there != count)
		usleep(1000);
	ready();
	wait_told();
	go = 1;
	for (int i = 0; i < count; i++)
		check(!pthread_join(threads[i], NULL));
	pass();
}
