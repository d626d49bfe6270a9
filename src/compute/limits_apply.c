/* Limits of machines: groups and monitors are brought to what the records say. */
#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "compute/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LIMITS_FILE "limits.json"
#define GROUPS_FILE "cgroups"

/* All of it, to be compared; "" where a limit does not matter. */
static json_t *describe(const struct limits *limits)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < limits->disk_count; i++) {
        (void)json_array_append_new(disks, json_pack("[s, I, I]", limits->disks[i].id,
                                                     (json_int_t)limits->disks[i].bps,
                                                     (json_int_t)limits->disks[i].iops));
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:s, s:I, s:b, s:I, s:I, s:I, s:o}", "life",
                     (json_int_t)limits->life, "cpu_weight", (json_int_t)limits->group.cpu_weight,
                     "cpu_cap", (json_int_t)limits->group.cpu_cap, "memory_bytes",
                     (json_int_t)limits->group.memory_bytes, "cpus", limits->group.cpus, "vcpu_cap",
                     (json_int_t)limits->vcpu_cap, "cpu_spare", limits->cpu_spare, "net_bps",
                     (json_int_t)limits->net_bps, "net_pps", (json_int_t)limits->net_pps,
                     "balloon_mib", (json_int_t)limits->balloon_mib, "disks", disks);
}

static int note_limits(const char *dir, const struct limits *limits, struct err *err)
{
    return machine_write_json(dir, LIMITS_FILE, describe(limits), err);
}

/* Directories that there may be from now on, besides those of an earlier life. */
static int note_groups(struct task *task, const char *dir, const struct limits *limits,
                       struct err *err)
{
    char paths[CGROUP_PATHS_BYTES];
    json_t *known = machine_read_json(dir, GROUPS_FILE);
    json_t *list = json_is_array(known) ? known : json_array();
    bool is_new = false;
    char *save = NULL;

    if (list != known) {
        json_decref(known);
    }
    cgroup_paths(task->compute->group, task->id, &limits->group, paths);
    for (char *path = strtok_r(paths, "\n", &save); path != NULL;
         path = strtok_r(NULL, "\n", &save)) {
        bool is_known = false;

        for (size_t i = 0; i < json_array_size(list); i++) {
            is_known |= strcmp(json_string_value(json_array_get(list, i)), path) == 0;
        }
        if (!is_known) {
            (void)json_array_append_new(list, json_string(path));
            is_new = true;
        }
    }
    if (!is_new) {
        json_decref(list);
        return 0;
    }
    return machine_write_json(dir, GROUPS_FILE, list, err);
}

int limits_make(struct task *task, const char *dir, const struct limits *limits, struct err *err)
{
    /* The balloon is the guest's driver's, which there is none of yet. */
    struct limits first = *limits;
    int rc = task_step(task, STEP_MAKE_CGROUP, false);

    first.balloon_mib = 0;
    rc = rc < 0 ? rc : note_groups(task, dir, limits, err);
    rc = rc < 0 ? rc : cgroup_set(task->compute->group, task->id, &limits->group, err);
    rc = rc < 0 ? rc : note_limits(dir, &first, err);
    return rc < 0 ? rc : task_step(task, STEP_MAKE_CGROUP, true);
}

int limits_enter(struct task *task, const struct limits *limits, pid_t pid, struct err *err)
{
    int rc = task_step(task, STEP_ENTER_CGROUP, false);

    rc = rc < 0 ? rc : cgroup_enter(task->compute->group, task->id, &limits->group, pid, err);
    return rc < 0 ? rc : task_step(task, STEP_ENTER_CGROUP, true);
}

bool limits_hold(struct task *task, const struct object *instance)
{
    struct limits limits;
    char dir[PATH_MAX];
    json_t *noted, *wanted;
    struct err ignored;
    bool is_equal;

    if (machine_path(task->compute, task->id, dir, &ignored) < 0 ||
        limits_of(task->compute, instance, &limits, &ignored) < 0) {
        return true;
    }
    noted = machine_read_json(dir, LIMITS_FILE);
    wanted = describe(&limits);
    /* A machine of a daemon that knew no limits has no such file, and none. */
    is_equal = noted == NULL || json_equal(noted, wanted) != 0;
    json_decref(noted);
    json_decref(wanted);
    return is_equal;
}

/* What the monitor keeps. */
static int tell_monitor(struct task *task, const struct limits *limits, struct err *err)
{
    int rc =
        machine_ask(task,
                    json_pack("{s:s, s:i, s:b, s:I, s:I}", "command", "limits", "cpu-cap",
                              (int)limits->vcpu_cap, "cpu-spare", limits->cpu_spare, "net-bps",
                              (json_int_t)limits->net_bps, "net-pps", (json_int_t)limits->net_pps),
                    NULL, err);

    for (unsigned i = 0; rc == 0 && i < limits->disk_count; i++) {
        const struct limits_disk *disk = &limits->disks[i];

        rc =
            machine_ask(task,
                        json_pack("{s:s, s:s, s:I, s:I}", "command", "disk-limit", "disk", disk->id,
                                  "bps", (json_int_t)disk->bps, "iops", (json_int_t)disk->iops),
                        NULL, err);
        if (rc == -EIO && disk->bps == 0 && disk->iops == 0) {
            rc = 0; /* an image without a disk, or a volume that comes later: nothing to limit */
        }
    }
    return rc < 0 ? rc
                  : machine_ask(task,
                                json_pack("{s:s, s:I}", "command", "balloon", "bytes",
                                          (json_int_t)(limits->balloon_mib << 20)),
                                NULL, err);
}

int limits_apply(struct task *task, const struct object *instance, struct err *err)
{
    struct limits limits;
    char dir[PATH_MAX];
    int refusal;
    int rc = machine_path(task->compute, task->id, dir, err);

    rc = rc < 0 ? rc : limits_of(task->compute, instance, &limits, err);
    rc = rc < 0 ? rc : task_step(task, STEP_APPLY_LIMITS, false);
    rc = rc < 0 ? rc : note_groups(task, dir, &limits, err);
    if (rc < 0) {
        return rc;
    }
    refusal = cgroup_set(task->compute->group, task->id, &limits.group, err);
    refusal = refusal < 0
                  ? refusal
                  : cgroup_enter(task->compute->group, task->id, &limits.group, task->pid, err);
    refusal = refusal < 0 ? refusal : tell_monitor(task, &limits, err);
    if (refusal < 0 && refusal != -EIO && refusal != -EINVAL && refusal != -EBUSY &&
        refusal != -EACCES && refusal != -EPERM && refusal != -ENOENT) {
        return refusal; /* it is just ending, or does not answer: another look */
    }
    /* What was refused now is not tried again and again: until something changes. */
    rc = note_limits(dir, &limits, refusal < 0 ? NULL : err);
    rc = rc < 0 ? rc : task_step(task, STEP_APPLY_LIMITS, true);
    return refusal < 0 ? refusal : rc;
}

int limits_make_room(struct task *task, const struct object *instance, struct err *err)
{
    struct limits limits;
    char dir[PATH_MAX];
    int rc = machine_path(task->compute, task->id, dir, err);

    rc = rc < 0 ? rc : limits_of(task->compute, instance, &limits, err);
    rc = rc < 0 ? rc : note_groups(task, dir, &limits, err);
    return rc < 0 ? rc : cgroup_set(task->compute->group, task->id, &limits.group, err);
}

/* As lines. */
static void read_groups(const char *dir, char out[CGROUP_PATHS_BYTES])
{
    json_t *list = machine_read_json(dir, GROUPS_FILE);
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *path = json_string_value(json_array_get(list, i));

        if (path != NULL && used + strlen(path) + 2 < CGROUP_PATHS_BYTES) {
            used += (size_t)snprintf(out + used, CGROUP_PATHS_BYTES - used, "%s\n", path);
        }
    }
    json_decref(list);
}

int limits_end(struct task *task, const char *dir, struct err *err)
{
    char paths[CGROUP_PATHS_BYTES];
    int rc;

    if (!path_exists(dir)) {
        return 0; /* it comes before the group, and goes after it */
    }
    read_groups(dir, paths);
    rc = task_step(task, STEP_REMOVE_CGROUP, false);
    rc = rc < 0 ? rc : cgroup_remove(task->compute->group, task->id, paths, err);
    return rc < 0 ? rc : task_step(task, STEP_REMOVE_CGROUP, true);
}

void limits_sweep(struct compute *compute, const char *id, const char *dir)
{
    char paths[CGROUP_PATHS_BYTES];
    struct err err;

    read_groups(dir, paths);
    if (cgroup_remove(compute->group, id, paths, &err) < 0) {
        log_warn("%s, ignoring", err.text);
    }
}

static int queue_reserved(void *opaque, struct object *instance)
{
    if (admit_is_running(instance) && object_number(instance, "cpu_reserved_percent") != 0) {
        compute_queue(opaque, KIND_INSTANCE, instance->project, instance->id, 0);
    }
    return 0;
}

void limits_rebalance(struct compute *compute)
{
    struct fault fault;

    if (atomic_load(&compute->has_reservations) &&
        object_each(compute, KIND_INSTANCE, NULL, queue_reserved, compute, &fault) < 0) {
        log_warn("shares of CPU time stay as they were: %s, ignoring", fault.text);
    }
}
