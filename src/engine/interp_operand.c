/*
 * Operands of the interpreter: registers, effective and linear addresses,
 * segment checks (SDM 3A 5.3, 5.5), the stack and the instruction pointer.
 */
#include "engine/interp.h"

#include <string.h>

static bool is_high_byte(const struct insn *in, unsigned reg, unsigned bytes)
{
    return bytes == 1 && reg >= 4 && reg < 8 && in->rex == 0 && in->encoding == INSN_ENC_LEGACY;
}

uint64_t interp_reg(const struct engine_vcpu *v, const struct insn *in, unsigned reg,
                    unsigned bytes)
{
    if (is_high_byte(in, reg, bytes)) {
        return (v->st.gpr[reg - 4] >> 8) & 0xff;
    }
    return v->st.gpr[reg & 15] & interp_mask(bytes);
}

void interp_set_reg(struct engine_vcpu *v, const struct insn *in, unsigned reg, unsigned bytes,
                    uint64_t value)
{
    uint64_t *gpr = &v->st.gpr[reg & 15];

    if (is_high_byte(in, reg, bytes)) {
        v->st.gpr[reg - 4] = (v->st.gpr[reg - 4] & ~0xff00ull) | ((value & 0xff) << 8);
    } else if (bytes == 4) {
        *gpr = value & 0xffffffffu;
    } else {
        *gpr = (*gpr & ~interp_mask(bytes)) | (value & interp_mask(bytes));
    }
}

enum mmu_mode interp_system_mode(const struct engine_vcpu *v)
{
    return (v->st.cr4 & X86_CR4_SMAP) != 0 ? MMU_KERNEL : MMU_KERNEL_AC;
}

uint64_t interp_ea(const struct engine_vcpu *v, const struct insn *in)
{
    uint64_t ea = (uint64_t)in->disp;

    if (in->base == INSN_REG_RIP) {
        ea += v->st.rip + in->len;
    } else if (in->base != INSN_REG_NONE) {
        ea += v->st.gpr[in->base & 15];
    }
    if (in->index != INSN_REG_NONE) {
        ea += v->st.gpr[in->index & 15] * in->scale;
    }
    return ea & interp_mask(in->addrsize_bytes);
}

static int raise_segment(struct engine_vcpu *v, unsigned seg)
{
    return engine_raise_error(v, seg == X86_SS ? X86_VEC_SS : X86_VEC_GP, 0);
}

/* Is [ea, ea + len) within the limit? ea is at most 32 bits wide. */
static bool within_limit(const struct x86_segment *s, uint64_t ea, unsigned len)
{
    uint64_t last = ea + len - 1;

    if ((s->access_rights & (X86_AR_S | 0xc)) == (X86_AR_S | 0x4)) {
        uint64_t top = (s->access_rights & X86_AR_DB) != 0 ? 0xffffffffu : 0xffffu;

        return ea > s->limit && last <= top;
    }
    /* A flat segment of 4 GiB has no limit: what crosses its end goes on at 0. */
    return last <= s->limit || s->limit == 0xffffffffu;
}

static bool rights_allow(const struct engine_vcpu *v, const struct x86_segment *s,
                         enum mmu_access access)
{
    unsigned type = s->access_rights & X86_AR_TYPE;

    if ((s->access_rights & X86_AR_UNUSABLE) != 0) {
        return false;
    }
    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        return true;
    }
    if (access == MMU_WRITE) {
        return (type & 0xa) == 0x2;
    }
    return (type & 0xa) != 0x8;
}

/* SDM 3A 6.15, vector 17: user mode, CR0.AM and RFLAGS.AC. */
static bool is_misaligned(const struct engine_vcpu *v, uint64_t va, unsigned len)
{
    if ((v->st.rflags & X86_FLAG_AC) == 0 || (v->st.cr0 & X86_CR0_AM) == 0 ||
        vcpu_state_cpl(&v->st) != 3) {
        return false;
    }
    return (len == 2 || len == 4 || len == 8) && (va & (len - 1)) != 0;
}

int interp_linear(struct engine_vcpu *v, unsigned seg, uint64_t ea, unsigned len,
                  enum mmu_access access, uint64_t *ret_va)
{
    const struct x86_segment *s = &v->st.seg[seg];
    uint64_t va = ea;

    if (likely(interp_is_64(v))) {
        if (seg == X86_FS || seg == X86_GS) {
            va += s->base;
        }
        if (!mmu_is_canonical(v, va) || !mmu_is_canonical(v, va + len - 1)) {
            return raise_segment(v, seg);
        }
    } else {
        if (!rights_allow(v, s, access) || !within_limit(s, ea, len)) {
            return raise_segment(v, seg);
        }
        va = (va + s->base) & 0xffffffffu;
    }
    if (unlikely(is_misaligned(v, va, len))) {
        return engine_raise_error(v, X86_VEC_AC, 0);
    }
    *ret_va = va;
    return 0;
}

int interp_read(struct engine_vcpu *v, unsigned seg, uint64_t ea, void *buf, unsigned len)
{
    uint64_t va = 0;
    int r = interp_linear(v, seg, ea, len, MMU_READ, &va);

    return r != 0 ? r : mmu_read(v, va, buf, len, mmu_current_mode(v));
}

int interp_write(struct engine_vcpu *v, unsigned seg, uint64_t ea, const void *buf, unsigned len)
{
    uint64_t va = 0;
    int r = interp_linear(v, seg, ea, len, MMU_WRITE, &va);

    return r != 0 ? r : mmu_write(v, va, buf, len, mmu_current_mode(v));
}

int interp_load(struct engine_vcpu *v, unsigned seg, uint64_t ea, unsigned bytes,
                uint64_t *ret_value)
{
    uint64_t value = 0;
    int r = interp_read(v, seg, ea, &value, bytes);

    if (r == 0) {
        *ret_value = value;
    }
    return r;
}

int interp_store(struct engine_vcpu *v, unsigned seg, uint64_t ea, unsigned bytes, uint64_t value)
{
    return interp_write(v, seg, ea, &value, bytes);
}

int interp_load_rm(struct engine_vcpu *v, const struct insn *in, unsigned bytes,
                   uint64_t *ret_value)
{
    if (in->rm != INSN_REG_NONE) {
        *ret_value = interp_reg(v, in, in->rm, bytes);
        return 0;
    }
    return interp_load(v, in->seg, interp_ea(v, in), bytes, ret_value);
}

int interp_store_rm(struct engine_vcpu *v, const struct insn *in, unsigned bytes, uint64_t value)
{
    if (in->rm != INSN_REG_NONE) {
        interp_set_reg(v, in, in->rm, bytes, value);
        return 0;
    }
    return interp_store(v, in->seg, interp_ea(v, in), bytes, value);
}

void interp_stack_init(const struct engine_vcpu *v, struct interp_stack *ret_stack)
{
    const struct x86_segment *ss = &v->st.seg[X86_SS];

    memset(ret_stack, 0, sizeof(*ret_stack));
    ret_stack->sp = v->st.gpr[X86_RSP];
    ret_stack->mode = mmu_current_mode(v);
    if (interp_is_64(v)) {
        ret_stack->mask = ~0ull;
        return;
    }
    ret_stack->big = (ss->access_rights & X86_AR_DB) != 0;
    ret_stack->mask = ret_stack->big ? 0xffffffffu : 0xffffu;
    ret_stack->base = ss->base;
    ret_stack->limit = ss->limit;
    ret_stack->checked = true;
    ret_stack->expand_down = (ss->access_rights & (X86_AR_S | 0xc)) == (X86_AR_S | 0x4);
}

static int stack_linear(struct engine_vcpu *v, const struct interp_stack *stack, uint64_t sp,
                        unsigned bytes, uint64_t *ret_va)
{
    uint64_t last = sp + bytes - 1;

    if (!stack->checked) {
        if (!mmu_is_canonical(v, sp) || !mmu_is_canonical(v, last)) {
            return engine_raise_error(v, X86_VEC_SS, stack->error);
        }
        *ret_va = sp;
    } else {
        bool fits = last <= stack->limit || stack->limit == 0xffffffffu; /* as within_limit() */

        if (stack->expand_down) {
            fits = sp > stack->limit && last <= (stack->big ? 0xffffffffu : 0xffffu);
        }
        if (!fits) {
            return engine_raise_error(v, X86_VEC_SS, stack->error);
        }
        *ret_va = (sp + stack->base) & 0xffffffffu;
    }
    if (unlikely(is_misaligned(v, *ret_va, bytes))) {
        return engine_raise_error(v, X86_VEC_AC, 0);
    }
    return 0;
}

int interp_push(struct engine_vcpu *v, struct interp_stack *stack, unsigned bytes, uint64_t value)
{
    uint64_t sp = (stack->sp - bytes) & stack->mask;
    uint64_t va = 0;
    int r = stack_linear(v, stack, sp, bytes, &va);

    if (r == 0) {
        r = mmu_write(v, va, &value, bytes, stack->mode);
    }
    if (r == 0) {
        stack->sp = (stack->sp & ~stack->mask) | sp;
    }
    return r;
}

int interp_pop(struct engine_vcpu *v, struct interp_stack *stack, unsigned bytes,
               uint64_t *ret_value)
{
    uint64_t value = 0;
    uint64_t sp = stack->sp & stack->mask;
    uint64_t va = 0;
    int r = stack_linear(v, stack, sp, bytes, &va);

    if (r == 0) {
        r = mmu_read(v, va, &value, bytes, stack->mode);
    }
    if (r == 0) {
        stack->sp = (stack->sp & ~stack->mask) | ((sp + bytes) & stack->mask);
        *ret_value = value;
    }
    return r;
}

void interp_stack_commit(struct engine_vcpu *v, const struct interp_stack *stack)
{
    v->st.gpr[X86_RSP] = stack->mask == 0xffffffffu ? stack->sp & stack->mask : stack->sp;
}

int interp_branch(struct engine_vcpu *v, uint64_t target, unsigned bytes)
{
    target &= interp_mask(bytes);
    if (interp_is_64(v)) {
        if (!mmu_is_canonical(v, target)) {
            return engine_raise_error(v, X86_VEC_GP, 0);
        }
    } else if (target > v->st.seg[X86_CS].limit) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    v->next_rip = target;
    return 0;
}

int interp_check_fpu(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t cr0 = v->st.cr0;
    uint8_t flags = in->flags & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX);
    bool is_wait = in->map == 0 && in->opcode == 0x9b;

    if (flags == 0) {
        return 0;
    }
    if ((flags & INSN_AVX) != 0) {
        if ((v->st.cr4 & X86_CR4_OSXSAVE) == 0 || (v->st.xcr0 & 6) != 6 ||
            !interp_is_protected(v) || interp_is_vm86(v)) {
            return engine_raise(v, X86_VEC_UD);
        }
    } else if ((flags & INSN_SSE) != 0) {
        if ((cr0 & X86_CR0_EM) != 0 || (v->st.cr4 & X86_CR4_OSFXSR) == 0) {
            return engine_raise(v, X86_VEC_UD);
        }
    } else if ((flags & INSN_MMX) != 0 && (cr0 & X86_CR0_EM) != 0) {
        return engine_raise(v, X86_VEC_UD);
    } else if (is_wait) {
        return (cr0 & (X86_CR0_MP | X86_CR0_TS)) == (X86_CR0_MP | X86_CR0_TS)
                   ? engine_raise(v, X86_VEC_NM)
                   : 0;
    } else if ((flags & INSN_X87) != 0 && (cr0 & X86_CR0_EM) != 0) {
        return engine_raise(v, X86_VEC_NM);
    }
    return (cr0 & X86_CR0_TS) != 0 ? engine_raise(v, X86_VEC_NM) : 0;
}
