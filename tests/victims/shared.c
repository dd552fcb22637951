/* shared: memory shared without a name (twice in the address space), by a memfd, by a file and privately by the same file;
   written before and after the move, through one view and read through the other, and read(2) back from the files. */
#include "victim.h"

enum { P = 4096, PAGES = 64 };
static char *views[2], *memfd[2], *file, *private_file;
static int fds[2];

static void *map(int pages, int flags, int fd, long offset)
{
	void *at = mmap(NULL, pages * P, PROT_READ | PROT_WRITE, flags, fd, offset);

	check(at != MAP_FAILED);
	return at;
}

static void look(char what)
{
	char page[2];

	for (int i = 0; i < PAGES; i++) {
		check(views[0][i * P] == what + i % 20 && views[1][i * P] == what + i % 20, "%d", i);
		check(memfd[0][i * P] == what + i % 20 && (i < 2 || memfd[1][(i - 2) * P] == what + i % 20), "%d", i);
		check(file[i * P] == what + i % 20 && private_file[i * P + 1] == what + i % 20, "%d", i);
		for (int j = 0; j < 2; j++)
			check(pread(fds[j], page, 2, i * P) == 2 && page[0] == what + i % 20 && !page[1], "%d", i);
	}
}

static void put(char what)
{
	for (int i = 0; i < PAGES; i++) {
		views[i % 2][i * P] = what + i % 20;
		memfd[0][i * P] = file[i * P] = private_file[i * P + 1] = what + i % 20;
	}
}

int main(void)
{
	char path[200];

	sprintf(path, "%s/mapped", getenv("VICTIM_DIR"));
	views[0] = map(PAGES, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	views[1] = mremap(views[0], 0, PAGES * P, MREMAP_MAYMOVE);
	fds[0] = memfd_create("memory", 0);
	fds[1] = open(path, O_RDWR | O_CREAT, 0600);
	for (int i = 0; i < 2; i++)
		check(!ftruncate(fds[i], PAGES * P));
	memfd[0] = map(PAGES, MAP_SHARED, fds[0], 0);
	memfd[1] = map(PAGES - 2, MAP_SHARED, fds[0], 2 * P);
	file = map(PAGES, MAP_SHARED, fds[1], 0);
	private_file = map(PAGES, MAP_PRIVATE, fds[1], 0);
	put('a');
	look('a');
	ready();
	wait_told();
	look('a');
	put('A');
	look('A');
	pass();
}
