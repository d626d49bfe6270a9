#include "storage/layers.h"

#include "base/path.h"
#include "block/block_int.h"
#include "block/image.h"
#include "block/successor.h"
#include "storage/copy.h"
#include "storage/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_qcow2(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot != NULL && strcmp(dot, ".qcow2") == 0;
}

/* One layer alone, without what it stands on. */
static int open_layer(const char *dir, const char *name, bool read_only, struct err *err,
                      struct block_image **ret_image)
{
    char path[PATH_MAX];
    const struct disk_ref ref = {
        .path = path, .read_only = read_only, .no_backing = true, .any_state = !read_only};
    int rc = path_format(path, err, "%s/%s", dir, name);

    return rc < 0 ? rc : disk_open(&ref, err, ret_image);
}

/* What a layer stands on ("": nothing), and its length. */
static int look(const char *dir, const char *name, struct block_image_info *ret_info,
                struct err *err)
{
    struct block_image *image = NULL;
    int rc = open_layer(dir, name, true, err, &image);

    if (rc < 0) {
        return rc;
    }
    rc = block_image_info(image, ret_info);
    block_image_close(image);
    if (rc < 0) {
        return err_set_errno(err, rc, "%s/%s cannot be read", dir, name);
    }
    return strchr(ret_info->backing_path, '/') == NULL &&
                   strlen(ret_info->backing_path) < LAYERS_NAME_BYTES
               ? 0
               : err_set(err, -EINVAL, "%s/%s stands on a file elsewhere", dir, name);
}

int layers_list(const char *dir, const char *top, struct layers *ret_layers, struct err *err)
{
    struct block_image_info info;

    ret_layers->count = 0;
    (void)snprintf(ret_layers->names[0], LAYERS_NAME_BYTES, "%s", top);
    for (;;) {
        int rc = look(dir, ret_layers->names[ret_layers->count], &info, err);

        if (rc < 0) {
            return rc;
        }
        if (ret_layers->count++ == 0) {
            ret_layers->size_bytes = info.size_bytes;
        }
        if (info.backing_path[0] == '\0') {
            return 0;
        }
        if (ret_layers->count == LAYERS_MAX) {
            return err_set(err, -EMLINK,
                           "%u layers stand on each other already; delete snapshots first",
                           LAYERS_MAX);
        }
        memcpy(ret_layers->names[ret_layers->count], info.backing_path,
               strlen(info.backing_path) + 1);
    }
}

/* Names that came and went last. */
static int sync_dir(const char *dir, struct err *err)
{
    CLEANUP_CLOSE int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd >= 0 && fsync(fd) == 0 ? 0 : err_set_errno(err, -errno, "%s cannot be synced", dir);
}

int layers_make_head(const char *dir, const char *head, const char *below, uint64_t size_bytes,
                     struct err *err)
{
    char path[PATH_MAX], making[PATH_MAX];
    struct block_create_options create = {
        .format = BLOCK_FORMAT_QCOW2,
        .path = making,
        .replace = true,
        .backing_path = below,
        .backing_format = is_qcow2(below) ? BLOCK_FORMAT_QCOW2 : BLOCK_FORMAT_RAW,
    };
    struct layers layers;
    int rc = path_format(path, err, "%s/%s", dir, head);

    rc = rc < 0 ? rc : path_format(making, err, "%s/.%s.making", dir, head);
    if (rc < 0 || path_exists(path)) {
        return rc;
    }
    rc = layers_list(dir, below, &layers, err);
    if (rc == 0 && layers.count + 1 >= LAYERS_MAX) {
        rc = err_set(err, -EMLINK, "%u layers stand on each other already; delete snapshots first",
                     layers.count);
    }
    create.size_bytes = size_bytes > layers.size_bytes ? size_bytes : layers.size_bytes;
    rc = rc < 0 ? rc : block_image_create(&create, err);
    if (rc == 0 && rename(making, path) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", path);
    }
    return rc < 0 ? rc : sync_dir(dir, err);
}

int layers_link(const char *from, const char *top, const char *to, struct err *err)
{
    struct layers layers;
    int rc = layers_list(from, top, &layers, err);

    for (unsigned i = 0; rc == 0 && i < layers.count; i++) {
        char path[PATH_MAX];

        rc = path_format(path, err, "%s/%s", to, layers.names[i]);
        if (rc == 0 && !path_exists(path)) {
            rc = copy_link_file(from, to, layers.names[i], err);
        }
    }
    return rc < 0 ? rc : sync_dir(to, err);
}

static bool has_layer(const struct layers *layers, const char *name)
{
    for (unsigned i = 0; i < layers->count; i++) {
        if (strcmp(layers->names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

int layers_tidy(const char *dir, const char *head, struct err *err)
{
    struct dirent **entries = NULL;
    struct layers layers;
    int rc = layers_list(dir, head, &layers, err);
    int n = rc < 0 ? 0 : scandir(dir, &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];

        if (rc == 0 && is_qcow2(entries[i]->d_name) && !has_layer(&layers, entries[i]->d_name)) {
            rc = path_format(path, err, "%s/%s", dir, entries[i]->d_name);
            rc = rc < 0 ? rc : path_remove(path, err);
        }
        free(entries[i]);
    }
    free(entries);
    return rc;
}

/* `below` takes the contents and the name of `above`. */
static int merge_one(const char *dir, const char *above, const char *below, struct err *err)
{
    struct block_image *from = NULL;
    struct block_image *to = NULL;
    char from_path[PATH_MAX], to_path[PATH_MAX];
    int rc = path_format(from_path, err, "%s/%s", dir, above);

    rc = rc < 0 ? rc : path_format(to_path, err, "%s/%s", dir, below);
    rc = rc < 0 ? rc : open_layer(dir, above, false, err, &from);
    rc = rc < 0 ? rc : open_layer(dir, below, false, err, &to);
    if (rc == 0 && to->size_bytes != from->size_bytes) {
        rc = block_image_resize(to, from->size_bytes, true, BLOCK_PREALLOC_OFF, err);
    }
    rc = rc < 0 ? rc : block_image_commit(from, to, err);
    if (rc == 0) {
        rc = successor_end(to->file); /* it would name itself */
        rc = rc < 0 ? err_set_errno(err, rc, "%s cannot be written", to_path) : 0;
    }
    block_image_close(to);
    if (rc == 0 && rename(to_path, from_path) != 0) { /* before the lock on it is let go */
        rc = err_set_errno(err, -errno, "%s cannot be replaced", from_path);
    }
    block_image_close(from);
    return rc < 0 ? rc : sync_dir(dir, err);
}

/* Whether this directory alone has the layer. */
static bool is_own(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct err ignored;
    struct stat st;

    return is_qcow2(name) && path_format(path, &ignored, "%s/%s", dir, name) == 0 &&
           stat(path, &st) == 0 && st.st_nlink == 1;
}

int layers_merge(const char *dir, const char *head, struct err *err)
{
    for (;;) {
        struct layers layers;
        int rc = layers_list(dir, head, &layers, err);

        if (rc < 0 || layers.count < 2 || !is_own(dir, layers.names[1])) {
            return rc;
        }
        rc = merge_one(dir, head, layers.names[1], err);
        if (rc < 0) {
            return rc;
        }
    }
}
