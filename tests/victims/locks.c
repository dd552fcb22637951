/* locks: POSIX, OFD and flock locks, that a child of its own tries in vain after the move, and then gets. */
#include "victim.h"
#include <sys/file.h>

static int made(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT, 0600);

	check(fd >= 0 && !ftruncate(fd, 100));
	return fd;
}

static void lock(int fd, int command, int type, long start, long length)
{
	struct flock wanted = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };

	check(!fcntl(fd, command, &wanted), "%d from %ld", type, start);
}

/* Who keeps a write lock from being taken: the kind of the lock, and where it begins. */
static struct flock held(const char *name, long start, long length)
{
	struct flock wanted = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
	int fd = open(name, O_RDWR);

	check(fd >= 0 && !fcntl(fd, F_OFD_GETLK, &wanted) && !close(fd));
	return wanted;
}

static void others(pid_t owner)
{
	int fd = open("flocked", O_RDWR);
	struct flock found;

	check(flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	check(!flock(fd = open("shared", O_RDWR), LOCK_SH | LOCK_NB) && !flock(fd, LOCK_UN));
	check(flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	found = held("posix", 0, 100);
	check(found.l_type == F_WRLCK && found.l_start == 10 && found.l_len == 20 && found.l_pid == owner, "%d", found.l_pid);
	found = held("posix", 30, 0);
	check(found.l_type == F_RDLCK && found.l_start == 50 && found.l_len == 0 && found.l_pid == owner);
	check(held("posix", 30, 20).l_type == F_UNLCK);
	found = held("ofd", 0, 100);
	check(found.l_type == F_WRLCK && found.l_start == 5 && found.l_len == 6 && found.l_pid == -1);
}

static void in_child(pid_t owner)
{
	pid_t child = fork();
	int status;

	check(child >= 0);
	if (!child) {
		others(owner);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child && !status, "%#x", status);
}

int main(void)
{
	int posix, ofd, flocked, shared;

	check(!chdir(getenv("VICTIM_DIR")));
	posix = made("posix");
	ofd = made("ofd");
	flocked = made("flocked");
	shared = made("shared");
	lock(posix, F_SETLK, F_WRLCK, 10, 20);
	lock(posix, F_SETLK, F_RDLCK, 50, 0);
	lock(ofd, F_OFD_SETLK, F_WRLCK, 5, 6);
	check(!flock(flocked, LOCK_EX) && !flock(shared, LOCK_SH));
	in_child(getpid());
	ready();
	wait_told();
	in_child(getpid());
	check(!close(open("posix", O_RDONLY)) && held("posix", 0, 0).l_type == F_UNLCK, "a POSIX lock goes with any close");
	lock(ofd, F_OFD_SETLK, F_UNLCK, 0, 0);
	check(held("ofd", 0, 0).l_type == F_UNLCK && !close(flocked));
	check(!flock(open("flocked", O_RDWR), LOCK_EX | LOCK_NB));
	pass();
}
