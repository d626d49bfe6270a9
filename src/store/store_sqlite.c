#include "store/store_sqlite_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_KEEP_CHANGES 100000u
#define PRUNE_EVERY 256u /* commits */

static struct sqlite_store *to_sqlite(struct store *store)
{
    return container_of(store, struct sqlite_store, store);
}

int sqlite_step_done(sqlite3_stmt *statement)
{
    int rc = sqlite3_step(statement);

    (void)sqlite3_reset(statement); /* repeats the error of the step */
    return rc;
}

/* What SQLite refused, as the contract has it; a store whose file failed stays failed. */
int sqlite_fail(struct sqlite_store *store, int code, struct err *err)
{
    int rc = sqlite_error(code, store->path, err);

    if (rc == -EIO || rc == -EBADMSG) {
        store->has_failed = true;
    }
    return rc;
}

int sqlite_begin(struct sqlite_store *store, struct err *err)
{
    int rc;

    if (store->has_failed) {
        return err_set(err, -EIO, "%s failed before; it takes no changes until it is opened anew",
                       store->path);
    }
    rc = sqlite_step_done(store->write.statements[STATEMENT_BEGIN]);
    return rc == SQLITE_DONE ? 0 : sqlite_fail(store, rc, err);
}

void sqlite_rollback(struct sqlite_store *store)
{
    /* Some errors have ended the transaction already. */
    if (!sqlite3_get_autocommit(store->write.db)) {
        (void)sqlite_step_done(store->write.statements[STATEMENT_ROLLBACK]);
    }
}

static int set_meta(struct sqlite_store *store, const char *name, uint64_t value)
{
    sqlite3_stmt *set = store->write.statements[STATEMENT_SET];

    (void)sqlite3_bind_text(set, 1, name, -1, SQLITE_STATIC);
    (void)sqlite3_bind_int64(set, 2, (sqlite3_int64)value);
    return sqlite_step_done(set);
}

/* Forgets history that is older than what is kept. */
static int prune(struct sqlite_store *store, uint64_t revision, uint64_t *kept_after)
{
    sqlite3_stmt *statement = store->write.statements[STATEMENT_PRUNE];
    int rc;

    if (revision % PRUNE_EVERY != 0 || revision <= store->keep_changes) {
        return SQLITE_DONE;
    }
    *kept_after = revision - store->keep_changes;
    (void)sqlite3_bind_int64(statement, 1, (sqlite3_int64)*kept_after);
    rc = sqlite_step_done(statement);
    return rc == SQLITE_DONE ? set_meta(store, "kept_after", *kept_after) : rc;
}

/* Makes it durable and known. After an error nothing of it remains. */
int sqlite_finish(struct sqlite_store *store, uint64_t revision, struct err *err)
{
    uint64_t kept_after = store->kept_after;
    int rc = set_meta(store, "revision", revision);

    if (rc == SQLITE_DONE) {
        rc = prune(store, revision, &kept_after);
    }
    if (rc == SQLITE_DONE) {
        rc = sqlite_step_done(store->write.statements[STATEMENT_COMMIT]);
    }
    if (rc != SQLITE_DONE) {
        rc = sqlite_fail(store, rc, err);
        sqlite_rollback(store);
        return rc;
    }
    store->revision = revision;
    store->kept_after = kept_after;
    sqlite_file_seal(store);
    sqlite_watch_wake(store);
    return 0;
}

/* What is at the key now; both 0 when nothing is. */
static int look_up(struct sqlite_store *store, const char *key, uint64_t *ret_revision,
                   uint64_t *ret_created, struct err *err)
{
    sqlite3_stmt *guard = store->write.statements[STATEMENT_GUARD];
    int rc;

    (void)sqlite3_bind_text(guard, 1, key, -1, SQLITE_STATIC);
    rc = sqlite3_step(guard);
    *ret_revision = rc == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(guard, 0) : 0;
    *ret_created = rc == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(guard, 1) : 0;
    (void)sqlite3_reset(guard);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? 0 : sqlite_fail(store, rc, err);
}

static int check_guards(struct sqlite_store *store, const struct store_commit *commit,
                        struct err *err)
{
    for (unsigned i = 0; i < commit->guard_count; i++) {
        const struct store_guard *guard = &commit->guards[i];
        uint64_t revision, created;
        int rc = look_up(store, guard->key, &revision, &created, err);

        if (rc < 0) {
            return rc;
        }
        if (revision != guard->revision) {
            return err_set(err, -ESTALE, "%s is at revision %llu, not at %llu", guard->key,
                           (unsigned long long)revision, (unsigned long long)guard->revision);
        }
    }
    return 0;
}

/* Binds what the statements that write a record have in common, from parameter `first` on. */
static void bind_record(sqlite3_stmt *statement, const struct store_record *record)
{
    (void)sqlite3_bind_text(statement, 1, record->key, -1, SQLITE_STATIC);
    if (record->value != NULL) {
        (void)sqlite3_bind_text(statement, 2, record->value, -1, SQLITE_STATIC);
    } else {
        (void)sqlite3_bind_null(statement, 2);
    }
    (void)sqlite3_bind_int64(statement, 3, (sqlite3_int64)record->revision);
    (void)sqlite3_bind_int64(statement, 4, (sqlite3_int64)record->created);
    (void)sqlite3_bind_int64(statement, 5, (sqlite3_int64)record->lease);
    (void)sqlite3_bind_int64(
        statement, 6,
        sqlite_sum(record->key, record->value, record->revision, record->created, record->lease));
}

/* One line of history. */
static int note(struct sqlite_store *store, const struct store_record *record, struct err *err)
{
    sqlite3_stmt *statement = store->write.statements[STATEMENT_NOTE];
    int rc;

    bind_record(statement, record);
    rc = sqlite_step_done(statement);
    (void)sqlite3_clear_bindings(statement);
    return rc == SQLITE_DONE ? 0 : sqlite_fail(store, rc, err);
}

int sqlite_delete(struct sqlite_store *store, const char *key, uint64_t revision, bool *ret_changed,
                  struct err *err)
{
    sqlite3_stmt *statement = store->write.statements[STATEMENT_DELETE];
    struct store_record record = {.revision = revision};
    uint64_t old;
    int rc = look_up(store, key, &old, &record.created, err);

    if (rc < 0 || old == 0) {
        return rc;
    }
    (void)sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
    rc = sqlite_step_done(statement);
    if (rc != SQLITE_DONE) {
        return sqlite_fail(store, rc, err);
    }
    *ret_changed = true;
    record.key = strdup(key);
    if (record.key == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = note(store, &record, err);
    store_record_done(&record);
    return rc;
}

static int put(struct sqlite_store *store, const struct store_write *write, uint64_t revision,
               struct err *err)
{
    sqlite3_stmt *statement = store->write.statements[STATEMENT_PUT];
    struct store_record record = {.revision = revision, .lease = write->lease};
    uint64_t old;
    int rc = look_up(store, write->key, &old, &record.created, err);

    if (rc < 0) {
        return rc;
    }
    if (write->lease != 0 && sqlite_lease_find(store, write->lease) == NULL) {
        return err_set(err, -ENOENT, "the lease of %s has ended", write->key);
    }
    if (old == 0) {
        record.created = revision;
    }
    record.key = strdup(write->key);
    record.value = strdup(write->value);
    if (record.key == NULL || record.value == NULL) {
        store_record_done(&record);
        return err_set(err, -ENOMEM, "out of memory");
    }
    bind_record(statement, &record);
    rc = sqlite_step_done(statement);
    (void)sqlite3_clear_bindings(statement);
    rc = rc == SQLITE_DONE ? note(store, &record, err) : sqlite_fail(store, rc, err);
    store_record_done(&record);
    return rc;
}

static int apply(struct sqlite_store *store, const struct store_commit *commit, uint64_t revision,
                 bool *ret_changed, struct err *err)
{
    for (unsigned i = 0; i < commit->write_count; i++) {
        const struct store_write *write = &commit->writes[i];
        int rc;

        if (write->value == NULL) {
            rc = sqlite_delete(store, write->key, revision, ret_changed, err);
        } else {
            rc = put(store, write, revision, err);
            *ret_changed = true;
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int commit_locked(struct sqlite_store *store, const struct store_commit *commit,
                         uint64_t *ret_revision, struct err *err)
{
    uint64_t revision = store->revision + 1;
    bool has_changed = false;
    int rc = sqlite_begin(store, err);

    if (rc < 0) {
        return rc;
    }
    rc = check_guards(store, commit, err);
    if (rc == 0) {
        rc = apply(store, commit, revision, &has_changed, err);
    }
    if (rc == 0 && has_changed) {
        rc = sqlite_finish(store, revision, err);
    } else {
        sqlite_rollback(store);
    }
    if (rc == 0) {
        *ret_revision = store->revision;
    }
    return rc;
}

static int sqlite_commit(struct store *store, const struct store_commit *commit,
                         uint64_t *ret_revision, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    int rc;

    mutex_lock(&s->write.lock);
    rc = commit_locked(s, commit, ret_revision, err);
    mutex_unlock(&s->write.lock);
    return rc;
}

/* A column's text, copied; NULL stays NULL. */
static int copy_column(sqlite3_stmt *statement, int column, char **ret_text)
{
    const unsigned char *text = sqlite3_column_text(statement, column);

    *ret_text = NULL;
    if (text == NULL) {
        return sqlite3_column_type(statement, column) == SQLITE_NULL ? 0 : -ENOMEM;
    }
    *ret_text = strdup((const char *)text);
    return *ret_text != NULL ? 0 : -ENOMEM;
}

int sqlite_read_record(sqlite3_stmt *statement, struct store_record *ret_record)
{
    struct store_record record = {
        .revision = (uint64_t)sqlite3_column_int64(statement, 2),
        .created = (uint64_t)sqlite3_column_int64(statement, 3),
        .lease = (uint64_t)sqlite3_column_int64(statement, 4),
    };
    int rc = copy_column(statement, 0, &record.key);

    if (rc == 0) {
        rc = copy_column(statement, 1, &record.value);
    }
    if (rc == 0 &&
        sqlite3_column_int64(statement, 5) !=
            sqlite_sum(record.key, record.value, record.revision, record.created, record.lease)) {
        rc = -EBADMSG;
    }
    if (rc < 0) {
        store_record_done(&record);
        return rc;
    }
    *ret_record = record;
    return 0;
}

int sqlite_page_add(struct store_page *page, unsigned *room, struct store_record *record)
{
    if (page->count == *room) {
        unsigned more = *room == 0 ? 16 : *room * 2;
        struct store_record *records = reallocarray(page->records, more, sizeof(*records));

        if (records == NULL) {
            return -ENOMEM;
        }
        page->records = records;
        *room = more;
    }
    page->records[page->count++] = *record;
    *record = (struct store_record){0};
    return 0;
}

void sqlite_prefix_end(const char *prefix, char out[STORE_MAX_KEY_BYTES + 1])
{
    size_t len = strlen(prefix);

    memcpy(out, prefix, len + 1);
    out[len - 1]++; /* a key's characters are printable, so there is a next one */
}

int sqlite_read_meta(struct sqlite_side *side, const char *name, uint64_t *ret_value)
{
    sqlite3_stmt *meta = side->statements[STATEMENT_META];
    int rc;

    (void)sqlite3_bind_text(meta, 1, name, -1, SQLITE_STATIC);
    rc = sqlite3_step(meta);
    *ret_value = rc == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(meta, 0) : 0;
    (void)sqlite3_reset(meta);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int sqlite_read_begin(struct sqlite_store *store, uint64_t *ret_revision, struct err *err)
{
    int rc = sqlite_step_done(store->read.statements[STATEMENT_READ_BEGIN]);

    if (rc != SQLITE_DONE) {
        return sqlite_error(rc, store->path, err);
    }
    rc = sqlite_read_meta(&store->read, "revision", ret_revision);
    if (rc != SQLITE_OK) {
        rc = sqlite_error(rc, store->path, err);
        sqlite_read_end(store);
        return rc;
    }
    return 0;
}

void sqlite_read_end(struct sqlite_store *store)
{
    (void)sqlite_step_done(store->read.statements[STATEMENT_READ_END]);
}

/* Says what was wrong with a row that could not be taken. */
static int refuse_row(struct sqlite_store *store, int rc, struct err *err)
{
    return rc == -EBADMSG
               ? err_set(err, rc, "%s is damaged: a record is not what was written", store->path)
               : err_set(err, rc, "out of memory");
}

static int sqlite_get(struct store *store, const char *key, struct store_record *ret_record,
                      struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    sqlite3_stmt *get = s->read.statements[STATEMENT_GET];
    int rc;

    mutex_lock(&s->read.lock);
    (void)sqlite3_bind_text(get, 1, key, -1, SQLITE_STATIC);
    rc = sqlite3_step(get);
    if (rc == SQLITE_ROW) {
        rc = sqlite_read_record(get, ret_record);
        rc = rc < 0 ? refuse_row(s, rc, err) : 0;
    } else if (rc == SQLITE_DONE) {
        rc = err_set(err, -ENOENT, "there is no record %s", key);
    } else {
        rc = sqlite_error(rc, s->path, err);
    }
    (void)sqlite3_reset(get);
    mutex_unlock(&s->read.lock);
    return rc;
}

/* The rows of the list, one more than asked for, which only says that there are more. */
static int read_page(struct sqlite_store *store, unsigned limit, struct store_page *page,
                     struct err *err)
{
    sqlite3_stmt *list = store->read.statements[STATEMENT_LIST];
    unsigned room = 0;
    int step;

    while ((step = sqlite3_step(list)) == SQLITE_ROW) {
        struct store_record record;
        int rc;

        if (page->count == limit) {
            page->has_more = true;
            return 0;
        }
        rc = sqlite_read_record(list, &record);
        if (rc == 0) {
            rc = sqlite_page_add(page, &room, &record);
            if (rc < 0) {
                store_record_done(&record);
            }
        }
        if (rc < 0) {
            return refuse_row(store, rc, err);
        }
    }
    return step == SQLITE_DONE ? 0 : sqlite_error(step, store->path, err);
}

static int sqlite_list(struct store *store, const char *prefix, const char *after, unsigned limit,
                       struct store_page *ret_page, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    sqlite3_stmt *list = s->read.statements[STATEMENT_LIST];
    char end[STORE_MAX_KEY_BYTES + 1];
    struct store_page page = {.count = 0};
    int rc;

    sqlite_prefix_end(prefix, end);
    mutex_lock(&s->read.lock);
    rc = sqlite_read_begin(s, &page.revision, err);
    if (rc == 0) {
        (void)sqlite3_bind_text(list, 1, prefix, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(list, 2, end, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(list, 3, after != NULL ? after : "", -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(list, 4, (sqlite3_int64)limit + 1);
        rc = read_page(s, limit, &page, err);
        (void)sqlite3_reset(list);
        (void)sqlite3_clear_bindings(list);
        sqlite_read_end(s);
    }
    mutex_unlock(&s->read.lock);
    if (rc < 0) {
        store_page_done(&page);
        return rc;
    }
    *ret_page = page;
    return 0;
}

static int sqlite_revision(struct store *store, uint64_t *ret_revision, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);

    (void)err;
    mutex_lock(&s->write.lock);
    *ret_revision = s->revision;
    mutex_unlock(&s->write.lock);
    return 0;
}

static void sqlite_close(struct store *store)
{
    struct sqlite_store *s = to_sqlite(store);

    if (s->has_lease_thread) {
        mutex_lock(&s->write.lock);
        s->is_closing = true;
        (void)pthread_cond_signal(&s->lease_changed); /* cannot fail */
        mutex_unlock(&s->write.lock);
        (void)pthread_join(s->lease_thread, NULL);
    }
    sqlite_file_close(s);
    if (s->lock_fd >= 0) {
        (void)close(s->lock_fd);
    }
    (void)pthread_cond_destroy(&s->lease_changed);
    mutex_done(&s->read.lock);
    mutex_done(&s->write.lock);
    free(s->leases);
    free(s);
}

static const struct store_ops sqlite_ops = {
    .name = "sqlite",
    .close = sqlite_close,
    .get = sqlite_get,
    .list = sqlite_list,
    .commit = sqlite_commit,
    .revision = sqlite_revision,
    .lease_grant = sqlite_lease_grant,
    .lease_keep = sqlite_lease_keep,
    .lease_revoke = sqlite_lease_revoke,
    .watch_open = sqlite_watch_open,
    .watch_fd = sqlite_watch_fd,
    .watch_next = sqlite_watch_next,
    .watch_close = sqlite_watch_close,
};

static struct sqlite_store *allocate(const struct store_sqlite_config *config)
{
    struct sqlite_store *s = calloc(1, sizeof(*s));
    pthread_condattr_t attributes;

    if (s == NULL) {
        return NULL;
    }
    s->store.ops = &sqlite_ops;
    s->lock_fd = s->seal_fd = -1;
    s->keep_changes = config->keep_changes != 0 ? config->keep_changes : DEFAULT_KEEP_CHANGES;
    mutex_init(&s->read.lock, LOCK_RANK_STORE);
    mutex_init(&s->write.lock, LOCK_RANK_STORE);
    (void)pthread_condattr_init(&attributes); /* these cannot fail on Linux */
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s->lease_changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    return s;
}

int store_sqlite_open(const struct store_sqlite_config *config, struct err *err,
                      struct store **ret_store)
{
    struct sqlite_store *s = allocate(config);
    int n, rc;

    if (s == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    n = snprintf(s->path, sizeof(s->path), "%s", config->path);
    rc = n < 0 || (size_t)n >= sizeof(s->path) - 8
             ? err_set(err, -ENAMETOOLONG, "the path %.60s... is too long", config->path)
             : sqlite_lock(s->path, &s->lock_fd, err);
    if (rc == 0) {
        rc = sqlite_file_open(s, err);
    }
    if (rc == 0) {
        rc = thread_start(&s->lease_thread, "store/lease", sqlite_lease_main, s);
        s->has_lease_thread = rc == 0;
        rc = rc < 0 ? err_set_errno(err, rc, "a thread cannot be started") : 0;
    }
    if (rc < 0) {
        sqlite_close(&s->store);
        return rc;
    }
    *ret_store = &s->store;
    return 0;
}
