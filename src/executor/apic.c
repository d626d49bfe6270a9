/*
 * The local APICs inside the executor: registers, timers and messages between
 * vCPUs, of which the monitor hears nothing but the end of level-triggered
 * interrupts. Device interrupts arrive in IRR, from the monitor.
 *
 * A timer is one of the kernel's that sends its vCPU's thread the kick signal:
 * it ends guest code and sleep alike, and no other thread is woken.
 */
#include "base/log.h"
#include "engine/engine.h"
#include "engine/hostsig.h"
#include "executor/executor.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#define NS_PER_S 1000000000ull

/* ---- what the APICs ask ---- */

static struct executor_thread *thread_of(void *opaque, unsigned cpu)
{
    return &((struct executor *)opaque)->threads[cpu];
}

static void on_kick(void *opaque, unsigned cpu)
{
    executor_vcpu_wake(thread_of(opaque, cpu));
}

static void request(void *opaque, unsigned cpu, uint32_t what)
{
    struct executor_thread *t = thread_of(opaque, cpu);

    atomic_fetch_or(&t->page->requests, what);
    executor_vcpu_wake(t);
}

static void on_nmi(void *opaque, unsigned cpu)
{
    request(opaque, cpu, EXECUTOR_REQUEST_NMI);
}

static void on_init(void *opaque, unsigned cpu)
{
    request(opaque, cpu, EXECUTOR_REQUEST_INIT);
}

static void on_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
    atomic_store(&thread_of(opaque, cpu)->page->sipi_vector, vector);
    request(opaque, cpu, EXECUTOR_REQUEST_SIPI);
}

/* On the thread of cpu, which answers an access. */
static void on_eoi(void *opaque, unsigned cpu, uint8_t vector)
{
    thread_of(opaque, cpu)->eoi = vector;
}

/* Never asked: vcpu.c asks the monitor first. */
static int on_pic_acknowledge(void *opaque)
{
    (void)opaque;
    return -1;
}

static void on_arm(void *opaque, unsigned cpu, uint64_t deadline_ns)
{
    const struct itimerspec at = {.it_value = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                               .tv_nsec = (long)(deadline_ns % NS_PER_S)}};

    /* Its arguments are sound, so it cannot fail. */
    (void)syscall(SYS_timer_settime, thread_of(opaque, cpu)->timer, TIMER_ABSTIME, &at, NULL);
}

static const struct lapic_ops apic_ops = {
    .kick = on_kick,
    .nmi = on_nmi,
    .init = on_init,
    .sipi = on_sipi,
    .eoi = on_eoi,
    .pic_acknowledge = on_pic_acknowledge,
    .arm = on_arm,
};

/* ---- life cycle ---- */

int executor_apics_create(struct executor *executor)
{
    const struct lapic_set_config config = {
        .count = executor->shared->vcpu_count,
        .timer_hz = CPUID_CRYSTAL_HZ,
        .tsc_hz = cpuid_tsc_hz(),
        .regs = executor->shared->apics,
        .ops = &apic_ops,
        .opaque = executor,
    };

    return lapic_set_create(&config, &executor->apics);
}

int executor_apic_attach(struct executor_thread *t, struct err *err)
{
    struct sigevent event;

    memset(&event, 0, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = HOSTSIG_KICK;
    event._sigev_un._tid = gettid();
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &t->timer) != 0) {
        return err_set_errno(err, -errno, "cannot make a timer for a virtual CPU");
    }
    engine_count_kicks(t->vcpu, &t->page->wake);
    t->apic = lapic_get(t->executor->apics, t->index);
    return 0;
}

void executor_apic_reset(struct executor_thread *t)
{
    lapic_reset(t->apic);
    atomic_store(&t->page->requests, 0);
    t->eoi = -1;
}

void executor_apic_get(struct executor_thread *t, struct vcpu_state *state)
{
    struct lapic_state apic;

    lapic_save(t->apic, &apic);
    state->apic_base = apic.base;
    state->tsc_deadline = apic.timer_deadline_tsc;
}

void executor_apic_set(struct executor_thread *t, const struct vcpu_state *state)
{
    struct lapic_state apic;

    lapic_save(t->apic, &apic);
    apic.tpr = (apic.tpr & 0xfu) | (uint32_t)(state->cr8 & 0xf) << 4;
    if (apic.tpr >> 4 != (uint32_t)lapic_cr8(t->apic) || apic.base != state->apic_base ||
        apic.timer_deadline_tsc != state->tsc_deadline) {
        apic.base = state->apic_base;
        apic.timer_deadline_tsc = state->tsc_deadline;
        apic.timer_tsc_offset = state->tsc_offset;
        lapic_load(t->apic, &apic);
    }
}

/* ---- registers ---- */

/* The guest changed TPR by the APIC's register: the CPU's CR8 is the same thing. */
static void cr8_follow(struct executor_thread *t, uint8_t old)
{
    struct vcpu_state state;

    if (lapic_cr8(t->apic) == old || engine_accel_ops.get_state(t->vcpu, &state) != 0) {
        return;
    }
    state.cr8 = lapic_cr8(t->apic);
    if (engine_accel_ops.set_state(t->vcpu, &state) == 0) {
        t->exit.reason = VMEXIT_INTR; /* the write is done */
    }
}

static void answer_msr(struct executor_thread *t)
{
    struct vmexit *exit = &t->exit;
    bool is_write = exit->reason == VMEXIT_MSR_WRITE;
    uint8_t old = lapic_cr8(t->apic);
    int rc = is_write
                 ? lapic_msr_write(t->apic, exit->msr.index, exit->msr.data, exit->msr.tsc_offset)
                 : lapic_msr_read(t->apic, exit->msr.index, &exit->msr.data);

    exit->msr.fault = rc != 0;
    if (rc != 0) {
        log_guest("vcpu %u: %s MSR %#x, which does not exist", t->index,
                  is_write ? "writes" : "reads", exit->msr.index);
    }
    cr8_follow(t, old);
}

static void answer_mmio(struct executor_thread *t)
{
    struct vmexit *exit = &t->exit;
    unsigned offset = (unsigned)(exit->mmio.gpa % LAPIC_PAGE_BYTES);
    uint8_t old = lapic_cr8(t->apic);

    if (exit->mmio.is_write) {
        lapic_mmio_write(t->apic, offset, exit->mmio.size_bytes, exit->mmio.data);
        cr8_follow(t, old);
    } else {
        exit->mmio.data = lapic_mmio_read(t->apic, offset, exit->mmio.size_bytes);
    }
}

bool executor_apic_answer(struct executor_thread *t)
{
    switch (t->exit.reason) {
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        if (!lapic_owns_msr(t->exit.msr.index)) {
            return false;
        }
        answer_msr(t);
        break;
    case VMEXIT_MMIO:
        if (!lapic_claims(t->apic, t->exit.mmio.gpa)) {
            return false;
        }
        answer_mmio(t);
        break;
    case VMEXIT_TPR:
        lapic_set_cr8(t->apic, t->exit.tpr.cr8);
        break;
    default:
        return false;
    }
    atomic_fetch_add_explicit(&t->stat_accesses, 1, memory_order_relaxed);
    return true;
}

/* ---- messages that are no interrupts ---- */

static void handle_init(struct executor_thread *t)
{
    struct vcpu_state state;

    if (engine_accel_ops.get_state(t->vcpu, &state) != 0) {
        return;
    }
    lapic_init_ipi(t->apic);
    vcpu_state_init_ipi(&state);
    state.mp_state = X86_MP_WAIT_FOR_SIPI;
    (void)engine_accel_ops.set_state(t->vcpu, &state); /* the engine takes any */
}

static void handle_sipi(struct executor_thread *t)
{
    struct vcpu_state state;

    if (engine_accel_ops.get_state(t->vcpu, &state) != 0 ||
        (state.mp_state != X86_MP_WAIT_FOR_SIPI && state.mp_state != X86_MP_UNINITIALIZED)) {
        return; /* SDM 3A 8.4.3: only a waiting processor starts */
    }
    vcpu_state_sipi(&state, (uint8_t)atomic_load(&t->page->sipi_vector));
    (void)engine_accel_ops.set_state(t->vcpu, &state);
}

bool executor_apic_requests(struct executor_thread *t)
{
    uint32_t requests = atomic_exchange(&t->page->requests, 0);

    if ((requests & EXECUTOR_REQUEST_INIT) != 0) {
        if (t->index == 0) {
            return true;
        }
        handle_init(t);
    }
    if ((requests & EXECUTOR_REQUEST_SIPI) != 0) {
        handle_sipi(t);
    }
    if ((requests & EXECUTOR_REQUEST_NMI) != 0) {
        (void)engine_accel_ops.inject_nmi(t->vcpu); /* the engine always can */
    }
    return false;
}
