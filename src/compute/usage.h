/*
 * Between the files that count what projects use. The contract is compute.h.
 *
 * A record "/usage/hour/HOUR/PROJECT" has the sums of each instance, volume and snapshot
 * within that hour since 1970; "/usage/state" how far has been counted, and
 * each machine's last network counter. Both are written by one commit, so that
 * nothing is counted twice after a crash; what was counted since the last
 * commit is counted again then, from the state that the store has.
 */
#ifndef CORBEL_COMPUTE_USAGE_H
#define CORBEL_COMPUTE_USAGE_H

#include "compute/compute_int.h"

#define USAGE_HOUR_PREFIX "/usage/hour/"
#define USAGE_S_PER_HOUR 3600u
#define USAGE_KEPT_HOURS (400u * 24)

struct compute_usage {
    struct compute *compute;
    struct mutex lock; /* everything below */
    bool is_loaded;
    uint64_t at_s;      /* counted until then; 0: never */
    uint64_t up_s;      /* the host's time since it began, then */
    char boot[64];      /* of which start of the host */
    uint64_t flushed_s; /* of the last commit */
    json_t *counters;   /* bytes of each machine's network, as they were last */
    json_t *pending;    /* {"HOUR/PROJECT": {ID: item}}: not in the store yet */
};

enum usage_sum { USAGE_VCPU_S, USAGE_MEMORY_MIB_S, USAGE_STORAGE_GIB_S, USAGE_NETWORK_BYTES };
extern const char *const usage_sums[4];

/* All of an item's sums, and its name, are added to another's. */
void usage_add_item(json_t *to, const json_t *item);
/* Of pending, or of what is read: made where there is none. */
json_t *usage_child(json_t *object, const char *name);

/* ---- usage_store.c; all with the lock held ---- */

/* Once; what was counted before this process. */
int usage_load(struct compute_usage *usage, struct fault *fault) MUST_CHECK;
/* All that is pending. */
int usage_flush(struct compute_usage *usage, struct fault *fault) MUST_CHECK;
/* Hours that nobody asks about any more go. */
int usage_drop_old(struct compute_usage *usage, struct fault *fault) MUST_CHECK;

#endif
