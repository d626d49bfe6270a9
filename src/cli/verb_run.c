/* corbel run: makes the instance when it is new, starts it, and attaches its console. */
#include "cli/api.h"
#include "cli/console.h"
#include "cli/image.h"
#include "cli/verb_object.h"

#include "base/base64.h"
#include "base/io.h"
#include "base/path.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define USER_DATA_MAX (64u << 10)
#define READY_MAX_SECONDS 600
#define AGAIN_MS 100
#define AGAIN_TRIES 100u /* of a machine that is just ending, or a daemon that comes back */

struct run {
    const struct cli *cli;
    const struct api_options *options;
    struct client *client;
    const char *image, *name;
    json_t *instance; /* as it is now */
};

/* What the options say, as fields of an instance. */
static int make_body(const struct run *run, json_t *body, struct err *err)
{
    const struct api_options *options = run->options;
    int rc = object_set_size(body, "memory_mib", "--memory", options->memory, 20, err);

    rc = rc < 0 ? rc : object_set_size(body, "disk_gib", "--disk", options->disk, 30, err);
    rc = rc < 0 ? rc : object_set_limits(body, &options->limits, err);
    object_put_text(body, "type", options->type);
    object_put_text(body, "engine", options->engine);
    object_put_text(body, "cmdline", options->cmdline);
    object_put_text(body, "restart", options->restart);
    object_put_text(body, "nic", options->nic);
    object_put_text(body, "network", options->network);
    if (options->cpus != 0) {
        (void)json_object_set_new(body, "cpus", json_integer(options->cpus));
    }
    if (options->forwards.count > 0) {
        json_t *forwards = json_array();

        (void)json_object_set_new(body, "forwards", forwards);
        for (unsigned i = 0; rc == 0 && i < options->forwards.count; i++) {
            json_t *forward = NULL;

            rc = api_forward(options->forwards.items[i], &forward, err);
            (void)json_array_append_new(forwards, forward);
        }
    }
    if (options->volumes.count > 0) {
        json_t *volumes = json_array();

        (void)json_object_set_new(body, "volumes", volumes);
        for (unsigned i = 0; i < options->volumes.count; i++) {
            (void)json_array_append_new(volumes, json_string(options->volumes.items[i]));
        }
    }
    if (rc == 0 && options->tags.count > 0) {
        json_t *tags = NULL;

        rc = api_pairs(&options->tags, "--tag", &tags, err);
        (void)json_object_set_new(body, "tags", tags);
    }
    return rc;
}

/* Takes what an answer says of the instance; the answer too. */
static void keep_instance(struct run *run, json_t *answer)
{
    json_t *instance = json_object_get(answer, "instance");

    if (instance != NULL) {
        json_decref(run->instance);
        run->instance = json_incref(instance);
    }
    json_decref(answer);
}

static int look_again(struct run *run, struct err *err)
{
    json_t *instance = NULL;
    int rc =
        api_get(run->cli, run->client, "instances", api_text(run->instance, "id"), &instance, err);

    if (rc == 0) {
        json_decref(run->instance);
        run->instance = instance;
    }
    return rc;
}

static int find_image(const struct run *run, struct err *err)
{
    json_t *image = NULL;
    int rc = api_get(run->cli, run->client, "images", run->image, &image, err);

    json_decref(image);
    return rc;
}

/* What this program has inside is taken out, when that is all that is missing. */
static int check_image(const struct run *run, struct err *err)
{
    int rc = run->image != NULL ? find_image(run, err)
                                : err_set(err, -EINVAL, "say which image: corbel run IMAGE");

    if (rc != -ENOENT || strstr(err->text, "image") == NULL) {
        return rc;
    }
    if (image_is_inside(run->cli, run->image)) {
        rc = image_take_inside(run->cli, run->image, err);
        return rc < 0 ? rc : find_image(run, err);
    }
    if (image_is_in_catalogue(run->cli, run->image)) {
        return err_set(err, rc, "there is no image \"%s\" yet; corbel image fetch %s gets it",
                       run->image, run->image);
    }
    return err_set(err, rc,
                   "there is no image \"%s\"; corbel image list shows them, corbel image build "
                   "debian makes one%s",
                   run->image,
                   image_is_inside(run->cli, "busybox") ? ", and busybox is inside this program"
                                                        : "");
}

static int delete_old(struct run *run, struct err *err)
{
    char path[API_PATH_BYTES];
    json_t *answer = NULL;
    int rc = api_path(run->cli, path, "instances", api_text(run->instance, "id"), NULL, err);

    rc = rc < 0 ? rc : client_call(run->client, "DELETE", path, NULL, &answer, err);
    rc = rc < 0 ? rc : api_wait(run->client, run->name, answer, err);
    json_decref(answer);
    return rc;
}

/* Whether it came as far as having a disk: a monitor that then refused it has left its words. */
static bool was_started(const struct run *run)
{
    char path[API_PATH_BYTES];
    struct err ignored;
    int rc =
        api_path(run->cli, path, "instances", api_text(run->instance, "id"), "access", &ignored);

    return rc == 0 && client_call(run->client, "GET", path, NULL, NULL, &ignored) == 0;
}

/* What only a new one takes. */
static int add_first_start(const struct run *run, json_t *body, struct err *err)
{
    const char *path = run->options->user_data;
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;
    int rc = path != NULL ? io_read_file(path, USER_DATA_MAX, &data, &len) : 0;

    object_put_text(body, "key", run->options->key);
    if (rc < 0) {
        return err_set(err, -EINVAL, "%s cannot be read, or is longer than %u KiB", path,
                       USER_DATA_MAX >> 10);
    }
    if (path != NULL) {
        CLEANUP_FREE char *text = base64_encode(data, len);

        object_put_text(body, "user_data_base64", text);
    }
    return 0;
}

static int create(struct run *run, struct err *err)
{
    json_t *body = json_object(), *answer = NULL, *operation;
    char path[API_PATH_BYTES];
    struct err ignored;
    int rc = check_image(run, err);

    object_put_text(body, "name", run->name);
    object_put_text(body, "image", run->image);
    if (run->options->ephemeral) {
        (void)json_object_set_new(body, "ephemeral", json_true());
        (void)json_object_set_new(body, "restart", json_string("never"));
    }
    rc = rc < 0 ? rc : make_body(run, body, err);
    rc = rc < 0 ? rc : add_first_start(run, body, err);
    rc = rc < 0 ? rc : api_path(run->cli, path, "instances", NULL, NULL, err);
    rc = rc < 0 ? rc : client_create(run->client, path, body, &answer, err);
    json_decref(body);
    if (rc < 0) {
        return rc;
    }
    operation = json_pack("{s:O*}", "operation", json_object_get(answer, "operation"));
    keep_instance(run, answer);
    rc = api_wait(run->client, run->name, operation, err);
    json_decref(operation);
    if (rc == -EIO && look_again(run, &ignored) == 0 && !was_started(run) &&
        delete_old(run, &ignored) == 0) {
        return err_set(err, rc, "%.330s; nothing of it was kept", strdupa(err->text));
    }
    return rc;
}

/* What is new in the options of one that was there. */
static int change(struct run *run, struct err *err)
{
    json_t *body = json_object(), *answer = NULL;
    char path[API_PATH_BYTES];
    int rc = make_body(run, body, err);

    if (rc == 0 && json_object_size(body) > 0) {
        rc = api_path(run->cli, path, "instances", api_text(run->instance, "id"), NULL, err);
        rc = rc < 0 ? rc : client_call(run->client, "PATCH", path, body, &answer, err);
        rc = rc < 0 ? rc : api_wait(run->client, run->name, answer, err);
    }
    json_decref(body);
    json_decref(answer);
    return rc;
}

/* The instance of that name: made, or started with the disk that it has. */
static int bring_up(struct run *run, struct err *err)
{
    const char *state;
    int rc = api_get(run->cli, run->client, "instances", run->name, &run->instance, err);

    if (rc == -ENOENT) {
        return create(run, err);
    }
    if (rc < 0) {
        return rc;
    }
    state = api_text(run->instance, "state");
    if (strcmp(state, "stopped") != 0 && strcmp(state, "failed") != 0) {
        return err_set(err, -EEXIST,
                       "\"%s\" is %s already (process %d); corbel console %s attaches to it, and "
                       "--name starts another",
                       run->name, state, (int)api_number(run->instance, "pid"), run->name);
    }
    if (run->options->fresh) {
        if (run->image == NULL) {
            return err_set(err, -EINVAL, "say which image: corbel run IMAGE --name %s --fresh",
                           run->name);
        }
        rc = delete_old(run, err);
        return rc < 0 ? rc : create(run, err);
    }
    (void)fprintf(stderr, "starting \"%s\" with the disk of its last run (--fresh begins anew)\n",
                  run->name);
    rc = change(run, err);
    return rc < 0 ? rc : api_act(run->cli, run->client, run->instance, "start", NULL, err);
}

static void print_access(const struct run *run, const json_t *access)
{
    const json_t *i = run->instance;
    const char *user = api_text(access, "user");

    (void)fprintf(stderr, "\"%s\" runs (process %d)\n", run->name, (int)api_number(i, "pid"));
    if (api_number(i, "ssh_port") != 0) {
        (void)fprintf(stderr, "  ssh:      corbel ssh %s    (127.0.0.1 port %d, user %s)\n",
                      run->name, (int)api_number(i, "ssh_port"), user);
    }
    if (api_number(i, "ssh_port") == 0 && user[0] != '\0') {
        (void)fprintf(stderr, "  ssh:      corbel ssh %s    (on %s, user %s)\n", run->name,
                      api_text(i, "network"), user);
    }
    (void)fprintf(stderr, "  console:  corbel console %s", run->name);
    if (api_text(access, "console_password")[0] != '\0') {
        (void)fprintf(stderr, "    (user %s, password %.*s)", user,
                      (int)strcspn(api_text(access, "console_password"), "\r\n"),
                      api_text(access, "console_password"));
    }
    (void)fprintf(stderr, "\n  browser:  corbel web\n  stop:     corbel stop %s\n", run->name);
}

/* How it ended, from what happened to it last: it may be gone itself. */
static int tell_end(struct run *run, struct err *err)
{
    struct option_list filter = {.count = 1};
    char target[96];
    json_t *events = NULL;
    const json_t *last;
    const char *action;
    int rc;

    (void)snprintf(target, sizeof(target), "target=%s", api_text(run->instance, "id"));
    filter.items[0] = target;
    rc = api_list(run->cli, run->client, "events", &filter, &events, err);
    for (size_t i = json_array_size(events); rc == 0 && i-- > 0;) {
        last = json_array_get(events, i);
        action = api_text(last, "action");
        if (strcmp(action, "instance.failed") == 0) {
            rc = err_set(err, -EIO, "%s", api_text(last, "text"));
            break;
        }
        if (strcmp(action, "instance.ended") == 0 || strcmp(action, "instance.stopped") == 0) {
            break;
        }
    }
    json_decref(events);
    return rc;
}

/* The console has ended: 1 when the machine goes on, and only the daemon had gone. */
static int await_end(struct run *run, struct err *err)
{
    for (unsigned i = 0; i < AGAIN_TRIES; i++) {
        int rc = look_again(run, err);
        const char *state = api_text(run->instance, "state");
        bool goes_on = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;

        if (rc == -ENOENT ||
            (rc == 0 && (strcmp(state, "stopped") == 0 || strcmp(state, "failed") == 0 ||
                         strcmp(state, "deleting") == 0))) {
            return tell_end(run, err);
        }
        if (rc < 0 && rc != -ENOTCONN) {
            return rc;
        }
        if (rc == 0 && goes_on && i > 5) {
            return 1; /* it takes a moment until a machine that ended is seen to have */
        }
        (void)poll(NULL, 0, AGAIN_MS);
    }
    return err_set(err, -EIO, "\"%s\" does not come to an end; corbel show %s tells how it is",
                   run->name, run->name);
}

/* Attached: the console until the machine ends, whose success is ours. */
static int attach(struct run *run, struct client_stream **stream, const json_t *access,
                  struct err *err)
{
    enum console_end end = CONSOLE_END_CLOSED;
    int rc = 0;

    if (isatty(STDIN_FILENO)) {
        (void)fprintf(stderr, "the console follows; Ctrl-] leaves it, the machine goes on\n");
    }
    do {
        if (*stream == NULL) {
            rc = console_open(run->cli, run->client, run->instance, stream, err);
        }
        rc = rc < 0 ? rc : console_attach(*stream, &end, err);
        client_stream_close(steal_ptr(*stream));
        if (rc == 0 && end == CONSOLE_END_DETACHED) {
            print_access(run, access);
            return 0;
        }
        rc = rc < 0 ? rc : await_end(run, err);
    } while (rc == 1);
    return rc;
}

static int follow(struct run *run, struct err *err)
{
    struct client_stream *stream = NULL;
    const struct api_options *options = run->options;
    char path[API_PATH_BYTES];
    json_t *access = NULL;
    const char *ready;
    bool wants_console = !options->detach || options->wait_ready;
    int rc = api_path(run->cli, path, "instances", api_text(run->instance, "id"), "access", err);

    rc = rc < 0 ? rc : client_call(run->client, "GET", path, NULL, &access, err);
    rc = rc < 0 ? rc : look_again(run, err);
    if (rc == 0 && wants_console) {
        rc = console_open(run->cli, run->client, run->instance, &stream, err);
    }
    if (rc == -ENOENT || rc == -EBUSY) {
        json_decref(access);
        return await_end(run, err); /* it was that quick */
    }
    if (rc == 0) {
        print_access(run, access);
    }
    ready = api_text(access, "ready");
    if (rc == 0 && options->wait_ready && ready[0] != '\0') {
        rc = console_wait_text(stream, ready, READY_MAX_SECONDS, err);
        (void)putchar('\n');
        (void)fflush(stdout);
    }
    if (rc == 0 && !options->detach) {
        rc = attach(run, &stream, access, err);
    }
    client_stream_close(stream);
    json_decref(access);
    return rc;
}

int verb_run(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct run run = {.cli = cli,
                      .options = options,
                      .image = args->count > 0 ? args->words[0] : NULL,
                      .name = options->name};
    int rc = 0;

    run.name = run.name != NULL ? run.name : run.image;
    if (run.name == NULL) {
        return err_set(err, -EINVAL, "say what to run: corbel run debian");
    }
    rc = path_check_name(run.name, err);
    rc = rc < 0 ? rc : api_open(cli, &run.client, err);
    rc = rc < 0 ? rc : bring_up(&run, err);
    rc = rc < 0 ? rc : follow(&run, err);
    json_decref(run.instance);
    client_close(run.client);
    return rc;
}
