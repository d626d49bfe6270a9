/*
 * Taking connections. The listening sockets are ours, not libwebsockets', so
 * that they may come from elsewhere (socket activation), and so that a flood
 * of connections displaces only the idle ones, oldest first.
 */
#include "base/log.h"
#include "http/http_int.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ACCEPT_BATCH = 32,     /* per turn of the loop, so that the connected are served in between */
    CONNECTIONS_SLACK = 32 /* displaced connections that are not closed yet */
};

static bool is_unix_socket(int fd)
{
    int domain = 0;
    socklen_t len = sizeof(domain);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

static void close_oldest_idle(struct http_server *server)
{
    struct http_connection *oldest = server->oldest_idle;
    if (oldest != NULL) {
        connection_set_idle(oldest, false);
        lws_set_timeout(oldest->wsi, PENDING_TIMEOUT_USER_OK, LWS_TO_KILL_ASYNC);
    }
}

static void take(struct http_server *server, int fd, bool is_unix)
{
    if (server->connections >= server->config.max_connections) {
        close_oldest_idle(server);
    }
    if (server->connections >= server->config.max_connections + CONNECTIONS_SLACK) {
        (void)close(fd);
        return;
    }
    struct http_connection *connection = calloc(1, sizeof(*connection));
    if (connection == NULL) {
        (void)close(fd);
        return;
    }
    connection->server = server;
    connection->is_unix = is_unix;
    if (!is_unix) {
        int on = 1;
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    server->connections++;
    server->arriving = connection;
    lws_adopt_desc_t adopt = {
        .vh = is_unix ? server->local : server->tcp,
        .type = LWS_ADOPT_SOCKET | LWS_ADOPT_HTTP | LWS_ADOPT_ALLOW_SSL,
        .fd = {.sockfd = fd},
        .opaque = connection,
    };
    struct lws *wsi = lws_adopt_descriptor_vhost_via_info(&adopt);
    if (wsi == NULL) {
        if (server->arriving == connection) {
            server->connections--;
            free(connection);
        }
        server->arriving = NULL;
        return;
    }
    server->arriving = NULL;
    connection->wsi = wsi;
    connection_set_idle(connection, true);
}

/* Out of descriptors: the spare one makes room to take the next peer and send it away. */
static void refuse_one(struct http_server *server, int listener)
{
    close_oldest_idle(server);
    (void)close(server->spare_fd);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) {
        (void)close(fd);
    }
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

int accept_callback(struct lws *wsi, enum lws_callback_reasons reason, MAYBE_UNUSED void *user,
                    MAYBE_UNUSED void *in, MAYBE_UNUSED size_t len)
{
    if (reason != LWS_CALLBACK_RAW_RX_FILE) {
        return 0;
    }
    struct http_server *server = lws_context_user(lws_get_context(wsi));
    int listener = lws_get_socket_fd(wsi);
    bool is_unix = is_unix_socket(listener);
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            take(server, fd, is_unix);
        } else if (errno == EMFILE || errno == ENFILE) {
            refuse_one(server, listener);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            break;
        }
    }
    return 0;
}
