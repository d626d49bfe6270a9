/* corbel stop: the power button, and the plug when asked. */
#include "base/io.h"
#include "base/loop.h"
#include "cli/cli.h"
#include "cli/instance.h"
#include "cli/unix_socket.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define WAIT_DEFAULT_S 90
#define FORCE_MAX_S 5
#define POLL_NS 20000000
#define NS_PER_S 1000000000ull

/* True when the machine's process ended within the time. */
static bool wait_end(const struct instance *instance, unsigned seconds)
{
    const struct timespec pause = {.tv_nsec = POLL_NS};
    uint64_t deadline = clock_monotonic_ns() + seconds * NS_PER_S;

    while (instance_is_alive(instance)) {
        if (clock_monotonic_ns() >= deadline) {
            return false;
        }
        (void)nanosleep(&pause, NULL);
    }
    return true;
}

/* What a refusal says: {"ok": false, "error": "..."}. */
static int read_answer(const struct instance *instance, const char *text, size_t len,
                       struct err *err)
{
    json_t *answer = json_loadb(text, len, JSON_DISABLE_EOF_CHECK, NULL);
    const char *why = json_string_value(json_object_get(answer, "error"));
    int rc = 0;

    if (json_is_false(json_object_get(answer, "ok"))) {
        rc = err_set(err, -EIO, "\"%s\": %s", instance->name, why != NULL ? why : "refused");
    }
    json_decref(answer);
    return rc;
}

/* Sends one request. No answer is fine: the end of the process is the proof. */
static int send_request(const struct instance *instance, const char *line, struct err *err)
{
    CLEANUP_CLOSE int fd = unix_socket_connect(instance->runtime, "control.sock", err);
    char answer[1024];
    ssize_t n;
    int rc;

    if (fd < 0) {
        return fd;
    }
    rc = io_write_full(fd, line, strlen(line));
    if (rc < 0) {
        return err_set_errno(err, rc, "the monitor of \"%s\" does not listen", instance->name);
    }
    n = read(fd, answer, sizeof(answer));
    return n > 0 ? read_answer(instance, answer, (size_t)n, err) : 0;
}

static int stop_by_force(const struct instance *instance, struct err *err)
{
    struct err ignored;

    if (send_request(instance, "{\"command\":\"stop\"}\n", &ignored) == 0 &&
        wait_end(instance, FORCE_MAX_S)) {
        return 0;
    }
    if (instance_is_alive(instance) && kill(instance->pid, SIGKILL) != 0) {
        return err_set_errno(err, -errno, "process %d cannot be ended", instance->pid);
    }
    return wait_end(instance, FORCE_MAX_S)
               ? 0
               : err_set(err, -ETIMEDOUT, "process %d does not end", instance->pid);
}

int verb_stop(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct stop_options *options = values;
    unsigned seconds = options->wait_s != 0 ? options->wait_s : WAIT_DEFAULT_S;
    struct instance instance;
    int rc = instance_find_args(cli, args, &instance, err);

    if (rc < 0) {
        return rc;
    }
    /* A guest that does not heed the button has nothing to lose by the plug. */
    if (options->force || !instance.image.has_power_button) {
        rc = stop_by_force(&instance, err);
    } else {
        rc = send_request(&instance, "{\"command\":\"powerdown\"}\n", err);
        if (rc == 0 && !wait_end(&instance, seconds)) {
            rc = err_set(err, -ETIMEDOUT,
                         "\"%s\" did not power off in %u seconds; --force pulls the plug",
                         instance.name, seconds);
        }
    }
    if (rc == 0) {
        (void)fprintf(stderr, "\"%s\" is off\n", instance.name);
        instance_sweep(cli);
    }
    return rc;
}
