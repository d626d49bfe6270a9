/* corbel nbd serve: a disk for other programs, over NBD. */
#include "base/path.h"
#include "block/block_int.h"
#include "block/nbd_server.h"
#include "cli/cli.h"
#include "storage/disk.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_NAME "disk"

/* Nobody listens there any more: what is left of a server that was killed. */
static bool is_stale(const struct sockaddr_un *at)
{
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    return fd >= 0 && connect(fd, (const struct sockaddr *)at, sizeof(*at)) != 0 &&
           errno == ECONNREFUSED;
}

/* A socket that its owner alone can connect to. */
static int listen_at(const char *path, struct err *err)
{
    struct sockaddr_un at;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t mask;
    int r;

    if (fd < 0) {
        return err_set_errno(err, -errno, "no socket can be made");
    }
    if (path_to_unix(path, &at) < 0) {
        return err_set(err, -ENAMETOOLONG, "the path of a socket has at most %zu characters",
                       sizeof(at.sun_path) - 1);
    }
    if (is_stale(&at)) {
        (void)unlink(path);
    }
    mask = umask(0177);
    r = bind(fd, (const struct sockaddr *)&at, sizeof(at)) != 0 ? -errno : 0;
    (void)umask(mask);
    if (r == -EADDRINUSE) {
        return err_set(err, -EEXIST, "%s is there already", path);
    }
    if (r == 0 && listen(fd, 16) != 0) {
        r = -errno;
    }
    return r < 0 ? err_set_errno(err, r, "%s cannot be listened at", path) : steal_fd(&fd);
}

static int catch_signals(struct err *err)
{
    sigset_t set;
    int fd;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL); /* cannot fail for these */
    fd = signalfd(-1, &set, SFD_CLOEXEC);
    return fd < 0 ? err_set_errno(err, -errno, "signals cannot be waited for") : fd;
}

static int serve(const struct nbd_served *served, const char *path, struct err *err)
{
    CLEANUP_CLOSE int stop = catch_signals(err);
    CLEANUP_CLOSE int listener = stop < 0 ? -1 : listen_at(path, err);
    int r;

    if (stop < 0 || listener < 0) {
        return stop < 0 ? stop : listener;
    }
    printf("nbd+unix:///%s?socket=%s\n", served->name, path);
    (void)fflush(stdout);
    r = nbd_server_run(served, listener, stop, err);
    (void)unlink(path);
    return r;
}

int verb_nbd_serve(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err)
{
    const struct nbd_serve_options *options = values;
    const struct disk_ref ref = {.path = args->words[0],
                                 .format = options->format,
                                 .backing_dir = options->backing_dir,
                                 .read_only = options->read_only};
    struct nbd_served served = {.name = options->name != NULL ? options->name : DEFAULT_NAME,
                                .read_only = options->read_only};
    int r;

    (void)cli;
    if (options->socket == NULL) {
        return err_set(err, -EINVAL, "say where clients find the disk: --socket PATH");
    }
    if (served.name[0] == '\0' || strlen(served.name) > NBD_SERVER_MAX_NAME ||
        strpbrk(served.name, "?#/% ") != NULL) {
        return err_set(err, -EINVAL,
                       "--name takes 1 to %u characters, none of them ?, #, /, %% or "
                       "blank",
                       NBD_SERVER_MAX_NAME);
    }
    r = disk_open(&ref, err, &served.image);
    if (r < 0) {
        return r;
    }
    r = serve(&served, options->socket, err);
    if (!options->read_only) {
        int flushed = block_image_simple(served.image, BLOCK_FLUSH, 0, 0, false);

        r = r == 0 && flushed < 0
                ? err_set_errno(err, flushed, "what was written last is not durable")
                : r;
    }
    block_image_close(served.image);
    return r;
}
