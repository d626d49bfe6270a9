/* qcow2 images from strangers: read by our own code, in a jail. */
#include "block/block_int.h"
#include "block/image.h"
#include "storage/disk.h"
#include "storage/import_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

struct own_reading {
    const struct import_part *in;
    uint64_t max_bytes;
    int out;
};

/* What the header says has to be harmless before anything is read. */
static int judge(struct block_image *image, uint64_t max_bytes, struct err *err)
{
    struct block_image_info info;
    int rc = block_image_info(image, &info);

    if (rc < 0) {
        return err_set_errno(err, rc, "the image cannot be looked at");
    }
    if (info.backing_path[0] != '\0') {
        return err_set(err, -EPERM,
                       "the image names a backing file; flatten it where that file is at home");
    }
    if (info.size_bytes > max_bytes) {
        return err_set(err, -EFBIG, "the disk has %llu bytes and may have %llu (--max-size)",
                       (unsigned long long)info.size_bytes, (unsigned long long)max_bytes);
    }
    return 0;
}

/* In the jail: nothing can be opened, so both images come by descriptors. */
static int read_shut_in(void *opaque, struct err *err)
{
    const struct own_reading *reading = opaque;
    struct block_config from = {.format = BLOCK_FORMAT_QCOW2,
                                .path = "the image",
                                .fd = reading->in->fd,
                                .read_only = true,
                                .no_backing = true};
    struct block_config to = {
        .format = BLOCK_FORMAT_RAW, .path = "the new disk", .fd = reading->out};
    struct disk_copy copy = {.threads = 2};
    int rc = block_image_open(&from, err, &copy.from);

    if (rc == -EINVAL) {
        rc = -EBADMSG; /* the image is wrong, not the command line */
    }
    if (rc == 0) {
        rc = judge(copy.from, reading->max_bytes, err);
    }
    if (rc == 0 && ftruncate(reading->out, (off_t)copy.from->size_bytes) != 0) {
        rc = err_set_errno(err, -errno, "the disk cannot be made %llu bytes long",
                           (unsigned long long)copy.from->size_bytes);
    }
    rc = rc < 0 ? rc : block_image_open(&to, err, &copy.to);
    return rc < 0 ? rc : disk_copy(&copy, err); /* the process ends here; nothing is closed */
}

int import_qcow2(const struct import_part *in, uint64_t max_bytes, int out, struct err *err)
{
    struct own_reading reading = {.in = in, .max_bytes = max_bytes, .out = out};
    struct jail_limits limits;

    import_limits(in->len, max_bytes, &limits);
    return jail_run(&limits, read_shut_in, &reading, err);
}
