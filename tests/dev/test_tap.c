/* virtio-net on a wire that takes a frame at a time, as a tap does. */
#include "base/wire.h"
#include "net_driver.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#define FRAME_BYTES 60u
#define ETHERTYPE_TEST 0x88b5 /* for experiments */

static const uint8_t peer_mac[6] = {0x52, 0x54, 0, 0xaa, 0xbb, 0xcc};
static const uint8_t everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static int setup(void **state)
{
    return net_guest_create_on_wire(state, false);
}

static int setup_guarded(void **state)
{
    return net_guest_create_on_wire(state, true);
}

static void make_frame(uint8_t *frame, const uint8_t *to, const uint8_t *from, uint16_t type,
                       uint16_t number)
{
    memset(frame, 0x5a, FRAME_BYTES);
    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    store_be16(frame + 12, type);
    store_be16(frame + 14, number);
}

/* What the guest sent, in order: the number of the frame. */
static uint16_t take_number(struct net_guest *f, size_t *ret_len)
{
    struct pollfd pfd = {.fd = f->wire, .events = POLLIN};
    static uint8_t frame[NETDEV_MAX_FRAME_BYTES];
    ssize_t n;

    assert_int_equal(poll(&pfd, 1, -1), 1);
    n = recv(f->wire, frame, sizeof(frame), 0);
    assert_true(n >= 16);
    *ret_len = (size_t)n;
    return load_be16(frame + 14);
}

static void give(struct net_guest *f, const uint8_t *to, uint16_t type, uint16_t number)
{
    uint8_t frame[FRAME_BYTES];

    make_frame(frame, to, peer_mac, type, number);
    assert_int_equal(send(f->wire, frame, sizeof(frame), 0), sizeof(frame));
}

static void test_frames_pass_as_they_are(void **state)
{
    struct net_guest *f = *state;
    uint8_t frame[FRAME_BYTES], got[FRAME_BYTES + 1];
    struct pollfd pfd = {.fd = f->wire, .events = POLLIN};
    struct netdev_stats stats;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    make_frame(frame, peer_mac, net_guest_mac, ETHERTYPE_TEST, 1);
    net_send_frame(f, frame, sizeof(frame));
    assert_int_equal(poll(&pfd, 1, -1), 1);
    assert_int_equal(recv(f->wire, got, sizeof(got), 0), sizeof(frame));
    assert_memory_equal(got, frame, sizeof(frame));
    make_frame(frame, net_guest_mac, peer_mac, ETHERTYPE_TEST, 2);
    assert_int_equal(send(f->wire, frame, sizeof(frame), 0), sizeof(frame));
    net_receive(f);
    assert_int_equal(f->frame_len, sizeof(frame));
    assert_memory_equal(f->frame, frame, sizeof(frame));
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.tx_frames, 1);
    assert_int_equal(stats.tx_bytes, FRAME_BYTES);
    assert_int_equal(stats.rx_frames, 1);
    assert_int_equal(stats.rx_bytes, FRAME_BYTES);
}

/* The wire sees whole checksums: bytes 20 and 21 are that of what follows byte 16. */
static void test_checksum_is_complete_on_the_wire(void **state)
{
    struct net_guest *f = *state;
    const uint8_t header[NET_HEADER] = {1, 0, 0, 0, 0, 0, 16, 0, 4, 0};
    struct pollfd pfd = {.fd = f->wire, .events = POLLIN};
    uint8_t frame[FRAME_BYTES];
    uint32_t sum = 0;

    net_start(f, NET_F_MRG | NET_F_CSUM, NET_RX_BUFFERS);
    make_frame(frame, peer_mac, net_guest_mac, ETHERTYPE_TEST, 1);
    store_be16(frame + 20, 0);
    net_send_with_header(f, header, frame, sizeof(frame));
    assert_int_equal(poll(&pfd, 1, -1), 1);
    assert_int_equal(recv(f->wire, frame, sizeof(frame), 0), sizeof(frame));
    assert_int_not_equal(load_be16(frame + 20), 0);
    for (unsigned i = 16; i < FRAME_BYTES; i += 2) {
        sum += load_be16(frame + i);
    }
    assert_int_equal((sum & 0xffff) + (sum >> 16), 0xffff);
}

static void test_frames_too_short_or_long_for_the_wire_are_dropped(void **state)
{
    struct net_guest *f = *state;
    static uint8_t frame[NET_WIRE_MTU + 19];
    struct netdev_stats stats;
    size_t len;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    make_frame(frame, peer_mac, net_guest_mac, ETHERTYPE_TEST, 1);
    net_send_frame(f, frame, 13);
    net_send_frame(f, frame, sizeof(frame));
    make_frame(frame, peer_mac, net_guest_mac, ETHERTYPE_TEST, 2);
    net_send_frame(f, frame, sizeof(frame) - 1); /* the MTU with a tag */
    assert_int_equal(take_number(f, &len), 2);
    assert_int_equal(len, sizeof(frame) - 1);
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.tx_dropped, 2);
    /* The other way: what is no frame is none, the longest there are pass. */
    assert_int_equal(send(f->wire, frame, 13, 0), 13);
    give(f, net_guest_mac, ETHERTYPE_TEST, 3);
    net_receive(f);
    assert_int_equal(load_be16(f->frame + 14), 3);
    assert_int_equal(send(f->wire, frame, sizeof(frame), 0), sizeof(frame));
    net_receive(f);
    assert_int_equal(f->frame_len, sizeof(frame));
}

/* Without buffers of the guest's the wire fills up; nothing that it took is lost then. */
static void test_full_card_holds_the_wire_back(void **state)
{
    struct net_guest *f = *state;
    uint8_t frame[FRAME_BYTES];
    struct netdev_stats stats;
    uint16_t count = 0;
    unsigned refused = 0;

    net_start(f, NET_F_MRG, 0);
    while (refused < 1000) {
        make_frame(frame, net_guest_mac, peer_mac, ETHERTYPE_TEST, count);
        if (send(f->wire, frame, sizeof(frame), 0) == (ssize_t)sizeof(frame)) {
            count++;
            assert_true(count < 60000);
        } else {
            assert_int_equal(errno, EAGAIN);
            refused++;
            (void)sched_yield();
        }
    }
    for (unsigned i = 0; i < NET_RX_BUFFERS; i++) {
        net_post_rx(f, NET_RX_AREA + (uint64_t)i * NET_RX_BUFFER_BYTES);
    }
    for (uint16_t i = 0; i < count; i++) {
        net_receive(f);
        assert_int_equal(load_be16(f->frame + 14), i);
    }
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.rx_dropped, 0);
    assert_int_equal(stats.rx_frames, count);
}

static void test_wire_that_goes_leaves_a_card_that_is_silent(void **state)
{
    struct net_guest *f = *state;
    uint8_t frame[FRAME_BYTES];
    struct netdev_stats stats;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    give(f, net_guest_mac, ETHERTYPE_TEST, 1);
    net_receive(f);
    (void)close(steal_fd(&f->wire));
    make_frame(frame, peer_mac, net_guest_mac, ETHERTYPE_TEST, 2);
    for (unsigned i = 0; i < 10; i++) {
        net_send_frame(f, frame, sizeof(frame)); /* waits until the card has taken it */
    }
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.tx_frames, 0);
    assert_int_equal(stats.tx_dropped, 10);
    net_start(f, NET_F_MRG, NET_RX_BUFFERS); /* and a driver can begin anew */
    net_send_frame(f, frame, sizeof(frame));
}

/* ---- guarded ---- */

static void test_guard_lets_only_own_plain_frames_out(void **state)
{
    struct net_guest *f = *state;
    static const uint8_t bridges[6] = {0x01, 0x80, 0xc2, 0, 0, 0};
    static const uint8_t no_longer_bridges[6] = {0x01, 0x80, 0xc2, 0, 0, 0x10};
    const struct {
        const uint8_t *to, *from;
        uint16_t type;
        bool passes;
    } rows[] = {
        {peer_mac, net_guest_mac, ETHERTYPE_TEST, true},
        {peer_mac, peer_mac, ETHERTYPE_TEST, false},
        {everybody, peer_mac, 0x0806, false},
        {peer_mac, everybody, ETHERTYPE_TEST, false},
        {peer_mac, net_guest_mac, 0x8100, false},
        {peer_mac, net_guest_mac, 0x88a8, false},
        {peer_mac, net_guest_mac, 0x9100, false},
        {bridges, net_guest_mac, 0x0026, false},
        {no_longer_bridges, net_guest_mac, ETHERTYPE_TEST, true},
        {everybody, net_guest_mac, 0x0806, true},
    };
    struct netdev_stats stats;
    unsigned dropped = 0;

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    for (uint16_t i = 0; i < ARRAY_LEN(rows); i++) {
        uint8_t frame[FRAME_BYTES];

        make_frame(frame, rows[i].to, rows[i].from, rows[i].type, i);
        net_send_frame(f, frame, sizeof(frame));
        dropped += !rows[i].passes;
    }
    for (uint16_t i = 0; i < ARRAY_LEN(rows); i++) {
        size_t len;

        if (rows[i].passes) {
            assert_int_equal(take_number(f, &len), i);
        }
    }
    netdev_stats(f->netdev, &stats);
    assert_int_equal(stats.tx_dropped, dropped);
}

static void test_guard_keeps_others_frames_from_the_guest(void **state)
{
    struct net_guest *f = *state;
    static const uint8_t group[6] = {0x33, 0x33, 0, 0, 0, 1};

    net_start(f, NET_F_MRG, NET_RX_BUFFERS);
    give(f, peer_mac, ETHERTYPE_TEST, 1);
    give(f, net_guest_mac, 0x8100, 2);
    give(f, net_guest_mac, ETHERTYPE_TEST, 3);
    give(f, peer_mac, ETHERTYPE_TEST, 4);
    give(f, everybody, ETHERTYPE_TEST, 5);
    give(f, group, ETHERTYPE_TEST, 6);
    for (uint16_t i = 3; i <= 6; i++) {
        if (i != 4) {
            net_receive(f);
            assert_int_equal(load_be16(f->frame + 14), i);
        }
    }
}

#define TAP_TEST(name) cmocka_unit_test_setup_teardown(name, setup, net_guest_destroy)
#define GUARD_TEST(name) cmocka_unit_test_setup_teardown(name, setup_guarded, net_guest_destroy)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TAP_TEST(test_frames_pass_as_they_are),
        TAP_TEST(test_checksum_is_complete_on_the_wire),
        TAP_TEST(test_frames_too_short_or_long_for_the_wire_are_dropped),
        TAP_TEST(test_full_card_holds_the_wire_back),
        TAP_TEST(test_wire_that_goes_leaves_a_card_that_is_silent),
        GUARD_TEST(test_guard_lets_only_own_plain_frames_out),
        GUARD_TEST(test_guard_keeps_others_frames_from_the_guest),
    };

    (void)signal(SIGPIPE, SIG_IGN); /* a tap has none */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
