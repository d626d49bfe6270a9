/*
 * A guest's side of a network card in a test: frames of its own making, to the
 * user-mode network and through it to sockets of this process, or to a wire.
 */
#ifndef CORBEL_TESTS_NET_DRIVER_H
#define CORBEL_TESTS_NET_DRIVER_H

#include "netdev/netdev.h"
#include "test.h"
#include "virtio_driver.h"

#include <netinet/in.h>

#define NET_SLOT 1
#define NET_RX 0
#define NET_TX 1
#define NET_RX_BUFFERS 128u
#define NET_RX_BUFFER_BYTES 2048u
#define NET_RX_FEW 40u /* one frame of the longest kind */
#define NET_RX_AREA TEST_DATA
#define NET_TX_AREA (TEST_DATA + 0x200000)
#define NET_HEADER 12u
#define NET_WIRE_MTU 1500u
#define NET_F_CSUM 1ull
#define NET_F_MRG (1ull << 15)

#define NET_GUEST_IP 0x0a00020fu
#define NET_HOST_IP 0x0a000202u
#define TCP_FIN 1u
#define TCP_SYN 2u
#define TCP_PSH 8u
#define TCP_ACK 16u

struct net_guest {
    struct test_machine machine;
    struct netdev *netdev;
    struct virtio_dev *dev;
    struct test_driver driver;
    uint8_t host_mac[6];
    uint64_t rx_at[256]; /* buffer address by head */
    uint8_t frame[80000];
    uint32_t frame_len;
    int wire; /* the other end of net_guest_create_on_wire() */
};

/* One end of a TCP connection, without retransmission: the other end is in this process. */
struct net_tcp {
    struct net_guest *f;
    uint16_t guest_port, host_port;
    uint32_t seq, ack;
    uint8_t flags; /* of the last segment received */
    const uint8_t *data;
    uint32_t len;
};

extern const uint8_t net_guest_mac[6];
extern const uint8_t net_mss_option[4]; /* how much fits our buffers */

/* A guest with a card, which it has yet to start; for setups and teardowns. */
int net_guest_create(void **state, bool is_isolated);
/* One whose card is on a wire, as on a tap: a socket that keeps frames apart. */
int net_guest_create_on_wire(void **state, bool is_guarded);
int net_guest_destroy(void **state);
void net_start(struct net_guest *f, uint64_t features, unsigned rx_buffers);

void net_post_rx(struct net_guest *f, uint64_t address);
/* The next frame into f->frame; its buffers are posted again. */
void net_receive(struct net_guest *f);
void net_send_with_header(struct net_guest *f, const uint8_t header[NET_HEADER],
                          const uint8_t *frame, uint32_t len);
void net_send_frame(struct net_guest *f, const uint8_t *frame, uint32_t len);

void net_send_arp(struct net_guest *f, uint32_t sender, const uint8_t mac[6]);
void net_send_arp_request(struct net_guest *f);
void net_learn_host(struct net_guest *f);
void net_send_dhcp(struct net_guest *f, uint8_t type);
void net_assert_dhcp_works(struct net_guest *f);
/* An echo request to the host, whose answer is as long. */
void net_send_echo_request(struct net_guest *f, uint8_t *frame, uint16_t payload);

/* Sends a segment; the checksum is left to the card where that was negotiated. A SYN's data are
 * its options. */
void net_tcp_send(struct net_tcp *tcp, uint8_t flags, const void *data, uint16_t len);
/* The next segment for this connection, in order. */
void net_tcp_receive(struct net_tcp *tcp);
int net_listen_on_loopback(uint16_t *ret_port);

#endif
