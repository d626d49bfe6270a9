/*
 * The local APICs of one machine (SDM 3A chapter 11), xAPIC and x2APIC.
 *
 * One struct lapic per vCPU. Its registers belong to that vCPU's thread, which
 * alone calls the functions that say so. Interrupts arrive from any thread:
 * they set a bit of IRR (atomically, no lock) and ask the machine to kick the
 * vCPU. Timers are alarms of the given loop: armed on the vCPU's thread,
 * delivered on the loop's.
 */
#ifndef CORBEL_IRQCHIP_LAPIC_H
#define CORBEL_IRQCHIP_LAPIC_H

#include "base/compiler.h"
#include "cpu/vcpu.h"

#include <stdbool.h>
#include <stdint.h>

#define LAPIC_MAX_CPUS 255u
#define LAPIC_PAGE_BYTES 4096u

struct lapic;
struct lapic_set;
struct loop;

/* What the APICs ask of the machine. All may be called on any thread. */
struct lapic_ops {
    /* Something became pending: the vCPU leaves HLT, or looks again. */
    void (*kick)(void *opaque, unsigned cpu);
    void (*nmi)(void *opaque, unsigned cpu);
    /* The vCPU's own thread then calls lapic_init_ipi(), and starts it at vector << 12. */
    void (*init)(void *opaque, unsigned cpu);
    void (*sipi)(void *opaque, unsigned cpu, uint8_t vector);
    /* EOI of a level-triggered vector: for the I/O APIC. */
    void (*eoi)(void *opaque, uint8_t vector);
    /* INTA cycle to the PIC: its vector, or -1. */
    int (*pic_acknowledge)(void *opaque);
};

struct lapic_set_config {
    unsigned count;
    struct loop *loop; /* outlives the set */
    uint64_t timer_hz; /* input clock of the timer's counter */
    uint64_t tsc_hz;   /* for deadlines */
    const struct lapic_ops *ops;
    void *opaque;
};

/* Before the loop runs; -ENOMEM, -EMFILE. */
int lapic_set_create(const struct lapic_set_config *config, struct lapic_set **ret_set) MUST_CHECK;
void lapic_set_destroy(struct lapic_set *set); /* the loop is stopped; accepts NULL */

/* The APIC of one vCPU; its APIC ID is the index. */
struct lapic *lapic_get(struct lapic_set *set, unsigned index);

/* Power-on state. vCPUs are stopped. CPU 0 is the bootstrap processor; its LINT0 passes the
 * PIC's output, as firmware leaves it (MP specification 3.6.2.2). */
void lapic_reset(struct lapic *lapic);
/* INIT: as power-on, but keeps APIC_BASE and the ID (SDM 3A 11.4.7.3). Own thread. */
void lapic_init_ipi(struct lapic *lapic);

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
