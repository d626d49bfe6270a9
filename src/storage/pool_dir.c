/* Pools in a directory: a qcow2 file for each layer, the record and a lock beside them. */
#include "base/io.h"
#include "block/block_int.h"
#include "block/image.h"
#include "storage/disk.h"
#include "storage/pool_ops.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_RECORD_BYTES (64u << 20)
#define LAYER_NAME_BYTES 48u
#define RESERVE ".reserve"
#define RESERVE_BYTES (64 << 10)

struct pool_store {
    char path[PATH_MAX - 64]; /* leaves room for the names of layers */
    int dir_fd;
    int lock_fd;
};

static void name_layer(uint64_t layer, char *out)
{
    (void)snprintf(out, LAYER_NAME_BYTES, "layer-%llu.qcow2", (unsigned long long)layer);
}

static void dir_path(struct pool_store *store, uint64_t layer, char *out)
{
    char name[LAYER_NAME_BYTES];

    name_layer(layer, name);
    (void)snprintf(out, PATH_MAX, "%s/%s", store->path, name);
}

static void dir_close(struct pool_store *store)
{
    if (store->lock_fd >= 0) {
        (void)close(store->lock_fd);
    }
    if (store->dir_fd >= 0) {
        (void)close(store->dir_fd);
    }
    free(store);
}

static int open_in_dir(struct pool_store *store, const struct pool_config *config, bool for_change,
                       struct err *err)
{
    char real[PATH_MAX];

    if (mkdir(config->path, 0700) != 0 && errno != EEXIST) {
        return err_set_errno(err, -errno, "the pool's directory %s cannot be made", config->path);
    }
    /* The real path: names of layers are looked for below it, and it may be reached by links. */
    if (realpath(config->path, real) == NULL) {
        return err_set_errno(err, -errno, "the pool's directory %s cannot be found", config->path);
    }
    if (strlen(real) >= sizeof(store->path)) {
        return err_set(err, -ENAMETOOLONG, "the pool's path is too long");
    }
    memcpy(store->path, real, strlen(real) + 1);
    store->dir_fd = open(store->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->dir_fd < 0) {
        return err_set_errno(err, -errno, "the pool's directory %s cannot be opened", store->path);
    }
    store->lock_fd =
        openat(store->dir_fd, ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->lock_fd < 0) {
        return err_set_errno(err, -errno, "the pool in %s cannot be locked", store->path);
    }
    while (flock(store->lock_fd, for_change ? LOCK_EX : LOCK_SH) != 0) {
        if (errno != EINTR) {
            return err_set_errno(err, -errno, "the pool in %s cannot be locked", store->path);
        }
    }
    return 0;
}

static int dir_open(const struct pool_config *config, bool for_change, struct err *err,
                    struct pool_store **ret_store)
{
    struct pool_store *store = calloc(1, sizeof(*store));
    int rc;

    if (store == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    store->dir_fd = store->lock_fd = -1;
    rc = open_in_dir(store, config, for_change, err);
    if (rc < 0) {
        dir_close(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

static int dir_load(struct pool_store *store, char **ret_text, struct err *err)
{
    char path[PATH_MAX];
    void *data = NULL;
    size_t len;
    int rc;

    (void)snprintf(path, sizeof(path), "%s/pool.json", store->path);
    rc = io_read_file(path, MAX_RECORD_BYTES, &data, &len);
    if (rc == -ENOENT) {
        *ret_text = NULL;
        return 0;
    }
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be read", path);
    }
    *ret_text = data;
    return 0;
}

static int replace_record(const struct pool_store *store, const char *text)
{
    CLEANUP_CLOSE int fd = openat(store->dir_fd, ".pool.json",
                                  O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int rc = fd < 0 ? -errno : io_write_full(fd, text, strlen(text));

    if (rc == 0 &&
        (fsync(fd) != 0 || renameat(store->dir_fd, ".pool.json", store->dir_fd, "pool.json") != 0 ||
         fsync(store->dir_fd) != 0)) {
        rc = -errno;
    }
    return rc;
}

/* Room for a record, so that volumes can be deleted when there is none left. */
static void keep_reserve(const struct pool_store *store, size_t record_bytes)
{
    CLEANUP_CLOSE int fd =
        openat(store->dir_fd, RESERVE, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    off_t len = (off_t)record_bytes * 2 + RESERVE_BYTES;
    struct stat st;

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size < len && fallocate(fd, 0, 0, len) != 0) {
        (void)unlinkat(store->dir_fd, RESERVE, 0); /* half of one is of no use */
    }
}

static int dir_save(struct pool_store *store, const char *text, struct err *err)
{
    int rc = replace_record(store, text);

    if ((rc == -ENOSPC || rc == -EDQUOT) && unlinkat(store->dir_fd, RESERVE, 0) == 0) {
        rc = replace_record(store, text);
    }
    if (rc == 0) {
        keep_reserve(store, strlen(text));
    }
    return rc < 0 ? err_set_errno(err, rc, "the pool's record in %s cannot be written", store->path)
                  : 0;
}

static int dir_make(struct pool_store *store, uint64_t layer, uint64_t backing, uint64_t size_bytes,
                    struct err *err)
{
    char path[PATH_MAX];
    char name[LAYER_NAME_BYTES];
    struct block_create_options create = {
        .format = BLOCK_FORMAT_QCOW2, .path = path, .size_bytes = size_bytes, .replace = true};

    dir_path(store, layer, path);
    if (backing != 0) {
        name_layer(backing, name);
        create.backing_path = name;
        create.backing_format = BLOCK_FORMAT_QCOW2;
    }
    return block_image_create(&create, err);
}

static int dir_remove(struct pool_store *store, uint64_t layer, struct err *err)
{
    char name[LAYER_NAME_BYTES];

    name_layer(layer, name);
    return unlinkat(store->dir_fd, name, 0) == 0 || errno == ENOENT
               ? 0
               : err_set_errno(err, -errno, "%s cannot be removed from the pool", name);
}

/* This layer alone, for writing. */
static int open_alone(struct pool_store *store, uint64_t layer, bool any_state, struct err *err,
                      struct block_image **ret_image)
{
    char path[PATH_MAX];
    const struct disk_ref ref = {.path = path, .any_state = any_state, .no_backing = true};

    dir_path(store, layer, path);
    return disk_open(&ref, err, ret_image);
}

static int dir_resize(struct pool_store *store, uint64_t layer, uint64_t size_bytes,
                      bool may_shrink, struct err *err)
{
    char path[PATH_MAX];
    const struct disk_ref ref = {.path = path};
    struct block_image *image = NULL;
    int rc;

    dir_path(store, layer, path);
    rc = disk_open(&ref, err, &image);
    if (rc < 0) {
        return rc;
    }
    rc = block_image_resize(image, size_bytes, may_shrink, BLOCK_PREALLOC_OFF, err);
    block_image_close(image);
    return rc;
}

static int dir_merge(struct pool_store *store, uint64_t layer, uint64_t into, struct err *err)
{
    char from_name[LAYER_NAME_BYTES];
    char to_name[LAYER_NAME_BYTES];
    struct block_image *from = NULL;
    struct block_image *to = NULL;
    int rc = open_alone(store, layer, false, err, &from);

    if (rc < 0) {
        return rc;
    }
    rc = open_alone(store, into, false, err, &to);
    if (rc == 0 && to->size_bytes != from->size_bytes) {
        rc = block_image_resize(to, from->size_bytes, true, BLOCK_PREALLOC_OFF, err);
    }
    if (rc == 0) {
        rc = block_image_commit(from, to, err);
    }
    block_image_close(to);
    name_layer(layer, to_name);
    name_layer(into, from_name);
    /* Before the lock on the layer is let go. */
    if (rc == 0 && (renameat(store->dir_fd, from_name, store->dir_fd, to_name) != 0 ||
                    fsync(store->dir_fd) != 0)) {
        rc = err_set_errno(err, -errno, "%s cannot be replaced", to_name);
    }
    block_image_close(from);
    return rc;
}

static int dir_fill(struct pool_store *store, uint64_t layer, struct block_image *from,
                    struct err *err)
{
    struct disk_copy copy = {.from = from};
    int rc = open_alone(store, layer, false, err, &copy.to);

    rc = rc < 0 ? rc : disk_copy(&copy, err);
    block_image_close(copy.to);
    return rc;
}

static int dir_check_idle(struct pool_store *store, uint64_t layer, struct err *err)
{
    struct block_image *image = NULL;
    int rc = open_alone(store, layer, true, err, &image);

    block_image_close(image);
    return rc;
}

static enum successor_state dir_state(struct pool_store *store, uint64_t layer,
                                      struct successor *ret_next)
{
    char path[PATH_MAX];

    dir_path(store, layer, path);
    return successor_state_of(path, ret_next);
}

static int dir_stat(struct pool_store *store, uint64_t layer, uint64_t *ret_allocated_bytes)
{
    char name[LAYER_NAME_BYTES];
    struct stat st;

    name_layer(layer, name);
    if (fstatat(store->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return -errno;
    }
    *ret_allocated_bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

static int dir_each(struct pool_store *store, int (*fn)(void *opaque, uint64_t layer), void *opaque)
{
    int fd = openat(store->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;
    int rc = 0;

    if (stream == NULL) {
        return -errno;
    }
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is of this call alone
    while (rc == 0 && (entry = readdir(stream)) != NULL) {
        char name[LAYER_NAME_BYTES];
        uint64_t layer;

        if (strncmp(entry->d_name, "layer-", 6) != 0) {
            continue;
        }
        layer = strtoull(entry->d_name + 6, NULL, 10);
        name_layer(layer, name);
        if (strcmp(name, entry->d_name) == 0) {
            rc = fn(opaque, layer);
        }
    }
    (void)closedir(stream);
    return rc;
}

static int dir_space(struct pool_store *store, uint64_t *ret_total_bytes, uint64_t *ret_free_bytes)
{
    struct statvfs vfs;

    if (fstatvfs(store->dir_fd, &vfs) != 0) {
        return -errno;
    }
    *ret_total_bytes = (uint64_t)vfs.f_blocks * vfs.f_frsize;
    *ret_free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    return 0;
}

const struct pool_ops pool_dir_ops = {
    .kind = "dir",
    .format = BLOCK_FORMAT_QCOW2,
    .open = dir_open,
    .close = dir_close,
    .load = dir_load,
    .save = dir_save,
    .make = dir_make,
    .fill = dir_fill,
    .remove = dir_remove,
    .resize = dir_resize,
    .merge = dir_merge,
    .check_idle = dir_check_idle,
    .state = dir_state,
    .stat = dir_stat,
    .each = dir_each,
    .space = dir_space,
    .path = dir_path,
};
