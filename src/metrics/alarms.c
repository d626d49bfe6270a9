/*
 * Evaluates alarms after each line of history. All that is needed stands in
 * history and in the alarm itself, so that an evaluator that begins anew comes
 * to the same result.
 */
#include "base/log.h"
#include "metrics/metrics_int.h"

#include <errno.h>
#include <math.h>
#include <string.h>

struct evaluation {
    struct metrics *metrics;
    const struct machine_samples *samples;
    uint32_t period;
    json_t *alarms; /* as they were read: what is written meanwhile is for the next time */
};

/* What the last lines say of one instance. */
struct window {
    unsigned column;
    double threshold;
    bool is_above;
    uint32_t first, last; /* periods in which a value was known; 0: none */
    bool has_exception;   /* a value on the other side */
    float value;          /* the last */
};

static void look_at_line(void *opaque, const struct ring_line *line)
{
    struct window *window = opaque;
    float value = line->values[window->column];

    if (!isfinite(value)) {
        return;
    }
    window->first = window->first == 0 ? line->period : window->first;
    window->last = line->period;
    window->value = value;
    if (window->is_above ? (double)value <= window->threshold
                         : (double)value >= window->threshold) {
        window->has_exception = true;
    }
}

static const char *text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text != NULL ? text : "";
}

static bool find_column(const char *metric, unsigned *ret_column)
{
    for (unsigned i = 0; i < RING_VALUES; i++) {
        if (instance_series[i].name != NULL && strcmp(instance_series[i].name, metric) == 0) {
            *ret_column = i;
            return true;
        }
    }
    return false;
}

enum verdict { VERDICT_NO_DATA, VERDICT_OK, VERDICT_ALARM };

/* The whole of for_s has to be on the wrong side, up to now. */
static enum verdict judge(const struct evaluation *evaluation, const json_t *alarm, const char *id,
                          struct window *window)
{
    const struct metrics *metrics = evaluation->metrics;
    uint32_t periods = (uint32_t)((json_integer_value(json_object_get(alarm, "for_s")) +
                                   metrics->config.period_s - 1) /
                                  metrics->config.period_s);
    uint32_t begin = evaluation->period - (periods < METRICS_KEPT_PERIODS ? periods : 0);
    char path[PATH_MAX];

    *window = (struct window){
        .threshold = (double)json_integer_value(json_object_get(alarm, "threshold")),
        .is_above = strcmp(text_in(alarm, "comparison"), "below") != 0,
    };
    if (!find_column(text_in(alarm, "metric"), &window->column) ||
        history_path(metrics, id, path) < 0 ||
        ring_read(path, metrics->config.period_s, begin, evaluation->period, look_at_line, window) <
            0 ||
        window->last != evaluation->period) {
        return VERDICT_NO_DATA;
    }
    return window->has_exception || window->first > begin ? VERDICT_OK : VERDICT_ALARM;
}

static bool has_tag(const json_t *instance, const char *tag)
{
    char name[256];
    size_t len = strcspn(tag, "=");
    const char *value;

    if (len >= sizeof(name)) {
        return false;
    }
    (void)snprintf(name, sizeof(name), "%.*s", (int)len, tag);
    value = json_string_value(json_object_get(json_object_get(instance, "tags"), name));
    return value != NULL && tag[len] == '=' && strcmp(value, tag + len + 1) == 0;
}

static bool is_watched(const json_t *alarm, const struct machine_sample *sample)
{
    const char *instance = text_in(alarm, "instance");

    if (sample->answer == NULL ||
        strcmp(text_in(sample->instance, "project"), text_in(alarm, "project")) != 0) {
        return false;
    }
    return instance[0] != '\0' ? strcmp(text_in(sample->instance, "id"), instance) == 0
                               : has_tag(sample->instance, text_in(alarm, "tag"));
}

static bool is_in(const json_t *array, const char *text)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        if (strcmp(json_string_value(json_array_get(array, i)), text) == 0) {
            return true;
        }
    }
    return false;
}

/* What is found of an alarm's instances. */
struct findings {
    struct compute_turn turns[COMPUTE_MAX_TURNS];
    unsigned count;
    unsigned firing, known;
    json_t *seen; /* the ids that were looked at */
};

static void find_turn(struct findings *findings, const struct compute_turn *turn)
{
    if (findings->count < COMPUTE_MAX_TURNS) { /* the others have theirs the next time */
        findings->turns[findings->count++] = *turn;
    }
}

static void look_at_machine(const struct evaluation *evaluation, const json_t *alarm,
                            const struct machine_sample *sample, struct findings *findings)
{
    const char *id = text_in(sample->instance, "id");
    bool was_firing = is_in(json_object_get(alarm, "firing"), id);
    struct window window;
    enum verdict verdict = judge(evaluation, alarm, id, &window);
    struct compute_turn turn = {.instance = id,
                                .name = text_in(sample->instance, "name"),
                                .is_alarm = verdict == VERDICT_ALARM,
                                .value = (double)window.value,
                                .has_value = verdict != VERDICT_NO_DATA};

    (void)json_array_append_new(findings->seen, json_string(id));
    findings->known += verdict != VERDICT_NO_DATA;
    findings->firing += verdict == VERDICT_ALARM;
    if (was_firing != turn.is_alarm) {
        find_turn(findings, &turn);
    }
}

static void settle(const struct evaluation *evaluation, const json_t *alarm,
                   struct findings *findings)
{
    const json_t *firing = json_object_get(alarm, "firing");
    const char *state;
    struct fault fault;

    for (size_t i = 0; i < json_array_size(firing); i++) {
        const char *id = json_string_value(json_array_get(firing, i));

        if (!is_in(findings->seen, id)) { /* it does not run any more, or is watched no more */
            find_turn(findings, &(struct compute_turn){.instance = id, .name = id});
        }
    }
    state = findings->firing > 0 ? "alarm" : findings->known > 0 ? "ok" : "no-data";
    if (findings->count == 0 && strcmp(text_in(alarm, "state"), state) == 0) {
        return;
    }
    if (compute_alarm_settle(evaluation->metrics->config.compute, alarm, state, findings->turns,
                             findings->count, &fault) < 0 &&
        fault.code != FAULT_STALE && fault.code != FAULT_NOT_FOUND) {
        log_warn("the alarm %s cannot be noted: %s, ignoring", text_in(alarm, "id"), fault.text);
    }
}

static void evaluate(const struct evaluation *evaluation, const json_t *alarm)
{
    struct findings findings = {.seen = json_array()};

    for (unsigned i = 0; i < evaluation->samples->count; i++) {
        if (is_watched(alarm, &evaluation->samples->items[i])) {
            look_at_machine(evaluation, alarm, &evaluation->samples->items[i], &findings);
        }
    }
    settle(evaluation, alarm, &findings);
    json_decref(findings.seen);
}

/* ---- debts ---- */

static void act(struct metrics *metrics, const json_t *alarm, const char *owed,
                const struct compute_debt *debt)
{
    struct compute *compute = metrics->config.compute;
    char complaint[300];
    struct fault fault;
    bool has_failed = compute_alarm_act(compute, alarm, debt, &fault) < 0;

    if (has_failed && (fault.code == FAULT_UNAVAILABLE || fault.code == FAULT_INTERNAL ||
                       fault.code == FAULT_STALE)) {
        return; /* once more the next time */
    }
    (void)snprintf(complaint, sizeof(complaint), "nothing was done to %s: %.200s", debt->instance,
                   has_failed ? fault.text : "");
    if (compute_alarm_paid(compute, alarm, owed, has_failed ? complaint : NULL, &fault) < 0 &&
        fault.code != FAULT_NOT_FOUND) {
        log_warn("the alarm %s cannot be noted: %s, ignoring", text_in(alarm, "id"), fault.text);
    }
}

static void pay(struct metrics *metrics, const json_t *alarm)
{
    const json_t *owed = json_object_get(alarm, "owed");

    for (size_t i = 0; i < json_array_size(owed); i++) {
        const char *text = json_string_value(json_array_get(owed, i));
        struct compute_debt debt;

        if (!compute_alarm_debt(alarm, text, &debt)) {
            continue;
        }
        if (debt.kind == DEBT_ACTION) {
            act(metrics, alarm, text, &debt);
        } else {
            hooks_add(metrics->hooks, alarm, text, &debt);
        }
    }
}

static int collect(void *opaque, const json_t *alarm)
{
    return json_array_append(opaque, (json_t *)(uintptr_t)alarm) == 0 ? 0 : -ENOMEM;
}

static json_t *read_alarms(struct metrics *metrics)
{
    json_t *alarms = json_array();
    struct fault fault;

    if (compute_each_alarm(metrics->config.compute, collect, alarms, &fault) < 0) {
        log_warn("alarms cannot be read: %s, ignoring", fault.text);
    }
    return alarms;
}

void alarms_evaluate(struct metrics *metrics, const struct machine_samples *samples,
                     uint32_t period)
{
    const struct evaluation evaluation = {.metrics = metrics, .samples = samples, .period = period};
    json_t *alarms = read_alarms(metrics);
    bool has_some = json_array_size(alarms) > 0;
    size_t i;
    json_t *alarm;

    json_array_foreach(alarms, i, alarm)
    {
        evaluate(&evaluation, alarm);
    }
    json_decref(alarms);
    if (!has_some) {
        return;
    }
    alarms = read_alarms(metrics); /* with what is owed since */
    json_array_foreach(alarms, i, alarm)
    {
        pay(metrics, alarm);
    }
    json_decref(alarms);
}
