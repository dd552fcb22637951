/* foreign PLAN: becomes a process with the vDSO of another kernel, and calls its functions. It uses none of its C
   library's that would call the vDSO by themselves. The plan, line by line:
     move NAME ADDRESS               the kernel's own [vvar], [vvar_vclock] or [vdso] to there
     drop NAME                       or away
     map ADDRESS SIZE PROT FILE      memory with the contents of a file, or with none: -
     call NAME ADDRESS               a function of the foreign vDSO
     forbid                          no system call that such a function stands for succeeds from here on
     quiet LABEL NAME ADDRESS        which of its uses make none: a line "LABEL NAME bits"
     time NAME ADDRESS               only how long it takes: a line "NAME nanoseconds" */
#include "victim.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>

enum { FORBIDDEN = ENOTNAM }; /* an error that none of the calls has */
static uint64_t *random_state;
static uint32_t random_size = 144;
static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_MONOTONIC_RAW,
	CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_THREAD_CPUTIME_ID };
enum { CLOCKS = sizeof(clocks) / sizeof(*clocks) };

static long area_of(const char *name, long *size)
{
	char line[512], *rest;
	FILE *maps = fopen("/proc/self/maps", "r");
	long start = 0, end;

	check(maps);
	while (fgets(line, sizeof(line), maps))
		if ((rest = strstr(line, name)) && rest[strlen(name)] == '\n') {
			check(sscanf(line, "%lx-%lx", &start, &end) == 2);
			*size = end - start;
			break;
		}
	fclose(maps);
	check(start, "no %s", name);
	return start;
}

static void put(long address, long size, int prot, const char *path)
{
	void *at = mmap((void *)address, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			-1, 0);

	check(at == (void *)address, "%lx", address);
	if (strcmp(path, "-")) {
		int fd = open(path, O_RDONLY);

		check(fd >= 0 && read(fd, at, size) > 0);
		close(fd);
	}
	check(!mprotect(at, size, prot));
}

static int64_t now(clockid_t clock)
{
	struct timespec t;

	check(!syscall(SYS_clock_gettime, clock, &t));
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void try_clock(long (*call)(clockid_t, struct timespec *))
{
	for (int i = 0; i < CLOCKS; i++) {
		int64_t coarse = clocks[i] == CLOCK_REALTIME_COARSE || clocks[i] == CLOCK_MONOTONIC_COARSE ? 20000000 : 0;
		int64_t before = now(clocks[i]), seen, after;
		struct timespec t;

		check(!call(clocks[i], &t));
		after = now(clocks[i]);
		seen = t.tv_sec * 1000000000LL + t.tv_nsec;
		check(before - coarse <= seen && seen <= after, "clock %d: %ld <= %ld <= %ld", clocks[i], before, seen, after);
	}
	check(call(4711, &(struct timespec){ 0, 0 }) == -EINVAL);
}

static void try_getrandom(ssize_t (*call)(void *, size_t, unsigned, void *, size_t))
{
	struct { uint32_t size, prot, flags, reserved[13]; } params = { 144, PROT_READ | PROT_WRITE, 0x28, { 0 } };
	uint64_t drawn[2] = { 0, 0 }, *state = NULL;
	ssize_t answer = call(NULL, 0, 0, &params, ~0UL);

	check(!answer || answer == -ENOSYS, "%zd", answer);
	state = mmap(NULL, 4096, params.prot, answer ? MAP_PRIVATE | MAP_ANONYMOUS : (int)params.flags, -1, 0);
	check(state != MAP_FAILED);
	for (int i = 0; i < 2; i++)
		check(call(drawn + i, 8, 0, state, params.size) == 8);
	check(drawn[0] && drawn[1] && drawn[0] != drawn[1]);
	for (int i = 0; i < 18; i++)
		check(!answer || !state[i], "the stub has used a state");
	random_state = state;
	random_size = params.size;
}

static void forbid(void)
{
	static const int calls[] = { SYS_clock_gettime, SYS_gettimeofday, SYS_time, SYS_clock_getres, SYS_getcpu,
		SYS_getrandom };
	enum { COUNT = sizeof(calls) / sizeof(*calls) };
	struct sock_filter code[COUNT + 3] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
	struct sock_fprog program = { COUNT + 3, code };

	for (int i = 0; i < COUNT; i++)
		code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], COUNT - i, 0);
	code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | FORBIDDEN);
	check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	check(syscall(SYS_getcpu, NULL, NULL, NULL) == -1 && errno == FORBIDDEN);
}

static unsigned quiet(const char *name, void *function)
{
	unsigned bits = 0, cpu, node;
	struct timespec t;
	struct timeval tv;
	uint64_t drawn;

	if (!strcmp(name, "clock_gettime") || !strcmp(name, "clock_getres"))
		for (int i = 0; i < CLOCKS; i++)
			bits |= (((long (*)(clockid_t, struct timespec *))function)(clocks[i], &t) != -FORBIDDEN) << i;
	else if (!strcmp(name, "gettimeofday"))
		bits = ((long (*)(struct timeval *, void *))function)(&tv, NULL) != -FORBIDDEN;
	else if (!strcmp(name, "time"))
		bits = ((time_t (*)(time_t *))function)(NULL) != -FORBIDDEN;
	else if (!strcmp(name, "getcpu"))
		bits = ((long (*)(unsigned *, unsigned *, void *))function)(&cpu, &node, NULL) != -FORBIDDEN;
	else if (!strcmp(name, "getrandom"))
		bits = ((ssize_t (*)(void *, size_t, unsigned, void *, size_t))function)(&drawn, 8, 0, random_state,
											 random_size) == 8;
	else
		check(0, "nobody knows %s", name);
	return bits;
}

static void try_function(const char *name, void *function)
{
	unsigned cpu = ~0U, node = ~0U, lock = 5;
	struct timespec resolution;
	struct timeval t;
	uint64_t pending = 7;
	time_t stored = 0, told;

	if (!strcmp(name, "clock_gettime"))
		try_clock(function);
	else if (!strcmp(name, "gettimeofday")) {
		int64_t before = now(CLOCK_REALTIME) / 1000;

		check(!((long (*)(struct timeval *, void *))function)(&t, NULL));
		check(before <= t.tv_sec * 1000000 + t.tv_usec && t.tv_sec * 1000000 + t.tv_usec <= now(CLOCK_REALTIME) / 1000);
	} else if (!strcmp(name, "time")) {
		told = ((time_t (*)(time_t *))function)(&stored);
		check(told == stored && told - now(CLOCK_REALTIME) / 1000000000 >= -1, "%ld %ld", told, stored);
	} else if (!strcmp(name, "clock_getres"))
		check(!((long (*)(clockid_t, struct timespec *))function)(CLOCK_MONOTONIC, &resolution) && resolution.tv_nsec == 1);
	else if (!strcmp(name, "getcpu"))
		check(!((long (*)(unsigned *, unsigned *, void *))function)(&cpu, &node, NULL) && cpu < 4096 && node < 1024);
	else if (!strcmp(name, "getrandom"))
		try_getrandom(function);
	else if (!strcmp(name, "sgx_enter_enclave"))
		check(((long (*)(void))function)() == -ENOSYS);
	else if (!strncmp(name, "futex_robust_list", 17)) {
		unsigned (*call)(unsigned *, unsigned, void *) = function;

		check(call(&lock, 6, &pending) == 5 && lock == 5 && pending == 7);
		check(call(&lock, 5, &pending) == 5 && !lock && !(uint32_t)pending);
	} else
		check(0, "nobody knows %s", name);
}

static void measure(const char *name, long (*call)(clockid_t, struct timespec *))
{
	enum { ROUNDS = 50, CALLS = 20000 };
	double best = 1e9;
	struct timespec t;

	for (int i = 0; i < ROUNDS; i++) {
		int64_t begun = now(CLOCK_MONOTONIC);

		for (int j = 0; j < CALLS; j++)
			call(CLOCK_MONOTONIC, &t);
		begun = now(CLOCK_MONOTONIC) - begun;
		best = begun < best ? begun : best;
	}
	printf("%s %.2f\n", name, best / CALLS);
}

int main(int argc, char **argv)
{
	char line[512], name[64], label[64], path[256];
	long address, size;
	int prot;
	FILE *plan = fopen(argv[argc - 1], "r");

	check(plan);
	while (fgets(line, sizeof(line), plan)) {
		if (sscanf(line, "move %63s %lx", name, &address) == 2) {
			long from = area_of(name, &size);

			check(mremap((void *)from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, address) == (void *)address);
		} else if (sscanf(line, "drop %63s", name) == 1) {
			address = area_of(name, &size);
			check(!munmap((void *)address, size));
		} else if (sscanf(line, "map %lx %lx %d %255s", &address, &size, &prot, path) == 4)
			put(address, size, prot, path);
		else if (sscanf(line, "call %63s %lx", name, &address) == 2)
			try_function(name, (void *)address);
		else if (!strcmp(line, "forbid\n"))
			forbid();
		else if (sscanf(line, "quiet %63s %63s %lx", label, name, &address) == 3)
			printf("%s %s %x\n", label, name, quiet(name, (void *)address));
		else if (sscanf(line, "time %63s %lx", name, &address) == 2)
			measure(name, (long (*)(clockid_t, struct timespec *))address);
		else
			check(0, "%s", line);
	}
	fflush(stdout);
	pass();
}
