/* nested DEPTH: for sure in a signal handler that has interrupted a function of the vDSO, which was to store its answer
   where nothing can be stored (SIGSEGV). With DEPTH 2 the handler has called the function likewise, and another one has
   interrupted that (SIGBUS: behind the end of a file). The innermost returns when somebody traces the process, not
   before; so whoever stops it finds it in there, and has to have it come out. How often that was is told in the end. */
#include "victim.h"
#include "vdso.h"
#include <ucontext.h>

static struct timespec *places[2];
static int file, depth, nested;
static volatile sig_atomic_t inside;
static unsigned long times;
static int64_t latest;

static void call(struct timespec *place)
{
	int64_t now, before = latest; /* what is interrupted may have read the clock before its handler does */

	check(!vdso.clock_gettime(CLOCK_MONOTONIC, place));
	now = place->tv_sec * 1000000000LL + place->tv_nsec;
	check(now >= before, "CLOCK_MONOTONIC went back by %ld ns", before - now);
	latest = now > latest ? now : latest;
}

/* proc_pid_status(5); not by stdio, which a handler must not use */
static int traced(void)
{
	char text[512] = "";
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	ssize_t length = read(fd, text, sizeof(text) - 1);
	char *line = strstr(text, "TracerPid:\t");

	check(fd >= 0 && length > 0 && line && !close(fd));
	return line[strlen("TracerPid:\t")] != '0';
}

static void forbid(void)
{
	check(!mprotect(places[0], 4096, PROT_NONE) && !ftruncate(file, 0));
}

static void caught(int number, siginfo_t *info, void *context)
{
	uintptr_t rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], code = (uintptr_t)call & -4096L;
	int level = number == SIGBUS;

	check(info->si_addr >= (void *)places[level] && info->si_addr < (void *)(places[level] + 1), "%p", info->si_addr);
	check(rip - code >= 0x10000, "interrupted %lx, which is our own code", rip);
	inside++;
	if (inside < depth) {
		call(places[1]);
	} else {
		struct timespec plain;

		call(&plain);
		if (!nested++)
			ready();
		while (!traced() && !told())
			syscall(SYS_nanosleep, &(struct timespec){ 0, 100000 }, NULL);
		times += !told();
	}
	inside--;
	if (level)
		check(!ftruncate(file, 4096));
	else
		check(!mprotect(places[0], 4096, PROT_READ | PROT_WRITE));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_RESTART };
	char line[50];

	check(argc == 2);
	depth = atoi(argv[1]);
	vdso_look_up();
	file = memfd_create("place", MFD_CLOEXEC);
	places[0] = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	places[1] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	check(file >= 0 && places[0] != MAP_FAILED && places[1] != MAP_FAILED);
	check(!sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL));
	while (!told()) {
		forbid();
		call(places[0]);
		check(!inside);
	}
	snprintf(line, sizeof(line), "%lu nested\n", times);
	say(line);
	pass();
}
