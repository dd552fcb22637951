/* churn: threads are made and end all the time, four at once, until standard input ends. Exits 0 if each did its work
   once; prints how many there were. */
#define _GNU_SOURCE
#include <err.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static atomic_long begun, worked;

static void *work(void *unused)
{
	(void)unused;
	worked++;
	return NULL;
}

int main(void)
{
	struct pollfd input = { 0, POLLIN, 0 };

	puts("ready");
	fflush(stdout);
	while (!poll(&input, 1, 0)) {
		pthread_t threads[4];

		for (int i = 0; i < 4; i++) {
			int error = pthread_create(&threads[i], NULL, work, NULL);

			if (error)
				errx(1, "pthread_create: %s", strerror(error));
			begun++;
		}
		for (int i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
	}
	if (worked != begun)
		errx(1, "%ld threads were made, %ld worked", begun, worked);
	printf("%ld\n", worked);
	return 0;
}
