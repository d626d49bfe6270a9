/* metrics_history(): lines of a ring as means over steps. */
#include "base/path.h"
#include "metrics/metrics_int.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_SPAN_S 3600u
#define DEFAULT_POINTS 360u

struct reading {
    const struct series *series;
    bool wanted[RING_VALUES];
    uint64_t since_s, until_s; /* multiples of the period; until is not in it */
    unsigned period_s, step_s;
    unsigned points;
    struct mean {
        double sum;
        unsigned count;
    } * means; /* points of the first series, then of the second ... */
};

int history_path(const struct metrics *metrics, const char *id, char *out)
{
    char dir[PATH_MAX];
    struct err err;
    int rc;

    if (id == NULL) {
        return path_format(out, &err, "%s/history", metrics->state_dir);
    }
    rc = compute_instance_directory(metrics->config.compute, id, dir);
    return rc < 0 ? rc : path_format(out, &err, "%s/history", dir);
}

static int choose_series(struct reading *reading, const char *names, struct fault *fault)
{
    while (names != NULL) {
        size_t len = strcspn(names, ",");
        bool is_found = false;

        for (unsigned i = 0; i < RING_VALUES; i++) {
            const char *name = reading->series[i].name;

            if (name != NULL && strlen(name) == len && strncmp(name, names, len) == 0) {
                reading->wanted[i] = is_found = true;
            }
        }
        if (!is_found) {
            return fault_set(fault, FAULT_INVALID, "metric", "there is no history of \"%.*s\"",
                             (int)(len < 60 ? len : 60), names);
        }
        names = names[len] == ',' ? names + len + 1 : NULL;
    }
    return 0;
}

/* Times rounded to periods, a step for as many points as a chart shows. */
static int choose_times(struct reading *reading, const struct metrics_query *query,
                        struct fault *fault)
{
    uint64_t period_s = reading->period_s;
    uint64_t now_s = (uint64_t)time(NULL);
    uint64_t until_s = query->until_s != 0 && query->until_s < now_s ? query->until_s : now_s;
    uint64_t since_s = query->since_s != 0 ? query->since_s : until_s - DEFAULT_SPAN_S;
    uint64_t longest_s = METRICS_KEPT_PERIODS * period_s;
    uint64_t step_s = query->step_s;

    if (since_s >= until_s) {
        return fault_set(fault, FAULT_INVALID, "since", "since must be before until and now");
    }
    since_s = until_s - since_s > longest_s ? until_s - longest_s : since_s;
    if (step_s == 0) {
        step_s = (until_s - since_s) / DEFAULT_POINTS;
    }
    step_s = (step_s + period_s - 1) / period_s * period_s;
    reading->step_s = (unsigned)(step_s > 0 ? step_s : period_s);
    reading->since_s = since_s / reading->step_s * reading->step_s;
    reading->until_s = (until_s / period_s + 1) * period_s;
    reading->points =
        (unsigned)((reading->until_s - reading->since_s + reading->step_s - 1) / reading->step_s);
    return 0;
}

static void add_line(void *opaque, const struct ring_line *line)
{
    struct reading *reading = opaque;
    uint64_t at_s = (uint64_t)line->period * reading->period_s;
    size_t point = (size_t)((at_s - reading->since_s) / reading->step_s);

    for (unsigned i = 0; i < RING_VALUES; i++) {
        struct mean *mean = &reading->means[i * (size_t)reading->points + point];

        if (reading->wanted[i] && isfinite(line->values[i])) {
            mean->sum += (double)line->values[i];
            mean->count++;
        }
    }
}

static json_t *answer(const struct reading *reading)
{
    json_t *series = json_object();

    for (unsigned i = 0; i < RING_VALUES; i++) {
        const struct mean *means = &reading->means[i * (size_t)reading->points];
        json_t *values;

        if (!reading->wanted[i]) {
            continue;
        }
        values = json_array();
        for (unsigned k = 0; k < reading->points; k++) {
            /* Three digits behind the point are enough, and make short texts. */
            (void)json_array_append_new(
                values, means[k].count == 0
                            ? json_null()
                            : json_real(round(means[k].sum / means[k].count * 1000) / 1000));
        }
        (void)json_object_set_new(series, reading->series[i].name, values);
    }
    return json_pack("{s:I, s:i, s:o}", "since", (json_int_t)reading->since_s, "step",
                     (int)reading->step_s, "series", series);
}

static int read_points(const struct metrics *metrics, const char *id, struct reading *reading,
                       struct fault *fault)
{
    char path[PATH_MAX];
    int rc = history_path(metrics, id, path);

    reading->means = calloc((size_t)RING_VALUES * reading->points, sizeof(*reading->means));
    if (reading->means == NULL) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    if (rc == 0) {
        rc = ring_read(path, reading->period_s, (uint32_t)(reading->since_s / reading->period_s),
                       (uint32_t)(reading->until_s / reading->period_s - 1), add_line, reading);
    }
    /* An instance that never ran has no directory yet, and nothing to tell. */
    return rc == 0 || rc == -ENOENT
               ? 0
               : fault_set(fault, FAULT_INTERNAL, NULL, "the history cannot be read: %s",
                           strerrordesc_np(-rc));
}

int metrics_history(struct metrics *metrics, const struct compute_call *call, const char *id,
                    const struct metrics_query *query, json_t **ret_history, struct fault *fault)
{
    struct reading reading = {.series = id != NULL ? instance_series : host_series,
                              .period_s = metrics->config.period_s};
    json_t *instance = NULL;
    const char *found = NULL;
    int rc = choose_series(&reading, query->metrics, fault);

    for (unsigned i = 0; query->metrics == NULL && i < RING_VALUES; i++) {
        reading.wanted[i] = reading.series[i].name != NULL;
    }
    rc = rc < 0 ? rc : choose_times(&reading, query, fault);
    if (rc == 0 && id != NULL) {
        rc = compute_get(metrics->config.compute, call, KIND_INSTANCE, id, &instance, fault);
        found = json_string_value(json_object_get(instance, "id"));
    }
    rc = rc < 0 ? rc : read_points(metrics, found, &reading, fault);
    if (rc == 0) {
        *ret_history = answer(&reading);
        rc = *ret_history != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    free(reading.means);
    json_decref(instance);
    return rc;
}
