/* Host instruction encoder; see emit.h. SDM 2A chapter 2. */
#include "engine/emit.h"

#define INT3 0xccu
#define PATCHED_AT_ONCE 8u

/*
 * An instruction as it grows, up to eight bytes: it is written at once, for what is appended byte by
 * byte at a pointer in memory waits for that pointer each time. What is behind it is written as well.
 */
struct word {
    uint64_t bytes;
    unsigned bits;
};

static inline void append(struct word *w, unsigned byte)
{
    w->bytes |= (uint64_t)(uint8_t)byte << w->bits;
    w->bits += 8;
}

static inline void append_rex(struct word *w, bool wide, unsigned reg, unsigned index,
                              unsigned base)
{
    unsigned rex = 0x40u | (wide ? 8u : 0u) | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;

    w->bytes |= (uint64_t)(rex != 0x40u ? rex : 0) << w->bits;
    w->bits += rex != 0x40u ? 8 : 0;
}

static inline void emit_word(struct emit *e, const struct word *w)
{
    memcpy(e->p, &w->bytes, sizeof(w->bytes));
    e->p += w->bits / 8;
}

void emit_rr(struct emit *e, bool wide, unsigned opcode, unsigned reg, unsigned rm)
{
    struct word w = {0};

    append_rex(&w, wide, reg, 0, rm);
    append(&w, opcode);
    append(&w, 0xc0u | (reg & 7u) << 3 | (rm & 7u));
    emit_word(e, &w);
}

static unsigned scale_bits(unsigned scale)
{
    return scale == 8 ? 3u : scale >> 1;
}

void emit_mem(struct emit *e, bool wide, unsigned opcode, unsigned reg, unsigned base,
              unsigned index, unsigned scale, int32_t disp)
{
    bool no_base = base == EMIT_NO_REG;
    bool no_index = index == EMIT_NO_REG;
    struct word w = {0};
    bool sib = no_base || !no_index || (base & 7u) == 4;
    unsigned mod = no_base                         ? 0u
                   : disp == 0 && (base & 7u) != 5 ? 0u
                   : disp == (int8_t)disp          ? 1u
                                                   : 2u;

    append_rex(&w, wide, reg, no_index ? 0 : index, no_base ? 0 : base);
    append(&w, opcode);
    append(&w, mod << 6 | (reg & 7u) << 3 | (sib ? 4u : base & 7u));
    if (sib) {
        append(&w, scale_bits(scale) << 6 | (no_index ? 4u : index & 7u) << 3 |
                       (no_base ? 5u : base & 7u));
    }
    w.bytes |= (uint64_t)(uint32_t)disp << w.bits;
    w.bits += mod == 1 ? 8 : mod == 2 || no_base ? 32 : 0;
    emit_word(e, &w);
}

void emit_gs_indexed(struct emit *e, unsigned opcode, unsigned reg, unsigned index, uint32_t offset)
{
    emit_gs_prefix(e);
    emit_mem(e, true, opcode, reg, index, EMIT_NO_REG, 1, emit_gs_disp(e, offset));
}

void emit_gs32(struct emit *e, unsigned opcode, unsigned reg, uint32_t offset)
{
    emit_gs_prefix(e);
    emit_mem(e, false, opcode, reg, EMIT_NO_REG, EMIT_NO_REG, 1, emit_gs_disp(e, offset));
}

void emit_gs_store_imm32(struct emit *e, uint32_t offset, uint32_t value)
{
    emit_gs_prefix(e);
    emit_mem(e, false, 0xc7, 0, EMIT_NO_REG, EMIT_NO_REG, 1, emit_gs_disp(e, offset));
    emit_u32(e, value);
}

void emit_mov_imm32(struct emit *e, unsigned reg, uint32_t value)
{
    struct word w = {0};

    append_rex(&w, false, 0, 0, reg);
    append(&w, 0xb8u | (reg & 7u));
    emit_word(e, &w);
    emit_u32(e, value);
}

void emit_shift_imm(struct emit *e, bool wide, unsigned op, unsigned reg, unsigned count)
{
    emit_rr(e, wide, 0xc1, op, reg);
    emit_u8(e, count);
}

void emit_alu_imm(struct emit *e, bool wide, unsigned op, unsigned reg, int32_t imm)
{
    if (imm == (int8_t)imm) {
        emit_rr(e, wide, 0x83, op, reg);
        emit_u8(e, (uint8_t)imm);
    } else {
        emit_rr(e, wide, 0x81, op, reg);
        emit_u32(e, (uint32_t)imm);
    }
}

void emit_mov(struct emit *e, bool wide, unsigned dst, unsigned src)
{
    emit_rr(e, wide, EMIT_MOV_LOAD, dst, src);
}

void emit_lea(struct emit *e, unsigned dst, unsigned base, int32_t disp)
{
    emit_mem(e, true, EMIT_LEA, dst, base, EMIT_NO_REG, 1, disp);
}

void emit_lea_rip(struct emit *e, unsigned reg)
{
    struct word w = {0};

    append_rex(&w, true, reg, 0, 0);
    append(&w, EMIT_LEA);
    append(&w, (reg & 7u) << 3 | 5u);
    emit_word(e, &w);
    emit_u32(e, 0);
}

/*
 * Pads so that the 4 bytes that follow `before` more bytes lie in one aligned quadword: no
 * CPU fetches half of a store to that (AMD APM 2 7.6.1; Intel's have a cache line).
 */
static unsigned pad_bytes(const struct emit *e, unsigned before)
{
    unsigned at = ((uintptr_t)e->p + before) & (PATCHED_AT_ONCE - 1);

    return at > PATCHED_AT_ONCE - 4 ? PATCHED_AT_ONCE - at : 0;
}

static void pad_for_patch(struct emit *e, unsigned before)
{
    static const uint8_t nops[4][4] = {{0}, {0x90}, {0x66, 0x90}, {0x0f, 0x1f, 0x00}};
    unsigned bytes = pad_bytes(e, before);

    emit_some(e, nops[bytes], sizeof(uint32_t), bytes);
}

uint8_t *emit_jmp_site(const struct emit *e)
{
    return e->p + pad_bytes(e, 1) + 1;
}

uint8_t *emit_jmp(struct emit *e)
{
    pad_for_patch(e, 1);
    emit_u8(e, 0xe9);
    emit_u32(e, 0);
    return e->p - 4;
}

uint8_t *emit_jcc(struct emit *e, unsigned cond)
{
    pad_for_patch(e, 2);
    return emit_jcc_once(e, cond);
}

uint8_t *emit_jcc_once(struct emit *e, unsigned cond)
{
    emit_u8(e, 0x0f);
    emit_u8(e, 0x80u | cond);
    emit_u32(e, 0);
    return e->p - 4;
}

void emit_patch(uint8_t *site, const uint8_t *target)
{
    uint32_t rel = (uint32_t)(target - (site + 4));

    __atomic_store_n((uint32_t *)(void *)site, rel, __ATOMIC_RELEASE);
}

void emit_jmp_to(struct emit *e, const uint8_t *target)
{
    emit_u8(e, 0xe9);
    emit_u32(e, (uint32_t)(target - (e->p + 4)));
}

void emit_jcc_to(struct emit *e, unsigned cond, const uint8_t *target)
{
    emit_u8(e, 0x0f);
    emit_u8(e, 0x80u | cond);
    emit_u32(e, (uint32_t)(target - (e->p + 4)));
}

void emit_align(struct emit *e, unsigned bytes)
{
    while (((uintptr_t)e->p & (bytes - 1)) != 0) {
        emit_u8(e, INT3);
    }
}
