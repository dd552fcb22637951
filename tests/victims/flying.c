/* flying: descriptors that wait in unix sockets to be received (SCM_RIGHTS): of what the process or its child has open as
   well, of files that only a queue has, several in one message, in the middle of a stream, with senders, and of a socket. */
#include "victim.h"
#include <sys/eventfd.h>
#include <sys/socket.h>

static int stream[2], packets[2], datagrams[2], across[2];

static void gives(int fd, const char *text, int count, int *fds)
{
	char control[CMSG_SPACE(4 * sizeof(int))] = "";
	struct iovec vector = { (char *)text, strlen(text) };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(head), fds, count * sizeof(int));
	check(sendmsg(fd, &message, 0) == (ssize_t)strlen(text), "%s", text);
}

/* At most so many bytes; what came with them, and who has sent them. */
static int takes(int fd, int size, const char *text, int *fds, pid_t *sender)
{
	char buffer[64] = "", control[256];
	struct iovec vector = { buffer, size };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	int count = 0;

	check(recvmsg(fd, &message, MSG_DONTWAIT) == (ssize_t)strlen(text) && !strcmp(buffer, text), "%s, not %s", buffer, text);
	for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
		if (head->cmsg_type == SCM_RIGHTS) {
			count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fds, CMSG_DATA(head), count * sizeof(int));
		} else if (sender)
			memcpy(sender, CMSG_DATA(head), sizeof(pid_t));
	}
	return count;
}

static off_t offset(int fd)
{
	return lseek(fd, 0, SEEK_CUR);
}

int main(void)
{
	int file, shared, event, pipes[2], null, directory, fds[4], status, one = 1, mine[2];
	pid_t child, sender = 0;
	char text[16] = "", byte;
	struct stat was, is;

	check(!chdir(getenv("VICTIM_DIR")));
	check((file = open("file", O_RDWR | O_CREAT | O_APPEND, 0600)) >= 0 && write(file, "0123456789", 10) == 10);
	check((shared = open("file", O_RDONLY)) >= 0 && lseek(shared, 3, SEEK_SET) == 3 && lseek(file, 5, SEEK_SET) == 5);
	check((event = eventfd(0, EFD_NONBLOCK)) >= 0 && !pipe(pipes) && (null = open("/dev/null", O_WRONLY)) >= 0);
	check((directory = open(".", O_RDONLY | O_DIRECTORY)) >= 0);
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	check(!socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) && !socketpair(AF_UNIX, SOCK_STREAM, 0, across));
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, mine) && !fstat(file, &was));
	check(!setsockopt(datagrams[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)));

	check(send(stream[0], "before ", 7, 0) == 7);
	gives(stream[0], "with", 2, (int[]){ file, event });
	check(send(stream[0], " after", 6, 0) == 6);
	gives(stream[0], " and", 1, (int[]){ pipes[0] });
	gives(packets[0], "packet", 4, (int[]){ file, shared, null, directory });
	gives(packets[0], "plain", 1, (int[]){ mine[1] });
	check(!close(file) && !close(null) && !close(directory));
	child = fork();
	check(child >= 0);
	if (!child) {
		close(pipes[0]); /* of which the parent keeps both */
		gives(datagrams[0], "of the child", 1, (int[]){ shared });
		gives(across[1], "across", 1, (int[]){ event });
		check(!close(across[1]) && !close(stream[1]) && !close(event));
		wait_told();
		check(read(shared, text, 2) == 2 && !memcmp(text, "34", 2));
		_exit(3);
	}
	check(!close(across[1]));
	while (recv(across[0], text, 6, MSG_PEEK | MSG_DONTWAIT) != 6)
		usleep(1000);
	ready();
	wait_told();

	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(takes(stream[1], 5, "befor", fds, NULL) == 0 && takes(stream[1], 2, "e ", fds, NULL) == 0);
	check(takes(stream[1], 3, "wit", fds, NULL) == 2 && offset(fds[0]) == 5);
	check(fcntl(fds[0], F_GETFL) == (O_RDWR | O_APPEND | 0100000) && !fstat(fds[0], &is) && is.st_ino == was.st_ino);
	check(eventfd_write(event, 7) == 0 && read(fds[1], &(uint64_t){ 0 }, 8) == 8 && read(event, text, 8) == -1 && errno == EAGAIN);
	file = fds[0];
	check(takes(stream[1], 30, "h after and", fds, NULL) == 1);
	check(write(pipes[1], "!", 1) == 1 && read(fds[0], &byte, 1) == 1 && byte == '!');
	check(takes(packets[1], 30, "packet", fds, NULL) == 4);
	check(lseek(fds[0], 8, SEEK_SET) == 8 && offset(file) == 8); /* one description, in two queues */
	check(offset(fds[1]) == 5 && offset(shared) == 5 && lseek(shared, 1, SEEK_SET) == 1 && offset(fds[1]) == 1);
	check(!fstat(fds[2], &is) && S_ISCHR(is.st_mode) && write(fds[2], "x", 1) == 1);
	check(!fstatat(fds[3], "file", &is, 0) && is.st_ino == was.st_ino);
	check(takes(packets[1], 30, "plain", fds, NULL) == 1 && send(fds[0], "s", 1, 0) == 1 && recv(mine[0], &byte, 1, 0) == 1);
	check(takes(datagrams[1], 30, "of the child", fds, &sender) == 1 && sender == child && offset(fds[0]) == 1);
	check(takes(across[0], 30, "across", fds, NULL) == 1 && !eventfd_write(fds[0], 3) && read(event, text, 8) == 8 && text[0] == 3);
	check(recv(across[0], text, 1, 0) == 0); /* its other end has been closed */
	pass();
}
