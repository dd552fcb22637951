/* mqueues: POSIX message queues. One by a name, with messages of several priorities, that a process has for writing and
   its child for reading; one without a name any more; and one that is empty, for whose first message a child waits. */
#include "victim.h"
#include <mqueue.h>
#include <sys/stat.h>

enum { LARGEST = 600 };
static char names[3][64];

static mqd_t queue(int which, int flags, long most)
{
	struct mq_attr attributes = { .mq_maxmsg = most, .mq_msgsize = LARGEST };
	mqd_t found = mq_open(names[which], flags, 0660, &attributes);

	check(found != (mqd_t)-1, "%s", names[which]);
	return found;
}

static void receives(mqd_t from, const char *text, unsigned wanted)
{
	char room[LARGEST];
	unsigned priority;
	ssize_t length;

	while ((length = mq_receive(from, room, LARGEST, &priority)) < 0)
		check(errno == EINTR);
	check(length == (ssize_t)strlen(text) && !memcmp(room, text, length) && priority == wanted, "%s: %.*s %u", text,
	      (int)length, room, priority);
}

__attribute__((noreturn)) static void child(mqd_t waited_for, int arrived)
{
	mqd_t readable = queue(0, O_RDONLY, 0);

	check(write(arrived, ".", 1) == 1);
	receives(waited_for, "at last", 3);
	receives(readable, "urgent", 32000);
	receives(readable, "first", 5);
	receives(readable, "second", 5);
	receives(readable, "", 5);
	receives(readable, "least", 0);
	receives(readable, "new", 0);
	_exit(55);
}

static void put(mqd_t to, const char *text, unsigned priority)
{
	check(!mq_send(to, text, strlen(text), priority));
}

int main(void)
{
	int arrivals[2], status;
	mqd_t writable, nameless, empty;
	struct mq_attr found;
	struct stat about;
	char dot;
	pid_t pid;

	for (int i = 0; i < 3; i++)
		sprintf(names[i], "/victim-%d-%d", getpid(), i);
	writable = queue(0, O_WRONLY | O_NONBLOCK | O_CREAT | O_EXCL, 6);
	nameless = queue(1, O_RDWR | O_CREAT | O_EXCL, 2);
	empty = queue(2, O_RDWR | O_CREAT | O_EXCL, 1);
	check(!mq_unlink(names[1]) && !pipe(arrivals) && !fchmod(writable, 0640));
	put(writable, "least", 0);
	put(writable, "first", 5);
	put(writable, "urgent", 32000);
	put(writable, "second", 5);
	put(writable, "", 5);
	put(nameless, "nameless", 1);
	pid = fork();
	check(pid >= 0);
	if (!pid)
		child(empty, arrivals[1]);
	check(read(arrivals[0], &dot, 1) == 1);
	usleep(100000); // until it waits
	ready();
	wait_told();
	check(!mq_getattr(writable, &found) && found.mq_flags == O_NONBLOCK && found.mq_maxmsg == 6);
	check(found.mq_msgsize == LARGEST && found.mq_curmsgs == 5, "%ld", found.mq_curmsgs);
	check(!fstat(writable, &about) && (about.st_mode & 0777) == 0640);
	put(writable, "new", 0);
	check(mq_send(writable, "too many", 8, 1) == -1 && errno == EAGAIN);
	receives(nameless, "nameless", 1);
	check(mq_open(names[1], O_RDONLY) == -1 && errno == ENOENT);
	put(empty, "at last", 3);
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 55, "%x", status);
	check(!mq_unlink(names[0]) && !mq_unlink(names[2]));
	pass();
}
