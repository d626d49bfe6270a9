/* Volumes of a pool: made, filled, resized, cloned and deleted. */
#include "block/block_int.h"
#include "storage/pool_int.h"

#include <errno.h>
#include <string.h>

static int check_new_volume(struct pool *pool, const char *name, struct err *err)
{
    struct pool_space space = {.free_bytes = 0};
    int rc = pool_check_ours(pool, "making a volume is", err);

    rc = rc < 0 ? rc : pool_space(pool, &space, err);
    if (rc < 0) {
        return rc;
    }
    if (strlen(name) >= POOL_NAME_BYTES) {
        return err_set(err, -EINVAL, "\"%.60s\" is too long a name", name);
    }
    if (json_object_get(pool->volumes, name) != NULL) {
        return err_set(err, -EEXIST, "there is a volume \"%s\" already", name);
    }
    return space.free_bytes > 0 ? 0 : err_set(err, -ENOSPC, "the pool is full");
}

static int add_volume(struct pool *pool, const char *name, uint64_t size, uint64_t head,
                      struct err *err)
{
    json_t *volume = json_pack("{s:I, s:I, s:s, s:{}}", "size", (json_int_t)size, "head",
                               (json_int_t)head, "parent", "", "snapshots");

    return volume != NULL && json_object_set_new(pool->volumes, name, volume) == 0
               ? 0
               : err_set(err, -ENOMEM, "out of memory");
}

int pool_create_volume(struct pool *pool, const char *name, uint64_t size_bytes, struct err *err)
{
    uint64_t layer = 0;
    int rc = check_new_volume(pool, name, err);

    rc = rc < 0 ? rc : pool_add_layer(pool, 0, size_bytes, &layer, err);
    rc = rc < 0 ? rc : add_volume(pool, name, size_bytes, layer, err);
    return rc < 0 ? rc : pool_commit(pool, err);
}

int pool_create_copy(struct pool *pool, const char *name, uint64_t size_bytes,
                     struct block_image *from, struct err *err)
{
    uint64_t layer = 0;
    int rc = check_new_volume(pool, name, err);

    rc = rc < 0 ? rc : pool_add_layer(pool, 0, size_bytes, &layer, err);
    rc = rc < 0 ? rc : pool->ops->fill(pool->store, layer, from, err);
    rc = rc < 0 ? rc : add_volume(pool, name, size_bytes, layer, err);
    if (rc < 0 && layer != 0) {
        struct err ignored;

        (void)!pool->ops->remove(pool->store, layer, &ignored); /* if not now, at the next change */
    }
    return rc < 0 ? rc : pool_commit(pool, err);
}

/* A volume of ours that no machine has open; for what the text says. */
int pool_find_idle(struct pool *pool, const char *name, const char *what, json_t **ret_volume,
                   struct err *err)
{
    json_t *volume = pool_record_volume(pool, name, err);
    int rc = volume == NULL ? -ENOENT : pool_check_ours(pool, what, err);

    if (rc == 0) {
        rc = pool->ops->check_idle(pool->store, pool_record_number(volume, "head"), err);
    }

    if (rc == 0) {
        *ret_volume = volume;
    }
    return rc;
}

/* And whose contents are those of a disk. */
int pool_find_current(struct pool *pool, const char *name, const char *what, json_t **ret_volume,
                      struct err *err)
{
    struct successor next;
    json_t *volume = NULL;
    int rc = pool_find_idle(pool, name, what, &volume, err);

    if (rc < 0) {
        return rc;
    }
    switch (pool->ops->state(pool->store, pool_record_number(volume, "head"), &next)) {
    case SUCCESSOR_UNFINISHED:
        return err_set(err, -ESTALE,
                       "the volume \"%.60s\" holds a part of a copy that was interrupted; mirror "
                       "into it again, or delete it",
                       name);
    case SUCCESSOR_CONTINUED:
        return err_set(err, -ESTALE,
                       "the volume \"%.60s\" is stale: its disk went on in '%s'; use that, or "
                       "remove it to go back",
                       name, next.path);
    case SUCCESSOR_CURRENT:
        break;
    }
    *ret_volume = volume;
    return 0;
}

int pool_resize_volume(struct pool *pool, const char *name, uint64_t size_bytes, bool may_shrink,
                       struct err *err)
{
    json_t *volume = NULL;
    int rc = pool_find_current(pool, name, "resizing a volume is", &volume, err);

    if (rc == 0) {
        rc = pool->ops->resize(pool->store, pool_record_number(volume, "head"), size_bytes,
                               may_shrink, err);
    }
    rc = rc < 0 ? rc : pool_record_set_number(volume, "size", size_bytes, err);
    return rc < 0 ? rc : pool_commit(pool, err);
}

int pool_note_size(struct pool *pool, const char *name, uint64_t size_bytes, struct err *err)
{
    json_t *volume = pool_record_volume(pool, name, err);
    int rc = volume == NULL ? -ENOENT : pool_record_set_number(volume, "size", size_bytes, err);

    return rc < 0 ? rc : pool_commit(pool, err);
}

/* A new head on the volume's own, which nobody writes from then on. */
int pool_put_head(struct pool *pool, json_t *volume, struct err *err)
{
    uint64_t layer = 0;
    int rc = pool_add_layer(pool, pool_record_number(volume, "head"),
                            pool_record_number(volume, "size"), &layer, err);

    return rc < 0 ? rc : pool_record_set_number(volume, "head", layer, err);
}

int pool_clone_volume(struct pool *pool, const char *name, const char *snapshot,
                      const char *new_name, struct err *err)
{
    json_t *volume = NULL;
    const json_t *from;
    uint64_t base, size;
    uint64_t layer = 0;
    int rc = check_new_volume(pool, new_name, err);

    if (rc < 0) {
        return rc;
    }
    if (snapshot != NULL) {
        volume = pool_record_volume(pool, name, err);
        from = volume != NULL ? pool_record_snapshot(volume, snapshot, err) : NULL;
        if (from == NULL) {
            return -ENOENT;
        }
        base = pool_record_number(from, "layer");
        size = pool_record_number(from, "size");
    } else {
        rc = pool_find_current(pool, name, "cloning a volume is", &volume, err);
        if (rc < 0) {
            return rc;
        }
        base = pool_record_number(volume, "head");
        size = pool_record_number(volume, "size");
        rc = pool_put_head(pool, volume, err);
    }
    rc = rc < 0 ? rc : pool_add_layer(pool, base, size, &layer, err);
    rc = rc < 0 ? rc : add_volume(pool, new_name, size, layer, err);
    return rc < 0 ? rc : pool_commit(pool, err);
}

/* In a directory: a layer beside the head, which takes its place. */
static int replace_head(struct pool *pool, const char *name, struct block_image *from,
                        struct err *err)
{
    json_t *volume = NULL;
    uint64_t layer = 0;
    int rc = pool_find_idle(pool, name, "", &volume, err);

    rc = rc < 0 ? rc : pool_add_layer(pool, 0, pool_record_number(volume, "size"), &layer, err);
    rc = rc < 0 ? rc : pool->ops->fill(pool->store, layer, from, err);
    rc = rc < 0 ? rc : pool_record_set_number(volume, "head", layer, err);
    return rc < 0 ? rc : pool_commit(pool, err);
}

int pool_fill_volume(struct pool *pool, const char *name, struct block_image *from, struct err *err)
{
    const json_t *volume = pool_record_volume(pool, name, err);

    if (volume == NULL) {
        return -ENOENT;
    }
    if (from->size_bytes > pool_record_number(volume, "size")) {
        return err_set(err, -EFBIG, "the disk has %llu bytes, and the volume \"%.60s\" only %llu",
                       (unsigned long long)from->size_bytes, name,
                       (unsigned long long)pool_record_number(volume, "size"));
    }
    return pool->ops->make != NULL
               ? replace_head(pool, name, from, err)
               : pool->ops->fill(pool->store, pool_record_number(volume, "head"), from, err);
}

int pool_delete_volume(struct pool *pool, const char *name, struct err *err)
{
    json_t *volume = NULL;
    int rc = pool_find_idle(pool, name, "deleting a volume is", &volume, err);

    if (rc < 0) {
        return rc;
    }
    (void)json_object_del(pool->volumes, name); /* it was just found */
    return pool_commit(pool, err);
}
