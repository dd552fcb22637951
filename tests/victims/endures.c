/* endures: goes from host to host for as long as it is let, whatever goes wrong on the way. One thread appends lines to
   "count" in its directory, "number rounds": a copy too many leaves a repeat, a copy that has lost time a gap. Another
   goes round: it rewrites and verifies memory, and verifies what else it owns, a deleted file on the disk $VICTIM_DISK among it; `rounds`
   says how often it has found all of that in order. What is wrong is said on standard error, at once. A lock of either
   kind is held throughout. Waits that end with EINTR go on, and leave a line each in "interrupted". */
#include "victim.h"
#include <malloc.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/file.h>
#include <sys/timerfd.h>

enum { PAGES = 256, PAGE = 4096, WORDS = PAGE / 8 };
static uint64_t (*memory)[WORDS];
static uint64_t generations[PAGES];
static volatile long rounds;
static volatile int over;
static int never[2], waiting[2], event, file, timer, deleted;
static pid_t self;
static sigset_t expected;
static pthread_barrier_t going;

static char *in(const char *directory, const char *name)
{
	char *path;

	check(asprintf(&path, "%s/%s", getenv(directory), name) > 0);
	return path;
}

static uint64_t word(int page, int at)
{
	return scramble(generations[page] << 20 ^ (uint64_t)page << 10 ^ at);
}

static void rewrite(int page)
{
	generations[page]++;
	for (int at = 0; at < WORDS; at++)
		memory[page][at] = word(page, at);
}

static void verify(int page)
{
	for (int at = 0; at < WORDS; at++)
		check(memory[page][at] == word(page, at), "page %d, word %d: %lx", page, at, memory[page][at]);
}

static void verify_rest(void)
{
	char text[9] = "";
	struct itimerspec left;
	struct pollfd ready = { .fd = waiting[0], .events = POLLIN };
	int unread;

	check(getpid() == self && syscall(SYS_gettid) != self, "pid %d", getpid());
	check(pread(file, text, 8, 4090) == 8 && !strcmp(text, "contents"), "%s", text);
	check(poll(&ready, 1, 0) == 1 && ready.revents == POLLIN);
	check(!ioctl(waiting[0], FIONREAD, &unread) && unread == 5, "%d", unread);
	check(!timerfd_gettime(timer, &left) && left.it_value.tv_sec > 0);
	check(pread(deleted, text, 8, 200000) == 8 && !strcmp(text, "the disk"), "%s", text);
}

static void *go_round(void *unused)
{
	const struct timespec pause = { 0, 2000000 };
	int64_t before = 0, now;
	sigset_t mask;

	pthread_barrier_wait(&going);
	for (uint64_t at = 1; !over; at++) {
		rewrite(scramble(at) % PAGES);
		verify(scramble(~at) % PAGES);
		verify_rest();
		now = nanoseconds(CLOCK_MONOTONIC);
		check(now >= before, "the clock went from %ld to %ld", before, now);
		before = now;
		check(!pthread_sigmask(SIG_SETMASK, NULL, &mask) && !memcmp(&mask, &expected, 8));
		rounds++;
		nanosleep(&pause, NULL);
	}
	return unused;
}

static void *count(void *unused)
{
	const struct timespec pause = { 0, 2000000 };
	int counted = open(in("VICTIM_DIR", "count"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

	check(counted >= 0);
	pthread_barrier_wait(&going);
	for (long number = 0; !over; number++) {
		check(dprintf(counted, "%ld %ld\n", number, rounds) > 0);
		nanosleep(&pause, NULL);
	}
	return unused;
}

/* What waits without a deadline ends only with what it waits for, or by a stop that nobody could hide. */
static int interrupted(void)
{
	int told;

	if (errno != EINTR)
		return 0;
	told = open(in("VICTIM_DIR", "interrupted"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	check(told >= 0 && write(told, "\n", 1) == 1 && !close(told));
	return 1;
}

static void *wait_for_ever(void *unused)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event found = { EPOLLIN, { .fd = never[0] } };
	int ready;

	check(!epoll_ctl(epoll, EPOLL_CTL_ADD, never[0], &found));
	pthread_barrier_wait(&going);

	while ((ready = epoll_wait(epoll, &found, 1, -1)) < 0 && interrupted())
		;
	check(ready == 1);
	return unused;
}

static void *await_signal(void *unused)
{
	sigset_t set;
	int got;

	pthread_barrier_wait(&going);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	while ((got = sigwaitinfo(&set, NULL)) < 0 && interrupted())
		;
	check(got == SIGRTMIN + 5);
	return unused;
}

static void continued(int number)
{
	check(over, "signal %d", number);
}

static void own(void)
{
	struct itimerspec days = { { 0, 0 }, { 1000000, 0 } };

	event = eventfd(7, EFD_NONBLOCK | EFD_CLOEXEC);
	file = memfd_create("endures", MFD_CLOEXEC);
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	check(event >= 0 && file >= 0 && !ftruncate(file, 8192) && pwrite(file, "contents", 8, 4090) == 8);
	check(!timerfd_settime(timer, 0, &days, NULL));
	deleted = open(in("VICTIM_DISK", "deleted"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	check(deleted >= 0 && pwrite(deleted, "the disk", 8, 200000) == 8 && !unlink(in("VICTIM_DISK", "deleted")));
	check(!pipe(never) && !pipe(waiting) && write(waiting[1], "bytes", 5) == 5);
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED);
	for (int page = 0; page < PAGES; page++)
		rewrite(page);
}

int main(void)
{
	void *(*const all[])(void *) = { go_round, count, wait_for_ever, await_signal };
	enum { THREADS = sizeof(all) / sizeof(*all) };
	pthread_t threads[THREADS];
	int lock = open(in("VICTIM_DIR", "lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0644), i;
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 7 };
	uint64_t value;

	self = getpid();
	mallopt(M_ARENA_MAX, 1); /* else there is new memory the first time that two threads meet in malloc */
	check(lock >= 0 && !flock(lock, LOCK_EX) && !fcntl(lock, F_SETLK, &range));
	sigemptyset(&expected);
	sigaddset(&expected, SIGUSR2);
	sigaddset(&expected, SIGRTMIN + 5);
	check(!pthread_sigmask(SIG_BLOCK, &expected, NULL) && signal(SIGCONT, continued) != SIG_ERR);
	check(!pthread_barrier_init(&going, NULL, THREADS + 1));
	own();
	for (i = 0; i < THREADS; i++)
		check(!pthread_create(&threads[i], NULL, all[i], NULL));
	pthread_barrier_wait(&going);
	ready();
	wait_told();
	over = 1;
	check(write(never[1], "", 1) == 1 && !pthread_kill(threads[3], SIGRTMIN + 5));
	for (i = 0; i < THREADS; i++)
		check(!pthread_join(threads[i], NULL));
	for (i = 0; i < PAGES; i++)
		verify(i);
	check(read(event, &value, 8) == 8 && value == 7, "%lu", value);
	pass();
}
