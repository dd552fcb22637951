/* datagrams [NAME]: datagram sockets that are connected one way, as those of a log are: a receiver under a path, who calls
   it in the process and in its child, one of these under a path of its own, where answers wait; what others have sent who
   are gone; one that is connected to itself; and one with an abstract name, or with NAME in place of that. */
#include "victim.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { RECEIVER, NAMED, GONE, ITSELF, OTHER, PLACES };
static struct sockaddr_un names[PLACES];
static socklen_t sizes[PLACES];

static int makes(int place, const char *path)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	names[place].sun_family = AF_UNIX;
	strncpy(names[place].sun_path, path, sizeof(names[place].sun_path) - 1);
	sizes[place] = offsetof(struct sockaddr_un, sun_path) + strlen(path) + (*path != '@');
	if (*path == '@')
		names[place].sun_path[0] = 0;
	check(!bind(fd, (struct sockaddr *)&names[place], sizes[place]), "%s", path);
	return fd;
}

static int calls(int fd, int place)
{
	if (fd < 0)
		fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	check(!connect(fd, (struct sockaddr *)&names[place], sizes[place]));
	return fd;
}

static void gives(int fd, const char *text)
{
	check(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text), "fd %d: %s", fd, text);
}

static void gives_to(int fd, const char *text, int place)
{
	ssize_t sent = sendto(fd, text, strlen(text), 0, (struct sockaddr *)&names[place], sizes[place]);

	check(sent == (ssize_t)strlen(text), "fd %d: %s", fd, text);
}

/* What comes next, of a sender with the name of the place, or with none; its number, where that is noted. */
static pid_t takes(int fd, const char *text, int place)
{
	char buffer[64] = "", control[64];
	struct sockaddr_un by;
	struct iovec vector = { buffer, sizeof(buffer) };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 64,
				  .msg_name = &by, .msg_namelen = sizeof(by) };
	struct ucred who = { 0, 0, 0 };

	check(recvmsg(fd, &message, MSG_DONTWAIT) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s, not %s", fd, buffer, text);
	if (place < 0)
		check(!message.msg_namelen, "%s: %d", text, message.msg_namelen);
	else
		check(message.msg_namelen == sizes[place] && !memcmp(by.sun_path, names[place].sun_path, sizes[place] - 2), "%s: %s", text, by.sun_path);
	if (CMSG_FIRSTHDR(&message)) {
		memcpy(&who, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(who));
		check(!who.pid || (who.uid == getuid() && who.gid == getgid()));
	}
	return who.pid;
}

static void empty(int fd)
{
	char byte;

	check(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "fd %d", fd);
}

int main(int argc, char **argv)
{
	int receiver, named, gone, itself, other, plain, plain_other, late, status, one = 1, ask[2], answer[2];
	pid_t child;
	char path[108], byte;
	struct sockaddr_un found = { 0 };
	socklen_t size = sizeof(found);

	check(!chdir(getenv("VICTIM_DIR")));
	snprintf(path, sizeof(path), "%s/receiver", getenv("VICTIM_DIR"));
	receiver = makes(RECEIVER, path);
	snprintf(path, sizeof(path), "@datagrams-%d", getpid());
	other = makes(OTHER, argc > 1 ? argv[1] : path);
	named = makes(NAMED, "./named");
	gone = makes(GONE, "gone");
	itself = calls(makes(ITSELF, "itself"), ITSELF);
	check(!pipe(ask) && !pipe(answer));
	child = fork();
	check(child >= 0);
	if (!child) {
		int mine = calls(-1, RECEIVER), second = calls(-1, OTHER);

		check(!close(gone));
		gives(mine, "of the child");
		gives(second, "other");
		check(write(answer[1], "x", 1) == 1 && read(ask[0], &byte, 1) == 1);
		gives(mine, "late of the child");
		check(write(answer[1], "x", 1) == 1);
		wait_told();
		gives(mine, "once more");
		_exit(3);
	}
	check(read(answer[0], &byte, 1) == 1);
	gives_to(gone, "of one who is gone", RECEIVER);
	check(!close(gone) && !unlink("gone"));
	calls(named, RECEIVER);
	gives(named, "with a name");
	gives(named, "");
	check(!setsockopt(receiver, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)));
	plain = calls(-1, RECEIVER);
	plain_other = calls(-1, OTHER);
	gives(plain, "plain");
	gives_to(receiver, "answer", NAMED);
	gives_to(receiver, "and another", NAMED);
	gives(itself, "to myself");
	check(!fcntl(plain, F_SETFL, O_NONBLOCK));
	check(!shutdown(plain_other, SHUT_RD));
	check(write(ask[1], "x", 1) == 1 && read(answer[0], &byte, 1) == 1);
	ready();
	wait_told();

	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(!takes(receiver, "of the child", -1) && !takes(receiver, "of one who is gone", GONE));
	check(!takes(receiver, "with a name", NAMED) && !takes(receiver, "", NAMED));
	check(takes(receiver, "plain", -1) == getpid() && takes(receiver, "late of the child", -1) == child);
	check(takes(receiver, "once more", -1) == child);
	empty(receiver);
	takes(other, "other", -1);
	empty(other);
	takes(named, "answer", RECEIVER);
	gives(named, "thanks");
	takes(named, "and another", RECEIVER);
	empty(named);
	check(takes(receiver, "thanks", NAMED) == getpid());
	gives_to(receiver, "by its file", NAMED);
	takes(named, "by its file", RECEIVER);
	takes(itself, "to myself", ITSELF);
	gives(itself, "again");
	takes(itself, "again", ITSELF);
	gives(plain, "from now on");
	check(takes(receiver, "from now on", -1) == getpid() && fcntl(plain, F_GETFL) == (O_RDWR | O_NONBLOCK));
	check(!getpeername(plain_other, (struct sockaddr *)&found, &size) && size == sizes[OTHER]);
	gives(plain_other, "still");
	takes(other, "still", -1);
	late = calls(-1, RECEIVER);
	gives(late, "late");
	takes(receiver, "late", -1);
	/* a third one may not send to who is connected to another one */
	check(sendto(late, "x", 1, 0, (struct sockaddr *)&names[NAMED], sizes[NAMED]) == -1 && errno == EPERM);
	check(!getsockopt(plain, SOL_SOCKET, SO_ERROR, &status, &(socklen_t){ sizeof(status) }) && !status);
	pass();
}
