#include "engine_rig.h"

static void test_fault_pushes_a_frame_with_error_code_and_rf(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, 0x60000, 0, 0);
    rig->st.gpr[X86_RSP] = RIG_STACK - 8; /* the frame is aligned down to 16 */
    /* mov eax,[0x60000] */
    RIG_CODE_AT(rig, RIG_CODE, "\x8b\x04\x25\x00\x00\x06\x00\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_PF);
    assert_int_equal(rig->st.cr2, 0x60000);
    assert_int_equal(rig->st.gpr[X86_RSP], RIG_STACK - 16 - 48);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), 0);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_CODE);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 16), RIG_CS64);
    assert_true((rig_peek64(rig, rig->st.gpr[X86_RSP] + 24) & X86_FLAG_RF) != 0);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 32), RIG_STACK - 8);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 40), RIG_DS);
}

static void test_user_fault_switches_to_the_tss_stack(void **state)
{
    struct rig *rig = *state;

    rig_state_user(rig);
    RIG_CODE_AT(rig, RIG_USER, "\xf4"); /* hlt in level 3 */
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(vcpu_state_cpl(&rig->st), 0);
    assert_int_equal(rig->st.gpr[X86_RSP], RIG_STACK - 48);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 8), RIG_USER_DS | 3);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 16), RIG_USER_STACK);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 32), RIG_USER_CS64 | 3);
    assert_int_equal(rig->st.seg[X86_SS].selector, 0);
}

static void test_int_n_checks_the_gate_level(void **state)
{
    struct rig *rig = *state;

    rig_gate(rig, 0x21, RIG_CS64, RIG_HANDLERS + 0x21 * 4, 0xee, 0);
    rig_state_user(rig);
    RIG_CODE_AT(rig, RIG_USER, "\xcd\x21");
    rig_run(rig);
    rig_expect_vector(rig, 0x21);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_USER + 2);

    rig_state_user(rig);
    RIG_CODE_AT(rig, RIG_USER, "\xcd\x22");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), 0x22 * 8 + 2);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_USER);
}

static void test_ist_entry_gives_the_stack(void **state)
{
    struct rig *rig = *state;

    rig_gate(rig, X86_VEC_UD, RIG_CS64, RIG_HANDLERS + X86_VEC_UD * 4, 0x8e, 1);
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\x0b");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_UD);
    assert_int_equal(rig->st.gpr[X86_RSP], RIG_IST1 - 40);
}

static void test_fault_in_delivery_becomes_double_then_triple_fault(void **state)
{
    struct rig *rig = *state;

    /* #UD's gate is not present: #NP, which is delivered by itself. */
    rig_gate(rig, X86_VEC_UD, RIG_CS64, 0, 0x0e, 0);
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\x0b");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_NP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), X86_VEC_UD * 8 + 3);

    /* A #GP whose gate is not present: #NP within #GP is a double fault. */
    rig_state_64(rig);
    rig_gate(rig, X86_VEC_GP, RIG_CS64, 0, 0x0e, 0);
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\x32"); /* rdmsr of an unknown register */
    rig->st.gpr[X86_RCX] = 0x12345;
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_DF);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), 0);

    rig_state_64(rig);
    rig_gate(rig, X86_VEC_DF, RIG_CS64, 0, 0x0e, 0);
    rig->st.gpr[X86_RCX] = 0x12345;
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_SHUTDOWN);
}

static void test_page_fault_with_a_bad_stack_is_a_double_fault(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, 0x60000, 0, 0);
    rig->st.gpr[X86_RSP] = 0x60800;
    rig_gate(rig, X86_VEC_DF, RIG_CS64, RIG_HANDLERS + X86_VEC_DF * 4, 0x8e, 1);
    RIG_CODE_AT(rig, RIG_CODE, "\x50"); /* push rax */
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_DF);
    assert_int_equal(rig->st.gpr[X86_RSP], RIG_IST1 - 48);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_CODE);
}

static void test_iretq_goes_to_level_3_and_drops_kernel_segments(void **state)
{
    struct rig *rig = *state;
    const uint64_t frame[] = {RIG_USER, RIG_USER_CS64 | 3, X86_FLAG_IF | X86_FLAG_FIXED1,
                              RIG_USER_STACK, RIG_USER_DS | 3};

    rig->st.gpr[X86_RSP] = RIG_STACK - sizeof(frame);
    rig_poke(rig, RIG_STACK - sizeof(frame), frame, sizeof(frame));
    RIG_CODE_AT(rig, RIG_CODE, "\x48\xcf");
    RIG_CODE_AT(rig, RIG_USER, "\xe4\x10"); /* in al,0x10: no rights */
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_USER);
    assert_true((rig->st.seg[X86_DS].access_rights & X86_AR_UNUSABLE) != 0);
    assert_true((rig_peek64(rig, rig->st.gpr[X86_RSP] + 24) & X86_FLAG_IF) != 0);
}

static void test_iretq_to_a_non_canonical_address_faults_in_the_kernel(void **state)
{
    struct rig *rig = *state;
    const uint64_t frame[] = {1ull << 47, RIG_USER_CS64 | 3, 2, RIG_USER_STACK, RIG_USER_DS | 3};

    rig->st.gpr[X86_RSP] = RIG_STACK - sizeof(frame);
    rig_poke(rig, RIG_STACK - sizeof(frame), frame, sizeof(frame));
    RIG_CODE_AT(rig, RIG_CODE, "\x48\xcf");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_CODE);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 16), RIG_CS64);
}

static void test_syscall_and_sysret_change_level_without_tables(void **state)
{
    struct rig *rig = *state;

    rig_state_user(rig);
    rig->st.star = (uint64_t)RIG_CS64 << 32 | (uint64_t)(RIG_USER_CS32 | 3) << 48;
    rig->st.lstar = RIG_CODE;
    rig->st.sfmask = X86_FLAG_IF | X86_FLAG_CF;
    rig->st.rflags |= X86_FLAG_IF | X86_FLAG_CF;
    rig->st.gdtr.limit = 0;
    RIG_CODE_AT(rig, RIG_USER, "\x0f\x05\xcc");
    RIG_CODE_AT(rig, RIG_CODE, "\x48\x89\xc8\xf4\x48\x0f\x07"); /* mov rax,rcx; hlt; sysretq */
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.gpr[X86_RAX], RIG_USER + 2);
    assert_int_equal(rig->st.gpr[X86_R11] & (X86_FLAG_IF | X86_FLAG_CF), X86_FLAG_IF | X86_FLAG_CF);
    assert_int_equal(rig->st.rflags & (X86_FLAG_IF | X86_FLAG_CF), 0);
    assert_int_equal(rig->st.seg[X86_CS].selector, RIG_CS64);
    assert_int_equal(rig->st.seg[X86_SS].selector, RIG_DS);
    rig->st.mp_state = X86_MP_RUNNABLE;
    rig->st.gdtr.limit = 0x7f;
    rig_gate(rig, X86_VEC_BP, RIG_CS64, RIG_HANDLERS + X86_VEC_BP * 4, 0xee, 0);
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_BP);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 32), RIG_USER_CS64 | 3);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 8), RIG_USER_DS | 3);
}

static void test_segment_loads_raise_what_the_descriptor_asks_for(void **state)
{
    struct rig *rig = *state;
    static const struct {
        uint64_t descriptor;
        unsigned vector; /* 0: loads */
    } cases[] = {
        {0x00cf93000000ffff, 0},          /* data */
        {0x00cf13000000ffff, X86_VEC_NP}, /* not present */
        {0x00cf99000000ffff, X86_VEC_GP}, /* execute-only code */
        {0x00cf9b000000ffff, 0},          /* readable code */
        {0x0000890000000067, X86_VEC_GP}, /* a system segment */
    };

    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        rig_state_64(rig);
        rig_poke64(rig, RIG_GDT + RIG_FREE, cases[i].descriptor);
        rig->st.gpr[X86_RAX] = RIG_FREE;
        RIG_CODE_AT(rig, RIG_CODE, "\x8e\xd8\xf4"); /* mov ds,eax */
        rig_run(rig);
        if (cases[i].vector == 0) {
            assert_int_equal(rig->st.rip, RIG_CODE + 3);
            assert_int_equal(rig->st.seg[X86_DS].selector, RIG_FREE);
            assert_true((rig_peek64(rig, RIG_GDT + RIG_FREE) >> 40 & 1) != 0);
        } else {
            rig_expect_vector(rig, cases[i].vector);
            assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_FREE);
        }
    }
    /* Beyond the table. */
    rig_state_64(rig);
    rig->st.gpr[X86_RAX] = 0x1000;
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), 0x1000);
    /* Null into SS in level 0 of 64-bit mode is allowed, in level 3 not. */
    rig_state_64(rig);
    rig->st.gpr[X86_RAX] = 0;
    RIG_CODE_AT(rig, RIG_CODE, "\x8e\xd0\xf4"); /* mov ss,eax */
    rig_run(rig);
    assert_int_equal(rig->st.rip, RIG_CODE + 3);
    rig_state_user(rig);
    rig->st.gpr[X86_RAX] = 0;
    RIG_CODE_AT(rig, RIG_USER, "\x8e\xd0");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
}

static void test_far_return_and_call_gate(void **state)
{
    struct rig *rig = *state;

    /* push 0x20 | 3 ...: lretq to user 64-bit code that calls a gate of level 3. */
    const uint64_t frame[] = {RIG_USER, RIG_USER_CS64 | 3, RIG_USER_STACK, RIG_USER_DS | 3};
    const uint64_t gate[] = {0x0001ec0000080000ull | 0x0000, 0};

    rig_poke(rig, RIG_GDT + RIG_FREE, gate, sizeof(gate)); /* 0x10000 in CS64 */
    rig->st.gpr[X86_RSP] = RIG_STACK - sizeof(frame);
    rig_poke(rig, RIG_STACK - sizeof(frame), frame, sizeof(frame));
    rig->st.rip = RIG_CODE + 0x100;
    RIG_CODE_AT(rig, RIG_CODE + 0x100, "\x48\xcb");
    RIG_CODE_AT(rig, RIG_CODE, "\xf4");
    RIG_CODE_AT(rig, RIG_USER, "\xff\x1c\x25\x00\x00\x05\x00"); /* call far [0x50000] */
    rig_poke64(rig, RIG_DATA, (uint64_t)(RIG_FREE | 3) << 32 | 0x12345);
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.rip, RIG_CODE + 1);
    assert_int_equal(vcpu_state_cpl(&rig->st), 0);
    assert_int_equal(rig->st.gpr[X86_RSP], RIG_STACK - 32);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 32), RIG_USER + 7);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 24), RIG_USER_CS64 | 3);
    assert_int_equal(rig_peek64(rig, RIG_STACK - 16), RIG_USER_STACK);
}

static void test_real_mode_to_long_mode_as_an_ap_starts(void **state)
{
    struct rig *rig = *state;

    vcpu_state_reset(&rig->st, true);
    rig->st.seg[X86_CS].base = RIG_CODE;
    rig->st.seg[X86_CS].selector = RIG_CODE >> 4;
    rig->st.rip = 0;
    rig->st.gdtr.base = RIG_GDT;
    rig->st.gdtr.limit = 0x7f;
    /*
     * mov eax,1; mov cr0,eax; jmp 0x18:dword 0x10020
     * 32: mov eax,0x20; mov cr4,eax; mov eax,0x1000; mov cr3,eax; mov ecx,0xc0000080; rdmsr;
     *     or eax,0x100; wrmsr; mov eax,0x80000001; mov cr0,eax; jmp 0x08:0x10060
     * 64: mov rax,1 << 40; hlt
     */
    RIG_CODE_AT(rig, RIG_CODE,
                "\x66\xb8\x01\x00\x00\x00\x0f\x22\xc0\x66\xea\x20\x00\x01\x00\x18\x00");
    RIG_CODE_AT(rig, RIG_CODE + 0x20,
                "\xb8\x20\x00\x00\x00\x0f\x22\xe0\xb8\x00\x10\x00\x00\x0f\x22\xd8"
                "\xb9\x80\x00\x00\xc0\x0f\x32\x0d\x00\x01\x00\x00\x0f\x30"
                "\xb8\x01\x00\x00\x80\x0f\x22\xc0\xea\x60\x00\x01\x00\x08\x00");
    RIG_CODE_AT(rig, RIG_CODE + 0x60, "\x48\xb8\x00\x00\x00\x00\x00\x01\x00\x00\xf4");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.rip, RIG_CODE + 0x6b);
    assert_int_equal(rig->st.gpr[X86_RAX], 1ull << 40);
    assert_int_equal(rig->st.efer & (X86_EFER_LMA | X86_EFER_LME), X86_EFER_LMA | X86_EFER_LME);
}

static void test_limit_and_null_checks_outside_64_bit_mode(void **state)
{
    struct rig *rig = *state;

    rig->st.seg[X86_CS] = rig_segment(RIG_CS32, 0xc09b);
    rig->st.seg[X86_DS].limit = 0x50003;
    rig->st.gpr[X86_RBX] = 0x50000;
    /* mov eax,[ebx]; mov eax,[ebx+1]: the second one ends beyond the limit */
    RIG_CODE_AT(rig, RIG_CODE, "\x8b\x03\x8b\x43\x01\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_CODE + 2);

    rig_state_64(rig);
    rig->st.seg[X86_CS] = rig_segment(RIG_CS32, 0xc09b);
    rig->st.seg[X86_DS].access_rights = X86_AR_UNUSABLE;
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_CODE);
}

static void test_single_step_and_data_breakpoint_trap_after_the_instruction(void **state)
{
    struct rig *rig = *state;

    rig->st.rflags |= X86_FLAG_TF;
    RIG_CODE_AT(rig, RIG_CODE, "\xb8\x01\x00\x00\x00\x90\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_DB);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_CODE + 5);
    assert_true((rig->st.dr[6] & 0x4000) != 0);

    rig_state_64(rig);
    rig->st.dr[0] = RIG_DATA + 2;
    rig->st.dr[7] = 0x401 | 1 << 16; /* one byte, on writes */
    /* mov eax,[0x50000] does not trap; mov [0x50000],eax does */
    RIG_CODE_AT(rig, RIG_CODE, "\x8b\x04\x25\x00\x00\x05\x00\x89\x04\x25\x00\x00\x05\x00\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_DB);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_CODE + 14);
    assert_int_equal(rig->st.dr[6] & 0xf, 1);
}

static void test_control_register_rules(void **state)
{
    struct rig *rig = *state;
    static const struct {
        const char *code;
        uint64_t value;
    } refused[] = {
        {"\x0f\x22\xc0\xf4", X86_CR0_PG}, /* paging without protection */
        {"\x0f\x22\xc0\xf4", 1ull << 32}, /* cr0 above bit 31 */
        {"\x0f\x22\xc0\xf4", X86_CR0_PE}, /* paging off in 64-bit mode */
        {"\x0f\x22\xe0\xf4", 0},          /* cr4 without PAE in IA-32e mode */
        {"\x0f\x22\xe0\xf4", X86_CR4_PAE | X86_CR4_VMXE},
        {"\x0f\x22\xd8\xf4", 1ull << 52}, /* cr3 beyond the physical width */
    };

    for (unsigned i = 0; i < ARRAY_LEN(refused); i++) {
        rig_state_64(rig);
        rig->st.gpr[X86_RAX] = refused[i].value;
        rig_code(rig, RIG_CODE, refused[i].code, 4);
        rig_run(rig);
        rig_expect_vector(rig, X86_VEC_GP);
    }
}

struct intr_source {
    int vector;
};

static bool intr_pending(void *opaque)
{
    return ((struct intr_source *)opaque)->vector >= 0;
}

static int intr_acknowledge(void *opaque)
{
    struct intr_source *source = opaque;
    int vector = source->vector;

    source->vector = -1;
    return vector;
}

static void connect(struct rig *rig, struct intr_source *source)
{
    static const struct vcpu_intr_ops ops = {.pending = intr_pending,
                                             .acknowledge = intr_acknowledge};

    rig->env.intr = &ops;
    rig->env.opaque = source;
}

static void test_interrupts_wait_for_the_sti_shadow(void **state)
{
    struct rig *rig = *state;
    struct intr_source source = {.vector = 0x30};

    connect(rig, &source);
    RIG_CODE_AT(rig, RIG_CODE, "\x90\xfb\x90\x90\xf4"); /* nop; sti; nop; nop; hlt */
    rig_run(rig);
    rig_expect_vector(rig, 0x30);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_CODE + 3);
    assert_int_equal(source.vector, -1);
}

static void test_halt_ends_by_an_interrupt_and_goes_on_behind_it(void **state)
{
    struct rig *rig = *state;
    struct intr_source source = {.vector = -1};

    connect(rig, &source);
    RIG_CODE_AT(rig, RIG_CODE, "\xfb\xf4");
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(rig->st.rip, RIG_CODE + 2);
    source.vector = 0x31;
    rig_continue(rig);
    rig_expect_vector(rig, 0x31);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_CODE + 2);
}

static void test_user_port_access_follows_the_bitmap(void **state)
{
    struct rig *rig = *state;

    rig_state_user(rig);
    rig->st.seg[X86_TR].limit = 0x67 + 0x20;
    rig_poke(rig, RIG_TSS + 0x68 + 0x10 / 8, "\xfe\xff", 2); /* port 0x10 alone */
    RIG_CODE_AT(rig, RIG_USER, "\xe6\x10\x66\xe7\x10");      /* out 0x10,al; out 0x10,ax */
    rig_run(rig);
    assert_int_equal(rig->exit.reason, VMEXIT_PIO);
    rig_continue(rig);
    rig_expect_vector(rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP] + 8), RIG_USER + 2);
}

static void test_msr_rules(void **state)
{
    struct rig *rig = *state;

    /* wrmsr of a non-canonical LSTAR */
    rig->st.gpr[X86_RCX] = X86_MSR_LSTAR;
    rig->st.gpr[X86_RDX] = 0x00008000;
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\x30\xf4");
    rig_run(rig);
    rig_expect_vector(rig, X86_VEC_GP);

    /* The local APIC's are the machine's, and its refusal is a #GP. */
    rig_state_64(rig);
    rig->st.gpr[X86_RCX] = X86_MSR_X2APIC_FIRST + 2;
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\x32\xf4");
    assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_MSR_READ);
    assert_int_equal(rig->exit.msr.index, X86_MSR_X2APIC_FIRST + 2);
    rig->exit.msr.fault = true;
    rig_continue(rig);
    rig_expect_vector(rig, X86_VEC_GP);
}

#define DEVICE_GPA 0x10000000u
#define DEVICE_VA 0x60000u

/* The next exit is an access to the device at offset. */
static void expect_device(struct rig *rig, bool is_write, uint64_t offset)
{
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(rig->exit.reason, VMEXIT_MMIO);
    assert_int_equal(rig->exit.mmio.is_write, is_write);
    assert_int_equal(rig->exit.mmio.gpa, DEVICE_GPA + offset);
}

/* A device is asked once, whatever comes before its answer is used. */
static void test_events_wait_for_an_instruction_that_a_device_answered(void **state)
{
    struct rig *rig = *state;
    struct intr_source source = {.vector = -1};

    connect(rig, &source);
    rig_map(rig, DEVICE_VA, DEVICE_GPA, 3);
    RIG_CODE_AT(rig, RIG_CODE, "\x8b\x07\x03\x47\x04\xf4"); /* mov (%rdi),%eax; add 4(%rdi),%eax */
    for (unsigned is_nmi = 0; is_nmi < 2; is_nmi++) {
        rig_state_64(rig);
        rig->st.gpr[X86_RDI] = DEVICE_VA;
        rig->st.rflags |= X86_FLAG_IF;
        assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
        expect_device(rig, false, 0);
        rig->exit.mmio.data = 0x1200;
        if (is_nmi) {
            assert_int_equal(engine_accel_ops.inject_nmi(rig->vcpu), 0);
        } else {
            source.vector = 0x30;
        }
        rig_continue(rig);
        rig_expect_vector(rig, is_nmi ? X86_VEC_NMI : 0x30);
        assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_CODE + 2);
        assert_int_equal(rig->st.gpr[X86_RAX], 0x1200);
    }
}

/* So it is where the frame of an exception goes to a device, word by word. */
static void test_events_wait_for_a_frame_on_a_device(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, DEVICE_VA, DEVICE_GPA, 3);
    rig_poke64(rig, RIG_TSS + 44, DEVICE_VA + 0x100); /* IST 2 */
    rig_gate(rig, X86_VEC_UD, RIG_CS64, RIG_HANDLERS + X86_VEC_UD * 4, 0x8e, 2);
    rig_gate(rig, X86_VEC_NMI, RIG_CS64, RIG_HANDLERS + X86_VEC_NMI * 4, 0x8e, 1);
    RIG_CODE_AT(rig, RIG_CODE, "\x0f\x0b"); /* ud2 */
    assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
    for (unsigned i = 1; i <= 5; i++) {
        expect_device(rig, true, 0x100 - 8 * i);
        if (i == 3) {
            assert_int_equal(engine_accel_ops.inject_nmi(rig->vcpu), 0);
        }
    }
    assert_int_equal(rig->exit.mmio.data, RIG_CODE); /* the address of UD2 comes last */
    rig_continue(rig);
    rig_expect_vector(rig, X86_VEC_NMI);
    assert_int_equal(rig_peek64(rig, rig->st.gpr[X86_RSP]), RIG_HANDLERS + X86_VEC_UD * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
        CASE(test_fault_pushes_a_frame_with_error_code_and_rf),
        CASE(test_user_fault_switches_to_the_tss_stack),
        CASE(test_int_n_checks_the_gate_level),
        CASE(test_ist_entry_gives_the_stack),
        CASE(test_fault_in_delivery_becomes_double_then_triple_fault),
        CASE(test_page_fault_with_a_bad_stack_is_a_double_fault),
        CASE(test_iretq_goes_to_level_3_and_drops_kernel_segments),
        CASE(test_iretq_to_a_non_canonical_address_faults_in_the_kernel),
        CASE(test_syscall_and_sysret_change_level_without_tables),
        CASE(test_segment_loads_raise_what_the_descriptor_asks_for),
        CASE(test_far_return_and_call_gate),
        CASE(test_real_mode_to_long_mode_as_an_ap_starts),
        CASE(test_limit_and_null_checks_outside_64_bit_mode),
        CASE(test_single_step_and_data_breakpoint_trap_after_the_instruction),
        CASE(test_control_register_rules),
        CASE(test_interrupts_wait_for_the_sti_shadow),
        CASE(test_halt_ends_by_an_interrupt_and_goes_on_behind_it),
        CASE(test_user_port_access_follows_the_bitmap),
        CASE(test_msr_rules),
        CASE(test_events_wait_for_an_instruction_that_a_device_answered),
        CASE(test_events_wait_for_a_frame_on_a_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
