/*
 * CPU credits: an instance with a baseline earns CPU time at that rate, and
 * what it uses is taken off. One that has used it up is held at its baseline
 * until it can run through another interval without a debt.
 *
 * All of it stands in the instance's record, with the counter of its monitor
 * that was read last: another daemon goes on from there. Any thread.
 */
#ifndef CORBEL_COMPUTE_CREDITS_H
#define CORBEL_COMPUTE_CREDITS_H

#include "compute/compute_int.h"

/* Milliseconds; those of time since 1970. */
struct credits {
    int64_t balance_ms; /* of CPU time; below 0: a debt */
    int64_t at_ms;      /* when it was noted; 0: never */
    int64_t cpu_ms;     /* what its monitor had counted then */
    int64_t step_ms;    /* between two counts */
    bool is_held;
};

struct credits_terms {
    int64_t cpus, baseline_percent; /* the baseline of each CPU */
};

/* Counts up to now, when its monitor has counted cpu_ms. False: nothing turns on it, and it is as it
 * was: the next count takes in what this one would have. */
bool credits_count(struct credits *credits, const struct credits_terms *terms, int64_t started_ms,
                   int64_t now_ms, int64_t cpu_ms);
/* Its monitor has ended, and cannot be asked: since the last count, for a step at most, it may have
 * used all of its CPUs, and so it has. */
void credits_end(struct credits *credits, const struct credits_terms *terms, int64_t started_ms,
                 int64_t now_ms);

/* The end of an instance's monitor, in its record; nothing without a baseline. */
void credits_note_end(struct object *instance);

#endif
