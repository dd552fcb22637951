/* inseparable: a process that shares its memory with one child and its descriptors with another, and has a third one in
   a namespace of its own. */
#include "victim.h"
#include <sched.h>

static char stack[2][1 << 16] __attribute__((aligned(16)));

static int wait_here(void *nothing)
{
	(void)nothing;
	wait_told();
	return 0;
}

int main(void)
{
	pid_t memory = clone(wait_here, stack[0] + sizeof(stack[0]), CLONE_VM | SIGCHLD, NULL);
	pid_t files = clone(wait_here, stack[1] + sizeof(stack[1]), CLONE_FILES | SIGCHLD, NULL);
	pid_t apart;
	int line[2];
	char dot;

	check(memory > 0 && files > 0 && !pipe(line) && (apart = fork()) >= 0);
	if (!apart) {
		check(!unshare(CLONE_NEWUTS) && write(line[1], ".", 1) == 1);
		wait_told();
		_exit(0);
	}
	check(read(line[0], &dot, 1) == 1);
	ready();
	wait_told();
	for (int i = 0; i < 3; i++)
		check(wait(NULL) > 0);
	pass();
}
