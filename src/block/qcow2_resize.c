/* Other sizes of the disk, and space reserved in advance. */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

#define ZERO_BUFFER_BYTES (1u << 20)

/* Header numbers change in one sector, durable when this returns. */
static int publish_header(struct qcow2 *q, const struct qcow2_header *header)
{
    int r = qcow2_file_flush(q);

    if (r == 0) {
        r = qcow2_header_write(q->image.file, header);
    }
    if (r == 0) {
        r = qcow2_file_flush(q);
    }
    if (r == 0) {
        q->header.size = header->size;
        q->header.l1_offset = header->l1_offset;
        q->header.l1_size = header->l1_size;
        __atomic_store_n(&q->image.size_bytes, header->size, __ATOMIC_RELEASE);
    }
    return r;
}

static int write_l1(struct qcow2 *q, uint64_t offset, uint32_t entries)
{
    uint64_t bytes = qcow2_clusters_of(q, (uint64_t)entries * 8) << q->cluster_bits;
    CLEANUP_FREE uint8_t *raw = calloc(1, bytes);

    if (!raw) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < q->header.l1_size && i < entries; i++) {
        store_be64(raw + i * 8ull, q->l1[i]);
    }
    return block_file_pwrite(q->image.file, raw, bytes, offset);
}

static int extend_l1_memory(struct qcow2 *q, uint32_t entries)
{
    uint64_t *l1 = calloc((size_t)entries + 1, sizeof(*l1));
    uint8_t *dirty = calloc(1, entries / 64 + 1);

    if (!l1 || !dirty) {
        free(l1);
        free(dirty);
        return -ENOMEM;
    }
    memcpy(l1, q->l1, (size_t)q->header.l1_size * sizeof(*l1));
    memcpy(dirty, q->l1_dirty, q->header.l1_size / 64 + 1);
    free(q->l1);
    free(q->l1_dirty);
    q->l1 = l1;
    q->l1_dirty = dirty;
    return 0;
}

/* A larger L1 table elsewhere, and the new size, at once. Everything has been flushed. */
static int grow_l1(struct qcow2 *q, uint64_t size, uint64_t needed)
{
    struct qcow2_header header = q->header;
    uint64_t old_offset = q->header.l1_offset;
    uint64_t old_clusters = qcow2_clusters_of(q, (uint64_t)q->header.l1_size * 8);
    uint64_t clusters = qcow2_clusters_of(q, needed * 8);
    uint64_t offset = 0;
    int r;

    mutex_lock(&q->lock);
    r = extend_l1_memory(q, (uint32_t)needed);
    if (r == 0) {
        r = qcow2_alloc_exact_locked(q, clusters, &offset);
    }
    mutex_unlock(&q->lock);
    if (r < 0) {
        return r;
    }
    r = qcow2_flush(q); /* its refcounts */
    if (r == 0) {
        r = write_l1(q, offset, (uint32_t)needed);
    }
    mutex_lock(&q->lock);
    if (r == 0) {
        header.reftable_offset = q->header.reftable_offset; /* may have grown */
        header.reftable_clusters = q->header.reftable_clusters;
        header.size = size;
        header.l1_offset = offset;
        header.l1_size = (uint32_t)needed;
        r = publish_header(q, &header);
    }
    if (r == 0) {
        qcow2_unalloc_locked(q, old_offset, old_clusters);
    } else if (!q->is_poisoned) {
        qcow2_unalloc_locked(q, offset, clusters);
    }
    mutex_unlock(&q->lock);
    return r;
}

static int set_size(struct qcow2 *q, uint64_t size)
{
    struct qcow2_header header;
    int r;

    mutex_lock(&q->lock);
    header = q->header;
    header.size = size;
    r = publish_header(q, &header);
    mutex_unlock(&q->lock);
    return r;
}

/* What was behind the old end reads as zero, whatever the last cluster or a backing image hold. */
static int zero_new_end(struct qcow2 *q, uint64_t old_size, uint64_t size)
{
    uint64_t backing =
        q->image.backing ? __atomic_load_n(&q->image.backing->size_bytes, __ATOMIC_ACQUIRE) : 0;
    uint64_t end = qcow2_clusters_of(q, old_size) << q->cluster_bits;

    end = backing > end ? backing : end;
    end = end < size ? end : size;
    return end > old_size ? qcow2_write_zeroes(q, old_size, end - old_size, true) : 0;
}

static int grow(struct qcow2 *q, uint64_t size)
{
    uint64_t old_size = qcow2_size(q);
    uint64_t needed = qcow2_header_l1_needed(&q->header, size);
    int r = needed > q->header.l1_size ? grow_l1(q, size, needed) : set_size(q, size);

    return r == 0 ? zero_new_end(q, old_size, size) : r;
}

static int shrink(struct qcow2 *q, uint64_t size)
{
    uint64_t old_size = qcow2_size(q);
    uint64_t end = qcow2_clusters_of(q, size) << q->cluster_bits;
    uint64_t tail = end < old_size ? end : old_size;
    int r = 0;

    if (tail > size) {
        r = qcow2_write_zeroes(q, size, tail - size, false);
    }
    if (r == 0 && old_size > tail) {
        r = qcow2_discard(q, tail, old_size - tail);
    }
    if (r == 0) {
        r = qcow2_flush(q);
    }
    return r == 0 ? set_size(q, size) : r;
}

static int check_resize(struct qcow2 *q, uint64_t size, struct err *err)
{
    if (q->image.is_read_only) {
        return err_set(err, -EROFS, "the image is open for reading only");
    }
    if (size == 0 || size % BLOCK_SECTOR_BYTES != 0) {
        return err_set(err, -EINVAL, "the size of a disk is a multiple of 512 bytes, not 0");
    }
    if (size > 1ull << 61 || qcow2_header_l1_needed(&q->header, size) > QCOW2_MAX_L1_BYTES / 8) {
        return err_set(err, -EFBIG, "the disk would be too large for the image's cluster size");
    }
    if (q->header.version < 3 && q->header.snapshot_count > 0) {
        return err_set(err, -ENOTSUP,
                       "an image of version 2 with snapshots cannot change its size");
    }
    return 0;
}

int qcow2_resize(struct block_image *image, uint64_t size_bytes, struct err *err)
{
    struct qcow2 *q = to_qcow2(image);
    int r = check_resize(q, size_bytes, err);

    if (r < 0) {
        return r;
    }
    qcow2_exclusive_begin(q);
    r = qcow2_flush(q);
    mutex_lock(&q->lock);
    if (r == 0) {
        r = qcow2_may_write_locked(q);
    }
    mutex_unlock(&q->lock);
    if (r == 0 && size_bytes > qcow2_size(q)) {
        r = grow(q, size_bytes);
    } else if (r == 0 && size_bytes < qcow2_size(q)) {
        r = shrink(q, size_bytes);
    }
    if (r == 0) {
        r = qcow2_bitmaps_resize(q);
    }
    if (r == 0) {
        r = qcow2_flush(q);
    }
    qcow2_exclusive_end(q);
    return r < 0 ? err_set_errno(err, r, "cannot resize the image") : 0;
}

static int write_zero_data(struct qcow2 *q, uint64_t host, uint64_t len)
{
    CLEANUP_FREE uint8_t *zeroes = calloc(1, ZERO_BUFFER_BYTES);
    int r = zeroes ? 0 : -ENOMEM;

    while (r == 0 && len > 0) {
        uint64_t some = len < ZERO_BUFFER_BYTES ? len : ZERO_BUFFER_BYTES;

        r = block_file_pwrite(q->image.file, zeroes, some, host);
        host += some;
        len -= some;
    }
    return r;
}

static int reserve(struct qcow2 *q, uint64_t host, uint64_t len, bool is_fresh,
                   enum block_prealloc mode)
{
    struct block_file *file = q->image.file;
    uint64_t file_bytes = 0;
    int r = 0;

    if (mode == BLOCK_PREALLOC_FULL || !is_fresh) {
        return write_zero_data(q, host, len);
    }
    if (mode == BLOCK_PREALLOC_FALLOC) {
        r = file->ops->allocate(file, host, len);
        return r == -EOPNOTSUPP ? write_zero_data(q, host, len) : r;
    }
    /* Readers that know no zeroes past the end find a whole file. */
    r = file->ops->get_size(file, &file_bytes);
    if (r == 0 && file_bytes < host + len && !file->is_device) {
        r = file->ops->truncate(file, host + len);
    }
    return r;
}

/* The mapping of clusters that have their place; all in one L2 table. */
static int publish_reserved(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t clusters)
{
    struct qcow2_table *table = NULL;
    int r = qcow2_l2_get_writable_locked(q, offset, &table);

    for (uint64_t i = 0; r == 0 && i < clusters; i++) {
        qcow2_l2_set_entry(q, table, offset + (i << q->cluster_bits),
                           (host + (i << q->cluster_bits)) | QCOW2_COPIED, 0xffffffffull);
    }
    return r;
}

/* One run of unallocated clusters from offset on, at most to end. */
static int reserve_run(struct qcow2 *q, uint64_t offset, uint64_t end, enum block_prealloc mode,
                       uint64_t *ret_next)
{
    struct qcow2_table *table = NULL;
    struct qcow2_piece piece = {0};
    uint64_t host = 0, got = 0;
    bool is_fresh = false;
    int r;

    mutex_lock(&q->lock);
    r = qcow2_l2_get_writable_locked(q, offset, &table);
    if (r == 0) {
        r = qcow2_l2_piece_locked(q, table, offset, end - offset, &piece);
    }
    if (r == 0 && piece.kind == QCOW2_UNALLOCATED && piece.host == 0) {
        r = qcow2_alloc_locked(q, qcow2_clusters_of(q, piece.len), &host, &got, &is_fresh);
    }
    mutex_unlock(&q->lock);
    if (r == 0 && got == 0) {
        *ret_next = offset + piece.len;
        return 0;
    }
    if (r == 0) {
        r = reserve(q, host, got << q->cluster_bits, is_fresh, mode);
    }
    if (r == 0) {
        mutex_lock(&q->lock);
        r = publish_reserved(q, offset, host, got);
        mutex_unlock(&q->lock);
    }
    if (r < 0) {
        mutex_lock(&q->lock);
        qcow2_unalloc_locked(q, host, got);
        mutex_unlock(&q->lock);
        return r;
    }
    *ret_next = offset + (got << q->cluster_bits);
    return 0;
}

int qcow2_preallocate(struct qcow2 *q, uint64_t offset, uint64_t len, enum block_prealloc mode)
{
    uint64_t end = qcow2_clusters_of(q, offset + len) << q->cluster_bits;
    struct qcow2_claim claim;
    int r = 0;

    if (mode == BLOCK_PREALLOC_OFF || len == 0) {
        return 0;
    }
    offset &= ~(uint64_t)(q->cluster_bytes - 1);
    mutex_lock(&q->lock);
    qcow2_claim_locked(q, &claim, offset, end - offset);
    mutex_unlock(&q->lock);
    while (r == 0 && offset < end) {
        r = reserve_run(q, offset, end, mode, &offset);
        if (r == -EBUSY) {
            r = qcow2_flush(q);
        }
    }
    mutex_lock(&q->lock);
    qcow2_unclaim_locked(q, &claim);
    mutex_unlock(&q->lock);
    return r == 0 ? qcow2_flush(q) : r;
}
