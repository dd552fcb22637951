/* trapped: in a signal handler that has interrupted a function of the vDSO, and does not return before it is told to. */
#include "victim.h"
#include "vdso.h"
#include <ucontext.h>

static volatile sig_atomic_t trapped;

static void caught(int number, siginfo_t *info, void *context)
{
	uintptr_t rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], base = getauxval(AT_SYSINFO_EHDR);

	(void)number, (void)info;
	/* at its very first instruction it is not inside yet */
	if (trapped || rip < base || rip >= base + 0x2000 || rip == (uintptr_t)vdso.clock_gettime)
		return;
	trapped = 1;
	ready();
	while (!told())
		syscall(SYS_nanosleep, &(struct timespec){ 0, 1000000 }, NULL);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_RESTART };
	const struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };
	int64_t before = 0;

	vdso_look_up();
	check(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &often, NULL));
	while (!trapped) {
		struct timespec t;

		check(!vdso.clock_gettime(CLOCK_MONOTONIC, &t));
		check(t.tv_sec * 1000000000LL + t.tv_nsec >= before);
		before = t.tv_sec * 1000000000LL + t.tv_nsec;
	}
	check(!setitimer(ITIMER_REAL, &never, NULL));
	pass();
}
