/* corbel stats, top, logs and events --follow: what goes on. */
#include "cli/api.h"
#include "cli/verb_object.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* GET of one thing of a running instance. */
static int get_of(const struct cli *cli, const struct args *args, const char *what,
                  bool needs_running, json_t **ret_answer, struct err *err)
{
    struct client *client = NULL;
    json_t *instance = NULL;
    char path[API_PATH_BYTES];
    int rc = api_open(cli, &client, err);

    rc = rc < 0          ? rc
         : needs_running ? api_running_instance(cli, client, args, &instance, err)
                         : api_instance(cli, client, args, &instance, err);
    rc = rc < 0 ? rc : api_path(cli, path, "instances", api_text(instance, "id"), what, err);
    rc = rc < 0 ? rc : client_call(client, "GET", path, NULL, ret_answer, err);
    json_decref(instance);
    client_close(client);
    return rc;
}

int verb_stats(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    json_t *statistics = NULL, *value;
    const char *name;
    int rc = get_of(cli, args, "statistics", true, &statistics, err);

    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        table_print_json(statistics);
    } else {
        json_object_foreach(statistics, name, value)
        {
            if (json_is_integer(value)) {
                printf("%-32s %20" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
            }
        }
    }
    json_decref(statistics);
    return 0;
}

static const struct column what_happened[] = {
    {"WHEN", "created", CELL_AGE},
    {"LEVEL", "level", CELL_TEXT},
    {"WHAT", "text", CELL_TEXT},
    {NULL, NULL, CELL_TEXT},
};

/* The events of one instance, and what its monitor says. */
static int read_logs(const struct cli *cli, struct client *client, const json_t *instance,
                     json_t **ret_log, struct err *err)
{
    struct option_list filters = {.count = 1};
    char target[96], path[API_PATH_BYTES];
    json_t *events = NULL;
    int rc;

    (void)snprintf(target, sizeof(target), "target=%s", api_text(instance, "id"));
    filters.items[0] = target;
    rc = api_list(cli, client, "events", &filters, &events, err);
    rc = rc < 0 ? rc : api_path(cli, path, "instances", api_text(instance, "id"), "log", err);
    rc = rc < 0 ? rc : client_call(client, "GET", path, NULL, ret_log, err);
    if (rc < 0) {
        json_decref(events);
        return rc;
    }
    (void)json_object_set_new(*ret_log, "events", events);
    return 0;
}

int verb_logs(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *instance = NULL, *log = NULL;
    const char *monitor, *serial;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_instance(cli, client, args, &instance, err);
    rc = rc < 0 ? rc : read_logs(cli, client, instance, &log, err);
    json_decref(instance);
    client_close(client);
    if (rc < 0) {
        return rc;
    }
    monitor = api_text(log, "monitor");
    serial = api_text(log, "serial");
    if (options->json) {
        table_print_json(log);
    } else {
        table_print(json_object_get(log, "events"), what_happened);
        printf("%s%s", monitor[0] != '\0' ? "\nits monitor:\n" : "", monitor);
        printf("%s%s", serial[0] != '\0' ? "\nits serial console:\n" : "", serial);
        printf("%s", serial[0] != '\0' && serial[strlen(serial) - 1] != '\n' ? "\n" : "");
    }
    json_decref(log);
    return 0;
}

/* ---- events ---- */

struct follow {
    const struct api_options *options;
    const struct option_list *filters;
};

/* "target=i-..." of an event; fields that an event has not are not what is looked for. */
static bool fits(const json_t *event, const struct option_list *filters)
{
    for (unsigned i = 0; i < filters->count; i++) {
        const char *equals = strchr(filters->items[i], '=');
        char name[96];

        (void)snprintf(name, sizeof(name), "%.*s",
                       (int)(equals != NULL ? equals - filters->items[i] : 0), filters->items[i]);
        if (equals == NULL || strcmp(api_text(event, name), equals + 1) != 0) {
            return false;
        }
    }
    return true;
}

static int show_event(void *opaque, const json_t *change)
{
    const struct follow *follow = opaque;
    const json_t *event = json_object_get(change, "object");

    if (strcmp(api_text(change, "kind"), "event") != 0 || !json_is_object(event) ||
        !fits(event, follow->filters)) {
        return 0;
    }
    if (follow->options->json) {
        (void)json_dumpf(event, stdout, JSON_COMPACT);
        (void)putchar('\n');
    } else {
        printf("%-8s %-20s %s\n", api_text(event, "level"), api_text(event, "action"),
               api_text(event, "text"));
    }
    return fflush(stdout) == 0 ? 0 : -EPIPE;
}

/* What has happened since the answer of a list, as it happens. */
static int follow_events(const struct cli *cli, const struct api_options *options, struct err *err)
{
    struct follow follow = {.options = options, .filters = &options->filters};
    struct client *client = NULL;
    char path[API_PATH_BYTES];
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_path(cli, path, "watch", NULL, NULL, err);
    rc = rc < 0 ? rc : client_watch(client, path, show_event, &follow, err);
    client_close(client);
    return rc == 0 ? err_set(err, -ENOTCONN, "the daemon has ended the stream of events") : rc;
}

int verb_events(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;

    return options->follow ? follow_events(cli, options, err)
                           : verb_object_list(cli, values, args, err);
}
