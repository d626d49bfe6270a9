/*
 * The store of the control plane: records under keys, changed by
 * compare-and-swap, and watched.
 *
 * A record is a text (JSON, by convention) under a key such as
 * "/instance/i-0a1b". Every commit that writes raises the store's revision by
 * one, and all records it writes carry that revision. A commit that returned 0
 * is durable: no crash of process or host undoes it.
 *
 * The contract is that of etcd, so that one can stand in for the file: nothing
 * here needs locks that outlive a call, or sees half of a commit. Implementations
 * are tables of struct store_ops; tests/store/conformance.c holds each of them
 * to what is said here.
 *
 * Threads: all functions from any thread, several at a time; one watch belongs
 * to one thread at a time. Every call may wait for the disk (or the network).
 * Errors, with a sentence in err (which may be NULL): -ESTALE a guard did not
 * hold, or history is gone; -ENOENT; -EINVAL a key, value or commit that the
 * contract does not allow; -ENOSPC no room, nothing was changed; -ETIMEDOUT
 * whether it was done is not known: read again; -EIO the store has failed, and
 * from then on all changes do until it is opened anew.
 */
#ifndef CORBEL_STORE_STORE_H
#define CORBEL_STORE_STORE_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define STORE_MAX_KEY_BYTES 512u
#define STORE_MAX_VALUE_BYTES (1u << 20)
#define STORE_MAX_OPS 128u /* guards and writes of one commit, each */
#define STORE_MAX_PAGE 1000u
#define STORE_MIN_TTL_S 1u
#define STORE_MAX_TTL_S (366u * 24 * 3600)

/* Every implementation's struct begins with it. */
struct store {
    const struct store_ops *ops;
};

struct store_record {
    char *key;
    char *value;       /* NUL-terminated; NULL in a change that is a deletion */
    uint64_t revision; /* of the commit that wrote it last */
    uint64_t created;  /* of the commit that made it */
    uint64_t lease;    /* 0: none */
};

/* Holds while the record is at exactly that revision; 0: while there is none. */
struct store_guard {
    const char *key;
    uint64_t revision;
};

struct store_write {
    const char *key;
    const char *value; /* NULL: delete; a record that is not there stays so */
    uint64_t lease;    /* the record goes when the lease does; 0: none */
};

/* All guards hold and all is written, or nothing is. A key is written once at most. */
struct store_commit {
    const struct store_guard *guards;
    unsigned guard_count;
    const struct store_write *writes;
    unsigned write_count;
};

struct store_page {
    struct store_record *records; /* in order of their keys' bytes */
    unsigned count;
    bool has_more;
    uint64_t revision; /* the store's, of which this is the state */
};

struct store_watch;

struct store_ops {
    const char *name;
    void (*close)(struct store *store);
    int (*get)(struct store *store, const char *key, struct store_record *ret_record,
               struct err *err);
    int (*list)(struct store *store, const char *prefix, const char *after, unsigned limit,
                struct store_page *ret_page, struct err *err);
    int (*commit)(struct store *store, const struct store_commit *commit, uint64_t *ret_revision,
                  struct err *err);
    int (*revision)(struct store *store, uint64_t *ret_revision, struct err *err);
    int (*lease_grant)(struct store *store, unsigned ttl_s, uint64_t *ret_lease, struct err *err);
    int (*lease_keep)(struct store *store, uint64_t lease, unsigned *ret_ttl_s, struct err *err);
    int (*lease_revoke)(struct store *store, uint64_t lease, struct err *err);
    int (*watch_open)(struct store *store, const char *prefix, uint64_t after,
                      struct store_watch **ret_watch, struct err *err);
    int (*watch_fd)(const struct store_watch *watch);
    int (*watch_next)(struct store_watch *watch, unsigned max, struct store_page *ret_changes,
                      struct err *err);
    void (*watch_close)(struct store_watch *watch);
};

void store_close(struct store *store); /* accepts NULL; watches are closed before */

/* -ENOENT when there is none. The record is the caller's: store_record_done(). */
int store_get(struct store *store, const char *key, struct store_record *ret_record,
              struct err *err) MUST_CHECK;

/*
 * Records whose keys begin with prefix and come after `after` (NULL: from the
 * first), as of one revision. limit: 1 to STORE_MAX_PAGE. The page is the
 * caller's: store_page_done().
 */
int store_list(struct store *store, const char *prefix, const char *after, unsigned limit,
               struct store_page *ret_page, struct err *err) MUST_CHECK;

/*
 * ret_revision (may be NULL) is the commit's. One that writes nothing only
 * checks its guards, and so does one whose deletions find no record: the
 * revision stays.
 */
int store_commit(struct store *store, const struct store_commit *commit, uint64_t *ret_revision,
                 struct err *err) MUST_CHECK;

/* One record, unconditionally. */
int store_put(struct store *store, const char *key, const char *value, uint64_t *ret_revision,
              struct err *err) MUST_CHECK;
/* One record if it is still at that revision (0: if there is none); value NULL deletes it. */
int store_swap(struct store *store, const char *key, uint64_t revision, const char *value,
               uint64_t *ret_revision, struct err *err) MUST_CHECK;

/* The newest revision; 0 for a store nothing was ever written to. */
int store_revision(struct store *store, uint64_t *ret_revision, struct err *err) MUST_CHECK;

/*
 * A lease lives for at least ttl_s seconds after it was granted or kept, also
 * when the store was opened anew meanwhile: then its time begins again. When it
 * ends, its records are deleted by a commit as any other. -ENOENT: it has ended.
 */
int store_lease_grant(struct store *store, unsigned ttl_s, uint64_t *ret_lease, struct err *err)
    MUST_CHECK;
int store_lease_keep(struct store *store, uint64_t lease, unsigned *ret_ttl_s, struct err *err)
    MUST_CHECK;
int store_lease_revoke(struct store *store, uint64_t lease, struct err *err) MUST_CHECK;

/*
 * Changes of records whose keys begin with prefix, made by commits after the
 * revision `after`. -ESTALE when changes since then are not kept any more:
 * list, and watch from the page's revision. Only so much history is kept.
 */
int store_watch_open(struct store *store, const char *prefix, uint64_t after,
                     struct store_watch **ret_watch, struct err *err) MUST_CHECK;

/* Readable when store_watch_next() may have something. The watch's own: only poll it. */
int store_watch_fd(struct store *store, const struct store_watch *watch);

/*
 * Up to about max changes (a commit is never torn apart), in order; none when
 * there is nothing new. page->revision is how far the watch has come: a watch
 * opened after it sees what comes next.
 */
int store_watch_next(struct store *store, struct store_watch *watch, unsigned max,
                     struct store_page *ret_changes, struct err *err) MUST_CHECK;
void store_watch_close(struct store *store, struct store_watch *watch); /* accepts NULL */

void store_record_done(struct store_record *record);
void store_page_done(struct store_page *page);

/* Whether text may be a key: "/" and printable ASCII without blanks. */
bool store_key_is_valid(const char *key);

#endif
