/* lodgers HOW: processes in one address space (CLONE_VM without CLONE_THREAD): a parent, its child, and a child of
   that; and one that has been forked by the first child, with memory of its own. By the letters of HOW the first three
   share more: s signal actions, f descriptors, d current directory. One of them writes all the time. Each checks that
   what one of them does is done for all who share it, and for nobody else. */
#include "victim.h"
#include <sched.h>
#include <linux/kcmp.h>

enum { PARENT, CHILD, GRANDCHILD, FORKED, COUNT };
enum { PAGES = 300, PAGE = 4096, STACK = 1 << 16 };

static struct {
	volatile pid_t pids[COUNT];
	volatile int arrived, turn;
} *common;

static char stacks[2][STACK] __attribute__((aligned(16)));
static volatile uint64_t pages[PAGES][PAGE / 8];
static volatile int board[COUNT]; /* of this memory */
static volatile uint64_t written;
static char *volatile late;
static int flags, line[2], threaded;

static void first_handler(int number)
{
	(void)number;
}

static void second_handler(int number)
{
	(void)number;
}

static int same(int one, int other, int kind)
{
	return syscall(SYS_kcmp, common->pids[one], common->pids[other], kind, 0, 0) == 0;
}

static void compare_all(void)
{
	static const struct { int flag, kind; } kinds[] = {
		{ CLONE_VM, KCMP_VM }, { CLONE_SIGHAND, KCMP_SIGHAND }, { CLONE_FILES, KCMP_FILES }, { CLONE_FS, KCMP_FS },
	};

	for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++)
		for (int a = 0; a < COUNT; a++)
			for (int b = a + 1; b < COUNT; b++)
				check(same(a, b, kinds[k].kind) == (b != FORKED && flags & kinds[k].flag),
				      "kind %d of %d and %d", kinds[k].kind, a, b);
}

static void my_turn(int self)
{
	while (common->turn != self)
		usleep(200);
}

/* Until it is to look at itself: what it has written, and how often, is known to the processor alone. */
static void write_on(void)
{
	uint64_t count = 0;

	while (!told())
		for (int i = 0; i < 200; i++, count++)
			pages[count % PAGES][count % 512] = count;
	written = count;
	for (uint64_t back = 1; back <= PAGES && back <= count; back++)
		check(pages[(count - back) % PAGES][(count - back) % 512] == count - back, "%zu back", (size_t)back);
}

static void *thread(void *nothing)
{
	(void)nothing;
	wait_told();
	return (void *)7;
}

static void look(int self)
{
	struct sigaction action;
	int status;

	common->pids[self] = getpid();
	board[self] = 100 + self;
	__atomic_add_fetch(&common->arrived, 1, __ATOMIC_SEQ_CST);
	if (self == PARENT) {
		pthread_t other;
		void *result;

		while (common->arrived != COUNT)
			usleep(1000);
		compare_all();
		if (threaded)
			check(!pthread_create(&other, NULL, thread, NULL));
		ready();
		wait_told();
		if (threaded)
			check(!pthread_join(other, &result) && result == (void *)7);
	} else if (self == CHILD) {
		write_on();
	} else {
		wait_told();
	}
	my_turn(self);
	check(getpid() == common->pids[self]);
	if (self != PARENT)
		check(getppid() == common->pids[self == CHILD ? PARENT : CHILD]);
	for (int other = 0; other < COUNT; other++)
		if (self == FORKED)
			check(board[other] == (other == FORKED ? 100 + other : other == GRANDCHILD ? 0 : 100 + other), "%d", other);
		else if (other < self)
			check(board[other] == 200 + other, "%d of %d: %d", other, self, board[other]);
		else
			check(board[other] == (other == FORKED ? 0 : 100 + other), "%d of %d: %d", other, self, board[other]);
	board[self] = 200 + self;
	if (self == PARENT) {
		compare_all();
		late = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		check(late != MAP_FAILED);
		*late = 77;
	} else if (self == FORKED) {
		check(!late && !written);
		for (int i = 0; i < PAGES; i++)
			check(pages[i][3] == scramble(i), "page %d", i);
	} else {
		check(late && *late == 76 + self && written > 0);
		++*late;
	}
	check(!sigaction(SIGUSR1, NULL, &action));
	check(action.sa_handler == (self && self != FORKED && flags & CLONE_SIGHAND ? second_handler : first_handler));
	if (self == PARENT) {
		action.sa_handler = second_handler;
		check(!sigaction(SIGUSR1, &action, NULL) && dup2(line[0], 400) == 400 && !chdir("/proc"));
	} else {
		char path[64];

		check((fcntl(400, F_GETFD) >= 0) == (self != FORKED && flags & CLONE_FILES));
		check(!strcmp(getcwd(path, 64), self != FORKED && flags & CLONE_FS ? "/proc" : "/"));
	}
	for (int number = 3; number < 1024; number++)
		if (number != line[0] && number != line[1] && number != 400)
			check(fcntl(number, F_GETFD) < 0, "descriptor %d of %d", number, self);
	common->turn++;
	for (int left = self == PARENT ? 1 : self == CHILD ? 2 : 0; left; left--)
		check(wait(&status) > 0 && !status, "%x", status);
	if (self == PARENT) {
		check(*late == 79 && common->turn == COUNT);
		pass();
	}
	_exit(0);
}

static int grandchild(void *nothing)
{
	(void)nothing;
	look(GRANDCHILD);
	return 0;
}

static int child(void *nothing)
{
	pid_t other;

	(void)nothing;
	board[CHILD] = 101;
	other = fork();
	check(other >= 0);
	if (!other) {
		for (int i = 0; i < PAGES; i++)
			pages[i][3] = scramble(i);
		look(FORKED);
	}
	while (common->arrived < 1)
		usleep(1000);
	check(clone(grandchild, stacks[1] + STACK, flags | SIGCHLD, NULL) > 0);
	look(CHILD);
	return 0;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "";
	struct sigaction action = { .sa_handler = first_handler };

	flags = CLONE_VM | (strchr(how, 's') ? CLONE_SIGHAND : 0) | (strchr(how, 'f') ? CLONE_FILES : 0) |
		(strchr(how, 'd') ? CLONE_FS : 0);
	threaded = strchr(how, 't') != NULL;
	common = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(!close_range(3, ~0U, 0) && common != MAP_FAILED && !pipe(line) && !chdir("/") && !sigaction(SIGUSR1, &action, NULL));
	board[PARENT] = 100;
	check(clone(child, stacks[0] + STACK, flags | SIGCHLD, NULL) > 0);
	look(PARENT);
}
