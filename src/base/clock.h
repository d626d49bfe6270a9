/* The clock that everything in the project waits by. */
#ifndef CORBEL_BASE_CLOCK_H
#define CORBEL_BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

/* CLOCK_MONOTONIC in ns. Any thread. */
uint64_t clock_monotonic_ns(void);

#endif
