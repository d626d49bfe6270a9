/* From requests to the calls of compute/compute.h, and back. */
#include "api/api_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WAIT_MAX_MS = 30000, WAIT_DEFAULT_MS = 10000 };

int query_number(const struct api_call *call, const char *name, uint64_t max, uint64_t preset,
                 uint64_t *ret_value, struct fault *fault)
{
    const char *text = http_exchange_query(call->exchange, name);
    *ret_value = preset;
    if (text == NULL) {
        return 0;
    }
    errno = 0;
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != 0 || text[strspn(text, "0123456789")] != 0 || *text == 0 ||
        value > max) {
        return fault_set(fault, FAULT_INVALID, name, "%s must be a number from 0 to %llu", name,
                         (unsigned long long)max);
    }
    *ret_value = value;
    return 0;
}

/* Query parameters that are none of the operation's own are filters by field. */
static int read_filter(const struct api_call *call, json_t **ret_filter, struct fault *fault)
{
    static const char own[] = " project limit cursor ";
    const struct kind_spec *spec = kind_spec(call->operation->kind);
    *ret_filter = json_object();
    const char *piece;
    for (size_t i = 0; (piece = http_exchange_query_at(call->exchange, i)) != NULL; i++) {
        char name[96], word[100];
        size_t len = strcspn(piece, "=");
        if (len == 0 || len >= sizeof(name)) {
            continue;
        }
        memcpy(name, piece, len);
        name[len] = 0;
        (void)snprintf(word, sizeof(word), " %s ", name);
        if (strstr(own, word) != NULL) {
            continue;
        }
        if ((strncmp(name, "tag.", 4) != 0 && kind_field(spec, name) == NULL) ||
            shown_is_kept(&call->identity, spec->kind, name)) {
            json_decref(*ret_filter);
            return fault_set(fault, FAULT_UNKNOWN, name, "%s have no field '%s' to filter by",
                             spec->plural, name);
        }
        (void)json_object_set_new(*ret_filter, name,
                                  json_string(piece[len] == '=' ? piece + len + 1 : ""));
    }
    return 0;
}

/* Who is bound to a project knows of no other. */
static bool may_see(const struct api_call *call, const json_t *object)
{
    const char *only = call->identity.project;
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *name = json_string_value(json_object_get(object, "name"));
    return call->operation->kind != KIND_PROJECT || only[0] == 0 ||
           (id != NULL && strcmp(id, only) == 0) || (name != NULL && strcmp(name, only) == 0);
}

static void leave_out_others(struct api *api, const struct api_call *call, json_t *page)
{
    json_t *items = json_object_get(page, "items");
    for (size_t i = json_array_size(items); i > 0; i--) {
        json_t *item = json_array_get(items, i - 1);
        if (may_see(call, item) &&
            permit_listed(api, &call->identity, call->operation->kind, item)) {
            shown_shorten(&call->identity, call->operation->kind, item);
        } else {
            (void)json_array_remove(items, i - 1);
        }
    }
}

int objects_list(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    uint64_t limit;
    json_t *filter;
    int error = query_number(call, "limit", COMPUTE_MAX_PAGE, 0, &limit, fault);
    if (error == 0) {
        error = read_filter(call, &filter, fault);
    }
    if (error != 0) {
        return error;
    }
    const struct compute_list list = {
        .filter = filter,
        .limit = (unsigned)limit,
        .cursor = http_exchange_query(call->exchange, "cursor"),
    };
    error = compute_list(api->config.compute, &call->compute, call->operation->kind, &list,
                         ret_answer, fault);
    json_decref(filter);
    if (error == 0) {
        leave_out_others(api, call, *ret_answer);
    }
    return error;
}

int objects_get(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    json_t *object = NULL;
    int error = compute_get(api->config.compute, &call->compute, call->operation->kind, call->id,
                            &object, fault);
    if (error == 0 && !may_see(call, object)) {
        json_decref(object);
        return fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no project \"%.64s\"", call->id);
    }
    if (error == 0) {
        shown_shorten(&call->identity, call->operation->kind, object);
    }
    *ret_answer = object;
    return error;
}

int objects_create(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    if (call->compute.project == NULL && !kind_spec(call->operation->kind)->is_global) {
        call->compute.project = COMPUTE_DEFAULT_PROJECT;
    }
    return compute_create(api->config.compute, &call->compute, call->operation->kind, call->body,
                          ret_answer, fault);
}

int objects_change(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    uint64_t revision;
    int error = query_number(call, "revision", INT64_MAX, call->looked_at, &revision, fault);
    if (error == 0 && call->looked_at != 0 && revision != call->looked_at) {
        error = fault_set(fault, FAULT_STALE, "revision", "the object is at another revision now");
    }
    return error != 0 ? error
                      : compute_change(api->config.compute, &call->compute, call->operation->kind,
                                       call->id, call->body, revision, ret_answer, fault);
}

int objects_delete(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    return compute_delete(api->config.compute, &call->compute, call->operation->kind, call->id,
                          ret_answer, fault);
}

int objects_restore(struct api *api, struct api_call *call, json_t **ret_answer,
                    struct fault *fault)
{
    return compute_restore(api->config.compute, &call->compute, call->id, ret_answer, fault);
}

int objects_act(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    return compute_act(api->config.compute, &call->compute, call->action, call->id, call->body,
                       ret_answer, fault);
}

int objects_statistics(struct api *api, struct api_call *call, json_t **ret_answer,
                       struct fault *fault)
{
    return compute_statistics(api->config.compute, &call->compute, call->id, ret_answer, fault);
}

int objects_access(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    return compute_access(api->config.compute, &call->compute, call->id, ret_answer, fault);
}

int objects_log(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    return compute_log(api->config.compute, &call->compute, call->id, ret_answer, fault);
}

int objects_wait(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    uint64_t timeout_ms;
    int error = query_number(call, "timeout_ms", WAIT_MAX_MS, WAIT_DEFAULT_MS, &timeout_ms, fault);
    if (error != 0) {
        return error;
    }
    /* Those who wait never take more than half of the workers: the others answer at once. */
    bool is_waiting = atomic_fetch_add(&api->waiting, 1) < api->config.workers / 2;
    error = compute_wait(api->config.compute, &call->compute, call->id,
                         is_waiting ? (unsigned)timeout_ms : 0, ret_answer, fault);
    atomic_fetch_sub(&api->waiting, 1);
    return error;
}

int objects_cancel(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    return compute_cancel(api->config.compute, &call->compute, call->id, ret_answer, fault);
}

int objects_host(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    int error = compute_host(api->config.compute, call->compute.project, ret_answer, fault);
    if (error == 0) {
        json_t *urls = json_array();
        for (size_t i = 0; i < api->config.url_count; i++) {
            (void)json_array_append_new(urls, json_string(api->config.urls[i]));
        }
        (void)json_object_set_new(*ret_answer, "urls", urls);
    }
    return error;
}

int objects_describe(MAYBE_UNUSED struct api *api, MAYBE_UNUSED struct api_call *call,
                     json_t **ret_answer, struct fault *fault)
{
    *ret_answer = api_openapi();
    return *ret_answer != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}

int objects_version(MAYBE_UNUSED struct api *api, MAYBE_UNUSED struct api_call *call,
                    json_t **ret_answer, MAYBE_UNUSED struct fault *fault)
{
    *ret_answer = json_pack("{s:s, s:s}", "version", CORBEL_VERSION, "api", "v1");
    return 0;
}
