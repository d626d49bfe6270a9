/*
 * Between the netdev core and its back ends. All on the netdev's thread.
 */
#ifndef CORBEL_NETDEV_NETDEV_INT_H
#define CORBEL_NETDEV_NETDEV_INT_H

#include "netdev/netdev.h"

#include <pthread.h>
#include <stdatomic.h>

struct queued_frame;

struct netdev_ops {
    /* A valid frame from the card, its checksum complete; false when it is dropped. */
    bool (*send)(struct netdev *netdev, const void *frame, size_t len);
    void (*send_done)(struct netdev *netdev);
    /* The card takes frames again: nothing waits any more. */
    void (*resume)(struct netdev *netdev);
    uint16_t (*forward_port)(struct netdev *netdev, unsigned index); /* optional */
    int (*set_forwards)(struct netdev *netdev, const struct netdev_forward *forwards,
                        unsigned count, struct err *err); /* optional, with forward_port */
    void (*destroy)(struct netdev *netdev);
};

struct netdev {
    const struct netdev_ops *ops;
    struct loop *loop;
    pthread_t thread;
    bool has_thread;
    unsigned caps;
    uint16_t mtu;
    const struct netdev_card_ops *card;
    void *card_opaque;
    void (*address_fn)(void *opaque); /* NULL: nobody wants to know */
    void *address_opaque;
    /* Frames that the card had no room for, oldest first. */
    struct queued_frame *queue;
    struct queued_frame **queue_end;
    size_t queue_bytes;
    struct limit tx_limit, rx_limit;
    struct loop_timer *tx_timer, *rx_timer; /* when frames may go on; NULL without limits so far */
    /* Written by the netdev's thread, read by any. */
    uint32_t dhcp_xid;        /* of the guest's request that was not answered yet; 0: none */
    uint64_t others_since_ns; /* other addresses than the last were said from then on; 0: none */
    _Atomic uint32_t guest_address;
    _Atomic uint64_t tx_frames, tx_bytes, rx_frames, rx_bytes, tx_dropped, rx_dropped, tx_throttled,
        rx_throttled;
};

int netdev_init(struct netdev *netdev, const struct netdev_ops *ops, unsigned caps, uint16_t mtu)
    MUST_CHECK;
void netdev_done(struct netdev *netdev);

/* address.c: frames that the guest sent and is to get, to learn its address from. */
void netdev_note_sent(struct netdev *netdev, const uint8_t *frame, size_t len);
void netdev_note_delivered(struct netdev *netdev, const uint8_t *frame, size_t len);
/* The guest said by ARP that it has the address. */
void netdev_note_address(struct netdev *netdev, uint32_t address, uint64_t now_ns);

/* Gives a frame to the card; it is copied where it has to wait, dropped where too much waits. */
void netdev_deliver(struct netdev *netdev, const void *frame, size_t len);
/* Frames wait: a back end should not read more. */
bool netdev_is_waiting(const struct netdev *netdev);
/* Ends a batch of netdev_deliver(). */
void netdev_deliver_done(struct netdev *netdev);

#endif
