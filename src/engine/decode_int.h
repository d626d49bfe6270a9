/*
 * Between the parts of the decoder: prefixes and opcode (decode.c), operands
 * (decode_operand.h), and what an instruction reads and writes (decode_effect.h).
 */
#ifndef CORBEL_ENGINE_DECODE_INT_H
#define CORBEL_ENGINE_DECODE_INT_H

#include "engine/decode.h"
#include "engine/insn_table.h"

/* Prefixes found so far; what the tables select by. */
struct decoder {
    uint8_t
        bytes[48];  /* zero beyond limit, so that fields may be read before the length is known */
    unsigned limit; /* bytes there are, at most INSN_MAX_BYTES */
    unsigned avail;
    unsigned pos;
    enum insn_mode mode;
    uint8_t rex;
    uint8_t rep; /* 0, f2 or f3: the last one counts */
    bool opsize_prefix;
    bool addrsize_prefix;
    bool lock;
    uint8_t seg; /* override, or INSN_REG_NONE */
    uint8_t pp;
    uint8_t modrm;
    bool has_modrm;
    bool is_vex;
    bool vex_w;
    bool vex_has_vvvv;     /* the field is not 1111b */
    struct insn_desc desc; /* merged from opcode row and group row */
};

#endif
