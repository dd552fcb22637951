/* asleep: one thread in each call that sleeps. Those without a deadline go on sleeping and end with what they wait for;
   those with one end in time, or with EINTR where the kernel alone knew how long was left. */
#include "victim.h"
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum { SECOND = 1000000000, LATE = 2 * SECOND };
static int word, pipes[8][2], used, asleep, interrupted;
static int64_t deadline; /* of those that have one: some seconds from the start */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static volatile int over;

static int another(void)
{
	return pipes[__atomic_fetch_add(&used, 1, __ATOMIC_SEQ_CST)][0];
}

static struct timespec left(void)
{
	int64_t t = deadline - nanoseconds(CLOCK_MONOTONIC);

	return (struct timespec){ t / SECOND, t % SECOND };
}

/* It ended by itself: not early, not much too late. `result`: of a call that may be cut short. */
static void in_time(int cut_short)
{
	int64_t late = nanoseconds(CLOCK_MONOTONIC) - deadline;

	if (cut_short)
		__atomic_add_fetch(&interrupted, 1, __ATOMIC_SEQ_CST);
	check((cut_short || late >= 0) && late < LATE, "%ld ns after the deadline", late);
	while (!over)
		usleep(1000);
}

static void sleeps(void)
{
	struct timespec t = left();

	while (nanosleep(&t, &t))
		check(errno == EINTR);
	in_time(0);
}

static void sleeps_until(void)
{
	struct timespec t = { deadline / SECOND, deadline % SECOND };

	check(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
	in_time(0);
}

static void waits_timed(void)
{
	int64_t end = nanoseconds(CLOCK_REALTIME) + deadline - nanoseconds(CLOCK_MONOTONIC);
	struct timespec t = { end / SECOND, end % SECOND };

	check(sem_timedwait(&semaphore, &t) == -1 && errno == ETIMEDOUT);
	in_time(0);
}

static void polls_timed(void)
{
	struct timespec t = left();
	int result = poll(NULL, 0, t.tv_sec * 1000 + t.tv_nsec / 1000000 + 1);

	check(!result || errno == EINTR);
	in_time(result);
}

static void futex_timed(void)
{
	struct timespec t = left();
	int result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0);

	check(result == -1 && (errno == ETIMEDOUT || errno == EINTR));
	in_time(errno == EINTR);
}

static void polls(void)
{
	struct pollfd fd = { another(), POLLIN, 0 };

	check(poll(&fd, 1, -1) == 1 && fd.revents == POLLIN);
}

static void selects(void)
{
	fd_set set;
	int fd = another();

	FD_ZERO(&set);
	FD_SET(fd, &set);
	check(select(fd + 1, &set, NULL, NULL, NULL) == 1 && FD_ISSET(fd, &set));
}

static void epolls(void)
{
	int epoll = epoll_create1(0), fd = another();
	struct epoll_event event = { EPOLLIN, { .u64 = 0x123456789abcdef0 } };

	check(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	check(epoll_wait(epoll, &event, 1, -1) == 1 && event.data.u64 == 0x123456789abcdef0);
}

static void reads(void)
{
	char text[8];

	check(read(another(), text, 8) == 5 && !memcmp(text, "hello", 5));
}

static void waits_futex(void)
{
	while (!__atomic_load_n(&word, __ATOMIC_SEQ_CST))
		check(!syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0) || errno == EAGAIN);
}

static void waits_condition(void)
{
	pthread_mutex_lock(&mutex);
	while (!over)
		pthread_cond_wait(&condition, &mutex);
	pthread_mutex_unlock(&mutex);
}

static void waits_signal(void)
{
	sigset_t set;
	int number;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	check(!sigwait(&set, &number) && number == SIGRTMIN + 5);
}

static void pauses(void)
{
	sigset_t mask, after;

	sigfillset(&mask);
	sigdelset(&mask, SIGRTMIN + 6);
	check(sigsuspend(&mask) == -1 && errno == EINTR && !pthread_sigmask(SIG_SETMASK, NULL, &after));
	check(sigismember(&after, SIGRTMIN + 6));
}

static void handler(int number)
{
	check(number == SIGRTMIN + 6);
}

static void (*const calls[])(void) = { waits_signal, pauses, sleeps, sleeps_until, waits_timed, polls_timed, futex_timed,
	polls, selects, epolls, reads, waits_futex, waits_condition };
enum { COUNT = sizeof(calls) / sizeof(*calls) };

static void *work(void *which)
{
	__atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
	calls[(long)which]();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[COUNT];
	sigset_t blocked;

	deadline = nanoseconds(CLOCK_MONOTONIC) + (int64_t)(argc > 1 ? atoi(argv[1]) : 1000) * 1000000;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 5);
	sigaddset(&blocked, SIGRTMIN + 6);
	check(!pthread_sigmask(SIG_BLOCK, &blocked, NULL) && signal(SIGRTMIN + 6, handler) != SIG_ERR);
	check(!sem_init(&semaphore, 0, 0));
	for (int i = 0; i < 8; i++)
		check(!pipe(pipes[i]));
	for (long i = 0; i < COUNT; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)i));
	while (asleep != COUNT)
		usleep(1000);
	usleep(100000);
	ready();
	wait_told();
	word = 1;
	over = 1;
	check(syscall(SYS_futex, &word, FUTEX_WAKE, 100, NULL, NULL, 0) >= 0);
	pthread_mutex_lock(&mutex);
	pthread_cond_broadcast(&condition);
	pthread_mutex_unlock(&mutex);
	for (int i = 0; i < used; i++)
		check(write(pipes[i][1], "hello", 5) == 5);
	check(!pthread_kill(threads[0], SIGRTMIN + 5) && !pthread_kill(threads[1], SIGRTMIN + 6));
	for (int i = 0; i < COUNT; i++)
		check(!pthread_join(threads[i], NULL), "%d", i);
	printf("interrupted %d\n", interrupted);
	fflush(stdout);
	pass();
}
