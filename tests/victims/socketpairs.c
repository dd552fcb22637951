/* socketpairs: pairs of unix sockets of every type in one process, with what is queued in both ends, shut down, closed,
   with options, in an epoll, and with threads that wait in them. */
#include "victim.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { MUCH = 150000, MORE = 600000 };
static int waited[2], full[2];

static void *reads(void *unused)
{
	char text[10];

	check(recv(waited[0], text, 10, 0) == 4 && !memcmp(text, "back", 4));
	return unused;
}

static void *writes(void *unused)
{
	char *text = malloc(MORE);

	for (int i = 0; i < MORE; i++)
		text[i] = scramble(i);
	for (int at = 0, wrote; at < MORE; at += wrote)
		check((wrote = send(full[1], text + at, MORE - at, 0)) > 0);
	return unused;
}

static void takes(int fd, const char *text, int size)
{
	char buffer[256];
	int got = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);

	check(got == size && !memcmp(buffer, text, size), "fd %d: %d", fd, got);
}

static void takes_none(int fd)
{
	char byte;

	check(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "fd %d", fd);
}

static int polls(int fd)
{
	struct pollfd p = { fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0 };

	check(poll(&p, 1, 0) >= 0);
	return p.revents;
}

static int option(int fd, int name)
{
	int value;
	socklen_t size = sizeof(value);

	check(!getsockopt(fd, SOL_SOCKET, name, &value, &size), "option %d", name);
	return value;
}

static void set(int fd, int name, int value)
{
	check(!setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value)), "option %d", name);
}

/* Who has sent it, as far as that was noted. */
static pid_t sender(int fd, const char *text)
{
	char buffer[64], control[64];
	struct iovec vector = { buffer, sizeof(buffer) };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 64 };
	struct ucred who;

	check(recvmsg(fd, &message, MSG_DONTWAIT) == (ssize_t)strlen(text) && !memcmp(buffer, text, strlen(text)));
	check(CMSG_FIRSTHDR(&message) && CMSG_FIRSTHDR(&message)->cmsg_type == SCM_CREDENTIALS);
	memcpy(&who, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(who));
	check(!who.pid || (who.uid == getuid() && who.gid == getgid()), "%d %d", who.uid, who.gid);
	return who.pid;
}

static void check_peer(int fd)
{
	struct ucred who;
	socklen_t size = sizeof(who);

	check(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size));
	check(who.pid == getpid() && who.uid == getuid() && who.gid == getgid(), "%d %d %d", who.pid, who.uid, who.gid);
}

int main(void)
{
	pthread_t threads[2];
	int stream[2], datagrams[2], packets[2], quiet[2], half[2], deaf[2], closed[2], reset[2], alone[2], ended[2];
	int options[2], credentials[2], watched[2], epoll, other, count;
	char *block = malloc(MUCH), *back = malloc(MUCH);
	struct timeval time = { 1, 500000 }, found;
	struct epoll_event event = { EPOLLIN, { .u64 = 4711 } };
	struct sockaddr_un name;
	socklen_t size;

	for (int i = 0; i < MUCH; i++)
		block[i] = scramble(i);
	signal(SIGPIPE, SIG_IGN);
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	check(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, datagrams));
	check(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	check(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, quiet));
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, half) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, deaf));
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, closed) && !socketpair(AF_UNIX, SOCK_STREAM, 0, reset));
	check(!socketpair(AF_UNIX, SOCK_DGRAM, 0, alone) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ended));
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, options) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, credentials));
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, watched) && !socketpair(AF_UNIX, SOCK_STREAM, 0, waited));
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, full));

	/* much one way, of which some has been read, and little the other */
	check(send(stream[0], block, 100000, 0) == 100000 && send(stream[0], block + 100000, 50000, 0) == 50000);
	check(recv(stream[1], back, 777, 0) == 777 && send(stream[1], "here", 4, 0) == 4);
	/* messages, among them empty ones */
	for (int i = 0; i < 2; i++) {
		int *pair = i ? packets : datagrams;

		check(send(pair[0], "one", 3, 0) == 3 && send(pair[0], "", 0, 0) == 0 && send(pair[0], "three", 5, 0) == 5);
		check(send(pair[0], block, 40000, 0) == 40000 && send(pair[0], "", 0, 0) == 0);
		check(send(pair[1], "answer", 6, 0) == 6);
	}
	/* halves */
	check(send(half[1], "last words", 10, 0) == 10 && !shutdown(half[1], SHUT_WR));
	check(send(deaf[1], "heard", 5, 0) == 5 && !shutdown(deaf[0], SHUT_RD));
	check(send(closed[1], "left behind", 11, 0) == 11 && !close(closed[1]));
	check(send(reset[1], "before", 6, 0) == 6 && send(reset[0], "not read", 8, 0) == 8 && !close(reset[1]));
	check(send(alone[1], "orphan", 6, 0) == 6 && !close(alone[1]));
	check(send(ended[1], "packet", 6, 0) == 6 && send(ended[1], "", 0, 0) == 0 && !close(ended[1]));
	/* options */
	set(options[0], SO_SNDBUF, 50000);
	set(options[0], SO_RCVBUF, 60000);
	set(options[0], SO_PRIORITY, 3);
	set(options[0], SO_TIMESTAMP, 1);
	set(options[0], SO_RCVLOWAT, 3);
	set(options[0], SO_PEEK_OFF, 2);
	check(!setsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time)));
	check(send(options[1], "peeked", 6, 0) == 6 && send(options[1], " at", 3, 0) == 3);
	check(recv(options[0], back, 2, MSG_PEEK) == 2 && !memcmp(back, "ek", 2));
	/* who has sent what */
	check(send(credentials[1], "nobody", 6, 0) == 6);
	set(credentials[0], SO_PASSCRED, 1);
	check(send(credentials[1], "myself", 6, 0) == 6);

	check((epoll = epoll_create1(0)) >= 0 && !epoll_ctl(epoll, EPOLL_CTL_ADD, watched[0], &event));
	check((other = fcntl(quiet[0], F_DUPFD_CLOEXEC, 100)) >= 100);
	check(!ioctl(quiet[1], FIONBIO, &(int){ 0 }));
	check(!pthread_create(&threads[0], NULL, reads, NULL) && !pthread_create(&threads[1], NULL, writes, NULL));
	do
		check(!usleep(1000) && !ioctl(full[0], FIONREAD, &count));
	while (count < 100000);
	ready();
	wait_told();

	for (int at = 777, got; at < MUCH; at += got)
		check((got = recv(stream[1], back, 3000, MSG_DONTWAIT)) > 0 && !memcmp(back, block + at, got), "at %d", at);
	takes_none(stream[1]);
	takes(stream[0], "here", 4);
	check(send(stream[1], "again", 5, 0) == 5);
	takes(stream[0], "again", 5);
	for (int i = 0; i < 2; i++) {
		int *pair = i ? packets : datagrams;

		takes(pair[1], "one", 3);
		takes(pair[1], "", 0);
		takes(pair[1], "three", 5);
		check(recv(pair[1], back, MUCH, MSG_DONTWAIT) == 40000 && !memcmp(back, block, 40000));
		takes(pair[1], "", 0);
		takes_none(pair[1]);
		takes(pair[0], "answer", 6);
		takes_none(pair[0]);
		size = sizeof(name);
		check(!getpeername(pair[0], (struct sockaddr *)&name, &size) && size == sizeof(sa_family_t));
		check(option(pair[0], SO_TYPE) == (i ? SOCK_SEQPACKET : SOCK_DGRAM));
	}
	check(fcntl(datagrams[0], F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(datagrams[1], F_GETFD) == FD_CLOEXEC);
	check(fcntl(packets[0], F_GETFL) == O_RDWR && fcntl(packets[0], F_GETFD) == 0);

	check(send(half[1], "x", 1, 0) == -1 && errno == EPIPE && (polls(half[0]) & POLLRDHUP));
	takes(half[0], "last words", 10);
	takes(half[0], "", 0);
	check(send(half[0], "still", 5, 0) == 5);
	takes(half[1], "still", 5);
	check(send(deaf[1], "x", 1, 0) == -1 && errno == EPIPE);
	takes(deaf[0], "heard", 5);
	takes(closed[0], "left behind", 11);
	takes(closed[0], "", 0);
	check(send(closed[0], "x", 1, 0) == -1 && errno == EPIPE && (polls(closed[0]) & POLLHUP));
	check(polls(reset[0]) & POLLERR);
	takes(reset[0], "before", 6);
	check(recv(reset[0], back, 1, 0) == -1 && errno == ECONNRESET && !recv(reset[0], back, 1, 0));
	takes(alone[0], "orphan", 6);
	check(send(alone[0], "x", 1, 0) == -1 && errno == ECONNREFUSED);
	takes(ended[0], "packet", 6);
	takes(ended[0], "", 0);

	check(option(options[0], SO_SNDBUF) == 100000 && option(options[0], SO_RCVBUF) == 120000);
	check(option(options[1], SO_SNDBUF) == option(stream[0], SO_SNDBUF) && !option(options[1], SO_PRIORITY));
	check(option(options[0], SO_PRIORITY) == 3 && option(options[0], SO_TIMESTAMP) && option(options[0], SO_RCVLOWAT) == 3);
	size = sizeof(found);
	check(!getsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &found, &size) && !memcmp(&time, &found, sizeof(time)));
	check(option(options[0], SO_PEEK_OFF) == 4 && option(options[1], SO_PEEK_OFF) == -1);
	check(recv(options[0], back, 2, MSG_PEEK) == 2 && !memcmp(back, "ed", 2));
	takes(options[0], "peeked at", 9);
	check(!sender(credentials[0], "nobody") && sender(credentials[0], "myself") == getpid());
	check(!option(credentials[1], SO_PASSCRED));
	check_peer(stream[0]);
	check_peer(packets[1]);

	check(epoll_wait(epoll, &event, 1, 0) == 0 && send(watched[1], "x", 1, 0) == 1);
	check(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 4711);
	check(fcntl(quiet[0], F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(quiet[1], F_GETFL) == O_RDWR);
	check(send(other, "dup", 3, 0) == 3);
	takes(quiet[1], "dup", 3);
	check(!fcntl(other, F_SETFL, 0) && fcntl(quiet[0], F_GETFL) == O_RDWR);

	check(send(waited[1], "back", 4, 0) == 4);
	for (int at = 0, got; at < MORE; at += got) {
		check((got = recv(full[0], back, 5000, 0)) > 0);
		for (int i = 0; i < got; i++)
			check(back[i] == (char)scramble(at + i), "%d", at + i);
	}
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
	pass();
}
