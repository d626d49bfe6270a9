/* machines/ID: what lasts of an instance. */
#include "compute/compute_int.h"

#include "base/path.h"
#include "block/image.h"
#include "storage/copy.h"
#include "storage/layers.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#define BYTES_PER_GIB (1ull << 30)

int directory_path(const struct compute *compute, const char *id, char out[PATH_MAX],
                   struct err *err)
{
    return path_format(out, err, "%s/machines/%s", compute->state_dir, id);
}

const char *directory_head(const struct object *instance)
{
    const char *name = object_text(instance, "disk");

    return name[0] != '\0' ? name : "disk.qcow2";
}

/* Links, so that the image may be rebuilt or removed meanwhile. The disk is only read from here. */
int directory_link(const char *from, const char *to, struct err *err)
{
    static const char *const linked[] = {"image.json",  "vmlinuz",          "initrd",  "ssh_key",
                                         "known_hosts", "console_password", "disk.raw"};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(linked); i++) {
        rc = copy_link_file(from, to, linked[i], err);
    }
    return rc;
}

/* What the directory is made from: an image, or a snapshot with its layers. */
struct source {
    char dir[PATH_MAX];
    char layer[LAYERS_NAME_BYTES]; /* the snapshot's; "": an image */
};

static int link_source(const struct source *source, const char *making, struct err *err)
{
    int rc = directory_link(source->dir, making, err);

    return rc < 0 || source->layer[0] == '\0'
               ? rc
               : layers_link(source->dir, source->layer, making, err);
}

/* The instance's own layer over the image's disk. */
static int create_disk(const struct object *instance, const char *making, struct err *err)
{
    struct block_create_options create = {
        .format = BLOCK_FORMAT_QCOW2,
        .backing_path = "disk.raw",
        .backing_format = BLOCK_FORMAT_RAW,
        .size_bytes = (uint64_t)object_number(instance, "disk_gib") * BYTES_PER_GIB,
    };
    char base[PATH_MAX], path[PATH_MAX];
    struct stat st;
    int rc = path_format(base, err, "%s/disk.raw", making);

    rc = rc < 0 ? rc : path_format(path, err, "%s/disk.qcow2", making);
    if (rc < 0) {
        return rc;
    }
    if (stat(base, &st) != 0) {
        return errno == ENOENT ? 0 : err_set_errno(err, -errno, "%s cannot be read", base);
    }
    if (create.size_bytes < (uint64_t)st.st_size) {
        create.size_bytes = (uint64_t)st.st_size;
    }
    create.path = path;
    return block_image_create(&create, err);
}

static int make_disk(const struct source *source, const struct object *instance, const char *making,
                     struct err *err)
{
    return source->layer[0] == '\0'
               ? create_disk(instance, making, err)
               : layers_make_head(making, directory_head(instance), source->layer,
                                  (uint64_t)object_number(instance, "disk_gib") * BYTES_PER_GIB,
                                  err);
}

static int find_source(struct compute *compute, const struct object *instance,
                       struct source *ret_source, struct err *err)
{
    const char *origin = object_text(instance, "origin");
    struct fault fault = {.code = FAULT_NONE};
    struct object snapshot = {0};
    struct image image;
    int rc;

    ret_source->layer[0] = '\0';
    if (origin[0] == '\0') {
        rc = images_find(compute, object_text(instance, "image"), &image, &fault);
        return rc < 0 ? err_set(err, rc, "%s", fault.text)
                      : path_format(ret_source->dir, err, "%s", image.dir);
    }
    rc = object_load(compute, KIND_SNAPSHOT, instance->project, origin, &snapshot, &fault);
    if (rc < 0) {
        return err_set(err, rc, "%s", fault.text);
    }
    (void)snprintf(ret_source->layer, sizeof(ret_source->layer), "%s",
                   object_text(&snapshot, "layer"));
    object_done(&snapshot);
    return snapshot_path(compute, origin, ret_source->dir, err);
}

int directory_make(struct task *task, const struct object *instance, struct err *err)
{
    struct compute *compute = task->compute;
    char place[PATH_MAX], making[PATH_MAX];
    struct source source;
    int rc = directory_path(compute, instance->id, place, err);

    rc = rc < 0
             ? rc
             : path_format(making, err, "%s/machines/.%s.making", compute->state_dir, instance->id);
    if (rc < 0 || path_exists(place)) {
        return rc;
    }
    rc = find_source(compute, instance, &source, err);
    rc = rc < 0 ? rc : task_step(task, STEP_MAKE_DIRECTORY, false);
    rc = rc < 0 ? rc : path_remove(making, err); /* of one that was ended on the way */
    rc = rc < 0 ? rc : path_make_dirs(making, err);
    rc = rc < 0 ? rc : task_step(task, STEP_MAKE_DIRECTORY, true);
    rc = rc < 0 ? rc : task_step(task, STEP_LINK_IMAGE, false);
    rc = rc < 0 ? rc : link_source(&source, making, err);
    rc = rc < 0 ? rc : task_step(task, STEP_LINK_IMAGE, true);
    rc = rc < 0 ? rc : task_step(task, STEP_CREATE_DISK, false);
    rc = rc < 0 ? rc : make_disk(&source, instance, making, err);
    rc = rc < 0 ? rc : task_step(task, STEP_CREATE_DISK, true);
    rc = rc < 0 ? rc : task_step(task, STEP_PUBLISH_DIRECTORY, false);
    if (rc == 0 && rename(making, place) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", place);
    }
    rc = rc < 0 ? rc : task_step(task, STEP_PUBLISH_DIRECTORY, true);
    if (rc < 0 && rc != -EINTR) {
        path_discard(making);
    }
    return rc;
}
