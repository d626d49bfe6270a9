/*
 * Inside the HTTP server: who owns what between its thread and the handlers.
 *
 * A connection belongs to the server's thread. An exchange is counted: one
 * reference is the connection's, one the handler's from the moment it is told.
 * What both touch (what is to be sent) stands under the exchange's mutex.
 */
#ifndef CORBEL_HTTP_HTTP_INT_H
#define CORBEL_HTTP_HTTP_INT_H

#include "base/thread.h"
#include "http/http.h"

#include <libwebsockets.h>
#include <stdatomic.h>

enum { HTTP_HEADERS_KEPT = 10, HTTP_HEAD_MAX = 8 << 10 };

enum exchange_kind { EXCHANGE_ANSWER, EXCHANGE_STREAM, EXCHANGE_SOCKET };

/* Bytes to be sent; libwebsockets writes frame headers into the LWS_PRE bytes before them. */
struct chunk {
    struct chunk *next;
    size_t len;
    size_t sent;
    bool is_text;
    unsigned char bytes[]; /* LWS_PRE, then len */
};

struct http_exchange {
    struct http_server *server;
    struct http_connection *connection; /* the server's thread; NULL when it has gone */
    atomic_uint references;
    struct http_request request;
    char *method, *path;
    char *query; /* its pieces, each with its NUL; query_len bytes */
    size_t query_len;
    char *headers[HTTP_HEADERS_KEPT];
    char *body;
    size_t body_capacity;
    void *data;

    struct mutex mutex;
    enum exchange_kind kind;
    int status;   /* 0 until it is answered */
    char *fields; /* "content-type:" NUL value NUL ... */
    size_t fields_len;
    bool has_length;
    size_t length;
    struct chunk *head, *tail;
    size_t queued;
    bool is_ended; /* by the handler */
    bool is_gone;  /* the peer */
    bool is_overrun;

    /* In the server's list of exchanges with something to do; under the server's mutex. */
    bool is_ready;
    struct http_exchange *next_ready;
};

struct http_connection {
    struct http_server *server;
    struct lws *wsi;
    struct http_exchange *exchange; /* of the request under way, or NULL */
    bool is_head_sent;
    bool is_unix;
    /* Among those with no request at a handler, the one idle longest first. */
    struct http_connection *newer, *older;
    bool is_idle;
};

struct http_server {
    struct http_config config;
    struct lws_context *context;
    struct lws_vhost *tcp, *local;
    pthread_t thread;
    atomic_bool is_stopping;
    atomic_uint references; /* its own, and one of each exchange */
    struct mutex mutex;
    struct http_exchange *ready;
    bool is_destroyed;
    /* The server's thread. */
    unsigned connections;
    struct http_connection *arriving; /* being given to libwebsockets, which may drop it at once */
    int spare_fd; /* closed to take and refuse a connection when descriptors run out */
    struct http_connection *oldest_idle, *newest_idle;
};

/* server.c */
void server_unref(struct http_server *server);
bool server_is_own_thread(const struct http_server *server);
/* Has the server's thread look at the exchange. Any thread. */
void server_wake(struct http_server *server, struct http_exchange *exchange);

/* accept.c */
int accept_callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                    size_t len);

/* connection.c: all on the server's thread */
int connection_callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                        size_t len);
/* What the exchanges that were woken ask for. */
void connection_do_ready(struct http_server *server);
void connection_set_idle(struct http_connection *connection, bool is_idle);

/* request.c: reads the head of a request; NULL without memory */
struct http_exchange *request_read(struct http_connection *connection, const char *path);
/* The length of the body that follows, or a status (as a negative number) that refuses it. */
long request_body_length(struct lws *wsi);
int request_append_body(struct http_exchange *exchange, const void *data, size_t len) MUST_CHECK;

/* exchange.c */
struct http_exchange *exchange_new(struct http_server *server);
void exchange_unref(struct http_exchange *exchange);
/* Takes the first chunk out; the caller frees it. */
struct chunk *exchange_take(struct http_exchange *exchange);
/* Answers in the name of the server itself, before a handler has been told. */
void exchange_refuse(struct http_exchange *exchange, int status);
const char *exchange_reason(int status);

#endif
