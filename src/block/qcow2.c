/* Opening and closing a qcow2 image, and who may run beside whom. */
#include "block/qcow2.h"

#include "base/log.h"
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define FILTER_WORDS ((1u << 19) / 64)

struct qcow2 *qcow2_of(struct block_image *image, bool for_write, struct err *err)
{
    if (image->format != BLOCK_FORMAT_QCOW2) {
        (void)err_set(err, -ENOTSUP, "only a qcow2 image can do that");
        return NULL;
    }
    if (for_write && image->is_read_only) {
        (void)err_set(err, -EROFS, "the image is open for reading only");
        return NULL;
    }
    return to_qcow2(image);
}

int qcow2_may_write_locked(const struct qcow2 *q)
{
    return __atomic_load_n(&q->is_poisoned, __ATOMIC_ACQUIRE) || q->is_corrupt ? -EIO : 0;
}

static unsigned begin_locked(struct qcow2 *q)
{
    unsigned epoch = q->epoch;

    __atomic_fetch_add(&q->active[epoch], 1, __ATOMIC_SEQ_CST);
    return epoch;
}

unsigned qcow2_enter(struct qcow2 *q)
{
    unsigned epoch;

    mutex_lock(&q->lock);
    while (__atomic_load_n(&q->exclusive_waiting, __ATOMIC_SEQ_CST) > 0) {
        (void)pthread_cond_wait(&q->cond, &q->lock.raw); /* cannot fail */
    }
    epoch = begin_locked(q);
    mutex_unlock(&q->lock);
    return epoch;
}

void qcow2_leave(struct qcow2 *q, unsigned epoch)
{
    unsigned left = __atomic_sub_fetch(&q->active[epoch], 1, __ATOMIC_SEQ_CST);

    if (left == 0 && __atomic_load_n(&q->exclusive_waiting, __ATOMIC_SEQ_CST) > 0) {
        mutex_lock(&q->lock);
        (void)pthread_cond_broadcast(&q->cond); /* cannot fail */
        mutex_unlock(&q->lock);
    }
}

void qcow2_exclusive_begin(struct qcow2 *q)
{
    mutex_lock(&q->lock);
    __atomic_fetch_add(&q->exclusive_waiting, 1, __ATOMIC_SEQ_CST);
    while (q->is_exclusive || q->is_flushing || q->active_flushes > 0 ||
           __atomic_load_n(&q->active[0], __ATOMIC_SEQ_CST) > 0 ||
           __atomic_load_n(&q->active[1], __ATOMIC_SEQ_CST) > 0) {
        (void)pthread_cond_wait(&q->cond, &q->lock.raw); /* cannot fail */
    }
    q->is_exclusive = true;
    mutex_unlock(&q->lock);
}

void qcow2_exclusive_end(struct qcow2 *q)
{
    mutex_lock(&q->lock);
    q->is_exclusive = false;
    __atomic_fetch_sub(&q->exclusive_waiting, 1, __ATOMIC_SEQ_CST);
    (void)pthread_cond_broadcast(&q->cond); /* cannot fail */
    mutex_unlock(&q->lock);
}

/* A flush is no reader of mappings: it counts nowhere, but an exclusive caller keeps it out. */
static int flush_request(struct qcow2 *q)
{
    mutex_lock(&q->lock);
    while (__atomic_load_n(&q->exclusive_waiting, __ATOMIC_SEQ_CST) > 0) {
        (void)pthread_cond_wait(&q->cond, &q->lock.raw); /* cannot fail */
    }
    q->active_flushes++;
    mutex_unlock(&q->lock);
    int r = qcow2_flush(q);

    mutex_lock(&q->lock);
    q->active_flushes--;
    (void)pthread_cond_broadcast(&q->cond); /* cannot fail */
    mutex_unlock(&q->lock);
    return r;
}

static int execute_entered(struct qcow2 *q, struct block_request *request)
{
    switch (request->op) {
    case BLOCK_READ:
        return qcow2_read(q, request->iov, request->iov_count, request->offset, request->len);
    case BLOCK_WRITE:
        return qcow2_write(q, request->iov, request->iov_count, request->offset, request->len);
    case BLOCK_DISCARD:
        return qcow2_discard(q, request->offset, request->len);
    case BLOCK_WRITE_ZEROES:
        return qcow2_write_zeroes(q, request->offset, request->len, request->may_unmap);
    default:
        return -ENOTSUP;
    }
}

static int qcow2_execute(struct block_image *image, struct block_request *request, bool may_wait)
{
    struct qcow2 *q = to_qcow2(image);
    uint64_t size;
    unsigned epoch;
    int r;

    if (!may_wait) {
        return -EAGAIN; /* map() is the way for those who cannot wait */
    }
    if (request->op == BLOCK_FLUSH) {
        return image->is_read_only ? 0 : flush_request(q);
    }
    if (request->len == 0) {
        return 0;
    }
    epoch = qcow2_enter(q);
    size = qcow2_size(q); /* may have shrunk since the request was checked */
    if (request->offset > size || request->len > size - request->offset) {
        r = -EINVAL;
    } else {
        r = execute_entered(q, request);
    }
    qcow2_leave(q, epoch);
    return r;
}

static int map_locked(struct qcow2 *q, bool for_write, uint64_t offset, uint64_t len,
                      struct block_extent *ret_extent)
{
    uint64_t index = offset >> (q->cluster_bits + q->l2_bits);
    struct qcow2_table *table = NULL;
    struct qcow2_piece piece;
    uint64_t l2 = index < q->header.l1_size ? q->l1[index] & QCOW2_OFFSET_MASK : 0;
    int r;

    if (q->exclusive_waiting > 0 || offset >= qcow2_size(q) || len > qcow2_size(q) - offset) {
        return -EAGAIN;
    }
    if (l2 != 0) {
        table = qcow2_cache_find(&q->l2, l2);
        if (!table) {
            return -EAGAIN;
        }
    }
    r = qcow2_l2_piece_locked(q, table, offset, len, &piece);
    if (r < 0) {
        return -EAGAIN; /* execute() will say what is wrong */
    }
    *ret_extent = (struct block_extent){.len = piece.len};
    if (piece.kind == QCOW2_NORMAL &&
        (!for_write || (piece.is_copied && qcow2_may_write_locked(q) == 0 &&
                        !qcow2_is_metadata_locked(q, piece.host, piece.len)))) {
        ret_extent->kind = BLOCK_EXTENT_DATA;
        ret_extent->file = q->image.file;
        ret_extent->host_offset = piece.host;
    } else if (!for_write && piece.kind == QCOW2_ZEROES) {
        ret_extent->kind = BLOCK_EXTENT_ZERO;
    } else if (!for_write && piece.kind == QCOW2_UNALLOCATED && !q->image.backing) {
        ret_extent->kind = BLOCK_EXTENT_UNALLOCATED;
    } else {
        return -EAGAIN;
    }
    if (for_write) {
        qcow2_bitmaps_mark_locked(q, offset, piece.len);
    }
    ret_extent->cookie = begin_locked(q);
    return 0;
}

static int qcow2_map(struct block_image *image, bool for_write, uint64_t offset, uint64_t len,
                     struct block_extent *ret_extent)
{
    struct qcow2 *q = to_qcow2(image);
    int r;

    if (len == 0 || !mutex_trylock(&q->lock)) {
        return -EAGAIN;
    }
    r = map_locked(q, for_write, offset, len, ret_extent);
    mutex_unlock(&q->lock);
    return r;
}

static void qcow2_unmap(struct block_image *image, const struct block_extent *extent)
{
    qcow2_leave(to_qcow2(image), (unsigned)extent->cookie);
}

static int lookup_here(struct qcow2 *q, uint64_t offset, uint64_t len, struct qcow2_piece *piece)
{
    struct qcow2_table *table = NULL;
    int r;

    do {
        mutex_lock(&q->lock);
        r = qcow2_l2_get_locked(q, offset, &table);
        if (r == 0) {
            r = qcow2_l2_piece_locked(q, table, offset, len, piece);
        }
        mutex_unlock(&q->lock);
        if (r == -EBUSY) {
            r = qcow2_flush(q);
            r = r < 0 ? r : -EBUSY;
        }
    } while (r == -EBUSY);
    return r;
}

static int lookup_backing(struct qcow2 *q, uint64_t offset, struct block_extent *extent)
{
    struct block_image *backing = q->image.backing;
    uint64_t size = backing ? __atomic_load_n(&backing->size_bytes, __ATOMIC_ACQUIRE) : 0;
    int r;

    if (offset >= size) {
        return 0;
    }
    r = backing->ops->lookup(backing, offset,
                             extent->len < size - offset ? extent->len : size - offset, extent);
    extent->depth++;
    return r;
}

static int qcow2_lookup(struct block_image *image, uint64_t offset, uint64_t len,
                        struct block_extent *ret_extent)
{
    struct qcow2 *q = to_qcow2(image);
    struct qcow2_piece piece = {0};
    unsigned epoch = qcow2_enter(q);
    int r = lookup_here(q, offset, len, &piece);

    if (r == 0) {
        *ret_extent = (struct block_extent){.len = piece.len};
        switch (piece.kind) {
        case QCOW2_NORMAL:
            ret_extent->kind = BLOCK_EXTENT_DATA;
            ret_extent->file = image->file;
            ret_extent->host_offset = piece.host;
            break;
        case QCOW2_ZEROES:
            ret_extent->kind = BLOCK_EXTENT_ZERO;
            break;
        case QCOW2_PACKED:
            ret_extent->kind = BLOCK_EXTENT_COMPRESSED;
            break;
        case QCOW2_UNALLOCATED:
            ret_extent->kind = BLOCK_EXTENT_UNALLOCATED;
            r = lookup_backing(q, offset, ret_extent);
            break;
        }
    }
    qcow2_leave(q, epoch);
    return r;
}

static void free_all(struct qcow2 *q)
{
    qcow2_bitmaps_done(q);
    qcow2_packers_done(&q->packers);
    qcow2_cache_done(&q->l2);
    qcow2_cache_done(&q->refblocks);
    qcow2_header_done(&q->header);
    free(q->l1);
    free(q->l1_dirty);
    free(q->reftable);
    free(q->reftable_dirty);
    free(q->filter);
    free(q->freed.items);
    free(q->freed_durable.items);
    free(q->freed_grace.items);
    (void)pthread_cond_destroy(&q->cond);
    mutex_done(&q->lock);
    free(q);
}

static void qcow2_close(struct block_image *image)
{
    struct qcow2 *q = to_qcow2(image);
    int r = 0;

    if (!image->is_read_only && !q->is_poisoned && !q->is_corrupt) {
        r = qcow2_bitmaps_store(q);
        if (r == 0) {
            r = qcow2_flush(q);
        }
        if (r == 0) {
            r = qcow2_flush(q); /* what the first one released */
        }
        if (r < 0) {
            log_error("a qcow2 image could not be written to its end: %s", strerror(-r));
        }
    }
    block_file_close(image->file);
    free_all(q);
}

static const struct block_ops qcow2_ops = {
    .execute = qcow2_execute,
    .map = qcow2_map,
    .unmap = qcow2_unmap,
    .lookup = qcow2_lookup,
    .resize = qcow2_resize,
    .close = qcow2_close,
};

static int read_table(struct qcow2 *q, uint64_t offset, uint32_t entries, uint64_t **ret_table,
                      uint8_t **ret_dirty)
{
    uint64_t *table = calloc((size_t)entries + 1, sizeof(*table));
    uint8_t *dirty = calloc(1, entries / 64 + 1);
    int r = table && dirty ? 0 : -ENOMEM;

    if (r == 0 && entries > 0) {
        r = block_file_pread(q->image.file, table, (uint64_t)entries * 8, offset);
    }
    if (r < 0) {
        free(table);
        free(dirty);
        return r;
    }
    for (uint32_t i = 0; i < entries; i++) {
        table[i] = load_be64(&table[i]);
    }
    *ret_table = table;
    *ret_dirty = dirty;
    return 0;
}

static void fill_filter(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->reftable_entries; i++) {
        if (q->reftable[i] != 0) {
            qcow2_filter_add(q, q->reftable[i]);
        }
    }
    for (uint32_t i = 0; i < q->header.l1_size; i++) {
        if ((q->l1[i] & QCOW2_OFFSET_MASK) != 0) {
            qcow2_filter_add(q, q->l1[i] & QCOW2_OFFSET_MASK);
        }
    }
}

static int load_tables(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    uint64_t file_bytes = 0;
    int r;

    q->filter = calloc(FILTER_WORDS, sizeof(*q->filter));
    r = q->filter ? qcow2_cache_init(&q->l2, q->cluster_bytes) : -ENOMEM;
    if (r == 0) {
        r = qcow2_cache_init(&q->refblocks, q->cluster_bytes);
    }
    if (r == 0) {
        r = read_table(q, h->l1_offset, h->l1_size, &q->l1, &q->l1_dirty);
    }
    if (r == 0) {
        q->reftable_entries = h->reftable_clusters << (h->cluster_bits - 3);
        r = read_table(q, h->reftable_offset, q->reftable_entries, &q->reftable,
                       &q->reftable_dirty);
    }
    if (r == 0) {
        r = q->image.file->ops->get_size(q->image.file, &file_bytes);
    }
    if (r == 0) {
        q->high_water = qcow2_clusters_of(q, file_bytes) << q->cluster_bits;
        fill_filter(q);
    }
    return r;
}

static void set_geometry(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    bool is_subclustered = h->incompatible & QCOW2_INCOMPAT_EXTL2;

    q->cluster_bits = h->cluster_bits;
    q->cluster_bytes = 1u << h->cluster_bits;
    q->l2_entry_bytes = is_subclustered ? 16 : 8;
    q->l2_bits = h->cluster_bits - (is_subclustered ? 4 : 3);
    q->unit_bits = h->cluster_bits - (is_subclustered ? 5 : 0);
    q->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
    q->refcount_max = h->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << h->refcount_order)) - 1;
    q->image.size_bytes = h->size;
}

static struct qcow2 *make_image(struct block_file *file, const struct block_config *config,
                                struct block_image *backing)
{
    struct qcow2 *q = calloc(1, sizeof(*q));

    if (!q) {
        return NULL;
    }
    q->image = (struct block_image){
        .ops = &qcow2_ops,
        .format = BLOCK_FORMAT_QCOW2,
        .is_read_only = config->read_only,
        .can_discard = !config->read_only,
        .file = file,
        .backing = backing,
    };
    q->is_device = file->is_device;
    mutex_init(&q->lock, LOCK_RANK_IMAGE);
    qcow2_packers_init(&q->packers);
    (void)pthread_cond_init(&q->cond, NULL); /* cannot fail on Linux */
    return q;
}

/* What an image opened for writing has to be freed of first. */
static int prepare_writing(struct qcow2 *q, const struct block_config *config, struct err *err)
{
    int r = 0;

    if (config->read_only || config->for_repair) {
        return 0;
    }
    if (q->header.incompatible & QCOW2_INCOMPAT_CORRUPT) {
        return err_set(err, -EUCLEAN,
                       "image '%s' is marked corrupt; repair it with corbel image check "
                       "--repair, or open it read-only",
                       config->path);
    }
    if (q->header.incompatible & QCOW2_INCOMPAT_DIRTY) {
        r = qcow2_repair_on_open(q, err);
        if (r < 0) {
            return r;
        }
    }
    if (q->header.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS) {
        q->header.autoclear &= QCOW2_AUTOCLEAR_BITMAPS;
        r = qcow2_header_write(q->image.file, &q->header);
    }
    return r < 0 ? err_set_errno(err, r, "cannot write to image '%s'", config->path) : 0;
}

int qcow2_open(struct block_file *file, const struct block_config *config,
               struct block_image *backing, struct err *err, struct block_image **ret_image)
{
    struct qcow2 *q = make_image(file, config, backing);
    int r;

    if (!q) {
        return err_set(err, -ENOMEM, "no memory for image '%s'", config->path);
    }
    file->zeroes_past_end = true; /* a last cluster need not be whole */
    r = qcow2_header_read(file, config->path, &q->header, err);
    if (r == 0) {
        set_geometry(q);
        r = load_tables(q);
        if (r < 0) {
            (void)err_set_errno(err, r, "cannot read the tables of image '%s'", config->path);
        }
    }
    if (r == 0 && q->header.size == 0 && !config->for_repair) {
        r = err_set(err, -EINVAL, "disk '%s' is empty", config->path);
    }
    if (r == 0) {
        r = prepare_writing(q, config, err);
    }
    if (r == 0) {
        r = qcow2_bitmaps_load(q, err);
    }
    if (r < 0) {
        free_all(q);
        return r;
    }
    *ret_image = &q->image;
    return 0;
}

int qcow2_read_backing_name(struct block_file *file, const char *path, struct err *err,
                            char *ret_name, size_t name_size, char *ret_format, size_t format_size)
{
    struct qcow2_header header = {0};
    int r;

    file->zeroes_past_end = true;
    r = qcow2_header_read(file, path, &header, err);
    if (r < 0) {
        return r;
    }
    if (strlen(header.backing_path) >= name_size || strlen(header.backing_format) >= format_size) {
        r = err_set(err, -ENAMETOOLONG, "the name of the backing image of '%s' is too long", path);
    } else {
        memcpy(ret_name, header.backing_path, strlen(header.backing_path) + 1);
        memcpy(ret_format, header.backing_format, strlen(header.backing_format) + 1);
    }
    qcow2_header_done(&header);
    return r;
}
