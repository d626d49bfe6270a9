/* One commit, collected: objects with their guards, names, events, operations. */
#include "compute/compute_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void change_begin(struct change *change, struct compute *compute)
{
    memset(change, 0, sizeof(*change));
    change->compute = compute;
}

/* Keeps a text until the change ends; NULL, and a change that fails, without memory. */
static const char *keep(struct change *change, char *text)
{
    if (text == NULL || change->owned_count == ARRAY_LEN(change->owned)) {
        free(text);
        change->has_failed = true;
        return NULL;
    }
    change->owned[change->owned_count++] = text;
    return text;
}

static void add_guard(struct change *change, const char *key, uint64_t revision)
{
    if (change->guard_count == CHANGE_MAX) {
        change->has_failed = true;
        return;
    }
    change->guards[change->guard_count++] = (struct store_guard){.key = key, .revision = revision};
}

/* The last write of a key counts. */
static void add_write(struct change *change, const char *key, const char *value)
{
    if (key == NULL) {
        return;
    }
    for (unsigned i = 0; i < change->write_count; i++) {
        if (strcmp(change->writes[i].key, key) == 0) {
            change->writes[i].value = value;
            return;
        }
    }
    if (change->write_count == CHANGE_MAX) {
        change->has_failed = true;
        return;
    }
    change->writes[change->write_count++] = (struct store_write){.key = key, .value = value};
}

static const char *keep_key(struct change *change, enum kind kind, const char *project,
                            const char *id)
{
    char key[STORE_MAX_KEY_BYTES + 1];

    object_key(key, kind, project, id);
    return keep(change, strdup(key));
}

void change_put(struct change *change, const struct object *object)
{
    const char *key = keep_key(change, object->kind, object->project, object->id);
    const char *value = keep(change, json_dumps(object->json, JSON_COMPACT));

    add_guard(change, key, object->revision);
    add_write(change, key, value);
}

void change_remove(struct change *change, const struct object *object)
{
    const char *key = keep_key(change, object->kind, object->project, object->id);

    add_guard(change, key, object->revision);
    add_write(change, key, NULL);
}

static const char *name_key(struct change *change, enum kind kind, const char *project,
                            const char *name)
{
    char key[STORE_MAX_KEY_BYTES + 1];

    (void)snprintf(key, sizeof(key), "/v1/name/%s/%s/%s", kind_spec(kind)->name, project, name);
    return keep(change, strdup(key));
}

void change_take_name(struct change *change, const struct object *object)
{
    const char *key = name_key(change, object->kind, object->project, object_text(object, "name"));
    json_t *id = json_string(object->id);

    add_guard(change, key, 0);
    add_write(change, key, keep(change, json_dumps(id, JSON_ENCODE_ANY)));
    json_decref(id);
}

void change_drop_name(struct change *change, enum kind kind, const char *project, const char *name)
{
    add_write(change, name_key(change, kind, project, name), NULL);
}

void change_write(struct change *change, const char *key, json_t *value, bool is_new)
{
    const char *kept = keep(change, strdup(key));

    if (is_new) {
        add_guard(change, kept, 0);
    }
    add_write(change, kept, keep(change, json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY)));
    json_decref(value);
}

void change_erase(struct change *change, const char *key)
{
    add_write(change, keep(change, strdup(key)), NULL);
}

void change_event(struct change *change, const struct object *object, const char *level,
                  const char *action, const char *actor, const char *fmt, ...)
{
    struct object event = {0};
    char text[400];
    va_list ap;

    if (object_new(KIND_EVENT, object->project, json_object(), &event, NULL) < 0) {
        change->has_failed = true;
        return;
    }
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    object_set_text(&event, "level", level);
    object_set_text(&event, "action", action);
    object_set_text(&event, "kind", kind_spec(object->kind)->name);
    object_set_text(&event, "target", object->id);
    object_set_text(&event, "text", text);
    if (actor != NULL) {
        object_set_text(&event, "actor", actor);
    }
    if (object_text(object, "operation")[0] != '\0') {
        object_set_text(&event, "operation", object_text(object, "operation"));
    }
    change_put(change, &event);
    object_done(&event);
}

void change_end_operation(struct change *change, struct object *object, const struct fault *error)
{
    struct object operation = {0};
    struct fault fault;
    const char *id = object_text(object, "operation");

    if (id[0] == '\0') {
        return;
    }
    if (object_load(change->compute, KIND_OPERATION, object->project, id, &operation, &fault) ==
        0) {
        object_set_text(&operation, "state",
                        error == NULL               ? "done"
                        : error->code == FAULT_NONE ? "cancelled"
                                                    : "failed");
        object_set_time(&operation, "ended");
        object_clear(&operation, "step");
        if (error == NULL) {
            object_set_number(&operation, "progress", 100);
        } else {
            object_set_text(&operation, "error_code",
                            error->code == FAULT_NONE ? "superseded"
                                                      : fault_code_name(error->code));
            object_set_text(&operation, "error", error->text);
        }
        change_put(change, &operation);
        object_done(&operation);
    } else if (fault.code != FAULT_NOT_FOUND) {
        change->has_failed = true;
    }
    object_clear(object, "operation");
}

/* Is there more to do than what the caller has done? Then its operation may be another's. */
static bool has_more_to_do(const struct object *instance)
{
    return object_flag(instance, "paused") != object_is(instance, "state", "paused") ||
           object_flag(instance, "adjusting") || object_flag(instance, "restarting") ||
           object_is(instance, "desired", "stopped");
}

void change_end_part(struct change *change, struct object *instance, const struct fault *error)
{
    if (!has_more_to_do(instance)) {
        change_end_operation(change, instance, error);
    }
}

void change_drop(struct change *change)
{
    for (unsigned i = 0; i < change->owned_count; i++) {
        free(change->owned[i]);
    }
    change->owned_count = 0;
}

int change_commit(struct change *change, struct fault *fault)
{
    struct compute *compute = change->compute;
    struct store_commit commit = {
        .guards = change->guards,
        .guard_count = change->guard_count,
        .writes = change->writes,
        .write_count = change->write_count,
    };
    struct err err;
    int rc = change->has_failed
                 ? fault_set(fault, FAULT_INTERNAL, NULL, "a change is too large, or no memory")
                 : 0;

    if (rc == 0) {
        rc = store_commit(compute->config.store, &commit, NULL, &err);
        rc = rc < 0 ? fault_set_err(fault, rc, &err) : 0;
    }
    change_drop(change);
    if (rc == 0) {
        mutex_lock(&compute->lock);
        compute->commits++;
        (void)pthread_cond_broadcast(&compute->committed); /* cannot fail */
        mutex_unlock(&compute->lock);
    }
    return rc;
}
