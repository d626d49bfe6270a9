/*
 * Which registers hold what while a unit is emitted.
 *
 * A unit borrows registers for addresses. It takes those whose next use is
 * farthest away, notes that their guest value is in its slot, and gives it back
 * when an instruction needs it: borrowed registers that a loop does not use
 * stay borrowed all along. Flags work alike: they stay in the host's flags
 * until something clobbers them while they are live, then they lie in a slot.
 */
#include "engine/translate_int.h"

#define REG_NAMES X86_GPR_COUNT

void xlate_reload(struct xlate *x, unsigned reg_mask)
{
    for (unsigned r = 0; r < REG_NAMES; r++) {
        if ((x->spilled & reg_mask & REG_BIT(r)) != 0) {
            emit_gs_load(&x->e, r, GS_SPILL(r));
        }
    }
    x->spilled &= (uint16_t)~reg_mask;
}

void xlate_spill(struct xlate *x, unsigned reg_mask)
{
    unsigned missing = reg_mask & ~(unsigned)x->spilled;

    for (unsigned r = 0; r < REG_NAMES; r++) {
        if ((missing & REG_BIT(r)) != 0) {
            emit_gs_store(&x->e, r, GS_SPILL(r));
        }
    }
    x->spilled |= (uint16_t)reg_mask;
}

/* What compilers use least comes first, so that units agree in what they borrow. */
static const uint8_t scratch_order[] = {X86_R11, X86_R10, X86_R9,  X86_R8,  X86_R15,
                                        X86_R14, X86_R13, X86_R12, X86_RDI, X86_RSI,
                                        X86_RBP, X86_RBX, X86_RDX, X86_RCX, X86_RAX};

unsigned xlate_scratch_order(unsigned index)
{
    return index < ARRAY_LEN(scratch_order) ? scratch_order[index] : EMIT_NO_REG;
}

/* Lower is cheaper. */
static unsigned scratch_cost(const struct xlate *x, unsigned reg, bool is_written)
{
    unsigned next = x->ti->next_use[reg]; /* an index; none: TRACE_NO_USE */

    if ((mem_window_regs(x) & REG_BIT(reg)) != 0) {
        return 0x400;
    }
    if ((x->spilled & REG_BIT(reg)) != 0) {
        return TRACE_NO_USE - next;
    }
    if (is_written) {
        return 0x100;
    }
    return 0x200 + TRACE_NO_USE - next;
}

unsigned xlate_scratch(struct xlate *x, unsigned forbidden, bool low_only, bool allow_written)
{
    unsigned best = X86_RAX;
    unsigned best_cost = UINT32_MAX;

    forbidden |= REG_BIT(X86_RSP) | x->ti->insn.gpr_read;
    if (!allow_written) {
        forbidden |= x->ti->insn.gpr_written;
    }
    if (low_only) {
        forbidden |= 0xff00;
    }
    for (unsigned i = 0; i < ARRAY_LEN(scratch_order); i++) {
        unsigned r = scratch_order[i];
        unsigned cost = scratch_cost(x, r, (x->ti->insn.gpr_written & REG_BIT(r)) != 0);

        if ((forbidden & REG_BIT(r)) == 0 && cost < best_cost) {
            best = r;
            best_cost = cost;
        }
    }
    if (best_cost == 0x400) {
        mem_forget(x);
    }
    xlate_spill(x, REG_BIT(best));
    return best;
}

void xlate_flags_release(struct xlate *x, unsigned live)
{
    if (x->flags != FLAGS_HOST) {
        return;
    }
    if (live == 0) {
        x->flags = FLAGS_DEAD;
        return;
    }

    bool rax_in_use = (x->spilled & REG_BIT(X86_RAX)) == 0;

    if (rax_in_use) {
        emit_gs_store(&x->e, X86_RAX, GS_HOT(scratch));
    }
    emit_bytes(&x->e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
    emit_gs_store(&x->e, X86_RAX, GS_HOT(flags));
    if (rax_in_use) {
        emit_gs_load(&x->e, X86_RAX, GS_HOT(scratch));
    }
    x->flags = FLAGS_SLOT;
}

void xlate_flags_restore(struct xlate *x)
{
    if (x->flags == FLAGS_SLOT) {
        /* RAX may hold an address just now even when it is borrowed. */
        emit_gs_store(&x->e, X86_RAX, GS_HOT(scratch));
        emit_gs_load(&x->e, X86_RAX, GS_HOT(flags));
        emit_bytes(&x->e, "\x04\x7f\x9e", 3); /* add al, 0x7f; sahf */
        emit_gs_load(&x->e, X86_RAX, GS_HOT(scratch));
    }
    x->flags = FLAGS_HOST;
}

void xlate_mark(struct xlate *x)
{
    struct unit_insn *mark = &x->marks[x->mark_count];
    const struct unit_insn *last = mark - 1;
    bool same_insn = x->mark_count > 0 && last->page_offset == x->ti->offset;

    if (same_insn && last->spilled == x->spilled && last->flags == x->flags) {
        return;
    }
    mark->code = (uint16_t)(code_offset(x->t, x->e.p) - x->unit->code);
    mark->page_offset = x->ti->offset;
    mark->spilled = x->spilled;
    mark->flags = x->flags;
    mark->is_boundary = !same_insn;
    x->mark_count++;
}
