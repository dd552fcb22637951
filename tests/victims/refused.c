/* refused KIND…: has what cannot be moved, descriptors from 5 upward in the order of the arguments; "zombie" makes a child
   that has ended, and says its number; "traces=PID" traces that process. */
#include "victim.h"
#include <asm/ldt.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <termios.h>

static int next = 5;

static void place(int fd)
{
	check(fd >= 0);
	if (fd != next)
		check(dup2(fd, next) == next && !close(fd));
	next++;
}

static void have(const char *kind)
{
	struct sock_filter asks[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_swapoff, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(asks) / sizeof(*asks), asks };
	struct io_uring_params params = { 0 };
	siginfo_t info;
	struct termios settings;
	int terminal;
	pid_t child;

	if (!strcmp(kind, "socket")) {
		place(socket(AF_NETLINK, SOCK_RAW, 0));
	} else if (!strcmp(kind, "terminal")) {
		terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY);
		check(!tcgetattr(terminal, &settings));
		settings.c_lflag |= EXTPROC;
		check(!tcsetattr(terminal, TCSANOW, &settings));
		place(terminal);
	} else if (!strcmp(kind, "io_uring")) {
		place(syscall(SYS_io_uring_setup, 4, &params));
	} else if (!strcmp(kind, "userfaultfd")) {
		place(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY));
	} else if (!strcmp(kind, "hugetlb")) { /* never touched, so no huge page has to be there */
		check(mmap(NULL, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0) != MAP_FAILED);
	} else if (!strcmp(kind, "segments")) {
		struct user_desc data = { .base_addr = 4096, .limit = 1, .seg_32bit = 1, .limit_in_pages = 1 };

		check(!syscall(SYS_modify_ldt, 1, &data, sizeof(data)));
	} else if (!strcmp(kind, "notifying")) {
		check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	} else if (!strcmp(kind, "listener")) {
		check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		place(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
	} else if (!strcmp(kind, "zombie")) {
		check((child = fork()) >= 0);
		if (!child)
			_exit(0);
		check(!waitid(P_PID, child, &info, WEXITED | WNOWAIT));
		dprintf(1, "%d\n", child);
	} else if (!strcmp(kind, "tracee")) { /* which ends with its tracer */
		check((child = fork()) >= 0);
		if (!child)
			for (;;)
				pause();
		check(!ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_EXITKILL));
	} else if (!strncmp(kind, "traces=", 7)) {
		check(!ptrace(PTRACE_SEIZE, atoi(kind + 7), 0, 0));
	} else {
		place(open(kind, O_RDONLY));
	}
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		have(argv[i]);
	ready();
	wait_told();
	for (int fd = 5; fd < next; fd++)
		check(fcntl(fd, F_GETFD) >= 0, "fd %d", fd);
	pass();
}
