/* actions: all 64 signal actions are as they were set: handler, flags, mask; those that are ignored stay so. */
#include "victim.h"

struct action { /* of the system call: sigaction(3) hides the restorer */
	void *handler;
	unsigned long flags, restorer, mask;
};

static volatile int handled;

static void one(int number)
{
	handled = number;
}

static void two(int number, siginfo_t *info, void *context)
{
	check(context && info->si_signo == number && info->si_code == SI_TKILL);
	handled = number;
}

static int can(int number)
{
	return number != SIGKILL && number != SIGSTOP;
}

int main(void)
{
	static const int flags[] = { 0, SA_RESTART, SA_NODEFER, SA_RESTART | SA_NODEFER, SA_ONSTACK, SA_NOCLDWAIT | SA_NOCLDSTOP };
	struct action wanted[65], now;

	for (int n = 1; n <= 64; n++) {
		struct sigaction action = { .sa_handler = n % 7 == 0 ? SIG_IGN : n % 11 == 0 ? SIG_DFL : one, .sa_flags = flags[n % 6] };

		if (n % 3 == 0 && action.sa_handler == one) {
			action.sa_sigaction = two;
			action.sa_flags |= SA_SIGINFO;
		}
		action.sa_mask.__val[0] = scramble(n) & ~(1UL << (SIGKILL - 1) | 1UL << (SIGSTOP - 1));
		if (can(n) && n != 32 && n != 33) /* glibc's own */
			check(!sigaction(n, &action, NULL));
		check(!syscall(SYS_rt_sigaction, n, NULL, &wanted[n], 8));
	}
	ready();
	wait_told();
	for (int n = 1; n <= 64; n++) {
		check(!syscall(SYS_rt_sigaction, n, NULL, &now, 8));
		check(!memcmp(&now, &wanted[n], sizeof(now)), "signal %d: %p %#lx %#lx", n, now.handler, now.flags, now.mask);
		if (now.handler != SIG_DFL && can(n) && n != 32 && n != 33) {
			handled = 0;
			check(!raise(n) && handled == (now.handler == SIG_IGN ? 0 : n), "%d", n);
		}
	}
	pass();
}
