/* Limits as records say them: fields, checks, and what they come to on this host. */
#include "compute/limits.h"

#include "base/path.h"
#include "compute/kinds.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

const char *const limits_fields[] = {"cpu_weight",
                                     "cpu_cap_percent",
                                     "cpu_reserved_percent",
                                     "memory_limit_mib",
                                     "disk_bps",
                                     "disk_iops",
                                     "net_bps",
                                     "net_pps",
                                     "cpu_baseline_percent",
                                     NULL};

void limits_resolve(struct object *instance, const struct object *type)
{
    for (size_t i = 0; type != NULL && limits_fields[i] != NULL; i++) {
        if (json_object_get(instance->json, limits_fields[i]) == NULL &&
            object_number(type, limits_fields[i]) != 0) {
            object_set_number(instance, limits_fields[i], object_number(type, limits_fields[i]));
        }
    }
    if (object_number(instance, "cpu_weight") == 0) {
        object_set_number(instance, "cpu_weight", CGROUP_USUAL_WEIGHT);
    }
}

void limits_follow(struct object *instance, const json_t *before, const json_t *changes)
{
    int64_t limit = object_number(instance, "memory_limit_mib");
    int64_t now = object_number(instance, "memory_mib");
    int64_t then = json_integer_value(json_object_get(before, "memory_mib"));

    if (limit == 0 || now == 0 || then == 0 || now == then ||
        json_object_get(changes, "memory_limit_mib") != NULL) {
        return;
    }
    limit += now - then;
    object_set_number(instance, "memory_limit_mib",
                      limit < 2 * KIND_MAX_MEMORY_MIB ? limit : 2 * KIND_MAX_MEMORY_MIB);
}

bool limits_are_in(const json_t *changes)
{
    static const char *const others[] = {"pinned_cpus", "balloon_mib"};

    for (size_t i = 0; limits_fields[i] != NULL; i++) {
        if (json_object_get(changes, limits_fields[i]) != NULL) {
            return true;
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        if (json_object_get(changes, others[i]) != NULL) {
            return true;
        }
    }
    return false;
}

static int check_cpus(const struct object *instance, struct fault *fault)
{
    const char *cpus = object_text(instance, "pinned_cpus");
    int64_t own = object_number(instance, "cpus") * 100;
    int64_t cap = object_number(instance, "cpu_cap_percent");
    int highest = cpus[0] != '\0' ? cgroup_check_cpus(cpus) : 0;

    if (highest < 0) {
        return fault_set(fault, FAULT_INVALID, "pinned_cpus",
                         "this is no list of CPUs; give numbers and ranges, such as 0-3,8");
    }
    if (highest >= get_nprocs_conf()) {
        return fault_set(fault, FAULT_INVALID, "pinned_cpus",
                         "the host has CPUs 0 to %d, and none of number %d", get_nprocs_conf() - 1,
                         highest);
    }
    own = cap != 0 ? own * cap / 100 : own;
    if (object_number(instance, "cpu_reserved_percent") > own) {
        return fault_set(fault, FAULT_INVALID, "cpu_reserved_percent",
                         "its CPUs and its cap let it use %lld percent of a CPU at most",
                         (long long)own);
    }
    return 0;
}

int limits_check(const struct compute *compute, const struct object *instance, struct fault *fault)
{
    int64_t memory_mib = object_number(instance, "memory_mib");
    int64_t limit_mib = object_number(instance, "memory_limit_mib");
    int64_t balloon_mib = object_number(instance, "balloon_mib");

    (void)compute;
    if (limit_mib != 0 && limit_mib < memory_mib) {
        return fault_set(fault, FAULT_INVALID, "memory_limit_mib",
                         "the limit is for the whole process: give %lld, its guest's memory, and "
                         "some 64 more at least",
                         (long long)memory_mib);
    }
    if (balloon_mib != 0 && balloon_mib >= memory_mib) {
        return fault_set(fault, FAULT_INVALID, "balloon_mib",
                         "the guest has %lld MiB, of which some must stay", (long long)memory_mib);
    }
    return check_cpus(instance, fault);
}

/* In terms of what is had: 0 is no limit, but for shares and reservations. */
static bool is_more(const char *field, int64_t value, int64_t of_type)
{
    if (strcmp(field, "cpu_weight") == 0) {
        return value > (of_type != 0 ? of_type : CGROUP_USUAL_WEIGHT);
    }
    if (strcmp(field, "cpu_reserved_percent") == 0) {
        return value > of_type;
    }
    return of_type != 0 && (value == 0 || value > of_type);
}

int limits_keep_to_type(const struct object *instance, const struct object *type,
                        const json_t *named, struct fault *fault)
{
    for (size_t i = 0; limits_fields[i] != NULL; i++) {
        const char *field = limits_fields[i];
        const json_t *value = json_object_get(named, field);

        /* null takes it back to the type's */
        if (json_is_integer(value) &&
            is_more(field, json_integer_value(value), object_number(type, field))) {
            return fault_set(
                fault, FAULT_QUOTA, field,
                "this is more than the type \"%s\" gives; take another type, or ask an "
                "administrator of all projects",
                object_text(instance, "type"));
        }
    }
    if (json_string_length(json_object_get(named, "pinned_cpus")) != 0) {
        return fault_set(fault, FAULT_QUOTA, "pinned_cpus",
                         "which CPUs an instance has is for administrators of all projects to say");
    }
    return 0;
}

/* ---- who keeps it to them ---- */

json_t *limits_means(const struct compute *compute)
{
    static const struct {
        const char *name;
        enum cgroup_control control;
        const char *without; /* what is done without a group; NULL: nothing */
    } rows[] = {
        {"cpu_weight", CGROUP_CPU, NULL},
        {"cpu_reserved_percent", CGROUP_CPU, NULL},
        {"cpu_cap_percent", CGROUP_CPU, "monitor"},
        {"pinned_cpus", CGROUP_CPUSET, "affinity"},
        {"cpu_baseline_percent", CGROUP_CPU, "monitor"},
        {"memory_limit_mib", CGROUP_MEMORY, NULL},
    };
    json_t *means = json_object();

    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const char *lack = cgroup_lack(compute->group, rows[i].control);
        json_t *row = json_pack("{s:s}", "means",
                                lack == NULL ? cgroup_means(compute->group, rows[i].control)
                                : rows[i].without != NULL ? rows[i].without
                                                          : "none");

        if (lack != NULL) {
            (void)json_object_set_new(row, "reason", json_string(lack));
        }
        (void)json_object_set_new(means, rows[i].name, row);
    }
    (void)json_object_set_new(means, "disk", json_pack("{s:s}", "means", "monitor"));
    (void)json_object_set_new(means, "net", json_pack("{s:s}", "means", "monitor"));
    return means;
}

void limits_note(const struct compute *compute, struct object *instance)
{
    const struct {
        const char *field;
        enum cgroup_control control;
        bool is_asked;
    } rows[] = {
        {"cpu_weight", CGROUP_CPU, object_number(instance, "cpu_weight") != CGROUP_USUAL_WEIGHT},
        {"cpu_reserved_percent", CGROUP_CPU, object_number(instance, "cpu_reserved_percent") != 0},
        {"memory_limit_mib", CGROUP_MEMORY, object_number(instance, "memory_limit_mib") != 0},
    };
    char text[200];
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        if (rows[i].is_asked && cgroup_lack(compute->group, rows[i].control) != NULL) {
            used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", used != 0 ? " " : "",
                                     rows[i].field);
        }
    }
    if (used != 0) {
        object_set_text(instance, "unenforced", text);
    } else {
        object_clear(instance, "unenforced");
    }
}

/* ---- what they come to ---- */

struct shares {
    int64_t weights, reserved;
};

static int add_share(void *opaque, struct object *instance)
{
    struct shares *shares = opaque;

    if (admit_is_running(instance)) {
        int64_t weight = object_number(instance, "cpu_weight");

        shares->weights += weight != 0 ? weight : CGROUP_USUAL_WEIGHT;
        shares->reserved += object_number(instance, "cpu_reserved_percent");
    }
    return 0;
}

/*
 * The kernel knows weights and no reservations. Were all of them busy, each
 * should have what it reserves and, by its weight, a part of what nobody
 * reserves: weight + reserved * all weights / unreserved is in that proportion,
 * and is the plain weight for those who reserve nothing.
 */
static int find_weight(struct compute *compute, const struct object *instance, unsigned *ret_weight,
                       struct fault *fault)
{
    int64_t weight = object_number(instance, "cpu_weight");
    int64_t reserved = object_number(instance, "cpu_reserved_percent");
    struct shares shares = {.weights = 0};
    int rc = 0;

    weight = weight != 0 ? weight : CGROUP_USUAL_WEIGHT;
    if (reserved != 0) {
        int64_t free_percent;

        rc = object_each(compute, KIND_INSTANCE, NULL, add_share, &shares, fault);
        free_percent = admit_host_percent(compute) - shares.reserved;
        weight += reserved * shares.weights / (free_percent > 0 ? free_percent : 1);
    }
    *ret_weight = weight > CGROUP_MAX_WEIGHT ? CGROUP_MAX_WEIGHT : (unsigned)weight;
    return rc;
}

static void add_disk(struct limits *limits, const char *id, int64_t bps, int64_t iops)
{
    struct limits_disk *disk = &limits->disks[limits->disk_count++];

    (void)snprintf(disk->id, sizeof(disk->id), "%.31s", id);
    disk->bps = bps;
    disk->iops = iops;
}

/* An image may have none. */
static bool has_own_disk(const struct compute *compute, const struct object *instance)
{
    char dir[PATH_MAX], path[PATH_MAX];
    struct err ignored;

    return directory_path(compute, instance->id, dir, &ignored) == 0 &&
           path_format(path, &ignored, "%s/%s", dir, directory_head(instance)) == 0 &&
           path_exists(path);
}

static int find_disks(struct compute *compute, const struct object *instance, struct limits *limits,
                      struct fault *fault)
{
    const json_t *volumes = json_object_get(instance->json, "volumes");

    if (has_own_disk(compute, instance)) {
        add_disk(limits, "root", object_number(instance, "disk_bps"),
                 object_number(instance, "disk_iops"));
    }
    for (size_t i = 0; i < json_array_size(volumes) && limits->disk_count < LIMITS_MAX_DISKS; i++) {
        struct object volume = {0};
        const char *id = json_string_value(json_array_get(volumes, i));
        int rc = object_load(compute, KIND_VOLUME, instance->project, id, &volume, fault);

        if (rc < 0) {
            return rc;
        }
        add_disk(limits, volume.id, object_number(&volume, "bps"), object_number(&volume, "iops"));
        object_done(&volume);
    }
    return 0;
}

/* What the guest has not given back yet, it may keep: the limit comes down once it has. */
static uint64_t memory_limit_bytes(const struct object *instance)
{
    int64_t limit_mib = object_number(instance, "memory_limit_mib");
    int64_t more_mib =
        object_number(instance, "memory_now_mib") - object_number(instance, "memory_mib");

    return limit_mib == 0 ? 0 : (uint64_t)(limit_mib + (more_mib > 0 ? more_mib : 0)) << 20;
}

/* Percent of its CPUs' time; 0: no cap. */
static int64_t find_cap(const struct object *instance)
{
    int64_t cap = object_number(instance, "cpu_cap_percent");
    int64_t baseline = object_number(instance, "cpu_baseline_percent");
    bool is_held = baseline != 0 && object_flag(instance, "cpu_held");

    return is_held && (cap == 0 || baseline < cap) ? baseline : cap;
}

int limits_of(struct compute *compute, const struct object *instance, struct limits *ret_limits,
              struct err *err)
{
    int64_t cap = find_cap(instance);
    bool has_group = cgroup_lack(compute->group, CGROUP_CPU) == NULL;
    struct fault fault = {.code = FAULT_NONE};
    int rc;

    *ret_limits = (struct limits){
        .life = compute->life,
        .group = {.cpu_cap = has_group ? (unsigned)(cap * object_number(instance, "cpus")) : 0,
                  .memory_bytes = memory_limit_bytes(instance)},
        .vcpu_cap = has_group ? 0 : (unsigned)cap,
        .cpu_spare = cap != 0 || object_number(instance, "cpu_baseline_percent") != 0,
        .net_bps = object_number(instance, "net_bps"),
        .net_pps = object_number(instance, "net_pps"),
        .balloon_mib = object_number(instance, "balloon_mib"),
    };
    (void)snprintf(ret_limits->group.cpus, sizeof(ret_limits->group.cpus), "%s",
                   object_text(instance, "pinned_cpus"));
    rc = find_weight(compute, instance, &ret_limits->group.cpu_weight, &fault);
    rc = rc < 0 ? rc : find_disks(compute, instance, ret_limits, &fault);
    return rc < 0 ? err_set(err, rc, "%s", fault.text) : 0;
}

void limits_disk_text(const struct limits *limits, const char *id, char *out, size_t out_size)
{
    out[0] = '\0';
    for (unsigned i = 0; i < limits->disk_count; i++) {
        const struct limits_disk *disk = &limits->disks[i];

        /* A number is cut off where it is named in a monitor's commands. */
        if (strncmp(disk->id, id, 31) == 0 && (disk->bps != 0 || disk->iops != 0)) {
            (void)snprintf(out, out_size, ",bps=%lld,iops=%lld", (long long)disk->bps,
                           (long long)disk->iops);
        }
    }
}

void limits_net_text(const struct limits *limits, char *out, size_t out_size)
{
    out[0] = '\0';
    if (limits->net_bps != 0 || limits->net_pps != 0) {
        (void)snprintf(out, out_size, ",bps=%lld,pps=%lld", (long long)limits->net_bps,
                       (long long)limits->net_pps);
    }
}
