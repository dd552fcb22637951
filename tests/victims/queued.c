/* queued: real-time signals carry consecutive numbers from 0 on; SIGTERM ends it. Exits 0 if none was lost, repeated or
   out of order, and prints how many came. A second thread computes, so that signals meet running code too. */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static volatile sig_atomic_t count, ended;

static void next(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	if (info->si_code != SI_QUEUE || info->si_value.sival_int != count) {
		static const char odd[] = "a signal is out of order\n";
		ssize_t written = write(2, odd, sizeof(odd) - 1);

		_exit(written > 0 ? 1 : 2);
	}
	count++;
}

static void end(int number)
{
	(void)number;
	ended = 1;
}

static void *compute(void *unused)
{
	for (volatile unsigned long i = 0;; i++)
		if (i % 4096 == 0)
			usleep(1);
	return unused;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = next, .sa_flags = SA_SIGINFO | SA_RESTART };
	pthread_t thread;
	sigset_t all, none;

	sigaction(SIGRTMIN, &action, NULL);
	signal(SIGTERM, end);
	sigfillset(&all);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &all, NULL);
	pthread_create(&thread, NULL, compute, NULL);
	puts("ready");
	fflush(stdout);
	while (!ended)
		sigsuspend(&none); /* lets them in one by one */
	sigprocmask(SIG_SETMASK, &none, NULL);
	printf("%d\n", count);
	return 0;
}
