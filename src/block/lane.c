/* The way of a request through the block core. */
#include "base/clock.h"
#include "base/io.h"
#include "base/loop.h"
#include "block/block_core.h"
#include "block/tracker.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

static void list_init(struct request_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

static void list_append(struct request_list *list, struct block_request *request)
{
    request->next = NULL;
    *list->end = request;
    list->end = &request->next;
}

static struct block_request *list_take_first(struct request_list *list)
{
    struct block_request *request = list->first;

    if (request) {
        list->first = request->next;
        if (!list->first) {
            list->end = &list->first;
        }
    }
    return request;
}

/* Moves all of from behind what to has. */
static void list_move(struct request_list *to, struct request_list *from)
{
    if (from->first) {
        *to->end = from->first;
        to->end = from->end;
        list_init(from);
    }
}

static int check_request(const struct block *block, const struct block_request *request)
{
    uint64_t size = block_size_bytes(block);

    if (request->offset > size || request->len > size - request->offset) {
        return -EINVAL;
    }
    if (block_is_read_only(block) && request->op != BLOCK_READ && request->op != BLOCK_FLUSH) {
        return -EROFS;
    }
    return 0;
}

void block_submit(struct block *block, unsigned index, struct block_request *request)
{
    struct lane *lane = &block->lanes[index];

    request->result = check_request(block, request);
    request->submitted_ns = clock_monotonic_ns();
    (void)atomic_fetch_add_explicit(&lane->in_flight, 1, memory_order_relaxed);
    list_append(request->result == 0 ? &lane->queued : &lane->done, request);
}

/* ---- slots ---- */

static struct lane_slot *slot_take(struct lane *lane, struct block_request *request)
{
    struct lane_slot *slot = lane->free_slots;

    if (slot) {
        lane->free_slots = slot->next_free;
    } else {
        slot = calloc(1, sizeof(*slot));
        if (!slot) {
            return NULL;
        }
        slot->lane = lane;
    }
    slot->request = request;
    return slot;
}

static void slot_give(struct lane_slot *slot)
{
    slot->request = NULL;
    slot->next_free = slot->lane->free_slots;
    slot->lane->free_slots = slot;
}

/* A vector that the I/O may use up: the request's own, unless it must outlive a failure. */
static struct iovec *slot_iov(struct lane_slot *slot)
{
    const struct block_request *request = slot->request;

    if (slot->lane->block->on_error == BLOCK_ON_ERROR_REPORT) {
        return request->iov;
    }
    if (slot->iov_capacity < request->iov_count) {
        free(slot->iov);
        slot->iov_capacity = 0;
        slot->iov = calloc(request->iov_count, sizeof(*slot->iov));
        if (!slot->iov) {
            return NULL;
        }
        slot->iov_capacity = request->iov_count;
    }
    if (request->iov_count > 0) {
        memcpy(slot->iov, request->iov, request->iov_count * sizeof(*slot->iov));
    }
    return slot->iov;
}

/* ---- results ---- */

/* What the guest could not have caused, and may pass. */
static bool is_hosts_error(int result)
{
    return result < 0 && result != -EINVAL && result != -EROFS && result != -ENOTSUP;
}

static void request_over(struct lane *lane, struct block_request *request, int result)
{
    struct block *block = lane->block;

    request->result = result;
    assert(lane->started > 0);
    lane->started--;
    if (block->tracker && request->op != BLOCK_READ && request->op != BLOCK_FLUSH) {
        block_tracker_mark(block->tracker, request->offset, request->len);
    }
    if (is_hosts_error(result) && block->on_error == BLOCK_ON_ERROR_HOLD &&
        atomic_load(&block->drains) == 0) {
        int none = 0;

        list_append(&lane->stopped, request);
        if (atomic_compare_exchange_strong(&block->stopped_error, &none, result) &&
            block->stopped_fn) {
            block->stopped_fn(block->stopped_opaque, result);
        }
        return;
    }
    list_append(&lane->done, request);
}

static void op_done(struct io_op *op, int result)
{
    struct lane_slot *slot = container_of(op, struct lane_slot, op);
    struct block_image *image = slot->lane->block->image;

    if (image->ops->unmap) {
        image->ops->unmap(image, &slot->extent);
    }
    request_over(slot->lane, slot->request, result);
    slot_give(slot);
}

/* On a worker. */
static void task_run(struct io_task *task)
{
    struct lane_slot *slot = container_of(task, struct lane_slot, task);
    struct block_image *image = slot->lane->block->image;
    struct block_request copy = *slot->request;

    copy.iov = slot_iov(slot);
    copy.result =
        copy.iov || !slot->request->iov ? image->ops->execute(image, &copy, true) : -ENOMEM;
    slot->request->result = copy.result;
}

static void task_done(struct io_task *task)
{
    struct lane_slot *slot = container_of(task, struct lane_slot, task);

    request_over(slot->lane, slot->request, slot->request->result);
    slot_give(slot);
}

/* The batch is over: tell, then let block_drain() see that it is gone. */
static bool deliver(struct lane *lane)
{
    struct block *block = lane->block;
    struct block_request *next = lane->done.first;
    unsigned count = 0;
    unsigned before;
    uint64_t now_ns;

    if (!next) {
        return false;
    }
    list_init(&lane->done);
    now_ns = clock_monotonic_ns();
    while (next) {
        struct block_request *request = next;

        next = request->next;
        latency_add(&lane->latencies[request->op], now_ns - request->submitted_ns);
        if (request->op == BLOCK_READ || request->op == BLOCK_WRITE) {
            (void)atomic_fetch_add_explicit(request->op == BLOCK_READ ? &lane->read_bytes
                                                                      : &lane->written_bytes,
                                            request->len, memory_order_relaxed);
        }
        if (request->result != 0) {
            (void)atomic_fetch_add_explicit(&lane->errors, 1, memory_order_relaxed);
        }
        request->done(request, request->result);
        count++;
    }
    if (block->batch_done) {
        block->batch_done(block->batch_opaque, lane->index);
    }
    before = atomic_fetch_sub(&lane->in_flight, count);
    assert(before >= count);
    if (before == count && atomic_load(&block->drains) > 0) {
        mutex_lock(&block->lock);
        (void)pthread_cond_broadcast(&block->changed); /* cannot fail */
        mutex_unlock(&block->lock);
    }
    return true;
}

/* ---- starting ---- */

static void start_on_worker(struct lane_slot *slot)
{
    slot->task = (struct io_task){.run = task_run, .done = task_done};
    io_engine_call(slot->lane->engine, &slot->task);
}

/* Zeroes what is read where the image has nothing. */
static void read_nothing(const struct block_request *request)
{
    for (unsigned i = 0; i < request->iov_count; i++) {
        memset(request->iov[i].iov_base, 0, request->iov[i].iov_len);
    }
}

/* Hands the request to the engine when the image knows without waiting where it lies. */
static bool start_mapped(struct lane_slot *slot)
{
    struct lane *lane = slot->lane;
    struct block_image *image = lane->block->image;
    const struct block_request *request = slot->request;
    bool is_write = request->op == BLOCK_WRITE;
    struct iovec *iov;

    if ((request->op != BLOCK_READ && !is_write) || !image->ops->map || request->len == 0 ||
        image->ops->map(image, is_write, request->offset, request->len, &slot->extent) != 0) {
        return false;
    }
    iov = slot_iov(slot);
    if (slot->extent.kind == BLOCK_EXTENT_DATA && slot->extent.len == request->len && iov) {
        slot->op = (struct io_op){.is_write = is_write,
                                  .file = slot->extent.file,
                                  .offset = slot->extent.host_offset,
                                  .len = request->len,
                                  .iov = iov,
                                  .iov_count = request->iov_count,
                                  .done = op_done};
        io_engine_queue(lane->engine, &slot->op);
        return true;
    }
    image->ops->unmap(image, &slot->extent);
    if (!is_write && slot->extent.len == request->len &&
        (slot->extent.kind == BLOCK_EXTENT_ZERO || slot->extent.kind == BLOCK_EXTENT_UNALLOCATED)) {
        read_nothing(request);
        request_over(lane, slot->request, 0);
        slot_give(slot);
        return true;
    }
    return false;
}

static void start_request(struct lane *lane, struct block_request *request)
{
    struct lane_slot *slot = slot_take(lane, request);

    lane->started++;
    if (!slot) {
        request_over(lane, request, -ENOMEM);
    } else if (!start_mapped(slot)) {
        start_on_worker(slot);
    }
}

/* False when a limit says later; the timer is set. */
static bool may_pass_limit(struct lane *lane, const struct block_request *request)
{
    struct block *block = lane->block;
    uint64_t when;

    if (!atomic_load_explicit(&block->has_limits, memory_order_relaxed) ||
        request->op == BLOCK_FLUSH || atomic_load(&block->drains) > 0) {
        return true;
    }
    mutex_lock(&block->lock);
    when = limit_take(&block->limit,
                      request->op == BLOCK_READ || request->op == BLOCK_WRITE ? request->len : 0,
                      clock_monotonic_ns());
    mutex_unlock(&block->lock);
    if (when == 0) {
        lane->is_throttled = false;
        return true;
    }
    if (!lane->is_throttled) {
        lane->is_throttled = true;
        (void)atomic_fetch_add_explicit(&lane->throttled, 1, memory_order_relaxed);
    }
    loop_arm_timer(lane->timer, when);
    return false;
}

/* Whether requests may be started; closes the lane when it is held and quiet. */
static bool may_start(struct lane *lane)
{
    struct block *block = lane->block;
    bool is_held = atomic_load(&block->holds) > 0;

    if (lane->is_open && !is_held) {
        return true; /* only this thread closes it */
    }
    if (is_held && lane->started > 0) {
        return false;
    }
    mutex_lock(&block->lock);
    lane->is_open = atomic_load(&block->holds) == 0;
    (void)pthread_cond_broadcast(&block->changed); /* cannot fail */
    is_held = !lane->is_open;
    mutex_unlock(&block->lock);
    return !is_held;
}

static void start_queued(struct lane *lane)
{
    while (lane->queued.first && may_pass_limit(lane, lane->queued.first)) {
        start_request(lane, list_take_first(&lane->queued));
    }
}

/* What failed and waits: to be repeated, or told after all when somebody drains. */
static void take_up_stopped(struct lane *lane)
{
    if (atomic_exchange(&lane->must_retry, false)) {
        list_move(&lane->stopped, &lane->queued); /* in their old order */
        list_move(&lane->queued, &lane->stopped);
    }
    if (atomic_load(&lane->block->drains) > 0) {
        list_move(&lane->done, &lane->stopped);
    }
}

void block_kick(struct block *block, unsigned index)
{
    struct lane *lane = &block->lanes[index];

    if (may_start(lane)) {
        start_queued(lane);
    }
    io_engine_submit(lane->engine);
    (void)deliver(lane);
}

void lane_pump(struct lane *lane)
{
    bool more;

    io_engine_clear(lane->engine);
    do {
        take_up_stopped(lane);
        more = io_engine_reap(lane->engine) > 0;
        block_kick(lane->block, lane->index);
    } while (more);
    (void)may_start(lane); /* a hold waits for a quiet lane */
}

static void on_event(void *opaque, uint32_t events)
{
    (void)events; /* only EPOLLIN is asked for */
    lane_pump(opaque);
}

static void on_limit_timer(void *opaque)
{
    lane_pump(opaque);
}

void lane_wake(struct lane *lane)
{
    io_eventfd_signal(io_engine_event_fd(lane->engine));
}

int lane_init(struct lane *lane, struct block *block, unsigned index, enum io_backend aio,
              struct err *err)
{
    const struct io_engine_config config = {.backend = aio, .pool = block->pool};
    int r;

    lane->block = block;
    lane->index = index;
    list_init(&lane->queued);
    list_init(&lane->done);
    list_init(&lane->stopped);
    r = io_engine_create(&config, err, &lane->engine);
    if (r < 0) {
        return r;
    }
    r = loop_create(&lane->loop);
    if (r == 0) {
        r = loop_add_fd(lane->loop, io_engine_event_fd(lane->engine), EPOLLIN, on_event, lane,
                        &lane->handler);
    }
    if (r == 0) {
        r = loop_add_timer(lane->loop, on_limit_timer, lane, &lane->timer);
    }
    return r == 0 ? 0 : err_set_errno(err, r, "cannot make a disk's event loop");
}

void lane_done(struct lane *lane)
{
    if (lane->loop) {
        loop_remove_timer(lane->timer);
        loop_remove_fd(lane->handler);
        loop_destroy(lane->loop);
    }
    io_engine_destroy(lane->engine);
    while (lane->free_slots) {
        struct lane_slot *slot = lane->free_slots;

        lane->free_slots = slot->next_free;
        free(slot->iov);
        free(slot);
    }
}
