/* compute_change(), compute_delete(), compute_act() and compute_cancel(). */
#include "compute/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* One change of one object by a call. */
struct act {
    struct compute *compute;
    const struct compute_call *call;
    enum kind kind;
    const char *id;
    const char *action; /* "instance.stop" */
    const json_t *parameters;
    uint64_t revision; /* 0: any */
    struct object object;
    struct change change;
    json_t *operation;
    char also[ID_BYTES]; /* an instance to be looked at, too; "": none */
    bool has_work, is_removed;
};

typedef int (*act_fn)(struct act *act, struct fault *fault);

static const char *actor_of(const struct act *act)
{
    return act->call->actor != NULL ? act->call->actor : "local";
}

static bool state_is(const struct act *act, const char *state)
{
    return object_is(&act->object, "state", state);
}

static int refuse_state(const struct act *act, const char *mend, struct fault *fault)
{
    return fault_set(fault, FAULT_CONFLICT, "state", "the %s \"%s\" is %s%s%s",
                     kind_spec(act->kind)->name, object_text(&act->object, "name"),
                     object_text(&act->object, "state"), mend[0] != '\0' ? "; " : "", mend);
}

/* Writes the object with an operation and an event. */
static void begin_work(struct act *act, const char *text)
{
    act->has_work = true;
    act->operation = call_operation(&act->change, act->call, &act->object, act->action);
    change_put(&act->change, &act->object);
    change_event(&act->change, &act->object, "info", act->action, actor_of(act), "%s \"%s\" %s",
                 kind_spec(act->kind)->name, object_text(&act->object, "name"), text);
}

static int attempt(struct act *act, act_fn fn, json_t **ret_answer, struct fault *fault)
{
    char id[ID_BYTES];
    int rc = object_find(act->compute, act->kind,
                         kind_spec(act->kind)->is_global ? NULL : act->call->project, act->id,
                         &act->object, fault);

    if (rc < 0) {
        return rc;
    }
    change_begin(&act->change, act->compute);
    act->has_work = act->is_removed = false;
    act->also[0] = '\0';
    if (act->revision != 0 && act->object.revision != act->revision) {
        rc = fault_set(fault, FAULT_STALE, "revision", "the object is at revision %llu",
                       (unsigned long long)act->object.revision);
        act->revision = UINT64_MAX; /* not to be tried again */
    }
    rc = rc < 0 ? rc : fn(act, fault);
    if (rc < 0 || act->call->is_dry_run) {
        change_drop(&act->change);
    } else {
        call_note_token(&act->change, act->call, act->object.project, act->action, act->parameters,
                        &act->object);
        rc = change_commit(&act->change, fault);
    }
    memcpy(id, act->object.id, sizeof(id));
    if (rc == 0) {
        struct object now = {0};

        if (!act->call->is_dry_run && !act->is_removed &&
            object_load(act->compute, act->kind, act->object.project, id, &now, NULL) == 0) {
            *ret_answer = call_answer(&now, json_incref(act->operation));
            object_done(&now);
        } else {
            *ret_answer = call_answer(&act->object,
                                      act->call->is_dry_run ? NULL : json_incref(act->operation));
        }
        if (act->has_work && !act->call->is_dry_run) {
            compute_queue(act->compute, act->kind, act->object.project, id, 0);
        }
        if (act->also[0] != '\0' && !act->call->is_dry_run) {
            compute_queue(act->compute, KIND_INSTANCE, act->object.project, act->also, 0);
        }
    }
    json_decref(act->operation);
    act->operation = NULL;
    object_done(&act->object);
    return rc;
}

static int run_act(struct act *act, act_fn fn, json_t **ret_answer, struct fault *fault)
{
    char project[ID_BYTES] = GLOBAL_PROJECT;
    int rc = 0;

    if (act->call->token != NULL) {
        rc = act->call->project == NULL
                 ? fault_set(fault, FAULT_INVALID, "project", "a token needs a project")
                 : object_find_project(act->compute, act->call->project, project, fault);
    }
    if (rc < 0) {
        return rc;
    }
    mutex_lock(&act->compute->calls);
    rc = call_find_token(act->compute, act->call, project, act->action, act->parameters, ret_answer,
                         fault);
    for (unsigned i = 0; rc == 0 && i < CALL_TRIES; i++) {
        rc = attempt(act, fn, ret_answer, fault);
        if (rc != -ESTALE || act->revision == UINT64_MAX) {
            break;
        }
        rc = i + 1 < CALL_TRIES ? 0 : rc;
    }
    mutex_unlock(&act->compute->calls);
    return rc < 0 ? rc : 0;
}

/* ---- changes ---- */

static int change_name(struct act *act, const char *old, struct fault *fault)
{
    struct object other = {0};
    const char *name = object_text(&act->object, "name");

    if (strcmp(name, old) == 0) {
        return 0;
    }
    if (name[0] == '\0') {
        object_set_text(&act->object, "name", act->object.id);
        name = act->object.id;
    }
    if (object_find(act->compute, act->kind, act->object.project, name, &other, NULL) == 0) {
        bool is_itself = strcmp(other.id, act->object.id) == 0;

        object_done(&other);
        if (!is_itself) {
            return fault_set(fault, FAULT_EXISTS, "name", "there is a %s \"%s\" already",
                             kind_spec(act->kind)->name, name);
        }
    }
    change_drop_name(&act->change, act->kind, act->object.project, old);
    change_take_name(&act->change, &act->object);
    return 0;
}

/* Another type brings its own sizes, unless the change says them. */
static void forget_sizes(struct act *act)
{
    static const char *const sizes[] = {"cpus", "memory_mib"};

    if (json_object_get(act->parameters, "type") == NULL) {
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        if (json_object_get(act->parameters, sizes[i]) == NULL) {
            object_clear(&act->object, sizes[i]);
        }
    }
    for (size_t i = 0; limits_fields[i] != NULL; i++) {
        if (json_object_get(act->parameters, limits_fields[i]) == NULL) {
            object_clear(&act->object, limits_fields[i]);
        }
    }
}

/* Limits hold at once; what was taken back is the type's again. */
static int change_limits(struct act *act, struct fault *fault)
{
    struct object *instance = &act->object;
    struct object type = {0};
    bool has_type =
        object_find(act->compute, KIND_TYPE, NULL, object_text(instance, "type"), &type, NULL) == 0;
    int rc;

    limits_resolve(instance, has_type ? &type : NULL);
    object_done(&type);
    rc = limits_check(act->compute, instance, fault);
    rc = rc < 0 ? rc : admit_instance(act->compute, instance, false, fault);
    if (rc == 0 && object_number(instance, "cpu_reserved_percent") != 0) {
        atomic_store(&act->compute->has_reservations, true);
    }
    if (rc == 0 && !act->has_work &&
        (object_is(instance, "state", "running") || object_is(instance, "state", "paused"))) {
        begin_work(act, "is to have other limits");
    }
    return rc;
}

static int change_forwards(struct act *act, json_t *before, struct fault *fault)
{
    int rc;

    if (object_is(&act->object, "state", "pending") ||
        object_is(&act->object, "state", "starting") ||
        object_is(&act->object, "state", "stopping")) {
        return refuse_state(act, "wait until it is not", fault);
    }
    rc = network_check_forwards(&act->object, fault);
    if (rc < 0) {
        return rc;
    }
    if (network_is_user(object_text(&act->object, "network")) &&
        forwards_change(&act->object, before) == 1 && !act->has_work) {
        begin_work(act, "is to have other forwards");
    }
    return 0;
}

/* One that runs gets them as far as it can, the rest at its next start. */
static int change_sizes(struct act *act, const json_t *before, bool is_off, struct fault *fault)
{
    bool has_work = false;
    int rc;

    forget_sizes(act);
    if (json_object_get(act->parameters, "type") == NULL) {
        limits_follow(&act->object, before, act->parameters);
    }
    rc = call_resolve_instance(act->compute, &act->object, fault);
    if (is_off) {
        rc = rc < 0 ? rc : admit_instance(act->compute, &act->object, true, fault);
        rc = rc < 0 ? rc : call_attach_volumes(&act->change, &act->object, false, fault);
        return rc < 0 || (json_object_get(act->parameters, "nic") == NULL &&
                          json_object_get(act->parameters, "network") == NULL)
                   ? rc
                   : nic_attach(&act->change, &act->object, act->parameters, before, fault);
    }
    if (!state_is(act, "running")) {
        return refuse_state(act, state_is(act, "paused") ? "resume it first" : "", fault);
    }
    rc = rc < 0 ? rc : resize_begin(&act->change, &act->object, before, &has_work, fault);
    if (rc == 0 && has_work) {
        begin_work(act, object_flag(&act->object, "restart_needed")
                            ? "gets what it can of its new sizes, the rest by a restart"
                            : "gets new sizes or volumes");
    }
    return rc;
}

/* before: what it was; forwards: of it, NULL: none. */
static int change_instance(struct act *act, const json_t *before, bool needs_stop, json_t *forwards,
                           struct fault *fault)
{
    bool is_off = state_is(act, "stopped") || state_is(act, "failed");
    bool has_sizes = needs_stop || resize_is_in(act->parameters);
    int rc;

    if (object_is(&act->object, "state", "deleting")) {
        return refuse_state(act, "", fault);
    }
    if (needs_stop && !is_off) {
        return refuse_state(act, "this is changed only while it is stopped", fault);
    }
    if (has_sizes && snapshot_is_under_way(&act->object)) {
        return refuse_state(act, "a snapshot of its disks is being taken or put back", fault);
    }
    rc = call_check_limits(act->compute, act->call, &act->object, act->parameters, fault);
    if (rc == 0 && has_sizes) {
        rc = change_sizes(act, before, is_off, fault);
    }
    if (rc == 0 && limits_are_in(act->parameters)) {
        rc = change_limits(act, fault);
    }
    if (rc == 0 && json_object_get(act->parameters, "forwards") != NULL) {
        rc = change_forwards(act, forwards, fault);
    }
    if (rc == 0 && !act->has_work) {
        change_put(&act->change, &act->object);
    }
    return rc;
}

static int change_volume(struct act *act, int64_t old_gib, struct fault *fault)
{
    int64_t more = object_number(&act->object, "size_gib") - old_gib;
    int rc;

    (void)snprintf(act->also, sizeof(act->also), "%s", object_text(&act->object, "instance"));
    if (more == 0) {
        change_put(&act->change, &act->object);
        return 0;
    }
    if (more < 0) {
        return fault_set(fault, FAULT_INVALID, "size_gib", "a volume only grows");
    }
    if (!object_is(&act->object, "state", "available") &&
        !object_is(&act->object, "state", "in-use")) {
        return refuse_state(act, "", fault);
    }
    rc = admit_disk(act->compute, &act->object, more, fault);
    if (rc == 0) {
        object_set_text(&act->object, "state", "resizing");
        begin_work(act, "is to grow");
    }
    return rc;
}

static int change_from(struct act *act, const json_t *before, struct fault *fault)
{
    int64_t old_gib = object_number(&act->object, "size_gib");
    bool needs_stop = false;
    char old_name[ID_BYTES];
    json_t *forwards = json_incref(json_object_get(act->object.json, "forwards"));
    int rc;

    (void)snprintf(old_name, sizeof(old_name), "%s", object_text(&act->object, "name"));
    rc = kind_parse_change(kind_spec(act->kind), act->object.json, act->parameters, &needs_stop,
                           fault);
    rc = rc < 0 ? rc : change_name(act, old_name, fault);
    if (rc == 0 && act->kind == KIND_INSTANCE) {
        rc = change_instance(act, before, needs_stop, forwards, fault);
    } else if (rc == 0 && act->kind == KIND_VOLUME) {
        rc = change_volume(act, old_gib, fault);
    } else if (rc == 0) {
        rc = act->kind == KIND_ALARM  ? alarm_prepare(act->compute, &act->object, fault)
             : act->kind == KIND_HOOK ? hook_prepare(act->compute, &act->object, false, fault)
                                      : 0;
        if (rc == 0) {
            change_put(&act->change, &act->object);
        }
    }
    json_decref(forwards);
    return rc;
}

static int do_change(struct act *act, struct fault *fault)
{
    json_t *before = json_deep_copy(act->object.json);
    int rc = change_from(act, before, fault);

    json_decref(before);
    return rc;
}

int compute_change(struct compute *compute, const struct compute_call *call, enum kind kind,
                   const char *id, const json_t *changes, uint64_t revision, json_t **ret_answer,
                   struct fault *fault)
{
    char action[64];
    struct act act = {.compute = compute,
                      .call = call,
                      .kind = kind,
                      .id = id,
                      .action = action,
                      .parameters = changes,
                      .revision = revision};

    (void)snprintf(action, sizeof(action), "%s.change", kind_spec(kind)->name);
    return run_act(&act, do_change, ret_answer, fault);
}

/* ---- deletion ---- */

static int fail_if_used(void *opaque, struct object *object)
{
    (void)opaque;
    (void)object;
    return -EBUSY;
}

static int check_project_is_empty(struct act *act, struct fault *fault)
{
    static const enum kind kinds[] = {KIND_INSTANCE, KIND_VOLUME, KIND_SNAPSHOT,
                                      KIND_NIC,      KIND_ALARM,  KIND_HOOK};

    if (object_is(&act->object, "name", COMPUTE_DEFAULT_PROJECT)) {
        return fault_set(fault, FAULT_CONFLICT, NULL, "the project \"%s\" stays",
                         COMPUTE_DEFAULT_PROJECT);
    }
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        int rc = object_each(act->compute, kinds[i], act->object.id, fail_if_used, NULL, fault);

        if (rc == -EBUSY) {
            return fault_set(fault, FAULT_CONFLICT, NULL, "the project has %s; delete them first",
                             kind_spec(kinds[i])->plural);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int do_delete(struct act *act, struct fault *fault)
{
    int rc = 0;

    switch (act->kind) {
    case KIND_INSTANCE:
        if (object_is(&act->object, "state", "deleting")) {
            return refuse_state(act, "", fault);
        }
        object_set_text(&act->object, "state", "deleting");
        begin_work(act, "is to be deleted");
        return 0;
    case KIND_VOLUME:
        if (!object_is(&act->object, "state", "available") &&
            !object_is(&act->object, "state", "failed")) {
            return refuse_state(act, "", fault);
        }
        object_set_text(&act->object, "state", "deleting");
        begin_work(act, "is to be deleted");
        return 0;
    case KIND_SNAPSHOT:
        rc = snapshot_delete(&act->change, &act->object, fault);
        if (rc == 0) {
            begin_work(act, "is to be deleted");
        }
        return rc;
    case KIND_NIC:
        if (!object_is(&act->object, "state", "available")) {
            return refuse_state(act, "", fault);
        }
        act->is_removed = true;
        nic_remove(&act->change, &act->object);
        return 0;
    case KIND_PROJECT:
        rc = check_project_is_empty(act, fault);
        break;
    case KIND_TYPE:
    case KIND_KEY:
    case KIND_ALARM:
    case KIND_HOOK:
        break;
    case KIND_IMAGE:
    case KIND_OPERATION:
    case KIND_EVENT:
    case KIND_COUNT:
        rc = fault_set(fault, FAULT_CONFLICT, NULL, "a %s is not deleted by a call",
                       kind_spec(act->kind)->name);
        break;
    }
    if (rc == 0) {
        act->is_removed = true;
        change_remove(&act->change, &act->object);
        change_drop_name(&act->change, act->kind, act->object.project,
                         object_text(&act->object, "name"));
    }
    return rc;
}

int compute_delete(struct compute *compute, const struct compute_call *call, enum kind kind,
                   const char *id, json_t **ret_answer, struct fault *fault)
{
    char action[64];
    struct act act = {.compute = compute, .call = call, .kind = kind, .id = id, .action = action};

    if (kind == KIND_IMAGE) {
        return fault_set(fault, FAULT_CONFLICT, NULL,
                         "images are removed by the command: corbel image remove");
    }
    (void)snprintf(action, sizeof(action), "%s.delete", kind_spec(kind)->name);
    return run_act(&act, do_delete, ret_answer, fault);
}

/* ---- snapshots ---- */

static int do_restore(struct act *act, struct fault *fault)
{
    int rc = snapshot_restore(&act->change, &act->object, fault);

    if (rc == 0) {
        begin_work(act, "is to be put back");
    }
    return rc;
}

int compute_restore(struct compute *compute, const struct compute_call *call, const char *id,
                    json_t **ret_answer, struct fault *fault)
{
    struct act act = {.compute = compute,
                      .call = call,
                      .kind = KIND_SNAPSHOT,
                      .id = id,
                      .action = "snapshot.restore"};

    return run_act(&act, do_restore, ret_answer, fault);
}

/* ---- actions ---- */

static void take_stop_parameters(struct act *act, const json_t *parameters)
{
    (void)json_object_set(act->object.json, "force", json_object_get(parameters, "force"));
    (void)json_object_set(act->object.json, "timeout_s", json_object_get(parameters, "timeout_s"));
}

static int do_start(struct act *act, const json_t *parameters, struct fault *fault)
{
    int rc;

    (void)parameters;
    if (!state_is(act, "stopped") && !state_is(act, "failed")) {
        return refuse_state(act, "", fault);
    }
    object_set_text(&act->object, "desired", "running");
    rc = admit_instance(act->compute, &act->object, false, fault);
    if (rc < 0) {
        return rc;
    }
    object_set_text(&act->object, "state", "starting");
    object_clear(&act->object, "reason");
    object_set_number(&act->object, "generation", object_number(&act->object, "generation") + 1);
    begin_work(act, "is to be started");
    return 0;
}

static int do_stop(struct act *act, const json_t *parameters, struct fault *fault)
{
    if (state_is(act, "stopped") || state_is(act, "failed") || state_is(act, "deleting")) {
        return refuse_state(act, "", fault);
    }
    take_stop_parameters(act, parameters);
    object_set_text(&act->object, "desired", "stopped");
    object_clear(&act->object, "paused");
    object_clear(&act->object, "restarting");
    begin_work(act, "is to be stopped");
    return 0;
}

static int do_restart(struct act *act, const json_t *parameters, struct fault *fault)
{
    if (!state_is(act, "running") && !state_is(act, "paused")) {
        return refuse_state(act, "", fault);
    }
    take_stop_parameters(act, parameters);
    object_set_flag(&act->object, "restarting", true);
    object_clear(&act->object, "paused");
    begin_work(act, "is to be restarted");
    return 0;
}

static int do_pause(struct act *act, const json_t *parameters, struct fault *fault)
{
    (void)parameters;
    if (!state_is(act, "running")) {
        return refuse_state(act, "", fault);
    }
    object_set_flag(&act->object, "paused", true);
    begin_work(act, "is to be paused");
    return 0;
}

static int do_resume(struct act *act, const json_t *parameters, struct fault *fault)
{
    (void)parameters;
    if (!state_is(act, "paused")) {
        return refuse_state(act, "", fault);
    }
    object_clear(&act->object, "paused");
    begin_work(act, "is to go on");
    return 0;
}

/* As a change of these fields, while it runs or not. */
static int do_resize(struct act *act, const json_t *parameters, struct fault *fault)
{
    const json_t *given = act->parameters;
    int rc;

    if (json_object_size(parameters) == 0) {
        return fault_set(fault, FAULT_INVALID, NULL, "give \"type\", \"cpus\" or \"memory_mib\"");
    }
    act->parameters = parameters;
    rc = do_change(act, fault);
    act->parameters = given;
    return rc;
}

static int (*const action_fns[ACTION_COUNT])(struct act *act, const json_t *parameters,
                                             struct fault *fault) = {
    [ACTION_START] = do_start, [ACTION_STOP] = do_stop,     [ACTION_RESTART] = do_restart,
    [ACTION_PAUSE] = do_pause, [ACTION_RESUME] = do_resume, [ACTION_RESIZE] = do_resize,
};

/* The action's row, by the name after "instance.". */
static int find_action(const char *name)
{
    unsigned count;
    const struct compute_action *actions = compute_actions(&count);

    for (unsigned i = 0; i < count; i++) {
        if (strcmp(actions[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -ENOENT;
}

static int do_action(struct act *act, struct fault *fault)
{
    unsigned count;
    int index = find_action(act->action + strlen("instance."));
    const struct compute_action *action = &compute_actions(&count)[index];
    const struct kind_spec spec = {
        .name = action->name, .fields = action->fields, .field_count = action->field_count};
    json_t *parameters = NULL;
    int rc = kind_parse_create(&spec, act->parameters, &parameters, fault);

    rc = rc < 0 ? rc : action_fns[index](act, parameters, fault);
    json_decref(parameters);
    return rc;
}

int compute_act(struct compute *compute, const struct compute_call *call, const char *action,
                const char *id, const json_t *parameters, json_t **ret_answer, struct fault *fault)
{
    char name[64];
    struct act act = {.compute = compute,
                      .call = call,
                      .kind = KIND_INSTANCE,
                      .id = id,
                      .action = name,
                      .parameters = parameters};

    if (find_action(action) < 0) {
        return fault_set(fault, FAULT_UNKNOWN, "action", "there is no action \"%.40s\"", action);
    }
    (void)snprintf(name, sizeof(name), "instance.%s", action);
    return run_act(&act, do_action, ret_answer, fault);
}

/* ---- cancellation ---- */

/* What ends a start is a stop; nothing else takes long enough to be ended by half. */
int compute_cancel(struct compute *compute, const struct compute_call *call, const char *id,
                   json_t **ret_operation, struct fault *fault)
{
    static const char force[] = "{\"force\": true}";
    struct object operation = {0};
    json_t *parameters, *answer = NULL;
    char project[ID_BYTES], target[ID_BYTES];
    struct compute_call inner = {.project = project, .actor = call->actor};
    bool has_ended;
    int rc = object_find(compute, KIND_OPERATION, call->project, id, &operation, fault);

    if (rc < 0) {
        return rc;
    }
    has_ended =
        !object_is(&operation, "state", "pending") && !object_is(&operation, "state", "running");
    if (has_ended || (!object_is(&operation, "action", "instance.create") &&
                      !object_is(&operation, "action", "instance.start") &&
                      !object_is(&operation, "action", "instance.restart"))) {
        rc = fault_set(fault, FAULT_CONFLICT, NULL,
                       has_ended ? "the operation has ended" : "the operation cannot be cancelled");
    }
    memcpy(project, operation.project, sizeof(project));
    (void)snprintf(target, sizeof(target), "%s", object_text(&operation, "target"));
    object_done(&operation);
    if (rc < 0) {
        return rc;
    }
    parameters = json_loads(force, 0, NULL);
    rc = compute_act(compute, &inner, "stop", target, parameters, &answer, fault);
    json_decref(parameters);
    json_decref(answer);
    return rc < 0 ? rc : compute_get(compute, call, KIND_OPERATION, id, ret_operation, fault);
}
