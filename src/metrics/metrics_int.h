/* Between the files of metrics. The contract is metrics.h. */
#ifndef CORBEL_METRICS_METRICS_INT_H
#define CORBEL_METRICS_METRICS_INT_H

#include "base/thread.h"
#include "metrics/metrics.h"

#include <limits.h>
#include <stdio.h>

#define RING_VALUES 15u

/* ---- machines.c: what monitors say now ---- */

struct machine_sample {
    char dir[128];    /* of its monitor's sockets */
    json_t *instance; /* as compute answers it */
    json_t *answer;   /* "statistics", "vcpus", "latencies"; NULL: it did not answer */
};

struct machine_samples {
    struct machine_sample *items;
    unsigned count, room;
};

int machines_ask(struct compute *compute, const char *project, struct machine_samples *ret_samples,
                 struct fault *fault) MUST_CHECK;
void machines_done(struct machine_samples *samples);
/* A counter of a sample; 0 when it is not there. */
uint64_t machine_counter(const struct machine_sample *sample, const char *name);

/* ---- host.c ---- */

struct host_counters {
    uint64_t at_ns; /* CLOCK_MONOTONIC */
    unsigned cpus;
    uint64_t busy_ticks, steal_ticks, idle_ticks, ticks_per_s;
    double load;
    uint64_t memory_bytes, available_bytes;
    uint64_t disk_read_bytes, disk_written_bytes; /* of block devices with hardware behind them */
    uint64_t net_rx_bytes, net_tx_bytes;          /* of interfaces with hardware behind them */
    uint64_t space_bytes, free_bytes;             /* where the state is */
    uint64_t own_cpu_ns, own_resident_bytes, own_virtual_bytes;
    uint64_t own_start_s; /* since 1970 */
    unsigned own_fds, own_max_fds;
};

/* What cannot be read stays 0. */
void host_count(const char *state_dir, struct host_counters *ret_counters);

/* ---- series.c: the columns of history ---- */

struct series {
    const char *name;
    const char *help;
};

extern const struct series instance_series[RING_VALUES], host_series[RING_VALUES];

/* One line's values; NAN: not known. earlier NULL: the first, which has no rates. */
void series_of_instance(const struct machine_sample *earlier, const struct machine_sample *now,
                        float values[RING_VALUES]);
void series_of_host(const struct host_counters *earlier, const struct host_counters *now,
                    unsigned machines, float values[RING_VALUES]);

/* ---- ring.c: a file that holds the last METRICS_KEPT_PERIODS lines ---- */

struct ring_line {
    uint32_t period; /* time since 1970 in periods */
    float values[RING_VALUES];
};

/* A file that is none, damaged, or of another period begins anew. -ENOENT without its directory. */
int ring_write(const char *path, unsigned period_s, const struct ring_line *line) MUST_CHECK;
/* Calls fn for the lines from first to last (at most METRICS_KEPT_PERIODS apart) that are there,
 * in order. A file that is none has no lines. */
int ring_read(const char *path, unsigned period_s, uint32_t first, uint32_t last,
              void (*fn)(void *opaque, const struct ring_line *line), void *opaque) MUST_CHECK;

/* ---- alarms.c ---- */

struct hooks;

/* Once per period, after its lines. The sampler's thread. */
void alarms_evaluate(struct metrics *metrics, const struct machine_samples *samples,
                     uint32_t period);

/* ---- hooks.c ---- */

int hooks_create(struct compute *compute, enum metrics_reach reach, struct hooks **ret_hooks)
    MUST_CHECK;
void hooks_destroy(struct hooks *hooks); /* accepts NULL */
/* Sends it, unless it is under way. Any thread; waits for nothing. */
void hooks_add(struct hooks *hooks, const json_t *alarm, const char *owed,
               const struct compute_debt *debt);

/* ---- event_hooks.c ---- */

struct event_hooks;

int event_hooks_create(struct compute *compute, enum metrics_reach reach,
                       struct event_hooks **ret_hooks) MUST_CHECK;
void event_hooks_destroy(struct event_hooks *hooks); /* accepts NULL */
/* There may be hooks, and events, that are new. Any thread; waits for nothing. */
void event_hooks_look(struct event_hooks *hooks);

/* ---- metrics.c ---- */

/* What was counted of an instance one period before. The sampler's thread. */
struct track {
    struct track *next;
    struct machine_sample sample; /* without instance and directory */
    char id[64];
    bool is_seen;
};

struct metrics {
    struct metrics_config config;
    char state_dir[PATH_MAX];
    struct hooks *hooks; /* of alarms */
    struct event_hooks *event_hooks;
    struct compute_usage *usage;
    struct mutex scrapes; /* one at a time: a monitor has few places for clients */

    struct mutex lock; /* the next line */
    bool is_closing;
    pthread_cond_t changed;
    pthread_t thread;
    bool has_thread;

    /* The sampler's thread. */
    struct track *tracks;
    struct host_counters host;
};

/* out[PATH_MAX]. id NULL: the host's. */
int history_path(const struct metrics *metrics, const char *id, char *out) MUST_CHECK;

#endif
