/* semaphores: System V semaphores and queues of a process and its children. Two children have taken from a set with
   SEM_UNDO, one of them in both directions, and one waits for it all the time; the queue has messages of several types in
   it, and a child waits for one that has not come yet. In the end the children go, and what they had taken is there
   again. */
#include "victim.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

enum { COUNT = 4, OWNER = 4242, LARGE = 5000 };
struct message { long type; char text[LARGE]; };
static int set, queue, waited_for, arrivals[2];
static key_t key;

static int by(int number, int amount, int flags)
{
	struct sembuf one = { number, amount, flags };

	return semop(set, &one, 1);
}

static void values(int a, int b, int c, int d)
{
	unsigned short found[COUNT];

	check(!semctl(set, 0, GETALL, found));
	check(found[0] == a && found[1] == b && found[2] == c && found[3] == d, "%d %d %d %d", found[0], found[1], found[2],
	      found[3]);
}

static void arrived(void)
{
	check(write(arrivals[1], ".", 1) == 1);
}

static pid_t start(void (*what)(void))
{
	pid_t pid = fork();

	check(pid >= 0);
	if (!pid) {
		what();
		_exit(0);
	}
	return pid;
}

static void *threads_undo(void *unused)
{
	(void)unused;
	check(!by(2, -7, SEM_UNDO)); // the list is of all threads
	return NULL;
}

static void takes(void)
{
	pthread_t thread;

	check(!by(0, -1, SEM_UNDO) && !by(1, 20000, SEM_UNDO) && !by(2, -3, SEM_UNDO));
	check(!pthread_create(&thread, NULL, threads_undo, NULL) && !pthread_join(thread, NULL));
	arrived();
	wait_told();
	check(!by(0, -1, SEM_UNDO)); // one more after the move
}

static void takes_too(void)
{
	check(!by(2, -1, SEM_UNDO) && !by(3, 1, SEM_UNDO) && !by(3, -1, 0));
	arrived();
	wait_told();
}

static void waits(void)
{
	arrived();
	while (by(3, -2, 0)) // for somebody to put two there
		check(errno == EINTR);
}

static void receives(void)
{
	struct message got;
	ssize_t length;

	arrived();
	while ((length = msgrcv(waited_for, &got, LARGE, 9, 0)) < 0)
		check(errno == EINTR);
	check(length == 4 && !memcmp(got.text, "nine", 4));
}

static void put(int type, const char *text, int length)
{
	static struct message made;

	made.type = type;
	memcpy(made.text, text, length);
	check(!msgsnd(queue, &made, length, IPC_NOWAIT));
}

static void got(int type, int wanted, const char *text, int length)
{
	static struct message found;

	check(msgrcv(queue, &found, LARGE, type, IPC_NOWAIT) == length && found.type == wanted, "%ld", found.type);
	check(!memcmp(found.text, text, length));
}

static void await(pid_t pid)
{
	int status;

	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status), "status %x", status);
}

int main(void)
{
	unsigned short first[COUNT] = { 5, 0, 32767, 0 };
	static char large[LARGE];
	struct semid_ds about;
	struct msqid_ds its;
	pid_t children[4];
	struct { long type; char text[4]; } nine = { 9, "nine" };
	char dot;

	key = 0x20000000 + getpid();
	set = semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0600);
	queue = msgget(key + 1, IPC_CREAT | IPC_EXCL | 0620);
	waited_for = msgget(IPC_PRIVATE, 0600);
	check(set >= 0 && queue >= 0 && waited_for >= 0 && !pipe(arrivals));
	check(!semctl(set, 0, SETALL, first) && !semctl(set, 0, IPC_STAT, &about));
	about.sem_perm.uid = OWNER;
	about.sem_perm.mode = 0606;
	check(!semctl(set, 0, IPC_SET, &about) && !msgctl(queue, IPC_STAT, &its));
	its.msg_qbytes = 12345;
	check(!msgctl(queue, IPC_SET, &its));
	memset(large, 'L', LARGE);
	put(3, "three", 5);
	put(1, "", 0);
	put(3, large, LARGE);
	put(7000000, "last", 4);
	children[0] = start(takes);
	check(read(arrivals[0], &dot, 1) == 1);
	children[1] = start(takes_too);
	children[2] = start(waits);
	children[3] = start(receives);
	for (int i = 0; i < 3; i++)
		check(read(arrivals[0], &dot, 1) == 1);
	values(4, 20000, 32767 - 11, 0);
	usleep(100000); // until those two wait
	ready();
	wait_told();

	await(children[0]);
	await(children[1]);
	check(!by(3, 2, 0));
	await(children[2]);
	values(5, 0, 32767, 0);
	check(semget(key, COUNT, 0) == set && !semctl(set, 0, IPC_STAT, &about));
	check(about.sem_perm.uid == OWNER && about.sem_perm.mode == 0606 && about.sem_perm.cuid == geteuid());
	check(!msgsnd(waited_for, &nine, 4, 0));
	await(children[3]);
	check(msgget(key + 1, 0) == queue && !msgctl(queue, IPC_STAT, &its));
	check(its.msg_qnum == 4 && its.msg_qbytes == 12345 && its.msg_perm.mode == 0620);
	got(7000000, 7000000, "last", 4);
	got(3, 3, "three", 5);
	got(0, 1, "", 0);
	got(0, 3, large, LARGE);
	check(!semctl(set, 0, IPC_RMID) && !msgctl(queue, IPC_RMID, NULL) && !msgctl(waited_for, IPC_RMID, NULL));
	pass();
}
