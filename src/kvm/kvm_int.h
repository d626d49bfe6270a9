/*
 * What the files of kvm/ share. Nobody outside includes it.
 *
 * struct kvm_cpu belongs to its vCPU thread, except the marked fields. struct
 * kvm_vm is set up by the creator; its routing table is under its lock.
 * KVM's interface: Documentation/virt/kvm/api.rst of Linux.
 */
#ifndef CORBEL_KVM_KVM_INT_H
#define CORBEL_KVM_KVM_INT_H

#include "base/thread.h"
#include "cpu/vcpu.h"
#include "cpu/x86.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define KVM_MAX_CPUS 255
#define KVM_IOAPIC_PINS 24
#define KVM_MAX_MSI_ROUTES 1024
#define KVM_MAX_MSRS 64
/* The instructions that the stepper may execute one after the other without any change to be
 * seen. A repeated string instruction changes its count each time, so this is a hang. */
#define KVM_STEP_STUCK_MAX 64
/* How many instructions one step may execute where KVM's emulator fails at each (SIMD code). */
#define KVM_STEP_BATCH_MAX 64
/* Ways out of the kernel that get a breakpoint: what four registers leave. */
#define KVM_USER_EXITS 3

struct kvm_vm {
    const struct accel_ops *ops;
    struct gmem *gmem;
    const struct accel_stepper_ops *stepper;
    enum vm_irqchip irqchip;
    bool emulated; /* no hardware behind KVM: kvm_user.c is at work */
    unsigned cpu_count;
    int kvm_fd;
    int vm_fd;
    size_t run_bytes; /* size of a vCPU's shared page(s) */
    bool manual_dirty;
    bool user_msrs; /* unknown MSRs come to us */
    bool msrs_filtered;

    struct mutex lock; /* LOCK_RANK_LEAF: routes and slots */
    struct kvm_irq_routing *routing;
    unsigned route_count;

    /* The chips as KVM made them, for irqchip_reset. */
    struct kvm_irqchip chips[3];
    struct kvm_pit_state2 pit;
    struct kvm_lapic_state lapic[KVM_MAX_CPUS];
    _Atomic int cpu_fds[KVM_MAX_CPUS]; /* -1: no such vCPU */

    _Atomic uint64_t stat_exits;
    _Atomic uint64_t stat_pio;
    _Atomic uint64_t stat_mmio;
    _Atomic uint64_t stat_kicks;
    _Atomic uint64_t stat_steps;
};

/* What the last return of kvm_cpu_run() left to be done. */
enum kvm_pending {
    KVM_PENDING_NONE,
    KVM_PENDING_PIO,    /* element `progress` of the string was handed out */
    KVM_PENDING_MMIO,   /* bytes from `progress` on were handed out */
    KVM_PENDING_MSR,    /* RDMSR or WRMSR */
    KVM_PENDING_DECODE, /* CR8 was reported first; the exit itself is still to be looked at */
    KVM_PENDING_STEP    /* the stepper waits for its answer */
};

/* Where user mode begins and ends, for kvm_user.c. */
struct kvm_user {
    bool active;            /* the state is at CPL 3: the stepper's turn */
    uint64_t fault_handler; /* the guest's page-fault handler, 0: none */
    uint64_t exits[KVM_USER_EXITS];
    unsigned exit_count;
    unsigned next_exit;  /* the one to be replaced */
    unsigned entries[3]; /* how often the stepper went on into the kernel, by kind of entry */
};

struct kvm_cpu {
    struct accel_vcpu base; /* first: ops, vm, index */
    struct kvm_vm *vm;
    struct vcpu_env env;
    struct vcpu_env step_env; /* env without interrupts: those are KVM's */
    int fd;
    struct kvm_run *run;
    pid_t tid;
    _Atomic bool in_kernel; /* kick() reads it */

    enum kvm_pending pending;
    unsigned progress;
    unsigned chunk;

    /* Without an in-kernel local APIC these are ours to remember. */
    enum x86_mp_state mp_state;
    uint64_t tsc_deadline;
    uint64_t apic_base;
    uint8_t cr8_seen;

    struct accel_debug debug;
    bool tsc_offset_attr; /* the kernel has KVM_VCPU_TSC_OFFSET */
    unsigned msr_count;
    uint32_t msrs[KVM_MAX_MSRS];

    void *stepper; /* created when first needed */
    struct vcpu_state *step_state;
    struct vcpu_state *step_before;
    unsigned stuck;
    struct accel_step step;
    uint64_t step_end_rip; /* where the last step ended */
    unsigned step_grown;   /* how many instructions it was to execute */

    struct kvm_user user;
};

static inline struct kvm_vm *kvm_vm_of(struct accel_vm *vm)
{
    return (struct kvm_vm *)(void *)vm;
}

static inline struct kvm_cpu *kvm_cpu_of(struct accel_vcpu *vcpu)
{
    return container_of(vcpu, struct kvm_cpu, base);
}

static inline bool kvm_vm_has_lapic(const struct kvm_vm *vm)
{
    return vm->irqchip != VM_IRQCHIP_USER;
}

/* ioctl that retries EINTR and EAGAIN-free: 0 or positive, or a negative errno. */
int kvm_ioctl(int fd, unsigned long request, void *arg) MUST_CHECK;

/* Opens /dev/kvm: the descriptor, or a negative errno with a sentence in err. */
int kvm_open(struct err *err) MUST_CHECK;

/* KVM_CHECK_EXTENSION: 0 when absent. */
int kvm_capability(int fd, int capability);

/* kvm_probe.c */
int kvm_probe(struct err *err) MUST_CHECK;

/* kvm_cpuid.c: what the table and KVM both have, given to the vCPU. */
int kvm_cpuid_apply(struct kvm_vm *vm, int cpu_fd, const struct cpuid_table *table) MUST_CHECK;

/* kvm_irq.c */
int kvm_irqchip_create(struct kvm_vm *vm, struct err *err) MUST_CHECK;
int kvm_irq_line(struct accel_vm *vm, unsigned gsi, bool level);
int kvm_send_msi(struct accel_vm *vm, uint64_t address, uint32_t data);
int kvm_ioeventfd(struct accel_vm *vm, bool is_pio, uint64_t address, unsigned size_bytes,
                  bool match, uint64_t data, int fd, bool add);
int kvm_msi_route(struct accel_vm *vm, unsigned gsi, uint64_t address, uint32_t data);
int kvm_irqfd(struct accel_vm *vm, unsigned gsi, int fd, bool add);
int kvm_irqchip_reset(struct accel_vm *vm);

/* kvm_state.c */
void kvm_state_probe_msrs(struct kvm_cpu *cpu);
int kvm_state_get(struct kvm_cpu *cpu, struct vcpu_state *ret_state) MUST_CHECK;
/* Sets what differs from before (NULL: everything). */
int kvm_state_set(struct kvm_cpu *cpu, const struct vcpu_state *state,
                  const struct vcpu_state *before) MUST_CHECK;

/* kvm_run.c */
int kvm_cpu_run(struct accel_vcpu *vcpu, struct vmexit *exit);
void kvm_cpu_kick(struct accel_vcpu *vcpu);

/* Completes a write exit inside KVM, so that its registers are those after the instruction. */
void kvm_cpu_settle(struct kvm_cpu *cpu);

/* kvm_step.c: one instruction by the stepper, or some. 0: done, 1: exit filled;
 * with KVM_PENDING_STEP, kvm_step_on() goes on when it is answered. Never a
 * negative errno: that becomes VMEXIT_ERROR (1). */
int kvm_step(struct kvm_cpu *cpu, struct vmexit *exit) MUST_CHECK;
int kvm_step_on(struct kvm_cpu *cpu, struct vmexit *exit) MUST_CHECK;

/* kvm_debug.c: -ENOSPC for more breakpoints than the CPU has registers. */
int kvm_set_debug(struct accel_vcpu *vcpu, const struct accel_debug *debug);
int kvm_debug_apply(struct kvm_cpu *cpu);
bool kvm_debugged(const struct kvm_cpu *cpu);
bool kvm_debug_stops(const struct kvm_cpu *cpu, uint64_t rip);

/* kvm_user.c, only where kvm_vm.emulated. Before KVM runs: is the page-fault gate in place? */
int kvm_user_watch(struct kvm_cpu *cpu) MUST_CHECK;
bool kvm_user_is_gate(const struct kvm_cpu *cpu, uint64_t rip);
/* A state comes from outside. */
void kvm_user_state_set(struct kvm_cpu *cpu, const struct vcpu_state *state);
/* A step begins: makes it end with user mode, where it is about that. */
void kvm_user_begin(struct kvm_cpu *cpu);
/* A step has come to its end: true when it goes on, with another end. */
bool kvm_user_next(struct kvm_cpu *cpu);
/* run() while user.active. True when exit is filled. */
bool kvm_user_run(struct kvm_cpu *cpu, struct vmexit *exit);

#endif
