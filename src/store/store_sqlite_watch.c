/* Watches: each reads the history from where it stands, woken by commits. */
#include "store/store_sqlite_int.h"

#include "base/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct store_watch {
    struct sqlite_store *store;
    struct store_watch *next;
    int event_fd;
    uint64_t position; /* everything up to it was told */
    char prefix[STORE_MAX_KEY_BYTES + 1];
    char end[STORE_MAX_KEY_BYTES + 1];
};

static struct sqlite_store *to_sqlite(struct store *store)
{
    return container_of(store, struct sqlite_store, store);
}

static int refuse_past(uint64_t after, struct err *err)
{
    return err_set(err, -ESTALE, "what changed after revision %llu is not kept",
                   (unsigned long long)after);
}

int sqlite_watch_open(struct store *store, const char *prefix, uint64_t after,
                      struct store_watch **ret_watch, struct err *err)
{
    struct sqlite_store *s = to_sqlite(store);
    struct store_watch *watch = calloc(1, sizeof(*watch));
    int rc = 0;

    if (watch == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    watch->store = s;
    watch->position = after;
    memcpy(watch->prefix, prefix, strlen(prefix) + 1);
    sqlite_prefix_end(prefix, watch->end);
    watch->event_fd = io_eventfd();
    if (watch->event_fd < 0) {
        rc = err_set_errno(err, watch->event_fd, "a watch cannot be opened");
        free(watch);
        return rc;
    }
    mutex_lock(&s->write.lock);
    if (after < s->kept_after || after > s->revision) {
        rc = refuse_past(after, err);
    } else {
        watch->next = s->watches;
        s->watches = watch;
        if (after < s->revision) {
            io_eventfd_signal(watch->event_fd);
        }
    }
    mutex_unlock(&s->write.lock);
    if (rc < 0) {
        (void)close(watch->event_fd);
        free(watch);
        return rc;
    }
    *ret_watch = watch;
    return 0;
}

int sqlite_watch_fd(const struct store_watch *watch)
{
    return watch->event_fd;
}

void sqlite_watch_wake(struct sqlite_store *store)
{
    for (const struct store_watch *watch = store->watches; watch != NULL; watch = watch->next) {
        io_eventfd_signal(watch->event_fd);
    }
}

/* Rows up to about max; page->revision becomes the last whole commit's that was read. */
static int read_changes(struct store_watch *watch, unsigned max, struct store_page *page,
                        struct err *err)
{
    struct sqlite_store *store = watch->store;
    sqlite3_stmt *changes = store->read.statements[STATEMENT_CHANGES];
    unsigned room = 0;
    int step, rc = 0;

    while (rc == 0 && (step = sqlite3_step(changes)) == SQLITE_ROW) {
        struct store_record record;

        rc = sqlite_read_record(changes, &record);
        if (rc < 0) {
            break;
        }
        if (page->count >= max && record.revision != page->records[page->count - 1].revision) {
            page->revision = page->records[page->count - 1].revision;
            page->has_more = true;
            store_record_done(&record);
            return 0;
        }
        rc = sqlite_page_add(page, &room, &record);
        if (rc < 0) {
            store_record_done(&record);
        }
    }
    if (rc < 0) {
        return err_set_errno(err, rc, "the history in %s cannot be read", store->path);
    }
    return step == SQLITE_DONE ? 0 : sqlite_error(step, store->path, err);
}

/* One state of the store, under the lock of the reading side. */
static int next_locked(struct store_watch *watch, unsigned max, struct store_page *page,
                       struct err *err)
{
    struct sqlite_store *store = watch->store;
    sqlite3_stmt *changes = store->read.statements[STATEMENT_CHANGES];
    uint64_t kept_after = 0;
    int rc = sqlite_read_begin(store, &page->revision, err);

    if (rc < 0) {
        return rc;
    }
    rc = sqlite_read_meta(&store->read, "kept_after", &kept_after);
    if (rc != SQLITE_OK) {
        rc = sqlite_error(rc, store->path, err);
    } else if (watch->position < kept_after) {
        rc = refuse_past(watch->position, err);
    } else {
        (void)sqlite3_bind_text(changes, 1, watch->prefix, -1, SQLITE_STATIC);
        (void)sqlite3_bind_text(changes, 2, watch->end, -1, SQLITE_STATIC);
        (void)sqlite3_bind_int64(changes, 3, (sqlite3_int64)watch->position);
        rc = read_changes(watch, max, page, err);
        (void)sqlite3_reset(changes);
        (void)sqlite3_clear_bindings(changes);
    }
    sqlite_read_end(store);
    return rc;
}

int sqlite_watch_next(struct store_watch *watch, unsigned max, struct store_page *ret_changes,
                      struct err *err)
{
    struct sqlite_store *store = watch->store;
    struct store_page page = {.count = 0};
    int rc;

    (void)io_eventfd_drain(watch->event_fd); /* before reading: what comes later wakes again */
    mutex_lock(&store->read.lock);
    rc = next_locked(watch, max, &page, err);
    mutex_unlock(&store->read.lock);
    if (rc < 0) {
        store_page_done(&page);
        return rc;
    }
    watch->position = page.revision;
    if (page.has_more) {
        io_eventfd_signal(watch->event_fd);
    }
    *ret_changes = page;
    return 0;
}

void sqlite_watch_close(struct store_watch *watch)
{
    struct sqlite_store *store = watch->store;
    struct store_watch **at = &store->watches;

    mutex_lock(&store->write.lock);
    while (*at != watch) {
        at = &(*at)->next;
    }
    *at = watch->next;
    mutex_unlock(&store->write.lock);
    (void)close(watch->event_fd);
    free(watch);
}
