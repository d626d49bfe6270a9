/*
 * Compressed clusters: in whole sectors anywhere in the file, and never
 * written again.
 */
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

int qcow2_unpack(struct qcow2 *q, uint64_t entry, void *cluster)
{
    struct qcow2_packer *packer;
    uint8_t *packed;
    uint64_t offset = 0, len = 0;
    int r = -ENOMEM;

    qcow2_l2_packed(q, entry, &offset, &len);
    if (len > 2ull * q->cluster_bytes + 512) {
        return -EIO;
    }
    packer = qcow2_packer_take(&q->packers);
    if (!packer) {
        return -ENOMEM;
    }
    packed = qcow2_packer_buf(packer, len);
    if (packed) {
        r = block_file_pread(q->image.file, packed, len, offset);
    }
    if (r == 0) {
        r = qcow2_packer_unpack(packer, q->header.compression, packed, len, cluster,
                                q->cluster_bytes);
    }
    qcow2_packer_give(&q->packers, packer);
    return r;
}

/* Sectors in the cluster that packed data goes to, or in a new one. */
static int take_sectors(struct qcow2 *q, uint64_t len, uint64_t *ret_offset)
{
    uint64_t used = q->packed_end & (q->cluster_bytes - 1);
    int r;

    if (used != 0 && used + len <= q->cluster_bytes) {
        r = qcow2_refcount_change_locked(q, q->packed_end >> q->cluster_bits, 1);
        if (r == 0) {
            *ret_offset = q->packed_end;
            q->packed_end += len;
            return 0;
        }
        if (r != -ERANGE) {
            return r;
        }
    }
    r = qcow2_alloc_exact_locked(q, 1, ret_offset);
    if (r == 0) {
        q->packed_end = *ret_offset + len;
    }
    return r;
}

static int publish_packed(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t len)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    struct qcow2_table *table = NULL;
    uint64_t bits = 0, old;
    int r = qcow2_l2_get_writable_locked(q, offset, &table);

    if (r < 0) {
        return r;
    }
    old = qcow2_l2_entry(q, table, offset, &bits);
    qcow2_l2_set_entry(q, table, offset, QCOW2_COMPRESSED | (len / 512 - 1) << offset_bits | host,
                       0);
    qcow2_l2_free_entry_locked(q, old);
    return 0;
}

static int write_packed(struct qcow2 *q, uint8_t *packed, size_t packed_len, uint64_t offset)
{
    uint64_t len = (packed_len + 511) & ~511ull;
    uint64_t host = 0;
    int r;

    memset(packed + packed_len, 0, len - packed_len);
    mutex_lock(&q->lock);
    r = qcow2_may_write_locked(q);
    if (r == 0) {
        r = take_sectors(q, len, &host);
    }
    mutex_unlock(&q->lock);
    if (r < 0) {
        return r;
    }
    r = block_file_pwrite(q->image.file, packed, len, host);
    while (r == 0) {
        mutex_lock(&q->lock);
        r = publish_packed(q, offset, host, len);
        mutex_unlock(&q->lock);
        if (r != -EBUSY) {
            break;
        }
        r = qcow2_flush(q);
    }
    if (r < 0) {
        mutex_lock(&q->lock);
        qcow2_unalloc_locked(q, host & ~(uint64_t)(q->cluster_bytes - 1), 1);
        q->packed_end = 0; /* the cluster may be free now */
        mutex_unlock(&q->lock);
    }
    return r;
}

static int write_claimed(struct qcow2 *q, uint8_t *packed, size_t packed_len, uint64_t offset,
                         uint64_t len)
{
    struct qcow2_claim claim;
    int r;

    mutex_lock(&q->lock);
    qcow2_bitmaps_mark_locked(q, offset, len);
    qcow2_claim_locked(q, &claim, offset, len);
    mutex_unlock(&q->lock);
    r = write_packed(q, packed, packed_len, offset);
    mutex_lock(&q->lock);
    qcow2_unclaim_locked(q, &claim);
    mutex_unlock(&q->lock);
    return r;
}

/* len bytes of the cluster belong to the disk. */
static int write_whole(struct qcow2 *q, const uint8_t *cluster, uint64_t offset, uint64_t len)
{
    struct qcow2_packer *packer = qcow2_packer_take(&q->packers);
    uint8_t *packed = packer ? qcow2_packer_buf(packer, q->cluster_bytes) : NULL;
    size_t packed_len = 0;
    /* A write only reads what it is given. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)cluster, .iov_len = len};
    int r = packed ? qcow2_packer_pack(packer, q->header.compression, cluster, q->cluster_bytes,
                                       packed, &packed_len)
                   : -ENOMEM;

    if (r == 0) {
        r = write_claimed(q, packed, packed_len, offset, len);
    } else if (r == -E2BIG) {
        r = qcow2_write(q, &iov, 1, offset, len);
    }
    if (packer) {
        qcow2_packer_give(&q->packers, packer);
    }
    return r;
}

/* The end of a disk that ends within its last cluster. */
static int write_padded(struct qcow2 *q, const void *buf, uint64_t offset, uint64_t len)
{
    uint8_t *padded = calloc(1, q->cluster_bytes);
    int r;

    if (!padded) {
        return -ENOMEM;
    }
    memcpy(padded, buf, len);
    r = write_whole(q, padded, offset, len);
    free(padded);
    return r;
}

int qcow2_write_compressed(struct block_image *image, const void *buf, uint64_t len,
                           uint64_t offset)
{
    struct qcow2 *q = qcow2_of(image, true, NULL);
    unsigned epoch;
    int r;

    if (!q) {
        return -ENOTSUP;
    }
    if (offset % q->cluster_bytes != 0 || len == 0 || len > q->cluster_bytes ||
        offset >= qcow2_size(q) || len > qcow2_size(q) - offset ||
        (len < q->cluster_bytes && offset + len != qcow2_size(q))) {
        return -EINVAL;
    }
    epoch = qcow2_enter(q);
    r = len < q->cluster_bytes ? write_padded(q, buf, offset, len)
                               : write_whole(q, buf, offset, len);
    qcow2_leave(q, epoch);
    return r;
}
