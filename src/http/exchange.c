#include "http/http_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct http_exchange *exchange_new(struct http_server *server)
{
    struct http_exchange *exchange = calloc(1, sizeof(*exchange));
    if (exchange == NULL) {
        return NULL;
    }
    mutex_init(&exchange->mutex, LOCK_RANK_LEAF);
    atomic_init(&exchange->references, 1);
    exchange->server = server;
    atomic_fetch_add(&server->references, 1);
    return exchange;
}

void exchange_unref(struct http_exchange *exchange)
{
    if (atomic_fetch_sub(&exchange->references, 1) != 1) {
        return;
    }
    while (exchange->head != NULL) {
        free(exchange_take(exchange));
    }
    for (size_t i = 0; i < HTTP_HEADERS_KEPT; i++) {
        free(exchange->headers[i]);
    }
    free(exchange->method);
    free(exchange->path);
    free(exchange->query);
    free(exchange->body);
    free(exchange->fields);
    mutex_done(&exchange->mutex);
    server_unref(exchange->server);
    free(exchange);
}

struct chunk *exchange_take(struct http_exchange *exchange)
{
    mutex_lock(&exchange->mutex);
    struct chunk *chunk = exchange->head;
    if (chunk != NULL) {
        exchange->head = chunk->next;
        if (exchange->head == NULL) {
            exchange->tail = NULL;
        }
        exchange->queued -= chunk->len;
    }
    mutex_unlock(&exchange->mutex);
    return chunk;
}

static struct chunk *chunk_new(const void *data, size_t len, bool is_text)
{
    struct chunk *chunk = malloc(sizeof(*chunk) + LWS_PRE + len);
    if (chunk != NULL) {
        *chunk = (struct chunk){.len = len, .is_text = is_text};
        memcpy(chunk->bytes + LWS_PRE, data, len);
    }
    return chunk;
}

static void append_locked(struct http_exchange *exchange, struct chunk *chunk)
{
    if (exchange->tail != NULL) {
        exchange->tail->next = chunk;
    } else {
        exchange->head = chunk;
    }
    exchange->tail = chunk;
    exchange->queued += chunk->len;
}

/* All header fields as one block of NUL-terminated pairs; a name ends with its colon. */
static char *fields_build(const char *content_type, const struct http_header *headers, size_t count,
                          size_t *ret_len)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, ret_len);
    if (out == NULL) {
        return NULL;
    }
    bool is_cache_said = false;
    if (content_type != NULL) {
        fprintf(out, "content-type:%c%s%c", 0, content_type, 0);
    }
    for (size_t i = 0; i < count; i++) {
        is_cache_said |= strcmp(headers[i].name, "cache-control") == 0;
        fprintf(out, "%s:%c%s%c", headers[i].name, 0, headers[i].value, 0);
    }
    if (!is_cache_said) {
        fprintf(out, "cache-control:%cno-store%c", 0, 0);
    }
    fprintf(out, "x-content-type-options:%cnosniff%c", 0, 0);
    fprintf(out, "referrer-policy:%cno-referrer%c", 0, 0);
    fprintf(out, "x-frame-options:%cDENY%c", 0, 0);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* Without memory the peer finds its connection closed. */
static void fill_answer(struct http_exchange *exchange, int status, const char *content_type,
                        const struct http_header *headers, size_t count, const void *body,
                        size_t len)
{
    size_t fields_len = 0;
    char *fields = fields_build(content_type, headers, count, &fields_len);
    struct chunk *chunk = len > 0 ? chunk_new(body, len, false) : NULL;

    mutex_lock(&exchange->mutex);
    exchange->status = status;
    exchange->fields = fields;
    exchange->fields_len = fields_len;
    exchange->has_length = true;
    exchange->length = len;
    exchange->is_ended = true;
    exchange->is_overrun = fields == NULL || (chunk == NULL && len > 0);
    if (chunk != NULL) {
        append_locked(exchange, chunk);
    }
    mutex_unlock(&exchange->mutex);
}

void http_respond(struct http_exchange *exchange, int status, const char *content_type,
                  const struct http_header *headers, size_t count, const void *body, size_t len)
{
    fill_answer(exchange, status, content_type, headers, count, body, len);
    server_wake(exchange->server, exchange);
    exchange_unref(exchange);
}

const char *exchange_reason(int status)
{
    switch (status) {
    case 400:
        return "The request is malformed.";
    case 405:
        return "The server knows no such method.";
    case 411:
        return "The request has a body without content-length.";
    case 413:
        return "The body is larger than the server takes.";
    case 431:
        return "The header fields are larger than the server takes.";
    default:
        return "The server could not take the request.";
    }
}

void exchange_refuse(struct http_exchange *exchange, int status)
{
    char body[200];
    int len = snprintf(body, sizeof(body), "{\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}\n",
                       status == 413 ? "TooLarge" : "BadRequest", exchange_reason(status));
    const struct http_header close_header = {"connection", "close"};
    fill_answer(exchange, status, "application/json", &close_header, 1, body, (size_t)len);
}

void http_stream_begin(struct http_exchange *exchange)
{
    size_t fields_len = 0;
    char *fields = fields_build("text/event-stream", NULL, 0, &fields_len);
    mutex_lock(&exchange->mutex);
    exchange->kind = EXCHANGE_STREAM;
    exchange->status = 200;
    exchange->fields = fields;
    exchange->fields_len = fields_len;
    exchange->is_overrun = fields == NULL;
    mutex_unlock(&exchange->mutex);
    server_wake(exchange->server, exchange);
}

int http_send(struct http_exchange *exchange, const void *data, size_t len, bool is_text)
{
    struct chunk *chunk = chunk_new(data, len, is_text);
    int error = 0;
    mutex_lock(&exchange->mutex);
    if (exchange->is_gone) {
        error = -EPIPE;
    } else if (chunk == NULL || exchange->is_overrun || exchange->queued + len > HTTP_QUEUE_MAX) {
        exchange->is_overrun = true;
        error = -ENOBUFS;
    } else {
        append_locked(exchange, chunk);
        chunk = NULL;
    }
    mutex_unlock(&exchange->mutex);
    free(chunk);
    if (error != -EPIPE) {
        server_wake(exchange->server, exchange);
    }
    return error;
}

size_t http_queued(struct http_exchange *exchange)
{
    mutex_lock(&exchange->mutex);
    size_t queued = exchange->queued;
    mutex_unlock(&exchange->mutex);
    return queued;
}

void http_end(struct http_exchange *exchange)
{
    mutex_lock(&exchange->mutex);
    exchange->is_ended = true;
    mutex_unlock(&exchange->mutex);
    server_wake(exchange->server, exchange);
    exchange_unref(exchange);
}

const struct http_request *http_exchange_request(const struct http_exchange *exchange)
{
    return &exchange->request;
}

void http_exchange_set_data(struct http_exchange *exchange, void *data)
{
    exchange->data = data;
}

void *http_exchange_data(const struct http_exchange *exchange)
{
    return exchange->data;
}
