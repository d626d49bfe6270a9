/* Sessions of users who signed in, by a password or by a link that is good once. */
#include "api/accounts.h"
#include "api/totp.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LINK_S = 600, LINK_SECRET_BYTES = 41, SESSION_S = 12 * 3600 };

const struct field account_session_fields[3] = {
    {"name", FIELD_TEXT, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL, "the user's name"},
    {"password", FIELD_TEXT, FIELD_AT_CREATE | FIELD_NEEDED | FIELD_SECRET, 1, 200, NULL, NULL,
     "the user's password"},
    {"code", FIELD_TEXT, FIELD_AT_CREATE | FIELD_SECRET, 1, 40, NULL, NULL,
     "of the second factor, or a recovery code; of those who have one"},
};

const struct field account_link_fields[1] = {
    {"user", FIELD_NAME, FIELD_AT_CREATE | FIELD_NEEDED, 1, 63, NULL, NULL,
     "whom it signs in; made, as an administrator without a password, when there is none"},
};

int accounts_begin_session(struct api *api, struct api_call *call, const json_t *user,
                           struct fault *fault)
{
    char id[ACCOUNTS_ID_BYTES], secret[ACCOUNTS_SECRET_BYTES];
    json_t *session = json_pack("{s:s, s:s, s:I}", "user", text_of(user, "name"), "stamp",
                                text_of(user, AUTH_STAMP_OF_SESSIONS), "expires",
                                (json_int_t)time(NULL) + SESSION_S);
    int error = accounts_make_secret(session, id, secret, sizeof(secret), fault);
    if (error == 0) {
        error = accounts_save_for(api, AUTH_SESSION_PREFIX, id, SESSION_S, session, fault);
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
    bool is_known = accounts_load(api, AUTH_USER_PREFIX, name, &user, &revision, NULL) == 0;
    bool is_right = accounts_is_password(is_known ? user : NULL, text_of(call->body, "password"));
    if (!is_right) {
        json_decref(user);
        return fault_set(fault, FAULT_INVALID, "password", "no user has this name and password");
    }
    int error =
        totp_is_on(user) ? factor_pass(api, user, revision, text_of(call->body, "code"), fault) : 0;
    error = error != 0 ? error : accounts_begin_session(api, call, user, fault);
    if (error == 0) {
        error = accounts_answer(user, ret_answer);
    }
    json_decref(user);
    return error;
}

/* The user whom a link shall sign in: there, or made without a password, so that only links do. */
static int ensure_user(struct api *api, const char *name, struct fault *fault)
{
    uint64_t revision;
    json_t *user = NULL;
    if (accounts_load(api, AUTH_USER_PREFIX, name, &user, &revision, NULL) == 0) {
        json_decref(user);
        return 0;
    }
    user = json_pack("{s:s, s:s, s:I}", "name", name, "role", role_name(ROLE_ADMIN), "created",
                     (json_int_t)time(NULL));
    int error = accounts_set_stamps(user, fault);
    error = error != 0 ? error : accounts_save(api, AUTH_USER_PREFIX, name, 0, user, fault);
    json_decref(user);
    return error != 0 && fault->code == FAULT_EXISTS ? 0 : error;
}

int accounts_make_link(struct api *api, struct api_call *call, json_t **ret_answer,
                       struct fault *fault)
{
    const char *name = text_of(call->body, "user");
    char id[ACCOUNTS_ID_BYTES], secret[LINK_SECRET_BYTES], path[128];
    json_t *link =
        json_pack("{s:s, s:I}", "user", name, "expires", (json_int_t)time(NULL) + LINK_S);
    int error = ensure_user(api, name, fault);
    if (error == 0) {
        error = accounts_make_secret(link, id, secret, sizeof(secret), fault);
    }
    if (error == 0) {
        error = accounts_save_for(api, AUTH_LINK_PREFIX, id, LINK_S, link, fault);
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
    int error =
        link == NULL || accounts_load(api, AUTH_LINK_PREFIX, text_of(link, "id"), &again, &revision,
                                      fault) != 0
            ? fault_set(fault, FAULT_NOT_FOUND, NULL,
                        "the link was used, or is too old; corbel web makes a new one")
            : accounts_save(api, AUTH_LINK_PREFIX, text_of(link, "id"), revision, NULL, fault);
    if (error == 0) {
        error =
            accounts_load(api, AUTH_USER_PREFIX, text_of(link, "user"), &user, &revision, fault);
    }
    if (error == 0) {
        error = accounts_begin_session(api, call, user, fault);
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
    if (id[0] != 0 && accounts_load(api, AUTH_SESSION_PREFIX, id, &session, &revision, NULL) == 0) {
        json_decref(session);
        int error = accounts_save(api, AUTH_SESSION_PREFIX, id, revision, NULL, fault);
        if (error != 0) {
            return error;
        }
    }
    call->set_cookie = AUTH_COOKIE "=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0";
    *ret_answer = json_object();
    return 0;
}

/* Who has signed in is told of the second factor, too. */
static void add_factor(struct api *api, const struct identity *identity, json_t *answer)
{
    json_t *user = NULL;
    uint64_t revision = 0;
    const char *name = identity->user;
    if (identity->session[0] != 0 && name[0] != 0 &&
        accounts_load(api, AUTH_USER_PREFIX, name, &user, &revision, NULL) == 0) {
        (void)json_object_set_new(answer, "second_factor", json_boolean(totp_is_on(user)));
        (void)json_object_set_new(answer, "recovery_codes_left",
                                  json_integer((json_int_t)totp_recovery_left(user)));
        json_decref(user);
    }
}

int accounts_who(struct api *api, struct api_call *call, json_t **ret_answer,
                 MAYBE_UNUSED struct fault *fault)
{
    *ret_answer = json_pack("{s:s, s:s, s:s, s:s}", "actor", call->identity.actor, "role",
                            call->identity.role_name, "level", role_name(call->identity.role),
                            "project", call->identity.project);
    add_factor(api, &call->identity, *ret_answer);
    return 0;
}
