#include "cli/instance.h"

#include "base/io.h"
#include "base/loop.h"
#include "base/process.h"
#include "cli/paths.h"
#include "storage/copy.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define RUN_JSON_MAX_BYTES 4096
#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

bool instance_is_alive(const struct instance *instance)
{
    return process_is_alive(instance->pid, instance->start_ticks);
}

int instance_open_process(const struct instance *instance)
{
    return process_open(instance->pid, instance->start_ticks);
}

bool instance_wait_end(const struct instance *instance, unsigned seconds)
{
    CLEANUP_CLOSE int fd = instance_open_process(instance);
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    uint64_t deadline = clock_monotonic_ns() + seconds * NS_PER_S;
    uint64_t now;
    int rc = 0;

    while (fd >= 0 && rc <= 0 && (now = clock_monotonic_ns()) < deadline) {
        rc = poll(&pfd, 1, (int)((deadline - now) / NS_PER_MS) + 1);
    }
    return !instance_is_alive(instance);
}

static void copy_member(const json_t *object, const char *key, char *out, size_t out_size)
{
    const char *text = json_string_value(json_object_get(object, key));

    (void)snprintf(out, out_size, "%s", text != NULL ? text : "");
}

/* Fills in the running half; an absent or damaged run.json means that it does not run. */
static void load_run(struct instance *instance)
{
    char path[PATH_MAX];
    struct err ignored;
    CLEANUP_FREE void *data = NULL;
    size_t len;
    json_t *object;

    if (path_format(path, &ignored, "%s/run.json", instance->runtime) < 0 ||
        io_read_file(path, RUN_JSON_MAX_BYTES, &data, &len) < 0) {
        return;
    }
    object = json_loadb(data, len, 0, NULL);
    instance->pid = (pid_t)json_integer_value(json_object_get(object, "pid"));
    instance->start_ticks = (uint64_t)json_integer_value(json_object_get(object, "start_ticks"));
    instance->ssh_port = (unsigned)json_integer_value(json_object_get(object, "ssh_port"));
    instance->cpus = (unsigned)json_integer_value(json_object_get(object, "cpus"));
    copy_member(object, "memory", instance->memory, sizeof(instance->memory));
    copy_member(object, "engine", instance->engine, sizeof(instance->engine));
    json_decref(object);
    instance->is_running = instance_is_alive(instance);
}

int instance_save(const struct instance *instance, struct err *err)
{
    char path[PATH_MAX];
    char temporary[PATH_MAX];
    json_t *object;
    int rc = path_format(path, err, "%s/run.json", instance->runtime);

    if (rc == 0) {
        rc = path_format(temporary, err, "%s/.run.json", instance->runtime);
    }
    if (rc < 0) {
        return rc;
    }
    object =
        json_pack("{s:i, s:I, s:i, s:i, s:s, s:s}", "pid", (int)instance->pid, "start_ticks",
                  (json_int_t)instance->start_ticks, "ssh_port", (int)instance->ssh_port, "cpus",
                  (int)instance->cpus, "memory", instance->memory, "engine", instance->engine);
    rc = object != NULL && json_dump_file(object, temporary, 0) == 0 ? 0 : -EIO;
    json_decref(object);
    if (rc == 0 && rename(temporary, path) != 0) {
        rc = -errno;
    }
    return rc < 0 ? err_set_errno(err, rc, "%s cannot be written", path) : 0;
}

static int name_instance(const struct cli *cli, const char *name, struct instance *instance,
                         struct err *err)
{
    int rc = path_check_name(name, err);

    memset(instance, 0, sizeof(*instance));
    if (rc == 0) {
        rc = path_format(instance->dir, err, "%s/%s", cli->instances, name);
    }
    if (rc == 0) {
        rc = path_format(instance->runtime, err, "%s/%s", cli->runtime, name);
    }
    if (rc == 0) {
        (void)snprintf(instance->name, sizeof(instance->name), "%s", name);
    }
    return rc;
}

int instance_find(const struct cli *cli, const char *name, struct instance *ret_instance,
                  struct err *err)
{
    struct instance instance;
    int rc = name_instance(cli, name, &instance, err);

    if (rc < 0) {
        return rc;
    }
    if (!path_exists(instance.dir)) {
        return err_set(err, -ENOENT, "there is no instance \"%s\"; corbel list shows them", name);
    }
    rc = image_load(instance.dir, &instance.image, err);
    if (rc < 0) {
        return rc;
    }
    load_run(&instance);
    *ret_instance = instance;
    return 0;
}

int instance_find_running(const struct cli *cli, const char *name, struct instance *ret_instance,
                          struct err *err)
{
    struct instance instance = {.pid = 0};
    int rc = instance_find(cli, name, &instance, err);

    if (rc == 0 && !instance.is_running) {
        rc = err_set(err, -ENOENT, "\"%s\" does not run; start it: corbel run --name %s", name,
                     name);
    }
    if (rc == 0) {
        *ret_instance = instance;
    }
    return rc;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int instance_find_only(const struct cli *cli, struct instance *ret_instance, struct err *err)
{
    struct dirent **entries = NULL;
    struct instance found = {.pid = 0};
    unsigned running = 0;
    int n = scandir(cli->instances, &entries, is_visible, alphasort);

    for (int i = 0; i < n; i++) {
        struct instance instance;
        struct err ignored;

        if (instance_find_running(cli, entries[i]->d_name, &instance, &ignored) == 0) {
            found = instance;
            running++;
        }
        free(entries[i]);
    }
    free(entries);
    if (running == 0) {
        return err_set(err, -ENOENT, "no instance runs; start one: corbel run debian");
    }
    if (running > 1) {
        return err_set(err, -EINVAL, "%u instances run; say which (corbel list shows them)",
                       running);
    }
    *ret_instance = found;
    return 0;
}

int instance_find_args(const struct cli *cli, const struct args *args,
                       struct instance *ret_instance, struct err *err)
{
    if (args->count == 0) {
        return instance_find_only(cli, ret_instance, err);
    }
    return instance_find_running(cli, args->words[0], ret_instance, err);
}

int instance_lock(const struct cli *cli, const char *name, int *ret_fd, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_check_name(name, err);

    if (rc == 0) {
        rc = path_make_dirs(cli->instances, err);
    }
    if (rc == 0) {
        rc = path_format(path, err, "%s/.%s.lock", cli->instances, name);
    }
    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        return err_set(err, -EBUSY, "another corbel is just starting or removing \"%s\"", name);
    }
    *ret_fd = steal_fd(&fd);
    return 0;
}

int instance_make(const struct cli *cli, const char *name, const struct image *image, bool in_place,
                  struct err *err)
{
    static const char *const linked[] = {"image.json", "vmlinuz",     "initrd",
                                         "ssh_key",    "known_hosts", "console_password"};
    struct instance instance;
    char making[PATH_MAX];
    int rc = name_instance(cli, name, &instance, err);

    if (rc == 0) {
        rc = path_format(making, err, "%s/.%s.making", cli->instances, name);
    }
    if (rc == 0) {
        rc = path_remove(making, err);
    }
    if (rc == 0) {
        rc = path_make_dirs(making, err);
    }
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(linked); i++) {
        rc = copy_link_file(image->dir, making, linked[i], err);
    }
    if (rc == 0 && image->has_disk) {
        rc = in_place ? copy_symlink_file(image->dir, making, "disk.raw", err)
                      : copy_sparse_file(image->dir, making, "disk.raw", err);
    }
    if (rc == 0 && rename(making, instance.dir) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", instance.dir);
    }
    if (rc < 0) {
        path_discard(making);
    }
    return rc;
}

int instance_remove(const struct instance *instance, struct err *err)
{
    int rc = path_remove(instance->runtime, err);

    return rc < 0 ? rc : path_remove(instance->dir, err);
}

int instance_mark_ephemeral(const struct instance *instance, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(path, err, "%s/ephemeral", instance->dir);

    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? err_set_errno(err, -errno, "%s cannot be written", path) : 0;
}

/* Under the lock of its name, because a start may be under way. */
static void sweep_one(const struct cli *cli, const char *name)
{
    struct instance instance = {0};
    struct err ignored;
    char mark[PATH_MAX];
    CLEANUP_CLOSE int lock = -1;

    if (instance_lock(cli, name, &lock, &ignored) < 0 ||
        instance_find(cli, name, &instance, &ignored) < 0 || instance.is_running ||
        path_format(mark, &ignored, "%s/ephemeral", instance.dir) < 0 || !path_exists(mark)) {
        return;
    }
    path_discard(instance.runtime);
    path_discard(instance.dir);
}

void instance_sweep(const struct cli *cli)
{
    struct dirent **entries = NULL;
    int n = scandir(cli->instances, &entries, is_visible, alphasort);

    for (int i = 0; i < n; i++) {
        sweep_one(cli, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}
