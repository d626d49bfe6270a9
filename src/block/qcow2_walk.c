/*
 * Every reference of the file, counted: what refcounts should be.
 *
 * Counts are kept sparse, in pages, because clusters in use may lie far apart;
 * their memory is bounded by what the file really holds.
 */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PAGE_BITS 14u
#define PAGE_COUNTS (1u << PAGE_BITS)
#define MAX_CLUSTERS (1ull << 32)
#define BASE_BYTES (32ull << 20)

struct qcow2_refs {
    uint32_t **pages;
    uint64_t page_count;
    uint64_t left_bytes;
    uint64_t end;
};

struct qcow2_refs *qcow2_refs_create(uint64_t max_clusters, uint64_t max_bytes)
{
    struct qcow2_refs *refs = calloc(1, sizeof(*refs));

    if (!refs) {
        return NULL;
    }
    refs->page_count = (max_clusters >> PAGE_BITS) + 1;
    refs->left_bytes = max_bytes;
    refs->pages = calloc(refs->page_count, sizeof(*refs->pages));
    if (!refs->pages) {
        free(refs);
        return NULL;
    }
    return refs;
}

void qcow2_refs_destroy(struct qcow2_refs *refs)
{
    if (refs) {
        for (uint64_t i = 0; i < refs->page_count; i++) {
            free(refs->pages[i]);
        }
        free(refs->pages);
        free(refs);
    }
}

uint32_t qcow2_refs_get(const struct qcow2_refs *refs, uint64_t cluster)
{
    uint64_t page = cluster >> PAGE_BITS;

    if (page >= refs->page_count || !refs->pages[page]) {
        return 0;
    }
    return refs->pages[page][cluster & (PAGE_COUNTS - 1)];
}

uint64_t qcow2_refs_end(const struct qcow2_refs *refs)
{
    return refs->end;
}

int qcow2_refs_add(struct qcow2_refs *refs, uint64_t cluster, uint32_t count)
{
    uint64_t page = cluster >> PAGE_BITS;
    uint32_t *value;

    if (page >= refs->page_count) {
        return -EFBIG;
    }
    if (!refs->pages[page]) {
        if (refs->left_bytes < PAGE_COUNTS * sizeof(uint32_t)) {
            return -EFBIG;
        }
        refs->pages[page] = calloc(PAGE_COUNTS, sizeof(uint32_t));
        if (!refs->pages[page]) {
            return -ENOMEM;
        }
        refs->left_bytes -= PAGE_COUNTS * sizeof(uint32_t);
    }
    value = &refs->pages[page][cluster & (PAGE_COUNTS - 1)];
    if (*value > UINT32_MAX - count) {
        return -ERANGE;
    }
    *value += count;
    if (refs->end <= cluster) {
        refs->end = cluster + 1;
    }
    return 0;
}

void qcow2_refs_drop(struct qcow2_refs *refs, uint64_t cluster)
{
    if (qcow2_refs_get(refs, cluster) > 0) {
        refs->pages[cluster >> PAGE_BITS][cluster & (PAGE_COUNTS - 1)]--;
    }
}

int qcow2_walk_bounds(struct qcow2 *q, uint64_t *ret_clusters, uint64_t *ret_bytes)
{
    struct block_file *file = q->image.file;
    uint64_t bytes = 0;
    uint64_t spent = 0;
    struct stat st;
    int r = file->ops->get_size(file, &bytes);

    if (r < 0) {
        return r;
    }
    bytes = bytes > q->high_water ? bytes : q->high_water;
    *ret_clusters = qcow2_clusters_of(q, bytes) + 1;
    if (*ret_clusters > MAX_CLUSTERS) {
        return -EFBIG;
    }
    /* A file that is mostly holes cannot ask for memory without end. */
    if (file->is_device) {
        spent = bytes;
    } else if (file->fd >= 0 && fstat(file->fd, &st) == 0) {
        spent = (uint64_t)st.st_blocks * 512;
    }
    *ret_bytes = BASE_BYTES + spent / 64;
    return 0;
}

void qcow2_walk_report(struct qcow2_walk *walk, const char *fmt, ...)
{
    char text[256];
    va_list args;

    if (walk->report) {
        va_start(args, fmt);
        (void)vsnprintf(text, sizeof(text), fmt, args);
        va_end(args);
        walk->report(walk->opaque, text);
    }
}

static int count_bytes(struct qcow2 *q, struct qcow2_walk *walk, uint64_t offset, uint64_t len,
                       const char *what)
{
    uint64_t first = offset >> q->cluster_bits;
    uint64_t last;
    int r = 0;

    if (len == 0) {
        return 0;
    }
    if (offset > walk->file_end || len > walk->file_end - offset) {
        walk->corruptions++;
        qcow2_walk_report(walk, "%s at 0x%" PRIx64 " lies beyond the end of the file", what,
                          offset);
        return 0;
    }
    last = (offset + len - 1) >> q->cluster_bits;
    for (uint64_t i = first; r == 0 && i <= last; i++) {
        r = qcow2_refs_add(walk->refs, i, 1);
    }
    if (walk->data_end < (last + 1) << q->cluster_bits) {
        walk->data_end = (last + 1) << q->cluster_bits;
    }
    return r;
}

static int count_table(struct qcow2 *q, struct qcow2_walk *walk, uint64_t offset, uint64_t len,
                       const char *what)
{
    if (offset & (q->cluster_bytes - 1)) {
        walk->corruptions++;
        qcow2_walk_report(walk, "%s at 0x%" PRIx64 " is not aligned to a cluster", what, offset);
        return 0;
    }
    return count_bytes(q, walk, offset, len, what);
}

static int count_entry(struct qcow2 *q, struct qcow2_walk *walk, uint64_t entry, uint64_t bits,
                       bool is_active)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_COMPRESSED) {
        uint64_t len = 0;

        if (entry & QCOW2_COPIED || bits != 0) {
            walk->corruptions++;
            qcow2_walk_report(
                walk, "a compressed cluster has flags that it cannot have: 0x%" PRIx64, entry);
        }
        qcow2_l2_packed(q, entry, &offset, &len);
        /* The last sector of the file need not be whole. */
        if (offset < walk->file_end && len > walk->file_end - offset) {
            len = walk->file_end - offset;
        }
        walk->allocated += is_active;
        walk->packed += is_active;
        walk->fragmented += is_active;
        return count_bytes(q, walk, offset, len, "a compressed cluster");
    }
    if ((bits & (bits >> 32) & 0xffffffffu) != 0 || (offset == 0 && (bits & 0xffffffffu) != 0)) {
        walk->corruptions++;
        qcow2_walk_report(walk, "the subclusters of an L2 entry make no sense: 0x%" PRIx64, bits);
    }
    if (offset == 0) {
        return 0;
    }
    if (is_active) {
        walk->allocated++;
        walk->fragmented += walk->next_host != 0 && walk->next_host != offset;
        walk->next_host = offset + q->cluster_bytes;
    }
    return count_table(q, walk, offset, q->cluster_bytes, "a data cluster");
}

static int walk_l2(struct qcow2 *q, struct qcow2_walk *walk, uint64_t offset, uint8_t *raw,
                   bool is_active)
{
    int r = block_file_pread(q->image.file, raw, q->cluster_bytes, offset);

    if (r < 0) {
        walk->errors++;
        qcow2_walk_report(walk, "cannot read the L2 table at 0x%" PRIx64 ": %s", offset,
                          strerror(-r));
        return 0;
    }
    for (uint32_t i = 0; r == 0 && i < q->cluster_bytes; i += q->l2_entry_bytes) {
        uint64_t entry = load_be64(raw + i);
        uint64_t bits = q->l2_entry_bytes == 16 ? load_be64(raw + i + 8) : 0;

        if ((entry | bits) != 0) {
            r = count_entry(q, walk, entry, bits, is_active);
        }
    }
    return r;
}

static int walk_l1(struct qcow2 *q, struct qcow2_walk *walk, uint64_t l1_offset, const uint64_t *l1,
                   uint32_t entries, bool is_active)
{
    CLEANUP_FREE uint8_t *raw = malloc(q->cluster_bytes);
    int r = raw ? 0 : -ENOMEM;

    if (r == 0 && l1_offset != 0) {
        r = count_table(q, walk, l1_offset, (uint64_t)entries * 8, "an L1 table");
    }
    for (uint32_t i = 0; r == 0 && i < entries; i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET_MASK;

        if (offset == 0) {
            continue;
        }
        r = count_table(q, walk, offset, q->cluster_bytes, "an L2 table");
        if (r == 0 && (offset & (q->cluster_bytes - 1)) == 0 && offset < walk->file_end) {
            r = walk_l2(q, walk, offset, raw, is_active);
        }
    }
    return r;
}

static int walk_snapshots(struct qcow2 *q, const struct qcow2_roots *roots, struct qcow2_walk *walk)
{
    int r =
        count_table(q, walk, roots->snapshots_offset, roots->snapshots_bytes, "the snapshot table");

    for (uint32_t i = 0; r == 0 && i < roots->snapshot_count; i++) {
        const struct qcow2_snapshot *snapshot = &roots->snapshots[i];
        uint64_t *l1 = NULL;
        int read = qcow2_l1_read(q, snapshot->l1_offset, snapshot->l1_size, &l1);

        if (read < 0) {
            walk->errors++;
            qcow2_walk_report(walk, "cannot read the L1 table of snapshot '%s'", snapshot->name);
            continue;
        }
        r = walk_l1(q, walk, snapshot->l1_offset, l1, snapshot->l1_size, false);
        free(l1);
    }
    return r;
}

static int walk_bitmap_table(struct qcow2 *q, struct qcow2_walk *walk, uint64_t offset,
                             uint32_t entries)
{
    CLEANUP_FREE uint8_t *raw = NULL;
    int r = count_table(q, walk, offset, (uint64_t)entries * 8, "a bitmap table");

    if (r < 0 || (uint64_t)entries * 8 > QCOW2_MAX_L1_BYTES) {
        return r;
    }
    raw = malloc((size_t)entries * 8 + 1);
    if (!raw) {
        return -ENOMEM;
    }
    if (block_file_pread(q->image.file, raw, (uint64_t)entries * 8, offset) < 0) {
        walk->errors++;
        return 0;
    }
    for (uint32_t i = 0; r == 0 && i < entries; i++) {
        uint64_t cluster = load_be64(raw + i * 8ull) & QCOW2_OFFSET_MASK;

        if (cluster != 0) {
            r = count_table(q, walk, cluster, q->cluster_bytes, "a bitmap's cluster");
        }
    }
    return r;
}

static int walk_bitmaps(struct qcow2 *q, struct qcow2_walk *walk)
{
    uint64_t bytes = q->header.bitmap_directory_bytes;
    CLEANUP_FREE uint8_t *raw = NULL;
    uint64_t at = 0;
    int r;

    if (q->header.bitmap_count == 0) {
        return 0;
    }
    r = count_table(q, walk, q->header.bitmap_directory_offset, bytes, "the bitmap directory");
    raw = malloc(bytes + 1);
    if (r < 0 || !raw) {
        return r < 0 ? r : -ENOMEM;
    }
    if (block_file_pread(q->image.file, raw, bytes, q->header.bitmap_directory_offset) < 0) {
        walk->errors++;
        return 0;
    }
    for (uint32_t i = 0; r == 0 && i < q->header.bitmap_count && bytes - at >= 24; i++) {
        uint64_t entry_bytes =
            (24ull + load_be16(raw + at + 18) + load_be32(raw + at + 20) + 7) & ~7ull;

        r = walk_bitmap_table(q, walk, load_be64(raw + at), load_be32(raw + at + 8));
        if (entry_bytes > bytes - at) {
            walk->corruptions++;
            qcow2_walk_report(walk, "the bitmap directory is cut off");
            break;
        }
        at += entry_bytes;
    }
    return r;
}

static int walk_refcounts(struct qcow2 *q, struct qcow2_walk *walk)
{
    int r =
        count_table(q, walk, q->header.reftable_offset,
                    (uint64_t)q->header.reftable_clusters << q->cluster_bits, "the refcount table");

    for (uint32_t i = 0; r == 0 && i < q->reftable_entries; i++) {
        uint64_t offset = q->reftable[i] & ~511ull;

        if (offset != 0) {
            r = count_table(q, walk, offset, q->cluster_bytes, "a refcount block");
        }
    }
    return r;
}

int qcow2_walk_all(struct qcow2 *q, const struct qcow2_roots *roots, struct qcow2_walk *walk)
{
    int r = count_bytes(q, walk, 0, 1, "the header");

    if (r == 0) {
        r = walk_l1(q, walk, roots->l1_offset, roots->l1, roots->l1_size, true);
    }
    if (r == 0 && roots->snapshot_count > 0) {
        r = walk_snapshots(q, roots, walk);
    }
    if (r == 0) {
        r = walk_bitmaps(q, walk);
    }
    if (r == 0 && !roots->skip_refcounts) {
        r = walk_refcounts(q, walk);
    }
    return r;
}
