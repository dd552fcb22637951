/* Two clocks that must go on: never back, and never by more than the time that was really spent.
 * Prints `<rounds> <longest step in ms>` every 5 ms, each time slept for until an absolute deadline. */
#include <stdio.h>
#include <time.h>

static long long now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(void)
{
    const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    long long last[] = {now(clocks[0]), now(clocks[1])}, longest = 0;

    for (long rounds = 0;; rounds++) {
        for (int i = 0; i < 2; i++) {
            long long t = now(clocks[i]);

            if (t < last[i]) {
                printf("clock %d went back by %lld ns\n", i, last[i] - t);
                return 1;
            }
            longest = t - last[i] > longest ? t - last[i] : longest;
            last[i] = t;
        }
        printf("%ld %lld\n", rounds, longest / 1000000);
        fflush(stdout);
        struct timespec until = {(last[0] + 5000000) / 1000000000, (last[0] + 5000000) % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
    }
}
