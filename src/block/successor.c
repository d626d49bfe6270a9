#include "block/successor.h"

#include "base/log.h"
#include "block/file.h"
#include "block/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MARK_NAME "user.corbel.continued-in"
#define UNFINISHED_NAME "user.corbel.unfinished-copy-of"
#define FORMAT_BYTES 8u

int block_file_path(const struct block_file *file, char *ret_path, size_t size)
{
    static const char gone[] = " (deleted)";
    char name[48];
    struct stat st;
    ssize_t n;

    (void)snprintf(name, sizeof(name), "/proc/self/fd/%d", file->fd);
    n = readlink(name, ret_path, size);
    if (n < 0) {
        return -errno;
    }
    if ((size_t)n >= size) {
        return -ENAMETOOLONG;
    }
    ret_path[n] = '\0';
    if (fstat(file->fd, &st) != 0) {
        return -errno;
    }
    /* A file may be called so; one without a name is no place to go on in. */
    if (st.st_nlink == 0 ||
        ((size_t)n > sizeof(gone) && strcmp(ret_path + (size_t)n - sizeof(gone) + 1, gone) == 0)) {
        return -ENOENT;
    }
    return ret_path[0] == '/' ? 0 : -ENOENT;
}

/* What file systems and kernels say where there are no such attributes. */
static bool cannot_hold_marks(int error)
{
    return error == ENOTSUP || error == EPERM || error == ENOSYS;
}

/* 1 when there was one. */
static int remove_mark(int fd, const char *name)
{
    if (fremovexattr(fd, name) == 0) {
        return 1;
    }
    return errno == ENODATA || cannot_hold_marks(errno) ? 0 : -errno;
}

int successor_prepare(const struct block_file *to)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int dir = -1;
    int r = to->fd >= 0 ? block_file_path(to, path, sizeof(path)) : 1;
    char *slash;

    if (r != 0) {
        return r < 0 ? r : 0; /* a server's */
    }
    slash = strrchr(path, '/');
    slash[slash == path ? 1 : 0] = '\0';
    dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dir >= 0 && fsync(to->fd) == 0 && fsync(dir) == 0 ? 0 : -errno;
}

int successor_begin(const struct block_file *from, const struct block_file *to)
{
    char path[PATH_MAX] = "?"; /* for people */

    if (to->fd < 0) {
        return -EOPNOTSUPP;
    }
    if (from != NULL && from->fd >= 0) {
        (void)!block_file_path(from, path, sizeof(path));
    }
    if (fsetxattr(to->fd, UNFINISHED_NAME, path, strlen(path), 0) != 0) {
        return cannot_hold_marks(errno) ? -EOPNOTSUPP : -errno;
    }
    return fsync(to->fd) == 0 ? 0 : -errno;
}

int successor_end(const struct block_file *to)
{
    int unfinished = to->fd >= 0 ? remove_mark(to->fd, UNFINISHED_NAME) : 0;
    int continued = to->fd >= 0 ? remove_mark(to->fd, MARK_NAME) : 0;

    if (unfinished < 0 || continued < 0) {
        return unfinished < 0 ? unfinished : continued;
    }
    return unfinished + continued == 0 || fsync(to->fd) == 0 ? 0 : -errno;
}

int successor_set(const struct block_file *from, const struct block_file *to,
                  enum block_format to_format)
{
    char text[FORMAT_BYTES + PATH_MAX];
    int len = snprintf(text, sizeof(text), "%s:", block_format_name(to_format));
    int r = successor_end(to); /* never two that name each other */

    if (r < 0 || from->fd < 0 || to->fd < 0) { /* a server's has no name here */
        return r < 0 ? r : -EOPNOTSUPP;
    }
    r = block_file_path(to, text + len, sizeof(text) - (size_t)len);
    if (r < 0) {
        return r;
    }
    if (fsetxattr(from->fd, MARK_NAME, text, strlen(text), 0) != 0) {
        return cannot_hold_marks(errno) ? -EOPNOTSUPP : -errno;
    }
    if (fsync(from->fd) != 0) {
        r = -errno;
        (void)remove_mark(from->fd, MARK_NAME);
        return r;
    }
    return 0;
}

void successor_clear(const struct block_file *file)
{
    if (remove_mark(file->fd, MARK_NAME) > 0) {
        (void)fsync(file->fd); /* a mark too many is told to the user, and harms nothing */
    }
}

int successor_get(int fd, struct successor *ret_successor)
{
    char text[FORMAT_BYTES + PATH_MAX];
    ssize_t n = fgetxattr(fd, MARK_NAME, text, sizeof(text) - 1);
    struct successor successor;
    char *colon;

    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    colon = strchr(text, ':');
    if (colon == NULL || colon[1] != '/' || strlen(colon + 1) >= sizeof(successor.path)) {
        return 0;
    }
    *colon = '\0';
    if (block_format_parse(text, &successor.format) < 0) {
        return 0;
    }
    memcpy(successor.path, colon + 1, strlen(colon + 1) + 1);
    *ret_successor = successor;
    return 1;
}

int successor_find(int fd, struct successor *ret_successor)
{
    struct successor next;

    if (successor_get(fd, &next) == 0 ||
        (access(next.path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR))) {
        return 0;
    }
    *ret_successor = next;
    return 1;
}

bool successor_is_unfinished(int fd)
{
    return fgetxattr(fd, UNFINISHED_NAME, NULL, 0) >= 0;
}

enum successor_state successor_state(int fd, struct successor *ret_next)
{
    return successor_is_unfinished(fd)        ? SUCCESSOR_UNFINISHED
           : successor_find(fd, ret_next) > 0 ? SUCCESSOR_CONTINUED
                                              : SUCCESSOR_CURRENT;
}

enum successor_state successor_state_of(const char *path, struct successor *ret_next)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);

    return fd >= 0 ? successor_state(fd, ret_next) : SUCCESSOR_CURRENT;
}

void successor_forget(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);

    if (fd >= 0 && remove_mark(fd, UNFINISHED_NAME) + remove_mark(fd, MARK_NAME) > 0) {
        (void)fsync(fd); /* a mark that comes back is taken away again */
    }
}

int successor_check_whole(const struct block_file *file, const char *path, struct err *err)
{
    return file->fd >= 0 && successor_is_unfinished(file->fd)
               ? err_set(err, -ESTALE,
                         "disk '%s' is a copy that was never finished; remove it, or mirror into "
                         "it again",
                         path)
               : 0;
}

int successor_check(const struct block_file *file, const char *path, struct err *err)
{
    struct successor next;
    char shown[sizeof(err->text)];

    if (successor_get(file->fd, &next) == 0) {
        return 0;
    }
    (void)log_escape(shown, sizeof(shown), next.path, strlen(next.path));
    if (access(next.path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
        log_warn("disk '%s' went on in '%s', which is not there any more; ignoring that", path,
                 shown);
        return 0;
    }
    return err_set(err, -ESTALE,
                   "disk '%s' went on in '%s' and is stale; give that file, with format=%s%s, or "
                   "remove it to go back",
                   path, shown, block_format_name(next.format),
                   next.format == BLOCK_FORMAT_QCOW2 ? " and backing-dir" : "");
}

void successor_log(const char *before, const char *now, bool is_noted)
{
    log_info("disk '%s' goes on in '%s'", before, now);
    if (!is_noted) {
        log_warn("'%s' cannot be marked as stale, because its file system keeps no such marks; "
                 "ignoring that, but do not start with it again",
                 before);
    }
}
