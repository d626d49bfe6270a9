/* Roles: three that are built in, and documents of one's own in the store. */
#include "api/accounts.h"
#include "base/path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NAME_BYTES_MAX = 63, ROLES_MAX = 200, STATEMENTS_BYTES = 16384 };

enum role roles_take(struct api *api, const char *name, struct identity *identity)
{
    enum role role = role_find(name);
    uint64_t revision;
    json_t *policy = NULL;
    if (role != ROLE_NONE) {
        return role;
    }
    if (identity->policy_count == ARRAY_LEN(identity->policies) ||
        accounts_load(api, AUTH_ROLE_PREFIX, name, &policy, &revision, NULL) != 0) {
        return ROLE_NONE;
    }
    identity->policies[identity->policy_count++] = policy;
    return policy_level(policy);
}

bool roles_exists(struct api *api, const char *name)
{
    uint64_t revision;
    json_t *role = NULL;
    bool is_one = role_find(name) != ROLE_NONE ||
                  accounts_load(api, AUTH_ROLE_PREFIX, name, &role, &revision, NULL) == 0;
    json_decref(role);
    return is_one;
}

void identity_done(struct identity *identity)
{
    while (identity->policy_count > 0) {
        json_decref(identity->policies[--identity->policy_count]);
    }
}

static int built_in(const char *name, struct fault *fault)
{
    return fault_set(fault, FAULT_CONFLICT, "name",
                     "the role %s is built in and stays as it is; make one of another name", name);
}

int roles_list(struct api *api, MAYBE_UNUSED struct api_call *call, json_t **ret_answer,
               struct fault *fault)
{
    int error = accounts_list(api, AUTH_ROLE_PREFIX, NULL, ret_answer, fault);
    for (enum role role = ROLE_ADMIN; error == 0 && role >= ROLE_VIEWER; role--) {
        (void)json_array_insert_new(json_object_get(*ret_answer, "items"), 0,
                                    policy_built_in(role));
    }
    return error;
}

int roles_get(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    uint64_t revision;
    if (role_find(call->id) != ROLE_NONE) {
        *ret_answer = policy_built_in(role_find(call->id));
        return 0;
    }
    return accounts_load(api, AUTH_ROLE_PREFIX, call->id, ret_answer, &revision, fault);
}

/* Of a body: name and statements, and nothing else. */
static int check_body(const json_t *body, bool has_name, struct fault *fault)
{
    const char *name = text_of(body, "name"), *field;
    struct err err = {0};
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)body, field, value)
    {
        if (strcmp(field, "statements") != 0 && (!has_name || strcmp(field, "name") != 0)) {
            return fault_set(fault, FAULT_UNKNOWN, field, "a role has no '%.60s' to give here",
                             field);
        }
    }
    if (has_name &&
        (name[0] == 0 || strlen(name) > NAME_BYTES_MAX || path_check_name(name, &err) != 0)) {
        return fault_set(fault, FAULT_INVALID, "name",
                         "a role needs a name of letters, digits, "
                         "'-', '_' and '.', 63 at most");
    }
    const json_t *statements = json_object_get(body, "statements");
    int error = policy_check(statements, fault);
    if (error == 0 && json_dumpb(statements, NULL, 0, JSON_COMPACT) > STATEMENTS_BYTES) {
        error =
            fault_set(fault, FAULT_INVALID, "statements",
                      "the statements of a role are %d bytes of JSON at most", STATEMENTS_BYTES);
    }
    return error;
}

/* Whether there is room for one more. */
static int check_count(struct api *api, struct fault *fault)
{
    struct store_page page;
    struct err err = {0};
    int error = store_list(api->config.store, AUTH_ROLE_PREFIX, NULL, ROLES_MAX, &page, &err);
    if (error != 0) {
        return fault_set_err(fault, error, &err);
    }
    bool is_full = page.count >= ROLES_MAX;
    store_page_done(&page);
    return is_full ? fault_set(fault, FAULT_QUOTA, NULL,
                               "there are %d roles beside those that are built in, and no more "
                               "can be made; delete one that nobody has",
                               ROLES_MAX)
                   : 0;
}

struct bearer {
    const char *role;
    bool is_token;
    char who[160];
};

static int find_bearer(void *opaque, MAYBE_UNUSED const struct store_record *record,
                       const json_t *object)
{
    struct bearer *bearer = opaque;
    json_int_t expires = json_integer_value(json_object_get(object, "expires"));
    if (strcmp(text_of(object, "role"), bearer->role) != 0 ||
        (expires != 0 && expires <= (json_int_t)time(NULL))) {
        return 0;
    }
    (void)snprintf(bearer->who, sizeof(bearer->who),
                   bearer->is_token ? "token %s (%s)" : "user %s%s",
                   text_of(object, bearer->is_token ? "id" : "name"),
                   bearer->is_token ? text_of(object, "name") : "");
    return 1;
}

/* Whether nobody below the prefix has the role: else the next one of that name came to be theirs. */
static int check_unused(struct api *api, const char *prefix, const char *name, struct fault *fault)
{
    struct bearer bearer = {.role = name, .is_token = strcmp(prefix, AUTH_KEY_PREFIX) == 0};
    int rc = accounts_each(api, prefix, find_bearer, &bearer, fault);
    return rc <= 0
               ? rc
               : fault_set(fault, FAULT_CONFLICT, NULL, "the %s has the role '%s'; %s first",
                           bearer.who, name, bearer.is_token ? "revoke it" : "give another one");
}

static int check_nobodys(struct api *api, const char *name, struct fault *fault)
{
    int error = check_unused(api, AUTH_USER_PREFIX, name, fault);
    return error != 0 ? error : check_unused(api, AUTH_KEY_PREFIX, name, fault);
}

int roles_create(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    const char *name = text_of(call->body, "name");
    int error = check_body(call->body, true, fault);
    if (error != 0) {
        return error;
    }
    if (role_find(name) != ROLE_NONE || strcmp(name, role_name(ROLE_NONE)) == 0) {
        return built_in(name, fault);
    }
    error = check_count(api, fault);
    error = error != 0 ? error : check_nobodys(api, name, fault);
    if (error != 0) {
        return error;
    }
    json_t *role =
        json_pack("{s:s, s:b, s:O, s:I}", "name", name, "built_in", 0, "statements",
                  json_object_get(call->body, "statements"), "created", (json_int_t)time(NULL));
    error = role == NULL ? fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory")
                         : accounts_save(api, AUTH_ROLE_PREFIX, name, 0, role, fault);
    if (error != 0) {
        json_decref(role);
        return error;
    }
    *ret_answer = role;
    return 0;
}

/* A role of one's own, to be changed. */
static int open_own(struct api *api, const char *name, json_t **ret_role, uint64_t *ret_revision,
                    struct fault *fault)
{
    if (role_find(name) != ROLE_NONE) {
        return built_in(name, fault);
    }
    return accounts_load(api, AUTH_ROLE_PREFIX, name, ret_role, ret_revision, fault);
}

int roles_change(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    uint64_t revision;
    json_t *role = NULL;
    int error = check_body(call->body, false, fault);
    error = error != 0 ? error : open_own(api, call->id, &role, &revision, fault);
    if (error == 0) {
        (void)json_object_update(role, call->body);
        error = accounts_save(api, AUTH_ROLE_PREFIX, call->id, revision, role, fault);
    }
    if (error != 0) {
        json_decref(role);
        return error;
    }
    *ret_answer = role;
    return 0;
}

int roles_delete(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    uint64_t revision;
    json_t *role = NULL;
    int error = open_own(api, call->id, &role, &revision, fault);
    error = error != 0 ? error : check_nobodys(api, call->id, fault);
    error =
        error != 0 ? error : accounts_save(api, AUTH_ROLE_PREFIX, call->id, revision, NULL, fault);
    if (error != 0) {
        json_decref(role);
        return error;
    }
    *ret_answer = role;
    return 0;
}

json_t *roles_schema(bool has_name)
{
    json_t *statements = policy_schema();
    json_t *schema =
        json_pack("{s:s, s:{s:o}, s:[s], s:b}", "type", "object", "properties", "statements",
                  statements, "required", "statements", "additionalProperties", 0);
    if (has_name) {
        (void)json_object_set_new(json_object_get(schema, "properties"), "name",
                                  json_pack("{s:s, s:i, s:i}", "type", "string", "minLength", 1,
                                            "maxLength", NAME_BYTES_MAX));
        (void)json_array_append_new(json_object_get(schema, "required"), json_string("name"));
    }
    return schema;
}
