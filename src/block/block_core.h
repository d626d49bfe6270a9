/*
 * Inside the block core: an open disk and its lanes, for block.c, lane.c and
 * the jobs.
 *
 * A lane takes requests on its thread, starts them (through the image's map
 * and the I/O engine, or as a whole on a worker), and tells their results. A
 * hold keeps all lanes from starting anything, so that the image behind them
 * can be exchanged: block_hold() returns when nothing is under way.
 */
#ifndef CORBEL_BLOCK_BLOCK_CORE_H
#define CORBEL_BLOCK_BLOCK_CORE_H

#include "base/thread.h"
#include "block/block.h"
#include "block/block_int.h"

#include <stdatomic.h>

struct block_tracker;
struct loop_fd;
struct loop_timer;

struct request_list {
    struct block_request *first;
    struct block_request **end; /* where the next one is linked */
};

/* One request under way. */
struct lane_slot {
    struct lane *lane;
    struct block_request *request;
    struct lane_slot *next_free;
    struct block_extent extent; /* mapped, when the engine has it */
    struct io_op op;
    struct io_task task;
    struct iovec *iov; /* a copy, where the request may have to be repeated */
    unsigned iov_capacity;
};

struct lane {
    struct block *block;
    unsigned index;
    struct loop *loop;
    pthread_t thread;
    bool has_thread;
    struct io_engine *engine;
    struct loop_fd *handler;
    struct loop_timer *timer; /* until a limit lets more through */

    /* The lane's thread. */
    struct request_list queued;  /* submitted, not started */
    struct request_list done;    /* to be told */
    struct request_list stopped; /* failed, to be repeated */
    struct lane_slot *free_slots;
    unsigned started;
    bool is_throttled; /* the head of queued has been counted as such */

    bool is_open;                /* may start requests; guarded by the block's mutex */
    atomic_uint in_flight;       /* from submission until done has returned */
    atomic_bool must_retry;      /* take up what is stopped */
    struct latency latencies[5]; /* by enum block_op; of the lane's thread */
    _Atomic uint64_t read_bytes, written_bytes, errors, throttled;
};

struct block {
    struct block_image *image; /* exchanged only while held, with block_exchange() */
    _Atomic uint64_t size_bytes;
    bool is_read_only, can_discard;
    struct io_pool *pool;
    enum block_on_error on_error;
    void (*batch_done)(void *opaque, unsigned lane);
    void *batch_opaque;
    void (*stopped_fn)(void *opaque, int error);
    void *stopped_opaque;
    struct block_tracker *tracker; /* of writes, for a job; exchanged only while held */
    unsigned lane_count;
    struct lane lanes[BLOCK_MAX_LANES];
    atomic_uint holds;  /* changed under the mutex */
    atomic_uint drains; /* who waits in block_drain() */
    atomic_int stopped_error;
    atomic_bool has_limits;

    struct mutex lock; /* LEAF; guards all below */
    pthread_cond_t changed;
    struct limit limit;
};

/* lane.c */
int lane_init(struct lane *lane, struct block *block, unsigned index, enum io_backend aio,
              struct err *err) MUST_CHECK;
void lane_done(struct lane *lane);
/* Does all there is to do. The lane's thread, or its stand-in. */
void lane_pump(struct lane *lane);
/* Makes the lane's thread look around. Any thread. */
void lane_wake(struct lane *lane);

/*
 * Returns when no request of any lane is under way; none starts until
 * block_release(). Holds nest. Any thread but a lane's.
 */
void block_hold(struct block *block);
void block_release(struct block *block);

/* While held: requests go to image from now on. The one before is the caller's. */
struct block_image *block_exchange(struct block *block, struct block_image *image);

/*
 * Makes the image below the disk's, which was opened to be read only, one that
 * can be written. -EBUSY when another process uses it, -EACCES, ... and then
 * all is as before. Any thread but a lane's; nothing else changes the chain.
 */
int block_reopen_backing(struct block *block, struct err *err) MUST_CHECK;

#endif
