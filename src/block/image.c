/* Image files as a whole, whatever their format. */
#include "block/image.h"

#include "block/block_int.h"
#include "block/file.h"
#include "block/qcow2_int.h"
#include "block/successor.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES (1u << 20)

static int preallocate(const struct block_create_options *options, struct block_file *file,
                       struct err *err)
{
    struct block_config config = {
        .format = options->format,
        .path = options->path,
        .fd = -1,
        .no_backing = true,
    };
    struct block_image *image = NULL;
    int r = 0;

    if (options->format == BLOCK_FORMAT_QCOW2) {
        r = qcow2_open(file, &config, NULL, err, &image);
        if (r < 0) {
            block_file_close(file);
            return r;
        }
        r = qcow2_preallocate(to_qcow2(image), 0, image->size_bytes, options->prealloc);
        block_image_close(image);
    } else {
        if (options->prealloc == BLOCK_PREALLOC_FALLOC) {
            r = file->ops->allocate(file, 0, options->size_bytes);
        } else if (options->prealloc == BLOCK_PREALLOC_FULL) {
            r = file->ops->write_zeroes(file, 0, options->size_bytes, false);
        }
        if (r == 0) {
            r = file->ops->flush(file);
        }
        block_file_close(file);
    }
    return r < 0 ? err_set_errno(err, r, "cannot reserve space for image '%s'", options->path) : 0;
}

/* What can be known before a file is made, or one that is there emptied. */
static int check_create(const struct block_create_options *options, struct err *err)
{
    if (options->size_bytes == 0 || options->size_bytes % BLOCK_SECTOR_BYTES != 0) {
        return err_set(err, -EINVAL, "the size of a disk is a multiple of 512 bytes, not 0");
    }
    if (options->prealloc != BLOCK_PREALLOC_OFF && options->backing_path) {
        return err_set(err, -EINVAL,
                       "space reserved in advance would hide the backing image; leave one out");
    }
    return options->format == BLOCK_FORMAT_QCOW2
               ? qcow2_check_create(options, options->size_bytes, err)
               : 0;
}

int block_image_create(const struct block_create_options *options, struct err *err)
{
    struct block_file *file = NULL;
    int r = check_create(options, err);

    if (r < 0) {
        return r;
    }
    r = block_file_create(options->path, options->replace, err, &file);
    if (r < 0) {
        return r;
    }
    r = options->is_unfinished ? successor_begin(NULL, file) : successor_end(file);
    if (r < 0 && r != -EOPNOTSUPP) {
        (void)err_set_errno(err, r, "cannot mark image '%s'", options->path);
    } else if (options->format == BLOCK_FORMAT_QCOW2) {
        r = qcow2_create_image(options, options->size_bytes, file, err);
    } else {
        r = file->ops->truncate(file, options->size_bytes);
        if (r < 0) {
            (void)err_set_errno(err, r, "cannot set the size of image '%s'", options->path);
        }
    }
    if (r < 0 || options->prealloc == BLOCK_PREALLOC_OFF) {
        block_file_close(file);
    } else {
        r = preallocate(options, file, err);
    }
    if (r < 0 && !options->replace) {
        (void)unlink(options->path); /* made here, and of no use */
    }
    return r;
}

int block_image_info(struct block_image *image, struct block_image_info *ret_info)
{
    struct block_image_info info = {
        .format = image->format,
        .size_bytes = __atomic_load_n(&image->size_bytes, __ATOMIC_ACQUIRE),
    };
    struct stat st;
    int r = image->file->ops->get_size(image->file, &info.file_bytes);

    if (r < 0) {
        return r;
    }
    if (image->file->fd >= 0 && !image->file->is_device && fstat(image->file->fd, &st) == 0) {
        info.allocated_bytes = (uint64_t)st.st_blocks * 512;
    }
    if (image->format == BLOCK_FORMAT_QCOW2) {
        struct qcow2 *q = to_qcow2(image);
        const struct qcow2_header *h = &q->header;

        mutex_lock(&q->lock);
        info.version = h->version;
        info.cluster_bytes = q->cluster_bytes;
        info.refcount_bits = 1u << h->refcount_order;
        info.extended_l2 = h->incompatible & QCOW2_INCOMPAT_EXTL2;
        info.lazy_refcounts = h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
        info.is_dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY;
        info.is_corrupt = h->incompatible & QCOW2_INCOMPAT_CORRUPT;
        info.compression = h->compression ? BLOCK_COMPRESSION_ZSTD : BLOCK_COMPRESSION_ZLIB;
        memcpy(info.backing_path, h->backing_path, sizeof(info.backing_path));
        info.has_backing_format = block_format_parse(h->backing_format, &info.backing_format) == 0;
        info.snapshots = h->snapshot_count;
        info.bitmaps = h->bitmap_count;
        mutex_unlock(&q->lock);
    }
    *ret_info = info;
    return 0;
}

int block_image_resize(struct block_image *image, uint64_t size_bytes, bool may_shrink,
                       enum block_prealloc prealloc, struct err *err)
{
    uint64_t old = __atomic_load_n(&image->size_bytes, __ATOMIC_ACQUIRE);
    int r;

    if (image->is_read_only) {
        return err_set(err, -EROFS, "the image is open for reading only");
    }
    if (size_bytes == 0 || size_bytes % BLOCK_SECTOR_BYTES != 0) {
        return err_set(err, -EINVAL, "the size of a disk is a multiple of 512 bytes, not 0");
    }
    if (size_bytes < old && !may_shrink) {
        return err_set(err, -EINVAL,
                       "the disk would become smaller and lose its end; shrinking has to be "
                       "asked for");
    }
    r = image->ops->resize(image, size_bytes, err);
    if (r < 0 || prealloc == BLOCK_PREALLOC_OFF || size_bytes <= old) {
        return r;
    }
    if (image->format == BLOCK_FORMAT_QCOW2) {
        struct qcow2 *q = to_qcow2(image);
        unsigned epoch = qcow2_enter(q);

        r = qcow2_preallocate(q, old, size_bytes - old, prealloc);
        qcow2_leave(q, epoch);
    } else {
        r = image->file->ops->allocate(image->file, old, size_bytes - old);
    }
    return r < 0 ? err_set_errno(err, r, "the disk has its new size, but no space is reserved") : 0;
}

static int commit_extent(struct block_image *image, struct block_image *target,
                         const struct block_extent *extent, uint64_t offset, void *buf)
{
    int r;

    if (extent->kind == BLOCK_EXTENT_ZERO) {
        return block_image_simple(target, BLOCK_WRITE_ZEROES, offset, extent->len, true);
    }
    r = block_image_pread(image, buf, extent->len, offset);
    return r == 0 ? block_image_pwrite(target, buf, extent->len, offset) : r;
}

int block_image_commit(struct block_image *image, struct block_image *target, struct err *err)
{
    uint64_t size = __atomic_load_n(&image->size_bytes, __ATOMIC_ACQUIRE);
    CLEANUP_FREE void *buf = malloc(COPY_BYTES);
    uint64_t at = 0;
    int r = buf ? 0 : -ENOMEM;

    if (r == 0 && target->size_bytes < size) {
        r = target->ops->resize(target, size, err);
        if (r < 0) {
            return r;
        }
    }
    while (r == 0 && at < size) {
        struct block_extent extent;

        r = image->ops->lookup(image, at, size - at < COPY_BYTES ? size - at : COPY_BYTES, &extent);
        if (r == 0 && extent.depth == 0 && extent.kind != BLOCK_EXTENT_UNALLOCATED) {
            r = commit_extent(image, target, &extent, at, buf);
        }
        at += r == 0 ? extent.len : 0;
    }
    if (r == 0) {
        r = block_image_simple(target, BLOCK_FLUSH, 0, 0, false);
    }
    return r < 0 ? err_set_errno(err, r, "cannot copy into the backing image") : 0;
}

int block_image_check(struct block_image *image, enum block_repair repair,
                      block_check_report_fn report, void *opaque,
                      struct block_check_result *ret_result, struct err *err)
{
    if (image->format != BLOCK_FORMAT_QCOW2) {
        return err_set(err, -ENOTSUP, "a raw image has nothing that could be checked");
    }
    return qcow2_check(to_qcow2(image), repair, report, opaque, ret_result, err);
}
