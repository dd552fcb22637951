/* listeners [NAME]: a server and its child, a client: sockets that listen under a path, an abstract name and a relative path,
   connections that were accepted there, one under a name that is gone, and sockets that are not connected. With NAME
   there is no abstract one: on one machine it would be taken. */
#include "victim.h"
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { PATH, ABSTRACT, RELATIVE, GONE, KINDS };
static int listening[KINDS], server[KINDS], client[KINDS], plain, datagrams;
static struct sockaddr_un names[KINDS + 1];
static socklen_t sizes[KINDS + 1];

static void name(int kind, const char *format, ...)
{
	va_list arguments;
	char text[108];

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	names[kind].sun_family = AF_UNIX;
	memcpy(names[kind].sun_path, text, sizeof(text));
	sizes[kind] = offsetof(struct sockaddr_un, sun_path) + strlen(text);
	if (*text == '@')
		names[kind].sun_path[0] = 0;
	else
		sizes[kind]++;
}

static void takes(int fd, const char *text)
{
	char buffer[64] = "";

	check(recv(fd, buffer, strlen(text), MSG_WAITALL) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s", fd, buffer);
}

static void gives(int fd, const char *text)
{
	check(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text), "fd %d", fd);
}

static void named(int fd, int kind, int (*ask)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_un found;
	socklen_t size = sizeof(found);

	check(!ask(fd, (struct sockaddr *)&found, &size));
	if (kind < 0)
		check(size == sizeof(sa_family_t), "%d", size);
	else
		check(size == sizes[kind] && !memcmp(found.sun_path, names[kind].sun_path, size - 2), "%s", found.sun_path);
}

static void seen(int fd, uid_t uid, gid_t gid)
{
	struct ucred who;
	socklen_t size = sizeof(who);

	check(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) && who.uid == uid && who.gid == gid, "%d %d", who.uid, who.gid);
}

static void named_by_kernel(int pair[2], struct sockaddr_un *name)
{
	struct sockaddr_un other;
	socklen_t size = sizeof(*name), same = sizeof(other);

	check(!getsockname(pair[0], (struct sockaddr *)name, &size) && size == 8 && !name->sun_path[0], "%d", size);
	check(!getpeername(pair[1], (struct sockaddr *)&other, &same) && same == 8 && !memcmp(name, &other, 8));
}

static int connects(int kind)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	check(!connect(fd, (struct sockaddr *)&names[kind], sizes[kind]), "%d", kind);
	return fd;
}

__attribute__((noreturn)) static void client_lives(void)
{
	for (int i = 0; i < KINDS; i++) {
		close(listening[i]);
		close(server[i]);
		gives(client[i], "question");
	}
	wait_told();
	for (int i = 0; i < KINDS; i++) {
		takes(client[i], "answer");
		named(client[i], -1, getsockname);
		named(client[i], i, getpeername);
		seen(client[i], 0, 0);
		gives(client[i], "thanks");
	}
	for (int i = 0; i < GONE; i++) {
		int fd = connects(i);

		gives(fd, "anew");
		takes(fd, "welcome");
	}
	_exit(3);
}

int main(int argc, char **argv)
{
	int status, pair[2], one = 1;
	struct sockaddr_un before, after;
	pid_t child;
	struct stat found;
	const char *directory = getenv("VICTIM_DIR");

	check(!chdir(directory));
	name(PATH, "%s/listens", directory);
	if (argc > 1)
		name(ABSTRACT, "%s/%s", directory, argv[1]);
	else
		name(ABSTRACT, "@listeners-%d", getpid());
	name(RELATIVE, "./nearby");
	name(GONE, "%s/gone", directory);
	name(KINDS, "datagrams");
	for (int i = 0; i < KINDS; i++) {
		check((listening[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
		check(!bind(listening[i], (struct sockaddr *)&names[i], sizes[i]) && !listen(listening[i], 5 + i));
		/* which the server is told */
		if (i == RELATIVE)
			check(!chmod(directory, 0755) && !chmod(names[i].sun_path, 0777) && !seteuid(1000));
		check(i != PATH || !setegid(1000));
		client[i] = connects(i);
		check(!seteuid(0) && !setegid(0));
		check((server[i] = accept(listening[i], NULL, NULL)) >= 0);
		gives(server[i], "answer");
	}
	check(!chmod(names[PATH].sun_path, 0640) && !chown(names[PATH].sun_path, 1000, 1001));
	check(!close(listening[GONE]) && !unlink(names[GONE].sun_path));
	listening[GONE] = -1;
	check((plain = socket(AF_UNIX, SOCK_SEQPACKET, 0)) >= 0);
	check((datagrams = socket(AF_UNIX, SOCK_DGRAM, 0)) >= 0);
	check(!bind(datagrams, (struct sockaddr *)&names[KINDS], sizes[KINDS]));
	check(!setsockopt(datagrams, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)));
	if (argc == 1) { /* named by the kernel, as everybody who asks for senders is */
		check(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
		check(!setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)));
		gives(pair[0], "from a name");
		named_by_kernel(pair, &before);
	}
	child = fork();
	check(child >= 0);
	if (!child)
		client_lives();
	for (int i = 0; i < KINDS; i++)
		close(client[i]);
	for (int i = 0; i < KINDS; i++)
		while (recv(server[i], &status, 4, MSG_PEEK | MSG_DONTWAIT) != 4)
			usleep(1000);
	ready();
	wait_told();

	for (int i = 0; i < KINDS; i++) {
		takes(server[i], "question");
		named(server[i], i, getsockname);
		named(server[i], -1, getpeername);
		seen(server[i], i == RELATIVE ? 1000 : 0, i == PATH ? 1000 : 0);
	}
	for (int i = 0; i < GONE; i++) {
		int fd, value;
		socklen_t size = sizeof(value);

		check(!getsockopt(listening[i], SOL_SOCKET, SO_ACCEPTCONN, &value, &size) && value == 1);
		named(listening[i], i, getsockname);
		check((fd = accept(listening[i], NULL, NULL)) >= 0);
		named(fd, i, getsockname);
		takes(fd, "anew");
		gives(fd, "welcome");
	}
	for (int i = 0; i < KINDS; i++)
		takes(server[i], "thanks");
	check(!stat(names[PATH].sun_path, &found) && S_ISSOCK(found.st_mode));
	check((found.st_mode & 0777) == 0640 && found.st_uid == 1000 && found.st_gid == 1001, "%o", found.st_mode);
	if (argc == 1) {
		named_by_kernel(pair, &after);
		check(!memcmp(before.sun_path, after.sun_path, 6));
		takes(pair[1], "from a name");
	}
	named(datagrams, KINDS, getsockname);
	check(send(plain, "x", 1, MSG_NOSIGNAL) == -1 && (errno == ENOTCONN || errno == EINVAL));
	check(sendto(datagrams, "to myself", 9, 0, (struct sockaddr *)&names[KINDS], sizes[KINDS]) == 9);
	takes(datagrams, "to myself");
	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(!unlink(names[PATH].sun_path) && !unlink("nearby") && !unlink("datagrams"));
	pass();
}
