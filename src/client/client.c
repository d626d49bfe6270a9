#include "client/client_int.h"

#include "base/path.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#define SYSTEM_SOCKET "/run/corbel/api.sock"
#define CONNECT_SECONDS 10L
#define ANSWER_SECONDS 120L
#define ANSWER_MAX (64u << 20)
#define PATH_BYTES 2048
#define AGAIN_TRIES 50u /* of a daemon that is just coming back */
#define AGAIN_US 100000u

/* The body of an answer as it comes. */
struct text {
    char *data;
    size_t len;
    bool is_over;
};

/* What a call sends, and what is to be known of its answer beside the status. */
struct request {
    const char *method, *path;
    const void *body; /* NULL: none */
    size_t len;
    const char *type;  /* of the body */
    const char *token; /* idempotency; NULL: none */
    struct text text;
    bool is_end;
};

static size_t on_body(char *data, size_t size, size_t count, void *opaque)
{
    struct text *text = opaque;
    size_t len = size * count;
    char *longer;

    if (text->len + len > ANSWER_MAX) {
        text->is_over = true;
        return 0;
    }
    longer = realloc(text->data, text->len + len + 1);
    if (longer == NULL) {
        return 0;
    }
    memcpy(longer + text->len, data, len);
    text->data = longer;
    text->len += len;
    return len;
}

int client_unreachable(const struct client *client, const char *why, struct err *err)
{
    if (client->socket[0] != '\0') {
        return err_set(err, -ENOTCONN,
                       "the daemon at %s does not answer (%s); start it: corbel daemon start",
                       client->socket, why);
    }
    return err_set(err, -ENOTCONN, "the daemon at %s cannot be reached: %s", client->base, why);
}

int client_prepare(struct client *client, CURL *curl, const char *path, struct err *err)
{
    char url[PATH_MAX + PATH_BYTES];
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): nobody changes the environment */
    const char *authorities = getenv("SSL_CERT_FILE");
    int n = snprintf(url, sizeof(url), "%s%s", client->base, path);
    CURLcode code;

    if (n < 0 || (size_t)n >= sizeof(url)) {
        return err_set(err, -EINVAL, "the call is too long");
    }
    code = curl_easy_setopt(curl, CURLOPT_URL, url);
#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_PATH_AS_IS, 1L);
    SET(CURLOPT_NOPROXY, client->socket[0] != '\0' ? "*" : NULL);
    SET(CURLOPT_CONNECTTIMEOUT, CONNECT_SECONDS);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_ERRORBUFFER, client->why);
    SET(CURLOPT_USERAGENT, "corbel/" CORBEL_VERSION);
    if (client->socket[0] != '\0') {
        SET(CURLOPT_UNIX_SOCKET_PATH, client->socket);
    }
    if (authorities != NULL && authorities[0] != '\0') {
        SET(CURLOPT_CAINFO, authorities);
    }
#undef SET
    client->why[0] = '\0';
    return code == CURLE_OK ? 0 : err_set(err, -EIO, "%s", curl_easy_strerror(code));
}

/* ---- finding the daemon ---- */

static int use_url(struct client *client, const char *host, struct err *err)
{
    size_t len = strlen(host);

    if (strncasecmp(host, "http://", 7) != 0 && strncasecmp(host, "https://", 8) != 0) {
        return err_set(err, -EINVAL,
                       "\"%.100s\" is no place of a daemon: give http://HOST:PORT, "
                       "https://HOST:PORT or unix:/PATH",
                       host);
    }
    while (len > 0 && host[len - 1] == '/') {
        len--;
    }
    return path_format(client->base, err, "%.*s", (int)len, host);
}

static int use_socket(struct client *client, const char *path, struct err *err)
{
    int rc = path_format(client->base, err, "http://localhost");

    return rc < 0 ? rc : path_format(client->socket, err, "%s", path);
}

/* The user's own daemon, else the host's, else one that is started now. */
static int find_daemon(struct client *client, const struct client_config *config, struct err *err)
{
    char runtime[PATH_MAX], own[PATH_MAX];
    int rc = path_find_runtime(runtime, "corbeld", err);

    rc = rc < 0 ? rc : path_format(own, err, "%s/api.sock", runtime);
    if (rc < 0) {
        return rc;
    }
    if (start_is_listening(own)) {
        return use_socket(client, own, err);
    }
    if (start_is_listening(SYSTEM_SOCKET)) {
        return use_socket(client, SYSTEM_SOCKET, err);
    }
    if (!config->may_start) {
        return err_set(err, -ENOTCONN, "no daemon runs; start one: corbel daemon start");
    }
    rc = start_daemon(own, config->program, err);
    client->has_started = rc == 1;
    return rc < 0 ? rc : use_socket(client, own, err);
}

static int open_handle(struct client *client, const struct client_config *config, struct err *err)
{
    bool has_token = config->token != NULL && config->token[0] != '\0';
    const char *host = config->host != NULL ? config->host : "";
    int rc = 0;

    if (has_token && (strlen(config->token) > 200 || strpbrk(config->token, " \r\n") != NULL)) {
        return err_set(err, -EINVAL, "the token is none: one begins with cbl_");
    }
    if (has_token) {
        (void)snprintf(client->authorization, sizeof(client->authorization),
                       "Authorization: Bearer %s", config->token);
    }
    if (host[0] == '\0') {
        rc = find_daemon(client, config, err);
    } else if (strncmp(host, "unix:", 5) == 0) {
        host += strncmp(host, "unix://", 7) == 0 ? 7 : 5;
        rc = use_socket(client, host, err);
    } else {
        rc = use_url(client, host, err);
    }
    if (rc == 0) {
        client->curl = curl_easy_init();
        rc = client->curl != NULL ? 0 : err_set(err, -ENOMEM, "out of memory");
    }
    return rc;
}

int client_open(const struct client_config *config, struct client **ret_client, struct err *err)
{
    struct client *client = calloc(1, sizeof(*client));
    int rc = client != NULL ? 0 : err_set(err, -ENOMEM, "out of memory");

    rc = rc < 0 ? rc : open_handle(client, config, err);
    if (rc < 0) {
        client_close(client);
        return rc;
    }
    *ret_client = client;
    return 0;
}

void client_close(struct client *client)
{
    if (client != NULL) {
        curl_easy_cleanup(client->curl);
        free(client);
    }
}

bool client_has_started(const struct client *client)
{
    return client->has_started;
}

const char *client_socket(const struct client *client)
{
    return client->socket[0] != '\0' ? client->socket : NULL;
}

/* ---- calls ---- */

static int refusal_code(long status, const char *code)
{
    switch (status) {
    case 400:
    case 413:
        return -EINVAL;
    case 401:
        return -EPERM;
    case 403:
        return strcmp(code, "quota") == 0 ? -EDQUOT : -EPERM;
    case 404:
    case 405:
        return -ENOENT;
    case 409:
        return strcmp(code, "exists") == 0 ? -EEXIST : -EBUSY;
    case 412:
        return -EBUSY;
    case 503:
        return strcmp(code, "capacity") == 0 ? -EDQUOT : -EIO;
    default:
        return -EIO;
    }
}

static int fail_refused(const struct client *client, long status, const json_t *answer,
                        struct err *err)
{
    const json_t *error = json_object_get(answer, "error");
    const char *message = json_string_value(json_object_get(error, "message"));
    const char *code = json_string_value(json_object_get(error, "code"));
    const char *field = json_string_value(json_object_get(error, "field"));

    if (status == 401 && client->authorization[0] == '\0') {
        return err_set(err, -EPERM,
                       "the daemon wants to know who asks; set CORBEL_TOKEN to a token of its "
                       "(corbel token create makes one)");
    }
    if (message == NULL) {
        return err_set(err, -EIO, "the daemon answers %ld without a reason: is it one of ours?",
                       status);
    }
    if (status == 400 && field != NULL && strstr(message, field) == NULL) {
        return err_set(err, -EINVAL, "%.64s: %s", field, message);
    }
    return err_set(err, refusal_code(status, code != NULL ? code : ""), "%s", message);
}

static struct curl_slist *make_headers(const struct client *client, const char *type,
                                       const char *token)
{
    char line[128];
    struct curl_slist *list = curl_slist_append(NULL, "Expect:");

    if (client->authorization[0] != '\0') {
        list = curl_slist_append(list, client->authorization);
    }
    if (type != NULL) {
        (void)snprintf(line, sizeof(line), "Content-Type: %s", type);
        list = curl_slist_append(list, line);
    }
    if (token != NULL) {
        (void)snprintf(line, sizeof(line), "Idempotency-Key: %s", token);
        list = curl_slist_append(list, line);
    }
    return list;
}

static size_t on_header(char *data, size_t size, size_t count, void *opaque)
{
    static const char name[] = "x-corbel-end: true";
    struct request *request = opaque;

    request->is_end = request->is_end || (size * count >= sizeof(name) - 1 &&
                                          strncasecmp(data, name, sizeof(name) - 1) == 0);
    return size * count;
}

/* One exchange: the status, or -ECONNRESET when the connection ended before the answer. */
static long exchange(struct client *client, struct request *request, struct err *err)
{
    CURL *curl = client->curl;
    struct curl_slist *headers = make_headers(client, request->type, request->token);
    long status = 0;
    CURLcode code = CURLE_OK;
    int rc;

    curl_easy_reset(curl); /* connections stay */
    rc = client_prepare(client, curl, request->path, err);
#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, &request->text);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, request);
    SET(CURLOPT_TIMEOUT, ANSWER_SECONDS);
    if (request->body != NULL || strcmp(request->method, "POST") == 0) {
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->len);
        SET(CURLOPT_POSTFIELDS, request->body != NULL ? request->body : "");
    }
    if (strcmp(request->method, "GET") != 0) {
        SET(CURLOPT_CUSTOMREQUEST, request->method);
    }
#undef SET
    code = code == CURLE_OK && rc == 0 ? curl_easy_perform(curl) : code;
    curl_slist_free_all(headers);
    if (rc < 0) {
        return rc;
    }
    if (code != CURLE_OK) {
        const char *why = client->why[0] != '\0' ? client->why : curl_easy_strerror(code);

        rc =
            client_unreachable(client, request->text.is_over ? "its answer is too long" : why, err);
        return code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR ||
                       code == CURLE_COULDNT_CONNECT || code == CURLE_PARTIAL_FILE
                   ? -ECONNRESET
                   : rc;
    }
    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

/* 0 when the daemon did it; its refusal else. */
static int perform(struct client *client, struct request *request, json_t **ret_answer,
                   struct err *err)
{
    long status = exchange(client, request, err);
    const char *text = request->text.data != NULL ? request->text.data : "";
    int rc = status < 0 ? (int)status : 0;

    if (rc == 0 && (ret_answer != NULL || status < 200 || status > 299)) {
        json_t *answer = json_loadb(text, request->text.len, JSON_DECODE_ANY, NULL);

        if (status < 200 || status > 299) {
            rc = fail_refused(client, status, answer, err);
        } else if (answer == NULL) {
            rc = err_set(err, -EIO, "the answer of the daemon is no JSON");
        }
        if (rc == 0) {
            *ret_answer = answer;
        } else {
            json_decref(answer);
        }
    }
    return rc;
}

int client_transfer(struct client *client, const char *method, const char *path, const void *data,
                    size_t len, void **ret_data, size_t *ret_len, bool *ret_is_end, struct err *err)
{
    struct request request = {.method = method,
                              .path = path,
                              .body = data,
                              .len = len,
                              .type = data != NULL ? "application/octet-stream" : NULL};
    int rc = perform(client, &request, NULL, err);

    if (rc == 0 && ret_data != NULL) {
        *ret_data = steal_ptr(request.text.data);
        *ret_len = request.text.len;
        *ret_is_end = request.is_end;
    }
    free(request.text.data);
    return rc == -ECONNRESET ? -ENOTCONN : rc;
}

static int call(struct client *client, const char *method, const char *path, const json_t *body,
                const char *token, json_t **ret_answer, struct err *err)
{
    CLEANUP_FREE char *sent = body != NULL ? json_dumps(body, JSON_COMPACT) : NULL;
    struct request request = {.method = method,
                              .path = path,
                              .body = sent,
                              .len = sent != NULL ? strlen(sent) : 0,
                              .type = body != NULL ? "application/json" : NULL,
                              .token = token};
    json_t *answer = NULL;
    int rc;

    if (body != NULL && sent == NULL) {
        return err_set(err, -EINVAL, "the words given are no UTF-8 text");
    }
    rc = perform(client, &request, &answer, err);
    free(request.text.data);
    if (rc == 0 && ret_answer != NULL) {
        *ret_answer = answer;
    } else {
        json_decref(answer);
    }
    return rc;
}

int client_call(struct client *client, const char *method, const char *path, const json_t *body,
                json_t **ret_answer, struct err *err)
{
    int rc = call(client, method, path, body, NULL, ret_answer, err);

    return rc == -ECONNRESET ? -ENOTCONN : rc;
}

int client_create(struct client *client, const char *path, const json_t *body, json_t **ret_answer,
                  struct err *err)
{
    unsigned char random[16];
    char token[2 * sizeof(random) + 1];
    int rc = -ECONNRESET;

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return err_set_errno(err, -errno, "no random bytes");
    }
    for (size_t i = 0; i < sizeof(random); i++) {
        (void)snprintf(token + 2 * i, 3, "%02x", random[i]);
    }
    for (unsigned i = 0; rc == -ECONNRESET && i < AGAIN_TRIES; i++) {
        if (i > 0) {
            (void)usleep(AGAIN_US);
        }
        rc = call(client, "POST", path, body, token, ret_answer, err);
    }
    return rc == -ECONNRESET ? -ENOTCONN : rc;
}

/* ---- operations ---- */

static int judge(const json_t *operation, struct err *err)
{
    const char *state = json_string_value(json_object_get(operation, "state"));
    const char *error = json_string_value(json_object_get(operation, "error"));

    if (state == NULL || strcmp(state, "pending") == 0 || strcmp(state, "running") == 0) {
        return 1;
    }
    if (strcmp(state, "failed") == 0) {
        return err_set(err, -EIO, "%s", error != NULL ? error : "it failed");
    }
    return strcmp(state, "cancelled") == 0 ? err_set(err, -ECANCELED, "it was cancelled") : 0;
}

int client_wait(struct client *client, const json_t *answer, client_progress_fn progress,
                void *opaque, struct err *err)
{
    const json_t *begun = json_object_get(answer, "operation");
    const char *id = json_string_value(json_object_get(begun, "id"));
    char path[128];
    unsigned lost = 0;
    int rc = 1;

    if (id == NULL) {
        return 0;
    }
    rc = judge(begun, err);
    (void)snprintf(path, sizeof(path), "/v1/operations/%s/wait?timeout_ms=%u", id,
                   progress != NULL ? 250u : 20000u);
    while (rc == 1) {
        json_t *operation = NULL;

        rc = call(client, "GET", path, NULL, NULL, &operation, err);
        if (rc == -ECONNRESET && lost++ < AGAIN_TRIES) {
            (void)usleep(AGAIN_US);
            rc = 1;
            continue;
        }
        if (rc == 0) {
            lost = 0;
            if (progress != NULL) {
                progress(opaque, operation);
            }
            rc = judge(operation, err);
        }
        json_decref(operation);
    }
    return rc == -ECONNRESET ? -ENOTCONN : rc;
}

/* ---- events ---- */

struct watch {
    struct text line;
    client_event_fn on_event;
    void *opaque;
    int result;
};

/* WHATWG HTML 9.2.5: lines; those of data are all that we read. */
static int take_line(struct watch *watch)
{
    json_t *data;

    watch->line.data[watch->line.len] = '\0';
    if (strncmp(watch->line.data, "data: ", 6) != 0) {
        return 0;
    }
    data = json_loads(watch->line.data + 6, 0, NULL);
    if (data != NULL) {
        watch->result = watch->on_event(watch->opaque, data);
        json_decref(data);
    }
    return watch->result;
}

static size_t on_events(char *data, size_t size, size_t count, void *opaque)
{
    struct watch *watch = opaque;

    for (size_t i = 0; i < size * count; i++) {
        if (data[i] == '\n') {
            if (watch->line.data != NULL && take_line(watch) != 0) {
                return 0;
            }
            watch->line.len = 0;
        } else if (on_body(data + i, 1, 1, &watch->line) != 1) {
            return 0;
        }
    }
    return size * count;
}

int client_watch(struct client *client, const char *path, client_event_fn on_event, void *opaque,
                 struct err *err)
{
    struct watch watch = {.on_event = on_event, .opaque = opaque};
    CURL *curl = client->curl;
    struct curl_slist *headers = make_headers(client, NULL, NULL);
    CURLcode code = CURLE_OK;
    int rc;

    curl_easy_reset(curl);
    rc = client_prepare(client, curl, path, err);
#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_WRITEFUNCTION, on_events);
    SET(CURLOPT_WRITEDATA, &watch);
    SET(CURLOPT_FAILONERROR, 1L);
#undef SET
    code = code == CURLE_OK && rc == 0 ? curl_easy_perform(curl) : code;
    curl_slist_free_all(headers);
    free(watch.line.data);
    if (watch.result != 0) {
        return watch.result;
    }
    if (rc == 0 && code != CURLE_OK) {
        rc = client_unreachable(client, client->why, err);
    }
    return rc;
}

int client_escape(char *out, size_t size, const char *word)
{
    size_t used = strlen(out);
    char *escaped = curl_easy_escape(NULL, word, (int)strlen(word));
    int n = escaped != NULL ? snprintf(out + used, size - used, "%s", escaped) : -1;

    curl_free(escaped);
    return n < 0 || (size_t)n >= size - used ? -ENAMETOOLONG : 0;
}
