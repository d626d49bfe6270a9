/*
 * The control socket's commands for disks; docs/control.md describes them.
 *
 * Each reads its request, which is untrusted, and fills the answer; a negative
 * errno and a sentence when it refuses. The control loop's thread.
 */
#ifndef CORBEL_VMM_CONTROL_DISK_H
#define CORBEL_VMM_CONTROL_DISK_H

#include "base/compiler.h"
#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>

struct machine;

void control_disks(struct machine *machine, json_t *answer);
int control_disk_limit(struct machine *machine, const json_t *request, struct err *err) MUST_CHECK;
int control_disk_resize(struct machine *machine, const json_t *request, struct err *err) MUST_CHECK;
int control_disk_add(struct machine *machine, const json_t *request, struct err *err) MUST_CHECK;
int control_disk_remove(struct machine *machine, const json_t *request, struct err *err) MUST_CHECK;
int control_disk_snapshot(struct machine *machine, const json_t *request, json_t *answer,
                          struct err *err) MUST_CHECK;
int control_disk_mirror(struct machine *machine, const json_t *request, struct err *err) MUST_CHECK;
/* A stream, or a commit. */
int control_disk_layers(struct machine *machine, const json_t *request, bool is_commit,
                        struct err *err) MUST_CHECK;
int control_disk_job(struct machine *machine, const json_t *request, struct err *err) MUST_CHECK;

#endif
