/* corbel usage: what projects used. */
#include "cli/api.h"
#include "cli/table.h"
#include "cli/verb_object.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SUMS                                                                                   \
    {"VCPU HOURS", "vcpu", CELL_TEXT}, {"MEMORY GIB HOURS", "memory", CELL_TEXT},              \
        {"STORAGE GIB HOURS", "storage", CELL_TEXT}, {"NETWORK", "network_bytes", CELL_BYTES}, \
    {                                                                                          \
        NULL, NULL, CELL_TEXT                                                                  \
    }

static const struct column of_projects[] = {{"PROJECT", "project_name", CELL_TEXT}, SUMS};
static const struct column of_instances[] = {{"PROJECT", "project_name", CELL_TEXT},
                                             {"NAME", "name", CELL_TEXT},
                                             {"ID", "id", CELL_TEXT},
                                             SUMS};
static const struct column of_times[] = {
    {"TIME", "when", CELL_TEXT}, {"PROJECT", "project_name", CELL_TEXT}, SUMS};

/* "30d" ago as a time since 1970, under that name of the query. */
static int add_time(char *path, const char *name, const char *option, const char *ago,
                    struct err *err)
{
    json_t *body = json_object();
    char text[32];
    int rc = object_set_duration(body, name, option, ago, err);

    (void)snprintf(text, sizeof(text), "%lld",
                   (long long)time(NULL) - (long long)api_number(body, name));
    rc = rc == 0 && ago != NULL ? api_query(path, name, text, err) : rc;
    json_decref(body);
    return rc;
}

static void set_hours(json_t *row, const char *name, const char *field)
{
    char text[48];

    (void)snprintf(text, sizeof(text), "%.3f", json_number_value(json_object_get(row, field)));
    (void)json_object_set_new(row, name, json_string(text));
}

static void set_time(json_t *row)
{
    time_t at = (time_t)json_integer_value(json_object_get(row, "time"));
    struct tm utc;
    char text[32] = "";

    if (gmtime_r(&at, &utc) != NULL) {
        (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%MZ", &utc); /* fits, or is "" */
    }
    (void)json_object_set_new(row, "when", json_string(text));
}

static void show(const struct api_options *options, json_t *usage)
{
    const char *by = options->usage.by != NULL ? options->usage.by : "project";
    json_t *items = json_object_get(usage, "items"), *row;
    size_t i;

    json_array_foreach(items, i, row)
    {
        set_hours(row, "vcpu", "vcpu_hours");
        set_hours(row, "memory", "memory_gib_hours");
        set_hours(row, "storage", "storage_gib_hours");
        set_time(row);
    }
    table_print(items, strcmp(by, "project") == 0    ? of_projects
                       : strcmp(by, "instance") == 0 ? of_instances
                                                     : of_times);
}

static int show_csv(struct client *client, char *path, struct err *err)
{
    void *text = NULL;
    size_t len = 0;
    bool is_end;
    int rc = api_query(path, "format", "csv", err);

    rc = rc < 0 ? rc : client_transfer(client, "GET", path, NULL, 0, &text, &len, &is_end, err);
    if (rc == 0 && fwrite(text, 1, len, stdout) != len) {
        rc = err_set_errno(err, -EIO, "standard output");
    }
    free(text);
    return rc;
}

int verb_usage(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *usage = NULL;
    char path[API_PATH_BYTES];
    int rc = api_open(cli, &client, err);

    (void)args;
    rc = rc < 0 ? rc : api_path(cli, path, "usage", NULL, NULL, err);
    rc = rc < 0 ? rc : add_time(path, "since", "--since", options->usage.since, err);
    rc = rc < 0 ? rc : add_time(path, "until", "--until", options->usage.until, err);
    rc = rc == 0 && options->usage.by != NULL ? api_query(path, "by", options->usage.by, err) : rc;
    if (rc == 0 && options->usage.csv) {
        rc = show_csv(client, path, err);
    } else if (rc == 0) {
        rc = client_call(client, "GET", path, NULL, &usage, err);
        if (rc == 0 && options->json) {
            table_print_json(usage);
        } else if (rc == 0) {
            show(options, usage);
        }
    }
    json_decref(usage);
    client_close(client);
    return rc;
}
