#include "storage/pool.h"

#include "block/nbd.h"
#include "storage/pool_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_THRESHOLD_PERCENT 80u

static const struct pool_ops *const kinds[] = {&pool_dir_ops, &pool_nbd_ops};

const char *pool_kind_of(const char *path)
{
    return nbd_is_address(path) ? pool_nbd_ops.kind : pool_dir_ops.kind;
}

/* --- opening --- */

int pool_open(const struct pool_config *config, bool for_change, struct err *err,
              struct pool **ret_pool)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    int rc;

    if (pool == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        if (strcmp(kinds[i]->kind, config->kind) == 0) {
            pool->ops = kinds[i];
        }
    }
    pool->capacity_bytes = config->capacity_bytes;
    pool->threshold_percent =
        config->threshold_percent != 0 ? config->threshold_percent : DEFAULT_THRESHOLD_PERCENT;
    if (pool->ops == NULL) {
        free(pool);
        return err_set(err, -EINVAL, "there are no pools of the kind \"%.40s\"", config->kind);
    }
    rc = pool->ops->open(config, for_change, err, &pool->store);
    if (rc == 0) {
        rc = pool_record_load(pool, err);
    }
    if (rc < 0) {
        pool_close(pool);
        return rc;
    }
    *ret_pool = pool;
    return 0;
}

void pool_close(struct pool *pool)
{
    if (pool == NULL) {
        return;
    }
    json_decref(pool->record);
    if (pool->store != NULL) {
        pool->ops->close(pool->store);
    }
    free(pool);
}

/* --- looking --- */

int pool_space(struct pool *pool, struct pool_space *ret_space, struct err *err)
{
    struct pool_space space = {.threshold_percent = pool->threshold_percent};
    uint64_t total, free_bytes;
    const char *key;
    json_t *value;
    int rc = pool->ops->space(pool->store, &total, &free_bytes);

    if (rc < 0) {
        return err_set_errno(err, rc, "the pool cannot be looked at");
    }
    json_object_foreach(pool->layers, key, value)
    {
        uint64_t bytes = 0;

        if (pool->ops->stat(pool->store, strtoull(key, NULL, 10), &bytes) == 0) {
            space.allocated_bytes += bytes;
        }
    }
    json_object_foreach(pool->volumes, key, value)
    {
        space.provisioned_bytes += pool_record_number(value, "size");
    }
    space.capacity_bytes = pool->capacity_bytes != 0 ? pool->capacity_bytes : total;
    space.free_bytes = space.capacity_bytes > space.allocated_bytes
                           ? space.capacity_bytes - space.allocated_bytes
                           : 0;
    if (space.free_bytes > free_bytes) {
        space.free_bytes = free_bytes;
    }
    /* Where nothing can be added there is nothing to warn of. */
    space.is_over_threshold =
        pool->ops->make != NULL && space.capacity_bytes - space.free_bytes >=
                                       space.capacity_bytes / 100 * pool->threshold_percent;
    *ret_space = space;
    return 0;
}

static void describe_volume(struct pool *pool, const char *name, const json_t *volume,
                            struct pool_volume *ret)
{
    uint64_t head = pool_record_number(volume, "head");

    memset(ret, 0, sizeof(*ret));
    (void)snprintf(ret->name, sizeof(ret->name), "%s", name);
    (void)snprintf(ret->parent, sizeof(ret->parent), "%s", pool_record_text(volume, "parent"));
    ret->size_bytes = pool_record_number(volume, "size");
    ret->format = pool->ops->format;
    ret->is_read_only = json_is_true(json_object_get(volume, "read_only"));
    ret->snapshots = (unsigned)json_object_size(json_object_get(volume, "snapshots"));
    pool->ops->path(pool->store, head, ret->path);
    ret->state = pool->ops->state(pool->store, head, &ret->next);
    if (pool->ops->stat(pool->store, head, &ret->allocated_bytes) < 0) {
        ret->allocated_bytes = 0;
    }
}

int pool_find(struct pool *pool, const char *name, struct pool_volume *ret_volume, struct err *err)
{
    const json_t *volume = pool_record_volume(pool, name, err);

    if (volume == NULL) {
        return -ENOENT;
    }
    describe_volume(pool, name, volume, ret_volume);
    return 0;
}

int pool_list(struct pool *pool, struct pool_volume **ret_list, unsigned *ret_count,
              struct err *err)
{
    struct pool_volume *list = calloc(json_object_size(pool->volumes) + 1, sizeof(*list));
    const char *name;
    json_t *volume;
    unsigned count = 0;

    if (list == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    json_object_foreach(pool->volumes, name, volume)
    {
        describe_volume(pool, name, volume, &list[count++]);
    }
    *ret_list = list;
    *ret_count = count;
    return 0;
}

int pool_list_snapshots(struct pool *pool, const char *name, struct pool_snapshot **ret_list,
                        unsigned *ret_count, struct err *err)
{
    json_t *volume = pool_record_volume(pool, name, err);
    json_t *snapshots = json_object_get(volume, "snapshots");
    struct pool_snapshot *list;
    const char *key;
    json_t *snapshot;
    unsigned count = 0;

    if (volume == NULL) {
        return -ENOENT;
    }
    list = calloc(json_object_size(snapshots) + 1, sizeof(*list));
    if (list == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    json_object_foreach(snapshots, key, snapshot)
    {
        struct pool_snapshot *s = &list[count++];

        (void)snprintf(s->name, sizeof(s->name), "%s", key);
        (void)snprintf(s->parent, sizeof(s->parent), "%s", pool_record_text(snapshot, "parent"));
        s->size_bytes = pool_record_number(snapshot, "size");
        s->created = pool_record_number(snapshot, "created");
    }
    *ret_list = list;
    *ret_count = count;
    return 0;
}
