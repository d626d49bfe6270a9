/*
 * The store in one SQLite file, for one host.
 *
 * Write-ahead log, synced at every commit. One process at a time has it open.
 * A file beside it, PATH.seal, knows the newest revision that was ever
 * acknowledged, and that there was a store at all: so a database that was
 * truncated, emptied, removed or put back from an older copy is refused, and
 * never taken for a new one. Each record carries a sum, checked at opening.
 */
#ifndef CORBEL_STORE_STORE_SQLITE_H
#define CORBEL_STORE_STORE_SQLITE_H

#include "store/store.h"

struct store_sqlite_config {
    const char *path;      /* made when neither it nor its seal is there */
    uint64_t keep_changes; /* history for watches, in commits; 0: 100,000 */
};

/*
 * -EBUSY another process has it open; -EBADMSG it is damaged; -EPROTO a newer
 * version wrote it; -ESTALE it is older than its seal; errno of opening a file.
 */
int store_sqlite_open(const struct store_sqlite_config *config, struct err *err,
                      struct store **ret_store) MUST_CHECK;

/*
 * Writes a copy of the open store as it is now to a new file (which replaces
 * one of that name): synced, and checked as one that is opened. Writers do not
 * wait for it. Any thread.
 */
int store_sqlite_backup(struct store *store, const char *path, struct err *err) MUST_CHECK;

/* Whether the file is a whole store; -EBADMSG and the others of opening. */
int store_sqlite_check(const char *path, struct err *err) MUST_CHECK;

/*
 * Puts a copy back in place of the store at path, which nobody has open
 * (-EBUSY). The copy is checked before; what was there stays as
 * PATH.before-restore with its parts.
 */
int store_sqlite_restore(const char *backup, const char *path, struct err *err) MUST_CHECK;

#endif
