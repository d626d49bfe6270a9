/* virtio-net on the user-mode network, cut off from the host. */
#include "base/wire.h"
#include "fuzz_virtio.h"
#include "netdev/netdev.h"

#include <string.h>

#define RX_AREA (TEST_DATA + 0x40000)

/* A frame to the gateway with a right type, and a buffer for its answer. */
static void request(struct fuzz *fuzz, struct fuzz_input *input)
{
    static const uint8_t start[] = {0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0};
    uint8_t kind = fuzz_u8(input);
    uint32_t len = fuzz_u8(input);
    uint8_t bytes[12 + 14 + 256] = {0};
    const struct test_seg out = {TEST_DATA, 12 + 14 + len, false};
    const struct test_seg in = {RX_AREA + kind * 4096u, 2048, true};

    memcpy(bytes + 12, start, sizeof(start));
    if (kind & 1) {
        memset(bytes + 12, 0xff, 6);
    }
    if (kind & 2) {
        store_le16(bytes + 24, 0x0608); /* ARP */
    }
    bytes[0] = kind >> 7; /* checksum left to the card */
    bytes[6] = 34;
    bytes[8] = 16;
    for (uint32_t i = 0; i < len; i++) {
        bytes[26 + i] = fuzz_u8(input);
    }
    if (kind & 4) { /* a good IP header gets further */
        uint32_t sum = 0;

        bytes[26] = 0x45;
        bytes[28] = 0;
        bytes[29] = (uint8_t)len;
        bytes[32] = bytes[33] = 0;
        bytes[36] = bytes[37] = 0;
        for (unsigned i = 0; i < 20; i += 2) {
            sum += (uint32_t)bytes[26 + i] << 8 | bytes[27 + i];
        }
        sum = (sum & 0xffff) + (sum >> 16);
        sum = ~((sum & 0xffff) + (sum >> 16));
        bytes[36] = (uint8_t)(sum >> 8);
        bytes[37] = (uint8_t)sum;
    }
    test_write(&fuzz->machine, TEST_DATA, bytes, sizeof(bytes));
    test_make_available(&fuzz->driver, 0, test_chain(&fuzz->driver, 0, &in, 1));
    test_make_available(&fuzz->driver, 1, test_chain(&fuzz->driver, 1, &out, 1));
    test_kick(&fuzz->driver, 1);
    fuzz_pump(fuzz);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const uint8_t no_mac[6];
    const struct netdev_user_config config = {.is_isolated = true};
    struct fuzz_input input = {data, len};
    struct fuzz fuzz = {.request = request};
    struct netdev *netdev;

    test_machine_init(&fuzz.machine);
    if (netdev_user_create(&config, NULL, &netdev) != 0 ||
        virtio_net_create(&fuzz.machine.env, netdev, no_mac, &fuzz.dev) != 0) {
        abort();
    }
    fuzz.loop = netdev_loop(netdev);
    fuzz_run(&fuzz, &input);
    virtio_dev_destroy(fuzz.dev);
    netdev_destroy(netdev);
    test_machine_done(&fuzz.machine);
    return 0;
}
