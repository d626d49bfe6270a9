#include "fuzz_virtio.h"

#include "base/log.h"
#include "base/wire.h"

#define SLOT 1
#define MAX_STEPS 200u

uint8_t fuzz_u8(struct fuzz_input *input)
{
    if (input->len == 0) {
        return 0;
    }
    input->len--;
    return *input->data++;
}

uint16_t fuzz_u16(struct fuzz_input *input)
{
    uint16_t low = fuzz_u8(input);

    return (uint16_t)(low | fuzz_u8(input) << 8);
}

uint32_t fuzz_u32(struct fuzz_input *input)
{
    uint32_t low = fuzz_u16(input);

    return low | (uint32_t)fuzz_u16(input) << 16;
}

uint64_t fuzz_address(struct fuzz_input *input)
{
    uint8_t kind = fuzz_u8(input);

    if (kind < 0xf0) {
        return TEST_DATA + kind * 256u;
    }
    switch (kind) {
    case 0xf0:
        return TEST_RAM_BYTES - fuzz_u8(input);
    case 0xf1:
        return UINT64_MAX - fuzz_u8(input);
    case 0xf2:
        return 0x10000 + fuzz_u16(input); /* a ring */
    case 0xf3:
        return 0xc0000000u + fuzz_u16(input); /* where registers are */
    default:
        return fuzz_u32(input);
    }
}

static void stop_loop(void *opaque)
{
    loop_stop(opaque);
}

void fuzz_pump(struct fuzz *fuzz)
{
    if (loop_defer(fuzz->loop, stop_loop, fuzz->loop) != 0 || loop_run(fuzz->loop) != 0) {
        abort();
    }
}

static void restart(struct fuzz *fuzz, uint64_t features, uint16_t size, bool use_msix)
{
    test_mmio_write(&fuzz->machine, fuzz->driver.common + 20, 1, 0);
    if (fuzz->settle) {
        fuzz->settle(fuzz);
    }
    test_driver_negotiate(&fuzz->driver, features);
    test_driver_setup_queues(&fuzz->driver, size, use_msix);
    test_driver_ok(&fuzz->driver);
    fuzz_pump(fuzz);
}

static void step_desc(struct fuzz *fuzz, struct fuzz_input *input)
{
    struct test_queue *queue = &fuzz->driver.queues[fuzz->queue];
    uint64_t table = fuzz_u8(input) < 0xe0 ? queue->desc : TEST_DATA;
    uint16_t index = fuzz_u8(input);
    uint64_t address = fuzz_address(input);
    uint32_t len = fuzz_u8(input) < 0xf0 ? fuzz_u8(input) * 16u : fuzz_u32(input);

    test_desc(&fuzz->driver, table, index, address, len, fuzz_u8(input), fuzz_u8(input));
}

static void step_chain(struct fuzz *fuzz, struct fuzz_input *input)
{
    struct test_seg segs[8];
    unsigned count = 1 + fuzz_u8(input) % 8u;
    bool is_write = false;

    for (unsigned i = 0; i < count; i++) {
        uint8_t kind = fuzz_u8(input);

        is_write |= (kind & 1) != 0;
        segs[i].gpa = fuzz_address(input);
        segs[i].len = kind < 0xf8 ? fuzz_u8(input) * (kind & 2 ? 64u : 1u) : fuzz_u32(input);
        segs[i].is_write = kind >= 0xfc ? !is_write : is_write;
    }
    test_make_available(&fuzz->driver, fuzz->queue,
                        (fuzz_u8(input) & 1) ? test_chain_indirect(&fuzz->driver, fuzz->queue,
                                                                   TEST_DATA + 0x20000, segs, count)
                                             : test_chain(&fuzz->driver, fuzz->queue, segs, count));
}

static void step_memory(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint8_t bytes[64];
    uint64_t at = fuzz_address(input);
    size_t len = fuzz_u8(input) % sizeof(bytes);

    for (size_t i = 0; i < len; i++) {
        bytes[i] = fuzz_u8(input);
    }
    /* A guest's store outside its memory goes nowhere. */
    if (gmem_write(fuzz->machine.gmem, gpa(at), bytes, len) != 0) {
        return;
    }
}

static void step_register(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint8_t kind = fuzz_u8(input);
    unsigned size = 1u << (kind >> 4 & 3);
    uint64_t at =
        fuzz->driver.common + (kind & 0x80 ? fuzz_u16(input) & 0x3fffu : fuzz_u8(input) & 0x3fu);

    if (kind & 1) {
        test_mmio_write(&fuzz->machine, at, size, fuzz_u32(input));
    } else {
        (void)test_mmio_read(&fuzz->machine, at, size);
    }
}

static void step_config(struct fuzz *fuzz, struct fuzz_input *input)
{
    unsigned at = fuzz_u8(input) & 0xfcu;

    /* BARs stay where the registers are looked for. */
    if (at < 4 || (at >= 0x10 && at < 0x28)) {
        (void)test_config_read(&fuzz->machine, SLOT, at, 4);
        return;
    }
    test_config_write(&fuzz->machine, SLOT, at, 4, fuzz_u32(input));
    (void)test_config_read(&fuzz->machine, SLOT, at, 1u << (at & 1));
    test_config_write(&fuzz->machine, SLOT, 4, 2, 6);
}

static void step_ring(struct fuzz *fuzz, struct fuzz_input *input)
{
    struct test_queue *queue = &fuzz->driver.queues[fuzz->queue];
    uint8_t kind = fuzz_u8(input);
    uint16_t value = fuzz_u16(input);
    uint64_t at = kind & 1   ? queue->avail + 2
                  : kind & 2 ? queue->avail
                  : kind & 4 ? queue->avail + 4 + 2u * queue->size
                             : queue->avail + 4 + 2u * (value % 256u);

    if (gmem_store_le16(fuzz->machine.gmem, gpa(at), value) != 0) {
        abort();
    }
}

static void step(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint8_t op = fuzz_u8(input);

    switch (op % 16) {
    case 0:
        step_desc(fuzz, input);
        break;
    case 1:
    case 2:
        step_chain(fuzz, input);
        break;
    case 3:
        test_make_available(&fuzz->driver, fuzz->queue, fuzz_u8(input));
        break;
    case 4:
    case 5:
        test_kick(&fuzz->driver, fuzz->queue);
        fuzz_pump(fuzz);
        break;
    case 6:
        fuzz->queue = fuzz_u8(input) % fuzz->driver.queue_count;
        break;
    case 7:
        step_memory(fuzz, input);
        break;
    case 8:
        step_register(fuzz, input);
        break;
    case 9:
        step_config(fuzz, input);
        break;
    case 10:
        step_ring(fuzz, input);
        break;
    case 11:
        restart(fuzz, fuzz_u32(input) | F_INDIRECT, (uint16_t)(1u << (op >> 4)) % 512, op & 16);
        break;
    case 12:
        virtio_dev_reset(fuzz->dev);
        test_config_write(&fuzz->machine, SLOT, 4, 2, 6);
        break;
    case 13:
        if (fuzz->host) {
            fuzz->host(fuzz, input);
        }
        fuzz_pump(fuzz);
        break;
    default:
        if (fuzz->request) {
            fuzz->request(fuzz, input);
        }
        break;
    }
}

void fuzz_run(struct fuzz *fuzz, struct fuzz_input *input)
{
    log_set_level(LOG_LEVEL_ERROR);
    fuzz->machine.is_hostile = true;
    test_driver_probe(&fuzz->machine, SLOT, &fuzz->driver);
    restart(fuzz, ~0ull, 0, true);
    for (unsigned i = 0; i < MAX_STEPS && input->len > 0; i++) {
        step(fuzz, input);
    }
    test_kick(&fuzz->driver, fuzz->queue);
    fuzz_pump(fuzz);
    if (fuzz->settle) {
        fuzz->settle(fuzz);
    }
}
