/* guests: like restless, its children are never the same, and share with the one that makes them what clone(2) lets them
   share: some have one descriptor table and current directory with it all their life, some for a while (unshare), some
   until they execute a program (this one again), and some share its memory and its signal actions. One stays in its
   memory for good. Everybody's exit code is checked, and what they have left behind. */
#include "victim.h"
#include <sched.h>

enum { STACK = 1 << 16, KINDS = 4 };

static char stacks[2][STACK] __attribute__((aligned(16)));
static volatile int visits, guest_seed, stays;
static int line[2];

static void rest(long microseconds)
{
	const struct timespec pause = { 0, microseconds * 1000 };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

static void stay(unsigned seed)
{
	rest(30000 + scramble(seed) % 60000);
}

static int visit(void *nothing)
{
	unsigned seed = guest_seed;

	(void)nothing;
	check(dup2(line[0], 150) == 150);
	stay(seed);
	visits++;
	syscall(SYS_exit_group, seed % 100);
	return 0;
}

static int remain(void *nothing)
{
	(void)nothing;
	while (!told()) {
		stays++;
		rest(500);
	}
	syscall(SYS_exit_group, 0);
	return 0;
}

static void become(unsigned seed)
{
	char number[16];

	snprintf(number, sizeof(number), "%u", seed);
	execl("/proc/self/exe", "guests", "compute", number, NULL);
	_exit(98);
}

static pid_t begin(unsigned seed)
{
	pid_t child;

	if (seed % KINDS == 3) {
		guest_seed = seed;
		return clone(visit, stacks[1] + STACK, CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | SIGCHLD, NULL);
	}
	child = syscall(SYS_clone, CLONE_FILES | CLONE_FS | SIGCHLD, NULL, NULL, NULL, NULL);
	if (child)
		return child;
	check(dup2(line[0], 100 + seed % KINDS) >= 0);
	stay(seed);
	switch (seed % KINDS) {
	case 1:
		check(!unshare(CLONE_FILES) && dup2(line[0], 200) == 200 && !close(101));
		check(!unshare(CLONE_FS) && !chdir("/proc"));
		stay(seed + 7);
		check(fcntl(200, F_GETFD) >= 0 && fcntl(101, F_GETFD) < 0);
		break;
	case 2:
		become(seed);
	}
	check(fcntl(seed % KINDS == 1 ? 200 : 100, F_GETFD) >= 0);
	_exit(seed % 100);
}

static void ended(pid_t child, int code)
{
	int status;
	pid_t got;

	check(child > 0);
	while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR)
		;
	check(got == child && WIFEXITED(status) && WEXITSTATUS(status) == code, "%d: %d, %x, not %d", child, got, status, code);
}

__attribute__((noreturn)) static void make(unsigned seed)
{
	char path[64];
	int made = 0;

	for (; !told(); seed++, made++) {
		int kind = seed % KINDS, number = kind == 3 ? 150 : 100 + kind, before = visits;

		ended(begin(seed), seed % 100);
		check(!close(number), "descriptor %d of %u", number, seed);
		check(fcntl(200, F_GETFD) < 0 && !strcmp(getcwd(path, sizeof(path)), "/"));
		check(visits == before + (kind == 3));
		for (number = 3; number < 512; number++)
			check((fcntl(number, F_GETFD) >= 0) == (number == line[0] || number == line[1]), "descriptor %d", number);
		check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	}
	_exit(made > 0 ? 0 : 1);
}

int main(int argc, char **argv)
{
	pid_t makers[2], lodger;

	if (argc > 2 && !strcmp(argv[1], "compute")) {
		check(fcntl(102, F_GETFD) >= 0);
		stay(atoi(argv[2]));
		return atoi(argv[2]) % 100;
	}
	check(!close_range(3, ~0U, 0) && !chdir("/") && !pipe(line));
	lodger = clone(remain, stacks[0] + STACK, CLONE_VM | SIGCHLD, NULL);
	for (int i = 0; i < 2; i++) {
		makers[i] = fork();
		check(makers[i] >= 0);
		if (!makers[i])
			make(1000 * (i + 1));
	}
	rest(200000);
	ready();
	wait_told();
	for (int i = 0; i < 2; i++)
		ended(makers[i], 0);
	ended(lodger, 0);
	check(stays > 0);
	pass();
}
