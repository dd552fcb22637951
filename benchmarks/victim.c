/* What the benchmarks move: a process with so much memory, so many threads or mappings, that writes at such a rate.
 *
 *   victim READY MIB DIRTY_MIB_PER_S THREADS VMAS    writes 1 to READY when it is ready; with DIRTY -1 it goes over all
 *   of its memory again and again, and counts the passes in READY (a u64 at offset 8, mapped shared). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t state = 88172645463325252ull;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void *sleeper(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    size_t size = strtoull(argv[2], 0, 10) << 20;
    long dirty = atol(argv[3]), threads = atol(argv[4]), vmas = atol(argv[5]);
    int ready = open(argv[1], O_RDWR);
    volatile uint64_t *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ready, 0);
    uint64_t *memory = size ? mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : 0;

    for (size_t i = 0; i < size / 8; i++)
        memory[i] = next();
    for (long i = 0; i < vmas; i++) { /* alternating protections, so that no two merge */
        char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *page = 1;
        if (i & 1)
            mprotect(page, 4096, PROT_READ);
    }
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        pthread_attr_t attributes;

        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 64 << 10);
        if (pthread_create(&thread, &attributes, sleeper, 0))
            return 3;
    }
    shared[0] = 1;
    for (;;) {
        if (dirty < 0) {
            for (size_t i = 0; i < size / 8; i += 512)
                memory[i]++;
            shared[1]++;
        } else if (dirty) { /* a hundredth of a second's worth at a time */
            for (long i = 0; i < dirty * 256 / 100; i++)
                memory[next() % (size / 8)]++;
            nanosleep(&(struct timespec){0, 10000000}, 0);
        } else
            pause();
    }
}
