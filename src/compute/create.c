/* compute_create(). */
#include "base/log.h"
#include "compute/key_pair.h"
#include "compute/limits.h"
#include "compute/seed.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One attempt: everything from the store's state as it is now. */
struct creation {
    struct compute *compute;
    const struct compute_call *call;
    enum kind kind;
    const json_t *wanted;
    char project[ID_BYTES];
    struct object object;
    struct change change;
    json_t *operation;
    char *private_key; /* of a new pair */
};

/* A pair is made where no public key is given; its private key is told once, and not kept. */
static int prepare_key(struct creation *creation, struct fault *fault)
{
    struct object *key = &creation->object;
    char fingerprint[KEY_PAIR_FINGERPRINT_BYTES], *public_key = NULL;

    if (json_object_get(key->json, "public_key") == NULL) {
        key_pair_forget(steal_ptr(creation->private_key));
        if (key_pair_create(object_text(key, "name"), &public_key, &creation->private_key) < 0) {
            return fault_set(fault, FAULT_INTERNAL, NULL, "a key cannot be made");
        }
        object_set_text(key, "public_key", public_key);
        free(public_key);
    }
    if (key_pair_check(object_text(key, "public_key"), fingerprint) < 0) {
        return fault_set(fault, FAULT_INVALID, "public_key",
                         "this is no public key of OpenSSH; give the line of a .pub file");
    }
    object_set_text(key, "fingerprint", fingerprint);
    return 0;
}

static int prepare_instance(struct creation *creation, struct fault *fault)
{
    struct object *object = &creation->object;
    int rc = snapshot_base_instance(&creation->change, object, fault);

    rc = rc < 0 ? rc
                : call_check_limits(creation->compute, creation->call, object, creation->wanted,
                                    fault);
    rc = rc < 0 ? rc : call_resolve_instance(creation->compute, object, fault);
    if (rc == 0) {
        rc = admit_instance(creation->compute, object, true, fault);
    }
    if (rc == 0) {
        rc = call_attach_volumes(&creation->change, object, true, fault);
    }
    rc = rc < 0 ? rc : nic_attach(&creation->change, object, creation->wanted, NULL, fault);
    rc = rc < 0 ? rc : seed_prepare(&creation->change, object, fault);
    if (object_number(object, "cpu_reserved_percent") != 0) {
        atomic_store(&creation->compute->has_reservations, true);
    }
    object_set_text(object, "state", "pending");
    object_set_number(object, "generation", object_is(object, "desired", "running"));
    return rc;
}

/* What is particular to the kind. */
static int prepare_kind(struct creation *creation, struct fault *fault)
{
    struct object *object = &creation->object;
    int rc;

    switch (creation->kind) {
    case KIND_INSTANCE:
        return prepare_instance(creation, fault);
    case KIND_VOLUME:
        object_set_text(object, "state", "creating");
        rc = snapshot_base_volume(&creation->change, object, fault);
        return rc < 0 ? rc
                      : admit_disk(creation->compute, object, object_number(object, "size_gib"),
                                   fault);
    case KIND_SNAPSHOT:
        return snapshot_prepare(&creation->change, object, fault);
    case KIND_NIC:
        return nic_prepare(&creation->change, object, fault);
    case KIND_KEY:
        rc = admit_one(creation->compute, object, fault);
        return rc < 0 ? rc : prepare_key(creation, fault);
    case KIND_ALARM:
        rc = alarm_prepare(creation->compute, object, fault);
        return rc < 0 ? rc : admit_one(creation->compute, object, fault);
    case KIND_HOOK:
        return hook_prepare(creation->compute, object, true, fault);
    case KIND_TYPE:
    case KIND_PROJECT:
        return 0;
    case KIND_IMAGE:
    case KIND_OPERATION:
    case KIND_EVENT:
    case KIND_COUNT:
        break;
    }
    return fault_set(fault, FAULT_INVALID, NULL, "a %s is not made by a call",
                     kind_spec(creation->kind)->name);
}

/* A name that nobody has in the project. */
static int check_name(struct creation *creation, struct fault *fault)
{
    struct object other = {0};
    struct fault ignored;
    int rc;

    if (json_object_get(creation->object.json, "name") == NULL) {
        object_set_text(&creation->object, "name", creation->object.id);
        return 0;
    }
    rc = object_find(creation->compute, creation->kind,
                     kind_spec(creation->kind)->is_global ? NULL : creation->project,
                     object_text(&creation->object, "name"), &other, &ignored);
    if (rc == -ENOENT) {
        return 0;
    }
    if (rc < 0) {
        *fault = ignored;
        return rc;
    }
    object_done(&other);
    return fault_set(fault, FAULT_EXISTS, "name", "there is a %s \"%s\" already",
                     kind_spec(creation->kind)->name, object_text(&creation->object, "name"));
}

static bool needs_work(enum kind kind)
{
    return kind == KIND_INSTANCE || kind == KIND_VOLUME || kind == KIND_SNAPSHOT;
}

static void collect(struct creation *creation)
{
    const struct kind_spec *spec = kind_spec(creation->kind);
    struct object *object = &creation->object;
    char action[64];

    (void)snprintf(action, sizeof(action), "%s.create", spec->name);
    if (needs_work(creation->kind)) {
        creation->operation = call_operation(&creation->change, creation->call, object, action);
    }
    change_put(&creation->change, object);
    change_take_name(&creation->change, object);
    if (!spec->is_global) {
        change_event(&creation->change, object, "info", action,
                     creation->call->actor != NULL ? creation->call->actor : "local",
                     "%s \"%s\" is wanted", spec->name, object_text(object, "name"));
    }
    call_note_token(&creation->change, creation->call, creation->project, action, creation->wanted,
                    object);
}

/* The revision is the commit's. */
static void read_back(struct creation *creation)
{
    struct object *object = &creation->object, made = {0};

    if (creation->call->is_dry_run) {
        return;
    }
    if (object_load(creation->compute, creation->kind, object->project, object->id, &made, NULL) <
        0) {
        log_warn("%s cannot be read back, ignoring", object->id);
        return;
    }
    object_done(object);
    *object = made;
}

static int attempt(struct creation *creation, json_t **ret_answer, struct fault *fault)
{
    json_t *fields = NULL;
    int rc;

    change_begin(&creation->change, creation->compute);
    rc = kind_parse_create(kind_spec(creation->kind), creation->wanted, &fields, fault);
    if (rc == 0) {
        rc = object_new(creation->kind, creation->project, fields, &creation->object, fault);
    }
    rc = rc < 0 ? rc : check_name(creation, fault);
    rc = rc < 0 ? rc : prepare_kind(creation, fault);
    if (rc < 0 || creation->call->is_dry_run) {
        change_drop(&creation->change);
    } else {
        collect(creation);
        rc = change_commit(&creation->change, fault);
    }
    if (rc == 0) {
        read_back(creation);
        *ret_answer = call_answer(&creation->object, json_incref(creation->operation));
        if (creation->private_key != NULL && !creation->call->is_dry_run) {
            (void)json_object_set_new(json_object_get(*ret_answer, "key"), "private_key",
                                      json_string(creation->private_key));
        }
        if (creation->kind == KIND_HOOK && !creation->call->is_dry_run &&
            json_object_get(creation->wanted, "secret") == NULL) {
            (void)json_object_set(json_object_get(*ret_answer, "hook"), "secret",
                                  json_object_get(creation->object.json, "secret"));
        }
    }
    json_decref(creation->operation);
    creation->operation = NULL;
    object_done(&creation->object);
    return rc;
}

static int create_locked(struct creation *creation, json_t **ret_answer, struct fault *fault)
{
    char action[64];
    int rc;

    (void)snprintf(action, sizeof(action), "%s.create", kind_spec(creation->kind)->name);
    rc = call_find_token(creation->compute, creation->call, creation->project, action,
                         creation->wanted, ret_answer, fault);
    if (rc != 0) {
        return rc < 0 ? rc : 0;
    }
    for (unsigned i = 0; i < CALL_TRIES; i++) {
        rc = attempt(creation, ret_answer, fault);
        if (rc != -ESTALE) {
            return rc;
        }
    }
    return rc;
}

int compute_create(struct compute *compute, const struct compute_call *call, enum kind kind,
                   const json_t *wanted, json_t **ret_answer, struct fault *fault)
{
    struct creation creation = {.compute = compute,
                                .call = call,
                                .kind = kind,
                                .wanted = wanted,
                                .project = GLOBAL_PROJECT};
    const char *id;
    int rc = 0;

    if (!kind_spec(kind)->is_global) {
        rc = call->project == NULL
                 ? fault_set(fault, FAULT_INVALID, "project", "say in which project")
                 : object_find_project(compute, call->project, creation.project, fault);
    }
    if (rc < 0) {
        return rc;
    }
    mutex_lock(&compute->calls);
    rc = create_locked(&creation, ret_answer, fault);
    mutex_unlock(&compute->calls);
    key_pair_forget(creation.private_key);
    id = rc == 0 ? json_string_value(
                       json_object_get(json_object_get(*ret_answer, kind_spec(kind)->name), "id"))
                 : NULL;
    if (id != NULL && needs_work(kind) && !call->is_dry_run) {
        compute_queue(compute, kind, creation.project, id, 0);
    }
    return rc;
}
