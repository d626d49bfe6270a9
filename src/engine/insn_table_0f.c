#include "engine/insn_table.h"

/* clang-format off */

#define IMPLICIT(op, size, flags, implicit_, attr, ...) \
    ROW(op, size, NONE, 0, flags, attr, .implicit = IMPL_##implicit_, __VA_ARGS__)
#define PLAIN(op, flags, attr) ROW(op, NONE, NONE, 0, flags, attr)
#define NONE_ {0}
/* A vector instruction that loads or stores `mem` bytes and names no GPR. */
#define SSE(mem, access, ...) \
    ROW(COPY, NONE, mem, access, NONE, RM | ATTR_MANDATORY | INSN_SSE, __VA_ARGS__)
#define SSE_A(mem, access, attr, ...) \
    ROW(COPY, NONE, mem, access, NONE, RM | ATTR_MANDATORY | INSN_SSE | (attr), __VA_ARGS__)
#define MMX(mem, access, ...) ROW(COPY, NONE, mem, access, NONE, RM | INSN_MMX, __VA_ARGS__)
#define MMX_A(mem, access, attr, ...) \
    ROW(COPY, NONE, mem, access, NONE, RM | INSN_MMX | (attr), __VA_ARGS__)
#define GPR(size, mem, access, flags, ...) \
    ROW(COPY, size, mem, access, flags, RM | ATTR_MANDATORY | INSN_SSE, __VA_ARGS__)
/* The four of an arithmetic operation: PS PD SS SD. */
#define ARITH {SSE(16, M_R), SSE(16, M_R), SSE(4, M_R), SSE(8, M_R)}
#define PACKED2 {SSE(16, M_R), SSE(16, M_R), NONE_, NONE_}
#define MMX_SSE {MMX(8, M_R), SSE(16, M_R), NONE_, NONE_}
#define SSE66 {NONE_, SSE(16, M_R), NONE_, NONE_}
#define BT_ROW(access, lock, ...) ALL4(ROW(BIT_MEM, V, OP, (access) | G_R, BT, RM | (lock), __VA_ARGS__))
#define NOP_ROW ALL4(ROW(NOP, V, NONE, 0, NONE, RM))

const struct insn_desc insn_map_0f[256][PP_COUNT] = {
    [0x00] = ALL4(GROUP(6, 0)),
    [0x01] = ALL4(GROUP(7, 0)),
    [0x02] = ALL4(ROW(LAR, V, 2, E_R | G_RW, ZF, RM)),
    [0x03] = ALL4(ROW(LSL, V, 2, E_R | G_RW, ZF, RM)),
    [0x05] = ALL4(IMPLICIT(SYSCALL, Q, READ_ALL, SYSCALL, ATTR_ONLY64)),
    [0x06] = ALL4(PLAIN(CLTS, NONE, 0)),
    [0x07] = ALL4(IMPLICIT(SYSRET, Y, POPF, SYSRET, ATTR_ONLY64)),
    [0x08] = ALL4(PLAIN(INVD, NONE, 0)),
    [0x09] = ALL4(PLAIN(INVD, NONE, 0)),
    [0x0b] = ALL4(PLAIN(UD, READ_ALL, 0)),
    [0x0d] = NOP_ROW, /* PREFETCHW */
    [0x10] = {SSE(16, M_R), SSE(16, M_R), SSE(4, M_R), SSE(8, M_R)},
    [0x11] = {SSE(16, M_W), SSE(16, M_W), SSE(4, M_W), SSE(8, M_W)},
    [0x12] = {SSE(8, M_R), SSE_A(8, M_R, ATTR_MEM), SSE(16, M_R), SSE(8, M_R)},
    [0x13] = {SSE_A(8, M_W, ATTR_MEM), SSE_A(8, M_W, ATTR_MEM), NONE_, NONE_},
    [0x14] = PACKED2, [0x15] = PACKED2,
    [0x16] = {SSE(8, M_R), SSE_A(8, M_R, ATTR_MEM), SSE(16, M_R), NONE_},
    [0x17] = {SSE_A(8, M_W, ATTR_MEM), SSE_A(8, M_W, ATTR_MEM), NONE_, NONE_},
    [0x18 ... 0x1f] = NOP_ROW,
    [0x20] = ALL4(ROW(MOV_FROM_CR, CR, NONE, ACC_RM(ACC_W), NONE, RM | ATTR_MODLESS)),
    [0x21] = ALL4(ROW(MOV_FROM_DR, CR, NONE, ACC_RM(ACC_W), NONE, RM | ATTR_MODLESS)),
    [0x22] = ALL4(ROW(MOV_TO_CR, CR, NONE, ACC_RM(ACC_R), NONE, RM | ATTR_MODLESS)),
    [0x23] = ALL4(ROW(MOV_TO_DR, CR, NONE, ACC_RM(ACC_R), NONE, RM | ATTR_MODLESS)),
    [0x28] = PACKED2,
    [0x29] = {SSE(16, M_W), SSE(16, M_W), NONE_, NONE_},
    [0x2a] = {SSE_A(8, M_R, INSN_MMX), SSE_A(8, M_R, INSN_MMX), GPR(Y, OP, E_R, NONE), GPR(Y, OP, E_R, NONE)},
    [0x2b] = {SSE_A(16, M_W, ATTR_MEM), SSE_A(16, M_W, ATTR_MEM), NONE_, NONE_},
    [0x2c ... 0x2d] = {SSE_A(8, M_R, INSN_MMX), SSE_A(16, M_R, INSN_MMX), GPR(Y, 4, M_R | G_W, NONE), GPR(Y, 8, M_R | G_W, NONE)},
    [0x2e ... 0x2f] = {GPR(NONE, 4, M_R, ALU), GPR(NONE, 8, M_R, ALU), NONE_, NONE_},
    [0x30] = ALL4(IMPLICIT(WRMSR, NONE, NONE, CAD_R, 0)),
    [0x31] = ALL4(IMPLICIT(RDTSC, NONE, NONE, AD_W, 0)),
    [0x32] = ALL4(IMPLICIT(RDMSR, NONE, NONE, C_R_AD_W, 0)),
    [0x33] = ALL4(IMPLICIT(RDPMC, NONE, NONE, C_R_AD_W, 0)),
    [0x34] = ALL4(IMPLICIT(SYSENTER, NONE, NONE, SYSENTER, 0)),
    [0x35] = ALL4(IMPLICIT(SYSEXIT, Y, NONE, SYSEXIT, 0)),
    [0x40 ... 0x4f] = ALL4(ROW(COPY, V, OP, E_R | G_RW, COND, RM | ATTR_COND)), /* CMOV */
    #define MOVMSK ROW(COPY, Y, NONE, G_W, NONE, RM | ATTR_MANDATORY | INSN_SSE | ATTR_REG)
    [0x50] = {MOVMSK, MOVMSK, NONE_, NONE_},
    [0x51] = ARITH,
    [0x52 ... 0x53] = {SSE(16, M_R), NONE_, SSE(4, M_R), NONE_},
    [0x54 ... 0x57] = PACKED2,
    [0x58 ... 0x59] = ARITH,
    [0x5a] = {SSE(8, M_R), SSE(16, M_R), SSE(4, M_R), SSE(8, M_R)},
    [0x5b] = {SSE(16, M_R), SSE(16, M_R), SSE(16, M_R), NONE_},
    [0x5c ... 0x5f] = ARITH,
    [0x60 ... 0x62] = {MMX(4, M_R), SSE(16, M_R), NONE_, NONE_},
    [0x63 ... 0x6b] = MMX_SSE,
    [0x6c ... 0x6d] = SSE66,
    [0x6e] = {ROW(COPY, Y, OP, E_R, NONE, RM | INSN_MMX), GPR(Y, OP, E_R, NONE), NONE_, NONE_},
    [0x6f] = {MMX(8, M_R), SSE(16, M_R), SSE(16, M_R), NONE_},
    [0x70] = {MMX(8, M_R, .imm = IMM_UB), SSE(16, M_R, .imm = IMM_UB), SSE(16, M_R, .imm = IMM_UB), SSE(16, M_R, .imm = IMM_UB)},
    [0x71] = {GROUP(12_MMX, INSN_MMX, .imm = IMM_UB), GROUP(12_SSE, INSN_SSE | ATTR_MANDATORY, .imm = IMM_UB), NONE_, NONE_},
    [0x72] = {GROUP(13_MMX, INSN_MMX, .imm = IMM_UB), GROUP(13_SSE, INSN_SSE | ATTR_MANDATORY, .imm = IMM_UB), NONE_, NONE_},
    [0x73] = {GROUP(14_MMX, INSN_MMX, .imm = IMM_UB), GROUP(14_SSE, INSN_SSE | ATTR_MANDATORY, .imm = IMM_UB), NONE_, NONE_},
    [0x74 ... 0x76] = MMX_SSE,
    [0x77] = {PLAIN(COPY, NONE, INSN_MMX), NONE_, NONE_, NONE_}, /* EMMS */
    [0x7c ... 0x7d] = {NONE_, SSE(16, M_R), NONE_, SSE(16, M_R)},
    [0x7e] = {ROW(COPY, Y, OP, E_W, NONE, RM | INSN_MMX), GPR(Y, OP, E_W, NONE), SSE(8, M_R), NONE_},
    [0x7f] = {MMX(8, M_W), SSE(16, M_W), SSE(16, M_W), NONE_},
    [0x80 ... 0x8f] = ALL4(ROW(JCC, F64, NONE, 0, COND, ATTR_COND, .imm = IMM_Z)),
    [0x90 ... 0x9f] = ALL4(ROW(COPY, B, OP, E_W, COND, RM | ATTR_COND | ATTR_BYTE_RM)), /* SETcc */
    [0xa0] = ALL4(IMPLICIT(PUSH_SEG, D64, NONE, STACK, ATTR_SEG(X86_FS))),
    [0xa1] = ALL4(IMPLICIT(POP_SEG, D64, NONE, STACK, ATTR_SEG(X86_FS))),
    [0xa2] = ALL4(IMPLICIT(CPUID, NONE, NONE, CPUID, 0)),
    [0xa3] = BT_ROW(E_R, 0),
    [0xa4] = ALL4(ROW(COPY, V, OP, E_RW | G_R, SHIFT, RM, .imm = IMM_UB)), /* SHLD */
    [0xa5] = ALL4(ROW(COPY, V, OP, E_RW | G_R, SHIFT, RM, .implicit = IMPL_SHIFT_CL)),
    [0xa8] = ALL4(IMPLICIT(PUSH_SEG, D64, NONE, STACK, ATTR_SEG(X86_GS))),
    [0xa9] = ALL4(IMPLICIT(POP_SEG, D64, NONE, STACK, ATTR_SEG(X86_GS))),
    [0xab] = BT_ROW(E_RW, ATTR_LOCK),
    [0xac] = ALL4(ROW(COPY, V, OP, E_RW | G_R, SHIFT, RM, .imm = IMM_UB)), /* SHRD */
    [0xad] = ALL4(ROW(COPY, V, OP, E_RW | G_R, SHIFT, RM, .implicit = IMPL_SHIFT_CL)),
    [0xae] = {GROUP(15, 0), GROUP(15_66, 0), GROUP(15_F3, 0), NONE_},
    [0xaf] = ALL4(ROW(COPY, V, OP, E_R | G_RW, MUL, RM)),
    [0xb0] = ALL4(ROW(COPY, B, OP, E_RW | G_R, ALU, RM | ATTR_BYTE | ATTR_LOCK, .implicit = IMPL_A_RW)),
    [0xb1] = ALL4(ROW(COPY, V, OP, E_RW | G_R, ALU, RM | ATTR_LOCK, .implicit = IMPL_A_RW)),
    [0xb2] = ALL4(ROW(LOAD_FAR_PTR, V, FAR, M_R | G_W, NONE, RM | ATTR_MEM | ATTR_SEG(X86_SS))),
    [0xb3] = BT_ROW(E_RW, ATTR_LOCK),
    [0xb4] = ALL4(ROW(LOAD_FAR_PTR, V, FAR, M_R | G_W, NONE, RM | ATTR_MEM | ATTR_SEG(X86_FS))),
    [0xb5] = ALL4(ROW(LOAD_FAR_PTR, V, FAR, M_R | G_W, NONE, RM | ATTR_MEM | ATTR_SEG(X86_GS))),
    [0xb6] = ALL4(ROW(COPY, V, 1, E_R | G_W, NONE, RM | ATTR_BYTE_RM)), /* MOVZX */
    [0xb7] = ALL4(ROW(COPY, V, 2, E_R | G_W, NONE, RM)),
    [0xb8] = {NONE_, NONE_, ROW(COPY, V, OP, E_R | G_W, ALU, RM | ATTR_MANDATORY), NONE_}, /* POPCNT */
    [0xb9] = ALL4(ROW(UD, NONE, NONE, 0, READ_ALL, RM)), /* UD1 */
    [0xba] = ALL4(GROUP(8, 0, .size = SZ_V, .imm = IMM_UB)),
    [0xbb] = BT_ROW(E_RW, ATTR_LOCK),
#define SCAN                                                                                   \
    {ROW(COPY, V, OP, E_R | G_RW, BSF, RM), ROW(COPY, V, OP, E_R | G_RW, BSF, RM),             \
     ROW(COPY, V, OP, E_R | G_W, LZCNT, RM | ATTR_MANDATORY), ROW(COPY, V, OP, E_R | G_RW, BSF, RM)}
    [0xbc] = SCAN, /* BSF, TZCNT */
    [0xbd] = SCAN, /* BSR, LZCNT */
    [0xbe] = ALL4(ROW(COPY, V, 1, E_R | G_W, NONE, RM | ATTR_BYTE_RM)), /* MOVSX */
    [0xbf] = ALL4(ROW(COPY, V, 2, E_R | G_W, NONE, RM)),
    [0xc0] = ALL4(ROW(COPY, B, OP, E_RW | G_RW, ALU, RM | ATTR_BYTE | ATTR_LOCK)), /* XADD */
    [0xc1] = ALL4(ROW(COPY, V, OP, E_RW | G_RW, ALU, RM | ATTR_LOCK)),
    [0xc2] = {SSE(16, M_R, .imm = IMM_UB), SSE(16, M_R, .imm = IMM_UB), SSE(4, M_R, .imm = IMM_UB), SSE(8, M_R, .imm = IMM_UB)},
    [0xc3] = {ROW(COPY, Y, OP, M_W | G_R, NONE, RM | ATTR_MEM), NONE_, NONE_, NONE_}, /* MOVNTI */
    [0xc4] = {ROW(COPY, Y, 2, E_R, NONE, RM | INSN_MMX, .imm = IMM_UB), GPR(Y, 2, E_R, NONE, .imm = IMM_UB), NONE_, NONE_},
    [0xc5] = {ROW(COPY, Y, NONE, G_W, NONE, RM | INSN_MMX | ATTR_REG, .imm = IMM_UB),
              ROW(COPY, Y, NONE, G_W, NONE, RM | INSN_SSE | ATTR_MANDATORY | ATTR_REG, .imm = IMM_UB), NONE_, NONE_},
    [0xc6] = {SSE(16, M_R, .imm = IMM_UB), SSE(16, M_R, .imm = IMM_UB), NONE_, NONE_},
    [0xc7] = {GROUP(9, 0), GROUP(9_66, 0), GROUP(9_F3, 0), GROUP(9_F3, 0)},
    [0xc8 ... 0xcf] = ALL4(ROW(COPY, V, NONE, G_RW, NONE, ATTR_OPREG)), /* BSWAP */
    [0xd0] = {NONE_, SSE(16, M_R), NONE_, SSE(16, M_R)},
    [0xd1 ... 0xd5] = MMX_SSE,
    [0xd6] = {NONE_, SSE(8, M_W), SSE_A(NONE, 0, ATTR_REG | INSN_MMX), SSE_A(NONE, 0, ATTR_REG | INSN_MMX)},
    [0xd7] = {ROW(COPY, Y, NONE, G_W, NONE, RM | INSN_MMX | ATTR_REG),
              ROW(COPY, Y, NONE, G_W, NONE, RM | INSN_SSE | ATTR_MANDATORY | ATTR_REG), NONE_, NONE_},
    [0xd8 ... 0xe5] = MMX_SSE,
    [0xe6] = {NONE_, SSE(16, M_R), SSE(8, M_R), SSE(16, M_R)},
    [0xe7] = {MMX_A(8, M_W, ATTR_MEM), SSE_A(16, M_W, ATTR_MEM), NONE_, NONE_},
    [0xe8 ... 0xef] = MMX_SSE,
    [0xf0] = {NONE_, NONE_, NONE_, SSE_A(16, M_R, ATTR_MEM)},
    [0xf1 ... 0xf6] = MMX_SSE,
    [0xf7] = {ROW(MASKMOV, NONE, NONE, 0, NONE, RM | INSN_MMX | ATTR_REG, .implicit = IMPL_DI_R),
              ROW(MASKMOV, NONE, NONE, 0, NONE, RM | INSN_SSE | ATTR_MANDATORY | ATTR_REG, .implicit = IMPL_DI_R), NONE_, NONE_},
    [0xf8 ... 0xfe] = MMX_SSE,
    [0xff] = ALL4(ROW(UD, NONE, NONE, 0, READ_ALL, RM)), /* UD0 */
};

#define ADX(flags) ROW(COPY, Y, OP, E_R | G_RW, flags, RM | ATTR_MANDATORY)
#define MOVBE_LOAD ROW(COPY, V, OP, M_R | G_W, NONE, RM | ATTR_MEM)
#define MOVBE_STORE ROW(COPY, V, OP, M_W | G_R, NONE, RM | ATTR_MEM)
#define SSE66M(mem) {NONE_, SSE(mem, M_R), NONE_, NONE_}
#define SSENP {ROW(COPY, NONE, 16, M_R, NONE, RM | INSN_SSE), NONE_, NONE_, NONE_}

const struct insn_desc insn_map_0f38[256][PP_COUNT] = {
    [0x00 ... 0x0b] = MMX_SSE,
    [0x10] = SSE66, [0x14 ... 0x15] = SSE66,
    [0x17] = {NONE_, GPR(NONE, 16, M_R, ALU), NONE_, NONE_}, /* PTEST */
    [0x1c ... 0x1e] = MMX_SSE,
    [0x20] = SSE66M(8), [0x21] = SSE66M(4), [0x22] = SSE66M(2), /* PMOVSX */
    [0x23] = SSE66M(8), [0x24] = SSE66M(4), [0x25] = SSE66M(8),
    [0x28 ... 0x29] = SSE66,
    [0x2a] = {NONE_, SSE_A(16, M_R, ATTR_MEM), NONE_, NONE_},
    [0x2b] = SSE66,
    [0x30] = SSE66M(8), [0x31] = SSE66M(4), [0x32] = SSE66M(2), /* PMOVZX */
    [0x33] = SSE66M(8), [0x34] = SSE66M(4), [0x35] = SSE66M(8),
    [0x37 ... 0x41] = SSE66,
    [0x82] = {NONE_, ROW(INVPCID, CR, 16, M_R | G_R, NONE, RM | ATTR_MEM | ATTR_MANDATORY), NONE_, NONE_},
    [0xc8 ... 0xcd] = SSENP, /* SHA */
    [0xdb ... 0xdf] = SSE66, /* AES */
    [0xf0] = {MOVBE_LOAD, MOVBE_LOAD, NONE_,
              ROW(COPY, Y, 1, E_R | G_RW, NONE, RM | ATTR_MANDATORY | ATTR_BYTE_RM)}, /* CRC32 */
    [0xf1] = {MOVBE_STORE, MOVBE_STORE, NONE_, ROW(COPY, V, OP, E_R | G_RW, NONE, RM | ATTR_MANDATORY)},
    [0xf6] = {NONE_, ADX(CMC), ADX(ADOX), NONE_}, /* ADCX, ADOX */
};

#define SSE66I(mem) {NONE_, SSE(mem, M_R, .imm = IMM_UB), NONE_, NONE_}
#define STR_CMP(flags, implicit_) \
    {NONE_, GPR(NONE, 16, M_R, flags, .imm = IMM_UB, .implicit = IMPL_##implicit_), NONE_, NONE_}

const struct insn_desc insn_map_0f3a[256][PP_COUNT] = {
    [0x08] = SSE66I(16), [0x09] = SSE66I(16), [0x0a] = SSE66I(4), [0x0b] = SSE66I(8), /* ROUND */
    [0x0c ... 0x0e] = SSE66I(16),
    [0x0f] = {MMX(8, M_R, .imm = IMM_UB), SSE(16, M_R, .imm = IMM_UB), NONE_, NONE_},
    [0x14] = {NONE_, GPR(Y, 1, E_W, NONE, .imm = IMM_UB), NONE_, NONE_}, /* PEXTR */
    [0x15] = {NONE_, GPR(Y, 2, E_W, NONE, .imm = IMM_UB), NONE_, NONE_},
    [0x16] = {NONE_, GPR(Y, OP, E_W, NONE, .imm = IMM_UB), NONE_, NONE_},
    [0x17] = {NONE_, GPR(Y, 4, E_W, NONE, .imm = IMM_UB), NONE_, NONE_},
    [0x20] = {NONE_, GPR(Y, 1, E_R, NONE, .imm = IMM_UB), NONE_, NONE_}, /* PINSR */
    [0x21] = SSE66I(4),
    [0x22] = {NONE_, GPR(Y, OP, E_R, NONE, .imm = IMM_UB), NONE_, NONE_},
    [0x40 ... 0x42] = SSE66I(16), [0x44] = SSE66I(16),
    [0x60] = STR_CMP(ALU, AD_R), [0x61] = STR_CMP(ALU, AD_R_C_W),
    [0x62] = STR_CMP(ALU, NONE), [0x63] = STR_CMP(ALU, C_W),
    [0xcc] = {ROW(COPY, NONE, 16, M_R, NONE, RM | INSN_SSE, .imm = IMM_UB), NONE_, NONE_, NONE_}, /* SHA1RNDS4 */
    [0xdf] = SSE66I(16),
};
