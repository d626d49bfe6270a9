/* Which pages of user code are not run natively for what they hold (engine/native_scan.c). */
#include "test.h"

#include "engine/native_int.h"

#include <string.h>

static bool flags(const char *bytes, size_t count, unsigned at, const char *next)
{
    uint8_t page[4096];

    memset(page, 0x90, sizeof(page));
    memcpy(page + at, bytes, count);
    return native_scan_page(page, (const uint8_t *)next, true, true);
}
#define FLAGS(bytes, at) flags(bytes, sizeof(bytes) - 1, at, NULL)

static void test_scan_finds_what_tells_of_the_host(void **state)
{
    (void)state;
    assert_false(FLAGS("\x90", 0));
    assert_true(FLAGS("\x0f\x01\xf9", 0)); /* RDTSCP */
    assert_true(FLAGS("\x0f\x01\xf9", 4093));
    assert_true(FLAGS("\x0f\x01\xd0", 7));     /* XGETBV */
    assert_true(FLAGS("\x0f\xa2", 100));       /* CPUID */
    assert_true(FLAGS("\x0f\x03\xc1", 100));   /* LSL */
    assert_true(FLAGS("\xf3\x0f\xc7\xf8", 9)); /* RDPID */
    assert_true(FLAGS("\xf3\x48\x0f\xc7\xff", 9));
    assert_false(FLAGS("\x0f\xc7\xf8", 9)); /* RDSEED */
    assert_true(FLAGS("\x0f\xae\x20", 9));  /* XSAVE */
    assert_false(FLAGS("\x0f\xae\x28", 9)); /* XRSTOR */
    assert_false(FLAGS("\xb8\xee\x00\x00\x00\x31\xd2\x0f\xae\x64\x24\x40", 9));
    assert_false(FLAGS("\x0f\x01\xc8", 0));
    /* The system call that no filter sees, and others. */
    assert_true(FLAGS("\x51\x41\x53\x50\x48\xc7\xc0\x50\x01\x00\x00\x0f\x05", 200));
    assert_true(FLAGS("\xb8\x50\x01\x00\x00\x0f\x05", 0));
    assert_false(FLAGS("\xb8\x51\x01\x00\x00\x0f\x05", 200));
    assert_false(FLAGS("\x0f\x05", 0));
    for (unsigned at = 0; at < 4094; at++) {
        assert_true(FLAGS("\x0f\x01\xf9", at));
        assert_false(FLAGS("\x0f\x02\xf9", at));
    }
    /* Across the end of the page. */
    assert_true(flags("\x0f", 1, 4095, "\x01\xf9"));
    assert_true(flags("\x0f\x01", 2, 4094, "\xf9\x90"));
    assert_false(flags("\x0f\x01", 2, 4094, "\xc8\x90"));
    assert_false(flags("\x0f", 1, 4095, NULL));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scan_finds_what_tells_of_the_host),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
