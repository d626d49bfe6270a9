/* Disks: their lanes, limits, holds and life. */
#include "block/block.h"

#include "base/log.h"
#include "base/loop.h"
#include "block/block_core.h"
#include "block/successor.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

/* A disk works on many direct writes at once; into the cache of a file goes one at a time. */
#define MAX_WORKERS 8u
#define MAX_DIRECT_WORKERS 16u
#define LOCK_TRIES 30u

unsigned block_lane_count(const struct block *block)
{
    return block->lane_count;
}

struct loop *block_loop(struct block *block, unsigned lane)
{
    return block->lanes[lane].loop;
}

uint64_t block_size_bytes(const struct block *block)
{
    return atomic_load_explicit(&block->size_bytes, memory_order_relaxed);
}

bool block_is_read_only(const struct block *block)
{
    return block->is_read_only;
}

bool block_can_discard(const struct block *block)
{
    return block->can_discard;
}

enum io_backend block_backend(const struct block *block)
{
    return io_engine_backend(block->lanes[0].engine);
}

int block_backing(const struct block *block, char *ret_path, size_t size,
                  enum block_format *ret_format)
{
    const struct block_image *backing = block->image->backing;

    if (!backing) {
        return -ENOENT;
    }
    *ret_format = backing->format;
    return block_file_path(backing->file, ret_path, size);
}

void block_inject(struct block *block, const struct io_fault *fault)
{
    for (unsigned i = 0; i < block->lane_count; i++) {
        io_engine_inject(block->lanes[i].engine, fault);
    }
}

void block_set_batch_done(struct block *block, void (*fn)(void *opaque, unsigned lane),
                          void *opaque)
{
    block->batch_done = fn;
    block->batch_opaque = opaque;
}

void block_set_stopped(struct block *block, void (*fn)(void *opaque, int error), void *opaque)
{
    block->stopped_fn = fn;
    block->stopped_opaque = opaque;
}

void block_stats(struct block *block, struct block_stats *ret_stats)
{
    *ret_stats = (struct block_stats){0};
    for (unsigned i = 0; i < block->lane_count; i++) {
        struct lane *lane = &block->lanes[i];

        for (unsigned op = 0; op < ARRAY_LEN(lane->latencies); op++) {
            latency_collect(&lane->latencies[op], &ret_stats->latencies[op]);
        }
        ret_stats->read_bytes += atomic_load(&lane->read_bytes);
        ret_stats->written_bytes += atomic_load(&lane->written_bytes);
        ret_stats->errors += atomic_load(&lane->errors);
        ret_stats->throttled += atomic_load(&lane->throttled);
    }
    for (unsigned op = 0; op < ARRAY_LEN(ret_stats->requests); op++) {
        ret_stats->requests[op] = latency_total(&ret_stats->latencies[op]);
    }
}

static void wake_all(struct block *block)
{
    for (unsigned i = 0; i < block->lane_count; i++) {
        lane_wake(&block->lanes[i]);
    }
}

int block_set_limits(struct block *block, const struct limit_config *config)
{
    int r;

    mutex_lock(&block->lock);
    r = limit_set(&block->limit, config, clock_monotonic_ns());
    atomic_store(&block->has_limits, limit_is_set(&block->limit));
    mutex_unlock(&block->lock);
    wake_all(block);
    return r;
}

void block_limits(struct block *block, struct limit_config *ret_config)
{
    mutex_lock(&block->lock);
    *ret_config = block->limit.config;
    mutex_unlock(&block->lock);
}

void block_retry(struct block *block)
{
    atomic_store(&block->stopped_error, 0);
    for (unsigned i = 0; i < block->lane_count; i++) {
        atomic_store(&block->lanes[i].must_retry, true);
    }
    wake_all(block);
}

int block_stopped_error(struct block *block)
{
    return atomic_load(&block->stopped_error);
}

/* ---- holding and draining ---- */

static bool is_quiet_locked(const struct block *block)
{
    for (unsigned i = 0; i < block->lane_count; i++) {
        if (block->lanes[i].has_thread && block->lanes[i].is_open) {
            return false;
        }
    }
    return true;
}

void block_hold(struct block *block)
{
    mutex_lock(&block->lock);
    (void)atomic_fetch_add(&block->holds, 1);
    mutex_unlock(&block->lock);
    wake_all(block);
    mutex_lock(&block->lock);
    while (!is_quiet_locked(block)) {
        (void)pthread_cond_wait(&block->changed, &block->lock.raw); /* cannot fail */
    }
    mutex_unlock(&block->lock);
}

void block_release(struct block *block)
{
    mutex_lock(&block->lock);
    assert(atomic_load(&block->holds) > 0);
    (void)atomic_fetch_sub(&block->holds, 1);
    mutex_unlock(&block->lock);
    wake_all(block);
}

/* A lane without a thread, or of this thread, is driven from here. */
static bool is_ours(const struct lane *lane)
{
    return !lane->has_thread || pthread_equal(lane->thread, pthread_self());
}

static void finish_lane(struct lane *lane)
{
    lane_pump(lane);
    while (atomic_load(&lane->in_flight) > 0) {
        io_engine_wait(lane->engine);
        lane_pump(lane);
    }
}

static void drain_lane(struct lane *lane)
{
    struct block *block = lane->block;

    if (is_ours(lane)) {
        finish_lane(lane);
        return;
    }
    lane_wake(lane);
    mutex_lock(&block->lock);
    while (atomic_load(&lane->in_flight) > 0) {
        (void)pthread_cond_wait(&block->changed, &block->lock.raw); /* cannot fail */
    }
    mutex_unlock(&block->lock);
}

void block_drain(struct block *block)
{
    (void)atomic_fetch_add(&block->drains, 1);
    for (unsigned i = 0; i < block->lane_count; i++) {
        drain_lane(&block->lanes[i]);
    }
    (void)atomic_fetch_sub(&block->drains, 1);
}

int block_resize(struct block *block, uint64_t size_bytes, struct err *err)
{
    struct block_image *image = block->image;
    int r;

    if (size_bytes < block_size_bytes(block) || size_bytes % BLOCK_SECTOR_BYTES != 0) {
        return err_set(err, -EINVAL,
                       "a disk in use can only grow, by whole sectors of 512 bytes; it has %llu",
                       (unsigned long long)block_size_bytes(block));
    }
    if (image->is_read_only || !image->ops->resize) {
        return err_set(err, -ENOTSUP, "this disk cannot change its size");
    }
    block_hold(block);
    r = image->ops->resize(image, size_bytes, err);
    atomic_store(&block->size_bytes, image->size_bytes);
    block_release(block);
    return r;
}

struct block_image *block_exchange(struct block *block, struct block_image *image)
{
    struct block_image *before = block->image;

    block->image = image;
    atomic_store(&block->size_bytes, image->size_bytes);
    return before;
}

/* ---- life ---- */

static void *lane_main(void *opaque)
{
    struct lane *lane = opaque;
    int r = loop_run(lane->loop);

    if (r < 0) {
        log_error("a disk's thread ends: %s", strerror(-r));
    }
    /* Here, and not on another thread: what a thread has in the kernel ends with it. */
    finish_lane(lane);
    return NULL;
}

int block_start(struct block *block, struct err *err)
{
    for (unsigned i = 0; i < block->lane_count; i++) {
        struct lane *lane = &block->lanes[i];
        int r;

        lane->has_thread = true;
        r = thread_start(&lane->thread, "io/disk", lane_main, lane);
        if (r < 0) {
            lane->has_thread = false;
            return err_set_errno(err, r, "cannot start a disk's thread");
        }
    }
    return 0;
}

void block_stop(struct block *block)
{
    (void)atomic_fetch_add(&block->drains, 1); /* nothing waits for limits or better times */
    for (unsigned i = 0; i < block->lane_count; i++) {
        struct lane *lane = &block->lanes[i];

        if (lane->has_thread) {
            loop_stop(lane->loop);
            (void)pthread_join(lane->thread, NULL); /* the thread is ours and joinable */
            lane->has_thread = false;
        }
        finish_lane(lane);
    }
    (void)atomic_fetch_sub(&block->drains, 1);
}

static int lanes_init(struct block *block, const struct block_config *config, struct err *err)
{
    unsigned count = config->lanes == 0 ? 1 : config->lanes;
    int r = io_pool_create(config->direct ? MAX_DIRECT_WORKERS : MAX_WORKERS, &block->pool);

    if (r < 0) {
        return err_set_errno(err, r, "cannot make a disk's threads");
    }
    if (count > BLOCK_MAX_LANES) {
        return err_set(err, -EINVAL, "disk '%s': at most %u I/O threads are possible", config->path,
                       BLOCK_MAX_LANES);
    }
    for (unsigned i = 0; r == 0 && i < count; i++) {
        block->lane_count++;
        r = lane_init(&block->lanes[i], block, i, config->aio, err);
    }
    return r;
}

/*
 * What io_uring had under way for a process that was killed keeps that one's
 * files, and so their locks, a moment longer than the process; nothing tells
 * when it is over. A machine that is started again at once shall start.
 */
static int open_image(const struct block_config *config, struct err *err,
                      struct block_image **ret_image)
{
    const struct timespec pause = {.tv_nsec = 10000000};
    int r = block_image_open(config, err, ret_image);

    for (unsigned i = 0; r == -EBUSY && i < LOCK_TRIES; i++) {
        (void)nanosleep(&pause, NULL);
        r = block_image_open(config, err, ret_image);
    }
    return r;
}

int block_create(const struct block_config *config, struct err *err, struct block **ret_block)
{
    struct block *block = calloc(1, sizeof(*block));
    int r;

    if (!block) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    mutex_init(&block->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&block->changed, NULL); /* cannot fail on Linux */
    block->on_error = config->on_error;
    r = lanes_init(block, config, err);
    if (r == 0) {
        r = open_image(config, err, &block->image);
    }
    if (r < 0) {
        block_destroy(block);
        return r;
    }
    block->size_bytes = block->image->size_bytes;
    block->is_read_only = block->image->is_read_only;
    block->can_discard = block->image->can_discard;
    if (io_engine_refusal(block->lanes[0].engine) != 0) {
        log_info("disk '%s' uses threads: io_uring is refused (%s)", config->path,
                 strerror(-io_engine_refusal(block->lanes[0].engine)));
    }
    *ret_block = block;
    return 0;
}

void block_destroy(struct block *block)
{
    if (!block) {
        return;
    }
    io_pool_destroy(block->pool); /* first: a worker may still be waking a lane */
    for (unsigned i = 0; i < block->lane_count; i++) {
        assert(!block->lanes[i].has_thread && atomic_load(&block->lanes[i].in_flight) == 0);
        lane_done(&block->lanes[i]);
    }
    block_image_close(block->image);
    (void)pthread_cond_destroy(&block->changed);
    mutex_done(&block->lock);
    free(block);
}
