/* corbel daemon: the user's own corbeld. */
#include "base/path.h"
#include "cli/api.h"
#include "cli/table.h"
#include "cli/verb_tables.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#define END_MS 60000

static const struct column status_columns[] = {{NULL, NULL, CELL_TEXT}};

int verb_daemon_start(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    struct client *client = NULL;
    int rc = api_open(cli, &client, err);

    (void)values;
    (void)args;
    if (rc == 0 && !client_has_started(client)) {
        (void)fputs("corbel: a daemon runs already\n", stderr);
    }
    client_close(client);
    return rc;
}

/* What the daemon says of itself and its host. */
static int ask_status(struct client *client, json_t **ret_status, struct err *err)
{
    json_t *host = NULL;
    int rc = client_call(client, "GET", "/v1/version", NULL, ret_status, err);

    rc = rc < 0 ? rc : client_call(client, "GET", "/v1/host", NULL, &host, err);
    if (rc == 0) {
        (void)json_object_update(*ret_status, host);
    }
    json_decref(host);
    return rc;
}

int verb_daemon_status(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct api_options *options = values;
    struct cli quiet = *cli;
    struct client *client = NULL;
    json_t *status = NULL;
    int rc;

    (void)args;
    quiet.never_start = true;
    rc = api_open(&quiet, &client, err);
    rc = rc < 0 ? rc : ask_status(client, &status, err);
    if (rc == 0 && options->json) {
        table_print_json(status);
    } else if (rc == 0) {
        table_print_object(status, status_columns);
    }
    json_decref(status);
    client_close(client);
    return rc;
}

/* Who listens on a unix socket. */
static pid_t find_peer(const char *path)
{
    struct sockaddr_un address;
    struct ucred peer = {.pid = 0};
    socklen_t len = sizeof(peer);
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || path_to_unix(path, &address) < 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0) {
        return 0;
    }
    return peer.pid;
}

int verb_daemon_stop(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    struct cli quiet = *cli;
    struct client *client = NULL;
    const char *path;
    pid_t pid = 0;
    CLEANUP_CLOSE int process = -1;
    struct pollfd ended = {.events = POLLIN};
    int rc;

    (void)values;
    (void)args;
    quiet.never_start = true;
    rc = api_open(&quiet, &client, err);
    if (rc < 0) {
        return rc;
    }
    path = client_socket(client);
    pid = path != NULL ? find_peer(path) : 0;
    client_close(client);
    process = pid > 0 ? pidfd_open(pid, 0) : -1;
    if (process < 0) {
        return err_set(err, -EPERM, "the daemon is on another host, or another user's");
    }
    if (pidfd_send_signal(process, SIGTERM, NULL, 0) != 0) {
        return err_set(err, -EPERM, "the daemon is another user's (process %d)", (int)pid);
    }
    ended.fd = process;
    return poll(&ended, 1, END_MS) > 0
               ? 0
               : err_set(err, -ETIMEDOUT, "the daemon does not end (process %d)", (int)pid);
}

/* The user's name where it can be one of the daemon's, else "admin". */
static const char *own_name(void)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
    const char *name = getenv("USER"); // NOLINT(concurrency-mt-unsafe)
    size_t len = name != NULL ? strlen(name) : 0;

    return len > 0 && len < 40 && name[0] != '-' && name[0] != '_' && strspn(name, letters) == len
               ? name
               : "admin";
}

int verb_web(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    struct client *client = NULL;
    json_t *host = NULL, *link = NULL;
    json_t *body = json_pack("{s:s}", "user", args->count > 0 ? args->words[0] : own_name());
    const char *url;
    int rc = api_open(cli, &client, err);

    (void)values;
    rc = rc < 0 ? rc : client_call(client, "GET", "/v1/host", NULL, &host, err);
    url = json_string_value(json_array_get(json_object_get(host, "urls"), 0));
    if (rc == 0 && url == NULL) {
        rc = err_set(err, -ENXIO,
                     "the daemon listens on no TCP port; end it (corbel daemon stop) and start it "
                     "with one: corbeld --listen 127.0.0.1:8480");
    }
    rc = rc < 0 ? rc : client_call(client, "POST", "/v1/session/link", body, &link, err);
    if (rc == 0) {
        printf("%s%s\n", url, api_text(link, "path"));
    }
    json_decref(body);
    json_decref(link);
    json_decref(host);
    client_close(client);
    return rc;
}
