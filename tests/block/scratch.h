/*
 * What the tests of the block layer share: a random stream that a seed
 * repeats, a directory of their own, and qemu-img as second opinion.
 */
#ifndef CORBEL_TESTS_BLOCK_SCRATCH_H
#define CORBEL_TESTS_BLOCK_SCRATCH_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t state;
};

static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline uint64_t rng_below(struct rng *rng, uint64_t limit)
{
    return rng_next(rng) % limit;
}

/* Makes the directory; it is removed with all in it when the process exits. */
void scratch_init(void);
/* The path of a file in it; one of a few static buffers. */
const char *scratch_path(const char *name);

/* Prints what is wrong, with the seed of the run, and ends the process. */
NORETURN void fail(const char *fmt, ...) PRINTF_LIKE(1, 2);
void fail_context(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* The exit status of a command line, its output shown when it is not among the allowed bits. */
int run_command(unsigned allowed_statuses, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool have_qemu_img(void);

#endif
