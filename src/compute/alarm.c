/*
 * Alarms as objects. metrics/alarms.c evaluates them.
 *
 * A transition, its event and what is owed because of it are one commit. A
 * debt is the text KIND.INSTANCE.TURN: "a" the action, "h1" and "h0" to tell
 * the webhook of alarm and ok; the turn makes it another each time.
 */
#include "compute/compute_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const debt_kinds[] = {
    [DEBT_ACTION] = "a", [DEBT_HOOK_ALARM] = "h1", [DEBT_HOOK_OK] = "h0"};

int alarm_check_webhook(const char *url, struct fault *fault)
{
    if (url[0] != '\0' && strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0) {
        return fault_set(fault, FAULT_INVALID, "webhook",
                         "a webhook begins with http:// or https://");
    }
    return 0;
}

int alarm_prepare(struct compute *compute, struct object *alarm, struct fault *fault)
{
    const char *instance = object_text(alarm, "instance");
    const char *tag = object_text(alarm, "tag");
    struct object found = {0};
    int rc = alarm_check_webhook(object_text(alarm, "webhook"), fault);

    if (rc == 0 && (instance[0] != '\0') == (tag[0] != '\0')) {
        rc = fault_set(fault, FAULT_INVALID, "instance",
                       "an alarm watches an instance, or a tag: give one of them");
    }
    if (rc == 0 && tag[0] != '\0' && (strchr(tag, '=') == NULL || tag[0] == '=')) {
        rc = fault_set(fault, FAULT_INVALID, "tag", "a tag is given as NAME=VALUE");
    }
    if (rc == 0 && instance[0] != '\0') {
        rc = object_find(compute, KIND_INSTANCE, alarm->project, instance, &found, fault);
        rc = call_name_field(rc, "instance", fault);
    }
    if (rc < 0) {
        return rc;
    }
    if (instance[0] != '\0') {
        object_set_text(alarm, "instance", found.id);
        object_done(&found);
    }
    if (json_object_get(alarm->json, "firing") == NULL) {
        object_set_text(alarm, "state", "no-data");
        object_set_time(alarm, "since");
        (void)json_object_set_new(alarm->json, "firing", json_array());
    }
    return 0;
}

struct each_alarm {
    int (*fn)(void *opaque, const json_t *alarm);
    void *opaque;
};

static int tell_alarm(void *opaque, struct object *object)
{
    struct each_alarm *each = opaque;
    json_t *answer = object_answer(object);
    json_t *owed = json_object_get(object->json, "owed");
    int rc;

    (void)json_object_set_new(answer, "owed", owed != NULL ? json_incref(owed) : json_array());
    rc = each->fn(each->opaque, answer);
    json_decref(answer);
    return rc;
}

int compute_each_alarm(struct compute *compute, int (*fn)(void *opaque, const json_t *alarm),
                       void *opaque, struct fault *fault)
{
    struct each_alarm each = {.fn = fn, .opaque = opaque};

    return object_each(compute, KIND_ALARM, NULL, tell_alarm, &each, fault);
}

static int load_alarm(struct compute *compute, const json_t *alarm, struct object *ret_object,
                      struct fault *fault)
{
    const char *project = json_string_value(json_object_get(alarm, "project"));
    const char *id = json_string_value(json_object_get(alarm, "id"));

    return object_load(compute, KIND_ALARM, project, id, ret_object, fault);
}

static size_t find_text(const json_t *array, const char *text)
{
    size_t i = 0;

    while (i < json_array_size(array) &&
           strcmp(json_string_value(json_array_get(array, i)), text) != 0) {
        i++;
    }
    return i;
}

static void owe(struct object *alarm, const char *kind, const char *instance)
{
    json_t *owed = json_object_get(alarm->json, "owed");
    char text[ID_BYTES + 32];

    if (owed == NULL) {
        owed = json_array();
        (void)json_object_set_new(alarm->json, "owed", owed);
    }
    (void)snprintf(text, sizeof(text), "%s.%s.%lld", kind, instance,
                   (long long)object_number(alarm, "turn"));
    (void)json_array_append_new(owed, json_string(text));
}

static void note_turn(struct change *change, struct object *alarm, const struct compute_turn *turn)
{
    json_t *firing = json_object_get(alarm->json, "firing");
    char value[40] = "has no data";

    object_set_number(alarm, "turn", object_number(alarm, "turn") + 1);
    if (turn->is_alarm) {
        (void)json_array_append_new(firing, json_string(turn->instance));
        if (!object_is(alarm, "action", "none")) {
            owe(alarm, debt_kinds[DEBT_ACTION], turn->instance);
        }
    } else {
        (void)json_array_remove(firing, find_text(firing, turn->instance)); /* absent is fine */
    }
    if (object_text(alarm, "webhook")[0] != '\0') {
        owe(alarm, debt_kinds[turn->is_alarm ? DEBT_HOOK_ALARM : DEBT_HOOK_OK], turn->instance);
    }
    if (turn->has_value) {
        (void)snprintf(value, sizeof(value), "is at %.*g", turn->value < 1e6 ? 6 : 15, turn->value);
    }
    change_event(change, alarm, turn->is_alarm ? "warning" : "info",
                 turn->is_alarm ? "alarm.raised" : "alarm.ended", NULL,
                 "\"%s\": %s of \"%s\" %s; the alarm is for %s %lld", object_text(alarm, "name"),
                 object_text(alarm, "metric"), turn->name, value, object_text(alarm, "comparison"),
                 (long long)object_number(alarm, "threshold"));
}

int compute_alarm_settle(struct compute *compute, const json_t *alarm, const char *state,
                         const struct compute_turn *turns, unsigned count, struct fault *fault)
{
    struct object object = {0};
    struct change change;
    int rc = load_alarm(compute, alarm, &object, fault);

    if (rc < 0) {
        return rc;
    }
    if ((json_int_t)object.revision != json_integer_value(json_object_get(alarm, "revision"))) {
        object_done(&object);
        return fault_set(fault, FAULT_STALE, "revision", "the alarm has been changed");
    }
    if (json_object_get(object.json, "firing") == NULL) {
        (void)json_object_set_new(object.json, "firing", json_array());
    }
    change_begin(&change, compute);
    for (unsigned i = 0; i < count && i < COMPUTE_MAX_TURNS; i++) {
        note_turn(&change, &object, &turns[i]);
    }
    if (!object_is(&object, "state", state)) {
        object_set_text(&object, "state", state);
        object_set_time(&object, "since");
    }
    change_put(&change, &object);
    object_done(&object);
    return change_commit(&change, fault);
}

bool compute_alarm_debt(const json_t *alarm, const char *owed, struct compute_debt *ret_debt)
{
    const char *id = json_string_value(json_object_get(alarm, "id"));
    const char *first = strchr(owed, '.');
    const char *last = strrchr(owed, '.');

    for (size_t i = 0; first != NULL && last > first + 1 && i < ARRAY_LEN(debt_kinds); i++) {
        size_t len = (size_t)(first - owed);
        size_t id_len = (size_t)(last - first - 1);

        if (strlen(debt_kinds[i]) != len || strncmp(debt_kinds[i], owed, len) != 0 ||
            id_len >= sizeof(ret_debt->instance)) {
            continue;
        }
        *ret_debt = (struct compute_debt){.kind = (unsigned)i};
        memcpy(ret_debt->instance, first + 1, id_len);
        (void)snprintf(ret_debt->token, sizeof(ret_debt->token), "%s.%.60s", id, owed);
        return true;
    }
    return false;
}

int compute_alarm_act(struct compute *compute, const json_t *alarm, const struct compute_debt *debt,
                      struct fault *fault)
{
    const char *action = json_string_value(json_object_get(alarm, "action"));
    char actor[100];
    const struct compute_call call = {
        .project = json_string_value(json_object_get(alarm, "project")),
        .actor = actor,
        .token = debt->token,
    };
    json_t *answer = NULL;
    int rc;

    (void)snprintf(actor, sizeof(actor), "alarm:%s",
                   json_string_value(json_object_get(alarm, "id")));
    if (action == NULL || strcmp(action, "none") == 0) {
        return 0; /* changed meanwhile */
    }
    rc = compute_act(compute, &call, strcmp(action, "reboot") == 0 ? "restart" : action,
                     debt->instance, NULL, &answer, fault);
    json_decref(answer);
    return rc;
}

int compute_alarm_paid(struct compute *compute, const json_t *alarm, const char *owed,
                       const char *complaint, struct fault *fault)
{
    int rc = -ESTALE;

    for (unsigned i = 0; i < CALL_TRIES && rc == -ESTALE; i++) {
        struct object object = {0};
        struct change change;
        json_t *list;

        rc = load_alarm(compute, alarm, &object, fault);
        if (rc < 0) {
            return rc;
        }
        list = json_object_get(object.json, "owed");
        (void)json_array_remove(list, find_text(list, owed)); /* absent is fine */
        change_begin(&change, compute);
        change_put(&change, &object);
        if (complaint != NULL) {
            change_event(&change, &object, "error", "alarm.action", NULL, "\"%s\": %s",
                         object_text(&object, "name"), complaint);
        }
        object_done(&object);
        rc = change_commit(&change, fault);
    }
    return rc;
}
