/* Socket device (virtio 1.2 §5.10): the guest's side. */
#include "virtio/virtio.h"

#include "base/io.h"
#include "base/log.h"
#include "base/wire.h"
#include "virtio/vsock.h"

#include <errno.h>

#define QUEUE_SIZE 128u
#define PROCESS_BUDGET 32u
/* Packets of payload to the guest in one go. */
#define PUMP_BUDGET 64u

enum queue { RX_QUEUE, TX_QUEUE, EVENT_QUEUE, QUEUE_COUNT };

#define CONFIG_CID 0u
#define CONFIG_LEN 8u

#define CID_MIN 3u
#define CID_MAX 0xfffffffeu

/* §5.10.6: struct virtio_vsock_hdr */
enum header_field {
    HEADER_SRC_CID = 0,
    HEADER_DST_CID = 8,
    HEADER_SRC_PORT = 16,
    HEADER_DST_PORT = 20,
    HEADER_LEN = 24,
    HEADER_TYPE = 28,
    HEADER_OP = 30,
    HEADER_FLAGS = 32,
    HEADER_BUF_ALLOC = 36,
    HEADER_FWD_CNT = 40
};

/* A packet from the guest, checked. */
struct packet {
    uint32_t guest_port, host_port;
    uint32_t len;
    uint16_t op;
    uint32_t flags;
    uint32_t buf_alloc, fwd_cnt;
    const uint8_t *data;
};

static struct virtio_vsock *to_vsock(struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_vsock, dev);
}

uint32_t vsock_credit(const struct vsock_conn *conn)
{
    uint32_t in_guest = conn->sent - conn->guest_fwd_cnt;

    return in_guest < conn->guest_buf_alloc ? conn->guest_buf_alloc - in_guest : 0;
}

static struct vsock_conn *find_conn(struct virtio_vsock *vsock, uint32_t host_port,
                                    uint32_t guest_port)
{
    for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
        struct vsock_conn *conn = &vsock->conns[i];

        if ((conn->state == VSOCK_REQUESTED || conn->state == VSOCK_OPEN) &&
            conn->host_port == host_port && conn->guest_port == guest_port) {
            return conn;
        }
    }
    return NULL;
}

static void fill_header(struct virtio_vsock *vsock, uint32_t host_port, uint32_t guest_port,
                        enum vsock_op op, uint32_t flags, uint32_t len)
{
    uint8_t *header = vsock->packet;

    store_le64(header + HEADER_SRC_CID, VSOCK_CID_HOST);
    store_le64(header + HEADER_DST_CID, vsock->guest_cid);
    store_le32(header + HEADER_SRC_PORT, host_port);
    store_le32(header + HEADER_DST_PORT, guest_port);
    store_le32(header + HEADER_LEN, len);
    store_le16(header + HEADER_TYPE, VSOCK_TYPE_STREAM);
    store_le16(header + HEADER_OP, (uint16_t)op);
    store_le32(header + HEADER_FLAGS, flags);
    store_le32(header + HEADER_BUF_ALLOC, VSOCK_BUFFER_BYTES);
    store_le32(header + HEADER_FWD_CNT, 0);
}

/* A receive buffer; false when there is none, and then a kick will come. */
static bool pop_rx(struct virtio_vsock *vsock, struct virtq_chain *chain)
{
    struct virtio_dev *dev = &vsock->dev;

    chain->segs = vsock->segs;
    chain->max = VSOCK_CHAIN_MAX;
    while (!virtio_dev_pop(dev, RX_QUEUE, chain)) {
        if (!virtio_dev_want_kick(dev, RX_QUEUE)) {
            vsock->no_room = true;
            return false;
        }
    }
    if (chain->in_bytes < VSOCK_HEADER_BYTES) {
        virtio_dev_break(dev, "receive buffer shorter than a header");
        return false;
    }
    return true;
}

static bool push_rx(struct virtio_vsock *vsock, const struct virtq_chain *chain, uint32_t len)
{
    if (virtq_chain_write(vsock->dev.gmem, chain, 0, vsock->packet, len) != 0) {
        virtio_dev_break(&vsock->dev, "receive buffer outside memory");
        return false;
    }
    virtio_dev_push(&vsock->dev, RX_QUEUE, chain->head, len);
    return true;
}

static bool send_resets(struct virtio_vsock *vsock)
{
    struct virtq_chain chain;

    while (vsock->reset_count > 0) {
        const struct vsock_reset *reset = &vsock->resets[vsock->reset_count - 1];

        if (!pop_rx(vsock, &chain)) {
            return false;
        }
        fill_header(vsock, reset->host_port, reset->guest_port, VSOCK_OP_RST, 0, 0);
        if (!push_rx(vsock, &chain, VSOCK_HEADER_BYTES)) {
            return false;
        }
        vsock->reset_count--;
    }
    return true;
}

static void fill_conn_header(struct vsock_conn *conn, enum vsock_op op, uint32_t flags,
                             uint32_t len)
{
    struct virtio_vsock *vsock = conn->vsock;

    fill_header(vsock, conn->host_port, conn->guest_port, op, flags, len);
    store_le32(vsock->packet + HEADER_FWD_CNT, conn->fwd_cnt);
    conn->told_fwd_cnt = conn->fwd_cnt;
}

/* What each bit of due sends, in the order in which they must go. */
static const struct {
    unsigned due;
    enum vsock_op op;
} due_ops[] = {
    {VSOCK_DUE_REQUEST, VSOCK_OP_REQUEST},
    {VSOCK_DUE_RESPONSE, VSOCK_OP_RESPONSE},
    {VSOCK_DUE_CREDIT, VSOCK_OP_CREDIT_UPDATE},
    {VSOCK_DUE_SHUTDOWN, VSOCK_OP_SHUTDOWN},
    {VSOCK_DUE_RST, VSOCK_OP_RST},
};

/* False when the guest has no room or broke the device. */
static bool send_due(struct vsock_conn *conn)
{
    struct virtio_vsock *vsock = conn->vsock;
    struct virtq_chain chain;

    for (unsigned i = 0; i < ARRAY_LEN(due_ops) && conn->state != VSOCK_FREE; i++) {
        if ((conn->due & due_ops[i].due) == 0) {
            continue;
        }
        /* While draining, the guest does not know of the connection any more. */
        if (conn->state != VSOCK_DRAINING) {
            if (!pop_rx(vsock, &chain)) {
                return false;
            }
            fill_conn_header(conn, due_ops[i].op,
                             due_ops[i].op == VSOCK_OP_SHUTDOWN ? VSOCK_SHUTDOWN_SEND : 0, 0);
            if (!push_rx(vsock, &chain, VSOCK_HEADER_BYTES)) {
                return false;
            }
        }
        conn->due &= ~due_ops[i].due;
        if (due_ops[i].due == VSOCK_DUE_RST) {
            vsock_host_close(conn);
        }
    }
    return true;
}

/* One packet of payload. *ret_sent: there was something to send. */
static bool send_data(struct vsock_conn *conn, bool *ret_sent)
{
    struct virtio_vsock *vsock = conn->vsock;
    struct virtq_chain chain;
    uint32_t credit = vsock_credit(conn);
    uint32_t len;

    *ret_sent = false;
    if (conn->state != VSOCK_OPEN || !conn->can_read || conn->guest_closed || credit == 0) {
        return true;
    }
    if (!pop_rx(vsock, &chain)) {
        return false;
    }
    len = chain.in_bytes - VSOCK_HEADER_BYTES;
    len = len < credit ? len : credit;
    len = len < VSOCK_BUFFER_BYTES ? len : VSOCK_BUFFER_BYTES;
    len = len == 0 ? 0 : vsock_host_read(conn, vsock->packet + VSOCK_HEADER_BYTES, len);
    if (len == 0) {
        virtqueue_unpop(&vsock->dev.queues[RX_QUEUE].vq, 1);
        return true;
    }
    fill_conn_header(conn, VSOCK_OP_RW, 0, len);
    conn->sent += len;
    *ret_sent = true;
    return push_rx(vsock, &chain, VSOCK_HEADER_BYTES + len);
}

/* Control packets of all, then payload in turns. */
static bool send_all(struct virtio_vsock *vsock)
{
    bool is_active = true;

    if (!send_resets(vsock)) {
        return false;
    }
    for (unsigned budget = PUMP_BUDGET; is_active && budget > 0;) {
        is_active = false;
        for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
            struct vsock_conn *conn = &vsock->conns[(vsock->next_turn + i) % VSOCK_MAX_CONNS];
            bool sent = false;

            if (conn->state == VSOCK_FREE) {
                continue;
            }
            /* Once more after the data: its end may have been found. */
            if (!send_due(conn) || !send_data(conn, &sent) || !send_due(conn)) {
                return false;
            }
            is_active |= sent;
            budget -= sent && budget > 0;
        }
        vsock->next_turn = (vsock->next_turn + 1) % VSOCK_MAX_CONNS;
    }
    if (is_active) {
        io_eventfd_signal(vsock->dev.queues[RX_QUEUE].fd); /* others first, then on */
    }
    return true;
}

void vsock_pump(struct virtio_vsock *vsock)
{
    struct virtio_dev *dev = &vsock->dev;

    if (virtio_dev_is_live(dev) && dev->queues[RX_QUEUE].vq.running && !vsock->no_room) {
        (void)send_all(vsock); /* what has no room is sent when the guest gives some */
        virtio_dev_publish(dev, RX_QUEUE);
    }
    for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
        if (vsock->conns[i].state != VSOCK_FREE) {
            vsock_host_watch(&vsock->conns[i]);
        }
    }
}

static void owe_reset(struct virtio_vsock *vsock, const struct packet *packet)
{
    if (packet->op != VSOCK_OP_RST && vsock->reset_count < VSOCK_MAX_RESETS) {
        vsock->resets[vsock->reset_count++] =
            (struct vsock_reset){.host_port = packet->host_port, .guest_port = packet->guest_port};
    }
}

static void take_request(struct virtio_vsock *vsock, const struct packet *packet)
{
    struct vsock_conn *conn = vsock_host_connect(vsock, packet->host_port, packet->guest_port);

    if (!conn) {
        owe_reset(vsock, packet);
        return;
    }
    conn->guest_buf_alloc = packet->buf_alloc;
    conn->guest_fwd_cnt = packet->fwd_cnt;
    conn->due = VSOCK_DUE_RESPONSE;
}

static void take_shutdown(struct vsock_conn *conn, uint32_t flags)
{
    conn->guest_closed |= (flags & VSOCK_SHUTDOWN_RCV) != 0;
    conn->guest_ended |= (flags & VSOCK_SHUTDOWN_SEND) != 0;
    if (conn->guest_ended) {
        if (conn->host_ended) {
            conn->guest_closed = true; /* neither side has anything to say */
        }
        vsock_host_finish(conn);
    }
}

static void take_reset(struct vsock_conn *conn)
{
    conn->state = VSOCK_DRAINING;
    conn->due = 0;
    vsock_host_finish(conn);
}

static void take_for_conn(struct vsock_conn *conn, const struct packet *packet)
{
    conn->guest_buf_alloc = packet->buf_alloc;
    conn->guest_fwd_cnt = packet->fwd_cnt;
    switch (packet->op) {
    case VSOCK_OP_RESPONSE:
        if (conn->state == VSOCK_REQUESTED) {
            vsock_host_accepted(conn);
        } else {
            conn->due = VSOCK_DUE_RST;
        }
        break;
    case VSOCK_OP_RW:
        if (conn->state != VSOCK_OPEN || conn->guest_ended ||
            !vsock_host_write(conn, packet->data, packet->len)) {
            conn->due = VSOCK_DUE_RST;
        } else if (conn->fwd_cnt - conn->told_fwd_cnt >= VSOCK_BUFFER_BYTES / 4) {
            conn->due |= VSOCK_DUE_CREDIT;
        }
        break;
    case VSOCK_OP_CREDIT_UPDATE:
        break;
    case VSOCK_OP_CREDIT_REQUEST:
        conn->due |= VSOCK_DUE_CREDIT;
        break;
    case VSOCK_OP_SHUTDOWN:
        take_shutdown(conn, packet->flags);
        break;
    case VSOCK_OP_RST:
        take_reset(conn);
        break;
    default: /* a request for a pair of ports in use, or nonsense */
        conn->due = VSOCK_DUE_RST;
        break;
    }
}

static void take_packet(struct virtio_vsock *vsock, const struct packet *packet)
{
    struct vsock_conn *conn = find_conn(vsock, packet->host_port, packet->guest_port);

    if (conn) {
        take_for_conn(conn, packet);
    } else if (packet->op == VSOCK_OP_REQUEST) {
        take_request(vsock, packet);
    } else {
        owe_reset(vsock, packet);
    }
}

/* False when the device is broken. */
static bool take_chain(struct virtio_vsock *vsock, const struct virtq_chain *chain)
{
    uint8_t *raw = vsock->packet;
    struct packet packet;

    if (virtq_chain_read(vsock->dev.gmem, chain, 0, raw, VSOCK_HEADER_BYTES) != 0) {
        virtio_dev_break(&vsock->dev, "packet shorter than a header");
        return false;
    }
    packet = (struct packet){
        .guest_port = load_le32(raw + HEADER_SRC_PORT),
        .host_port = load_le32(raw + HEADER_DST_PORT),
        .len = load_le32(raw + HEADER_LEN),
        .op = load_le16(raw + HEADER_OP),
        .flags = load_le32(raw + HEADER_FLAGS),
        .buf_alloc = load_le32(raw + HEADER_BUF_ALLOC),
        .fwd_cnt = load_le32(raw + HEADER_FWD_CNT),
        .data = raw + VSOCK_HEADER_BYTES,
    };
    if (load_le64(raw + HEADER_SRC_CID) != vsock->guest_cid ||
        load_le64(raw + HEADER_DST_CID) != VSOCK_CID_HOST) {
        log_guest("virtio-vsock: packet from or to a foreign address, dropping it");
        return true;
    }
    if (load_le16(raw + HEADER_TYPE) != VSOCK_TYPE_STREAM) {
        owe_reset(vsock, &packet);
        return true;
    }
    if (packet.op != VSOCK_OP_RW) {
        packet.len = 0;
    }
    if (packet.len > VSOCK_BUFFER_BYTES ||
        virtq_chain_read(vsock->dev.gmem, chain, VSOCK_HEADER_BYTES, raw + VSOCK_HEADER_BYTES,
                         packet.len) != 0) {
        virtio_dev_break(&vsock->dev, "packet longer than its buffer or than our credit");
        return false;
    }
    take_packet(vsock, &packet);
    return true;
}

static void purge(struct virtio_vsock *vsock)
{
    if (!vsock->must_purge) {
        return;
    }
    vsock->must_purge = false;
    for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
        if (vsock->conns[i].state != VSOCK_FREE) {
            vsock_host_close(&vsock->conns[i]);
        }
    }
}

static enum virtio_progress process_tx(struct virtio_vsock *vsock)
{
    struct virtio_dev *dev = &vsock->dev;
    enum virtio_progress progress = VIRTIO_AGAIN;
    struct virtq_chain chain = {.segs = vsock->segs, .max = VSOCK_CHAIN_MAX};

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        uint16_t head;

        /* Answers wait for room in the guest; so does what would make more of them. */
        if (vsock->reset_count == VSOCK_MAX_RESETS && vsock->no_room) {
            progress = VIRTIO_QUIET;
            break;
        }
        if (!virtio_dev_pop(dev, TX_QUEUE, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        head = chain.head;
        if (!take_chain(vsock, &chain)) {
            break;
        }
        virtio_dev_push(dev, TX_QUEUE, head, 0);
    }
    virtio_dev_publish(dev, TX_QUEUE);
    vsock_pump(vsock);
    return progress;
}

static enum virtio_progress vsock_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_vsock *vsock = to_vsock(dev);

    purge(vsock);
    if (index == TX_QUEUE) {
        return process_tx(vsock);
    }
    if (index == RX_QUEUE) {
        bool tx_waits = vsock->reset_count == VSOCK_MAX_RESETS;

        vsock->no_room = false;
        vsock_pump(vsock);
        if (tx_waits) {
            io_eventfd_signal(dev->queues[TX_QUEUE].fd);
        }
    }
    return VIRTIO_QUIET; /* event buffers stay with us: there is nothing to tell */
}

/* Also called when the device is not live, which is when a reset has to be finished here. */
static void vsock_after_process(struct virtio_dev *dev, unsigned index)
{
    (void)index; /* whichever */
    virtio_dev_lock(dev);
    purge(to_vsock(dev));
    virtio_dev_unlock(dev);
}

static void vsock_reset(struct virtio_dev *dev)
{
    struct virtio_vsock *vsock = to_vsock(dev);

    vsock->reset_count = 0;
    vsock->no_room = false;
    vsock->must_purge = true; /* handlers can be removed on the loop's thread only */
    io_eventfd_signal(dev->queues[RX_QUEUE].fd);
}

static void vsock_destroy(struct virtio_dev *dev)
{
    struct virtio_vsock *vsock = to_vsock(dev);

    vsock_host_done(vsock);
    virtio_dev_done(dev);
    free(vsock);
}

static const struct virtio_dev_ops vsock_ops = {
    .name = "virtio-vsock",
    .type = VIRTIO_TYPE_VSOCK,
    .class_code = 0x02,
    .subclass = 0x80,
    .process = vsock_process,
    .after_process = vsock_after_process,
    .reset = vsock_reset,
    .destroy = vsock_destroy,
};

int virtio_vsock_create(const struct virtio_env *env, uint32_t guest_cid, const char *path,
                        struct err *err, struct virtio_dev **ret_dev)
{
    struct virtio_vsock *vsock;
    const struct virtio_dev_config config = {
        .ops = &vsock_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = env->loop,
        .config_len = CONFIG_LEN,
        .queue_count = QUEUE_COUNT,
        .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE},
    };
    int r;

    if (guest_cid < CID_MIN || guest_cid > CID_MAX) {
        return err_set(err, -EINVAL, "vsock address %u is not between %u and %u", guest_cid,
                       CID_MIN, CID_MAX);
    }
    vsock = calloc(1, sizeof(*vsock));
    if (!vsock) {
        return err_set(err, -ENOMEM, "no memory for the socket device");
    }
    vsock->guest_cid = guest_cid;
    r = virtio_dev_init(&vsock->dev, &config);
    if (r < 0) {
        free(vsock);
        return err_set_errno(err, r, "cannot create the socket device");
    }
    store_le64(vsock->dev.config + CONFIG_CID, guest_cid);
    r = vsock_host_listen(vsock, path, err);
    if (r < 0) {
        vsock_destroy(&vsock->dev);
        return r;
    }
    *ret_dev = &vsock->dev;
    return 0;
}
