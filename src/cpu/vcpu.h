/*
 * The CPU contract: what an accelerator (KVM or the software engine) offers
 * and what it asks of the machine. No device knows which one runs.
 *
 * A vCPU is created, run and destroyed by one thread, its vCPU thread. run()
 * executes guest code until something needs the machine and returns it as data
 * in a struct vmexit. For a read exit (PIO in, MMIO load, MSR read) the caller
 * fills vmexit.data and calls run() again with the same struct, which completes
 * the instruction. State may be read and written whenever run() is not
 * executing and no read exit is unanswered.
 *
 * Interrupts: with VM_IRQCHIP_USER the accelerator asks vcpu_env.intr for
 * vectors when the guest can take one; with an in-kernel irqchip the machine
 * calls the accel_ops irq members instead.
 *
 * With VM_IRQCHIP_USER the local APIC is the machine's, and with it the MSRs
 * APIC_BASE, TSC_DEADLINE and 0x800 to 0x8ff: the accelerator reports them as
 * VMEXIT_MSR_READ and VMEXIT_MSR_WRITE without looking at the value, and the
 * page at APIC_BASE as VMEXIT_MMIO. apic_base and tsc_deadline in vcpu_state
 * are then stored and returned, never interpreted.
 */
#ifndef CORBEL_CPU_VCPU_H
#define CORBEL_CPU_VCPU_H

#include "base/compiler.h"
#include "base/error.h"
#include "cpu/x86.h"
#include "mem/gmem.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct accel_vm;
struct cpuid_table;
struct lapic_state; /* irqchip/lapic.h */

enum vmexit_reason {
    VMEXIT_INTR, /* kicked, or nothing to say: call run() again when ready */
    VMEXIT_PIO,
    VMEXIT_MMIO,
    VMEXIT_MSR_READ, /* an MSR the accelerator does not own (x2APIC ...) */
    VMEXIT_MSR_WRITE,
    VMEXIT_HLT,      /* halted with interrupts on; run() again after an interrupt is pending */
    VMEXIT_SHUTDOWN, /* triple fault */
    VMEXIT_EOI,      /* split irqchip: EOI broadcast of eoi.vector */
    VMEXIT_DEBUG,    /* breakpoint, watchpoint or single step asked for by guest_debug */
    VMEXIT_TPR,      /* CR8 was written (VM_IRQCHIP_USER): state.cr8 is new */
    VMEXIT_RESET,    /* split irqchip: INIT reached the bootstrap processor */
    VMEXIT_ERROR     /* the accelerator cannot go on; error.text says why, and its code
                        -EOWNERDEAD that the process which ran guest code is dead */
};

struct vmexit {
    enum vmexit_reason reason;
    union {
        struct {
            uint16_t port;
            uint8_t size_bytes; /* 1, 2 or 4 */
            bool is_write;
            uint32_t data; /* written value, or filled by the caller */
        } pio;
        struct {
            uint64_t gpa;
            uint8_t size_bytes; /* 1, 2, 4 or 8; never crosses a page */
            bool is_write;
            uint64_t data;
        } mmio;
        struct {
            uint32_t index;
            bool fault; /* set by the caller: the guest gets #GP(0) */
            uint64_t data;
            uint64_t tsc_offset; /* TSC_DEADLINE: guest TSC minus host TSC at this exit */
        } msr;
        struct {
            uint8_t vector;
        } eoi;
        struct {
            uint8_t cr8; /* the value written */
        } tpr;
        struct {
            uint64_t rip;
            uint64_t dr6;            /* SDM 3B 18.2.3: which condition */
            bool is_breakpoint_insn; /* INT3 at rip */
        } debug;
        struct err error;
    };
};

/* How the accelerator asks for external interrupts. Called on the vCPU thread. */
struct vcpu_intr_ops {
    /* True when a vector is deliverable at the current TPR. Cheap; no lock waits. */
    bool (*pending)(void *opaque);
    /* Acknowledges (INTA) and returns the vector, or -1 when it vanished. */
    int (*acknowledge)(void *opaque);
};

/* What the machine gives to a vCPU. All outlives it. */
struct vcpu_env {
    const struct vcpu_intr_ops *intr; /* full irqchip: NULL; split: the PIC's vectors */
    void *opaque;
    const struct cpuid_table *cpuid; /* the leaves this vCPU answers (APIC id differs) */
};

struct accel_vcpu {
    const struct accel_ops *ops;
    struct accel_vm *vm;
    unsigned index;
};

enum vm_irqchip {
    VM_IRQCHIP_USER,  /* local APIC and I/O APIC are ours */
    VM_IRQCHIP_SPLIT, /* local APIC in the accelerator, PIC and I/O APIC ours */
    VM_IRQCHIP_FULL   /* all in the accelerator */
};

/* How far one run() of a stepper goes. */
enum accel_step_until {
    ACCEL_STEP_MAX,        /* until max only */
    ACCEL_STEP_LEAVE_USER, /* or until CPL is not 3 */
    ACCEL_STEP_ENTER_USER  /* or until CPL is 3 */
};

struct accel_step {
    enum accel_step_until until;
    uint64_t max;        /* the value of done at which it ends */
    const uint8_t *stop; /* or when this becomes non-zero, by any thread; NULL: never */
    uint64_t done;       /* in and out: instructions, and deliveries of pending events */
    uint64_t last_rip;   /* out: where the last of them was */
};

/*
 * Executes instructions on a state, for an accelerator that meets some it
 * cannot execute: KVM where no hardware stands behind it. One stepper per vCPU,
 * on its thread. run() returns 0 when it has gone as far as step says, 1 when
 * exit was filled: the caller answers it and calls again with the same
 * arguments; a negative errno when it cannot either.
 */
struct accel_stepper_ops {
    int (*create)(struct gmem *gmem, const struct vcpu_env *env, struct err *err,
                  void **ret_stepper);
    void (*destroy)(void *stepper); /* accepts NULL */
    int (*run)(void *stepper, struct vcpu_state *state, struct accel_step *step,
               struct vmexit *exit);
};

struct native;

/* When the software engine runs user code natively (engine/native.h). */
enum accel_native {
    ACCEL_NATIVE_WHERE_IT_PAYS,
    ACCEL_NATIVE_NEVER,
    ACCEL_NATIVE_ALWAYS /* where it can at all: for tests */
};

struct accel_vm_config {
    struct gmem *gmem;                       /* outlives the VM */
    const struct accel_stepper_ops *stepper; /* NULL: such an instruction ends the VM */
    unsigned vcpu_count;
    enum vm_irqchip irqchip;
    bool emulated;                 /* KVM: its probe said so; with VM_IRQCHIP_USER and a stepper,
                                * that one runs user mode */
    bool reference_only;           /* software engine: one instruction at a time */
    enum accel_native native_when; /* software engine */
    bool check;                    /* software engine: reference and translator in lock step */
    uint64_t code_cache_bytes;     /* software engine: 0 means its default */
    /* Software engine: memory for the vCPU of the calling thread, as far from the thread's FS base
     * in each of them, zero, freed by nobody. NULL: kernel code is not mirrored (engine/mirror.h). */
    void *(*vcpu_storage)(void);
    const struct native *native; /* software engine: engine/native.h; NULL: all is translated */
    /* (optional) The process that ran guest code is dead: no run() succeeds any more. Any
     * thread, at most once, not after vm_destroy(). */
    void (*died)(void *opaque, const struct err *why);
    void *opaque;
};

struct accel_debug {
    bool single_step;
    unsigned breakpoint_count; /* instruction breakpoints by guest-virtual address */
    uint64_t breakpoints[64];
};

struct accel_stat {
    const char *name; /* static storage */
    uint64_t value;
};

struct accel_caps {
    bool irqchip_full;
    bool irqchip_split;
    bool ioeventfd;
    bool irqfd;
    bool dirty_log;
};

/*
 * One accelerator. Members marked (optional) may be NULL; the machine then does
 * the work itself. All return 0 or a negative errno unless said otherwise.
 */
struct accel_ops {
    const char *name; /* "kvm" or "soft" */

    /* Is it usable on this host, and at hardware speed? 0, or -errno with the reason in err. */
    int (*probe)(struct err *err);
    void (*caps)(struct accel_caps *ret_caps);

    int (*vm_create)(const struct accel_vm_config *config, struct err *err,
                     struct accel_vm **ret_vm);
    void (*vm_destroy)(struct accel_vm *vm); /* after all its vCPUs; accepts NULL */

    /* On the thread that will run it. */
    int (*vcpu_create)(struct accel_vm *vm, unsigned index, const struct vcpu_env *env,
                       struct err *err, struct accel_vcpu **ret_vcpu);
    void (*vcpu_destroy)(struct accel_vcpu *vcpu);

    int (*run)(struct accel_vcpu *vcpu, struct vmexit *exit);
    /* Makes a current or the next run() return VMEXIT_INTR soon, and makes a
     * run() look again for interrupts. Any thread, async-signal-safe. */
    void (*kick)(struct accel_vcpu *vcpu);

    /* apic_base and tsc_deadline are the accelerator's APIC's where it has one. */
    int (*get_state)(struct accel_vcpu *vcpu, struct vcpu_state *ret_state);
    int (*set_state)(struct accel_vcpu *vcpu, const struct vcpu_state *state);
    int (*inject_nmi)(struct accel_vcpu *vcpu);

    /* Guest-virtual to guest-physical as the vCPU's tables say; -EFAULT when unmapped. vCPU stopped. */
    int (*translate)(struct accel_vcpu *vcpu, uint64_t va, gpa_t *ret_gpa);
    int (*set_debug)(struct accel_vcpu *vcpu, const struct accel_debug *debug);

    /* (optional) in-kernel irqchip: a GSI's level, and one MSI message. Any thread. */
    int (*irq_line)(struct accel_vm *vm, unsigned gsi, bool level);
    int (*send_msi)(struct accel_vm *vm, uint64_t address, uint32_t data);
    /* (optional) fd is signalled when the guest writes; data matched if match is true. */
    int (*ioeventfd)(struct accel_vm *vm, bool is_pio, uint64_t address, unsigned size_bytes,
                     bool match, uint64_t data, int fd, bool add);
    /* (optional) an eventfd that raises a MSI route; gsi from msi_route(). */
    int (*msi_route)(struct accel_vm *vm, unsigned gsi, uint64_t address, uint32_t data);
    int (*irqfd)(struct accel_vm *vm, unsigned gsi, int fd, bool add);
    /* (optional) CPU time is what the guest has little of: nothing spins to be sooner at its
     * end, from now on or, with false, no more. Any thread. */
    void (*spare_cpu)(struct accel_vm *vm, bool spares);
    /* (optional) in-kernel chips as after power-on; no vCPU runs. Any thread. With a split
     * irqchip, EOI exits come for vectors of the msi_route()s of GSI 0 to 23, the pins; without
     * msi_route for all whose message was level-triggered. */
    int (*irqchip_reset)(struct accel_vm *vm);

    /* (optional) split irqchip: all of a vCPU's local APIC; it is stopped. A state from anywhere
     * is made sound. */
    int (*get_apic)(struct accel_vcpu *vcpu, struct lapic_state *ret_state);
    int (*set_apic)(struct accel_vcpu *vcpu, const struct lapic_state *state);

    /* (optional) guest writes, in the layout of gmem_dirty_log_fetch. */
    int (*dirty_log_start)(struct accel_vm *vm);
    int (*dirty_log_stop)(struct accel_vm *vm);
    int (*dirty_log_fetch)(struct accel_vm *vm, uint64_t *bitmap);

    /* (optional) The thread of another process that runs the guest's code for this vCPU's. */
    void (*vcpu_thread)(struct accel_vcpu *vcpu, pid_t *ret_pid, pid_t *ret_tid);

    /* Fills at most max entries; returns how many there are. Any thread. */
    unsigned (*stats)(struct accel_vm *vm, struct accel_stat *ret_stats, unsigned max);
};

/* The registry: "kvm" and "soft" live in machine/accel_table.c. */

#endif
