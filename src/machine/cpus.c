/*
 * Which CPUs are there. All that there may ever be are made at the start, and have their threads;
 * one that is not there sleeps, and nothing the guest sends wakes it.
 */
#include "base/io.h"
#include "base/log.h"
#include "machine/machine_internal.h"

#include <errno.h>

/* _OST's answers to an eject request (ACPI 6.3 table 6-207) from this on say no, or not now. */
#define STATUS_FAILURE 1u
#define STATUS_REFUSED_FIRST 0x80u
#define STATUS_REFUSED_LAST 0x83u

bool cpu_is_present(const struct machine *machine, unsigned index)
{
    return (atomic_load(&machine->cpus_present) & 1u << index) != 0;
}

static uint32_t first_cpus(unsigned count)
{
    return (uint32_t)((1ull << count) - 1);
}

static void changed(struct machine *machine)
{
    (void)atomic_fetch_add(&machine->size_changes, 1);
    io_eventfd_signal(machine->event_fd);
}

void cpus_init(struct machine *machine)
{
    struct machine_config *config = &machine->config;

    config->cpus_max = config->cpus_max == 0 ? config->cpus : config->cpus_max;
    machine->cpus_wanted = config->cpus;
    atomic_store(&machine->cpus_present, first_cpus(config->cpus));
}

/* No vCPU runs: what was asked for is so when the guest begins anew. */
uint32_t cpus_reset(struct machine *machine)
{
    uint32_t present;

    mutex_lock(&machine->mutex);
    present = first_cpus(machine->cpus_wanted);
    if (atomic_exchange(&machine->cpus_present, present) != present) {
        changed(machine);
    }
    machine->cpus_leaving = 0;
    machine->cpus_refused = false;
    mutex_unlock(&machine->mutex);
    return present;
}

void cpus_status_locked(const struct machine *machine, struct machine_status *status)
{
    status->cpus = (unsigned)__builtin_popcount(atomic_load(&machine->cpus_present));
    status->cpus_wanted = machine->cpus_wanted;
    status->cpus_max = machine->config.cpus_max;
    status->cpus_refused = machine->cpus_refused;
}

/* It is there, or comes. One that the guest was to let go may be on its way: it comes back. */
static void add_locked(struct machine *machine, unsigned index)
{
    bool was_leaving = (machine->cpus_leaving & 1u << index) != 0;

    if (cpu_is_present(machine, index) && !was_leaving) {
        return;
    }
    machine->cpus_leaving &= ~(1u << index);
    (void)atomic_fetch_or(&machine->cpus_present, 1u << index);
    vcpu_request(&machine->vcpus[index], VCPU_REQUEST_COME);
    hotplug_came(machine->cpu_hotplug, index);
}

/* The guest may have missed that it was asked before, or not have been able to: ask again. */
static void ask_locked(struct machine *machine, unsigned index)
{
    if (cpu_is_present(machine, index)) {
        machine->cpus_leaving |= 1u << index;
        hotplug_ask(machine->cpu_hotplug, index);
    }
}

int machine_set_cpus(struct machine *machine, unsigned count, struct err *err)
{
    unsigned max = machine->config.cpus_max;
    bool has_ended;

    if (count < 1 || count > max) {
        return err_set(err, -EINVAL, "%u CPUs: this machine can have 1 to %u", count, max);
    }
    mutex_lock(&machine->mutex);
    has_ended = machine->state == MACHINE_ENDED;
    if (!has_ended && machine->cpu_hotplug != NULL) {
        machine->cpus_wanted = count;
        machine->cpus_refused = false;
        for (unsigned i = 1; i < max; i++) {
            if (i < count) {
                add_locked(machine, i);
            } else {
                ask_locked(machine, i);
            }
        }
        changed(machine);
    }
    mutex_unlock(&machine->mutex);
    return has_ended ? err_set(err, -EINVAL, "the machine has ended") : 0;
}

unsigned machine_size_changes(const struct machine *machine)
{
    return atomic_load(&machine->size_changes);
}

/* ---- the guest's side ---- */

/* Only what was asked to leave does. The bootstrap processor never is. */
static void on_ejected(void *opaque, uint32_t cpus)
{
    struct machine *machine = opaque;

    mutex_lock(&machine->mutex);
    cpus &= machine->cpus_leaving;
    machine->cpus_leaving &= ~cpus;
    (void)atomic_fetch_and(&machine->cpus_present, ~cpus);
    for (unsigned i = 1; i < machine->config.cpus_max; i++) {
        if ((cpus & 1u << i) != 0) {
            vcpu_request(&machine->vcpus[i], VCPU_REQUEST_LEAVE);
        }
    }
    if (cpus != 0) {
        changed(machine);
    }
    mutex_unlock(&machine->mutex);
}

static uint32_t on_present(void *opaque)
{
    return atomic_load(&((struct machine *)opaque)->cpus_present);
}

static void on_status(void *opaque, unsigned index, uint32_t code)
{
    struct machine *machine = opaque;

    if (code != STATUS_FAILURE && (code < STATUS_REFUSED_FIRST || code > STATUS_REFUSED_LAST)) {
        return;
    }
    mutex_lock(&machine->mutex);
    if ((machine->cpus_leaving & 1u << index) != 0) {
        log_info("the guest does not let CPU %u go (%#x)", index, code);
        machine->cpus_refused = true;
        changed(machine);
    }
    mutex_unlock(&machine->mutex);
}

const struct hotplug_ops cpus_hotplug_ops = {
    .ejected = on_ejected,
    .present = on_present,
    .status = on_status,
};
