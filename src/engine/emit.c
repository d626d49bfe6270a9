/* Host instruction encoder; see emit.h. SDM 2A chapter 2. */
#include "engine/emit.h"

#define INT3 0xccu
#define PATCHED_AT_ONCE 8u

static void emit_rex(struct emit *e, bool wide, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = 0x40u | (wide ? 8u : 0u) | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;

    if (rex != 0x40u) {
        emit_u8(e, rex);
    }
}

void emit_rr(struct emit *e, bool wide, unsigned opcode, unsigned reg, unsigned rm)
{
    emit_rex(e, wide, reg, 0, rm);
    emit_u8(e, opcode);
    emit_u8(e, 0xc0u | (reg & 7u) << 3 | (rm & 7u));
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
    bool sib = no_base || !no_index || (base & 7u) == 4;
    unsigned mod = no_base                         ? 0u
                   : disp == 0 && (base & 7u) != 5 ? 0u
                   : disp == (int8_t)disp          ? 1u
                                                   : 2u;

    emit_rex(e, wide, reg, no_index ? 0 : index, no_base ? 0 : base);
    emit_u8(e, opcode);
    emit_u8(e, mod << 6 | (reg & 7u) << 3 | (sib ? 4u : base & 7u));
    if (sib) {
        emit_u8(e, scale_bits(scale) << 6 | (no_index ? 4u : index & 7u) << 3 |
                       (no_base ? 5u : base & 7u));
    }
    if (mod == 1) {
        emit_u8(e, (uint8_t)disp);
    } else if (mod == 2 || no_base) {
        emit_u32(e, (uint32_t)disp);
    }
}

/* The most frequent of all: prefix, REX, opcode, modrm and SIB at once. */
void emit_gs(struct emit *e, unsigned opcode, unsigned reg, uint32_t offset)
{
    uint64_t head = e->vcpu.seg | (uint64_t)(0x48u | (reg >> 3) << 2) << 8 |
                    (uint64_t)opcode << 16 | (uint64_t)(4u | (reg & 7u) << 3) << 24 |
                    (uint64_t)0x25 << 32;
    int32_t disp = emit_gs_disp(e, offset);

    memcpy(e->p, &head, sizeof(head));
    memcpy(e->p + 5, &disp, sizeof(disp));
    e->p += EMIT_GS_BYTES;
}

void emit_gs_indexed(struct emit *e, unsigned opcode, unsigned reg, unsigned index, uint32_t offset)
{
    emit_gs_prefix(e);
    emit_mem(e, true, opcode, reg, index, EMIT_NO_REG, 1, emit_gs_disp(e, offset));
}

void emit_gs_load(struct emit *e, unsigned reg, uint32_t offset)
{
    emit_gs(e, EMIT_MOV_LOAD, reg, offset);
}

void emit_gs_store(struct emit *e, unsigned reg, uint32_t offset)
{
    emit_gs(e, EMIT_MOV_STORE, reg, offset);
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
    emit_rex(e, false, 0, 0, reg);
    emit_u8(e, 0xb8u | (reg & 7u));
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
    emit_rex(e, true, reg, 0, 0);
    emit_u8(e, EMIT_LEA);
    emit_u8(e, (reg & 7u) << 3 | 5u);
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
    static const char *const nops[] = {"", "\x90", "\x66\x90", "\x0f\x1f\x00"};
    unsigned bytes = pad_bytes(e, before);

    emit_bytes(e, nops[bytes], bytes);
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
