/* handles: files of every kind that has a path or had one: offsets, flags, duplicates, deleted files, a directory at its
   end, devices, memfds, working directory and umask. It reads and writes all of them after the move. */
#include "victim.h"
#include <dirent.h>
#include <sys/sysmacros.h>

enum { MEGABYTE = 1 << 20 };

static int made(const char *name, int flags, const char *text)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0640), again;

	check(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s", name);
	again = open(name, flags);
	check(again >= 0, "%s", name);
	return again;
}

static void reads(int fd, const char *text)
{
	char buffer[64] = "";

	check(read(fd, buffer, strlen(text)) == (ssize_t)strlen(text) && !strcmp(buffer, text), "fd %d: %s", fd, buffer);
}

int main(void)
{
	static const char *const devices[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom" };
	static const int minors[] = { 3, 5, 7, 8, 9 };
	int plain, twin, append, closing, high, path, deleted, deleted_twin, temporary, memfd, sealed, device[5], seen = 0;
	char *shared, *block = malloc(MEGABYTE), *back = malloc(MEGABYTE), first[256], cwd[4096], now[4096];
	struct dirent *entry;
	struct stat s;
	DIR *stream;

	check(!chdir(getenv("VICTIM_DIR")) && !mkdir("tree", 0700) && !chdir("tree") && getcwd(cwd, sizeof(cwd)));
	umask(027);
	/* the first one, so that the test knows its number */
	temporary = open(".", O_TMPFILE | O_RDWR, 0600);
	check(temporary == 3 && write(temporary, "temporary", 9) == 9);
	plain = made("plain", O_RDWR | O_NOATIME, "0123456789");
	check(lseek(plain, 4, SEEK_SET) == 4 && (twin = dup(plain)) >= 0);
	append = made("append", O_WRONLY | O_APPEND | O_NONBLOCK, "one,");
	closing = made("closing", O_RDONLY | O_CLOEXEC | O_SYNC, "closing");
	check((high = fcntl(closing, F_DUPFD, 700)) == 700 && (path = open("plain", O_PATH | O_CLOEXEC)) >= 0);
	for (int i = 0; i < 40; i++) {
		char name[16];

		sprintf(name, "entry-%02d", i);
		check(!close(made(name, O_RDONLY, "")));
	}
	for (int i = 0; i < MEGABYTE; i++)
		block[i] = scramble(i);
	deleted = open("deleted", O_RDWR | O_CREAT, 0600);
	check(deleted >= 0 && pwrite(deleted, block, MEGABYTE, MEGABYTE) == MEGABYTE && lseek(deleted, 1234567, SEEK_SET));
	deleted_twin = open("deleted", O_RDONLY);
	check(deleted_twin >= 0 && lseek(deleted_twin, MEGABYTE, SEEK_SET) == MEGABYTE && !unlink("deleted"));
	/* libc reads ahead, all of it: the directory is at its end before the first name is looked at */
	check((stream = opendir(".")) && (entry = readdir(stream)));
	strcpy(first, entry->d_name);
	for (int i = 0; i < 5; i++)
		check((device[i] = open(devices[i], i % 2 ? O_RDWR : O_RDWR | O_CLOEXEC)) >= 0, "%s", devices[i]);
	memfd = memfd_create("shared memory", MFD_CLOEXEC);
	check(memfd >= 0 && !ftruncate(memfd, 3 * MEGABYTE) && lseek(memfd, 99, SEEK_SET) == 99);
	shared = mmap(NULL, MEGABYTE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, MEGABYTE);
	check(shared != MAP_FAILED && pwrite(memfd, "unmapped part", 13, 0) == 13);
	memcpy(shared, block, MEGABYTE);
	sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
	check(sealed >= 0 && write(sealed, "sealed", 6) == 6);
	check(!fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	ready();
	wait_told();

	reads(twin, "45");
	reads(plain, "6789"); /* one offset for both */
	check(write(append, "two", 3) == 3 && fcntl(append, F_GETFL) & O_NONBLOCK);
	append = open("append", O_RDONLY);
	reads(append, "one,two");
	check(fcntl(closing, F_GETFD) == FD_CLOEXEC && !fcntl(high, F_GETFD) && fcntl(closing, F_GETFL) & O_SYNC);
	reads(closing, "clo");
	reads(high, "sing");
	check(fcntl(path, F_GETFL) & O_PATH && read(path, back, 1) == -1 && errno == EBADF && !fstat(path, &s));
	while ((entry = readdir(stream))) {
		check(strcmp(entry->d_name, first));
		seen += !strncmp(entry->d_name, "entry-", 6);
	}
	check(seen + !strncmp(first, "entry-", 6) == 40, "%d", seen);
	rewinddir(stream);
	for (seen = 0; (entry = readdir(stream));)
		seen += !strncmp(entry->d_name, "entry-", 6);
	check(seen == 40, "%d after the rewind", seen);

	check(lseek(deleted, 0, SEEK_CUR) == 1234567 && !fstat(deleted, &s) && !s.st_nlink && s.st_size == 2 * MEGABYTE);
	check(pread(deleted, back, MEGABYTE, MEGABYTE) == MEGABYTE && !memcmp(back, block, MEGABYTE));
	check(pread(deleted, back, 4096, 0) == 4096 && !back[0] && !memcmp(back, back + 1, 4095), "the hole");
	check(pwrite(deleted, "X", 1, MEGABYTE) == 1 && read(deleted_twin, back, 2) == 2 && back[0] == 'X');
	check(access("deleted", F_OK) == -1 && write(deleted_twin, "x", 1) == -1 && errno == EBADF);
	check(pread(temporary, back, 9, 0) == 9 && !memcmp(back, "temporary", 9) && lseek(temporary, 0, SEEK_CUR) == 9);
	for (int i = 0; i < 5; i++) {
		check(!fstat(device[i], &s) && S_ISCHR(s.st_mode) && s.st_rdev == makedev(1, minors[i]), "%s", devices[i]);
		check(fcntl(device[i], F_GETFD) == (i % 2 ? 0 : FD_CLOEXEC), "%s", devices[i]);
	}
	check(read(device[0], back, 8) == 0 && read(device[1], back, 8) == 8 && !memcmp(back, "\0\0\0\0\0\0\0", 8));
	check(write(device[2], "x", 1) == -1 && errno == ENOSPC);
	check(read(device[3], back, 8) == 8 && read(device[4], back, 8) == 8);
	check(!memcmp(shared, block, MEGABYTE) && pread(memfd, back, 13, 0) == 13 && !memcmp(back, "unmapped part", 13));
	shared[5] = 'M';
	check(pread(memfd, back, 1, MEGABYTE + 5) == 1 && back[0] == 'M' && lseek(memfd, 0, SEEK_CUR) == 99);
	check(write(sealed, "x", 1) == -1 && errno == EPERM);
	check(fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	check(getcwd(now, sizeof(now)) && !strcmp(now, cwd), "%s", now);
	check(umask(0) == 027);
	pass();
}
