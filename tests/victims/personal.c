/* personal [THREADS]: each thread has a name, signal mask, alternate stack, nice value, I/O priority, timer slack, affinity
   and user of its own, a thread-local variable and a count that never stops, and checks all of them over and over. The
   number that the kernel gave it stays. */
#include "victim.h"
#include <linux/ioprio.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/resource.h>

static volatile int done;
static __thread long count;

static void look(long i, pid_t tid, stack_t *stack, cpu_set_t *cpus)
{
	char wanted[16], name[16];
	sigset_t mask;
	stack_t now;
	cpu_set_t set;
	uid_t r, e, s;

	sprintf(wanted, "worker %ld", i);
	check(!prctl(PR_GET_NAME, name) && !strcmp(name, wanted), "%s", name);
	check(!pthread_sigmask(SIG_SETMASK, NULL, &mask));
	check(mask.__val[0] == (1UL << (i % 20 + 33) | 1UL << (SIGUSR1 - 1)), "%#lx", mask.__val[0]);
	check(!sigaltstack(NULL, &now) && now.ss_sp == stack->ss_sp && now.ss_size == stack->ss_size && !now.ss_flags);
	check(syscall(SYS_gettid) == tid);
	errno = 0;
	check(getpriority(PRIO_PROCESS, 0) == i % 10 && !errno);
	check(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) == (long)IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, i % 8));
	check(prctl(PR_GET_TIMERSLACK) == 60000 + i);
	CPU_ZERO(&set);
	check(!sched_getaffinity(0, sizeof(set), &set) && CPU_EQUAL(&set, cpus));
	check(sched_getscheduler(0) == (i % 3 == 1 ? SCHED_BATCH : i % 3 == 2 ? SCHED_IDLE : SCHED_OTHER));
	check(!getresuid(&r, &e, &s) && r == 0 && e == (i ? 1000 + i : 0) && s == 0, "%u", e);
	check(setfsuid(-1) == 0 && setfsgid(-1) == (i ? 3000 + i : 0));
}

static void *work(void *number)
{
	long i = (long)number, counted = 0;
	pid_t tid = syscall(SYS_gettid);
	char name[16];
	sigset_t mask = { { 1UL << (i % 20 + 33) | 1UL << (SIGUSR1 - 1) } };
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 - i * 16 };
	cpu_set_t cpus;
	struct sched_param none = { 0 };

	sprintf(name, "worker %ld", i);
	check(!prctl(PR_SET_NAME, name) && !pthread_sigmask(SIG_SETMASK, &mask, NULL) && !sigaltstack(&stack, NULL));
	if (i % 3)
		check(!sched_setscheduler(0, i % 3 == 1 ? SCHED_BATCH : SCHED_IDLE, &none));
	check(!setpriority(PRIO_PROCESS, 0, i % 10) && !prctl(PR_SET_TIMERSLACK, 60000 + i));
	check(!syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, i % 8)));
	check(!sched_getaffinity(0, sizeof(cpus), &cpus));
	if (i % 2) {
		CPU_ZERO(&cpus);
		CPU_SET(i / 2 % 2, &cpus);
		check(!sched_setaffinity(0, sizeof(cpus), &cpus));
	}
	if (i) {
		setfsgid(3000 + i);
		check(!syscall(SYS_setresuid, -1, 1000 + i, -1));
		setfsuid(0); /* which the real one allows */
	}
	__atomic_add_fetch((int *)&done, 2, __ATOMIC_SEQ_CST);
	while (!(done & 1)) {
		look(i, tid, &stack, &cpus);
		check(count++ == counted++);
		usleep(i ? 500 : 100);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t all[threads];

	for (long i = 0; i < threads; i++)
		check(!pthread_create(&all[i], NULL, work, (void *)i));
	while (done != 2 * threads)
		usleep(1000);
	ready();
	wait_told();
	__atomic_add_fetch((int *)&done, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < threads; i++)
		check(!pthread_join(all[i], NULL));
	pass();
}
