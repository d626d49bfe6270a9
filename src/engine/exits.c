/*
 * How a unit ends: linked jumps within its page, lookups in the jump cache for
 * everything else, and exits to C.
 *
 * A linked exit has two branches to patch: the one in the unit's main path goes
 * straight to a target that borrows the same registers at its start; the one in
 * the stub goes to the target's entry, after the stub has given them back.
 */
#include "engine/translate_int.h"

static uint8_t *rw_thunk(const struct xlate *x, const uint8_t *rx)
{
    return x->t->rw + (rx - x->t->rx);
}

struct unit_exit *exit_new(struct xlate *x, enum unit_exit_kind kind, int64_t target_offset)
{
    /* Lookups leave no trace: their exit is only for the time of emission. */
    struct unit_exit *exit =
        kind == EXIT_LOOKUP ? &x->lookups[x->lookup_count++] : &x->t->exits[x->t->exit_count++];

    *exit = (struct unit_exit){.unit = x->unit,
                               .kind = (uint8_t)kind,
                               .mode = x->ti->mode & (uint8_t)~UNIT_MODE_SINGLE,
                               .target_offset = (int32_t)target_offset,
                               .insn_offset = x->ti->offset};
    return exit;
}

struct unit_exit *exit_direct(struct xlate *x, int64_t target_offset)
{
    bool in_page =
        target_offset >= 0 && target_offset < (int64_t)GMEM_PAGE_BYTES && x->unit->guest_next == 0;

    return exit_new(x, in_page ? EXIT_CHAIN : EXIT_LOOKUP, target_offset);
}

/* The dispatch thunks of a unit: several copies, so that branches are predicted apart. */
static const struct thunk_dispatch *dispatch_of(const struct xlate *x, unsigned mode)
{
    unsigned copy = (x->unit->code >> 6) % THUNK_DISPATCH_COPIES;

    return &x->t->dispatch[copy][mode & UNIT_MODE_MMU];
}

/* RCX holds the target already when it is borrowed and in_rcx is set. */
void exit_indirect(struct xlate *x, bool in_rcx)
{
    const struct thunk_dispatch *dispatch = dispatch_of(x, x->ti->mode);
    bool has_rax = (x->spilled & REG_BIT(X86_RAX)) == 0 || x->flags == FLAGS_HOST;

    xlate_reload(x, ~(REG_BIT(X86_RCX) | (has_rax ? 0u : REG_BIT(X86_RAX))));
    xlate_spill(x, REG_BIT(X86_RCX));
    if (!in_rcx) {
        emit_gs_load(&x->e, X86_RCX, GS_HOT(target));
    }
    emit_jmp_to(&x->e, rw_thunk(x, x->flags == FLAGS_HOST ? dispatch->flags_host
                                   : has_rax              ? dispatch->flags_slot
                                                          : dispatch->rax_spilled));
}

static void emit_lookup(struct xlate *x, const struct unit_exit *exit)
{
    const struct thunk_dispatch *dispatch = dispatch_of(x, exit->mode);

    xlate_reload(x, UINT16_MAX);
    emit_gs_store_imm32(&x->e, GS_HOT(offset), (uint32_t)exit->target_offset);
    emit_jmp_to(&x->e, rw_thunk(x, x->flags == FLAGS_HOST ? dispatch->offset_flags_host
                                                          : dispatch->offset_flags_slot));
}

/* The part of an exit that leaves; registers and flags as the caller set in x. */
static void emit_stub(struct xlate *x, struct unit_exit *exit, bool is_cold)
{
    struct emit *e = &x->e;

    if (exit->kind == EXIT_LOOKUP) {
        emit_lookup(x, exit);
        return;
    }
    exit->stub = code_offset(x->t, e->p);
    if (exit->kind == EXIT_CHAIN) {
        uint16_t body = x->unit->body_spilled;

        /* As this unit's own body begins, so do others and above all itself. */
        xlate_reload(x, ~(unsigned)body);
        if (!is_cold || x->spilled == body) {
            exit->spilled = body;
            xlate_spill(x, body);
            if (body != 0) {
                exit->jump_body = code_offset(x->t, emit_jmp(e));
            }
        }
        xlate_reload(x, UINT16_MAX);
        exit->jump = code_offset(x->t, emit_jmp(e));
    }
    xlate_reload(x, UINT16_MAX);
    emit_gs_store_imm32(e, GS_HOT(exit), (uint32_t)(exit - x->t->exits));
    emit_jmp_to(e, rw_thunk(x, x->flags == FLAGS_HOST ? x->t->exit_host : x->t->exit_slot));
}

void exit_branch_at(struct xlate *x, uint8_t *rel32, struct unit_exit *exit)
{
    struct cold_exit *cold = &x->cold_exit[x->cold_exit_count++];

    if (exit->kind == EXIT_CHAIN && x->spilled == x->unit->body_spilled) {
        exit->branch = code_offset(x->t, rel32);
    }
    *cold =
        (struct cold_exit){.exit = exit, .branch = rel32, .spilled = x->spilled, .flags = x->flags};
}

void exit_branch(struct xlate *x, unsigned cond, struct unit_exit *exit)
{
    exit_branch_at(x, emit_jcc(&x->e, cond), exit);
}

void exit_end(struct xlate *x, struct unit_exit *exit)
{
    if (exit->kind == EXIT_CHAIN) {
        xlate_flags_restore(x);
    }
    emit_stub(x, exit, x->ti->role != TRACE_END);
}

void exit_emit_cold(struct xlate *x)
{
    for (unsigned i = 0; i < x->cold_exit_count; i++) {
        const struct cold_exit *cold = &x->cold_exit[i];

        x->spilled = cold->spilled;
        x->flags = cold->flags;
        emit_patch(cold->branch, x->e.p);
        emit_stub(x, cold->exit, true);
    }
}
