/* altstack: is moved while a handler runs on its alternate stack, entered from a second handler, entered from a sleep; all
   return to what they interrupted, and the stack is there for the next signal. */
#include "victim.h"

static stack_t stack;
static volatile int entered, returned;

static int on_it(void)
{
	char here;
	stack_t now;

	check(!sigaltstack(NULL, &now) && now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size);
	check((now.ss_flags == SS_ONSTACK) == (&here >= (char *)stack.ss_sp && &here < (char *)stack.ss_sp + stack.ss_size));
	return now.ss_flags == SS_ONSTACK;
}

static void handle(int number, siginfo_t *info, void *context)
{
	volatile double sum = 0;
	sigset_t mask;

	check(on_it() && info->si_signo == number && ((ucontext_t *)context)->uc_stack.ss_sp == stack.ss_sp);
	entered++;
	if (entered == 1)
		check(!raise(SIGUSR2));
	else if (entered == 2) {
		ready();
		while (!told())
			sum += 1;
	}
	check(!pthread_sigmask(SIG_SETMASK, NULL, &mask) && sigismember(&mask, number));
	check(on_it());
	returned++;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_ONSTACK | SA_SIGINFO };
	struct itimerval soon = { { 0, 0 }, { 0, 20000 } };
	struct timespec long_time = { 100, 0 };
	sigset_t mask;

	stack.ss_sp = mmap(NULL, stack.ss_size = 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	check(stack.ss_sp != MAP_FAILED && !sigaltstack(&stack, NULL) && !on_it());
	check(!sigaction(SIGALRM, &action, NULL) && !sigaction(SIGUSR2, &action, NULL));
	check(!setitimer(ITIMER_REAL, &soon, NULL));
	check(nanosleep(&long_time, NULL) == -1 && errno == EINTR);
	check(entered == 2 && returned == 2 && !on_it());
	check(!pthread_sigmask(SIG_SETMASK, NULL, &mask) && sigisemptyset(&mask));
	check(!raise(SIGUSR2) && returned == 3);
	pass();
}
