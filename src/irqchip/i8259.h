/*
 * The pair of 8259A interrupt controllers of a PC, with the ELCR
 * (Intel 8259A datasheet; 82371AB datasheet for ports 0x4d0 and 0x4d1).
 *
 * All functions: any thread. The output callback runs with its mutex
 * (LOCK_RANK_IRQ) held.
 */
#ifndef CORBEL_IRQCHIP_I8259_H
#define CORBEL_IRQCHIP_I8259_H

#include "base/compiler.h"
#include "bus/bus.h"

#include <stdbool.h>
#include <stdint.h>

struct i8259;

/* The INTR output of the master. */
typedef void (*i8259_output_fn)(void *opaque, bool level);

int i8259_create(struct bus *bus, i8259_output_fn fn, void *opaque, struct i8259 **ret_pic)
    MUST_CHECK;
void i8259_destroy(struct i8259 *pic); /* accepts NULL */
void i8259_reset(struct i8259 *pic);

/* Lines 0 to 15; others and the cascade (2) are ignored. */
void i8259_set_line(struct i8259 *pic, unsigned irq, bool level);
/* The INTA cycle: the vector; a spurious one (7) when nothing is left to serve. */
int i8259_acknowledge(struct i8259 *pic);

#endif
