#include "rpc/control_client.h"

#include "base/io.h"
#include "rpc/unix_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define ANSWER_MAX_BYTES 65536

/* Up to the newline: how many bytes, 0 when the monitor has gone without a whole line. */
static size_t read_line(int fd, char *buf, size_t size)
{
    size_t used = 0;

    errno = 0;
    while (used < size) {
        ssize_t n = read(fd, buf + used, size - used);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return 0;
        }
        used += (size_t)n;
        if (buf[used - 1] == '\n') {
            return used;
        }
    }
    return 0;
}

/* For each read and write: a monitor that stands still must not hold up its caller for ever. */
static int set_timeout(int fd, unsigned timeout_ms)
{
    const struct timeval limit = {.tv_sec = timeout_ms / 1000,
                                  .tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000};

    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0 ||
                   setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0
               ? -errno
               : 0;
}

int control_ask(const char *dir, const char *name, const char *line, unsigned timeout_ms,
                json_t **ret_answer, struct err *err)
{
    CLEANUP_CLOSE int fd = unix_socket_connect(dir, "control.sock", err);
    char text[ANSWER_MAX_BYTES];
    json_t *answer = NULL;
    size_t used;
    int rc;

    if (fd < 0) {
        return fd;
    }
    rc = set_timeout(fd, timeout_ms);
    if (rc == 0) {
        rc = io_write_full(fd, line, strlen(line));
    }
    if (rc < 0) {
        return err_set_errno(err, rc, "the monitor of \"%s\" does not listen", name);
    }
    used = read_line(fd, text, sizeof(text));
    if (used == 0 && errno == EAGAIN) {
        return err_set(err, -ETIMEDOUT, "the monitor of \"%s\" does not answer", name);
    }
    answer = json_loadb(text, used, 0, NULL);
    if (json_is_false(json_object_get(answer, "ok"))) {
        const char *why = json_string_value(json_object_get(answer, "error"));

        rc = err_set(err, -EIO, "\"%s\": %s", name, why != NULL ? why : "refused");
        json_decref(answer);
        return rc;
    }
    *ret_answer = answer;
    return 0;
}
