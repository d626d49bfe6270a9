/*
 * Host signals in translated code: faults of the guest's instructions, and
 * kicks, which leave at the next instruction boundary.
 *
 * A kick between two boundaries single-steps to the next one. In C functions
 * that translated code calls there is nothing to do, for the thunk behind the
 * call looks at the kick flag; so stepping ends where only a call can come, or
 * a return. A step costs microseconds: on the way between two units, where a
 * good deal of the time goes, there are none.
 */
#include "engine/hostsig.h"
#include "engine/mirror.h"
#include "engine/translate_int.h"

/* Faults of an instruction outside the mirror, until it gets a check. */
#define REFUSED_MAX 4u

#define EFLAGS_TF 0x100
#define EFLAGS_DF 0x400

static const int greg_of[X86_GPR_COUNT] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                           REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                           REG_R12, REG_R13, REG_R14, REG_R15};

static bool at_string(const ucontext_t *context)
{
    return unit_at_string((const uint8_t *)(uintptr_t)context->uc_mcontext.gregs[REG_RIP]);
}

static void leave_instead(struct engine_vcpu *v, ucontext_t *context)
{
    greg_t *gregs = context->uc_mcontext.gregs;

    v->hot.stepping = false;
    gregs[REG_RIP] = (greg_t)v->vm->translator->leave;
    gregs[REG_RSP] = (greg_t)v->hot.host_rsp;
    gregs[REG_EFL] &= ~(greg_t)(EFLAGS_TF | EFLAGS_DF);
}

/* Takes the guest's registers out of the context, and has it leave instead of going on. */
static void capture(struct engine_vcpu *v, ucontext_t *context, const struct unit_insn *at,
                    enum translate_leave why)
{
    const greg_t *gregs = context->uc_mcontext.gregs;

    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        v->st.gpr[r] =
            (at->spilled & REG_BIT(r)) != 0 ? v->hot.spill[r] : (uint64_t)gregs[greg_of[r]];
    }
    if (at_string(context)) {
        v->st.gpr[X86_RDI] = mirror_guest(v->st.gpr[X86_RDI]);
    }
    if (at->flags == FLAGS_HOST) {
        uint64_t eflags = (uint64_t)gregs[REG_EFL];

        v->hot.flags = (eflags & 0xff) << 8 | ((eflags & X86_FLAG_OF) != 0 ? 1u : 0u);
    }
    v->st.rip = v->hot.page + at->offset;
    v->hot.leave = why;
    leave_instead(v, context);
}

/* A place where single-stepping must end: what follows is C. */
static bool is_way_to_c(const struct translator *t, uint32_t code)
{
    for (unsigned i = 0; i < t->call_count; i++) {
        if (t->calls[i] == code) {
            return true;
        }
    }
    return code == t->ret;
}

/* Between two units: the last instruction is done, and the next one is at hot.target. */
static void capture_on_the_way(struct engine_vcpu *v, ucontext_t *context)
{
    const struct unit_insn at = {.spilled = UNIT_STANDARD_BORROWED | REG_BIT(X86_RCX),
                                 .flags = v->hot.flags_in_slot != 0 ? FLAGS_SLOT : FLAGS_HOST};

    capture(v, context, &at, LEAVE_KICK);
    v->st.rip = v->hot.target;
}

/* Leaves when this is a boundary, else goes on step by step. */
static void seek_boundary(struct engine_vcpu *v, ucontext_t *context)
{
    const struct translator *t = v->vm->translator;
    greg_t *gregs = context->uc_mcontext.gregs;
    uint32_t code = (uint32_t)((uintptr_t)gregs[REG_RIP] - (uintptr_t)t->rx);
    struct unit *unit = code_cache_unit_at(t, (uintptr_t)gregs[REG_RIP]);
    struct unit_insn at;

    if (unit != NULL && (unit_insn_is_boundary(unit, code, &at) || at_string(context))) {
        capture(v, context, &at, LEAVE_KICK);
        return;
    }
    if (unit == NULL && thunk_is_on_the_way(t, code)) {
        capture_on_the_way(v, context);
        return;
    }
    if (unit == NULL && thunk_is_resuming(t, code)) {
        leave_instead(v, context);
        return;
    }
    v->hot.stepping = !is_way_to_c(t, code) && !thunk_leads_to_c(t, code);
    if (v->hot.stepping) {
        gregs[REG_EFL] |= EFLAGS_TF;
    } else {
        gregs[REG_EFL] &= ~(greg_t)EFLAGS_TF;
    }
}

/* Its entry of two that may hold it; else the one that counted less is given to it. */
static struct refused_site *refused_site(struct engine_vcpu *v, uintptr_t guest)
{
    struct refused_site *pair =
        &v->refused_sites[(guest * 0x9e3779b97f4a7c15ull >> 40) & (REFUSED_SITES - 2)];
    unsigned i =
        pair[0].guest == guest || (pair[1].guest != guest && pair[0].count <= pair[1].count) ? 0
                                                                                             : 1;

    if (pair[i].guest != guest) {
        pair[i] = (struct refused_site){guest, 0};
    }
    return &pair[i];
}

/* An instruction that reaches for what the mirror cannot hold is translated anew some day. */
static void note_refused(struct engine_vcpu *v, struct unit *unit, const struct unit_insn *at)
{
    uintptr_t guest = (unit->guest & ~((uintptr_t)GMEM_PAGE_BYTES - 1)) + at->offset;
    struct refused_site *site = refused_site(v, guest);

    if (++site->count >= REFUSED_MAX) {
        *site = (struct refused_site){0, 0};
        code_cache_add_checked(v->vm->translator, guest);
        v->retranslate = unit;
    }
}

/* A page that is filled anew loses its code with that: this will not happen again. */
static bool is_filling_code(struct engine_vcpu *v, const ucontext_t *context, uint64_t va)
{
    struct mmu_page page;

    return at_string(context) && mmu_probe(v, va, &page) && page.host != NULL &&
           (atomic_load(gmem_page_flags(v->vm->gmem, gpa(page.gpa))) & GMEM_PAGE_CODE) != 0;
}

/* Guest memory that the mirror lacks: true when it has it now. */
static bool on_mirror_fault(struct engine_vcpu *v, struct unit *unit, const struct unit_insn *at,
                            const ucontext_t *context)
{
    const greg_t *gregs = context->uc_mcontext.gregs;
    bool is_write = (gregs[REG_ERR] & X86_PF_WRITE) != 0;
    uint64_t va = mirror_guest((uint64_t)gregs[REG_CR2]);

    if (gregs[REG_TRAPNO] == X86_VEC_PF && mirror_fault(v, va, is_write)) {
        return true;
    }
    if (!is_filling_code(v, context, va)) {
        note_refused(v, unit, at);
    }
    return false;
}

static bool on_fault(void *opaque, int signal, siginfo_t *info, ucontext_t *context)
{
    struct engine_vcpu *v = opaque;
    const struct translator *t = v->vm->translator;
    uintptr_t rip = (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
    struct unit *unit = code_cache_unit_at(t, rip);
    struct unit_insn at;

    (void)info;
    if (signal == SIGTRAP) {
        if (v->hot.stepping) {
            seek_boundary(v, context);
        }
        return true;
    }
    if (unit == NULL) {
        return false;
    }
    at = unit_insn_at(unit, (uint32_t)(rip - (uintptr_t)t->rx));
    if (signal == SIGSEGV && mem_is_direct(t, unit->mode) &&
        on_mirror_fault(v, unit, &at, context)) {
        return true;
    }
    capture(v, context, &at, LEAVE_INTERP);
    return true;
}

static bool on_kick(void *opaque, int signal, siginfo_t *info, ucontext_t *context)
{
    struct engine_vcpu *v = opaque;
    const struct translator *t = v->vm->translator;
    uintptr_t rip = (uintptr_t)context->uc_mcontext.gregs[REG_RIP];

    (void)signal;
    (void)info;
    atomic_store(&v->kick, 1); /* it may come from another process or a timer */
    if (v->kick_count != NULL) {
        atomic_fetch_add(v->kick_count, 1);
    }
    if (v->vm->native_user != NULL) {
        native_user_kick(v);
    }
    if (atomic_load(&v->hot.in_code) && rip - (uintptr_t)t->rx < t->size_bytes) {
        seek_boundary(v, context);
    }
    return true;
}

int translate_signal_init(struct engine_vcpu *v)
{
    const struct translator *t = v->vm->translator;
    int r = hostsig_add_range((uintptr_t)t->rx, (uintptr_t)t->rx + t->size_bytes, on_fault, v);

    if (r == 0) {
        hostsig_set_kick(on_kick, v);
    }
    return r;
}

void translate_signal_done(struct engine_vcpu *v)
{
    hostsig_set_kick(NULL, NULL);
    hostsig_remove_range((uintptr_t)v->vm->translator->rx);
}
