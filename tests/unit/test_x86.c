/* The state of a CPU after power-on, INIT and SIPI, as SDM 3A table 9-1 has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/x86.h"

static void test_reset_bsp_starts_at_reset_vector(void **unused)
{
    struct vcpu_state state;

    (void)unused;
    memset(&state, 0xa5, sizeof(state));
    vcpu_state_reset(&state, true);
    assert_int_equal(state.mp_state, X86_MP_RUNNABLE);
    assert_int_equal(state.seg[X86_CS].base + state.rip, 0xfffffff0);
    assert_int_equal(state.cr0, 0x60000010);
    assert_int_equal(state.rflags, 2);
    assert_int_equal(state.efer, 0);
    assert_int_equal(state.xcr0, 1);
    assert_int_equal(state.apic_base, 0xfee00900);
    assert_int_equal(state.pat, 0x0007040600070406);
    assert_int_equal(state.dr[6], 0xffff0ff0);
    assert_int_equal(vcpu_state_cpl(&state), 0);
    assert_false(state.events.nmi_pending);
}

static void test_reset_ap_waits_for_init(void **unused)
{
    struct vcpu_state state;

    (void)unused;
    vcpu_state_reset(&state, false);
    assert_int_equal(state.mp_state, X86_MP_UNINITIALIZED);
    assert_int_equal(state.apic_base, 0xfee00800);
}

static void test_init_keeps_msrs_fpu_and_cache_bits(void **unused)
{
    struct vcpu_state state;

    (void)unused;
    vcpu_state_reset(&state, false);
    state.cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_NW | X86_CR0_ET;
    state.cr4 = X86_CR4_PAE;
    state.efer = X86_EFER_LME | X86_EFER_LMA;
    state.lstar = 0x1234;
    state.xcr0 = 7;
    state.mtrr_def_type = 0xc06;
    state.xsave[160] = 0x77;
    state.gpr[X86_RSP] = 1;
    state.events.nmi_blocked = true;
    state.mp_state = X86_MP_RUNNABLE;
    vcpu_state_init_ipi(&state);
    assert_int_equal(state.cr0, X86_CR0_NW | X86_CR0_ET);
    assert_int_equal(state.cr4, 0);
    assert_int_equal(state.efer, 0);
    assert_int_equal(state.lstar, 0x1234);
    assert_int_equal(state.xcr0, 7);
    assert_int_equal(state.mtrr_def_type, 0xc06);
    assert_int_equal(state.xsave[160], 0x77);
    assert_int_equal(state.gpr[X86_RSP], 0);
    assert_false(state.events.nmi_blocked);
    assert_int_equal(state.mp_state, X86_MP_WAIT_FOR_SIPI);
}

static void test_sipi_starts_at_vector_page(void **unused)
{
    struct vcpu_state state;

    (void)unused;
    vcpu_state_reset(&state, false);
    vcpu_state_init_ipi(&state);
    vcpu_state_sipi(&state, 0x9a);
    assert_int_equal(state.mp_state, X86_MP_RUNNABLE);
    assert_int_equal(state.seg[X86_CS].selector, 0x9a00);
    assert_int_equal(state.seg[X86_CS].base, 0x9a000);
    assert_int_equal(state.rip, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reset_bsp_starts_at_reset_vector),
        cmocka_unit_test(test_reset_ap_waits_for_init),
        cmocka_unit_test(test_init_keeps_msrs_fpu_and_cache_bits),
        cmocka_unit_test(test_sipi_starts_at_vector_page),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
