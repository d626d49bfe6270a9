/* Entering and leaving translated code; see thunk.h. */
#include "engine/thunk.h"

#include "cpu/x86.h"
#include "engine/translate_int.h"

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

/* reg into a field of 32 bits. */
static void emit_store32(struct emit *e, unsigned reg, uint32_t offset)
{
    emit_gs_op(e, reg >= 8 ? "\x44\x89" : "\x89", reg >= 8 ? 2 : 1, reg & 7, offset);
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

static const uint8_t *rw_of(const struct translator *t, const uint8_t *rx)
{
    return t->rw + (rx - t->rx);
}

/* R10: the entry for the address in hot.target and RCX, in the table of the mode. */
static void emit_jump_entry(struct emit *e, unsigned mode)
{
    _Static_assert(sizeof(struct jump_entry) == 32 && JUMP_CACHE_KERNEL_SETS == 1u << 15 &&
                       JUMP_CACHE_SETS == 1u << 13,
                   "16 bits of which one is 0, or three are; then times 16 or four");
    bool is_kernel = jump_cache_table(mode) == 0;

    emit_gs_prefix(e); /* movzx r11d, word [target + 1] */
    emit_bytes(e, "\x44\x0f\xb7\x1c\x25", 5);
    emit_u32(e, (uint32_t)emit_gs_disp(e, GS_HOT(target) + 1));
    emit_mem(e, false, EMIT_LEA, X86_R10, X86_RCX, X86_R11, 1, 0);
    if (is_kernel) {
        emit_mem(e, false, EMIT_LEA, X86_R10, X86_R10, X86_R10, 1, 0);
    } else {
        emit_mem(e, false, EMIT_LEA, X86_R10, EMIT_NO_REG, X86_R10, 8, 0);
    }
    emit_bytes(e, "\x45\x0f\xb7\xd2", 4); /* movzx r10d, r10w */
    if (is_kernel) {
        emit_mem(e, false, EMIT_LEA, X86_R10, X86_R10, X86_R10, 1, 0);
    }
    emit_gs_load(e, X86_R11, GS_HOT(jump_table) + mode * 8);
    emit_mem(e, true, EMIT_LEA, X86_R10, X86_R11, X86_R10, is_kernel ? 8 : 4, 0);
}

static void emit_load_jump_field(struct emit *e, unsigned reg, size_t field)
{
    emit_mem(e, true, EMIT_MOV_LOAD, reg, X86_R10, EMIT_NO_REG, 1, (int32_t)field);
}

static void emit_jump_by_field(struct emit *e, size_t field)
{
    emit_mem(e, false, 0xff, 4, X86_R10, EMIT_NO_REG, 1, (int32_t)field);
}

enum dispatch_page {
    PAGE_DONE,    /* hot.page is the target's */
    PAGE_OF_ENTRY /* as the entry says */
};

/*
 * To the unit for the address in RCX; R10, R11 and RCX are borrowed. The flags stay where they
 * are, for most units do not read those they begin with: hence LEA, and JRCXZ to compare.
 */
static uint32_t emit_dispatch(const struct translator *t, struct emit *e, unsigned mode,
                              unsigned in_slot, enum dispatch_page page)
{
    uint32_t on_the_way;

    emit_gs_store(e, X86_RCX, GS_HOT(target));
    emit_gs_store_imm32(e, GS_HOT(flags_in_slot), in_slot);
    on_the_way = code_offset(t, e->p);
    emit_jump_entry(e, mode);
    emit_load_jump_field(e, X86_R11, offsetof(struct jump_entry, minus_rip));
    emit_mem(e, true, EMIT_LEA, X86_RCX, X86_RCX, X86_R11, 1, 0);
    emit_bytes(e, "\xe3\x05", 2); /* jrcxz over the jump */
    emit_jmp_to(e, rw_of(t, t->jump_miss[in_slot]));
    if (page == PAGE_OF_ENTRY) {
        emit_load_jump_field(e, X86_RCX, offsetof(struct jump_entry, page));
        emit_gs_store(e, X86_RCX, GS_HOT(page));
    }
    emit_gs_load(e, X86_RCX, GS_SPILL(X86_RCX));
    emit_jump_by_field(e, in_slot != 0 ? offsetof(struct jump_entry, host_slot)
                                       : offsetof(struct jump_entry, host));
    return on_the_way;
}

/* In a thunk: notes where. */
static void emit_noted_dispatch(struct translator *t, struct emit *e, unsigned mode,
                                unsigned in_slot, enum dispatch_page page)
{
    uint32_t from = emit_dispatch(t, e, mode, in_slot, page);

    t->on_the_way[t->on_the_way_count++] = (struct thunk_range){from, code_offset(t, e->p)};
}

static void emit_borrow_standard(struct emit *e)
{
    emit_gs_store(e, X86_R10, GS_SPILL(X86_R10));
    emit_gs_store(e, X86_R11, GS_SPILL(X86_R11));
}

/*
 * hot.page does not wait for the entry: where it does, each jump waits for the one before,
 * since the next target is computed from it.
 */
static enum dispatch_page emit_page_of_target(struct emit *e, unsigned in_slot)
{
    if (in_slot == 0) {
        return PAGE_OF_ENTRY;
    }
    emit_mov(e, true, X86_R11, X86_RCX);
    emit_alu_imm(e, true, 4, X86_R11, -(int32_t)GMEM_PAGE_BYTES);
    emit_gs_store(e, X86_R11, GS_HOT(page));
    return PAGE_DONE;
}

void thunk_emit_jump(const struct translator *t, struct emit *e, unsigned mode, unsigned in_slot)
{
    (void)emit_dispatch(t, e, mode, in_slot, emit_page_of_target(e, in_slot));
}

void thunk_emit_jump_by(const struct translator *t, struct emit *e, unsigned mode, unsigned in_slot,
                        int32_t offset)
{
    emit_gs_load(e, X86_RCX, GS_HOT(page));
    emit_lea(e, X86_R11, X86_RCX, offset & -(int32_t)GMEM_PAGE_BYTES);
    emit_gs_store(e, X86_R11, GS_HOT(page));
    emit_lea(e, X86_RCX, X86_RCX, offset);
    (void)emit_dispatch(t, e, mode, in_slot, PAGE_DONE);
}

static void emit_dispatches(struct translator *t, struct emit *e, struct thunk_dispatch *out,
                            unsigned mode, unsigned in_slot)
{
    out->offset_in_slot[in_slot] = here(t, e);
    emit_borrow_standard(e);
    emit_gs_store(e, X86_RCX, GS_SPILL(X86_RCX));
    emit_gs(e, 0x63, X86_RCX, GS_HOT(offset)); /* movsxd */
    emit_gs_load(e, X86_R11, GS_HOT(page));
    emit_mem(e, true, EMIT_LEA, X86_RCX, X86_RCX, X86_R11, 1, 0);
    emit_noted_dispatch(t, e, mode, in_slot, emit_page_of_target(e, in_slot));

    out->offset[in_slot] = here(t, e);
    emit_gs_store(e, X86_RCX, GS_SPILL(X86_RCX));
    emit_gs_load(e, X86_RCX, GS_HOT(page));
    emit_rr(e, true, 0x63, X86_R10, X86_R10); /* movsxd */
    emit_rr(e, true, 0x63, X86_R11, X86_R11);
    emit_mem(e, true, EMIT_LEA, X86_R11, X86_R11, X86_RCX, 1, 0);
    emit_gs_store(e, X86_R11, GS_HOT(page));
    emit_mem(e, true, EMIT_LEA, X86_RCX, X86_RCX, X86_R10, 1, 0);
    emit_noted_dispatch(t, e, mode, in_slot, PAGE_DONE);

    out->target_in_rcx[in_slot] = here(t, e);
    emit_borrow_standard(e);
    out->target[in_slot] = here(t, e);
    emit_noted_dispatch(t, e, mode, in_slot, emit_page_of_target(e, in_slot));
}

/* Not in the jump cache: C looks for hot.target. R10, R11 and RCX are borrowed. */
static void emit_jump_misses(struct translator *t, struct emit *e)
{
    for (unsigned in_slot = 0; in_slot < 2; in_slot++) {
        t->jump_miss[in_slot] = here(t, e);
        emit_gs_load(e, X86_RCX, GS_HOT(target));
        emit_gs_store(e, X86_RCX, GS_ST(rip));
        emit_gs_load(e, X86_RCX, GS_SPILL(X86_RCX));
        emit_gs_load(e, X86_R10, GS_SPILL(X86_R10));
        emit_gs_load(e, X86_R11, GS_SPILL(X86_R11));
        emit_gs_store_imm32(e, GS_HOT(exit), 0);
        emit_jmp_to(e, rw_of(t, in_slot != 0 ? t->exit_slot : t->exit_host));
    }
}

/* A unit that is no more was reached by a jump cache: hot.target is looked up again. */
static void emit_dead(struct translator *t, struct emit *e)
{
    t->dead = here(t, e);
    emit_gs_store(e, X86_RCX, GS_SPILL(X86_RCX));
    emit_gs32(e, EMIT_MOV_LOAD, X86_RCX, GS_HOT(flags_in_slot));
    emit_bytes(e, "\xe3\x05", 2); /* jrcxz over the jump */
    emit_jmp_to(e, rw_of(t, t->jump_miss[1]));
    emit_jmp_to(e, rw_of(t, t->jump_miss[0]));
}

/* The flags lie in their slot, but the unit that R10 found reads them. */
static void emit_restore_flags(struct translator *t, struct emit *e)
{
    t->restore_flags = here(t, e);
    emit_gs_store_imm32(e, GS_HOT(flags_in_slot), 0);
    emit_gs_store(e, X86_RAX, GS_HOT(scratch));
    emit_gs_load(e, X86_RAX, GS_HOT(flags));
    emit_bytes(e, "\x04\x7f\x9e", 3); /* add al, 0x7f; sahf */
    emit_gs_load(e, X86_RAX, GS_HOT(scratch));
    emit_jump_by_field(e, offsetof(struct jump_entry, host));
}

#define TLB_ENTRY_SHIFT 4u
#define TLB_TABLE_SHIFT 14u
_Static_assert(sizeof(struct mmu_tlb_entry) == 1u << TLB_ENTRY_SHIFT, "as shifts know it");
_Static_assert(sizeof(struct mmu_tlb_entry) * MMU_TLB_SETS == 1u << TLB_TABLE_SHIFT &&
                   offsetof(struct mmu_tlb, write) == 1u << TLB_TABLE_SHIFT &&
                   sizeof(struct mmu_tlb) == 2u << TLB_TABLE_SHIFT,
               "tables by mode, and in it reads and writes, without gaps");
_Static_assert(sizeof(struct unit_access) == 8 && ACCESS_WRITE == 1, "as emit_lookup reads it");

/* mmu_tlb_index(), times the size of an entry */
void thunk_emit_tlb_index(struct emit *e, unsigned index, unsigned address)
{
    emit_mov(e, false, index, address);
    emit_shift_imm(e, false, 5, index, 10);
    emit_rr(e, false, EMIT_XOR_LOAD, index, address);
    emit_shift_imm(e, false, 5, index, GMEM_PAGE_SHIFT - TLB_ENTRY_SHIFT);
    emit_alu_imm(e, false, 4, index, (int32_t)((MMU_TLB_SETS - 1) << TLB_ENTRY_SHIFT));
}

static const uint8_t lookup_regs[] = {X86_RAX, X86_RCX, X86_RDX, X86_RBX};

static void emit_lookup_done(struct emit *e)
{
    for (unsigned i = 0; i < ARRAY_LEN(lookup_regs); i++) {
        emit_gs_load(e, lookup_regs[i], GS_HOT(kept) + 8 * i);
    }
}

static void emit_mov_imm64(struct emit *e, unsigned reg, uint64_t value)
{
    emit_u8(e, 0x48);
    emit_u8(e, 0xb8u | reg);
    emit_bytes(e, &value, sizeof(value));
}

/* RBX: where the table of the access in RDX begins, among all. To C when no hint is to blame. */
static void emit_lookup_table(struct emit *e, uint8_t **ret_slow)
{
    emit_bytes(e, "\x0f\xb6\x5a", 3); /* movzx ebx, byte [rdx + flags] */
    emit_u8(e, offsetof(struct unit_access, flags));
    emit_bytes(e, "\xf6\xc3", 2); /* test bl, imm8 */
    emit_u8(e, ACCESS_NO_HINT);
    *ret_slow = emit_jcc(e, EMIT_CC_NE);
    emit_alu_imm(e, false, 4, X86_RBX, ACCESS_WRITE);
    emit_bytes(e, "\x0f\xb6\x42", 3); /* movzx eax, byte [rdx + mode] */
    emit_u8(e, offsetof(struct unit_access, mode));
    emit_mem(e, false, EMIT_LEA, X86_RBX, X86_RBX, X86_RAX, 2, 0);
    emit_shift_imm(e, false, 4, X86_RBX, TLB_TABLE_SHIFT);
}

/*
 * A hint was wrong: looks in the right entry, and notes that as the hint for the
 * next time when it is what was wanted; else C sees to it. Flags are saved or dead.
 */
static const uint8_t *emit_lookup(struct translator *t, struct emit *e, const uint8_t *access)
{
    const uint8_t *start = here(t, e);
    uint8_t *slow[4];

    for (unsigned i = 0; i < ARRAY_LEN(lookup_regs); i++) {
        emit_gs_store(e, lookup_regs[i], GS_HOT(kept) + 8 * i);
    }
    emit_gs32(e, EMIT_MOV_LOAD, X86_RCX, GS_HOT(site));
    emit_mov_imm64(e, X86_RDX, (uint64_t)(uintptr_t)t->accesses);
    emit_mem(e, true, EMIT_LEA, X86_RDX, X86_RDX, X86_RCX, 8, 0);
    emit_lookup_table(e, &slow[0]);
    emit_gs_load(e, X86_RAX, GS_HOT(va));
    thunk_emit_tlb_index(e, X86_RCX, X86_RAX);
    emit_rr(e, false, EMIT_ADD_LOAD, X86_RBX, X86_RCX);
    emit_gs_indexed(
        e, EMIT_XOR_LOAD, X86_RAX, X86_RBX,
        (uint32_t)(offsetof(struct engine_vcpu, tlb) + offsetof(struct mmu_tlb_entry, tag)));
    emit_bytes(e, "\x0f\xb7\x5a", 3); /* movzx ebx, word [rdx + size] */
    emit_u8(e, offsetof(struct unit_access, size));
    emit_rr(e, true, EMIT_ADD_LOAD, X86_RAX, X86_RBX);
    slow[1] = emit_jcc(e, EMIT_CC_B);
    emit_alu_imm(e, true, 7, X86_RAX, (int32_t)GMEM_PAGE_BYTES);
    slow[2] = emit_jcc(e, EMIT_CC_A);
    emit_gs_op(e, "\x83", 1, 5, GS_HOT(hint_budget)); /* sub dword, 1 */
    emit_u8(e, 1);
    slow[3] = emit_jcc(e, EMIT_CC_B);
    emit_gs32(e, EMIT_MOV_LOAD, X86_RBX, GS_HOT(site));
    emit_alu_imm(e, false, 4, X86_RBX, ACCESS_HINTS - 1);
    emit_gs_prefix(e);
    emit_mem(e, false, EMIT_MOV_STORE, X86_RCX, EMIT_NO_REG, X86_RBX, 4,
             emit_gs_disp(e, GS_HOT(hint)));
    emit_mem(e, false, EMIT_MOV_LOAD, X86_RAX, X86_RDX, EMIT_NO_REG, 1,
             offsetof(struct unit_access, code));
    emit_mov_imm64(e, X86_RBX, (uint64_t)(uintptr_t)t->rx);
    emit_rr(e, true, EMIT_ADD_LOAD, X86_RAX, X86_RBX);
    emit_gs_store(e, X86_RAX, GS_HOT(resume));
    emit_lookup_done(e);
    emit_resume_jump(e);

    for (unsigned i = 0; i < ARRAY_LEN(slow); i++) {
        emit_patch(slow[i], e->p);
    }
    emit_lookup_done(e);
    emit_jmp_to(e, rw_of(t, access));
    return start;
}

/* Misses of inlined checks: the address in one register, in another the site's number if any. */
static void emit_accesses(struct translator *t, struct emit *e, const uint8_t *access)
{
    const uint8_t *lookup = emit_lookup(t, e, access);

    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        const uint8_t *by_site;

        t->access[r] = here(t, e);
        emit_gs_store(e, r, GS_HOT(va));
        emit_jmp_to(e, rw_of(t, access));
        by_site = here(t, e);
        emit_gs_store(e, r, GS_HOT(va));
        emit_jmp_to(e, rw_of(t, lookup));
        for (unsigned site = 0; site < X86_GPR_COUNT; site++) {
            t->access_site[r][site] = here(t, e);
            emit_store32(e, site, GS_HOT(site));
            emit_jmp_to(e, rw_of(t, by_site));
        }
    }
}

static const uint8_t compact_sizes[COMPACT_SIZES] = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96};

static unsigned compact_size_index(unsigned size, bool is_range)
{
    unsigned i = 0;

    while (i < COMPACT_SIZES && (is_range ? compact_sizes[i] < size : compact_sizes[i] != size)) {
        i++;
    }
    return i;
}

/* See mmu.h for the index. Where it goes on lies in memory meanwhile. */
static void emit_compact(struct translator *t, struct emit *e, unsigned va, unsigned addend,
                         bool is_write, unsigned size)
{
    uint32_t tlb = mem_tlb_offset(MMU_USER, is_write);
    uint32_t tag = tlb + (uint32_t)offsetof(struct mmu_tlb_entry, tag);
    uint8_t *sample;
    uint8_t *miss;

    emit_gs_store(e, addend, GS_HOT(check_return));
    emit_gs_op(e, "\x83", 1, 5, GS_HOT(check_budget)); /* sub dword, imm8 */
    emit_u8(e, 1);
    sample = emit_jcc_once(e, EMIT_CC_S);
    thunk_emit_tlb_index(e, addend, va);
    emit_gs_indexed(e, EMIT_XOR_LOAD, va, addend, tag);
    emit_alu_imm(e, true, 7, va, (int32_t)(GMEM_PAGE_BYTES - size));
    miss = emit_jcc_once(e, EMIT_CC_A);
    emit_gs_indexed(e, EMIT_MOV_LOAD, addend, addend,
                    tlb + (uint32_t)offsetof(struct mmu_tlb_entry, addend));
    emit_gs_op(e, "\xff", 1, 4, GS_HOT(check_return));
    emit_patch(miss, e->p);
    emit_gs_indexed(e, EMIT_XOR_LOAD, va, addend, tag);
    emit_patch(sample, e->p);
    emit_gs_store_imm32(e, GS_HOT(site), COMPACT_SITE);
    emit_jmp_to(e, rw_of(t, t->access[va]));
}

const uint8_t *thunk_compact(struct translator *t, unsigned address, unsigned addend, bool is_write,
                             bool is_range, unsigned size, unsigned *ret_size)
{
    unsigned index = compact_size_index(size, is_range);
    uint16_t *slot;

    if (index == COMPACT_SIZES) {
        return NULL;
    }
    *ret_size = compact_sizes[index];
    slot = &t->compact_slot[address][addend][is_write ? 1 : 0][index];
    if (*slot == 0) {
        struct emit e = {t->rw + t->compact_slots + t->compact_count * COMPACT_SLOT_BYTES,
                         t->vcpu_at};

        if (t->compact_count == COMPACT_SLOTS) {
            return NULL;
        }
        emit_compact(t, &e, address, addend, is_write, *ret_size);
        *slot = (uint16_t)++t->compact_count;
    }
    return t->rw + t->compact_slots + (*slot - 1u) * COMPACT_SLOT_BYTES;
}

bool thunk_has_low_code(const struct translator *t)
{
    return (uintptr_t)t->rx + t->size_bytes <= UINT32_MAX;
}

static void emit_give_back(struct emit *e, unsigned low, unsigned high)
{
    emit_gs_load(e, low, GS_SPILL(low));
    if (high != low) {
        emit_gs_load(e, high, GS_SPILL(high));
    }
}

static void emit_exits_borrowed(struct translator *t, struct emit *e)
{
    for (unsigned low = 0; low < X86_GPR_COUNT; low++) {
        for (unsigned high = low; high < X86_GPR_COUNT; high++) {
            for (unsigned in_slot = 0; in_slot < 2 && low != X86_RSP && high != X86_RSP;
                 in_slot++) {
                t->exit_borrowed[low][high][in_slot] = here(t, e);
                emit_store32(e, low, GS_HOT(exit));
                emit_give_back(e, low, high);
                emit_jmp_to(e, rw_of(t, in_slot == 0 ? t->exit_host : t->exit_slot));
            }
        }
    }
}

static void emit_lookups_borrowed(struct translator *t, struct emit *e, unsigned copy)
{
    const struct thunk_dispatch *dispatch = &t->dispatch[copy][MMU_USER];

    for (unsigned i = 0; i < THUNK_LOOKUP_REGS * THUNK_LOOKUP_REGS * 2; i++) {
        unsigned rank = i / 2 / THUNK_LOOKUP_REGS;
        unsigned rank2 = i / 2 % THUNK_LOOKUP_REGS;
        unsigned low = xlate_scratch_order(rank);
        unsigned high = xlate_scratch_order(rank2);

        if (low <= high) {
            t->lookup_borrowed[copy][rank][rank2][i & 1] = code_offset(t, e->p);
            emit_store32(e, low, GS_HOT(offset));
            emit_give_back(e, low, high);
            emit_jmp_to(e, rw_of(t, dispatch->offset_in_slot[i & 1]));
        }
    }
}

/* From start up to there, C is called next, whatever happens. */
static void note_way_to_c(struct translator *t, const uint8_t *start, uint32_t end)
{
    t->to_c[t->to_c_count++] = (struct thunk_range){(uint32_t)(start - t->rx), end};
}

static bool is_within(const struct thunk_range *ranges, unsigned count, uint32_t code)
{
    for (unsigned i = 0; i < count; i++) {
        if (code - ranges[i].from < ranges[i].to - ranges[i].from) {
            return true;
        }
    }
    return false;
}

bool thunk_is_resuming(const struct translator *t, uint32_t code)
{
    return is_within(&t->resume, 1, code);
}

bool thunk_leads_to_c(const struct translator *t, uint32_t code)
{
    return is_within(t->to_c, t->to_c_count, code);
}

bool thunk_is_on_the_way(const struct translator *t, uint32_t code)
{
    return is_within(t->on_the_way, t->on_the_way_count, code);
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
    t->resume = (struct thunk_range){(uint32_t)(resume - t->rx), code_offset(t, e.p)};

    const uint8_t *access = here(t, &e);
    emit_store_gprs(&e);
    emit_call(t, &e, GS_HOT(fn_access));
    note_way_to_c(t, access, t->calls[t->call_count - 1]);
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
    note_way_to_c(t, t->exit_host, t->calls[t->call_count - 1]);
    emit_jcc_to(&e, EMIT_CC_E, rw_of(t, t->leave));
    emit_gs_store(&e, X86_RAX, GS_HOT(resume));
    emit_jmp_to(&e, rw_of(t, resume));

    emit_jump_misses(t, &e);
    emit_dead(t, &e);
    note_way_to_c(t, t->jump_miss[0], code_offset(t, e.p));
    emit_restore_flags(t, &e);
    for (unsigned copy = 0; copy < THUNK_DISPATCH_COPIES; copy++) {
        for (unsigned mode = 0; mode < ARRAY_LEN(t->dispatch[0]); mode++) {
            emit_dispatches(t, &e, &t->dispatch[copy][mode], mode, 0);
            emit_dispatches(t, &e, &t->dispatch[copy][mode], mode, 1);
        }
        emit_lookups_borrowed(t, &e, copy);
    }
    const uint8_t *borrowed = here(t, &e);
    emit_exits_borrowed(t, &e);
    note_way_to_c(t, borrowed, code_offset(t, e.p));
    emit_accesses(t, &e, access);
    emit_align(&e, 64);
    t->compact_slots = code_offset(t, e.p);
    t->used_bytes = t->compact_slots + COMPACT_SLOTS * COMPACT_SLOT_BYTES;
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
