/* named: shared memory with names (shm_open(3)) of a process and its child: mapped and open, mapped and closed, open and
   not mapped, and a semaphore (sem_open(3)); after the move the names lead to what the mappings show. */
#include "victim.h"
#include <semaphore.h>

enum { OPENED, CLOSED, UNMAPPED, GOING, MEMORIES, PAGES = 5, SIZE = PAGES * 4096 };
static char names[MEMORIES][64];
static unsigned char *seen[MEMORIES];
static int fds[MEMORIES];

static unsigned char *view(int fd)
{
	unsigned char *found = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	check(found != MAP_FAILED);
	return found;
}

static void fill(unsigned char *memory, int seed)
{
	for (int i = 0; i < SIZE; i += 64)
		memory[i] = scramble(seed * SIZE + i);
}

static void holds(unsigned char *memory, int seed)
{
	for (int i = 0; i < SIZE; i += 64)
		check(memory[i] == (unsigned char)scramble(seed * SIZE + i), "%d at %d", seed, i);
}

int main(void)
{
	char semaphore[64];
	struct stat found;
	sem_t *gate;
	pid_t child;
	int status, fd;

	snprintf(semaphore, sizeof(semaphore), "/victim-gate-%d", getpid());
	check((gate = sem_open(semaphore, O_CREAT | O_EXCL, 0600, 1)) != SEM_FAILED);
	for (int i = 0; i < MEMORIES; i++) {
		snprintf(names[i], sizeof(names[i]), "/victim-%d-%d", getpid(), i);
		check((fds[i] = shm_open(names[i], O_CREAT | O_EXCL | O_RDWR, 0600)) >= 0 && !ftruncate(fds[i], SIZE));
		if (i != UNMAPPED)
			fill(seen[i] = view(fds[i]), i);
	}
	check(!fchmod(fds[OPENED], 0640) && !fchown(fds[OPENED], 1000, 1001));
	check(!close(fds[CLOSED]) && !close(fds[GOING]));
	check(pwrite(fds[UNMAPPED], "unmapped", 8, 5000) == 8 && lseek(fds[UNMAPPED], 5000, SEEK_SET) == 5000);
	child = fork();
	check(child >= 0);
	if (!child) {
		check(!munmap(seen[OPENED], SIZE) && (fd = shm_open(names[OPENED], O_RDWR, 0)) >= 0);
		seen[OPENED] = view(fd);
		check(!close(fd) && !sem_wait(gate));
		seen[CLOSED][1] = 11;
		wait_told();
		holds(seen[OPENED], OPENED);
		check(!sem_post(gate));
		while (seen[CLOSED][2] != 22) /* of the parent */
			usleep(1000);
		seen[CLOSED][3] = 33;
		_exit(3);
	}
	while (*(volatile unsigned char *)&seen[CLOSED][1] != 11)
		usleep(1000);
	check(!munmap(seen[GOING], SIZE) && !shm_unlink(names[GOING]));
	ready();
	wait_told();

	check(!sem_wait(gate) && !sem_post(gate));
	for (int i = 0; i < UNMAPPED; i++) {
		unsigned char *again;

		holds(seen[i], i);
		check((fd = shm_open(names[i], O_RDWR, 0)) >= 0, "%s", names[i]);
		again = view(fd);
		again[7] = 70 + i;
		check(seen[i][7] == 70 + i && !fstat(fd, &found) && found.st_size == SIZE && found.st_nlink == 1);
		check((found.st_mode & 0777) == (i == OPENED ? 0640 : 0600) && found.st_uid == (i == OPENED ? 1000 : 0));
	}
	*(volatile unsigned char *)&seen[CLOSED][2] = 22;
	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3, "%x", status);
	check(seen[CLOSED][3] == 33);
	char text[8];
	check(read(fds[UNMAPPED], text, 8) == 8 && !memcmp(text, "unmapped", 8) && fcntl(fds[UNMAPPED], F_GETFD) == FD_CLOEXEC);
	check((fd = shm_open(names[UNMAPPED], O_RDWR, 0)) >= 0 && pwrite(fd, "again", 5, 0) == 5);
	check(pread(fds[UNMAPPED], text, 5, 0) == 5 && !memcmp(text, "again", 5));
	check(sem_open(semaphore, 0) != SEM_FAILED && !sem_unlink(semaphore));
	for (int i = 0; i < GOING; i++)
		check(!shm_unlink(names[i]));
	check(shm_open(names[GOING], O_RDWR, 0) == -1 && errno == ENOENT);
	pass();
}
