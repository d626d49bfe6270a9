/*
 * How long things took: their sum, and how many took how long, in classes each
 * four times as wide as the one before: below 1.024 us, 4.096 us ... 1.07 s,
 * and longer. latency_add() belongs to one thread; any may read meanwhile.
 */
#ifndef CORBEL_BASE_LATENCY_H
#define CORBEL_BASE_LATENCY_H

#include <stdatomic.h>
#include <stdint.h>

#define LATENCY_CLASSES 12u /* the last has no upper bound */
#define LATENCY_FIRST_SHIFT 10u

struct latency {
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t counts[LATENCY_CLASSES];
};

/* A copy, and sums of such. */
struct latency_sum {
    uint64_t sum_ns;
    uint64_t counts[LATENCY_CLASSES];
};

/* Upper bound of a class but the last. */
static inline uint64_t latency_bound_ns(unsigned class)
{
    return 1ull << (LATENCY_FIRST_SHIFT + 2 * class);
}

/* One writer: no locked instruction is needed. */
static inline void latency_count(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

static inline void latency_add(struct latency *latency, uint64_t ns)
{
    uint64_t rest = ns >> LATENCY_FIRST_SHIFT;
    unsigned class = rest == 0 ? 0 : (65u - (unsigned)__builtin_clzll(rest)) / 2;

    latency_count(&latency->sum_ns, ns);
    latency_count(&latency->counts[class < LATENCY_CLASSES ? class : LATENCY_CLASSES - 1], 1);
}

static inline void latency_collect(const struct latency *latency, struct latency_sum *sum)
{
    sum->sum_ns += atomic_load_explicit(&latency->sum_ns, memory_order_relaxed);
    for (unsigned i = 0; i < LATENCY_CLASSES; i++) {
        sum->counts[i] += atomic_load_explicit(&latency->counts[i], memory_order_relaxed);
    }
}

static inline void latency_merge(const struct latency_sum *from, struct latency_sum *sum)
{
    sum->sum_ns += from->sum_ns;
    for (unsigned i = 0; i < LATENCY_CLASSES; i++) {
        sum->counts[i] += from->counts[i];
    }
}

static inline uint64_t latency_total(const struct latency_sum *sum)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < LATENCY_CLASSES; i++) {
        total += sum->counts[i];
    }
    return total;
}

#endif
