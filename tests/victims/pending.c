/* pending: signals wait, of the process and of two threads, classical ones and queued ones in their order, each with what
   it was sent with; they are all taken after the move, and nothing else comes. */
#include "victim.h"

enum { EACH = 20 };
static volatile int go;
static int sent_to[2];

static void send(pid_t tid, int number, int code, long value)
{
	siginfo_t info = { .si_signo = number, .si_code = code, .si_errno = 77 };

	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_ptr = (void *)value;
	if (tid)
		check(!syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, number, &info));
	else
		check(!syscall(SYS_rt_sigqueueinfo, getpid(), number, &info));
}

static void take(int number, int code, long value)
{
	sigset_t set;
	siginfo_t info;

	sigemptyset(&set);
	sigaddset(&set, number);
	check(sigtimedwait(&set, &info, &(struct timespec){ 0, 0 }) == number, "signal %d, value %ld", number, value);
	check(info.si_code == code && info.si_pid == getpid() && info.si_uid == getuid(), "%d %d", info.si_code, info.si_pid);
	if (code == SI_QUEUE)
		check((long)info.si_value.sival_ptr == value && info.si_errno == 77, "%p", info.si_value.sival_ptr);
}

static void *work(void *which)
{
	long base = (long)which * 1000;
	pid_t me = syscall(SYS_gettid);

	for (int i = 0; i < EACH; i++)
		send(me, SIGRTMIN + i % 3, SI_QUEUE, base + i);
	check(!pthread_kill(pthread_self(), SIGUSR2));
	__atomic_add_fetch(sent_to, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(1000);
	for (int n = 0; n < 3; n++)
		for (int i = n; i < EACH; i += 3)
			take(SIGRTMIN + n, SI_QUEUE, base + i);
	take(SIGUSR2, SI_USER, 0); /* as glibc calls SI_TKILL */
	return NULL;
}

int main(void)
{
	pthread_t threads[2];
	sigset_t all, pending;

	sigfillset(&all);
	check(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	for (long i = 0; i < 2; i++)
		check(!pthread_create(&threads[i], NULL, work, (void *)(i + 1)));
	while (sent_to[0] != 2)
		usleep(1000);
	for (int i = 0; i < EACH; i++)
		send(0, SIGRTMAX - i % 2, SI_QUEUE, i);
	check(!kill(getpid(), SIGTERM) && !kill(getpid(), SIGCHLD) && !kill(getpid(), SIGURG));
	ready();
	wait_told();
	go = 1;
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
	for (int n = 0; n < 2; n++)
		for (int i = n; i < EACH; i += 2)
			take(SIGRTMAX - n, SI_QUEUE, i);
	take(SIGTERM, SI_USER, 0);
	take(SIGCHLD, SI_USER, 0);
	take(SIGURG, SI_USER, 0);
	check(!sigpending(&pending) && sigisemptyset(&pending));
	pass();
}
