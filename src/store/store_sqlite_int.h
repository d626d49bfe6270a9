/*
 * Between the files of the SQLite store. See store_sqlite.h.
 *
 * Two connections: everything that writes goes through one, under its lock;
 * reads go through the other, and so never wait for a sync. A statement is
 * used under the lock of its connection only.
 */
#ifndef CORBEL_STORE_STORE_SQLITE_INT_H
#define CORBEL_STORE_STORE_SQLITE_INT_H

#include "base/thread.h"
#include "store/store_sqlite.h"

#include <limits.h>
#include <sqlite3.h>

#define SQLITE_STORE_ID_BYTES 33 /* 32 hexadecimal digits */

enum statement {
    /* of the writing connection */
    STATEMENT_BEGIN,
    STATEMENT_COMMIT,
    STATEMENT_ROLLBACK,
    STATEMENT_GUARD,        /* key -> revision, created */
    STATEMENT_PUT,          /* key, value, revision, created, lease, sum */
    STATEMENT_DELETE,       /* key */
    STATEMENT_NOTE,         /* revision, key, value, created, lease, sum */
    STATEMENT_SET,          /* name, value: of meta */
    STATEMENT_PRUNE,        /* revision: history up to it goes */
    STATEMENT_LEASE_ADD,    /* id, ttl */
    STATEMENT_LEASE_REMOVE, /* id */
    STATEMENT_LEASE_KEYS,   /* id -> keys, created */
    /* of the reading one */
    STATEMENT_READ_BEGIN,
    STATEMENT_READ_END,
    STATEMENT_META,    /* name -> value */
    STATEMENT_GET,     /* key -> record */
    STATEMENT_LIST,    /* prefix, end, after, limit -> records */
    STATEMENT_CHANGES, /* prefix, end, revision -> records */
    STATEMENT_COUNT
};

/* One connection with its statements. */
struct sqlite_side {
    struct mutex lock;
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENT_COUNT]; /* those of the other side stay NULL */
};

struct sqlite_lease {
    uint64_t id;
    unsigned ttl_s;
    uint64_t deadline_ns;
};

/* All below `write` changes under write.lock. */
struct sqlite_store {
    struct store store;
    char path[PATH_MAX];
    char id[SQLITE_STORE_ID_BYTES];
    int lock_fd, seal_fd;
    uint64_t keep_changes;
    struct sqlite_side read;

    struct sqlite_side write;
    bool has_failed;
    bool is_closing;
    uint64_t revision;
    uint64_t kept_after; /* history is whole from here on */
    uint64_t next_lease;
    struct sqlite_lease *leases;
    unsigned lease_count, lease_room;
    struct store_watch *watches;
    pthread_cond_t lease_changed;
    pthread_t lease_thread;
    bool has_lease_thread;
};

/* store_sqlite_file.c: the files. Everything of the struct but lock, ops and thread. */
int sqlite_file_open(struct sqlite_store *store, struct err *err) MUST_CHECK;
/* Whether the file at store->path is sound. store is zeroed but for its path. */
int sqlite_file_check(struct sqlite_store *store, struct err *err) MUST_CHECK;
void sqlite_file_close(struct sqlite_store *store); /* accepts half-open */
/* Remembers the revision outside of the database. */
void sqlite_file_seal(struct sqlite_store *store);

/* The sum that a record carries. */
int64_t sqlite_sum(const char *key, const char *value, uint64_t revision, uint64_t created,
                   uint64_t lease);

/* Prepares what `first` to before `end` name. */
int sqlite_side_prepare(struct sqlite_side *side, enum statement first, enum statement end);

/* What SQLite's error means to the contract; says so in err. */
int sqlite_error(int code, const char *path, struct err *err);

/* store_sqlite_lock.c: the lock of the store at path, until the descriptor is closed. -EBUSY. */
int sqlite_lock(const char *path, int *ret_fd, struct err *err) MUST_CHECK;

/* store_sqlite_lease.c, under write.lock but the thread's function. */
int sqlite_lease_load(struct sqlite_store *store, uint64_t id, unsigned ttl_s) MUST_CHECK;
struct sqlite_lease *sqlite_lease_find(struct sqlite_store *store, uint64_t id);
void *sqlite_lease_main(void *opaque);
int sqlite_lease_grant(struct store *store, unsigned ttl_s, uint64_t *ret_lease, struct err *err);
int sqlite_lease_keep(struct store *store, uint64_t lease, unsigned *ret_ttl_s, struct err *err);
int sqlite_lease_revoke(struct store *store, uint64_t lease, struct err *err);

/* store_sqlite_watch.c */
int sqlite_watch_open(struct store *store, const char *prefix, uint64_t after,
                      struct store_watch **ret_watch, struct err *err);
int sqlite_watch_fd(const struct store_watch *watch);
int sqlite_watch_next(struct store_watch *watch, unsigned max, struct store_page *ret_changes,
                      struct err *err);
void sqlite_watch_close(struct store_watch *watch);
void sqlite_watch_wake(struct sqlite_store *store); /* under write.lock */

/* store_sqlite.c: parts of a commit, under write.lock. */
int sqlite_begin(struct sqlite_store *store, struct err *err) MUST_CHECK;
int sqlite_finish(struct sqlite_store *store, uint64_t revision, struct err *err) MUST_CHECK;
void sqlite_rollback(struct sqlite_store *store);
int sqlite_delete(struct sqlite_store *store, const char *key, uint64_t revision, bool *ret_changed,
                  struct err *err) MUST_CHECK;
int sqlite_fail(struct sqlite_store *store, int code, struct err *err);

/* Runs a statement to its end and resets it: SQLITE_DONE or an error of SQLite. */
int sqlite_step_done(sqlite3_stmt *statement);

/* Reads a row: key, value, revision, created, lease. */
int sqlite_read_record(sqlite3_stmt *statement, struct store_record *ret_record) MUST_CHECK;
/* Appends to a page whose array has room for *room. */
int sqlite_page_add(struct store_page *page, unsigned *room, struct store_record *record)
    MUST_CHECK;
/* Begins to read one state of the store, on the reading side, under its lock. */
int sqlite_read_begin(struct sqlite_store *store, uint64_t *ret_revision, struct err *err)
    MUST_CHECK;
void sqlite_read_end(struct sqlite_store *store);
int sqlite_read_meta(struct sqlite_side *side, const char *name, uint64_t *ret_value) MUST_CHECK;
/* The first text after all that begin with prefix. */
void sqlite_prefix_end(const char *prefix, char out[STORE_MAX_KEY_BYTES + 1]);

#endif
