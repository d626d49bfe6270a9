/* What one request does on an NBD connection, and the table of a file's operations. */
#include "block/nbd_int.h"

#include <errno.h>
#include <string.h>

#define BOUNCE_BYTES (1u << 20)
#define RANGE_BYTES (1u << 30) /* of one command without data; their length has 32 bits */

static struct nbd_file *to_nbd(struct block_file *file)
{
    return container_of(file, struct nbd_file, file);
}

/* ---- pieces, on the file's thread ---- */

/* Called inside libnbd: nothing of the handle may be touched here. */
static int on_answer(void *opaque, int *error)
{
    struct nbd_op *op = opaque;

    op->is_answered = true;
    /* What the server says of itself is not the guest's fault, whatever it says. */
    op->result = *error == 0 ? 0 : *error == ENOSPC ? -ENOSPC : *error == ENOMEM ? -ENOMEM : -EIO;
    nbd_list_append(&op->nbd->answered, op);
    return 1; /* the command is over */
}

/* Called inside libnbd when it has done with the piece, answered or not. */
static void on_release(void *opaque)
{
    ((struct nbd_op *)opaque)->is_held = false;
}

/* A connection that ends in the middle of sending is told of twice: here, and by an answer. */
static int sent(const struct nbd_op *op, int64_t cookie)
{
    return cookie >= 0 || op->is_held || op->is_answered ? 0 : -EIO;
}

/* The first extent, and those after it of the same kind. */
static int on_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
                      size_t count, int *error)
{
    struct nbd_op *op = opaque;
    uint64_t len = 0;
    bool is_zero = false;

    (void)error;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || offset != op->offset) {
        return 0;
    }
    for (size_t i = 0; i + 1 < count; i += 2) {
        bool this_zero = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;

        if (i > 0 && this_zero != is_zero) {
            break;
        }
        is_zero = this_zero;
        len += entries[i];
    }
    op->is_zero = is_zero && len > 0;
    op->known_bytes = len < op->len ? len : op->len;
    return 0;
}

static void gather(const struct nbd_op *op)
{
    uint64_t done = 0;

    for (unsigned i = 0; i < op->iov_count && done < op->piece; i++) {
        uint64_t left = op->piece - done;
        uint64_t some = op->iov[i].iov_len < left ? op->iov[i].iov_len : left;

        memcpy(op->bounce + done, op->iov[i].iov_base, some);
        done += some;
    }
}

static void scatter(const struct nbd_op *op)
{
    uint64_t done = 0;

    for (unsigned i = 0; i < op->iov_count && done < op->piece; i++) {
        uint64_t left = op->piece - done;
        uint64_t some = op->iov[i].iov_len < left ? op->iov[i].iov_len : left;

        memcpy(op->iov[i].iov_base, op->bounce + done, some);
        done += some;
    }
}

static int send_data(struct nbd_op *op, nbd_completion_callback callback)
{
    struct nbd_file *nbd = op->nbd;
    /* Where a flush means nothing, each write has to be durable by itself. */
    uint32_t flags = !nbd->export.can_flush && nbd->export.can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
    uint64_t max = nbd->export.max_bytes;
    void *buf;
    int64_t cookie;

    while (op->iov_count > 0 && op->iov->iov_len == 0) {
        block_iov_advance(&op->iov, &op->iov_count, 0);
    }
    op->is_bounced = op->iov->iov_len < op->len && op->iov->iov_len < max;
    if (op->is_bounced) {
        max = max < BOUNCE_BYTES ? max : BOUNCE_BYTES;
        op->piece = op->len < max ? op->len : max;
        if (!op->bounce) {
            op->bounce = malloc(op->piece);
        }
        if (!op->bounce) {
            return -ENOMEM;
        }
        if (op->kind == NBD_WRITE) {
            gather(op);
        }
        buf = op->bounce;
    } else {
        op->piece = op->len < max ? op->len : max;
        buf = op->iov->iov_base;
    }
    if (op->kind == NBD_READ) {
        cookie = nbd->lib.aio_pread(nbd->handle, buf, op->piece, op->offset, callback, 0);
    } else {
        cookie = nbd->lib.aio_pwrite(nbd->handle, buf, op->piece, op->offset, callback, flags);
    }
    return sent(op, cookie);
}

int nbd_op_send(struct nbd_op *op)
{
    struct nbd_file *nbd = op->nbd;
    nbd_completion_callback callback = {.callback = on_answer, .user_data = op, .free = on_release};
    nbd_extent_callback extents = {.callback = on_extents, .user_data = op};
    int64_t cookie = -1;

    op->piece = op->len < RANGE_BYTES ? op->len : RANGE_BYTES;
    op->is_held = true;
    op->is_answered = false;
    switch (op->kind) {
    case NBD_READ:
    case NBD_WRITE:
        return send_data(op, callback);
    case NBD_FLUSH:
        op->writes_before = nbd->writes_done;
        cookie = nbd->lib.aio_flush(nbd->handle, callback, 0);
        break;
    case NBD_TRIM:
        cookie = nbd->lib.aio_trim(nbd->handle, op->piece, op->offset, callback, 0);
        break;
    case NBD_ZERO:
        cookie = nbd->lib.aio_zero(nbd->handle, op->piece, op->offset, callback,
                                   op->may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
        break;
    case NBD_STATUS:
        cookie =
            nbd->lib.aio_block_status(nbd->handle, op->piece, op->offset, extents, callback, 0);
        break;
    }
    return sent(op, cookie);
}

bool nbd_op_advance(struct nbd_op *op)
{
    if (op->kind == NBD_FLUSH || op->kind == NBD_STATUS) {
        return true;
    }
    if (op->kind == NBD_READ && op->is_bounced) {
        scatter(op);
    }
    if (op->kind == NBD_READ || op->kind == NBD_WRITE) {
        block_iov_advance(&op->iov, &op->iov_count, op->piece);
    }
    op->offset += op->piece;
    op->len -= op->piece;
    return op->len == 0;
}

/* ---- the table ---- */

/* Somebody waits for this one. */
struct waiting_op {
    struct nbd_op op;
    bool is_over; /* guarded by the file's mutex */
};

static void wake_waiting(struct nbd_op *op)
{
    struct nbd_file *nbd = op->nbd;

    mutex_lock(&nbd->lock);
    container_of(op, struct waiting_op, op)->is_over = true;
    (void)pthread_cond_broadcast(&nbd->over); /* cannot fail */
    mutex_unlock(&nbd->lock);
}

static int run(struct nbd_file *nbd, struct waiting_op *waiting)
{
    waiting->op.nbd = nbd;
    waiting->op.done = wake_waiting;
    nbd_submit(nbd, &waiting->op);
    mutex_lock(&nbd->lock);
    while (!waiting->is_over) {
        (void)pthread_cond_wait(&nbd->over, &nbd->lock.raw); /* cannot fail */
    }
    mutex_unlock(&nbd->lock);
    return waiting->op.result;
}

static int check_range(const struct nbd_file *nbd, bool is_write, uint64_t offset, uint64_t len)
{
    uint64_t size = nbd->export.size_bytes;
    uint64_t mask = nbd->export.min_block - 1u;

    if (offset > size || len > size - offset) {
        return is_write ? -ENOSPC : -EIO; /* an export does not grow */
    }
    return ((offset | len) & mask) != 0 ? -EINVAL : 0;
}

static uint64_t iov_bytes(const struct iovec *iov, unsigned count)
{
    uint64_t len = 0;

    for (unsigned i = 0; i < count; i++) {
        len += iov[i].iov_len;
    }
    return len;
}

static int transfer(struct block_file *file, enum nbd_kind kind, struct iovec *iov, unsigned count,
                    uint64_t offset)
{
    struct nbd_file *nbd = to_nbd(file);
    struct waiting_op waiting = {.op = {.kind = kind,
                                        .offset = offset,
                                        .len = iov_bytes(iov, count),
                                        .iov = iov,
                                        .iov_count = count}};
    int r = check_range(nbd, kind == NBD_WRITE, offset, waiting.op.len);

    return r < 0 || waiting.op.len == 0 ? r : run(nbd, &waiting);
}

static int nbd_preadv(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset)
{
    return transfer(file, NBD_READ, iov, count, offset);
}

static int nbd_pwritev(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset)
{
    return transfer(file, NBD_WRITE, iov, count, offset);
}

/* A request that nobody waits for; it frees itself. */
struct started_op {
    struct nbd_op op;
    struct block_file_transfer *transfer;
};

static void tell_started(struct nbd_op *op)
{
    struct started_op *started = container_of(op, struct started_op, op);
    struct block_file_transfer *transfer = started->transfer;
    int result = op->result;

    free(started);
    transfer->done(transfer, result);
}

static int nbd_start(struct block_file *file, struct block_file_transfer *transfer)
{
    struct nbd_file *nbd = to_nbd(file);
    struct started_op *started;

    if (check_range(nbd, transfer->is_write, transfer->offset, transfer->len) < 0) {
        return -EAGAIN; /* the call that waits has words for it */
    }
    started = calloc(1, sizeof(*started));
    if (!started) {
        return -EAGAIN;
    }
    started->transfer = transfer;
    started->op = (struct nbd_op){.nbd = nbd,
                                  .kind = transfer->is_write ? NBD_WRITE : NBD_READ,
                                  .offset = transfer->offset,
                                  .len = transfer->len,
                                  .iov = transfer->iov,
                                  .iov_count = transfer->iov_count,
                                  .done = tell_started};
    nbd_submit(nbd, &started->op);
    return 0;
}

static int write_zero_bytes(struct block_file *file, uint64_t offset, uint64_t len)
{
    uint8_t *zeroes = calloc(1, BOUNCE_BYTES);
    int r = zeroes ? 0 : -ENOMEM;

    while (r == 0 && len > 0) {
        struct iovec iov = {.iov_base = zeroes, .iov_len = len < BOUNCE_BYTES ? len : BOUNCE_BYTES};
        uint64_t some = iov.iov_len;

        r = transfer(file, NBD_WRITE, &iov, 1, offset);
        offset += some;
        len -= some;
    }
    free(zeroes);
    return r;
}

static int nbd_write_zeroes(struct block_file *file, uint64_t offset, uint64_t len, bool may_unmap)
{
    struct nbd_file *nbd = to_nbd(file);
    struct waiting_op waiting = {
        .op = {.kind = NBD_ZERO, .offset = offset, .len = len, .may_unmap = may_unmap}};
    int r = check_range(nbd, true, offset, len);

    if (r < 0 || len == 0) {
        return r;
    }
    return nbd->export.can_zero ? run(nbd, &waiting) : write_zero_bytes(file, offset, len);
}

/* A hint: blocks that it covers in part are left alone. */
static int nbd_discard(struct block_file *file, uint64_t offset, uint64_t len)
{
    struct nbd_file *nbd = to_nbd(file);
    uint64_t mask = nbd->export.min_block - 1u;
    struct waiting_op waiting = {.op = {.kind = NBD_TRIM, .offset = (offset + mask) & ~mask}};

    if (!nbd->export.can_trim || offset + len > nbd->export.size_bytes ||
        ((offset + len) & ~mask) <= waiting.op.offset) {
        return 0;
    }
    waiting.op.len = ((offset + len) & ~mask) - waiting.op.offset;
    return run(nbd, &waiting);
}

static int nbd_truncate(struct block_file *file, uint64_t size_bytes)
{
    return size_bytes == to_nbd(file)->export.size_bytes ? 0 : -ENOTSUP;
}

static int nbd_allocate(struct block_file *file, uint64_t offset, uint64_t len)
{
    (void)file; /* what an export has is the server's affair */
    (void)offset;
    (void)len;
    return -EOPNOTSUPP;
}

static int nbd_flush_file(struct block_file *file)
{
    struct waiting_op waiting = {.op = {.kind = NBD_FLUSH}};

    return run(to_nbd(file), &waiting);
}

static int nbd_file_size(struct block_file *file, uint64_t *ret_size_bytes)
{
    *ret_size_bytes = to_nbd(file)->export.size_bytes;
    return 0;
}

/* Asks for whole blocks around the bytes, and tells of the bytes. */
static int nbd_status(struct block_file *file, uint64_t offset, uint64_t len, bool *ret_is_zero,
                      uint64_t *ret_len)
{
    struct nbd_file *nbd = to_nbd(file);
    uint64_t mask = nbd->export.min_block - 1u;
    uint64_t skip = offset & mask;
    struct waiting_op waiting = {
        .op = {.kind = NBD_STATUS, .offset = offset - skip, .len = (skip + len + mask) & ~mask}};
    int r = run(nbd, &waiting);

    if (r < 0) {
        return r;
    }
    if (waiting.op.known_bytes <= skip) { /* an answer that says nothing */
        *ret_is_zero = false;
        *ret_len = len;
        return 0;
    }
    *ret_is_zero = waiting.op.is_zero;
    *ret_len = waiting.op.known_bytes - skip < len ? waiting.op.known_bytes - skip : len;
    return 0;
}

static void nbd_close_op(struct block_file *file)
{
    nbd_close_file(to_nbd(file));
}

#define NBD_OPS                                                                     \
    .preadv = nbd_preadv, .pwritev = nbd_pwritev, .write_zeroes = nbd_write_zeroes, \
    .discard = nbd_discard, .truncate = nbd_truncate, .allocate = nbd_allocate,     \
    .flush = nbd_flush_file, .get_size = nbd_file_size, .start = nbd_start, .close = nbd_close_op

const struct block_file_ops nbd_file_ops = {NBD_OPS};
const struct block_file_ops nbd_file_ops_status = {NBD_OPS, .status = nbd_status};
