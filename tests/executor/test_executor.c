/*
 * What a guest that has taken over its executor can do: nothing but run on.
 * Each case starts the real executor with an attacker in it (inject.c) that runs
 * machine code after the lock-down, and looks at what comes of it from outside.
 */
#include "test.h"

#include "engine/layout.h"
#include "executor/protocol.h"
#include "inject.h"
#include "proxy/proxy.h"
#include "proxy/proxy_int.h"

#include "base/io.h"

#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#define MEMORY_BYTES (16u << 20)
#define CODE_GPA 0x1000u
#define PATIENCE_MS 1000
#define SYSCALLS 600u
#define SCRIBBLES 200u
#define SYS_URETPROBE 335u
#define SYS_UPROBE 336u

static struct proxy_image image; /* of the executor with the attacker */

struct rig {
    struct gmem *gmem;
    struct accel_vm *vm;
    struct accel_vcpu *vcpu;
    struct vcpu_env env;
    struct cpuid_table cpuid;
    struct vmexit exit;
    struct err err;
};

static void rig_create_with(struct rig *rig, enum vm_irqchip irqchip, const void *code, size_t len)
{
    struct accel_vm_config config = {.vcpu_count = 1, .irqchip = irqchip};
    struct vcpu_state *st = calloc(1, sizeof(*st));

    assert_non_null(st);
    memset(rig, 0, sizeof(*rig));
    rig->exit.reason = VMEXIT_INTR;
    assert_int_equal(gmem_create(MEMORY_BYTES, &rig->err, &rig->gmem), 0);
    assert_int_equal(gmem_write(rig->gmem, gpa(CODE_GPA), code, len), 0);
    cpuid_table_init(&rig->cpuid, 0, 1);
    rig->env.cpuid = &rig->cpuid;
    config.gmem = rig->gmem;
    if (proxy_vm_create(&config, &image, &rig->err, &rig->vm) != 0 ||
        proxy_accel_ops.vcpu_create(rig->vm, 0, &rig->env, &rig->err, &rig->vcpu) != 0) {
        fail_msg("%s", rig->err.text);
    }
    vcpu_state_reset(st, true);
    st->seg[X86_CS].base = 0;
    st->seg[X86_CS].selector = 0;
    st->rip = CODE_GPA;
    assert_int_equal(proxy_accel_ops.set_state(rig->vcpu, st), 0);
    free(st);
}

static void rig_create(struct rig *rig, const void *code, size_t len)
{
    rig_create_with(rig, VM_IRQCHIP_USER, code, len);
}

static void rig_destroy(struct rig *rig)
{
    proxy_accel_ops.vcpu_destroy(rig->vcpu);
    proxy_accel_ops.vm_destroy(rig->vm);
    gmem_destroy(rig->gmem);
}

/* A guest that halts at once, each time; the attack comes with the exit. */
static void rig_attack(struct rig *rig, const struct inject *inject)
{
    static const uint8_t halt[] = {0xf4, 0xeb, 0xfd};

    rig_create(rig, halt, sizeof(halt));
    assert_int_equal(gmem_write(rig->gmem, gpa(INJECT_GPA), inject, sizeof(*inject)), 0);
    assert_int_equal(proxy_accel_ops.run(rig->vcpu, &rig->exit), 0);
}

static void expect_killed(const struct rig *rig, int signal_number, const char *what)
{
    char text[64];

    (void)snprintf(text, sizeof(text), "killed by signal %d ", signal_number);
    if (rig->exit.reason != VMEXIT_ERROR || rig->exit.error.code != -EOWNERDEAD ||
        strstr(rig->exit.error.text, text) == NULL) {
        fail_msg("%s: reason %d %s", what, rig->exit.reason,
                 rig->exit.reason == VMEXIT_ERROR ? rig->exit.error.text : "");
    }
}

/* A fault that no part of the engine owns; what it calls then is forbidden already. */
static void expect_faulted(const struct rig *rig, const char *what)
{
    expect_killed(rig, SIGSYS, what);
}

static struct inject system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                                 uint64_t e, uint64_t f)
{
    static const uint8_t code[] = {0x0f, 0x05, 0xc3}; /* syscall; ret */
    struct inject inject = {.op = INJECT_CODE,
                            .code_bytes = sizeof(code),
                            .rax = number,
                            .rdi = a,
                            .rsi = b,
                            .rdx = c,
                            .r10 = d,
                            .r8 = e,
                            .r9 = f};

    memcpy(inject.code, code, sizeof(code));
    return inject;
}

/* ---- cases ---- */

static void test_calls_that_reach_outside_end_the_process(void **state)
{
    const uint64_t low = LAYOUT_RAM + 0x3000; /* guest memory: readable, writable */
    const uint64_t self = (uint64_t)getpid();
    const struct {
        const char *name;
        uint64_t args[7];
    } calls[] = {
        {"open", {SYS_open, low, O_RDONLY}},
        {"openat", {SYS_openat, (uint64_t)AT_FDCWD, low, O_RDWR}},
        {"openat2", {437, (uint64_t)AT_FDCWD, low, low, 24}},
        {"execve", {SYS_execve, low, low, low}},
        {"execveat", {SYS_execveat, EXECUTOR_RAM_FD, low, low, low, AT_EMPTY_PATH}},
        {"socket", {SYS_socket, 1, 1, 0}},
        {"connect", {SYS_connect, EXECUTOR_LIFE_FD, low, 16}},
        {"sendmsg", {SYS_sendmsg, EXECUTOR_LIFE_FD, low, 0}},
        {"recvmsg", {SYS_recvmsg, EXECUTOR_LIFE_FD, low, 0}},
        {"write", {SYS_write, EXECUTOR_LIFE_FD, low, 1}},
        {"read of memory", {SYS_read, EXECUTOR_RAM_FD, low, 1}},
        {"kill", {SYS_kill, self, 0}},
        {"pidfd_send_signal", {SYS_pidfd_send_signal, EXECUTOR_LIFE_FD, SIGTERM}},
        {"sched_setaffinity", {SYS_sched_setaffinity, self, 128, low}},
        {"tgkill", {SYS_tgkill, self, self, EXECUTOR_KICK_SIGNAL}},
        {"rt_tgsigqueueinfo", {SYS_rt_tgsigqueueinfo, self, self, 10, low}},
        {"pidfd_open", {434, self, 0}},
        {"ptrace", {SYS_ptrace, PTRACE_ATTACH, self}},
        {"process_vm_readv", {SYS_process_vm_readv, self, low, 1, low, 1, 0}},
        {"process_vm_writev", {SYS_process_vm_writev, self, low, 1, low, 1, 0}},
        {"memfd_create", {SYS_memfd_create, low, 0}},
        {"clone", {SYS_clone, SIGCHLD}},
        {"fork", {SYS_fork}},
        {"ioctl", {SYS_ioctl, EXECUTOR_RAM_FD, 0x5401, low}},
        {"fcntl", {SYS_fcntl, EXECUTOR_RAM_FD, F_DUPFD, 0}},
        {"ftruncate", {SYS_ftruncate, EXECUTOR_RAM_FD, 0}},
        {"prctl", {SYS_prctl, 4, 1}},
        {"seccomp", {SYS_seccomp, 1, 0, low}},
        {"bpf", {SYS_bpf, 0, low, 64}},
        {"io_uring_setup", {425, 8, low}},
        {"unshare", {SYS_unshare, 0x10000000}},
        {"mremap", {SYS_mremap, low, 4096, 8192, 1}},
        {"shmat", {SYS_shmat, 0, 0, 0}},
        {"mmap executable",
         {SYS_mmap, LAYOUT_END, 4096, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED,
          EXECUTOR_RAM_FD, 0}},
        {"mmap anonymous",
         {SYS_mmap, LAYOUT_END, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS,
          (uint64_t)-1, 0}},
        {"mmap of another descriptor",
         {SYS_mmap, LAYOUT_END, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, EXECUTOR_LIFE_FD, 0}},
        {"mprotect executable", {SYS_mprotect, LAYOUT_RAM, 4096, PROT_READ | PROT_EXEC}},
        {"mprotect with a high bit",
         {SYS_mprotect, LAYOUT_RAM, 4096, PROT_READ | PROT_EXEC | 1ull << 32}},
        {"pkey_mprotect", {329, LAYOUT_RAM, 4096, PROT_EXEC, (uint64_t)-1}},
        {"madvise", {SYS_madvise, LAYOUT_RAM, 4096, MADV_REMOVE}},
        {"arch_prctl", {SYS_arch_prctl, ARCH_SET_FS, 0}},
        {"futex requeue", {SYS_futex, low, 3, 1, 1, low}},
        {"timer_create", {SYS_timer_create, 1, low, low}},
        {"timer_settime of a relative time", {SYS_timer_settime, 0, 0, low, 0}},
        {"timer_settime that reports", {SYS_timer_settime, 0, 1, low, low}},
        {"timer_settime with a high word", {SYS_timer_settime, 0, 1, low, 1ull << 32}},
        {"x32", {0x40000000u | 2, low}},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
        const uint64_t *a = calls[i].args;
        struct inject inject = system_call(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
        struct rig rig;

        rig_attack(&rig, &inject);
        expect_killed(&rig, SIGSYS, calls[i].name);
        rig_destroy(&rig);
    }
}

static bool is_allowed(uint64_t number)
{
    static const uint64_t allowed[] = {SYS_futex,
                                       SYS_rt_sigreturn,
                                       SYS_restart_syscall,
                                       SYS_sched_yield,
                                       SYS_mmap,
                                       SYS_munmap,
                                       SYS_mprotect,
                                       SYS_madvise,
                                       SYS_tgkill,
                                       SYS_clock_gettime,
                                       SYS_arch_prctl,
                                       SYS_read,
                                       SYS_poll,
                                       SYS_exit_group,
                                       SYS_timer_settime,
                                       SYS_pidfd_send_signal,
                                       SYS_sched_setaffinity};

    for (size_t i = 0; i < ARRAY_LEN(allowed); i++) {
        if (allowed[i] == number) {
            return true;
        }
    }
    return false;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void test_every_other_system_call_ends_the_process(void **state)
{
    uint64_t seed = 0x9e3779b97f4a7c15ull ^ (uint64_t)getpid();

    (void)state;
    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (uint64_t number = 0; number <= SYSCALLS; number++) {
        struct inject inject;
        struct rig rig;
        char name[32];

        if (is_allowed(number)) {
            continue;
        }
        inject = system_call(number, next_random(&seed), next_random(&seed), next_random(&seed),
                             next_random(&seed), next_random(&seed), next_random(&seed));
        rig_attack(&rig, &inject);
        (void)snprintf(name, sizeof(name), "system call %u", (unsigned)number);
        if (number != SYS_URETPROBE && number != SYS_UPROBE) {
            expect_killed(&rig, SIGSYS, name);
        } else if (rig.exit.reason != VMEXIT_ERROR) {
            /* Linux lets them pass every filter; they do nothing outside a probe. */
            assert_int_equal(gmem_read(rig.gmem, gpa(INJECT_GPA), &inject, sizeof(inject)), 0);
            assert_true((int64_t)inject.result < 0);
        }
        rig_destroy(&rig);
    }
}

/* int 0x80 and sysenter enter the kernel with other numbers. */
static void test_calls_of_32_bit_programs_end_the_process(void **state)
{
    static const uint8_t code[] = {0xcd, 0x80, 0xc3};
    struct inject inject = {.op = INJECT_CODE, .code_bytes = sizeof(code), .rax = 5};
    struct rig rig;

    (void)state;
    memcpy(inject.code, code, sizeof(code));
    rig_attack(&rig, &inject);
    assert_int_equal(rig.exit.reason, VMEXIT_ERROR);
    assert_int_equal(rig.exit.error.code, -EOWNERDEAD);
    rig_destroy(&rig);
}

static void expect_no_access(uint64_t address, bool write)
{
    static const uint8_t load[] = {0x48, 0x8b, 0x07, 0xc3};  /* mov rax, [rdi] */
    static const uint8_t store[] = {0x48, 0x89, 0x07, 0xc3}; /* mov [rdi], rax */
    struct inject inject = {.op = INJECT_CODE, .code_bytes = sizeof(load), .rdi = address};
    struct rig rig;
    char name[64];

    memcpy(inject.code, write ? store : load, sizeof(load));
    rig_attack(&rig, &inject);
    (void)snprintf(name, sizeof(name), "%s at 0x%llx", write ? "store" : "load",
                   (unsigned long long)address);
    expect_faulted(&rig, name);
    rig_destroy(&rig);
}

static void test_nothing_of_the_monitor_is_there(void **state)
{
    int local = 1;
    void *heap = malloc(64);

    (void)state;
    expect_no_access((uint64_t)(uintptr_t)&local, false);
    expect_no_access((uint64_t)(uintptr_t)&image, false);
    expect_no_access((uint64_t)(uintptr_t)heap, false);
    expect_no_access((uint64_t)(uintptr_t)expect_no_access, false);
    free(heap);
}

static void test_memory_ends_where_it_ends(void **state)
{
    (void)state;
    /* A byte of flags for each page of RAM stands behind it, in whole pages. */
    expect_no_access(LAYOUT_RAM + MEMORY_BYTES + GMEM_PAGE_BYTES, true);
    expect_no_access(LAYOUT_RAM - 8, true);
    expect_no_access(LAYOUT_END, true);
    expect_no_access(0, true);
}

/* Writing to a page that is executable, and jumping to one that is writable. */
static void test_no_page_is_writable_and_executable(void **state)
{
    static const uint8_t write_self[] = {0x48, 0x8d, 0x05, 0, 0, 0, 0, /* lea rax, [rip] */
                                         0x88, 0x00, 0xc3};            /* mov [rax], al */
    static const uint8_t jump[] = {0xff, 0xe7};                        /* jmp rdi */
    struct inject inject = {.op = INJECT_CODE, .code_bytes = sizeof(write_self)};
    struct rig rig;

    (void)state;
    memcpy(inject.code, write_self, sizeof(write_self));
    rig_attack(&rig, &inject);
    expect_faulted(&rig, "write to code");
    rig_destroy(&rig);

    inject = (struct inject){
        .op = INJECT_CODE, .code_bytes = sizeof(jump), .rdi = LAYOUT_RAM + INJECT_GPA};
    memcpy(inject.code, jump, sizeof(jump));
    rig_attack(&rig, &inject);
    expect_faulted(&rig, "jump to data");
    rig_destroy(&rig);
}

/* What is mapped, seen from outside, when we may look. */
static void test_address_space_is_low_and_has_no_files(void **state)
{
    struct inject inject = {.op = INJECT_NOTHING};
    struct rig rig;
    char path[64];
    char line[512];
    unsigned count = 0;
    FILE *maps;

    (void)state;
    rig_attack(&rig, &inject);
    assert_int_equal(rig.exit.reason, VMEXIT_HLT);
    (void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)proxy_vm_pid(rig.vm));
    maps = fopen(path, "r");
    if (maps == NULL) {
        rig_destroy(&rig);
        skip(); /* without root it is not even readable */
    }
    while (fgets(line, sizeof(line), maps) != NULL) {
        char *rest = line; /* START-END PERMS ... */
        uint64_t start = strtoull(rest, &rest, 16);
        uint64_t end = *rest == '-' ? strtoull(rest + 1, &rest, 16) : 0;
        const char *perms = rest + 1;

        assert_int_equal(*rest, ' ');
        if (strstr(line, "[vsyscall]") != NULL) {
            continue; /* the kernel's own, above all that a process has */
        }
        count++;
        if (start < LAYOUT_START || end > LAYOUT_END) {
            fail_msg("outside: %s", line);
        }
        if (perms[1] == 'w' && perms[2] == 'x') {
            fail_msg("writable and executable: %s", line);
        }
        if (strchr(line, '/') != NULL && strstr(line, "/memfd:") == NULL) {
            fail_msg("a file: %s", line);
        }
        if (strstr(line, "[vdso]") != NULL || strstr(line, "[stack]") != NULL) {
            fail_msg("not unmapped: %s", line);
        }
    }
    (void)fclose(maps);
    assert_true(count > 5);
    rig_destroy(&rig);
}

/* From inside: one mapping of all that lies above fits only where nothing is. */
static void test_all_above_is_empty(void **state)
{
    struct inject inject =
        system_call(SYS_mmap, LAYOUT_END, LAYOUT_WINDOW_END - LAYOUT_END, PROT_READ,
                    MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, EXECUTOR_RAM_FD, 0);
    struct rig rig;

    (void)state;
    rig_attack(&rig, &inject);
    assert_int_equal(rig.exit.reason, VMEXIT_HLT);
    assert_int_equal(gmem_read(rig.gmem, gpa(INJECT_GPA), &inject, sizeof(inject)), 0);
    assert_int_equal(inject.result, LAYOUT_END);
    /* Now something is there. */
    assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
    assert_int_equal(gmem_read(rig.gmem, gpa(INJECT_GPA), &inject, sizeof(inject)), 0);
    assert_int_equal((int64_t)inject.result, -EEXIST);
    rig_destroy(&rig);
}

static void test_random_answers_leave_the_monitor_sound(void **state)
{
    uint64_t seed = 0x2545f4914f6cdd1dull ^ (uint64_t)getpid();
    struct executor_vcpu *page = calloc(1, sizeof(*page));
    struct vcpu_state *st = calloc(1, sizeof(*st));
    unsigned good = 0;

    (void)state;
    assert_non_null(page);
    assert_non_null(st);
    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (unsigned i = 0; i < 200000; i++) {
        struct vmexit exit;
        bool can_take = false;
        uint8_t *bytes = (uint8_t *)&page->exit;

        for (size_t b = 0; b < sizeof(page->exit); b++) {
            bytes[b] = (uint8_t)next_random(&seed);
        }
        page->exit.reason %= VMEXIT_ERROR + 2;
        page->exit.size_bytes %= i % 2 == 0 ? 16 : UINT32_MAX;
        page->exit.address >>= next_random(&seed) % 64;
        if (fetch_exit(page, &exit, &can_take) != 0) {
            continue;
        }
        good++;
        assert_in_range(exit.reason, VMEXIT_INTR, VMEXIT_ERROR);
        if (exit.reason == VMEXIT_MMIO) {
            assert_in_range(exit.mmio.size_bytes, 1, 8);
            assert_in_range(exit.mmio.gpa % GMEM_PAGE_BYTES, 0,
                            GMEM_PAGE_BYTES - exit.mmio.size_bytes);
            assert_true(exit.mmio.gpa < 1ull << 52);
        } else if (exit.reason == VMEXIT_PIO) {
            assert_in_range(exit.pio.size_bytes, 1, 4);
        } else if (exit.reason == VMEXIT_ERROR) {
            assert_true(strnlen(exit.error.text, sizeof(exit.error.text)) <
                        sizeof(exit.error.text));
            for (const char *c = exit.error.text; *c != '\0'; c++) {
                assert_in_range(*c, ' ', '~');
            }
        }
    }
    assert_true(good > 1000);
    for (size_t b = 0; b < sizeof(page->state); b++) {
        ((uint8_t *)&page->state)[b] = (uint8_t)next_random(&seed);
    }
    fetch_state(page, st);
    assert_in_range(st->mp_state, X86_MP_RUNNABLE, X86_MP_UNINITIALIZED);
    assert_true(*(uint8_t *)&st->events.nmi_pending <= 1);
    free(st);
    free(page);
}

static void test_scribbling_over_shared_pages_ends_only_the_guest(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SCRIBBLES; i++) {
        struct inject inject = {.op = INJECT_SCRIBBLE, .rax = 88172645463325252ull + i};
        struct accel_stat stats[EXECUTOR_MAX_STATS + 1];
        struct rig rig;

        rig_attack(&rig, &inject);
        for (unsigned run = 0; run < 4 && rig.exit.reason != VMEXIT_ERROR; run++) {
            assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
        }
        assert_in_range(proxy_accel_ops.stats(rig.vm, stats, ARRAY_LEN(stats)), 1,
                        EXECUTOR_MAX_STATS + 1);
        for (unsigned s = 0; s < 3; s++) {
            assert_true(strlen(stats[s].name) < EXECUTOR_NAME_BYTES);
        }
        rig_destroy(&rig);
    }
}

/* The same with the local APICs in these pages: messages go to whatever is there. */
static void test_messages_to_scribbled_apics_harm_only_the_guest(void **state)
{
    static const uint8_t out[] = {0xe6, 0x80, 0xeb, 0xfc}; /* out %al, $0x80; jmp back */
    uint64_t seed = 0x9e3779b97f4a7c15ull ^ (uint64_t)getpid();

    (void)state;
    print_message("seed 0x%llx\n", (unsigned long long)seed);
    for (unsigned i = 0; i < SCRIBBLES; i++) {
        struct inject inject = {.op = INJECT_SCRIBBLE, .rax = next_random(&seed)};
        struct lapic_state apic;
        struct rig rig;

        rig_create_with(&rig, VM_IRQCHIP_SPLIT, out, sizeof(out));
        assert_int_equal(gmem_write(rig.gmem, gpa(INJECT_GPA), &inject, sizeof(inject)), 0);
        for (unsigned run = 0; run < 4 && rig.exit.reason != VMEXIT_ERROR; run++) {
            assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
            for (unsigned m = 0; m < 16; m++) {
                uint64_t address = 0xfee00000ull | (next_random(&seed) & 0xff00c);

                assert_int_equal(
                    proxy_accel_ops.send_msi(rig.vm, address, (uint32_t)next_random(&seed)), 0);
            }
            proxy_accel_ops.kick(rig.vcpu); /* whatever it says, the next run ends */
        }
        if (proxy_accel_ops.get_apic(rig.vcpu, &apic) == 0) {
            (void)proxy_accel_ops.set_apic(rig.vcpu, &apic);
            (void)proxy_accel_ops.irqchip_reset(rig.vm);
        }
        rig_destroy(&rig);
    }
}

static void *run_once(void *opaque)
{
    struct rig *rig = opaque;

    assert_int_equal(proxy_accel_ops.run(rig->vcpu, &rig->exit), 0);
    return NULL;
}

static void test_killed_executor_ends_a_run_with_an_error(void **state)
{
    static const uint8_t spin[] = {0xff, 0x06, 0x00, 0x30, 0xeb, 0xfa}; /* inc word [0x3000] */
    struct inject inject = {.op = INJECT_NOTHING};
    struct rig rig;
    pthread_t thread;
    uint16_t count = 0;
    gpa_t found;

    (void)state;
    rig_create(&rig, spin, sizeof(spin));
    assert_int_equal(gmem_write(rig.gmem, gpa(INJECT_GPA), &inject, sizeof(inject)), 0);
    assert_int_equal(pthread_create(&thread, NULL, run_once, &rig), 0);
    while (count == 0) { /* it runs */
        assert_int_equal(gmem_load_le16(rig.gmem, gpa(0x3000), &count), 0);
    }
    assert_int_equal(kill(proxy_vm_pid(rig.vm), SIGKILL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    expect_killed(&rig, SIGKILL, "kill");
    /* And everything after it says so. */
    assert_int_equal(proxy_accel_ops.translate(rig.vcpu, 0, &found), -EOWNERDEAD);
    assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
    assert_int_equal(rig.exit.reason, VMEXIT_ERROR);
    proxy_accel_ops.kick(rig.vcpu);
    rig_destroy(&rig);
}

/* The monitor's part of a local APIC that the executor has: messages in, ends of level-triggered
 * interrupts out, and all of it as something to keep. */
static void test_message_to_a_busy_guest_is_taken_and_ended(void **state)
{
    static const uint8_t spin[] = {0xfb, 0xeb, 0xfe}; /* sti; jmp . */
    static const uint8_t handler[] = {
        0x66, 0xb9, 0x0b, 0x08, 0,    0,    /* mov $0x80b, %ecx: EOI */
        0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, /* xor %eax, %eax; xor %edx, %edx */
        0x0f, 0x30, 0xe6, 0x80, 0xcf};      /* wrmsr; out %al, $0x80; iret */
    static const uint16_t gate[] = {0x1800, 0};
    struct lapic_state apic;
    struct lapic_state kept;
    struct rig rig;
    pthread_t thread;

    (void)state;
    rig_create_with(&rig, VM_IRQCHIP_SPLIT, spin, sizeof(spin));
    assert_int_equal(gmem_write(rig.gmem, gpa(0x1800), handler, sizeof(handler)), 0);
    assert_int_equal(gmem_write(rig.gmem, gpa(0x41 * 4), gate, sizeof(gate)), 0);
    assert_int_equal(proxy_accel_ops.get_apic(rig.vcpu, &apic), 0);
    assert_int_equal(apic.base, X86_APIC_DEFAULT_BASE | X86_APIC_BASE_ENABLE | X86_APIC_BASE_BSP);
    apic.base |= X86_APIC_BASE_X2APIC;
    apic.svr = 0x1ff;
    assert_int_equal(proxy_accel_ops.set_apic(rig.vcpu, &apic), 0);

    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(pthread_create(&thread, NULL, run_once, &rig), 0);
        assert_int_equal(proxy_accel_ops.send_msi(rig.vm, 0xfee00000ull, 0xc041), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(rig.exit.reason, VMEXIT_EOI);
        assert_int_equal(rig.exit.eoi.vector, 0x41);
        assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
        assert_int_equal(rig.exit.reason, VMEXIT_PIO);
    }
    proxy_accel_ops.kick(rig.vcpu);
    assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
    assert_int_equal(rig.exit.reason, VMEXIT_INTR);
    apic.tpr = 0x50;
    apic.irr[1] = 1u << 3; /* 0x43 waits behind TPR */
    assert_int_equal(proxy_accel_ops.set_apic(rig.vcpu, &apic), 0);
    assert_int_equal(proxy_accel_ops.get_apic(rig.vcpu, &kept), 0);
    assert_int_equal(kept.tpr, 0x50);
    assert_int_equal(kept.irr[1], 1u << 3);
    assert_int_equal(kept.base, apic.base);
    assert_int_equal(proxy_accel_ops.irqchip_reset(rig.vm), 0);
    assert_int_equal(proxy_accel_ops.get_apic(rig.vcpu, &kept), 0);
    assert_int_equal(kept.irr[1], 0);
    assert_int_equal(kept.svr, 0xff);
    rig_destroy(&rig);
}

static void test_executor_that_never_answers_is_ended(void **state)
{
    static const uint8_t halt[] = {0xf4, 0xeb, 0xfd};
    struct inject inject = {.op = INJECT_NEVER};
    struct rig rig;
    pthread_t thread;

    (void)state;
    image.patience_ms = PATIENCE_MS;
    rig_create(&rig, halt, sizeof(halt));
    image.patience_ms = 0;
    assert_int_equal(gmem_write(rig.gmem, gpa(INJECT_GPA), &inject, sizeof(inject)), 0);
    assert_int_equal(pthread_create(&thread, NULL, run_once, &rig), 0);
    while (pthread_tryjoin_np(thread, NULL) == EBUSY) { /* the first may come before it runs */
        proxy_accel_ops.kick(rig.vcpu);
        (void)poll(NULL, 0, PATIENCE_MS);
    }
    assert_int_equal(rig.exit.reason, VMEXIT_ERROR);
    assert_non_null(strstr(rig.exit.error.text, "does not answer"));
    rig_destroy(&rig);
}

/* A kick that finds no run owes no answer, however long the next run then takes. */
static void test_kicked_between_runs_it_is_left_alone(void **state)
{
    static const uint8_t spin[] = {0xff, 0x06, 0x00, 0x30, 0xeb, 0xfa}; /* inc word [0x3000] */
    struct rig rig;
    pthread_t thread;

    (void)state;
    image.patience_ms = PATIENCE_MS;
    rig_create(&rig, spin, sizeof(spin));
    image.patience_ms = 0;
    proxy_accel_ops.kick(rig.vcpu);
    (void)poll(NULL, 0, 4 * PATIENCE_MS);
    assert_int_equal(pthread_create(&thread, NULL, run_once, &rig), 0);
    (void)poll(NULL, 0, 4 * PATIENCE_MS);
    assert_int_equal(kill(proxy_vm_pid(rig.vm), 0), 0);
    while (pthread_tryjoin_np(thread, NULL) == EBUSY) {
        proxy_accel_ops.kick(rig.vcpu);
        (void)poll(NULL, 0, 1);
    }
    assert_int_equal(rig.exit.reason, VMEXIT_INTR);
    rig_destroy(&rig);
}

static void put64(struct gmem *gmem, uint64_t at, uint64_t value)
{
    assert_int_equal(gmem_write(gmem, gpa(at), &value, sizeof(value)), 0);
}

/* In 64-bit mode, whose code is translated, with the first 2 MiB mapped to themselves. */
static void enter_64_bit_mode(struct rig *rig)
{
    struct vcpu_state *st = calloc(1, sizeof(*st));

    assert_non_null(st);
    put64(rig->gmem, 0x4000, 0x5007);
    put64(rig->gmem, 0x5000, 0x6007);
    put64(rig->gmem, 0x6000, 0x87);
    vcpu_state_reset(st, true);
    st->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_NE | X86_CR0_ET;
    st->cr4 = X86_CR4_PAE;
    st->efer = X86_EFER_LME | X86_EFER_LMA;
    st->cr3 = 0x4000;
    st->seg[X86_CS] =
        (struct x86_segment){.selector = 8, .limit = UINT32_MAX, .access_rights = 0xa09b};
    for (unsigned seg = X86_SS; seg <= X86_GS; seg++) {
        st->seg[seg] =
            (struct x86_segment){.selector = 16, .limit = UINT32_MAX, .access_rights = 0xc093};
    }
    st->rip = CODE_GPA;
    assert_int_equal(proxy_accel_ops.set_state(rig->vcpu, st), 0);
    free(st);
}

static void test_device_write_to_translated_code_is_heeded(void **state)
{
    /* mov $1, %eax; out %eax, $0x80; jmp back */
    static const uint8_t code[] = {0xb8, 0x01, 0, 0, 0, 0xe7, 0x80, 0xeb, 0xf7};
    struct rig rig;

    (void)state;
    rig_create(&rig, code, sizeof(code));
    enter_64_bit_mode(&rig);
    for (uint8_t value = 1; value < 100; value++) {
        /* As a device does it: the bytes first, the mark after. */
        assert_int_equal(gmem_write(rig.gmem, gpa(CODE_GPA + 1), &value, sizeof(value)), 0);
        for (unsigned i = 0; i < 5; i++) {
            assert_int_equal(proxy_accel_ops.run(rig.vcpu, &rig.exit), 0);
            assert_int_equal(rig.exit.reason, VMEXIT_PIO);
            assert_int_equal(rig.exit.pio.data, value);
        }
        assert_true(*gmem_page_flags(rig.gmem, gpa(CODE_GPA)) & GMEM_PAGE_CODE);
    }
    rig_destroy(&rig);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls_that_reach_outside_end_the_process),
        cmocka_unit_test(test_every_other_system_call_ends_the_process),
        cmocka_unit_test(test_calls_of_32_bit_programs_end_the_process),
        cmocka_unit_test(test_nothing_of_the_monitor_is_there),
        cmocka_unit_test(test_memory_ends_where_it_ends),
        cmocka_unit_test(test_no_page_is_writable_and_executable),
        cmocka_unit_test(test_address_space_is_low_and_has_no_files),
        cmocka_unit_test(test_all_above_is_empty),
        cmocka_unit_test(test_random_answers_leave_the_monitor_sound),
        cmocka_unit_test(test_scribbling_over_shared_pages_ends_only_the_guest),
        cmocka_unit_test(test_messages_to_scribbled_apics_harm_only_the_guest),
        cmocka_unit_test(test_killed_executor_ends_a_run_with_an_error),
        cmocka_unit_test(test_message_to_a_busy_guest_is_taken_and_ended),
        cmocka_unit_test(test_executor_that_never_answers_is_ended),
        cmocka_unit_test(test_kicked_between_runs_it_is_left_alone),
        cmocka_unit_test(test_device_write_to_translated_code_is_heeded),
    };
    void *file = NULL;
    size_t bytes = 0;

    if (argc < 2 || io_read_file(argv[1], 64u << 20, &file, &bytes) != 0) {
        (void)fprintf(stderr, "usage: test_executor EXECUTOR\n");
        return 2;
    }
    image = (struct proxy_image){.data = file, .bytes = bytes};
    int status = cmocka_run_group_tests(tests, NULL, NULL);

    free(file);
    return status;
}
