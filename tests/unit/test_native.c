/*
 * User code that runs natively, the engine's half: spaces are played by a second set of page
 * tables and the interpreter, which reach nothing but what the engine had mapped.
 */
#include "engine_rig.h"

#include "engine/interp.h"
#include "engine/native_int.h"

#include <errno.h>
#include <sys/mman.h>

#define P 0x1u
#define RW 0x2u
#define US 0x4u
#define A 0x20u
#define D 0x40u
#define NX (1ull << 63)

/* The tables of the spaces, which hold the first 2 MiB each. */
#define SHADOW(space) (0x300000u + (space)*0x10000u)
#define SHADOW_PT(space) (SHADOW(space) + 0x3000u)
#define PML4_TWO 0x60000u
#define COPIES 0x2f0000u
#define STEPS_MAX 1000u

struct native_rig {
    struct rig *rig;
    struct accel_vm *vm; /* with the translator and native code */
    struct accel_vcpu *vcpu;
    struct engine_vcpu *v;
    struct native_user *user;
    struct native native;
    struct engine_vcpu *player;
    unsigned runs;
    unsigned clears;
    unsigned changes;
    unsigned rests;
    unsigned confirms;
    bool fail_change;
    enum native_reason end; /* of the next run's space: NATIVE_LOST or NATIVE_GONE; 0: it stays */
    bool is_gone;
};

static void shadow_clear(struct native_rig *n, unsigned space)
{
    uint8_t zero[4096] = {0};

    rig_poke(n->rig, SHADOW_PT(space), zero, sizeof(zero));
}

static int op_change(void *opaque, unsigned space, const struct native_change *changes,
                     unsigned count)
{
    struct native_rig *n = opaque;

    if (n->fail_change) {
        n->fail_change = false;
        return -ENOMEM;
    }
    for (unsigned c = 0; c < count; c++) {
        const struct native_change *change = &changes[c];
        uint64_t rights = P | US | A | ((change->prot & PROT_WRITE) != 0 ? RW | D : 0u) |
                          ((change->prot & PROT_EXEC) != 0 ? 0u : NX);

        n->changes++;
        for (uint64_t at = 0; at < change->bytes; at += 4096) {
            assert_true(change->va + at < 0x200000);
            assert_true(native_is_mappable(change->va + at));
            rig_poke64(n->rig, SHADOW_PT(space) + (change->va + at) / 4096 * 8,
                       change->prot == 0
                           ? 0
                           : ((change->is_copy ? COPIES : 0) + change->offset + at) | rights);
        }
    }
    return 0;
}

static int op_clear(void *opaque, unsigned space)
{
    struct native_rig *n = opaque;

    n->clears++;
    shadow_clear(n, space);
    return n->is_gone ? -EIO : 0;
}

static bool is_plain(const struct insn *insn)
{
    (void)insn;
    return true;
}

static bool is_syscall(struct native_rig *n)
{
    const uint8_t *host;

    return mmu_fetch_host(n->player, n->player->st.rip, &host) == 0 && host[0] == 0x0f &&
           host[1] == 0x05;
}

/* One instruction in the space: false when it leaves. */
static bool play(struct native_rig *n, struct native_left *left)
{
    struct engine_vcpu *p = n->player;
    struct insn insn;

    if (is_syscall(n)) {
        p->st.gpr[X86_RCX] = p->st.rip + 2;
        p->st.gpr[X86_R11] = p->st.rflags;
        left->reason = NATIVE_SYSCALL;
        return false;
    }
    if (interp_try(p, is_plain, &insn) == 0) {
        return true;
    }
    *left = (struct native_left){.reason = NATIVE_OTHER};
    if (p->fault.vector == X86_VEC_PF) {
        *left = (struct native_left){
            .reason = NATIVE_FAULT, .error = p->fault.error, .address = p->fault.cr2};
    }
    return false;
}

static void op_run(void *opaque, unsigned space, unsigned vcpu, struct vcpu_state *st,
                   const struct native_change *changes, unsigned count, struct native_left *left)
{
    struct native_rig *n = opaque;

    (void)vcpu;
    n->runs++;
    if (op_change(n, space, changes, count) != 0) {
        *left = (struct native_left){.reason = NATIVE_FULL};
        return;
    }
    *left = (struct native_left){.reason = n->end != 0 ? n->end : NATIVE_KICK};
    if (n->end != 0) {
        n->is_gone = n->end == NATIVE_GONE;
        n->end = 0;
        return;
    }
    n->player->st = *st;
    n->player->st.cr3 = SHADOW(space);
    mmu_flush_all(n->player);
    for (unsigned i = 0; i < STEPS_MAX && play(n, left); i++) {
    }
    memcpy(st->gpr, n->player->st.gpr, sizeof(st->gpr));
    st->rip = n->player->st.rip;
    st->rflags = n->player->st.rflags;
}

static void op_kick(void *opaque, unsigned vcpu)
{
    (void)opaque;
    (void)vcpu;
}

static bool op_is_lost(void *opaque, unsigned space)
{
    (void)opaque;
    (void)space;
    return false;
}

static void op_rest(void *opaque, unsigned vcpu)
{
    struct native_rig *n = opaque;

    (void)vcpu;
    n->rests++;
}

static void op_confirm(void *opaque, unsigned vcpu)
{
    struct native_rig *n = opaque;

    (void)vcpu;
    n->confirms++;
}

static const struct native_ops rig_ops = {
    .run = op_run,
    .kick = op_kick,
    .change = op_change,
    .clear = op_clear,
    .is_lost = op_is_lost,
    .rest = op_rest,
    .confirm = op_confirm,
};

static void create_tables(struct native_rig *n)
{
    for (unsigned space = 0; space < n->native.space_count; space++) {
        rig_poke64(n->rig, SHADOW(space), (SHADOW(space) + 0x1000) | 7 | A);
        rig_poke64(n->rig, SHADOW(space) + 0x1000, (SHADOW(space) + 0x2000) | 7 | A);
        rig_poke64(n->rig, SHADOW(space) + 0x2000, SHADOW_PT(space) | 7 | A);
    }
    /* Another top-level table with the same below it. */
    rig_poke64(n->rig, PML4_TWO, RIG_PDPT | 7);
}

static void state_native(struct native_rig *n)
{
    struct vcpu_state *st = &n->rig->st;

    rig_state_user(n->rig);
    for (unsigned seg = 0; seg < 6; seg++) {
        if (seg != X86_CS && seg != X86_SS) {
            st->seg[seg].selector = 0;
        }
    }
    st->rflags |= X86_FLAG_IF;
    st->cr4 |= X86_CR4_OSXSAVE;
    st->xcr0 = 3;
    st->lstar = RIG_HANDLERS + 63 * 4;
    st->star = (uint64_t)RIG_CS64 << 32;
}

/* The address space of st.cr3 is to run natively. */
static struct native_space *prepare(struct native_rig *n)
{
    struct native_space *space;

    assert_int_equal(engine_accel_ops.set_state(n->vcpu, &n->rig->st), 0);
    mmu_flush_all(n->v);
    mutex_lock(&n->user->lock);
    space = native_space_take(n->user, n->rig->st.cr3);
    assert_non_null(space);
    atomic_store(&space->promoted, true);
    mutex_unlock(&n->user->lock);
    n->v->native.wanted = true;
    return space;
}

static void run(struct native_rig *n)
{
    assert_int_equal(engine_accel_ops.run(n->vcpu, &n->rig->exit), 0);
    assert_int_equal(engine_accel_ops.get_state(n->vcpu, &n->rig->st), 0);
}

static int setup(void **state)
{
    struct native_rig *n = calloc(1, sizeof(*n));
    struct accel_vm_config config = {.vcpu_count = 1, .irqchip = VM_IRQCHIP_USER};
    void *rig;

    assert_non_null(n);
    assert_int_equal(rig_setup(&rig), 0);
    n->rig = rig;
    n->native =
        (struct native){.ops = &rig_ops, .opaque = n, .space_count = 2, .cpuid_faults = true};
    n->player = rig_vcpu(n->rig);
    create_tables(n);
    config.gmem = n->rig->gmem;
    config.native = &n->native;
    assert_int_equal(engine_accel_ops.vm_create(&config, NULL, &n->vm), 0);
    assert_int_equal(engine_accel_ops.vcpu_create(n->vm, 0, &n->rig->env, NULL, &n->vcpu), 0);
    n->v = container_of(n->vcpu, struct engine_vcpu, base);
    n->user = n->v->vm->native_user;
    assert_non_null(n->user);
    state_native(n);
    *state = n;
    return 0;
}

static int teardown(void **state)
{
    struct native_rig *n = *state;
    void *rig = n->rig;

    engine_accel_ops.vcpu_destroy(n->vcpu);
    engine_accel_ops.vm_destroy(n->vm);
    assert_int_equal(rig_teardown(&rig), 0);
    free(n);
    return 0;
}

static uint64_t counter(struct native_rig *n, const char *name)
{
    struct accel_stat stats[32];
    unsigned count = native_user_stats(n->user, stats, ARRAY_LEN(stats));

    for (unsigned i = 0; i < count; i++) {
        if (strcmp(stats[i].name, name) == 0) {
            return stats[i].value;
        }
    }
    fail_msg("no counter %s", name);
    return 0;
}

static uint64_t mapped(struct native_rig *n, unsigned space, uint64_t va)
{
    return rig_peek64(n->rig, SHADOW_PT(space) + va / 4096 * 8);
}

/* mov rax, [0x50000]; inc rax; mov [0x51000], rax; syscall */
#define COPY_AND_CALL \
    "\x48\x8b\x04\x25\x00\x00\x05\x00\x48\xff\xc0\x48\x89\x04\x25\x00\x10\x05\x00\x0f\x05"

static void test_code_runs_and_system_call_reaches_the_kernel(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    rig_poke64(n->rig, RIG_DATA, 41);
    (void)prepare(n);
    run(n);
    assert_int_equal(n->rig->exit.reason, VMEXIT_HLT);
    assert_int_equal(n->rig->st.rip, n->rig->st.lstar + 1);
    assert_int_equal(n->rig->st.gpr[X86_RCX], RIG_USER + sizeof(COPY_AND_CALL) - 1);
    assert_int_equal(vcpu_state_cpl(&n->rig->st), 0);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 42);
    assert_int_equal(counter(n, "native_system_calls"), 1);
    assert_true(n->runs >= 2);
}

static void test_page_is_writable_only_when_it_is_dirty(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    (void)prepare(n);
    run(n);
    assert_int_equal(mapped(n, 0, RIG_DATA) & (P | RW), P);
    assert_int_equal(rig_peek64(n->rig, RIG_PT + (RIG_DATA >> 12) * 8) & (A | D), A);
    assert_int_equal(mapped(n, 0, 0x51000) & (P | RW), P | RW);
    assert_int_equal(rig_peek64(n->rig, RIG_PT + 0x51 * 8) & (A | D), A | D);
    /* What was never used is not there. */
    assert_int_equal(mapped(n, 0, 0x58000), 0);
}

static void test_neighbours_that_were_used_come_along(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    rig_map(n->rig, 0x52000, 0x152000, P | RW | US | A | D);
    rig_map(n->rig, 0x53000, 0x153000, P | RW | US | A | NX);
    rig_map(n->rig, 0x54000, 0x154000, P | RW | A | D);
    (void)prepare(n);
    run(n);
    assert_int_equal(mapped(n, 0, 0x52000), 0x152000 | P | RW | US | A | D);
    assert_int_equal(mapped(n, 0, 0x53000), 0x153000 | P | US | A | NX);
    assert_int_equal(mapped(n, 0, 0x54000), 0);
}

/* In user mode again, after the kernel's HLT. */
static void to_user(struct native_rig *n, uint64_t rip)
{
    n->v->st.rip = rip;
    n->v->st.seg[X86_CS] = rig_segment(RIG_USER_CS64 | 3, 0xa0fb);
    n->v->st.seg[X86_SS] = rig_segment(RIG_USER_DS | 3, 0xc0f3);
    n->v->st.rflags |= X86_FLAG_IF;
    n->v->st.mp_state = X86_MP_RUNNABLE;
}

static void again(struct native_rig *n)
{
    to_user(n, RIG_USER);
    run(n);
}

/* Whatever takes away from the guest's user: what runs in a space has stopped before. */
static void test_flush_has_it_confirmed_that_user_code_stopped(void **state)
{
    struct native_rig *n = *state;
    unsigned before = n->confirms;

    mmu_flush_page(n->v, RIG_DATA);
    assert_int_equal(n->confirms, before + 1);
    mmu_flush_non_global(n->v);
    assert_int_equal(n->confirms, before + 2);
    mmu_flush_all(n->v);
    assert_int_equal(n->confirms, before + 3);
    mmu_context_changed(n->v, false);
    assert_int_equal(n->confirms, before + 4);
    mmu_context_changed(n->v, true);
    assert_int_equal(n->confirms, before + 5);
    mmu_flush_page(n->v, 0xffff888000000000ull); /* none of his */
    assert_int_equal(n->confirms, before + 5);
}

static void test_flush_looks_at_what_is_mapped_again(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    rig_poke64(n->rig, RIG_DATA, 41);
    rig_poke64(n->rig, 0x150000, 99);
    (void)prepare(n);
    run(n);

    /* Without a flush a TLB may hold what was there. */
    rig_map(n->rig, RIG_DATA, 0x150000, 7);
    again(n);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 42);
    mmu_flush_page(n->v, RIG_DATA + 8);
    again(n);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 100);
    assert_int_equal(counter(n, "native_drops"), 1);

    /* Clean again: the write is seen. */
    rig_map(n->rig, 0x51000, 0x51000, P | RW | US | A);
    mmu_flush_non_global(n->v);
    again(n);
    assert_int_equal(rig_peek64(n->rig, RIG_PT + 0x51 * 8) & D, D);

    /* Read-only now: the guest's fault. */
    rig_map(n->rig, 0x51000, 0x51000, P | US | A | D);
    mmu_flush_page(n->v, 0x51000);
    again(n);
    rig_expect_vector(n->rig, X86_VEC_PF);
    assert_int_equal(n->rig->st.cr2, 0x51000);
    assert_int_equal(counter(n, "native_page_faults"), 1);
    assert_int_equal(rig_peek64(n->rig, n->rig->st.gpr[X86_RSP]), 7); /* present, write, user */
}

static void test_other_address_space_has_its_own_space(void **state)
{
    struct native_rig *n = *state;
    struct native_space *first;
    struct native_space *second;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    first = prepare(n);
    run(n);
    to_user(n, RIG_USER);
    n->v->st.cr3 = PML4_TWO;
    n->rig->st = n->v->st;
    second = prepare(n);
    assert_ptr_not_equal(first, second);
    run(n);
    assert_true((mapped(n, 1, 0x51000) & P) != 0);

    /* A third one takes the place of that which was left alone for longest. */
    rig_poke64(n->rig, 0x61000, RIG_PDPT | 7);
    mutex_lock(&n->user->lock);
    assert_ptr_equal(native_space_take(n->user, 0x61000), first);
    mutex_unlock(&n->user->lock);
    assert_int_equal(mapped(n, 0, 0x51000), 0);
    assert_true((mapped(n, 1, 0x51000) & P) != 0);
}

static void test_address_space_that_has_gone_is_cleared_at_once(void **state)
{
    struct native_rig *n = *state;
    struct native_space *space;
    unsigned changes;

    for (uint64_t va = 0x60000; va < 0x80000; va += 4096) {
        rig_map(n->rig, va, va + 0x100000, P | RW | US | A | D);
    }
    space = prepare(n);
    RIG_CODE_AT(n->rig, RIG_USER,
                "\x48\x8b\x04\x25\x00\x00\x06\x00\x0f\x05"); /* mov rax, [0x60000] */
    run(n);
    assert_true(space->pages >= 16);
    for (uint64_t va = 0x60000; va < 0x80000; va += 4096) {
        rig_map(n->rig, va, 0, 0);
    }
    rig_map(n->rig, 0x60000, 0x60000, P | RW | US);
    rig_poke64(n->rig, 0x60000, 77);
    changes = n->changes;
    mmu_flush_non_global(n->v);
    again(n);
    assert_int_equal(n->rig->st.gpr[X86_RAX], 77);
    assert_int_equal(n->clears, 1);
    assert_int_equal(n->changes, changes);
    assert_int_equal(space->pages, 0);
    assert_int_equal(mapped(n, 0, 0x61000), 0);
}

static void test_page_that_becomes_code_is_not_writable(void **state)
{
    struct native_rig *n = *state;
    struct native_space *space;
    uint64_t units;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    RIG_CODE_AT(n->rig, 0x51100, "\x0f\x05");
    space = prepare(n);
    run(n);
    assert_int_equal(mapped(n, 0, 0x51000) & RW, RW);

    /* It is translated: the mapping goes before. */
    atomic_store(&space->promoted, false);
    n->v->native.wanted = false;
    to_user(n, 0x51100);
    run(n);
    assert_true((*gmem_page_flags(n->rig->gmem, gpa(0x51000)) & GMEM_PAGE_CODE) != 0);
    assert_int_equal(mapped(n, 0, 0x51000) & (P | RW), P);
    units = counter(n, "native_protects");
    assert_int_equal(units, 1);

    /* A native write to it happens, and what was translated is dropped. */
    atomic_store(&space->promoted, true);
    n->v->native.wanted = true;
    rig_poke64(n->rig, RIG_DATA, 6);
    again(n);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 7);
    assert_int_equal(*gmem_page_flags(n->rig->gmem, gpa(0x51000)) & GMEM_PAGE_CODE, 0);
    assert_int_equal(mapped(n, 0, 0x51000) & (P | RW), P | RW);
}

static void test_instruction_that_tells_of_the_host_gives_the_guests_answer(void **state)
{
    struct native_rig *n = *state;

    /* jmp 0x31000; there: rdtscp; mov [0x51000], rcx; syscall */
    RIG_CODE_AT(n->rig, RIG_USER, "\xe9\xfb\x0f\x00\x00");
    RIG_CODE_AT(n->rig, 0x31000, "\x0f\x01\xf9\x48\x89\x0c\x25\x00\x10\x05\x00\x0f\x05");
    n->rig->st.tsc_aux = 0x1234;
    (void)prepare(n);
    run(n);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 0x1234);
    assert_int_equal(mapped(n, 0, 0x31000) & NX, NX);
    assert_int_equal(mapped(n, 0, RIG_USER) & NX, 0);
    assert_int_equal(counter(n, "native_detours"), 1);
    assert_true(counter(n, "native_flagged_pages") >= 1);
}

/* As in a process that begins. */
static void map_vdso(struct native_rig *n)
{
    struct native_space *space = prepare(n);

    mutex_lock(&space->lock);
    native_space_clear(n->user, space);
    mutex_unlock(&space->lock);
    rig_map(n->rig, 0x31000, 0x31000, P | US | A);
    mmu_flush_page(n->v, 0x31000);
}

/* A page like Linux's vDSO, which user code jumps to; so many pages are there for copies. */
static void begin_vdso(struct native_rig *n, unsigned copies, const char *jump)
{
    n->native.copies = n->user->ram + COPIES;
    n->native.copy_count = copies;
    rig_poke(n->rig, RIG_USER, jump, 5);
    rig_poke(n->rig, 0x31000, "\x7f\x45\x4c\x46", 4);
    rig_poke(n->rig, 0x31040, "linux-vdso.so.1", 16);
    n->rig->st.tsc_aux = 0x1234;
}

/* rdtscp; mov [0x51000], rcx; syscall: it uses ECX */
static const char ask_for_cpu[] = "\x0f\x01\xf9\x48\x89\x0c\x25\x00\x10\x05\x00\x0f\x05";

/* The clock natively, the CPU's number from the interpreter. */
static void test_vdso_runs_from_a_copy(void **state)
{
    struct native_rig *n = *state;
    uint64_t before;

    begin_vdso(n, 2, "\xe9\xfb\x10\x00\x00"); /* jmp 0x31100 */
    /* rdtscp, padded; mov edx, selector; lsl ecx, edx; mov [0x51000], rcx; syscall */
    RIG_CODE_AT(n->rig, 0x31100,
                "\x0f\x01\xf9\x66\x90\xba\x33\x00\x00\x00\x0f\x03\xca"
                "\x48\x89\x0c\x25\x00\x10\x05\x00\x0f\x05");
    before = rig_peek64(n->rig, 0x31100);
    map_vdso(n);
    run(n);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 0xffffffff);
    assert_int_equal(mapped(n, 0, 0x31000) & (NX | RW | P), P);
    assert_int_equal(mapped(n, 0, 0x31000) & PTE_ADDRESS, COPIES);
    assert_int_equal(counter(n, "native_detours"), 0);
    assert_int_equal(counter(n, "native_others"), 1); /* LSL, not RDTSCP */
    assert_int_equal(rig_peek64(n->rig, 0x31100), before);

    /* Changed: it is not run from what the first one was. */
    rig_poke(n->rig, 0x31200, "\x90", 1);
    map_vdso(n);
    again(n);
    assert_int_equal(mapped(n, 0, 0x31000) & (NX | P), P);
    assert_int_equal(mapped(n, 0, 0x31000) & PTE_ADDRESS, COPIES + 0x1000);

    /* No copy is left. */
    rig_poke(n->rig, 0x31200, "\x91", 1);
    map_vdso(n);
    again(n);
    assert_int_equal(mapped(n, 0, 0x31000) & (NX | P), NX | P);
    assert_int_equal(mapped(n, 0, 0x31000) & PTE_ADDRESS, 0x31000);
    assert_int_equal(counter(n, "native_detours"), 1);
}

static void test_vdso_that_asks_for_the_cpu_gives_the_guests(void **state)
{
    struct native_rig *n = *state;

    begin_vdso(n, 1, "\xe9\xfb\x10\x00\x00"); /* jmp 0x31100 */
    RIG_CODE_AT(n->rig, 0x31100, ask_for_cpu);
    map_vdso(n);
    run(n);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 0x1234);
    assert_int_equal(mapped(n, 0, 0x31000) & PTE_ADDRESS, COPIES);
    assert_int_equal(counter(n, "native_others"), 1);
}

/* What begins in it and ends in the next page cannot be taken out. */
static void test_vdso_that_asks_at_its_end_is_not_run(void **state)
{
    struct native_rig *n = *state;

    begin_vdso(n, 1, "\xe9\xfa\x1f\x00\x00"); /* jmp 0x31fff */
    RIG_CODE_AT(n->rig, 0x31fff, ask_for_cpu);
    rig_map(n->rig, 0x32000, 0x32000, P | US | A);
    map_vdso(n);
    run(n);
    assert_int_equal(mapped(n, 0, 0x31000) & (NX | P), NX | P);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 0x1234);
}

static void test_space_without_room_begins_anew(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    rig_poke64(n->rig, RIG_DATA, 41);
    (void)prepare(n);
    run(n);
    rig_map(n->rig, RIG_DATA, RIG_DATA, 0);
    rig_map(n->rig, RIG_DATA, 0x150000, 7);
    rig_poke64(n->rig, 0x150000, 50);
    mmu_flush_page(n->v, RIG_DATA);
    n->fail_change = true;
    again(n);
    assert_int_equal(n->clears, 1);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 51);
}

/* What is refused clears the space: nothing of that batch is mapped behind it. */
static void test_refused_batch_leaves_nothing_behind(void **state)
{
    struct native_rig *n = *state;
    struct native_space *space = prepare(n);
    struct native_batch batch = {.count = 0};

    mutex_lock(&space->lock);
    for (unsigned i = 0; i < NATIVE_MAX_CHANGES; i++) {
        assert_int_equal(
            native_batch_add(n->user, space, &batch, 0x20000 + i * 0x2000ull, MAPPED_NONE), 0);
    }
    n->fail_change = true;
    assert_int_equal(
        native_batch_add(n->user, space, &batch, RIG_DATA, RIG_DATA >> 12 << MAPPED_SHIFT),
        -ENOMEM);
    assert_int_equal(batch.count, 0);
    mutex_unlock(&space->lock);
}

static void test_lost_space_is_a_fault_of_the_guests_program(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    (void)prepare(n);
    n->end = NATIVE_LOST;
    run(n);
    rig_expect_vector(n->rig, X86_VEC_GP);
    assert_int_equal(rig_peek64(n->rig, n->rig->st.gpr[X86_RSP] + 8), RIG_USER);
    assert_int_equal(counter(n, "native_lost"), 1);
    again(n);
    assert_int_equal(counter(n, "native_system_calls"), 1);
}

static void test_space_that_has_ended_costs_no_program(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    (void)prepare(n);
    n->end = NATIVE_GONE;
    run(n);
    rig_expect_vector(n->rig, 63); /* its system call, translated */
    assert_int_equal(counter(n, "native_lost"), 1);
    assert_int_equal(counter(n, "native_system_calls"), 0);
    assert_null(native_space_find(n->user, n->rig->st.cr3));
}

static void test_page_the_kernel_was_asked_for_is_there_at_once(void **state)
{
    struct native_rig *n = *state;
    uint64_t rip;
    unsigned runs;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    rig_map(n->rig, 0x51000, 0x51000, 0);
    (void)prepare(n);
    run(n);
    rig_expect_vector(n->rig, X86_VEC_PF);
    rip = rig_peek64(n->rig, n->rig->st.gpr[X86_RSP] + 8);
    runs = n->runs;

    rig_map(n->rig, 0x51000, 0x51000, P | RW | US);
    to_user(n, rip);
    run(n);
    assert_int_equal(n->rig->st.rip, n->rig->st.lstar + 1);
    assert_int_equal(rig_peek64(n->rig, 0x51000), 1);
    assert_int_equal(n->runs, runs + 1);
    assert_int_equal(rig_peek64(n->rig, RIG_PT + 0x51 * 8) & (A | D), A | D);
}

static void test_page_the_kernel_did_not_give_is_asked_for_again(void **state)
{
    struct native_rig *n = *state;
    uint64_t rip;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    rig_map(n->rig, 0x51000, 0x51000, P | US | A);
    (void)prepare(n);
    run(n);
    rip = rig_peek64(n->rig, n->rig->st.gpr[X86_RSP] + 8);
    to_user(n, rip);
    run(n);
    rig_expect_vector(n->rig, X86_VEC_PF);
    assert_int_equal(n->rig->st.cr2, 0x51000);
    assert_int_equal(counter(n, "native_page_faults"), 2);
    /* Somewhere else nothing is made ready. */
    to_user(n, RIG_USER + 8);
    rig_map(n->rig, 0x51000, 0x51000, P | RW | US);
    run(n);
    assert_int_equal(n->rig->st.rip, n->rig->st.lstar + 1);
}

/* So many stays, each of so many cycles, cost so much. */
static bool stays_native(struct native_rig *n, struct native_space *space, uint64_t inside,
                         uint64_t cost)
{
    atomic_store(&space->promoted, true);
    n->v->native.wanted = true;
    native_user_begin_window(n->v);
    for (unsigned i = 0; i < 64; i++) {
        native_policy_note_run(n->v, inside + cost, inside, false);
        native_policy_judge(n->v, space);
    }
    return n->v->native.wanted && atomic_load(&space->promoted);
}

static void test_what_costs_more_than_it_gains_is_translated(void **state)
{
    struct native_rig *n = *state;
    struct native_space *space = prepare(n);
    uint64_t us = n->user->cycles_per_ms / 1000;

    assert_true(stays_native(n, space, 30 * us, 10 * us));
    assert_true(stays_native(n, space, 9 * us, 10 * us));
    assert_int_equal(counter(n, "native_demotions"), 0);
    assert_false(stays_native(n, space, 2 * us, 10 * us));
    assert_int_equal(counter(n, "native_demotions"), 1);
    assert_true(space->not_before > 0);
    n->v->native.since = 0;
    assert_false(native_policy_wants(n->v));
    assert_true(n->rests > 0); /* its thread may run anywhere again */
    /* A host that took its CPU away for a while says nothing about the guest. */
    assert_true(stays_native(n, space, 30 * us, 9000 * us));
    /* Nor does a guest that claims more than went by. */
    assert_false(stays_native(n, space, 0, 10 * us));
}

static void expect_translated(struct native_rig *n)
{
    (void)prepare(n);
    run(n);
    assert_int_equal(n->runs, 0);
    assert_int_equal(n->rig->st.rip, n->rig->st.lstar + 1);
    state_native(n);
    rig_poke64(n->rig, 0x51000, 0);
}

static void test_what_the_host_would_do_otherwise_is_translated(void **state)
{
    struct native_rig *n = *state;

    RIG_CODE_AT(n->rig, RIG_USER, COPY_AND_CALL);
    n->rig->st.tsc_offset = 1;
    expect_translated(n);
    n->rig->st.seg[X86_DS].selector = 0x23;
    expect_translated(n);
    n->rig->st.cr4 |= X86_CR4_TSD;
    expect_translated(n);
    n->rig->st.rflags |= X86_FLAG_IOPL;
    expect_translated(n);
    n->rig->st.rflags |= X86_FLAG_AC;
    expect_translated(n);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_code_runs_and_system_call_reaches_the_kernel, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_page_is_writable_only_when_it_is_dirty, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_neighbours_that_were_used_come_along, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flush_has_it_confirmed_that_user_code_stopped, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_flush_looks_at_what_is_mapped_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_address_space_has_its_own_space, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_address_space_that_has_gone_is_cleared_at_once, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_page_that_becomes_code_is_not_writable, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(
            test_instruction_that_tells_of_the_host_gives_the_guests_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_vdso_runs_from_a_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_vdso_that_asks_for_the_cpu_gives_the_guests, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_vdso_that_asks_at_its_end_is_not_run, setup, teardown),
        cmocka_unit_test_setup_teardown(test_space_without_room_begins_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_batch_leaves_nothing_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(test_space_that_has_ended_costs_no_program, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_lost_space_is_a_fault_of_the_guests_program, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_page_the_kernel_was_asked_for_is_there_at_once, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_page_the_kernel_did_not_give_is_asked_for_again, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_what_costs_more_than_it_gains_is_translated, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_what_the_host_would_do_otherwise_is_translated, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
