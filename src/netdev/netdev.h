/*
 * The host's side of a network card: takes frames from it, gives frames to it.
 *
 * A struct netdev has an event loop and a thread ("io/net") of its own; the
 * card's queues share that loop, so a frame never changes threads. All
 * functions are for that thread unless they say otherwise (before
 * netdev_start() and after netdev_stop(): for the caller's).
 *
 * Frames are whole Ethernet frames without FCS.
 */
#ifndef CORBEL_NETDEV_NETDEV_H
#define CORBEL_NETDEV_NETDEV_H

#include "base/compiler.h"
#include "base/error.h"
#include "base/limit.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NETDEV_MAX_FRAME_BYTES 65550u /* 14 + 65535, rounded up */
#define NETDEV_MAX_FORWARDS 32

struct netdev;
struct loop;

/* What the network can carry beyond plain frames. */
#define NETDEV_CAN_TX_CSUM 0x1u /* the card may leave a checksum to it: struct netdev_csum */
#define NETDEV_RX_CSUM_OK 0x2u  /* checksums of frames it delivers need not be verified */

/* A checksum to be completed: the Internet checksum over [start, end of frame) goes to
 * start + offset, where the pseudo header's sum already stands. */
struct netdev_csum {
    bool is_needed;
    uint16_t start;
    uint16_t offset;
};

/*
 * The card's side. receive() returns false when the card has no room now; the
 * network then keeps the frame and stops reading until
 * netdev_receive_ready(). batch_done() follows a batch of receive() calls.
 * Above its limits a card does not send (netdev_may_send()), and receives
 * later.
 */
struct netdev_card_ops {
    bool (*receive)(void *opaque, const void *frame, size_t len);
    void (*batch_done)(void *opaque);
    void (*send_ready)(void *opaque); /* after netdev_may_send() said no: ask again */
};

struct netdev_stats {
    uint64_t tx_frames, tx_bytes;        /* from the card */
    uint64_t rx_frames, rx_bytes;        /* to the card */
    uint64_t tx_dropped;                 /* malformed, or the network is overloaded */
    uint64_t rx_dropped;                 /* no room for too long */
    uint64_t tx_throttled, rx_throttled; /* times that a limit made frames wait */
};

struct netdev_forward {
    uint32_t host_address; /* IPv4, host byte order */
    uint16_t host_port;    /* 0: any free one; netdev_forward_port() tells */
    uint16_t guest_port;
    bool is_udp;
};

struct netdev_user_config {
    unsigned forward_count;
    struct netdev_forward forwards[NETDEV_MAX_FORWARDS];
    bool deny_host_loopback; /* the guest cannot reach services on the host's 127.0.0.1 */
    bool is_isolated;        /* nothing leaves the network but answers to forwards */
};

/*
 * User-mode network by libslirp: 10.0.2.0/24 with the host at .2, DNS at .3,
 * DHCP from .15 on. Needs no privilege. -EADDRINUSE when a forward's port is
 * taken (err names it), -ENOMEM.
 */
int netdev_user_create(const struct netdev_user_config *config, struct err *err,
                       struct netdev **ret_netdev) MUST_CHECK;

struct netdev_tap_config {
    int fd; /* non-blocking; a read and a write is one frame. The netdev's after success */
    uint16_t mtu;
    /* The card has this address and sends as nobody else: other frames, those of virtual networks
     * and those of bridges to each other are dropped, and it gets none that is for others. */
    bool is_guarded;
    uint8_t mac[6];
};

/* A wire of the host's behind a descriptor, such as a tap's (hostnet/hostnet.h). -ENOMEM. */
int netdev_tap_create(const struct netdev_tap_config *config, struct err *err,
                      struct netdev **ret_netdev) MUST_CHECK;

void netdev_destroy(struct netdev *netdev); /* stopped; accepts NULL */

int netdev_start(struct netdev *netdev, struct err *err) MUST_CHECK;
void netdev_stop(struct netdev *netdev); /* accepts one that was never started */

struct loop *netdev_loop(struct netdev *netdev);
unsigned netdev_caps(const struct netdev *netdev);
uint16_t netdev_mtu(const struct netdev *netdev);

/* The host port of forward index as it was opened, 0 when there is no such forward. The thread of
 * netdev_set_forwards(). */
uint16_t netdev_forward_port(struct netdev *netdev, unsigned index);

/*
 * Closes and opens forwards until they are these; those that are open already stay, also with the
 * free port that they took. Connections go on. After an error they are what they were, as far as the
 * host's ports allow. Any thread but the netdev's, one at a time; waits for it. -EADDRINUSE, -E2BIG,
 * -EOPNOTSUPP for a network without forwards.
 */
int netdev_set_forwards(struct netdev *netdev, const struct netdev_forward *forwards,
                        unsigned count, struct err *err) MUST_CHECK;

/*
 * The card's IPv4 address, host byte order: what the last answer to its DHCP requests gave, else the
 * first that its ARP packets said, until they have said only others for minutes; 0 until there is
 * one. The guest can say anything. Any thread.
 */
uint32_t netdev_guest_address(const struct netdev *netdev);
/* Calls fn on the netdev's thread when that has changed. Before netdev_start(). */
void netdev_watch_address(struct netdev *netdev, void (*fn)(void *opaque), void *opaque);

/* One card; NULL takes it away. */
void netdev_set_card(struct netdev *netdev, const struct netdev_card_ops *ops, void *opaque);

/*
 * From now on, for each direction by itself; all zero: no limits. Any thread.
 * -EINVAL for a rate out of bounds, -ENOMEM.
 */
int netdev_set_limits(struct netdev *netdev, const struct limit_config *limits) MUST_CHECK;

/* Whether its limits let the card send now. If not, send_ready() tells when. */
bool netdev_may_send(struct netdev *netdev);

/* Sends a frame of 14 ... NETDEV_MAX_FRAME_BYTES bytes; others are dropped and counted. The
 * frame may be changed (checksum). May call receive(). */
void netdev_send(struct netdev *netdev, void *frame, size_t len, const struct netdev_csum *csum);
/* Ends a batch of sends. */
void netdev_send_done(struct netdev *netdev);

/* The card has room again; delivers what waited. */
void netdev_receive_ready(struct netdev *netdev);

/* A copy; any thread. */
void netdev_stats(struct netdev *netdev, struct netdev_stats *ret_stats);

#endif
