#include "base/wire.h"

#include "test.h"

static void test_load_unaligned_little_endian(void **state)
{
    const uint8_t bytes[] = {0xff, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08};

    (void)state;
    assert_int_equal(load_le16(bytes + 1), 0x0201);
    assert_int_equal(load_le32(bytes + 1), 0x04030201);
    assert_true(load_le64(bytes + 1) == 0x0807060504030201ull);
}

static void test_store_then_load_same_value_and_neighbours_untouched(void **state)
{
    uint8_t bytes[10];

    (void)state;
    memset(bytes, 0xee, sizeof(bytes));
    store_le64(bytes + 1, 0x1122334455667788ull);
    assert_int_equal(bytes[0], 0xee);
    assert_int_equal(bytes[1], 0x88);
    assert_int_equal(bytes[8], 0x11);
    assert_int_equal(bytes[9], 0xee);
    store_le16(bytes + 3, 0xabcd);
    assert_int_equal(bytes[2], 0x77);
    assert_int_equal(load_le16(bytes + 3), 0xabcd);
    assert_int_equal(bytes[5], 0x44);
    store_le32(bytes + 5, 0xdeadbeef);
    assert_int_equal(load_le32(bytes + 5), 0xdeadbeef);
}

static void test_wire_types_have_wire_order(void **state)
{
    le32_t value = le32_make(0x01020304);
    uint8_t bytes[4];

    (void)state;
    memcpy(bytes, &value, sizeof(bytes));
    assert_int_equal(bytes[0], 4);
    assert_int_equal(bytes[3], 1);
    assert_int_equal(le32_get(value), 0x01020304);
    assert_int_equal(le16_get(le16_make(0x1234)), 0x1234);
    assert_true(le64_get(le64_make(1ull << 63)) == 1ull << 63);
}

static void test_add_overflow_refused_and_result_untouched(void **state)
{
    uint64_t sum = 7;

    (void)state;
    assert_true(ck_add_u64(UINT64_MAX - 1, 1, &sum));
    assert_true(sum == UINT64_MAX);
    sum = 7;
    assert_false(ck_add_u64(UINT64_MAX, 1, &sum));
    assert_true(sum == 7);
}

static void test_mul_overflow_refused_and_result_untouched(void **state)
{
    uint64_t product = 7;

    (void)state;
    assert_true(ck_mul_u64(1ull << 32, (1ull << 32) - 1, &product));
    assert_true(product == ((1ull << 32) - 1) << 32);
    product = 7;
    assert_false(ck_mul_u64(1ull << 32, 1ull << 32, &product));
    assert_true(product == 7);
}

static void test_align_rounds_up_and_refuses_wrap(void **state)
{
    uint64_t aligned = 7;

    (void)state;
    assert_true(ck_align_u64(0, 4096, &aligned));
    assert_true(aligned == 0);
    assert_true(ck_align_u64(4097, 4096, &aligned));
    assert_true(aligned == 8192);
    assert_true(ck_align_u64(8192, 4096, &aligned));
    assert_true(aligned == 8192);
    assert_false(ck_align_u64(UINT64_MAX - 4094, 4096, &aligned));
    assert_true(aligned == 8192);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_unaligned_little_endian),
        cmocka_unit_test(test_store_then_load_same_value_and_neighbours_untouched),
        cmocka_unit_test(test_wire_types_have_wire_order),
        cmocka_unit_test(test_add_overflow_refused_and_result_untouched),
        cmocka_unit_test(test_mul_overflow_refused_and_result_untouched),
        cmocka_unit_test(test_align_rounds_up_and_refuses_wrap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
