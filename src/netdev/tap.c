/*
 * The card on a wire of the host's: a descriptor that takes and gives one frame
 * at a time, as a tap's.
 *
 * While the card has no room nothing is read, and the host's queue drops what
 * it cannot keep, as a switch does.
 */
#include "base/log.h"
#include "base/loop.h"
#include "base/wire.h"
#include "netdev/netdev_int.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#define READ_BATCH 64
#define ETHERTYPE 12u
#define HEADER_BYTES 14u
#define TAG_BYTES 4u
#define GROUP_BIT 0x01u

struct tap_net {
    struct netdev netdev;
    int fd; /* -1 when the tap has gone */
    struct loop_fd *handler;
    bool is_guarded;
    uint8_t mac[6];
    size_t max_bytes; /* of a frame to the wire */
    uint8_t frame[NETDEV_MAX_FRAME_BYTES];
};

static struct tap_net *to_tap(struct netdev *netdev)
{
    return container_of(netdev, struct tap_net, netdev);
}

/* IEEE 802.1Q: which virtual network a frame belongs to is not the guest's to say. */
static bool is_tagged(const uint8_t *frame)
{
    uint16_t type = load_be16(frame + ETHERTYPE);

    return type == 0x8100 || type == 0x88a8 || type == 0x9100;
}

/* IEEE 802.1D: 01:80:c2:00:00:00 to :0f, what bridges say to each other. */
static bool is_for_bridges(const uint8_t *frame)
{
    static const uint8_t first[] = {0x01, 0x80, 0xc2, 0x00, 0x00};

    return memcmp(frame, first, sizeof(first)) == 0 && frame[5] < 0x10;
}

static bool may_leave(const struct tap_net *tap, const uint8_t *frame)
{
    return !tap->is_guarded || (memcmp(frame + 6, tap->mac, sizeof(tap->mac)) == 0 &&
                                !is_tagged(frame) && !is_for_bridges(frame));
}

/* A bridge floods what it does not know yet, others' frames too. */
static bool may_enter(const struct tap_net *tap, const uint8_t *frame, size_t len)
{
    return len >= HEADER_BYTES &&
           (!tap->is_guarded ||
            (((frame[0] & GROUP_BIT) != 0 || memcmp(frame, tap->mac, sizeof(tap->mac)) == 0) &&
             !is_tagged(frame) && !is_for_bridges(frame)));
}

/* Whoever made the tap has removed it: a cable that was pulled out. */
static void lose(struct tap_net *tap, const char *why)
{
    log_warn("the network card's tap has gone (%s), ignoring; no more frames pass", why);
    loop_remove_fd(tap->handler);
    tap->handler = NULL;
    (void)close(steal_fd(&tap->fd)); /* nothing to lose */
}

static void pause_reading(struct tap_net *tap)
{
    if (loop_set_events(tap->handler, 0) != 0) {
        log_error("the network card's tap cannot be paused");
    }
}

/* How many frames were read; negative when the tap has gone. */
static int read_frames(struct tap_net *tap)
{
    int count = 0;

    while (count < READ_BATCH && !netdev_is_waiting(&tap->netdev)) {
        ssize_t n = read(tap->fd, tap->frame, sizeof(tap->frame));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EAGAIN ? count : -errno;
        }
        count++;
        if (may_enter(tap, tap->frame, (size_t)n)) {
            netdev_deliver(&tap->netdev, tap->frame, (size_t)n);
        }
    }
    return count;
}

static void on_frames(void *opaque, uint32_t events)
{
    struct tap_net *tap = opaque;
    int count = (events & EPOLLIN) != 0 ? read_frames(tap) : 0;

    if (count != 0) {
        netdev_deliver_done(&tap->netdev);
    }
    if (count < 0 || (events & (EPOLLERR | EPOLLHUP)) != 0) {
        lose(tap, count < 0 ? strerror(-count) : "it was removed");
    } else if (netdev_is_waiting(&tap->netdev)) {
        pause_reading(tap); /* until the card has room */
    }
}

static bool tap_send(struct netdev *netdev, const void *frame, size_t len)
{
    struct tap_net *tap = to_tap(netdev);
    ssize_t n;

    if (tap->fd < 0 || len > tap->max_bytes || !may_leave(tap, frame)) {
        return false;
    }
    do {
        n = write(tap->fd, frame, len);
    } while (n < 0 && errno == EINTR);
    return n >= 0; /* a wire that is down or full loses frames */
}

static void tap_send_done(struct netdev *netdev)
{
    (void)netdev; /* each frame has gone by itself */
}

static void tap_resume(struct netdev *netdev)
{
    struct tap_net *tap = to_tap(netdev);

    if (tap->handler != NULL && loop_set_events(tap->handler, EPOLLIN) != 0) {
        log_error("the network card's tap cannot be resumed");
    }
}

static void tap_destroy(struct netdev *netdev)
{
    struct tap_net *tap = to_tap(netdev);

    loop_remove_fd(tap->handler);
    if (tap->fd >= 0) {
        (void)close(tap->fd); /* nothing to lose */
    }
    netdev_done(netdev);
    free(tap);
}

static const struct netdev_ops tap_ops = {
    .send = tap_send,
    .send_done = tap_send_done,
    .resume = tap_resume,
    .destroy = tap_destroy,
};

int netdev_tap_create(const struct netdev_tap_config *config, struct err *err,
                      struct netdev **ret_netdev)
{
    struct tap_net *tap = calloc(1, sizeof(*tap));
    int r;

    if (!tap) {
        return err_set(err, -ENOMEM, "no memory for the network");
    }
    tap->fd = -1;
    tap->is_guarded = config->is_guarded;
    memcpy(tap->mac, config->mac, sizeof(tap->mac));
    tap->max_bytes = (size_t)config->mtu + HEADER_BYTES + TAG_BYTES;
    r = netdev_init(&tap->netdev, &tap_ops, NETDEV_CAN_TX_CSUM, config->mtu);
    if (r < 0) {
        free(tap);
        return err_set_errno(err, r, "cannot make the network's event loop");
    }
    r = loop_add_fd(tap->netdev.loop, config->fd, EPOLLIN, on_frames, tap, &tap->handler);
    if (r < 0) {
        tap_destroy(&tap->netdev);
        return err_set_errno(err, r, "cannot watch the network's tap");
    }
    tap->fd = config->fd;
    *ret_netdev = &tap->netdev;
    return 0;
}
