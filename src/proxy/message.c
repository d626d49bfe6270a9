/*
 * Interrupts that the monitor posts in the executor's pages, by itself: a bit in
 * the IRR there, or a request, and a signal or a wake-up for the vCPU's thread.
 * Where that thread says it is decides which of these; one that lies about it
 * keeps its own guest waiting.
 */
#include "proxy/proxy_int.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

void message_wake(const struct proxy_vm *vm, const struct proxy_vcpu *v)
{
    struct executor_vcpu *page = v->page;
    uint32_t place;

    atomic_fetch_add(&page->wake, 1);
    place = atomic_load(&page->place);
    if (place == EXECUTOR_IN_GUEST) {
        (void)syscall(SYS_tgkill, vm->process.pid, v->thread, EXECUTOR_KICK_SIGNAL);
    } else if (place == EXECUTOR_ASLEEP) {
        (void)syscall(SYS_futex, &page->wake, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

static void on_kick(void *opaque, unsigned cpu)
{
    struct proxy_vm *vm = opaque;
    const struct proxy_vcpu *v = atomic_load(&vm->vcpus[cpu]);

    if (v != NULL) {
        message_wake(vm, v);
    }
}

static void request(struct proxy_vm *vm, unsigned cpu, uint32_t what)
{
    atomic_fetch_or(&vm->shared->vcpus[cpu].requests, what);
    on_kick(vm, cpu);
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
    struct proxy_vm *vm = opaque;

    atomic_store(&vm->shared->vcpus[cpu].sipi_vector, vector);
    request(vm, cpu, EXECUTOR_REQUEST_SIPI);
}

static const struct lapic_ops message_ops = {
    .kick = on_kick,
    .nmi = on_nmi,
    .init = on_init,
    .sipi = on_sipi,
};

int message_create(struct proxy_vm *vm)
{
    const struct lapic_set_config config = {
        .count = vm->vcpu_count,
        .regs = vm->shared->apics,
        .is_view = true,
        .ops = &message_ops,
        .opaque = vm,
    };

    return lapic_set_create(&config, &vm->apics);
}
