/*
 * Event streams and consoles. All of them belong to one thread and its loop;
 * others hand in what has happened as messages, in order. A stream that is no
 * longer in the list has ended, and messages for it are dropped.
 */
#include "api/api_int.h"

#include "base/io.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    QUEUE_HIGH = 1 << 20,    /* bytes for a slow reader before its source waits */
    RETRY_MS = 20,           /* until a source that waits is tried again */
    CONSOLE_READ = 16 << 10, /* a console's bytes at a time */
    INPUT_MAX = 256 << 10,   /* typed ahead into a console that does not read */
    CHANGES_MAX = 100
};

/* Between looks at whether a caller's time is over. */
#define CHECK_NS 1000000000ull

struct stream {
    struct streams *streams;
    struct stream *next;
    struct http_exchange *exchange;
    struct compute_watch *watch; /* of an event stream; NULL: a console */
    int fd;                      /* of a console */
    char project[64];            /* what the caller was bound to */
    char id[API_ID_BYTES];       /* of a console's instance */
    struct identity identity;    /* of the caller, when looked at */
    unsigned turn;               /* of the accounts, when the caller was looked at */
    uint64_t checked_ns;
    struct loop_fd *handler;
    struct loop_timer *retry;
    unsigned char *input; /* typed, and not yet taken by the console */
    size_t input_len;
};

struct streams {
    struct api *api;
    struct loop *loop;
    pthread_t thread;
    bool is_started;
    struct stream *first;
};

/* What another thread tells the loop's. */
struct message {
    struct streams *streams;
    struct stream *opened;          /* a new stream, or */
    struct http_exchange *exchange; /* NULL: accounts have changed */
    size_t len;                     /* 0: the peer has gone */
    unsigned char data[];
};

static void free_stream(struct stream *stream)
{
    loop_remove_fd(stream->handler);
    loop_remove_timer(stream->retry);
    compute_watch_close(stream->watch);
    if (stream->fd >= 0) {
        (void)close(stream->fd);
    }
    identity_done(&stream->identity);
    http_end(stream->exchange);
    free(stream->input);
    free(stream);
}

static void end_stream(struct stream *stream)
{
    for (struct stream **at = &stream->streams->first; *at != NULL; at = &(*at)->next) {
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    }
    free_stream(stream);
}

/*
 * Whether the caller may still have what it is told: tokens are revoked and expire, users sign out,
 * are deleted, or bound to another project, while a stream goes on.
 */
static bool is_still_allowed(struct stream *stream)
{
    struct api *api = stream->streams->api;
    unsigned turn = atomic_load(&api->accounts_turn);
    uint64_t now_ns = clock_monotonic_ns();
    struct identity identity;
    struct fault fault;
    if (turn == stream->turn && now_ns - stream->checked_ns < CHECK_NS) {
        return true;
    }
    stream->turn = turn;
    stream->checked_ns = now_ns;
    if (auth_identify(api, stream->exchange, stream->watch == NULL, &identity, &fault) != 0) {
        return false;
    }
    identity_done(&stream->identity);
    stream->identity = identity;
    return identity.role >= (stream->watch != NULL ? ROLE_VIEWER : ROLE_MEMBER) &&
           strcmp(identity.project, stream->project) == 0 &&
           permit_stream(api, &stream->identity, stream->watch == NULL ? stream->id : NULL);
}

static struct stream *find(struct streams *streams, const struct http_exchange *exchange)
{
    struct stream *stream = streams->first;
    while (stream != NULL && stream->exchange != exchange) {
        stream = stream->next;
    }
    return stream;
}

static void set_events(struct stream *stream, bool is_reading)
{
    uint32_t events = (is_reading ? EPOLLIN : 0u) | (stream->input_len > 0 ? EPOLLOUT : 0u);
    if (loop_set_events(stream->handler, events) != 0) {
        end_stream(stream);
    }
}

/* The reader is slow: its source waits a little, and nothing piles up. */
static bool is_held_back(struct stream *stream)
{
    if (http_queued(stream->exchange) < QUEUE_HIGH) {
        return false;
    }
    loop_arm_timer(stream->retry, clock_monotonic_ns() + RETRY_MS * 1000000ull);
    set_events(stream, false);
    return true;
}

static int send_change(struct stream *stream, const json_t *change)
{
    char head[128];
    const char *kind = json_string_value(json_object_get(change, "kind"));
    json_t *object = json_object_get(change, "object");
    static const enum kind shortened[] = {KIND_ALARM, KIND_HOOK};
    for (size_t i = 0; i < ARRAY_LEN(shortened); i++) {
        if (kind != NULL && strcmp(kind, kind_spec(shortened[i])->name) == 0) {
            shown_shorten(&stream->identity, shortened[i], object);
        }
    }
    char *text = json_dumps(change, JSON_COMPACT);
    if (text == NULL) {
        return -ENOMEM;
    }
    (void)snprintf(head, sizeof(head), "id: %lld\nevent: %s\ndata: ",
                   (long long)json_integer_value(json_object_get(change, "revision")),
                   kind != NULL ? kind : "change");
    char *event = malloc(strlen(head) + strlen(text) + 3);
    int error = -ENOMEM;
    if (event != NULL) {
        int len = sprintf(event, "%s%s\n\n", head, text);
        error = http_send(stream->exchange, event, (size_t)len, true);
    }
    free(event);
    free(text);
    return error;
}

static void on_changes(void *opaque, MAYBE_UNUSED uint32_t events)
{
    struct stream *stream = opaque;
    struct api *api = stream->streams->api;
    struct fault fault = {0};
    json_t *changes = NULL;
    if (!is_still_allowed(stream)) {
        end_stream(stream);
        return;
    }
    if (is_held_back(stream)) {
        return;
    }
    int error = compute_watch_next(stream->watch, CHANGES_MAX, &changes, &fault);
    for (size_t i = 0; error == 0 && i < json_array_size(changes); i++) {
        json_t *change = json_array_get(changes, i);
        error = permit_told(api, &stream->identity, change) ? send_change(stream, change) : 0;
    }
    json_decref(changes);
    if (error == -ESTALE) {
        static const char stale[] = "event: stale\ndata: {}\n\n";
        (void)http_send(stream->exchange, stale, sizeof(stale) - 1, true);
    }
    if (error != 0) {
        end_stream(stream);
    }
}

static void write_input(struct stream *stream)
{
    ssize_t written = write(stream->fd, stream->input, stream->input_len);
    if (written < 0 && errno != EAGAIN && errno != EINTR) {
        end_stream(stream);
        return;
    }
    if (written > 0) {
        stream->input_len -= (size_t)written;
        memmove(stream->input, stream->input + written, stream->input_len);
    }
    set_events(stream, true);
}

static void on_console(void *opaque, uint32_t events)
{
    struct stream *stream = opaque;
    unsigned char data[CONSOLE_READ];
    if (!is_still_allowed(stream)) {
        end_stream(stream);
        return;
    }
    if ((events & EPOLLOUT) != 0) {
        write_input(stream);
        return; /* what is to be read is told again */
    }
    if (is_held_back(stream)) {
        return;
    }
    ssize_t len = read(stream->fd, data, sizeof(data));
    if (len < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (len <= 0 || http_send(stream->exchange, data, (size_t)len, false) != 0) {
        end_stream(stream);
    }
}

static void on_retry(void *opaque)
{
    struct stream *stream = opaque;
    if (!is_held_back(stream)) {
        set_events(stream, true);
    }
}

static void add_stream(struct streams *streams, struct stream *stream)
{
    int fd = stream->watch != NULL ? compute_watch_fd(stream->watch) : stream->fd;
    stream->next = streams->first;
    streams->first = stream;
    if (loop_add_timer(streams->loop, on_retry, stream, &stream->retry) != 0 ||
        loop_add_fd(streams->loop, fd, EPOLLIN, stream->watch != NULL ? on_changes : on_console,
                    stream, &stream->handler) != 0) {
        end_stream(stream);
        return;
    }
    if (stream->watch != NULL) {
        /* A comment, which fails if the peer left before the stream was in the list. */
        if (http_send(stream->exchange, ":\n\n", 3, true) != 0) {
            end_stream(stream);
        } else {
            on_changes(stream, EPOLLIN); /* what is there already */
        }
    }
}

static void take_input(struct stream *stream, const unsigned char *data, size_t len)
{
    bool is_taken =
        stream->watch == NULL && stream->input_len + len <= INPUT_MAX && is_still_allowed(stream);
    unsigned char *input = is_taken ? realloc(stream->input, stream->input_len + len) : NULL;
    if (input == NULL) {
        end_stream(stream);
        return;
    }
    memcpy(input + stream->input_len, data, len);
    stream->input = input;
    stream->input_len += len;
    write_input(stream);
}

static void end_forbidden(struct streams *streams)
{
    struct stream *next;
    for (struct stream *stream = streams->first; stream != NULL; stream = next) {
        next = stream->next;
        if (!is_still_allowed(stream)) {
            end_stream(stream);
        }
    }
}

static void take_message(void *opaque)
{
    struct message *message = opaque;
    struct streams *streams = message->streams;
    struct stream *stream = message->opened != NULL ? NULL : find(streams, message->exchange);
    if (message->exchange == NULL) {
        end_forbidden(streams);
    } else if (message->opened != NULL) {
        add_stream(streams, message->opened);
    } else if (stream != NULL && message->len > 0) {
        take_input(stream, message->data, message->len);
    } else if (stream != NULL) {
        end_stream(stream);
    }
    free(message);
}

static int send_message(struct streams *streams, struct stream *opened,
                        struct http_exchange *exchange, const void *data, size_t len)
{
    struct message *message = malloc(sizeof(*message) + len);
    if (message == NULL) {
        return -ENOMEM;
    }
    *message =
        (struct message){.streams = streams, .opened = opened, .exchange = exchange, .len = len};
    if (len > 0) {
        memcpy(message->data, data, len);
    }
    int error = loop_defer(streams->loop, take_message, message);
    if (error != 0) {
        free(message);
    }
    return error;
}

/* It is looked at whether the caller is allowed before the first thing is told. */
static struct stream *stream_new(struct streams *streams, const struct api_call *call)
{
    struct stream *stream = calloc(1, sizeof(*stream));
    if (stream != NULL) {
        stream->streams = streams;
        stream->exchange = call->exchange;
        stream->fd = -1;
        (void)snprintf(stream->project, sizeof(stream->project), "%s", call->identity.project);
        (void)snprintf(stream->id, sizeof(stream->id), "%s", call->id);
    }
    return stream;
}

int streams_watch(struct api *api, struct api_call *call, MAYBE_UNUSED json_t **ret_answer,
                  struct fault *fault)
{
    const char *since = http_exchange_header(call->exchange, "last-event-id");
    since = since != NULL ? since : http_exchange_query(call->exchange, "since");
    char *end = NULL;
    unsigned long long revision = since != NULL ? strtoull(since, &end, 10) : 0;
    if (since != NULL && (*end != 0 || since[0] < '0' || since[0] > '9')) {
        return fault_set(fault, FAULT_INVALID, "since", "since must be a revision, a number");
    }
    struct stream *stream = stream_new(api->streams, call);
    if (stream == NULL) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
    }
    int error =
        compute_watch_open(api->config.compute, &call->compute, revision, &stream->watch, fault);
    if (error != 0) {
        free(stream);
        return error;
    }
    audit_write(api->audit, call, 200, NULL);
    call->is_streaming = true;
    http_stream_begin(call->exchange);
    if (send_message(api->streams, stream, call->exchange, NULL, 0) != 0) {
        free_stream(stream);
    }
    return 0;
}

int streams_console(struct streams *streams, const struct api_call *call, int fd)
{
    struct stream *stream = stream_new(streams, call);
    if (stream != NULL && io_set_nonblock(fd) == 0) {
        stream->fd = fd;
        if (send_message(streams, stream, call->exchange, NULL, 0) == 0) {
            return 0;
        }
    }
    free(stream);
    (void)close(fd);
    return -ENOMEM;
}

void streams_console_input(struct streams *streams, struct http_exchange *exchange,
                           const void *data, size_t len)
{
    if (len > 0 && send_message(streams, NULL, exchange, data, len) != 0) {
        streams_gone(streams, exchange); /* input must not be lost without a sign */
    }
}

void streams_gone(struct streams *streams, struct http_exchange *exchange)
{
    (void)send_message(streams, NULL, exchange, NULL, 0);
}

void streams_recheck(struct streams *streams)
{
    (void)atomic_fetch_add(&streams->api->accounts_turn, 1);
    (void)send_message(streams, NULL, NULL, NULL, 0); /* else they are looked at before they tell */
}

static void *run(void *opaque)
{
    struct streams *streams = opaque;
    if (loop_run(streams->loop) != 0) {
        log_error("event streams and consoles have ended: their event loop failed");
    }
    return NULL;
}

int streams_create(struct api *api, struct streams **ret_streams)
{
    struct streams *streams = calloc(1, sizeof(*streams));
    if (streams == NULL) {
        return -ENOMEM;
    }
    streams->api = api;
    int error = loop_create(&streams->loop);
    if (error == 0) {
        error = thread_start(&streams->thread, "api/streams", run, streams);
    }
    streams->is_started = error == 0;
    if (error != 0) {
        streams_destroy(streams);
        return error;
    }
    *ret_streams = streams;
    return 0;
}

void streams_destroy(struct streams *streams)
{
    if (streams == NULL) {
        return;
    }
    if (streams->is_started) {
        loop_stop(streams->loop);
        (void)pthread_join(streams->thread, NULL);
    }
    while (streams->first != NULL) {
        struct stream *stream = streams->first;
        streams->first = stream->next;
        free_stream(stream);
    }
    loop_destroy(streams->loop);
    free(streams);
}
