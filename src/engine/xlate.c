/* From a trace to host code, instruction by instruction; see translate.c for the whole. */
#include "engine/rewrite.h"
#include "engine/translate_int.h"

#define INDIRECT_ALIGN 8u
#define RETURN_REGS REG_BIT(X86_RCX) /* for the target */
#define BODY_SCRATCH 2u

/* An instruction begins: notes the boundary and brings home what it reads. */
static void insn_begin(struct xlate *x)
{
    mem_insn_begin(x);
    xlate_mark(x);
    xlate_reload(x, x->ti->insn.gpr_read);
}

static void insn_end(struct xlate *x)
{
    x->spilled &= (uint16_t)~x->ti->insn.gpr_written;
    mem_insn_end(x);
}

static bool uses_flags(const struct insn *insn)
{
    return (insn->flags_read | insn->flags_written) != 0;
}

/* Right before an instruction that may read or write flags on the host. */
static void flags_for_insn(struct xlate *x)
{
    if (!uses_flags(&x->ti->insn)) {
        return;
    }
    if (x->ti->live != 0) {
        xlate_flags_restore(x);
    }
    x->flags = FLAGS_HOST;
}

static void emit_rewritten(struct xlate *x, const struct host_operand *op)
{
    uint8_t *begin = x->e.p;
    unsigned len;

    mem_operand_begin(x, op);
    len = insn_rewrite(&x->ti->insn, (uint8_t)op->base, (uint8_t)op->index, op->scale, op->disp,
                       x->e.p);
    x->e.p += len;
    if (len == 0) {
        x->e.p = begin;
        x->failed = true;
    }
}

/* Without a memory operand: as it is, for in 64-bit mode it does on the host what it does here. */
static void emit_copy_plain(struct xlate *x)
{
    static const struct host_operand none = {X86_RAX, EMIT_NO_REG, 0, 1, false};
    const struct insn *insn = &x->ti->insn;

    if (insn->modrm_off != 0 && insn->bytes[insn->modrm_off] < 0xc0) {
        emit_rewritten(x, &none);
    } else {
        emit_some(&x->e, insn->bytes, sizeof(insn->bytes), insn->len);
    }
}

/* STD and CLD: the guest's DF lives in st.rflags, the host's is always 0. */
static void emit_direction(struct xlate *x)
{
    bool set = (x->ti->insn.opcode & 1) != 0;

    xlate_flags_release(x, x->ti->live);
    emit_gs_prefix(&x->e);
    emit_mem(&x->e, false, 0x80, set ? 1 : 4, EMIT_NO_REG, EMIT_NO_REG, 1,
             emit_gs_disp(&x->e, GS_ST(rflags) + 1));
    emit_u8(&x->e, set ? X86_FLAG_DF >> 8 : (uint8_t) ~(X86_FLAG_DF >> 8));
}

static bool is_direction(const struct insn *insn)
{
    return insn->map == 0 && insn->encoding == INSN_ENC_LEGACY && (insn->opcode & 0xfe) == 0xfc;
}

/* One byte lies in one line, and 16 across two are refused before any lock. */
static bool is_locked(const struct insn *insn)
{
    return (insn->flags & INSN_LOCK) != 0 && insn->mem_bytes > 1 && insn->mem_bytes <= 8;
}

static void emit_copy(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;

    if (is_direction(insn)) {
        emit_direction(x);
    } else if (insn->mem_bytes != 0) {
        struct access access = {.size = insn->mem_bytes,
                                .is_write = (insn->mem_flags & INSN_MEM_WRITE) != 0,
                                .low_only = insn_uses_high_byte(insn),
                                .allow_written = true,
                                .is_locked = is_locked(insn)};
        struct host_operand op;

        ea_of(x->ti, &access.ea);
        op = mem_access(x, &access);
        flags_for_insn(x);
        emit_rewritten(x, &op);
    } else {
        flags_for_insn(x);
        emit_copy_plain(x);
    }
}

static void emit_lea_insn(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;

    if (insn->base == INSN_REG_RIP) {
        struct ea ea;

        ea_of(x->ti, &ea);
        emit_gs_load(&x->e, insn->reg, ea.slot);
        emit_mem(&x->e, insn->opsize_bytes == 8, EMIT_LEA, insn->reg, insn->reg, EMIT_NO_REG, 1,
                 ea.disp);
    } else {
        emit_some(&x->e, insn->bytes, sizeof(insn->bytes), insn->len);
    }
}

static unsigned operand_regs(const struct host_operand *op)
{
    return (op->base == EMIT_NO_REG ? 0u : REG_BIT(op->base)) |
           (op->index == EMIT_NO_REG ? 0u : REG_BIT(op->index));
}

/* 64 bits between reg (or an opcode's extension) and the operand. */
static void emit_operand(struct xlate *x, unsigned opcode, unsigned reg,
                         const struct host_operand *op)
{
    mem_operand_begin(x, op);
    emit_mem(&x->e, true, opcode, reg, op->base, op->index, op->scale, op->disp);
}

static void emit_store_imm(struct xlate *x, const struct host_operand *op, int32_t imm)
{
    emit_operand(x, 0xc7, 0, op);
    emit_u32(&x->e, (uint32_t)imm);
}

/* RSP + disp, 8 bytes. */
static struct access stack_access(int32_t disp, bool is_write)
{
    return (struct access){.ea = ea_reg(X86_RSP, disp), .size = 8, .is_write = is_write};
}

/* The memory operand of 8 bytes into a scratch register. */
static unsigned emit_load_operand(struct xlate *x)
{
    struct access access = {.size = 8};
    struct host_operand op;
    unsigned value;

    ea_of(x->ti, &access.ea);
    op = mem_access(x, &access);
    value = xlate_scratch(x, operand_regs(&op), false, false);
    xlate_mark(x);
    emit_operand(x, EMIT_MOV_LOAD, value, &op);
    return value;
}

static void emit_push(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    struct access stack = stack_access(-8, true);
    unsigned value = insn->opcode == 0xff ? insn->rm : insn->reg;
    struct host_operand op;

    if (insn->mem_bytes != 0) {
        value = emit_load_operand(x);
        stack.forbidden = (uint16_t)REG_BIT(value);
    }
    op = mem_access(x, &stack);
    if (insn->imm_bytes != 0) {
        emit_store_imm(x, &op, (int32_t)insn->imm);
    } else {
        emit_operand(x, EMIT_MOV_STORE, value, &op);
    }
    emit_lea(&x->e, X86_RSP, X86_RSP, -8);
}

static void emit_pop(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    unsigned dst = insn->opcode == 0x8f ? insn->rm : insn->reg;
    struct access stack = stack_access(0, false);
    struct host_operand op;

    stack.allow_written = true;
    op = mem_access(x, &stack);
    emit_operand(x, EMIT_MOV_LOAD, dst, &op);
    if (dst != X86_RSP) {
        emit_lea(&x->e, X86_RSP, X86_RSP, 8);
    }
}

static void emit_leave(struct xlate *x)
{
    struct access frame = {.ea = ea_reg(X86_RBP, 0), .size = 8};
    struct host_operand op = mem_access(x, &frame);
    unsigned value = xlate_scratch(x, operand_regs(&op), false, false);

    emit_operand(x, EMIT_MOV_LOAD, value, &op);
    emit_lea(&x->e, X86_RSP, X86_RBP, 8);
    emit_mov(&x->e, true, X86_RBP, value);
}

/* Pushes the address of the next instruction. */
static void emit_push_return(struct xlate *x)
{
    const struct trace_insn *ti = x->ti;
    struct access stack = stack_access(-8, true);
    struct host_operand op = mem_access(x, &stack);
    unsigned value = xlate_scratch(x, operand_regs(&op), false, false);

    emit_gs_load(&x->e, value, GS_HOT(page));
    emit_lea(&x->e, value, value, (int32_t)ti->offset + ti->insn.len);
    emit_operand(x, EMIT_MOV_STORE, value, &op);
    emit_lea(&x->e, X86_RSP, X86_RSP, -8);
}

/* The target of an indirect branch into hot.target. */
static void emit_branch_target(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;

    emit_gs_store(&x->e, insn->mem_bytes == 0 ? insn->rm : emit_load_operand(x), GS_HOT(target));
}

static void emit_ret(struct xlate *x)
{
    struct access stack = stack_access(0, false);
    struct host_operand op;

    xlate_spill(x, RETURN_REGS);
    op = mem_access(x, &stack);
    xlate_flags_release(x, x->ti->live);
    emit_operand(x, EMIT_MOV_LOAD, X86_RCX, &op);
    emit_lea(&x->e, X86_RSP, X86_RSP, 8 + (int32_t)(x->ti->insn.imm & 0xffff));
    exit_indirect(x, true);
}

static int64_t direct_target(const struct trace_insn *ti)
{
    return (int64_t)ti->offset + ti->insn.len + (int64_t)ti->insn.imm;
}

/* A branch that counts or tests RCX: the instruction itself, over a jump to the exit. */
static void emit_rcx_branch(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    struct emit *e = &x->e;
    uint8_t *over;

    xlate_flags_restore(x);
    if (insn->addrsize_bytes == 4) {
        emit_u8(e, 0x67);
    }
    emit_u8(e, insn->opcode);
    emit_u8(e, 2);
    emit_u8(e, 0xeb);
    over = e->p;
    emit_u8(e, 0);
    exit_branch_at(x, emit_jmp(e), exit_direct(x, direct_target(x->ti)));
    *over = (uint8_t)(e->p - (over + 1));
}

static void emit_inline(struct xlate *x)
{
    switch (x->ti->insn.op) {
    case INSN_OP_LEA:
        emit_lea_insn(x);
        break;
    case INSN_OP_PUSH:
        emit_push(x);
        break;
    case INSN_OP_POP:
        emit_pop(x);
        break;
    case INSN_OP_LEAVE:
        emit_leave(x);
        break;
    case INSN_OP_NOP:
        break;
    case INSN_OP_COPY:
        emit_copy(x);
        break;
    default:
        xlate_system(x);
        break;
    }
}

static void emit_branch(struct xlate *x)
{
    if (x->ti->insn.op == INSN_OP_JCC) {
        xlate_flags_restore(x);
        exit_branch(x, x->ti->insn.cond, exit_direct(x, direct_target(x->ti)));
    } else {
        emit_rcx_branch(x);
    }
}

static void emit_end(struct xlate *x)
{
    switch (x->ti->insn.op) {
    case INSN_OP_RET:
        emit_ret(x);
        break;
    case INSN_OP_CALL_IND:
        emit_branch_target(x);
        emit_push_return(x);
        exit_indirect(x, false);
        break;
    case INSN_OP_JMP_IND:
        emit_branch_target(x);
        exit_indirect(x, false);
        break;
    case INSN_OP_CALL:
        emit_push_return(x);
        exit_end(x, exit_direct(x, direct_target(x->ti)));
        break;
    default:
        exit_end(x, exit_direct(x, direct_target(x->ti)));
        break;
    }
}

static void emit_exit_to_c(struct xlate *x)
{
    struct unit_exit *exit;

    if (x->ti->role == TRACE_HELPER) {
        exit = exit_new(x, EXIT_HELPER, x->ti->offset);
        exit->kind_and_helper |=
            (uint8_t)(translate_helper_for(&x->ti->insn, x->ti->mode) << EXIT_HELPER_SHIFT);
    } else {
        exit = exit_new(x, EXIT_INTERP, x->ti->offset);
    }
    exit_end(x, exit);
}

/* The instruction could not be encoded after all: to the interpreter with it. */
static void emit_give_up(struct xlate *x)
{
    exit_end(x, exit_new(x, EXIT_INTERP, x->ti->offset));
}

/* Emits one instruction; false when the unit ends with it. */
static bool emit_insn(struct xlate *x)
{
    insn_begin(x);
    switch (x->ti->role) {
    case TRACE_FOLLOW:
        return true;
    case TRACE_INLINE:
        emit_inline(x);
        if (x->failed) {
            emit_give_up(x);
            return false;
        }
        insn_end(x);
        return true;
    case TRACE_BRANCH:
        emit_branch(x);
        insn_end(x);
        return true;
    case TRACE_END:
        emit_end(x);
        return false;
    default:
        emit_exit_to_c(x);
        return false;
    }
}

static bool touches_memory(const struct trace *trace)
{
    for (unsigned i = 0; i < trace->count; i++) {
        const struct insn *insn = &trace->insns[i].insn;

        if (insn->mem_bytes != 0 || insn->op == INSN_OP_PUSH || insn->op == INSN_OP_POP) {
            return true;
        }
    }
    return false;
}

/* What the unit borrows from its start: what the trace never names, if there is such. */
static uint16_t choose_body_spilled(const struct translator *t, const struct trace *trace)
{
    unsigned used = REG_BIT(X86_RSP);
    unsigned chosen = 0;
    unsigned count = 0;

    if (!touches_memory(trace) || mem_is_direct(t, trace->insns[0].mode)) {
        return 0;
    }
    for (unsigned i = 0; i < trace->count; i++) {
        used |= trace->insns[i].insn.gpr_read | trace->insns[i].insn.gpr_written;
    }
    for (unsigned i = 0; count < BODY_SCRATCH && xlate_scratch_order(i) != EMIT_NO_REG; i++) {
        unsigned r = xlate_scratch_order(i);

        if ((used & REG_BIT(r)) == 0) {
            chosen |= REG_BIT(r);
            count++;
        }
    }
    return (uint16_t)chosen;
}

/* So that what follows after so many bytes is aligned. */
static void align_after(struct emit *e, unsigned bytes)
{
    while ((((uintptr_t)e->p + bytes) & (INDIRECT_ALIGN - 1)) != 0) {
        emit_u8(e, 0xcc);
    }
}

/*
 * Two ways in: with all registers in place (unit_entry()), and the indirect one, where those of
 * UNIT_STANDARD_BORROWED are in their slots. Behind both, the body.
 */
static void emit_entries(struct xlate *x)
{
    struct emit *e = &x->e;
    bool is_standard = x->unit->body_spilled == UNIT_STANDARD_BORROWED;

    align_after(e, is_standard ? UNIT_BORROW_BYTES : 0);
    if (is_standard) {
        xlate_spill(x, UNIT_STANDARD_BORROWED);
    }
    x->unit->indirect = (uint8_t)(code_offset(x->t, e->p) - x->unit->code);
    /* NOP of five bytes, which code_cache.c turns into a jump when the unit dies. */
    emit_bytes(e, "\x0f\x1f\x44\x00\x00", UNIT_INDIRECT_BYTES);
    if (!is_standard) {
        x->spilled = UNIT_STANDARD_BORROWED;
        xlate_reload(x, UNIT_STANDARD_BORROWED);
        xlate_spill(x, x->unit->body_spilled);
    }
    x->unit->body = code_offset(x->t, e->p);
}

static void emit_trace(struct xlate *x)
{
    const struct trace *trace = x->trace;

    for (unsigned i = 0; i < trace->count; i++) {
        x->ti = &trace->insns[i];
        if (!emit_insn(x)) {
            return;
        }
    }

    struct unit_exit *exit = exit_direct(x, trace->end_offset);

    exit->mode = trace->mode & (uint8_t)~UNIT_MODE_SINGLE;
    exit_end(x, exit);
}

/* A unit of so many bytes behind its struct, and the work space to emit it. */
static struct xlate *begin_unit(struct translator *t, uintptr_t guest, unsigned mode, size_t more)
{
    struct xlate *x = t->xlate;
    struct unit *unit = code_cache_alloc(t, sizeof(*unit) + more);

    memset(x, 0, offsetof(struct xlate, marks));
    for (unsigned i = 0; i < WINDOW_COUNT; i++) {
        x->windows[i].base = EMIT_NO_REG;
    }
    x->lookup_count = 0;
    x->cold_access_count = 0;
    x->cold_exit_count = 0;
    x->t = t;
    x->e = (struct emit){t->rw + t->used_bytes, t->vcpu_at};
    x->unit = unit;
    x->flags = FLAGS_HOST;
    unit->guest = guest;
    unit->mode = (uint8_t)mode;
    unit->code = t->used_bytes;
    return x;
}

static struct unit *end_unit(struct xlate *x, unsigned trace_count)
{
    struct translator *t = x->t;
    struct unit *unit = x->unit;

    t->used_bytes = code_offset(t, x->e.p);
    unit->code_bytes = (uint16_t)(t->used_bytes - unit->code);
    unit->trace_count = trace_count & 0x7fu;
    unit->mark_bytes =
        (uint16_t)unit_marks_pack(unit, x->marks, x->mark_count, t->arena + t->arena_used);
    (void)code_cache_alloc_as_is(t, unit->mark_bytes);
    return unit;
}

/* Where others may enter the unit, behind its first instruction. */
static void add_entries(struct xlate *x)
{
    uintptr_t page = x->unit->guest & ~((uintptr_t)GMEM_PAGE_BYTES - 1);

    for (unsigned i = 1; i < x->mark_count; i++) {
        if (unit_mark_is_entry(x->unit, &x->marks[i])) {
            code_cache_add_inside(x->t, page + x->marks[i].offset);
        }
    }
}

struct unit *xlate_alias(struct translator *t, uintptr_t guest, unsigned mode)
{
    struct unit_insn mark;
    unsigned index;
    struct unit *of =
        code_cache_is_hot(t, guest) ? NULL : code_cache_find_inside(t, guest, mode, &mark, &index);
    struct xlate *x;
    unsigned code;
    unit_ref ref;

    if (of == NULL) {
        return NULL;
    }
    code = mark.code;
    x = begin_unit(t, guest, mode, sizeof(uint64_t));
    ref = unit_ref_of(t, of);
    memcpy(x->unit + 1, &ref, sizeof(ref));
    x->unit->first_line = (of->first_line & UNIT_LINE) | UNIT_ALIAS;
    x->unit->last_line = of->last_line & UNIT_LINE;
    x->unit->body_spilled = of->body_spilled;
    x->unit->flags_dead = mark.flags == FLAGS_DEAD;
    emit_entries(x);
    mark.code = (uint16_t)(x->unit->body - x->unit->code);
    x->marks[x->mark_count++] = mark;
    emit_jmp_to(&x->e, t->rw + of->code + code);
    x->unit->body = of->code + code;
    return end_unit(x, of->trace_count - index);
}

struct unit *xlate_unit(struct translator *t, const struct trace *trace, uintptr_t guest,
                        uintptr_t guest_next, unsigned mode)
{
    struct xlate *x = begin_unit(t, guest, mode, guest_next != 0 ? sizeof(guest_next) : 0u);
    struct unit *unit = x->unit;

    x->trace = trace;
    x->ti = &trace->insns[0];
    x->is_compact = (mode & UNIT_MODE_MMU) == MMU_USER && !code_cache_is_hot(t, guest);
    unit->first_line = (uint8_t)__builtin_ctzll(trace->lines);
    unit->last_line = (uint8_t)(63 - __builtin_clzll(trace->lines));
    if (guest_next != 0) {
        unit->last_line |= UNIT_CROSSES;
        memcpy(unit + 1, &guest_next, sizeof(guest_next));
    }
    unit->body_spilled = choose_body_spilled(t, trace);
    unit->flags_dead = trace->insns[0].live == 0;
    emit_entries(x);
    emit_trace(x);
    exit_emit_cold(x);
    mem_emit_cold(x);
    if (guest_next == 0) {
        add_entries(x);
    }
    return end_unit(x, trace->count);
}
