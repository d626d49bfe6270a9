/* The OpenAPI 3.0.3 document, from the table of operations and the kinds' fields. */
#include "api/api_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *choices_of(const struct field *field)
{
    json_t *choices = json_array();
    for (const char *at = field->choices; at != NULL && *at != 0;) {
        size_t len = strcspn(at, " ");
        (void)json_array_append_new(choices, json_stringn(at, len));
        at += len + (at[len] == ' ');
    }
    return choices;
}

static json_t *text_schema(const struct field *field)
{
    json_t *schema = json_pack("{s:s}", "type", "string");
    if (field->max > 0) {
        (void)json_object_set_new(schema, "minLength", json_integer(field->min));
        (void)json_object_set_new(schema, "maxLength", json_integer(field->max));
    }
    return schema;
}

static json_t *type_schema(const struct field *field)
{
    switch (field->type) {
    case FIELD_CHOICE:
        return json_pack("{s:s, s:o}", "type", "string", "enum", choices_of(field));
    case FIELD_NUMBER:
        return json_pack("{s:s, s:I, s:I}", "type", "integer", "minimum", (json_int_t)field->min,
                         "maximum", (json_int_t)field->max);
    case FIELD_FLAG:
        return json_pack("{s:s}", "type", "boolean");
    case FIELD_TIME:
        return json_pack("{s:s}", "type", "number");
    case FIELD_IDS:
        return json_pack("{s:s, s:{s:s}, s:b}", "type", "array", "items", "type", "string",
                         "uniqueItems", 1);
    case FIELD_WORDS:
        return json_pack("{s:s, s:{s:s}, s:I, s:I}", "type", "array", "items", "type", "string",
                         "minItems", (json_int_t)field->min, "maxItems", (json_int_t)field->max);
    case FIELD_TAGS:
        return json_pack("{s:s, s:{s:s}}", "type", "object", "additionalProperties", "type",
                         "string");
    case FIELD_FORWARDS:
        return json_pack("{s:s, s:{s:s, s:{s:{s:s}, s:{s:s}}}}", "type", "array", "items", "type",
                         "object", "properties", "host_port", "type", "integer", "guest_port",
                         "type", "integer");
    case FIELD_RECORDS:
        return json_pack("{s:s, s:{s:s}, s:I}", "type", "array", "items", "type", "object",
                         "maxItems", (json_int_t)field->max);
    default:
        return text_schema(field);
    }
}

static json_t *field_schema(const struct field *field)
{
    json_t *schema = type_schema(field);
    if (field->help != NULL) {
        (void)json_object_set_new(schema, "description", json_string(field->help));
    }
    if ((field->access & FIELD_STOPPED) != 0) {
        (void)json_object_set_new(schema, "x-only-while", json_string("stopped"));
    }
    if (field->preset != NULL) {
        json_t *preset = json_loads(field->preset, JSON_DECODE_ANY, NULL);
        if (preset != NULL) {
            (void)json_object_set_new(schema, "default", preset);
        }
    }
    return schema;
}

/* access 0: all that is answered; else the fields that have one of its bits. */
static json_t *object_schema(const struct field *fields, unsigned count, unsigned access)
{
    json_t *properties = json_object();
    json_t *required = json_array();
    for (unsigned i = 0; i < count; i++) {
        bool is_in =
            access != 0 ? (fields[i].access & access) != 0 : (fields[i].access & FIELD_SECRET) == 0;
        if (!is_in) {
            continue;
        }
        (void)json_object_set_new(properties, fields[i].name, field_schema(&fields[i]));
        if (access == FIELD_AT_CREATE && (fields[i].access & FIELD_NEEDED) != 0) {
            (void)json_array_append_new(required, json_string(fields[i].name));
        }
    }
    json_t *schema = json_pack("{s:s, s:o}", "type", "object", "properties", properties);
    if (access != 0) {
        (void)json_object_set_new(schema, "additionalProperties", json_false());
    }
    if (json_array_size(required) > 0) {
        (void)json_object_set(schema, "required", required);
    }
    json_decref(required);
    return schema;
}

/* The body of "instance.act" is one of the actions' parameters. */
static json_t *action_schema(void)
{
    unsigned count;
    const struct compute_action *actions = compute_actions(&count);
    json_t *any = json_array();
    for (unsigned i = 0; i < count; i++) {
        json_t *schema = object_schema(actions[i].fields, actions[i].field_count, FIELD_AT_CREATE);
        (void)json_object_set_new(schema, "title", json_string(actions[i].name));
        (void)json_object_set_new(schema, "description", json_string(actions[i].help));
        (void)json_array_append_new(any, schema);
    }
    return json_pack("{s:o}", "anyOf", any);
}

static json_t *kind_schema(enum kind kind, unsigned access)
{
    const struct kind_spec *spec = kind_spec(kind);
    return object_schema(spec->fields, spec->field_count, access);
}

static json_t *body_schema(const struct api_operation *operation)
{
    switch (operation->body) {
    case API_BODY_CREATE:
        return kind_schema(operation->kind, FIELD_AT_CREATE);
    case API_BODY_CHANGE:
        return kind_schema(operation->kind, FIELD_CHANGES);
    case API_BODY_FIELDS:
        return object_schema(operation->fields, operation->field_count, FIELD_AT_CREATE);
    case API_BODY_ACTION:
        return action_schema();
    case API_BODY_ROLE:
        return roles_schema(operation->handle == roles_create);
    default:
        return NULL;
    }
}

static json_t *action_names(void)
{
    unsigned count;
    const struct compute_action *actions = compute_actions(&count);
    json_t *names = json_array();
    for (unsigned i = 0; i < count; i++) {
        (void)json_array_append_new(names, json_string(actions[i].name));
    }
    return names;
}

static void add_parameter(json_t *parameters, const char *name, const char *in, json_t *schema)
{
    (void)json_array_append_new(parameters,
                                json_pack("{s:s, s:s, s:b, s:o}", "name", name, "in", in,
                                          "required", strcmp(in, "path") == 0, "schema", schema));
}

static json_t *query_schema(const char *name)
{
    if (strcmp(name, "dry_run") == 0) {
        return json_pack("{s:s}", "type", "boolean");
    }
    bool is_number = strcmp(name, "limit") == 0 || strcmp(name, "revision") == 0 ||
                     strcmp(name, "since") == 0 || strcmp(name, "timeout_ms") == 0 ||
                     strcmp(name, "wait_ms") == 0 || strcmp(name, "offset") == 0 ||
                     strcmp(name, "length") == 0 || strcmp(name, "until") == 0 ||
                     strcmp(name, "step") == 0;
    return json_pack("{s:s}", "type", is_number ? "integer" : "string");
}

static json_t *parameters_of(const struct api_operation *operation)
{
    json_t *parameters = json_array();
    if (strstr(operation->path, "{id}") != NULL) {
        add_parameter(parameters, "id", "path", json_pack("{s:s}", "type", "string"));
    }
    if (strstr(operation->path, "{action}") != NULL) {
        add_parameter(parameters, "action", "path",
                      json_pack("{s:s, s:o}", "type", "string", "enum", action_names()));
    }
    if (strstr(operation->path, "{pid}") != NULL) {
        add_parameter(parameters, "pid", "path", json_pack("{s:s}", "type", "integer"));
    }
    for (const char *at = operation->query; *at != 0;) {
        char name[32];
        size_t len = strcspn(at, " ");
        (void)snprintf(name, sizeof(name), "%.*s", (int)len, at);
        if (strcmp(name, "*") != 0) {
            add_parameter(parameters, name, "query", query_schema(name));
        }
        at += len + (at[len] == ' ');
    }
    if (operation->body == API_BODY_CREATE) {
        add_parameter(parameters, "idempotency-key", "header",
                      json_pack("{s:s}", "type", "string"));
    }
    return parameters;
}

/* What a guest's agent answers is described in docs/guest-agent.md. */
static bool is_guests(const struct api_operation *operation)
{
    return operation->handle == guests_agent || operation->handle == guests_exec ||
           operation->handle == guests_exec_status || operation->handle == guests_write ||
           operation->handle == guests_password;
}

static json_t *answer_schema(const struct api_operation *operation)
{
    if (operation->kind == KIND_COUNT || strstr(operation->id, ".statistics") != NULL ||
        strstr(operation->id, ".history") != NULL || is_guests(operation)) {
        return json_pack("{s:s}", "type", "object");
    }
    char reference[64];
    const struct kind_spec *spec = kind_spec(operation->kind);
    (void)snprintf(reference, sizeof(reference), "#/components/schemas/%s", spec->name);
    if (operation->handle == objects_get) {
        return json_pack("{s:s}", "$ref", reference);
    }
    if (operation->handle == objects_list) {
        return json_pack("{s:s, s:{s:{s:s, s:{s:s}}, s:{s:s}, s:{s:s}}}", "type", "object",
                         "properties", "items", "type", "array", "items", "$ref", reference, "next",
                         "type", "string", "revision", "type", "integer");
    }
    return json_pack("{s:s, s:{s:{s:s}, s:{s:s}}}", "type", "object", "properties", spec->name,
                     "$ref", reference, "operation", "$ref", "#/components/schemas/operation");
}

static json_t *describe(const struct api_operation *operation)
{
    char status[8];
    bool is_bytes = operation->handle == guests_read;
    bool is_metrics = operation->handle == metrics_text;
    bool is_stream = operation->handle == streams_watch || is_bytes || is_metrics;
    (void)snprintf(status, sizeof(status), "%d", operation->status);
    json_t *responses = json_object();
    (void)json_object_set_new(
        responses, status,
        json_pack("{s:s, s:{s:{s:o}}}", "description", "done", "content",
                  is_bytes     ? "application/octet-stream"
                  : is_metrics ? "text/plain"
                  : is_stream  ? "text/event-stream"
                               : "application/json",
                  "schema",
                  is_stream ? json_pack("{s:s}", "type", "string") : answer_schema(operation)));
    (void)json_object_set_new(responses, "default",
                              json_pack("{s:s, s:{s:{s:{s:s}}}}", "description", "refused",
                                        "content", "application/json", "schema", "$ref",
                                        "#/components/schemas/error"));
    if (operation->body == API_BODY_CREATE || operation->body == API_BODY_ACTION ||
        operation->body == API_BODY_CHANGE || operation->handle == objects_delete ||
        operation->handle == objects_restore) {
        (void)json_object_set_new(responses, "202",
                                  json_pack("{s:s, s:{s:{s:o}}}", "description",
                                            "an operation goes on", "content", "application/json",
                                            "schema", answer_schema(operation)));
    }
    json_t *text = json_pack("{s:s, s:s, s:o, s:o, s:s}", "operationId", operation->id, "summary",
                             operation->summary, "parameters", parameters_of(operation),
                             "responses", responses, "x-role", role_name(operation->role));
    json_t *body = body_schema(operation);
    if (operation->body == API_BODY_BYTES) {
        (void)json_object_set_new(text, "requestBody",
                                  json_pack("{s:b, s:{s:{s:{s:s, s:s}}}}", "required", 1, "content",
                                            "application/octet-stream", "schema", "type", "string",
                                            "format", "binary"));
    }
    if (body != NULL) {
        (void)json_object_set_new(text, "requestBody",
                                  json_pack("{s:b, s:{s:{s:o}}}", "required",
                                            operation->body != API_BODY_ACTION, "content",
                                            "application/json", "schema", body));
    }
    return text;
}

static json_t *schemas(void)
{
    json_t *all = json_object();
    for (enum kind kind = 0; kind < KIND_COUNT; kind++) {
        const struct kind_spec *spec = kind_spec(kind);
        (void)json_object_set_new(all, spec->name,
                                  object_schema(spec->fields, spec->field_count, 0));
    }
    (void)json_object_set_new(
        all, "error",
        json_pack("{s:s, s:{s:{s:s, s:{s:{s:s}, s:{s:s}, s:{s:s}, s:{s:s}}}}}", "type", "object",
                  "properties", "error", "type", "object", "properties", "code", "type", "string",
                  "message", "type", "string", "field", "type", "string", "request", "type",
                  "string"));
    return all;
}

json_t *api_openapi(void)
{
    unsigned count;
    const struct api_operation *operations = api_operations(&count);
    json_t *paths = json_object();
    for (unsigned i = 0; i < count; i++) {
        char method[8] = "";
        for (size_t c = 0; operations[i].method[c] != 0; c++) {
            method[c] = (char)(operations[i].method[c] | 0x20);
        }
        json_t *path = json_object_get(paths, operations[i].path);
        if (path == NULL) {
            path = json_object();
            (void)json_object_set_new(paths, operations[i].path, path);
        }
        (void)json_object_set_new(path, method, describe(&operations[i]));
    }
    return json_pack("{s:s, s:{s:s, s:s}, s:o, s:{s:o, s:{s:{s:s, s:s}}}}", "openapi", "3.0.3",
                     "info", "title", "Corbel", "version", CORBEL_VERSION, "paths", paths,
                     "components", "schemas", schemas(), "securitySchemes", "token", "type", "http",
                     "scheme", "bearer");
}
