/* corbel show, start, stop, restart, pause, resume, resize and delete. */
#include "cli/api.h"
#include "cli/verb_object.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int verb_show(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *instance = NULL;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_instance(cli, client, args, &instance, err);
    client_close(client);
    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        table_print_json(instance);
    } else {
        table_print_object(instance, instance_details);
    }
    json_decref(instance);
    return 0;
}

/* Instances that an action is for: those that are named, or all of the project. */
static int find_targets(const struct cli *cli, struct client *client,
                        const struct api_options *options, const struct args *args,
                        const char *action, json_t **ret_targets, struct err *err)
{
    json_t *targets = NULL;
    int rc = 0;

    if (options->all && args->count > 0) {
        return err_set(err, -EINVAL, "give names, or --all, not both");
    }
    if (options->all) {
        return api_list(cli, client, "instances", NULL, ret_targets, err);
    }
    if (args->count == 0 && (strcmp(action, "start") == 0 || strcmp(action, "delete") == 0)) {
        return err_set(err, -EINVAL, "say which instance; corbel list shows them");
    }
    targets = json_array();
    for (unsigned i = 0; rc == 0 && (i < args->count || i == 0); i++) {
        struct args one = {.words = {args->words[i]}, .count = args->count > 0 ? 1 : 0};
        json_t *instance = NULL;

        rc = api_instance(cli, client, &one, &instance, err);
        if (rc == 0) {
            (void)json_array_append_new(targets, instance);
        }
    }
    if (rc < 0) {
        json_decref(targets);
        return rc;
    }
    *ret_targets = targets;
    return 0;
}

/* Whether there is anything to do for one of "all". */
static bool concerns(const char *action, const json_t *instance)
{
    const char *state = api_text(instance, "state");
    bool rests = strcmp(state, "stopped") == 0 || strcmp(state, "failed") == 0;

    if (strcmp(action, "delete") == 0) {
        return true;
    }
    if (strcmp(action, "start") == 0) {
        return rests;
    }
    return strcmp(action, "resume") == 0 ? strcmp(state, "paused") == 0
           : strcmp(action, "stop") == 0 ? !rests
                                         : strcmp(state, "running") == 0;
}

/* The mend of a refusal that people meet most. */
static int explain(const json_t *instance, const char *action, int rc, struct err *err)
{
    const char *name = api_name(instance);
    const char *state = api_text(instance, "state");

    if (rc != -EBUSY) {
        return rc;
    }
    if (strcmp(action, "start") == 0 && strcmp(state, "running") == 0) {
        return err_set(err, rc,
                       "\"%s\" runs already (process %d); corbel console %s attaches to it", name,
                       (int)api_number(instance, "pid"), name);
    }
    if (strcmp(state, "stopped") == 0 || strcmp(state, "failed") == 0) {
        return err_set(err, rc, "\"%s\" is %s; start it: corbel start %s", name, state, name);
    }
    return rc;
}

static json_t *stop_parameters(const struct api_options *options)
{
    json_t *parameters = json_object();

    if (options->force) {
        (void)json_object_set_new(parameters, "force", json_true());
    }
    if (options->wait_s != 0) {
        (void)json_object_set_new(parameters, "timeout_s", json_integer(options->wait_s));
    }
    return parameters;
}

int verb_act(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    const char *action = args->data;
    struct client *client = NULL;
    json_t *targets = NULL, *instance;
    json_t *parameters = strcmp(action, "stop") == 0 || strcmp(action, "restart") == 0
                             ? stop_parameters(options)
                             : NULL;
    size_t i;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : find_targets(cli, client, options, args, action, &targets, err);
    json_array_foreach(targets, i, instance)
    {
        if (rc == 0 && (!options->all || concerns(action, instance))) {
            rc = api_act(cli, client, instance, action, parameters, err);
            rc = rc < 0 ? explain(instance, action, rc, err) : rc;
        }
    }
    json_decref(parameters);
    json_decref(targets);
    client_close(client);
    return rc;
}

/* One that runs is deleted only on purpose. */
static int delete_one(const struct cli *cli, struct client *client, const json_t *instance,
                      bool is_forced, struct err *err)
{
    const char *name = api_name(instance), *state = api_text(instance, "state");
    char path[API_PATH_BYTES];
    json_t *answer = NULL;
    int rc;

    if (!is_forced && (strcmp(state, "running") == 0 || strcmp(state, "paused") == 0)) {
        return err_set(
            err, -EBUSY,
            "\"%s\" runs; stop it first: corbel stop %s (or --force deletes it as it is)", name,
            name);
    }
    rc = api_path(cli, path, "instances", api_text(instance, "id"), NULL, err);
    rc = rc < 0 ? rc : client_call(client, "DELETE", path, NULL, &answer, err);
    rc = rc < 0 ? rc : api_wait(client, name, answer, err);
    json_decref(answer);
    return rc;
}

int verb_delete(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *targets = NULL, *instance;
    size_t i;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : find_targets(cli, client, options, args, "delete", &targets, err);
    json_array_foreach(targets, i, instance)
    {
        rc = rc < 0 ? rc : delete_one(cli, client, instance, options->force, err);
    }
    json_decref(targets);
    client_close(client);
    return rc;
}

int verb_resize(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    json_t *body = json_object();
    int rc = object_set_size(body, "memory_mib", "--memory", options->memory, 20, err);

    object_put_text(body, "type", options->type);
    if (options->cpus != 0) {
        (void)json_object_set_new(body, "cpus", json_integer(options->cpus));
    }
    rc = rc < 0 ? rc : object_set_limits(body, &options->limits, err);
    if (rc == 0 && json_object_size(body) == 0) {
        rc = err_set(err, -EINVAL,
                     "say what it shall have: --cpus N, --memory SIZE, --type TYPE or a limit");
    }
    rc = rc < 0 ? rc : api_change(cli, "PATCH", "instances", args->words[0], NULL, body, err);
    json_decref(body);
    return rc;
}
