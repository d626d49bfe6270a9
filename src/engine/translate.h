/*
 * The binary translator, as the run loop of the engine sees it.
 *
 * Guest code is translated one unit (translate_int.h, trace.h) at a time into a
 * code cache that all vCPUs of a VM share, and runs there until something needs
 * the interpreter or the machine. State is in v->st whenever translate_run()
 * is not executing. See docs/engine.md.
 */
#ifndef CORBEL_ENGINE_TRANSLATE_H
#define CORBEL_ENGINE_TRANSLATE_H

#include "base/compiler.h"
#include "base/error.h"
#include "cpu/vcpu.h"

#include <stdbool.h>
#include <stdint.h>

struct engine_vcpu;
struct engine_vm;

/* size_bytes of the code cache; 0: the default. -EINVAL for the size, -ENOMEM. */
int translate_vm_init(struct engine_vm *vm, uint64_t size_bytes, struct err *err) MUST_CHECK;
void translate_vm_done(struct engine_vm *vm); /* after all vCPUs; without effect twice */

/* On the vCPU's thread, after hostsig_thread_init(). */
int translate_vcpu_init(struct engine_vcpu *v, struct err *err) MUST_CHECK;
void translate_vcpu_done(struct engine_vcpu *v);

enum translate_result {
    TRANSLATE_INTERP, /* interp_step() is to do the instruction at st.rip */
    TRANSLATE_EXIT,   /* *v->exit was filled */
    TRANSLATE_KICKED  /* look for kicks, interrupts and pending events */
};

/* Runs guest code from st.rip; nothing is pending in st.events. The vCPU's thread. */
enum translate_result translate_run(struct engine_vcpu *v);

/* For lock step: makes the unit for st.rip and returns how many instructions it has; 0 when
 * translated code cannot run at the current state. */
unsigned translate_unit_length(struct engine_vcpu *v);
/* Runs one unit without going on to the next; TRANSLATE_INTERP also when there is none. */
enum translate_result translate_run_one(struct engine_vcpu *v);

/* Drops all translated code and gives its memory back when that is worth it: for a guest that
 * rests, and needs little of what it ran once. The vCPU's thread. */
bool translate_trim(struct engine_vcpu *v);

/* Waits until no vCPU but v runs an instruction that it had begun before. Engine lock held. */
void translate_sync_vcpu(struct engine_vcpu *other);

/* Counters; returns how many there are. Any thread. */
unsigned translate_stats(struct engine_vm *vm, struct accel_stat *ret_stats, unsigned max);

#endif
