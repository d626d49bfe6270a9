/*
 * Instructions of the system that a unit does itself: flags of the kernel,
 * segment bases, control registers, time stamps, and bit strings in memory.
 *
 * IF, DF and AC live in st.rflags, never in the host's flags.
 */
#include "engine/layout.h"
#include "engine/translate_int.h"

#define XSAVE_AREA_BYTES 832u /* x87, SSE and AVX, standard or compacted */

/* op byte gs:[offset], imm8 with group 1: or 1, and 4, cmp 7. */
static void emit_gs_byte(struct xlate *x, unsigned op, uint32_t offset, unsigned imm)
{
    emit_gs_prefix(&x->e);
    emit_mem(&x->e, false, 0x80, op, EMIT_NO_REG, EMIT_NO_REG, 1, emit_gs_disp(&x->e, offset));
    emit_u8(&x->e, imm);
}

static void set_flag(struct xlate *x, uint32_t flag)
{
    unsigned byte = (unsigned)__builtin_ctz(flag) / 8;

    emit_gs_byte(x, 1, GS_ST(rflags) + byte, flag >> (8 * byte));
}

static void clear_flag(struct xlate *x, uint32_t flag)
{
    unsigned byte = (unsigned)__builtin_ctz(flag) / 8;

    emit_gs_byte(x, 4, GS_ST(rflags) + byte, (uint8_t) ~(flag >> (8 * byte)));
}

/* With an interrupt waiting, the interpreter does it and looks. */
static void emit_sti(struct xlate *x)
{
    xlate_flags_release(x, x->ti->live);
    emit_gs_byte(x, 7, (uint32_t)offsetof(struct engine_vcpu, intr_check), 0);
    exit_branch(x, EMIT_CC_NE, exit_new(x, EXIT_INTERP, x->ti->offset));
    set_flag(x, X86_FLAG_IF);
}

static void emit_swapgs(struct xlate *x)
{
    unsigned s0 = xlate_scratch(x, 0, false, false);
    unsigned s1 = xlate_scratch(x, REG_BIT(s0), false, false);

    emit_gs_load(&x->e, s0, GS_ST(seg[X86_GS].base));
    emit_gs_load(&x->e, s1, GS_ST(kernel_gs_base));
    emit_gs_store(&x->e, s0, GS_ST(kernel_gs_base));
    emit_gs_store(&x->e, s1, GS_ST(seg[X86_GS].base));
}

static void emit_mov_from_cr(struct xlate *x)
{
    const uint32_t slots[] = {GS_ST(cr0), 0, GS_ST(cr2), GS_ST(cr3), GS_ST(cr4)};

    emit_gs_load(&x->e, x->ti->insn.rm, slots[x->ti->insn.reg]);
}

/* MOVZX of the selector: the whole register is written. */
static void emit_mov_from_seg(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    uint32_t slot = (uint32_t)(offsetof(struct engine_vcpu, st.seg) +
                               insn->reg_seg * sizeof(struct x86_segment) +
                               offsetof(struct x86_segment, selector));

    emit_gs_prefix(&x->e);
    if (insn->rm >= 8) {
        emit_u8(&x->e, 0x44);
    }
    emit_bytes(&x->e, "\x0f\xb7", 2);
    emit_u8(&x->e, (insn->rm & 7u) << 3 | 4u);
    emit_u8(&x->e, 0x25);
    emit_u32(&x->e, (uint32_t)emit_gs_disp(&x->e, slot));
}

static void emit_rdtsc(struct xlate *x)
{
    struct emit *e = &x->e;

    xlate_flags_release(x, x->ti->live);
    emit_bytes(e, x->ti->insn.op == INSN_OP_RDTSC ? "\x0f\x31" : "\x0f\x01\xf9",
               x->ti->insn.op == INSN_OP_RDTSC ? 2 : 3);
    emit_shift_imm(e, true, 4, X86_RDX, 32);
    emit_rr(e, true, EMIT_ADD_LOAD, X86_RAX, X86_RDX);
    emit_gs(e, EMIT_ADD_LOAD, X86_RAX, GS_ST(tsc_offset));
    emit_mov(e, true, X86_RDX, X86_RAX);
    emit_shift_imm(e, true, 5, X86_RDX, 32);
    emit_mov(e, false, X86_RAX, X86_RAX);
    if (x->ti->insn.op == INSN_OP_RDTSCP) {
        emit_gs_load(e, X86_RCX, GS_ST(tsc_aux));
        emit_mov(e, false, X86_RCX, X86_RCX);
    }
}

static void emit_rdfsbase(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;

    emit_gs_load(&x->e, insn->rm,
                 insn->reg_seg == X86_FS ? GS_ST(seg[X86_FS].base) : GS_ST(seg[X86_GS].base));
    if (insn->opsize_bytes == 4) {
        emit_mov(&x->e, false, insn->rm, insn->rm);
    }
}

/* The value is put together in RAX from the saved flags and st.rflags. */
static void emit_pushf(struct xlate *x)
{
    struct emit *e = &x->e;
    struct access stack = {
        .ea = ea_reg(X86_RSP, -8), .size = 8, .is_write = true, .forbidden = REG_BIT(X86_RAX)};
    struct host_operand op;
    unsigned low;

    xlate_spill(x, REG_BIT(X86_RAX));
    low = xlate_scratch(x, REG_BIT(X86_RAX), true, false);
    stack.forbidden |= (uint16_t)REG_BIT(low);
    xlate_flags_release(x, X86_FLAGS_ARITH);
    xlate_mark(x);
    op = mem_access(x, &stack);
    emit_gs_load(e, X86_RAX, GS_HOT(flags));
    emit_u8(e, 0x0f); /* movzx low, ah */
    emit_u8(e, 0xb6);
    emit_u8(e, 0xc4u | low << 3);
    emit_u8(e, 0x0f); /* movzx eax, al */
    emit_u8(e, 0xb6);
    emit_u8(e, 0xc0);
    emit_shift_imm(e, false, 4, X86_RAX, 11);
    emit_rr(e, false, 0x0b, X86_RAX, low);
    emit_gs(e, 0x0b, X86_RAX, GS_ST(rflags));
    mem_operand_begin(x, &op);
    emit_mem(e, true, EMIT_MOV_STORE, X86_RAX, op.base, op.index, 1, op.disp);
    emit_lea(e, X86_RSP, X86_RSP, -8);
}

/*
 * BT, BTS, BTR, BTC m, r: the signed bit offset in r moves the operand. The unit
 * moves the address itself and uses the offset within one operand.
 */
static void emit_bit_mem(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    struct emit *e = &x->e;
    bool wide = insn->opsize_bytes == 8;
    unsigned s0 = xlate_scratch(x, 0, false, false);
    unsigned bit = xlate_scratch(x, REG_BIT(s0), false, false);
    struct ea ea;
    struct access access = {.ea = {.kind = EA_SLOT,
                                   .base = EMIT_NO_REG,
                                   .index = EMIT_NO_REG,
                                   .scale = 1,
                                   .slot = GS_HOT(target)},
                            .size = insn->opsize_bytes,
                            .is_write = (insn->mem_flags & INSN_MEM_WRITE) != 0,
                            .alone = true,
                            .is_locked = (insn->flags & INSN_LOCK) != 0,
                            .forbidden = (uint16_t)REG_BIT(bit)};
    struct host_operand op;

    xlate_flags_release(x, x->ti->live);
    xlate_mark(x);
    ea_of(x->ti, &ea);
    ea_emit(x, &ea, ea.disp, s0);
    if (wide) {
        emit_mov(e, true, bit, insn->reg);
    } else {
        emit_rr(e, true, 0x63, bit, insn->reg); /* movsxd */
    }
    emit_shift_imm(e, true, 7, bit, wide ? 6 : 5);
    emit_mem(e, true, EMIT_LEA, s0, s0, bit, wide ? 8 : 4, 0);
    emit_gs_store(e, s0, GS_HOT(target));
    emit_mov(e, wide, bit, insn->reg);
    emit_alu_imm(e, wide, 4, bit, wide ? 63 : 31);
    op = mem_access(x, &access);
    if (x->ti->live != 0) {
        xlate_flags_restore(x);
    }
    x->flags = FLAGS_HOST;
    mem_operand_begin(x, &op);
    if ((insn->flags & INSN_LOCK) != 0) {
        emit_u8(e, 0xf0);
    }
    /* Two-byte opcode: REX goes before the 0F. */
    emit_u8(e, 0x40u | (wide ? 8u : 0u) | (bit >> 3) << 2 | (unsigned)(op.base >> 3));
    emit_u8(e, 0x0f);
    emit_u8(e, insn->opcode);
    if ((op.base & 7) == 4) {
        emit_u8(e, (bit & 7) << 3 | 4u);
        emit_u8(e, 0x24);
    } else {
        emit_u8(e, 0x40u | (bit & 7) << 3 | (op.base & 7u));
        emit_u8(e, 0);
    }
}

/*
 * The x87's pointers in the area at [area] are the copies' addresses on the
 * host: the guest sees 0, as the interpreter has it. RAX: the components saved.
 */
static void emit_hide_x87_pointers(struct xlate *x, unsigned area)
{
    struct emit *e = &x->e;
    uint8_t *branch;

    emit_bytes(e, "\xa8\x01\x74\x00", 4); /* test al, 1; jz behind */
    branch = e->p;
    for (int32_t offset = 8; offset <= 16; offset += 8) {
        emit_mem(e, true, 0xc7, 0, area, EMIT_NO_REG, 1, offset);
        emit_u32(e, 0);
    }
    branch[-1] = (uint8_t)(e->p - branch);
}

/* With only the components that the guest enabled. The form is of the original. */
static void emit_xsave(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    struct emit *e = &x->e;
    struct access access = {.size = XSAVE_AREA_BYTES,
                            .is_write = insn->op == INSN_OP_XSAVE,
                            .alone = true,
                            .checked = true,
                            .forbidden = REG_BIT(X86_RAX) | REG_BIT(X86_RDX)};
    struct host_operand op;
    unsigned area;

    ea_of(x->ti, &access.ea);
    op = mem_access(x, &access);
    area = xlate_scratch(x, access.forbidden, false, false);
    xlate_spill(x, access.forbidden);
    xlate_mark(x);
    emit_mem(e, true, EMIT_LEA, area, op.base, op.index, 1, op.disp);
    xlate_flags_release(x, x->ti->live);
    emit_gs(e, 0x23, X86_RAX, GS_ST(xcr0));
    emit_rr(e, false, 0x31, X86_RDX, X86_RDX);
    emit_u8(e, 0x40u | ((insn->rex & 8u) != 0 ? 8u : 0u) | area >> 3);
    emit_u8(e, 0x0f);
    emit_u8(e, insn->opcode);
    if ((area & 7) == 4) {
        emit_u8(e, 0x04u | (insn->bytes[insn->modrm_off] & 0x38u));
        emit_u8(e, 0x24);
    } else {
        emit_u8(e, 0x40u | (insn->bytes[insn->modrm_off] & 0x38u) | (area & 7));
        emit_u8(e, 0);
    }
    if (insn->op == INSN_OP_XSAVE) {
        emit_hide_x87_pointers(x, area);
    }
}

/* VMOVDQU between a vector register and gs:[offset], 32 bytes. */
static void emit_gs_ymm(struct xlate *x, bool is_store, unsigned reg, uint32_t offset)
{
    emit_gs_prefix(&x->e);
    emit_u8(&x->e, 0xc5);
    emit_u8(&x->e, reg < 8 ? 0xfe : 0x7e);
    emit_u8(&x->e, is_store ? 0x7f : 0x6f);
    emit_u8(&x->e, (reg & 7u) << 3 | 4u);
    emit_u8(&x->e, 0x25);
    emit_u32(&x->e, (uint32_t)emit_gs_disp(&x->e, offset));
}

/* The operands go to memory, and C collects the elements (light.c). */
static void emit_gather(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    unsigned index = (insn->bytes[insn->sib_off] >> 3 & 7u) | ((insn->rex & 2u) != 0 ? 8u : 0u);
    unsigned scale = insn->bytes[insn->sib_off] >> 6;
    unsigned s0 = xlate_scratch(x, 0, false, false);
    struct unit_access *site = &x->t->accesses[x->t->access_count];

    xlate_flags_release(x, x->ti->live);
    xlate_mark(x);
    emit_gs_ymm(x, true, insn->reg, GS_HOT(gather.result));
    emit_gs_ymm(x, true, insn->vex_vvvv, GS_HOT(gather.mask));
    emit_gs_ymm(x, true, index, GS_HOT(gather.index));
    emit_mem(&x->e, true, EMIT_LEA, s0, insn->base == INSN_REG_NONE ? EMIT_NO_REG : insn->base,
             EMIT_NO_REG, 1, (int32_t)insn->disp);
    emit_gs_store_imm32(&x->e, GS_HOT(site), x->t->access_count);
    emit_jmp_to(&x->e, x->t->rw + (x->t->access[s0] - x->t->rx));
    *site = (struct unit_access){
        .code = code_offset(x->t, x->e.p),
        .size = (uint16_t)(((insn->rex & 8u) != 0 ? GATHER_QUADWORDS : 0u) |
                           ((insn->opcode & 1u) != 0 ? GATHER_INDEX_QUADWORDS : 0u) |
                           scale << GATHER_SCALE_SHIFT | (insn->vex_l ? GATHER_YMM : 0u)),
        .mode = x->ti->mode & UNIT_MODE_MMU,
        .flags = ACCESS_GATHER};
    x->t->access_count++;
    emit_gs_ymm(x, false, insn->reg, GS_HOT(gather.result));
    emit_gs_ymm(x, false, insn->vex_vvvv, GS_HOT(gather.mask));
}

static void emit_add_imm64(struct emit *e, unsigned reg, unsigned scratch, uint64_t value)
{
    emit_u8(e, 0x48u | scratch >> 3); /* mov scratch, imm64 */
    emit_u8(e, 0xb8u | (scratch & 7u));
    emit_bytes(e, &value, sizeof(value));
    emit_mem(e, true, EMIT_LEA, reg, reg, scratch, 1, 0);
}

/*
 * REP MOVS and REP STOS on the mirror, upwards. No prefix reaches the destination, so RDI moves
 * there meanwhile; translate_signal.c knows, by unit_at_string().
 */
static void emit_rep_string(struct xlate *x)
{
    const struct insn *insn = &x->ti->insn;
    struct emit *e = &x->e;
    struct unit_exit *exit;
    unsigned scratch;

    xlate_flags_release(x, x->ti->live);
    emit_gs_prefix(e); /* test byte [rflags + 1], DF */
    emit_mem(e, false, 0xf6, 0, EMIT_NO_REG, EMIT_NO_REG, 1, emit_gs_disp(e, GS_ST(rflags) + 1));
    emit_u8(e, X86_FLAG_DF >> 8);
    exit = exit_new(x, EXIT_HELPER, x->ti->offset);
    exit->kind_and_helper |= (uint8_t)(HELPER_STRING << EXIT_HELPER_SHIFT);
    exit_branch(x, EMIT_CC_NE, exit);
    scratch = xlate_scratch(x, 0, false, false);
    xlate_mark(x);
    emit_add_imm64(e, X86_RDI, scratch, LAYOUT_FOLD);
    emit_u8(e, 0xf3);
    if (insn->op == INSN_OP_MOVS) {
        emit_u8(e, EMIT_SEG_GS);
    }
    if (insn->opsize_bytes == 2) {
        emit_u8(e, 0x66);
    } else if (insn->opsize_bytes == 8) {
        emit_u8(e, 0x48);
    }
    emit_u8(e, insn->opcode);
    emit_add_imm64(e, X86_RDI, scratch, 0 - LAYOUT_FOLD);
}

void xlate_system(struct xlate *x)
{
    switch (x->ti->insn.op) {
    case INSN_OP_MOVS:
    case INSN_OP_STOS:
        emit_rep_string(x);
        break;
    case INSN_OP_CLI:
        xlate_flags_release(x, x->ti->live);
        clear_flag(x, X86_FLAG_IF);
        break;
    case INSN_OP_STI:
        emit_sti(x);
        break;
    case INSN_OP_STAC:
        xlate_flags_release(x, x->ti->live);
        set_flag(x, X86_FLAG_AC);
        break;
    case INSN_OP_CLAC:
        xlate_flags_release(x, x->ti->live);
        clear_flag(x, X86_FLAG_AC);
        break;
    case INSN_OP_SWAPGS:
        emit_swapgs(x);
        break;
    case INSN_OP_MOV_FROM_CR:
        emit_mov_from_cr(x);
        break;
    case INSN_OP_MOV_FROM_SEG:
        emit_mov_from_seg(x);
        break;
    case INSN_OP_RDTSC:
    case INSN_OP_RDTSCP:
        emit_rdtsc(x);
        break;
    case INSN_OP_RDFSBASE:
        emit_rdfsbase(x);
        break;
    case INSN_OP_PUSHF:
        emit_pushf(x);
        break;
    case INSN_OP_BIT_MEM:
        emit_bit_mem(x);
        break;
    case INSN_OP_GATHER:
        emit_gather(x);
        break;
    case INSN_OP_XSAVE:
    case INSN_OP_XRSTOR:
        emit_xsave(x);
        break;
    default:
        x->failed = true;
        break;
    }
}
