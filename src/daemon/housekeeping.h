/*
 * What has to be done now and then: a checked copy of the records, and what is
 * too old goes. A thread of its own does it.
 */
#ifndef CORBEL_DAEMON_HOUSEKEEPING_H
#define CORBEL_DAEMON_HOUSEKEEPING_H

#include "api/api.h"

struct housekeeping;

struct housekeeping_config {
    struct compute *compute; /* these outlive it */
    struct store *store;
    struct api *api;
    const char *state_dir; /* copies stand in backups/ */
    unsigned interval_s;   /* 0: an hour */
    unsigned keep_backups; /* 0: 24 */
    unsigned keep_events;  /* of each project; 0: 10,000 */
    unsigned keep_days;    /* events and ended operations; 0: 30 */
};

int housekeeping_start(const struct housekeeping_config *config, struct err *err,
                       struct housekeeping **ret_housekeeping) MUST_CHECK;
void housekeeping_stop(struct housekeeping *housekeeping); /* accepts NULL */

/* Puts a copy of the records back, while no daemon runs; and sees to it that what is younger than
 * the copy is not taken for rubbish (COMPUTE_RESTORED_MARK). */
int housekeeping_restore(const char *backup, const char *state_dir, struct err *err) MUST_CHECK;

#endif
