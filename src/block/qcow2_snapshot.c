/* Internal snapshots: L1 tables under a name, which share all the rest. */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define ENTRY_BYTES 40u
#define EXTRA_BYTES 16u /* what version 3 asks for: long VM state size, disk size */
#define MAX_EXTRA_BYTES 1024u
#define MAX_L1_SIZE (QCOW2_MAX_L1_BYTES / 8)

void qcow2_snapshots_free(struct qcow2_snapshot *snapshots, uint32_t count)
{
    for (uint32_t i = 0; snapshots && i < count; i++) {
        free(snapshots[i].id);
        free(snapshots[i].name);
        free(snapshots[i].extra);
    }
    free(snapshots);
}

static char *copy_text(const uint8_t *text, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy) {
        memcpy(copy, text, len);
        copy[len] = 0;
    }
    return copy;
}

/* One entry at the start of raw; its length, or a negative errno. */
static int64_t parse_entry(struct qcow2 *q, const uint8_t *raw, uint64_t len,
                           struct qcow2_snapshot *s)
{
    uint64_t id_len, name_len, extra_len, total;

    if (len < ENTRY_BYTES) {
        return -EINVAL;
    }
    id_len = load_be16(raw + 12);
    name_len = load_be16(raw + 14);
    extra_len = load_be32(raw + 36);
    total = (ENTRY_BYTES + extra_len + id_len + name_len + 7) & ~7ull;
    if (extra_len > MAX_EXTRA_BYTES || ENTRY_BYTES + extra_len + id_len + name_len > len) {
        return -EINVAL;
    }
    s->l1_offset = load_be64(raw);
    s->l1_size = load_be32(raw + 8);
    s->date_sec = load_be32(raw + 16);
    s->date_nsec = load_be32(raw + 20);
    s->vm_clock_ns = load_be64(raw + 24);
    s->vm_state_bytes = extra_len >= 8 ? load_be64(raw + ENTRY_BYTES) : load_be32(raw + 32);
    s->size_bytes = extra_len >= 16 ? load_be64(raw + ENTRY_BYTES + 8) : q->header.size;
    if (s->l1_size > MAX_L1_SIZE || (s->l1_offset & (q->cluster_bytes - 1)) != 0 ||
        s->size_bytes % BLOCK_SECTOR_BYTES != 0 ||
        qcow2_header_l1_needed(&q->header, s->size_bytes) > s->l1_size) {
        return -EINVAL;
    }
    s->id = copy_text(raw + ENTRY_BYTES + extra_len, id_len);
    s->name = copy_text(raw + ENTRY_BYTES + extra_len + id_len, name_len);
    if (extra_len > EXTRA_BYTES) {
        s->extra_len = (uint32_t)extra_len - EXTRA_BYTES;
        s->extra = malloc(s->extra_len);
        if (s->extra) {
            memcpy(s->extra, raw + ENTRY_BYTES + EXTRA_BYTES, s->extra_len);
        }
    }
    if (!s->id || !s->name || (s->extra_len > 0 && !s->extra)) {
        return -ENOMEM;
    }
    return (int64_t)total;
}

static int read_raw_table(struct qcow2 *q, uint8_t **ret_raw, uint64_t *ret_len)
{
    uint64_t file_bytes = 0, len;
    uint64_t most =
        (uint64_t)q->header.snapshot_count * (ENTRY_BYTES + MAX_EXTRA_BYTES + 2 * 65536ull);
    uint8_t *raw;
    int r = q->image.file->ops->get_size(q->image.file, &file_bytes);

    if (r < 0) {
        return r;
    }
    len = file_bytes > q->header.snapshots_offset ? file_bytes - q->header.snapshots_offset : 0;
    len = len < most ? len : most;
    len = len < QCOW2_MAX_SNAPSHOT_TABLE_BYTES ? len : QCOW2_MAX_SNAPSHOT_TABLE_BYTES;
    raw = malloc(len + 1);
    if (!raw) {
        return -ENOMEM;
    }
    r = block_file_pread(q->image.file, raw, len, q->header.snapshots_offset);
    if (r < 0) {
        free(raw);
        return r;
    }
    *ret_raw = raw;
    *ret_len = len;
    return 0;
}

int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **ret_snapshots,
                         uint64_t *ret_bytes, struct err *err)
{
    uint32_t count = q->header.snapshot_count;
    struct qcow2_snapshot *snapshots = calloc((size_t)count + 1, sizeof(*snapshots));
    CLEANUP_FREE uint8_t *raw = NULL;
    uint64_t len = 0, at = 0;
    int64_t used = snapshots ? 0 : -ENOMEM;

    if (used == 0 && count > 0) {
        used = read_raw_table(q, &raw, &len);
    }
    for (uint32_t i = 0; used >= 0 && i < count; i++) {
        used = parse_entry(q, raw + at, len - at, &snapshots[i]);
        if (used >= 0) {
            at += (uint64_t)used < len - at ? (uint64_t)used : len - at;
        }
    }
    if (used < 0) {
        qcow2_snapshots_free(snapshots, count);
        return err_set_errno(err, (int)used, "cannot read the snapshot table");
    }
    *ret_snapshots = snapshots;
    *ret_bytes = at;
    return 0;
}

int qcow2_l1_read(struct qcow2 *q, uint64_t offset, uint32_t entries, uint64_t **ret_l1)
{
    uint64_t *l1;
    int r = 0;

    if (entries > MAX_L1_SIZE) {
        return -EINVAL;
    }
    l1 = calloc((size_t)entries + 1, sizeof(*l1));
    if (!l1) {
        return -ENOMEM;
    }
    if (entries > 0) {
        r = block_file_pread(q->image.file, l1, (uint64_t)entries * 8, offset);
    }
    if (r < 0) {
        free(l1);
        return r;
    }
    for (uint32_t i = 0; i < entries; i++) {
        l1[i] = load_be64(&l1[i]);
    }
    *ret_l1 = l1;
    return 0;
}

static uint64_t entry_bytes(const struct qcow2_snapshot *s)
{
    return (ENTRY_BYTES + EXTRA_BYTES + s->extra_len + strlen(s->id) + strlen(s->name) + 7) & ~7ull;
}

static void put_entry(uint8_t *raw, const struct qcow2_snapshot *s)
{
    size_t id_len = strlen(s->id);
    uint8_t *at = raw + ENTRY_BYTES;

    store_be64(raw, s->l1_offset);
    store_be32(raw + 8, s->l1_size);
    store_be16(raw + 12, (uint16_t)id_len);
    store_be16(raw + 14, (uint16_t)strlen(s->name));
    store_be32(raw + 16, s->date_sec);
    store_be32(raw + 20, s->date_nsec);
    store_be64(raw + 24, s->vm_clock_ns);
    store_be32(raw + 32, s->vm_state_bytes <= UINT32_MAX ? (uint32_t)s->vm_state_bytes : 0);
    store_be32(raw + 36, EXTRA_BYTES + s->extra_len);
    store_be64(at, s->vm_state_bytes);
    store_be64(at + 8, s->size_bytes);
    at += EXTRA_BYTES;
    if (s->extra_len > 0) {
        memcpy(at, s->extra, s->extra_len);
        at += s->extra_len;
    }
    memcpy(at, s->id, id_len);
    memcpy(at + id_len, s->name, strlen(s->name));
}

/* A new table in a new place; *ret_bytes 0 without snapshots. */
static int write_table(struct qcow2 *q, const struct qcow2_snapshot *snapshots, uint32_t count,
                       uint64_t *ret_offset, uint64_t *ret_bytes)
{
    CLEANUP_FREE uint8_t *raw = NULL;
    uint64_t bytes = 0, at = 0, clusters;
    int r;

    for (uint32_t i = 0; i < count; i++) {
        bytes += entry_bytes(&snapshots[i]);
    }
    *ret_bytes = bytes;
    *ret_offset = 0;
    if (bytes == 0) {
        return 0;
    }
    if (bytes > QCOW2_MAX_SNAPSHOT_TABLE_BYTES) {
        return -EFBIG;
    }
    clusters = qcow2_clusters_of(q, bytes);
    raw = calloc(clusters, q->cluster_bytes);
    if (!raw) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < count; i++) {
        put_entry(raw + at, &snapshots[i]);
        at += entry_bytes(&snapshots[i]);
    }
    mutex_lock(&q->lock);
    r = qcow2_alloc_exact_locked(q, clusters, ret_offset);
    mutex_unlock(&q->lock);
    if (r == 0) {
        r = block_file_pwrite(q->image.file, raw, clusters << q->cluster_bits, *ret_offset);
        if (r < 0) {
            mutex_lock(&q->lock);
            qcow2_unalloc_locked(q, *ret_offset, clusters);
            mutex_unlock(&q->lock);
        }
    }
    return r;
}

/* The image as header, l1 and these snapshots say; l1 is the image's when it succeeds. */
static int change_to(struct qcow2 *q, struct qcow2_header *header, uint64_t *l1,
                     const struct qcow2_snapshot *snapshots, uint32_t count, struct err *err)
{
    uint64_t bytes = 0;
    int r = write_table(q, snapshots, count, &header->snapshots_offset, &bytes);

    if (r < 0) {
        return err_set_errno(err, r, "cannot write the snapshot table");
    }
    header->snapshot_count = count;
    r = qcow2_rebuild(q, header, l1, snapshots, bytes, false, err);
    if (r < 0 && bytes > 0 && !q->is_poisoned) {
        mutex_lock(&q->lock);
        qcow2_unalloc_locked(q, header->snapshots_offset, qcow2_clusters_of(q, bytes));
        mutex_unlock(&q->lock);
    }
    return r;
}

static uint64_t *copy_l1(const uint64_t *l1, uint32_t entries, uint32_t new_entries)
{
    uint64_t *copy = calloc((size_t)new_entries + 1, sizeof(*copy));

    if (copy && entries > 0) {
        memcpy(copy, l1, (entries < new_entries ? entries : new_entries) * sizeof(*copy));
    }
    return copy;
}

/* By name, or by id where no name fits. */
static int find(const struct qcow2_snapshot *snapshots, uint32_t count, const char *name)
{
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(snapshots[i].name, name) == 0) {
            return (int)i;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(snapshots[i].id, name) == 0) {
            return (int)i;
        }
    }
    return -ENOENT;
}

static int begin_change(struct qcow2 *q, struct qcow2_snapshot **ret_snapshots, struct err *err)
{
    uint64_t bytes = 0;
    int r = qcow2_flush(q);

    if (r == 0) {
        mutex_lock(&q->lock);
        r = qcow2_may_write_locked(q);
        mutex_unlock(&q->lock);
    }
    if (r < 0) {
        return err_set_errno(err, r, "cannot write what the image has in memory");
    }
    return qcow2_snapshots_read(q, ret_snapshots, &bytes, err);
}

static int fill_snapshot(struct qcow2 *q, const struct qcow2_snapshot *others, uint32_t count,
                         const char *name, struct qcow2_snapshot *s)
{
    struct timespec now = {0};
    unsigned long id = 1;
    char text[32];

    for (uint32_t i = 0; i < count; i++) {
        unsigned long other = strtoul(others[i].id, NULL, 10);

        id = other >= id ? other + 1 : id;
    }
    (void)snprintf(text, sizeof(text), "%lu", id);
    (void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
    *s = (struct qcow2_snapshot){
        .l1_offset = q->header.l1_offset,
        .l1_size = q->header.l1_size,
        .id = strdup(text),
        .name = strdup(name),
        .date_sec = (uint32_t)now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec,
        .size_bytes = q->header.size,
    };
    return s->id && s->name ? 0 : -ENOMEM;
}

static int create(struct qcow2 *q, const char *name, struct err *err)
{
    struct qcow2_header header;
    struct qcow2_snapshot *snapshots = NULL;
    uint32_t count = q->header.snapshot_count;
    uint64_t *l1 = NULL;
    int r = begin_change(q, &snapshots, err);

    if (r < 0) {
        return r;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(snapshots[i].name, name) == 0) {
            r = err_set(err, -EEXIST, "there is a snapshot '%s' already", name);
        }
    }
    if (r == 0) { /* the place behind the last was allocated with the array */
        r = fill_snapshot(q, snapshots, count, name, &snapshots[count]);
        l1 = copy_l1(q->l1, q->header.l1_size, q->header.l1_size);
        if (r == 0 && l1) {
            header = q->header;
            r = change_to(q, &header, l1, snapshots, count + 1, err);
        } else {
            r = err_set(err, -ENOMEM, "no memory for a snapshot");
        }
        if (r < 0) {
            free(l1);
        }
        count++;
    }
    qcow2_snapshots_free(snapshots, count);
    return r;
}

static int apply(struct qcow2 *q, const char *name, struct err *err)
{
    struct qcow2_snapshot *snapshots = NULL;
    struct qcow2_header header;
    uint32_t count = q->header.snapshot_count;
    uint64_t *l1 = NULL;
    uint64_t *table = NULL;
    int i, r = begin_change(q, &snapshots, err);

    if (r < 0) {
        return r;
    }
    i = find(snapshots, count, name);
    if (i < 0) {
        r = err_set(err, i, "there is no snapshot '%s'", name);
    } else {
        r = qcow2_l1_read(q, snapshots[i].l1_offset, snapshots[i].l1_size, &l1);
        header = q->header;
        header.size = snapshots[i].size_bytes;
        header.l1_size = snapshots[i].l1_size;
        table = r == 0 ? copy_l1(l1, header.l1_size, header.l1_size) : NULL;
        if (table) {
            r = change_to(q, &header, table, snapshots, count, err);
        } else {
            r = err_set_errno(err, r < 0 ? r : -ENOMEM, "cannot read snapshot '%s'", name);
        }
        if (r < 0) {
            free(table);
        }
    }
    free(l1);
    qcow2_snapshots_free(snapshots, count);
    return r;
}

static int delete (struct qcow2 *q, const char *name, struct err *err)
{
    struct qcow2_snapshot *snapshots = NULL;
    struct qcow2_snapshot gone;
    struct qcow2_header header;
    uint32_t count = q->header.snapshot_count;
    uint64_t *l1;
    int i, r = begin_change(q, &snapshots, err);

    if (r < 0) {
        return r;
    }
    i = find(snapshots, count, name);
    if (i < 0) {
        r = err_set(err, i, "there is no snapshot '%s'", name);
    } else {
        gone = snapshots[i];
        memmove(&snapshots[i], &snapshots[i + 1], (count - (uint32_t)i - 1) * sizeof(gone));
        snapshots[count - 1] = gone; /* freed with the others */
        header = q->header;
        l1 = copy_l1(q->l1, q->header.l1_size, q->header.l1_size);
        r = l1 ? change_to(q, &header, l1, snapshots, count - 1, err)
               : err_set(err, -ENOMEM, "no memory for the tables");
        if (r < 0) {
            free(l1);
        }
    }
    qcow2_snapshots_free(snapshots, count);
    return r;
}

static int change(struct block_image *image, const char *name, struct err *err,
                  int (*fn)(struct qcow2 *q, const char *name, struct err *err))
{
    struct qcow2 *q = qcow2_of(image, true, err);
    int r;

    if (!q) {
        return image->format == BLOCK_FORMAT_QCOW2 ? -EROFS : -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    r = fn(q, name, err);
    if (r == 0 && qcow2_bitmaps_resize(q) < 0) {
        r = err_set(err, -ENOMEM, "no memory for dirty bitmaps");
    }
    qcow2_exclusive_end(q);
    return r;
}

int qcow2_snapshot_create(struct block_image *image, const char *name, struct err *err)
{
    if (name[0] == 0 || strlen(name) > 255) {
        return err_set(err, -EINVAL, "the name of a snapshot has 1 to 255 bytes");
    }
    if (image->format == BLOCK_FORMAT_QCOW2 &&
        to_qcow2(image)->header.snapshot_count >= QCOW2_MAX_SNAPSHOTS) {
        return err_set(err, -ENOSPC, "an image has at most %u snapshots", QCOW2_MAX_SNAPSHOTS);
    }
    return change(image, name, err, create);
}

int qcow2_snapshot_apply(struct block_image *image, const char *name, struct err *err)
{
    return change(image, name, err, apply);
}

int qcow2_snapshot_delete(struct block_image *image, const char *name, struct err *err)
{
    return change(image, name, err, delete);
}

int qcow2_snapshot_list(struct block_image *image, struct qcow2_snapshot_info **ret_infos,
                        unsigned *ret_count, struct err *err)
{
    struct qcow2 *q = qcow2_of(image, false, err);
    struct qcow2_snapshot *snapshots = NULL;
    struct qcow2_snapshot_info *infos = NULL;
    uint64_t bytes = 0;
    uint32_t count;
    int r;

    if (!q) {
        return -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    count = q->header.snapshot_count;
    r = qcow2_snapshots_read(q, &snapshots, &bytes, err);
    qcow2_exclusive_end(q);
    if (r < 0) {
        return r;
    }
    infos = calloc((size_t)count + 1, sizeof(*infos));
    for (uint32_t i = 0; infos && i < count; i++) {
        (void)snprintf(infos[i].id, sizeof(infos[i].id), "%s", snapshots[i].id);
        (void)snprintf(infos[i].name, sizeof(infos[i].name), "%s", snapshots[i].name);
        infos[i].size_bytes = snapshots[i].size_bytes;
        infos[i].vm_state_bytes = snapshots[i].vm_state_bytes;
        infos[i].date_sec = snapshots[i].date_sec;
        infos[i].date_nsec = snapshots[i].date_nsec;
        infos[i].vm_clock_ns = snapshots[i].vm_clock_ns;
    }
    qcow2_snapshots_free(snapshots, count);
    if (!infos) {
        return err_set(err, -ENOMEM, "no memory for the list of snapshots");
    }
    *ret_infos = infos;
    *ret_count = count;
    return 0;
}

/* A cluster's part of a snapshot, through its own L1 table. */
static int read_part(struct qcow2 *q, const uint64_t *l1, uint64_t offset, uint8_t *buf,
                     uint64_t len)
{
    uint64_t l2 = l1[offset >> (q->cluster_bits + q->l2_bits)] & QCOW2_OFFSET_MASK;
    struct qcow2_table table = {.data = malloc(q->cluster_bytes)};
    struct qcow2_piece piece;
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    int r = table.data ? 0 : -ENOMEM;

    if (r == 0 && l2 != 0) {
        r = block_file_pread(q->image.file, table.data, q->cluster_bytes, l2);
    }
    for (uint64_t done = 0; r == 0 && done < len; done += piece.len) {
        mutex_lock(&q->lock);
        r = qcow2_l2_piece_locked(q, l2 ? &table : NULL, offset + done, len - done, &piece);
        mutex_unlock(&q->lock);
        if (r == 0) {
            iov = (struct iovec){.iov_base = buf + done, .iov_len = piece.len};
            r = qcow2_read_piece(q, &piece, &iov, 1, offset + done);
        }
    }
    free(table.data);
    return r;
}

static int read_snapshot(struct qcow2 *q, const struct qcow2_snapshot *s, uint8_t *buf,
                         uint64_t len, uint64_t offset)
{
    uint64_t *l1 = NULL;
    int r;

    if (offset > s->size_bytes || len > s->size_bytes - offset) {
        return -EINVAL;
    }
    r = qcow2_l1_read(q, s->l1_offset, s->l1_size, &l1);
    while (r == 0 && len > 0) {
        uint64_t left = q->cluster_bytes - (offset & (q->cluster_bytes - 1));
        uint64_t some = len < left ? len : left;

        r = read_part(q, l1, offset, buf, some);
        buf += some;
        offset += some;
        len -= some;
    }
    free(l1);
    return r;
}

int qcow2_snapshot_read(struct block_image *image, const char *name, void *buf, uint64_t len,
                        uint64_t offset, struct err *err)
{
    struct qcow2 *q = qcow2_of(image, false, err);
    struct qcow2_snapshot *snapshots = NULL;
    uint64_t bytes = 0;
    int i, r;

    if (!q) {
        return -ENOTSUP;
    }
    qcow2_exclusive_begin(q);
    r = qcow2_snapshots_read(q, &snapshots, &bytes, err);
    if (r == 0) {
        i = find(snapshots, q->header.snapshot_count, name);
        r = i < 0 ? i : read_snapshot(q, &snapshots[i], buf, len, offset);
        if (r < 0) {
            (void)err_set_errno(err, r, "cannot read snapshot '%s'", name);
        }
    }
    qcow2_snapshots_free(snapshots, q->header.snapshot_count);
    qcow2_exclusive_end(q);
    return r;
}
