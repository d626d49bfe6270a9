#include "netdev/netdev.h"

#include "base/log.h"
#include "base/loop.h"
#include "base/thread.h"
#include "base/wire.h"
#include "netdev/netdev_int.h"

#include <assert.h>
#include <errno.h>
#include <semaphore.h>
#include <string.h>

#define ETHERNET_HEADER_BYTES 14u
/* What may wait for the card; more is dropped, as by a switch. */
#define QUEUE_MAX_BYTES (2u << 20)

struct queued_frame {
    struct queued_frame *next;
    size_t len;
    uint8_t data[];
};

static void count(_Atomic uint64_t *counter, uint64_t add)
{
    atomic_fetch_add_explicit(counter, add, memory_order_relaxed);
}

int netdev_init(struct netdev *netdev, const struct netdev_ops *ops, unsigned caps, uint16_t mtu)
{
    netdev->ops = ops;
    netdev->caps = caps;
    netdev->mtu = mtu;
    netdev->queue_end = &netdev->queue;
    return loop_create(&netdev->loop);
}

static struct queued_frame *queue_take(struct netdev *netdev)
{
    struct queued_frame *frame = netdev->queue;

    if (frame) {
        netdev->queue = frame->next;
        netdev->queue_bytes -= frame->len;
        if (!netdev->queue) {
            netdev->queue_end = &netdev->queue;
        }
    }
    return frame;
}

void netdev_done(struct netdev *netdev)
{
    struct queued_frame *frame;

    while ((frame = queue_take(netdev)) != NULL) {
        free(frame);
    }
    loop_destroy(netdev->loop);
}

void netdev_destroy(struct netdev *netdev)
{
    if (netdev) {
        assert(!netdev->has_thread);
        netdev->ops->destroy(netdev);
    }
}

static void *loop_main(void *opaque)
{
    struct netdev *netdev = opaque;
    int r = loop_run(netdev->loop);

    if (r < 0) {
        log_error("the network thread ends: %s", strerror(-r));
    }
    return NULL;
}

int netdev_start(struct netdev *netdev, struct err *err)
{
    int r = thread_start(&netdev->thread, "io/net", loop_main, netdev);

    if (r < 0) {
        return err_set_errno(err, r, "cannot start the network thread");
    }
    netdev->has_thread = true;
    return 0;
}

void netdev_stop(struct netdev *netdev)
{
    if (netdev->has_thread) {
        loop_stop(netdev->loop);
        (void)pthread_join(netdev->thread, NULL); /* the thread is ours and joinable */
        netdev->has_thread = false;
    }
}

struct loop *netdev_loop(struct netdev *netdev)
{
    return netdev->loop;
}

unsigned netdev_caps(const struct netdev *netdev)
{
    return netdev->caps;
}

uint16_t netdev_mtu(const struct netdev *netdev)
{
    return netdev->mtu;
}

uint16_t netdev_forward_port(struct netdev *netdev, unsigned index)
{
    return netdev->ops->forward_port ? netdev->ops->forward_port(netdev, index) : 0;
}

void netdev_set_card(struct netdev *netdev, const struct netdev_card_ops *ops, void *opaque)
{
    netdev->card = ops;
    netdev->card_opaque = opaque;
}

/* The Internet checksum's sum over bytes (RFC 1071), in network byte order, folded to 16 bits. */
static uint16_t checksum(const uint8_t *data, size_t len)
{
    uint64_t sum = 0;
    uint64_t word;
    uint8_t tail[8] = {0};

    while (len >= sizeof(word)) {
        memcpy(&word, data, sizeof(word));
        sum += word;
        sum += sum < word; /* end-around carry */
        data += sizeof(word);
        len -= sizeof(word);
    }
    memcpy(tail, data, len);
    memcpy(&word, tail, sizeof(word));
    sum += word;
    sum += sum < word;
    sum = (sum & UINT32_MAX) + (sum >> 32);
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static bool complete_checksum(uint8_t *frame, size_t len, const struct netdev_csum *csum)
{
    uint16_t sum;

    if (csum->start > len || (size_t)csum->offset + 2 > len - csum->start) {
        return false;
    }
    sum = (uint16_t)~checksum(frame + csum->start, len - csum->start);
    memcpy(frame + csum->start + csum->offset, &sum, sizeof(sum));
    return true;
}

/* ---- limits ---- */

static void on_tx_time(void *opaque)
{
    struct netdev *netdev = opaque;

    if (netdev->card != NULL && netdev->card->send_ready != NULL) {
        netdev->card->send_ready(netdev->card_opaque);
    }
}

static void on_rx_time(void *opaque)
{
    netdev_receive_ready(opaque);
}

/* The netdev's thread, or before it starts. What waits is looked at by the new limits. */
static int take_limits(struct netdev *netdev, const struct limit_config *limits)
{
    uint64_t now_ns = clock_monotonic_ns();
    int r = 0;

    if (netdev->tx_timer == NULL) {
        r = loop_add_timer(netdev->loop, on_tx_time, netdev, &netdev->tx_timer);
    }
    if (r == 0 && netdev->rx_timer == NULL) {
        r = loop_add_timer(netdev->loop, on_rx_time, netdev, &netdev->rx_timer);
    }
    r = r < 0 ? r : limit_set(&netdev->tx_limit, limits, now_ns);
    r = r < 0 ? r : limit_set(&netdev->rx_limit, limits, now_ns);
    if (r == 0) {
        loop_arm_timer(netdev->tx_timer, now_ns);
        loop_arm_timer(netdev->rx_timer, now_ns);
    }
    return r;
}

struct forwards_call {
    struct netdev *netdev;
    const struct netdev_forward *forwards;
    unsigned count;
    struct err *err;
    int result;
    sem_t done;
};

static void take_forwards(void *opaque)
{
    struct forwards_call *call = opaque;

    call->result =
        call->netdev->ops->set_forwards(call->netdev, call->forwards, call->count, call->err);
    (void)sem_post(&call->done); /* cannot fail: its count is 0 */
}

int netdev_set_forwards(struct netdev *netdev, const struct netdev_forward *forwards,
                        unsigned count, struct err *err)
{
    struct forwards_call call = {
        .netdev = netdev, .forwards = forwards, .count = count, .err = err};
    int r;

    if (netdev->ops->set_forwards == NULL) {
        return err_set(err, -EOPNOTSUPP, "this network forwards no ports");
    }
    if (!netdev->has_thread) {
        return netdev->ops->set_forwards(netdev, forwards, count, err);
    }
    if (sem_init(&call.done, 0, 0) != 0) {
        return err_set_errno(err, -errno, "the network cannot be asked");
    }
    r = loop_defer(netdev->loop, take_forwards, &call);
    if (r == 0) {
        while (sem_wait(&call.done) != 0) {
        }
        r = call.result;
    } else {
        (void)err_set_errno(err, r, "the network cannot be asked");
    }
    (void)sem_destroy(&call.done);
    return r;
}

struct limits_call {
    struct netdev *netdev;
    struct limit_config limits;
};

static void take_limits_later(void *opaque)
{
    struct limits_call *call = opaque;

    if (take_limits(call->netdev, &call->limits) < 0) {
        log_error("no memory for limits of the network");
    }
    free(call);
}

int netdev_set_limits(struct netdev *netdev, const struct limit_config *limits)
{
    struct limits_call *call;
    struct limit checked;
    int r = limit_set(&checked, limits, 0);

    if (r < 0 || !netdev->has_thread) {
        return r < 0 ? r : take_limits(netdev, limits);
    }
    call = malloc(sizeof(*call));
    if (call == NULL) {
        return -ENOMEM;
    }
    *call = (struct limits_call){.netdev = netdev, .limits = *limits};
    r = loop_defer(netdev->loop, take_limits_later, call);
    if (r < 0) {
        free(call);
    }
    return r;
}

/* Whether a limit lets frames through now; if not, the timer tells when. */
static bool is_open(struct limit *limit, struct loop_timer *timer, _Atomic uint64_t *throttled)
{
    uint64_t when = limit_is_set(limit) ? limit_when(limit, clock_monotonic_ns()) : 0;

    if (when != 0) {
        loop_arm_timer(timer, when);
        count(throttled, 1);
    }
    return when == 0;
}

bool netdev_may_send(struct netdev *netdev)
{
    return is_open(&netdev->tx_limit, netdev->tx_timer, &netdev->tx_throttled);
}

/* A frame that passes; it may leave the bucket in debt. */
static void charge(struct limit *limit, size_t len)
{
    if (limit_is_set(limit)) {
        limit_charge(limit, len, clock_monotonic_ns());
    }
}

/* ---- frames ---- */

void netdev_send(struct netdev *netdev, void *frame, size_t len, const struct netdev_csum *csum)
{
    if (len < ETHERNET_HEADER_BYTES || len > NETDEV_MAX_FRAME_BYTES ||
        (csum->is_needed && !complete_checksum(frame, len, csum))) {
        count(&netdev->tx_dropped, 1);
        return;
    }
    netdev_note_sent(netdev, frame, len); /* the answer may come from within send() */
    charge(&netdev->tx_limit, len);
    if (!netdev->ops->send(netdev, frame, len)) {
        count(&netdev->tx_dropped, 1);
        return;
    }
    count(&netdev->tx_frames, 1);
    count(&netdev->tx_bytes, len);
}

void netdev_send_done(struct netdev *netdev)
{
    netdev->ops->send_done(netdev);
}

bool netdev_is_waiting(const struct netdev *netdev)
{
    return netdev->queue != NULL;
}

static bool give(struct netdev *netdev, const void *frame, size_t len)
{
    if (!is_open(&netdev->rx_limit, netdev->rx_timer, &netdev->rx_throttled) ||
        !netdev->card->receive(netdev->card_opaque, frame, len)) {
        return false;
    }
    charge(&netdev->rx_limit, len);
    count(&netdev->rx_frames, 1);
    count(&netdev->rx_bytes, len);
    return true;
}

void netdev_deliver(struct netdev *netdev, const void *frame, size_t len)
{
    struct queued_frame *queued;

    netdev_note_delivered(netdev, frame, len);
    if (!netdev->card || len > NETDEV_MAX_FRAME_BYTES) {
        count(&netdev->rx_dropped, 1);
        return;
    }
    if (!netdev->queue && give(netdev, frame, len)) {
        return;
    }
    queued = netdev->queue_bytes + len <= QUEUE_MAX_BYTES ? malloc(sizeof(*queued) + len) : NULL;
    if (!queued) {
        count(&netdev->rx_dropped, 1);
        return;
    }
    queued->next = NULL;
    queued->len = len;
    memcpy(queued->data, frame, len);
    *netdev->queue_end = queued;
    netdev->queue_end = &queued->next;
    netdev->queue_bytes += len;
}

void netdev_deliver_done(struct netdev *netdev)
{
    if (netdev->card && netdev->card->batch_done) {
        netdev->card->batch_done(netdev->card_opaque);
    }
}

void netdev_receive_ready(struct netdev *netdev)
{
    bool was_waiting = netdev->queue != NULL;

    while (netdev->queue && netdev->card && give(netdev, netdev->queue->data, netdev->queue->len)) {
        free(queue_take(netdev));
    }
    if (was_waiting) {
        netdev_deliver_done(netdev);
        if (!netdev->queue) {
            netdev->ops->resume(netdev);
        }
    }
}

void netdev_stats(struct netdev *netdev, struct netdev_stats *ret_stats)
{
    *ret_stats = (struct netdev_stats){
        .tx_frames = atomic_load_explicit(&netdev->tx_frames, memory_order_relaxed),
        .tx_bytes = atomic_load_explicit(&netdev->tx_bytes, memory_order_relaxed),
        .rx_frames = atomic_load_explicit(&netdev->rx_frames, memory_order_relaxed),
        .rx_bytes = atomic_load_explicit(&netdev->rx_bytes, memory_order_relaxed),
        .tx_dropped = atomic_load_explicit(&netdev->tx_dropped, memory_order_relaxed),
        .rx_dropped = atomic_load_explicit(&netdev->rx_dropped, memory_order_relaxed),
        .tx_throttled = atomic_load_explicit(&netdev->tx_throttled, memory_order_relaxed),
        .rx_throttled = atomic_load_explicit(&netdev->rx_throttled, memory_order_relaxed),
    };
}
