/* Raw images: byte N of the disk is byte N of the file or block device. */
#include "block/block_int.h"
#include "block/file.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

static int raw_execute(struct block_image *image, struct block_request *request, bool may_wait)
{
    struct block_file *file = image->file;

    switch (request->op) {
    case BLOCK_READ:
        if (may_wait) {
            return file->ops->preadv(file, request->iov, request->iov_count, request->offset);
        }
        if (!file->ops->preadv_nowait) {
            return -EOPNOTSUPP;
        }
        return file->ops->preadv_nowait(file, request->iov, request->iov_count, request->offset);
    case BLOCK_WRITE:
        return file->ops->pwritev(file, request->iov, request->iov_count, request->offset);
    case BLOCK_FLUSH:
        return file->ops->flush(file);
    case BLOCK_DISCARD:
        return file->ops->discard(file, request->offset, request->len);
    case BLOCK_WRITE_ZEROES:
        return file->ops->write_zeroes(file, request->offset, request->len, request->may_unmap);
    default:
        return -ENOTSUP;
    }
}

/* Everything lies where it is, and stays there. */
static int raw_map(struct block_image *image, bool for_write, uint64_t offset, uint64_t len,
                   struct block_extent *ret_extent)
{
    (void)for_write; /* the same for both */
    *ret_extent = (struct block_extent){
        .kind = BLOCK_EXTENT_DATA,
        .len = len,
        .file = image->file,
        .host_offset = offset,
    };
    return 0;
}

static void raw_unmap(struct block_image *image, const struct block_extent *extent)
{
    (void)image; /* nothing is held */
    (void)extent;
}

static uint64_t seek_in(int fd, uint64_t offset, int whence, uint64_t end)
{
    off_t found = lseek(fd, (off_t)offset, whence);

    return found < 0 || (uint64_t)found > end ? end : (uint64_t)found;
}

/* Holes of a sparse file read as zero. */
static int raw_lookup(struct block_image *image, uint64_t offset, uint64_t len,
                      struct block_extent *ret_extent)
{
    int r = raw_map(image, false, offset, len, ret_extent);

    if (r == 0 && image->file->ops->status && len > 0) {
        bool is_zero = false;
        uint64_t known = len;

        r = image->file->ops->status(image->file, offset, len, &is_zero, &known);
        ret_extent->kind = is_zero ? BLOCK_EXTENT_ZERO : BLOCK_EXTENT_DATA;
        ret_extent->len = known;
    } else if (r == 0 && image->file->fd >= 0 && !image->file->is_device && len > 0) {
        uint64_t data = seek_in(image->file->fd, offset, SEEK_DATA, offset + len);

        if (data > offset) {
            ret_extent->kind = BLOCK_EXTENT_ZERO;
            ret_extent->len = data - offset;
        } else {
            ret_extent->len = seek_in(image->file->fd, offset, SEEK_HOLE, offset + len) - offset;
        }
        if (ret_extent->len == 0) { /* the file changed in between */
            ret_extent->kind = BLOCK_EXTENT_DATA;
            ret_extent->len = len;
        }
    }
    return r;
}

static int raw_resize(struct block_image *image, uint64_t size_bytes, struct err *err)
{
    int r = image->file->ops->truncate(image->file, size_bytes);

    if (r < 0) {
        return r == -ENOTSUP
                   ? err_set(err, r,
                             "what a server exports has the length that the server gives it")
                   : err_set_errno(err, r, "cannot resize the image");
    }
    __atomic_store_n(&image->size_bytes, size_bytes, __ATOMIC_RELEASE);
    return 0;
}

static void raw_close(struct block_image *image)
{
    block_file_close(image->file);
    free(image);
}

static const struct block_ops raw_ops = {
    .execute = raw_execute,
    .map = raw_map,
    .unmap = raw_unmap,
    .lookup = raw_lookup,
    .resize = raw_resize,
    .close = raw_close,
};

int raw_open(struct block_file *file, const char *path, bool read_only, struct err *err,
             struct block_image **ret_image)
{
    struct block_image *image;
    uint64_t size = 0;
    int r = file->ops->get_size(file, &size);

    if (r < 0) {
        return err_set_errno(err, r, "cannot learn the size of disk '%s'", path);
    }
    if (size == 0) {
        return err_set(err, -EINVAL, "disk '%s' is empty; give it a size with truncate -s", path);
    }
    if (size % BLOCK_SECTOR_BYTES != 0) {
        return err_set(err, -EINVAL,
                       "the size of disk '%s', %llu bytes, is not a multiple of 512; "
                       "if it is a raw image, extend it with truncate -s %%512",
                       path, (unsigned long long)size);
    }
    image = calloc(1, sizeof(*image));
    if (!image) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    *image = (struct block_image){
        .ops = &raw_ops,
        .format = BLOCK_FORMAT_RAW,
        .size_bytes = size,
        .is_read_only = read_only,
        .can_discard = !read_only,
        .file = file,
    };
    *ret_image = image;
    return 0;
}
