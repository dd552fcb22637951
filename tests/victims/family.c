/* family [CHILDREN]: a process with children, one of which has a child of its own. Each checks its memory, who its
   parent is, and that nobody else is told of it; the parents wait for them and get what they ended with. */
#include "victim.h"
#include <sys/mman.h>
#include <sys/wait.h>

static volatile sig_atomic_t signals;

static void on_child(int number)
{
	(void)number;
	signals++;
}

static int arrivals[2];
static unsigned char *memory;
static const size_t size = 1 << 20;

static void fill(int seed)
{
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED);
	for (size_t i = 0; i < size; i++)
		memory[i] = scramble(i + seed);
}

static void intact(int seed)
{
	for (size_t i = 0; i < size; i++)
		check(memory[i] == (unsigned char)scramble(i + seed), "at %zu", i);
}

static void wait_for(pid_t child, int code)
{
	int status;

	check(waitpid(child, &status, 0) == child);
	check(WIFEXITED(status) && WEXITSTATUS(status) == code, "status %x", status);
}

__attribute__((noreturn)) static void live(int seed, pid_t parent, int depth)
{
	pid_t self = getpid(), grandchild = 0;

	if (depth) {
		grandchild = fork();
		check(grandchild >= 0);
		if (!grandchild) {
			parent = self;
			self = getpid();
			seed += 1000;
		}
	}
	fill(seed);
	check(write(arrivals[1], ".", 1) == 1);
	wait_told();
	check(getpid() == self && getppid() == parent, "parent %d", getppid());
	intact(seed);
	if (grandchild) {
		wait_for(grandchild, (seed + 1000) % 100);
		check(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
	}
	_exit(seed % 100);
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 3, waited = 0;
	pid_t children[64], self = getpid();
	char dot;
	struct sigaction action = { .sa_handler = on_child, .sa_flags = SA_RESTART | SA_NOCLDSTOP };

	check(!sigaction(SIGCHLD, &action, NULL) && !pipe(arrivals));
	fill(7);
	for (int i = 0; i < count; i++) {
		children[i] = fork();
		check(children[i] >= 0);
		if (!children[i])
			live(11 * (i + 1), self, i == 0);
	}
	for (int i = 0; i <= count; i++)
		check(read(arrivals[0], &dot, 1) == 1);
	ready();
	wait_told();

	intact(7);
	for (int i = 0; i < count; i++) {
		check(getpgid(children[i]) == getpgrp() && getsid(children[i]) == getsid(0));
		wait_for(children[i], 11 * (i + 1) % 100);
		waited++;
	}
	check(signals >= 1 && signals <= waited, "%d signals", signals);
	check(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
	pass();
}
