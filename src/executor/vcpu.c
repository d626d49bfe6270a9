/* One vCPU of the engine, run as its page of the shared memory asks. */
#include "engine/engine.h"
#include "executor/executor.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- interrupts: the monitor has them ---- */

static bool intr_pending(void *opaque)
{
    const struct executor_thread *t = opaque;

    return t->pending;
}

/* The guest could take one now: come out, so that the monitor acknowledges it. */
static int intr_acknowledge(void *opaque)
{
    struct executor_thread *t = opaque;

    t->pending = false;
    engine_accel_ops.kick(t->vcpu);
    return -1;
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

    switch (t->exit.reason) {
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

    to->reason = from->reason;
    to->can_take = engine_can_take_interrupt(t->vcpu);
    switch (from->reason) {
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
    rc = engine_accel_ops.run(t->vcpu, &t->exit);
    give_exit(t);
    return rc;
}

static int do_command(struct executor_thread *t)
{
    struct executor_vcpu *page = t->page;
    gpa_t found = {0};
    int rc;

    switch ((enum executor_command)page->command) {
    case EXECUTOR_CREATE:
        return do_create(t);
    case EXECUTOR_RUN:
        return do_run(t);
    case EXECUTOR_GET_STATE:
        return engine_accel_ops.get_state(t->vcpu, &page->state);
    case EXECUTOR_SET_STATE:
        t->exit.reason = VMEXIT_INTR; /* nothing waits for an answer any more */
        return engine_accel_ops.set_state(t->vcpu, &page->state);
    case EXECUTOR_NMI:
        return engine_accel_ops.inject_nmi(t->vcpu);
    case EXECUTOR_TRANSLATE:
        rc = engine_accel_ops.translate(t->vcpu, page->address, &found);
        page->address = found.v;
        return rc;
    case EXECUTOR_SET_DEBUG:
        return engine_accel_ops.set_debug(t->vcpu, &page->debug);
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
