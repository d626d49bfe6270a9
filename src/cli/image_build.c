#include "cli/image.h"

#include "cli/paths.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* In the single file. */
#define BUILDERS "builders/"
#define GUESTS "guests/"

#define SHELL "/bin/sh" /* of the builders */

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
    if (options->no_cache && setenv("CORBEL_NO_CACHE", "1", 1) != 0) {
        return -ENOMEM;
    }
    return 0;
}

/* What the maker of images calls to fill the directory. */
struct build_job {
    const struct cli *cli;
    const struct image_kind *kind;
    const struct build_options *options;
    const char *builders; /* their directory */
};

NORETURN static void exec_builder(const struct build_job *job, const char *out, pid_t parent)
{
    char script[PATH_MAX];
    struct err err = {0};

    /* The builder ends with us, whatever ends us. */
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent) {
        _exit(126);
    }
    if (setpgid(0, 0) != 0 ||
        path_format(script, &err, "%s/%s", job->builders, job->kind->script) < 0 ||
        set_environment(job->cli, job->kind, out, job->options) < 0) {
        _exit(126);
    }
    execl(SHELL, "sh", script, (char *)NULL);
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
static int run_builder(const struct build_job *job, const char *out, struct err *err)
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
        exec_builder(job, out, self);
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
                       job->kind->script, WEXITSTATUS(status));
    }
    return 0;
}

/* The builders of the single file are files while they are used. */
static int run_inside_builder(struct build_job *job, const char *out, struct err *err)
{
    char dir[PATH_MAX];
    int rc = path_format(dir, err, "%s/builders-XXXXXX", job->cli->cache);

    if (rc == 0 && mkdtemp(dir) == NULL) {
        rc = err_set_errno(err, -errno, "%s cannot be made", dir);
    }
    if (rc < 0) {
        return rc;
    }
    job->builders = dir;
    rc = bundle_unpack(job->cli->bundle, BUILDERS, dir, err);
    rc = rc < 0 ? rc : run_builder(job, out, err);
    path_discard(dir);
    return rc;
}

static int fill_by_builder(void *opaque, const char *dir, struct err *err)
{
    struct build_job *job = opaque;

    return job->cli->bundle != NULL ? run_inside_builder(job, dir, err)
                                    : run_builder(job, dir, err);
}

/* ---- the single file's own guests ---- */

static int fill_from_inside(void *opaque, const char *dir, struct err *err)
{
    const struct build_job *job = opaque;
    char prefix[80];

    (void)snprintf(prefix, sizeof(prefix), GUESTS "%.60s/", job->kind->name);
    return bundle_unpack(job->cli->bundle, prefix, dir, err);
}

bool image_is_inside(const struct cli *cli, const char *kind)
{
    char name[100];

    (void)snprintf(name, sizeof(name), GUESTS "%.60s/image.json", kind);
    return bundle_find(cli->bundle, name) != NULL;
}

int image_take_inside(const struct cli *cli, const char *kind, struct err *err)
{
    struct build_job job = {.cli = cli, .kind = find_kind(kind)};
    const struct image_maker maker = {
        .fill = fill_from_inside, .opaque = &job, .may_replace = true, .is_aside = true};

    return job.kind == NULL ? err_set(err, -ENOENT, "there is no recipe \"%.60s\"", kind)
                            : image_make(cli, kind, &maker, err);
}

static bool has_wishes(const struct build_options *options)
{
    return options->size != NULL || options->mode != NULL || options->packages != NULL ||
           options->no_cache;
}

int image_build(const struct cli *cli, const char *kind_name, const struct build_options *options,
                struct err *err)
{
    const struct image_kind *kind = find_kind(kind_name);
    struct build_job job = {
        .cli = cli, .kind = kind, .options = options, .builders = cli->builders};
    struct image_maker maker = {.fill = fill_by_builder, .opaque = &job, .may_replace = true};

    if (kind == NULL) {
        return err_set(err, -EINVAL,
                       "there is no recipe \"%.60s\"; there are busybox, debian and debian-bench",
                       kind_name);
    }
    if (image_is_inside(cli, kind_name) && !has_wishes(options)) {
        maker.fill = fill_from_inside;
    } else if (cli->builders[0] == '\0' && cli->bundle == NULL) {
        return err_set(err, -ENXIO,
                       "the image builders are not installed beside corbel; "
                       "run make install");
    } else if (access(SHELL, X_OK) != 0) {
        return err_set(err, -ENXIO,
                       "images are built on Debian and Ubuntu, by a shell, apt and mmdebstrap, and "
                       "this host has no " SHELL "; corbel image catalogue lists images that need "
                       "none of that%s",
                       image_is_inside(cli, "busybox") ? ", and busybox is inside this program"
                                                       : "");
    }
    return image_make(cli, options->name != NULL ? options->name : kind_name, &maker, err);
}
