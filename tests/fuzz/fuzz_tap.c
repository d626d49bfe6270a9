/*
 * A guarded wire between a guest and others, all hostile: the input is frames, each with a byte for
 * who sends it and two for its length.
 */
#include "fuzz_import.h"

#include "base/loop.h"
#include "base/wire.h"
#include "netdev/netdev.h"

#include <sys/socket.h>

#define MTU 1500u

static const uint8_t own[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

/* The guest hears what is for it, or for a group. */
static bool receive(void *opaque, const void *frame, size_t len)
{
    const uint8_t *bytes = frame;

    (void)opaque;
    fuzz_expect(len >= 14 && len <= NETDEV_MAX_FRAME_BYTES);
    fuzz_expect((bytes[0] & 1) != 0 || memcmp(bytes, own, sizeof(own)) == 0);
    return true;
}

static void do_nothing(void *opaque)
{
    (void)opaque;
}

/* The others hear frames of its own, without tags of virtual networks. */
static void read_wire(int wire)
{
    static uint8_t frame[NETDEV_MAX_FRAME_BYTES];
    ssize_t n;

    while ((n = recv(wire, frame, sizeof(frame), MSG_DONTWAIT)) > 0) {
        fuzz_expect(n >= 14 && n <= (ssize_t)MTU + 18);
        fuzz_expect(memcmp(frame + 6, own, sizeof(own)) == 0);
        fuzz_expect(load_be16(frame + 12) != 0x8100 && load_be16(frame + 12) != 0x88a8);
    }
}

static void stop(void *opaque)
{
    loop_stop(opaque);
}

static void turn(struct loop *loop)
{
    fuzz_expect(loop_defer(loop, stop, loop) == 0 && loop_run(loop) == 0);
}

/* Who sends: bit 0 the guest, bits 1 and 2 in its name, and to it. Bit 3: it leaves a checksum. */
static void pass(struct netdev *netdev, int wire, unsigned who, uint8_t *frame, size_t len)
{
    const struct netdev_csum csum = {.is_needed = (who & 8) != 0, .start = 34, .offset = 6};

    if ((who & 2) != 0 && len >= 12) {
        memcpy(frame + 6, own, sizeof(own));
    }
    if ((who & 4) != 0 && len >= 6) {
        memcpy(frame, own, sizeof(own));
    }
    if ((who & 1) != 0) {
        netdev_send(netdev, frame, len, &csum);
        netdev_send_done(netdev);
        read_wire(wire);
    } else if (len > 0) {
        (void)send(wire, frame, len, MSG_DONTWAIT);
    }
    turn(netdev_loop(netdev));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const struct netdev_card_ops ops = {receive, do_nothing, do_nothing};
    static uint8_t frame[NETDEV_MAX_FRAME_BYTES];
    struct netdev_tap_config config = {.mtu = MTU, .is_guarded = true};
    struct netdev *netdev = NULL;
    int ends[2];

    fuzz_expect(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    config.fd = ends[0];
    memcpy(config.mac, own, sizeof(own));
    fuzz_expect(netdev_tap_create(&config, NULL, &netdev) == 0);
    netdev_set_card(netdev, &ops, NULL);
    while (len >= 3) {
        size_t want = load_le16(data + 1) % (MTU + 32), have = len - 3;

        memset(frame, 0, want);
        memcpy(frame, data + 3, want < have ? want : have);
        pass(netdev, ends[1], data[0], frame, want);
        data += 3 + (want < have ? want : have);
        len = want < have ? have - want : 0;
    }
    netdev_destroy(netdev);
    (void)close(ends[1]);
    return 0;
}
