/*
 * Webhooks: one thread sends what alarms owe, one after the other. What is not
 * sent when it ends is owed still, and comes again.
 */
#include "base/log.h"
#include "metrics/metrics_int.h"

#include <curl/curl.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define QUEUE_MAX 1000u
#define TRIES 5u
#define CONNECT_MS 5000L
#define TOTAL_MS 10000L

struct hook {
    struct hook *next;
    json_t *alarm;
    char owed[128];
    struct compute_debt debt;
};

struct hooks {
    struct compute *compute;
    bool allows_local;
    bool was_refused;  /* the last address; its thread's */
    struct mutex lock; /* the rest */
    pthread_cond_t changed;
    bool is_closing;
    struct hook *first; /* it is being sent, and stays there until it is paid */
    unsigned count;
    pthread_t thread;
    bool has_thread;
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

void hooks_add(struct hooks *hooks, const json_t *alarm, const char *owed,
               const struct compute_debt *debt)
{
    struct hook *hook = NULL;
    struct hook **at;

    mutex_lock(&hooks->lock);
    at = &hooks->first;
    while (*at != NULL && strcmp((*at)->debt.token, debt->token) != 0) {
        at = &(*at)->next;
    }
    if (*at == NULL && hooks->count < QUEUE_MAX) {
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

static bool is_local_ip4(const uint8_t ip[4])
{
    return ip[0] == 127 || ip[0] == 0 || (ip[0] == 169 && ip[1] == 254) || ip[0] >= 224;
}

static bool is_local(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;

        return is_local_ip4((const uint8_t *)&in->sin_addr);
    }
    if (address->sa_family == AF_INET6) {
        const struct in6_addr *ip =
            &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;

        return IN6_IS_ADDR_V4MAPPED(ip)
                   ? is_local_ip4(ip->s6_addr + 12)
                   : IN6_IS_ADDR_LOOPBACK(ip) || IN6_IS_ADDR_UNSPECIFIED(ip) ||
                         IN6_IS_ADDR_LINKLOCAL(ip) || IN6_IS_ADDR_MULTICAST(ip);
    }
    return true;
}

/* Here, where the name has become an address: a name may become another one each time. */
static curl_socket_t open_socket(void *opaque, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct hooks *hooks = opaque;

    (void)purpose;
    if (!hooks->allows_local && is_local(&address->addr)) {
        hooks->was_refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static size_t ignore_body(char *data, size_t size, size_t count, void *opaque)
{
    (void)data;
    (void)opaque;
    return size * count;
}

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

static CURLcode set_up(CURL *curl, struct hooks *hooks, const char *url,
                       const struct curl_slist *headers, const char *body, char *why)
{
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, url);

#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L); /* to nowhere: a receiver does not choose another */
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_FAILONERROR, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
    SET(CURLOPT_TIMEOUT_MS, TOTAL_MS);
    SET(CURLOPT_POSTFIELDS, body);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_USERAGENT, "corbeld/" CORBEL_VERSION);
    SET(CURLOPT_WRITEFUNCTION, ignore_body);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, hooks);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, hooks);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_ERRORBUFFER, why);
#undef SET
    return code;
}

/* A server that says so means it; one that is not there may come back. */
static int judge(const struct hooks *hooks, CURLcode code, long status)
{
    if (code == CURLE_OK && status >= 200 && status < 300) {
        return 0;
    }
    return hooks->was_refused || (status >= 300 && status < 500 && status != 408 && status != 429)
               ? -EPERM
               : -EIO;
}

/* One try: 0, or a phrase with -EIO, or -EPERM when others are in vain. */
static int post(struct hooks *hooks, const struct hook *hook, char why[CURL_ERROR_SIZE])
{
    CURL *curl = curl_easy_init();
    char *body = make_body(hook);
    char key[160];
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *all;
    CURLcode code = CURLE_OUT_OF_MEMORY;
    long status = 0;

    hooks->was_refused = false;
    why[0] = '\0';
    (void)snprintf(key, sizeof(key), "Idempotency-Key: %s", hook->debt.token);
    all = headers != NULL ? curl_slist_append(headers, key) : NULL;
    if (curl != NULL && body != NULL && all != NULL) {
        code = set_up(curl, hooks, text_in(hook->alarm, "webhook"), all, body, why);
        code = code == CURLE_OK ? curl_easy_perform(curl) : code;
        (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status); /* 0 without an answer */
    }
    if (hooks->was_refused) {
        (void)snprintf(why, CURL_ERROR_SIZE,
                       "its address is this host's own or its link's, and corbeld was started "
                       "without --local-webhooks");
    } else if (why[0] == '\0') {
        (void)snprintf(why, CURL_ERROR_SIZE, "%s",
                       code != CURLE_OK ? curl_easy_strerror(code)
                                        : "it answers with a redirection");
    }
    curl_slist_free_all(headers);
    free(body);
    curl_easy_cleanup(curl);
    return judge(hooks, code, status);
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
        rc = post(hooks, hook, why);
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

static void *hooks_main(void *opaque)
{
    struct hooks *hooks = opaque;
    bool goes_on = true;

    while (goes_on) {
        struct hook *hook;

        mutex_lock(&hooks->lock);
        while (hooks->first == NULL && !hooks->is_closing) {
            (void)pthread_cond_wait(&hooks->changed, &hooks->lock.raw); /* cannot fail */
        }
        hook = hooks->is_closing ? NULL : hooks->first;
        mutex_unlock(&hooks->lock);
        goes_on = hook != NULL && deliver(hooks, hook);
        if (goes_on) {
            mutex_lock(&hooks->lock);
            hooks->first = hook->next;
            hooks->count--;
            mutex_unlock(&hooks->lock);
            hook_free(hook);
        }
    }
    return NULL;
}

int hooks_create(struct compute *compute, bool allows_local, struct hooks **ret_hooks)
{
    struct hooks *hooks = calloc(1, sizeof(*hooks));
    int rc;

    if (hooks == NULL || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(hooks);
        return -ENOMEM;
    }
    hooks->compute = compute;
    hooks->allows_local = allows_local;
    mutex_init(&hooks->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&hooks->changed, NULL); /* cannot fail on Linux */
    rc = thread_start(&hooks->thread, "metrics/hooks", hooks_main, hooks);
    hooks->has_thread = rc == 0;
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
    if (hooks->has_thread) {
        (void)pthread_join(hooks->thread, NULL);
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
