/* What is asked of the agent in an instance: programs, files, a password. */
#include "api/api_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_MAX_BYTES = 4096 };

/* A guest may let its callers wait; they never take more than half of the workers. */
static int begin(struct api *api, struct fault *fault)
{
    if (atomic_fetch_add(&api->waiting, 1) < api->config.workers / 2) {
        return 0;
    }
    atomic_fetch_sub(&api->waiting, 1);
    return fault_set(fault, FAULT_UNAVAILABLE, NULL, "too many calls wait for guests; try again");
}

static void end(struct api *api)
{
    atomic_fetch_sub(&api->waiting, 1);
}

int guests_agent(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    int error = begin(api, fault);
    if (error == 0) {
        error = compute_agent(api->config.compute, &call->compute, call->id, ret_answer, fault);
        end(api);
    }
    return error;
}

int guests_exec(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    int error = begin(api, fault);
    if (error == 0) {
        unsigned wait_ms = (unsigned)json_integer_value(json_object_get(call->body, "wait_ms"));
        error = compute_exec(api->config.compute, &call->compute, call->id, call->body, wait_ms,
                             ret_answer, fault);
        end(api);
    }
    return error;
}

int guests_exec_status(struct api *api, struct api_call *call, json_t **ret_answer,
                       struct fault *fault)
{
    uint64_t pid, wait_ms;
    char *last;
    pid = strtoull(call->action, &last, 10);
    if (*last != 0 || call->action[0] < '0' || call->action[0] > '9' || pid > INT32_MAX) {
        return fault_set(fault, FAULT_NOT_FOUND, "pid", "a program's number is not '%.40s'",
                         call->action);
    }
    int error = query_number(call, "wait_ms", COMPUTE_EXEC_MAX_WAIT_MS, 10000, &wait_ms, fault);
    error = error != 0 ? error : begin(api, fault);
    if (error == 0) {
        error = compute_exec_status(api->config.compute, &call->compute, call->id, (int64_t)pid,
                                    (unsigned)wait_ms, ret_answer, fault);
        end(api);
    }
    return error;
}

static int read_place(const struct api_call *call, struct compute_file *ret_file,
                      struct fault *fault)
{
    int error = query_number(call, "offset", INT64_MAX, 0, &ret_file->offset, fault);
    ret_file->path = http_exchange_query(call->exchange, "path");
    if (error == 0 && (ret_file->path == NULL || ret_file->path[0] != '/' ||
                       strlen(ret_file->path) > PATH_MAX_BYTES)) {
        error = fault_set(fault, FAULT_INVALID, "path", "path must be a file's absolute path");
    }
    return error;
}

/* Answers with the bytes themselves. */
int guests_read(struct api *api, struct api_call *call, MAYBE_UNUSED json_t **ret_answer,
                struct fault *fault)
{
    struct compute_file file;
    uint64_t length;
    void *data;
    size_t len;
    bool is_end;
    int error = read_place(call, &file, fault);
    error = error != 0 ? error
                       : query_number(call, "length", COMPUTE_FILE_MAX_PIECE,
                                      COMPUTE_FILE_MAX_PIECE, &length, fault);
    error = error != 0 ? error : begin(api, fault);
    if (error != 0) {
        return error;
    }
    file.len = (size_t)length;
    error = compute_file_read(api->config.compute, &call->compute, call->id, &file, &data, &len,
                              &is_end, fault);
    end(api);
    if (error != 0) {
        return error;
    }
    const struct http_header headers[] = {
        {"x-request-id", call->request_id},
        {"x-corbel-end", is_end ? "true" : "false"},
        {"cache-control", "no-store"},
        {"content-disposition", "attachment"}, /* a guest's file is no page of ours */
        {"x-content-type-options", "nosniff"},
    };
    audit_write(api->audit, call, 200, NULL);
    call->is_streaming = true;
    http_respond(call->exchange, 200, "application/octet-stream", headers,
                 sizeof(headers) / sizeof(headers[0]), data, len);
    free(data);
    return 0;
}

int guests_write(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    struct compute_file file;
    int error = read_place(call, &file, fault);
    error = error != 0 ? error : begin(api, fault);
    if (error != 0) {
        return error;
    }
    file.len = call->request->body_len;
    error = compute_file_write(api->config.compute, &call->compute, call->id, &file,
                               call->request->body, fault);
    end(api);
    if (error == 0) {
        *ret_answer = json_pack("{s:{s:s, s:I, s:I}}", "file", "path", file.path, "offset",
                                (json_int_t)file.offset, "length", (json_int_t)file.len);
    }
    return error;
}

int guests_password(struct api *api, struct api_call *call, json_t **ret_answer,
                    struct fault *fault)
{
    int error = begin(api, fault);
    if (error == 0) {
        error =
            compute_set_password(api->config.compute, &call->compute, call->id, call->body, fault);
        end(api);
    }
    if (error == 0) {
        *ret_answer = json_object();
    }
    return error;
}
