/*
 * Forwards of a machine that runs: what is wanted waits in "forwards_next" until
 * the monitor has opened it, and takes the place of "forwards" then; a port that
 * somebody else has leaves everything as it was.
 */
#include "compute/compute_int.h"

#include "storage/guest_image.h"

#include <errno.h>

#define SSH_GUEST_PORT 22

int forwards_change(struct object *instance, json_t *before)
{
    json_t *next;

    if (!object_is(instance, "state", "running") && !object_is(instance, "state", "paused")) {
        return 0;
    }
    next = json_object_get(instance->json, "forwards");
    (void)json_object_set_new(instance->json, "forwards_next",
                              next != NULL ? json_incref(next) : json_array());
    if (before != NULL) {
        (void)json_object_set(instance->json, "forwards", before);
    } else {
        object_clear(instance, "forwards");
    }
    return 1;
}

bool forwards_wait(const struct object *instance)
{
    return json_object_get(instance->json, "forwards_next") != NULL;
}

void forwards_take(struct object *instance)
{
    json_t *next = json_object_get(instance->json, "forwards_next");

    if (next != NULL) {
        (void)json_object_set(instance->json, "forwards", next);
        object_clear(instance, "forwards_next");
    }
}

int forwards_apply(struct task *task, struct object *instance, struct err *err)
{
    json_t *list = json_array(), *answer = NULL;
    struct image image;
    char dir[PATH_MAX];
    int rc = directory_path(task->compute, task->id, dir, err);

    rc = rc < 0 ? rc : image_load(dir, &image, err);
    if (rc == 0 && machine_has_ssh(instance, &image)) {
        (void)json_array_append_new(
            list, json_pack("{s:i, s:i}", "host_port", 0, "guest_port", SSH_GUEST_PORT));
    }
    (void)json_array_extend(list, json_object_get(instance->json, "forwards_next"));
    rc = rc < 0 ? rc : task_step(task, STEP_OPEN_FORWARDS, false);
    if (rc < 0) {
        json_decref(list);
        return rc;
    }
    rc = machine_ask(task, json_pack("{s:s, s:o}", "command", "forwards", "forwards", list),
                     &answer, err);
    if (rc == 0) {
        forwards_take(instance);
        machine_set_ports(instance, json_object_get(answer, "forwards"),
                          machine_has_ssh(instance, &image));
        rc = task_step(task, STEP_OPEN_FORWARDS, true);
    } else if (rc == -EIO) {
        object_clear(instance, "forwards_next"); /* refused: as they were */
    }
    json_decref(answer);
    return rc;
}
