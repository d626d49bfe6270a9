/* virtio-net on the user-mode network: DHCP, ARP and TCP spoken by hand. */
#include "base/io.h"
#include "base/loop.h"
#include "base/wire.h"
#include "net_driver.h"
#include "netdev/netdev_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

static int setup(void **state)
{
    return net_guest_create(state, false);
}

static int setup_isolated(void **state)
{
    return net_guest_create(state, true);
}

static int setup_few_descriptors(void **state)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 300;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return net_guest_create(state, false);
}

static int teardown_few_descriptors(void **state)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return net_guest_destroy(state);
}

static void test_card_describes_itself(void **state)
{
    struct net_guest *f = *state;
    uint8_t mac[6];

    net_start(f, ~0ull, 0);
    assert_int_equal(test_config_read(&f->machine, NET_SLOT, 2, 2), 0x1041);
    for (unsigned i = 0; i < 6; i++) {
        mac[i] = (uint8_t)test_mmio_read(&f->machine, f->driver.device + i, 1);
    }
    assert_memory_equal(mac, net_guest_mac, 6);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 6, 2), 1);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 10, 2), netdev_mtu(f->netdev));
}

static void test_dhcp_offers_the_first_address(void **state)
{
    struct net_guest *f = *state;

    net_start(f, NET_F_MRG | F_EVENT_IDX, NET_RX_BUFFERS);
    net_assert_dhcp_works(f);
}

static void test_dhcp_works_without_merged_buffers(void **state)
{
    struct net_guest *f = *state;

    net_start(f, 0, NET_RX_BUFFERS);
    net_assert_dhcp_works(f);
}

/* The guest connects to a server on the host and both send len bytes. */
static void exchange(struct net_guest *f, uint32_t len)
{
    uint16_t port;
    int listener = net_listen_on_loopback(&port);
    struct net_tcp tcp = {.f = f, .guest_port = 40000, .host_port = port, .seq = 1000};
    uint8_t *bytes = malloc(len);
    uint8_t *got = malloc(len);
    uint32_t done = 0;
    int peer;

    assert_true(bytes && got);
    for (uint32_t i = 0; i < len; i++) {
        bytes[i] = (uint8_t)(i * 31 + (i >> 8));
    }
    net_learn_host(f);
    net_tcp_send(&tcp, TCP_SYN, net_mss_option, sizeof(net_mss_option));
    net_tcp_receive(&tcp);
    assert_int_equal(tcp.flags & (TCP_SYN | TCP_ACK), TCP_SYN | TCP_ACK);
    net_tcp_send(&tcp, TCP_ACK, NULL, 0);
    peer = accept(listener, NULL, NULL);
    assert_true(peer >= 0);

    for (uint32_t at = 0; at < 3000; at += 1000) {
        net_tcp_send(&tcp, TCP_ACK | TCP_PSH, bytes + at, 1000);
    }
    assert_int_equal(recv(peer, got, 3000, MSG_WAITALL), 3000);
    assert_memory_equal(got, bytes, 3000);

    assert_int_equal(send(peer, bytes, len, 0), len);
    while (done < len) {
        net_tcp_receive(&tcp);
        assert_true(tcp.len <= len - done);
        memcpy(got + done, tcp.data, tcp.len);
        done += tcp.len;
        net_tcp_send(&tcp, TCP_ACK, NULL, 0);
    }
    assert_memory_equal(got, bytes, len);

    close(peer);
    do {
        net_tcp_receive(&tcp);
    } while ((tcp.flags & TCP_FIN) == 0);
    net_tcp_send(&tcp, TCP_ACK | TCP_FIN, NULL, 0);
    close(listener);
    free(bytes);
    free(got);
}

static void test_tcp_to_the_host_carries_data(void **state)
{
    struct net_guest *f = *state;

    net_start(f, NET_F_MRG | F_EVENT_IDX, NET_RX_BUFFERS);
    exchange(f, 100000);
}

static void test_tcp_with_checksums_left_to_the_card_carries_data(void **state)
{
    struct net_guest *f = *state;

    net_start(f, NET_F_MRG | NET_F_CSUM, NET_RX_BUFFERS);
    exchange(f, 50000);
}

static void test_few_receive_buffers_lose_nothing(void **state)
{
    struct net_guest *f = *state;
    struct netdev_stats stats;

    net_start(f, NET_F_MRG | F_EVENT_IDX, NET_RX_FEW);
    exchange(f, 100000);
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.rx_dropped, 0);
    assert_true(stats.rx_bytes > 100000);
}

/* Whether a driver that follows the event index kicks for its next chain. */
static bool driver_would_kick(struct net_guest *f, unsigned queue)
{
    const struct test_queue *q = &f->driver.queues[queue];
    uint8_t raw[2];

    test_read(&f->machine, q->used + 4 + 8ull * q->size, raw, sizeof(raw));
    return load_le16(raw) == q->avail_idx;
}

/* A driver need not kick for chains the card has seen: the next one must count. */
static void test_frame_for_more_buffers_than_there_are_asks_for_one_more(void **state)
{
    struct net_guest *f = *state;
    uint8_t frame[42 + 3000];

    net_start(f, NET_F_MRG | F_EVENT_IDX, 1);
    net_learn_host(f);
    for (unsigned i = 0; i < 20; i++) {
        net_send_echo_request(f, frame, 3000); /* the answer is refused before this is done */
        assert_false(test_has_used(&f->driver, NET_RX));
        assert_true(driver_would_kick(f, NET_RX));
        net_post_rx(f, NET_RX_AREA + NET_RX_BUFFER_BYTES);
        do {
            net_receive(f);
        } while (f->frame_len != sizeof(frame) || f->frame[34] != 0);
        test_driver_reset(&f->driver);
        net_start(f, NET_F_MRG | F_EVENT_IDX, 1);
    }
}

static void test_forward_reaches_the_guest(void **state)
{
    struct net_guest *f = *state;
    struct net_tcp tcp = {.f = f, .guest_port = 22, .seq = 5000};
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint16_t port = netdev_forward_port(f->netdev, 0);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char got[6] = {0};

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_learn_host(f);
    assert_int_not_equal(port, 0);
    assert_int_not_equal(netdev_forward_port(f->netdev, 1), 0);
    assert_int_equal(netdev_forward_port(f->netdev, 2), 0);
    name.sin_port = htons(port);
    assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    net_tcp_receive(&tcp);
    assert_int_equal(tcp.flags & TCP_SYN, TCP_SYN);
    net_tcp_send(&tcp, TCP_SYN | TCP_ACK, net_mss_option, sizeof(net_mss_option));
    net_tcp_send(&tcp, TCP_ACK | TCP_PSH, "hello", 5);
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
    int fd = net_listen_on_loopback(&port);
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
    struct net_guest *f = *state;
    uint8_t header[NET_HEADER] = {0};
    uint8_t *junk = calloc(1, 70000);
    struct netdev_stats stats;
    const struct test_seg short_seg = {NET_TX_AREA, 5, false};
    const struct test_seg outside = {TEST_RAM_BYTES - 4, 100, false};

    assert_non_null(junk);
    net_start(f, NET_F_MRG | NET_F_CSUM, NET_RX_BUFFERS);
    net_send_with_header(f, header, junk, 0);
    net_send_with_header(f, header, junk, 13);
    net_send_with_header(f, header, junk, 70000);
    (void)test_transfer(&f->driver, NET_TX, &short_seg, 1);
    (void)test_transfer(&f->driver, NET_TX, &outside, 1);
    header[0] = 1; /* checksum beyond the frame */
    store_le16(header + 6, 60);
    store_le16(header + 8, 0xfff0);
    net_send_with_header(f, header, junk, 64);
    store_le16(header + 6, 0xffff);
    net_send_with_header(f, header, junk, 64);
    store_le16(header + 6, 63);
    store_le16(header + 8, 0);
    net_send_with_header(f, header, junk, 64);
    header[0] = 0;
    header[1] = 1; /* segmentation was not offered */
    net_send_with_header(f, header, junk, 64);
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.tx_frames, 0);
    assert_int_equal(stats.tx_dropped, 5);
    net_assert_dhcp_works(f);
    free(junk);
}

static void count_call(void *opaque)
{
    unsigned *calls = opaque;

    (*calls)++;
}

static void test_address_is_what_the_guest_says_of_itself(void **state)
{
    static const uint8_t other[6] = {2, 0, 0, 0, 0, 1};
    struct net_guest *f = *state;
    unsigned calls = 0;

    netdev_watch_address(f->netdev, count_call, &calls);
    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    assert_int_equal(netdev_guest_address(f->netdev), 0);
    net_send_arp(f, 0, net_guest_mac); /* a probe: it has none yet */
    net_send_arp(f, 0x7f000001, net_guest_mac);
    net_send_arp(f, 0xffffffff, net_guest_mac);
    net_send_arp(f, 0x0a000263, other); /* in another's name */
    assert_int_equal(netdev_guest_address(f->netdev), 0);
    net_send_arp(f, 0x0a000211, net_guest_mac);
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000211);
    net_send_arp(f, 0x0a000211, net_guest_mac);
    assert_int_equal(calls, 1);
    net_send_arp(f, 0x0a000212, net_guest_mac); /* it has two */
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000211);
    assert_int_equal(calls, 1);
}

/* The first stays however often another is said, until it is not said for as long as others are. */
static void test_address_of_several_is_the_first_that_lives(void **state)
{
    const uint64_t minute = 60 * 1000000000ull;
    struct net_guest *f = *state;
    unsigned calls = 0;

    netdev_watch_address(f->netdev, count_call, &calls);
    netdev_note_address(f->netdev, 0x0a000211, minute);
    for (uint64_t at = 2; at <= 100; at++) {
        netdev_note_address(f->netdev, at % 4 == 0 ? 0x0a000211 : 0x0a000212, at * minute);
        assert_int_equal(netdev_guest_address(f->netdev), 0x0a000211);
    }
    /* A guest that says nothing for hours says nothing of what it has not. */
    netdev_note_address(f->netdev, 0x0a000212, 1000 * minute);
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000211);
    netdev_note_address(f->netdev, 0x0a000213, 1003 * minute);
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000211);
    netdev_note_address(f->netdev, 0x0a000212, 1006 * minute);
    assert_int_equal(netdev_guest_address(f->netdev), 0x0a000212);
    assert_int_equal(calls, 2);
}

/* A request's answer, without any ARP. */
static void test_address_is_what_dhcp_gave(void **state)
{
    struct net_guest *f = *state;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_assert_dhcp_works(f); /* an offer is no lease */
    assert_int_equal(netdev_guest_address(f->netdev), 0);
    net_send_arp(f, 0x0a000263, net_guest_mac); /* one that it had: a lease counts at once */
    net_send_dhcp(f, 3);
    do {
        net_receive(f);
    } while (load_be16(f->frame + 12) != 0x0800 || f->frame[23] != 17);
    assert_int_equal(netdev_guest_address(f->netdev), NET_GUEST_IP);
}

static void test_flood_of_connections_leaves_descriptors(void **state)
{
    struct net_guest *f = *state;
    uint16_t port;
    int listener = net_listen_on_loopback(&port);
    int spare;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_learn_host(f);
    for (unsigned i = 0; i < 1000; i++) {
        struct net_tcp tcp = {.f = f, .guest_port = (uint16_t)(10000 + i), .host_port = port};

        net_tcp_send(&tcp, TCP_SYN, net_mss_option, sizeof(net_mss_option));
        while (test_has_used(&f->driver, NET_RX)) {
            net_receive(f);
        }
    }
    spare = dup(listener);
    assert_true(spare >= 0);
    close(spare);
    net_learn_host(f); /* and the network lives */
    close(listener);
}

static void test_isolated_guest_reaches_no_host_socket(void **state)
{
    struct net_guest *f = *state;
    uint16_t port;
    int listener = net_listen_on_loopback(&port);
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    struct net_tcp tcp = {.f = f, .guest_port = 40000, .host_port = port, .seq = 1};

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_learn_host(f);
    net_tcp_send(&tcp, TCP_SYN, net_mss_option, sizeof(net_mss_option));
    net_learn_host(f); /* frames are handled in order */
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    net_assert_dhcp_works(f);
    close(listener);
}

static void test_short_receive_buffer_breaks_only_the_card(void **state)
{
    struct net_guest *f = *state;
    const struct test_seg seg = {NET_RX_AREA, 11, true};

    net_start(f, NET_F_MRG, 0);
    net_send_arp_request(f); /* the answer waits for a buffer */
    test_make_available(&f->driver, NET_RX, test_chain(&f->driver, NET_RX, &seg, 1));
    test_kick(&f->driver, NET_RX);
    test_driver_wait_broken(&f->driver);
    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_assert_dhcp_works(f);
}

static void signal_event(void *opaque)
{
    io_eventfd_signal(*(int *)opaque);
}

/* From now on: when it returns, the network's thread has them. */
static void set_limits(struct net_guest *f, uint64_t bytes_per_second)
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
    struct net_guest *f = *state;
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct test_seg segs[] = {{NET_TX_AREA, NET_HEADER, false},
                                    {NET_TX_AREA + 0x100, 42, false}};
    struct netdev_stats before, now;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    uint16_t head;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_learn_host(f);
    set_limits(f, 1);
    netdev_stats(f->netdev, &before);
    /* To the guest: the answer passes, and what comes after it waits. */
    net_send_arp_request(f);
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
    test_make_available(&f->driver, NET_TX, test_chain(&f->driver, NET_TX, segs, 2));
    test_kick(&f->driver, NET_TX);
    do {
        (void)sched_yield();
        netdev_stats(f->netdev, &now);
    } while (now.tx_throttled == 0);
    assert_int_equal(now.tx_frames, before.tx_frames);
    set_limits(f, 0);
    (void)test_wait_used(&f->driver, NET_TX, &head);
    do {
        net_receive(f);
    } while (f->frame_len < 43 || f->frame[42] != 'x');
    net_learn_host(f);
    netdev_stats(f->netdev, &now);
    assert_int_equal(now.rx_dropped + now.tx_dropped, 0);
    (void)close(fd);
}

static void test_limits_out_of_bounds_are_refused(void **state)
{
    struct net_guest *f = *state;
    const struct limit_config limits = {.ops_per_second = LIMIT_MAX_RATE + 1};

    assert_int_equal(netdev_set_limits(f->netdev, &limits), -EINVAL);
}

static void test_reset_while_frames_wait_ends_clean(void **state)
{
    struct net_guest *f = *state;

    for (unsigned i = 0; i < 20; i++) {
        net_start(f, NET_F_MRG, 0);
        net_send_arp_request(f); /* the answer finds no buffer */
        test_driver_reset(&f->driver);
    }
    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    net_assert_dhcp_works(f);
}

#define NET_TEST(name) cmocka_unit_test_setup_teardown(name, setup, net_guest_destroy)

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
        NET_TEST(test_address_of_several_is_the_first_that_lives),
        NET_TEST(test_address_is_what_dhcp_gave),
        cmocka_unit_test_setup_teardown(test_flood_of_connections_leaves_descriptors,
                                        setup_few_descriptors, teardown_few_descriptors),
        cmocka_unit_test_setup_teardown(test_isolated_guest_reaches_no_host_socket, setup_isolated,
                                        net_guest_destroy),
        NET_TEST(test_short_receive_buffer_breaks_only_the_card),
        NET_TEST(test_frames_wait_for_limits_and_are_not_lost),
        NET_TEST(test_limits_out_of_bounds_are_refused),
        NET_TEST(test_reset_while_frames_wait_ends_clean),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
