/*
 * From one consistent state of the file to another in one step.
 *
 * Operations that change many refcounts at once (snapshots, repair) leave the
 * old tables alone. They count all references anew, write refcount blocks and
 * a refcount table with these counts to clusters that the old state calls
 * free, and then write the header's first sector, which names the new tables
 * all together. A crash finds either the old state, or the new.
 */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

struct rebuild {
    struct qcow2 *q;
    bool is_repair;
    uint64_t sane_end; /* nothing of the old state lies beyond */
    struct qcow2_header header;
    uint64_t *l1;
    struct qcow2_ranges taken; /* free again when it fails */
    struct qcow2_refs *refs;
    uint64_t *blocks; /* place of each new block, 0 where none is needed */
    uint64_t block_count;
    uint64_t *table; /* new */
    uint64_t table_offset, table_clusters, table_entries;
};

static bool block_is_needed(const struct rebuild *b, uint64_t index)
{
    uint64_t per_block = 1ull << b->q->refblock_bits;
    uint64_t end = qcow2_refs_end(b->refs);

    for (uint64_t i = index * per_block; i < (index + 1) * per_block && i < end; i++) {
        if (qcow2_refs_get(b->refs, i) != 0) {
            return true;
        }
    }
    return false;
}

static int grow_blocks(struct rebuild *b)
{
    uint64_t per_block = 1ull << b->q->refblock_bits;
    uint64_t wanted = (qcow2_refs_end(b->refs) + per_block - 1) / per_block;
    uint64_t *blocks;

    if (wanted <= b->block_count) {
        return 0;
    }
    blocks = realloc(b->blocks, wanted * sizeof(*blocks));
    if (!blocks) {
        return -ENOMEM;
    }
    memset(blocks + b->block_count, 0, (wanted - b->block_count) * sizeof(*blocks));
    b->blocks = blocks;
    b->block_count = wanted;
    return 0;
}

/* Behind everything: where refcounts cannot be trusted, that alone is free for sure. */
static void take_at_end(struct rebuild *b, uint64_t clusters, uint64_t *ret_offset)
{
    struct qcow2 *q = b->q;
    uint64_t end = qcow2_refs_end(b->refs) << q->cluster_bits;

    *ret_offset = q->high_water > end ? q->high_water : end;
    q->high_water = *ret_offset + (clusters << q->cluster_bits);
}

static int take(struct rebuild *b, uint64_t clusters, uint64_t *ret_offset)
{
    struct qcow2 *q = b->q;
    int r = 0;

    mutex_lock(&q->lock);
    if (b->is_repair) {
        take_at_end(b, clusters, ret_offset);
    } else {
        r = qcow2_alloc_exact_locked(q, clusters, ret_offset);
        if (r == 0) {
            qcow2_ranges_add(&b->taken, *ret_offset, clusters, q->cluster_bits);
        }
    }
    mutex_unlock(&q->lock);
    for (uint64_t i = 0; r == 0 && i < clusters; i++) {
        uint64_t cluster = (*ret_offset >> q->cluster_bits) + i;

        r = qcow2_refs_get(b->refs, cluster) == 0 ? qcow2_refs_add(b->refs, cluster, 1) : -EUCLEAN;
    }
    return r;
}

/* Places for the new blocks and table, which have to be counted themselves. */
static int place_tables(struct rebuild *b)
{
    struct qcow2 *q = b->q;
    bool is_stable = false;
    int r = 0;

    while (r == 0 && !is_stable) {
        uint64_t clusters;

        is_stable = true;
        r = grow_blocks(b);
        for (uint64_t i = 0; r == 0 && i < b->block_count; i++) {
            if (b->blocks[i] == 0 && block_is_needed(b, i)) {
                r = take(b, 1, &b->blocks[i]);
                is_stable = false;
            }
        }
        clusters = qcow2_clusters_of(q, b->block_count * 8);
        if (r == 0 && is_stable && clusters > b->table_clusters) {
            /* A place that turned out too small stays counted: a leak for the next check. */
            b->table_clusters = clusters + (b->table_clusters > 0 ? clusters / 2 + 1 : 0);
            r = take(b, b->table_clusters, &b->table_offset);
            is_stable = false;
        }
    }
    if (r == 0 && b->table_clusters << q->cluster_bits > QCOW2_MAX_REFTABLE_BYTES) {
        r = -EFBIG;
    }
    return r;
}

static int write_block(struct rebuild *b, uint64_t index, uint8_t *block)
{
    struct qcow2 *q = b->q;
    uint64_t per_block = 1ull << q->refblock_bits;

    memset(block, 0, q->cluster_bytes);
    for (uint64_t i = 0; i < per_block; i++) {
        uint32_t count = qcow2_refs_get(b->refs, index * per_block + i);

        if (count > q->refcount_max) {
            return -ERANGE;
        }
        qcow2_refcount_store(block, i, q->header.refcount_order, count);
    }
    return block_file_pwrite(q->image.file, block, q->cluster_bytes, b->blocks[index]);
}

static int write_tables(struct rebuild *b)
{
    struct qcow2 *q = b->q;
    CLEANUP_FREE uint8_t *block = malloc(q->cluster_bytes);
    CLEANUP_FREE uint8_t *raw = NULL;
    int r = block ? 0 : -ENOMEM;

    b->table_entries = b->table_clusters << (q->cluster_bits - 3);
    assert(b->table_entries > 0); /* the first block has a place in it */
    b->table = calloc(b->table_entries, sizeof(*b->table));
    raw = calloc(b->table_entries, 8);
    if (!b->table || !raw) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; r == 0 && i < b->block_count; i++) {
        if (b->blocks[i] != 0) {
            b->table[i] = b->blocks[i];
            store_be64(raw + i * 8, b->blocks[i]);
            r = write_block(b, i, block);
        }
    }
    if (r == 0) {
        r = block_file_pwrite(q->image.file, raw, b->table_entries * 8, b->table_offset);
    }
    return r;
}

/* Whether an entry names a cluster that can be there; only a repair has to ask. */
static bool entry_is_sane(const struct rebuild *b, uint64_t entry, uint64_t bits)
{
    const struct qcow2 *q = b->q;
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    uint64_t len = q->cluster_bytes;

    if (entry & QCOW2_COMPRESSED) {
        qcow2_l2_packed(q, entry, &offset, &len);
        return !(entry & QCOW2_COPIED) && bits == 0 && offset < b->sane_end;
    }
    return (offset & (q->cluster_bytes - 1)) == 0 && offset < b->sane_end &&
           (bits & (bits >> 32) & 0xffffffffu) == 0 && (offset != 0 || (bits & 0xffffffffu) == 0);
}

/* Sets the flags of one L2 table right. True when it is not what it was. */
static bool normalize_table(const struct rebuild *b, uint8_t *raw)
{
    const struct qcow2 *q = b->q;
    bool has_changed = false;

    for (uint32_t i = 0; i < q->cluster_bytes; i += q->l2_entry_bytes) {
        uint64_t old = load_be64(raw + i);
        uint64_t bits = q->l2_entry_bytes == 16 ? load_be64(raw + i + 8) : 0;
        uint64_t entry = old;
        uint64_t offset = entry & QCOW2_OFFSET_MASK;

        if (b->is_repair && !entry_is_sane(b, entry, bits)) {
            entry = 0;
            if (q->l2_entry_bytes == 16) {
                store_be64(raw + i + 8, 0);
            }
        } else if (!(entry & QCOW2_COMPRESSED)) {
            bool is_own = offset != 0 && qcow2_refs_get(b->refs, offset >> q->cluster_bits) == 1;

            entry = (entry & ~QCOW2_COPIED) | (is_own ? QCOW2_COPIED : 0);
        }
        if (entry != old) {
            store_be64(raw + i, entry);
            has_changed = true;
        }
    }
    return has_changed;
}

/* A table whose flags change becomes the active one's alone; snapshots keep the old. */
static int normalize_l2(struct rebuild *b, uint32_t index, uint8_t *raw)
{
    struct qcow2 *q = b->q;
    uint64_t offset = b->l1[index] & QCOW2_OFFSET_MASK;
    uint64_t place = 0;
    int r;

    if (offset == 0) {
        b->l1[index] = 0;
        return 0;
    }
    if (b->is_repair && ((offset & (q->cluster_bytes - 1)) != 0 || offset >= b->sane_end)) {
        b->l1[index] = 0;
        return 0;
    }
    r = block_file_pread(q->image.file, raw, q->cluster_bytes, offset);
    if (r == 0 && normalize_table(b, raw)) {
        r = take(b, 1, &place);
        if (r == 0) {
            r = block_file_pwrite(q->image.file, raw, q->cluster_bytes, place);
        }
        if (r == 0) {
            qcow2_refs_drop(b->refs, offset >> q->cluster_bits);
            offset = place;
        }
    }
    b->l1[index] =
        offset | (qcow2_refs_get(b->refs, offset >> q->cluster_bits) == 1 ? QCOW2_COPIED : 0);
    return r;
}

static int place_l1(struct rebuild *b)
{
    struct qcow2 *q = b->q;
    uint64_t clusters = qcow2_clusters_of(q, (uint64_t)b->header.l1_size * 8);
    CLEANUP_FREE uint8_t *raw = NULL;
    CLEANUP_FREE uint8_t *table = malloc(q->cluster_bytes);
    int r = table ? 0 : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i < b->header.l1_size; i++) {
        r = normalize_l2(b, i, table);
    }
    if (r < 0 || clusters == 0) {
        return r;
    }
    raw = calloc(clusters, q->cluster_bytes);
    if (!raw) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < b->header.l1_size; i++) {
        store_be64(raw + i * 8ull, b->l1[i]);
    }
    r = take(b, clusters, &b->header.l1_offset);
    if (r == 0) {
        r = block_file_pwrite(q->image.file, raw, clusters << q->cluster_bits, b->header.l1_offset);
    }
    return r;
}

/* The new state in memory, where nothing of the old may stay. */
static void adopt(struct rebuild *b, uint8_t *l1_dirty, uint8_t *table_dirty)
{
    struct qcow2 *q = b->q;

    q->header = b->header;
    free(q->l1);
    free(q->l1_dirty);
    free(q->reftable);
    free(q->reftable_dirty);
    q->l1 = b->l1;
    q->l1_dirty = l1_dirty;
    q->reftable = b->table;
    q->reftable_dirty = table_dirty;
    q->reftable_entries = (uint32_t)b->table_entries;
    b->table = NULL;
    qcow2_cache_drop_all(&q->l2);
    qcow2_cache_drop_all(&q->refblocks);
    q->freed.count = 0;
    q->freed_durable.count = 0;
    q->freed_grace.count = 0;
    q->is_grace = false;
    q->free_hint = 0;
    q->packed_end = 0;
    q->has_dirty_metadata = false;
    for (uint32_t i = 0; i < q->reftable_entries; i++) {
        if (q->reftable[i] != 0) {
            qcow2_filter_add(q, q->reftable[i]);
        }
    }
    for (uint32_t i = 0; i < q->header.l1_size; i++) {
        if (q->l1[i] != 0) {
            qcow2_filter_add(q, q->l1[i] & QCOW2_OFFSET_MASK);
        }
    }
    __atomic_store_n(&q->image.size_bytes, q->header.size, __ATOMIC_RELEASE);
}

/* The one write that counts. */
static int publish(struct rebuild *b)
{
    struct qcow2 *q = b->q;
    uint8_t *l1_dirty = calloc(1, b->header.l1_size / 64 + 1);
    uint8_t *table_dirty = calloc(1, b->table_entries / 64 + 1);
    int r = l1_dirty && table_dirty ? qcow2_file_flush(q) : -ENOMEM;

    b->header.reftable_offset = b->table_offset;
    b->header.reftable_clusters = (uint32_t)b->table_clusters;
    if (r == 0) {
        r = qcow2_header_write(q->image.file, &b->header);
        if (r == 0) {
            r = qcow2_file_flush(q);
        }
        if (r < 0) { /* which of the two states the file has is not known */
            __atomic_store_n(&q->is_poisoned, true, __ATOMIC_RELEASE);
        }
    }
    if (r < 0) {
        free(l1_dirty);
        free(table_dirty);
        return r;
    }
    mutex_lock(&q->lock);
    adopt(b, l1_dirty, table_dirty);
    mutex_unlock(&q->lock);
    return 0;
}

/* What lost its last reference can go back to the host; nobody uses it before the caller ends. */
static void punch_unused(struct rebuild *b, uint64_t end)
{
    struct qcow2 *q = b->q;
    uint64_t first = 0, run = 0;

    for (uint64_t i = 0; i <= end; i++) {
        if (i < end && qcow2_refs_get(b->refs, i) == 0) {
            first = run == 0 ? i : first;
            run++;
        } else if (run > 0) {
            /* Only a hint to the host. */
            (void)q->image.file->ops->discard(q->image.file, first << q->cluster_bits,
                                              run << q->cluster_bits);
            run = 0;
        }
    }
}

static int count_all(struct rebuild *b, const struct qcow2_snapshot *snapshots,
                     uint64_t snapshots_bytes)
{
    struct qcow2_roots roots = {
        .l1 = b->l1,
        .l1_size = b->header.l1_size,
        .snapshots_offset = b->header.snapshots_offset,
        .snapshots_bytes = snapshots_bytes,
        .snapshots = snapshots,
        .snapshot_count = b->header.snapshot_count,
        .skip_refcounts = true,
    };
    struct qcow2_walk walk = {.refs = b->refs};
    uint64_t clusters = 0, bytes = 0;
    int r = qcow2_walk_bounds(b->q, &clusters, &bytes);

    walk.file_end = clusters << b->q->cluster_bits;
    if (r == 0) {
        r = qcow2_walk_all(b->q, &roots, &walk);
    }
    return r == 0 && walk.errors > 0 ? -EIO : r;
}

static int prepare(struct rebuild *b, const struct qcow2_snapshot *snapshots,
                   uint64_t snapshots_bytes, uint64_t *ret_clusters)
{
    uint64_t bytes = 0;
    int r = qcow2_walk_bounds(b->q, ret_clusters, &bytes);

    if (r == 0) {
        /* Room for the new tables behind everything. */
        b->refs = qcow2_refs_create(*ret_clusters + *ret_clusters / 8 + 65536, bytes);
        r = b->refs ? 0 : -ENOMEM;
    }
    if (r == 0) {
        r = count_all(b, snapshots, snapshots_bytes);
    }
    if (r == 0) {
        r = place_l1(b);
    }
    if (r == 0) {
        r = place_tables(b);
    }
    return r == 0 ? write_tables(b) : r;
}

int qcow2_rebuild(struct qcow2 *q, const struct qcow2_header *new_header, uint64_t *l1,
                  const struct qcow2_snapshot *snapshots, uint64_t snapshots_bytes, bool is_repair,
                  struct err *err)
{
    struct rebuild b = {
        .q = q,
        .is_repair = is_repair,
        .sane_end = q->high_water,
        .header = *new_header,
        .l1 = l1,
    };
    uint64_t clusters = 0;
    int r = prepare(&b, snapshots, snapshots_bytes, &clusters);

    if (r == 0) {
        r = publish(&b);
    }
    if (r == 0) {
        punch_unused(&b, clusters);
    } else if (!q->is_poisoned) {
        mutex_lock(&q->lock);
        for (size_t i = 0; i < b.taken.count; i++) {
            qcow2_unalloc_locked(q, b.taken.items[i].offset, b.taken.items[i].clusters);
        }
        mutex_unlock(&q->lock);
    }
    qcow2_refs_destroy(b.refs);
    free(b.blocks);
    free(b.table);
    free(b.taken.items);
    return r < 0 ? err_set_errno(err, r, "cannot write new tables") : 0;
}
