/* The host bridge, configuration space and BARs. */
#include "bus/pci.h"

#include "base/log.h"
#include "base/wire.h"
#include "bus/pci_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Configuration mechanism #1 (PCI 3.0 §3.2.2.3.2). */
#define PCI_PORT_ADDRESS 0xcf8u
#define PCI_PORT_DATA 0xcfcu
#define PCI_ADDRESS_ENABLE 0x80000000u
#define PCI_ADDRESS_WRITABLE 0x80fffffcu

#define PCI_BRIDGE_VENDOR 0x8086u
#define PCI_BRIDGE_DEVICE 0x0d57u
#define PCI_BAR_TYPE_64 0x4u

static uint64_t bar_address(const struct pci_dev *dev, unsigned index)
{
    const uint8_t *reg = &dev->config[PCI_REG_BAR0 + 4 * index];
    uint64_t address = load_le32(reg) & ~0xfu;

    if (dev->bars[index].is_64bit) {
        address |= (uint64_t)load_le32(reg + 4) << 32;
    }
    return address;
}

static void bar_set_address(struct pci_dev *dev, unsigned index, uint64_t address)
{
    uint8_t *reg = &dev->config[PCI_REG_BAR0 + 4 * index];

    store_le32(reg, (uint32_t)address | (dev->bars[index].is_64bit ? PCI_BAR_TYPE_64 : 0));
    if (dev->bars[index].is_64bit) {
        store_le32(reg + 4, (uint32_t)(address >> 32));
    }
}

static void bar_doorbells_move_locked(struct pci_dev *dev, unsigned index, bool add)
{
    const struct pci_bar *bar = &dev->bars[index];

    for (unsigned i = 0; i < dev->doorbell_count; i++) {
        struct pci_doorbell *bell = &dev->doorbells[i];
        uint64_t address = bar->mapped + bell->offset;

        if (bell->bar != index || bell->is_added == add) {
            continue;
        }
        if (add) {
            /* On failure the write reaches the BAR's own ops, which do the same more slowly. */
            bell->is_added = bus_doorbell_add(dev->host->bus, BUS_MMIO, address, bell->size_bytes,
                                              false, 0, bell->fd) == 0;
        } else {
            bus_doorbell_remove(dev->host->bus, BUS_MMIO, address, bell->fd);
            bell->is_added = false;
        }
    }
}

static void bar_unmap_locked(struct pci_dev *dev, unsigned index)
{
    struct pci_bar *bar = &dev->bars[index];

    if (bar->range != NULL) {
        bar_doorbells_move_locked(dev, index, false);
        bus_unmap(dev->host->bus, bar->range);
        bar->range = NULL;
    }
}

static bool bar_is_wanted(const struct pci_dev *dev, unsigned index)
{
    uint16_t command = atomic_load_explicit(&dev->command, memory_order_relaxed);

    return dev->bars[index].size_bytes != 0 && (command & PCI_COMMAND_MEMORY) != 0 &&
           bar_address(dev, index) != 0;
}

static void bars_release_locked(struct pci_dev *dev)
{
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        const struct pci_bar *bar = &dev->bars[i];

        if (bar->range != NULL && (!bar_is_wanted(dev, i) || bar->mapped != bar_address(dev, i))) {
            bar_unmap_locked(dev, i);
        }
    }
}

static void bars_claim_locked(struct pci_dev *dev)
{
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        struct pci_bar *bar = &dev->bars[i];

        if (bar->range != NULL || !bar_is_wanted(dev, i)) {
            continue;
        }
        bar->mapped = bar_address(dev, i);
        if (bus_map(dev->host->bus, BUS_MMIO, bar->mapped, bar->size_bytes, bar->ops, bar->opaque,
                    dev->name, &bar->range) == 0) {
            bar_doorbells_move_locked(dev, i, true);
        }
    }
}

/* Makes the bus agree with the registers of dev. Where a guest lays a BAR over something else, the
 * first comer keeps the address until it moves away, so the others look as well. */
static void bars_update_locked(struct pci_dev *dev)
{
    struct pci_host *host = dev->host;

    bars_release_locked(dev);
    bars_claim_locked(dev);
    for (unsigned i = 0; i < PCI_MAX_SLOTS; i++) {
        if (host->devs[i] != NULL && host->devs[i] != dev) {
            bars_claim_locked(host->devs[i]);
        }
    }
}

static uint8_t config_read_byte(const struct pci_dev *dev, unsigned offset)
{
    if (offset == PCI_REG_STATUS && dev->line_wanted) {
        return dev->config[offset] | PCI_STATUS_INTERRUPT;
    }
    return dev->config[offset];
}

static bool overlaps(unsigned a, unsigned a_len, unsigned b, unsigned b_len)
{
    return a < b + b_len && b < a + a_len;
}

static void config_write_locked(struct pci_dev *dev, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = dev->write_mask[offset + i];
        uint8_t byte = (uint8_t)(value >> (8 * i));

        dev->config[offset + i] = (uint8_t)((dev->config[offset + i] & ~mask) | (byte & mask));
    }
    if (overlaps(offset, size, PCI_REG_COMMAND, 2) ||
        overlaps(offset, size, PCI_REG_BAR0, 4 * PCI_BAR_COUNT)) {
        atomic_store_explicit(&dev->command, load_le16(&dev->config[PCI_REG_COMMAND]),
                              memory_order_release);
        bars_update_locked(dev);
        pci_line_update(dev);
    }
    if (dev->msix.vectors != 0 && overlaps(offset, size, dev->msix.cap_offset + 2, 2)) {
        pci_msix_control_written(dev);
    }
}

static const struct pci_hook *hook_find(const struct pci_dev *dev, unsigned offset)
{
    for (unsigned i = 0; i < dev->hook_count; i++) {
        if (offset - dev->hooks[i].offset < dev->hooks[i].len) {
            return &dev->hooks[i];
        }
    }
    return NULL;
}

/*
 * One access within one dword. A hook is called without the mutex: it goes to
 * a device, which has locks of its own. Functions and hooks exist from before
 * the guest runs until after it, so the pointers stay good.
 */
static uint32_t config_access(struct pci_host *host, unsigned offset, unsigned size, bool is_write,
                              uint32_t value)
{
    const struct pci_hook *hook = NULL;
    struct pci_dev *dev = NULL;
    uint32_t address = 0;
    uint32_t result = UINT32_MAX;
    unsigned reg = 0;

    mutex_lock(&host->mutex);
    address = host->address;
    reg = (address & 0xfc) + offset;
    if ((address & PCI_ADDRESS_ENABLE) != 0 && ((address >> 16) & 0xff) == 0 &&
        ((address >> 8) & 7) == 0) {
        dev = host->devs[(address >> 11) & 0x1f];
    }
    if (dev != NULL) {
        hook = hook_find(dev, reg);
    }
    if (dev != NULL && hook == NULL) {
        if (is_write) {
            config_write_locked(dev, reg, size, value);
        } else {
            result = 0;
            for (unsigned i = 0; i < size; i++) {
                result |= (uint32_t)config_read_byte(dev, reg + i) << (8 * i);
            }
        }
    }
    mutex_unlock(&host->mutex);

    if (hook != NULL && is_write) {
        hook->ops->write(hook->opaque, reg - hook->offset, size, value);
    } else if (hook != NULL) {
        result = (uint32_t)hook->ops->read(hook->opaque, reg - hook->offset, size);
    }
    return result;
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    return config_access(opaque, (unsigned)offset, size_bytes, false, 0);
}

static void data_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    (void)config_access(opaque, (unsigned)offset, size_bytes, true, (uint32_t)value);
}

static uint64_t address_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct pci_host *host = opaque;
    uint32_t value = 0;

    (void)offset; /* always the whole register */
    (void)size_bytes;
    mutex_lock(&host->mutex);
    value = host->address;
    mutex_unlock(&host->mutex);
    return value;
}

static void address_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct pci_host *host = opaque;

    (void)offset; /* always the whole register */
    (void)size_bytes;
    mutex_lock(&host->mutex);
    host->address = (uint32_t)value & PCI_ADDRESS_WRITABLE;
    mutex_unlock(&host->mutex);
}

static const struct bus_ops address_ops = {
    .read = address_read,
    .write = address_write,
    .min_bytes = 4,
    .max_bytes = 4,
};

static const struct bus_ops data_ops = {
    .read = data_read,
    .write = data_write,
    .min_bytes = 1,
    .max_bytes = 4,
};

int pci_host_create(struct bus *bus, const struct irq_router *irq, uint64_t mmio_base,
                    uint64_t mmio_len, struct pci_host **ret_host)
{
    static const struct pci_dev_config bridge = {
        .name = "pci host bridge",
        .vendor_id = PCI_BRIDGE_VENDOR,
        .device_id = PCI_BRIDGE_DEVICE,
        .class_code = 0x06,
    };
    struct pci_host *host = calloc(1, sizeof(*host));
    int rc = 0;

    if (host == NULL) {
        return -ENOMEM;
    }
    mutex_init(&host->mutex, LOCK_RANK_PCI);
    mutex_init(&host->irq_mutex, LOCK_RANK_PCI_IRQ);
    host->bus = bus;
    host->irq = *irq;
    host->window_base = mmio_base;
    if (!ck_add_u64(mmio_base, mmio_len, &host->window_end)) {
        rc = -EINVAL;
    }
    if (rc == 0) {
        rc = bus_map(bus, BUS_PIO, PCI_PORT_ADDRESS, 4, &address_ops, host, "pci address",
                     &host->address_port);
    }
    if (rc == 0) {
        rc = bus_map(bus, BUS_PIO, PCI_PORT_DATA, 4, &data_ops, host, "pci data", &host->data_port);
    }
    if (rc == 0) {
        rc = pci_dev_create(host, &bridge, &host->bridge);
    }
    if (rc != 0) {
        pci_host_destroy(host);
        return rc;
    }
    *ret_host = host;
    return 0;
}

void pci_host_destroy(struct pci_host *host)
{
    if (host == NULL) {
        return;
    }
    pci_dev_destroy(host->bridge);
    bus_unmap(host->bus, host->data_port);
    bus_unmap(host->bus, host->address_port);
    mutex_done(&host->irq_mutex);
    mutex_done(&host->mutex);
    free(host);
}

void pci_host_reset(struct pci_host *host)
{
    mutex_lock(&host->mutex);
    host->address = 0;
    mutex_unlock(&host->mutex);
    for (unsigned i = 0; i < PCI_MAX_SLOTS; i++) {
        if (host->devs[i] != NULL) {
            pci_dev_reset(host->devs[i]);
        }
    }
}

int pci_cap_append(struct pci_dev *dev, uint8_t id, const void *body, unsigned len,
                   unsigned *ret_offset)
{
    unsigned offset = dev->next_free;
    unsigned link = dev->last_cap == 0 ? PCI_REG_CAPABILITIES : dev->last_cap + 1;

    if (len > PCI_CONFIG_BYTES - 2 || offset > PCI_CONFIG_BYTES - 2 - len) {
        return -ENOSPC;
    }
    dev->config[offset] = id;
    dev->config[offset + 1] = 0;
    memcpy(&dev->config[offset + 2], body, len);
    dev->config[link] = (uint8_t)offset;
    dev->config[PCI_REG_STATUS] |= PCI_STATUS_CAPABILITIES;
    dev->last_cap = offset;
    dev->next_free = (offset + 2 + len + 3) & ~3u;
    memcpy(dev->reset_config, dev->config, sizeof(dev->config));
    *ret_offset = offset;
    return 0;
}

static void header_init(struct pci_dev *dev, const struct pci_dev_config *config)
{
    uint8_t *c = dev->config;

    store_le16(&c[0], config->vendor_id);
    store_le16(&c[2], config->device_id);
    store_le16(&c[PCI_REG_COMMAND], PCI_COMMAND_MEMORY);
    c[PCI_REG_REVISION] = config->revision;
    c[PCI_REG_REVISION + 1] = config->prog_if;
    c[PCI_REG_REVISION + 2] = config->subclass;
    c[PCI_REG_REVISION + 3] = config->class_code;
    store_le16(&c[PCI_REG_SUBSYSTEM], config->subsystem_vendor_id);
    store_le16(&c[PCI_REG_SUBSYSTEM + 2], config->subsystem_id);
    if (config->interrupt_pin != 0) {
        c[PCI_REG_INTERRUPT_LINE] = (uint8_t)pci_slot_gsi(dev->slot);
        c[PCI_REG_INTERRUPT_PIN] = config->interrupt_pin;
    }
    store_le16(&dev->write_mask[PCI_REG_COMMAND], PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                                                      PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
                                                      PCI_COMMAND_INTX_OFF);
    dev->write_mask[PCI_REG_CACHE_LINE] = 0xff;
    dev->write_mask[PCI_REG_LATENCY] = 0xff;
    dev->write_mask[PCI_REG_INTERRUPT_LINE] = 0xff;
}

/* Where a BAR of len bytes overlaps none that another has from creation: *from is the first try. */
static bool window_overlap(const struct pci_host *host, uint64_t from, uint64_t len,
                           uint64_t *ret_next)
{
    for (unsigned slot = 0; slot < PCI_MAX_SLOTS; slot++) {
        for (unsigned i = 0; host->devs[slot] != NULL && i < PCI_BAR_COUNT; i++) {
            const struct pci_bar *bar = &host->devs[slot]->bars[i];

            if (bar->size_bytes != 0 && from < bar->placed + bar->size_bytes &&
                bar->placed < from + len) {
                *ret_next = bar->placed + bar->size_bytes;
                return true;
            }
        }
    }
    return false;
}

/* The lowest free place of the window; devices come and go. -ENOSPC. */
static int window_find(const struct pci_host *host, uint64_t from, uint64_t len,
                       uint64_t *ret_address)
{
    uint64_t end = 0;

    for (;;) {
        if (!ck_align_u64(from, len, &from) || !ck_add_u64(from, len, &end) ||
            end > host->window_end) {
            return -ENOSPC;
        }
        if (!window_overlap(host, from, len, &from)) {
            *ret_address = from;
            return 0;
        }
    }
}

static int bar_init(struct pci_dev *dev, unsigned index, const struct pci_bar_config *config)
{
    struct pci_bar *bar = &dev->bars[index];
    uint64_t mask = ~(config->size_bytes - 1);
    uint8_t *write_mask = &dev->write_mask[PCI_REG_BAR0 + 4 * index];
    int rc = 0;

    if (config->size_bytes < 4096 || (config->size_bytes & (config->size_bytes - 1)) != 0 ||
        (config->is_64bit && index + 1 >= PCI_BAR_COUNT)) {
        return -EINVAL;
    }
    rc = window_find(dev->host, dev->window_from, config->size_bytes, &bar->placed);
    if (rc != 0) {
        return rc;
    }
    dev->window_from = bar->placed + config->size_bytes; /* not in the table of devices yet */
    bar->size_bytes = config->size_bytes;
    bar->is_64bit = config->is_64bit;
    bar->ops = config->ops;
    bar->opaque = config->opaque;
    store_le32(write_mask, (uint32_t)mask & ~0xfu);
    if (config->is_64bit) {
        store_le32(write_mask + 4, (uint32_t)(mask >> 32));
    }
    bar_set_address(dev, index, bar->placed);
    return 0;
}

static int bars_init(struct pci_dev *dev, const struct pci_dev_config *config)
{
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        int rc = 0;

        if (config->bars[i].size_bytes != 0) {
            rc = bar_init(dev, i, &config->bars[i]);
        }
        if (rc != 0) {
            return rc;
        }
    }
    if (config->msix_vectors != 0) {
        const struct pci_bar_config bar = {
            .size_bytes = PCI_MSIX_BAR_BYTES,
            .ops = &pci_msix_bar_ops,
            .opaque = dev,
        };
        int rc = 0;

        if (config->msix_bar >= PCI_BAR_COUNT || config->msix_vectors > PCI_MSIX_MAX_VECTORS ||
            dev->bars[config->msix_bar].size_bytes != 0) {
            return -EINVAL;
        }
        rc = bar_init(dev, config->msix_bar, &bar);
        return rc != 0 ? rc : pci_msix_init(dev, config->msix_vectors, config->msix_bar);
    }
    return 0;
}

static int dev_insert_locked(struct pci_host *host, struct pci_dev *dev,
                             const struct pci_dev_config *config)
{
    int rc = 0;

    while (dev->slot < PCI_MAX_SLOTS && host->devs[dev->slot] != NULL) {
        dev->slot++;
    }
    if (dev->slot == PCI_MAX_SLOTS) {
        return -ENOSPC;
    }
    header_init(dev, config);
    rc = bars_init(dev, config);
    if (rc != 0) {
        return rc;
    }
    memcpy(dev->reset_config, dev->config, sizeof(dev->config));
    atomic_store_explicit(&dev->command, load_le16(&dev->config[PCI_REG_COMMAND]),
                          memory_order_release);
    host->devs[dev->slot] = dev;
    bars_update_locked(dev);
    return 0;
}

int pci_dev_create(struct pci_host *host, const struct pci_dev_config *config,
                   struct pci_dev **ret_dev)
{
    struct pci_dev *dev = calloc(1, sizeof(*dev));
    int rc = 0;

    if (dev == NULL) {
        return -ENOMEM;
    }
    dev->host = host;
    dev->name = config->name;
    dev->window_from = host->window_base;
    dev->next_free = PCI_REG_FIRST_FREE;

    mutex_lock(&host->mutex);
    rc = dev_insert_locked(host, dev, config);
    mutex_unlock(&host->mutex);
    if (rc != 0) {
        free(dev);
        return rc;
    }
    *ret_dev = dev;
    return 0;
}

void pci_dev_destroy(struct pci_dev *dev)
{
    if (dev == NULL) {
        return;
    }
    pci_set_intx(dev, false);
    mutex_lock(&dev->host->mutex);
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
        bar_unmap_locked(dev, i);
    }
    dev->host->devs[dev->slot] = NULL;
    mutex_unlock(&dev->host->mutex);
    free(dev);
}

void pci_dev_reset(struct pci_dev *dev)
{
    mutex_lock(&dev->host->mutex);
    memcpy(dev->config, dev->reset_config, sizeof(dev->config));
    atomic_store_explicit(&dev->command, load_le16(&dev->config[PCI_REG_COMMAND]),
                          memory_order_release);
    bars_update_locked(dev);
    pci_msix_reset(dev);
    mutex_unlock(&dev->host->mutex);
    pci_set_intx(dev, false);
}

unsigned pci_dev_slot(const struct pci_dev *dev)
{
    return dev->slot;
}

int pci_dev_add_vendor_cap(struct pci_dev *dev, const void *body, unsigned len)
{
    unsigned offset = 0;
    int rc = 0;

    mutex_lock(&dev->host->mutex);
    rc = pci_cap_append(dev, PCI_CAP_VENDOR, body, len, &offset);
    mutex_unlock(&dev->host->mutex);
    return rc != 0 ? rc : (int)offset;
}

int pci_dev_hook_config(struct pci_dev *dev, unsigned offset, unsigned len,
                        const struct bus_ops *ops, void *opaque)
{
    /* Whole dwords, so that no access lies half in a hook. */
    if (offset < PCI_REG_FIRST_FREE || offset >= PCI_CONFIG_BYTES || len == 0 ||
        len > PCI_CONFIG_BYTES - offset || offset % 4 != 0 || len % 4 != 0 || ops->min_bytes > 1 ||
        ops->max_bytes < 4) {
        return -EINVAL;
    }
    if (dev->hook_count == PCI_MAX_HOOKS) {
        return -ENOSPC;
    }
    mutex_lock(&dev->host->mutex);
    dev->hooks[dev->hook_count] =
        (struct pci_hook){.offset = offset, .len = len, .ops = ops, .opaque = opaque};
    dev->hook_count++;
    mutex_unlock(&dev->host->mutex);
    return 0;
}

int pci_dev_add_doorbell(struct pci_dev *dev, unsigned bar, uint64_t offset, unsigned size_bytes,
                         int fd)
{
    int rc = 0;

    mutex_lock(&dev->host->mutex);
    if (bar >= PCI_BAR_COUNT || offset >= dev->bars[bar].size_bytes ||
        size_bytes > dev->bars[bar].size_bytes - offset) {
        rc = -EINVAL;
    } else if (dev->doorbell_count == PCI_MAX_DOORBELLS) {
        rc = -ENOSPC;
    } else {
        dev->doorbells[dev->doorbell_count] =
            (struct pci_doorbell){.bar = bar, .offset = offset, .size_bytes = size_bytes, .fd = fd};
        dev->doorbell_count++;
        if (dev->bars[bar].range != NULL) {
            bar_doorbells_move_locked(dev, bar, true);
        }
    }
    mutex_unlock(&dev->host->mutex);
    return rc;
}

bool pci_bus_master(const struct pci_dev *dev)
{
    return (atomic_load_explicit(&dev->command, memory_order_acquire) & PCI_COMMAND_MASTER) != 0;
}
