#include "vmm/listen.h"

#include "base/path.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define LISTEN_BACKLOG 8

/* Removes a socket that nobody listens on. 0 when the name is free afterwards. */
static int remove_stale(const struct sockaddr_un *address, const char *flag, struct err *err)
{
    CLEANUP_CLOSE int fd = -1;
    struct stat st;

    if (lstat(address->sun_path, &st) < 0) {
        return errno == ENOENT
                   ? 0
                   : err_set_errno(err, -errno, "%s: cannot use \"%s\"", flag, address->sun_path);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return err_set(err, -EEXIST, "%s: \"%s\" exists and is no socket; give another name", flag,
                       address->sun_path);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s: cannot make a socket", flag);
    }
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
        errno != ECONNREFUSED) {
        return err_set(err, -EADDRINUSE,
                       "%s: another process uses the socket \"%s\"; stop it or give another name",
                       flag, address->sun_path);
    }
    if (unlink(address->sun_path) < 0 && errno != ENOENT) {
        return err_set_errno(err, -errno, "%s: cannot replace the old socket \"%s\"", flag,
                             address->sun_path);
    }
    return 0;
}

int vmm_listener_open(struct vmm_listener *listener, const char *flag, const char *path,
                      struct err *err)
{
    struct sockaddr_un address;
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    mode_t old_mask;
    int rc;

    if (path_to_unix(path, &address) < 0) {
        return err_set(err, -ENAMETOOLONG,
                       "%s: \"%s\" is longer than the %zu bytes of a socket name", flag, path,
                       sizeof(address.sun_path) - 1);
    }
    rc = remove_stale(&address, flag, err);
    if (rc < 0) {
        return rc;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s: cannot make a socket", flag);
    }
    old_mask = umask(0177); /* only one thread runs yet */
    rc = bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    (void)umask(old_mask);
    if (rc < 0) {
        return err_set_errno(err, rc, "%s: cannot listen on \"%s\"", flag, path);
    }
    if (listen(fd, LISTEN_BACKLOG) < 0 || lstat(path, &st) < 0) {
        rc = -errno;
        (void)unlink(path);
        return err_set_errno(err, rc, "%s: cannot listen on \"%s\"", flag, path);
    }
    *listener = (struct vmm_listener){
        .fd = steal_fd(&fd), .path = path, .dev = st.st_dev, .ino = st.st_ino};
    return 0;
}

void vmm_listener_close(struct vmm_listener *listener)
{
    struct stat st;

    if (listener->path != NULL && lstat(listener->path, &st) == 0 && st.st_dev == listener->dev &&
        st.st_ino == listener->ino) {
        (void)unlink(listener->path); /* at worst a stale name, which the next start replaces */
    }
    if (listener->fd >= 0) {
        (void)close(listener->fd);
    }
    *listener = VMM_LISTENER_NONE;
}
