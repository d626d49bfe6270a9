/*
 * Which accelerators there are, and which one a machine gets.
 */
#ifndef CORBEL_MACHINE_ACCEL_TABLE_H
#define CORBEL_MACHINE_ACCEL_TABLE_H

#include "machine/machine.h"

/*
 * The accelerator for a choice, with the reason as a phrase. For AUTO: KVM if
 * its probe says that it runs guests at hardware speed, else our own engine.
 * -ENODEV when the one asked for cannot run here; err says why. ret_emulated:
 * it is KVM, and its probe says that it has no hardware behind it.
 */
int accel_choose(enum machine_engine engine, struct err *err, const struct accel_ops **ret_ops,
                 char *ret_reason, size_t reason_size, bool *ret_emulated) MUST_CHECK;

/* Executes instructions for KVM where its emulator cannot. */
extern const struct accel_stepper_ops accel_stepper;

#endif
