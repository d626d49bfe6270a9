/* What calls that change something have in common: operations, tokens, references. */
#include "compute/limits.h"

#include "base/path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKEN_BYTES 64

static const char *actor_of(const struct compute_call *call)
{
    return call->actor != NULL ? call->actor : "local";
}

json_t *call_operation(struct change *change, const struct compute_call *call,
                       struct object *object, const char *action)
{
    struct fault superseded = {.code = FAULT_NONE};
    struct object operation = {0};
    json_t *answer;

    (void)snprintf(superseded.text, sizeof(superseded.text), "%s came after it", action);
    change_end_operation(change, object, &superseded);
    if (object_new(KIND_OPERATION, object->project, json_object(), &operation, NULL) < 0) {
        change->has_failed = true;
        return NULL;
    }
    object_set_text(&operation, "action", action);
    object_set_text(&operation, "kind", kind_spec(object->kind)->name);
    object_set_text(&operation, "target", object->id);
    object_set_text(&operation, "state", "pending");
    object_set_number(&operation, "progress", 0);
    object_set_text(&operation, "actor", actor_of(call));
    object_set_text(object, "operation", operation.id);
    change_put(change, &operation);
    answer = object_answer(&operation);
    object_done(&operation);
    return answer;
}

json_t *call_answer(const struct object *object, json_t *operation)
{
    json_t *answer = json_object();

    (void)json_object_set_new(answer, kind_spec(object->kind)->name, object_answer(object));
    if (operation != NULL) {
        (void)json_object_set_new(answer, "operation", operation);
    }
    return answer;
}

/* What was wanted, in a few bytes. */
static void fingerprint(const char *action, const json_t *wanted, char out[32])
{
    char *text = json_dumps(wanted, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    uint64_t sum = 0xcbf29ce484222325ull;

    for (const char *p = action; *p != '\0'; p++) {
        sum = (sum ^ (unsigned char)*p) * 0x100000001b3ull;
    }
    for (const char *p = text; p != NULL && *p != '\0'; p++) {
        sum = (sum ^ (unsigned char)*p) * 0x100000001b3ull;
    }
    free(text);
    (void)snprintf(out, 32, "%016llx", (unsigned long long)sum);
}

static void token_key(const char *project, const char *token, char key[STORE_MAX_KEY_BYTES + 1])
{
    (void)snprintf(key, STORE_MAX_KEY_BYTES + 1, "/v1/token/%s/%s", project, token);
}

/* The answer as it is now: of the object, or of its operation alone when the object has gone. */
static json_t *answer_again(struct compute *compute, const char *project, const json_t *record)
{
    const struct kind_spec *spec = kind_find(json_string_value(json_object_get(record, "kind")));
    const char *operation_id = json_string_value(json_object_get(record, "operation"));
    const char *id = json_string_value(json_object_get(record, "id"));
    json_t *answer = json_object();
    struct object object = {0};

    if (spec != NULL && object_load(compute, spec->kind, spec->is_global ? GLOBAL_PROJECT : project,
                                    id, &object, NULL) == 0) {
        (void)json_object_set_new(answer, spec->name, object_answer(&object));
        object_done(&object);
    }
    if (operation_id != NULL &&
        object_load(compute, KIND_OPERATION, project, operation_id, &object, NULL) == 0) {
        (void)json_object_set_new(answer, "operation", object_answer(&object));
        object_done(&object);
    }
    return answer;
}

int call_find_token(struct compute *compute, const struct compute_call *call, const char *project,
                    const char *action, const json_t *wanted, json_t **ret_answer,
                    struct fault *fault)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    char key[STORE_MAX_KEY_BYTES + 1], sum[32];
    struct store_record record = {0};
    struct err err;
    json_t *known;
    int rc;

    if (call->token == NULL) {
        return 0;
    }
    if (*call->token == '\0' || strlen(call->token) > MAX_TOKEN_BYTES ||
        strspn(call->token, letters) != strlen(call->token)) {
        return fault_set(fault, FAULT_INVALID, "token",
                         "a token has 1 to %d letters, digits, '.', '_' and '-'", MAX_TOKEN_BYTES);
    }
    token_key(project, call->token, key);
    rc = store_get(compute->config.store, key, &record, &err);
    if (rc < 0) {
        return rc == -ENOENT ? 0 : fault_set_err(fault, rc, &err);
    }
    known = json_loads(record.value, 0, NULL);
    store_record_done(&record);
    fingerprint(action, wanted, sum);
    if (json_object_get(known, "sum") == NULL ||
        strcmp(json_string_value(json_object_get(known, "sum")), sum) != 0) {
        rc = fault_set(fault, FAULT_TOKEN, "token", "the token was used for another request");
    } else {
        *ret_answer = answer_again(compute, project, known);
        rc = 1;
    }
    json_decref(known);
    return rc;
}

void call_note_token(struct change *change, const struct compute_call *call, const char *project,
                     const char *action, const json_t *wanted, const struct object *object)
{
    char key[STORE_MAX_KEY_BYTES + 1], sum[32];

    if (call->token == NULL) {
        return;
    }
    token_key(project, call->token, key);
    fingerprint(action, wanted, sum);
    change_write(change, key,
                 json_pack("{s:s, s:s, s:s, s:s, s:O}", "sum", sum, "kind",
                           kind_spec(object->kind)->name, "id", object->id, "operation",
                           object_text(object, "operation"), "created",
                           json_object_get(object->json, "created")),
                 true);
}

int call_name_field(int rc, const char *field, struct fault *fault)
{
    if (rc == -ENOENT && fault != NULL) {
        (void)snprintf(fault->field, sizeof(fault->field), "%s", field);
    }
    return rc;
}

/* The image, or what the snapshot keeps of it. */
static int find_image(struct compute *compute, const struct object *instance,
                      struct image *ret_image, struct fault *fault)
{
    const char *origin = object_text(instance, "origin");
    char dir[PATH_MAX];
    struct err err;
    int rc;

    if (origin[0] == '\0') {
        return images_find(compute, object_text(instance, "image"), ret_image, fault);
    }
    rc = snapshot_path(compute, origin, dir, &err);
    if (rc == 0 && !path_exists(dir)) { /* deleted since: the instance has its own */
        rc = directory_path(compute, instance->id, dir, &err);
    }
    rc = rc < 0 ? rc : image_load(dir, ret_image, &err);
    return rc < 0 ? fault_set(fault, FAULT_INTERNAL, "snapshot", "%s", err.text) : 0;
}

static int check_maxima(const struct object *instance, struct fault *fault)
{
    static const char *const pairs[][2] = {{"cpus", "max_cpus"}, {"memory_mib", "max_memory_mib"}};

    for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
        int64_t max = object_number(instance, pairs[i][1]);

        if (max != 0 && max < object_number(instance, pairs[i][0])) {
            return fault_set(fault, FAULT_INVALID, pairs[i][1],
                             "\"%s\" is less than \"%s\"; give at least %lld", pairs[i][1],
                             pairs[i][0], (long long)object_number(instance, pairs[i][0]));
        }
    }
    return 0;
}

int call_check_limits(struct compute *compute, const struct compute_call *call,
                      const struct object *instance, const json_t *named, struct fault *fault)
{
    struct object type = {0};
    int rc;

    if (!call->keeps_to_types || !limits_are_in(named)) {
        return 0;
    }
    rc = object_find(compute, KIND_TYPE, NULL, object_text(instance, "type"), &type, fault);
    rc = rc < 0 ? call_name_field(rc, "type", fault)
                : limits_keep_to_type(instance, &type, named, fault);
    object_done(&type);
    return rc;
}

int call_resolve_instance(struct compute *compute, struct object *instance, struct fault *fault)
{
    struct object type = {0};
    struct image image = {.has_kernel = false};
    int rc = object_find(compute, KIND_TYPE, NULL, object_text(instance, "type"), &type, fault);

    if (rc < 0) {
        return call_name_field(rc, "type", fault);
    }
    static const char *const fields[] = {"cpus", "memory_mib", "disk_gib"};
    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        if (json_object_get(instance->json, fields[i]) == NULL &&
            object_number(&type, fields[i]) != 0) {
            object_set_number(instance, fields[i], object_number(&type, fields[i]));
        }
    }
    limits_resolve(instance, &type);
    object_done(&type);
    rc = limits_check(compute, instance, fault);
    rc = rc < 0 ? rc : find_image(compute, instance, &image, fault);
    if (rc == 0 && !image.has_kernel) {
        rc = fault_set(fault, FAULT_INVALID, "image",
                       "the image has no kernel beside its disk, and machines are not booted by "
                       "firmware yet");
    }
    if (rc == 0 && object_number(instance, "memory_mib") < image.memory_mib) {
        rc = fault_set(fault, FAULT_INVALID, "memory_mib",
                       "the image \"%s\" boots with %u MiB of memory at least",
                       object_text(instance, "image"), image.memory_mib);
    }
    return rc < 0 ? rc : check_maxima(instance, fault);
}

/* Lets go of the volumes that the instance has and does not name. */
struct detach {
    struct change *change;
    const struct object *instance;
};

static bool names_volume(const struct object *instance, const char *id)
{
    const json_t *volumes = json_object_get(instance->json, "volumes");

    for (size_t i = 0; i < json_array_size(volumes); i++) {
        if (strcmp(json_string_value(json_array_get(volumes, i)), id) == 0) {
            return true;
        }
    }
    return false;
}

static int detach_one(void *opaque, struct object *volume)
{
    struct detach *detach = opaque;

    if (object_is(volume, "instance", detach->instance->id) &&
        !names_volume(detach->instance, volume->id)) {
        object_clear(volume, "instance");
        if (object_is(volume, "state", "in-use")) {
            object_set_text(volume, "state", "available");
        }
        change_put(detach->change, volume);
    }
    return 0;
}

/* One volume that the instance names: there, and nobody else's. Its id takes its name's place. */
static int attach_one(struct change *change, struct object *instance, size_t index,
                      struct fault *fault)
{
    json_t *volumes = json_object_get(instance->json, "volumes");
    struct object volume = {0};
    int rc = object_find(change->compute, KIND_VOLUME, instance->project,
                         json_string_value(json_array_get(volumes, index)), &volume, fault);

    if (rc < 0) {
        return call_name_field(rc, "volumes", fault);
    }
    (void)json_array_set_new(volumes, index, json_string(volume.id));
    if (!object_is(&volume, "instance", instance->id)) {
        if (!object_is(&volume, "state", "available")) {
            rc = fault_set(fault, FAULT_CONFLICT, "volumes", "the volume \"%s\" is %s",
                           object_text(&volume, "name"), object_text(&volume, "state"));
        } else {
            object_set_text(&volume, "instance", instance->id);
            object_set_text(&volume, "state", "in-use");
            change_put(change, &volume);
        }
    }
    object_done(&volume);
    return rc;
}

int call_detach_volumes(struct change *change, const struct object *instance, struct fault *fault)
{
    struct detach detach = {.change = change, .instance = instance};

    return object_each(change->compute, KIND_VOLUME, instance->project, detach_one, &detach, fault);
}

int call_attach_volumes(struct change *change, struct object *instance, bool keeps_others,
                        struct fault *fault)
{
    const json_t *volumes = json_object_get(instance->json, "volumes");
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < json_array_size(volumes); i++) {
        rc = attach_one(change, instance, i, fault);
    }
    return rc < 0 || instance->revision == 0 || keeps_others
               ? rc
               : call_detach_volumes(change, instance, fault);
}
