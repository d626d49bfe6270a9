/* Calls about snapshots: what may be taken, put back, deleted and built upon. */
#include "compute/compute_int.h"

#include "base/path.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BYTES_PER_GIB (1ull << 30)

static bool state_in(const struct object *object, const char *const *states)
{
    for (; *states != NULL; states++) {
        if (object_is(object, "state", *states)) {
            return true;
        }
    }
    return false;
}

static int refuse(const struct object *object, const char *field, const char *mend,
                  struct fault *fault)
{
    return fault_set(fault, FAULT_CONFLICT, field, "the %s \"%s\" is %s%s",
                     kind_spec(object->kind)->name, object_text(object, "name"),
                     object_text(object, "state"), mend);
}

bool snapshot_is_under_way(const struct object *object)
{
    return object_text(object, "snapshotting")[0] != '\0' ||
           object_text(object, "restoring")[0] != '\0';
}

static int check_free(const struct object *object, const char *field, struct fault *fault)
{
    return snapshot_is_under_way(object)
               ? fault_set(fault, FAULT_CONFLICT, field,
                           "another snapshot of the %s \"%s\" is being taken or put back",
                           kind_spec(object->kind)->name, object_text(object, "name"))
               : 0;
}

/* Whoever works on disks of an instance that rests, or runs. */
static int check_instance(const struct object *instance, const char *field, bool may_run,
                          struct fault *fault)
{
    static const char *const resting[] = {"stopped", "failed", NULL};
    static const char *const running[] = {"running", "paused", NULL};

    if (!state_in(instance, resting) && !(may_run && state_in(instance, running))) {
        return refuse(instance, field, may_run ? "" : "; it has to be stopped", fault);
    }
    return check_free(instance, field, fault);
}

/* The instance's own disk, as large as what it began as at least. */
static int measure_disk(struct compute *compute, const struct object *instance, int64_t *ret_gib,
                        struct fault *fault)
{
    char dir[PATH_MAX], path[PATH_MAX];
    struct err err;
    struct stat st;
    int64_t gib = object_number(instance, "disk_gib"), base = 0;
    int rc = directory_path(compute, instance->id, dir, &err);

    rc = rc < 0 ? rc : path_format(path, &err, "%s/%s", dir, directory_head(instance));
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    if (!path_exists(path)) {
        return fault_set(fault, FAULT_CONFLICT, "instance",
                         "the instance \"%s\" has no disk of its own",
                         object_text(instance, "name"));
    }
    if (path_format(path, &err, "%s/disk.raw", dir) == 0 && stat(path, &st) == 0) {
        base = (int64_t)(((uint64_t)st.st_size + BYTES_PER_GIB - 1) / BYTES_PER_GIB);
    }
    *ret_gib = gib > base ? gib : base;
    return 0;
}

static void begin_from(struct object *snapshot, const struct object *source)
{
    object_set_text(snapshot, "source", object_text(source, "name"));
    if (object_text(source, "snapshot")[0] != '\0') {
        object_set_text(snapshot, "parent", object_text(source, "snapshot"));
    }
    object_set_text(snapshot, "state", "creating");
}

static int prepare_of_instance(struct change *change, struct object *snapshot, struct fault *fault)
{
    struct object instance = {0};
    int64_t gib = 0;
    int rc = object_find(change->compute, KIND_INSTANCE, snapshot->project,
                         object_text(snapshot, "instance"), &instance, fault);

    if (rc < 0) {
        return call_name_field(rc, "instance", fault);
    }
    rc = check_instance(&instance, "instance", true, fault);
    rc = rc < 0 ? rc : measure_disk(change->compute, &instance, &gib, fault);
    if (rc == 0) {
        object_set_text(snapshot, "instance", instance.id);
        object_set_text(snapshot, "image", object_text(&instance, "image"));
        object_set_number(snapshot, "size_gib", gib);
        begin_from(snapshot, &instance);
        object_set_text(&instance, "snapshotting", snapshot->id);
        change_put(change, &instance);
    }
    object_done(&instance);
    return rc;
}

/* The instance that has the volume does the work, as its monitor may run. */
static int claim_user(struct change *change, const struct object *volume, const char *claim,
                      const char *snapshot_id, bool may_run, struct fault *fault)
{
    struct object instance = {0};
    int rc = object_load(change->compute, KIND_INSTANCE, volume->project,
                         object_text(volume, "instance"), &instance, fault);

    rc = rc < 0 ? rc : check_instance(&instance, "volume", may_run, fault);
    if (rc == 0) {
        object_set_text(&instance, claim, snapshot_id);
        change_put(change, &instance);
    }
    object_done(&instance);
    return rc;
}

/* Claims a volume, and who has it, for work on its snapshots. */
static int claim_volume(struct change *change, struct object *volume, const char *claim,
                        const char *state, const char *snapshot_id, bool may_run,
                        struct fault *fault)
{
    int rc = check_free(volume, "volume", fault);

    if (rc < 0) {
        return rc;
    }
    if (object_is(volume, "state", "in-use")) {
        rc = claim_user(change, volume, claim, snapshot_id, may_run, fault);
    } else if (object_is(volume, "state", "available")) {
        object_set_text(volume, "state", state);
    } else {
        rc = refuse(volume, "volume", "", fault);
    }
    if (rc == 0) {
        object_set_text(volume, claim, snapshot_id);
        change_put(change, volume);
    }
    return rc;
}

static int prepare_of_volume(struct change *change, struct object *snapshot, struct fault *fault)
{
    struct object volume = {0};
    int rc = object_find(change->compute, KIND_VOLUME, snapshot->project,
                         object_text(snapshot, "volume"), &volume, fault);

    if (rc < 0) {
        return call_name_field(rc, "volume", fault);
    }
    object_set_text(snapshot, "volume", volume.id);
    object_set_number(snapshot, "size_gib", object_number(&volume, "size_gib"));
    begin_from(snapshot, &volume);
    rc = claim_volume(change, &volume, "snapshotting", "snapshotting", snapshot->id, true, fault);
    object_done(&volume);
    return rc;
}

int snapshot_prepare(struct change *change, struct object *snapshot, struct fault *fault)
{
    bool has_instance = object_text(snapshot, "instance")[0] != '\0';
    bool has_volume = object_text(snapshot, "volume")[0] != '\0';
    int rc;

    if (has_instance == has_volume) {
        return fault_set(fault, FAULT_INVALID, has_volume ? "volume" : "instance",
                         "say of which instance or of which volume, one of them");
    }
    rc = has_instance ? prepare_of_instance(change, snapshot, fault)
                      : prepare_of_volume(change, snapshot, fault);
    return rc < 0
               ? rc
               : admit_disk(change->compute, snapshot, object_number(snapshot, "size_gib"), fault);
}

/* ---- putting back ---- */

static int source_is_gone(const struct object *snapshot, int rc, struct fault *fault)
{
    return rc != -ENOENT
               ? rc
               : fault_set(fault, FAULT_CONFLICT, NULL,
                           "what the snapshot \"%s\" was taken of is gone; make a new one from it",
                           object_text(snapshot, "name"));
}

int snapshot_restore(struct change *change, struct object *snapshot, struct fault *fault)
{
    bool is_volume = object_text(snapshot, "volume")[0] != '\0';
    struct object source = {0};
    int rc;

    if (!object_is(snapshot, "state", "available")) {
        return refuse(snapshot, "state", "", fault);
    }
    rc = object_load(change->compute, is_volume ? KIND_VOLUME : KIND_INSTANCE, snapshot->project,
                     object_text(snapshot, is_volume ? "volume" : "instance"), &source, fault);
    if (rc < 0) {
        return source_is_gone(snapshot, rc, fault);
    }
    if (is_volume) {
        rc = claim_volume(change, &source, "restoring", "restoring", snapshot->id, false, fault);
    } else {
        rc = check_instance(&source, "state", false, fault);
        object_set_text(&source, "restoring", snapshot->id);
        change_put(change, &source);
    }
    object_set_text(snapshot, "state", "restoring");
    object_done(&source);
    return rc;
}

/* ---- deletion ---- */

static int is_being_built(void *opaque, struct object *object)
{
    return object_is(object, "origin", opaque) &&
                   (object_is(object, "state", "pending") || object_is(object, "state", "creating"))
               ? -EBUSY
               : 0;
}

int snapshot_delete(struct change *change, struct object *snapshot, struct fault *fault)
{
    static const char *const states[] = {"available", "failed", NULL};
    int rc = 0;

    if (!state_in(snapshot, states)) {
        return refuse(snapshot, "state", "", fault);
    }
    rc = object_each(change->compute, KIND_INSTANCE, snapshot->project, is_being_built,
                     snapshot->id, fault);
    rc = rc < 0 ? rc
                : object_each(change->compute, KIND_VOLUME, snapshot->project, is_being_built,
                              snapshot->id, fault);
    if (rc == -EBUSY) {
        return fault_set(fault, FAULT_CONFLICT, NULL,
                         "something is just being made from the snapshot \"%s\"",
                         object_text(snapshot, "name"));
    }
    object_set_text(snapshot, "state", "deleting");
    return rc;
}

/* ---- building upon ---- */

static int find_ready(struct change *change, const struct object *object, struct object *snapshot,
                      struct fault *fault)
{
    int rc = object_find(change->compute, KIND_SNAPSHOT, object->project,
                         object_text(object, "snapshot"), snapshot, fault);

    if (rc < 0) {
        return call_name_field(rc, "snapshot", fault);
    }
    if (!object_is(snapshot, "state", "available") && !object_is(snapshot, "state", "restoring")) {
        rc = refuse(snapshot, "snapshot", "", fault);
        object_done(snapshot);
    }
    return rc;
}

static void note_origin(struct object *object, const struct object *snapshot, const char *size)
{
    object_set_text(object, "snapshot", snapshot->id);
    object_set_text(object, "origin", snapshot->id);
    if (object_number(object, size) < object_number(snapshot, "size_gib")) {
        object_set_number(object, size, object_number(snapshot, "size_gib"));
    }
}

int snapshot_base_volume(struct change *change, struct object *volume, struct fault *fault)
{
    struct object snapshot = {0};
    int64_t gib = object_number(volume, "size_gib");
    int rc;

    if (object_text(volume, "snapshot")[0] == '\0') {
        return gib > 0 ? 0
                       : fault_set(fault, FAULT_INVALID, "size_gib",
                                   "\"size_gib\" has to be given, or a snapshot");
    }
    rc = find_ready(change, volume, &snapshot, fault);
    if (rc < 0) {
        return rc;
    }
    if (gib > 0 && gib < object_number(&snapshot, "size_gib")) {
        rc = fault_set(fault, FAULT_INVALID, "size_gib", "the snapshot has %lld GiB",
                       (long long)object_number(&snapshot, "size_gib"));
    }
    note_origin(volume, &snapshot, "size_gib");
    object_done(&snapshot);
    return rc;
}

int snapshot_base_instance(struct change *change, struct object *instance, struct fault *fault)
{
    bool has_image = object_text(instance, "image")[0] != '\0';
    struct object snapshot = {0};
    int rc;

    if (object_text(instance, "snapshot")[0] == '\0') {
        return has_image ? 0
                         : fault_set(fault, FAULT_INVALID, "image",
                                     "\"image\" has to be given, or a snapshot");
    }
    if (has_image) {
        return fault_set(fault, FAULT_INVALID, "image", "an image or a snapshot, not both");
    }
    rc = find_ready(change, instance, &snapshot, fault);
    if (rc < 0) {
        return rc;
    }
    if (object_text(&snapshot, "volume")[0] != '\0') {
        rc = fault_set(fault, FAULT_INVALID, "snapshot",
                       "the snapshot \"%s\" is a volume's, which no machine boots from; make a "
                       "volume from it",
                       object_text(&snapshot, "name"));
    }
    note_origin(instance, &snapshot, "disk_gib");
    object_set_text(instance, "image", object_text(&snapshot, "image"));
    (void)json_object_set_new(instance->json, "disk",
                              json_sprintf("%s.qcow2", instance->id)); /* as no other is called */
    object_done(&snapshot);
    return rc;
}
