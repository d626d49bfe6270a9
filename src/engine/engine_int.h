/*
 * What the files of the software engine share. Nobody outside engine/ includes it.
 *
 * struct engine_vcpu belongs to its vCPU thread; the atomics may be touched by
 * others. The first part is reached by translated code through the host's GS
 * base, so its offsets are asserted in translate.c.
 */
#ifndef CORBEL_ENGINE_ENGINE_INT_H
#define CORBEL_ENGINE_ENGINE_INT_H

#include "base/thread.h"
#include "cpu/cpuid.h"
#include "cpu/vcpu.h"
#include "cpu/x86.h"
#include "engine/decode.h"
#include "engine/mmu.h"
#include "engine/native_user.h"
#include "engine/translate_hot.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct engine_vm;
struct engine_check;
struct hostexec;
struct mirror;
struct unit;
struct translator;   /* per VM: code cache, blocks by physical page (code_cache.h) */
struct interp_cache; /* interp.c */

/* The exception that the current instruction raises. */
struct engine_fault {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t cr2; /* #PF */
    uint64_t dr6; /* #DB: bits to set */
};

/*
 * Device accesses of the instruction in hand. An instruction that reaches MMIO
 * or a port stops with ENGINE_EXIT; when the machine has answered, it is started
 * again and finds its answered accesses here, in order, so each happens once.
 * Cleared when the instruction ends or faults.
 */
#define ENGINE_IO_LOG_MAX 64
struct engine_io_log {
    unsigned done;   /* answered accesses */
    unsigned cursor; /* next one to hand out on this run of the instruction */
    uint64_t faults; /* bit i: access i was refused (an MSR): the guest gets #GP(0) */
    uint64_t data[ENGINE_IO_LOG_MAX];
};

/* Instructions that faulted in the mirror without being helped there: pairs, hashed. */
#define REFUSED_SITES 256u
struct refused_site {
    uintptr_t guest; /* host address of the guest's code */
    uint32_t count;
};

struct engine_vcpu {
    struct accel_vcpu base; /* first: ops, vm, index */
    struct engine_vm *vm;
    _Atomic uint32_t kick;        /* leave run() soon, or look for interrupts */
    _Atomic uint32_t *kick_count; /* counts the kick signals; NULL: nobody asks */

    struct vcpu_state st ALIGNED(64);
    struct mmu_tlb tlb[MMU_MODE_COUNT];
    struct translate_hot hot;

    const struct vcpu_env *env;
    struct engine_fault fault;
    struct vmexit *exit;  /* of the run() in progress */
    bool exit_unanswered; /* a read or write exit was returned; io.data[io.done] waits */
    struct engine_io_log io;
    struct hostexec *hostexec;
    struct accel_debug debug;
    pid_t process; /* for tgkill() to the thread that created it and runs it */
    pid_t thread;
    uint64_t stat_interpreted; /* instructions */
    uint64_t stat_exits;
    uint64_t stat_exceptions;
    uint64_t stat_interrupts;
    uint64_t stat_tlb_fills;
    uint64_t stat_tlb_flushes;
    _Atomic uint64_t sync_epoch; /* see translate.c: handshake of mmu_protect_code_page */
    /* Pages that left the write TLB since the unit began, hashed to a bit each: it may have
     * checked them before. Its own thread writes, others read. */
    _Atomic uint64_t evicted_writes;
    uint64_t late_start; /* guest-physical: code written when this vCPU could not wait for */
    uint64_t late_end;   /* the lock; an empty range when equal */

    /* The translator's jump cache is dropped through this on every flush. NULL in
     * reference mode. Runs with guest vector registers live: general registers only. */
    void (*flush_hook)(struct engine_vcpu *v, enum mmu_flush what, uint64_t va);
    struct mmu_tlb_index tlb_index[MMU_MODE_COUNT];
    unsigned context; /* the current one of contexts */
    uint64_t context_clock;
    struct mmu_context contexts[MMU_CONTEXTS];
    uint64_t large_gib; /* bit (va >> 30) % 64: that GiB may have pieces of large pages cached */
    struct mmu_fetch_entry fetch[MMU_FETCH_SETS];
    uint64_t paging_reserved;    /* bits of a paging entry at and above MAXPHYADDR, below 52 */
    bool vendor_amd;             /* CPUID says so: SYSCALL outside 64-bit mode exists */
    bool intr_check;             /* env->intr may have something: ask when the guest can take it */
    bool data_breakpoints;       /* DR7 enables at least one data breakpoint */
    uint64_t pending_dr6;        /* data breakpoints that the instruction in hand has met */
    struct vmexit last_exit;     /* as run() returned it */
    bool leave;                  /* the instruction in hand is done, and *exit was filled by it */
    uint64_t next_rip;           /* where the instruction in hand ends; branches change it */
    struct interp_cache *icache; /* decoded instructions */
    struct refused_site refused_sites[REFUSED_SITES];
    struct unit *retranslate;   /* after this entry: an instruction of it is to be checked */
    bool mirror_off;            /* the tables lack what the mirror holds: interpret */
    bool mirror_owes;           /* it is to be looked at as a whole, once they do not */
    _Atomic bool mirror_used;   /* the tables agree with what the mirror holds */
    struct native_vcpu native;  /* native_user.h */
    struct engine_check *check; /* lock step of translator and interpreter, else NULL */
};

/* One piece of RAM, so that the page walk needs no call out of the engine. */
struct engine_ram {
    uint64_t gpa;
    uint64_t size_bytes;
    uint8_t *host;
    _Atomic uint8_t *flags; /* one byte per page: GMEM_PAGE_* */
};

#define ENGINE_MAX_VCPUS 64

struct engine_vm {
    const struct accel_ops *ops; /* accel_vm is opaque: this is ours */
    struct gmem *gmem;
    bool reference_only;
    bool check;
    struct mutex lock;      /* LOCK_RANK_ENGINE: translator tables, code page marks */
    atomic_flag split_lock; /* held while a LOCKed operand across cache lines is worked on */
    struct translator *translator;
    void *(*vcpu_storage)(void);
    int32_t vcpu_from_fs;  /* with a mirror: where a vCPU's thread has its struct engine_vcpu */
    struct mirror *mirror; /* mirror.h; NULL: kernel code goes through the software TLB, too */
    struct native_user *native_user; /* native_user.h; NULL: user code is translated */
    struct engine_ram ram[GMEM_MAX_REGIONS];
    unsigned ram_count;
    _Atomic bool dirty_logging;
    uint64_t clock_host_tsc; /* kvmclock: host TSC at which its system time was 0 */
    uint64_t clock_wall_ns;  /* CLOCK_REALTIME at that moment */
    unsigned vcpu_count;
    _Atomic(struct engine_vcpu *) vcpus[ENGINE_MAX_VCPUS];
};

/* interp.c: executes exactly one instruction at st.rip (a REP string instruction:
 * one iteration or a bounded run of them), or delivers what st.events holds
 * pending first. 0: go on. ENGINE_EXIT: *v->exit filled. Faults are delivered
 * inside; a triple fault becomes VMEXIT_SHUTDOWN. FPU state is in st.xsave. */
int interp_step(struct engine_vcpu *v) MUST_CHECK;

struct interp_cache *interp_cache_create(void); /* freed with free(); NULL: no memory */

/* Executes the instruction at st.rip when may_run agrees, without delivering what it raises:
 * 0, with a copy of it in ret_insn; ENGINE_FAULT or ENGINE_EXIT when it was not completed. */
int interp_try(struct engine_vcpu *v, bool (*may_run)(const struct insn *insn),
               struct insn *ret_insn) MUST_CHECK;

/* The machine answered (or has done) the access of exit: the log gets it. */
void interp_io_answer(struct engine_vcpu *v, const struct vmexit *exit);
void interp_io_clear(struct engine_vcpu *v);

/* engine.c: asks env->intr and delivers when the guest can take an interrupt. 0, ENGINE_EXIT. */
int engine_take_interrupt(struct engine_vcpu *v) MUST_CHECK;

/* exception.c: delivers through the IDT (SDM 3A 6.12-6.14), with double and triple faults. */
int exception_deliver(struct engine_vcpu *v, const struct engine_fault *fault) MUST_CHECK;
int interrupt_deliver(struct engine_vcpu *v, uint8_t vector, bool is_soft) MUST_CHECK;

/* Fills v->fault and returns ENGINE_FAULT. */
int engine_raise(struct engine_vcpu *v, enum x86_vector vector);
int engine_raise_error(struct engine_vcpu *v, enum x86_vector vector, uint32_t error);

/* A device access of the current instruction: 0 with the answer, or ENGINE_EXIT. */
int engine_io(struct engine_vcpu *v, enum vmexit_reason reason, uint64_t address,
              unsigned size_bytes, bool is_write, uint64_t *data) MUST_CHECK;

/* code_cache.c: drops what was made from [gpa, gpa + len). Any thread. */
void engine_invalidate_code(struct engine_vm *vm, gpa_t start, uint64_t len);

#endif
