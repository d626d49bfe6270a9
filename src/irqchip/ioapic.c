#include "irqchip/ioapic.h"

#include "base/thread.h"
#include "cpu/x86.h"

#include <errno.h>
#include <stdlib.h>

#define IOAPIC_IOREGSEL 0x00u
#define IOAPIC_IOWIN 0x10u
#define IOAPIC_REG_ID 0x00u
#define IOAPIC_REG_VERSION 0x01u
#define IOAPIC_REG_ARBITRATION 0x02u
#define IOAPIC_REG_TABLE 0x10u
#define IOAPIC_VERSION 0x11u

/* Redirection entry. */
#define ENTRY_VECTOR 0xffull
#define ENTRY_MODE_SHIFT 8
#define ENTRY_LOGICAL 0x800ull
#define ENTRY_REMOTE_IRR 0x4000ull
#define ENTRY_LEVEL 0x8000ull
#define ENTRY_MASKED 0x10000ull
#define ENTRY_DEST_SHIFT 56
#define ENTRY_READ_ONLY 0x5000ull /* delivery status, remote IRR */
#define ENTRY_WRITABLE 0xff0000000001afffull

struct ioapic {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct irq_router router;
    ioapic_route_fn route_fn;
    uint32_t select;
    uint32_t id;
    uint64_t entries[IOAPIC_PINS];
    uint32_t lines; /* asserted pins */
};

/* Messages have the format of SDM 3A 11.11: destination and mode in the address. */
static void entry_message(uint64_t entry, uint64_t *ret_address, uint32_t *ret_data)
{
    *ret_address = X86_APIC_DEFAULT_BASE | (entry >> ENTRY_DEST_SHIFT) << 12;
    *ret_data = (uint32_t)(entry & (ENTRY_VECTOR | 7ull << ENTRY_MODE_SHIFT | ENTRY_LEVEL));
    if ((entry & ENTRY_LOGICAL) != 0) {
        *ret_address |= 4;
    }
    if ((entry & ENTRY_LEVEL) != 0) {
        *ret_data |= 0x4000; /* assert */
    }
}

static void entry_send_locked(struct ioapic *ioapic, unsigned pin)
{
    uint64_t address = 0;
    uint32_t data = 0;

    entry_message(ioapic->entries[pin], &address, &data);
    if ((ioapic->entries[pin] & ENTRY_LEVEL) != 0) {
        ioapic->entries[pin] |= ENTRY_REMOTE_IRR;
    }
    irq_send_msi(&ioapic->router, address, data);
}

/* A level pin is sent while it is asserted, unmasked and not yet under service. */
static void level_service_locked(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->entries[pin];

    if ((entry & (ENTRY_LEVEL | ENTRY_MASKED | ENTRY_REMOTE_IRR)) == ENTRY_LEVEL &&
        (ioapic->lines & (1u << pin)) != 0) {
        entry_send_locked(ioapic, pin);
    }
}

void ioapic_set_line(struct ioapic *ioapic, unsigned pin, bool level)
{
    uint32_t bit = 0;
    bool was = false;

    if (pin >= IOAPIC_PINS) {
        return;
    }
    bit = 1u << pin;
    mutex_lock(&ioapic->mutex);
    was = (ioapic->lines & bit) != 0;
    ioapic->lines = level ? ioapic->lines | bit : ioapic->lines & ~bit;
    if (level && (ioapic->entries[pin] & ENTRY_LEVEL) != 0) {
        level_service_locked(ioapic, pin);
    } else if (level && !was && (ioapic->entries[pin] & ENTRY_MASKED) == 0) {
        entry_send_locked(ioapic, pin);
    }
    mutex_unlock(&ioapic->mutex);
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
    mutex_lock(&ioapic->mutex);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t entry = ioapic->entries[pin];

        if ((entry & ENTRY_VECTOR) == vector && (entry & ENTRY_LEVEL) != 0) {
            ioapic->entries[pin] &= ~ENTRY_REMOTE_IRR;
            level_service_locked(ioapic, pin);
        }
    }
    mutex_unlock(&ioapic->mutex);
}

static uint32_t register_read_locked(const struct ioapic *ioapic)
{
    uint32_t reg = ioapic->select;
    uint32_t index = reg - IOAPIC_REG_TABLE;

    if (reg == IOAPIC_REG_ID || reg == IOAPIC_REG_ARBITRATION) {
        return ioapic->id;
    }
    if (reg == IOAPIC_REG_VERSION) {
        return IOAPIC_VERSION | (IOAPIC_PINS - 1) << 16;
    }
    if (reg >= IOAPIC_REG_TABLE && index / 2 < IOAPIC_PINS) {
        return (uint32_t)(ioapic->entries[index / 2] >> (index % 2 * 32));
    }
    return UINT32_MAX;
}

static void entry_write_locked(struct ioapic *ioapic, unsigned pin, bool high, uint32_t value)
{
    uint64_t old = ioapic->entries[pin];
    uint64_t entry = 0;

    if (high) {
        entry = (old & 0xffffffffull) | (uint64_t)value << 32;
    } else {
        entry = (old & ~0xffffffffull) | value;
    }
    entry = (entry & ENTRY_WRITABLE & ~ENTRY_READ_ONLY) | (old & ENTRY_READ_ONLY);
    if ((entry & ENTRY_LEVEL) == 0) {
        entry &= ~ENTRY_REMOTE_IRR; /* a level pin made an edge pin is done with its service */
    }
    ioapic->entries[pin] = entry;
    if (ioapic->route_fn != NULL) {
        uint64_t address = 0;
        uint32_t data = 0;

        entry_message(entry, &address, &data);
        ioapic->route_fn(ioapic->router.opaque, pin, address, data);
    }
    level_service_locked(ioapic, pin);
}

static uint64_t window_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct ioapic *ioapic = opaque;
    uint32_t value = 0;

    (void)size_bytes; /* always 4 */
    mutex_lock(&ioapic->mutex);
    if (offset == IOAPIC_IOREGSEL) {
        value = ioapic->select;
    } else if (offset == IOAPIC_IOWIN) {
        value = register_read_locked(ioapic);
    }
    mutex_unlock(&ioapic->mutex);
    return value;
}

static void window_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct ioapic *ioapic = opaque;
    uint32_t index = 0;

    (void)size_bytes; /* always 4 */
    mutex_lock(&ioapic->mutex);
    index = ioapic->select - IOAPIC_REG_TABLE;
    if (offset == IOAPIC_IOREGSEL) {
        ioapic->select = (uint32_t)value & 0xff;
    } else if (offset == IOAPIC_IOWIN && ioapic->select == IOAPIC_REG_ID) {
        ioapic->id = (uint32_t)value & 0x0f000000;
    } else if (offset == IOAPIC_IOWIN && ioapic->select >= IOAPIC_REG_TABLE &&
               index / 2 < IOAPIC_PINS) {
        entry_write_locked(ioapic, index / 2, index % 2 != 0, (uint32_t)value);
    }
    mutex_unlock(&ioapic->mutex);
}

static const struct bus_ops window_ops = {
    .read = window_read,
    .write = window_write,
    .min_bytes = 4,
    .max_bytes = 4,
};

void ioapic_reset(struct ioapic *ioapic)
{
    mutex_lock(&ioapic->mutex);
    ioapic->select = 0;
    ioapic->id = 0;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        ioapic->entries[pin] = ENTRY_MASKED;
    }
    mutex_unlock(&ioapic->mutex);
}

int ioapic_create(struct bus *bus, uint64_t base, const struct irq_router *router,
                  ioapic_route_fn route_fn, struct ioapic **ret_ioapic)
{
    struct ioapic *ioapic = calloc(1, sizeof(*ioapic));
    int rc = 0;

    if (ioapic == NULL) {
        return -ENOMEM;
    }
    mutex_init(&ioapic->mutex, LOCK_RANK_IRQ);
    ioapic->bus = bus;
    ioapic->router = *router;
    ioapic->route_fn = route_fn;
    ioapic_reset(ioapic);
    rc = bus_map(bus, BUS_MMIO, base, IOAPIC_WINDOW_BYTES, &window_ops, ioapic, "i/o apic",
                 &ioapic->range);
    if (rc != 0) {
        ioapic_destroy(ioapic);
        return rc;
    }
    *ret_ioapic = ioapic;
    return 0;
}

void ioapic_destroy(struct ioapic *ioapic)
{
    if (ioapic == NULL) {
        return;
    }
    bus_unmap(ioapic->bus, ioapic->range);
    mutex_done(&ioapic->mutex);
    free(ioapic);
}
