/* kinfolk: a process in a session of its own, whose children lead sessions and process groups, have ended and not been
   waited for, or led a group that goes on without them. */
#include "victim.h"

static int line[2];

/* What a child tells when it is where it belongs. */
static void arrived(void)
{
	check(write(line[1], ".", 1) == 1);
}

static void await_children(int count)
{
	char dot;

	while (count--)
		check(read(line[0], &dot, 1) == 1);
}

static pid_t born(void)
{
	pid_t pid = fork();

	check(pid >= 0);
	return pid;
}

/* In a child: stand as asked, tell, wait, look whether it still is so, and end. */
__attribute__((noreturn)) static void stand(pid_t session, pid_t group, int code)
{
	pid_t parent = getppid();

	check(getsid(0) == session && getpgrp() == group, "session %d, group %d", getsid(0), getpgrp());
	arrived();
	wait_told();
	check(getppid() == parent && getsid(0) == session && getpgrp() == group, "%d %d %d", getppid(), getsid(0), getpgrp());
	_exit(code);
}

static void ended(pid_t child, int wanted)
{
	int status;

	check(waitpid(child, &status, 0) == child);
	check(status == wanted, "of %d: %x", child, status);
}

static void zombie(pid_t child)
{
	siginfo_t info;

	check(!waitid(P_PID, child, &info, WEXITED | WNOWAIT));
}

int main(void)
{
	pid_t self = getpid(), leader, member, apart, exited, killed, dead, orphan, gone, ghostly;
	int status;
	struct rlimit { unsigned long now, most; } none = { 0, 0 };

	check(!syscall(SYS_prlimit64, 0, 4, &none, NULL));
	check(getsid(0) == self && getpgrp() == self && !pipe(line));

	if (!(leader = born())) {
		pid_t below;

		/* One that stays in the session that its parent leaves */
		if (!(below = born()))
			stand(self, self, 21);
		check(setsid() == getpid());
		if (!(member = born()))
			stand(getppid(), getppid(), 22);
		arrived();
		wait_told();
		check(getsid(0) == getpid() && getpgrp() == getpid());
		ended(below, 21 << 8);
		ended(member, 22 << 8);
		_exit(20);
	}
	if (!(apart = born())) {
		pid_t with;

		check(!setpgid(0, 0));
		if (!(with = born()))
			stand(self, getppid(), 31);
		arrived();
		wait_told();
		check(getpgrp() == getpid() && getsid(0) == self);
		ended(with, 31 << 8);
		_exit(30);
	}
	if (!(exited = born()))
		_exit(5);
	if (!(killed = born())) {
		raise(SIGUSR1);
		_exit(99);
	}
	if (!(dead = born())) {
		check(!setpgid(0, 0));
		raise(SIGSTOP);
		_exit(6);
	}
	check(waitpid(dead, &status, WUNTRACED) == dead && WIFSTOPPED(status));
	if (!(orphan = born())) {
		check(!setpgid(0, dead));
		stand(self, dead, 40);
	}
	if (!(gone = born())) {
		check(!setpgid(0, 0));
		raise(SIGSTOP);
		_exit(7);
	}
	check(waitpid(gone, &status, WUNTRACED) == gone && WIFSTOPPED(status));
	if (!(ghostly = born())) {
		check(!setpgid(0, gone));
		stand(self, gone, 50);
	}
	await_children(3 + 2 + 2);
	kill(dead, SIGCONT);
	kill(gone, SIGCONT);
	ended(gone, 7 << 8);
	zombie(dead);
	zombie(exited);
	zombie(killed);
	ready();
	wait_told();

	check(getsid(0) == self && getpgrp() == self);
	check(getsid(leader) == leader && getpgid(leader) == leader);
	check(getpgid(exited) == self && getpgid(dead) == dead && getpgid(orphan) == dead && getpgid(ghostly) == gone);
	check(kill(gone, 0) == -1 && errno == ESRCH);
	ended(exited, 5 << 8);
	ended(killed, SIGUSR1);
	ended(dead, 6 << 8);
	ended(orphan, 40 << 8);
	ended(ghostly, 50 << 8);
	ended(leader, 20 << 8);
	ended(apart, 30 << 8);
	check(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
	pass();
}
