/* heirs [MIB CHILDREN TOUCHED QUIET]: a process that fills MIB of memory and forks children, each of which writes to
   TOUCHED KiB of it; the first has a child of its own. Some do more to it: unmap, protect, empty, move or map anew a part.
   The second child goes on writing, and but for QUIET the parent does, too. After the move each looks at every page, then all write elsewhere, and
   look again: nobody sees what another wrote. */
#include "victim.h"

enum { PAGE = 4096, WORDS = PAGE / 8, MOST = 256, EMPTY = 0xffff, GONE = 0xfefe, PART = 16, BLOCKS = 60, TABLE = 24 };

static struct { volatile int looked, written, ended; } *together;
static uint64_t *memory, *moved;
static unsigned short *writer; /* of each page: 0 before the first fork */
static size_t pages, moved_at;
static unsigned char table[TABLE][PAGE] = { { 1 } }; /* of a file: its own pages of the data segment */
static uint64_t *blocks[2 * BLOCKS];
static int self, count, everybody, quiet;
static volatile uint64_t turns;

static uint64_t *busy; /* some pages of the memory */

static uint64_t word(size_t page, int who, int index)
{
	return scramble(page * WORDS + index + ((uint64_t)who << 40));
}

static void write_page(uint64_t *at, size_t page, int who)
{
	for (int i = 0; i < WORDS; i++)
		at[i] = word(page, who, i);
	writer[page] = who;
}

static void write_pages(size_t first, size_t number, int who)
{
	for (size_t page = first; page < first + number; page++)
		write_page(memory + page * WORDS, page, who);
}

static void look(void)
{
	for (size_t page = 0; page < pages; page++) {
		uint64_t *at = memory + page * WORDS;

		if (moved && page >= moved_at && page < moved_at + PART)
			at = moved + (page - moved_at) * WORDS;
		for (int i = 0; i < WORDS && writer[page] != GONE; i++)
			check(at[i] == (writer[page] == EMPTY ? 0 : word(page, writer[page], i)),
			      "%d at page %zu of writer %d", self, page, writer[page]);
	}
	for (int i = 0; i < TABLE; i++)
		check(table[i][0] == (unsigned char)(i % 2 ? self : i + 1), "%d table %d", self, i);
	for (int i = 0; i < 2 * BLOCKS && blocks[i]; i++)
		for (int j = 0; j < 1000; j++)
			check(blocks[i][j] == scramble(i * 1000 + j + (i < BLOCKS ? 0 : self)), "%d block %d", self, i);
	for (int i = 0; i < PART && turns; i++)
		check(busy[i * WORDS] == turns || busy[i * WORDS] == turns - 1, "%d busy %d", self, i);
}

static void allocate(int first, int last, int who)
{
	for (int i = first; i < last; i++) {
		blocks[i] = malloc(8000);
		for (int j = 0; j < 1000; j++)
			blocks[i][j] = scramble(i * 1000 + j + who);
	}
}

static void own(int which)
{
	size_t first = pages / 2 + (size_t)which * PART;
	uint64_t *at = memory + first * WORDS;
	size_t size = PART * PAGE;

	switch (which) {
	case 2:
		check(!munmap(at, size));
		memset(writer + first, 0xfe, PART * sizeof *writer);
		break;
	case 3:
		check(!mprotect(at, size, PROT_READ));
		break;
	case 4:
		check(!madvise(at, size, MADV_DONTNEED));
		memset(writer + first, 0xff, PART * sizeof *writer);
		break;
	case 5:
		moved = mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, size, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		check(moved != MAP_FAILED);
		moved_at = first;
		break;
	case 6:
		check(mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
		memset(writer + first, 0xff, PART * sizeof *writer);
		write_pages(first, PART / 2, which);
		break;
	}
}

static void arrive(volatile int *where)
{
	const struct timespec pause = { 0, 1000000 };

	__atomic_add_fetch(where, 1, __ATOMIC_SEQ_CST);
	while (*where % everybody)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

/* Waits, and some of them write. */
static void live(void)
{
	const struct timespec pause = { 0, quiet ? 50000000 : 1000000 };

	while (!told()) {
		if ((self == 0 && !quiet) || self == 2) {
			turns++;
			for (int i = 0; i < PART; i++)
				busy[i * WORDS] = turns;
		}
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
	look();
	arrive(&together->looked);
	for (size_t page = self; page < pages; page += 3 * everybody)
		if (writer[page] != GONE && !(self == 3 && page >= pages / 2) && !moved)
			write_page(memory + page * WORDS, page, self + 100);
	arrive(&together->written);
	look();
}

int main(int argc, char **argv)
{
	size_t size = (argc > 1 ? atoi(argv[1]) : 4) * (size_t)1048576, touched;
	pid_t children[MOST];
	int status;

	count = argc > 2 ? atoi(argv[2]) : 7;
	touched = (argc > 3 ? atoi(argv[3]) : 64) / 4;
	quiet = argc > 4;
	everybody = count + 2;
	pages = size / PAGE;
	together = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	writer = calloc(pages, sizeof *writer);
	busy = mmap(NULL, PART * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED && count < MOST && pages / 2 >= (count + 1) * touched + 10 * PART);
	write_pages(0, pages, 0);
	memset(busy, 1, PART * PAGE);
	allocate(0, BLOCKS, 0);
	for (int i = 0; i < TABLE; i++)
		table[i][0] = i + 1;
	for (int i = 1; i <= count; i++) {
		children[i] = fork();
		check(children[i] >= 0);
		if (children[i])
			continue;
		self = i;
		write_pages(i * touched, touched, i);
		if (i == 1) {
			children[1] = fork();
			check(children[1] >= 0);
			if (!children[1]) {
				self = everybody - 1;
				write_pages(touched / 2, touched, self);
			}
		}
		break;
	}
	own(self);
	allocate(BLOCKS, 2 * BLOCKS - self, self);
	if (!self && !quiet)
		write_pages(pages - PART, PART / 2, 99);
	for (int i = 1; i < TABLE; i += 2)
		table[i][0] = self;
	__atomic_add_fetch(&together->ended, 1, __ATOMIC_SEQ_CST);
	if (!self) {
		const struct timespec pause = { 0, 1000000 };

		while (together->ended < everybody)
			clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
		ready();
	}
	live();
	if (self == 1)
		check(waitpid(children[1], &status, 0) == children[1] && status == 0, "status %x", status);
	if (self)
		_exit(0);
	for (int i = 1; i <= count; i++)
		check(waitpid(children[i], &status, 0) == children[i] && status == 0, "%d: status %x", i, status);
	pass();
}
