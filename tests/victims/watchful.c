/* watchful: threads that each do one thing over and over and notice when anything about it is odd: registers, flags,
   the signal mask, the result of a call, its deadline. Goes on until its standard input ends; then exits 0 and prints
   how often each thread went round. Exits 1 as soon as one sees something. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NAP = 2000000 /* ns */, SPINS = 20000 };
static const long late = 15000000000; /* ns; it may be stopped by SIGSTOP for as long */

static atomic_bool done;
static long rounds[16];
static int there[2], back[2];

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void in_time(const char *what, long start)
{
	long took = now() - start;

	if (took < NAP || took > late)
		errx(1, "%s took %ld ns, not %d", what, took, NAP);
}

/* Every general register but rsp, rcx and r15, the upper halves of the vector registers, and the flags. */
static void registers(void)
{
	unsigned char pattern[16][32], seen[16][32];
	unsigned long general[13], flags;

	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 32; j++)
			pattern[i][j] = i * 32 + j + rounds[0];
#define V(n) "vmovdqu " #n "*32(%[p]), %%ymm" #n "\n\t"
#define S(n) "vmovdqu %%ymm" #n ", " #n "*32(%[s])\n\t"
	asm volatile(V(0) V(1) V(2) V(3) V(4) V(5) V(6) V(7) V(8) V(9) V(10) V(11) V(12) V(13) V(14) V(15)
		     "push %%rbp\n\tpush %[s]\n\tpush %[f]\n\tpush %[g]\n\t"
		     "mov $101, %%rax\n\tmov $102, %%rbx\n\tmov $103, %%rdx\n\tmov $104, %%rsi\n\tmov $105, %%rdi\n\t"
		     "mov $106, %%rbp\n\tmov $107, %%r8\n\tmov $108, %%r9\n\tmov $109, %%r10\n\tmov $110, %%r11\n\t"
		     "mov $111, %%r12\n\tmov $112, %%r13\n\tmov $113, %%r14\n\tmov %[n], %%rcx\n\t"
		     "stc\n\tstd\n"
		     "1:\tloop 1b\n\t"
		     "mov (%%rsp), %%rcx\n\t"
		     "mov %%rax, (%%rcx)\n\tmov %%rbx, 8(%%rcx)\n\tmov %%rdx, 16(%%rcx)\n\tmov %%rsi, 24(%%rcx)\n\t"
		     "mov %%rdi, 32(%%rcx)\n\tmov %%rbp, 40(%%rcx)\n\tmov %%r8, 48(%%rcx)\n\tmov %%r9, 56(%%rcx)\n\t"
		     "mov %%r10, 64(%%rcx)\n\tmov %%r11, 72(%%rcx)\n\tmov %%r12, 80(%%rcx)\n\tmov %%r13, 88(%%rcx)\n\t"
		     "mov %%r14, 96(%%rcx)\n\t"
		     "pushf\n\tpop %%rax\n\tcld\n\tpop %[g]\n\tpop %[f]\n\tmov %%rax, (%[f])\n\tpop %[s]\n\tpop %%rbp\n\t"
		     S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)
		     : [g] "+&D"((unsigned long *){ general }), [f] "+&S"((unsigned long *){ &flags }),
		       [s] "+&d"((unsigned char *){ (void *)seen }), [p] "+&b"((unsigned char *){ (void *)pattern })
		     : [n] "i"(SPINS)
		     : "memory", "cc", "rax", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "xmm0", "xmm1", "xmm2",
		       "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
		       "xmm15");
	for (int i = 0; i < 13; i++)
		if (general[i] != 101UL + i)
			errx(1, "general register %d is %lu", i, general[i]);
	if ((flags & 0x401) != 0x401)
		errx(1, "flags are %#lx", flags);
	if (memcmp(pattern, seen, sizeof(seen)))
		errx(1, "a vector register changed");
}

static void nap(void)
{
	struct timespec t = { 0, NAP };
	long start = now();

	if (nanosleep(&t, NULL))
		err(1, "nanosleep");
	in_time("nanosleep", start);
}

static void nap_until(void)
{
	long start = now(), end = start + NAP;
	struct timespec t = { end / 1000000000, end % 1000000000 };
	int error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);

	if (error)
		errx(1, "clock_nanosleep: %s", strerror(error));
	in_time("clock_nanosleep", start);
}

static void wait_poll(void)
{
	long start = now();

	if (poll(NULL, 0, NAP / 1000000))
		err(1, "poll");
	in_time("poll", start);
}

static void wait_futex(void)
{
	static int word;
	struct timespec t = { 0, NAP };
	long start = now();

	if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0) != -1 || errno != ETIMEDOUT)
		err(1, "futex");
	in_time("futex", start);
}

static void wait_ppoll(void)
{
	struct timespec t = { 0, NAP };
	long start = now();
	sigset_t open, before, after;

	sigemptyset(&open);
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	if (ppoll(NULL, 0, &t, &open))
		err(1, "ppoll");
	in_time("ppoll", start);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	if (memcmp(&before, &after, 8))
		errx(1, "ppoll changed the signal mask");
}

static void mask(void)
{
	static const sigset_t expected = { { 1UL << (SIGUSR2 - 1) | 1UL << (SIGURG - 1) } };
	sigset_t seen;

	if (!rounds[6])
		pthread_sigmask(SIG_SETMASK, &expected, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &seen);
	if (memcmp(&expected, &seen, 8))
		errx(1, "the signal mask is %#lx", seen.__val[0]);
	usleep(50);
}

static void ping(void)
{
	long sent = rounds[7], got = -1;

	if (write(there[1], &sent, sizeof(sent)) != sizeof(sent))
		err(1, "write");
	if (read(back[0], &got, sizeof(got)) != sizeof(got))
		err(1, "read");
	if (got != sent)
		errx(1, "sent %ld, got %ld", sent, got);
}

static void pong(void)
{
	long got;

	if (read(there[0], &got, sizeof(got)) != sizeof(got))
		err(1, "read");
	usleep(300);
	if (write(back[1], &got, sizeof(got)) != sizeof(got))
		err(1, "write");
}

static void (*const work[])(void) = { registers, nap, nap_until, wait_poll, wait_futex, wait_ppoll, mask, ping, pong };
enum { THREADS = sizeof(work) / sizeof(*work) };

static void *keep_working(void *which)
{
	long i = (long)which;

	while (!done) {
		work[i]();
		rounds[i]++;
	}
	/* ping and pong wait for each other until the process ends */
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	char c;

	if (pipe(there) || pipe(back))
		err(1, "pipe");
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, keep_working, (void *)i);
	if (write(1, "ready\n", 6) != 6)
		err(1, "write");
	if (read(0, &c, 1))
		errx(1, "something came on standard input, or reading it failed");
	done = 1;
	for (int i = 0; i < 7; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < THREADS; i++)
		printf("%ld\n", rounds[i]);
	return 0;
}
