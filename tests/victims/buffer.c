/* buffer MEBIBYTES [WRITES [VMAS]]: random memory, so many pages of it written between short sleeps, each page with a
   checksum; all are checked in the end. With VMAS it is cut into so many areas by protection. */
#include "victim.h"

enum { P = 4096, WORDS = P / 8 };

static void fill(uint64_t *page, uint64_t seed)
{
	uint64_t sum = 0;

	for (int i = 0; i < WORDS - 1; i++) {
		seed = seed * 6364136223846793005 + 1442695040888963407;
		sum += page[i] = seed ^ seed >> 29;
	}
	page[WORDS - 1] = sum;
}

int main(int argc, char **argv)
{
	long pages = (argc > 1 ? atol(argv[1]) : 16) << 8, writes = argc > 2 ? atol(argv[2]) : 0, vmas = argc > 3 ? atol(argv[3]) : 0;
	uint64_t *memory = mmap(NULL, pages * P, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), number = 0;
	uint64_t *seeds = calloc(pages, 8);

	check(memory != MAP_FAILED && seeds);
	for (long i = 0; i < pages; i++)
		fill(memory + i * WORDS, seeds[i] = ++number);
	for (long i = 1; i < vmas; i += 2)
		check(!mprotect(memory + i * pages / vmas * WORDS, P, PROT_READ));
	ready();
	for (long step = 0; !told(); step++) {
		for (long i = 0; i < writes; i++) {
			long page = scramble(++number) % pages;

			fill(memory + page * WORDS, seeds[page] = number);
		}
		usleep(1000);
	}
	for (long i = 0; i < pages; i++) {
		uint64_t wanted[WORDS];

		fill(wanted, seeds[i]);
		check(!memcmp(wanted, memory + i * WORDS, P), "page %ld of %ld at %p", i, pages, memory + i * WORDS);
	}
	pass();
}
