/* One vCPU of the engine, run as its page of the shared memory asks. */
#include "engine/engine.h"
#include "executor/executor.h"
#include "executor/native.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/syscall.h>

/* ---- interrupts: the monitor's, and the local APIC's where that is ours ---- */

static bool monitor_has_one(const struct executor_thread *t)
{
    return t->pending && (t->apic == NULL || lapic_passes_pic(t->apic));
}

static bool intr_pending(void *opaque)
{
    const struct executor_thread *t = opaque;

    return monitor_has_one(t) || (t->apic != NULL && lapic_intr_ops.pending(t->apic));
}

/* The guest could take one now. The monitor's: come out, so that it acknowledges it. */
static int intr_acknowledge(void *opaque)
{
    struct executor_thread *t = opaque;

    if (monitor_has_one(t)) {
        t->pending = false;
        t->wants_out = true;
        engine_accel_ops.kick(t->vcpu);
        return -1;
    }
    return t->apic == NULL ? -1 : lapic_intr_ops.acknowledge(t->apic);
}

static const struct vcpu_intr_ops intr_ops = {
    .pending = intr_pending,
    .acknowledge = intr_acknowledge,
};

/* ---- commands ---- */

static void lock_down_once(struct executor *executor)
{
    struct err err = {0};

    if (atomic_fetch_add(&executor->created, 1) + 1 != executor->shared->vcpu_count) {
        return;
    }
    if (executor_lock_down(&err) != 0) {
        executor_fail(executor->shared, err.code, err.text);
    }
    executor_bell_set(&executor->shared->phase, EXECUTOR_LOCKED);
}

static int do_create(struct executor_thread *t)
{
    struct err err = {0};
    int rc;

    t->cpuid = t->page->cpuid;
    t->env = (struct vcpu_env){.intr = &intr_ops, .opaque = t, .cpuid = &t->cpuid};
    t->page->thread = gettid();
    rc = engine_accel_ops.vcpu_create(t->executor->vm, t->index, &t->env, &err, &t->vcpu);
    if (rc == 0 && t->executor->apics != NULL) {
        rc = executor_apic_attach(t, &err);
    }
    if (rc != 0) {
        (void)snprintf(t->page->exit.text, sizeof(t->page->exit.text), "%.199s", err.text);
        return rc;
    }
    lock_down_once(t->executor);
    return 0;
}

/* What the monitor answered, where the engine looks for it. */
static void take_answer(struct executor_thread *t)
{
    const struct executor_answer *answer = &t->page->answer;

    switch (t->reported) {
    case VMEXIT_PIO:
        t->exit.pio.data = (uint32_t)answer->data;
        break;
    case VMEXIT_MMIO:
        t->exit.mmio.data = answer->data;
        break;
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        t->exit.msr.data = answer->data;
        t->exit.msr.fault = answer->fault != 0;
        break;
    default:
        break;
    }
}

static void give_exit(struct executor_thread *t)
{
    const struct vmexit *from = &t->exit;
    struct executor_exit *to = &t->page->exit;

    to->reason = t->reported;
    to->can_take =
        engine_can_take_interrupt(t->vcpu) && (t->apic == NULL || lapic_passes_pic(t->apic));
    switch (t->reported) {
    case VMEXIT_PIO:
        to->address = from->pio.port;
        to->size_bytes = from->pio.size_bytes;
        to->flag = from->pio.is_write;
        to->data = from->pio.data;
        break;
    case VMEXIT_MMIO:
        to->address = from->mmio.gpa;
        to->size_bytes = from->mmio.size_bytes;
        to->flag = from->mmio.is_write;
        to->data = from->mmio.data;
        break;
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        to->address = from->msr.index;
        to->data = from->msr.data;
        to->tsc_offset = from->msr.tsc_offset;
        break;
    case VMEXIT_TPR:
        to->data = from->tpr.cr8;
        break;
    case VMEXIT_EOI:
        to->address = (uint8_t)t->eoi;
        t->eoi = -1;
        break;
    case VMEXIT_DEBUG:
        to->address = from->debug.rip;
        to->data = from->debug.dr6;
        to->flag = from->debug.is_breakpoint_insn;
        break;
    case VMEXIT_ERROR:
        (void)snprintf(to->text, sizeof(to->text), "%.199s", from->error.text);
        break;
    default:
        break;
    }
}

/* ---- running ---- */

void executor_vcpu_wake(struct executor_thread *t)
{
    struct executor_vcpu *page = t->page;
    uint32_t place;

    atomic_fetch_add(&page->wake, 1);
    place = atomic_load(&page->place);
    if (place == EXECUTOR_IN_GUEST) {
        engine_accel_ops.kick(t->vcpu);
    } else if (place == EXECUTOR_ASLEEP) {
        (void)syscall(SYS_futex, &page->wake, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

/* The engine's last exit is to be taken up where it was left, before anything else. */
static bool owes_answer(const struct executor_thread *t)
{
    return t->exit.reason == VMEXIT_PIO || t->exit.reason == VMEXIT_MMIO ||
           t->exit.reason == VMEXIT_MSR_READ || t->exit.reason == VMEXIT_MSR_WRITE;
}

/* What others have left; true: the monitor is to reset the machine. */
static bool look_around(struct executor_thread *t)
{
    for (;;) {
        uint32_t wake = atomic_load(&t->page->wake);

        if (wake == t->wake_seen) {
            break;
        }
        t->wake_seen = wake;
        lapic_timer_expire(t->apic);
    }
    return atomic_load(&t->page->requests) != 0 && !owes_answer(t) && executor_apic_requests(t);
}

static int enter(struct executor_thread *t)
{
    struct executor_vcpu *page = t->page;
    int rc;

    atomic_store(&page->place, EXECUTOR_IN_GUEST);
    if (atomic_load(&page->leave) != 0 ||
        (t->apic != NULL &&
         (atomic_load(&page->wake) != t->wake_seen || atomic_load(&page->requests) != 0))) {
        engine_accel_ops.kick(t->vcpu); /* run() ends at the next boundary */
    }
    rc = engine_accel_ops.run(t->vcpu, &t->exit);
    executor_native_leave(t->index);
    atomic_store(&page->place, EXECUTOR_OUTSIDE);
    t->reported = t->exit.reason;
    return rc;
}

/* HLT, or before SIPI. With interrupts off a pending one does not end it. */
static void halt(struct executor_thread *t)
{
    struct executor_vcpu *page = t->page;
    bool can_take = engine_can_take_interrupt(t->vcpu);
    uint64_t since = executor_rest_begin(t);

    atomic_fetch_add_explicit(&t->stat_halts, 1, memory_order_relaxed);
    atomic_store(&page->place, EXECUTOR_ASLEEP);
    for (;;) {
        uint32_t wake = atomic_load(&page->wake);

        lapic_timer_expire(t->apic);
        if (atomic_load(&page->leave) != 0 || atomic_load(&page->requests) != 0 ||
            (can_take && intr_pending(t))) {
            break;
        }
        (void)syscall(SYS_futex, &page->wake, FUTEX_WAIT, wake, NULL, NULL, 0);
    }
    atomic_store(&page->place, EXECUTOR_OUTSIDE);
    executor_rest_end(t, since);
}

/* Does the monitor want to look where its thread and ours run? */
static bool stay_is_over(const struct executor_thread *t)
{
    return t->page->stay_until != 0 && __builtin_ia32_rdtsc() >= t->page->stay_until;
}

/* Is the exit the monitor's? What is ours is done. */
static bool is_for_monitor(struct executor_thread *t)
{
    switch (t->exit.reason) {
    case VMEXIT_INTR:
        break;
    case VMEXIT_HLT:
        halt(t);
        t->reported = VMEXIT_INTR;
        break;
    default:
        if (!executor_apic_answer(t)) {
            return true;
        }
        t->reported = VMEXIT_EOI;
        return t->eoi >= 0;
    }
    if (atomic_exchange(&t->page->leave, 0) != 0 || t->wants_out || stay_is_over(t)) {
        t->wants_out = false;
        return true;
    }
    return false;
}

static int run_with_apic(struct executor_thread *t)
{
    int rc;

    do {
        if (look_around(t)) {
            t->reported = VMEXIT_RESET;
            return 0;
        }
        rc = enter(t);
    } while (rc == 0 && !is_for_monitor(t));
    return rc;
}

static int do_run(struct executor_thread *t)
{
    struct executor_bell *phase = &t->executor->shared->phase;
    uint32_t now = atomic_load(&phase->count);
    int rc;

    while (now != EXECUTOR_LOCKED) {
        now = executor_bell_wait(phase, now);
    }
    take_answer(t);
    t->pending = t->page->pending != 0;
    if (t->page->vector >= 0) {
        engine_queue_interrupt(t->vcpu, (uint8_t)t->page->vector);
    }
    rc = t->apic != NULL ? run_with_apic(t) : enter(t);
    if (t->reported == VMEXIT_INTR) {
        atomic_store(&t->page->leave, 0);
    }
    give_exit(t);
    return rc;
}

static int do_get_state(struct executor_thread *t)
{
    int rc = engine_accel_ops.get_state(t->vcpu, &t->page->state);

    if (rc == 0 && t->apic != NULL) {
        executor_apic_get(t, &t->page->state);
    }
    return rc;
}

static int do_set_state(struct executor_thread *t)
{
    t->exit.reason = t->reported = VMEXIT_INTR; /* nothing waits for an answer any more */
    if (t->apic != NULL) {
        executor_apic_set(t, &t->page->state);
    }
    return engine_accel_ops.set_state(t->vcpu, &t->page->state);
}

static int do_command(struct executor_thread *t)
{
    struct executor_vcpu *page = t->page;
    gpa_t found = {0};
    int rc;

    if (page->command >= EXECUTOR_RESET_APIC && t->apic == NULL) {
        return -EINVAL;
    }
    switch ((enum executor_command)page->command) {
    case EXECUTOR_CREATE:
        return do_create(t);
    case EXECUTOR_RUN:
        return do_run(t);
    case EXECUTOR_GET_STATE:
        return do_get_state(t);
    case EXECUTOR_SET_STATE:
        return do_set_state(t);
    case EXECUTOR_NMI:
        return engine_accel_ops.inject_nmi(t->vcpu);
    case EXECUTOR_TRANSLATE:
        rc = engine_accel_ops.translate(t->vcpu, page->address, &found);
        page->address = found.v;
        return rc;
    case EXECUTOR_SET_DEBUG:
        return engine_accel_ops.set_debug(t->vcpu, &page->debug);
    case EXECUTOR_RESET_APIC:
        executor_apic_reset(t);
        return 0;
    case EXECUTOR_GET_APIC:
        lapic_save(t->apic, &page->apic);
        return 0;
    case EXECUTOR_SET_APIC:
        lapic_load(t->apic, &page->apic);
        return 0;
    }
    return -EINVAL;
}

/* RDTSCP's third answer is node << 12 | CPU, as Linux sets it up. */
static uint32_t current_cpu(void)
{
    unsigned aux = 0;

    (void)__builtin_ia32_rdtscp(&aux);
    return aux & 0xfff;
}

void *executor_vcpu_main(void *opaque)
{
    struct executor_thread *t = opaque;
    uint32_t seen = 0;

    executor_bell_add(&t->executor->started);
    for (;;) {
        seen = executor_bell_wait(&t->page->asked, seen);
        t->page->result = do_command(t);
        t->page->cpu = current_cpu();
        executor_bell_set(&t->page->answered, seen);
    }
    return NULL;
}
