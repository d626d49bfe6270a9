#include "base/bundle.h"

#include "base/io.h"
#include "base/path.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

const struct bundle_file *bundle_find(const struct bundle *bundle, const char *name)
{
    for (size_t i = 0; bundle != NULL && i < bundle->file_count; i++) {
        if (strcmp(bundle->files[i].name, name) == 0) {
            return &bundle->files[i];
        }
    }
    return NULL;
}

static int unpack_one(const struct bundle_file *file, const char *name, const char *dir,
                      struct err *err)
{
    CLEANUP_CLOSE int fd = -1;
    char path[PATH_MAX];
    char *slash;
    int rc = path_format(path, err, "%s/%s", dir, name);

    if (rc < 0) {
        return rc;
    }
    slash = strrchr(path, '/');
    *slash = '\0';
    rc = path_make_dirs(path, err);
    *slash = '/';
    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, file->mode);
    rc = fd < 0 ? -errno : io_write_full(fd, file->data, (size_t)(file->end - file->data));
    return rc < 0 ? err_set_errno(err, rc, "%s cannot be written", path) : 0;
}

int bundle_unpack(const struct bundle *bundle, const char *prefix, const char *dir, struct err *err)
{
    size_t len = strlen(prefix);
    int rc = 0;

    for (size_t i = 0; bundle != NULL && rc == 0 && i < bundle->file_count; i++) {
        if (strncmp(bundle->files[i].name, prefix, len) == 0) {
            rc = unpack_one(&bundle->files[i], bundle->files[i].name + len, dir, err);
        }
    }
    return rc;
}

const char *bundle_argument(const char *path, const char *name)
{
    return strcmp(path, BUNDLE_PROGRAM) == 0 ? name : path;
}
