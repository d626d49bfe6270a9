/*
 * A file without the host's cache: whatever is not aligned as the disk asks
 * goes through a buffer, and a write that covers blocks in part reads them
 * first, one such write at a time. The same for peers that take whole blocks
 * only.
 */
#include "base/thread.h"
#include "block/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define DEFAULT_ALIGNMENT 4096u
#define BOUNCE_BYTES (256u << 10)

struct direct_file {
    struct block_file file;
    struct block_file *inner; /* owned */
    struct mutex lock;        /* one write that covers blocks in part at a time */
};

static struct direct_file *to_direct(struct block_file *file)
{
    return container_of(file, struct direct_file, file);
}

static uint64_t iov_bytes(const struct iovec *iov, unsigned count)
{
    uint64_t len = 0;

    for (unsigned i = 0; i < count; i++) {
        len += iov[i].iov_len;
    }
    return len;
}

static bool is_aligned(const struct block_file *file, const struct iovec *iov, unsigned count,
                       uint64_t offset)
{
    uint64_t bits = offset;

    if (file->fd < 0) { /* a peer does not see where memory lies */
        bits |= iov_bytes(iov, count);
        count = 0;
    }
    for (unsigned i = 0; i < count; i++) {
        bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    }
    return (bits & (file->alignment - 1u)) == 0;
}

/* Copies the next len bytes between a buffer and the vector, which is used up. */
static void iov_copy(struct iovec **iov, unsigned *count, uint8_t *buf, uint64_t len, bool to_iov)
{
    while (len > 0 && *count > 0) {
        uint64_t some = (*iov)->iov_len < len ? (*iov)->iov_len : len;

        if (to_iov) {
            memcpy((*iov)->iov_base, buf, some);
        } else {
            memcpy(buf, (*iov)->iov_base, some);
        }
        block_iov_advance(iov, count, some);
        buf += some;
        len -= some;
    }
}

/* Reads whole blocks; zeroes behind the end, where a file may end within a block. */
static int read_blocks(struct direct_file *direct, uint8_t *buf, uint64_t len, uint64_t offset)
{
    uint64_t size = 0;
    uint64_t mask = direct->file.alignment - 1u;
    uint64_t end;
    int r = direct->inner->ops->get_size(direct->inner, &size);

    if (r < 0) {
        return r;
    }
    end = (size + mask) & ~mask;
    if (offset + len > end) {
        uint64_t there = offset < end ? end - offset : 0;

        memset(buf + there, 0, len - there);
        len = there;
    }
    if (direct->inner->fd < 0) { /* a peer's; it ends where a block ends */
        return len > 0 ? block_file_pread(direct->inner, buf, len, offset) : 0;
    }
    while (len > 0) {
        ssize_t n = pread(direct->inner->fd, buf, len, (off_t)offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0 || (n & (ssize_t)mask) != 0) { /* the end lies in this block */
            memset(buf + n, 0, len - (uint64_t)n);
            return 0;
        }
        buf += n;
        offset += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

/* One buffer's worth: the bytes from offset on, at most *len of them, which it sets. */
static int bounce(struct direct_file *direct, uint8_t *buf, struct iovec **iov, unsigned *count,
                  uint64_t offset, uint64_t *len, bool is_write)
{
    uint64_t mask = direct->file.alignment - 1u;
    uint64_t start = offset & ~mask;
    uint64_t skip = offset - start;
    uint64_t whole;
    int r = 0;

    if (*len > BOUNCE_BYTES - skip) {
        *len = BOUNCE_BYTES - skip;
    }
    whole = (skip + *len + mask) & ~mask;
    if (!is_write || whole != *len) {
        r = read_blocks(direct, buf, whole, start);
    }
    if (r == 0) {
        iov_copy(iov, count, buf + skip, *len, !is_write);
    }
    return r == 0 && is_write ? block_file_pwrite(direct->inner, buf, whole, start) : r;
}

static int bounce_all(struct direct_file *direct, struct iovec *iov, unsigned count,
                      uint64_t offset, bool is_write)
{
    uint64_t left = iov_bytes(iov, count);
    uint8_t *buf = aligned_alloc(direct->file.alignment, BOUNCE_BYTES);
    int r = 0;

    if (buf == NULL) {
        return -ENOMEM;
    }
    while (left > 0 && r == 0) {
        uint64_t len = left;

        r = bounce(direct, buf, &iov, &count, offset, &len, is_write);
        offset += len;
        left -= len;
    }
    free(buf);
    return r;
}

static int direct_preadv(struct block_file *file, struct iovec *iov, unsigned count,
                         uint64_t offset)
{
    struct direct_file *direct = to_direct(file);
    uint64_t size = 0;
    int r;

    if (is_aligned(file, iov, count, offset)) {
        if (file->zeroes_past_end) { /* the format said so to this file; calls run side by side */
            __atomic_store_n(&direct->inner->zeroes_past_end, true, __ATOMIC_RELAXED);
        }
        return direct->inner->ops->preadv(direct->inner, iov, count, offset);
    }
    r = direct->inner->ops->get_size(direct->inner, &size);
    if (r == 0 && !file->zeroes_past_end && offset + iov_bytes(iov, count) > size) {
        r = -EIO; /* the file became shorter behind our back */
    }
    return r < 0 ? r : bounce_all(direct, iov, count, offset, false);
}

/* Keeps an unaligned end of the file where it belongs: the buffer's blocks went beyond it. */
static int trim(struct direct_file *direct, uint64_t old_size, uint64_t end)
{
    uint64_t size = 0;
    int r;

    if (direct->inner->is_device) {
        return 0;
    }
    r = direct->inner->ops->get_size(direct->inner, &size);
    if (end < old_size) {
        end = old_size;
    }
    return r == 0 && size > end ? direct->inner->ops->truncate(direct->inner, end) : r;
}

static int direct_pwritev(struct block_file *file, struct iovec *iov, unsigned count,
                          uint64_t offset)
{
    struct direct_file *direct = to_direct(file);
    uint64_t end = offset + iov_bytes(iov, count);
    uint64_t size = 0;
    int r;

    if (is_aligned(file, iov, count, offset)) {
        return direct->inner->ops->pwritev(direct->inner, iov, count, offset);
    }
    mutex_lock(&direct->lock);
    r = direct->inner->ops->get_size(direct->inner, &size);
    if (r == 0) {
        r = bounce_all(direct, iov, count, offset, true);
    }
    if (r == 0) {
        r = trim(direct, size, end);
    }
    mutex_unlock(&direct->lock);
    return r;
}

static int direct_write_zeroes(struct block_file *file, uint64_t offset, uint64_t len,
                               bool may_unmap)
{
    struct direct_file *direct = to_direct(file);
    struct iovec iov;
    uint8_t *zeroes;
    int r = direct->inner->ops->write_zeroes(direct->inner, offset, len, may_unmap);

    if (r != -EINVAL) {
        return r;
    }
    /* The file system cannot do it, and plain zeroes were not aligned. */
    zeroes = calloc(1, BOUNCE_BYTES);
    r = zeroes == NULL ? -ENOMEM : 0;
    while (len > 0 && r == 0) {
        uint64_t some = len < BOUNCE_BYTES ? len : BOUNCE_BYTES;

        iov = (struct iovec){.iov_base = zeroes, .iov_len = some};
        r = direct_pwritev(file, &iov, 1, offset);
        offset += some;
        len -= some;
    }
    free(zeroes);
    return r;
}

static int direct_discard(struct block_file *file, uint64_t offset, uint64_t len)
{
    struct direct_file *direct = to_direct(file);

    return direct->inner->ops->discard(direct->inner, offset, len);
}

static int direct_truncate(struct block_file *file, uint64_t size_bytes)
{
    struct direct_file *direct = to_direct(file);

    return direct->inner->ops->truncate(direct->inner, size_bytes);
}

static int direct_allocate(struct block_file *file, uint64_t offset, uint64_t len)
{
    struct direct_file *direct = to_direct(file);

    return direct->inner->ops->allocate(direct->inner, offset, len);
}

static int direct_flush(struct block_file *file)
{
    struct direct_file *direct = to_direct(file);

    return direct->inner->ops->flush(direct->inner);
}

static int direct_get_size(struct block_file *file, uint64_t *ret_size_bytes)
{
    struct direct_file *direct = to_direct(file);

    return direct->inner->ops->get_size(direct->inner, ret_size_bytes);
}

static int direct_status(struct block_file *file, uint64_t offset, uint64_t len, bool *ret_is_zero,
                         uint64_t *ret_len)
{
    struct block_file *inner = to_direct(file)->inner;

    return inner->ops->status(inner, offset, len, ret_is_zero, ret_len);
}

static int direct_start(struct block_file *file, struct block_file_transfer *transfer)
{
    struct block_file *inner = to_direct(file)->inner;

    return is_aligned(file, transfer->iov, transfer->iov_count, transfer->offset)
               ? inner->ops->start(inner, transfer)
               : -EAGAIN;
}

static void direct_close(struct block_file *file)
{
    struct direct_file *direct = to_direct(file);

    block_file_close(direct->inner);
    mutex_done(&direct->lock);
    free(direct);
}

#define DIRECT_OPS                                                                           \
    .preadv = direct_preadv, .pwritev = direct_pwritev, .write_zeroes = direct_write_zeroes, \
    .discard = direct_discard, .truncate = direct_truncate, .allocate = direct_allocate,     \
    .flush = direct_flush, .get_size = direct_get_size, .close = direct_close

static const struct block_file_ops direct_ops = {DIRECT_OPS};
/* Of files that have these two. */
static const struct block_file_ops peer_ops = {DIRECT_OPS, .start = direct_start};
static const struct block_file_ops peer_ops_status = {DIRECT_OPS, .start = direct_start,
                                                      .status = direct_status};

/* What the file system asks of direct I/O; a page where it does not say. */
static uint32_t find_alignment(int fd)
{
    struct statx st = {0};
    uint32_t alignment;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) != 0 ||
        (st.stx_mask & STATX_DIOALIGN) == 0) {
        return DEFAULT_ALIGNMENT;
    }
    alignment = st.stx_dio_mem_align > st.stx_dio_offset_align ? st.stx_dio_mem_align
                                                               : st.stx_dio_offset_align;
    return alignment >= 2 && alignment <= BOUNCE_BYTES / 4 && (alignment & (alignment - 1)) == 0
               ? alignment
               : DEFAULT_ALIGNMENT;
}

static void wrap(struct direct_file *direct, uint32_t alignment, struct block_file **file)
{
    mutex_init(&direct->lock, LOCK_RANK_FILE);
    direct->inner = *file;
    direct->file = **file;
    direct->file.ops = (*file)->ops->status  ? &peer_ops_status
                       : (*file)->ops->start ? &peer_ops
                                             : &direct_ops;
    direct->file.alignment = alignment;
    *file = &direct->file;
}

int block_file_make_direct(struct err *err, struct block_file **file)
{
    struct direct_file *direct = calloc(1, sizeof(*direct));
    int flags = fcntl((*file)->fd, F_GETFL);

    if (direct == NULL || flags < 0 || fcntl((*file)->fd, F_SETFL, flags | O_DIRECT) != 0) {
        int r = direct == NULL ? -ENOMEM : -errno;

        free(direct);
        return err_set_errno(err, r,
                             "the host's cache cannot be bypassed here; use "
                             "cache=writeback");
    }
    wrap(direct, find_alignment((*file)->fd), file);
    return 0;
}

int block_file_make_aligned(uint32_t alignment, struct err *err, struct block_file **file)
{
    struct direct_file *direct = calloc(1, sizeof(*direct));

    if (direct == NULL || alignment > BOUNCE_BYTES / 4) {
        int r = direct == NULL
                    ? err_set(err, -ENOMEM, "no memory for a disk")
                    : err_set(err, -ENOTSUP, "blocks of %u bytes are too long", alignment);

        free(direct);
        block_file_close(*file);
        return r;
    }
    wrap(direct, alignment, file);
    return 0;
}
