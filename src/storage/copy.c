#include "storage/copy.h"

#include "base/io.h"
#include "base/path.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define COPY_CHUNK_BYTES (64u << 10)

static int copy_range(int in, int out, off_t start, off_t end)
{
    char buf[COPY_CHUNK_BYTES];

    while (start < end) {
        off_t left = end - start;
        size_t want = left < (off_t)COPY_CHUNK_BYTES ? (size_t)left : COPY_CHUNK_BYTES;
        ssize_t n = io_pread_full(in, buf, want, (uint64_t)start);
        int rc;

        if (n <= 0) {
            return n < 0 ? (int)n : -EIO; /* the file shrank under us */
        }
        rc = io_pwrite_full(out, buf, (size_t)n, (uint64_t)start);
        if (rc < 0) {
            return rc;
        }
        start += n;
    }
    return 0;
}

/* Copies the parts that hold data; the rest of `out` is already as long and empty. */
static int copy_data(int in, int out, off_t size)
{
    off_t pos = 0;

    while (pos < size) {
        off_t data = lseek(in, pos, SEEK_DATA);
        off_t hole;
        int rc;

        if (data < 0) {
            return errno == ENXIO ? 0 : -errno; /* nothing but a hole is left */
        }
        hole = lseek(in, data, SEEK_HOLE);
        if (hole < 0) {
            return -errno;
        }
        rc = copy_range(in, out, data, hole);
        if (rc < 0) {
            return rc;
        }
        pos = hole;
    }
    return 0;
}

static int copy_contents(int in, int out)
{
    struct stat st;

    if (ioctl(out, FICLONE, in) == 0) {
        return 0;
    }
    if (fstat(in, &st) != 0 || ftruncate(out, st.st_size) != 0) {
        return -errno;
    }
    return copy_data(in, out, st.st_size);
}

int copy_sparse_file(const char *from, const char *to, const char *name, struct err *err)
{
    char source[PATH_MAX];
    char target[PATH_MAX];
    struct stat st;
    CLEANUP_CLOSE int in = -1;
    CLEANUP_CLOSE int out = -1;
    int rc = path_format(source, err, "%s/%s", from, name);

    if (rc == 0) {
        rc = path_format(target, err, "%s/%s", to, name);
    }
    if (rc < 0) {
        return rc;
    }
    in = open(source, O_RDONLY | O_CLOEXEC);
    if (in < 0 || fstat(in, &st) != 0) {
        return err_set_errno(err, -errno, "%s cannot be read", source);
    }
    out = open(target, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, st.st_mode & 0600);
    if (out < 0) {
        return err_set_errno(err, -errno, "%s cannot be made", target);
    }
    rc = copy_contents(in, out);
    if (rc == 0 && close(steal_fd(&out)) != 0) {
        rc = -errno;
    }
    if (rc < 0) {
        (void)unlink(target);
        return err_set_errno(err, rc, "%s cannot be copied to %s", source, to);
    }
    return 0;
}

int copy_link_file(const char *from, const char *to, const char *name, struct err *err)
{
    char source[PATH_MAX];
    char target[PATH_MAX];
    int rc = path_format(source, err, "%s/%s", from, name);

    if (rc == 0) {
        rc = path_format(target, err, "%s/%s", to, name);
    }
    if (rc < 0) {
        return rc;
    }
    if (link(source, target) == 0 || errno == ENOENT) {
        return 0;
    }
    return copy_sparse_file(from, to, name, err);
}

int copy_symlink_file(const char *from, const char *to, const char *name, struct err *err)
{
    char source[PATH_MAX];
    char target[PATH_MAX];
    char absolute[PATH_MAX];
    int rc = path_format(source, err, "%s/%s", from, name);

    if (rc == 0) {
        rc = path_format(target, err, "%s/%s", to, name);
    }
    if (rc < 0) {
        return rc;
    }
    if (realpath(source, absolute) == NULL || symlink(absolute, target) != 0) {
        return err_set_errno(err, -errno, "%s cannot be linked into %s", source, to);
    }
    return 0;
}
