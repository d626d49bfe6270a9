/* vcpu_state to KVM's structures and back, and only what changed where the caller knows it. */
#include "kvm/kvm_int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XSAVE_BV 512
#define XSAVE_BV_OURS (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)

#define MSR_KVM_WALL_CLOCK 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u

/* An MSR and its place in struct vcpu_state. */
struct msr_field {
    uint32_t index;
    size_t offset;
};

#define FIELD(index, member)                         \
    {                                                \
        (index), offsetof(struct vcpu_state, member) \
    }

static const struct msr_field msr_fields[] = {
    FIELD(X86_MSR_SYSENTER_CS, sysenter_cs),
    FIELD(X86_MSR_SYSENTER_ESP, sysenter_esp),
    FIELD(X86_MSR_SYSENTER_EIP, sysenter_eip),
    FIELD(X86_MSR_STAR, star),
    FIELD(X86_MSR_LSTAR, lstar),
    FIELD(X86_MSR_CSTAR, cstar),
    FIELD(X86_MSR_SFMASK, sfmask),
    FIELD(X86_MSR_KERNEL_GS_BASE, kernel_gs_base),
    FIELD(X86_MSR_TSC_AUX, tsc_aux),
    FIELD(X86_MSR_TSC_ADJUST, tsc_adjust),
    FIELD(X86_MSR_PAT, pat),
    FIELD(X86_MSR_MISC_ENABLE, misc_enable),
    FIELD(X86_MSR_SPEC_CTRL, spec_ctrl),
    FIELD(MSR_KVM_WALL_CLOCK, kvm_wall_clock),
    FIELD(MSR_KVM_SYSTEM_TIME, kvm_system_time),
    FIELD(X86_MSR_MTRR_FIX64K, mtrr_fixed[0]),
    FIELD(0x258, mtrr_fixed[1]),
    FIELD(0x259, mtrr_fixed[2]),
    FIELD(0x268, mtrr_fixed[3]),
    FIELD(0x269, mtrr_fixed[4]),
    FIELD(0x26a, mtrr_fixed[5]),
    FIELD(0x26b, mtrr_fixed[6]),
    FIELD(0x26c, mtrr_fixed[7]),
    FIELD(0x26d, mtrr_fixed[8]),
    FIELD(0x26e, mtrr_fixed[9]),
    FIELD(0x26f, mtrr_fixed[10]),
    FIELD(0x200, mtrr_base[0]),
    FIELD(0x201, mtrr_mask[0]),
    FIELD(0x202, mtrr_base[1]),
    FIELD(0x203, mtrr_mask[1]),
    FIELD(0x204, mtrr_base[2]),
    FIELD(0x205, mtrr_mask[2]),
    FIELD(0x206, mtrr_base[3]),
    FIELD(0x207, mtrr_mask[3]),
    FIELD(0x208, mtrr_base[4]),
    FIELD(0x209, mtrr_mask[4]),
    FIELD(0x20a, mtrr_base[5]),
    FIELD(0x20b, mtrr_mask[5]),
    FIELD(0x20c, mtrr_base[6]),
    FIELD(0x20d, mtrr_mask[6]),
    FIELD(0x20e, mtrr_base[7]),
    FIELD(0x20f, mtrr_mask[7]),
    FIELD(X86_MSR_MTRR_DEF_TYPE, mtrr_def_type),
    /* Last, because setting the mode of the local APIC may drop it. */
    FIELD(X86_MSR_TSC_DEADLINE, tsc_deadline),
};

struct msr_buffer {
    struct kvm_msrs header;
    struct kvm_msr_entry entries[KVM_MAX_MSRS];
};

static uint64_t *state_field(struct vcpu_state *state, size_t offset)
{
    return (uint64_t *)(void *)((char *)state + offset);
}

static uint64_t state_value(const struct vcpu_state *state, size_t offset)
{
    uint64_t value;

    memcpy(&value, (const char *)state + offset, sizeof(value));
    return value;
}

static int msr_get(const struct kvm_cpu *cpu, uint32_t index, uint64_t *ret_value)
{
    struct msr_buffer buffer = {.header.nmsrs = 1, .entries = {{.index = index}}};
    const int rc = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &buffer);

    if (rc < 0) {
        return rc;
    }
    if (rc != 1) {
        return -ENOENT;
    }
    *ret_value = buffer.entries[0].data;
    return 0;
}

static int msr_set(const struct kvm_cpu *cpu, uint32_t index, uint64_t value)
{
    struct msr_buffer buffer = {.header.nmsrs = 1, .entries = {{.index = index, .data = value}}};
    const int rc = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &buffer);

    if (rc < 0) {
        return rc;
    }
    return rc == 1 ? 0 : -EINVAL;
}

static bool msr_is_known(const struct kvm_cpu *cpu, uint32_t index)
{
    for (unsigned i = 0; i < cpu->msr_count; i++) {
        if (cpu->msrs[i] == index) {
            return true;
        }
    }
    return false;
}

void kvm_state_probe_msrs(struct kvm_cpu *cpu)
{
    uint64_t value = 0;
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};

    cpu->msr_count = 0;
    for (size_t i = 0; i < ARRAY_LEN(msr_fields) && cpu->msr_count < KVM_MAX_MSRS; i++) {
        if (msr_get(cpu, msr_fields[i].index, &value) == 0) {
            cpu->msrs[cpu->msr_count++] = msr_fields[i].index;
        }
    }
    cpu->tsc_offset_attr = kvm_ioctl(cpu->fd, KVM_HAS_DEVICE_ATTR, &attr) == 0;
}

static struct x86_segment segment_from_kvm(const struct kvm_segment *from)
{
    return (struct x86_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .access_rights = from->type | (from->s ? X86_AR_S : 0) |
                         ((uint32_t)from->dpl << X86_AR_DPL_SHIFT) |
                         (from->present ? X86_AR_P : 0) | (from->avl ? X86_AR_AVL : 0) |
                         (from->l ? X86_AR_L : 0) | (from->db ? X86_AR_DB : 0) |
                         (from->g ? X86_AR_G : 0) | (from->unusable ? X86_AR_UNUSABLE : 0),
    };
}

static struct kvm_segment segment_to_kvm(const struct x86_segment *from)
{
    const uint32_t ar = from->access_rights;
    const bool unusable = (ar & X86_AR_UNUSABLE) != 0;

    return (struct kvm_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .type = ar & X86_AR_TYPE,
        .present = (ar & X86_AR_P) != 0 && !unusable,
        .dpl = (ar >> X86_AR_DPL_SHIFT) & 3,
        .db = (ar & X86_AR_DB) != 0,
        .s = (ar & X86_AR_S) != 0,
        .l = (ar & X86_AR_L) != 0,
        .g = (ar & X86_AR_G) != 0,
        .avl = (ar & X86_AR_AVL) != 0,
        .unusable = unusable,
    };
}

static void regs_from_kvm(const struct kvm_regs *regs, struct vcpu_state *state)
{
    const uint64_t gpr[X86_GPR_COUNT] = {
        regs->rax, regs->rcx, regs->rdx, regs->rbx, regs->rsp, regs->rbp, regs->rsi, regs->rdi,
        regs->r8,  regs->r9,  regs->r10, regs->r11, regs->r12, regs->r13, regs->r14, regs->r15};

    memcpy(state->gpr, gpr, sizeof(gpr));
    state->rip = regs->rip;
    state->rflags = regs->rflags;
}

static struct kvm_regs regs_to_kvm(const struct vcpu_state *state)
{
    const uint64_t *gpr = state->gpr;

    return (struct kvm_regs){
        .rax = gpr[X86_RAX],
        .rcx = gpr[X86_RCX],
        .rdx = gpr[X86_RDX],
        .rbx = gpr[X86_RBX],
        .rsp = gpr[X86_RSP],
        .rbp = gpr[X86_RBP],
        .rsi = gpr[X86_RSI],
        .rdi = gpr[X86_RDI],
        .r8 = gpr[X86_R8],
        .r9 = gpr[X86_R9],
        .r10 = gpr[X86_R10],
        .r11 = gpr[X86_R11],
        .r12 = gpr[X86_R12],
        .r13 = gpr[X86_R13],
        .r14 = gpr[X86_R14],
        .r15 = gpr[X86_R15],
        .rip = state->rip,
        .rflags = state->rflags,
    };
}

static void sregs_from_kvm(const struct kvm_sregs *sregs, struct vcpu_state *state)
{
    state->seg[X86_ES] = segment_from_kvm(&sregs->es);
    state->seg[X86_CS] = segment_from_kvm(&sregs->cs);
    state->seg[X86_SS] = segment_from_kvm(&sregs->ss);
    state->seg[X86_DS] = segment_from_kvm(&sregs->ds);
    state->seg[X86_FS] = segment_from_kvm(&sregs->fs);
    state->seg[X86_GS] = segment_from_kvm(&sregs->gs);
    state->seg[X86_LDTR] = segment_from_kvm(&sregs->ldt);
    state->seg[X86_TR] = segment_from_kvm(&sregs->tr);
    state->gdtr = (struct x86_table){.base = sregs->gdt.base, .limit = sregs->gdt.limit};
    state->idtr = (struct x86_table){.base = sregs->idt.base, .limit = sregs->idt.limit};
    state->cr0 = sregs->cr0;
    state->cr2 = sregs->cr2;
    state->cr3 = sregs->cr3;
    state->cr4 = sregs->cr4;
    state->cr8 = sregs->cr8;
    state->efer = sregs->efer;
    state->apic_base = sregs->apic_base;
}

static struct kvm_sregs sregs_to_kvm(const struct vcpu_state *state)
{
    return (struct kvm_sregs){
        .es = segment_to_kvm(&state->seg[X86_ES]),
        .cs = segment_to_kvm(&state->seg[X86_CS]),
        .ss = segment_to_kvm(&state->seg[X86_SS]),
        .ds = segment_to_kvm(&state->seg[X86_DS]),
        .fs = segment_to_kvm(&state->seg[X86_FS]),
        .gs = segment_to_kvm(&state->seg[X86_GS]),
        .ldt = segment_to_kvm(&state->seg[X86_LDTR]),
        .tr = segment_to_kvm(&state->seg[X86_TR]),
        .gdt = {.base = state->gdtr.base, .limit = state->gdtr.limit},
        .idt = {.base = state->idtr.base, .limit = state->idtr.limit},
        .cr0 = state->cr0,
        .cr2 = state->cr2,
        .cr3 = state->cr3,
        .cr4 = state->cr4,
        .cr8 = state->cr8,
        .efer = state->efer,
        .apic_base = state->apic_base,
    };
}

static void events_from_kvm(const struct kvm_vcpu_events *from, struct x86_events *to)
{
    *to = (struct x86_events){
        .exception_pending = from->exception.injected != 0,
        .exception_has_error = from->exception.has_error_code != 0,
        .exception_vector = from->exception.nr,
        .exception_error = from->exception.error_code,
        /* A software interrupt has not moved RIP yet: it is executed again. */
        .interrupt_pending = from->interrupt.injected != 0 && from->interrupt.soft == 0,
        .interrupt_vector = from->interrupt.nr,
        .nmi_pending = from->nmi.injected != 0 || from->nmi.pending != 0,
        .nmi_blocked = from->nmi.masked != 0,
        .sti_shadow = (from->interrupt.shadow & KVM_X86_SHADOW_INT_STI) != 0,
        .mov_ss_shadow = (from->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0,
    };
}

static struct kvm_vcpu_events events_to_kvm(const struct x86_events *from)
{
    return (struct kvm_vcpu_events){
        .exception = {.injected = from->exception_pending,
                      .nr = from->exception_vector,
                      .has_error_code = from->exception_has_error,
                      .error_code = from->exception_error},
        .interrupt = {.injected = from->interrupt_pending,
                      .nr = from->interrupt_vector,
                      .shadow = (uint8_t)((from->sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
                                          (from->mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0))},
        .nmi = {.pending = from->nmi_pending, .masked = from->nmi_blocked},
        .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
    };
}

static int msrs_get(const struct kvm_cpu *cpu, struct vcpu_state *state)
{
    struct msr_buffer buffer = {.header.nmsrs = cpu->msr_count};

    for (unsigned i = 0; i < cpu->msr_count; i++) {
        buffer.entries[i].index = cpu->msrs[i];
    }
    const int rc = kvm_ioctl(cpu->fd, KVM_GET_MSRS, &buffer);
    if (rc < 0) {
        return rc;
    }
    for (size_t i = 0, n = 0; i < ARRAY_LEN(msr_fields) && n < (size_t)rc; i++) {
        if (buffer.entries[n].index == msr_fields[i].index) {
            *state_field(state, msr_fields[i].offset) = buffer.entries[n++].data;
        }
    }
    return 0;
}

/* KVM refuses some values of some MSRs on some hosts; one that is there already is no error. */
static int msr_retry(const struct kvm_cpu *cpu, const struct kvm_msr_entry *entry)
{
    uint64_t current = 0;
    const int rc = msr_get(cpu, entry->index, &current);

    if (rc < 0) {
        return rc;
    }
    return current == entry->data ? 0 : -EINVAL;
}

static int msrs_set(const struct kvm_cpu *cpu, const struct vcpu_state *state,
                    const struct vcpu_state *before)
{
    struct msr_buffer buffer = {.header.nmsrs = 0};
    uint32_t count = 0;
    uint32_t done = 0;

    for (size_t i = 0; i < ARRAY_LEN(msr_fields); i++) {
        const size_t offset = msr_fields[i].offset;
        const uint64_t value = state_value(state, offset);
        if (!msr_is_known(cpu, msr_fields[i].index) ||
            (before != NULL && state_value(before, offset) == value)) {
            continue;
        }
        buffer.entries[count++] =
            (struct kvm_msr_entry){.index = msr_fields[i].index, .data = value};
    }
    while (done < count) {
        buffer.header.nmsrs = count - done;
        int rc = kvm_ioctl(cpu->fd, KVM_SET_MSRS, &buffer);
        if (rc < 0) {
            return rc;
        }
        const uint32_t refused = (uint32_t)rc;
        done += refused;
        if (done < count) {
            rc = msr_retry(cpu, &buffer.entries[refused]);
            if (rc < 0) {
                return rc;
            }
            done++;
            memmove(buffer.entries, &buffer.entries[refused + 1],
                    (count - done) * sizeof(buffer.entries[0]));
        }
    }
    return 0;
}

static int tsc_offset_get(const struct kvm_cpu *cpu, uint64_t *ret_offset)
{
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)ret_offset,
    };
    uint64_t tsc = 0;

    if (cpu->tsc_offset_attr) {
        return kvm_ioctl(cpu->fd, KVM_GET_DEVICE_ATTR, &attr);
    }
    const int rc = msr_get(cpu, X86_MSR_TSC, &tsc);
    if (rc < 0) {
        return rc;
    }
    *ret_offset = tsc - __builtin_ia32_rdtsc();
    return 0;
}

static int tsc_offset_set(const struct kvm_cpu *cpu, uint64_t offset)
{
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&offset,
    };

    if (cpu->tsc_offset_attr) {
        return kvm_ioctl(cpu->fd, KVM_SET_DEVICE_ATTR, &attr);
    }
    return msr_set(cpu, X86_MSR_TSC, __builtin_ia32_rdtsc() + offset);
}

static int mp_state_get(const struct kvm_cpu *cpu, struct vcpu_state *state)
{
    struct kvm_mp_state mp = {0};

    if (!kvm_vm_has_lapic(cpu->vm)) {
        state->mp_state = cpu->mp_state;
        state->tsc_deadline = cpu->tsc_deadline;
        state->apic_base = cpu->apic_base;
        return 0;
    }
    const int rc = kvm_ioctl(cpu->fd, KVM_GET_MP_STATE, &mp);
    switch (mp.mp_state) {
    case KVM_MP_STATE_HALTED:
        state->mp_state = X86_MP_HALTED;
        break;
    case KVM_MP_STATE_INIT_RECEIVED:
        state->mp_state = X86_MP_WAIT_FOR_SIPI;
        break;
    case KVM_MP_STATE_UNINITIALIZED:
        state->mp_state = X86_MP_UNINITIALIZED;
        break;
    default:
        state->mp_state = X86_MP_RUNNABLE;
        break;
    }
    return rc;
}

static int mp_state_set(struct kvm_cpu *cpu, const struct vcpu_state *state)
{
    static const uint32_t kvm_states[] = {
        [X86_MP_RUNNABLE] = KVM_MP_STATE_RUNNABLE,
        [X86_MP_HALTED] = KVM_MP_STATE_HALTED,
        [X86_MP_WAIT_FOR_SIPI] = KVM_MP_STATE_INIT_RECEIVED,
        [X86_MP_UNINITIALIZED] = KVM_MP_STATE_UNINITIALIZED,
    };

    if ((unsigned)state->mp_state >= ARRAY_LEN(kvm_states)) {
        return -EINVAL;
    }
    if (!kvm_vm_has_lapic(cpu->vm)) {
        cpu->mp_state = state->mp_state;
        cpu->tsc_deadline = state->tsc_deadline;
        cpu->apic_base = state->apic_base;
        return 0;
    }
    struct kvm_mp_state mp = {.mp_state = kvm_states[state->mp_state]};
    return kvm_ioctl(cpu->fd, KVM_SET_MP_STATE, &mp);
}

static int fpu_get(const struct kvm_cpu *cpu, struct vcpu_state *state)
{
    static_assert(sizeof(struct kvm_xsave) == X86_XSAVE_BYTES, "one XSAVE image");
    struct kvm_xcrs xcrs = {0};
    uint64_t present;

    int rc = kvm_ioctl(cpu->fd, KVM_GET_XSAVE, state->xsave);
    if (rc < 0) {
        return rc;
    }
    memcpy(&present, &state->xsave[XSAVE_BV], sizeof(present));
    present &= XSAVE_BV_OURS;
    memcpy(&state->xsave[XSAVE_BV], &present, sizeof(present));
    rc = kvm_ioctl(cpu->fd, KVM_GET_XCRS, &xcrs);
    if (rc < 0) {
        return rc;
    }
    state->xcr0 = xcrs.nr_xcrs > 0 ? xcrs.xcrs[0].value : X86_XCR0_X87;
    return 0;
}

static int fpu_set(const struct kvm_cpu *cpu, const struct vcpu_state *state,
                   const struct vcpu_state *before)
{
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = state->xcr0}}};

    if (before == NULL || before->xcr0 != state->xcr0) {
        const int rc = kvm_ioctl(cpu->fd, KVM_SET_XCRS, &xcrs);
        if (rc < 0) {
            return rc;
        }
    }
    if (before == NULL || memcmp(before->xsave, state->xsave, X86_XSAVE_BYTES) != 0) {
        struct kvm_xsave xsave;
        memcpy(&xsave, state->xsave, sizeof(xsave));
        return kvm_ioctl(cpu->fd, KVM_SET_XSAVE, &xsave);
    }
    return 0;
}

static int debugregs_get(const struct kvm_cpu *cpu, struct vcpu_state *state)
{
    struct kvm_debugregs debugregs = {0};
    const int rc = kvm_ioctl(cpu->fd, KVM_GET_DEBUGREGS, &debugregs);

    memcpy(state->dr, debugregs.db, sizeof(debugregs.db));
    state->dr[6] = debugregs.dr6;
    state->dr[7] = debugregs.dr7;
    return rc;
}

static int debugregs_set(const struct kvm_cpu *cpu, const struct vcpu_state *state)
{
    struct kvm_debugregs debugregs = {.dr6 = state->dr[6], .dr7 = state->dr[7]};

    memcpy(debugregs.db, state->dr, sizeof(debugregs.db));
    return kvm_ioctl(cpu->fd, KVM_SET_DEBUGREGS, &debugregs);
}

int kvm_state_get(struct kvm_cpu *cpu, struct vcpu_state *ret_state)
{
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs = {0};
    struct kvm_vcpu_events events = {0};

    int rc = kvm_ioctl(cpu->fd, KVM_GET_REGS, &regs);
    if (rc == 0) {
        rc = kvm_ioctl(cpu->fd, KVM_GET_SREGS, &sregs);
    }
    if (rc == 0) {
        rc = kvm_ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &events);
    }
    if (rc < 0) {
        return rc;
    }
    memset(ret_state, 0, offsetof(struct vcpu_state, xsave));
    regs_from_kvm(&regs, ret_state);
    sregs_from_kvm(&sregs, ret_state);
    events_from_kvm(&events, &ret_state->events);
    rc = fpu_get(cpu, ret_state);
    if (rc == 0) {
        rc = debugregs_get(cpu, ret_state);
    }
    if (rc == 0) {
        rc = msrs_get(cpu, ret_state);
    }
    if (rc == 0) {
        rc = tsc_offset_get(cpu, &ret_state->tsc_offset);
    }
    if (rc == 0) {
        rc = mp_state_get(cpu, ret_state);
    }
    return rc;
}

static int registers_set(struct kvm_cpu *cpu, const struct vcpu_state *state,
                         const struct vcpu_state *before)
{
    struct kvm_sregs sregs = sregs_to_kvm(state);
    struct kvm_regs regs = regs_to_kvm(state);
    int rc = 0;

    if (before != NULL) {
        const struct kvm_sregs old = sregs_to_kvm(before);
        if (memcmp(&old, &sregs, sizeof(old)) == 0) {
            return kvm_ioctl(cpu->fd, KVM_SET_REGS, &regs);
        }
    }
    if (!kvm_vm_has_lapic(cpu->vm)) {
        cpu->cr8_seen = (uint8_t)state->cr8;
        cpu->run->cr8 = state->cr8;
        /* The register is the machine's, and KVM would check what it does not know about. */
        sregs.apic_base = X86_APIC_DEFAULT_BASE | X86_APIC_BASE_ENABLE;
    }
    rc = kvm_ioctl(cpu->fd, KVM_SET_SREGS, &sregs);
    return rc < 0 ? rc : kvm_ioctl(cpu->fd, KVM_SET_REGS, &regs);
}

static int events_set(const struct kvm_cpu *cpu, const struct vcpu_state *state,
                      const struct vcpu_state *before)
{
    struct kvm_vcpu_events events = events_to_kvm(&state->events);

    if (before != NULL) {
        const struct kvm_vcpu_events old = events_to_kvm(&before->events);
        if (memcmp(&old, &events, sizeof(old)) == 0) {
            return 0;
        }
    }
    return kvm_ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &events);
}

int kvm_state_set(struct kvm_cpu *cpu, const struct vcpu_state *state,
                  const struct vcpu_state *before)
{
    int rc = registers_set(cpu, state, before);

    if (rc == 0) {
        rc = fpu_set(cpu, state, before);
    }
    if (rc == 0 && (before == NULL || memcmp(before->dr, state->dr, sizeof(state->dr)) != 0)) {
        rc = debugregs_set(cpu, state);
    }
    if (rc == 0) {
        rc = msrs_set(cpu, state, before);
    }
    if (rc == 0 && (before == NULL || before->tsc_offset != state->tsc_offset)) {
        rc = tsc_offset_set(cpu, state->tsc_offset);
    }
    if (rc == 0) {
        rc = events_set(cpu, state, before);
    }
    if (rc == 0 && (before == NULL || before->mp_state != state->mp_state)) {
        rc = mp_state_set(cpu, state);
    }
    /* It described the old state: KVM says anew when it can take an interrupt. */
    cpu->run->ready_for_interrupt_injection = 0;
    cpu->run->if_flag = (state->rflags & X86_FLAG_IF) != 0;
    return rc;
}
