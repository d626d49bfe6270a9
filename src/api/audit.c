/* The audit log: a line for each call, also for those that were refused. */
#include "api/api_int.h"
#include "base/io.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { AUDIT_MAX_BYTES = 64 << 20, AUDIT_KEPT = 4 };

struct audit {
    struct mutex mutex;
    int fd;
    off_t size;
    char path[];
};

static int open_log(struct audit *audit)
{
    struct stat stat;
    audit->fd = open(audit->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (audit->fd < 0 || fstat(audit->fd, &stat) != 0) {
        return -errno;
    }
    audit->size = stat.st_size;
    return 0;
}

int audit_open(const char *path, struct audit **ret_audit, struct err *err)
{
    size_t len = strlen(path);
    struct audit *audit = calloc(1, sizeof(*audit) + len + 1);
    if (audit == NULL) {
        return err_set(err, -ENOMEM, "cannot open the audit log: not enough memory");
    }
    memcpy(audit->path, path, len);
    mutex_init(&audit->mutex, LOCK_RANK_LEAF);
    int error = open_log(audit);
    if (error != 0) {
        (void)err_set_errno(err, error, "cannot open the audit log %s", path);
        audit_close(audit);
        return error;
    }
    *ret_audit = audit;
    return 0;
}

void audit_close(struct audit *audit)
{
    if (audit != NULL) {
        if (audit->fd >= 0) {
            (void)close(audit->fd);
        }
        mutex_done(&audit->mutex);
        free(audit);
    }
}

/* audit.log becomes audit.log.1, that .2, and so on; the last one goes. */
static void rotate_locked(struct audit *audit)
{
    char from[4096], to[4096];
    for (int i = AUDIT_KEPT; i > 0; i--) {
        (void)snprintf(to, sizeof(to), "%s.%d", audit->path, i);
        (void)snprintf(from, sizeof(from), i > 1 ? "%s.%d" : "%s", audit->path, i - 1);
        (void)rename(from, to);
    }
    (void)close(audit->fd);
    if (open_log(audit) != 0) {
        log_error("the audit log %s cannot be opened any more", audit->path);
    }
}

void audit_write(struct audit *audit, const struct api_call *call, int status, const char *code)
{
    if (audit == NULL) {
        return;
    }
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    const struct http_request *request = call->request;
    json_t *line = json_pack("{s:f, s:s, s:s, s:s, s:s, s:s, s:s, s:i}", "time",
                             (double)now.tv_sec + (double)now.tv_nsec / 1e9, "request",
                             call->request_id, "actor", call->identity.actor, "from",
                             request->peer.is_unix ? "unix" : request->peer.address, "operation",
                             call->operation != NULL ? call->operation->id : "none", "method",
                             request->method, "path", request->path, "status", status);
    if (line != NULL && code != NULL) {
        (void)json_object_set_new(line, "error", json_string(code));
    }
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
    json_decref(line);
    if (text == NULL) {
        log_error("a call could not be written to the audit log: not enough memory");
        return;
    }
    size_t len = strlen(text);
    text[len] = '\n';
    mutex_lock(&audit->mutex);
    if (audit->size > AUDIT_MAX_BYTES) {
        rotate_locked(audit);
    }
    if (audit->fd < 0 || io_write_full(audit->fd, text, len + 1) != 0) {
        log_error("a call could not be written to the audit log %s", audit->path);
    }
    audit->size += (off_t)len + 1;
    mutex_unlock(&audit->mutex);
    free(text);
}
