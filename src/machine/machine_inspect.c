/* Looking into a machine: a debugger's view of its CPUs. */
#include "machine/machine_internal.h"
#include "netdev/netdev.h"

#include <errno.h>

uint16_t machine_forward_port(const struct machine *machine, unsigned index)
{
    return machine->netdev != NULL ? netdev_forward_port(machine->netdev, index) : 0;
}

/* The vCPU, with the machine's mutex held so that it stays parked; NULL and an error otherwise. */
NO_LOCK_ANALYSIS static struct machine_vcpu *stopped_vcpu_lock(struct machine *machine,
                                                               unsigned index, int *ret_rc)
{
    if (index >= machine->config.cpus_max) {
        *ret_rc = -EINVAL;
        return NULL;
    }
    mutex_lock(&machine->mutex);
    if (machine->parked != machine->config.cpus_max || machine->state == MACHINE_RUNNING ||
        (machine->wants & WANT_RESET) != 0) {
        mutex_unlock(&machine->mutex);
        *ret_rc = -EBUSY;
        return NULL;
    }
    return &machine->vcpus[index];
}

unsigned machine_cpu_count(const struct machine *machine)
{
    return machine->config.cpus_max;
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
