/* corbel exec and cp: what the agent in a guest does (docs/guest-agent.md). */
#include "base/base64.h"
#include "base/io.h"
#include "base/path.h"
#include "cli/api.h"
#include "cli/verb_tables.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define WAIT_MS 20000
#define INPUT_MAX (190u << 10) /* what the interface takes, as Base64 */
#define PIECE_BYTES (1u << 20)

/* ---- exec ---- */

/* One stream of a program's output: as text, or in Base64 where it is none. */
static int print_stream(const json_t *exec, const char *name, FILE *out)
{
    char member[32];
    const char *text = api_text(exec, name);
    const char *encoded;
    void *data = NULL;
    size_t len = 0;
    int rc = 0;

    (void)snprintf(member, sizeof(member), "%s_base64", name);
    encoded = api_text(exec, member);
    if (encoded[0] != '\0') {
        rc = base64_decode(encoded, strlen(encoded), &data, &len);
        (void)fwrite(data != NULL ? data : "", 1, len, out);
    } else {
        (void)fputs(text, out);
    }
    free(data);
    (void)snprintf(member, sizeof(member), "%s_truncated", name);
    if (json_is_true(json_object_get(exec, member))) {
        (void)fprintf(stderr, "corbel: the guest's agent did not keep all of %s, ignoring\n", name);
    }
    return rc;
}

static int finish_exec(const json_t *answer, struct err *err)
{
    const json_t *exec = json_object_get(answer, "exec");
    json_int_t number = api_number(exec, "signal");

    if (print_stream(exec, "stdout", stdout) < 0 || print_stream(exec, "stderr", stderr) < 0) {
        return err_set(err, -EIO, "the program's output is not what it says it is");
    }
    if (number != 0) {
        (void)fprintf(stderr, "corbel: signal %d ended it\n", (int)number);
        return 128 + (int)(number & 127);
    }
    return (int)(api_number(exec, "exit_code") & 255);
}

/* The same call again and again until the program has ended: its status, or an error. */
static int await_exec(const struct cli *cli, struct client *client, const char *id, json_t *answer,
                      struct err *err)
{
    int rc = 0;

    while (rc == 0 && strcmp(api_text(json_object_get(answer, "exec"), "state"), "running") == 0) {
        char path[API_PATH_BYTES], rest[64];

        (void)snprintf(rest, sizeof(rest), "exec/%lld",
                       (long long)api_number(json_object_get(answer, "exec"), "pid"));
        json_decref(answer);
        answer = NULL;
        rc = api_path(cli, path, "instances", id, rest, err);
        rc = rc < 0 ? rc : api_query(path, "wait_ms", "20000", err);
        rc = rc < 0 ? rc : client_call(client, "GET", path, NULL, &answer, err);
    }
    rc = rc < 0 ? rc : finish_exec(answer, err);
    json_decref(answer);
    return rc;
}

static int add_input(json_t *body, const char *path, struct err *err)
{
    CLEANUP_FREE char *data = malloc(INPUT_MAX + 1);
    CLEANUP_FREE char *text = NULL;
    CLEANUP_CLOSE int fd =
        strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd < 0 ? -errno : data == NULL ? -ENOMEM : io_read_full(fd, data, INPUT_MAX + 1);

    if (len < 0) {
        return err_set_errno(err, (int)len, "%s cannot be read", path);
    }
    if (len > (ssize_t)INPUT_MAX) {
        return err_set(err, -EINVAL, "a program's input has at most %u KiB; copy more: corbel cp",
                       INPUT_MAX >> 10);
    }
    text = base64_encode(data, (size_t)len);
    (void)json_object_set_new(body, "input_base64", json_string(text));
    return 0;
}

int verb_exec(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *instance = NULL, *answer = NULL, *command = json_array();
    json_t *body = json_pack("{s:o, s:i}", "command", command, "wait_ms", WAIT_MS);
    char path[API_PATH_BYTES];
    int rc = 0;

    for (char **word = args->rest; word != NULL && *word != NULL; word++) {
        (void)json_array_append_new(command, json_string(*word));
    }
    if (json_array_size(command) == 0) {
        rc = err_set(err, -EINVAL, "say what to run: corbel exec NAME -- COMMAND...");
    }
    rc = rc < 0 || options->input == NULL ? rc : add_input(body, options->input, err);
    rc = rc < 0 ? rc : api_open(cli, &client, err);
    rc = rc < 0 ? rc : api_running_instance(cli, client, args, &instance, err);
    rc = rc < 0 ? rc : api_path(cli, path, "instances", api_text(instance, "id"), "exec", err);
    rc = rc < 0 ? rc : client_call(client, "POST", path, body, &answer, err);
    rc = rc < 0 ? rc : await_exec(cli, client, api_text(instance, "id"), answer, err);
    json_decref(body);
    json_decref(instance);
    client_close(client);
    return rc;
}

/* ---- cp ---- */

struct copy {
    const struct cli *cli;
    struct client *client;
    const char *id, *guest_path;
    const char *name; /* for people */
    uint64_t done, total;
};

static int piece_path(const struct copy *copy, char *path, struct err *err)
{
    char number[24];
    int rc = api_path(copy->cli, path, "instances", copy->id, "files", err);

    (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)copy->done);
    rc = rc < 0 ? rc : api_query(path, "path", copy->guest_path, err);
    return rc < 0 ? rc : api_query(path, "offset", number, err);
}

static void show_copy(const struct copy *copy)
{
    if (!isatty(STDERR_FILENO)) {
        return;
    }
    if (copy->total > 0) {
        (void)fprintf(stderr, "\r%s: %3d %%", copy->name, (int)(copy->done * 100 / copy->total));
    } else {
        (void)fprintf(stderr, "\r%s: %llu KiB", copy->name, (unsigned long long)copy->done >> 10);
    }
}

static int copy_in(struct copy *copy, int fd, struct err *err)
{
    CLEANUP_FREE char *piece = malloc(PIECE_BYTES);
    ssize_t len;
    int rc = piece != NULL ? 0 : err_set(err, -ENOMEM, "out of memory");

    do {
        char path[API_PATH_BYTES];

        len = rc == 0 ? io_read_full(fd, piece, PIECE_BYTES) : -ECANCELED;
        if (rc == 0 && len < 0) {
            rc = err_set_errno(err, (int)len, "%s cannot be read", copy->name);
        }
        if (rc == 0 && (len > 0 || copy->done == 0)) {
            rc = piece_path(copy, path, err);
            rc = rc < 0 ? rc
                        : client_transfer(copy->client, "PUT", path, piece, (size_t)len, NULL, NULL,
                                          NULL, err);
            copy->done += (uint64_t)len;
            show_copy(copy);
        }
    } while (rc == 0 && len == (ssize_t)PIECE_BYTES);
    return rc;
}

static int copy_out(struct copy *copy, int fd, struct err *err)
{
    bool is_end = false;
    int rc = 0;

    while (rc == 0 && !is_end) {
        char path[API_PATH_BYTES];
        void *data = NULL;
        size_t len = 0;

        rc = piece_path(copy, path, err);
        rc = rc < 0 ? rc : api_query(path, "length", "1048576", err);
        rc = rc < 0
                 ? rc
                 : client_transfer(copy->client, "GET", path, NULL, 0, &data, &len, &is_end, err);
        if (rc == 0) {
            rc = io_write_full(fd, data != NULL ? data : "", len);
            rc = rc < 0 ? err_set_errno(err, rc, "%s cannot be written", copy->name) : 0;
        }
        free(data);
        copy->done += len;
        is_end = is_end || len == 0;
        show_copy(copy);
    }
    return rc;
}

/* The path after "NAME:", its name in out[64]; NULL when the word is a path of this host. */
static const char *split_word(const char *word, char *out)
{
    const char *colon = strchr(word, ':');

    if (colon == NULL || colon == word || colon - word >= 64 ||
        memchr(word, '/', (size_t)(colon - word)) != NULL) {
        return NULL;
    }
    (void)snprintf(out, 64, "%.*s", (int)(colon - word), word);
    return colon + 1;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

/* From the host into the guest; a path that ends with "/" is a directory of the guest. */
static int send_file(struct copy *copy, const char *source, const char *target, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    CLEANUP_CLOSE int fd = open(source, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    size_t len = strlen(target);
    int rc;

    if (fd < 0 || fstat(fd, &st) != 0) {
        return err_set_errno(err, errno == ENOENT ? -EINVAL : -errno, "%s cannot be read", source);
    }
    if (S_ISDIR(st.st_mode)) {
        return err_set(err, -EINVAL, "%s is a directory; copy an archive of it, or use scp",
                       source);
    }
    rc = path_format(path, err, "%s%s", target,
                     len == 0 || target[len - 1] == '/' ? base_name(source) : "");
    copy->guest_path = path;
    copy->name = source;
    copy->total = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
    rc = rc < 0 ? rc : copy_in(copy, fd, err);
    copy->guest_path = NULL;
    return rc;
}

/* From the guest; what is there under that name changes when all has come. */
static int fetch_file(struct copy *copy, const char *source, const char *target, struct err *err)
{
    char path[PATH_MAX], making[PATH_MAX];
    struct stat st;
    CLEANUP_CLOSE int fd = -1;
    bool is_stdout = strcmp(target, "-") == 0;
    bool is_dir = stat(target, &st) == 0 && S_ISDIR(st.st_mode);
    int rc = path_format(path, err, "%s%s%s", target, is_dir ? "/" : "",
                         is_dir ? base_name(source) : "");

    rc = rc < 0 ? rc : path_format(making, err, "%s.%d.part", path, (int)getpid());
    if (rc < 0) {
        return rc;
    }
    fd = is_stdout ? dup(STDOUT_FILENO)
                   : open(making, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be made", making);
    }
    copy->guest_path = source;
    copy->name = source;
    rc = copy_out(copy, fd, err);
    if (rc == 0 && !is_stdout && rename(making, path) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be written", path);
    }
    if (rc < 0 && !is_stdout) {
        (void)unlink(making);
    }
    return rc;
}

int verb_cp(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    char name[64];
    const char *from = split_word(args->words[0], name);
    const char *to = from == NULL ? split_word(args->words[1], name) : NULL;
    struct args one = {.words = {name}, .count = 1};
    struct copy copy = {.cli = cli};
    json_t *instance = NULL;
    int rc;

    (void)values;
    if (from == NULL && to == NULL) {
        return err_set(err, -EINVAL,
                       "one of the two is in a guest: corbel cp FILE NAME:PATH, or NAME:PATH FILE");
    }
    rc = api_open(cli, &copy.client, err);
    rc = rc < 0 ? rc : api_running_instance(cli, copy.client, &one, &instance, err);
    copy.id = api_text(instance, "id");
    rc = rc < 0         ? rc
         : from != NULL ? fetch_file(&copy, from, args->words[1], err)
                        : send_file(&copy, args->words[0], to, err);
    if (copy.done > 0 && isatty(STDERR_FILENO)) {
        (void)fputc('\n', stderr);
    }
    json_decref(instance);
    client_close(copy.client);
    return rc;
}
