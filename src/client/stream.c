/*
 * A WebSocket (RFC 6455) over a connection that libcurl makes, so that unix
 * sockets and TLS are the same to it. Binary messages are the bytes of a stream.
 */
#include "client/client_int.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define HEAD_MAX 8192
#define FRAME_MAX 4096u /* bytes that one message of ours carries */
#define WAIT_MS 10000

enum opcode { OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

struct client_stream {
    CURL *curl;
    int fd;
    unsigned char head[14]; /* of the frame that is being read */
    size_t head_len;
    uint64_t left; /* of its bytes */
    bool is_data, is_over;
};

static int wait_for(const struct client_stream *stream, short events)
{
    struct pollfd pfd = {.fd = stream->fd, .events = events};
    int n = poll(&pfd, 1, WAIT_MS);

    return n > 0 || (n < 0 && errno == EINTR) ? 0 : n == 0 ? -ETIMEDOUT : -errno;
}

static int send_all(struct client_stream *stream, const void *data, size_t len)
{
    const char *at = data;

    while (len > 0) {
        size_t sent = 0;
        CURLcode code = curl_easy_send(stream->curl, at, len, &sent);
        int rc = code == CURLE_AGAIN ? wait_for(stream, POLLOUT) : code == CURLE_OK ? 0 : -EPIPE;

        if (rc < 0 && rc != -ETIMEDOUT) {
            return rc;
        }
        at += sent;
        len -= sent;
    }
    return 0;
}

/* 0 at the end of the connection, -EAGAIN when nothing is there. */
static ssize_t receive(struct client_stream *stream, void *data, size_t len)
{
    size_t got = 0;
    CURLcode code = curl_easy_recv(stream->curl, data, len, &got);

    if (code == CURLE_AGAIN) {
        return -EAGAIN;
    }
    return code == CURLE_OK ? (ssize_t)got : 0;
}

static void encode_key(const unsigned char bytes[16], char out[25])
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < 16; i += 3) {
        uint32_t group = (uint32_t)bytes[i] << 16 | (i + 1 < 16 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                         (i + 2 < 16 ? (uint32_t)bytes[i + 2] : 0);

        for (unsigned k = 0; k < 4; k++) {
            *out++ = i + k <= 16 ? letters[group >> (18 - 6 * k) & 63] : '=';
        }
    }
    *out = '\0';
}

static int send_request(struct client_stream *stream, const struct client *client, const char *path,
                        struct err *err)
{
    unsigned char random[16];
    char key[25], request[4096];
    const char *host = strstr(client->base, "://") + 3;
    int n;

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return err_set_errno(err, -errno, "no random bytes");
    }
    encode_key(random, key);
    n = snprintf(request, sizeof(request),
                 "GET %s HTTP/1.1\r\nHost: %s\r\n%s%sUpgrade: websocket\r\n"
                 "Connection: Upgrade\r\nSec-WebSocket-Key: %s\r\n"
                 "Sec-WebSocket-Version: 13\r\n\r\n",
                 path, host, client->authorization, client->authorization[0] != '\0' ? "\r\n" : "",
                 key);
    if (n < 0 || (size_t)n >= sizeof(request)) {
        return err_set(err, -EINVAL, "the call is too long");
    }
    if (send_all(stream, request, (size_t)n) < 0) {
        return err_set(err, -ENOTCONN, "the daemon closed the connection");
    }
    return 0;
}

/* A byte at a time up to the empty line: what follows belongs to the stream. */
static int read_status(struct client_stream *stream, struct err *err)
{
    char head[HEAD_MAX];
    size_t len = 0;
    unsigned status = 0;

    while (len < 4 || memcmp(head + len - 4, "\r\n\r\n", 4) != 0) {
        ssize_t n = len < sizeof(head) ? receive(stream, head + len, 1) : 0;

        if (n == -EAGAIN && wait_for(stream, POLLIN) == 0) {
            continue;
        }
        if (n <= 0) {
            return err_set(err, -ENOTCONN, "the daemon closed the connection");
        }
        len++;
    }
    head[len - 1] = '\0';
    if (sscanf(head, "HTTP/1.1 %3u", &status) != 1) { // NOLINT(cert-err34-c): three digits
        return err_set(err, -EIO, "the daemon gives no answer of HTTP");
    }
    return (int)status;
}

static int open_connection(struct client_stream *stream, struct client *client, struct err *err)
{
    curl_socket_t fd = CURL_SOCKET_BAD;
    CURLcode code;
    int rc;

    stream->curl = curl_easy_init();
    if (stream->curl == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = client_prepare(client, stream->curl, "/", err);
    if (rc < 0) {
        return rc;
    }
    code = curl_easy_setopt(stream->curl, CURLOPT_CONNECT_ONLY, 1L);
    code = code == CURLE_OK ? curl_easy_perform(stream->curl) : code;
    code = code == CURLE_OK ? curl_easy_getinfo(stream->curl, CURLINFO_ACTIVESOCKET, &fd) : code;
    if (code != CURLE_OK || fd == CURL_SOCKET_BAD) {
        return client_unreachable(
            client, client->why[0] != '\0' ? client->why : curl_easy_strerror(code), err);
    }
    stream->fd = fd;
    return 0;
}

int client_stream_open(struct client *client, const char *path, struct client_stream **ret_stream,
                       struct err *err)
{
    struct client_stream *stream = calloc(1, sizeof(*stream));
    int rc = stream != NULL ? 0 : err_set(err, -ENOMEM, "out of memory");

    rc = rc < 0 ? rc : open_connection(stream, client, err);
    rc = rc < 0 ? rc : send_request(stream, client, path, err);
    rc = rc < 0 ? rc : read_status(stream, err);
    if (rc >= 0 && rc != 101) {
        rc = rc == 401 || rc == 403 ? err_set(err, -EPERM, "you may not do this")
             : rc == 404            ? err_set(err, -ENOENT, "there is no such instance")
             : rc == 409            ? err_set(err, -EBUSY, "the instance does not run")
                                    : err_set(err, -EIO, "the daemon answers %d", rc);
    }
    if (rc < 0) {
        client_stream_close(stream);
        return rc;
    }
    *ret_stream = stream;
    return 0;
}

void client_stream_close(struct client_stream *stream)
{
    if (stream != NULL) {
        curl_easy_cleanup(stream->curl);
        free(stream);
    }
}

int client_stream_fd(const struct client_stream *stream)
{
    return stream->fd;
}

/* One frame, masked as a client's must be (RFC 6455 5.3). */
static int send_frame(struct client_stream *stream, enum opcode opcode, const unsigned char *data,
                      size_t len)
{
    unsigned char frame[8 + FRAME_MAX];
    size_t head = len < 126 ? 2 : 4;

    frame[0] = (unsigned char)(0x80u | opcode);
    frame[1] = (unsigned char)(0x80u | (len < 126 ? len : 126));
    frame[2] = (unsigned char)(len >> 8);
    frame[3] = (unsigned char)len;
    if (getrandom(frame + head, 4, 0) != 4) {
        return -EIO;
    }
    for (size_t i = 0; i < len; i++) {
        frame[head + 4 + i] = data[i] ^ frame[head + i % 4];
    }
    return send_all(stream, frame, head + 4 + len);
}

int client_stream_write(struct client_stream *stream, const void *data, size_t len)
{
    const unsigned char *at = data;
    int rc = 0;

    while (rc == 0 && len > 0) {
        size_t part = len < FRAME_MAX ? len : FRAME_MAX;

        rc = send_frame(stream, OP_BINARY, at, part);
        at += part;
        len -= part;
    }
    return rc;
}

/* The length of a frame's head, as far as it is known from what has come of it. */
static size_t head_size(const struct client_stream *stream)
{
    unsigned short_len;

    if (stream->head_len < 2) {
        return 2;
    }
    short_len = stream->head[1] & 127u;
    return short_len == 127 ? 10 : short_len == 126 ? 4 : 2;
}

/* Reads on in a frame's head: 1 when it is whole, 0 at the end, -EAGAIN. */
static ssize_t read_head(struct client_stream *stream)
{
    while (stream->head_len < head_size(stream)) {
        ssize_t n =
            receive(stream, stream->head + stream->head_len, head_size(stream) - stream->head_len);

        if (n <= 0) {
            return n;
        }
        stream->head_len += (size_t)n;
    }
    stream->left = stream->head[1] & 127u;
    if (stream->left >= 126) {
        stream->left = 0;
        for (size_t i = 2; i < stream->head_len; i++) {
            stream->left = stream->left << 8 | stream->head[i];
        }
    }
    return 1;
}

/* What a frame is about, once its head is there: 0 when the stream ends with it. */
static int begin_frame(struct client_stream *stream)
{
    unsigned opcode = stream->head[0] & 15u;

    stream->is_data = opcode < OP_CLOSE;
    if (opcode == OP_CLOSE) {
        stream->is_over = true;
        return 0;
    }
    /* A ping's words need not come back for the peer to know that we live. */
    return opcode != OP_PING || send_frame(stream, OP_PONG, NULL, 0) == 0;
}

ssize_t client_stream_read(struct client_stream *stream, void *data, size_t len)
{
    while (!stream->is_over) {
        unsigned char dropped[128];
        bool is_head = stream->left == 0;
        ssize_t n = is_head ? read_head(stream) : 0;

        if (is_head && n > 0) {
            stream->head_len = 0;
            if (begin_frame(stream) == 0) {
                break;
            }
            continue;
        }
        if (!is_head) {
            size_t room = stream->is_data ? len : sizeof(dropped);

            n = receive(stream, stream->is_data ? data : dropped,
                        stream->left < room ? (size_t)stream->left : room);
        }
        if (n == -EAGAIN) {
            return n;
        }
        if (n <= 0) {
            break;
        }
        stream->left -= (uint64_t)n;
        if (stream->is_data) {
            return n;
        }
    }
    stream->is_over = true;
    return 0;
}
