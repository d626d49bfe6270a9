/* corbel ssh and console. */
#include "base/clock.h"
#include "base/io.h"
#include "base/loop.h"
#include "base/path.h"
#include "cli/cli.h"
#include "cli/console.h"
#include "cli/verb_tables.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_DEFAULT_S 120
#define SSH_PORT 22
#define BANNER_MAX_MS 10000 /* a guest that took the connection greets within this */
#define RETRY_MS 200

/* Where its ssh server is. On a bridge, the address that the guest says it has; its keys are known. */
struct place {
    char address[INET_ADDRSTRLEN];
    unsigned port; /* 0: nowhere, or not yet */
};

static bool is_on_bridge(const json_t *instance)
{
    return strncmp(api_text(instance, "network"), "bridge:", 7) == 0;
}

static struct place place_of(const json_t *instance)
{
    struct place place = {.address = "127.0.0.1",
                          .port = (unsigned)api_number(instance, "ssh_port")};

    if (is_on_bridge(instance)) {
        (void)snprintf(place.address, sizeof(place.address), "%s", api_text(instance, "address"));
        place.port = place.address[0] != '\0' ? SSH_PORT : 0;
    }
    return place;
}

/* True when a guest's ssh server greets there: a forward alone takes any connection. */
static bool ssh_answers(const struct place *place)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)place->port)};
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    char greeting[4];

    if (fd < 0 || place->port == 0 || inet_pton(AF_INET, place->address, &address.sin_addr) != 1 ||
        (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 &&
         errno != EINPROGRESS) ||
        poll(&pfd, 1, BANNER_MAX_MS) <= 0) {
        return false;
    }
    return io_read_full(fd, greeting, sizeof(greeting)) == (ssize_t)sizeof(greeting) &&
           memcmp(greeting, "SSH-", sizeof(greeting)) == 0;
}

/* Whether it still runs, and where it is now; a daemon that is just away does not tell. */
static bool has_ended(const struct cli *cli, struct client *client, const char *id,
                      struct place *place)
{
    json_t *now = NULL;
    struct err ignored;
    int rc = api_get(cli, client, "instances", id, &now, &ignored);
    const char *state = api_text(now, "state");
    bool is_up = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0 ||
                 strcmp(state, "starting") == 0;

    if (rc == 0) {
        *place = place_of(now);
    }
    json_decref(now);
    return rc == -ENOENT || (rc == 0 && !is_up);
}

static int wait_for_ssh(const struct cli *cli, struct client *client, const json_t *instance,
                        unsigned seconds, struct place *place, struct err *err)
{
    const char *name = api_name(instance);
    uint64_t deadline = clock_monotonic_ns() + seconds * NS_PER_S;
    bool told = false;

    while (!ssh_answers(place)) {
        if (has_ended(cli, client, api_text(instance, "id"), place)) {
            return err_set(err, -EPIPE, "\"%s\" ended before its ssh server answered", name);
        }
        if (clock_monotonic_ns() >= deadline) {
            return err_set(err, -ETIMEDOUT,
                           "the ssh server of \"%s\" did not answer in %u seconds; "
                           "corbel console %s shows what it does",
                           name, seconds, name);
        }
        if (!told) {
            (void)fprintf(stderr, "waiting for the ssh server of \"%s\"\n", name);
            told = true;
        }
        /* A guest that refused says nothing when it would not any more: it is asked again. */
        (void)poll(NULL, 0, RETRY_MS);
    }
    return 0;
}

/* A file that ssh can read; one of the same text may be there already. */
static int write_file(const char *path, const char *text, struct err *err)
{
    char making[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(making, err, "%s.%d", path, (int)getpid());

    if (rc < 0) {
        return rc;
    }
    fd = open(making, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    rc = fd >= 0 ? io_write_full(fd, text, strlen(text)) : -errno;
    if (rc == 0 && rename(making, path) != 0) {
        rc = -errno;
    }
    return rc < 0 ? err_set_errno(err, rc, "%s cannot be written", path) : 0;
}

/* Becomes ssh; returns only when that fails. */
static int exec_ssh(const struct cli *cli, const json_t *instance, const struct place *place,
                    const json_t *access, char **command, struct err *err)
{
    char key[PATH_MAX], known[PATH_MAX], known_option[PATH_MAX + 32];
    char port[16];
    const char *argv[96] = {"ssh",
                            "-i",
                            key,
                            "-o",
                            known_option,
                            "-o",
                            "StrictHostKeyChecking=yes",
                            "-o",
                            "IdentitiesOnly=yes",
                            "-o",
                            "LogLevel=ERROR",
                            "-p",
                            port,
                            "-l",
                            api_text(access, "user"),
                            place->address};
    size_t argc = 0;
    int rc = path_make_private(cli->runtime, err);

    rc = rc < 0 ? rc : path_format(key, err, "%s/%s.key", cli->runtime, api_text(instance, "id"));
    rc = rc < 0 ? rc
                : path_format(known, err, "%s/%s.known", cli->runtime, api_text(instance, "id"));
    rc = rc < 0 ? rc : write_file(key, api_text(access, "ssh_key"), err);
    rc = rc < 0 ? rc : write_file(known, api_text(access, "known_hosts"), err);
    if (rc < 0) {
        return rc;
    }
    (void)snprintf(known_option, sizeof(known_option), "UserKnownHostsFile=%s", known);
    (void)snprintf(port, sizeof(port), "%u", place->port);
    while (argv[argc] != NULL) {
        argc++;
    }
    for (; command != NULL && *command != NULL; command++) {
        if (argc + 1 >= ARRAY_LEN(argv)) {
            return err_set(err, -E2BIG, "the command has too many words");
        }
        argv[argc++] = *command;
    }
    (void)execvp("ssh", (char *const *)(uintptr_t)argv);
    return err_set(err, -ENXIO,
                   "ssh cannot be run; install it: sudo apt-get install "
                   "openssh-client");
}

static int log_in(const struct cli *cli, struct client *client, const json_t *instance,
                  unsigned wait_s, char **command, struct err *err)
{
    const char *name = api_name(instance);
    char path[API_PATH_BYTES];
    struct place place = place_of(instance);
    json_t *access = NULL;
    int rc = 0;

    if (client_socket(client) == NULL && !is_on_bridge(instance)) {
        return err_set(err, -EINVAL,
                       "\"%s\" is on another host, whose 127.0.0.1 has its ssh port; log in there "
                       "first, or use its console: corbel console %s",
                       name, name);
    }
    rc = api_path(cli, path, "instances", api_text(instance, "id"), "access", err);
    rc = rc < 0 ? rc : client_call(client, "GET", path, NULL, &access, err);
    if (rc == 0 &&
        (is_on_bridge(instance) ? api_text(access, "user")[0] == '\0' : place.port == 0)) {
        rc = err_set(err, -EINVAL, "\"%s\" has no ssh server; use its console: corbel console %s",
                     name, name);
    }
    rc = rc < 0 ? rc
                : wait_for_ssh(cli, client, instance, wait_s != 0 ? wait_s : WAIT_DEFAULT_S, &place,
                               err);
    rc = rc < 0 ? rc : exec_ssh(cli, instance, &place, access, command, err);
    json_decref(access);
    return rc;
}

int verb_ssh(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct api_options *options = values;
    struct client *client = NULL;
    json_t *instance = NULL;
    int rc = api_open(cli, &client, err);

    rc = rc < 0 ? rc : api_running_instance(cli, client, args, &instance, err);
    rc = rc < 0 ? rc : log_in(cli, client, instance, options->wait_s, args->rest, err);
    json_decref(instance);
    client_close(client);
    return rc;
}

int verb_console(const struct cli *cli, const void *values, const struct args *args,
                 struct err *err)
{
    struct client *client = NULL;
    struct client_stream *stream = NULL;
    json_t *instance = NULL;
    enum console_end end;
    int rc = api_open(cli, &client, err);

    (void)values;
    rc = rc < 0 ? rc : api_running_instance(cli, client, args, &instance, err);
    rc = rc < 0 ? rc : console_open(cli, client, instance, &stream, err);
    if (rc == 0) {
        (void)fprintf(stderr, "console of \"%s\"; Ctrl-] leaves it\n", api_name(instance));
        rc = console_attach(stream, &end, err);
        if (rc == 0 && end == CONSOLE_END_CLOSED) {
            (void)fprintf(stderr, "the console of \"%s\" ended\n", api_name(instance));
        }
    }
    client_stream_close(stream);
    json_decref(instance);
    client_close(client);
    return rc;
}
