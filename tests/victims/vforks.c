/* vforks MILLISECONDS: its thread cannot be interrupted while the child of its vfork(2) sleeps. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int status;
	pid_t child;

	puts("ready");
	fflush(stdout);
	child = vfork();
	if (!child) {
		usleep(argc > 1 ? atol(argv[1]) * 1000 : 1000000);
		_exit(0);
	}
	waitpid(child, &status, 0);
	return status;
}
