/* Operands: sizes, ModRM and SIB, displacements and immediates (SDM 2A 2.1). */
#include "engine/decode_int.h"

#include <string.h>

uint8_t decode_operand_size(const struct decoder *d)
{
    const bool mode64 = d->mode == INSN_MODE_64;
    const bool rex_w = mode64 && (d->rex & 8) != 0;
    const bool is_16 = (d->mode == INSN_MODE_16) != d->opsize_prefix;
    const uint8_t by_prefix = is_16 ? 2 : 4;

    switch (d->desc.size) {
    case SZ_B:
        return 1;
    case SZ_W:
        return 2;
    case SZ_D:
        return 4;
    case SZ_Q:
        return 8;
    case SZ_V:
        return rex_w ? 8 : by_prefix;
    case SZ_Z:
        return rex_w ? 4 : by_prefix;
    case SZ_Y:
        return rex_w ? 8 : 4;
    case SZ_D64:
        return mode64 ? (is_16 && !rex_w ? 2 : 8) : by_prefix;
    case SZ_F64:
        return mode64 ? 8 : by_prefix;
    case SZ_CR:
        return mode64 ? 8 : 4;
    default:
        return 0;
    }
}

static uint16_t memory_size(const struct decoder *d, const struct insn *insn)
{
    static const uint16_t fixed[] = {
        [MEM_1] = 1,   [MEM_2] = 2,   [MEM_4] = 4,     [MEM_8] = 8,      [MEM_10] = 10,
        [MEM_16] = 16, [MEM_32] = 32, [MEM_512] = 512, [MEM_XSAVE] = 576};
    const uint8_t kind = d->desc.mem;
    const uint16_t vl = insn->vex_l ? 32 : 16;

    if (kind < ARRAY_LEN(fixed)) {
        return fixed[kind];
    }
    switch (kind) {
    case MEM_OP:
        return insn->opsize_bytes;
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

static int64_t load_signed(const uint8_t *bytes, unsigned count)
{
    int64_t value = 0;

    switch (count) {
    case 1:
        return (int8_t)bytes[0];
    case 2: {
        int16_t word;
        memcpy(&word, bytes, sizeof(word));
        return word;
    }
    case 4: {
        int32_t dword;
        memcpy(&dword, bytes, sizeof(dword));
        return dword;
    }
    default:
        memcpy(&value, bytes, count);
        return value;
    }
}

static void take_disp(struct decoder *d, struct insn *insn, unsigned count)
{
    if (count != 0) {
        insn->disp_off = (uint8_t)d->pos;
        insn->disp_bytes = (uint8_t)count;
        insn->disp = load_signed(d->bytes + d->pos, count);
        d->pos += count;
    }
}

/* 16-bit addressing (SDM 2A table 2-1). */
static void read_address_16(struct decoder *d, struct insn *insn)
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
static void read_address(struct decoder *d, struct insn *insn)
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

void decode_modrm_operand(struct decoder *d, struct insn *insn)
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

void decode_immediate(struct decoder *d, struct insn *insn)
{
    const uint8_t size = insn->opsize_bytes;
    unsigned count = 1;
    bool is_signed = false;

    switch (d->desc.imm) {
    case IMM_UB:
        break;
    case IMM_SB:
        is_signed = true;
        break;
    case IMM_UW:
        count = 2;
        break;
    case IMM_Z:
        count = size > 4 ? 4 : size;
        is_signed = true;
        break;
    case IMM_V:
        count = size;
        break;
    case IMM_ENTER:
        count = 3;
        break;
    case IMM_FAR:
        count = size + 2u;
        break;
    default: /* IMM_MOFFS */
        insn->disp_off = (uint8_t)d->pos;
        insn->disp_bytes = insn->addrsize_bytes;
        memcpy(&insn->disp, d->bytes + d->pos, insn->addrsize_bytes);
        d->pos += insn->addrsize_bytes;
        insn->mem_bytes = memory_size(d, insn);
        insn->mem_flags = d->desc.access & 3;
        return;
    }
    insn->imm_off = (uint8_t)d->pos;
    insn->imm_bytes = (uint8_t)count;
    if (is_signed) {
        insn->imm = (uint64_t)load_signed(d->bytes + d->pos, count);
    } else {
        memcpy(&insn->imm, d->bytes + d->pos, count);
    }
    d->pos += count;
}
