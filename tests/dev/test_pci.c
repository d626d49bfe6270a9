/* Configuration space as a guest probes it: BAR sizing and moves, MSI-X, lines, hooks. */
#include "base/io.h"
#include "bus/bus.h"
#include "bus/pci.h"
#include "irq_recorder.h"
#include "test.h"

#include <errno.h>
#include <string.h>

#define WINDOW 0xc0000000ull
#define WINDOW_BYTES 0x1000000ull
#define BAR0_BYTES 0x4000u
#define MSIX_BAR 1
#define BAR2_BYTES 0x10000u
#define VECTORS 3

enum { COMMAND = 4, BAR0 = 0x10, BAR1 = 0x14, BAR2 = 0x18, BAR3 = 0x1c };

struct fixture {
    struct bus *bus;
    struct irq_recorder irq;
    struct pci_host *host;
    struct pci_dev *dev;
    uint64_t written;
};

static uint64_t reg_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)size;
    return 0xabcd0000u + offset;
}

static void reg_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset, (void)size;
    ((struct fixture *)opaque)->written = value;
}

static const struct bus_ops reg_ops = {
    .read = reg_read, .write = reg_write, .min_bytes = 1, .max_bytes = 4};

static void config_address(struct fixture *f, unsigned slot, unsigned reg)
{
    bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0x80000000u | slot << 11 | (reg & 0xfc));
}

static uint32_t config_read(struct fixture *f, unsigned slot, unsigned reg, unsigned size)
{
    config_address(f, slot, reg);
    return (uint32_t)bus_read(f->bus, BUS_PIO, 0xcfc + (reg & 3), size);
}

static void config_write(struct fixture *f, unsigned slot, unsigned reg, unsigned size,
                         uint32_t value)
{
    config_address(f, slot, reg);
    bus_write(f->bus, BUS_PIO, 0xcfc + (reg & 3), size, value);
}

static struct pci_dev_config dev_config(struct fixture *f)
{
    return (struct pci_dev_config){
        .name = "test function",
        .vendor_id = 0x1af4,
        .device_id = 0x1042,
        .subsystem_vendor_id = 0x1af4,
        .subsystem_id = 7,
        .class_code = 1,
        .bars = {[0] = {.size_bytes = BAR0_BYTES, .ops = &reg_ops, .opaque = f},
                 [2] = {.size_bytes = BAR2_BYTES, .is_64bit = true, .ops = &reg_ops, .opaque = f}},
        .msix_vectors = VECTORS,
        .msix_bar = MSIX_BAR,
        .interrupt_pin = 1,
    };
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct pci_dev_config config = dev_config(f);

    assert_non_null(f);
    recorder_init(&f->irq);
    assert_int_equal(bus_create(&f->bus), 0);
    assert_int_equal(pci_host_create(f->bus, &f->irq.router, WINDOW, WINDOW_BYTES, &f->host), 0);
    assert_int_equal(pci_dev_create(f->host, &config, &f->dev), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    pci_dev_destroy(f->dev);
    pci_host_destroy(f->host);
    bus_destroy(f->bus);
    free(f);
    return 0;
}

static void test_identity_is_read_and_cannot_be_written(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pci_dev_slot(f->dev), 1);
    assert_int_equal(config_read(f, 1, 0, 4), 0x10421af4);
    config_write(f, 1, 0, 4, 0);
    assert_int_equal(config_read(f, 1, 2, 2), 0x1042);
    assert_int_equal(config_read(f, 1, 0x2c, 4), 0x00071af4);
    assert_int_equal(config_read(f, 0, 0xb, 1), 0x06); /* the host bridge */
    assert_int_equal(config_read(f, 2, 0, 4), 0xffffffff);
    bus_write(f->bus, BUS_PIO, 0xcf8, 4, 1u << 11); /* without the enable bit */
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
    bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0x80000900); /* function 1 of slot 1 */
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
    bus_write(f->bus, BUS_PIO, 0xcf8, 4, 0x80010800); /* bus 1 */
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
}

static void test_bars_are_sized_by_writing_ones(void **state)
{
    struct fixture *f = *state;
    uint32_t old = config_read(f, 1, BAR0, 4);

    config_write(f, 1, BAR0, 4, 0xffffffff);
    assert_int_equal(config_read(f, 1, BAR0, 4), 0xffffc000);
    config_write(f, 1, BAR0, 4, old);
    config_write(f, 1, BAR2, 4, 0xffffffff);
    config_write(f, 1, BAR3, 4, 0xffffffff);
    assert_int_equal(config_read(f, 1, BAR2, 4), 0xffff0004);
    assert_int_equal(config_read(f, 1, BAR3, 4), 0xffffffff);
    config_write(f, 1, 0x20, 4, 0xffffffff); /* BAR 4 does not exist */
    assert_int_equal(config_read(f, 1, 0x20, 4), 0);
}

static void test_bar_follows_its_register_and_the_command(void **state)
{
    struct fixture *f = *state;
    uint64_t first = config_read(f, 1, BAR0, 4) & ~0xfu;

    assert_true(first >= WINDOW && first + BAR0_BYTES <= WINDOW + WINDOW_BYTES);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, first + 8, 4), 0xabcd0008);
    config_write(f, 1, BAR0, 4, 0xd0000000);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, first + 8, 4), 0xffffffff);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, 0xd0000008, 4), 0xabcd0008);
    config_write(f, 1, COMMAND, 2, 0);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, 0xd0000008, 4), 0xffffffff);
    config_write(f, 1, COMMAND, 2, 2);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, 0xd0000008, 4), 0xabcd0008);
    config_write(f, 1, BAR2, 4, 0);
    config_write(f, 1, BAR3, 4, 0x12);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, 0x1200000004ull, 4), 0xabcd0004);
}

static void test_bar_laid_over_another_waits_until_it_is_free(void **state)
{
    struct fixture *f = *state;
    uint64_t bar2 = config_read(f, 1, BAR2, 4) & ~0xfu;

    config_write(f, 1, BAR0, 4, (uint32_t)bar2);
    f->written = 0;
    bus_write(f->bus, BUS_MMIO, bar2, 4, 5); /* the first comer still answers */
    assert_int_equal(f->written, 5);
    config_write(f, 1, BAR3, 4, 1); /* it moves away */
    assert_int_equal(bus_read(f->bus, BUS_MMIO, bar2 + 4, 4), 0xabcd0004);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, bar2 + BAR0_BYTES, 4), 0xffffffff);
}

static unsigned find_cap(struct fixture *f, uint8_t id)
{
    unsigned at = config_read(f, 1, 0x34, 1);

    while (at != 0 && config_read(f, 1, at, 1) != id) {
        at = config_read(f, 1, at + 1, 1);
    }
    return at;
}

static uint64_t msix_table(struct fixture *f)
{
    return config_read(f, 1, BAR1, 4) & ~0xfu;
}

static void entry_write(struct fixture *f, unsigned vector, uint32_t address, uint32_t data,
                        uint32_t control)
{
    uint64_t entry = msix_table(f) + vector * 16u;

    bus_write(f->bus, BUS_MMIO, entry, 4, address);
    bus_write(f->bus, BUS_MMIO, entry + 4, 4, 0);
    bus_write(f->bus, BUS_MMIO, entry + 8, 4, data);
    bus_write(f->bus, BUS_MMIO, entry + 12, 4, control);
}

static uint64_t pending_bits(struct fixture *f)
{
    return bus_read(f->bus, BUS_MMIO, msix_table(f) + 0x800, 8);
}

static void test_msix_sends_masks_and_remembers(void **state)
{
    struct fixture *f = *state;
    unsigned cap = find_cap(f, 0x11);

    assert_int_not_equal(cap, 0);
    assert_int_equal(config_read(f, 1, cap + 2, 2), VECTORS - 1);
    assert_int_equal(config_read(f, 1, cap + 4, 4), MSIX_BAR);
    pci_msix_notify(f->dev, 0); /* disabled: lost */
    assert_int_equal(f->irq.message_count, 0);

    config_write(f, 1, cap + 2, 2, 0x8000);
    assert_true(pci_msix_enabled(f->dev));
    pci_msix_notify(f->dev, 1); /* entries come up masked */
    assert_int_equal(f->irq.message_count, 0);
    assert_int_equal(pending_bits(f), 2);
    entry_write(f, 1, 0xfee00000, 0x41, 0);
    assert_int_equal(f->irq.message_count, 1);
    assert_int_equal(f->irq.data[0], 0x41);
    assert_int_equal(pending_bits(f), 0);

    config_write(f, 1, cap + 2, 2, 0xc000); /* function mask */
    pci_msix_notify(f->dev, 1);
    pci_msix_notify(f->dev, 1);
    assert_int_equal(f->irq.message_count, 1);
    config_write(f, 1, cap + 2, 2, 0x8000);
    assert_int_equal(f->irq.message_count, 2); /* once */
    pci_msix_notify(f->dev, VECTORS);          /* no such vector */
    assert_int_equal(f->irq.message_count, 2);
    bus_write(f->bus, BUS_MMIO, msix_table(f) + 0x800, 4, 0xffffffff); /* read-only */
    assert_int_equal(pending_bits(f), 0);
}

static void test_lines_are_shared_and_yield_to_msix(void **state)
{
    struct fixture *f = *state;
    struct pci_dev *others[8] = {0};
    struct pci_dev_config config = {.name = "other", .vendor_id = 1, .interrupt_pin = 1};
    unsigned gsi = pci_slot_gsi(1);

    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(pci_dev_create(f->host, &config, &others[i]), 0);
    }
    assert_int_equal(pci_slot_gsi(pci_dev_slot(others[7])), gsi);
    pci_set_intx(f->dev, true);
    pci_set_intx(others[7], true);
    pci_set_intx(f->dev, false);
    assert_true(f->irq.level[gsi]);
    pci_set_intx(others[7], false);
    assert_false(f->irq.level[gsi]);

    pci_set_intx(f->dev, true);
    assert_int_equal(config_read(f, 1, 6, 2) & 8, 8); /* interrupt status */
    config_write(f, 1, COMMAND, 2, 0x402);            /* INTx disable */
    assert_false(f->irq.level[gsi]);
    config_write(f, 1, COMMAND, 2, 2);
    assert_true(f->irq.level[gsi]);
    config_write(f, 1, find_cap(f, 0x11) + 2, 2, 0x8000);
    assert_false(f->irq.level[gsi]);
    for (unsigned i = 0; i < 8; i++) {
        pci_dev_destroy(others[i]);
    }
}

static void test_doorbell_moves_with_its_bar(void **state)
{
    struct fixture *f = *state;
    uint64_t first = config_read(f, 1, BAR0, 4) & ~0xfu;
    int fd = io_eventfd();

    assert_int_equal(pci_dev_add_doorbell(f->dev, 0, BAR0_BYTES, 2, fd), -EINVAL);
    assert_int_equal(pci_dev_add_doorbell(f->dev, 0, 0x100, 2, fd), 0);
    bus_write(f->bus, BUS_MMIO, first + 0x100, 2, 3);
    assert_int_equal(io_eventfd_drain(fd), 1);
    config_write(f, 1, BAR0, 4, 0xd0000000);
    bus_write(f->bus, BUS_MMIO, first + 0x100, 2, 3);
    assert_int_equal(io_eventfd_drain(fd), 0);
    bus_write(f->bus, BUS_MMIO, 0xd0000100, 2, 3);
    assert_int_equal(io_eventfd_drain(fd), 1);
    pci_dev_reset(f->dev);
    bus_write(f->bus, BUS_MMIO, first + 0x100, 2, 3);
    assert_int_equal(io_eventfd_drain(fd), 1);
    pci_dev_destroy(f->dev);
    f->dev = NULL;
    close(fd);
}

static void test_vendor_capability_and_hook(void **state)
{
    struct fixture *f = *state;
    const uint8_t body[14] = {16, 5};
    int at = pci_dev_add_vendor_cap(f->dev, body, sizeof(body));

    assert_true(at >= 0x40);
    assert_int_equal(find_cap(f, 9), at);
    assert_int_equal(config_read(f, 1, (unsigned)at + 2, 1), 16);
    assert_int_equal(pci_dev_hook_config(f->dev, (unsigned)at + 12, 4, &reg_ops, f), 0);
    assert_int_equal(pci_dev_hook_config(f->dev, 0xfe, 4, &reg_ops, f), -EINVAL);
    assert_int_equal(config_read(f, 1, (unsigned)at + 14, 2), 2);
    config_write(f, 1, (unsigned)at + 12, 4, 0x1234);
    assert_int_equal(f->written, 0x1234);
    while (pci_dev_add_vendor_cap(f->dev, body, sizeof(body)) > 0) {
    }
    assert_int_equal(pci_dev_add_vendor_cap(f->dev, body, sizeof(body)), -ENOSPC);
}

static void test_reset_equals_freshly_created(void **state)
{
    struct fixture *f = *state;
    uint8_t fresh[256], now[256];

    for (unsigned i = 0; i < 256; i++) {
        fresh[i] = (uint8_t)config_read(f, 1, i, 1);
    }
    for (unsigned i = 0; i < 256; i += 4) {
        config_write(f, 1, i, 4, 0xdeadbeef);
    }
    entry_write(f, 0, 0xfee00000, 0x30, 0);
    pci_set_intx(f->dev, true);
    pci_host_reset(f->host);
    for (unsigned i = 0; i < 256; i++) {
        now[i] = (uint8_t)config_read(f, 1, i, 1);
    }
    assert_memory_equal(fresh, now, 256);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, msix_table(f) + 12, 4), 1);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, msix_table(f), 4), 0);
    assert_false(pci_bus_master(f->dev));
    assert_false(f->irq.level[pci_slot_gsi(1)]);
}

static void test_bus_is_full_after_all_slots(void **state)
{
    struct fixture *f = *state;
    struct pci_dev *devs[32] = {0};
    struct pci_dev *more = NULL;
    struct pci_dev_config config = {.name = "other", .vendor_id = 1};

    for (unsigned i = 2; i < 32; i++) {
        assert_int_equal(pci_dev_create(f->host, &config, &devs[i]), 0);
    }
    assert_int_equal(pci_dev_create(f->host, &config, &more), -ENOSPC);
    for (unsigned i = 2; i < 32; i++) {
        pci_dev_destroy(devs[i]);
    }
    config.bars[0] = (struct pci_bar_config){.size_bytes = WINDOW_BYTES * 2, .ops = &reg_ops};
    assert_int_equal(pci_dev_create(f->host, &config, &more), -ENOSPC);
    config.bars[0].size_bytes = 5000;
    assert_int_equal(pci_dev_create(f->host, &config, &more), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_identity_is_read_and_cannot_be_written),
        TEST(test_bars_are_sized_by_writing_ones),
        TEST(test_bar_follows_its_register_and_the_command),
        TEST(test_bar_laid_over_another_waits_until_it_is_free),
        TEST(test_msix_sends_masks_and_remembers),
        TEST(test_lines_are_shared_and_yield_to_msix),
        TEST(test_doorbell_moves_with_its_bar),
        TEST(test_vendor_capability_and_hook),
        TEST(test_reset_equals_freshly_created),
        TEST(test_bus_is_full_after_all_slots),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
