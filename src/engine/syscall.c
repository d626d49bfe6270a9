/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM 2B, 3A 5.8.7-5.8.8): flat segments
 * whose descriptors are never read.
 */
#include "engine/interp.h"

static struct x86_segment flat_segment(uint16_t selector, uint32_t type, unsigned dpl,
                                       uint32_t size_bits)
{
    return (struct x86_segment){
        .selector = selector,
        .limit = 0xffffffffu,
        .access_rights =
            type | X86_AR_S | X86_AR_P | X86_AR_G | (dpl << X86_AR_DPL_SHIFT) | size_bits,
    };
}

static void set_flat(struct engine_vcpu *v, uint16_t cs, uint16_t ss, unsigned cpl, bool is_64)
{
    v->st.seg[X86_CS] = flat_segment(cs, 0xb, cpl, is_64 ? X86_AR_L : X86_AR_DB);
    v->st.seg[X86_SS] = flat_segment(ss, 0x3, cpl, X86_AR_DB);
}

int fast_syscall(struct engine_vcpu *v, const struct insn *in)
{
    bool from_64 = interp_is_64(v);
    uint16_t cs = (uint16_t)(v->st.star >> 32) & 0xfffc;

    (void)in;
    if ((v->st.efer & X86_EFER_SCE) == 0 || !interp_is_long(v) || (!from_64 && !v->vendor_amd)) {
        return engine_raise(v, X86_VEC_UD);
    }
    native_user_note_kernel(v);
    v->st.gpr[X86_RCX] = v->next_rip;
    v->st.gpr[X86_R11] = v->st.rflags & ~(uint64_t)X86_FLAG_RF;
    v->next_rip = from_64 ? v->st.lstar : v->st.cstar;
    v->st.rflags &= ~(v->st.sfmask | X86_FLAG_RF);
    v->st.rflags |= X86_FLAG_FIXED1;
    set_flat(v, cs, (uint16_t)(cs + 8), 0, true);
    return 0;
}

int fast_sysret(struct engine_vcpu *v, const struct insn *in)
{
    bool to_64 = in->opsize_bytes == 8;
    uint16_t base = (uint16_t)(v->st.star >> 48);
    uint16_t cs = (uint16_t)(to_64 ? base + 16 : base) | 3;
    uint64_t target = to_64 ? v->st.gpr[X86_RCX] : v->st.gpr[X86_RCX] & 0xffffffffu;
    uint64_t mask = 0x3c7fd7ull;

    if ((v->st.efer & X86_EFER_SCE) == 0 || !interp_is_64(v)) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (vcpu_state_cpl(&v->st) != 0 || !mmu_is_canonical(v, target)) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    v->st.rflags = (v->st.gpr[X86_R11] & mask) | X86_FLAG_FIXED1;
    set_flat(v, cs, (uint16_t)(base + 8) | 3, 3, to_64);
    v->next_rip = target;
    return 0;
}

int fast_sysenter(struct engine_vcpu *v, const struct insn *in)
{
    uint16_t cs = (uint16_t)v->st.sysenter_cs & 0xfffc;
    bool to_64 = interp_is_long(v);

    (void)in;
    if (!interp_is_protected(v) || cs == 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    v->st.rflags &= ~(uint64_t)(X86_FLAG_IF | X86_FLAG_VM | X86_FLAG_RF);
    set_flat(v, cs, (uint16_t)(cs + 8), 0, to_64);
    v->st.gpr[X86_RSP] = to_64 ? v->st.sysenter_esp : v->st.sysenter_esp & 0xffffffffu;
    v->next_rip = to_64 ? v->st.sysenter_eip : v->st.sysenter_eip & 0xffffffffu;
    return 0;
}

int fast_sysexit(struct engine_vcpu *v, const struct insn *in)
{
    bool to_64 = in->opsize_bytes == 8;
    uint16_t base = (uint16_t)v->st.sysenter_cs & 0xfffc;
    uint16_t cs = (uint16_t)(base + (to_64 ? 32 : 16)) | 3;
    uint64_t rip = v->st.gpr[X86_RDX];
    uint64_t rsp = v->st.gpr[X86_RCX];

    if (!interp_is_protected(v) || base == 0 || vcpu_state_cpl(&v->st) != 0 ||
        (to_64 && (!mmu_is_canonical(v, rip) || !mmu_is_canonical(v, rsp)))) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    set_flat(v, cs, (uint16_t)(cs + 8), 3, to_64);
    v->next_rip = to_64 ? rip : rip & 0xffffffffu;
    v->st.gpr[X86_RSP] = to_64 ? rsp : rsp & 0xffffffffu;
    return 0;
}
