/*
 * Webhooks of events, as objects. metrics/event_hooks.c tells them.
 *
 * The events themselves are the queue: a hook keeps which one it was told last
 * ("after"), and that goes on in the commit that notes it. Events of hooks are
 * told to none, or a failure would be the reason of the next.
 */
#include "compute/compute_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define PAGE 200u
#define MAX_LOOKED_AT 2000u /* at a time */
/* An event's id is older than its commit: younger ones may still come before it. */
#define SETTLED_S 2.0
#define CLOCK_SLACK_S 60.0
#define GIVE_UP_S 86400.0 /* after its event */

/* A secret of 256 bits for who has given none. */
static int make_secret(struct object *hook, struct fault *fault)
{
    unsigned char bytes[32];
    char text[2 * sizeof(bytes) + 1];

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes");
    }
    for (size_t i = 0; i < sizeof(bytes); i++) {
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
    object_set_text(hook, "secret", text);
    return 0;
}

int hook_prepare(struct compute *compute, struct object *hook, bool is_new, struct fault *fault)
{
    bool has_secret = object_text(hook, "secret")[0] != '\0';
    char id[ID_BYTES];
    int rc = alarm_check_webhook(object_text(hook, "webhook"), fault);

    if (rc == 0 && !is_new && !has_secret) {
        rc = fault_set(fault, FAULT_INVALID, "secret", "give another secret in place of this one");
    }
    if (rc < 0 || !is_new) {
        return rc;
    }
    rc = admit_one(compute, hook, fault);
    if (rc == 0 && !has_secret) {
        rc = make_secret(hook, fault);
    }
    object_make_id(kind_spec(KIND_EVENT)->prefix, id); /* as an event of now would have */
    object_set_text(hook, "after", id);
    object_set_text(hook, "state", "new");
    object_set_number(hook, "told", 0);
    object_set_number(hook, "lost", 0);
    (void)json_object_set_new(hook->json, "deliveries", json_array());
    return rc;
}

struct each_hook {
    int (*fn)(void *opaque, const json_t *hook);
    void *opaque;
};

static int tell_hook(void *opaque, struct object *object)
{
    struct each_hook *each = opaque;
    json_t *answer = object_answer(object);
    int rc = each->fn(each->opaque, answer);

    json_decref(answer);
    return rc;
}

int compute_each_hook(struct compute *compute, int (*fn)(void *opaque, const json_t *hook),
                      void *opaque, struct fault *fault)
{
    struct each_hook each = {.fn = fn, .opaque = opaque};

    return object_each(compute, KIND_HOOK, NULL, tell_hook, &each, fault);
}

static int load_hook(struct compute *compute, const json_t *hook, struct object *ret_object,
                     struct fault *fault)
{
    const char *project = json_string_value(json_object_get(hook, "project"));
    const char *id = json_string_value(json_object_get(hook, "id"));

    return object_load(compute, KIND_HOOK, project, id, ret_object, fault);
}

static unsigned rank(const char *level)
{
    return strcmp(level, "error") == 0 ? 2 : strcmp(level, "warning") == 0 ? 1 : 0;
}

static const char *text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text != NULL ? text : "";
}

static bool is_wanted(const struct object *hook, const json_t *event)
{
    const char *action = object_text(hook, "action");

    return strcmp(text_in(event, "kind"), kind_spec(KIND_HOOK)->name) != 0 &&
           rank(text_in(event, "level")) >= rank(object_text(hook, "level")) &&
           strncmp(text_in(event, "action"), action, strlen(action)) == 0;
}

struct hook_look {
    const struct object *hook;
    double now_s;
    char after[STORE_MAX_KEY_BYTES + 1]; /* the last key that was looked at */
    unsigned count;
    bool has_more;
    json_t *found;
};

static void look_at_page(struct hook_look *look, const struct store_page *page)
{
    look->has_more = page->has_more && look->count < MAX_LOOKED_AT;
    for (unsigned i = 0; i < page->count && look->found == NULL; i++) {
        json_t *event = json_loads(page->records[i].value, 0, NULL);

        if (json_number_value(json_object_get(event, "created")) > look->now_s - SETTLED_S) {
            look->has_more = false;
            json_decref(event);
            return;
        }
        look->count++;
        (void)snprintf(look->after, sizeof(look->after), "%s", page->records[i].key);
        if (is_wanted(look->hook, event)) {
            look->found = event;
        } else {
            json_decref(event);
        }
    }
}

static int look_for_event(struct compute *compute, struct hook_look *look, const char *prefix,
                          struct fault *fault)
{
    look->has_more = true;
    while (look->has_more && look->found == NULL) {
        struct store_page page;
        struct err err;
        int rc = store_list(compute->config.store, prefix, look->after, PAGE, &page, &err);

        if (rc < 0) {
            return fault_set_err(fault, rc, &err);
        }
        look_at_page(look, &page);
        store_page_done(&page);
    }
    return 0;
}

/* Ids of events begin with their time. One to come is from before the clock was set back: what
 * happened within the last minute may be told again then, with the same key. */
static void mend_after(const struct object *hook, double now_s, char after[ID_BYTES])
{
    const char *prefix = kind_spec(KIND_EVENT)->prefix;
    unsigned long long ms = 0;

    (void)snprintf(after, ID_BYTES, "%s", object_text(hook, "after"));
    if (strncmp(after, prefix, strlen(prefix)) == 0 &&
        sscanf(after + strlen(prefix), "%11llx", &ms) == 1 && // NOLINT(cert-err34-c): 11 digits
        (double)ms / 1e3 > now_s + CLOCK_SLACK_S) {
        (void)snprintf(after, ID_BYTES, "%s%011llx", prefix,
                       (unsigned long long)((now_s - CLOCK_SLACK_S) * 1e3));
    }
}

static double now_s(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* So many that it is not about are not looked at again. */
static int pass(struct compute *compute, struct object *hook, const char *after,
                struct fault *fault)
{
    struct change change;

    object_set_text(hook, "after", after);
    change_begin(&change, compute);
    change_put(&change, hook);
    return change_commit(&change, fault);
}

int compute_hook_next(struct compute *compute, const json_t *hook, json_t **ret_letter,
                      struct fault *fault)
{
    struct object object = {0};
    struct hook_look look = {.hook = &object, .now_s = now_s()};
    char prefix[STORE_MAX_KEY_BYTES + 1], after[ID_BYTES];
    int rc = load_hook(compute, hook, &object, fault);

    if (rc < 0) {
        return rc;
    }
    mend_after(&object, look.now_s, after);
    object_key(prefix, KIND_EVENT, object.project, "");
    object_key(look.after, KIND_EVENT, object.project, after);
    rc = look_for_event(compute, &look, prefix, fault);
    if (rc == 0 && look.found == NULL && look.count >= MAX_LOOKED_AT / 2) {
        rc = pass(compute, &object, look.after + strlen(prefix), fault);
    } else if (rc == 0 && look.found != NULL) {
        *ret_letter =
            json_pack("{s:O, s:s, s:s}", "event", look.found, "webhook",
                      object_text(&object, "webhook"), "secret", object_text(&object, "secret"));
        rc = *ret_letter != NULL ? 1 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    json_decref(look.found);
    object_done(&object);
    return rc;
}

/* ---- what became of them ---- */

/* The try as the first of the last ones; those of one event are one, which counts them. */
static void note_delivery(struct object *hook, const struct compute_delivery *delivery,
                          const char *state)
{
    json_t *all = json_object_get(hook->json, "deliveries");
    const json_t *last = json_array_get(all, 0);
    json_int_t tries = 1;
    json_t *entry;

    if (all == NULL) {
        all = json_array();
        (void)json_object_set_new(hook->json, "deliveries", all);
    }
    if (strcmp(text_in(last, "event"), text_in(delivery->event, "id")) == 0) {
        tries += json_integer_value(json_object_get(last, "tries"));
        (void)json_array_remove(all, 0);
    }
    entry = json_pack("{s:s, s:s, s:s, s:f, s:I, s:I, s:I}", "event",
                      text_in(delivery->event, "id"), "action", text_in(delivery->event, "action"),
                      "state", state, "time", now_s(), "tries", tries, "status",
                      (json_int_t)delivery->status, "took_ms", (json_int_t)delivery->took_ms);
    if (delivery->complaint != NULL) {
        (void)json_object_set_new(
            entry, "error", json_stringn(delivery->complaint, strnlen(delivery->complaint, 200)));
    }
    (void)json_array_insert_new(all, 0, entry);
    while (json_array_size(all) > HOOK_DELIVERIES) {
        (void)json_array_remove(all, json_array_size(all) - 1);
    }
}

static const char *settle(const struct compute_delivery *delivery)
{
    double created_s = json_number_value(json_object_get(delivery->event, "created"));

    return delivery->result == DELIVERY_TOLD                                         ? "told"
           : delivery->result == DELIVERY_REFUSED || now_s() > created_s + GIVE_UP_S ? "lost"
                                                                                     : "failing";
}

int compute_hook_note(struct compute *compute, const json_t *hook,
                      const struct compute_delivery *delivery, struct fault *fault)
{
    const char *state = settle(delivery);
    bool is_lost = strcmp(state, "lost") == 0, is_settled = strcmp(state, "failing") != 0;
    int rc = -ESTALE;

    for (unsigned i = 0; i < CALL_TRIES && rc == -ESTALE; i++) {
        const char *sum = is_lost ? "lost" : "told";
        struct object object = {0};
        struct change change;

        rc = load_hook(compute, hook, &object, fault);
        if (rc < 0) {
            return rc;
        }
        note_delivery(&object, delivery, state);
        object_set_text(&object, "state", delivery->result == DELIVERY_TOLD ? "ok" : "failing");
        if (is_settled) {
            object_set_text(&object, "after", text_in(delivery->event, "id"));
            object_set_number(&object, sum, object_number(&object, sum) + 1);
        }
        change_begin(&change, compute);
        change_put(&change, &object);
        if (is_lost) {
            change_event(&change, &object, "error", "hook.failed", NULL,
                         "\"%s\" was not told of %s: %s", object_text(&object, "name"),
                         text_in(delivery->event, "id"), delivery->complaint);
        }
        object_done(&object);
        rc = change_commit(&change, fault);
    }
    return rc < 0 ? rc : is_settled;
}
