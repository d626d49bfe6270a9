/*
 * Memory to file, in the order of docs/qcow2-write-order.md.
 *
 * What is to be written is copied under the lock at one moment, so that the
 * copy is consistent in itself: every reference in it has its refcount in it,
 * and its data was written before. Then the parts go out, each durable before
 * what refers to it.
 */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

#define SECTOR_BYTES 512u
#define SECTOR_ENTRIES 64u

struct part {
    uint64_t offset;
    uint32_t len;
    struct qcow2_table *table; /* of which this was a copy */
    uint64_t dirty;
    uint8_t *data;
};

/* Copies of the changed sectors of the L1 or the refcount table. */
struct sectors {
    uint64_t table_offset;
    uint64_t *numbers;
    uint8_t *data;
    size_t count;
};

struct plan {
    struct part *refblocks, *l2;
    size_t refblock_count, l2_count;
    struct sectors l1, reftable;
    struct qcow2_ranges freed;
};

int qcow2_file_flush(struct qcow2 *q)
{
    int r = q->image.file->ops->flush(q->image.file);

    if (r < 0) {
        __atomic_store_n(&q->is_poisoned, true, __ATOMIC_RELEASE);
    }
    return r;
}

static void parts_free(struct part *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(parts[i].data);
    }
    free(parts);
}

static void plan_done(struct plan *plan)
{
    parts_free(plan->refblocks, plan->refblock_count);
    parts_free(plan->l2, plan->l2_count);
    free(plan->l1.numbers);
    free(plan->l1.data);
    free(plan->reftable.numbers);
    free(plan->reftable.data);
    free(plan->freed.items);
}

/* Copies every run of dirty chunks. */
static int copy_table(struct qcow2_cache *cache, struct qcow2_table *table, struct part **parts,
                      size_t *count, size_t *capacity)
{
    uint32_t chunks = cache->table_bytes / cache->chunk_bytes;

    for (uint32_t i = 0; i < chunks; i++) {
        uint32_t end = i;
        struct part *part;

        while (end < chunks && table->dirty & (1ull << end)) {
            end++;
        }
        if (end == i) {
            continue;
        }
        if (*count == *capacity) {
            size_t wanted = *capacity ? *capacity * 2 : 32;
            struct part *grown = realloc(*parts, wanted * sizeof(*grown));

            if (!grown) {
                return -ENOMEM;
            }
            *parts = grown;
            *capacity = wanted;
        }
        part = &(*parts)[*count];
        *part = (struct part){
            .offset = table->offset + (uint64_t)i * cache->chunk_bytes,
            .len = (end - i) * cache->chunk_bytes,
            .table = table,
            .dirty = (end - i == 64 ? ~0ull : (1ull << (end - i)) - 1) << i,
            .data = malloc((size_t)(end - i) * cache->chunk_bytes),
        };
        if (!part->data) {
            return -ENOMEM;
        }
        memcpy(part->data, table->data + (size_t)i * cache->chunk_bytes, part->len);
        (*count)++;
        i = end;
    }
    return 0;
}

static int copy_cache(struct qcow2_cache *cache, struct part **ret_parts, size_t *ret_count)
{
    size_t capacity = 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < cache->count; i++) {
        if (cache->tables[i].offset != 0 && cache->tables[i].dirty != 0) {
            r = copy_table(cache, &cache->tables[i], ret_parts, ret_count, &capacity);
        }
    }
    return r;
}

static void mark_in_flush(struct part *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        parts[i].table->in_flush = true;
        parts[i].table->dirty &= ~parts[i].dirty;
    }
}

static int copy_sectors(const uint64_t *entries, uint32_t entry_count, const uint8_t *dirty,
                        struct sectors *ret_sectors)
{
    uint32_t sectors = (entry_count + SECTOR_ENTRIES - 1) / SECTOR_ENTRIES;
    size_t count = 0;

    for (uint32_t i = 0; i < sectors; i++) {
        count += dirty[i];
    }
    if (count == 0) {
        return 0;
    }
    ret_sectors->numbers = calloc(count, sizeof(*ret_sectors->numbers));
    ret_sectors->data = calloc(count, SECTOR_BYTES);
    if (!ret_sectors->numbers || !ret_sectors->data) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < sectors; i++) {
        uint32_t first = i * SECTOR_ENTRIES;

        if (!dirty[i]) {
            continue;
        }
        for (uint32_t j = first; j < first + SECTOR_ENTRIES && j < entry_count; j++) {
            store_be64(ret_sectors->data + ret_sectors->count * SECTOR_BYTES + (j - first) * 8,
                       entries[j]);
        }
        ret_sectors->numbers[ret_sectors->count++] = i;
    }
    return 0;
}

static void set_dirty(const struct sectors *sectors, uint8_t *dirty, uint8_t value)
{
    for (size_t i = 0; i < sectors->count; i++) {
        dirty[sectors->numbers[i]] = value;
    }
}

static int make_plan(struct qcow2 *q, struct plan *plan)
{
    int r = copy_cache(&q->refblocks, &plan->refblocks, &plan->refblock_count);

    if (r == 0) {
        r = copy_cache(&q->l2, &plan->l2, &plan->l2_count);
    }
    if (r == 0) {
        r = copy_sectors(q->l1, q->header.l1_size, q->l1_dirty, &plan->l1);
    }
    if (r == 0) {
        r = copy_sectors(q->reftable, q->reftable_entries, q->reftable_dirty, &plan->reftable);
    }
    if (r < 0) {
        return r;
    }
    plan->l1.table_offset = q->header.l1_offset;
    plan->reftable.table_offset = q->header.reftable_offset;
    set_dirty(&plan->l1, q->l1_dirty, 0);
    set_dirty(&plan->reftable, q->reftable_dirty, 0);
    mark_in_flush(plan->refblocks, plan->refblock_count);
    mark_in_flush(plan->l2, plan->l2_count);
    plan->freed = q->freed;
    q->freed = (struct qcow2_ranges){0};
    q->has_dirty_metadata = false;
    return 0;
}

static int write_parts(struct qcow2 *q, const struct part *parts, size_t count)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < count; i++) {
        r = block_file_pwrite(q->image.file, parts[i].data, parts[i].len, parts[i].offset);
    }
    return r;
}

static int write_sectors(struct qcow2 *q, const struct sectors *sectors)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < sectors->count; i++) {
        r = block_file_pwrite(q->image.file, sectors->data + i * SECTOR_BYTES, SECTOR_BYTES,
                              sectors->table_offset + sectors->numbers[i] * SECTOR_BYTES);
    }
    return r;
}

static int write_refcounts(struct qcow2 *q, struct plan *plan)
{
    int r = write_parts(q, plan->refblocks, plan->refblock_count);

    if (r < 0 || plan->reftable.count == 0) {
        return r;
    }
    r = qcow2_file_flush(q); /* new blocks, before the table names them */
    if (r < 0) {
        return r;
    }
    /* Under the lock, for another table may take its place; that one has all of this in it. */
    mutex_lock(&q->lock);
    if (q->header.reftable_offset == plan->reftable.table_offset) {
        r = write_sectors(q, &plan->reftable);
    }
    mutex_unlock(&q->lock);
    return r;
}

static int execute_plan(struct qcow2 *q, struct plan *plan)
{
    bool map_first = q->planted_bug == QCOW2_BUG_MAP_FIRST;
    int r = map_first ? 0 : write_refcounts(q, plan);

    if (r == 0 && !map_first) {
        r = qcow2_file_flush(q); /* refcounts, and the data that mappings will refer to */
    }
    if (r == 0 && plan->l2_count > 0) {
        r = write_parts(q, plan->l2, plan->l2_count);
        if (r == 0) {
            r = qcow2_file_flush(q);
        }
    }
    if (r == 0 && plan->l1.count > 0) {
        r = write_sectors(q, &plan->l1);
        if (r == 0) {
            r = qcow2_file_flush(q);
        }
    }
    if (r == 0 && map_first) {
        r = write_refcounts(q, plan);
        if (r == 0) {
            r = qcow2_file_flush(q);
        }
    }
    return r;
}

static void end_parts(struct part *parts, size_t count, bool is_written)
{
    for (size_t i = 0; i < count; i++) {
        parts[i].table->in_flush = false;
        if (!is_written) {
            parts[i].table->dirty |= parts[i].dirty;
        }
    }
}

static void end_plan(struct qcow2 *q, struct plan *plan, bool is_written)
{
    mutex_lock(&q->lock);
    end_parts(plan->refblocks, plan->refblock_count, is_written);
    end_parts(plan->l2, plan->l2_count, is_written);
    if (is_written) {
        qcow2_ranges_move(&q->freed_durable, &plan->freed, q->cluster_bits);
    } else {
        set_dirty(&plan->l1, q->l1_dirty, 1);
        if (q->header.reftable_offset == plan->reftable.table_offset) {
            set_dirty(&plan->reftable, q->reftable_dirty, 1);
        }
        qcow2_ranges_move(&q->freed, &plan->freed, q->cluster_bits);
        q->has_dirty_metadata = true;
    }
    mutex_unlock(&q->lock);
}

static int flush_once(struct qcow2 *q)
{
    struct plan plan = {0};
    int r = 0;

    if (__atomic_load_n(&q->is_poisoned, __ATOMIC_ACQUIRE)) {
        return -EIO;
    }
    mutex_lock(&q->lock);
    if (q->is_corrupt && q->has_dirty_metadata) {
        r = -EIO;
    } else if (q->has_dirty_metadata) {
        r = make_plan(q, &plan);
    }
    mutex_unlock(&q->lock);
    if (r == 0) {
        r = execute_plan(q, &plan);
        end_plan(q, &plan, r == 0);
    }
    plan_done(&plan);
    if (r == 0) {
        qcow2_release_freed(q);
    }
    return r;
}

/* One at a time; who waits is served by the first flush that began after it came. */
int qcow2_flush(struct qcow2 *q)
{
    uint64_t mine;
    int r;

    mutex_lock(&q->lock);
    mine = q->flush_started + 1;
    while (q->is_flushing) {
        (void)pthread_cond_wait(&q->cond, &q->lock.raw); /* cannot fail */
        if (q->flush_done >= mine) {
            r = q->flush_result;
            mutex_unlock(&q->lock);
            return r;
        }
    }
    q->is_flushing = true;
    q->flush_started++;
    mutex_unlock(&q->lock);

    r = flush_once(q);

    mutex_lock(&q->lock);
    q->flush_done = q->flush_started;
    q->flush_result = r;
    q->is_flushing = false;
    (void)pthread_cond_broadcast(&q->cond); /* cannot fail */
    mutex_unlock(&q->lock);
    return r;
}
