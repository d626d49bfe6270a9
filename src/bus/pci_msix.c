/* MSI-X (PCI 3.0 §6.8.2) and the INTx lines. */
#include "base/wire.h"
#include "bus/pci_internal.h"

#include <string.h>

int pci_msix_init(struct pci_dev *dev, unsigned vectors, unsigned bar)
{
    uint8_t body[10] = {0};
    unsigned offset = 0;
    int rc = 0;

    store_le16(&body[0], (uint16_t)(vectors - 1));
    store_le32(&body[2], bar);
    store_le32(&body[6], PCI_MSIX_PBA | bar);
    rc = pci_cap_append(dev, PCI_CAP_MSIX, body, sizeof(body), &offset);
    if (rc != 0) {
        return rc;
    }
    store_le16(&dev->write_mask[offset + 2], PCI_MSIX_ENABLE | PCI_MSIX_FUNCTION_MASK);
    dev->msix.vectors = vectors;
    dev->msix.bar = bar;
    dev->msix.cap_offset = offset;
    pci_msix_reset(dev);
    return 0;
}

void pci_msix_reset(struct pci_dev *dev)
{
    struct pci_msix *msix = &dev->msix;

    mutex_lock(&dev->host->irq_mutex);
    memset(msix->entries, 0, sizeof(msix->entries));
    for (unsigned i = 0; i < PCI_MSIX_MAX_VECTORS; i++) {
        msix->entries[i].control = PCI_MSIX_ENTRY_MASKED;
    }
    msix->pending = 0;
    atomic_store_explicit(&msix->control, 0, memory_order_release);
    mutex_unlock(&dev->host->irq_mutex);
}

static bool vector_may_send(const struct pci_msix *msix, unsigned vector)
{
    uint16_t control = atomic_load_explicit(&msix->control, memory_order_relaxed);

    return (control & PCI_MSIX_ENABLE) != 0 && (control & PCI_MSIX_FUNCTION_MASK) == 0 &&
           (msix->entries[vector].control & PCI_MSIX_ENTRY_MASKED) == 0;
}

/* Under irq_mutex: sends what is pending and no longer masked. */
static void pending_send_locked(struct pci_dev *dev)
{
    struct pci_msix *msix = &dev->msix;

    for (unsigned i = 0; i < msix->vectors && msix->pending != 0; i++) {
        if ((msix->pending & (1ull << i)) != 0 && vector_may_send(msix, i)) {
            msix->pending &= ~(1ull << i);
            irq_send_msi(&dev->host->irq, msix->entries[i].address, msix->entries[i].data);
        }
    }
}

void pci_msix_control_written(struct pci_dev *dev)
{
    struct pci_msix *msix = &dev->msix;
    uint16_t control = load_le16(&dev->config[msix->cap_offset + 2]);

    mutex_lock(&dev->host->irq_mutex);
    atomic_store_explicit(&msix->control, control & (PCI_MSIX_ENABLE | PCI_MSIX_FUNCTION_MASK),
                          memory_order_release);
    pending_send_locked(dev);
    mutex_unlock(&dev->host->irq_mutex);
    pci_line_update(dev);
}

bool pci_msix_enabled(const struct pci_dev *dev)
{
    return (atomic_load_explicit(&dev->msix.control, memory_order_acquire) & PCI_MSIX_ENABLE) != 0;
}

void pci_msix_notify(struct pci_dev *dev, unsigned vector)
{
    struct pci_msix *msix = &dev->msix;

    if (vector >= msix->vectors) {
        return;
    }
    mutex_lock(&dev->host->irq_mutex);
    if (vector_may_send(msix, vector)) {
        irq_send_msi(&dev->host->irq, msix->entries[vector].address, msix->entries[vector].data);
    } else if (pci_msix_enabled(dev)) {
        msix->pending |= 1ull << vector;
    }
    mutex_unlock(&dev->host->irq_mutex);
}

static uint64_t msix_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct pci_dev *dev = opaque;
    struct pci_msix *msix = &dev->msix;
    unsigned vector = (unsigned)(offset / PCI_MSIX_ENTRY_BYTES);
    uint64_t value = 0;

    (void)size_bytes; /* always 4 */
    mutex_lock(&dev->host->irq_mutex);
    if (offset >= PCI_MSIX_PBA) {
        if (offset < PCI_MSIX_PBA + 8) {
            value = (uint32_t)(msix->pending >> ((offset - PCI_MSIX_PBA) * 8));
        }
    } else if (vector < msix->vectors) {
        const struct pci_msix_entry *entry = &msix->entries[vector];
        const uint32_t words[4] = {(uint32_t)entry->address, (uint32_t)(entry->address >> 32),
                                   entry->data, entry->control};

        value = words[(offset / 4) % 4];
    }
    mutex_unlock(&dev->host->irq_mutex);
    return value;
}

static void msix_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct pci_dev *dev = opaque;
    struct pci_msix *msix = &dev->msix;
    unsigned vector = (unsigned)(offset / PCI_MSIX_ENTRY_BYTES);
    struct pci_msix_entry *entry = NULL;

    (void)size_bytes; /* always 4 */
    if (offset >= PCI_MSIX_PBA || vector >= msix->vectors) {
        return; /* pending bits are read-only */
    }
    mutex_lock(&dev->host->irq_mutex);
    entry = &msix->entries[vector];
    switch ((offset / 4) % 4) {
    case 0:
        entry->address = (entry->address & ~0xffffffffull) | (value & ~3ull);
        break;
    case 1:
        entry->address = (entry->address & 0xffffffffull) | (value << 32);
        break;
    case 2:
        entry->data = (uint32_t)value;
        break;
    default:
        entry->control = (uint32_t)value & PCI_MSIX_ENTRY_MASKED;
        pending_send_locked(dev);
        break;
    }
    mutex_unlock(&dev->host->irq_mutex);
}

const struct bus_ops pci_msix_bar_ops = {
    .read = msix_read,
    .write = msix_write,
    .min_bytes = 4,
    .max_bytes = 4,
};

unsigned pci_slot_gsi(unsigned slot)
{
    return 16 + slot % PCI_LINES;
}

void pci_line_update(struct pci_dev *dev)
{
    struct pci_host *host = dev->host;
    unsigned line = dev->slot % PCI_LINES;
    bool drive = false;

    mutex_lock(&host->irq_mutex);
    drive = dev->line_wanted && !pci_msix_enabled(dev) &&
            (atomic_load_explicit(&dev->command, memory_order_relaxed) & PCI_COMMAND_INTX_OFF) == 0;
    if (drive && !dev->line_driven) {
        host->line_users[line]++;
        if (host->line_users[line] == 1) {
            irq_set_line(&host->irq, pci_slot_gsi(dev->slot), true);
        }
    } else if (!drive && dev->line_driven) {
        host->line_users[line]--;
        if (host->line_users[line] == 0) {
            irq_set_line(&host->irq, pci_slot_gsi(dev->slot), false);
        }
    }
    dev->line_driven = drive;
    mutex_unlock(&host->irq_mutex);
}

void pci_set_intx(struct pci_dev *dev, bool level)
{
    mutex_lock(&dev->host->irq_mutex);
    dev->line_wanted = level;
    mutex_unlock(&dev->host->irq_mutex);
    pci_line_update(dev);
}
