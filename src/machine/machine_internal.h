/*
 * What the files of machine/ share; for them only.
 *
 * machine.c: life cycle. vcpu_thread.c: what a vCPU's thread does. pc.c: the
 * hardware, built in reading order. drives.c: its disks. gdbstub.c: the debugger's door. pc_irq.c: how its interrupts are wired.
 * cpus.c, memory.c: which of its CPUs are there, and how much memory.
 */
#ifndef CORBEL_MACHINE_MACHINE_INTERNAL_H
#define CORBEL_MACHINE_MACHINE_INTERNAL_H

#include "base/process.h"
#include "base/thread.h"
#include "bus/bus.h"
#include "bus/irq.h"
#include "cpu/cpuid.h"
#include "dev/dev.h"
#include "machine/machine.h"

#include <stdatomic.h>

struct alarm;
struct boot;
struct chardev;
struct gdbstub;
struct i8259;
struct ioapic;
struct lapic;
struct lapic_set;
struct machine_drive;
struct netdev;
struct pci_host;
struct throttle;
struct virtio_dev;

#define MACHINE_MAX_VIRTIO 8 /* besides disks */

/* Where a vCPU's thread is, for whoever wants its attention. */
enum vcpu_place {
    VCPU_OUTSIDE, /* in our code: it looks by itself before it goes on */
    VCPU_GUEST,   /* in accel run(): accel kick() */
    VCPU_ASLEEP   /* waiting on its futex */
};

/* Work that others ask of a vCPU's thread (bits of machine_vcpu.requests). */
#define VCPU_REQUEST_INIT 0x1u
#define VCPU_REQUEST_SIPI 0x2u
#define VCPU_REQUEST_NMI 0x4u
#define VCPU_REQUEST_LEAVE 0x8u /* the guest let it go: as after power-on */
#define VCPU_REQUEST_COME 0x10u /* it is there now: look around */

/* Counted by the vCPU's own thread. */
struct vcpu_stats {
    struct latency exits[MACHINE_EXIT_KINDS]; /* from leaving guest code until it is answered */
    _Atomic uint64_t halts, halted_ns;
    _Atomic pid_t tid;                  /* its thread's */
    _Atomic pid_t guest_pid, guest_tid; /* of who runs the guest's code for it; 0: itself */
};

/* CPU time in spaces, which take what they have spent along when they end. */
struct machine_spent {
    struct thread_times before; /* by those that have ended */
    struct thread_times last;   /* by those that lived when it was counted last */
};

struct machine_vcpu {
    struct machine *machine;
    unsigned index;
    pthread_t thread;
    bool has_thread;
    struct accel_vcpu *accel; /* from its thread's start to its end */
    struct err error;         /* why it could not be created */
    struct vcpu_env env;
    struct cpuid_table cpuid;
    struct lapic *lapic;      /* NULL when the accelerator has it */
    struct alarm *apic_alarm; /* its timer; NULL likewise */

    _Atomic uint32_t place; /* enum vcpu_place */
    _Atomic uint32_t wake;  /* futex: grows with every kick */
    _Atomic uint32_t requests;
    _Atomic uint8_t sipi_vector;
    struct vcpu_stats stats;

    /* Its thread's. */
    struct vmexit exit;
    bool waits_for_sipi;
    bool owes_completion; /* an answered exit that run() has not taken yet */
    unsigned vain_halts;  /* in a row, with an interrupt pending each time */
};

/* What has been asked of the machine and not yet happened (bits of machine.wants). */
#define WANT_PAUSE 0x1u
#define WANT_END 0x2u
#define WANT_RESET 0x4u
#define WANT_EXCLUSIVE 0x8u /* somebody changes the hardware: machine_exclusive_begin() */

/* A virtio console or named port, and where its bytes go. */
struct machine_port {
    struct machine *machine;
    struct chardev *chardev;
    struct virtio_dev *dev;
};

struct machine {
    struct machine_config config; /* pointers in it are not used after creation */

    struct mutex mutex; /* LOCK_RANK_MACHINE: to the next blank line */
    pthread_cond_t changed;
    enum machine_state state;
    unsigned wants;
    bool quitting;     /* vCPU threads leave */
    bool is_resetting; /* a vCPU's thread resets the hardware */
    unsigned parked;
    unsigned created; /* vCPU threads that have tried to create their vCPU */
    unsigned resets;
    unsigned cpus_wanted;
    uint32_t cpus_leaving; /* the guest was asked to let them go */
    bool cpus_refused;
    uint64_t memory_wanted;
    enum machine_end end;
    uint8_t debug_exit_code;
    struct err end_error;
    struct err pause_reason;

    _Atomic bool is_throttled;     /* vCPU threads rest: throttle.c */
    _Atomic uint64_t rests;        /* times that they had to */
    struct throttle *throttle;     /* NULL: no cap so far; the loop's thread */
    _Atomic bool attention;        /* vCPU threads look at the above before they run on */
    _Atomic uint32_t cpus_present; /* changed with the mutex held */
    _Atomic unsigned size_changes;
    _Atomic uint64_t memory_plugged;  /* beyond config.memory_bytes */
    _Atomic uint64_t memory_given_up; /* asked of the balloon, to have less than at the start */
    _Atomic uint64_t balloon_asked;   /* beyond that */
    int event_fd;
    unsigned changes;               /* of state, since creation */
    _Atomic uint64_t balloon_bytes; /* as the guest said last */
    machine_debug_fn debug_fn;
    void *debug_opaque;

    const struct accel_ops *accel;
    char engine_reason[sizeof(((struct err *)0)->text)];
    struct accel_vm *vm;
    enum vm_irqchip irqchip;

    /* The hardware, in order of creation. */
    struct gmem *gmem;
    struct boot *boot;
    struct loop *loop;
    pthread_t loop_thread;
    bool has_loop_thread;
    struct bus *bus;
    struct irq_router irq;
    struct irq_router ioapic_router;
    uint64_t tsc_hz; /* of the host; guests are told cpuid_tsc_hz() */
    struct lapic_set *lapics;
    struct i8259 *pic;
    _Atomic bool pic_output;
    struct ioapic *ioapic;
    struct pit_i8254 *pit;
    struct rtc_mc146818 *rtc;
    struct kbd_i8042 *kbd;
    struct acpi_pm *pm;
    struct hotplug *hotplug;     /* of PCI */
    struct hotplug *cpu_hotplug; /* NULL when all CPUs are there for ever */
    struct debug_exit *debug_exit;
    struct chardev *serial;
    struct uart_16550 *uart;
    struct pci_host *pci;
    struct gdbstub *gdb;      /* NULL without a debugger's port */
    struct mutex drives_lock; /* LOCK_RANK_DRIVES: the next line, once the machine has started */
    struct machine_drive *drives[MACHINE_MAX_DISKS]; /* changed while the machine is exclusive */
    _Atomic uint32_t ejected;                        /* PCI slots whose disks the guest let go */
    _Atomic unsigned disk_changes;
    struct netdev *netdev;
    struct machine_port console, agent;
    _Atomic bool is_agent_there;
    struct virtio_dev *balloon;
    struct virtio_dev *plugged; /* memory that comes and goes; NULL without */
    struct virtio_dev *virtio[MACHINE_MAX_VIRTIO];
    unsigned virtio_count;

    /* Of machine_count(), the caller's thread. */
    uint64_t started_ns;
    struct machine_spent spent[MACHINE_MAX_CPUS];
    uint64_t asked_ns, asked_run_ns; /* when the guest's own numbers were asked for last */

    struct machine_vcpu vcpus[MACHINE_MAX_CPUS];
};

/* pc.c. Everything from memory to devices; on failure pc_destroy() frees what there is. */
int pc_create(struct machine *machine, struct err *err) MUST_CHECK;
void pc_destroy(struct machine *machine);
/* Starts the threads of disks and network. */
int pc_start(struct machine *machine, struct err *err) MUST_CHECK;
/* As after power-on, kernel loaded. No vCPU runs; loops may. */
int pc_reset(struct machine *machine, struct err *err) MUST_CHECK;
/* The state in which a vCPU begins. */
void pc_initial_state(const struct machine *machine, unsigned cpu, struct vcpu_state *ret_state);

/* drives.c. The disks given at creation; their threads; all of them. */
int drives_create(struct machine *machine, struct err *err) MUST_CHECK;
int drives_start(struct machine *machine, struct err *err) MUST_CHECK;
void drives_stop(struct machine *machine);
void drives_destroy(struct machine *machine);
void drives_reset(struct machine *machine);
/* Repeats what failed on the host. */
void drives_retry(struct machine *machine);
/* Sum over all disks; how many there are. */
unsigned drives_stats(struct machine *machine, struct block_stats *ret_stats);

extern const struct hotplug_ops drives_hotplug_ops;

/* pc_irq.c. Chips for the machine's kind of irqchip, and the routers. */
int pc_irq_create(struct machine *machine, struct err *err) MUST_CHECK;
void pc_irq_destroy(struct machine *machine);
int pc_irq_reset(struct machine *machine) MUST_CHECK;
/* What a vCPU needs to ask for interrupts. */
void pc_irq_vcpu_env(struct machine *machine, struct machine_vcpu *vcpu);

/* cpus.c. Which are there at first, and after a reset; the mask of them. */
void cpus_init(struct machine *machine);
uint32_t cpus_reset(struct machine *machine);
void cpus_status_locked(const struct machine *machine, struct machine_status *status);
bool cpu_is_present(const struct machine *machine, unsigned index);

extern const struct hotplug_ops cpus_hotplug_ops;

/* memory.c. */
uint64_t memory_pluggable_bytes(const struct machine_config *config);
void memory_on_plugged(void *opaque, uint64_t plugged_bytes);
void memory_status_locked(const struct machine *machine, struct machine_status *status);

/* throttle.c. Percent of the CPUs' time, 0 for no cap: the loop's thread, or before it starts. */
int throttle_set(struct machine *machine, unsigned percent) MUST_CHECK;
/* As accel_ops.spare_cpu, where there is one. */
void throttle_spare(struct machine *machine, bool spares);
/* After the loop has ended. */
void throttle_destroy(struct machine *machine);

/* vcpu_thread.c. */
void *vcpu_thread_main(void *opaque);
/* Makes the vCPU's thread look around. Any thread, no locks. */
void vcpu_kick(struct machine_vcpu *vcpu);
void vcpu_request(struct machine_vcpu *vcpu, uint32_t request);

/* machine.c, for vCPU threads and devices. Any thread. */
void machine_request_end(struct machine *machine, enum machine_end end, uint8_t code,
                         const struct err *error);
/*
 * Keeps every vCPU out of guest code and devices, and resets away, without a
 * change of state that anybody sees, until the end. Any thread but a vCPU's.
 */
void machine_exclusive_begin(struct machine *machine);
void machine_exclusive_end(struct machine *machine);
void machine_request_reset(struct machine *machine);
/* reason: NULL when somebody asked for it. */
void machine_request_pause(struct machine *machine, const struct err *reason);
/* Parks the calling vCPU's thread while the machine is not running; false: leave. */
bool machine_park(struct machine *machine, struct machine_vcpu *vcpu);

#endif
