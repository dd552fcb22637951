/* restless: its children are never the same. Two that stay make short-lived ones without end: some compute and exit,
   some execute a program (this one again), some have a child of their own, some are made by vfork. Everybody's exit
   code is checked by its parent, and so is that nobody is missed. */
#include "victim.h"

static void rest(long microseconds)
{
	const struct timespec pause = { 0, microseconds * 1000 };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

/* Memory of its own, filled, kept for a while, and looked at. */
static int compute(unsigned seed, pid_t parent)
{
	unsigned char *memory = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(memory != MAP_FAILED);
	for (int i = 0; i < 1 << 16; i++)
		memory[i] = scramble(seed + i);
	rest(20000 + scramble(seed) % 100000);
	for (int i = 0; i < 1 << 16; i++)
		check(memory[i] == (unsigned char)scramble(seed + i), "at %d", i);
	check(getppid() == parent, "parent %d, not %d", getppid(), parent);
	return seed % 100;
}

static void ended(pid_t child, int code)
{
	int status;
	pid_t got;

	while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR)
		;
	check(got == child && WIFEXITED(status) && WEXITSTATUS(status) == code, "%d: %d, %x, not %d", child, got, status, code);
}

static void become(unsigned seed, const char *how)
{
	char number[16], parent[16];

	snprintf(number, sizeof(number), "%u", seed);
	snprintf(parent, sizeof(parent), "%d", getppid());
	execl("/proc/self/exe", "restless", how, number, parent, NULL);
	_exit(98);
}

static pid_t begin(unsigned seed)
{
	pid_t self = getpid(), child = seed % 4 == 3 ? vfork() : fork();

	check(child >= 0);
	if (child)
		return child;
	switch (seed % 4) {
	case 0:
		_exit(compute(seed, self));
	case 1:
		become(seed, "compute");
		break;
	case 2: {
		pid_t below = fork();

		check(below >= 0);
		if (!below)
			_exit(compute(seed + 1, getppid()));
		compute(seed, self);
		ended(below, (seed + 1) % 100);
		_exit(seed % 100);
	}
	}
	become(seed, "compute"); /* and of vfork */
	_exit(97);
}

__attribute__((noreturn)) static void make(unsigned seed)
{
	int made = 0;

	while (!told()) {
		pid_t one = begin(seed), other = begin(seed + 1);

		ended(one, seed % 100);
		ended(other, (seed + 1) % 100);
		check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
		seed += 2;
		made++;
	}
	_exit(made > 0 ? 0 : 1);
}

int main(int argc, char **argv)
{
	pid_t makers[2];

	if (argc > 3 && !strcmp(argv[1], "compute"))
		return compute(atoi(argv[2]), atoi(argv[3]));
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
	pass();
}
