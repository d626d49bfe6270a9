/*
 * What the monitor (proxy/) and the executor, the process that runs guest code,
 * share: one memfd with a struct executor_shared and a struct executor_vcpu for
 * each vCPU, beside the guest's memory (mem/gmem.h).
 *
 * The executor is taken to be the guest's own: whatever stands in these pages
 * may be anything at any time. The monitor fetches a field once and checks it
 * before use (proxy/fetch.c); nothing in here is a pointer, a length or an index
 * for it. The executor trusts the monitor.
 *
 * With a split irqchip the local APICs are the executor's (apic.c): their registers
 * lie in these pages, so that the monitor posts its interrupts there by itself. It
 * looks at no register for anything but the choice of who gets a message.
 *
 * One call: the asking side fills the fields of the command, counts `asked` up and
 * rings; the executor does it, fills the answer, sets `answered` to what it saw
 * in `asked` and rings back. Both words are futexes.
 */
#ifndef CORBEL_EXECUTOR_PROTOCOL_H
#define CORBEL_EXECUTOR_PROTOCOL_H

#include "cpu/cpuid.h"
#include "cpu/vcpu.h"
#include "irqchip/lapic.h"

#include <stdatomic.h>
#include <stdint.h>

#define EXECUTOR_MAX_VCPUS 64u
#define EXECUTOR_MAX_STATS 96u
#define EXECUTOR_NAME_BYTES 48u
#define EXECUTOR_LOG_LINES 16u
#define EXECUTOR_LOG_BYTES 240u

/* Descriptors that the executor is started with; it has no others. */
#define EXECUTOR_RAM_FD 0    /* the guest's memory; stays open */
#define EXECUTOR_SHARED_FD 1 /* these pages; stays open, so that nothing else takes its number */
#define EXECUTOR_LIFE_FD 2   /* a socket; its end of file is the monitor's end */

/* Sent to a vCPU's thread by the monitor: look at the kick. Equals HOSTSIG_KICK. */
#define EXECUTOR_KICK_SIGNAL 38

/* A futex word that counts calls, and whether anybody sleeps on it. */
struct executor_bell {
    _Atomic uint32_t count;
    _Atomic uint32_t sleepers;
};

enum executor_command {
    EXECUTOR_CREATE, /* cpuid -> result, thread */
    EXECUTOR_RUN,    /* answer, vector, pending -> exit */
    EXECUTOR_GET_STATE,
    EXECUTOR_SET_STATE,
    EXECUTOR_NMI,
    EXECUTOR_TRANSLATE, /* address -> address */
    EXECUTOR_SET_DEBUG,
    EXECUTOR_RESET_APIC, /* power-on state; forgets requests */
    EXECUTOR_GET_APIC,
    EXECUTOR_SET_APIC
};

/* Where a vCPU's thread is, for whoever wants its attention: he counts executor_vcpu.wake up,
 * then looks; it says where it goes, then looks whether wake was counted up. */
enum executor_place {
    EXECUTOR_OUTSIDE,  /* it looks by itself before it runs guest code */
    EXECUTOR_IN_GUEST, /* the kick signal reaches it */
    EXECUTOR_ASLEEP    /* waits on wake */
};

/* Bits of executor_vcpu.requests. */
#define EXECUTOR_REQUEST_INIT 0x1u
#define EXECUTOR_REQUEST_SIPI 0x2u
#define EXECUTOR_REQUEST_NMI 0x4u

/* The answer to the last exit. */
struct executor_answer {
    uint64_t data;
    uint8_t fault;
};

/* A struct vmexit without its union. */
struct executor_exit {
    uint32_t reason;
    uint32_t size_bytes;
    uint64_t address; /* port, gpa, MSR, rip, vector of an EOI */
    uint64_t data;    /* written value, cr8, dr6 */
    uint64_t tsc_offset;
    uint8_t flag;     /* is_write, is_breakpoint_insn */
    uint8_t can_take; /* an interrupt of the monitor's could be delivered now */
    char text[200];   /* VMEXIT_ERROR; ends with a NUL */
};

struct executor_vcpu {
    struct executor_bell asked ALIGNED(64);
    struct executor_bell answered ALIGNED(64);

    /* Anybody's: interrupts, kicks. */
    _Atomic uint32_t wake ALIGNED(64); /* futex; grows whenever there is something to look at */
    _Atomic uint32_t requests;
    _Atomic uint32_t sipi_vector;
    _Atomic uint32_t leave; /* the monitor wants run() to return */
    _Atomic uint32_t place; /* enum executor_place; the executor's */

    /* The monitor's words. */
    uint32_t command ALIGNED(64);
    int32_t vector;      /* acknowledged, to be delivered first; -1: none */
    uint32_t pending;    /* another one waits: come out when it could be delivered */
    uint64_t stay_until; /* host TSC at which run() is to return now and then; 0: no need */
    struct executor_answer answer;
    struct accel_debug debug;
    struct cpuid_table cpuid;

    /* The executor's words. */
    int32_t result ALIGNED(64);
    int32_t thread; /* its thread id, for the signal */
    uint32_t cpu;   /* host CPU that it ran on when it answered */
    struct executor_exit exit;

    /* Of either. */
    uint64_t address;
    struct vcpu_state state;
    struct lapic_state apic;
};

enum executor_service { EXECUTOR_INVALIDATE, EXECUTOR_STATS };

enum executor_phase {
    EXECUTOR_STARTING,
    EXECUTOR_ATTACHED, /* vCPUs can be created */
    EXECUTOR_LOCKED,   /* the last was: no system call is left that could harm; they can run */
    EXECUTOR_FAILED    /* error says why */
};

struct executor_shared {
    /* Set before the executor starts. */
    uint64_t memory_bytes; /* without what is pluggable */
    uint64_t pluggable_bytes;
    uint64_t code_cache_bytes;
    uint32_t vcpu_count;
    uint32_t check;              /* lock step with the reference */
    uint32_t native_when;        /* enum accel_native */
    _Atomic uint32_t spares_cpu; /* as accel_ops.spare_cpu; may change */
    uint32_t self_bytes;         /* of these pages with those of the vCPUs */
    uint64_t tsc_hz;
    uint32_t has_apics; /* split irqchip */

    struct executor_bell phase ALIGNED(64);
    int32_t error_code;
    char error[200];

    /* One at a time, beside the vCPUs. */
    struct executor_bell service_asked ALIGNED(64);
    struct executor_bell service_answered ALIGNED(64);
    uint32_t service;
    uint64_t gpa;
    uint64_t len;

    uint32_t stat_count;
    uint64_t stats[EXECUTOR_MAX_STATS];
    char stat_names[EXECUTOR_MAX_STATS][EXECUTOR_NAME_BYTES]; /* fixed before the first vCPU */

    /* Lines for the log: the newest EXECUTOR_LOG_LINES of log_count. */
    _Atomic uint32_t log_count;
    char log[EXECUTOR_LOG_LINES][EXECUTOR_LOG_BYTES];

    struct lapic_regs apics[EXECUTOR_MAX_VCPUS] ALIGNED(64);

    struct executor_vcpu vcpus[] ALIGNED(4096);
};

#endif
