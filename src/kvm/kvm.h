/*
 * The accelerator on /dev/kvm.
 *
 * kvm_accel_ops implements cpu/vcpu.h with the kernel's virtual machines. It
 * needs read and write access to /dev/kvm and nothing else. Where KVM has no
 * hardware behind it, its emulator gives up on some instructions; then
 * accel_vm_config.stepper executes that one and KVM goes on.
 *
 * vCPU threads get SIGRTMIN unblocked with an empty handler: kick() sends it.
 */
#ifndef CORBEL_KVM_KVM_H
#define CORBEL_KVM_KVM_H

#include "cpu/vcpu.h"

extern const struct accel_ops kvm_accel_ops;

#endif
