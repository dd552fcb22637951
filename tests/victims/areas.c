/* areas: builds one kind of mapping, named by its argument, then sleeps. Once more for each line of its input: changes
   what it built. Prints "ready", its process number and the end of its heap after each. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/mman.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { P = 4096 };
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif
enum { GUARD_INSTALL = 102, GUARD_REMOVE = 103, MSEAL = 462, MBIND = 237 };
static char *const base = (char *)0x200000000000;
static const char *file;

static char *map(char *at, long pages, int prot, int flags, int fd, long offset)
{
	char *got = mmap(at, pages * P, prot, flags | MAP_FIXED_NOREPLACE, fd, offset);

	if (got != at)
		err(1, "mmap %p", at);
	return got;
}

static char *anon(long page, long pages, int prot, int flags)
{
	return map(base + page * P, pages, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

static void ok(int result, const char *what)
{
	if (result)
		err(1, "%s", what);
}

static void protect(long page, long pages, int prot)
{
	ok(mprotect(base + page * P, pages * P, prot), "mprotect");
}

static void advise(long page, long pages, int advice)
{
	ok(madvise(base + page * P, pages * P, advice), "madvise");
}

static int opened(int flags)
{
	int fd = open(file, flags);

	if (fd < 0)
		err(1, "%s", file);
	return fd;
}

static void plain(void)
{
	strcpy(anon(0, 8, 3, 0), "read and write");
	strcpy(anon(16, 8, 3, 0) + P, "then read only");
	protect(16, 8, 1);
	anon(32, 8, 0, 0);
	strcpy(anon(48, 8, 3, 0), "then nothing");
	protect(48, 8, 0);
	anon(64, 8, 7, 0)[P] = 1;
	anon(80, 1000, 0, MAP_NORESERVE);
	strcpy(anon(1200, 1000, 3, MAP_NORESERVE) + 999 * P, "never reserved");
	anon(2400, 4, 3, 0)[0] = 1;
	anon(2404, 4, 1, 0); /* never written to */
	anon(2408, 4, 3, 0)[0] = 1;
	anon(2420, 4, 2, 0)[0] = 1;
	anon(2430, 4, 4, 0);
}

/* Neighbours that have the same flags and are two VMAs all the same. */
static void neighbours(void)
{
	for (int i = 0; i < 5; i++) {
		char *far = anon(1000 + 100 * i, 4, 3, 0);

		far[i * P % (4 * P)] = 'a' + i;
		if (mremap(far, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, base + i * 4 * P) == MAP_FAILED)
			err(1, "mremap");
	}
	protect(12, 4, 1);
	protect(16, 4, 1);
	int one = opened(O_RDONLY), two = opened(O_RDONLY);
	map(base + 64 * P, 2, 3, MAP_PRIVATE, one, 0)[0] = 'x';
	map(base + 66 * P, 2, 3, MAP_PRIVATE, two, 2 * P)[1] = 'y';
	map(base + 68 * P, 1, 3, MAP_PRIVATE, one, 4 * P);
	for (int i = 0; i < 2; i++) {
		char *far = anon(1000 + 100 * i, 4, 3, MAP_NORESERVE);

		far[0] = 'n';
		protect(1000 + 100 * i, 4, 0);
		if (mremap(far, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, base + (80 + i * 4) * P) == MAP_FAILED)
			err(1, "mremap");
	}
}

static void files(void)
{
	int reads = opened(O_RDONLY), writes = opened(O_RDWR);

	map(base, 4, 1, MAP_PRIVATE, reads, 0);
	map(base + 8 * P, 4, 5, MAP_PRIVATE, reads, P);
	strcpy(map(base + 16 * P, 4, 3, MAP_PRIVATE, reads, 0) + 2 * P, "written");
	strcpy(map(base + 24 * P, 4, 3, MAP_PRIVATE, reads, 0), "written, then read only");
	protect(24, 4, 1);
	map(base + 32 * P, 4, 1, MAP_SHARED, reads, 0);
	map(base + 40 * P, 4, 1, MAP_SHARED, writes, 0);
	strcpy(map(base + 48 * P, 4, 3, MAP_SHARED, writes, 2 * P) + P, "shared");
	map(base + 56 * P, 20, 3, MAP_PRIVATE, reads, 0); /* beyond its end */
	map(base + 80 * P, 4, 0, MAP_PRIVATE, reads, 0);
	int zero = open("/dev/zero", O_RDWR);
	strcpy(map(base + 96 * P, 4, 3, MAP_PRIVATE, zero, 0) + P, "zero");
	strcpy(map(base + 104 * P, 4, 3, MAP_SHARED, zero, 0) + P, "zero, shared");
	/* as ld.so maps a library */
	map(base + 120 * P, 8, 1, MAP_PRIVATE, reads, 0);
	ok(munmap(base + 122 * P, 6 * P), "munmap");
	map(base + 122 * P, 2, 5, MAP_PRIVATE, reads, P);
	map(base + 124 * P, 4, 3, MAP_PRIVATE, reads, 2 * P)[P] = 1;
	protect(124, 2, 1);
}

static void shared(void)
{
	char *whole = map(base, 16, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < 16; i++)
		whole[i * P] = 'a' + i;
	if (mremap(whole + 4 * P, 0, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, base + 32 * P) == MAP_FAILED)
		err(1, "mremap");
	ok(munmap(base, 2 * P), "munmap");
	protect(8, 4, 1);
	map(base + 64 * P, 4, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	map(base + 68 * P, 4, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0)[0] = 'z';
	map(base + 80 * P, 4, 3, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)[0] = 'n';
	int fd = memfd_create("thing", MFD_ALLOW_SEALING);
	ok(ftruncate(fd, 8 * P), "ftruncate");
	strcpy(map(base + 100 * P, 4, 3, MAP_SHARED, fd, 0) + P, "memfd");
	strcpy(map(base + 108 * P, 4, 3, MAP_SHARED, fd, 4 * P) + P, "memfd, further on");
	map(base + 116 * P, 4, 3, MAP_PRIVATE, fd, 0)[P] = 'M';
	ok(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "seals");
	close(fd);
}

static void advice(void)
{
	static const int all[] = {MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTFORK, MADV_MERGEABLE, MADV_HUGEPAGE,
		MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_WIPEONFORK};

	for (unsigned i = 0; i < sizeof(all) / sizeof(*all); i++) {
		anon(16 * i, 8, 3, 0)[P] = 1;
		advise(16 * i, 8, all[i]);
	}
	anon(200, 8, 3, 0)[0] = 1;
	advise(202, 2, MADV_DONTFORK);
	advise(203, 2, MADV_DONTDUMP);
	advise(205, 2, MADV_NOHUGEPAGE);
	anon(220, 8, 3, MAP_STACK)[0] = 1;
	map(base + 240 * P, 4, 3, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0)[0] = 1;
	anon(260, 4, 3, MAP_GROWSDOWN)[P] = 1;
}

static void locked(void)
{
	anon(0, 4, 3, 0)[P] = 1;
	ok(mlock(base, 4 * P), "mlock");
	anon(16, 64, 3, 0)[P] = 1;
	ok(mlock2(base + 16 * P, 64 * P, MLOCK_ONFAULT), "mlock2");
	anon(100, 4, 0, MAP_LOCKED);
	anon(120, 8, 3, 0)[0] = 1;
	ok(mlock(base + 122 * P, 2 * P), "mlock");
	ok(mlockall(MCL_FUTURE | MCL_ONFAULT), "mlockall");
	anon(140, 8, 3, 0)[0] = 1;
}

static void guards(void)
{
	anon(0, 8, 3, 0)[4 * P] = 1;
	advise(0, 1, GUARD_INSTALL);
	advise(6, 2, GUARD_INSTALL);
	anon(16, 8, 3, 0)[0] = 1;
	advise(20, 1, GUARD_INSTALL);
	advise(20, 1, GUARD_REMOVE);
	anon(32, 8, 1, 0);
	advise(32, 1, GUARD_INSTALL);
}

static void sealed(void)
{
	anon(0, 4, 3, 0)[0] = 1;
	ok(syscall(MSEAL, base, 2 * P, 0), "mseal");
	anon(16, 4, 3, 0)[0] = 1;
	protect(16, 4, 1);
	ok(syscall(MSEAL, base + 16 * P, 4 * P, 0), "mseal");
}

static void policy(void)
{
	unsigned long node = 1;

	anon(0, 8, 3, 0)[0] = 1;
	ok(syscall(MBIND, base + 2 * P, 2 * P, 2, &node, 2, 0), "mbind");
	map(base + 16 * P, 8, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ok(syscall(MBIND, base + 16 * P, 8 * P, 3, &node, 2, 0), "mbind");
}

static void heap(void)
{
	char *end = sbrk(40 * P);

	memset(end, 'h', 40 * P);
	sbrk(123);
}

/* A worker of a server: what it got from its parent does not merge with what it maps itself. */
static void forked(void)
{
	anon(0, 8, 3, 0)[P] = 1;
	anon(40, 8, 3, 0)[P] = 1;
	pid_t child = fork();

	if (child) {
		waitpid(child, 0, 0);
		exit(0);
	}
	prctl(PR_SET_PDEATHSIG, 9);
	anon(8, 8, 3, 0)[0] = 2;
	anon(48, 8, 3, 0);
}

/* What cannot be moved, each refused by name. */
static void refused(void)
{
	anon(0, 1, 3, 0);
	int segment = shmget(IPC_PRIVATE, 4 * P, 0600 | IPC_CREAT);
	if (segment < 0 || shmat(segment, base + 16 * P, 0) != base + 16 * P)
		err(1, "shmat");
	ok(shmctl(segment, IPC_RMID, 0), "shmctl");
	char name[] = "/tmp/areas-XXXXXX";
	int fd = mkstemp(name);
	ok(ftruncate(fd, P) | unlink(name), name);
	map(base + 32 * P, 1, 3, MAP_SHARED, fd, 0);
	aio_context_t context = 0;
	ok(syscall(__NR_io_setup, 1, &context), "io_setup");
	struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .exclude_kernel = 1,
		.config = PERF_COUNT_SW_TASK_CLOCK};
	fd = syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
	if (fd < 0)
		err(1, "perf_event_open");
	map(base + 48 * P, 2, 3, MAP_SHARED, fd, 0);
	fd = syscall(__NR_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */);
	struct uffdio_api api = {.api = UFFD_API};
	ok(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	anon(64, 1, 3, 0);
	struct uffdio_register missing = {.range = {(long)base + 64 * P, P}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	ok(ioctl(fd, UFFDIO_REGISTER, &missing), "UFFDIO_REGISTER");
	base[80 * P] = *anon(80, 1, 3, 0);
	struct uffdio_register protecting = {.range = {(long)base + 80 * P, P}, .mode = UFFDIO_REGISTER_MODE_WP};
	ok(ioctl(fd, UFFDIO_REGISTER, &protecting), "UFFDIO_REGISTER");
}

/* Steps: what happens to an address space between two looks. */
static void changing(int step)
{
	static int file;

	switch (step) {
	case 0:
		if (syscall(__NR_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */) < 0)
			err(1, "userfaultfd");
		memset(anon(0, 64, 3, 0), '0', 64 * P);
		memset(anon(100, 16, 3, 0), '1', 16 * P);
		memset(anon(200, 16, 3, 0), '2', 16 * P);
		anon(300, 64, 0, 0);
		protect(300, 8, 3);
		base[300 * P] = '3';
		memset(anon(400, 16, 3, MAP_GROWSDOWN), '4', 16 * P);
		map(base + 500 * P, 8, 3, MAP_PRIVATE, opened(O_RDONLY), 0)[P] = '5';
		map(base + 600 * P, 8, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0)[P] = '6';
		map(base + 700 * P, 8, 1, MAP_PRIVATE, opened(O_RDONLY), 0);
		map(base + 800 * P, 2, 3, MAP_PRIVATE, opened(O_RDONLY), 0)[P] = '8';
		file = memfd_create("resized", 0); /* mapped beyond its end */
		ok(ftruncate(file, 2 * P), "ftruncate");
		map(base + 1100 * P, 4, 3, MAP_SHARED, file, 0)[P] = 'm';
		heap();
		break;
	case 1:
		protect(16, 16, 1); /* split by protection */
		protect(48, 16, 0);
		ok(munmap(base + 104 * P, 4 * P), "munmap"); /* a hole in the middle */
		memset(anon(216, 16, 3, 0), 'n', 16 * P);  /* grown */
		ok(munmap(base + 200 * P, 4 * P), "munmap"); /* and shrunk */
		protect(308, 8, 3);  /* an arena of malloc grows */
		memset(base + 308 * P, 'n', 8 * P);
		anon(390, 10, 3, MAP_GROWSDOWN)[0] = 'n'; /* a stack grew */
		protect(502, 2, 1);
		if (mremap(base + 800 * P, 2 * P, 4 * P, 0) == MAP_FAILED)
			err(1, "mremap");
		anon(900, 4, 3, MAP_STACK)[0] = 'n';
		map(base + 1000 * P, 4, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0)[P] = 'n';
		memset(sbrk(10 * P), 'n', 10 * P);
		ok(ftruncate(file, 4 * P), "ftruncate");
		base[1103 * P] = 'n';
		break;
	case 2:
		protect(16, 16, 3); /* merges again */
		ok(munmap(base + 600 * P, 2 * P), "munmap");
		if (mremap(base + 602 * P, 0, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, base + 650 * P) == MAP_FAILED)
			err(1, "mremap");
		protect(700, 4, 3);
		base[700 * P] = '7';
		ok(munmap(base + 500 * P, 8 * P), "munmap");
		anon(500, 8, 3, 0)[P] = 'n'; /* another thing in the same place */
		for (int i = 0; i < 3; i++) { /* neighbours that must stay apart */
			char *far = anon(5000, 4, 3, 0);

			far[0] = 'f';
			if (mremap(far, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, base + (116 + 4 * i) * P) ==
			    MAP_FAILED)
				err(1, "mremap");
		}
		sbrk(-5 * P);
		break;
	}
}

static void ready(void)
{
	char text[64];
	int length = snprintf(text, sizeof(text), "ready %d %lx\n", getpid(), (long)sbrk(0));

	if (write(1, text, length) != length)
		err(1, "write");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*build)(void);
	} all[] = {{"plain", plain}, {"neighbours", neighbours}, {"files", files}, {"shared", shared},
		{"advice", advice}, {"locked", locked}, {"guards", guards}, {"sealed", sealed}, {"policy", policy},
		{"heap", heap}, {"forked", forked}, {"refused", refused}};
	char line[16];

	if (argc < 3)
		errx(2, "areas KIND FILE");
	file = argv[2];
	if (!strcmp(argv[1], "changing")) {
		for (int step = 0;; step++) {
			changing(step);
			ready();
			if (read(0, line, sizeof(line)) <= 0)
				return 0;
		}
	}
	for (unsigned i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (!strcmp(argv[1], all[i].name)) {
			all[i].build();
			ready();
			return read(0, line, sizeof(line)) < 0;
		}
	errx(2, "no kind %s", argv[1]);
}
