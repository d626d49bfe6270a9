/*
 * What a kind of pool provides.
 *
 * A kind that makes layers has all of the table but each_volume: a layer is an
 * image with a number, immutable once another stands on it, and the record
 * tells which volume has which. A kind whose volumes are somebody else's has
 * each_volume, and lacks what would make, change or remove them (load, save,
 * make, remove, resize, merge, each): a layer's number is a volume's then, and
 * ends with the store.
 */
#ifndef CORBEL_STORAGE_POOL_OPS_H
#define CORBEL_STORAGE_POOL_OPS_H

#include "storage/pool.h"

#include <stddef.h>

struct block_image;
struct pool_store;

struct pool_ops {
    const char *kind;
    enum block_format format; /* of layers */
    int (*open)(const struct pool_config *config, bool for_change, struct err *err,
                struct pool_store **ret_store);
    void (*close)(struct pool_store *store);

    /* Tells each volume that is there, with its number from 1 on. */
    int (*each_volume)(struct pool_store *store,
                       int (*fn)(void *opaque, const char *name, uint64_t layer,
                                 uint64_t size_bytes, bool is_read_only),
                       void *opaque);

    /* The record, opaque here: malloc'd text, *ret_text NULL when the pool is new. */
    int (*load)(struct pool_store *store, char **ret_text, struct err *err);
    /* Replaces it: durable, and whole or not at all. */
    int (*save)(struct pool_store *store, const char *text, struct err *err);

    /* backing 0: an empty disk of that length; otherwise of the backing's length. */
    int (*make)(struct pool_store *store, uint64_t layer, uint64_t backing, uint64_t size_bytes,
                struct err *err);
    /* Copies a disk into a new layer, which is as long or longer; or over a volume of each_volume. */
    int (*fill)(struct pool_store *store, uint64_t layer, struct block_image *from,
                struct err *err);
    int (*remove)(struct pool_store *store, uint64_t layer, struct err *err);
    int (*resize)(struct pool_store *store, uint64_t layer, uint64_t size_bytes, bool may_shrink,
                  struct err *err);
    /* Copies what `layer` holds into `into`, on which it stands, and puts that in its place. May be
     * repeated after it was interrupted; until it is done both read as before. */
    int (*merge)(struct pool_store *store, uint64_t layer, uint64_t into, struct err *err);
    /* -EBUSY while someone has it open for writing; whatever its marks say. */
    int (*check_idle)(struct pool_store *store, uint64_t layer, struct err *err);
    /* The marks of a layer that a machine had as its disk. */
    enum successor_state (*state)(struct pool_store *store, uint64_t layer,
                                  struct successor *ret_next);

    int (*stat)(struct pool_store *store, uint64_t layer, uint64_t *ret_allocated_bytes);
    /* Calls fn for every layer that is there, known to the record or not. */
    int (*each)(struct pool_store *store, int (*fn)(void *opaque, uint64_t layer), void *opaque);
    int (*space)(struct pool_store *store, uint64_t *ret_total_bytes, uint64_t *ret_free_bytes);
    void (*path)(struct pool_store *store, uint64_t layer, char *out); /* PATH_MAX */
};

extern const struct pool_ops pool_dir_ops;
extern const struct pool_ops pool_nbd_ops;

#endif
