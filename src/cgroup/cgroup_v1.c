/* Version 1: one hierarchy per controller, or a few in one. */
#include "cgroup/cgroup_int.h"

#include "base/path.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PERIOD_US 100000u
#define USUAL_SHARES 1024u /* what version 2 calls a weight of 100 */
#define MIN_SHARES 2u
#define MAX_SHARES 262144u
#define MAX_PROCS_BYTES 16384

/* A group of CPUs has none, and takes no process, until it is told which. */
static int inherit(const char *from, const char *to, const char *file, struct err *err)
{
    char path[PATH_MAX], text[CGROUP_CPUS_BYTES * 8], own[CGROUP_CPUS_BYTES * 8];
    int rc = path_format(path, err, "%s/%s", to, file);

    if (rc < 0 || !path_exists(path)) {
        return rc; /* another controller's hierarchy */
    }
    rc = cgroup_read(to, file, own, sizeof(own), err);
    if (rc < 0 || own[0] != '\0') {
        return rc;
    }
    rc = cgroup_read(from, file, text, sizeof(text), err);
    return rc < 0 ? rc : cgroup_write(to, file, text, err);
}

static int v1_prime(const struct hierarchy *hierarchy, const char *dir, struct err *err)
{
    static const char *const files[] = {"cpuset.mems", "cpuset.cpus"};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(files); i++) {
        rc = inherit(hierarchy->parent, hierarchy->dir, files[i], err);
        rc = rc < 0 ? rc : inherit(hierarchy->dir, dir, files[i], err);
    }
    return rc;
}

/* Our own group is made with its first member: most hosts need none in most hierarchies. */
static int v1_prepare(const struct hierarchy *hierarchy, const char *control, struct err *err)
{
    (void)control;
    return access(hierarchy->parent, W_OK) == 0
               ? 0
               : err_set_errno(err, -errno, "the control group %s cannot be changed",
                               hierarchy->parent);
}

static int v1_set_cpu(const char *dir, const struct cgroup_limits *limits, struct err *err)
{
    uint64_t shares = (uint64_t)limits->cpu_weight * USUAL_SHARES / CGROUP_USUAL_WEIGHT;
    char text[32];
    int rc;

    shares = shares < MIN_SHARES ? MIN_SHARES : shares > MAX_SHARES ? MAX_SHARES : shares;
    (void)snprintf(text, sizeof(text), "%" PRIu64, shares);
    rc = cgroup_write(dir, "cpu.shares", text, err);
    if (rc < 0) {
        return rc;
    }
    (void)snprintf(text, sizeof(text), "%u", PERIOD_US);
    rc = cgroup_write(dir, "cpu.cfs_period_us", text, err);
    if (limits->cpu_cap == 0) {
        (void)snprintf(text, sizeof(text), "-1");
    } else {
        (void)snprintf(text, sizeof(text), "%u", PERIOD_US / 100 * limits->cpu_cap);
    }
    return rc < 0 ? rc : cgroup_write(dir, "cpu.cfs_quota_us", text, err);
}

static int v1_set_cpuset(const char *dir, const struct cgroup_limits *limits, struct err *err)
{
    char path[PATH_MAX], all[CGROUP_CPUS_BYTES * 8];
    char *leaf;
    int rc;

    if (limits->cpus[0] != '\0') {
        return cgroup_write(dir, "cpuset.cpus", limits->cpus, err);
    }
    rc = path_format(path, err, "%s", dir);
    leaf = rc < 0 ? NULL : strrchr(path, '/');
    if (leaf != NULL) {
        *leaf = '\0';
    }
    rc = rc < 0 ? rc : cgroup_read(path, "cpuset.cpus", all, sizeof(all), err);
    return rc < 0 ? rc : cgroup_write(dir, "cpuset.cpus", all, err);
}

static int v1_set_memory(const char *dir, const struct cgroup_limits *limits, struct err *err)
{
    char text[32] = "-1";

    if (limits->memory_bytes != 0) {
        (void)snprintf(text, sizeof(text), "%" PRIu64, limits->memory_bytes);
    }
    return cgroup_write(dir, "memory.limit_in_bytes", text, err);
}

static void v1_kill(const char *dir)
{
    char text[MAX_PROCS_BYTES];

    if (cgroup_read(dir, "cgroup.procs", text, sizeof(text), NULL) < 0) {
        return;
    }
    for (char *at = text; *at >= '1' && *at <= '9'; at += strspn(at, "\n")) {
        pid_t pid = (pid_t)strtol(at, &at, 10);

        if (pid > 1) {
            (void)kill(pid, SIGKILL); /* one that has ended meanwhile is as good */
        }
    }
}

const struct cgroup_ops cgroup_v1_ops = {
    .name = "cgroup v1",
    .controls = {[CGROUP_CPU] = "cpu", [CGROUP_CPUSET] = "cpuset", [CGROUP_MEMORY] = "memory"},
    .prepare = v1_prepare,
    .prime = v1_prime,
    .set = {[CGROUP_CPU] = v1_set_cpu,
            [CGROUP_CPUSET] = v1_set_cpuset,
            [CGROUP_MEMORY] = v1_set_memory},
    .kill = v1_kill,
};
