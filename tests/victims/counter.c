/* counter FILE [THREADS [MICROSECONDS]]: threads count; each appends "thread number" lines to FILE, numbers from 0 on.
   A move must neither lose nor repeat a line: see tests.victims.check_counter. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int file;
static long interval;

static void *count(void *which)
{
	char line[64];

	for (unsigned long number = 0;; number++) {
		struct timespec pause = { interval / 1000000, interval % 1000000 * 1000 };
		int length = snprintf(line, sizeof(line), "%ld %lu\n", (long)which, number);

		/* O_APPEND: one write is one whole line, whichever thread comes first */
		if (write(file, line, length) != length)
			err(1, "write");
		if (interval)
			nanosleep(&pause, NULL);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	long threads = argc > 2 ? atol(argv[2]) : 4;

	if (argc < 2)
		errx(2, "usage: counter FILE [THREADS [MICROSECONDS]]");
	interval = argc > 3 ? atol(argv[3]) : 1000;
	file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (file < 0)
		err(1, "%s", argv[1]);
	for (long i = 1; i < threads; i++) {
		pthread_t thread;
		int error = pthread_create(&thread, NULL, count, (void *)i);

		if (error)
			errx(1, "pthread_create: %s", strerror(error));
	}
	count(0);
}
