/* orphaned: a timer for a thread that has ended, which goes on and notifies nobody. */
#include "victim.h"

static timer_t id;

static void *work(void *unused)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN };
	const struct itimerspec often = { { 1000, 0 }, { 1000, 0 } };

	event._sigev_un._tid = syscall(SYS_gettid);
	check(!timer_create(CLOCK_MONOTONIC, &event, &id) && !timer_settime(id, 0, &often, NULL));
	return unused;
}

int main(void)
{
	struct itimerspec now;
	pthread_t thread;

	check(!pthread_create(&thread, NULL, work, NULL) && !pthread_join(thread, NULL));
	ready();
	wait_told();
	check(!timer_gettime(id, &now) && now.it_interval.tv_sec == 1000 && now.it_value.tv_sec > 900);
	pass();
}
