/* The reconciler of snapshots: who takes or puts one back is told, what is deleted goes here. */
#include "compute/compute_int.h"

#include "base/log.h"
#include "base/path.h"
#include "storage/pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RELINK_MAX 30u /* objects in one commit */

/* Whose worker does it: the instance that has the disk, else the volume. */
static int hand_over(struct task *task, const struct object *snapshot)
{
    const char *volume_id = object_text(snapshot, "volume");
    const char *instance_id = object_text(snapshot, "instance");
    struct object volume = {0};

    if (volume_id[0] == '\0') {
        compute_queue(task->compute, KIND_INSTANCE, task->project, instance_id, 0);
        return SETTLED;
    }
    if (object_load(task->compute, KIND_VOLUME, task->project, volume_id, &volume, NULL) == 0) {
        instance_id = object_text(&volume, "instance");
        compute_queue(task->compute, instance_id[0] != '\0' ? KIND_INSTANCE : KIND_VOLUME,
                      task->project, instance_id[0] != '\0' ? instance_id : volume_id, 0);
    }
    object_done(&volume);
    return SETTLED;
}

/* ---- what it is made of ---- */

static int remove_layers(struct task *task, const struct object *snapshot, struct err *err)
{
    const char *volume_id = object_text(snapshot, "volume");
    char place[PATH_MAX], making[PATH_MAX];
    struct pool *pool = NULL;
    int rc;

    if (volume_id[0] == '\0') {
        rc = snapshot_path(task->compute, snapshot->id, place, err);
        rc = rc < 0 ? rc
                    : path_format(making, err, "%s/snapshots/.%s.making", task->compute->state_dir,
                                  snapshot->id);
        rc = rc < 0 ? rc : path_remove(making, err);
        return rc < 0 ? rc : path_remove(place, err);
    }
    rc = volume_open_pool(task->compute, true, &pool, err);
    rc = rc < 0 ? rc : pool_delete_snapshot(pool, volume_id, snapshot->id, err);
    pool_close(pool);
    rc = rc == -ENOENT ? 0 : rc; /* gone, or it never came about */
    return rc < 0 ? rc : volume_drop(task, volume_id, err);
}

/* ---- who names it ---- */

struct relink {
    struct change *change;
    const char *id;
    const char *parent; /* "": none */
    const char *field;
    unsigned count;
    char ids[RELINK_MAX][ID_BYTES];
};

static int relink_one(void *opaque, struct object *object)
{
    struct relink *relink = opaque;
    bool is_instance = object->kind == KIND_INSTANCE;

    if (!object_is(object, relink->field, relink->id)) {
        return 0;
    }
    if (relink->parent[0] != '\0') {
        object_set_text(object, relink->field, relink->parent);
    } else {
        object_clear(object, relink->field);
    }
    if (is_instance) {
        object_set_flag(object, "merging", true);
        memcpy(relink->ids[relink->count], object->id, ID_BYTES);
    }
    change_put(relink->change, object);
    return ++relink->count == RELINK_MAX ? 1 : 0;
}

/* Those that came after it come after the one before it. SETTLED when nobody names it any more. */
static int relink(struct task *task, const struct object *snapshot, enum kind kind,
                  const char *field)
{
    struct relink relink = {
        .id = snapshot->id, .parent = object_text(snapshot, "parent"), .field = field};
    struct fault fault = {.code = FAULT_NONE};
    struct change change;
    int rc;

    change_begin(&change, task->compute);
    relink.change = &change;
    rc = object_each(task->compute, kind, task->project, relink_one, &relink, &fault);
    if (rc < 0 || relink.count == 0) {
        change_drop(&change);
        if (rc < 0) {
            log_error("%s: %s", task->id, fault.text);
        }
        return rc;
    }
    rc = commit_step(task, &change, STEP_RELINK_SNAPSHOTS);
    for (unsigned i = 0; rc == LOOK_AGAIN && kind == KIND_INSTANCE && i < relink.count; i++) {
        compute_queue(task->compute, KIND_INSTANCE, task->project, relink.ids[i], 0);
    }
    return rc;
}

/* The disk that it was taken of may stand on fewer layers now. */
static int note_merging(struct task *task, struct change *change, const struct object *snapshot)
{
    struct object instance = {0};
    int rc = object_load(task->compute, KIND_INSTANCE, task->project,
                         object_text(snapshot, "instance"), &instance, NULL);

    if (rc == 0 && object_text(&instance, "disk")[0] != '\0') {
        object_set_flag(&instance, "merging", true);
        change_put(change, &instance);
    }
    object_done(&instance);
    return rc == -ENOENT ? 0 : rc;
}

static int forget(struct task *task, struct object *snapshot)
{
    struct change change;
    char instance_id[ID_BYTES];
    int rc = 0;

    (void)snprintf(instance_id, sizeof(instance_id), "%s", object_text(snapshot, "instance"));
    change_begin(&change, task->compute);
    if (instance_id[0] != '\0') {
        rc = note_merging(task, &change, snapshot);
    }
    if (rc < 0) {
        change_drop(&change);
        return rc;
    }
    change_event(&change, snapshot, "info", "snapshot.deleted", NULL, "snapshot \"%s\" is gone",
                 object_text(snapshot, "name"));
    change_end_operation(&change, snapshot, NULL);
    change_drop_name(&change, KIND_SNAPSHOT, snapshot->project, object_text(snapshot, "name"));
    change_remove(&change, snapshot);
    rc = commit_step(task, &change, STEP_FORGET_SNAPSHOT);
    if (rc == LOOK_AGAIN && instance_id[0] != '\0') {
        compute_queue(task->compute, KIND_INSTANCE, task->project, instance_id, 0);
    }
    return rc;
}

static int delete_snapshot(struct task *task, struct object *snapshot)
{
    static const struct {
        enum kind kind;
        const char *field;
    } names[] = {{KIND_INSTANCE, "snapshot"}, {KIND_VOLUME, "snapshot"}, {KIND_SNAPSHOT, "parent"}};
    struct err err = {.code = 0};
    int rc = task_step(task, STEP_DELETE_SNAPSHOT, false);

    rc = rc < 0 ? rc : remove_layers(task, snapshot, &err);
    rc = rc < 0 ? rc : task_step(task, STEP_DELETE_SNAPSHOT, true);
    if (rc < 0) {
        return log_failure(task, rc, &err);
    }
    /* In this order: one that is just being taken after it is found in one of them. */
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        rc = relink(task, snapshot, names[i].kind, names[i].field);
        if (rc != SETTLED) {
            return rc;
        }
    }
    return forget(task, snapshot);
}

static int look(struct task *task)
{
    struct fault fault = {.code = FAULT_NONE};
    struct object snapshot = {0};
    int rc = object_load(task->compute, KIND_SNAPSHOT, task->project, task->id, &snapshot, &fault);

    if (rc < 0) {
        return rc == -ENOENT ? SETTLED : rc;
    }
    rc = SETTLED;
    if (object_is(&snapshot, "state", "deleting")) {
        rc = delete_snapshot(task, &snapshot);
    } else if (object_is(&snapshot, "state", "creating") ||
               object_is(&snapshot, "state", "restoring")) {
        rc = hand_over(task, &snapshot);
    }
    object_done(&snapshot);
    return rc;
}

int reconcile_snapshot(struct task *task)
{
    int rc;

    do {
        rc = look(task);
    } while (rc == LOOK_AGAIN);
    return rc;
}
