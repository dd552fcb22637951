/* Has something of everything that depends on the kernel it runs on: threads that call the vDSO at addresses looked up
   at the start, clocks, timers, vector registers, a file that is written to, a heap that grows. It checks itself all the
   time, and all of it at the end.

   traveller [MiB]: how far the heap grows (8). It writes "<number> <CLOCK_MONOTONIC in ns>" to $VICTIM_DIR/log. */
#include "victim.h"
#include "vdso.h"

#include <immintrin.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

enum { PERIOD = 40000000 }; /* nanoseconds between two ticks of every timer */
enum { SLACK = PERIOD / 4 };
enum { REST = 40 };         /* how many times as long as it works a thread rests: an emulated machine has other work */

static int (*vdso_clock_gettime)(clockid_t, struct timespec *);
static int (*vdso_clock_getres)(clockid_t, struct timespec *);
static int (*vdso_gettimeofday)(struct timeval *, void *);
static time_t (*vdso_time)(time_t *);
static long (*vdso_getcpu)(unsigned *, unsigned *, void *);

static atomic_int over;
static _Atomic int64_t latest[2]; /* the latest that any thread read of MONOTONIC and BOOTTIME */
static atomic_long handled, calls, sleeps, expirations, rounds;

static int64_t in_ns(struct timespec t)
{
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t asked_by_vdso(clockid_t clock)
{
	struct timespec t;

	check(!vdso_clock_gettime(clock, &t), "clock %d", clock);
	return in_ns(t);
}

static int64_t asked_by_syscall(clockid_t clock)
{
	struct timespec t;

	check(!syscall(SYS_clock_gettime, clock, &t), "clock %d", clock);
	return in_ns(t);
}

/* A clock that goes on: not before what any thread has seen. */
static void look_at_clock(int which)
{
	const clockid_t clock = which ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
	int64_t before = latest[which], now = asked_by_vdso(clock), seen = before;

	check(now >= before, "clock %d went back by %ld ns", clock, (long)(before - now));
	while (seen < now && !atomic_compare_exchange_weak(&latest[which], &seen, now))
		;
}

/* How long the calling thread has worked, in nanoseconds. From the start again after a move. */
static int64_t worked(void)
{
	return asked_by_syscall(CLOCK_THREAD_CPUTIME_ID);
}

static void rest(int64_t worked_before)
{
	int64_t ns = (worked() - worked_before) * REST;

	ns = ns < 500000 ? 500000 : ns > 500000000 ? 500000000 : ns;
	struct timespec left = { 0, ns };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

/* The vDSO and the system call tell the same, unless we were moved between the two: the time of day of two hosts need
   not be the same. Twice in a row that cannot be. */
static void compare(clockid_t clock)
{
	int64_t before, now, after;

	for (int i = 0; i < 3; i++) {
		before = asked_by_syscall(clock);
		now = asked_by_vdso(clock);
		after = asked_by_syscall(clock);
		if (before <= now && now <= after)
			return;
	}
	check(0, "clock %d: %ld is not between %ld and %ld", clock, (long)now, (long)before, (long)after);
}

static void compare_the_rest(void)
{
	struct timespec ours, theirs;
	struct timeval day;
	unsigned here = -1, node = -1, really;
	int tries = 0;

	do { /* two kernels may have clocks of another resolution */
		check(!vdso_clock_getres(CLOCK_MONOTONIC_COARSE, &ours));
		check(!syscall(SYS_clock_getres, CLOCK_MONOTONIC_COARSE, &theirs));
	} while (in_ns(ours) != in_ns(theirs) && tries++ < 3);
	check(tries < 4, "clock_getres: %ld, not %ld", (long)in_ns(ours), (long)in_ns(theirs));
	tries = 0;
	do { /* we may be moved to another CPU at any time */
		check(!vdso_getcpu(&here, &node, NULL));
		check(!syscall(SYS_getcpu, &really, NULL, NULL));
	} while (here != really && tries++ < 100);
	check(tries < 100, "getcpu: %u, not %u", here, really);
	check(!vdso_gettimeofday(&day, NULL));
	time_t seconds = vdso_time(NULL);

	check(llabs(seconds - day.tv_sec) < 3600, "time %ld, gettimeofday %ld", seconds, day.tv_sec);
}

static void *call_vdso(void *unused)
{
	(void)unused;
	while (!over) {
		int64_t before = worked();

		for (int i = 0; i < 300; i++)
			look_at_clock(i & 1);
		compare(CLOCK_MONOTONIC);
		compare(CLOCK_REALTIME);
		compare_the_rest();
		calls++;
		rest(before);
	}
	return NULL;
}

static void tick(int number)
{
	(void)number;
	look_at_clock(0); /* interrupts others in the middle of the vDSO */
	handled++;
}

/* Sleeps until absolute times and for intervals, and never wakes early. */
static void *sleep_on(void *unused)
{
	(void)unused;
	while (!over) {
		int64_t until = asked_by_vdso(CLOCK_MONOTONIC) + PERIOD;
		struct timespec t = { until / 1000000000, until % 1000000000 }, interval = { 0, PERIOD };

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
			;
		int64_t woken = asked_by_vdso(CLOCK_MONOTONIC);

		check(woken >= until, "%ld ns early", (long)(until - woken));
		while (clock_nanosleep(CLOCK_BOOTTIME, 0, &interval, &interval) == EINTR)
			;
		check(asked_by_vdso(CLOCK_MONOTONIC) >= woken + PERIOD);
		sleeps++;
	}
	return NULL;
}

/* As many expirations as periods have passed, no more and no fewer. The phase of the timer is carried over as well as it
   can be asked for, which is a matter of milliseconds on an emulated machine. */
static void *read_timerfd(void *unused)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	int64_t first = asked_by_vdso(CLOCK_MONOTONIC) + PERIOD;
	struct itimerspec every = { { 0, PERIOD }, { first / 1000000000, first % 1000000000 } };
	uint64_t times;

	(void)unused;
	check(fd >= 0 && !timerfd_settime(fd, TFD_TIMER_ABSTIME, &every, NULL));
	while (!over) {
		int64_t before = asked_by_vdso(CLOCK_MONOTONIC);

		check(read(fd, &times, sizeof times) == sizeof times);
		expirations += times;
		int64_t after = asked_by_vdso(CLOCK_MONOTONIC), due = first + (expirations - 1) * PERIOD;

		check(due <= after + SLACK, "%ld expirations, %ld ns early", expirations, (long)(due - after));
		check(due + PERIOD + SLACK > before, "%ld expirations, the next is %ld ns late", expirations,
		      (long)(before - due - PERIOD));
	}
	return NULL;
}

/* Keeps values in vector registers and the rounding mode in MXCSR while time passes. */
__attribute__((target("avx2"))) static void *hold_registers(void *unused)
{
	unsigned mxcsr = _mm_getcsr() | _MM_ROUND_UP;

	(void)unused;
	_mm_setcsr(mxcsr);
	while (!over) {
		int64_t before = worked();

		for (long round = 1; round <= 50; round++) {
			__m256i a = _mm256_set1_epi64x(scramble(round)), b = _mm256_set1_epi64x(~scramble(round));
			double third = 1.0;

			for (int i = 0; i < 2000; i++)
				__asm__ volatile("" : "+x"(a), "+x"(b), "+x"(third));
			__m256i ones = _mm256_xor_si256(a, b);

			check(_mm256_testc_si256(ones, _mm256_set1_epi64x(-1)), "vector registers");
			third /= 3.0;
			check(third * 3.0 > 1.0 && _mm_getcsr() >> 6 == mxcsr >> 6, "mxcsr %#x", _mm_getcsr());
		}
		rounds++;
		rest(before);
	}
	return NULL;
}

struct piece {
	struct piece *next;
	size_t words, number;
	uint64_t data[];
};

static struct piece *grow(struct piece *heap, size_t number)
{
	size_t words = 64 + scramble(number) % 30000; /* of brk and of mmap */
	struct piece *piece = malloc(sizeof *piece + words * sizeof(uint64_t));

	check(piece);
	*piece = (struct piece){ heap, words, number };
	for (size_t i = 0; i < words; i++)
		piece->data[i] = scramble(number << 32 | i);
	return piece;
}

static void check_heap(const struct piece *piece)
{
	for (; piece; piece = piece->next)
		for (size_t i = 0; i < piece->words; i++)
			check(piece->data[i] == scramble(piece->number << 32 | i), "piece %zu, word %zu", piece->number, i);
}

static void check_log(FILE *log, long lines)
{
	long number, before = -1;
	int64_t at, last = 0;

	rewind(log);
	for (long i = 0; i < lines; i++) {
		check(fscanf(log, "%ld %ld\n", &number, &at) == 2, "line %ld", i);
		check(number == before + 1 && at >= last, "line %ld: %ld after %ld", i, number, before);
		before = number;
		last = at;
	}
	check(fgetc(log) == EOF);
}

static void *required(const char *name)
{
	void *found = vdso_symbol(name);

	check(found, "%s", name);
	return found;
}

int main(int argc, char **argv)
{
	size_t most = (argc > 1 ? atol(argv[1]) : 8) << 20, grown = 0;
	char path[4096];
	timer_t timer;
	struct itimerspec every = { { 0, PERIOD }, { 0, PERIOD } };
	void *(*const bodies[])(void *) = { call_vdso, call_vdso, sleep_on, read_timerfd, hold_registers };
	pthread_t threads[sizeof bodies / sizeof *bodies];
	struct piece *heap = NULL;
	long lines = 0;

	vdso_clock_gettime = required("__vdso_clock_gettime");
	vdso_clock_getres = required("__vdso_clock_getres");
	vdso_gettimeofday = required("__vdso_gettimeofday");
	vdso_time = required("__vdso_time");
	vdso_getcpu = required("__vdso_getcpu");
	check((size_t)snprintf(path, sizeof path, "%s/log", getenv("VICTIM_DIR")) < sizeof path);
	FILE *log = fopen(path, "w+");

	check(log);
	setvbuf(log, NULL, _IOLBF, 0);
	signal(SIGALRM, tick);
	check(!timer_create(CLOCK_MONOTONIC, NULL, &timer) && !timer_settime(timer, 0, &every, NULL));
	for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
		check(!pthread_create(&threads[i], NULL, bodies[i], NULL));
	ready();
	for (; !told(); lines++) {
		int64_t began = worked();

		check(fprintf(log, "%ld %ld\n", lines, (long)asked_by_vdso(CLOCK_MONOTONIC)) > 0);
		if (grown < most) {
			heap = grow(heap, lines);
			grown += heap->words * sizeof(uint64_t);
		}
		rest(began);
	}
	long before[] = { handled, calls, sleeps, expirations, rounds };
	const struct timespec pause = { 0, 1000000 };

	/* all of them still work */
	while (handled == before[0] || calls == before[1] || sleeps == before[2] || expirations == before[3] ||
	       rounds == before[4])
		nanosleep(&pause, NULL);
	over = 1;
	for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
		check(!pthread_join(threads[i], NULL));
	check_heap(heap);
	check_log(log, lines);
	pass();
}
