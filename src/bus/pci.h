/*
 * PCI: one root bus, configuration space by mechanism #1 (ports 0xcf8/0xcfc),
 * type 0 functions with memory BARs, capabilities and MSI-X.
 *
 * PCI Local Bus 3.0 is the specification cited. A function registers its BARs'
 * bus_ops; the core maps and unmaps them on the bus as the guest programs the
 * command register and BARs. Configuration registers have a write mask each;
 * unknown ones read as zero. Any vCPU thread may access configuration space;
 * the core takes the host bridge's mutex (LOCK_RANK_PCI), never while a
 * function's own callbacks run.
 */
#ifndef CORBEL_BUS_PCI_H
#define CORBEL_BUS_PCI_H

#include "base/compiler.h"
#include "bus/bus.h"
#include "bus/irq.h"

#include <stdbool.h>
#include <stdint.h>

#define PCI_CONFIG_BYTES 256
#define PCI_BAR_COUNT 6
#define PCI_MAX_SLOTS 32
#define PCI_MSIX_MAX_VECTORS 64

struct pci_host;
struct pci_dev;

struct pci_bar_config {
    uint64_t size_bytes; /* power of two, at least 4096; 0 when absent */
    bool is_64bit;       /* takes the next slot too */
    const struct bus_ops *ops;
    void *opaque;
};

struct pci_dev_config {
    const char *name; /* static storage */
    uint16_t vendor_id, device_id, subsystem_vendor_id, subsystem_id;
    uint8_t class_code, subclass, prog_if, revision;
    struct pci_bar_config bars[PCI_BAR_COUNT];
    uint8_t msix_vectors; /* 0: none. Table and PBA get a BAR of their own: msix_bar */
    uint8_t msix_bar;
    uint8_t interrupt_pin; /* 0 none, 1 INTA# */
};

/* mmio_base/len: the window BARs are placed in (the machine's memory map). */
int pci_host_create(struct bus *bus, const struct irq_router *irq, uint64_t mmio_base,
                    uint64_t mmio_len, struct pci_host **ret_host) MUST_CHECK;
void pci_host_destroy(struct pci_host *host); /* after all functions; accepts NULL */
void pci_host_reset(struct pci_host *host);   /* and every function, by pci_dev_reset() */

/* Takes the next free slot; BARs are placed at once, as firmware would. -ENOSPC when full. */
int pci_dev_create(struct pci_host *host, const struct pci_dev_config *config,
                   struct pci_dev **ret_dev) MUST_CHECK;
void pci_dev_destroy(struct pci_dev *dev); /* accepts NULL */
void pci_dev_reset(struct pci_dev *dev);   /* BAR addresses as first placed, MSI-X off */

unsigned pci_dev_slot(const struct pci_dev *dev);
/* Appends a vendor capability (id 0x09) body of len bytes (without id/next), returns its
 * offset or -ENOSPC. Before the guest runs. */
int pci_dev_add_vendor_cap(struct pci_dev *dev, const void *body, unsigned len) MUST_CHECK;
/* Whole dwords of configuration space that the function itself answers (virtio-pci's cfg window),
 * in accesses of 1, 2 or 4 bytes. */
int pci_dev_hook_config(struct pci_dev *dev, unsigned offset, unsigned len,
                        const struct bus_ops *ops, void *opaque) MUST_CHECK;

/* A doorbell (bus.h) of size_bytes at offset inside a BAR, for any data written: it follows the
 * BAR as the guest places, enables and disables it. fd stays the caller's and must outlive the
 * function. Writes still reach the BAR's ops where no doorbell catches them. Before the guest runs. */
int pci_dev_add_doorbell(struct pci_dev *dev, unsigned bar, uint64_t offset, unsigned size_bytes,
                         int fd) MUST_CHECK;

bool pci_msix_enabled(const struct pci_dev *dev);
/* Sends vector now, or leaves it pending while masked. Any thread. */
void pci_msix_notify(struct pci_dev *dev, unsigned vector);
/* INTx level; used when MSI-X is off. GSI as pci_slot_gsi() says. */
void pci_set_intx(struct pci_dev *dev, bool level);
/* The GSI that INTA# of a slot is wired to (16 + slot % 8); ACPI's _PRT says the same. */
unsigned pci_slot_gsi(unsigned slot);
/* True while the guest allows the function to be bus master. */
bool pci_bus_master(const struct pci_dev *dev);

#endif
