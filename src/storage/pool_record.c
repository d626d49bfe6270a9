/* The record of a pool: which layers there are, who stands on whom, and who has which by name. */
#include "storage/pool_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAYER (1ull << 53) /* JSON numbers are exact up to here */

uint64_t pool_record_number(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

const char *pool_record_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text != NULL ? text : "";
}

int pool_record_set_number(json_t *object, const char *key, uint64_t value, struct err *err)
{
    return json_object_set_new(object, key, json_integer((json_int_t)value)) == 0
               ? 0
               : err_set(err, -ENOMEM, "out of memory");
}

json_t *pool_record_volume(struct pool *pool, const char *name, struct err *err)
{
    json_t *volume = json_object_get(pool->volumes, name);

    if (volume == NULL) {
        (void)err_set(err, -ENOENT,
                      "there is no volume \"%.60s\"; corbel pool-volume list shows them", name);
    }
    return volume;
}

json_t *pool_record_snapshot(json_t *volume, const char *name, struct err *err)
{
    json_t *snapshot = json_object_get(json_object_get(volume, "snapshots"), name);

    if (snapshot == NULL) {
        (void)err_set(err, -ENOENT, "the volume has no snapshot \"%.60s\"", name);
    }
    return snapshot;
}

static void key_of(uint64_t layer, char *out)
{
    (void)snprintf(out, 24, "%llu", (unsigned long long)layer);
}

static uint64_t parent_of(const struct pool *pool, uint64_t layer)
{
    char key[24];

    key_of(layer, key);
    return pool_record_number(pool->layers, key);
}

static bool knows_layer(const struct pool *pool, uint64_t layer)
{
    char key[24];

    key_of(layer, key);
    return json_object_get(pool->layers, key) != NULL;
}

int pool_record_set_parent(struct pool *pool, uint64_t layer, uint64_t parent)
{
    char key[24];

    key_of(layer, key);
    return json_object_set_new(pool->layers, key, json_integer((json_int_t)parent)) == 0 ? 0
                                                                                         : -ENOMEM;
}

static void forget_layer(struct pool *pool, uint64_t layer)
{
    char key[24];

    key_of(layer, key);
    (void)json_object_del(pool->layers, key);
}

/* The number of layers on this one; the last of them in *ret_child. */
static unsigned count_children(const struct pool *pool, uint64_t layer, uint64_t *ret_child)
{
    const char *key;
    json_t *parent;
    unsigned count = 0;

    json_object_foreach(pool->layers, key, parent)
    {
        if ((uint64_t)json_integer_value(parent) == layer) {
            *ret_child = strtoull(key, NULL, 10);
            count++;
        }
    }
    return count;
}

/* Whether a volume or a snapshot has this layer by name. */
static bool is_named(const struct pool *pool, uint64_t layer)
{
    const char *key;
    json_t *volume;

    json_object_foreach(pool->volumes, key, volume)
    {
        const char *snapshot_key;
        json_t *snapshot;

        if (pool_record_number(volume, "head") == layer ||
            pool_record_number(json_object_get(volume, "pending"), "layer") == layer) {
            return true;
        }
        json_object_foreach(json_object_get(volume, "snapshots"), snapshot_key, snapshot)
        {
            if (pool_record_number(snapshot, "layer") == layer) {
                return true;
            }
        }
    }
    return false;
}

unsigned pool_record_depth(const struct pool *pool, uint64_t layer)
{
    unsigned depth = 0;

    while (layer != 0 && depth <= POOL_MAX_DEPTH) {
        depth++;
        layer = parent_of(pool, layer);
    }
    return depth;
}

/* Every layer that is named stands on layers that are there, in no circle. */
static bool is_sound(const struct pool *pool)
{
    const char *key;
    json_t *parent;

    json_object_foreach(pool->layers, key, parent)
    {
        uint64_t below = (uint64_t)json_integer_value(parent);

        if (!json_is_integer(parent) || (below != 0 && !knows_layer(pool, below)) ||
            pool_record_depth(pool, strtoull(key, NULL, 10)) > POOL_MAX_DEPTH) {
            return false;
        }
    }
    json_object_foreach(pool->volumes, key, parent)
    {
        const char *name;
        json_t *snapshot;
        json_t *snapshots = json_object_get(parent, "snapshots");
        const json_t *pending = json_object_get(parent, "pending");

        if (!knows_layer(pool, pool_record_number(parent, "head")) || !json_is_object(snapshots) ||
            (pending != NULL && !knows_layer(pool, pool_record_number(pending, "layer"))) ||
            strlen(key) >= POOL_NAME_BYTES) {
            return false;
        }
        json_object_foreach(snapshots, name, snapshot)
        {
            if (!knows_layer(pool, pool_record_number(snapshot, "layer")) ||
                strlen(name) >= POOL_NAME_BYTES) {
                return false;
            }
        }
    }
    return true;
}

/* A volume that is not ours: one layer, no snapshots. */
static int add_foreign(void *opaque, const char *name, uint64_t layer, uint64_t size_bytes,
                       bool is_read_only)
{
    struct pool *pool = opaque;
    json_t *volume =
        json_pack("{s:I, s:I, s:s, s:b, s:{}}", "size", (json_int_t)size_bytes, "head",
                  (json_int_t)layer, "parent", "", "read_only", is_read_only, "snapshots");

    return volume != NULL && json_object_set_new(pool->volumes, name, volume) == 0
               ? pool_record_set_parent(pool, layer, 0)
               : -ENOMEM;
}

int pool_record_load(struct pool *pool, struct err *err)
{
    CLEANUP_FREE char *text = NULL;
    int rc = pool->ops->load != NULL ? pool->ops->load(pool->store, &text, err) : 0;

    if (rc < 0) {
        return rc;
    }
    pool->record = text != NULL ? json_loads(text, JSON_REJECT_DUPLICATES, NULL)
                                : json_pack("{s:i, s:I, s:{}, s:{}}", "version", 1, "next",
                                            (json_int_t)1, "layers", "volumes");
    pool->layers = json_object_get(pool->record, "layers");
    pool->volumes = json_object_get(pool->record, "volumes");
    if (pool_record_number(pool->record, "version") != 1 ||
        pool_record_number(pool->record, "next") == 0 ||
        pool_record_number(pool->record, "next") >= MAX_LAYER || !json_is_object(pool->layers) ||
        !json_is_object(pool->volumes) || !is_sound(pool)) {
        return err_set(err, -EBADMSG, "the pool's record is damaged; nothing was changed");
    }
    rc =
        pool->ops->each_volume != NULL ? pool->ops->each_volume(pool->store, add_foreign, pool) : 0;
    return rc < 0 ? err_set(err, rc, "out of memory") : 0;
}

/* What only the owner of volumes can do. */
int pool_check_ours(const struct pool *pool, const char *what, struct err *err)
{
    return pool->ops->each_volume == NULL
               ? 0
               : err_set(err, -ENOTSUP,
                         "%s not possible in a pool of the kind \"%s\": the volumes "
                         "are the server's",
                         what, pool->ops->kind);
}

int pool_record_save(struct pool *pool, struct err *err)
{
    CLEANUP_FREE char *text = json_dumps(pool->record, JSON_INDENT(1) | JSON_SORT_KEYS);

    return text != NULL ? pool->ops->save(pool->store, text, err)
                        : err_set(err, -ENOMEM, "out of memory");
}

static int sweep_layer(void *opaque, uint64_t layer)
{
    struct pool *pool = opaque;
    struct err ignored;
    int rc = knows_layer(pool, layer) ? 0 : pool->ops->remove(pool->store, layer, &ignored);

    (void)rc; /* what cannot be removed now is tried again at the next change */
    return 0;
}

/*
 * One step towards fewer layers: an unnamed one with nothing on it is
 * forgotten, one with a single layer on it is merged with that. False when
 * there was nothing to do.
 */
static bool collapse_one(struct pool *pool)
{
    const char *key;
    json_t *parent;
    struct err ignored;

    json_object_foreach(pool->layers, key, parent)
    {
        uint64_t layer = strtoull(key, NULL, 10);
        uint64_t child = 0;
        uint64_t bytes;
        unsigned children;

        if (is_named(pool, layer)) {
            continue;
        }
        children = count_children(pool, layer, &child);
        if (children == 0) {
            forget_layer(pool, layer);
            return true;
        }
        /* Gone already: a merge that was interrupted after its last step. In use: later. */
        if (children == 1 && (pool->ops->stat(pool->store, layer, &bytes) == -ENOENT ||
                              pool->ops->merge(pool->store, child, layer, &ignored) == 0)) {
            uint64_t below = (uint64_t)json_integer_value(parent);

            forget_layer(pool, layer);
            return pool_record_set_parent(pool, child, below) == 0;
        }
    }
    return false;
}

/* After the record has changed: makes that durable, then tidies up. */
int pool_commit(struct pool *pool, struct err *err)
{
    int rc = pool_record_save(pool, err);

    while (rc == 0 && collapse_one(pool)) {
        rc = pool_record_save(pool, err);
    }
    if (rc == 0) {
        (void)pool->ops->each(pool->store, sweep_layer, pool); /* as in sweep_layer() */
    }
    return rc;
}

/* Makes a layer and writes it into the record, which is not saved yet. */
int pool_add_layer(struct pool *pool, uint64_t backing, uint64_t size_bytes, uint64_t *ret_layer,
                   struct err *err)
{
    uint64_t layer = pool_record_number(pool->record, "next");
    int rc;

    if (pool_record_depth(pool, backing) >= POOL_MAX_DEPTH) {
        return err_set(err, -EMLINK,
                       "%u layers stand on each other already; delete snapshots first",
                       POOL_MAX_DEPTH);
    }
    rc = pool->ops->make(pool->store, layer, backing, size_bytes, err);
    if (rc == 0 &&
        (pool_record_set_parent(pool, layer, backing) < 0 ||
         json_object_set_new(pool->record, "next", json_integer((json_int_t)layer + 1)) != 0)) {
        rc = err_set(err, -ENOMEM, "out of memory");
    }
    if (rc == 0) {
        *ret_layer = layer;
    }
    return rc;
}
