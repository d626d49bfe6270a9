/*
 * How a unit ends: linked jumps within its page, lookups in the jump cache for
 * everything else, and exits to C.
 *
 * A linked exit has one branch to patch: the one in the unit's main path when
 * there only those registers are borrowed that the unit borrows from its start,
 * else one behind code that makes it so. It goes straight to a target that
 * borrows the same, to others by a bridge (code_cache.c). What units hardly ever
 * do is kept short: most exits are never taken.
 */
#include "engine/translate_int.h"

static uint8_t *rw_thunk(const struct xlate *x, const uint8_t *rx)
{
    return x->t->rw + (rx - x->t->rx);
}

static uint16_t unit_offset(const struct xlate *x, const uint8_t *rw)
{
    return (uint16_t)(code_offset(x->t, rw) - x->unit->code);
}

struct unit_exit *exit_new(struct xlate *x, enum unit_exit_kind kind, int64_t target_offset)
{
    /* Lookups leave no trace: their exit is only for the time of emission. */
    struct unit_exit *exit =
        kind == EXIT_LOOKUP ? &x->lookups[x->lookup_count++] : &x->t->exits[x->t->exit_count++];

    *exit = (struct unit_exit){.unit = unit_ref_of(x->t, x->unit),
                               .kind_and_helper = (uint8_t)kind,
                               .mode = x->ti->mode & (uint8_t)~UNIT_MODE_SINGLE,
                               .target_offset = (int32_t)target_offset};
    return exit;
}

struct unit_exit *exit_direct(struct xlate *x, int64_t target_offset)
{
    bool in_page =
        target_offset >= 0 && target_offset < (int64_t)GMEM_PAGE_BYTES && !unit_crosses(x->unit);

    return exit_new(x, in_page ? EXIT_CHAIN : EXIT_LOOKUP, target_offset);
}

/* The dispatch thunks of a unit: several copies, so that branches are predicted apart. */
static const struct thunk_dispatch *dispatch_of(const struct xlate *x, unsigned mode)
{
    unsigned copy = (x->unit->code >> 6) % THUNK_DISPATCH_COPIES;

    return &x->t->dispatch[copy][mode & UNIT_MODE_MMU];
}

/* Here the way on is worth its room. */
static bool is_inline(const struct xlate *x, unsigned mode)
{
    return !x->is_compact && (mode & UNIT_MODE_MMU) == MMU_USER;
}

/* RCX holds the target already when it is borrowed and in_rcx is set. */
void exit_indirect(struct xlate *x, bool in_rcx)
{
    const struct thunk_dispatch *dispatch = dispatch_of(x, x->ti->mode);
    unsigned in_slot = x->flags == FLAGS_HOST ? 0 : 1;
    bool is_rcx_alone;

    xlate_reload(x, ~(unsigned)(REG_BIT(X86_RCX) | UNIT_STANDARD_BORROWED));
    is_rcx_alone = (x->spilled & UNIT_STANDARD_BORROWED) == 0 && !is_inline(x, x->ti->mode);
    xlate_spill(x, REG_BIT(X86_RCX) | (is_rcx_alone ? 0u : UNIT_STANDARD_BORROWED));
    if (!in_rcx) {
        emit_gs_load(&x->e, X86_RCX, GS_HOT(target));
    }
    if (is_inline(x, x->ti->mode)) {
        thunk_emit_jump(x->t, &x->e, MMU_USER, in_slot);
        return;
    }
    emit_jmp_to(&x->e, rw_thunk(x, is_rcx_alone ? dispatch->target_in_rcx[in_slot]
                                                : dispatch->target[in_slot]));
}

/* The registers that are borrowed just now, when these are one or two; the first is the lower. */
static bool has_few_borrowed(const struct xlate *x, unsigned regs[2])
{
    if (x->spilled == 0 || __builtin_popcount(x->spilled) > 2) {
        return false;
    }
    regs[0] = (unsigned)__builtin_ctz(x->spilled);
    regs[1] = 31u - (unsigned)__builtin_clz(x->spilled);
    return true;
}

static void emit_lookup(struct xlate *x, const struct unit_exit *exit)
{
    const struct thunk_dispatch *dispatch = dispatch_of(x, exit->mode);
    unsigned copy = (unsigned)(dispatch - x->t->dispatch[0]) / ARRAY_LEN(x->t->dispatch[0]);
    unsigned in_slot = x->flags == FLAGS_HOST ? 0 : 1;
    unsigned regs[2];

    if (is_inline(x, exit->mode)) {
        xlate_reload(x, ~UNIT_STANDARD_BORROWED);
        xlate_spill(x, UNIT_STANDARD_BORROWED | REG_BIT(X86_RCX));
        thunk_emit_jump_by(x->t, &x->e, MMU_USER, in_slot, exit->target_offset);
        return;
    }
    if (x->unit->body_spilled == UNIT_STANDARD_BORROWED) {
        xlate_reload(x, ~UNIT_STANDARD_BORROWED);
        xlate_spill(x, UNIT_STANDARD_BORROWED);
        emit_mov_imm32(&x->e, X86_R10, (uint32_t)exit->target_offset);
        emit_mov_imm32(&x->e, X86_R11,
                       (uint32_t)exit->target_offset & ~(uint32_t)(GMEM_PAGE_BYTES - 1));
        emit_jmp_to(&x->e, rw_thunk(x, dispatch->offset[in_slot]));
        return;
    }
    xlate_reload(x, ~(unsigned)x->unit->body_spilled);
    if ((exit->mode & UNIT_MODE_MMU) == MMU_USER && has_few_borrowed(x, regs) &&
        xlate_scratch_rank(regs[0]) < THUNK_LOOKUP_REGS &&
        xlate_scratch_rank(regs[1]) < THUNK_LOOKUP_REGS) {
        emit_mov_imm32(&x->e, regs[0], (uint32_t)exit->target_offset);
        emit_jmp_to(&x->e, x->t->rw + x->t->lookup_borrowed[copy][xlate_scratch_rank(regs[0])]
                                                           [xlate_scratch_rank(regs[1])][in_slot]);
        return;
    }
    xlate_reload(x, UINT16_MAX);
    emit_gs_store_imm32(&x->e, GS_HOT(offset), (uint32_t)exit->target_offset);
    emit_jmp_to(&x->e, rw_thunk(x, dispatch->offset_in_slot[in_slot]));
}

/* To C, which finds out by the number of the exit what is wanted. */
static void emit_exit_number(struct xlate *x, const struct unit_exit *exit)
{
    unsigned in_slot = x->flags == FLAGS_HOST ? 0 : 1;
    uint32_t number = (uint32_t)(exit - x->t->exits);
    unsigned regs[2];

    xlate_reload(x, ~(unsigned)x->unit->body_spilled);
    if (has_few_borrowed(x, regs)) {
        emit_mov_imm32(&x->e, regs[0], number);
        emit_jmp_to(&x->e, rw_thunk(x, x->t->exit_borrowed[regs[0]][regs[1]][in_slot]));
        return;
    }
    xlate_reload(x, UINT16_MAX);
    emit_gs_store_imm32(&x->e, GS_HOT(exit), number);
    emit_jmp_to(&x->e, rw_thunk(x, in_slot == 0 ? x->t->exit_host : x->t->exit_slot));
}

/* The part of an exit that leaves; registers and flags as the caller set in x. */
static void emit_stub(struct xlate *x, struct unit_exit *exit)
{
    if (exit_kind(exit) == EXIT_LOOKUP) {
        emit_lookup(x, exit);
        return;
    }
    if (exit_kind(exit) == EXIT_CHAIN) {
        uint16_t body = x->unit->body_spilled;

        /* As this unit's own body begins, so do others and above all itself. */
        xlate_reload(x, ~(unsigned)body);
        xlate_spill(x, body);
        if (exit->branch == 0) {
            exit->branch = unit_offset(x, emit_jmp(&x->e));
        }
    }
    exit->stub = unit_offset(x, x->e.p);
    emit_exit_number(x, exit);
}

void exit_branch_at(struct xlate *x, uint8_t *rel32, struct unit_exit *exit)
{
    struct cold_exit *cold = &x->cold_exit[x->cold_exit_count++];

    if (exit_kind(exit) == EXIT_CHAIN && x->spilled == x->unit->body_spilled) {
        exit->branch = unit_offset(x, rel32);
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
    if (exit_kind(exit) == EXIT_CHAIN) {
        xlate_flags_restore(x);
    }
    emit_stub(x, exit);
}

void exit_emit_cold(struct xlate *x)
{
    for (unsigned i = 0; i < x->cold_exit_count; i++) {
        const struct cold_exit *cold = &x->cold_exit[i];

        x->spilled = cold->spilled;
        x->flags = cold->flags;
        emit_patch(cold->branch, x->e.p);
        emit_stub(x, cold->exit);
    }
}
