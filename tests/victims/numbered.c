/* numbered [THREADS]: process and threads keep their numbers, in their own eyes, for the kernel and in /proc; new ones can
   be made and waited for. */
#include "victim.h"

static pid_t tids[64];
static volatile int there, go;

static void *work(void *which)
{
	long i = (long)which;
	char path[100];

	tids[i] = syscall(SYS_gettid);
	__atomic_add_fetch(&there, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(1000);
	check(syscall(SYS_gettid) == tids[i] && !syscall(SYS_tgkill, getpid(), tids[i], 0));
	sprintf(path, "/proc/self/task/%d/comm", tids[i]);
	check(!access(path, F_OK), "%s", path);
	return NULL;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1, status;
	pid_t me = getpid(), session = getsid(0), child;
	pthread_t threads[count];
	char text[100] = "";

	for (long i = 0; i < count; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)i));
	while (there != count)
		usleep(1000);
	ready();
	wait_told();
	check(getpid() == me && getpgrp() == me && getsid(0) == session && session == me);
	check(syscall(SYS_gettid) == me && !kill(me, 0) && readlink("/proc/self", text, 99) > 0 && atoi(text) == me, "%s", text);
	go = 1;
	for (int i = 0; i < count; i++)
		check(!pthread_join(threads[i], NULL));
	check((child = fork()) >= 0);
	if (!child)
		_exit(getppid() == me ? 7 : 8);
	check(child != me && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
	pass();
}
