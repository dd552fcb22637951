/* undoers: a process and its child have one list of what is given back to System V semaphores (CLONE_SYSVSEM), and each
   has taken something. Nothing is given back when the child ends, and all of it, once, when the process has left the
   list. */
#include "victim.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/syscall.h>

static int set;

static void take(int amount)
{
	struct sembuf one = { 0, -amount, SEM_UNDO };

	check(!semop(set, &one, 1));
}

static void holds(int value)
{
	int found = semctl(set, 0, GETVAL);

	check(found == value, "%d for %d", found, value);
}

int main(void)
{
	int arrivals[2], orders[2], status;
	char dot;
	pid_t pid;

	set = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
	check(set >= 0 && !semctl(set, 0, SETVAL, 10) && !pipe(arrivals) && !pipe(orders));
	take(1);
	pid = syscall(SYS_clone, CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0);
	check(pid >= 0);
	if (!pid) {
		take(2);
		check(write(arrivals[1], ".", 1) == 1 && read(orders[0], &dot, 1) == 1);
		_exit(7);
	}
	check(read(arrivals[0], &dot, 1) == 1);
	holds(7);
	ready();
	wait_told();
	holds(7);
	check(write(orders[1], ".", 1) == 1 && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7, "%x", status);
	holds(7);
	check(!unshare(CLONE_SYSVSEM));
	holds(10);
	check(!semctl(set, 0, IPC_RMID));
	pass();
}
