/* settings [unprivileged]: limits, personality, prctl(2), and who it is; as a user of its own with some capabilities in each
   of the five sets, or as root. All of it is the same after the move. */
#include "victim.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

enum { WORDS = 256 };
static const char *const files[] = { "oom_score_adj", "coredump_filter" };

static void put(const char *name, const char *text)
{
	char path[64];
	int fd;

	sprintf(path, "/proc/self/%s", name);
	check((fd = open(path, O_WRONLY)) >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s", name);
}

static long number(const char *name)
{
	char path[64], text[32] = "";
	int fd;

	sprintf(path, "/proc/self/%s", name);
	check((fd = open(path, O_RDONLY)) >= 0 && read(fd, text, 31) > 0 && !close(fd), "%s", name);
	return strtol(text, NULL, strcmp(name, "coredump_filter") ? 10 : 16);
}

static int collect(long *seen)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2];
	struct rlimit limit;
	gid_t groups[32];
	uid_t r, e, s;
	int n = 0, value, count;

	for (int i = 0; i < RLIM_NLIMITS; i++) {
		check(!getrlimit(i, &limit));
		seen[n++] = limit.rlim_cur;
		seen[n++] = limit.rlim_max;
	}
	seen[n++] = personality(0xffffffff);
	seen[n++] = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
	seen[n++] = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
	check(!prctl(PR_GET_PDEATHSIG, &value));
	seen[n++] = value;
	check(!prctl(PR_GET_CHILD_SUBREAPER, &value));
	seen[n++] = value;
	seen[n++] = prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0);
	seen[n++] = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
	seen[n++] = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	seen[n++] = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
	seen[n++] = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
	seen[n++] = prctl(PR_GET_MDWE, 0, 0, 0, 0);
	check(!prctl(PR_GET_TSC, &value));
	seen[n++] = value;
	check(!getresuid(&r, &e, &s));
	seen[n++] = r, seen[n++] = e, seen[n++] = s;
	check(!getresgid(&r, &e, &s));
	seen[n++] = r, seen[n++] = e, seen[n++] = s;
	check((count = getgroups(32, groups)) >= 0);
	seen[n++] = count;
	for (int i = 0; i < count; i++)
		seen[n++] = groups[i];
	check(!syscall(SYS_capget, &head, caps));
	for (int i = 0; i < 2; i++) {
		seen[n++] = caps[i].effective;
		seen[n++] = caps[i].permitted;
		seen[n++] = caps[i].inheritable;
	}
	for (int i = 0; i <= CAP_LAST_CAP; i++)
		seen[n++] = prctl(PR_CAPBSET_READ, i, 0, 0, 0) | prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) << 1;
	for (int i = 0; i < 2; i++)
		seen[n++] = number(files[i]);
	seen[n++] = umask(022);
	check(umask(seen[n - 1]) == 022 && n < WORDS);
	return n;
}

static void become_user(void)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2] = { 0 };
	const gid_t groups[] = { 5, 60, 700, 8000 };

	check(!prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0) && !prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0));
	check(!prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP, 0, 0, 0));
	check(!setgroups(4, groups) && !setresgid(2001, 2002, 2003) && !setresuid(1001, 1002, 1003));
	caps[0].permitted = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_KILL | 1 << CAP_SYS_NICE | 1 << CAP_CHOWN;
	caps[0].effective = 1 << CAP_KILL;
	caps[0].inheritable = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN;
	caps[1].permitted = caps[1].inheritable = 1 << (CAP_SYSLOG - 32);
	check(!syscall(SYS_capset, &head, caps));
	check(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
	check(!prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

int main(int argc, char **argv)
{
	long before[WORDS], after[WORDS];
	int user = argc > 1 && !strcmp(argv[1], "unprivileged"), count;
	static const struct { int which; rlim_t soft, hard; } limits[] = {
		{ RLIMIT_CPU, 5000, 6000 }, { RLIMIT_FSIZE, 1L << 33, 1L << 34 }, { RLIMIT_DATA, 1L << 35, RLIM_INFINITY },
		{ RLIMIT_STACK, 4 << 20, 64 << 20 }, { RLIMIT_CORE, 0, 4096 }, { RLIMIT_NPROC, 5000, 5001 },
		{ RLIMIT_NOFILE, 100, 900 }, { RLIMIT_MEMLOCK, 1 << 20, 1 << 21 }, { RLIMIT_AS, 1L << 40, 1L << 41 },
		{ RLIMIT_SIGPENDING, 77, 78 }, { RLIMIT_MSGQUEUE, 4000, 5000 }, { RLIMIT_NICE, 10, 20 },
		{ RLIMIT_RTPRIO, 3, 4 }, { RLIMIT_RTTIME, 100000, 200000 }, { RLIMIT_LOCKS, 9, 10 },
	};
	struct utsname name;

	for (unsigned i = 0; i < sizeof(limits) / sizeof(*limits); i++) {
		struct rlimit limit, now; /* not above what there is: a root may lack CAP_SYS_RESOURCE */

		check(!getrlimit(limits[i].which, &now));
		limit.rlim_max = limits[i].hard < now.rlim_max ? limits[i].hard : now.rlim_max;
		limit.rlim_cur = limits[i].soft < limit.rlim_max ? limits[i].soft : limit.rlim_max;
		check(!setrlimit(limits[i].which, &limit), "%d", limits[i].which);
	}
	put("oom_score_adj", "321");
	put("coredump_filter", "0x7b");
	check(personality(ADDR_NO_RANDOMIZE | UNAME26) >= 0);
	check(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) && !prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	check(!prctl(PR_SET_TIMERSLACK, 123456, 0, 0, 0));
	check(!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	umask(031);
	if (user)
		become_user();
	else
		check(!prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) && !prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	check(!prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
	if (user)
		check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	count = collect(before);
	ready();
	wait_told();
	check(collect(after) == count);
	for (int i = 0; i < count; i++)
		check(before[i] == after[i], "value %d was %#lx and is %#lx", i, before[i], after[i]);
	check(!uname(&name) && !strncmp(name.release, "2.6.", 4), "%s", name.release);
	pass();
}
