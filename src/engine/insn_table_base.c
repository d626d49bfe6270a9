#include "engine/insn_table.h"

/* clang-format off */

/* E,G  G,E  A,imm in bytes and in words. */
#define ALU(opcode, flags, e, g, a, lock)                                                   \
    [(opcode) + 0] = ROW(COPY, B, OP, (e) | G_R, flags, RM | ATTR_BYTE | (lock)),           \
    [(opcode) + 1] = ROW(COPY, V, OP, (e) | G_R, flags, RM | (lock)),                       \
    [(opcode) + 2] = ROW(COPY, B, OP, E_R | (g), flags, RM | ATTR_BYTE),                    \
    [(opcode) + 3] = ROW(COPY, V, OP, E_R | (g), flags, RM),                                \
    [(opcode) + 4] = ROW(COPY, B, NONE, 0, flags, 0, .imm = IMM_SB, .implicit = (a)),       \
    [(opcode) + 5] = ROW(COPY, V, NONE, 0, flags, 0, .imm = IMM_Z, .implicit = (a))
#define ALU_RMW(opcode, flags) ALU(opcode, flags, E_RW, G_RW, IMPL_A_RW, ATTR_LOCK)

#define PUSH_SEG(seg) ROW(PUSH_SEG, D64, NONE, 0, NONE, ATTR_NO64 | ATTR_SEG(seg), .implicit = IMPL_STACK)
#define POP_SEG(seg) ROW(POP_SEG, D64, NONE, 0, NONE, ATTR_NO64 | ATTR_SEG(seg), .implicit = IMPL_STACK)
#define STRING(op, size, flags, implicit_) \
    ROW(op, size, NONE, 0, flags, ATTR_STRING, .implicit = IMPL_##implicit_)
#define IMPLICIT(op, size, flags, implicit_, attr, ...) \
    ROW(op, size, NONE, 0, flags, attr, .implicit = IMPL_##implicit_, __VA_ARGS__)
#define PLAIN(op, flags, attr) ROW(op, NONE, NONE, 0, flags, attr)

const struct insn_desc insn_map_base[256] = {
    ALU_RMW(0x00, ALU),   /* ADD */
    ALU_RMW(0x08, LOGIC), /* OR */
    ALU_RMW(0x10, ADC),
    ALU_RMW(0x18, ADC), /* SBB */
    ALU_RMW(0x20, LOGIC), /* AND */
    ALU_RMW(0x28, ALU), /* SUB */
    ALU_RMW(0x30, LOGIC), /* XOR */
    ALU(0x38, ALU, E_R, G_R, IMPL_A_R, 0), /* CMP */
    [0x06] = PUSH_SEG(X86_ES), [0x07] = POP_SEG(X86_ES),
    [0x0e] = PUSH_SEG(X86_CS),
    [0x0f] = {.op = DESC_MAP_0F, .extra = 1},
    [0x16] = PUSH_SEG(X86_SS), [0x17] = POP_SEG(X86_SS),
    [0x1e] = PUSH_SEG(X86_DS), [0x1f] = POP_SEG(X86_DS),
    [0x27] = IMPLICIT(BCD, B, DAA, A_RW, ATTR_NO64),
    [0x2f] = IMPLICIT(BCD, B, DAA, A_RW, ATTR_NO64),
    [0x37] = IMPLICIT(BCD, B, AAA, A_RW, ATTR_NO64),
    [0x3f] = IMPLICIT(BCD, B, AAA, A_RW, ATTR_NO64),
    /* REX prefixes in 64-bit mode */
    [0x40 ... 0x4f] = ROW(COPY, V, NONE, G_RW, INC, ATTR_OPREG | ATTR_NO64),
    [0x50 ... 0x57] = ROW(PUSH, D64, NONE, G_R, NONE, ATTR_OPREG, .implicit = IMPL_STACK),
    [0x58 ... 0x5f] = ROW(POP, D64, NONE, G_W, NONE, ATTR_OPREG, .implicit = IMPL_STACK),
    [0x60] = IMPLICIT(PUSHA, V, NONE, PUSHA, ATTR_NO64),
    [0x61] = IMPLICIT(POPA, V, NONE, POPA, ATTR_NO64),
    [0x62] = ROW(BOUND, V, 2OP, M_R | G_R, NONE, RM | ATTR_NO64 | ATTR_MEM),
    [0x63] = ROW(ARPL, W, OP, E_RW | G_R, ZF, RM | ATTR_NO64),
    [0x68] = IMPLICIT(PUSH, D64, NONE, STACK, 0, .imm = IMM_Z),
    [0x69] = ROW(COPY, V, OP, E_R | G_W, MUL, RM, .imm = IMM_Z),
    [0x6a] = IMPLICIT(PUSH, D64, NONE, STACK, 0, .imm = IMM_SB),
    [0x6b] = ROW(COPY, V, OP, E_R | G_W, MUL, RM, .imm = IMM_SB),
    [0x6c] = STRING(INS, B, NONE, INS), [0x6d] = STRING(INS, Z, NONE, INS),
    [0x6e] = STRING(OUTS, B, NONE, OUTS), [0x6f] = STRING(OUTS, Z, NONE, OUTS),
    [0x70 ... 0x7f] = ROW(JCC, F64, NONE, 0, COND, ATTR_COND, .imm = IMM_SB),
    [0x80] = GROUP(1, ATTR_BYTE_RM, .size = SZ_B, .imm = IMM_SB),
    [0x81] = GROUP(1, 0, .size = SZ_V, .imm = IMM_Z),
    [0x82] = GROUP(1, ATTR_BYTE_RM | ATTR_NO64, .size = SZ_B, .imm = IMM_SB),
    [0x83] = GROUP(1, 0, .size = SZ_V, .imm = IMM_SB),
    [0x84] = ROW(COPY, B, OP, E_R | G_R, LOGIC, RM | ATTR_BYTE), /* TEST */
    [0x85] = ROW(COPY, V, OP, E_R | G_R, LOGIC, RM),
    [0x86] = ROW(COPY, B, OP, E_RW | G_RW, NONE, RM | ATTR_BYTE | ATTR_LOCK), /* XCHG */
    [0x87] = ROW(COPY, V, OP, E_RW | G_RW, NONE, RM | ATTR_LOCK),
    [0x88] = ROW(COPY, B, OP, E_W | G_R, NONE, RM | ATTR_BYTE), /* MOV */
    [0x89] = ROW(COPY, V, OP, E_W | G_R, NONE, RM),
    [0x8a] = ROW(COPY, B, OP, E_R | G_W, NONE, RM | ATTR_BYTE),
    [0x8b] = ROW(COPY, V, OP, E_R | G_W, NONE, RM),
    [0x8c] = ROW(MOV_FROM_SEG, V, 2, E_W, NONE, RM),
    [0x8d] = ROW(LEA, V, NONE, G_W, NONE, RM | ATTR_MEM),
    [0x8e] = ROW(MOV_TO_SEG, V, 2, E_R, NONE, RM),
    [0x8f] = GROUP(1A, 0),
    [0x90 ... 0x97] = ROW(COPY, V, NONE, G_RW, NONE, ATTR_OPREG, .implicit = IMPL_A_RW),
    [0x98] = IMPLICIT(COPY, V, NONE, A_RW, 0),     /* CBW CWDE CDQE */
    [0x99] = IMPLICIT(COPY, V, NONE, A_R_D_W, 0), /* CWD CDQ CQO */
    [0x9a] = IMPLICIT(CALL_FAR, V, NONE, STACK, ATTR_NO64, .imm = IMM_FAR),
    [0x9b] = PLAIN(COPY, NONE, INSN_X87), /* WAIT */
    [0x9c] = IMPLICIT(PUSHF, D64, READ_ALL, STACK, 0),
    [0x9d] = IMPLICIT(POPF, D64, POPF, STACK, 0),
    [0x9e] = IMPLICIT(COPY, NONE, SAHF, A_R, 0),
    [0x9f] = IMPLICIT(COPY, NONE, LAHF, A_RW, 0),
    [0xa0] = ROW(COPY, B, OP, M_R, NONE, 0, .imm = IMM_MOFFS, .implicit = IMPL_A_W),
    [0xa1] = ROW(COPY, V, OP, M_R, NONE, 0, .imm = IMM_MOFFS, .implicit = IMPL_A_W),
    [0xa2] = ROW(COPY, B, OP, M_W, NONE, 0, .imm = IMM_MOFFS, .implicit = IMPL_A_R),
    [0xa3] = ROW(COPY, V, OP, M_W, NONE, 0, .imm = IMM_MOFFS, .implicit = IMPL_A_R),
    [0xa4] = STRING(MOVS, B, NONE, MOVS), [0xa5] = STRING(MOVS, V, NONE, MOVS),
    [0xa6] = STRING(CMPS, B, STRING, MOVS), [0xa7] = STRING(CMPS, V, STRING, MOVS),
    [0xa8] = IMPLICIT(COPY, B, LOGIC, A_R, 0, .imm = IMM_SB), /* TEST */
    [0xa9] = IMPLICIT(COPY, V, LOGIC, A_R, 0, .imm = IMM_Z),
    [0xaa] = STRING(STOS, B, NONE, STOS), [0xab] = STRING(STOS, V, NONE, STOS),
    [0xac] = STRING(LODS, B, NONE, LODS), [0xad] = STRING(LODS, V, NONE, LODS),
    [0xae] = STRING(SCAS, B, STRING, SCAS), [0xaf] = STRING(SCAS, V, STRING, SCAS),
    [0xb0 ... 0xb7] = ROW(COPY, B, NONE, G_W, NONE, ATTR_OPREG | ATTR_BYTE, .imm = IMM_UB),
    [0xb8 ... 0xbf] = ROW(COPY, V, NONE, G_W, NONE, ATTR_OPREG, .imm = IMM_V),
    [0xc0] = GROUP(2_IMM, ATTR_BYTE_RM, .size = SZ_B, .imm = IMM_UB),
    [0xc1] = GROUP(2_IMM, 0, .size = SZ_V, .imm = IMM_UB),
    [0xc2] = IMPLICIT(RET, F64, NONE, STACK, 0, .imm = IMM_UW),
    [0xc3] = IMPLICIT(RET, F64, NONE, STACK, 0),
    [0xc4] = {.op = DESC_VEX, .extra = 1},
    [0xc5] = {.op = DESC_VEX, .extra = 1},
    [0xc6] = GROUP(11, ATTR_BYTE_RM, .size = SZ_B, .imm = IMM_SB),
    [0xc7] = GROUP(11, 0, .size = SZ_V, .imm = IMM_Z),
    [0xc8] = IMPLICIT(ENTER, D64, NONE, LEAVE, 0, .imm = IMM_ENTER),
    [0xc9] = IMPLICIT(LEAVE, D64, NONE, LEAVE, 0),
    [0xca] = IMPLICIT(RET_FAR, V, NONE, STACK, 0, .imm = IMM_UW),
    [0xcb] = IMPLICIT(RET_FAR, V, NONE, STACK, 0),
    [0xcc] = PLAIN(INT3, READ_ALL, 0),
    [0xcd] = ROW(INT, NONE, NONE, 0, READ_ALL, 0, .imm = IMM_UB),
    [0xce] = PLAIN(INTO, READ_ALL, ATTR_NO64),
    [0xcf] = IMPLICIT(IRET, V, POPF, STACK, 0),
    [0xd0] = GROUP(2_ONE, ATTR_BYTE_RM, .size = SZ_B),
    [0xd1] = GROUP(2_ONE, 0, .size = SZ_V),
    [0xd2] = GROUP(2_CL, ATTR_BYTE_RM, .size = SZ_B),
    [0xd3] = GROUP(2_CL, 0, .size = SZ_V),
    [0xd4] = IMPLICIT(BCD, B, AAM, A_RW, ATTR_NO64, .imm = IMM_UB),
    [0xd5] = IMPLICIT(BCD, B, AAM, A_RW, ATTR_NO64, .imm = IMM_UB),
    [0xd6] = IMPLICIT(BCD, B, READ_CF, A_W, ATTR_NO64),
    [0xd7] = IMPLICIT(XLAT, B, NONE, XLAT, 0),
    [0xd8 ... 0xdf] = {.op = DESC_X87, .extra = 1, .attr = RM | INSN_X87},
    [0xe0 ... 0xe1] = IMPLICIT(LOOP, F64, READ_ZF, CX_RW, 0, .imm = IMM_SB),
    [0xe2] = IMPLICIT(LOOP, F64, NONE, CX_RW, 0, .imm = IMM_SB),
    [0xe3] = IMPLICIT(JCXZ, F64, NONE, CX_R, 0, .imm = IMM_SB),
    [0xe4] = IMPLICIT(IN, B, NONE, A_W, 0, .imm = IMM_UB),
    [0xe5] = IMPLICIT(IN, Z, NONE, A_W, 0, .imm = IMM_UB),
    [0xe6] = IMPLICIT(OUT, B, NONE, A_R, 0, .imm = IMM_UB),
    [0xe7] = IMPLICIT(OUT, Z, NONE, A_R, 0, .imm = IMM_UB),
    [0xe8] = IMPLICIT(CALL, F64, NONE, STACK, 0, .imm = IMM_Z),
    [0xe9] = ROW(JMP, F64, NONE, 0, NONE, 0, .imm = IMM_Z),
    [0xea] = ROW(JMP_FAR, V, NONE, 0, NONE, ATTR_NO64, .imm = IMM_FAR),
    [0xeb] = ROW(JMP, F64, NONE, 0, NONE, 0, .imm = IMM_SB),
    [0xec] = IMPLICIT(IN, B, NONE, IN_DX, 0), [0xed] = IMPLICIT(IN, Z, NONE, IN_DX, 0),
    [0xee] = IMPLICIT(OUT, B, NONE, OUT_DX, 0), [0xef] = IMPLICIT(OUT, Z, NONE, OUT_DX, 0),
    [0xf1] = PLAIN(INT1, READ_ALL, 0),
    [0xf4] = PLAIN(HLT, NONE, 0),
    [0xf5] = PLAIN(COPY, CMC, 0),
    [0xf6] = GROUP(3, ATTR_BYTE_RM, .size = SZ_B),
    [0xf7] = GROUP(3, 0, .size = SZ_V),
    [0xf8] = PLAIN(COPY, CF, 0), /* CLC */
    [0xf9] = PLAIN(COPY, CF, 0), /* STC */
    [0xfa] = PLAIN(CLI, NONE, 0), [0xfb] = PLAIN(STI, NONE, 0),
    [0xfc] = PLAIN(COPY, NONE, 0), /* CLD */
    [0xfd] = PLAIN(COPY, NONE, 0), /* STD */
    [0xfe] = GROUP(4, ATTR_BYTE_RM, .size = SZ_B),
    [0xff] = GROUP(5, 0),
};

const struct insn_desc insn_movsxd = ROW(COPY, V, SXD, E_R | G_W, NONE, RM);
const struct insn_desc insn_les_lds[2] = {
    ROW(LOAD_FAR_PTR, V, FAR, M_R | G_W, NONE, RM | ATTR_NO64 | ATTR_MEM | ATTR_SEG(X86_ES)),
    ROW(LOAD_FAR_PTR, V, FAR, M_R | G_W, NONE, RM | ATTR_NO64 | ATTR_MEM | ATTR_SEG(X86_DS)),
};

#define BOTH(...) {__VA_ARGS__, __VA_ARGS__}
#define NONE_ {0}
#define ALU_E(flags, access, lock) ROW(COPY, NONE, OP, access, flags, lock)
#define SHIFTS(implicit_)                                                                    \
    BOTH(ROW(COPY, NONE, OP, E_RW, ROTATE, 0, .implicit = (implicit_)),                      \
         ROW(COPY, NONE, OP, E_RW, ROTATE, 0, .implicit = (implicit_)),                      \
         ROW(COPY, NONE, OP, E_RW, ROTATE_CARRY, 0, .implicit = (implicit_)),                \
         ROW(COPY, NONE, OP, E_RW, ROTATE_CARRY, 0, .implicit = (implicit_)),                \
         ROW(COPY, NONE, OP, E_RW, SHIFT, 0, .implicit = (implicit_)),                       \
         ROW(COPY, NONE, OP, E_RW, SHIFT, 0, .implicit = (implicit_)),                       \
         ROW(COPY, NONE, OP, E_RW, SHIFT, 0, .implicit = (implicit_)),                       \
         ROW(COPY, NONE, OP, E_RW, SHIFT, 0, .implicit = (implicit_)))
/* Immediate shifts of a vector register. */
#define VSHIFT(access) ROW(COPY, NONE, NONE, access, NONE, ATTR_REG)

const struct insn_desc insn_groups[GRP_COUNT][16] = {
    [GRP_1] = BOTH(ALU_E(ALU, E_RW, ATTR_LOCK), ALU_E(LOGIC, E_RW, ATTR_LOCK),
                   ALU_E(ADC, E_RW, ATTR_LOCK), ALU_E(ADC, E_RW, ATTR_LOCK),
                   ALU_E(LOGIC, E_RW, ATTR_LOCK), ALU_E(ALU, E_RW, ATTR_LOCK),
                   ALU_E(LOGIC, E_RW, ATTR_LOCK), ALU_E(ALU, E_R, 0)),
    [GRP_1A] = {[0] = ROW(POP, D64, OP, E_W, NONE, 0, .implicit = IMPL_STACK),
                [8] = ROW(POP, D64, OP, E_W, NONE, 0, .implicit = IMPL_STACK)},
    [GRP_2_IMM] = SHIFTS(IMPL_NONE),
    [GRP_2_ONE] = SHIFTS(IMPL_NONE),
    [GRP_2_CL] = SHIFTS(IMPL_SHIFT_CL),
    [GRP_3] = BOTH(ROW(COPY, NONE, OP, E_R, LOGIC, 0, .imm = IMM_Z), /* TEST */
                   ROW(COPY, NONE, OP, E_R, LOGIC, 0, .imm = IMM_Z),
                   ALU_E(NONE, E_RW, ATTR_LOCK), /* NOT */
                   ALU_E(ALU, E_RW, ATTR_LOCK),  /* NEG */
                   ROW(COPY, NONE, OP, E_R, MUL, 0, .implicit = IMPL_MUL),
                   ROW(COPY, NONE, OP, E_R, MUL, 0, .implicit = IMPL_MUL),
                   ROW(COPY, NONE, OP, E_R, DIV, 0, .implicit = IMPL_DIV),
                   ROW(COPY, NONE, OP, E_R, DIV, 0, .implicit = IMPL_DIV)),
    [GRP_4] = BOTH(ALU_E(INC, E_RW, ATTR_LOCK), ALU_E(INC, E_RW, ATTR_LOCK),
                   NONE_, NONE_, NONE_, NONE_, NONE_, NONE_),
    [GRP_5] = BOTH(ROW(COPY, V, OP, E_RW, INC, ATTR_LOCK), ROW(COPY, V, OP, E_RW, INC, ATTR_LOCK),
                   ROW(CALL_IND, F64, OP, E_R, NONE, 0, .implicit = IMPL_STACK),
                   ROW(CALL_FAR_IND, V, FAR, M_R, NONE, ATTR_MEM, .implicit = IMPL_STACK),
                   ROW(JMP_IND, F64, OP, E_R, NONE, 0),
                   ROW(JMP_FAR_IND, V, FAR, M_R, NONE, ATTR_MEM),
                   ROW(PUSH, D64, OP, E_R, NONE, 0, .implicit = IMPL_STACK), NONE_),
    [GRP_6] = BOTH(ROW(SLDT, V, 2, E_W, NONE, 0), ROW(STR, V, 2, E_W, NONE, 0),
                   ROW(LLDT, W, 2, E_R, NONE, 0), ROW(LTR, W, 2, E_R, NONE, 0),
                   ROW(VERR, W, 2, E_R, ZF, 0), ROW(VERW, W, 2, E_R, ZF, 0), NONE_, NONE_),
    [GRP_7] = {[0] = ROW(SGDT, CR, DT, M_W, NONE, 0), [1] = ROW(SIDT, CR, DT, M_W, NONE, 0),
               [2] = ROW(LGDT, CR, DT, M_R, NONE, 0), [3] = ROW(LIDT, CR, DT, M_R, NONE, 0),
               [4] = ROW(SMSW, V, 2, E_W, NONE, 0), [6] = ROW(LMSW, W, 2, E_R, NONE, 0),
               [7] = ROW(INVLPG, NONE, NONE, 0, NONE, 0),
               [9] = {.op = DESC_GROUP_RM, .extra = 1 + GRM_7_1},
               [10] = {.op = DESC_GROUP_RM, .extra = 1 + GRM_7_2},
               [12] = ROW(SMSW, V, 2, E_W, NONE, 0), [14] = ROW(LMSW, W, 2, E_R, NONE, 0),
               [15] = {.op = DESC_GROUP_RM, .extra = 1 + GRM_7_7}},
    [GRP_8] = BOTH(NONE_, NONE_, NONE_, NONE_, ALU_E(BT, E_R, 0), ALU_E(BT, E_RW, ATTR_LOCK),
                   ALU_E(BT, E_RW, ATTR_LOCK), ALU_E(BT, E_RW, ATTR_LOCK)),
#define CMPXCHG8B \
    ROW(COPY, Y, 2OP, M_RW, ZF, ATTR_LOCK, .implicit = IMPL_AD_RW_BC_R)
    [GRP_9] = {[1] = CMPXCHG8B,
               [4] = ROW(XSAVE, Y, XSAVE, M_W, NONE, 0, .implicit = IMPL_AD_R), /* XSAVEC */
               [14] = ROW(COPY, V, NONE, ACC_RM(ACC_W), ALU, 0),  /* RDRAND */
               [15] = ROW(COPY, V, NONE, ACC_RM(ACC_W), ALU, 0)}, /* RDSEED */
    [GRP_9_66] = {[1] = CMPXCHG8B,
                  [14] = ROW(COPY, V, NONE, ACC_RM(ACC_W), ALU, 0),
                  [15] = ROW(COPY, V, NONE, ACC_RM(ACC_W), ALU, 0)},
    [GRP_9_F3] = {[1] = CMPXCHG8B},
    [GRP_11] = {[0] = ROW(COPY, NONE, OP, E_W, NONE, 0), [8] = ROW(COPY, NONE, OP, E_W, NONE, 0)},
    [GRP_12_MMX] = {[10] = VSHIFT(0), [12] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_12_SSE] = {[10] = VSHIFT(0), [12] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_13_MMX] = {[10] = VSHIFT(0), [12] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_13_SSE] = {[10] = VSHIFT(0), [12] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_14_MMX] = {[10] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_14_SSE] = {[10] = VSHIFT(0), [11] = VSHIFT(0), [14] = VSHIFT(0), [15] = VSHIFT(0)},
    [GRP_15] = {[0] = ROW(FXSAVE, Y, 512, M_W, NONE, INSN_X87),
                [1] = ROW(FXRSTOR, Y, 512, M_R, NONE, INSN_X87),
                [2] = ROW(COPY, NONE, 4, M_R, NONE, INSN_SSE), /* LDMXCSR */
                [3] = ROW(COPY, NONE, 4, M_W, NONE, INSN_SSE), /* STMXCSR */
                [4] = ROW(XSAVE, Y, XSAVE, M_RW, NONE, 0, .implicit = IMPL_AD_R),
                [5] = ROW(XRSTOR, Y, XSAVE, M_R, NONE, 0, .implicit = IMPL_AD_R),
                [6] = ROW(XSAVE, Y, XSAVE, M_RW, NONE, 0, .implicit = IMPL_AD_R), /* XSAVEOPT */
                [7] = ROW(COPY, NONE, 1, M_R, NONE, 0), /* CLFLUSH */
                [13] = PLAIN(COPY, NONE, 0),            /* LFENCE */
                [14] = PLAIN(COPY, NONE, 0),            /* MFENCE */
                [15] = PLAIN(COPY, NONE, 0)},           /* SFENCE */
    [GRP_15_66] = {[6] = ROW(COPY, NONE, 1, M_R, NONE, ATTR_MANDATORY),  /* CLWB */
                   [7] = ROW(COPY, NONE, 1, M_R, NONE, ATTR_MANDATORY)}, /* CLFLUSHOPT */
#define FSGSBASE(op, access, seg) ROW(op, Y, NONE, access, NONE, ATTR_ONLY64 | ATTR_MANDATORY | ATTR_SEG(seg))
    [GRP_15_F3] = {[8] = FSGSBASE(RDFSBASE, ACC_RM(ACC_W), X86_FS),
                   [9] = FSGSBASE(RDFSBASE, ACC_RM(ACC_W), X86_GS),
                   [10] = FSGSBASE(WRFSBASE, ACC_RM(ACC_R), X86_FS),
                   [11] = FSGSBASE(WRFSBASE, ACC_RM(ACC_R), X86_GS)},
    [GRP_VEX_12] = {[10] = VSHIFT(0), [12] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_VEX_13] = {[10] = VSHIFT(0), [12] = VSHIFT(0), [14] = VSHIFT(0)},
    [GRP_VEX_14] = {[10] = VSHIFT(0), [11] = VSHIFT(0), [14] = VSHIFT(0), [15] = VSHIFT(0)},
    [GRP_VEX_15] = {[2] = ROW(COPY, NONE, 4, M_R, NONE, 0),
                    [3] = ROW(COPY, NONE, 4, M_W, NONE, 0)},
    /* BLSR, BLSMSK, BLSI */
    [GRP_VEX_17] = BOTH(NONE_, ROW(COPY, Y, OP, E_R | ACC_VVVV(ACC_W), ANDN, 0),
                        ROW(COPY, Y, OP, E_R | ACC_VVVV(ACC_W), ANDN, 0),
                        ROW(COPY, Y, OP, E_R | ACC_VVVV(ACC_W), ANDN, 0),
                        NONE_, NONE_, NONE_, NONE_),
};

const struct insn_desc insn_groups_rm[GRM_COUNT][8] = {
    [GRM_7_1] = {[2] = PLAIN(CLAC, NONE, 0), [3] = PLAIN(STAC, NONE, 0)},
    [GRM_7_2] = {[0] = IMPLICIT(XGETBV, NONE, NONE, C_R_AD_W, 0),
                 [1] = IMPLICIT(XSETBV, NONE, NONE, CAD_R, 0)},
    [GRM_7_7] = {[0] = PLAIN(SWAPGS, NONE, ATTR_ONLY64),
                 [1] = IMPLICIT(RDTSCP, NONE, NONE, ADC_W, 0)},
};
