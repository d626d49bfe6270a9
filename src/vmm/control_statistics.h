/* The answer to "statistics" (docs/control.md). The control socket's thread. */
#ifndef CORBEL_VMM_CONTROL_STATISTICS_H
#define CORBEL_VMM_CONTROL_STATISTICS_H

#include "machine/machine.h"

#include <jansson.h>

/* Adds "statistics", "vcpus" and "latencies"; without the engine's counters when the request has
 * "engine": false. -ENOMEM. */
int control_statistics(struct machine *machine, const json_t *request, json_t *answer) MUST_CHECK;

#endif
