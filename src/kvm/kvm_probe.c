/*
 * Does KVM run guests at the speed of the CPU? There are hosts whose KVM has no
 * hardware behind it and emulates each instruction, hundreds of times slower;
 * /dev/kvm looks the same there. So a loop of known length is timed.
 */
#include "kvm/kvm_int.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define PROBE_CODE_GPA 0x1000u
#define PROBE_PORT 0x10u
/*
 * An emulator needs milliseconds for the loop, a CPU some microseconds and what
 * an exit costs. Other work on the host only ever makes a try longer, so the
 * shortest of some counts, and nothing is subtracted from it.
 */
#define PROBE_LOOP 16384u
#define PROBE_TRIES 5
/* A CPU shared with others may be several times slower for a moment; an emulator is beyond 100. */
#define PROBE_SLOW 20u
#define PROBE_EXIT_NS 250000u /* more than an exit takes in a virtual machine inside another */

/*
 * in eax, 0x10; mov ecx, eax; 1: dec ecx; jnz 1b; jmp start: the host hands out
 * the length of each loop and sees its end by the next request.
 */
static const uint8_t probe_code[] = {0xe5, PROBE_PORT, 0x89, 0xc1, 0x49, 0x75, 0xfd, 0xeb, 0xf7};

struct probe {
    int vm_fd;
    int cpu_fd;
    struct kvm_run *run;
    size_t run_bytes;
    uint8_t *page;
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t native_loop_ns(uint32_t count)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < PROBE_TRIES; i++) {
        uint32_t left = count;
        const uint64_t start = now_ns();
        __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(left) : : "cc");
        const uint64_t spent = now_ns() - start;
        best = spent < best ? spent : best;
    }
    return best;
}

static void probe_close(struct probe *probe)
{
    if (probe->run != MAP_FAILED) {
        (void)munmap(probe->run, probe->run_bytes);
    }
    if (probe->page != MAP_FAILED) {
        (void)munmap(probe->page, GMEM_PAGE_BYTES);
    }
    if (probe->cpu_fd >= 0) {
        (void)close(probe->cpu_fd);
    }
    if (probe->vm_fd >= 0) {
        (void)close(probe->vm_fd);
    }
}

/* Flat 32-bit protected mode, no paging: nothing that needs tables. */
static int probe_set_registers(struct probe *probe)
{
    const struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 8, .type = 0xb, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_regs regs = {.rip = PROBE_CODE_GPA, .rflags = X86_FLAG_FIXED1};
    struct kvm_sregs sregs;
    struct kvm_segment data = code;

    int rc = kvm_ioctl(probe->cpu_fd, KVM_GET_SREGS, &sregs);
    if (rc < 0) {
        return rc;
    }
    data.type = 3;
    data.selector = 16;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
    sregs.cr0 |= X86_CR0_PE;
    rc = kvm_ioctl(probe->cpu_fd, KVM_SET_SREGS, &sregs);
    if (rc < 0) {
        return rc;
    }
    return kvm_ioctl(probe->cpu_fd, KVM_SET_REGS, &regs);
}

static int probe_open(struct probe *probe, int kvm_fd)
{
    *probe = (struct probe){.vm_fd = -1, .cpu_fd = -1, .run = MAP_FAILED, .page = MAP_FAILED};
    int rc = kvm_ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
    if (rc < 0) {
        return rc;
    }
    probe->run_bytes = (size_t)rc;
    probe->vm_fd = kvm_ioctl(kvm_fd, KVM_CREATE_VM, NULL);
    if (probe->vm_fd < 0) {
        return probe->vm_fd;
    }
    /* Old Intel CPUs need it for protected mode without paging; elsewhere it does nothing. */
    uint64_t identity_map = 0xfffbc000;
    (void)ioctl(probe->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
    (void)ioctl(probe->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);

    probe->page =
        mmap(NULL, GMEM_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (probe->page == MAP_FAILED) {
        return -errno;
    }
    memcpy(probe->page, probe_code, sizeof(probe_code));
    struct kvm_userspace_memory_region slot = {.guest_phys_addr = PROBE_CODE_GPA,
                                               .memory_size = GMEM_PAGE_BYTES,
                                               .userspace_addr = (uintptr_t)probe->page};
    rc = kvm_ioctl(probe->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
    if (rc < 0) {
        return rc;
    }
    probe->cpu_fd = kvm_ioctl(probe->vm_fd, KVM_CREATE_VCPU, NULL);
    if (probe->cpu_fd < 0) {
        return probe->cpu_fd;
    }
    probe->run = mmap(NULL, probe->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, probe->cpu_fd, 0);
    if (probe->run == MAP_FAILED) {
        return -errno;
    }
    return probe_set_registers(probe);
}

/* Runs to the next request for a length; -EIO when the guest did anything else. */
static int probe_run(struct probe *probe)
{
    const struct kvm_run *run = probe->run;

    const int rc = kvm_ioctl(probe->cpu_fd, KVM_RUN, NULL);
    if (rc < 0) {
        return rc;
    }
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != PROBE_PORT ||
        run->io.direction != KVM_EXIT_IO_IN) {
        return -EIO;
    }
    return 0;
}

static int probe_loop_ns(struct probe *probe, uint32_t count, uint64_t *ret_ns)
{
    memcpy((uint8_t *)probe->run + probe->run->io.data_offset, &count, sizeof(count));
    const uint64_t start = now_ns();
    const int rc = probe_run(probe);
    if (rc < 0) {
        return rc;
    }
    *ret_ns = now_ns() - start;
    return 0;
}

/* How many times slower than the CPU the guest ran, 0 when that is not more than an exit explains. */
static int probe_measure(struct probe *probe, uint64_t *ret_times)
{
    const uint64_t native = native_loop_ns(PROBE_LOOP) + 1;
    uint64_t best = UINT64_MAX;

    int rc = probe_run(probe);
    for (int i = 0; rc == 0 && i < PROBE_TRIES && best >= PROBE_SLOW * native + PROBE_EXIT_NS;
         i++) {
        uint64_t spent = 0;
        rc = probe_loop_ns(probe, PROBE_LOOP, &spent);
        best = spent < best ? spent : best;
    }
    if (rc < 0) {
        return rc;
    }
    *ret_times = best <= PROBE_EXIT_NS ? 0 : (best - PROBE_EXIT_NS) / native;
    return 0;
}

int kvm_probe(struct err *err)
{
    struct probe probe;
    uint64_t times = 0;

    CLEANUP_CLOSE int kvm_fd = kvm_open(err);
    if (kvm_fd < 0) {
        return kvm_fd;
    }
    int rc = probe_open(&probe, kvm_fd);
    if (rc < 0) {
        (void)err_set_errno(err, rc, "KVM cannot make a virtual machine");
    } else {
        rc = probe_measure(&probe, &times);
        if (rc < 0) {
            (void)err_set_errno(err, rc, "KVM cannot run a trial guest");
        }
    }
    probe_close(&probe);
    if (rc < 0) {
        return rc;
    }
    if (times >= PROBE_SLOW) {
        return err_set(err, -EOPNOTSUPP,
                       "KVM here emulates each instruction (%llu times slower than the CPU)",
                       (unsigned long long)times);
    }
    return 0;
}
