/* What belongs to no record: of instances, volumes and snapshots whose last step was cut off. */
#include "compute/limits.h"

#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"
#include "storage/pool.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>

#define KILL_WAIT_MS 10000

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

/* Whether an entry is that of an object that there is not: "i-...", ".i-....making". */
static bool is_orphan(const char *name, enum kind kind, const json_t *known)
{
    char id[ID_BYTES];
    const char *prefix = kind_spec(kind)->prefix;
    const char *start = name + (name[0] == '.');

    if (strncmp(start, prefix, strlen(prefix)) != 0) {
        return false;
    }
    (void)snprintf(id, sizeof(id), "%.*s", (int)strcspn(start, "."), start);
    return json_object_get(known, id) == NULL;
}

/* After a restored database an orphan may be an object that is younger than the copy. */
static bool keeps_orphans(const struct compute *compute)
{
    char path[PATH_MAX];
    struct err ignored;

    return path_format(path, &ignored, "%s/" COMPUTE_RESTORED_MARK, compute->state_dir) < 0 ||
           path_exists(path);
}

static void sweep(struct compute *compute, const char *dir, enum kind kind, bool has_monitors,
                  const json_t *known)
{
    struct dirent **entries = NULL;
    int n = scandir(dir, &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        struct err err;

        if (is_orphan(entries[i]->d_name, kind, known) &&
            path_format(path, &err, "%s/%s", dir, entries[i]->d_name) == 0) {
            if (keeps_orphans(compute)) {
                log_warn("keeping %s, which belongs to no %s since the records were restored", path,
                         kind_spec(kind)->name);
                free(entries[i]);
                continue;
            }
            if (has_monitors) {
                end_orphan(path);
                limits_sweep(compute, entries[i]->d_name, path);
            }
            log_warn("removing %s, which belongs to no %s", path, kind_spec(kind)->name);
            path_discard(path);
        }
        free(entries[i]);
    }
    free(entries);
}

/* A volume of the pool is kept for its record, or for snapshots of it. */
static void sweep_pool(struct compute *compute, const json_t *known)
{
    struct pool *pool = NULL;
    struct pool_volume *list = NULL;
    unsigned count = 0;
    struct err err = {.code = 0};
    int rc = volume_open_pool(compute, true, &pool, &err);

    rc = rc < 0 ? rc : pool_list(pool, &list, &count, &err);
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        if (is_orphan(list[i].name, KIND_VOLUME, known) && list[i].snapshots == 0 &&
            !keeps_orphans(compute)) {
            log_warn("removing the disk of %s, which there is no more", list[i].name);
            rc = pool_delete_volume(pool, list[i].name, &err);
        }
    }
    if (rc < 0) {
        log_warn("orphans of volumes are not removed: %s, ignoring", err.text);
    }
    free(list);
    pool_close(pool);
}

static int note_all(struct compute *compute, enum kind kind, json_t *known)
{
    struct fault fault = {.code = FAULT_NONE};
    int rc = object_each(compute, kind, NULL, note_id, known, &fault);

    if (rc < 0) {
        log_warn("orphans are not looked for: %s, ignoring", fault.text);
    }
    return rc;
}

void reconcile_sweep(struct compute *compute)
{
    static const struct {
        enum kind kind;
        const char *dir;
        bool is_runtime;
    } places[] = {
        {KIND_INSTANCE, "vm", true},
        {KIND_INSTANCE, "machines", false},
        {KIND_SNAPSHOT, "snapshots", false},
    };
    json_t *known = json_object();
    struct err ignored;
    int rc = note_all(compute, KIND_INSTANCE, known);

    rc = rc < 0 ? rc : note_all(compute, KIND_VOLUME, known);
    rc = rc < 0 ? rc : note_all(compute, KIND_SNAPSHOT, known);
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(places); i++) {
        char dir[PATH_MAX];

        if (path_format(dir, &ignored, "%s/%s",
                        places[i].is_runtime ? compute->runtime_dir : compute->state_dir,
                        places[i].dir) == 0) {
            sweep(compute, dir, places[i].kind, places[i].is_runtime, known);
        }
    }
    if (rc == 0) {
        sweep_pool(compute, known);
    }
    json_decref(known);
}
