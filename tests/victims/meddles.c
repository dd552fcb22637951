/* meddles KIND: has done something to its own vDSO. Nothing here may call it by way of the C library.
     none      unmapped all of it            later     does so when $VICTIM_DIR/unmap is there
     code      unmapped [vdso] alone         data      unmapped [vvar] and its kin alone
     whole     moved all of it, as it was    apart     moved [vdso] alone
     writable  made [vdso] writable          written   has written to it
   (No part of an area can be unmapped: special_mapping_split(), "mm: forbid splitting special mappings", Linux 5.11.) */
#include "victim.h"
#include "vdso.h"

static struct area {
	char name[24];
	uintptr_t start, end;
} areas[4];
static int count;

static void look(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");

	check(maps);
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "[vvar") || strstr(line, "[vdso]")) {
			struct area *area = areas + count++;

			check(count <= 4);
			check(sscanf(line, "%lx-%lx %*s %*s %*s %*s %23s", &area->start, &area->end, area->name) == 3);
		}
	fclose(maps);
	check(count >= 2 && !strcmp(areas[count - 1].name, "[vdso]"));
}

static void unmap(int first, int last)
{
	for (int i = first; i <= last; i++)
		check(!munmap((void *)areas[i].start, areas[i].end - areas[i].start));
}

static uintptr_t move(const struct area *area, uintptr_t to)
{
	size_t size = area->end - area->start;

	check(mremap((void *)area->start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == (void *)to);
	return to - area->start;
}

static uintptr_t meddle(const char *kind)
{
	struct area *code = areas + count - 1;
	size_t size = code->end - areas[0].start;
	uintptr_t by = 0, room = (uintptr_t)mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check((void *)room != MAP_FAILED && !munmap((void *)room, size));
	if (!strcmp(kind, "none")) {
		unmap(0, count - 1);
	} else if (!strcmp(kind, "code")) {
		unmap(count - 1, count - 1);
	} else if (!strcmp(kind, "data")) {
		unmap(0, count - 2);
	} else if (!strcmp(kind, "whole")) {
		for (int i = 0; i < count; i++)
			by = move(areas + i, room + (areas[i].start - areas[0].start));
	} else if (!strcmp(kind, "apart")) {
		by = move(code, room);
	} else if (!strcmp(kind, "writable")) {
		check(!mprotect((void *)code->start, code->end - code->start, PROT_READ | PROT_WRITE | PROT_EXEC));
	} else if (!strcmp(kind, "written")) {
		uint8_t *byte = (uint8_t *)code->start + 9; /* padding of e_ident */

		check(!mprotect((void *)code->start, code->end - code->start, PROT_READ | PROT_WRITE));
		++*byte;
		check(!mprotect((void *)code->start, code->end - code->start, PROT_READ | PROT_EXEC));
	} else {
		check(!strcmp(kind, "later"));
	}
	return by;
}

int main(int argc, char **argv)
{
	char path[512];
	int waits, moved;
	struct timespec t;
	uintptr_t by;

	check(argc == 2);
	waits = !strcmp(argv[1], "later");
	moved = !strcmp(argv[1], "whole");
	snprintf(path, sizeof(path), "%s/unmap", getenv("VICTIM_DIR"));
	vdso_look_up();
	look();
	by = meddle(argv[1]);
	ready();
	while (waits && access(path, F_OK))
		clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){ 0, 1000000 }, NULL);
	if (waits) {
		unmap(0, count - 1);
		say("unmapped\n");
	}
	wait_told();
	check(!syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t));
	if (moved) {
		long (*call)(clockid_t, struct timespec *) = (void *)((uintptr_t)vdso.clock_gettime + by);
		struct timespec later;

		check(!call(CLOCK_MONOTONIC, &later));
		check(later.tv_sec > t.tv_sec || (later.tv_sec == t.tv_sec && later.tv_nsec >= t.tv_nsec));
	}
	pass();
}
