/*
 * How translated code reaches guest memory: the software TLB of mmu.h, looked
 * up inline. Everything else sees only struct ea and struct host_operand, so
 * that another way can take its place here.
 *
 * The tag check is not on the path of the address: the addend is loaded beside
 * it, and the access uses guest registers + addend.
 */
#include "engine/translate_int.h"

#define TLB_ENTRY_BYTES 16u
#define TLB_SHIFT (12u - 4u)
#define TLB_INDEX_MASK ((MMU_TLB_SETS - 1u) * TLB_ENTRY_BYTES)

static uint32_t seg_slot(unsigned seg)
{
    if (seg == X86_FS || seg == X86_GS) {
        return (uint32_t)(offsetof(struct engine_vcpu, st.seg) + seg * sizeof(struct x86_segment) +
                          offsetof(struct x86_segment, base));
    }
    return 0; /* other bases are 0 in 64-bit mode */
}

struct ea ea_reg(unsigned base, int32_t disp)
{
    return (struct ea){
        .kind = EA_REG, .base = (uint8_t)base, .index = EMIT_NO_REG, .scale = 1, .disp = disp};
}

struct ea ea_of(const struct xlate *x, const struct insn *insn)
{
    struct ea ea = {.kind = EA_COMPLEX,
                    .base = insn->base == INSN_REG_NONE ? EMIT_NO_REG : insn->base,
                    .index = insn->index == INSN_REG_NONE ? EMIT_NO_REG : insn->index,
                    .scale = insn->scale == 0 ? 1 : insn->scale,
                    .is_32bit = insn->addrsize_bytes == 4,
                    .disp = (int32_t)insn->disp,
                    .slot = seg_slot(insn->seg)};

    if (insn->base == INSN_REG_RIP) {
        ea.kind = EA_SLOT;
        ea.base = EMIT_NO_REG;
        ea.slot = GS_HOT(page);
        ea.disp += (int32_t)x->ti->offset + insn->len;
    } else if (!ea.is_32bit && ea.base == EMIT_NO_REG && ea.index == EMIT_NO_REG && ea.slot != 0) {
        ea.kind = EA_SLOT;
    } else if (!ea.is_32bit && ea.base != EMIT_NO_REG && ea.index == EMIT_NO_REG && ea.slot == 0) {
        ea.kind = EA_REG;
    }
    return ea;
}

void ea_emit(struct xlate *x, const struct ea *ea, unsigned dst)
{
    struct emit *e = &x->e;

    switch (ea->kind) {
    case EA_REG:
        if (ea->disp == 0) {
            emit_mov(e, true, dst, ea->base);
        } else {
            emit_lea(e, dst, ea->base, ea->disp);
        }
        break;
    case EA_SLOT:
        emit_gs_load(e, dst, ea->slot);
        if (ea->disp != 0) {
            emit_lea(e, dst, dst, ea->disp);
        }
        break;
    default:
        emit_mem(e, !ea->is_32bit, EMIT_LEA, dst, ea->base, ea->index, ea->scale, ea->disp);
        if (ea->slot != 0) {
            emit_gs(e, EMIT_ADD_LOAD, dst, ea->slot);
        }
        break;
    }
}

static uint32_t tlb_offset(unsigned mode, bool is_write)
{
    return (
        uint32_t)(offsetof(struct engine_vcpu, tlb) +
                  (mode & UNIT_MODE_MMU) * sizeof(struct mmu_tlb) +
                  (is_write ? offsetof(struct mmu_tlb, write) : offsetof(struct mmu_tlb, read)));
}

struct host_operand mem_check(struct xlate *x, const struct ea *ea, unsigned size, bool is_write,
                              unsigned s0, unsigned s1)
{
    struct emit *e = &x->e;
    uint32_t tlb = tlb_offset(x->ti->mode, is_write);
    struct cold_access *cold = &x->cold_access[x->cold_access_count++];

    cold->retry = e->p;
    cold->ea = *ea;
    cold->scratch = (uint8_t)s0;
    cold->mode = x->ti->mode;
    cold->is_write = is_write;
    cold->size = (uint16_t)size;

    ea_emit(x, ea, s0);
    emit_mov(e, false, s1, s0);
    emit_shift_imm(e, false, 5, s1, TLB_SHIFT);
    emit_alu_imm(e, false, 4, s1, (int32_t)TLB_INDEX_MASK);
    emit_gs_indexed(e, EMIT_XOR_LOAD, s0, s1, tlb + (uint32_t)offsetof(struct mmu_tlb_entry, tag));
    emit_alu_imm(e, true, 7, s0, (int32_t)(GMEM_PAGE_BYTES - size));
    cold->branch = emit_jcc(e, EMIT_CC_A);
    emit_gs_indexed(e, EMIT_MOV_LOAD, s1, s1,
                    tlb + (uint32_t)offsetof(struct mmu_tlb_entry, addend));

    switch (ea->kind) {
    case EA_REG:
        return (struct host_operand){ea->base, (uint8_t)s1, ea->disp};
    case EA_SLOT:
        emit_gs(e, EMIT_ADD_LOAD, s1, ea->slot);
        return (struct host_operand){(uint8_t)s1, EMIT_NO_REG, ea->disp};
    default:
        ea_emit(x, ea, s0);
        return (struct host_operand){(uint8_t)s0, (uint8_t)s1, 0};
    }
}

void mem_emit_cold(struct xlate *x)
{
    struct emit *e = &x->e;

    for (unsigned i = 0; i < x->cold_access_count; i++) {
        const struct cold_access *cold = &x->cold_access[i];

        emit_patch(cold->branch, e->p);
        ea_emit(x, &cold->ea, cold->scratch);
        emit_gs_store(e, cold->scratch, GS_HOT(va));
        emit_gs_store_imm32(e, GS_HOT(site),
                            code_offset(x->t, cold->retry) | (cold->is_write ? SITE_WRITE : 0u) |
                                (uint32_t)(cold->mode & UNIT_MODE_MMU) << SITE_MODE_SHIFT);
        emit_gs_store_imm32(e, GS_HOT(site_size), cold->size);
        emit_jmp_to(e, x->t->rw + (x->t->access - x->t->rx));
    }
}
