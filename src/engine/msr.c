/*
 * Model-specific registers (SDM 4): one table says what each one holds and
 * which bits may be written; what is not in it raises #GP, as hardware does.
 * The local APIC's registers are the machine's and leave as exits.
 */
#include "engine/interp.h"

#include "base/log.h"
#include "base/wire.h"

#include <time.h>

#define MSR_KVM_WALL_CLOCK_OLD 0x11u
#define MSR_KVM_SYSTEM_TIME_OLD 0x12u
#define MSR_KVM_WALL_CLOCK 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u

/*
 * RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
 * FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: the guest's mitigations act on guest
 * page tables and predictors that do not exist as such here (docs/engine.md).
 */
#define ARCH_CAPABILITIES 0x400000000d10e17bull

#define NS_PER_S 1000000000ull

enum msr_kind {
    MSR_STORE,     /* kept in the state; bits outside the mask raise #GP */
    MSR_CANONICAL, /* kept; a non-canonical address raises #GP */
    MSR_FIXED,     /* reads as value; writing raises #GP */
    MSR_COMMAND,   /* reading raises #GP; writing the mask's bits does nothing */
    MSR_IGNORED    /* reads as value; writing the mask's bits does nothing */
};

struct msr_row {
    uint32_t index;
    enum msr_kind kind;
    uint16_t offset; /* of a uint64_t in struct vcpu_state */
    uint64_t mask;   /* writable bits */
    uint64_t value;
};

#define STATE(field) ((uint16_t)offsetof(struct vcpu_state, field))
#define ALL_BITS (~0ull)

static const struct msr_row rows[] = {
    {X86_MSR_PLATFORM_ID, MSR_FIXED, 0, 0, 0},
    {X86_MSR_FEATURE_CONTROL, MSR_FIXED, 0, 0, 1}, /* locked, nothing enabled */
    {X86_MSR_SPEC_CTRL, MSR_STORE, STATE(spec_ctrl), 0x7, 0},
    {X86_MSR_PRED_CMD, MSR_COMMAND, 0, 0x1, 0},
    {X86_MSR_BIOS_SIGN_ID, MSR_IGNORED, 0, ALL_BITS, 0x100000000ull},
    {0xce /* PLATFORM_INFO */, MSR_FIXED, 0, 0, 0},
    {X86_MSR_MTRRCAP, MSR_FIXED, 0, 0, 0x500 | X86_MTRR_VARIABLE},
    {0x10b /* FLUSH_CMD */, MSR_COMMAND, 0, 0x1, 0},
    {X86_MSR_SYSENTER_CS, MSR_STORE, STATE(sysenter_cs), 0xffffffffu, 0},
    {X86_MSR_SYSENTER_ESP, MSR_CANONICAL, STATE(sysenter_esp), 0, 0},
    {X86_MSR_SYSENTER_EIP, MSR_CANONICAL, STATE(sysenter_eip), 0, 0},
    {X86_MSR_MCG_CAP, MSR_FIXED, 0, 0, 0},
    {X86_MSR_MCG_STATUS, MSR_IGNORED, 0, 0x7, 0},
    {X86_MSR_MISC_ENABLE, MSR_STORE, STATE(misc_enable), ALL_BITS, 0},
    {0x1d9 /* DEBUGCTL */, MSR_IGNORED, 0, 0x3, 0},
    {X86_MSR_MTRR_DEF_TYPE, MSR_STORE, STATE(mtrr_def_type), 0xcff, 0},
    {0x2a /* EBL_CR_POWERON */, MSR_FIXED, 0, 0, 0},
    {X86_MSR_STAR, MSR_STORE, STATE(star), ALL_BITS, 0},
    {X86_MSR_LSTAR, MSR_CANONICAL, STATE(lstar), 0, 0},
    {X86_MSR_CSTAR, MSR_CANONICAL, STATE(cstar), 0, 0},
    {X86_MSR_SFMASK, MSR_STORE, STATE(sfmask), 0xffffffffu, 0},
    {X86_MSR_FS_BASE, MSR_CANONICAL, STATE(seg[X86_FS].base), 0, 0},
    {X86_MSR_GS_BASE, MSR_CANONICAL, STATE(seg[X86_GS].base), 0, 0},
    {X86_MSR_KERNEL_GS_BASE, MSR_CANONICAL, STATE(kernel_gs_base), 0, 0},
    {X86_MSR_TSC_AUX, MSR_STORE, STATE(tsc_aux), 0xffffffffu, 0},
    /* AMD: what its kernels read early. */
    {0xc0010010 /* SYSCFG */, MSR_FIXED, 0, 0, 0},
    {0xc0010015 /* HWCR */, MSR_IGNORED, 0, ALL_BITS, 1u << 24},
    {0xc001001f /* NB_CFG */, MSR_IGNORED, 0, ALL_BITS, 0},
    {0xc0010055 /* INT_PENDING */, MSR_IGNORED, 0, ALL_BITS, 0},
    {0xc0010114 /* VM_CR */, MSR_FIXED, 0, 0, 0x10},
    {0xc0010140 /* OSVW_ID_LENGTH */, MSR_FIXED, 0, 0, 0},
    {0xc0010141 /* OSVW_STATUS */, MSR_FIXED, 0, 0, 0},
    {0xc0011029 /* DE_CFG: LFENCE serializes */, MSR_IGNORED, 0, ALL_BITS, 0x2},
};

static uint64_t host_tsc(void)
{
    return __builtin_ia32_rdtsc();
}

uint64_t msr_guest_tsc(const struct engine_vcpu *v)
{
    return host_tsc() + v->st.tsc_offset;
}

static const struct msr_row *find_row(uint32_t index)
{
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
        if (rows[i].index == index) {
            return &rows[i];
        }
    }
    return NULL;
}

static uint64_t *row_field(struct engine_vcpu *v, const struct msr_row *row)
{
    return (uint64_t *)(void *)((char *)&v->st + row->offset);
}

/* MTRRs: variable pairs and the eleven fixed ranges (SDM 3A 11.11.2). NULL: not one. */
static uint64_t *mtrr_field(struct engine_vcpu *v, uint32_t index)
{
    static const uint16_t fixed[X86_MTRR_FIXED] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                                   0x26b, 0x26c, 0x26d, 0x26e, 0x26f};

    if (index >= X86_MSR_MTRR_PHYSBASE0 && index < X86_MSR_MTRR_PHYSBASE0 + 2 * X86_MTRR_VARIABLE) {
        unsigned pair = (index - X86_MSR_MTRR_PHYSBASE0) / 2;

        return (index & 1) == 0 ? &v->st.mtrr_base[pair] : &v->st.mtrr_mask[pair];
    }
    for (unsigned i = 0; i < X86_MTRR_FIXED; i++) {
        if (fixed[i] == index) {
            return &v->st.mtrr_fixed[i];
        }
    }
    return NULL;
}

static bool is_apic_msr(uint32_t index)
{
    return index == X86_MSR_APIC_BASE || index == X86_MSR_TSC_DEADLINE ||
           (index >= X86_MSR_X2APIC_FIRST && index <= X86_MSR_X2APIC_LAST);
}

/* 0, or -1 when there is no such register to read. */
static int read_special(struct engine_vcpu *v, uint32_t index, uint64_t *ret_value)
{
    const uint64_t *mtrr;

    switch (index) {
    case X86_MSR_TSC:
        *ret_value = msr_guest_tsc(v);
        return 0;
    case X86_MSR_TSC_ADJUST:
        *ret_value = v->st.tsc_adjust;
        return 0;
    case X86_MSR_EFER:
        *ret_value = v->st.efer;
        return 0;
    case X86_MSR_PAT:
        *ret_value = v->st.pat;
        return 0;
    case X86_MSR_ARCH_CAPABILITIES:
        *ret_value = ARCH_CAPABILITIES;
        return v->env != NULL && cpuid_has(v->env->cpuid, 7, 0, 3, 29) ? 0 : -1;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_OLD:
        *ret_value = v->st.kvm_wall_clock;
        return 0;
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_OLD:
        *ret_value = v->st.kvm_system_time;
        return 0;
    default:
        mtrr = mtrr_field(v, index);
        if (mtrr == NULL) {
            return -1;
        }
        *ret_value = *mtrr;
        return 0;
    }
}

int msr_op_read(struct engine_vcpu *v, const struct insn *in)
{
    uint32_t index = (uint32_t)v->st.gpr[X86_RCX];
    const struct msr_row *row = find_row(index);
    uint64_t value = 0;

    (void)in;
    if (interp_is_protected(v) && vcpu_state_cpl(&v->st) != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (is_apic_msr(index)) {
        int r = engine_io(v, VMEXIT_MSR_READ, index, 8, false, &value);

        if (r != 0) {
            return r;
        }
    } else if (row != NULL && row->kind != MSR_COMMAND) {
        value =
            row->kind == MSR_FIXED || row->kind == MSR_IGNORED ? row->value : *row_field(v, row);
    } else if (row != NULL || read_special(v, index, &value) != 0) {
        log_guest("vCPU %u: RDMSR of unknown 0x%x", v->base.index, (unsigned)index);
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    v->st.gpr[X86_RAX] = value & 0xffffffffu;
    v->st.gpr[X86_RDX] = value >> 32;
    return 0;
}

/*
 * kvmclock: ns = ((ticks << shift) * multiplier) >> 32, with the multiplier in
 * [2^31, 2^32) so that no precision is lost.
 */
static void clock_scale(uint64_t tsc_hz, uint32_t *ret_multiplier, int8_t *ret_shift)
{
    unsigned __int128 scaled = (unsigned __int128)NS_PER_S << 32;
    int shift = 0;

    while (scaled / tsc_hz >= (1ull << 32)) {
        scaled >>= 1;
        shift++;
    }
    while (scaled / tsc_hz < (1ull << 31)) {
        scaled <<= 1;
        shift--;
    }
    *ret_multiplier = (uint32_t)(scaled / tsc_hz);
    *ret_shift = (int8_t)shift;
}

/* Writes the vCPU's time page. All vCPUs count from the VM's creation, so they agree. */
static void clock_publish(struct engine_vcpu *v)
{
    uint8_t page[32] = {0};
    uint32_t multiplier = 0;
    int8_t shift = 0;
    uint64_t address = v->st.kvm_system_time & ~1ull;

    if ((v->st.kvm_system_time & 1) == 0) {
        return;
    }
    clock_scale(cpuid_tsc_hz(), &multiplier, &shift);
    store_le32(&page[0], 2); /* version: even, written before the guest reads it */
    store_le64(&page[8], v->vm->clock_host_tsc + v->st.tsc_offset);
    store_le64(&page[16], 0);
    store_le32(&page[24], multiplier);
    page[28] = (uint8_t)shift;
    page[29] = 1; /* the TSC is stable: one clock for all vCPUs */
    if (gmem_write(v->vm->gmem, gpa(address), page, sizeof(page)) != 0) {
        log_guest("vCPU %u: kvmclock page 0x%llx outside memory, ignoring", v->base.index,
                  (unsigned long long)address);
    }
}

static void clock_publish_wall(struct engine_vcpu *v)
{
    uint8_t wall[12];

    store_le32(&wall[0], 2);
    store_le32(&wall[4], (uint32_t)(v->vm->clock_wall_ns / NS_PER_S));
    store_le32(&wall[8], (uint32_t)(v->vm->clock_wall_ns % NS_PER_S));
    if (gmem_write(v->vm->gmem, gpa(v->st.kvm_wall_clock), wall, sizeof(wall)) != 0) {
        log_guest("vCPU %u: wall clock address outside memory, ignoring", v->base.index);
    }
}

static void set_tsc_offset(struct engine_vcpu *v, uint64_t offset)
{
    v->st.tsc_offset = offset;
    clock_publish(v);
}

static bool pat_is_valid(uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned type = (unsigned)(value >> (8 * i)) & 0xff;

        if (type > 7 || type == 2 || type == 3) {
            return false;
        }
    }
    return true;
}

static int write_efer(struct engine_vcpu *v, uint64_t value)
{
    uint64_t writable = X86_EFER_SCE | X86_EFER_LME | X86_EFER_NXE;
    uint64_t changed = value ^ v->st.efer;

    if ((value & ~(writable | X86_EFER_LMA)) != 0 ||
        ((changed & X86_EFER_LME) != 0 && (v->st.cr0 & X86_CR0_PG) != 0)) {
        return -1;
    }
    v->st.efer = (value & writable) | (v->st.efer & X86_EFER_LMA);
    if ((changed & X86_EFER_NXE) != 0) {
        mmu_flush_all(v);
    }
    return 0;
}

/* 0, or -1 for #GP. */
static int write_special(struct engine_vcpu *v, uint32_t index, uint64_t value)
{
    uint64_t *mtrr;
    uint64_t delta;

    switch (index) {
    case X86_MSR_TSC:
        delta = value - msr_guest_tsc(v);
        v->st.tsc_adjust += delta;
        set_tsc_offset(v, v->st.tsc_offset + delta);
        return 0;
    case X86_MSR_TSC_ADJUST:
        delta = value - v->st.tsc_adjust;
        v->st.tsc_adjust = value;
        set_tsc_offset(v, v->st.tsc_offset + delta);
        return 0;
    case X86_MSR_EFER:
        return write_efer(v, value);
    case X86_MSR_PAT:
        if (!pat_is_valid(value)) {
            return -1;
        }
        v->st.pat = value;
        return 0;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_OLD:
        v->st.kvm_wall_clock = value;
        clock_publish_wall(v);
        return 0;
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_OLD:
        v->st.kvm_system_time = value;
        clock_publish(v);
        return 0;
    default:
        mtrr = mtrr_field(v, index);
        if (mtrr == NULL) {
            return -1;
        }
        *mtrr = value;
        return 0;
    }
}

static int write_row(struct engine_vcpu *v, const struct msr_row *row, uint64_t value)
{
    switch (row->kind) {
    case MSR_FIXED:
        return -1;
    case MSR_CANONICAL:
        if (!mmu_is_canonical(v, value)) {
            return -1;
        }
        *row_field(v, row) = value;
        return 0;
    case MSR_STORE:
        if ((value & ~row->mask) != 0) {
            return -1;
        }
        *row_field(v, row) = value;
        return 0;
    case MSR_COMMAND:
    case MSR_IGNORED:
        return (value & ~row->mask) != 0 ? -1 : 0;
    }
    return -1;
}

int msr_op_write(struct engine_vcpu *v, const struct insn *in)
{
    uint32_t index = (uint32_t)v->st.gpr[X86_RCX];
    uint64_t value = (v->st.gpr[X86_RDX] << 32) | (v->st.gpr[X86_RAX] & 0xffffffffu);
    const struct msr_row *row = find_row(index);
    int r;

    (void)in;
    if (interp_is_protected(v) && vcpu_state_cpl(&v->st) != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (is_apic_msr(index)) {
        return engine_io(v, VMEXIT_MSR_WRITE, index, 8, true, &value);
    }
    r = row != NULL ? write_row(v, row, value) : write_special(v, index, value);
    if (r != 0) {
        log_guest("vCPU %u: WRMSR of 0x%x with 0x%llx refused", v->base.index, (unsigned)index,
                  (unsigned long long)value);
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    return 0;
}
