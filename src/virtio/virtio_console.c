/*
 * Console device (virtio 1.2 §5.3): one port, no multiport.
 *
 * When the other side is full, the chain at hand waits with the bytes already
 * taken noted, and the transmit queue stands still.
 */
#include "base/io.h"
#include "virtio/virtio.h"

#include <errno.h>

#define QUEUE_SIZE 64u
#define CHAIN_MAX 32u
#define PROCESS_BUDGET 32u
#define PIECE_BYTES 4096u

#define RX_QUEUE 0u
#define TX_QUEUE 1u

struct virtio_console {
    struct virtio_dev dev;
    const struct virtio_console_ops *ops;
    void *opaque;
    bool has_tx; /* tx is a chain of which tx_done bytes were taken */
    uint32_t tx_done;
    struct virtq_chain tx;
    struct virtq_seg tx_segs[CHAIN_MAX];
};

static struct virtio_console *to_console(struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_console, dev);
}

/* Writes what is left of the chain; false when the other side is full. */
static bool write_chain(struct virtio_console *console)
{
    uint8_t piece[PIECE_BYTES];
    uint32_t left;
    size_t taken;

    while ((left = console->tx.out_bytes - console->tx_done) > 0) {
        uint32_t len = left < sizeof(piece) ? left : (uint32_t)sizeof(piece);

        if (virtq_chain_read(console->dev.gmem, &console->tx, console->tx_done, piece, len) != 0) {
            virtio_dev_break(&console->dev, "buffer outside memory");
            return true;
        }
        taken = console->ops->write(console->opaque, piece, len);
        console->tx_done += (uint32_t)taken;
        if (taken < len) {
            return false;
        }
    }
    return true;
}

static enum virtio_progress process_tx(struct virtio_console *console)
{
    struct virtio_dev *dev = &console->dev;
    enum virtio_progress progress = VIRTIO_AGAIN;

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        if (!console->has_tx) {
            if (!virtio_dev_pop(dev, TX_QUEUE, &console->tx)) {
                progress = VIRTIO_DONE;
                break;
            }
            console->has_tx = true;
            console->tx_done = 0;
        }
        if (!write_chain(console)) {
            progress = VIRTIO_QUIET;
            break;
        }
        console->has_tx = false;
        virtio_dev_push(dev, TX_QUEUE, console->tx.head, 0);
    }
    virtio_dev_publish(dev, TX_QUEUE);
    return progress;
}

static enum virtio_progress console_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_console *console = to_console(dev);

    if (index == TX_QUEUE) {
        return process_tx(console);
    }
    console->ops->may_input(console->opaque);
    return VIRTIO_QUIET;
}

void virtio_console_output_ready(struct virtio_dev *dev)
{
    io_eventfd_signal(dev->queues[TX_QUEUE].fd);
}

static size_t input_locked(struct virtio_dev *dev, const uint8_t *data, size_t len)
{
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    size_t done = 0;

    if (!virtio_dev_is_live(dev) || !dev->queues[RX_QUEUE].vq.running) {
        return 0;
    }
    while (done < len) {
        uint32_t piece;

        if (!virtio_dev_pop(dev, RX_QUEUE, &chain)) {
            if (!virtio_dev_want_kick(dev, RX_QUEUE)) {
                break;
            }
            continue; /* buffers came while we asked */
        }
        piece = chain.in_bytes < len - done ? chain.in_bytes : (uint32_t)(len - done);
        if (virtq_chain_write(dev->gmem, &chain, 0, data + done, piece) != 0) {
            virtio_dev_break(dev, "buffer outside memory");
            break;
        }
        virtio_dev_push(dev, RX_QUEUE, chain.head, piece);
        done += piece;
    }
    virtio_dev_publish(dev, RX_QUEUE);
    return done;
}

size_t virtio_console_input(struct virtio_dev *dev, const uint8_t *data, size_t len)
{
    size_t done;

    virtio_dev_lock(dev);
    done = input_locked(dev, data, len);
    virtio_dev_unlock(dev);
    return done;
}

static void console_reset(struct virtio_dev *dev)
{
    to_console(dev)->has_tx = false;
}

static void console_destroy(struct virtio_dev *dev)
{
    virtio_dev_done(dev);
    free(to_console(dev));
}

static const struct virtio_dev_ops console_ops = {
    .name = "virtio-console",
    .type = VIRTIO_TYPE_CONSOLE,
    .class_code = 0x07,
    .subclass = 0x80,
    .process = console_process,
    .reset = console_reset,
    .destroy = console_destroy,
};

int virtio_console_create(const struct virtio_env *env, const struct virtio_console_ops *ops,
                          void *opaque, struct virtio_dev **ret_dev)
{
    struct virtio_console *console = calloc(1, sizeof(*console));
    const struct virtio_dev_config config = {
        .ops = &console_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = env->loop,
        .queue_count = 2,
        .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE},
    };
    int r;

    if (!console) {
        return -ENOMEM;
    }
    console->ops = ops;
    console->opaque = opaque;
    console->tx.segs = console->tx_segs;
    console->tx.max = CHAIN_MAX;
    r = virtio_dev_init(&console->dev, &config);
    if (r < 0) {
        free(console);
        return r;
    }
    *ret_dev = &console->dev;
    return 0;
}
