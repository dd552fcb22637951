/* deadlines MILLISECONDS: a thread for each way to wait until a time, relative or absolute, by a clock that a time namespace
   shifts or by one that it does not. All of them wait for the same moment. None may end early, nor much too late, by
   any of the clocks. */
#include "victim.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

enum { SECOND = 1000000000, LATE = 2 * SECOND };
static int64_t due[3]; /* by CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME */
static const clockid_t clocks[3] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME };
static _Atomic int asleep;

static struct timespec spec(int64_t t)
{
	return (struct timespec){ t / SECOND, t % SECOND };
}

static struct timespec left(void)
{
	int64_t t = due[1] - nanoseconds(CLOCK_MONOTONIC);

	return spec(t > 1 ? t : 1);
}

static int past(void)
{
	return nanoseconds(CLOCK_MONOTONIC) >= due[1];
}

static void sleep_relative(int which)
{
	struct timespec t = left();

	(void)which;
	while (nanosleep(&t, &t))
		check(errno == EINTR);
}

static void sleep_absolute(int which)
{
	struct timespec t = spec(due[which]);
	int error;

	while ((error = clock_nanosleep(clocks[which], TIMER_ABSTIME, &t, NULL)))
		check(error == EINTR);
}

static void futex_relative(int which)
{
	static int word;

	(void)which;
	do {
		struct timespec t = left();

		check(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0) == -1);
		check(errno == ETIMEDOUT || errno == EINTR);
	} while (errno == EINTR);
}

static void futex_absolute(int which)
{
	static int word;
	struct timespec t = spec(due[which]);
	int flags = which ? 0 : FUTEX_CLOCK_REALTIME;

	/* a wait with an absolute deadline is never cut short by a move */
	check(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE | flags, 0, &t, NULL, FUTEX_BITSET_MATCH_ANY) == -1);
	check(errno == ETIMEDOUT);
}

static void poll_relative(int which)
{
	(void)which;
	do {
		struct timespec t = left();

		check(!poll(NULL, 0, t.tv_sec * 1000 + t.tv_nsec / 1000000 + 1) || errno == EINTR);
	} while (!past());
}

static void epoll_relative(int which)
{
	int epoll = epoll_create1(0);
	struct epoll_event event;

	(void)which;
	do {
		struct timespec t = left();
		int found = epoll_wait(epoll, &event, 1, t.tv_sec * 1000 + t.tv_nsec / 1000000 + 1);

		check(!found || (found == -1 && errno == EINTR));
	} while (!past());
}

static void timerfd(int which, int flags)
{
	int fd = timerfd_create(clocks[which], 0);
	struct itimerspec once = { .it_value = flags ? spec(due[which]) : left() };
	uint64_t expired;

	check(fd >= 0 && !timerfd_settime(fd, flags, &once, NULL));
	check(read(fd, &expired, 8) == 8 && expired == 1, "%lu", expired);
}

static void timerfd_relative(int which)
{
	timerfd(which, 0);
}

static void timerfd_absolute(int which)
{
	timerfd(which, TFD_TIMER_ABSTIME);
}

/* A timer of its own, whose signal it waits for. */
static void timer(int which, int flags, int number)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number };
	struct itimerspec once = { .it_value = flags ? spec(due[which]) : left() };
	siginfo_t info;
	sigset_t set;
	timer_t id;

	event._sigev_un._tid = syscall(SYS_gettid);
	sigemptyset(&set);
	sigaddset(&set, number);
	check(!timer_create(clocks[which], &event, &id) && !timer_settime(id, flags, &once, NULL));
	while (sigwaitinfo(&set, &info) != number)
		check(errno == EINTR);
	check(info.si_code == SI_TIMER && !info.si_overrun && !timer_delete(id));
}

static void timer_relative(int which)
{
	timer(which, 0, SIGRTMIN + 1);
}

static void timer_absolute(int which)
{
	timer(which, TIMER_ABSTIME, SIGRTMIN + 2 + which);
}

static void interval_timer(int which)
{
	struct timespec t = left();
	struct itimerval once = { { 0, 0 }, { t.tv_sec, t.tv_nsec / 1000 + 1 } };
	sigset_t set;
	int number;

	(void)which;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	check(!setitimer(ITIMER_REAL, &once, NULL) && !sigwait(&set, &number) && number == SIGALRM);
}

static const struct {
	const char *name;
	void (*wait)(int which);
	int which;
} ways[] = {
	{ "nanosleep", sleep_relative, 1 }, { "clock_nanosleep", sleep_absolute, 0 },
	{ "clock_nanosleep", sleep_absolute, 1 }, { "clock_nanosleep", sleep_absolute, 2 },
	{ "futex", futex_relative, 1 }, { "futex, absolute", futex_absolute, 0 }, { "futex, absolute", futex_absolute, 1 },
	{ "poll", poll_relative, 1 }, { "epoll", epoll_relative, 1 },
	{ "timerfd", timerfd_relative, 0 }, { "timerfd", timerfd_relative, 1 }, { "timerfd", timerfd_relative, 2 },
	{ "timerfd, absolute", timerfd_absolute, 0 }, { "timerfd, absolute", timerfd_absolute, 1 },
	{ "timerfd, absolute", timerfd_absolute, 2 }, { "timer", timer_relative, 1 },
	{ "timer, absolute", timer_absolute, 0 }, { "timer, absolute", timer_absolute, 1 },
	{ "timer, absolute", timer_absolute, 2 }, { "setitimer", interval_timer, 1 },
};
enum { COUNT = sizeof(ways) / sizeof(*ways) };

static void *work(void *index)
{
	long i = (long)index;
	int64_t late;

	asleep++;
	ways[i].wait(ways[i].which);
	for (int clock = 0; clock < 3; clock++) {
		late = nanoseconds(clocks[clock]) - due[clock];
		/* The three were not read at the very same moment, and a move lets one gain on the others a little. */
		check(late > (clock == ways[i].which ? -SECOND / 50 : -SECOND) && late < LATE, "%s by clock %d: %ld ns late by clock %d", ways[i].name,
		      ways[i].which, late, clocks[clock]);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[COUNT];
	sigset_t all;

	check(argc == 2);
	sigfillset(&all);
	check(!pthread_sigmask(SIG_BLOCK, &all, NULL));
	for (int i = 0; i < 3; i++)
		due[i] = nanoseconds(clocks[i]) + atol(argv[1]) * 1000000;
	for (long i = 0; i < COUNT; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)i));
	while (asleep != COUNT)
		usleep(1000);
	usleep(100000);
	ready();
	for (int i = 0; i < COUNT; i++)
		check(!pthread_join(threads[i], NULL));
	pass();
}
