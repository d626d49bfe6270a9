#include "engine/decode.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

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

enum prefix_class { PFX_NONE, PFX_SEG, PFX_66, PFX_67, PFX_LOCK, PFX_REP, PFX_REX };

static const uint8_t prefix_classes[256] = {
    [0x26] = PFX_SEG,  [0x2e] = PFX_SEG, [0x36] = PFX_SEG, [0x3e] = PFX_SEG,
    [0x64] = PFX_SEG,  [0x65] = PFX_SEG, [0x66] = PFX_66,  [0x67] = PFX_67,
    [0xf0] = PFX_LOCK, [0xf2] = PFX_REP, [0xf3] = PFX_REP, [0x40 ... 0x4f] = PFX_REX,
};

static const uint8_t pp_bytes[PP_COUNT] = {0, 0x66, 0xf3, 0xf2};

#define A (1u << X86_RAX)
#define C (1u << X86_RCX)
#define D (1u << X86_RDX)
#define B (1u << X86_RBX)
#define SP (1u << X86_RSP)
#define BP (1u << X86_RBP)
#define SI (1u << X86_RSI)
#define DI (1u << X86_RDI)

static const struct {
    uint16_t read;
    uint16_t written;
} implicit_gprs[IMPL_COUNT] = {
    [IMPL_A_R] = {A, 0},
    [IMPL_A_W] = {0, A},
    [IMPL_A_RW] = {A, A},
    [IMPL_MUL] = {A, A | D},
    [IMPL_DIV] = {A | D, A | D},
    [IMPL_A_R_D_W] = {A, D},
    [IMPL_SHIFT_CL] = {C, 0},
    [IMPL_STACK] = {SP, SP},
    [IMPL_LEAVE] = {SP | BP, SP | BP},
    [IMPL_PUSHA] = {0xff, SP},
    [IMPL_POPA] = {SP, 0xff},
    [IMPL_MOVS] = {SI | DI, SI | DI},
    [IMPL_STOS] = {A | DI, DI},
    [IMPL_LODS] = {SI, A | SI},
    [IMPL_SCAS] = {A | DI, DI},
    [IMPL_INS] = {D | DI, DI},
    [IMPL_OUTS] = {D | SI, SI},
    [IMPL_CX_R] = {C, 0},
    [IMPL_CX_RW] = {C, C},
    [IMPL_IN_DX] = {D, A},
    [IMPL_OUT_DX] = {A | D, 0},
    [IMPL_XLAT] = {A | B, A},
    [IMPL_AD_RW_BC_R] = {A | B | C | D, A | D},
    [IMPL_CPUID] = {A | C, A | B | C | D},
    [IMPL_AD_W] = {0, A | D},
    [IMPL_ADC_W] = {0, A | C | D},
    [IMPL_C_R_AD_W] = {C, A | D},
    [IMPL_CAD_R] = {A | C | D, 0},
    [IMPL_AD_R] = {A | D, 0},
    [IMPL_AD_R_C_W] = {A | D, C},
    [IMPL_C_W] = {0, C},
    [IMPL_D_R] = {D, 0},
    [IMPL_DI_R] = {DI, 0},
    [IMPL_SYSCALL] = {0, C | 1u << X86_R11},
    [IMPL_SYSRET] = {C | 1u << X86_R11, 0},
    [IMPL_SYSENTER] = {0, SP},
    [IMPL_SYSEXIT] = {C | D, SP},
};

#undef A
#undef C
#undef D
#undef B
#undef SP
#undef BP
#undef SI
#undef DI

#define CF X86_FLAG_CF
#define PF X86_FLAG_PF
#define AF X86_FLAG_AF
#define ZF X86_FLAG_ZF
#define SF X86_FLAG_SF
#define OF X86_FLAG_OF
#define ALL X86_FLAGS_ARITH

static const struct {
    uint16_t read;
    uint16_t written;
    uint16_t undefined;
} flag_sets[FL_COUNT] = {
    [FL_ALU] = {0, ALL, 0},
    [FL_ADC] = {CF, ALL, 0},
    [FL_LOGIC] = {0, ALL, AF},
    [FL_INC] = {0, ALL & ~CF, 0},
    [FL_MUL] = {0, ALL, SF | ZF | AF | PF},
    [FL_DIV] = {ALL, 0, 0},
    /* BT and DIV: the others are undefined says the SDM, but CPUs leave them as they were, and
     * code may look (PUSHF). */
    [FL_BT] = {ALL & ~(ZF | CF), CF, 0},
    [FL_BSF] = {0, ALL, ALL & ~ZF},
    [FL_LZCNT] = {0, ALL, OF | SF | PF | AF},
    [FL_ZF] = {0, ZF, 0},
    [FL_CF] = {0, CF, 0},
    [FL_CMC] = {CF, CF, 0},
    [FL_SAHF] = {0, ALL & ~OF, 0},
    [FL_LAHF] = {ALL & ~OF, 0, 0},
    [FL_ANDN] = {0, ALL, AF | PF},
    [FL_BEXTR] = {0, ALL, AF | SF | PF},
    [FL_ADOX] = {OF, OF, 0},
    [FL_DAA] = {CF | AF, ALL, OF},
    [FL_AAA] = {AF, ALL, OF | SF | ZF | PF},
    [FL_AAM] = {0, ALL, OF | AF | CF},
    [FL_READ_CF] = {CF, 0, 0},
    [FL_READ_ZF] = {ZF, 0, 0},
    [FL_READ_BE] = {CF | ZF, 0, 0},
    [FL_READ_PF] = {PF, 0, 0},
    [FL_READ_ALL] = {ALL, 0, 0},
    /* An unmasked invalid operand leaves the flags as they were. */
    [FL_FCOMI] = {ALL, 0, 0},
    [FL_POPF] = {0, ALL, 0},
    [FL_SHIFT] = {0, ALL, AF | OF},
    [FL_ROTATE] = {0, CF | OF, OF},
    [FL_ROTATE_CARRY] = {CF, CF | OF, OF},
    [FL_STRING] = {0, ALL, 0},
};

/* Flags that condition codes read, by cond >> 1 (SDM 1 B.1). */
static const uint16_t cond_flags[8] = {OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF};

#define OPCODE_NOP 0x90
#define OPCODE_MOVSXD 0x63
#define OPCODE_VEX2 0xc5

static int too_short(const struct decoder *d)
{
    return d->avail >= INSN_MAX_BYTES ? -E2BIG : -ENODATA;
}

static void load_bytes(struct decoder *d, const uint8_t *bytes, unsigned avail, struct insn *insn)
{
    d->avail = avail;
    d->limit = avail < INSN_MAX_BYTES ? avail : INSN_MAX_BYTES;
    memset(d->bytes, 0, sizeof(d->bytes));
    if (likely(avail >= INSN_MAX_BYTES)) {
        memcpy(d->bytes, bytes, INSN_MAX_BYTES);
        memcpy(insn->bytes, bytes, INSN_MAX_BYTES);
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

static uint8_t operand_size(const struct decoder *d)
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

static void read_modrm_operand(struct decoder *d, struct insn *insn)
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

static void read_immediate(struct decoder *d, struct insn *insn)
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

/* The GPR that a byte operand lies in: without REX, 4-7 are AH CH DH BH. */
static unsigned gpr_of(const struct decoder *d, uint8_t reg, bool is_byte)
{
    return is_byte && d->rex == 0 && reg >= 4 ? reg - 4u : reg;
}

static void add_gpr(struct insn *insn, unsigned reg, unsigned access, bool is_partial)
{
    if ((access & ACC_R) != 0 || ((access & ACC_W) != 0 && is_partial)) {
        insn->gpr_read |= (uint16_t)(1u << reg);
    }
    if ((access & ACC_W) != 0) {
        insn->gpr_written |= (uint16_t)(1u << reg);
    }
}

static void set_gprs(const struct decoder *d, struct insn *insn)
{
    const uint32_t attr = d->desc.attr;
    const unsigned access = d->desc.access;
    const bool is_partial = insn->opsize_bytes == 1 || insn->opsize_bytes == 2;
    uint16_t written = implicit_gprs[d->desc.implicit].written;

    if (d->desc.implicit == IMPL_MUL || d->desc.implicit == IMPL_DIV) {
        if (insn->opsize_bytes == 1) {
            written &= (uint16_t) ~(1u << X86_RDX);
        }
    }
    insn->gpr_read = implicit_gprs[d->desc.implicit].read;
    if (d->desc.implicit == IMPL_DIV && insn->opsize_bytes == 1) {
        insn->gpr_read = 1u << X86_RAX;
    }
    insn->gpr_written = written;
    if (is_partial) {
        insn->gpr_read |= written;
    }
    if ((access & ACC_REG(ACC_RW)) != 0) {
        add_gpr(insn, gpr_of(d, insn->reg, (attr & ATTR_BYTE) != 0), (access >> 4) & 3, is_partial);
    }
    if (insn->rm != INSN_REG_NONE && (access & ACC_RM(ACC_RW)) != 0) {
        add_gpr(insn, gpr_of(d, insn->rm, (attr & (ATTR_BYTE | ATTR_BYTE_RM)) != 0),
                (access >> 2) & 3, is_partial);
    }
    if ((access & ACC_VVVV(ACC_RW)) != 0) {
        add_gpr(insn, insn->vex_vvvv, access >> 6, false);
    }
    if (insn->op != INSN_OP_NOP) {
        if (insn->base < X86_GPR_COUNT) {
            insn->gpr_read |= (uint16_t)(1u << insn->base);
        }
        if (insn->index < X86_GPR_COUNT && (attr & ATTR_VSIB) == 0) {
            insn->gpr_read |= (uint16_t)(1u << insn->index);
        }
    }
    if ((insn->flags & (INSN_REP | INSN_REPNE)) != 0) {
        /* With RCX 0 nothing is written. */
        insn->gpr_written |= 1u << X86_RCX;
        insn->gpr_read |= insn->gpr_written;
    }
}

/* Shifts and rotates write flags only when the masked count is not 0 (SDM 2B SAL, RCL). */
static void set_shift_flags(const struct decoder *d, struct insn *insn)
{
    unsigned count = 1;

    if (d->desc.implicit == IMPL_SHIFT_CL) {
        insn->flags_read |= insn->flags_written;
        insn->flags_written = 0;
        insn->flags_undefined = 0;
        return;
    }
    if (insn->imm_bytes != 0) {
        count = (unsigned)insn->imm & (insn->opsize_bytes == 8 ? 63 : 31);
    }
    if (count == 0) {
        insn->flags_read = 0;
        insn->flags_written = 0;
        insn->flags_undefined = 0;
    } else if (count == 1) {
        insn->flags_undefined &= (uint16_t)~OF;
    } else if (d->desc.flags != FL_SHIFT) {
        /* Rotates by more than 1: OF is undefined, and CPUs may leave it as it was. */
        insn->flags_read |= OF;
        insn->flags_written &= (uint16_t)~OF;
        insn->flags_undefined = 0;
    } else if (count >= 8u * insn->opsize_bytes) {
        insn->flags_undefined = insn->map == 0 ? CF | AF | OF : ALL;
    }
}

static void set_flags(const struct decoder *d, struct insn *insn)
{
    const uint8_t set = d->desc.flags;

    insn->flags_read = flag_sets[set].read;
    insn->flags_written = flag_sets[set].written;
    insn->flags_undefined = flag_sets[set].undefined;
    if (set < FL_SHIFT) {
        return;
    }
    if (set == FL_COND) {
        insn->flags_read = cond_flags[insn->cond >> 1];
    } else if (set == FL_STRING) {
        if ((insn->flags & (INSN_REP | INSN_REPNE)) != 0) {
            /* RCX may be 0. */
            insn->flags_read = insn->flags_written;
            insn->flags_written = 0;
        }
    } else {
        set_shift_flags(d, insn);
    }
}

/* What the tables cannot say about some rows. False: #UD. */
static bool finish_special(const struct decoder *d, struct insn *insn)
{
    const uint8_t reg = insn->reg & 7;

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
    case INSN_OP_COPY:
        /* XCHG rAX, rAX does nothing, not even clear the upper half; F3 makes it PAUSE, also
         * with REX.B. */
        if (insn->map == 0 && insn->opcode == OPCODE_NOP && ((d->rex & 1) == 0 || d->rep == 0xf3)) {
            insn->op = INSN_OP_NOP;
        }
        return true;
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
    insn->flags_read = ALL;
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
    insn->opsize_bytes = operand_size(d);
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
        read_modrm_operand(d, insn);
    }
    if (d->desc.imm != IMM_NONE) {
        read_immediate(d, insn);
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
    set_gprs(d, insn);
    set_flags(d, insn);
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
