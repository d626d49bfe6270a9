/* Entropy device (virtio 1.2 §5.4). */
#include "virtio/virtio.h"

#include <errno.h>
#include <sys/random.h>

#define QUEUE_SIZE 16u
#define CHAIN_MAX 16u
/* Per request; a driver that wants more asks again. */
#define REQUEST_MAX_BYTES 1024u
#define PROCESS_BUDGET 8u

struct virtio_rng {
    struct virtio_dev dev;
};

static enum virtio_progress rng_process(struct virtio_dev *dev, unsigned index)
{
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    uint8_t bytes[REQUEST_MAX_BYTES];
    enum virtio_progress progress = VIRTIO_AGAIN;

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        uint32_t len;
        ssize_t got;

        if (!virtio_dev_pop(dev, index, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        len = chain.in_bytes < sizeof(bytes) ? chain.in_bytes : (uint32_t)sizeof(bytes);
        got = getrandom(bytes, len, GRND_NONBLOCK);
        len = got > 0 ? (uint32_t)got : 0;
        if (virtq_chain_write(dev->gmem, &chain, 0, bytes, len) != 0) {
            virtio_dev_break(dev, "buffer outside memory");
            break;
        }
        virtio_dev_push(dev, index, chain.head, len);
    }
    virtio_dev_publish(dev, index);
    return progress;
}

static void rng_reset(struct virtio_dev *dev)
{
    (void)dev; /* has no state */
}

static void rng_destroy(struct virtio_dev *dev)
{
    virtio_dev_done(dev);
    free(container_of(dev, struct virtio_rng, dev));
}

static const struct virtio_dev_ops rng_ops = {
    .name = "virtio-rng",
    .type = VIRTIO_TYPE_RNG,
    .class_code = 0x00,
    .subclass = 0xff,
    .process = rng_process,
    .reset = rng_reset,
    .destroy = rng_destroy,
};

int virtio_rng_create(const struct virtio_env *env, struct virtio_dev **ret_dev)
{
    struct virtio_rng *rng = calloc(1, sizeof(*rng));
    const struct virtio_dev_config config = {
        .ops = &rng_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = env->loop,
        .queue_count = 1,
        .queue_sizes = {QUEUE_SIZE},
    };
    int r;

    if (!rng) {
        return -ENOMEM;
    }
    r = virtio_dev_init(&rng->dev, &config);
    if (r < 0) {
        free(rng);
        return r;
    }
    *ret_dev = &rng->dev;
    return 0;
}
