/* Interrupt messages between local APICs (SDM 3A 11.6, 11.11): who gets them. */
#include "irqchip/lapic_internal.h"

#define ICR_VECTOR 0xffu
#define ICR_LOGICAL 0x800u
#define ICR_ASSERT 0x4000u
#define ICR_LEVEL 0x8000u

/* SDM 3A 11.6.2. An 8-bit destination reaches x2APICs as cluster 0. */
static bool logical_match(const struct lapic *lapic, uint32_t dest)
{
    uint32_t ldr = atomic_load_explicit(&lapic->regs->ldr, memory_order_relaxed);
    uint32_t dfr = atomic_load_explicit(&lapic->regs->dfr, memory_order_relaxed);

    if (lapic_is_x2apic(lapic)) {
        return (ldr >> 16) == (dest >> 16) && (ldr & dest & 0xffff) != 0;
    }
    ldr >>= 24;
    if ((dfr >> 28) == 0xf) {
        return (ldr & dest & 0xff) != 0;
    }
    return (ldr >> 4) == (dest >> 4 & 0xf) && (ldr & dest & 0xf) != 0;
}

static bool message_matches(const struct lapic *lapic, const struct lapic_message *message)
{
    if (message->is_broadcast) {
        return true;
    }
    return message->is_logical ? logical_match(lapic, message->dest)
                               : message->dest == lapic->index;
}

static void deliver_one(struct lapic *lapic, const struct lapic_message *message)
{
    const struct lapic_set_config *config = &lapic->set->config;

    switch (message->mode) {
    case LAPIC_FIXED:
    case LAPIC_LOWEST:
        if (lapic_is_software_enabled(lapic)) {
            lapic_accept(lapic, message->vector, message->is_level);
        }
        break;
    case LAPIC_NMI:
        config->ops->nmi(config->opaque, lapic->index);
        break;
    case LAPIC_INIT:
        config->ops->init(config->opaque, lapic->index);
        break;
    case LAPIC_STARTUP:
        config->ops->sipi(config->opaque, lapic->index, message->vector);
        break;
    case LAPIC_SMI:    /* there is no system management mode here */
    case LAPIC_EXTINT: /* the PIC's output is wired to LINT0 */
        break;
    }
}

/* SDM 3A 11.6.2.4: the one that works on the least important thing. */
static struct lapic *lowest_priority(struct lapic_set *set, const struct lapic_message *message)
{
    struct lapic *best = NULL;
    uint32_t best_ppr = UINT32_MAX;

    for (unsigned i = 0; i < set->config.count; i++) {
        struct lapic *lapic = &set->cpus[i];
        uint32_t ppr = atomic_load_explicit(&lapic->regs->ppr, memory_order_relaxed);

        if (message_matches(lapic, message) && lapic_is_software_enabled(lapic) && ppr < best_ppr) {
            best = lapic;
            best_ppr = ppr;
        }
    }
    return best;
}

void lapic_deliver(struct lapic_set *set, const struct lapic_message *message)
{
    if (message->mode == LAPIC_LOWEST) {
        struct lapic *lapic = lowest_priority(set, message);

        if (lapic != NULL) {
            deliver_one(lapic, message);
        }
        return;
    }
    for (unsigned i = 0; i < set->config.count; i++) {
        if (message_matches(&set->cpus[i], message)) {
            deliver_one(&set->cpus[i], message);
        }
    }
}

void lapic_send_msi(struct lapic_set *set, uint64_t address, uint32_t data)
{
    struct lapic_message message = {
        .dest = (uint32_t)(address >> 12) & 0xff,
        .is_logical = (address & 4) != 0,
        .is_level = (data & ICR_LEVEL) != 0,
        .vector = (uint8_t)data,
        .mode = (enum lapic_delivery)((data >> 8) & 7),
    };

    if ((address >> 20) != X86_APIC_DEFAULT_BASE >> 20) {
        return; /* not addressed to the APICs */
    }
    message.is_broadcast = message.dest == 0xff;
    if (message.mode == LAPIC_STARTUP) {
        return; /* reserved in messages (SDM 3A 11.11.2) */
    }
    lapic_deliver(set, &message);
}

static void shorthand_send(struct lapic *lapic, const struct lapic_message *message,
                           unsigned shorthand)
{
    for (unsigned i = 0; i < lapic->set->config.count; i++) {
        bool is_self = i == lapic->index;

        if ((shorthand == 1 && is_self) || shorthand == 2 || (shorthand == 3 && !is_self)) {
            deliver_one(&lapic->set->cpus[i], message);
        }
    }
}

void lapic_icr_send(struct lapic *lapic, uint64_t icr)
{
    struct lapic_message message = {
        .is_logical = (icr & ICR_LOGICAL) != 0,
        .vector = (uint8_t)(icr & ICR_VECTOR),
        .mode = (enum lapic_delivery)((icr >> 8) & 7),
    };
    unsigned shorthand = (unsigned)(icr >> 18) & 3;

    if (lapic_is_x2apic(lapic)) {
        message.dest = (uint32_t)(icr >> 32);
        message.is_broadcast = message.dest == UINT32_MAX;
    } else {
        message.dest = (uint32_t)(icr >> 56);
        message.is_broadcast = message.dest == 0xff;
    }
    if (message.mode == LAPIC_INIT && (icr & ICR_LEVEL) != 0 && (icr & ICR_ASSERT) == 0) {
        return; /* INIT level de-assert: arbitration IDs only, no effect since the Pentium 4 */
    }
    if ((message.mode == LAPIC_FIXED || message.mode == LAPIC_LOWEST) && message.vector < 16) {
        atomic_fetch_or_explicit(&lapic->regs->esr_pending, LAPIC_ESR_SEND_ILLEGAL,
                                 memory_order_relaxed);
        return;
    }
    if (shorthand != 0) {
        shorthand_send(lapic, &message, shorthand);
    } else {
        lapic_deliver(lapic->set, &message);
    }
}
