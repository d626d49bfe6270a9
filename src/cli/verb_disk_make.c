/* corbel image create, clone, convert: new disks in files. */
#include "block/block_int.h"
#include "block/file.h"
#include "block/nbd.h"
#include "cli/disk_word.h"
#include "cli/size.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The fields that come from options alone. */
static int fill_create(const struct disk_options *options, struct block_create_options *create,
                       struct err *err)
{
    uint64_t cluster = 0;
    int rc = disk_parse_prealloc(options->preallocation, &create->prealloc, err);

    if (rc == 0 && options->cluster_size != NULL) {
        rc = size_parse("--cluster-size", options->cluster_size, &cluster, err);
    }
    if (rc == 0 && cluster > 2u << 20) {
        rc = err_set(err, -EINVAL, "--cluster-size takes at most 2M");
    }
    if (rc == 0 && options->compression != NULL) {
        if (strcmp(options->compression, "zstd") == 0) {
            create->compression = BLOCK_COMPRESSION_ZSTD;
        } else if (strcmp(options->compression, "zlib") != 0) {
            rc = err_set(err, -EINVAL, "--compression takes zlib or zstd");
        }
    }
    create->cluster_bytes = (uint32_t)cluster;
    create->refcount_bits = options->refcount_bits;
    create->extended_l2 = options->extended_l2;
    create->lazy_refcounts = options->lazy_refcounts;
    create->replace = options->replace;
    return rc;
}

/* The backing image has to be one that can be opened later by the same rules. */
static int fill_backing(const struct disk_options *options, const char *path,
                        struct block_create_options *create, struct err *err)
{
    char full[PATH_MAX];
    const char *slash = strrchr(path, '/');
    struct block_image *backing = NULL;
    struct disk_ref ref = {.path = full, .format = options->backing_format, .read_only = true};
    int rc;

    (void)snprintf(full, sizeof(full), "%.*s%s",
                   options->backing[0] != '/' && slash != NULL ? (int)(slash - path) + 1 : 0, path,
                   options->backing);
    rc = disk_parse_format(options->backing, options->backing_format, &create->backing_format, err);
    if (rc == 0) {
        rc = disk_open(&ref, err, &backing);
    }
    if (rc < 0 || backing == NULL) {
        return rc;
    }
    if (create->size_bytes == 0) {
        create->size_bytes = backing->size_bytes;
    }
    create->backing_path = options->backing;
    block_image_close(backing);
    return 0;
}

/* What stands on an image elsewhere is opened only by who says where that may be. */
static void note_backing_dir(const char *path)
{
    const struct disk_ref ref = {.path = path, .format = "qcow2", .read_only = true};
    struct block_image *image = NULL;
    struct err ignored = {0};
    int rc = disk_open(&ref, &ignored, &image);

    block_image_close(image);
    if (rc == -EXDEV || rc == -ELOOP) {
        (void)fprintf(stderr,
                      "corbel: %s stands on an image that is not in its directory; to open it, "
                      "say where that is with --backing-dir (corbel-vmm --disk: backing-dir=)\n",
                      path);
    }
}

int verb_image_create(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    const struct disk_options *options = values;
    struct block_create_options create = {.path = args->words[0]};
    int rc = disk_parse_format(args->words[0], options->format, &create.format, err);

    (void)cli;
    if (rc == 0 && args->count > 1) {
        rc = size_parse("the length", args->words[1], &create.size_bytes, err);
    }
    if (rc == 0) {
        rc = fill_create(options, &create, err);
    }
    if (rc == 0 && options->backing != NULL && create.format != BLOCK_FORMAT_QCOW2) {
        rc = err_set(err, -EINVAL, "only qcow2 images stand on others");
    }
    if (rc == 0 && options->backing != NULL) {
        rc = fill_backing(options, args->words[0], &create, err);
    }
    if (rc == 0 && create.size_bytes == 0) {
        rc = err_set(err, -EINVAL, "say how long the disk is to be, such as 10G");
    }
    rc = rc < 0 ? rc : block_image_create(&create, err);
    if (rc == 0 && create.backing_path != NULL) {
        note_backing_dir(create.path);
    }
    return rc;
}

/* The name of the other image as the new one's header holds it: short when they are neighbours. No
 * link is in it, because none is followed when the image is opened. */
static int name_backing(const char *path, const char *new_path, char *out, struct err *err)
{
    char full[PATH_MAX];
    char copy[PATH_MAX];
    char dir[PATH_MAX];
    size_t len;

    if (realpath(path, full) == NULL) {
        return err_set_errno(err, -errno, "%s cannot be found", path);
    }
    if (snprintf(copy, sizeof(copy), "%s", new_path) >= (int)sizeof(copy)) {
        return err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    if (realpath(dirname(copy), dir) == NULL) {
        return err_set_errno(err, -errno, "the directory of %s cannot be found", new_path);
    }
    len = strcmp(dir, "/") == 0 ? 0 : strlen(dir);
    if (strncmp(full, dir, len) == 0 && full[len] == '/' && strchr(full + len + 1, '/') == NULL) {
        memmove(full, full + len + 1, strlen(full + len + 1) + 1);
    }
    memcpy(out, full, sizeof(full));
    return 0;
}

int verb_image_clone(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct disk_options *options = values;
    struct block_create_options create = {.path = args->words[1], .format = BLOCK_FORMAT_QCOW2};
    struct block_image *from = NULL;
    char backing[PATH_MAX];
    int rc = disk_parse_format(args->words[0], options->format, &create.backing_format, err);

    (void)cli;
    if (rc == 0) {
        rc = name_backing(args->words[0], args->words[1], backing, err);
    }
    if (rc == 0) {
        rc = disk_word_open(options, args->words[0], true, err, &from);
    }
    if (rc < 0 || from == NULL) {
        return rc;
    }
    create.size_bytes = from->size_bytes;
    create.backing_path = backing;
    block_image_close(from);
    rc = block_image_create(&create, err);
    if (rc == 0) {
        note_backing_dir(create.path);
    }
    return rc;
}

/* A copy that is being made beside what it is to replace. */
struct making {
    char target[PATH_MAX]; /* behind links */
    char path[PATH_MAX];
    bool is_ours;             /* the file at path */
    struct block_file *place; /* what is there now, locked: nobody may have it while it goes */
};

static int lock_place(struct making *making, struct err *err)
{
    const struct block_file_options options = {.path = making->target, .fd = -1};

    return access(making->target, F_OK) == 0 ? block_file_open(&options, err, &making->place) : 0;
}

static void unlock_place(struct making *making)
{
    block_file_close(making->place);
    making->place = NULL;
}

/* What is there may be a file that nobody uses, and not this user's only way to a device. */
static int begin_making(struct making *making, const char *target, const char *source, bool replace,
                        struct err *err)
{
    struct stat at, from;
    int rc = 0;

    if (snprintf(making->target, PATH_MAX, "%s", target) >= PATH_MAX) {
        return err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    if (!nbd_is_address(target) && stat(target, &at) == 0) {
        if (!replace) {
            return err_set(err, -EEXIST, "%s is there already; --replace replaces it", target);
        }
        if (!S_ISREG(at.st_mode)) {
            return err_set(err, -EINVAL, "%s is no regular file, so nothing replaces it", target);
        }
        if (realpath(target, making->target) == NULL) {
            return err_set_errno(err, -errno, "%s cannot be found", target);
        }
        if (stat(source, &from) != 0 || from.st_dev != at.st_dev || from.st_ino != at.st_ino) {
            rc = lock_place(making, err); /* before much is copied in vain */
            unlock_place(making);
        }
    }
    if (rc == 0 && snprintf(making->path, PATH_MAX, "%s.making", making->target) >= PATH_MAX) {
        rc = err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    return rc;
}

/* The copy is still open, and so locked, while it gets its name: nobody else can empty it. */
static int publish(struct making *making, struct err *err)
{
    int rc = lock_place(making, err);

    if (rc == 0 && rename(making->path, making->target) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", making->target);
    }
    if (rc == 0) {
        making->is_ours = false;
    }
    unlock_place(making);
    return rc;
}

static int create_copy(const struct disk_options *options, const char *target,
                       struct making *making, uint64_t size, struct err *err,
                       struct block_image **ret_image)
{
    struct block_create_options create = {.path = making->path, .size_bytes = size};
    struct block_config config = {.path = making->path, .fd = -1};
    int rc = disk_parse_format(target, options->other_format, &create.format, err);

    rc = rc < 0 ? rc : fill_create(options, &create, err);
    if (rc == 0 && options->compress && create.format != BLOCK_FORMAT_QCOW2) {
        rc = err_set(err, -EINVAL, "only qcow2 images are compressed");
    }
    create.replace = true; /* what a command left that was killed */
    rc = rc < 0 ? rc : block_image_create(&create, err);
    if (rc == 0) {
        making->is_ours = true;
        config.format = create.format;
        rc = block_image_open(&config, err, ret_image);
    }
    return rc;
}

int verb_image_convert(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct disk_options *options = values;
    struct making making = {.is_ours = false};
    struct disk_copy copy = {.compress = options->compress, .progress = disk_choose_progress()};
    struct block_image *from = NULL;
    time_t last = 0;
    int rc = begin_making(&making, args->words[1], args->words[0], options->replace, err);

    (void)cli;
    rc = rc < 0 ? rc : disk_word_open(options, args->words[0], true, err, &from);
    if (rc == 0) {
        rc = create_copy(options, args->words[1], &making, from->size_bytes, err, &copy.to);
    }
    if (rc == 0) {
        copy.from = from;
        copy.opaque = &last;
        rc = disk_copy(&copy, err);
        disk_end_progress(last);
    }
    block_image_close(from); /* which may be what is replaced */
    rc = rc < 0 ? rc : publish(&making, err);
    if (rc < 0 && making.is_ours) {
        (void)unlink(making.path);
    }
    block_image_close(copy.to);
    return rc;
}
