/* forbidden: what must fault does, with SIGSEGV or SIGBUS at the very address: PROT_NONE, read-only memory with contents, a
   guard page, what lies behind a file's end, code that is not executable; and contents show again once permitted. */
#include "victim.h"
#include <setjmp.h>

enum { P = 4096, GUARD_INSTALL = 102, GUARD_REMOVE = 103 };
static sigjmp_buf back;
static void *fault_at;
static int fault;

static void caught(int number, siginfo_t *info, void *context)
{
	(void)context;
	fault = number;
	fault_at = info->si_addr;
	siglongjmp(back, 1);
}

static void faults(int number, volatile char *at, int writes)
{
	fault = 0;
	if (!sigsetjmp(back, 1)) {
		if (writes)
			*at = 1;
		else
			(void)*at;
	}
	check(fault == number && (!number || fault_at == at), "signal %d at %p, not %d at %p", fault, fault_at, number, at);
}

static char *map(int pages, int prot)
{
	char *at = mmap(NULL, pages * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(at != MAP_FAILED);
	for (int i = 0; i < pages; i++)
		at[i * P] = 'a' + i;
	check(!mprotect(at, pages * P, prot));
	return at;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO };
	char *none = map(4, PROT_NONE), *readable = map(4, PROT_READ), *guarded = map(8, 3), *empty = map(4, 3), path[200];
	int guards = !madvise(guarded + 2 * P, 2 * P, GUARD_INSTALL);

	check(!sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL));
	sprintf(path, "%s/short", getenv("VICTIM_DIR"));
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	check(!ftruncate(fd, P + 1));
	char *file = mmap(NULL, 4 * P, 3, MAP_SHARED, fd, 0);
	check(file != MAP_FAILED && !madvise(empty, 4 * P, MADV_DONTNEED));
	ready();
	wait_told();
	for (int i = 0; i < 4; i++) {
		faults(SIGSEGV, none + i * P + 9, 0);
		faults(SIGSEGV, readable + i * P + 9, 1);
		faults(0, readable + i * P + 9, 0);
		check(readable[i * P] == 'a' + i && !empty[i * P]);
		faults(i < 2 ? 0 : SIGBUS, file + i * P + 9, i % 2);
	}
	for (int i = 0; i < 8; i++) {
		int guard = guards && i / 2 == 1;

		faults(guard ? SIGSEGV : 0, guarded + i * P + 9, 0);
		check(guard || guarded[i * P] == 'a' + i);
	}
	check(!mprotect(none, 4 * P, PROT_READ) && !mprotect(readable, 4 * P, 3));
	for (int i = 0; i < 4; i++)
		check(none[i * P] == 'a' + i);
	faults(0, readable + 9, 1);
	check(!guards || !madvise(guarded + 2 * P, 2 * P, GUARD_REMOVE));
	faults(0, guarded + 2 * P + 9, 1);
	pass();
}
