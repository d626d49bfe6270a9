#include "engine_rig.h"

static void test_arith_and_memory_run_and_halt(void **state)
{
    struct rig *rig = *state;

    /* mov eax,5; add eax,7; mov [0x50000],eax; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\xb8\x05\x00\x00\x00\x83\xc0\x07\x89\x04\x25\x00\x00\x05\x00\xf4");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.rip, RIG_CODE + 16);
    assert_int_equal(rig->st.mp_state, X86_MP_HALTED);
    assert_int_equal(rig_peek32(rig, RIG_DATA), 12);
    assert_int_equal(rig->st.rflags & X86_FLAGS_ARITH, X86_FLAG_PF);
}

static void test_call_ret_loop_and_stack(void **state)
{
    struct rig *rig = *state;

    /* mov ecx,10; l: call f; loop l; hlt; f: push rcx; pop rbx; add rax,rbx; ret 0 */
    RIG_CODE_AT(
        rig, RIG_CODE,
        "\xb9\x0a\x00\x00\x00\xe8\x03\x00\x00\x00\xe2\xf9\xf4\x51\x5b\x48\x01\xd8\xc2\x00\x00");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.gpr[X86_RAX], 55);
    assert_int_equal(rig->st.gpr[X86_RSP], RIG_STACK);
}

static void test_lock_xadd_and_cmpxchg_work_in_guest_memory(void **state)
{
    struct rig *rig = *state;

    rig_poke64(rig, RIG_DATA, 100);
    rig->st.gpr[X86_RBX] = RIG_DATA;
    rig->st.gpr[X86_RCX] = 7;
    /* lock xadd [rbx],rcx; mov rax,107; mov edx,9; lock cmpxchg [rbx],rdx; hlt */
    RIG_CODE_AT(rig, RIG_CODE,
                "\xf0\x48\x0f\xc1\x0b\xb8\x6b\x00\x00\x00\xba\x09\x00\x00\x00"
                "\xf0\x48\x0f\xb1\x13\xf4");
    rig_run(rig);
    assert_int_equal(rig->st.gpr[X86_RCX], 100);
    assert_int_equal(rig_peek64(rig, RIG_DATA), 9);
    assert_true((rig->st.rflags & X86_FLAG_ZF) != 0);
}

static void test_page_crossing_operands_read_and_write_both_pages(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, 0x51000, 0x60000, 7);
    rig->st.gpr[X86_RBX] = 0x50ffc;
    rig->st.gpr[X86_RAX] = 0x1122334455667788;
    /* mov [rbx],rax; lock inc qword [rbx]; mov rcx,[rbx]; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\x48\x89\x03\xf0\x48\xff\x03\x48\x8b\x0b\xf4");
    rig_run(rig);
    assert_int_equal(rig->st.gpr[X86_RCX], 0x1122334455667789);
    assert_int_equal(rig_peek32(rig, 0x50ffc), 0x55667789);
    assert_int_equal(rig_peek32(rig, 0x60000), 0x11223344);
}

static void test_bit_offset_moves_the_address(void **state)
{
    struct rig *rig = *state;

    rig->st.gpr[X86_RBX] = RIG_DATA;
    rig->st.gpr[X86_RCX] = 130;
    /* bts [rbx],rcx; bt [rbx],rcx; setc al; lock btr [rbx],rcx; setc dl; hlt */
    RIG_CODE_AT(rig, RIG_CODE,
                "\x48\x0f\xab\x0b\x48\x0f\xa3\x0b\x0f\x92\xc0\xf0\x48\x0f\xb3\x0b\x0f\x92\xc2\xf4");
    rig->st.gpr[X86_RDX] = 0;
    rig_run(rig);
    assert_int_equal(rig->st.gpr[X86_RAX] & 0xff, 1);
    assert_int_equal(rig->st.gpr[X86_RDX] & 0xff, 1);
    assert_int_equal(rig_peek64(rig, RIG_DATA + 16), 0);
}

static void test_sse_state_survives_between_instructions(void **state)
{
    struct rig *rig = *state;

    rig->st.gpr[X86_RAX] = 3;
    rig->st.gpr[X86_RBX] = 4;
    /* cvtsi2sd xmm9,rax; cvtsi2sd xmm1,rbx; mulsd xmm9,xmm1; cvttsd2si rcx,xmm9; hlt */
    RIG_CODE_AT(
        rig, RIG_CODE,
        "\xf2\x4c\x0f\x2a\xc8\xf2\x48\x0f\x2a\xcb\xf2\x44\x0f\x59\xc9\xf2\x49\x0f\x2c\xc9\xf4");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.gpr[X86_RCX], 12);
}

static void test_port_read_exit_is_answered_and_completes(void **state)
{
    struct rig *rig = *state;

    /* in al,0x60; out dx,al; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\xe4\x60\xee\xf4");
    rig->st.gpr[X86_RDX] = 0x3f8;
    rig->st.gpr[X86_RAX] = 0x100;
    assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_PIO);
    assert_int_equal(rig->exit.pio.port, 0x60);
    assert_false(rig->exit.pio.is_write);
    rig->exit.pio.data = 0xa5;
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_PIO);
    assert_true(rig->exit.pio.is_write);
    assert_int_equal(rig->exit.pio.port, 0x3f8);
    assert_int_equal(rig->exit.pio.data, 0xa5);
    /* A write is done: the state already stands behind it. */
    assert_int_equal(engine_accel_ops.get_state(rig->vcpu, &rig->st), 0);
    assert_int_equal(rig->st.rip, RIG_CODE + 3);
    assert_int_equal(rig->st.gpr[X86_RAX], 0x1a5);
    rig_continue(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
}

static void test_mmio_read_modify_write_happens_once_each(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, 0x70000, 0xfee00000, 7);
    rig->st.gpr[X86_RBX] = 0x70020;
    /* or dword [rbx],1; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\x83\x0b\x01\xf4");
    assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_MMIO);
    assert_int_equal(rig->exit.mmio.gpa, 0xfee00020);
    assert_int_equal(rig->exit.mmio.size_bytes, 4);
    assert_false(rig->exit.mmio.is_write);
    rig->exit.mmio.data = 0x80;
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_MMIO);
    assert_true(rig->exit.mmio.is_write);
    assert_int_equal(rig->exit.mmio.data, 0x81);
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
}

static void test_modified_code_runs_as_modified(void **state)
{
    struct rig *rig = *state;

    /* l: mov eax,1 ; mov byte [l+1],2 ; dec ecx ; jnz l ; hlt */
    RIG_CODE_AT(rig, RIG_CODE,
                "\xb8\x01\x00\x00\x00\xc6\x04\x25\x01\x00\x01\x00\x02\xff\xc9\x75\xef\xf4");
    rig->st.gpr[X86_RCX] = 2;
    rig_run(rig);
    assert_int_equal(rig->st.gpr[X86_RAX], 2);
}

static void test_kick_leaves_an_endless_loop(void **state)
{
    struct rig *rig = *state;

    RIG_CODE_AT(rig, RIG_CODE, "\xeb\xfe");
    engine_accel_ops.kick(rig->vcpu);
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_INTR);
    assert_int_equal(rig->st.rip, RIG_CODE);
}

static void test_strings_move_fill_and_compare_across_pages(void **state)
{
    struct rig *rig = *state;
    uint8_t text[6000];
    uint8_t copy[6000];

    for (unsigned i = 0; i < sizeof(text); i++) {
        text[i] = (uint8_t)(i * 7 + i / 256);
    }
    rig_poke(rig, 0x50123, text, sizeof(text));
    rig->st.gpr[X86_RSI] = 0x50123;
    rig->st.gpr[X86_RDI] = 0x60fff;
    rig->st.gpr[X86_RCX] = sizeof(text);
    /* rep movsb; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\xf3\xa4\xf4");
    rig_run(rig);
    assert_int_equal(gmem_read(rig->gmem, gpa(0x60fff), copy, sizeof(copy)), 0);
    assert_memory_equal(copy, text, sizeof(text));
    assert_int_equal(rig->st.gpr[X86_RCX], 0);
    assert_int_equal(rig->st.gpr[X86_RSI], 0x50123 + sizeof(text));

    /* std; rep movsw backwards over a page boundary; then repe cmpsb */
    rig_state_64(rig);
    rig->st.gpr[X86_RSI] = 0x50123 + 5998;
    rig->st.gpr[X86_RDI] = 0x70001 + 5998;
    rig->st.gpr[X86_RCX] = 3000;
    RIG_CODE_AT(rig, RIG_CODE, "\xfd\xf3\x66\xa5\xfc\xf4");
    rig_run(rig);
    assert_int_equal(gmem_read(rig->gmem, gpa(0x70001), copy, sizeof(copy)), 0);
    assert_memory_equal(copy, text, sizeof(text));

    rig_poke(rig, 0x70001 + 5000, "\xff", 1);
    rig_state_64(rig);
    rig->st.gpr[X86_RSI] = 0x50123;
    rig->st.gpr[X86_RDI] = 0x70001;
    rig->st.gpr[X86_RCX] = 6000;
    RIG_CODE_AT(rig, RIG_CODE, "\xf3\xa6\xf4");
    rig_run(rig);
    assert_int_equal(rig->st.gpr[X86_RCX], 999);
    assert_false((rig->st.rflags & X86_FLAG_ZF) != 0);
}

static void test_string_fault_in_the_middle_keeps_what_was_done(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, 0x52000, 0, 0);
    rig->st.gpr[X86_RAX] = 0x55;
    rig->st.gpr[X86_RDI] = 0x51f00;
    rig->st.gpr[X86_RCX] = 0x1000;
    RIG_CODE_AT(rig, RIG_CODE, "\xf3\xaa\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_PF);
    assert_int_equal(rig->st.cr2, 0x52000);
    assert_int_equal(rig->st.gpr[X86_RDI], 0x52000);
    assert_int_equal(rig->st.gpr[X86_RCX], 0xf00);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_CODE);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), X86_PF_WRITE);
}

static void test_masked_load_skips_unmapped_elements(void **state)
{
    struct rig *rig = *state;
    static const uint32_t data[4] = {11, 22, 33, 44};

    if (!cpuid_has(&rig->cpuid, 1, 0, 2, 28)) {
        skip();
    }
    rig->st.cr4 |= X86_CR4_OSXSAVE;
    rig->st.xcr0 = 7;
    rig_map(rig, 0x51000, 0, 0);
    rig_poke(rig, 0x50ff8, data, 8);
    /* Elements 0 and 1 lie before the hole. mask xmm1 = {-1,-1,0,0} */
    rig->st.gpr[X86_RAX] = ~0ull;
    rig->st.gpr[X86_RBX] = 0x50ff8;
    /* vmovq xmm1,rax; vmaskmovps xmm2,xmm1,[rbx]; vmovq rcx,xmm2; vmaskmovps [rbx],xmm1,xmm1; hlt */
    RIG_CODE_AT(
        rig, RIG_CODE,
        "\xc4\xe1\xf9\x6e\xc8\xc4\xe2\x71\x2c\x13\xc4\xe1\xf9\x7e\xd1\xc4\xe2\x71\x2e\x0b\xf4");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.rip, RIG_CODE + 21);
    assert_int_equal(rig->st.gpr[X86_RCX], 22ull << 32 | 11);
    assert_int_equal(rig_peek64(rig, 0x50ff8), ~0ull);
}

static void test_gather_keeps_elements_before_a_fault(void **state)
{
    struct rig *rig = *state;

    if (!cpuid_has(&rig->cpuid, 7, 0, 1, 5)) {
        skip();
    }
    rig->st.cr4 |= X86_CR4_OSXSAVE;
    rig->st.xcr0 = 7;
    rig_map(rig, 0x51000, 0, 0);
    rig_poke64(rig, 0x50ff8, 0x1234);
    rig->st.gpr[X86_RBX] = 0x50ff8;
    rig->st.gpr[X86_RAX] = 1ull << 32; /* indices 0, 1 */
    rig->st.gpr[X86_RDX] = ~0ull;
    /* vmovq xmm3,rax; vpcmpeqd xmm1,xmm1,xmm1; vpgatherdq xmm2,[rbx+xmm3*8],xmm1; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\xc4\xe1\xf9\x6e\xd8\xc5\xf1\x76\xc9\xc4\xe2\xf1\x90\x14\xdb\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_PF);
    assert_int_equal(rig->st.cr2, 0x51000);
    assert_int_equal(load_le64(&rig->st.xsave[160 + 16 * 2]), 0x1234);
    assert_int_equal(load_le64(&rig->st.xsave[160 + 16 * 1]), 0);
    assert_int_equal(load_le64(&rig->st.xsave[160 + 16 * 1 + 8]), ~0ull);
}

static void test_xsave_xrstor_round_trip_and_header_rules(void **state)
{
    struct rig *rig = *state;

    rig->st.cr4 |= X86_CR4_OSXSAVE;
    rig->st.xcr0 = 7;
    rig->st.gpr[X86_RBX] = RIG_DATA;
    rig->st.gpr[X86_RCX] = 0x1122334455667788;
    rig->st.gpr[X86_RAX] = 7;
    /* movq xmm5,rcx; xsave [rbx]; pxor xmm5,xmm5; xrstor [rbx]; movq rsi,xmm5; hlt */
    RIG_CODE_AT(
        rig, RIG_CODE,
        "\x66\x48\x0f\x6e\xe9\x0f\xae\x23\x66\x0f\xef\xed\x0f\xae\x2b\x66\x48\x0f\x7e\xee\xf4");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.rip, RIG_CODE + 21);
    assert_int_equal(rig->st.gpr[X86_RSI], 0x1122334455667788);
    assert_int_equal(rig_peek64(rig, RIG_DATA + 8), 0);
    assert_true((rig_peek64(rig, RIG_DATA + 512) & 2) != 0);

    /* A component outside XCR0 in XSTATE_BV: #GP(0). */
    rig_state_64(rig);
    rig->st.cr4 |= X86_CR4_OSXSAVE;
    rig->st.xcr0 = 7;
    rig->st.gpr[X86_RBX] = RIG_DATA;
    rig->st.gpr[X86_RAX] = 7;
    rig_poke64(rig, RIG_DATA + 512, 0x20);
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\xae\x2b\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
}

static void test_fnstenv_shows_no_host_address(void **state)
{
    struct rig *rig = *state;

    rig->st.gpr[X86_RBX] = RIG_DATA;
    /* fninit; fld1; fnstenv [rbx]; hlt */
    RIG_CODE_AT(rig, RIG_CODE, "\xdb\xe3\xd9\xe8\xd9\x33\xf4");
    rig_poke64(rig, RIG_DATA + 12, 0x1111111111111111);
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig_peek32(rig, RIG_DATA) & 0xffff, 0x37f);
    assert_int_equal(rig_peek32(rig, RIG_DATA + 8) & 0xffff, 0x3fff);
    assert_int_equal(rig_peek32(rig, RIG_DATA + 12), 0);
    assert_int_equal(rig_peek32(rig, RIG_DATA + 20), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
        CASE(test_arith_and_memory_run_and_halt),
        CASE(test_call_ret_loop_and_stack),
        CASE(test_lock_xadd_and_cmpxchg_work_in_guest_memory),
        CASE(test_page_crossing_operands_read_and_write_both_pages),
        CASE(test_bit_offset_moves_the_address),
        CASE(test_sse_state_survives_between_instructions),
        CASE(test_port_read_exit_is_answered_and_completes),
        CASE(test_mmio_read_modify_write_happens_once_each),
        CASE(test_modified_code_runs_as_modified),
        CASE(test_kick_leaves_an_endless_loop),
        CASE(test_strings_move_fill_and_compare_across_pages),
        CASE(test_string_fault_in_the_middle_keeps_what_was_done),
        CASE(test_masked_load_skips_unmapped_elements),
        CASE(test_gather_keeps_elements_before_a_fault),
        CASE(test_xsave_xrstor_round_trip_and_header_rules),
        CASE(test_fnstenv_shows_no_host_address),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
