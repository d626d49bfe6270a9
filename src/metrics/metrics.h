/*
 * What machines and the host do over time: counters for Prometheus, a day's
 * history for charts, and alarms on it.
 *
 * A thread of its own asks the monitors of all running instances once per
 * period, and writes a line of history for each and for the host; a guest is
 * not woken by that. History of an instance stands in its directory and goes
 * with it.
 *
 * Threads: any, several at a time; all calls wait (for files, and for monitors
 * up to a second).
 */
#ifndef CORBEL_METRICS_METRICS_H
#define CORBEL_METRICS_METRICS_H

#include "compute/compute.h"

#define METRICS_PERIOD_S 10u
#define METRICS_KEPT_PERIODS 8640u

struct metrics;

/* What webhooks may lead to; each holds those before. */
enum metrics_reach {
    REACH_PUBLIC,
    REACH_PRIVATE, /* networks that are nobody else's */
    REACH_LOCAL    /* this host and its link */
};

struct metrics_config {
    struct compute *compute; /* outlives it */
    const char *state_dir;   /* the host's history stands here */
    unsigned period_s;       /* 0: METRICS_PERIOD_S; at most 60 */
    enum metrics_reach reach;
};

int metrics_open(const struct metrics_config *config, struct err *err, struct metrics **ret_metrics)
    MUST_CHECK;
void metrics_close(struct metrics *metrics); /* accepts NULL */

/*
 * The text that Prometheus scrapes (exposition format 0.0.4), asked for anew:
 * instances of the project (its id or name), or all of them with the host and
 * this process (NULL). malloc'd, the caller's.
 */
int metrics_expose(struct metrics *metrics, const char *project, char **ret_text,
                   struct fault *fault) MUST_CHECK;

/* What projects use is counted once per period, too: to be read by compute_usage_read(). */
struct compute_usage *metrics_usage(struct metrics *metrics);

struct metrics_query {
    const char *metrics;       /* names with commas between them; NULL: all */
    uint64_t since_s, until_s; /* seconds since 1970; 0: an hour ago, now */
    unsigned step_s;           /* 0: one that gives some 360 points */
};

/*
 * {"since", "step", "series": {"cpu_percent": [1.5, null, ...], ...}}: means
 * over each step, null where nothing was counted. At most 24 hours and 8640
 * points a series. id NULL: the host's.
 */
int metrics_history(struct metrics *metrics, const struct compute_call *call, const char *id,
                    const struct metrics_query *query, json_t **ret_history, struct fault *fault)
    MUST_CHECK;

#endif
