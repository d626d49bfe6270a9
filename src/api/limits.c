/* Token buckets by name, the one used longest ago giving way to a new name. */
#include "api/api_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT_SLOTS = 1024, LIMIT_WAYS = 4, NAME_BYTES = 96 };

struct bucket {
    char name[NAME_BYTES];
    uint64_t filled_ns;
    double calls;
};

struct rate_limits {
    struct mutex mutex;
    double calls_per_s;
    struct bucket buckets[LIMIT_SLOTS][LIMIT_WAYS];
};

int limits_create(unsigned calls_per_s, struct rate_limits **ret_limits)
{
    struct rate_limits *limits = calloc(1, sizeof(*limits));
    if (limits == NULL) {
        return -ENOMEM;
    }
    mutex_init(&limits->mutex, LOCK_RANK_LEAF);
    limits->calls_per_s = calls_per_s;
    *ret_limits = limits;
    return 0;
}

void limits_destroy(struct rate_limits *limits)
{
    if (limits != NULL) {
        mutex_done(&limits->mutex);
        free(limits);
    }
}

static struct bucket *find(struct rate_limits *limits, const char *name, uint64_t now_ns)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *at = name; *at != 0; at++) {
        hash = (hash ^ (unsigned char)*at) * 16777619u;
    }
    struct bucket *row = limits->buckets[hash % LIMIT_SLOTS];
    struct bucket *oldest = row;
    for (struct bucket *bucket = row; bucket < row + LIMIT_WAYS; bucket++) {
        if (strcmp(bucket->name, name) == 0) {
            return bucket;
        }
        if (bucket->filled_ns < oldest->filled_ns) {
            oldest = bucket;
        }
    }
    (void)strncpy(oldest->name, name, NAME_BYTES - 1);
    oldest->calls = limits->calls_per_s * 2;
    oldest->filled_ns = now_ns;
    return oldest;
}

bool limits_take(struct rate_limits *limits, const char *name, unsigned calls)
{
    uint64_t now_ns = clock_monotonic_ns();
    double wanted = calls < limits->calls_per_s * 2 ? calls : limits->calls_per_s * 2;
    mutex_lock(&limits->mutex);
    struct bucket *bucket = find(limits, name, now_ns);
    bucket->calls += (double)(now_ns - bucket->filled_ns) / 1e9 * limits->calls_per_s;
    if (bucket->calls > limits->calls_per_s * 2) {
        bucket->calls = limits->calls_per_s * 2;
    }
    bucket->filled_ns = now_ns;
    bool is_within = bucket->calls >= wanted;
    if (is_within) {
        bucket->calls -= wanted;
    }
    mutex_unlock(&limits->mutex);
    return is_within;
}
