/*
 * Guest reads and writes.
 *
 * A write to a place that is this image's alone goes there. Any other write
 * claims its clusters, so that nobody else changes their mapping, gets a new
 * place, fills all of it (what the guest does not give comes from where it was
 * read before), and only then changes the mapping in memory.
 */
#include "block/qcow2_int.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define MAX_PARTS 256u

unsigned qcow2_iov_take(struct iovec **iov, unsigned *count, uint64_t len, struct iovec *out)
{
    unsigned taken = 0;

    while (len > 0 && *count > 0 && taken < MAX_PARTS) {
        size_t some = (*iov)->iov_len < len ? (*iov)->iov_len : (size_t)len;

        out[taken++] = (struct iovec){.iov_base = (*iov)->iov_base, .iov_len = some};
        len -= some;
        block_iov_advance(iov, count, some);
    }
    return taken;
}

/* The same, but leaves the vector whole: what the caller does not get done comes again. */
static unsigned iov_peek(const struct iovec *iov, unsigned count, uint64_t len, struct iovec *out)
{
    unsigned taken = 0;

    while (len > 0 && taken < count && taken < MAX_PARTS) {
        out[taken] = iov[taken];
        if (out[taken].iov_len > len) {
            out[taken].iov_len = (size_t)len;
        }
        len -= out[taken++].iov_len;
    }
    return taken;
}

static uint64_t iov_len(const struct iovec *iov, unsigned count)
{
    uint64_t len = 0;

    for (unsigned i = 0; i < count; i++) {
        len += iov[i].iov_len;
    }
    return len;
}

static void iov_zero(const struct iovec *iov, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        memset(iov[i].iov_base, 0, iov[i].iov_len);
    }
}

/* What is not in this layer. */
static int read_backing(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset)
{
    struct block_image *backing = q->image.backing;
    uint64_t len = iov_len(iov, count);
    uint64_t size = backing ? __atomic_load_n(&backing->size_bytes, __ATOMIC_ACQUIRE) : 0;
    uint64_t inside = offset < size ? size - offset : 0;
    struct block_request request = {.op = BLOCK_READ, .offset = offset};
    struct iovec front[MAX_PARTS];

    if (inside > len) {
        inside = len;
    }
    if (inside > 0) {
        int r;

        request.iov = front;
        request.len = inside;
        request.iov_count = qcow2_iov_take(&iov, &count, inside, front);
        r = backing->ops->execute(backing, &request, true);
        if (r < 0) {
            return r;
        }
    }
    iov_zero(iov, count);
    return 0;
}

static int read_packed(struct qcow2 *q, uint64_t entry, const struct iovec *iov, unsigned count,
                       uint64_t in_cluster)
{
    CLEANUP_FREE uint8_t *cluster = NULL;
    int r;

    if (count == 1 && iov->iov_len == q->cluster_bytes) {
        return qcow2_unpack(q, entry, iov->iov_base);
    }
    cluster = malloc(q->cluster_bytes);
    r = cluster ? qcow2_unpack(q, entry, cluster) : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < count; i++) {
        memcpy(iov[i].iov_base, cluster + in_cluster, iov[i].iov_len);
        in_cluster += iov[i].iov_len;
    }
    return r;
}

int qcow2_read_piece(struct qcow2 *q, const struct qcow2_piece *piece, struct iovec *iov,
                     unsigned count, uint64_t offset)
{
    switch (piece->kind) {
    case QCOW2_NORMAL:
        return q->image.file->ops->preadv(q->image.file, iov, count, piece->host);
    case QCOW2_ZEROES:
        iov_zero(iov, count);
        return 0;
    case QCOW2_PACKED:
        return read_packed(q, piece->host, iov, count, offset & (q->cluster_bytes - 1));
    case QCOW2_UNALLOCATED:
        return read_backing(q, iov, count, offset);
    }
    return -EIO;
}

/* -EBUSY from a cache full of changes: write them, try again. */
static int find_piece(struct qcow2 *q, uint64_t offset, uint64_t len, struct qcow2_piece *ret_piece)
{
    struct qcow2_table *table = NULL;
    int r;

    for (;;) {
        mutex_lock(&q->lock);
        r = qcow2_l2_get_locked(q, offset, &table);
        if (r == 0) {
            r = qcow2_l2_piece_locked(q, table, offset, len, ret_piece);
        }
        mutex_unlock(&q->lock);
        if (r != -EBUSY) {
            return r;
        }
        r = qcow2_flush(q);
        if (r < 0) {
            return r;
        }
    }
}

int qcow2_read(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset, uint64_t len)
{
    struct iovec part[MAX_PARTS];

    while (len > 0) {
        struct qcow2_piece piece;
        unsigned parts;
        uint64_t done;
        int r = find_piece(q, offset, len, &piece);

        if (r < 0) {
            return r;
        }
        parts = qcow2_iov_take(&iov, &count, piece.len, part);
        done = iov_len(part, parts);
        if (done == 0) {
            return -EINVAL;
        }
        r = qcow2_read_piece(q, &piece, part, parts, offset);
        if (r < 0) {
            return r;
        }
        offset += done;
        len -= done;
    }
    return 0;
}

/* Bytes beyond the end of the disk are zero. */
int qcow2_read_buf(struct qcow2 *q, void *buf, uint64_t offset, uint64_t len)
{
    uint64_t size = qcow2_size(q);
    uint64_t inside = offset < size ? size - offset : 0;
    struct iovec iov = {.iov_base = buf, .iov_len = len};

    if (inside < len) {
        memset((uint8_t *)buf + inside, 0, len - inside);
        len = inside;
        iov.iov_len = len;
    }
    return len > 0 ? qcow2_read(q, &iov, 1, offset, len) : 0;
}

static bool is_claimed(const struct qcow2 *q, const struct qcow2_claim *claim)
{
    for (const struct qcow2_claim *other = q->claims; other; other = other->next) {
        if (claim->first <= other->last && other->first <= claim->last) {
            return true;
        }
    }
    return false;
}

void qcow2_claim_locked(struct qcow2 *q, struct qcow2_claim *claim, uint64_t offset, uint64_t len)
{
    claim->first = offset >> q->cluster_bits;
    claim->last = (offset + len - 1) >> q->cluster_bits;
    while (is_claimed(q, claim)) {
        (void)pthread_cond_wait(&q->cond, &q->lock.raw); /* cannot fail */
    }
    claim->next = q->claims;
    q->claims = claim;
}

void qcow2_unclaim_locked(struct qcow2 *q, struct qcow2_claim *claim)
{
    struct qcow2_claim **link = &q->claims;

    while (*link != claim) {
        link = &(*link)->next;
    }
    *link = claim->next;
    (void)pthread_cond_broadcast(&q->cond); /* cannot fail */
}

/* A new mapping in the making. */
struct place {
    uint64_t offset, len; /* of the guest's bytes */
    uint64_t begin, end;  /* of all bytes that will be written */
    uint64_t host;        /* of begin */
    uint64_t clusters;    /* newly allocated, 0 when the old place stays */
    uint64_t new_host;    /* of the first of them */
    bool is_fresh;        /* they read as zero */
    bool is_whole;        /* begin and end are clusters' bounds */
};

static uint64_t round_down(uint64_t v, uint64_t unit)
{
    return v & ~(unit - 1);
}

/* Whether the first cluster's old place can be kept. */
static bool keeps_place(const struct qcow2 *q, const struct qcow2_piece *piece)
{
    return piece->kind != QCOW2_PACKED && piece->host != 0 && piece->is_copied &&
           (piece->kind == QCOW2_ZEROES || q->l2_entry_bytes == 16);
}

static void place_in_old(const struct qcow2 *q, const struct qcow2_piece *piece,
                         struct place *place)
{
    uint64_t unit = 1ull << q->unit_bits;
    uint64_t cluster_end = round_down(place->offset, q->cluster_bytes) + q->cluster_bytes;

    if (place->len > cluster_end - place->offset) {
        place->len = cluster_end - place->offset;
    }
    if (place->len > piece->len) {
        place->len = piece->len;
    }
    place->begin = round_down(place->offset, unit);
    place->end = round_down(place->offset + place->len + unit - 1, unit);
    place->host = piece->host - (place->offset - place->begin);
}

/* Clusters from the claim's first on that all need a new place. */
static int count_new(struct qcow2 *q, struct qcow2_table *table, const struct place *place,
                     uint64_t *ret_clusters)
{
    uint64_t at = round_down(place->offset, q->cluster_bytes);
    uint64_t end = place->offset + place->len;
    uint64_t clusters = 0;
    int r = 0;

    while (at < end) {
        struct qcow2_piece piece;

        r = qcow2_l2_piece_locked(q, table, at, q->cluster_bytes, &piece);
        if (r < 0) {
            return r;
        }
        if (clusters > 0 &&
            ((piece.kind == QCOW2_NORMAL && piece.is_copied) || keeps_place(q, &piece) ||
             (q->l2_entry_bytes == 16 && piece.kind != QCOW2_PACKED && piece.host != 0))) {
            break;
        }
        clusters++;
        at += q->cluster_bytes;
    }
    *ret_clusters = clusters;
    return 0;
}

static int place_in_new(struct qcow2 *q, struct qcow2_table *table, struct place *place)
{
    uint64_t unit = 1ull << q->unit_bits;
    uint64_t first = round_down(place->offset, q->cluster_bytes);
    uint64_t want = 0, bits = 0, entry;
    int r = count_new(q, table, place, &want);

    if (r == 0) {
        r = qcow2_alloc_locked(q, want, &place->new_host, &place->clusters, &place->is_fresh);
    }
    if (r < 0) {
        return r;
    }
    if (place->len > first + (place->clusters << q->cluster_bits) - place->offset) {
        place->len = first + (place->clusters << q->cluster_bits) - place->offset;
    }
    /* With something in the cluster that has to move along, the whole of it is written. */
    entry = qcow2_l2_entry(q, table, place->offset, &bits);
    place->is_whole = q->l2_entry_bytes == 8 || place->clusters > 1 ||
                      (entry & (QCOW2_OFFSET_MASK | QCOW2_COMPRESSED)) != 0;
    if (place->is_whole) {
        unit = q->cluster_bytes;
    }
    place->begin = round_down(place->offset, unit);
    place->end = round_down(place->offset + place->len + unit - 1, unit);
    place->host = place->new_host + (place->begin - first);
    return 0;
}

/*
 * Decides on the place of the next part of a write whose clusters are claimed.
 * place->clusters 0 and begin == end: the mapping is fine as it is.
 */
static int make_place(struct qcow2 *q, struct place *place)
{
    struct qcow2_table *table = NULL;
    struct qcow2_piece piece;
    int r = qcow2_may_write_locked(q);

    if (r == 0) {
        r = qcow2_l2_get_writable_locked(q, place->offset, &table);
    }
    if (r == 0) {
        r = qcow2_l2_piece_locked(q, table, place->offset, place->len, &piece);
    }
    if (r != 0) {
        return r;
    }
    if (piece.kind == QCOW2_NORMAL && piece.is_copied) {
        place->len = 0; /* another write was faster */
        return 0;
    }
    if (keeps_place(q, &piece)) {
        place_in_old(q, &piece, place);
        return 0;
    }
    /* Whatever crosses into the next L2 table is for the next round. */
    if (place->len > ((1ull << q->l2_bits) << q->cluster_bits) -
                         (place->offset & (((1ull << q->l2_bits) << q->cluster_bits) - 1))) {
        place->len = ((1ull << q->l2_bits) << q->cluster_bits) -
                     (place->offset & (((1ull << q->l2_bits) << q->cluster_bits) - 1));
    }
    return place_in_new(q, table, place);
}

/* Whether bytes that the guest does not give read as zero anyway. */
static bool reads_as_zero(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    struct qcow2_piece piece;

    if (len == 0) {
        return true;
    }
    if (q->image.backing || find_piece(q, offset, len, &piece) != 0) {
        return false;
    }
    return piece.len >= len && (piece.kind == QCOW2_UNALLOCATED || piece.kind == QCOW2_ZEROES);
}

static int fill_place(struct qcow2 *q, const struct place *place, const struct iovec *data,
                      unsigned count)
{
    uint64_t head = place->offset - place->begin;
    uint64_t tail = place->end - (place->offset + place->len);
    CLEANUP_FREE uint8_t *around = NULL;
    struct iovec iov[MAX_PARTS + 2];
    unsigned n = 0;
    int r = 0;

    if (place->is_fresh && reads_as_zero(q, place->begin, head) &&
        reads_as_zero(q, place->offset + place->len, tail)) {
        memcpy(iov, data, count * sizeof(*iov));
        return q->image.file->ops->pwritev(q->image.file, iov, count, place->host + head);
    }
    around = malloc(head + tail + 1);
    if (!around) {
        return -ENOMEM;
    }
    if (head > 0) {
        r = qcow2_read_buf(q, around, place->begin, head);
        iov[n++] = (struct iovec){.iov_base = around, .iov_len = head};
    }
    memcpy(iov + n, data, count * sizeof(*iov));
    n += count;
    if (r == 0 && tail > 0) {
        r = qcow2_read_buf(q, around + head, place->offset + place->len, tail);
        iov[n++] = (struct iovec){.iov_base = around + head, .iov_len = tail};
    }
    if (r == 0) {
        r = q->image.file->ops->pwritev(q->image.file, iov, n, place->host);
    }
    return r;
}

/* Subclusters from begin to end of one cluster, as bits of the allocation half. */
static uint64_t sub_mask(const struct qcow2 *q, uint64_t begin, uint64_t end)
{
    uint64_t first = (begin & (q->cluster_bytes - 1)) >> q->unit_bits;
    uint64_t count = (end - begin) >> q->unit_bits;

    return count >= 32 ? 0xffffffffull : ((1ull << count) - 1) << first;
}

static int publish_place(struct qcow2 *q, const struct place *place)
{
    struct qcow2_table *table = NULL;
    int r = qcow2_l2_get_writable_locked(q, place->offset, &table);

    for (uint64_t at = round_down(place->begin, q->cluster_bytes); r == 0 && at < place->end;
         at += q->cluster_bytes) {
        uint64_t bits = 0;
        uint64_t old = qcow2_l2_entry(q, table, at, &bits);
        uint64_t entry = old & ~QCOW2_ZERO;
        uint64_t begin = at < place->begin ? place->begin : at;
        uint64_t end = at + q->cluster_bytes < place->end ? at + q->cluster_bytes : place->end;
        uint64_t mask = sub_mask(q, begin, end);

        if (place->clusters > 0) {
            entry = (place->new_host + (at - round_down(place->offset, q->cluster_bytes))) |
                    QCOW2_COPIED;
            bits = old & QCOW2_COMPRESSED ? 0 : bits;
        }
        qcow2_l2_set_entry(q, table, at, entry, (bits & ~(mask << 32)) | mask);
        if (place->clusters > 0) {
            qcow2_l2_free_entry_locked(q, old);
        }
    }
    return r;
}

/* Cuts a vector to len bytes. */
static unsigned iov_cut(struct iovec *iov, unsigned count, uint64_t len)
{
    for (unsigned i = 0; i < count; i++) {
        if (iov[i].iov_len >= len) {
            iov[i].iov_len = (size_t)len;
            return i + 1;
        }
        len -= iov[i].iov_len;
    }
    return count;
}

/* The mapping, now that the data is written; the new place is given up when that fails. */
static int finish_place(struct qcow2 *q, const struct place *place, int r)
{
    bool is_again;

    do {
        is_again = false;
        mutex_lock(&q->lock);
        if (r == 0) {
            r = publish_place(q, place);
            is_again = r == -EBUSY;
        }
        if (r < 0 && !is_again) {
            qcow2_unalloc_locked(q, place->new_host, place->clusters);
        }
        mutex_unlock(&q->lock);
        if (is_again) {
            r = qcow2_flush(q);
        }
    } while (is_again);
    return r;
}

/* One round of an allocating write; its clusters are claimed. */
static int write_claimed(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset,
                         uint64_t len, uint64_t *ret_done)
{
    struct iovec part[MAX_PARTS];
    struct place place;
    unsigned parts = iov_peek(iov, count, len, part);
    int r;

    do {
        mutex_lock(&q->lock);
        place = (struct place){.offset = offset, .len = iov_len(part, parts)};
        r = make_place(q, &place);
        mutex_unlock(&q->lock);
        if (r == -EBUSY) {
            int flushed = qcow2_flush(q);

            r = flushed < 0 ? flushed : r;
        }
    } while (r == -EBUSY);
    if (r < 0) {
        return r;
    }
    *ret_done = place.len;
    if (place.len == 0) {
        return 0;
    }
    parts = iov_cut(part, parts, place.len);
    r = fill_place(q, &place, part, parts);
    return finish_place(q, &place, r);
}

/* A part in place: *ret_done 0 when there is none at offset. */
static int write_in_place(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset,
                          uint64_t len, uint64_t *ret_done)
{
    struct iovec part[MAX_PARTS];
    struct qcow2_piece piece = {0};
    unsigned parts;
    bool is_metadata = false;
    int r = find_piece(q, offset, len, &piece);

    *ret_done = 0;
    if (r < 0 || piece.kind != QCOW2_NORMAL || !piece.is_copied) {
        return r;
    }
    parts = iov_peek(iov, count, piece.len, part);
    mutex_lock(&q->lock);
    r = qcow2_may_write_locked(q);
    is_metadata = qcow2_is_metadata_locked(q, piece.host, iov_len(part, parts));
    if (r == 0 && is_metadata) {
        r = qcow2_set_corrupt_locked(q, "data and metadata overlap", piece.host);
    }
    mutex_unlock(&q->lock);
    if (r == 0) {
        *ret_done = iov_len(part, parts);
        r = q->image.file->ops->pwritev(q->image.file, part, parts, piece.host);
    }
    return r;
}

int qcow2_write(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset, uint64_t len)
{
    int r = 0;

    if (__atomic_load_n(&q->bitmaps_enabled, __ATOMIC_ACQUIRE) > 0) {
        mutex_lock(&q->lock);
        qcow2_bitmaps_mark_locked(q, offset, len);
        mutex_unlock(&q->lock);
    }
    while (r == 0 && len > 0) {
        uint64_t done = 0;

        r = write_in_place(q, iov, count, offset, len, &done);
        if (r == 0 && done == 0) {
            struct qcow2_claim claim;

            mutex_lock(&q->lock);
            qcow2_claim_locked(q, &claim, offset, len);
            mutex_unlock(&q->lock);
            r = write_claimed(q, iov, count, offset, len, &done);
            mutex_lock(&q->lock);
            qcow2_unclaim_locked(q, &claim);
            mutex_unlock(&q->lock);
        }
        block_iov_advance(&iov, &count, done);
        offset += done;
        len -= done;
    }
    return r;
}
