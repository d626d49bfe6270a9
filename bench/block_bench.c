/*
 * The block layer alone, as `qemu-img bench` measures QEMU's: COUNT requests
 * of SIZE bytes one behind the other, DEPTH of them under way.
 *
 * usage: block-bench FILE raw|qcow2 COUNT DEPTH SIZE read|write cached|direct
 */
#include "base/loop.h"
#include "block/block.h"
#include "block/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 256u

struct bench {
    struct block *block;
    enum block_op op;
    uint64_t size, count, submitted, done, offset;
    unsigned depth;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool is_over;
    struct slot {
        struct block_request request;
        struct iovec iov;
        struct bench *bench;
        void *buf;
    } slots[MAX_DEPTH];
};

static void on_done(struct block_request *request, int result);

static void submit(struct slot *slot)
{
    struct bench *bench = slot->bench;

    slot->iov = (struct iovec){slot->buf, bench->size};
    slot->request = (struct block_request){
        .op = bench->op,
        .offset = bench->offset,
        .len = bench->size,
        .iov = &slot->iov,
        .iov_count = 1,
        .done = on_done,
    };
    bench->offset += bench->size;
    if (bench->offset + bench->size > block_size_bytes(bench->block)) {
        bench->offset = 0;
    }
    bench->submitted++;
    block_submit(bench->block, 0, &slot->request);
}

static void on_done(struct block_request *request, int result)
{
    struct slot *slot = container_of(request, struct slot, request);
    struct bench *bench = slot->bench;

    if (result != 0) {
        (void)fprintf(stderr, "block-bench: %s\n", strerror(-result));
        exit(1);
    }
    bench->done++;
    if (bench->submitted < bench->count) {
        submit(slot);
    } else if (bench->done == bench->count) {
        pthread_mutex_lock(&bench->lock);
        bench->is_over = true;
        pthread_cond_signal(&bench->cond);
        pthread_mutex_unlock(&bench->lock);
    }
}

static void kick(void *opaque)
{
    struct bench *bench = opaque;

    block_kick(bench->block, 0);
}

static void on_batch(void *opaque, unsigned lane)
{
    struct bench *bench = opaque;

    if (loop_defer(block_loop(bench->block, lane), kick, bench) != 0) {
        abort();
    }
}

static void begin(void *opaque)
{
    struct bench *bench = opaque;

    for (unsigned i = 0; i < bench->depth; i++) {
        submit(&bench->slots[i]);
    }
    block_kick(bench->block, 0);
}

static void run(struct bench *bench)
{
    struct err err;
    uint64_t start = clock_monotonic_ns();

    block_set_batch_done(bench->block, on_batch, bench);
    if (block_start(bench->block, &err) != 0 ||
        loop_defer(block_loop(bench->block, 0), begin, bench) != 0) {
        exit(1);
    }
    pthread_mutex_lock(&bench->lock);
    while (!bench->is_over) {
        pthread_cond_wait(&bench->cond, &bench->lock);
    }
    pthread_mutex_unlock(&bench->lock);
    (void)printf("%s: %.3f seconds\n", io_backend_name(block_backend(bench->block)),
                 (double)(clock_monotonic_ns() - start) / 1e9);
    block_stop(bench->block);
    block_destroy(bench->block);
}

int main(int argc, char *argv[])
{
    static struct bench bench = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                 .cond = PTHREAD_COND_INITIALIZER};
    struct block_config config = {.fd = -1};
    struct err err;
    char *buf;

    if (argc != 8 || block_format_parse(argv[2], &config.format) != 0) {
        (void)fprintf(stderr, "usage: block-bench FILE raw|qcow2 COUNT DEPTH SIZE read|write "
                              "cached|direct\n");
        return 2;
    }
    config.path = argv[1];
    config.direct = strcmp(argv[7], "direct") == 0;
    bench.count = strtoull(argv[3], NULL, 10);
    bench.depth = (unsigned)strtoul(argv[4], NULL, 10);
    bench.size = strtoull(argv[5], NULL, 10);
    bench.op = strcmp(argv[6], "write") == 0 ? BLOCK_WRITE : BLOCK_READ;
    if (bench.depth == 0 || bench.depth > MAX_DEPTH || bench.count < bench.depth ||
        block_create(&config, &err, &bench.block) != 0) {
        (void)fprintf(stderr, "block-bench: bad numbers, or %s\n", err.text);
        return 1;
    }
    /* The same memory for all requests, as the other contestant has it. */
    buf = aligned_alloc(4096, (bench.size + 4095) & ~4095ull);
    if (!buf) {
        return 1;
    }
    memset(buf, 0x5a, bench.size);
    for (unsigned i = 0; i < bench.depth; i++) {
        bench.slots[i].bench = &bench;
        bench.slots[i].buf = buf;
    }
    run(&bench);
    free(buf);
    return 0;
}
