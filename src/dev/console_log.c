#include "dev/console_log.h"

#include "base/alarm.h"
#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES 65536u
#define WAIT_NS 20000000ull /* a line comes byte by byte */

struct console_log {
    struct loop *loop;
    struct alarm *alarm;
    int fd;
    uint64_t file_len;
    bool has_failed; /* said once */
    uint8_t writing[BUFFER_BYTES];

    struct mutex mutex; /* LOCK_RANK_LEAF: all below */
    uint8_t buffer[BUFFER_BYTES];
    size_t len;
    uint64_t lost;
    bool is_urgent; /* half full: the loop has been told */
};

/* Keeps the end, at the beginning. */
static int shorten(struct console_log *log)
{
    CLEANUP_FREE uint8_t *kept = malloc(CONSOLE_LOG_KEEP_BYTES);
    ssize_t n = kept != NULL ? io_pread_full(log->fd, kept, CONSOLE_LOG_KEEP_BYTES,
                                             log->file_len - CONSOLE_LOG_KEEP_BYTES)
                             : -ENOMEM;
    int rc = n < 0 ? (int)n : io_pwrite_full(log->fd, kept, (size_t)n, 0);

    if (rc == 0 && ftruncate(log->fd, n) != 0) {
        rc = -errno;
    }
    log->file_len = rc == 0 ? (uint64_t)n : log->file_len;
    return rc;
}

static int append(struct console_log *log, const void *data, size_t len)
{
    int rc = 0;

    if (log->file_len + len > 2 * CONSOLE_LOG_KEEP_BYTES) {
        rc = shorten(log);
    }
    rc = rc < 0 ? rc : io_pwrite_full(log->fd, data, len, log->file_len);
    log->file_len += rc == 0 ? len : 0;
    return rc;
}

/* The loop's thread, or while it does not run. */
static void write_out(void *opaque)
{
    struct console_log *log = opaque;
    char gap[64];
    uint64_t lost;
    size_t len;
    int rc;

    mutex_lock(&log->mutex);
    len = log->len;
    lost = log->lost;
    memcpy(log->writing, log->buffer, len);
    log->len = 0;
    log->lost = 0;
    log->is_urgent = false;
    mutex_unlock(&log->mutex);
    rc = len != 0 ? append(log, log->writing, len) : 0;
    if (rc == 0 && lost != 0) {
        (void)snprintf(gap, sizeof(gap), "\n[%llu bytes came too fast]\n",
                       (unsigned long long)lost);
        rc = append(log, gap, strlen(gap));
    }
    if (rc < 0 && !log->has_failed) {
        log_warn("the console's log cannot be written: %s, ignoring", strerrordesc_np(-rc));
    }
    log->has_failed = rc < 0;
}

void console_log_add(struct console_log *log, const uint8_t *data, size_t len)
{
    bool is_first, is_urgent;
    size_t room;

    mutex_lock(&log->mutex);
    room = BUFFER_BYTES - log->len;
    is_first = log->len == 0 && len != 0;
    room = len < room ? len : room;
    memcpy(log->buffer + log->len, data, room);
    log->len += room;
    log->lost += len - room;
    is_urgent = !log->is_urgent && log->len > BUFFER_BYTES / 2;
    log->is_urgent |= is_urgent;
    mutex_unlock(&log->mutex);
    if (is_first) {
        alarm_arm(log->alarm, clock_monotonic_ns() + WAIT_NS);
    }
    if (is_urgent && loop_defer(log->loop, write_out, log) != 0) {
        log_debug("the console's log is written later");
    }
}

void console_log_destroy(struct console_log *log)
{
    if (log == NULL) {
        return;
    }
    alarm_destroy(log->alarm);
    write_out(log);
    if (log->fd >= 0) {
        (void)close(log->fd);
    }
    mutex_done(&log->mutex);
    free(log);
}

int console_log_create(struct loop *loop, int fd, struct console_log **ret_log)
{
    struct console_log *log;
    struct stat st;
    int rc;

    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return -EINVAL;
    }
    log = calloc(1, sizeof(*log));
    if (log == NULL) {
        return -ENOMEM;
    }
    log->loop = loop;
    log->file_len = (uint64_t)st.st_size;
    mutex_init(&log->mutex, LOCK_RANK_LEAF);
    log->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    rc = log->fd < 0 ? -errno : alarm_create(loop, write_out, log, &log->alarm);
    if (rc < 0) {
        console_log_destroy(log);
        return rc;
    }
    *ret_log = log;
    return 0;
}
