/* Opening a chain of images, by the caller's rules alone. */
#include "block/block_int.h"
#include "block/file.h"
#include "block/image.h"

#include <errno.h>
#include <string.h>

const char *block_format_name(enum block_format format)
{
    return format == BLOCK_FORMAT_QCOW2 ? "qcow2" : "raw";
}

int block_format_parse(const char *name, enum block_format *ret_format)
{
    if (strcmp(name, "raw") == 0) {
        *ret_format = BLOCK_FORMAT_RAW;
    } else if (strcmp(name, "qcow2") == 0) {
        *ret_format = BLOCK_FORMAT_QCOW2;
    } else {
        return -EINVAL;
    }
    return 0;
}

int block_image_open(const struct block_config *config, struct err *err,
                     struct block_image **ret_image)
{
    struct block_file_options options = {
        .path = config->path,
        .fd = config->fd,
        .read_only = config->read_only,
        .direct = config->direct,
    };
    struct block_file *file = NULL;
    int r;

    if (config->format != BLOCK_FORMAT_RAW) {
        return err_set(err, -EINVAL, "'%s': unknown disk format", config->path);
    }
    r = block_file_open(&options, err, &file);
    if (r < 0) {
        return r;
    }
    r = raw_open(file, config->path, config->read_only, err, ret_image);
    if (r < 0) {
        block_file_close(file);
    }
    return r;
}

void block_image_close(struct block_image *image)
{
    while (image) {
        struct block_image *backing = image->backing;

        image->ops->close(image);
        image = backing;
    }
}

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
