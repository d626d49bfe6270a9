#include "engine/rewrite.h"

#include <string.h>

#define REX_W 8u
#define REX_R 4u
#define REX_X 2u
#define REX_B 1u

#define MODRM_SIB 4u
#define SIB_NO_INDEX 4u
#define SIB_NO_BASE 5u

/* What becomes of the opcode and its operands. */
struct copy {
    uint8_t opcode;
    uint8_t rex; /* W R X B, without 0x40 */
    bool has_modrm;
    uint8_t modrm_reg; /* low three bits */
    const struct insn *insn;
    uint8_t base;
    uint8_t index;
    uint8_t scale_bits;
    int32_t disp;
    bool is_mem;
};

static bool has_byte_reg_operand(const struct insn *insn)
{
    if (insn->map == 0) {
        return insn->opcode < 0x40 || (insn->opcode >= 0x84 && insn->opcode <= 0x8b) ||
               (insn->opcode & 0xf8) == 0xb0;
    }
    /* CMPXCHG and XADD; in the others modrm.reg is no byte register. */
    return insn->map == 1 && (insn->opcode == 0xb0 || insn->opcode == 0xc0);
}

bool insn_uses_high_byte(const struct insn *insn)
{
    if ((insn->flags & INSN_BYTE_REG) == 0 || insn->rex != 0) {
        return false;
    }
    return (insn->rm != INSN_REG_NONE && insn->rm >= 4) ||
           (insn->reg >= 4 && has_byte_reg_operand(insn));
}

/* Encodings that 64-bit mode lacks, and those with the address in the place of an immediate. */
static void choose_opcode(struct copy *c)
{
    const struct insn *insn = c->insn;

    c->opcode = insn->opcode;
    c->has_modrm = insn->modrm_off != 0;
    if (c->has_modrm) {
        c->modrm_reg = (insn->bytes[insn->modrm_off] >> 3) & 7;
    }
    if (insn->map != 0) {
        return;
    }
    if ((insn->opcode & 0xf0) == 0x40) { /* INC, DEC r */
        c->opcode = 0xff;
        c->modrm_reg = (insn->opcode >> 3) & 1;
        c->has_modrm = true;
    } else if (insn->opcode == 0x82) {
        c->opcode = 0x80;
    } else if ((insn->opcode & 0xfc) == 0xa0) { /* MOV with moffs */
        static const uint8_t plain[4] = {0x8a, 0x8b, 0x88, 0x89};

        c->opcode = plain[insn->opcode & 3];
        c->has_modrm = true;
        c->rex &= REX_W;
    }
}

static uint8_t *put_prefixes(const struct copy *c, uint8_t *p)
{
    const struct insn *insn = c->insn;
    const bool is_xchg = insn->map == 0 && (insn->opcode | 1) == 0x87;

    if ((insn->flags & INSN_LOCK) != 0 && !is_xchg) {
        *p++ = 0xf0;
    }
    if (insn->mandatory == 0x66 || insn->opsize_bytes == 2) {
        *p++ = 0x66;
    }
    if (insn->mandatory >= 0xf2) {
        *p++ = insn->mandatory;
    }
    return p;
}

static uint8_t *put_legacy_opcode(const struct copy *c, uint8_t *p)
{
    p = put_prefixes(c, p);
    if (c->rex != 0 || ((c->insn->flags & INSN_BYTE_REG) != 0 && c->insn->rex != 0)) {
        *p++ = 0x40 | c->rex;
    }
    if (c->insn->map != 0) {
        *p++ = 0x0f;
        if (c->insn->map != 1) {
            *p++ = c->insn->map == 2 ? 0x38 : 0x3a;
        }
    }
    *p++ = c->opcode;
    return p;
}

/* SDM 2A 2.3.5: R, X, B and vvvv are stored inverted. */
static uint8_t *put_vex_opcode(const struct copy *c, uint8_t *p)
{
    const struct insn *insn = c->insn;
    uint8_t pp = 0;
    uint8_t last;

    switch (insn->mandatory) {
    case 0x66:
        pp = 1;
        break;
    case 0xf3:
        pp = 2;
        break;
    case 0xf2:
        pp = 3;
        break;
    default:
        break;
    }
    last = (uint8_t)((~insn->vex_vvvv & 15) << 3 | (insn->vex_l ? 4 : 0) | pp);
    if (insn->map == 1 && (c->rex & (REX_W | REX_X | REX_B)) == 0) {
        *p++ = 0xc5;
        *p++ = (uint8_t)(((c->rex & REX_R) != 0 ? 0 : 0x80) | last);
    } else {
        *p++ = 0xc4;
        *p++ = (uint8_t)((~c->rex & 7) << 5 | insn->map);
        *p++ = (uint8_t)(((c->rex & REX_W) != 0 ? 0x80 : 0) | last);
    }
    *p++ = c->opcode;
    return p;
}

static uint8_t *put_memory(const struct copy *c, uint8_t *p)
{
    const uint8_t reg = (uint8_t)(c->modrm_reg << 3);
    const bool has_index = c->index != INSN_REG_NONE;
    const bool has_base = c->base != INSN_REG_NONE;
    const bool needs_sib = has_index || (c->base & 7) == X86_RSP || !has_base;
    uint8_t mod = 0x80;

    if (!has_base || (c->disp == 0 && (c->base & 7) != X86_RBP)) {
        mod = 0;
    } else if (c->disp == (int8_t)c->disp) {
        mod = 0x40;
    }
    *p++ = (uint8_t)(mod | reg | (needs_sib ? MODRM_SIB : c->base & 7));
    if (needs_sib) {
        *p++ = (uint8_t)(c->scale_bits << 6 | (has_index ? c->index & 7 : SIB_NO_INDEX) << 3 |
                         (has_base ? c->base & 7 : SIB_NO_BASE));
    }
    if (mod == 0x40) {
        *p++ = (uint8_t)c->disp;
    } else if (mod == 0x80 || !has_base) {
        memcpy(p, &c->disp, sizeof(c->disp));
        p += sizeof(c->disp);
    }
    return p;
}

static uint8_t *put_operands(const struct copy *c, uint8_t *p)
{
    const struct insn *insn = c->insn;

    if (c->is_mem) {
        p = put_memory(c, p);
    } else if (c->has_modrm) {
        const uint8_t rm = insn->modrm_off != 0 ? insn->rm : insn->reg;

        *p++ = (uint8_t)(0xc0 | c->modrm_reg << 3 | (rm & 7));
    }
    /* Eight bytes at once, of which those count that there are: none of these has more. */
    memcpy(p, &insn->imm, sizeof(insn->imm));
    /* In the upper half of an immediate that names a register, bit 7 counts in 64-bit mode only. */
    if (insn->encoding != INSN_ENC_LEGACY && insn->map == 3 && insn->mode != INSN_MODE_64 &&
        (insn->opcode >= 0x4a && insn->opcode <= 0x4c)) {
        *p &= 0x7f;
    }
    return p + insn->imm_bytes;
}

/* VZEROUPPER and VZEROALL clear eight registers outside 64-bit mode, 16 within. */
static bool is_encodable(const struct insn *insn)
{
    const bool is_vzero =
        insn->encoding != INSN_ENC_LEGACY && insn->map == 1 && insn->opcode == 0x77;

    return insn->op == INSN_OP_COPY && !(is_vzero && insn->mode != INSN_MODE_64);
}

unsigned insn_rewrite(const struct insn *insn, uint8_t base, uint8_t index, unsigned scale,
                      int32_t disp, uint8_t out[INSN_REWRITE_MAX_BYTES])
{
    struct copy c = {.insn = insn,
                     .base = base,
                     .index = index,
                     .scale_bits = scale == 8 ? 3 : (uint8_t)(scale >> 1),
                     .disp = disp};
    uint8_t *p = out;

    if (!is_encodable(insn)) {
        return 0;
    }
    c.is_mem = insn->mem_bytes != 0;
    c.rex = insn->rex & (REX_W | REX_R | REX_B);
    choose_opcode(&c);
    if (c.is_mem) {
        if ((base >= X86_GPR_COUNT && base != INSN_REG_NONE) || index == X86_RSP) {
            return 0;
        }
        c.rex &= (uint8_t)~REX_B;
        c.rex |= base != INSN_REG_NONE && base >= 8 ? REX_B : 0;
        c.rex |= index != INSN_REG_NONE && index >= 8 ? REX_X : 0;
    }
    if (c.rex != 0 && insn_uses_high_byte(insn)) {
        return 0;
    }
    p = insn->encoding == INSN_ENC_LEGACY ? put_legacy_opcode(&c, p) : put_vex_opcode(&c, p);
    p = put_operands(&c, p);
    return (unsigned)(p - out);
}
