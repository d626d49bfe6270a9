/*
 * Interrupts as devices see them: a numbered line, or a message (MSI).
 *
 * The machine fills the ops with the accelerator's or with our own chips; a
 * device never knows. Any thread; implementations take LOCK_RANK_IRQ and above.
 */
#ifndef CORBEL_BUS_IRQ_H
#define CORBEL_BUS_IRQ_H

#include <stdbool.h>
#include <stdint.h>

struct irq_ops {
    /* Sets GSI's level; edge devices pulse it high then low. */
    void (*set_line)(void *opaque, unsigned gsi, bool level);
    /* Delivers one message as PCI 3.0 §6.8.1 and SDM 3A 11.11 encode it. */
    void (*send_msi)(void *opaque, uint64_t address, uint32_t data);
};

struct irq_router {
    const struct irq_ops *ops;
    void *opaque;
};

static inline void irq_set_line(const struct irq_router *router, unsigned gsi, bool level)
{
    router->ops->set_line(router->opaque, gsi, level);
}

static inline void irq_send_msi(const struct irq_router *router, uint64_t address, uint32_t data)
{
    router->ops->send_msi(router->opaque, address, data);
}

#endif
