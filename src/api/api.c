/* A request's way: queue, who asks, may they, is it well formed, handler, answer, audit. */
#include "api/api_int.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKERS_DEFAULT = 8, QUEUE_MAX = 512, CALLS_DEFAULT = 100, SIGN_IN_CALLS = 10 };

struct job {
    struct job *next;
    struct http_exchange *exchange;
};

static int refuse(struct fault *fault, int status, const char *field, const char *text)
{
    (void)fault_set(fault, FAULT_INVALID, field, "%s", text);
    return status;
}

/* Sign-in is slow on purpose, so it is counted tenfold against whoever tries; what is refused is not. */
static int check_rate(struct api *api, const struct api_call *call, struct fault *fault)
{
    const struct identity *who = &call->identity;
    if (call->request->peer.is_unix) {
        return 0;
    }
    const char *name = who->role == ROLE_NONE ? call->request->peer.address : who->actor;
    bool is_sign_in =
        call->operation != NULL && (call->operation->handle == accounts_sign_in ||
                                    call->operation->handle == factor_begin); /* a password */
    if (!limits_take(api->limits, name, is_sign_in ? SIGN_IN_CALLS : 1)) {
        return refuse(fault, 429, NULL, "too many calls; wait a second");
    }
    return 0;
}

/* Query parameters that the operation does not know are mistakes, not decoration. */
static int check_query(const struct api_call *call, struct fault *fault)
{
    char known[128], word[100];
    const char *piece;
    (void)snprintf(known, sizeof(known), " %s ", call->operation->query);
    if (strstr(known, " * ") != NULL) {
        return 0; /* the handler looks at the others */
    }
    for (size_t i = 0; (piece = http_exchange_query_at(call->exchange, i)) != NULL; i++) {
        size_t len = strcspn(piece, "=");
        (void)snprintf(word, sizeof(word), " %.*s ", (int)(len < 90 ? len : 90), piece);
        if (len > 0 && strstr(known, word) == NULL) {
            word[len < 90 ? len + 1 : 91] = 0;
            (void)fault_set(fault, FAULT_UNKNOWN, word + 1, "%s takes no parameter '%s'",
                            call->operation->id, word + 1);
            return 400;
        }
    }
    return 0;
}

/* The fields that a body may have here; NULL where the kind's own parser looks at them. */
static const struct field *body_fields(const struct api_call *call, unsigned *ret_count)
{
    *ret_count = call->operation->field_count;
    return call->operation->body == API_BODY_FIELDS ? call->operation->fields : NULL;
}

static int parse_body(struct api_call *call, struct fault *fault)
{
    const struct http_request *request = call->request;
    enum api_body kind = call->operation->body;
    if (kind == API_BODY_NONE) {
        return request->body_len == 0 ? 0
                                      : refuse(fault, 400, NULL, "this operation takes no body");
    }
    if (kind == API_BODY_BYTES) {
        return 0;
    }
    if (request->body_len == 0 && kind == API_BODY_ACTION) {
        return 0;
    }
    const char *type = http_exchange_header(call->exchange, "content-type");
    if (type == NULL || strncmp(type, "application/json", 16) != 0) {
        return refuse(fault, 415, NULL, "the body must be sent as content-type: application/json");
    }
    json_error_t error;
    json_t *body = json_loadb(request->body, request->body_len, JSON_REJECT_DUPLICATES, &error);
    if (body == NULL) {
        (void)fault_set(fault, FAULT_INVALID, NULL, "the body is no JSON: line %d, column %d: %s",
                        error.line, error.column, error.text);
        return 400;
    }
    unsigned count;
    const struct field *fields = body_fields(call, &count);
    if (!json_is_object(body)) {
        json_decref(body);
        return refuse(fault, 400, NULL, "the body must be a JSON object");
    }
    if (fields != NULL) {
        const struct kind_spec spec = {
            .kind = KIND_COUNT,
            .name = call->operation->id,
            .plural = call->operation->id,
            .prefix = "",
            .fields = fields,
            .field_count = count,
        };
        json_t *parsed = NULL;
        int status = kind_parse_create(&spec, body, &parsed, fault);
        json_decref(body);
        if (status != 0) {
            return answer_status(fault->code);
        }
        body = parsed;
    }
    call->body = body;
    return 0;
}

/* Whether the path names an object of a project by name: without a project, of the default one. */
static bool is_own_name(const struct api_call *call)
{
    if (call->id[0] == 0 || call->operation->kind == KIND_COUNT) {
        return false;
    }
    const struct kind_spec *spec = kind_spec(call->operation->kind);
    return !spec->is_global && strncmp(call->id, spec->prefix, strlen(spec->prefix)) != 0;
}

static int fill_compute_call(struct api_call *call, struct fault *fault)
{
    const char *wanted = http_exchange_query(call->exchange, "project");
    const char *only = call->identity.project;
    const char *dry_run = http_exchange_query(call->exchange, "dry_run");
    if (only[0] != 0 && wanted != NULL && strcmp(only, wanted) != 0) {
        (void)fault_set(fault, FAULT_NOT_FOUND, "project", "there is no project '%.63s'", wanted);
        return 404;
    }
    if (dry_run != NULL && strcmp(dry_run, "true") != 0 && strcmp(dry_run, "false") != 0) {
        return refuse(fault, 400, "dry_run", "dry_run must be true or false");
    }
    call->compute.project = only[0] != 0 ? only : wanted;
    if (call->compute.project == NULL && is_own_name(call)) {
        call->compute.project = COMPUTE_DEFAULT_PROJECT;
    }
    call->compute.actor = call->identity.actor;
    call->compute.token = http_exchange_header(call->exchange, "idempotency-key");
    call->compute.keeps_to_types = call->identity.role < ROLE_ADMIN || only[0] != 0;
    call->compute.is_dry_run = dry_run != NULL && strcmp(dry_run, "true") == 0;
    return 0;
}

/* Everything up to the handler: 0, or the status of the refusal. */
static int prepare(struct api *api, struct api_call *call, struct fault *fault)
{
    bool is_path;
    call->operation = operation_find(call->request->method, call->request->path, call, &is_path);
    int status = auth_identify(api, call->exchange, false, &call->identity, fault);
    bool is_anybodys = call->operation != NULL && call->operation->role == ROLE_NONE;
    if (status == 401 && is_anybodys) {
        status = 0; /* an old cookie must not keep anybody from signing in */
    }
    int limited = check_rate(api, call, fault);
    if (status != 0 || limited != 0) {
        return limited != 0 ? limited : status;
    }
    if (call->operation == NULL) {
        (void)fault_set(fault, FAULT_NOT_FOUND, NULL,
                        is_path ? "%.200s does not take %.8s" : "there is no %.200s",
                        call->request->path, call->request->method);
        return is_path ? 405 : 404;
    }
    status = auth_permit(&call->identity, call->operation, fault);
    if (status == 0) {
        status = check_query(call, fault);
    }
    if (status == 0) {
        status = parse_body(call, fault);
    }
    if (status == 0) {
        status = fill_compute_call(call, fault);
    }
    return status != 0 ? status : permit_call(api, call, fault);
}

static void serve(struct api *api, struct http_exchange *exchange)
{
    struct api_call call = {.exchange = exchange, .request = http_exchange_request(exchange)};
    struct fault fault = {0};
    json_t *answer = NULL;
    (void)snprintf(call.request_id, sizeof(call.request_id), "r-%08x",
                   atomic_fetch_add(&api->next_request, 1));

    int status = prepare(api, &call, &fault);
    if (status == 0 && call.operation->handle(api, &call, &answer, &fault) != 0) {
        status = call.operation->handle == accounts_sign_in && fault.code == FAULT_INVALID
                     ? 401
                     : answer_status(fault.code);
    }
    identity_done(&call.identity);
    if (call.is_streaming) {
        return; /* audited where it was given away, while the request was still ours */
    }
    if (status != 0) {
        shown_refusal(&call.identity, &fault);
        audit_write(api->audit, &call, status, fault_code_name(fault.code));
        answer_fault(&call, status, &fault);
    } else {
        bool is_going_on =
            json_object_get(answer, "operation") != NULL && call.operation->kind != KIND_OPERATION;
        status = is_going_on ? 202 : call.operation->status;
        audit_write(api->audit, &call, status, NULL);
        if (call.text != NULL) {
            answer_text(&call, status, call.text);
        } else {
            answer_send(&call, status, answer);
        }
    }
    (void)atomic_fetch_add_explicit(&api->answered[status / 100 % ARRAY_LEN(api->answered)], 1,
                                    memory_order_relaxed);
    free(call.text);
    json_decref(answer);
    json_decref(call.body);
}

static void *work(void *opaque)
{
    struct api *api = opaque;
    mutex_lock(&api->mutex);
    for (;;) {
        while (api->first == NULL && !api->is_ending) {
            (void)pthread_cond_wait(&api->is_work, &api->mutex.raw);
        }
        struct job *job = api->first;
        if (job == NULL) {
            break;
        }
        api->first = job->next;
        if (api->first == NULL) {
            api->last = NULL;
        }
        api->queued--;
        mutex_unlock(&api->mutex);
        serve(api, job->exchange);
        free(job);
        mutex_lock(&api->mutex);
    }
    mutex_unlock(&api->mutex);
    return NULL;
}

static void on_request(void *opaque, struct http_exchange *exchange)
{
    struct api *api = opaque;
    if (api->config.other != NULL &&
        strncmp(http_exchange_request(exchange)->path, "/v1/", 4) != 0 &&
        strcmp(http_exchange_request(exchange)->path, "/metrics") != 0) {
        api->config.other(exchange);
        return;
    }
    struct job *job = calloc(1, sizeof(*job));
    bool is_taken = false;
    mutex_lock(&api->mutex);
    if (job != NULL && api->queued < QUEUE_MAX) {
        job->exchange = exchange;
        *(api->last != NULL ? &api->last->next : &api->first) = job;
        api->last = job;
        api->queued++;
        is_taken = true;
        (void)pthread_cond_signal(&api->is_work);
    }
    mutex_unlock(&api->mutex);
    if (!is_taken) {
        static const char busy[] = "{\"error\":{\"code\":\"unavailable\",\"message\":\"the server "
                                   "is busy; try again\"}}\n";
        const struct http_header retry = {"retry-after", "1"};
        free(job);
        http_respond(exchange, 503, "application/json", &retry, 1, busy, sizeof(busy) - 1);
    }
}

/* The only socket is a console: /v1/instances/ID/console. */
static int on_socket_open(void *opaque, struct http_exchange *exchange)
{
    static const struct api_operation console = {
        .id = "instance.console",
        .method = "GET",
        .path = "/v1/instances/{id}/console",
        .role = ROLE_MEMBER,
        .kind = KIND_INSTANCE,
        .query = "project",
    };
    static const char before[] = "/v1/instances/", after[] = "/console";
    struct api *api = opaque;
    struct api_call call = {
        .exchange = exchange,
        .request = http_exchange_request(exchange),
        .operation = &console,
        .request_id = "socket",
    };
    struct fault fault = {0};
    const char *path = call.request->path;
    size_t len = strlen(path);
    int fd = -1;
    if (len <= sizeof(before) + sizeof(after) - 2 ||
        len - (sizeof(before) + sizeof(after) - 2) >= API_ID_BYTES ||
        strncmp(path, before, sizeof(before) - 1) != 0 ||
        strcmp(path + len - (sizeof(after) - 1), after) != 0) {
        return 404;
    }
    (void)snprintf(call.id, sizeof(call.id), "%.*s",
                   (int)(len - (sizeof(before) + sizeof(after) - 2)), path + sizeof(before) - 1);
    int status = auth_identify(api, exchange, true, &call.identity, &fault);
    if (status == 0) {
        status = check_rate(api, &call, &fault);
    }
    if (status == 0) {
        status = auth_permit(&call.identity, &console, &fault);
    }
    if (status == 0) {
        status = fill_compute_call(&call, &fault);
    }
    if (status == 0) {
        status = permit_call(api, &call, &fault);
    }
    if (status == 0 &&
        compute_console(api->config.compute, &call.compute, call.id, &fd, &fault) != 0) {
        status = answer_status(fault.code);
    }
    if (status == 0 && streams_console(api->streams, &call, fd) != 0) {
        status = 503;
    }
    identity_done(&call.identity);
    audit_write(api->audit, &call, status != 0 ? status : 101, NULL);
    return status;
}

static void on_message(void *opaque, struct http_exchange *exchange, const void *data, size_t len)
{
    struct api *api = opaque;
    streams_console_input(api->streams, exchange, data, len);
}

static void on_gone(void *opaque, struct http_exchange *exchange)
{
    struct api *api = opaque;
    streams_gone(api->streams, exchange);
}

const struct http_ops api_http_ops = {
    .request = on_request,
    .socket_open = on_socket_open,
    .socket_message = on_message,
    .gone = on_gone,
};

static int start_threads(struct api *api)
{
    api->threads = calloc(api->config.workers, sizeof(*api->threads));
    if (api->threads == NULL) {
        return -ENOMEM;
    }
    for (; api->thread_count < api->config.workers; api->thread_count++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "api/%u", api->thread_count);
        int error = thread_start(&api->threads[api->thread_count], name, work, api);
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

int api_create(const struct api_config *config, struct api **ret_api, struct err *err)
{
    struct api *api = calloc(1, sizeof(*api));
    if (api == NULL) {
        return err_set(err, -ENOMEM, "cannot set up the API: not enough memory");
    }
    api->config = *config;
    api->config.workers = config->workers != 0 ? config->workers : WORKERS_DEFAULT;
    api->config.calls_per_s = config->calls_per_s != 0 ? config->calls_per_s : CALLS_DEFAULT;
    mutex_init(&api->mutex, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&api->is_work, NULL);
    int error = config->audit_path != NULL ? audit_open(config->audit_path, &api->audit, err) : 0;
    if (error == 0) {
        error = limits_create(api->config.calls_per_s, &api->limits);
        error = error != 0 ? error : streams_create(api, &api->streams);
        error = error != 0 ? error : start_threads(api);
        if (error != 0) {
            (void)err_set_errno(err, error, "cannot set up the API");
        }
    }
    if (error != 0) {
        api_destroy(api);
        return error;
    }
    *ret_api = api;
    return 0;
}

void api_destroy(struct api *api)
{
    if (api == NULL) {
        return;
    }
    mutex_lock(&api->mutex);
    api->is_ending = true;
    (void)pthread_cond_broadcast(&api->is_work);
    mutex_unlock(&api->mutex);
    for (unsigned i = 0; i < api->thread_count; i++) {
        (void)pthread_join(api->threads[i], NULL);
    }
    streams_destroy(api->streams);
    limits_destroy(api->limits);
    audit_close(api->audit);
    free(api->threads);
    (void)pthread_cond_destroy(&api->is_work);
    mutex_done(&api->mutex);
    free(api);
}
