/* Entropy, balloon, memory, console and port: the first byte chooses. */
#include "fuzz_virtio.h"

static size_t on_write(void *opaque, const uint8_t *data, size_t len)
{
    (void)data;
    return opaque ? len / 2 : len;
}

static void on_may_input(void *opaque)
{
    (void)opaque;
}

static void on_guest_open(void *opaque, bool is_open)
{
    (void)opaque;
    (void)is_open;
}

static const struct virtio_console_ops console_ops = {on_write, on_may_input, on_guest_open};

static void console_host(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint8_t bytes[256] = {0};

    if (fuzz_u8(input) & 1) {
        (void)virtio_console_input(fuzz->dev, bytes, fuzz_u8(input));
    } else {
        virtio_console_output_ready(fuzz->dev);
    }
}

/* Mostly what a driver says on the control queue. */
static void control_request(struct fuzz *fuzz, struct fuzz_input *input)
{
    const struct test_seg out = {TEST_DATA, 8, false};
    const struct test_seg in = {TEST_DATA + 256, 8 + fuzz_u8(input), true};
    uint8_t message[8] = {fuzz_u8(input) & 1};

    message[4] = fuzz_u8(input) & 7;
    message[6] = fuzz_u8(input) & 1;
    test_write(&fuzz->machine, TEST_DATA, message, sizeof(message));
    test_make_available(&fuzz->driver, 2, test_chain(&fuzz->driver, 2, &in, 1));
    test_make_available(&fuzz->driver, 3, test_chain(&fuzz->driver, 3, &out, 1));
    test_kick(&fuzz->driver, 3);
    fuzz_pump(fuzz);
}

static void balloon_host(struct fuzz *fuzz, struct fuzz_input *input)
{
    struct virtio_balloon_stats stats;

    virtio_balloon_set_target(fuzz->dev, fuzz_u32(input));
    virtio_balloon_reclaim(fuzz->dev);
    virtio_balloon_stats(fuzz->dev, &stats);
    virtio_balloon_ask(fuzz->dev);
}

static void mem_host(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint64_t bytes = (uint64_t)fuzz_u8(input) * (VIRTIO_MEM_BLOCK_BYTES / 2);

    virtio_mem_set_requested(fuzz->dev, bytes);
    if ((bytes & VIRTIO_MEM_BLOCK_BYTES) != 0) {
        virtio_mem_unplug_all(fuzz->dev);
    }
}

static void on_plugged(void *opaque, uint64_t plugged_bytes)
{
    (void)opaque;
    if (plugged_bytes > TEST_PLUGGABLE_BYTES || plugged_bytes % VIRTIO_MEM_BLOCK_BYTES != 0) {
        abort();
    }
}

/* Mostly what a driver says. */
static void mem_request(struct fuzz *fuzz, struct fuzz_input *input)
{
    const struct test_seg segs[] = {{TEST_DATA, 24, false}, {TEST_DATA + 256, 10, true}};
    uint8_t how = fuzz_u8(input);
    uint8_t message[24] = {how & 7};
    uint64_t address = gmem_pluggable(fuzz->machine.gmem)->gpa +
                       fuzz_u8(input) * (VIRTIO_MEM_BLOCK_BYTES / ((how & 8) != 0 ? 8 : 1));

    for (unsigned i = 0; i < 8; i++) {
        message[8 + i] = (uint8_t)(address >> (8 * i));
    }
    message[16] = (how & 16) != 0 ? fuzz_u8(input) : 1;
    message[17] = (how & 32) != 0 ? fuzz_u8(input) : 0;
    test_write(&fuzz->machine, TEST_DATA, message, sizeof(message));
    test_make_available(&fuzz->driver, 0, test_chain(&fuzz->driver, 0, segs, 2));
    test_kick(&fuzz->driver, 0);
    fuzz_pump(fuzz);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fuzz_input input = {data, len};
    struct fuzz fuzz = {0};
    uint8_t kind = fuzz_u8(&input);
    int r;

    test_machine_init(&fuzz.machine);
    fuzz.loop = fuzz.machine.loop;
    if (kind % 3 == 0 && (kind & 0x40) != 0) {
        r = virtio_mem_create(&fuzz.machine.env, on_plugged, NULL, &fuzz.dev);
        fuzz.host = mem_host;
        fuzz.request = mem_request;
    } else if (kind % 3 == 0) {
        r = virtio_rng_create(&fuzz.machine.env, &fuzz.dev);
    } else if (kind % 3 == 1) {
        r = virtio_balloon_create(&fuzz.machine.env, NULL, NULL, &fuzz.dev);
        fuzz.host = balloon_host;
    } else if (kind & 0x40) {
        r = virtio_console_create_port(&fuzz.machine.env, "port", &console_ops,
                                       kind & 0x80 ? &fuzz : NULL, &fuzz.dev);
        fuzz.host = console_host;
        fuzz.request = control_request;
    } else {
        r = virtio_console_create(&fuzz.machine.env, &console_ops, kind & 0x80 ? &fuzz : NULL,
                                  &fuzz.dev);
        fuzz.host = console_host;
    }
    if (r != 0) {
        abort();
    }
    fuzz_run(&fuzz, &input);
    virtio_dev_destroy(fuzz.dev);
    test_machine_done(&fuzz.machine);
    return 0;
}
