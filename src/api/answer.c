#include "api/api_int.h"

#include <stdlib.h>
#include <string.h>

int answer_status(enum fault_code code)
{
    switch (code) {
    case FAULT_INVALID:
    case FAULT_UNKNOWN:
        return 400;
    case FAULT_NOT_FOUND:
        return 404;
    case FAULT_EXISTS:
    case FAULT_CONFLICT:
    case FAULT_TOKEN:
        return 409;
    case FAULT_STALE:
        return 412;
    case FAULT_QUOTA:
        return 403;
    case FAULT_CAPACITY:
    case FAULT_UNAVAILABLE:
        return 503;
    default:
        return 500;
    }
}

static void send_bytes(struct api_call *call, int status, const char *type, const char *text,
                       size_t len)
{
    struct http_header headers[5] = {{"x-request-id", call->request_id}};
    size_t count = 1;
    if (call->set_cookie != NULL) {
        headers[count++] = (struct http_header){"set-cookie", call->set_cookie};
    }
    if (call->location != NULL) {
        headers[count++] = (struct http_header){"location", call->location};
    }
    if (status == 401) {
        headers[count++] = (struct http_header){"www-authenticate", "Bearer"};
    }
    if (status == 429 || status == 503) {
        headers[count++] = (struct http_header){"retry-after", "1"};
    }
    http_respond(call->exchange, status, type, headers, count, text, len);
}

static void send_json(struct api_call *call, int status, const json_t *answer)
{
    char *text = json_dumps(answer, JSON_COMPACT);
    size_t len = text != NULL ? strlen(text) : 0;
    if (text != NULL) {
        text[len] = '\n'; /* in place of the NUL: a shell's prompt begins on a new line */
    }
    send_bytes(call, text != NULL ? status : 500, "application/json", text,
               text != NULL ? len + 1 : 0);
    free(text);
}

void answer_send(struct api_call *call, int status, const json_t *answer)
{
    send_json(call, status, answer);
}

void answer_text(struct api_call *call, int status, const char *text)
{
    send_bytes(call, status, call->text_type, text, strlen(text));
}

void answer_fault(struct api_call *call, int status, const struct fault *fault)
{
    const char *code = fault_code_name(fault->code);
    if (status == 401) {
        code = "unauthenticated";
    } else if (status == 403 && fault->code != FAULT_QUOTA) {
        code = "forbidden";
    } else if (status == 429) {
        code = "too-many-calls";
    } else if (status == 405) {
        code = "no-such-method";
    } else if (status == 415) {
        code = "not-json";
    }
    json_t *error = json_pack("{s:{s:s, s:s, s:s}}", "error", "code", code, "message", fault->text,
                              "request", call->request_id);
    if (error != NULL && fault->field[0] != 0) {
        (void)json_object_set_new(json_object_get(error, "error"), "field",
                                  json_string(fault->field));
    }
    send_json(call, status, error);
    json_decref(error);
}
