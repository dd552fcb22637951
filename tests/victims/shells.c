/* shells: the leader of a session shares things with its children, and they with each other, of which some were made
   before it had its controlling terminal and some after that. Everybody checks with whom he shares what. */
#include "victim.h"
#include <sched.h>
#include <sys/ioctl.h>
#include <termios.h>

enum { BARE, LATE, FRONT, BACK, CHILDREN }; /* two with descriptors of their own, two that share with the leader */

static struct common {
	volatile int turn, arrived, fd, own, kept;
	volatile pid_t pids[CHILDREN];
} *common;
static volatile sig_atomic_t interrupts;

static void on_interrupt(int number)
{
	(void)number;
	interrupts++;
}

static void await(volatile int *what, int wanted)
{
	for (int i = 0; *what < wanted && i < 10000; i++)
		usleep(1000);
	check(*what >= wanted, "%d, not %d", *what, wanted);
}

static int is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* Who has the terminal of the session, and who has none. */
static void look_at_terminal(int has)
{
	int fd = open("/dev/tty", O_RDWR | O_NOCTTY);

	check((fd >= 0) == has && (has || errno == ENXIO), "%d", fd);
	if (has)
		check(tcgetsid(fd) == getsid(0) && !close(fd));
}

static void look_around(const char *wanted)
{
	char got[256];

	check(getcwd(got, sizeof got) && !strcmp(got, wanted), "%s, not %s", got, wanted);
}

/* After the move, one after the other: BARE opens, LATE sees that and closes it; FRONT opens, and so on. */
__attribute__((noreturn)) static void be(int which)
{
	struct sigaction action = { .sa_handler = on_interrupt };

	check(!sigaction(SIGINT, &action, NULL));
	common->pids[which] = getpid();
	__sync_add_and_fetch(&common->arrived, 1);
	wait_told();
	look_at_terminal(which != BARE);
	await(&common->turn, 2 * which + 1);
	look_around(which == BACK ? "/" : "/proc");
	if (which == BARE) {
		common->fd = fcntl(0, F_DUPFD, 300);
		check(common->fd == 300);
	} else if (which == LATE) {
		check(is_open(common->fd) && !close(common->fd));
	} else if (which == FRONT) {
		check(!is_open(300));
		common->own = fcntl(0, F_DUPFD, 400);
		check(common->own == 400 && tcgetpgrp(0) == getpgrp());
		common->turn = 2 * which + 2;
		for (int i = 0; !interrupts && i < 10000; i++)
			usleep(1000);
		check(interrupts == 1);
		_exit(7);
	} else {
		check(!is_open(common->own) && !chdir("/tmp"));
	}
	common->turn = 2 * which + 2;
	await(&common->turn, 2 * CHILDREN + 1);
	check(!interrupts);
	_exit(0);
}

static void begin(int which, int flags)
{
	long pid = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);

	check(pid >= 0);
	if (!pid)
		be(which);
	await(&common->arrived, which + 1);
}

static void ended(int which, int code)
{
	int status;

	check(waitpid(common->pids[which], &status, 0) == common->pids[which]);
	check(WIFEXITED(status) && WEXITSTATUS(status) == code, "%d: status %x", which, status);
}

__attribute__((noreturn)) static void lead(int master, int slave)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };

	check(setsid() > 0 && !close(master) && dup2(slave, 0) == 0 && !close(slave) && !chdir("/proc"));
	check(!sigaction(SIGTTOU, &ignore, NULL) && !sigaction(SIGINT, &ignore, NULL));
	begin(BARE, CLONE_FILES); /* the table is passed on once more, when there is a terminal */
	check(!ioctl(0, TIOCSCTTY, 0));
	begin(LATE, CLONE_FILES);
	check(!unshare(CLONE_FILES));
	begin(FRONT, CLONE_FILES);
	begin(BACK, CLONE_FS);
	check(!setpgid(common->pids[FRONT], common->pids[FRONT]) && !tcsetpgrp(0, common->pids[FRONT]));
	check(!chdir("/")); /* BACK is there, too, and nobody else */
	__sync_add_and_fetch(&common->arrived, 1);
	wait_told();
	look_at_terminal(1);
	for (int which = 0; which < CHILDREN; which++) {
		common->turn = 2 * which + 1;
		await(&common->turn, 2 * which + 2);
		check(!is_open(300));
		check(is_open(400) == (which >= FRONT), "%d", which);
	}
	look_around("/tmp");
	check(write(0, "now\n", 4) == 4);
	ended(FRONT, 7);
	common->turn = 2 * CHILDREN + 1;
	ended(BARE, 0);
	ended(LATE, 0);
	ended(BACK, 0);
	_exit(5);
}

/* Two that share a table, which their parent has passed on, and left. */
static pid_t keep(int first)
{
	long pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);

	check(pid >= 0);
	if (pid)
		return pid;
	wait_told();
	if (first)
		common->kept = fcntl(0, F_DUPFD, 500);
	await(&common->kept, 500);
	check(is_open(500));
	_exit(3);
}

int main(void)
{
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), slave, unlocked = 0, status;
	char byte;
	pid_t child, keepers[2];

	common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(common != MAP_FAILED && master >= 0 && !ioctl(master, TIOCSPTLCK, &unlocked));
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	check(slave >= 0);
	for (int i = 0; i < 2; i++)
		keepers[i] = keep(i);
	check(!unshare(CLONE_FILES));
	child = fork();
	check(child >= 0);
	if (!child)
		lead(master, slave);
	check(!close(slave));
	await(&common->arrived, CHILDREN + 1);
	ready();
	wait_told();
	while (read(master, &byte, 1) == 1 && byte != 'w')
		;
	check(write(master, "\3", 1) == 1); /* Ctrl-C */
	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5, "%x", status);
	for (int i = 0; i < 2; i++)
		check(waitpid(keepers[i], &status, 0) == keepers[i] && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(!is_open(500));
	pass();
}
