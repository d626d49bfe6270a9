/*
 * What translated code calls while the guest's vector registers are live: the
 * slow path of a memory access and the lookup of branch targets. Compiled for
 * general registers only, and calls nothing that is not.
 */
#include "engine/translate_int.h"

#define PAGE_MASK ((uint64_t)GMEM_PAGE_BYTES - 1)

static unsigned fpu_mode(const struct vcpu_state *st)
{
    unsigned mode = 0;

    if ((st->cr0 & (X86_CR0_EM | X86_CR0_TS)) == 0) {
        mode |= UNIT_MODE_X87;
        if ((st->cr4 & X86_CR4_OSFXSR) != 0) {
            mode |= UNIT_MODE_SSE;
        }
    }
    if ((st->cr0 & X86_CR0_TS) == 0 && (st->cr4 & X86_CR4_OSXSAVE) != 0 &&
        (~st->xcr0 & (X86_XCR0_SSE | X86_XCR0_AVX)) == 0) {
        mode |= UNIT_MODE_AVX;
    }
    return mode;
}

int light_unit_mode(const struct engine_vcpu *v)
{
    const struct vcpu_state *st = &v->st;
    unsigned cpl = vcpu_state_cpl(st);
    unsigned mode;

    if ((st->efer & X86_EFER_LMA) == 0 || (st->seg[X86_CS].access_rights & X86_AR_L) == 0) {
        return -1;
    }
    if ((cpl != 0 && cpl != 3) || (st->rflags & X86_FLAG_TF) != 0 || (st->dr[7] & 0xff) != 0) {
        return -1;
    }
    if (v->debug.single_step || v->debug.breakpoint_count != 0) {
        return -1;
    }
    if (cpl == 3 && (st->rflags & X86_FLAG_AC) != 0 && (st->cr0 & X86_CR0_AM) != 0) {
        return -1; /* alignment checks */
    }
    mode = (unsigned)mmu_current_mode(v) | fpu_mode(st);
    if (cpl == 0 || (st->cr4 & X86_CR4_TSD) == 0) {
        mode |= UNIT_MODE_TSC;
    }
    if ((st->cr4 & X86_CR4_SMAP) != 0) {
        mode |= UNIT_MODE_SMAP;
    }
    if ((st->cr4 & X86_CR4_FSGSBASE) != 0) {
        mode |= UNIT_MODE_FSGSBASE;
    }
    return (int)mode;
}

void light_flush_jump_cache(struct engine_vcpu *v)
{
    for (unsigned mode = 0; mode < JUMP_CACHE_MODES; mode++) {
        for (unsigned set = 0; set < JUMP_CACHE_SETS; set++) {
            v->hot.jump[mode][set].rip = JUMP_CACHE_EMPTY;
        }
    }
}

struct unit *light_find(struct engine_vcpu *v, unsigned mode)
{
    const uint8_t *host;
    const uint8_t *next = NULL;
    uint64_t rip = v->st.rip;

    if (mmu_fetch_host(v, rip, &host) != 0 || host == NULL) {
        return NULL;
    }
    if ((rip & PAGE_MASK) > GMEM_PAGE_BYTES - INSN_MAX_BYTES &&
        mmu_fetch_host(v, (rip & ~PAGE_MASK) + GMEM_PAGE_BYTES, &next) != 0) {
        next = NULL;
    }
    return code_cache_find(v->vm->translator, (uintptr_t)host, mode, (uintptr_t)next);
}

void light_remember(struct engine_vcpu *v, const struct unit *unit)
{
    struct jump_entry *entry;

    if ((unit->mode & UNIT_MODE_REST) != v->hot.jump_mode) {
        light_flush_jump_cache(v);
        v->hot.jump_mode = unit->mode & UNIT_MODE_REST;
    }
    entry =
        (void *)((uint8_t *)v->hot.jump[unit->mode & UNIT_MODE_MMU] + jump_cache_offset(v->st.rip));
    entry->rip = v->st.rip;
    entry->host = code_rx(v->vm->translator, unit->indirect);
}

uint64_t light_access(void *vcpu)
{
    struct engine_vcpu *v = vcpu;
    uint64_t va = v->hot.va;
    uint32_t site = v->hot.site;
    enum mmu_access access = (site & SITE_WRITE) != 0 ? MMU_WRITE : MMU_READ;
    enum mmu_mode mode = (enum mmu_mode)(site >> SITE_MODE_SHIFT);
    const struct mmu_tlb *tlb = &v->tlb[mode];
    const struct mmu_tlb_entry *table = access == MMU_WRITE ? tlb->write : tlb->read;
    struct mmu_page page;

    v->hot.leave = LEAVE_ACCESS;
    if ((va & PAGE_MASK) + v->hot.site_size > GMEM_PAGE_BYTES ||
        mmu_fill(v, va, access, mode, &page) != 0 || page.host == NULL ||
        table[(va >> GMEM_PAGE_SHIFT) & (MMU_TLB_SETS - 1)].tag != (va & ~PAGE_MASK)) {
        return 0;
    }
    return code_rx(v->vm->translator, site & SITE_CODE_MASK);
}

/* On to st.rip. */
static uint64_t dispatch(struct engine_vcpu *v)
{
    int mode = light_unit_mode(v);
    struct unit *unit = mode < 0 ? NULL : light_find(v, (unsigned)mode);

    if (unit == NULL) {
        v->hot.leave = LEAVE_LOOKUP;
        return 0;
    }
    light_remember(v, unit);
    v->hot.page = v->st.rip & ~PAGE_MASK;
    return code_rx(v->vm->translator, unit->entry);
}

uint64_t light_exit(void *vcpu)
{
    struct engine_vcpu *v = vcpu;
    const struct unit_exit *exit;

    v->hot.stat_exits++;
    if (v->hot.exit == 0) {
        return dispatch(v);
    }
    exit = &v->vm->translator->exits[v->hot.exit];
    v->st.rip = v->hot.page + (uint64_t)(int64_t)exit->target_offset;
    v->hot.leave = exit->kind == EXIT_CHAIN ? LEAVE_CHAIN : LEAVE_INTERP;
    return 0;
}
