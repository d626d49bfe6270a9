/* Users: who signs in, with what password, as what. */
#include "api/accounts.h"

#include <crypt.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PASSWORD(access)                                                                       \
    {                                                                                          \
        "password", FIELD_TEXT, (access) | FIELD_SECRET, 8, 200, NULL, NULL, "8 bytes or more" \
    }
const struct field account_user_fields[4] = {
    {"name", FIELD_NAME, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL, "to sign in by"},
    PASSWORD(FIELD_AT_CREATE | FIELD_NEEDED),
    ACCOUNTS_ROLE(FIELD_AT_CREATE, "\"member\""),
    ACCOUNTS_PROJECT,
};
const struct field account_user_changes[3] = {
    PASSWORD(FIELD_AT_CREATE),
    ACCOUNTS_ROLE(FIELD_AT_CREATE, NULL),
    ACCOUNTS_PROJECT,
};

/*
 * A user who was as before and becomes as after (NULL: is deleted). The commit holds only while
 * another administrator is one: two who put out each other at once do not both succeed.
 */
static int save_user(struct api *api, const char *name, uint64_t revision, bool was_admin,
                     const json_t *after, struct fault *fault)
{
    struct admin other;
    bool ends = was_admin && !admins_is_one(after);
    int error = ends ? admins_find_another(api, name, &other, fault) : 0;
    if (error == -ENOENT) {
        const char *field = after == NULL                                     ? "name"
                            : role_find(text_of(after, "role")) != ROLE_ADMIN ? "role"
                                                                              : "project";
        return fault_set(fault, FAULT_CONFLICT, field,
                         "'%s' is the last user who can administer the host; give another user "
                         "the role admin without a project first",
                         name);
    }
    return error != 0 ? error
                      : accounts_save_beside(api, AUTH_USER_PREFIX, name, revision, after,
                                             ends ? &other : NULL, fault);
}

static int set_stamp(json_t *user, const char *name, struct fault *fault)
{
    char text[ACCOUNTS_ID_BYTES];
    if (auth_random_text(text, sizeof(text)) != 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes");
    }
    (void)json_object_set_new(user, name, json_string(text));
    return 0;
}

int accounts_set_stamps(json_t *user, struct fault *fault)
{
    int error = set_stamp(user, AUTH_STAMP_OF_TOKENS, fault);
    return error != 0 ? error : accounts_end_sessions(user, fault);
}

int accounts_end_sessions(json_t *user, struct fault *fault)
{
    return set_stamp(user, AUTH_STAMP_OF_SESSIONS, fault);
}

/* yescrypt with a new salt. */
static int hash_password(const char *password, json_t *user, struct fault *fault)
{
    char setting[CRYPT_GENSALT_OUTPUT_SIZE];
    struct crypt_data *data = calloc(1, sizeof(*data));
    const char *hash = NULL;
    if (data != NULL && crypt_gensalt_rn("$y$", 0, NULL, 0, setting, sizeof(setting)) != NULL) {
        hash = crypt_rn(password, setting, data, sizeof(*data));
    }
    int error = hash != NULL
                    ? json_object_set_new(user, "password_hash", json_string(hash))
                    : fault_set(fault, FAULT_INTERNAL, NULL, "the password cannot be hashed");
    free(data);
    return error;
}

bool accounts_is_password(const json_t *user, const char *password)
{
    /* For nobody, the hash of nothing that can be typed: the answer takes as long. */
    static const char nobody[] =
        "$y$j9T$................$0000000000000000000000000000000000000000000";
    const char *kept = text_of(user, "password_hash");
    struct crypt_data *data = calloc(1, sizeof(*data));
    if (data == NULL) {
        return false;
    }
    const char *hash = crypt_rn(password, user != NULL ? kept : nobody, data, sizeof(*data));
    bool is_right = user != NULL && hash != NULL && kept[0] != 0 && strcmp(hash, kept) == 0;
    free(data);
    return is_right;
}

int accounts_check_role(struct api *api, const json_t *body, struct fault *fault)
{
    const char *role = text_of(body, "role");
    return role[0] == 0 || roles_exists(api, role)
               ? 0
               : fault_set(fault, FAULT_INVALID, "role",
                           "there is no role '%s'; there are viewer, member, admin, and those that "
                           "GET /v1/roles lists",
                           role);
}

int accounts_list_users(struct api *api, MAYBE_UNUSED struct api_call *call, json_t **ret_answer,
                        struct fault *fault)
{
    return accounts_list(api, AUTH_USER_PREFIX, NULL, ret_answer, fault);
}

int accounts_create_user(struct api *api, struct api_call *call, json_t **ret_answer,
                         struct fault *fault)
{
    const char *name = text_of(call->body, "name");
    if (accounts_check_role(api, call->body, fault) != 0) {
        return -EINVAL;
    }
    json_t *user = json_copy(call->body);
    (void)json_object_del(user, "password");
    (void)json_object_set_new(user, "created", json_integer(time(NULL)));
    int error = hash_password(text_of(call->body, "password"), user, fault);
    error = error != 0 ? error : accounts_set_stamps(user, fault);
    if (error == 0) {
        error = accounts_save(api, AUTH_USER_PREFIX, name, 0, user, fault);
    }
    if (error == 0) {
        error = accounts_answer(user, ret_answer);
    }
    json_decref(user);
    return error;
}

int accounts_change_user(struct api *api, struct api_call *call, json_t **ret_answer,
                         struct fault *fault)
{
    json_t *user;
    uint64_t revision;
    int error = accounts_check_role(api, call->body, fault);
    error = error != 0 ? error
                       : accounts_load(api, AUTH_USER_PREFIX, call->id, &user, &revision, fault);
    if (error != 0) {
        return error;
    }
    bool was_admin = admins_is_one(user);
    const char *password = text_of(call->body, "password");
    if (password[0] != 0) {
        error = hash_password(password, user, fault);
        error = error != 0 ? error : accounts_end_sessions(user, fault);
    }
    (void)json_object_del(call->body, "password");
    (void)json_object_update(user, call->body);
    if (error == 0) {
        error = save_user(api, call->id, revision, was_admin, user, fault);
    }
    if (error == 0) {
        error = accounts_answer(user, ret_answer);
    }
    json_decref(user);
    return error;
}

/* Sessions and tokens end with their user, since each call looks the user up. */
int accounts_delete_user(struct api *api, struct api_call *call, json_t **ret_answer,
                         struct fault *fault)
{
    json_t *user;
    uint64_t revision;
    int error = accounts_load(api, AUTH_USER_PREFIX, call->id, &user, &revision, fault);
    if (error == 0) {
        error = save_user(api, call->id, revision, admins_is_one(user), NULL, fault);
        if (error == 0) {
            error = accounts_answer(user, ret_answer);
        }
        json_decref(user);
    }
    return error;
}
