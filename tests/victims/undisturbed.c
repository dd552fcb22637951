/* undisturbed: threads in calls that a stop may cut short, over and over. Nothing that is done to it from outside may
   show: no EINTR, no wait that ends early, no SIGCONT, no change of the signal mask, no lock lost. Beside that it counts
   into the file "count" of its directory, where another copy of it would leave a repeat. */
#include "victim.h"
#include <linux/futex.h>
#include <malloc.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>

enum { NAP = 50000000 /* ns */ };
static volatile int over;
static int never[2];
static pthread_barrier_t going;
static sigset_t expected;
static struct utsname home;

/* On another host there is no restart block: a call with a relative deadline may return there, and say so. */
static int excused(void)
{
	int error = errno;
	struct utsname here;

	check(!uname(&here));
	return error == EINTR && strcmp(here.nodename, home.nodename);
}

static void looked_at(const char *what, int64_t start)
{
	sigset_t mask;
	int64_t took = nanoseconds(CLOCK_MONOTONIC) - start;

	check(took >= NAP, "%s ended after %ld ns", what, took);
	check(!pthread_sigmask(SIG_SETMASK, NULL, &mask) && !memcmp(&mask, &expected, 8), "%s", what);
}

static void sleeps(int64_t start)
{
	struct timespec t = { 0, NAP };

	if (!nanosleep(&t, NULL))
		looked_at("nanosleep", start);
	else
		check(excused());
}

static void sleeps_until(int64_t start)
{
	int64_t end = start + NAP;
	struct timespec t = { end / 1000000000, end % 1000000000 };

	check(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
	looked_at("clock_nanosleep", start);
}

static void polls(int64_t start)
{
	if (!poll(NULL, 0, NAP / 1000000))
		looked_at("poll", start);
	else
		check(excused());
}

static void waits(int64_t start)
{
	static int word;
	struct timespec t = { 0, NAP };

	if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0) == -1 && errno == ETIMEDOUT)
		looked_at("futex", start);
	else
		check(excused());
}

static void (*const naps[])(int64_t) = { sleeps, sleeps_until, polls, waits };
enum { NAPS = sizeof(naps) / sizeof(*naps) };

static void *nap(void *which)
{
	pthread_barrier_wait(&going);
	while (!over)
		naps[(long)which](nanoseconds(CLOCK_MONOTONIC));
	return NULL;
}

/* Without a deadline it ends only with what it waits for. */
static void *wait_for_ever(void *unused)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = { EPOLLIN, { .fd = never[0] } };

	check(!epoll_ctl(epoll, EPOLL_CTL_ADD, never[0], &event));
	pthread_barrier_wait(&going);
	check(epoll_wait(epoll, &event, 1, -1) == 1);
	return unused;
}

static void *await_signal(void *unused)
{
	sigset_t set;

	pthread_barrier_wait(&going);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	check(sigwaitinfo(&set, NULL) == SIGRTMIN + 5);
	return unused;
}

static void continued(int number)
{
	check(over, "signal %d", number);
}

static void *count(void *path)
{
	const struct timespec pause = { 0, 1000000 };
	int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

	pthread_barrier_wait(&going);
	check(file >= 0);
	for (long number = 0; !over; number++) {
		check(dprintf(file, "%ld\n", number) > 0);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* One of everything else that has to be put back elsewhere; none of it does anything for an hour. */
static void own(void)
{
	struct itimerspec hour = { { 0, 0 }, { 3600, 0 } };
	struct itimerval other = { { 0, 0 }, { 3600, 0 } };
	sigset_t set;
	timer_t timer;
	int memory = memfd_create("undisturbed", MFD_CLOEXEC);

	sigemptyset(&set);
	check(!timer_create(CLOCK_MONOTONIC, NULL, &timer) && !timer_settime(timer, 0, &hour, NULL));
	check(!setitimer(ITIMER_REAL, &other, NULL));
	check(!timerfd_settime(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), 0, &hour, NULL));
	check(eventfd(7, EFD_NONBLOCK) >= 0 && signalfd(-1, &set, SFD_CLOEXEC) >= 0);
	check(inotify_add_watch(inotify_init1(IN_CLOEXEC), getenv("VICTIM_DIR"), IN_ATTRIB) >= 0);
	check(memory >= 0 && !ftruncate(memory, 8192) && pwrite(memory, "contents", 8, 4090) == 8);
	check(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0) != MAP_FAILED);
	check(mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
	check(open("/dev/null", O_RDWR) >= 0 && dup(2) >= 0 && open("/", O_RDONLY | O_DIRECTORY) >= 0);
}

static char *in_directory(const char *name)
{
	char *path;

	check(asprintf(&path, "%s/%s", getenv("VICTIM_DIR"), name) > 0);
	return path;
}

int main(void)
{
	pthread_t threads[NAPS + 3];
	int lock = open(in_directory("lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0644), other, i, status;
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 7 };

	check(!uname(&home));
	mallopt(M_ARENA_MAX, 1); /* else there is new memory the first time that two threads meet in malloc */
	check(lock >= 0 && !flock(lock, LOCK_EX) && !fcntl(lock, F_SETLK, &range));
	sigemptyset(&expected);
	sigaddset(&expected, SIGUSR2);
	sigaddset(&expected, SIGRTMIN + 5);
	check(!pthread_sigmask(SIG_BLOCK, &expected, NULL) && signal(SIGCONT, continued) != SIG_ERR && !pipe(never));
	check(!pthread_barrier_init(&going, NULL, NAPS + 4));
	own();
	for (i = 0; i < NAPS; i++)
		check(!pthread_create(&threads[i], NULL, nap, (void *)(long)i));
	check(!pthread_create(&threads[i++], NULL, wait_for_ever, NULL));
	check(!pthread_create(&threads[i++], NULL, await_signal, NULL));
	check(!pthread_create(&threads[i++], NULL, count, in_directory("count")));
	pthread_barrier_wait(&going);
	ready();
	wait_told();
	over = 1;
	check(write(never[1], "", 1) == 1 && !pthread_kill(threads[NAPS + 1], SIGRTMIN + 5));
	for (i = 0; i < NAPS + 3; i++)
		check(!pthread_join(threads[i], NULL));
	other = open(in_directory("lock"), O_RDWR | O_CLOEXEC);
	check(other >= 0 && flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock is gone");
	if (!fork())
		_exit(fcntl(other, F_GETLK, &range) || range.l_type != F_WRLCK || range.l_start != 5 || range.l_len != 7);
	check(wait(&status) > 0 && !status, "the record lock is gone");
	pass();
}
