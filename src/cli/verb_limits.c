/* What the command line says of limits, as fields of an instance, type or volume. */
#include "cli/verb_object.h"

#include "cli/size.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum limit_kind {
    LIMIT_NUMBER,
    LIMIT_MIB,
    LIMIT_RATE, /* a number, or 10M ... */
    LIMIT_TEXT
};

struct limit {
    const char *field, *option, *text;
    enum limit_kind kind;
    bool has_zero; /* 0 is "none"; else the field is taken away */
};

static int set_number(json_t *body, const struct limit *limit, struct err *err)
{
    char *end;
    unsigned long long number;

    errno = 0;
    number = strtoull(limit->text, &end, 10);
    if (errno != 0 || *end != '\0' || limit->text[0] < '0' || limit->text[0] > '9' ||
        number > INT64_MAX) {
        return err_set(err, -EINVAL, "%s takes a number, not \"%.40s\"", limit->option,
                       limit->text);
    }
    (void)json_object_set_new(body, limit->field, json_integer((json_int_t)number));
    return 0;
}

static int set_rate(json_t *body, const struct limit *limit, struct err *err)
{
    uint64_t number = 0;
    int rc = size_parse(limit->option, limit->text, &number, err);

    (void)json_object_set_new(body, limit->field, json_integer((json_int_t)number));
    return rc;
}

static int set_one(json_t *body, const struct limit *limit, struct err *err)
{
    if (strcmp(limit->text, "none") == 0) {
        (void)json_object_set_new(body, limit->field,
                                  limit->has_zero ? json_integer(0) : json_null());
        return 0;
    }
    switch (limit->kind) {
    case LIMIT_MIB:
        return object_set_size(body, limit->field, limit->option, limit->text, 20, err);
    case LIMIT_RATE:
        return set_rate(body, limit, err);
    case LIMIT_TEXT:
        object_put_text(body, limit->field, limit->text);
        return 0;
    case LIMIT_NUMBER:
        break;
    }
    return set_number(body, limit, err);
}

int object_set_limits(json_t *body, const struct limit_options *options, struct err *err)
{
    const struct limit limits[] = {
        {"max_cpus", "--max-cpus", options->max_cpus, LIMIT_NUMBER, false},
        {"max_memory_mib", "--max-memory", options->max_memory, LIMIT_MIB, false},
        {"cpu_weight", "--cpu-weight", options->cpu_weight, LIMIT_NUMBER, false},
        {"cpu_cap_percent", "--cpu-cap", options->cpu_cap, LIMIT_NUMBER, true},
        {"cpu_baseline_percent", "--cpu-baseline", options->cpu_baseline, LIMIT_NUMBER, true},
        {"cpu_reserved_percent", "--cpu-reserved", options->cpu_reserved, LIMIT_NUMBER, true},
        {"pinned_cpus", "--pinned-cpus", options->pinned_cpus, LIMIT_TEXT, false},
        {"memory_limit_mib", "--memory-limit", options->memory_limit, LIMIT_MIB, true},
        {"balloon_mib", "--balloon", options->balloon, LIMIT_MIB, true},
        {"disk_bps", "--disk-bps", options->disk_bps, LIMIT_RATE, true},
        {"disk_iops", "--disk-iops", options->disk_iops, LIMIT_RATE, true},
        {"net_bps", "--net-bps", options->net_bps, LIMIT_RATE, true},
        {"net_pps", "--net-pps", options->net_pps, LIMIT_RATE, true},
        {"bps", "--bps", options->bps, LIMIT_RATE, true},
        {"iops", "--iops", options->iops, LIMIT_RATE, true},
    };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(limits); i++) {
        rc = limits[i].text != NULL ? set_one(body, &limits[i], err) : 0;
    }
    return rc;
}
