/*
 * Refcounts: a table of blocks of numbers, one for each cluster of the file.
 *
 * A number in memory is never below the references that a crash could bring
 * back, so a block may reach the file at any time. A new block describes
 * itself when it lies in its own range, as it does here.
 */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

uint64_t qcow2_refcount_load(const void *block, uint64_t index, uint32_t order)
{
    const uint8_t *bytes = block;

    switch (order) {
    case 3:
        return bytes[index];
    case 4:
        return load_be16(bytes + index * 2);
    case 5:
        return load_be32(bytes + index * 4);
    case 6:
        return load_be64(bytes + index * 8);
    default: { /* below a byte: the lowest bits come first */
        unsigned width = 1u << order;
        unsigned shift = (unsigned)(index * width) % 8;

        return (bytes[index * width / 8] >> shift) & ((1u << width) - 1);
    }
    }
}

void qcow2_refcount_store(void *block, uint64_t index, uint32_t order, uint64_t value)
{
    uint8_t *bytes = block;

    switch (order) {
    case 3:
        bytes[index] = (uint8_t)value;
        break;
    case 4:
        store_be16(bytes + index * 2, (uint16_t)value);
        break;
    case 5:
        store_be32(bytes + index * 4, (uint32_t)value);
        break;
    case 6:
        store_be64(bytes + index * 8, value);
        break;
    default: {
        unsigned width = 1u << order;
        unsigned shift = (unsigned)(index * width) % 8;
        unsigned mask = ((1u << width) - 1) << shift;
        uint8_t *byte = &bytes[index * width / 8];

        *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift));
        break;
    }
    }
}

static uint64_t block_index(const struct qcow2 *q, uint64_t cluster)
{
    return cluster >> q->refblock_bits;
}

static int write_chunks(struct qcow2 *q, struct qcow2_table *table)
{
    uint32_t chunk = q->refblocks.chunk_bytes;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i * chunk < q->cluster_bytes; i++) {
        if (table->dirty & (1ull << i)) {
            r = block_file_pwrite(q->image.file, table->data + (size_t)i * chunk, chunk,
                                  table->offset + (uint64_t)i * chunk);
        }
    }
    if (r == 0) {
        table->dirty = 0;
    }
    return r;
}

/* A free slot; refcounts may be written early, so a full cache is no reason to wait. */
static int take_slot(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
{
    int r = qcow2_cache_take(&q->refblocks, offset, ret_table);

    for (uint32_t i = 0; r == -EBUSY && i < q->refblocks.count; i++) {
        struct qcow2_table *table = &q->refblocks.tables[i];

        if (table->offset != 0 && !table->in_flush && table->dirty != 0) {
            int written = write_chunks(q, table);

            if (written < 0) {
                return written;
            }
            table->was_used = false;
            r = qcow2_cache_take(&q->refblocks, offset, ret_table);
        }
    }
    return r;
}

static int load_block(struct qcow2 *q, uint64_t index, struct qcow2_table **ret_table)
{
    uint64_t offset = q->reftable[index] & ~511ull;
    struct qcow2_table *table;
    int r;

    if (offset & (q->cluster_bytes - 1)) {
        return qcow2_set_corrupt_locked(q, "a refcount block is not aligned", offset);
    }
    table = qcow2_cache_find(&q->refblocks, offset);
    if (!table) {
        r = take_slot(q, offset, &table);
        if (r < 0) {
            return r;
        }
        r = block_file_pread(q->image.file, table->data, q->cluster_bytes, offset);
        if (r < 0) {
            qcow2_cache_drop(&q->refblocks, table);
            return r;
        }
    }
    *ret_table = table;
    return 0;
}

int qcow2_refcount_get_locked(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
    uint64_t index = block_index(q, cluster);
    struct qcow2_table *table = NULL;
    int r;

    if (index >= q->reftable_entries || q->reftable[index] == 0) {
        *ret_count = 0;
        return 0;
    }
    r = load_block(q, index, &table);
    if (r == 0) {
        *ret_count = qcow2_refcount_load(table->data, cluster & ((1ull << q->refblock_bits) - 1),
                                         q->header.refcount_order);
    }
    return r;
}

static void set_count(struct qcow2 *q, struct qcow2_table *table, uint64_t cluster, uint64_t count)
{
    uint64_t in_block = cluster & ((1ull << q->refblock_bits) - 1);
    uint32_t byte = (uint32_t)((in_block << q->header.refcount_order) / 8);

    qcow2_refcount_store(table->data, in_block, q->header.refcount_order, count);
    qcow2_cache_dirty(&q->refblocks, table, byte,
                      q->header.refcount_order > 3 ? 1u << (q->header.refcount_order - 3) : 1);
    q->has_dirty_metadata = true;
}

/* A cluster that a block covers. */
static int change_covered(struct qcow2 *q, uint64_t cluster, int64_t delta)
{
    uint64_t count = 0;
    struct qcow2_table *table = NULL;
    int r = qcow2_refcount_get_locked(q, cluster, &count);

    if (r < 0) {
        return r;
    }
    if (delta < 0 && count < (uint64_t)-delta) {
        return qcow2_set_corrupt_locked(q, "a cluster in use has no refcount",
                                        cluster << q->cluster_bits);
    }
    if (delta > 0 && q->refcount_max - count < (uint64_t)delta) {
        return -ERANGE;
    }
    r = load_block(q, block_index(q, cluster), &table);
    if (r < 0) {
        return r;
    }
    set_count(q, table, cluster, count + (uint64_t)delta);
    if (count + (uint64_t)delta == 0 && cluster < q->free_hint) {
        q->free_hint = cluster;
    }
    return 0;
}

/* Writes count blocks from cluster first on, whose first `used` clusters are in use. */
static int write_new_blocks(struct qcow2 *q, uint64_t first, uint64_t count, uint64_t used)
{
    CLEANUP_FREE uint8_t *block = malloc(q->cluster_bytes);
    uint64_t per_block = 1ull << q->refblock_bits;
    int r = block ? 0 : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < count; i++) {
        memset(block, 0, q->cluster_bytes);
        for (uint64_t j = 0; j < per_block && i * per_block + j < used; j++) {
            qcow2_refcount_store(block, j, q->header.refcount_order, 1);
        }
        r = block_file_pwrite(q->image.file, block, q->cluster_bytes,
                              (first + i) << q->cluster_bits);
    }
    return r;
}

static int write_new_table(struct qcow2 *q, const uint64_t *table, uint64_t entries,
                           uint64_t offset)
{
    CLEANUP_FREE uint8_t *raw = malloc(entries * 8);

    if (!raw) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < entries; i++) {
        store_be64(raw + i * 8, table[i]);
    }
    return block_file_pwrite(q->image.file, raw, entries * 8, offset);
}

/* Makes the table in memory and file the new one; what it was is free when it returns. */
static int publish_table(struct qcow2 *q, uint64_t *table, uint64_t entries, uint64_t offset)
{
    struct qcow2_header header = q->header;
    uint64_t old_first = q->header.reftable_offset >> q->cluster_bits;
    uint32_t old_clusters = q->header.reftable_clusters;
    uint8_t *dirty = calloc(1, entries / 64 + 1);
    int r = dirty ? qcow2_file_flush(q) : -ENOMEM;

    if (r == 0) {
        header.reftable_offset = offset;
        header.reftable_clusters = (uint32_t)(entries * 8 >> q->cluster_bits);
        r = qcow2_header_write(q->image.file, &header);
    }
    if (r == 0) {
        r = qcow2_file_flush(q);
    }
    if (r < 0) {
        free(dirty);
        return r;
    }
    q->header.reftable_offset = header.reftable_offset;
    q->header.reftable_clusters = header.reftable_clusters;
    free(q->reftable);
    free(q->reftable_dirty);
    q->reftable = table;
    q->reftable_dirty = dirty;
    q->reftable_entries = (uint32_t)entries;
    for (uint32_t i = 0; r == 0 && i < old_clusters; i++) {
        r = change_covered(q, old_first + i, -1);
    }
    return r;
}

/* A larger table, with the blocks that describe it, where no block has described anything yet. */
static int grow_table(struct qcow2 *q, uint64_t cluster)
{
    uint64_t per_block = 1ull << q->refblock_bits;
    uint64_t start = (uint64_t)q->reftable_entries << q->refblock_bits;
    uint64_t wanted = block_index(q, cluster) + 1;
    uint64_t clusters, blocks = 1, entries;
    uint64_t *table;
    int r;

    wanted += wanted / 2;
    for (;;) {
        entries = wanted > q->reftable_entries + blocks ? wanted : q->reftable_entries + blocks;
        clusters = qcow2_clusters_of(q, entries * 8);
        if ((blocks + clusters + per_block - 1) / per_block <= blocks) {
            break;
        }
        blocks = (blocks + clusters + per_block - 1) / per_block;
    }
    entries = clusters << (q->cluster_bits - 3);
    if (entries * 8 > QCOW2_MAX_REFTABLE_BYTES) {
        return -EFBIG;
    }
    table = calloc(entries, sizeof(*table));
    if (!table) {
        return -ENOMEM;
    }
    memcpy(table, q->reftable, (size_t)q->reftable_entries * 8);
    for (uint64_t i = 0; i < blocks; i++) {
        table[q->reftable_entries + i] = (start + i) << q->cluster_bits;
        qcow2_filter_add(q, (start + i) << q->cluster_bits);
    }
    if (q->high_water < (start + blocks + clusters) << q->cluster_bits) {
        q->high_water = (start + blocks + clusters) << q->cluster_bits;
    }
    /* Blocks made before but not yet in the table of the file have to be there too. */
    for (uint32_t i = 0; i < q->refblocks.count; i++) {
        struct qcow2_table *block = &q->refblocks.tables[i];
        bool is_in_flush = block->in_flush;

        if (block->offset == 0 || (block->dirty == 0 && !is_in_flush)) {
            continue;
        }
        if (is_in_flush) { /* an older copy may still be written after this */
            qcow2_cache_dirty(&q->refblocks, block, 0, q->cluster_bytes);
        }
        r = write_chunks(q, block);
        if (r < 0) {
            free(table);
            return r;
        }
        if (is_in_flush) {
            qcow2_cache_dirty(&q->refblocks, block, 0, q->cluster_bytes);
        }
    }
    r = write_new_blocks(q, start, blocks, blocks + clusters);
    if (r == 0) {
        r = write_new_table(q, table, entries, (start + blocks) << q->cluster_bits);
    }
    if (r == 0) {
        r = publish_table(q, table, entries, (start + blocks) << q->cluster_bits);
    }
    if (r != 0 && q->reftable != table) {
        free(table);
    }
    return r;
}

int qcow2_refcount_cover_locked(struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = block_index(q, cluster);
    struct qcow2_table *table;
    uint64_t offset = cluster << q->cluster_bits;
    int r;

    if (index >= q->reftable_entries) {
        r = grow_table(q, cluster);
        if (r < 0) {
            return r;
        }
    }
    if (q->reftable[index] != 0) {
        return 0;
    }
    if (qcow2_is_metadata_locked(q, offset, q->cluster_bytes)) {
        return qcow2_set_corrupt_locked(q, "metadata has no refcount", offset);
    }
    r = take_slot(q, offset, &table);
    if (r < 0) {
        return r;
    }
    memset(table->data, 0, q->cluster_bytes);
    qcow2_cache_dirty(&q->refblocks, table, 0, q->cluster_bytes);
    set_count(q, table, cluster, 1);
    q->reftable[index] = offset;
    q->reftable_dirty[index / 64] = 1;
    q->has_dirty_metadata = true;
    qcow2_filter_add(q, offset);
    if (q->high_water < offset + q->cluster_bytes) {
        q->high_water = offset + q->cluster_bytes;
    }
    return 0;
}

int qcow2_refcount_change_locked(struct qcow2 *q, uint64_t cluster, int64_t delta)
{
    /* Only what goes up can be without a block. */
    int r = delta > 0 ? qcow2_refcount_cover_locked(q, cluster) : 0;

    return r == 0 ? change_covered(q, cluster, delta) : r;
}
