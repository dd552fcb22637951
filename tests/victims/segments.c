/* segments: System V shared memory that a process and its child are attached to, each in its own places: one segment with
   a key and another owner, for writing and for reading only; one that is to go with the last of them; one of which a part
   is unmapped. The child writes to the first all the time. */
#include "victim.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { P = 4096, PAGES = 64, OWNER = 4242 };
static key_t key;
static int ids[3];
static char *own[3];

static char expected(int segment, int page)
{
	return 'a' + (segment * 7 + page) % 26;
}

static struct shmid_ds about(int segment)
{
	struct shmid_ds found;

	check(!shmctl(ids[segment], IPC_STAT, &found));
	return found;
}

static void intact(int segment, const char *at, int from, int to)
{
	for (int page = from; page < to; page++)
		check(at[page * P + 1] == expected(segment, page), "segment %d, page %d: %d", segment, page, at[page * P + 1]);
}

static void look(void)
{
	struct shmid_ds found = about(0);

	check(shmget(key, PAGES * P, 0) == ids[0]);
	check(found.shm_perm.__key == key && found.shm_perm.mode == 0640 && found.shm_segsz == PAGES * P);
	check(found.shm_perm.uid == OWNER && found.shm_perm.gid == OWNER + 1);
	check(found.shm_perm.cuid == geteuid() && found.shm_perm.cgid == getegid(), "%d", found.shm_perm.cuid);
	check(found.shm_nattch == 3, "%ld", (long)found.shm_nattch);
	found = about(1);
	check(found.shm_perm.__key == 0 && found.shm_perm.mode & SHM_DEST && found.shm_nattch == 1);
	check(found.shm_segsz == 3 * P - 100);
	found = about(2);
	check(found.shm_nattch == 2 && !(found.shm_perm.mode & SHM_DEST), "%ld", (long)found.shm_nattch);
	intact(0, own[0], 0, PAGES);
	intact(1, own[1], 0, 2);
	intact(2, own[2], 0, 3);
	intact(2, own[2], 5, PAGES);
}

__attribute__((noreturn)) static void child(int arrived)
{
	char *writable = shmat(ids[0], NULL, 0), *readable = shmat(ids[0], NULL, SHM_RDONLY);
	uint64_t *count = (uint64_t *)(writable + 2048);

	check(writable != (void *)-1 && readable != (void *)-1);
	for (int i = 0; i < 3; i++)
		check(!shmdt(own[i]) || i == 2); // of that a part is gone: two are left
	check(write(arrived, ".", 1) == 1);
	while (!told()) {
		uint64_t was = count[0];

		for (int page = 0; page < PAGES; page++)
			*(uint64_t *)(writable + page * P + 2048) = was + 1;
		check(*(uint64_t *)(readable + 2048) == was + 1);
		usleep(200);
	}
	check(mprotect(readable, P, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
	intact(0, readable, 0, PAGES);
	strcpy(writable + 3000, "from the child");
	_exit(33);
}

int main(void)
{
	int status, arrivals[2];
	struct shmid_ds settings;
	char dot;
	pid_t pid;

	key = 0x10000000 + getpid();
	ids[0] = shmget(key, PAGES * P, IPC_CREAT | IPC_EXCL | 0600);
	ids[1] = shmget(IPC_PRIVATE, 3 * P - 100, IPC_CREAT | 0600);
	ids[2] = shmget(IPC_PRIVATE, PAGES * P, IPC_CREAT | 0606);
	check(ids[0] >= 0 && ids[1] >= 0 && ids[2] >= 0 && !pipe(arrivals));
	for (int i = 0; i < 3; i++)
		check((own[i] = shmat(ids[i], NULL, 0)) != (void *)-1);
	settings = about(0);
	settings.shm_perm.uid = OWNER;
	settings.shm_perm.gid = OWNER + 1;
	settings.shm_perm.mode = 0640;
	check(!shmctl(ids[0], IPC_SET, &settings));
	for (int page = 0; page < PAGES; page++)
		own[0][page * P + 1] = expected(0, page), own[2][page * P + 1] = expected(2, page);
	for (int page = 0; page < 2; page++)
		own[1][page * P + 1] = expected(1, page);
	check(!munmap(own[2] + 3 * P, 2 * P) && !shmctl(ids[1], IPC_RMID, NULL));
	pid = fork();
	check(pid >= 0);
	if (!pid)
		child(arrivals[1]);
	check(read(arrivals[0], &dot, 1) == 1);
	look();
	ready();
	wait_told();
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 33, "%x", status);
	check(!strcmp(own[0] + 3000, "from the child") && *(uint64_t *)(own[0] + 2048) > 0);
	for (int page = 0; page < PAGES; page++)
		check(*(uint64_t *)(own[0] + page * P + 2048) == *(uint64_t *)(own[0] + 2048), "%d", page);
	intact(0, own[0], 0, PAGES);
	intact(1, own[1], 0, 2);
	intact(2, own[2], 5, PAGES);
	check(!shmdt(own[1]) && shmctl(ids[1], IPC_STAT, &settings) == -1 && (errno == EINVAL || errno == EIDRM));
	check(!shmctl(ids[0], IPC_RMID, NULL) && !shmctl(ids[2], IPC_RMID, NULL));
	pass();
}
