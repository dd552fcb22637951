/* shares: a process and two children, and all that they have in common: the offset of a file, pipes with something in
   them, an eventfd, a timerfd, an epoll, memory, a memfd that one has mapped and the other open, and one that only
   children have. What one does the others see. */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

struct shared {
	volatile int turn, answers[3];
	volatile unsigned char bytes[1 << 16];
};

static struct shared *shared;
static int file, down[2], up[2], counter, timer, poller, memory, early[2];
static unsigned char *mapped;

static void takes(int fd, const char *text)
{
	char buffer[64] = "";

	check(read(fd, buffer, strlen(text)) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s", fd, buffer);
}

/* One after the other: 0, 1, 2, and so on. */
static void await_turn(int turn)
{
	const struct timespec pause = { 0, 1000000 };

	while (shared->turn != turn)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

static void next(void)
{
	shared->turn++;
}

__attribute__((noreturn)) static void first_child(pid_t parent)
{
	uint64_t number;
	struct epoll_event event;

	close(down[1]);
	close(up[0]);
	close(early[0]);
	next();
	wait_told();
	await_turn(3);
	check(getppid() == parent);
	takes(down[0], "for the first");
	check(write(up[1], "from the first", 14) == 14);
	check(lseek(file, 0, SEEK_CUR) == 10 && read(file, &number, 5) == 5 && !memcmp(&number, "klmno", 5));
	check(read(counter, &number, 8) == 8 && number == 7, "%ld", (long)number);
	check(epoll_wait(poller, &event, 1, 5000) == 1 && event.data.u64 == 99);
	check(read(timer, &number, 8) == 8 && number >= 1);
	for (int i = 0; i < 1 << 16; i++)
		check(shared->bytes[i] == (unsigned char)scramble(i), "at %d", i);
	shared->bytes[77] = 78;
	check(pread(memory, &number, 8, 4096) == 8 && number == 0x1234567812345678);
	number = 0x8765432187654321;
	check(pwrite(memory, &number, 8, 8192) == 8);
	next();
	_exit(3);
}

__attribute__((noreturn)) static void second_child(pid_t parent)
{
	uint64_t number;

	close(down[0]);
	close(down[1]);
	close(early[1]);
	next();
	wait_told();
	await_turn(4);
	check(getppid() == parent);
	check(shared->bytes[77] == 78);
	check(lseek(file, 0, SEEK_CUR) == 15 && lseek(file, 20, SEEK_SET) == 20);
	check(read(counter, &number, 8) == -1 && errno == EAGAIN);
	check(*(uint64_t *)(mapped + 8192) == 0x8765432187654321);
	takes(early[0], "between children");
	check(write(up[1], ", and the second", 16) == 16);
	next();
	_exit(4);
}

int main(void)
{
	int status, name;
	pid_t self = getpid(), one, two;
	struct itimerspec soon = { .it_value = { 0, 200000000 } };
	struct epoll_event event = { EPOLLIN, { .u64 = 99 } };
	uint64_t word = 0x1234567812345678;

	check(!chdir(getenv("VICTIM_DIR")));
	check((file = open("shared-file", O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0);
	check(write(file, "abcdefghijklmnopqrstuvwxyz", 26) == 26 && lseek(file, 10, SEEK_SET) == 10);
	check(!pipe(down) && !pipe(up) && !pipe(early));
	check(write(early[1], "between children", 16) == 16);
	check((counter = eventfd(7, EFD_NONBLOCK)) >= 0);
	check((timer = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0 && !timerfd_settime(timer, 0, &soon, NULL));
	check((poller = epoll_create1(0)) >= 0 && !epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event));
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(shared != MAP_FAILED);
	for (int i = 0; i < 1 << 16; i++)
		shared->bytes[i] = scramble(i);
	check((memory = memfd_create("common", MFD_CLOEXEC)) >= 0 && !ftruncate(memory, 1 << 16));
	mapped = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	check(mapped != MAP_FAILED && pwrite(memory, &word, 8, 4096) == 8);

	one = fork();
	check(one >= 0);
	if (!one)
		first_child(self);
	await_turn(1);
	two = fork();
	check(two >= 0);
	if (!two)
		second_child(self);
	await_turn(2);
	close(memory);
	close(early[0]);
	close(early[1]);
	close(down[0]);
	close(up[1]);
	check(write(down[1], "for the first", 13) == 13);
	ready();
	wait_told();

	next();
	await_turn(5);
	takes(up[0], "from the first, and the second");
	check(lseek(file, 0, SEEK_CUR) == 20);
	check(*(uint64_t *)(mapped + 4096) == word && *(uint64_t *)(mapped + 8192) == 0x8765432187654321);
	check(waitpid(one, &status, 0) == one && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(waitpid(two, &status, 0) == two && WIFEXITED(status) && WEXITSTATUS(status) == 4, "%x", status);
	check(read(up[0], &name, 1) == 0, "nobody else has the other end");
	check(fcntl(down[1], F_SETFL, O_NONBLOCK) == 0);
	signal(SIGPIPE, SIG_IGN);
	check(write(down[1], "x", 1) == -1 && errno == EPIPE);
	pass();
}
