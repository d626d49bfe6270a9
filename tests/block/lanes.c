#include "lanes.h"

#include "base/loop.h"
#include "scratch.h"

#include <semaphore.h>

struct call {
    struct block_request request; /* first: done() finds the rest by it */
    struct block *block;
    unsigned lane;
    struct iovec iov;
    int result;
    sem_t is_done;
};

static void on_done(struct block_request *request, int result)
{
    struct call *call = (struct call *)request;

    call->result = result;
    (void)sem_post(&call->is_done); /* cannot fail at 1 */
}

static void on_lane(void *opaque)
{
    struct call *call = opaque;
    struct block *block = call->block;
    unsigned lane = call->lane;

    block_submit(block, lane, &call->request);
    block_kick(block, lane); /* the call may be over, and gone */
}

int lane_request(struct block *block, unsigned lane, enum block_op op, void *buf, uint64_t len,
                 uint64_t offset, bool may_unmap)
{
    bool has_data = op == BLOCK_READ || op == BLOCK_WRITE;
    struct call call = {
        .request = {.op = op,
                    .may_unmap = may_unmap,
                    .offset = offset,
                    .len = len,
                    .iov_count = has_data ? 1 : 0,
                    .done = on_done},
        .block = block,
        .lane = lane,
        .iov = {.iov_base = buf, .iov_len = len},
    };

    call.request.iov = &call.iov;
    (void)sem_init(&call.is_done, 0, 0);
    if (loop_defer(block_loop(block, lane), on_lane, &call) < 0) {
        fail("no memory for a request");
    }
    while (sem_wait(&call.is_done) != 0) {
        /* a signal */
    }
    (void)sem_destroy(&call.is_done);
    return call.result;
}
