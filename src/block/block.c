#include "block/block.h"

#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/thread.h"
#include "block/block_int.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>

#define MAX_WORKERS 4u
/* Requests whose results are told together when they execute on the loop. */
#define INLINE_BATCH 16u

struct request_list {
    struct block_request *first;
    struct block_request **end; /* where the next one is linked */
};

struct block {
    struct block_image *image;
    struct loop *loop;
    pthread_t thread;
    bool has_thread;
    int done_fd; /* workers wake the loop */
    struct loop_fd *done_handler;
    void (*batch_done)(void *opaque);
    void *batch_opaque;
    atomic_bool cannot_know_wait; /* the file system does not say whether a read would wait */

    struct mutex lock; /* LEAF; guards all below */
    pthread_cond_t work_cond;
    pthread_cond_t idle_cond;
    struct request_list queued; /* submitted, not kicked */
    struct request_list work;   /* for workers */
    struct request_list done;   /* executed by workers, or refused */
    unsigned in_flight;         /* from submission until done has returned */
    unsigned workers;
    unsigned idle_workers;
    bool is_stopping;
    pthread_t worker_threads[MAX_WORKERS];
    struct block_stats stats;
};

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

static struct block_request *list_take_all(struct request_list *list)
{
    struct block_request *first = list->first;

    list_init(list);
    return first;
}

struct loop *block_loop(struct block *block)
{
    return block->loop;
}

uint64_t block_size_bytes(const struct block *block)
{
    return __atomic_load_n(&block->image->size_bytes, __ATOMIC_ACQUIRE);
}

bool block_is_read_only(const struct block *block)
{
    return block->image->is_read_only;
}

bool block_can_discard(const struct block *block)
{
    return block->image->can_discard;
}

void block_set_batch_done(struct block *block, void (*fn)(void *opaque), void *opaque)
{
    block->batch_done = fn;
    block->batch_opaque = opaque;
}

void block_stats(struct block *block, struct block_stats *ret_stats)
{
    mutex_lock(&block->lock);
    *ret_stats = block->stats;
    mutex_unlock(&block->lock);
}

static int check_request(const struct block *block, const struct block_request *request)
{
    uint64_t size = block_size_bytes(block);

    if (request->offset > size || request->len > size - request->offset) {
        return -EINVAL;
    }
    if (block->image->is_read_only && request->op != BLOCK_READ && request->op != BLOCK_FLUSH) {
        return -EROFS;
    }
    return 0;
}

void block_submit(struct block *block, struct block_request *request)
{
    request->result = check_request(block, request);
    mutex_lock(&block->lock);
    block->in_flight++;
    list_append(request->result == 0 ? &block->queued : &block->done, request);
    mutex_unlock(&block->lock);
}

/* The batch has been executed: tell, then let block_drain() see that it is gone. */
static void deliver(struct block *block, struct block_request *first)
{
    struct block_stats add = {0};
    struct block_request *request;
    unsigned count = 0;

    if (!first) {
        return;
    }
    while (first) {
        request = first;
        first = request->next;
        add.requests[request->op]++;
        add.read_bytes += request->op == BLOCK_READ ? request->len : 0;
        add.written_bytes += request->op == BLOCK_WRITE ? request->len : 0;
        add.errors += request->result != 0;
        request->done(request, request->result);
        count++;
    }
    if (block->batch_done) {
        block->batch_done(block->batch_opaque);
    }
    mutex_lock(&block->lock);
    for (unsigned i = 0; i < ARRAY_LEN(add.requests); i++) {
        block->stats.requests[i] += add.requests[i];
    }
    block->stats.read_bytes += add.read_bytes;
    block->stats.written_bytes += add.written_bytes;
    block->stats.errors += add.errors;
    assert(block->in_flight >= count);
    block->in_flight -= count;
    if (block->in_flight == 0) {
        (void)pthread_cond_broadcast(&block->idle_cond); /* cannot fail */
    }
    mutex_unlock(&block->lock);
}

static void deliver_done(struct block *block)
{
    struct block_request *first;

    mutex_lock(&block->lock);
    first = list_take_all(&block->done);
    mutex_unlock(&block->lock);
    deliver(block, first);
}

static void *worker_main(void *opaque)
{
    struct block *block = opaque;
    struct block_request *request;
    bool wake;

    mutex_lock(&block->lock);
    for (;;) {
        request = list_take_first(&block->work);
        if (!request) {
            if (block->is_stopping) {
                break;
            }
            block->idle_workers++;
            (void)pthread_cond_wait(&block->work_cond, &block->lock.raw); /* cannot fail */
            block->idle_workers--;
            continue;
        }
        mutex_unlock(&block->lock);
        request->result = block->image->ops->execute(block->image, request, true);
        mutex_lock(&block->lock);
        wake = block->done.first == NULL;
        list_append(&block->done, request);
        if (wake) {
            io_eventfd_signal(block->done_fd);
            (void)pthread_cond_broadcast(&block->idle_cond); /* cannot fail */
        }
    }
    mutex_unlock(&block->lock);
    return NULL;
}

/* False when there is no worker and none can be had. */
static bool give_to_worker(struct block *block, struct block_request *request)
{
    bool has_worker;

    mutex_lock(&block->lock);
    if (block->idle_workers == 0 && block->workers < MAX_WORKERS && !block->is_stopping &&
        thread_start(&block->worker_threads[block->workers], "work/disk", worker_main, block) ==
            0) {
        block->workers++;
    }
    has_worker = block->workers > 0;
    if (has_worker) {
        list_append(&block->work, request);
        (void)pthread_cond_signal(&block->work_cond); /* cannot fail */
    }
    mutex_unlock(&block->lock);
    return has_worker;
}

/*
 * Executes a request here when that takes no longer than a copy: writes go to
 * the page cache, and so do reads of what is cached. True when it is done.
 */
static bool try_here(struct block *block, struct block_request *request, bool is_alone)
{
    int r = -EAGAIN;

    if (request->op == BLOCK_WRITE || (block->cannot_know_wait && is_alone)) {
        r = block->image->ops->execute(block->image, request, true);
    } else if (request->op == BLOCK_READ && !block->cannot_know_wait) {
        r = block->image->ops->execute(block->image, request, false);
        block->cannot_know_wait = r == -EOPNOTSUPP;
        if (r == -EOPNOTSUPP) {
            r = -EAGAIN;
        }
    }
    request->result = r;
    return r != -EAGAIN;
}

static void run_queued(struct block *block)
{
    struct block_request *request;
    struct block_request *next;
    struct request_list batch;
    bool is_alone;
    unsigned count = 0;

    mutex_lock(&block->lock);
    next = list_take_all(&block->queued);
    mutex_unlock(&block->lock);
    is_alone = next && !next->next && next->op == BLOCK_READ;
    list_init(&batch);
    while (next) {
        request = next;
        next = request->next;
        if (try_here(block, request, is_alone)) {
            list_append(&batch, request);
            count++;
        } else if (!give_to_worker(block, request)) {
            request->result = block->image->ops->execute(block->image, request, true);
            list_append(&batch, request);
            count++;
        }
        if (count == INLINE_BATCH) {
            deliver(block, list_take_all(&batch));
            count = 0;
        }
    }
    deliver(block, list_take_all(&batch));
}

void block_kick(struct block *block)
{
    run_queued(block);
    deliver_done(block);
}

static void on_done_event(void *opaque, uint32_t events)
{
    struct block *block = opaque;

    (void)events; /* only EPOLLIN is asked for */
    (void)io_eventfd_drain(block->done_fd);
    deliver_done(block);
}

void block_drain(struct block *block)
{
    for (;;) {
        block_kick(block);
        mutex_lock(&block->lock);
        while (block->in_flight > 0 && !block->done.first && !block->queued.first) {
            (void)pthread_cond_wait(&block->idle_cond, &block->lock.raw); /* cannot fail */
        }
        if (block->in_flight == 0) {
            mutex_unlock(&block->lock);
            return;
        }
        mutex_unlock(&block->lock);
    }
}

static void *loop_main(void *opaque)
{
    struct block *block = opaque;
    int r = loop_run(block->loop);

    if (r < 0) {
        log_error("the disk thread ends: %s", strerror(-r));
    }
    return NULL;
}

int block_start(struct block *block, struct err *err)
{
    int r = thread_start(&block->thread, "io/disk", loop_main, block);

    if (r < 0) {
        return err_set_errno(err, r, "cannot start the disk thread");
    }
    block->has_thread = true;
    return 0;
}

void block_stop(struct block *block)
{
    if (block->has_thread) {
        loop_stop(block->loop);
        (void)pthread_join(block->thread, NULL); /* the thread is ours and joinable */
        block->has_thread = false;
    }
    block_drain(block);
}

static int block_init(struct block *block, struct err *err)
{
    int r;

    mutex_init(&block->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&block->work_cond, NULL); /* cannot fail on Linux */
    (void)pthread_cond_init(&block->idle_cond, NULL);
    list_init(&block->queued);
    list_init(&block->work);
    list_init(&block->done);
    block->done_fd = io_eventfd();
    if (block->done_fd < 0) {
        return err_set_errno(err, block->done_fd, "cannot make an event descriptor");
    }
    r = loop_create(&block->loop);
    if (r == 0) {
        r = loop_add_fd(block->loop, block->done_fd, EPOLLIN, on_done_event, block,
                        &block->done_handler);
    }
    return r == 0 ? 0 : err_set_errno(err, r, "cannot make the disk's event loop");
}

int block_create(const struct block_config *config, struct err *err, struct block **ret_block)
{
    struct block *block = calloc(1, sizeof(*block));
    int r;

    if (!block) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    r = block_init(block, err);
    if (r == 0) {
        r = block_image_open(config, err, &block->image);
    }
    if (r < 0) {
        block_destroy(block);
        return r;
    }
    *ret_block = block;
    return 0;
}

void block_destroy(struct block *block)
{
    if (!block) {
        return;
    }
    assert(!block->has_thread && block->in_flight == 0);
    mutex_lock(&block->lock);
    block->is_stopping = true;
    (void)pthread_cond_broadcast(&block->work_cond); /* cannot fail */
    mutex_unlock(&block->lock);
    for (unsigned i = 0; i < block->workers; i++) {
        (void)pthread_join(block->worker_threads[i], NULL); /* ours and joinable */
    }
    loop_remove_fd(block->done_handler);
    loop_destroy(block->loop);
    block_image_close(block->image);
    if (block->done_fd >= 0) {
        (void)close(block->done_fd); /* an eventfd has nothing to lose */
    }
    (void)pthread_cond_destroy(&block->work_cond);
    (void)pthread_cond_destroy(&block->idle_cond);
    mutex_done(&block->lock);
    free(block);
}
