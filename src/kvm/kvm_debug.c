/* Breakpoints: the debugger's, and in what registers are left the gates of kvm_user.c. */
#include "kvm/kvm_int.h"

#include <errno.h>

#define KVM_MAX_HW_BREAKPOINTS 4

static void breakpoint_add(struct kvm_guest_debug *request, unsigned *count, uint64_t address)
{
    if (*count < KVM_MAX_HW_BREAKPOINTS) {
        request->control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        request->arch.debugreg[*count] = address;
        request->arch.debugreg[7] |= 2ull << (2 * *count);
        (*count)++;
    }
}

int kvm_debug_apply(struct kvm_cpu *cpu)
{
    /* LE, GE and the fixed bit are as CPUs have them. */
    struct kvm_guest_debug request = {.control = 0, .arch.debugreg[7] = 0x600};
    const struct kvm_user *user = &cpu->user;
    unsigned count = 0;

    if (cpu->debug.single_step) {
        request.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    }
    for (unsigned i = 0; i < cpu->debug.breakpoint_count; i++) {
        breakpoint_add(&request, &count, cpu->debug.breakpoints[i]);
    }
    if (user->fault_handler != 0) {
        breakpoint_add(&request, &count, user->fault_handler);
    }
    for (unsigned i = 0; i < user->exit_count; i++) {
        breakpoint_add(&request, &count, user->exits[i]);
    }
    return kvm_ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &request);
}

int kvm_set_debug(struct accel_vcpu *vcpu, const struct accel_debug *debug)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    const struct accel_debug before = cpu->debug;

    if (debug->breakpoint_count > KVM_MAX_HW_BREAKPOINTS) {
        return -ENOSPC;
    }
    cpu->debug = *debug;
    const int rc = kvm_debug_apply(cpu);
    if (rc < 0) {
        cpu->debug = before;
    }
    return rc;
}

bool kvm_debugged(const struct kvm_cpu *cpu)
{
    return cpu->debug.single_step || cpu->debug.breakpoint_count > 0;
}

bool kvm_debug_stops(const struct kvm_cpu *cpu, uint64_t rip)
{
    for (unsigned i = 0; i < cpu->debug.breakpoint_count; i++) {
        if (cpu->debug.breakpoints[i] == rip) {
            return true;
        }
    }
    return false;
}
