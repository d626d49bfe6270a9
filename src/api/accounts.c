/* What users, API tokens and sessions have in common: records that only this floor knows. */
#include "api/accounts.h"
#include "api/totp.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HEX_BYTES = 65, KEY_BYTES = 128, PAGE_RECORDS = 64 };

int accounts_load(struct api *api, const char *prefix, const char *id, json_t **ret_object,
                  uint64_t *ret_revision, struct fault *fault)
{
    char key[KEY_BYTES];
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

/* As accounts_save(), if the other (NULL: none) is still as it was found. */
int accounts_save_beside(struct api *api, const char *prefix, const char *id, uint64_t revision,
                         const json_t *object, const struct admin *other, struct fault *fault)
{
    char key[KEY_BYTES];
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

int accounts_save(struct api *api, const char *prefix, const char *id, uint64_t revision,
                  const json_t *object, struct fault *fault)
{
    return accounts_save_beside(api, prefix, id, revision, object, NULL, fault);
}

int accounts_save_for(struct api *api, const char *prefix, const char *id, unsigned seconds,
                      const json_t *object, struct fault *fault)
{
    char key[KEY_BYTES];
    struct err err = {0};
    uint64_t lease;
    int error = store_lease_grant(api->config.store, seconds, &lease, &err);
    if (error != 0) {
        return fault_set_err(fault, error, &err);
    }
    (void)snprintf(key, sizeof(key), "%s%s", prefix, id);
    char *value = json_dumps(object, JSON_COMPACT);
    const struct store_write write = {.key = key, .value = value, .lease = lease};
    const struct store_commit commit = {.writes = &write, .write_count = 1};
    error = value != NULL ? store_commit(api->config.store, &commit, NULL, &err) : -ENOMEM;
    free(value);
    return error != 0 ? fault_set_err(fault, error, &err) : 0;
}

json_t *accounts_shown(const json_t *record)
{
    static const char *const secrets[] = {"password_hash", "hash", "stamp", AUTH_STAMP_OF_TOKENS,
                                          AUTH_STAMP_OF_SESSIONS};
    json_t *copy = json_copy((json_t *)(uintptr_t)record);
    for (size_t i = 0; i < ARRAY_LEN(secrets); i++) {
        (void)json_object_del(copy, secrets[i]);
    }
    totp_hide(copy);
    return copy;
}

int accounts_answer(const json_t *record, json_t **ret_answer)
{
    *ret_answer = accounts_shown(record);
    return 0;
}

int accounts_each(struct api *api, const char *prefix, accounts_visit visit, void *opaque,
                  struct fault *fault)
{
    struct store_page page;
    struct err err = {0};
    char after[KEY_BYTES] = "";
    bool has_more;
    int rc = 0;
    do {
        int error = store_list(api->config.store, prefix, after[0] != 0 ? after : NULL,
                               PAGE_RECORDS, &page, &err);
        if (error != 0) {
            return fault_set_err(fault, error, &err);
        }
        for (unsigned i = 0; i < page.count && rc == 0; i++) {
            json_t *object = json_loads(page.records[i].value, 0, NULL);
            rc = object != NULL ? visit(opaque, &page.records[i], object) : 0;
            json_decref(object);
            (void)snprintf(after, sizeof(after), "%s", page.records[i].key);
        }
        has_more = page.has_more && page.count > 0;
        store_page_done(&page);
    } while (rc == 0 && has_more);
    return rc;
}

struct listing {
    const struct identity *only;
    json_t *items;
};

static int add_shown(void *opaque, MAYBE_UNUSED const struct store_record *record,
                     const json_t *object)
{
    struct listing *listing = opaque;
    if (listing->only == NULL || accounts_owns_token(listing->only, object)) {
        (void)json_array_append_new(listing->items, accounts_shown(object));
    }
    return 0;
}

int accounts_list(struct api *api, const char *prefix, const struct identity *only, json_t **ret,
                  struct fault *fault)
{
    struct listing listing = {.only = only, .items = json_array()};
    int error = accounts_each(api, prefix, add_shown, &listing, fault);
    json_t *answer = json_pack("{s:o}", "items", listing.items);
    if (error == 0 && answer == NULL) {
        error = fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
    }
    if (error != 0) {
        json_decref(answer);
        return error;
    }
    *ret = answer;
    return 0;
}

int accounts_make_secret(json_t *record, char *ret_id, char *ret_secret, size_t secret_bytes,
                         struct fault *fault)
{
    char hash[HEX_BYTES];
    if (auth_random_text(ret_id, ACCOUNTS_ID_BYTES) != 0 ||
        auth_random_text(ret_secret, secret_bytes) != 0 ||
        auth_hash(ret_secret, hash, sizeof(hash)) != 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "the host gives no random bytes");
    }
    (void)json_object_set_new(record, "id", json_string(ret_id));
    (void)json_object_set_new(record, "hash", json_string(hash));
    (void)json_object_set_new(record, "created", json_integer(time(NULL)));
    return 0;
}

struct pruning {
    struct api *api;
    json_int_t before;
    unsigned *count;
    struct fault *fault;
};

/* A week behind its end, so that whoever wonders still finds it in the list. */
static int prune_expired(void *opaque, const struct store_record *record, const json_t *object)
{
    struct pruning *pruning = opaque;
    struct err err = {0};
    json_int_t expires = json_integer_value(json_object_get(object, "expires"));
    if (expires == 0 || expires > pruning->before) {
        return 0;
    }
    int error =
        store_swap(pruning->api->config.store, record->key, record->revision, NULL, NULL, &err);
    *pruning->count += error == 0;
    /* Changed meanwhile: another time. */
    return error == 0 || error == -ESTALE ? 0 : fault_set_err(pruning->fault, error, &err);
}

int api_prune(struct api *api, unsigned *count, struct fault *fault)
{
    struct pruning pruning = {
        .api = api, .before = (json_int_t)time(NULL) - 7 * 86400, .count = count, .fault = fault};
    int error = accounts_each(api, AUTH_KEY_PREFIX, prune_expired, &pruning, fault);
    return error != 0 ? error
                      : accounts_each(api, AUTH_SESSION_PREFIX, prune_expired, &pruning, fault);
}
