/* Access to the bytes that a fetched chain describes. */
#include "base/wire.h"
#include "virtio/virtqueue.h"

#include <errno.h>

/* A walk over len bytes at an offset of one direction of a chain. */
struct cursor {
    const struct virtq_seg *seg;
    const struct virtq_seg *end;
    uint32_t skip; /* bytes of seg already behind us */
    uint32_t left;
};

static int cursor_init(struct cursor *cursor, const struct virtq_chain *chain, enum gmem_dir dir,
                       uint32_t offset, uint32_t len)
{
    bool is_out = dir == GMEM_DEVICE_READS;
    uint32_t total = is_out ? chain->out_bytes : chain->in_bytes;

    if (offset > total || len > total - offset) {
        return -EBADMSG;
    }
    cursor->seg = is_out ? chain->segs : chain->segs + chain->out_count;
    cursor->end = cursor->seg + (is_out ? chain->out_count : chain->in_count);
    cursor->left = len;
    while (cursor->seg < cursor->end && offset >= cursor->seg->len) {
        offset -= cursor->seg->len;
        cursor->seg++;
    }
    cursor->skip = offset;
    return 0;
}

/* The next piece: false at the end. *ret_bad is set when its address wraps. */
static bool cursor_next(struct cursor *cursor, uint64_t *ret_gpa, uint32_t *ret_len, bool *ret_bad)
{
    uint32_t len;

    while (cursor->left > 0 && cursor->seg < cursor->end) {
        len = cursor->seg->len - cursor->skip;
        if (len > cursor->left) {
            len = cursor->left;
        }
        if (len == 0) {
            cursor->seg++;
            cursor->skip = 0;
            continue;
        }
        *ret_bad = !ck_add_u64(cursor->seg->gpa, cursor->skip, ret_gpa);
        *ret_len = len;
        cursor->left -= len;
        cursor->seg++;
        cursor->skip = 0;
        return true;
    }
    return false;
}

int virtq_chain_read(struct gmem *gmem, const struct virtq_chain *chain, uint32_t offset, void *buf,
                     uint32_t len)
{
    struct cursor cursor;
    uint8_t *to = buf;
    uint64_t address = 0;
    uint32_t piece = 0;
    bool bad = false;

    if (cursor_init(&cursor, chain, GMEM_DEVICE_READS, offset, len) != 0) {
        return -EBADMSG;
    }
    while (cursor_next(&cursor, &address, &piece, &bad)) {
        if (bad || gmem_read(gmem, gpa(address), to, piece) != 0) {
            return -EBADMSG;
        }
        to += piece;
    }
    return 0;
}

int virtq_chain_write(struct gmem *gmem, const struct virtq_chain *chain, uint32_t offset,
                      const void *buf, uint32_t len)
{
    struct cursor cursor;
    const uint8_t *from = buf;
    uint64_t address = 0;
    uint32_t piece = 0;
    bool bad = false;

    if (cursor_init(&cursor, chain, GMEM_DEVICE_WRITES, offset, len) != 0) {
        return -EBADMSG;
    }
    while (cursor_next(&cursor, &address, &piece, &bad)) {
        if (bad || gmem_write(gmem, gpa(address), from, piece) != 0) {
            return -EBADMSG;
        }
        from += piece;
    }
    return 0;
}

/* Unpins what the first done bytes pinned. */
void virtq_chain_unpin(struct gmem *gmem, const struct virtq_chain *chain, enum gmem_dir dir,
                       uint32_t offset, uint32_t len)
{
    struct cursor cursor;
    uint64_t address = 0;
    uint32_t piece = 0;
    bool bad = false;

    if (cursor_init(&cursor, chain, dir, offset, len) != 0) {
        return;
    }
    while (cursor_next(&cursor, &address, &piece, &bad)) {
        if (!bad) {
            gmem_unpin(gmem, gpa(address), piece, dir);
        }
    }
}

int virtq_chain_pin(struct gmem *gmem, const struct virtq_chain *chain, enum gmem_dir dir,
                    uint32_t offset, uint32_t len, struct iovec *iov, unsigned max)
{
    struct cursor cursor;
    uint64_t address = 0;
    uint32_t piece = 0;
    uint32_t done = 0;
    unsigned count = 0;
    bool bad = false;
    int n;

    if (cursor_init(&cursor, chain, dir, offset, len) != 0) {
        return -EBADMSG;
    }
    while (cursor_next(&cursor, &address, &piece, &bad)) {
        n = bad ? -EFAULT : gmem_pin(gmem, gpa(address), piece, dir, iov + count, max - count);
        if (n < 0) {
            virtq_chain_unpin(gmem, chain, dir, offset, done);
            return -EBADMSG;
        }
        count += (unsigned)n;
        done += piece;
    }
    return (int)count;
}
