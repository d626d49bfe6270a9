/* Which instructions the interpreter does while vector registers are live. */
#include "engine/translate_int.h"

/*
 * Those whose handlers are built for general registers only and call nothing
 * that is not: no FPU state, no CPUID tables, no clocks, no logs.
 */
enum translate_helper translate_helper_for(const struct insn *insn, unsigned mode)
{
    (void)mode;
    if (!LIGHT_INTERP) {
        return HELPER_NONE;
    }
    switch (insn->op) {
    case INSN_OP_MOVS:
    case INSN_OP_CMPS:
    case INSN_OP_STOS:
    case INSN_OP_LODS:
    case INSN_OP_SCAS:
        return HELPER_STRING;
    case INSN_OP_SYSCALL:
    case INSN_OP_SYSRET:
        return HELPER_SYSCALL;
    case INSN_OP_IRET:
    case INSN_OP_INT:
    case INSN_OP_INT3:
        return HELPER_IRET;
    case INSN_OP_CLI:
    case INSN_OP_STI:
    case INSN_OP_PUSHF:
    case INSN_OP_POPF:
        return HELPER_FLAGS;
    case INSN_OP_PUSH_SEG:
    case INSN_OP_POP_SEG:
    case INSN_OP_MOV_FROM_SEG:
    case INSN_OP_MOV_TO_SEG:
    case INSN_OP_WRFSBASE:
    case INSN_OP_VERW:
    case INSN_OP_LSL:
        return HELPER_SEGMENT;
    case INSN_OP_MOV_FROM_CR:
    case INSN_OP_INVLPG:
        return HELPER_CONTROL;
    case INSN_OP_MOV_TO_CR:
        return insn->reg == 2 || insn->reg == 3 ? HELPER_CONTROL : HELPER_NONE;
    case INSN_OP_POP:
    case INSN_OP_UD:
    case INSN_OP_XLAT:
        return HELPER_OTHER;
    default:
        return HELPER_NONE;
    }
}
