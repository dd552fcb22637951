/* pipes FIFO: with contents, in packets, with a size of their own, half closed; the FIFO; a thread that reads one and one that
   cannot write for it is full. */
#include "victim.h"
#include <sys/ioctl.h>

enum { MUCH = 300000 };
static int full[2], back[2];

static void *writes(void *unused)
{
	char *text = malloc(MUCH);

	for (int i = 0; i < MUCH; i++)
		text[i] = scramble(i);
	/* A stop cuts a large write short, as any SIGSTOP does (pipe_write(), fs/pipe.c). */
	for (int at = 0, wrote; at < MUCH; at += wrote)
		check((wrote = write(full[1], text + at, MUCH - at)) > 0);
	return unused;
}

static void *reads(void *unused)
{
	char text[10];

	check(read(back[0], text, 10) == 4 && !memcmp(text, "back", 4));
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	int plain[2], packets[2], sized[2], half[2], fifo, other, size, count;
	char text[5000];

	check(argc == 2);
	check(!pipe(plain) && !pipe2(packets, O_DIRECT | O_NONBLOCK | O_CLOEXEC) && !pipe(sized) && !pipe(half));
	check(!pipe(full) && !pipe(back));
	check(write(plain[1], "hello, ", 7) == 7 && write(plain[1], "world", 5) == 5);
	check(write(packets[1], "one", 3) == 3 && write(packets[1], "three", 5) == 5);
	check((size = fcntl(sized[1], F_SETPIPE_SZ, 1 << 18)) == 1 << 18);
	memset(text, 'x', 5000);
	for (int i = 0; i < 40; i++)
		check(write(sized[1], text, 5000) == 5000);
	check(write(half[1], "last words", 10) == 10 && !close(half[1]));
	check((fifo = open(argv[1], O_RDWR)) > 0 && (other = open(argv[1], O_WRONLY)) > 0);
	check(write(other, "through", 7) == 7);
	check(!pthread_create(&threads[0], NULL, writes, NULL) && !pthread_create(&threads[1], NULL, reads, NULL));
	do
		check(!usleep(1000) && !ioctl(full[0], FIONREAD, &count));
	while (count < 65536);
	ready();
	wait_told();
	check(read(plain[0], text, 5000) == 12 && !memcmp(text, "hello, world", 12));
	check(read(packets[0], text, 5000) == 3 && !memcmp(text, "one", 3) && read(packets[0], text, 5000) == 5);
	check(read(packets[0], text, 5000) == -1 && errno == EAGAIN && fcntl(packets[1], F_GETFD) == FD_CLOEXEC);
	check(fcntl(sized[0], F_GETPIPE_SZ) == 1 << 18 && !ioctl(sized[0], FIONREAD, &count) && count == 200000, "%d", count);
	check(read(half[0], text, 5000) == 10 && !memcmp(text, "last words", 10) && !read(half[0], text, 5000));
	check(read(fifo, text, 5000) == 7 && !memcmp(text, "through", 7) && write(fifo, "x", 1) == 1);
	check(write(back[1], "back", 4) == 4);
	for (int at = 0; at < MUCH;) {
		int got = read(full[0], text, 5000);

		check(got > 0);
		for (int i = 0; i < got; i++, at++)
			check(text[i] == (char)scramble(at), "%d", at);
	}
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
	pass();
}
