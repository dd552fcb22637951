/* opened: regular files with offsets and flags, O_APPEND, descriptors that share an offset by dup and at high numbers,
   close-on-exec, a deleted file with contents, a directory half read, devices, locks of all three kinds; cwd and umask. */
#include "victim.h"
#include <dirent.h>
#include <sys/file.h>

static char path[300];

static const char *in(const char *name)
{
	sprintf(path, "%s/%s", getenv("VICTIM_DIR"), name);
	return path;
}

static void lock(int fd, int command, short type, long start, int works)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 10 };

	check(fcntl(fd, command, &lock) == (works ? 0 : -1), "%d %ld", command, start);
}

static int tries(int fd, int command)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10 };
	int status;
	pid_t child = fork();

	if (!child)
		_exit(fcntl(fd, command, &lock) ? 1 : 0);
	check(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
	return WEXITSTATUS(status) == 0;
}

int main(void)
{
	char text[64], name[300];
	int file = open(in("file"), O_RDWR | O_CREAT, 0640), again, high, first;
	int append = open(in("appended"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	int gone = open(in("gone"), O_RDWR | O_CREAT, 0600), dir, null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY);
	int full = open("/dev/full", O_WRONLY), random = open("/dev/urandom", O_RDONLY | O_NONBLOCK), flocked, ofd, posix;

	check(file > 2 && append > 2 && gone > 2 && null > 2 && zero > 2 && full > 2 && random > 2);
	check(write(file, "0123456789abcdef", 16) == 16 && lseek(file, 5, SEEK_SET) == 5);
	again = dup(file);
	high = fcntl(file, F_DUPFD_CLOEXEC, 900);
	check(high == 900 && write(append, "one", 3) == 3 && lseek(append, 0, SEEK_SET) == 0);
	check(write(gone, "still there", 11) == 11 && !unlink(in("gone")) && lseek(gone, 6, SEEK_SET) == 6);
	mkdir(in("directory"), 0755);
	for (int i = 0; i < 5; i++) {
		sprintf(name, "directory/%d", i);
		close(open(in(name), O_CREAT, 0600));
	}
	dir = open(in("directory"), O_RDONLY | O_DIRECTORY);
	check(dir > 0 && !chdir(in("directory")) && umask(027) != 077);
	flocked = open(in("flocked"), O_RDWR | O_CREAT, 0600);
	ofd = open(in("ofd"), O_RDWR | O_CREAT, 0600);
	posix = open(in("posix"), O_RDWR | O_CREAT, 0600);
	check(!flock(flocked, LOCK_EX));
	lock(ofd, F_OFD_SETLK, F_WRLCK, 0, 1);
	lock(posix, F_SETLK, F_WRLCK, 0, 1);
	lock(posix, F_SETLK, F_RDLCK, 100, 1);
	ready();
	wait_told();
	check(read(again, text, 3) == 3 && !memcmp(text, "567", 3) && lseek(file, 0, SEEK_CUR) == 8);
	check(read(high, text, 2) == 2 && !memcmp(text, "89", 2) && lseek(file, 0, SEEK_CUR) == 10);
	check(fcntl(high, F_GETFD) == FD_CLOEXEC && !fcntl(again, F_GETFD) && fcntl(append, F_GETFD) == FD_CLOEXEC);
	check(write(append, "two", 3) == 3 && lseek(append, 0, SEEK_CUR) == 6);
	check((fcntl(append, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY) && fcntl(random, F_GETFL) & O_NONBLOCK);
	check(read(gone, text, 64) == 5 && !memcmp(text, "there", 5) && pread(gone, text, 64, 0) == 11);
	struct stat status;
	check(!fstat(gone, &status) && !status.st_nlink && access(in("gone"), F_OK));
	check(write(null, "x", 1) == 1 && read(zero, text, 64) == 64 && !text[63] && write(full, "x", 1) == -1 && errno == ENOSPC);
	check(read(random, text, 64) == 64 && !openat(dir, "nothing", O_RDONLY | O_CREAT, 0666) == 0);
	check(!stat("nothing", &status) && (status.st_mode & 0777) == 0640, "%o", status.st_mode);
	check((first = open(in("flocked"), O_RDWR)) > 0 && flock(first, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	check((first = open(in("ofd"), O_RDWR)) > 0);
	lock(first, F_OFD_SETLK, F_WRLCK, 5, 0);
	lock(ofd, F_OFD_SETLK, F_WRLCK, 5, 1);
	check(!tries(posix, F_SETLK));
	lock(posix, F_SETLK, F_UNLCK, 0, 1);
	check(tries(posix, F_SETLK));
	pass();
}
