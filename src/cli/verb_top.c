/* corbel top: what running instances use, again and again. */
#include "base/loop.h"
#include "cli/api.h"
#include "cli/table.h"
#include "cli/verb_tables.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define INTERVAL_S 2u

static const struct column columns[] = {
    {"NAME", "name", CELL_TEXT},
    {"STATE", "state", CELL_TEXT},
    {"CPUS", "cpus", CELL_TEXT},
    {"CPU", "cpu", CELL_PERCENT},
    {"RESIDENT", "resident", CELL_BYTES},
    {"MEMORY", "memory_mib", CELL_MIB},
    {"DISK READ/S", "read", CELL_BYTES},
    {"WRITE/S", "written", CELL_BYTES},
    {"NET IN/S", "received", CELL_BYTES},
    {"OUT/S", "sent", CELL_BYTES},
    {NULL, NULL, CELL_TEXT},
};

/* One look at an instance: a row, with the counters beside it for the next look. */
static json_t *look(const struct cli *cli, struct client *client, const json_t *instance)
{
    json_t *row = json_deep_copy(instance), *statistics = NULL;
    char path[API_PATH_BYTES];
    struct err ignored;

    if (api_path(cli, path, "instances", api_text(instance, "id"), "statistics", &ignored) == 0 &&
        client_call(client, "GET", path, NULL, &statistics, &ignored) == 0) {
        (void)json_object_set_new(row, "counters", statistics);
        (void)json_object_set_new(row, "at_ns", json_integer((json_int_t)clock_monotonic_ns()));
    }
    return row;
}

static void set_rate(json_t *row, const json_t *before, const char *name, const char *counter,
                     double per)
{
    double seconds = (double)(api_number(row, "at_ns") - api_number(before, "at_ns")) / 1e9;
    double more = (double)(api_number(json_object_get(row, "counters"), counter) -
                           api_number(json_object_get(before, "counters"), counter));

    if (seconds > 0) {
        (void)json_object_set_new(row, name, json_real(more < 0 ? 0 : more / seconds * per));
    }
}

static const json_t *find_row(const json_t *rows, const char *id)
{
    for (size_t i = 0; i < json_array_size(rows); i++) {
        if (strcmp(api_text(json_array_get(rows, i), "id"), id) == 0) {
            return json_array_get(rows, i);
        }
    }
    return NULL;
}

/* What has happened between two looks. */
static void compare(json_t *rows, const json_t *before)
{
    size_t i;
    json_t *row;

    json_array_foreach(rows, i, row)
    {
        const json_t *old = find_row(before, api_text(row, "id"));
        const json_t *counters = json_object_get(row, "counters");

        if (counters != NULL) {
            (void)json_object_set_new(row, "resident",
                                      json_integer(api_number(counters, "memory.resident_bytes")));
        }
        if (counters != NULL && old != NULL && json_object_get(old, "counters") != NULL) {
            set_rate(row, old, "cpu", "vcpu.run_ns", 1e-7); /* percent of one CPU */
            set_rate(row, old, "read", "disk.read_bytes", 1);
            set_rate(row, old, "written", "disk.written_bytes", 1);
            set_rate(row, old, "received", "net.rx_bytes", 1);
            set_rate(row, old, "sent", "net.tx_bytes", 1);
        }
    }
}

static int look_at_all(const struct cli *cli, struct client *client, json_t **ret_rows,
                       struct err *err)
{
    json_t *instances = NULL, *instance;
    size_t i;
    int rc = api_list(cli, client, "instances", NULL, &instances, err);

    if (rc < 0) {
        return rc;
    }
    *ret_rows = json_array();
    json_array_foreach(instances, i, instance)
    {
        const char *state = api_text(instance, "state");

        if (strcmp(state, "running") == 0 || strcmp(state, "paused") == 0) {
            (void)json_array_append_new(*ret_rows, look(cli, client, instance));
        }
    }
    json_decref(instances);
    return 0;
}

/* The time between two looks; 1 when the user has typed q, or the input has ended on a terminal. */
static int pause_or_quit(unsigned seconds, bool is_terminal)
{
    struct pollfd pfd = {.fd = is_terminal ? STDIN_FILENO : -1, .events = POLLIN};
    char key = 0;

    return poll(&pfd, 1, (int)seconds * 1000) > 0 &&
           (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q');
}

int verb_top(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    bool is_terminal = isatty(STDOUT_FILENO) && isatty(STDIN_FILENO);
    unsigned interval_s = options->interval_s != 0 ? options->interval_s : INTERVAL_S;
    unsigned count = options->count != 0 ? options->count : is_terminal ? 0 : 1;
    struct client *client = NULL;
    json_t *before = NULL;
    int rc = api_open(cli, &client, err);

    (void)args;
    rc = rc < 0 ? rc : look_at_all(cli, client, &before, err);
    for (unsigned i = 0; rc == 0 && (count == 0 || i < count); i++) {
        json_t *rows = NULL;

        if (pause_or_quit(i == 0 && is_terminal ? 1 : interval_s, is_terminal) != 0) {
            break;
        }
        rc = look_at_all(cli, client, &rows, err);
        if (rc == 0) {
            compare(rows, before);
            if (is_terminal) {
                (void)fputs("\033[H\033[2J", stdout);
            }
            if (options->json) {
                table_print_json(rows);
            } else {
                table_print(rows, columns);
            }
            (void)fflush(stdout);
            json_decref(before);
            before = rows;
        }
    }
    json_decref(before);
    client_close(client);
    return rc;
}
