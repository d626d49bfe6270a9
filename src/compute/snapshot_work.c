/*
 * Snapshots taken and put back, by the worker of the instance whose disks they
 * are of, before it does anything else; by the volume's when no instance has it.
 *
 * An instance's own disk is a chain of layers in its directory
 * (storage/layers.h). Its snapshot is a directory, snapshots/ID, with links to
 * what the disk was made of until then, and the disk goes on in a new head
 * ID.qcow2: so a snapshot needs nothing of its instance, and costs what is
 * written afterwards. A volume's is the pool's (storage/pool.h).
 *
 * A machine that runs goes over to the new head by its monitor's own command;
 * which head it has is asked before it is told, so that this can be repeated.
 */
#include "compute/compute_int.h"

#include "base/log.h"
#include "base/path.h"
#include "block/successor.h"
#include "rpc/control_client.h"
#include "storage/layers.h"
#include "storage/pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BYTES_PER_GIB (1ull << 30)
#define ROOT_DISK "root" /* the id of an instance's own disk (machine.c) */

/* One piece of work; volume and instance as far as they take part. */
struct work {
    struct task *task;
    struct object *instance; /* NULL: a volume that none has */
    struct object *volume;   /* NULL: the instance's own disk */
    struct object snapshot;
    bool is_running;
    bool was_frozen;     /* the guest had written its file systems out */
    bool was_switched;   /* the machine's disk, or the instance's, has the new head */
    char head[ID_BYTES]; /* the new one of the instance's disk, with ".qcow2" */
    uint64_t size_bytes;
};

int snapshot_path(const struct compute *compute, const char *id, char out[PATH_MAX],
                  struct err *err)
{
    return path_format(out, err, "%s/snapshots/%s", compute->state_dir, id);
}

bool snapshot_has_work(const struct object *instance)
{
    return snapshot_is_under_way(instance);
}

/* Whether it is worth another try: the monitor may be busy, or ending. */
static bool is_passing(int rc)
{
    return rc == -EINTR || rc == -ETIMEDOUT || rc == -EPIPE || rc == -ECONNREFUSED ||
           rc == -ECONNRESET || rc == -EAGAIN || rc == -ENOMEM;
}

/* ---- the monitor ---- */

/* 1 and the file that a disk of the machine is in; 0 when it has no such disk. */
static int find_disk(struct task *task, const char *id, char ret_file[PATH_MAX], struct err *err)
{
    json_t *answer = NULL;
    int rc = machine_ask(task, json_pack("{s:s}", "command", "disks"), &answer, err);
    const json_t *disks = json_object_get(answer, "disks");

    for (size_t i = 0; rc == 0 && i < json_array_size(disks); i++) {
        const json_t *disk = json_array_get(disks, i);
        const char *name = json_string_value(json_object_get(disk, "id"));
        const char *file = json_string_value(json_object_get(disk, "file"));

        if (name != NULL && file != NULL && strcmp(name, id) == 0) {
            rc = path_format(ret_file, err, "%s", file);
            rc = rc < 0 ? rc : 1;
        }
    }
    json_decref(answer);
    return rc;
}

/* Has the machine make that file over a disk and go on with it; fine when it did already. 0 when
 * it has no such disk. */
static int switch_disk(struct task *task, const char *id, const char *file, struct err *err)
{
    char now[PATH_MAX];
    json_t *answer = NULL;
    int rc = find_disk(task, id, now, err);

    if (rc <= 0 || strcmp(now, file) == 0) {
        return rc;
    }
    rc = machine_ask(
        task, json_pack("{s:s, s:s, s:s}", "command", "disk-snapshot", "disk", id, "file", file),
        &answer, err);
    json_decref(answer);
    return rc < 0 ? rc : 1;
}

/* Has the guest write its file systems out and hold them, or go on, where its agent can. Whoever
 * repeats the work after a kill in between lets go as well. */
static bool freeze(const struct work *work, bool is_frozen)
{
    const struct compute_call call = {.project = work->task->project};
    struct fault fault = {.code = FAULT_NONE};
    int64_t count = 0;

    if (!object_is(work->instance, "state", "running") ||
        !guest_has_agent(work->task->compute, work->task->id)) {
        return false;
    }
    if (compute_freeze(work->task->compute, &call, work->task->id, is_frozen, &count, &fault) < 0) {
        log_warn("%s: its file systems are not %s: %s, ignoring", work->task->id,
                 is_frozen ? "frozen" : "thawed", fault.text);
        return false;
    }
    return count > 0;
}

static int switch_frozen(struct work *work, const char *id, const char *file, struct err *err)
{
    int rc;

    work->was_frozen = freeze(work, true);
    rc = switch_disk(work->task, id, file, err);
    (void)freeze(work, false); /* what is not thawed is told by it */
    return rc;
}

/* ---- an instance's own disk ---- */

/* The new head of a machine that is off. One that a running one began is as good, if it is whole:
 * it is empty, or has what was written since. */
static int make_head(const char *dir, const char *head, const char *below, struct err *err)
{
    char path[PATH_MAX];
    struct layers ignored;
    struct successor next;
    int rc = path_format(path, err, "%s/%s", dir, head);

    if (rc == 0 && path_exists(path) &&
        (successor_state_of(path, &next) == SUCCESSOR_UNFINISHED ||
         layers_list(dir, head, &ignored, err) < 0)) {
        rc = path_remove(path, err);
    }
    return rc < 0 ? rc : layers_make_head(dir, head, below, 0, err);
}

static int go_over(struct work *work, const char *dir, struct err *err)
{
    char file[PATH_MAX], before[PATH_MAX];
    const char *below = directory_head(work->instance);
    int rc = task_step(work->task, STEP_SWITCH_DISK, false);

    rc = rc < 0 ? rc : path_format(file, err, "%s/%s", dir, work->head);
    rc = rc < 0 ? rc : path_format(before, err, "%s/%s", dir, below);
    if (rc == 0) {
        rc = work->is_running ? switch_frozen(work, ROOT_DISK, file, err)
                              : make_head(dir, work->head, below, err);
    }
    if (rc == 0 && work->is_running) {
        rc = err_set(err, -ENODEV, "the machine has no disk of its own");
    }
    if (rc < 0) {
        return rc;
    }
    work->was_switched = true;
    successor_forget(before); /* the record says it from here on */
    return task_step(work->task, STEP_SWITCH_DISK, true);
}

/* The directory of links: whole or not at all. */
static int publish(struct work *work, const char *dir, struct err *err)
{
    struct task *task = work->task;
    const char *layer = directory_head(work->instance);
    char place[PATH_MAX], making[PATH_MAX];
    struct layers layers;
    int rc = snapshot_path(task->compute, work->snapshot.id, place, err);

    rc = rc < 0 ? rc
                : path_format(making, err, "%s/snapshots/.%s.making", task->compute->state_dir,
                              work->snapshot.id);
    if (rc == 0 && !path_exists(place)) {
        rc = task_step(task, STEP_LINK_SNAPSHOT, false);
        rc = rc < 0 ? rc : path_remove(making, err);
        rc = rc < 0 ? rc : path_make_dirs(making, err);
        rc = rc < 0 ? rc : directory_link(dir, making, err);
        rc = rc < 0 ? rc : layers_link(dir, layer, making, err);
        rc = rc < 0 ? rc : task_step(task, STEP_LINK_SNAPSHOT, true);
        rc = rc < 0 ? rc : task_step(task, STEP_PUBLISH_SNAPSHOT, false);
        if (rc == 0 && rename(making, place) != 0) {
            rc = err_set_errno(err, -errno, "%s cannot be made", place);
        }
        rc = rc < 0 ? rc : task_step(task, STEP_PUBLISH_SNAPSHOT, true);
    }
    rc = rc < 0 ? rc : layers_list(place, layer, &layers, err);
    if (rc == 0) {
        work->size_bytes = layers.size_bytes;
    }
    return rc;
}

static int take_disk(struct work *work, struct err *err)
{
    char dir[PATH_MAX];
    int rc = directory_path(work->task->compute, work->task->id, dir, err);

    rc = rc < 0 ? rc : go_over(work, dir, err);
    return rc < 0 ? rc : publish(work, dir, err);
}

static int put_disk_back(struct work *work, struct err *err)
{
    struct task *task = work->task;
    const char *layer = object_text(&work->snapshot, "layer");
    char dir[PATH_MAX], from[PATH_MAX];
    int rc = directory_path(task->compute, task->id, dir, err);

    rc = rc < 0 ? rc : snapshot_path(task->compute, work->snapshot.id, from, err);
    rc = rc < 0 ? rc : task_step(task, STEP_RESTORE_DISK, false);
    rc = rc < 0 ? rc : layers_link(from, layer, dir, err);
    rc = rc < 0 ? rc : make_head(dir, work->head, layer, err);
    if (rc < 0) {
        return rc;
    }
    work->was_switched = true;
    return task_step(task, STEP_RESTORE_DISK, true);
}

/* ---- a volume ---- */

/* The machine runs: the pool notes a head, the machine makes it, the pool notes that. */
static int take_live(struct work *work, struct pool *pool, struct err *err)
{
    struct task *task = work->task;
    const char *id = work->volume->id;
    char file[PATH_MAX];
    int rc = task_step(task, STEP_RESERVE_LAYER, false);

    rc = rc < 0 ? rc : pool_begin_snapshot(pool, id, work->snapshot.id, file, err);
    if (rc == -EEXIST) {
        return 0; /* all of it is done */
    }
    rc = rc < 0 ? rc : task_step(task, STEP_RESERVE_LAYER, true);
    rc = rc < 0 ? rc : task_step(task, STEP_SWITCH_VOLUME, false);
    if (rc < 0) {
        return rc;
    }
    rc = switch_frozen(work, id, file, err);
    if (rc == 0) {
        return pool_settle_snapshot(pool, id, work->snapshot.id, err); /* it runs without it */
    }
    if (rc < 0) {
        struct err ignored;

        if (!is_passing(rc) && pool_end_snapshot(pool, id, false, &ignored) < 0) {
            log_warn("%s: %s, ignoring", id, ignored.text);
        }
        return rc;
    }
    rc = pool_end_snapshot(pool, id, true, err);
    return rc < 0 ? rc : task_step(task, STEP_SWITCH_VOLUME, true);
}

static int take_at_rest(struct work *work, struct pool *pool, struct err *err)
{
    int rc = task_step(work->task, STEP_SNAPSHOT_VOLUME, false);

    rc = rc < 0 ? rc : pool_settle_snapshot(pool, work->volume->id, work->snapshot.id, err);
    return rc < 0 ? rc : task_step(work->task, STEP_SNAPSHOT_VOLUME, true);
}

static int put_volume_back(struct work *work, struct pool *pool, struct err *err)
{
    int rc = task_step(work->task, STEP_RESTORE_VOLUME, false);

    rc = rc < 0 ? rc : pool_revert(pool, work->volume->id, work->snapshot.id, err);
    return rc < 0 ? rc : task_step(work->task, STEP_RESTORE_VOLUME, true);
}

static int work_in_pool(struct work *work, bool is_restore, struct err *err)
{
    struct pool *pool = NULL;
    struct pool_volume found;
    int rc = volume_open_pool(work->task->compute, true, &pool, err);

    if (rc == 0) {
        rc = is_restore         ? put_volume_back(work, pool, err)
             : work->is_running ? take_live(work, pool, err)
                                : take_at_rest(work, pool, err);
    }
    rc = rc < 0 ? rc : pool_find(pool, work->volume->id, &found, err);
    if (rc == 0) {
        work->size_bytes = found.size_bytes;
    }
    pool_close(pool);
    return rc;
}

/* ---- what came of it ---- */

static void release(struct object *object)
{
    object_clear(object, "snapshotting");
    object_clear(object, "restoring");
    if (object->kind == KIND_VOLUME &&
        (object_is(object, "state", "snapshotting") || object_is(object, "state", "restoring"))) {
        object_set_text(object, "state", "available");
    }
}

static void collect_failure(struct work *work, struct change *change, bool is_restore, int rc,
                            const struct err *err)
{
    struct fault fault = {.code = FAULT_INTERNAL};

    (void)fault_set_err(&fault, rc, err);
    log_error("%s: %s", work->snapshot.id, err->text);
    change_event(change, &work->snapshot, "error", "snapshot.failed", NULL, "%s", err->text);
    change_end_operation(change, &work->snapshot, &fault);
    object_set_text(&work->snapshot, "reason", err->text);
    object_set_text(&work->snapshot, "state", is_restore ? "available" : "failed");
}

static void collect_success(struct work *work, struct change *change, bool is_restore)
{
    struct object *source = work->volume != NULL ? work->volume : work->instance;
    struct object *snapshot = &work->snapshot;
    int64_t gib = (int64_t)((work->size_bytes + BYTES_PER_GIB - 1) / BYTES_PER_GIB);

    if (is_restore && work->volume != NULL) {
        object_set_number(source, "size_gib", gib);
    }
    if (!is_restore) {
        object_clear(snapshot, "parent");
        if (object_text(source, "snapshot")[0] != '\0') {
            object_set_text(snapshot, "parent", object_text(source, "snapshot"));
        }
        if (work->volume == NULL) {
            object_set_text(snapshot, "layer", directory_head(work->instance));
        }
        object_set_number(snapshot, "size_gib", gib);
        object_set_flag(snapshot, "live", work->is_running);
        object_set_flag(snapshot, "frozen", work->was_frozen);
    }
    object_set_text(source, "snapshot", snapshot->id);
    object_set_text(snapshot, "state", "available");
    object_clear(snapshot, "reason");
    change_event(change, snapshot, "info", is_restore ? "snapshot.restored" : "snapshot.created",
                 NULL, "%s \"%s\" %s \"%s\"", kind_spec(source->kind)->name,
                 object_text(source, "name"), is_restore ? "is back at" : "has the snapshot",
                 object_text(snapshot, "name"));
    change_end_operation(change, snapshot, NULL);
}

static int note(struct work *work, bool is_restore, int rc, const struct err *err)
{
    struct change change;

    change_begin(&change, work->task->compute);
    if (rc < 0) {
        collect_failure(work, &change, is_restore, rc, err);
    } else {
        collect_success(work, &change, is_restore);
    }
    if (work->volume == NULL && work->was_switched && (rc == 0 || !is_restore)) {
        object_set_text(work->instance, "disk", work->head);
        if (is_restore) {
            object_set_flag(work->instance, "merging", true); /* what was until now goes */
        }
    }
    change_put(&change, &work->snapshot);
    if (work->volume != NULL) {
        release(work->volume);
        change_put(&change, work->volume);
    }
    if (work->instance != NULL) {
        release(work->instance);
        change_put(&change, work->instance);
    }
    return commit_step(work->task, &change, is_restore ? STEP_NOTE_RESTORED : STEP_NOTE_SNAPSHOT);
}

/* ---- the work ---- */

/* Whoever claims something for a snapshot that is not there any more has nothing to do. */
static int let_go(struct work *work, struct object *claimed)
{
    struct change change;

    change_begin(&change, work->task->compute);
    release(claimed);
    change_put(&change, claimed);
    return commit_step(work->task, &change, STEP_NOTE_SNAPSHOT);
}

static int carry_out(struct work *work, bool is_restore)
{
    struct err err = {.code = 0};
    int rc;

    if (is_restore && work->is_running) {
        rc = err_set(&err, -EBUSY, "the machine runs");
    } else if (work->volume != NULL) {
        rc = work_in_pool(work, is_restore, &err);
    } else {
        /* A name that nothing had before: of the snapshot, or of this one restoration. */
        (void)snprintf(work->head, sizeof(work->head), "%.40s.qcow2",
                       is_restore ? object_text(&work->snapshot, "operation") : work->snapshot.id);
        rc = is_restore ? put_disk_back(work, &err) : take_disk(work, &err);
    }
    if (is_passing(rc)) {
        return log_failure(work->task, rc, &err);
    }
    return note(work, is_restore, rc, &err);
}

/* With the volume that the snapshot is of, when it is of one. */
static int carry_out_with(struct work *work, struct object *claimed, bool is_restore)
{
    const char *id = object_text(&work->snapshot, "volume");
    struct object volume = {0};
    int rc;

    if (work->volume != NULL || id[0] == '\0') {
        return carry_out(work, is_restore);
    }
    rc = object_load(work->task->compute, KIND_VOLUME, work->task->project, id, &volume, NULL);
    if (rc == -ENOENT) {
        return let_go(work, claimed);
    }
    work->volume = &volume;
    rc = rc < 0 ? rc : carry_out(work, is_restore);
    work->volume = NULL;
    object_done(&volume);
    return rc;
}

static int run(struct work *work, struct object *claimed)
{
    bool is_restore = object_text(claimed, "restoring")[0] != '\0';
    struct fault fault = {.code = FAULT_NONE};
    int rc = object_load(work->task->compute, KIND_SNAPSHOT, work->task->project,
                         object_text(claimed, is_restore ? "restoring" : "snapshotting"),
                         &work->snapshot, &fault);

    if (rc < 0) {
        return rc == -ENOENT ? let_go(work, claimed) : rc;
    }
    rc = carry_out_with(work, claimed, is_restore);
    object_done(&work->snapshot);
    return rc;
}

int snapshot_work(struct task *task, struct object *instance, bool is_running)
{
    struct work work = {.task = task, .instance = instance, .is_running = is_running};

    return run(&work, instance);
}

int snapshot_work_volume(struct task *task, struct object *volume)
{
    struct work work = {.task = task, .volume = volume};

    return run(&work, volume);
}

/* ---- fewer layers ---- */

int snapshot_tidy(struct task *task, struct object *instance)
{
    char dir[PATH_MAX];
    struct change change;
    struct err err = {.code = 0};
    int rc = directory_path(task->compute, task->id, dir, &err);

    rc = rc < 0 ? rc : task_step(task, STEP_TIDY_DISK, false);
    rc = rc < 0 ? rc : layers_tidy(dir, directory_head(instance), &err);
    rc = rc < 0 ? rc : layers_merge(dir, directory_head(instance), &err);
    if (rc == -EINTR) {
        return rc;
    }
    if (rc < 0) {
        log_warn("%s keeps more layers than it needs: %s, ignoring", task->id, err.text);
    }
    rc = task_step(task, STEP_TIDY_DISK, true);
    if (rc < 0) {
        return rc;
    }
    object_clear(instance, "merging");
    change_begin(&change, task->compute);
    change_put(&change, instance);
    return commit_step(task, &change, STEP_NOTE_TIDY);
}
