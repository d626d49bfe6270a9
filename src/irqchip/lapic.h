/*
 * The local APICs of one machine (SDM 3A chapter 11), xAPIC and x2APIC.
 *
 * One struct lapic per vCPU. Its registers belong to that vCPU's thread, which
 * alone calls the functions that say so. Interrupts arrive from any thread:
 * they set a bit of IRR (atomically, no lock) and ask the machine to kick the
 * vCPU.
 *
 * The registers may lie in memory that two processes share (executor/): then
 * the one that runs the vCPUs has the set, and the other a view of it, which
 * only sends messages. A view believes nothing that it reads there: whatever it
 * is, it decides no more than which vCPUs a message reaches.
 */
#ifndef CORBEL_IRQCHIP_LAPIC_H
#define CORBEL_IRQCHIP_LAPIC_H

#include "base/compiler.h"
#include "cpu/vcpu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LAPIC_MAX_CPUS 255u
#define LAPIC_PAGE_BYTES 4096u
#define LAPIC_LVT_COUNT 6

struct lapic;
struct lapic_set;

/* One APIC's registers. For lapic*.c; whoever shares them knows their size. */
struct lapic_regs {
    /* Written by any thread. */
    _Atomic uint64_t irr[4];
    _Atomic uint64_t tmr[4];
    _Atomic uint32_t esr_pending;

    /* Written by the own thread, read by senders. */
    _Atomic uint64_t base ALIGNED(64);
    _Atomic uint32_t svr;
    _Atomic uint32_t ldr;
    _Atomic uint32_t dfr;
    _Atomic uint32_t lvt[LAPIC_LVT_COUNT];
    _Atomic uint32_t ppr;

    /* The own thread's. */
    uint64_t isr[4];
    uint32_t tpr;
    uint32_t esr;
    uint64_t icr;
};

/* All that one APIC is between two instructions, to be kept and given to another. */
struct lapic_state {
    uint64_t base;
    uint64_t icr;
    uint64_t irr[4], tmr[4], isr[4];
    uint64_t timer_deadline_tsc; /* guest TSC; 0: not armed or another mode */
    uint64_t timer_tsc_offset;   /* guest TSC minus host TSC */
    uint64_t timer_left_ns;      /* until the counter is 0; 0: it does not count */
    uint32_t timer_initial_count;
    uint32_t timer_divide;
    uint32_t svr, ldr, dfr, tpr, esr, esr_pending;
    uint32_t lvt[LAPIC_LVT_COUNT];
    uint32_t pad;
};

/* What the APICs ask of the machine. All may be called on any thread; a view calls the first four. */
struct lapic_ops {
    /* Something became pending: the vCPU leaves HLT, or looks again. */
    void (*kick)(void *opaque, unsigned cpu);
    void (*nmi)(void *opaque, unsigned cpu);
    /* The vCPU's own thread then calls lapic_init_ipi(), and starts it at vector << 12. */
    void (*init)(void *opaque, unsigned cpu);
    void (*sipi)(void *opaque, unsigned cpu, uint8_t vector);
    /* EOI of a level-triggered vector: for the I/O APIC. */
    void (*eoi)(void *opaque, unsigned cpu, uint8_t vector);
    /* INTA cycle to the PIC: its vector, or -1. */
    int (*pic_acknowledge)(void *opaque);
    /* The timer of cpu is to be looked at (lapic_timer_expire()) at this time, CLOCK_MONOTONIC,
     * and no longer when it was to be before; 0: never. */
    void (*arm)(void *opaque, unsigned cpu, uint64_t deadline_ns);
};

struct lapic_set_config {
    unsigned count;
    uint64_t timer_hz;       /* input clock of the timer's counter */
    uint64_t tsc_hz;         /* for deadlines */
    struct lapic_regs *regs; /* count of them, which outlive the set; NULL: its own */
    bool is_view;            /* regs are those of a set in another process */
    const struct lapic_ops *ops;
    void *opaque;
};

/* As after power-on. -ENOMEM. */
int lapic_set_create(const struct lapic_set_config *config, struct lapic_set **ret_set) MUST_CHECK;
void lapic_set_destroy(struct lapic_set *set); /* nothing arms or expires; accepts NULL */

/* The APIC of one vCPU; its APIC ID is the index. */
struct lapic *lapic_get(struct lapic_set *set, unsigned index);

/* Power-on state. vCPUs are stopped. CPU 0 is the bootstrap processor; its LINT0 passes the
 * PIC's output, as firmware leaves it (MP specification 3.6.2.2). */
void lapic_reset(struct lapic *lapic);
/* INIT: as power-on, but keeps APIC_BASE and the ID (SDM 3A 11.4.7.3). Own thread. */
void lapic_init_ipi(struct lapic *lapic);

/* The time that arm() was given may have come; early or late calls do no harm. Any thread. */
void lapic_timer_expire(struct lapic *lapic);

/* vCPUs are stopped. A state from anywhere is made sound. */
void lapic_save(struct lapic *lapic, struct lapic_state *ret_state);
void lapic_load(struct lapic *lapic, const struct lapic_state *state);

/* Would it pass the PIC's output on? Own thread. */
bool lapic_passes_pic(const struct lapic *lapic);

/* For struct vcpu_env; opaque is the struct lapic. Own thread. */
extern const struct vcpu_intr_ops lapic_intr_ops;

/* True when gpa lies in the APIC's page and the page is enabled. Own thread. */
bool lapic_claims(const struct lapic *lapic, uint64_t gpa);
/* Registers by offset in the page. Own thread. */
uint64_t lapic_mmio_read(struct lapic *lapic, unsigned offset, unsigned size_bytes);
void lapic_mmio_write(struct lapic *lapic, unsigned offset, unsigned size_bytes, uint64_t value);

/* APIC_BASE, TSC_DEADLINE and 0x800-0x8ff. -EINVAL: the guest gets #GP(0). Own thread. */
bool lapic_owns_msr(uint32_t index);
int lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *ret_value) MUST_CHECK;
int lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value, uint64_t tsc_offset)
    MUST_CHECK;

/* CR8 is bits 7:4 of TPR (SDM 3A 11.8.6). Own thread. */
void lapic_set_cr8(struct lapic *lapic, uint8_t cr8);
uint8_t lapic_cr8(const struct lapic *lapic);

/* One message as PCI devices and the I/O APIC send it (SDM 3A 11.11). Any thread. */
void lapic_send_msi(struct lapic_set *set, uint64_t address, uint32_t data);

/* The PIC's output, wired to every LINT0. Any thread. */
void lapic_set_pic_output(struct lapic_set *set, bool level);

#endif
