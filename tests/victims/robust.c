/* robust: a thread that holds three robust mutexes, and one that waits to be joined, end after the move: the kernel walks
   their robust lists and clears their TIDs (set_robust_list(2), set_tid_address(2)). */
#include "victim.h"

static pthread_mutex_t mutexes[3];
static volatile int held, go;

static void *hold(void *unused)
{
	for (int i = 0; i < 3; i++)
		check(!pthread_mutex_lock(&mutexes[i]));
	held = 1;
	while (!go)
		usleep(1000);
	return unused; /* without unlocking */
}

int main(void)
{
	pthread_t thread;
	pthread_mutexattr_t attributes;

	check(!pthread_mutexattr_init(&attributes));
	check(!pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	check(!pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
	for (int i = 0; i < 3; i++)
		check(!pthread_mutex_init(&mutexes[i], &attributes));
	check(!pthread_create(&thread, NULL, hold, NULL));
	while (!held)
		usleep(1000);
	ready();
	wait_told();
	check(pthread_mutex_trylock(&mutexes[0]) == EBUSY);
	go = 1;
	check(!pthread_join(thread, NULL)); /* the kernel's write to clear_child_tid */
	for (int i = 0; i < 3; i++) {
		int error = pthread_mutex_lock(&mutexes[i]);

		check(error == EOWNERDEAD, "%d", error);
		check(!pthread_mutex_consistent(&mutexes[i]) && !pthread_mutex_unlock(&mutexes[i]));
	}
	check(!pthread_create(&thread, NULL, hold, NULL) && !pthread_join(thread, NULL));
	pass();
}
