/* Leases: deadlines in memory, who they are in the database. */
#include "store/store_sqlite_int.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RETRY_NS NS_PER_S /* a lease that cannot be ended now, on a full disk, is tried again */

static struct sqlite_store *to_sqlite(struct store *store)
{
    return container_of(store, struct sqlite_store, store);
}

struct sqlite_lease *sqlite_lease_find(struct sqlite_store *store, uint64_t id)
{
    for (unsigned i = 0; i < store->lease_count; i++) {
        if (store->leases[i].id == id) {
            return &store->leases[i];
        }
    }
    return NULL;
}

int sqlite_lease_load(struct sqlite_store *store, uint64_t id, unsigned ttl_s)
{
    if (store->lease_count == store->lease_room) {
        unsigned more = store->lease_room == 0 ? 16 : store->lease_room * 2;
        struct sqlite_lease *leases = reallocarray(store->leases, more, sizeof(*leases));

        if (leases == NULL) {
            return -ENOMEM;
        }
        store->leases = leases;
        store->lease_room = more;
    }
    store->leases[store->lease_count++] = (struct sqlite_lease){
        .id = id, .ttl_s = ttl_s, .deadline_ns = clock_monotonic_ns() + ttl_s * NS_PER_S};
    return 0;
}

int sqlite_lease_grant(struct store *store, unsigned ttl_s, uint64_t *ret_lease, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    sqlite3_stmt *add = s->write.statements[STATEMENT_LEASE_ADD];
    uint64_t id;
    int rc = 0;

    mutex_lock(&s->write.lock);
    id = s->next_lease;
    if (s->has_failed) {
        rc = err_set(err, -EIO, "%s failed before", s->path);
    }
    if (rc == 0) {
        (void)sqlite3_bind_int64(add, 1, (sqlite3_int64)id);
        (void)sqlite3_bind_int64(add, 2, ttl_s);
        rc = sqlite_step_done(add); /* a commit of its own */
        rc = rc == SQLITE_DONE ? 0 : sqlite_fail(s, rc, err);
    }
    if (rc == 0) {
        s->next_lease++;
        rc = sqlite_lease_load(s, id, ttl_s);
        rc = rc < 0 ? err_set(err, rc, "out of memory") : 0;
    }
    if (rc == 0) {
        *ret_lease = id;
        (void)pthread_cond_signal(&s->lease_changed); /* cannot fail */
    }
    mutex_unlock(&s->write.lock);
    return rc;
}

int sqlite_lease_keep(struct store *store, uint64_t lease, unsigned *ret_ttl_s, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    struct sqlite_lease *found;
    int rc = 0;

    mutex_lock(&s->write.lock);
    found = sqlite_lease_find(s, lease);
    if (found == NULL) {
        rc = err_set(err, -ENOENT, "the lease %llu has ended", (unsigned long long)lease);
    } else {
        found->deadline_ns = clock_monotonic_ns() + found->ttl_s * NS_PER_S;
        *ret_ttl_s = found->ttl_s;
    }
    mutex_unlock(&s->write.lock);
    return rc;
}

/* The lease's keys, a NULL after the last. *ret_keys is the caller's, even half-filled. */
static int read_keys(struct sqlite_store *store, uint64_t lease, char ***ret_keys,
                     unsigned *ret_count, struct err *err)
{
    sqlite3_stmt *keys = store->write.statements[STATEMENT_LEASE_KEYS];
    char **list = NULL;
    unsigned count = 0;
    int step, rc = 0;

    (void)sqlite3_bind_int64(keys, 1, (sqlite3_int64)lease);
    while (rc == 0 && (step = sqlite3_step(keys)) == SQLITE_ROW) {
        const unsigned char *text = sqlite3_column_text(keys, 0);
        char **more = reallocarray(list, count + 1, sizeof(*list));

        if (more != NULL) {
            list = more;
            list[count] = text != NULL ? strdup((const char *)text) : NULL;
        }
        if (more == NULL || list[count] == NULL) {
            rc = err_set(err, -ENOMEM, "out of memory");
        } else {
            count++;
        }
    }
    if (rc == 0 && step != SQLITE_DONE) {
        rc = sqlite_fail(store, step, err);
    }
    (void)sqlite3_reset(keys);
    *ret_keys = list;
    *ret_count = count;
    return rc;
}

/* Deletes the lease and its records in one commit. Under the lock. */
static int end_locked(struct sqlite_store *store, uint64_t lease, struct err *err)
{
    sqlite3_stmt *remove = store->write.statements[STATEMENT_LEASE_REMOVE];
    uint64_t revision = store->revision + 1;
    bool has_changed = false;
    char **keys = NULL;
    unsigned count = 0;
    int rc = sqlite_begin(store, err);

    if (rc < 0) {
        return rc;
    }
    rc = read_keys(store, lease, &keys, &count, err);
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        rc = sqlite_delete(store, keys[i], revision, &has_changed, err);
    }
    for (unsigned i = 0; i < count; i++) {
        free(keys[i]);
    }
    free(keys);
    if (rc == 0) {
        (void)sqlite3_bind_int64(remove, 1, (sqlite3_int64)lease);
        rc = sqlite_step_done(remove);
        rc = rc == SQLITE_DONE ? 0 : sqlite_fail(store, rc, err);
    }
    if (rc < 0) {
        sqlite_rollback(store);
        return rc;
    }
    return sqlite_finish(store, has_changed ? revision : store->revision, err);
}

static int end_and_forget(struct sqlite_store *store, uint64_t lease, struct err *err)
{
    int rc = end_locked(store, lease, err);

    if (rc == 0) {
        *sqlite_lease_find(store, lease) = store->leases[store->lease_count - 1];
        store->lease_count--;
    }
    return rc;
}

int sqlite_lease_revoke(struct store *store, uint64_t lease, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    int rc;

    mutex_lock(&s->write.lock);
    rc = sqlite_lease_find(s, lease) == NULL
             ? err_set(err, -ENOENT, "the lease %llu has ended", (unsigned long long)lease)
             : end_and_forget(s, lease, err);
    mutex_unlock(&s->write.lock);
    return rc;
}

/* The lease whose time is up first. */
static struct sqlite_lease *find_first(struct sqlite_store *store)
{
    struct sqlite_lease *first = NULL;

    for (unsigned i = 0; i < store->lease_count; i++) {
        if (first == NULL || store->leases[i].deadline_ns < first->deadline_ns) {
            first = &store->leases[i];
        }
    }
    return first;
}

static void wait_until(struct sqlite_store *store, uint64_t deadline_ns)
{
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                      .tv_nsec = (long)(deadline_ns % NS_PER_S)};

    (void)pthread_cond_timedwait(&store->lease_changed, &store->write.lock.raw, &deadline);
}

void *sqlite_lease_main(void *opaque)
{
    struct sqlite_store *store = opaque;

    mutex_lock(&store->write.lock);
    while (!store->is_closing) {
        struct sqlite_lease *first = find_first(store);
        struct err err;

        if (first == NULL) {
            (void)pthread_cond_wait(&store->lease_changed, &store->write.lock.raw);
        } else if (first->deadline_ns > clock_monotonic_ns()) {
            wait_until(store, first->deadline_ns);
        } else if (end_and_forget(store, first->id, &err) < 0) {
            log_warn("a lease cannot be ended: %s; trying again, ignoring", err.text);
            first->deadline_ns = clock_monotonic_ns() + RETRY_NS;
        }
    }
    mutex_unlock(&store->write.lock);
    return NULL;
}
