/*
 * The REST interface: one table of operations, and what stands before and
 * after each of them: who asks, may they, is the request well formed, the
 * answer, the audit log.
 *
 * Plugs into the HTTP server as its struct http_ops. Requests are answered by
 * threads of its own ("api/0" ...), since the store waits for the disk; event
 * streams and consoles are carried by one more ("api/streams").
 */
#ifndef CORBEL_API_API_H
#define CORBEL_API_API_H

#include "compute/compute.h"
#include "http/http.h"
#include "store/store.h"

struct api;
struct metrics;

struct api_config {
    struct compute *compute; /* outlive it */
    struct metrics *metrics;
    struct store *store;
    const char *audit_path; /* one JSON line a call; NULL: none */
    unsigned workers;       /* 0: 8 */
    unsigned calls_per_s;   /* of one token or address, with as much again as burst; 0: 100 */
    /* Takes requests outside /v1/, on the HTTP server's thread; NULL: they get 404. */
    void (*other)(struct http_exchange *exchange);
    const char *const *urls; /* of this server by TCP, for people; outlive it */
    size_t url_count;
    uid_t owner; /* whose calls by the unix socket are an administrator's, beside root's */
};

int api_create(const struct api_config *config, struct api **ret_api, struct err *err) MUST_CHECK;

/* After http_server_destroy(). Accepts NULL. */
void api_destroy(struct api *api);

/* Deletes tokens and sessions that expired a week ago: adds how many to *count. Any thread; waits. */
int api_prune(struct api *api, unsigned *count, struct fault *fault) MUST_CHECK;

/* For struct http_config, with the api as opaque. */
extern const struct http_ops api_http_ops;

/* The description of the interface, OpenAPI 3.0; the caller's. NULL without memory. */
json_t *api_openapi(void);

#endif
