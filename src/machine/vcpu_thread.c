/*
 * The thread of one vCPU: run, take the exit, hand it to the bus.
 *
 * No wake-up is lost: whoever wants something first makes it visible (a bit in
 * IRR, a request, machine.attention), then counts up the futex word, then looks
 * where the thread is. The thread first says where it is going, then looks for
 * work. All of these are sequentially consistent, so one sees the other.
 */
#include "base/clock.h"
#include "base/log.h"
#include "irqchip/ioapic.h"
#include "irqchip/lapic.h"
#include "machine/machine_internal.h"
#include "machine/memory_map.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How often an answered exit may lead to another before the thread gives up parking cleanly. */
#define COMPLETION_TRIES 64
#define HALT_RETRY_NS 1000000
#define VAIN_HALTS_MAX 3u

void vcpu_kick(struct machine_vcpu *vcpu)
{
    uint32_t place = 0;

    atomic_fetch_add(&vcpu->wake, 1);
    place = atomic_load(&vcpu->place);
    if (place == VCPU_GUEST) {
        vcpu->accel->ops->kick(vcpu->accel);
    } else if (place == VCPU_ASLEEP) {
        (void)syscall(SYS_futex, &vcpu->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

void vcpu_request(struct machine_vcpu *vcpu, uint32_t request)
{
    atomic_fetch_or(&vcpu->requests, request);
    vcpu_kick(vcpu);
}

static bool has_work(const struct machine_vcpu *vcpu)
{
    return atomic_load(&vcpu->machine->attention) || atomic_load(&vcpu->requests) != 0;
}

static bool interrupt_pending(const struct machine_vcpu *vcpu)
{
    return vcpu->env.intr != NULL && vcpu->env.intr->pending(vcpu->env.opaque);
}

/* Sleeps until something is to be done; timeout may be NULL. */
static void vcpu_sleep(struct machine_vcpu *vcpu, bool for_interrupt,
                       const struct timespec *timeout)
{
    atomic_store(&vcpu->place, VCPU_ASLEEP);
    for (;;) {
        uint32_t seen = atomic_load(&vcpu->wake);

        if (has_work(vcpu) || (for_interrupt && interrupt_pending(vcpu))) {
            break;
        }
        if (syscall(SYS_futex, &vcpu->wake, FUTEX_WAIT_PRIVATE, seen, timeout, NULL, 0) != 0 &&
            errno == ETIMEDOUT) {
            break;
        }
    }
    atomic_store(&vcpu->place, VCPU_OUTSIDE);
}

/* Its share of the host is used up: until there is more. */
static void vcpu_rest(struct machine_vcpu *vcpu)
{
    atomic_store(&vcpu->place, VCPU_ASLEEP);
    for (;;) {
        uint32_t seen = atomic_load(&vcpu->wake);

        if (has_work(vcpu) || !atomic_load(&vcpu->machine->is_throttled)) {
            break;
        }
        (void)syscall(SYS_futex, &vcpu->wake, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
    atomic_store(&vcpu->place, VCPU_OUTSIDE);
}

static bool interrupts_enabled(struct machine_vcpu *vcpu)
{
    struct vcpu_state state;

    return vcpu->accel->ops->get_state(vcpu->accel, &state) != 0 ||
           (state.rflags & X86_FLAG_IF) != 0;
}

/*
 * HLT. With interrupts off a pending one does not end it, and nothing will set
 * IF meanwhile: then only requests do. A vCPU that could take one and yet halts
 * again and again is looked at now and then.
 */
static void handle_halt(struct machine_vcpu *vcpu)
{
    static const struct timespec retry = {.tv_nsec = HALT_RETRY_NS};

    latency_count(&vcpu->stats.halts, 1);
    if (vcpu->vain_halts == 0 || !interrupt_pending(vcpu)) {
        vcpu->vain_halts = 0;
        vcpu_sleep(vcpu, true, NULL);
    } else if (!interrupts_enabled(vcpu)) {
        vcpu_sleep(vcpu, false, NULL);
    } else if (vcpu->vain_halts > VAIN_HALTS_MAX) {
        vcpu_sleep(vcpu, false, &retry);
    }
    vcpu->vain_halts = interrupt_pending(vcpu) ? vcpu->vain_halts + 1 : 0;
}

static void handle_pio(struct machine_vcpu *vcpu)
{
    struct vmexit *exit = &vcpu->exit;
    struct bus *bus = vcpu->machine->bus;

    if (exit->pio.is_write) {
        bus_write(bus, BUS_PIO, exit->pio.port, exit->pio.size_bytes, exit->pio.data);
    } else {
        exit->pio.data = (uint32_t)bus_read(bus, BUS_PIO, exit->pio.port, exit->pio.size_bytes);
    }
}

/* The guest changed TPR by the APIC's register: the CPU's CR8 is the same thing. */
static void cr8_follow(struct machine_vcpu *vcpu, uint8_t old)
{
    struct vcpu_state state;

    if (lapic_cr8(vcpu->lapic) == old || vcpu->accel->ops->get_state(vcpu->accel, &state) != 0) {
        return;
    }
    state.cr8 = lapic_cr8(vcpu->lapic);
    if (vcpu->accel->ops->set_state(vcpu->accel, &state) != 0) {
        log_warn("vcpu %u: cannot set CR8, ignoring", vcpu->index);
    }
}

static void handle_mmio(struct machine_vcpu *vcpu)
{
    struct vmexit *exit = &vcpu->exit;
    struct bus *bus = vcpu->machine->bus;

    if (vcpu->lapic != NULL && lapic_claims(vcpu->lapic, exit->mmio.gpa)) {
        unsigned offset = (unsigned)(exit->mmio.gpa % LAPIC_PAGE_BYTES);

        if (exit->mmio.is_write) {
            uint8_t old = lapic_cr8(vcpu->lapic);

            lapic_mmio_write(vcpu->lapic, offset, exit->mmio.size_bytes, exit->mmio.data);
            cr8_follow(vcpu, old);
        } else {
            exit->mmio.data = lapic_mmio_read(vcpu->lapic, offset, exit->mmio.size_bytes);
        }
        return;
    }
    if (exit->mmio.is_write) {
        bus_write(bus, BUS_MMIO, exit->mmio.gpa, exit->mmio.size_bytes, exit->mmio.data);
    } else {
        exit->mmio.data = bus_read(bus, BUS_MMIO, exit->mmio.gpa, exit->mmio.size_bytes);
    }
}

static void handle_msr(struct machine_vcpu *vcpu, bool is_write)
{
    struct vmexit *exit = &vcpu->exit;
    uint32_t index = exit->msr.index;
    int rc = -EINVAL;

    if (vcpu->lapic != NULL && lapic_owns_msr(index)) {
        uint8_t old = lapic_cr8(vcpu->lapic);

        if (is_write) {
            rc = lapic_msr_write(vcpu->lapic, index, exit->msr.data, exit->msr.tsc_offset);
            cr8_follow(vcpu, old);
        } else {
            rc = lapic_msr_read(vcpu->lapic, index, &exit->msr.data);
        }
    }
    if (rc != 0) {
        log_guest("vcpu %u: %s MSR %#x, which does not exist", vcpu->index,
                  is_write ? "writes" : "reads", index);
        exit->msr.fault = true;
    }
}

static void handle_shutdown(struct machine_vcpu *vcpu)
{
    struct machine *machine = vcpu->machine;

    log_guest("vcpu %u: triple fault", vcpu->index);
    if (machine->config.on_crash == MACHINE_POLICY_RESET) {
        machine_request_reset(machine);
    } else {
        machine_request_end(machine, MACHINE_END_CRASH, 0, NULL);
    }
}

static void handle_debug(struct machine_vcpu *vcpu)
{
    struct machine *machine = vcpu->machine;

    machine_request_pause(machine, NULL);
    if (machine->debug_fn != NULL) {
        machine->debug_fn(machine->debug_opaque, vcpu->index, &vcpu->exit);
    }
}

static void handle_exit(struct machine_vcpu *vcpu)
{
    unsigned vain_halts = vcpu->vain_halts;

    vcpu->vain_halts = 0;
    switch (vcpu->exit.reason) {
    case VMEXIT_INTR:
        vcpu->vain_halts = vain_halts;
        break;
    case VMEXIT_PIO:
        handle_pio(vcpu);
        vcpu->owes_completion = true;
        break;
    case VMEXIT_MMIO:
        handle_mmio(vcpu);
        vcpu->owes_completion = true;
        break;
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        handle_msr(vcpu, vcpu->exit.reason == VMEXIT_MSR_WRITE);
        vcpu->owes_completion = true;
        break;
    case VMEXIT_HLT:
        vcpu->vain_halts = vain_halts;
        handle_halt(vcpu);
        break;
    case VMEXIT_SHUTDOWN:
        handle_shutdown(vcpu);
        break;
    case VMEXIT_EOI:
        if (vcpu->machine->ioapic != NULL) {
            ioapic_eoi(vcpu->machine->ioapic, vcpu->exit.eoi.vector);
        }
        break;
    case VMEXIT_DEBUG:
        handle_debug(vcpu);
        break;
    case VMEXIT_TPR:
        if (vcpu->lapic != NULL) {
            lapic_set_cr8(vcpu->lapic, vcpu->exit.tpr.cr8);
        }
        break;
    case VMEXIT_RESET:
        machine_request_reset(vcpu->machine);
        break;
    case VMEXIT_ERROR:
        machine_request_end(vcpu->machine, MACHINE_END_ERROR, 0, &vcpu->exit.error);
        break;
    }
}

static enum machine_exit_kind exit_kind(enum vmexit_reason reason)
{
    switch (reason) {
    case VMEXIT_PIO:
        return MACHINE_EXIT_PIO;
    case VMEXIT_MMIO:
        return MACHINE_EXIT_MMIO;
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        return MACHINE_EXIT_MSR;
    default:
        return MACHINE_EXIT_OTHER;
    }
}

/* handle_exit() with what it took noted. */
static void answer_exit(struct machine_vcpu *vcpu)
{
    enum vmexit_reason reason = vcpu->exit.reason; /* the answer may change the rest */
    uint64_t begin_ns = clock_monotonic_ns();
    uint64_t took_ns;

    handle_exit(vcpu);
    took_ns = clock_monotonic_ns() - begin_ns;
    if (reason == VMEXIT_HLT) {
        latency_count(&vcpu->stats.halted_ns, took_ns);
    } else {
        latency_add(&vcpu->stats.exits[exit_kind(reason)], took_ns);
    }
}

/* One run() and what comes of it. */
static void run_once(struct machine_vcpu *vcpu)
{
    int rc = vcpu->accel->ops->run(vcpu->accel, &vcpu->exit);

    atomic_store(&vcpu->place, VCPU_OUTSIDE);
    vcpu->owes_completion = false;
    if (rc != 0) {
        (void)err_set_errno(&vcpu->exit.error, rc, "vcpu %u cannot run", vcpu->index);
        vcpu->exit.reason = VMEXIT_ERROR;
    }
    answer_exit(vcpu);
}

/* Lets the accelerator take the answer to the last exit, so that the state is at a boundary. */
static void complete_exit(struct machine_vcpu *vcpu)
{
    for (unsigned i = 0; i < COMPLETION_TRIES && vcpu->owes_completion; i++) {
        vcpu->accel->ops->kick(vcpu->accel);
        run_once(vcpu);
    }
}

static void handle_init(struct machine_vcpu *vcpu)
{
    struct vcpu_state state;

    if (vcpu->index == 0) {
        machine_request_reset(vcpu->machine); /* INIT of the bootstrap processor */
        return;
    }
    if (vcpu->accel->ops->get_state(vcpu->accel, &state) != 0) {
        return;
    }
    lapic_init_ipi(vcpu->lapic);
    vcpu_state_init_ipi(&state);
    if (vcpu->accel->ops->set_state(vcpu->accel, &state) == 0) {
        vcpu->waits_for_sipi = true;
    }
}

static void handle_sipi(struct machine_vcpu *vcpu)
{
    struct vcpu_state state;

    if (!vcpu->waits_for_sipi || vcpu->accel->ops->get_state(vcpu->accel, &state) != 0) {
        return; /* SDM 3A 8.4.3: only a waiting processor starts */
    }
    vcpu_state_sipi(&state, atomic_load(&vcpu->sipi_vector));
    if (vcpu->accel->ops->set_state(vcpu->accel, &state) == 0) {
        vcpu->waits_for_sipi = false;
    }
}

/* The guest let it go, maybe in the middle of something: it begins anew when it comes back. */
static void handle_leave(struct machine_vcpu *vcpu)
{
    struct vcpu_state state;

    if (vcpu->lapic != NULL) {
        lapic_init_ipi(vcpu->lapic);
    }
    pc_initial_state(vcpu->machine, vcpu->index, &state);
    if (vcpu->accel->ops->set_state(vcpu->accel, &state) != 0) {
        log_warn("vcpu %u: cannot reset it, ignoring", vcpu->index);
    }
    vcpu->waits_for_sipi = vcpu->lapic != NULL;
    vcpu->vain_halts = 0;
}

static void handle_requests(struct machine_vcpu *vcpu)
{
    uint32_t requests = 0;

    if (atomic_load_explicit(&vcpu->requests, memory_order_relaxed) == 0) {
        return;
    }
    complete_exit(vcpu);
    requests = atomic_exchange(&vcpu->requests, 0);
    if ((requests & VCPU_REQUEST_LEAVE) != 0) {
        handle_leave(vcpu);
    }
    if (!cpu_is_present(vcpu->machine, vcpu->index)) {
        return; /* nobody is there to hear the rest */
    }
    if ((requests & VCPU_REQUEST_INIT) != 0) {
        handle_init(vcpu);
    }
    if ((requests & VCPU_REQUEST_SIPI) != 0) {
        handle_sipi(vcpu);
    }
    if ((requests & VCPU_REQUEST_NMI) != 0 && vcpu->accel->ops->inject_nmi(vcpu->accel) != 0) {
        log_warn("vcpu %u: cannot inject an NMI, ignoring", vcpu->index);
    }
}

static void vcpu_loop(struct machine_vcpu *vcpu)
{
    for (;;) {
        if (atomic_load(&vcpu->machine->attention)) {
            complete_exit(vcpu);
            if (!machine_park(vcpu->machine, vcpu)) {
                return;
            }
        }
        handle_requests(vcpu);
        if (vcpu->waits_for_sipi || !cpu_is_present(vcpu->machine, vcpu->index)) {
            vcpu_sleep(vcpu, false, NULL);
            continue;
        }
        if (atomic_load(&vcpu->machine->is_throttled)) {
            vcpu_rest(vcpu);
            continue;
        }
        atomic_store(&vcpu->place, VCPU_GUEST);
        if (has_work(vcpu) || atomic_load(&vcpu->machine->is_throttled)) {
            atomic_store(&vcpu->place, VCPU_OUTSIDE);
            continue;
        }
        run_once(vcpu);
    }
}

/* Whose CPU time is the vCPU's. */
static void note_threads(struct machine_vcpu *vcpu)
{
    pid_t pid = 0;
    pid_t tid = 0;

    if (vcpu->machine->accel->vcpu_thread != NULL) {
        vcpu->machine->accel->vcpu_thread(vcpu->accel, &pid, &tid);
    }
    atomic_store(&vcpu->stats.guest_pid, pid);
    atomic_store(&vcpu->stats.guest_tid, tid);
    atomic_store(&vcpu->stats.tid, gettid());
}

static int vcpu_create(struct machine_vcpu *vcpu)
{
    struct machine *machine = vcpu->machine;
    struct vcpu_state state;
    int rc = machine->accel->vcpu_create(machine->vm, vcpu->index, &vcpu->env, &vcpu->error,
                                         &vcpu->accel);

    if (rc != 0) {
        vcpu->accel = NULL;
        return rc;
    }
    note_threads(vcpu);
    pc_initial_state(machine, vcpu->index, &state);
    rc = machine->accel->set_state(vcpu->accel, &state);
    if (rc != 0) {
        return err_set_errno(&vcpu->error, rc, "cannot set the registers of vcpu %u", vcpu->index);
    }
    return 0;
}

void *vcpu_thread_main(void *opaque)
{
    struct machine_vcpu *vcpu = opaque;
    struct machine *machine = vcpu->machine;
    int rc = vcpu_create(vcpu);

    vcpu->error.code = rc;
    vcpu->waits_for_sipi = vcpu->lapic != NULL && vcpu->index != 0;
    mutex_lock(&machine->mutex);
    machine->created++;
    (void)pthread_cond_broadcast(&machine->changed);
    mutex_unlock(&machine->mutex);
    if (rc == 0) {
        vcpu_loop(vcpu);
    }
    if (vcpu->accel != NULL) {
        machine->accel->vcpu_destroy(vcpu->accel);
        vcpu->accel = NULL;
    }
    return NULL;
}
