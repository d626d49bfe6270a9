/* What projects use, as JSON and as a table for spreadsheets (RFC 4180). */
#include "api/api_int.h"
#include "metrics/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PRESET_S (30u * 24 * 3600)

/* A text that begins as a formula does gets a quote before it: names are for people, not for programs. */
static void put_text(FILE *out, const char *text)
{
    (void)fputs(text[0] != '\0' && strchr("=+-@\t\r", text[0]) != NULL ? "\"'" : "\"", out);
    for (; *text != '\0'; text++) {
        if (*text == '"') {
            (void)fputc('"', out);
        }
        (void)fputc(*text, out);
    }
    (void)fputc('"', out);
}

/* A time as people and spreadsheets read it. */
static void put_time(FILE *out, const json_t *item)
{
    time_t at = (time_t)json_integer_value(json_object_get(item, "time"));
    struct tm utc;
    char text[32] = "";
    if (gmtime_r(&at, &utc) != NULL) {
        (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc); /* fits, or is "" */
    }
    (void)fprintf(out, ",%s", text);
}

static void put_line(FILE *out, const json_t *item, enum compute_usage_by by)
{
    put_text(out, text_of(item, "project"));
    (void)fputc(',', out);
    put_text(out, text_of(item, "project_name"));
    if (by == USAGE_BY_INSTANCE) {
        (void)fputc(',', out);
        put_text(out, text_of(item, "id"));
        (void)fputc(',', out);
        put_text(out, text_of(item, "name"));
    } else if (by != USAGE_BY_PROJECT) {
        put_time(out, item);
    }
    (void)fprintf(out, ",%.6f,%.6f,%.6f,%" JSON_INTEGER_FORMAT "\r\n",
                  json_real_value(json_object_get(item, "vcpu_hours")),
                  json_real_value(json_object_get(item, "memory_gib_hours")),
                  json_real_value(json_object_get(item, "storage_gib_hours")),
                  json_integer_value(json_object_get(item, "network_bytes")));
}

static char *make_csv(const json_t *answer, enum compute_usage_by by)
{
    char *text = NULL;
    size_t size, i;
    json_t *item;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return NULL;
    }
    (void)fprintf(out,
                  "project,project_name%s,vcpu_hours,memory_gib_hours,storage_gib_hours,"
                  "network_bytes\r\n",
                  by == USAGE_BY_PROJECT    ? ""
                  : by == USAGE_BY_INSTANCE ? ",id,name"
                                            : ",time");
    json_array_foreach(json_object_get(answer, "items"), i, item)
    {
        put_line(out, item, by);
    }
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* Which of the words, of which the last is followed by NULL; the first where it is absent. */
static int query_word(const struct api_call *call, const char *name, const char *const *words,
                      unsigned *ret_index, struct fault *fault)
{
    const char *word = http_exchange_query(call->exchange, name);
    char all[80] = "";
    for (unsigned i = 0; words[i] != NULL; i++) {
        if (word == NULL || strcmp(word, words[i]) == 0) {
            *ret_index = i;
            return 0;
        }
        size_t len = strlen(all);
        (void)snprintf(all + len, sizeof(all) - len, "%s%s", i > 0 ? ", " : "", words[i]);
    }
    return fault_set(fault, FAULT_INVALID, name, "%s is one of: %s", name, all);
}

int usage_report(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    static const char *const bys[] = {[USAGE_BY_PROJECT] = "project",
                                      [USAGE_BY_INSTANCE] = "instance",
                                      [USAGE_BY_DAY] = "day",
                                      [USAGE_BY_HOUR] = "hour",
                                      NULL};
    static const char *const formats[] = {"json", "csv", NULL};
    struct compute_usage_query query;
    uint64_t now_s = (uint64_t)time(NULL);
    unsigned by = 0, format = 0;
    int error = query_number(call, "until", UINT32_MAX, now_s, &query.until_s, fault);
    error = error != 0 ? error
                       : query_number(call, "since", UINT32_MAX,
                                      query.until_s > PRESET_S ? query.until_s - PRESET_S : 0,
                                      &query.since_s, fault);
    error = error != 0 ? error : query_word(call, "by", bys, &by, fault);
    error = error != 0 ? error : query_word(call, "format", formats, &format, fault);
    query.by = (enum compute_usage_by)by;
    if (error == 0) {
        error = compute_usage_read(metrics_usage(api->config.metrics), &call->compute, &query,
                                   ret_answer, fault);
    }
    if (error != 0 || format == 0) {
        return error;
    }
    call->text = make_csv(*ret_answer, query.by);
    call->text_type = "text/csv; charset=utf-8; header=present";
    return call->text != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}
