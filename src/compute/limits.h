/*
 * What an instance may use, and whoever keeps it to that: a control group for
 * CPU time, CPUs and memory; its monitor for disks, network, balloon and,
 * where there is no group, CPU time.
 *
 * What holds for a running machine is noted in its runtime directory
 * (limits.json, and cgroups: directories that are to be removed), before it is
 * made so. Workers call these for the task that they have.
 */
#ifndef CORBEL_COMPUTE_LIMITS_H
#define CORBEL_COMPUTE_LIMITS_H

#include "cgroup/cgroup.h"
#include "compute/compute_int.h"

#define LIMITS_MAX_DISKS 9 /* its own, and 8 volumes */

struct limits {
    int64_t life; /* of the daemon that sets them: between two, groups may have lost theirs */
    struct cgroup_limits group;
    unsigned vcpu_cap; /* percent of its CPUs' time, by the monitor; 0: none */
    bool cpu_spare;    /* it has a cap or credits: its monitor wastes no time */
    int64_t net_bps, net_pps, balloon_mib;
    struct limits_disk {
        char id[ID_BYTES];
        int64_t bps, iops;
    } disks[LIMITS_MAX_DISKS];
    unsigned disk_count;
};

/* ---- calls ---- */

/* The fields that an instance has from its type unless it says otherwise; ended by NULL. */
extern const char *const limits_fields[];
/* Fills in what the type says; type may be NULL. */
void limits_resolve(struct object *instance, const struct object *type);
/* The limit of memory keeps its distance from the memory, unless changes say it. before: the record. */
void limits_follow(struct object *instance, const json_t *before, const json_t *changes);
/* Whether they fit one another and the host. */
int limits_check(const struct compute *compute, const struct object *instance, struct fault *fault)
    MUST_CHECK;
/* Refuses what the request names and is more than the type gives; type may be empty. -EDQUOT. */
int limits_keep_to_type(const struct object *instance, const struct object *type,
                        const json_t *named, struct fault *fault) MUST_CHECK;
/* Whether changes are about limits. */
bool limits_are_in(const json_t *changes);
/* For people: each thing, and by what means it is limited, or why it is not. */
json_t *limits_means(const struct compute *compute);
/* Sets "unenforced": which of its limits nobody keeps it to. */
void limits_note(const struct compute *compute, struct object *instance);

/* ---- machines ---- */

int limits_of(struct compute *compute, const struct object *instance, struct limits *ret_limits,
              struct err *err) MUST_CHECK;
/* ",bps=N,iops=N" for a disk's text in a monitor's configuration, ",bps=N,pps=N" for its network. */
void limits_disk_text(const struct limits *limits, const char *id, char *out, size_t out_size);
void limits_net_text(const struct limits *limits, char *out, size_t out_size);

/* The group of a machine that is to start, empty; dir: its runtime directory. */
int limits_make(struct task *task, const char *dir, const struct limits *limits, struct err *err)
    MUST_CHECK;
/* A monitor that has not begun yet. */
int limits_enter(struct task *task, const struct limits *limits, pid_t pid, struct err *err)
    MUST_CHECK;
/* Of a machine that runs: whether it is as the records say; and making it so. */
bool limits_hold(struct task *task, const struct object *instance);
int limits_apply(struct task *task, const struct object *instance, struct err *err) MUST_CHECK;
/* The group alone, before its guest gets more: what is new has to fit. */
int limits_make_room(struct task *task, const struct object *instance, struct err *err) MUST_CHECK;
/* Removes the group; -EBUSY while its last processes end. */
int limits_end(struct task *task, const char *dir, struct err *err) MUST_CHECK;
/* The same for a directory that belongs to no instance. */
void limits_sweep(struct compute *compute, const char *id, const char *dir);
/* Has others looked at whose share depends on who else runs. */
void limits_rebalance(struct compute *compute);

#endif
