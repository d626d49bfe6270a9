/*
 * Network card (virtio 1.2 §5.1): one pair of queues, on the network's loop.
 *
 * The network may deliver a frame inside netdev_send(), that is, while the
 * transmit queue is being processed with the mutex held; the loop's thread
 * remembers that in has_lock.
 */
#include "base/io.h"
#include "base/log.h"
#include "base/wire.h"
#include "netdev/netdev.h"
#include "virtio/virtio.h"

#include <errno.h>
#include <string.h>

#define QUEUE_SIZE 256u
#define CHAIN_MAX 64u
#define RX_MAX_CHAINS 64u
#define PROCESS_BUDGET 64u

#define RX_QUEUE 0u
#define TX_QUEUE 1u

/* §5.1.3 */
#define F_CSUM (1ull << 0)
#define F_GUEST_CSUM (1ull << 1)
#define F_MTU (1ull << 3)
#define F_MAC (1ull << 5)
#define F_MRG_RXBUF (1ull << 15)
#define F_STATUS (1ull << 16)

/* §5.1.4 */
#define CONFIG_MAC 0u
#define CONFIG_STATUS 6u
#define CONFIG_MTU 10u
#define CONFIG_LEN 12u
#define STATUS_LINK_UP 1u

/* §5.1.6: the header before each frame */
#define HEADER_BYTES 12u
#define HEADER_FLAGS 0u
#define HEADER_GSO_TYPE 1u
#define HEADER_CSUM_START 6u
#define HEADER_CSUM_OFFSET 8u
#define HEADER_NUM_BUFFERS 10u
#define FLAG_NEEDS_CSUM 1u
#define FLAG_DATA_VALID 2u

struct virtio_net {
    struct virtio_dev dev;
    struct netdev *netdev;
    bool has_lock; /* the loop's thread only */
    struct virtq_seg tx_segs[CHAIN_MAX];
    struct virtq_chain rx_chains[RX_MAX_CHAINS];
    struct virtq_seg rx_segs[RX_MAX_CHAINS][CHAIN_MAX];
    uint8_t frame[HEADER_BYTES + NETDEV_MAX_FRAME_BYTES];
};

static struct virtio_net *to_net(struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_net, dev);
}

/* A frame that is too long, or asks for what was not offered, is lost as on a wire. */
static void send_chain(struct virtio_net *net, const struct virtq_chain *chain)
{
    struct netdev_csum csum = {0};
    uint32_t len = chain->out_bytes;

    if (len < HEADER_BYTES || len > sizeof(net->frame) ||
        virtq_chain_read(net->dev.gmem, chain, 0, net->frame, len) != 0) {
        log_guest("virtio-net: bad transmit buffer, dropping the frame");
        return;
    }
    if (net->frame[HEADER_GSO_TYPE] != 0) {
        log_guest("virtio-net: segmentation was not negotiated, dropping the frame");
        return;
    }
    if ((net->frame[HEADER_FLAGS] & FLAG_NEEDS_CSUM) && virtio_dev_has(&net->dev, F_CSUM)) {
        csum.is_needed = true;
        csum.start = load_le16(net->frame + HEADER_CSUM_START);
        csum.offset = load_le16(net->frame + HEADER_CSUM_OFFSET);
    }
    netdev_send(net->netdev, net->frame + HEADER_BYTES, len - HEADER_BYTES, &csum);
}

static enum virtio_progress process_tx(struct virtio_net *net)
{
    struct virtq_chain chain = {.segs = net->tx_segs, .max = CHAIN_MAX};
    enum virtio_progress progress = VIRTIO_AGAIN;
    unsigned sent;

    net->has_lock = true;
    for (sent = 0; sent < PROCESS_BUDGET; sent++) {
        if (!netdev_may_send(net->netdev)) {
            progress = VIRTIO_QUIET; /* net_send_ready() rings */
            break;
        }
        if (!virtio_dev_pop(&net->dev, TX_QUEUE, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        send_chain(net, &chain);
        virtio_dev_push(&net->dev, TX_QUEUE, chain.head, 0);
    }
    if (sent > 0) {
        netdev_send_done(net->netdev);
    }
    net->has_lock = false;
    virtio_dev_publish(&net->dev, TX_QUEUE);
    return progress;
}

static enum virtio_progress net_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_net *net = to_net(dev);

    if (index == TX_QUEUE) {
        return process_tx(net);
    }
    net->has_lock = true;
    netdev_receive_ready(net->netdev);
    net->has_lock = false;
    return VIRTIO_QUIET;
}

/* Pops chains for need bytes; how many, 0 when the ring has not enough of them. */
static unsigned collect_rx(struct virtio_net *net, uint32_t need)
{
    struct virtio_dev *dev = &net->dev;
    unsigned max = virtio_dev_has(dev, F_MRG_RXBUF) ? RX_MAX_CHAINS : 1;
    uint32_t have = 0;
    unsigned count = 0;

    while (have < need && count < max) {
        struct virtq_chain *chain = &net->rx_chains[count];

        chain->segs = net->rx_segs[count];
        chain->max = CHAIN_MAX;
        if (!virtio_dev_pop(dev, RX_QUEUE, chain)) {
            virtqueue_unpop(&dev->queues[RX_QUEUE].vq, (uint16_t)count);
            return 0;
        }
        if (chain->in_bytes < HEADER_BYTES) {
            virtio_dev_break(dev, "receive buffer shorter than its header");
            return 0;
        }
        have += chain->in_bytes;
        count++;
    }
    return count;
}

/* Spreads header and frame over the collected chains. False when they are too small. */
static bool fill_rx(struct virtio_net *net, unsigned count, const uint8_t *frame, uint32_t len)
{
    struct virtio_dev *dev = &net->dev;
    uint8_t header[HEADER_BYTES] = {0};
    uint32_t at = HEADER_BYTES;
    uint32_t done = 0;

    if (virtio_dev_has(dev, F_GUEST_CSUM) && (netdev_caps(net->netdev) & NETDEV_RX_CSUM_OK)) {
        header[HEADER_FLAGS] = FLAG_DATA_VALID;
    }
    store_le16(header + HEADER_NUM_BUFFERS, (uint16_t)count);
    if (virtq_chain_write(dev->gmem, &net->rx_chains[0], 0, header, sizeof(header)) != 0) {
        virtio_dev_break(dev, "receive buffer outside memory");
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        const struct virtq_chain *chain = &net->rx_chains[i];
        uint32_t room = chain->in_bytes - at;
        uint32_t piece = room < len - done ? room : len - done;

        if (virtq_chain_write(dev->gmem, chain, at, frame + done, piece) != 0) {
            virtio_dev_break(dev, "receive buffer outside memory");
            return false;
        }
        virtio_dev_push(dev, RX_QUEUE, chain->head, at + piece);
        done += piece;
        at = 0;
    }
    return done == len;
}

static bool receive_locked(struct virtio_net *net, const uint8_t *frame, uint32_t len)
{
    struct virtio_dev *dev = &net->dev;
    struct virtqueue *vq = &dev->queues[RX_QUEUE].vq;
    unsigned count;

    if (!virtio_dev_is_live(dev) || !vq->running) {
        return true; /* no driver: the frame is lost */
    }
    count = collect_rx(net, HEADER_BYTES + len);
    /* Wait for buffers; those that came before the request for a kick bring none. A ring fills
     * up in so many steps: a driver that takes more takes buffers back, and may lose its kick. */
    for (unsigned i = 0; count == 0 && vq->running; i++) {
        if (i == QUEUE_SIZE || !virtio_dev_want_kick(dev, RX_QUEUE)) {
            return !vq->running;
        }
        count = collect_rx(net, HEADER_BYTES + len);
    }
    if (count > 0 && !fill_rx(net, count, frame, len) && vq->running) {
        log_guest("virtio-net: receive buffers too small, cutting a frame of %u bytes", len);
    }
    return true;
}

static bool net_receive(void *opaque, const void *frame, size_t len)
{
    struct virtio_net *net = opaque;
    bool is_taken;

    if (net->has_lock) {
        return receive_locked(net, frame, (uint32_t)len);
    }
    virtio_dev_lock(&net->dev);
    is_taken = receive_locked(net, frame, (uint32_t)len);
    virtio_dev_unlock(&net->dev);
    return is_taken;
}

static void net_batch_done(void *opaque)
{
    struct virtio_net *net = opaque;

    if (net->has_lock) {
        virtio_dev_publish(&net->dev, RX_QUEUE);
        return;
    }
    virtio_dev_lock(&net->dev);
    virtio_dev_publish(&net->dev, RX_QUEUE);
    virtio_dev_unlock(&net->dev);
}

static void net_send_ready(void *opaque)
{
    struct virtio_net *net = opaque;

    io_eventfd_signal(net->dev.queues[TX_QUEUE].fd);
}

static const struct netdev_card_ops card_ops = {
    .receive = net_receive,
    .batch_done = net_batch_done,
    .send_ready = net_send_ready,
};

static void net_reset(struct virtio_dev *dev)
{
    (void)dev; /* nothing outlives a round of processing */
}

static void net_destroy(struct virtio_dev *dev)
{
    struct virtio_net *net = to_net(dev);

    netdev_set_card(net->netdev, NULL, NULL);
    virtio_dev_done(dev);
    free(net);
}

static const struct virtio_dev_ops net_ops = {
    .name = "virtio-net",
    .type = VIRTIO_TYPE_NET,
    .class_code = 0x02,
    .subclass = 0x00,
    .process = net_process,
    .reset = net_reset,
    .destroy = net_destroy,
};

static void fill_config(struct virtio_net *net, const uint8_t mac[6])
{
    static const uint8_t none[6];
    static const uint8_t default_mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    uint8_t *config = net->dev.config;

    memcpy(config + CONFIG_MAC, memcmp(mac, none, sizeof(none)) ? mac : default_mac, 6);
    store_le16(config + CONFIG_STATUS, STATUS_LINK_UP);
    store_le16(config + CONFIG_MTU, netdev_mtu(net->netdev));
}

int virtio_net_create(const struct virtio_env *env, struct netdev *netdev, const uint8_t mac[6],
                      struct virtio_dev **ret_dev)
{
    struct virtio_net *net = calloc(1, sizeof(*net));
    unsigned caps = netdev_caps(netdev);
    const struct virtio_dev_config config = {
        .ops = &net_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = netdev_loop(netdev),
        .features = F_MAC | F_STATUS | F_MTU | F_MRG_RXBUF |
                    ((caps & NETDEV_CAN_TX_CSUM) ? F_CSUM : 0) |
                    ((caps & NETDEV_RX_CSUM_OK) ? F_GUEST_CSUM : 0),
        .config_len = CONFIG_LEN,
        .queue_count = 2,
        .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE},
    };
    int r;

    if (!net) {
        return -ENOMEM;
    }
    net->netdev = netdev;
    r = virtio_dev_init(&net->dev, &config);
    if (r < 0) {
        free(net);
        return r;
    }
    fill_config(net, mac);
    netdev_set_card(netdev, &card_ops, net);
    *ret_dev = &net->dev;
    return 0;
}
