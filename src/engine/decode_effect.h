/*
 * Which general registers and flags an instruction reads, writes and leaves undefined. A part of
 * decode.c, which alone includes it: the compiler makes one function of the whole decoder.
 */
#ifndef CORBEL_ENGINE_DECODE_EFFECT_H
#define CORBEL_ENGINE_DECODE_EFFECT_H

#include "engine/decode_int.h"

#define A (1u << X86_RAX)
#define C (1u << X86_RCX)
#define D (1u << X86_RDX)
#define B (1u << X86_RBX)
#define SP (1u << X86_RSP)
#define BP (1u << X86_RBP)
#define SI (1u << X86_RSI)
#define DI (1u << X86_RDI)

static const struct {
    uint16_t read;
    uint16_t written;
} implicit_gprs[IMPL_COUNT] = {
    [IMPL_A_R] = {A, 0},
    [IMPL_A_W] = {0, A},
    [IMPL_A_RW] = {A, A},
    [IMPL_MUL] = {A, A | D},
    [IMPL_DIV] = {A | D, A | D},
    [IMPL_A_R_D_W] = {A, D},
    [IMPL_SHIFT_CL] = {C, 0},
    [IMPL_STACK] = {SP, SP},
    [IMPL_LEAVE] = {SP | BP, SP | BP},
    [IMPL_PUSHA] = {0xff, SP},
    [IMPL_POPA] = {SP, 0xff},
    [IMPL_MOVS] = {SI | DI, SI | DI},
    [IMPL_STOS] = {A | DI, DI},
    [IMPL_LODS] = {SI, A | SI},
    [IMPL_SCAS] = {A | DI, DI},
    [IMPL_INS] = {D | DI, DI},
    [IMPL_OUTS] = {D | SI, SI},
    [IMPL_CX_R] = {C, 0},
    [IMPL_CX_RW] = {C, C},
    [IMPL_IN_DX] = {D, A},
    [IMPL_OUT_DX] = {A | D, 0},
    [IMPL_XLAT] = {A | B, A},
    [IMPL_AD_RW_BC_R] = {A | B | C | D, A | D},
    [IMPL_CPUID] = {A | C, A | B | C | D},
    [IMPL_AD_W] = {0, A | D},
    [IMPL_ADC_W] = {0, A | C | D},
    [IMPL_C_R_AD_W] = {C, A | D},
    [IMPL_CAD_R] = {A | C | D, 0},
    [IMPL_AD_R] = {A | D, 0},
    [IMPL_AD_R_C_W] = {A | D, C},
    [IMPL_C_W] = {0, C},
    [IMPL_D_R] = {D, 0},
    [IMPL_DI_R] = {DI, 0},
    [IMPL_SYSCALL] = {0, C | 1u << X86_R11},
    [IMPL_SYSRET] = {C | 1u << X86_R11, 0},
    [IMPL_SYSENTER] = {0, SP},
    [IMPL_SYSEXIT] = {C | D, SP},
};

#undef A
#undef C
#undef D
#undef B
#undef SP
#undef BP
#undef SI
#undef DI

#define CF X86_FLAG_CF
#define PF X86_FLAG_PF
#define AF X86_FLAG_AF
#define ZF X86_FLAG_ZF
#define SF X86_FLAG_SF
#define OF X86_FLAG_OF
#define ALL X86_FLAGS_ARITH

static const struct {
    uint16_t read;
    uint16_t written;
    uint16_t undefined;
} flag_sets[FL_COUNT] = {
    [FL_ALU] = {0, ALL, 0},
    [FL_ADC] = {CF, ALL, 0},
    [FL_LOGIC] = {0, ALL, AF},
    [FL_INC] = {0, ALL & ~CF, 0},
    [FL_MUL] = {0, ALL, SF | ZF | AF | PF},
    [FL_DIV] = {ALL, 0, 0},
    /* BT and DIV: the others are undefined says the SDM, but CPUs leave them as they were, and
     * code may look (PUSHF). */
    [FL_BT] = {ALL & ~(ZF | CF), CF, 0},
    [FL_BSF] = {0, ALL, ALL & ~ZF},
    [FL_LZCNT] = {0, ALL, OF | SF | PF | AF},
    [FL_ZF] = {0, ZF, 0},
    [FL_CF] = {0, CF, 0},
    [FL_CMC] = {CF, CF, 0},
    [FL_SAHF] = {0, ALL & ~OF, 0},
    [FL_LAHF] = {ALL & ~OF, 0, 0},
    [FL_ANDN] = {0, ALL, AF | PF},
    [FL_BEXTR] = {0, ALL, AF | SF | PF},
    [FL_ADOX] = {OF, OF, 0},
    [FL_DAA] = {CF | AF, ALL, OF},
    [FL_AAA] = {AF, ALL, OF | SF | ZF | PF},
    [FL_AAM] = {0, ALL, OF | AF | CF},
    [FL_READ_CF] = {CF, 0, 0},
    [FL_READ_ZF] = {ZF, 0, 0},
    [FL_READ_BE] = {CF | ZF, 0, 0},
    [FL_READ_PF] = {PF, 0, 0},
    [FL_READ_ALL] = {ALL, 0, 0},
    /* An unmasked invalid operand leaves the flags as they were. */
    [FL_FCOMI] = {ALL, 0, 0},
    [FL_POPF] = {0, ALL, 0},
    [FL_SHIFT] = {0, ALL, AF | OF},
    [FL_ROTATE] = {0, CF | OF, OF},
    [FL_ROTATE_CARRY] = {CF, CF | OF, OF},
    [FL_STRING] = {0, ALL, 0},
};

/* Flags that condition codes read, by cond >> 1 (SDM 1 B.1). */
static const uint16_t cond_flags[8] = {OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF};

/* The GPR that a byte operand lies in: without REX, 4-7 are AH CH DH BH. */
static inline unsigned gpr_of(const struct decoder *d, uint8_t reg, bool is_byte)
{
    return is_byte && d->rex == 0 && reg >= 4 ? reg - 4u : reg;
}

/* Without branches, which nobody could predict. access: ACC_R and ACC_W of that register. */
static inline void add_gpr(struct insn *insn, unsigned reg, unsigned access, bool is_partial)
{
    const unsigned is_read = (access & ACC_R) | ((access >> 1) & (is_partial ? 1u : 0u));

    insn->gpr_read |= (uint16_t)(is_read << reg);
    insn->gpr_written |= (uint16_t)(access >> 1 << reg);
}

/* That of an address; INSN_REG_NONE and INSN_REG_RIP are none. */
static inline uint16_t address_gpr(uint8_t reg)
{
    return (uint16_t)((reg < X86_GPR_COUNT ? 1u : 0u) << (reg & 15));
}

static inline void set_implicit_gprs(const struct decoder *d, struct insn *insn, bool is_partial)
{
    const uint8_t implicit = d->desc.implicit;

    insn->gpr_read = implicit_gprs[implicit].read;
    insn->gpr_written = implicit_gprs[implicit].written;
    if (insn->opsize_bytes == 1 && (implicit == IMPL_MUL || implicit == IMPL_DIV)) {
        insn->gpr_read = 1u << X86_RAX;
        insn->gpr_written &= (uint16_t) ~(1u << X86_RDX);
    }
    if (is_partial) {
        insn->gpr_read |= insn->gpr_written;
    }
}

static inline void decode_set_gprs(const struct decoder *d, struct insn *insn)
{
    const uint32_t attr = d->desc.attr;
    const unsigned access = d->desc.access;
    const bool is_partial = insn->opsize_bytes == 1 || insn->opsize_bytes == 2;
    const bool is_byte = (attr & ATTR_BYTE) != 0;
    const bool is_byte_rm = (attr & (ATTR_BYTE | ATTR_BYTE_RM)) != 0;

    set_implicit_gprs(d, insn, is_partial);
    add_gpr(insn, gpr_of(d, insn->reg, is_byte), access >> 4 & 3, is_partial);
    add_gpr(insn, gpr_of(d, insn->rm & 15, is_byte_rm),
            insn->rm == INSN_REG_NONE ? 0 : access >> 2 & 3, is_partial);
    add_gpr(insn, insn->vex_vvvv, access >> 6, false);
    insn->gpr_read |= address_gpr(insn->base);
    insn->gpr_read |= (attr & ATTR_VSIB) != 0 ? 0 : address_gpr(insn->index);
    if ((insn->flags & (INSN_REP | INSN_REPNE)) != 0) {
        /* With RCX 0 nothing is written. */
        insn->gpr_written |= 1u << X86_RCX;
        insn->gpr_read |= insn->gpr_written;
    }
}

/* Shifts and rotates write flags only when the masked count is not 0 (SDM 2B SAL, RCL). */
static inline void set_shift_flags(const struct decoder *d, struct insn *insn)
{
    unsigned count = 1;

    if (d->desc.implicit == IMPL_SHIFT_CL) {
        insn->flags_read |= insn->flags_written;
        insn->flags_written = 0;
        insn->flags_undefined = 0;
        return;
    }
    if (insn->imm_bytes != 0) {
        count = (unsigned)insn->imm & (insn->opsize_bytes == 8 ? 63 : 31);
    }
    if (count == 0) {
        insn->flags_read = 0;
        insn->flags_written = 0;
        insn->flags_undefined = 0;
    } else if (count == 1) {
        insn->flags_undefined &= (uint16_t)~OF;
    } else if (d->desc.flags != FL_SHIFT) {
        /* Rotates by more than 1: OF is undefined, and CPUs may leave it as it was. */
        insn->flags_read |= OF;
        insn->flags_written &= (uint16_t)~OF;
        insn->flags_undefined = 0;
    } else if (count >= 8u * insn->opsize_bytes) {
        insn->flags_undefined = insn->map == 0 ? CF | AF | OF : ALL;
    }
}

static inline void decode_set_flags(const struct decoder *d, struct insn *insn)
{
    const uint8_t set = d->desc.flags;

    insn->flags_read = flag_sets[set].read;
    insn->flags_written = flag_sets[set].written;
    insn->flags_undefined = flag_sets[set].undefined;
    if (set < FL_SHIFT) {
        return;
    }
    if (set == FL_COND) {
        insn->flags_read = cond_flags[insn->cond >> 1];
    } else if (set == FL_STRING) {
        if ((insn->flags & (INSN_REP | INSN_REPNE)) != 0) {
            /* RCX may be 0. */
            insn->flags_read = insn->flags_written;
            insn->flags_written = 0;
        }
    } else {
        set_shift_flags(d, insn);
    }
}

#endif
