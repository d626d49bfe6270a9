/* Entropy, balloon and console: the first byte chooses. */
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

static const struct virtio_console_ops console_ops = {on_write, on_may_input};

static void console_host(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint8_t bytes[256] = {0};

    if (fuzz_u8(input) & 1) {
        (void)virtio_console_input(fuzz->dev, bytes, fuzz_u8(input));
    } else {
        virtio_console_output_ready(fuzz->dev);
    }
}

static void balloon_host(struct fuzz *fuzz, struct fuzz_input *input)
{
    struct virtio_balloon_stats stats;

    virtio_balloon_set_target(fuzz->dev, fuzz_u32(input));
    virtio_balloon_reclaim(fuzz->dev);
    virtio_balloon_stats(fuzz->dev, &stats);
    virtio_balloon_ask(fuzz->dev);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fuzz_input input = {data, len};
    struct fuzz fuzz = {0};
    uint8_t kind = fuzz_u8(&input);
    int r;

    test_machine_init(&fuzz.machine);
    fuzz.loop = fuzz.machine.loop;
    if (kind % 3 == 0) {
        r = virtio_rng_create(&fuzz.machine.env, &fuzz.dev);
    } else if (kind % 3 == 1) {
        r = virtio_balloon_create(&fuzz.machine.env, NULL, NULL, &fuzz.dev);
        fuzz.host = balloon_host;
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
