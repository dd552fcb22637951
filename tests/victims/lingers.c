/* lingers: signal handlers that sleep, with information and without, in most of the time that there is: they return where
   they were called. */
#include "victim.h"

static volatile int depth, calls;

static void linger(void)
{
	const struct timespec pause = { 0, 60000000 };

	depth++;
	calls++;
	nanosleep(&pause, NULL);
	depth--;
}

static void plain(int number)
{
	(void)number;
	linger();
}

static void told_more(int number, siginfo_t *info, void *context)
{
	check(info->si_signo == number && context);
	linger();
}

int main(void)
{
	struct sigaction action = { .sa_handler = plain, .sa_flags = SA_RESTART };
	struct itimerval every = { { 0, 70000 }, { 0, 70000 } };
	volatile long kept = 0x1234567;

	check(!sigaction(SIGALRM, &action, NULL));
	action.sa_sigaction = told_more;
	action.sa_flags = SA_RESTART | SA_SIGINFO;
	check(!sigaction(SIGVTALRM, &action, NULL));
	check(!setitimer(ITIMER_REAL, &every, NULL) && !setitimer(ITIMER_VIRTUAL, &every, NULL));
	ready();
	while (!told())
		for (volatile int i = 0; i < 1000000; i++)
			check(!depth && kept == 0x1234567);
	check(calls > 2, "%d", calls);
	pass();
}
