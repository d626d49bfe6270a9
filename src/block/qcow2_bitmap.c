/*
 * Persistent dirty bitmaps: in memory while the image is open for writing, in
 * the file when it is closed.
 *
 * While they are in memory, the file says of each that it is in use, so that
 * whoever finds it so after a crash knows that it lacks marks. At the end they
 * are written to new clusters, and the header names the new directory.
 */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ENTRY_BYTES 24u
#define FLAG_IN_USE 1u
#define FLAG_AUTO 2u
#define FLAG_EXTRA_COMPATIBLE 4u
#define TYPE_DIRTY 1u
#define MIN_GRANULARITY_BITS 9u
#define MAX_GRANULARITY_BITS 31u
#define MAX_NAME 1023u
#define MAX_BITS_BYTES (8u << 20) /* of one */
#define MAX_ALL_BYTES (24u << 20)
#define TABLE_ALL_ONES 1u

static void bitmap_done(struct qcow2_bitmap *b)
{
    free(b->name);
    free(b->data);
    free(b->extra);
}

void qcow2_bitmaps_done(struct qcow2 *q)
{
    for (uint32_t i = 0; q->bitmaps && i < q->bitmap_count; i++) {
        bitmap_done(&q->bitmaps[i]);
    }
    free(q->bitmaps);
    q->bitmaps = NULL;
    q->bitmap_count = 0;
    q->bitmaps_enabled = 0;
}

static uint64_t bits_for(const struct qcow2_bitmap *b, uint64_t size)
{
    return (size + (1ull << b->granularity_bits) - 1) >> b->granularity_bits;
}

static void count_enabled(struct qcow2 *q)
{
    uint32_t enabled = 0;

    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        enabled += q->bitmaps[i].flags_auto && q->bitmaps[i].data;
    }
    __atomic_store_n(&q->bitmaps_enabled, enabled, __ATOMIC_RELEASE);
}

void qcow2_bitmaps_mark_locked(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        struct qcow2_bitmap *b = &q->bitmaps[i];
        uint64_t first = offset >> b->granularity_bits;
        uint64_t last = (offset + len - 1) >> b->granularity_bits;

        if (!b->flags_auto || !b->data) {
            continue;
        }
        for (uint64_t bit = first; bit <= last && bit < b->bits; bit++) {
            b->data[bit / 8] |= (uint8_t)(1u << (bit % 8));
        }
    }
}

/* One entry at the start of raw: its length, or a negative errno. */
static int64_t parse_entry(const struct qcow2 *q, const uint8_t *raw, uint64_t len,
                           struct qcow2_bitmap *b)
{
    uint64_t name_len, total;
    uint32_t flags;

    if (len < ENTRY_BYTES) {
        return -EINVAL;
    }
    b->table_offset = load_be64(raw);
    b->table_entries = load_be32(raw + 8);
    flags = load_be32(raw + 12);
    b->type = raw[16];
    b->granularity_bits = raw[17];
    name_len = load_be16(raw + 18);
    b->extra_len = load_be32(raw + 20);
    total = ENTRY_BYTES + (uint64_t)b->extra_len + name_len;
    if (total > len || name_len == 0 || name_len > MAX_NAME || b->extra_len > 4096 ||
        b->type != TYPE_DIRTY || b->granularity_bits < MIN_GRANULARITY_BITS ||
        b->granularity_bits > MAX_GRANULARITY_BITS || b->table_entries > MAX_BITS_BYTES / 8 ||
        (b->table_offset & (q->cluster_bytes - 1)) != 0) {
        return -EINVAL;
    }
    b->flags_auto = (flags & FLAG_AUTO) != 0;
    b->is_inconsistent = flags & FLAG_IN_USE;
    /* Extra data that nobody here understands: only those who do may change the bitmap. */
    if (b->extra_len > 0) {
        return -ENOTSUP;
    }
    b->name = malloc(name_len + 1);
    if (!b->name) {
        return -ENOMEM;
    }
    memcpy(b->name, raw + ENTRY_BYTES, name_len);
    b->name[name_len] = 0;
    return (int64_t)((total + 7) & ~7ull);
}

static int read_cluster(struct qcow2 *q, uint64_t entry, uint8_t *data, uint64_t len)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if (offset == 0) {
        memset(data, entry & TABLE_ALL_ONES ? 0xff : 0, len);
        return 0;
    }
    if (offset & (q->cluster_bytes - 1)) {
        return -EINVAL;
    }
    return block_file_pread(q->image.file, data, len, offset);
}

static int load_bits(struct qcow2 *q, struct qcow2_bitmap *b)
{
    uint64_t *table = NULL;
    uint64_t bytes, at = 0;
    int r;

    b->bits = bits_for(b, q->header.size);
    bytes = (b->bits + 7) / 8;
    if (bytes > MAX_BITS_BYTES || b->table_entries != qcow2_clusters_of(q, bytes)) {
        return -EINVAL;
    }
    r = qcow2_l1_read(q, b->table_offset, b->table_entries, &table);
    if (r < 0) {
        return r;
    }
    b->data = calloc(1, bytes + 1);
    r = b->data ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < b->table_entries; i++) {
        uint64_t some = bytes - at < q->cluster_bytes ? bytes - at : q->cluster_bytes;

        r = read_cluster(q, table[i], b->data + at, some);
        at += some;
    }
    free(table);
    return r;
}

static int parse_directory(struct qcow2 *q, const uint8_t *raw, uint64_t len)
{
    uint64_t at = 0, bytes = 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < q->header.bitmap_count; i++) {
        struct qcow2_bitmap *b = &q->bitmaps[i];
        int64_t used = parse_entry(q, raw + at, len - at, b);

        q->bitmap_count = i + 1;
        if (used < 0) {
            return (int)used;
        }
        at += (uint64_t)used < len - at ? (uint64_t)used : len - at;
        if (!b->is_inconsistent) {
            r = load_bits(q, b);
            bytes += b->bits / 8;
        }
        if (r == 0 && bytes > MAX_ALL_BYTES) {
            r = -EFBIG;
        }
    }
    return r;
}

/* In a new place, everything in use or nothing; what it was is free afterwards. */
static int write_directory(struct qcow2 *q, bool in_use);

static bool some_need_mark(const struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        if (!q->bitmaps[i].is_inconsistent) {
            return true;
        }
    }
    return false;
}

int qcow2_bitmaps_load(struct qcow2 *q, struct err *err)
{
    uint64_t len = q->header.bitmap_directory_bytes;
    CLEANUP_FREE uint8_t *raw = NULL;
    int r;

    if (q->header.bitmap_count == 0) {
        return 0;
    }
    raw = malloc(len + 1);
    q->bitmaps = calloc(q->header.bitmap_count, sizeof(*q->bitmaps));
    r = raw && q->bitmaps ? 0 : -ENOMEM;
    if (r == 0) {
        r = block_file_pread(q->image.file, raw, len, q->header.bitmap_directory_offset);
    }
    if (r == 0) {
        r = parse_directory(q, raw, len);
    }
    if (r < 0 && q->image.is_read_only) {
        qcow2_bitmaps_done(q); /* the disk is fine without */
        return 0;
    }
    if (r == 0 && !q->image.is_read_only && !q->is_corrupt &&
        !(q->header.incompatible & QCOW2_INCOMPAT_CORRUPT) && some_need_mark(q)) {
        r = write_directory(q, true);
    }
    count_enabled(q);
    return r < 0 ? err_set_errno(err, r, "cannot use the image's dirty bitmaps") : 0;
}

static uint64_t entry_bytes(const struct qcow2_bitmap *b)
{
    return (ENTRY_BYTES + strlen(b->name) + 7) & ~7ull;
}

static void put_entry(uint8_t *raw, const struct qcow2_bitmap *b, bool in_use)
{
    uint32_t flags = b->flags_auto ? FLAG_AUTO : 0;

    flags |= in_use || b->is_inconsistent ? FLAG_IN_USE : 0;
    store_be64(raw, b->table_offset);
    store_be32(raw + 8, b->table_entries);
    store_be32(raw + 12, flags);
    raw[16] = TYPE_DIRTY;
    raw[17] = (uint8_t)b->granularity_bits;
    store_be16(raw + 18, (uint16_t)strlen(b->name));
    memcpy(raw + ENTRY_BYTES, b->name, strlen(b->name));
}

static int alloc_and_write(struct qcow2 *q, const uint8_t *raw, uint64_t bytes,
                           uint64_t *ret_offset)
{
    uint64_t clusters = qcow2_clusters_of(q, bytes);
    int r;

    mutex_lock(&q->lock);
    r = qcow2_alloc_exact_locked(q, clusters, ret_offset);
    mutex_unlock(&q->lock);
    return r == 0 ? block_file_pwrite(q->image.file, raw, clusters << q->cluster_bits, *ret_offset)
                  : r;
}

/* Refcounts of what was allocated are durable before the header names it. */
static int publish_directory(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    struct qcow2_header header;
    uint64_t old_offset = q->header.bitmap_directory_offset;
    uint64_t old_clusters = qcow2_clusters_of(q, q->header.bitmap_directory_bytes);
    int r = qcow2_flush(q);

    mutex_lock(&q->lock);
    header = q->header;
    header.bitmap_count = q->bitmap_count;
    header.bitmap_directory_offset = offset;
    header.bitmap_directory_bytes = bytes;
    header.autoclear = bytes > 0 ? QCOW2_AUTOCLEAR_BITMAPS : 0;
    if (r == 0) {
        r = qcow2_header_write(q->image.file, &header);
    }
    if (r == 0) {
        r = qcow2_file_flush(q);
    }
    if (r == 0) {
        q->header = header;
        if (old_offset != 0) {
            qcow2_unalloc_locked(q, old_offset, old_clusters);
        }
    }
    mutex_unlock(&q->lock);
    return r;
}

static int write_directory(struct qcow2 *q, bool in_use)
{
    CLEANUP_FREE uint8_t *raw = NULL;
    uint64_t bytes = 0, at = 0, offset = 0;
    int r = 0;

    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        bytes += entry_bytes(&q->bitmaps[i]);
    }
    if (bytes > 0) {
        raw = calloc(qcow2_clusters_of(q, bytes), q->cluster_bytes);
        r = raw ? 0 : -ENOMEM;
        for (uint32_t i = 0; r == 0 && i < q->bitmap_count; i++) {
            put_entry(raw + at, &q->bitmaps[i], in_use);
            at += entry_bytes(&q->bitmaps[i]);
        }
        if (r == 0) {
            r = alloc_and_write(q, raw, bytes, &offset);
        }
    }
    return r == 0 ? publish_directory(q, offset, bytes) : r;
}

/* The clusters that a bitmap has in the file, when nothing names them any more. */
static void free_bits(struct qcow2 *q, uint64_t table_offset, uint32_t entries)
{
    uint64_t *table = NULL;

    if (entries == 0 || qcow2_l1_read(q, table_offset, entries, &table) < 0) {
        return; /* leaked, which harms nothing */
    }
    mutex_lock(&q->lock);
    for (uint32_t i = 0; i < entries; i++) {
        if (table[i] & QCOW2_OFFSET_MASK) {
            qcow2_unalloc_locked(q, table[i] & QCOW2_OFFSET_MASK, 1);
        }
    }
    qcow2_unalloc_locked(q, table_offset, qcow2_clusters_of(q, entries * 8ull));
    mutex_unlock(&q->lock);
    free(table);
}

static bool is_all_zero(const uint8_t *data, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++) {
        if (data[i] != 0) {
            return false;
        }
    }
    return true;
}

/* Bits to new clusters, none for zeroes. */
static int store_bits(struct qcow2 *q, struct qcow2_bitmap *b)
{
    uint64_t bytes = (b->bits + 7) / 8;
    uint64_t entries = qcow2_clusters_of(q, bytes);
    CLEANUP_FREE uint8_t *table = calloc(qcow2_clusters_of(q, entries * 8), q->cluster_bytes);
    CLEANUP_FREE uint8_t *cluster = malloc(q->cluster_bytes);
    int r = table && cluster ? 0 : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < entries; i++) {
        uint64_t at = i << q->cluster_bits;
        uint64_t some = bytes - at < q->cluster_bytes ? bytes - at : q->cluster_bytes;
        uint64_t offset = 0;

        if (is_all_zero(b->data + at, some)) {
            continue;
        }
        memset(cluster, 0, q->cluster_bytes);
        memcpy(cluster, b->data + at, some);
        r = alloc_and_write(q, cluster, q->cluster_bytes, &offset);
        store_be64(table + i * 8, offset);
    }
    if (r == 0) {
        r = alloc_and_write(q, table, entries * 8, &b->table_offset);
        b->table_entries = (uint32_t)entries;
    }
    return r;
}

int qcow2_bitmaps_store(struct qcow2 *q)
{
    struct place {
        uint64_t offset;
        uint32_t entries;
    } *old = calloc((size_t)q->bitmap_count + 1, sizeof(*old));
    int r = old ? 0 : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i < q->bitmap_count; i++) {
        struct qcow2_bitmap *b = &q->bitmaps[i];

        if (!b->is_inconsistent) {
            old[i] = (struct place){b->table_offset, b->table_entries};
            r = store_bits(q, b);
        }
    }
    if (r == 0 && q->bitmap_count > 0 && some_need_mark(q)) {
        r = write_directory(q, false);
        for (uint32_t i = 0; r == 0 && i < q->bitmap_count; i++) {
            free_bits(q, old[i].offset, old[i].entries);
        }
    }
    free(old);
    return r;
}

int qcow2_bitmaps_resize(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        struct qcow2_bitmap *b = &q->bitmaps[i];
        uint64_t bits = bits_for(b, q->header.size);
        uint8_t *data;

        if (b->is_inconsistent || bits == b->bits) {
            continue;
        }
        data = calloc(1, bits / 8 + 2);
        if (!data || bits / 8 > MAX_BITS_BYTES) {
            free(data);
            return -ENOMEM;
        }
        memcpy(data, b->data, ((bits < b->bits ? bits : b->bits) + 7) / 8);
        /* What is new has changed; bits behind the end stay clear. */
        for (uint64_t bit = bits < b->bits ? bits : b->bits; bit < (bits + 7) / 8 * 8; bit++) {
            data[bit / 8] &= (uint8_t) ~(1u << (bit % 8));
        }
        for (uint64_t bit = b->bits; bit < bits; bit++) {
            data[bit / 8] |= (uint8_t)(1u << (bit % 8));
        }
        mutex_lock(&q->lock);
        free(b->data);
        b->data = data;
        b->bits = bits;
        mutex_unlock(&q->lock);
    }
    return 0;
}

static struct qcow2_bitmap *find(struct qcow2 *q, const char *name, struct err *err)
{
    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        if (strcmp(q->bitmaps[i].name, name) == 0) {
            return &q->bitmaps[i];
        }
    }
    (void)err_set(err, -ENOENT, "the image has no bitmap '%s'", name);
    return NULL;
}

static int add(struct qcow2 *q, const char *name, uint32_t granularity_bits, struct err *err)
{
    struct qcow2_bitmap *grown;
    struct qcow2_bitmap b = {.granularity_bits = granularity_bits, .flags_auto = 1};
    int r;

    for (uint32_t i = 0; i < q->bitmap_count; i++) {
        if (strcmp(q->bitmaps[i].name, name) == 0) {
            return err_set(err, -EEXIST, "there is a bitmap '%s' already", name);
        }
    }
    b.bits = bits_for(&b, q->header.size);
    if (q->bitmap_count >= QCOW2_MAX_BITMAPS || b.bits / 8 > MAX_BITS_BYTES) {
        return err_set(err, -ENOSPC, "too many bitmaps, or too fine a granularity");
    }
    b.name = strdup(name);
    b.data = calloc(1, b.bits / 8 + 2);
    grown = realloc(q->bitmaps, (q->bitmap_count + 1) * sizeof(*grown));
    if (grown) {
        q->bitmaps = grown;
    }
    r = b.name && b.data && grown ? store_bits(q, &b) : -ENOMEM;
    if (r < 0) {
        bitmap_done(&b);
        return err_set_errno(err, r, "cannot add bitmap '%s'", name);
    }
    q->bitmaps[q->bitmap_count++] = b;
    r = write_directory(q, true);
    count_enabled(q);
    return r < 0 ? err_set_errno(err, r, "cannot write the bitmap directory") : 0;
}

int qcow2_bitmap_add(struct block_image *image, const char *name, uint32_t granularity_bytes,
                     struct err *err)
{
    struct qcow2 *q = qcow2_of(image, true, err);
    uint32_t bits = (uint32_t)__builtin_ctz(granularity_bytes | 0x80000000u);
    int r;

    if (!q) {
        return image->format == BLOCK_FORMAT_QCOW2 ? -EROFS : -ENOTSUP;
    }
    if (q->header.version < 3) {
        return err_set(err, -ENOTSUP, "an image of version 2 cannot have bitmaps");
    }
    if (granularity_bytes == 0 || (granularity_bytes & (granularity_bytes - 1)) != 0 ||
        bits < MIN_GRANULARITY_BITS || bits > MAX_GRANULARITY_BITS || name[0] == 0 ||
        strlen(name) > MAX_NAME) {
        return err_set(err, -EINVAL,
                       "a bitmap has a name of 1 to 1023 bytes and a granularity that is a power "
                       "of two from 512");
    }
    qcow2_exclusive_begin(q);
    r = add(q, name, bits, err);
    qcow2_exclusive_end(q);
    return r;
}

int qcow2_bitmap_remove(struct block_image *image, const char *name, struct err *err)
{
    struct qcow2 *q = qcow2_of(image, true, err);
    struct qcow2_bitmap *b, gone;
    int r = -ENOENT;

    if (!q) {
        return image->format == BLOCK_FORMAT_QCOW2 ? -EROFS : -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    b = find(q, name, err);
    if (b) {
        gone = *b;
        *b = q->bitmaps[--q->bitmap_count];
        r = write_directory(q, true);
        if (r == 0) {
            free_bits(q, gone.table_offset, gone.table_entries);
        } else {
            (void)err_set_errno(err, r, "cannot write the bitmap directory");
        }
        bitmap_done(&gone);
        count_enabled(q);
    }
    qcow2_exclusive_end(q);
    return r;
}

static int change(struct block_image *image, const char *name, bool clear, bool is_enabled,
                  struct err *err)
{
    struct qcow2 *q = qcow2_of(image, true, err);
    struct qcow2_bitmap *b;
    int r = 0;

    if (!q) {
        return image->format == BLOCK_FORMAT_QCOW2 ? -EROFS : -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    b = find(q, name, err);
    if (!b) {
        r = -ENOENT;
    } else if (b->is_inconsistent) {
        r = err_set(err, -EUCLEAN, "bitmap '%s' lacks marks since a crash; remove it", name);
    } else if (clear) {
        memset(b->data, 0, (b->bits + 7) / 8);
    } else {
        b->flags_auto = is_enabled;
    }
    count_enabled(q);
    qcow2_exclusive_end(q);
    return r;
}

int qcow2_bitmap_set_enabled(struct block_image *image, const char *name, bool is_enabled,
                             struct err *err)
{
    return change(image, name, false, is_enabled, err);
}

int qcow2_bitmap_clear(struct block_image *image, const char *name, struct err *err)
{
    return change(image, name, true, false, err);
}

static uint64_t dirty_bytes(const struct qcow2 *q, const struct qcow2_bitmap *b)
{
    uint64_t bytes = 0;

    for (uint64_t bit = 0; b->data && bit < b->bits; bit++) {
        uint64_t at = bit << b->granularity_bits;
        uint64_t left = q->header.size - at;

        if (b->data[bit / 8] >> (bit % 8) & 1) {
            bytes += left < 1ull << b->granularity_bits ? left : 1ull << b->granularity_bits;
        }
    }
    return bytes;
}

int qcow2_bitmap_list(struct block_image *image, struct qcow2_bitmap_info **ret_infos,
                      unsigned *ret_count, struct err *err)
{
    struct qcow2 *q = qcow2_of(image, false, err);
    struct qcow2_bitmap_info *infos;

    if (!q) {
        return -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    infos = calloc((size_t)q->bitmap_count + 1, sizeof(*infos));
    for (uint32_t i = 0; infos && i < q->bitmap_count; i++) {
        const struct qcow2_bitmap *b = &q->bitmaps[i];

        (void)snprintf(infos[i].name, sizeof(infos[i].name), "%s", b->name);
        infos[i].granularity_bytes = 1u << b->granularity_bits;
        infos[i].is_enabled = b->flags_auto;
        infos[i].is_inconsistent = b->is_inconsistent;
        infos[i].dirty_bytes = dirty_bytes(q, b);
    }
    if (infos) {
        *ret_infos = infos;
        *ret_count = q->bitmap_count;
    }
    qcow2_exclusive_end(q);
    return infos ? 0 : err_set(err, -ENOMEM, "no memory for the list of bitmaps");
}

int qcow2_bitmap_next(struct block_image *image, const char *name, uint64_t offset,
                      uint64_t *ret_offset, uint64_t *ret_len, struct err *err)
{
    struct qcow2 *q = qcow2_of(image, false, err);
    struct qcow2_bitmap *b;
    uint64_t bit, end;
    int r = 0;

    if (!q) {
        return -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    b = find(q, name, err);
    if (!b || !b->data) {
        r = b ? err_set(err, -EUCLEAN, "bitmap '%s' lacks marks since a crash", name) : -ENOENT;
    } else {
        bit = offset >> b->granularity_bits;
        while (bit < b->bits && !(b->data[bit / 8] >> (bit % 8) & 1)) {
            bit++;
        }
        end = bit;
        while (end < b->bits && b->data[end / 8] >> (end % 8) & 1) {
            end++;
        }
        *ret_offset = bit << b->granularity_bits;
        *ret_offset = *ret_offset > offset ? *ret_offset : offset;
        *ret_len = end > bit ? (end << b->granularity_bits) - *ret_offset : 0;
        if (*ret_len > 0 && *ret_offset + *ret_len > q->header.size) {
            *ret_len = q->header.size - *ret_offset;
        }
    }
    qcow2_exclusive_end(q);
    return r;
}
