/* Zeroes without writing them, and giving space back. */
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

#define ZERO_BUFFER_BYTES 65536u
#define MAX_FREED_RANGES 65536u

enum effect { EFFECT_ZERO, EFFECT_ZERO_UNMAP, EFFECT_DISCARD };

/* One whole cluster. */
static void change_cluster(struct qcow2 *q, struct qcow2_table *table, uint64_t offset,
                           enum effect effect)
{
    uint64_t bits = 0, new_bits = 0, new_entry = 0;
    uint64_t entry = qcow2_l2_entry(q, table, offset, &bits);
    bool is_subclustered = q->l2_entry_bytes == 16;
    bool is_own = (entry & (QCOW2_COPIED | QCOW2_COMPRESSED)) == QCOW2_COPIED &&
                  (entry & QCOW2_OFFSET_MASK) != 0;
    bool reads_zero = effect != EFFECT_DISCARD || q->image.backing;

    if (q->header.version >= 3 && reads_zero) {
        new_entry = is_subclustered ? 0 : QCOW2_ZERO;
        new_bits = is_subclustered ? 0xffffffffull << 32 : 0;
    }
    if (effect == EFFECT_ZERO && is_own) {
        new_entry |= entry & (QCOW2_OFFSET_MASK | QCOW2_COPIED);
    }
    if (new_entry == entry && new_bits == bits) {
        return;
    }
    qcow2_l2_set_entry(q, table, offset, new_entry, new_bits);
    if ((new_entry & QCOW2_OFFSET_MASK) == 0) {
        qcow2_l2_free_entry_locked(q, entry);
    }
}

/* Clusters of one L2 table, claimed. */
static int change_table(struct qcow2 *q, uint64_t offset, uint64_t end, enum effect effect)
{
    struct qcow2_table *table = NULL;
    int r = qcow2_may_write_locked(q);

    if (r == 0) {
        r = qcow2_l2_get_locked(q, offset, &table);
    }
    if (r < 0 || (!table && !q->image.backing)) {
        return r; /* nothing is there, and reads as zero */
    }
    r = qcow2_l2_get_writable_locked(q, offset, &table);
    for (; r == 0 && offset < end; offset += q->cluster_bytes) {
        change_cluster(q, table, offset, effect);
    }
    return r;
}

static int change_clusters(struct qcow2 *q, uint64_t offset, uint64_t end, enum effect effect)
{
    uint64_t span = 1ull << (q->cluster_bits + q->l2_bits);
    struct qcow2_claim claim;
    int r = 0;

    mutex_lock(&q->lock);
    qcow2_claim_locked(q, &claim, offset, end - offset);
    mutex_unlock(&q->lock);
    while (r == 0 && offset < end) {
        uint64_t next = (offset | (span - 1)) + 1;
        bool is_full;

        next = next < end ? next : end;
        mutex_lock(&q->lock);
        r = change_table(q, offset, next, effect);
        is_full = r == -EBUSY || q->freed.count > MAX_FREED_RANGES;
        mutex_unlock(&q->lock);
        if (r == 0) {
            offset = next;
        }
        if (is_full) {
            r = qcow2_flush(q);
        }
    }
    mutex_lock(&q->lock);
    qcow2_unclaim_locked(q, &claim);
    mutex_unlock(&q->lock);
    return r;
}

static int write_zero_bytes(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    uint64_t most = len < ZERO_BUFFER_BYTES ? len : ZERO_BUFFER_BYTES;
    CLEANUP_FREE void *zeroes = calloc(1, most + 1);
    int r = zeroes ? 0 : -ENOMEM;

    while (r == 0 && len > 0) {
        uint64_t some = len < most ? len : most;
        struct iovec iov = {.iov_base = zeroes, .iov_len = some};

        r = qcow2_write(q, &iov, 1, offset, some);
        offset += some;
        len -= some;
    }
    return r;
}

/* A part of a cluster: nothing when it is zero already, subclusters' bits, or real zeroes. */
static int zero_part(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    struct qcow2_table *table = NULL;
    struct qcow2_piece piece;
    bool is_zero = false;
    int r;

    if (len == 0) {
        return 0;
    }
    mutex_lock(&q->lock);
    r = qcow2_l2_get_locked(q, offset, &table);
    if (r == 0) {
        r = qcow2_l2_piece_locked(q, table, offset, len, &piece);
        is_zero =
            r == 0 && piece.len >= len &&
            (piece.kind == QCOW2_ZEROES || (piece.kind == QCOW2_UNALLOCATED && !q->image.backing));
    }
    mutex_unlock(&q->lock);
    if (r < 0 && r != -EBUSY) {
        return r;
    }
    return is_zero ? 0 : write_zero_bytes(q, offset, len);
}

int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t len, bool may_unmap)
{
    uint64_t mask = q->cluster_bytes - 1;
    uint64_t end = offset + len;
    uint64_t first = (offset + mask) & ~mask;
    uint64_t last = end == qcow2_size(q) ? (end + mask) & ~mask : end & ~mask;
    int r;

    if (__atomic_load_n(&q->bitmaps_enabled, __ATOMIC_ACQUIRE) > 0) {
        mutex_lock(&q->lock);
        qcow2_bitmaps_mark_locked(q, offset, len);
        mutex_unlock(&q->lock);
    }
    /* Version 2 knows no zero clusters; an unmapped one reads as zero without a backing image. */
    if (first >= last || (q->header.version < 3 && (q->image.backing || !may_unmap))) {
        uint64_t middle = first < end ? first : end;

        r = zero_part(q, offset, middle - offset);
        while (r == 0 && middle < end) {
            uint64_t some = end - middle < q->cluster_bytes ? end - middle : q->cluster_bytes;

            r = zero_part(q, middle, some);
            middle += some;
        }
        return r;
    }
    r = zero_part(q, offset, first - offset);
    if (r == 0) {
        r = change_clusters(q, first, last, may_unmap ? EFFECT_ZERO_UNMAP : EFFECT_ZERO);
    }
    if (r == 0 && end > last) {
        r = zero_part(q, last, end - last);
    }
    return r;
}

int qcow2_discard(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    uint64_t mask = q->cluster_bytes - 1;
    uint64_t end = offset + len;
    uint64_t first = (offset + mask) & ~mask;
    uint64_t last = end == qcow2_size(q) ? (end + mask) & ~mask : end & ~mask;

    if (first >= last || (q->header.version < 3 && q->image.backing)) {
        return 0; /* a hint, that cannot be followed here */
    }
    if (__atomic_load_n(&q->bitmaps_enabled, __ATOMIC_ACQUIRE) > 0) {
        mutex_lock(&q->lock);
        qcow2_bitmaps_mark_locked(q, offset, len);
        mutex_unlock(&q->lock);
    }
    return change_clusters(q, first, last, EFFECT_DISCARD);
}
