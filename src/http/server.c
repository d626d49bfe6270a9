/* The server's thread, and what wakes it. */
#include "base/io.h"
#include "base/log.h"
#include "http/http_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS_DEFAULT = 1024, TIMEOUT_DEFAULT_S = 20 };

static const struct lws_protocols protocols[] = {
    {.name = "http", .callback = connection_callback, .rx_buffer_size = HTTP_MESSAGE_MAX},
    {.name = "listen", .callback = accept_callback},
    {.name = NULL},
};

void server_unref(struct http_server *server)
{
    if (atomic_fetch_sub(&server->references, 1) == 1) {
        mutex_done(&server->mutex);
        free(server);
    }
}

bool server_is_own_thread(const struct http_server *server)
{
    return pthread_equal(server->thread, pthread_self());
}

void server_wake(struct http_server *server, struct http_exchange *exchange)
{
    mutex_lock(&server->mutex);
    if (!exchange->is_ready && !server->is_destroyed) {
        exchange->is_ready = true;
        exchange->next_ready = server->ready;
        server->ready = exchange;
        atomic_fetch_add(&exchange->references, 1);
        lws_cancel_service(server->context);
    }
    mutex_unlock(&server->mutex);
}

static void *server_main(void *opaque)
{
    struct http_server *server = opaque;
    while (!atomic_load(&server->is_stopping)) {
        if (lws_service(server->context, 0) < 0) {
            log_error("the HTTP server's event loop failed");
            break;
        }
    }
    return NULL;
}

static void log_lws(int level, const char *line)
{
    char escaped[300];
    size_t len = strcspn(line, "\n");
    const char *text = log_escape(escaped, sizeof(escaped), line, len);
    if (level == LLL_ERR) {
        log_warn("http: %s", text);
    } else {
        log_debug("http: %s", text);
    }
}

/* Keep-alive probes find peers that vanished; HTTP/2 is not offered: one dialect, fully known. */
static void fill_info(const struct http_server *server, struct lws_context_creation_info *info)
{
    info->port = CONTEXT_PORT_NO_LISTEN_SERVER;
    info->protocols = protocols;
    info->timeout_secs = server->config.timeout_s;
    info->keepalive_timeout = 60;
    info->ka_time = 60;
    info->ka_probes = 3;
    info->ka_interval = 10;
    info->alpn = "http/1.1";
    info->server_string = "corbel";
}

static int create_vhosts(struct http_server *server, struct err *err)
{
    struct lws_context_creation_info info = {.vhost_name = "local"};
    fill_info(server, &info);
    server->local = lws_create_vhost(server->context, &info);

    info.vhost_name = "tcp";
    if (server->config.certificate != NULL) {
        info.options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_cert_filepath = server->config.certificate;
        info.ssl_private_key_filepath = server->config.key;
        info.ssl_options_set = SSL_OP_NO_TLSv1 | SSL_OP_NO_TLSv1_1 | SSL_OP_NO_RENEGOTIATION;
    }
    server->tcp = lws_create_vhost(server->context, &info);
    if (server->local == NULL || server->tcp == NULL) {
        return server->config.certificate == NULL
                   ? err_set(err, -ENOMEM, "cannot set up the HTTP server: not enough memory")
                   : err_set(err, -EINVAL,
                             "cannot use the certificate %s with the key %s: both must be PEM "
                             "files that belong together",
                             server->config.certificate, server->config.key);
    }
    return 0;
}

static int adopt_listeners(struct http_server *server, struct err *err)
{
    for (size_t i = 0; i < server->config.fd_count; i++) {
        int fd = server->config.fds[i];
        lws_sock_file_fd_type file = {.filefd = fd};
        if (io_set_nonblock(fd) != 0 ||
            lws_adopt_descriptor_vhost(server->local, LWS_ADOPT_RAW_FILE_DESC, file, "listen",
                                       NULL) == NULL) {
            return err_set(err, -EIO, "cannot listen for HTTP connections on descriptor %d", fd);
        }
    }
    return 0;
}

static int create_context(struct http_server *server, struct err *err)
{
    lws_set_log_level(LLL_ERR | LLL_WARN, log_lws);
    struct lws_context_creation_info info = {0};
    fill_info(server, &info);
    info.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT |
                   LWS_SERVER_OPTION_SKIP_SERVER_CANONICAL_NAME;
    info.user = server;
    info.max_http_header_data = HTTP_HEAD_MAX;
    info.max_http_header_pool = (unsigned short)server->config.max_connections;
    info.fd_limit_per_thread = server->config.max_connections + 64;
    info.pt_serv_buf_size = 32 << 10;
    server->context = lws_create_context(&info);
    if (server->context == NULL) {
        return err_set(err, -ENOMEM, "cannot set up the HTTP server: not enough memory");
    }
    int error = create_vhosts(server, err);
    return error != 0 ? error : adopt_listeners(server, err);
}

int http_server_create(const struct http_config *config, struct http_server **ret_server,
                       struct err *err)
{
    struct http_server *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        return err_set(err, -ENOMEM, "cannot set up the HTTP server: not enough memory");
    }
    server->config = *config;
    if (config->max_connections == 0) {
        server->config.max_connections = CONNECTIONS_DEFAULT;
    }
    if (config->timeout_s == 0) {
        server->config.timeout_s = TIMEOUT_DEFAULT_S;
    }
    atomic_init(&server->references, 1);
    mutex_init(&server->mutex, LOCK_RANK_LEAF);
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    int error = create_context(server, err);
    if (error == 0) {
        error = thread_start(&server->thread, "http", server_main, server);
        if (error != 0) {
            (void)err_set_errno(err, error, "cannot start the HTTP server's thread");
        }
    }
    if (error != 0) {
        atomic_store(&server->is_stopping, true);
        server->thread = pthread_self();
        server->is_destroyed = true;
        if (server->context != NULL) {
            lws_context_destroy(server->context);
        }
        (void)close(server->spare_fd);
        server_unref(server);
        return error;
    }
    *ret_server = server;
    return 0;
}

void http_server_destroy(struct http_server *server)
{
    if (server == NULL) {
        return;
    }
    atomic_store(&server->is_stopping, true);
    lws_cancel_service(server->context);
    (void)pthread_join(server->thread, NULL);

    mutex_lock(&server->mutex);
    server->is_destroyed = true;
    struct http_exchange *ready = server->ready;
    server->ready = NULL;
    mutex_unlock(&server->mutex);
    while (ready != NULL) {
        struct http_exchange *next = ready->next_ready;
        exchange_unref(ready);
        ready = next;
    }
    lws_context_destroy(server->context);
    (void)close(server->spare_fd);
    server_unref(server);
}
