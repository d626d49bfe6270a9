/* From reading a backing image to writing it, while the disk on it is in use. */
#include "block/block_core.h"
#include "block/file.h"
#include "block/successor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

static int set_lock(int fd, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

/* The same file, whatever has its name by now. */
static int open_for_writing(const struct block_file *file, const char *path, struct err *err)
{
    int direct = fcntl(file->fd, F_GETFL) & O_DIRECT;
    char name[48];
    int fd;

    (void)snprintf(name, sizeof(name), "/proc/self/fd/%d", file->fd);
    fd = open(name, O_RDWR | O_CLOEXEC | O_NOCTTY | direct);
    return fd >= 0
               ? fd
               : err_set_errno(err, -errno, "cannot open the backing image '%s' for writing", path);
}

/* Takes over fd, also when it fails. */
static int open_image(struct block_image *old, int fd, const char *path, struct err *err,
                      struct block_image **ret_image)
{
    const struct block_file_options options = {
        .path = path, .fd = fd, .direct = (fcntl(fd, F_GETFL) & O_DIRECT) != 0};
    const struct block_config config = {.format = old->format, .path = path, .fd = fd};
    struct block_file *file = NULL;
    int r = block_file_open(&options, err, &file);

    if (r < 0) {
        (void)close(fd);
        return r;
    }
    r = old->format == BLOCK_FORMAT_RAW ? raw_open(file, path, false, err, ret_image)
                                        : qcow2_open(file, &config, old->backing, err, ret_image);
    if (r < 0) {
        block_file_close(file);
    }
    return r;
}

int block_reopen_backing(struct block *block, struct err *err)
{
    struct block_image *old = block->image->backing;
    struct block_image *image = NULL;
    char path[PATH_MAX] = "";
    int r = block_file_path(old->file, path, sizeof(path));
    int fd;

    if (r < 0) {
        return err_set_errno(err, r, "the backing image has no name any more");
    }
    fd = open_for_writing(old->file, path, err);
    if (fd < 0) {
        return fd;
    }
    block_hold(block);
    /* Our own lock to read would keep us from writing. Whoever comes in between is -EBUSY below. */
    r = set_lock(old->file->fd, F_UNLCK);
    r = r < 0 ? err_set_errno(err, r, "cannot unlock '%s'", path)
              : open_image(old, fd, path, err, &image);
    if (r == 0) {
        old->backing = NULL; /* the new one's */
        block->image->backing = image;
        block_image_close(old);
    } else {
        (void)!set_lock(old->file->fd, F_RDLCK);
    }
    block_release(block);
    return r;
}
