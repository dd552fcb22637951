/* commons HOW: a process and its children share what clone(2) lets them share, by the letters of HOW: f descriptors,
   d current directory, i I/O context, u semaphores to undo. Of two children by clone one shares all that with their
   parent, and has a child that does so too; the other two share it only with each other. Each checks that what one of
   them does is done for all who share it, and for nobody else. */
#include "victim.h"
#include <sched.h>
#include <linux/kcmp.h>

enum { PARENT, CHILD, GRANDCHILD, ONE, OTHER, COUNT };

static struct {
	volatile pid_t pids[COUNT];
	volatile int arrived, turn;
} *common;

static int flags, line[2];
static volatile int *drawn; /* memory of a file that the parent has open, mapped by its grandchild alone */

static int child_of(unsigned long how)
{
	return syscall(SYS_clone, how | SIGCHLD, NULL, NULL, NULL, NULL);
}

static int same(int one, int other, int kind)
{
	return syscall(SYS_kcmp, common->pids[one], common->pids[other], kind, 0, 0) == 0;
}

static void compare_all(void)
{
	static const struct { int flag, kind; } kinds[] = {
		{ CLONE_FILES, KCMP_FILES }, { CLONE_FS, KCMP_FS }, { CLONE_IO, KCMP_IO }, { CLONE_SYSVSEM, KCMP_SYSVSEM },
	};

	for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++)
		for (int a = 0; a < COUNT; a++)
			for (int b = a + 1; b < COUNT; b++) {
				int together = b <= GRANDCHILD || (a == ONE && b == OTHER && kinds[k].kind != KCMP_IO);

				if (flags & kinds[k].flag)
					check(same(a, b, kinds[k].kind) == together, "kind %d of %d and %d", kinds[k].kind, a, b);
				else if (kinds[k].kind == KCMP_FILES || kinds[k].kind == KCMP_FS)
					check(!same(a, b, kinds[k].kind), "kind %d of %d and %d", kinds[k].kind, a, b);
			}
}

/* One after the other, in the order of their numbers. */
static void my_turn(int self)
{
	while (common->turn != self)
		usleep(200);
}

static void live(int self)
{
	char path[64];
	int shared = self == CHILD || self == GRANDCHILD, number;

	common->pids[self] = getpid();
	if (self == GRANDCHILD) {
		drawn = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, 310, 0);
		check(drawn != MAP_FAILED);
		drawn[1000] = 4711;
	}
	if (self)
		__atomic_add_fetch(&common->arrived, 1, __ATOMIC_SEQ_CST);
	if (self == PARENT) {
		while (common->arrived != COUNT - 1)
			usleep(1000);
		compare_all();
		ready();
	}
	wait_told();
	my_turn(self);
	if (self == PARENT) {
		int seen, told = 4712;

		compare_all();
		check(pread(310, &seen, sizeof(seen), 4000) == sizeof(seen) && seen == 4711, "%d", seen);
		check(pwrite(310, &told, sizeof(told), 4000) == sizeof(told));
	}
	if (self == GRANDCHILD)
		check(drawn[1000] == 4712);
	/* What was there is there, and nothing else. */
	for (number = 0; number < 1024; number++) {
		int open = number <= 2 || number == line[0] || number == line[1] || number == 300 + 2 * (self >= ONE) ||
			(number == 310 && self < ONE);

		if ((self == GRANDCHILD || self == CHILD) && flags & CLONE_FILES)
			open |= number >= 400 && number < 400 + self;
		if (self == OTHER && flags & CLONE_FILES)
			open |= number == 400 + ONE;
		check((fcntl(number, F_GETFD) >= 0) == open, "descriptor %d of %d", number, self);
	}
	snprintf(path, sizeof(path), "%s", self >= ONE ? "/usr" : "/etc");
	if (flags & CLONE_FS && self && self != ONE)
		snprintf(path, sizeof(path), "/proc");
	check(!strcmp(getcwd((char[64]) { 0 }, 64), path), "%s", getcwd((char[64]) { 0 }, 64));
	check(umask(0) == (mode_t)(flags & CLONE_FS && self && self != ONE ? 031 : self >= ONE ? 027 : 022));
	check(dup2(line[0], 400 + self) == 400 + self);
	if (flags & CLONE_IO) {
		long got = syscall(SYS_ioprio_get, 1, 0);

		check(got == (self >= ONE ? (2 << 13 | 6) : shared ? (2 << 13 | 1) : (2 << 13 | 3)), "%ld", got);
		if (self == PARENT)
			check(!syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 1));
	}
	check(!chdir("/proc"));
	umask(031);
	common->turn++;
	if (self == PARENT || self == CHILD) {
		int status, left = self == PARENT ? 3 : 1;

		while (left--)
			check(wait(&status) > 0 && !status);
		check(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
	}
	if (self == PARENT)
		pass();
	while (common->turn != COUNT)
		usleep(200);
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "fdu";
	int pair;

	flags = (strchr(how, 'f') ? CLONE_FILES : 0) | (strchr(how, 'd') ? CLONE_FS : 0) |
		(strchr(how, 'i') ? CLONE_IO : 0) | (strchr(how, 'u') ? CLONE_SYSVSEM : 0);
	common = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(!close_range(3, ~0U, 0) && common != MAP_FAILED && !pipe(line));
	/* Those that are without their parent: by a helper that shares nothing with it, and passes on what is its own. */
	check(!chdir("/usr") && dup2(line[0], 302) == 302);
	umask(027);
	if (flags & CLONE_IO)
		check(!syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
	pair = child_of(flags & ~CLONE_IO);
	check(pair >= 0);
	if (!pair)
		live(ONE);
	pair = child_of(flags & ~CLONE_IO);
	check(pair >= 0);
	if (!pair)
		live(OTHER);
	while (common->arrived < 2)
		usleep(1000);
	if (flags & ~CLONE_IO)
		check(!unshare(flags & ~CLONE_IO));
	check(!close(302) && !chdir("/etc") && dup2(line[0], 300) == 300);
	pair = memfd_create("drawn", 0);
	check(pair >= 0 && !ftruncate(pair, 8192) && dup2(pair, 310) == 310 && !close(pair));
	umask(022);
	if (flags & CLONE_IO)
		check(!syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 3));
	pair = child_of(flags);
	check(pair >= 0);
	if (!pair) {
		pair = child_of(flags);
		check(pair >= 0);
		live(pair ? CHILD : GRANDCHILD);
	}
	live(PARENT);
}
