/* corbel forward: ports of the host's 127.0.0.1 that lead into a guest. */
#include "cli/api.h"
#include "cli/table.h"
#include "cli/verb_tables.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define TRIES 5u /* against others who change the same instance */

static const struct column columns[] = {
    {"HOST", "host_port", CELL_TEXT},
    {"GUEST", "guest_port", CELL_TEXT},
    {NULL, NULL, CELL_TEXT},
};

int verb_forward_list(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *instance = NULL, *ports;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_instance(cli, client, args, &instance, err);
    client_close(client);
    if (rc < 0) {
        return rc;
    }
    /* What is open, else what will be. */
    ports = json_object_get(instance, "ports");
    ports = ports != NULL ? ports : json_object_get(instance, "forwards");
    ports = ports != NULL ? json_incref(ports) : json_array();
    if (api_number(instance, "ssh_port") != 0) {
        (void)json_array_insert_new(ports, 0,
                                    json_pack("{s:I, s:i}", "host_port",
                                              api_number(instance, "ssh_port"), "guest_port", 22));
    }
    if (options->json) {
        table_print_json(ports);
    } else {
        table_print(ports, columns);
    }
    json_decref(ports);
    json_decref(instance);
    return 0;
}

/* Takes the forward out of the list whose host port, wanted or opened, is that. */
static int take_out(const json_t *instance, json_t *list, json_int_t port, struct err *err)
{
    const json_t *open = json_object_get(instance, "ports");

    for (size_t i = 0; i < json_array_size(list); i++) {
        if (api_number(json_array_get(list, i), "host_port") == port ||
            (json_array_size(open) == json_array_size(list) &&
             api_number(json_array_get(open, i), "host_port") == port)) {
            (void)json_array_remove(list, i);
            return 0;
        }
    }
    return err_set(err, -ENOENT, "no forward of \"%s\" begins at host port %d; corbel forward list",
                   api_name(instance), (int)port);
}

/* The list with the forward in it, or out of it. */
static json_t *make_list(const json_t *instance, const json_t *forward, bool is_removal,
                         struct err *err, int *ret_rc)
{
    json_t *list = json_deep_copy(json_object_get(instance, "forwards"));

    list = list != NULL ? list : json_array();
    *ret_rc = is_removal ? take_out(instance, list, api_number(forward, "host_port"), err) : 0;
    for (size_t i = 0; !is_removal && *ret_rc == 0 && i < json_array_size(list); i++) {
        if (api_number(forward, "host_port") != 0 &&
            api_number(json_array_get(list, i), "host_port") == api_number(forward, "host_port")) {
            *ret_rc = err_set(err, -EEXIST, "host port %d of \"%s\" is forwarded already",
                              (int)api_number(forward, "host_port"), api_name(instance));
        }
    }
    if (!is_removal) {
        (void)json_array_append(list, (json_t *)(uintptr_t)forward);
    }
    return list;
}

/* Once, if nobody else has changed the instance meanwhile: -EBUSY then. */
static int attempt(const struct cli *cli, struct client *client, const struct args *args,
                   const json_t *forward, bool is_removal, struct err *err)
{
    struct args one = {.words = {args->words[0]}, .count = 1};
    char path[API_PATH_BYTES], revision[24];
    json_t *instance = NULL, *list = NULL, *body = NULL, *answer = NULL;
    int rc = api_instance(cli, client, &one, &instance, err);

    if (rc == 0) {
        list = make_list(instance, forward, is_removal, err, &rc);
        body = json_pack("{s:o}", "forwards", list);
    }
    (void)snprintf(revision, sizeof(revision), "%lld", (long long)api_number(instance, "revision"));
    rc = rc < 0 ? rc : api_path(cli, path, "instances", api_text(instance, "id"), NULL, err);
    rc = rc < 0 ? rc : api_query(path, "revision", revision, err);
    rc = rc < 0 ? rc : client_call(client, "PATCH", path, body, &answer, err);
    rc = rc < 0 ? rc : api_wait(client, api_name(instance), answer, err);
    json_decref(body);
    json_decref(answer);
    json_decref(instance);
    return rc;
}

/* args->data: NULL to add, anything else to take away. */
int verb_forward_change(const struct cli *cli, const void *values, const struct args *args,
                        struct err *err)
{
    bool is_removal = args->data != NULL;
    struct client *client = NULL;
    json_t *forward = NULL;
    char text[64];
    int rc;

    (void)values;
    (void)snprintf(text, sizeof(text), is_removal ? "%.40s:1" : "%.40s", args->words[1]);
    rc = api_forward(text, &forward, err);
    rc = rc < 0 ? rc : api_open(cli, &client, err);
    for (unsigned i = 0; rc == 0 && i < TRIES; i++) {
        rc = attempt(cli, client, args, forward, is_removal, err);
        if (rc != -EBUSY) {
            break;
        }
        rc = i + 1 < TRIES ? 0 : rc;
    }
    json_decref(forward);
    client_close(client);
    return rc;
}
