/* gzip, xz and zstd, by their libraries, in a jail. */
#include "base/io.h"
#include "storage/import_internal.h"

#include <errno.h>
#include <lzma.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define IN_BYTES (256u << 10)
#define OUT_BYTES (1u << 20)
#define GRAIN_BYTES 4096u
#define XZ_MEMORY_BYTES (256ull << 20) /* of a dictionary */
#define ZSTD_WINDOW_LOG 27             /* 128 MiB, as the zstd program allows unless told more */

struct decompression {
    const struct import_part *in;
    enum import_compression compression;
    uint64_t max_bytes;
    int out;
    uint64_t taken, made; /* bytes */
    unsigned char *in_buf, *out_buf;
};

/* The next bytes of the source: their number, 0 at its end. */
static ssize_t fill(struct decompression *d)
{
    uint64_t left = d->in->len - d->taken;
    ssize_t n = io_pread_full(d->in->fd, d->in_buf, left < IN_BYTES ? (size_t)left : IN_BYTES,
                              d->in->offset + d->taken);

    d->taken += n > 0 ? (uint64_t)n : 0;
    return n;
}

/* Grains of zeroes stay holes. */
static int drain(struct decompression *d, size_t len)
{
    static const unsigned char zeroes[GRAIN_BYTES];

    if (len > d->max_bytes - d->made) {
        return -EFBIG;
    }
    for (size_t done = 0; done < len;) {
        size_t grain = len - done < GRAIN_BYTES ? len - done : GRAIN_BYTES;
        int rc = 0;

        if (memcmp(d->out_buf + done, zeroes, grain) != 0) {
            rc = io_pwrite_full(d->out, d->out_buf + done, grain, d->made + done);
        }
        if (rc < 0) {
            return rc;
        }
        done += grain;
    }
    d->made += len;
    return 0;
}

static int inflate_all(struct decompression *d)
{
    z_stream z = {.avail_in = 0};
    bool is_between = false; /* members of the file */
    int rc = inflateInit2(&z, 15 + 16) == Z_OK ? 0 : -ENOMEM;

    while (rc == 0) {
        int code;

        if (z.avail_in == 0) {
            ssize_t n = fill(d);

            if (n <= 0) {
                rc = n < 0 ? (int)n : is_between ? 0 : -EBADMSG;
                break;
            }
            z.next_in = d->in_buf;
            z.avail_in = (uInt)n;
        }
        if (is_between && inflateReset(&z) != Z_OK) {
            rc = -EBADMSG;
            break;
        }
        z.next_out = d->out_buf;
        z.avail_out = OUT_BYTES;
        code = inflate(&z, Z_NO_FLUSH);
        is_between = code == Z_STREAM_END;
        rc = code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR
                 ? drain(d, OUT_BYTES - z.avail_out)
                 : -EBADMSG;
    }
    (void)inflateEnd(&z); /* frees only */
    return rc;
}

static int unxz_all(struct decompression *d)
{
    lzma_stream z = LZMA_STREAM_INIT;
    lzma_action action = LZMA_RUN;
    lzma_ret code = lzma_stream_decoder(&z, XZ_MEMORY_BYTES, LZMA_CONCATENATED);
    int rc = code == LZMA_OK ? 0 : -ENOMEM;

    while (rc == 0 && code != LZMA_STREAM_END) {
        if (z.avail_in == 0 && action == LZMA_RUN) {
            ssize_t n = fill(d);

            rc = n < 0 ? (int)n : 0;
            action = n == 0 ? LZMA_FINISH : LZMA_RUN;
            z.next_in = d->in_buf;
            z.avail_in = n > 0 ? (size_t)n : 0;
        }
        z.next_out = d->out_buf;
        z.avail_out = OUT_BYTES;
        code = rc == 0 ? lzma_code(&z, action) : code;
        if (rc == 0) {
            rc = code == LZMA_OK || code == LZMA_STREAM_END ? drain(d, OUT_BYTES - z.avail_out)
                                                            : -EBADMSG;
        }
    }
    lzma_end(&z);
    return rc;
}

static int unzstd_all(struct decompression *d)
{
    ZSTD_DCtx *z = ZSTD_createDCtx();
    size_t state = 1; /* 0 between frames */
    int rc = z != NULL ? 0 : -ENOMEM;

    if (rc == 0 && ZSTD_isError(ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG))) {
        rc = -EINVAL;
    }
    while (rc == 0) {
        ssize_t n = fill(d);
        ZSTD_inBuffer in = {.src = d->in_buf, .size = n > 0 ? (size_t)n : 0};
        ZSTD_outBuffer out = {.dst = d->out_buf, .size = OUT_BYTES};

        if (n <= 0) {
            rc = n < 0 ? (int)n : state == 0 ? 0 : -EBADMSG;
            break;
        }
        /* Once more after the input is used up, when the last call filled the whole output. */
        while (rc == 0 && (in.pos < in.size || (state != 0 && out.pos == out.size))) {
            out.pos = 0;
            state = ZSTD_decompressStream(z, &out, &in);
            rc = ZSTD_isError(state) ? -EBADMSG : drain(d, out.pos);
        }
    }
    (void)ZSTD_freeDCtx(z); /* cannot fail */
    return rc;
}

/* In the jail. */
static int decompress_shut_in(void *opaque, struct err *err)
{
    struct decompression *d = opaque;
    int rc;

    d->in_buf = malloc(IN_BYTES);
    d->out_buf = malloc(OUT_BYTES);
    if (d->in_buf == NULL || d->out_buf == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = d->compression == COMPRESSION_GZIP ? inflate_all(d)
         : d->compression == COMPRESSION_XZ ? unxz_all(d)
                                            : unzstd_all(d);
    if (rc == 0 && ftruncate(d->out, (off_t)d->made) != 0) {
        rc = -errno;
    }
    if (rc == -EFBIG) {
        return err_set(err, rc,
                       "what is packed is longer than %llu bytes, which is the limit "
                       "(--max-size)",
                       (unsigned long long)d->max_bytes);
    }
    if (rc == -EBADMSG) {
        return err_set(err, rc, "the packed file is damaged, cut off, or packed otherwise");
    }
    return rc < 0 ? err_set_errno(err, rc, "the packed file cannot be unpacked") : 0;
}

int import_decompress(const struct import_part *in, enum import_compression compression,
                      uint64_t max_bytes, int out, struct err *err)
{
    struct decompression d = {
        .in = in, .compression = compression, .max_bytes = max_bytes, .out = out};
    struct jail_limits limits;

    import_limits(in->len, max_bytes, &limits);
    return jail_run(&limits, decompress_shut_in, &d, err);
}
