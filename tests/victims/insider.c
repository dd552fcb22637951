/* insider THREADS MICROSECONDS [-p]: threads that do nothing but call the vDSO, at the addresses they once looked up,
   and are interrupted by two timers, every so many microseconds, whose handlers do the same, one inside the other.
   MICROSECONDS 0: no timers. What must hold: no clock goes backwards, the clocks agree, no two random numbers are the
   same. With -p the state of getrandom lies in plain memory, which travels. */
#include "victim.h"
#include "vdso.h"

static _Atomic int64_t latest; /* nanoseconds of CLOCK_MONOTONIC that some thread has seen */
static _Atomic unsigned long calls, handled, nested;
static _Atomic int over;
static struct opaque_params params;
static _Thread_local int depth;

static void later(void)
{
	int64_t before = latest, now, seen;
	struct timespec t;

	check(!vdso.clock_gettime(CLOCK_MONOTONIC, &t));
	now = t.tv_sec * 1000000000LL + t.tv_nsec;
	check(now >= before, "CLOCK_MONOTONIC went back by %ld ns", before - now);
	for (seen = latest; seen < now && !__atomic_compare_exchange_n(&latest, &seen, now, 0, __ATOMIC_SEQ_CST,
								       __ATOMIC_SEQ_CST);)
		;
}

static void on_signal(int signal)
{
	depth++;
	handled++;
	nested += depth > 1;
	for (int i = 0; i < (signal == SIGPROF ? 2000 : 5); i++)
		later();
	depth--;
}

static void once(uint64_t *last, void *state)
{
	struct timespec resolution, coarse;
	struct timeval now, then;
	unsigned cpu = ~0U, node = ~0U;
	uint64_t random = 0;
	time_t seconds, stored;

	later();
	check(!vdso.gettimeofday(&now, NULL));
	seconds = vdso.time(&stored);
	check(seconds == stored && labs(seconds - now.tv_sec) < 5, "%ld and %ld s", seconds, now.tv_sec);
	check(!vdso.clock_gettime(CLOCK_REALTIME_COARSE, &coarse));
	check(labs(coarse.tv_sec - now.tv_sec) < 5, "%ld and %ld s", coarse.tv_sec, now.tv_sec);
	check(!vdso.gettimeofday(&then, NULL) && then.tv_sec >= now.tv_sec);
	check(!vdso.clock_getres(CLOCK_MONOTONIC, &resolution) && !resolution.tv_sec && resolution.tv_nsec == 1);
	check(!vdso.getcpu(&cpu, &node, NULL) && cpu < 4096 && node < 1024, "cpu %u of node %u", cpu, node);
	if (vdso.getrandom) {
		check(vdso.getrandom(&random, sizeof(random), 0, state, params.size) == sizeof(random));
		check(random != *last && random, "drawn twice: %lx", random);
		*last = random;
	}
	calls++;
}

static void *work(void *state)
{
	uint64_t last = 0;

	while (!over)
		once(&last, state);
	return NULL;
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]), microseconds = atoi(argv[2]);
	const struct itimerval often = { { 0, microseconds }, { 0, microseconds } };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	pthread_t ids[64];
	sigset_t signals;
	char line[100];

	check(threads <= 64);
	vdso_look_up();
	if (vdso.getrandom)
		check(!vdso.getrandom(NULL, 0, 0, &params, ~0UL) && params.size && params.size <= 4096);
	sigaction(SIGALRM, &action, NULL);
	sigaction(SIGPROF, &action, NULL);
	for (int i = 0; i < threads; i++) {
		void *state = NULL;

		if (vdso.getrandom) {
			int flags = argc > 3 ? MAP_PRIVATE | MAP_ANONYMOUS : (int)params.flags;

			state = mmap(NULL, 4096, params.prot, flags, -1, 0);
			check(state != MAP_FAILED);
		}
		check(!pthread_create(ids + i, NULL, work, state));
	}
	/* a signal of the whole process goes to its first thread if that takes it, and it is not the one that calls */
	sigemptyset(&signals);
	sigaddset(&signals, SIGALRM);
	sigaddset(&signals, SIGPROF);
	check(!pthread_sigmask(SIG_BLOCK, &signals, NULL));
	if (microseconds)
		check(!setitimer(ITIMER_REAL, &often, NULL) && !setitimer(ITIMER_PROF, &often, NULL));
	ready();
	wait_told();
	over = 1;
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	snprintf(line, sizeof(line), "%lu calls, %lu handled, %lu nested\n", calls, handled, nested);
	say(line);
	pass();
}
