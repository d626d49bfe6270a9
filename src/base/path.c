#include "base/path.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define NAME_MAX_CHARS 40

int path_format(char *out, struct err *err, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(out, PATH_MAX, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= PATH_MAX) {
        return err_set(err, -ENAMETOOLONG, "the path %.60s... is too long", out);
    }
    return 0;
}

bool path_exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

int path_check_name(const char *text, struct err *err)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    static const char more[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t len = strlen(text);

    if (len == 0 || len > NAME_MAX_CHARS || strspn(text, letters) == 0 ||
        strspn(text, more) != len) {
        return err_set(err, -EINVAL,
                       "\"%.60s\" is no name: use up to %d letters, digits, '.', '_' and '-', "
                       "with a letter or digit first",
                       text, NAME_MAX_CHARS);
    }
    return 0;
}

int path_make_dirs(const char *path, struct err *err)
{
    char part[PATH_MAX];
    int rc = path_format(part, err, "%s", path);

    if (rc < 0) {
        return rc;
    }
    for (char *p = part + 1;; p++) {
        char c = *p;

        if (c != '/' && c != '\0') {
            continue;
        }
        *p = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST) {
            return err_set_errno(err, -errno, "the directory %s cannot be made", part);
        }
        *p = c;
        if (c == '\0') {
            return 0;
        }
    }
}

int path_make_private(const char *path, struct err *err)
{
    struct stat st;
    int rc = path_make_dirs(path, err);

    if (rc < 0) {
        return rc;
    }
    if (lstat(path, &st) != 0) {
        return err_set_errno(err, -errno, "%s cannot be read", path);
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022) != 0) {
        return err_set(err, -EPERM,
                       "%s is not a directory that only this user can write; remove it", path);
    }
    return 0;
}

/* Removes what is in the directory fd, which it closes. Depth is that of what we made: small. */
static int remove_children(int fd) // NOLINT(misc-no-recursion)
{
    DIR *dir = fdopendir(fd);
    struct dirent *entry;
    int rc = 0;

    if (dir == NULL) {
        rc = -errno;
        (void)close(fd);
        return rc;
    }
    while (rc == 0 && (entry = readdir(dir)) != NULL) { // NOLINT(concurrency-mt-unsafe)
        const char *name = entry->d_name;
        int child;

        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
            continue;
        }
        if (unlinkat(dirfd(dir), name, 0) == 0) {
            continue;
        }
        if (errno != EISDIR && errno != EPERM) {
            rc = -errno;
            break;
        }
        child = openat(dirfd(dir), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = child < 0 ? -errno : remove_children(child);
        if (rc == 0 && unlinkat(dirfd(dir), name, AT_REMOVEDIR) != 0) {
            rc = -errno;
        }
    }
    (void)closedir(dir);
    return rc;
}

int path_remove(const char *path, struct err *err)
{
    int rc = 0;
    int fd;

    if (unlink(path) == 0 || errno == ENOENT) {
        return 0;
    }
    fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    rc = fd < 0 ? -errno : remove_children(fd);
    if (rc == 0 && rmdir(path) != 0) {
        rc = -errno;
    }
    return rc < 0 ? err_set_errno(err, rc, "%s cannot be removed", path) : 0;
}

void path_discard(const char *path)
{
    struct err ignored;
    int rc = path_remove(path, &ignored);

    (void)rc; /* what could not be removed now is removed by the next command */
}

int path_find_home(char *out, const char *variable, const char *fallback, const char *leaf,
                   struct err *err)
{
    const char *base = getenv(variable); // NOLINT(concurrency-mt-unsafe)
    const char *home = getenv("HOME");   // NOLINT(concurrency-mt-unsafe)

    if (base != NULL && base[0] == '/') {
        return path_format(out, err, "%s/corbel%s", base, leaf);
    }
    if (home == NULL || home[0] != '/') {
        return err_set(err, -ENOENT, "HOME is not set; set it, or %s", variable);
    }
    return path_format(out, err, "%s/%s/corbel%s", home, fallback, leaf);
}

int path_find_runtime(char *out, const char *name, struct err *err)
{
    const char *base = getenv("XDG_RUNTIME_DIR"); // NOLINT(concurrency-mt-unsafe)

    if (base != NULL && base[0] == '/' && access(base, W_OK) == 0) {
        return path_format(out, err, "%s/%s", base, name);
    }
    return path_format(out, err, "/tmp/%s-%u", name, geteuid());
}

int path_to_unix(const char *path, struct sockaddr_un *ret_address)
{
    size_t len = strlen(path);

    if (len >= sizeof(ret_address->sun_path)) {
        return -ENAMETOOLONG;
    }
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(ret_address->sun_path, path, len);
    return 0;
}

int path_find_beside(char *out, const char *name, struct err *err)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    if (n <= 0) {
        return err_set_errno(err, -errno, "/proc/self/exe cannot be read");
    }
    self[n] = '\0';
    slash = strrchr(self, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
    return path_format(out, err, "%s/%s", self, name);
}
