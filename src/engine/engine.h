/*
 * The software engine as an accelerator: x86-64 guests on a host without
 * hardware virtualization, as an ordinary process.
 *
 * engine_accel_ops is the translator with the interpreter behind it;
 * accel_vm_config.reference_only gives the interpreter alone, .check both in
 * lock step. See docs/engine.md.
 */
#ifndef CORBEL_ENGINE_ENGINE_H
#define CORBEL_ENGINE_ENGINE_H

#include "cpu/vcpu.h"

extern const struct accel_ops engine_accel_ops;

/* Would run() begin with an interrupt that is pending? Its thread, after an exit. */
bool engine_can_take_interrupt(struct accel_vcpu *vcpu);
/* A vector acknowledged already, when it can be taken: run() begins with it. Its thread. */
void engine_queue_interrupt(struct accel_vcpu *vcpu, uint8_t vector);
/* Each kick signal that its thread takes from now on also counts *count up: whoever sleeps on it
 * wakes or does not fall asleep. Its thread. */
void engine_count_kicks(struct accel_vcpu *vcpu, _Atomic uint32_t *count);
/* The guest has been at rest for a while: gives memory back that it took when it was not. False
 * when that was not worth it. Its thread. */
bool engine_trim(struct accel_vcpu *vcpu);
/* Somebody else wrote [gpa, gpa + len): drops what was translated from there. Any thread. */
void engine_invalidate(struct accel_vm *vm, gpa_t gpa, uint64_t len);

/*
 * Executes instructions on state with the interpreter, as far as step says, for
 * an accelerator that cannot (KVM's emulator). Returns 0, or 1 when exit was
 * filled: answer it and call again with the same arguments. One stepper per
 * vCPU, on its thread.
 */
struct engine_stepper;
int engine_stepper_create(struct gmem *gmem, const struct vcpu_env *env, struct err *err,
                          struct engine_stepper **ret_stepper) MUST_CHECK;
void engine_stepper_destroy(struct engine_stepper *stepper); /* accepts NULL */
int engine_stepper_run(struct engine_stepper *stepper, struct vcpu_state *state,
                       struct accel_step *step, struct vmexit *exit) MUST_CHECK;

/*
 * For accel_vm_config.vcpu_storage: the calling thread's own struct engine_vcpu,
 * some 3 MiB in each thread of a program that names this function.
 */
void *engine_vcpu_storage(void);
/* Fills such storage with zeroes that take no memory yet; for threads that are no vCPU, too. */
void engine_vcpu_storage_clear(void *storage);

#endif
