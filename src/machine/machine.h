/*
 * One virtual machine: a PC with its memory, vCPUs and devices.
 *
 * The caller ("main", one thread) owns the machine: it creates, starts and
 * destroys it, and all functions are for that thread unless they say "any
 * thread". The machine runs threads of its own: "vcpu/N", one per vCPU, which
 * execute guest code and call devices; and "io/0", the event loop of timers,
 * serial port, disks and network.
 *
 *   CREATED --start--> RUNNING <--pause/resume--> PAUSED
 *      any state --power off, stop, crash, failure--> ENDED
 *
 * ENDED is final: devices are quiet, vCPU threads have left guest code, memory
 * and registers can still be read. Whenever the state or the
 * balloon changes, machine_event_fd() becomes readable; machine_status() says
 * what happened.
 * Nothing the guest does ends the process or blocks the caller.
 */
#ifndef CORBEL_MACHINE_MACHINE_H
#define CORBEL_MACHINE_MACHINE_H

#include "base/compiler.h"
#include "base/error.h"
#include "base/latency.h"
#include "block/block.h"
#include "block/job.h"
#include "cpu/vcpu.h"
#include "cpu/x86.h"
#include "mem/gmem.h"

#include <stdbool.h>
#include <stdint.h>

#define MACHINE_MAX_CPUS 16
#define MACHINE_MAX_DISKS 16
#define MACHINE_MAX_DISK_QUEUES 8
#define MACHINE_MAX_FORWARDS 32
#define MACHINE_MAX_STATS 192
#define MACHINE_MIN_MEMORY_BYTES (16ull << 20)
#define MACHINE_MAX_MEMORY_BYTES (256ull << 30)

struct machine;
struct loop;

enum machine_engine {
    MACHINE_ENGINE_AUTO, /* KVM where it runs guests at hardware speed, else our own */
    MACHINE_ENGINE_KVM,
    MACHINE_ENGINE_SOFT
};

/* What a reset (machine_reset, the guest's reset register, a triple fault that
 * resets) or a crash (triple fault) does. */
enum machine_policy {
    MACHINE_POLICY_DEFAULT, /* on_reset: RESET; on_crash: STOP */
    MACHINE_POLICY_RESET,   /* start again from the kernel, as after power-on */
    MACHINE_POLICY_STOP     /* the machine ends */
};

#define MACHINE_DISK_ID_BYTES 32

/* One disk: path, or an open descriptor. */
struct machine_disk {
    const char *path; /* names the disk in messages even when fd is given */
    int fd;           /* -1: open path. Otherwise the machine takes it over on success */
    bool read_only;
    const char *serial; /* at most 20 bytes shown to the guest; NULL: none */
    const char *id;     /* names the disk in commands; NULL: "disk" and its number */
    enum block_format format;
    const char *backing_dir; /* below which the image may name backing images; NULL: nowhere */
    bool is_direct;          /* past the host's page cache */
    enum io_backend aio;
    unsigned queues;     /* 0: one */
    unsigned io_threads; /* 0: one */
    bool pause_on_error; /* the machine pauses, with a reason; resuming tries again */
    struct limit_config limits;
};

/* A disk as it is now. */
struct machine_disk_info {
    char id[MACHINE_DISK_ID_BYTES];
    char path[1024];
    enum block_format format;
    bool read_only;
    bool is_leaving; /* the guest has been asked to let it go */
    uint64_t size_bytes;
    enum io_backend aio;
    unsigned queues, io_threads;
    struct limit_config limits;
    struct block_stats stats;
    int stopped_error; /* why its requests wait: a negative errno, or 0 */
    bool has_job;      /* running, or the last one */
    struct block_job_info job;
    char job_file[1024]; /* where the disk goes on when the job is done; empty: where it is */
};

enum machine_job_action {
    MACHINE_JOB_PAUSE,
    MACHINE_JOB_RESUME,
    MACHINE_JOB_CANCEL,
    MACHINE_JOB_SPEED /* takes bytes per second; 0: no limit */
};

/* A host port whose connections reach a guest port. */
struct machine_forward {
    uint32_t host_address; /* IPv4, host byte order; 0x7f000001 for loopback only */
    uint16_t host_port;    /* 0: any free one; machine_forward_port() tells */
    uint16_t guest_port;
    bool is_udp;
};

struct machine_net {
    bool is_present;
    uint8_t mac[6]; /* all zero: the default 52:54:00:12:34:56 */
    unsigned forward_count;
    struct machine_forward forwards[MACHINE_MAX_FORWARDS];
    struct limit_config limits; /* of each direction */
    bool is_tap;                /* on a wire of the host's, in place of the user-mode network */
    bool is_guarded;            /* with mac: it sends as nobody else (netdev/netdev.h) */
    uint16_t tap_mtu;
    int tap_fd; /* the caller's; the machine has a copy */
};

/*
 * Where a console's bytes go. Descriptors are the machine's from a successful
 * create on, unless keep_fds. A full or slow peer never blocks the guest: what
 * does not fit in a bounded buffer waits for a while as on a real line, then
 * is dropped and counted.
 */
enum machine_chardev_kind {
    MACHINE_CHARDEV_NONE,  /* output vanishes, no input */
    MACHINE_CHARDEV_FDS,   /* in_fd and out_fd; either may be -1, both may be the same */
    MACHINE_CHARDEV_LISTEN /* listen_fd: a listening stream socket; one peer at a time */
};

struct machine_chardev {
    enum machine_chardev_kind kind;
    int in_fd;
    int out_fd;
    int listen_fd;
    bool keep_fds; /* stdio: neither closed nor owned */
    bool is_logged;
    int log_fd; /* with is_logged: a regular file that keeps the last of the output, the caller's; serial only */
};

/*
 * Everything that makes a machine. machine_config_init() gives the defaults;
 * strings and arrays are read during machine_create() only, except where
 * said. Fields that a caller does not know stay at their default.
 */
struct machine_config {
    enum machine_engine engine;
    bool engine_reference; /* software engine, one instruction at a time */
    enum accel_native engine_native;
    bool engine_check;         /* both software engines in lock step */
    uint64_t code_cache_bytes; /* 0: the engine's default */
    bool kvm_split_irqchip;    /* KVM with our own PIC and I/O APIC */

    unsigned cpus;             /* at the start */
    unsigned cpus_max;         /* machine_set_cpus() up to this many; 0: cpus, for ever */
    unsigned cpu_cap;          /* percent of its CPUs' time, never more; 0: none */
    bool cpu_spare;            /* somebody else counts or caps that: nothing is to spin */
    uint64_t memory_bytes;     /* at the start; a multiple of 1 MiB */
    uint64_t memory_max_bytes; /* machine_set_memory() up to this; 0: memory_bytes */

    const char *kernel;  /* bzImage, or an ELF64 as boot.h says */
    const char *initrd;  /* NULL: none */
    const char *cmdline; /* NULL: empty */

    unsigned disk_count;
    struct machine_disk disks[MACHINE_MAX_DISKS];

    struct machine_net net;

    struct machine_chardev serial;  /* COM1 (ttyS0) */
    struct machine_chardev console; /* virtio console (hvc0); NONE: no such device */
    struct machine_chardev agent;   /* a port for a guest agent; NONE: no such device */

    bool has_rng;
    bool has_balloon;
    bool has_vsock;
    uint32_t vsock_guest_cid;      /* 3 ... 0xfffffffe */
    const char *vsock_socket_path; /* unix socket: connections in; PATH_PORT: connections out */

    enum machine_policy on_reset;
    enum machine_policy on_crash;

    /* "HOST:PORT" or "unix:PATH"; NULL: no gdb. The first instruction waits for the debugger
     * when gdb_wait is set: machine_start() then leaves the machine PAUSED. */
    const char *gdb_listen;
    bool gdb_wait;

    bool has_debug_exit; /* a port that ends the machine with a code: for test guests only */
};

enum machine_state { MACHINE_CREATED, MACHINE_RUNNING, MACHINE_PAUSED, MACHINE_ENDED };

enum machine_end {
    MACHINE_END_NONE,       /* not ended */
    MACHINE_END_POWEROFF,   /* the guest switched itself off */
    MACHINE_END_STOP,       /* machine_stop() */
    MACHINE_END_RESET,      /* a reset, and on_reset is STOP */
    MACHINE_END_CRASH,      /* a triple fault, and on_crash is STOP */
    MACHINE_END_DEBUG_EXIT, /* the test port; debug_exit_code is set */
    MACHINE_END_ERROR       /* the engine cannot go on: error says why */
};

struct machine_status {
    enum machine_state state;
    enum machine_end end;
    uint8_t debug_exit_code;
    unsigned changes;     /* of state, since creation */
    unsigned cpus;        /* there now, whether or not the guest uses them */
    unsigned cpus_wanted; /* as machine_set_cpus() was told */
    unsigned cpus_max;
    uint64_t memory_bytes; /* plugged now, without what it gave up to have less than at the start */
    uint64_t memory_wanted_bytes; /* as machine_set_memory() was told */
    uint64_t memory_max_bytes;
    bool cpus_refused;         /* the guest said that it does not let one go */
    unsigned resets;           /* since start */
    uint64_t balloon_bytes;    /* what the guest says it has given up */
    bool is_agent_there;       /* a program of the guest has the agent's port open */
    uint32_t guest_address;    /* IPv4 in host byte order, as the guest says; 0: not known yet */
    const char *engine;        /* "kvm" or "soft" */
    const char *engine_reason; /* why that one, a phrase; owned by the machine */
    struct err error;
    struct err pause_reason; /* code 0: paused because somebody asked for it, or not paused */
};

/* The name of a state ("running") and of an end ("power-off"); static storage. */
const char *machine_state_name(enum machine_state state);
const char *machine_end_name(enum machine_end end);

/* Defaults: engine auto, 1 CPU, 512 MiB, no kernel, no devices, descriptors -1. */
void machine_config_init(struct machine_config *config);

/*
 * Builds the machine: memory, engine, chips, devices, tables, kernel. Nothing
 * runs yet. On failure nothing is left behind, descriptors stay the caller's,
 * and err holds one sentence: a bad value (-EINVAL), a missing or unreadable
 * file, a kernel that is none (-ENOEXEC), one too big for memory (-E2BIG), a
 * disk in use (-EBUSY), no KVM (-ENODEV ...), a full host (-ENOMEM).
 */
int machine_create(const struct machine_config *config, struct err *err,
                   struct machine **ret_machine) MUST_CHECK;

/* Ends it if it still runs, joins its threads, frees. Accepts NULL. */
void machine_destroy(struct machine *machine);

/* Starts the threads and the guest. -EINVAL unless CREATED; -EAGAIN when a thread cannot start. */
int machine_start(struct machine *machine, struct err *err) MUST_CHECK;

/* All vCPUs have left guest code when it returns. 0 also when PAUSED already; -EINVAL in
 * other states. Any thread but a vCPU's. Guest time (TSC) goes on. */
int machine_pause(struct machine *machine) MUST_CHECK;
int machine_resume(struct machine *machine) MUST_CHECK;

/* Pulls the plug: ENDED when it returns. No effect when ENDED. Any thread but a vCPU's. */
void machine_stop(struct machine *machine);

/* Presses the power button; the guest decides. -EINVAL unless RUNNING, -EAGAIN when
 * the guest has not enabled the button (yet), so that nobody will act on it. Any thread. */
int machine_powerdown(struct machine *machine) MUST_CHECK;

/* Presses reset; follows on_reset. Takes effect soon. -EINVAL when ENDED or CREATED. Any thread. */
int machine_reset(struct machine *machine) MUST_CHECK;

/* A copy; any thread. */
void machine_status(struct machine *machine, struct machine_status *ret_status);

/* Exits whose answers take time. */
enum machine_exit_kind {
    MACHINE_EXIT_PIO,
    MACHINE_EXIT_MMIO,
    MACHINE_EXIT_MSR,
    MACHINE_EXIT_OTHER,
    MACHINE_EXIT_KINDS
};

/* One vCPU. Times are 0 where the host does not count them. */
struct machine_cpu_stats {
    bool is_present;
    uint64_t guest_ns;  /* CPU time of the thread that runs the guest's code */
    uint64_t run_ns;    /* with what its devices' registers and the monitor took */
    uint64_t steal_ns;  /* it was ready, and the host ran something else */
    uint64_t halted_ns; /* it had nothing to do, as far as it has told */
    uint64_t exits[MACHINE_EXIT_KINDS];
    uint64_t halts;
};

/* What a machine has done so far. Counters begin at 0 with the process. */
struct machine_counters {
    unsigned count;
    struct accel_stat stats[MACHINE_MAX_STATS]; /* of the machine, its devices, its engine */
    unsigned cpu_count;
    struct machine_cpu_stats cpus[MACHINE_MAX_CPUS];
    struct latency_sum exits[MACHINE_EXIT_KINDS];
    bool has_disk;
    struct latency_sum disk[5]; /* by enum block_op, of all disks */
};

/*
 * Costs some reads of /proc. Asks the guest for its own numbers of memory, for
 * a later call, only if it has been busy since: an idle guest sleeps on. One
 * thread at a time. with_engine: the engine's counters too, for which its
 * process may have to be asked.
 */
void machine_count(struct machine *machine, bool with_engine,
                   struct machine_counters *ret_counters);
/* "pio" ...; static storage. */
const char *machine_exit_kind_name(enum machine_exit_kind kind);

/* Blocks until ENDED. Any thread but the machine's own. */
enum machine_end machine_wait(struct machine *machine);

/* Readable after each change of state, balloon_bytes, is_agent_there and guest_address
 * until drained (io_eventfd_drain); the machine's. */
int machine_event_fd(const struct machine *machine);

/* The host port of forward index as it was opened, 0 when there is none. Role: main. */
uint16_t machine_forward_port(const struct machine *machine, unsigned index);
/* The forwards as they are now, in place of config.net.forwards; how many. Role: main. */
unsigned machine_forwards(const struct machine *machine, const struct machine_forward **ret_first);
/* Has these and no others from now on, of a machine that may run; see netdev_set_forwards(). -ENODEV
 * without a network. Role: main. */
int machine_set_forwards(struct machine *machine, const struct machine_forward *forwards,
                         unsigned count, struct err *err) MUST_CHECK;

/*
 * Disks of a machine that may be running. id names one; -ENOENT when there is
 * none such. Any thread but a vCPU's or a disk's.
 */

/* How many there are, and at most max of them. */
unsigned machine_disks(struct machine *machine, struct machine_disk_info *ret_disks, unsigned max);

/* Grows with each change that machine_disks() would show; the event descriptor becomes readable. */
unsigned machine_disk_changes(struct machine *machine);

/* Plugs a disk in; the guest hears of it. What disk points to is copied. Errors as for creation;
 * -ENOSPC when there are too many, -EEXIST for an id in use. */
int machine_disk_add(struct machine *machine, const struct machine_disk *disk, struct err *err)
    MUST_CHECK;

/* Asks the guest to let the disk go; it is gone when machine_disks() lacks it, at the next reset
 * at the latest. */
int machine_disk_remove(struct machine *machine, const char *id, struct err *err) MUST_CHECK;

/* From now on. -EINVAL for a rate out of bounds. */
int machine_disk_limit(struct machine *machine, const char *id, const struct limit_config *limits,
                       struct err *err) MUST_CHECK;

/* Grows the disk, and tells the guest. -EINVAL when it would shrink, -ENOTSUP for a block device. */
int machine_disk_resize(struct machine *machine, const char *id, uint64_t size_bytes,
                        struct err *err) MUST_CHECK;

/*
 * Makes a new qcow2 file, path, over the disk's image and goes on with it:
 * the image stays as it is. -EEXIST when there is such a file, -EBUSY during a
 * job.
 */
int machine_disk_snapshot(struct machine *machine, const char *id, const char *path,
                          struct err *err, struct block_snapshot_result *ret_result) MUST_CHECK;

/* Starts a job; what config points to is copied, its callback is not used. -EBUSY during another. */
int machine_disk_job_start(struct machine *machine, const char *id,
                           const struct block_job_config *config, struct err *err) MUST_CHECK;
/* -ENOENT without a job. */
int machine_disk_job(struct machine *machine, const char *id, enum machine_job_action action,
                     uint64_t bytes_per_second, struct err *err) MUST_CHECK;

/*
 * Keeps the machine, all its processes together, to so many percent of its
 * CPUs' time, from now on; 0: no cap. For hosts whose control groups cannot.
 * spares: as cpu_spare of the configuration; with a cap it is so in any case.
 * -EINVAL above 100, -ENOMEM. Any thread.
 */
int machine_set_cpu_cap(struct machine *machine, unsigned percent, bool spares) MUST_CHECK;

/* Limits of the network card, each direction by itself. -ENODEV without one. Any thread. */
int machine_net_limit(struct machine *machine, const struct limit_config *limits) MUST_CHECK;

/* Asks the balloon for a size, in bytes taken from the guest. -ENODEV without one. Any thread. */
int machine_set_balloon(struct machine *machine, uint64_t bytes) MUST_CHECK;

/*
 * Adds CPUs, or asks the guest to let the last ones go; it is done when
 * machine_status() says so. A reset does what the guest has not. Each change is
 * announced by the event descriptor and counted by machine_size_changes().
 * -EINVAL for a number that is not from 1 to cpus_max, or after the end. Any
 * thread.
 */
int machine_set_cpus(struct machine *machine, unsigned count, struct err *err) MUST_CHECK;

/*
 * Asks the guest to use this much memory, rounded up to the 4 MiB that come and
 * go as one above what it started with; it plugs and unplugs what it can, and
 * less than at the start is the balloon's. It is done when machine_status()
 * says so. -EINVAL for a size that is not from 16 MiB to memory_max_bytes, or
 * after the end; -ENODEV without a balloon that it takes, -ENOMEM when the host
 * has not so much. Any thread.
 */
int machine_set_memory(struct machine *machine, uint64_t bytes, struct err *err) MUST_CHECK;

/* Grows with each change of CPUs and memory that machine_status() tells. Any thread. */
unsigned machine_size_changes(const struct machine *machine);

/*
 * For the debugger. All want PAUSED, CREATED or ENDED (-EBUSY otherwise), any
 * thread but a vCPU's. index < machine_cpu_count(), else -EINVAL.
 */
/* Those that are not there now count as well. */
unsigned machine_cpu_count(const struct machine *machine);
int machine_cpu_get_state(struct machine *machine, unsigned index, struct vcpu_state *ret_state)
    MUST_CHECK;
int machine_cpu_set_state(struct machine *machine, unsigned index, const struct vcpu_state *state)
    MUST_CHECK;
int machine_cpu_translate(struct machine *machine, unsigned index, uint64_t va, gpa_t *ret_gpa)
    MUST_CHECK;
int machine_cpu_set_debug(struct machine *machine, unsigned index, const struct accel_debug *debug)
    MUST_CHECK;
struct gmem *machine_gmem(struct machine *machine);

/* The loop of "io/0"; lives as long as the machine. */
struct loop *machine_loop(struct machine *machine);

/*
 * A vCPU met a breakpoint or finished a single step. It has stopped, and the
 * machine is on its way to PAUSED: machine_pause() completes that. Called on
 * the vCPU's thread, which must not be blocked; at most one listener.
 */
typedef void (*machine_debug_fn)(void *opaque, unsigned cpu, const struct vmexit *exit);
void machine_set_debug_listener(struct machine *machine, machine_debug_fn fn, void *opaque);

#endif
