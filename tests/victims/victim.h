/* What all victims do: say that they are ready, go on until they are told to look, and say what they saw. Nothing of
   this leaves a trace in the process while it waits: told() is one access(2). */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What must hold; or the victim ends with the line, the words and errno on standard error. */
#define check(condition, ...) \
	do { \
		if (!(condition)) { \
			int error_ = errno; \
			fprintf(stderr, "%s:%d: %s:", __FILE__, __LINE__, #condition); \
			fprintf(stderr, " " __VA_ARGS__); \
			fprintf(stderr, " (errno %d)\n", error_); \
			_exit(1); \
		} \
	} while (0)

static inline void say(const char *word)
{
	check(write(1, word, strlen(word)) == (ssize_t)strlen(word));
}

static inline void ready(void)
{
	say("ready\n");
}

/* Whether the process has been moved, and is to look at itself. */
static inline int told(void)
{
	return access(getenv("VICTIM_GO"), F_OK) == 0;
}

static inline void wait_told(void)
{
	const struct timespec pause = { 0, 1000000 };

	while (!told())
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

__attribute__((noreturn)) static inline void pass(void)
{
	say("pass\n");
	_exit(0);
}

static inline uint64_t scramble(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static inline int64_t nanoseconds(clockid_t clock)
{
	struct timespec t;

	check(!clock_gettime(clock, &t));
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}
