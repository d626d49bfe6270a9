/*
 * Limits of a disk or a network card: token buckets for bytes and for operations.
 *
 * A bucket fills at its rate up to its burst. A request starts when there is
 * anything in the bucket, and may leave it in debt, so that a request larger
 * than the burst passes as well; the next one then waits until the debt is
 * paid. Time comes from the caller: the same calls give the same answers.
 * Plain data; the owner locks.
 */
#ifndef CORBEL_BASE_LIMIT_H
#define CORBEL_BASE_LIMIT_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

#define LIMIT_MAX_RATE (1ull << 50)

/* Rates in units per second; 0: no limit. A burst of 0 is a tenth of a second's worth. */
struct limit_config {
    uint64_t bytes_per_second, burst_bytes;
    uint64_t ops_per_second, burst_ops;
};

struct limit_bucket {
    uint64_t rate;
    uint64_t burst;
    int64_t tokens; /* negative: debt */
    uint64_t last_ns;
    uint64_t remainder; /* of a token, in 1/1e9 */
};

struct limit {
    struct limit_config config;
    struct limit_bucket bytes;
    struct limit_bucket ops;
};

/* Buckets start full. -EINVAL when a rate or burst is above LIMIT_MAX_RATE. */
int limit_set(struct limit *limit, const struct limit_config *config, uint64_t now_ns) MUST_CHECK;
bool limit_is_set(const struct limit *limit);

/* When limit_take() takes something: 0 for now. */
uint64_t limit_when(struct limit *limit, uint64_t now_ns) MUST_CHECK;

/* Takes, whatever is there. */
void limit_charge(struct limit *limit, uint64_t bytes, uint64_t now_ns);

/* 0: taken. Otherwise the time at which it is worth asking again. */
uint64_t limit_take(struct limit *limit, uint64_t bytes, uint64_t now_ns) MUST_CHECK;

#endif
