/*
 * Packing and unpacking one cluster: a raw deflate stream with a window of
 * 4 KiB, or one zstd frame.
 *
 * What the libraries need for it is a quarter of a MiB, which is not made anew
 * for each cluster but kept for the next one.
 */
#define ZLIB_CONST
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define WINDOW_BITS (-12)
#define WINDOW_BYTES 4096u
#define ZSTD_LEVEL 3
#define KEPT_BYTES (256u << 10)
/* Of the test for what cannot be packed. */
#define SAMPLE_BYTES 16384u
#define PLACES_BITS 12u
#define FEW_REPEATS 64u

struct qcow2_packer {
    struct qcow2_packer *next;
    z_stream deflate, inflate;
    bool has_deflate, has_inflate;
    ZSTD_CCtx *zstd;
    ZSTD_DCtx *unzstd;
    uint8_t *buf;
    size_t buf_bytes;
};

void qcow2_packers_init(struct qcow2_packers *packers)
{
    mutex_init(&packers->lock, LOCK_RANK_LEAF);
    packers->idle = NULL;
}

static void packer_free(struct qcow2_packer *packer)
{
    if (packer->has_deflate) {
        (void)deflateEnd(&packer->deflate); /* only frees */
    }
    if (packer->has_inflate) {
        (void)inflateEnd(&packer->inflate); /* only frees */
    }
    (void)ZSTD_freeCCtx(packer->zstd); /* neither can fail */
    (void)ZSTD_freeDCtx(packer->unzstd);
    free(packer->buf);
    free(packer);
}

void qcow2_packers_done(struct qcow2_packers *packers)
{
    while (packers->idle) {
        struct qcow2_packer *packer = packers->idle;

        packers->idle = packer->next;
        packer_free(packer);
    }
    mutex_done(&packers->lock);
}

struct qcow2_packer *qcow2_packer_take(struct qcow2_packers *packers)
{
    struct qcow2_packer *packer;

    mutex_lock(&packers->lock);
    packer = packers->idle;
    if (packer) {
        packers->idle = packer->next;
    }
    mutex_unlock(&packers->lock);
    return packer ? packer : calloc(1, sizeof(*packer));
}

void qcow2_packer_give(struct qcow2_packers *packers, struct qcow2_packer *packer)
{
    if (packer->buf_bytes > KEPT_BYTES) {
        free(packer->buf);
        packer->buf = NULL;
        packer->buf_bytes = 0;
    }
    mutex_lock(&packers->lock);
    packer->next = packers->idle;
    packers->idle = packer;
    mutex_unlock(&packers->lock);
}

uint8_t *qcow2_packer_buf(struct qcow2_packer *packer, size_t bytes)
{
    if (packer->buf_bytes < bytes) {
        free(packer->buf);
        packer->buf = malloc(bytes);
        packer->buf_bytes = packer->buf ? bytes : 0;
    }
    return packer->buf;
}

/* ---- unpacking ---- */

static int inflate_cluster(struct qcow2_packer *packer, const void *packed, size_t len,
                           void *cluster, uint32_t cluster_bytes)
{
    z_stream *stream = &packer->inflate;
    int r;

    if (!packer->has_inflate && inflateInit2(stream, WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    packer->has_inflate = true;
    if (inflateReset(stream) != Z_OK) {
        return -EIO;
    }
    stream->next_in = packed;
    stream->avail_in = (uInt)len;
    stream->next_out = cluster;
    stream->avail_out = cluster_bytes;
    r = inflate(stream, Z_FINISH);
    /* Bytes of the last sector behind the stream belong to nobody. */
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && stream->avail_out == 0 ? 0 : -EIO;
}

/* Whatever a decoder can make of it: several frames, or more than the cluster takes. */
static int unzstd_stream(const void *packed, size_t len, void *cluster, uint32_t cluster_bytes)
{
    ZSTD_DCtx *context = ZSTD_createDCtx(); /* its memory is the frame's choice, and not kept */
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

/* One frame of a cluster's length, which goes to its place without a window beside. */
static int unzstd_cluster(struct qcow2_packer *packer, const void *packed, size_t len,
                          void *cluster, uint32_t cluster_bytes)
{
    size_t frame = ZSTD_findFrameCompressedSize(packed, len);

    if (!packer->unzstd) {
        packer->unzstd = ZSTD_createDCtx();
    }
    if (!packer->unzstd) {
        return -ENOMEM;
    }
    if (!ZSTD_isError(frame) && ZSTD_decompressDCtx(packer->unzstd, cluster, cluster_bytes, packed,
                                                    frame) == cluster_bytes) {
        return 0;
    }
    return unzstd_stream(packed, len, cluster, cluster_bytes);
}

int qcow2_packer_unpack(struct qcow2_packer *packer, uint8_t compression, const void *packed,
                        size_t len, void *cluster, uint32_t cluster_bytes)
{
    return compression == 0 ? inflate_cluster(packer, packed, len, cluster, cluster_bytes)
                            : unzstd_cluster(packer, packed, len, cluster, cluster_bytes);
}

/* ---- packing ---- */

/* Whether all bytes are about as frequent, nearly 8 bits of content in each: the chance that two
 * are the same is at most 3 % above what it is for random ones. */
static bool is_even(const uint8_t *data)
{
    uint32_t counts[256] = {0};
    uint64_t squares = 0;

    for (uint32_t i = 0; i < SAMPLE_BYTES; i++) {
        counts[data[i]]++;
    }
    for (uint32_t i = 0; i < 256; i++) {
        squares += (uint64_t)counts[i] * counts[i];
    }
    return squares <= (uint64_t)SAMPLE_BYTES * SAMPLE_BYTES / 256 * 103 / 100;
}

static bool has_few_repeats(const uint8_t *data, uint32_t len)
{
    uint32_t places[1u << PLACES_BITS] = {0};
    uint32_t repeats = 0;

    for (uint32_t i = 1; i + 4 <= len && repeats < FEW_REPEATS; i++) {
        uint32_t now, then, *place;

        memcpy(&now, data + i, sizeof(now));
        place = &places[now * 0x9e3779b1u >> (32 - PLACES_BITS)];
        memcpy(&then, data + *place, sizeof(then));
        repeats += then == now && i - *place <= WINDOW_BYTES;
        *place = i;
    }
    return repeats < FEW_REPEATS;
}

/* Deflating takes longest where nothing comes of it: what is packed or encrypted already. */
static bool is_hopeless(const uint8_t *data, uint32_t len)
{
    if (len < SAMPLE_BYTES) {
        return false;
    }
    for (uint32_t at = 0; at + SAMPLE_BYTES <= len; at += SAMPLE_BYTES) {
        if (!is_even(data + at)) {
            return false;
        }
    }
    return has_few_repeats(data, len);
}

static int deflate_cluster(struct qcow2_packer *packer, const uint8_t *cluster,
                           uint32_t cluster_bytes, void *packed, size_t *ret_len)
{
    z_stream *stream = &packer->deflate;

    if (is_hopeless(cluster, cluster_bytes)) {
        return -E2BIG;
    }
    if (!packer->has_deflate && deflateInit2(stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS,
                                             9, Z_DEFAULT_STRATEGY) != Z_OK) {
        return -ENOMEM;
    }
    packer->has_deflate = true;
    if (deflateReset(stream) != Z_OK) {
        return -EIO;
    }
    stream->next_in = cluster;
    stream->avail_in = cluster_bytes;
    stream->next_out = packed;
    stream->avail_out = cluster_bytes - 512;
    if (deflate(stream, Z_FINISH) != Z_STREAM_END) {
        return -E2BIG;
    }
    *ret_len = cluster_bytes - 512 - stream->avail_out;
    return 0;
}

static int zstd_cluster(struct qcow2_packer *packer, const void *cluster, uint32_t cluster_bytes,
                        void *packed, size_t *ret_len)
{
    size_t len;

    if (!packer->zstd) {
        packer->zstd = ZSTD_createCCtx();
    }
    if (!packer->zstd) {
        return -ENOMEM;
    }
    len = ZSTD_compressCCtx(packer->zstd, packed, cluster_bytes - 512, cluster, cluster_bytes,
                            ZSTD_LEVEL);
    if (ZSTD_isError(len)) {
        return -E2BIG;
    }
    *ret_len = len;
    return 0;
}

int qcow2_packer_pack(struct qcow2_packer *packer, uint8_t compression, const void *cluster,
                      uint32_t cluster_bytes, void *packed, size_t *ret_len)
{
    if (cluster_bytes <= 512) {
        return -E2BIG;
    }
    return compression == 0 ? deflate_cluster(packer, cluster, cluster_bytes, packed, ret_len)
                            : zstd_cluster(packer, cluster, cluster_bytes, packed, ret_len);
}
