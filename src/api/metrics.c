/* Counters for Prometheus, and history for charts. */
#include "metrics/metrics.h"
#include "api/api_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { HISTORY_STEP_MAX_S = 86400 };

/* The text with the interface's own counters behind it; takes it. NULL without memory. */
static char *add_own(struct api *api, char *text)
{
    char *all = NULL;
    size_t size;
    FILE *out = open_memstream(&all, &size);
    if (out == NULL) {
        free(text);
        return NULL;
    }
    (void)fputs(text, out);
    free(text);
    (void)fputs("# HELP corbel_api_requests_total Calls that were answered.\n"
                "# TYPE corbel_api_requests_total counter\n",
                out);
    for (unsigned i = 2; i < ARRAY_LEN(api->answered); i++) {
        (void)fprintf(out, "corbel_api_requests_total{code=\"%uxx\"} %" PRIu64 "\n", i,
                      atomic_load_explicit(&api->answered[i], memory_order_relaxed));
    }
    if (fclose(out) != 0) {
        free(all);
        return NULL;
    }
    return all;
}

int metrics_text(struct api *api, struct api_call *call, MAYBE_UNUSED json_t **ret_answer,
                 struct fault *fault)
{
    char *text = NULL;
    int error = metrics_expose(api->config.metrics, call->compute.project, &text, fault);
    if (error != 0) {
        return error;
    }
    call->text = call->compute.project == NULL ? add_own(api, text) : text;
    call->text_type = "text/plain; version=0.0.4; charset=utf-8";
    return call->text != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}

static int history(struct api *api, struct api_call *call, const char *id, json_t **ret_answer,
                   struct fault *fault)
{
    uint64_t step;
    struct metrics_query query = {.metrics = http_exchange_query(call->exchange, "metric")};
    int error = query_number(call, "since", UINT32_MAX, 0, &query.since_s, fault);
    error = error != 0 ? error : query_number(call, "until", UINT32_MAX, 0, &query.until_s, fault);
    error = error != 0 ? error : query_number(call, "step", HISTORY_STEP_MAX_S, 0, &step, fault);
    if (error != 0) {
        return error;
    }
    query.step_s = (unsigned)step;
    return metrics_history(api->config.metrics, &call->compute, id, &query, ret_answer, fault);
}

int metrics_of_instance(struct api *api, struct api_call *call, json_t **ret_answer,
                        struct fault *fault)
{
    return history(api, call, call->id, ret_answer, fault);
}

int metrics_of_host(struct api *api, struct api_call *call, json_t **ret_answer,
                    struct fault *fault)
{
    return history(api, call, NULL, ret_answer, fault);
}
