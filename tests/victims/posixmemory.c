/* posixmemory: memory of shm_open(3) that a process has for writing, its child for reading only, and a semaphore of
   sem_open(3) by which they take turns: each is mapped and not open any more. */
#include "victim.h"
#include <semaphore.h>
#include <sys/stat.h>

enum { P = 4096, PAGES = 40 };
static char name[64], semaphore[64];

static char *map(int flags, int protection)
{
	int fd = shm_open(name, flags, 0640);
	char *at;

	check(fd >= 0 && (!(flags & O_CREAT) || (!ftruncate(fd, PAGES * P) && !fchown(fd, 4242, 4343))));
	at = mmap(NULL, PAGES * P, protection, MAP_SHARED, fd, 0);
	check(at != MAP_FAILED && !close(fd));
	return at;
}

__attribute__((noreturn)) static void child(sem_t *turn, int arrived)
{
	const char *at = map(O_RDONLY, PROT_READ);

	check(write(arrived, ".", 1) == 1);
	while (sem_wait(turn))
		check(errno == EINTR);
	for (int page = 0; page < PAGES; page++)
		check(at[page * P + 5] == (char)(page ^ 0x55) && !strcmp(at + page * P + 100, "after"), "%d", page);
	_exit(44);
}

int main(void)
{
	int arrivals[2], status, fd;
	struct stat found;
	sem_t *turn;
	char *at, dot;
	pid_t pid;

	sprintf(name, "/victim-%d", getpid());
	sprintf(semaphore, "/turn-%d", getpid());
	at = map(O_RDWR | O_CREAT | O_EXCL, PROT_READ | PROT_WRITE);
	turn = sem_open(semaphore, O_CREAT | O_EXCL, 0600, 0);
	check(turn != SEM_FAILED && !pipe(arrivals));
	for (int page = 0; page < PAGES; page++)
		at[page * P + 5] = page ^ 0x55;
	pid = fork();
	check(pid >= 0);
	if (!pid) {
		check(!munmap(at, PAGES * P));
		child(turn, arrivals[1]);
	}
	check(read(arrivals[0], &dot, 1) == 1);
	ready();
	wait_told();
	for (int page = 0; page < PAGES; page++)
		strcpy(at + page * P + 100, "after");
	check(!sem_post(turn) && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 44, "%x", status);
	fd = shm_open(name, O_RDWR, 0);
	check(fd >= 0 && !fstat(fd, &found), "%s is not there", name);
	check((found.st_mode & 07777) == 0640 && found.st_uid == 4242 && found.st_gid == 4343 && found.st_size == PAGES * P);
	check(pread(fd, &dot, 1, 5) == 1 && dot == 0x55);
	check(!shm_unlink(name) && !sem_unlink(semaphore));
	pass();
}
