/* Putting images into the user's collection: whole or not at all, one at a time of a name. */
#include "cli/image.h"

#include "cli/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

/* One maker of a name at a time; the lock file stays, because removing it would race. */
static int lock_name(const struct cli *cli, const char *name, int *ret_fd, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(path, err, "%s/.%s.lock", cli->images, name);

    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        (void)fprintf(stderr, "waiting for another maker of \"%s\" to end\n", name);
        while (flock(fd, LOCK_EX) != 0) {
            if (errno != EINTR) {
                return err_set_errno(err, -errno, "%s cannot be locked", path);
            }
        }
    }
    *ret_fd = steal_fd(&fd);
    return 0;
}

/* Puts the finished directory in its place; the old image, if any, is swapped out and removed. */
static int publish(const char *made, const char *place, struct err *err)
{
    struct image image;
    int rc = image_load(made, &image, err);

    if (rc < 0) {
        return rc;
    }
    if (rename(made, place) == 0) {
        return 0;
    }
    if (errno != ENOTEMPTY && errno != EEXIST) {
        return err_set_errno(err, -errno, "the image cannot be moved to %s", place);
    }
    if (renameat2(AT_FDCWD, made, AT_FDCWD, place, RENAME_EXCHANGE) != 0) {
        return err_set_errno(err, -errno, "the image at %s cannot be replaced", place);
    }
    return path_remove(made, err);
}

/* The work proper, under the lock of the name. */
static int make_locked(const struct cli *cli, const char *name, const struct image_maker *maker,
                       struct err *err)
{
    char making[PATH_MAX];
    char place[PATH_MAX];
    int rc = path_format(making, err, "%s/.%s.making", cli->images, name);

    if (rc == 0) {
        rc = path_format(place, err, "%s/%s", cli->images, name);
    }
    if (rc == 0 && !maker->may_replace && path_exists(place)) {
        return err_set(err, -EEXIST, "there is an image \"%s\" already; --replace replaces it",
                       name);
    }
    /* A maker that was killed outright leaves this behind; under the lock it is nobody's. */
    if (rc == 0) {
        rc = path_remove(making, err);
    }
    if (rc == 0) {
        rc = path_make_dirs(making, err);
    }
    if (rc == 0) {
        rc = maker->fill(maker->opaque, making, err);
    }
    if (rc == 0) {
        rc = publish(making, place, err);
    }
    if (rc < 0) {
        path_discard(making);
        return rc;
    }
    (void)fprintf(maker->is_aside ? stderr : stdout, "image \"%s\" is ready in %s\n", name, place);
    return 0;
}

int image_make(const struct cli *cli, const char *name, const struct image_maker *maker,
               struct err *err)
{
    CLEANUP_CLOSE int lock = -1;
    int rc = path_check_name(name, err);

    if (rc == 0) {
        rc = path_make_dirs(cli->images, err);
    }
    if (rc == 0) {
        rc = path_make_dirs(cli->cache, err);
    }
    if (rc == 0) {
        rc = lock_name(cli, name, &lock, err);
    }
    return rc < 0 ? rc : make_locked(cli, name, maker, err);
}
