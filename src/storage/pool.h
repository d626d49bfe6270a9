/*
 * Pools of volumes.
 *
 * A volume is a disk with a name, thin, with a tree of snapshots. It consists
 * of layers, each a qcow2 image that stands on another; only the top one, the
 * head, is ever written. A snapshot names a layer that is no longer written; a
 * clone is a head of its own on a layer that is shared. What the layers are
 * made of is the pool's kind's (struct pool_ops); which layers there are, and
 * who stands on whom, is kept in one record per pool that is replaced whole.
 *
 * A pool of the kind "nbd" is what an NBD server exports: its volumes are the
 * server's, without layers, snapshots or a record. What is not to be had there
 * is -ENOTSUP, by name.
 *
 * Order of every change: layers are made, the record is replaced, layers that
 * the record no longer knows are removed; what a crash leaves over is removed
 * by the next change. One process at a time changes a pool (a lock in it).
 * Synchronous; the caller's thread.
 */
#ifndef CORBEL_STORAGE_POOL_H
#define CORBEL_STORAGE_POOL_H

#include "base/error.h"
#include "block/successor.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#define POOL_NAME_BYTES 48u
#define POOL_MAX_DEPTH 60u /* of a chain of layers */

struct block_image;
struct pool;

/* What kind of pool such a path is for. */
const char *pool_kind_of(const char *path);

struct pool_config {
    const char *name;
    const char *kind;           /* "dir" or "nbd" */
    const char *path;           /* a directory, made when absent; a server's address */
    uint64_t capacity_bytes;    /* 0: what the file system has */
    unsigned threshold_percent; /* warn from here on; 0: 80 */
};

struct pool_space {
    uint64_t capacity_bytes;
    uint64_t allocated_bytes;   /* by layers, on the host */
    uint64_t provisioned_bytes; /* what the volumes promise */
    uint64_t free_bytes;        /* what may still be allocated */
    unsigned threshold_percent;
    bool is_over_threshold;
};

struct pool_volume {
    char name[POOL_NAME_BYTES];
    uint64_t size_bytes;
    uint64_t allocated_bytes;     /* of its own head */
    char path[PATH_MAX];          /* of the head, for those who open it */
    enum block_format format;     /* what is there */
    bool is_read_only;            /* the server of an nbd pool says so */
    char parent[POOL_NAME_BYTES]; /* the snapshot it was made from or reverted to last; may be "" */
    unsigned snapshots;
    /* Unfinished while a machine's disk is mirrored into it, and after that was interrupted;
     * continued after a machine's disk went on from it to `next`. */
    enum successor_state state;
    struct successor next;
};

struct pool_snapshot {
    char name[POOL_NAME_BYTES];
    char parent[POOL_NAME_BYTES]; /* another snapshot; "" for a root of the tree */
    uint64_t size_bytes;
    uint64_t created; /* seconds since 1970 */
};

/* Opens a pool for looking (shared) or changing; -EBUSY never: it waits for the lock. */
int pool_open(const struct pool_config *config, bool for_change, struct err *err,
              struct pool **ret_pool) MUST_CHECK;
void pool_close(struct pool *pool); /* accepts NULL */

int pool_space(struct pool *pool, struct pool_space *ret_space, struct err *err) MUST_CHECK;

/* *ret_list is malloc'd, the caller's. */
int pool_list(struct pool *pool, struct pool_volume **ret_list, unsigned *ret_count,
              struct err *err) MUST_CHECK;
/* -ENOENT, naming it, when there is none. */
int pool_find(struct pool *pool, const char *name, struct pool_volume *ret_volume, struct err *err)
    MUST_CHECK;
int pool_list_snapshots(struct pool *pool, const char *name, struct pool_snapshot **ret_list,
                        unsigned *ret_count, struct err *err) MUST_CHECK;

/* -EEXIST for a name that is taken, -ENOSPC in a pool that is full. */
int pool_create_volume(struct pool *pool, const char *name, uint64_t size_bytes, struct err *err)
    MUST_CHECK;

/* As it, and the volume begins as a copy of the disk, which it may be longer than. */
int pool_create_copy(struct pool *pool, const char *name, uint64_t size_bytes,
                     struct block_image *from, struct err *err) MUST_CHECK;

/*
 * Replaces what a volume holds by a copy of the disk, which is not longer. A
 * volume in a directory changes at once, or not at all; one of a server is
 * overwritten, and what an interruption leaves of it is neither.
 */
int pool_fill_volume(struct pool *pool, const char *name, struct block_image *from, struct err *err)
    MUST_CHECK;

/* The rest is -EBUSY while a machine has the volume open. What would build on its contents is
 * -ESTALE when these are unfinished or stale; it can be deleted, or reverted to a snapshot. */
int pool_resize_volume(struct pool *pool, const char *name, uint64_t size_bytes, bool may_shrink,
                       struct err *err) MUST_CHECK;
/* The machine that has the volume open has made it that long. */
int pool_note_size(struct pool *pool, const char *name, uint64_t size_bytes, struct err *err)
    MUST_CHECK;
/* snapshot NULL: as the volume is now. */
int pool_clone_volume(struct pool *pool, const char *name, const char *snapshot,
                      const char *new_name, struct err *err) MUST_CHECK;
int pool_delete_volume(struct pool *pool, const char *name, struct err *err) MUST_CHECK;

int pool_create_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
    MUST_CHECK;
/*
 * The same while a machine has the volume open, in three parts. The first
 * notes a new head and tells its file, which the machine then makes over the
 * one that it has (docs/control.md, disk-snapshot). The last notes that it went
 * on there, or that it did not. The first may be repeated, and then tells the
 * same; -EEXIST when the snapshot is there. In between, pool_settle_snapshot() finds out for a volume that no
 * machine has any more, and makes the snapshot if it was not made.
 */
int pool_begin_snapshot(struct pool *pool, const char *name, const char *snapshot,
                        char ret_file[PATH_MAX], struct err *err) MUST_CHECK;
int pool_end_snapshot(struct pool *pool, const char *name, bool was_made, struct err *err)
    MUST_CHECK;
int pool_settle_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
    MUST_CHECK;
/* The volume becomes what it was then; what it was until now is lost. */
int pool_revert(struct pool *pool, const char *name, const char *snapshot, struct err *err)
    MUST_CHECK;
/* What only the snapshot held is freed; its layer is merged with the one above where that is the
 * only one, and not in use (then later). Snapshots taken after it keep their contents. */
int pool_delete_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
    MUST_CHECK;

#endif
