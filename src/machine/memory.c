/*
 * How much memory the guest has: what it started with, plus what it plugged of the rest, minus
 * what it gave up because it was to have less than at the start.
 */
#include "base/io.h"
#include "machine/machine_internal.h"
#include "virtio/virtio_devices.h"

#include <errno.h>

uint64_t memory_pluggable_bytes(const struct machine_config *config)
{
    uint64_t bytes = config->memory_max_bytes - config->memory_bytes;

    return (bytes + VIRTIO_MEM_REGION_STEP - 1) / VIRTIO_MEM_REGION_STEP * VIRTIO_MEM_REGION_STEP;
}

/* On io/0 or a vCPU's thread, with the device's mutex held. */
void memory_on_plugged(void *opaque, uint64_t plugged_bytes)
{
    struct machine *machine = opaque;

    if (atomic_exchange(&machine->memory_plugged, plugged_bytes) != plugged_bytes) {
        (void)atomic_fetch_add(&machine->size_changes, 1);
        io_eventfd_signal(machine->event_fd);
    }
}

void memory_status_locked(const struct machine *machine, struct machine_status *status)
{
    uint64_t given = atomic_load(&machine->balloon_bytes);
    uint64_t asked = atomic_load(&machine->memory_given_up);

    given = given < asked ? given : asked;
    status->memory_bytes =
        machine->config.memory_bytes + atomic_load(&machine->memory_plugged) - given;
    status->memory_wanted_bytes = machine->memory_wanted;
    status->memory_max_bytes = machine->config.memory_max_bytes;
}

static int check(struct machine *machine, uint64_t bytes, struct err *err)
{
    const struct machine_config *config = &machine->config;

    if (bytes < MACHINE_MIN_MEMORY_BYTES || bytes > config->memory_max_bytes) {
        return err_set(err, -EINVAL, "%llu MiB of memory: this machine can have %llu to %llu",
                       (unsigned long long)(bytes >> 20), MACHINE_MIN_MEMORY_BYTES >> 20,
                       (unsigned long long)(config->memory_max_bytes >> 20));
    }
    if (bytes < config->memory_bytes && machine->balloon == NULL) {
        return err_set(err, -ENODEV,
                       "less than the %llu MiB it started with needs the memory balloon",
                       (unsigned long long)(config->memory_bytes >> 20));
    }
    return gmem_check_host(bytes, err);
}

int machine_set_memory(struct machine *machine, uint64_t bytes, struct err *err)
{
    uint64_t fixed = machine->config.memory_bytes;
    int rc = check(machine, bytes, err);

    if (rc != 0) {
        return rc;
    }
    mutex_lock(&machine->mutex);
    if (machine->state == MACHINE_ENDED) {
        rc = err_set(err, -EINVAL, "the machine has ended");
    } else {
        uint64_t given_up = bytes < fixed ? fixed - bytes : 0;

        machine->memory_wanted = bytes;
        if (machine->plugged != NULL) {
            virtio_mem_set_requested(machine->plugged, bytes > fixed ? bytes - fixed : 0);
        }
        if (atomic_exchange(&machine->memory_given_up, given_up) != given_up) {
            virtio_balloon_set_target(machine->balloon,
                                      given_up + atomic_load(&machine->balloon_asked));
        }
        (void)atomic_fetch_add(&machine->size_changes, 1);
        io_eventfd_signal(machine->event_fd);
    }
    mutex_unlock(&machine->mutex);
    return rc;
}
