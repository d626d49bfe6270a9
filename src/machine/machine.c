/* Life cycle: who wants what, and when it has happened. */
#include "machine/machine.h"

#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "machine/gdbstub.h"
#include "machine/machine_internal.h"
#include "netdev/netdev.h"
#include "virtio/virtio_devices.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const char *machine_state_name(enum machine_state state)
{
    static const char *const names[] = {
        [MACHINE_CREATED] = "created",
        [MACHINE_RUNNING] = "running",
        [MACHINE_PAUSED] = "paused",
        [MACHINE_ENDED] = "ended",
    };

    return (unsigned)state < ARRAY_LEN(names) ? names[state] : "unknown";
}

const char *machine_end_name(enum machine_end end)
{
    static const char *const names[] = {
        [MACHINE_END_NONE] = "none",   [MACHINE_END_POWEROFF] = "power-off",
        [MACHINE_END_STOP] = "stop",   [MACHINE_END_RESET] = "reset",
        [MACHINE_END_CRASH] = "crash", [MACHINE_END_DEBUG_EXIT] = "debug-exit",
        [MACHINE_END_ERROR] = "error",
    };

    return (unsigned)end < ARRAY_LEN(names) ? names[end] : "unknown";
}

void machine_config_init(struct machine_config *config)
{
    memset(config, 0, sizeof(*config));
    config->cpus = 1;
    config->memory_bytes = 512ull << 20;
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        config->disks[i].fd = -1;
    }
    config->serial.in_fd = config->serial.out_fd = config->serial.listen_fd = -1;
    config->console.in_fd = config->console.out_fd = config->console.listen_fd = -1;
    config->agent.in_fd = config->agent.out_fd = config->agent.listen_fd = -1;
}

/* ---- wants ---- */

static bool must_park_locked(const struct machine *machine)
{
    return machine->state != MACHINE_RUNNING || machine->wants != 0;
}

static bool all_parked_locked(const struct machine *machine)
{
    return machine->parked == machine->config.cpus_max;
}

static void state_set_locked(struct machine *machine, enum machine_state state)
{
    machine->state = state;
    machine->changes++;
    loop_hold(machine->loop, state == MACHINE_PAUSED); /* its clocks wake nobody */
    io_eventfd_signal(machine->event_fd);
    gdbstub_state_changed(machine->gdb);
}

/* What was wanted happens once all vCPUs are parked; a reset is done by vCPU 0's thread. */
static void settle_locked(struct machine *machine)
{
    if (all_parked_locked(machine)) {
        if ((machine->wants & WANT_END) != 0) {
            machine->wants &= WANT_EXCLUSIVE;
            state_set_locked(machine, MACHINE_ENDED);
        } else if (machine->wants == WANT_PAUSE) {
            machine->wants = 0;
            state_set_locked(machine, MACHINE_PAUSED);
        }
    }
    atomic_store(&machine->attention, must_park_locked(machine) || machine->quitting);
    (void)pthread_cond_broadcast(&machine->changed);
}

static void kick_all(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.cpus_max; i++) {
        vcpu_kick(&machine->vcpus[i]);
    }
}

static void want_locked(struct machine *machine, unsigned want)
{
    if (machine->state != MACHINE_ENDED) {
        machine->wants |= want;
    }
    settle_locked(machine);
}

void machine_request_end(struct machine *machine, enum machine_end end, uint8_t code,
                         const struct err *error)
{
    mutex_lock(&machine->mutex);
    if (machine->state != MACHINE_ENDED && (machine->wants & WANT_END) == 0) {
        machine->end = end;
        machine->debug_exit_code = code;
        if (error != NULL) {
            machine->end_error = *error;
        }
        want_locked(machine, WANT_END);
    }
    mutex_unlock(&machine->mutex);
    kick_all(machine);
}

void machine_request_reset(struct machine *machine)
{
    if (machine->config.on_reset == MACHINE_POLICY_STOP) {
        machine_request_end(machine, MACHINE_END_RESET, 0, NULL);
        return;
    }
    mutex_lock(&machine->mutex);
    want_locked(machine, WANT_RESET);
    mutex_unlock(&machine->mutex);
    kick_all(machine);
}

void machine_request_pause(struct machine *machine, const struct err *reason)
{
    mutex_lock(&machine->mutex);
    if (machine->state == MACHINE_RUNNING) {
        if (reason != NULL) {
            machine->pause_reason = *reason;
        }
        want_locked(machine, WANT_PAUSE);
    }
    mutex_unlock(&machine->mutex);
    kick_all(machine);
}

void machine_exclusive_begin(struct machine *machine)
{
    mutex_lock(&machine->mutex);
    while ((machine->wants & WANT_EXCLUSIVE) != 0) {
        (void)pthread_cond_wait(&machine->changed, &machine->mutex.raw);
    }
    machine->wants |= WANT_EXCLUSIVE;
    settle_locked(machine);
    mutex_unlock(&machine->mutex);
    kick_all(machine);
    mutex_lock(&machine->mutex);
    while (!all_parked_locked(machine) || machine->is_resetting) {
        (void)pthread_cond_wait(&machine->changed, &machine->mutex.raw);
    }
    mutex_unlock(&machine->mutex);
}

void machine_exclusive_end(struct machine *machine)
{
    mutex_lock(&machine->mutex);
    machine->wants &= ~WANT_EXCLUSIVE;
    settle_locked(machine);
    mutex_unlock(&machine->mutex);
}

/* All vCPUs are parked and stay so: WANT_RESET is still set. */
static int do_reset(struct machine *machine, struct err *err)
{
    int rc = pc_reset(machine, err);

    for (unsigned i = 0; rc == 0 && i < machine->config.cpus_max; i++) {
        struct machine_vcpu *vcpu = &machine->vcpus[i];
        struct vcpu_state state;

        atomic_store(&vcpu->requests, 0);
        vcpu->waits_for_sipi = vcpu->lapic != NULL && i != 0;
        vcpu->vain_halts = 0;
        pc_initial_state(machine, i, &state);
        rc = machine->accel->set_state(vcpu->accel, &state);
        if (rc != 0) {
            (void)err_set_errno(err, rc, "cannot reset vcpu %u", i);
        }
    }
    return rc;
}

/* With the mutex held, but not while the devices are reset. */
NO_LOCK_ANALYSIS static void reset_parked(struct machine *machine)
{
    struct err err = {0};
    int rc = 0;

    machine->is_resetting = true;
    mutex_unlock(&machine->mutex);
    rc = do_reset(machine, &err);
    mutex_lock(&machine->mutex);
    machine->is_resetting = false;
    machine->wants &= ~WANT_RESET;
    machine->resets++;
    if (rc != 0 && (machine->wants & WANT_END) == 0) {
        machine->end = MACHINE_END_ERROR;
        machine->end_error = err;
        machine->wants |= WANT_END;
    }
    settle_locked(machine);
}

bool machine_park(struct machine *machine, struct machine_vcpu *vcpu)
{
    bool quit = false;

    mutex_lock(&machine->mutex);
    machine->parked++;
    settle_locked(machine);
    /* Who leaves takes its vCPU along, which a reset works on. */
    while (machine->is_resetting || (must_park_locked(machine) && !machine->quitting)) {
        if (vcpu->index == 0 && (machine->wants & (WANT_END | WANT_EXCLUSIVE)) == 0 &&
            (machine->wants & WANT_RESET) != 0 && all_parked_locked(machine)) {
            reset_parked(machine);
            continue;
        }
        (void)pthread_cond_wait(&machine->changed, &machine->mutex.raw);
    }
    machine->parked--;
    quit = machine->quitting;
    mutex_unlock(&machine->mutex);
    return !quit;
}

/* ---- creation ---- */

static int config_check(const struct machine_config *config, struct err *err)
{
    if (config->cpus < 1 || config->cpus > MACHINE_MAX_CPUS) {
        return err_set(err, -EINVAL, "%u CPUs: 1 to %d are possible", config->cpus,
                       MACHINE_MAX_CPUS);
    }
    if (config->cpus_max != 0 &&
        (config->cpus_max < config->cpus || config->cpus_max > MACHINE_MAX_CPUS)) {
        return err_set(err, -EINVAL, "at most %u CPUs: %u to %d are possible", config->cpus_max,
                       config->cpus, MACHINE_MAX_CPUS);
    }
    if (config->memory_bytes < MACHINE_MIN_MEMORY_BYTES ||
        config->memory_bytes > MACHINE_MAX_MEMORY_BYTES || config->memory_bytes % (1u << 20) != 0) {
        return err_set(err, -EINVAL,
                       "%llu bytes of memory: whole MiB from %llu to %llu are possible",
                       (unsigned long long)config->memory_bytes, MACHINE_MIN_MEMORY_BYTES >> 20,
                       MACHINE_MAX_MEMORY_BYTES >> 20);
    }
    if (config->memory_max_bytes != 0 && (config->memory_max_bytes < config->memory_bytes ||
                                          config->memory_max_bytes > MACHINE_MAX_MEMORY_BYTES ||
                                          config->memory_max_bytes % (1u << 20) != 0)) {
        return err_set(err, -EINVAL, "at most %llu bytes of memory: whole MiB from %llu to %llu",
                       (unsigned long long)config->memory_max_bytes,
                       (unsigned long long)config->memory_bytes >> 20,
                       MACHINE_MAX_MEMORY_BYTES >> 20);
    }
    if (config->kernel == NULL) {
        return err_set(err, -EINVAL, "no kernel is given");
    }
    if (config->disk_count > MACHINE_MAX_DISKS ||
        config->net.forward_count > MACHINE_MAX_FORWARDS) {
        return err_set(err, -EINVAL, "at most %d disks and %d port forwards are possible",
                       MACHINE_MAX_DISKS, MACHINE_MAX_FORWARDS);
    }
    return 0;
}

/* Starts the vCPU threads, which create their vCPUs and park. */
static int vcpus_create(struct machine *machine, struct err *err)
{
    unsigned started = 0;
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < machine->config.cpus_max; i++) {
        struct machine_vcpu *vcpu = &machine->vcpus[i];
        char name[16];

        (void)snprintf(name, sizeof(name), "vcpu/%u", i);
        rc = thread_start(&vcpu->thread, name, vcpu_thread_main, vcpu);
        vcpu->has_thread = rc == 0;
        started += vcpu->has_thread ? 1 : 0;
    }
    if (rc != 0) {
        (void)err_set_errno(err, rc, "cannot start a thread for each CPU");
    }
    mutex_lock(&machine->mutex);
    while (machine->created < started) {
        (void)pthread_cond_wait(&machine->changed, &machine->mutex.raw);
    }
    mutex_unlock(&machine->mutex);
    for (unsigned i = 0; rc == 0 && i < machine->config.cpus_max; i++) {
        if (machine->vcpus[i].error.code != 0) {
            rc = machine->vcpus[i].error.code;
            if (err != NULL) {
                *err = machine->vcpus[i].error;
            }
        }
    }
    return rc;
}

static int machine_build(struct machine *machine, struct err *err)
{
    int rc = 0;

    machine->event_fd = io_eventfd();
    if (machine->event_fd < 0) {
        return err_set_errno(err, machine->event_fd, "cannot make an event descriptor");
    }
    rc = pc_create(machine, err);
    if (rc == 0) {
        rc = vcpus_create(machine, err);
    }
    if (rc == 0 && machine->config.gdb_listen != NULL) {
        rc = gdbstub_create(machine, machine->config.gdb_listen, err, &machine->gdb);
    }
    return rc;
}

int machine_create(const struct machine_config *config, struct err *err,
                   struct machine **ret_machine)
{
    struct machine *machine = NULL;
    int rc = config_check(config, err);

    if (rc != 0) {
        return rc;
    }
    machine = calloc(1, sizeof(*machine));
    if (machine == NULL || pthread_cond_init(&machine->changed, NULL) != 0) {
        free(machine);
        return err_set_errno(err, -ENOMEM, "cannot make a machine");
    }
    machine->config = *config;
    machine->event_fd = -1;
    mutex_init(&machine->mutex, LOCK_RANK_MACHINE);
    mutex_init(&machine->drives_lock, LOCK_RANK_DRIVES);
    atomic_store(&machine->attention, true);
    cpus_init(machine);
    if (config->memory_max_bytes == 0) {
        machine->config.memory_max_bytes = config->memory_bytes;
    }
    machine->memory_wanted = config->memory_bytes;
    for (unsigned i = 0; i < machine->config.cpus_max; i++) {
        machine->vcpus[i].machine = machine;
        machine->vcpus[i].index = i;
    }
    rc = machine_build(machine, err);
    if (rc != 0) {
        machine_destroy(machine);
        return rc;
    }
    *ret_machine = machine;
    return 0;
}

static void threads_quit(struct machine *machine)
{
    mutex_lock(&machine->mutex);
    machine->quitting = true;
    settle_locked(machine);
    mutex_unlock(&machine->mutex);
    kick_all(machine);
    for (unsigned i = 0; i < machine->config.cpus_max; i++) {
        if (machine->vcpus[i].has_thread) {
            (void)pthread_join(machine->vcpus[i].thread, NULL);
        }
    }
}

/* The loop ends while all vCPUs are parked, so that nothing kicks one that is gone. */
void machine_destroy(struct machine *machine)
{
    if (machine == NULL) {
        return;
    }
    machine_stop(machine);
    gdbstub_destroy(machine->gdb);
    machine->gdb = NULL;
    if (machine->has_loop_thread) {
        loop_stop(machine->loop);
        (void)pthread_join(machine->loop_thread, NULL);
    }
    threads_quit(machine);
    throttle_destroy(machine);
    pc_destroy(machine);
    if (machine->event_fd >= 0) {
        (void)close(machine->event_fd);
    }
    (void)pthread_cond_destroy(&machine->changed);
    mutex_done(&machine->drives_lock);
    mutex_done(&machine->mutex);
    free(machine);
}

/* ---- running ---- */

static void *loop_thread_main(void *opaque)
{
    struct machine *machine = opaque;
    int rc = loop_run(machine->loop);

    if (rc != 0) {
        struct err err = {0};

        (void)err_set_errno(&err, rc, "the devices' event loop failed");
        machine_request_end(machine, MACHINE_END_ERROR, 0, &err);
    }
    return NULL;
}

int machine_start(struct machine *machine, struct err *err)
{
    int rc = 0;

    if (machine->state != MACHINE_CREATED || machine->has_loop_thread) {
        return err_set(err, -EINVAL, "the machine has been started already");
    }
    rc = pc_start(machine, err);
    if (rc == 0 && machine->config.cpu_cap != 0) {
        rc = throttle_set(machine, machine->config.cpu_cap);
        rc = rc < 0 ? err_set_errno(err, rc, "the CPUs cannot be capped") : 0;
    }
    if (rc == 0) {
        throttle_spare(machine, machine->config.cpu_spare || machine->config.cpu_cap != 0);
    }
    if (rc != 0) {
        return rc;
    }
    rc = thread_start(&machine->loop_thread, "io/0", loop_thread_main, machine);
    if (rc != 0) {
        return err_set_errno(err, rc, "cannot start the devices' thread");
    }
    machine->has_loop_thread = true;
    mutex_lock(&machine->mutex);
    if (machine->state == MACHINE_CREATED) {
        bool wait = machine->config.gdb_listen != NULL && machine->config.gdb_wait;

        machine->started_ns = clock_monotonic_ns();
        state_set_locked(machine, wait ? MACHINE_PAUSED : MACHINE_RUNNING);
        settle_locked(machine);
    }
    mutex_unlock(&machine->mutex);
    return 0;
}

int machine_pause(struct machine *machine)
{
    int rc = 0;

    machine_request_pause(machine, NULL);
    mutex_lock(&machine->mutex);
    while ((machine->wants & (WANT_PAUSE | WANT_END)) != 0) {
        (void)pthread_cond_wait(&machine->changed, &machine->mutex.raw);
    }
    rc = machine->state == MACHINE_PAUSED ? 0 : -EINVAL;
    mutex_unlock(&machine->mutex);
    return rc;
}

int machine_resume(struct machine *machine)
{
    int rc = 0;

    mutex_lock(&machine->mutex);
    if (machine->state == MACHINE_PAUSED) {
        machine->pause_reason.code = 0;
        state_set_locked(machine, MACHINE_RUNNING);
        settle_locked(machine);
    } else if (machine->state != MACHINE_RUNNING) {
        rc = -EINVAL;
    }
    mutex_unlock(&machine->mutex);
    if (rc == 0) {
        drives_retry(machine);
    }
    return rc;
}

void machine_stop(struct machine *machine)
{
    bool can_wait = true;

    for (unsigned i = 0; i < machine->config.cpus_max; i++) {
        can_wait &= machine->vcpus[i].has_thread && machine->vcpus[i].error.code == 0;
    }
    if (!can_wait) {
        return; /* never wholly created: nothing runs */
    }
    machine_request_end(machine, MACHINE_END_STOP, 0, NULL);
    (void)machine_wait(machine);
}

int machine_powerdown(struct machine *machine)
{
    bool running = false;

    mutex_lock(&machine->mutex);
    running = machine->state == MACHINE_RUNNING;
    mutex_unlock(&machine->mutex);
    if (!running) {
        return -EINVAL;
    }
    return acpi_pm_press_power_button(machine->pm) ? 0 : -EAGAIN;
}

int machine_reset(struct machine *machine)
{
    bool possible = false;

    mutex_lock(&machine->mutex);
    possible = machine->state == MACHINE_RUNNING || machine->state == MACHINE_PAUSED;
    mutex_unlock(&machine->mutex);
    if (!possible) {
        return -EINVAL;
    }
    machine_request_reset(machine);
    return 0;
}

void machine_status(struct machine *machine, struct machine_status *ret_status)
{
    mutex_lock(&machine->mutex);
    *ret_status = (struct machine_status){
        .state = machine->state,
        .end = machine->state == MACHINE_ENDED ? machine->end : MACHINE_END_NONE,
        .debug_exit_code = machine->debug_exit_code,
        .changes = machine->changes,
        .resets = machine->resets,
        .balloon_bytes = atomic_load(&machine->balloon_bytes),
        .guest_address = machine->netdev != NULL ? netdev_guest_address(machine->netdev) : 0,
        .is_agent_there = atomic_load(&machine->is_agent_there),
        .engine = machine->accel->name,
        .engine_reason = machine->engine_reason,
        .error = machine->end_error,
    };
    cpus_status_locked(machine, ret_status);
    memory_status_locked(machine, ret_status);
    if (machine->state == MACHINE_PAUSED) {
        ret_status->pause_reason = machine->pause_reason;
    }
    mutex_unlock(&machine->mutex);
}

enum machine_end machine_wait(struct machine *machine)
{
    enum machine_end end = MACHINE_END_NONE;

    mutex_lock(&machine->mutex);
    while (machine->state != MACHINE_ENDED) {
        (void)pthread_cond_wait(&machine->changed, &machine->mutex.raw);
    }
    end = machine->end;
    mutex_unlock(&machine->mutex);
    return end;
}

int machine_event_fd(const struct machine *machine)
{
    return machine->event_fd;
}

int machine_net_limit(struct machine *machine, const struct limit_config *limits)
{
    return machine->netdev != NULL ? netdev_set_limits(machine->netdev, limits) : -ENODEV;
}

int machine_set_balloon(struct machine *machine, uint64_t bytes)
{
    if (machine->balloon == NULL) {
        return -ENODEV;
    }
    atomic_store(&machine->balloon_asked, bytes);
    virtio_balloon_set_target(machine->balloon, bytes < MACHINE_MAX_MEMORY_BYTES
                                                    ? bytes + atomic_load(&machine->memory_given_up)
                                                    : bytes);
    return 0;
}

struct gmem *machine_gmem(struct machine *machine)
{
    return machine->gmem;
}

struct loop *machine_loop(struct machine *machine)
{
    return machine->loop;
}
