/* rseq: threads count in restartable sequences, on counters of their own so that none may be lost or counted twice, with
   glibc's registration; one stays within a long sequence most of the time. The CPU number in the area stays right. */
#include "victim.h"
#include <sched.h>
#include <sys/rseq.h>

enum { THREADS = 4 };
static volatile int done, there;
static long aborts[THREADS];

/* *counter += 1, unless the thread is preempted, gets a signal or moves between the labels: then nothing. */
static int add(struct rseq *area, volatile long *counter, long spins)
{
	asm volatile goto(".pushsection __rseq_cs, \"aw\"\n\t.balign 32\n3:\t.long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t"
			  ".popsection\n\t"
			  "lea 3b(%%rip), %%rax\n\tmov %%rax, %[cs]\n\tmov %[spins], %%rcx\n"
			  "1:\tdec %%rcx\n\tjnz 1b\n\tmov (%[counter]), %%rax\n\tinc %%rax\n\tmov %%rax, (%[counter])\n"
			  "2:\n\t"
			  ".pushsection __rseq_failure, \"ax\"\n\t.byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
			  "4:\tjmp %l[aborted]\n\t.popsection\n\t"
			  : : [cs] "m"(area->rseq_cs), [counter] "r"(counter), [spins] "r"(spins)
			  : "memory", "cc", "rax", "rcx" : aborted);
	return 1;
aborted:
	return 0;
}

static void *work(void *which)
{
	long i = (long)which, wanted = 0;
	volatile long counter = 0;
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	__atomic_add_fetch(&there, 1, __ATOMIC_SEQ_CST);
	while (!done) {
		if (add(area, &counter, i ? 1 + i * 100 : 1000000))
			wanted++;
		else
			aborts[i]++;
		check(counter == wanted, "%ld, not %ld", counter, wanted);
	}
	for (int cpu = 0; cpu < 2; cpu++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		check(!sched_setaffinity(0, sizeof(set), &set));
		check((int)area->cpu_id == cpu && (int)area->cpu_id_start == cpu, "%d on %d", area->cpu_id, cpu);
	}
	check(wanted > 0);
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];

	check(__rseq_size, "glibc has not registered rseq");
	for (long i = 0; i < THREADS; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)i));
	while (there != THREADS)
		usleep(1000);
	ready();
	wait_told();
	usleep(200000);
	done = 1;
	for (int i = 0; i < THREADS; i++)
		check(!pthread_join(threads[i], NULL));
	printf("aborts %ld %ld %ld %ld\n", aborts[0], aborts[1], aborts[2], aborts[3]);
	fflush(stdout);
	pass();
}
