/* The accelerator's operations, each a call of the executor. */
#include "proxy/proxy.h"

#include "base/log.h"
#include "cpu/cpuid.h"
#include "engine/layout.h"
#include "proxy/proxy_int.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* How long a vCPU's two threads keep to one host CPU before the scheduler may choose again. */
#define STAY_PARTS_OF_A_SECOND 20u
/* ... which is worth it when they hand over so often. */
#define OFTEN_PARTS_OF_A_SECOND 1000u

extern const uint8_t proxy_image_start[];
extern const uint8_t proxy_image_end[];

static struct proxy_vcpu *vcpu_of(struct accel_vcpu *vcpu)
{
    return container_of(vcpu, struct proxy_vcpu, base);
}

static struct proxy_vm *vm_of(struct accel_vm *vm)
{
    return (struct proxy_vm *)(void *)vm;
}

static int proxy_probe(struct err *err)
{
    (void)err;
    return 0;
}

static void proxy_caps(struct accel_caps *ret_caps)
{
    memset(ret_caps, 0, sizeof(*ret_caps));
    ret_caps->irqchip_split = true;
}

/* ---- the virtual machine ---- */

/* Lines that the executor left for the log, which the guest may have written. */
static void log_drain_locked(struct proxy_vm *vm)
{
    uint32_t count = atomic_load(&vm->shared->log_count);
    uint32_t waiting = count - vm->log_seen;

    for (uint32_t i = count - (waiting < EXECUTOR_LOG_LINES ? waiting : EXECUTOR_LOG_LINES);
         i != count; i++) {
        char text[EXECUTOR_LOG_BYTES];

        fetch_text(vm->shared->log[i % EXECUTOR_LOG_LINES], EXECUTOR_LOG_BYTES, text, sizeof(text));
        log_guest("%s", text);
    }
    __atomic_store_n(&vm->log_seen, count, __ATOMIC_RELAXED);
}

static void log_drain(struct proxy_vm *vm)
{
    if (unlikely(atomic_load_explicit(&vm->shared->log_count, memory_order_relaxed) !=
                 __atomic_load_n(&vm->log_seen, __ATOMIC_RELAXED))) {
        mutex_lock(&vm->service_lock);
        log_drain_locked(vm);
        mutex_unlock(&vm->service_lock);
    }
}

static int service_call_locked(struct proxy_vm *vm, enum executor_service service)
{
    vm->shared->service = service;
    return process_call(vm, &vm->service, true);
}

/* A device wrote to a page that the executor says it has code from. When this returns, no vCPU
 * enters what was made from it. */
static void on_code_written(void *opaque, gpa_t start, uint64_t len)
{
    struct proxy_vm *vm = opaque;

    mutex_lock(&vm->service_lock);
    vm->shared->gpa = start.v;
    vm->shared->len = len;
    (void)service_call_locked(vm, EXECUTOR_INVALIDATE); /* of a dead one nothing is entered */
    atomic_fetch_add_explicit(&vm->invalidations, 1, memory_order_relaxed);
    mutex_unlock(&vm->service_lock);
}

static int shared_create(struct proxy_vm *vm, const struct accel_vm_config *config, struct err *err)
{
    int fd;
    void *map;

    vm->shared_bytes = sizeof(*vm->shared) + vm->vcpu_count * sizeof(vm->shared->vcpus[0]);
    vm->shared_bytes = (vm->shared_bytes + GMEM_PAGE_BYTES - 1) & ~(size_t)(GMEM_PAGE_BYTES - 1);
    fd = memfd_create("corbel-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    vm->shared_fd = fd;
    if (fd < 0 || ftruncate(fd, (off_t)vm->shared_bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return err_set_errno(err, -errno, "cannot make memory to share with guest code");
    }
    map = mmap(NULL, vm->shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        return err_set_errno(err, -errno, "cannot map memory to share with guest code");
    }
    vm->shared = map;
    vm->shared->memory_bytes = gmem_fixed_bytes(config->gmem);
    vm->shared->pluggable_bytes = gmem_size_bytes(config->gmem) - gmem_fixed_bytes(config->gmem);
    vm->shared->code_cache_bytes = config->code_cache_bytes;
    vm->shared->vcpu_count = vm->vcpu_count;
    vm->shared->check = config->check ? 1 : 0;
    vm->shared->native_when = config->check ? ACCEL_NATIVE_NEVER : config->native_when;
    vm->shared->self_bytes = (uint32_t)vm->shared_bytes;
    vm->shared->tsc_hz = cpuid_tsc_hz();
    vm->shared->has_apics = config->irqchip == VM_IRQCHIP_SPLIT;
    vm->service.asked = &vm->shared->service_asked;
    vm->service.answered = &vm->shared->service_answered;
    return 0;
}

/* Names stay as they are now, when no guest code has run. */
static void take_stat_names(struct proxy_vm *vm)
{
    uint32_t count = fetch_u32(&vm->shared->stat_count);

    vm->stat_count = count < EXECUTOR_MAX_STATS ? count : EXECUTOR_MAX_STATS;
    for (unsigned i = 0; i < vm->stat_count; i++) {
        fetch_text(vm->shared->stat_names[i], EXECUTOR_NAME_BYTES, vm->stat_names[i],
                   EXECUTOR_NAME_BYTES);
    }
}

static void proxy_vm_destroy(struct accel_vm *accel_vm)
{
    struct proxy_vm *vm = vm_of(accel_vm);

    if (vm == NULL) {
        return;
    }
    gmem_set_code_listener(vm->gmem, NULL, NULL);
    process_stop(vm);
    lapic_set_destroy(vm->apics);
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        free(atomic_load(&vm->vcpus[i]));
    }
    if (vm->shared != NULL) {
        log_drain(vm);
        (void)munmap(vm->shared, vm->shared_bytes);
    }
    if (vm->shared_fd >= 0) {
        (void)close(vm->shared_fd);
    }
    mutex_done(&vm->service_lock);
    free(vm);
}

static int check_config(const struct accel_vm_config *config, struct err *err)
{
    if (config->irqchip == VM_IRQCHIP_FULL || config->reference_only) {
        return err_set(err, -EINVAL,
                       "guest code in its own process has no interrupt chips of the board and no "
                       "reference");
    }
    if (config->vcpu_count < 1 || config->vcpu_count > EXECUTOR_MAX_VCPUS) {
        return err_set(err, -EINVAL, "the software engine runs at most %u vCPUs",
                       EXECUTOR_MAX_VCPUS);
    }
    return 0;
}

int proxy_vm_create(const struct accel_vm_config *config, const struct proxy_image *image,
                    struct err *err, struct accel_vm **ret_vm)
{
    const struct proxy_image own = {
        .data = proxy_image_start,
        .bytes = (size_t)(proxy_image_end - proxy_image_start),
    };
    struct proxy_vm *vm;
    int rc = check_config(config, err);

    if (rc != 0) {
        return rc;
    }
    vm = calloc(1, sizeof(*vm));
    if (vm == NULL) {
        return err_set(err, -ENOMEM, "not enough memory for the virtual machine");
    }
    vm->ops = &proxy_accel_ops;
    vm->gmem = config->gmem;
    vm->died = config->died;
    vm->opaque = config->opaque;
    vm->vcpu_count = config->vcpu_count;
    vm->shared_fd = vm->process.pid_fd = vm->process.life_fd = vm->process.quit_fd = -1;
    mutex_init(&vm->service_lock, LOCK_RANK_ENGINE);
    rc = shared_create(vm, config, err);
    if (rc == 0 && config->irqchip == VM_IRQCHIP_SPLIT) {
        rc = message_create(vm);
    }
    if (rc == 0) {
        rc = process_start(vm, image == NULL ? &own : image, err);
    }
    if (rc != 0) {
        proxy_vm_destroy((struct accel_vm *)(void *)vm);
        return rc;
    }
    take_stat_names(vm);
    gmem_set_code_listener(config->gmem, on_code_written, vm);
    *ret_vm = (struct accel_vm *)(void *)vm;
    return 0;
}

static int vm_create(const struct accel_vm_config *config, struct err *err,
                     struct accel_vm **ret_vm)
{
    return proxy_vm_create(config, NULL, err, ret_vm);
}

pid_t proxy_vm_pid(const struct accel_vm *vm)
{
    return ((const struct proxy_vm *)(const void *)vm)->process.pid;
}

static unsigned proxy_stats(struct accel_vm *accel_vm, struct accel_stat *ret_stats, unsigned max)
{
    struct proxy_vm *vm = vm_of(accel_vm);
    bool alive;

    mutex_lock(&vm->service_lock);
    alive = service_call_locked(vm, EXECUTOR_STATS) == 0;
    for (unsigned i = 0; i < vm->stat_count && i < max; i++) {
        ret_stats[i].name = vm->stat_names[i];
        ret_stats[i].value = alive ? fetch_u64(&vm->shared->stats[i]) : 0;
    }
    mutex_unlock(&vm->service_lock);
    if (vm->stat_count < max) {
        ret_stats[vm->stat_count] =
            (struct accel_stat){"code_page_writes", atomic_load(&vm->invalidations)};
    }
    return vm->stat_count + 1;
}

/* ---- vCPUs ---- */

static struct proxy_vm *vm_of_vcpu(const struct proxy_vcpu *v)
{
    return vm_of(v->base.vm);
}

/* A command that is answered at once. */
static int vcpu_call(struct proxy_vcpu *v, enum executor_command command)
{
    int rc;

    v->page->command = command;
    rc = process_call(vm_of_vcpu(v), &v->call, true);
    return rc == 0 ? fetch_result(v->page) : rc;
}

static int proxy_vcpu_create(struct accel_vm *accel_vm, unsigned index, const struct vcpu_env *env,
                             struct err *err, struct accel_vcpu **ret_vcpu)
{
    struct proxy_vm *vm = vm_of(accel_vm);
    struct proxy_vcpu *v;
    int rc;

    if (index >= vm->vcpu_count) {
        return err_set(err, -EINVAL, "vCPU %u does not exist", index);
    }
    v = calloc(1, sizeof(*v));
    if (v == NULL) {
        return err_set(err, -ENOMEM, "not enough memory for a virtual CPU");
    }
    v->base = (struct accel_vcpu){.ops = &proxy_accel_ops, .vm = accel_vm, .index = index};
    v->page = &vm->shared->vcpus[index];
    v->env = env;
    v->cpu = -1;
    v->answer = VMEXIT_INTR;
    v->call.asked = &v->page->asked;
    v->call.answered = &v->page->answered;
    v->page->cpuid = *env->cpuid;
    atomic_store(&vm->vcpus[index], v);
    rc = vcpu_call(v, EXECUTOR_CREATE);
    if (rc != 0) {
        char text[sizeof(v->page->exit.text)];

        if (rc == -EOWNERDEAD) {
            return process_explain(vm, err);
        }
        fetch_text(vm->shared->vcpus[index].exit.text, sizeof(text), text, sizeof(text));
        return err_set(err, rc, "%s", text);
    }
    v->thread = (pid_t)fetch_u32((const uint32_t *)&v->page->thread);
    if (sched_getaffinity(0, sizeof(v->allowed), &v->allowed) != 0) {
        CPU_ZERO(&v->allowed); /* a host with more CPUs than a set has: left to the scheduler */
    }
    *ret_vcpu = &v->base;
    return 0;
}

/* Devices may still send messages to it, and the watcher looks at it: its memory goes with the VM. */
static void proxy_vcpu_destroy(struct accel_vcpu *vcpu)
{
    (void)vcpu;
}

/* The caller's answer to the last exit, where the executor looks for it. */
static void give_answer(struct proxy_vcpu *v, const struct vmexit *exit)
{
    struct executor_answer *answer = &v->page->answer;

    switch (v->answer) {
    case VMEXIT_PIO:
        answer->data = exit->pio.data;
        break;
    case VMEXIT_MMIO:
        answer->data = exit->mmio.data;
        break;
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        answer->data = exit->msr.data;
        answer->fault = exit->msr.fault;
        break;
    default:
        break;
    }
}

/* The vector that the guest takes first, and whether another one waits. */
static void give_interrupts(struct proxy_vcpu *v)
{
    const struct vcpu_intr_ops *intr = v->env->intr;
    int vector = -1;
    bool pending = intr != NULL && intr->pending(v->env->opaque);

    if (pending && v->can_take) {
        vector = intr->acknowledge(v->env->opaque);
        pending = intr->pending(v->env->opaque);
    }
    v->page->vector = vector;
    v->page->pending = pending;
}

/*
 * A vCPU has two threads, ours and the executor's, of which one sleeps while the
 * other runs. The scheduler would wake each on an idle CPU, which takes many
 * times as long as a switch on one CPU: both are kept where the executor's last
 * ran, while they do this often. Now and then they are let go for one round, so
 * that the scheduler may choose another CPU for them; the executor comes out for it.
 */
static void keep_together(struct proxy_vcpu *v)
{
    uint64_t now = __builtin_ia32_rdtsc();
    uint32_t cpu;
    uint64_t stay = cpuid_tsc_hz() / STAY_PARTS_OF_A_SECOND;
    bool is_often = now - v->exit_tsc < cpuid_tsc_hz() / OFTEN_PARTS_OF_A_SECOND;
    cpu_set_t one;

    v->exit_tsc = now;
    if (v->cpu >= 0 ? now - v->moved_tsc < stay : !is_often) {
        return;
    }
    v->moved_tsc = now;
    if (v->cpu >= 0) {
        v->cpu = -1;
        v->page->stay_until = 0;
        (void)sched_setaffinity(v->thread, sizeof(v->allowed), &v->allowed);
        (void)sched_setaffinity(0, sizeof(v->allowed), &v->allowed);
        return;
    }
    cpu = fetch_u32(&v->page->cpu);
    if (cpu < CPU_SETSIZE && CPU_ISSET(cpu, &v->allowed)) {
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        v->cpu = (int)cpu;
        v->page->stay_until = now + stay;
        /* Only speed depends on it. */
        (void)sched_setaffinity(v->thread, sizeof(one), &one);
        (void)sched_setaffinity(0, sizeof(one), &one);
    }
}

static int proxy_run(struct accel_vcpu *vcpu, struct vmexit *exit)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);
    struct proxy_vm *vm = vm_of_vcpu(v);
    int rc;

    give_answer(v, exit);
    give_interrupts(v);
    v->page->command = EXECUTOR_RUN;
    rc = process_call(vm, &v->call, false);
    if (rc == 0) {
        rc = fetch_result(v->page) == 0 ? fetch_exit(v->page, exit, &v->can_take) : -EPROTO;
        if (rc != 0) {
            process_condemn(vm);
        }
    }
    log_drain(vm);
    if (rc == 0) {
        keep_together(v); /* of a process that ended the thread's id may be another's */
    } else {
        v->can_take = false;
        exit->reason = VMEXIT_ERROR;
        (void)process_explain(vm, &exit->error);
    }
    v->answer = exit->reason;
    return 0;
}

static void proxy_kick(struct accel_vcpu *vcpu)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);

    process_hurry(&v->call);
    atomic_store(&v->page->leave, 1);
    message_wake(vm_of_vcpu(v), v);
}

static int proxy_send_msi(struct accel_vm *accel_vm, uint64_t address, uint32_t data)
{
    struct proxy_vm *vm = vm_of(accel_vm);

    if (vm->apics == NULL) {
        return -EINVAL;
    }
    lapic_send_msi(vm->apics, address, data);
    return 0;
}

static void proxy_spare_cpu(struct accel_vm *accel_vm, bool spares)
{
    atomic_store(&vm_of(accel_vm)->shared->spares_cpu, spares ? 1 : 0);
}

static int proxy_irqchip_reset(struct accel_vm *accel_vm)
{
    struct proxy_vm *vm = vm_of(accel_vm);
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < vm->vcpu_count; i++) {
        struct proxy_vcpu *v = atomic_load(&vm->vcpus[i]);

        rc = v == NULL ? 0 : vcpu_call(v, EXECUTOR_RESET_APIC);
    }
    return rc;
}

static int proxy_get_state(struct accel_vcpu *vcpu, struct vcpu_state *ret_state)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);
    int rc = vcpu_call(v, EXECUTOR_GET_STATE);

    if (rc == 0) {
        fetch_state(v->page, ret_state);
    }
    return rc;
}

static int proxy_set_state(struct accel_vcpu *vcpu, const struct vcpu_state *state)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);

    v->page->state = *state;
    v->answer = VMEXIT_INTR;
    v->can_take = false;
    return vcpu_call(v, EXECUTOR_SET_STATE);
}

static int proxy_inject_nmi(struct accel_vcpu *vcpu)
{
    return vcpu_call(vcpu_of(vcpu), EXECUTOR_NMI);
}

static int proxy_translate(struct accel_vcpu *vcpu, uint64_t va, gpa_t *ret_gpa)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);
    int rc;

    v->page->address = va;
    rc = vcpu_call(v, EXECUTOR_TRANSLATE);
    if (rc == 0) {
        *ret_gpa = gpa(fetch_u64(&v->page->address));
    }
    return rc;
}

static int proxy_set_debug(struct accel_vcpu *vcpu, const struct accel_debug *debug)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);

    if (debug->breakpoint_count > ARRAY_LEN(debug->breakpoints)) {
        return -EINVAL;
    }
    v->page->debug = *debug;
    return vcpu_call(v, EXECUTOR_SET_DEBUG);
}

static int proxy_get_apic(struct accel_vcpu *vcpu, struct lapic_state *ret_state)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);
    int rc = vcpu_call(v, EXECUTOR_GET_APIC);

    if (rc == 0) {
        fetch_apic(v->page, ret_state);
    }
    return rc;
}

static void proxy_vcpu_thread(struct accel_vcpu *vcpu, pid_t *ret_pid, pid_t *ret_tid)
{
    const struct proxy_vcpu *v = vcpu_of(vcpu);

    *ret_pid = vm_of_vcpu(v)->process.pid;
    *ret_tid = v->thread; /* as the executor said: it may lie about itself only */
}

static int proxy_set_apic(struct accel_vcpu *vcpu, const struct lapic_state *state)
{
    struct proxy_vcpu *v = vcpu_of(vcpu);

    v->page->apic = *state;
    return vcpu_call(v, EXECUTOR_SET_APIC);
}

const struct accel_ops proxy_accel_ops = {
    .name = "soft",
    .probe = proxy_probe,
    .caps = proxy_caps,
    .vm_create = vm_create,
    .vm_destroy = proxy_vm_destroy,
    .vcpu_create = proxy_vcpu_create,
    .vcpu_destroy = proxy_vcpu_destroy,
    .run = proxy_run,
    .kick = proxy_kick,
    .get_state = proxy_get_state,
    .set_state = proxy_set_state,
    .inject_nmi = proxy_inject_nmi,
    .translate = proxy_translate,
    .set_debug = proxy_set_debug,
    .send_msi = proxy_send_msi,
    .irqchip_reset = proxy_irqchip_reset,
    .spare_cpu = proxy_spare_cpu,
    .get_apic = proxy_get_apic,
    .set_apic = proxy_set_apic,
    .vcpu_thread = proxy_vcpu_thread,
    .stats = proxy_stats,
};
