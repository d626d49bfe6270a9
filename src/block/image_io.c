/* Synchronous I/O on an open image, for jobs and tools. */
#include "block/block_int.h"
#include "block/file.h"

#include <errno.h>

int block_image_simple(struct block_image *image, enum block_op op, uint64_t offset, uint64_t len,
                       bool may_unmap)
{
    struct block_request request = {
        .op = op,
        .offset = offset,
        .len = len,
        .may_unmap = may_unmap,
    };
    uint64_t size = __atomic_load_n(&image->size_bytes, __ATOMIC_ACQUIRE);

    if (offset > size || len > size - offset) {
        return -EINVAL;
    }
    if (image->is_read_only && op != BLOCK_READ && op != BLOCK_FLUSH) {
        return -EROFS;
    }
    return image->ops->execute(image, &request, true);
}

static int transfer(struct block_image *image, enum block_op op, void *buf, uint64_t len,
                    uint64_t offset)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct block_request request = {
        .op = op,
        .offset = offset,
        .len = len,
        .iov = &iov,
        .iov_count = 1,
    };
    uint64_t size = __atomic_load_n(&image->size_bytes, __ATOMIC_ACQUIRE);

    if (offset > size || len > size - offset) {
        return -EINVAL;
    }
    if (len == 0) {
        return 0;
    }
    if (image->is_read_only && op == BLOCK_WRITE) {
        return -EROFS;
    }
    return image->ops->execute(image, &request, true);
}

int block_image_pread(struct block_image *image, void *buf, uint64_t len, uint64_t offset)
{
    return transfer(image, BLOCK_READ, buf, len, offset);
}

int block_image_pwrite(struct block_image *image, const void *buf, uint64_t len, uint64_t offset)
{
    /* A write only reads what it is given. */
    return transfer(image, BLOCK_WRITE, (void *)(uintptr_t)buf, len, offset);
}

void block_image_write_back(struct block_image *image)
{
    if (image->file->ops->write_back) {
        image->file->ops->write_back(image->file);
    }
}
