#include "mem/gmem.h"

#include "base/wire.h"
#include "test.h"

#include <errno.h>
#include <sys/stat.h>

#define MIB (1ull << 20)
#define PAGE ((uint64_t)GMEM_PAGE_BYTES)

struct heard {
    unsigned calls;
    uint64_t gpa;
    uint64_t len;
};

static int setup(void **state)
{
    struct gmem *gmem;

    if (gmem_create(4 * MIB, NULL, &gmem) < 0) {
        return -1;
    }
    *state = gmem;
    return 0;
}

static int teardown(void **state)
{
    gmem_destroy(*state);
    return 0;
}

static void test_create_odd_size_refused_with_a_sentence(void **state)
{
    struct gmem *gmem = NULL;
    struct err err = {0};

    (void)state;
    assert_int_equal(gmem_create(MIB + 4096, &err, &gmem), -EINVAL);
    assert_null(gmem);
    assert_non_null(strstr(err.text, "multiple of 1 MiB"));
    assert_int_equal(gmem_create(0, &err, &gmem), -EINVAL);
}

static void test_create_more_than_the_host_has_refused(void **state)
{
    struct gmem *gmem = NULL;
    struct err err = {0};

    (void)state;
    assert_int_equal(gmem_create(1ull << 45, &err, &gmem), -ENOMEM);
    assert_null(gmem);
    assert_non_null(strstr(err.text, "more than this host has"));
}

static void test_write_then_read_same_bytes(void **state)
{
    struct gmem *gmem = *state;
    uint8_t in[5000], out[5000];

    for (size_t i = 0; i < sizeof(in); i++) {
        in[i] = (uint8_t)(i * 7);
    }
    assert_int_equal(gmem_write(gmem, gpa(PAGE - 3), in, sizeof(in)), 0);
    assert_int_equal(gmem_read(gmem, gpa(PAGE - 3), out, sizeof(out)), 0);
    assert_memory_equal(in, out, sizeof(in));
}

static void test_last_byte_allowed_and_one_beyond_refused(void **state)
{
    struct gmem *gmem = *state;
    uint8_t bytes[2] = {0x5a, 0xa5};

    assert_int_equal(gmem_write(gmem, gpa(4 * MIB - 2), bytes, 2), 0);
    assert_int_equal(gmem_write(gmem, gpa(4 * MIB - 1), bytes, 2), -EFAULT);
    assert_int_equal(gmem_read(gmem, gpa(4 * MIB), bytes, 1), -EFAULT);
    assert_int_equal(gmem_fill(gmem, gpa(4 * MIB - 1), 0, 2), -EFAULT);
    assert_int_equal(gmem_read(gmem, gpa(4 * MIB - 1), bytes, 1), 0);
    assert_int_equal(bytes[0], 0xa5); /* the refused write copied nothing */
}

static void test_wrapping_ranges_refused(void **state)
{
    struct gmem *gmem = *state;
    uint8_t byte = 0;

    assert_int_equal(gmem_read(gmem, gpa(UINT64_MAX), &byte, 1), -EFAULT);
    assert_int_equal(gmem_read(gmem, gpa(4096), &byte, SIZE_MAX - 4095), -EFAULT);
    assert_int_equal(gmem_read(gmem, gpa(4096), &byte, SIZE_MAX), -EFAULT);
    assert_int_equal(gmem_discard(gmem, gpa(PAGE), UINT64_MAX), -EFAULT);
    assert_null(gmem_host(gmem, gpa(UINT64_MAX - 7), 16));
}

static void test_memory_above_the_hole_lives_at_4gib(void **state)
{
    const uint64_t size = GMEM_HOLE_START + 2 * MIB;
    struct gmem *gmem = NULL;
    struct err err = {0};
    uint8_t byte = 0x42;
    int rc = gmem_create(size, &err, &gmem);

    (void)state;
    if (rc == -ENOMEM) {
        skip(); /* a host with less than 3 GiB */
    }
    assert_int_equal(rc, 0);
    assert_int_equal(gmem_region_count(gmem), 2);
    assert_true(gmem_region(gmem, 1)->gpa == GMEM_HOLE_END);
    assert_true(gmem_region(gmem, 1)->fd_offset == GMEM_HOLE_START);
    assert_true(gmem_region(gmem, 1)->size_bytes == 2 * MIB);
    assert_null(gmem_region(gmem, 2));
    assert_int_equal(gmem_write(gmem, gpa(GMEM_HOLE_START), &byte, 1), -EFAULT);
    assert_int_equal(gmem_write(gmem, gpa(GMEM_HOLE_END - 1), &byte, 1), -EFAULT);
    assert_int_equal(gmem_write(gmem, gpa(GMEM_HOLE_END + 2 * MIB), &byte, 1), -EFAULT);
    assert_int_equal(gmem_write(gmem, gpa(GMEM_HOLE_END + 2 * MIB - 1), &byte, 1), 0);
    assert_int_equal(*gmem_host(gmem, gpa(GMEM_HOLE_END + 2 * MIB - 1), 1), 0x42);
    gmem_destroy(gmem);
}

static void test_atomic_accesses_need_alignment_and_keep_byte_order(void **state)
{
    struct gmem *gmem = *state;
    uint8_t bytes[8];
    uint16_t v16 = 0;
    uint32_t v32 = 0;
    uint64_t v64 = 0;

    assert_int_equal(gmem_store_le64(gmem, gpa(64), 0x1122334455667788ull), 0);
    assert_int_equal(gmem_read(gmem, gpa(64), bytes, 8), 0);
    assert_int_equal(bytes[0], 0x88);
    assert_int_equal(gmem_load_le64(gmem, gpa(64), &v64), 0);
    assert_true(v64 == 0x1122334455667788ull);
    assert_int_equal(gmem_load_le32(gmem, gpa(68), &v32), 0);
    assert_int_equal(v32, 0x11223344);
    assert_int_equal(gmem_load_le16(gmem, gpa(66), &v16), 0);
    assert_int_equal(v16, 0x5566);
    assert_int_equal(gmem_store_le16(gmem, gpa(66), 0xbeef), 0);
    assert_int_equal(gmem_store_le32(gmem, gpa(68), 0xcafef00d), 0);
    assert_int_equal(gmem_load_le64(gmem, gpa(64), &v64), 0);
    assert_true(v64 == 0xcafef00dbeef7788ull);
    assert_int_equal(gmem_load_le64(gmem, gpa(68), &v64), -EFAULT);
    assert_int_equal(gmem_load_le32(gmem, gpa(66), &v32), -EFAULT);
    assert_int_equal(gmem_store_le16(gmem, gpa(65), 1), -EFAULT);
    assert_int_equal(gmem_load_le16(gmem, gpa(4 * MIB), &v16), -EFAULT);
}

static void test_pin_describes_the_same_memory(void **state)
{
    struct gmem *gmem = *state;
    struct iovec iov[1];
    char text[6] = "";

    assert_int_equal(gmem_pin(gmem, gpa(100), 6, GMEM_DEVICE_WRITES, iov, 1), 1);
    memcpy(iov[0].iov_base, "hello", 6);
    gmem_unpin(gmem, gpa(100), 6, GMEM_DEVICE_WRITES);
    assert_int_equal(gmem_read(gmem, gpa(100), text, 6), 0);
    assert_string_equal(text, "hello");
    assert_int_equal(gmem_pin(gmem, gpa(100), 6, GMEM_DEVICE_WRITES, iov, 0), -E2BIG);
    assert_int_equal(gmem_pin(gmem, gpa(100), 0, GMEM_DEVICE_READS, iov, 0), 0);
    assert_int_equal(gmem_pin(gmem, gpa(4 * MIB), 1, GMEM_DEVICE_READS, iov, 1), -EFAULT);
}

static void hear(void *opaque, gpa_t gpa, uint64_t len)
{
    struct heard *heard = opaque;

    heard->calls++;
    heard->gpa = gpa.v;
    heard->len = len;
}

static void test_write_to_a_code_page_is_heard_and_others_are_not(void **state)
{
    struct gmem *gmem = *state;
    struct heard heard = {0};
    struct iovec iov;
    uint8_t byte = 1;

    gmem_set_code_listener(gmem, hear, &heard);
    atomic_fetch_or(gmem_page_flags(gmem, gpa(3 * PAGE)), GMEM_PAGE_CODE);
    assert_int_equal(gmem_write(gmem, gpa(3 * PAGE - 1), &byte, 1), 0);
    assert_int_equal(gmem_write(gmem, gpa(4 * PAGE), &byte, 1), 0);
    assert_int_equal(gmem_write(gmem, gpa(3 * PAGE), &byte, 0), 0);
    assert_int_equal(heard.calls, 0);
    assert_int_equal(gmem_fill(gmem, gpa(PAGE), 0, 3 * PAGE), 0);
    assert_int_equal(heard.calls, 1);
    assert_true(heard.gpa == PAGE && heard.len == 3 * PAGE);
    assert_int_equal(gmem_store_le16(gmem, gpa(4 * PAGE - 2), 1), 0);
    assert_int_equal(heard.calls, 2);
    assert_int_equal(gmem_pin(gmem, gpa(3 * PAGE), 8, GMEM_DEVICE_READS, &iov, 1), 1);
    gmem_unpin(gmem, gpa(3 * PAGE), 8, GMEM_DEVICE_READS);
    assert_int_equal(heard.calls, 2);
    gmem_unpin(gmem, gpa(3 * PAGE), 8, GMEM_DEVICE_WRITES);
    assert_int_equal(heard.calls, 3);
    assert_int_equal(gmem_discard(gmem, gpa(3 * PAGE), PAGE), 0);
    assert_int_equal(heard.calls, 4);
}

static void test_dirty_log_names_exactly_the_pages_written(void **state)
{
    struct gmem *gmem = *state;
    uint64_t bitmap[4 * MIB / 4096 / 64] = {0};
    uint8_t byte = 1;

    assert_int_equal(gmem_write(gmem, gpa(0), &byte, 1), 0); /* before the log starts */
    gmem_dirty_log_start(gmem);
    assert_true(gmem_dirty_logging(gmem));
    assert_int_equal(gmem_write(gmem, gpa(66 * PAGE - 1), &byte, 1), 0);
    assert_int_equal(gmem_fill(gmem, gpa(127 * PAGE + 5), 0, PAGE), 0);
    assert_int_equal(gmem_read(gmem, gpa(9 * PAGE), &byte, 1), 0);
    gmem_dirty_log_fetch(gmem, bitmap);
    assert_true(bitmap[0] == 0);
    assert_true(bitmap[1] == (1ull << 1 | 1ull << 63));
    assert_true(bitmap[2] == 1);
    memset(bitmap, 0, sizeof(bitmap));
    gmem_dirty_log_fetch(gmem, bitmap);
    assert_true(bitmap[1] == 0 && bitmap[2] == 0);
    gmem_dirty_log_stop(gmem);
    assert_int_equal(gmem_write(gmem, gpa(0), &byte, 1), 0);
    gmem_dirty_log_fetch(gmem, bitmap);
    assert_true(bitmap[0] == 0);
}

static void test_discard_gives_whole_pages_back_and_zeroes_them(void **state)
{
    struct gmem *gmem = *state;
    struct stat before, after;
    uint8_t byte = 0;

    assert_int_equal(gmem_fill(gmem, gpa(0), 0xff, MIB), 0);
    assert_int_equal(fstat(gmem_fd(gmem), &before), 0);
    assert_int_equal(gmem_discard(gmem, gpa(PAGE - 1), 100 * PAGE + 2), 0);
    assert_int_equal(fstat(gmem_fd(gmem), &after), 0);
    assert_true(before.st_blocks - after.st_blocks == (blkcnt_t)(100 * PAGE / 512));
    assert_int_equal(gmem_read(gmem, gpa(PAGE - 1), &byte, 1), 0);
    assert_int_equal(byte, 0xff);
    assert_int_equal(gmem_read(gmem, gpa(PAGE), &byte, 1), 0);
    assert_int_equal(byte, 0);
    assert_int_equal(gmem_read(gmem, gpa(101 * PAGE), &byte, 1), 0);
    assert_int_equal(byte, 0xff);
    assert_int_equal(gmem_discard(gmem, gpa(200 * PAGE + 1), PAGE), 0); /* no whole page */
    assert_int_equal(gmem_read(gmem, gpa(200 * PAGE + 1), &byte, 1), 0);
    assert_int_equal(byte, 0xff);
}

static void test_fresh_memory_takes_no_space(void **state)
{
    struct gmem *gmem = *state;
    struct stat st;

    assert_int_equal(fstat(gmem_fd(gmem), &st), 0);
    /* RAM and a byte for each of its pages */
    assert_true((uint64_t)st.st_size >= gmem_size_bytes(gmem) + gmem_size_bytes(gmem) / PAGE);
    assert_int_equal(st.st_blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_odd_size_refused_with_a_sentence),
        cmocka_unit_test(test_create_more_than_the_host_has_refused),
        cmocka_unit_test_setup_teardown(test_write_then_read_same_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_last_byte_allowed_and_one_beyond_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_wrapping_ranges_refused, setup, teardown),
        cmocka_unit_test(test_memory_above_the_hole_lives_at_4gib),
        cmocka_unit_test_setup_teardown(test_atomic_accesses_need_alignment_and_keep_byte_order,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_pin_describes_the_same_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_write_to_a_code_page_is_heard_and_others_are_not,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty_log_names_exactly_the_pages_written, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_discard_gives_whole_pages_back_and_zeroes_them, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_fresh_memory_takes_no_space, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
