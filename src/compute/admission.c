/* Admission: what projects may have, and what the host can give. */
#include "compute/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#define DEFAULT_CPU_RATIO 400
#define DEFAULT_MEMORY_RATIO 100
#define RESERVABLE_PERCENT 90 /* the rest keeps those going that reserve nothing */

struct sums {
    const char *but; /* the id of one that is not counted */
    int64_t instances, cpus, memory_mib, volume_gib, snapshots;
    int64_t running_cpus, running_memory_mib, running, reserved;
};

bool admit_is_running(const struct object *instance)
{
    return !object_is(instance, "state", "deleting") &&
           (object_is(instance, "desired", "running") || object_is(instance, "state", "stopping") ||
            object_is(instance, "state", "running") || object_is(instance, "state", "paused"));
}

/* What it shall have or, while its guest has not let it go, what it has. */
static int64_t most(const struct object *instance, const char *wanted, const char *now)
{
    int64_t a = object_number(instance, wanted), b = object_number(instance, now);

    return a > b ? a : b;
}

static int add_instance(void *opaque, struct object *instance)
{
    struct sums *sums = opaque;

    if (sums->but != NULL && strcmp(sums->but, instance->id) == 0) {
        return 0;
    }
    sums->instances++;
    sums->cpus += object_number(instance, "cpus");
    sums->memory_mib += object_number(instance, "memory_mib");
    if (admit_is_running(instance)) {
        sums->running++;
        sums->running_cpus += most(instance, "cpus", "cpus_now");
        sums->reserved += object_number(instance, "cpu_reserved_percent");
        sums->running_memory_mib += most(instance, "memory_mib", "memory_now_mib");
    }
    return 0;
}

static int add_volume(void *opaque, struct object *volume)
{
    struct sums *sums = opaque;

    if (sums->but == NULL || strcmp(sums->but, volume->id) != 0) {
        sums->volume_gib += object_number(volume, "size_gib");
    }
    return 0;
}

static int add_snapshot(void *opaque, struct object *snapshot)
{
    struct sums *sums = opaque;

    sums->snapshots++;
    sums->volume_gib += object_number(snapshot, "size_gib");
    return 0;
}

static int64_t host_cpus(const struct compute *compute)
{
    return compute->config.cpus != 0 ? (int64_t)compute->config.cpus : (int64_t)get_nprocs();
}

int64_t admit_host_percent(const struct compute *compute)
{
    return 100 * host_cpus(compute);
}

/* What may be given away: what there is, times the ratio. */
static void host_limits(const struct compute *compute, int64_t *ret_cpus, int64_t *ret_memory_mib)
{
    const struct compute_config *config = &compute->config;
    int64_t cpus = host_cpus(compute), memory_mib = config->memory_mib;
    struct sysinfo info;

    if (memory_mib == 0 && sysinfo(&info) == 0) {
        memory_mib = (int64_t)((uint64_t)info.totalram * info.mem_unit >> 20);
    }
    *ret_cpus = cpus * (config->cpu_ratio != 0 ? config->cpu_ratio : DEFAULT_CPU_RATIO) / 100;
    *ret_memory_mib = memory_mib *
                      (config->memory_ratio != 0 ? config->memory_ratio : DEFAULT_MEMORY_RATIO) /
                      100;
}

/* Refuses when used + more is above the limit; 0 is no limit. */
static int check_limit(int64_t limit, int64_t used, int64_t more, enum fault_code code,
                       const char *field, const char *what, const char *of, struct fault *fault)
{
    if (used + more <= limit) {
        return 0;
    }
    return fault_set(fault, code, field,
                     "%s has %lld %s, of which %lld are given away; %lld more do not fit", of,
                     (long long)limit, what, (long long)used, (long long)more);
}

static int check_quota(const struct object *project, const char *limit_name, int64_t used,
                       int64_t more, const char *field, const char *what, struct fault *fault)
{
    int64_t limit = object_number(project, limit_name);

    return limit == 0
               ? 0
               : check_limit(limit, used, more, FAULT_QUOTA, field, what, "the project", fault);
}

static int check_instance_quota(struct compute *compute, const struct object *instance,
                                struct fault *fault)
{
    struct sums sums = {.but = instance->id};
    struct object project = {0};
    int rc = object_load(compute, KIND_PROJECT, GLOBAL_PROJECT, instance->project, &project, fault);

    if (rc == 0) {
        rc = object_each(compute, KIND_INSTANCE, instance->project, add_instance, &sums, fault);
    }
    rc = rc < 0
             ? rc
             : check_quota(&project, "max_instances", sums.instances, 1, NULL, "instances", fault);
    rc = rc < 0 ? rc
                : check_quota(&project, "max_cpus", sums.cpus, object_number(instance, "cpus"),
                              "cpus", "CPUs", fault);
    rc = rc < 0 ? rc
                : check_quota(&project, "max_memory_mib", sums.memory_mib,
                              object_number(instance, "memory_mib"), "memory_mib", "MiB of memory",
                              fault);
    object_done(&project);
    return rc;
}

int admit_instance(struct compute *compute, const struct object *instance, bool is_new,
                   struct fault *fault)
{
    struct sums sums = {.but = instance->id};
    int64_t cpus = 0, memory_mib = 0;
    int rc = is_new ? check_instance_quota(compute, instance, fault) : 0;

    if (rc < 0 || !object_is(instance, "desired", "running")) {
        return rc;
    }
    rc = object_each(compute, KIND_INSTANCE, NULL, add_instance, &sums, fault);
    host_limits(compute, &cpus, &memory_mib);
    rc = rc < 0 ? rc
                : check_limit(cpus, sums.running_cpus, object_number(instance, "cpus"),
                              FAULT_CAPACITY, "cpus", "CPUs", "the host", fault);
    rc = rc < 0 ? rc
                : check_limit(admit_host_percent(compute) * RESERVABLE_PERCENT / 100, sums.reserved,
                              object_number(instance, "cpu_reserved_percent"), FAULT_CAPACITY,
                              "cpu_reserved_percent", "percent of a CPU to be reserved", "the host",
                              fault);
    return rc < 0 ? rc
                  : check_limit(memory_mib, sums.running_memory_mib,
                                object_number(instance, "memory_mib"), FAULT_CAPACITY, "memory_mib",
                                "MiB of memory", "the host", fault);
}

int admit_disk(struct compute *compute, const struct object *object, int64_t more_gib,
               struct fault *fault)
{
    struct sums sums = {.but = NULL};
    struct object project = {0};
    int rc = object_load(compute, KIND_PROJECT, GLOBAL_PROJECT, object->project, &project, fault);

    rc = rc < 0 ? rc : object_each(compute, KIND_VOLUME, object->project, add_volume, &sums, fault);
    rc = rc < 0 ? rc
                : object_each(compute, KIND_SNAPSHOT, object->project, add_snapshot, &sums, fault);
    rc = rc < 0 ? rc
                : check_quota(&project, "max_volume_gib", sums.volume_gib, more_gib, "size_gib",
                              "GiB of volumes and snapshots", fault);
    if (rc == 0 && object->kind == KIND_SNAPSHOT) {
        rc = check_quota(&project, "max_snapshots", sums.snapshots, 1, NULL, "snapshots", fault);
    }
    object_done(&project);
    return rc;
}

static int count_one(void *opaque, struct object *object)
{
    int64_t *count = opaque;

    (void)object;
    (*count)++;
    return 0;
}

int admit_one(struct compute *compute, const struct object *object, struct fault *fault)
{
    static const struct {
        const char *limit, *what;
    } quotas[KIND_COUNT] = {[KIND_NIC] = {"max_nics", "network cards"},
                            [KIND_ALARM] = {"max_alarms", "alarms"},
                            [KIND_KEY] = {"max_keys", "key pairs"},
                            [KIND_HOOK] = {"max_hooks", "webhooks"}};
    struct object project = {0};
    int64_t count = 0;
    int rc = object_load(compute, KIND_PROJECT, GLOBAL_PROJECT, object->project, &project, fault);

    rc =
        rc < 0 ? rc : object_each(compute, object->kind, object->project, count_one, &count, fault);
    rc = rc < 0 ? rc
                : check_quota(&project, quotas[object->kind].limit, count, 1, NULL,
                              quotas[object->kind].what, fault);
    object_done(&project);
    return rc;
}

int compute_host(struct compute *compute, const char *project, json_t **ret_host,
                 struct fault *fault)
{
    struct sums sums = {.but = NULL};
    char id[ID_BYTES];
    int64_t cpus = 0, memory_mib = 0;
    int rc = project != NULL ? object_find_project(compute, project, id, fault) : 0;

    rc = rc < 0 ? rc
                : object_each(compute, KIND_INSTANCE, project != NULL ? id : NULL, add_instance,
                              &sums, fault);
    if (rc < 0) {
        return rc;
    }
    host_limits(compute, &cpus, &memory_mib);
    *ret_host = json_pack(
        "{s:{s:I, s:I}, s:{s:I, s:I}, s:{s:I, s:I}, s:{s:I, s:I}, s:o, s:o}", "cpus", "total",
        (json_int_t)cpus, "used", (json_int_t)sums.running_cpus, "memory_mib", "total",
        (json_int_t)memory_mib, "used", (json_int_t)sums.running_memory_mib, "instances", "total",
        (json_int_t)sums.instances, "running", (json_int_t)sums.running, "cpu_reserved_percent",
        "total", (json_int_t)(admit_host_percent(compute) * RESERVABLE_PERCENT / 100), "used",
        (json_int_t)sums.reserved, "limits", limits_means(compute), "bridges",
        network_bridges(compute));
    return *ret_host != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
}
