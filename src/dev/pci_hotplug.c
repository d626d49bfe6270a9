/*
 * What ACPI methods ask when devices come and go: three registers of a bit per
 * PCI slot, and an event that says they changed.
 */
#include "base/thread.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

struct pci_hotplug {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct acpi_pm *pm;
    const struct pci_hotplug_ops *ops;
    void *opaque;
    uint32_t came;  /* reading takes them */
    uint32_t leave; /* reading takes them */
};

static uint64_t hotplug_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct pci_hotplug *hotplug = opaque;
    uint32_t value = 0;

    (void)size_bytes; /* always the whole register */
    mutex_lock(&hotplug->mutex);
    if (offset == PCI_HOTPLUG_CAME) {
        value = hotplug->came;
        hotplug->came = 0;
    } else if (offset == PCI_HOTPLUG_LEAVE) {
        value = hotplug->leave;
        hotplug->leave = 0;
    }
    mutex_unlock(&hotplug->mutex);
    return value;
}

static void hotplug_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct pci_hotplug *hotplug = opaque;

    (void)size_bytes; /* always the whole register */
    if (offset == PCI_HOTPLUG_EJECT) {
        hotplug->ops->ejected(hotplug->opaque, (uint32_t)value);
    }
}

static const struct bus_ops hotplug_ops = {
    .read = hotplug_read,
    .write = hotplug_write,
    .min_bytes = 4,
    .max_bytes = 4,
};

void pci_hotplug_came(struct pci_hotplug *hotplug, unsigned slot)
{
    mutex_lock(&hotplug->mutex);
    hotplug->came |= 1u << slot;
    mutex_unlock(&hotplug->mutex);
    acpi_pm_raise_gpe(hotplug->pm, PCI_HOTPLUG_GPE);
}

void pci_hotplug_ask(struct pci_hotplug *hotplug, unsigned slot)
{
    mutex_lock(&hotplug->mutex);
    hotplug->leave |= 1u << slot;
    mutex_unlock(&hotplug->mutex);
    acpi_pm_raise_gpe(hotplug->pm, PCI_HOTPLUG_GPE);
}

void pci_hotplug_reset(struct pci_hotplug *hotplug)
{
    mutex_lock(&hotplug->mutex);
    hotplug->came = hotplug->leave = 0;
    mutex_unlock(&hotplug->mutex);
}

int pci_hotplug_create(const struct dev_env *env, uint16_t base, struct acpi_pm *pm,
                       const struct pci_hotplug_ops *ops, void *opaque,
                       struct pci_hotplug **ret_hotplug)
{
    struct pci_hotplug *hotplug = calloc(1, sizeof(*hotplug));
    int rc = 0;

    if (hotplug == NULL) {
        return -ENOMEM;
    }
    mutex_init(&hotplug->mutex, LOCK_RANK_DEVICE);
    hotplug->bus = env->bus;
    hotplug->pm = pm;
    hotplug->ops = ops;
    hotplug->opaque = opaque;
    rc = bus_map(env->bus, BUS_PIO, base, PCI_HOTPLUG_PORTS, &hotplug_ops, hotplug, "pci hotplug",
                 &hotplug->range);
    if (rc != 0) {
        pci_hotplug_destroy(hotplug);
        return rc;
    }
    *ret_hotplug = hotplug;
    return 0;
}

void pci_hotplug_destroy(struct pci_hotplug *hotplug)
{
    if (hotplug == NULL) {
        return;
    }
    bus_unmap(hotplug->bus, hotplug->range);
    mutex_done(&hotplug->mutex);
    free(hotplug);
}
