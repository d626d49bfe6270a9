/* Guest offset to place in the file: L1 in memory, L2 tables in the cache. */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

static uint64_t l1_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> (q->cluster_bits + q->l2_bits);
}

static uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
    return (offset >> q->cluster_bits) & ((1ull << q->l2_bits) - 1);
}

static void set_l1(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1[index] = entry;
    q->l1_dirty[index / 64] = 1;
    q->has_dirty_metadata = true;
}

static int load_table(struct qcow2 *q, uint64_t l1_entry, struct qcow2_table **ret_table)
{
    uint64_t offset = l1_entry & QCOW2_OFFSET_MASK;
    struct qcow2_table *table;
    int r;

    if (offset & (q->cluster_bytes - 1)) {
        return qcow2_set_corrupt_locked(q, "an L2 table is not aligned", offset);
    }
    table = qcow2_cache_find(&q->l2, offset);
    if (!table) {
        r = qcow2_cache_take(&q->l2, offset, &table);
        if (r < 0) {
            return r;
        }
        r = block_file_pread(q->image.file, table->data, q->cluster_bytes, offset);
        if (r < 0) {
            qcow2_cache_drop(&q->l2, table);
            return r;
        }
    }
    *ret_table = table;
    return 0;
}

int qcow2_l2_get_locked(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
{
    uint64_t index = l1_index(q, offset);

    if (index >= q->header.l1_size || (q->l1[index] & QCOW2_OFFSET_MASK) == 0) {
        *ret_table = NULL;
        return 0;
    }
    return load_table(q, q->l1[index], ret_table);
}

/* Gives an L2 table a place of its own: a new one, or one shared with a snapshot. */
static int move_table(struct qcow2 *q, uint64_t index, struct qcow2_table **ret_table)
{
    uint64_t old = q->l1[index] & QCOW2_OFFSET_MASK;
    struct qcow2_table *table = NULL;
    uint64_t offset = 0;
    int r;

    r = qcow2_alloc_exact_locked(q, 1, &offset);
    if (r < 0) {
        return r;
    }
    if (old != 0) {
        r = load_table(q, q->l1[index], &table);
        if (r == 0 && table->in_flush) {
            r = -EBUSY; /* its old place has yet to be written */
        }
        if (r == 0) {
            qcow2_cache_move(&q->l2, table, offset);
        }
    } else {
        r = qcow2_cache_take(&q->l2, offset, &table);
        if (r == 0) {
            memset(table->data, 0, q->cluster_bytes);
        }
    }
    if (r < 0) {
        qcow2_unalloc_locked(q, offset, 1);
        return r;
    }
    qcow2_cache_dirty(&q->l2, table, 0, q->cluster_bytes);
    qcow2_filter_add(q, offset);
    set_l1(q, index, offset | QCOW2_COPIED);
    if (old != 0) {
        qcow2_free_locked(q, old, 1);
    }
    *ret_table = table;
    return 0;
}

int qcow2_l2_get_writable_locked(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
{
    uint64_t index = l1_index(q, offset);

    if (index >= q->header.l1_size) {
        return -EIO;
    }
    if (q->l1[index] & QCOW2_COPIED && (q->l1[index] & QCOW2_OFFSET_MASK) != 0) {
        return load_table(q, q->l1[index], ret_table);
    }
    return move_table(q, index, ret_table);
}

uint64_t qcow2_l2_entry(const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset,
                        uint64_t *ret_bits)
{
    const uint8_t *at = table->data + l2_index(q, offset) * q->l2_entry_bytes;

    *ret_bits = q->l2_entry_bytes == 16 ? load_be64(at + 8) : 0;
    return load_be64(at);
}

void qcow2_l2_set_entry(struct qcow2 *q, struct qcow2_table *table, uint64_t offset, uint64_t entry,
                        uint64_t bits)
{
    uint32_t byte = (uint32_t)l2_index(q, offset) * q->l2_entry_bytes;

    store_be64(table->data + byte, entry);
    if (q->l2_entry_bytes == 16) {
        store_be64(table->data + byte + 8, bits);
    }
    qcow2_cache_dirty(&q->l2, table, byte, q->l2_entry_bytes);
    q->has_dirty_metadata = true;
}

void qcow2_l2_packed(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_len)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t offset = entry & ((1ull << offset_bits) - 1);
    uint64_t sectors = (entry & ~(QCOW2_COMPRESSED | QCOW2_COPIED)) >> offset_bits;

    *ret_offset = offset;
    *ret_len = (sectors + 1) * 512 - (offset & 511);
}

void qcow2_l2_free_entry_locked(struct qcow2 *q, uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED) {
        uint64_t offset = 0, len = 0, first;

        qcow2_l2_packed(q, entry, &offset, &len);
        first = offset >> q->cluster_bits;
        if (len > 2ull * q->cluster_bytes + 512) {
            (void)qcow2_set_corrupt_locked(q, "a compressed cluster is too long", entry);
            return;
        }
        q->packed_end = 0; /* nothing may be added to a cluster that goes */
        qcow2_free_locked(q, first << q->cluster_bits,
                          ((offset + len - 1) >> q->cluster_bits) - first + 1);
    } else if (entry & QCOW2_OFFSET_MASK) {
        qcow2_free_locked(q, entry & QCOW2_OFFSET_MASK & ~(uint64_t)(q->cluster_bytes - 1), 1);
    }
}

/* What one subcluster is. False: the entry makes no sense. */
static bool classify(const struct qcow2 *q, uint64_t entry, uint64_t bits, unsigned sub,
                     struct qcow2_piece *piece)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    *piece = (struct qcow2_piece){0};
    if (entry & QCOW2_COMPRESSED) {
        piece->kind = QCOW2_PACKED;
        piece->host = entry;
        return bits == 0;
    }
    if (offset & (q->cluster_bytes - 1)) {
        return false;
    }
    piece->host = offset;
    piece->is_copied = offset != 0 && (entry & QCOW2_COPIED);
    if (q->l2_entry_bytes == 16) {
        bool is_alloc = bits >> sub & 1;
        bool is_zero = bits >> (32 + sub) & 1;

        piece->kind = is_zero ? QCOW2_ZEROES : is_alloc ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
        return !(is_alloc && (is_zero || offset == 0));
    }
    if (entry & QCOW2_ZERO && q->header.version >= 3) {
        piece->kind = QCOW2_ZEROES;
    } else {
        piece->kind = offset ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
    }
    return true;
}

int qcow2_l2_piece_locked(struct qcow2 *q, const struct qcow2_table *table, uint64_t offset,
                          uint64_t len, struct qcow2_piece *ret_piece)
{
    uint64_t unit = 1ull << q->unit_bits;
    uint64_t table_end = ((offset >> (q->cluster_bits + q->l2_bits)) + 1)
                         << (q->cluster_bits + q->l2_bits);
    uint64_t end = len < table_end - offset ? offset + len : table_end;
    uint64_t at = offset;
    struct qcow2_piece piece;

    if (!table) {
        *ret_piece = (struct qcow2_piece){.kind = QCOW2_UNALLOCATED, .len = end - offset};
        return 0;
    }
    while (at < end) {
        uint64_t bits = 0;
        uint64_t in_cluster = at & (q->cluster_bytes - 1);
        uint64_t entry = qcow2_l2_entry(q, table, at, &bits);

        if (!classify(q, entry, bits, (unsigned)(in_cluster >> q->unit_bits), &piece)) {
            return qcow2_set_corrupt_locked(q, "an L2 entry makes no sense", entry);
        }
        if (piece.kind != QCOW2_PACKED && piece.host != 0) {
            piece.host += in_cluster;
        }
        if (at == offset) {
            *ret_piece = piece;
        } else if (piece.kind != ret_piece->kind || piece.kind == QCOW2_PACKED ||
                   piece.is_copied != ret_piece->is_copied ||
                   piece.host != (ret_piece->host ? ret_piece->host + (at - offset) : 0)) {
            if (piece.kind != QCOW2_PACKED || piece.host != ret_piece->host ||
                (at & (q->cluster_bytes - 1)) == 0) {
                break;
            }
        }
        at = (at | (unit - 1)) + 1;
    }
    ret_piece->len = (at < end ? at : end) - offset;
    return 0;
}
