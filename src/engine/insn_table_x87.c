#include "engine/insn_table.h"

/* clang-format off */

#define NONE_ {0}
#define F(mem, access) ROW(COPY, NONE, mem, access, NONE, 0)
#define FR(flags) ROW(COPY, NONE, NONE, 0, flags, 0)
#define EIGHT(row) row, row, row, row, row, row, row, row

const struct insn_desc insn_x87_mem[8][8] = {
    [0] = {EIGHT(F(4, M_R))},
    [1] = {F(4, M_R), NONE_, F(4, M_W), F(4, M_W), /* FLD FST FSTP */
           ROW(COPY, V, ENV, M_R, NONE, 0),        /* FLDENV */
           F(2, M_R),                              /* FLDCW */
           ROW(FNSTENV, V, ENV, M_W, NONE, 0), F(2, M_W)},
    [2] = {EIGHT(F(4, M_R))},
    [3] = {F(4, M_R), F(4, M_W), F(4, M_W), F(4, M_W), /* FILD FISTTP FIST FISTP */
           NONE_, F(10, M_R), NONE_, F(10, M_W)},
    [4] = {EIGHT(F(8, M_R))},
    [5] = {F(8, M_R), F(8, M_W), F(8, M_W), F(8, M_W),
           ROW(COPY, V, SAVE, M_R, NONE, 0), /* FRSTOR */
           NONE_, ROW(FNSTENV, V, SAVE, M_W, NONE, 0), F(2, M_W)},
    [6] = {EIGHT(F(2, M_R))},
    [7] = {F(2, M_R), F(2, M_W), F(2, M_W), F(2, M_W),
           F(10, M_R), F(8, M_R), F(10, M_W), F(8, M_W)}, /* FBLD FILD FBSTP FISTP */
};

const struct insn_desc insn_x87_reg[8][64] = {
    [0] = {[0x00 ... 0x3f] = FR(NONE)},
    [1] = {[0x00 ... 0x0f] = FR(NONE), /* FLD FXCH */
           [0x10] = FR(NONE),          /* FNOP */
           [0x18 ... 0x1f] = FR(NONE), /* FSTP */
           [0x20 ... 0x21] = FR(NONE), [0x24 ... 0x25] = FR(NONE),
           [0x28 ... 0x2e] = FR(NONE), [0x30 ... 0x3f] = FR(NONE)},
    [2] = {[0x00 ... 0x07] = FR(READ_CF), [0x08 ... 0x0f] = FR(READ_ZF), /* FCMOV */
           [0x10 ... 0x17] = FR(READ_BE), [0x18 ... 0x1f] = FR(READ_PF),
           [0x29] = FR(NONE)}, /* FUCOMPP */
    [3] = {[0x00 ... 0x07] = FR(READ_CF), [0x08 ... 0x0f] = FR(READ_ZF),
           [0x10 ... 0x17] = FR(READ_BE), [0x18 ... 0x1f] = FR(READ_PF),
           [0x20 ... 0x24] = FR(NONE), /* FNENI FNDISI FNCLEX FNINIT FNSETPM */
           [0x28 ... 0x37] = FR(FCOMI)},
    [4] = {[0x00 ... 0x3f] = FR(NONE)},
    [5] = {[0x00 ... 0x2f] = FR(NONE)}, /* FFREE FXCH FST FSTP FUCOM FUCOMP */
    [6] = {[0x00 ... 0x17] = FR(NONE), [0x19] = FR(NONE), [0x20 ... 0x3f] = FR(NONE)},
    [7] = {[0x00 ... 0x1f] = FR(NONE),
           [0x20] = ROW(COPY, NONE, NONE, 0, NONE, 0, .implicit = IMPL_A_RW), /* FNSTSW AX */
           [0x28 ... 0x37] = FR(FCOMI)},
};
