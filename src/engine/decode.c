#include "engine/decode.h"

#include "engine/decode_effect.h"
#include "engine/decode_int.h"
#include "engine/decode_operand.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum prefix_class { PFX_NONE, PFX_SEG, PFX_66, PFX_67, PFX_LOCK, PFX_REP, PFX_REX };

static const uint8_t prefix_classes[256] = {
    [0x26] = PFX_SEG,  [0x2e] = PFX_SEG, [0x36] = PFX_SEG, [0x3e] = PFX_SEG,
    [0x64] = PFX_SEG,  [0x65] = PFX_SEG, [0x66] = PFX_66,  [0x67] = PFX_67,
    [0xf0] = PFX_LOCK, [0xf2] = PFX_REP, [0xf3] = PFX_REP, [0x40 ... 0x4f] = PFX_REX,
};

static const uint8_t pp_bytes[PP_COUNT] = {0, 0x66, 0xf3, 0xf2};

#define OPCODE_NOP 0x90
#define OPCODE_MOVSXD 0x63
#define OPCODE_VEX2 0xc5

static int too_short(const struct decoder *d)
{
    return d->avail >= INSN_MAX_BYTES ? -E2BIG : -ENODATA;
}

/* Eight bytes of the guest's, which may change them meanwhile: read once. */
static uint64_t fetch64(const uint8_t *bytes)
{
    typedef uint64_t __attribute__((aligned(1), may_alias)) unaligned;

    return *(const volatile unaligned *)(const void *)bytes;
}

static void load_bytes(struct decoder *d, const uint8_t *bytes, unsigned avail, struct insn *insn)
{
    d->avail = avail;
    d->limit = avail < INSN_MAX_BYTES ? avail : INSN_MAX_BYTES;
    if (likely(avail >= INSN_MAX_BYTES)) {
        const uint64_t first = fetch64(bytes);
        const uint64_t last = fetch64(bytes + INSN_MAX_BYTES - sizeof(last));

        for (unsigned i = 0; i < 2; i++) {
            uint8_t *to = i == 0 ? d->bytes : insn->bytes;

            memcpy(to, &first, sizeof(first));
            memcpy(to + INSN_MAX_BYTES - sizeof(last), &last, sizeof(last));
        }
    } else {
        memcpy(d->bytes, bytes, avail);
        memcpy(insn->bytes, d->bytes, INSN_MAX_BYTES);
    }
}

static void take_segment(struct decoder *d, uint8_t byte)
{
    static const uint8_t segs[8] = {X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS};

    if (byte >= 0x64) {
        d->seg = segs[byte - 0x60];
    } else if (d->mode != INSN_MODE_64) {
        /* In 64-bit mode these four do nothing, not even displace an earlier FS or GS. */
        d->seg = segs[(byte >> 3) & 3];
    }
}

/* A REX prefix counts only right before the opcode. */
static int read_prefixes(struct decoder *d)
{
    /* Most often it is the only one, or there is none: half of each, so without a branch. */
    const bool has_rex = d->mode == INSN_MODE_64 && (d->bytes[0] & 0xf0) == 0x40;

    d->rex = has_rex ? d->bytes[0] : 0;
    d->pos = has_rex ? 1 : 0;
    for (; d->pos < d->limit; d->pos++) {
        const uint8_t byte = d->bytes[d->pos];
        const uint8_t class = prefix_classes[byte];

        if (class == PFX_NONE) {
            return 0;
        }
        if (class == PFX_REX) {
            if (d->mode != INSN_MODE_64) {
                return 0;
            }
            d->rex = byte;
            continue;
        }
        d->rex = 0;
        if (class == PFX_SEG) {
            take_segment(d, byte);
        } else if (class == PFX_66) {
            d->opsize_prefix = true;
        } else if (class == PFX_67) {
            d->addrsize_prefix = true;
        } else if (class == PFX_LOCK) {
            d->lock = true;
        } else {
            d->rep = byte;
        }
    }
    return too_short(d);
}

static uint8_t select_pp(const struct decoder *d)
{
    if (d->rep != 0) {
        return d->rep == 0xf3 ? PP_F3 : PP_F2;
    }
    return d->opsize_prefix ? PP_66 : PP_NONE;
}

/* The bytes after C4 or C5 (SDM 2A 2.3.5). Returns the row or NULL for #UD. */
static const struct insn_desc *select_vex(struct decoder *d, bool is_vex2, struct insn *insn)
{
    const uint8_t first = d->bytes[d->pos];
    const bool mode64 = d->mode == INSN_MODE_64;
    uint8_t last = first;
    uint8_t map = 1;
    uint8_t rxb = (uint8_t)((~first >> 5) & 7);

    if (d->opsize_prefix || d->rep != 0 || d->lock || d->rex != 0) {
        return NULL;
    }
    if (is_vex2) {
        rxb &= 4;
        d->pos += 1;
    } else {
        map = first & 0x1f;
        last = d->bytes[d->pos + 1];
        d->vex_w = (last & 0x80) != 0;
        d->pos += 2;
    }
    if (!mode64) {
        rxb = 0;
    }
    d->is_vex = true;
    d->rex = (uint8_t)(0x40 | (d->vex_w ? 8 : 0) | rxb);
    d->pp = last & 3;
    insn->encoding = is_vex2 ? INSN_ENC_VEX2 : INSN_ENC_VEX3;
    insn->vex_vvvv = (uint8_t)((~last >> 3) & (mode64 ? 15 : 7));
    insn->vex_l = (last & 4) != 0;
    d->vex_has_vvvv = (last & 0x78) != 0x78;
    insn->map = map;
    insn->opcode_off = (uint8_t)d->pos;
    insn->opcode = d->bytes[d->pos++];
    switch (map) {
    case 1:
        return &insn_vex_0f[insn->opcode][d->pp];
    case 2:
        return &insn_vex_0f38[insn->opcode][d->pp];
    case 3:
        return &insn_vex_0f3a[insn->opcode][d->pp];
    default:
        return NULL;
    }
}

static const struct insn_desc *select_0f(struct decoder *d, struct insn *insn)
{
    const struct insn_desc(*table)[PP_COUNT] = insn_map_0f;
    uint8_t opcode = d->bytes[d->pos++];

    d->pp = select_pp(d);
    insn->map = 1;
    if (opcode == 0x38 || opcode == 0x3a) {
        table = opcode == 0x38 ? insn_map_0f38 : insn_map_0f3a;
        insn->map = opcode == 0x38 ? 2 : 3;
        opcode = d->bytes[d->pos++];
    }
    insn->opcode = opcode;
    insn->opcode_off = (uint8_t)(d->pos - 1);
    return &table[opcode][d->pp];
}

/* Reads the opcode; the row of its map, or NULL for #UD. */
static const struct insn_desc *select_row(struct decoder *d, struct insn *insn)
{
    const uint8_t opcode = d->bytes[d->pos++];
    const struct insn_desc *row = &insn_map_base[opcode];

    insn->opcode = opcode;
    insn->opcode_off = (uint8_t)(d->pos - 1);
    if (row->op == DESC_MAP_0F) {
        return select_0f(d, insn);
    }
    if (row->op == DESC_VEX) {
        const bool is_vex2 = opcode == OPCODE_VEX2;

        if (d->mode == INSN_MODE_64 || (d->bytes[d->pos] & 0xc0) == 0xc0) {
            return select_vex(d, is_vex2, insn);
        }
        return &insn_les_lds[is_vex2 ? 1 : 0];
    }
    if (opcode == OPCODE_MOVSXD && d->mode == INSN_MODE_64) {
        return &insn_movsxd;
    }
    return row;
}

/* Replaces a row that only points further by what modrm selects. False: #UD. */
static bool resolve_row(struct decoder *d)
{
    struct insn_desc *desc = &d->desc;
    const unsigned reg = (d->modrm >> 3) & 7;
    const bool is_reg = d->modrm >= 0xc0;
    const struct insn_desc *next;

    if (desc->op == DESC_X87) {
        const unsigned low = d->bytes[d->pos - 2] & 7;

        next = is_reg ? &insn_x87_reg[low][d->modrm & 0x3f] : &insn_x87_mem[low][reg];
    } else {
        next = &insn_groups[desc->extra - 1][reg + (is_reg ? 8 : 0)];
        if (next->op == DESC_GROUP_RM) {
            const unsigned group = next->extra - 1u;

            if (d->pp != PP_NONE && group != GRM_7_7) {
                return false;
            }
            next = &insn_groups_rm[group][d->modrm & 7];
        }
    }
    if (desc_is_empty(next)) {
        return false;
    }
    desc->op = next->op;
    desc->imm |= next->imm;
    desc->size |= next->size;
    desc->mem |= next->mem;
    desc->access |= next->access;
    desc->implicit |= next->implicit;
    desc->flags |= next->flags;
    desc->attr |= next->attr;
    return true;
}

/* Modes, forms and VEX fields that the row does not allow. */
static bool is_allowed(const struct decoder *d, const struct insn *insn)
{
    const uint32_t attr = d->desc.attr;
    const bool is_reg = d->has_modrm && d->modrm >= 0xc0;

    if ((attr & (d->mode == INSN_MODE_64 ? ATTR_NO64 : ATTR_ONLY64)) != 0) {
        return false;
    }
    if ((attr & (is_reg ? ATTR_MEM : ATTR_REG)) != 0) {
        return false;
    }
    if (d->lock && ((attr & ATTR_LOCK) == 0 || is_reg)) {
        return false;
    }
    if (d->is_vex) {
        const bool no_vvvv = (attr & ATTR_NV) != 0 || ((attr & ATTR_NV_MEM) != 0 && !is_reg);

        if ((attr & (insn->vex_l ? ATTR_L0 : ATTR_L1)) != 0 ||
            (attr & (d->vex_w ? ATTR_W0 : ATTR_W1)) != 0 || (no_vvvv && d->vex_has_vvvv)) {
            return false;
        }
    }
    return true;
}

/* What the tables cannot say about some rows. False: #UD. */
static bool finish_special(const struct decoder *d, struct insn *insn)
{
    const uint8_t reg = insn->reg & 7;

    /* First what is most frequent. XCHG rAX, rAX does nothing, not even clear the upper half; F3
     * makes it PAUSE, also with REX.B. */
    if (insn->op == INSN_OP_COPY) {
        if (insn->map == 0 && insn->opcode == OPCODE_NOP && ((d->rex & 1) == 0 || d->rep == 0xf3)) {
            insn->op = INSN_OP_NOP;
        }
        return true;
    }
    switch (insn->op) {
    case INSN_OP_BIT_MEM:
        if (insn->rm != INSN_REG_NONE) {
            insn->op = INSN_OP_COPY;
        }
        return true;
    case INSN_OP_MOV_FROM_CR:
    case INSN_OP_MOV_TO_CR:
        return insn->reg == 0 || (insn->reg >= 2 && insn->reg <= 4) || insn->reg == 8;
    case INSN_OP_MOV_FROM_DR:
    case INSN_OP_MOV_TO_DR:
        return insn->reg < 8;
    case INSN_OP_MOV_FROM_SEG:
    case INSN_OP_MOV_TO_SEG:
        insn->reg_seg = reg;
        return reg <= X86_GS && !(insn->op == INSN_OP_MOV_TO_SEG && reg == X86_CS);
    case INSN_OP_PUSH_SEG:
    case INSN_OP_POP_SEG:
        /* 06 to 1F; the 0F forms have it in the row. */
        return true;
    case INSN_OP_GATHER:
        return insn->sib_off != 0 && insn->reg != insn->index && insn->reg != insn->vex_vvvv &&
               insn->index != insn->vex_vvvv;
    default:
        return true;
    }
}

static void set_ud(const struct decoder *d, struct insn *insn)
{
    const struct insn old = *insn;

    memset(insn, 0, sizeof(*insn));
    memcpy(insn->bytes, old.bytes, sizeof(insn->bytes));
    insn->len = (uint8_t)d->pos;
    insn->mode = old.mode;
    insn->op = INSN_OP_UD;
    insn->map = old.map;
    insn->opcode = old.opcode;
    insn->opcode_off = old.opcode_off;
    insn->encoding = old.encoding;
    insn->opsize_bytes = 4;
    insn->addrsize_bytes = 4;
    insn->rm = INSN_REG_NONE;
    insn->base = INSN_REG_NONE;
    insn->index = INSN_REG_NONE;
    insn->scale = 1;
    insn->flags_read = X86_FLAGS_ARITH;
}

static int finish_ud(const struct decoder *d, struct insn *insn)
{
    if (d->pos > d->limit) {
        return too_short(d);
    }
    set_ud(d, insn);
    return 0;
}

static void set_prefix_fields(const struct decoder *d, struct insn *insn)
{
    const uint32_t attr = d->desc.attr;

    insn->flags = (uint8_t)(attr & ATTR_STATE);
    insn->rex = d->rex;
    insn->has_66 = d->opsize_prefix;
    insn->reg_seg = (uint8_t)((attr & ATTR_SEG_MASK) >> ATTR_SEG_SHIFT);
    insn->rm = INSN_REG_NONE;
    insn->base = INSN_REG_NONE;
    insn->index = INSN_REG_NONE;
    insn->scale = 1;
    insn->seg = X86_DS;
    if ((attr & ATTR_MANDATORY) != 0 || d->is_vex) {
        insn->mandatory = pp_bytes[d->pp];
    }
    if (d->is_vex && d->desc.size == SZ_Y && d->mode != INSN_MODE_64) {
        insn->rex &= (uint8_t)~8u; /* VEX.W is ignored there */
    }
    if ((attr & ATTR_STRING) != 0 && d->rep != 0) {
        insn->flags |= d->rep == 0xf3 ? INSN_REP : INSN_REPNE;
    }
    if ((attr & ATTR_COND) != 0) {
        insn->cond = insn->opcode & 15;
    }
    if (d->mode == INSN_MODE_64) {
        insn->addrsize_bytes = d->addrsize_prefix ? 4 : 8;
    } else {
        insn->addrsize_bytes = (d->mode == INSN_MODE_16) != d->addrsize_prefix ? 2 : 4;
    }
    insn->opsize_bytes = decode_operand_size(d);
}

static void set_final_flags(const struct decoder *d, struct insn *insn)
{
    const uint32_t attr = d->desc.attr;
    const bool is_xchg = insn->map == 0 && (insn->opcode | 1) == 0x87;

    if (d->seg != INSN_REG_NONE) {
        insn->seg = d->seg;
    }
    if (d->lock || (is_xchg && insn->rm == INSN_REG_NONE)) {
        insn->flags |= INSN_LOCK;
    }
    if ((attr & ATTR_BYTE) != 0 || ((attr & ATTR_BYTE_RM) != 0 && insn->rm != INSN_REG_NONE)) {
        insn->flags |= INSN_BYTE_REG;
    }
}

static int decode_fields(struct decoder *d, struct insn *insn)
{
    set_prefix_fields(d, insn);
    if ((d->desc.attr & ATTR_OPREG) != 0) {
        insn->reg = (uint8_t)((insn->opcode & 7) | (d->rex & 1) << 3);
    }
    if (d->has_modrm) {
        decode_modrm_operand(d, insn);
    }
    if (d->desc.imm != IMM_NONE) {
        decode_immediate(d, insn);
    }
    if (d->pos > d->limit) {
        return too_short(d);
    }
    /* The CPU has fetched the whole instruction before it refuses it. */
    if (!is_allowed(d, insn) || !finish_special(d, insn)) {
        return finish_ud(d, insn);
    }
    insn->len = (uint8_t)d->pos;
    set_final_flags(d, insn);
    decode_set_gprs(d, insn);
    decode_set_flags(d, insn);
    if (insn->op == INSN_OP_NOP) {
        insn->gpr_read = 0;
        insn->gpr_written = 0;
    }
    return 0;
}

int insn_decode(const uint8_t *bytes, unsigned avail, enum insn_mode mode, struct insn *ret_insn)
{
    struct decoder d = {.mode = mode, .seg = INSN_REG_NONE};
    const struct insn_desc *row;
    int rc;

    memset(ret_insn, 0, sizeof(*ret_insn));
    load_bytes(&d, bytes, avail, ret_insn);
    ret_insn->mode = (uint8_t)mode;
    rc = read_prefixes(&d);
    if (rc != 0) {
        return rc;
    }
    row = select_row(&d, ret_insn);
    if (row == NULL || desc_is_empty(row)) {
        return finish_ud(&d, ret_insn);
    }
    d.desc = *row;
    if ((row->attr & ATTR_MODRM) != 0) {
        d.has_modrm = true;
        d.modrm = d.bytes[d.pos++];
    }
    if (d.pos > d.limit) {
        return too_short(&d);
    }
    if (row->op >= INSN_OP_COUNT && !resolve_row(&d)) {
        return finish_ud(&d, ret_insn);
    }
    ret_insn->op = d.desc.op;
    return decode_fields(&d, ret_insn);
}

const char *insn_describe(const struct insn *insn, char *out, unsigned out_bytes)
{
    static const char *const maps[4] = {"", "0f ", "0f 38 ", "0f 3a "};
    int used = snprintf(out, out_bytes, "op %u %s%s%02x len %u:", insn->op,
                        insn->encoding != INSN_ENC_LEGACY ? "VEX " : "", maps[insn->map & 3],
                        insn->opcode, insn->len);

    for (unsigned i = 0; i < insn->len && used >= 0 && (unsigned)used < out_bytes; i++) {
        used += snprintf(out + used, out_bytes - (unsigned)used, " %02x", insn->bytes[i]);
    }
    return out;
}
