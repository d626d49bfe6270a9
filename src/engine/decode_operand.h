/*
 * Operands: sizes, ModRM and SIB, displacements and immediates (SDM 2A 2.1). A part of decode.c,
 * which alone includes it: the compiler makes one function of the whole decoder.
 */
#ifndef CORBEL_ENGINE_DECODE_OPERAND_H
#define CORBEL_ENGINE_DECODE_OPERAND_H

#include "engine/decode_int.h"

#include <string.h>

/* By the row's size; outside 64-bit mode, and in it; without and with a size of 16 bits by prefix
 * and mode; REX.W counts twice. 0: the row has none. */
static const uint8_t operand_sizes[SZ_COUNT][2][4] = {
    [SZ_B] = {{1, 1, 1, 1}, {1, 1, 1, 1}},   [SZ_W] = {{2, 2, 2, 2}, {2, 2, 2, 2}},
    [SZ_D] = {{4, 4, 4, 4}, {4, 4, 4, 4}},   [SZ_Q] = {{8, 8, 8, 8}, {8, 8, 8, 8}},
    [SZ_V] = {{4, 2, 4, 2}, {4, 2, 8, 8}},   [SZ_Z] = {{4, 2, 4, 2}, {4, 2, 4, 4}},
    [SZ_Y] = {{4, 4, 4, 4}, {4, 4, 8, 8}},   [SZ_D64] = {{4, 2, 4, 2}, {8, 2, 8, 8}},
    [SZ_F64] = {{4, 2, 4, 2}, {8, 8, 8, 8}}, [SZ_CR] = {{4, 4, 4, 4}, {8, 8, 8, 8}},
};

static inline uint8_t decode_operand_size(const struct decoder *d)
{
    const bool is_16 = (d->mode == INSN_MODE_16) != d->opsize_prefix;

    return operand_sizes[d->desc.size][d->mode == INSN_MODE_64]
                        [(is_16 ? 1 : 0) | (d->rex >> 2 & 2)];
}

static inline uint16_t memory_size(const struct decoder *d, const struct insn *insn)
{
    static const uint16_t fixed[] = {
        [MEM_1] = 1,   [MEM_2] = 2,   [MEM_4] = 4,     [MEM_8] = 8,      [MEM_10] = 10,
        [MEM_16] = 16, [MEM_32] = 32, [MEM_512] = 512, [MEM_XSAVE] = 576};
    const uint8_t kind = d->desc.mem;
    const uint16_t vl = insn->vex_l ? 32 : 16;

    if (kind == MEM_OP) {
        return insn->opsize_bytes;
    }
    if (kind < ARRAY_LEN(fixed)) {
        return fixed[kind];
    }
    switch (kind) {
    case MEM_2OP:
        return (uint16_t)(2 * insn->opsize_bytes);
    case MEM_FAR:
        return (uint16_t)(2 + insn->opsize_bytes);
    case MEM_DT:
        return d->mode == INSN_MODE_64 ? 10 : 6;
    case MEM_VL:
        return vl;
    case MEM_VL2:
        return vl / 2;
    case MEM_VL4:
        return vl / 4;
    case MEM_VL8:
        return vl / 8;
    case MEM_DUP:
        return insn->vex_l ? 32 : 8;
    case MEM_SXD:
        return insn->opsize_bytes == 2 ? 2 : 4;
    case MEM_VW:
        return d->vex_w ? 8 : 4;
    case MEM_ENV:
        return insn->opsize_bytes == 2 ? 14 : 28;
    default: /* MEM_SAVE */
        return insn->opsize_bytes == 2 ? 94 : 108;
    }
}

/* Little-endian, of 1 to 8 bytes; what is behind them is there to be read. */
static inline uint64_t load_unsigned(const uint8_t *bytes, unsigned count)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return value << (64 - 8 * count) >> (64 - 8 * count);
}

/* The same with a sign; 0 bytes are 0. */
static inline int64_t load_signed(const uint8_t *bytes, unsigned count)
{
    const unsigned half = 32 - 4 * count;
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return (int64_t)(value << half << half) >> half >> half;
}

static inline void take_disp(struct decoder *d, struct insn *insn, unsigned count)
{
    insn->disp_off = count != 0 ? (uint8_t)d->pos : 0;
    insn->disp_bytes = (uint8_t)count;
    insn->disp = load_signed(d->bytes + d->pos, count);
    d->pos += count;
}

/* 16-bit addressing (SDM 2A table 2-1). */
static inline void read_address_16(struct decoder *d, struct insn *insn)
{
    static const uint8_t bases[8] = {X86_RBX, X86_RBX, X86_RBP, X86_RBP,
                                     X86_RSI, X86_RDI, X86_RBP, X86_RBX};
    static const uint8_t indexes[8] = {X86_RSI,       X86_RDI,       X86_RSI,       X86_RDI,
                                       INSN_REG_NONE, INSN_REG_NONE, INSN_REG_NONE, INSN_REG_NONE};
    const unsigned mod = d->modrm >> 6;
    const unsigned rm = d->modrm & 7;

    if (mod == 0 && rm == 6) {
        take_disp(d, insn, 2);
        return;
    }
    insn->base = bases[rm];
    insn->index = indexes[rm];
    if (insn->base == X86_RBP) {
        insn->seg = X86_SS;
    }
    take_disp(d, insn, mod);
}

/* 32- and 64-bit addressing (SDM 2A tables 2-2, 2-3 and 2.2.1.6). */
static inline void read_address(struct decoder *d, struct insn *insn)
{
    const unsigned mod = d->modrm >> 6;
    const uint8_t rex_b = (uint8_t)((d->rex & 1) << 3);
    const uint8_t rex_x = (uint8_t)((d->rex & 2) << 2);
    unsigned base = d->modrm & 7;
    unsigned disp_bytes = mod == 2 ? 4 : mod;

    if (base == 4) {
        const uint8_t sib = d->bytes[d->pos];
        const uint8_t index = ((sib >> 3) & 7) | rex_x;

        insn->sib_off = (uint8_t)d->pos++;
        if (index != 4 || (d->desc.attr & ATTR_VSIB) != 0) {
            insn->index = index;
            insn->scale = (uint8_t)(1u << (sib >> 6));
        }
        base = sib & 7;
        if (base == 5 && mod == 0) {
            take_disp(d, insn, 4);
            return;
        }
    } else if (base == 5 && mod == 0) {
        insn->base = d->mode == INSN_MODE_64 ? INSN_REG_RIP : INSN_REG_NONE;
        take_disp(d, insn, 4);
        return;
    }
    insn->base = (uint8_t)(base | rex_b);
    if (insn->base == X86_RSP || insn->base == X86_RBP) {
        insn->seg = X86_SS;
    }
    take_disp(d, insn, disp_bytes);
}

static inline void decode_modrm_operand(struct decoder *d, struct insn *insn)
{
    insn->modrm_off = (uint8_t)(d->pos - 1);
    insn->reg = (uint8_t)(((d->modrm >> 3) & 7) | (d->rex & 4) << 1);
    if (d->modrm >= 0xc0 || (d->desc.attr & ATTR_MODLESS) != 0) {
        insn->rm = (uint8_t)((d->modrm & 7) | (d->rex & 1) << 3);
        return;
    }
    if (insn->addrsize_bytes == 2) {
        read_address_16(d, insn);
    } else {
        read_address(d, insn);
    }
    insn->mem_bytes = memory_size(d, insn);
    insn->mem_flags = d->desc.access & 3;
}

/* Bytes of an immediate by kind and, from 1 to 8 by its exponent, operand size. */
static const uint8_t immediate_bytes[IMM_COUNT][4] = {
    [IMM_UB] = {1, 1, 1, 1},   [IMM_SB] = {1, 1, 1, 1}, [IMM_UW] = {2, 2, 2, 2},
    [IMM_Z] = {1, 2, 4, 4},    [IMM_V] = {1, 2, 4, 8},  [IMM_ENTER] = {3, 3, 3, 3},
    [IMM_FAR] = {3, 4, 6, 10},
};

static inline void decode_moffs(struct decoder *d, struct insn *insn)
{
    insn->disp_off = (uint8_t)d->pos;
    insn->disp_bytes = insn->addrsize_bytes;
    insn->disp = (int64_t)load_unsigned(d->bytes + d->pos, insn->addrsize_bytes);
    d->pos += insn->addrsize_bytes;
    insn->mem_bytes = memory_size(d, insn);
    insn->mem_flags = d->desc.access & 3;
}

static inline void decode_immediate(struct decoder *d, struct insn *insn)
{
    const uint8_t kind = d->desc.imm;
    /* No operand size (SSE): as for a byte. */
    const unsigned exponent = (unsigned)__builtin_ctz(insn->opsize_bytes | 16u) & 3u;
    const unsigned count = immediate_bytes[kind][exponent];

    if (kind == IMM_MOFFS) {
        decode_moffs(d, insn);
        return;
    }
    insn->imm_off = (uint8_t)d->pos;
    insn->imm_bytes = (uint8_t)count;
    insn->imm = kind == IMM_SB || kind == IMM_Z
                    ? (uint64_t)load_signed(d->bytes + d->pos, count)
                    : load_unsigned(d->bytes + d->pos, count < 8 ? count : 8);
    d->pos += count;
}

#endif
