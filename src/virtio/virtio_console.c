/*
 * Console device (virtio 1.2 §5.3): a console, or one named port.
 *
 * When the other side is full, the chain at hand waits with the bytes already
 * taken noted, and the transmit queue stands still.
 *
 * A named port is port 1: a driver takes port 0 for a console. To the guest it
 * is always connected: what listens there would otherwise look again and
 * again whether it is.
 */
#include "base/io.h"
#include "base/wire.h"
#include "virtio/virtio.h"

#include <errno.h>
#include <string.h>

#define QUEUE_SIZE 64u
#define CHAIN_MAX 32u
#define PROCESS_BUDGET 32u
#define PIECE_BYTES 4096u

#define F_MULTIPORT (1ull << 1)

/* §5.3.2; a port's queues take the place of a console's. */
enum queue { CONSOLE_RX, CONSOLE_TX, CONTROL_RX, CONTROL_TX, PORT_RX, PORT_TX, PORT_QUEUE_COUNT };

/* §5.3.4 */
#define CONFIG_MAX_PORTS 4u
#define CONFIG_LEN 8u
#define MAX_PORTS 2u

/* §5.3.6.2 */
#define CONTROL_BYTES 8u
enum control_event {
    CONTROL_DEVICE_READY = 0,
    CONTROL_PORT_ADD = 1,
    CONTROL_PORT_READY = 3,
    CONTROL_PORT_OPEN = 6,
    CONTROL_PORT_NAME = 7
};
#define PORT_ID 1u
#define NAME_MAX_BYTES 64u

struct virtio_console {
    struct virtio_dev dev;
    const struct virtio_console_ops *ops;
    void *opaque;
    unsigned rx_queue, tx_queue;
    char name[NAME_MAX_BYTES]; /* empty: a console */
    bool is_open;              /* the guest has the port open */
    unsigned pending;          /* messages to the guest: bits of enum control_event */
    bool has_chain;            /* chain was popped from tx_queue; done bytes of it were taken */
    uint32_t done;
    struct virtq_chain chain;
    struct virtq_seg segs[CHAIN_MAX];
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

    while ((left = console->chain.out_bytes - console->done) > 0) {
        uint32_t len = left < sizeof(piece) ? left : (uint32_t)sizeof(piece);

        if (virtq_chain_read(console->dev.gmem, &console->chain, console->done, piece, len) != 0) {
            virtio_dev_break(&console->dev, "buffer outside memory");
            return true;
        }
        taken = console->ops->write(console->opaque, piece, len);
        console->done += (uint32_t)taken;
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
        if (!console->has_chain) {
            if (!virtio_dev_pop(dev, console->tx_queue, &console->chain)) {
                progress = VIRTIO_DONE;
                break;
            }
            console->has_chain = true;
            console->done = 0;
        }
        if (!write_chain(console)) {
            progress = VIRTIO_QUIET;
            break;
        }
        console->has_chain = false;
        virtio_dev_push(dev, console->tx_queue, console->chain.head, 0);
    }
    virtio_dev_publish(dev, console->tx_queue);
    return progress;
}

/* A buffer for the guest; false when there is none, and a kick will come with the next. */
static bool pop_buffer(struct virtio_dev *dev, unsigned queue, struct virtq_chain *chain)
{
    if (!dev->queues[queue].vq.running) {
        return false;
    }
    while (!virtio_dev_pop(dev, queue, chain)) {
        if (!virtio_dev_want_kick(dev, queue)) {
            return false;
        }
    }
    return true;
}

/* ---- a named port ---- */

/* What the driver says on the control queue; nonsense is as if it had not been said. */
static void take_control(struct virtio_console *console, const uint8_t message[CONTROL_BYTES])
{
    uint32_t id = load_le32(message);
    uint16_t event = load_le16(message + 4);
    uint16_t value = load_le16(message + 6);

    if (event == CONTROL_DEVICE_READY && value == 1) {
        console->pending |= 1u << CONTROL_PORT_ADD;
    } else if (id == PORT_ID && event == CONTROL_PORT_READY && value == 1) {
        console->pending |= 1u << CONTROL_PORT_NAME | 1u << CONTROL_PORT_OPEN;
    } else if (id == PORT_ID && event == CONTROL_PORT_OPEN && console->is_open != (value == 1)) {
        console->is_open = value == 1;
        console->ops->guest_open(console->opaque, console->is_open);
    }
}

static enum virtio_progress process_control_tx(struct virtio_console *console)
{
    struct virtio_dev *dev = &console->dev;
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    uint8_t message[CONTROL_BYTES];
    enum virtio_progress progress = VIRTIO_AGAIN;

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        if (!virtio_dev_pop(dev, CONTROL_TX, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        if (chain.out_bytes >= sizeof(message)) {
            if (virtq_chain_read(dev->gmem, &chain, 0, message, sizeof(message)) != 0) {
                virtio_dev_break(dev, "buffer outside memory");
                return VIRTIO_DONE;
            }
            take_control(console, message);
        }
        virtio_dev_push(dev, CONTROL_TX, chain.head, 0);
    }
    virtio_dev_publish(dev, CONTROL_TX);
    return progress;
}

/* Tells the guest what is pending, in order, as long as it has buffers for it. */
static void send_pending(struct virtio_console *console)
{
    static const enum control_event order[] = {CONTROL_PORT_ADD, CONTROL_PORT_NAME,
                                               CONTROL_PORT_OPEN};
    struct virtio_dev *dev = &console->dev;
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    uint8_t message[CONTROL_BYTES + NAME_MAX_BYTES];

    for (unsigned i = 0; i < ARRAY_LEN(order); i++) {
        size_t len = CONTROL_BYTES;

        if ((console->pending & 1u << order[i]) == 0) {
            continue;
        }
        if (!pop_buffer(dev, CONTROL_RX, &chain)) {
            break;
        }
        store_le32(message, PORT_ID);
        store_le16(message + 4, (uint16_t)order[i]);
        store_le16(message + 6, 1);
        if (order[i] == CONTROL_PORT_NAME) {
            memcpy(message + len, console->name, strlen(console->name));
            len += strlen(console->name);
        }
        if (chain.in_bytes < len || /* a driver's buffers hold any message */
            virtq_chain_write(dev->gmem, &chain, 0, message, (uint32_t)len) != 0) {
            virtio_dev_break(dev, "control buffer too short or outside memory");
            return;
        }
        console->pending &= ~(1u << order[i]);
        virtio_dev_push(dev, CONTROL_RX, chain.head, (uint32_t)len);
    }
    virtio_dev_publish(dev, CONTROL_RX);
}

/* Gives buffers of the first port's output back unread: nobody is there. */
static enum virtio_progress drop_output(struct virtio_dev *dev)
{
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    enum virtio_progress progress = VIRTIO_AGAIN;

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        if (!virtio_dev_pop(dev, CONSOLE_TX, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        virtio_dev_push(dev, CONSOLE_TX, chain.head, 0);
    }
    virtio_dev_publish(dev, CONSOLE_TX);
    return progress;
}

static enum virtio_progress process_port(struct virtio_console *console, unsigned index)
{
    enum virtio_progress progress = VIRTIO_QUIET;

    switch ((enum queue)index) {
    case CONSOLE_TX:
        return drop_output(&console->dev);
    case CONTROL_TX:
        progress = process_control_tx(console);
        send_pending(console);
        break;
    case CONTROL_RX:
        send_pending(console);
        break;
    case CONSOLE_RX:
    case PORT_RX:
    case PORT_TX:
    case PORT_QUEUE_COUNT:
        break;
    }
    return progress;
}

/* ---- both ---- */

static enum virtio_progress console_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_console *console = to_console(dev);

    if (index == console->tx_queue) {
        return process_tx(console);
    }
    if (index != console->rx_queue) {
        return process_port(console, index);
    }
    console->ops->may_input(console->opaque);
    return VIRTIO_QUIET;
}

void virtio_console_output_ready(struct virtio_dev *dev)
{
    io_eventfd_signal(dev->queues[to_console(dev)->tx_queue].fd);
}

static size_t input_locked(struct virtio_console *console, const uint8_t *data, size_t len)
{
    struct virtio_dev *dev = &console->dev;
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    size_t done = 0;

    if (console->name[0] != '\0' && !console->is_open) {
        return len; /* a port that nobody has open is deaf */
    }
    if (!virtio_dev_is_live(dev)) {
        return 0;
    }
    while (done < len) {
        uint32_t piece;

        if (!pop_buffer(dev, console->rx_queue, &chain)) {
            break;
        }
        piece = chain.in_bytes < len - done ? chain.in_bytes : (uint32_t)(len - done);
        if (virtq_chain_write(dev->gmem, &chain, 0, data + done, piece) != 0) {
            virtio_dev_break(dev, "buffer outside memory");
            break;
        }
        virtio_dev_push(dev, console->rx_queue, chain.head, piece);
        done += piece;
    }
    virtio_dev_publish(dev, console->rx_queue);
    return done;
}

size_t virtio_console_input(struct virtio_dev *dev, const uint8_t *data, size_t len)
{
    size_t done;

    virtio_dev_lock(dev);
    done = input_locked(to_console(dev), data, len);
    virtio_dev_unlock(dev);
    return done;
}

static void console_reset(struct virtio_dev *dev)
{
    struct virtio_console *console = to_console(dev);

    console->has_chain = false;
    console->pending = 0;
    if (console->is_open) {
        console->is_open = false;
        console->ops->guest_open(console->opaque, false);
    }
    if (console->name[0] != '\0') {
        console->ops->may_input(console->opaque); /* what waits goes nowhere now */
    }
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

/* name: NULL for a console. */
static int create(const struct virtio_env *env, const char *name,
                  const struct virtio_console_ops *ops, void *opaque, struct virtio_dev **ret_dev)
{
    struct virtio_console *console = calloc(1, sizeof(*console));
    const struct virtio_dev_config config = {
        .ops = &console_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = env->loop,
        .features = name != NULL ? F_MULTIPORT : 0,
        .config_len = name != NULL ? CONFIG_LEN : 0,
        .queue_count = name != NULL ? PORT_QUEUE_COUNT : 2,
        .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE},
    };
    int r;

    if (!console) {
        return -ENOMEM;
    }
    console->ops = ops;
    console->opaque = opaque;
    console->rx_queue = name != NULL ? PORT_RX : CONSOLE_RX;
    console->tx_queue = name != NULL ? PORT_TX : CONSOLE_TX;
    console->chain.segs = console->segs;
    console->chain.max = CHAIN_MAX;
    if (name != NULL) {
        (void)stpncpy(console->name, name, sizeof(console->name) - 1);
    }
    r = virtio_dev_init(&console->dev, &config);
    if (r < 0) {
        free(console);
        return r;
    }
    if (name != NULL) {
        store_le32(console->dev.config + CONFIG_MAX_PORTS, MAX_PORTS);
    }
    *ret_dev = &console->dev;
    return 0;
}

int virtio_console_create(const struct virtio_env *env, const struct virtio_console_ops *ops,
                          void *opaque, struct virtio_dev **ret_dev)
{
    return create(env, NULL, ops, opaque, ret_dev);
}

int virtio_console_create_port(const struct virtio_env *env, const char *name,
                               const struct virtio_console_ops *ops, void *opaque,
                               struct virtio_dev **ret_dev)
{
    return create(env, name, ops, opaque, ret_dev);
}
