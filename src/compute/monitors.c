/* What asks the monitors of instances. */
#include "compute/compute_int.h"

#include "base/path.h"
#include "rpc/control_client.h"
#include "rpc/unix_socket.h"

#include <errno.h>

#define STATISTICS_TIMEOUT_MS 1000

/* The runtime directory of an instance that runs. */
static int find_running(struct compute *compute, const struct compute_call *call, const char *id,
                        char dir[PATH_MAX], struct fault *fault)
{
    struct object object = {0};
    struct err err;
    int rc = object_find(compute, KIND_INSTANCE, call->project, id, &object, fault);

    if (rc < 0) {
        return rc;
    }
    if (!object_is(&object, "state", "running") && !object_is(&object, "state", "paused") &&
        !object_is(&object, "state", "stopping")) {
        rc = fault_set(fault, FAULT_CONFLICT, "state", "the instance \"%s\" is %s",
                       object_text(&object, "name"), object_text(&object, "state"));
    } else {
        rc = machine_path(compute, object.id, dir, &err);
        rc = rc < 0 ? fault_set_err(fault, rc, &err) : 0;
    }
    object_done(&object);
    return rc;
}

/* What the daemon counts of it, beside its monitor. */
static void add_credits(struct compute *compute, const struct compute_call *call, const char *id,
                        json_t *statistics)
{
    json_t *instance = NULL, *credits;

    if (compute_get(compute, call, KIND_INSTANCE, id, &instance, NULL) == 0) {
        credits = json_object_get(instance, "cpu_credits");
        if (credits != NULL) {
            (void)json_object_set(statistics, "cpu.credits_s", credits);
        }
        json_decref(instance);
    }
}

int compute_statistics(struct compute *compute, const struct compute_call *call, const char *id,
                       json_t **ret_statistics, struct fault *fault)
{
    char dir[PATH_MAX];
    json_t *answer = NULL;
    struct err err;
    int rc = find_running(compute, call, id, dir, fault);

    if (rc < 0) {
        return rc;
    }
    rc = control_ask(dir, id, "{\"command\":\"statistics\"}\n", STATISTICS_TIMEOUT_MS, &answer,
                     &err);
    if (rc < 0 || answer == NULL) {
        json_decref(answer);
        return fault_set(fault, FAULT_UNAVAILABLE, NULL, "%s",
                         rc < 0 ? err.text : "the monitor has just ended");
    }
    *ret_statistics = json_incref(json_object_get(answer, "statistics"));
    if (*ret_statistics != NULL) {
        (void)json_object_set(*ret_statistics, "vcpus", json_object_get(answer, "vcpus"));
        (void)json_object_set(*ret_statistics, "latencies", json_object_get(answer, "latencies"));
        add_credits(compute, call, id, *ret_statistics);
    }
    json_decref(answer);
    return *ret_statistics != NULL
               ? 0
               : fault_set(fault, FAULT_INTERNAL, NULL, "the monitor gives no statistics");
}

int compute_console(struct compute *compute, const struct compute_call *call, const char *id,
                    int *ret_fd, struct fault *fault)
{
    char dir[PATH_MAX];
    struct err err;
    int rc = find_running(compute, call, id, dir, fault);

    if (rc < 0) {
        return rc;
    }
    rc = unix_socket_connect(dir, "console.sock", &err);
    if (rc < 0) {
        return fault_set(fault, FAULT_UNAVAILABLE, NULL, "%s", err.text);
    }
    *ret_fd = rc;
    return 0;
}

struct each_machine {
    struct compute *compute;
    int (*fn)(void *opaque, const json_t *instance, const char *dir);
    void *opaque;
};

static int tell_machine(void *opaque, struct object *object)
{
    struct each_machine *each = opaque;
    char dir[PATH_MAX];
    struct err err;
    json_t *answer;
    int rc;

    if ((!object_is(object, "state", "running") && !object_is(object, "state", "paused") &&
         !object_is(object, "state", "stopping")) ||
        machine_path(each->compute, object->id, dir, &err) < 0) {
        return 0;
    }
    answer = object_answer(object);
    rc = each->fn(each->opaque, answer, dir);
    json_decref(answer);
    return rc;
}

int compute_each_machine(struct compute *compute, const char *project,
                         int (*fn)(void *opaque, const json_t *instance, const char *dir),
                         void *opaque, struct fault *fault)
{
    struct each_machine each = {.compute = compute, .fn = fn, .opaque = opaque};
    char id[ID_BYTES];
    int rc = project != NULL ? object_find_project(compute, project, id, fault) : 0;

    return rc < 0 ? rc
                  : object_each(compute, KIND_INSTANCE, project != NULL ? id : NULL, tell_machine,
                                &each, fault);
}

int compute_instance_directory(const struct compute *compute, const char *id, char *out)
{
    struct err err;
    int rc = directory_path(compute, id, out, &err);

    return rc < 0 ? rc : path_exists(out) ? 0 : -ENOENT;
}
