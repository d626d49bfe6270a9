/* What the tables of kinds.c name beyond field.h. */
#ifndef CORBEL_COMPUTE_KINDS_H
#define CORBEL_COMPUTE_KINDS_H

#include "compute/compute.h"

#define KIND_MAX_MEMORY_MIB (256 << 10)
#define HOOK_DELIVERIES 10 /* that are kept of a hook */

/* In the order of compute_actions(). */
enum action {
    ACTION_START,
    ACTION_STOP,
    ACTION_RESTART,
    ACTION_PAUSE,
    ACTION_RESUME,
    ACTION_RESIZE,
    ACTION_COUNT
};

#endif
