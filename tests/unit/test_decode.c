/*
 * The decoder against Zydis: millions of enumerated and random encodings in
 * three modes; length, memory operand, registers and flags must agree. What
 * may differ stands in a list with its reason. And what Zydis cannot tell.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/decode.h"
#include "test.h"

#ifdef HAVE_ZYDIS
#include <Zydis/Zydis.h>

enum difference {
    DIFF_VALID = 1,
    DIFF_LEN = 2,
    DIFF_MEM_BYTES = 4,
    DIFF_MEM_ACCESS = 8,
    DIFF_ADDRESS = 16,
    DIFF_GPR_READ = 32,
    DIFF_GPR_WRITTEN = 64,
    DIFF_FLAGS_READ = 128,
    DIFF_FLAGS_WRITTEN = 256,
    DIFF_FLAGS_UNDEFINED = 512,
    DIFF_IMM = 1024
};

#define COUNT_REASON "Zydis does not look at the count"
#define DIFF_FLAGS_ALL (DIFF_FLAGS_READ | DIFF_FLAGS_WRITTEN | DIFF_FLAGS_UNDEFINED)
#define BT_REASON "all but CF stay as they were"
#define TEST_REASON "the other flags are cleared (SDM 2B PTEST)"
#define LINE_REASON "the access is checked as of one byte"

static const struct allowed {
    ZydisMnemonic mnemonic;
    unsigned differences;
    const char *reason;
} allowed[] = {
    {ZYDIS_MNEMONIC_RSM, DIFF_VALID, "there is no SMM here"},
    {ZYDIS_MNEMONIC_SBB, DIFF_FLAGS_UNDEFINED, "AF is defined (SDM 2B SBB)"},
    {ZYDIS_MNEMONIC_SHLD, DIFF_FLAGS_UNDEFINED, COUNT_REASON},
    {ZYDIS_MNEMONIC_SHRD, DIFF_FLAGS_UNDEFINED, COUNT_REASON},
    {ZYDIS_MNEMONIC_ROL, DIFF_FLAGS_ALL, COUNT_REASON},
    {ZYDIS_MNEMONIC_ROR, DIFF_FLAGS_ALL, COUNT_REASON},
    {ZYDIS_MNEMONIC_RCL, DIFF_FLAGS_ALL, COUNT_REASON},
    {ZYDIS_MNEMONIC_RCR, DIFF_FLAGS_ALL, COUNT_REASON},
    {ZYDIS_MNEMONIC_SHL, DIFF_FLAGS_UNDEFINED, COUNT_REASON},
    {ZYDIS_MNEMONIC_SHR, DIFF_FLAGS_UNDEFINED, COUNT_REASON},
    {ZYDIS_MNEMONIC_SAR, DIFF_FLAGS_UNDEFINED, COUNT_REASON},
    {ZYDIS_MNEMONIC_BSF, DIFF_GPR_READ, "a source of 0 leaves the destination"},
    {ZYDIS_MNEMONIC_BSR, DIFF_GPR_READ, "a source of 0 leaves the destination"},
    {ZYDIS_MNEMONIC_INVLPG, DIFF_MEM_BYTES | DIFF_MEM_ACCESS, "it accesses no memory"},
    {ZYDIS_MNEMONIC_CLFLUSH, DIFF_MEM_BYTES, LINE_REASON},
    {ZYDIS_MNEMONIC_CLFLUSHOPT, DIFF_MEM_BYTES, LINE_REASON},
    {ZYDIS_MNEMONIC_CLWB, DIFF_MEM_BYTES, LINE_REASON},
    {ZYDIS_MNEMONIC_MOVSXD, DIFF_MEM_BYTES, "with prefix 66 it reads two bytes (SDM 2B MOVSXD)"},
    {ZYDIS_MNEMONIC_BT, DIFF_FLAGS_ALL, BT_REASON},
    {ZYDIS_MNEMONIC_BTC, DIFF_FLAGS_ALL, BT_REASON},
    {ZYDIS_MNEMONIC_BTR, DIFF_FLAGS_ALL, BT_REASON},
    {ZYDIS_MNEMONIC_BTS, DIFF_FLAGS_ALL, BT_REASON},
    {ZYDIS_MNEMONIC_BEXTR, DIFF_FLAGS_UNDEFINED, "CF and OF are cleared (SDM 2A BEXTR)"},
    {ZYDIS_MNEMONIC_VTESTPS, DIFF_FLAGS_WRITTEN, TEST_REASON},
    {ZYDIS_MNEMONIC_VTESTPD, DIFF_FLAGS_WRITTEN, TEST_REASON},
    {ZYDIS_MNEMONIC_VPTEST, DIFF_FLAGS_WRITTEN, TEST_REASON},
    {ZYDIS_MNEMONIC_RDSSPD, DIFF_GPR_WRITTEN, "a NOP without CET"},
    {ZYDIS_MNEMONIC_RDSSPQ, DIFF_GPR_WRITTEN, "a NOP without CET"},
};

/* Instruction sets that the CPUID policy shows. */
static bool is_promised(const ZydisDecodedInstruction *z)
{
    switch (z->meta.isa_set) {
    case ZYDIS_ISA_SET_ADOX_ADCX:
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_AVX:
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER:
    case ZYDIS_ISA_SET_AVXAES:
    case ZYDIS_ISA_SET_BMI1:
    case ZYDIS_ISA_SET_BMI2:
    case ZYDIS_ISA_SET_CLFLUSHOPT:
    case ZYDIS_ISA_SET_CLFSH:
    case ZYDIS_ISA_SET_CLWB:
    case ZYDIS_ISA_SET_CMOV:
    case ZYDIS_ISA_SET_CMPXCHG16B:
    case ZYDIS_ISA_SET_F16C:
    case ZYDIS_ISA_SET_FAT_NOP:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_FMA:
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_I186:
    case ZYDIS_ISA_SET_I286PROTECTED:
    case ZYDIS_ISA_SET_I286REAL:
    case ZYDIS_ISA_SET_I386:
    case ZYDIS_ISA_SET_I486:
    case ZYDIS_ISA_SET_I486REAL:
    case ZYDIS_ISA_SET_I86:
    case ZYDIS_ISA_SET_INVPCID:
    case ZYDIS_ISA_SET_LAHF:
    case ZYDIS_ISA_SET_LONGMODE:
    case ZYDIS_ISA_SET_LZCNT:
    case ZYDIS_ISA_SET_MOVBE:
    case ZYDIS_ISA_SET_PAUSE:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_PENTIUMREAL:
    case ZYDIS_ISA_SET_POPCNT:
    case ZYDIS_ISA_SET_PPRO:
    case ZYDIS_ISA_SET_PREFETCH_NOP:
    case ZYDIS_ISA_SET_RDPMC:
    case ZYDIS_ISA_SET_RDRAND:
    case ZYDIS_ISA_SET_RDSEED:
    case ZYDIS_ISA_SET_RDTSCP:
    case ZYDIS_ISA_SET_RDWRFSGS:
    case ZYDIS_ISA_SET_SHA:
    case ZYDIS_ISA_SET_SMAP:
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSE3X87:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_SSEMXCSR:
    case ZYDIS_ISA_SET_SSE_PREFETCH:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX:
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEC:
    case ZYDIS_ISA_SET_XSAVEOPT:
        return true;
    default:
        return false;
    }
}

static int gpr_number(ZydisRegister reg)
{
    const ZydisRegister wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);

    if (wide < ZYDIS_REGISTER_RAX || wide > ZYDIS_REGISTER_R15) {
        return -1;
    }
    return (int)wide - ZYDIS_REGISTER_RAX;
}

static uint16_t gpr_bit(ZydisRegister reg)
{
    const int number = gpr_number(reg);

    if (number < 0) {
        return 0;
    }
    return (uint16_t)(1u << number);
}

static bool is_wide_gpr(ZydisRegister reg)
{
    const ZydisRegisterClass class = ZydisRegisterGetClass(reg);

    return class == ZYDIS_REGCLASS_GPR32 || class == ZYDIS_REGCLASS_GPR64;
}

struct expected {
    uint16_t read;
    uint16_t written;
    uint16_t flags_read;
    uint16_t flags_written;
    uint16_t flags_undefined;
    const ZydisDecodedOperand *mem;
};

static struct expected expect(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operands)
{
    struct expected e = {0};

    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *o = &operands[i];

        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (z->meta.category != ZYDIS_CATEGORY_WIDENOP &&
                z->meta.category != ZYDIS_CATEGORY_PREFETCH) {
                e.read |= gpr_bit(o->mem.base) | gpr_bit(o->mem.index);
            }
            if (o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
                e.mem = o;
            }
        } else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            const uint16_t bit = gpr_bit(o->reg.value);

            if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0) {
                e.read |= bit;
            }
            if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0) {
                e.written |= bit;
                if ((o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE) != 0 ||
                    !is_wide_gpr(o->reg.value)) {
                    e.read |= bit;
                }
            }
        }
    }
    if (z->cpu_flags != NULL) {
        e.flags_read = (uint16_t)(z->cpu_flags->tested & X86_FLAGS_ARITH);
        e.flags_written = (uint16_t)((z->cpu_flags->modified | z->cpu_flags->set_0 |
                                      z->cpu_flags->set_1 | z->cpu_flags->undefined) &
                                     X86_FLAGS_ARITH);
        e.flags_undefined = (uint16_t)(z->cpu_flags->undefined & X86_FLAGS_ARITH);
    }
    return e;
}

/* Zydis 4.0.0 takes SIB base 101b with mod 00b and REX.B for R13D when 67 is there; SDM 2A table
 * 2-3 has no base in this case whatever REX.B. */
static bool is_zydis_r13_bug(const struct insn *insn)
{
    return insn->sib_off != 0 && insn->addrsize_bytes == 4 && (insn->rex & 1) != 0 &&
           (insn->bytes[insn->sib_off] & 7) == 5 && (insn->bytes[insn->modrm_off] & 0xc0) == 0;
}

static uint64_t address_mask(const struct insn *insn)
{
    return insn->addrsize_bytes == 8 ? UINT64_MAX : (1ull << insn->addrsize_bytes * 8) - 1;
}

/* LEA has no segment; 3E on an indirect branch is NOTRACK to Zydis, but DS as well. */
static bool is_same_segment(const struct insn *insn, const ZydisDecodedOperand *mem)
{
    return mem->mem.type == ZYDIS_MEMOP_TYPE_AGEN || insn->op == INSN_OP_CALL_IND ||
           insn->op == INSN_OP_JMP_IND || insn->seg == (int)mem->mem.segment - ZYDIS_REGISTER_ES;
}

static unsigned compare_memory(const struct insn *insn, const ZydisDecodedOperand *mem)
{
    unsigned differences = 0;
    int base = gpr_number(mem->mem.base);
    int index = gpr_number(mem->mem.index);
    const bool is_access =
        (mem->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_MASK_WRITE)) != 0 &&
        mem->mem.type == ZYDIS_MEMOP_TYPE_MEM;
    unsigned flags = 0;

    if (base < 0) {
        base = mem->mem.base == ZYDIS_REGISTER_RIP || mem->mem.base == ZYDIS_REGISTER_EIP
                   ? INSN_REG_RIP
                   : INSN_REG_NONE;
    }
    if (mem->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
        index = insn->index;
    } else if (index < 0) {
        index = INSN_REG_NONE;
    }
    if (insn->op == INSN_OP_NOP) {
        return 0;
    }
    if (is_zydis_r13_bug(insn)) {
        return insn->base == INSN_REG_NONE ? 0 : DIFF_ADDRESS;
    }
    if (insn->base != base || insn->index != index ||
        (index != INSN_REG_NONE && insn->scale != mem->mem.scale) ||
        ((uint64_t)(insn->disp ^ mem->mem.disp.value) & address_mask(insn)) != 0 ||
        !is_same_segment(insn, mem)) {
        differences |= DIFF_ADDRESS;
    }
    if ((mem->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0) {
        flags |= INSN_MEM_READ;
    }
    if ((mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0) {
        flags |= INSN_MEM_WRITE;
    }
    if (is_access) {
        if (insn->mem_bytes * 8 != mem->size) {
            differences |= DIFF_MEM_BYTES;
        }
        if (insn->mem_flags != flags) {
            differences |= DIFF_MEM_ACCESS;
        }
    } else if (insn->mem_flags != 0 && mem->mem.type != ZYDIS_MEMOP_TYPE_VSIB) {
        differences |= DIFF_MEM_ACCESS;
    }
    return differences;
}

/* Written only sometimes: ours are then read and not written. */
static bool is_conditional(const struct insn *insn, uint16_t zydis_written)
{
    return insn->flags_written == 0 && (insn->flags_read & zydis_written) == zydis_written;
}

static bool is_shift_by_zero(const struct insn *insn)
{
    const bool is_shift = (insn->map == 0 && (insn->opcode | 1) == 0xc1) ||
                          (insn->map == 1 && (insn->opcode | 8) == 0xac);

    return is_shift && (insn->imm & (insn->opsize_bytes == 8 ? 63 : 31)) == 0;
}

/* Where we say more than Zydis. */
static void adjust(const struct insn *insn, struct expected *e)
{
    if (insn->op == INSN_OP_NOP) {
        e->read = 0;
    }
    if (insn->op >= INSN_OP_MOVS && insn->op <= INSN_OP_OUTS) {
        /* Zydis does not list that rSI and rDI move, nor that REP may do nothing. */
        e->written |= e->read & (1u << X86_RSI | 1u << X86_RDI);
        if ((insn->flags & (INSN_REP | INSN_REPNE)) != 0) {
            e->written |= 1u << X86_RCX;
            e->read |= e->written;
        }
    }
    if (insn->opsize_bytes != 0 && insn->imm_bytes == 1 && e->flags_written != 0 &&
        is_shift_by_zero(insn)) {
        e->flags_read = 0;
        e->flags_written = 0;
        e->flags_undefined = 0;
    }
    if (is_zydis_r13_bug(insn) && insn->reg != X86_R13 && insn->index != X86_R13 &&
        insn->vex_vvvv != X86_R13) {
        e->read &= (uint16_t) ~(1u << X86_R13);
    }
}

static unsigned compare(const struct insn *insn, const ZydisDecodedInstruction *z,
                        const ZydisDecodedOperand *operands)
{
    struct expected e = expect(z, operands);
    unsigned differences = 0;

    adjust(insn, &e);

    if (insn->len != z->length) {
        differences |= DIFF_LEN;
    }
    if (e.mem != NULL) {
        differences |= compare_memory(insn, e.mem);
    } else if (insn->mem_bytes != 0) {
        differences |= DIFF_MEM_BYTES;
    }
    if (insn->gpr_read != e.read) {
        differences |= DIFF_GPR_READ;
    }
    if (insn->gpr_written != e.written) {
        differences |= DIFF_GPR_WRITTEN;
    }
    if (!is_conditional(insn, e.flags_written)) {
        if (insn->flags_read != e.flags_read) {
            differences |= DIFF_FLAGS_READ;
        }
        if (insn->flags_written != e.flags_written) {
            differences |= DIFF_FLAGS_WRITTEN;
        }
        if (insn->flags_undefined != e.flags_undefined) {
            differences |= DIFF_FLAGS_UNDEFINED;
        }
    }
    return differences;
}

struct oracle {
    ZydisDecoder decoders[3];
    uint64_t compared;
    uint64_t valid;
    unsigned reported;
    unsigned seen[ZYDIS_MNEMONIC_MAX_VALUE + 1];
};

static struct oracle *oracle_new(void)
{
    struct oracle *o = test_calloc(1, sizeof(*o));

    ZydisDecoderInit(&o->decoders[INSN_MODE_16], ZYDIS_MACHINE_MODE_LEGACY_16,
                     ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&o->decoders[INSN_MODE_32], ZYDIS_MACHINE_MODE_LEGACY_32,
                     ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&o->decoders[INSN_MODE_64], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    return o;
}

/* Nothing differed. */
static void oracle_end(struct oracle *o)
{
    printf("# %llu compared, %llu of them valid\n", (unsigned long long)o->compared,
           (unsigned long long)o->valid);
    assert_int_equal(o->reported, 0);
    test_free(o);
}

static void report(struct oracle *o, enum insn_mode mode, const uint8_t *bytes,
                   const struct insn *insn, const ZydisDecodedInstruction *z,
                   const ZydisDecodedOperand *operands, unsigned differences)
{
    const struct expected e = z != NULL ? expect(z, operands) : (struct expected){0};

    if (o->seen[z != NULL ? z->mnemonic : 0] & differences) {
        return;
    }
    o->seen[z != NULL ? z->mnemonic : 0] |= differences;
    o->reported++;
    printf("# mode %d:", mode);
    for (unsigned i = 0; i < INSN_MAX_BYTES; i++) {
        printf(" %02x", bytes[i]);
    }
    printf("\n#  %s differences %#x: op %d len %d/%d mem %d/%d flags %d read %04x/%04x "
           "written %04x/%04x fl %03x/%03x %03x/%03x %03x/%03x\n",
           z != NULL ? ZydisMnemonicGetString(z->mnemonic) : "(invalid)", differences, insn->op,
           insn->len, z != NULL ? z->length : 0, insn->mem_bytes,
           e.mem != NULL ? e.mem->size / 8 : 0, insn->mem_flags, insn->gpr_read, e.read,
           insn->gpr_written, e.written, insn->flags_read, e.flags_read, insn->flags_written,
           e.flags_written, insn->flags_undefined, e.flags_undefined);
}

static unsigned allowed_differences(ZydisMnemonic mnemonic)
{
    for (size_t i = 0; i < ARRAY_LEN(allowed); i++) {
        if (allowed[i].reason != NULL && allowed[i].mnemonic == mnemonic) {
            return allowed[i].differences;
        }
    }
    return 0;
}

static void check(struct oracle *o, enum insn_mode mode, const uint8_t bytes[INSN_MAX_BYTES])
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    struct insn insn;
    const int rc = insn_decode(bytes, INSN_MAX_BYTES, mode, &insn);
    const bool z_valid = ZYAN_SUCCESS(
        ZydisDecoderDecodeFull(&o->decoders[mode], bytes, INSN_MAX_BYTES, &z, operands));
    unsigned differences;

    o->compared++;
    if (rc != 0 || insn.op == INSN_OP_UD) {
        if (z_valid && is_promised(&z) && z.mnemonic != ZYDIS_MNEMONIC_UD0 &&
            z.mnemonic != ZYDIS_MNEMONIC_UD1 && z.mnemonic != ZYDIS_MNEMONIC_UD2 &&
            (allowed_differences(z.mnemonic) & DIFF_VALID) == 0) {
            report(o, mode, bytes, &insn, &z, operands, DIFF_VALID);
        }
        return;
    }
    o->valid++;
    if (!z_valid && insn.map == 1 && (insn.opcode == 0x1a || insn.opcode == 0x1b)) {
        return; /* MPX: forms it rejects are NOPs where there is none */
    }
    if (!z_valid) {
        report(o, mode, bytes, &insn, NULL, NULL, 1u << (insn.opcode & 31));
        return;
    }
    differences = compare(&insn, &z, operands) & ~allowed_differences(z.mnemonic);
    if (differences != 0) {
        report(o, mode, bytes, &insn, &z, operands, differences);
    }
}

static void check_modes(struct oracle *o, const uint8_t bytes[INSN_MAX_BYTES])
{
    for (int mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++) {
        check(o, (enum insn_mode)mode, bytes);
    }
}

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 0x2545f4914f6cdd1dull;
}

static void fill_random(uint8_t *bytes, unsigned count, uint64_t *state)
{
    for (unsigned i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(random_next(state) >> 32);
    }
}

static const uint8_t prefix_sets[][4] = {
    {0},
    {1, 0x66},
    {1, 0xf3},
    {1, 0xf2},
    {2, 0x66, 0xf3},
    {2, 0x66, 0xf2},
    {1, 0x48},
    {1, 0x45},
    {2, 0x66, 0x48},
    {2, 0xf3, 0x48},
    {2, 0xf2, 0x4c},
    {1, 0xf0},
    {2, 0xf0, 0x66},
    {1, 0x67},
    {2, 0x67, 0x66},
    {1, 0x64},
    {2, 0x2e, 0x65},
    {2, 0x26, 0x66},
    {1, 0x41},
    {1, 0x40},
    {2, 0x48, 0x66},
    {2, 0xf0, 0x48},
};

/* Every opcode of every map x prefixes x all modrm bytes. */
static void test_enumerated_encodings_agree_with_zydis(void **unused)
{
    static const uint8_t maps[4][3] = {{0}, {1, 0x0f}, {2, 0x0f, 0x38}, {2, 0x0f, 0x3a}};
    struct oracle *o = oracle_new();
    uint64_t seed = 0x9e3779b97f4a7c15ull;

    (void)unused;
    for (unsigned set = 0; set < ARRAY_LEN(prefix_sets); set++) {
        for (unsigned i = 0; i < 4 * 65536; i++) {
            const uint8_t *map = maps[i >> 16];
            uint8_t bytes[INSN_MAX_BYTES];
            unsigned n = 0;

            if ((i + set) % 3 != 0 && set != 0) {
                continue; /* a third of the modrm bytes for each prefix, all without */
            }
            fill_random(bytes, sizeof(bytes), &seed);
            memcpy(bytes, prefix_sets[set] + 1, prefix_sets[set][0]);
            n += prefix_sets[set][0];
            memcpy(bytes + n, map + 1, map[0]);
            n += map[0];
            bytes[n] = (uint8_t)(i >> 8);
            bytes[n + 1] = (uint8_t)i;
            check_modes(o, bytes);
        }
    }
    oracle_end(o);
}

/* Every opcode of the three VEX maps x pp, L, W x some vvvv x all modrm bytes. */
static void test_vex_encodings_agree_with_zydis(void **unused)
{
    struct oracle *o = oracle_new();
    uint64_t seed = 0x2545f4914f6cdd1dull;

    (void)unused;
    for (unsigned i = 0; i < 3u << 20; i += 3) {
        uint8_t bytes[INSN_MAX_BYTES];

        fill_random(bytes, sizeof(bytes), &seed);
        bytes[0] = 0xc4;
        bytes[1] = (uint8_t)((bytes[1] & 0xe0) | ((i >> 20) + 1));
        bytes[2] = (uint8_t)((bytes[2] & 0x78) | ((i >> 16) & 7) | (i >> 12 & 0x80));
        if ((seed >> 40 & 1) != 0) {
            bytes[2] |= 0x78;
        }
        bytes[3] = (uint8_t)(i >> 8);
        bytes[4] = (uint8_t)i;
        if ((seed >> 41 & 3) == 0) {
            memmove(bytes + 1, bytes + 2, INSN_MAX_BYTES - 2);
            bytes[0] = 0xc5;
            bytes[1] |= (uint8_t)(seed >> 44 & 0x80);
        }
        check_modes(o, bytes);
    }
    oracle_end(o);
}

static void test_random_bytes_agree_with_zydis(void **unused)
{
    struct oracle *o = oracle_new();
    uint64_t seed = 0x853c49e6748fea9bull;

    (void)unused;
    for (unsigned i = 0; i < 1000000; i++) {
        uint8_t bytes[INSN_MAX_BYTES];

        fill_random(bytes, sizeof(bytes), &seed);
        check(o, (enum insn_mode)(i % 3), bytes);
    }
    oracle_end(o);
}
#endif

static void test_truncated_insn_asks_for_more(void **unused)
{
    static const uint8_t add[] = {0x48, 0x81, 0x84, 0x24, 1, 2, 3, 4, 5, 6, 7, 8};
    struct insn insn;

    (void)unused;
    for (unsigned n = 0; n < sizeof(add); n++) {
        assert_int_equal(insn_decode(add, n, INSN_MODE_64, &insn), -ENODATA);
    }
    assert_int_equal(insn_decode(add, sizeof(add), INSN_MODE_64, &insn), 0);
    assert_int_equal(insn.len, sizeof(add));
    assert_int_equal(insn.mem_flags, INSN_MEM_READ | INSN_MEM_WRITE);
}

static void test_sixteen_bytes_are_too_long(void **unused)
{
    uint8_t bytes[16];
    struct insn insn;

    (void)unused;
    memset(bytes, 0x66, sizeof(bytes));
    bytes[14] = 0x90;
    assert_int_equal(insn_decode(bytes, 16, INSN_MODE_64, &insn), 0);
    assert_int_equal(insn.len, 15);
    bytes[14] = 0x66;
    bytes[15] = 0x90;
    assert_int_equal(insn_decode(bytes, 16, INSN_MODE_64, &insn), -E2BIG);
    assert_int_equal(insn_decode(bytes, 14, INSN_MODE_64, &insn), -ENODATA);
}

static void test_hidden_insn_is_ud(void **unused)
{
    static const uint8_t cases[][8] = {
        {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1}, /* EVEX VADDPS */
        {0x0f, 0x01, 0xc1},                   /* VMCALL */
        {0x0f, 0x01, 0xd5},                   /* XEND */
        {0xf3, 0x0f, 0xc7, 0xf8},             /* RDPID */
        {0x0f, 0xc7, 0x2f},                   /* XSAVES */
        {0x0f, 0x01, 0xef},                   /* WRPKRU */
        {0xc4, 0xe2, 0x75, 0xdc, 0xc2},       /* VAESENC ymm */
        {0x66, 0x0f, 0x38, 0xcf, 0xc1},       /* GF2P8MULB */
        {0xf0, 0x01, 0xc0},                   /* LOCK ADD EAX, EAX */
        {0xf0, 0x39, 0x00},                   /* LOCK CMP */
        {0x66, 0xc5, 0xf8, 0x58, 0xc1},       /* 66 VEX */
        {0x48, 0xc5, 0xf8, 0x58, 0xc1},       /* REX VEX */
        {0x8f, 0xe9, 0x78, 0x01, 0xc8},       /* XOP */
    };
    struct insn insn;

    (void)unused;
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(insn_decode(cases[i], sizeof(cases[i]), INSN_MODE_64, &insn), 0);
        assert_int_equal(insn.op, INSN_OP_UD);
    }
}

static void test_shift_by_zero_writes_no_flags(void **unused)
{
    static const uint8_t by_32[] = {0xc1, 0xe0, 0x20};
    static const uint8_t by_32_wide[] = {0x48, 0xc1, 0xe0, 0x20};
    static const uint8_t by_cl[] = {0xd3, 0xe0};
    struct insn insn;

    (void)unused;
    assert_int_equal(insn_decode(by_32, sizeof(by_32), INSN_MODE_64, &insn), 0);
    assert_int_equal(insn.flags_written, 0);
    assert_int_equal(insn_decode(by_32_wide, sizeof(by_32_wide), INSN_MODE_64, &insn), 0);
    assert_int_equal(insn.flags_written, X86_FLAGS_ARITH);
    assert_int_equal(insn_decode(by_cl, sizeof(by_cl), INSN_MODE_64, &insn), 0);
    assert_int_equal(insn.flags_written, 0);
    assert_int_equal(insn.flags_read, X86_FLAGS_ARITH);
    assert_int_equal(insn.gpr_read, 1u << X86_RAX | 1u << X86_RCX);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncated_insn_asks_for_more),
        cmocka_unit_test(test_sixteen_bytes_are_too_long),
        cmocka_unit_test(test_hidden_insn_is_ud),
        cmocka_unit_test(test_shift_by_zero_writes_no_flags),
#ifdef HAVE_ZYDIS
        cmocka_unit_test(test_enumerated_encodings_agree_with_zydis),
        cmocka_unit_test(test_vex_encodings_agree_with_zydis),
        cmocka_unit_test(test_random_bytes_agree_with_zydis),
#endif
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);

#ifndef HAVE_ZYDIS
    if (failed == 0) {
        puts("skipped: the package libzydis-dev is missing");
        return 77;
    }
#endif
    return failed;
}
