/*
 * Memory that grows and shrinks (virtio 1.2 §5.15): the host says how much of
 * the pluggable RAM it wants in use, the driver plugs and unplugs blocks of it.
 * A block that is not plugged holds no memory of the host, unless the guest
 * uses it against the rules: then as much as a balloon's pages that it touches
 * again, never more than the RAM there may be.
 */
#include "base/log.h"
#include "base/wire.h"
#include "virtio/virtio.h"

#include <errno.h>
#include <string.h>

#define QUEUE_SIZE 128u
#define CHAIN_MAX 8u
#define PROCESS_BUDGET 16u

/* A driver plugs no smaller pieces than its page allocator's largest; Linux' is 4 MiB at most. */
#define BLOCK_BYTES VIRTIO_MEM_BLOCK_BYTES
#define WORD_BITS 64u

/* §5.15.3 */
#define F_UNPLUGGED_INACCESSIBLE (1ull << 1)

/* §5.15.4 */
#define CONFIG_BLOCK_SIZE 0u
#define CONFIG_ADDR 16u
#define CONFIG_REGION_SIZE 24u
#define CONFIG_USABLE_SIZE 32u
#define CONFIG_PLUGGED_SIZE 40u
#define CONFIG_REQUESTED_SIZE 48u
#define CONFIG_LEN 56u

/* §5.15.6 */
#define REQUEST_BYTES 24u
#define RESPONSE_BYTES 10u
enum request { REQUEST_PLUG, REQUEST_UNPLUG, REQUEST_UNPLUG_ALL, REQUEST_STATE };
enum response { RESPONSE_ACK, RESPONSE_NACK, RESPONSE_BUSY, RESPONSE_ERROR };
enum block_state { STATE_PLUGGED, STATE_UNPLUGGED, STATE_MIXED };

struct virtio_mem {
    struct virtio_dev dev;
    virtio_mem_fn on_plugged;
    void *opaque;
    uint64_t start; /* of the region */
    uint64_t block_count;
    uint64_t plugged_blocks;
    uint64_t plugged[]; /* a bit per block */
};

static struct virtio_mem *to_mem(struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_mem, dev);
}

static bool is_plugged(const struct virtio_mem *mem, uint64_t block)
{
    return (mem->plugged[block / WORD_BITS] >> block % WORD_BITS & 1) != 0;
}

/* How many of the blocks are plugged. */
static uint64_t count_plugged(const struct virtio_mem *mem, uint64_t first, uint64_t count)
{
    uint64_t plugged = 0;

    for (uint64_t i = first; i < first + count; i++) {
        plugged += is_plugged(mem, i) ? 1 : 0;
    }
    return plugged;
}

static void mark(struct virtio_mem *mem, uint64_t first, uint64_t count, bool plugged)
{
    for (uint64_t i = first; i < first + count; i++) {
        uint64_t bit = 1ull << i % WORD_BITS;

        mem->plugged[i / WORD_BITS] = (mem->plugged[i / WORD_BITS] & ~bit) | (plugged ? bit : 0);
    }
    mem->plugged_blocks = plugged ? mem->plugged_blocks + count : mem->plugged_blocks - count;
    store_le64(mem->dev.config + CONFIG_PLUGGED_SIZE, mem->plugged_blocks * BLOCK_BYTES);
    if (mem->on_plugged != NULL) {
        mem->on_plugged(mem->opaque, mem->plugged_blocks * BLOCK_BYTES);
    }
}

/* The blocks that a request names; false when they are not all in the region. */
static bool find_blocks(const struct virtio_mem *mem, const uint8_t *raw, uint64_t *ret_first,
                        uint64_t *ret_count)
{
    uint64_t offset = load_le64(raw + 8) - mem->start;
    uint64_t count = load_le16(raw + 16);

    *ret_first = offset / BLOCK_BYTES;
    *ret_count = count;
    return offset % BLOCK_BYTES == 0 && count != 0 && count <= mem->block_count &&
           *ret_first <= mem->block_count - count;
}

static enum response plug(struct virtio_mem *mem, uint64_t first, uint64_t count)
{
    uint64_t wanted = load_le64(mem->dev.config + CONFIG_REQUESTED_SIZE) / BLOCK_BYTES;

    if (count_plugged(mem, first, count) != 0) {
        return RESPONSE_ERROR;
    }
    if (count > wanted || mem->plugged_blocks > wanted - count) {
        return RESPONSE_NACK; /* more than the host wants in use */
    }
    /* Whatever the guest wrote there while it was not plugged. */
    if (gmem_discard(mem->dev.gmem, gpa(mem->start + first * BLOCK_BYTES), count * BLOCK_BYTES) !=
        0) {
        return RESPONSE_BUSY;
    }
    mark(mem, first, count, true);
    return RESPONSE_ACK;
}

static enum response unplug(struct virtio_mem *mem, uint64_t first, uint64_t count)
{
    if (count_plugged(mem, first, count) != count) {
        return RESPONSE_ERROR;
    }
    if (gmem_discard(mem->dev.gmem, gpa(mem->start + first * BLOCK_BYTES), count * BLOCK_BYTES) !=
        0) {
        return RESPONSE_BUSY;
    }
    mark(mem, first, count, false);
    return RESPONSE_ACK;
}

static enum response unplug_all(struct virtio_mem *mem)
{
    if (gmem_discard(mem->dev.gmem, gpa(mem->start), mem->block_count * BLOCK_BYTES) != 0) {
        return RESPONSE_BUSY;
    }
    memset(mem->plugged, 0, (mem->block_count + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t));
    mem->plugged_blocks = 0;
    mark(mem, 0, 0, false);
    return RESPONSE_ACK;
}

static enum block_state state_of(const struct virtio_mem *mem, uint64_t first, uint64_t count)
{
    uint64_t plugged = count_plugged(mem, first, count);

    return plugged == 0 ? STATE_UNPLUGGED : plugged == count ? STATE_PLUGGED : STATE_MIXED;
}

static enum response answer(struct virtio_mem *mem, const uint8_t *raw, uint16_t *ret_state)
{
    uint16_t type = load_le16(raw);
    uint64_t first, count;

    if (type == REQUEST_UNPLUG_ALL) {
        return unplug_all(mem);
    }
    if (!find_blocks(mem, raw, &first, &count)) {
        return RESPONSE_ERROR;
    }
    switch (type) {
    case REQUEST_PLUG:
        return plug(mem, first, count);
    case REQUEST_UNPLUG:
        return unplug(mem, first, count);
    case REQUEST_STATE:
        *ret_state = (uint16_t)state_of(mem, first, count);
        return RESPONSE_ACK;
    default:
        return RESPONSE_ERROR;
    }
}

static bool take_chain(struct virtio_mem *mem, const struct virtq_chain *chain)
{
    uint8_t raw[REQUEST_BYTES];
    uint8_t response[RESPONSE_BYTES] = {0};
    uint16_t state = 0;

    if (chain->in_bytes < sizeof(response) ||
        virtq_chain_read(mem->dev.gmem, chain, 0, raw, sizeof(raw)) != 0) {
        return false;
    }
    store_le16(response, (uint16_t)answer(mem, raw, &state));
    store_le16(response + 8, state);
    return virtq_chain_write(mem->dev.gmem, chain, 0, response, sizeof(response)) == 0;
}

static enum virtio_progress mem_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_mem *mem = to_mem(dev);
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    enum virtio_progress progress = VIRTIO_AGAIN;

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        if (!virtio_dev_pop(dev, index, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        if (!take_chain(mem, &chain)) {
            virtio_dev_break(dev, "request too short, or outside memory");
            return VIRTIO_DONE;
        }
        virtio_dev_push(dev, index, chain.head, RESPONSE_BYTES);
    }
    virtio_dev_publish(dev, index);
    return progress;
}

void virtio_mem_set_requested(struct virtio_dev *dev, uint64_t bytes)
{
    struct virtio_mem *mem = to_mem(dev);
    uint64_t blocks = bytes / BLOCK_BYTES + (bytes % BLOCK_BYTES != 0 ? 1 : 0);

    blocks = blocks < mem->block_count ? blocks : mem->block_count;
    virtio_dev_lock(dev);
    store_le64(dev->config + CONFIG_REQUESTED_SIZE, blocks * BLOCK_BYTES);
    virtio_dev_config_changed(dev);
    virtio_dev_unlock(dev);
}

void virtio_mem_unplug_all(struct virtio_dev *dev)
{
    virtio_dev_lock(dev);
    if (unplug_all(to_mem(dev)) != RESPONSE_ACK) {
        log_warn("virtio-mem: the host does not take memory back, going on without");
    }
    virtio_dev_unlock(dev);
}

/* The driver's memory is still in use: only a new boot unplugs it (§5.15.5). */
static void mem_reset(struct virtio_dev *dev)
{
    (void)dev;
}

static void mem_destroy(struct virtio_dev *dev)
{
    virtio_dev_done(dev);
    free(to_mem(dev));
}

static const struct virtio_dev_ops mem_ops = {
    .name = "virtio-mem",
    .type = VIRTIO_TYPE_MEM,
    .class_code = 0x00,
    .subclass = 0xff,
    .process = mem_process,
    .reset = mem_reset,
    .destroy = mem_destroy,
};

int virtio_mem_create(const struct virtio_env *env, virtio_mem_fn on_plugged, void *opaque,
                      struct virtio_dev **ret_dev)
{
    const struct gmem_region *region = gmem_pluggable(env->gmem);
    const struct virtio_dev_config config = {
        .ops = &mem_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = env->loop,
        .features = F_UNPLUGGED_INACCESSIBLE,
        .config_len = CONFIG_LEN,
        .queue_count = 1,
        .queue_sizes = {QUEUE_SIZE},
    };
    uint64_t blocks = region == NULL ? 0 : region->size_bytes / BLOCK_BYTES;
    struct virtio_mem *mem =
        calloc(1, sizeof(*mem) + (blocks + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t));
    int r;

    if (mem == NULL || region == NULL) {
        free(mem);
        return region == NULL ? -EINVAL : -ENOMEM;
    }
    r = virtio_dev_init(&mem->dev, &config);
    if (r < 0) {
        free(mem);
        return r;
    }
    mem->on_plugged = on_plugged;
    mem->opaque = opaque;
    mem->start = region->gpa;
    mem->block_count = blocks;
    store_le64(mem->dev.config + CONFIG_BLOCK_SIZE, BLOCK_BYTES);
    store_le64(mem->dev.config + CONFIG_ADDR, region->gpa);
    store_le64(mem->dev.config + CONFIG_REGION_SIZE, blocks * BLOCK_BYTES);
    store_le64(mem->dev.config + CONFIG_USABLE_SIZE, blocks * BLOCK_BYTES);
    *ret_dev = &mem->dev;
    return 0;
}
