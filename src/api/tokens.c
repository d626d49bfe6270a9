/* API tokens: what a program says who it is by. */
#include "api/accounts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { TOKENS_OF_USER_MAX = 100 };

const struct field account_key_fields[4] = {
    {"name", FIELD_NAME, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL, "what it is for"},
    ACCOUNTS_ROLE(FIELD_AT_CREATE, NULL),
    ACCOUNTS_PROJECT,
    {"expires_s", FIELD_NUMBER, FIELD_AT_CREATE, 1, 3650LL * 86400, NULL, NULL,
     "seconds from now; none: never"},
};

bool accounts_owns_token(const struct identity *identity, const json_t *key)
{
    const char *user = identity->user;
    if (identity->role == ROLE_ADMIN && identity->project[0] == 0) {
        return true;
    }
    if (strncmp(identity->actor, "token:", 6) == 0) {
        return strcmp(text_of(key, "id"), identity->actor + 6) == 0;
    }
    return user[0] != 0 && strcmp(text_of(key, "user"), user) == 0 &&
           (identity->project[0] == 0 || strcmp(text_of(key, "project"), identity->project) == 0);
}

int accounts_list_keys(struct api *api, struct api_call *call, json_t **ret_answer,
                       struct fault *fault)
{
    return accounts_list(api, AUTH_KEY_PREFIX, &call->identity, ret_answer, fault);
}

struct count {
    const char *user;
    unsigned left;
};

static int count_own(void *opaque, MAYBE_UNUSED const struct store_record *record,
                     const json_t *object)
{
    struct count *count = opaque;
    if (strcmp(text_of(object, "user"), count->user) != 0) {
        return 0;
    }
    return count->left-- == 1;
}

/* Whether the user may have one more; who owns the host may always. */
static int check_count(struct api *api, const char *user, struct fault *fault)
{
    struct count count = {.user = user, .left = TOKENS_OF_USER_MAX};
    int rc = user[0] != 0 ? accounts_each(api, AUTH_KEY_PREFIX, count_own, &count, fault) : 0;
    return rc <= 0 ? rc
                   : fault_set(fault, FAULT_QUOTA, NULL,
                               "'%s' has %d tokens, and no more can be made; revoke one", user,
                               TOKENS_OF_USER_MAX);
}

static json_t *key_record(struct api *api, const struct api_call *call)
{
    const struct identity *who = &call->identity;
    json_t *user = NULL, *record;
    uint64_t revision;
    const char *wanted = text_of(call->body, "role");
    enum role role = role_find(wanted);
    bool is_own = wanted[0] != 0 && role == ROLE_NONE;
    bool is_clamped = !is_own && (role == ROLE_NONE || role > who->role);
    const char *project = text_of(call->body, "project");
    json_int_t expires_s = json_integer_value(json_object_get(call->body, "expires_s"));
    if (who->user[0] != 0 &&
        accounts_load(api, AUTH_USER_PREFIX, who->user, &user, &revision, NULL) != 0) {
        user = NULL; /* just gone, and so is what is made for it */
    }
    record = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "name", text_of(call->body, "name"),
                       "user", who->user, "stamp", text_of(user, AUTH_STAMP_OF_TOKENS), "role",
                       is_clamped ? (who->policy_count > 0 ? who->role_name : role_name(who->role))
                                  : wanted,
                       "project", who->project[0] != 0 ? who->project : project, "expires",
                       expires_s > 0 ? (json_int_t)time(NULL) + expires_s : 0);
    json_decref(user);
    return record;
}

int accounts_create_key(struct api *api, struct api_call *call, json_t **ret_answer,
                        struct fault *fault)
{
    char id[ACCOUNTS_ID_BYTES], secret[ACCOUNTS_SECRET_BYTES],
        token[ACCOUNTS_ID_BYTES + ACCOUNTS_SECRET_BYTES + 8];
    if (strncmp(call->identity.actor, "token:", 6) == 0 && call->identity.role != ROLE_ADMIN) {
        return fault_set(fault, FAULT_INVALID, NULL, "a token makes no tokens; sign in");
    }
    int error = accounts_check_role(api, call->body, fault);
    error = error != 0 ? error : check_count(api, call->identity.user, fault);
    if (error != 0) {
        return error;
    }
    json_t *record = key_record(api, call);
    error = accounts_make_secret(record, id, secret, sizeof(secret), fault);
    if (error == 0) {
        error = accounts_save(api, AUTH_KEY_PREFIX, id, 0, record, fault);
    }
    if (error == 0) {
        error = accounts_answer(record, ret_answer);
        (void)snprintf(token, sizeof(token), "cbl_%s_%s", id, secret);
        (void)json_object_set_new(*ret_answer, "token", json_string(token));
    }
    json_decref(record);
    return error;
}

int accounts_delete_key(struct api *api, struct api_call *call, json_t **ret_answer,
                        struct fault *fault)
{
    json_t *record;
    uint64_t revision;
    int error = accounts_load(api, AUTH_KEY_PREFIX, call->id, &record, &revision, fault);
    if (error != 0) {
        return error;
    }
    if (!accounts_owns_token(&call->identity, record)) {
        error = fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no '%s'", call->id);
    } else {
        error = accounts_save(api, AUTH_KEY_PREFIX, call->id, revision, NULL, fault);
    }
    if (error == 0) {
        error = accounts_answer(record, ret_answer);
    }
    json_decref(record);
    return error;
}
