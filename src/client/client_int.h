/* Between the files of client. The contract is client.h. */
#ifndef CORBEL_CLIENT_CLIENT_INT_H
#define CORBEL_CLIENT_CLIENT_INT_H

#include "client/client.h"

#include <curl/curl.h>
#include <limits.h>

struct client {
    CURL *curl;
    char base[PATH_MAX];     /* "http://localhost", "https://host:8480" */
    char socket[PATH_MAX];   /* empty: by TCP */
    char authorization[256]; /* the header; empty: none */
    char why[CURL_ERROR_SIZE];
    bool has_started;
};

/* What every handle of ours is set to; the path is not part of it. */
int client_prepare(struct client *client, CURL *curl, const char *path, struct err *err) MUST_CHECK;
/* The sentence for a connection that failed. */
int client_unreachable(const struct client *client, const char *why, struct err *err);

/*
 * start.c: the user's own daemon: 0 when socket takes connections; 1 when it
 * was started for that. Two at once start one. program as in client_config.
 */
int start_daemon(const char *socket, const char *program, struct err *err) MUST_CHECK;
/* Whether somebody listens there. */
bool start_is_listening(const char *socket);

#endif
