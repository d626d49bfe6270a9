/*
 * Instructions by the stepper: one where KVM's emulator gives up, many where
 * kvm_user.c says so.
 *
 * The whole state goes out, the stepper executes one instruction on it, and
 * what changed goes back. Where KVM fails again at the very next instruction, a
 * step grows to some more, as long as KVM has got nowhere in between. An access
 * to a device returns to the machine like any other; local APIC registers that
 * live in the kernel are answered here.
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
    const bool counted = cpu->step.until == ACCEL_STEP_MAX;

    atomic_fetch_add_explicit(&cpu->vm->stat_steps, cpu->step.done, memory_order_relaxed);
    cpu->step_end_rip = cpu->step_state->rip;
    cpu->stuck = !counted || progressed(cpu->step_before, cpu->step_state) ? 0 : cpu->stuck + 1;
    if (cpu->stuck >= KVM_STEP_STUCK_MAX) {
        return err_set(err, -ELOOP, "the guest makes no progress at RIP 0x%llx",
                       (unsigned long long)cpu->step_state->rip);
    }
    const int rc = kvm_state_set(cpu, cpu->step_state, cpu->step_before);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM refuses the state after the instruction at RIP 0x%llx",
                             (unsigned long long)cpu->step_before->rip);
    }
    cpu->user.active = cpu->vm->emulated && vcpu_state_cpl(cpu->step_state) == 3;
    return 0;
}

static int step_begin(struct kvm_cpu *cpu, struct err *err)
{
    unsigned batch = 1;
    int rc = stepper_open(cpu, err);

    if (rc < 0) {
        return rc;
    }
    rc = kvm_state_get(cpu, cpu->step_state);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM does not give the state of the vCPU");
    }
    memcpy(cpu->step_before, cpu->step_state, sizeof(*cpu->step_before));
    if (cpu->step_state->rip == cpu->step_end_rip && !kvm_debugged(cpu)) {
        batch = cpu->step_grown < KVM_STEP_BATCH_MAX ? 2 * cpu->step_grown : KVM_STEP_BATCH_MAX;
    }
    cpu->step_grown = batch;
    cpu->step = (struct accel_step){.until = ACCEL_STEP_MAX, .max = batch};
    kvm_user_begin(cpu);
    return 0;
}

/* The stepper has filled exit. 0: to be run again; 1: the step is complete; 2: it is for the
 * machine. */
static int step_exit(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const bool is_msr = exit->reason == VMEXIT_MSR_READ || exit->reason == VMEXIT_MSR_WRITE;

    if (exit->reason == VMEXIT_HLT) {
        cpu->step_state->mp_state = X86_MP_HALTED; /* KVM, or sleeps(), waits */
        return 1;
    }
    if (is_msr && kvm_vm_has_lapic(cpu->vm)) {
        msr_answer(cpu, exit);
        return 0;
    }
    return 2;
}

/* Runs the stepper to the end of the step. 0; 1: exit is for the machine; a negative errno. */
static int step_run(struct kvm_cpu *cpu, struct vmexit *exit)
{
    for (;;) {
        const int rc = cpu->vm->stepper->run(cpu->stepper, cpu->step_state, &cpu->step, exit);
        if (rc < 0) {
            return cpu->step.done > 0 ? 0 : rc; /* KVM may know it: only the first was needed */
        }
        if (rc == 0) {
            if (!kvm_user_next(cpu)) {
                return 0;
            }
            continue;
        }
        const int next = step_exit(cpu, exit);
        if (next != 0) {
            return next - 1;
        }
    }
}

/* What a debugger waits for has happened. */
static bool step_debug(const struct kvm_cpu *cpu, struct vmexit *exit)
{
    const uint64_t rip = cpu->step_state->rip;

    if (!cpu->debug.single_step && !(cpu->user.active && kvm_debug_stops(cpu, rip))) {
        return false;
    }
    exit->reason = VMEXIT_DEBUG;
    exit->debug.rip = rip;
    exit->debug.dr6 = cpu->debug.single_step ? 0x4000 : 1; /* BS or B0 */
    exit->debug.is_breakpoint_insn = false;
    return true;
}

int kvm_step(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const int rc = step_begin(cpu, &exit->error);

    if (rc < 0) {
        exit->reason = VMEXIT_ERROR;
        return 1;
    }
    return kvm_step_on(cpu, exit);
}

int kvm_step_on(struct kvm_cpu *cpu, struct vmexit *exit)
{
    struct err err = {0};
    int rc = step_run(cpu, exit);

    if (rc == 1) {
        cpu->pending = KVM_PENDING_STEP;
        return 1;
    }
    if (rc < 0) {
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
    return step_debug(cpu, exit) ? 1 : 0;
}
