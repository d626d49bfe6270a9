/* The calls about a second factor (api/totp.h): who signed in has it, an administrator takes it away. */
#include "api/accounts.h"
#include "api/totp.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

const struct field factor_code_fields[1] = {
    {"code", FIELD_TEXT, FIELD_AT_CREATE | FIELD_NEEDED | FIELD_SECRET, 1, 40, NULL, NULL,
     "six digits that the app shows now"},
};
const struct field factor_password_fields[1] = {
    {"password", FIELD_TEXT, FIELD_AT_CREATE | FIELD_NEEDED | FIELD_SECRET, 1, 200, NULL, NULL,
     "the caller's: whoever finds a session open does not lock its user out"},
};

/* The user whose session it is. A token stands for no person who has a telephone. */
static int load_caller(struct api *api, const struct api_call *call, json_t **ret_user,
                       uint64_t *ret_revision, struct fault *fault)
{
    const char *actor = call->identity.actor;
    if (call->identity.session[0] == 0 || strncmp(actor, "user:", 5) != 0) {
        return fault_set(fault, FAULT_INVALID, NULL,
                         "a second factor is a user's: sign in with a browser");
    }
    return accounts_load(api, AUTH_USER_PREFIX, actor + 5, ret_user, ret_revision, fault);
}

int factor_begin(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    json_t *user = NULL;
    uint64_t revision = 0;
    char secret[TOTP_SECRET_BYTES] = "", uri[256];
    int error = load_caller(api, call, &user, &revision, fault);
    if (error != 0) {
        return error;
    }
    const char *name = text_of(user, "name");
    if (totp_is_on(user)) {
        error = fault_set(fault, FAULT_CONFLICT, NULL, "'%s' has a second factor already", name);
    } else if (!accounts_is_password(user, text_of(call->body, "password"))) {
        error =
            fault_set(fault, FAULT_INVALID, "password", "this is not the password of '%s'", name);
    } else if (totp_begin(user, secret) != 0) {
        error = fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes");
    }
    error = error != 0 ? error : accounts_save(api, AUTH_USER_PREFIX, name, revision, user, fault);
    if (error == 0) {
        (void)snprintf(uri, sizeof(uri),
                       "otpauth://totp/Corbel:%s?secret=%s&issuer=Corbel&algorithm=SHA1&digits=6"
                       "&period=30",
                       name, secret);
        *ret_answer = json_pack("{s:s, s:s}", "secret", secret, "uri", uri);
    }
    json_decref(user);
    return error;
}

int factor_confirm(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    json_t *user = NULL, *codes = NULL;
    uint64_t revision = 0;
    int error = load_caller(api, call, &user, &revision, fault);
    if (error != 0) {
        return error;
    }
    int found = totp_confirm(user, text_of(call->body, "code"), (uint64_t)time(NULL), &codes);
    if (found <= 0) {
        error = found < 0 ? fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes")
                          : fault_set(fault, FAULT_INVALID, "code", "this is not the code of now");
    }
    /* Whoever has signed in as this user without a code signs in again, but for who is here. */
    error = error != 0 ? error : accounts_end_sessions(user, fault);
    error = error != 0 ? error
                       : accounts_save(api, AUTH_USER_PREFIX, text_of(user, "name"), revision, user,
                                       fault);
    error = error != 0 ? error : accounts_begin_session(api, call, user, fault);
    if (error == 0) {
        *ret_answer = json_pack("{s:O}", "recovery_codes", codes);
    }
    json_decref(codes);
    json_decref(user);
    return error;
}

int factor_pass(struct api *api, json_t *user, uint64_t revision, const char *code,
                struct fault *fault)
{
    if (code[0] == 0) {
        return fault_set(fault, FAULT_INVALID, "code",
                         "the code of the second factor is needed, too");
    }
    unsigned wait_s = 0;
    int found = totp_check(user, code, (uint64_t)time(NULL), &wait_s);
    if (found == -EAGAIN) {
        return fault_set(fault, FAULT_INVALID, "code",
                         "too many wrong codes; wait %u seconds, then try once", wait_s);
    }
    /* Wrong or right, it is noted first: of several at once one is looked at. */
    int error = accounts_save(api, AUTH_USER_PREFIX, text_of(user, "name"), revision, user, fault);
    return error != 0  ? error
           : found > 0 ? 0
                       : fault_set(fault, FAULT_INVALID, "code", "the code is wrong, or was used");
}

/* Takes it away; the record goes on. */
static int end(struct api *api, const char *name, json_t **ret_answer, struct fault *fault)
{
    json_t *user = NULL;
    uint64_t revision = 0;
    int error = accounts_load(api, AUTH_USER_PREFIX, name, &user, &revision, fault);
    if (error != 0) {
        return error;
    }
    totp_end(user);
    error = accounts_save(api, AUTH_USER_PREFIX, name, revision, user, fault);
    json_decref(user);
    if (error == 0) {
        *ret_answer = json_object();
    }
    return error;
}

int factor_remove(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    json_t *user = NULL;
    uint64_t revision = 0;
    char name[API_ID_BYTES];
    int error = load_caller(api, call, &user, &revision, fault);
    if (error != 0) {
        return error;
    }
    (void)snprintf(name, sizeof(name), "%s", text_of(user, "name"));
    error = totp_is_on(user)
                ? factor_pass(api, user, revision, text_of(call->body, "code"), fault)
                : fault_set(fault, FAULT_CONFLICT, NULL, "'%s' has no second factor", name);
    json_decref(user);
    return error != 0 ? error : end(api, name, ret_answer, fault);
}

int factor_reset(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault)
{
    return end(api, call->id, ret_answer, fault);
}
