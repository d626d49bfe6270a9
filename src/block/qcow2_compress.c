/*
 * Compressed clusters: a raw deflate stream with a window of 4 KiB, or one zstd
 * frame, in whole sectors anywhere in the file. They are never written again.
 */
#define ZLIB_CONST
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define WINDOW_BITS (-12)

static int inflate_cluster(const void *packed, size_t len, void *cluster, uint32_t cluster_bytes)
{
    z_stream stream = {
        .next_in = packed,
        .avail_in = (uInt)len,
        .next_out = cluster,
        .avail_out = cluster_bytes,
    };
    int r;

    if (inflateInit2(&stream, WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    r = inflate(&stream, Z_FINISH);
    (void)inflateEnd(&stream);
    /* Bytes of the last sector behind the stream belong to nobody. */
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && stream.avail_out == 0 ? 0 : -EIO;
}

static int unzstd_cluster(const void *packed, size_t len, void *cluster, uint32_t cluster_bytes)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    ZSTD_inBuffer in = {.src = packed, .size = len};
    ZSTD_outBuffer out = {.dst = cluster, .size = cluster_bytes};
    size_t r = 1;

    if (!context) {
        return -ENOMEM;
    }
    while (out.pos < out.size) {
        size_t before = in.pos + out.pos;

        r = ZSTD_decompressStream(context, &out, &in);
        if (ZSTD_isError(r) || in.pos + out.pos == before) {
            break;
        }
    }
    (void)ZSTD_freeDCtx(context); /* cannot fail */
    return out.pos == out.size ? 0 : -EIO;
}

int qcow2_unpack(struct qcow2 *q, uint64_t entry, void *cluster)
{
    CLEANUP_FREE uint8_t *packed = NULL;
    uint64_t offset = 0, len = 0;
    int r;

    qcow2_l2_packed(q, entry, &offset, &len);
    if (len > 2ull * q->cluster_bytes + 512) {
        return -EIO;
    }
    packed = malloc(len);
    if (!packed) {
        return -ENOMEM;
    }
    r = block_file_pread(q->image.file, packed, len, offset);
    if (r < 0) {
        return r;
    }
    if (q->header.compression == 0) {
        return inflate_cluster(packed, len, cluster, q->cluster_bytes);
    }
    return unzstd_cluster(packed, len, cluster, q->cluster_bytes);
}

/* -E2BIG when it would not save a sector. */
static int deflate_cluster(const void *cluster, uint32_t cluster_bytes, void *packed,
                           size_t *ret_len)
{
    z_stream stream = {
        .next_in = cluster,
        .avail_in = cluster_bytes,
        .next_out = packed,
        .avail_out = cluster_bytes - 512,
    };
    int r;

    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        return -ENOMEM;
    }
    r = deflate(&stream, Z_FINISH);
    *ret_len = cluster_bytes - 512 - stream.avail_out;
    (void)deflateEnd(&stream);
    return r == Z_STREAM_END ? 0 : -E2BIG;
}

static int zstd_cluster(const void *cluster, uint32_t cluster_bytes, void *packed, size_t *ret_len)
{
    size_t len = ZSTD_compress(packed, cluster_bytes - 512, cluster, cluster_bytes, 3);

    if (ZSTD_isError(len)) {
        return -E2BIG;
    }
    *ret_len = len;
    return 0;
}

static int pack(struct qcow2 *q, const void *cluster, void *packed, size_t *ret_len)
{
    if (q->cluster_bytes <= 512) {
        return -E2BIG;
    }
    return q->header.compression == 0 ? deflate_cluster(cluster, q->cluster_bytes, packed, ret_len)
                                      : zstd_cluster(cluster, q->cluster_bytes, packed, ret_len);
}

/* Sectors in the cluster that packed data goes to, or in a new one. */
static int take_sectors(struct qcow2 *q, uint64_t len, uint64_t *ret_offset)
{
    uint64_t used = q->packed_end & (q->cluster_bytes - 1);
    int r;

    if (used != 0 && used + len <= q->cluster_bytes) {
        r = qcow2_refcount_change_locked(q, q->packed_end >> q->cluster_bits, 1);
        if (r == 0) {
            *ret_offset = q->packed_end;
            q->packed_end += len;
            return 0;
        }
        if (r != -ERANGE) {
            return r;
        }
    }
    r = qcow2_alloc_exact_locked(q, 1, ret_offset);
    if (r == 0) {
        q->packed_end = *ret_offset + len;
    }
    return r;
}

static int publish_packed(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t len)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    struct qcow2_table *table = NULL;
    uint64_t bits = 0, old;
    int r = qcow2_l2_get_writable_locked(q, offset, &table);

    if (r < 0) {
        return r;
    }
    old = qcow2_l2_entry(q, table, offset, &bits);
    qcow2_l2_set_entry(q, table, offset, QCOW2_COMPRESSED | (len / 512 - 1) << offset_bits | host,
                       0);
    qcow2_l2_free_entry_locked(q, old);
    return 0;
}

static int write_packed(struct qcow2 *q, uint8_t *packed, size_t packed_len, uint64_t offset)
{
    uint64_t len = (packed_len + 511) & ~511ull;
    uint64_t host = 0;
    int r;

    memset(packed + packed_len, 0, len - packed_len);
    mutex_lock(&q->lock);
    r = qcow2_may_write_locked(q);
    if (r == 0) {
        r = take_sectors(q, len, &host);
    }
    mutex_unlock(&q->lock);
    if (r < 0) {
        return r;
    }
    r = block_file_pwrite(q->image.file, packed, len, host);
    while (r == 0) {
        mutex_lock(&q->lock);
        r = publish_packed(q, offset, host, len);
        mutex_unlock(&q->lock);
        if (r != -EBUSY) {
            break;
        }
        r = qcow2_flush(q);
    }
    if (r < 0) {
        mutex_lock(&q->lock);
        qcow2_unalloc_locked(q, host & ~(uint64_t)(q->cluster_bytes - 1), 1);
        q->packed_end = 0; /* the cluster may be free now */
        mutex_unlock(&q->lock);
    }
    return r;
}

static int write_whole(struct qcow2 *q, const uint8_t *cluster, uint64_t offset, uint64_t len)
{
    CLEANUP_FREE uint8_t *packed = malloc(q->cluster_bytes);
    size_t packed_len = 0;
    struct qcow2_claim claim;
    /* A write only reads what it is given. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)cluster, .iov_len = len};
    int r = packed ? pack(q, cluster, packed, &packed_len) : -ENOMEM;

    if (r == -E2BIG) {
        return qcow2_write(q, &iov, 1, offset, len);
    }
    if (r < 0) {
        return r;
    }
    mutex_lock(&q->lock);
    qcow2_bitmaps_mark_locked(q, offset, len);
    qcow2_claim_locked(q, &claim, offset, len);
    mutex_unlock(&q->lock);
    r = write_packed(q, packed, packed_len, offset);
    mutex_lock(&q->lock);
    qcow2_unclaim_locked(q, &claim);
    mutex_unlock(&q->lock);
    return r;
}

int qcow2_write_compressed(struct block_image *image, const void *buf, uint64_t len,
                           uint64_t offset)
{
    struct qcow2 *q = qcow2_of(image, true, NULL);
    CLEANUP_FREE uint8_t *padded = NULL;
    unsigned epoch;
    int r;

    if (!q) {
        return -ENOTSUP;
    }
    if (offset % q->cluster_bytes != 0 || len == 0 || len > q->cluster_bytes ||
        offset >= qcow2_size(q) || len > qcow2_size(q) - offset ||
        (len < q->cluster_bytes && offset + len != qcow2_size(q))) {
        return -EINVAL;
    }
    padded = calloc(1, q->cluster_bytes);
    if (!padded) {
        return -ENOMEM;
    }
    memcpy(padded, buf, len);
    epoch = qcow2_enter(q);
    r = write_whole(q, padded, offset, len);
    qcow2_leave(q, epoch);
    return r;
}
