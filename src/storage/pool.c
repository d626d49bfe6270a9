#include "storage/pool.h"

#include "block/block_int.h"
#include "block/nbd.h"
#include "storage/pool_ops.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_THRESHOLD_PERCENT 80u
#define MAX_LAYER (1ull << 53) /* JSON numbers are exact up to here */

static const struct pool_ops *const kinds[] = {&pool_dir_ops, &pool_nbd_ops};

const char *pool_kind_of(const char *path)
{
    return nbd_is_address(path) ? pool_nbd_ops.kind : pool_dir_ops.kind;
}

struct pool {
    const struct pool_ops *ops;
    struct pool_store *store;
    uint64_t capacity_bytes;
    unsigned threshold_percent;
    json_t *record;  /* all below are parts of it */
    json_t *layers;  /* {"LAYER": the layer it stands on, 0 for none} */
    json_t *volumes; /* {NAME: {size, head, parent, snapshots: {NAME: {...}}}} */
};

/* --- the record --- */

static uint64_t get_number(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static const char *get_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text != NULL ? text : "";
}

static void key_of(uint64_t layer, char *out)
{
    (void)snprintf(out, 24, "%llu", (unsigned long long)layer);
}

static uint64_t parent_of(const struct pool *pool, uint64_t layer)
{
    char key[24];

    key_of(layer, key);
    return get_number(pool->layers, key);
}

static bool knows_layer(const struct pool *pool, uint64_t layer)
{
    char key[24];

    key_of(layer, key);
    return json_object_get(pool->layers, key) != NULL;
}

static int set_parent(struct pool *pool, uint64_t layer, uint64_t parent)
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

        if (get_number(volume, "head") == layer ||
            get_number(json_object_get(volume, "pending"), "layer") == layer) {
            return true;
        }
        json_object_foreach(json_object_get(volume, "snapshots"), snapshot_key, snapshot)
        {
            if (get_number(snapshot, "layer") == layer) {
                return true;
            }
        }
    }
    return false;
}

static unsigned depth_of(const struct pool *pool, uint64_t layer)
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
            depth_of(pool, strtoull(key, NULL, 10)) > POOL_MAX_DEPTH) {
            return false;
        }
    }
    json_object_foreach(pool->volumes, key, parent)
    {
        const char *name;
        json_t *snapshot;
        json_t *snapshots = json_object_get(parent, "snapshots");
        const json_t *pending = json_object_get(parent, "pending");

        if (!knows_layer(pool, get_number(parent, "head")) || !json_is_object(snapshots) ||
            (pending != NULL && !knows_layer(pool, get_number(pending, "layer"))) ||
            strlen(key) >= POOL_NAME_BYTES) {
            return false;
        }
        json_object_foreach(snapshots, name, snapshot)
        {
            if (!knows_layer(pool, get_number(snapshot, "layer")) ||
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
               ? set_parent(pool, layer, 0)
               : -ENOMEM;
}

static int load_record(struct pool *pool, struct err *err)
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
    if (get_number(pool->record, "version") != 1 || get_number(pool->record, "next") == 0 ||
        get_number(pool->record, "next") >= MAX_LAYER || !json_is_object(pool->layers) ||
        !json_is_object(pool->volumes) || !is_sound(pool)) {
        return err_set(err, -EBADMSG, "the pool's record is damaged; nothing was changed");
    }
    rc =
        pool->ops->each_volume != NULL ? pool->ops->each_volume(pool->store, add_foreign, pool) : 0;
    return rc < 0 ? err_set(err, rc, "out of memory") : 0;
}

/* What only the owner of volumes can do. */
static int check_ours(const struct pool *pool, const char *what, struct err *err)
{
    return pool->ops->each_volume == NULL
               ? 0
               : err_set(err, -ENOTSUP,
                         "%s not possible in a pool of the kind \"%s\": the volumes "
                         "are the server's",
                         what, pool->ops->kind);
}

static int save_record(struct pool *pool, struct err *err)
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
            return set_parent(pool, child, below) == 0;
        }
    }
    return false;
}

/* After the record has changed: makes that durable, then tidies up. */
static int commit(struct pool *pool, struct err *err)
{
    int rc = save_record(pool, err);

    while (rc == 0 && collapse_one(pool)) {
        rc = save_record(pool, err);
    }
    if (rc == 0) {
        (void)pool->ops->each(pool->store, sweep_layer, pool); /* as in sweep_layer() */
    }
    return rc;
}

/* Makes a layer and writes it into the record, which is not saved yet. */
static int add_layer(struct pool *pool, uint64_t backing, uint64_t size_bytes, uint64_t *ret_layer,
                     struct err *err)
{
    uint64_t layer = get_number(pool->record, "next");
    int rc;

    if (depth_of(pool, backing) >= POOL_MAX_DEPTH) {
        return err_set(err, -EMLINK,
                       "%u layers stand on each other already; delete snapshots first",
                       POOL_MAX_DEPTH);
    }
    rc = pool->ops->make(pool->store, layer, backing, size_bytes, err);
    if (rc == 0 &&
        (set_parent(pool, layer, backing) < 0 ||
         json_object_set_new(pool->record, "next", json_integer((json_int_t)layer + 1)) != 0)) {
        rc = err_set(err, -ENOMEM, "out of memory");
    }
    if (rc == 0) {
        *ret_layer = layer;
    }
    return rc;
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
        rc = load_record(pool, err);
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
        space.provisioned_bytes += get_number(value, "size");
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

static json_t *find_volume(struct pool *pool, const char *name, struct err *err)
{
    json_t *volume = json_object_get(pool->volumes, name);

    if (volume == NULL) {
        (void)err_set(err, -ENOENT,
                      "there is no volume \"%.60s\"; corbel pool-volume list shows them", name);
    }
    return volume;
}

static json_t *find_snapshot(json_t *volume, const char *name, struct err *err)
{
    json_t *snapshot = json_object_get(json_object_get(volume, "snapshots"), name);

    if (snapshot == NULL) {
        (void)err_set(err, -ENOENT, "the volume has no snapshot \"%.60s\"", name);
    }
    return snapshot;
}

static void describe_volume(struct pool *pool, const char *name, const json_t *volume,
                            struct pool_volume *ret)
{
    uint64_t head = get_number(volume, "head");

    memset(ret, 0, sizeof(*ret));
    (void)snprintf(ret->name, sizeof(ret->name), "%s", name);
    (void)snprintf(ret->parent, sizeof(ret->parent), "%s", get_text(volume, "parent"));
    ret->size_bytes = get_number(volume, "size");
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
    const json_t *volume = find_volume(pool, name, err);

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
    json_t *volume = find_volume(pool, name, err);
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
        (void)snprintf(s->parent, sizeof(s->parent), "%s", get_text(snapshot, "parent"));
        s->size_bytes = get_number(snapshot, "size");
        s->created = get_number(snapshot, "created");
    }
    *ret_list = list;
    *ret_count = count;
    return 0;
}

/* --- changing --- */

static int check_new_volume(struct pool *pool, const char *name, struct err *err)
{
    struct pool_space space = {.free_bytes = 0};
    int rc = check_ours(pool, "making a volume is", err);

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

static int set_number(json_t *object, const char *key, uint64_t value, struct err *err)
{
    return json_object_set_new(object, key, json_integer((json_int_t)value)) == 0
               ? 0
               : err_set(err, -ENOMEM, "out of memory");
}

int pool_create_volume(struct pool *pool, const char *name, uint64_t size_bytes, struct err *err)
{
    uint64_t layer = 0;
    int rc = check_new_volume(pool, name, err);

    rc = rc < 0 ? rc : add_layer(pool, 0, size_bytes, &layer, err);
    rc = rc < 0 ? rc : add_volume(pool, name, size_bytes, layer, err);
    return rc < 0 ? rc : commit(pool, err);
}

int pool_create_copy(struct pool *pool, const char *name, uint64_t size_bytes,
                     struct block_image *from, struct err *err)
{
    uint64_t layer = 0;
    int rc = check_new_volume(pool, name, err);

    rc = rc < 0 ? rc : add_layer(pool, 0, size_bytes, &layer, err);
    rc = rc < 0 ? rc : pool->ops->fill(pool->store, layer, from, err);
    rc = rc < 0 ? rc : add_volume(pool, name, size_bytes, layer, err);
    if (rc < 0 && layer != 0) {
        struct err ignored;

        (void)!pool->ops->remove(pool->store, layer, &ignored); /* if not now, at the next change */
    }
    return rc < 0 ? rc : commit(pool, err);
}

/* A volume of ours that no machine has open; for what the text says. */
static int find_idle(struct pool *pool, const char *name, const char *what, json_t **ret_volume,
                     struct err *err)
{
    json_t *volume = find_volume(pool, name, err);
    int rc = volume == NULL ? -ENOENT : check_ours(pool, what, err);

    if (rc == 0) {
        rc = pool->ops->check_idle(pool->store, get_number(volume, "head"), err);
    }

    if (rc == 0) {
        *ret_volume = volume;
    }
    return rc;
}

/* And whose contents are those of a disk. */
static int find_current(struct pool *pool, const char *name, const char *what, json_t **ret_volume,
                        struct err *err)
{
    struct successor next;
    json_t *volume = NULL;
    int rc = find_idle(pool, name, what, &volume, err);

    if (rc < 0) {
        return rc;
    }
    switch (pool->ops->state(pool->store, get_number(volume, "head"), &next)) {
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
    int rc = find_current(pool, name, "resizing a volume is", &volume, err);

    if (rc == 0) {
        rc =
            pool->ops->resize(pool->store, get_number(volume, "head"), size_bytes, may_shrink, err);
    }
    rc = rc < 0 ? rc : set_number(volume, "size", size_bytes, err);
    return rc < 0 ? rc : commit(pool, err);
}

int pool_note_size(struct pool *pool, const char *name, uint64_t size_bytes, struct err *err)
{
    json_t *volume = find_volume(pool, name, err);
    int rc = volume == NULL ? -ENOENT : set_number(volume, "size", size_bytes, err);

    return rc < 0 ? rc : commit(pool, err);
}

/* A new head on the volume's own, which nobody writes from then on. */
static int put_head_on_head(struct pool *pool, json_t *volume, struct err *err)
{
    uint64_t layer = 0;
    int rc = add_layer(pool, get_number(volume, "head"), get_number(volume, "size"), &layer, err);

    return rc < 0 ? rc : set_number(volume, "head", layer, err);
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
        volume = find_volume(pool, name, err);
        from = volume != NULL ? find_snapshot(volume, snapshot, err) : NULL;
        if (from == NULL) {
            return -ENOENT;
        }
        base = get_number(from, "layer");
        size = get_number(from, "size");
    } else {
        rc = find_current(pool, name, "cloning a volume is", &volume, err);
        if (rc < 0) {
            return rc;
        }
        base = get_number(volume, "head");
        size = get_number(volume, "size");
        rc = put_head_on_head(pool, volume, err);
    }
    rc = rc < 0 ? rc : add_layer(pool, base, size, &layer, err);
    rc = rc < 0 ? rc : add_volume(pool, new_name, size, layer, err);
    return rc < 0 ? rc : commit(pool, err);
}

/* In a directory: a layer beside the head, which takes its place. */
static int replace_head(struct pool *pool, const char *name, struct block_image *from,
                        struct err *err)
{
    json_t *volume = NULL;
    uint64_t layer = 0;
    int rc = find_idle(pool, name, "", &volume, err);

    rc = rc < 0 ? rc : add_layer(pool, 0, get_number(volume, "size"), &layer, err);
    rc = rc < 0 ? rc : pool->ops->fill(pool->store, layer, from, err);
    rc = rc < 0 ? rc : set_number(volume, "head", layer, err);
    return rc < 0 ? rc : commit(pool, err);
}

int pool_fill_volume(struct pool *pool, const char *name, struct block_image *from, struct err *err)
{
    const json_t *volume = find_volume(pool, name, err);

    if (volume == NULL) {
        return -ENOENT;
    }
    if (from->size_bytes > get_number(volume, "size")) {
        return err_set(err, -EFBIG, "the disk has %llu bytes, and the volume \"%.60s\" only %llu",
                       (unsigned long long)from->size_bytes, name,
                       (unsigned long long)get_number(volume, "size"));
    }
    return pool->ops->make != NULL
               ? replace_head(pool, name, from, err)
               : pool->ops->fill(pool->store, get_number(volume, "head"), from, err);
}

int pool_delete_volume(struct pool *pool, const char *name, struct err *err)
{
    json_t *volume = NULL;
    int rc = find_idle(pool, name, "deleting a volume is", &volume, err);

    if (rc < 0) {
        return rc;
    }
    (void)json_object_del(pool->volumes, name); /* it was just found */
    return commit(pool, err);
}

/* The layer of the head becomes a snapshot; the volume's next head is not noted yet. */
static int name_snapshot(json_t *volume, const char *snapshot, struct err *err)
{
    json_t *snapshots = json_object_get(volume, "snapshots");
    json_t *entry;

    if (strlen(snapshot) >= POOL_NAME_BYTES || json_object_get(snapshots, snapshot) != NULL) {
        return err_set(err, -EEXIST,
                       "there is a snapshot \"%.60s\" already, or the name is too long", snapshot);
    }
    entry = json_pack("{s:I, s:s, s:I, s:I}", "layer", (json_int_t)get_number(volume, "head"),
                      "parent", get_text(volume, "parent"), "size",
                      (json_int_t)get_number(volume, "size"), "created", (json_int_t)time(NULL));
    return entry != NULL && json_object_set_new(snapshots, snapshot, entry) == 0 &&
                   json_object_set_new(volume, "parent", json_string(snapshot)) == 0
               ? 0
               : err_set(err, -ENOMEM, "out of memory");
}

int pool_create_snapshot(struct pool *pool, const char *name, const char *snapshot, struct err *err)
{
    json_t *volume = NULL;
    int rc = find_current(pool, name, "snapshots are", &volume, err);

    rc = rc < 0 ? rc : name_snapshot(volume, snapshot, err);
    rc = rc < 0 ? rc : put_head_on_head(pool, volume, err);
    return rc < 0 ? rc : commit(pool, err);
}

int pool_begin_snapshot(struct pool *pool, const char *name, const char *snapshot,
                        char ret_file[PATH_MAX], struct err *err)
{
    json_t *volume = find_volume(pool, name, err);
    json_t *pending = json_object_get(volume, "pending");
    uint64_t layer = get_number(pool->record, "next");
    int rc = volume == NULL ? -ENOENT : check_ours(pool, "snapshots are", err);

    if (rc < 0) {
        return rc;
    }
    if (pending != NULL) {
        pool->ops->path(pool->store, get_number(pending, "layer"), ret_file);
        return strcmp(get_text(pending, "snapshot"), snapshot) == 0
                   ? 0
                   : err_set(err, -EBUSY, "another snapshot of the volume \"%.60s\" is under way",
                             name);
    }
    if (json_object_get(json_object_get(volume, "snapshots"), snapshot) != NULL) {
        return err_set(err, -EEXIST, "there is a snapshot \"%.60s\" already", snapshot);
    }
    if (depth_of(pool, get_number(volume, "head")) >= POOL_MAX_DEPTH) {
        return err_set(err, -EMLINK,
                       "%u layers stand on each other already; delete snapshots first",
                       POOL_MAX_DEPTH);
    }
    pending = json_pack("{s:I, s:s}", "layer", (json_int_t)layer, "snapshot", snapshot);
    if (pending == NULL || json_object_set_new(volume, "pending", pending) != 0 ||
        set_parent(pool, layer, get_number(volume, "head")) < 0 ||
        json_object_set_new(pool->record, "next", json_integer((json_int_t)layer + 1)) != 0) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    pool->ops->path(pool->store, layer, ret_file);
    return save_record(pool, err);
}

/* The pending layer is the head; the marks say no more than the record then. */
static int adopt_pending(struct pool *pool, json_t *volume, struct err *err)
{
    json_t *pending = json_incref(json_object_get(volume, "pending"));
    char before[PATH_MAX];
    int rc = name_snapshot(volume, get_text(pending, "snapshot"), err);

    pool->ops->path(pool->store, get_number(volume, "head"), before);
    rc = rc < 0 ? rc : set_number(volume, "head", get_number(pending, "layer"), err);
    json_decref(pending);
    if (rc < 0) {
        return rc;
    }
    (void)json_object_del(volume, "pending"); /* it was just found */
    rc = save_record(pool, err);
    if (rc == 0) {
        successor_forget(before);
    }
    return rc < 0 ? rc : commit(pool, err);
}

static int drop_pending(struct pool *pool, json_t *volume, struct err *err)
{
    (void)json_object_del(volume, "pending"); /* its layer has no name any more, and goes */
    return commit(pool, err);
}

int pool_end_snapshot(struct pool *pool, const char *name, bool was_made, struct err *err)
{
    json_t *volume = find_volume(pool, name, err);

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
    json_t *volume = find_volume(pool, name, err);
    json_t *pending = json_object_get(volume, "pending");
    uint64_t layer = get_number(pending, "layer"), bytes = 0;
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
    int rc = find_idle(pool, name, "snapshots are", &volume, err);

    if (rc < 0) {
        return rc;
    }
    entry = find_snapshot(volume, snapshot, err);
    if (entry == NULL) {
        return -ENOENT;
    }
    rc = add_layer(pool, get_number(entry, "layer"), get_number(entry, "size"), &layer, err);
    rc = rc < 0 ? rc : set_number(volume, "head", layer, err);
    rc = rc < 0 ? rc : set_number(volume, "size", get_number(entry, "size"), err);
    if (rc == 0 && json_object_set_new(volume, "parent", json_string(snapshot)) != 0) {
        rc = err_set(err, -ENOMEM, "out of memory");
    }
    return rc < 0 ? rc : commit(pool, err);
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
    volume = find_volume(pool, name, err);
    rc = volume == NULL ? -ENOENT : check_ours(pool, "snapshots are", err);
    if (rc < 0) {
        return rc;
    }
    snapshots = json_object_get(volume, "snapshots");
    entry = find_snapshot(volume, snapshot, err);
    if (entry == NULL) {
        return -ENOENT;
    }
    (void)snprintf(parent, sizeof(parent), "%s", get_text(entry, "parent"));
    /* Those that came after it come after the one before it. */
    json_object_foreach(snapshots, key, other)
    {
        if (strcmp(get_text(other, "parent"), snapshot) == 0 &&
            json_object_set_new(other, "parent", json_string(parent)) != 0) {
            return err_set(err, -ENOMEM, "out of memory");
        }
    }
    if (strcmp(get_text(volume, "parent"), snapshot) == 0 &&
        json_object_set_new(volume, "parent", json_string(parent)) != 0) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    (void)json_object_del(snapshots, snapshot); /* it was just found */
    return commit(pool, err);
}
