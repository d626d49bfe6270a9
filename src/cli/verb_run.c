/* corbel run: makes the instance when it is new, starts it, and attaches its console. */
#include "cli/cli.h"
#include "cli/console.h"
#include "cli/image.h"
#include "cli/instance.h"
#include "cli/launch.h"
#include "cli/paths.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define READY_MAX_SECONDS 600

/* "debian" from the word, "guest" from --image /path/to/guest, unless --name says otherwise. */
static int choose_name(const struct run_options *options, const struct args *args, char *out,
                       struct err *err)
{
    const char *name = options->name;

    if (name == NULL && args->count > 0) {
        name = args->words[0];
    }
    if (name == NULL && options->image != NULL) {
        const char *slash = strrchr(options->image, '/');

        name = slash != NULL && slash[1] != '\0' ? slash + 1 : options->image;
    }
    if (name == NULL) {
        return err_set(err, -EINVAL, "say what to run: corbel run debian, or --image DIR");
    }
    if (path_check_name(name, err) < 0) {
        return -EINVAL;
    }
    return path_format(out, err, "%s", name);
}

static int find_image(const struct cli *cli, const struct run_options *options,
                      const struct args *args, const char *name, struct image *ret_image,
                      struct err *err)
{
    int rc = options->image != NULL
                 ? image_load(options->image, ret_image, err)
                 : image_find(cli, args->count > 0 ? args->words[0] : name, ret_image, err);

    if (rc == 0 && !ret_image->has_kernel) {
        rc = err_set(err, -EOPNOTSUPP,
                     "the image in %s has a disk but no kernel beside it, as none was found on it, "
                     "and machines are not booted by firmware yet",
                     ret_image->dir);
    }
    return rc;
}

/* Finds the instance, or makes it. Under the lock of its name. */
static int prepare_instance(const struct cli *cli, const struct run_options *options,
                            const struct args *args, const char *name, struct instance *instance,
                            struct err *err)
{
    struct image image;
    int rc = instance_find(cli, name, instance, err);

    if (rc == 0 && instance->is_running) {
        return err_set(err, -EEXIST,
                       "\"%s\" runs already (process %d); corbel console %s attaches to it, and "
                       "--name starts another",
                       name, instance->pid, name);
    }
    if (rc == 0 && options->fresh) {
        rc = instance_remove(instance, err);
        rc = rc == 0 ? -ENOENT : rc;
    }
    if (rc == 0) {
        (void)fprintf(
            stderr, "starting \"%s\" with the disk of its last run (--fresh begins anew)\n", name);
        return 0;
    }
    if (rc != -ENOENT) {
        return rc;
    }
    rc = find_image(cli, options, args, name, &image, err);
    if (rc == 0) {
        rc = instance_make(cli, name, &image, options->in_place, err);
    }
    if (rc == 0) {
        rc = instance_find(cli, name, instance, err);
    }
    if (rc == 0 && options->ephemeral) {
        rc = instance_mark_ephemeral(instance, err);
    }
    return rc;
}

static void apply_settings(const struct run_options *options, struct instance *instance)
{
    instance->cpus = options->cpus != 0 ? options->cpus : 1;
    (void)snprintf(instance->engine, sizeof(instance->engine), "%s",
                   options->engine != NULL ? options->engine : "auto");
    if (options->memory != NULL) {
        (void)snprintf(instance->memory, sizeof(instance->memory), "%s", options->memory);
    } else {
        (void)snprintf(instance->memory, sizeof(instance->memory), "%uM",
                       instance->image.memory_mib);
    }
}

static void print_access(const struct instance *instance)
{
    (void)fprintf(stderr, "\"%s\" runs (process %d)\n", instance->name, instance->pid);
    if (instance->ssh_port != 0) {
        (void)fprintf(stderr, "  ssh:      corbel ssh %s    (127.0.0.1 port %u)\n", instance->name,
                      instance->ssh_port);
        (void)fprintf(stderr, "  console:  corbel console %s, user %s, password in %s/%s\n",
                      instance->name, instance->image.user, instance->dir, "console_password");
    } else {
        (void)fprintf(stderr, "  console:  corbel console %s\n", instance->name);
    }
    (void)fprintf(stderr, "  stop:     corbel stop %s\n", instance->name);
}

/* Attached: the console until the machine ends, whose status is ours. */
static int attach(const struct instance *instance, int console, struct err *err)
{
    enum console_end end;
    int rc;

    if (isatty(STDIN_FILENO)) {
        (void)fprintf(stderr, "the console follows; Ctrl-] leaves it, the machine goes on\n");
    }
    rc = console_attach(console, &end, err);
    if (rc < 0) {
        return rc;
    }
    if (end == CONSOLE_END_DETACHED) {
        print_access(instance);
        return 0;
    }
    return launch_wait(instance);
}

static int start_and_follow(const struct cli *cli, const struct run_options *options,
                            struct instance *instance, int *lock, struct err *err)
{
    CLEANUP_CLOSE int console = -1;
    int rc = launch_monitor(cli, options, instance, &console, err);

    (void)close(steal_fd(lock));
    if (rc < 0) {
        return rc;
    }
    print_access(instance);
    if (options->wait_ready && instance->image.ready[0] != '\0') {
        rc = console_wait_text(console, instance->image.ready, READY_MAX_SECONDS, err);
        (void)putchar('\n');
    }
    if (rc < 0 || options->detach) {
        return rc;
    }
    return attach(instance, console, err);
}

int verb_run(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct run_options *options = values;
    struct instance instance;
    char name[PATH_MAX];
    CLEANUP_CLOSE int lock = -1;
    int rc = choose_name(options, args, name, err);

    instance_sweep(cli);
    if (rc == 0) {
        rc = instance_lock(cli, name, &lock, err);
    }
    if (rc == 0) {
        rc = prepare_instance(cli, options, args, name, &instance, err);
    }
    if (rc < 0) {
        return rc;
    }
    if (strlen(options->memory != NULL ? options->memory : "") >= sizeof(instance.memory) ||
        strlen(options->engine != NULL ? options->engine : "") >= sizeof(instance.engine)) {
        return err_set(err, -EINVAL, "--memory and --engine take a short word");
    }
    apply_settings(options, &instance);
    rc = start_and_follow(cli, options, &instance, &lock, err);
    instance_sweep(cli);
    return rc;
}
