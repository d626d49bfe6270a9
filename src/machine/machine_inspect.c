/* Looking into a machine: counters, and a debugger's view of its CPUs. */
#include "dev/chardev.h"
#include "machine/machine_internal.h"
#include "netdev/netdev.h"
#include "virtio/virtio_devices.h"

#include <errno.h>

struct stat_list {
    struct accel_stat *stats;
    unsigned max;
    unsigned count;
};

static void stat_add(struct stat_list *list, const char *name, uint64_t value)
{
    if (list->count < list->max) {
        list->stats[list->count] = (struct accel_stat){.name = name, .value = value};
        list->count++;
    }
}

static void vcpu_stats_add(const struct machine *machine, struct stat_list *list)
{
    uint64_t pio = 0;
    uint64_t mmio = 0;
    uint64_t msr = 0;
    uint64_t halts = 0;

    for (unsigned i = 0; i < machine->config.cpus; i++) {
        const struct vcpu_stats *stats = &machine->vcpus[i].stats;

        pio += atomic_load_explicit(&stats->pio, memory_order_relaxed);
        mmio += atomic_load_explicit(&stats->mmio, memory_order_relaxed);
        msr += atomic_load_explicit(&stats->msr, memory_order_relaxed);
        halts += atomic_load_explicit(&stats->halts, memory_order_relaxed);
    }
    stat_add(list, "vcpu.pio", pio);
    stat_add(list, "vcpu.mmio", mmio);
    stat_add(list, "vcpu.msr", msr);
    stat_add(list, "vcpu.halts", halts);
}

static void disk_stats_add(struct machine *machine, struct stat_list *list)
{
    struct block_stats sum;

    if (drives_stats(machine, &sum) == 0) {
        return;
    }
    stat_add(list, "disk.reads", sum.requests[BLOCK_READ]);
    stat_add(list, "disk.writes", sum.requests[BLOCK_WRITE]);
    stat_add(list, "disk.flushes", sum.requests[BLOCK_FLUSH]);
    stat_add(list, "disk.read_bytes", sum.read_bytes);
    stat_add(list, "disk.written_bytes", sum.written_bytes);
    stat_add(list, "disk.errors", sum.errors);
    stat_add(list, "disk.throttled", sum.throttled);
}

static void io_stats_add(struct machine *machine, struct stat_list *list)
{
    struct chardev_stats serial;

    chardev_stats(machine->serial, &serial);
    stat_add(list, "serial.in_bytes", serial.in_bytes);
    stat_add(list, "serial.out_bytes", serial.out_bytes);
    stat_add(list, "serial.dropped_bytes", serial.dropped_bytes);
    disk_stats_add(machine, list);
    if (machine->netdev != NULL) {
        struct netdev_stats net;

        netdev_stats(machine->netdev, &net);
        stat_add(list, "net.tx_frames", net.tx_frames);
        stat_add(list, "net.tx_bytes", net.tx_bytes);
        stat_add(list, "net.rx_frames", net.rx_frames);
        stat_add(list, "net.rx_bytes", net.rx_bytes);
        stat_add(list, "net.tx_dropped", net.tx_dropped);
        stat_add(list, "net.rx_dropped", net.rx_dropped);
    }
    if (machine->balloon != NULL) {
        struct virtio_balloon_stats balloon;

        virtio_balloon_stats(machine->balloon, &balloon);
        stat_add(list, "balloon.target_bytes", balloon.target_bytes);
        stat_add(list, "balloon.actual_bytes", balloon.actual_bytes);
        stat_add(list, "balloon.discarded_bytes", balloon.discarded_bytes);
    }
}

uint16_t machine_forward_port(const struct machine *machine, unsigned index)
{
    return machine->netdev != NULL ? netdev_forward_port(machine->netdev, index) : 0;
}

unsigned machine_stats(struct machine *machine, struct accel_stat *ret_stats, unsigned max)
{
    struct stat_list list = {.stats = ret_stats, .max = max};

    vcpu_stats_add(machine, &list);
    io_stats_add(machine, &list);
    if (machine->accel->stats != NULL && list.count < max) {
        unsigned n = machine->accel->stats(machine->vm, ret_stats + list.count, max - list.count);

        list.count += n < max - list.count ? n : max - list.count;
    }
    return list.count;
}

/* The vCPU, with the machine's mutex held so that it stays parked; NULL and an error otherwise. */
NO_LOCK_ANALYSIS static struct machine_vcpu *stopped_vcpu_lock(struct machine *machine,
                                                               unsigned index, int *ret_rc)
{
    if (index >= machine->config.cpus) {
        *ret_rc = -EINVAL;
        return NULL;
    }
    mutex_lock(&machine->mutex);
    if (machine->parked != machine->config.cpus || machine->state == MACHINE_RUNNING ||
        (machine->wants & WANT_RESET) != 0) {
        mutex_unlock(&machine->mutex);
        *ret_rc = -EBUSY;
        return NULL;
    }
    return &machine->vcpus[index];
}

unsigned machine_cpu_count(const struct machine *machine)
{
    return machine->config.cpus;
}

NO_LOCK_ANALYSIS int machine_cpu_get_state(struct machine *machine, unsigned index,
                                           struct vcpu_state *ret_state)
{
    int rc = 0;
    struct machine_vcpu *vcpu = stopped_vcpu_lock(machine, index, &rc);

    if (vcpu == NULL) {
        return rc;
    }
    rc = machine->accel->get_state(vcpu->accel, ret_state);
    mutex_unlock(&machine->mutex);
    return rc;
}

NO_LOCK_ANALYSIS int machine_cpu_set_state(struct machine *machine, unsigned index,
                                           const struct vcpu_state *state)
{
    int rc = 0;
    struct machine_vcpu *vcpu = stopped_vcpu_lock(machine, index, &rc);

    if (vcpu == NULL) {
        return rc;
    }
    rc = machine->accel->set_state(vcpu->accel, state);
    mutex_unlock(&machine->mutex);
    return rc;
}

NO_LOCK_ANALYSIS int machine_cpu_translate(struct machine *machine, unsigned index, uint64_t va,
                                           gpa_t *ret_gpa)
{
    int rc = 0;
    struct machine_vcpu *vcpu = stopped_vcpu_lock(machine, index, &rc);

    if (vcpu == NULL) {
        return rc;
    }
    rc = machine->accel->translate(vcpu->accel, va, ret_gpa);
    mutex_unlock(&machine->mutex);
    return rc;
}

NO_LOCK_ANALYSIS int machine_cpu_set_debug(struct machine *machine, unsigned index,
                                           const struct accel_debug *debug)
{
    int rc = 0;
    struct machine_vcpu *vcpu = stopped_vcpu_lock(machine, index, &rc);

    if (vcpu == NULL) {
        return rc;
    }
    rc = machine->accel->set_debug(vcpu->accel, debug);
    mutex_unlock(&machine->mutex);
    return rc;
}

void machine_set_debug_listener(struct machine *machine, machine_debug_fn fn, void *opaque)
{
    mutex_lock(&machine->mutex);
    machine->debug_fn = fn;
    machine->debug_opaque = opaque;
    mutex_unlock(&machine->mutex);
}
