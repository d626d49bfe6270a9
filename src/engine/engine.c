/*
 * The accelerator's life cycle, its run loop in reference mode, and the stepper.
 */
#include "engine/engine.h"

#include "base/log.h"
#include "engine/check.h"
#include "engine/engine_int.h"
#include "engine/hostexec.h"
#include "engine/hostsig.h"
#include "engine/interp.h"
#include "engine/mirror.h"
#include "engine/translate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define HWCAP2_FSGSBASE 2u
#define CPUID_ADDRESS_SIZES 0x80000008u
#define DEFAULT_PHYSICAL_BITS 46u
#define PAGING_ADDRESS_BITS 52u
#define CHECK_STATS 4u /* only with lock step */

struct engine_stepper {
    struct engine_vm vm;
    struct engine_vcpu vcpu;
};

static struct engine_vcpu *vcpu_of(struct accel_vcpu *vcpu)
{
    return container_of(vcpu, struct engine_vcpu, base);
}

static struct engine_vm *vm_of(struct accel_vm *vm)
{
    return (struct engine_vm *)(void *)vm;
}

static int engine_probe(struct err *err)
{
    (void)err;
    return 0;
}

static void engine_caps(struct accel_caps *ret_caps)
{
    memset(ret_caps, 0, sizeof(*ret_caps));
}

static void vm_init(struct engine_vm *vm, struct gmem *gmem)
{
    struct timespec now = {0};

    vm->ops = &engine_accel_ops;
    vm->gmem = gmem;
    vm->ram_count = gmem_region_count(gmem);
    for (unsigned i = 0; i < vm->ram_count; i++) {
        const struct gmem_region *region = gmem_region(gmem, i);

        vm->ram[i].gpa = region->gpa;
        vm->ram[i].size_bytes = region->size_bytes;
        vm->ram[i].host = region->host;
        vm->ram[i].flags = gmem_page_flags(gmem, gpa(region->gpa));
    }
    mutex_init(&vm->lock, LOCK_RANK_ENGINE);
    atomic_flag_clear(&vm->split_lock);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    vm->clock_host_tsc = __builtin_ia32_rdtsc();
    vm->clock_wall_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A device wrote to a page that code was translated from. */
static void on_code_written(void *opaque, gpa_t start, uint64_t len)
{
    engine_invalidate_code(opaque, start, len);
}

/* As translated code has it: FS base + this. */
static int64_t from_fs(const void *p)
{
    uint64_t fs;

    __asm__("rdfsbase %0" : "=r"(fs));
    return (int64_t)((uint64_t)(uintptr_t)p - fs);
}

/* Kernel code is mirrored where the process has room for it and the CPU's segment bases are ours. */
static int vm_mirror_init(struct engine_vm *vm, const struct accel_vm_config *config,
                          struct err *err)
{
    int64_t distance;

    if (config->vcpu_storage == NULL || (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) == 0) {
        return 0;
    }
    distance = from_fs(config->vcpu_storage());
    if (distance < INT32_MIN || distance > INT32_MAX - (int64_t)sizeof(struct engine_vcpu)) {
        return err_set(err, -EINVAL, "the memory of vCPUs is too far from their threads");
    }
    vm->vcpu_storage = config->vcpu_storage;
    vm->vcpu_from_fs = (int32_t)distance;
    vm->mirror = mirror_create(vm, gmem_fd(vm->gmem));
    return vm->mirror == NULL ? err_set(err, -ENOMEM, "not enough memory for the mirror") : 0;
}

static int check_config(const struct accel_vm_config *config, struct err *err)
{
    if (config->irqchip != VM_IRQCHIP_USER) {
        return err_set(err, -EINVAL, "the software engine has no interrupt chips of its own");
    }
    if (config->vcpu_count > ENGINE_MAX_VCPUS) {
        return err_set(err, -EINVAL, "the software engine runs at most %d vCPUs", ENGINE_MAX_VCPUS);
    }
    if (config->check && (config->vcpu_count != 1 || config->reference_only)) {
        return err_set(err, -EINVAL, "lock step compares the translator of one vCPU; use one vCPU");
    }
    return 0;
}

/* On failure nothing is left of it. */
static int vm_translator_init(struct engine_vm *vm, const struct accel_vm_config *config,
                              struct err *err)
{
    int r = vm_mirror_init(vm, config, err);

    if (r != 0) {
        return r;
    }
    r = translate_vm_init(vm, config->code_cache_bytes, err);
    if (r != 0) {
        mirror_destroy(vm->mirror);
        return r;
    }
    if (config->native != NULL && config->native->space_count != 0 && !config->check) {
        vm->native_user = native_user_create(vm, config->native, config->native_when);
        if (vm->native_user == NULL) {
            log_warn("not enough memory to run user code natively: it is translated");
        }
    }
    gmem_set_code_listener(config->gmem, on_code_written, vm);
    return 0;
}

static int engine_vm_create(const struct accel_vm_config *config, struct err *err,
                            struct accel_vm **ret_vm)
{
    struct engine_vm *vm;
    int r = check_config(config, err);

    if (r != 0) {
        return r;
    }
    vm = calloc(1, sizeof(*vm));
    if (vm == NULL) {
        return err_set(err, -ENOMEM, "not enough memory for the virtual machine");
    }
    vm_init(vm, config->gmem);
    vm->reference_only = config->reference_only;
    vm->check = config->check;
    vm->vcpu_count = config->vcpu_count;
    r = vm->reference_only ? 0 : vm_translator_init(vm, config, err);
    if (r != 0) {
        mutex_done(&vm->lock);
        free(vm);
        return r;
    }
    *ret_vm = (struct accel_vm *)(void *)vm;
    return 0;
}

static void engine_vm_destroy(struct accel_vm *accel_vm)
{
    struct engine_vm *vm = vm_of(accel_vm);

    if (vm == NULL) {
        return;
    }
    if (vm->translator != NULL) {
        gmem_set_code_listener(vm->gmem, NULL, NULL);
        translate_vm_done(vm);
    }
    native_user_destroy(vm->native_user);
    mirror_destroy(vm->mirror);
    mutex_done(&vm->lock);
    free(vm);
}

static unsigned physical_bits(const struct vcpu_env *env)
{
    uint32_t regs[4] = {0};
    unsigned bits;

    if (env == NULL || env->cpuid == NULL) {
        return DEFAULT_PHYSICAL_BITS;
    }
    cpuid_query(env->cpuid, CPUID_ADDRESS_SIZES, 0, 0, 0, regs);
    bits = regs[0] & 0xff;
    return bits < 32 || bits > PAGING_ADDRESS_BITS ? DEFAULT_PHYSICAL_BITS : bits;
}

static bool vendor_is_amd(const struct vcpu_env *env)
{
    uint32_t regs[4] = {0};

    if (env != NULL && env->cpuid != NULL) {
        cpuid_query(env->cpuid, 0, 0, 0, 0, regs);
    }
    return regs[1] == 0x68747541u || regs[1] == 0x6f677948u; /* "Auth"enticAMD, "Hygo"nGenuine */
}

static int vcpu_init(struct engine_vcpu *v, struct engine_vm *vm, unsigned index,
                     const struct vcpu_env *env, struct err *err)
{
    v->base.ops = &engine_accel_ops;
    v->base.vm = (struct accel_vm *)(void *)vm;
    v->base.index = index;
    v->vm = vm;
    v->env = env;
    v->paging_reserved = ((1ull << PAGING_ADDRESS_BITS) - 1) & ~((1ull << physical_bits(env)) - 1);
    v->vendor_amd = vendor_is_amd(env);
    mmu_init(v);
    vcpu_state_reset(&v->st, index == 0);
    v->icache = interp_cache_create();
    if (v->icache == NULL) {
        return err_set(err, -ENOMEM, "not enough memory for a virtual CPU");
    }
    return hostexec_create(err, &v->hostexec);
}

static void vcpu_done(struct engine_vcpu *v)
{
    check_destroy(v->check);
    hostexec_destroy(v->hostexec);
    free(v->icache);
}

static void vcpu_free(struct engine_vcpu *v)
{
    if (v->vm->mirror == NULL) {
        free(v);
    }
}

/* The C library writes zeroes to all of it when a thread begins, and most is used late or never. */
void engine_vcpu_storage_clear(void *storage)
{
    const uintptr_t mask = (uintptr_t)GMEM_PAGE_BYTES - 1;
    uint8_t *start = storage;
    uint8_t *end = start + sizeof(struct engine_vcpu);
    uint8_t *first = (uint8_t *)(((uintptr_t)start + mask) & ~mask);
    uint8_t *last = (uint8_t *)((uintptr_t)end & ~mask);

    if (first >= last || madvise(first, (size_t)(last - first), MADV_DONTNEED) != 0) {
        first = last = end;
    }
    memset(start, 0, (size_t)(first - start));
    memset(last, 0, (size_t)(end - last));
}

static int engine_vcpu_create(struct accel_vm *accel_vm, unsigned index, const struct vcpu_env *env,
                              struct err *err, struct accel_vcpu **ret_vcpu)
{
    struct engine_vm *vm = vm_of(accel_vm);
    struct engine_vcpu *v;
    int r;

    if (index >= vm->vcpu_count) {
        return err_set(err, -EINVAL, "vCPU %u does not exist", index);
    }
    if (vm->mirror != NULL) {
        v = vm->vcpu_storage();
        engine_vcpu_storage_clear(v);
        if (from_fs(v) != vm->vcpu_from_fs) {
            return err_set(err, -EINVAL, "the memory of vCPU %u is in the wrong place", index);
        }
    } else {
        v = aligned_alloc(64, (sizeof(*v) + 63) & ~(size_t)63);
        if (v == NULL) {
            return err_set(err, -ENOMEM, "not enough memory for a virtual CPU");
        }
        memset(v, 0, sizeof(*v));
    }
    r = vcpu_init(v, vm, index, env, err);
    v->process = getpid();
    v->thread = gettid();
    if (r == 0 && vm->translator != NULL) {
        r = translate_vcpu_init(v, err);
    }
    if (r == 0 && vm->check) {
        v->check = check_create();
        r = v->check == NULL ? err_set(err, -ENOMEM, "not enough memory for lock step") : 0;
    }
    if (r != 0) {
        vcpu_done(v);
        vcpu_free(v);
        return r;
    }
    atomic_store(&vm->vcpus[index], v);
    *ret_vcpu = &v->base;
    return 0;
}

static void engine_vcpu_destroy(struct accel_vcpu *vcpu)
{
    struct engine_vcpu *v = vcpu_of(vcpu);

    atomic_store(&v->vm->vcpus[v->base.index], NULL);
    if (v->vm->translator != NULL) {
        translate_vcpu_done(v);
    }
    vcpu_done(v);
    vcpu_free(v);
}

bool engine_can_take_interrupt(struct accel_vcpu *vcpu)
{
    const struct engine_vcpu *v = vcpu_of(vcpu);
    const struct x86_events *e = &v->st.events;

    return (v->st.rflags & X86_FLAG_IF) != 0 && !e->sti_shadow && !e->mov_ss_shadow &&
           !e->exception_pending && !e->interrupt_pending && v->io.done == 0 && !v->exit_unanswered;
}

/* Takes an external interrupt when the guest can: 0, or what delivery gave. */
int engine_take_interrupt(struct engine_vcpu *v)
{
    int vector;

    if (!engine_can_take_interrupt(&v->base)) {
        return 0;
    }
    v->intr_check = false;
    if (v->env == NULL || v->env->intr == NULL || !v->env->intr->pending(v->env->opaque)) {
        return 0;
    }
    vector = v->env->intr->acknowledge(v->env->opaque);
    if (vector < 0) {
        return 0;
    }
    v->intr_check = true; /* another one may wait behind it */
    v->st.mp_state = X86_MP_RUNNABLE;
    v->stat_interrupts++;
    return interrupt_deliver(v, (uint8_t)vector, false);
}

/* A breakpoint of the debugger at the next instruction? */
static bool debug_stops(const struct engine_vcpu *v)
{
    for (unsigned i = 0; i < v->debug.breakpoint_count; i++) {
        if (v->debug.breakpoints[i] == v->st.rip) {
            return true;
        }
    }
    return false;
}

static int debug_exit(struct engine_vcpu *v, uint64_t dr6)
{
    v->exit->reason = VMEXIT_DEBUG;
    v->exit->debug.rip = v->st.rip;
    v->exit->debug.dr6 = dr6;
    v->exit->debug.is_breakpoint_insn = false;
    return ENGINE_EXIT;
}

static bool is_asleep(struct engine_vcpu *v)
{
    if (v->st.mp_state == X86_MP_RUNNABLE) {
        return false;
    }
    if (v->st.mp_state == X86_MP_HALTED && v->st.events.nmi_pending && !v->st.events.nmi_blocked) {
        v->st.mp_state = X86_MP_RUNNABLE;
        return false;
    }
    v->exit->reason = VMEXIT_HLT;
    return true;
}

/* What stands between two instructions: kicks, interrupts, sleep, breakpoints. */
static int look_around(struct engine_vcpu *v)
{
    /* An answered access is taken first: the state must come to a boundary. */
    if (unlikely(atomic_load_explicit(&v->kick, memory_order_relaxed) != 0) && v->io.done == 0) {
        atomic_store(&v->kick, 0);
        v->exit->reason = VMEXIT_INTR;
        return ENGINE_EXIT;
    }
    if (unlikely(v->intr_check)) {
        int r = engine_take_interrupt(v);

        if (r != 0) {
            return r;
        }
    }
    if (unlikely(v->st.mp_state != X86_MP_RUNNABLE) && is_asleep(v)) {
        return ENGINE_EXIT;
    }
    if (unlikely(v->debug.breakpoint_count != 0) && debug_stops(v)) {
        return debug_exit(v, 1);
    }
    return 0;
}

static int run_reference(struct engine_vcpu *v)
{
    int r = 0;

    while (r == 0) {
        r = look_around(v);
        if (r == 0) {
            r = interp_step(v);
        }
        if (unlikely(v->debug.single_step) && r == 0) {
            return debug_exit(v, 0x4000);
        }
    }
    return r;
}

/* Something is to happen before the next instruction, or it was begun already. */
static bool is_mid_event(const struct engine_vcpu *v)
{
    const struct x86_events *e = &v->st.events;

    return e->exception_pending || e->interrupt_pending || e->nmi_pending || e->sti_shadow ||
           e->mov_ss_shadow || v->io.done != 0;
}

/* With the translator: in lock step with the interpreter when asked for. */
static int run_next(struct engine_vcpu *v)
{
    if (v->check != NULL) {
        return check_step(v);
    }
    switch (translate_run(v)) {
    case TRANSLATE_INTERP:
        return 1;
    case TRANSLATE_EXIT:
        return ENGINE_EXIT;
    default:
        return 0;
    }
}

static int run_translated(struct engine_vcpu *v)
{
    int r = 0;

    while (r == 0) {
        r = look_around(v);
        if (r != 0) {
            return r;
        }
        if (is_mid_event(v)) {
            r = 1;
        } else if (v->vm->native_user != NULL && native_user_is_due(v)) {
            r = native_user_run(v);
        } else {
            r = run_next(v);
        }
        if (r == 1) {
            r = interp_step(v);
            if (unlikely(v->debug.single_step) && r == 0) {
                return debug_exit(v, 0x4000);
            }
        }
    }
    return r;
}

static int engine_run(struct accel_vcpu *vcpu, struct vmexit *exit)
{
    struct engine_vcpu *v = vcpu_of(vcpu);

    if (v->exit_unanswered) {
        interp_io_answer(v, exit);
    }
    v->exit = exit;
    v->intr_check = true;
    if ((v->vm->translator != NULL ? run_translated(v) : run_reference(v)) != ENGINE_EXIT) {
        exit->reason = VMEXIT_INTR;
    }
    v->last_exit = *exit;
    v->exit = NULL;
    v->stat_exits++;
    return 0;
}

static void engine_kick(struct accel_vcpu *vcpu)
{
    struct engine_vcpu *v = vcpu_of(vcpu);

    atomic_store(&v->kick, 1);
    if (v->vm->native_user != NULL) {
        native_user_kick(v);
    }
    /* In the interpreter it is seen soon; before it enters translated code, too. */
    if (atomic_load(&v->hot.in_code)) {
        /* Not by pthread_kill(), which needs more system calls than a locked down process has. */
        (void)syscall(SYS_tgkill, v->process, v->thread, HOSTSIG_KICK);
    }
}

static bool exit_is_write(const struct vmexit *exit)
{
    switch (exit->reason) {
    case VMEXIT_PIO:
        return exit->pio.is_write;
    case VMEXIT_MMIO:
        return exit->mmio.is_write;
    default:
        return exit->reason == VMEXIT_MSR_WRITE;
    }
}

/* A write that the machine has done already: finish its instruction, so that the state is
 * at an instruction boundary. */
static void finish_write(struct engine_vcpu *v)
{
    struct vmexit ignored = {.reason = VMEXIT_INTR};

    if (!v->exit_unanswered || !exit_is_write(&v->last_exit)) {
        return;
    }
    interp_io_answer(v, &v->last_exit);
    v->exit = &ignored;
    if (interp_step(v) == ENGINE_EXIT && v->exit_unanswered) {
        /* It has more accesses to do: it is started again as a whole. */
        v->exit_unanswered = false;
        interp_io_clear(v);
    }
    v->exit = NULL;
}

static int engine_get_state(struct accel_vcpu *vcpu, struct vcpu_state *ret_state)
{
    struct engine_vcpu *v = vcpu_of(vcpu);

    finish_write(v);
    *ret_state = v->st;
    if (v->vm->translator != NULL) {
        fpu_hide_pointers(ret_state);
    }
    return 0;
}

static void load_state(struct engine_vcpu *v, const struct vcpu_state *state)
{
    v->st = *state;
    v->exit_unanswered = false;
    v->leave = false;
    v->intr_check = true;
    interp_io_clear(v);
    sysop_debug_changed(v);
    if (v->vm->native_user != NULL) {
        native_user_forget(v);
    }
}

static int engine_set_state(struct accel_vcpu *vcpu, const struct vcpu_state *state)
{
    load_state(vcpu_of(vcpu), state);
    return 0;
}

void engine_queue_interrupt(struct accel_vcpu *vcpu, uint8_t vector)
{
    struct x86_events *e = &vcpu_of(vcpu)->st.events;

    e->interrupt_pending = true;
    e->interrupt_vector = vector;
    vcpu_of(vcpu)->st.mp_state = X86_MP_RUNNABLE;
}

void engine_count_kicks(struct accel_vcpu *vcpu, _Atomic uint32_t *count)
{
    vcpu_of(vcpu)->kick_count = count;
}

void engine_invalidate(struct accel_vm *vm, gpa_t gpa, uint64_t len)
{
    engine_invalidate_code(vm_of(vm), gpa, len);
}

bool engine_trim(struct accel_vcpu *vcpu)
{
    struct engine_vcpu *v = vcpu_of(vcpu);

    return v->vm->translator != NULL && translate_trim(v);
}

static int engine_inject_nmi(struct accel_vcpu *vcpu)
{
    vcpu_of(vcpu)->st.events.nmi_pending = true;
    return 0;
}

static int engine_translate(struct accel_vcpu *vcpu, uint64_t va, gpa_t *ret_gpa)
{
    return mmu_peek(vcpu_of(vcpu), va, ret_gpa);
}

static int engine_set_debug(struct accel_vcpu *vcpu, const struct accel_debug *debug)
{
    struct engine_vcpu *v = vcpu_of(vcpu);

    if (debug->breakpoint_count > ARRAY_LEN(debug->breakpoints)) {
        return -EINVAL;
    }
    v->debug = *debug;
    return 0;
}

static unsigned engine_stats(struct accel_vm *accel_vm, struct accel_stat *ret_stats, unsigned max)
{
    struct engine_vm *vm = vm_of(accel_vm);
    unsigned count;
    struct accel_stat all[] = {
        {"interpreted_instructions", 0},
        {"exits", 0},
        {"exceptions", 0},
        {"interrupts", 0},
        {"tlb_fills", 0},
        {"tlb_flushes", 0},
        {"check_units", 0},
        {"check_instructions", 0},
        {"check_retries", 0},
        {"check_reference_only", 0},
    };

    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        const struct engine_vcpu *v = atomic_load(&vm->vcpus[i]);

        if (v != NULL) {
            all[0].value += v->stat_interpreted;
            all[1].value += v->stat_exits;
            all[2].value += v->stat_exceptions;
            all[3].value += v->stat_interrupts;
            all[4].value += v->stat_tlb_fills;
            all[5].value += v->stat_tlb_flushes;
        }
        if (v != NULL && v->check != NULL) {
            struct check_stats compared;

            check_stats(v->check, &compared);
            all[6].value = compared.units;
            all[7].value = compared.insns;
            all[8].value = compared.retries;
            all[9].value = v->stat_interpreted - compared.undone;
        }
    }
    count = vm->check ? ARRAY_LEN(all) : ARRAY_LEN(all) - CHECK_STATS;
    for (unsigned i = 0; i < count && i < max; i++) {
        ret_stats[i] = all[i];
    }
    if (vm->translator != NULL) {
        count += translate_stats(vm, max > count ? ret_stats + count : NULL,
                                 max > count ? max - count : 0);
    }
    return count;
}

const struct accel_ops engine_accel_ops = {
    .name = "soft",
    .probe = engine_probe,
    .caps = engine_caps,
    .vm_create = engine_vm_create,
    .vm_destroy = engine_vm_destroy,
    .vcpu_create = engine_vcpu_create,
    .vcpu_destroy = engine_vcpu_destroy,
    .run = engine_run,
    .kick = engine_kick,
    .get_state = engine_get_state,
    .set_state = engine_set_state,
    .inject_nmi = engine_inject_nmi,
    .translate = engine_translate,
    .set_debug = engine_set_debug,
    .stats = engine_stats,
};

int engine_stepper_create(struct gmem *gmem, const struct vcpu_env *env, struct err *err,
                          struct engine_stepper **ret_stepper)
{
    struct engine_stepper *s = aligned_alloc(64, (sizeof(*s) + 63) & ~(size_t)63);
    int r;

    if (s == NULL) {
        return err_set(err, -ENOMEM, "not enough memory for an instruction stepper");
    }
    memset(s, 0, sizeof(*s));
    vm_init(&s->vm, gmem);
    s->vm.reference_only = true;
    r = vcpu_init(&s->vcpu, &s->vm, 0, env, err);
    if (r != 0) {
        engine_stepper_destroy(s);
        return r;
    }
    *ret_stepper = s;
    return 0;
}

void engine_stepper_destroy(struct engine_stepper *stepper)
{
    if (stepper == NULL) {
        return;
    }
    vcpu_done(&stepper->vcpu);
    mutex_done(&stepper->vm.lock);
    free(stepper);
}

static bool step_goes_on(const struct engine_vcpu *v, const struct accel_step *step)
{
    if (v->io.done != 0) {
        return true; /* begun: its answered accesses must not happen again */
    }
    if (step->done >= step->max ||
        (step->stop != NULL && __atomic_load_n(step->stop, __ATOMIC_RELAXED) != 0)) {
        return false;
    }
    switch (step->until) {
    case ACCEL_STEP_LEAVE_USER:
        return vcpu_state_cpl(&v->st) == 3;
    case ACCEL_STEP_ENTER_USER:
        return vcpu_state_cpl(&v->st) != 3;
    case ACCEL_STEP_MAX:
    default:
        return true;
    }
}

int engine_stepper_run(struct engine_stepper *stepper, struct vcpu_state *state,
                       struct accel_step *step, struct vmexit *exit)
{
    struct engine_vcpu *v = &stepper->vcpu;
    int r = 0;

    if (v->exit_unanswered) {
        interp_io_answer(v, exit);
        v->st = *state;
    } else if (state->mp_state != X86_MP_RUNNABLE && !state->events.nmi_pending &&
               !state->events.interrupt_pending) {
        return 0; /* HLT was the one instruction */
    } else {
        load_state(v, state);
    }
    v->exit = exit;
    while (r == 0 && step_goes_on(v, step)) {
        step->last_rip = v->st.rip;
        r = interp_step(v);
        step->done += r == 0 ? 1 : 0;
    }
    v->exit = NULL;
    *state = v->st;
    return r == ENGINE_EXIT ? 1 : 0;
}
