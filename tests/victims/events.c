/* events: eventfd, timerfd, signalfd, inotify, memfd with seals, pidfd of itself, and an epoll that watches all of them
   and another epoll. */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int epoll;

static void watch(int fd, uint64_t data, uint32_t how)
{
	struct epoll_event event = { how, { .u64 = data } };

	check(fd >= 0 && !epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

static uint64_t ready_now(void)
{
	struct epoll_event events[16];
	uint64_t found = 0;
	int count = epoll_wait(epoll, events, 16, 0);

	for (int i = 0; i < count; i++)
		found |= events[i].data.u64;
	return found;
}

int main(void)
{
	struct itimerspec once = { { 0, 0 }, { 3600, 0 } }, often = { { 0, 1000000 }, { 0, 1000000 } }, now;
	char path[300], text[4096];
	uint64_t value;
	sigset_t set;
	struct signalfd_siginfo info;

	epoll = epoll_create1(EPOLL_CLOEXEC);
	int counter = eventfd(7, EFD_NONBLOCK), semaphore = eventfd(3, EFD_SEMAPHORE), inner = epoll_create1(0);
	int late = timerfd_create(CLOCK_REALTIME, 0), soon = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	int notify = inotify_init1(IN_NONBLOCK), memory = memfd_create("sealed", MFD_ALLOW_SEALING), self;

	sprintf(path, "%s/watched", getenv("VICTIM_DIR"));
	check(!mkdir(path, 0755) && inotify_add_watch(notify, path, IN_CREATE | IN_DELETE) == 1);
	check(inotify_add_watch(notify, getenv("VICTIM_DIR"), IN_MOVED_TO) == 2 && !inotify_rm_watch(notify, 1));
	check(read(notify, text, sizeof(text)) > 0 && inotify_add_watch(notify, path, IN_CREATE) == 3);
	check(!timerfd_settime(late, 0, &once, NULL) && !timerfd_settime(soon, 0, &often, NULL));
	check(write(memory, "contents", 8) == 8 && !fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	check(!sigprocmask(SIG_BLOCK, &set, NULL));
	int signals = signalfd(-1, &set, SFD_NONBLOCK);
	self = syscall(SYS_pidfd_open, getpid(), 0);
	watch(counter, 1, EPOLLIN);
	watch(semaphore, 2, EPOLLIN | EPOLLET);
	watch(late, 4, EPOLLIN);
	watch(soon, 8, EPOLLIN);
	watch(signals, 16, EPOLLIN);
	watch(notify, 32, EPOLLIN | EPOLLONESHOT);
	watch(inner, 64, EPOLLIN);
	watch(dup(counter), 128, EPOLLOUT);
	check(!kill(getpid(), SIGRTMIN + 3));
	ready();
	wait_told();
	value = ready_now();
	check((value & (1 | 4 | 8 | 16 | 32 | 64 | 128)) == (1 | 8 | 16 | 128), "%#lx", value);
	check(read(counter, &value, 8) == 8 && value == 7 && read(counter, &value, 8) == -1 && errno == EAGAIN);
	check(read(semaphore, &value, 8) == 8 && value == 1 && read(semaphore, &value, 8) == 8);
	check(!timerfd_gettime(late, &now) && now.it_value.tv_sec > 3500 && !now.it_interval.tv_sec);
	check(read(soon, &value, 8) == 8 && value > 10 && usleep(20000) == 0 && read(soon, &value, 8) == 8 && value >= 15, "%lu", value);
	check(read(signals, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == (unsigned)SIGRTMIN + 3);
	check(info.ssi_pid == (unsigned)getpid() && read(signals, &info, sizeof(info)) == -1);
	strcat(path, "/new");
	check(close(open(path, O_CREAT, 0600)) == 0 && ready_now() & 32);
	check(read(notify, text, sizeof(text)) > 0 && ((struct inotify_event *)text)->wd == 3);
	check(!strcmp(((struct inotify_event *)text)->name, "new"));
	check(pread(memory, text, 9, 0) == 8 && !memcmp(text, "contents", 8) && write(memory, "x", 1) == -1 && errno == EPERM);
	check(fcntl(memory, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) && ftruncate(memory, 9) == -1);
	struct epoll_event event = { EPOLLIN, { .u64 = 5 } };
	check(!epoll_ctl(inner, EPOLL_CTL_ADD, counter, &event) && eventfd_write(counter, 2) == 0 && ready_now() & 64);
	check(!syscall(SYS_pidfd_send_signal, self, SIGRTMIN + 3, NULL, 0) && ready_now() & 16);
	pass();
}
