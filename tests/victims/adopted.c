/* adopted: a subreaper in a session of its own. It has adopted members of a session whose leader has ended, one that
   has a child of its own, and one out of the session of a leader that lives. */
#include "victim.h"

static int line[2];

static pid_t born(void)
{
	pid_t pid = fork();

	check(pid >= 0);
	return pid;
}

/* In a descendant: stand as asked once the subreaper has us, tell, wait, look whether it still is so, and end. */
__attribute__((noreturn)) static void stand(pid_t parent, pid_t session, pid_t group, pid_t child, int code)
{
	int status;

	while (parent && getppid() != parent)
		usleep(1000);
	parent = getppid();
	check(getsid(0) == session && getpgrp() == group, "session %d, group %d", getsid(0), getpgrp());
	check(write(line[1], ".", 1) == 1);
	wait_told();
	check(getppid() == parent && getsid(0) == session && getpgrp() == group, "%d %d %d", getppid(), getsid(0), getpgrp());
	if (child)
		check(waitpid(child, &status, 0) == child && status == (code + 1) << 8, "%x", status);
	_exit(code);
}

static void ended(pid_t child, int code)
{
	int status;

	check(waitpid(child, &status, 0) == child && status == code << 8, "of %d: %x", child, status);
}

int main(void)
{
	pid_t self = getpid(), gone, leader, own;
	int status, codes = 0;
	char dot;

	check(getsid(0) == self && !pipe(line) && !prctl(PR_SET_CHILD_SUBREAPER, 1));
	if (!(gone = born())) {
		pid_t session = setsid();

		check(session == getpid());
		for (int i = 0; i < 2; i++)
			if (!born()) {
				pid_t group = session;

				if (i) {
					check(!setpgid(0, 0));
					group = getpid();
				}
				if (!(own = born()))
					stand(0, session, group, 0, 11 + 10 * i);
				stand(self, session, group, own, 10 + 10 * i);
			}
		_exit(1);
	}
	ended(gone, 1);
	if (!(leader = born())) {
		pid_t session = setsid(), between;

		if (!(between = born())) {
			if (!born())
				stand(self, session, session, 0, 30);
			_exit(2);
		}
		ended(between, 2);
		check(write(line[1], ".", 1) == 1);
		wait_told();
		check(getsid(0) == getpid() && waitpid(-1, &status, 0) == -1 && errno == ECHILD);
		_exit(40);
	}
	for (int i = 0; i < 2 + 2 + 1 + 1; i++)
		check(read(line[0], &dot, 1) == 1);
	ready();
	wait_told();

	check(getsid(leader) == leader && kill(gone, 0) == -1 && errno == ESRCH);
	for (int i = 0; i < 4; i++) {
		check(wait(&status) > 0 && WIFEXITED(status), "%x", status);
		codes += WEXITSTATUS(status);
	}
	check(codes == 10 + 20 + 30 + 40, "%d", codes);
	check(wait(&status) == -1 && errno == ECHILD && !prctl(PR_GET_CHILD_SUBREAPER, &status) && status == 1);
	pass();
}
