/*
 * The benchmarks that run inside a guest, and natively for comparison.
 *
 * One static program without any dependency. Each benchmark does a fixed
 * amount of work and returns a checksum of what it computed, which must be
 * the same everywhere; it is short, some 50 ms on a common host.
 */
#ifndef CORBEL_BENCH_BENCH_H
#define CORBEL_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bench {
    const char *group;
    const char *name;
    uint64_t (*run)(void);
    bool (*is_supported)(void); /* NULL: everywhere */
    bool has_varying_result;    /* the checksum says nothing */
};

extern const struct bench integer_benches[];
extern const struct bench floating_benches[];
extern const struct bench simd_benches[];
extern const struct bench crypto_benches[];
extern const struct bench memory_benches[];
extern const struct bench system_benches[];
extern const struct bench io_benches[];
extern const struct bench disk_benches[];

/* A fast generator with a fixed seed: the same numbers on every machine. */
static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    return x;
}

#define BENCH_SEED 0x9e3779b97f4a7c15ull

/* Prints and exits with 2: a benchmark that cannot do its work measures nothing. */
__attribute__((noreturn)) void bench_fail(const char *what);

#endif
