/*
 * One letter to a webhook: a POST by libcurl, whose owner performs it. What
 * the receiver says is not kept; where it sends on to is not followed.
 *
 * Threads: one at a time.
 */
#ifndef CORBEL_METRICS_POST_H
#define CORBEL_METRICS_POST_H

#include "metrics/metrics.h"

#include <curl/curl.h>
#include <stdbool.h>

struct post_letter {
    const char *url;
    const char *body;
    const char *token;  /* the same each time it is tried */
    const char *secret; /* it is signed by; NULL: it is not */
};

struct post {
    CURL *curl;
    struct curl_slist *headers;
    enum metrics_reach reach;
    const char *refusal; /* of the address; NULL: none */
    size_t received;
    bool is_cut; /* the receiver says more than anyone wants to hear */
    char why[CURL_ERROR_SIZE];
};

/* Makes post->curl ready. -ENOMEM. post_done() also when it failed. */
int post_begin(struct post *post, enum metrics_reach reach, const struct post_letter *letter)
    MUST_CHECK;
/* After it was performed: 0; -EIO it may go better another time, -EPERM it will not, with post->why.
 * *ret_status is the answer's, 0 without one. */
int post_end(struct post *post, CURLcode code, unsigned *ret_status) MUST_CHECK;
void post_done(struct post *post);

#endif
