/*
 * Who asks. By the unix socket: the peer's uid. By TCP: an API token
 * ("Authorization: Bearer cbl_ID_SECRET"), or the cookie of a session.
 *
 * Secrets are kept as their SHA-256 only: they are 256 random bits, so that
 * nothing is gained by a slow hash; passwords, which are not, get yescrypt.
 */
#include "api/api_int.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

enum { TOKEN_MAX = 200, DIGEST_HEX = 65 };

static const char *const role_names[] = {"none", "viewer", "member", "admin"};

const char *role_name(enum role role)
{
    return role_names[role];
}

enum role role_find(const char *name)
{
    for (enum role role = ROLE_VIEWER; role <= ROLE_ADMIN; role++) {
        if (name != NULL && strcmp(role_names[role], name) == 0) {
            return role;
        }
    }
    return ROLE_NONE;
}

int auth_random_text(char *text, size_t bytes)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    unsigned char random[64];
    if (bytes - 1 > sizeof(random) || getrandom(random, bytes - 1, 0) != (ssize_t)(bytes - 1)) {
        return -EIO;
    }
    for (size_t i = 0; i + 1 < bytes; i++) {
        text[i] = letters[random[i] % 32];
    }
    text[bytes - 1] = 0;
    return 0;
}

int auth_hash(const char *secret, char *ret_hex, size_t size)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    if (EVP_Digest(secret, strlen(secret), digest, &len, EVP_sha256(), NULL) != 1 ||
        size < 2 * len + 1) {
        return -EIO;
    }
    for (unsigned i = 0; i < len; i++) {
        (void)snprintf(ret_hex + 2 * i, 3, "%02x", digest[i]);
    }
    return 0;
}

/* The record at prefix + id, parsed; NULL when there is none that is valid. */
static json_t *load_record(struct api *api, const char *prefix, const char *id)
{
    char key[128];
    struct store_record record;
    int len = snprintf(key, sizeof(key), "%s%s", prefix, id);
    if (len >= (int)sizeof(key) || !store_key_is_valid(key) ||
        store_get(api->config.store, key, &record, NULL) != 0) {
        return NULL;
    }
    json_t *object = json_loads(record.value, JSON_REJECT_DUPLICATES, NULL);
    store_record_done(&record);
    return object;
}

const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

/* "ID_SECRET" against the record's hash, in time that does not depend on where they differ. */
json_t *auth_check_secret(struct api *api, const char *prefix, const char *token)
{
    char id[API_ID_BYTES], hash[DIGEST_HEX];
    const char *separator = strchr(token, '_');
    if (separator == NULL || (size_t)(separator - token) >= sizeof(id) ||
        strlen(token) > TOKEN_MAX) {
        return NULL;
    }
    memcpy(id, token, (size_t)(separator - token));
    id[separator - token] = 0;
    json_t *record = load_record(api, prefix, id);
    const char *kept = text_of(record, "hash");
    json_int_t expires = json_integer_value(json_object_get(record, "expires"));
    bool is_right = record != NULL && auth_hash(separator + 1, hash, sizeof(hash)) == 0 &&
                    strlen(kept) == strlen(hash) && CRYPTO_memcmp(kept, hash, strlen(hash)) == 0 &&
                    (expires == 0 || expires > (json_int_t)time(NULL));
    if (!is_right) {
        json_decref(record);
        return NULL;
    }
    return record;
}

static void copy(char *to, size_t size, const char *text)
{
    (void)snprintf(to, size, "%s", text);
}

/* What the user of a token or session may do now, not when it was made. */
static int identify_user(struct api *api, const json_t *record, const char *stamp,
                         struct identity *identity)
{
    const char *name = text_of(record, "user");
    json_t *user = load_record(api, AUTH_USER_PREFIX, name);
    if (user == NULL || strcmp(text_of(user, stamp), text_of(record, "stamp")) != 0) {
        json_decref(user);
        return -ENOENT;
    }
    identity->role = roles_take(api, text_of(user, "role"), identity);
    copy(identity->role_name, sizeof(identity->role_name), text_of(user, "role"));
    copy(identity->project, sizeof(identity->project), text_of(user, "project"));
    copy(identity->user, sizeof(identity->user), name);
    (void)snprintf(identity->actor, sizeof(identity->actor), "user:%s", name);
    json_decref(user);
    return 0;
}

static int refuse(struct fault *fault, const char *text)
{
    (void)fault_set(fault, FAULT_INVALID, NULL, "%s", text);
    return 401;
}

static int identify_token(struct api *api, const char *token, struct identity *identity,
                          struct fault *fault)
{
    json_t *record = auth_check_secret(api, AUTH_KEY_PREFIX, token);
    const char *user = text_of(record, "user");
    const char *project = text_of(record, "project");
    enum role role = roles_take(api, text_of(record, "role"), identity);
    int status = 0;
    if (record == NULL || role == ROLE_NONE) {
        status = refuse(fault, "the token is unknown, revoked or expired");
    } else if (user[0] == 0) {
        identity->role = role;
    } else if (identify_user(api, record, AUTH_STAMP_OF_TOKENS, identity) != 0) {
        status = refuse(fault, "the user whom the token belongs to is gone");
    }
    if (status == 0) {
        bool is_narrower = user[0] == 0 || role < identity->role ||
                           (role == identity->role && role_find(text_of(record, "role")) == 0);
        identity->role = role < identity->role ? role : identity->role;
        if (is_narrower) {
            copy(identity->role_name, sizeof(identity->role_name), text_of(record, "role"));
        }
        if (identity->project[0] == 0) {
            copy(identity->project, sizeof(identity->project), project);
        }
        (void)snprintf(identity->actor, sizeof(identity->actor), "token:%s", text_of(record, "id"));
    }
    json_decref(record);
    return status;
}

/* The value of our cookie among those that the browser sent. */
static bool find_cookie(const char *cookies, char *ret_value, size_t size)
{
    size_t name_len = strlen(AUTH_COOKIE);
    for (const char *at = cookies; at != NULL && *at != 0;) {
        at += strspn(at, "; ");
        size_t len = strcspn(at, ";");
        if (len > name_len && strncmp(at, AUTH_COOKIE "=", name_len + 1) == 0 &&
            len - name_len - 1 < size) {
            memcpy(ret_value, at + name_len + 1, len - name_len - 1);
            ret_value[len - name_len - 1] = 0;
            return true;
        }
        at += len;
    }
    return false;
}

/* https://HOST or http://HOST of the request itself. */
static bool is_same_origin(const struct http_exchange *exchange)
{
    const char *origin = http_exchange_header(exchange, "origin");
    const char *host = http_exchange_header(exchange, "host");
    const char *authority = origin != NULL ? strstr(origin, "://") : NULL;
    return authority != NULL && host != NULL && strcasecmp(authority + 3, host) == 0;
}

/*
 * A browser sends the cookie with whatever page asks it to. So a change, and a socket, must come
 * from our own page: it names its origin, or sends the header that no other origin's page can.
 */
static bool is_forged(const struct http_exchange *exchange, bool is_socket)
{
    const char *method = http_exchange_request(exchange)->method;
    if (!is_socket && (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0)) {
        return false;
    }
    return !is_same_origin(exchange) &&
           (is_socket || http_exchange_header(exchange, "x-csrf-token") == NULL);
}

static int identify_session(struct api *api, const struct http_exchange *exchange,
                            const char *token, bool is_socket, struct identity *identity,
                            struct fault *fault)
{
    json_t *record = auth_check_secret(api, AUTH_SESSION_PREFIX, token);
    int status = 0;
    if (record == NULL || identify_user(api, record, AUTH_STAMP_OF_SESSIONS, identity) != 0) {
        status = refuse(fault, "the session has ended; sign in again");
    } else if (is_forged(exchange, is_socket)) {
        (void)fault_set(fault, FAULT_INVALID, NULL,
                        "the request comes from a page that is not the console's");
        status = 403;
    } else {
        copy(identity->session, sizeof(identity->session), text_of(record, "id"));
    }
    json_decref(record);
    return status;
}

static int identify(struct api *api, const struct http_exchange *exchange, bool is_socket,
                    struct identity *ret_identity, struct fault *fault)
{
    const struct http_peer *peer = &http_exchange_request(exchange)->peer;
    const char *authorization = http_exchange_header(exchange, "authorization");
    const char *cookies = http_exchange_header(exchange, "cookie");
    char session[TOKEN_MAX];
    *ret_identity = (struct identity){.role = ROLE_NONE};
    copy(ret_identity->actor, sizeof(ret_identity->actor), "nobody");
    if (authorization != NULL) {
        if (strncasecmp(authorization, "Bearer cbl_", 11) != 0) {
            return refuse(fault, "the authorization header must be 'Bearer cbl_...'");
        }
        return identify_token(api, authorization + 11, ret_identity, fault);
    }
    if (find_cookie(cookies, session, sizeof(session))) {
        return identify_session(api, exchange, session, is_socket, ret_identity, fault);
    }
    if (peer->is_unix && (peer->uid == 0 || peer->uid == api->config.owner)) {
        ret_identity->role = ROLE_ADMIN;
        copy(ret_identity->role_name, sizeof(ret_identity->role_name), role_name(ROLE_ADMIN));
        (void)snprintf(ret_identity->actor, sizeof(ret_identity->actor), "uid:%u", peer->uid);
    }
    return 0;
}

int auth_identify(struct api *api, const struct http_exchange *exchange, bool is_socket,
                  struct identity *ret_identity, struct fault *fault)
{
    int status = identify(api, exchange, is_socket, ret_identity, fault);
    if (status != 0) {
        identity_done(ret_identity);
    }
    return status;
}

/* What is of all projects at once: who is bound to one is an administrator of nothing else, and the
 * host's past is the sum of what everybody did. */
static bool is_of_all(const struct identity *identity, const struct api_operation *operation)
{
    return (identity->role >= ROLE_ADMIN && operation->role >= ROLE_ADMIN) ||
           (identity->role >= operation->role && strcmp(operation->id, "host.history") == 0);
}

int auth_permit(const struct identity *identity, const struct api_operation *operation,
                struct fault *fault)
{
    if (identity->project[0] != 0 && is_of_all(identity, operation)) {
        (void)fault_set(fault, FAULT_INVALID, NULL,
                        "%s may not do this: it is bound to one project", identity->actor);
        return 403;
    }
    if (identity->role >= operation->role) {
        return 0;
    }
    if (identity->role == ROLE_NONE) {
        return refuse(fault, "sign in, or send an API token as 'Authorization: Bearer ...'");
    }
    (void)fault_set(fault, FAULT_INVALID, NULL, "%s may not do this: it needs the role %s, not %s",
                    identity->actor, role_name(operation->role), role_name(identity->role));
    return 403;
}
