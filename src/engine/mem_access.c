/*
 * How translated code reaches guest memory: the software TLB of mmu.h, looked
 * up inline. Everything else sees only struct ea and struct host_operand, so
 * that another way can take its place here.
 *
 * The tag check is not on the path of the address: the addend is loaded beside
 * it, and the access uses guest registers + addend. Which entry to look at is a
 * hint from the last time, so that the path is short; a thunk looks in the
 * right one when the tag is another's. Sites that go from page to page, where
 * hints are wrong too often, are translated anew and compute the index.
 */
#include "engine/translate_int.h"

/* The wider, the more often a range has a page end in it, which costs a detour. */
#define WINDOW_BYTES_MAX 96

static uint32_t seg_slot(unsigned seg)
{
    if (seg == X86_FS || seg == X86_GS) {
        return (uint32_t)(offsetof(struct engine_vcpu, st.seg) + seg * sizeof(struct x86_segment) +
                          offsetof(struct x86_segment, base));
    }
    return 0; /* other bases are 0 in 64-bit mode */
}

struct ea ea_reg(unsigned base, int32_t disp)
{
    return (struct ea){
        .kind = EA_REG, .base = (uint8_t)base, .index = EMIT_NO_REG, .scale = 1, .disp = disp};
}

void ea_of(const struct trace_insn *ti, struct ea *ret_ea)
{
    const struct insn *insn = &ti->insn;
    struct ea *ea = ret_ea;

    ea->kind = EA_COMPLEX;
    ea->base = insn->base; /* INSN_REG_NONE is EMIT_NO_REG */
    ea->index = insn->index;
    ea->scale = insn->scale == 0 ? 1 : insn->scale;
    ea->is_32bit = insn->addrsize_bytes == 4;
    ea->disp = (int32_t)insn->disp;
    ea->slot = seg_slot(insn->seg);
    ea->slot2 = 0;
    if (insn->base == INSN_REG_RIP) {
        ea->kind = EA_SLOT;
        ea->base = EMIT_NO_REG;
        ea->slot2 = ea->slot;
        ea->slot = GS_HOT(page);
        ea->disp += (int32_t)ti->offset + insn->len;
    } else if (insn->addrsize_bytes == 4 || insn->index != INSN_REG_NONE) {
        return;
    } else if (insn->base == INSN_REG_NONE) {
        ea->kind = ea->slot != 0 ? EA_SLOT : EA_COMPLEX;
    } else if (ea->slot == 0) {
        ea->kind = EA_REG;
    }
}

void ea_emit(struct xlate *x, const struct ea *ea, int32_t disp, unsigned dst)
{
    struct emit *e = &x->e;

    switch (ea->kind) {
    case EA_REG:
        if (disp == 0) {
            emit_mov(e, true, dst, ea->base);
        } else {
            emit_lea(e, dst, ea->base, disp);
        }
        break;
    case EA_SLOT:
        emit_gs_load(e, dst, ea->slot);
        if (ea->slot2 != 0) {
            emit_gs(e, EMIT_ADD_LOAD, dst, ea->slot2);
        }
        if (disp != 0) {
            emit_lea(e, dst, dst, disp);
        }
        break;
    default:
        emit_mem(e, !ea->is_32bit, EMIT_LEA, dst, ea->base, ea->index, ea->scale, disp);
        if (ea->slot != 0) {
            emit_gs(e, EMIT_ADD_LOAD, dst, ea->slot);
        }
        break;
    }
}

uint32_t mem_tlb_offset(unsigned mode, bool is_write)
{
    return (
        uint32_t)(offsetof(struct engine_vcpu, tlb) +
                  (mode & UNIT_MODE_MMU) * sizeof(struct mmu_tlb) +
                  (is_write ? offsetof(struct mmu_tlb, write) : offsetof(struct mmu_tlb, read)));
}

unsigned mem_window_regs(const struct xlate *x)
{
    unsigned regs = 0;

    if (!x->is_holding) {
        return 0;
    }
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        if (x->windows[i].is_valid) {
            regs |= REG_BIT(x->windows[i].reg);
        }
    }
    for (unsigned i = 0; i < HELD_SLOTS; i++) {
        regs |= x->held[i].slot != 0 ? REG_BIT(x->held[i].reg) : 0;
    }
    return regs;
}

void mem_forget(struct xlate *x)
{
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        x->windows[i].is_valid = false;
    }
    memset(x->held, 0, sizeof(x->held));
    x->is_holding = false;
}

void mem_insn_begin(struct xlate *x)
{
    unsigned used = x->ti->insn.gpr_read | x->ti->insn.gpr_written;
    bool is_holding = false;

    if (!x->is_holding) {
        return;
    }
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        struct window *w = &x->windows[i];

        w->is_valid = w->is_valid && x->ti <= w->last && (used & REG_BIT(w->reg)) == 0 &&
                      w->mode == x->ti->mode;
        is_holding = is_holding || w->is_valid;
    }
    for (unsigned i = 0; i < HELD_SLOTS; i++) {
        if ((used & REG_BIT(x->held[i].reg)) != 0) {
            x->held[i].slot = 0;
        }
        is_holding = is_holding || x->held[i].slot != 0;
    }
    x->is_holding = is_holding;
}

static bool changes_segment_base(const struct insn *insn)
{
    return insn->op == INSN_OP_SWAPGS || insn->op == INSN_OP_WRFSBASE;
}

/* An access that a window can hold. */
static bool is_simple(const struct ea *ea)
{
    return ea->kind != EA_COMPLEX;
}

static bool same_origin(const struct ea *a, const struct ea *b)
{
    return a->kind == b->kind &&
           (a->kind == EA_REG ? a->base == b->base : a->slot == b->slot && a->slot2 == b->slot2);
}

/* What an instruction does to memory relative to the same origin; false: nothing. */
static bool access_from(const struct trace_insn *ti, const struct ea *origin, int64_t *ret_disp,
                        unsigned *ret_size, bool *ret_write)
{
    const struct insn *insn = &ti->insn;
    bool is_stack = origin->kind == EA_REG && origin->base == X86_RSP;
    struct ea ea;

    *ret_size = 8;
    *ret_write = insn->op == INSN_OP_PUSH || insn->op == INSN_OP_CALL;
    if (insn->op == INSN_OP_COPY) {
        if (insn->mem_bytes == 0 || (origin->kind == EA_REG && insn->base != origin->base)) {
            return false;
        }
        ea_of(ti, &ea);
        *ret_disp = ea.disp;
        *ret_size = insn->mem_bytes;
        *ret_write = (insn->mem_flags & INSN_MEM_WRITE) != 0;
        return same_origin(&ea, origin);
    }
    if ((insn->op == INSN_OP_PUSH && insn->mem_bytes == 0) || insn->op == INSN_OP_CALL) {
        *ret_disp = -8;
        return is_stack;
    }
    *ret_disp = 0;
    return is_stack && (insn->op == INSN_OP_POP || insn->op == INSN_OP_RET);
}

/* ADD, SUB, INC or DEC of a 64-bit register by a constant. */
static bool constant_step(const struct insn *insn, unsigned reg, int64_t *ret_delta)
{
    unsigned ext = insn->bytes[insn->modrm_off] >> 3 & 7u;

    if (insn->map != 0 || insn->opsize_bytes != 8 || insn->mem_bytes != 0 || insn->rm != reg) {
        return false;
    }
    if (insn->opcode == 0xff) {
        *ret_delta = ext == 0 ? 1 : -1;
        return ext <= 1;
    }
    *ret_delta = ext == 0 ? (int64_t)insn->imm : -(int64_t)insn->imm;
    return (insn->opcode == 0x83 || insn->opcode == 0x81) && insn->imm_off != 0 &&
           (ext == 0 || ext == 5);
}

/* By how much the instruction moves the register; false: nobody knows. */
static bool base_delta(const struct insn *insn, unsigned reg, int64_t *ret_delta)
{
    *ret_delta = 0;
    if ((insn->gpr_written & REG_BIT(reg)) == 0) {
        return true;
    }
    switch (insn->op) {
    case INSN_OP_PUSH:
    case INSN_OP_PUSHF:
        *ret_delta = -8;
        return reg == X86_RSP && insn->opsize_bytes == 8;
    case INSN_OP_POP:
        *ret_delta = 8;
        return reg == X86_RSP && insn->opcode != 0x8f && insn->reg != X86_RSP &&
               insn->opsize_bytes == 8;
    case INSN_OP_LEA:
        *ret_delta = insn->disp;
        return insn->reg == reg && insn->base == reg && insn->index == INSN_REG_NONE &&
               insn->opsize_bytes == 8 && insn->addrsize_bytes == 8;
    case INSN_OP_COPY:
        return constant_step(insn, reg, ret_delta);
    default:
        return false;
    }
}

void mem_insn_end(struct xlate *x)
{
    int64_t delta;

    if (!x->is_holding) {
        return;
    }
    if (changes_segment_base(&x->ti->insn)) {
        memset(x->held, 0, sizeof(x->held));
    }
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        struct window *w = &x->windows[i];

        if (!w->is_valid) {
            continue;
        }
        if (w->base == EMIT_NO_REG) {
            w->is_valid = !changes_segment_base(&x->ti->insn);
        } else if (base_delta(&x->ti->insn, w->base, &delta)) {
            w->low -= delta;
            w->high -= delta;
        } else {
            w->is_valid = false;
        }
    }
}

/*
 * Looks ahead: the range around the access that later instructions of the trace
 * reach in the same way. Returns the last of them, or NULL.
 */
static const struct trace_insn *look_ahead(const struct xlate *x, const struct access *a,
                                           int64_t *ret_low, int64_t *ret_high)
{
    const struct trace_insn *end = x->trace->insns + x->trace->count;
    const struct trace_insn *last = NULL;
    int64_t moved = 0;

    *ret_low = a->ea.disp;
    *ret_high = (int64_t)a->ea.disp + a->size;
    for (const struct trace_insn *ti = x->ti; ti < end && ti->mode == x->ti->mode; ti++) {
        int64_t disp;
        unsigned size;
        bool is_write;
        int64_t delta;

        if (ti != x->ti && access_from(ti, &a->ea, &disp, &size, &is_write) &&
            (a->is_write || !is_write)) {
            int64_t low = disp + moved < *ret_low ? disp + moved : *ret_low;
            int64_t high = disp + moved + size > *ret_high ? disp + moved + size : *ret_high;

            if (high - low <= WINDOW_BYTES_MAX) {
                *ret_low = low;
                *ret_high = high;
                last = ti;
            }
        }
        if (a->ea.kind == EA_SLOT) {
            if (changes_segment_base(&ti->insn)) {
                break;
            }
        } else {
            if (!base_delta(&ti->insn, a->ea.base, &delta)) {
                break;
            }
            moved += delta;
        }
        if (ti->role != TRACE_INLINE && ti->role != TRACE_BRANCH && ti->role != TRACE_FOLLOW) {
            break;
        }
    }
    return last;
}

/* The operand when a window holds the access. */
static bool from_window(const struct xlate *x, const struct access *a, struct host_operand *ret_op)
{
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        const struct window *w = &x->windows[i];
        bool same = a->ea.kind == EA_REG ? w->base == a->ea.base
                                         : w->base == EMIT_NO_REG && w->slot == a->ea.slot &&
                                               w->slot2 == a->ea.slot2;

        if (w->is_valid && is_simple(&a->ea) && same && w->mode == x->ti->mode &&
            (w->is_write || !a->is_write) && a->ea.disp >= w->low &&
            (int64_t)a->ea.disp + a->size <= w->high && (!a->low_only || w->reg < 8)) {
            *ret_op = a->ea.kind == EA_REG
                          ? (struct host_operand){a->ea.base, w->reg, a->ea.disp, 1, false}
                          : (struct host_operand){w->reg, EMIT_NO_REG, a->ea.disp, 1, false};
            return true;
        }
    }
    return false;
}

static void remember_window(struct xlate *x, const struct access *a, unsigned reg, int64_t low,
                            int64_t high, const struct trace_insn *last)
{
    struct window *w = &x->windows[0];

    x->is_holding = true;
    /* In place of one that is empty, or relative to the same. */
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        if (!x->windows[i].is_valid) {
            w = &x->windows[i];
        }
    }
    *w = (struct window){.is_valid = true,
                         .is_write = a->is_write,
                         .mode = x->ti->mode,
                         .reg = (uint8_t)reg,
                         .base = a->ea.kind == EA_REG ? a->ea.base : EMIT_NO_REG,
                         .slot = a->ea.slot,
                         .slot2 = a->ea.slot2,
                         .last = last,
                         .low = low,
                         .high = high};
}

/*
 * Instructions that check more before they touch memory: alignment, a pending
 * x87 exception, or one of the store itself.
 */
static bool is_ordered(const struct insn *insn)
{
    return (insn->flags & (INSN_X87 | INSN_MMX)) != 0 || insn->mem_bytes >= 16 ||
           ((insn->flags & INSN_AVX) != 0 && insn->mem_flags == INSN_MEM_WRITE);
}

bool mem_is_direct(const struct translator *t, unsigned mode)
{
    return t->is_mirrored && (mode & UNIT_MODE_MMU) == MMU_KERNEL;
}

/* Host address of the instruction in hand. */
static uintptr_t insn_guest(const struct xlate *x)
{
    return (x->unit->guest & ~((uintptr_t)GMEM_PAGE_BYTES - 1)) + x->ti->offset;
}

static bool is_direct(const struct xlate *x, const struct access *a)
{
    return mem_is_direct(x->t, x->ti->mode) && !a->checked &&
           !code_cache_is_checked(x->t, insn_guest(x));
}

void mem_operand_begin(struct xlate *x, const struct host_operand *op)
{
    if (op->is_in_mirror || x->marks[x->mark_count - 1].spilled != x->spilled) {
        xlate_mark(x);
    }
    if (op->is_in_mirror) {
        emit_u8(&x->e, EMIT_SEG_GS);
    }
}

/* The register that holds the slot, loaded if need be; flags stay as they are. */
static unsigned slot_reg(struct xlate *x, const struct access *a, uint32_t slot, unsigned forbidden)
{
    struct held_slot *held = &x->held[0];
    unsigned reg;

    for (unsigned i = 0; i < HELD_SLOTS; i++) {
        if (x->held[i].slot == slot && !a->alone && (!a->low_only || x->held[i].reg < 8)) {
            return x->held[i].reg;
        }
        held = x->held[i].slot == 0 ? &x->held[i] : held;
    }
    /* What is held outlives the instruction; saving flags takes RAX when it is borrowed. */
    if (!a->alone) {
        forbidden |= REG_BIT(X86_RAX);
    }
    reg = xlate_scratch(x, a->forbidden | forbidden, a->low_only, a->allow_written && a->alone);
    emit_gs_load(&x->e, reg, slot);
    if (!a->alone) {
        *held = (struct held_slot){slot, (uint8_t)reg};
        x->is_holding = true;
    }
    return reg;
}

/* The operand in the mirror: the guest's own, with the host's GS base in front. */
static struct host_operand direct_operand(struct xlate *x, const struct access *a)
{
    const struct ea *ea = &a->ea;
    struct host_operand op = {ea->base, ea->index, ea->disp, ea->scale, true};

    if (ea->kind == EA_SLOT) {
        op.base = (uint8_t)slot_reg(x, a, ea->slot, 0);
        op.scale = 1;
        if (ea->slot2 != 0) {
            op.index = (uint8_t)slot_reg(x, a, ea->slot2, REG_BIT(op.base));
        }
    } else if (ea->kind == EA_COMPLEX && (ea->is_32bit || ea->slot != 0)) {
        unsigned sum = xlate_scratch(x, a->forbidden, a->low_only, a->allow_written);

        emit_mem(&x->e, !ea->is_32bit, EMIT_LEA, sum, ea->base, ea->index, ea->scale, ea->disp);
        op = (struct host_operand){(uint8_t)sum, EMIT_NO_REG, 0, 1, true};
        if (ea->slot != 0) {
            op.index = (uint8_t)slot_reg(x, a, ea->slot, REG_BIT(sum));
        }
    }
    return op;
}

static unsigned access_flags(const struct xlate *x, const struct access *a, unsigned size)
{
    return (a->is_write ? ACCESS_WRITE : 0u) | (size != a->size ? ACCESS_RANGE : 0u) |
           (is_ordered(&x->ti->insn) ? ACCESS_ORDERED : 0u) | (a->is_locked ? ACCESS_LOCKED : 0u);
}

/* A third of the room of emit_check(), and several times as long; false: it cannot be. */
static bool emit_check_compact(struct xlate *x, const struct access *a, int32_t disp, unsigned size,
                               unsigned s0, unsigned s1)
{
    struct emit *e = &x->e;
    const uint8_t *thunk;
    uint8_t *on;

    if (!x->is_compact || a->is_locked || (x->ti->mode & UNIT_MODE_MMU) != MMU_USER) {
        return false;
    }
    thunk = thunk_compact(x->t, s0, s1, a->is_write, size != a->size, size, &size);
    if (thunk == NULL) {
        return false;
    }
    ea_emit(x, &a->ea, disp, s0);
    if (thunk_has_low_code(x->t)) {
        emit_mov_imm32(e, s1, 0);
    } else {
        emit_lea_rip(e, s1);
    }
    on = e->p;
    emit_jmp_to(e, thunk);
    emit_u8(e, size);
    emit_u8(e, access_flags(x, a, size) | s1 << COMPACT_REG_SHIFT);
    if (thunk_has_low_code(x->t)) {
        uint32_t low = (uint32_t)code_rx(x->t, code_offset(x->t, e->p));

        memcpy(on - sizeof(low), &low, sizeof(low));
    } else {
        emit_patch(on - sizeof(uint32_t), e->p);
    }
    return true;
}

/* Emits the check of size bytes from disp on; the addend is in s1 afterwards. */
static void emit_check(struct xlate *x, const struct access *a, int32_t disp, unsigned size,
                       unsigned s0, unsigned s1)
{
    struct emit *e = &x->e;
    uint32_t tlb = mem_tlb_offset(x->ti->mode, a->is_write);
    struct cold_access *cold;
    struct unit_access *site;

    if (emit_check_compact(x, a, disp, size, s0, s1)) {
        return;
    }
    cold = &x->cold_access[x->cold_access_count++];
    cold->ea = a->ea;
    cold->ea.disp = disp;
    cold->scratch = (uint8_t)s0;
    cold->scratch2 = (uint8_t)s1;
    cold->site = x->t->access_count++;
    site = &x->t->accesses[cold->site];
    site->code = code_offset(x->t, e->p);
    site->size = (uint16_t)size;
    site->mode = x->ti->mode & UNIT_MODE_MMU;
    site->flags = (uint8_t)access_flags(x, a, size);

    ea_emit(x, &a->ea, disp, s0);
    if (code_cache_is_roaming(x->t, insn_guest(x))) {
        thunk_emit_tlb_index(e, s1, s0);
    } else {
        emit_gs32(e, EMIT_MOV_LOAD, s1, GS_HOT(hint) + cold->site % ACCESS_HINTS * 4);
    }
    emit_gs_indexed(e, EMIT_XOR_LOAD, s0, s1, tlb + (uint32_t)offsetof(struct mmu_tlb_entry, tag));
    emit_alu_imm(e, true, 7, s0, (int32_t)(GMEM_PAGE_BYTES - size));
    cold->branch = emit_jcc_once(e, EMIT_CC_A);
    cold->split = NULL;
    if (a->is_locked) {
        /* What is left is the offset in the page. */
        emit_alu_imm(e, false, 4, s0, (int32_t)(CACHE_LINE_BYTES - 1));
        emit_alu_imm(e, false, 7, s0, (int32_t)(CACHE_LINE_BYTES - size));
        cold->split = emit_jcc_once(e, EMIT_CC_A);
    }
    emit_gs_indexed(e, EMIT_MOV_LOAD, s1, s1,
                    tlb + (uint32_t)offsetof(struct mmu_tlb_entry, addend));
}

/* Windows of this base are cut by a page end; in the rest of the unit they would be as well. */
static bool is_narrow(struct xlate *x, const struct ea *ea)
{
    if (ea->kind == EA_REG && code_cache_is_narrow(x->t, insn_guest(x))) {
        x->narrow_bases |= (uint16_t)REG_BIT(ea->base);
    }
    return ea->kind == EA_REG && (x->narrow_bases & REG_BIT(ea->base)) != 0;
}

struct host_operand mem_access(struct xlate *x, const struct access *a)
{
    struct host_operand op;
    int64_t low = a->ea.disp;
    int64_t high = low + a->size;
    const struct trace_insn *last = NULL;
    bool shared;
    unsigned s0;
    unsigned s1;

    if (!a->is_locked && is_direct(x, a)) {
        return direct_operand(x, a);
    }
    if (!a->is_locked && from_window(x, a, &op)) {
        return op;
    }
    if (is_simple(&a->ea) && !a->alone && !a->is_locked && !a->low_only &&
        (x->ti->mode & UNIT_MODE_SINGLE) == 0 && !is_narrow(x, &a->ea)) {
        last = look_ahead(x, a, &low, &high);
    }
    shared = last != NULL && low == (int32_t)low;
    if (!shared) {
        low = a->ea.disp;
        high = low + a->size;
    }
    s0 = xlate_scratch(x, a->forbidden, a->low_only, a->allow_written);
    s1 = xlate_scratch(x, a->forbidden | REG_BIT(s0) | (shared ? REG_BIT(X86_RAX) : 0u),
                       a->low_only, a->allow_written && !shared);
    xlate_flags_release(x, x->ti->live);
    xlate_mark(x);
    emit_check(x, a, (int32_t)low, (unsigned)(high - low), s0, s1);
    if (a->ea.kind == EA_SLOT) {
        emit_gs(&x->e, EMIT_ADD_LOAD, s1, a->ea.slot);
        if (a->ea.slot2 != 0) {
            emit_gs(&x->e, EMIT_ADD_LOAD, s1, a->ea.slot2);
        }
    }
    if (shared) {
        remember_window(x, a, s1, low, high, last);
    }
    switch (a->ea.kind) {
    case EA_REG:
        return (struct host_operand){a->ea.base, (uint8_t)s1, a->ea.disp, 1, false};
    case EA_SLOT:
        return (struct host_operand){(uint8_t)s1, EMIT_NO_REG, a->ea.disp, 1, false};
    default:
        ea_emit(x, &a->ea, a->ea.disp, s0);
        return (struct host_operand){(uint8_t)s0, (uint8_t)s1, 0, 1, false};
    }
}

void mem_emit_cold(struct xlate *x)
{
    struct emit *e = &x->e;

    for (unsigned i = 0; i < x->cold_access_count; i++) {
        const struct cold_access *cold = &x->cold_access[i];

        emit_patch(cold->branch, e->p);
        if (cold->split != NULL) {
            emit_patch(cold->split, e->p);
        }
        ea_emit(x, &cold->ea, cold->ea.disp, cold->scratch);
        emit_mov_imm32(e, cold->scratch2, cold->site);
        emit_jmp_to(e, x->t->rw + (x->t->access_site[cold->scratch][cold->scratch2] - x->t->rx));
    }
}
