/* terminals: the masters of several pseudo-terminals, one of which is the controlling terminal of a child with a job in
   the foreground and one in the background. Everybody checks what he has, by what comes out of it. */
#include "victim.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int names[2]; /* of the session's pipe, through which the child and its jobs speak */
static volatile sig_atomic_t interrupts, hangups, resizes;

static void on_signal(int number)
{
	if (number == SIGINT)
		interrupts++;
	else if (number == SIGWINCH)
		resizes++;
	else
		hangups++;
}

static void tell(char word)
{
	check(write(names[1], &word, 1) == 1);
}

static void hear(char word)
{
	char said = 0;

	check(read(names[0], &said, 1) == 1 && said == word, "said %c, not %c", said, word);
}

static int open_master(int *slave)
{
	int unlocked = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY);

	check(master >= 0 && !ioctl(master, TIOCSPTLCK, &unlocked));
	if (slave) {
		*slave = open(ptsname(master), O_RDWR | O_NOCTTY);
		check(*slave >= 0);
	}
	return master;
}

static int waiting(int fd)
{
	int count = -1;

	check(!ioctl(fd, FIONREAD, &count));
	return count;
}

/* What is written to a master takes a moment. */
static void settle(void)
{
	usleep(30000);
}

static void expect(int fd, const char *text, size_t size)
{
	char got[16384];
	size_t have = 0;

	while (have < size) {
		struct pollfd one = { fd, POLLIN, 0 };
		ssize_t more;

		check(poll(&one, 1, 5000) == 1, "%zu of %zu bytes: %.*s", have, size, (int)have, got);
		more = read(fd, got + have, size - have);
		check(more > 0);
		have += more;
	}
	check(!memcmp(got, text, size), "%.*s, not %s", (int)size, got, text);
}

static void expect_line(int fd, const char *text)
{
	char got[4097];
	ssize_t size = read(fd, got, sizeof got);

	check(size == (ssize_t)strlen(text) && !memcmp(got, text, size), "%.*s (%zd), not %s", (int)size, got, size, text);
}

static void nothing(int fd)
{
	struct pollfd one = { fd, POLLIN, 0 };

	check(poll(&one, 1, 0) == 0, "events %x", one.revents);
}

static void raw(int fd, struct termios *was)
{
	struct termios set;

	check(!tcgetattr(fd, was));
	set = *was;
	cfmakeraw(&set);
	check(!tcsetattr(fd, TCSANOW, &set));
}

static pid_t job(int foreground)
{
	pid_t pid = fork();
	struct sigaction action = { .sa_handler = on_signal };

	check(pid >= 0);
	if (pid) {
		check(!setpgid(pid, pid) || errno == EACCES);
		return pid;
	}
	setpgid(0, 0);
	check(!sigaction(SIGINT, &action, NULL) && !sigaction(SIGHUP, &action, NULL));
	tell('j');
	wait_told();
	check(tcgetsid(0) == getsid(0) && !hangups);
	for (int i = 0; foreground && !interrupts && i < 5000; i++)
		usleep(1000);
	check(interrupts == foreground, "%d interrupts", interrupts);
	check((tcgetpgrp(0) == getpgrp()) == foreground);
	_exit(foreground ? 7 : 9);
}

__attribute__((noreturn)) static void lead(int master, int slave)
{
	struct sigaction action = { .sa_handler = on_signal }, ignore = { .sa_handler = SIG_IGN };
	pid_t front, back;
	int own, status;
	ssize_t typed;

	close(master);
	check(setsid() > 0 && !ioctl(slave, TIOCSCTTY, 0));
	check(dup2(slave, 0) == 0);
	check(!sigaction(SIGHUP, &action, NULL) && !sigaction(SIGWINCH, &action, NULL));
	check(!sigaction(SIGTTOU, &ignore, NULL));
	own = open("/dev/tty", O_RDWR);
	check(own >= 0);
	front = job(1);
	back = job(0);
	check(!tcsetpgrp(own, front));
	tell('l');
	wait_told();
	check(!hangups && !resizes, "%d hangups, %d resizes", hangups, resizes);
	check(tcgetsid(own) == getpid() && tcgetsid(slave) == getpid());
	check(!strcmp(ttyname(0), ttyname(slave)));
	check(waitpid(front, &status, 0) == front && WIFEXITED(status) && WEXITSTATUS(status) == 7, "%x", status);
	check(waitpid(back, &status, 0) == back && WIFEXITED(status) && WEXITSTATUS(status) == 9, "%x", status);
	check(!tcsetpgrp(own, getpgrp()));
	check(write(own, "done\n", 5) == 5);
	do /* SIGWINCH may come before what was typed first */
		typed = read(slave, &status, 1);
	while (typed < 0 && errno == EINTR);
	check(typed == 1);
	for (int i = 0; !resizes && i < 5000; i++)
		usleep(1000);
	check(resizes == 1);
	tell('r');
	for (int i = 0; !hangups && i < 5000; i++)
		usleep(1000);
	check(hangups == 1);
	_exit(5);
}

int main(void)
{
	int master, slave, plain[2], lined[2], packets[2], full[2], gone[2], orphan[2], locked, one = 1, got = 0, status;
	static struct termios was, now, before; /* static: they are compared with their padding */
	struct winsize size = { 31, 97, 5, 6 }, seen;
	static char much[12000], back[12000];
	char name[64], number[64], byte;
	pid_t child;

	check(!pipe(names));
	master = open_master(&slave);
	check(!ttyname_r(slave, name, sizeof name));
	child = fork();
	check(child >= 0);
	if (!child)
		lead(master, slave);
	close(slave);
	for (int i = 0; i < 3; i++)
		check(read(names[0], &byte, 1) == 1); /* both jobs, and who leads them */
	plain[0] = open_master(&plain[1]);
	lined[0] = open_master(&lined[1]);
	packets[0] = open_master(&packets[1]);
	full[0] = open_master(&full[1]);
	gone[0] = open_master(&gone[1]);
	orphan[0] = open_master(&orphan[1]);
	locked = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	check(!ioctl(master, TIOCSWINSZ, &size));
	settle(); /* SIGWINCH goes to the job, whom it does not concern */

	/* raw: bytes of every kind, either way */
	raw(plain[1], &was);
	check(write(plain[0], "\3\4\r\n\21x\26", 7) == 7 && write(plain[1], "out\n", 4) == 4);
	check(!tcgetattr(plain[1], &now));
	check(!ioctl(plain[0], TIOCSWINSZ, &size) && !ioctl(plain[1], TIOCEXCL));

	/* canonical, with echo: whole lines, an end of file, a quoted newline, a line without an end */
	check(!tcgetattr(lined[1], &before));
	check(write(lined[0], "one\ntwo\4\4q\26\nr\nab", 16) == 16);

	/* packet mode; master without a slave; slave without a master; locked */
	check(!ioctl(packets[0], TIOCPKT, &one) && write(packets[1], "pk", 2) == 2);
	check(write(gone[1], "last", 4) == 4);
	close(gone[1]);
	close(orphan[0]);

	/* more than a line discipline has room for, either way */
	raw(full[1], &was);
	for (size_t i = 0; i < sizeof much; i++)
		much[i] = scramble(i);
	check(write(full[0], much, 7000) == 7000);
	check(write(full[1], much, 9000) == 9000);
	for (int i = 0; waiting(full[1]) < 4095 && i < 5000; i++)
		usleep(1000);
	settle(); /* no more than that */
	check(waiting(full[1]) == 4095, "%d", waiting(full[1]));
	ready();
	wait_told();

	check(ptsname(plain[0]) && !ttyname_r(plain[1], number, sizeof number) && !strcmp(ptsname(plain[0]), number));
	check(!ptsname_r(master, number, sizeof number) && !strcmp(number, name), "%s", number);
	check(!tcgetattr(plain[1], &was) && !memcmp(&was, &now, sizeof now));
	check(!ioctl(plain[1], TIOCGWINSZ, &seen) && !memcmp(&seen, &size, sizeof size));
	check(!ioctl(plain[1], TIOCGEXCL, &got) && got == 1 && !ioctl(plain[0], TIOCGEXCL, &got) && got == 0);
	check(waiting(plain[1]) == 7);
	expect(plain[1], "\3\4\r\n\21x\26", 7);
	expect(plain[0], "out\n", 4);
	nothing(plain[0]);
	nothing(plain[1]);

	check(!tcgetattr(lined[1], &was) && !memcmp(&was, &before, sizeof before));
	expect_line(lined[1], "one\n");
	expect_line(lined[1], "two");
	expect_line(lined[1], "");
	expect_line(lined[1], "q\nr\n");
	nothing(lined[1]);
	check(write(lined[0], "\177c\n", 3) == 3); /* the line that had no end is edited, and gets one */
	expect_line(lined[1], "ac\n");
	expect(lined[0], "one\r\ntwoq^\b^Jr\r\nab\b \bc\r\n", 24); /* the echo of all that; its end comes a moment later */

	check(!ioctl(packets[0], TIOCGPKT, &got) && got == 1);
	expect(packets[0], "\0pk", 3);
	expect(gone[0], "last", 4);
	check(read(gone[0], &byte, 1) == -1 && errno == EIO);
	check(read(orphan[1], &byte, 1) == 0 && write(orphan[1], "x", 1) == -1 && errno == EIO);
	check(!ioctl(locked, TIOCGPTLCK, &got) && got == 1);
	check(open(ptsname(locked), O_RDWR | O_NOCTTY) == -1 && errno == EIO);

	expect(full[1], much, 7000);
	expect(full[0], much, 9000);
	nothing(full[0]);
	nothing(full[1]);

	/* the session: who is in the foreground gets what is typed */
	check(!ioctl(master, TIOCGWINSZ, &seen) && !memcmp(&seen, &size, sizeof size));
	check(write(master, "\3", 1) == 1);
	while (read(master, &byte, 1) == 1 && byte != 'd')
		;
	check(read(master, back, 5) > 0);
	size.ws_col++;
	check(write(master, "\n", 1) == 1 && !ioctl(master, TIOCSWINSZ, &size));
	hear('r');
	close(master);
	check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5, "%x", status);
	pass();
}
