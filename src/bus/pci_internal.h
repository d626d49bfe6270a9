/*
 * What pci.c and pci_msix.c share; for them only.
 *
 * Configuration space, BARs and doorbells belong to host->mutex
 * (LOCK_RANK_PCI); MSI-X tables and line levels to host->irq_mutex
 * (LOCK_RANK_PCI_IRQ). The command and MSI-X flags are atomic, so that devices
 * may ask for them without a lock.
 */
#ifndef CORBEL_BUS_PCI_INTERNAL_H
#define CORBEL_BUS_PCI_INTERNAL_H

#include "base/thread.h"
#include "bus/pci.h"

#include <stdatomic.h>

#define PCI_MAX_DOORBELLS 64
#define PCI_MAX_HOOKS 4
#define PCI_LINES 8

/* Registers of the type 0 header (PCI 3.0 §6.1). */
#define PCI_REG_COMMAND 0x04u
#define PCI_REG_STATUS 0x06u
#define PCI_REG_REVISION 0x08u
#define PCI_REG_CACHE_LINE 0x0cu
#define PCI_REG_LATENCY 0x0du
#define PCI_REG_BAR0 0x10u
#define PCI_REG_SUBSYSTEM 0x2cu
#define PCI_REG_CAPABILITIES 0x34u
#define PCI_REG_INTERRUPT_LINE 0x3cu
#define PCI_REG_INTERRUPT_PIN 0x3du
#define PCI_REG_FIRST_FREE 0x40u

#define PCI_COMMAND_MEMORY 0x0002u
#define PCI_COMMAND_MASTER 0x0004u
#define PCI_COMMAND_PARITY 0x0040u
#define PCI_COMMAND_SERR 0x0100u
#define PCI_COMMAND_INTX_OFF 0x0400u
#define PCI_STATUS_INTERRUPT 0x0008u
#define PCI_STATUS_CAPABILITIES 0x0010u
#define PCI_CAP_VENDOR 0x09u
#define PCI_CAP_MSIX 0x11u

/* The MSI-X BAR: the table at 0, the pending bits at PCI_MSIX_PBA. */
#define PCI_MSIX_BAR_BYTES 4096u
#define PCI_MSIX_PBA 0x800u
#define PCI_MSIX_ENTRY_BYTES 16u
#define PCI_MSIX_ENTRY_MASKED 1u /* vector control, bit 0 */
#define PCI_MSIX_ENABLE 0x8000u  /* message control */
#define PCI_MSIX_FUNCTION_MASK 0x4000u

struct pci_bar {
    uint64_t size_bytes; /* 0: none, or the upper half of the one before */
    uint64_t placed;     /* address given at creation */
    bool is_64bit;
    const struct bus_ops *ops;
    void *opaque;
    struct bus_range *range; /* NULL while not mapped */
    uint64_t mapped;         /* where, while range is not NULL */
};

struct pci_doorbell {
    unsigned bar;
    uint64_t offset;
    unsigned size_bytes;
    int fd;
    bool is_added; /* at mapped + offset of its BAR */
};

struct pci_hook {
    unsigned offset;
    unsigned len;
    const struct bus_ops *ops;
    void *opaque;
};

struct pci_msix_entry {
    uint64_t address;
    uint32_t data;
    uint32_t control;
};

struct pci_msix {
    unsigned vectors;
    unsigned bar;
    unsigned cap_offset;
    _Atomic uint16_t control;
    struct pci_msix_entry entries[PCI_MSIX_MAX_VECTORS];
    uint64_t pending;
};

struct pci_dev {
    struct pci_host *host;
    const char *name;
    unsigned slot;
    uint8_t config[PCI_CONFIG_BYTES];
    uint8_t write_mask[PCI_CONFIG_BYTES];
    uint8_t reset_config[PCI_CONFIG_BYTES];
    struct pci_bar bars[PCI_BAR_COUNT];
    struct pci_doorbell doorbells[PCI_MAX_DOORBELLS];
    unsigned doorbell_count;
    struct pci_hook hooks[PCI_MAX_HOOKS];
    unsigned hook_count;
    unsigned last_cap; /* offset of the last capability, 0: none */
    unsigned next_free;
    uint64_t window_from; /* where to look for the next BAR's place, at creation */
    struct pci_msix msix;
    _Atomic uint16_t command;
    _Atomic bool line_wanted; /* the function asserts INTx */
    bool line_driven;         /* and it counts in the host's line */
};

struct pci_host {
    struct mutex mutex;
    struct mutex irq_mutex;
    struct bus *bus;
    struct irq_router irq;
    struct bus_range *address_port;
    struct bus_range *data_port;
    uint32_t address; /* CONFIG_ADDRESS */
    uint64_t window_base;
    uint64_t window_end;
    struct pci_dev *devs[PCI_MAX_SLOTS];
    struct pci_dev *bridge;
    unsigned line_users[PCI_LINES];
};

/* Appends a capability with this id; -ENOSPC. */
int pci_cap_append(struct pci_dev *dev, uint8_t id, const void *body, unsigned len,
                   unsigned *ret_offset) MUST_CHECK;

/* Adds the capability; the BAR is in dev->bars already. */
int pci_msix_init(struct pci_dev *dev, unsigned vectors, unsigned bar) MUST_CHECK;
/* Power-on state: disabled, all entries masked, nothing pending. */
void pci_msix_reset(struct pci_dev *dev);
/* The guest wrote message control. host->mutex is held. */
void pci_msix_control_written(struct pci_dev *dev);
/* Recomputes what the function drives on its INTx line. host->mutex may be held. */
void pci_line_update(struct pci_dev *dev);

extern const struct bus_ops pci_msix_bar_ops;

#endif
