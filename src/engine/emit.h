/*
 * Host instructions into a buffer: the few forms that the translator adds
 * around the guest's own instructions.
 *
 * The caller makes sure of room beforehand (code_cache_room()). Registers are
 * numbered as instructions encode them. "gs" forms address struct engine_vcpu
 * by byte offset, through the segment that struct emit_vcpu names. Pure, any
 * thread.
 */
#ifndef CORBEL_ENGINE_EMIT_H
#define CORBEL_ENGINE_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define EMIT_SEG_FS 0x64u
#define EMIT_SEG_GS 0x65u

/* Where the running vCPU is: segment base + delta. */
struct emit_vcpu {
    uint8_t seg; /* EMIT_SEG_* */
    int32_t delta;
};

struct emit {
    uint8_t *p;
    struct emit_vcpu vcpu;
};

/* Opcodes of the form op r, r/m and op r/m, r. */
#define EMIT_ADD_LOAD 0x03u
#define EMIT_XOR_LOAD 0x33u
#define EMIT_CMP_LOAD 0x3bu
#define EMIT_MOV_STORE 0x89u
#define EMIT_MOV_LOAD 0x8bu
#define EMIT_LEA 0x8du

#define EMIT_NO_REG 0xffu

/* Condition codes of Jcc. */
#define EMIT_CC_B 2u
#define EMIT_CC_E 4u
#define EMIT_CC_NE 5u
#define EMIT_CC_A 7u
#define EMIT_CC_S 8u

static inline void emit_u8(struct emit *e, unsigned byte)
{
    *e->p++ = (uint8_t)byte;
}

static inline void emit_u32(struct emit *e, uint32_t value)
{
    memcpy(e->p, &value, sizeof(value));
    e->p += sizeof(value);
}

static inline void emit_bytes(struct emit *e, const void *bytes, unsigned count)
{
    memcpy(e->p, bytes, count);
    e->p += count;
}

/* The same for the first count of size bytes, a constant: all are written, for there is room. */
static inline void emit_some(struct emit *e, const void *bytes, size_t size, unsigned count)
{
    memcpy(e->p, bytes, size);
    e->p += count;
}

/* op reg, rm between registers; wide: 64-bit. */
void emit_rr(struct emit *e, bool wide, unsigned opcode, unsigned reg, unsigned rm);
/* op reg, [base + index * scale + disp]; base and index may be EMIT_NO_REG. */
void emit_mem(struct emit *e, bool wide, unsigned opcode, unsigned reg, unsigned base,
              unsigned index, unsigned scale, int32_t disp);
/* For what the forms below do not have: prefix and displacement of an operand in struct engine_vcpu. */
static inline void emit_gs_prefix(struct emit *e)
{
    emit_u8(e, e->vcpu.seg);
}

static inline int32_t emit_gs_disp(const struct emit *e, uint32_t offset)
{
    return (int32_t)offset + e->vcpu.delta;
}

/* op reg, gs:[offset] (64-bit). The most frequent of all: prefix, REX, opcode, modrm and SIB at once. */
#define EMIT_GS_BYTES 9u
static inline void emit_gs(struct emit *e, unsigned opcode, unsigned reg, uint32_t offset)
{
    uint64_t head = e->vcpu.seg | (uint64_t)(0x48u | (reg >> 3) << 2) << 8 |
                    (uint64_t)opcode << 16 | (uint64_t)(4u | (reg & 7u) << 3) << 24 |
                    (uint64_t)0x25 << 32;
    int32_t disp = emit_gs_disp(e, offset);

    memcpy(e->p, &head, sizeof(head));
    memcpy(e->p + 5, &disp, sizeof(disp));
    e->p += EMIT_GS_BYTES;
}

static inline void emit_gs_load(struct emit *e, unsigned reg, uint32_t offset)
{
    emit_gs(e, EMIT_MOV_LOAD, reg, offset);
}

static inline void emit_gs_store(struct emit *e, unsigned reg, uint32_t offset)
{
    emit_gs(e, EMIT_MOV_STORE, reg, offset);
}

/* op reg, gs:[index + offset] (64-bit). */
void emit_gs_indexed(struct emit *e, unsigned opcode, unsigned reg, unsigned index,
                     uint32_t offset);
/* The same with 32 bits. */
void emit_gs32(struct emit *e, unsigned opcode, unsigned reg, uint32_t offset);
void emit_gs_store_imm32(struct emit *e, uint32_t offset, uint32_t value); /* 4 bytes */
void emit_mov_imm32(struct emit *e, unsigned reg, uint32_t value);         /* 32-bit */
/* op r32, imm8 of group 2 (shl 4, shr 5, sar 7) and op r, imm32 of group 1 (add 0, and 4, cmp 7). */
void emit_shift_imm(struct emit *e, bool wide, unsigned op, unsigned reg, unsigned count);
void emit_alu_imm(struct emit *e, bool wide, unsigned op, unsigned reg, int32_t imm);
void emit_mov(struct emit *e, bool wide, unsigned dst, unsigned src);
void emit_lea(struct emit *e, unsigned dst, unsigned base, int32_t disp); /* 64-bit */

/* lea reg, [rip + rel32]; the rel32 is the last of it, for emit_patch(). */
void emit_lea_rip(struct emit *e, unsigned reg);

/* Jumps with a rel32 that is patched while others may run them: its bytes stay in one
 * aligned quadword. They return the address of the rel32, for now 0 (falls through). */
uint8_t *emit_jmp(struct emit *e);
uint8_t *emit_jmp_site(const struct emit *e); /* what emit_jmp() would return, or returned here */
uint8_t *emit_jcc(struct emit *e, unsigned cond);
uint8_t *emit_jcc_once(struct emit *e, unsigned cond); /* patched before anybody runs it */
/* Sets the rel32 at site so that it reaches target (both in the same mapping). */
void emit_patch(uint8_t *site, const uint8_t *target);
void emit_jmp_to(struct emit *e, const uint8_t *target);
void emit_jcc_to(struct emit *e, unsigned cond, const uint8_t *target);
void emit_align(struct emit *e, unsigned bytes); /* with INT3, never executed */

#endif
