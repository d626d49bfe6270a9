/* compute_get(), compute_list(), compute_wait() and watches. */
#include "compute/compute_int.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_PAGE 100

int compute_get(struct compute *compute, const struct compute_call *call, enum kind kind,
                const char *id, json_t **ret_object, struct fault *fault)
{
    struct object object = {0};
    int rc;

    if (kind == KIND_IMAGE) {
        return images_get(compute, id, ret_object, fault);
    }
    rc = object_find(compute, kind, call->project, id, &object, fault);
    if (rc == 0) {
        *ret_object = object_answer(&object);
        object_done(&object);
    }
    return rc;
}

/* A value as a filter names it. */
static bool matches_value(const json_t *value, const char *wanted)
{
    char number[32];

    if (json_is_string(value)) {
        return strcmp(json_string_value(value), wanted) == 0;
    }
    if (json_is_integer(value)) {
        (void)snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(value));
        return strcmp(number, wanted) == 0;
    }
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            const char *item = json_string_value(json_array_get(value, i));

            if (item != NULL && strcmp(item, wanted) == 0) {
                return true;
            }
        }
    }
    return json_is_boolean(value) && strcmp(json_is_true(value) ? "true" : "false", wanted) == 0;
}

static bool matches(const json_t *object, const json_t *filter)
{
    json_t *given = (json_t *)(uintptr_t)filter;

    for (void *at = json_object_iter(given); at != NULL; at = json_object_iter_next(given, at)) {
        const char *name = json_object_iter_key(at);
        const char *wanted = json_string_value(json_object_iter_value(at));
        const json_t *value = strncmp(name, "tag.", 4) == 0
                                  ? json_object_get(json_object_get(object, "tags"), name + 4)
                                  : json_object_get(object, name);

        if (value == NULL || !matches_value(value, wanted)) {
            return false;
        }
    }
    return true;
}

static int check_filter(enum kind kind, const json_t *filter, struct fault *fault)
{
    json_t *given = (json_t *)(uintptr_t)filter;

    for (void *at = json_object_iter(given); at != NULL; at = json_object_iter_next(given, at)) {
        const char *name = json_object_iter_key(at);
        const struct field *field = kind_field(kind_spec(kind), name);

        if (!json_is_string(json_object_iter_value(at)) ||
            (strncmp(name, "tag.", 4) != 0 &&
             (field == NULL || (field->access & FIELD_SECRET) != 0))) {
            return fault_set(fault, FAULT_UNKNOWN, name,
                             "a %s cannot be found by \"%.60s\"; give a field, or tag.NAME",
                             kind_spec(kind)->name, name);
        }
    }
    return 0;
}

/* Collects a page: what matches after the cursor. */
struct collect {
    const struct compute_list *list;
    unsigned limit;
    json_t *items;
    char last[ID_BYTES];
    bool has_more;
};

static int collect_one(void *opaque, struct object *object)
{
    struct collect *collect = opaque;
    json_t *answer;

    if (collect->list->cursor != NULL && strcmp(object->id, collect->list->cursor) <= 0) {
        return 0;
    }
    answer = object_answer(object);
    if (collect->list->filter != NULL && !matches(answer, collect->list->filter)) {
        json_decref(answer);
        return 0;
    }
    if (json_array_size(collect->items) == collect->limit) {
        json_decref(answer);
        collect->has_more = true;
        return 1;
    }
    memcpy(collect->last, object->id, ID_BYTES);
    (void)json_array_append_new(collect->items, answer);
    return 0;
}

static int list_images(struct compute *compute, struct collect *collect, struct fault *fault)
{
    json_t *all = NULL;
    int rc = images_list(compute, &all, fault);

    for (size_t i = 0; rc == 0 && i < json_array_size(all); i++) {
        json_t *image = json_array_get(all, i);
        const char *id = json_string_value(json_object_get(image, "id"));

        if ((collect->list->cursor != NULL && strcmp(id, collect->list->cursor) <= 0) ||
            (collect->list->filter != NULL && !matches(image, collect->list->filter))) {
            continue;
        }
        if (json_array_size(collect->items) == collect->limit) {
            collect->has_more = true;
            break;
        }
        (void)snprintf(collect->last, sizeof(collect->last), "%s", id);
        (void)json_array_append(collect->items, image);
    }
    json_decref(all);
    return rc;
}

int compute_list(struct compute *compute, const struct compute_call *call, enum kind kind,
                 const struct compute_list *list, json_t **ret_page, struct fault *fault)
{
    struct collect collect = {.list = list, .limit = list->limit != 0 ? list->limit : DEFAULT_PAGE};
    char project[ID_BYTES];
    bool is_global = kind_spec(kind)->is_global;
    uint64_t revision = 0;
    struct err err;
    int rc = check_filter(kind, list->filter, fault);

    if (rc == 0 && collect.limit > COMPUTE_MAX_PAGE) {
        rc = fault_set(fault, FAULT_INVALID, "limit", "a page has at most %u objects",
                       COMPUTE_MAX_PAGE);
    }
    if (rc == 0 && !is_global && call->project != NULL) {
        rc = object_find_project(compute, call->project, project, fault);
    }
    if (rc < 0) {
        return rc;
    }
    /* Before reading: a watch from here on sees whatever changes meanwhile, perhaps again. */
    rc = store_revision(compute->config.store, &revision, &err);
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    collect.items = json_array();
    rc = kind == KIND_IMAGE
             ? list_images(compute, &collect, fault)
             : object_each(compute, kind, is_global || call->project == NULL ? NULL : project,
                           collect_one, &collect, fault);
    if (rc < 0) {
        json_decref(collect.items);
        return rc;
    }
    *ret_page = json_pack("{s:o, s:I}", "items", collect.items, "revision", (json_int_t)revision);
    if (collect.has_more) {
        (void)json_object_set_new(*ret_page, "next", json_string(collect.last));
    }
    return 0;
}

static bool has_ended(const json_t *operation)
{
    const char *state = json_string_value(json_object_get(operation, "state"));

    return state != NULL && strcmp(state, "pending") != 0 && strcmp(state, "running") != 0;
}

int compute_wait(struct compute *compute, const struct compute_call *call, const char *id,
                 unsigned timeout_ms, json_t **ret_operation, struct fault *fault)
{
    uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                      .tv_nsec = (long)(deadline_ns % NS_PER_S)};

    for (;;) {
        json_t *operation = NULL;
        uint64_t commits;
        bool is_over = false;
        int rc;

        mutex_lock(&compute->lock);
        commits = compute->commits;
        mutex_unlock(&compute->lock);
        rc = compute_get(compute, call, KIND_OPERATION, id, &operation, fault);
        if (rc < 0) {
            return rc;
        }
        mutex_lock(&compute->lock);
        while (!has_ended(operation) && compute->commits == commits && !is_over) {
            is_over = compute->is_closing ||
                      pthread_cond_timedwait(&compute->committed, &compute->lock.raw, &deadline) ==
                          ETIMEDOUT;
        }
        mutex_unlock(&compute->lock);
        if (has_ended(operation) || is_over) {
            *ret_operation = operation;
            return 0;
        }
        json_decref(operation);
    }
}

struct compute_watch {
    struct compute *compute;
    struct store_watch *watch;
    bool has_project;
    char project[ID_BYTES];
};

int compute_watch_open(struct compute *compute, const struct compute_call *call, uint64_t revision,
                       struct compute_watch **ret_watch, struct fault *fault)
{
    struct compute_watch *watch = calloc(1, sizeof(*watch));
    struct err err;
    int rc = 0;

    if (watch == NULL) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    watch->compute = compute;
    watch->has_project = call->project != NULL;
    if (call->project != NULL) {
        rc = object_find_project(compute, call->project, watch->project, fault);
    }
    if (rc == 0 && revision == 0) {
        rc = store_revision(compute->config.store, &revision, &err);
        rc = rc < 0 ? fault_set_err(fault, rc, &err) : 0;
    }
    if (rc == 0) {
        rc = store_watch_open(compute->config.store, "/v1/", revision, &watch->watch, &err);
        rc = rc < 0 ? fault_set_err(fault, rc, &err) : 0;
    }
    if (rc < 0) {
        free(watch);
        return rc;
    }
    *ret_watch = watch;
    return 0;
}

int compute_watch_fd(const struct compute_watch *watch)
{
    return store_watch_fd(watch->compute->config.store, watch->watch);
}

/* A change as it is told; NULL for one that is not. */
static json_t *describe(const struct compute_watch *watch, const struct store_record *record)
{
    struct object object = {.revision = record->revision};
    json_t *change;

    if (!object_parse_key(record->key, &object.kind, object.project, object.id) ||
        (watch->has_project && strcmp(object.project, watch->project) != 0)) {
        return NULL;
    }
    object.json = record->value != NULL ? json_loads(record->value, 0, NULL) : NULL;
    change = json_pack("{s:I, s:s, s:s, s:o?}", "revision", (json_int_t)record->revision, "kind",
                       kind_spec(object.kind)->name, "id", object.id, "object",
                       object.json != NULL ? object_answer(&object) : json_null());
    json_decref(object.json);
    return change;
}

int compute_watch_next(struct compute_watch *watch, unsigned max, json_t **ret_changes,
                       struct fault *fault)
{
    struct store_page page;
    struct err err;
    json_t *changes;
    int rc = store_watch_next(watch->compute->config.store, watch->watch,
                              max < STORE_MAX_PAGE ? max : STORE_MAX_PAGE, &page, &err);

    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    changes = json_array();
    for (unsigned i = 0; i < page.count; i++) {
        json_t *change = describe(watch, &page.records[i]);

        if (change != NULL) {
            (void)json_array_append_new(changes, change);
        }
    }
    store_page_done(&page);
    *ret_changes = changes;
    return 0;
}

void compute_watch_close(struct compute_watch *watch)
{
    if (watch != NULL) {
        store_watch_close(watch->compute->config.store, watch->watch);
        free(watch);
    }
}
