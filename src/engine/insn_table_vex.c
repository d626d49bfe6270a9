#include "engine/insn_table.h"

/* clang-format off */

#define NONE_ {0}
/* A vector instruction with vvvv as a source; _1: without. a: more attributes. */
#define V(mem, access, a, ...) ROW(COPY, NONE, mem, access, NONE, RM | INSN_AVX | (a), __VA_ARGS__)
#define V1(mem, access, a, ...) V(mem, access, ATTR_NV | (a), __VA_ARGS__)
/* With a GPR operand. */
#define VG(size, mem, access, a, ...) \
    ROW(COPY, size, mem, access, NONE, RM | INSN_AVX | ATTR_NV | (a), __VA_ARGS__)
#define ARITH {V(VL, M_R, 0), V(VL, M_R, 0), V(4, M_R, 0), V(8, M_R, 0)}
#define PACKED2 {V(VL, M_R, 0), V(VL, M_R, 0), NONE_, NONE_}
#define P66(row) {NONE_, row, NONE_, NONE_}
#define V66 P66(V(VL, M_R, 0))
#define UB .imm = IMM_UB
#define VFLAGS(mem, a) ROW(COPY, NONE, mem, M_R, ALU, RM | INSN_AVX | ATTR_NV | (a))

const struct insn_desc insn_vex_0f[256][PP_COUNT] = {
    [0x10] = {V1(VL, M_R, 0), V1(VL, M_R, 0), V(4, M_R, ATTR_NV_MEM), V(8, M_R, ATTR_NV_MEM)},
    [0x11] = {V1(VL, M_W, 0), V1(VL, M_W, 0), V(4, M_W, ATTR_NV_MEM), V(8, M_W, ATTR_NV_MEM)},
    [0x12] = {V(8, M_R, ATTR_L0), V(8, M_R, ATTR_L0 | ATTR_MEM), V1(VL, M_R, 0), V1(DUP, M_R, 0)},
    [0x13] = {V1(8, M_W, ATTR_L0 | ATTR_MEM), V1(8, M_W, ATTR_L0 | ATTR_MEM), NONE_, NONE_},
    [0x14 ... 0x15] = PACKED2,
    [0x16] = {V(8, M_R, ATTR_L0), V(8, M_R, ATTR_L0 | ATTR_MEM), V1(VL, M_R, 0), NONE_},
    [0x17] = {V1(8, M_W, ATTR_L0 | ATTR_MEM), V1(8, M_W, ATTR_L0 | ATTR_MEM), NONE_, NONE_},
    [0x28] = {V1(VL, M_R, 0), V1(VL, M_R, 0), NONE_, NONE_},
    [0x29] = {V1(VL, M_W, 0), V1(VL, M_W, 0), NONE_, NONE_},
#define CVTSI ROW(COPY, Y, OP, E_R, NONE, RM | INSN_AVX)
    [0x2a] = {NONE_, NONE_, CVTSI, CVTSI},
    [0x2b] = {V1(VL, M_W, ATTR_MEM), V1(VL, M_W, ATTR_MEM), NONE_, NONE_},
    [0x2c ... 0x2d] = {NONE_, NONE_, VG(Y, 4, M_R | G_W, 0), VG(Y, 8, M_R | G_W, 0)},
    [0x2e ... 0x2f] = {VFLAGS(4, 0), VFLAGS(8, 0), NONE_, NONE_},
    [0x50] = {VG(Y, NONE, G_W, ATTR_REG), VG(Y, NONE, G_W, ATTR_REG), NONE_, NONE_},
    [0x51] = {V1(VL, M_R, 0), V1(VL, M_R, 0), V(4, M_R, 0), V(8, M_R, 0)},
    [0x52 ... 0x53] = {V1(VL, M_R, 0), NONE_, V(4, M_R, 0), NONE_},
    [0x54 ... 0x57] = PACKED2,
    [0x58 ... 0x59] = ARITH,
    [0x5a] = {V1(VL2, M_R, 0), V1(VL, M_R, 0), V(4, M_R, 0), V(8, M_R, 0)},
    [0x5b] = {V1(VL, M_R, 0), V1(VL, M_R, 0), V1(VL, M_R, 0), NONE_},
    [0x5c ... 0x5f] = ARITH,
    [0x60 ... 0x6d] = V66,
    [0x6e] = P66(VG(Y, OP, E_R, ATTR_L0)),
    [0x6f] = {NONE_, V1(VL, M_R, 0), V1(VL, M_R, 0), NONE_},
    [0x70] = {NONE_, V1(VL, M_R, 0, UB), V1(VL, M_R, 0, UB), V1(VL, M_R, 0, UB)},
    [0x71] = P66(GROUP(VEX_12, INSN_AVX, UB)),
    [0x72] = P66(GROUP(VEX_13, INSN_AVX, UB)),
    [0x73] = P66(GROUP(VEX_14, INSN_AVX, UB)),
    [0x74 ... 0x76] = V66,
    [0x77] = {ROW(COPY, NONE, NONE, 0, NONE, INSN_AVX | ATTR_NV), NONE_, NONE_, NONE_},
    [0x7c ... 0x7d] = {NONE_, V(VL, M_R, 0), NONE_, V(VL, M_R, 0)},
    [0x7e] = {NONE_, VG(Y, OP, E_W, ATTR_L0), V1(8, M_R, ATTR_L0), NONE_},
    [0x7f] = {NONE_, V1(VL, M_W, 0), V1(VL, M_W, 0), NONE_},
    [0xae] = {GROUP(VEX_15, INSN_AVX | ATTR_L0 | ATTR_NV), NONE_, NONE_, NONE_},
    [0xc2] = {V(VL, M_R, 0, UB), V(VL, M_R, 0, UB), V(4, M_R, 0, UB), V(8, M_R, 0, UB)},
    [0xc4] = P66(ROW(COPY, Y, 2, E_R, NONE, RM | INSN_AVX | ATTR_L0, UB)),
    [0xc5] = P66(VG(Y, NONE, G_W, ATTR_REG | ATTR_L0, UB)),
    [0xc6] = {V(VL, M_R, 0, UB), V(VL, M_R, 0, UB), NONE_, NONE_},
    [0xd0] = {NONE_, V(VL, M_R, 0), NONE_, V(VL, M_R, 0)},
    /* Shifts take a count of 16 bytes. */
    [0xd1 ... 0xd3] = P66(V(16, M_R, 0)),
    [0xd4 ... 0xd5] = V66,
    [0xd6] = P66(V1(8, M_W, ATTR_L0)),
    [0xd7] = P66(VG(Y, NONE, G_W, ATTR_REG)),
    [0xd8 ... 0xe0] = V66,
    [0xe1 ... 0xe2] = P66(V(16, M_R, 0)),
    [0xe3 ... 0xe5] = V66,
    [0xe6] = {NONE_, V1(VL, M_R, 0), V1(VL2, M_R, 0), V1(VL, M_R, 0)},
    [0xe7] = P66(V1(VL, M_W, ATTR_MEM)),
    [0xe8 ... 0xef] = V66,
    [0xf0] = {NONE_, NONE_, NONE_, V1(VL, M_R, ATTR_MEM)},
    [0xf1 ... 0xf3] = P66(V(16, M_R, 0)),
    [0xf4 ... 0xf6] = V66,
    [0xf7] = P66(ROW(MASKMOV, NONE, NONE, 0, NONE, RM | INSN_AVX | ATTR_REG | ATTR_L0 | ATTR_NV, .implicit = IMPL_DI_R)),
    [0xf8 ... 0xfe] = V66,
};

#define MASKED(access, a) ROW(VMASKMOV, NONE, VL, access, NONE, RM | INSN_AVX | ATTR_MEM | (a))
#define GATHER ROW(GATHER, NONE, VW, M_R, NONE, RM | INSN_AVX | ATTR_MEM | ATTR_VSIB)
#define FMA P66(V(VL, M_R, 0))
#define FMA_S P66(V(VW, M_R, 0))
/* GPR-only instructions in VEX: no AVX state. */
#define BMI(access, flags) ROW(COPY, Y, OP, access, flags, RM | ATTR_L0)

const struct insn_desc insn_vex_0f38[256][PP_COUNT] = {
    [0x00 ... 0x0b] = V66,
    [0x0c ... 0x0d] = P66(V(VL, M_R, ATTR_W0)),
    [0x0e ... 0x0f] = P66(VFLAGS(VL, ATTR_W0)),
    [0x13] = P66(V1(VL2, M_R, ATTR_W0)), /* VCVTPH2PS */
    [0x16] = P66(V(VL, M_R, ATTR_W0 | ATTR_L1)),
    [0x17] = P66(VFLAGS(VL, 0)),
    [0x18] = P66(V1(4, M_R, ATTR_W0)),
    [0x19] = P66(V1(8, M_R, ATTR_W0 | ATTR_L1)),
    [0x1a] = P66(V1(16, M_R, ATTR_W0 | ATTR_L1 | ATTR_MEM)),
    [0x1c ... 0x1e] = P66(V1(VL, M_R, 0)),
    [0x20] = P66(V1(VL2, M_R, 0)), [0x21] = P66(V1(VL4, M_R, 0)), [0x22] = P66(V1(VL8, M_R, 0)),
    [0x23] = P66(V1(VL2, M_R, 0)), [0x24] = P66(V1(VL4, M_R, 0)), [0x25] = P66(V1(VL2, M_R, 0)),
    [0x28 ... 0x29] = V66,
    [0x2a] = P66(V1(VL, M_R, ATTR_MEM)),
    [0x2b] = V66,
    [0x2c ... 0x2d] = P66(MASKED(M_R, ATTR_W0)),
    [0x2e ... 0x2f] = P66(MASKED(M_W, ATTR_W0)),
    [0x30] = P66(V1(VL2, M_R, 0)), [0x31] = P66(V1(VL4, M_R, 0)), [0x32] = P66(V1(VL8, M_R, 0)),
    [0x33] = P66(V1(VL2, M_R, 0)), [0x34] = P66(V1(VL4, M_R, 0)), [0x35] = P66(V1(VL2, M_R, 0)),
    [0x36] = P66(V(VL, M_R, ATTR_W0 | ATTR_L1)),
    [0x37 ... 0x40] = V66,
    [0x41] = P66(V1(16, M_R, ATTR_L0)),
    [0x45] = V66, [0x46] = P66(V(VL, M_R, ATTR_W0)), [0x47] = V66,
    [0x58] = P66(V1(4, M_R, ATTR_W0)), [0x59] = P66(V1(8, M_R, ATTR_W0)),
    [0x5a] = P66(V1(16, M_R, ATTR_W0 | ATTR_L1 | ATTR_MEM)),
    [0x78] = P66(V1(1, M_R, ATTR_W0)), [0x79] = P66(V1(2, M_R, ATTR_W0)),
    [0x8c] = P66(MASKED(M_R, 0)), [0x8e] = P66(MASKED(M_W, 0)),
    [0x90 ... 0x93] = P66(GATHER),
    /* FMA: x9/xb/xd/xf of each 132/213/231 block are the scalar forms. */
#define FMA_BLOCK(o)                                                                          \
    [(o)] = FMA, [(o) + 1] = FMA, [(o) + 2] = FMA, [(o) + 3] = FMA_S, [(o) + 4] = FMA,        \
    [(o) + 5] = FMA_S, [(o) + 6] = FMA, [(o) + 7] = FMA_S, [(o) + 8] = FMA, [(o) + 9] = FMA_S
    FMA_BLOCK(0x96), FMA_BLOCK(0xa6), FMA_BLOCK(0xb6),
    [0xdb] = P66(V1(16, M_R, ATTR_L0)),
    [0xdc ... 0xdf] = P66(V(16, M_R, ATTR_L0)),
    [0xf2] = {BMI(E_R | G_W | ACC_VVVV(ACC_R), ANDN), NONE_, NONE_, NONE_},
    [0xf3] = {GROUP(VEX_17, ATTR_L0), NONE_, NONE_, NONE_},
    [0xf5] = {BMI(E_R | G_W | ACC_VVVV(ACC_R), ANDN), NONE_, /* BZHI */
              BMI(E_R | G_W | ACC_VVVV(ACC_R), NONE), BMI(E_R | G_W | ACC_VVVV(ACC_R), NONE)},
    [0xf6] = {NONE_, NONE_, NONE_, /* MULX */
              ROW(COPY, Y, OP, E_R | G_W | ACC_VVVV(ACC_W), NONE, RM | ATTR_L0, .implicit = IMPL_D_R)},
    [0xf7] = {BMI(E_R | G_W | ACC_VVVV(ACC_R), BEXTR), BMI(E_R | G_W | ACC_VVVV(ACC_R), NONE),
              BMI(E_R | G_W | ACC_VVVV(ACC_R), NONE), BMI(E_R | G_W | ACC_VVVV(ACC_R), NONE)},
};

#define STR_CMP(implicit_) \
    P66(ROW(COPY, Y, 16, M_R, ALU, RM | INSN_AVX | ATTR_NV | ATTR_L0, UB, .implicit = IMPL_##implicit_))

const struct insn_desc insn_vex_0f3a[256][PP_COUNT] = {
    [0x00 ... 0x01] = P66(V1(VL, M_R, ATTR_W1 | ATTR_L1, UB)),
    [0x02] = P66(V(VL, M_R, ATTR_W0, UB)),
    [0x04 ... 0x05] = P66(V1(VL, M_R, ATTR_W0, UB)),
    [0x06] = P66(V(32, M_R, ATTR_W0 | ATTR_L1, UB)),
    [0x08 ... 0x09] = P66(V1(VL, M_R, 0, UB)),
    [0x0a] = P66(V(4, M_R, 0, UB)), [0x0b] = P66(V(8, M_R, 0, UB)),
    [0x0c ... 0x0f] = P66(V(VL, M_R, 0, UB)),
    [0x14] = P66(VG(Y, 1, E_W, ATTR_L0, UB)), [0x15] = P66(VG(Y, 2, E_W, ATTR_L0, UB)),
    [0x16] = P66(VG(Y, OP, E_W, ATTR_L0, UB)), [0x17] = P66(VG(Y, 4, E_W, ATTR_L0, UB)),
    [0x18] = P66(V(16, M_R, ATTR_W0 | ATTR_L1, UB)),
    [0x19] = P66(V1(16, M_W, ATTR_W0 | ATTR_L1, UB)),
    [0x1d] = P66(V1(VL2, M_W, ATTR_W0, UB)), /* VCVTPS2PH */
    [0x20] = P66(ROW(COPY, Y, 1, E_R, NONE, RM | INSN_AVX | ATTR_L0, UB)),
    [0x21] = P66(V(4, M_R, ATTR_L0, UB)),
    [0x22] = P66(ROW(COPY, Y, OP, E_R, NONE, RM | INSN_AVX | ATTR_L0, UB)),
    [0x38] = P66(V(16, M_R, ATTR_W0 | ATTR_L1, UB)),
    [0x39] = P66(V1(16, M_W, ATTR_W0 | ATTR_L1, UB)),
    [0x40] = P66(V(VL, M_R, 0, UB)), [0x41] = P66(V(16, M_R, ATTR_L0, UB)),
    [0x42] = P66(V(VL, M_R, 0, UB)), [0x44] = P66(V(16, M_R, ATTR_L0, UB)),
    [0x46] = P66(V(32, M_R, ATTR_W0 | ATTR_L1, UB)),
    [0x4a ... 0x4c] = P66(V(VL, M_R, ATTR_W0, UB)),
    [0x60] = STR_CMP(AD_R), [0x61] = STR_CMP(AD_R_C_W), [0x62] = STR_CMP(NONE), [0x63] = STR_CMP(C_W),
    [0xdf] = P66(V1(16, M_R, ATTR_L0, UB)),
    [0xf0] = {NONE_, NONE_, NONE_, ROW(COPY, Y, OP, E_R | G_W, NONE, RM | ATTR_L0 | ATTR_NV, UB)}, /* RORX */
};
