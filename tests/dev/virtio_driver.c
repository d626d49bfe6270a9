#include "virtio_driver.h"

#include "base/wire.h"
#include "test.h"

#include <sched.h>
#include <string.h>

#define MMIO_BASE 0xc0000000ull
#define MMIO_LEN 0x10000000ull
#define MSI_ADDRESS 0xfee00000ull
#define QUEUE_AREA 0x10000ull
#define QUEUE_STRIDE 0x10000ull

enum common_reg {
    DEVICE_FEATURE_SELECT = 0,
    DEVICE_FEATURE = 4,
    DRIVER_FEATURE_SELECT = 8,
    DRIVER_FEATURE = 12,
    CONFIG_VECTOR = 16,
    NUM_QUEUES = 18,
    STATUS = 20,
    QUEUE_SELECT = 22,
    QUEUE_SIZE = 24,
    QUEUE_VECTOR = 26,
    QUEUE_ENABLE = 28,
    QUEUE_NOTIFY_OFF = 30,
    QUEUE_DESC = 32,
    QUEUE_DRIVER = 40,
    QUEUE_DEVICE = 48
};

static void on_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct test_machine *machine = opaque;

    if (machine->is_hostile && (address != MSI_ADDRESS || data >= TEST_VECTORS)) {
        return;
    }
    assert_int_equal(address, MSI_ADDRESS);
    assert_true(data < TEST_VECTORS);
    pthread_mutex_lock(&machine->lock);
    machine->msi_count[data]++;
    pthread_cond_broadcast(&machine->cond);
    pthread_mutex_unlock(&machine->lock);
}

static void on_line(void *opaque, unsigned gsi, bool level)
{
    struct test_machine *machine = opaque;

    (void)gsi;
    pthread_mutex_lock(&machine->lock);
    machine->line_raised += level && !machine->line;
    machine->line = level;
    pthread_cond_broadcast(&machine->cond);
    pthread_mutex_unlock(&machine->lock);
}

void test_machine_init(struct test_machine *machine)
{
    static const struct irq_ops ops = {.set_line = on_line, .send_msi = on_msi};
    const struct irq_router router = {.ops = &ops, .opaque = machine};

    memset(machine, 0, sizeof(*machine));
    pthread_mutex_init(&machine->lock, NULL);
    pthread_cond_init(&machine->cond, NULL);
    assert_int_equal(bus_create(&machine->bus), 0);
    assert_int_equal(
        gmem_create_pluggable(TEST_RAM_BYTES, TEST_PLUGGABLE_BYTES, NULL, &machine->gmem), 0);
    assert_int_equal(pci_host_create(machine->bus, &router, MMIO_BASE, MMIO_LEN, &machine->host),
                     0);
    assert_int_equal(loop_create(&machine->loop), 0);
    machine->env = (struct virtio_env){machine->host, machine->gmem, machine->loop};
}

static void *loop_main(void *opaque)
{
    assert_int_equal(loop_run(opaque), 0);
    return NULL;
}

void test_machine_start_loop(struct test_machine *machine)
{
    assert_int_equal(pthread_create(&machine->thread, NULL, loop_main, machine->loop), 0);
    machine->has_thread = true;
}

void test_machine_stop_loop(struct test_machine *machine)
{
    if (machine->has_thread) {
        loop_stop(machine->loop);
        pthread_join(machine->thread, NULL);
        machine->has_thread = false;
    }
}

void test_machine_done(struct test_machine *machine)
{
    test_machine_stop_loop(machine);
    loop_destroy(machine->loop);
    pci_host_destroy(machine->host);
    gmem_destroy(machine->gmem);
    bus_destroy(machine->bus);
    pthread_cond_destroy(&machine->cond);
    pthread_mutex_destroy(&machine->lock);
}

static void select_config(struct test_machine *machine, unsigned slot, unsigned offset)
{
    bus_write(machine->bus, BUS_PIO, 0xcf8, 4, 0x80000000u | (slot << 11) | (offset & 0xfcu));
}

uint32_t test_config_read(struct test_machine *machine, unsigned slot, unsigned offset,
                          unsigned size)
{
    select_config(machine, slot, offset);
    return (uint32_t)bus_read(machine->bus, BUS_PIO, 0xcfc + (offset & 3), size);
}

void test_config_write(struct test_machine *machine, unsigned slot, unsigned offset, unsigned size,
                       uint32_t value)
{
    select_config(machine, slot, offset);
    bus_write(machine->bus, BUS_PIO, 0xcfc + (offset & 3), size, value);
}

uint64_t test_mmio_read(struct test_machine *machine, uint64_t address, unsigned size)
{
    return bus_read(machine->bus, BUS_MMIO, address, size);
}

void test_mmio_write(struct test_machine *machine, uint64_t address, unsigned size, uint64_t value)
{
    bus_write(machine->bus, BUS_MMIO, address, size, value);
}

void test_write(struct test_machine *machine, uint64_t address, const void *data, size_t len)
{
    assert_int_equal(gmem_write(machine->gmem, gpa(address), data, len), 0);
}

void test_read(struct test_machine *machine, uint64_t address, void *data, size_t len)
{
    assert_int_equal(gmem_read(machine->gmem, gpa(address), data, len), 0);
}

static uint64_t bar_address(struct test_machine *machine, unsigned slot, unsigned bar)
{
    return test_config_read(machine, slot, 0x10 + 4 * bar, 4) & ~0xfu;
}

void test_driver_probe(struct test_machine *machine, unsigned slot, struct test_driver *driver)
{
    unsigned cap = test_config_read(machine, slot, 0x34, 1);

    memset(driver, 0, sizeof(*driver));
    driver->machine = machine;
    driver->slot = slot;
    test_config_write(machine, slot, 4, 2, 6); /* memory, bus master */
    assert_int_equal(test_config_read(machine, slot, 0, 2), 0x1af4);
    for (; cap != 0; cap = test_config_read(machine, slot, cap + 1, 1)) {
        unsigned type = test_config_read(machine, slot, cap + 3, 1);
        unsigned bar = test_config_read(machine, slot, cap + 4, 1);
        uint64_t at = bar_address(machine, slot, bar) + test_config_read(machine, slot, cap + 8, 4);

        if (test_config_read(machine, slot, cap, 1) != 9) {
            continue;
        }
        if (type == 1) {
            driver->common = at;
        } else if (type == 2) {
            driver->notify = at;
            driver->notify_multiplier = test_config_read(machine, slot, cap + 16, 4);
        } else if (type == 3) {
            driver->isr = at;
        } else if (type == 4) {
            driver->device = at;
        } else if (type == 5) {
            driver->window = cap;
        }
    }
    assert_true(driver->common && driver->notify && driver->isr && driver->window);
    driver->queue_count = (unsigned)test_mmio_read(machine, driver->common + NUM_QUEUES, 2);
    assert_true(driver->queue_count <= TEST_MAX_QUEUES);
}

uint8_t test_driver_status(struct test_driver *driver)
{
    return (uint8_t)test_mmio_read(driver->machine, driver->common + STATUS, 1);
}

static void add_status(struct test_driver *driver, uint8_t bits)
{
    test_mmio_write(driver->machine, driver->common + STATUS, 1,
                    (uint8_t)(test_driver_status(driver) | bits));
}

void test_driver_reset(struct test_driver *driver)
{
    test_mmio_write(driver->machine, driver->common + STATUS, 1, 0);
    while (test_driver_status(driver) != 0) {
        sched_yield();
    }
}

void test_driver_negotiate(struct test_driver *driver, uint64_t wanted)
{
    struct test_machine *machine = driver->machine;
    uint64_t offered = 0;

    test_driver_reset(driver);
    add_status(driver, STATUS_ACK);
    add_status(driver, STATUS_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        test_mmio_write(machine, driver->common + DEVICE_FEATURE_SELECT, 4, i);
        offered |= test_mmio_read(machine, driver->common + DEVICE_FEATURE, 4) << (32 * i);
    }
    driver->features = (wanted & offered) | F_VERSION_1;
    for (unsigned i = 0; i < 2; i++) {
        test_mmio_write(machine, driver->common + DRIVER_FEATURE_SELECT, 4, i);
        test_mmio_write(machine, driver->common + DRIVER_FEATURE, 4,
                        (uint32_t)(driver->features >> (32 * i)));
    }
    add_status(driver, STATUS_FEATURES);
    assert_true(test_driver_status(driver) & STATUS_FEATURES);
}

static void write_address(struct test_driver *driver, unsigned reg, uint64_t value)
{
    test_mmio_write(driver->machine, driver->common + reg, 4, (uint32_t)value);
    test_mmio_write(driver->machine, driver->common + reg + 4, 4, value >> 32);
}

/* Vector i sends data i; the last one is for configuration changes. */
static void enable_msix(struct test_driver *driver)
{
    struct test_machine *machine = driver->machine;
    unsigned cap = test_config_read(machine, driver->slot, 0x34, 1);
    uint64_t table;

    while (test_config_read(machine, driver->slot, cap, 1) != 0x11) {
        cap = test_config_read(machine, driver->slot, cap + 1, 1);
        assert_int_not_equal(cap, 0);
    }
    table =
        bar_address(machine, driver->slot, test_config_read(machine, driver->slot, cap + 4, 4) & 7);
    for (unsigned i = 0; i <= driver->queue_count; i++) {
        test_mmio_write(machine, table + 16 * i, 4, MSI_ADDRESS);
        test_mmio_write(machine, table + 16 * i + 4, 4, 0);
        test_mmio_write(machine, table + 16 * i + 8, 4, i);
        test_mmio_write(machine, table + 16 * i + 12, 4, 0);
    }
    test_config_write(machine, driver->slot, cap + 2, 2, 0x8000);
}

void test_driver_setup_queues(struct test_driver *driver, uint16_t size, bool use_msix)
{
    struct test_machine *machine = driver->machine;

    driver->has_msix = use_msix;
    if (use_msix) {
        enable_msix(driver);
        test_mmio_write(machine, driver->common + CONFIG_VECTOR, 2, driver->queue_count);
    }
    for (unsigned i = 0; i < driver->queue_count; i++) {
        struct test_queue *queue = &driver->queues[i];
        uint64_t base = QUEUE_AREA + i * QUEUE_STRIDE;

        test_mmio_write(machine, driver->common + QUEUE_SELECT, 2, i);
        if (size != 0) {
            test_mmio_write(machine, driver->common + QUEUE_SIZE, 2, size);
        }
        *queue = (struct test_queue){
            .size = (uint16_t)test_mmio_read(machine, driver->common + QUEUE_SIZE, 2),
            .desc = base,
            .avail = base + 0x8000,
            .used = base + 0xa000,
        };
        assert_int_equal(gmem_fill(machine->gmem, gpa(base), 0, QUEUE_STRIDE), 0);
        write_address(driver, QUEUE_DESC, queue->desc);
        write_address(driver, QUEUE_DRIVER, queue->avail);
        write_address(driver, QUEUE_DEVICE, queue->used);
        test_mmio_write(machine, driver->common + QUEUE_VECTOR, 2, use_msix ? i : 0xffff);
        test_mmio_write(machine, driver->common + QUEUE_ENABLE, 2, 1);
    }
}

void test_driver_ok(struct test_driver *driver)
{
    add_status(driver, STATUS_OK);
}

void test_driver_start(struct test_machine *machine, unsigned slot, uint64_t wanted,
                       struct test_driver *driver)
{
    test_driver_probe(machine, slot, driver);
    test_driver_negotiate(driver, wanted);
    test_driver_setup_queues(driver, 0, true);
    test_driver_ok(driver);
}

void test_driver_wait_broken(struct test_driver *driver)
{
    struct test_machine *machine = driver->machine;

    pthread_mutex_lock(&machine->lock);
    while (machine->msi_count[driver->queue_count] == 0) {
        pthread_cond_wait(&machine->cond, &machine->lock);
    }
    machine->msi_count[driver->queue_count] = 0;
    pthread_mutex_unlock(&machine->lock);
    assert_true(test_driver_status(driver) & STATUS_BROKEN);
}

void test_desc(struct test_driver *driver, uint64_t table, uint16_t index, uint64_t address,
               uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t raw[16];

    store_le64(raw, address);
    store_le32(raw + 8, len);
    store_le16(raw + 12, flags);
    store_le16(raw + 14, next);
    test_write(driver->machine, table + 16ull * index, raw, sizeof(raw));
}

uint16_t test_chain(struct test_driver *driver, unsigned index, const struct test_seg *segs,
                    unsigned count)
{
    struct test_queue *queue = &driver->queues[index];
    uint16_t head = queue->next_desc;

    for (unsigned i = 0; i < count; i++) {
        uint16_t at = queue->next_desc;

        queue->next_desc = (uint16_t)((at + 1) % queue->size);
        test_desc(driver, queue->desc, at, segs[i].gpa, segs[i].len,
                  (uint16_t)((segs[i].is_write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0)),
                  queue->next_desc);
    }
    return head;
}

uint16_t test_chain_indirect(struct test_driver *driver, unsigned index, uint64_t table_gpa,
                             const struct test_seg *segs, unsigned count)
{
    struct test_queue *queue = &driver->queues[index];
    uint16_t head = queue->next_desc;

    for (unsigned i = 0; i < count; i++) {
        test_desc(driver, table_gpa, (uint16_t)i, segs[i].gpa, segs[i].len,
                  (uint16_t)((segs[i].is_write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0)),
                  (uint16_t)(i + 1));
    }
    queue->next_desc = (uint16_t)((head + 1) % queue->size);
    test_desc(driver, queue->desc, head, table_gpa, count * 16, DESC_INDIRECT, 0);
    return head;
}

void test_make_available(struct test_driver *driver, unsigned index, uint16_t head)
{
    struct test_queue *queue = &driver->queues[index];
    struct gmem *gmem = driver->machine->gmem;

    assert_int_equal(
        gmem_store_le16(gmem, gpa(queue->avail + 4 + 2ull * (queue->avail_idx % queue->size)),
                        head),
        0);
    queue->avail_idx++;
    assert_int_equal(gmem_store_le16(gmem, gpa(queue->avail + 2), queue->avail_idx), 0);
}

void test_kick(struct test_driver *driver, unsigned index)
{
    test_mmio_write(driver->machine, driver->notify + index * driver->notify_multiplier, 2, index);
}

bool test_has_used(struct test_driver *driver, unsigned index)
{
    struct test_queue *queue = &driver->queues[index];
    uint16_t used;

    assert_int_equal(gmem_load_le16(driver->machine->gmem, gpa(queue->used + 2), &used), 0);
    return used != queue->used_seen;
}

uint32_t test_wait_used(struct test_driver *driver, unsigned index, uint16_t *ret_head)
{
    struct test_machine *machine = driver->machine;
    struct test_queue *queue = &driver->queues[index];
    uint8_t raw[8];

    pthread_mutex_lock(&machine->lock);
    while (!test_has_used(driver, index)) {
        pthread_cond_wait(&machine->cond, &machine->lock);
    }
    pthread_mutex_unlock(&machine->lock);
    test_read(machine, queue->used + 4 + 8ull * (queue->used_seen % queue->size), raw, sizeof(raw));
    queue->used_seen++;
    /* used_event: an interrupt for the very next element */
    assert_int_equal(gmem_store_le16(machine->gmem, gpa(queue->avail + 4 + 2ull * queue->size),
                                     queue->used_seen),
                     0);
    if (ret_head) {
        *ret_head = (uint16_t)load_le32(raw);
    }
    return load_le32(raw + 4);
}

uint32_t test_transfer(struct test_driver *driver, unsigned index, const struct test_seg *segs,
                       unsigned count)
{
    uint16_t head = test_chain(driver, index, segs, count);
    uint16_t got;
    uint32_t len;

    test_make_available(driver, index, head);
    test_kick(driver, index);
    len = test_wait_used(driver, index, &got);
    assert_int_equal(got, head);
    return len;
}
