/* Raw images: byte N of the disk is byte N of the file or block device. */
#include "base/compiler.h"
#include "block/block_int.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define ZEROES_BYTES 16384u
#define ZEROES_IOV 64u

struct raw {
    struct block_image image;
    int fd;
    atomic_bool flush_failed; /* what the kernel dropped once is lost: no later flush may succeed */
};

static struct raw *to_raw(struct block_image *image)
{
    return container_of(image, struct raw, image);
}

/* Drops the first done bytes of iov. */
static void advance(struct iovec **iov, unsigned *count, size_t done)
{
    while (*count > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (*count > 0 && done > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

static int transfer(struct raw *raw, struct block_request *request, int flags)
{
    struct iovec *iov = request->iov;
    unsigned count = request->iov_count;
    uint64_t offset = request->offset;
    uint64_t end = offset + request->len;
    ssize_t n;

    while (offset < end) {
        if (request->op == BLOCK_READ) {
            n = preadv2(raw->fd, iov, (int)count, (off_t)offset, flags);
        } else {
            n = pwritev2(raw->fd, iov, (int)count, (off_t)offset, flags);
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            return -EIO; /* the file became shorter behind our back */
        }
        offset += (uint64_t)n;
        if (offset < end) {
            advance(&iov, &count, (size_t)n);
        }
    }
    return 0;
}

/* Tries without waiting, on a copy of the vector: it has to be whole for the next attempt. */
static int read_cached(struct raw *raw, const struct block_request *request)
{
    ssize_t n =
        preadv2(raw->fd, request->iov, (int)request->iov_count, (off_t)request->offset, RWF_NOWAIT);

    if (n < 0) {
        return errno == EINTR ? -EAGAIN : -errno;
    }
    return (uint64_t)n == request->len ? 0 : -EAGAIN;
}

static int flush(struct raw *raw)
{
    if (atomic_load(&raw->flush_failed)) {
        return -EIO;
    }
    if (fdatasync(raw->fd) != 0) {
        int r = -errno;

        atomic_store(&raw->flush_failed, true);
        return r;
    }
    return 0;
}

static int punch(struct raw *raw, const struct block_request *request, int mode)
{
    int r;

    if (request->len == 0) {
        return 0;
    }
    do {
        r = fallocate(raw->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)request->offset,
                      (off_t)request->len);
    } while (r != 0 && errno == EINTR);
    return r == 0 ? 0 : -errno;
}

static int write_zero_bytes(struct raw *raw, const struct block_request *request)
{
    static const uint8_t zeroes[ZEROES_BYTES];
    struct iovec iov[ZEROES_IOV];
    struct block_request piece = {.op = BLOCK_WRITE, .offset = request->offset};
    uint64_t left = request->len;
    int r = 0;

    while (left > 0 && r == 0) {
        piece.iov = iov;
        piece.iov_count = 0;
        piece.len = 0;
        while (piece.iov_count < ARRAY_LEN(iov) && piece.len < left) {
            uint64_t len = left - piece.len < ZEROES_BYTES ? left - piece.len : ZEROES_BYTES;

            /* pwritev only reads what it is given. */
            iov[piece.iov_count++] =
                (struct iovec){.iov_base = (void *)(uintptr_t)zeroes, .iov_len = len};
            piece.len += len;
        }
        r = transfer(raw, &piece, 0);
        piece.offset += piece.len;
        left -= piece.len;
    }
    return r;
}

static int write_zeroes(struct raw *raw, const struct block_request *request)
{
    int r = punch(raw, request, request->may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

    if (r == -EOPNOTSUPP || r == -ENODEV || r == -EINVAL) {
        r = write_zero_bytes(raw, request);
    }
    return r;
}

static int raw_execute(struct block_image *image, struct block_request *request, bool may_wait)
{
    struct raw *raw = to_raw(image);
    int r;

    switch (request->op) {
    case BLOCK_READ:
        return may_wait ? transfer(raw, request, 0) : read_cached(raw, request);
    case BLOCK_WRITE:
        return transfer(raw, request, 0);
    case BLOCK_FLUSH:
        return flush(raw);
    case BLOCK_DISCARD:
        r = punch(raw, request, FALLOC_FL_PUNCH_HOLE);
        return r == -EOPNOTSUPP ? 0 : r; /* a discard is a hint */
    case BLOCK_WRITE_ZEROES:
        return write_zeroes(raw, request);
    default:
        return -ENOTSUP;
    }
}

static void raw_close(struct block_image *image)
{
    struct raw *raw = to_raw(image);

    if (raw->fd >= 0) {
        (void)close(raw->fd); /* durability is what flush is for */
    }
    free(raw);
}

static const struct block_ops raw_ops = {
    .execute = raw_execute,
    .close = raw_close,
};

static int get_size(int fd, const char *path, struct err *err, uint64_t *ret_size)
{
    struct stat st;
    uint64_t size = 0;

    if (fstat(fd, &st) != 0) {
        return err_set_errno(err, -errno, "cannot examine disk '%s'", path);
    }
    if (S_ISREG(st.st_mode)) {
        size = (uint64_t)st.st_size;
    } else if (!S_ISBLK(st.st_mode)) {
        return err_set(err, -EINVAL, "disk '%s' is neither a regular file nor a block device",
                       path);
    } else if (ioctl(fd, BLKGETSIZE64, &size) != 0) {
        return err_set_errno(err, -errno, "cannot learn the size of disk '%s'", path);
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
    *ret_size = size;
    return 0;
}

/*
 * An open file description lock: gone with the descriptor, however the process
 * ends, and shared by no other open of the same file.
 */
static int lock_image(int fd, bool is_read_only, const char *path, struct err *err)
{
    struct flock lock = {
        .l_type = (short)(is_read_only ? F_RDLCK : F_WRLCK),
        .l_whence = SEEK_SET,
    };

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) {
        return 0;
    }
    if (errno == EAGAIN || errno == EACCES) {
        return err_set(err, -EBUSY,
                       is_read_only ? "disk '%s' is being written by another process; stop "
                                      "that first, or use a copy"
                                    : "disk '%s' is in use by another process; stop that "
                                      "first, use a copy, or open it read-only in both",
                       path);
    }
    return err_set_errno(err, -errno, "cannot lock disk '%s'", path);
}

static int open_path(const struct block_config *config, struct err *err)
{
    int fd = open(config->path, (config->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY);

    if (fd >= 0) {
        return fd;
    }
    if (errno == EACCES || errno == EROFS) {
        return err_set_errno(err, -errno, "cannot open disk '%s' for %s", config->path,
                             config->read_only ? "reading" : "writing");
    }
    return err_set_errno(err, -errno, "cannot open disk '%s'", config->path);
}

int raw_open(const struct block_config *config, struct err *err, struct block_image **ret_image)
{
    CLEANUP_CLOSE int opened = -1;
    struct raw *raw;
    uint64_t size = 0;
    int fd = config->fd;
    int r;

    if (fd < 0) {
        opened = open_path(config, err);
        if (opened < 0) {
            return opened;
        }
        fd = opened;
    }
    r = get_size(fd, config->path, err, &size);
    if (r == 0) {
        r = lock_image(fd, config->read_only, config->path, err);
    }
    if (r < 0) {
        return r;
    }
    raw = calloc(1, sizeof(*raw));
    if (!raw) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    (void)steal_fd(&opened); /* raw owns it now */
    raw->fd = fd;
    raw->image = (struct block_image){
        .ops = &raw_ops,
        .size_bytes = size,
        .is_read_only = config->read_only,
        .can_discard = !config->read_only,
    };
    *ret_image = &raw->image;
    return 0;
}
