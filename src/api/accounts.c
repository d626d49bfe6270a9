/* Users, API tokens and sessions: records of the store that only this floor knows. */
#include "api/api_int.h"

#include <crypt.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LINK_S = 600,
    LINK_SECRET_BYTES = 41,
    SECRET_BYTES = 53,
    ID_BYTES = 13,
    HEX_BYTES = 65,
    SESSION_S = 12 * 3600,
    USERS_MAX = 1000
};

#define ROLES "viewer member admin"
#define PASSWORD(access)                                                                       \
    {                                                                                          \
        "password", FIELD_TEXT, (access) | FIELD_SECRET, 8, 200, NULL, NULL, "8 bytes or more" \
    }
#define ROLE(access, preset)                                                      \
    {                                                                             \
        "role", FIELD_CHOICE, access, 0, 0, ROLES, preset, "what the user may do" \
    }
#define PROJECT                                                                                  \
    {                                                                                            \
        "project", FIELD_NAME, FIELD_AT_CREATE, 1, 63, NULL, NULL, "the only project; none: all" \
    }

const struct field account_user_fields[4] = {
    {"name", FIELD_NAME, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL, "to sign in by"},
    PASSWORD(FIELD_AT_CREATE | FIELD_NEEDED),
    ROLE(FIELD_AT_CREATE, "\"member\""),
    PROJECT,
};
const struct field account_user_changes[3] = {
    PASSWORD(FIELD_AT_CREATE),
    ROLE(FIELD_AT_CREATE, NULL),
    PROJECT,
};
const struct field account_key_fields[4] = {
    {"name", FIELD_NAME, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL, "what it is for"},
    ROLE(FIELD_AT_CREATE, NULL),
    PROJECT,
    {"expires_s", FIELD_NUMBER, FIELD_AT_CREATE, 1, 3650LL * 86400, NULL, NULL,
     "seconds from now; none: never"},
};
const struct field account_session_fields[2] = {
    {"name", FIELD_TEXT, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL, "the user's name"},
    {"password", FIELD_TEXT, FIELD_AT_CREATE | FIELD_NEEDED | FIELD_SECRET, 1, 200, NULL, NULL,
     "the user's password"},
};

const struct field account_link_fields[1] = {
    {"user", FIELD_NAME, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL,
     "whom it signs in; made, as an administrator without a password, when there is none"},
};

static int load(struct api *api, const char *prefix, const char *id, json_t **ret_object,
                uint64_t *ret_revision, struct fault *fault)
{
    char key[128];
    struct store_record record;
    struct err err = {0};
    (void)snprintf(key, sizeof(key), "%s%s", prefix, id);
    if (!store_key_is_valid(key)) {
        return fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no such thing");
    }
    int error = store_get(api->config.store, key, &record, &err);
    if (error == -ENOENT) {
        return fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no '%s'", id);
    }
    if (error != 0) {
        return fault_set_err(fault, error, &err);
    }
    *ret_object = json_loads(record.value, JSON_REJECT_DUPLICATES, NULL);
    *ret_revision = record.revision;
    store_record_done(&record);
    return *ret_object != NULL
               ? 0
               : fault_set(fault, FAULT_INTERNAL, NULL, "the record of '%s' is damaged", id);
}

/* As save(), if the other (NULL: none) is still as it was found. */
static int save_beside(struct api *api, const char *prefix, const char *id, uint64_t revision,
                       const json_t *object, const struct admin *other, struct fault *fault)
{
    char key[128];
    struct err err = {0};
    (void)snprintf(key, sizeof(key), "%s%s", prefix, id);
    char *value = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    const struct store_guard guards[] = {{.key = key, .revision = revision},
                                         {.key = other != NULL ? other->key : NULL,
                                          .revision = other != NULL ? other->revision : 0}};
    const struct store_write write = {.key = key, .value = value};
    const struct store_commit commit = {
        .guards = guards, .guard_count = other != NULL ? 2 : 1, .writes = &write, .write_count = 1};
    int error = object != NULL && value == NULL
                    ? -ENOMEM
                    : store_commit(api->config.store, &commit, NULL, &err);
    free(value);
    if (error == 0 && revision != 0) {
        streams_recheck(api->streams);
    }
    if (error == -ESTALE) {
        return revision == 0
                   ? fault_set(fault, FAULT_EXISTS, "name", "'%s' exists already", id)
                   : fault_set(fault, FAULT_CONFLICT, NULL, "'%s' has been changed meanwhile", id);
    }
    return error != 0 ? fault_set_err(fault, error, &err) : 0;
}

/* revision: as for store_swap(); object NULL deletes. */
static int save(struct api *api, const char *prefix, const char *id, uint64_t revision,
                const json_t *object, struct fault *fault)
{
    return save_beside(api, prefix, id, revision, object, NULL, fault);
}

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
                      : save_beside(api, AUTH_USER_PREFIX, name, revision, after,
                                    ends ? &other : NULL, fault);
}

static int set_stamp(json_t *user, const char *name, struct fault *fault)
{
    char text[ID_BYTES];
    if (auth_random_text(text, sizeof(text)) != 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes");
    }
    (void)json_object_set_new(user, name, json_string(text));
    return 0;
}

/* Of a new user. */
static int set_stamps(json_t *user, struct fault *fault)
{
    int error = set_stamp(user, AUTH_STAMP_OF_TOKENS, fault);
    return error != 0 ? error : set_stamp(user, AUTH_STAMP_OF_SESSIONS, fault);
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

static bool is_password(const json_t *user, const char *password)
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

/* What a record shows of itself. */
static json_t *shown(const json_t *record)
{
    static const char *const secrets[] = {"password_hash", "hash", "stamp", AUTH_STAMP_OF_TOKENS,
                                          AUTH_STAMP_OF_SESSIONS};
    json_t *copy = json_copy((json_t *)(uintptr_t)record);
    for (size_t i = 0; i < ARRAY_LEN(secrets); i++) {
        (void)json_object_del(copy, secrets[i]);
    }
    return copy;
}

/* The name of the user who calls; "" for an administrator by the unix socket or a token. */
static const char *user_of(const struct identity *identity)
{
    return strncmp(identity->actor, "user:", 5) == 0 ? identity->actor + 5 : "";
}

/* Whether a token is the caller's to see and to revoke: a token's is itself alone. */
static bool owns_key(const struct identity *identity, const json_t *key)
{
    const char *user = user_of(identity);
    if (identity->role == ROLE_ADMIN && identity->project[0] == 0) {
        return true;
    }
    if (strncmp(identity->actor, "token:", 6) == 0) {
        return strcmp(text_of(key, "id"), identity->actor + 6) == 0;
    }
    return user[0] != 0 && strcmp(text_of(key, "user"), user) == 0 &&
           (identity->project[0] == 0 || strcmp(text_of(key, "project"), identity->project) == 0);
}

/* only: whose tokens alone; NULL: all there is. */
static int list_shown(struct api *api, const char *prefix, const struct identity *only,
                      json_t **ret, struct fault *fault)
{
    struct store_page page;
    struct err err = {0};
    int error = store_list(api->config.store, prefix, NULL, USERS_MAX, &page, &err);
    if (error != 0) {
        return fault_set_err(fault, error, &err);
    }
    json_t *items = json_array();
    for (unsigned i = 0; i < page.count; i++) {
        json_t *record = json_loads(page.records[i].value, 0, NULL);
        if (record != NULL && (only == NULL || owns_key(only, record))) {
            (void)json_array_append_new(items, shown(record));
        }
        json_decref(record);
    }
    store_page_done(&page);
    *ret = json_pack("{s:o}", "items", items);
    return *ret != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}

static int answer_shown(const json_t *record, json_t **ret_answer)
{
    *ret_answer = shown(record);
    return 0;
}

int accounts_list_users(struct api *api, MAYBE_UNUSED struct api_call *call, json_t **ret_answer,
                        struct fault *fault)
{
    return list_shown(api, AUTH_USER_PREFIX, NULL, ret_answer, fault);
}

int accounts_create_user(struct api *api, struct api_call *call, json_t **ret_answer,
                         struct fault *fault)
{
    const char *name = text_of(call->body, "name");
    json_t *user = json_copy(call->body);
    (void)json_object_del(user, "password");
    (void)json_object_set_new(user, "created", json_integer(time(NULL)));
    int error = hash_password(text_of(call->body, "password"), user, fault);
    error = error != 0 ? error : set_stamps(user, fault);
    if (error == 0) {
        error = save(api, AUTH_USER_PREFIX, name, 0, user, fault);
    }
    if (error == 0) {
        error = answer_shown(user, ret_answer);
    }
    json_decref(user);
    return error;
}

int accounts_change_user(struct api *api, struct api_call *call, json_t **ret_answer,
                         struct fault *fault)
{
    json_t *user;
    uint64_t revision;
    int error = load(api, AUTH_USER_PREFIX, call->id, &user, &revision, fault);
    if (error != 0) {
        return error;
    }
    bool was_admin = admins_is_one(user);
    const char *password = text_of(call->body, "password");
    if (password[0] != 0) {
        error = hash_password(password, user, fault);
        error = error != 0 ? error : set_stamp(user, AUTH_STAMP_OF_SESSIONS, fault);
    }
    (void)json_object_del(call->body, "password");
    (void)json_object_update(user, call->body);
    if (error == 0) {
        error = save_user(api, call->id, revision, was_admin, user, fault);
    }
    if (error == 0) {
        error = answer_shown(user, ret_answer);
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
    int error = load(api, AUTH_USER_PREFIX, call->id, &user, &revision, fault);
    if (error == 0) {
        error = save_user(api, call->id, revision, admins_is_one(user), NULL, fault);
        if (error == 0) {
            error = answer_shown(user, ret_answer);
        }
        json_decref(user);
    }
    return error;
}

int accounts_list_keys(struct api *api, struct api_call *call, json_t **ret_answer,
                       struct fault *fault)
{
    return list_shown(api, AUTH_KEY_PREFIX, &call->identity, ret_answer, fault);
}

/* A new random id and secret; the hash goes into record, the secret is told once. */
static int make_secret_of(json_t *record, char *ret_id, char *ret_secret, size_t secret_bytes,
                          struct fault *fault)
{
    char hash[HEX_BYTES];
    if (auth_random_text(ret_id, ID_BYTES) != 0 ||
        auth_random_text(ret_secret, secret_bytes) != 0 ||
        auth_hash(ret_secret, hash, sizeof(hash)) != 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes");
    }
    (void)json_object_set_new(record, "id", json_string(ret_id));
    (void)json_object_set_new(record, "hash", json_string(hash));
    (void)json_object_set_new(record, "created", json_integer(time(NULL)));
    return 0;
}

static int make_secret(json_t *record, char *ret_id, char *ret_secret, struct fault *fault)
{
    return make_secret_of(record, ret_id, ret_secret, SECRET_BYTES, fault);
}

static json_t *key_record(struct api *api, const struct api_call *call)
{
    const struct identity *who = &call->identity;
    json_t *user = NULL, *record;
    uint64_t revision;
    enum role role = role_find(text_of(call->body, "role"));
    const char *project = text_of(call->body, "project");
    json_int_t expires_s = json_integer_value(json_object_get(call->body, "expires_s"));
    if (user_of(who)[0] != 0) {
        (void)load(api, AUTH_USER_PREFIX, user_of(who), &user, &revision, NULL); /* or just gone */
    }
    record = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "name", text_of(call->body, "name"),
                       "user", user_of(who), "stamp", text_of(user, AUTH_STAMP_OF_TOKENS), "role",
                       role_name(role == ROLE_NONE || role > who->role ? who->role : role),
                       "project", who->project[0] != 0 ? who->project : project, "expires",
                       expires_s > 0 ? (json_int_t)time(NULL) + expires_s : 0);
    json_decref(user);
    return record;
}

int accounts_create_key(struct api *api, struct api_call *call, json_t **ret_answer,
                        struct fault *fault)
{
    char id[ID_BYTES], secret[SECRET_BYTES], token[ID_BYTES + SECRET_BYTES + 8];
    if (strncmp(call->identity.actor, "token:", 6) == 0 && call->identity.role != ROLE_ADMIN) {
        return fault_set(fault, FAULT_INVALID, NULL, "a token makes no tokens; sign in");
    }
    json_t *record = key_record(api, call);
    int error = make_secret(record, id, secret, fault);
    if (error == 0) {
        error = save(api, AUTH_KEY_PREFIX, id, 0, record, fault);
    }
    if (error == 0) {
        error = answer_shown(record, ret_answer);
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
    int error = load(api, AUTH_KEY_PREFIX, call->id, &record, &revision, fault);
    if (error != 0) {
        return error;
    }
    if (!owns_key(&call->identity, record)) {
        error = fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no '%s'", call->id);
    } else {
        error = save(api, AUTH_KEY_PREFIX, call->id, revision, NULL, fault);
    }
    if (error == 0) {
        error = answer_shown(record, ret_answer);
    }
    json_decref(record);
    return error;
}

/* The record lives on a lease, so that it goes by itself. */
static int save_for(struct api *api, const char *prefix, const char *id, unsigned seconds,
                    const json_t *session, struct fault *fault)
{
    char key[128];
    struct err err = {0};
    uint64_t lease;
    int error = store_lease_grant(api->config.store, seconds, &lease, &err);
    if (error != 0) {
        return fault_set_err(fault, error, &err);
    }
    (void)snprintf(key, sizeof(key), "%s%s", prefix, id);
    char *value = json_dumps(session, JSON_COMPACT);
    const struct store_write write = {.key = key, .value = value, .lease = lease};
    const struct store_commit commit = {.writes = &write, .write_count = 1};
    error = value != NULL ? store_commit(api->config.store, &commit, NULL, &err) : -ENOMEM;
    free(value);
    return error != 0 ? fault_set_err(fault, error, &err) : 0;
}

/* A session for the user, in a cookie. */
static int begin_session(struct api *api, struct api_call *call, const json_t *user,
                         struct fault *fault)
{
    char id[ID_BYTES], secret[SECRET_BYTES];
    json_t *session = json_pack("{s:s, s:s, s:I}", "user", text_of(user, "name"), "stamp",
                                text_of(user, AUTH_STAMP_OF_SESSIONS), "expires",
                                (json_int_t)time(NULL) + SESSION_S);
    int error = make_secret(session, id, secret, fault);
    if (error == 0) {
        error = save_for(api, AUTH_SESSION_PREFIX, id, SESSION_S, session, fault);
    }
    if (error == 0) {
        (void)snprintf(call->cookie, sizeof(call->cookie),
                       AUTH_COOKIE "=%s_%s; Path=/; HttpOnly; SameSite=Strict; Max-Age=%d%s", id,
                       secret, SESSION_S, call->request->peer.is_tls ? "; Secure" : "");
        call->set_cookie = call->cookie;
    }
    json_decref(session);
    return error;
}

int accounts_sign_in(struct api *api, struct api_call *call, json_t **ret_answer,
                     struct fault *fault)
{
    const char *name = text_of(call->body, "name");
    json_t *user = NULL;
    uint64_t revision;
    bool is_known = load(api, AUTH_USER_PREFIX, name, &user, &revision, NULL) == 0;
    bool is_right = is_password(is_known ? user : NULL, text_of(call->body, "password"));
    if (!is_right) {
        json_decref(user);
        return fault_set(fault, FAULT_INVALID, "password", "no user has this name and password");
    }
    int error = begin_session(api, call, user, fault);
    if (error == 0) {
        error = answer_shown(user, ret_answer);
    }
    json_decref(user);
    return error;
}

/* The user whom a link shall sign in: there, or made without a password, so that only links do. */
static int ensure_user(struct api *api, const char *name, struct fault *fault)
{
    uint64_t revision;
    json_t *user = NULL;
    if (load(api, AUTH_USER_PREFIX, name, &user, &revision, NULL) == 0) {
        json_decref(user);
        return 0;
    }
    user = json_pack("{s:s, s:s, s:I}", "name", name, "role", role_name(ROLE_ADMIN), "created",
                     (json_int_t)time(NULL));
    int error = set_stamps(user, fault);
    error = error != 0 ? error : save(api, AUTH_USER_PREFIX, name, 0, user, fault);
    json_decref(user);
    return error != 0 && fault->code == FAULT_EXISTS ? 0 : error;
}

int accounts_make_link(struct api *api, struct api_call *call, json_t **ret_answer,
                       struct fault *fault)
{
    const char *name = text_of(call->body, "user");
    char id[ID_BYTES], secret[LINK_SECRET_BYTES], path[128];
    json_t *link =
        json_pack("{s:s, s:I}", "user", name, "expires", (json_int_t)time(NULL) + LINK_S);
    int error = ensure_user(api, name, fault);
    if (error == 0) {
        error = make_secret_of(link, id, secret, sizeof(secret), fault);
    }
    if (error == 0) {
        error = save_for(api, AUTH_LINK_PREFIX, id, LINK_S, link, fault);
    }
    if (error == 0) {
        (void)snprintf(path, sizeof(path), "/v1/session/link/%s_%s", id, secret);
        *ret_answer = json_pack("{s:s, s:s, s:i}", "path", path, "user", name, "expires_s", LINK_S);
    }
    json_decref(link);
    return error;
}

/* Once: the record is removed before the session begins. */
int accounts_follow_link(struct api *api, struct api_call *call, json_t **ret_answer,
                         struct fault *fault)
{
    json_t *link = auth_check_secret(api, AUTH_LINK_PREFIX, call->id);
    json_t *again = NULL, *user = NULL;
    uint64_t revision;
    int error = link == NULL || load(api, AUTH_LINK_PREFIX, text_of(link, "id"), &again, &revision,
                                     fault) != 0
                    ? fault_set(fault, FAULT_NOT_FOUND, NULL,
                                "the link was used, or is too old; corbel web makes a new one")
                    : save(api, AUTH_LINK_PREFIX, text_of(link, "id"), revision, NULL, fault);
    if (error == 0) {
        error = load(api, AUTH_USER_PREFIX, text_of(link, "user"), &user, &revision, fault);
    }
    if (error == 0) {
        error = begin_session(api, call, user, fault);
    }
    if (error == 0) {
        call->location = "/";
        *ret_answer = json_object();
    }
    json_decref(user);
    json_decref(again);
    json_decref(link);
    return error;
}

int accounts_sign_out(struct api *api, struct api_call *call, json_t **ret_answer,
                      struct fault *fault)
{
    const char *id = call->identity.session;
    json_t *session;
    uint64_t revision;
    if (id[0] != 0 && load(api, AUTH_SESSION_PREFIX, id, &session, &revision, NULL) == 0) {
        json_decref(session);
        int error = save(api, AUTH_SESSION_PREFIX, id, revision, NULL, fault);
        if (error != 0) {
            return error;
        }
    }
    call->set_cookie = AUTH_COOKIE "=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0";
    *ret_answer = json_object();
    return 0;
}

int accounts_who(MAYBE_UNUSED struct api *api, struct api_call *call, json_t **ret_answer,
                 MAYBE_UNUSED struct fault *fault)
{
    *ret_answer = json_pack("{s:s, s:s, s:s}", "actor", call->identity.actor, "role",
                            role_name(call->identity.role), "project", call->identity.project);
    return 0;
}

/* A week behind its end, so that whoever wonders still finds it in the list. */
static int prune_expired(struct api *api, const char *prefix, unsigned *count, struct fault *fault)
{
    struct store_page page;
    struct err err = {0};
    json_int_t before = (json_int_t)time(NULL) - 7 * 86400;
    int error = store_list(api->config.store, prefix, NULL, USERS_MAX, &page, &err);
    if (error != 0) {
        return fault_set_err(fault, error, &err);
    }
    for (unsigned i = 0; i < page.count && error == 0; i++) {
        json_t *record = json_loads(page.records[i].value, 0, NULL);
        json_int_t expires = json_integer_value(json_object_get(record, "expires"));
        json_decref(record);
        if (expires == 0 || expires > before) {
            continue;
        }
        error = store_swap(api->config.store, page.records[i].key, page.records[i].revision, NULL,
                           NULL, &err);
        *count += error == 0;
        error = error == -ESTALE ? 0 : error; /* changed meanwhile: another time */
    }
    store_page_done(&page);
    return error != 0 ? fault_set_err(fault, error, &err) : 0;
}

int api_prune(struct api *api, unsigned *count, struct fault *fault)
{
    int error = prune_expired(api, AUTH_KEY_PREFIX, count, fault);
    return error != 0 ? error : prune_expired(api, AUTH_SESSION_PREFIX, count, fault);
}
