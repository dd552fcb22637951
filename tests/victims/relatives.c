/* relatives: a process and two children, connected by unix socket pairs that one of them has made: each has one end, or
   all have the same one, or nobody but the children has any; with messages and their senders. */
#include "victim.h"
#include <sys/socket.h>

static int stream[2], datagrams[2], between[2], common[2], left[2];

static void takes(int fd, const char *text)
{
	char buffer[64] = "";

	check(recv(fd, buffer, sizeof(buffer), 0) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s", fd, buffer);
}

static void gives(int fd, const char *text)
{
	check(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text), "fd %d", fd);
}

static pid_t peer(int fd)
{
	struct ucred who;
	socklen_t size = sizeof(who);

	check(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) && who.uid == getuid());
	return who.pid;
}

static pid_t sender(int fd, const char *text)
{
	char buffer[64] = "", control[64];
	struct iovec vector = { buffer, sizeof(buffer) };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 64 };
	struct ucred who;

	check(recvmsg(fd, &message, 0) == (ssize_t)strlen(text) && !strcmp(buffer, text), "%s", buffer);
	check(CMSG_FIRSTHDR(&message) && CMSG_FIRSTHDR(&message)->cmsg_type == SCM_CREDENTIALS);
	memcpy(&who, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(who));
	check(who.uid == getuid());
	return who.pid;
}

__attribute__((noreturn)) static void first_child(pid_t parent)
{
	close(stream[0]);
	close(datagrams[0]);
	close(between[1]);
	close(left[0]);
	gives(between[0], "to the sibling");
	gives(datagrams[1], "of the child");
	gives(stream[1], "up ");
	gives(common[1], "first ");
	wait_told();
	takes(stream[1], "down");
	gives(stream[1], "and up");
	check(peer(stream[1]) == parent && peer(between[0]) == parent);
	gives(between[0], "once more");
	takes(between[0], "back");
	check(!recv(between[0], &parent, 4, 0)); /* the sibling has ended */
	_exit(3);
}

__attribute__((noreturn)) static void second_child(pid_t parent)
{
	for (int i = 0; i < 2; i++) {
		close(stream[i]);
		close(datagrams[i]);
	}
	close(between[0]);
	close(left[0]);
	gives(common[1], "second");
	wait_told();
	takes(between[1], "to the sibling");
	takes(between[1], "once more");
	check(peer(between[1]) == parent);
	gives(between[1], "back");
	gives(common[1], ", third");
	_exit(4);
}

int main(void)
{
	int status;
	pid_t self = getpid(), one, two;

	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
	check(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, between) && !socketpair(AF_UNIX, SOCK_STREAM, 0, common));
	check(!setsockopt(datagrams[0], SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int)));
	gives(datagrams[1], "of the parent");
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, left));
	one = fork();
	check(one >= 0);
	if (!one)
		first_child(self);
	two = fork();
	check(two >= 0);
	if (!two)
		second_child(self);
	close(between[0]);
	close(between[1]);
	close(stream[1]);
	gives(stream[0], "down");
	gives(left[0], "left");
	check(!close(left[0]));
	while (recv(stream[0], &status, 4, MSG_PEEK | MSG_DONTWAIT) != 3)
		usleep(1000);
	for (char text[64] = ""; recv(common[0], text, 64, MSG_PEEK | MSG_DONTWAIT) != 12;)
		usleep(1000);
	ready();
	wait_told();

	char text[64] = "";
	check(recv(stream[0], text, 9, MSG_WAITALL) == 9 && !strcmp(text, "up and up"), "%s", text);
	check(peer(stream[0]) == self);
	check(sender(datagrams[0], "of the parent") == self && sender(datagrams[0], "of the child") == one);
	takes(left[1], "left");
	check(waitpid(one, &status, 0) == one && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(waitpid(two, &status, 0) == two && WIFEXITED(status) && WEXITSTATUS(status) == 4, "%x", status);
	memset(text, 0, sizeof(text));
	check(recv(common[0], text, 19, MSG_WAITALL) == 19);
	check(!strcmp(text, "first second, third") || !strcmp(text, "secondfirst , third"), "%s", text);
	check(!recv(stream[0], text, 1, 0));
	pass();
}
