/* What projects have used, by the hour: what the store has of it (compute/usage.h). */
#include "compute/usage.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE_KEY "/usage/state"
#define MAX_ITEMS 3000u /* of one record; the rest of an hour is summed up under "" */
#define PER_COMMIT 100u /* of STORE_MAX_OPS */

static void take_state(struct compute_usage *usage, const json_t *state)
{
    json_t *counters = json_object_get(state, "counters");
    json_t *pending = json_object_get(state, "pending");
    const char *boot = json_string_value(json_object_get(state, "boot"));

    usage->at_s = (uint64_t)json_integer_value(json_object_get(state, "at"));
    usage->up_s = (uint64_t)json_integer_value(json_object_get(state, "up"));
    (void)snprintf(usage->boot, sizeof(usage->boot), "%s", boot != NULL ? boot : "");
    if (json_is_object(counters)) {
        (void)json_object_update(usage->counters, counters);
    }
    if (json_is_object(pending)) {
        (void)json_object_update(usage->pending, pending);
    }
}

int usage_load(struct compute_usage *usage, struct fault *fault)
{
    struct store_record record;
    struct err err;
    json_t *state;
    int rc;

    if (usage->is_loaded) {
        return 0;
    }
    rc = store_get(usage->compute->config.store, STATE_KEY, &record, &err);
    if (rc < 0 && rc != -ENOENT) {
        return fault_set_err(fault, rc, &err);
    }
    if (rc == 0) {
        state = json_loads(record.value, 0, NULL);
        take_state(usage, state);
        json_decref(state);
        store_record_done(&record);
    }
    usage->is_loaded = true;
    return 0;
}

static int load_hour(struct compute_usage *usage, const char *key, json_t **ret_record,
                     uint64_t *ret_revision, struct fault *fault)
{
    struct store_record record;
    struct err err;
    int rc = store_get(usage->compute->config.store, key, &record, &err);

    *ret_revision = 0;
    *ret_record = NULL;
    if (rc == 0) {
        *ret_record = json_loads(record.value, 0, NULL);
        *ret_revision = record.revision;
        store_record_done(&record);
    } else if (rc != -ENOENT) {
        return fault_set_err(fault, rc, &err);
    }
    if (*ret_record == NULL) {
        *ret_record = json_object(); /* one that is damaged begins anew */
    }
    return 0;
}

/* The record with what is pending; its project's name as it is now. */
static void merge(struct compute_usage *usage, json_t *record, const char *project, json_t *pending)
{
    struct object found = {0};
    json_t *items = usage_child(record, "items"), *item;
    const char *id;

    if (object_load(usage->compute, KIND_PROJECT, GLOBAL_PROJECT, project, &found, NULL) == 0) {
        (void)json_object_set(record, "name", json_object_get(found.json, "name"));
        object_done(&found);
    }
    json_object_foreach(pending, id, item)
    {
        bool has_room = json_object_get(items, id) != NULL || json_object_size(items) < MAX_ITEMS;

        if (!has_room) {
            (void)json_object_del(item, "name"); /* of one of many */
        }
        usage_add_item(usage_child(items, has_room ? id : ""), item);
    }
}

struct usage_commit {
    struct compute_usage *usage;
    json_t *rest; /* what is pending still when this is done */
    struct store_guard guards[PER_COMMIT];
    struct store_write writes[PER_COMMIT + 1];
    char *keys[PER_COMMIT], *values[PER_COMMIT + 1];
    unsigned count;
};

static int collect_hour(struct usage_commit *commit, const char *name, json_t *pending,
                        struct fault *fault)
{
    const char *slash = strchr(name, '/');
    json_t *record = NULL;
    uint64_t revision = 0;
    char *key = NULL, *value;
    int rc = asprintf(&key, USAGE_HOUR_PREFIX "%s", name) < 0
                 ? fault_set(fault, FAULT_INTERNAL, NULL, "out of memory")
                 : load_hour(commit->usage, key, &record, &revision, fault);

    if (rc < 0) {
        free(key);
        return rc;
    }
    merge(commit->usage, record, slash != NULL ? slash + 1 : "", pending);
    value = json_dumps(record, JSON_COMPACT);
    json_decref(record);
    commit->keys[commit->count] = key;
    commit->values[commit->count] = value;
    commit->guards[commit->count] = (struct store_guard){.key = key, .revision = revision};
    commit->writes[commit->count] = (struct store_write){.key = key, .value = value};
    commit->count++;
    return value != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
}

static int collect(struct usage_commit *commit, struct fault *fault)
{
    struct compute_usage *usage = commit->usage;
    const char *name;
    json_t *pending, *state;
    char *value;
    int rc = 0;

    json_object_foreach(usage->pending, name, pending)
    {
        if (rc == 0 && commit->count < PER_COMMIT) {
            rc = collect_hour(commit, name, pending, fault);
        } else {
            (void)json_object_set(commit->rest, name, pending);
        }
    }
    if (rc < 0) {
        return rc;
    }
    state = json_pack("{s:I, s:I, s:s, s:O, s:O}", "at", (json_int_t)usage->at_s, "up",
                      (json_int_t)usage->up_s, "boot", usage->boot, "counters", usage->counters,
                      "pending", commit->rest);
    value = json_dumps(state, JSON_COMPACT);
    json_decref(state);
    commit->values[commit->count] = value;
    commit->writes[commit->count] = (struct store_write){.key = STATE_KEY, .value = value};
    return value != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
}

/* Some hours of some projects, as many as go into one commit; the rest goes into the state. */
static int flush_some(struct compute_usage *usage, struct fault *fault)
{
    struct usage_commit commit = {.usage = usage, .rest = json_object()};
    struct err err;
    int rc = collect(&commit, fault);

    if (rc == 0) {
        const struct store_commit all = {.guards = commit.guards,
                                         .guard_count = commit.count,
                                         .writes = commit.writes,
                                         .write_count = commit.count + 1};

        rc = store_commit(usage->compute->config.store, &all, NULL, &err);
        rc = rc < 0 ? fault_set_err(fault, rc, &err) : 0;
    }
    if (rc == 0) {
        json_decref(usage->pending);
        usage->pending = json_incref(commit.rest);
    }
    for (unsigned i = 0; i < commit.count; i++) {
        free(commit.keys[i]);
        free(commit.values[i]);
    }
    free(commit.values[commit.count]);
    json_decref(commit.rest);
    return rc;
}

int usage_flush(struct compute_usage *usage, struct fault *fault)
{
    int rc = 0;

    while (rc == 0 && json_object_size(usage->pending) > 0) {
        rc = flush_some(usage, fault);
    }
    usage->flushed_s = rc == 0 ? usage->at_s : usage->flushed_s;
    return rc;
}

/* Some of the oldest; *ret_has_more: there are others. */
static int drop_some(struct compute_usage *usage, const char *first, bool *ret_has_more,
                     struct fault *fault)
{
    struct store *store = usage->compute->config.store;
    struct store_write writes[PER_COMMIT];
    struct store_commit commit = {.writes = writes};
    struct store_page page;
    struct err err;
    int rc = store_list(store, USAGE_HOUR_PREFIX, NULL, PER_COMMIT, &page, &err);

    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    while (commit.write_count < page.count &&
           strcmp(page.records[commit.write_count].key, first) < 0) {
        writes[commit.write_count] =
            (struct store_write){.key = page.records[commit.write_count].key};
        commit.write_count++;
    }
    *ret_has_more = commit.write_count == page.count && page.has_more;
    rc = commit.write_count > 0 ? store_commit(store, &commit, NULL, &err) : 0;
    store_page_done(&page);
    return rc < 0 ? fault_set_err(fault, rc, &err) : 0;
}

int usage_drop_old(struct compute_usage *usage, struct fault *fault)
{
    uint64_t hour = usage->at_s / USAGE_S_PER_HOUR;
    bool has_more = true;
    char first[64];
    int rc = 0;

    (void)snprintf(first, sizeof(first), USAGE_HOUR_PREFIX "%010" PRIu64,
                   hour > USAGE_KEPT_HOURS ? hour - USAGE_KEPT_HOURS : 0);
    while (rc == 0 && has_more) {
        rc = drop_some(usage, first, &has_more, fault);
    }
    return rc;
}
