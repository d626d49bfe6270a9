/* What all implementations share: the contract's limits, and calls made of other calls. */
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool store_key_is_valid(const char *key)
{
    size_t len = strnlen(key, STORE_MAX_KEY_BYTES + 1);

    if (len < 2 || len > STORE_MAX_KEY_BYTES || key[0] != '/') {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (key[i] <= ' ' || key[i] > '~') {
            return false;
        }
    }
    return true;
}

static int refuse_key(const char *key, struct err *err)
{
    return err_set(err, -EINVAL, "\"%.60s\" is no key of the store", key);
}

/* A prefix is "/" or as a key. */
static bool prefix_is_valid(const char *prefix)
{
    return strcmp(prefix, "/") == 0 || store_key_is_valid(prefix);
}

void store_close(struct store *store)
{
    if (store != NULL) {
        store->ops->close(store);
    }
}

int store_get(struct store *store, const char *key, struct store_record *ret_record,
              struct err *err)
{
    return store_key_is_valid(key) ? store->ops->get(store, key, ret_record, err)
                                   : refuse_key(key, err);
}

int store_list(struct store *store, const char *prefix, const char *after, unsigned limit,
               struct store_page *ret_page, struct err *err)
{
    if (!prefix_is_valid(prefix) || (after != NULL && !prefix_is_valid(after))) {
        return refuse_key(prefix, err);
    }
    if (limit == 0 || limit > STORE_MAX_PAGE) {
        return err_set(err, -EINVAL, "a page has 1 to %u records", STORE_MAX_PAGE);
    }
    return store->ops->list(store, prefix, after, limit, ret_page, err);
}

static int check_writes(const struct store_commit *commit, struct err *err)
{
    for (unsigned i = 0; i < commit->write_count; i++) {
        const struct store_write *write = &commit->writes[i];

        if (!store_key_is_valid(write->key)) {
            return refuse_key(write->key, err);
        }
        if (write->value != NULL &&
            strnlen(write->value, STORE_MAX_VALUE_BYTES + 1) > STORE_MAX_VALUE_BYTES) {
            return err_set(err, -EINVAL, "the record %s is longer than %u bytes", write->key,
                           STORE_MAX_VALUE_BYTES);
        }
        for (unsigned j = 0; j < i; j++) {
            if (strcmp(write->key, commit->writes[j].key) == 0) {
                return err_set(err, -EINVAL, "one commit writes %s twice", write->key);
            }
        }
    }
    return 0;
}

int store_commit(struct store *store, const struct store_commit *commit, uint64_t *ret_revision,
                 struct err *err)
{
    uint64_t ignored;
    int rc;

    if (commit->guard_count > STORE_MAX_OPS || commit->write_count > STORE_MAX_OPS) {
        return err_set(err, -EINVAL, "a commit has at most %u guards and writes", STORE_MAX_OPS);
    }
    for (unsigned i = 0; i < commit->guard_count; i++) {
        if (!store_key_is_valid(commit->guards[i].key)) {
            return refuse_key(commit->guards[i].key, err);
        }
    }
    rc = check_writes(commit, err);
    if (rc < 0) {
        return rc;
    }
    return store->ops->commit(store, commit, ret_revision != NULL ? ret_revision : &ignored, err);
}

int store_put(struct store *store, const char *key, const char *value, uint64_t *ret_revision,
              struct err *err)
{
    const struct store_write write = {.key = key, .value = value};
    const struct store_commit commit = {.writes = &write, .write_count = 1};

    return store_commit(store, &commit, ret_revision, err);
}

int store_swap(struct store *store, const char *key, uint64_t revision, const char *value,
               uint64_t *ret_revision, struct err *err)
{
    const struct store_guard guard = {.key = key, .revision = revision};
    const struct store_write write = {.key = key, .value = value};
    const struct store_commit commit = {
        .guards = &guard, .guard_count = 1, .writes = &write, .write_count = 1};

    return store_commit(store, &commit, ret_revision, err);
}

int store_revision(struct store *store, uint64_t *ret_revision, struct err *err)
{
    return store->ops->revision(store, ret_revision, err);
}

int store_lease_grant(struct store *store, unsigned ttl_s, uint64_t *ret_lease, struct err *err)
{
    if (ttl_s < STORE_MIN_TTL_S || ttl_s > STORE_MAX_TTL_S) {
        return err_set(err, -EINVAL, "a lease has %u to %u seconds", STORE_MIN_TTL_S,
                       STORE_MAX_TTL_S);
    }
    return store->ops->lease_grant(store, ttl_s, ret_lease, err);
}

int store_lease_keep(struct store *store, uint64_t lease, unsigned *ret_ttl_s, struct err *err)
{
    unsigned ignored;

    return store->ops->lease_keep(store, lease, ret_ttl_s != NULL ? ret_ttl_s : &ignored, err);
}

int store_lease_revoke(struct store *store, uint64_t lease, struct err *err)
{
    return store->ops->lease_revoke(store, lease, err);
}

int store_watch_open(struct store *store, const char *prefix, uint64_t after,
                     struct store_watch **ret_watch, struct err *err)
{
    return prefix_is_valid(prefix) ? store->ops->watch_open(store, prefix, after, ret_watch, err)
                                   : refuse_key(prefix, err);
}

int store_watch_fd(struct store *store, const struct store_watch *watch)
{
    return store->ops->watch_fd(watch);
}

int store_watch_next(struct store *store, struct store_watch *watch, unsigned max,
                     struct store_page *ret_changes, struct err *err)
{
    if (max == 0 || max > STORE_MAX_PAGE) {
        return err_set(err, -EINVAL, "a page has 1 to %u changes", STORE_MAX_PAGE);
    }
    return store->ops->watch_next(watch, max, ret_changes, err);
}

void store_watch_close(struct store *store, struct store_watch *watch)
{
    if (watch != NULL) {
        store->ops->watch_close(watch);
    }
}

void store_record_done(struct store_record *record)
{
    free(record->key);
    free(record->value);
    *record = (struct store_record){0};
}

void store_page_done(struct store_page *page)
{
    for (unsigned i = 0; i < page->count; i++) {
        store_record_done(&page->records[i]);
    }
    free(page->records);
    *page = (struct store_page){0};
}
