/* The CPUID policy against what guests read out of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <cpuid.h>

#include "cpu/cpuid.h"
#include "cpu/x86.h"

enum { EAX, EBX, ECX, EDX };

static void test_leaf0_vendor_is_the_hosts(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];
    uint32_t host[4];

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    cpuid_query(&table, 0, 0, 0, 1, regs);
    __cpuid(0, host[EAX], host[EBX], host[ECX], host[EDX]);
    assert_int_equal(regs[EAX], 0x16);
    assert_memory_equal(&regs[EBX], &host[EBX], 12);
}

static void test_leaf1_hides_vmx_and_shows_osxsave_with_cr4(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];

    (void)unused;
    cpuid_table_init(&table, 3, 4);
    cpuid_query(&table, 1, 0, 0, 1, regs);
    assert_int_equal(regs[EBX] >> 24, 3);
    assert_int_equal((regs[EBX] >> 16) & 0xff, 4);
    assert_int_equal(regs[ECX] & (1u << 5), 0);
    assert_int_equal(regs[ECX] & (1u << 3), 0);
    assert_int_equal(regs[ECX] & (1u << 27), 0);
    assert_true(regs[ECX] & (1u << 21));
    assert_true(regs[ECX] & (1u << 31));
    assert_true(regs[EDX] & (1u << 28));
    cpuid_query(&table, 1, 0, X86_CR4_OSXSAVE, 1, regs);
    assert_true(regs[ECX] & (1u << 27));
}

/* Programs take a CPU's name as a promise of instructions, too. */
static void test_the_name_promises_no_hidden_instructions(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];
    uint32_t host[4];
    uint32_t vendor[4];
    uint32_t features[4];
    bool promises_more;

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    cpuid_query(&table, 1, 0, 0, 0, regs);
    __cpuid(0, vendor[EAX], vendor[EBX], vendor[ECX], vendor[EDX]);
    __cpuid(1, host[EAX], host[EBX], host[ECX], host[EDX]);
    __cpuid_count(7, 0, features[EAX], features[EBX], features[ECX], features[EDX]);
    promises_more =
        vendor[ECX] == 0x6c65746e && ((features[EBX] >> 16 | features[ECX] >> 8) & 1) != 0;
    assert_int_equal(regs[EAX] & 0x0ff00f00, host[EAX] & 0x0ff00f00);
    if (promises_more && (host[EAX] & 0x0ff00f00) == 0x600) {
        assert_int_equal(regs[EAX] & 0x000f00f0, 0x000f00f0); /* a model that does not exist */
    } else {
        assert_int_equal(regs[EAX], host[EAX]);
    }
}

static void test_features_never_exceed_host(void **unused)
{
    struct cpuid_table table;
    uint32_t host[4];

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    __cpuid_count(7, 0, host[EAX], host[EBX], host[ECX], host[EDX]);
    const unsigned native[] = {3, 5, 8, 18, 19, 29};
    for (unsigned i = 0; i < sizeof(native) / sizeof(native[0]); i++) {
        if (cpuid_has(&table, 7, 0, EBX, native[i])) {
            assert_true(host[EBX] & (1u << native[i]));
        }
    }
    /* AVX-512F, MPX, HLE, RTM, PT, PKU, CET, LA57, AMX-TILE. */
    assert_false(cpuid_has(&table, 7, 0, EBX, 16));
    assert_false(cpuid_has(&table, 7, 0, EBX, 14));
    assert_false(cpuid_has(&table, 7, 0, EBX, 4));
    assert_false(cpuid_has(&table, 7, 0, EBX, 11));
    assert_false(cpuid_has(&table, 7, 0, EBX, 25));
    assert_false(cpuid_has(&table, 7, 0, ECX, 3));
    assert_false(cpuid_has(&table, 7, 0, ECX, 7));
    assert_false(cpuid_has(&table, 7, 0, ECX, 16));
    assert_false(cpuid_has(&table, 7, 0, EDX, 24));
}

static void test_topology_unknown_level_keeps_apic_id(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];

    (void)unused;
    cpuid_table_init(&table, 2, 3);
    cpuid_query(&table, 0xb, 1, 0, 1, regs);
    assert_int_equal(regs[EAX], 2);
    assert_int_equal(regs[EBX], 3);
    assert_int_equal(regs[ECX], 0x201);
    assert_int_equal(regs[EDX], 2);
    cpuid_query(&table, 0xb, 7, 0, 1, regs);
    assert_int_equal(regs[EAX], 0);
    assert_int_equal(regs[EBX], 0);
    assert_int_equal(regs[ECX], 7);
    assert_int_equal(regs[EDX], 2);
}

static void test_xsave_size_follows_xcr0(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    if (!cpuid_has(&table, 1, 0, ECX, 28)) {
        skip();
    }
    cpuid_query(&table, 0xd, 0, 0, 3, regs);
    assert_int_equal(regs[EAX], 7);
    assert_int_equal(regs[EBX], 576);
    assert_int_equal(regs[ECX], 832);
    cpuid_query(&table, 0xd, 0, 0, 7, regs);
    assert_int_equal(regs[EBX], 832);
    cpuid_query(&table, 0xd, 2, 0, 7, regs);
    assert_int_equal(regs[EAX], 256);
    assert_int_equal(regs[EBX], 576);
    cpuid_query(&table, 0xd, 9, 0, 7, regs);
    assert_int_equal(regs[EAX], 0);
}

static void test_tsc_leaf_gives_frequency_as_linux_computes_it(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    cpuid_query(&table, 0x15, 0, 0, 1, regs);
    assert_int_not_equal(regs[EAX], 0);
    const uint32_t crystal_khz = regs[ECX] / 1000;
    const uint32_t tsc_khz = crystal_khz * regs[EBX] / regs[EAX];
    assert_int_equal((uint64_t)crystal_khz * regs[EBX] >> 32, 0);
    const uint64_t real_khz = cpuid_tsc_hz() / 1000;
    const uint64_t off = real_khz > tsc_khz ? real_khz - tsc_khz : tsc_khz - real_khz;
    assert_true(off <= real_khz / 500000 + 1);
    assert_true(real_khz > 100000 && real_khz < 20000000);
}

static void test_beyond_highest_leaf_answers_as_highest(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];
    uint32_t highest[4];

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    cpuid_query(&table, 0x16, 0, 0, 1, highest);
    const uint32_t beyond[] = {0x17,       0x20,       0x3fffffff, 0x40000011,
                               0x7fffffff, 0x80000009, 0xffffffff};
    for (unsigned i = 0; i < sizeof(beyond) / sizeof(beyond[0]); i++) {
        cpuid_query(&table, beyond[i], 0, 0, 1, regs);
        assert_memory_equal(regs, highest, sizeof(regs));
    }
    cpuid_query(&table, 0xc, 0, 0, 1, regs);
    assert_int_equal(regs[EAX] | regs[EBX] | regs[ECX] | regs[EDX], 0);
}

static void test_hypervisor_signature_is_kvm(void **unused)
{
    struct cpuid_table table;
    uint32_t regs[4];

    (void)unused;
    cpuid_table_init(&table, 0, 1);
    cpuid_query(&table, 0x40000000, 0, 0, 1, regs);
    assert_memory_equal(&regs[EBX], "KVMKVMKVM\0\0\0", 12);
    /* No kvmclock of either generation: both engines give a TSC with known frequency. */
    assert_false(cpuid_has(&table, 0x40000001, 0, EAX, 0));
    assert_false(cpuid_has(&table, 0x40000001, 0, EAX, 3));
    assert_true(cpuid_has(&table, 0x40000001, 0, EAX, 15));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaf0_vendor_is_the_hosts),
        cmocka_unit_test(test_leaf1_hides_vmx_and_shows_osxsave_with_cr4),
        cmocka_unit_test(test_the_name_promises_no_hidden_instructions),
        cmocka_unit_test(test_features_never_exceed_host),
        cmocka_unit_test(test_topology_unknown_level_keeps_apic_id),
        cmocka_unit_test(test_xsave_size_follows_xcr0),
        cmocka_unit_test(test_tsc_leaf_gives_frequency_as_linux_computes_it),
        cmocka_unit_test(test_beyond_highest_leaf_answers_as_highest),
        cmocka_unit_test(test_hypervisor_signature_is_kvm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
