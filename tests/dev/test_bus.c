/* Dispatch of ports and memory: overlap, sizes, splits, doorbells, unmapping under use. */
#include "base/io.h"
#include "base/thread.h"
#include "bus/bus.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

struct access {
    uint64_t offset;
    unsigned size;
    uint64_t value;
};

struct memory {
    uint8_t bytes[64];
    struct access log[16];
    unsigned count;
};

static uint64_t memory_read(void *opaque, uint64_t offset, unsigned size)
{
    struct memory *m = opaque;
    uint64_t value = 0;

    memcpy(&value, m->bytes + offset, size);
    m->log[m->count++ % 16] = (struct access){offset, size, value};
    return value;
}

static void memory_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct memory *m = opaque;

    memcpy(m->bytes + offset, &value, size);
    m->log[m->count++ % 16] = (struct access){offset, size, value};
}

#define OPS(min, max)                                                                      \
    {                                                                                      \
        .read = memory_read, .write = memory_write, .min_bytes = (min), .max_bytes = (max) \
    }
static const struct bus_ops ops_1_1 = OPS(1, 1);
static const struct bus_ops ops_1_4 = OPS(1, 4);
static const struct bus_ops ops_4_4 = OPS(4, 4);

struct fixture {
    struct bus *bus;
    struct memory memory;
    struct bus_range *range;
};

static void setup(struct fixture *f, const struct bus_ops *ops, uint64_t len)
{
    memset(f, 0, sizeof(*f));
    for (unsigned i = 0; i < sizeof(f->memory.bytes); i++) {
        f->memory.bytes[i] = (uint8_t)(0x10 + i);
    }
    assert_int_equal(bus_create(&f->bus), 0);
    assert_int_equal(bus_map(f->bus, BUS_MMIO, 0x1000, len, ops, &f->memory, "memory", &f->range),
                     0);
}

static void teardown(struct fixture *f)
{
    bus_unmap(f->bus, f->range);
    bus_destroy(f->bus);
}

static void test_map_overlap_is_refused(void **state)
{
    struct fixture f;
    struct bus_range *other = NULL;

    (void)state;
    setup(&f, &ops_1_4, 16);
    assert_int_equal(bus_map(f.bus, BUS_MMIO, 0x100f, 1, &ops_1_1, NULL, "x", &other), -EEXIST);
    assert_int_equal(bus_map(f.bus, BUS_MMIO, 0xff0, 0x11, &ops_1_1, NULL, "x", &other), -EEXIST);
    assert_int_equal(bus_map(f.bus, BUS_MMIO, 0x1000, 0, &ops_1_1, NULL, "x", &other), -EINVAL);
    assert_int_equal(bus_map(f.bus, BUS_MMIO, UINT64_MAX, 2, &ops_1_1, NULL, "x", &other), -EINVAL);
    assert_int_equal(bus_map(f.bus, BUS_PIO, 0xffff, 2, &ops_1_1, NULL, "x", &other), -EINVAL);
    assert_int_equal(bus_map(f.bus, BUS_MMIO, 0x1010, 1, &ops_1_1, NULL, "x", &other), 0);
    bus_unmap(f.bus, other);
    /* the same address in the other space is another address */
    assert_int_equal(bus_map(f.bus, BUS_PIO, 0x1000, 1, &ops_1_1, NULL, "x", &other), 0);
    bus_unmap(f.bus, other);
    teardown(&f);
}

static void test_unclaimed_reads_are_ones_and_writes_vanish(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, &ops_1_4, 16);
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0x2000, 4), 0xffffffff);
    assert_true(bus_read(f.bus, BUS_MMIO, 0x2000, 8) == UINT64_MAX);
    bus_write(f.bus, BUS_MMIO, 0x2000, 4, 0);
    assert_int_equal(f.memory.count, 0);
    /* half in, half out */
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0xffe, 4), 0x1110ffff);
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0x100e, 4), 0xffff1f1e);
    teardown(&f);
}

static void test_large_access_is_split_low_address_first(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, &ops_1_4, 16);
    bus_write(f.bus, BUS_MMIO, 0x1000, 8, 0x8877665544332211ull);
    assert_int_equal(f.memory.count, 2);
    assert_int_equal(f.memory.log[0].offset, 0);
    assert_int_equal(f.memory.log[0].value, 0x44332211);
    assert_int_equal(f.memory.log[1].offset, 4);
    assert_int_equal(f.memory.log[1].value, 0x88776655);
    assert_true(bus_read(f.bus, BUS_MMIO, 0x1000, 8) == 0x8877665544332211ull);
    teardown(&f);
}

static void test_misaligned_access_reaches_the_device_aligned(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, &ops_1_4, 16);
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0x1001, 4), 0x14131211);
    for (unsigned i = 0; i < f.memory.count; i++) {
        assert_int_equal(f.memory.log[i].offset % f.memory.log[i].size, 0);
    }
    teardown(&f);
}

static void test_small_access_reads_the_unit_and_writes_nothing(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, &ops_4_4, 6);
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0x1001, 1), 0x11);
    assert_int_equal(f.memory.log[0].offset, 0);
    assert_int_equal(f.memory.log[0].size, 4);
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0x1002, 2), 0x1312);
    bus_write(f.bus, BUS_MMIO, 0x1000, 2, 0);
    assert_int_equal(f.memory.bytes[0], 0x10);
    /* a unit that reaches beyond the range is not read */
    assert_int_equal(bus_read(f.bus, BUS_MMIO, 0x1004, 1), 0xff);
    teardown(&f);
}

static void test_doorbell_signals_instead_of_writing(void **state)
{
    struct fixture f;
    int any = io_eventfd();
    int seven = io_eventfd();

    (void)state;
    setup(&f, &ops_1_4, 16);
    assert_int_equal(bus_doorbell_add(f.bus, BUS_MMIO, 0x1004, 2, false, 0, any), 0);
    assert_int_equal(bus_doorbell_add(f.bus, BUS_MMIO, 0x1008, 0, true, 7, seven), 0);
    bus_write(f.bus, BUS_MMIO, 0x1004, 2, 99);
    assert_int_equal(io_eventfd_drain(any), 1);
    assert_int_equal(f.memory.count, 0);
    bus_write(f.bus, BUS_MMIO, 0x1004, 4, 99); /* another size is not the doorbell */
    assert_int_equal(io_eventfd_drain(any), 0);
    assert_int_equal(f.memory.count, 1);
    bus_write(f.bus, BUS_MMIO, 0x1008, 4, 6);
    assert_int_equal(io_eventfd_drain(seven), 0);
    bus_write(f.bus, BUS_MMIO, 0x1008, 1, 7);
    assert_int_equal(io_eventfd_drain(seven), 1);
    bus_doorbell_remove(f.bus, BUS_MMIO, 0x1008, seven);
    bus_write(f.bus, BUS_MMIO, 0x1008, 1, 7);
    assert_int_equal(io_eventfd_drain(seven), 0);
    bus_doorbell_remove(f.bus, BUS_MMIO, 0x1004, any);
    teardown(&f);
    close(any);
    close(seven);
}

struct hook_log {
    unsigned adds, removes;
    int result;
};

static int hook_set(void *opaque, enum bus_space space, uint64_t address, unsigned size_bytes,
                    bool match, uint64_t data, int fd, bool add)
{
    struct hook_log *log = opaque;

    (void)space, (void)address, (void)size_bytes, (void)match, (void)data, (void)fd;
    log->adds += add;
    log->removes += !add;
    return log->result;
}

static void test_doorbell_hook_hears_of_doorbells_it_took(void **state)
{
    struct fixture f;
    struct hook_log log = {0};
    const struct bus_doorbell_hook hook = {.set = hook_set, .opaque = &log};
    int fd = io_eventfd();

    (void)state;
    setup(&f, &ops_1_4, 16);
    bus_set_doorbell_hook(f.bus, &hook);
    assert_int_equal(bus_doorbell_add(f.bus, BUS_MMIO, 0x1004, 2, false, 0, fd), 0);
    bus_write(f.bus, BUS_MMIO, 0x1004, 2, 1); /* a write that comes here all the same rings it */
    assert_int_equal(io_eventfd_drain(fd), 1);
    bus_doorbell_remove(f.bus, BUS_MMIO, 0x1004, fd);
    assert_int_equal(log.adds, 1);
    assert_int_equal(log.removes, 1);
    log.result = -ENOSPC;
    assert_int_equal(bus_doorbell_add(f.bus, BUS_MMIO, 0x1004, 2, false, 0, fd), 0);
    bus_doorbell_remove(f.bus, BUS_MMIO, 0x1004, fd);
    assert_int_equal(log.adds, 2);
    assert_int_equal(log.removes, 1);
    teardown(&f);
    close(fd);
}

/* A callback that waits until the test says go on. */
struct slow {
    struct bus *bus;
    pthread_barrier_t inside;
    _Atomic bool finish, left;
};

static uint64_t slow_read(void *opaque, uint64_t offset, unsigned size)
{
    struct slow *slow = opaque;

    (void)offset, (void)size;
    (void)pthread_barrier_wait(&slow->inside);
    while (!atomic_load(&slow->finish)) {
        sched_yield();
    }
    atomic_store(&slow->left, true);
    return 0;
}

static void slow_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static void *reader(void *opaque)
{
    struct slow *slow = opaque;

    (void)bus_read(slow->bus, BUS_PIO, 0x10, 1);
    return NULL;
}

static void *finisher(void *opaque)
{
    atomic_store(&((struct slow *)opaque)->finish, true);
    return NULL;
}

static void test_unmap_waits_for_callbacks(void **state)
{
    static const struct bus_ops ops = {
        .read = slow_read, .write = slow_write, .min_bytes = 1, .max_bytes = 1};
    struct slow slow = {0};
    struct bus_range *range = NULL;
    pthread_t threads[2];

    (void)state;
    assert_int_equal(bus_create(&slow.bus), 0);
    assert_int_equal(pthread_barrier_init(&slow.inside, NULL, 2), 0);
    assert_int_equal(bus_map(slow.bus, BUS_PIO, 0x10, 1, &ops, &slow, "slow", &range), 0);
    assert_int_equal(thread_start(&threads[0], "reader", reader, &slow), 0);
    (void)pthread_barrier_wait(&slow.inside);
    assert_int_equal(thread_start(&threads[1], "finisher", finisher, &slow), 0);
    bus_unmap(slow.bus, range);
    assert_true(atomic_load(&slow.left));
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    pthread_barrier_destroy(&slow.inside);
    bus_destroy(slow.bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map_overlap_is_refused),
        cmocka_unit_test(test_unclaimed_reads_are_ones_and_writes_vanish),
        cmocka_unit_test(test_large_access_is_split_low_address_first),
        cmocka_unit_test(test_misaligned_access_reaches_the_device_aligned),
        cmocka_unit_test(test_small_access_reads_the_unit_and_writes_nothing),
        cmocka_unit_test(test_doorbell_signals_instead_of_writing),
        cmocka_unit_test(test_doorbell_hook_hears_of_doorbells_it_took),
        cmocka_unit_test(test_unmap_waits_for_callbacks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
