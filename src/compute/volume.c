/* Volumes: made, grown and removed in the pool of this host; orphans of instances. */
#include "compute/compute_int.h"

#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"
#include "storage/pool.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>

#define BYTES_PER_GIB (1ull << 30)
#define LOOK_AGAIN 1
#define KILL_WAIT_MS 10000

static int open_pool(struct compute *compute, bool for_change, struct pool **ret_pool,
                     struct err *err)
{
    char path[PATH_MAX];
    struct pool_config config = {.name = "volumes", .kind = "dir", .path = path};
    int rc = path_format(path, err, "%s/volumes", compute->state_dir);

    return rc < 0 ? rc : pool_open(&config, for_change, err, ret_pool);
}

int volume_path(struct compute *compute, const char *id, char out[PATH_MAX], struct err *err)
{
    struct pool *pool = NULL;
    struct pool_volume volume;
    int rc = open_pool(compute, false, &pool, err);

    rc = rc < 0 ? rc : pool_find(pool, id, &volume, err);
    rc = rc < 0 ? rc : path_format(out, err, "%s", volume.path);
    pool_close(pool);
    return rc;
}

static uint64_t wanted_bytes(const struct object *volume)
{
    return (uint64_t)object_number(volume, "size_gib") * BYTES_PER_GIB;
}

/* Made already, before a daemon ended: fine. */
static int create(struct pool *pool, const struct object *volume, struct err *err)
{
    int rc = pool_create_volume(pool, volume->id, wanted_bytes(volume), err);

    return rc == -EEXIST ? 0 : rc;
}

static int resize(struct pool *pool, const struct object *volume, struct err *err)
{
    return pool_resize_volume(pool, volume->id, wanted_bytes(volume), false, err);
}

static int delete (struct pool *pool, const struct object *volume, struct err *err)
{
    int rc = pool_delete_volume(pool, volume->id, err);

    return rc == -ENOENT ? 0 : rc;
}

/* What a volume's state asks for. */
static const struct work {
    const char *state;
    enum step step, note;
    int (*run)(struct pool *pool, const struct object *volume, struct err *err);
    const char *action, *text;
} works[] = {
    {"creating", STEP_CREATE_VOLUME, STEP_NOTE_VOLUME, create, "volume.created", "is there"},
    {"resizing", STEP_RESIZE_VOLUME, STEP_NOTE_VOLUME, resize, "volume.resized", "has grown"},
    {"deleting", STEP_DELETE_VOLUME, STEP_FORGET_VOLUME, delete, "volume.deleted", "is gone"},
};

static const struct work *find_work(const struct object *volume)
{
    for (size_t i = 0; i < ARRAY_LEN(works); i++) {
        if (object_is(volume, "state", works[i].state)) {
            return &works[i];
        }
    }
    return NULL;
}

static int do_work(struct task *task, const struct work *work, const struct object *volume,
                   struct err *err)
{
    struct pool *pool = NULL;
    int rc = task_step(task, work->step, false);

    rc = rc < 0 ? rc : open_pool(task->compute, true, &pool, err);
    rc = rc < 0 ? rc : work->run(pool, volume, err);
    pool_close(pool);
    rc = rc < 0 ? rc : task_step(task, work->step, true);
    err->code = rc; /* of what was done already, too, there is a sentence */
    return rc;
}

/* How large it really is, when it did not become larger. */
static void correct_size(struct task *task, struct object *volume)
{
    struct pool *pool = NULL;
    struct pool_volume found;
    struct err ignored;

    if (open_pool(task->compute, false, &pool, &ignored) == 0 &&
        pool_find(pool, volume->id, &found, &ignored) == 0) {
        object_set_number(volume, "size_gib", (int64_t)(found.size_bytes / BYTES_PER_GIB));
    }
    pool_close(pool);
}

static void collect(struct change *change, struct task *task, const struct work *work,
                    struct object *volume, const struct err *err)
{
    struct fault fault = {.code = FAULT_INTERNAL};

    if (err->code != 0) {
        (void)fault_set_err(&fault, err->code, err);
        log_error("%s: %s", task->id, err->text);
        object_set_text(volume, "reason", err->text);
        change_event(change, volume, "error", "volume.failed", NULL, "%s", err->text);
        change_end_operation(change, volume, &fault);
        object_set_text(volume, "state", work->step == STEP_RESIZE_VOLUME ? "available" : "failed");
        if (work->step == STEP_RESIZE_VOLUME) {
            correct_size(task, volume);
        }
        change_put(change, volume);
        return;
    }
    object_clear(volume, "reason");
    change_event(change, volume, "info", work->action, NULL, "volume \"%s\" %s",
                 object_text(volume, "name"), work->text);
    change_end_operation(change, volume, NULL);
    if (work->note == STEP_FORGET_VOLUME) {
        change_drop_name(change, KIND_VOLUME, volume->project, object_text(volume, "name"));
        change_remove(change, volume);
    } else {
        object_set_text(volume, "state", "available");
        change_put(change, volume);
    }
}

static int look(struct task *task)
{
    struct fault fault = {.code = FAULT_NONE};
    struct err err = {.code = 0};
    struct object volume = {0};
    const struct work *work;
    struct change change;
    int rc = object_load(task->compute, KIND_VOLUME, task->project, task->id, &volume, &fault);

    if (rc < 0) {
        return rc == -ENOENT ? 0 : rc;
    }
    work = find_work(&volume);
    if (work == NULL) {
        object_done(&volume);
        return 0;
    }
    rc = do_work(task, work, &volume, &err);
    if (rc == -EINTR) {
        object_done(&volume);
        return rc;
    }
    change_begin(&change, task->compute);
    collect(&change, task, work, &volume, &err);
    object_done(&volume);
    rc = task_step(task, work->note, false);
    if (rc < 0) {
        change_drop(&change);
        return rc;
    }
    rc = change_commit(&change, &fault);
    if (rc < 0) {
        return rc == -ESTALE ? LOOK_AGAIN : rc;
    }
    return task_step(task, work->note, true);
}

int reconcile_volume(struct task *task)
{
    int rc;

    do {
        rc = look(task);
    } while (rc == LOOK_AGAIN);
    return rc;
}

/* ---- orphans ---- */

static int note_id(void *opaque, struct object *object)
{
    (void)json_object_set_new(opaque, object->id, json_true());
    return 0;
}

/* A monitor that no record knows of. */
static void end_orphan(const char *dir)
{
    char path[PATH_MAX];
    struct err ignored;
    json_t *run = NULL;
    CLEANUP_CLOSE int fd = -1;

    if (path_format(path, &ignored, "%s/run.json", dir) == 0) {
        run = json_load_file(path, 0, NULL);
    }
    fd = process_open((pid_t)json_integer_value(json_object_get(run, "pid")),
                      (uint64_t)json_integer_value(json_object_get(run, "start_ticks")));
    json_decref(run);
    if (fd >= 0) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};

        log_warn("a monitor in %s belongs to no instance; ending it", dir);
        if (pidfd_send_signal(fd, SIGKILL, NULL, 0) == 0) {
            (void)poll(&pfd, 1, KILL_WAIT_MS);
        }
    }
}

/* Whether an entry is that of an instance that there is not: "i-...", ".i-....making". */
static bool is_orphan(const char *name, const json_t *known)
{
    char id[ID_BYTES];
    size_t len = strcspn(name + (name[0] == '.'), ".");

    if (strncmp(name, "i-", 2) != 0 && strncmp(name, ".i-", 3) != 0) {
        return false;
    }
    (void)snprintf(id, sizeof(id), "%.*s", (int)len, name + (name[0] == '.'));
    return json_object_get(known, id) == NULL;
}

static void sweep(const char *dir, bool has_monitors, const json_t *known)
{
    struct dirent **entries = NULL;
    int n = scandir(dir, &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        struct err err;

        if (is_orphan(entries[i]->d_name, known) &&
            path_format(path, &err, "%s/%s", dir, entries[i]->d_name) == 0) {
            if (has_monitors) {
                end_orphan(path);
            }
            log_warn("removing %s, which belongs to no instance", path);
            path_discard(path);
        }
        free(entries[i]);
    }
    free(entries);
}

void reconcile_sweep(struct compute *compute)
{
    struct fault fault = {.code = FAULT_NONE};
    json_t *known = json_object();
    char dir[PATH_MAX];
    struct err err;

    if (object_each(compute, KIND_INSTANCE, NULL, note_id, known, &fault) < 0) {
        log_warn("orphans are not looked for: %s, ignoring", fault.text);
    } else {
        if (path_format(dir, &err, "%s/vm", compute->runtime_dir) == 0) {
            sweep(dir, true, known);
        }
        if (path_format(dir, &err, "%s/machines", compute->state_dir) == 0) {
            sweep(dir, false, known);
        }
    }
    json_decref(known);
}
