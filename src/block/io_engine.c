#include "block/io_engine.h"

#include "base/io.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>

#define RING_ENTRIES 256u

/* Merging: limits of one joined transfer, and how many can be under way. What is this long costs no
 * less joined, and loses the disk's working on several at once. */
#define GROUP_IOV 256u
#define GROUP_BYTES (256u << 10)
#define GROUPS 64u

/* Copies of at least this much are shared with a worker; a wake-up costs less then. */
#define SHARE_BYTES (256u << 10)
/* Longer direct reads go to workers: to pin their pages is work for more than one thread. */
#define RING_BYTES (128u << 10)

/* What is copied in place at most; longer copies would keep the thread from others' requests. */
#define IN_PLACE_BYTES (4u << 20)

/* Adjacent operations as one transfer. */
struct group {
    struct io_engine *engine;
    struct io_op *members; /* by next */
    struct group *next_free;
    struct io_task task;
    int result;
    unsigned iov_count;
    uint64_t len;
    struct iovec iov[GROUP_IOV];
};

/* One transfer: an operation, or a group of them. */
struct transfer {
    struct io_op *op;    /* the only one, or the group's first */
    struct group *group; /* NULL: one operation */
    struct iovec *iov;
    unsigned iov_count;
    uint64_t len;
    bool is_alone; /* nothing else was queued with it */
};

struct io_engine {
    struct io_uring ring;
    bool has_ring;
    int refusal;
    int event_fd;
    struct io_port port;
    struct io_op *queued;
    struct io_op **queued_end;
    struct io_op *finished; /* done in place, to be told */
    struct io_op **finished_end;
    unsigned queued_count;
    unsigned finished_count;
    unsigned in_ring;
    unsigned unsubmitted;  /* entries that the kernel has not been told of */
    bool cannot_know_wait; /* the file system does not say whether a read would wait */
    bool may_share;        /* there is another processor */
    bool has_offered;      /* something may be on offer */
    struct group *free_groups;
    struct group *groups; /* GROUPS of them; untouched ones cost nothing */
    struct io_fault fault;
    uint64_t fault_count;
    struct io_engine_stats stats;
};

const char *io_backend_name(enum io_backend backend)
{
    return backend == IO_BACKEND_URING     ? "io_uring"
           : backend == IO_BACKEND_THREADS ? "threads"
                                           : "auto";
}

enum io_backend io_engine_backend(const struct io_engine *engine)
{
    return engine->has_ring ? IO_BACKEND_URING : IO_BACKEND_THREADS;
}

int io_engine_refusal(const struct io_engine *engine)
{
    return engine->refusal;
}

int io_engine_event_fd(const struct io_engine *engine)
{
    return engine->event_fd;
}

unsigned io_engine_in_flight(const struct io_engine *engine)
{
    return engine->queued_count + engine->finished_count + engine->in_ring + engine->port.in_flight;
}

void io_engine_inject(struct io_engine *engine, const struct io_fault *fault)
{
    engine->fault = *fault;
    engine->fault_count = 0;
}

void io_engine_stats(const struct io_engine *engine, struct io_engine_stats *ret_stats)
{
    *ret_stats = engine->stats;
}

/* ---- what is finished ---- */

static void finish(struct io_engine *engine, struct io_op *op, int64_t result)
{
    op->result = result;
    op->next = NULL;
    *engine->finished_end = op;
    engine->finished_end = &op->next;
    engine->finished_count++;
}

static unsigned tell_finished(struct io_engine *engine)
{
    unsigned count = 0;

    while (engine->finished) {
        struct io_op *op = engine->finished;

        engine->finished = op->next;
        if (!engine->finished) {
            engine->finished_end = &engine->finished;
        }
        engine->finished_count--;
        count++;
        op->done(op, (int)op->result);
    }
    return count;
}

/* ---- on workers ---- */

static void work_run(struct io_task *task)
{
    struct io_op *op = container_of(task, struct io_op, task);
    struct block_file *file = op->file;

    op->result = op->is_write ? file->ops->pwritev(file, op->iov, op->iov_count, op->offset)
                              : file->ops->preadv(file, op->iov, op->iov_count, op->offset);
}

static void work_done(struct io_task *task)
{
    struct io_op *op = container_of(task, struct io_op, task);

    op->done(op, (int)op->result);
}

/* On a thread of the file's. */
static void transfer_done(struct block_file_transfer *transfer, int result)
{
    struct io_op *op = container_of(transfer, struct io_op, transfer);

    op->result = result;
    io_port_post(&op->task);
}

static bool start_in_file(struct io_engine *engine, struct io_op *op)
{
    if (!op->file->ops->start) {
        return false;
    }
    op->task = (struct io_task){.done = work_done};
    op->transfer = (struct block_file_transfer){.is_write = op->is_write,
                                                .offset = op->offset,
                                                .len = op->len,
                                                .iov = op->iov,
                                                .iov_count = op->iov_count,
                                                .done = transfer_done};
    io_port_expect(&engine->port, &op->task);
    if (op->file->ops->start(op->file, &op->transfer) < 0) {
        io_port_forget(&engine->port);
        return false;
    }
    return true;
}

static void start_on_worker(struct io_engine *engine, struct io_op *op)
{
    if (start_in_file(engine, op)) {
        return;
    }
    op->task = (struct io_task){.run = work_run, .done = work_done};
    engine->stats.workers++;
    io_port_submit(&engine->port, &op->task);
}

/* The first done bytes of op have been transferred; a worker does the rest. */
static void continue_on_worker(struct io_engine *engine, struct io_op *op, uint64_t done)
{
    if (done > 0) {
        block_iov_advance(&op->iov, &op->iov_count, done);
        op->offset += done;
        op->len -= done;
    }
    start_on_worker(engine, op);
}

void io_engine_call(struct io_engine *engine, struct io_task *task)
{
    io_port_submit(&engine->port, task);
}

/* ---- groups ---- */

static void group_free(struct io_engine *engine, struct group *group)
{
    group->next_free = engine->free_groups;
    engine->free_groups = group;
}

static bool follows(const struct io_op *op, const struct io_op *next)
{
    return next->is_write == op->is_write && next->file == op->file &&
           next->offset == op->offset + op->len;
}

/* Takes the first queued operation and all that continue it. */
static void take_transfer(struct io_engine *engine, struct transfer *transfer)
{
    struct io_op *op = engine->queued;
    struct io_op *last = op;
    unsigned iov_count = op->iov_count;
    unsigned ops = 1;
    uint64_t len = op->len;

    while (last->next && follows(last, last->next) && engine->free_groups &&
           len + last->next->len <= GROUP_BYTES && iov_count + last->next->iov_count <= GROUP_IOV) {
        last = last->next;
        len += last->len;
        iov_count += last->iov_count;
        ops++;
    }
    *transfer = (struct transfer){.op = op,
                                  .iov = op->iov,
                                  .iov_count = iov_count,
                                  .len = len,
                                  .is_alone = engine->queued_count == 1};
    engine->queued = last->next;
    engine->queued_count -= ops;
    if (!engine->queued) {
        engine->queued_end = &engine->queued;
    }
    last->next = NULL;
    if (ops > 1) {
        struct group *group = engine->free_groups;

        engine->free_groups = group->next_free;
        group->members = op;
        group->iov_count = 0;
        for (; op; op = op->next) {
            memcpy(group->iov + group->iov_count, op->iov, op->iov_count * sizeof(*op->iov));
            group->iov_count += op->iov_count;
        }
        transfer->group = group;
        transfer->iov = group->iov;
        engine->stats.merged += ops - 1;
    }
}

/* What the ring, or a try that may not wait, leaves to somebody who may. */
static bool is_worth_a_worker(int64_t result)
{
    return result == -EAGAIN || result == -EINTR || result == -ECANCELED || result == -EOPNOTSUPP;
}

/* Ends a transfer of which result bytes, or a negative errno, came out. */
static void end_transfer(struct io_engine *engine, struct io_op *op, int64_t result)
{
    struct io_op *next;
    uint64_t done = result > 0 ? (uint64_t)result : 0;

    for (; op; op = next) {
        next = op->next;
        if (result < 0 && !is_worth_a_worker(result)) {
            finish(engine, op, result);
        } else if (done >= op->len) {
            done -= op->len;
            finish(engine, op, 0);
        } else {
            continue_on_worker(engine, op, done);
            done = 0;
        }
    }
}

/* A joined transfer that failed: each member gets an answer of its own. */
static void end_group(struct io_engine *engine, struct group *group, int64_t result)
{
    end_transfer(engine, group->members, result < 0 ? -EAGAIN : result);
    group_free(engine, group);
}

static void group_run(struct io_task *task)
{
    struct group *group = container_of(task, struct group, task);
    const struct io_op *first = group->members;
    struct block_file *file = first->file;

    group->result = first->is_write
                        ? file->ops->pwritev(file, group->iov, group->iov_count, first->offset)
                        : file->ops->preadv(file, group->iov, group->iov_count, first->offset);
}

static void group_done(struct io_task *task)
{
    struct group *group = container_of(task, struct group, task);

    end_group(group->engine, group, group->result < 0 ? group->result : INT64_MAX);
}

/* A joined transfer stays one: a wake-up and a call for all of it. */
static void start_on_worker_any(struct io_engine *engine, const struct transfer *transfer)
{
    struct group *group = transfer->group;

    if (!group) {
        start_on_worker(engine, transfer->op);
        return;
    }
    group->engine = engine;
    group->task = (struct io_task){.run = group_run, .done = group_done};
    engine->stats.workers++;
    io_port_submit(&engine->port, &group->task);
}

/* ---- transfers ---- */

static bool is_aligned(const struct transfer *transfer)
{
    uint64_t mask = transfer->op->file->alignment - 1u;
    uint64_t bits = transfer->op->offset;

    for (unsigned i = 0; i < transfer->iov_count; i++) {
        bits |= (uintptr_t)transfer->iov[i].iov_base | transfer->iov[i].iov_len;
    }
    return (bits & mask) == 0;
}

static void end_any(struct io_engine *engine, const struct transfer *transfer, int64_t result)
{
    if (transfer->group) {
        end_group(engine, transfer->group, result);
    } else {
        end_transfer(engine, transfer->op, result);
    }
}

/* True when this transfer is one that a test wants to fail, and has been ended. */
static bool inject(struct io_engine *engine, const struct transfer *transfer)
{
    const struct io_fault *fault = &engine->fault;
    ssize_t n;

    if (likely(fault->nth == 0)) {
        return false;
    }
    engine->fault_count++;
    if (engine->fault_count < fault->nth ||
        (engine->fault_count > fault->nth && !fault->is_sticky)) {
        return false;
    }
    if (!fault->is_short) {
        if (transfer->group) {
            struct group *group = transfer->group;

            end_transfer(engine, group->members, fault->error);
            group_free(engine, group);
        } else {
            end_transfer(engine, transfer->op, fault->error);
        }
        return true;
    }
    /* Half of the first piece arrives; the rest has to be found missing. */
    n = transfer->op->is_write ? pwrite(transfer->op->file->fd, transfer->iov->iov_base,
                                        transfer->iov->iov_len / 2, (off_t)transfer->op->offset)
                               : pread(transfer->op->file->fd, transfer->iov->iov_base,
                                       transfer->iov->iov_len / 2, (off_t)transfer->op->offset);
    end_any(engine, transfer, n < 0 ? -errno : n);
    return true;
}

/*
 * Does a transfer through the page cache when that takes no longer than a
 * copy: writes always, reads when all is there. True when it is over.
 */
static bool try_in_place(struct io_engine *engine, const struct transfer *transfer)
{
    const struct io_op *op = transfer->op;
    ssize_t n;

    if (op->file->alignment > 1 || transfer->len > IN_PLACE_BYTES) {
        return false;
    }
    if (op->is_write) {
        n = pwritev(op->file->fd, transfer->iov, (int)transfer->iov_count, (off_t)op->offset);
    } else if (!engine->cannot_know_wait) {
        n = preadv2(op->file->fd, transfer->iov, (int)transfer->iov_count, (off_t)op->offset,
                    RWF_NOWAIT);
        if (n < 0 && errno == EOPNOTSUPP) {
            engine->cannot_know_wait = true;
        }
        if ((n < 0 && (errno == EAGAIN || errno == EOPNOTSUPP)) ||
            (n >= 0 && (uint64_t)n < transfer->len)) {
            return false; /* the ring reads it all again, from the cache as far as it can */
        }
    } else if (transfer->is_alone) {
        n = preadv(op->file->fd, transfer->iov, (int)transfer->iov_count, (off_t)op->offset);
    } else {
        return false;
    }
    engine->stats.in_place++;
    end_any(engine, transfer, n < 0 ? -errno : n);
    return true;
}

/* The lowest bit of an entry's tag tells groups from operations. */
static uint64_t tag_of(const struct transfer *transfer)
{
    return transfer->group ? (uint64_t)(uintptr_t)transfer->group | 1u
                           : (uint64_t)(uintptr_t)transfer->op;
}

static void start_in_ring(struct io_engine *engine, const struct transfer *transfer)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);
    const struct io_op *op = transfer->op;

    assert(sqe); /* in_ring stays below the ring's size, and all entries are submitted */
    io_uring_prep_readv(sqe, op->file->fd, transfer->iov, transfer->iov_count, op->offset);
    io_uring_sqe_set_data64(sqe, tag_of(transfer));
    engine->in_ring++;
    engine->unsubmitted++;
    engine->stats.ring++;
}

/* Direct writes complete in a thread of the kernel when they are asynchronous, and wait for its
 * turn; a worker's own write returns when the disk has it. */
static bool is_for_ring(const struct io_engine *engine, const struct transfer *transfer)
{
    const struct io_op *op = transfer->op;

    return engine->has_ring && op->file->fd >= 0 && !op->is_write &&
           (op->file->alignment == 1 || transfer->len <= RING_BYTES) && is_aligned(transfer);
}

static void start_anywhere(struct io_engine *engine, const struct transfer *transfer)
{
    if (transfer->op->file->fd >= 0 && try_in_place(engine, transfer)) {
        return;
    }
    if (is_for_ring(engine, transfer)) {
        start_in_ring(engine, transfer);
        return;
    }
    if (transfer->op->file->ops->start) {
        end_any(engine, transfer, -EAGAIN); /* each by itself: its peer has all at once anyhow */
        return;
    }
    start_on_worker_any(engine, transfer);
}

/* Long copies, of which there are several, are there for whoever comes first. True when it was
 * offered. Writes are not: the kernel lets one at a time into a file. */
static bool offer(struct io_engine *engine, const struct transfer *transfer)
{
    struct io_op *op = transfer->op;
    struct group *group = transfer->group;

    if (!engine->may_share || op->is_write || op->file->fd < 0 || op->file->alignment > 1 ||
        transfer->len < SHARE_BYTES || engine->cannot_know_wait ||
        (!engine->queued && !engine->has_offered)) {
        return false;
    }
    if (group) {
        group->engine = engine;
        group->len = transfer->len;
        group->task = (struct io_task){.run = group_run, .done = group_done};
    } else {
        op->task = (struct io_task){.run = work_run, .done = work_done};
    }
    engine->has_offered = true;
    engine->stats.workers++;
    io_port_offer(&engine->port, group ? &group->task : &op->task);
    return true;
}

/* What was offered and nobody has taken. */
static bool take_offered(struct io_engine *engine, struct transfer *transfer)
{
    struct io_task *task = io_port_take_back(&engine->port);

    if (!task) {
        engine->has_offered = false;
        return false;
    }
    engine->stats.workers--;
    if (task->run == group_run) {
        struct group *group = container_of(task, struct group, task);

        *transfer = (struct transfer){.op = group->members,
                                      .group = group,
                                      .iov = group->iov,
                                      .iov_count = group->iov_count,
                                      .len = group->len};
    } else {
        struct io_op *op = container_of(task, struct io_op, task);

        *transfer =
            (struct transfer){.op = op, .iov = op->iov, .iov_count = op->iov_count, .len = op->len};
    }
    return true;
}

static void start_transfer(struct io_engine *engine, const struct transfer *transfer)
{
    if (transfer->op->file->fd >= 0 && inject(engine, transfer)) {
        return;
    }
    if (!offer(engine, transfer)) {
        start_anywhere(engine, transfer);
    }
}

static void reap_ring(struct io_engine *engine)
{
    struct io_uring_cqe *cqe;

    while (engine->in_ring > 0 && io_uring_peek_cqe(&engine->ring, &cqe) == 0) {
        uint64_t tag = io_uring_cqe_get_data64(cqe);
        int64_t result = cqe->res;

        io_uring_cqe_seen(&engine->ring, cqe);
        engine->in_ring--;
        if (tag & 1u) {
            end_group(engine, (struct group *)(uintptr_t)(tag & ~1ull), result);
        } else {
            end_transfer(engine, (struct io_op *)(uintptr_t)tag, result);
        }
    }
}

/* Gives entries to the kernel; what it will not take now stays in the ring for the next time. */
static void submit_ring(struct io_engine *engine)
{
    int n;

    /* What completes during submission is reaped after it, and needs no event. */
    (void)io_uring_cq_eventfd_toggle(&engine->ring, false);
    while (engine->unsubmitted > 0) {
        n = io_uring_submit(&engine->ring);
        if (n == -EINTR) {
            continue;
        }
        if (n <= 0) {
            io_eventfd_signal(engine->event_fd); /* memory is short: once more, soon */
            break;
        }
        engine->unsubmitted -= (unsigned)n;
    }
    (void)io_uring_cq_eventfd_toggle(&engine->ring, true);
}

static void start_queued(struct io_engine *engine)
{
    struct transfer transfer;

    while (engine->queued && engine->in_ring < RING_ENTRIES) {
        take_transfer(engine, &transfer);
        start_transfer(engine, &transfer);
    }
    while (engine->has_offered && engine->in_ring < RING_ENTRIES &&
           take_offered(engine, &transfer)) {
        start_anywhere(engine, &transfer);
    }
    if (engine->unsubmitted > 0) {
        submit_ring(engine);
        reap_ring(engine); /* what was at hand is complete already */
    }
}

void io_engine_queue(struct io_engine *engine, struct io_op *op)
{
    op->engine = engine;
    op->next = NULL;
    *engine->queued_end = op;
    engine->queued_end = &op->next;
    engine->queued_count++;
}

void io_engine_submit(struct io_engine *engine)
{
    start_queued(engine);
    (void)tell_finished(engine);
}

void io_engine_clear(struct io_engine *engine)
{
    (void)io_eventfd_drain(engine->event_fd);
}

unsigned io_engine_reap(struct io_engine *engine)
{
    unsigned count = 0;
    unsigned before;

    do {
        before = count;
        reap_ring(engine);
        count += io_port_deliver(&engine->port);
        start_queued(engine);
        count += tell_finished(engine);
    } while (count != before);
    return count;
}

void io_engine_wait(struct io_engine *engine)
{
    struct pollfd fd = {.fd = engine->event_fd, .events = POLLIN};

    (void)poll(&fd, 1, -1); /* an interrupted wait only reaps too early */
}

/* ---- creation ---- */

static int open_ring(struct io_engine *engine)
{
    int r = io_uring_queue_init(RING_ENTRIES, &engine->ring, 0);

    if (r < 0) {
        return r;
    }
    engine->has_ring = true;
    (void)io_uring_ring_dontfork(&engine->ring); /* nobody forks; only saves page tables */
    r = io_uring_register_eventfd(&engine->ring, engine->event_fd);
    if (r < 0) {
        io_uring_queue_exit(&engine->ring);
        engine->has_ring = false;
    }
    return r;
}

int io_engine_create(const struct io_engine_config *config, struct err *err,
                     struct io_engine **ret_engine)
{
    struct io_engine *engine = calloc(1, sizeof(*engine));

    if (!engine) {
        return err_set(err, -ENOMEM, "no memory for an I/O engine");
    }
    engine->queued_end = &engine->queued;
    engine->finished_end = &engine->finished;
    engine->groups = calloc(GROUPS, sizeof(*engine->groups));
    engine->may_share = sysconf(_SC_NPROCESSORS_ONLN) > 1;
    engine->event_fd = io_eventfd();
    if (!engine->groups || engine->event_fd < 0) {
        int r = engine->groups ? engine->event_fd : -ENOMEM;

        io_engine_destroy(engine);
        return err_set_errno(err, r, "cannot make an I/O engine");
    }
    for (unsigned i = GROUPS; i-- > 0;) {
        group_free(engine, &engine->groups[i]);
    }
    io_port_init(&engine->port, config->pool, engine->event_fd);
    if (config->backend != IO_BACKEND_THREADS) {
        engine->refusal = open_ring(engine);
    }
    if (config->backend == IO_BACKEND_URING && !engine->has_ring) {
        int r = engine->refusal;

        io_engine_destroy(engine);
        return err_set_errno(err, r, "io_uring is not to be had here; use aio=threads");
    }
    *ret_engine = engine;
    return 0;
}

void io_engine_destroy(struct io_engine *engine)
{
    if (!engine) {
        return;
    }
    assert(io_engine_in_flight(engine) == 0);
    if (engine->has_ring) {
        io_uring_queue_exit(&engine->ring);
    }
    if (engine->event_fd >= 0) {
        (void)close(engine->event_fd); /* an eventfd has nothing to lose */
    }
    free(engine->groups);
    free(engine);
}
