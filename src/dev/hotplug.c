/*
 * What ACPI methods ask when devices come and go: registers of a bit per device,
 * and an event that says they changed.
 */
#include "base/thread.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

struct hotplug {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct hotplug_config config;
    uint32_t came;  /* reading takes them */
    uint32_t leave; /* reading takes them */
    uint32_t who;   /* whom the next status is about */
};

static uint32_t take(uint32_t *bits)
{
    uint32_t value = *bits;

    *bits = 0;
    return value;
}

static uint64_t hotplug_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct hotplug *hotplug = opaque;
    const struct hotplug_config *config = &hotplug->config;
    uint32_t value = 0;

    (void)size_bytes; /* always the whole register */
    if (offset == HOTPLUG_PRESENT) {
        return config->ops->present != NULL ? config->ops->present(config->opaque) : 0;
    }
    mutex_lock(&hotplug->mutex);
    if (offset == HOTPLUG_CAME) {
        value = take(&hotplug->came);
    } else if (offset == HOTPLUG_LEAVE) {
        value = take(&hotplug->leave);
    }
    mutex_unlock(&hotplug->mutex);
    return value;
}

static void hotplug_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct hotplug *hotplug = opaque;
    const struct hotplug_config *config = &hotplug->config;
    uint32_t who = 0;

    (void)size_bytes; /* always the whole register */
    if (offset == HOTPLUG_EJECT) {
        config->ops->ejected(config->opaque, (uint32_t)value);
        return;
    }
    mutex_lock(&hotplug->mutex);
    hotplug->who = offset == HOTPLUG_WHO ? (uint32_t)value : hotplug->who;
    who = hotplug->who;
    mutex_unlock(&hotplug->mutex);
    if (offset == HOTPLUG_STATUS && config->ops->status != NULL && who < 32) {
        config->ops->status(config->opaque, who, (uint32_t)value);
    }
}

static const struct bus_ops hotplug_ops = {
    .read = hotplug_read,
    .write = hotplug_write,
    .min_bytes = 4,
    .max_bytes = 4,
};

void hotplug_came(struct hotplug *hotplug, unsigned index)
{
    mutex_lock(&hotplug->mutex);
    hotplug->came |= 1u << index;
    hotplug->leave &= ~(1u << index);
    mutex_unlock(&hotplug->mutex);
    acpi_pm_raise_gpe(hotplug->config.pm, hotplug->config.gpe);
}

void hotplug_ask(struct hotplug *hotplug, unsigned index)
{
    mutex_lock(&hotplug->mutex);
    hotplug->leave |= 1u << index;
    hotplug->came &= ~(1u << index);
    mutex_unlock(&hotplug->mutex);
    acpi_pm_raise_gpe(hotplug->config.pm, hotplug->config.gpe);
}

void hotplug_reset(struct hotplug *hotplug)
{
    mutex_lock(&hotplug->mutex);
    hotplug->came = hotplug->leave = hotplug->who = 0;
    mutex_unlock(&hotplug->mutex);
}

int hotplug_create(const struct dev_env *env, const struct hotplug_config *config,
                   struct hotplug **ret_hotplug)
{
    struct hotplug *hotplug = calloc(1, sizeof(*hotplug));
    int rc = 0;

    if (hotplug == NULL) {
        return -ENOMEM;
    }
    mutex_init(&hotplug->mutex, LOCK_RANK_DEVICE);
    hotplug->bus = env->bus;
    hotplug->config = *config;
    rc = bus_map(env->bus, BUS_PIO, config->base, HOTPLUG_PORTS, &hotplug_ops, hotplug, "hotplug",
                 &hotplug->range);
    if (rc != 0) {
        hotplug_destroy(hotplug);
        return rc;
    }
    *ret_hotplug = hotplug;
    return 0;
}

void hotplug_destroy(struct hotplug *hotplug)
{
    if (hotplug == NULL) {
        return;
    }
    bus_unmap(hotplug->bus, hotplug->range);
    mutex_done(&hotplug->mutex);
    free(hotplug);
}
