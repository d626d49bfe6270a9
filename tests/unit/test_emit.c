/*
 * The emitter against Zydis: each function with random operands must decode to
 * the instruction it was asked for, with nothing before or behind it.
 */
#include "base/compiler.h"
#include "engine/emit.h"
#include "test.h"

#ifdef HAVE_ZYDIS
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <time.h>

#define ROUNDS 20000u
#define RSP 4u
#define PATCHED_AT_ONCE 8u

static const struct {
    unsigned opcode;
    ZydisMnemonic mnemonic;
    bool is_store; /* the r/m operand comes first */
} ops[] = {
    {EMIT_ADD_LOAD, ZYDIS_MNEMONIC_ADD, false}, {EMIT_XOR_LOAD, ZYDIS_MNEMONIC_XOR, false},
    {EMIT_CMP_LOAD, ZYDIS_MNEMONIC_CMP, false}, {EMIT_MOV_STORE, ZYDIS_MNEMONIC_MOV, true},
    {EMIT_MOV_LOAD, ZYDIS_MNEMONIC_MOV, false},
};

static const struct {
    unsigned op;
    ZydisMnemonic mnemonic;
} alu_ops[] = {{0, ZYDIS_MNEMONIC_ADD}, {4, ZYDIS_MNEMONIC_AND}, {7, ZYDIS_MNEMONIC_CMP}},
  shift_ops[] = {{4, ZYDIS_MNEMONIC_SHL}, {5, ZYDIS_MNEMONIC_SHR}, {7, ZYDIS_MNEMONIC_SAR}};

struct rig {
    ZydisDecoder decoder;
    uint8_t code[256] ALIGNED(64);
    struct emit e;
    uint64_t random;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
};

static uint32_t next(struct rig *rig)
{
    rig->random = rig->random * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rig->random >> 33);
}

static uint32_t below(struct rig *rig, uint32_t limit)
{
    return next(rig) % limit;
}

/* Small ones as often as large ones: they have encodings of their own. */
static int32_t displacement(struct rig *rig)
{
    switch (below(rig, 4)) {
    case 0:
        return 0;
    case 1:
        return (int8_t)next(rig);
    case 2:
        return (int32_t)below(rig, 600) - 300;
    default:
        return (int32_t)(next(rig) << 1 ^ next(rig));
    }
}

static void begin(struct rig *rig)
{
    memset(rig->code, 0xcc, sizeof(rig->code));
    rig->e = (struct emit){.p = rig->code,
                           .vcpu = {.seg = below(rig, 2) ? EMIT_SEG_GS : EMIT_SEG_FS,
                                    .delta = (int32_t)below(rig, 1u << 20) - (1 << 19)}};
}

/* Decodes what was emitted from start on, which is one instruction. */
static void decode_from(struct rig *rig, const uint8_t *start)
{
    ZyanUSize left = (ZyanUSize)(rig->e.p - start);

    assert_true(ZYAN_SUCCESS(
        ZydisDecoderDecodeFull(&rig->decoder, start, left, &rig->insn, rig->operands)));
    assert_int_equal(rig->insn.length, left);
}

static void expect_mnemonic(struct rig *rig, ZydisMnemonic mnemonic)
{
    decode_from(rig, rig->code);
    assert_string_equal(ZydisMnemonicGetString(rig->insn.mnemonic),
                        ZydisMnemonicGetString(mnemonic));
}

static void expect_reg(const struct rig *rig, unsigned operand, bool wide, unsigned reg)
{
    ZydisRegister first = wide ? ZYDIS_REGISTER_RAX : ZYDIS_REGISTER_EAX;

    assert_int_equal(rig->operands[operand].type, ZYDIS_OPERAND_TYPE_REGISTER);
    assert_int_equal(rig->operands[operand].reg.value, first + (int)reg);
}

static ZydisRegister address_reg(unsigned reg)
{
    return reg == EMIT_NO_REG ? ZYDIS_REGISTER_NONE
                              : (ZydisRegister)(ZYDIS_REGISTER_RAX + (int)reg);
}

static void expect_mem(const struct rig *rig, unsigned operand, unsigned base, unsigned index,
                       unsigned scale, int32_t disp)
{
    const ZydisDecodedOperand *o = &rig->operands[operand];

    assert_int_equal(o->type, ZYDIS_OPERAND_TYPE_MEMORY);
    assert_int_equal(o->mem.base, address_reg(base));
    assert_int_equal(o->mem.index, address_reg(index));
    assert_int_equal(o->mem.scale, index == EMIT_NO_REG ? 0 : scale);
    assert_int_equal(o->mem.disp.value, disp);
}

static void expect_vcpu(const struct rig *rig, unsigned operand, unsigned index, uint32_t offset)
{
    ZydisRegister seg = rig->e.vcpu.seg == EMIT_SEG_GS ? ZYDIS_REGISTER_GS : ZYDIS_REGISTER_FS;

    assert_int_equal(rig->operands[operand].mem.segment, seg);
    expect_mem(rig, operand, index, EMIT_NO_REG, 1, (int32_t)offset + rig->e.vcpu.delta);
}

static int setup(void **state)
{
    struct rig *rig = test_calloc(1, sizeof(*rig));

    assert_true(ZYAN_SUCCESS(
        ZydisDecoderInit(&rig->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)));
    rig->random = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)rig->random);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    test_free(*state);
    return 0;
}

static void test_between_registers(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned op = below(rig, ARRAY_LEN(ops));
        bool wide = below(rig, 2) != 0;
        unsigned reg = below(rig, 16);
        unsigned rm = below(rig, 16);

        begin(rig);
        emit_rr(&rig->e, wide, ops[op].opcode, reg, rm);
        expect_mnemonic(rig, ops[op].mnemonic);
        expect_reg(rig, ops[op].is_store ? 1 : 0, wide, reg);
        expect_reg(rig, ops[op].is_store ? 0 : 1, wide, rm);
        begin(rig);
        emit_mov(&rig->e, wide, reg, rm);
        expect_mnemonic(rig, ZYDIS_MNEMONIC_MOV);
        expect_reg(rig, 0, wide, reg);
        expect_reg(rig, 1, wide, rm);
    }
}

static void test_memory(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned op = below(rig, ARRAY_LEN(ops));
        bool wide = below(rig, 2) != 0;
        unsigned reg = below(rig, 16);
        unsigned base = below(rig, 8) ? below(rig, 16) : EMIT_NO_REG;
        unsigned index = below(rig, 3) ? below(rig, 16) : EMIT_NO_REG;
        unsigned scale = 1u << below(rig, 4);
        int32_t disp = displacement(rig);

        if (index == RSP) {
            index = EMIT_NO_REG; /* has no encoding */
        }
        if (index == EMIT_NO_REG) {
            scale = 1;
        }
        begin(rig);
        emit_mem(&rig->e, wide, ops[op].opcode, reg, base, index, scale, disp);
        expect_mnemonic(rig, ops[op].mnemonic);
        expect_reg(rig, ops[op].is_store ? 1 : 0, wide, reg);
        expect_mem(rig, ops[op].is_store ? 0 : 1, base, index, scale, disp);
        if (base != EMIT_NO_REG) {
            begin(rig);
            emit_lea(&rig->e, reg, base, disp);
            expect_mnemonic(rig, ZYDIS_MNEMONIC_LEA);
            expect_reg(rig, 0, true, reg);
            expect_mem(rig, 1, base, EMIT_NO_REG, 1, disp);
        }
    }
}

static void test_the_vcpu(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned op = below(rig, ARRAY_LEN(ops));
        unsigned reg = below(rig, 16);
        unsigned index = below(rig, 16);
        uint32_t offset = below(rig, 1u << 24);
        uint32_t value = next(rig);

        begin(rig);
        emit_gs(&rig->e, ops[op].opcode, reg, offset);
        expect_mnemonic(rig, ops[op].mnemonic);
        expect_reg(rig, ops[op].is_store ? 1 : 0, true, reg);
        expect_vcpu(rig, ops[op].is_store ? 0 : 1, EMIT_NO_REG, offset);
        begin(rig);
        emit_gs_indexed(&rig->e, EMIT_XOR_LOAD, reg, index, offset);
        expect_mnemonic(rig, ZYDIS_MNEMONIC_XOR);
        expect_reg(rig, 0, true, reg);
        expect_vcpu(rig, 1, index, offset);
        begin(rig);
        emit_gs_load(&rig->e, reg, offset);
        expect_mnemonic(rig, ZYDIS_MNEMONIC_MOV);
        expect_reg(rig, 0, true, reg);
        expect_vcpu(rig, 1, EMIT_NO_REG, offset);
        begin(rig);
        emit_gs_store(&rig->e, reg, offset);
        expect_mnemonic(rig, ZYDIS_MNEMONIC_MOV);
        expect_vcpu(rig, 0, EMIT_NO_REG, offset);
        expect_reg(rig, 1, true, reg);
        begin(rig);
        emit_gs_store_imm32(&rig->e, offset, value);
        expect_mnemonic(rig, ZYDIS_MNEMONIC_MOV);
        expect_vcpu(rig, 0, EMIT_NO_REG, offset);
        assert_int_equal(rig->operands[0].size, 32);
        assert_int_equal((uint32_t)rig->operands[1].imm.value.u, value);
    }
}

static void test_immediates(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < ROUNDS; i++) {
        bool wide = below(rig, 2) != 0;
        unsigned reg = below(rig, 16);
        unsigned op = below(rig, 3);
        unsigned count = below(rig, wide ? 64 : 32);
        int32_t imm = displacement(rig);

        begin(rig);
        emit_mov_imm32(&rig->e, reg, (uint32_t)imm);
        expect_mnemonic(rig, ZYDIS_MNEMONIC_MOV);
        expect_reg(rig, 0, false, reg);
        assert_int_equal((uint32_t)rig->operands[1].imm.value.u, (uint32_t)imm);
        begin(rig);
        emit_shift_imm(&rig->e, wide, shift_ops[op].op, reg, count);
        expect_mnemonic(rig, shift_ops[op].mnemonic);
        expect_reg(rig, 0, wide, reg);
        assert_int_equal(rig->operands[1].imm.value.u, count);
        begin(rig);
        emit_alu_imm(&rig->e, wide, alu_ops[op].op, reg, imm);
        expect_mnemonic(rig, alu_ops[op].mnemonic);
        expect_reg(rig, 0, wide, reg);
        assert_int_equal((int32_t)rig->operands[1].imm.value.s, imm);
    }
}

/* What was emitted from start on is a jump to target. */
static void expect_target(struct rig *rig, const uint8_t *start, const uint8_t *target,
                          ZydisMnemonic mnemonic)
{
    ZyanU64 to = 0;

    decode_from(rig, start);
    assert_string_equal(ZydisMnemonicGetString(rig->insn.mnemonic),
                        ZydisMnemonicGetString(mnemonic));
    assert_true(ZYAN_SUCCESS(
        ZydisCalcAbsoluteAddress(&rig->insn, &rig->operands[0], (ZyanU64)(uintptr_t)start, &to)));
    assert_int_equal(to, (ZyanU64)(uintptr_t)target);
}

/* The jump behind its padding, to target. */
static void expect_jump(struct rig *rig, const uint8_t *site, unsigned opcode_bytes,
                        const uint8_t *target, ZydisMnemonic mnemonic)
{
    const uint8_t *start = site - opcode_bytes;
    const uint8_t *pad = rig->code;

    while (pad < start && *pad == 0xcc) {
        pad++;
    }
    if (pad < start) {
        assert_true(ZYAN_SUCCESS(ZydisDecoderDecodeFull(
            &rig->decoder, pad, (ZyanUSize)(start - pad), &rig->insn, rig->operands)));
        assert_int_equal(rig->insn.mnemonic, ZYDIS_MNEMONIC_NOP);
        assert_ptr_equal(pad + rig->insn.length, start);
    }
    assert_int_equal((uintptr_t)site / PATCHED_AT_ONCE, ((uintptr_t)site + 3) / PATCHED_AT_ONCE);
    expect_target(rig, start, target, mnemonic);
}

static void test_jumps(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned room = below(rig, 128);
        const uint8_t *target = rig->code + (int32_t)(next(rig) >> 3);
        uint8_t *site;

        begin(rig);
        rig->e.p += room;
        site = emit_jmp(&rig->e);
        expect_jump(rig, site, 1, rig->e.p, ZYDIS_MNEMONIC_JMP); /* falls through */
        emit_patch(site, target);
        expect_jump(rig, site, 1, target, ZYDIS_MNEMONIC_JMP);
        begin(rig);
        rig->e.p += room;
        site = emit_jcc(&rig->e, EMIT_CC_A);
        emit_patch(site, target);
        expect_jump(rig, site, 2, target, ZYDIS_MNEMONIC_JNBE);
        begin(rig);
        rig->e.p += room;
        emit_jmp_to(&rig->e, target);
        expect_target(rig, rig->e.p - 5, target, ZYDIS_MNEMONIC_JMP);
        emit_jcc_to(&rig->e, EMIT_CC_NE, target);
        expect_target(rig, rig->e.p - 6, target, ZYDIS_MNEMONIC_JNZ);
    }
}

static void test_alignment_is_never_executed_silently(void **state)
{
    struct rig *rig = *state;

    for (unsigned room = 0; room < 64; room++) {
        begin(rig);
        memset(rig->code, 0, sizeof(rig->code));
        rig->e.p += room;
        emit_align(&rig->e, 16);
        assert_int_equal((uintptr_t)rig->e.p % 16, 0);
        assert_in_range(rig->e.p - rig->code, room, room + 15);
        for (const uint8_t *p = rig->code + room; p < rig->e.p; p++) {
            assert_int_equal(*p, 0xcc);
        }
    }
}

#define EMIT_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        EMIT_TEST(test_between_registers),
        EMIT_TEST(test_memory),
        EMIT_TEST(test_the_vcpu),
        EMIT_TEST(test_immediates),
        EMIT_TEST(test_jumps),
        EMIT_TEST(test_alignment_is_never_executed_silently),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
#include <stdio.h>

int main(void)
{
    (void)puts("the package libzydis-dev is not installed");
    return 77;
}
#endif
