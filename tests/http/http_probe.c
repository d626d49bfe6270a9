/*
 * A program around src/http for the tests: says what it was asked, streams,
 * echoes, answers late and from another thread.
 *
 *   http-probe UNIX_PATH [CERTIFICATE KEY]    prints "PORT\n"; ends when standard input ends
 */
#include "http/http.h"

#include <jansson.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static atomic_int gone_count, request_count;

static void answer_echo(struct http_exchange *exchange)
{
    const struct http_request *request = http_exchange_request(exchange);
    const char *type = http_exchange_header(exchange, "content-type");
    const char *key = http_exchange_header(exchange, "idempotency-key");
    char query[1000] = "";
    for (size_t i = 0; http_exchange_query_at(exchange, i) != NULL; i++) {
        size_t len = strlen(query);
        (void)snprintf(query + len, sizeof(query) - len, "[%s]",
                       http_exchange_query_at(exchange, i));
    }
    json_t *said =
        json_pack("{s:s, s:s, s:s, s:I, s:s?, s:s?, s:b, s:b, s:I, s:s, s:i, s:i}", "method",
                  request->method, "path", request->path, "query", query, "body_len",
                  (json_int_t)request->body_len, "content_type", type, "idempotency_key", key,
                  "is_unix", request->peer.is_unix, "is_tls", request->peer.is_tls, "uid",
                  (json_int_t)request->peer.uid, "address", request->peer.address, "gone",
                  atomic_load(&gone_count), "requests", atomic_load(&request_count));
    char *text = json_dumps(said, 0);
    const struct http_header header = {"x-probe", "yes"};
    http_respond(exchange, 200, "application/json", &header, 1, text, strlen(text));
    free(text);
    json_decref(said);
}

static void *answer_late(void *opaque)
{
    (void)usleep(50000);
    http_respond(opaque, 200, "text/plain", NULL, 0, "late\n", 5);
    return NULL;
}

/* A hundred events, as fast as the peer reads; "flood" goes on until the peer is overrun. */
static void *stream(void *opaque)
{
    struct http_exchange *exchange = opaque;
    bool is_flood = http_exchange_query(exchange, "flood") != NULL;
    http_stream_begin(exchange);
    static char event[64 << 10];
    for (int i = 0; is_flood || i < 100; i++) {
        int len =
            snprintf(event, sizeof(event), "id: %d\ndata: %*d\n\n", i, is_flood ? 60000 : 1, i);
        if (http_send(exchange, event, (size_t)len, true) != 0) {
            atomic_fetch_add(&gone_count, 1);
            break;
        }
    }
    http_end(exchange);
    return NULL;
}

/* Stays open until the peer goes. */
static void *stream_forever(void *opaque)
{
    http_stream_begin(opaque);
    (void)http_send(opaque, "data: here\n\n", 12, true);
    return NULL;
}

static void in_thread(void *(*fn)(void *), struct http_exchange *exchange)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, fn, exchange) != 0) {
        abort();
    }
    (void)pthread_detach(thread);
}

static void on_request(void *opaque, struct http_exchange *exchange)
{
    (void)opaque;
    atomic_fetch_add(&request_count, 1);
    const char *path = http_exchange_request(exchange)->path;
    static char large[3 << 20];
    if (strcmp(path, "/late") == 0) {
        in_thread(answer_late, exchange);
    } else if (strcmp(path, "/stream") == 0) {
        in_thread(stream, exchange);
    } else if (strcmp(path, "/forever") == 0) {
        in_thread(stream_forever, exchange);
    } else if (strcmp(path, "/large") == 0) {
        memset(large, 'x', sizeof(large));
        http_respond(exchange, 200, "text/plain", NULL, 0, large, sizeof(large));
    } else if (strcmp(path, "/empty") == 0) {
        http_respond(exchange, 204, NULL, NULL, 0, NULL, 0);
    } else {
        answer_echo(exchange);
    }
}

static int on_socket_open(void *opaque, struct http_exchange *exchange)
{
    (void)opaque;
    return strcmp(http_exchange_request(exchange)->path, "/socket") == 0 ? 0 : 403;
}

static void on_message(void *opaque, struct http_exchange *exchange, const void *data, size_t len)
{
    (void)opaque;
    if (len == 3 && memcmp(data, "end", 3) == 0) {
        http_end(exchange);
    } else {
        (void)http_send(exchange, data, len, false);
    }
}

static void on_gone(void *opaque, struct http_exchange *exchange)
{
    (void)opaque;
    atomic_fetch_add(&gone_count, 1);
    if (strcmp(http_exchange_request(exchange)->path, "/stream") != 0) {
        http_end(exchange);
    }
}

static const struct http_ops ops = {
    .request = on_request,
    .socket_open = on_socket_open,
    .socket_message = on_message,
    .gone = on_gone,
};

int main(int argc, char **argv)
{
    struct err err;
    if (argc != 2 && argc != 4) {
        return 2;
    }
    int fds[2] = {http_listen_tcp("127.0.0.1", 0, &err), http_listen_unix(argv[1], 0600, &err)};
    struct sockaddr_in address = {0};
    socklen_t len = sizeof(address);
    if (fds[0] < 0 || fds[1] < 0 || getsockname(fds[0], (struct sockaddr *)&address, &len) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    struct http_config config = {
        .fds = fds,
        .fd_count = 2,
        .certificate = argc == 4 ? argv[2] : NULL,
        .key = argc == 4 ? argv[3] : NULL,
        .max_connections = 200,
        .timeout_s = 2,
        .ops = &ops,
    };
    struct http_server *server;
    if (http_server_create(&config, &server, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    (void)fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    http_server_destroy(server);
    return 0;
}
