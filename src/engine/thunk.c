/* Entering and leaving translated code; see thunk.h. */
#include "engine/thunk.h"

#include "cpu/x86.h"

#include <cpuid.h>

#define XSAVE_MASK (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)
#define CALLEE_SAVED_COUNT 6

static const uint8_t callee_saved[CALLEE_SAVED_COUNT] = {X86_RBX, X86_RBP, X86_R12,
                                                         X86_R13, X86_R14, X86_R15};

static void emit_push(struct emit *e, unsigned reg)
{
    if (reg >= 8) {
        emit_u8(e, 0x41);
    }
    emit_u8(e, 0x50u | (reg & 7u));
}

static void emit_pop(struct emit *e, unsigned reg)
{
    if (reg >= 8) {
        emit_u8(e, 0x41);
    }
    emit_u8(e, 0x58u | (reg & 7u));
}

/* An instruction with a GS-relative operand: opcode bytes, /ext. */
static void emit_gs_op(struct emit *e, const char *opcode, unsigned count, unsigned ext,
                       uint32_t offset)
{
    emit_gs_prefix(e);
    emit_bytes(e, opcode, count);
    emit_u8(e, ext << 3 | 4u);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)emit_gs_disp(e, offset));
}

static void emit_xsave_mask(struct emit *e)
{
    emit_u8(e, 0xb8); /* mov eax, imm32 */
    emit_u32(e, XSAVE_MASK);
    emit_rr(e, false, 0x31, X86_RDX, X86_RDX);
}

static void emit_store_gprs(struct emit *e)
{
    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        emit_gs_store(e, r, GS_GPR(r));
    }
}

static void emit_load_gprs(struct emit *e)
{
    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        emit_gs_load(e, r, GS_GPR(r));
    }
}

/* Calls the C function at the slot on run()'s stack; the answer in RAX, ZF set for 0. */
static void emit_call(struct translator *t, struct emit *e, uint32_t slot)
{
    emit_gs_load(e, X86_RSP, GS_HOT(host_rsp));
    emit_gs_load(e, X86_RDI, GS_HOT(self));
    t->calls[t->call_count++] = code_offset(t, e->p);
    emit_gs_op(e, "\xff", 1, 2, slot);
    emit_rr(e, true, 0x85, X86_RAX, X86_RAX);
}

static void emit_kick_test(struct emit *e)
{
    emit_gs_op(e, "\x83", 1, 7, (uint32_t)offsetof(struct engine_vcpu, kick));
    emit_u8(e, 0);
}

static void emit_resume_jump(struct emit *e)
{
    emit_gs_op(e, "\xff", 1, 4, GS_HOT(resume));
}

static void emit_leave(struct translator *t, struct emit *e, bool has_avx, bool has_xsaveopt)
{
    emit_xsave_mask(e);
    emit_gs_op(e, "\x48\x0f\xae", 3, has_xsaveopt ? 6 : 4, GS_ST(xsave));
    emit_bytes(e, "\xdb\xe3", 2);                        /* fninit */
    emit_gs_op(e, "\x0f\xae", 2, 2, GS_HOT(host_mxcsr)); /* ldmxcsr */
    if (has_avx) {
        emit_bytes(e, "\xc5\xf8\x77", 3); /* vzeroupper */
    }
    emit_lea(e, X86_RSP, X86_RSP, 8);
    for (unsigned i = CALLEE_SAVED_COUNT; i-- > 0;) {
        emit_pop(e, callee_saved[i]);
    }
    t->ret = code_offset(t, e->p);
    emit_u8(e, 0xc3);
}

static void emit_enter(struct emit *e)
{
    for (unsigned i = 0; i < CALLEE_SAVED_COUNT; i++) {
        emit_push(e, callee_saved[i]);
    }
    emit_lea(e, X86_RSP, X86_RSP, -8);
    emit_gs_store(e, X86_RSP, GS_HOT(host_rsp));
    emit_gs_op(e, "\x0f\xae", 2, 3, GS_HOT(host_mxcsr)); /* stmxcsr */
    emit_xsave_mask(e);
    emit_gs_op(e, "\x48\x0f\xae", 3, 5, GS_ST(xsave)); /* xrstor64 */
}

static const uint8_t *here(struct translator *t, const struct emit *e)
{
    return t->rx + code_offset(t, e->p);
}

static const uint8_t *rw_of(struct translator *t, const uint8_t *rx)
{
    return t->rw + (rx - t->rx);
}

void thunk_emit_dispatch(const struct translator *t, struct emit *e, unsigned mode)
{
    uint32_t cache =
        (uint32_t)(offsetof(struct engine_vcpu, hot.jump) +
                   (mode & UNIT_MODE_MMU) * sizeof(struct jump_entry) * JUMP_CACHE_SETS);

    emit_rr(e, false, 0x69, X86_RDX, X86_RCX); /* imul edx, ecx, imm32 */
    emit_u32(e, JUMP_CACHE_HASH);
    emit_shift_imm(e, false, 5, X86_RDX, 16);
    emit_alu_imm(e, false, 4, X86_RDX, (int32_t)((JUMP_CACHE_SETS - 1) << 4));
    emit_gs_indexed(e, EMIT_CMP_LOAD, X86_RCX, X86_RDX,
                    cache + (uint32_t)offsetof(struct jump_entry, rip));
    emit_jcc_to(e, EMIT_CC_NE, t->rw + (t->jump_miss - t->rx));
    emit_gs_prefix(e);
    emit_mem(e, false, 0xff, 4, X86_RDX, EMIT_NO_REG, 1,
             emit_gs_disp(e, cache + (uint32_t)offsetof(struct jump_entry, host)));
}

/* Direct branches to other pages: hot.page + hot.offset. */
static void emit_lookups(struct translator *t, struct emit *e)
{
    for (unsigned mode = 0; mode < ARRAY_LEN(t->lookup); mode++) {
        for (unsigned in_slot = 0; in_slot < 2; in_slot++) {
            t->lookup[mode][in_slot] = here(t, e);
            emit_gs_store(e, X86_RAX, GS_SPILL(X86_RAX));
            emit_gs_store(e, X86_RCX, GS_SPILL(X86_RCX));
            emit_gs_store(e, X86_RDX, GS_SPILL(X86_RDX));
            if (in_slot != 0) {
                emit_gs_load(e, X86_RAX, GS_HOT(flags));
            } else {
                emit_bytes(e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
            }
            emit_gs(e, 0x63, X86_RCX, GS_HOT(offset)); /* movsxd */
            emit_gs(e, EMIT_ADD_LOAD, X86_RCX, GS_HOT(page));
            thunk_emit_dispatch(t, e, mode);
        }
    }
}

void thunk_emit_all(struct translator *t)
{
    struct emit e = {t->rw, t->vcpu_at};
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    bool has_xsaveopt = __get_cpuid_count(0xd, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1) != 0;

    t->leave = here(t, &e);
    emit_leave(t, &e, __builtin_cpu_supports("avx") != 0, has_xsaveopt);

    t->enter = here(t, &e);
    emit_enter(&e);
    const uint8_t *resume = here(t, &e);
    emit_kick_test(&e);
    emit_jcc_to(&e, EMIT_CC_NE, rw_of(t, t->leave));
    emit_gs_load(&e, X86_RAX, GS_HOT(flags));
    emit_bytes(&e, "\x04\x7f\x9e", 3); /* add al, 0x7f; sahf */
    emit_load_gprs(&e);
    emit_resume_jump(&e);

    const uint8_t *access = here(t, &e);
    emit_store_gprs(&e);
    emit_call(t, &e, GS_HOT(fn_access));
    emit_jcc_to(&e, EMIT_CC_E, rw_of(t, t->leave));
    emit_gs_store(&e, X86_RAX, GS_HOT(resume));
    emit_jmp_to(&e, rw_of(t, resume));

    t->exit_host = here(t, &e);
    emit_gs_store(&e, X86_RAX, GS_SPILL(X86_RAX));
    emit_bytes(&e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
    emit_gs_store(&e, X86_RAX, GS_HOT(flags));
    emit_gs_load(&e, X86_RAX, GS_SPILL(X86_RAX));
    t->exit_slot = here(t, &e);
    emit_store_gprs(&e);
    emit_call(t, &e, GS_HOT(fn_exit));
    emit_jcc_to(&e, EMIT_CC_E, rw_of(t, t->leave));
    emit_gs_store(&e, X86_RAX, GS_HOT(resume));
    emit_jmp_to(&e, rw_of(t, resume));

    t->jump_miss = here(t, &e);
    emit_gs_store(&e, X86_RCX, GS_ST(rip));
    emit_gs_store(&e, X86_RAX, GS_HOT(flags));
    emit_gs_load(&e, X86_RAX, GS_SPILL(X86_RAX));
    emit_gs_load(&e, X86_RCX, GS_SPILL(X86_RCX));
    emit_gs_load(&e, X86_RDX, GS_SPILL(X86_RDX));
    emit_gs_store_imm32(&e, GS_HOT(exit), 0);
    emit_jmp_to(&e, rw_of(t, t->exit_slot));
    emit_lookups(t, &e);
    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        t->access[r] = here(t, &e);
        emit_gs_store(&e, r, GS_HOT(va));
        emit_jmp_to(&e, rw_of(t, access));
    }
    emit_align(&e, 64);
    t->used_bytes = code_offset(t, e.p);
}

void thunk_enter(struct engine_vcpu *v)
{
    void (*enter)(void);
    const uint8_t *code = v->vm->translator->enter;

    memcpy(&enter, &code, sizeof(enter));
    __asm__ volatile("" ::: "memory");
    enter();
    __asm__ volatile("" ::: "memory");
}
