/* corbel stop: the power button, and the plug when asked. */
#include "cli/cli.h"
#include "cli/instance.h"
#include "rpc/control_client.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

#define WAIT_DEFAULT_S 90
#define FORCE_MAX_S 10 /* then it is killed */
#define KILL_MAX_S 60

/* Sends one request. No answer is fine: the end of the process is the proof. */
static int send_request(const struct instance *instance, const char *line, struct err *err)
{
    json_t *answer = NULL;
    int rc = control_ask(instance->runtime, instance->name, line, 0, &answer, err);

    if (rc == 0) {
        json_decref(answer);
    }
    return rc;
}

static int stop_by_force(const struct instance *instance, struct err *err)
{
    struct err ignored;

    if (send_request(instance, "{\"command\":\"stop\"}\n", &ignored) == 0 &&
        instance_wait_end(instance, FORCE_MAX_S)) {
        return 0;
    }
    if (instance_is_alive(instance) && kill(instance->pid, SIGKILL) != 0) {
        return err_set_errno(err, -errno, "process %d cannot be ended", instance->pid);
    }
    return instance_wait_end(instance, KILL_MAX_S)
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
        if (rc == 0 && !instance_wait_end(&instance, seconds)) {
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
