/* compute_prune(): old events, operations and tokens. */
#include "compute/compute_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define S_PER_DAY 86400.0
#define MAX_AT_ONCE 5000u
#define PER_COMMIT 40u
#define PAGE 500u

struct doomed {
    char key[STORE_MAX_KEY_BYTES + 1];
    uint64_t revision;
};

/* The records that go; those of one project follow each other, oldest first. */
struct pruning {
    struct compute *compute;
    double now_s;
    double max_age_s; /* 0: none is too old */
    struct doomed *doomed;
    unsigned count;
    /* Events: */
    unsigned keep_events;
    json_t *totals; /* those that are left, by project */
};

static int doom(struct pruning *pruning, const char *key, uint64_t revision)
{
    struct doomed *one;

    if (pruning->count == MAX_AT_ONCE) {
        return 1;
    }
    one = &pruning->doomed[pruning->count++];
    (void)snprintf(one->key, sizeof(one->key), "%s", key);
    one->revision = revision;
    return 0;
}

static int doom_object(struct pruning *pruning, const struct object *object)
{
    char key[STORE_MAX_KEY_BYTES + 1];

    object_key(key, object->kind, object->project, object->id);
    return doom(pruning, key, object->revision);
}

static bool is_old(const struct pruning *pruning, const json_t *json, const char *field)
{
    double at_s = json_number_value(json_object_get(json, field));

    return pruning->max_age_s > 0 && at_s > 0 && at_s < pruning->now_s - pruning->max_age_s;
}

static int count_event(void *opaque, struct object *event)
{
    struct pruning *pruning = opaque;
    json_int_t before = json_integer_value(json_object_get(pruning->totals, event->project));

    (void)json_object_set_new(pruning->totals, event->project, json_integer(before + 1));
    return 0;
}

/* They come by project, oldest first. */
static int look_at_event(void *opaque, struct object *event)
{
    struct pruning *pruning = opaque;
    json_int_t left = json_integer_value(json_object_get(pruning->totals, event->project));
    bool is_surplus = pruning->keep_events != 0 && left > (json_int_t)pruning->keep_events;

    if (!is_surplus && !is_old(pruning, event->json, "created")) {
        return 0;
    }
    (void)json_object_set_new(pruning->totals, event->project, json_integer(left - 1));
    return doom_object(pruning, event);
}

static int look_at_operation(void *opaque, struct object *operation)
{
    struct pruning *pruning = opaque;
    bool has_ended =
        !object_is(operation, "state", "pending") && !object_is(operation, "state", "running");

    return has_ended && is_old(pruning, operation->json, "ended") ? doom_object(pruning, operation)
                                                                  : 0;
}

static int look_at_tokens(struct pruning *pruning, struct fault *fault)
{
    char after[STORE_MAX_KEY_BYTES + 1] = "";
    bool has_more = true;
    int rc = 0;

    while (rc == 0 && has_more) {
        struct store_page page;
        struct err err;

        rc = store_list(pruning->compute->config.store, "/v1/token/",
                        after[0] != '\0' ? after : NULL, PAGE, &page, &err);
        if (rc < 0) {
            return fault_set_err(fault, rc, &err);
        }
        has_more = page.has_more;
        for (unsigned i = 0; rc == 0 && i < page.count; i++) {
            json_t *token = json_loads(page.records[i].value, 0, NULL);

            (void)snprintf(after, sizeof(after), "%s", page.records[i].key);
            if (is_old(pruning, token, "created")) {
                rc = doom(pruning, page.records[i].key, page.records[i].revision);
            }
            json_decref(token);
        }
        store_page_done(&page);
    }
    return rc < 0 ? rc : 0;
}

/* In small commits, so that others come in between. */
static int remove_doomed(struct pruning *pruning, unsigned *count, struct fault *fault)
{
    for (unsigned done = 0; done < pruning->count; done += PER_COMMIT) {
        struct store_guard guards[PER_COMMIT];
        struct store_write writes[PER_COMMIT];
        unsigned n = pruning->count - done < PER_COMMIT ? pruning->count - done : PER_COMMIT;
        struct store_commit commit = {
            .guards = guards, .guard_count = n, .writes = writes, .write_count = n};
        struct err err;
        int rc;

        for (unsigned i = 0; i < n; i++) {
            const struct doomed *one = &pruning->doomed[done + i];

            guards[i] = (struct store_guard){.key = one->key, .revision = one->revision};
            writes[i] = (struct store_write){.key = one->key};
        }
        rc = store_commit(pruning->compute->config.store, &commit, NULL, &err);
        if (rc < 0 && rc != -ESTALE) { /* somebody changed one of them: another time */
            return fault_set_err(fault, rc, &err);
        }
        *count += rc == 0 ? n : 0;
    }
    pruning->count = 0;
    return 0;
}

int compute_prune(struct compute *compute, const struct compute_keep *keep, unsigned *ret_count,
                  struct fault *fault)
{
    struct pruning pruning = {.compute = compute,
                              .now_s = (double)time(NULL),
                              .max_age_s = keep->days * S_PER_DAY,
                              .keep_events = keep->events,
                              .doomed = calloc(MAX_AT_ONCE, sizeof(*pruning.doomed)),
                              .totals = json_object()};
    unsigned count = 0;
    int rc = pruning.doomed != NULL
                 ? object_each(compute, KIND_EVENT, NULL, count_event, &pruning, fault)
                 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");

    rc = rc < 0 ? rc : object_each(compute, KIND_EVENT, NULL, look_at_event, &pruning, fault);
    rc = rc < 0 ? rc : remove_doomed(&pruning, &count, fault);
    rc = rc < 0 ? rc
                : object_each(compute, KIND_OPERATION, NULL, look_at_operation, &pruning, fault);
    rc = rc < 0 ? rc : remove_doomed(&pruning, &count, fault);
    pruning.max_age_s = keep->token_days * S_PER_DAY;
    rc = rc < 0 ? rc : look_at_tokens(&pruning, fault);
    rc = rc < 0 ? rc : remove_doomed(&pruning, &count, fault);
    free(pruning.doomed);
    json_decref(pruning.totals);
    *ret_count = count;
    return rc;
}
