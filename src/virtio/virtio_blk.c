/*
 * Block device (virtio 1.2 §5.2): requests to block/.
 *
 * A request lives in a slot from pop to push; slots and their segment arrays
 * are allocated once. Data goes between guest memory and the kernel without a
 * copy. Each queue is processed on the loop of one of the image's lanes;
 * results come back there or, while draining, on the draining thread.
 */
#include "base/loop.h"
#include "base/wire.h"
#include "block/block.h"
#include "virtio/virtio.h"

#include <errno.h>
#include <string.h>

#define QUEUE_SIZE 256u
#define SEG_MAX 126u
#define CHAIN_MAX (SEG_MAX + 2u) /* header and status */
#define PROCESS_BUDGET 64u

/* §5.2.3 */
#define F_SEG_MAX (1ull << 2)
#define F_RO (1ull << 5)
#define F_BLK_SIZE (1ull << 6)
#define F_FLUSH (1ull << 9)
#define F_TOPOLOGY (1ull << 10)
#define F_MQ (1ull << 12)
#define F_DISCARD (1ull << 13)
#define F_WRITE_ZEROES (1ull << 14)

/* §5.2.4: offsets in the configuration */
enum config_reg {
    CONFIG_CAPACITY = 0,
    CONFIG_SEG_MAX = 12,
    CONFIG_BLK_SIZE = 20,
    CONFIG_PHYSICAL_EXP = 24,
    CONFIG_MIN_IO = 26,
    CONFIG_OPT_IO = 28,
    CONFIG_NUM_QUEUES = 34,
    CONFIG_MAX_DISCARD_SECTORS = 36,
    CONFIG_MAX_DISCARD_SEG = 40,
    CONFIG_DISCARD_ALIGN = 44,
    CONFIG_MAX_ZEROES_SECTORS = 48,
    CONFIG_MAX_ZEROES_SEG = 52,
    CONFIG_ZEROES_MAY_UNMAP = 56,
    CONFIG_LEN = 60
};

#define PHYSICAL_EXP 3u              /* 4 KiB physical blocks */
#define MAX_RANGE_SECTORS (1u << 21) /* 1 GiB per discard or write-zeroes */
#define DISCARD_ALIGN_SECTORS 8u

/* §5.2.6 */
#define HEADER_BYTES 16u
#define RANGE_BYTES 16u
#define ID_BYTES 20u
#define RANGE_F_UNMAP 1u

enum request_type {
    REQUEST_IN = 0,
    REQUEST_OUT = 1,
    REQUEST_FLUSH = 4,
    REQUEST_GET_ID = 8,
    REQUEST_DISCARD = 11,
    REQUEST_WRITE_ZEROES = 13
};

enum request_status { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPP = 2 };

struct blk_request {
    struct block_request io;
    struct virtio_blk *blk;
    unsigned queue;
    struct virtq_chain chain;
    uint32_t pinned_bytes; /* 0: no memory is pinned */
    struct virtq_seg segs[CHAIN_MAX];
    struct iovec iov[CHAIN_MAX];
};

struct blk_queue {
    struct blk_request *slots;       /* QUEUE_SIZE of them */
    uint16_t free_slots[QUEUE_SIZE]; /* a stack, guarded by the device's mutex */
    unsigned free_count;
};

struct virtio_blk {
    struct virtio_dev dev;
    struct block *block;
    char id[ID_BYTES];
    struct blk_queue queues[VIRTIO_BLK_MAX_QUEUES];
};

static struct virtio_blk *to_blk(struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_blk, dev);
}

static struct blk_request *take_slot(struct virtio_blk *blk, unsigned index)
{
    struct blk_queue *queue = &blk->queues[index];
    struct blk_request *request;

    if (queue->free_count == 0) {
        return NULL;
    }
    request = &queue->slots[queue->free_slots[--queue->free_count]];
    request->queue = index;
    request->pinned_bytes = 0;
    return request;
}

static void free_slot(struct virtio_blk *blk, struct blk_request *request)
{
    struct blk_queue *queue = &blk->queues[request->queue];

    queue->free_slots[queue->free_count++] = (uint16_t)(request - queue->slots);
}

/* The lane of the image that a queue works on. */
static unsigned lane_of(const struct virtio_blk *blk, unsigned queue)
{
    return queue % block_lane_count(blk->block);
}

/* Status byte and used entry; the slot is free afterwards. written: bytes before the status. */
static void finish(struct virtio_blk *blk, struct blk_request *request, uint8_t status,
                   uint32_t written)
{
    struct virtio_dev *dev = &blk->dev;
    uint32_t status_at = request->chain.in_bytes - 1;

    if (dev->queues[request->queue].vq.running) {
        if (virtq_chain_write(dev->gmem, &request->chain, status_at, &status, 1) != 0) {
            virtio_dev_break(dev, "status byte outside memory");
        } else {
            virtio_dev_push(dev, request->queue, request->chain.head, written + 1);
        }
    }
    free_slot(blk, request);
}

static enum gmem_dir request_dir(const struct blk_request *request)
{
    return request->io.op == BLOCK_READ ? GMEM_DEVICE_WRITES : GMEM_DEVICE_READS;
}

static uint32_t data_offset(const struct blk_request *request)
{
    return request->io.op == BLOCK_READ ? 0 : HEADER_BYTES;
}

static void on_done(struct block_request *io, int result)
{
    struct blk_request *request = container_of(io, struct blk_request, io);
    struct virtio_blk *blk = request->blk;
    struct virtio_dev *dev = &blk->dev;
    uint8_t status = result == 0 ? STATUS_OK : result == -ENOTSUP ? STATUS_UNSUPP : STATUS_IOERR;

    virtio_dev_lock(dev);
    if (request->pinned_bytes > 0) {
        virtq_chain_unpin(dev->gmem, &request->chain, request_dir(request), data_offset(request),
                          request->pinned_bytes);
    }
    finish(blk, request, status, result == 0 && io->op == BLOCK_READ ? request->pinned_bytes : 0);
    virtio_dev_put_request(dev);
    virtio_dev_unlock(dev);
}

static void on_batch_done(void *opaque, unsigned lane)
{
    struct virtio_blk *blk = opaque;

    virtio_dev_lock(&blk->dev);
    for (unsigned i = lane; i < blk->dev.queue_count; i += block_lane_count(blk->block)) {
        virtio_dev_publish(&blk->dev, i);
    }
    virtio_dev_unlock(&blk->dev);
}

static void submit(struct virtio_blk *blk, struct blk_request *request)
{
    request->io.done = on_done;
    virtio_dev_get_request(&blk->dev);
    block_submit(blk->block, lane_of(blk, request->queue), &request->io);
}

static void start_transfer(struct virtio_blk *blk, struct blk_request *request, uint64_t sector)
{
    const struct virtq_chain *chain = &request->chain;
    uint32_t len =
        request->io.op == BLOCK_READ ? chain->in_bytes - 1 : chain->out_bytes - HEADER_BYTES;
    int n;

    if (len == 0 || len % BLOCK_SECTOR_BYTES != 0 ||
        !ck_mul_u64(sector, BLOCK_SECTOR_BYTES, &request->io.offset)) {
        finish(blk, request, STATUS_IOERR, 0);
        return;
    }
    n = virtq_chain_pin(blk->dev.gmem, chain, request_dir(request), data_offset(request), len,
                        request->iov, ARRAY_LEN(request->iov));
    if (n < 0) {
        finish(blk, request, STATUS_IOERR, 0);
        return;
    }
    request->pinned_bytes = len;
    request->io.len = len;
    request->io.iov = request->iov;
    request->io.iov_count = (unsigned)n;
    submit(blk, request);
}

/* Discard and write-zeroes carry one range (§5.2.6.1, max_*_seg is 1). */
static void start_range(struct virtio_blk *blk, struct blk_request *request)
{
    uint8_t raw[RANGE_BYTES];
    uint32_t sectors;
    uint32_t flags;
    uint64_t end;
    bool is_discard = request->io.op == BLOCK_DISCARD;

    if (request->chain.out_bytes != HEADER_BYTES + RANGE_BYTES ||
        virtq_chain_read(blk->dev.gmem, &request->chain, HEADER_BYTES, raw, sizeof(raw)) != 0) {
        finish(blk, request, STATUS_UNSUPP, 0);
        return;
    }
    sectors = load_le32(raw + 8);
    flags = load_le32(raw + 12);
    if ((flags & ~RANGE_F_UNMAP) != 0 || (is_discard && flags != 0)) {
        finish(blk, request, STATUS_UNSUPP, 0);
        return;
    }
    if (sectors > MAX_RANGE_SECTORS ||
        !ck_mul_u64(load_le64(raw), BLOCK_SECTOR_BYTES, &request->io.offset) ||
        !ck_add_u64(request->io.offset, (uint64_t)sectors * BLOCK_SECTOR_BYTES, &end)) {
        finish(blk, request, STATUS_IOERR, 0);
        return;
    }
    request->io.len = (uint64_t)sectors * BLOCK_SECTOR_BYTES;
    request->io.may_unmap = (flags & RANGE_F_UNMAP) != 0;
    submit(blk, request);
}

static void answer_id(struct virtio_blk *blk, struct blk_request *request)
{
    uint32_t len = request->chain.in_bytes - 1;

    if (len > ID_BYTES) {
        len = ID_BYTES;
    }
    if (virtq_chain_write(blk->dev.gmem, &request->chain, 0, blk->id, len) != 0) {
        finish(blk, request, STATUS_IOERR, 0);
        return;
    }
    finish(blk, request, STATUS_OK, len);
}

static void start_request(struct virtio_blk *blk, struct blk_request *request)
{
    uint8_t header[HEADER_BYTES];
    struct virtio_dev *dev = &blk->dev;

    if (request->chain.in_bytes == 0 ||
        virtq_chain_read(dev->gmem, &request->chain, 0, header, sizeof(header)) != 0) {
        free_slot(blk, request);
        virtio_dev_break(dev, "request without header or status byte");
        return;
    }
    request->blk = blk;
    request->io = (struct block_request){0};
    switch (load_le32(header)) {
    case REQUEST_IN:
        request->io.op = BLOCK_READ;
        start_transfer(blk, request, load_le64(header + 8));
        break;
    case REQUEST_OUT:
        request->io.op = BLOCK_WRITE;
        start_transfer(blk, request, load_le64(header + 8));
        break;
    case REQUEST_FLUSH:
        request->io.op = BLOCK_FLUSH;
        submit(blk, request);
        break;
    case REQUEST_GET_ID:
        answer_id(blk, request);
        break;
    case REQUEST_DISCARD:
        request->io.op = BLOCK_DISCARD;
        start_range(blk, request);
        break;
    case REQUEST_WRITE_ZEROES:
        request->io.op = BLOCK_WRITE_ZEROES;
        start_range(blk, request);
        break;
    default:
        finish(blk, request, STATUS_UNSUPP, 0);
        break;
    }
}

static enum virtio_progress blk_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_blk *blk = to_blk(dev);

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        struct blk_request *request = take_slot(blk, index);

        if (!request) {
            /* As many as the ring holds: only a driver that reuses descriptors gets here. */
            virtio_dev_break(dev, "more requests than descriptors");
            return VIRTIO_DONE;
        }
        request->chain.segs = request->segs;
        request->chain.max = CHAIN_MAX;
        if (!virtio_dev_pop(dev, index, &request->chain)) {
            free_slot(blk, request);
            virtio_dev_publish(dev, index);
            return VIRTIO_DONE;
        }
        start_request(blk, request);
    }
    virtio_dev_publish(dev, index);
    return VIRTIO_AGAIN;
}

static void blk_after_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_blk *blk = to_blk(dev);

    block_kick(blk->block, lane_of(blk, index));
}

static void blk_reset(struct virtio_dev *dev)
{
    (void)dev; /* slots come back with their requests */
}

static void blk_drain(struct virtio_dev *dev)
{
    block_drain(to_blk(dev)->block);
}

static void blk_free(struct virtio_blk *blk)
{
    for (unsigned i = 0; i < ARRAY_LEN(blk->queues); i++) {
        free(blk->queues[i].slots);
    }
    free(blk);
}

static void blk_destroy(struct virtio_dev *dev)
{
    struct virtio_blk *blk = to_blk(dev);

    block_drain(blk->block);
    block_set_batch_done(blk->block, NULL, NULL);
    virtio_dev_done(dev);
    blk_free(blk);
}

static const struct virtio_dev_ops blk_ops = {
    .name = "virtio-blk",
    .type = VIRTIO_TYPE_BLK,
    .class_code = 0x01,
    .subclass = 0x80,
    .process = blk_process,
    .after_process = blk_after_process,
    .reset = blk_reset,
    .drain = blk_drain,
    .destroy = blk_destroy,
};

static uint64_t blk_features(const struct block *block, unsigned queues)
{
    uint64_t features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | (queues > 1 ? F_MQ : 0);

    if (block_is_read_only(block)) {
        features |= F_RO;
    } else {
        features |= F_WRITE_ZEROES | (block_can_discard(block) ? F_DISCARD : 0);
    }
    return features;
}

static void fill_config(struct virtio_blk *blk)
{
    uint8_t *config = blk->dev.config;

    store_le64(config + CONFIG_CAPACITY, block_size_bytes(blk->block) / BLOCK_SECTOR_BYTES);
    store_le32(config + CONFIG_SEG_MAX, SEG_MAX);
    store_le32(config + CONFIG_BLK_SIZE, BLOCK_SECTOR_BYTES);
    config[CONFIG_PHYSICAL_EXP] = PHYSICAL_EXP;
    store_le16(config + CONFIG_MIN_IO, 1u << PHYSICAL_EXP);
    store_le32(config + CONFIG_OPT_IO, 0);
    store_le16(config + CONFIG_NUM_QUEUES, (uint16_t)blk->dev.queue_count);
    store_le32(config + CONFIG_MAX_DISCARD_SECTORS, MAX_RANGE_SECTORS);
    store_le32(config + CONFIG_MAX_DISCARD_SEG, 1);
    store_le32(config + CONFIG_DISCARD_ALIGN, DISCARD_ALIGN_SECTORS);
    store_le32(config + CONFIG_MAX_ZEROES_SECTORS, MAX_RANGE_SECTORS);
    store_le32(config + CONFIG_MAX_ZEROES_SEG, 1);
    config[CONFIG_ZEROES_MAY_UNMAP] = block_can_discard(blk->block);
}

void virtio_blk_resized(struct virtio_dev *dev)
{
    struct virtio_blk *blk = to_blk(dev);

    virtio_dev_lock(dev);
    store_le64(dev->config + CONFIG_CAPACITY, block_size_bytes(blk->block) / BLOCK_SECTOR_BYTES);
    virtio_dev_config_changed(dev);
    virtio_dev_unlock(dev);
}

/* Untouched slots cost no memory; the stack hands out the last freed one first. */
static int queue_init(struct blk_queue *queue)
{
    queue->slots = calloc(QUEUE_SIZE, sizeof(*queue->slots));
    if (!queue->slots) {
        return -ENOMEM;
    }
    for (unsigned i = QUEUE_SIZE; i-- > 0;) {
        queue->free_slots[queue->free_count++] = (uint16_t)i;
    }
    return 0;
}

int virtio_blk_create(const struct virtio_env *env, const struct virtio_blk_config *config,
                      struct virtio_dev **ret_dev)
{
    struct virtio_blk *blk = calloc(1, sizeof(*blk));
    struct block *block = config->block;
    struct virtio_dev_config dev_config = {
        .ops = &blk_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = block_loop(block, 0),
        .config_len = CONFIG_LEN,
        .queue_count = config->queues == 0 ? 1 : config->queues,
    };
    int r = 0;

    if (!blk) {
        return -ENOMEM;
    }
    if (dev_config.queue_count > VIRTIO_BLK_MAX_QUEUES) {
        dev_config.queue_count = VIRTIO_BLK_MAX_QUEUES;
    }
    dev_config.features = blk_features(block, dev_config.queue_count);
    blk->block = block;
    for (unsigned i = 0; i < dev_config.queue_count && r == 0; i++) {
        dev_config.queue_sizes[i] = QUEUE_SIZE;
        dev_config.queue_loops[i] = block_loop(block, lane_of(blk, i));
        r = queue_init(&blk->queues[i]);
    }
    if (config->serial) {
        memcpy(blk->id, config->serial, strnlen(config->serial, sizeof(blk->id)));
    }
    if (r == 0) {
        r = virtio_dev_init(&blk->dev, &dev_config);
    }
    if (r < 0) {
        blk_free(blk);
        return r;
    }
    fill_config(blk);
    block_set_batch_done(block, on_batch_done, blk);
    *ret_dev = &blk->dev;
    return 0;
}
