/*
 * Guest user code that runs natively, the engine's half: which address spaces,
 * what is mapped in their spaces (native.h), and when a flush or a page of
 * translated code changes that.
 *
 * A space is a TLB of one guest address space, found by the physical address of
 * its top-level table: mappings come when native code faults, as the guest's
 * tables have them then, and are looked at again after a flush, before the vCPU
 * that flushed runs in the space again. Writable is only what the guest has set
 * dirty and what no code was translated from; executable only what holds no
 * instruction that would tell of the host (native_scan.c).
 *
 * An address space begins translated. It is promoted when it runs for a while
 * with few ways into the kernel, each of which costs a change of process, and
 * demoted when they become many.
 */
#ifndef CORBEL_ENGINE_NATIVE_USER_H
#define CORBEL_ENGINE_NATIVE_USER_H

#include "base/compiler.h"
#include "cpu/vcpu.h"
#include "engine/mmu.h"
#include "engine/native.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct accel_stat;
struct engine_vcpu;
struct engine_vm;
struct native_user;

/* Changes that belong together; they are made when it is full or flushed. */
struct native_batch {
    struct native_change changes[NATIVE_MAX_CHANGES];
    unsigned count;
};

/* A page fault of native code that was the guest's; cr3 0: none. */
struct native_raised {
    uint64_t va;
    uint64_t rip;
    uint64_t cr3;
    uint32_t error;
};

/* Of a vCPU: struct engine_vcpu.native. Its thread's, but in. */
struct native_vcpu {
    bool wanted;      /* user code of the current address space is to run natively */
    bool is_paused;   /* until the next look: it is where it cannot */
    _Atomic bool in;  /* run() of the seam is, or is about to be, under way */
    uint32_t entries; /* into the kernel from user code since the window began */
    bool is_sampled;  /* user_since is when user mode was entered the last time */
    uint32_t weight;  /* so many stays in user mode are taken to be as long */
    uint64_t user_since;
    uint64_t user_cycles; /* in user mode since the window began, by samples */
    uint64_t cr3;         /* that the window is of */
    uint64_t since;       /* host TSC at which the window began */
    uint64_t inside;      /* cycles of native code in it */
    uint64_t cost;        /* ... and of what is around it */
    uint32_t detours;     /* through flagged pages in it */
    uint32_t ways_out;    /* of native code in it */
    uint32_t invested;    /* mappings that were made since it was promoted */
    uint64_t fault_va;    /* of the last fault that was answered by mapping */
    uint64_t fault_rip;
    uint32_t fault_count; /* so often in a row */
    struct native_raised raised;
    struct native_batch batch;
};

/* NULL: no memory, or more RAM than its tables can name. */
struct native_user *native_user_create(struct engine_vm *vm, const struct native *native,
                                       enum accel_native when);
void native_user_destroy(struct native_user *user); /* accepts NULL */

/* Is v, between two instructions, to run natively? May promote its address space. */
bool native_user_is_due(struct engine_vcpu *v);

/* Runs natively until something else is to be looked at: 0; 1: interpret one instruction;
 * ENGINE_EXIT. Only when due. */
int native_user_run(struct engine_vcpu *v) MUST_CHECK;

/* From any thread, signal handlers too: v comes out of native code. */
void native_user_kick(struct engine_vcpu *v);

/* After a flush of v's TLB; general registers only. */
void native_user_on_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va);

/*
 * User mode begins, and the kernel is entered from it: what the window counts.
 * General registers only.
 */
void native_user_note_user(struct engine_vcpu *v);
void native_user_note_kernel(struct engine_vcpu *v);

/* v's state was set from outside: nothing that was known of its tables holds. */
void native_user_forget(struct engine_vcpu *v);

/* The page of RAM at this address is marked as code: no mapping of it stays writable. */
void native_user_protect(struct native_user *user, const uint8_t *host_page);

/* As accel_ops.stats. */
unsigned native_user_stats(const struct native_user *user, struct accel_stat *ret_stats,
                           unsigned max);

#endif
