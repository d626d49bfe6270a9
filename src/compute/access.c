/* How people get into an instance, and what its console and its monitor said. */
#include "compute/compute_int.h"

#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "storage/guest_image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define TAIL_BYTES (256u << 10)
#define MONITOR_LOG "vmm.log"
#define SMALL_FILE_BYTES 16384u

static void add_file(json_t *answer, const char *name, const char *dir, const char *file)
{
    char path[PATH_MAX];
    struct err ignored;
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;

    if (path_format(path, &ignored, "%s/%s", dir, file) == 0 &&
        io_read_file(path, SMALL_FILE_BYTES, &data, &len) == 0) {
        char *text = data;

        (void)json_object_set_new(answer, name, json_string(text)); /* none when it is no UTF-8 */
    }
}

int compute_access(struct compute *compute, const struct compute_call *call, const char *id,
                   json_t **ret_access, struct fault *fault)
{
    char dir[PATH_MAX];
    struct object instance = {0};
    struct image image;
    struct err err;
    json_t *access;
    int rc = object_find(compute, KIND_INSTANCE, call->project, id, &instance, fault);

    if (rc < 0) {
        return rc;
    }
    rc = directory_path(compute, instance.id, dir, &err);
    rc = rc < 0 ? rc : image_load(dir, &image, &err);
    if (rc < 0) {
        rc = fault_set(fault, FAULT_CONFLICT, "state", "the instance \"%s\" is %s and has no disk",
                       object_text(&instance, "name"), object_text(&instance, "state"));
        object_done(&instance);
        return rc;
    }
    access = json_pack("{s:s, s:s, s:I}", "user", image.user, "ready", image.ready, "ssh_port",
                       (json_int_t)object_number(&instance, "ssh_port"));
    add_file(access, "ssh_key", dir, "ssh_key");
    add_file(access, "known_hosts", dir, "known_hosts");
    add_file(access, "console_password", dir, "console_password");
    object_done(&instance);
    *ret_access = access;
    return access != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}

static int read_tail(const char *dir, const char *name, void **ret_text, size_t *ret_len)
{
    char path[PATH_MAX];
    struct err ignored;
    int rc = path_format(path, &ignored, "%s/%s", dir, name);

    return rc < 0 ? rc : io_read_tail(path, TAIL_BYTES, ret_text, ret_len);
}

/* As UTF-8 whatever is in it, from the beginning of a line; NULL: there is none. */
static json_t *tail_of(const char *dir, const char *name)
{
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;
    char *text, *begin;

    if (read_tail(dir, name, &data, &len) < 0) {
        return NULL;
    }
    text = data;
    for (char *p = text; p < text + len; p++) {
        bool is_plain = (*p >= ' ' && *p != 0x7f) || *p == '\n' || *p == '\t' || *p == 0x1b;

        *p = is_plain ? *p : *p == '\r' ? ' ' : '?'; /* bytes above 0x7f are negative */
    }
    begin = len == TAIL_BYTES ? strchr(text, '\n') : NULL;
    return json_string(begin != NULL ? begin + 1 : text);
}

void log_keep(struct compute *compute, const char *id)
{
    char dir[PATH_MAX], runtime[PATH_MAX], path[PATH_MAX];
    CLEANUP_FREE void *text = NULL;
    CLEANUP_CLOSE int fd = -1;
    struct err err;
    size_t len = 0;

    if (directory_path(compute, id, dir, &err) < 0 ||
        machine_path(compute, id, runtime, &err) < 0 ||
        path_format(path, &err, "%s/" MONITOR_LOG, dir) < 0 ||
        read_tail(runtime, MONITOR_LOG, &text, &len) < 0 || len == 0) {
        return; /* it said nothing: what an earlier one said stays */
    }
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 ? errno != ENOENT : io_write_full(fd, text, len) < 0) {
        log_warn("%s: what its monitor said cannot be kept, ignoring", id);
    }
}

int compute_log(struct compute *compute, const struct compute_call *call, const char *id,
                json_t **ret_log, struct fault *fault)
{
    char dir[PATH_MAX], runtime[PATH_MAX];
    struct object instance = {0};
    struct err err;
    json_t *monitor;
    int rc = object_find(compute, KIND_INSTANCE, call->project, id, &instance, fault);

    if (rc < 0) {
        return rc;
    }
    rc = machine_path(compute, instance.id, runtime, &err);
    rc = rc < 0 ? rc : directory_path(compute, instance.id, dir, &err);
    object_done(&instance);
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    monitor = tail_of(runtime, MONITOR_LOG);
    monitor = monitor != NULL ? monitor : tail_of(dir, MONITOR_LOG);
    *ret_log =
        json_pack("{s:o*, s:o*}", "monitor", monitor, "serial", tail_of(dir, MACHINE_SERIAL_LOG));
    return *ret_log != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}
