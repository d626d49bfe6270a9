#include "net_driver.h"

#include "base/wire.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

const uint8_t net_guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

static uint32_t sum_words(const uint8_t *data, size_t len, uint32_t sum)
{
    for (size_t i = 0; i + 1 < len; i += 2) {
        sum += load_be16(data + i);
    }
    if (len & 1) {
        sum += (uint32_t)data[len - 1] << 8;
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static struct net_guest *create_on(struct netdev *netdev)
{
    struct net_guest *f = calloc(1, sizeof(*f));
    static const uint8_t no_mac[6];
    struct err err = {0};

    assert_non_null(f);
    test_machine_init(&f->machine);
    f->netdev = netdev;
    f->wire = -1;
    assert_int_equal(virtio_net_create(&f->machine.env, f->netdev, no_mac, &f->dev), 0);
    assert_int_equal(netdev_start(f->netdev, &err), 0);
    return f;
}

int net_guest_create(void **state, bool is_isolated)
{
    const struct netdev_user_config config = {
        .is_isolated = is_isolated,
        .forward_count = 2,
        .forwards = {{.host_address = 0x7f000001, .guest_port = 22},
                     {.host_address = 0x7f000001, .guest_port = 53, .is_udp = true}},
    };
    struct netdev *netdev;
    struct err err = {0};

    assert_int_equal(netdev_user_create(&config, &err, &netdev), 0);
    *state = create_on(netdev);
    return 0;
}

int net_guest_create_on_wire(void **state, bool is_guarded)
{
    struct netdev_tap_config config = {.mtu = NET_WIRE_MTU, .is_guarded = is_guarded};
    struct netdev *netdev;
    struct net_guest *f;
    struct err err = {0};
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends),
                     0);
    config.fd = ends[0];
    memcpy(config.mac, net_guest_mac, sizeof(config.mac));
    assert_int_equal(netdev_tap_create(&config, &err, &netdev), 0);
    f = create_on(netdev);
    f->wire = ends[1];
    *state = f;
    return 0;
}

int net_guest_destroy(void **state)
{
    struct net_guest *f = *state;

    netdev_stop(f->netdev);
    virtio_dev_destroy(f->dev);
    netdev_destroy(f->netdev);
    test_machine_done(&f->machine);
    if (f->wire >= 0) {
        (void)close(f->wire);
    }
    free(f);
    return 0;
}

void net_post_rx(struct net_guest *f, uint64_t address)
{
    const struct test_seg seg = {address, NET_RX_BUFFER_BYTES, true};
    uint16_t head = test_chain(&f->driver, NET_RX, &seg, 1);

    f->rx_at[head] = address;
    test_make_available(&f->driver, NET_RX, head);
    test_kick(&f->driver, NET_RX);
}

void net_start(struct net_guest *f, uint64_t features, unsigned rx_buffers)
{
    test_driver_start(&f->machine, NET_SLOT, features, &f->driver);
    for (unsigned i = 0; i < rx_buffers; i++) {
        net_post_rx(f, NET_RX_AREA + (uint64_t)i * NET_RX_BUFFER_BYTES);
    }
}

/* The next frame into f->frame; its buffers are posted again. */
void net_receive(struct net_guest *f)
{
    unsigned buffers = 1;

    f->frame_len = 0;
    for (unsigned i = 0; i < buffers; i++) {
        uint16_t head;
        uint32_t len = test_wait_used(&f->driver, NET_RX, &head);
        uint32_t skip = i == 0 ? NET_HEADER : 0;
        uint8_t raw[2];

        assert_in_range(len, i == 0 ? NET_HEADER : 1, NET_RX_BUFFER_BYTES);
        if (i == 0) {
            test_read(&f->machine, f->rx_at[head] + 10, raw, 2);
            buffers = load_le16(raw);
            assert_true(buffers >= 1);
        }
        assert_true(f->frame_len + len - skip <= sizeof(f->frame));
        test_read(&f->machine, f->rx_at[head] + skip, f->frame + f->frame_len, len - skip);
        f->frame_len += len - skip;
        net_post_rx(f, f->rx_at[head]);
    }
}

void net_send_with_header(struct net_guest *f, const uint8_t header[NET_HEADER],
                          const uint8_t *frame, uint32_t len)
{
    const struct test_seg segs[] = {{NET_TX_AREA, NET_HEADER, false},
                                    {NET_TX_AREA + 0x100, len, false}};

    test_write(&f->machine, NET_TX_AREA, header, NET_HEADER);
    test_write(&f->machine, NET_TX_AREA + 0x100, frame, len);
    (void)test_transfer(&f->driver, NET_TX, segs, 2);
}

void net_send_frame(struct net_guest *f, const uint8_t *frame, uint32_t len)
{
    static const uint8_t header[NET_HEADER];

    net_send_with_header(f, header, frame, len);
}

static void ethernet(struct net_guest *f, uint8_t *frame, uint16_t type, bool broadcast)
{
    memcpy(frame, f->host_mac, 6);
    if (broadcast) {
        memset(frame, 0xff, 6);
    }
    memcpy(frame + 6, net_guest_mac, 6);
    store_be16(frame + 12, type);
}

static void ipv4(uint8_t *ip, uint16_t total, uint8_t protocol, uint32_t from, uint32_t to)
{
    memset(ip, 0, 20);
    ip[0] = 0x45;
    store_be16(ip + 2, total);
    ip[8] = 64;
    ip[9] = protocol;
    store_be32(ip + 12, from);
    store_be32(ip + 16, to);
    store_be16(ip + 10, (uint16_t)~sum_words(ip, 20, 0));
}

void net_send_arp_request(struct net_guest *f)
{
    uint8_t frame[42] = {0};
    static const uint8_t fixed[] = {0, 1, 8, 0, 6, 4, 0, 1};

    ethernet(f, frame, 0x0806, true);
    memcpy(frame + 14, fixed, sizeof(fixed));
    memcpy(frame + 22, net_guest_mac, 6);
    store_be32(frame + 28, NET_GUEST_IP);
    store_be32(frame + 38, NET_HOST_IP);
    net_send_frame(f, frame, sizeof(frame));
}

void net_learn_host(struct net_guest *f)
{
    net_send_arp_request(f);
    do {
        net_receive(f);
    } while (load_be16(f->frame + 12) != 0x0806 || load_be16(f->frame + 20) != 2);
    assert_int_equal(load_be32(f->frame + 28), NET_HOST_IP);
    memcpy(f->host_mac, f->frame + 22, 6);
}

void net_send_dhcp(struct net_guest *f, uint8_t type)
{
    uint8_t frame[14 + 20 + 8 + 250] = {0};
    uint8_t *ip = frame + 14;
    uint8_t *udp = ip + 20;
    uint8_t *dhcp = udp + 8;
    const uint8_t options[] = {99, 130, 83, 99, 53, 1, type, 50, 4, 10, 0, 2, 15, 255};

    ethernet(f, frame, 0x0800, true);
    ipv4(ip, sizeof(frame) - 14, 17, 0, 0xffffffff);
    store_be16(udp, 68);
    store_be16(udp + 2, 67);
    store_be16(udp + 4, 8 + 250);
    dhcp[0] = 1;
    dhcp[1] = 1;
    dhcp[2] = 6;
    store_be32(dhcp + 4, 0x12345678);
    memcpy(dhcp + 28, net_guest_mac, 6);
    memcpy(dhcp + 236, options, sizeof(options));
    net_send_frame(f, frame, sizeof(frame));
}

void net_assert_dhcp_works(struct net_guest *f)
{
    const uint8_t *dhcp = f->frame + 42;

    net_send_dhcp(f, 1);
    do {
        net_receive(f);
    } while (load_be16(f->frame + 12) != 0x0800 || f->frame[23] != 17 ||
             load_be16(f->frame + 36) != 68);
    assert_int_equal(dhcp[0], 2);
    assert_int_equal(load_be32(dhcp + 4), 0x12345678);
    assert_int_equal(load_be32(dhcp + 16), NET_GUEST_IP);
}

const uint8_t net_mss_option[4] = {2, 4, 1460 >> 8, 1460 & 0xff};

/* Sends a segment; the checksum is left to the card where that was negotiated. A SYN's data are
 * its options: how much fits our buffers. */
void net_tcp_send(struct net_tcp *tcp, uint8_t flags, const void *data, uint16_t len)
{
    struct net_guest *f = tcp->f;
    bool offload = (f->driver.features & NET_F_CSUM) != 0;
    uint8_t header[NET_HEADER] = {0};
    uint8_t frame[54 + 1460] = {0};
    uint8_t *segment = frame + 34;
    uint8_t pseudo[12] = {0};
    uint32_t sum;

    assert_true(len <= 1460);
    ethernet(f, frame, 0x0800, false);
    ipv4(frame + 14, (uint16_t)(40 + len), 6, NET_GUEST_IP, NET_HOST_IP);
    store_be16(segment, tcp->guest_port);
    store_be16(segment + 2, tcp->host_port);
    store_be32(segment + 4, tcp->seq);
    store_be32(segment + 8, tcp->ack);
    segment[12] = (uint8_t)((flags & TCP_SYN) ? (20u + len) << 2 : 5u << 4);
    segment[13] = flags;
    store_be16(segment + 14, 60000);
    if (len > 0) {
        memcpy(segment + 20, data, len);
    }
    store_be32(pseudo, NET_GUEST_IP);
    store_be32(pseudo + 4, NET_HOST_IP);
    pseudo[9] = 6;
    store_be16(pseudo + 10, (uint16_t)(20 + len));
    sum = sum_words(pseudo, sizeof(pseudo), 0);
    if (offload) {
        store_be16(segment + 16, (uint16_t)sum);
        header[0] = 1;
        store_le16(header + 6, 34);
        store_le16(header + 8, 16);
    } else {
        store_be16(segment + 16, (uint16_t)~sum_words(segment, 20u + len, sum));
    }
    net_send_with_header(f, header, frame, 54u + len);
    tcp->seq += (flags & TCP_SYN) ? 1 : len + ((flags & TCP_FIN) ? 1u : 0u);
}

/* The next segment for this connection, in order. */
void net_tcp_receive(struct net_tcp *tcp)
{
    struct net_guest *f = tcp->f;
    const uint8_t *ip = f->frame + 14;
    const uint8_t *segment = ip + 20;

    do {
        net_receive(f);
    } while (load_be16(f->frame + 12) != 0x0800 || ip[9] != 6 ||
             load_be16(segment + 2) != tcp->guest_port ||
             (tcp->host_port != 0 && load_be16(segment) != tcp->host_port) ||
             ((segment[13] & TCP_SYN) == 0 && load_be32(segment + 4) != tcp->ack));
    tcp->flags = segment[13];
    tcp->host_port = load_be16(segment);
    tcp->data = segment + (segment[12] >> 4) * 4;
    tcp->len = load_be16(ip + 2) - 20u - (uint32_t)(segment[12] >> 4) * 4;
    tcp->ack = load_be32(segment + 4) + tcp->len + ((tcp->flags & (TCP_SYN | TCP_FIN)) ? 1 : 0);
}

int net_listen_on_loopback(uint16_t *ret_port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(name);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&name, &len), 0);
    *ret_port = ntohs(name.sin_port);
    return fd;
}

/* An echo request to the host, whose answer is as long. */
void net_send_echo_request(struct net_guest *f, uint8_t *frame, uint16_t payload)
{
    uint8_t *icmp = frame + 34;

    ethernet(f, frame, 0x0800, false);
    ipv4(frame + 14, (uint16_t)(28 + payload), 1, NET_GUEST_IP, NET_HOST_IP);
    memset(icmp, 0, 8u + payload);
    icmp[0] = 8;
    store_be16(icmp + 2, (uint16_t)~sum_words(icmp, 8u + payload, 0));
    net_send_frame(f, frame, 42u + payload);
}

void net_send_arp(struct net_guest *f, uint32_t sender, const uint8_t mac[6])
{
    uint8_t frame[42] = {0};

    ethernet(f, frame, 0x0806, true);
    store_be16(frame + 14, 1);
    store_be16(frame + 16, 0x0800);
    frame[18] = 6;
    frame[19] = 4;
    store_be16(frame + 20, 1);
    memcpy(frame + 22, mac, 6);
    store_be32(frame + 28, sender);
    store_be32(frame + 38, NET_HOST_IP);
    net_send_frame(f, frame, sizeof(frame));
}
