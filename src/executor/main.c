/*
 * The executor: the process in which guest code runs when the software engine
 * does it. Started by proxy/ with three descriptors and no arguments, on a stack
 * and in an address space that entry.c has made; see protocol.h and
 * engine/layout.h.
 */
#include "engine/engine.h"
#include "engine/hostsig.h"
#include "engine/layout.h"
#include "executor/executor.h"
#include "executor/native.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* With the thread's struct engine_vcpu at its upper end. */
#define THREAD_STACK_BYTES (3u << 19)
#define STATUS_LOST 121

void executor_fail(struct executor_shared *shared, int code, const char *text)
{
    (void)snprintf(shared->error, sizeof(shared->error), "%.199s", text);
    shared->error_code = code;
    executor_bell_set(&shared->phase, EXECUTOR_FAILED);
    _exit(STATUS_LOST);
}

static void must(struct executor_shared *shared, int rc, const struct err *err)
{
    if (rc != 0) {
        executor_fail(shared, rc, err->text);
    }
}

/* No memory from the kernel but the heap's, which lies below LAYOUT_PROGRAM_END and never shrinks. */
static void keep_to_heap(void)
{
    (void)mallopt(M_MMAP_MAX, 0);
    (void)mallopt(M_ARENA_MAX, 1);
    (void)mallopt(M_TRIM_THRESHOLD, -1);
}

static struct executor_shared *map_shared(void)
{
    struct executor_shared *shared =
        mmap((void *)LAYOUT_SHARED, sizeof(*shared), PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED_NOREPLACE, EXECUTOR_SHARED_FD, 0);
    size_t bytes;

    if (shared == MAP_FAILED) {
        _exit(STATUS_LOST);
    }
    bytes = shared->self_bytes;
    (void)munmap(shared, sizeof(*shared)); /* mapped anew in its whole length */
    shared = mmap((void *)LAYOUT_SHARED, bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_FIXED_NOREPLACE, EXECUTOR_SHARED_FD, 0);
    if (shared == MAP_FAILED || bytes > LAYOUT_SHARED_END - LAYOUT_SHARED) {
        _exit(STATUS_LOST);
    }
    return shared;
}

/* The monitor holds the other end and never writes: this returns when it is gone. */
static void *life_main(void *opaque)
{
    struct executor *executor = opaque;
    char byte;

    engine_vcpu_storage_clear(engine_vcpu_storage());
    executor_bell_add(&executor->started);
    while (read(EXECUTOR_LIFE_FD, &byte, 1) < 0 && errno == EINTR) {
    }
    _exit(STATUS_LOST);
}

static int start_thread(void *(*fn)(void *), void *opaque, struct err *err)
{
    pthread_attr_t attr;
    pthread_t thread;
    void *stack = executor_place_stack(THREAD_STACK_BYTES);
    int rc;

    if (stack == MAP_FAILED) {
        return err_set_errno(err, -ENOMEM, "cannot map a stack");
    }
    rc = pthread_attr_init(&attr);
    rc = rc == 0 ? pthread_attr_setstack(&attr, stack, THREAD_STACK_BYTES) : rc;
    rc = rc == 0 ? pthread_create(&thread, &attr, fn, opaque) : rc;
    return rc == 0 ? 0 : err_set_errno(err, -rc, "cannot start a thread");
}

static int start_threads(struct executor *executor, struct err *err)
{
    struct executor_shared *shared = executor->shared;
    unsigned count = shared->vcpu_count;
    struct executor_thread *threads = calloc(count, sizeof(*threads));
    int rc = 0;

    if (threads == NULL || (shared->has_apics != 0 && executor_apics_create(executor) != 0)) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    executor->threads = threads;
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        threads[i].executor = executor;
        threads[i].page = &shared->vcpus[i];
        threads[i].index = i;
        threads[i].exit.reason = threads[i].reported = VMEXIT_INTR;
        threads[i].eoi = -1;
        rc = start_thread(executor_vcpu_main, &threads[i], err);
    }
    rc = rc == 0 ? start_thread(life_main, executor, err) : rc;
    for (uint32_t seen = 0; rc == 0 && seen < count + 1;) {
        seen = executor_bell_wait(&executor->started, seen);
    }
    return rc;
}

/* What did not leave for the monitor. */
static unsigned apic_stats(const struct executor *executor, struct accel_stat *ret_stats,
                           unsigned max)
{
    struct accel_stat all[] = {{"apic_accesses", 0}, {"apic_halts", 0}};
    unsigned count = max < ARRAY_LEN(all) ? max : ARRAY_LEN(all);

    for (unsigned i = 0; executor->threads != NULL && i < executor->shared->vcpu_count; i++) {
        const struct executor_thread *t = &executor->threads[i];

        all[0].value += atomic_load_explicit(&t->stat_accesses, memory_order_relaxed);
        all[1].value += atomic_load_explicit(&t->stat_halts, memory_order_relaxed);
    }
    for (unsigned i = 0; i < count; i++) {
        ret_stats[i] = all[i];
    }
    return count;
}

static void put_stats(struct executor *executor, bool with_names)
{
    struct executor_shared *shared = executor->shared;
    struct accel_stat stats[EXECUTOR_MAX_STATS];
    unsigned count = engine_accel_ops.stats(executor->vm, stats, EXECUTOR_MAX_STATS);

    count = count < EXECUTOR_MAX_STATS ? count : EXECUTOR_MAX_STATS;
    if (executor->apics != NULL) {
        count += apic_stats(executor, stats + count, EXECUTOR_MAX_STATS - count);
    }
    for (unsigned i = 0; i < count; i++) {
        shared->stats[i] = stats[i].value;
        if (with_names) {
            (void)snprintf(shared->stat_names[i], EXECUTOR_NAME_BYTES, "%s", stats[i].name);
        }
    }
    shared->stat_count = count;
}

static int attach(struct executor *executor, const struct native *native, struct err *err)
{
    struct executor_shared *shared = executor->shared;
    struct accel_vm_config config = {
        .vcpu_count = shared->vcpu_count,
        .irqchip = VM_IRQCHIP_USER,
        .check = shared->check != 0,
        .code_cache_bytes = shared->code_cache_bytes,
        .vcpu_storage = engine_vcpu_storage,
        .native = native,
        .native_when = (enum accel_native)shared->native_when,
    };
    int rc;

    if (shared->memory_bytes > LAYOUT_RAM_END - LAYOUT_RAM ||
        shared->pluggable_bytes > LAYOUT_RAM_END - LAYOUT_RAM - shared->memory_bytes) {
        return err_set(err, -EINVAL, "more guest memory than the software engine has room for");
    }
    rc = gmem_attach(EXECUTOR_RAM_FD, shared->memory_bytes, shared->pluggable_bytes,
                     (void *)LAYOUT_RAM, err, &executor->gmem);
    if (rc == 0) {
        config.gmem = executor->gmem;
        rc = engine_accel_ops.vm_create(&config, err, &executor->vm);
    }
    if (rc == 0) {
        rc = start_threads(executor, err);
    }
    if (rc == 0) {
        put_stats(executor, true);
    }
    return rc;
}

static NORETURN void serve(struct executor *executor)
{
    struct executor_shared *shared = executor->shared;
    uint32_t seen = 0;

    for (;;) {
        seen = executor_bell_wait(&shared->service_asked, seen);
        switch ((enum executor_service)shared->service) {
        case EXECUTOR_INVALIDATE:
            engine_invalidate(executor->vm, gpa(shared->gpa), shared->len);
            break;
        case EXECUTOR_STATS:
            put_stats(executor, false);
            break;
        }
        executor_bell_set(&shared->service_answered, seen);
    }
}

int main(void)
{
    struct executor executor = {.shared = map_shared()};
    const struct native *native = NULL;
    struct err err = {0};
    sigset_t all;

    keep_to_heap();
    executor_log_to(executor.shared);
    cpuid_set_tsc_hz(executor.shared->tsc_hz);
    /* Threads of vCPUs unblock what they can handle (hostsig.h); nothing else is wanted. */
    (void)sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    if (executor_drop_capabilities() != 0) {
        executor_fail(executor.shared, -EPERM, "cannot drop capabilities");
    }
    if (executor.shared->native_when != ACCEL_NATIVE_NEVER) {
        executor_native_create(executor.shared->vcpu_count, &executor.shared->spares_cpu, &native);
    }
    must(executor.shared, attach(&executor, native, &err), &err);
    executor_bell_set(&executor.shared->phase, EXECUTOR_ATTACHED);
    serve(&executor);
}
