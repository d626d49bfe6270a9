/*
 * Stack, branches and the other user instructions that no copy can compute.
 */
#include "base/wire.h"
#include "engine/interp.h"

static int op_nop(struct engine_vcpu *v, const struct insn *in)
{
    (void)v;
    (void)in;
    return 0;
}

static int op_ud(struct engine_vcpu *v, const struct insn *in)
{
    (void)in;
    return engine_raise(v, X86_VEC_UD);
}

static int op_lea(struct engine_vcpu *v, const struct insn *in)
{
    interp_set_reg(v, in, in->reg, in->opsize_bytes, interp_ea(v, in));
    return 0;
}

/* The bit of a 2-, 4- or 8-byte word changed as opcode says; *ret_old is the bit before. */
static uint64_t bit_apply(uint8_t opcode, uint64_t word, unsigned bit)
{
    switch (opcode) {
    case 0xab:
        return word | (1ull << bit);
    case 0xb3:
        return word & ~(1ull << bit);
    default:
        return word ^ (1ull << bit);
    }
}

static bool bit_locked(uint8_t opcode, uint8_t *host, unsigned bytes, unsigned bit)
{
    uint8_t *byte = host + bit / 8;
    uint8_t mask = (uint8_t)(1u << (bit % 8));
    uint8_t old;

    /* The operand may be touched as one byte: only that bit is looked at or changed. */
    (void)bytes;
    switch (opcode) {
    case 0xab:
        old = __atomic_fetch_or(byte, mask, __ATOMIC_SEQ_CST);
        break;
    case 0xb3:
        old = __atomic_fetch_and(byte, (uint8_t)~mask, __ATOMIC_SEQ_CST);
        break;
    default:
        old = __atomic_fetch_xor(byte, mask, __ATOMIC_SEQ_CST);
        break;
    }
    return (old & mask) != 0;
}

static void set_carry(struct engine_vcpu *v, bool carry)
{
    v->st.rflags = (v->st.rflags & ~(uint64_t)X86_FLAG_CF) | (carry ? X86_FLAG_CF : 0);
}

static int op_bit_mem(struct engine_vcpu *v, const struct insn *in)
{
    unsigned bytes = in->opsize_bytes;
    int64_t offset = (int64_t)interp_sign_extend(v->st.gpr[in->reg & 15], bytes);
    unsigned bit = (unsigned)offset & (bytes * 8 - 1);
    uint64_t ea = interp_ea(v, in) + (uint64_t)((offset >> 3) & ~(int64_t)(bytes - 1));
    bool is_write = in->opcode != 0xa3;
    struct mmu_page page;
    uint64_t va = 0;
    uint64_t word = 0;
    int r;

    ea &= interp_mask(in->addrsize_bytes);
    r = interp_linear(v, in->seg, ea, bytes, is_write ? MMU_WRITE : MMU_READ, &va);
    if (r == 0 && is_write) {
        uint8_t *host = NULL;

        r = mmu_rmw_begin(v, va, bytes, mmu_current_mode(v), &host);
        if (r == 0 && host != NULL) {
            set_carry(v, bit_locked(in->opcode, host, bytes, bit));
            mmu_rmw_end(v, host, bytes);
            return 0;
        }
        if (r == 0) {
            /* A page that is read-only faults before one behind it that is not there. */
            r = mmu_fill(v, va, MMU_WRITE, mmu_current_mode(v), &page);
        }
    }
    if (r == 0) {
        r = mmu_read(v, va, &word, bytes, mmu_current_mode(v));
    }
    if (r == 0 && is_write) {
        uint64_t changed = bit_apply(in->opcode, word, bit);

        r = mmu_write(v, va, &changed, bytes, mmu_current_mode(v));
    }
    if (r == 0) {
        set_carry(v, ((word >> bit) & 1) != 0);
    }
    return r;
}

static int op_push(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t value = in->imm;
    int r = 0;

    if (in->modrm_off != 0) {
        r = interp_load_rm(v, in, in->opsize_bytes, &value);
    } else if (in->imm_bytes == 0) {
        value = v->st.gpr[in->reg & 15];
    }
    interp_stack_init(v, &stack);
    if (r == 0) {
        r = interp_push(v, &stack, in->opsize_bytes, value);
    }
    if (r == 0) {
        interp_stack_commit(v, &stack);
    }
    return r;
}

static int op_pop(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t old_sp = v->st.gpr[X86_RSP];
    uint64_t value = 0;
    int r;

    interp_stack_init(v, &stack);
    r = interp_pop(v, &stack, in->opsize_bytes, &value);
    if (r != 0) {
        return r;
    }
    /* The address of a memory operand uses the stack pointer after the pop (SDM 2B POP). */
    interp_stack_commit(v, &stack);
    if (in->modrm_off == 0) {
        interp_set_reg(v, in, in->reg, in->opsize_bytes, value);
        return 0;
    }
    r = interp_store_rm(v, in, in->opsize_bytes, value);
    if (r != 0) {
        v->st.gpr[X86_RSP] = old_sp;
    }
    return r;
}

static int op_pusha(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    int r = 0;

    interp_stack_init(v, &stack);
    for (unsigned reg = 0; reg < 8 && r == 0; reg++) {
        r = interp_push(v, &stack, in->opsize_bytes, v->st.gpr[reg]);
    }
    if (r == 0) {
        interp_stack_commit(v, &stack);
    }
    return r;
}

static int op_popa(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t value = 0;
    int r = 0;

    interp_stack_init(v, &stack);
    /* One by one, as CPUs do: a fault leaves those before it changed, and the stack pointer not. */
    for (unsigned reg = 8; reg-- > 0 && r == 0;) {
        r = interp_pop(v, &stack, in->opsize_bytes, &value);
        if (r == 0 && reg != X86_RSP) {
            interp_set_reg(v, in, reg, in->opsize_bytes, value);
        }
    }
    if (r == 0) {
        interp_stack_commit(v, &stack);
    }
    return r;
}

static int op_pushf(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t value = v->st.rflags & ~(uint64_t)(X86_FLAG_RF | X86_FLAG_VM);
    int r;

    if (interp_is_vm86(v) && interp_iopl(v) < 3) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    interp_stack_init(v, &stack);
    r = interp_push(v, &stack, in->opsize_bytes, value);
    if (r == 0) {
        interp_stack_commit(v, &stack);
    }
    return r;
}

/* The bits that POPF of this size may change at the current level (SDM 2B POPF). */
static uint64_t popf_mask(const struct engine_vcpu *v, unsigned bytes)
{
    unsigned cpl = interp_is_protected(v) ? vcpu_state_cpl(&v->st) : 0;
    uint64_t mask = X86_FLAGS_ARITH | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT;

    if (bytes > 2) {
        mask |= X86_FLAG_AC | X86_FLAG_ID;
        mask |= cpl == 0 ? X86_FLAG_VIF | X86_FLAG_VIP : 0;
    }
    if (cpl == 0) {
        mask |= X86_FLAG_IOPL;
    }
    if (cpl <= interp_iopl(v)) {
        mask |= X86_FLAG_IF;
    }
    return mask;
}

static int op_popf(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t value = 0;
    uint64_t mask = popf_mask(v, in->opsize_bytes);
    int r;

    if (interp_is_vm86(v) && interp_iopl(v) < 3) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    interp_stack_init(v, &stack);
    r = interp_pop(v, &stack, in->opsize_bytes, &value);
    if (r != 0) {
        return r;
    }
    interp_stack_commit(v, &stack);
    value &= ~(uint64_t)(X86_FLAG_VIF | X86_FLAG_VIP);
    v->st.rflags = (v->st.rflags & ~(mask | X86_FLAG_RF)) | (value & mask);
    return 0;
}

static int op_enter(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    unsigned bytes = in->opsize_bytes;
    unsigned level = in->bytes[in->imm_off + 2] & 31;
    uint64_t frame;
    uint64_t bp = v->st.gpr[X86_RBP];
    struct mmu_page page;
    uint64_t va = 0;
    int r;

    interp_stack_init(v, &stack);
    r = interp_push(v, &stack, bytes, bp);
    frame = stack.sp;
    for (unsigned i = 1; i < level && r == 0; i++) {
        uint64_t value = 0;

        bp -= bytes;
        r = interp_load(v, X86_SS, bp & stack.mask, bytes, &value);
        if (r == 0) {
            r = interp_push(v, &stack, bytes, value);
        }
    }
    if (r == 0 && level > 0) {
        r = interp_push(v, &stack, bytes, frame);
    }
    if (r != 0) {
        return r;
    }
    stack.sp =
        (stack.sp & ~stack.mask) | ((stack.sp - load_le16(&in->bytes[in->imm_off])) & stack.mask);
    /* The new top must be writable (SDM 2A ENTER). */
    r = interp_linear(v, X86_SS, stack.sp & stack.mask, bytes, MMU_WRITE, &va);
    if (r == 0) {
        r = mmu_fill(v, va, MMU_WRITE, stack.mode, &page);
    }
    if (r != 0) {
        return r;
    }
    interp_stack_commit(v, &stack);
    interp_set_reg(v, in, X86_RBP, bytes, frame);
    return 0;
}

static int op_leave(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t value = 0;
    int r;

    interp_stack_init(v, &stack);
    stack.sp = (stack.sp & ~stack.mask) | (v->st.gpr[X86_RBP] & stack.mask);
    r = interp_pop(v, &stack, in->opsize_bytes, &value);
    if (r == 0) {
        interp_stack_commit(v, &stack);
        interp_set_reg(v, in, X86_RBP, in->opsize_bytes, value);
    }
    return r;
}

/* The sixteen conditions of SDM 1 appendix B. */
bool interp_condition(uint64_t f, unsigned cond)
{
    bool sf = (f & X86_FLAG_SF) != 0;
    bool of = (f & X86_FLAG_OF) != 0;
    bool result;

    switch (cond >> 1) {
    case 0:
        result = of;
        break;
    case 1:
        result = (f & X86_FLAG_CF) != 0;
        break;
    case 2:
        result = (f & X86_FLAG_ZF) != 0;
        break;
    case 3:
        result = (f & (X86_FLAG_CF | X86_FLAG_ZF)) != 0;
        break;
    case 4:
        result = sf;
        break;
    case 5:
        result = (f & X86_FLAG_PF) != 0;
        break;
    case 6:
        result = sf != of;
        break;
    default:
        result = sf != of || (f & X86_FLAG_ZF) != 0;
        break;
    }
    return result != ((cond & 1) != 0);
}

static int branch_relative(struct engine_vcpu *v, const struct insn *in)
{
    return interp_branch(v, v->next_rip + in->imm, in->opsize_bytes);
}

static int op_jcc(struct engine_vcpu *v, const struct insn *in)
{
    return interp_condition(v->st.rflags, in->cond) ? branch_relative(v, in) : 0;
}

static int op_jcxz(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t count = v->st.gpr[X86_RCX] & interp_mask(in->addrsize_bytes);

    return count == 0 ? branch_relative(v, in) : 0;
}

static int op_loop(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t count = (v->st.gpr[X86_RCX] - 1) & interp_mask(in->addrsize_bytes);
    bool zf = (v->st.rflags & X86_FLAG_ZF) != 0;
    bool taken = count != 0;
    int r;

    if (in->opcode == 0xe0) {
        taken = taken && !zf;
    } else if (in->opcode == 0xe1) {
        taken = taken && zf;
    }
    r = taken ? branch_relative(v, in) : 0;
    if (r == 0) {
        interp_set_reg(v, in, X86_RCX, in->addrsize_bytes, count);
    }
    return r;
}

static int op_jmp_ind(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t target = 0;
    int r = interp_load_rm(v, in, in->opsize_bytes, &target);

    return r != 0 ? r : interp_branch(v, target, in->opsize_bytes);
}

static int call(struct engine_vcpu *v, uint64_t target, unsigned bytes)
{
    struct interp_stack stack;
    uint64_t return_rip = v->next_rip;
    int r;

    interp_stack_init(v, &stack);
    /* The return address is written before the target is looked at. */
    r = interp_push(v, &stack, bytes, return_rip);
    if (r == 0) {
        r = interp_branch(v, target, bytes);
    }
    if (r == 0) {
        interp_stack_commit(v, &stack);
    }
    return r;
}

static int op_call(struct engine_vcpu *v, const struct insn *in)
{
    return call(v, v->next_rip + in->imm, in->opsize_bytes);
}

static int op_call_ind(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t target = 0;
    int r = interp_load_rm(v, in, in->opsize_bytes, &target);

    return r != 0 ? r : call(v, target, in->opsize_bytes);
}

static int op_ret(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t target = 0;
    int r;

    interp_stack_init(v, &stack);
    r = interp_pop(v, &stack, in->opsize_bytes, &target);
    if (r == 0) {
        r = interp_branch(v, target, in->opsize_bytes);
    }
    if (r != 0) {
        return r;
    }
    if (in->imm_bytes != 0) {
        stack.sp = (stack.sp & ~stack.mask) |
                   ((stack.sp + load_le16(&in->bytes[in->imm_off])) & stack.mask);
    }
    interp_stack_commit(v, &stack);
    return 0;
}

static int op_xlat(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t ea = v->st.gpr[X86_RBX] + (v->st.gpr[X86_RAX] & 0xff);
    uint64_t value = 0;
    int r = interp_load(v, in->seg, ea & interp_mask(in->addrsize_bytes), 1, &value);

    if (r == 0) {
        v->st.gpr[X86_RAX] = (v->st.gpr[X86_RAX] & ~0xffull) | value;
    }
    return r;
}

static void set_al_flags(struct engine_vcpu *v, uint8_t al, uint64_t carries)
{
    uint64_t flags = carries;

    flags |= al == 0 ? X86_FLAG_ZF : 0;
    flags |= (al & 0x80) != 0 ? X86_FLAG_SF : 0;
    flags |= __builtin_parity(al) == 0 ? X86_FLAG_PF : 0;
    interp_set_arith(v, flags);
}

static void set_ax(struct engine_vcpu *v, uint8_t ah, uint8_t al)
{
    v->st.gpr[X86_RAX] = (v->st.gpr[X86_RAX] & ~0xffffull) | (uint64_t)(ah << 8) | al;
}

/* DAA and DAS (SDM 2A). */
static void decimal_adjust(struct engine_vcpu *v, bool subtract)
{
    uint8_t old = (uint8_t)v->st.gpr[X86_RAX];
    bool old_cf = (v->st.rflags & X86_FLAG_CF) != 0;
    bool low = (old & 0xf) > 9 || (v->st.rflags & X86_FLAG_AF) != 0;
    bool high = old > 0x99 || old_cf;
    unsigned al = old;
    uint64_t carries = (low ? X86_FLAG_AF : 0) | (high ? X86_FLAG_CF : 0);

    if (low) {
        bool borrow = subtract ? al < 6 : al + 6 > 0xff;

        al = subtract ? al - 6 : al + 6;
        carries |= old_cf || borrow ? X86_FLAG_CF : 0;
    }
    if (high) {
        al = subtract ? al - 0x60 : al + 0x60;
    }
    v->st.gpr[X86_RAX] = (v->st.gpr[X86_RAX] & ~0xffull) | (al & 0xff);
    set_al_flags(v, (uint8_t)al, carries);
}

/* AAA and AAS (SDM 2A). */
static void ascii_adjust(struct engine_vcpu *v, bool subtract)
{
    uint16_t ax = (uint16_t)v->st.gpr[X86_RAX];
    bool adjust = (ax & 0xf) > 9 || (v->st.rflags & X86_FLAG_AF) != 0;

    if (adjust) {
        ax = (uint16_t)(subtract ? ax - 0x106 : ax + 0x106);
    }
    set_ax(v, (uint8_t)(ax >> 8), ax & 0xf);
    set_al_flags(v, ax & 0xf, adjust ? X86_FLAG_AF | X86_FLAG_CF : 0);
}

static int op_bcd(struct engine_vcpu *v, const struct insn *in)
{
    uint8_t al = (uint8_t)v->st.gpr[X86_RAX];
    uint8_t ah = (uint8_t)(v->st.gpr[X86_RAX] >> 8);
    uint8_t base = in->bytes[in->imm_off];

    switch (in->opcode) {
    case 0x27:
        decimal_adjust(v, false);
        return 0;
    case 0x2f:
        decimal_adjust(v, true);
        return 0;
    case 0x37:
        ascii_adjust(v, false);
        return 0;
    case 0x3f:
        ascii_adjust(v, true);
        return 0;
    case 0xd4: /* AAM */
        if (base == 0) {
            return engine_raise(v, X86_VEC_DE);
        }
        set_ax(v, al / base, al % base);
        set_al_flags(v, al % base, 0);
        return 0;
    case 0xd5: /* AAD */
        al = (uint8_t)(al + ah * base);
        set_ax(v, 0, al);
        set_al_flags(v, al, 0);
        return 0;
    default: /* SALC */
        al = (v->st.rflags & X86_FLAG_CF) != 0 ? 0xff : 0;
        set_ax(v, ah, al);
        return 0;
    }
}

const interp_fn interp_basic_table[INSN_OP_COUNT] = {
    [INSN_OP_NOP] = op_nop,         [INSN_OP_LEA] = op_lea,     [INSN_OP_BIT_MEM] = op_bit_mem,
    [INSN_OP_PUSH] = op_push,       [INSN_OP_POP] = op_pop,     [INSN_OP_PUSHA] = op_pusha,
    [INSN_OP_POPA] = op_popa,       [INSN_OP_PUSHF] = op_pushf, [INSN_OP_POPF] = op_popf,
    [INSN_OP_ENTER] = op_enter,     [INSN_OP_LEAVE] = op_leave, [INSN_OP_JCC] = op_jcc,
    [INSN_OP_JCXZ] = op_jcxz,       [INSN_OP_LOOP] = op_loop,   [INSN_OP_JMP] = branch_relative,
    [INSN_OP_JMP_IND] = op_jmp_ind, [INSN_OP_CALL] = op_call,   [INSN_OP_CALL_IND] = op_call_ind,
    [INSN_OP_RET] = op_ret,         [INSN_OP_XLAT] = op_xlat,   [INSN_OP_BCD] = op_bcd,
    [INSN_OP_UD] = op_ud,
};
