/*
 * A machine that runs gets other sizes and volumes than it was started with.
 *
 * The call writes what is wanted and the flag "adjusting"; the worker tells
 * the monitor, as often as it takes, looks until the guest has followed, and
 * notes what came of it. A guest that does not follow keeps what it has: the
 * record then says that, and the operation fails. Volumes that the guest lets
 * go are free for others only once it has.
 */
#include "compute/limits.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MIB (1ll << 20)
#define BLOCK_BYTES (4 * MIB) /* memory comes and goes in such pieces */
#define LOOK_NS 100000000ull
#define ASK_NS 2000000000ull /* a guest that is just booting hears nothing */
#define GUEST_TIME_NS 60000000000ull

/* ---- the call ---- */

/* What was changed: sizes beyond what the machine can have wait for its next start. */
static void note_restart_needed(struct object *instance)
{
    if (object_number(instance, "cpus") > object_number(instance, "live_cpus") ||
        object_number(instance, "memory_mib") > object_number(instance, "live_memory_mib")) {
        object_set_flag(instance, "restart_needed", true);
    } else {
        object_clear(instance, "restart_needed");
    }
}

bool resize_is_in(const json_t *changes)
{
    static const char *const fields[] = {"type", "cpus", "memory_mib", "volumes"};

    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        if (json_object_get(changes, fields[i]) != NULL) {
            return true;
        }
    }
    return false;
}

static bool differs(const struct object *instance, const json_t *before, const char *field)
{
    const json_t *now = json_object_get(instance->json, field);
    const json_t *then = json_object_get(before, field);

    return (now != NULL || then != NULL) && !json_equal(now, then);
}

int resize_begin(struct change *change, struct object *instance, const json_t *before,
                 bool *ret_has_work, struct fault *fault)
{
    int rc = limits_check(change->compute, instance, fault);

    if (rc == 0 && (object_is(instance, "desired", "stopped") ||
                    object_flag(instance, "restarting") || object_flag(instance, "paused"))) {
        rc = fault_set(fault, FAULT_CONFLICT, "state", "the instance \"%s\" is about to change",
                       object_text(instance, "name"));
    }
    rc = rc < 0 ? rc : admit_instance(change->compute, instance, true, fault);
    rc = rc < 0 ? rc : call_attach_volumes(change, instance, true, fault);
    if (rc < 0) {
        return rc;
    }
    note_restart_needed(instance);
    *ret_has_work = differs(instance, before, "cpus") || differs(instance, before, "memory_mib") ||
                    differs(instance, before, "volumes");
    if (*ret_has_work) {
        object_set_flag(instance, "adjusting", true);
    }
    return 0;
}

/* ---- what is there ---- */

struct look {
    struct task *task;
    struct object *instance;
    json_t *status, *disks; /* the monitor's answers */
    bool is_asking_again;
    int64_t cpus, memory_bytes; /* wanted, as far as this machine can */
};

static int64_t number_of(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int ask(struct look *look, json_t *request, struct err *err)
{
    json_t *answer = NULL;
    int rc = machine_ask(look->task, request, &answer, err);

    json_decref(answer);
    return rc;
}

static int find_out(struct look *look, struct err *err)
{
    int rc = machine_ask(look->task, json_pack("{s:s}", "command", "status"), &look->status, err);

    rc = rc < 0
             ? rc
             : machine_ask(look->task, json_pack("{s:s}", "command", "disks"), &look->disks, err);
    if (rc == 0) {
        look->cpus =
            least(object_number(look->instance, "cpus"), number_of(look->status, "cpus_max"));
        look->memory_bytes = least(object_number(look->instance, "memory_mib") * MIB,
                                   number_of(look->status, "memory_max_bytes"));
    }
    return rc;
}

static const json_t *find_disk(const struct look *look, const char *id)
{
    const json_t *disks = json_object_get(look->disks, "disks");

    for (size_t i = 0; i < json_array_size(disks); i++) {
        const json_t *disk = json_array_get(disks, i);
        const char *name = json_string_value(json_object_get(disk, "id"));

        if (name != NULL && strncmp(name, id, MACHINE_DISK_NAME_BYTES) == 0) {
            return disk;
        }
    }
    return NULL;
}

/* The volume that a disk of the machine is; NULL when it is no volume. */
static const char *volume_of(const json_t *disk)
{
    const char *name = json_string_value(json_object_get(disk, "id"));

    return name != NULL && strncmp(name, "v-", 2) == 0 ? name : NULL;
}

static bool is_wanted(const struct look *look, const char *name)
{
    const json_t *volumes = json_object_get(look->instance->json, "volumes");

    for (size_t i = 0; i < json_array_size(volumes); i++) {
        if (strncmp(json_string_value(json_array_get(volumes, i)), name, MACHINE_DISK_NAME_BYTES) ==
            0) {
            return true;
        }
    }
    return false;
}

/* ---- making it so ---- */

static int set_sizes(struct look *look, int64_t cpus, int64_t memory_bytes, struct err *err)
{
    bool is_kept = look->is_asking_again && number_of(look->status, "cpus") != cpus;
    int rc = 0;

    if ((number_of(look->status, "cpus_wanted") != cpus || is_kept) && cpus > 0) {
        rc = ask(look, json_pack("{s:s, s:I}", "command", "cpus", "count", (json_int_t)cpus), err);
    }
    if (rc == 0 && number_of(look->status, "memory_wanted_bytes") != memory_bytes &&
        memory_bytes > 0) {
        rc = ask(look,
                 json_pack("{s:s, s:I}", "command", "memory", "bytes", (json_int_t)memory_bytes),
                 err);
    }
    return rc;
}

static int resize(struct look *look, struct err *err)
{
    int rc;

    if (number_of(look->status, "cpus_wanted") == look->cpus && !look->is_asking_again &&
        number_of(look->status, "memory_wanted_bytes") == look->memory_bytes) {
        return 0;
    }
    rc = limits_make_room(look->task, look->instance, err);
    rc = rc < 0 ? rc : task_step(look->task, STEP_RESIZE, false);
    rc = rc < 0 ? rc : set_sizes(look, look->cpus, look->memory_bytes, err);
    return rc < 0 ? rc : task_step(look->task, STEP_RESIZE, true);
}

static int plug(struct look *look, struct err *err)
{
    const json_t *volumes = json_object_get(look->instance->json, "volumes");
    struct limits limits;
    int rc = limits_of(look->task->compute, look->instance, &limits, err);

    for (size_t i = 0; rc == 0 && i < json_array_size(volumes); i++) {
        const char *id = json_string_value(json_array_get(volumes, i));
        CLEANUP_FREE char *text = NULL;

        if (find_disk(look, id) != NULL) {
            continue;
        }
        rc = task_step(look->task, STEP_PLUG_VOLUME, false);
        rc = rc < 0 ? rc : machine_volume_text(look->task->compute, &limits, id, &text, err);
        rc = rc < 0 ? rc
                    : ask(look, json_pack("{s:s, s:s}", "command", "disk-add", "disk", text), err);
        rc = rc < 0 ? rc : task_step(look->task, STEP_PLUG_VOLUME, true);
    }
    return rc;
}

static int unplug(struct look *look, struct err *err)
{
    const json_t *disks = json_object_get(look->disks, "disks");
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < json_array_size(disks); i++) {
        const json_t *disk = json_array_get(disks, i);
        const char *name = volume_of(disk);

        if (name == NULL || is_wanted(look, name) ||
            (json_is_true(json_object_get(disk, "leaving")) && !look->is_asking_again)) {
            continue;
        }
        rc = task_step(look->task, STEP_UNPLUG_VOLUME, false);
        rc = rc < 0
                 ? rc
                 : ask(look, json_pack("{s:s, s:s}", "command", "disk-remove", "disk", name), err);
        rc = rc < 0 ? rc : task_step(look->task, STEP_UNPLUG_VOLUME, true);
    }
    return rc;
}

static bool has_memory(const struct look *look)
{
    int64_t more = number_of(look->status, "memory_bytes") - look->memory_bytes;

    return more > -BLOCK_BYTES && more < BLOCK_BYTES;
}

static bool has_volumes(const struct look *look)
{
    const json_t *disks = json_object_get(look->disks, "disks");
    const json_t *volumes = json_object_get(look->instance->json, "volumes");
    size_t count = 0;

    for (size_t i = 0; i < json_array_size(disks); i++) {
        const char *name = volume_of(json_array_get(disks, i));

        if (name != NULL && !is_wanted(look, name)) {
            return false;
        }
        count += name != NULL;
    }
    return count == json_array_size(volumes);
}

static bool is_done(const struct look *look)
{
    return number_of(look->status, "cpus") == look->cpus && has_memory(look) && has_volumes(look);
}

/* ---- noting it ---- */

void resize_learn(struct object *instance, const json_t *status)
{
    object_set_number(instance, "cpus_now", number_of(status, "cpus"));
    object_set_number(instance, "memory_now_mib", number_of(status, "memory_bytes") / MIB);
    object_set_number(instance, "live_cpus", number_of(status, "cpus_max"));
    object_set_number(instance, "live_memory_mib", number_of(status, "memory_max_bytes") / MIB);
}

/* What the guest did not follow is not wanted any more. */
static void keep_what_is(struct look *look)
{
    const json_t *disks = json_object_get(look->disks, "disks");
    json_t *volumes = json_array(), *before = json_deep_copy(look->instance->json);
    struct err err;

    if (number_of(look->status, "cpus") != look->cpus) {
        object_set_number(look->instance, "cpus", number_of(look->status, "cpus"));
    }
    if (!has_memory(look)) {
        object_set_number(look->instance, "memory_mib",
                          number_of(look->status, "memory_bytes") / MIB);
        limits_follow(look->instance, before, NULL);
    }
    json_decref(before);
    for (size_t i = 0; i < json_array_size(disks); i++) {
        const char *name = volume_of(json_array_get(disks, i));

        if (name != NULL) {
            (void)json_array_append_new(volumes, json_string(name));
        }
    }
    (void)json_object_set_new(look->instance->json, "volumes", volumes);
    note_restart_needed(look->instance);
    if (set_sizes(look, number_of(look->status, "cpus"), number_of(look->status, "memory_bytes"),
                  &err) < 0) {
        log_warn("%s: %s, ignoring", look->task->id, err.text);
    }
}

static void say_failure(const struct look *look, const struct err *why, struct fault *fault)
{
    if (why->code != 0) {
        (void)fault_set_err(fault, why->code, why);
        return;
    }
    (void)fault_set(fault, FAULT_CONFLICT, NULL,
                    "the guest did not follow: it has %lld CPUs, %lld MiB of memory%s",
                    (long long)number_of(look->status, "cpus"),
                    (long long)number_of(look->status, "memory_bytes") / MIB,
                    has_volumes(look) ? "" : ", and keeps a volume");
}

static int note_resized(struct look *look, const struct fault *fault)
{
    struct object *instance = look->instance;
    struct fault ignored = {.code = FAULT_NONE};
    struct change change;
    int rc;

    look->task->resize_deadline_ns = 0;
    resize_learn(instance, look->status);
    if (fault != NULL) {
        keep_what_is(look);
        log_warn("%s: %s", look->task->id, fault->text);
    }
    object_clear(instance, "adjusting");
    change_begin(&change, look->task->compute);
    rc = call_detach_volumes(&change, instance, &ignored);
    if (rc < 0) {
        change_drop(&change);
        log_error("%s: %s", look->task->id, ignored.text);
        return rc;
    }
    change_event(&change, instance, fault == NULL ? "info" : "warning", "instance.resized", NULL,
                 "instance \"%s\" %s", object_text(instance, "name"),
                 fault == NULL ? "has what it was to have" : fault->text);
    change_end_part(&change, instance, fault);
    change_put(&change, instance);
    return commit_step(look->task, &change, STEP_NOTE_RESIZED);
}

/* Worth another look: the monitor is busy or ending, or this process is. */
static bool is_passing(int rc)
{
    return rc == -EINTR || rc == -ETIMEDOUT || rc == -EPIPE || rc == -ECONNREFUSED ||
           rc == -ECONNRESET || rc == -ENOENT || rc == -ENOMEM;
}

static int adjust(struct look *look)
{
    struct task *task = look->task;
    uint64_t now = clock_monotonic_ns();
    struct fault fault = {.code = FAULT_NONE};
    struct err err = {.code = 0};
    int rc = find_out(look, &err);

    if (rc < 0) {
        task_again(task, now + LOOK_NS);
        return rc == -EINTR ? rc : 0;
    }
    if (is_done(look)) {
        return note_resized(look, NULL);
    }
    look->is_asking_again = now >= task->resize_ask_ns;
    task->resize_ask_ns = look->is_asking_again ? now + ASK_NS : task->resize_ask_ns;
    rc = resize(look, &err);
    rc = rc < 0 ? rc : plug(look, &err);
    rc = rc < 0 ? rc : unplug(look, &err);
    if (rc == -EINTR) {
        return rc;
    }
    task->resize_deadline_ns =
        task->resize_deadline_ns == 0 ? now + GUEST_TIME_NS : task->resize_deadline_ns;
    if ((rc == 0 || is_passing(rc)) && now < task->resize_deadline_ns) {
        task_again(task, now + LOOK_NS);
        return 0;
    }
    err.code = rc;
    say_failure(look, &err, &fault);
    return note_resized(look, &fault);
}

int resize_machine(struct task *task, struct object *instance)
{
    struct look look = {.task = task, .instance = instance};
    int rc = adjust(&look);

    json_decref(look.status);
    json_decref(look.disks);
    return rc;
}

int resize_forget(struct task *task, struct object *instance)
{
    struct fault fault = {.code = FAULT_NONE};
    struct change change;
    int rc;

    task->resize_deadline_ns = 0;
    object_clear(instance, "adjusting");
    change_begin(&change, task->compute);
    rc = call_detach_volumes(&change, instance, &fault);
    if (rc < 0) {
        change_drop(&change);
        log_error("%s: %s", task->id, fault.text);
        return rc;
    }
    change_put(&change, instance);
    return commit_step(task, &change, STEP_NOTE_RESIZED);
}
