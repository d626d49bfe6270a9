#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CELLS 16384u
#define GPR_MASK(r) (1u << (r))

struct fuzz_gen {
    enum insn_mode mode;
    unsigned count;
    struct fuzz_cell cells[MAX_CELLS];
};

/* What can run as it is at CPL 3 of this host without the kernel answering in its stead. */
static bool is_comparable(const struct insn *insn)
{
    switch (insn->op) {
    case INSN_OP_UD:
        /* Elsewhere the host may know more than the guest is shown. */
        return insn->encoding == INSN_ENC_LEGACY && insn->map < 2 && insn->opcode != 0x62 &&
               (insn->opcode & 0xfe) != 0xc6 && insn->opcode != 0x01 && insn->opcode != 0xae;
    case INSN_OP_POP_SEG:
    case INSN_OP_JMP_FAR:
    case INSN_OP_JMP_FAR_IND:
    case INSN_OP_CALL_FAR:
    case INSN_OP_CALL_FAR_IND:
    case INSN_OP_RET_FAR:
    case INSN_OP_IRET:
    case INSN_OP_INT:
    case INSN_OP_INT1:
    case INSN_OP_SYSCALL:
    case INSN_OP_SYSENTER:
    case INSN_OP_MOV_TO_SEG:
    case INSN_OP_LOAD_FAR_PTR:
    case INSN_OP_SGDT:
    case INSN_OP_SIDT:
    case INSN_OP_SLDT:
    case INSN_OP_STR:
    case INSN_OP_SMSW:
    case INSN_OP_VERR:
    case INSN_OP_VERW:
    case INSN_OP_LAR:
    case INSN_OP_LSL:
    case INSN_OP_RDTSC:
    case INSN_OP_RDTSCP:
    case INSN_OP_RDPMC:
    case INSN_OP_CPUID:
    case INSN_OP_XGETBV:
        return false;
    default:
        return true;
    }
}

static unsigned put_opcode(const struct fuzz_cell *cell, uint8_t *p)
{
    unsigned n = 0;

    if (cell->map != 0) {
        p[n++] = 0x0f;
        if (cell->map >= 2) {
            p[n++] = cell->map == 2 ? 0x38 : 0x3a;
        }
    }
    p[n++] = cell->opcode;
    return n;
}

static const uint8_t pp_bytes[4] = {0, 0x66, 0xf3, 0xf2};

/* The shortest encoding of a cell, to see whether there is such an instruction. */
static unsigned put_plain(const struct fuzz_cell *cell, bool vex_w, bool vex_l, uint8_t *p)
{
    unsigned n = 0;

    if (cell->encoding != INSN_ENC_LEGACY) {
        p[n++] = 0xc4;
        p[n++] = 0xe0 | cell->map;
        p[n++] = (uint8_t)((vex_w ? 0x80 : 0) | 0x78 | (vex_l ? 4 : 0) | cell->pp);
        p[n++] = cell->opcode;
    } else {
        if (cell->pp != 0) {
            p[n++] = pp_bytes[cell->pp];
        }
        n += put_opcode(cell, p + n);
    }
    p[n++] = cell->modrm;
    return n;
}

static bool exists(const struct fuzz_cell *cell, enum insn_mode mode, struct insn *insn)
{
    for (unsigned i = 0; i < 4; i++) {
        uint8_t bytes[INSN_MAX_BYTES] = {0};
        unsigned n = put_plain(cell, (i & 1) != 0, (i & 2) != 0, bytes);

        /* A SIB byte, for gathers: distinct registers. */
        bytes[n] = cell->modrm < 0xc0 && (cell->modrm & 7) == 4 ? 0x10 : 0;
        if (insn_decode(bytes, sizeof(bytes), mode, insn) == 0 && insn->op != INSN_OP_UD &&
            is_comparable(insn)) {
            return true;
        }
        if (cell->encoding == INSN_ENC_LEGACY) {
            return false;
        }
    }
    return false;
}

static void add_cell(struct fuzz_gen *gen, struct fuzz_cell cell)
{
    struct insn insn;

    if (!exists(&cell, gen->mode, &insn) || insn.opcode != cell.opcode || insn.map != cell.map ||
        (insn.encoding != INSN_ENC_LEGACY) != (cell.encoding != INSN_ENC_LEGACY)) {
        return;
    }
    if (insn.modrm_off == 0 && cell.modrm != 0) {
        return; /* no modrm: one cell is enough */
    }
    if (cell.encoding == INSN_ENC_LEGACY && cell.pp != 0 && insn.mandatory == 0 &&
        insn.op != INSN_OP_NOP && (insn.op < INSN_OP_MOVS || insn.op > INSN_OP_OUTS)) {
        return; /* the prefix does not select */
    }
    if (gen->count == MAX_CELLS) {
        abort();
    }
    gen->cells[gen->count++] = cell;
}

static void add_opcode(struct fuzz_gen *gen, uint8_t encoding, uint8_t map, uint8_t opcode,
                       uint8_t pp)
{
    struct fuzz_cell cell = {.encoding = encoding, .map = map, .opcode = opcode, .pp = pp};
    const bool is_x87 = encoding == INSN_ENC_LEGACY && map == 0 && (opcode & 0xf8) == 0xd8;
    const bool is_exact = is_x87 || (map == 1 && (opcode == 0x01 || opcode == 0xae));

    for (unsigned reg = 0; reg < 8; reg++) {
        cell.modrm = (uint8_t)(reg << 3);
        if (encoding != INSN_ENC_LEGACY && map == 2 && (opcode & 0xfc) == 0x90) {
            cell.modrm |= 4;
        }
        cell.is_exact = false;
        add_cell(gen, cell);
        if (!is_exact) {
            cell.modrm = (uint8_t)(0xc0 | reg << 3);
            add_cell(gen, cell);
            continue;
        }
        cell.is_exact = true;
        for (unsigned rm = 0; rm < 8; rm++) {
            cell.modrm = (uint8_t)(0xc0 | reg << 3 | rm);
            add_cell(gen, cell);
        }
    }
}

struct fuzz_gen *fuzz_gen_create(enum insn_mode mode)
{
    struct fuzz_gen *gen = calloc(1, sizeof(*gen));
    struct fuzz_rng rng = {.state = 1};

    if (gen == NULL) {
        return NULL;
    }
    gen->mode = mode;
    for (unsigned i = 0; i < FUZZ_DATA_BYTES; i += 64) {
        fuzz_fill_vector(&rng, fuzz_pristine + i, 64);
    }
    for (unsigned i = 0; i < 4 * 4 * 256; i++) {
        const uint8_t map = (uint8_t)(i >> 10);
        const uint8_t opcode = (uint8_t)(i >> 2);
        const uint8_t pp = i & 3;

        add_opcode(gen, INSN_ENC_LEGACY, map, opcode, pp);
        if (map != 0) {
            add_opcode(gen, INSN_ENC_VEX3, map, opcode, pp);
        }
    }
    return gen;
}

void fuzz_gen_destroy(struct fuzz_gen *gen)
{
    free(gen);
}

unsigned fuzz_gen_cell_count(const struct fuzz_gen *gen)
{
    return gen->count;
}

struct fuzz_cell *fuzz_gen_cell(struct fuzz_gen *gen, unsigned index)
{
    return &gen->cells[index];
}

static unsigned put_prefixes(const struct fuzz_cell *cell, enum insn_mode mode,
                             struct fuzz_rng *rng, uint8_t *p)
{
    static const uint8_t segs[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    unsigned n = 0;

    if (fuzz_chance(rng, 15)) {
        /* In 32-bit mode only bases of 0 that the host has too. */
        p[n++] = segs[fuzz_below(rng, mode == INSN_MODE_64 ? 6 : 4)];
    }
    if (fuzz_chance(rng, 10)) {
        p[n++] = 0x67;
    }
    if (cell->encoding != INSN_ENC_LEGACY) {
        return n;
    }
    if (fuzz_chance(rng, cell->modrm < 0xc0 ? 20 : 2)) {
        p[n++] = 0xf0;
    }
    if (cell->pp != 1 && fuzz_chance(rng, 15)) {
        p[n++] = 0x66;
    }
    if (cell->pp < 2 && fuzz_chance(rng, 3)) {
        p[n++] = (uint8_t)(0xf2 + fuzz_below(rng, 2));
    }
    if (cell->pp != 0) {
        p[n++] = pp_bytes[cell->pp];
    }
    return n;
}

static unsigned put_modrm(const struct fuzz_cell *cell, struct fuzz_rng *rng, uint8_t *p)
{
    uint8_t modrm = cell->modrm;

    if (!cell->is_exact) {
        modrm |= (uint8_t)fuzz_below(rng, 8);
        if (modrm < 0xc0) {
            modrm |= (uint8_t)(fuzz_below(rng, 3) << 6);
        }
    }
    p[0] = modrm;
    return 1;
}

static unsigned put_bytes(const struct fuzz_cell *cell, enum insn_mode mode, struct fuzz_rng *rng,
                          uint8_t *p)
{
    unsigned n = put_prefixes(cell, mode, rng, p);

    if (cell->encoding != INSN_ENC_LEGACY) {
        const uint8_t rxb = mode == INSN_MODE_64 ? (uint8_t)(fuzz_random(rng) & 0xe0) : 0xe0;
        uint8_t last = (uint8_t)(fuzz_random(rng) & 0x80) | cell->pp;

        last |= fuzz_chance(rng, 50) ? 4 : 0;
        last |= fuzz_chance(rng, 40) ? 0x78 : (uint8_t)(fuzz_random(rng) & 0x78);
        if (cell->map == 1 && fuzz_chance(rng, 50)) {
            p[n++] = 0xc5;
            p[n++] = mode == INSN_MODE_64 ? last : (uint8_t)(last | 0xc0);
        } else {
            p[n++] = 0xc4;
            p[n++] = rxb | cell->map;
            p[n++] = last;
        }
        p[n++] = cell->opcode;
    } else {
        if (mode == INSN_MODE_64 && fuzz_chance(rng, 60)) {
            p[n++] = 0x40 | (uint8_t)fuzz_below(rng, 16);
        }
        n += put_opcode(cell, p + n);
    }
    n += put_modrm(cell, rng, p + n);
    while (n < INSN_MAX_BYTES) {
        p[n++] = (uint8_t)(fuzz_chance(rng, 30) ? fuzz_integer(rng) : fuzz_random(rng));
    }
    return n;
}

/* XSAVE takes its mask from RAX and RDX; the host's XCR0 has more than the guest's. */
static bool has_bad_mask(const struct insn *insn)
{
    return (insn->op == INSN_OP_XSAVE || insn->op == INSN_OP_XRSTOR) &&
           (insn->base == X86_RAX || insn->base == X86_RDX || insn->index == X86_RAX ||
            insn->index == X86_RDX);
}

static void choose_bytes(const struct fuzz_gen *gen, const struct fuzz_cell *cell,
                         struct fuzz_rng *rng, struct insn *insn)
{
    uint8_t bytes[INSN_MAX_BYTES];

    for (unsigned tries = 0; tries < 40; tries++) {
        (void)put_bytes(cell, gen->mode, rng, bytes);
        if (insn_decode(bytes, sizeof(bytes), gen->mode, insn) == 0 && is_comparable(insn) &&
            !has_bad_mask(insn) && (insn->op != INSN_OP_UD || fuzz_chance(rng, 5))) {
            return;
        }
    }
    memset(bytes, 0x90, sizeof(bytes));
    if (insn_decode(bytes, sizeof(bytes), gen->mode, insn) != 0) {
        abort(); /* NOP decodes */
    }
}

/* Changes bytes of the instruction and decodes it again. */
static void patch_insn(struct insn *insn, unsigned offset, uint64_t value, unsigned count)
{
    uint8_t bytes[INSN_MAX_BYTES];
    const enum insn_mode mode = (enum insn_mode)insn->mode;

    memcpy(bytes, insn->bytes, sizeof(bytes));
    memcpy(bytes + offset, &value, count);
    if (insn_decode(bytes, sizeof(bytes), mode, insn) != 0) {
        abort(); /* fields do not change the length */
    }
}

/* Where a memory operand of so many bytes is to lie. */
static uint64_t choose_target(struct fuzz_rng *rng, const struct fuzz_case *c, unsigned bytes)
{
    const uint64_t rw_end = FUZZ_DATA_BASE + FUZZ_DATA_RW_BYTES;
    const uint64_t end = FUZZ_DATA_BASE + FUZZ_DATA_BYTES;
    const unsigned kind = fuzz_below(rng, 100);
    uint64_t target = FUZZ_DATA_BASE + fuzz_below(rng, FUZZ_DATA_RW_BYTES - 1024);

    if ((c->insn.flags & INSN_LOCK) != 0 && kind < 96) {
        /* A lock across cache lines would stop the machine for milliseconds. */
        const unsigned align = fuzz_chance(rng, 80) ? 15 : 0;

        target &= ~(uint64_t)align;
        return (target & 63) + bytes > 64 ? target & ~63ull : target;
    }
    if (kind < 55) {
        return target & ~63ull;
    }
    if (kind < 75) {
        return target;
    }
    if (kind < 82) {
        return FUZZ_DATA_BASE + 0x1000u * (1 + fuzz_below(rng, 2)) - fuzz_below(rng, bytes + 1);
    }
    if (kind < 85) {
        return rw_end - fuzz_below(rng, bytes + 1);
    }
    if (kind < 88) {
        return rw_end + 64 * fuzz_below(rng, 32);
    }
    if (kind < 91) {
        return end - fuzz_below(rng, bytes + 1);
    }
    if (kind < 93) {
        return FUZZ_DATA_BASE - fuzz_below(rng, bytes + 1);
    }
    if (kind < 95) {
        return end + 64 * fuzz_below(rng, 1024);
    }
    if (kind < 97) {
        return 0x0000800000000000ull + (fuzz_random(rng) >> 17) - fuzz_below(rng, 2) * bytes;
    }
    if (kind < 98 && c->insn.op != INSN_OP_VMASKMOV && c->insn.op != INSN_OP_BIT_MEM) {
        return 0x00007fffffffffffull - fuzz_below(rng, 64); /* the last bytes of the lower half */
    }
    return fuzz_below(rng, 4096);
}

static uint64_t segment_base(const struct fuzz_case *c)
{
    if (c->insn.mode != INSN_MODE_64) {
        return 0;
    }
    return c->insn.seg == X86_FS   ? c->before.fs_base
           : c->insn.seg == X86_GS ? c->before.gs_base
                                   : 0;
}

static uint64_t address_mask(const struct insn *insn)
{
    return insn->addrsize_bytes == 8 ? UINT64_MAX : (1ull << insn->addrsize_bytes * 8) - 1;
}

static bool fits_disp(const struct insn *insn, uint64_t disp)
{
    return insn->disp_bytes >= insn->addrsize_bytes || disp == (uint64_t)(int64_t)(int32_t)disp;
}

/* The registers of a vector index: small numbers, so that the addresses stay near. */
static void shrink_vector_index(struct fuzz_rng *rng, struct fuzz_case *c)
{
    const unsigned element = (c->insn.opcode & 1) != 0 ? 8 : 4;

    for (unsigned half = 0; half < 2; half++) {
        uint8_t *p = c->before.xsave + (half == 0 ? 160 : 576) + 16 * c->insn.index;

        for (unsigned i = 0; i < 16; i += element) {
            const int64_t value = (int64_t)fuzz_below(rng, 512) - 256;

            memcpy(p + i, &value, element);
        }
    }
}

/* Sets registers or displacement so that the memory operand lies at target, where that can be. */
static void aim(struct fuzz_rng *rng, struct fuzz_case *c, uint64_t target)
{
    struct insn *insn = &c->insn;
    uint64_t *gpr = c->before.gpr;
    const uint64_t want = target - segment_base(c);
    const bool is_vsib = insn->op == INSN_OP_GATHER;
    const uint64_t upper = insn->addrsize_bytes == 8
                               ? 0
                               : fuzz_random(rng) & ~address_mask(insn) &
                                     (insn->mode == INSN_MODE_64 ? UINT64_MAX : 0xffffffff);

    if (is_vsib && fuzz_chance(rng, 95)) {
        shrink_vector_index(rng, c);
    }
    if (insn->base == INSN_REG_RIP ||
        (insn->base == INSN_REG_NONE && insn->index == INSN_REG_NONE)) {
        const uint64_t next = insn->base == INSN_REG_RIP ? c->before.rip + insn->len : 0;

        if (insn->disp_bytes != 0 && fits_disp(insn, want - next)) {
            patch_insn(insn, insn->disp_off, want - next, insn->disp_bytes);
        }
        return;
    }
    if (insn->base == INSN_REG_NONE) {
        gpr[insn->index] =
            is_vsib ? gpr[insn->index] : ((want - (uint64_t)insn->disp) / insn->scale) | upper;
        return;
    }
    if (insn->index == INSN_REG_NONE || is_vsib) {
        gpr[insn->base] = ((want - (uint64_t)insn->disp) & address_mask(insn)) | upper;
        return;
    }
    if (insn->index == insn->base) {
        gpr[insn->base] = (want - (uint64_t)insn->disp) / (1u + insn->scale);
        return;
    }
    gpr[insn->base] =
        ((want - (uint64_t)insn->disp - gpr[insn->index] * insn->scale) & address_mask(insn)) |
        upper;
}

static uint64_t code_address(struct fuzz_rng *rng, const struct fuzz_case *c)
{
    uint64_t address;

    do {
        address = FUZZ_CODE_BASE + fuzz_below(rng, FUZZ_CODE_BYTES);
    } while (address + 16 >= c->before.rip && address < c->before.rip + 16);
    return fuzz_chance(rng, 90) ? address : fuzz_integer(rng) | 1ull << 62;
}

/* Puts bytes into the zone at an address, when they fit; the patch is one piece. */
static void set_patch(struct fuzz_case *c, uint64_t address, const void *bytes, unsigned count)
{
    if (address < FUZZ_DATA_BASE || address + count > FUZZ_DATA_BASE + FUZZ_DATA_BYTES) {
        return;
    }
    c->patch_offset = (unsigned)(address - FUZZ_DATA_BASE);
    c->patch_bytes = count;
    memcpy(c->patch, bytes, count);
}

static void patch_operand(struct fuzz_rng *rng, struct fuzz_case *c, uint64_t target)
{
    uint8_t contents[1024];
    unsigned count = 64;

    fuzz_fill_vector(rng, contents, 64);
    switch (c->insn.op) {
    case INSN_OP_JMP_IND:
    case INSN_OP_CALL_IND: {
        const uint64_t address = code_address(rng, c);

        memcpy(contents, &address, sizeof(address));
        break;
    }
    case INSN_OP_FXRSTOR:
    case INSN_OP_XRSTOR:
        memcpy(contents, c->before.xsave, sizeof(contents));
        fuzz_fill_xsave(rng, contents);
        count = sizeof(c->patch);
        if (fuzz_chance(rng, 20)) {
            /* Not the low half of XSTATE_BV: the host may have those components. */
            contents[516 + fuzz_below(rng, 20)] ^= (uint8_t)(1u << fuzz_below(rng, 8));
        }
        contents[512] &= (uint8_t)fuzz_random(rng);
        break;
    default:
        if (c->insn.map == 1 && c->insn.opcode == 0xae && fuzz_chance(rng, 85)) {
            contents[2] = 0; /* LDMXCSR */
            contents[3] = 0;
        }
        break;
    }
    set_patch(c, target, contents, count);
}

void fuzz_gen_registers(struct fuzz_rng *rng, struct fuzz_case *c)
{
    const uint64_t mask = c->insn.mode == INSN_MODE_64 ? UINT64_MAX : 0xffffffffu;

    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        c->before.gpr[i] = fuzz_integer(rng) & mask;
    }
    if (c->insn.mode != INSN_MODE_64) {
        memset(c->before.gpr + 8, 0, 8 * sizeof(c->before.gpr[0]));
    }
    c->before.rflags = X86_FLAG_FIXED1 | X86_FLAG_IF | (fuzz_random(rng) & X86_FLAGS_ARITH) |
                       (fuzz_chance(rng, 30) ? X86_FLAG_DF : 0);
    c->before.fs_base = fuzz_chance(rng, 30) ? 0 : fuzz_random(rng) >> (17 + fuzz_below(rng, 30));
    c->before.gs_base = fuzz_chance(rng, 30) ? 0 : fuzz_random(rng) >> (17 + fuzz_below(rng, 30));
    if (c->insn.mode != INSN_MODE_64) {
        c->before.fs_base = 0;
        c->before.gs_base = 0;
    }
    fuzz_fill_xsave(rng, c->before.xsave);
}

/* The stack, with what RET and POPF take from it. */
static void set_stack(struct fuzz_rng *rng, struct fuzz_case *c)
{
    uint64_t top[4];
    uint64_t rsp = choose_target(rng, c, 8);

    if (fuzz_chance(rng, 70)) {
        rsp = FUZZ_DATA_BASE + 0x800 + fuzz_below(rng, 0x1800);
        rsp &= fuzz_chance(rng, 90) ? ~7ull : ~0ull;
    }
    fuzz_fill_vector(rng, (uint8_t *)top, sizeof(top));
    if (c->insn.op == INSN_OP_RET) {
        top[0] = code_address(rng, c);
    } else if (c->insn.op == INSN_OP_POPF) {
        /* Not TF, NT, AC: they change what comes after. */
        top[0] &= ~(uint64_t)(X86_FLAG_TF | X86_FLAG_NT | X86_FLAG_AC);
    }
    if (c->insn.mode != INSN_MODE_64) {
        rsp &= 0xffffffffu;
    }
    c->before.gpr[X86_RSP] = rsp;
    if (c->insn.op == INSN_OP_LEAVE || c->insn.op == INSN_OP_ENTER) {
        c->before.gpr[X86_RBP] = rsp + (fuzz_chance(rng, 80) ? 64 : fuzz_random(rng));
        if (c->insn.mode != INSN_MODE_64) {
            c->before.gpr[X86_RBP] &= 0xffffffffu;
        }
    }
    set_patch(c, rsp, top, sizeof(top));
}

static void set_string(struct fuzz_rng *rng, struct fuzz_case *c)
{
    uint64_t *gpr = c->before.gpr;
    const uint64_t mask = address_mask(&c->insn);
    const uint64_t source_base = segment_base(c);

    gpr[X86_RDI] = choose_target(rng, c, c->insn.opsize_bytes) & mask;
    gpr[X86_RSI] = (choose_target(rng, c, c->insn.opsize_bytes) - source_base) & mask;
    if (fuzz_chance(rng, 30)) {
        gpr[X86_RDI] = gpr[X86_RSI] + source_base + fuzz_below(rng, 16) - 8;
        gpr[X86_RDI] &= mask;
    }
    gpr[X86_RCX] = fuzz_chance(rng, 97) ? fuzz_below(rng, 24) : fuzz_integer(rng);
    if (c->insn.mode == INSN_MODE_64 && mask != UINT64_MAX && fuzz_chance(rng, 70)) {
        gpr[X86_RDI] |= fuzz_random(rng) << 32;
        gpr[X86_RSI] |= fuzz_random(rng) << 32;
        gpr[X86_RCX] |= fuzz_random(rng) << 32;
    }
    if (c->insn.mode != INSN_MODE_64) {
        gpr[X86_RCX] &= 0xffffffffu;
    }
}

/* Registers that an instruction uses for addresses or counts without a modrm operand. */
static void set_implicit(struct fuzz_rng *rng, struct fuzz_case *c)
{
    uint64_t *gpr = c->before.gpr;
    const uint8_t op = c->insn.op;

    if (op == INSN_OP_PUSH || op == INSN_OP_POP || op == INSN_OP_PUSH_SEG || op == INSN_OP_PUSHF ||
        op == INSN_OP_POPF || op == INSN_OP_CALL || op == INSN_OP_CALL_IND || op == INSN_OP_RET ||
        op == INSN_OP_ENTER || op == INSN_OP_LEAVE || op == INSN_OP_PUSHA || op == INSN_OP_POPA) {
        set_stack(rng, c);
    }
    if (op >= INSN_OP_MOVS && op <= INSN_OP_OUTS) {
        set_string(rng, c);
    }
    if (op == INSN_OP_XLAT) {
        gpr[X86_RBX] = (choose_target(rng, c, 1) - segment_base(c) - (gpr[X86_RAX] & 0xff)) &
                       address_mask(&c->insn);
    }
    if (op == INSN_OP_MASKMOV) {
        gpr[X86_RDI] = (choose_target(rng, c, 16) - segment_base(c)) & address_mask(&c->insn);
    }
    if (op == INSN_OP_XSAVE || op == INSN_OP_XRSTOR) {
        gpr[X86_RAX] = (gpr[X86_RAX] & 0xffffffff00000000ull) | (fuzz_random(rng) & 7);
        gpr[X86_RDX] &= 0xffffffff00000000ull;
    }
    if (op == INSN_OP_ENTER && fuzz_chance(rng, 90)) {
        patch_insn(&c->insn, c->insn.imm_off, c->insn.imm & 0x1f01ff, 3);
    }
    if ((op == INSN_OP_JMP_IND || op == INSN_OP_CALL_IND) && c->insn.rm != INSN_REG_NONE) {
        gpr[c->insn.rm] = code_address(rng, c);
    }
    if (op == INSN_OP_BIT_MEM && fuzz_chance(rng, 90)) {
        gpr[c->insn.reg] = (uint64_t)((int64_t)fuzz_below(rng, 4096) - 2048);
    }
    if (op == INSN_OP_LOOP || op == INSN_OP_JCXZ) {
        gpr[X86_RCX] = fuzz_chance(rng, 60) ? fuzz_below(rng, 3) : gpr[X86_RCX];
    }
}

static bool is_relative_branch(uint8_t op)
{
    return op == INSN_OP_JCC || op == INSN_OP_JCXZ || op == INSN_OP_LOOP || op == INSN_OP_JMP ||
           op == INSN_OP_CALL;
}

/* Wide displacements lead into the code region, none into the instruction itself. */
static void set_branch(struct fuzz_rng *rng, struct fuzz_case *c)
{
    struct insn *insn = &c->insn;
    uint64_t next = c->before.rip + insn->len;

    if (!is_relative_branch(insn->op)) {
        return;
    }
    if (insn->imm_bytes == 4 && fuzz_chance(rng, 90)) {
        patch_insn(insn, insn->imm_off, code_address(rng, c) - next, 4);
    }
    while (next + insn->imm >= c->before.rip && next + insn->imm < next) {
        patch_insn(insn, insn->imm_off, fuzz_random(rng), insn->imm_bytes);
    }
}

static void choose_rip(struct fuzz_rng *rng, struct fuzz_case *c)
{
    uint64_t offset = 256 + fuzz_below(rng, FUZZ_CODE_BYTES - 512);
    const unsigned kind = fuzz_below(rng, 100);

    if (kind < 5) {
        offset = (offset & ~0xfffull) + 0x1000 - fuzz_below(rng, c->insn.len + 1);
    } else if (kind < 6) {
        offset = FUZZ_CODE_BYTES - 1 - fuzz_below(rng, c->insn.len);
    }
    c->before.rip = FUZZ_CODE_BASE + (offset < FUZZ_CODE_BYTES ? offset : 256);
}

uint64_t fuzz_linear_address(const struct fuzz_case *c)
{
    const struct insn *insn = &c->insn;
    uint64_t offset = (uint64_t)insn->disp;

    if (insn->base == INSN_REG_RIP) {
        offset += c->before.rip + insn->len;
    } else if (insn->base != INSN_REG_NONE) {
        offset += c->before.gpr[insn->base];
    }
    if (insn->index != INSN_REG_NONE) {
        offset += c->before.gpr[insn->index] * insn->scale;
    }
    return (offset & address_mask(insn)) + segment_base(c);
}

/*
 * A lock across cache lines takes milliseconds, or for ever where a hypervisor
 * watches for it: not here. Misaligned LOCK becomes a plain instruction, XCHG a TEST.
 */
static void avoid_split_lock(struct fuzz_case *c)
{
    const uint64_t address = fuzz_linear_address(c);
    const bool is_split = (address & 63) + c->insn.mem_bytes > 64 ||
                          (c->insn.op == INSN_OP_BIT_MEM && (address & 7) != 0);

    if ((c->insn.flags & INSN_LOCK) == 0 || !is_split) {
        return;
    }
    for (unsigned i = 0; i < c->insn.opcode_off; i++) {
        if (c->insn.bytes[i] == 0xf0) {
            patch_insn(&c->insn, i, 0x2e, 1);
        }
    }
    if ((c->insn.flags & INSN_LOCK) != 0) {
        patch_insn(&c->insn, c->insn.opcode_off, 0x85, 1); /* XCHG: TEST */
    }
}

void fuzz_gen_case(struct fuzz_gen *gen, uint64_t seed, uint64_t index, struct fuzz_case *ret_case,
                   struct fuzz_cell **ret_cell)
{
    struct fuzz_rng rng = {.state = seed ^ (index * 0xd1342543de82ef95ull)};
    struct fuzz_case *c = ret_case;
    struct fuzz_cell *cell = &gen->cells[index % gen->count];
    uint64_t target;

    c->index = index;
    c->patch_bytes = 0;
    c->patch_offset = 0;
    (void)fuzz_random(&rng);
    choose_bytes(gen, cell, &rng, &c->insn);
    choose_rip(&rng, c);
    fuzz_gen_registers(&rng, c);
    set_implicit(&rng, c);
    set_branch(&rng, c);
    if (c->insn.rm == INSN_REG_NONE && (c->insn.modrm_off != 0 || c->insn.mem_bytes != 0)) {
        target = choose_target(&rng, c, c->insn.mem_bytes != 0 ? c->insn.mem_bytes : 8);
        aim(&rng, c, target);
        avoid_split_lock(c);
        if (c->insn.op != INSN_OP_POP || c->patch_bytes == 0) {
            patch_operand(&rng, c, target);
        }
    }
    for (unsigned i = 0; i < X86_GPR_COUNT && gen->mode != INSN_MODE_64; i++) {
        c->before.gpr[i] &= i < 8 ? 0xffffffffu : 0;
    }
    c->is_nondeterministic = c->insn.op == INSN_OP_COPY && c->insn.map == 1 &&
                             c->insn.opcode == 0xc7 && c->insn.rm != INSN_REG_NONE;
    c->is_block = false;
    c->code_bytes = c->insn.len;
    memcpy(c->code, c->insn.bytes, c->insn.len);
    *ret_cell = cell;
}

void fuzz_gen_random_insn(struct fuzz_gen *gen, struct fuzz_rng *rng, struct insn *ret_insn)
{
    choose_bytes(gen, &gen->cells[fuzz_below(rng, gen->count)], rng, ret_insn);
}
