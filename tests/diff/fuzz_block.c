/*
 * Blocks: instructions that compute with random registers and touch memory only
 * through registers that none of them writes, so that most run to their end.
 */
#include "fuzz.h"

#include <string.h>

#define BLOCK_INSNS_MAX 12u
#define BIT(r) (1u << (r))

/* Registers for addresses; 32-bit code has no R13 to R15. */
struct anchors {
    unsigned bases; /* mask of GPRs that hold an address in the zone */
    uint8_t index;  /* holds a small number */
};

static struct anchors anchors_of(enum insn_mode mode)
{
    if (mode == INSN_MODE_64) {
        return (struct anchors){BIT(X86_RBX) | BIT(X86_RSI) | BIT(X86_R12) | BIT(X86_R14), X86_R13};
    }
    return (struct anchors){BIT(X86_RBX) | BIT(X86_RSI), X86_RDI};
}

static bool is_plain(const struct insn *insn)
{
    switch (insn->op) {
    case INSN_OP_COPY:
        /* RDRAND, RDSEED */
        return !(insn->map == 1 && insn->opcode == 0xc7 && insn->rm != INSN_REG_NONE);
    case INSN_OP_LEA:
    case INSN_OP_NOP:
    case INSN_OP_PUSH:
    case INSN_OP_POP:
    case INSN_OP_PUSHF:
    case INSN_OP_CALL:
        return true;
    default:
        return false;
    }
}

/* The memory operand stays in the zone whatever the block computes. */
static bool is_anchored(const struct insn *insn, const struct anchors *a)
{
    if (insn->mem_bytes == 0) {
        return true;
    }
    if (insn->seg == X86_FS || insn->seg == X86_GS || insn->disp_bytes == 0 ||
        insn->addrsize_bytes == 2 || insn->mem_bytes > 64) {
        return false;
    }
    if (insn->index != INSN_REG_NONE && insn->index != a->index) {
        return false;
    }
    if (insn->base == INSN_REG_NONE || insn->base == INSN_REG_RIP) {
        return insn->index == INSN_REG_NONE && insn->disp_bytes == 4;
    }
    return (a->bases & BIT(insn->base)) != 0;
}

static bool is_acceptable(const struct insn *insn, const struct anchors *a)
{
    const bool is_stack = insn->op == INSN_OP_PUSH || insn->op == INSN_OP_POP ||
                          insn->op == INSN_OP_PUSHF || insn->op == INSN_OP_CALL;
    const unsigned kept = a->bases | BIT(a->index) | (is_stack ? 0 : BIT(X86_RSP));

    return is_plain(insn) && is_anchored(insn, a) && (insn->gpr_written & kept) == 0 &&
           !(insn->op == INSN_OP_POP && insn->reg == X86_RSP);
}

/* Sets the displacement so that the operand lies aligned in the zone. */
static void place_operand(struct fuzz_rng *rng, const struct fuzz_case *c, struct insn *insn,
                          uint64_t next_rip)
{
    const uint64_t slot = 64u * fuzz_below(rng, 8);
    uint8_t *disp = insn->bytes + insn->disp_off;
    uint64_t value;

    if (insn->mem_bytes == 0) {
        return;
    }
    if (insn->base == INSN_REG_RIP || insn->base == INSN_REG_NONE) {
        value = FUZZ_DATA_BASE + 0x400 + slot - (insn->base == INSN_REG_RIP ? next_rip : 0);
    } else {
        value = insn->disp_bytes == 1 ? 0 : slot;
        if (insn->index != INSN_REG_NONE) {
            value -= c->before.gpr[insn->index] * insn->scale;
        }
    }
    memcpy(disp, &value, insn->disp_bytes);
}

static void add_branch(struct fuzz_rng *rng, struct fuzz_case *c, unsigned next_len)
{
    /* Over the next instruction or to it. */
    c->code[c->code_bytes++] = (uint8_t)(0x70 | fuzz_below(rng, 16));
    c->code[c->code_bytes++] = (uint8_t)(fuzz_chance(rng, 50) ? next_len : 0);
}

static void set_anchors(struct fuzz_rng *rng, const struct anchors *a, struct fuzz_case *c)
{
    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        if ((a->bases & BIT(i)) != 0) {
            c->before.gpr[i] = FUZZ_DATA_BASE + 0x800 + 64u * fuzz_below(rng, 16);
        }
    }
    c->before.gpr[a->index] = fuzz_below(rng, 64);
    c->before.gpr[X86_RSP] = FUZZ_DATA_BASE + 0x2000 + 8u * fuzz_below(rng, 64);
    c->before.rflags &= ~(uint64_t)X86_FLAG_DF;
}

static bool choose_insn(struct fuzz_gen *gen, struct fuzz_rng *rng, const struct anchors *a,
                        struct insn *insn)
{
    for (unsigned tries = 0; tries < 64; tries++) {
        fuzz_gen_random_insn(gen, rng, insn);
        if (is_acceptable(insn, a)) {
            return true;
        }
    }
    return false;
}

void fuzz_block_case(struct fuzz_gen *gen, uint64_t seed, uint64_t index,
                     struct fuzz_case *ret_case)
{
    struct fuzz_rng rng = {.state = seed ^ (index * 0xd1342543de82ef95ull) ^ 0x5555};
    struct fuzz_case *c = ret_case;
    const unsigned count = 2 + fuzz_below(&rng, BLOCK_INSNS_MAX - 1);
    struct anchors a;

    memset(c, 0, sizeof(*c));
    c->index = index;
    c->is_block = true;
    c->before.rip = FUZZ_CODE_BASE + 256u * fuzz_below(&rng, FUZZ_CODE_BYTES / 256);
    fuzz_gen_random_insn(gen, &rng, &c->insn);
    a = anchors_of((enum insn_mode)c->insn.mode);
    fuzz_gen_registers(&rng, c);
    set_anchors(&rng, &a, c);
    for (unsigned i = 0; i < count; i++) {
        struct insn insn;

        if (!choose_insn(gen, &rng, &a, &insn)) {
            continue;
        }
        if (fuzz_chance(&rng, 20)) {
            add_branch(&rng, c, insn.len);
        }
        if (insn.op == INSN_OP_CALL) {
            memset(insn.bytes + insn.imm_off, 0, insn.imm_bytes); /* to the next one */
        }
        place_operand(&rng, c, &insn, c->before.rip + c->code_bytes + insn.len);
        memcpy(c->code + c->code_bytes, insn.bytes, insn.len);
        c->code_bytes += insn.len;
        c->insn = insn;
    }
}
