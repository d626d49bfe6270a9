/* Whether the policies of who calls allow a call: looked at with the object in hand. */
#include "api/api_int.h"

#include <stdio.h>
#include <string.h>

enum { ACTION_BYTES = 160 };

static int refuse(const struct api_call *call, const char *action, struct fault *fault)
{
    (void)fault_set(fault, FAULT_INVALID, NULL, "%s may not do this: its role does not allow %s",
                    call->identity.actor, action);
    return 403;
}

static bool may(const struct identity *identity, const char *action, const char *operation,
                enum kind kind, const json_t *object)
{
    const struct policy_question asked = {
        .action = action,
        .operation = operation,
        .kind = kind_spec(kind)->name,
        .id = json_string_value(json_object_get(object, "id")),
        .tags = json_object_get(object, "tags"),
    };
    return policy_allows(identity, &asked);
}

/* Whether a verb of a kind is allowed on an object that is given. */
static bool may_verb(const struct identity *identity, enum kind kind, const char *verb,
                     const json_t *object)
{
    char action[ACTION_BYTES];
    (void)snprintf(action, sizeof(action), "%s.%s", kind_spec(kind)->name, verb);
    return may(identity, action, action, kind, object);
}

static bool may_any(const struct identity *identity, const char *action, const char *operation,
                    const char *kind, bool some)
{
    const struct policy_question asked = {
        .action = action,
        .operation = operation,
        .kind = kind,
        .of = some ? POLICY_SOME : POLICY_ALL,
    };
    return policy_allows(identity, &asked);
}

/* Whether a verb is allowed on each object of a kind that there is. */
static bool may_every(const struct identity *identity, const char *kind, const char *verb)
{
    char action[ACTION_BYTES];
    (void)snprintf(action, sizeof(action), "%s.%s", kind, verb);
    return may_any(identity, action, action, kind, false);
}

/*
 * Work and events have no tags: they are asked about with those of the object
 * that they are about. Who began work may always follow it.
 */
static bool may_on_target(struct api *api, const struct identity *identity, const char *action,
                          enum kind kind, const json_t *object)
{
    const char *target = text_of(object, "target");
    const char *project = text_of(object, "project");
    const struct kind_spec *spec = kind_find(text_of(object, "kind"));
    struct compute_call compute = {.project = project[0] != 0 ? project : NULL,
                                   .actor = identity->actor};
    struct policy_question asked = {.action = action,
                                    .operation = action,
                                    .kind = kind_spec(kind)->name,
                                    .id = text_of(object, "id")};
    json_t *found = NULL;
    bool is_allowed = true;
    if (kind == KIND_OPERATION && strcmp(text_of(object, "actor"), identity->actor) == 0) {
        return may_any(identity, action, action, kind_spec(kind)->name, true);
    }
    if (target[0] != 0 && spec != NULL &&
        compute_get(api->config.compute, &compute, spec->kind, target, &found, NULL) == 0) {
        asked.tags = json_object_get(found, "tags");
        is_allowed = may_verb(identity, spec->kind, "get", found);
    } else if (target[0] != 0) { /* gone, and its tags: a denial by tag may be about it */
        asked.of = POLICY_ALL;
        is_allowed = spec == NULL || may_every(identity, spec->name, "get");
    }
    is_allowed = is_allowed && policy_allows(identity, &asked);
    json_decref(found);
    return is_allowed;
}

static bool may_see(struct api *api, const struct identity *identity, const char *verb,
                    enum kind kind, const json_t *object)
{
    char action[ACTION_BYTES];
    (void)snprintf(action, sizeof(action), "%s.%s", kind_spec(kind)->name, verb);
    return kind == KIND_OPERATION || kind == KIND_EVENT
               ? may_on_target(api, identity, action, kind, object)
               : may(identity, action, action, kind, object);
}

bool permit_listed(struct api *api, const struct identity *identity, enum kind kind,
                   const json_t *object)
{
    return identity->policy_count == 0 || (may_see(api, identity, "get", kind, object) &&
                                           may_see(api, identity, "list", kind, object));
}

bool permit_told(struct api *api, const struct identity *identity, const json_t *change)
{
    const char *name = text_of(change, "kind");
    const struct kind_spec *spec = kind_find(name);
    const json_t *object = json_object_get(change, "object");
    if (identity->policy_count == 0) {
        return true;
    }
    if (spec == NULL || !json_is_object(object)) { /* deleted: nobody knows its tags any more */
        return may_every(identity, name, "get");
    }
    return permit_listed(api, identity, spec->kind, object);
}

/* What a body names is used by the call too: looked at where it can do harm, else only seen. */
static int check_named(struct api *api, const struct api_call *call, enum kind kind,
                       const char *project, const char *name, struct fault *fault)
{
    struct compute_call compute = call->compute;
    bool is_shared = kind == KIND_TYPE || kind == KIND_IMAGE || kind == KIND_KEY;
    json_t *object = NULL;
    compute.project = kind_spec(kind)->is_global ? NULL : project;
    int error = compute_get(api->config.compute, &compute, kind, name, &object, fault);
    if (error != 0) {
        return answer_status(fault->code);
    }
    bool is_allowed = may_verb(&call->identity, kind, is_shared ? "get" : "change", object);
    json_decref(object);
    if (!is_allowed) {
        (void)fault_set(fault, FAULT_INVALID, kind_spec(kind)->name,
                        "%s may not use this %s: its role does not allow %s.%s of it",
                        call->identity.actor, kind_spec(kind)->name, kind_spec(kind)->name,
                        is_shared ? "get" : "change");
        return 403;
    }
    return 0;
}

static int check_references(struct api *api, const struct api_call *call, const char *project,
                            const json_t *object, struct fault *fault)
{
    const char *name;
    json_t *value;
    int status = 0;
    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        const struct kind_spec *spec = kind_find(name);
        if (spec == NULL || spec->kind == KIND_PROJECT || spec->kind == KIND_OPERATION) {
            continue;
        }
        if (json_is_string(value)) {
            status = check_named(api, call, spec->kind, project, json_string_value(value), fault);
        }
        for (size_t i = 0; status == 0 && i < json_array_size(value); i++) {
            const char *each = json_string_value(json_array_get(value, i));
            status =
                each != NULL ? check_named(api, call, spec->kind, project, each, fault) : status;
        }
        if (status != 0) {
            return status;
        }
    }
    /* An alarm of a tag acts on instances that nobody has made yet. */
    if (call->operation->kind == KIND_ALARM && json_is_string(json_object_get(object, "tag")) &&
        !may_every(&call->identity, "instance", "change")) {
        return refuse(call, "instance.change of every instance", fault);
    }
    if (call->operation->kind == KIND_HOOK && !may_every(&call->identity, "event", "get")) {
        return refuse(call, "event.get of every event, which a hook is told", fault);
    }
    return 0;
}

/* As the object will be: what the body changes, put in place. */
static json_t *changed(const json_t *before, const json_t *body)
{
    json_t *after = json_deep_copy(before);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)body, name, value)
    {
        if (json_is_null(value)) {
            (void)json_object_del(after, name);
        } else {
            (void)json_object_set(after, name, value);
        }
    }
    return after;
}

static int check_after(struct api *api, struct api_call *call, const char *action,
                       const json_t *before, struct fault *fault)
{
    const struct api_operation *operation = call->operation;
    const char *project = text_of(before, "project");
    project = project[0] != 0 ? project : NULL;
    if (operation->handle == objects_restore) {
        json_t *owner = json_pack("{s:O*, s:O*}", "instance", json_object_get(before, "instance"),
                                  "volume", json_object_get(before, "volume"));
        int status = check_references(api, call, project, owner, fault);
        json_decref(owner);
        return status;
    }
    if (operation->body != API_BODY_CHANGE) {
        return check_references(api, call, project, call->body, fault);
    }
    json_t *after = changed(before, call->body);
    int status =
        after != NULL && may(&call->identity, action, operation->id, operation->kind, after)
            ? 0
            : refuse(call, "an object that is so", fault);
    if (status == 0) {
        status = check_references(api, call, project,
                                  operation->kind == KIND_ALARM ? after : call->body, fault);
    }
    /* With tags from the body, the object must still be what was looked at. */
    if (json_object_get(call->body, "tags") != NULL) {
        call->looked_at = (uint64_t)json_integer_value(json_object_get(before, "revision"));
    }
    json_decref(after);
    return status;
}

static int check_object(struct api *api, struct api_call *call, enum kind kind, const char *action,
                        struct fault *fault)
{
    json_t *before = NULL;
    int error = compute_get(api->config.compute, &call->compute, kind, call->id, &before, fault);
    if (error != 0) {
        return answer_status(fault->code);
    }
    int status = 0;
    bool is_allowed = kind == KIND_OPERATION || kind == KIND_EVENT
                          ? may_on_target(api, &call->identity, action, kind, before)
                          : may(&call->identity, action, call->operation->id, kind, before);
    if (!is_allowed && !may_see(api, &call->identity, "get", kind, before)) {
        (void)fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no %s \"%.64s\"",
                        kind_spec(kind)->name, call->id);
        status = 404;
    } else if (!is_allowed) {
        status = refuse(call, action, fault);
    } else {
        /* From here on by its id: another may get the name meanwhile. */
        (void)snprintf(call->id, sizeof(call->id), "%s", text_of(before, "id"));
        status = check_after(api, call, action, before, fault);
    }
    json_decref(before);
    return status;
}

/* What is about no object, or about many at once. */
static int check_general(const struct api_call *call, const char *action, struct fault *fault)
{
    const struct identity *who = &call->identity;
    const char *id = call->operation->id;
    char resource[ACTION_BYTES];
    bool is_watch = call->operation->handle == streams_watch;
    (void)snprintf(resource, sizeof(resource), "%.*s", (int)strcspn(id, "."), id);
    bool is_allowed = may_any(who, action, id, resource, is_watch);
    if (call->operation->handle == metrics_text) { /* tells of every instance */
        is_allowed = is_allowed && may_every(who, "instance", "get") &&
                     may_every(who, "instance", "list") && may_every(who, "instance", "statistics");
    }
    if (call->operation->handle == usage_report) { /* ... and of every volume and snapshot */
        is_allowed = is_allowed && may_every(who, "instance", "get") &&
                     may_every(who, "volume", "get") && may_every(who, "snapshot", "get");
    }
    return is_allowed ? 0 : refuse(call, action, fault);
}

int permit_call(struct api *api, struct api_call *call, struct fault *fault)
{
    const struct api_operation *operation = call->operation;
    char action[ACTION_BYTES];
    bool is_own = operation->role == ROLE_NONE || strncmp(operation->id, "session.", 8) == 0;
    if (call->identity.policy_count == 0 || is_own) {
        return 0;
    }
    (void)snprintf(action, sizeof(action), operation->handle == objects_act ? "%s.%s" : "%s",
                   operation->id, call->action);
    enum kind kind = operation->handle == objects_wait || operation->handle == objects_cancel
                         ? KIND_OPERATION
                         : operation->kind;
    if (kind == KIND_COUNT) {
        return check_general(call, action, fault);
    }
    if (call->id[0] != 0) {
        return check_object(api, call, kind, action, fault);
    }
    if (operation->handle == objects_list) {
        return may_any(&call->identity, action, operation->id, kind_spec(kind)->name, true)
                   ? 0
                   : refuse(call, action, fault);
    }
    json_t *made = json_pack("{s:O*}", "tags", json_object_get(call->body, "tags"));
    int status =
        may(&call->identity, action, operation->id, kind, made) ? 0 : refuse(call, action, fault);
    json_decref(made);
    const char *project = call->compute.project;
    return status != 0
               ? status
               : check_references(api, call, project != NULL ? project : COMPUTE_DEFAULT_PROJECT,
                                  call->body, fault);
}

bool permit_stream(struct api *api, const struct identity *identity, const char *id)
{
    const struct compute_call compute = {
        .project = identity->project[0] != 0 ? identity->project : NULL, .actor = identity->actor};
    json_t *instance = NULL;
    if (identity->policy_count == 0) {
        return true;
    }
    if (id == NULL) {
        return may_any(identity, "watch", "watch", "watch", true);
    }
    bool is_allowed =
        compute_get(api->config.compute, &compute, KIND_INSTANCE, id, &instance, NULL) == 0 &&
        may_verb(identity, KIND_INSTANCE, "console", instance);
    json_decref(instance);
    return is_allowed;
}
