/* Memory: bandwidth, latency, and the string instructions. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define AREA_BYTES (16u << 20)

static void *map_area(size_t size)
{
    void *p =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED) {
        bench_fail("memory");
    }
    return p;
}

static uint64_t run_copy(void)
{
    char *a = map_area(AREA_BYTES);
    char *b = map_area(AREA_BYTES);
    uint64_t sum;

    memset(a, 5, AREA_BYTES);
    for (int i = 0; i < 6; i++) {
        a[i * 4096] = (char)i;
        memcpy(b, a, AREA_BYTES);
    }
    sum = (uint64_t)b[4096 * 5] + (uint64_t)b[AREA_BYTES - 1];
    (void)munmap(a, AREA_BYTES);
    (void)munmap(b, AREA_BYTES);
    return sum;
}

static uint64_t run_triad(void)
{
    enum { COUNT = AREA_BYTES / sizeof(double) };
    double *a = map_area(AREA_BYTES);
    double *b = map_area(AREA_BYTES);
    uint64_t sum;

    for (size_t i = 0; i < COUNT; i++) {
        b[i] = (double)i;
    }
    for (int pass = 0; pass < 4; pass++) {
        for (size_t i = 0; i < COUNT; i++) {
            a[i] = a[i] * 0.5 + b[i] * 3.0;
        }
    }
    sum = (uint64_t)a[COUNT - 1];
    (void)munmap(a, AREA_BYTES);
    (void)munmap(b, AREA_BYTES);
    return sum;
}

/* Each load's address comes from the load before: caches and TLBs, nothing else. */
static uint64_t run_chase(void)
{
    enum { COUNT = AREA_BYTES / 64 };
    struct cell {
        uint32_t next;
        char pad[60];
    } *cells = map_area(AREA_BYTES);
    uint64_t state = BENCH_SEED;
    uint32_t at = 0;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < COUNT; i++) {
        cells[i].next = i;
    }
    for (uint32_t i = COUNT - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(bench_random(&state) % i);
        uint32_t t = cells[i].next;

        cells[i].next = cells[j].next;
        cells[j].next = t;
    }
    for (int i = 0; i < 600000; i++) {
        at = cells[at].next;
        sum += at;
    }
    (void)munmap(cells, AREA_BYTES);
    return sum;
}

static uint64_t run_rep_movs(void)
{
    char *a = map_area(1 << 20);
    char *b = map_area(1 << 20);
    uint64_t sum;

    for (int i = 0; i < 400; i++) {
        void *to = b;
        const void *from = a;
        size_t n = 1 << 20;

        a[i] = (char)i;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    }
    sum = (uint64_t)b[399];
    (void)munmap(a, 1 << 20);
    (void)munmap(b, 1 << 20);
    return sum;
}

static uint64_t run_atomics(void)
{
    static uint64_t counter;
    uint64_t sum = 0;

    counter = 0;
    for (int i = 0; i < 4000000; i++) {
        sum += __atomic_fetch_add(&counter, 3, __ATOMIC_SEQ_CST);
    }
    return sum;
}

const struct bench memory_benches[] = {
    {"memory", "copy", run_copy, NULL, false},
    {"memory", "triad", run_triad, NULL, false},
    {"memory", "chase", run_chase, NULL, false},
    {"memory", "rep-movsb", run_rep_movs, NULL, false},
    {"memory", "atomics", run_atomics, NULL, false},
    {.name = NULL},
};
