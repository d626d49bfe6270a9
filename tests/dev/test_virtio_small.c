/* The small virtio devices: entropy, balloon and console. */
#include "base/wire.h"
#include "test.h"
#include "virtio_driver.h"

#include <stdio.h>
#include <string.h>

#define SLOT 1
#define MIB (1ull << 20)

struct fixture {
    struct test_machine machine;
    struct virtio_dev *dev;
    struct test_driver driver;
    /* the console's other side */
    pthread_mutex_t lock;
    pthread_cond_t cond;
    uint8_t out[65536];
    size_t out_len;
    size_t out_room;
    unsigned may_input;
    bool is_open;
    unsigned open_changes;
    _Atomic uint64_t plugged;
};

static size_t on_write(void *opaque, const uint8_t *data, size_t len)
{
    struct fixture *f = opaque;
    size_t taken;

    pthread_mutex_lock(&f->lock);
    taken = len < f->out_room ? len : f->out_room;
    memcpy(f->out + f->out_len, data, taken);
    f->out_len += taken;
    f->out_room -= taken;
    pthread_cond_broadcast(&f->cond);
    pthread_mutex_unlock(&f->lock);
    return taken;
}

static void on_may_input(void *opaque)
{
    struct fixture *f = opaque;

    pthread_mutex_lock(&f->lock);
    f->may_input++;
    pthread_cond_broadcast(&f->cond);
    pthread_mutex_unlock(&f->lock);
}

static void on_guest_open(void *opaque, bool is_open)
{
    struct fixture *f = opaque;

    pthread_mutex_lock(&f->lock);
    f->is_open = is_open;
    f->open_changes++;
    pthread_cond_broadcast(&f->cond);
    pthread_mutex_unlock(&f->lock);
}

static const struct virtio_console_ops console_ops = {on_write, on_may_input, on_guest_open};

static struct fixture *create(void)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->cond, NULL);
    test_machine_init(&f->machine);
    return f;
}

static int setup_rng(void **state)
{
    struct fixture *f = create();

    assert_int_equal(virtio_rng_create(&f->machine.env, &f->dev), 0);
    test_machine_start_loop(&f->machine);
    *state = f;
    return 0;
}

static void on_plugged(void *opaque, uint64_t plugged_bytes)
{
    atomic_store(&((struct fixture *)opaque)->plugged, plugged_bytes);
}

static int setup_mem(void **state)
{
    struct fixture *f = create();

    assert_int_equal(virtio_mem_create(&f->machine.env, on_plugged, f, &f->dev), 0);
    test_machine_start_loop(&f->machine);
    *state = f;
    return 0;
}

static int setup_balloon(void **state)
{
    struct fixture *f = create();

    assert_int_equal(virtio_balloon_create(&f->machine.env, NULL, NULL, &f->dev), 0);
    test_machine_start_loop(&f->machine);
    *state = f;
    return 0;
}

/* The loop is left to the test: console functions belong to its thread. */
static int setup_console(void **state)
{
    struct fixture *f = create();

    f->out_room = sizeof(f->out);
    assert_int_equal(virtio_console_create(&f->machine.env, &console_ops, f, &f->dev), 0);
    *state = f;
    return 0;
}

static int setup_port(void **state)
{
    struct fixture *f = create();

    f->out_room = sizeof(f->out);
    assert_int_equal(
        virtio_console_create_port(&f->machine.env, "org.example.port", &console_ops, f, &f->dev),
        0);
    test_machine_start_loop(&f->machine);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    test_machine_stop_loop(&f->machine);
    virtio_dev_destroy(f->dev);
    test_machine_done(&f->machine);
    pthread_cond_destroy(&f->cond);
    pthread_mutex_destroy(&f->lock);
    free(f);
    return 0;
}

static void test_rng_fills_buffers_with_fresh_bytes(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {TEST_DATA, 64, true};
    uint8_t first[64], second[64];
    uint8_t zero[64] = {0};

    test_driver_start(&f->machine, SLOT, F_EVENT_IDX, &f->driver);
    assert_int_equal(test_config_read(&f->machine, SLOT, 2, 2), 0x1044);
    assert_int_equal(test_transfer(&f->driver, 0, &seg, 1), 64);
    test_read(&f->machine, TEST_DATA, first, sizeof(first));
    assert_int_equal(test_transfer(&f->driver, 0, &seg, 1), 64);
    test_read(&f->machine, TEST_DATA, second, sizeof(second));
    assert_memory_not_equal(first, zero, 64);
    assert_memory_not_equal(first, second, 64);
}

static void test_rng_bounds_one_request(void **state)
{
    struct fixture *f = *state;
    const struct test_seg huge[] = {{TEST_DATA, 0x10000, true}, {TEST_DATA, 0xfffe0000, true}};
    const struct test_seg outside = {TEST_RAM_BYTES - 8, 64, true};
    uint32_t len;

    test_driver_start(&f->machine, SLOT, 0, &f->driver);
    len = test_transfer(&f->driver, 0, huge, 2);
    assert_in_range(len, 1, 65536);
    test_make_available(&f->driver, 0, test_chain(&f->driver, 0, &outside, 1));
    test_kick(&f->driver, 0);
    test_driver_wait_broken(&f->driver);
}

static void assert_page(struct fixture *f, uint64_t address, uint8_t byte)
{
    uint8_t page[GMEM_PAGE_BYTES];

    test_read(&f->machine, address, page, sizeof(page));
    for (unsigned i = 0; i < sizeof(page); i++) {
        assert_int_equal(page[i], byte);
    }
}

static void send_pfns(struct fixture *f, unsigned queue, const uint32_t *pfns, uint32_t count)
{
    const struct test_seg seg = {TEST_DATA, count * 4, false};

    for (uint32_t i = 0; i < count; i++) {
        uint8_t raw[4];

        store_le32(raw, pfns[i]);
        test_write(&f->machine, TEST_DATA + i * 4, raw, 4);
    }
    (void)test_transfer(&f->driver, queue, &seg, 1);
}

static void test_inflated_pages_are_given_back(void **state)
{
    struct fixture *f = *state;
    const uint64_t base = 16 * MIB;
    const uint32_t first = (uint32_t)(base >> 12);
    /* upward, downward, alone, and two that are no memory */
    const uint32_t pfns[] = {first,     first + 1,  first + 2,  first + 7,
                             first + 6, first + 10, 0xffffffff, (uint32_t)(TEST_RAM_BYTES >> 12)};
    struct virtio_balloon_stats stats;

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    assert_int_equal(gmem_fill(f->machine.gmem, gpa(base), 0xaa, MIB), 0);
    send_pfns(f, 0, pfns, ARRAY_LEN(pfns));
    for (unsigned i = 0; i < 16; i++) {
        bool given = i <= 2 || i == 6 || i == 7 || i == 10;

        assert_page(f, base + i * 4096u, given ? 0 : 0xaa);
    }
    virtio_balloon_stats(f->dev, &stats);
    assert_int_equal(stats.discarded_bytes, 6 * 4096);
    send_pfns(f, 1, pfns, 3); /* deflate: usable again */
    assert_int_equal(gmem_fill(f->machine.gmem, gpa(base), 0x55, 4096), 0);
    assert_page(f, base, 0x55);
}

static void test_target_reaches_the_guest_and_actual_comes_back(void **state)
{
    struct fixture *f = *state;
    struct virtio_balloon_stats stats;
    unsigned generation;

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    generation = (unsigned)test_mmio_read(&f->machine, f->driver.common + 21, 1);
    virtio_balloon_set_target(f->dev, 4 * MIB + 5);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device, 4), 1024);
    assert_int_not_equal(test_mmio_read(&f->machine, f->driver.common + 21, 1), generation);
    assert_int_equal(f->machine.msi_count[f->driver.queue_count], 1);
    test_mmio_write(&f->machine, f->driver.device + 4, 4, 1000);
    test_mmio_write(&f->machine, f->driver.device, 4, 77); /* not the driver's to write */
    virtio_balloon_stats(f->dev, &stats);
    assert_int_equal(stats.target_bytes, 4 * MIB);
    assert_int_equal(stats.actual_bytes, 1000 * 4096);
    virtio_balloon_set_target(f->dev, UINT64_MAX);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device, 4),
                     (TEST_RAM_BYTES + TEST_PLUGGABLE_BYTES) >> 12);
}

static void test_reported_free_pages_are_given_back(void **state)
{
    struct fixture *f = *state;
    const struct test_seg segs[] = {{8 * MIB, 2 * MIB, true},
                                    {12 * MIB, MIB, true},
                                    {TEST_RAM_BYTES - 4096, 8192, true}}; /* not all of it memory */

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    assert_int_equal(gmem_fill(f->machine.gmem, gpa(8 * MIB), 0xaa, 6 * MIB), 0);
    (void)test_transfer(&f->driver, 4, segs, 3);
    assert_page(f, 8 * MIB, 0);
    assert_page(f, 10 * MIB - 4096, 0);
    assert_page(f, 10 * MIB, 0xaa);
    assert_page(f, 12 * MIB, 0);
    assert_page(f, 13 * MIB, 0xaa);
}

static void send_hint_cmd(struct fixture *f, uint32_t cmd)
{
    const struct test_seg seg = {TEST_DATA, 4, false};
    uint8_t raw[4];

    store_le32(raw, cmd);
    test_write(&f->machine, TEST_DATA, raw, 4);
    (void)test_transfer(&f->driver, 3, &seg, 1);
}

static void test_reclaim_takes_hinted_pages_of_its_own_command_only(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {8 * MIB, 4096, true};
    const struct test_seg other = {9 * MIB, 4096, true};
    uint32_t cmd;

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    assert_int_equal(gmem_fill(f->machine.gmem, gpa(8 * MIB), 0xaa, 2 * MIB), 0);
    (void)test_transfer(&f->driver, 3, &seg, 1); /* nobody asked */
    assert_page(f, 8 * MIB, 0xaa);
    virtio_balloon_reclaim(f->dev);
    cmd = (uint32_t)test_mmio_read(&f->machine, f->driver.device + 8, 4);
    assert_true(cmd >= 2);
    send_hint_cmd(f, cmd + 1); /* another command */
    (void)test_transfer(&f->driver, 3, &seg, 1);
    assert_page(f, 8 * MIB, 0xaa);
    send_hint_cmd(f, cmd);
    (void)test_transfer(&f->driver, 3, &seg, 1);
    assert_page(f, 8 * MIB, 0);
    send_hint_cmd(f, 0);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 8, 4), 1); /* done */
    (void)test_transfer(&f->driver, 3, &other, 1);
    assert_page(f, 9 * MIB, 0xaa);
}

static void test_statistics_travel_in_the_guests_buffer(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {TEST_DATA, 30, false};
    uint8_t raw[30];
    struct virtio_balloon_stats stats;
    uint16_t head;

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    for (unsigned i = 0; i < 3; i++) {
        store_le16(raw + 10 * i, (uint16_t)(4 + i));
        store_le64(raw + 10 * i + 2, (i + 1) * MIB);
    }
    test_write(&f->machine, TEST_DATA, raw, sizeof(raw));
    test_make_available(&f->driver, 2, test_chain(&f->driver, 2, &seg, 1));
    test_kick(&f->driver, 2);
    do { /* the device has read them when it can give the buffer back */
        virtio_balloon_stats(f->dev, &stats);
    } while (!stats.has_guest_stats);
    assert_int_equal(stats.guest_free_bytes, MIB);
    assert_int_equal(stats.guest_total_bytes, 2 * MIB);
    assert_int_equal(stats.guest_available_bytes, 3 * MIB);
    virtio_balloon_ask(f->dev);
    (void)test_wait_used(&f->driver, 2, &head);
}

static void wait_output(struct fixture *f, size_t len)
{
    pthread_mutex_lock(&f->lock);
    while (f->out_len < len) {
        pthread_cond_wait(&f->cond, &f->lock);
    }
    pthread_mutex_unlock(&f->lock);
}

static void test_console_output_arrives_in_order(void **state)
{
    struct fixture *f = *state;
    char text[9000];

    test_machine_start_loop(&f->machine);
    test_driver_start(&f->machine, SLOT, F_EVENT_IDX, &f->driver);
    for (unsigned i = 0; i < sizeof(text); i++) {
        text[i] = (char)('a' + i % 26);
    }
    test_write(&f->machine, TEST_DATA, text, sizeof(text));
    for (unsigned i = 0; i < 3; i++) {
        const struct test_seg segs[] = {{TEST_DATA + i * 3000, 1000, false},
                                        {TEST_DATA + i * 3000 + 1000, 2000, false}};

        (void)test_transfer(&f->driver, 1, segs, 2);
    }
    wait_output(f, sizeof(text));
    assert_memory_equal(f->out, text, sizeof(text));
}

static void test_console_waits_while_the_other_side_is_full(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {TEST_DATA, 10000, false};

    f->out_room = 5000;
    test_machine_start_loop(&f->machine);
    test_driver_start(&f->machine, SLOT, 0, &f->driver);
    assert_int_equal(gmem_fill(f->machine.gmem, gpa(TEST_DATA), 'x', 10000), 0);
    test_make_available(&f->driver, 1, test_chain(&f->driver, 1, &seg, 1));
    test_kick(&f->driver, 1);
    wait_output(f, 5000);
    assert_false(test_has_used(&f->driver, 1));
    pthread_mutex_lock(&f->lock);
    f->out_room = 5000;
    pthread_mutex_unlock(&f->lock);
    virtio_console_output_ready(f->dev);
    (void)test_wait_used(&f->driver, 1, NULL);
    assert_int_equal(f->out_len, 10000);
}

struct input {
    struct fixture *f;
    const char *text;
    size_t len;
    size_t taken;
    bool is_done;
};

static void do_input(void *opaque)
{
    struct input *input = opaque;
    size_t taken = virtio_console_input(input->f->dev, (const uint8_t *)input->text, input->len);

    pthread_mutex_lock(&input->f->lock);
    input->taken = taken;
    input->is_done = true;
    pthread_cond_broadcast(&input->f->cond);
    pthread_mutex_unlock(&input->f->lock);
}

/* On the loop's thread, where it belongs. */
static size_t give_input(struct fixture *f, const char *text, size_t len)
{
    struct input input = {.f = f, .text = text, .len = len};

    assert_int_equal(loop_defer(f->machine.loop, do_input, &input), 0);
    pthread_mutex_lock(&f->lock);
    while (!input.is_done) {
        pthread_cond_wait(&f->cond, &f->lock);
    }
    pthread_mutex_unlock(&f->lock);
    return input.taken;
}

static void test_console_input_fills_buffers_and_asks_again(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {TEST_DATA, 8, true};
    const struct test_seg more = {TEST_DATA + 8, 8, true};
    char got[11] = {0};
    unsigned before;

    test_machine_start_loop(&f->machine);
    assert_int_equal(give_input(f, "early", 5), 0); /* no driver yet */
    test_driver_start(&f->machine, SLOT, 0, &f->driver);
    test_make_available(&f->driver, 0, test_chain(&f->driver, 0, &seg, 1));
    assert_int_equal(give_input(f, "0123456789", 10), 8);
    assert_int_equal(test_wait_used(&f->driver, 0, NULL), 8);
    pthread_mutex_lock(&f->lock);
    before = f->may_input;
    pthread_mutex_unlock(&f->lock);
    test_make_available(&f->driver, 0, test_chain(&f->driver, 0, &more, 1));
    test_kick(&f->driver, 0);
    pthread_mutex_lock(&f->lock);
    while (f->may_input == before) {
        pthread_cond_wait(&f->cond, &f->lock);
    }
    pthread_mutex_unlock(&f->lock);
    assert_int_equal(give_input(f, "89", 2), 2);
    assert_int_equal(test_wait_used(&f->driver, 0, NULL), 2);
    test_read(&f->machine, TEST_DATA, got, 10);
    assert_string_equal(got, "0123456789");
}

static void test_console_reset_forgets_a_waiting_chain(void **state)
{
    struct fixture *f = *state;
    const struct test_seg seg = {TEST_DATA, 100, false};

    f->out_room = 10;
    test_machine_start_loop(&f->machine);
    test_driver_start(&f->machine, SLOT, 0, &f->driver);
    test_make_available(&f->driver, 1, test_chain(&f->driver, 1, &seg, 1));
    test_kick(&f->driver, 1);
    wait_output(f, 10);
    test_driver_start(&f->machine, SLOT, 0, &f->driver);
    pthread_mutex_lock(&f->lock);
    f->out_room = 1000;
    pthread_mutex_unlock(&f->lock);
    virtio_console_output_ready(f->dev);
    (void)test_transfer(&f->driver, 1, &seg, 1);
    assert_int_equal(f->out_len, 110);
}

enum { MEM_PLUG, MEM_UNPLUG, MEM_UNPLUG_ALL, MEM_STATE };
enum { MEM_ACK, MEM_NACK, MEM_BUSY, MEM_ERROR };
#define MEM_BLOCK VIRTIO_MEM_BLOCK_BYTES

/* What the device answers; its word on a state in the upper half. */
static uint32_t mem_ask(struct fixture *f, uint16_t type, uint64_t address, uint16_t count)
{
    const struct test_seg segs[] = {{TEST_DATA, 24, false}, {TEST_DATA + 64, 10, true}};
    uint8_t raw[24] = {0};

    store_le16(raw, type);
    store_le64(raw + 8, address);
    store_le16(raw + 16, count);
    test_write(&f->machine, TEST_DATA, raw, sizeof(raw));
    assert_int_equal(test_transfer(&f->driver, 0, segs, 2), 10);
    test_read(&f->machine, TEST_DATA + 64, raw, 10);
    return load_le16(raw) | (uint32_t)load_le16(raw + 8) << 16;
}

static void test_memory_is_plugged_as_far_as_wanted(void **state)
{
    struct fixture *f = *state;
    uint64_t start, device;

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    device = f->driver.device;
    start = test_mmio_read(&f->machine, device + 16, 4) |
            test_mmio_read(&f->machine, device + 20, 4) << 32;
    assert_int_equal(start, gmem_pluggable(f->machine.gmem)->gpa);
    assert_int_equal(test_mmio_read(&f->machine, device, 4), MEM_BLOCK);
    assert_int_equal(test_mmio_read(&f->machine, device + 24, 4), TEST_PLUGGABLE_BYTES);
    assert_int_equal(mem_ask(f, MEM_PLUG, start, 1), MEM_NACK);
    virtio_mem_set_requested(f->dev, 4 * MEM_BLOCK - 1);
    assert_int_equal(f->machine.msi_count[f->driver.queue_count], 1);
    assert_int_equal(test_mmio_read(&f->machine, device + 48, 4), 4 * MEM_BLOCK);
    assert_int_equal(mem_ask(f, MEM_PLUG, start, 5), MEM_NACK);
    assert_int_equal(mem_ask(f, MEM_PLUG, start + MEM_BLOCK, 3), MEM_ACK);
    assert_int_equal(atomic_load(&f->plugged), 3 * MEM_BLOCK);
    assert_int_equal(mem_ask(f, MEM_PLUG, start, 2), MEM_ERROR);   /* one is plugged */
    assert_int_equal(mem_ask(f, MEM_UNPLUG, start, 2), MEM_ERROR); /* one is not */
    assert_int_equal(mem_ask(f, MEM_STATE, start, 2), MEM_ACK | 2 << 16);
    assert_int_equal(mem_ask(f, MEM_STATE, start, 1), MEM_ACK | 1 << 16);
    assert_int_equal(mem_ask(f, MEM_STATE, start + MEM_BLOCK, 3), MEM_ACK);
    assert_int_equal(test_mmio_read(&f->machine, device + 40, 4), 3 * MEM_BLOCK);
    assert_int_equal(gmem_fill(f->machine.gmem, gpa(start + MEM_BLOCK), 0xaa, 4096), 0);
    assert_int_equal(mem_ask(f, MEM_UNPLUG, start + MEM_BLOCK, 1), MEM_ACK);
    assert_page(f, start + MEM_BLOCK, 0); /* the host has it back */
    assert_int_equal(mem_ask(f, MEM_UNPLUG_ALL, 0, 0), MEM_ACK);
    assert_int_equal(atomic_load(&f->plugged), 0);
}

static void test_memory_requests_out_of_bounds_are_refused(void **state)
{
    struct fixture *f = *state;
    const uint64_t start = gmem_pluggable(f->machine.gmem)->gpa;
    const uint16_t blocks = TEST_PLUGGABLE_BYTES / MEM_BLOCK;
    const struct {
        uint64_t address;
        uint16_t count;
    } bad[] = {{start - MEM_BLOCK, 1},
               {start + 4096, 1},
               {start, 0},
               {start, (uint16_t)(blocks + 1)},
               {start, 0xffff},
               {start + TEST_PLUGGABLE_BYTES, 1},
               {start + TEST_PLUGGABLE_BYTES - MEM_BLOCK, 2},
               {UINT64_MAX, 1},
               {UINT64_MAX - MEM_BLOCK + 1, 1},
               {0, 1}};
    const struct test_seg small[] = {{TEST_DATA, 23, false}, {TEST_DATA + 64, 10, true}};

    test_driver_start(&f->machine, SLOT, ~0ull, &f->driver);
    virtio_mem_set_requested(f->dev, UINT64_MAX);
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        for (uint16_t type = MEM_PLUG; type <= MEM_STATE + 1; type++) {
            if (type != MEM_UNPLUG_ALL) {
                assert_int_equal(mem_ask(f, type, bad[i].address, bad[i].count), MEM_ERROR);
            }
        }
    }
    assert_int_equal(mem_ask(f, MEM_PLUG, start, blocks), MEM_ACK);
    assert_int_equal(atomic_load(&f->plugged), TEST_PLUGGABLE_BYTES);
    f->machine.msi_count[f->driver.queue_count] = 0; /* that of the wish; the next says broken */
    test_make_available(&f->driver, 0, test_chain(&f->driver, 0, small, 2));
    test_kick(&f->driver, 0);
    test_driver_wait_broken(&f->driver);
    /* A reset of the device keeps what the guest uses; a new boot does not. */
    virtio_dev_reset(f->dev);
    assert_int_equal(atomic_load(&f->plugged), TEST_PLUGGABLE_BYTES);
    virtio_mem_unplug_all(f->dev);
    assert_int_equal(atomic_load(&f->plugged), 0);
}

#define MEM_TEST(name) cmocka_unit_test_setup_teardown(name, setup_mem, teardown)
#define RNG_TEST(name) cmocka_unit_test_setup_teardown(name, setup_rng, teardown)
#define BALLOON_TEST(name) cmocka_unit_test_setup_teardown(name, setup_balloon, teardown)
#define CONSOLE_TEST(name) cmocka_unit_test_setup_teardown(name, setup_console, teardown)
#define PORT_TEST(name) cmocka_unit_test_setup_teardown(name, setup_port, teardown)

enum { PORT_RX = 4, PORT_TX = 5, CONTROL_RX = 2, CONTROL_TX = 3 };

#define F_MULTIPORT 2ull

static void control_send(struct fixture *f, uint32_t id, uint16_t event, uint16_t value)
{
    const struct test_seg seg = {TEST_DATA, 8, false};
    uint8_t raw[8];

    store_le32(raw, id);
    store_le16(raw + 4, event);
    store_le16(raw + 6, value);
    test_write(&f->machine, TEST_DATA, raw, sizeof(raw));
    (void)test_transfer(&f->driver, CONTROL_TX, &seg, 1);
}

/* A buffer for a message of the device, at TEST_DATA + 0x1000 * (1 + slot). */
static void control_buffer(struct fixture *f, unsigned slot, uint32_t len)
{
    const struct test_seg seg = {TEST_DATA + 0x1000u * (1 + slot), len, true};

    test_make_available(&f->driver, CONTROL_RX, test_chain(&f->driver, CONTROL_RX, &seg, 1));
    test_kick(&f->driver, CONTROL_RX);
}

static void assert_control(struct fixture *f, unsigned slot, uint16_t event, const char *text)
{
    uint8_t raw[64];
    uint32_t len = test_wait_used(&f->driver, CONTROL_RX, NULL);

    assert_int_equal(len, 8 + strlen(text));
    test_read(&f->machine, TEST_DATA + 0x1000u * (1 + slot), raw, len);
    assert_int_equal(load_le32(raw), 1);
    assert_int_equal(load_le16(raw + 4), event);
    assert_int_equal(load_le16(raw + 6), 1);
    assert_memory_equal(raw + 8, text, strlen(text));
}

/* As Linux does it, up to a program that has the port open. */
static void open_port(struct fixture *f)
{
    test_driver_start(&f->machine, SLOT, F_MULTIPORT, &f->driver);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 4, 4), 2);
    for (unsigned i = 0; i < 3; i++) {
        control_buffer(f, i, 64);
    }
    control_send(f, 0, 0, 1); /* DEVICE_READY */
    assert_control(f, 0, 1, "");
    control_send(f, 1, 3, 1); /* PORT_READY */
    assert_control(f, 1, 7, "org.example.port");
    assert_control(f, 2, 6, "");
    assert_false(f->is_open);
    control_send(f, 1, 6, 1); /* PORT_OPEN */
    assert_true(f->is_open);
}

static void test_port_is_named_opened_and_carries_bytes(void **state)
{
    struct fixture *f = *state;
    const struct test_seg in = {TEST_DATA + 0x8000, 16, true};
    const struct test_seg out = {TEST_DATA + 0x9000, 5, false};
    char got[6] = {0};

    open_port(f);
    test_make_available(&f->driver, PORT_RX, test_chain(&f->driver, PORT_RX, &in, 1));
    assert_int_equal(give_input(f, "hello", 5), 5);
    assert_int_equal(test_wait_used(&f->driver, PORT_RX, NULL), 5);
    test_read(&f->machine, TEST_DATA + 0x8000, got, 5);
    assert_string_equal(got, "hello");
    test_write(&f->machine, TEST_DATA + 0x9000, "there", 5);
    (void)test_transfer(&f->driver, PORT_TX, &out, 1);
    assert_int_equal(f->out_len, 5);
    assert_memory_equal(f->out, "there", 5);
    (void)test_transfer(&f->driver, 1, &out, 1); /* the first port's output goes nowhere */
    assert_int_equal(f->out_len, 5);
}

static void test_port_that_is_closed_hears_nothing(void **state)
{
    struct fixture *f = *state;
    const struct test_seg in = {TEST_DATA + 0x8000, 16, true};

    assert_int_equal(give_input(f, "early", 5), 5);
    open_port(f);
    test_make_available(&f->driver, PORT_RX, test_chain(&f->driver, PORT_RX, &in, 1));
    control_send(f, 1, 6, 0);
    assert_false(f->is_open);
    assert_int_equal(give_input(f, "lost", 4), 4);
    assert_false(test_has_used(&f->driver, PORT_RX));
    control_send(f, 1, 6, 1);
    assert_int_equal(give_input(f, "x", 1), 1);
    assert_int_equal(test_wait_used(&f->driver, PORT_RX, NULL), 1);
    test_driver_reset(&f->driver);
    assert_false(f->is_open);
}

static void test_port_control_nonsense_changes_nothing(void **state)
{
    struct fixture *f = *state;
    const struct test_seg empty = {TEST_DATA, 3, false};
    const struct test_seg writable = {TEST_DATA, 64, true};
    unsigned changes;

    open_port(f);
    changes = f->open_changes;
    for (unsigned event = 0; event < 12; event++) {
        control_send(f, 0, (uint16_t)event, 0);
        control_send(f, 2, (uint16_t)event, 1);
        control_send(f, UINT32_MAX, (uint16_t)(event + 100), UINT16_MAX);
    }
    (void)test_transfer(&f->driver, CONTROL_TX, &empty, 1);
    (void)test_transfer(&f->driver, CONTROL_TX, &writable, 1);
    for (unsigned i = 0; i < 1000; i++) { /* what is asked for again and again is said once */
        control_send(f, 0, 0, 1);
        control_send(f, 1, 3, 1);
    }
    assert_int_equal(f->open_changes, changes);
    for (unsigned i = 0; i < 4; i++) {
        control_buffer(f, i, 64);
    }
    assert_control(f, 0, 1, "");
    assert_control(f, 1, 7, "org.example.port");
    assert_control(f, 2, 6, "");
    control_send(f, 1, 6, 1);
    assert_false(test_has_used(&f->driver, CONTROL_RX));
    assert_int_equal(test_driver_status(&f->driver) & STATUS_BROKEN, 0);
}

static void test_port_control_buffer_that_is_too_short_breaks_it(void **state)
{
    struct fixture *f = *state;

    test_driver_start(&f->machine, SLOT, F_MULTIPORT, &f->driver);
    control_buffer(f, 0, 64);
    control_buffer(f, 1, 12);
    control_send(f, 0, 0, 1);
    assert_control(f, 0, 1, "");
    control_send(f, 1, 3, 1);
    test_driver_wait_broken(&f->driver);
}

static void test_port_control_outside_memory_breaks_it(void **state)
{
    struct fixture *f = *state;
    const struct test_seg outside = {TEST_RAM_BYTES - 4, 8, false};

    test_driver_start(&f->machine, SLOT, F_MULTIPORT, &f->driver);
    test_make_available(&f->driver, CONTROL_TX, test_chain(&f->driver, CONTROL_TX, &outside, 1));
    test_kick(&f->driver, CONTROL_TX);
    test_driver_wait_broken(&f->driver);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RNG_TEST(test_rng_fills_buffers_with_fresh_bytes),
        RNG_TEST(test_rng_bounds_one_request),
        BALLOON_TEST(test_inflated_pages_are_given_back),
        BALLOON_TEST(test_target_reaches_the_guest_and_actual_comes_back),
        BALLOON_TEST(test_reported_free_pages_are_given_back),
        BALLOON_TEST(test_reclaim_takes_hinted_pages_of_its_own_command_only),
        BALLOON_TEST(test_statistics_travel_in_the_guests_buffer),
        MEM_TEST(test_memory_is_plugged_as_far_as_wanted),
        MEM_TEST(test_memory_requests_out_of_bounds_are_refused),
        CONSOLE_TEST(test_console_output_arrives_in_order),
        CONSOLE_TEST(test_console_waits_while_the_other_side_is_full),
        CONSOLE_TEST(test_console_input_fills_buffers_and_asks_again),
        CONSOLE_TEST(test_console_reset_forgets_a_waiting_chain),
        PORT_TEST(test_port_is_named_opened_and_carries_bytes),
        PORT_TEST(test_port_that_is_closed_hears_nothing),
        PORT_TEST(test_port_control_nonsense_changes_nothing),
        PORT_TEST(test_port_control_buffer_that_is_too_short_breaks_it),
        PORT_TEST(test_port_control_outside_memory_breaks_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
