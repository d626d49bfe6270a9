/* Copies of a store in use, and back. */
#include "store/store_sqlite_int.h"

#include "base/io.h"
#include "base/path.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES (1u << 20)

static int sync_path(const char *path, struct err *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

    return fd < 0 || fsync(fd) != 0 ? err_set_errno(err, -errno, "%s cannot be synced", path) : 0;
}

static int sync_parent(const char *path, struct err *err)
{
    char dir[PATH_MAX];
    char *slash;
    int rc = path_format(dir, err, "%s", path);

    if (rc < 0) {
        return rc;
    }
    slash = strrchr(dir, '/');
    if (slash == NULL || slash == dir) {
        return sync_path(slash == NULL ? "." : "/", err);
    }
    *slash = '\0';
    return sync_path(dir, err);
}

int store_sqlite_check(const char *path, struct err *err)
{
    struct sqlite_store *store = calloc(1, sizeof(*store));
    int rc;

    if (store == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = path_format(store->path, err, "%s", path);
    if (rc == 0 && access(path, R_OK) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be read", path);
    }
    rc = rc < 0 ? rc : sqlite_file_check(store, err);
    free(store);
    return rc;
}

/* A connection of its own: it reads one state, and those who write do not wait for it. */
static int copy_out(const char *from, const char *to, struct err *err)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *vacuum = NULL;
    int rc = sqlite3_open_v2(
        from, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);

    rc = rc == SQLITE_OK ? sqlite3_prepare_v2(db, "VACUUM INTO ?1", -1, &vacuum, NULL) : rc;
    rc = rc == SQLITE_OK ? sqlite3_bind_text(vacuum, 1, to, -1, SQLITE_STATIC) : rc;
    rc = rc == SQLITE_OK ? sqlite3_step(vacuum) : rc;
    (void)sqlite3_finalize(vacuum); /* repeats an old error */
    (void)sqlite3_close(db);
    return rc == SQLITE_DONE ? 0 : sqlite_error(rc, to, err);
}

int store_sqlite_backup(struct store *store, const char *path, struct err *err)
{
    const struct sqlite_store *s = container_of(store, struct sqlite_store, store);
    char making[PATH_MAX];
    int rc = path_format(making, err, "%s.making", path);

    if (rc == 0 && unlink(making) != 0 && errno != ENOENT) {
        rc = err_set_errno(err, -errno, "%s cannot be removed", making);
    }
    rc = rc < 0 ? rc : copy_out(s->path, making, err);
    if (rc == 0 && chmod(making, 0600) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made private", making);
    }
    rc = rc < 0 ? rc : store_sqlite_check(making, err);
    rc = rc < 0 ? rc : sync_path(making, err);
    if (rc == 0 && rename(making, path) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", path);
    }
    rc = rc < 0 ? rc : sync_parent(path, err);
    if (rc < 0) {
        path_discard(making);
    }
    return rc;
}

/* ---- back ---- */

static int copy_file(const char *from, const char *to, struct err *err)
{
    CLEANUP_CLOSE int in = open(from, O_RDONLY | O_CLOEXEC);
    CLEANUP_CLOSE int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    ssize_t n = 1;

    if (in < 0 || out < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", in < 0 ? from : to);
    }
    while (n > 0) {
        n = sendfile(out, in, NULL, COPY_BYTES);
    }
    return n < 0 || fsync(out) != 0 ? err_set_errno(err, -errno, "%s cannot be written", to) : 0;
}

/* What was there stays beside it. */
static int keep_old(const char *path, const char *suffix, struct err *err)
{
    char from[PATH_MAX], to[PATH_MAX];
    int rc = path_format(from, err, "%s%s", path, suffix);

    rc = rc < 0 ? rc : path_format(to, err, "%s.before-restore%s", path, suffix);
    if (rc == 0 && unlink(to) != 0 && errno != ENOENT) {
        rc = err_set_errno(err, -errno, "%s cannot be removed", to);
    }
    if (rc == 0 && link(from, to) != 0 && errno != ENOENT) {
        rc = err_set_errno(err, -errno, "%s cannot be made", to);
    }
    return rc;
}

static int remove_part(const char *path, const char *suffix, struct err *err)
{
    char name[PATH_MAX];
    int rc = path_format(name, err, "%s%s", path, suffix);

    return rc == 0 && unlink(name) != 0 && errno != ENOENT
               ? err_set_errno(err, -errno, "%s cannot be removed", name)
               : rc;
}

/*
 * In an order that leaves nothing that would be taken for a sound store at any
 * point: without its log the old database is older than its seal says, and so
 * is the new one until the seal goes, last.
 */
static int put_back(const char *making, const char *path, struct err *err)
{
    static const char *const parts[] = {"", "-wal", "-shm", ".seal"};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(parts); i++) {
        rc = keep_old(path, parts[i], err);
    }
    rc = rc < 0 ? rc : remove_part(path, "-wal", err);
    rc = rc < 0 ? rc : remove_part(path, "-shm", err);
    rc = rc < 0 ? rc : sync_parent(path, err);
    if (rc == 0 && rename(making, path) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be put back", path);
    }
    rc = rc < 0 ? rc : sync_parent(path, err);
    rc = rc < 0 ? rc : remove_part(path, ".seal", err);
    return rc < 0 ? rc : sync_parent(path, err);
}

int store_sqlite_restore(const char *backup, const char *path, struct err *err)
{
    char making[PATH_MAX];
    CLEANUP_CLOSE int lock_fd = -1;
    int rc = path_format(making, err, "%s.restoring", path);

    if (rc < 0) {
        return rc;
    }
    rc = sqlite_lock(path, &lock_fd, err);
    if (rc < 0) {
        return rc == -EBUSY
                   ? err_set(err, rc, "another process has %s open; stop the daemon first", path)
                   : rc;
    }
    rc = copy_file(backup, making, err);
    rc = rc < 0 ? rc : store_sqlite_check(making, err);
    rc = rc < 0 ? rc : put_back(making, path, err);
    if (rc < 0) {
        path_discard(making);
    }
    return rc;
}
