/* Looking into a machine: a debugger's view of its CPUs. */
#include "machine/machine_internal.h"
#include "netdev/netdev.h"

#include <errno.h>
#include <string.h>

uint16_t machine_forward_port(const struct machine *machine, unsigned index)
{
    return machine->netdev != NULL ? netdev_forward_port(machine->netdev, index) : 0;
}

unsigned machine_forwards(const struct machine *machine, const struct machine_forward **ret_first)
{
    *ret_first = machine->config.net.forwards;
    return machine->netdev != NULL ? machine->config.net.forward_count : 0;
}

int machine_set_forwards(struct machine *machine, const struct machine_forward *forwards,
                         unsigned count, struct err *err)
{
    struct machine_net *net = &machine->config.net;
    struct netdev_forward list[NETDEV_MAX_FORWARDS];
    int rc;

    if (machine->netdev == NULL) {
        return err_set(err, -ENODEV, "the machine has no network");
    }
    if (count > MACHINE_MAX_FORWARDS) {
        return err_set(err, -E2BIG, "at most %d port forwards are possible", MACHINE_MAX_FORWARDS);
    }
    for (unsigned i = 0; i < count; i++) {
        list[i] = (struct netdev_forward){.host_address = forwards[i].host_address,
                                          .host_port = forwards[i].host_port,
                                          .guest_port = forwards[i].guest_port,
                                          .is_udp = forwards[i].is_udp};
    }
    rc = netdev_set_forwards(machine->netdev, list, count, err);
    if (rc == 0) {
        memcpy(net->forwards, forwards, count * sizeof(forwards[0]));
        net->forward_count = count;
    }
    return rc;
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
