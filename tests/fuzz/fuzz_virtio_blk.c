/* virtio-blk on a small file in memory. */
#include "base/io.h"
#include "base/wire.h"
#include "block/block.h"
#include "fuzz_virtio.h"

#define DISK_BYTES 65536u

static void settle(struct fuzz *fuzz)
{
    block_drain(fuzz->opaque);
}

static void request(struct fuzz *fuzz, struct fuzz_input *input)
{
    static const uint8_t types[] = {0, 1, 4, 8, 11, 13};
    uint8_t header[16] = {0};
    uint8_t range[16] = {0};
    uint8_t kind = fuzz_u8(input);
    uint32_t sectors = fuzz_u8(input) % 16u;
    bool is_range = kind % 6 >= 4;
    struct test_seg segs[3] = {{TEST_DATA, 16, false},
                               {TEST_DATA + 0x400, is_range ? 16 : sectors * 512, kind % 6 == 0},
                               {TEST_DATA + 0x200, 1, true}};

    store_le32(header, types[kind % 6]);
    store_le64(header + 8, fuzz_u8(input) % 144u);
    test_write(&fuzz->machine, TEST_DATA, header, sizeof(header));
    if (is_range) {
        store_le64(range, fuzz_u8(input));
        store_le32(range + 8, sectors);
        store_le32(range + 12, kind >> 7);
        test_write(&fuzz->machine, TEST_DATA + 0x400, range, sizeof(range));
    }
    test_make_available(&fuzz->driver, 0, test_chain(&fuzz->driver, 0, segs, 3));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fuzz_input input = {data, len};
    struct fuzz fuzz = {.request = request, .settle = settle};
    struct block_config config = {.path = "disk", .fd = io_memfd("disk", DISK_BYTES)};
    struct block *block;

    test_machine_init(&fuzz.machine);
    if (config.fd < 0 || block_create(&config, NULL, &block) != 0 ||
        virtio_blk_create(
            &fuzz.machine.env,
            &(struct virtio_blk_config){.block = block, .serial = "fuzz", .queues = 2},
            &fuzz.dev) != 0) {
        abort();
    }
    fuzz.opaque = block;
    fuzz.loop = block_loop(block, 0);
    fuzz_run(&fuzz, &input);
    virtio_dev_destroy(fuzz.dev);
    block_destroy(block);
    test_machine_done(&fuzz.machine);
    return 0;
}
