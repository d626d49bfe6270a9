/* virtio-blk on a real file, driven as a guest would, and as a hostile guest would. */
#include "base/wire.h"
#include "block/block.h"
#include "test.h"
#include "virtio_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define DISK_BYTES (4u << 20)
#define SLOT 1
#define HEADER TEST_DATA
#define STATUS_BYTE (TEST_DATA + 0x100)
#define DATA (TEST_DATA + 0x10000)
#define TABLE (TEST_DATA + 0x8000)

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2 };

struct fixture {
    struct test_machine machine;
    struct block *block;
    struct virtio_dev *dev;
    struct test_driver driver;
    char path[64];
    unsigned queues;
    int fd;           /* another view of the file */
    uint8_t *content; /* what the disk must hold */
};

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void make_disk(struct fixture *f)
{
    uint32_t random = 1;

    snprintf(f->path, sizeof(f->path), "/tmp/corbel-test-disk-XXXXXX");
    f->fd = mkstemp(f->path);
    assert_true(f->fd >= 0);
    f->content = malloc(DISK_BYTES);
    assert_non_null(f->content);
    for (unsigned i = 0; i < DISK_BYTES; i++) {
        f->content[i] = (uint8_t)next_random(&random);
    }
    assert_int_equal(pwrite(f->fd, f->content, DISK_BYTES, 0), DISK_BYTES);
}

static int create_device(struct fixture *f, const char *serial)
{
    const struct virtio_blk_config config = {
        .block = f->block, .serial = serial, .queues = f->queues};

    return virtio_blk_create(&f->machine.env, &config, &f->dev);
}

static struct fixture *create(bool read_only)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct block_config config = {.fd = -1, .read_only = read_only};
    struct err err = {0};

    assert_non_null(f);
    make_disk(f);
    config.path = f->path;
    test_machine_init(&f->machine);
    assert_int_equal(block_create(&config, &err, &f->block), 0);
    assert_int_equal(create_device(f, "serial-7"), 0);
    assert_int_equal(block_start(f->block, &err), 0);
    return f;
}

static int setup(void **state)
{
    *state = create(false);
    return 0;
}

static int setup_read_only(void **state)
{
    *state = create(true);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    block_stop(f->block);
    virtio_dev_destroy(f->dev);
    block_destroy(f->block);
    test_machine_done(&f->machine);
    close(f->fd);
    unlink(f->path);
    free(f->content);
    free(f);
    return 0;
}

static void start(struct fixture *f, uint64_t features)
{
    test_driver_start(&f->machine, SLOT, features, &f->driver);
}

static void write_header_at(struct fixture *f, uint64_t at, uint32_t type, uint64_t sector)
{
    uint8_t header[16] = {0};

    store_le32(header, type);
    store_le64(header + 8, sector);
    test_write(&f->machine, at, header, sizeof(header));
}

/* One request with its data in one segment; the status byte. */
static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint64_t data,
                       uint32_t len, bool is_write, uint32_t *ret_written)
{
    struct test_seg segs[3] = {{HEADER, 16, false}, {data, len, is_write}, {STATUS_BYTE, 1, true}};
    uint8_t status = 0xee;
    uint32_t written;

    write_header_at(f, HEADER, type, sector);
    test_write(&f->machine, STATUS_BYTE, &status, 1);
    if (len == 0) {
        segs[1] = segs[2];
    }
    written = test_transfer(&f->driver, 0, segs, len == 0 ? 2 : 3);
    if (ret_written) {
        *ret_written = written;
    }
    test_read(&f->machine, STATUS_BYTE, &status, 1);
    return status;
}

static void assert_file_is_content(struct fixture *f)
{
    uint8_t *now = malloc(DISK_BYTES);

    assert_non_null(now);
    assert_int_equal(pread(f->fd, now, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(now, f->content, DISK_BYTES);
    free(now);
}

static void test_config_space_describes_the_disk(void **state)
{
    struct fixture *f = *state;

    start(f, ~0ull);
    assert_int_equal(test_config_read(&f->machine, SLOT, 2, 2), 0x1042);
    assert_int_equal(test_config_read(&f->machine, SLOT, 0xb, 1), 0x01);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device, 4), DISK_BYTES / 512);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 20, 4), 512);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device + 12, 4), 126);
    assert_true(f->driver.features & (1ull << 9));  /* flush */
    assert_true(f->driver.features & (1ull << 13)); /* discard */
    assert_false(f->driver.features & (1ull << 5)); /* read-only */
}

static void test_read_returns_the_file(void **state)
{
    struct fixture *f = *state;
    uint8_t got[8192];
    uint32_t written;

    start(f, ~0ull);
    assert_int_equal(request(f, IN, 3, DATA, sizeof(got), true, &written), OK);
    assert_int_equal(written, sizeof(got) + 1);
    test_read(&f->machine, DATA, got, sizeof(got));
    assert_memory_equal(got, f->content + 3 * 512, sizeof(got));
}

static void random_transfers(struct fixture *f, unsigned rounds)
{
    uint32_t random = 42;
    uint8_t buf[16 * 512];

    for (unsigned i = 0; i < rounds; i++) {
        uint32_t sectors = 1 + next_random(&random) % 16;
        uint32_t len = sectors * 512;
        uint64_t sector = next_random(&random) % (DISK_BYTES / 512 - sectors);

        if (next_random(&random) % 2) {
            for (uint32_t j = 0; j < len; j++) {
                buf[j] = (uint8_t)next_random(&random);
            }
            memcpy(f->content + sector * 512, buf, len);
            test_write(&f->machine, DATA, buf, len);
            assert_int_equal(request(f, OUT, sector, DATA, len, false, NULL), OK);
        } else {
            assert_int_equal(request(f, IN, sector, DATA, len, true, NULL), OK);
            test_read(&f->machine, DATA, buf, len);
            assert_memory_equal(buf, f->content + sector * 512, len);
        }
    }
    assert_int_equal(request(f, FLUSH, 0, 0, 0, false, NULL), OK);
    assert_file_is_content(f);
}

static void test_random_transfers_keep_the_content(void **state)
{
    struct fixture *f = *state;

    start(f, 0);
    random_transfers(f, 500); /* more than the ring, so that indices wrap */
}

static void test_random_transfers_with_event_index_keep_the_content(void **state)
{
    struct fixture *f = *state;

    start(f, F_EVENT_IDX);
    random_transfers(f, 500);
}

static void test_transfers_by_intx_keep_the_content(void **state)
{
    struct fixture *f = *state;

    test_driver_probe(&f->machine, SLOT, &f->driver);
    test_driver_negotiate(&f->driver, 0);
    test_driver_setup_queues(&f->driver, 8, false);
    test_driver_ok(&f->driver);
    for (unsigned i = 1; i <= 20; i++) {
        assert_int_equal(request(f, IN, i, DATA, 512, true, NULL), OK);
        pthread_mutex_lock(&f->machine.lock);
        while (!f->machine.line) {
            pthread_cond_wait(&f->machine.cond, &f->machine.lock);
        }
        pthread_mutex_unlock(&f->machine.lock);
        assert_int_equal(test_mmio_read(&f->machine, f->driver.isr, 1), 1);
        assert_int_equal(test_mmio_read(&f->machine, f->driver.isr, 1), 0);
        assert_false(f->machine.line);
        assert_int_equal(f->machine.line_raised, i);
    }
}

static void test_scattered_indirect_transfer_works(void **state)
{
    struct fixture *f = *state;
    struct test_seg segs[18] = {{HEADER, 16, false}};
    uint8_t got[16 * 512];

    start(f, F_INDIRECT);
    for (unsigned i = 0; i < 16; i++) {
        segs[1 + i] = (struct test_seg){DATA + (15 - i) * 4096, 512, true};
    }
    segs[17] = (struct test_seg){STATUS_BYTE, 1, true};
    write_header_at(f, HEADER, IN, 100);
    test_make_available(&f->driver, 0, test_chain_indirect(&f->driver, 0, TABLE, segs, 18));
    test_kick(&f->driver, 0);
    assert_int_equal(test_wait_used(&f->driver, 0, NULL), sizeof(got) + 1);
    for (unsigned i = 0; i < 16; i++) {
        test_read(&f->machine, DATA + (15 - i) * 4096, got + i * 512, 512);
    }
    assert_memory_equal(got, f->content + 100 * 512, sizeof(got));
}

static void test_header_and_status_may_be_split_anywhere(void **state)
{
    struct fixture *f = *state;
    const struct test_seg segs[] = {{HEADER, 5, false},
                                    {HEADER + 5, 11, false},
                                    {DATA, 100, true},
                                    {DATA + 100, 412, true},
                                    {DATA + 512, 513, true}};
    uint8_t got[1025];

    start(f, 0);
    write_header_at(f, HEADER, IN, 9);
    assert_int_equal(test_transfer(&f->driver, 0, segs, ARRAY_LEN(segs)), 1025);
    test_read(&f->machine, DATA, got, sizeof(got));
    assert_memory_equal(got, f->content + 9 * 512, 1024);
    assert_int_equal(got[1024], OK);
}

static void test_many_requests_in_flight_all_complete(void **state)
{
    struct fixture *f = *state;
    uint16_t head;
    uint8_t got[512];

    start(f, F_EVENT_IDX);
    for (unsigned i = 0; i < 64; i++) {
        const struct test_seg segs[] = {{HEADER + 0x1000 + i * 32, 16, false},
                                        {DATA + i * 512, 512, true},
                                        {HEADER + 0x1000 + i * 32 + 16, 1, true}};

        write_header_at(f, segs[0].gpa, IN, i * 7);
        test_make_available(&f->driver, 0, test_chain(&f->driver, 0, segs, 3));
    }
    test_kick(&f->driver, 0);
    for (unsigned i = 0; i < 64; i++) {
        assert_int_equal(test_wait_used(&f->driver, 0, &head), 513);
    }
    for (unsigned i = 0; i < 64; i++) {
        test_read(&f->machine, DATA + i * 512, got, sizeof(got));
        assert_memory_equal(got, f->content + i * 7 * 512, sizeof(got));
    }
}

static void test_one_interrupt_serves_a_batch(void **state)
{
    struct fixture *f = *state;
    unsigned interrupts;

    start(f, 0);
    for (unsigned i = 0; i < 32; i++) {
        const struct test_seg segs[] = {{HEADER, 16, false}, {STATUS_BYTE, 21, true}};

        write_header_at(f, HEADER, GET_ID, 0);
        test_make_available(&f->driver, 0, test_chain(&f->driver, 0, segs, 2));
    }
    f->machine.msi_count[0] = 0;
    test_kick(&f->driver, 0);
    for (unsigned i = 0; i < 32; i++) {
        (void)test_wait_used(&f->driver, 0, NULL);
    }
    block_stop(f->block); /* whatever was to be sent is sent */
    interrupts = f->machine.msi_count[0];
    assert_int_equal(interrupts, 1);
}

static void test_get_id_tells_the_serial(void **state)
{
    struct fixture *f = *state;
    char id[21] = {0};

    start(f, 0);
    assert_int_equal(request(f, GET_ID, 0, DATA, 20, true, NULL), OK);
    test_read(&f->machine, DATA, id, 20);
    assert_string_equal(id, "serial-7");
}

static void write_range(struct fixture *f, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    uint8_t range[16];

    store_le64(range, sector);
    store_le32(range + 8, sectors);
    store_le32(range + 12, flags);
    test_write(&f->machine, DATA, range, sizeof(range));
}

static void test_write_zeroes_reads_as_zero_and_spares_the_rest(void **state)
{
    struct fixture *f = *state;

    start(f, ~0ull);
    write_range(f, 16, 24, 0);
    assert_int_equal(request(f, ZEROES, 0, DATA, 16, false, NULL), OK);
    write_range(f, 101, 3, 1);
    assert_int_equal(request(f, ZEROES, 0, DATA, 16, false, NULL), OK);
    memset(f->content + 16 * 512, 0, 24 * 512);
    memset(f->content + 101 * 512, 0, 3 * 512);
    assert_file_is_content(f);
}

static void test_discard_gives_space_back(void **state)
{
    struct fixture *f = *state;
    struct stat before, after;

    start(f, ~0ull);
    assert_int_equal(fsync(f->fd), 0);
    assert_int_equal(fstat(f->fd, &before), 0);
    write_range(f, 2048, 4096, 0);
    assert_int_equal(request(f, DISCARD, 0, DATA, 16, false, NULL), OK);
    assert_int_equal(fstat(f->fd, &after), 0);
    assert_true(after.st_blocks <= before.st_blocks);
    assert_int_equal(after.st_size, DISK_BYTES);
    write_range(f, 0, 8, 1); /* the unmap flag is not for discard */
    assert_int_equal(request(f, DISCARD, 0, DATA, 16, false, NULL), UNSUPP);
    write_range(f, DISK_BYTES / 512, 1, 0);
    assert_int_equal(request(f, DISCARD, 0, DATA, 16, false, NULL), IOERR);
    write_range(f, UINT64_MAX / 512, 8, 0);
    assert_int_equal(request(f, DISCARD, 0, DATA, 16, false, NULL), IOERR);
}

static void test_requests_outside_the_disk_fail(void **state)
{
    struct fixture *f = *state;

    start(f, 0);
    assert_int_equal(request(f, IN, DISK_BYTES / 512, DATA, 512, true, NULL), IOERR);
    assert_int_equal(request(f, IN, DISK_BYTES / 512 - 1, DATA, 1024, true, NULL), IOERR);
    assert_int_equal(request(f, OUT, UINT64_MAX, DATA, 512, false, NULL), IOERR);
    assert_int_equal(request(f, OUT, UINT64_MAX / 512, DATA, 512, false, NULL), IOERR);
    assert_int_equal(request(f, IN, 0, DATA, 511, true, NULL), IOERR);
    assert_int_equal(request(f, IN, 0, TEST_RAM_BYTES - 512, 1024, true, NULL), IOERR);
    assert_int_equal(request(f, IN, 0, UINT64_MAX - 100, 512, true, NULL), IOERR);
    assert_int_equal(request(f, 77, 0, DATA, 512, true, NULL), UNSUPP);
    assert_file_is_content(f);
    assert_int_equal(request(f, IN, DISK_BYTES / 512 - 1, DATA, 512, true, NULL), OK);
}

static void test_read_only_disk_refuses_writes(void **state)
{
    struct fixture *f = *state;

    start(f, ~0ull);
    assert_true(f->driver.features & (1ull << 5));
    assert_int_equal(request(f, OUT, 0, DATA, 512, false, NULL), IOERR);
    write_range(f, 0, 8, 0);
    assert_int_equal(request(f, ZEROES, 0, DATA, 16, false, NULL), IOERR);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
    assert_file_is_content(f);
}

/* The device says NEEDS_RESET, and works again after a reset. */
static void assert_breaks_and_recovers(struct fixture *f)
{
    test_kick(&f->driver, 0);
    test_driver_wait_broken(&f->driver);
    test_driver_reset(&f->driver);
    start(f, F_INDIRECT);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
}

static void test_hostile_chains_break_only_the_device(void **state)
{
    struct fixture *f = *state;
    struct test_queue *queue = &f->driver.queues[0];

    start(f, F_INDIRECT);
    /* a loop */
    test_desc(&f->driver, queue->desc, 0, HEADER, 16, DESC_NEXT, 1);
    test_desc(&f->driver, queue->desc, 1, HEADER, 16, DESC_NEXT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* next outside the table */
    test_desc(&f->driver, queue->desc, 0, HEADER, 16, DESC_NEXT, queue->size);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* head outside the table */
    test_make_available(&f->driver, 0, 0xffff);
    assert_breaks_and_recovers(f);
    /* readable after writable */
    test_desc(&f->driver, queue->desc, 0, HEADER, 16, DESC_NEXT | DESC_WRITE, 1);
    test_desc(&f->driver, queue->desc, 1, HEADER, 16, 0, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* lengths whose sum wraps */
    test_desc(&f->driver, queue->desc, 0, HEADER, 0xffffffff, DESC_NEXT, 1);
    test_desc(&f->driver, queue->desc, 1, HEADER, 16, 0, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* no status byte; no header */
    test_desc(&f->driver, queue->desc, 0, HEADER, 16, 0, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    test_desc(&f->driver, queue->desc, 0, HEADER, 16, DESC_WRITE, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* the available index runs ahead by more than the ring */
    f->driver.queues[0].avail_idx = (uint16_t)(queue->size + 7);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
}

static void test_hostile_indirect_tables_break_only_the_device(void **state)
{
    struct fixture *f = *state;
    struct test_queue *queue = &f->driver.queues[0];

    start(f, F_INDIRECT);
    /* nested */
    test_desc(&f->driver, TABLE, 0, TABLE, 32, DESC_INDIRECT, 0);
    test_desc(&f->driver, queue->desc, 0, TABLE, 16, DESC_INDIRECT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* indirect and next at once */
    test_desc(&f->driver, queue->desc, 0, TABLE, 16, DESC_INDIRECT | DESC_NEXT, 1);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* length not a multiple of 16, zero, outside memory */
    test_desc(&f->driver, queue->desc, 0, TABLE, 17, DESC_INDIRECT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    test_desc(&f->driver, queue->desc, 0, TABLE, 0, DESC_INDIRECT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    test_desc(&f->driver, queue->desc, 0, TEST_RAM_BYTES - 8, 16, DESC_INDIRECT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
    /* a table that never ends */
    for (uint16_t i = 0; i < 256; i++) {
        test_desc(&f->driver, TABLE, i, HEADER, 1, DESC_NEXT, (uint16_t)(i + 1));
    }
    test_desc(&f->driver, queue->desc, 0, TABLE, 256 * 16, DESC_INDIRECT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
}

static void test_indirect_without_the_feature_breaks_the_device(void **state)
{
    struct fixture *f = *state;

    start(f, 0);
    test_desc(&f->driver, f->driver.queues[0].desc, 0, TABLE, 16, DESC_INDIRECT, 0);
    test_make_available(&f->driver, 0, 0);
    assert_breaks_and_recovers(f);
}

static void test_bad_rings_break_the_device_at_driver_ok(void **state)
{
    struct fixture *f = *state;
    const uint64_t bad_desc[] = {TEST_RAM_BYTES - 16, UINT64_MAX - 15, 0x10008};

    for (unsigned i = 0; i < ARRAY_LEN(bad_desc); i++) {
        test_driver_probe(&f->machine, SLOT, &f->driver);
        test_driver_negotiate(&f->driver, 0);
        test_mmio_write(&f->machine, f->driver.common + 22, 2, 0);
        test_mmio_write(&f->machine, f->driver.common + 32, 4, (uint32_t)bad_desc[i]);
        test_mmio_write(&f->machine, f->driver.common + 36, 4, bad_desc[i] >> 32);
        test_mmio_write(&f->machine, f->driver.common + 28, 2, 1);
        test_driver_ok(&f->driver);
        assert_true(test_driver_status(&f->driver) & STATUS_BROKEN);
    }
    test_driver_reset(&f->driver);
    start(f, 0);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
}

static void test_odd_queue_sizes_break_the_device(void **state)
{
    struct fixture *f = *state;
    const uint16_t sizes[] = {0, 3, 512, 0xffff};

    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        test_driver_probe(&f->machine, SLOT, &f->driver);
        test_driver_negotiate(&f->driver, 0);
        test_mmio_write(&f->machine, f->driver.common + 22, 2, 0);
        test_mmio_write(&f->machine, f->driver.common + 24, 2, sizes[i]);
        test_mmio_write(&f->machine, f->driver.common + 28, 2, 1);
        test_driver_ok(&f->driver);
        assert_true(test_driver_status(&f->driver) & STATUS_BROKEN);
    }
}

static void test_an_enabled_queue_cannot_be_changed(void **state)
{
    struct fixture *f = *state;
    uint64_t common;

    start(f, 0);
    common = f->driver.common;
    test_mmio_write(&f->machine, common + 22, 2, 0);
    test_mmio_write(&f->machine, common + 24, 2, 2);
    test_mmio_write(&f->machine, common + 32, 4, 0x1ff0000);
    test_mmio_write(&f->machine, common + 48, 4, 0x1ff0000);
    assert_int_equal(test_mmio_read(&f->machine, common + 24, 2), f->driver.queues[0].size);
    assert_int_equal(test_mmio_read(&f->machine, common + 32, 4), f->driver.queues[0].desc);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(request(f, IN, i, DATA, 512, true, NULL), OK);
    }
    /* neither can features, nor a queue that does not exist */
    test_mmio_write(&f->machine, common + 8, 4, 0);
    test_mmio_write(&f->machine, common + 12, 4, 0xffffffff);
    assert_int_equal(test_mmio_read(&f->machine, common + 12, 4), (uint32_t)f->driver.features);
    test_mmio_write(&f->machine, common + 22, 2, 99);
    assert_int_equal(test_mmio_read(&f->machine, common + 24, 2), 0);
    test_mmio_write(&f->machine, common + 28, 2, 1);
}

static void test_unknown_features_are_refused(void **state)
{
    struct fixture *f = *state;

    test_driver_probe(&f->machine, SLOT, &f->driver);
    test_driver_reset(&f->driver);
    test_mmio_write(&f->machine, f->driver.common + 20, 1, 3);
    test_mmio_write(&f->machine, f->driver.common + 8, 4, 1);
    test_mmio_write(&f->machine, f->driver.common + 12, 4, 0x80000001);
    test_mmio_write(&f->machine, f->driver.common + 20, 1, 3 | 8);
    assert_int_equal(test_driver_status(&f->driver), 3);
    test_mmio_write(&f->machine, f->driver.common + 20, 1, 3 | 8 | 4);
    assert_int_equal(test_driver_status(&f->driver), 3);
}

static void test_reset_with_requests_in_flight_ends_clean(void **state)
{
    struct fixture *f = *state;

    for (unsigned round = 0; round < 50; round++) {
        start(f, F_EVENT_IDX);
        for (unsigned i = 0; i < 32; i++) {
            const struct test_seg segs[] = {{HEADER + 0x1000 + i * 32, 16, false},
                                            {DATA + i * 4096, 4096, (i & 1) == 0},
                                            {HEADER + 0x1000 + i * 32 + 16, 1, true}};

            write_header_at(f, segs[0].gpa, i % 8 == 7 ? FLUSH : (i & 1) == 0 ? IN : 77, i * 8);
            test_make_available(&f->driver, 0, test_chain(&f->driver, 0, segs, 3));
        }
        test_kick(&f->driver, 0);
        test_driver_reset(&f->driver);
        /* The device owns nothing any more: what we write stays. */
        assert_int_equal(gmem_fill(f->machine.gmem, gpa(0x10000), 0x5a, 0x100000), 0);
        assert_int_equal(gmem_fill(f->machine.gmem, gpa(DATA), 0x5a, 32 * 4096), 0);
        block_drain(f->block);
        for (unsigned i = 0; i < 32 * 4096; i += 509) {
            uint8_t byte;

            test_read(&f->machine, DATA + i, &byte, 1);
            assert_int_equal(byte, 0x5a);
        }
    }
    start(f, 0);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
}

static void test_machine_reset_makes_it_as_created(void **state)
{
    struct fixture *f = *state;

    start(f, ~0ull);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
    virtio_dev_reset(f->dev);
    assert_int_equal(test_driver_status(&f->driver), 0);
    test_mmio_write(&f->machine, f->driver.common + 22, 2, 0);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.common + 28, 2), 0);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.common + 24, 2), 256);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.common + 26, 2), 0xffff);
    test_kick(&f->driver, 0);
    start(f, ~0ull);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
}

static void test_configuration_window_reaches_the_registers(void **state)
{
    struct fixture *f = *state;
    unsigned window;

    start(f, 0);
    window = f->driver.window;
    test_config_write(&f->machine, SLOT, window + 4, 1, 0);
    test_config_write(&f->machine, SLOT, window + 8, 4, 20); /* status */
    test_config_write(&f->machine, SLOT, window + 12, 4, 1);
    assert_int_equal(test_config_read(&f->machine, SLOT, window + 16, 1),
                     test_driver_status(&f->driver));
    test_config_write(&f->machine, SLOT, window + 8, 4, 0x2000); /* capacity */
    test_config_write(&f->machine, SLOT, window + 12, 4, 4);
    assert_int_equal(test_config_read(&f->machine, SLOT, window + 16, 4), DISK_BYTES / 512);
    /* outside: nothing */
    test_config_write(&f->machine, SLOT, window + 8, 4, 0xfffffffc);
    assert_int_equal(test_config_read(&f->machine, SLOT, window + 16, 4), 0);
    test_config_write(&f->machine, SLOT, window + 16, 4, 0xffffffff);
    assert_int_equal(request(f, IN, 0, DATA, 512, true, NULL), OK);
}

static void test_host_errors_reach_the_guest_as_such(void **state)
{
    struct fixture *f = *state;

    start(f, 0);
    assert_int_equal(ftruncate(f->fd, DISK_BYTES / 2), 0); /* behind the device's back */
    assert_int_equal(request(f, IN, DISK_BYTES / 512 - 8, DATA, 4096, true, NULL), IOERR);
    assert_int_equal(request(f, IN, DISK_BYTES / 1024 - 4, DATA, 4096, true, NULL), IOERR);
    assert_int_equal(request(f, IN, 0, DATA, 4096, true, NULL), OK);
}

static void test_writes_the_host_refuses_fail(void **state)
{
    struct fixture *f = *state;
    struct block_config config = {.path = "sealed",
                                  .fd = memfd_create("sealed", MFD_ALLOW_SEALING)};
    struct err err = {0};

    assert_int_equal(ftruncate(config.fd, DISK_BYTES), 0);
    assert_int_equal(fcntl(config.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    /* the fixture's own disk makes room for this one */
    block_stop(f->block);
    virtio_dev_destroy(f->dev);
    block_destroy(f->block);
    assert_int_equal(block_create(&config, &err, &f->block), 0);
    assert_int_equal(create_device(f, NULL), 0);
    assert_int_equal(block_start(f->block, &err), 0);
    start(f, ~0ull);
    assert_int_equal(request(f, OUT, 0, DATA, 4096, false, NULL), IOERR);
    write_range(f, 0, 8, 0);
    assert_int_equal(request(f, ZEROES, 0, DATA, 16, false, NULL), IOERR);
    assert_int_equal(request(f, IN, 0, DATA, 4096, true, NULL), OK);
}

static void test_second_writer_is_told(void **state)
{
    struct fixture *f = *state;
    struct block_config config = {.fd = -1, .path = f->path};
    struct block *second = NULL;
    struct err err = {0};

    assert_int_equal(block_create(&config, &err, &second), -EBUSY);
    assert_non_null(strstr(err.text, f->path));
    assert_non_null(strstr(err.text, "in use"));
    config.read_only = true;
    assert_int_equal(block_create(&config, &err, &second), -EBUSY);
    assert_null(second);
}

static void test_two_readers_share(void **state)
{
    struct fixture *f = *state;
    struct block_config config = {.fd = -1, .path = f->path, .read_only = true};
    struct block *second = NULL;
    struct err err = {0};

    assert_int_equal(block_create(&config, &err, &second), 0);
    block_destroy(second);
}

static void test_odd_images_are_refused_with_a_sentence(void **state)
{
    struct fixture *f = *state;
    struct block_config config = {.fd = -1, .path = "/tmp/corbel-no-such-disk"};
    struct block *block = NULL;
    struct err err = {0};

    assert_int_equal(block_create(&config, &err, &block), -ENOENT);
    assert_non_null(strstr(err.text, "corbel-no-such-disk"));
    config.path = "/tmp";
    assert_int_equal(block_create(&config, &err, &block), -EISDIR);
    config.read_only = true;
    assert_int_equal(block_create(&config, &err, &block), -EINVAL);
    config.path = f->path;
    assert_int_equal(ftruncate(f->fd, 1000), 0);
    assert_int_equal(block_create(&config, &err, &block), -EINVAL);
    assert_non_null(strstr(err.text, "multiple of 512"));
    assert_int_equal(ftruncate(f->fd, 0), 0);
    assert_int_equal(block_create(&config, &err, &block), -EINVAL);
    assert_non_null(strstr(err.text, "empty"));
}

#define BLK_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define RO_TEST(name) cmocka_unit_test_setup_teardown(name, setup_read_only, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BLK_TEST(test_config_space_describes_the_disk),
        BLK_TEST(test_read_returns_the_file),
        BLK_TEST(test_random_transfers_keep_the_content),
        BLK_TEST(test_random_transfers_with_event_index_keep_the_content),
        BLK_TEST(test_transfers_by_intx_keep_the_content),
        BLK_TEST(test_scattered_indirect_transfer_works),
        BLK_TEST(test_header_and_status_may_be_split_anywhere),
        BLK_TEST(test_many_requests_in_flight_all_complete),
        BLK_TEST(test_one_interrupt_serves_a_batch),
        BLK_TEST(test_get_id_tells_the_serial),
        BLK_TEST(test_write_zeroes_reads_as_zero_and_spares_the_rest),
        BLK_TEST(test_discard_gives_space_back),
        BLK_TEST(test_requests_outside_the_disk_fail),
        RO_TEST(test_read_only_disk_refuses_writes),
        BLK_TEST(test_hostile_chains_break_only_the_device),
        BLK_TEST(test_hostile_indirect_tables_break_only_the_device),
        BLK_TEST(test_indirect_without_the_feature_breaks_the_device),
        BLK_TEST(test_bad_rings_break_the_device_at_driver_ok),
        BLK_TEST(test_odd_queue_sizes_break_the_device),
        BLK_TEST(test_an_enabled_queue_cannot_be_changed),
        BLK_TEST(test_unknown_features_are_refused),
        BLK_TEST(test_reset_with_requests_in_flight_ends_clean),
        BLK_TEST(test_machine_reset_makes_it_as_created),
        BLK_TEST(test_configuration_window_reaches_the_registers),
        BLK_TEST(test_host_errors_reach_the_guest_as_such),
        BLK_TEST(test_writes_the_host_refuses_fail),
        BLK_TEST(test_second_writer_is_told),
        RO_TEST(test_two_readers_share),
        RO_TEST(test_odd_images_are_refused_with_a_sentence),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
