/* inseparable: a process with two children that share their memory with each other and not with it, and a third one in a
   namespace of its own. */
#include "victim.h"
#include <sched.h>

static int line[2];
static char stack[2][1 << 16] __attribute__((aligned(16)));

static int wait_here(void *nothing)
{
	(void)nothing;
	wait_told();
	return 0;
}

/* Leaves another one to its parent. */
static int make_another(void *nothing)
{
	(void)nothing;
	check(clone(wait_here, stack[1] + sizeof(stack[1]), CLONE_VM | CLONE_PARENT | SIGCHLD, NULL) > 0);
	check(write(line[1], ".", 1) == 1);
	wait_told();
	return 0;
}

int main(void)
{
	pid_t apart;
	char dot;

	check(!pipe(line) && clone(make_another, stack[0] + sizeof(stack[0]), SIGCHLD, NULL) > 0);
	check((apart = fork()) >= 0);
	if (!apart) {
		check(!unshare(CLONE_NEWUTS) && write(line[1], ".", 1) == 1);
		wait_told();
		_exit(0);
	}
	for (int i = 0; i < 2; i++)
		check(read(line[0], &dot, 1) == 1);
	ready();
	wait_told();
	for (int i = 0; i < 3; i++)
		check(wait(NULL) > 0);
	pass();
}
