#include "compute/credits.h"

#include "base/clock.h"

#include <errno.h>
#include <time.h>

#define DAY_MS (24 * 3600 * 1000ll)
#define START_MS (600 * 1000ll) /* what a new one begins with: ten minutes of its baseline */
#define WRITE_MS (60 * 1000ll)  /* between two records of one that uses no more than it earns */
#define BURST_MS (60 * 1000ll)  /* the longest interval that is provided for */

static const char *const credit_fields[] = {"cpu_credits", "cpu_held",       "credits_ms",
                                            "credits_at",  "credits_cpu_ms", "credits_step_ms"};

static int64_t clamp(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

/* Percent of one CPU that it earns, and that it may use beyond it. */
static int64_t earned_percent(const struct credits_terms *terms)
{
    return terms->cpus * terms->baseline_percent;
}

static int64_t burst_percent(const struct credits_terms *terms)
{
    return terms->cpus * (100 - terms->baseline_percent);
}

static int64_t most_ms(const struct credits_terms *terms)
{
    return earned_percent(terms) * DAY_MS / 100;
}

bool credits_count(struct credits *credits, const struct credits_terms *terms, int64_t started_ms,
                   int64_t now_ms, int64_t cpu_ms)
{
    int64_t most = most_ms(terms);
    int64_t since = credits->at_ms < started_ms ? started_ms : credits->at_ms;
    int64_t passed = clamp(now_ms - since, 0, INT64_MAX);
    int64_t earned = earned_percent(terms) * passed / 100;
    int64_t used = cpu_ms < credits->cpu_ms ? cpu_ms : cpu_ms - credits->cpu_ms;
    int64_t burst = burst_percent(terms) * clamp(passed, 0, BURST_MS) / 100;
    int64_t balance;
    bool is_held = credits->is_held;

    if (credits->at_ms == 0) {
        used = 0; /* before it had a baseline, perhaps */
        earned = earned_percent(terms) * START_MS / 100;
    }
    balance = clamp(credits->balance_ms + earned - used, -most, most);
    if (balance <= 0) {
        is_held = true;
    } else if (balance >= clamp(burst, 0, most / 2)) {
        is_held = false;
    }
    if (credits->at_ms != 0 && is_held == credits->is_held && used <= earned && passed < WRITE_MS &&
        now_ms >= credits->at_ms) {
        return false;
    }
    *credits = (struct credits){.balance_ms = balance,
                                .at_ms = now_ms,
                                .cpu_ms = cpu_ms,
                                .step_ms = credits->step_ms,
                                .is_held = is_held};
    return true;
}

void credits_end(struct credits *credits, const struct credits_terms *terms, int64_t started_ms,
                 int64_t now_ms)
{
    int64_t most = most_ms(terms);
    int64_t since = credits->at_ms < started_ms ? started_ms : credits->at_ms;
    int64_t unseen = clamp(now_ms - since, 0, credits->step_ms != 0 ? credits->step_ms : BURST_MS);

    if (credits->at_ms == 0) {
        credits->balance_ms = earned_percent(terms) * START_MS / 100;
    }
    credits->balance_ms =
        clamp(credits->balance_ms - burst_percent(terms) * unseen / 100, -most, most);
    credits->is_held = credits->is_held || credits->balance_ms <= 0;
    credits->at_ms = now_ms;
    credits->cpu_ms = 0; /* the next monitor's counter begins so */
}

/* ---- in an instance's record ---- */

static int64_t clock_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / (int64_t)NS_PER_MS;
}

static int64_t started_ms(const struct object *instance)
{
    return (int64_t)(json_number_value(json_object_get(instance->json, "started")) * 1000);
}

static struct credits_terms read_terms(const struct object *instance)
{
    int64_t now = object_number(instance, "cpus_now"); /* what is asked for may need a restart */

    return (struct credits_terms){.cpus = now != 0 ? now : object_number(instance, "cpus"),
                                  .baseline_percent =
                                      object_number(instance, "cpu_baseline_percent")};
}

static struct credits read_credits(const struct object *instance)
{
    return (struct credits){.balance_ms = object_number(instance, "credits_ms"),
                            .at_ms = object_number(instance, "credits_at"),
                            .cpu_ms = object_number(instance, "credits_cpu_ms"),
                            .step_ms = object_number(instance, "credits_step_ms"),
                            .is_held = object_flag(instance, "cpu_held")};
}

static void note_credits(struct object *instance, const struct credits *credits)
{
    object_set_number(instance, "credits_ms", credits->balance_ms);
    object_set_number(instance, "credits_at", credits->at_ms);
    object_set_number(instance, "credits_cpu_ms", credits->cpu_ms);
    object_set_number(instance, "credits_step_ms", credits->step_ms);
    object_set_number(instance, "cpu_credits",
                      credits->balance_ms > 0 ? credits->balance_ms / 1000 : 0);
    object_set_flag(instance, "cpu_held", credits->is_held);
}

void credits_note_end(struct object *instance)
{
    const struct credits_terms terms = read_terms(instance);
    struct credits credits = read_credits(instance);

    if (terms.baseline_percent != 0) {
        credits_end(&credits, &terms, started_ms(instance), clock_ms());
        note_credits(instance, &credits);
    }
}

/* False: nothing to be written down. */
static bool settle(struct object *instance, int64_t cpu_ms, int64_t step_ms)
{
    const struct credits_terms terms = read_terms(instance);
    struct credits credits = read_credits(instance);

    if (terms.baseline_percent == 0) {
        for (size_t i = 0; i < ARRAY_LEN(credit_fields); i++) {
            object_clear(instance, credit_fields[i]);
        }
        return credits.at_ms != 0;
    }
    credits.step_ms = step_ms;
    if (!credits_count(&credits, &terms, started_ms(instance), clock_ms(), cpu_ms)) {
        return false;
    }
    note_credits(instance, &credits);
    return true;
}

int compute_settle_credits(struct compute *compute, const json_t *instance, uint64_t cpu_ns,
                           unsigned step_s, struct fault *fault)
{
    struct object object = {0};
    struct change change;
    bool was_held;
    int rc =
        object_load(compute, KIND_INSTANCE, json_string_value(json_object_get(instance, "project")),
                    json_string_value(json_object_get(instance, "id")), &object, fault);

    if (rc < 0) {
        return rc;
    }
    was_held = object_flag(&object, "cpu_held");
    if (!settle(&object, (int64_t)(cpu_ns / NS_PER_MS), 1000ll * step_s)) {
        object_done(&object);
        return 0;
    }
    change_begin(&change, compute);
    change_put(&change, &object);
    rc = change_commit(&change, fault);
    if (rc == 0 && was_held != object_flag(&object, "cpu_held")) {
        compute_queue(compute, KIND_INSTANCE, object.project, object.id, 0);
    }
    object_done(&object);
    return rc;
}
