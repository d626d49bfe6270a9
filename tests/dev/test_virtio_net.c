/* virtio-net on the user-mode network: DHCP, ARP and TCP spoken by hand. */
#include "base/io.h"
#include "base/loop.h"
#include "base/wire.h"
#include "netdev/netdev.h"
#include "test.h"
#include "virtio_driver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define SLOT 1
#define RX 0
#define TX 1
#define RX_BUFFERS 128u
#define RX_BUFFER_BYTES 2048u
#define RX_FEW 40u /* one frame of the longest kind */
#define RX_AREA TEST_DATA
#define TX_AREA (TEST_DATA + 0x200000)
#define HEADER 12u
#define F_CSUM 1ull
#define F_MRG (1ull << 15)

#define GUEST_IP 0x0a00020fu
#define HOST_IP 0x0a000202u
#define TCP_FIN 1u
#define TCP_SYN 2u
#define TCP_PSH 8u
#define TCP_ACK 16u

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

struct fixture {
    struct test_machine machine;
    struct netdev *netdev;
    struct virtio_dev *dev;
    struct test_driver driver;
    uint8_t host_mac[6];
    uint64_t rx_at[256]; /* buffer address by head */
    uint8_t frame[80000];
    uint32_t frame_len;
};

/* One end of a TCP connection, without retransmission: the other end is in this process. */
struct tcp {
    struct fixture *f;
    uint16_t guest_port, host_port;
    uint32_t seq, ack;
    uint8_t flags; /* of the last segment received */
    const uint8_t *data;
    uint32_t len;
};

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

static int create(void **state, bool is_isolated)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const struct netdev_user_config config = {
        .is_isolated = is_isolated,
        .forward_count = 2,
        .forwards = {{.host_address = 0x7f000001, .guest_port = 22},
                     {.host_address = 0x7f000001, .guest_port = 53, .is_udp = true}},
    };
    static const uint8_t no_mac[6];
    struct err err = {0};

    assert_non_null(f);
    test_machine_init(&f->machine);
    assert_int_equal(netdev_user_create(&config, &err, &f->netdev), 0);
    assert_int_equal(virtio_net_create(&f->machine.env, f->netdev, no_mac, &f->dev), 0);
    assert_int_equal(netdev_start(f->netdev, &err), 0);
    *state = f;
    return 0;
}

static int setup(void **state)
{
    return create(state, false);
}

static int setup_isolated(void **state)
{
    return create(state, true);
}

static int setup_few_descriptors(void **state)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 300;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return create(state, false);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    netdev_stop(f->netdev);
    virtio_dev_destroy(f->dev);
    netdev_destroy(f->netdev);
    test_machine_done(&f->machine);
    free(f);
    return 0;
}

static int teardown_few_descriptors(void **state)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return teardown(state);
}

static void post_rx(struct fixture *f, uint64_t address)
{
    const struct test_seg seg = {address, RX_BUFFER_BYTES, true};
    uint16_t head = test_chain(&f->driver, RX, &seg, 1);

    f->rx_at[head] = address;
    test_make_available(&f->driver, RX, head);
    test_kick(&f->driver, RX);
}

static void start(struct fixture *f, uint64_t features, unsigned rx_buffers)
{
    test_driver_start(&f->machine, SLOT, features, &f->driver);
    for (unsigned i = 0; i < rx_buffers; i++) {
        post_rx(f, RX_AREA + (uint64_t)i * RX_BUFFER_BYTES);
    }
}

/* The next frame into f->frame; its buffers are posted again. */
static void receive(struct fixture *f)
{
    unsigned buffers = 1;

    f->frame_len = 0;
    for (unsigned i = 0; i < buffers; i++) {
        uint16_t head;
        uint32_t len = test_wait_used(&f->driver, RX, &head);
        uint32_t skip = i == 0 ? HEADER : 0;
        uint8_t raw[2];

        assert_in_range(len, i == 0 ? HEADER : 1, RX_BUFFER_BYTES);
        if (i == 0) {
            test_read(&f->machine, f->rx_at[head] + 10, raw, 2);
            buffers = load_le16(raw);
            assert_true(buffers >= 1);
        }
        assert_true(f->frame_len + len - skip <= sizeof(f->frame));
        test_read(&f->machine, f->rx_at[head] + skip, f->frame + f->frame_len, len - skip);
        f->frame_len += len - skip;
        post_rx(f, f->rx_at[head]);
    }
}

static void send_with_header(struct fixture *f, const uint8_t header[HEADER], const uint8_t *frame,
                             uint32_t len)
{
    const struct test_seg segs[] = {{TX_AREA, HEADER, false}, {TX_AREA + 0x100, len, false}};

    test_write(&f->machine, TX_AREA, header, HEADER);
    test_write(&f->machine, TX_AREA + 0x100, frame, len);
    (void)test_transfer(&f->driver, TX, segs, 2);
}

static void send_frame(struct fixture *f, const uint8_t *frame, uint32_t len)
{
    static const uint8_t header[HEADER];

    send_with_header(f, header, frame, len);
}

static void ethernet(struct fixture *f, uint8_t *frame, uint16_t type, bool broadcast)
{
    memcpy(frame, f->host_mac, 6);
    if (broadcast) {
        memset(frame, 0xff, 6);
    }
    memcpy(frame + 6, guest_mac, 6);
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

static void send_arp_request(struct fixture *f)
{
    uint8_t frame[42] = {0};
    static const uint8_t fixed[] = {0, 1, 8, 0, 6, 4, 0, 1};

    ethernet(f, frame, 0x0806, true);
    memcpy(frame + 14, fixed, sizeof(fixed));
    memcpy(frame + 22, guest_mac, 6);
    store_be32(frame + 28, GUEST_IP);
    store_be32(frame + 38, HOST_IP);
    send_frame(f, frame, sizeof(frame));
}

static void learn_host(struct fixture *f)
{
    send_arp_request(f);
    do {
        receive(f);
    } while (load_be16(f->frame + 12) != 0x0806 || load_be16(f->frame + 20) != 2);
    assert_int_equal(load_be32(f->frame + 28), HOST_IP);
    memcpy(f->host_mac, f->frame + 22, 6);
}

static void send_dhcp(struct fixture *f, uint8_t type)
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
    memcpy(dhcp + 28, guest_mac, 6);
    memcpy(dhcp + 236, options, sizeof(options));
    send_frame(f, frame, sizeof(frame));
}

static void assert_dhcp_works(struct fixture *f)
{
    const uint8_t *dhcp = f->frame + 42;

    send_dhcp(f, 1);
    do {
        receive(f);
    } while (load_be16(f->frame + 12) != 0x0800 || f->frame[23] != 17 ||
             load_be16(f->frame + 36) != 68);
    assert_int_equal(dhcp[0], 2);
    assert_int_equal(load_be32(dhcp + 4), 0x12345678);
    assert_int_equal(load_be32(dhcp + 16), GUEST_IP);
}

static const uint8_t mss_option[4] = {2, 4, 1460 >> 8, 1460 & 0xff};

/* Sends a segment; the checksum is left to the card where that was negotiated. A SYN's data are
 * its options: how much fits our buffers. */
static void tcp_send(struct tcp *tcp, uint8_t flags, const void *data, uint16_t len)
{
    struct fixture *f = tcp->f;
    bool offload = (f->driver.features & F_CSUM) != 0;
    uint8_t header[HEADER] = {0};
    uint8_t frame[54 + 1460] = {0};
    uint8_t *segment = frame + 34;
    uint8_t pseudo[12] = {0};
    uint32_t sum;

    assert_true(len <= 1460);
    ethernet(f, frame, 0x0800, false);
    ipv4(frame + 14, (uint16_t)(40 + len), 6, GUEST_IP, HOST_IP);
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
    store_be32(pseudo, GUEST_IP);
    store_be32(pseudo + 4, HOST_IP);
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
    send_with_header(f, header, frame, 54u + len);
    tcp->seq += (flags & TCP_SYN) ? 1 : len + ((flags & TCP_FIN) ? 1u : 0u);
}

/* The next segment for this connection, in order. */
static void tcp_receive(struct tcp *tcp)
{
    struct fixture *f = tcp->f;
    const uint8_t *ip = f->frame + 14;
    const uint8_t *segment = ip + 20;

    do {
        receive(f);
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

static int listen_on_loopback(uint16_t *ret_port)
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

static void test_card_describes_itself(void **state)
{
    struct fixture *f = *state;
    uint8_t mac[6];

    start(f, ~0ull, 0);
    assert_int_equal(test_config_read(&f->machine, SLOT, 2, 2), 0x1041);
    for (unsigned i = 0; i < 6; i++) {
        mac[i] = (uint8_t)test_mmio_read(&f->machine, f->driver.device + i, 1);
    }
    assert_memory_equal(mac, guest_mac, 6);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 6, 2), 1);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 10, 2), netdev_mtu(f->netdev));
}

static void test_dhcp_offers_the_first_address(void **state)
{
    struct fixture *f = *state;

    start(f, F_MRG | F_EVENT_IDX, RX_BUFFERS);
    assert_dhcp_works(f);
}

static void test_dhcp_works_without_merged_buffers(void **state)
{
    struct fixture *f = *state;

    start(f, 0, RX_BUFFERS);
    assert_dhcp_works(f);
}

/* The guest connects to a server on the host and both send len bytes. */
static void exchange(struct fixture *f, uint32_t len)
{
    uint16_t port;
    int listener = listen_on_loopback(&port);
    struct tcp tcp = {.f = f, .guest_port = 40000, .host_port = port, .seq = 1000};
    uint8_t *bytes = malloc(len);
    uint8_t *got = malloc(len);
    uint32_t done = 0;
    int peer;

    assert_true(bytes && got);
    for (uint32_t i = 0; i < len; i++) {
        bytes[i] = (uint8_t)(i * 31 + (i >> 8));
    }
    learn_host(f);
    tcp_send(&tcp, TCP_SYN, mss_option, sizeof(mss_option));
    tcp_receive(&tcp);
    assert_int_equal(tcp.flags & (TCP_SYN | TCP_ACK), TCP_SYN | TCP_ACK);
    tcp_send(&tcp, TCP_ACK, NULL, 0);
    peer = accept(listener, NULL, NULL);
    assert_true(peer >= 0);

    for (uint32_t at = 0; at < 3000; at += 1000) {
        tcp_send(&tcp, TCP_ACK | TCP_PSH, bytes + at, 1000);
    }
    assert_int_equal(recv(peer, got, 3000, MSG_WAITALL), 3000);
    assert_memory_equal(got, bytes, 3000);

    assert_int_equal(send(peer, bytes, len, 0), len);
    while (done < len) {
        tcp_receive(&tcp);
        assert_true(tcp.len <= len - done);
        memcpy(got + done, tcp.data, tcp.len);
        done += tcp.len;
        tcp_send(&tcp, TCP_ACK, NULL, 0);
    }
    assert_memory_equal(got, bytes, len);

    close(peer);
    do {
        tcp_receive(&tcp);
    } while ((tcp.flags & TCP_FIN) == 0);
    tcp_send(&tcp, TCP_ACK | TCP_FIN, NULL, 0);
    close(listener);
    free(bytes);
    free(got);
}

static void test_tcp_to_the_host_carries_data(void **state)
{
    struct fixture *f = *state;

    start(f, F_MRG | F_EVENT_IDX, RX_BUFFERS);
    exchange(f, 100000);
}

static void test_tcp_with_checksums_left_to_the_card_carries_data(void **state)
{
    struct fixture *f = *state;

    start(f, F_MRG | F_CSUM, RX_BUFFERS);
    exchange(f, 50000);
}

static void test_few_receive_buffers_lose_nothing(void **state)
{
    struct fixture *f = *state;
    struct netdev_stats stats;

    start(f, F_MRG | F_EVENT_IDX, RX_FEW);
    exchange(f, 100000);
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.rx_dropped, 0);
    assert_true(stats.rx_bytes > 100000);
}

/* An echo request to the host, whose answer is as long. */
static void send_echo_request(struct fixture *f, uint8_t *frame, uint16_t payload)
{
    uint8_t *icmp = frame + 34;

    ethernet(f, frame, 0x0800, false);
    ipv4(frame + 14, (uint16_t)(28 + payload), 1, GUEST_IP, HOST_IP);
    memset(icmp, 0, 8u + payload);
    icmp[0] = 8;
    store_be16(icmp + 2, (uint16_t)~sum_words(icmp, 8u + payload, 0));
    send_frame(f, frame, 42u + payload);
}

/* Whether a driver that follows the event index kicks for its next chain. */
static bool driver_would_kick(struct fixture *f, unsigned queue)
{
    const struct test_queue *q = &f->driver.queues[queue];
    uint8_t raw[2];

    test_read(&f->machine, q->used + 4 + 8ull * q->size, raw, sizeof(raw));
    return load_le16(raw) == q->avail_idx;
}

/* A driver need not kick for chains the card has seen: the next one must count. */
static void test_frame_for_more_buffers_than_there_are_asks_for_one_more(void **state)
{
    struct fixture *f = *state;
    uint8_t frame[42 + 3000];

    start(f, F_MRG | F_EVENT_IDX, 1);
    learn_host(f);
    for (unsigned i = 0; i < 20; i++) {
        send_echo_request(f, frame, 3000); /* the answer is refused before this is done */
        assert_false(test_has_used(&f->driver, RX));
        assert_true(driver_would_kick(f, RX));
        post_rx(f, RX_AREA + RX_BUFFER_BYTES);
        do {
            receive(f);
        } while (f->frame_len != sizeof(frame) || f->frame[34] != 0);
        test_driver_reset(&f->driver);
        start(f, F_MRG | F_EVENT_IDX, 1);
    }
}

static void test_forward_reaches_the_guest(void **state)
{
    struct fixture *f = *state;
    struct tcp tcp = {.f = f, .guest_port = 22, .seq = 5000};
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint16_t port = netdev_forward_port(f->netdev, 0);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char got[6] = {0};

    start(f, F_MRG, RX_BUFFERS);
    learn_host(f);
    assert_int_not_equal(port, 0);
    assert_int_not_equal(netdev_forward_port(f->netdev, 1), 0);
    assert_int_equal(netdev_forward_port(f->netdev, 2), 0);
    name.sin_port = htons(port);
    assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    tcp_receive(&tcp);
    assert_int_equal(tcp.flags & TCP_SYN, TCP_SYN);
    tcp_send(&tcp, TCP_SYN | TCP_ACK, mss_option, sizeof(mss_option));
    tcp_send(&tcp, TCP_ACK | TCP_PSH, "hello", 5);
    assert_int_equal(recv(fd, got, 5, MSG_WAITALL), 5);
    assert_string_equal(got, "hello");
    close(fd);
}

static void test_forward_of_a_used_port_is_refused(void **state)
{
    struct netdev_user_config config = {.forward_count = 1};
    struct netdev *netdev = NULL;
    struct err err = {0};
    uint16_t port;
    int fd = listen_on_loopback(&port);
    char text[16];

    (void)state;
    config.forwards[0] = (struct netdev_forward){0x7f000001, port, 22, false};
    snprintf(text, sizeof(text), ":%u", port);
    assert_int_equal(netdev_user_create(&config, &err, &netdev), -EADDRINUSE);
    assert_non_null(strstr(err.text, text));
    assert_non_null(strstr(err.text, "in use"));
    close(fd);
}

static void test_malformed_frames_are_dropped(void **state)
{
    struct fixture *f = *state;
    uint8_t header[HEADER] = {0};
    uint8_t *junk = calloc(1, 70000);
    struct netdev_stats stats;
    const struct test_seg short_seg = {TX_AREA, 5, false};
    const struct test_seg outside = {TEST_RAM_BYTES - 4, 100, false};

    assert_non_null(junk);
    start(f, F_MRG | F_CSUM, RX_BUFFERS);
    send_with_header(f, header, junk, 0);
    send_with_header(f, header, junk, 13);
    send_with_header(f, header, junk, 70000);
    (void)test_transfer(&f->driver, TX, &short_seg, 1);
    (void)test_transfer(&f->driver, TX, &outside, 1);
    header[0] = 1; /* checksum beyond the frame */
    store_le16(header + 6, 60);
    store_le16(header + 8, 0xfff0);
    send_with_header(f, header, junk, 64);
    store_le16(header + 6, 0xffff);
    send_with_header(f, header, junk, 64);
    store_le16(header + 6, 63);
    store_le16(header + 8, 0);
    send_with_header(f, header, junk, 64);
    header[0] = 0;
    header[1] = 1; /* segmentation was not offered */
    send_with_header(f, header, junk, 64);
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.tx_frames, 0);
    assert_int_equal(stats.tx_dropped, 5);
    assert_dhcp_works(f);
    free(junk);
}

static void count_call(void *opaque)
{
    unsigned *calls = opaque;

    (*calls)++;
}

static void send_arp(struct fixture *f, uint32_t sender, const uint8_t mac[6])
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
    store_be32(frame + 38, HOST_IP);
    send_frame(f, frame, sizeof(frame));
}

static void test_address_is_what_the_guest_says_of_itself(void **state)
{
    static const uint8_t other[6] = {2, 0, 0, 0, 0, 1};
    struct fixture *f = *state;
    unsigned calls = 0;

    netdev_watch_address(f->netdev, count_call, &calls);
    start(f, F_MRG, RX_BUFFERS);
    assert_int_equal(netdev_guest_address(f->netdev), 0);
    send_arp(f, 0, guest_mac); /* a probe: it has none yet */
    send_arp(f, 0x7f000001, guest_mac);
    send_arp(f, 0xffffffff, guest_mac);
    send_arp(f, 0x0a000263, other); /* in another's name */
    assert_int_equal(netdev_guest_address(f->netdev), 0);
    send_arp(f, 0x0a000211, guest_mac);
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000211);
    send_arp(f, 0x0a000211, guest_mac);
    assert_int_equal(calls, 1);
    send_arp(f, 0x0a000212, guest_mac);
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000212);
    assert_int_equal(calls, 2);
}

/* A request's answer, without any ARP. */
static void test_address_is_what_dhcp_gave(void **state)
{
    struct fixture *f = *state;

    start(f, F_MRG, RX_BUFFERS);
    assert_dhcp_works(f); /* an offer is no lease */
    assert_int_equal(netdev_guest_address(f->netdev), 0);
    send_dhcp(f, 3);
    do {
        receive(f);
    } while (load_be16(f->frame + 12) != 0x0800 || f->frame[23] != 17);
    assert_int_equal(netdev_guest_address(f->netdev), GUEST_IP);
}

static void test_flood_of_connections_leaves_descriptors(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int listener = listen_on_loopback(&port);
    int spare;

    start(f, F_MRG, RX_BUFFERS);
    learn_host(f);
    for (unsigned i = 0; i < 1000; i++) {
        struct tcp tcp = {.f = f, .guest_port = (uint16_t)(10000 + i), .host_port = port};

        tcp_send(&tcp, TCP_SYN, mss_option, sizeof(mss_option));
        while (test_has_used(&f->driver, RX)) {
            receive(f);
        }
    }
    spare = dup(listener);
    assert_true(spare >= 0);
    close(spare);
    learn_host(f); /* and the network lives */
    close(listener);
}

static void test_isolated_guest_reaches_no_host_socket(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int listener = listen_on_loopback(&port);
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    struct tcp tcp = {.f = f, .guest_port = 40000, .host_port = port, .seq = 1};

    start(f, F_MRG, RX_BUFFERS);
    learn_host(f);
    tcp_send(&tcp, TCP_SYN, mss_option, sizeof(mss_option));
    learn_host(f); /* frames are handled in order */
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    assert_dhcp_works(f);
    close(listener);
}

static void test_short_receive_buffer_breaks_only_the_card(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {RX_AREA, 11, true};

    start(f, F_MRG, 0);
    send_arp_request(f); /* the answer waits for a buffer */
    test_make_available(&f->driver, RX, test_chain(&f->driver, RX, &seg, 1));
    test_kick(&f->driver, RX);
    test_driver_wait_broken(&f->driver);
    start(f, F_MRG, RX_BUFFERS);
    assert_dhcp_works(f);
}

static void signal_event(void *opaque)
{
    io_eventfd_signal(*(int *)opaque);
}

/* From now on: when it returns, the network's thread has them. */
static void set_limits(struct fixture *f, uint64_t bytes_per_second)
{
    const struct limit_config limits = {.bytes_per_second = bytes_per_second};
    int fd = eventfd(0, EFD_CLOEXEC); /* one that waits */
    uint64_t count;

    assert_true(fd >= 0);
    assert_int_equal(netdev_set_limits(f->netdev, &limits), 0);
    assert_int_equal(loop_defer(netdev_loop(f->netdev), signal_event, &fd), 0);
    assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
    (void)close(fd);
}

/* A byte per second: the first frame leaves a debt of more than half a minute. */
static void test_frames_wait_for_limits_and_are_not_lost(void **state)
{
    struct fixture *f = *state;
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct test_seg segs[] = {{TX_AREA, HEADER, false}, {TX_AREA + 0x100, 42, false}};
    struct netdev_stats before, now;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    uint16_t head;

    start(f, F_MRG, RX_BUFFERS);
    learn_host(f);
    set_limits(f, 1);
    netdev_stats(f->netdev, &before);
    /* To the guest: the answer passes, and what comes after it waits. */
    send_arp_request(f);
    name.sin_port = htons(netdev_forward_port(f->netdev, 1));
    assert_int_equal(sendto(fd, "x", 1, 0, (struct sockaddr *)&name, sizeof(name)), 1);
    do {
        (void)sched_yield();
        netdev_stats(f->netdev, &now);
    } while (now.rx_throttled == 0);
    assert_int_equal(now.rx_frames, before.rx_frames + 1);
    assert_int_equal(now.tx_frames, before.tx_frames + 1);
    /* From the guest; its last frame, the request, is still there. */
    before = now;
    test_make_available(&f->driver, TX, test_chain(&f->driver, TX, segs, 2));
    test_kick(&f->driver, TX);
    do {
        (void)sched_yield();
        netdev_stats(f->netdev, &now);
    } while (now.tx_throttled == 0);
    assert_int_equal(now.tx_frames, before.tx_frames);
    set_limits(f, 0);
    (void)test_wait_used(&f->driver, TX, &head);
    do {
        receive(f);
    } while (f->frame_len < 43 || f->frame[42] != 'x');
    learn_host(f);
    netdev_stats(f->netdev, &now);
    assert_int_equal(now.rx_dropped + now.tx_dropped, 0);
    (void)close(fd);
}

static void test_limits_out_of_bounds_are_refused(void **state)
{
    struct fixture *f = *state;
    const struct limit_config limits = {.ops_per_second = LIMIT_MAX_RATE + 1};

    assert_int_equal(netdev_set_limits(f->netdev, &limits), -EINVAL);
}

static void test_reset_while_frames_wait_ends_clean(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < 20; i++) {
        start(f, F_MRG, 0);
        send_arp_request(f); /* the answer finds no buffer */
        test_driver_reset(&f->driver);
    }
    start(f, F_MRG, RX_BUFFERS);
    assert_dhcp_works(f);
}

#define NET_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        NET_TEST(test_card_describes_itself),
        NET_TEST(test_dhcp_offers_the_first_address),
        NET_TEST(test_dhcp_works_without_merged_buffers),
        NET_TEST(test_tcp_to_the_host_carries_data),
        NET_TEST(test_tcp_with_checksums_left_to_the_card_carries_data),
        NET_TEST(test_few_receive_buffers_lose_nothing),
        NET_TEST(test_frame_for_more_buffers_than_there_are_asks_for_one_more),
        NET_TEST(test_forward_reaches_the_guest),
        NET_TEST(test_forward_of_a_used_port_is_refused),
        NET_TEST(test_malformed_frames_are_dropped),
        NET_TEST(test_address_is_what_the_guest_says_of_itself),
        NET_TEST(test_address_is_what_dhcp_gave),
        cmocka_unit_test_setup_teardown(test_flood_of_connections_leaves_descriptors,
                                        setup_few_descriptors, teardown_few_descriptors),
        cmocka_unit_test_setup_teardown(test_isolated_guest_reaches_no_host_socket, setup_isolated,
                                        teardown),
        NET_TEST(test_short_receive_buffer_breaks_only_the_card),
        NET_TEST(test_frames_wait_for_limits_and_are_not_lost),
        NET_TEST(test_limits_out_of_bounds_are_refused),
        NET_TEST(test_reset_while_frames_wait_ends_clean),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
