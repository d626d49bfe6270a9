/*
 * The I/O APIC (82093AA datasheet): 24 pins, one MMIO window.
 *
 * Pin numbers are GSIs. It sends messages in MSI format through an irq_router,
 * so that it serves our local APICs and an accelerator's alike. Lines say
 * "asserted", whatever polarity the guest programs. All functions: any thread;
 * messages are sent with its mutex (LOCK_RANK_IRQ) held.
 */
#ifndef CORBEL_IRQCHIP_IOAPIC_H
#define CORBEL_IRQCHIP_IOAPIC_H

#include "base/compiler.h"
#include "bus/bus.h"
#include "bus/irq.h"

#include <stdbool.h>
#include <stdint.h>

#define IOAPIC_PINS 24
#define IOAPIC_WINDOW_BYTES 0x1000u

struct ioapic;

/* Tells which message a pin sends from now on: an accelerator with local APICs of its own needs
 * to know, to report their EOIs. Called with the mutex held. */
typedef void (*ioapic_route_fn)(void *opaque, unsigned pin, uint64_t address, uint32_t data);

/* Maps its window at base. router's set_line is not used; route_fn (with router's opaque) may be
 * NULL. -ENOMEM, -EEXIST. */
int ioapic_create(struct bus *bus, uint64_t base, const struct irq_router *router,
                  ioapic_route_fn route_fn, struct ioapic **ret_ioapic) MUST_CHECK;
void ioapic_destroy(struct ioapic *ioapic); /* accepts NULL */
void ioapic_reset(struct ioapic *ioapic);   /* lines keep their level: devices drive them */

/* Pins beyond the last are ignored. */
void ioapic_set_line(struct ioapic *ioapic, unsigned pin, bool level);
/* A local APIC ended a level-triggered vector; still asserted lines are sent again. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);

#endif
