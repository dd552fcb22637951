/* forks: MADV_WIPEONFORK, MADV_DONTFORK, MAP_DROPPABLE, mlock and NORESERVE areas; after the move a child sees zeros, nothing
   at all, and so on. Threads and children can be made, waited for, and signal their end. */
#include "victim.h"

enum { P = 4096 };
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif

static char *map(int flags, int advice)
{
	char *at = mmap(NULL, 4 * P, 3, flags | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED && flags == MAP_DROPPABLE)
		return NULL;
	check(at != MAP_FAILED && (!advice || !madvise(at, 4 * P, advice)));
	memset(at, 'x', 4 * P);
	return at;
}

static void *thread(void *at)
{
	*(char *)at = 'y';
	return NULL;
}

int main(void)
{
	char *plain = map(MAP_PRIVATE, 0), *wiped = map(MAP_PRIVATE, MADV_WIPEONFORK), *kept = map(MAP_PRIVATE, MADV_DONTFORK);
	char *together = map(MAP_SHARED, 0), *droppable = map(MAP_DROPPABLE, 0), *locked = map(MAP_PRIVATE, 0);
	unsigned char in;
	int status;
	pthread_t other;

	map(MAP_PRIVATE | MAP_NORESERVE, MADV_HUGEPAGE);
	map(MAP_PRIVATE, MADV_NOHUGEPAGE);
	map(MAP_PRIVATE, MADV_DONTDUMP);
	map(MAP_PRIVATE, MADV_SEQUENTIAL);
	map(MAP_PRIVATE, MADV_RANDOM);
	map(MAP_PRIVATE, MADV_MERGEABLE);
	check(!mlock(locked, 2 * P) && !mlock2(locked + 2 * P, 2 * P, MLOCK_ONFAULT));
	ready();
	wait_told();
	check(*plain == 'x' && *wiped == 'x' && wiped[3 * P] == 'x' && *kept == 'x' && *together == 'x' && *locked == 'x');
	check(!droppable || *droppable == 'x' || !*droppable);
	check(!pthread_create(&other, NULL, thread, plain + 7) && !pthread_join(other, NULL) && plain[7] == 'y');
	pid_t child = fork();

	if (!child) {
		int bad = *plain != 'x' || *wiped || wiped[3 * P] || mincore(kept, P, &in) != -1 || errno != ENOMEM;

		*together = 'c';
		if (droppable)
			bad |= *droppable != 0; /* wiped as well (madvise(2), MADV_WIPEONFORK; mmap(2), MAP_DROPPABLE) */
		_exit(bad ? 3 : 42);
	}
	check(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42, "%#x", status);
	check(*together == 'c' && !munlock(locked, 4 * P));
	pass();
}
