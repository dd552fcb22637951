/* clocks THREADS: each thread reads CLOCK_MONOTONIC and CLOCK_BOOTTIME again and again. Neither may go back, for any
   thread. What they gain on CLOCK_REALTIME, which no time namespace touches (time_namespaces(7)), is told in the end:
   "gained LOW HIGH", nanoseconds; and the longest step between two reads, with the least and
   the most that it can have been by CLOCK_REALTIME: "step STEP LOW HIGH". */
#include "victim.h"

enum { READS = 300, THREADS = 16 };
static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME };
static volatile int over;

struct bracket {
	int64_t low, high; /* of a clock's lead on CLOCK_REALTIME */
};

struct thread {
	int64_t step, low, high;
};

static struct bracket lead(clockid_t clock)
{
	struct bracket found = { INT64_MIN, INT64_MAX };

	for (int i = 0; i < READS; i++) {
		int64_t early = nanoseconds(CLOCK_REALTIME), t = nanoseconds(clock), late = nanoseconds(CLOCK_REALTIME);

		found.low = t - late > found.low ? t - late : found.low;
		found.high = t - early < found.high ? t - early : found.high;
	}
	check(found.low <= found.high);
	return found;
}

static void *work(void *argument)
{
	struct thread *own = argument;
	int64_t early = nanoseconds(CLOCK_REALTIME), late, last[2];

	for (int i = 0; i < 2; i++)
		last[i] = nanoseconds(clocks[i]);
	late = nanoseconds(CLOCK_REALTIME);
	for (int round = 0; !over; round++) {
		int64_t early_now = nanoseconds(CLOCK_REALTIME), now[2], late_now;

		for (int i = 0; i < 2; i++)
			now[i] = nanoseconds(clocks[i]);
		late_now = nanoseconds(CLOCK_REALTIME);
		for (int i = 0; i < 2; i++) {
			check(now[i] >= last[i], "clock %d went back by %ld ns", clocks[i], last[i] - now[i]);
			if (now[i] - last[i] > own->step)
				*own = (struct thread){ now[i] - last[i], early_now - late, late_now - early };
			last[i] = now[i];
		}
		early = early_now;
		late = late_now;
		if (round % 1000 == 0)
			usleep(500);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int count = atoi(argv[1]);
	static struct thread threads[THREADS];
	struct bracket before[2];
	pthread_t ids[THREADS];
	char line[200];

	check(argc == 2 && count <= THREADS);
	for (int i = 0; i < 2; i++)
		before[i] = lead(clocks[i]);
	for (int i = 0; i < count; i++)
		check(!pthread_create(ids + i, NULL, work, threads + i));
	ready();
	wait_told();
	for (int i = 0; i < 2; i++) {
		struct bracket after = lead(clocks[i]);

		snprintf(line, sizeof(line), "gained %ld %ld\n", after.low - before[i].high, after.high - before[i].low);
		say(line);
	}
	over = 1;
	for (int i = 0; i < count; i++) {
		check(!pthread_join(ids[i], NULL));
		snprintf(line, sizeof(line), "step %ld %ld %ld\n", threads[i].step, threads[i].low, threads[i].high);
		say(line);
	}
	pass();
}
