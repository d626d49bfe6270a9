#include "kvm/kvm.h"

#include "kvm/kvm_int.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Three pages that old Intel CPUs need for real mode, and one for its page table: above the RAM
 * below 4 GiB and below the flash at its end. */
#define KVM_TSS_GPA 0xfffbd000u
#define KVM_IDENTITY_MAP_GPA 0xfffbc000u

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
    int rc;

    do {
        rc = ioctl(fd, request, arg);
    } while (rc < 0 && errno == EINTR && request != KVM_RUN);
    return rc < 0 ? -errno : rc;
}

int kvm_capability(int fd, int capability)
{
    const int rc = ioctl(fd, KVM_CHECK_EXTENSION, (unsigned long)capability);

    return rc < 0 ? 0 : rc;
}

int kvm_open(struct err *err)
{
    const int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        const int code = -errno;
        if (code == -EACCES) {
            return err_set(err, code,
                           "no permission to open \"/dev/kvm\" (the group \"kvm\" has it)");
        }
        return err_set_errno(err, code, "cannot open \"/dev/kvm\"");
    }
    const int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION || kvm_capability(fd, KVM_CAP_IMMEDIATE_EXIT) == 0 ||
        kvm_capability(fd, KVM_CAP_XSAVE) == 0) {
        (void)close(fd);
        return err_set(err, -ENOSYS, "KVM of this kernel is too old");
    }
    return fd;
}

static void kvm_caps(struct accel_caps *ret_caps)
{
    CLEANUP_CLOSE int fd = kvm_open(NULL);

    memset(ret_caps, 0, sizeof(*ret_caps));
    if (fd < 0) {
        return;
    }
    ret_caps->irqchip_full =
        kvm_capability(fd, KVM_CAP_IRQCHIP) > 0 && kvm_capability(fd, KVM_CAP_PIT2) > 0;
    ret_caps->irqchip_split = kvm_capability(fd, KVM_CAP_SPLIT_IRQCHIP) > 0;
    ret_caps->ioeventfd = kvm_capability(fd, KVM_CAP_IOEVENTFD) > 0;
    ret_caps->irqfd =
        kvm_capability(fd, KVM_CAP_IRQFD) > 0 && kvm_capability(fd, KVM_CAP_IRQ_ROUTING) > 0;
    ret_caps->dirty_log = true;
}

/* Tells KVM of the RAM, one slot per region of gmem. */
static int slots_set(struct kvm_vm *vm, uint32_t flags)
{
    for (unsigned i = 0; i < gmem_region_count(vm->gmem); i++) {
        const struct gmem_region *region = gmem_region(vm->gmem, i);
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .flags = flags,
            .guest_phys_addr = region->gpa,
            .memory_size = region->size_bytes,
            .userspace_addr = (uintptr_t)region->host,
        };
        const int rc = kvm_ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/*
 * What KVM shall leave to us: instructions it cannot emulate, and, where the
 * local APIC is ours, its MSRs.
 */
static int exits_enable(struct kvm_vm *vm)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = {1}};

    if (kvm_capability(vm->vm_fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0) {
        const int rc = kvm_ioctl(vm->vm_fd, KVM_ENABLE_CAP, &cap);
        if (rc < 0) {
            return rc;
        }
    }
    if (kvm_vm_has_lapic(vm)) {
        return 0;
    }
    cap = (struct kvm_enable_cap){
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args = {KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL |
                 KVM_MSR_EXIT_REASON_FILTER},
    };
    int rc = kvm_ioctl(vm->vm_fd, KVM_ENABLE_CAP, &cap);
    if (rc < 0) {
        return rc;
    }
    /* A zero bit denies: these go to the machine. x2APIC's MSRs cannot be filtered; without an
     * APIC in the kernel they are unknown to it, which comes to us as well. */
    static uint8_t none[] = {0};
    struct kvm_msr_filter filter = {
        .flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
        .ranges = {{.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
                    .nmsrs = 1,
                    .base = X86_MSR_APIC_BASE,
                    .bitmap = none},
                   {.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
                    .nmsrs = 1,
                    .base = X86_MSR_TSC_DEADLINE,
                    .bitmap = none}},
    };
    return kvm_ioctl(vm->vm_fd, KVM_X86_SET_MSR_FILTER, &filter);
}

static int vm_setup(struct kvm_vm *vm, struct err *err)
{
    uint64_t identity_map = KVM_IDENTITY_MAP_GPA;

    int rc = kvm_ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM does not say the size of a vCPU");
    }
    vm->run_bytes = (size_t)rc;
    vm->vm_fd = kvm_ioctl(vm->kvm_fd, KVM_CREATE_VM, NULL);
    if (vm->vm_fd < 0) {
        return err_set_errno(err, vm->vm_fd, "KVM cannot make a virtual machine");
    }
    /* Only old Intel CPUs need them; elsewhere they may be refused. */
    (void)ioctl(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
    (void)ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, KVM_TSS_GPA);

    rc = slots_set(vm, 0);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM does not take the guest's memory");
    }
    rc = exits_enable(vm);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM of this kernel is too old");
    }
    return kvm_irqchip_create(vm, err);
}

static void kvm_vm_destroy(struct accel_vm *accel_vm)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);

    if (vm == NULL) {
        return;
    }
    if (vm->vm_fd >= 0) {
        (void)close(vm->vm_fd);
    }
    if (vm->kvm_fd >= 0) {
        (void)close(vm->kvm_fd);
    }
    mutex_done(&vm->lock);
    free(vm->routing);
    free(vm);
}

static int kvm_vm_create(const struct accel_vm_config *config, struct err *err,
                         struct accel_vm **ret_vm)
{
    if (config->vcpu_count == 0 || config->vcpu_count > KVM_MAX_CPUS) {
        return err_set(err, -EINVAL, "%u CPUs, at most %d", config->vcpu_count, KVM_MAX_CPUS);
    }
    struct kvm_vm *vm = calloc(1, sizeof(*vm));
    if (vm == NULL) {
        return err_set_errno(err, -ENOMEM, "virtual machine");
    }
    mutex_init(&vm->lock, LOCK_RANK_LEAF);
    vm->ops = &kvm_accel_ops;
    vm->gmem = config->gmem;
    vm->stepper = config->stepper;
    vm->emulated =
        config->emulated && config->stepper != NULL && config->irqchip == VM_IRQCHIP_USER;
    vm->irqchip = config->irqchip;
    vm->cpu_count = config->vcpu_count;
    vm->vm_fd = -1;
    for (unsigned i = 0; i < KVM_MAX_CPUS; i++) {
        atomic_init(&vm->cpu_fds[i], -1);
    }
    vm->kvm_fd = kvm_open(err);
    const int rc = vm->kvm_fd < 0 ? vm->kvm_fd : vm_setup(vm, err);
    if (rc < 0) {
        kvm_vm_destroy((struct accel_vm *)(void *)vm);
        return rc;
    }
    *ret_vm = (struct accel_vm *)(void *)vm;
    return 0;
}

static void kick_handler(int signal_number)
{
    (void)signal_number; /* its arrival is all: KVM_RUN returns EINTR */
}

/* Lets the kick through on this thread. Handler and mask are the same for all vCPUs. */
static int kick_prepare(void)
{
    struct sigaction action = {.sa_handler = kick_handler};
    sigset_t set;

    if (sigaction(SIGRTMIN, &action, NULL) < 0) {
        return -errno;
    }
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGRTMIN);
    return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void kvm_vcpu_destroy(struct accel_vcpu *vcpu)
{
    if (vcpu == NULL) {
        return;
    }
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    if (cpu->stepper != NULL) {
        cpu->vm->stepper->destroy(cpu->stepper);
    }
    free(cpu->step_state);
    free(cpu->step_before);
    if (cpu->run != MAP_FAILED) {
        (void)munmap(cpu->run, cpu->vm->run_bytes);
    }
    if (cpu->fd >= 0) {
        atomic_store(&cpu->vm->cpu_fds[cpu->base.index], -1);
        (void)close(cpu->fd);
    }
    free(cpu);
}

static int vcpu_setup(struct kvm_cpu *cpu, struct err *err)
{
    struct kvm_vm *vm = cpu->vm;
    const unsigned index = cpu->base.index;

    cpu->fd = kvm_ioctl(vm->vm_fd, KVM_CREATE_VCPU, (void *)(uintptr_t)index);
    if (cpu->fd < 0) {
        return err_set_errno(err, cpu->fd, "KVM cannot make vCPU %u", index);
    }
    cpu->run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (cpu->run == MAP_FAILED) {
        return err_set_errno(err, -errno, "shared page of vCPU %u", index);
    }
    int rc = kvm_cpuid_apply(vm, cpu->fd, cpu->env.cpuid);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM does not take the CPUID of vCPU %u", index);
    }
    kvm_state_probe_msrs(cpu);
    if (kvm_vm_has_lapic(vm)) {
        rc = kvm_ioctl(cpu->fd, KVM_GET_LAPIC, &vm->lapic[index]);
        if (rc < 0) {
            return err_set_errno(err, rc, "local APIC of vCPU %u", index);
        }
    }
    struct vcpu_state *state = aligned_alloc(64, sizeof(*state));
    if (state == NULL) {
        return err_set_errno(err, -ENOMEM, "vCPU %u", index);
    }
    vcpu_state_reset(state, index == 0);
    rc = kvm_state_set(cpu, state, NULL);
    free(state);
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM does not take the state of vCPU %u", index);
    }
    rc = kick_prepare();
    if (rc < 0) {
        return err_set_errno(err, rc, "signal of vCPU %u", index);
    }
    atomic_store(&vm->cpu_fds[index], cpu->fd);
    return 0;
}

static int kvm_vcpu_create(struct accel_vm *accel_vm, unsigned index, const struct vcpu_env *env,
                           struct err *err, struct accel_vcpu **ret_vcpu)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);

    if (index >= vm->cpu_count) {
        return err_set(err, -EINVAL, "no vCPU %u", index);
    }
    struct kvm_cpu *cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL) {
        return err_set_errno(err, -ENOMEM, "vCPU %u", index);
    }
    cpu->base = (struct accel_vcpu){.ops = &kvm_accel_ops, .vm = accel_vm, .index = index};
    cpu->vm = vm;
    cpu->env = *env;
    cpu->fd = -1;
    cpu->run = MAP_FAILED;
    cpu->tid = (pid_t)syscall(SYS_gettid);
    const int rc = vcpu_setup(cpu, err);
    if (rc < 0) {
        kvm_vcpu_destroy(&cpu->base);
        return rc;
    }
    *ret_vcpu = &cpu->base;
    return 0;
}

static int kvm_get_state(struct accel_vcpu *vcpu, struct vcpu_state *ret_state)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);

    /* Where the stepper is: its instruction starts again when its access is answered. */
    if (cpu->pending == KVM_PENDING_STEP) {
        memcpy(ret_state, cpu->step_state, sizeof(*ret_state));
        return 0;
    }
    kvm_cpu_settle(cpu);
    return kvm_state_get(cpu, ret_state);
}

static int kvm_set_state(struct accel_vcpu *vcpu, const struct vcpu_state *state)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);

    if (cpu->pending == KVM_PENDING_STEP) {
        /* The stepper's half-done instruction belonged to the old state. */
        cpu->vm->stepper->destroy(cpu->stepper);
        cpu->stepper = NULL;
    }
    kvm_cpu_settle(cpu);
    cpu->pending = KVM_PENDING_NONE;
    cpu->stuck = 0;
    kvm_user_state_set(cpu, state);
    return kvm_state_set(cpu, state, NULL);
}

static int kvm_inject_nmi(struct accel_vcpu *vcpu)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);

    if (!kvm_vm_has_lapic(cpu->vm) && cpu->mp_state == X86_MP_HALTED) {
        cpu->mp_state = X86_MP_RUNNABLE;
    }
    return kvm_ioctl(cpu->fd, KVM_NMI, NULL);
}

static int kvm_translate(struct accel_vcpu *vcpu, uint64_t va, gpa_t *ret_gpa)
{
    struct kvm_translation translation = {.linear_address = va};

    const int rc = kvm_ioctl(kvm_cpu_of(vcpu)->fd, KVM_TRANSLATE, &translation);
    if (rc < 0) {
        return rc;
    }
    if (translation.valid == 0) {
        return -EFAULT;
    }
    *ret_gpa = gpa(translation.physical_address);
    return 0;
}

static int kvm_dirty_log_start(struct accel_vm *accel_vm)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                                 .args = {KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE}};

    /* Where it exists, fetching does not write-protect everything at once; it is an optimization. */
    if (!vm->manual_dirty && kvm_capability(vm->vm_fd, (int)cap.cap) > 0) {
        vm->manual_dirty = kvm_ioctl(vm->vm_fd, KVM_ENABLE_CAP, &cap) == 0;
    }
    return slots_set(vm, KVM_MEM_LOG_DIRTY_PAGES);
}

static int kvm_dirty_log_stop(struct accel_vm *accel_vm)
{
    return slots_set(kvm_vm_of(accel_vm), 0);
}

static int slot_fetch(struct kvm_vm *vm, unsigned slot, uint64_t *bitmap)
{
    const struct gmem_region *region = gmem_region(vm->gmem, slot);
    const uint64_t pages = region->size_bytes >> GMEM_PAGE_SHIFT;
    const uint64_t words = (pages + 63) / 64;
    const uint64_t first_word = (region->fd_offset >> GMEM_PAGE_SHIFT) / 64;

    uint64_t *dirty = calloc(words, sizeof(*dirty));
    if (dirty == NULL) {
        return -ENOMEM;
    }
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = dirty};
    int rc = kvm_ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &log);
    if (rc == 0 && vm->manual_dirty) {
        struct kvm_clear_dirty_log clear = {
            .slot = slot, .num_pages = (uint32_t)pages, .first_page = 0, .dirty_bitmap = dirty};
        rc = kvm_ioctl(vm->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear);
    }
    for (uint64_t i = 0; rc == 0 && i < words; i++) {
        bitmap[first_word + i] |= dirty[i];
    }
    free(dirty);
    return rc;
}

static int kvm_dirty_log_fetch(struct accel_vm *accel_vm, uint64_t *bitmap)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < gmem_region_count(vm->gmem); i++) {
        rc = slot_fetch(vm, i, bitmap);
    }
    return rc;
}

static unsigned kvm_stats(struct accel_vm *accel_vm, struct accel_stat *ret_stats, unsigned max)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);
    const struct accel_stat all[] = {
        {"kvm_exits", atomic_load_explicit(&vm->stat_exits, memory_order_relaxed)},
        {"kvm_pio_exits", atomic_load_explicit(&vm->stat_pio, memory_order_relaxed)},
        {"kvm_mmio_exits", atomic_load_explicit(&vm->stat_mmio, memory_order_relaxed)},
        {"kvm_kicks", atomic_load_explicit(&vm->stat_kicks, memory_order_relaxed)},
        {"kvm_stepped_instructions", atomic_load_explicit(&vm->stat_steps, memory_order_relaxed)},
    };

    for (unsigned i = 0; i < ARRAY_LEN(all) && i < max; i++) {
        ret_stats[i] = all[i];
    }
    return ARRAY_LEN(all);
}

const struct accel_ops kvm_accel_ops = {
    .name = "kvm",
    .probe = kvm_probe,
    .caps = kvm_caps,
    .vm_create = kvm_vm_create,
    .vm_destroy = kvm_vm_destroy,
    .vcpu_create = kvm_vcpu_create,
    .vcpu_destroy = kvm_vcpu_destroy,
    .run = kvm_cpu_run,
    .kick = kvm_cpu_kick,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .inject_nmi = kvm_inject_nmi,
    .translate = kvm_translate,
    .set_debug = kvm_set_debug,
    .irq_line = kvm_irq_line,
    .send_msi = kvm_send_msi,
    .ioeventfd = kvm_ioeventfd,
    .msi_route = kvm_msi_route,
    .irqfd = kvm_irqfd,
    .irqchip_reset = kvm_irqchip_reset,
    .dirty_log_start = kvm_dirty_log_start,
    .dirty_log_stop = kvm_dirty_log_stop,
    .dirty_log_fetch = kvm_dirty_log_fetch,
    .stats = kvm_stats,
};
