/*
 * One instruction by the stepper, where KVM's emulator gives up.
 *
 * The whole state goes out, the stepper executes one instruction on it, and
 * what changed goes back. An access of that instruction to a device returns to
 * the machine like any other; local APIC registers that live in the kernel are
 * answered here.
 */
#include "kvm/kvm_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool never_pending(void *opaque)
{
    (void)opaque;
    return false;
}

static int never_acknowledge(void *opaque)
{
    (void)opaque;
    return -1;
}

static const struct vcpu_intr_ops no_interrupts = {
    .pending = never_pending,
    .acknowledge = never_acknowledge,
};

static int stepper_open(struct kvm_cpu *cpu, struct err *err)
{
    if (cpu->stepper != NULL) {
        return 0;
    }
    if (cpu->vm->stepper == NULL) {
        return err_set(err, -EOPNOTSUPP, "KVM cannot emulate an instruction of the guest");
    }
    cpu->step_env = cpu->env;
    cpu->step_env.intr = &no_interrupts;
    if (cpu->step_state == NULL) {
        cpu->step_state = aligned_alloc(64, sizeof(*cpu->step_state));
        cpu->step_before = aligned_alloc(64, sizeof(*cpu->step_before));
    }
    if (cpu->step_state == NULL || cpu->step_before == NULL) {
        return err_set_errno(err, -ENOMEM, "state for an instruction that KVM cannot emulate");
    }
    return cpu->vm->stepper->create(cpu->vm->gmem, &cpu->step_env, err, &cpu->stepper);
}

/* An MSR of the in-kernel local APIC: asked from KVM. */
static void msr_answer(struct kvm_cpu *cpu, struct vmexit *exit)
{
    struct {
        struct kvm_msrs header;
        struct kvm_msr_entry entry;
    } buffer = {.header.nmsrs = 1, .entry = {.index = exit->msr.index, .data = exit->msr.data}};
    const bool is_write = exit->reason == VMEXIT_MSR_WRITE;

    const int rc = kvm_ioctl(cpu->fd, is_write ? KVM_SET_MSRS : KVM_GET_MSRS, &buffer);
    exit->msr.fault = rc != 1;
    exit->msr.data = buffer.entry.data;
}

static bool progressed(const struct vcpu_state *before, const struct vcpu_state *after)
{
    return memcmp(before, after, offsetof(struct vcpu_state, xsave)) != 0;
}

static int step_commit(struct kvm_cpu *cpu, struct err *err)
{
    atomic_fetch_add_explicit(&cpu->vm->stat_steps, 1, memory_order_relaxed);
    cpu->stuck = progressed(cpu->step_before, cpu->step_state) ? 0 : cpu->stuck + 1;
    if (cpu->stuck >= KVM_STEP_STUCK_MAX) {
        return err_set(err, -ELOOP, "the guest makes no progress at RIP 0x%llx",
                       (unsigned long long)cpu->step_state->rip);
    }
    const int rc = kvm_state_set(cpu, cpu->step_state, cpu->step_before);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM refuses the state after the instruction at RIP 0x%llx",
                             (unsigned long long)cpu->step_before->rip);
    }
    return 0;
}

static int step_begin(struct kvm_cpu *cpu, struct err *err)
{
    int rc = stepper_open(cpu, err);

    if (rc < 0) {
        return rc;
    }
    rc = kvm_state_get(cpu, cpu->step_state);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM does not give the state of the vCPU");
    }
    memcpy(cpu->step_before, cpu->step_state, sizeof(*cpu->step_before));
    return 0;
}

int kvm_step(struct kvm_cpu *cpu, struct vmexit *exit)
{
    struct err err = {0};
    int rc = cpu->pending == KVM_PENDING_STEP ? 0 : step_begin(cpu, &err);

    cpu->pending = KVM_PENDING_NONE;
    while (rc == 0) {
        rc = cpu->vm->stepper->run(cpu->stepper, cpu->step_state, exit);
        if (rc <= 0) {
            break;
        }
        const bool is_msr = exit->reason == VMEXIT_MSR_READ || exit->reason == VMEXIT_MSR_WRITE;
        if (is_msr && kvm_vm_has_lapic(cpu->vm)) {
            msr_answer(cpu, exit);
            rc = 0;
            continue;
        }
        cpu->pending = KVM_PENDING_STEP;
        return 1;
    }
    if (rc < 0 && err.code == 0) {
        (void)err_set_errno(&err, rc, "no engine can execute the instruction at RIP 0x%llx",
                            (unsigned long long)cpu->step_state->rip);
    }
    if (rc == 0) {
        rc = step_commit(cpu, &err);
    }
    if (rc < 0) {
        exit->reason = VMEXIT_ERROR;
        exit->error = err;
        return 1;
    }
    if (cpu->debug.single_step) {
        exit->reason = VMEXIT_DEBUG;
        exit->debug.rip = cpu->step_state->rip;
        exit->debug.dr6 = 0x4000; /* BS */
        exit->debug.is_breakpoint_insn = false;
        return 1;
    }
    return 0;
}
