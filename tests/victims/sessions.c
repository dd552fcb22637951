/* sessions: a process that makes a terminal with a session on it, talks with that for a moment, and makes the next one;
   two more of them stay. They come and go while they are moved. */
#include "victim.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

struct session {
	int master;
	pid_t pid;
};

/* In the session: gives back each line, with its number, until there is an end of file. */
__attribute__((noreturn)) static void live(void)
{
	char line[256];
	int number = 0;

	check(tcgetsid(0) == getpid() && tcgetpgrp(0) == getpid());
	while (fgets(line, sizeof line, stdin)) {
		int own = open("/dev/tty", O_RDWR);

		check(own >= 0);
		check(dprintf(own, "%d:%s", ++number, line) > 0 && !close(own));
	}
	_exit(number % 100);
}

static struct session begin(void)
{
	struct session made;
	struct termios settings;

	made.pid = forkpty(&made.master, NULL, NULL, NULL);
	check(made.pid >= 0);
	if (!made.pid)
		live();
	check(!tcgetattr(made.master, &settings));
	settings.c_lflag &= ~ECHO;
	check(!tcsetattr(made.master, TCSANOW, &settings));
	return made;
}

static void talk(const struct session *with, int number)
{
	char line[64], got[64] = "";
	size_t have = 0;
	int size = snprintf(line, sizeof line, "number %d\n", number);

	check(write(with->master, line, size) == size);
	while (!strchr(got, '\n')) {
		ssize_t more = read(with->master, got + have, sizeof got - 1 - have);

		check(more > 0, "after %zu bytes", have);
		have += more;
	}
	size = snprintf(line, sizeof line, "%d:number %d\r\n", number, number);
	check((int)have == size && !memcmp(got, line, size), "%s, not %s", got, line);
}

static void end(const struct session *with, int lines)
{
	int status;

	check(write(with->master, "\4", 1) == 1);
	check(waitpid(with->pid, &status, 0) == with->pid);
	check(WIFEXITED(status) && WEXITSTATUS(status) == lines % 100, "status %x", status);
	check(!close(with->master));
}

int main(void)
{
	struct session staying[2] = { begin(), begin() };
	int number = 0, others = 0;

	ready();
	while (!told()) {
		struct session passing = begin();

		number++;
		for (int i = 0; i < 2; i++)
			talk(&staying[i], number);
		for (int i = 1; i <= 20; i++) {
			talk(&passing, i);
			usleep(1000);
		}
		end(&passing, 20);
		others++;
	}
	for (int i = 0; i < 2; i++)
		end(&staying[i], number);
	pass();
}
