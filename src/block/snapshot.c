/* A new file over the image of a disk in use. */
#include "base/loop.h"
#include "block/block_core.h"
#include "block/file.h"
#include "block/image.h"
#include "block/job.h"
#include "block/successor.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* What may take long, before requests wait. A start with either file is right from now on: the new
 * one is empty, and shows what the one below it holds. */
static int prepare_snapshot(struct block *block, const struct block_file *file, struct err *err,
                            bool *ret_is_noted)
{
    int r = block_image_simple(block->image, BLOCK_FLUSH, 0, 0, false);

    if (r < 0) {
        return err_set_errno(err, r, "cannot write the disk out");
    }
    r = successor_prepare(file);
    if (r == 0) {
        r = successor_set(block->image->file, file, BLOCK_FORMAT_QCOW2);
        *ret_is_noted = r == 0;
    }
    return r < 0 && r != -EOPNOTSUPP ? err_set_errno(err, r, "cannot note where the disk goes on")
                                     : 0;
}

/* The file below is only read from now on: others may build on it, too. */
static void share_file(const struct block_file *file)
{
    const struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};

    (void)fcntl(file->fd, F_OFD_SETLK, &lock); /* a lock of ours is only made weaker */
}

static int put_overlay(struct block *block, struct block_file *file,
                       const struct block_config *config, struct err *err)
{
    struct block_image *overlay = NULL;
    int r = block_image_simple(block->image, BLOCK_FLUSH, 0, 0, false);

    if (r < 0) {
        return err_set_errno(err, r, "cannot write the disk out");
    }
    r = qcow2_open(file, config, block->image, err, &overlay);
    if (r == 0) {
        (void)block_exchange(block, overlay); /* the one before is its backing image now */
        share_file(overlay->backing->file);
    }
    return r;
}

int block_snapshot(struct block *block, const char *path, const char *backing_name, bool direct,
                   struct err *err, struct block_snapshot_result *ret_result)
{
    const struct block_create_options options = {
        .format = BLOCK_FORMAT_QCOW2,
        .path = path,
        .size_bytes = block_size_bytes(block),
        .backing_path = backing_name,
        .backing_format = block->image->format,
        .is_unfinished = true, /* until prepare_snapshot() names it */
    };
    const struct block_config config = {
        .format = BLOCK_FORMAT_QCOW2, .path = path, .fd = -1, .direct = direct};
    const struct block_file_options open_options = {.path = path, .fd = -1, .direct = direct};
    struct block_snapshot_result result = {0};
    struct block_file *file = NULL;
    uint64_t start;
    int r;

    if (block_is_read_only(block)) {
        return err_set(err, -EROFS, "this disk is read-only");
    }
    r = block_image_create(&options, err);
    if (r < 0) {
        return r;
    }
    r = block_file_open(&open_options, err, &file);
    if (r == 0) {
        r = prepare_snapshot(block, file, err, &result.is_noted);
    }
    if (r == 0) {
        start = clock_monotonic_ns();
        block_hold(block);
        r = put_overlay(block, file, &config, err);
        block_release(block);
        result.hold_ns = clock_monotonic_ns() - start;
    }
    if (r < 0) {
        if (result.is_noted) {
            successor_clear(block->image->file);
        }
        block_file_close(file);
        (void)unlink(path); /* it was ours */
        return r;
    }
    *ret_result = result;
    return 0;
}
