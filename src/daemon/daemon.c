/*
 * corbeld: one daemon for a host, or for one user of it. Wiring only.
 *
 * Exit status: 0 when it was asked to end, 1 when it could not start or go on,
 * 2 for a wrong flag. Machines run on, whatever ends it.
 */
#include "daemon/daemon.h"
#include "api/api.h"
#include "base/log.h"
#include "base/path.h"
#include "daemon/housekeeping.h"
#include "daemon/notify.h"
#include "daemon/options.h"
#include "hostnet/hostnet.h"
#include "metrics/metrics.h"
#include "store/store_sqlite.h"
#include "web/web.h"

#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define MAX_SOCKETS 16
#define URL_BYTES 96

enum status { STATUS_OK = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 };

struct daemon {
    struct daemon_options options;
    struct store *store;
    struct compute *compute;
    struct metrics *metrics;
    struct api *api;
    struct housekeeping *housekeeping;
    struct http_server *server;
    int fds[MAX_SOCKETS]; /* until the server has them */
    size_t fd_count;
    char urls[MAX_SOCKETS][URL_BYTES]; /* of the TCP sockets among them */
    const char *url_list[MAX_SOCKETS];
    size_t url_count;
};

/* How people reach a TCP socket. */
static void note_url(struct daemon *daemon, int fd)
{
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof(address);
    char host[64], port[8];
    bool is_ipv6;

    if (getsockname(fd, (struct sockaddr *)&address, &len) != 0 ||
        (address.ss_family != AF_INET && address.ss_family != AF_INET6) ||
        getnameinfo((struct sockaddr *)&address, len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return;
    }
    is_ipv6 = address.ss_family == AF_INET6;
    (void)snprintf(daemon->urls[daemon->url_count], URL_BYTES, "%s://%s%s%s:%s",
                   daemon->options.certificate != NULL ? "https" : "http", is_ipv6 ? "[" : "", host,
                   is_ipv6 ? "]" : "", port);
    daemon->url_list[daemon->url_count] = daemon->urls[daemon->url_count];
    daemon->url_count++;
}

static bool has_local_socket(const struct daemon *daemon)
{
    for (size_t i = 0; i < daemon->fd_count; i++) {
        int domain = AF_UNSPEC;
        socklen_t len = sizeof(domain);

        if (getsockopt(daemon->fds[i], SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
            domain == AF_UNIX) {
            return true;
        }
    }
    return false;
}

/* The service manager's sockets, and our own where it gives none for local use. */
static int open_sockets(struct daemon *daemon, struct err *err)
{
    const struct daemon_options *options = &daemon->options;
    int rc = 0;

    daemon->fd_count = notify_take_sockets(daemon->fds, MAX_SOCKETS);
    if (!has_local_socket(daemon) && daemon->fd_count < MAX_SOCKETS) {
        rc = http_listen_unix(options->socket, options->is_system ? 0660 : 0600, err);
        if (rc >= 0) {
            daemon->fds[daemon->fd_count++] = rc;
        }
    }
    for (unsigned i = 0; rc >= 0 && i < options->listen_count && daemon->fd_count < MAX_SOCKETS;
         i++) {
        char address[64];
        unsigned port = 0;

        rc = options_split_address(options->listen[i], address, &port, err);
        rc = rc < 0 ? rc : http_listen_tcp(address, port, err);
        if (rc >= 0) {
            daemon->fds[daemon->fd_count++] = rc;
        }
    }
    for (size_t i = 0; i < daemon->fd_count; i++) {
        note_url(daemon, daemon->fds[i]);
    }
    return rc < 0 ? rc : 0;
}

static int serve(struct daemon *daemon, struct err *err)
{
    const struct daemon_options *options = &daemon->options;
    struct http_config config = {.fds = daemon->fds,
                                 .fd_count = daemon->fd_count,
                                 .certificate = options->certificate,
                                 .key = options->key,
                                 .ops = &api_http_ops,
                                 .opaque = daemon->api};

    daemon->fd_count = 0; /* they are the server's now */
    return http_server_create(&config, &daemon->server, err);
}

static int open_compute(struct daemon *daemon, struct err *err)
{
    const struct daemon_options *options = &daemon->options;
    const struct compute_config config = {
        .store = daemon->store,
        .state_dir = options->state,
        .runtime_dir = options->runtime,
        .images_dir = options->images,
        .vmm = options->vmm,
        .workers = options->workers,
        .cgroup =
            options->cgroup != NULL && strcmp(options->cgroup, "none") == 0 ? "" : options->cgroup,
        .bridges = options->bridges,
        .bridge_count = options->bridge_count,
        .cpus = options->cpus,
        .memory_mib = options->memory_mib,
        .cpu_ratio = options->cpu_ratio,
        .memory_ratio = options->memory_ratio,
    };

    return compute_open(&config, err, &daemon->compute);
}

static int open_metrics(struct daemon *daemon, struct err *err)
{
    const struct metrics_config config = {.compute = daemon->compute,
                                          .state_dir = daemon->options.state,
                                          .period_s = daemon->options.history_step_s,
                                          .reach = daemon->options.has_local_hooks ? REACH_LOCAL
                                                   : daemon->options.has_private_hooks
                                                       ? REACH_PRIVATE
                                                       : REACH_PUBLIC};

    return metrics_open(&config, err, &daemon->metrics);
}

static int start_housekeeping(struct daemon *daemon, struct err *err)
{
    const struct daemon_options *options = &daemon->options;
    const struct housekeeping_config config = {
        .compute = daemon->compute,
        .store = daemon->store,
        .api = daemon->api,
        .state_dir = options->state,
        .interval_s = options->backup_interval_s,
        .keep_backups = options->keep_backups,
        .keep_events = options->keep_events,
        .keep_days = options->keep_days,
    };

    return housekeeping_start(&config, err, &daemon->housekeeping);
}

/* From below to above; daemon_close() is the mirror. */
static int daemon_open(struct daemon *daemon, struct err *err)
{
    const struct daemon_options *options = &daemon->options;
    char db[PATH_MAX], audit[PATH_MAX];
    const struct store_sqlite_config store = {.path = db};
    struct api_config api = {.audit_path = audit, .other = web_serve, .owner = geteuid()};
    int rc = path_make_dirs(options->state, err);

    if (rc == 0 && access(options->vmm, X_OK) != 0) {
        rc = err_set_errno(err, -errno, "the monitor %s cannot be run", options->vmm);
    }
    rc = rc < 0 ? rc : path_format(db, err, "%s/state.db", options->state);
    rc = rc < 0 ? rc : path_format(audit, err, "%s/audit.log", options->state);
    rc = rc < 0 ? rc : store_sqlite_open(&store, err, &daemon->store);
    rc = rc < 0 ? rc : open_compute(daemon, err);
    rc = rc < 0 ? rc : open_metrics(daemon, err);
    api.compute = daemon->compute;
    api.metrics = daemon->metrics;
    api.store = daemon->store;
    rc = rc < 0 ? rc : open_sockets(daemon, err);
    api.urls = daemon->url_list;
    api.url_count = daemon->url_count;
    rc = rc < 0 ? rc : api_create(&api, &daemon->api, err);
    rc = rc < 0 ? rc : start_housekeeping(daemon, err);
    return rc < 0 ? rc : serve(daemon, err);
}

static void daemon_close(struct daemon *daemon)
{
    if (daemon->server != NULL) {
        http_server_destroy(daemon->server);
    }
    housekeeping_stop(daemon->housekeeping);
    api_destroy(daemon->api);
    metrics_close(daemon->metrics);
    compute_close(daemon->compute);
    store_close(daemon->store);
    for (size_t i = 0; i < daemon->fd_count; i++) {
        (void)close(daemon->fds[i]);
    }
}

/* Until somebody asks for the end. */
static void wait_for_end(const sigset_t *signals)
{
    int number = 0;

    while (sigwait(signals, &number) != 0 || number == SIGHUP) {
    }
    log_info("ending; machines run on");
}

/* Before any thread starts. What is started from here never has the privilege that bridges need,
 * and this process only where it has bridges. */
static int settle_privilege(const struct daemon_options *options, struct err *err)
{
    int rc = hostnet_keep_privilege();

    if (rc < 0 || options->bridge_count == 0) {
        rc = rc < 0 ? rc : hostnet_drop_privilege();
        return rc < 0 ? err_set_errno(err, rc, "CAP_NET_ADMIN cannot be given up") : 0;
    }
    for (unsigned i = 0; i < options->bridge_count; i++) {
        struct err why;

        if (hostnet_check_privilege(&why) < 0 ||
            hostnet_check_bridge(options->bridges[i], &why) < 0) {
            log_warn("no instance can use \"%s\" yet, ignoring: %s", options->bridges[i], why.text);
        }
    }
    return 0;
}

static enum status run(struct daemon *daemon)
{
    struct err err = {.code = 0};
    sigset_t signals;
    int rc;

    /* Before any thread starts, so that all inherit it. */
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN); /* NOLINT(cert-err33-c): cannot fail for these signals */
    (void)signal(SIGXFSZ, SIG_IGN); /* NOLINT(cert-err33-c): a full disk is an error, not an end */
    rc = settle_privilege(&daemon->options, &err);
    rc = rc < 0 ? rc : daemon_open(daemon, &err);
    if (rc == 0) {
        log_info("serving %s", daemon->options.socket);
        notify_send("READY=1");
        wait_for_end(&signals);
        notify_send("STOPPING=1");
    } else {
        log_error("%s", err.text);
    }
    daemon_close(daemon);
    return rc < 0 ? STATUS_FAILED : STATUS_OK;
}

static int restore(const struct daemon_options *options)
{
    struct err err = {.code = 0};

    if (housekeeping_restore(options->restore, options->state, &err) < 0) {
        log_error("nothing was restored: %s", err.text);
        return STATUS_FAILED;
    }
    log_info("the records are those of %s; what they do not know of stays, until %s/%s is removed",
             options->restore, options->state, COMPUTE_RESTORED_MARK);
    return STATUS_OK;
}

int daemon_main(char **argv, const char *monitor)
{
    struct daemon daemon = {.store = NULL};
    struct err err = {.code = 0};

    log_set_program("corbeld");
    (void)umask(0077);
    if (options_read(&daemon.options, argv + 1, monitor, &err) < 0) {
        log_error("%s", err.text);
        return STATUS_USAGE;
    }
    if (daemon.options.wants_help) {
        options_print_help();
        return STATUS_OK;
    }
    if (daemon.options.wants_version) {
        (void)printf("corbeld " CORBEL_VERSION "%s\n", monitor != NULL ? " (single file)" : "");
        return STATUS_OK;
    }
    log_set_level(daemon.options.log_level);
    if (daemon.options.restore != NULL) {
        return restore(&daemon.options);
    }
    return (int)run(&daemon);
}
