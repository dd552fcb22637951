/* timers: POSIX timers with ids that are not in a row, one-shot and periodic, to the process, to a thread, to nobody, with a
   value; all three interval timers. They go on where they were: no expiration is lost, none comes early. */
#include "victim.h"

#define MS 1000000LL
static volatile long fired[4], values[4];

static void caught(int number, siginfo_t *info, void *context)
{
	(void)context;
	fired[number - SIGRTMIN] += 1 + info->si_overrun;
	values[number - SIGRTMIN] = info->si_value.sival_int;
	check(info->si_code == SI_TIMER, "signal %d, code %d, pid %d, value %d", number, info->si_code, info->si_pid, info->si_value.sival_int);
}

static int create(clockid_t clock, int notify, int number, long value)
{
	struct sigevent event = { .sigev_notify = notify, .sigev_signo = SIGRTMIN + number, .sigev_value.sival_ptr = (void *)value };
	int id = -1;

	event._sigev_un._tid = syscall(SYS_gettid);
	check(!syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

static struct itimerspec left(int id)
{
	struct itimerspec now;

	check(!syscall(SYS_timer_gettime, id, &now), "timer %d", id);
	return now;
}

static void set(int id, int flags, int64_t first, int64_t every)
{
	struct itimerspec to = { { every / (1000 * MS), every % (1000 * MS) }, { first / (1000 * MS), first % (1000 * MS) } };

	check(!syscall(SYS_timer_settime, id, flags, &to, NULL));
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval real = { { 7, 0 }, { 3000, 0 } }, cpu = { { 0, 0 }, { 500, 0 } }, now;
	int64_t began = nanoseconds(CLOCK_MONOTONIC), until;
	int ids[6];

	for (int i = 0; i < 4; i++)
		check(!sigaction(SIGRTMIN + i, &action, NULL));
	ids[0] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, 0, 11);
	check(!syscall(SYS_timer_delete, create(CLOCK_REALTIME, SIGEV_NONE, 0, 0)));
	ids[1] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, 1, 22);
	ids[2] = create(CLOCK_REALTIME, SIGEV_NONE, 0, 0);
	check(!syscall(SYS_timer_delete, create(CLOCK_REALTIME, SIGEV_NONE, 0, 0)));
	ids[3] = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, 2, 33);
	ids[4] = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, 3, 44);
	ids[5] = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
	check(ids[1] == 2 && ids[3] == 5, "%d %d", ids[1], ids[3]);
	set(ids[0], 0, 5 * MS, 5 * MS);
	set(ids[1], 0, 10 * MS, 10 * MS);
	set(ids[2], 0, 1000000LL * MS, 0);
	set(ids[3], TIMER_ABSTIME, until = nanoseconds(CLOCK_BOOTTIME) + 4000 * MS, 0);
	set(ids[4], 0, 300000L * MS, 0);
	check(!setitimer(ITIMER_REAL, &real, NULL) && !setitimer(ITIMER_VIRTUAL, &cpu, NULL));
	check(!setitimer(ITIMER_PROF, &cpu, NULL));
	ready();
	wait_told();
	for (int i = 0; i < 2; i++) {
		long got = fired[i], due = (nanoseconds(CLOCK_MONOTONIC) - began) / ((5 + 5 * i) * MS);

		check(got <= due && got > due * 3 / 4 && values[i] == 11 + 11 * i, "timer %d: %ld of %ld", i, got, due);
	}
	long passed = (nanoseconds(CLOCK_MONOTONIC) - began) / (1000 * MS), rest = left(ids[2]).it_value.tv_sec;

	check(rest >= 998 - passed && rest <= 1000 - passed, "%ld left after %ld s", rest, passed);
	check(left(ids[4]).it_value.tv_sec > 290 && !left(ids[5]).it_value.tv_sec);
	check(!getitimer(ITIMER_REAL, &now) && now.it_interval.tv_sec == 7, "interval %ld", (long)now.it_interval.tv_sec);
	check(now.it_value.tv_sec >= 2998 - passed && now.it_value.tv_sec <= 3000 - passed, "%ld after %ld s", (long)now.it_value.tv_sec, passed);
	check(!getitimer(ITIMER_VIRTUAL, &now) && now.it_value.tv_sec > 490 && !getitimer(ITIMER_PROF, &now));
	check(now.it_value.tv_sec > 490);
	while (!fired[2])
		usleep(1000);
	int64_t late = nanoseconds(CLOCK_BOOTTIME) - until;
	check(late >= 0 && (late < 500 * MS || nanoseconds(CLOCK_MONOTONIC) - began > 4400 * MS) && values[2] == 33, "%ld", late);
	check(create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0) > ids[5]);
	pass();
}
