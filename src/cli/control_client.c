#include "cli/control_client.h"

#include "base/io.h"
#include "cli/unix_socket.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_MAX_BYTES 16384

/* Up to the newline: how many bytes, 0 when the monitor has gone without a whole line. */
static size_t read_line(int fd, char *buf, size_t size)
{
    size_t used = 0;

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

int control_ask(const struct instance *instance, const char *line, json_t **ret_answer,
                struct err *err)
{
    CLEANUP_CLOSE int fd = unix_socket_connect(instance->runtime, "control.sock", err);
    char text[ANSWER_MAX_BYTES];
    json_t *answer = NULL;
    int rc;

    if (fd < 0) {
        return fd;
    }
    rc = io_write_full(fd, line, strlen(line));
    if (rc < 0) {
        return err_set_errno(err, rc, "the monitor of \"%s\" does not listen", instance->name);
    }
    answer = json_loadb(text, read_line(fd, text, sizeof(text)), 0, NULL);
    if (json_is_false(json_object_get(answer, "ok"))) {
        const char *why = json_string_value(json_object_get(answer, "error"));

        rc = err_set(err, -EIO, "\"%s\": %s", instance->name, why != NULL ? why : "refused");
        json_decref(answer);
        return rc;
    }
    *ret_answer = answer;
    return 0;
}
