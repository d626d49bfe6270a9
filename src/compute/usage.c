/* What projects have used, by the hour: counting (compute/usage.h). */
#include "compute/usage.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLUSH_S 60u
#define MAX_GAP_S (31u * 24 * USAGE_S_PER_HOUR)

int compute_usage_open(struct compute *compute, struct compute_usage **ret_usage)
{
    struct compute_usage *usage = calloc(1, sizeof(*usage));

    if (usage == NULL) {
        return -ENOMEM;
    }
    usage->compute = compute;
    usage->counters = json_object();
    usage->pending = json_object();
    mutex_init(&usage->lock, LOCK_RANK_METRICS);
    *ret_usage = usage;
    return 0;
}

void compute_usage_close(struct compute_usage *usage)
{
    struct fault fault;

    if (usage == NULL) {
        return;
    }
    if (compute_usage_flush(usage, &fault) < 0) {
        log_warn("what projects used last is counted again: %s, ignoring", fault.text);
    }
    json_decref(usage->counters);
    json_decref(usage->pending);
    mutex_done(&usage->lock);
    free(usage);
}

/* ---- sums ---- */

const char *const usage_sums[4] = {"vcpu_s", "memory_mib_s", "storage_gib_s", "network_bytes"};

static void add_to(json_t *item, const char *name, uint64_t more)
{
    json_int_t before = json_integer_value(json_object_get(item, name));
    uint64_t room = (uint64_t)INT64_MAX - (uint64_t)before;

    if (more > 0) {
        (void)json_object_set_new(item, name,
                                  json_integer(before + (json_int_t)(more < room ? more : room)));
    }
}

void usage_add_item(json_t *to, const json_t *item)
{
    for (unsigned i = 0; i < ARRAY_LEN(usage_sums); i++) {
        add_to(to, usage_sums[i],
               (uint64_t)json_integer_value(json_object_get(item, usage_sums[i])));
    }
    if (json_object_get(item, "name") != NULL) {
        (void)json_object_set(to, "name", json_object_get(item, "name"));
    }
}

json_t *usage_child(json_t *object, const char *name)
{
    json_t *child = json_object_get(object, name);

    if (child == NULL && json_object_set_new(object, name, json_object()) == 0) {
        child = json_object_get(object, name);
    }
    return child;
}

/* ---- counting ---- */

/* One count, within one hour: what it finds is pending only when all of it was found. */
struct usage_look {
    struct compute_usage *usage;
    const json_t *answers; /* network bytes of machines that answered */
    json_t *counters;      /* the next */
    json_t *found;         /* as "pending" */
    uint64_t from_s, until_s, now_s;
    bool is_first; /* what was meanwhile is known by its end only */
};

static json_t *found_item(const struct usage_look *look, const struct object *object)
{
    char key[32 + ID_BYTES];
    json_t *item;

    (void)snprintf(key, sizeof(key), "%010" PRIu64 "/%s", look->from_s / USAGE_S_PER_HOUR,
                   object->project);
    item = usage_child(usage_child(look->found, key), object->id);
    (void)json_object_set(item, "name", json_object_get(object->json, "name"));
    return item;
}

/* So much of it (per second) from then until the end. */
static void add_span(const struct usage_look *look, const struct object *object, enum usage_sum sum,
                     uint64_t amount, uint64_t from_s)
{
    if (amount > 0 && from_s < look->until_s) {
        add_to(found_item(look, object), usage_sums[sum], amount * (look->until_s - from_s));
    }
}

/* When that happened, within what is counted. What is to come happened before the clock was set
 * back. */
static uint64_t since(const struct usage_look *look, const struct object *object, const char *field)
{
    double at_s = json_number_value(json_object_get(object->json, field));

    if (at_s <= (double)look->from_s || at_s > (double)look->now_s) {
        return look->from_s;
    }
    return at_s < (double)look->until_s ? (uint64_t)at_s : look->until_s;
}

static uint64_t amount_of(const struct object *object, const char *field)
{
    int64_t number = object_number(object, field);

    return number > 0 ? (uint64_t)number : 0;
}

static void look_at_network(const struct usage_look *look, const struct object *object)
{
    const json_t *answer = json_object_get(look->answers, object->id);
    const json_t *last = json_object_get(look->usage->counters, object->id);
    bool is_new = since(look, object, "started") > look->from_s;
    uint64_t now = (uint64_t)json_integer_value(answer);
    uint64_t before = is_new ? 0 : (uint64_t)json_integer_value(last);

    if (answer == NULL) {
        if (last != NULL && !is_new) {
            (void)json_object_set(look->counters, object->id, (json_t *)(uintptr_t)last);
        }
        return;
    }
    (void)json_object_set(look->counters, object->id, (json_t *)(uintptr_t)answer);
    /* Of one that is seen for the first time and is no new one, what was before is not ours. */
    if ((last != NULL || is_new) && now != before) {
        add_to(found_item(look, object), usage_sums[USAGE_NETWORK_BYTES],
               now > before ? now - before : now);
    }
}

static int look_at_instance(void *opaque, struct object *object)
{
    const struct usage_look *look = opaque;
    bool is_running = object_is(object, "state", "running") ||
                      object_is(object, "state", "paused") ||
                      object_is(object, "state", "stopping");

    add_span(look, object, USAGE_STORAGE_GIB_S, amount_of(object, "disk_gib"),
             since(look, object, "created"));
    if (is_running) {
        if (!look->is_first || json_object_get(look->answers, object->id) != NULL) {
            uint64_t from_s = since(look, object, "started");

            add_span(look, object, USAGE_VCPU_S, amount_of(object, "cpus"), from_s);
            add_span(look, object, USAGE_MEMORY_MIB_S, amount_of(object, "memory_mib"), from_s);
        }
        look_at_network(look, object);
    }
    return 0;
}

/* Or snapshot: each counts as in the project's quota. */
static int look_at_volume(void *opaque, struct object *object)
{
    const struct usage_look *look = opaque;

    add_span(look, object, USAGE_STORAGE_GIB_S, amount_of(object, "size_gib"),
             since(look, object, "created"));
    return 0;
}

/* Since when: the time that has passed is that of a clock which nobody sets, while there is one. */
static uint64_t begin_of(const struct compute_usage *usage, const struct compute_usage_clock *clock)
{
    uint64_t gap_s = usage->at_s < clock->now_s ? clock->now_s - usage->at_s : 0;

    if (usage->at_s == 0) {
        return clock->now_s;
    }
    if (usage->boot[0] != '\0' && strcmp(usage->boot, clock->boot) == 0 &&
        usage->up_s <= clock->up_s) {
        gap_s = clock->up_s - usage->up_s;
    }
    gap_s = gap_s < MAX_GAP_S ? gap_s : MAX_GAP_S;
    return gap_s < clock->now_s ? clock->now_s - gap_s : 0;
}

static int look_at_all(struct usage_look *look, struct fault *fault)
{
    struct compute *compute = look->usage->compute;
    int rc = object_each(compute, KIND_INSTANCE, NULL, look_at_instance, look, fault);

    rc = rc < 0 ? rc : object_each(compute, KIND_VOLUME, NULL, look_at_volume, look, fault);
    return rc < 0 ? rc : object_each(compute, KIND_SNAPSHOT, NULL, look_at_volume, look, fault);
}

static void take_found(struct compute_usage *usage, const struct usage_look *look)
{
    json_t *items, *item;
    const char *key, *id;

    json_object_foreach(look->found, key, items)
    {
        json_t *to = usage_child(usage->pending, key);

        json_object_foreach(items, id, item)
        {
            usage_add_item(usage_child(to, id), item);
        }
    }
    json_decref(usage->counters);
    usage->counters = json_incref(look->counters);
}

/* Within one hour. */
static int count_part(struct compute_usage *usage, struct usage_look *look,
                      const struct compute_usage_clock *clock, struct fault *fault)
{
    int rc;

    look->counters = json_object();
    look->found = json_object();
    rc = look_at_all(look, fault);
    if (rc == 0) {
        take_found(usage, look);
        usage->at_s = look->until_s;
        usage->up_s = clock->up_s;
        (void)snprintf(usage->boot, sizeof(usage->boot), "%s",
                       look->until_s == clock->now_s ? clock->boot : "");
    }
    json_decref(look->counters);
    json_decref(look->found);
    return rc;
}

/* Hour by hour, each of them written before the next: what is pending is of one. */
static int count_locked(struct compute_usage *usage, const json_t *answers,
                        const struct compute_usage_clock *clock, struct fault *fault)
{
    struct usage_look look = {.usage = usage, .answers = answers, .now_s = clock->now_s};
    bool is_new_hour = false;
    uint64_t next_s;
    int rc;

    look.is_first = !usage->is_loaded;
    rc = usage_load(usage, fault);
    look.until_s = begin_of(usage, clock);
    if (rc == 0 && look.until_s / USAGE_S_PER_HOUR != usage->at_s / USAGE_S_PER_HOUR) {
        rc = usage_flush(usage, fault);
    }
    do {
        look.from_s = look.until_s;
        next_s = (look.from_s / USAGE_S_PER_HOUR + 1) * USAGE_S_PER_HOUR;
        look.until_s = next_s < clock->now_s ? next_s : clock->now_s;
        rc = rc < 0 ? rc : count_part(usage, &look, clock, fault);
        if (rc == 0 && look.until_s == next_s) {
            is_new_hour = true;
            rc = usage_flush(usage, fault);
        }
    } while (rc == 0 && look.until_s < clock->now_s);
    rc = rc == 0 && is_new_hour ? usage_drop_old(usage, fault) : rc;
    return rc == 0 && (look.is_first || clock->now_s < usage->flushed_s ||
                       clock->now_s >= usage->flushed_s + FLUSH_S)
               ? usage_flush(usage, fault)
               : rc;
}

int compute_usage_count(struct compute_usage *usage, const json_t *answers,
                        const struct compute_usage_clock *clock, struct fault *fault)
{
    int rc;

    mutex_lock(&usage->lock);
    rc = count_locked(usage, answers, clock, fault);
    mutex_unlock(&usage->lock);
    return rc;
}

int compute_usage_flush(struct compute_usage *usage, struct fault *fault)
{
    int rc;

    mutex_lock(&usage->lock);
    rc = usage_flush(usage, fault);
    mutex_unlock(&usage->lock);
    return rc;
}
