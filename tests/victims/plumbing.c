/* plumbing [FIFO]: pipes and a FIFO with something in them, eventfds, nested epoll, timerfds, a signalfd, inotify and a pidfd of
   itself. Everything that was put in before the move is taken out after it, and nothing else. */
#include "victim.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int ready_for(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };

	check(poll(&p, 1, 0) >= 0);
	return p.revents;
}

static void takes(int fd, const char *text)
{
	char buffer[64] = "";

	check(read(fd, buffer, sizeof(buffer)) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s", fd, buffer);
}

static uint64_t takes_number(int fd)
{
	uint64_t number;

	check(read(fd, &number, 8) == 8, "fd %d", fd);
	return number;
}

static void watch(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { events, { .u64 = data } };

	check(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "fd %d", fd);
}

int main(int argc, char **argv)
{
	int simple[2], full[2], packets[2], hung[2], empty[2], fifo, fifo_writer, counter, semaphore, inner, outer;
	int once, repeats, stopped, signals, notify, watched, myself;
	int64_t armed, elapsed, left;
	sigset_t set;
	const char *name = argc > 1 ? argv[1] : "fifo";
	char *block = malloc(1 << 17), *back = malloc(1 << 17);
	struct itimerspec in = { .it_value = { 0, 300000000 } }, every = { { 0, 50000000 }, { 0, 50000000 } }, now;
	struct epoll_event events[8];
	struct signalfd_siginfo info;
	struct { struct inotify_event event; char name[256]; } change;

	check(!chdir(getenv("VICTIM_DIR")));
	for (int i = 0; i < 1 << 17; i++)
		block[i] = scramble(i);
	check(!pipe(simple) && write(simple[1], "in the pipe", 11) == 11);
	check(!pipe2(full, O_NONBLOCK | O_CLOEXEC) && fcntl(full[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
	check(write(full[1], block, 1 << 17) == 1 << 17 && write(full[1], "x", 1) == -1 && errno == EAGAIN);
	check(!pipe2(packets, O_DIRECT) && write(packets[1], "first", 5) == 5 && write(packets[1], "second", 6) == 6);
	check(!pipe(hung) && write(hung[1], "last words", 10) == 10 && !close(hung[1]));
	check(!pipe(empty));
	if (argc == 1)
		check(!mkfifo(name, 0600));
	check((fifo = open(name, O_RDONLY | O_NONBLOCK)) >= 0);
	check((fifo_writer = open(name, O_WRONLY)) >= 0 && write(fifo_writer, "in the fifo", 11) == 11);

	counter = eventfd(5, EFD_NONBLOCK);
	semaphore = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC);
	inner = epoll_create1(EPOLL_CLOEXEC);
	outer = epoll_create1(0);
	check(counter >= 0 && semaphore >= 0 && inner >= 0 && outer >= 0);
	watch(inner, simple[0], EPOLLIN, 0x1111111122222222);
	watch(inner, counter, EPOLLIN | EPOLLET, 7);
	watch(outer, inner, EPOLLIN, 8);
	watch(outer, empty[0], EPOLLIN | EPOLLRDHUP, 9);

	once = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	repeats = timerfd_create(CLOCK_REALTIME, 0);
	stopped = timerfd_create(CLOCK_BOOTTIME, 0);
	check(once >= 0 && repeats >= 0 && stopped >= 0);
	in.it_value.tv_sec = 3;
	check(!timerfd_settime(once, 0, &in, NULL) && !timerfd_settime(repeats, 0, &every, NULL));
	armed = nanoseconds(CLOCK_MONOTONIC);

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 3);
	check(!sigprocmask(SIG_BLOCK, &set, NULL) && (signals = signalfd(-1, &set, SFD_CLOEXEC)) >= 0);
	check(!sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 4711 }));

	check(!mkdir("watched", 0700) && (notify = inotify_init1(IN_NONBLOCK)) >= 0);
	check(inotify_add_watch(notify, "/dev/null", IN_ATTRIB) == 1 && !inotify_rm_watch(notify, 1));
	check(read(notify, &change, sizeof(change)) > 0); /* IN_IGNORED */
	check((watched = inotify_add_watch(notify, "watched", IN_CREATE | IN_DELETE)) == 2);
	myself = pidfd_open(getpid(), 0);
	check(myself >= 0);
	ready();
	wait_told();

	takes(simple[0], "in the pipe");
	check(write(simple[1], "again", 5) == 5);
	takes(simple[0], "again");
	check(write(full[1], "x", 1) == -1 && errno == EAGAIN && fcntl(full[0], F_GETPIPE_SZ) == 1 << 17);
	check(read(full[0], back, 1 << 17) == 1 << 17 && !memcmp(block, back, 1 << 17) && !ready_for(full[0]));
	takes(packets[0], "first");
	takes(packets[0], "second");
	takes(hung[0], "last words");
	takes(hung[0], "");
	takes(fifo, "in the fifo");
	check(read(fifo, back, 1) == -1 && errno == EAGAIN && write(fifo_writer, "more", 4) == 4);
	takes(fifo, "more");
	check(open(name, O_WRONLY | O_NONBLOCK) >= 0);

	check(epoll_wait(outer, events, 8, 0) == 1 && events[0].data.u64 == 8); /* the counter is ready */
	check(epoll_wait(inner, events, 8, 0) == 1 && events[0].data.u64 == 7);
	check(epoll_wait(inner, events, 8, 0) == 0, "not edge-triggered");
	check(takes_number(counter) == 5 && read(counter, back, 8) == -1 && errno == EAGAIN);
	check(takes_number(semaphore) == 1 && takes_number(semaphore) == 1 && takes_number(semaphore) == 1);
	check(!ready_for(semaphore));
	check(write(simple[1], "x", 1) == 1 && epoll_wait(outer, events, 8, 0) == 1 && events[0].data.u64 == 8);
	check(epoll_wait(inner, events, 8, 0) == 1 && events[0].data.u64 == 0x1111111122222222);
	takes(simple[0], "x");
	check(write(empty[1], "x", 1) == 1 && epoll_wait(outer, events, 8, 0) == 1 && events[0].data.u64 == 9);

	check(takes_number(repeats) > 0 && takes_number(repeats) > 0); /* both clocks go on */
	check(!timerfd_gettime(stopped, &now) && !now.it_value.tv_sec && !now.it_value.tv_nsec);
	/* it has what is left of its time, and at most the downtime more, or none is left; and takes that */
	elapsed = nanoseconds(CLOCK_MONOTONIC) - armed;
	check(!timerfd_gettime(once, &now));
	left = now.it_value.tv_sec * 1000000000 + now.it_value.tv_nsec;
	check(!left || elapsed + left <= 5310000000, "%ld ns left after %ld", left, elapsed);
	check(!fcntl(once, F_SETFL, 0) && takes_number(once) == 1);
	elapsed = nanoseconds(CLOCK_MONOTONIC) - armed;
	check(elapsed >= 3290000000, "after %ld ns", elapsed);

	check(read(signals, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == (unsigned)SIGRTMIN + 3);
	check(info.ssi_int == 4711 && info.ssi_pid == (unsigned)getpid() && !ready_for(signals));
	check(!raise(SIGUSR1) && read(signals, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == SIGUSR1);

	check(read(notify, &change, sizeof(change)) == -1 && errno == EAGAIN);
	check(open("watched/new", O_CREAT | O_RDWR, 0600) >= 0 && read(notify, &change, sizeof(change)) > 0);
	check(change.event.wd == watched && change.event.mask == IN_CREATE && !strcmp(change.name, "new"), "%s", change.name);
	check(inotify_add_watch(notify, ".", IN_CREATE) == 3, "numbers are not given twice");

	check(!pidfd_send_signal(myself, SIGUSR1, NULL, 0) && ready_for(signals) && !ready_for(myself));
	pass();
}
