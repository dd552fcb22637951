/* restartable: spins inside a restartable sequence (rseq(2)), which only an abort can leave. Prints "ready", then for
   each line of input how often it was aborted so far. */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/rseq.h>

static volatile unsigned long aborts;

static void *spin(void *unused)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	for (;;) {
		asm volatile goto(
			".pushsection __rseq_cs, \"aw\"\n\t.balign 32\n"
			"3:\t.long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
			"lea 3b(%%rip), %%rax\n\tmov %%rax, %0\n"
			"1:\tpause\n\tjmp 1b\n"
			"2:\tud2\n\t"
			".byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n" /* RSEQ_SIG */
			"4:\tjmp %l[aborted]\n"
			: : "m"(area->rseq_cs) : "rax", "memory" : aborted);
aborted:
		aborts++;
	}
	return unused;
}

int main(void)
{
	pthread_t thread;
	char line[64];

	if (!__rseq_size)
		errx(2, "rseq is not registered");
	pthread_create(&thread, NULL, spin, NULL);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("%lu\n", aborts);
		fflush(stdout);
	}
	return 0;
}
