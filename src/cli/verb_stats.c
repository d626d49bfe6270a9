/* corbel stats: what the monitor counts (docs/control.md). */
#include "cli/cli.h"
#include "cli/instance.h"
#include "rpc/control_client.h"

#include <errno.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

static void print_table(const json_t *statistics)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)statistics, name, value)
    {
        printf("%-32s %20" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
    }
}

int verb_stats(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct list_options *options = values;
    struct instance instance;
    const json_t *statistics;
    json_t *answer = NULL;
    int rc = instance_find_args(cli, args, &instance, err);

    if (rc == 0) {
        rc = control_ask(instance.runtime, instance.name, "{\"command\":\"statistics\"}\n", 0,
                         &answer, err);
    }
    if (rc < 0) {
        return rc;
    }
    statistics = json_object_get(answer, "statistics");
    if (!json_is_object(statistics)) {
        rc = err_set(err, -EIO, "\"%s\" ended before it answered", instance.name);
    } else if (options->json) {
        (void)json_dumpf(statistics, stdout, JSON_INDENT(2));
        (void)putchar('\n');
    } else {
        print_table(statistics);
    }
    json_decref(answer);
    return rc;
}
