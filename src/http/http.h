/*
 * An HTTP/1.1 server: requests with bounded bodies, event streams and
 * WebSockets, on TCP (with TLS or without) and on unix sockets.
 *
 * The server has one thread, "http", on which it calls the functions of struct
 * http_ops; they must not wait. Each request is a struct http_exchange, which
 * belongs to its handler from the call on until it ends it: by http_respond() or
 * http_end(), or by refusing a socket. These and
 * all that sends may be called from any thread, also when the peer has gone.
 *
 * Whatever a peer does ends at most its own connection: what is malformed is
 * answered with a 4xx or closed, bodies and queues are bounded, and when there
 * are more connections than allowed, the one that has been idle longest goes.
 * RFC 9110, 9112 (HTTP), 6455 (WebSocket), WHATWG HTML 9.2 (event streams).
 */
#ifndef CORBEL_HTTP_HTTP_H
#define CORBEL_HTTP_HTTP_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct http_server;
struct http_exchange;

enum {
    HTTP_BODY_MAX = 1 << 20,    /* bytes of a request's body; above: 413 */
    HTTP_QUEUE_MAX = 4 << 20,   /* bytes that wait for a slow reader of a stream; above: closed */
    HTTP_MESSAGE_MAX = 64 << 10 /* bytes of a WebSocket message; above: closed */
};

/* Who asks. A peer on a unix socket is known by its uid, others by their address. */
struct http_peer {
    bool is_unix;
    bool is_tls;
    uid_t uid;        /* of a unix peer */
    char address[48]; /* of a TCP peer, as text */
};

/* Valid until the exchange ends. */
struct http_request {
    const char *method; /* "GET", "POST" ... */
    const char *path;   /* decoded, begins with '/', has no "." or ".." */
    const void *body;   /* body_len bytes, and a NUL after them */
    size_t body_len;
    struct http_peer peer;
};

struct http_header {
    const char *name; /* lower case */
    const char *value;
};

struct http_ops {
    /* A request is there, whole. */
    void (*request)(void *opaque, struct http_exchange *exchange);
    /* A WebSocket is asked for: 0 to take it, or the status (4xx) of the refusal. */
    int (*socket_open)(void *opaque, struct http_exchange *exchange);
    /* A message of at most HTTP_MESSAGE_MAX bytes has come. */
    void (*socket_message)(void *opaque, struct http_exchange *exchange, const void *data,
                           size_t len);
    /*
     * The peer of a stream or socket has gone; the handler still ends the exchange (here or later).
     * Not called after it has done so.
     */
    void (*gone)(void *opaque, struct http_exchange *exchange);
};

struct http_config {
    /* Listening sockets, which the server owns from http_server_create() on, whatever it returns. */
    const int *fds;
    size_t fd_count;
    /* PEM files; with them TCP connections are TLS's. NULL: plain. */
    const char *certificate;
    const char *key;
    unsigned max_connections; /* 0: 1024 */
    unsigned timeout_s; /* for a request to arrive, and between signs of life on streams; 0: 20 */
    const struct http_ops *ops;
    void *opaque;
};

/* Starts the thread and serves. Errors: err names the file or the limit. */
int http_server_create(const struct http_config *config, struct http_server **ret_server,
                       struct err *err) MUST_CHECK;

/* Closes all connections and ends the thread. Exchanges that are not ended yet stay valid. */
void http_server_destroy(struct http_server *server);

/* A listening, non-blocking TCP socket on a numeric address, or -errno. Port 0: any. */
int http_listen_tcp(const char *address, unsigned port, struct err *err) MUST_CHECK;

/*
 * A listening unix socket of the given mode. A socket file that nobody listens on any more is
 * replaced; -EADDRINUSE where somebody does.
 */
int http_listen_unix(const char *path, mode_t mode, struct err *err) MUST_CHECK;

const struct http_request *http_exchange_request(const struct http_exchange *exchange);

/*
 * The value of a request header, or NULL. Kept are: authorization, content-type, cookie, host,
 * origin, if-none-match, last-event-id, user-agent, idempotency-key, x-csrf-token.
 */
const char *http_exchange_header(const struct http_exchange *exchange, const char *name);

/*
 * The index-th piece of the query, "name=value" or "name", decoded; NULL after the last. A '&'
 * inside a value was sent as %26 and stands in the piece.
 */
const char *http_exchange_query_at(const struct http_exchange *exchange, size_t index);

/* The value of the first query parameter of that name ("" for one without '='), or NULL. */
const char *http_exchange_query(const struct http_exchange *exchange, const char *name);

/* What the handler wants to find again. */
void http_exchange_set_data(struct http_exchange *exchange, void *data);
void *http_exchange_data(const struct http_exchange *exchange);

/*
 * Answers and ends the exchange. The body is copied. headers (count of them) come besides
 * content-type, content-length and those that every answer has.
 */
void http_respond(struct http_exchange *exchange, int status, const char *content_type,
                  const struct http_header *headers, size_t count, const void *body, size_t len);

/* Answers 200 with an event stream that stays open until http_end(). */
void http_stream_begin(struct http_exchange *exchange);

/*
 * Sends bytes on a stream, or one message on a socket (is_text: UTF-8). -EPIPE when the peer has
 * gone, -ENOBUFS when it reads too slowly: then the connection is closed, and gone() follows.
 */
int http_send(struct http_exchange *exchange, const void *data, size_t len, bool is_text);

/* How much waits to be sent, in bytes: for back-pressure. */
size_t http_queued(struct http_exchange *exchange);

/* Ends a stream or socket, and the exchange; what is queued is sent first. */
void http_end(struct http_exchange *exchange);

#endif
