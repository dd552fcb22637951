/* grows: after the move the heap goes on where it ended, the stack goes deeper than ever, a MAP_GROWSDOWN area grows, and a
   mapping is enlarged in place; what was there stays, and what is new is zero. */
#include "victim.h"

enum { P = 4096, DEEP = 2 << 20 };

static uint64_t deeper(int left)
{
	volatile uint64_t room[P / 8];

	for (int i = 0; i < P / 8; i++)
		room[i] = left;
	uint64_t below = left ? deeper(left - 1) : 0;

	for (int i = 0; i < P / 8; i++)
		check(room[i] == (uint64_t)left);
	return below + room[7];
}

int main(void)
{
	char *heap = sbrk(0), *more, *hole;

	check(sbrk(8 * P) == heap);
	for (int i = 0; i < 8; i++)
		heap[i * P] = 'a' + i;
	check(deeper(3) == 6);
	hole = mmap(NULL, 600 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(hole != MAP_FAILED && !munmap(hole, 600 * P));
	char *down = mmap(hole + 590 * P, 2 * P, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);

	check(down == hole + 590 * P);
	down[0] = 'd';
	ready();
	wait_told();
	more = sbrk(8 * P);
	check(more == heap + 8 * P, "%p, not %p", more, heap + 8 * P);
	for (int i = 0; i < 8; i++)
		check(heap[i * P] == 'a' + i && !more[i * P + 5]);
	check(sbrk(-4 * P) == heap + 16 * P && sbrk(0) == heap + 12 * P);
	check(deeper(DEEP / P) == (uint64_t)DEEP / P * (DEEP / P + 1) / 2);
	for (int i = 1; i < 50; i++) {
		check(!down[-i * P]);
		down[-i * P] = i;
	}
	check(down[0] == 'd' && down[-49 * P] == 49);
	void *small = malloc(100), *large = malloc(1 << 20);

	check(small && large);
	memset(large, 1, 1 << 20);
	pass();
}
