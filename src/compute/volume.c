/* Volumes: made, grown and removed in the pool of this host. */
#include "compute/limits.h"

#include "base/log.h"
#include "base/path.h"
#include "block/block_int.h"
#include "rpc/control_client.h"
#include "storage/disk.h"
#include "storage/pool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES_PER_GIB (1ull << 30)

int volume_open_pool(struct compute *compute, bool for_change, struct pool **ret_pool,
                     struct err *err)
{
    char path[PATH_MAX];
    struct pool_config config = {.name = "volumes", .kind = "dir", .path = path};
    int rc = path_format(path, err, "%s/volumes", compute->state_dir);

    return rc < 0 ? rc : pool_open(&config, for_change, err, ret_pool);
}

int volume_path(struct compute *compute, const char *id, char out[PATH_MAX], struct err *err)
{
    struct pool *pool = NULL;
    struct pool_volume volume;
    int rc = volume_open_pool(compute, false, &pool, err);

    rc = rc < 0 ? rc : pool_find(pool, id, &volume, err);
    rc = rc < 0 ? rc : path_format(out, err, "%s", volume.path);
    pool_close(pool);
    return rc;
}

static uint64_t wanted_bytes(const struct object *volume)
{
    return (uint64_t)object_number(volume, "size_gib") * BYTES_PER_GIB;
}

/* A copy of an instance's disk, as a snapshot keeps it. */
static int copy_disk(struct task *task, struct pool *pool, const struct object *volume,
                     const struct object *snapshot, struct err *err)
{
    char dir[PATH_MAX], path[PATH_MAX];
    const struct disk_ref ref = {.path = path, .read_only = true};
    struct block_image *from = NULL;
    int rc = snapshot_path(task->compute, snapshot->id, dir, err);

    rc = rc < 0 ? rc : path_format(path, err, "%s/%s", dir, object_text(snapshot, "layer"));
    rc = rc < 0 ? rc : disk_open(&ref, err, &from);
    if (rc < 0) {
        return rc;
    }
    rc = pool_create_copy(pool, volume->id, wanted_bytes(volume), from, err);
    block_image_close(from);
    return rc;
}

static int create_from(struct task *task, struct pool *pool, const struct object *volume,
                       struct err *err)
{
    struct object snapshot = {0};
    struct fault fault = {.code = FAULT_NONE};
    struct pool_volume made;
    int rc = object_load(task->compute, KIND_SNAPSHOT, volume->project,
                         object_text(volume, "origin"), &snapshot, &fault);

    if (rc < 0) {
        return err_set(err, rc, "%s", fault.text);
    }
    rc = object_text(&snapshot, "volume")[0] != '\0'
             ? pool_clone_volume(pool, object_text(&snapshot, "volume"), snapshot.id, volume->id,
                                 err)
             : copy_disk(task, pool, volume, &snapshot, err);
    object_done(&snapshot);
    rc = rc == -EEXIST ? 0 : rc;
    rc = rc < 0 ? rc : pool_find(pool, volume->id, &made, err);
    return rc < 0 || made.size_bytes >= wanted_bytes(volume)
               ? rc
               : pool_resize_volume(pool, volume->id, wanted_bytes(volume), false, err);
}

/* Made already, before a daemon ended: fine. */
static int create(struct task *task, struct pool *pool, const struct object *volume,
                  struct err *err)
{
    int rc;

    if (object_text(volume, "origin")[0] != '\0') {
        return create_from(task, pool, volume, err);
    }
    rc = pool_create_volume(pool, volume->id, wanted_bytes(volume), err);
    return rc == -EEXIST ? 0 : rc;
}

/* By the monitor of the machine that has it. -ENOTCONN: none runs. */
static int grow_in_use(struct task *task, const struct object *volume, struct err *err)
{
    char dir[PATH_MAX], line[128];
    json_t *answer = NULL;
    int rc = machine_path(task->compute, object_text(volume, "instance"), dir, err);

    (void)snprintf(line, sizeof(line),
                   "{\"command\":\"disk-resize\",\"disk\":\"%.*s\",\"bytes\":%llu}\n",
                   MACHINE_DISK_NAME_BYTES, volume->id, (unsigned long long)wanted_bytes(volume));
    rc = rc < 0 ? rc : control_ask(dir, task->id, line, CONTROL_TIMEOUT_MS, &answer, err);
    if (rc == -ENOENT || rc == -ECONNREFUSED || (rc == 0 && answer == NULL)) {
        rc = -ENOTCONN;
    }
    json_decref(answer);
    return rc;
}

static int resize(struct task *task, struct pool *pool, const struct object *volume,
                  struct err *err)
{
    int rc =
        object_text(volume, "instance")[0] != '\0' ? grow_in_use(task, volume, err) : -ENOTCONN;

    if (rc != -ENOTCONN) {
        return rc < 0 ? rc : pool_note_size(pool, volume->id, wanted_bytes(volume), err);
    }
    return pool_resize_volume(pool, volume->id, wanted_bytes(volume), false, err);
}

/* Snapshots of it stay, and with them what they need in the pool: all but what came after them. */
static int empty_head(struct pool *pool, const char *id, struct err *err)
{
    struct pool_snapshot *list = NULL;
    unsigned count = 0;
    int rc = pool_list_snapshots(pool, id, &list, &count, err);

    rc = rc < 0 || count == 0 ? rc : pool_revert(pool, id, list[0].name, err);
    free(list);
    return rc;
}

static int delete (struct task *task, struct pool *pool, const struct object *volume,
                   struct err *err)
{
    struct pool_volume found;
    int rc = pool_find(pool, volume->id, &found, err);

    (void)task;
    if (rc == 0) {
        rc = found.snapshots > 0 ? empty_head(pool, volume->id, err)
                                 : pool_delete_volume(pool, volume->id, err);
    }
    return rc == -ENOENT ? 0 : rc;
}

/* Whichever of the volume and its last snapshot goes last takes along what is in the pool. */
int volume_drop(struct task *task, const char *id, struct err *err)
{
    struct object volume = {0};
    struct pool *pool = NULL;
    struct pool_volume found;
    int rc = object_load(task->compute, KIND_VOLUME, task->project, id, &volume, NULL);

    object_done(&volume);
    if (rc != -ENOENT) {
        return rc < 0 ? err_set_errno(err, rc, "the record of %s cannot be read", id) : 0;
    }
    rc = volume_open_pool(task->compute, true, &pool, err);
    rc = rc < 0 ? rc : pool_find(pool, id, &found, err);
    if (rc == 0 && found.snapshots == 0) {
        rc = pool_delete_volume(pool, id, err);
    }
    pool_close(pool);
    return rc == -ENOENT ? 0 : rc;
}

/* What a volume's state asks for. */
static const struct work {
    const char *state;
    enum step step, note;
    int (*run)(struct task *task, struct pool *pool, const struct object *volume, struct err *err);
    const char *action, *text;
} works[] = {
    {"creating", STEP_CREATE_VOLUME, STEP_NOTE_VOLUME, create, "volume.created", "is there"},
    {"resizing", STEP_RESIZE_VOLUME, STEP_NOTE_VOLUME, resize, "volume.resized", "has grown"},
    {"deleting", STEP_DELETE_VOLUME, STEP_FORGET_VOLUME, delete, "volume.deleted", "is gone"},
};

static const struct work *find_work(const struct object *volume)
{
    for (size_t i = 0; i < ARRAY_LEN(works); i++) {
        if (object_is(volume, "state", works[i].state)) {
            return &works[i];
        }
    }
    return NULL;
}

static int do_work(struct task *task, const struct work *work, const struct object *volume,
                   struct err *err)
{
    struct pool *pool = NULL;
    int rc = task_step(task, work->step, false);

    rc = rc < 0 ? rc : volume_open_pool(task->compute, true, &pool, err);
    rc = rc < 0 ? rc : work->run(task, pool, volume, err);
    pool_close(pool);
    rc = rc < 0 ? rc : task_step(task, work->step, true);
    err->code = rc; /* of what was done already, too, there is a sentence */
    return rc;
}

/* How large it really is, when it did not become larger. */
static void correct_size(struct task *task, struct object *volume)
{
    struct pool *pool = NULL;
    struct pool_volume found;
    struct err ignored;

    if (volume_open_pool(task->compute, false, &pool, &ignored) == 0 &&
        pool_find(pool, volume->id, &found, &ignored) == 0) {
        object_set_number(volume, "size_gib", (int64_t)(found.size_bytes / BYTES_PER_GIB));
    }
    pool_close(pool);
}

static const char *rest_state(const struct object *volume)
{
    return object_text(volume, "instance")[0] != '\0' ? "in-use" : "available";
}

static void collect(struct change *change, struct task *task, const struct work *work,
                    struct object *volume, const struct err *err)
{
    struct fault fault = {.code = FAULT_INTERNAL};

    if (err->code != 0) {
        (void)fault_set_err(&fault, err->code, err);
        log_error("%s: %s", task->id, err->text);
        object_set_text(volume, "reason", err->text);
        change_event(change, volume, "error", "volume.failed", NULL, "%s", err->text);
        change_end_operation(change, volume, &fault);
        object_set_text(volume, "state",
                        work->step == STEP_RESIZE_VOLUME ? rest_state(volume) : "failed");
        if (work->step == STEP_RESIZE_VOLUME) {
            correct_size(task, volume);
        }
        change_put(change, volume);
        return;
    }
    object_clear(volume, "reason");
    change_event(change, volume, "info", work->action, NULL, "volume \"%s\" %s",
                 object_text(volume, "name"), work->text);
    change_end_operation(change, volume, NULL);
    if (work->note == STEP_FORGET_VOLUME) {
        change_drop_name(change, KIND_VOLUME, volume->project, object_text(volume, "name"));
        change_remove(change, volume);
    } else {
        object_set_text(volume, "state", rest_state(volume));
        change_put(change, volume);
    }
}

static int drop(struct task *task)
{
    struct err err;
    int rc = task_step(task, STEP_DROP_VOLUME, false);

    rc = rc < 0 ? rc : volume_drop(task, task->id, &err);
    return rc < 0 ? log_failure(task, rc, &err) : task_step(task, STEP_DROP_VOLUME, true);
}

static int look(struct task *task)
{
    struct fault fault = {.code = FAULT_NONE};
    struct err err = {.code = 0};
    struct object volume = {0};
    const struct work *work;
    struct change change;
    int rc = object_load(task->compute, KIND_VOLUME, task->project, task->id, &volume, &fault);

    if (rc < 0) {
        return rc == -ENOENT ? 0 : rc;
    }
    if (object_is(&volume, "state", "snapshotting") || object_is(&volume, "state", "restoring")) {
        rc = snapshot_work_volume(task, &volume);
        object_done(&volume);
        return rc;
    }
    work = find_work(&volume);
    if (work == NULL) {
        object_done(&volume);
        return 0;
    }
    rc = do_work(task, work, &volume, &err);
    if (rc == -EINTR) {
        object_done(&volume);
        return rc;
    }
    change_begin(&change, task->compute);
    collect(&change, task, work, &volume, &err);
    object_done(&volume);
    rc = task_step(task, work->note, false);
    if (rc < 0) {
        change_drop(&change);
        return rc;
    }
    rc = change_commit(&change, &fault);
    if (rc < 0) {
        return rc == -ESTALE ? LOOK_AGAIN : rc;
    }
    rc = task_step(task, work->note, true);
    return rc < 0 || work->note != STEP_FORGET_VOLUME ? rc : drop(task);
}

int reconcile_volume(struct task *task)
{
    int rc;

    do {
        rc = look(task);
    } while (rc == LOOK_AGAIN);
    return rc;
}
