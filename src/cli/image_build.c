#include "cli/image.h"

#include "cli/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* What can be built: the builder's script and what it gets beyond the user's wishes. */
struct image_kind {
    const char *name;
    const char *script;
    const char *packages;
};

static const struct image_kind kinds[] = {
    {"busybox", "build-busybox.sh", NULL},
    {"debian", "build-debian.sh", NULL},
    {"debian-bench", "build-debian.sh", "gcc,libc6-dev,python3-minimal,openssl,make"},
};

static const struct image_kind *find_kind(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        if (strcmp(kinds[i].name, name) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

/* The builder reads its wishes from the environment. Called in the child. */
static int set_environment(const struct cli *cli, const struct image_kind *kind, const char *out,
                           const struct build_options *options)
{
    char packages[1024];
    int n =
        snprintf(packages, sizeof(packages), "%s%s%s", kind->packages != NULL ? kind->packages : "",
                 kind->packages != NULL && options->packages != NULL ? "," : "",
                 options->packages != NULL ? options->packages : "");

    if (n < 0 || (size_t)n >= sizeof(packages)) {
        return -ENAMETOOLONG;
    }
    if (setenv("CORBEL_OUT", out, 1) != 0 || setenv("CORBEL_CACHE", cli->cache, 1) != 0 ||
        setenv("CORBEL_KIND", kind->name, 1) != 0 || setenv("CORBEL_PACKAGES", packages, 1) != 0) {
        return -ENOMEM;
    }
    if (options->size != NULL && setenv("CORBEL_SIZE", options->size, 1) != 0) {
        return -ENOMEM;
    }
    if (options->mode != NULL && setenv("CORBEL_MODE", options->mode, 1) != 0) {
        return -ENOMEM;
    }
    return 0;
}

NORETURN static void exec_builder(const struct cli *cli, const struct image_kind *kind,
                                  const char *out, const struct build_options *options,
                                  pid_t parent)
{
    char script[PATH_MAX];
    struct err err = {0};

    /* The builder ends with us, whatever ends us. */
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent) {
        _exit(126);
    }
    if (setpgid(0, 0) != 0 || path_format(script, &err, "%s/%s", cli->builders, kind->script) < 0 ||
        set_environment(cli, kind, out, options) < 0) {
        _exit(126);
    }
    execl("/bin/sh", "sh", script, (char *)NULL);
    _exit(127);
}

/* Waits for the child; a signal that asks us to end goes to its whole group instead. */
static int wait_builder(pid_t child, const sigset_t *signals, int *ret_status)
{
    for (;;) {
        int signal = sigwaitinfo(signals, NULL);

        if (signal == SIGCHLD) {
            pid_t pid = waitpid(child, ret_status, WNOHANG);

            if (pid != 0) {
                return pid == child ? 0 : -errno;
            }
        } else if (signal > 0) {
            (void)kill(-child, signal);
        } else if (errno != EINTR) {
            return -errno;
        }
    }
}

/* Runs the builder; signals that would end us end it first, so that we still clean up. */
static int run_builder(const struct cli *cli, const struct image_kind *kind, const char *out,
                       const struct build_options *options, struct err *err)
{
    static const int waited[] = {SIGINT, SIGTERM, SIGHUP, SIGCHLD};
    sigset_t signals, old;
    pid_t self = getpid();
    pid_t child;
    int status = 0;
    int rc = 0;

    (void)sigemptyset(&signals);
    for (size_t i = 0; i < ARRAY_LEN(waited); i++) {
        (void)sigaddset(&signals, waited[i]);
    }
    (void)sigprocmask(SIG_BLOCK, &signals, &old);
    child = fork();
    if (child == 0) {
        (void)sigprocmask(SIG_SETMASK, &old, NULL);
        exec_builder(cli, kind, out, options, self);
    }
    if (child > 0) {
        (void)setpgid(child, child);
        rc = wait_builder(child, &signals, &status);
        /* Whatever the builder left running in its group goes with it. */
        (void)kill(-child, SIGKILL);
    } else {
        rc = -errno;
    }
    (void)sigprocmask(SIG_SETMASK, &old, NULL);
    if (rc < 0) {
        return err_set_errno(err, rc, "the image builder cannot be run");
    }
    if (WIFSIGNALED(status)) {
        return err_set(err, -EINTR, "the build was stopped by signal %d; nothing was kept",
                       WTERMSIG(status));
    }
    if (WEXITSTATUS(status) != 0) {
        return err_set(err, -EIO, "the image was not built (%s exited %d); nothing was kept",
                       kind->script, WEXITSTATUS(status));
    }
    return 0;
}

/* One build of a name at a time; the lock file stays, because removing it would race. */
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
        (void)fprintf(stderr, "waiting for another build of \"%s\" to end\n", name);
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

/* The build proper, under the lock of the name. */
static int build_locked(const struct cli *cli, const struct image_kind *kind, const char *name,
                        const struct build_options *options, struct err *err)
{
    char making[PATH_MAX];
    char place[PATH_MAX];
    int rc = path_format(making, err, "%s/.%s.making", cli->images, name);

    if (rc == 0) {
        rc = path_format(place, err, "%s/%s", cli->images, name);
    }
    /* A build that was killed outright leaves this behind; under the lock it is nobody's. */
    if (rc == 0) {
        rc = path_remove(making, err);
    }
    if (rc == 0) {
        rc = path_make_dirs(making, err);
    }
    if (rc == 0) {
        rc = run_builder(cli, kind, making, options, err);
    }
    if (rc == 0) {
        rc = publish(making, place, err);
    }
    if (rc < 0) {
        path_discard(making);
        return rc;
    }
    printf("image \"%s\" is ready in %s\n", name, place);
    return 0;
}

int image_build(const struct cli *cli, const char *kind_name, const struct build_options *options,
                struct err *err)
{
    const struct image_kind *kind = find_kind(kind_name);
    const char *name = options->name != NULL ? options->name : kind_name;
    CLEANUP_CLOSE int lock = -1;
    int rc;

    if (kind == NULL) {
        return err_set(err, -EINVAL,
                       "there is no recipe \"%.60s\"; there are busybox, debian and debian-bench",
                       kind_name);
    }
    if (cli->builders[0] == '\0') {
        return err_set(err, -ENXIO,
                       "the image builders are not installed beside corbel; "
                       "run make install");
    }
    rc = path_check_name(name, err);
    if (rc == 0) {
        rc = path_make_dirs(cli->images, err);
    }
    if (rc == 0) {
        rc = path_make_dirs(cli->cache, err);
    }
    if (rc == 0) {
        rc = lock_name(cli, name, &lock, err);
    }
    return rc < 0 ? rc : build_locked(cli, kind, name, options, err);
}
