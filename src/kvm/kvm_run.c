/* Running a vCPU: KVM_RUN, and its exits as struct vmexit. */
#include "kvm/kvm_int.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void count(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* Where the data of element `progress` of a port access lies in the shared pages. */
static uint8_t *pio_data(const struct kvm_cpu *cpu)
{
    return (uint8_t *)cpu->run + cpu->run->io.data_offset +
           (size_t)cpu->progress * cpu->run->io.size;
}

static void pio_fill(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const struct kvm_run *run = cpu->run;

    exit->reason = VMEXIT_PIO;
    exit->pio.port = run->io.port;
    exit->pio.size_bytes = run->io.size;
    exit->pio.is_write = run->io.direction == KVM_EXIT_IO_OUT;
    exit->pio.data = 0;
    if (exit->pio.is_write) {
        memcpy(&exit->pio.data, pio_data(cpu), run->io.size);
    }
    cpu->pending = KVM_PENDING_PIO;
}

/* Takes the answer; true when the string has a next element, filled into exit. */
static bool pio_answer(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const struct kvm_run *run = cpu->run;

    if (run->io.direction == KVM_EXIT_IO_IN) {
        memcpy(pio_data(cpu), &exit->pio.data, run->io.size);
    }
    cpu->progress++;
    if (cpu->progress >= run->io.count) {
        return false;
    }
    pio_fill(cpu, exit);
    return true;
}

/* KVM hands out any length up to 8; a bus knows powers of two. */
static void mmio_fill(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const struct kvm_run *run = cpu->run;
    const unsigned left = run->mmio.len - cpu->progress;

    cpu->chunk = 8;
    while (cpu->chunk > left) {
        cpu->chunk /= 2;
    }
    exit->reason = VMEXIT_MMIO;
    exit->mmio.gpa = run->mmio.phys_addr + cpu->progress;
    exit->mmio.size_bytes = (uint8_t)cpu->chunk;
    exit->mmio.is_write = run->mmio.is_write != 0;
    exit->mmio.data = 0;
    if (exit->mmio.is_write) {
        memcpy(&exit->mmio.data, &run->mmio.data[cpu->progress], cpu->chunk);
    }
    cpu->pending = KVM_PENDING_MMIO;
}

static bool mmio_answer(struct kvm_cpu *cpu, struct vmexit *exit)
{
    struct kvm_run *run = cpu->run;

    if (!run->mmio.is_write) {
        memcpy(&run->mmio.data[cpu->progress], &exit->mmio.data, cpu->chunk);
    }
    cpu->progress += cpu->chunk;
    if (cpu->progress >= run->mmio.len) {
        return false;
    }
    mmio_fill(cpu, exit);
    return true;
}

static void msr_fill(struct kvm_cpu *cpu, struct vmexit *exit, bool is_write)
{
    const struct kvm_run *run = cpu->run;

    exit->reason = is_write ? VMEXIT_MSR_WRITE : VMEXIT_MSR_READ;
    exit->msr.index = run->msr.index;
    exit->msr.fault = false;
    exit->msr.data = is_write ? run->msr.data : 0;
    exit->msr.tsc_offset = 0;
    if (run->msr.index == X86_MSR_TSC_DEADLINE) {
        struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL,
                                       .attr = KVM_VCPU_TSC_OFFSET,
                                       .addr = (uintptr_t)&exit->msr.tsc_offset};
        if (cpu->tsc_offset_attr) {
            (void)ioctl(cpu->fd, KVM_GET_DEVICE_ATTR, &attr); /* was there at creation */
        }
    }
    cpu->pending = KVM_PENDING_MSR;
}

static void debug_fill(const struct kvm_cpu *cpu, struct vmexit *exit)
{
    const struct kvm_debug_exit_arch *arch = &cpu->run->debug.arch;

    exit->reason = VMEXIT_DEBUG;
    exit->debug.rip = arch->pc;
    exit->debug.dr6 = arch->dr6;
    exit->debug.is_breakpoint_insn = arch->exception == X86_VEC_BP;
}

static bool decode_internal_error(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const struct kvm_run *run = cpu->run;

    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
        return kvm_step(cpu, exit) != 0;
    }
    exit->reason = VMEXIT_ERROR;
    (void)err_set(&exit->error, -EIO,
                  "KVM reports internal error %u with %u data words, first %#llx",
                  run->internal.suberror, run->internal.ndata,
                  run->internal.ndata > 0 ? (unsigned long long)run->internal.data[0] : 0ull);
    return true;
}

/* What the last KVM_RUN said. True when exit is filled, false to run on. */
static bool decode(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const struct kvm_run *run = cpu->run;

    cpu->progress = 0;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        count(&cpu->vm->stat_pio);
        pio_fill(cpu, exit);
        return true;
    case KVM_EXIT_MMIO:
        count(&cpu->vm->stat_mmio);
        if (run->mmio.len == 0 || run->mmio.len > sizeof(run->mmio.data)) {
            return false;
        }
        mmio_fill(cpu, exit);
        return true;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        msr_fill(cpu, exit, run->exit_reason == KVM_EXIT_X86_WRMSR);
        return true;
    case KVM_EXIT_INTR:
        exit->reason = VMEXIT_INTR;
        return true;
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
        return false;
    case KVM_EXIT_HLT:
        cpu->mp_state = X86_MP_HALTED;
        exit->reason = VMEXIT_HLT;
        return true;
    case KVM_EXIT_SHUTDOWN:
        exit->reason = VMEXIT_SHUTDOWN;
        return true;
    case KVM_EXIT_IOAPIC_EOI:
        exit->reason = VMEXIT_EOI;
        exit->eoi.vector = run->eoi.vector;
        return true;
    case KVM_EXIT_DEBUG:
        if (kvm_user_is_gate(cpu, run->debug.arch.pc) && !cpu->debug.single_step &&
            !kvm_debug_stops(cpu, run->debug.arch.pc)) {
            return kvm_step(cpu, exit) != 0;
        }
        debug_fill(cpu, exit);
        return true;
    case KVM_EXIT_INTERNAL_ERROR:
        return decode_internal_error(cpu, exit);
    case KVM_EXIT_FAIL_ENTRY:
        exit->reason = VMEXIT_ERROR;
        (void)err_set(&exit->error, -EIO, "KVM cannot enter the guest: hardware reason %#llx",
                      (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        return true;
    default:
        exit->reason = VMEXIT_ERROR;
        (void)err_set(&exit->error, -EIO, "KVM left the guest for the unknown reason %u",
                      run->exit_reason);
        return true;
    }
}

/* Gives KVM a vector of a controller that is ours, or asks when it can take one. */
static int interrupt_prepare(struct kvm_cpu *cpu)
{
    const struct vcpu_intr_ops *intr = cpu->env.intr;
    struct kvm_run *run = cpu->run;

    /* An emulated CR8 write does not leave the guest: where one has held interrupts back, each
     * pass of the emulator ends to look at it. */
    run->request_interrupt_window = cpu->vm->emulated && cpu->cr8_seen != 0 ? 1 : 0;
    if (intr == NULL || !intr->pending(cpu->env.opaque)) {
        return 0;
    }
    if (run->ready_for_interrupt_injection == 0) {
        run->request_interrupt_window = 1;
        return 0;
    }
    const int vector = intr->acknowledge(cpu->env.opaque);
    if (vector >= 0) {
        struct kvm_interrupt interrupt = {.irq = (uint32_t)vector};
        const int rc = kvm_ioctl(cpu->fd, KVM_INTERRUPT, &interrupt);
        if (rc < 0) {
            return rc;
        }
        run->ready_for_interrupt_injection = 0;
    }
    run->request_interrupt_window |= intr->pending(cpu->env.opaque) ? 1 : 0;
    return 0;
}

/* 0, -EINTR when kicked, or what KVM_RUN says. */
static int enter(struct kvm_cpu *cpu)
{
    struct kvm_run *run = cpu->run;

    /* Pairs with kick(): either it sees in_kernel, or KVM_RUN sees immediate_exit. */
    atomic_store(&cpu->in_kernel, true);
    const int rc = ioctl(cpu->fd, KVM_RUN, NULL) < 0 ? -errno : 0;
    atomic_store(&cpu->in_kernel, false);
    count(&cpu->vm->stat_exits);
    if (rc == -EINTR || rc == -EAGAIN) {
        __atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        run->exit_reason = KVM_EXIT_INTR;
        return 0;
    }
    return rc;
}

/* True when exit is filled. */
static bool run_once(struct kvm_cpu *cpu, struct vmexit *exit)
{
    int rc = interrupt_prepare(cpu);

    if (rc == 0 && cpu->vm->emulated) {
        rc = kvm_user_watch(cpu);
    }
    if (rc == 0) {
        rc = enter(cpu);
    }
    if (rc < 0) {
        exit->reason = VMEXIT_ERROR;
        (void)err_set_errno(&exit->error, rc, "KVM cannot run the vCPU");
        return true;
    }
    if (!kvm_vm_has_lapic(cpu->vm) && cpu->run->cr8 != cpu->cr8_seen) {
        cpu->cr8_seen = (uint8_t)cpu->run->cr8;
        cpu->pending = KVM_PENDING_DECODE;
        exit->reason = VMEXIT_TPR;
        exit->tpr.cr8 = cpu->cr8_seen;
        return true;
    }
    return decode(cpu, exit);
}

/* Finishes what the last exit began. True when exit is filled again. */
static bool resume(struct kvm_cpu *cpu, struct vmexit *exit)
{
    const enum kvm_pending pending = cpu->pending;

    cpu->pending = KVM_PENDING_NONE;
    switch (pending) {
    case KVM_PENDING_PIO:
        return pio_answer(cpu, exit);
    case KVM_PENDING_MMIO:
        return mmio_answer(cpu, exit);
    case KVM_PENDING_MSR:
        cpu->run->msr.data = exit->msr.data;
        cpu->run->msr.error = exit->msr.fault ? 1 : 0;
        return false;
    case KVM_PENDING_DECODE:
        return decode(cpu, exit);
    case KVM_PENDING_STEP:
        return kvm_step_on(cpu, exit) != 0;
    case KVM_PENDING_NONE:
    default:
        return false;
    }
}

/* Without an in-kernel local APIC, whether the vCPU sleeps is ours to know. */
static bool sleeps(struct kvm_cpu *cpu)
{
    const struct vcpu_intr_ops *intr = cpu->env.intr;

    if (kvm_vm_has_lapic(cpu->vm)) {
        return false;
    }
    /* KVM would run on behind the HLT: one with interrupts off ends by NMI or reset only. */
    if (cpu->mp_state == X86_MP_HALTED && cpu->run->if_flag != 0 && intr != NULL &&
        intr->pending(cpu->env.opaque)) {
        cpu->mp_state = X86_MP_RUNNABLE;
    }
    return cpu->mp_state != X86_MP_RUNNABLE;
}

int kvm_cpu_run(struct accel_vcpu *vcpu, struct vmexit *exit)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);

    if (resume(cpu, exit)) {
        return 0;
    }
    if (sleeps(cpu)) {
        exit->reason = VMEXIT_HLT;
        return 0;
    }
    while (!(cpu->user.active ? kvm_user_run(cpu, exit) : run_once(cpu, exit))) {
    }
    return 0;
}

void kvm_cpu_settle(struct kvm_cpu *cpu)
{
    struct kvm_run *run = cpu->run;

    if (cpu->pending != KVM_PENDING_PIO && cpu->pending != KVM_PENDING_MMIO &&
        cpu->pending != KVM_PENDING_MSR) {
        return;
    }
    /* It stays set, as a kick may have come meanwhile: the next run() returns once for nothing. */
    __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    const int rc = ioctl(cpu->fd, KVM_RUN, NULL);
    /* Completing one access may begin the instruction's next one. */
    cpu->pending = rc == 0 ? KVM_PENDING_DECODE : KVM_PENDING_NONE;
}

void kvm_cpu_kick(struct accel_vcpu *vcpu)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);

    count(&cpu->vm->stat_kicks);
    __atomic_store_n(&cpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (atomic_load(&cpu->in_kernel)) {
        (void)syscall(SYS_tgkill, getpid(), cpu->tid, SIGRTMIN); /* gone only when destroyed */
    }
}
