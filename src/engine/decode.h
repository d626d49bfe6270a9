/*
 * The instruction decoder: bytes to struct insn, driven by tables.
 *
 * It knows every instruction that cpu/cpuid.c can promise to a guest; all other
 * encodings (EVEX, hidden extensions) decode as #UD. It tells what a translator
 * and an interpreter need: length, where each field lies, the memory operand
 * with size and direction, registers and flags read and written, and `op`:
 * INSN_OP_COPY for what may run as a rewritten copy on the host CPU, a name for
 * all that must be handled by hand. Pure functions, any thread. SDM volume 2.
 */
#ifndef CORBEL_ENGINE_DECODE_H
#define CORBEL_ENGINE_DECODE_H

#include "base/compiler.h"
#include "cpu/x86.h"

#include <stdbool.h>
#include <stdint.h>

#define INSN_MAX_BYTES 15

/* Default operand and address size of the code segment. */
enum insn_mode { INSN_MODE_16, INSN_MODE_32, INSN_MODE_64 };

enum insn_op {
    /*
     * The result depends only on GPRs, arithmetic flags and DF, x87/MMX/vector
     * state and at most one memory operand, and touches nothing else: a copy
     * with its memory operand rewritten computes it on the host. Includes ALU,
     * MOV, CMOV, SETcc, shifts, bit tests with immediate or register operand,
     * XCHG, XADD, CMPXCHG(8B/16B) with or without LOCK, x87, SSE, AVX ...
     */
    INSN_OP_COPY,
    INSN_OP_NOP, /* NOP, ENDBR, prefetches, hints, fences stay COPY */
    INSN_OP_LEA,
    INSN_OP_BIT_MEM, /* BT/BTS/BTR/BTC m, r: the bit offset moves the address */
    INSN_OP_PUSH,    /* register, immediate or memory; segment: INSN_OP_PUSH_SEG */
    INSN_OP_POP,
    INSN_OP_PUSH_SEG,
    INSN_OP_POP_SEG,
    INSN_OP_PUSHA,
    INSN_OP_POPA,
    INSN_OP_PUSHF,
    INSN_OP_POPF,
    INSN_OP_ENTER,
    INSN_OP_LEAVE,
    INSN_OP_JCC, /* cond */
    INSN_OP_JCXZ,
    INSN_OP_LOOP, /* LOOP, LOOPE, LOOPNE: opcode tells */
    INSN_OP_JMP,  /* relative */
    INSN_OP_JMP_IND,
    INSN_OP_JMP_FAR,     /* ptr16:16/32 */
    INSN_OP_JMP_FAR_IND, /* m16:16/32/64 */
    INSN_OP_CALL,
    INSN_OP_CALL_IND,
    INSN_OP_CALL_FAR,
    INSN_OP_CALL_FAR_IND,
    INSN_OP_RET, /* with or without imm16 */
    INSN_OP_RET_FAR,
    INSN_OP_IRET,
    INSN_OP_INT,
    INSN_OP_INT3,
    INSN_OP_INT1,
    INSN_OP_INTO,
    INSN_OP_BOUND,
    INSN_OP_MOVS, /* string instructions: opsize_bytes is the element */
    INSN_OP_CMPS,
    INSN_OP_STOS,
    INSN_OP_LODS,
    INSN_OP_SCAS,
    INSN_OP_INS,
    INSN_OP_OUTS,
    INSN_OP_IN, /* opsize_bytes; port from imm8 when imm_bytes == 1, else DX */
    INSN_OP_OUT,
    INSN_OP_XLAT,
    INSN_OP_MASKMOV,  /* MASKMOVQ, (V)MASKMOVDQU: implicit [rDI] */
    INSN_OP_GATHER,   /* AVX2 VGATHER*, VPGATHER*: many addresses */
    INSN_OP_VMASKMOV, /* VMASKMOVPS/PD, VPMASKMOVD/Q with memory: masked elements do not fault */
    INSN_OP_SYSCALL,
    INSN_OP_SYSRET,
    INSN_OP_SYSENTER,
    INSN_OP_SYSEXIT,
    INSN_OP_HLT,
    INSN_OP_CLI,
    INSN_OP_STI,
    INSN_OP_CLTS,
    INSN_OP_MOV_FROM_CR,
    INSN_OP_MOV_TO_CR,
    INSN_OP_MOV_FROM_DR,
    INSN_OP_MOV_TO_DR,
    INSN_OP_MOV_FROM_SEG,
    INSN_OP_MOV_TO_SEG,
    INSN_OP_LOAD_FAR_PTR, /* LDS LES LFS LGS LSS: reg_seg tells */
    INSN_OP_LGDT,
    INSN_OP_LIDT,
    INSN_OP_SGDT,
    INSN_OP_SIDT,
    INSN_OP_LLDT,
    INSN_OP_LTR,
    INSN_OP_SLDT,
    INSN_OP_STR,
    INSN_OP_LMSW,
    INSN_OP_SMSW,
    INSN_OP_VERR,
    INSN_OP_VERW,
    INSN_OP_LAR,
    INSN_OP_LSL,
    INSN_OP_ARPL,
    INSN_OP_INVLPG,
    INSN_OP_INVPCID,
    INSN_OP_INVD, /* INVD, WBINVD */
    INSN_OP_RDMSR,
    INSN_OP_WRMSR,
    INSN_OP_RDTSC,
    INSN_OP_RDTSCP,
    INSN_OP_RDPMC,
    INSN_OP_CPUID,
    INSN_OP_XGETBV,
    INSN_OP_XSETBV,
    INSN_OP_XSAVE, /* XSAVE, XSAVEOPT, XSAVEC: by opcode and modrm.reg */
    INSN_OP_XRSTOR,
    INSN_OP_FXSAVE,
    INSN_OP_FXRSTOR,
    INSN_OP_FNSTENV, /* FNSTENV and FNSAVE: hold the x87 instruction pointer, see interp */
    INSN_OP_SWAPGS,
    INSN_OP_RDFSBASE, /* RDFSBASE/RDGSBASE: reg_seg tells */
    INSN_OP_WRFSBASE,
    INSN_OP_STAC,
    INSN_OP_CLAC,
    INSN_OP_BCD, /* DAA DAS AAA AAS AAM AAD SALC: not encodable in 64-bit mode */
    INSN_OP_UD,  /* raises #UD, also UD0/UD1/UD2 and everything not promised */
    INSN_OP_COUNT
};

#define INSN_REG_NONE 0xff
#define INSN_REG_RIP 0x10 /* base of a RIP-relative operand */

#define INSN_MEM_READ 0x1u
#define INSN_MEM_WRITE 0x2u

/* Which state an instruction needs (SDM 3A 2.5 CR0.TS/EM, CR4.OSFXSR, XCR0). */
#define INSN_X87 0x01u
#define INSN_MMX 0x02u
#define INSN_SSE 0x04u
#define INSN_AVX 0x08u
/* Other properties. */
#define INSN_LOCK 0x10u     /* a LOCK prefix that is legal here, or XCHG with memory */
#define INSN_REP 0x20u      /* F3 on a string instruction */
#define INSN_REPNE 0x40u    /* F2 on a string instruction */
#define INSN_BYTE_REG 0x80u /* byte operands: without REX, registers 4-7 are AH CH DH BH */

#define INSN_ENC_LEGACY 0
#define INSN_ENC_VEX2 2
#define INSN_ENC_VEX3 3

struct insn {
    uint8_t bytes[INSN_MAX_BYTES];
    uint8_t len;
    uint8_t mode;  /* enum insn_mode */
    uint8_t op;    /* enum insn_op */
    uint8_t flags; /* INSN_X87 ... */

    uint8_t map; /* 0: one-byte, 1: 0F, 2: 0F38, 3: 0F3A */
    uint8_t opcode;
    uint8_t encoding;  /* INSN_ENC_* */
    uint8_t rex;       /* 0x40-0x4f or 0; for VEX the same bits synthesised */
    uint8_t mandatory; /* 0, 0x66, 0xf2, 0xf3 when it selects the instruction */
    bool has_66;       /* an operand-size prefix is present (also when mandatory) */
    uint8_t vex_vvvv;  /* register number, VEX only */
    bool vex_l;
    uint8_t cond; /* Jcc SETcc CMOVcc: low opcode nibble */

    /* Offsets into bytes; 0 when the field is absent (none can be at 0). */
    uint8_t opcode_off; /* of the last opcode byte */
    uint8_t modrm_off;
    uint8_t sib_off;
    uint8_t disp_off;
    uint8_t imm_off;
    uint8_t disp_bytes;
    uint8_t imm_bytes; /* all immediates together (ENTER: 3, far pointers: 4 or 6) */

    uint8_t opsize_bytes;   /* 1, 2, 4 or 8: operand size of integer forms, element of strings */
    uint8_t addrsize_bytes; /* 2, 4 or 8 */

    uint8_t reg;     /* modrm.reg with REX.R/VEX.R, or the register in the opcode (with REX.B) */
    uint8_t rm;      /* modrm.rm with REX.B when it is a register, else INSN_REG_NONE */
    uint8_t reg_seg; /* enum x86_seg for segment forms */

    /* The memory operand; mem_bytes is 0 when there is none (LEA, NOP: fields set, mem_bytes 0). */
    uint8_t mem_flags; /* INSN_MEM_READ | INSN_MEM_WRITE */
    uint8_t base;      /* GPR, INSN_REG_RIP or INSN_REG_NONE */
    uint8_t index;     /* GPR or INSN_REG_NONE */
    uint8_t scale;     /* 1, 2, 4, 8 */
    uint8_t seg;       /* effective enum x86_seg, override applied */
    uint16_t mem_bytes;
    int64_t disp; /* sign-extended; moffs absolute; RIP: relative to the next instruction */

    uint64_t imm; /* sign- or zero-extended as the instruction uses it; branches: displacement */

    /* Explicit and implicit, address registers included. A full 32/64-bit
     * write is in written only; a partial or conditional one is in both. */
    uint16_t gpr_read;
    uint16_t gpr_written;
    /* Masks of X86_FLAGS_ARITH. written: always overwritten or undefined after
     * it; what is written only sometimes (shift by CL) is in neither and must
     * be taken as read as well: then it is in flags_read. */
    uint16_t flags_read;
    uint16_t flags_written;
    /* Of flags_written, those the SDM leaves undefined. */
    uint16_t flags_undefined;
};

/*
 * Decodes one instruction from at most avail bytes.
 * 0: done (op may be INSN_OP_UD: the guest gets #UD).
 * -ENODATA: more than avail bytes are needed (page end); nothing else is said.
 * -E2BIG: longer than 15 bytes: the guest gets #GP(0).
 */
int insn_decode(const uint8_t *bytes, unsigned avail, enum insn_mode mode, struct insn *ret_insn)
    MUST_CHECK;

/* A short text for logs ("COPY 0f af /r"), not an assembler. Returns out. */
const char *insn_describe(const struct insn *insn, char *out, unsigned out_bytes);

#endif
