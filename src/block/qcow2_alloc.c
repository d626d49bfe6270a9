/* Finding free clusters, and letting clusters go without anything seeing it too early. */
#include "base/log.h"
#include "block/qcow2_int.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define FILTER_BITS (1u << 19)
#define MAX_CLUSTER (1ull << 52)

static uint64_t filter_bit(const struct qcow2 *q, uint64_t offset)
{
    return ((offset >> q->cluster_bits) * 0x9e3779b97f4a7c15ull >> 32) % FILTER_BITS;
}

void qcow2_filter_add(struct qcow2 *q, uint64_t offset)
{
    uint64_t bit = filter_bit(q, offset);

    q->filter[bit / 64] |= 1ull << (bit % 64);
}

static bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a_len > 0 && b_len > 0 && a < b + b_len && b < a + a_len;
}

static bool is_table_cluster(const struct qcow2 *q, uint64_t offset)
{
    uint64_t bit = filter_bit(q, offset);

    if (!(q->filter[bit / 64] & (1ull << (bit % 64)))) {
        return false;
    }
    for (uint32_t i = 0; i < q->reftable_entries; i++) {
        if ((q->reftable[i] & ~511ull) == offset) {
            return true;
        }
    }
    for (uint32_t i = 0; i < q->header.l1_size; i++) {
        if ((q->l1[i] & QCOW2_OFFSET_MASK) == offset) {
            return true;
        }
    }
    return false;
}

bool qcow2_is_metadata_locked(const struct qcow2 *q, uint64_t offset, uint64_t len)
{
    const struct qcow2_header *h = &q->header;
    uint64_t mask = q->cluster_bytes - 1;
    uint64_t end = offset + len;

    if (overlaps(offset, len, 0, q->cluster_bytes) ||
        overlaps(offset, len, h->l1_offset, (uint64_t)h->l1_size * 8) ||
        overlaps(offset, len, h->reftable_offset,
                 (uint64_t)h->reftable_clusters << h->cluster_bits) ||
        (h->snapshot_count > 0 && overlaps(offset, len, h->snapshots_offset, q->cluster_bytes)) ||
        overlaps(offset, len, h->bitmap_directory_offset, h->bitmap_directory_bytes)) {
        return true;
    }
    for (uint64_t at = offset & ~mask; at < end; at += q->cluster_bytes) {
        if (is_table_cluster(q, at)) {
            return true;
        }
    }
    return false;
}

#undef qcow2_set_corrupt_locked /* what an analyzer is told of it is not what it is */
int qcow2_set_corrupt_locked(struct qcow2 *q, const char *what, uint64_t where)
{
    if (!q->is_corrupt) {
        log_error("a qcow2 image is corrupt: %s (0x%" PRIx64 "); it takes no more writes", what,
                  where);
        q->is_corrupt = true;
        if (!q->image.is_read_only && q->header.version >= 3) {
            q->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
            (void)qcow2_header_write(q->image.file, &q->header); /* the error below says more */
        }
    }
    return -EIO;
}

/* Finds the next free cluster at or after from. */
static int find_free(struct qcow2 *q, uint64_t from, uint64_t *ret_cluster)
{
    uint64_t cluster = from;
    uint64_t count = 0;
    int r;

    for (;;) {
        if (cluster >= MAX_CLUSTER) {
            return -EFBIG;
        }
        r = qcow2_refcount_get_locked(q, cluster, &count);
        if (r < 0) {
            return r;
        }
        if (count == 0) {
            *ret_cluster = cluster;
            return 0;
        }
        cluster++;
    }
}

static int take_run(struct qcow2 *q, uint64_t first, uint64_t want, uint64_t *ret_got)
{
    uint64_t got = 0;
    uint64_t count = 0;
    int r = 0;

    while (got < want) {
        r = qcow2_refcount_get_locked(q, first + got, &count);
        if (r < 0 || count != 0) {
            break;
        }
        r = qcow2_refcount_cover_locked(q, first + got);
        if (r == 0) { /* a new block may have taken the cluster */
            r = qcow2_refcount_get_locked(q, first + got, &count);
        }
        if (r < 0 || count != 0) {
            break;
        }
        if (qcow2_is_metadata_locked(q, (first + got) << q->cluster_bits, q->cluster_bytes)) {
            r = qcow2_set_corrupt_locked(q, "metadata has no refcount",
                                         (first + got) << q->cluster_bits);
            break;
        }
        r = qcow2_refcount_change_locked(q, first + got, 1);
        if (r < 0) {
            break;
        }
        got++;
    }
    if (r < 0) {
        qcow2_unalloc_locked(q, first << q->cluster_bits, got);
        return r;
    }
    *ret_got = got;
    return 0;
}

static bool take_fresh(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    bool is_fresh = !q->is_device && offset >= q->high_water;
    uint64_t end = offset + (clusters << q->cluster_bits);

    if (q->high_water < end) {
        q->high_water = end;
    }
    return is_fresh;
}

int qcow2_alloc_locked(struct qcow2 *q, uint64_t want, uint64_t *ret_offset, uint64_t *ret_got,
                       bool *ret_is_fresh)
{
    uint64_t first = q->free_hint;
    uint64_t got = 0;
    int r;

    do {
        r = find_free(q, first, &first);
        if (r < 0) {
            return r;
        }
        r = take_run(q, first, want, &got);
        if (r < 0) {
            return r;
        }
    } while (got == 0); /* the cluster went to a refcount block */
    q->free_hint = first + got;
    *ret_offset = first << q->cluster_bits;
    *ret_got = got;
    *ret_is_fresh = take_fresh(q, *ret_offset, got);
    return 0;
}

int qcow2_alloc_exact_locked(struct qcow2 *q, uint64_t clusters, uint64_t *ret_offset)
{
    uint64_t first = q->free_hint;
    uint64_t got = 0;
    int r;

    for (;;) {
        r = find_free(q, first, &first);
        if (r == 0) {
            r = take_run(q, first, clusters, &got);
        }
        if (r < 0) {
            return r;
        }
        if (got == clusters) {
            break;
        }
        qcow2_unalloc_locked(q, first << q->cluster_bits, got);
        first += got + 1;
    }
    *ret_offset = first << q->cluster_bits;
    (void)take_fresh(q, *ret_offset, clusters); /* tables are written whole */
    return 0;
}

void qcow2_unalloc_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    for (uint64_t i = 0; i < clusters; i++) {
        /* A failure leaves a leak, which harms nothing. */
        (void)qcow2_refcount_change_locked(q, (offset >> q->cluster_bits) + i, -1);
    }
}

void qcow2_ranges_add(struct qcow2_ranges *ranges, uint64_t offset, uint64_t clusters,
                      uint32_t cluster_bits)
{
    if (ranges->count > 0) {
        struct qcow2_range *last = &ranges->items[ranges->count - 1];

        if (last->offset + (last->clusters << cluster_bits) == offset) {
            last->clusters += clusters;
            return;
        }
    }
    if (ranges->count == ranges->capacity) {
        size_t capacity = ranges->capacity ? ranges->capacity * 2 : 64;
        struct qcow2_range *items = realloc(ranges->items, capacity * sizeof(*items));

        if (!items) {
            return; /* leaked in the file, which harms nothing */
        }
        ranges->items = items;
        ranges->capacity = capacity;
    }
    ranges->items[ranges->count++] = (struct qcow2_range){offset, clusters};
}

void qcow2_ranges_move(struct qcow2_ranges *to, struct qcow2_ranges *from, uint32_t cluster_bits)
{
    for (size_t i = 0; i < from->count; i++) {
        qcow2_ranges_add(to, from->items[i].offset, from->items[i].clusters, cluster_bits);
    }
    from->count = 0;
}

void qcow2_free_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    if (q->planted_bug == QCOW2_BUG_REUSE_EARLY) {
        qcow2_unalloc_locked(q, offset, clusters);
        return;
    }
    qcow2_ranges_add(&q->freed, offset, clusters, q->cluster_bits);
    q->has_dirty_metadata = true;
}

/* Gives the space of what nobody else refers to back to the host, while it cannot be reused. */
static void punch_last_references(struct qcow2 *q, const struct qcow2_range *range)
{
    uint64_t first = range->offset >> q->cluster_bits;
    uint64_t begin = 0, run = 0;

    for (uint64_t i = 0; i <= range->clusters; i++) {
        uint64_t count = 0;
        int r = 0;

        if (i < range->clusters) {
            mutex_lock(&q->lock);
            r = qcow2_refcount_get_locked(q, first + i, &count);
            mutex_unlock(&q->lock);
        }
        if (r == 0 && count == 1) {
            begin = run == 0 ? first + i : begin;
            run++;
        } else if (run > 0) {
            /* Only a hint to the host. */
            (void)q->image.file->ops->discard(q->image.file, begin << q->cluster_bits,
                                              run << q->cluster_bits);
            run = 0;
        }
    }
}

void qcow2_release_freed(struct qcow2 *q)
{
    struct qcow2_ranges ranges;

    mutex_lock(&q->lock);
    if (!q->is_grace && q->freed_durable.count > 0) {
        /* Requests that begin from here on cannot have seen the old mapping. */
        qcow2_ranges_move(&q->freed_grace, &q->freed_durable, q->cluster_bits);
        q->is_grace = true;
        q->grace_epoch = q->epoch;
        q->epoch ^= 1;
    }
    if (!q->is_grace || __atomic_load_n(&q->active[q->grace_epoch], __ATOMIC_SEQ_CST) > 0) {
        mutex_unlock(&q->lock);
        return;
    }
    ranges = q->freed_grace;
    q->freed_grace = (struct qcow2_ranges){0};
    q->is_grace = false;
    mutex_unlock(&q->lock);

    for (size_t i = 0; i < ranges.count; i++) {
        punch_last_references(q, &ranges.items[i]);
        mutex_lock(&q->lock);
        qcow2_unalloc_locked(q, ranges.items[i].offset, ranges.items[i].clusters);
        mutex_unlock(&q->lock);
    }
    free(ranges.items);
}
