/* Running user code natively, and what follows on each way out. */
#include "engine/native_int.h"

#include "engine/interp.h"

#include <stdlib.h>

#define SELECTOR_CS 0x33u
#define SELECTOR_DATA 0x2bu
#define DR6_BS 0x4000u
#define DR7_ENABLED 0xffull

/* Instructions of a flagged page that are interpreted before it is translated. */
#define DETOUR_MAX 192u
/* The same instruction faults so often although all is mapped. */
#define FAULTS_MAX 3u

/* ---- may it? ---- */

static bool is_flat(const struct x86_segment *segment)
{
    return segment->selector == 0 || segment->selector == SELECTOR_DATA;
}

static bool has_host_segments(const struct vcpu_state *st)
{
    return st->seg[X86_CS].selector == SELECTOR_CS &&
           (st->seg[X86_CS].access_rights & X86_AR_L) != 0 &&
           st->seg[X86_SS].selector == SELECTOR_DATA && is_flat(&st->seg[X86_DS]) &&
           is_flat(&st->seg[X86_ES]) && is_flat(&st->seg[X86_FS]) && is_flat(&st->seg[X86_GS]);
}

static bool has_host_state(const struct vcpu_state *st)
{
    const uint64_t wrong = X86_FLAG_TF | X86_FLAG_IOPL | X86_FLAG_NT | X86_FLAG_AC;
    const uint64_t vector = X86_XCR0_X87 | X86_XCR0_SSE;

    return (st->rflags & (wrong | X86_FLAG_IF)) == X86_FLAG_IF &&
           (st->cr0 & (X86_CR0_PG | X86_CR0_TS | X86_CR0_EM)) == X86_CR0_PG &&
           (st->cr4 & (X86_CR4_OSFXSR | X86_CR4_OSXSAVE | X86_CR4_TSD)) ==
               (X86_CR4_OSFXSR | X86_CR4_OSXSAVE) &&
           (st->xcr0 & vector) == vector && (st->efer & X86_EFER_LMA) != 0 &&
           (st->dr[7] & DR7_ENABLED) == 0 && st->tsc_offset == 0;
}

static bool is_undisturbed(const struct engine_vcpu *v)
{
    const struct x86_events *e = &v->st.events;

    return !e->exception_pending && !e->interrupt_pending && !e->nmi_pending && !e->sti_shadow &&
           !e->mov_ss_shadow && v->io.done == 0 && !v->exit_unanswered &&
           v->st.mp_state == X86_MP_RUNNABLE && !v->debug.single_step &&
           v->debug.breakpoint_count == 0 && v->check == NULL &&
           !atomic_load_explicit(&v->vm->dirty_logging, memory_order_relaxed);
}

static bool may_run(const struct engine_vcpu *v)
{
    return vcpu_state_cpl(&v->st) == 3 && has_host_segments(&v->st) && has_host_state(&v->st) &&
           is_undisturbed(v);
}

bool native_user_is_due(struct engine_vcpu *v)
{
    return vcpu_state_cpl(&v->st) == 3 && native_policy_wants(v) && may_run(v);
}

/* ---- ways out ---- */

static int raise(struct engine_vcpu *v)
{
    struct engine_fault fault = v->fault;

    v->stat_exceptions++;
    return exception_deliver(v, &fault);
}

static int on_syscall(struct engine_vcpu *v)
{
    native_count(&v->vm->native_user->counts.syscalls, 1);
    v->next_rip = v->st.gpr[X86_RCX];
    if (fast_syscall(v, NULL) != 0) {
        return raise(v);
    }
    v->st.rip = v->next_rip;
    return 0;
}

static int on_trap(struct engine_vcpu *v)
{
    native_count(&v->vm->native_user->counts.traps, 1);
    v->st.rflags |= X86_FLAG_TF;
    v->fault = (struct engine_fault){.vector = X86_VEC_DB, .dr6 = DR6_BS};
    return raise(v);
}

static void clear(struct engine_vcpu *v, struct native_space *space)
{
    mutex_lock(&space->lock);
    native_space_clear(v->vm->native_user, space);
    mutex_unlock(&space->lock);
}

/* It is not used again: what it was used for is translated from now on. */
static int on_gone(struct engine_vcpu *v, struct native_space *space)
{
    native_count(&v->vm->native_user->counts.lost, 1);
    clear(v, space);
    return 0;
}

/* The process did what no guest can make it do and be right, or the host has ended it: its
 * registers are gone. */
static int on_lost(struct engine_vcpu *v, struct native_space *space)
{
    (void)on_gone(v, space);
    v->fault = (struct engine_fault){.vector = X86_VEC_GP, .has_error = true};
    return raise(v);
}

static int interpret(struct engine_vcpu *v)
{
    native_count(&v->vm->native_user->counts.others, 1);
    return interp_step(v);
}

/*
 * Through a page that may not run natively, by the interpreter, since most do
 * little there; whoever stays is translated for a while.
 */
static int detour(struct engine_vcpu *v)
{
    struct native_user *user = v->vm->native_user;
    const uint64_t page = v->st.rip & ~PAGE_MASK;
    int r = 0;

    native_count(&user->counts.detours, 1);
    v->native.detours++;
    for (unsigned n = 0; r == 0 && n < DETOUR_MAX; n++) {
        r = interp_step(v);
        if ((v->st.rip & ~PAGE_MASK) != page || atomic_load(&v->kick) != 0 || !may_run(v)) {
            return r;
        }
    }
    v->native.is_paused = true;
    native_user_begin_window(v);
    native_count(&user->counts.pauses, 1);
    return r;
}

/* It faults and faults: is it the same each time? */
static bool is_stuck(struct engine_vcpu *v, uint64_t va)
{
    if (v->native.fault_va != va || v->native.fault_rip != v->st.rip) {
        v->native.fault_va = va;
        v->native.fault_rip = v->st.rip;
        v->native.fault_count = 0;
    }
    return ++v->native.fault_count > FAULTS_MAX;
}

/* *ret_again: native code goes on, the changes in v's batch first. */
static int on_fault(struct engine_vcpu *v, struct native_space *space,
                    const struct native_left *left, bool *ret_again)
{
    struct native_user *user = v->vm->native_user;
    struct native_batch *batch = &v->native.batch;
    enum native_mapped mapped;
    struct mmu_page page;

    if (left->address >= NATIVE_END || is_stuck(v, left->address)) {
        v->native.fault_count = 0;
        return interpret(v);
    }
    mutex_lock(&space->lock);
    mapped = native_map_fault(v, space, left->address, left->error, batch);
    if (mapped != NATIVE_MAPPED || v->vm->vcpu_count > 1) {
        (void)!native_batch_flush(user, space, batch);
    }
    mutex_unlock(&space->lock);
    switch (mapped) {
    case NATIVE_MAPPED:
        native_count(&user->counts.faults, 1);
        native_policy_note_mapping(v);
        *ret_again = true;
        return 0;
    case NATIVE_RAISED:
        native_count(&user->counts.raised, 1);
        v->native.raised = (struct native_raised){
            .va = left->address, .error = left->error, .rip = v->st.rip, .cr3 = v->st.cr3};
        return raise(v);
    case NATIVE_FLAGGED:
        return detour(v);
    case NATIVE_CODE:
        /* What was translated from it may be needed no more; it is when it runs again. */
        if (mmu_translate(v, left->address, MMU_WRITE, MMU_USER, &page) == 0) {
            engine_invalidate_code(v->vm, gpa(page.gpa & ~PAGE_MASK), GMEM_PAGE_BYTES);
        }
        *ret_again = true;
        return 0;
    case NATIVE_NOT_RAM:
    default:
        return interpret(v);
    }
}

static int act(struct engine_vcpu *v, struct native_space *space, const struct native_left *left,
               bool *ret_again)
{
    struct native_user *user = v->vm->native_user;

    switch (left->reason) {
    case NATIVE_SYSCALL:
        native_policy_judge(v, space);
        return on_syscall(v);
    case NATIVE_FAULT:
        native_policy_judge(v, space);
        return on_fault(v, space, left, ret_again);
    case NATIVE_TRAP:
        return on_trap(v);
    case NATIVE_OTHER:
        return interpret(v);
    case NATIVE_FULL:
        clear(v, space);
        *ret_again = true;
        return 0;
    case NATIVE_GONE:
        return on_gone(v, space);
    case NATIVE_LOST:
        return on_lost(v, space);
    case NATIVE_KICK:
    default:
        native_count(&user->counts.kicks, 1);
        return 0;
    }
}

/* ---- running ---- */

/* The space of v's address space, that nobody takes away meanwhile; NULL: it has none any more. */
static struct native_space *enter(struct engine_vcpu *v)
{
    struct native_user *user = v->vm->native_user;
    struct native_space *space;

    mutex_lock(&user->lock);
    space = native_space_find(user, v->st.cr3);
    if (space != NULL && atomic_load(&space->promoted) && !space->is_lost) {
        space->users++;
        space->used_at = __builtin_ia32_rdtsc();
    } else {
        space = NULL;
    }
    mutex_unlock(&user->lock);
    return space;
}

static void leave(struct engine_vcpu *v, struct native_space *space)
{
    struct native_user *user = v->vm->native_user;

    mutex_lock(&user->lock);
    space->users--;
    mutex_unlock(&user->lock);
}

/*
 * What flushes ask for; false: it is not to run natively now. Another address space begins anew,
 * and one that forks pays for each page once more, so it waits as if demoted.
 */
static bool refresh(struct engine_vcpu *v, struct native_space *space)
{
    struct native_user *user = v->vm->native_user;
    enum native_checked checked;

    mutex_lock(&space->lock);
    checked = native_map_check(v, space);
    mutex_unlock(&space->lock);
    if (checked == NATIVE_SAME || user->is_always) {
        return true;
    }
    if (checked == NATIVE_ANOTHER) {
        mutex_lock(&user->lock);
        space->demotions = 0;
        mutex_unlock(&user->lock);
    }
    native_policy_demote(user, space, checked == NATIVE_LESSENED);
    return false;
}

static void run_once(struct engine_vcpu *v, struct native_space *space, struct native_left *left)
{
    struct native_user *user = v->vm->native_user;
    const struct native *native = user->native;
    uint64_t begin = __builtin_ia32_rdtsc();
    uint64_t took;

    native_count(&user->counts.runs, 1);
    v->st.rflags &= ~(uint64_t)X86_FLAG_RF;
    native->ops->run(native->opaque, native_space_index(user, space), v->base.index, &v->st,
                     v->native.batch.changes, v->native.batch.count, left);
    took = __builtin_ia32_rdtsc() - begin;
    native_count(&user->counts.cycles, took);
    native_policy_note_run(v, took, left->cycles, v->native.batch.count != 0);
    v->native.batch.count = 0;
}

static bool has_flushed(const struct native_space *space)
{
    uint64_t any = atomic_load(&space->stale) ? 1 : 0;

    for (unsigned word = 0; word < DIRTY_WORDS; word++) {
        any |= atomic_load(&space->dirty[word]);
    }
    return any != 0;
}

/* Kicked before native code went on, which would have made them. */
static void make_changes(struct engine_vcpu *v, struct native_space *space)
{
    mutex_lock(&space->lock);
    (void)!native_batch_flush(v->vm->native_user, space, &v->native.batch);
    mutex_unlock(&space->lock);
}

/* The instruction whose page the guest's kernel was asked for begins again: it will want that now. */
static void map_raised(struct engine_vcpu *v, struct native_space *space)
{
    struct native_raised raised = v->native.raised;

    v->native.raised.cr3 = 0;
    if (raised.cr3 != v->st.cr3 || raised.rip != v->st.rip) {
        return;
    }
    mutex_lock(&space->lock);
    if (native_map_fault(v, space, raised.va, raised.error, &v->native.batch) != NATIVE_MAPPED ||
        v->vm->vcpu_count > 1) {
        (void)!native_batch_flush(v->vm->native_user, space, &v->native.batch);
    }
    mutex_unlock(&space->lock);
}

int native_user_run(struct engine_vcpu *v)
{
    struct native_space *space = enter(v);
    bool again = true;
    int r = 0;

    v->native.batch.count = 0;
    if (space == NULL || (has_flushed(space) && !refresh(v, space))) {
        v->native.wanted = false;
        again = false;
    }
    if (again) {
        map_raised(v, space);
    }
    atomic_store(&v->native.in, true);
    while (again && atomic_load(&v->kick) == 0) {
        struct native_left left = {.reason = NATIVE_KICK};

        again = false;
        run_once(v, space, &left);
        r = act(v, space, &left, &again);
    }
    atomic_store(&v->native.in, false);
    if (v->native.batch.count != 0) {
        make_changes(v, space);
    }
    if (space != NULL) {
        leave(v, space);
    }
    return r;
}

void native_user_kick(struct engine_vcpu *v)
{
    const struct native *native = v->vm->native_user->native;

    if (atomic_load(&v->native.in)) {
        native->ops->kick(native->opaque, v->base.index);
    }
}

void native_user_forget(struct engine_vcpu *v)
{
    struct native_user *user = v->vm->native_user;

    for (unsigned i = 0; i < user->native->space_count; i++) {
        atomic_store(&user->spaces[i].stale, true);
    }
    v->native.wanted = false;
}
