#include "cli/api.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BAR_CELLS 24
#define PORT_MAX 65535ul

int api_open(const struct cli *cli, struct client **ret_client, struct err *err)
{
    const struct client_config config = {.host = cli->host,
                                         .token = cli->token,
                                         .may_start = !cli->never_start,
                                         .program = cli->daemon};
    int rc = client_open(&config, ret_client, err);

    if (rc == 0 && client_has_started(*ret_client)) {
        (void)fputs("corbel: started corbeld, which keeps your machines from now on "
                    "(corbel daemon --help)\n",
                    stderr);
    }
    return rc;
}

/* Names and ids; anything else cannot be there, and must not become another path. */
static int check_word(const char *word, struct err *err)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t len = strlen(word);

    if (len == 0 || len > 63 || word[0] == '.' || word[0] == '-' || strspn(word, letters) != len) {
        return err_set(err, -EINVAL,
                       "\"%.60s\" is no name: use letters, digits, '.', '_' and '-', with a letter "
                       "or digit first",
                       word);
    }
    return 0;
}

int api_query(char *path, const char *name, const char *value, struct err *err)
{
    size_t used = strlen(path);
    int n = snprintf(path + used, API_PATH_BYTES - used,
                     "%c%s=", strchr(path, '?') != NULL ? '&' : '?', name);

    if (n < 0 || (size_t)n >= API_PATH_BYTES - used ||
        client_escape(path, API_PATH_BYTES, value) < 0) {
        return err_set(err, -EINVAL, "\"%.60s\" is too long", value);
    }
    return 0;
}

int api_path(const struct cli *cli, char *out, const char *words, const char *name,
             const char *rest, struct err *err)
{
    static const char *const of_no_project[] = {"users", "tokens", "host", "version", "session"};
    int rc = name != NULL ? check_word(name, err) : 0;

    if (rc < 0) {
        return rc;
    }
    (void)snprintf(out, API_PATH_BYTES, "/v1/%s%s%s%s%s", words, name != NULL ? "/" : "",
                   name != NULL ? name : "", rest != NULL ? "/" : "", rest != NULL ? rest : "");
    for (size_t i = 0; i < ARRAY_LEN(of_no_project); i++) {
        if (strncmp(words, of_no_project[i], strlen(of_no_project[i])) == 0) {
            return 0;
        }
    }
    return cli->project[0] != '\0' ? api_query(out, "project", cli->project, err) : 0;
}

int api_get(const struct cli *cli, struct client *client, const char *words, const char *name,
            json_t **ret_object, struct err *err)
{
    char path[API_PATH_BYTES];
    int rc = api_path(cli, path, words, name, NULL, err);

    return rc < 0 ? rc : client_call(client, "GET", path, NULL, ret_object, err);
}

static int add_filters(char *path, const struct option_list *query, struct err *err)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && query != NULL && i < query->count; i++) {
        const char *equals = strchr(query->items[i], '=');
        char name[96];

        if (equals == NULL || equals == query->items[i] ||
            (size_t)(equals - query->items[i]) >= sizeof(name)) {
            return err_set(err, -EINVAL, "a filter is FIELD=VALUE, not \"%.60s\"", query->items[i]);
        }
        (void)snprintf(name, sizeof(name), "%.*s", (int)(equals - query->items[i]),
                       query->items[i]);
        rc = api_query(path, name, equals + 1, err);
    }
    return rc;
}

int api_list(const struct cli *cli, struct client *client, const char *words,
             const struct option_list *query, json_t **ret_items, struct err *err)
{
    json_t *items = json_array();
    char cursor[256] = "";
    int rc;

    do {
        char path[API_PATH_BYTES];
        json_t *page = NULL;

        rc = api_path(cli, path, words, NULL, NULL, err);
        rc = rc < 0 ? rc : add_filters(path, query, err);
        rc = rc < 0 || cursor[0] == '\0' ? rc : api_query(path, "cursor", cursor, err);
        rc = rc < 0 ? rc : client_call(client, "GET", path, NULL, &page, err);
        if (rc == 0) {
            (void)json_array_extend(items, json_object_get(page, "items"));
            (void)snprintf(cursor, sizeof(cursor), "%s", api_text(page, "next"));
        }
        json_decref(page);
    } while (rc == 0 && cursor[0] != '\0');
    if (rc < 0) {
        json_decref(items);
        return rc;
    }
    *ret_items = items;
    return 0;
}

/* ---- instances ---- */

static bool runs(const json_t *instance)
{
    const char *state = api_text(instance, "state");

    return strcmp(state, "running") == 0 || strcmp(state, "paused") == 0 ||
           strcmp(state, "stopping") == 0;
}

static int find_only(const struct cli *cli, struct client *client, json_t **ret_instance,
                     struct err *err)
{
    json_t *items = NULL, *item, *found = NULL;
    unsigned count = 0;
    size_t i;
    int rc = api_list(cli, client, "instances", NULL, &items, err);

    if (rc < 0) {
        return rc;
    }
    json_array_foreach(items, i, item)
    {
        if (runs(item)) {
            found = item;
            count++;
        }
    }
    if (count == 0) {
        rc = err_set(err, -ENOENT, "no instance runs; start one: corbel run debian");
    } else if (count > 1) {
        rc = err_set(err, -EINVAL, "%u instances run; say which (corbel list shows them)", count);
    } else {
        *ret_instance = json_incref(found);
    }
    json_decref(items);
    return rc;
}

int api_instance(const struct cli *cli, struct client *client, const struct args *args,
                 json_t **ret_instance, struct err *err)
{
    int rc;

    if (args->count == 0) {
        return find_only(cli, client, ret_instance, err);
    }
    rc = api_get(cli, client, "instances", args->words[0], ret_instance, err);
    return rc == -ENOENT ? err_set(err, rc, "there is no instance \"%s\"; corbel list shows them",
                                   args->words[0])
                         : rc;
}

int api_running_instance(const struct cli *cli, struct client *client, const struct args *args,
                         json_t **ret_instance, struct err *err)
{
    json_t *instance = NULL;
    int rc = api_instance(cli, client, args, &instance, err);

    if (rc == 0 && !runs(instance)) {
        rc = err_set(err, -ENOENT, "\"%s\" does not run, it is %s; start it: corbel start %s",
                     api_name(instance), api_text(instance, "state"), api_name(instance));
        json_decref(instance);
        return rc;
    }
    if (rc == 0) {
        *ret_instance = instance;
    }
    return rc;
}

int api_act(const struct cli *cli, struct client *client, const json_t *instance,
            const char *action, const json_t *parameters, struct err *err)
{
    char path[API_PATH_BYTES];
    json_t *answer = NULL;
    int rc = api_path(cli, path, "instances", api_text(instance, "id"), action, err);

    rc = rc < 0 ? rc : client_call(client, "POST", path, parameters, &answer, err);
    rc = rc < 0 ? rc : api_wait(client, api_name(instance), answer, err);
    json_decref(answer);
    return rc;
}

int api_change(const struct cli *cli, const char *method, const char *words, const char *name,
               const char *rest, const json_t *body, struct err *err)
{
    struct client *client = NULL;
    char path[API_PATH_BYTES];
    json_t *answer = NULL;
    int rc = api_path(cli, path, words, name, rest, err);

    rc = rc < 0 ? rc : api_open(cli, &client, err);
    rc = rc < 0 ? rc : client_call(client, method, path, body, &answer, err);
    rc = rc < 0 ? rc : api_wait(client, name, answer, err);
    json_decref(answer);
    client_close(client);
    return rc;
}

/* ---- waiting ---- */

struct progress {
    const char *what;
    bool is_terminal, has_bar;
    char step[64];
};

static void show_progress(void *opaque, const json_t *operation)
{
    static const char cells[] = "########################";
    struct progress *progress = opaque;
    int percent = (int)api_number(operation, "progress");
    const char *step = api_text(operation, "step");

    if (progress->is_terminal) {
        int done = percent * BAR_CELLS / 100;

        progress->has_bar = true;
        (void)fprintf(stderr, "\r%.20s [%.*s%*s] %3d %% %-20.20s", progress->what, done, cells,
                      BAR_CELLS - done, "", percent, step);
        return;
    }
    if (step[0] != '\0' && strcmp(step, progress->step) != 0) {
        (void)snprintf(progress->step, sizeof(progress->step), "%s", step);
        (void)fprintf(stderr, "%s: %s (%d %%)\n", progress->what, step, percent);
    }
}

int api_wait(struct client *client, const char *what, const json_t *answer, struct err *err)
{
    struct progress progress = {.what = what, .is_terminal = isatty(STDERR_FILENO)};
    int rc = client_wait(client, answer, show_progress, &progress, err);

    if (progress.has_bar) {
        (void)fputs("\r\033[K", stderr); /* it has served */
    }
    return rc;
}

/* ---- JSON ---- */

const char *api_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text != NULL ? text : "";
}

json_int_t api_number(const json_t *object, const char *name)
{
    return (json_int_t)json_number_value(json_object_get(object, name));
}

const char *api_name(const json_t *object)
{
    const char *name = api_text(object, "name");

    return name[0] != '\0' ? name : api_text(object, "id");
}

int api_pairs(const struct option_list *list, const char *option, json_t **ret_object,
              struct err *err)
{
    json_t *object = json_object();

    for (unsigned i = 0; i < list->count; i++) {
        const char *equals = strchr(list->items[i], '=');
        size_t len = equals != NULL ? (size_t)(equals - list->items[i]) : strlen(list->items[i]);
        char name[64];

        if (len == 0 || len >= sizeof(name)) {
            json_decref(object);
            return err_set(err, -EINVAL, "%s takes NAME=VALUE, not \"%.60s\"", option,
                           list->items[i]);
        }
        (void)snprintf(name, sizeof(name), "%.*s", (int)len, list->items[i]);
        (void)json_object_set_new(object, name, json_string(equals != NULL ? equals + 1 : ""));
    }
    *ret_object = object;
    return 0;
}

static bool read_port(const char *text, size_t len, bool may_be_zero, json_int_t *ret_port)
{
    unsigned long port = 0;

    if (len == 0 || len > 5 || strspn(text, "0123456789") < len) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        port = port * 10 + (unsigned long)(text[i] - '0');
    }
    *ret_port = (json_int_t)port;
    return port <= PORT_MAX && (port > 0 || may_be_zero);
}

int api_forward(const char *text, json_t **ret_forward, struct err *err)
{
    const char *colon = strchr(text, ':');
    const char *guest = colon != NULL ? colon + 1 : text;
    json_int_t host_port = 0, guest_port = 0;

    if ((colon != NULL && !read_port(text, (size_t)(colon - text), true, &host_port)) ||
        !read_port(guest, strlen(guest), false, &guest_port)) {
        return err_set(err, -EINVAL,
                       "\"%.40s\" is no forward: give HOSTPORT:GUESTPORT, such as 8080:80 (0:80 "
                       "takes a free port)",
                       text);
    }
    *ret_forward = json_pack("{s:I, s:I}", "host_port", host_port, "guest_port", guest_port);
    return *ret_forward != NULL ? 0 : err_set(err, -ENOMEM, "out of memory");
}
