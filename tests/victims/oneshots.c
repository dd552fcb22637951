/* oneshots: timers that go off once each, one every few milliseconds, and are set anew by their handler, as ITIMER_REAL is:
   one that goes off twice comes early, one whose signal got lost is never set again. */
#include "victim.h"

#define MS 1000000LL
enum { TIMERS = 100, STEP = 5 };
static int ids[TIMERS];
static volatile int64_t due[TIMERS], alarm_due;
static volatile long fired;

static void set(int i)
{
	struct itimerspec to = { { 0, 0 }, { due[i] / (1000 * MS), due[i] % (1000 * MS) } };

	check(!syscall(SYS_timer_settime, ids[i], TIMER_ABSTIME, &to, NULL));
}

static void caught(int number, siginfo_t *info, void *context)
{
	int i = info->si_value.sival_int;
	int64_t now = nanoseconds(CLOCK_MONOTONIC);

	(void)context;
	check(info->si_code == SI_TIMER && info->si_signo == number && !info->si_overrun, "%d", info->si_code);
	check(now >= due[i], "timer %d, %ld ns early", i, due[i] - now);
	fired++;
	due[i] = now + TIMERS * STEP * MS;
	set(i);
}

static void alarmed(int number)
{
	struct itimerval soon = { { 0, 0 }, { 0, 3000 } };
	int64_t now = nanoseconds(CLOCK_MONOTONIC);

	check(number == SIGALRM && now >= alarm_due, "%ld ns early", alarm_due - now);
	alarm_due = now + 3 * MS;
	check(!setitimer(ITIMER_REAL, &soon, NULL));
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_RESTART }, other = { .sa_handler = alarmed };
	sigset_t all, none;

	sigfillset(&action.sa_mask);
	sigfillset(&other.sa_mask);
	sigfillset(&all);
	check(!sigprocmask(SIG_BLOCK, &all, &none) && !sigaction(SIGRTMIN, &action, NULL) && !sigaction(SIGALRM, &other, NULL));
	for (int i = 0; i < TIMERS; i++) {
		struct sigevent event = { .sigev_notify = i % 2 ? SIGEV_SIGNAL : SIGEV_SIGNAL | SIGEV_THREAD_ID,
			.sigev_signo = SIGRTMIN, .sigev_value.sival_int = i };

		event._sigev_un._tid = getpid();
		check(!syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &ids[i]));
		due[i] = nanoseconds(CLOCK_MONOTONIC) + (TIMERS + i) * STEP * MS;
		set(i);
	}
	alarmed(SIGALRM);
	ready();
	check(!sigprocmask(SIG_SETMASK, &none, NULL));
	while (!told())
		usleep(1000);
	usleep(TIMERS * STEP * 1000 + 200000);
	check(!sigprocmask(SIG_BLOCK, &all, NULL));
	for (int i = 0; i < TIMERS; i++)
		check(due[i] > nanoseconds(CLOCK_MONOTONIC) - 200 * MS, "timer %d of %ld got lost", i, fired);
	check(alarm_due > nanoseconds(CLOCK_MONOTONIC) - 200 * MS, "the alarm got lost");
	pass();
}
