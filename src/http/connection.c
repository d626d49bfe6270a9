/* One connection: what libwebsockets tells of it, and what is sent on it. */
#include "http/http_int.h"

#include <stdlib.h>
#include <string.h>

enum { WRITE_MAX = 32 << 10 };

static struct http_connection *connection_of(struct lws *wsi)
{
    return lws_get_opaque_user_data(wsi);
}

void connection_set_idle(struct http_connection *connection, bool is_idle)
{
    struct http_server *server = connection->server;
    if (connection->is_idle) {
        *(connection->older != NULL ? &connection->older->newer : &server->oldest_idle) =
            connection->newer;
        *(connection->newer != NULL ? &connection->newer->older : &server->newest_idle) =
            connection->older;
        connection->older = connection->newer = NULL;
    }
    connection->is_idle = is_idle;
    if (is_idle) {
        connection->older = server->newest_idle;
        *(server->newest_idle != NULL ? &server->newest_idle->newer : &server->oldest_idle) =
            connection;
        server->newest_idle = connection;
    }
}

/* The exchange has ended, or its peer has gone: the connection lets it go. */
static void drop_exchange(struct http_connection *connection, bool is_peer_gone)
{
    struct http_exchange *exchange = connection->exchange;
    if (exchange == NULL) {
        return;
    }
    connection->exchange = NULL;
    connection->is_head_sent = false;
    exchange->connection = NULL;
    mutex_lock(&exchange->mutex);
    exchange->is_gone = true;
    bool is_told = is_peer_gone && !exchange->is_ended && exchange->kind != EXCHANGE_ANSWER;
    mutex_unlock(&exchange->mutex);
    if (is_told) {
        const struct http_config *config = &connection->server->config;
        config->ops->gone(config->opaque, exchange);
    }
    exchange_unref(exchange);
}

static void free_connection(struct lws *wsi)
{
    struct http_connection *connection = connection_of(wsi);
    if (connection != NULL) {
        (void)lws_set_opaque_user_data(wsi, NULL);
        drop_exchange(connection, true);
        connection_set_idle(connection, false);
        connection->server->connections--;
        if (connection->server->arriving == connection) {
            connection->server->arriving = NULL;
        }
        free(connection);
    }
}

/* From here on the handler holds the exchange too. */
static void give_to_handler(struct http_connection *connection)
{
    const struct http_config *config = &connection->server->config;
    struct http_exchange *exchange = connection->exchange;
    connection_set_idle(connection, false);
    lws_set_timeout(connection->wsi, NO_PENDING_TIMEOUT, 0);
    atomic_fetch_add(&exchange->references, 1);
    config->ops->request(config->opaque, exchange);
}

static int refuse(struct http_connection *connection, int status)
{
    connection_set_idle(connection, false);
    exchange_refuse(connection->exchange, status);
    lws_callback_on_writable(connection->wsi);
    return 0;
}

static void arm_timer(const struct http_connection *connection)
{
    lws_set_timer_usecs(connection->wsi, connection->server->config.timeout_s * LWS_USEC_PER_SEC);
}

static int on_request(struct lws *wsi, const char *path, size_t len)
{
    struct http_connection *connection = connection_of(wsi);
    if (connection == NULL || connection->exchange != NULL) {
        return -1;
    }
    connection->exchange = request_read(connection, path);
    if (connection->exchange == NULL) {
        return -1;
    }
    if (strlen(path) != len || connection->exchange->method[0] == 0) {
        return refuse(connection, strlen(path) != len ? 400 : 405);
    }
    long body_length = request_body_length(wsi);
    if (body_length < 0) {
        return refuse(connection, (int)-body_length);
    }
    if (body_length > 0) {
        /* For the whole body, so that nobody stays by sending a byte now and then. */
        arm_timer(connection);
        return 0;
    }
    give_to_handler(connection);
    return 0;
}

static int on_body(struct http_connection *connection, const void *data, size_t len)
{
    if (connection == NULL || connection->exchange == NULL || connection->exchange->status != 0) {
        return 0;
    }
    return request_append_body(connection->exchange, data, len) == 0 ? 0 : -1;
}

/*
 * For a body: it has not arrived in time. For an event stream: a comment (HTML 9.2.6), since only
 * writing finds a peer that has gone. In any other state the timer is left from before.
 */
static int on_timer(struct http_connection *connection)
{
    struct http_exchange *exchange = connection != NULL ? connection->exchange : NULL;
    if (exchange == NULL) {
        return 0;
    }
    if (exchange->kind == EXCHANGE_STREAM && connection->is_head_sent) {
        (void)http_send(exchange, ":\n\n", 3, true);
        arm_timer(connection);
        return 0;
    }
    return connection->is_idle ? -1 : 0;
}

/* Also called for "content-length: 0", whose request has been given away already. */
static int on_body_complete(struct http_connection *connection)
{
    if (connection != NULL && connection->exchange != NULL && connection->is_idle) {
        give_to_handler(connection);
    }
    return 0;
}

/* The head of an answer, from the fields that the handler gave. */
static int write_head(struct http_connection *connection, struct http_exchange *exchange)
{
    unsigned char buffer[LWS_PRE + HTTP_HEAD_MAX];
    unsigned char *at = buffer + LWS_PRE;
    unsigned char *end = buffer + sizeof(buffer) - 1;
    struct lws *wsi = connection->wsi;

    if (lws_add_http_header_status(wsi, (unsigned)exchange->status, &at, end) != 0) {
        return -1;
    }
    for (const char *field = exchange->fields; field < exchange->fields + exchange->fields_len;) {
        const char *value = field + strlen(field) + 1;
        if (lws_add_http_header_by_name(wsi, (const unsigned char *)field,
                                        (const unsigned char *)value, (int)strlen(value), &at,
                                        end) != 0) {
            return -1;
        }
        field = value + strlen(value) + 1;
    }
    if (exchange->has_length &&
        lws_add_http_header_content_length(wsi, exchange->length, &at, end) != 0) {
        return -1;
    }
    if (lws_finalize_write_http_header(wsi, buffer + LWS_PRE, &at, end) != 0) {
        return -1;
    }
    connection->is_head_sent = true;
    if (exchange->kind == EXCHANGE_STREAM) {
        arm_timer(connection);
    }
    return 0;
}

/* Writes a piece of the first chunk. 1 when there is more, 0 when nothing waits, -1 to close. */
static int write_piece(struct http_connection *connection, struct http_exchange *exchange)
{
    mutex_lock(&exchange->mutex);
    struct chunk *chunk = exchange->head;
    mutex_unlock(&exchange->mutex);
    if (chunk == NULL) {
        return 0;
    }
    /* Only this thread takes chunks, so the first one stays while it is written. */
    bool is_socket = exchange->kind == EXCHANGE_SOCKET;
    size_t rest = chunk->len - chunk->sent;
    size_t len = is_socket || rest < WRITE_MAX ? rest : WRITE_MAX;
    enum lws_write_protocol how = LWS_WRITE_HTTP;
    if (is_socket) {
        how = chunk->is_text ? LWS_WRITE_TEXT : LWS_WRITE_BINARY;
    }
    int written = lws_write(connection->wsi, chunk->bytes + LWS_PRE + chunk->sent, len, how);
    if (written < (int)len) {
        return -1;
    }
    chunk->sent += len;
    if (chunk->sent == chunk->len) {
        free(exchange_take(exchange));
    }
    return 1;
}

/* All of an answer is written: the connection is free for the next request. */
static int finish(struct http_connection *connection)
{
    bool is_stream = connection->exchange->kind == EXCHANGE_STREAM;
    bool is_socket = connection->exchange->kind == EXCHANGE_SOCKET;
    bool is_refused =
        connection->exchange->request.body_len == 0 && request_body_length(connection->wsi) != 0;
    drop_exchange(connection, false);
    if (is_socket) {
        lws_close_reason(connection->wsi, LWS_CLOSE_STATUS_NORMAL, NULL, 0);
        return -1;
    }
    if (is_stream || is_refused || lws_http_transaction_completed(connection->wsi) != 0) {
        return -1;
    }
    connection_set_idle(connection, true);
    return 0;
}

static int on_writable(struct http_connection *connection)
{
    struct http_exchange *exchange = connection != NULL ? connection->exchange : NULL;
    if (exchange == NULL) {
        return 0;
    }
    mutex_lock(&exchange->mutex);
    bool is_overrun = exchange->is_overrun;
    bool is_ended = exchange->is_ended;
    bool is_answered = exchange->status != 0;
    mutex_unlock(&exchange->mutex);
    if (is_overrun) {
        return -1;
    }
    if (!is_answered) {
        return 0;
    }
    if (exchange->kind != EXCHANGE_SOCKET && !connection->is_head_sent) {
        if (write_head(connection, exchange) != 0) {
            return -1;
        }
        lws_callback_on_writable(connection->wsi);
        return 0;
    }
    bool has_body = strcmp(exchange->method, "HEAD") != 0;
    int more = has_body ? write_piece(connection, exchange) : 0;
    if (more < 0) {
        return -1;
    }
    if (more == 0 && is_ended) {
        return finish(connection);
    }
    if (more > 0) {
        lws_callback_on_writable(connection->wsi);
    }
    return 0;
}

/* One whose peer does not read is never writable again: it is closed from here. */
static void attend(struct http_exchange *exchange)
{
    if (exchange->connection == NULL) {
        return;
    }
    mutex_lock(&exchange->mutex);
    bool is_overrun = exchange->is_overrun;
    mutex_unlock(&exchange->mutex);
    if (is_overrun) {
        lws_set_timeout(exchange->connection->wsi, PENDING_TIMEOUT_USER_OK, LWS_TO_KILL_ASYNC);
    } else {
        lws_callback_on_writable(exchange->connection->wsi);
    }
}

void connection_do_ready(struct http_server *server)
{
    mutex_lock(&server->mutex);
    struct http_exchange *exchange = server->ready;
    server->ready = NULL;
    mutex_unlock(&server->mutex);
    while (exchange != NULL) {
        mutex_lock(&server->mutex);
        struct http_exchange *next = exchange->next_ready;
        exchange->is_ready = false;
        mutex_unlock(&server->mutex);
        attend(exchange);
        exchange_unref(exchange);
        exchange = next;
    }
}

/* RFC 6455 4.2: nothing but WebSockets may be upgraded to, and only where the handler says so. */
static int on_upgrade(struct lws *wsi, const char *name)
{
    struct http_connection *connection = connection_of(wsi);
    if (connection == NULL || connection->exchange != NULL || strcmp(name, "websocket") != 0) {
        return -1;
    }
    char path[1024];
    if (lws_hdr_copy(wsi, path, sizeof(path), WSI_TOKEN_GET_URI) <= 0) {
        return -1;
    }
    struct http_exchange *exchange = request_read(connection, path);
    if (exchange == NULL) {
        return -1;
    }
    const struct http_config *config = &connection->server->config;
    exchange->kind = EXCHANGE_SOCKET;
    exchange->status = 101;
    connection->exchange = exchange;
    atomic_fetch_add(&exchange->references, 1);
    int status = config->ops->socket_open(config->opaque, exchange);
    connection_set_idle(connection, false);
    if (status == 0) {
        return 0;
    }
    exchange->is_ended = true;
    exchange_unref(exchange);
    drop_exchange(connection, false);
    (void)lws_return_http_status(wsi, (unsigned)status, NULL);
    return 1;
}

/* Messages come in pieces; they are given on whole. */
static int on_message(struct http_connection *connection, const void *data, size_t len)
{
    struct lws *wsi = connection->wsi;
    struct http_exchange *exchange = connection->exchange;
    if (exchange == NULL) {
        return -1;
    }
    if (exchange->request.body_len + len > HTTP_MESSAGE_MAX ||
        request_append_body(exchange, data, len) != 0) {
        lws_close_reason(wsi, LWS_CLOSE_STATUS_MESSAGE_TOO_LARGE, NULL, 0);
        return -1;
    }
    if (lws_is_final_fragment(wsi) && lws_remaining_packet_payload(wsi) == 0) {
        const struct http_config *config = &connection->server->config;
        size_t message_len = exchange->request.body_len;
        exchange->request.body_len = 0;
        config->ops->socket_message(config->opaque, exchange, exchange->request.body, message_len);
    }
    return 0;
}

int connection_callback(struct lws *wsi, enum lws_callback_reasons reason, MAYBE_UNUSED void *user,
                        void *in, size_t len)
{
    switch (reason) {
    case LWS_CALLBACK_HTTP:
        return on_request(wsi, in, len);
    case LWS_CALLBACK_HTTP_BODY:
        return on_body(connection_of(wsi), in, len);
    case LWS_CALLBACK_HTTP_BODY_COMPLETION:
        return on_body_complete(connection_of(wsi));
    case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
        return on_upgrade(wsi, in);
    case LWS_CALLBACK_RECEIVE:
        return connection_of(wsi) != NULL ? on_message(connection_of(wsi), in, len) : -1;
    case LWS_CALLBACK_ESTABLISHED:
        lws_callback_on_writable(wsi);
        return 0;
    case LWS_CALLBACK_HTTP_WRITEABLE:
    case LWS_CALLBACK_SERVER_WRITEABLE:
        return on_writable(connection_of(wsi));
    case LWS_CALLBACK_TIMER:
        return on_timer(connection_of(wsi));
    case LWS_CALLBACK_CLOSED:
    case LWS_CALLBACK_CLOSED_HTTP:
        if (connection_of(wsi) != NULL) {
            drop_exchange(connection_of(wsi), true);
        }
        return 0;
    case LWS_CALLBACK_WSI_DESTROY:
        free_connection(wsi);
        return 0;
    case LWS_CALLBACK_EVENT_WAIT_CANCELLED:
        connection_do_ready(lws_context_user(lws_get_context(wsi)));
        return 0;
    default:
        return 0;
    }
}
