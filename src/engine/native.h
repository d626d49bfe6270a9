/*
 * User code that runs natively: the seam between the engine, which knows the
 * guest's page tables, and the executor, which has processes for it.
 *
 * A *space* is a process that holds nothing but guest RAM, mapped where one
 * guest address space has it, and a few pages of ours (NATIVE_OWN). Guest user
 * code runs in it unmodified; whatever it does that is not plain computation
 * (system call, fault, CPUID, ...) ends in run() with the registers as they
 * were. A space has one thread for each vCPU. It is taken to be the guest's
 * user's own: it may hold any registers and stop answering, and neither the
 * guest's kernel nor the host may suffer from that.
 *
 * Threads: run() is for the vCPU's thread, all at once. change() and clear() are
 * for any vCPU's thread, one at a time for each space (the caller's lock), while
 * others may run in it. run() waits; change() waits until it is done. None of
 * them may be called with the guest's vector registers live.
 */
#ifndef CORBEL_ENGINE_NATIVE_H
#define CORBEL_ENGINE_NATIVE_H

#include "base/compiler.h"
#include "cpu/vcpu.h"

#include <stdbool.h>
#include <stdint.h>

/* What a space keeps for itself; nothing of the guest's is mapped there, nor below the first
 * page that Linux maps, nor at its last. */
#define NATIVE_LOWEST 0x10000ull
#define NATIVE_OWN 0x700000000000ull
#define NATIVE_OWN_END 0x700010000000ull
#define NATIVE_END 0x7ffffffff000ull

#define NATIVE_MAX_SPACES 10u
#define NATIVE_MAX_CHANGES 64u /* in one call */
#define NATIVE_COPIES 4u

enum native_reason {
    NATIVE_SYSCALL, /* SYSCALL at rip: RCX and R11 have what it writes, nothing else was done */
    NATIVE_FAULT,   /* #PF at rip: address and error are the CPU's, for the space's mappings */
    NATIVE_TRAP,    /* #DB after an instruction, TF was set: rip is behind it */
    NATIVE_OTHER,   /* the instruction at rip cannot be done there; it was not begun */
    NATIVE_KICK,    /* between two instructions: native_kick(), or for no reason */
    NATIVE_FULL,    /* the host refused a change: clear() and begin again; nothing was run */
    NATIVE_GONE,    /* the space is gone; nothing was run */
    NATIVE_LOST     /* the same, and registers are gone with it; st is as it was given */
};

struct native_left {
    enum native_reason reason;
    uint32_t error;   /* of a #PF: X86_PF_* */
    uint64_t address; /* of a #PF */
    uint64_t cycles;  /* that user code took, as the space says; for policy only */
};

/* One mapping to be made, in place of what is there; or, with prot 0, to go. Whole pages. */
struct native_change {
    uint64_t va;
    uint64_t bytes;
    uint64_t offset; /* in the memfd of RAM */
    uint32_t prot;   /* PROT_READ, PROT_WRITE, PROT_EXEC; 0: nothing is to be there */
    bool populate;   /* it is to be used at once */
    bool is_copy;    /* offset is in native.copies instead */
};

struct native_ops {
    /*
     * Runs user code of st in the space until it leaves: general registers, RIP,
     * arithmetic flags with DF and AC, FS and GS base, vector state (st->xsave).
     * changes are made first. On the way back only what user code can change was
     * changed in st.
     */
    void (*run)(void *opaque, unsigned space, unsigned vcpu, struct vcpu_state *st,
                const struct native_change *changes, unsigned count, struct native_left *ret_left);

    /* Makes run() of the vCPU return soon, or not begin. Any thread, signal handlers too. */
    void (*kick)(void *opaque, unsigned vcpu);

    /* 0, or -ENOMEM: the host has no more mappings; what is mapped then is unknown: clear(). */
    int (*change)(void *opaque, unsigned space, const struct native_change *changes, unsigned count)
        MUST_CHECK;

    /* Nothing is mapped any more. -EIO: the space is lost. */
    int (*clear)(void *opaque, unsigned space) MUST_CHECK;

    bool (*is_lost)(void *opaque, unsigned space);

    /* The vCPU's thread, on which it is called, runs something else for now. */
    void (*rest)(void *opaque, unsigned vcpu);

    /*
     * Before a flush of the vCPU's TLB takes effect, by its thread: user code that was in run()
     * before goes on nowhere, or its space is lost. General registers only.
     */
    void (*confirm)(void *opaque, unsigned vcpu);
};

struct native {
    const struct native_ops *ops;
    void *opaque;
    unsigned space_count; /* 0: user code is translated */
    uint8_t *copies;      /* pages that stand for some of RAM's, for the engine to write */
    unsigned copy_count;  /* at most NATIVE_COPIES */
    bool cpuid_faults; /* CPUID leaves with NATIVE_OTHER; else it does what it does on the host */
};

#endif
