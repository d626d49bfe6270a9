/* Pools on NBD servers: each export is a volume, and the server's own. */
#include "block/block_int.h"
#include "block/nbd.h"
#include "storage/disk.h"
#include "storage/pool_ops.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_OF_UNNAMED "default"

struct pool_store {
    char server[PATH_MAX / 2]; /* leaves room for exports' names */
    struct nbd_listed *list;
    unsigned count;
};

static void store_close(struct pool_store *store)
{
    free(store->list);
    free(store);
}

static int store_open(const struct pool_config *config, bool for_change, struct err *err,
                      struct pool_store **ret_store)
{
    struct pool_store *store = calloc(1, sizeof(*store));
    char address[PATH_MAX];
    int rc;

    (void)for_change; /* what a server's clients do at the same time is its affair */
    if (store == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    if (strlen(config->path) >= sizeof(store->server) ||
        nbd_export_address(config->path, "", address, sizeof(address)) < 0) {
        rc = err_set(err, -EINVAL,
                     "\"%.200s\" is no server's address; give nbd://HOST:PORT or "
                     "nbd+unix:///?socket=PATH, without an export",
                     config->path);
    } else {
        memcpy(store->server, config->path, strlen(config->path) + 1);
        rc = nbd_list_exports(address, err, &store->list, &store->count);
    }
    if (rc < 0) {
        store_close(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

static const struct nbd_listed *get_listed(const struct pool_store *store, uint64_t layer)
{
    return layer > 0 && layer <= store->count ? &store->list[layer - 1] : NULL;
}

static void store_path(struct pool_store *store, uint64_t layer, char *out)
{
    const struct nbd_listed *listed = get_listed(store, layer);

    /* It fits: store_open() has seen to it. */
    (void)!nbd_export_address(store->server, listed != NULL ? listed->name : "", out, PATH_MAX);
}

/* An export without a name has to have one here, as long as no other has that. */
static const char *name_volume(const struct pool_store *store, const struct nbd_listed *listed)
{
    if (listed->name[0] != '\0') {
        return listed->name;
    }
    for (unsigned i = 0; i < store->count; i++) {
        if (strcmp(store->list[i].name, NAME_OF_UNNAMED) == 0) {
            return NULL;
        }
    }
    return NAME_OF_UNNAMED;
}

static int store_each_volume(struct pool_store *store,
                             int (*fn)(void *opaque, const char *name, uint64_t layer,
                                       uint64_t size_bytes, bool is_read_only),
                             void *opaque)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < store->count; i++) {
        const struct nbd_listed *listed = &store->list[i];
        const char *name = name_volume(store, listed);

        rc = name != NULL ? fn(opaque, name, i + 1, listed->size_bytes, listed->is_read_only) : 0;
    }
    return rc;
}

static int store_fill(struct pool_store *store, uint64_t layer, struct block_image *from,
                      struct err *err)
{
    char path[PATH_MAX];
    const struct disk_ref ref = {.path = path};
    struct disk_copy copy = {.from = from};
    int rc;

    store_path(store, layer, path);
    rc = disk_open(&ref, err, &copy.to);
    if (rc < 0) {
        return rc;
    }
    rc = block_image_simple(copy.to, BLOCK_WRITE_ZEROES, 0, copy.to->size_bytes, true);
    rc = rc < 0 ? err_set_errno(err, rc, "'%s' cannot be emptied", path) : disk_copy(&copy, err);
    block_image_close(copy.to);
    return rc;
}

static int store_check_idle(struct pool_store *store, uint64_t layer, struct err *err)
{
    (void)store; /* servers tell nobody who else is there */
    (void)layer;
    (void)err;
    return 0;
}

static enum successor_state store_state(struct pool_store *store, uint64_t layer,
                                        struct successor *ret_next)
{
    (void)store; /* nor keep marks */
    (void)layer;
    (void)ret_next;
    return SUCCESSOR_CURRENT;
}

/* What a server spends on a thin export it does not say; it has promised all of it. */
static int store_stat(struct pool_store *store, uint64_t layer, uint64_t *ret_allocated_bytes)
{
    const struct nbd_listed *listed = get_listed(store, layer);

    if (listed == NULL) {
        return -ENOENT;
    }
    *ret_allocated_bytes = listed->size_bytes;
    return 0;
}

static int store_space(struct pool_store *store, uint64_t *ret_total_bytes,
                       uint64_t *ret_free_bytes)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < store->count; i++) {
        if (__builtin_add_overflow(total, store->list[i].size_bytes, &total)) {
            return -EOVERFLOW;
        }
    }
    *ret_total_bytes = total;
    *ret_free_bytes = 0;
    return 0;
}

const struct pool_ops pool_nbd_ops = {
    .kind = "nbd",
    .format = BLOCK_FORMAT_RAW,
    .open = store_open,
    .close = store_close,
    .each_volume = store_each_volume,
    .fill = store_fill,
    .check_idle = store_check_idle,
    .state = store_state,
    .stat = store_stat,
    .space = store_space,
    .path = store_path,
};
