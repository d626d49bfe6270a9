/* From libwebsockets' tokens to a request that outlives them. */
#include "http/http_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum { HEADER_VALUE_MAX = 4096 };

/* The header fields that are kept, by libwebsockets' token or, where it has none, by name. */
static const struct {
    const char *name;
    enum lws_token_indexes token;
    bool is_custom;
} kept_headers[HTTP_HEADERS_KEPT] = {
    {"authorization", WSI_TOKEN_HTTP_AUTHORIZATION, false},
    {"content-type", WSI_TOKEN_HTTP_CONTENT_TYPE, false},
    {"cookie", WSI_TOKEN_HTTP_COOKIE, false},
    {"host", WSI_TOKEN_HOST, false},
    {"origin", WSI_TOKEN_ORIGIN, false},
    {"if-none-match", WSI_TOKEN_HTTP_IF_NONE_MATCH, false},
    {"user-agent", WSI_TOKEN_HTTP_USER_AGENT, false},
    {"last-event-id", WSI_TOKEN_COUNT, true},
    {"idempotency-key", WSI_TOKEN_COUNT, true},
    {"x-csrf-token", WSI_TOKEN_COUNT, true},
};

const char *http_exchange_header(const struct http_exchange *exchange, const char *name)
{
    for (size_t i = 0; i < HTTP_HEADERS_KEPT; i++) {
        if (strcasecmp(kept_headers[i].name, name) == 0) {
            return exchange->headers[i];
        }
    }
    return NULL;
}

static char *copy_custom(struct lws *wsi, const char *name)
{
    char with_colon[64];
    int name_len = snprintf(with_colon, sizeof(with_colon), "%s:", name);
    int len = lws_hdr_custom_length(wsi, with_colon, name_len);
    if (len < 0 || len > HEADER_VALUE_MAX) {
        return NULL;
    }
    char *value = malloc((size_t)len + 1);
    if (value != NULL && lws_hdr_custom_copy(wsi, value, len + 1, with_colon, name_len) < 0) {
        free(value);
        return NULL;
    }
    return value;
}

static char *copy_token(struct lws *wsi, enum lws_token_indexes token)
{
    int len = lws_hdr_total_length(wsi, token);
    if (len <= 0 || len > HTTP_HEAD_MAX) {
        return NULL;
    }
    char *value = malloc((size_t)len + 1);
    if (value != NULL && lws_hdr_copy(wsi, value, len + 1, token) < 0) {
        free(value);
        return NULL;
    }
    return value;
}

static int copy_query(struct lws *wsi, struct http_exchange *exchange)
{
    int total = lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_URI_ARGS);
    if (total <= 0) {
        return 0;
    }
    size_t capacity = (size_t)total * 2 + 2;
    exchange->query = calloc(1, capacity);
    if (exchange->query == NULL) {
        return -ENOMEM;
    }
    for (int piece = 0; exchange->query_len + 1 < capacity; piece++) {
        int len = lws_hdr_copy_fragment(wsi, exchange->query + exchange->query_len,
                                        (int)(capacity - exchange->query_len),
                                        WSI_TOKEN_HTTP_URI_ARGS, piece);
        if (len < 0) {
            break;
        }
        exchange->query_len += (size_t)len + 1;
    }
    return 0;
}

const char *http_exchange_query_at(const struct http_exchange *exchange, size_t index)
{
    for (size_t at = 0; at < exchange->query_len; index--) {
        if (index == 0) {
            return exchange->query + at;
        }
        at += strlen(exchange->query + at) + 1;
    }
    return NULL;
}

const char *http_exchange_query(const struct http_exchange *exchange, const char *name)
{
    size_t len = strlen(name);
    const char *piece;
    for (size_t i = 0; (piece = http_exchange_query_at(exchange, i)) != NULL; i++) {
        if (strncmp(piece, name, len) == 0 && (piece[len] == '=' || piece[len] == 0)) {
            return piece + len + (piece[len] == '=');
        }
    }
    return NULL;
}

static const char *method_of(struct lws *wsi)
{
    static const struct {
        enum lws_token_indexes token;
        const char *name;
    } methods[] = {
        {WSI_TOKEN_GET_URI, "GET"},         {WSI_TOKEN_POST_URI, "POST"},
        {WSI_TOKEN_PUT_URI, "PUT"},         {WSI_TOKEN_PATCH_URI, "PATCH"},
        {WSI_TOKEN_DELETE_URI, "DELETE"},   {WSI_TOKEN_HEAD_URI, "HEAD"},
        {WSI_TOKEN_OPTIONS_URI, "OPTIONS"},
    };
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (lws_hdr_total_length(wsi, methods[i].token) > 0) {
            return methods[i].name;
        }
    }
    return "";
}

static void read_peer(struct http_connection *connection, struct http_peer *peer)
{
    int fd = lws_get_socket_fd(connection->wsi);
    peer->is_unix = connection->is_unix;
    peer->is_tls = lws_is_ssl(connection->wsi) != 0;
    if (peer->is_unix) {
        struct ucred credentials = {.uid = (uid_t)-1};
        socklen_t len = sizeof(credentials);
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &len) == 0) {
            peer->uid = credentials.uid;
        } else {
            peer->uid = (uid_t)-1;
        }
        return;
    }
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof(address);
    peer->uid = (uid_t)-1;
    if (getpeername(fd, (struct sockaddr *)&address, &len) != 0) {
        return;
    }
    const void *raw = address.ss_family == AF_INET6
                          ? (const void *)&((struct sockaddr_in6 *)&address)->sin6_addr
                          : (const void *)&((struct sockaddr_in *)&address)->sin_addr;
    (void)inet_ntop(address.ss_family, raw, peer->address, sizeof(peer->address));
}

struct http_exchange *request_read(struct http_connection *connection, const char *path)
{
    struct lws *wsi = connection->wsi;
    struct http_exchange *exchange = exchange_new(connection->server);
    if (exchange == NULL) {
        return NULL;
    }
    exchange->connection = connection;
    exchange->method = strdup(method_of(wsi));
    exchange->path = strdup(path);
    bool has_query = copy_query(wsi, exchange) == 0;
    for (size_t i = 0; i < HTTP_HEADERS_KEPT; i++) {
        exchange->headers[i] = kept_headers[i].is_custom ? copy_custom(wsi, kept_headers[i].name)
                                                         : copy_token(wsi, kept_headers[i].token);
    }
    read_peer(connection, &exchange->request.peer);
    if (exchange->method == NULL || exchange->path == NULL || !has_query) {
        exchange_unref(exchange);
        return NULL;
    }
    exchange->request.method = exchange->method;
    exchange->request.path = exchange->path;
    exchange->request.body = "";
    return exchange;
}

long request_body_length(struct lws *wsi)
{
    if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0) {
        return -411;
    }
    if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0) {
        return 0;
    }
    char text[24];
    if (lws_hdr_copy(wsi, text, sizeof(text), WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0 ||
        strspn(text, "0123456789") != strlen(text)) {
        return -400;
    }
    errno = 0;
    long length = strtol(text, NULL, 10);
    return errno != 0 || length > HTTP_BODY_MAX ? -413 : length;
}

int request_append_body(struct http_exchange *exchange, const void *data, size_t len)
{
    size_t have = exchange->request.body_len;
    if (len > HTTP_BODY_MAX - have) {
        return -EFBIG;
    }
    if (have + len + 1 > exchange->body_capacity) {
        size_t capacity = (have + len) * 2 + 1;
        char *body = realloc(exchange->body, capacity);
        if (body == NULL) {
            return -ENOMEM;
        }
        exchange->body = body;
        exchange->body_capacity = capacity;
    }
    memcpy(exchange->body + have, data, len);
    exchange->request.body_len = have + len;
    exchange->body[have + len] = 0;
    exchange->request.body = exchange->body;
    return 0;
}
