/*
 * What the files of the executor share. See protocol.h for what it is.
 *
 * Threads: the first serves requests beside the vCPUs; one waits for the
 * monitor's end; one is each vCPU's. All are made before any guest code runs,
 * and after that no new one can be.
 */
#ifndef CORBEL_EXECUTOR_EXECUTOR_H
#define CORBEL_EXECUTOR_EXECUTOR_H

#include "base/compiler.h"
#include "base/error.h"
#include "executor/protocol.h"

struct executor {
    struct executor_shared *shared;
    struct gmem *gmem;
    struct accel_vm *vm;
    struct executor_bell started; /* threads, which make a few system calls first */
    _Atomic uint32_t created;     /* vCPUs */
    struct executor_thread *threads;
    struct lapic_set *apics; /* NULL: the monitor has them */
};

struct executor_thread {
    struct executor *executor;
    struct executor_vcpu *page;
    unsigned index;
    struct vcpu_env env;
    struct cpuid_table cpuid;
    struct accel_vcpu *vcpu;
    struct vmexit exit;          /* the engine's, and the answer to it */
    enum vmexit_reason reported; /* what the monitor was told; it answers that */
    bool pending;                /* of this run: the monitor has an interrupt */
    bool wants_out;              /* ... that could be taken now */

    struct lapic *apic; /* NULL: the monitor has it */
    int timer;          /* of the kernel's: sends the kick signal */
    uint32_t wake_seen; /* the page's wake when all was looked at */
    int eoi;            /* a vector whose end the monitor is to know, or -1 */
    uint64_t
        rest_since; /* rest.c, by the CPU's clock: since when its sleep is added up; 0: not yet */
    uint64_t rest_asleep;
    uint64_t rest_stretch;
    _Atomic uint64_t stat_accesses;
    _Atomic uint64_t stat_halts;
};

/* vcpu.c. A thread that does what its page asks for. */
void *executor_vcpu_main(void *opaque);

/* vcpu.c. Makes its thread look around: at IRR, requests, wake. Any thread. */
void executor_vcpu_wake(struct executor_thread *t);

/* apic.c. The local APICs of all vCPUs. */
int executor_apics_create(struct executor *executor) MUST_CHECK;
/* The rest is the vCPU's own thread's. Its timer: */
int executor_apic_attach(struct executor_thread *t, struct err *err) MUST_CHECK;
/* Answers t->exit when it is the APIC's. */
bool executor_apic_answer(struct executor_thread *t);
/* INIT, SIPI, NMI; true: the monitor is to reset the machine. No exit is unanswered. */
bool executor_apic_requests(struct executor_thread *t);
/* apic_base and tsc_deadline of a state are the APIC's. */
void executor_apic_get(struct executor_thread *t, struct vcpu_state *state);
void executor_apic_set(struct executor_thread *t, const struct vcpu_state *state);
void executor_apic_reset(struct executor_thread *t);

/* rest.c. What a vCPU does before it sleeps, and after it. */
uint64_t executor_rest_begin(struct executor_thread *t);
void executor_rest_end(struct executor_thread *t, uint64_t since);

/* bell.c. Waits until the bell is no longer at seen; the new count. */
uint32_t executor_bell_wait(struct executor_bell *bell, uint32_t seen);
void executor_bell_set(struct executor_bell *bell, uint32_t count);
void executor_bell_add(struct executor_bell *bell);

/* Ends the process with a text for the monitor. Before the lock-down. */
void executor_fail(struct executor_shared *shared, int code, const char *text) NORETURN;

/* lockdown.c. Capabilities are each thread's own: before there is a second one. */
int executor_drop_capabilities(void) MUST_CHECK;
/* From here on no thread of the process can do anything to the host. */
int executor_lock_down(struct err *err) MUST_CHECK;

/* log.c. Where lines of base/log.h go. */
void executor_log_to(struct executor_shared *shared);

/* place.c. The next free piece of LAYOUT_STACKS. */
void *executor_place_stack(size_t bytes);

#endif
