/* sleepers THREADS: that many threads sleep in a futex, each marked by its number, until standard input ends. */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static int done;

static void *rest(void *unused)
{
	pthread_mutex_lock(&lock);
	while (!done)
		pthread_cond_wait(&ended, &lock);
	pthread_mutex_unlock(&lock);
	return unused;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) - 1 : 0;
	pthread_t *threads = calloc(count + 1, sizeof(*threads));
	pthread_attr_t small;
	char c;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 0; i < count; i++) {
		int error = pthread_create(&threads[i], &small, rest, NULL);

		if (error)
			errx(1, "pthread_create: %s", strerror(error));
	}
	puts("ready");
	fflush(stdout);
	if (read(0, &c, 1))
		err(1, "read");
	pthread_mutex_lock(&lock);
	done = 1;
	pthread_cond_broadcast(&ended);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	free(threads);
	return 0;
}
