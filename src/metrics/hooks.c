/*
 * Webhooks of alarms: what those of one project owe is sent one after the
 * other, so that it arrives in order; several threads do so for several
 * projects, of which none waits for another's receiver. What is not sent when
 * this ends is owed still, and comes again.
 */
#include "base/log.h"
#include "metrics/metrics_int.h"
#include "metrics/post.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define THREADS 8u
#define QUEUE_MAX 1000u
#define PROJECT_MAX 100u /* of one project among them */
#define TRIES 5u

struct hook {
    struct hook *next;
    json_t *alarm;
    char owed[128];
    struct compute_debt debt;
    bool is_taken; /* a thread sends it */
};

struct hooks {
    struct compute *compute;
    enum metrics_reach reach;
    struct mutex lock; /* the rest */
    pthread_cond_t changed;
    bool is_closing;
    struct hook *first; /* what is being sent stays there until it is paid */
    unsigned count;
    pthread_t threads[THREADS];
    unsigned thread_count;
};

static const char *text_in(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text != NULL ? text : "";
}

static void hook_free(struct hook *hook)
{
    json_decref(hook->alarm);
    free(hook);
}

static bool is_of_project(const struct hook *hook, const char *project)
{
    return strcmp(text_in(hook->alarm, "project"), project) == 0;
}

void hooks_add(struct hooks *hooks, const json_t *alarm, const char *owed,
               const struct compute_debt *debt)
{
    struct hook *hook = NULL;
    struct hook **at;
    unsigned of_project = 0;

    mutex_lock(&hooks->lock);
    at = &hooks->first;
    while (*at != NULL && strcmp((*at)->debt.token, debt->token) != 0) {
        of_project += is_of_project(*at, text_in(alarm, "project"));
        at = &(*at)->next;
    }
    if (*at == NULL && hooks->count < QUEUE_MAX && of_project < PROJECT_MAX) {
        hook = calloc(1, sizeof(*hook));
    }
    if (hook != NULL) {
        hook->alarm = json_deep_copy(alarm);
        hook->debt = *debt;
        (void)snprintf(hook->owed, sizeof(hook->owed), "%s", owed);
        *at = hook;
        hooks->count++;
        (void)pthread_cond_broadcast(&hooks->changed); /* cannot fail */
    }
    mutex_unlock(&hooks->lock);
}

/* ---- sending ---- */

/* Looked at every second at least: the end need not wait for a server. */
static int on_progress(void *opaque, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up)
{
    struct hooks *hooks = opaque;
    bool is_closing;

    (void)total;
    (void)now;
    (void)up_total;
    (void)up;
    mutex_lock(&hooks->lock);
    is_closing = hooks->is_closing;
    mutex_unlock(&hooks->lock);
    return is_closing;
}

static char *make_body(const struct hook *hook)
{
    const json_t *alarm = hook->alarm;
    json_t *body = json_pack(
        "{s:{s:s, s:s, s:s}, s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "alarm", "id",
        text_in(alarm, "id"), "name", text_in(alarm, "name"), "project", text_in(alarm, "project"),
        "state", hook->debt.kind == DEBT_HOOK_ALARM ? "alarm" : "ok", "instance",
        hook->debt.instance, "metric", text_in(alarm, "metric"), "comparison",
        text_in(alarm, "comparison"), "threshold",
        json_integer_value(json_object_get(alarm, "threshold")), "for_s",
        json_integer_value(json_object_get(alarm, "for_s")), "time", (json_int_t)time(NULL));
    char *text = json_dumps(body, JSON_COMPACT);

    json_decref(body);
    return text;
}

/* One try: 0, or a phrase with -EIO, or -EPERM when others are in vain. */
static int send_once(struct hooks *hooks, const struct hook *hook, char why[CURL_ERROR_SIZE])
{
    char *body = make_body(hook);
    const struct post_letter letter = {
        .url = text_in(hook->alarm, "webhook"), .body = body, .token = hook->debt.token};
    struct post post;
    unsigned status;
    int rc = post_begin(&post, hooks->reach, &letter);

    if (rc == 0) {
        CURLcode code = curl_easy_setopt(post.curl, CURLOPT_XFERINFOFUNCTION, on_progress);

        code = code == CURLE_OK ? curl_easy_setopt(post.curl, CURLOPT_XFERINFODATA, hooks) : code;
        code = code == CURLE_OK ? curl_easy_setopt(post.curl, CURLOPT_NOPROGRESS, 0L) : code;
        code = code == CURLE_OK ? curl_easy_perform(post.curl) : code;
        rc = post_end(&post, code, &status);
    }
    (void)snprintf(why, CURL_ERROR_SIZE, "%s", rc == -ENOMEM ? "out of memory" : post.why);
    post_done(&post);
    free(body);
    return rc == -ENOMEM ? -EIO : rc;
}

/* False when all ends. */
static bool wait_s(struct hooks *hooks, unsigned seconds)
{
    struct timespec until;
    bool is_closing;

    (void)clock_gettime(CLOCK_REALTIME, &until); /* cannot fail */
    until.tv_sec += seconds;
    mutex_lock(&hooks->lock);
    while (!hooks->is_closing &&
           pthread_cond_timedwait(&hooks->changed, &hooks->lock.raw, &until) != ETIMEDOUT) {
    }
    is_closing = hooks->is_closing;
    mutex_unlock(&hooks->lock);
    return !is_closing;
}

/* False when all ended before it was told, or given up. */
static bool deliver(struct hooks *hooks, const struct hook *hook)
{
    char why[CURL_ERROR_SIZE], complaint[400];
    struct fault fault;
    int rc = -EIO;

    for (unsigned i = 0; i < TRIES && rc == -EIO; i++) {
        if (i > 0 && !wait_s(hooks, 1u << (i - 1))) {
            return false;
        }
        rc = send_once(hooks, hook, why);
    }
    (void)snprintf(complaint, sizeof(complaint), "the webhook was not reached: %s",
                   rc < 0 ? why : "");
    if (on_progress(hooks, 0, 0, 0, 0) != 0 && rc < 0) {
        return false;
    }
    if (compute_alarm_paid(hooks->compute, hook->alarm, hook->owed, rc < 0 ? complaint : NULL,
                           &fault) < 0 &&
        fault.code != FAULT_NOT_FOUND) {
        log_warn("the alarm %s cannot be noted: %s, ignoring", text_in(hook->alarm, "id"),
                 fault.text);
    }
    return true;
}

/* The first one of a project for which nothing is being sent; NULL: there is none. */
static struct hook *find_free(struct hooks *hooks)
{
    for (struct hook *hook = hooks->first; hook != NULL; hook = hook->next) {
        bool is_free = true;

        for (const struct hook *at = hooks->first; is_free && at != NULL; at = at->next) {
            is_free = !at->is_taken || !is_of_project(at, text_in(hook->alarm, "project"));
        }
        if (is_free) {
            return hook;
        }
    }
    return NULL;
}

/* Waits for one; NULL when all ends. */
static struct hook *take(struct hooks *hooks)
{
    struct hook *hook = NULL;

    mutex_lock(&hooks->lock);
    while (!hooks->is_closing && (hook = find_free(hooks)) == NULL) {
        (void)pthread_cond_wait(&hooks->changed, &hooks->lock.raw); /* cannot fail */
    }
    if (hook != NULL) {
        hook->is_taken = true;
    }
    mutex_unlock(&hooks->lock);
    return hook;
}

static void drop(struct hooks *hooks, struct hook *hook)
{
    struct hook **at;

    mutex_lock(&hooks->lock);
    for (at = &hooks->first; *at != hook; at = &(*at)->next) {
    }
    *at = hook->next;
    hooks->count--;
    (void)pthread_cond_broadcast(&hooks->changed); /* its project's next one is free */
    mutex_unlock(&hooks->lock);
    hook_free(hook);
}

static void *hooks_main(void *opaque)
{
    struct hooks *hooks = opaque;

    for (struct hook *hook; (hook = take(hooks)) != NULL && deliver(hooks, hook);) {
        drop(hooks, hook);
    }
    return NULL;
}

int hooks_create(struct compute *compute, enum metrics_reach reach, struct hooks **ret_hooks)
{
    struct hooks *hooks = calloc(1, sizeof(*hooks));
    int rc;

    if (hooks == NULL || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(hooks);
        return -ENOMEM;
    }
    hooks->compute = compute;
    hooks->reach = reach;
    mutex_init(&hooks->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&hooks->changed, NULL); /* cannot fail on Linux */
    for (rc = 0; rc == 0 && hooks->thread_count < THREADS;) {
        rc = thread_start(&hooks->threads[hooks->thread_count], "metrics/hooks", hooks_main, hooks);
        hooks->thread_count += rc == 0;
    }
    if (rc < 0) {
        hooks_destroy(hooks);
        return rc;
    }
    *ret_hooks = hooks;
    return 0;
}

void hooks_destroy(struct hooks *hooks)
{
    if (hooks == NULL) {
        return;
    }
    mutex_lock(&hooks->lock);
    hooks->is_closing = true;
    (void)pthread_cond_broadcast(&hooks->changed); /* cannot fail */
    mutex_unlock(&hooks->lock);
    for (unsigned i = 0; i < hooks->thread_count; i++) {
        (void)pthread_join(hooks->threads[i], NULL);
    }
    while (hooks->first != NULL) {
        struct hook *hook = hooks->first;

        hooks->first = hook->next;
        hook_free(hook);
    }
    (void)pthread_cond_destroy(&hooks->changed);
    mutex_done(&hooks->lock);
    curl_global_cleanup();
    free(hooks);
}
