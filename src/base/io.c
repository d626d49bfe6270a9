#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

ssize_t io_read_full(int fd, void *buf, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = read(fd, (char *)buf + done, len - done);

        if (n == 0) {
            break;
        }
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

ssize_t io_pread_full(int fd, void *buf, size_t len, uint64_t offset)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));

        if (n == 0) {
            break;
        }
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int io_write_full(int fd, const void *buf, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = write(fd, (const char *)buf + done, len - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        done += (size_t)n;
    }
    return 0;
}

int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(offset + done));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        done += (size_t)n;
    }
    return 0;
}

int io_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    return fd >= 0 ? fd : -errno;
}

void io_eventfd_signal(int fd)
{
    const uint64_t one = 1;
    int saved = errno;
    ssize_t n;

    do {
        n = write(fd, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the reader will wake anyway. */
    errno = saved;
}

uint64_t io_eventfd_drain(int fd)
{
    uint64_t count = 0;
    ssize_t n;

    do {
        n = read(fd, &count, sizeof(count));
    } while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(count) ? count : 0;
}

int io_memfd(const char *name, uint64_t size_bytes)
{
    CLEANUP_CLOSE int fd = memfd_create(name, MFD_CLOEXEC);

    if (fd < 0) {
        return -errno;
    }
    if (ftruncate(fd, (off_t)size_bytes) < 0) {
        return -errno;
    }
    return steal_fd(&fd);
}

int io_set_nonblock(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        return -errno;
    }
    return 0;
}

/* A regular file, and how long it is. */
static int open_regular(const char *path, int more_flags, uint64_t *ret_size)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | more_flags);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode)) {
        return S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
    }
    *ret_size = (uint64_t)st.st_size;
    return steal_fd(&fd);
}

/* From an offset to what was the end, ended with a NUL. */
static int read_from(int fd, uint64_t offset, size_t len, void **ret_data, size_t *ret_len)
{
    CLEANUP_FREE char *data = malloc(len + 1);
    ssize_t n = data != NULL ? io_pread_full(fd, data, len, offset) : -ENOMEM;

    if (n < 0) {
        return (int)n;
    }
    data[n] = '\0';
    *ret_data = steal_ptr(data);
    *ret_len = (size_t)n;
    return 0;
}

int io_read_file(const char *path, size_t max_bytes, void **ret_data, size_t *ret_len)
{
    uint64_t size = 0;
    CLEANUP_CLOSE int fd = open_regular(path, 0, &size);

    if (fd < 0) {
        return fd;
    }
    return size > max_bytes ? -EFBIG : read_from(fd, 0, (size_t)size, ret_data, ret_len);
}

int io_read_tail(const char *path, size_t max_bytes, void **ret_data, size_t *ret_len)
{
    uint64_t size = 0;
    CLEANUP_CLOSE int fd = open_regular(path, O_NOFOLLOW, &size);
    uint64_t from = size > max_bytes ? size - max_bytes : 0;

    return fd < 0 ? fd : read_from(fd, from, (size_t)(size - from), ret_data, ret_len);
}
