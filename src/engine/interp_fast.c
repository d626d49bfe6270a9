/*
 * The most frequent integer forms in C, without a trip through a copy on the
 * host: MOV, MOVZX, MOVSX, the ALU group, TEST, INC, DEC, shifts by an
 * immediate, CMOVcc, SETcc. Flags as SDM 1 appendix A has them; what it leaves
 * undefined is as the host CPU gives it, which the fuzzer holds it to.
 */
#include "engine/interp.h"

#define LEGACY(in) ((in)->encoding == INSN_ENC_LEGACY)

static uint64_t result_flags(uint64_t r, unsigned bytes)
{
    uint64_t flags = 0;

    flags |= (r & interp_mask(bytes)) == 0 ? X86_FLAG_ZF : 0;
    flags |= ((r >> (8 * bytes - 1)) & 1) != 0 ? X86_FLAG_SF : 0;
    flags |= __builtin_parity((unsigned)r & 0xff) == 0 ? X86_FLAG_PF : 0;
    return flags;
}

/* carries: bit i is the carry (or borrow) out of bit i. */
static uint64_t carry_flags(uint64_t carries, unsigned bytes)
{
    uint64_t top = carries >> (8 * bytes - 2);
    uint64_t flags = 0;

    flags |= (top & 2) != 0 ? X86_FLAG_CF : 0;
    flags |= ((top ^ (top >> 1)) & 1) != 0 ? X86_FLAG_OF : 0;
    flags |= (carries & 8) != 0 ? X86_FLAG_AF : 0;
    return flags;
}

/* The eight operations of opcodes 00-3F and groups 80-83, by modrm.reg. CMP is 7. */
static uint64_t alu(unsigned op, uint64_t a, uint64_t b, unsigned bytes, uint64_t *flags)
{
    uint64_t carry_in = (op == 2 || op == 3) ? *flags & X86_FLAG_CF : 0;
    uint64_t r;

    switch (op) {
    case 0:
    case 2:
        r = (a + b + carry_in) & interp_mask(bytes);
        *flags = carry_flags((a & b) | ((a | b) & ~r), bytes);
        break;
    case 3:
    case 5:
    case 7:
        r = (a - b - carry_in) & interp_mask(bytes);
        *flags = carry_flags((~a & b) | (~(a ^ b) & r), bytes);
        break;
    case 1:
        r = a | b;
        *flags = 0;
        break;
    case 4:
        r = a & b;
        *flags = 0;
        break;
    default:
        r = a ^ b;
        *flags = 0;
        break;
    }
    *flags |= result_flags(r, bytes);
    return r;
}

static void set_flags(struct engine_vcpu *v, uint64_t flags)
{
    interp_set_arith(v, flags);
}

static uint64_t get_reg(const struct engine_vcpu *v, const struct insn *in, unsigned reg)
{
    return interp_reg(v, in, reg, in->opsize_bytes);
}

static void set_reg(struct engine_vcpu *v, const struct insn *in, unsigned reg, uint64_t value)
{
    interp_set_reg(v, in, reg, in->opsize_bytes, value);
}

static int fast_mov_to_rm(struct engine_vcpu *v, const struct insn *in)
{
    return interp_store_rm(v, in, in->opsize_bytes, get_reg(v, in, in->reg));
}

static int fast_mov_to_reg(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value = 0;
    int r = interp_load_rm(v, in, in->opsize_bytes, &value);

    if (r == 0) {
        set_reg(v, in, in->reg, value);
    }
    return r;
}

static int fast_mov_imm_rm(struct engine_vcpu *v, const struct insn *in)
{
    return interp_store_rm(v, in, in->opsize_bytes, in->imm);
}

static int fast_mov_imm_reg(struct engine_vcpu *v, const struct insn *in)
{
    set_reg(v, in, in->reg, in->imm);
    return 0;
}

/* MOVZX, MOVSX, MOVSXD: the source is narrower than the destination. */
static int fast_movx(struct engine_vcpu *v, const struct insn *in)
{
    unsigned wide = in->opsize_bytes == 2 ? 2 : 4; /* of MOVSXD */
    unsigned bytes = in->map == 0 ? wide : (in->opcode & 1) != 0 ? 2 : 1;
    uint64_t value = 0;
    int r = interp_load_rm(v, in, bytes, &value);

    if (r != 0) {
        return r;
    }
    if (in->map == 0 || in->opcode >= 0xbe) {
        value = interp_sign_extend(value, bytes);
    }
    /* The destination is a whole register: byte registers are only in the source. */
    if (in->opsize_bytes == 4) {
        v->st.gpr[in->reg & 15] = value & 0xffffffffu;
    } else {
        uint64_t mask = interp_mask(in->opsize_bytes);

        v->st.gpr[in->reg & 15] = (v->st.gpr[in->reg & 15] & ~mask) | (value & mask);
    }
    return 0;
}

static int fast_alu_to_reg(struct engine_vcpu *v, const struct insn *in)
{
    unsigned op = (in->opcode >> 3) & 7;
    uint64_t flags = v->st.rflags;
    uint64_t source = 0;
    uint64_t result;
    int r = interp_load_rm(v, in, in->opsize_bytes, &source);

    if (r != 0) {
        return r;
    }
    result = alu(op, get_reg(v, in, in->reg), source, in->opsize_bytes, &flags);
    if (op != 7) {
        set_reg(v, in, in->reg, result);
    }
    set_flags(v, flags);
    return 0;
}

/* r/m op= b; a memory operand is only taken when nothing is written to it. */
static int alu_rm(struct engine_vcpu *v, const struct insn *in, unsigned op, uint64_t b)
{
    uint64_t flags = v->st.rflags;
    uint64_t a = 0;
    uint64_t result;
    int r = interp_load_rm(v, in, in->opsize_bytes, &a);

    if (r != 0) {
        return r;
    }
    result = alu(op, a, b & interp_mask(in->opsize_bytes), in->opsize_bytes, &flags);
    if (op != 7) {
        set_reg(v, in, in->rm, result);
    }
    set_flags(v, flags);
    return 0;
}

static int fast_alu_to_rm(struct engine_vcpu *v, const struct insn *in)
{
    return alu_rm(v, in, (in->opcode >> 3) & 7, get_reg(v, in, in->reg));
}

static int fast_alu_group(struct engine_vcpu *v, const struct insn *in)
{
    return alu_rm(v, in, (in->bytes[in->modrm_off] >> 3) & 7u, in->imm);
}

static int test_values(struct engine_vcpu *v, const struct insn *in, uint64_t b)
{
    uint64_t flags = 0;
    uint64_t a = 0;
    int r = interp_load_rm(v, in, in->opsize_bytes, &a);

    if (r == 0) {
        (void)alu(4, a, b & interp_mask(in->opsize_bytes), in->opsize_bytes, &flags);
        set_flags(v, flags);
    }
    return r;
}

static int fast_test_reg(struct engine_vcpu *v, const struct insn *in)
{
    return test_values(v, in, get_reg(v, in, in->reg));
}

static int fast_test_imm(struct engine_vcpu *v, const struct insn *in)
{
    return test_values(v, in, in->imm);
}

static int fast_inc_dec(struct engine_vcpu *v, const struct insn *in)
{
    bool is_dec = ((in->bytes[in->modrm_off] >> 3) & 1) != 0;
    uint64_t flags = 0;
    uint64_t result = alu(is_dec ? 5 : 0, get_reg(v, in, in->rm), 1, in->opsize_bytes, &flags);

    set_reg(v, in, in->rm, result);
    set_flags(v, (flags & ~(uint64_t)X86_FLAG_CF) | (v->st.rflags & X86_FLAG_CF));
    return 0;
}

static int fast_cmov(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value = 0;
    int r = interp_load_rm(v, in, in->opsize_bytes, &value);

    if (r != 0) {
        return r;
    }
    /* A 32-bit destination is extended also when nothing is moved. */
    set_reg(v, in, in->reg,
            interp_condition(v->st.rflags, in->cond) ? value : get_reg(v, in, in->reg));
    return 0;
}

static int fast_setcc(struct engine_vcpu *v, const struct insn *in)
{
    return interp_store_rm(v, in, 1, interp_condition(v->st.rflags, in->cond) ? 1 : 0);
}

static interp_fn choose_two_byte(const struct insn *in)
{
    if (in->opcode >= 0x40 && in->opcode <= 0x4f) {
        return fast_cmov;
    }
    if (in->opcode >= 0x90 && in->opcode <= 0x9f) {
        return fast_setcc;
    }
    if ((in->opcode & 0xf6) == 0xb6) {
        return fast_movx;
    }
    return NULL;
}

static interp_fn choose_alu(const struct insn *in)
{
    bool writes_memory = in->rm == INSN_REG_NONE && (in->opcode >> 3) != 7;

    switch (in->opcode & 7) {
    case 0:
    case 1:
        return writes_memory ? NULL : fast_alu_to_rm;
    case 2:
    case 3:
        return fast_alu_to_reg;
    default:
        return NULL; /* AL, rAX with an immediate */
    }
}

static interp_fn choose_group(const struct insn *in)
{
    unsigned reg = (in->bytes[in->modrm_off] >> 3) & 7u;
    bool is_memory = in->rm == INSN_REG_NONE;

    switch (in->opcode) {
    case 0x80:
    case 0x81:
    case 0x83:
        return is_memory && reg != 7 ? NULL : fast_alu_group;
    case 0xf6:
    case 0xf7:
        return reg == 0 ? fast_test_imm : NULL;
    case 0xfe:
    case 0xff:
        return reg < 2 && !is_memory ? fast_inc_dec : NULL;
    default:
        return NULL;
    }
}

interp_fn interp_fast_handler(const struct insn *in)
{
    if (in->op != INSN_OP_COPY || !LEGACY(in) || (in->flags & INSN_LOCK) != 0 ||
        (in->flags & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX)) != 0) {
        return NULL;
    }
    if (in->map == 1) {
        return choose_two_byte(in);
    }
    if (in->map != 0) {
        return NULL;
    }
    if (in->opcode < 0x40) {
        return choose_alu(in);
    }
    switch (in->opcode) {
    case 0x63:
        return in->mode == INSN_MODE_64 ? fast_movx : NULL;
    case 0x84:
    case 0x85:
        return fast_test_reg;
    case 0x88:
    case 0x89:
        return fast_mov_to_rm;
    case 0x8a:
    case 0x8b:
        return fast_mov_to_reg;
    case 0xc6:
    case 0xc7:
        return fast_mov_imm_rm;
    default:
        break;
    }
    if (in->opcode >= 0xb0 && in->opcode <= 0xbf) {
        return fast_mov_imm_reg;
    }
    return in->modrm_off != 0 ? choose_group(in) : NULL;
}
