/*
 * Webhooks of events (compute/hook.c). One thread tells all of them, many at
 * once: who is slow, or does not answer, keeps nobody else waiting. One that
 * fails is tried again after 1 s, 2 s, 4 s and so on, and is asked for anew
 * each time: it may have been deleted, or lead somewhere else.
 *
 * What has not been told when this ends is known to the store.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "metrics/metrics_int.h"
#include "metrics/post.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_AT_ONCE 128u
#define MAX_OF_PROJECT 8u
#define MAX_WAIT_S 900u
#define POLL_MS 10000

/* One hook; it has a post->curl while it is being told. */
struct line {
    struct line *next;
    char id[64], project[64];
    json_t *hook;
    bool is_seen;      /* it is there still */
    bool may_be_due;   /* there may be an event */
    uint64_t due_ns;   /* not before */
    unsigned failures; /* in a row */
    json_t *event;     /* that it is being told */
    uint64_t began_ns;
    struct post post;
};

struct event_hooks {
    struct compute *compute;
    enum metrics_reach reach;
    CURLM *multi;
    struct mutex lock; /* the next line */
    bool is_closing, has_news;
    pthread_t thread;
    bool has_thread;

    /* The thread's. */
    struct line *lines;
    unsigned count; /* being told */
};

static const char *text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text != NULL ? text : "";
}

/* ---- lines ---- */

static void end_post(struct event_hooks *hooks, struct line *line)
{
    if (line->post.curl != NULL) {
        (void)curl_multi_remove_handle(hooks->multi, line->post.curl);
        post_done(&line->post);
        hooks->count--;
    }
    json_decref(line->event);
    line->event = NULL;
}

static void line_free(struct event_hooks *hooks, struct line *line)
{
    end_post(hooks, line);
    json_decref(line->hook);
    free(line);
}

static int see_hook(void *opaque, const json_t *hook)
{
    struct event_hooks *hooks = opaque;
    struct line **at = &hooks->lines;

    while (*at != NULL && strcmp((*at)->id, text_in(hook, "id")) != 0) {
        at = &(*at)->next;
    }
    if (*at == NULL) {
        struct line *line = calloc(1, sizeof(*line));

        if (line == NULL) {
            return 0; /* another time */
        }
        (void)snprintf(line->id, sizeof(line->id), "%s", text_in(hook, "id"));
        (void)snprintf(line->project, sizeof(line->project), "%s", text_in(hook, "project"));
        line->hook = json_deep_copy(hook);
        *at = line;
    }
    (*at)->is_seen = true;
    (*at)->may_be_due = true;
    return 0;
}

static void forget_gone(struct event_hooks *hooks)
{
    struct line **at = &hooks->lines;

    while (*at != NULL) {
        struct line *line = *at;

        if (line->is_seen) {
            line->is_seen = false;
            at = &line->next;
        } else {
            *at = line->next;
            line_free(hooks, line);
        }
    }
}

static void look(struct event_hooks *hooks)
{
    struct fault fault;

    if (compute_each_hook(hooks->compute, see_hook, hooks, &fault) < 0) {
        log_warn("hooks cannot be read: %s, ignoring", fault.text);
        return;
    }
    forget_gone(hooks);
}

/* ---- telling ---- */

/* After so many failures in a row. */
static uint64_t wait_s(unsigned failures)
{
    return failures > 10 ? MAX_WAIT_S : failures > 0 ? 1u << (failures - 1) : 0;
}

/* Takes note of a try. */
static void note(struct event_hooks *hooks, struct line *line, int rc, unsigned status)
{
    struct compute_delivery delivery = {
        .event = line->event,
        .result = rc == 0        ? DELIVERY_TOLD
                  : rc == -EPERM ? DELIVERY_REFUSED
                                 : DELIVERY_FAILED,
        .status = status,
        .took_ms = (unsigned)((clock_monotonic_ns() - line->began_ns) / 1000000),
        .complaint = rc == 0 ? NULL : line->post.why,
    };
    struct fault fault;
    int noted = compute_hook_note(hooks->compute, line->hook, &delivery, &fault);

    if (noted < 0 && fault.code != FAULT_NOT_FOUND) {
        log_warn("the hook %s cannot be noted: %s, ignoring", line->id, fault.text);
    }
    line->failures = rc == -EIO || noted < 0 ? line->failures + 1 : 0;
    line->due_ns = clock_monotonic_ns() + wait_s(line->failures) * NS_PER_S;
    line->may_be_due = noted != -ENOENT;
}

static void begin(struct event_hooks *hooks, struct line *line)
{
    json_t *letter = NULL;
    char *body, token[160];
    struct fault fault;
    int rc = compute_hook_next(hooks->compute, line->hook, &letter, &fault);

    line->may_be_due = rc > 0;
    if (rc <= 0) {
        if (rc < 0 && fault.code != FAULT_NOT_FOUND) {
            log_warn("events of the hook %s cannot be read: %s, ignoring", line->id, fault.text);
        }
        return;
    }
    line->event = json_incref(json_object_get(letter, "event"));
    line->began_ns = clock_monotonic_ns();
    (void)snprintf(token, sizeof(token), "%.60s.%.60s", line->id, text_in(line->event, "id"));
    body = json_dumps(line->event, JSON_COMPACT);
    rc = post_begin(&line->post, hooks->reach,
                    &(struct post_letter){.url = text_in(letter, "webhook"),
                                          .body = body,
                                          .token = token,
                                          .secret = text_in(letter, "secret")});
    free(body);
    json_decref(letter);
    if (rc == 0 && (curl_easy_setopt(line->post.curl, CURLOPT_PRIVATE, line) != CURLE_OK ||
                    curl_multi_add_handle(hooks->multi, line->post.curl) != CURLM_OK)) {
        rc = -ENOMEM;
    }
    hooks->count += line->post.curl != NULL;
    if (rc < 0) { /* a URL that is none is refused when it is performed */
        (void)snprintf(line->post.why, sizeof(line->post.why), "out of memory");
        note(hooks, line, -EIO, 0);
        end_post(hooks, line);
    }
}

static unsigned count_of_project(const struct event_hooks *hooks, const char *project)
{
    unsigned count = 0;

    for (const struct line *line = hooks->lines; line != NULL; line = line->next) {
        count += line->event != NULL && strcmp(line->project, project) == 0;
    }
    return count;
}

/* All that can begin now. Until when there is nothing else to begin, in milliseconds. */
static int begin_all(struct event_hooks *hooks)
{
    uint64_t now_ns = clock_monotonic_ns(), next_ns = now_ns + POLL_MS * 1000000ull;

    for (struct line *line = hooks->lines; line != NULL; line = line->next) {
        if (!line->may_be_due || line->event != NULL) {
            continue;
        }
        if (line->due_ns > now_ns) {
            next_ns = line->due_ns < next_ns ? line->due_ns : next_ns;
        } else if (hooks->count < MAX_AT_ONCE &&
                   count_of_project(hooks, line->project) < MAX_OF_PROJECT) {
            begin(hooks, line);
        } /* else one that ends makes room */
    }
    return (int)((next_ns - now_ns) / 1000000) + 1;
}

static void finish_all(struct event_hooks *hooks)
{
    int left;

    for (CURLMsg *message; (message = curl_multi_info_read(hooks->multi, &left)) != NULL;) {
        struct line *line = NULL;
        unsigned status = 0;
        int rc;

        if (message->msg != CURLMSG_DONE ||
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)(void *)&line) !=
                CURLE_OK) {
            continue;
        }
        rc = post_end(&line->post, message->data.result, &status);
        note(hooks, line, rc, status);
        end_post(hooks, line);
    }
}

static bool goes_on(struct event_hooks *hooks, bool *ret_has_news)
{
    bool is_closing;

    mutex_lock(&hooks->lock);
    *ret_has_news = hooks->has_news;
    hooks->has_news = false;
    is_closing = hooks->is_closing;
    mutex_unlock(&hooks->lock);
    return !is_closing;
}

static void *event_hooks_main(void *opaque)
{
    struct event_hooks *hooks = opaque;
    bool has_news;

    while (goes_on(hooks, &has_news)) {
        int running; /* each of them ends with a message */

        if (has_news) {
            look(hooks);
        }
        if (curl_multi_perform(hooks->multi, &running) != CURLM_OK) {
            log_warn("webhooks cannot be told, ignoring");
        }
        finish_all(hooks);
        (void)curl_multi_poll(hooks->multi, NULL, 0, begin_all(hooks), NULL); /* sooner is fine */
    }
    return NULL;
}

/* ---- life ---- */

int event_hooks_create(struct compute *compute, enum metrics_reach reach,
                       struct event_hooks **ret_hooks)
{
    struct event_hooks *hooks = calloc(1, sizeof(*hooks));
    int rc;

    if (hooks == NULL || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(hooks);
        return -ENOMEM;
    }
    hooks->compute = compute;
    hooks->reach = reach;
    mutex_init(&hooks->lock, LOCK_RANK_LEAF);
    hooks->multi = curl_multi_init();
    rc = hooks->multi != NULL
             ? thread_start(&hooks->thread, "metrics/events", event_hooks_main, hooks)
             : -ENOMEM;
    hooks->has_thread = rc == 0;
    if (rc < 0) {
        event_hooks_destroy(hooks);
        return rc;
    }
    *ret_hooks = hooks;
    return 0;
}

void event_hooks_look(struct event_hooks *hooks)
{
    mutex_lock(&hooks->lock);
    hooks->has_news = true;
    mutex_unlock(&hooks->lock);
    (void)curl_multi_wakeup(hooks->multi); /* or it wakes up by itself */
}

void event_hooks_destroy(struct event_hooks *hooks)
{
    if (hooks == NULL) {
        return;
    }
    mutex_lock(&hooks->lock);
    hooks->is_closing = true;
    mutex_unlock(&hooks->lock);
    if (hooks->has_thread) {
        (void)curl_multi_wakeup(hooks->multi); /* or it wakes up by itself */
        (void)pthread_join(hooks->thread, NULL);
    }
    while (hooks->lines != NULL) {
        struct line *line = hooks->lines;

        hooks->lines = line->next;
        line_free(hooks, line);
    }
    (void)curl_multi_cleanup(hooks->multi);
    mutex_done(&hooks->lock);
    curl_global_cleanup();
    free(hooks);
}
