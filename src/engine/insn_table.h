/*
 * The decoder's tables: one struct insn_desc for each encoding.
 *
 * A row says what the SDM's opcode map and the instruction's page say: which
 * operands, how large, read or written, which flags. decode.c evaluates it.
 * Const data; only decode.c and the insn_table_*.c include this. SDM 2, 2D A.
 */
#ifndef CORBEL_ENGINE_INSN_TABLE_H
#define CORBEL_ENGINE_INSN_TABLE_H

#include "engine/decode.h"

/* Values of insn_desc.op beyond enum insn_op: look further. */
enum insn_desc_op {
    DESC_GROUP = INSN_OP_COUNT, /* modrm.reg selects in insn_groups[extra] */
    DESC_GROUP_RM,              /* modrm.rm selects in insn_groups_rm[extra] */
    DESC_X87,                   /* modrm selects in insn_x87_mem or insn_x87_reg */
    DESC_VEX,                   /* C4, C5: VEX in 64-bit mode and before a register modrm */
    DESC_MAP_0F
};

enum insn_imm {
    IMM_NONE,
    IMM_UB, /* byte, zero-extended */
    IMM_SB, /* byte, sign-extended */
    IMM_UW, /* word, zero-extended */
    IMM_Z,  /* as wide as the operand, at most 4; sign-extended */
    IMM_V,  /* as wide as the operand, MOV r, imm */
    IMM_ENTER,
    IMM_FAR,
    IMM_MOFFS,
    IMM_COUNT
};

enum insn_size {
    SZ_NONE, /* no integer operand */
    SZ_B,
    SZ_W,
    SZ_D,
    SZ_Q,
    SZ_V,   /* 2, 4, 8 by prefix, mode and REX.W */
    SZ_Z,   /* 2, 4 by prefix and mode */
    SZ_Y,   /* 4, or 8 with REX.W */
    SZ_D64, /* SZ_V that is 8 in 64-bit mode, 2 with prefix */
    SZ_F64, /* SZ_V that is always 8 in 64-bit mode */
    SZ_CR,  /* 4, 8 in 64-bit mode */
    SZ_COUNT
};

enum insn_mem {
    MEM_NONE, /* an address but no access, or no memory form */
    MEM_1,
    MEM_2,
    MEM_4,
    MEM_8,
    MEM_10,
    MEM_16,
    MEM_32,
    MEM_512,
    MEM_XSAVE,
    MEM_OP,  /* opsize */
    MEM_2OP, /* two of them: BOUND, CMPXCHG8B */
    MEM_FAR, /* offset of opsize and selector */
    MEM_DT,  /* limit and base of a descriptor table */
    MEM_VL,  /* vector length: 16 or 32 */
    MEM_VL2, /* half, quarter, eighth of it */
    MEM_VL4,
    MEM_VL8,
    MEM_DUP, /* VMOVDDUP: 8 or 32 */
    MEM_SXD, /* 2 or 4: MOVSXD */
    MEM_VW,  /* 4, or 8 with VEX.W */
    MEM_ENV, /* x87 environment: 14 or 28 */
    MEM_SAVE /* x87 state: 94 or 108 */
};

/* insn_desc.access: two bits (read, write) for each place. */
#define ACC_MEM(rw) (rw)        /* the memory operand */
#define ACC_RM(rw) ((rw) << 2)  /* a GPR in modrm.rm */
#define ACC_REG(rw) ((rw) << 4) /* a GPR in modrm.reg or in the opcode */
#define ACC_VVVV(rw) ((rw) << 6)
#define ACC_R 1
#define ACC_W 2
#define ACC_RW 3

/* GPRs used without being named; what is written in part is added by size. */
enum insn_implicit {
    IMPL_NONE,
    IMPL_A_R,
    IMPL_A_W,
    IMPL_A_RW,
    IMPL_MUL, /* A read; A and, unless bytes, D written */
    IMPL_DIV, /* A and, unless bytes, D read and written */
    IMPL_A_R_D_W,
    IMPL_SHIFT_CL,
    IMPL_STACK,
    IMPL_LEAVE,
    IMPL_PUSHA,
    IMPL_POPA,
    IMPL_MOVS,
    IMPL_STOS,
    IMPL_LODS,
    IMPL_SCAS,
    IMPL_INS,
    IMPL_OUTS,
    IMPL_CX_R,
    IMPL_CX_RW,
    IMPL_IN_DX,
    IMPL_OUT_DX,
    IMPL_XLAT,
    IMPL_AD_RW_BC_R, /* CMPXCHG8B */
    IMPL_CPUID,
    IMPL_AD_W,
    IMPL_ADC_W,    /* RDTSCP */
    IMPL_C_R_AD_W, /* RDMSR, RDPMC, XGETBV */
    IMPL_CAD_R,    /* WRMSR, XSETBV */
    IMPL_AD_R,     /* XSAVE, PCMPESTRM */
    IMPL_AD_R_C_W,
    IMPL_C_W,
    IMPL_D_R,
    IMPL_DI_R,
    IMPL_SYSCALL,
    IMPL_SYSRET,
    IMPL_SYSENTER,
    IMPL_SYSEXIT,
    IMPL_COUNT
};

enum insn_flag_set {
    FL_NONE,
    FL_ALU, /* all written */
    FL_ADC,
    FL_LOGIC, /* AF undefined */
    FL_INC,
    FL_MUL,
    FL_DIV,
    FL_BT,
    FL_BSF,
    FL_LZCNT,
    FL_ZF,
    FL_CF,
    FL_CMC,
    FL_SAHF,
    FL_LAHF,
    FL_ANDN, /* AF, PF undefined */
    FL_BEXTR,
    FL_ADOX,
    FL_DAA,
    FL_AAA,
    FL_AAM,
    FL_READ_CF,
    FL_READ_ZF,
    FL_READ_BE,
    FL_READ_PF,
    FL_READ_ALL,
    FL_FCOMI,
    FL_POPF,
    /* Evaluated by the count, the condition or the REP prefix. */
    FL_SHIFT,
    FL_ROTATE,
    FL_ROTATE_CARRY,
    FL_COND,
    FL_STRING,
    FL_COUNT
};

/* insn_desc.attr: the low four bits are INSN_X87 ... INSN_AVX. */
#define ATTR_STATE 0x0000000fu
#define ATTR_MODRM 0x00000010u
#define ATTR_NO64 0x00000020u
#define ATTR_ONLY64 0x00000040u
#define ATTR_MEM 0x00000080u /* memory form only */
#define ATTR_REG 0x00000100u /* register form only */
#define ATTR_LOCK 0x00000200u
#define ATTR_MANDATORY 0x00000400u /* the SSE prefix selects */
#define ATTR_L0 0x00000800u        /* VEX.L must be 0 */
#define ATTR_L1 0x00001000u
#define ATTR_W0 0x00002000u
#define ATTR_W1 0x00004000u
#define ATTR_NV 0x00008000u     /* VEX.vvvv must be 1111b */
#define ATTR_NV_MEM 0x00010000u /* ... in the memory form */
#define ATTR_BYTE 0x00020000u   /* register operands are bytes */
#define ATTR_BYTE_RM 0x00040000u
#define ATTR_OPREG 0x00080000u /* register in the opcode */
#define ATTR_STRING 0x00100000u
#define ATTR_SEG_SHIFT 24 /* reg_seg of an implied segment register */
#define ATTR_SEG(s) ((uint32_t)(s) << ATTR_SEG_SHIFT)
#define ATTR_COND 0x00200000u
#define ATTR_MODLESS 0x00400000u /* modrm always names registers (MOV CR) */
#define ATTR_VSIB 0x00800000u
#define ATTR_SEG_MASK 0x0f000000u

struct insn_desc {
    uint8_t op;
    uint8_t imm;
    uint8_t size;
    uint8_t mem;
    uint8_t access;
    uint8_t implicit;
    uint8_t flags;
    uint8_t extra; /* group number */
    uint32_t attr;
};

/* SSE prefix columns: none, 66, F3, F2, as VEX.pp counts them. */
enum { PP_NONE, PP_66, PP_F3, PP_F2, PP_COUNT };

enum insn_group {
    GRP_1, /* ALU */
    GRP_1A,
    GRP_2_IMM,
    GRP_2_ONE,
    GRP_2_CL,
    GRP_3,
    GRP_4,
    GRP_5,
    GRP_6,
    GRP_7,
    GRP_8,
    GRP_9,
    GRP_9_66,
    GRP_9_F3,
    GRP_11,
    GRP_12_MMX,
    GRP_12_SSE,
    GRP_13_MMX,
    GRP_13_SSE,
    GRP_14_MMX,
    GRP_14_SSE,
    GRP_15,
    GRP_15_66,
    GRP_15_F3,
    GRP_VEX_12,
    GRP_VEX_13,
    GRP_VEX_14,
    GRP_VEX_15,
    GRP_VEX_17,
    GRP_COUNT
};
enum insn_group_rm { GRM_7_1, GRM_7_2, GRM_7_7, GRM_COUNT };

/* Rows that C leaves zero are INSN_OP_COPY without an attribute: desc_is_empty(). */
static inline bool desc_is_empty(const struct insn_desc *desc)
{
    return desc->extra == 0;
}

/* A row: operation, operand size, memory size, accesses, flags, attributes, more members. */
#define ROW(op_, size_, mem_, access_, flags_, attr_, ...)                      \
    {                                                                           \
        .op = INSN_OP_##op_, .extra = 1, .size = SZ_##size_, .mem = MEM_##mem_, \
        .access = (access_), .flags = FL_##flags_, .attr = (attr_), __VA_ARGS__ \
    }
#define GROUP(group_, attr_, ...)                                                              \
    {                                                                                          \
        .op = DESC_GROUP, .extra = 1 + GRP_##group_, .attr = ATTR_MODRM | (attr_), __VA_ARGS__ \
    }
/* The same whatever the SSE prefix; or without and with 66. */
#define ALL4(...)                                          \
    {                                                      \
        __VA_ARGS__, __VA_ARGS__, __VA_ARGS__, __VA_ARGS__ \
    }
/* modrm.rm as memory or GPR. */
#define E_R (ACC_MEM(ACC_R) | ACC_RM(ACC_R))
#define E_W (ACC_MEM(ACC_W) | ACC_RM(ACC_W))
#define E_RW (ACC_MEM(ACC_RW) | ACC_RM(ACC_RW))
#define G_R ACC_REG(ACC_R)
#define G_W ACC_REG(ACC_W)
#define G_RW ACC_REG(ACC_RW)
#define M_R ACC_MEM(ACC_R)
#define M_W ACC_MEM(ACC_W)
#define M_RW ACC_MEM(ACC_RW)
#define RM ATTR_MODRM

extern const struct insn_desc insn_map_base[256];
extern const struct insn_desc insn_movsxd;     /* 63 in 64-bit mode */
extern const struct insn_desc insn_les_lds[2]; /* C4, C5 that are not VEX */
extern const struct insn_desc insn_map_0f[256][PP_COUNT];
extern const struct insn_desc insn_map_0f38[256][PP_COUNT];
extern const struct insn_desc insn_map_0f3a[256][PP_COUNT];
extern const struct insn_desc insn_vex_0f[256][PP_COUNT];
extern const struct insn_desc insn_vex_0f38[256][PP_COUNT];
extern const struct insn_desc insn_vex_0f3a[256][PP_COUNT];
/* By modrm.reg: 0-7 memory forms, 8-15 register forms. */
extern const struct insn_desc insn_groups[GRP_COUNT][16];
extern const struct insn_desc insn_groups_rm[GRM_COUNT][8];
extern const struct insn_desc insn_x87_mem[8][8];  /* [opcode & 7][modrm.reg] */
extern const struct insn_desc insn_x87_reg[8][64]; /* [opcode & 7][modrm & 0x3f] */

#endif
