/* corbel type, key, project, quota, user, token, alarm, events and operation. */
#include "cli/verb_object.h"

#include "base/io.h"
#include "cli/size.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>

#define KEY_MAX_BYTES 8192
#define PASSWORD_BYTES 256

static const struct column instance_columns[] = {
    {"NAME", "name", CELL_TEXT},
    {"STATE", "state", CELL_TEXT},
    {"IMAGE", "image", CELL_TEXT},
    {"CPUS", "cpus", CELL_TEXT},
    {"MEMORY", "memory_mib", CELL_MIB},
    {"ENGINE", "engine_used", CELL_TEXT},
    {"NETWORK", "network", CELL_TEXT},
    {"ADDRESS", "address", CELL_TEXT},
    {"PORTS", "ports", CELL_PORTS},
    {"STARTED", "started", CELL_AGE},
    {"ID", "id", CELL_TEXT},
    {NULL, NULL, CELL_TEXT},
};

const struct column instance_details[] = {
    {"", "memory_mib", CELL_MIB},
    {"", "max_memory_mib", CELL_MIB},
    {"", "memory_now_mib", CELL_MIB},
    {"", "live_memory_mib", CELL_MIB},
    {"", "memory_limit_mib", CELL_MIB},
    {"", "balloon_mib", CELL_MIB},
    {"", "disk_gib", CELL_GIB},
    {"", "cpu_cap_percent", CELL_PERCENT},
    {"", "cpu_baseline_percent", CELL_PERCENT},
    {"", "cpu_reserved_percent", CELL_PERCENT},
    {"", "ports", CELL_PORTS},
    {"", "created", CELL_AGE},
    {"", "started", CELL_AGE},
    {NULL, NULL, CELL_TEXT},
};

static const struct column type_columns[] = {
    {"NAME", "name", CELL_TEXT},    {"CPUS", "cpus", CELL_TEXT}, {"MEMORY", "memory_mib", CELL_MIB},
    {"DISK", "disk_gib", CELL_GIB}, {"ID", "id", CELL_TEXT},     {NULL, NULL, CELL_TEXT},
};

static const struct column key_columns[] = {
    {"NAME", "name", CELL_TEXT},
    {"ADDED", "created", CELL_AGE},
    {"ID", "id", CELL_TEXT},
    {NULL, NULL, CELL_TEXT},
};

static const struct column project_columns[] = {
    {"NAME", "name", CELL_TEXT}, {"TAGS", "tags", CELL_TEXT}, {"ADDED", "created", CELL_AGE},
    {"ID", "id", CELL_TEXT},     {NULL, NULL, CELL_TEXT},
};

static const struct column quota_columns[] = {
    {"PROJECT", "name", CELL_TEXT},
    {"INSTANCES", "max_instances", CELL_LIMIT},
    {"CPUS", "max_cpus", CELL_LIMIT},
    {"MEMORY MIB", "max_memory_mib", CELL_LIMIT},
    {"VOLUMES GIB", "max_volume_gib", CELL_LIMIT},
    {"SNAPSHOTS", "max_snapshots", CELL_LIMIT},
    {"NICS", "max_nics", CELL_LIMIT},
    {"ALARMS", "max_alarms", CELL_LIMIT},
    {"KEYS", "max_keys", CELL_LIMIT},
    {"HOOKS", "max_hooks", CELL_LIMIT},
    {NULL, NULL, CELL_TEXT},
};

static const struct column user_columns[] = {
    {"NAME", "name", CELL_TEXT},    {"ROLE", "role", CELL_TEXT}, {"PROJECT", "project", CELL_TEXT},
    {"ADDED", "created", CELL_AGE}, {NULL, NULL, CELL_TEXT},
};

static const struct column token_columns[] = {
    {"ID", "id", CELL_TEXT},     {"NAME", "name", CELL_TEXT},       {"USER", "user", CELL_TEXT},
    {"ROLE", "role", CELL_TEXT}, {"PROJECT", "project", CELL_TEXT}, {"ADDED", "created", CELL_AGE},
    {NULL, NULL, CELL_TEXT},
};

static const struct column event_columns[] = {
    {"WHEN", "created", CELL_AGE}, {"LEVEL", "level", CELL_TEXT}, {"ACTION", "action", CELL_TEXT},
    {"WHO", "actor", CELL_TEXT},   {"WHAT", "text", CELL_TEXT},   {NULL, NULL, CELL_TEXT},
};

static const struct column operation_columns[] = {
    {"ID", "id", CELL_TEXT},
    {"ACTION", "action", CELL_TEXT},
    {"TARGET", "target", CELL_TEXT},
    {"STATE", "state", CELL_TEXT},
    {"DONE", "progress", CELL_PERCENT},
    {"STEP", "step", CELL_TEXT},
    {"BEGUN", "created", CELL_AGE},
    {NULL, NULL, CELL_TEXT},
};

static const struct column volume_columns[] = {
    {"NAME", "name", CELL_TEXT},    {"SIZE", "size_gib", CELL_GIB},
    {"STATE", "state", CELL_TEXT},  {"INSTANCE", "instance", CELL_TEXT},
    {"ADDED", "created", CELL_AGE}, {"ID", "id", CELL_TEXT},
    {NULL, NULL, CELL_TEXT},
};

static const struct column snapshot_columns[] = {
    {"NAME", "name", CELL_TEXT},   {"OF", "source", CELL_TEXT},     {"SIZE", "size_gib", CELL_GIB},
    {"STATE", "state", CELL_TEXT}, {"PARENT", "parent", CELL_TEXT}, {"TAKEN", "created", CELL_AGE},
    {"ID", "id", CELL_TEXT},       {NULL, NULL, CELL_TEXT},
};

static const struct column nic_columns[] = {
    {"NAME", "name", CELL_TEXT},
    {"MAC", "mac", CELL_TEXT},
    {"NETWORK", "network", CELL_TEXT},
    {"STATE", "state", CELL_TEXT},
    {"INSTANCE", "instance", CELL_TEXT},
    {"ADDED", "created", CELL_AGE},
    {"ID", "id", CELL_TEXT},
    {NULL, NULL, CELL_TEXT},
};

static const struct column alarm_columns[] = {
    {"NAME", "name", CELL_TEXT},     {"STATE", "state", CELL_TEXT},
    {"METRIC", "metric", CELL_TEXT}, {"IS", "comparison", CELL_TEXT},
    {"OF", "threshold", CELL_TEXT},  {"SECONDS", "for_s", CELL_TEXT},
    {"TAG", "tag", CELL_TEXT},       {"INSTANCE", "instance", CELL_TEXT},
    {"ACTION", "action", CELL_TEXT}, {"SINCE", "since", CELL_AGE},
    {"ID", "id", CELL_TEXT},         {NULL, NULL, CELL_TEXT},
};

static const struct column hook_columns[] = {
    {"NAME", "name", CELL_TEXT},       {"STATE", "state", CELL_TEXT},
    {"ACTION", "action", CELL_TEXT},   {"LEVEL", "level", CELL_TEXT},
    {"TOLD", "told", CELL_TEXT},       {"LOST", "lost", CELL_TEXT},
    {"ADDRESS", "webhook", CELL_TEXT}, {"ADDED", "created", CELL_AGE},
    {"ID", "id", CELL_TEXT},           {NULL, NULL, CELL_TEXT},
};

/* ---- creation ---- */

void object_put_text(json_t *body, const char *name, const char *text)
{
    if (text != NULL) {
        (void)json_object_set_new(body, name, json_string(text));
    }
}

int object_set_size(json_t *body, const char *name, const char *option, const char *text,
                    unsigned shift, struct err *err)
{
    uint64_t bytes = 0;
    int rc = text != NULL ? size_parse(option, text, &bytes, err) : 0;

    if (rc < 0 || text == NULL) {
        return rc;
    }
    if ((bytes & ((1ull << shift) - 1)) != 0 || bytes == 0) {
        return err_set(err, -EINVAL, "%s takes whole %s, such as 2G", option,
                       shift == 20 ? "MiB" : "GiB");
    }
    (void)json_object_set_new(body, name, json_integer((json_int_t)(bytes >> shift)));
    return 0;
}

static int fill_type(const struct api_options *options, const struct args *args, json_t *body,
                     struct err *err)
{
    int rc;

    (void)args;
    if (options->cpus == 0 || options->memory == NULL) {
        return err_set(err, -EINVAL, "a type needs --cpus N and --memory SIZE");
    }
    (void)json_object_set_new(body, "cpus", json_integer(options->cpus));
    rc = object_set_size(body, "memory_mib", "--memory", options->memory, 20, err);
    rc = rc < 0 ? rc : object_set_size(body, "disk_gib", "--disk", options->disk, 30, err);
    return rc < 0 ? rc : object_set_limits(body, &options->limits, err);
}

/* A file with a line as in authorized_keys; "-" is standard input. */
static int fill_key(const struct api_options *options, const struct args *args, json_t *body,
                    struct err *err)
{
    const char *path = args->words[1];
    char text[KEY_MAX_BYTES + 1];
    CLEANUP_CLOSE int fd =
        strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    ssize_t n = fd >= 0 ? io_read_full(fd, text, KEY_MAX_BYTES) : -errno;

    (void)options;
    if (n < 0) {
        return err_set_errno(err, n == -ENOENT ? -EINVAL : (int)n, "%s cannot be read", path);
    }
    text[n] = '\0';
    text[strcspn(text, "\r\n")] = '\0';
    if (strstr(text, "PRIVATE KEY") != NULL) {
        return err_set(err, -EINVAL, "%s is the private half, which stays yours; give %s.pub", path,
                       path);
    }
    object_put_text(body, "public_key", text);
    return 0;
}

static int set_limits(const struct api_options *options, json_t *body, struct err *err)
{
    const struct {
        const char *name, *option, *text;
        unsigned shift;
    } limits[] = {
        {"max_instances", "--instances", options->max_instances, 0},
        {"max_cpus", "--cpus", options->max_cpus, 0},
        {"max_memory_mib", "--memory", options->max_memory, 20},
        {"max_volume_gib", "--volumes", options->max_volumes, 30},
        {"max_snapshots", "--snapshots", options->max_snapshots, 0},
        {"max_nics", "--nics", options->max_nics, 0},
        {"max_alarms", "--alarms", options->max_alarms, 0},
        {"max_keys", "--keys", options->max_keys, 0},
        {"max_hooks", "--hooks", options->max_hooks, 0},
    };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(limits); i++) {
        const char *text = limits[i].text;

        if (text != NULL && (strcmp(text, "none") == 0 || strcmp(text, "0") == 0)) {
            (void)json_object_set_new(body, limits[i].name, json_integer(0));
        } else {
            rc =
                object_set_size(body, limits[i].name, limits[i].option, text, limits[i].shift, err);
        }
    }
    return rc;
}

static int fill_project(const struct api_options *options, const struct args *args, json_t *body,
                        struct err *err)
{
    (void)args;
    return set_limits(options, body, err);
}

static int fill_volume(const struct api_options *options, const struct args *args, json_t *body,
                       struct err *err)
{
    int rc = object_set_size(body, "size_gib", "the size", args->words[1], 30, err);

    return rc < 0 ? rc : object_set_limits(body, &options->limits, err);
}

static int fill_snapshot(const struct api_options *options, const struct args *args, json_t *body,
                         struct err *err)
{
    (void)args;
    if ((options->instance != NULL) == (options->volume != NULL)) {
        return err_set(err, -EINVAL, "say of what: --instance NAME, or --volume NAME");
    }
    object_put_text(body, "instance", options->instance);
    object_put_text(body, "volume", options->volume);
    return 0;
}

static int fill_nic(const struct api_options *options, const struct args *args, json_t *body,
                    struct err *err)
{
    (void)args;
    (void)err;
    object_put_text(body, "mac", options->mac);
    object_put_text(body, "network", options->network);
    return 0;
}

/* A line from a file, from the terminal without showing it, or from standard input. */
static int read_password(const struct api_options *options, char out[PASSWORD_BYTES],
                         struct err *err)
{
    struct termios saved, silent;
    FILE *file = options->password_file != NULL ? fopen(options->password_file, "re") : stdin;
    bool is_terminal = file == stdin && tcgetattr(STDIN_FILENO, &saved) == 0;
    bool is_read;

    if (file == NULL) {
        return err_set_errno(err, -errno, "%s cannot be read", options->password_file);
    }
    if (is_terminal) {
        silent = saved;
        silent.c_lflag &= ~(tcflag_t)ECHO;
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &silent);
        (void)fputs("password: ", stderr);
    }
    is_read = fgets(out, PASSWORD_BYTES, file) != NULL;
    if (is_terminal) {
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
        (void)fputc('\n', stderr);
    }
    if (file != stdin) {
        (void)fclose(file);
    }
    if (!is_read) {
        return err_set(err, -EINVAL,
                       "no password: type one, or give a file that has it: --password-file FILE");
    }
    out[strcspn(out, "\r\n")] = '\0';
    return 0;
}

static int fill_user(const struct api_options *options, const struct args *args, json_t *body,
                     struct err *err)
{
    char password[PASSWORD_BYTES];
    int rc = read_password(options, password, err);

    (void)args;
    if (rc == 0) {
        object_put_text(body, "password", password);
        object_put_text(body, "role", options->role);
        object_put_text(body, "project", options->of_project);
    }
    explicit_bzero(password, sizeof(password));
    return rc;
}

int object_set_duration(json_t *body, const char *name, const char *option, const char *text,
                        struct err *err)
{
    static const char units[] = "smhd";
    static const unsigned seconds[] = {1, 60, 3600, 86400};
    char *end = NULL;
    unsigned long number = text != NULL ? strtoul(text, &end, 10) : 0;
    const char *unit;

    if (text == NULL) {
        return 0;
    }
    unit = *end != '\0' ? strchr(units, *end) : units;
    if (text[0] < '0' || text[0] > '9' || unit == NULL || (*end != '\0' && end[1] != '\0') ||
        number > 1000000000) {
        return err_set(err, -EINVAL, "%s takes a time such as 30d, 12h or 90m, not \"%.40s\"",
                       option, text);
    }
    (void)json_object_set_new(body, name, json_integer((json_int_t)number * seconds[unit - units]));
    return 0;
}

static int fill_token(const struct api_options *options, const struct args *args, json_t *body,
                      struct err *err)
{
    (void)args;
    object_put_text(body, "role", options->role);
    object_put_text(body, "project", options->of_project);
    return object_set_duration(body, "expires_s", "--expires", options->expires, err);
}

static int fill_alarm(const struct api_options *options, const struct args *args, json_t *body,
                      struct err *err)
{
    const struct alarm_options *alarm = &options->alarm;
    uint64_t threshold = 0;
    int rc;

    (void)args;
    if (alarm->metric == NULL || alarm->threshold == NULL) {
        return err_set(err, -EINVAL, "an alarm needs --metric NAME and --threshold N");
    }
    if ((options->instance != NULL) == (alarm->tagged != NULL)) {
        return err_set(err, -EINVAL,
                       "say what it watches: --instance NAME, or --tagged NAME=VALUE");
    }
    rc = size_parse("--threshold", alarm->threshold, &threshold, err);
    (void)json_object_set_new(body, "threshold", json_integer((json_int_t)threshold));
    object_put_text(body, "metric", alarm->metric);
    object_put_text(body, "comparison", alarm->comparison);
    object_put_text(body, "instance", options->instance);
    object_put_text(body, "tag", alarm->tagged);
    object_put_text(body, "action", alarm->action);
    object_put_text(body, "webhook", alarm->webhook);
    return rc < 0 ? rc : object_set_duration(body, "for_s", "--for", alarm->for_time, err);
}

static int fill_hook(const struct api_options *options, const struct args *args, json_t *body,
                     struct err *err)
{
    (void)err;
    object_put_text(body, "webhook", args->words[1]);
    object_put_text(body, "action", options->hook.action);
    object_put_text(body, "level", options->hook.level);
    return 0;
}

const struct collection collection_instances = {"instances", "instance", instance_columns, NULL};
const struct collection collection_types = {"types", "type", type_columns, fill_type};
const struct collection collection_keys = {"keys", "key", key_columns, fill_key};
const struct collection collection_projects = {"projects", "project", project_columns,
                                               fill_project};
const struct collection collection_quotas = {"projects", "project", quota_columns, NULL};
const struct collection collection_users = {"users", "user", user_columns, fill_user};
const struct collection collection_tokens = {"tokens", "token", token_columns, fill_token};
const struct collection collection_events = {"events", "event", event_columns, NULL};
const struct collection collection_operations = {"operations", "operation", operation_columns,
                                                 NULL};
const struct collection collection_nics = {"nics", "nic", nic_columns, fill_nic};
const struct collection collection_alarms = {"alarms", "alarm", alarm_columns, fill_alarm};
const struct collection collection_hooks = {"hooks", "hook", hook_columns, fill_hook};
const struct collection collection_volumes = {"volumes", "volume", volume_columns, fill_volume};

const struct collection collection_snapshots = {"snapshots", "snapshot", snapshot_columns,
                                                fill_snapshot};

/* ---- the verbs ---- */

int verb_object_list(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct api_options *options = values;
    const struct collection *collection = args->data;
    struct client *client = NULL;
    json_t *items = NULL;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_list(cli, client, collection->path, &options->filters, &items, err);
    client_close(client);
    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        table_print_json(items);
    } else {
        table_print(items, collection->columns);
    }
    json_decref(items);
    return 0;
}

int verb_object_show(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct api_options *options = values;
    const struct collection *collection = args->data;
    struct client *client = NULL;
    json_t *object = NULL;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_get(cli, client, collection->path, args->words[0], &object, err);
    client_close(client);
    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        table_print_json(object);
    } else {
        table_print_object(object, collection->columns);
    }
    json_decref(object);
    return 0;
}

int verb_hook_show(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err)
{
    static const struct column columns[] = {
        {"TOLD", "time", CELL_AGE},      {"ACTION", "action", CELL_TEXT},
        {"STATE", "state", CELL_TEXT},   {"TRIES", "tries", CELL_TEXT},
        {"STATUS", "status", CELL_TEXT}, {"MS", "took_ms", CELL_TEXT},
        {"WHY NOT", "error", CELL_TEXT}, {"EVENT", "event", CELL_TEXT},
        {NULL, NULL, CELL_TEXT},
    };
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *hook = NULL;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_get(cli, client, "hooks", args->words[0], &hook, err);
    client_close(client);
    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        table_print_json(hook);
    } else {
        table_print_object(hook, hook_columns);
        if (json_array_size(json_object_get(hook, "deliveries")) > 0) {
            puts("");
            table_print(json_object_get(hook, "deliveries"), columns);
        }
    }
    json_decref(hook);
    return 0;
}

/* What a script goes on with: the secret that is told once (of a hook, too), else the id or name. */
static void print_made(const struct collection *collection, const json_t *answer, bool as_json)
{
    const json_t *object = json_object_get(answer, collection->word);
    const char *token = api_text(answer, "token");

    object = object != NULL ? object : answer;
    token = token[0] != '\0' ? token : api_text(object, "secret");
    if (as_json) {
        table_print_json(object);
    } else {
        puts(token[0] != '\0' ? token : api_name(object));
    }
}

int verb_object_create(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct api_options *options = values;
    const struct collection *collection = args->data;
    struct client *client = NULL;
    json_t *body = json_object(), *tags = NULL, *answer = NULL;
    char path[API_PATH_BYTES];
    int rc = api_pairs(&options->tags, "--tag", &tags, err);

    object_put_text(body, "name", args->words[0]);
    if (rc == 0 && json_object_size(tags) > 0) {
        (void)json_object_set(body, "tags", tags);
    }
    rc = rc < 0 ? rc : collection->fill(options, args, body, err);
    rc = rc < 0 ? rc : api_path(cli, path, collection->path, NULL, NULL, err);
    rc = rc < 0 ? rc : api_open(cli, &client, err);
    rc = rc < 0 ? rc : client_call(client, "POST", path, body, &answer, err);
    rc = rc < 0 ? rc : api_wait(client, args->words[0], answer, err);
    if (rc == 0) {
        print_made(collection, answer, options->json);
    }
    json_decref(tags);
    json_decref(body);
    json_decref(answer);
    client_close(client);
    return rc;
}

int verb_object_delete(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct collection *collection = args->data;

    (void)values;
    return api_change(cli, "DELETE", collection->path, args->words[0], NULL, NULL, err);
}

int verb_quota_set(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err)
{
    const struct api_options *options = values;
    json_t *body = json_object();
    int rc = set_limits(options, body, err);

    if (rc == 0 && json_object_size(body) == 0) {
        rc = err_set(err, -EINVAL,
                     "say what is limited: --instances, --cpus, --memory, --volumes, "
                     "--snapshots, --nics, --alarms");
    }
    rc = rc < 0 ? rc : api_change(cli, "PATCH", "projects", args->words[0], NULL, body, err);
    json_decref(body);
    return rc;
}

int verb_operation_wait(const struct cli *cli, const void *values, const struct args *args,
                        struct err *err)
{
    struct client *client = NULL;
    json_t *operation = NULL, *answer;
    int rc = api_open(cli, &client, err);

    (void)values;
    rc = rc < 0 ? rc : api_get(cli, client, "operations", args->words[0], &operation, err);
    answer = json_pack("{s:o*}", "operation", operation);
    rc = rc < 0 ? rc : api_wait(client, args->words[0], answer, err);
    json_decref(answer);
    client_close(client);
    return rc;
}

int verb_operation_cancel(const struct cli *cli, const void *values, const struct args *args,
                          struct err *err)
{
    struct client *client = NULL;
    char path[API_PATH_BYTES];
    int rc = api_path(cli, path, "operations", args->words[0], "cancel", err);

    (void)values;
    rc = rc < 0 ? rc : api_open(cli, &client, err);
    rc = rc < 0 ? rc : client_call(client, "POST", path, NULL, NULL, err);
    client_close(client);
    return rc;
}

int verb_snapshot_restore(const struct cli *cli, const void *values, const struct args *args,
                          struct err *err)
{
    (void)values;
    return api_change(cli, "POST", "snapshots", args->words[0], "restore", NULL, err);
}

int verb_user_reset(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err)
{
    (void)values;
    return api_change(cli, "DELETE", "users", args->words[0], "totp", NULL, err);
}

int verb_volume_grow(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct api_options *options = values;
    json_t *body = json_object();
    int rc = args->count > 1
                 ? object_set_size(body, "size_gib", "the size", args->words[1], 30, err)
                 : 0;

    rc = rc < 0 ? rc : object_set_limits(body, &options->limits, err);
    if (rc == 0 && json_object_size(body) == 0) {
        rc = err_set(err, -EINVAL, "say what it shall have: a SIZE, --bps N or --iops N");
    }
    rc = rc < 0 ? rc : api_change(cli, "PATCH", "volumes", args->words[0], NULL, body, err);
    json_decref(body);
    return rc;
}
