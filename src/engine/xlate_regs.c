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

void xlate_reload(struct xlate *x, unsigned reg_mask)
{
    for (unsigned rest = x->spilled & reg_mask; rest != 0; rest &= rest - 1) {
        unsigned r = (unsigned)__builtin_ctz(rest);

        emit_gs_load(&x->e, r, GS_SPILL(r));
    }
    x->spilled &= (uint16_t)~reg_mask;
}

void xlate_spill(struct xlate *x, unsigned reg_mask)
{
    for (unsigned rest = reg_mask & ~(unsigned)x->spilled; rest != 0; rest &= rest - 1) {
        unsigned r = (unsigned)__builtin_ctz(rest);

        emit_gs_store(&x->e, r, GS_SPILL(r));
    }
    x->spilled |= (uint16_t)reg_mask;
}

/* What compilers use least comes first, so that units agree in what they borrow. */
static const uint8_t scratch_order[] = {X86_R11, X86_R10, X86_R9,  X86_R8,  X86_R15,
                                        X86_R14, X86_R13, X86_R12, X86_RDI, X86_RSI,
                                        X86_RBP, X86_RBX, X86_RDX, X86_RCX, X86_RAX};

/* Where each stands in that order, by number. */
static const uint8_t scratch_rank[X86_GPR_COUNT] = {14, 13, 12, 11, 15, 10, 9, 8,
                                                    3,  2,  1,  0,  7,  6,  5, 4};

unsigned xlate_scratch_order(unsigned index)
{
    return index < ARRAY_LEN(scratch_order) ? scratch_order[index] : EMIT_NO_REG;
}

unsigned xlate_scratch_rank(unsigned reg)
{
    return scratch_rank[reg];
}

static unsigned first_in_order(unsigned mask)
{
    unsigned best = (unsigned)__builtin_ctz(mask);

    for (unsigned rest = mask & (mask - 1); rest != 0; rest &= rest - 1) {
        unsigned r = (unsigned)__builtin_ctz(rest);

        if (scratch_rank[r] < scratch_rank[best]) {
            best = r;
        }
    }
    return best;
}

/* Of the registers in mask that whose next use is farthest, and among those the first in order. */
static unsigned farthest(const struct xlate *x, unsigned mask)
{
    const uint8_t *next_use = x->ti->next_use; /* an index; none: TRACE_NO_USE */
    unsigned best = (unsigned)__builtin_ctz(mask);

    for (unsigned rest = mask & (mask - 1); rest != 0; rest &= rest - 1) {
        unsigned r = (unsigned)__builtin_ctz(rest);

        if (next_use[r] > next_use[best] ||
            (next_use[r] == next_use[best] && scratch_rank[r] < scratch_rank[best])) {
            best = r;
        }
    }
    return best;
}

/* One that is borrowed already, else one that the instruction overwrites, else any. */
unsigned xlate_scratch(struct xlate *x, unsigned forbidden, bool low_only, bool allow_written)
{
    unsigned written = x->ti->insn.gpr_written;
    unsigned allowed = UINT16_MAX & ~(forbidden | REG_BIT(X86_RSP) | x->ti->insn.gpr_read |
                                      (allow_written ? 0u : written) | (low_only ? 0xff00u : 0u));
    unsigned free_regs = allowed & ~mem_window_regs(x);
    unsigned best;

    if (free_regs == 0) {
        free_regs = allowed;
        mem_forget(x);
    }
    if ((free_regs & x->spilled) != 0) {
        best = farthest(x, free_regs & x->spilled);
    } else if ((free_regs & written) != 0) {
        best = first_in_order(free_regs & written);
    } else {
        best = farthest(x, free_regs);
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
    bool same_insn = x->mark_count > 0 && last->offset == x->ti->offset;

    if (same_insn && last->spilled == x->spilled && last->flags == x->flags) {
        return;
    }
    *mark = (struct unit_insn){.code = (uint16_t)(code_offset(x->t, x->e.p) - x->unit->code),
                               .offset = x->ti->offset,
                               .spilled = x->spilled,
                               .flags = x->flags,
                               .is_boundary = !same_insn,
                               .is_clean = mem_window_regs(x) == 0 && x->ti->mode == x->unit->mode};
    x->mark_count++;
}
