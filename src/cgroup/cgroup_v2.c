/* Version 2: one hierarchy; a group's children have the controllers that it hands down. */
#include "cgroup/cgroup_int.h"

#include "base/path.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define PERIOD_US 100000u
#define LIST_BYTES 512

/* Hands a controller down to the group's children, if that is not done yet. */
static int hand_down(const char *dir, const char *control, struct err *err)
{
    char list[LIST_BYTES], text[32];
    int rc = cgroup_read(dir, "cgroup.subtree_control", list, sizeof(list), err);

    if (rc < 0 || cgroup_has_word(list, control)) {
        return rc;
    }
    rc = cgroup_read(dir, "cgroup.controllers", list, sizeof(list), err);
    if (rc == 0 && !cgroup_has_word(list, control)) {
        return err_set(err, -ENOENT, "the controller \"%s\" is not handed down to %s", control,
                       dir);
    }
    (void)snprintf(text, sizeof(text), "+%s", control);
    return rc < 0 ? rc : cgroup_write(dir, "cgroup.subtree_control", text, err);
}

/*
 * A service that was given its own group is in it, where groups cannot be made
 * beside it: it moves into one of its own. "0" is who writes.
 */
static int move_aside(const struct hierarchy *hierarchy, struct err *err)
{
    char dir[PATH_MAX];
    int rc = path_format(dir, err, "%s/" CGROUP_ASIDE, hierarchy->parent);

    rc = rc < 0 ? rc : cgroup_mkdir(dir, err);
    return rc < 0 ? rc : cgroup_write(dir, "cgroup.procs", "0", err);
}

/*
 * No group but the root can have both processes and groups with all controllers;
 * the kernel would take "+cpu" all the same and make the others useless.
 */
static int make_room(const struct hierarchy *hierarchy, struct err *err)
{
    char path[PATH_MAX], first[LIST_BYTES];
    int rc = path_format(path, err, "%s/cgroup.type", hierarchy->parent);

    if (rc < 0 || !path_exists(path)) {
        return rc;
    }
    rc = hierarchy->may_move ? move_aside(hierarchy, err) : 0;
    rc = rc < 0 ? rc : cgroup_read(hierarchy->parent, "cgroup.procs", first, sizeof(first), err);
    return rc < 0 || first[0] == '\0'
               ? rc
               : err_set(err, -EBUSY,
                         "%s has processes of its own, so it has no limited groups in it",
                         hierarchy->parent);
}

static int v2_prepare(const struct hierarchy *hierarchy, const char *control, struct err *err)
{
    int rc = make_room(hierarchy, err);

    rc = rc < 0 ? rc : hand_down(hierarchy->parent, control, err);
    rc = rc < 0 ? rc : cgroup_mkdir(hierarchy->dir, err);
    return rc < 0 ? rc : hand_down(hierarchy->dir, control, err);
}

static int v2_prime(const struct hierarchy *hierarchy, const char *dir, struct err *err)
{
    (void)hierarchy;
    (void)dir;
    (void)err;
    return 0;
}

static int v2_set_cpu(const char *dir, const struct cgroup_limits *limits, struct err *err)
{
    char text[48];
    int rc;

    (void)snprintf(text, sizeof(text), "%u", limits->cpu_weight);
    rc = cgroup_write(dir, "cpu.weight", text, err);
    if (limits->cpu_cap == 0) {
        (void)snprintf(text, sizeof(text), "max %u", PERIOD_US);
    } else {
        (void)snprintf(text, sizeof(text), "%u %u", PERIOD_US / 100 * limits->cpu_cap, PERIOD_US);
    }
    return rc < 0 ? rc : cgroup_write(dir, "cpu.max", text, err);
}

static int v2_set_cpuset(const char *dir, const struct cgroup_limits *limits, struct err *err)
{
    return cgroup_write(dir, "cpuset.cpus", limits->cpus[0] != '\0' ? limits->cpus : "\n", err);
}

static int v2_set_memory(const char *dir, const struct cgroup_limits *limits, struct err *err)
{
    char text[32] = "max";

    if (limits->memory_bytes != 0) {
        (void)snprintf(text, sizeof(text), "%" PRIu64, limits->memory_bytes);
    }
    return cgroup_write(dir, "memory.max", text, err);
}

static void v2_kill(const char *dir)
{
    if (cgroup_write(dir, "cgroup.kill", "1", NULL) < 0) {
        cgroup_v1_ops.kill(dir); /* before Linux 5.14 */
    }
}

const struct cgroup_ops cgroup_v2_ops = {
    .name = "cgroup v2",
    .controls = {[CGROUP_CPU] = "cpu", [CGROUP_CPUSET] = "cpuset", [CGROUP_MEMORY] = "memory"},
    .makes_all = true,
    .prepare = v2_prepare,
    .prime = v2_prime,
    .set = {[CGROUP_CPU] = v2_set_cpu,
            [CGROUP_CPUSET] = v2_set_cpuset,
            [CGROUP_MEMORY] = v2_set_memory},
    .kill = v2_kill,
};
