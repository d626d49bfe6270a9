#include "metrics/metrics_int.h"
#include "rpc/control_many.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_TIMEOUT_MS 1000u

static int add_machine(void *opaque, const json_t *instance, const char *dir)
{
    struct machine_samples *samples = opaque;
    struct machine_sample *item;

    if (strlen(dir) >= sizeof(item->dir)) {
        return 0; /* no socket has such a name */
    }
    if (samples->count == samples->room) {
        unsigned room = samples->room == 0 ? 16 : samples->room * 2;
        void *larger = reallocarray(samples->items, room, sizeof(*samples->items));

        if (larger == NULL) {
            return -ENOMEM;
        }
        samples->items = larger;
        samples->room = room;
    }
    item = &samples->items[samples->count++];
    *item = (struct machine_sample){.instance = json_incref((json_t *)(uintptr_t)instance)};
    (void)snprintf(item->dir, sizeof(item->dir), "%s", dir);
    return 0;
}

int machines_ask(struct compute *compute, const char *project, struct machine_samples *ret_samples,
                 struct fault *fault)
{
    struct machine_samples samples = {.items = NULL};
    struct control_question *questions = NULL;
    int rc = compute_each_machine(compute, project, add_machine, &samples, fault);

    if (rc == 0) {
        questions = calloc(samples.count + 1, sizeof(*questions));
    }
    if (rc < 0 || questions == NULL) {
        rc = rc < 0 ? rc : -ENOMEM;
        machines_done(&samples);
        return rc == -ENOMEM ? fault_set(fault, FAULT_INTERNAL, NULL, "out of memory") : rc;
    }
    for (unsigned i = 0; i < samples.count; i++) {
        questions[i].dir = samples.items[i].dir;
    }
    control_ask_many(questions, samples.count, "{\"command\":\"statistics\",\"engine\":false}\n",
                     ANSWER_TIMEOUT_MS);
    for (unsigned i = 0; i < samples.count; i++) {
        samples.items[i].answer = questions[i].answer;
    }
    free(questions);
    *ret_samples = samples;
    return 0;
}

void machines_done(struct machine_samples *samples)
{
    for (unsigned i = 0; i < samples->count; i++) {
        json_decref(samples->items[i].instance);
        json_decref(samples->items[i].answer);
    }
    free(samples->items);
    *samples = (struct machine_samples){.items = NULL};
}

uint64_t machine_counter(const struct machine_sample *sample, const char *name)
{
    return (uint64_t)json_integer_value(
        json_object_get(json_object_get(sample->answer, "statistics"), name));
}
