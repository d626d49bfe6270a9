/* Between the files of a pool (storage/pool.h): its record, and what all changes are made of. */
#ifndef CORBEL_STORAGE_POOL_INT_H
#define CORBEL_STORAGE_POOL_INT_H

#include "storage/pool.h"
#include "storage/pool_ops.h"

#include <jansson.h>

struct pool {
    const struct pool_ops *ops;
    struct pool_store *store;
    uint64_t capacity_bytes;
    unsigned threshold_percent;
    json_t *record;  /* all below are parts of it */
    json_t *layers;  /* {"LAYER": the layer it stands on, 0 for none} */
    json_t *volumes; /* {NAME: {size, head, parent, snapshots: {NAME: {...}}}} */
};

/* ---- the record (pool_record.c) ---- */

/* Members of its objects; 0 and "" where there is none. */
uint64_t pool_record_number(const json_t *object, const char *key);
const char *pool_record_text(const json_t *object, const char *key);
int pool_record_set_number(json_t *object, const char *key, uint64_t value, struct err *err)
    MUST_CHECK;

/* NULL, and an error that names it, when there is none. The record's. */
json_t *pool_record_volume(struct pool *pool, const char *name, struct err *err);
json_t *pool_record_snapshot(json_t *volume, const char *name, struct err *err);

/* -ENOMEM. */
int pool_record_set_parent(struct pool *pool, uint64_t layer, uint64_t parent) MUST_CHECK;
/* The layers from this one down. */
unsigned pool_record_depth(const struct pool *pool, uint64_t layer);

/* -EBADMSG for one that is damaged. */
int pool_record_load(struct pool *pool, struct err *err) MUST_CHECK;
int pool_record_save(struct pool *pool, struct err *err) MUST_CHECK;

/* -ENOTSUP for what only the owner of volumes can do, where that is somebody else. */
int pool_check_ours(const struct pool *pool, const char *what, struct err *err) MUST_CHECK;
/* Makes a layer and writes it into the record, which is not saved yet. */
int pool_add_layer(struct pool *pool, uint64_t backing, uint64_t size_bytes, uint64_t *ret_layer,
                   struct err *err) MUST_CHECK;
/* After the record has changed: makes that durable, then tidies up. */
int pool_commit(struct pool *pool, struct err *err) MUST_CHECK;

/* ---- volumes (pool_volume.c) ---- */

/* A volume of ours that no machine has open; for what the text says. */
int pool_find_idle(struct pool *pool, const char *name, const char *what, json_t **ret_volume,
                   struct err *err) MUST_CHECK;
/* And whose contents are those of a disk. */
int pool_find_current(struct pool *pool, const char *name, const char *what, json_t **ret_volume,
                      struct err *err) MUST_CHECK;
/* A new head on the volume's own, which nobody writes from then on; not saved yet. */
int pool_put_head(struct pool *pool, json_t *volume, struct err *err) MUST_CHECK;

#endif
