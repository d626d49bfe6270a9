/*
 * One vCPU of the software engine with a few MiB of memory, page tables, GDT,
 * IDT and TSS, for tests that run hand-assembled code on the interpreter.
 *
 * Guest memory (identity mapped, 4 KiB pages below 2 MiB, large ones above):
 *   1000 PML4  2000 PDPT  3000 PD  4000 PT of the first 2 MiB
 *   6000 GDT   7000 IDT   8000 TSS 9000 one HLT per vector, 4 bytes apart
 *   10000 code 20000 end of the kernel stack 28000 end of IST 1
 *   30000 user code 40000 end of the user stack  50000 and up: data
 */
#ifndef CORBEL_TESTS_ENGINE_RIG_H
#define CORBEL_TESTS_ENGINE_RIG_H

#include "test.h"

#include "base/wire.h"
#include "cpu/cpuid.h"
#include "engine/engine.h"
#include "engine/engine_int.h"

#define RIG_PML4 0x1000u
#define RIG_PDPT 0x2000u
#define RIG_PD 0x3000u
#define RIG_PT 0x4000u
#define RIG_GDT 0x6000u
#define RIG_IDT 0x7000u
#define RIG_TSS 0x8000u
#define RIG_HANDLERS 0x9000u
#define RIG_CODE 0x10000u
#define RIG_STACK 0x20000u
#define RIG_IST1 0x28000u
#define RIG_USER 0x30000u
#define RIG_USER_STACK 0x40000u
#define RIG_DATA 0x50000u

/* Selectors of the GDT. */
#define RIG_CS64 0x08u
#define RIG_DS 0x10u
#define RIG_CS32 0x18u
#define RIG_USER_CS32 0x20u
#define RIG_USER_DS 0x28u
#define RIG_USER_CS64 0x30u
#define RIG_CS16 0x38u
#define RIG_TR 0x40u
#define RIG_FREE 0x50u /* first of a few free slots, up to 0x78 */

struct rig {
    struct gmem *gmem;
    struct accel_vm *vm;
    struct accel_vcpu *vcpu;
    struct cpuid_table cpuid;
    struct vcpu_env env;
    struct vmexit exit;
    struct vcpu_state st ALIGNED(64);
};

static inline void rig_poke(struct rig *rig, uint64_t address, const void *data, size_t len)
{
    assert_int_equal(gmem_write(rig->gmem, gpa(address), data, len), 0);
}

static inline void rig_poke64(struct rig *rig, uint64_t address, uint64_t value)
{
    rig_poke(rig, address, &value, 8);
}

static inline uint64_t rig_peek64(struct rig *rig, uint64_t address)
{
    uint64_t value = 0;

    assert_int_equal(gmem_read(rig->gmem, gpa(address), &value, 8), 0);
    return value;
}

static inline uint32_t rig_peek32(struct rig *rig, uint64_t address)
{
    return (uint32_t)rig_peek64(rig, address);
}

static inline void rig_map(struct rig *rig, uint64_t va, uint64_t pa, uint64_t flags)
{
    rig_poke64(rig, RIG_PT + (va >> 12) * 8, pa | flags);
}

static inline void rig_gate(struct rig *rig, unsigned vector, uint16_t selector, uint64_t offset,
                            unsigned type_dpl_p, unsigned ist)
{
    uint64_t low = (offset & 0xffff) | ((uint64_t)selector << 16) | ((uint64_t)ist << 32) |
                   ((uint64_t)type_dpl_p << 40) | ((offset & 0xffff0000u) << 32);

    rig_poke64(rig, RIG_IDT + vector * 16, low);
    rig_poke64(rig, RIG_IDT + vector * 16 + 8, offset >> 32);
}

static inline void rig_tables(struct rig *rig)
{
    static const uint64_t gdt[] = {
        0,
        0x00af9b000000ffff, /* 64-bit code */
        0x00cf93000000ffff, /* data */
        0x00cf9b000000ffff, /* 32-bit code */
        0x00cffb000000ffff, /* user 32-bit code */
        0x00cff3000000ffff, /* user data */
        0x00affb000000ffff, /* user 64-bit code */
        0x00009b000000ffff, /* 16-bit code */
        0x0000890080000067, /* TSS at 0x8000 */
    };

    rig_poke64(rig, RIG_PML4, RIG_PDPT | 7);
    rig_poke64(rig, RIG_PDPT, RIG_PD | 7);
    rig_poke64(rig, RIG_PD, RIG_PT | 7);
    rig_poke64(rig, RIG_PD + 8, 0x200000 | 0x87);
    for (uint64_t page = 0; page < 512; page++) {
        rig_map(rig, page << 12, page << 12, 7);
    }
    rig_poke(rig, RIG_GDT, gdt, sizeof(gdt));
    rig_poke64(rig, RIG_TSS + 4, RIG_STACK);
    rig_poke64(rig, RIG_TSS + 36, RIG_IST1);
    rig_poke(rig, RIG_TSS + 102, "\x68\x00", 2); /* no I/O bitmap */
    for (unsigned vector = 0; vector < 64; vector++) {
        rig_gate(rig, vector, RIG_CS64, RIG_HANDLERS + vector * 4, 0x8e, 0);
        rig_poke(rig, RIG_HANDLERS + vector * 4, "\xf4", 1);
    }
}

static inline struct x86_segment rig_segment(uint16_t selector, uint32_t access_rights)
{
    return (struct x86_segment){
        .selector = selector, .limit = 0xffffffffu, .access_rights = access_rights};
}

/* 64-bit mode, level 0, paging on, interrupts off. */
static inline void rig_state_64(struct rig *rig)
{
    struct vcpu_state *st = &rig->st;

    vcpu_state_reset(st, true);
    st->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP | X86_CR0_NE | X86_CR0_MP | X86_CR0_ET;
    st->cr3 = RIG_PML4;
    st->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_PGE;
    st->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE | X86_EFER_NXE;
    st->gdtr.base = RIG_GDT;
    st->gdtr.limit = 0x7f;
    st->idtr.base = RIG_IDT;
    st->idtr.limit = 0xfff;
    st->seg[X86_CS] = rig_segment(RIG_CS64, 0xa09b);
    for (unsigned seg = 0; seg < 6; seg++) {
        if (seg != X86_CS) {
            st->seg[seg] = rig_segment(RIG_DS, 0xc093);
        }
    }
    st->seg[X86_TR] = rig_segment(RIG_TR, 0x8b);
    st->seg[X86_TR].base = RIG_TSS;
    st->seg[X86_TR].limit = 0x67;
    st->seg[X86_LDTR].access_rights = X86_AR_UNUSABLE;
    st->rip = RIG_CODE;
    st->gpr[X86_RSP] = RIG_STACK;
}

/* Level 3 in 64-bit mode at RIG_USER. */
static inline void rig_state_user(struct rig *rig)
{
    rig_state_64(rig);
    rig->st.seg[X86_CS] = rig_segment(RIG_USER_CS64 | 3, 0xa0fb);
    rig->st.seg[X86_SS] = rig_segment(RIG_USER_DS | 3, 0xc0f3);
    rig->st.rip = RIG_USER;
    rig->st.gpr[X86_RSP] = RIG_USER_STACK;
}

static inline int rig_setup(void **state)
{
    struct rig *rig = aligned_alloc(64, (sizeof(*rig) + 63) & ~(size_t)63);
    struct accel_vm_config config = {
        .vcpu_count = 1, .irqchip = VM_IRQCHIP_USER, .reference_only = true};

    assert_non_null(rig);
    memset(rig, 0, sizeof(*rig));
    assert_int_equal(gmem_create(4u << 20, NULL, &rig->gmem), 0);
    cpuid_table_init(&rig->cpuid, 0, 1);
    rig->env.cpuid = &rig->cpuid;
    config.gmem = rig->gmem;
    assert_int_equal(engine_accel_ops.vm_create(&config, NULL, &rig->vm), 0);
    assert_int_equal(engine_accel_ops.vcpu_create(rig->vm, 0, &rig->env, NULL, &rig->vcpu), 0);
    rig_tables(rig);
    rig_state_64(rig);
    *state = rig;
    return 0;
}

static inline int rig_teardown(void **state)
{
    struct rig *rig = *state;

    engine_accel_ops.vcpu_destroy(rig->vcpu);
    engine_accel_ops.vm_destroy(rig->vm);
    gmem_destroy(rig->gmem);
    free(rig);
    return 0;
}

static inline struct engine_vcpu *rig_vcpu(struct rig *rig)
{
    return container_of(rig->vcpu, struct engine_vcpu, base);
}

/* Loads rig->st, runs to the next exit and reads the state back. */
static inline void rig_run(struct rig *rig)
{
    assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(engine_accel_ops.get_state(rig->vcpu, &rig->st), 0);
}

/* Goes on from the exit in hand. */
static inline void rig_continue(struct rig *rig)
{
    assert_int_equal(engine_accel_ops.run(rig->vcpu, &rig->exit), 0);
    assert_int_equal(engine_accel_ops.get_state(rig->vcpu, &rig->st), 0);
}

static inline void rig_code(struct rig *rig, uint64_t address, const char *bytes, size_t len)
{
    rig_poke(rig, address, bytes, len);
}

#define RIG_CODE_AT(rig, address, bytes) rig_code(rig, address, bytes, sizeof(bytes) - 1)

/* The guest stopped in the handler of this vector. */
static inline void rig_expect_vector(struct rig *rig, unsigned vector)
{
    assert_int_equal(rig->exit.reason, VMEXIT_HLT);
    assert_int_equal((rig->st.rip - 1 - RIG_HANDLERS) / 4, vector);
}

#endif
