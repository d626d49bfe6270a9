/* A regular file or block device of the host, through plain system calls. */
#include "block/file.h"

#include "block/nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define ZEROES_BYTES 16384u
#define ZEROES_IOV 64u

struct posix_file {
    struct block_file file;
    atomic_bool flush_failed; /* what the kernel dropped once is lost: no later flush may succeed */
};

static struct posix_file *to_posix(struct block_file *file)
{
    return container_of(file, struct posix_file, file);
}

void block_iov_advance(struct iovec **iov, unsigned *count, uint64_t done)
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

static int posix_preadv(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset)
{
    while (count > 0) {
        unsigned some = count < IOV_MAX ? count : IOV_MAX;
        ssize_t n = preadv(file->fd, iov, (int)some, (off_t)offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0 && iov->iov_len > 0) {
            if (!__atomic_load_n(&file->zeroes_past_end, __ATOMIC_RELAXED)) {
                return -EIO; /* the file became shorter behind our back */
            }
            for (unsigned i = 0; i < count; i++) {
                memset(iov[i].iov_base, 0, iov[i].iov_len);
            }
            return 0;
        }
        offset += (uint64_t)n;
        block_iov_advance(&iov, &count, (uint64_t)n);
    }
    return 0;
}

static int posix_preadv_nowait(struct block_file *file, const struct iovec *iov, unsigned count,
                               uint64_t offset)
{
    uint64_t len = 0;
    ssize_t n;

    for (unsigned i = 0; i < count; i++) {
        len += iov[i].iov_len;
    }
    n = preadv2(file->fd, iov, (int)count, (off_t)offset, RWF_NOWAIT);
    if (n < 0) {
        return errno == EINTR ? -EAGAIN : -errno;
    }
    return (uint64_t)n == len ? 0 : -EAGAIN;
}

static int posix_pwritev(struct block_file *file, struct iovec *iov, unsigned count,
                         uint64_t offset)
{
    while (count > 0) {
        unsigned some = count < IOV_MAX ? count : IOV_MAX;
        ssize_t n = pwritev(file->fd, iov, (int)some, (off_t)offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0 && iov->iov_len > 0) {
            return -EIO; /* no progress and no reason given */
        }
        offset += (uint64_t)n;
        block_iov_advance(&iov, &count, (uint64_t)n);
    }
    return 0;
}

static int file_fallocate(struct block_file *file, int mode, uint64_t offset, uint64_t len)
{
    int r;

    if (len == 0) {
        return 0;
    }
    do {
        r = fallocate(file->fd, mode, (off_t)offset, (off_t)len);
    } while (r != 0 && errno == EINTR);
    return r == 0 ? 0 : -errno;
}

static int write_zero_bytes(struct block_file *file, uint64_t offset, uint64_t left)
{
    static const uint8_t zeroes[ZEROES_BYTES];
    struct iovec iov[ZEROES_IOV];
    int r = 0;

    while (left > 0 && r == 0) {
        unsigned count = 0;
        uint64_t sum = 0;

        while (count < ARRAY_LEN(iov) && sum < left) {
            uint64_t len = left - sum < ZEROES_BYTES ? left - sum : ZEROES_BYTES;

            /* pwritev only reads what it is given. */
            iov[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)zeroes, .iov_len = len};
            sum += len;
        }
        r = posix_pwritev(file, iov, count, offset);
        offset += sum;
        left -= sum;
    }
    return r;
}

static int posix_write_zeroes(struct block_file *file, uint64_t offset, uint64_t len,
                              bool may_unmap)
{
    int mode = may_unmap ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
    int r = file_fallocate(file, mode, offset, len);

    if (r == -EOPNOTSUPP || r == -ENODEV || r == -EINVAL) {
        r = write_zero_bytes(file, offset, len);
    }
    return r;
}

static int posix_discard(struct block_file *file, uint64_t offset, uint64_t len)
{
    int r = file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len);

    return r == -EOPNOTSUPP || r == -ENODEV ? 0 : r;
}

static int posix_truncate(struct block_file *file, uint64_t size_bytes)
{
    int r;

    if (file->is_device) {
        return -ENOTSUP;
    }
    do {
        r = ftruncate(file->fd, (off_t)size_bytes);
    } while (r != 0 && errno == EINTR);
    return r == 0 ? 0 : -errno;
}

static int posix_allocate(struct block_file *file, uint64_t offset, uint64_t len)
{
    return file->is_device ? 0 : file_fallocate(file, 0, offset, len);
}

static int posix_flush(struct block_file *file)
{
    struct posix_file *posix = to_posix(file);

    if (atomic_load(&posix->flush_failed)) {
        return -EIO;
    }
    if (fdatasync(file->fd) != 0) {
        int r = -errno;

        atomic_store(&posix->flush_failed, true);
        return r;
    }
    return 0;
}

static int posix_get_size(struct block_file *file, uint64_t *ret_size_bytes)
{
    struct stat st;
    uint64_t size = 0;

    if (file->is_device) {
        if (ioctl(file->fd, BLKGETSIZE64, &size) != 0) {
            return -errno;
        }
    } else if (fstat(file->fd, &st) != 0) {
        return -errno;
    } else {
        size = (uint64_t)st.st_size;
    }
    *ret_size_bytes = size;
    return 0;
}

static void posix_write_back(struct block_file *file)
{
    /* Only a hint: whatever goes wrong is for the flush to find. */
    (void)sync_file_range(file->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static void posix_close(struct block_file *file)
{
    if (file->fd >= 0) {
        (void)close(file->fd); /* durability is what flush is for */
    }
    free(to_posix(file));
}

static const struct block_file_ops posix_ops = {
    .preadv = posix_preadv,
    .preadv_nowait = posix_preadv_nowait,
    .pwritev = posix_pwritev,
    .write_zeroes = posix_write_zeroes,
    .discard = posix_discard,
    .truncate = posix_truncate,
    .allocate = posix_allocate,
    .flush = posix_flush,
    .get_size = posix_get_size,
    .write_back = posix_write_back,
    .close = posix_close,
};

/*
 * An open file description lock: gone with the descriptor, however the process
 * ends, and shared by no other open of the same file.
 */
static int lock_file(int fd, bool is_read_only, const char *path, struct err *err)
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

static int open_path(const struct block_file_options *options, struct err *err)
{
    /* A pipe or a terminal would have us wait for its other end. */
    int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd = open(options->path, flags | (options->direct ? O_DIRECT : 0));

    if (fd >= 0) {
        return fd;
    }
    if (errno == EACCES || errno == EROFS) {
        return err_set_errno(err, -errno, "cannot open disk '%s' for %s", options->path,
                             options->read_only ? "reading" : "writing");
    }
    return err_set_errno(err, -errno, "cannot open disk '%s'", options->path);
}

/* io_uring would give up where it has to wait. */
static int make_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags >= 0 && (flags & O_NONBLOCK) != 0) {
        flags = fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    }
    return flags >= 0 ? 0 : -errno;
}

static int wrap(int fd, bool is_device, bool read_only, struct err *err,
                struct block_file **ret_file)
{
    struct posix_file *posix = calloc(1, sizeof(*posix));

    if (!posix) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    posix->file = (struct block_file){
        .ops = &posix_ops,
        .fd = fd,
        .is_read_only = read_only,
        .is_device = is_device,
        .alignment = 1,
    };
    *ret_file = &posix->file;
    return 0;
}

int block_file_open(const struct block_file_options *options, struct err *err,
                    struct block_file **ret_file)
{
    CLEANUP_CLOSE int opened = -1;
    struct block_file *file = NULL;
    struct stat st;
    int fd = options->fd;
    int r;

    if (fd < 0 && nbd_is_address(options->path)) {
        const struct nbd_options nbd = {.address = options->path, .read_only = options->read_only};

        return nbd_open(&nbd, err, ret_file);
    }
    if (fd < 0) {
        opened = open_path(options, err);
        if (opened < 0) {
            return opened;
        }
        fd = opened;
    }
    if (fstat(fd, &st) != 0) {
        return err_set_errno(err, -errno, "cannot examine disk '%s'", options->path);
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return err_set(err, -EINVAL, "disk '%s' is neither a regular file nor a block device",
                       options->path);
    }
    r = make_blocking(fd);
    if (r < 0) {
        return err_set_errno(err, r, "cannot prepare disk '%s'", options->path);
    }
    r = lock_file(fd, options->read_only, options->path, err);
    if (r == 0) {
        r = wrap(fd, S_ISBLK(st.st_mode), options->read_only, err, &file);
    }
    if (r == 0 && options->direct) {
        r = block_file_make_direct(err, &file);
    }
    if (r < 0) {
        if (file) {
            file->fd = -1; /* the caller's, or closed here */
        }
        block_file_close(file);
        return r;
    }
    (void)steal_fd(&opened); /* the file owns it now */
    *ret_file = file;
    return 0;
}

int block_file_create(const char *path, bool replace, struct err *err, struct block_file **ret_file)
{
    CLEANUP_CLOSE int fd = -1;
    struct stat st, now;
    int r;

    if (nbd_is_address(path)) {
        return err_set(err, -ENOTSUP, "'%s' can only be made by its server", path);
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | (replace ? 0 : O_EXCL), 0644);
    if (fd < 0) {
        return err_set_errno(err, -errno, "cannot make image '%s'", path);
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return err_set(err, -EINVAL, "'%s' is not a regular file", path);
    }
    r = lock_file(fd, false, path, err);
    /* Whoever had the lock may have given the file another name. */
    if (r == 0 && (stat(path, &now) != 0 || now.st_dev != st.st_dev || now.st_ino != st.st_ino)) {
        r = err_set(err, -EBUSY, "image '%s' is in use by another process; try again", path);
    }
    if (r == 0 && ftruncate(fd, 0) != 0) {
        r = err_set_errno(err, -errno, "cannot empty image '%s'", path);
    }
    if (r == 0) {
        r = wrap(fd, false, false, err, ret_file);
    }
    if (r == 0) {
        (void)steal_fd(&fd); /* the file owns it now */
    }
    return r;
}

void block_file_close(struct block_file *file)
{
    if (file) {
        file->ops->close(file);
    }
}

int block_file_pread(struct block_file *file, void *buf, uint64_t len, uint64_t offset)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};

    return file->ops->preadv(file, &iov, 1, offset);
}

int block_file_pwrite(struct block_file *file, const void *buf, uint64_t len, uint64_t offset)
{
    /* pwritev only reads what it is given. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = len};

    return file->ops->pwritev(file, &iov, 1, offset);
}
