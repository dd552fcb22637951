/* callers: sockets that listen and have not accepted yet who has connected to them: the process itself and its child, to
   a path and to a relative one, streams and packets, with names and without, shut down; in the order in which they came,
   and more of them than would be let in by now. Nobody has sent anything. */
#include "victim.h"
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { STREAM, PACKETS, KINDS, CALLERS = 4 };
static int listening[KINDS], caller[KINDS][CALLERS];
static struct sockaddr_un names[KINDS];
static const char *relative = "./packets";

static socklen_t address(struct sockaddr_un *name, const char *path)
{
	name->sun_family = AF_UNIX;
	strncpy(name->sun_path, path, sizeof(name->sun_path) - 1);
	return offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1;
}

static void takes(int fd, const char *text)
{
	char buffer[64] = "";

	check(recv(fd, buffer, sizeof(buffer), 0) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s", fd, buffer);
}

static void gives(int fd, const char *text)
{
	check(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text), "fd %d", fd);
}

static int calls(int kind)
{
	int fd = socket(AF_UNIX, kind == STREAM ? SOCK_STREAM : SOCK_SEQPACKET, 0);
	struct sockaddr_un name = { 0 };

	/* by a way that everybody may go */
	check(!connect(fd, (struct sockaddr *)&name, address(&name, kind == STREAM ? "calls" : relative)), "%d", kind);
	return fd;
}

static void named(int fd, const char *wanted, int (*ask)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_un found = { 0 };
	socklen_t size = sizeof(found);

	check(!ask(fd, (struct sockaddr *)&found, &size) && !strcmp(found.sun_path, wanted), "%s", found.sun_path);
}

static void user(int fd, uid_t uid, gid_t gid)
{
	struct ucred who;
	socklen_t size = sizeof(who);

	check(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) && who.uid == uid && who.gid == gid, "%d %d", who.uid, who.gid);
}

__attribute__((noreturn)) static void child_lives(void)
{
	int late[KINDS];

	check(!setegid(1001) && !seteuid(1000));
	for (int i = 0; i < KINDS; i++)
		late[i] = calls(i);
	wait_told();
	for (int i = 0; i < KINDS; i++) {
		user(late[i], 0, 0);
		named(late[i], names[i].sun_path, getpeername);
		gives(late[i], "of the child");
		takes(late[i], "to the child");
	}
	_exit(3);
}

int main(void)
{
	const char *directory = getenv("VICTIM_DIR");
	char path[108], own[108];
	struct sockaddr_un name = { 0 };
	struct epoll_event event = { EPOLLIN | EPOLLET, { .u64 = 42 } };
	int status, epoll, fd, one = 1;
	pid_t child;

	check(!chdir(directory) && !chmod(directory, 0755));
	snprintf(path, sizeof(path), "%s/calls", directory);
	snprintf(own, sizeof(own), "%s/own", directory);
	address(&names[STREAM], path);
	address(&names[PACKETS], relative);
	for (int i = 0; i < KINDS; i++) {
		check((listening[i] = socket(AF_UNIX, i == STREAM ? SOCK_STREAM : SOCK_SEQPACKET, 0)) >= 0);
		check(!bind(listening[i], (struct sockaddr *)&names[i], sizeof(names[i])) && !listen(listening[i], 50));
		check(!chmod(names[i].sun_path, 0777));
		for (int j = 0; j < CALLERS - 1; j++)
			caller[i][j] = calls(i);
	}
	/* the last one of the process has a name */
	check((caller[STREAM][3] = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0);
	check(!bind(caller[STREAM][3], (struct sockaddr *)&name, address(&name, own)));
	check(!connect(caller[STREAM][3], (struct sockaddr *)&names[STREAM], sizeof(names[STREAM])));
	caller[PACKETS][3] = calls(PACKETS);
	check(!shutdown(caller[STREAM][1], SHUT_WR) && !shutdown(caller[PACKETS][1], SHUT_RD));
	check(!fcntl(caller[STREAM][2], F_SETFL, O_NONBLOCK));
	check(!setsockopt(caller[STREAM][2], SOL_SOCKET, SO_PRIORITY, &one, sizeof(one)));
	check((epoll = epoll_create1(0)) >= 0 && !epoll_ctl(epoll, EPOLL_CTL_ADD, listening[STREAM], &event));
	child = fork();
	check(child >= 0);
	if (!child)
		child_lives();
	for (int i = 0; i < KINDS; i++) {
		/* nobody else can come in any more */
		do {
			char line[256], wanted[sizeof(names[i].sun_path) + 2];
			FILE *file;

			usleep(2000);
			snprintf(wanted, sizeof(wanted), "%s\n", names[i].sun_path);
			status = 0;
			check(file = fopen("/proc/net/unix", "r"));
			while (fgets(line, sizeof(line), file))
				status += strlen(line) > strlen(wanted) && !strcmp(line + strlen(line) - strlen(wanted), wanted);
			fclose(file);
		} while (status < CALLERS + 2); /* the listening one, and those that it will accept */
		check(!listen(listening[i], 1));
	}
	ready();
	wait_told();

	check(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 42);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	check(connect(fd, (struct sockaddr *)&names[STREAM], sizeof(names[STREAM])) == -1 && errno == EAGAIN);
	for (int i = 0; i < KINDS; i++) {
		for (int j = 0; j < CALLERS; j++) {
			int silent = j == 1 && i == STREAM, deaf = j == 1 && i == PACKETS;
			char byte;

			check((fd = accept(listening[i], NULL, NULL)) >= 0);
			user(fd, 0, 0);
			user(caller[i][j], 0, 0);
			named(fd, names[i].sun_path, getsockname);
			named(fd, i == STREAM && j == 3 ? own : "", getpeername);
			if (silent)
				check(send(caller[i][j], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE && !recv(fd, &byte, 1, 0));
			else {
				gives(caller[i][j], (char[]){ '0' + j, 0 });
				takes(fd, (char[]){ '0' + j, 0 });
			}
			if (deaf)
				check(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE && !recv(caller[i][j], &byte, 1, 0));
			else {
				gives(fd, "back");
				takes(caller[i][j], "back");
			}
		}
		check((fd = accept(listening[i], NULL, NULL)) >= 0);
		user(fd, 1000, 1001);
		takes(fd, "of the child");
		gives(fd, "to the child");
		check(!fcntl(listening[i], F_SETFL, O_NONBLOCK) && accept(listening[i], NULL, NULL) == -1 && errno == EAGAIN);
	}
	check(fcntl(caller[STREAM][2], F_GETFL) == (O_RDWR | O_NONBLOCK));
	check(!getsockopt(caller[STREAM][2], SOL_SOCKET, SO_PRIORITY, &one, &(socklen_t){ sizeof(one) }) && one == 1);
	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	pass();
}
