/* ACPI 6.3 §4.8: the fixed hardware registers, always in ACPI mode (FADT's SMI_CMD is 0). */
#include "base/clock.h"
#include "base/loop.h"
#include "base/thread.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

#define TIMER_HZ 3579545ull
#define TIMER_CARRY 0x80000000u

#define STS_TIMER 0x0001u
#define STS_GLOBAL 0x0020u
#define STS_POWER_BUTTON 0x0100u
#define STS_RTC 0x0400u /* can be enabled, as Linux does; the clock raises its own line */
#define STS_ALL (STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_RTC)
#define CNT_SCI_ENABLE 0x0001u
#define CNT_WRITABLE 0x1c02u /* SLP_TYP, BM_RLD */
#define CNT_SLP_TYP_SHIFT 10
#define CNT_SLP_ENABLE 0x2000u

struct acpi_pm {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct irq_router irq;
    unsigned gsi;
    const struct dev_power_ops *ops;
    void *opaque;
    uint64_t start_ns;
    uint16_t status;
    uint16_t enable;
    uint16_t control;
    uint8_t gpe_status;
    uint8_t gpe_enable;
    uint32_t carry; /* of the timer, when its status was last looked at */
    bool line;
};

enum action { ACTION_NONE, ACTION_RESET, ACTION_POWER_OFF };

static uint32_t timer_now(const struct acpi_pm *pm)
{
    uint64_t ns = clock_monotonic_ns() - pm->start_ns;

    return (uint32_t)((unsigned __int128)ns * TIMER_HZ / NS_PER_S);
}

/* TMR_STS is set when bit 31 changes (§4.8.3.1.1): seen when somebody looks, no interrupt. */
static void timer_status_update_locked(struct acpi_pm *pm)
{
    uint32_t carry = timer_now(pm) & TIMER_CARRY;

    if (carry != pm->carry) {
        pm->carry = carry;
        pm->status |= STS_TIMER;
    }
}

static void line_update_locked(struct acpi_pm *pm)
{
    bool line = (pm->status & pm->enable & STS_ALL) != 0 || (pm->gpe_status & pm->gpe_enable) != 0;

    if (line != pm->line) {
        pm->line = line;
        irq_set_line(&pm->irq, pm->gsi, line);
    }
}

/* The registers as bytes: a guest may use any access size. */
static uint8_t byte_read_locked(struct acpi_pm *pm, uint64_t offset)
{
    uint32_t value = 0;

    switch (offset & ~3ull) {
    case ACPI_PM_EVENT:
        timer_status_update_locked(pm);
        value = pm->status | (uint32_t)pm->enable << 16;
        break;
    case ACPI_PM_CONTROL:
        value = pm->control | CNT_SCI_ENABLE;
        break;
    case ACPI_PM_GPE:
        value = pm->gpe_status | (uint32_t)pm->gpe_enable << 8;
        break;
    default:
        break;
    }
    return (uint8_t)(value >> ((offset & 3) * 8));
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct acpi_pm *pm = opaque;
    uint64_t value = 0;

    mutex_lock(&pm->mutex);
    if ((offset & ~3ull) == ACPI_PM_TIMER) {
        value = timer_now(pm) >> ((offset & 3) * 8);
    } else {
        for (unsigned i = 0; i < size_bytes; i++) {
            value |= (uint64_t)byte_read_locked(pm, offset + i) << (i * 8);
        }
    }
    mutex_unlock(&pm->mutex);
    return value;
}

static uint16_t byte_merge(uint16_t old, unsigned index, uint8_t byte)
{
    return (uint16_t)((old & ~(0xffu << (index * 8))) | (unsigned)byte << (index * 8));
}

static enum action control_write_locked(struct acpi_pm *pm, unsigned index, uint8_t byte)
{
    uint16_t value = byte_merge(pm->control, index, byte);
    unsigned type = (value >> CNT_SLP_TYP_SHIFT) & 7;

    pm->control = value & CNT_WRITABLE;
    return (value & CNT_SLP_ENABLE) != 0 && type == ACPI_PM_SLP_TYP_S5 ? ACTION_POWER_OFF
                                                                       : ACTION_NONE;
}

static enum action byte_write_locked(struct acpi_pm *pm, uint64_t offset, uint8_t byte)
{
    switch (offset) {
    case ACPI_PM_EVENT: /* status: write 1 to clear */
    case ACPI_PM_EVENT + 1:
        pm->status &= (uint16_t) ~((unsigned)byte << ((offset & 1) * 8));
        return ACTION_NONE;
    case ACPI_PM_EVENT + 2:
    case ACPI_PM_EVENT + 3:
        pm->enable = byte_merge(pm->enable, offset & 1, byte) & STS_ALL;
        return ACTION_NONE;
    case ACPI_PM_CONTROL:
    case ACPI_PM_CONTROL + 1:
        return control_write_locked(pm, offset & 1, byte);
    case ACPI_PM_GPE: /* status: write 1 to clear */
        pm->gpe_status &= (uint8_t)~byte;
        return ACTION_NONE;
    case ACPI_PM_GPE + 1:
        pm->gpe_enable = byte;
        return ACTION_NONE;
    case ACPI_PM_RESET:
        return byte == ACPI_PM_RESET_VALUE ? ACTION_RESET : ACTION_NONE;
    default:
        return ACTION_NONE;
    }
}

static void pm_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct acpi_pm *pm = opaque;
    enum action action = ACTION_NONE;

    mutex_lock(&pm->mutex);
    timer_status_update_locked(pm);
    for (unsigned i = 0; i < size_bytes && action == ACTION_NONE; i++) {
        action = byte_write_locked(pm, offset + i, (uint8_t)(value >> (i * 8)));
    }
    line_update_locked(pm);
    mutex_unlock(&pm->mutex);

    if (action == ACTION_POWER_OFF) {
        pm->ops->power_off(pm->opaque);
    } else if (action == ACTION_RESET) {
        pm->ops->reset(pm->opaque);
    }
}

static const struct bus_ops pm_ops = {
    .read = pm_read,
    .write = pm_write,
    .min_bytes = 1,
    .max_bytes = 4,
};

bool acpi_pm_press_power_button(struct acpi_pm *pm)
{
    bool is_heard;

    mutex_lock(&pm->mutex);
    is_heard = (pm->enable & STS_POWER_BUTTON) != 0;
    pm->status |= STS_POWER_BUTTON;
    line_update_locked(pm);
    mutex_unlock(&pm->mutex);
    return is_heard;
}

void acpi_pm_raise_gpe(struct acpi_pm *pm, unsigned event)
{
    mutex_lock(&pm->mutex);
    pm->gpe_status |= (uint8_t)(1u << event);
    line_update_locked(pm);
    mutex_unlock(&pm->mutex);
}

void acpi_pm_reset(struct acpi_pm *pm)
{
    mutex_lock(&pm->mutex);
    pm->start_ns = clock_monotonic_ns();
    pm->status = pm->enable = pm->control = 0;
    pm->carry = 0;
    pm->gpe_status = pm->gpe_enable = 0;
    line_update_locked(pm);
    mutex_unlock(&pm->mutex);
}

int acpi_pm_create(const struct dev_env *env, uint16_t base, unsigned gsi,
                   const struct dev_power_ops *ops, void *opaque, struct acpi_pm **ret_pm)
{
    struct acpi_pm *pm = calloc(1, sizeof(*pm));
    int rc = 0;

    if (pm == NULL) {
        return -ENOMEM;
    }
    mutex_init(&pm->mutex, LOCK_RANK_DEVICE);
    pm->bus = env->bus;
    pm->irq = env->irq;
    pm->gsi = gsi;
    pm->ops = ops;
    pm->opaque = opaque;
    acpi_pm_reset(pm);
    rc = bus_map(env->bus, BUS_PIO, base, ACPI_PM_PORTS, &pm_ops, pm, "acpi pm", &pm->range);
    if (rc != 0) {
        acpi_pm_destroy(pm);
        return rc;
    }
    *ret_pm = pm;
    return 0;
}

void acpi_pm_destroy(struct acpi_pm *pm)
{
    if (pm == NULL) {
        return;
    }
    bus_unmap(pm->bus, pm->range);
    mutex_done(&pm->mutex);
    free(pm);
}
