/* corbel stats, top, logs and events --follow: what goes on. */
#include "cli/api.h"
#include "cli/verb_object.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

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
            printf("%-32s %20" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
        }
    }
    json_decref(statistics);
    return 0;
}

/* The last lines of a text, 0: all. */
static const char *last_lines(const char *text, unsigned lines)
{
    const char *at = text + strlen(text);

    if (lines == 0) {
        return text;
    }
    for (lines++; at > text; at--) {
        if (at[-1] == '\n' && --lines == 0) {
            break;
        }
    }
    return at;
}

int verb_logs(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    json_t *log = NULL;
    int rc = get_of(cli, args, "log", false, &log, err);

    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        table_print_json(log);
    } else {
        const char *text = api_text(log, options->is_monitor ? "monitor" : "console");
        size_t len = strlen(text);

        (void)fputs(last_lines(text, options->lines), stdout);
        if (len > 0 && text[len - 1] != '\n') {
            (void)putchar('\n');
        }
    }
    json_decref(log);
    return 0;
}
