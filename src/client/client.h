/*
 * A client of the interface that corbeld serves (docs/api.md): calls, the wait
 * for what takes long, event streams and consoles.
 *
 * Where the daemon is: a URL (http:// or https://, with an API token), or a
 * unix socket: one that is named, the user's own, or the host's
 * (/run/corbel/api.sock). A user without any daemon gets one of his own, which
 * is started here and stays.
 *
 * One thread uses a client at a time. Errors are the server's own sentences:
 * -EINVAL (400), -EPERM (401, 403), -EDQUOT (over a quota, or what the host has),
 * -ENOENT (404), -EEXIST and -EBUSY (409, 412), -ENOTCONN when no daemon can be
 * reached, -EIO for the rest.
 */
#ifndef CORBEL_CLIENT_CLIENT_H
#define CORBEL_CLIENT_CLIENT_H

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>

struct client;

struct client_config {
    const char *host;    /* http://..., https://..., unix:/PATH; NULL or "": as above */
    const char *token;   /* cbl_...; NULL: none */
    bool may_start;      /* a daemon, when there is none */
    const char *program; /* that is the daemon; NULL: corbeld beside this program */
};

/* Finds the daemon, or starts it. Nothing is asked of one behind a URL yet. */
int client_open(const struct client_config *config, struct client **ret_client, struct err *err)
    MUST_CHECK;
void client_close(struct client *client); /* accepts NULL */

/* Whether client_open() started the daemon. */
bool client_has_started(const struct client *client);
/* The unix socket that it is reached by, the client's own; NULL: by TCP. */
const char *client_socket(const struct client *client);

/*
 * One call. path begins with "/v1/"; body may be NULL. The answer is the
 * caller's; ret_answer may be NULL.
 */
int client_call(struct client *client, const char *method, const char *path, const json_t *body,
                json_t **ret_answer, struct err *err) MUST_CHECK;

/*
 * One call that carries bytes: data (NULL: none) goes out, and what comes back is in new memory, the
 * caller's, where ret_data is not NULL. *ret_is_end: the answer said that there are no more
 * (x-corbel-end).
 */
int client_transfer(struct client *client, const char *method, const char *path, const void *data,
                    size_t len, void **ret_data, size_t *ret_len, bool *ret_is_end, struct err *err)
    MUST_CHECK;

/* As client_call(), for a creation that must not happen twice: it is repeated with one token when
 * the connection ends before the answer has come. */
int client_create(struct client *client, const char *path, const json_t *body, json_t **ret_answer,
                  struct err *err) MUST_CHECK;

/* Told of an operation at each look at it. */
typedef void (*client_progress_fn)(void *opaque, const json_t *operation);

/*
 * Waits until the "operation" of an answer has ended; 0 at once when it has
 * none. -EIO and its error when it failed, -ECANCELED. A daemon that comes back
 * meanwhile is asked again.
 */
int client_wait(struct client *client, const json_t *answer, client_progress_fn progress,
                void *opaque, struct err *err) MUST_CHECK;

/*
 * An event stream: on_event() gets each event's data, until it returns non-zero,
 * which is returned, or the stream ends (0).
 */
typedef int (*client_event_fn)(void *opaque, const json_t *data);
int client_watch(struct client *client, const char *path, client_event_fn on_event, void *opaque,
                 struct err *err) MUST_CHECK;

/* ---- stream.c: a WebSocket that carries bytes ---- */

struct client_stream;

int client_stream_open(struct client *client, const char *path, struct client_stream **ret_stream,
                       struct err *err) MUST_CHECK;
void client_stream_close(struct client_stream *stream);   /* accepts NULL */
int client_stream_fd(const struct client_stream *stream); /* to poll for input */
/*
 * Bytes that have come: how many, 0 at the stream's end, -EAGAIN when there is
 * nothing now. Has to be asked until then before the descriptor is polled.
 */
ssize_t client_stream_read(struct client_stream *stream, void *data, size_t len) MUST_CHECK;
/* All of them; waits while the peer does not read. */
int client_stream_write(struct client_stream *stream, const void *data, size_t len) MUST_CHECK;

/* Appends a word of a path or query, with what is special in URLs escaped. */
int client_escape(char *out, size_t size, const char *word) MUST_CHECK;

#endif
