/* remaps [SEED]: maps, unmaps, moves, shrinks, grows, protects, empties and writes memory all the time, knows what each
   page must hold, and looks. The hardest test of what is sent in rounds while the layout changes under it. */
#include "victim.h"

enum { P = 4096, SLOTS = 40, MOST = 64 };
static struct area {
	char *at;
	int pages, kind, prot; /* kind: 0 private, 1 shared */
	uint64_t content[MOST]; /* of each page; 0: never written */
} areas[SLOTS];
static uint64_t state, steps;
static char *base;

static unsigned pick(unsigned below)
{
	return (state = scramble(state + 0x9e3779b97f4a7c15)) % below;
}

static char *slot(int i)
{
	return base + (long)i * 2 * MOST * P;
}

static void look(struct area *area)
{
	for (int i = 0; i < area->pages; i++) {
		uint64_t *page = (uint64_t *)(area->at + i * P), seen[2] = { page[0], page[P / 8 - 1] };

		check(seen[0] == area->content[i] && seen[1] == area->content[i],
		      "step %lu, slot %ld, kind %d, page %d of %d: %#lx %#lx, not %#lx", steps, area - areas, area->kind, i,
		      area->pages, seen[0], seen[1], area->content[i]);
	}
}

static void protect(struct area *area, int prot)
{
	check(!mprotect(area->at, area->pages * P, prot));
	area->prot = prot;
}

static void put(struct area *area, int i)
{
	uint64_t *page = (uint64_t *)(area->at + i * P);

	if (area->prot != 3)
		protect(area, 3);
	page[0] = page[P / 8 - 1] = area->content[i] = scramble(++steps);
}

static void unmap(struct area *area)
{
	check(!munmap(area->at, area->pages * P));
	area->at = NULL;
}

static void step(int i)
{
	struct area *area = &areas[i];
	unsigned what = pick(12), n = 1 + pick(MOST), from;

	if (!area->at) {
		memset(area, 0, sizeof(*area));
		area->kind = pick(4) == 0;
		area->at = mmap(slot(i) + pick(8) * P, n * P, area->prot = 3,
				MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | (area->kind ? MAP_SHARED : MAP_PRIVATE), -1, 0);
		check(area->at != MAP_FAILED);
		area->pages = n;
	}
	look(area);
	if (what < 4) {
		for (unsigned j = 0; j < n; j++)
			put(area, pick(area->pages));
	} else if (what == 4) {
		unmap(area);
	} else if (what == 5) {
		protect(area, PROT_READ);
	} else if (what == 6 && area->prot == 3) { /* empty a part */
		from = pick(area->pages);
		n = 1 + pick(area->pages - from);
		check(!madvise(area->at + from * P, n * P, area->kind ? MADV_REMOVE : MADV_DONTNEED));
		memset(area->content + from, 0, n * 8);
	} else if (what == 7) { /* shrink */
		n = 1 + pick(area->pages);
		check(mremap(area->at, area->pages * P, n * P, 0) == area->at);
		area->pages = n;
	} else if (what == 8 && !area->kind && (int)n > area->pages) { /* grow */
		memset(area->content + area->pages, 0, (n - area->pages) * 8);
		check(mremap(area->at, area->pages * P, n * P, 0) == area->at);
		area->pages = n;
	} else if (what == 9) { /* move to another slot, over whatever is there or not */
		struct area *to = &areas[pick(SLOTS)];

		if (to != area) {
			if (to->at)
				unmap(to);
			*to = *area;
			to->at = mremap(area->at, area->pages * P, area->pages * P, MREMAP_MAYMOVE | MREMAP_FIXED,
					slot(to - areas) + pick(8) * P);
			check(to->at != MAP_FAILED);
			area->at = NULL;
			look(to);
		}
	} else if (what == 10 && !area->kind) { /* map anew in its place */
		check(mmap(area->at, area->pages * P, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area->at);
		memset(area->content, 0, sizeof(area->content));
		area->prot = 3;
	}
}

int main(int argc, char **argv)
{
	uint64_t told_at = 0;

	state = argc > 1 ? atoi(argv[1]) : 1;
	base = mmap(NULL, (long)SLOTS * 2 * MOST * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(base != MAP_FAILED && !munmap(base, (long)SLOTS * 2 * MOST * P));
	for (int i = 0; i < 20000; i++)
		step(pick(SLOTS));
	ready();
	while (!told_at || steps < told_at + 5000) {
		step(pick(SLOTS));
		steps++;
		if (!told_at && steps % 16 == 0 && told())
			told_at = steps;
		if (argc > 2 && steps % 16 == 0)
			usleep(atoi(argv[2]));
	}
	for (int i = 0; i < SLOTS; i++)
		if (areas[i].at)
			look(&areas[i]);
	pass();
}
