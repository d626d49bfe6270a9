/* Snapshots of a pool's volumes: taken of those that rest and of those that run, gone back to. */
#include "storage/pool_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* The layer of the head becomes a snapshot; the volume's next head is not noted yet. */
static int name_snapshot(json_t *volume, const char *snapshot, struct err *err)
{
    json_t *snapshots = json_object_get(volume, "snapshots");
    json_t *entry;

    if (strlen(snapshot) >= POOL_NAME_BYTES || json_object_get(snapshots, snapshot) != NULL) {
        return err_set(err, -EEXIST,
                       "there is a snapshot \"%.60s\" already, or the name is too long", snapshot);
    }
    entry = json_pack(
        "{s:I, s:s, s:I, s:I}", "layer", (json_int_t)pool_record_number(volume, "head"), "parent",
        pool_record_text(volume, "parent"), "size", (json_int_t)pool_record_number(volume, "size"),
        "created", (json_int_t)time(NULL));
    return entry != NULL && json_object_set_new(snapshots, snapshot, entry) == 0 &&
                   json_object_set_new(volume, "parent", json_string(snapshot)) == 0
               ? 0
               : err_set(err, -ENOMEM, "out of memory");
}

int pool_create_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
{
    json_t *volume = NULL;
    int rc = pool_find_current(pool, name, "snapshots are", &volume, err);

    rc = rc < 0 ? rc : name_snapshot(volume, snapshot, err);
    rc = rc < 0 ? rc : pool_put_head(pool, volume, err);
    return rc < 0 ? rc : pool_commit(pool, err);
}

int pool_begin_snapshot(struct pool *pool, const char *name, const char *snapshot,
                        char ret_file[PATH_MAX], struct err *err)
{
    json_t *volume = pool_record_volume(pool, name, err);
    json_t *pending = json_object_get(volume, "pending");
    uint64_t layer = pool_record_number(pool->record, "next");
    int rc = volume == NULL ? -ENOENT : pool_check_ours(pool, "snapshots are", err);

    if (rc < 0) {
        return rc;
    }
    if (pending != NULL) {
        pool->ops->path(pool->store, pool_record_number(pending, "layer"), ret_file);
        return strcmp(pool_record_text(pending, "snapshot"), snapshot) == 0
                   ? 0
                   : err_set(err, -EBUSY, "another snapshot of the volume \"%.60s\" is under way",
                             name);
    }
    if (json_object_get(json_object_get(volume, "snapshots"), snapshot) != NULL) {
        return err_set(err, -EEXIST, "there is a snapshot \"%.60s\" already", snapshot);
    }
    if (pool_record_depth(pool, pool_record_number(volume, "head")) >= POOL_MAX_DEPTH) {
        return err_set(err, -EMLINK,
                       "%u layers stand on each other already; delete snapshots first",
                       POOL_MAX_DEPTH);
    }
    pending = json_pack("{s:I, s:s}", "layer", (json_int_t)layer, "snapshot", snapshot);
    if (pending == NULL || json_object_set_new(volume, "pending", pending) != 0 ||
        pool_record_set_parent(pool, layer, pool_record_number(volume, "head")) < 0 ||
        json_object_set_new(pool->record, "next", json_integer((json_int_t)layer + 1)) != 0) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    pool->ops->path(pool->store, layer, ret_file);
    return pool_record_save(pool, err);
}

/* The pending layer is the head; the marks say no more than the record then. */
static int adopt_pending(struct pool *pool, json_t *volume, struct err *err)
{
    json_t *pending = json_incref(json_object_get(volume, "pending"));
    char before[PATH_MAX];
    int rc = name_snapshot(volume, pool_record_text(pending, "snapshot"), err);

    pool->ops->path(pool->store, pool_record_number(volume, "head"), before);
    rc = rc < 0 ? rc
                : pool_record_set_number(volume, "head", pool_record_number(pending, "layer"), err);
    json_decref(pending);
    if (rc < 0) {
        return rc;
    }
    (void)json_object_del(volume, "pending"); /* it was just found */
    rc = pool_record_save(pool, err);
    if (rc == 0) {
        successor_forget(before);
    }
    return rc < 0 ? rc : pool_commit(pool, err);
}

static int drop_pending(struct pool *pool, json_t *volume, struct err *err)
{
    (void)json_object_del(volume, "pending"); /* its layer has no name any more, and goes */
    return pool_commit(pool, err);
}

int pool_end_snapshot(struct pool *pool, const char *name, bool was_made, struct err *err)
{
    json_t *volume = pool_record_volume(pool, name, err);

    if (volume == NULL) {
        return -ENOENT;
    }
    if (json_object_get(volume, "pending") == NULL) {
        return 0;
    }
    return was_made ? adopt_pending(pool, volume, err) : drop_pending(pool, volume, err);
}

int pool_settle_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
{
    json_t *volume = pool_record_volume(pool, name, err);
    json_t *pending = json_object_get(volume, "pending");
    uint64_t layer = pool_record_number(pending, "layer"), bytes = 0;
    struct successor next;
    int rc = 0;

    if (volume == NULL) {
        return -ENOENT;
    }
    if (json_object_get(json_object_get(volume, "snapshots"), snapshot) != NULL) {
        return 0;
    }
    if (pending != NULL && pool->ops->stat(pool->store, layer, &bytes) == 0 &&
        pool->ops->state(pool->store, layer, &next) != SUCCESSOR_UNFINISHED) {
        rc = pool->ops->check_idle(pool->store, layer, err);
        if (rc == 0 || rc == -EBUSY) {
            /* Whole, and empty if it was never used. */
            return rc < 0 ? rc : adopt_pending(pool, volume, err);
        }
        rc = 0;
    }
    if (pending != NULL) {
        rc = drop_pending(pool, volume, err);
    }
    return rc < 0 ? rc : pool_create_snapshot(pool, name, snapshot, err);
}

int pool_revert(struct pool *pool, const char *name, const char *snapshot, struct err *err)
{
    json_t *volume = NULL;
    const json_t *entry;
    uint64_t layer = 0;
    int rc = pool_find_idle(pool, name, "snapshots are", &volume, err);

    if (rc < 0) {
        return rc;
    }
    entry = pool_record_snapshot(volume, snapshot, err);
    if (entry == NULL) {
        return -ENOENT;
    }
    rc = pool_add_layer(pool, pool_record_number(entry, "layer"), pool_record_number(entry, "size"),
                        &layer, err);
    rc = rc < 0 ? rc : pool_record_set_number(volume, "head", layer, err);
    rc = rc < 0 ? rc
                : pool_record_set_number(volume, "size", pool_record_number(entry, "size"), err);
    if (rc == 0 && json_object_set_new(volume, "parent", json_string(snapshot)) != 0) {
        rc = err_set(err, -ENOMEM, "out of memory");
    }
    return rc < 0 ? rc : pool_commit(pool, err);
}

int pool_delete_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
{
    json_t *volume = NULL;
    json_t *snapshots;
    json_t *entry;
    json_t *other;
    const char *key;
    char parent[POOL_NAME_BYTES];
    int rc;

    /* It may be in use: nothing that is open is changed. */
    volume = pool_record_volume(pool, name, err);
    rc = volume == NULL ? -ENOENT : pool_check_ours(pool, "snapshots are", err);
    if (rc < 0) {
        return rc;
    }
    snapshots = json_object_get(volume, "snapshots");
    entry = pool_record_snapshot(volume, snapshot, err);
    if (entry == NULL) {
        return -ENOENT;
    }
    (void)snprintf(parent, sizeof(parent), "%s", pool_record_text(entry, "parent"));
    /* Those that came after it come after the one before it. */
    json_object_foreach(snapshots, key, other)
    {
        if (strcmp(pool_record_text(other, "parent"), snapshot) == 0 &&
            json_object_set_new(other, "parent", json_string(parent)) != 0) {
            return err_set(err, -ENOMEM, "out of memory");
        }
    }
    if (strcmp(pool_record_text(volume, "parent"), snapshot) == 0 &&
        json_object_set_new(volume, "parent", json_string(parent)) != 0) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    (void)json_object_del(snapshots, snapshot); /* it was just found */
    return pool_commit(pool, err);
}
