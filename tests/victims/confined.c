/* confined strict|filter|stacked|threads|synced|privileged: under seccomp, of each kind. What a filter forbids fails with an
   errno of its own, before the move and after it, and nothing else does. `strict` may read, write and sigreturn only: it
   counts, writes its count to the descriptor 5 now and then, and ends when it reads the word. */
#include "victim.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>

#define FORBID(number, error) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define NUMBER BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define REST BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define RESTORING /* what a restorer would want to do: nobody may notice that it was forbidden */ \
	FORBID(SYS_munmap, 91), FORBID(SYS_setresuid, 92), FORBID(SYS_capset, 93), FORBID(SYS_futex, 94), FORBID(SYS_close, 95), \
	FORBID(SYS_rt_sigreturn, 96), FORBID(SYS_mprotect, 97), FORBID(SYS_seccomp, 98)

static int step; /* what the threads are told to do */
static int answered;

static int install(struct sock_filter *code, int count, unsigned flags)
{
	struct sock_fprog program = { count, code };

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

#define INSTALL(flags, ...) \
	({ struct sock_filter code[] = { NUMBER, __VA_ARGS__, REST }; \
	   install(code, sizeof(code) / sizeof(*code), flags); })

static int error_of(long number)
{
	return syscall(number, -1L, -1L, -1L, -1L, -1L) == -1 ? errno : 0;
}

static const char *kind;
static int is(const char *name)
{
	return !strcmp(kind, name);
}

/* What thread 0 (the first) and thread 1 are to find. */
static void look(int thread)
{
	check(prctl(PR_GET_SECCOMP) == 2);
	if (is("filter") || is("stacked") || is("privileged"))
		check(error_of(SYS_umask) == 71 && error_of(SYS_munmap) == 91 && error_of(SYS_futex) == 94);
	if (is("stacked")) /* of two verdicts of the same kind, that of the newest filter counts */
		check(error_of(SYS_sync) == 82 && error_of(SYS_acct) == 83);
	if (is("threads")) {
		check(error_of(SYS_umask) == (thread ? 75 : 71));
		check(error_of(SYS_sync) == (thread ? 76 : 81));
	}
	if (is("synced"))
		check(error_of(SYS_sync) == 81 && (error_of(SYS_swapoff) == 77) == !!thread);
	check(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == !(is("privileged") || (is("threads") && thread)));
}

static void until(int *word, int wanted)
{
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < wanted)
		usleep(500);
}

static void *other(void *unused)
{
	(void)unused;
	if (is("threads"))
		check(!INSTALL(0, FORBID(SYS_umask, 75), FORBID(SYS_sync, 76)));
	if (is("synced")) {
		until(&step, 1);
		check(!INSTALL(0, FORBID(SYS_swapoff, 77)));
	}
	__atomic_add_fetch(&answered, 1, __ATOMIC_RELEASE);
	until(&step, 2);
	look(1);
	if (is("synced")) /* which only works while the first one's filter is the very one below its own */
		check(!INSTALL(SECCOMP_FILTER_FLAG_TSYNC, FORBID(SYS_acct, 78)));
	__atomic_add_fetch(&answered, 1, __ATOMIC_RELEASE);
	until(&step, 3);
	return NULL;
}

static void strictly(void)
{
	volatile unsigned long memory = 0;
	unsigned long count = 0;
	char word;

	ready();
	check(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
	for (;;) {
		for (int i = 0; i < 2000000; i++)
			count = scramble(count + 1), memory = scramble(memory + 1);
		if (memory != count)
			syscall(SYS_exit, 2);
		if (write(5, &count, sizeof(count)) != sizeof(count))
			syscall(SYS_exit, 3);
		if (read(6, &word, 1) == 1) {
			if (write(1, "pass\n", 5) != 5)
				syscall(SYS_exit, 4);
			syscall(SYS_exit, 0);
		}
	}
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char path[4096];

	check(argc == 2);
	kind = argv[1];
	if (is("strict")) {
		/* the word is a file that is empty until then */
		sprintf(path, "%s/count", getenv("VICTIM_DIR"));
		check(dup2(open(path, O_RDWR | O_CREAT | O_APPEND, 0600), 5) == 5);
		sprintf(path, "%s/word", getenv("VICTIM_DIR"));
		check(dup2(open(path, O_RDONLY | O_CREAT, 0600), 6) == 6);
		strictly();
	}
	if (is("threads") || is("synced"))
		check(!pthread_create(&thread, NULL, other, NULL));
	if (is("threads"))
		until(&answered, 1);
	if (!is("privileged"))
		check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (is("filter") || is("privileged"))
		check(!INSTALL(SECCOMP_FILTER_FLAG_LOG, FORBID(SYS_umask, 71), RESTORING));
	if (is("privileged")) { /* and then is root no more: its filter could not be installed again by itself */
		check(!syscall(SYS_setgroups, 0, NULL) && !syscall(SYS_setresgid, 4201, 4201, 4201));
		check(!syscall(SYS_setreuid, 4201, 4201) && getuid() == 4201);
	}
	if (is("stacked")) {
		check(!INSTALL(0, FORBID(SYS_umask, 71), FORBID(SYS_sync, 81), FORBID(SYS_acct, 83)));
		check(!INSTALL(SECCOMP_FILTER_FLAG_SPEC_ALLOW, FORBID(SYS_sync, 82), FORBID(SYS_munmap, 91), FORBID(SYS_futex, 94)));
	}
	if (is("threads"))
		check(!INSTALL(0, FORBID(SYS_umask, 71), FORBID(SYS_sync, 81)));
	if (is("synced")) {
		check(!INSTALL(SECCOMP_FILTER_FLAG_TSYNC, FORBID(SYS_sync, 81)));
		__atomic_store_n(&step, 1, __ATOMIC_RELEASE);
		until(&answered, 1);
	}
	look(0);
	ready();
	wait_told();
	look(0);
	if (is("threads") || is("synced")) {
		__atomic_store_n(&step, 2, __ATOMIC_RELEASE);
		until(&answered, 2);
		check((error_of(SYS_acct) == 78) == is("synced"));
	}
	pass();
}
