/*
 * Privileged and system instructions: control and debug registers, descriptor
 * tables, TLB, interrupt flag, HLT, CPUID, time stamp, ports.
 */
#include "engine/interp.h"

#include "base/wire.h"

#include <string.h>

#define CR4_FLUSHES \
    (X86_CR4_PGE | X86_CR4_PAE | X86_CR4_PSE | X86_CR4_PCIDE | X86_CR4_SMEP | X86_CR4_SMAP)
#define CR4_KNOWN                                                                       \
    (X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | \
     X86_CR4_MCE | X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)

#define DR6_FIXED 0xffff0ff0ull
#define DR6_WRITABLE 0x0000e00full
#define DR6_BD 0x2000ull
#define DR7_GD 0x2000ull
#define DR7_FIXED 0x400ull
#define DR7_WRITABLE 0xffff23ffull

static int require_cpl0(struct engine_vcpu *v)
{
    if (interp_is_protected(v) && vcpu_state_cpl(&v->st) != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    return 0;
}

static int refuse(struct engine_vcpu *v)
{
    return engine_raise_error(v, X86_VEC_GP, 0);
}

int sysop_hlt(struct engine_vcpu *v, const struct insn *in)
{
    int r = require_cpl0(v);

    (void)in;
    if (r == 0) {
        v->st.mp_state = X86_MP_HALTED;
        v->exit->reason = VMEXIT_HLT;
        v->leave = true;
    }
    return r;
}

static bool may_change_if(const struct engine_vcpu *v)
{
    return !interp_is_protected(v) || vcpu_state_cpl(&v->st) <= interp_iopl(v);
}

int sysop_cli(struct engine_vcpu *v, const struct insn *in)
{
    (void)in;
    if (!may_change_if(v)) {
        return refuse(v);
    }
    v->st.rflags &= ~(uint64_t)X86_FLAG_IF;
    return 0;
}

int sysop_sti(struct engine_vcpu *v, const struct insn *in)
{
    (void)in;
    if (!may_change_if(v)) {
        return refuse(v);
    }
    if ((v->st.rflags & X86_FLAG_IF) == 0) {
        v->st.rflags |= X86_FLAG_IF;
        v->st.events.sti_shadow = true;
    }
    return 0;
}

int sysop_clts(struct engine_vcpu *v, const struct insn *in)
{
    int r = require_cpl0(v);

    (void)in;
    if (r == 0) {
        v->st.cr0 &= ~(uint64_t)X86_CR0_TS;
    }
    return r;
}

int sysop_mov_from_cr(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value;
    int r = require_cpl0(v);

    if (r != 0) {
        return r;
    }
    switch (in->reg) {
    case 0:
        value = v->st.cr0;
        break;
    case 2:
        value = v->st.cr2;
        break;
    case 3:
        value = v->st.cr3;
        break;
    case 4:
        value = v->st.cr4;
        break;
    case 8:
        value = v->st.cr8;
        break;
    default:
        return engine_raise(v, X86_VEC_UD);
    }
    interp_set_reg(v, in, in->rm, in->mode == INSN_MODE_64 ? 8 : 4, value);
    return 0;
}

static bool feature(const struct engine_vcpu *v, uint32_t leaf, unsigned reg, unsigned bit)
{
    return v->env != NULL && v->env->cpuid != NULL && cpuid_has(v->env->cpuid, leaf, 0, reg, bit);
}

/* The PDPTEs that PAE paging outside IA-32e mode would load (SDM 3A 4.4.1). */
static int check_pdptes(struct engine_vcpu *v, uint64_t cr0, uint64_t cr3, uint64_t cr4)
{
    uint64_t entries[4] = {0};

    if ((cr0 & X86_CR0_PG) == 0 || (cr4 & X86_CR4_PAE) == 0 || interp_is_long(v)) {
        return 0;
    }
    if (gmem_read(v->vm->gmem, gpa(cr3 & 0xffffffe0u), entries, sizeof(entries)) != 0) {
        return refuse(v);
    }
    for (unsigned i = 0; i < 4; i++) {
        if ((entries[i] & 1) != 0 &&
            (entries[i] & (0xfff00000000001e6ull | v->paging_reserved)) != 0) {
            return refuse(v);
        }
    }
    return 0;
}

static int write_cr0(struct engine_vcpu *v, uint64_t value)
{
    uint64_t old = v->st.cr0;
    uint64_t known = X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_NE | X86_CR0_WP |
                     X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG;
    bool enables = (value & X86_CR0_PG) != 0 && (old & X86_CR0_PG) == 0;
    bool disables = (value & X86_CR0_PG) == 0 && (old & X86_CR0_PG) != 0;
    bool to_long = enables && (v->st.efer & X86_EFER_LME) != 0;
    int r;

    if ((value >> 32) != 0 || ((value & X86_CR0_PG) != 0 && (value & X86_CR0_PE) == 0) ||
        ((value & X86_CR0_NW) != 0 && (value & X86_CR0_CD) == 0) ||
        (disables && (interp_is_64(v) || (v->st.cr4 & X86_CR4_PCIDE) != 0))) {
        return refuse(v);
    }
    if (to_long &&
        ((v->st.cr4 & X86_CR4_PAE) == 0 || (v->st.seg[X86_CS].access_rights & X86_AR_L) != 0 ||
         (v->st.seg[X86_TR].access_rights & X86_AR_TYPE) < 8)) {
        return refuse(v);
    }
    value = (value & known) | X86_CR0_ET;
    if (!to_long) {
        r = check_pdptes(v, value, v->st.cr3, v->st.cr4);
        if (r != 0) {
            return r;
        }
    }
    if (to_long) {
        v->st.efer |= X86_EFER_LMA;
    } else if (disables) {
        v->st.efer &= ~(uint64_t)X86_EFER_LMA;
    }
    v->st.cr0 = value;
    if (((old ^ value) & (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE)) != 0) {
        mmu_flush_all(v);
    }
    return 0;
}

static int write_cr3(struct engine_vcpu *v, uint64_t value)
{
    bool pcid = (v->st.cr4 & X86_CR4_PCIDE) != 0;
    bool keep = pcid && (value >> 63) != 0;
    int r;

    if (pcid) {
        value &= ~(1ull << 63);
    }
    if (interp_is_long(v) && (value & (v->paging_reserved | 0xfff0000000000000ull)) != 0) {
        return refuse(v);
    }
    r = check_pdptes(v, v->st.cr0, value, v->st.cr4);
    if (r != 0) {
        return r;
    }
    if (keep && value == v->st.cr3) {
        return 0;
    }
    if (pcid) {
        mmu_switch_context(v, value, keep);
    } else {
        v->st.cr3 = value;
        mmu_flush_non_global(v);
    }
    return 0;
}

static uint64_t cr4_allowed(const struct engine_vcpu *v)
{
    uint64_t allowed = CR4_KNOWN;

    allowed |= feature(v, 7, 1, 0) ? X86_CR4_FSGSBASE : 0;
    allowed |= feature(v, 7, 1, 7) ? X86_CR4_SMEP : 0;
    allowed |= feature(v, 7, 1, 20) ? X86_CR4_SMAP : 0;
    allowed |= feature(v, 7, 2, 2) ? X86_CR4_UMIP : 0;
    allowed |= feature(v, 1, 2, 17) ? X86_CR4_PCIDE : 0;
    allowed |= feature(v, 1, 2, 26) ? X86_CR4_OSXSAVE : 0;
    return allowed;
}

static int write_cr4(struct engine_vcpu *v, uint64_t value)
{
    uint64_t old = v->st.cr4;
    bool enables_pcid = (value & ~old & X86_CR4_PCIDE) != 0;
    int r;

    if ((value & ~cr4_allowed(v)) != 0 || (interp_is_long(v) && (value & X86_CR4_PAE) == 0) ||
        (enables_pcid && (!interp_is_long(v) || (v->st.cr3 & 0xfff) != 0))) {
        return refuse(v);
    }
    r = check_pdptes(v, v->st.cr0, v->st.cr3, value);
    if (r != 0) {
        return r;
    }
    v->st.cr4 = value;
    if (((old ^ value) & CR4_FLUSHES) != 0) {
        mmu_flush_all(v);
    }
    return 0;
}

static int write_cr8(struct engine_vcpu *v, uint64_t value)
{
    if (value > 15) {
        return refuse(v);
    }
    v->st.cr8 = value;
    v->exit->reason = VMEXIT_TPR;
    v->exit->tpr.cr8 = (uint8_t)value;
    v->leave = true;
    return 0;
}

int sysop_mov_to_cr(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value = interp_reg(v, in, in->rm, in->mode == INSN_MODE_64 ? 8 : 4);
    int r = require_cpl0(v);

    if (r != 0) {
        return r;
    }
    switch (in->reg) {
    case 0:
        return write_cr0(v, value);
    case 2:
        v->st.cr2 = value;
        return 0;
    case 3:
        return write_cr3(v, value);
    case 4:
        return write_cr4(v, value);
    case 8:
        return write_cr8(v, value);
    default:
        return engine_raise(v, X86_VEC_UD);
    }
}

/* Which debug register an access means: *ret_reg; #UD, #GP, or #DB for DR7.GD. */
static int debug_register(struct engine_vcpu *v, const struct insn *in, unsigned *ret_reg)
{
    unsigned reg = in->reg;

    if (reg > 7 || ((reg == 4 || reg == 5) && (v->st.cr4 & X86_CR4_DE) != 0)) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (require_cpl0(v) != 0) {
        return ENGINE_FAULT;
    }
    if ((v->st.dr[7] & DR7_GD) != 0) {
        v->fault = (struct engine_fault){.vector = X86_VEC_DB, .dr6 = DR6_BD};
        return ENGINE_FAULT;
    }
    *ret_reg = reg == 4 || reg == 5 ? reg + 2 : reg;
    return 0;
}

int sysop_mov_from_dr(struct engine_vcpu *v, const struct insn *in)
{
    unsigned reg = 0;
    int r = debug_register(v, in, &reg);

    if (r == 0) {
        uint64_t value = v->st.dr[reg];

        if (reg == 6) {
            value |= DR6_FIXED;
        } else if (reg == 7) {
            value |= DR7_FIXED;
        }
        interp_set_reg(v, in, in->rm, in->mode == INSN_MODE_64 ? 8 : 4, value);
    }
    return r;
}

void sysop_debug_changed(struct engine_vcpu *v)
{
    bool watches = false;

    for (unsigned i = 0; i < 4; i++) {
        bool enabled = ((v->st.dr[7] >> (2 * i)) & 3) != 0;

        watches = watches || (enabled && ((v->st.dr[7] >> (16 + 4 * i)) & 1) != 0);
    }
    v->data_breakpoints = watches;
    mmu_flush_all(v);
}

int sysop_mov_to_dr(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value = interp_reg(v, in, in->rm, in->mode == INSN_MODE_64 ? 8 : 4);
    unsigned reg = 0;
    int r = debug_register(v, in, &reg);

    if (r != 0) {
        return r;
    }
    if (reg >= 6 && (value >> 32) != 0) {
        return refuse(v);
    }
    if (reg == 6) {
        value = (value & DR6_WRITABLE) | DR6_FIXED;
    } else if (reg == 7) {
        value = (value & DR7_WRITABLE) | DR7_FIXED;
    }
    v->st.dr[reg] = value;
    if ((reg != 6 && (v->st.dr[7] & 0xff) != 0) || (reg == 7 && v->data_breakpoints)) {
        sysop_debug_changed(v);
    }
    return 0;
}

int sysop_load_table(struct engine_vcpu *v, const struct insn *in)
{
    bool is_64 = in->mode == INSN_MODE_64;
    uint8_t bytes[10] = {0};
    uint64_t base;
    struct x86_table *table = in->op == INSN_OP_LGDT ? &v->st.gdtr : &v->st.idtr;
    int r = require_cpl0(v);

    if (r == 0) {
        r = interp_read(v, in->seg, interp_ea(v, in), bytes, is_64 ? 10 : 6);
    }
    if (r != 0) {
        return r;
    }
    base = is_64 ? load_le64(&bytes[2]) : load_le32(&bytes[2]);
    if (!is_64 && in->opsize_bytes == 2) {
        base &= 0xffffff;
    }
    if (!mmu_is_canonical(v, base)) {
        return refuse(v);
    }
    table->base = base;
    table->limit = load_le16(bytes);
    return 0;
}

static int check_umip(struct engine_vcpu *v)
{
    if ((v->st.cr4 & X86_CR4_UMIP) != 0 && interp_is_protected(v) && vcpu_state_cpl(&v->st) != 0) {
        return refuse(v);
    }
    return 0;
}

int sysop_store_table(struct engine_vcpu *v, const struct insn *in)
{
    uint8_t bytes[10];
    const struct x86_table *table = in->op == INSN_OP_SGDT ? &v->st.gdtr : &v->st.idtr;
    int r = check_umip(v);

    if (r != 0) {
        return r;
    }
    store_le16(bytes, table->limit);
    store_le64(&bytes[2], table->base);
    return interp_write(v, in->seg, interp_ea(v, in), bytes, in->mode == INSN_MODE_64 ? 10 : 6);
}

int sysop_lmsw(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value = 0;
    int r = require_cpl0(v);

    if (r == 0) {
        r = interp_load_rm(v, in, 2, &value);
    }
    if (r == 0) {
        /* PE can be set by it, not cleared (SDM 2A LMSW). */
        r = write_cr0(v, (v->st.cr0 & ~0xeull) | (value & 0xf));
    }
    return r;
}

int sysop_smsw(struct engine_vcpu *v, const struct insn *in)
{
    int r = check_umip(v);

    if (r != 0) {
        return r;
    }
    return interp_store_rm(v, in, in->rm != INSN_REG_NONE ? in->opsize_bytes : 2, v->st.cr0);
}

int sysop_invlpg(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t va = interp_ea(v, in);
    int r = require_cpl0(v);

    if (r != 0) {
        return r;
    }
    if (!interp_is_64(v) || in->seg == X86_FS || in->seg == X86_GS) {
        va += v->st.seg[in->seg].base;
    }
    mmu_flush_page(v, va);
    return 0;
}

static void invalidate(struct engine_vcpu *v, unsigned type, unsigned pcid, uint64_t va)
{
    bool is_current = pcid == ((v->st.cr4 & X86_CR4_PCIDE) != 0 ? v->st.cr3 & 0xfff : 0);

    if (type == 2) {
        mmu_flush_all(v);
    } else if (type == 3) {
        mmu_forget_contexts(v);
        mmu_flush_non_global(v);
    } else if (!is_current) {
        mmu_forget_context(v, pcid);
    } else if (type == 1) {
        mmu_flush_non_global(v);
    } else {
        mmu_flush_page(v, va);
    }
}

int sysop_invpcid(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t type = interp_reg(v, in, in->reg, in->mode == INSN_MODE_64 ? 8 : 4);
    uint64_t descriptor[2] = {0};
    bool pcid_on = (v->st.cr4 & X86_CR4_PCIDE) != 0;
    int r = require_cpl0(v);

    if (r == 0) {
        r = interp_read(v, in->seg, interp_ea(v, in), descriptor, sizeof(descriptor));
    }
    if (r != 0) {
        return r;
    }
    if (type > 3 ||
        (type < 2 && ((descriptor[0] >> 12) != 0 || (!pcid_on && (descriptor[0] & 0xfff) != 0)))) {
        return refuse(v);
    }
    if (type == 0) {
        if (!mmu_is_canonical(v, descriptor[1])) {
            return refuse(v);
        }
    }
    invalidate(v, (unsigned)type, (unsigned)descriptor[0], descriptor[1]);
    return 0;
}

int sysop_invd(struct engine_vcpu *v, const struct insn *in)
{
    (void)in;
    return require_cpl0(v); /* guest memory is always coherent */
}

static void set_edx_eax(struct engine_vcpu *v, uint64_t value)
{
    v->st.gpr[X86_RAX] = value & 0xffffffffu;
    v->st.gpr[X86_RDX] = value >> 32;
}

int sysop_rdtsc(struct engine_vcpu *v, const struct insn *in)
{
    if ((v->st.cr4 & X86_CR4_TSD) != 0 && require_cpl0(v) != 0) {
        return ENGINE_FAULT;
    }
    set_edx_eax(v, msr_guest_tsc(v));
    if (in->op == INSN_OP_RDTSCP) {
        v->st.gpr[X86_RCX] = v->st.tsc_aux & 0xffffffffu;
    }
    return 0;
}

int sysop_rdpmc(struct engine_vcpu *v, const struct insn *in)
{
    (void)in;
    return refuse(v); /* CPUID shows no counters: every index is out of range */
}

int sysop_cpuid(struct engine_vcpu *v, const struct insn *in)
{
    uint32_t regs[4] = {0};

    (void)in;
    cpuid_query(v->env->cpuid, (uint32_t)v->st.gpr[X86_RAX], (uint32_t)v->st.gpr[X86_RCX],
                v->st.cr4, v->st.xcr0, regs);
    v->st.gpr[X86_RAX] = regs[0];
    v->st.gpr[X86_RBX] = regs[1];
    v->st.gpr[X86_RCX] = regs[2];
    v->st.gpr[X86_RDX] = regs[3];
    return 0;
}

int sysop_xgetbv(struct engine_vcpu *v, const struct insn *in)
{
    uint32_t index = (uint32_t)v->st.gpr[X86_RCX];

    (void)in;
    if ((v->st.cr4 & X86_CR4_OSXSAVE) == 0) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (index == 0) {
        set_edx_eax(v, v->st.xcr0);
        return 0;
    }
    if (index == 1 && v->env != NULL && cpuid_has(v->env->cpuid, 0xd, 1, 0, 2)) {
        set_edx_eax(v, v->st.xcr0 & load_le64(&v->st.xsave[512]));
        return 0;
    }
    return refuse(v);
}

int sysop_xsetbv(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value = (v->st.gpr[X86_RDX] << 32) | (v->st.gpr[X86_RAX] & 0xffffffffu);

    (void)in;
    if ((v->st.cr4 & X86_CR4_OSXSAVE) == 0) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (require_cpl0(v) != 0 || (uint32_t)v->st.gpr[X86_RCX] != 0 || (value & X86_XCR0_X87) == 0 ||
        (value & ~(uint64_t)(X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)) != 0 ||
        ((value & X86_XCR0_AVX) != 0 && ((value & X86_XCR0_SSE) == 0 || !feature(v, 1, 2, 28)))) {
        return refuse(v);
    }
    v->st.xcr0 = value;
    return 0;
}

int sysop_smap(struct engine_vcpu *v, const struct insn *in)
{
    if ((v->st.cr4 & X86_CR4_SMAP) == 0 || !interp_is_protected(v) || vcpu_state_cpl(&v->st) != 0) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (in->op == INSN_OP_STAC) {
        v->st.rflags |= X86_FLAG_AC;
    } else {
        v->st.rflags &= ~(uint64_t)X86_FLAG_AC;
    }
    return 0;
}

/* The permission bitmap of the TSS (SDM 1 19.5.2). */
static int check_bitmap(struct engine_vcpu *v, uint16_t port, unsigned bytes)
{
    const struct x86_segment *tr = &v->st.seg[X86_TR];
    uint16_t start = 0;
    uint16_t bits = 0;
    int r;

    if ((tr->access_rights & X86_AR_UNUSABLE) != 0 ||
        (tr->access_rights & X86_AR_TYPE & 0xd) != 9 || tr->limit < 103) {
        return refuse(v);
    }
    r = mmu_read(v, tr->base + 102, &start, 2, interp_system_mode(v));
    if (r != 0) {
        return r;
    }
    if (start + port / 8u + 1 > tr->limit) {
        return refuse(v);
    }
    r = mmu_read(v, tr->base + start + port / 8u, &bits, 2, interp_system_mode(v));
    if (r == 0 && ((bits >> (port % 8)) & ((1u << bytes) - 1)) != 0) {
        return refuse(v);
    }
    return r;
}

int interp_check_port(struct engine_vcpu *v, uint16_t port, unsigned bytes)
{
    if (!interp_is_protected(v) ||
        (!interp_is_vm86(v) && vcpu_state_cpl(&v->st) <= interp_iopl(v))) {
        return 0;
    }
    return check_bitmap(v, port, bytes);
}

int sysop_in_out(struct engine_vcpu *v, const struct insn *in)
{
    bool is_write = in->op == INSN_OP_OUT;
    uint16_t port = (uint16_t)v->st.gpr[X86_RDX];
    uint64_t data = v->st.gpr[X86_RAX] & interp_mask(in->opsize_bytes);
    int r;

    if (in->imm_bytes == 1) {
        port = in->bytes[in->imm_off];
    }
    r = interp_check_port(v, port, in->opsize_bytes);
    if (r == 0) {
        r = engine_io(v, VMEXIT_PIO, port, in->opsize_bytes, is_write, &data);
    }
    if (r == 0 && !is_write) {
        interp_set_reg(v, in, X86_RAX, in->opsize_bytes, data);
    }
    return r;
}
