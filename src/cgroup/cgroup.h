/*
 * Control groups: CPU time, the CPUs themselves, and memory of processes.
 *
 * Found out once, at cgroup_open(): which of the kernel's two interfaces is
 * mounted (version 2, version 1, or some controls in each), and where this
 * process may make groups. All groups are made in one of our own, of the
 * caller's name; each has a member's name, such as an instance's id. Where
 * there is no group for a control, cgroup_lack() says why, in a sentence for
 * people; pinning then falls back on the scheduler's affinity.
 *
 * Every call may be repeated. Any thread; calls about one id one at a time.
 * Kernel documentation: admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/.
 */
#ifndef CORBEL_CGROUP_CGROUP_H
#define CORBEL_CGROUP_CGROUP_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct cgroup;

enum cgroup_control {
    CGROUP_CPU,    /* weight and cap */
    CGROUP_CPUSET, /* pinning */
    CGROUP_MEMORY, /* limit */
    CGROUP_CONTROL_COUNT
};

struct cgroup_config {
    const char *name;   /* of our own group, among those of others: "corbel-1f3a" */
    const char *parent; /* a group in each hierarchy, "/tests"; "": none is used; NULL: found */
    /* Version 2 makes no groups beside processes: this one may be moved to a group of its own. */
    bool may_move;
    const char *mountinfo, *self; /* files to read; NULL: those of /proc/self */
};

#define CGROUP_USUAL_WEIGHT 100u
#define CGROUP_MIN_WEIGHT 1u
#define CGROUP_MAX_WEIGHT 10000u
#define CGROUP_CPUS_BYTES 128
#define CGROUP_MAX_CPU 1023u
#define CGROUP_PATHS_BYTES 4096

/* What one group may have; all zero but the weight: whatever there is. */
struct cgroup_limits {
    unsigned cpu_weight;          /* against its neighbours'; CGROUP_MIN_WEIGHT to MAX */
    unsigned cpu_cap;             /* percent of one CPU; 0: none */
    uint64_t memory_bytes;        /* 0: none */
    char cpus[CGROUP_CPUS_BYTES]; /* "0-3,8"; "": all */
};

/* Fails for want of memory only: a host without groups gives one that lacks all. */
int cgroup_open(const struct cgroup_config *config, struct err *err, struct cgroup **ret_cgroup)
    MUST_CHECK;
/* Our own group goes when nothing is in it. Accepts NULL. */
void cgroup_close(struct cgroup *cgroup);

/* NULL: there is a group for it. */
const char *cgroup_lack(const struct cgroup *cgroup, enum cgroup_control control);
/* "cgroup v2", "cgroup v1", or what is done without: "affinity", "none". Static storage. */
const char *cgroup_means(const struct cgroup *cgroup, enum cgroup_control control);

/* The member's directories, one per line, as they are (to be) made for these limits. */
void cgroup_paths(const struct cgroup *cgroup, const char *id, const struct cgroup_limits *limits,
                  char out[CGROUP_PATHS_BYTES]);

/* Makes the member where it has none, and sets what it may have from now on. */
int cgroup_set(const struct cgroup *cgroup, const char *id, const struct cgroup_limits *limits,
               struct err *err) MUST_CHECK;

/* Puts a process and all its descendants into it; -ESRCH when it has ended. */
int cgroup_enter(const struct cgroup *cgroup, const char *id, const struct cgroup_limits *limits,
                 pid_t pid, struct err *err) MUST_CHECK;

/*
 * Removes the member's directories: those that there may be now, and those of
 * an earlier cgroup_paths(). Processes that are still in it are ended; -EBUSY
 * while they end: ask again. Absent is fine.
 */
int cgroup_remove(const struct cgroup *cgroup, const char *id, const char *paths, struct err *err)
    MUST_CHECK;

/* Calls fn with the id of every member there is, perhaps more than once; fn may remove it. */
void cgroup_each(const struct cgroup *cgroup, void (*fn)(void *opaque, const char *id),
                 void *opaque);

/* "0-3,8": numbers and ranges, ascending or not. The highest CPU, or -EINVAL. */
int cgroup_check_cpus(const char *text) MUST_CHECK;

#endif
