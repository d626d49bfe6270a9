/* The sampler: one line of history per period for the host and each machine. */
#include "base/log.h"
#include "base/path.h"
#include "metrics/metrics_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_PERIOD_S 60u

static struct track *find_track(struct metrics *metrics, const char *id)
{
    struct track *track = metrics->tracks;

    while (track != NULL && strcmp(track->id, id) != 0) {
        track = track->next;
    }
    return track;
}

static void write_line(const struct metrics *metrics, const char *id, const struct ring_line *line)
{
    char path[PATH_MAX];
    int rc = history_path(metrics, id, path);

    rc = rc < 0 ? rc : ring_write(path, metrics->config.period_s, line);
    /* An instance that is being deleted has no directory any more. */
    if (rc < 0 && rc != -ENOENT) {
        log_warn("the history of %s cannot be written: %s, ignoring", id != NULL ? id : "the host",
                 strerrordesc_np(-rc));
    }
}

static void note_machine(struct metrics *metrics, uint32_t period, struct machine_sample *sample)
{
    const char *id = json_string_value(json_object_get(sample->instance, "id"));
    struct track *track;
    struct ring_line line = {.period = period};

    if (id == NULL || sample->answer == NULL) {
        return;
    }
    track = find_track(metrics, id);
    series_of_instance(track != NULL ? &track->sample : NULL, sample, line.values);
    write_line(metrics, id, &line);
    if (track == NULL) {
        track = calloc(1, sizeof(*track));
        if (track == NULL) {
            return;
        }
        (void)snprintf(track->id, sizeof(track->id), "%s", id);
        track->next = metrics->tracks;
        metrics->tracks = track;
    }
    json_decref(track->sample.answer);
    track->sample.answer = json_incref(sample->answer);
    track->is_seen = true;
}

/* Machines that did not answer this time have no rates the next. */
static void forget_absent(struct metrics *metrics)
{
    struct track **at = &metrics->tracks;

    while (*at != NULL) {
        struct track *track = *at;

        if (track->is_seen) {
            track->is_seen = false;
            at = &track->next;
        } else {
            *at = track->next;
            json_decref(track->sample.answer);
            free(track);
        }
    }
}

/* The name of this start of the host; "" where the kernel does not tell. */
static void read_boot(char out[64])
{
    size_t len = 0;
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (file != NULL) {
        len = fread(out, 1, 63, file);
        (void)fclose(file);
    }
    while (len > 0 && out[len - 1] == '\n') {
        len--;
    }
    out[len] = '\0';
}

static void count_usage(struct metrics *metrics, const struct machine_samples *samples)
{
    json_t *answers = json_object();
    struct compute_usage_clock clock = {.now_s = (uint64_t)time(NULL)};
    struct timespec up;
    char boot[64];
    struct fault fault;

    read_boot(boot);
    clock.boot = boot;
    (void)clock_gettime(CLOCK_BOOTTIME, &up); /* cannot fail */
    clock.up_s = (uint64_t)up.tv_sec;

    for (unsigned i = 0; i < samples->count; i++) {
        const struct machine_sample *one = &samples->items[i];
        const char *id = json_string_value(json_object_get(one->instance, "id"));

        if (id != NULL && one->answer != NULL) {
            (void)json_object_set_new(
                answers, id,
                json_integer((json_int_t)(machine_counter(one, "net.rx_bytes") +
                                          machine_counter(one, "net.tx_bytes"))));
        }
    }
    if (compute_usage_count(metrics->usage, answers, &clock, &fault) < 0) {
        log_warn("what projects use cannot be counted: %s, ignoring", fault.text);
    }
    json_decref(answers);
}

static void settle_credits(struct metrics *metrics, const struct machine_samples *samples)
{
    struct fault fault;

    for (unsigned i = 0; i < samples->count; i++) {
        const struct machine_sample *sample = &samples->items[i];
        bool has_credits = json_object_get(sample->instance, "cpu_baseline_percent") != NULL ||
                           json_object_get(sample->instance, "cpu_credits") != NULL;

        if (!has_credits || sample->answer == NULL) {
            continue;
        }
        int rc = compute_settle_credits(metrics->config.compute, sample->instance,
                                        machine_counter(sample, "vcpu.run_ns"),
                                        metrics->config.period_s, &fault);
        if (rc < 0 && rc != -ESTALE && rc != -ENOENT && rc != -EBUSY) {
            log_warn("CPU credits are not counted: %s, ignoring", fault.text);
        }
    }
}

static void sample(struct metrics *metrics, uint32_t period)
{
    struct machine_samples samples = {.items = NULL};
    struct host_counters host;
    struct ring_line line = {.period = period};
    struct fault fault;
    int rc = machines_ask(metrics->config.compute, NULL, &samples, &fault);

    if (rc < 0) {
        log_warn("machines cannot be counted: %s, ignoring", fault.text);
    }
    for (unsigned i = 0; i < samples.count; i++) {
        note_machine(metrics, period, &samples.items[i]);
    }
    forget_absent(metrics);
    host_count(metrics->state_dir, &host);
    series_of_host(metrics->host.at_ns != 0 ? &metrics->host : NULL, &host, samples.count,
                   line.values);
    write_line(metrics, NULL, &line);
    metrics->host = host;
    alarms_evaluate(metrics, &samples, period);
    settle_credits(metrics, &samples);
    count_usage(metrics, &samples);
    event_hooks_look(metrics->event_hooks);
    machines_done(&samples);
}

/* Sleeps to the end of the period: the one that has ended, or false when all ends. */
static bool await_period(struct metrics *metrics, uint32_t *ret_period)
{
    uint64_t period_s = metrics->config.period_s;
    uint64_t ended = (uint64_t)time(NULL) / period_s;
    const struct timespec until = {.tv_sec = (time_t)((ended + 1) * period_s)};
    bool is_closing;

    mutex_lock(&metrics->lock);
    while (!metrics->is_closing &&
           pthread_cond_timedwait(&metrics->changed, &metrics->lock.raw, &until) != ETIMEDOUT) {
    }
    is_closing = metrics->is_closing;
    mutex_unlock(&metrics->lock);
    *ret_period = (uint32_t)ended;
    return !is_closing;
}

static void *sampler_main(void *opaque)
{
    struct metrics *metrics = opaque;
    uint32_t period;

    while (await_period(metrics, &period)) {
        sample(metrics, period);
    }
    return NULL;
}

int metrics_open(const struct metrics_config *config, struct err *err, struct metrics **ret_metrics)
{
    struct metrics *metrics = calloc(1, sizeof(*metrics));
    int rc;

    if (metrics == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    metrics->config = *config;
    if (config->period_s == 0) {
        metrics->config.period_s = METRICS_PERIOD_S;
    }
    mutex_init(&metrics->scrapes, LOCK_RANK_METRICS);
    mutex_init(&metrics->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&metrics->changed, NULL); /* cannot fail on Linux */
    rc = config->period_s > MAX_PERIOD_S
             ? err_set(err, -EINVAL, "a period of history has at most %u seconds", MAX_PERIOD_S)
             : path_format(metrics->state_dir, err, "%s", config->state_dir);
    if (rc == 0) {
        rc = hooks_create(config->compute, config->reach, &metrics->hooks);
        rc = rc < 0 ? err_set_errno(err, rc, "webhooks cannot be set up") : 0;
    }
    if (rc == 0) {
        rc = event_hooks_create(config->compute, config->reach, &metrics->event_hooks);
        rc = rc < 0 ? err_set_errno(err, rc, "webhooks cannot be set up") : 0;
    }
    if (rc == 0) {
        rc = compute_usage_open(config->compute, &metrics->usage);
        rc = rc < 0 ? err_set_errno(err, rc, "usage cannot be counted") : 0;
    }
    if (rc == 0) {
        rc = thread_start(&metrics->thread, "metrics", sampler_main, metrics);
        metrics->has_thread = rc == 0;
        rc = rc < 0 ? err_set_errno(err, rc, "a thread cannot be started") : 0;
    }
    if (rc < 0) {
        metrics_close(metrics);
        return rc;
    }
    *ret_metrics = metrics;
    return 0;
}

struct compute_usage *metrics_usage(struct metrics *metrics)
{
    return metrics->usage;
}

void metrics_close(struct metrics *metrics)
{
    if (metrics == NULL) {
        return;
    }
    mutex_lock(&metrics->lock);
    metrics->is_closing = true;
    (void)pthread_cond_broadcast(&metrics->changed); /* cannot fail */
    mutex_unlock(&metrics->lock);
    if (metrics->has_thread) {
        (void)pthread_join(metrics->thread, NULL);
    }
    hooks_destroy(metrics->hooks);
    event_hooks_destroy(metrics->event_hooks);
    compute_usage_close(metrics->usage);
    forget_absent(metrics);
    forget_absent(metrics); /* what the first time spared */
    (void)pthread_cond_destroy(&metrics->changed);
    mutex_done(&metrics->lock);
    mutex_done(&metrics->scrapes);
    free(metrics);
}
