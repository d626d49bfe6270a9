/* What projects have used, by the hour: answers (compute/usage.h). */
#include "compute/usage.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 200u
#define S_PER_DAY 86400u

struct usage_reading {
    struct compute_usage *usage;
    const struct compute_usage_query *query;
    json_t *items; /* by project, and what it is asked by */
};

/* Which line of the answer an item goes to. */
static void line_key(const struct compute_usage_query *query, uint64_t time_s, const char *project,
                     const char *id, char out[2 * ID_BYTES + 32])
{
    switch (query->by) {
    case USAGE_BY_PROJECT:
        id = "";
        break;
    case USAGE_BY_INSTANCE:
        break;
    case USAGE_BY_DAY:
    case USAGE_BY_HOUR:
        (void)snprintf(out, 2 * ID_BYTES + 32, "%s/%" PRIu64, project, time_s);
        return;
    }
    (void)snprintf(out, 2 * ID_BYTES + 32, "%s/%s", project, id);
}

static void read_record(struct usage_reading *reading, uint64_t hour, const char *project,
                        const json_t *record)
{
    json_t *items = json_object_get(record, "items"), *item;
    uint64_t step_s = reading->query->by == USAGE_BY_DAY ? S_PER_DAY : USAGE_S_PER_HOUR;
    uint64_t time_s = hour * USAGE_S_PER_HOUR / step_s * step_s;
    const char *id;

    json_object_foreach(items, id, item)
    {
        char key[2 * ID_BYTES + 32];
        json_t *to;

        line_key(reading->query, time_s, project, id, key);
        to = usage_child(reading->items, key);
        usage_add_item(to, item);
        (void)json_object_set_new(to, "project", json_string(project));
        (void)json_object_set(to, "project_name", json_object_get(record, "name"));
        (void)json_object_set_new(to, "id", json_string(id));
        (void)json_object_set_new(to, "time", json_integer((json_int_t)time_s));
    }
}

/* One project's: other projects' hours cost it nothing. */
static int read_project(struct usage_reading *reading, const char *project, uint64_t since_hour,
                        uint64_t until_hour, struct fault *fault)
{
    for (uint64_t hour = since_hour; hour < until_hour; hour++) {
        char key[STORE_MAX_KEY_BYTES + 1];
        struct store_record record;
        struct err err;
        json_t *json;
        int rc;

        (void)snprintf(key, sizeof(key), USAGE_HOUR_PREFIX "%010" PRIu64 "/%s", hour, project);
        rc = store_get(reading->usage->compute->config.store, key, &record, &err);
        if (rc == -ENOENT) {
            continue;
        }
        if (rc < 0) {
            return fault_set_err(fault, rc, &err);
        }
        json = json_loads(record.value, 0, NULL);
        read_record(reading, hour, project, json);
        json_decref(json);
        store_record_done(&record);
    }
    return 0;
}

/* Whether there may be more. */
static bool read_one(struct usage_reading *reading, const struct store_record *record,
                     uint64_t until_hour)
{
    char *slash = NULL;
    uint64_t hour = strtoull(record->key + strlen(USAGE_HOUR_PREFIX), &slash, 10);
    json_t *json;

    if (*slash == '/' && hour < until_hour) {
        json = json_loads(record->value, 0, NULL);
        read_record(reading, hour, slash + 1, json);
        json_decref(json);
    }
    return hour < until_hour;
}

static int read_all(struct usage_reading *reading, uint64_t since_hour, uint64_t until_hour,
                    struct fault *fault)
{
    char after[STORE_MAX_KEY_BYTES + 1];
    bool has_more = true;

    (void)snprintf(after, sizeof(after), USAGE_HOUR_PREFIX "%010" PRIu64, since_hour);
    while (has_more) {
        struct store_page page;
        struct err err;
        int rc = store_list(reading->usage->compute->config.store, USAGE_HOUR_PREFIX, after, PAGE,
                            &page, &err);

        if (rc < 0) {
            return fault_set_err(fault, rc, &err);
        }
        has_more = page.has_more;
        for (unsigned i = 0; i < page.count; i++) {
            if (!read_one(reading, &page.records[i], until_hour)) {
                has_more = false;
                break;
            }
            (void)snprintf(after, sizeof(after), "%s", page.records[i].key);
        }
        store_page_done(&page);
    }
    return 0;
}

static double hours_of(const json_t *item, enum usage_sum sum, double per_unit)
{
    return (double)json_integer_value(json_object_get(item, usage_sums[sum])) / USAGE_S_PER_HOUR /
           per_unit;
}

static json_t *answer_item(const json_t *item, enum compute_usage_by by)
{
    const char *name = json_string_value(json_object_get(item, "name"));
    const char *project_name = json_string_value(json_object_get(item, "project_name"));
    json_t *answer =
        json_pack("{s:O, s:s, s:f, s:f, s:f, s:I}", "project", json_object_get(item, "project"),
                  "project_name", project_name != NULL ? project_name : "", "vcpu_hours",
                  hours_of(item, USAGE_VCPU_S, 1), "memory_gib_hours",
                  hours_of(item, USAGE_MEMORY_MIB_S, 1024), "storage_gib_hours",
                  hours_of(item, USAGE_STORAGE_GIB_S, 1), "network_bytes",
                  json_integer_value(json_object_get(item, usage_sums[USAGE_NETWORK_BYTES])));

    if (by == USAGE_BY_INSTANCE) {
        (void)json_object_set(answer, "id", json_object_get(item, "id"));
        (void)json_object_set_new(answer, "name", json_string(name != NULL ? name : ""));
    } else if (by != USAGE_BY_PROJECT) {
        (void)json_object_set(answer, "time", json_object_get(item, "time"));
    }
    return answer;
}

static json_t *answer_items(const struct usage_reading *reading)
{
    json_t *items = json_array(), *item;
    const char *key;

    json_object_foreach(reading->items, key, item)
    {
        (void)json_array_append_new(items, answer_item(item, reading->query->by));
    }
    return items;
}

int compute_usage_read(struct compute_usage *usage, const struct compute_call *call,
                       const struct compute_usage_query *query, json_t **ret_answer,
                       struct fault *fault)
{
    struct usage_reading reading = {.usage = usage, .query = query};
    char project[ID_BYTES];
    uint64_t since_hour = query->since_s / USAGE_S_PER_HOUR;
    uint64_t until_hour = (query->until_s + USAGE_S_PER_HOUR - 1) / USAGE_S_PER_HOUR;
    int rc = call->project != NULL
                 ? object_find_project(usage->compute, call->project, project, fault)
                 : 0;

    if (rc == 0 && query->since_s >= query->until_s) {
        rc = fault_set(fault, FAULT_INVALID, "since", "since must be before until");
    }
    if (rc == 0 && until_hour - since_hour > USAGE_KEPT_HOURS) {
        rc = fault_set(fault, FAULT_INVALID, "since", "at most %u days are told of at once",
                       USAGE_KEPT_HOURS / 24);
    }
    rc = rc < 0 ? rc : compute_usage_flush(usage, fault); /* what is pending, first */
    if (rc < 0) {
        return rc;
    }
    reading.items = json_object();
    rc = call->project != NULL ? read_project(&reading, project, since_hour, until_hour, fault)
                               : read_all(&reading, since_hour, until_hour, fault);
    if (rc == 0) {
        *ret_answer = json_pack(
            "{s:I, s:I, s:o}", "since", (json_int_t)(since_hour * USAGE_S_PER_HOUR), "until",
            (json_int_t)(until_hour * USAGE_S_PER_HOUR), "items", answer_items(&reading));
        rc = *ret_answer != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    json_decref(reading.items);
    return rc;
}
