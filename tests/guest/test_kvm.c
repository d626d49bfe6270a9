/*
 * The KVM accelerator on its own: real-mode guests of a few instructions, and
 * what comes out of run(). Skipped (77) where /dev/kvm cannot be opened.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/io.h"
#include "cpu/cpuid.h"
#include "cpu/vcpu.h"
#include "kvm/kvm.h"
#include "mem/gmem.h"

#define CODE_GPA 0x1000u
#define DATA_GPA 0x8000u
#define RAM_BYTES (4u << 20)
#define MMIO_GPA 0xd0000000u

/* Each guest begins at CODE_GPA with CS = 0 and every data segment 0. */
#define GUEST(name, body)                                                                     \
    __asm__(".pushsection .rodata\n.code16\n.global guest_" #name "\nguest_" #name ":\n" body \
            "\n.global guest_" #name "_end\nguest_" #name "_end:\n.code64\n.popsection\n");   \
    extern const uint8_t guest_##name[];                                                      \
    extern const uint8_t guest_##name##_end[]

GUEST(ports, "mov $0x1234, %ax\n mov $0x80, %dx\n out %ax, %dx\n in %dx, %al\n"
             "mov %al, 0x8000\n hlt\n");
GUEST(strings, "mov $0x8000, %si\n mov $3, %cx\n mov $0x3f8, %dx\n cld\n rep outsb\n"
               "mov $0x9000, %di\n mov $4, %cx\n rep insb\n hlt\n");
GUEST(spin, "1: incw 0x8000\n jmp 1b\n");
GUEST(interrupt, "sti\n hlt\n movb $1, 0x8001\n hlt\n");
/* INT 0x20 is at 0:0x1100; it writes the byte that the test looks for and ends the interrupt. */
GUEST(handler, "movb $7, 0x8000\n iret\n");
GUEST(dirty, "mov $0x20000, %ebx\n movb $1, (%ebx)\n"
             "mov $0x21000, %ebx\n movb $1, (%ebx)\n hlt\n");
GUEST(steps, "mov $1, %ax\n mov $2, %bx\n mov $3, %cx\n hlt\n");
GUEST(doorbell, "mov $5, %ax\n mov $0x700, %dx\n out %ax, %dx\n hlt\n");
GUEST(shutdown, "ud2\n");

struct fixture {
    struct gmem *gmem;
    struct accel_vm *vm;
    struct accel_vcpu *vcpu;
    struct cpuid_table cpuid;
    struct vcpu_env env;
    int vector; /* what the interrupt source holds, -1: nothing */
};

static bool source_pending(void *opaque)
{
    return ((struct fixture *)opaque)->vector >= 0;
}

static int source_acknowledge(void *opaque)
{
    struct fixture *f = opaque;
    const int vector = f->vector;

    f->vector = -1;
    return vector;
}

static const struct vcpu_intr_ops source_ops = {
    .pending = source_pending,
    .acknowledge = source_acknowledge,
};

static void load(struct fixture *f, uint32_t gpa_value, const uint8_t *start, const uint8_t *end)
{
    assert_int_equal(gmem_write(f->gmem, gpa(gpa_value), start, (size_t)(end - start)), 0);
}

#define LOAD(f, name) load(f, CODE_GPA, guest_##name, guest_##name##_end)

static void open_vm(struct fixture *f, enum vm_irqchip irqchip)
{
    struct err err = {0};

    *f = (struct fixture){.vector = -1};
    assert_int_equal(gmem_create(RAM_BYTES, &err, &f->gmem), 0);
    const struct accel_vm_config config = {.gmem = f->gmem, .vcpu_count = 1, .irqchip = irqchip};
    if (kvm_accel_ops.vm_create(&config, &err, &f->vm) < 0) {
        fail_msg("%s", err.text);
    }
    cpuid_table_init(&f->cpuid, 0, 1);
    f->env = (struct vcpu_env){
        .intr = irqchip == VM_IRQCHIP_USER ? &source_ops : NULL, .opaque = f, .cpuid = &f->cpuid};
    if (kvm_accel_ops.vcpu_create(f->vm, 0, &f->env, &err, &f->vcpu) < 0) {
        fail_msg("%s", err.text);
    }
    struct vcpu_state state;
    vcpu_state_reset(&state, true);
    state.seg[X86_CS].selector = 0;
    state.seg[X86_CS].base = 0;
    state.rip = CODE_GPA;
    state.gpr[X86_RSP] = 0x7000;
    assert_int_equal(kvm_accel_ops.set_state(f->vcpu, &state), 0);
}

static int open_state(void **state, enum vm_irqchip irqchip)
{
    struct fixture *f = test_calloc(1, sizeof(*f));

    open_vm(f, irqchip);
    *state = f;
    return 0;
}

static int setup_user(void **state)
{
    return open_state(state, VM_IRQCHIP_USER);
}

static int setup_full(void **state)
{
    return open_state(state, VM_IRQCHIP_FULL);
}

static int setup_split(void **state)
{
    return open_state(state, VM_IRQCHIP_SPLIT);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    kvm_accel_ops.vcpu_destroy(f->vcpu);
    kvm_accel_ops.vm_destroy(f->vm);
    gmem_destroy(f->gmem);
    test_free(f);
    return 0;
}

static void run_to(struct fixture *f, struct vmexit *exit, enum vmexit_reason reason)
{
    do {
        assert_int_equal(kvm_accel_ops.run(f->vcpu, exit), 0);
        if (exit->reason == VMEXIT_ERROR) {
            fail_msg("%s", exit->error.text);
        }
    } while (exit->reason == VMEXIT_INTR && reason != VMEXIT_INTR);
    assert_int_equal(exit->reason, reason);
}

static uint8_t byte_at(struct fixture *f, uint32_t address)
{
    uint8_t byte = 0;

    assert_int_equal(gmem_read(f->gmem, gpa(address), &byte, 1), 0);
    return byte;
}

static void test_ports_written_and_read(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;

    LOAD(f, ports);
    run_to(f, &exit, VMEXIT_PIO);
    assert_true(exit.pio.is_write);
    assert_int_equal(exit.pio.port, 0x80);
    assert_int_equal(exit.pio.size_bytes, 2);
    assert_int_equal(exit.pio.data, 0x1234);
    run_to(f, &exit, VMEXIT_PIO);
    assert_false(exit.pio.is_write);
    exit.pio.data = 0x5a;
    run_to(f, &exit, VMEXIT_HLT);
    assert_int_equal(byte_at(f, DATA_GPA), 0x5a);
}

static void test_string_ports_come_one_element_at_a_time(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;

    LOAD(f, strings);
    assert_int_equal(gmem_write(f->gmem, gpa(DATA_GPA), "abc", 3), 0);
    for (unsigned i = 0; i < 3; i++) {
        run_to(f, &exit, VMEXIT_PIO);
        assert_true(exit.pio.is_write);
        assert_int_equal(exit.pio.data, 'a' + i);
    }
    for (unsigned i = 0; i < 4; i++) {
        run_to(f, &exit, VMEXIT_PIO);
        assert_false(exit.pio.is_write);
        exit.pio.data = 'w' + i;
    }
    run_to(f, &exit, VMEXIT_HLT);
    uint8_t got[4];
    assert_int_equal(gmem_read(f->gmem, gpa(0x9000), got, 4), 0);
    assert_memory_equal(got, "wxyz", 4);
}

static void test_kick_before_run_returns_at_once(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;

    LOAD(f, spin);
    kvm_accel_ops.kick(f->vcpu);
    run_to(f, &exit, VMEXIT_INTR);
}

static void *kicker(void *opaque)
{
    struct fixture *f = opaque;
    uint16_t seen = 0;

    /* The guest counts: when it has begun, it is inside. */
    while (seen == 0) {
        assert_int_equal(gmem_load_le16(f->gmem, gpa(DATA_GPA), &seen), 0);
    }
    kvm_accel_ops.kick(f->vcpu);
    return NULL;
}

static void test_kick_from_another_thread_leaves_guest(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;
    pthread_t thread;

    LOAD(f, spin);
    assert_int_equal(pthread_create(&thread, NULL, kicker, f), 0);
    run_to(f, &exit, VMEXIT_INTR);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_not_equal(byte_at(f, DATA_GPA) | byte_at(f, DATA_GPA + 1), 0);
}

static void test_user_interrupt_wakes_halted_guest(void **fixture)
{
    const uint8_t vector_20[4] = {0x00, 0x11, 0, 0};
    struct fixture *f = *fixture;
    struct vmexit exit;

    LOAD(f, interrupt);
    load(f, 0x1100, guest_handler, guest_handler_end);
    load(f, 4 * 0x20, vector_20, vector_20 + 4);
    run_to(f, &exit, VMEXIT_HLT);
    /* Nothing pending: still asleep. */
    run_to(f, &exit, VMEXIT_HLT);
    assert_int_equal(byte_at(f, DATA_GPA), 0);
    f->vector = 0x20;
    run_to(f, &exit, VMEXIT_HLT);
    assert_int_equal(byte_at(f, DATA_GPA), 7);
    assert_int_equal(byte_at(f, DATA_GPA + 1), 1);
}

static void test_halt_with_interrupts_off_stays(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;

    LOAD(f, ports);
    run_to(f, &exit, VMEXIT_PIO);
    run_to(f, &exit, VMEXIT_PIO);
    run_to(f, &exit, VMEXIT_HLT);
    f->vector = 0x20;
    run_to(f, &exit, VMEXIT_HLT);
    assert_int_equal(f->vector, 0x20);
}

static void test_state_set_comes_back(void **fixture)
{
    struct fixture *f = *fixture;
    struct vcpu_state *state = aligned_alloc(64, sizeof(*state));
    struct vcpu_state *back = aligned_alloc(64, sizeof(*back));

    assert_non_null(state);
    assert_non_null(back);
    vcpu_state_reset(state, true);
    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        state->gpr[i] = 0x1111111111111111ull * i;
    }
    state->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP;
    state->cr3 = 0x2000;
    state->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_PGE;
    state->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    state->seg[X86_CS] =
        (struct x86_segment){.selector = 8,
                             .limit = 0xffffffff,
                             .access_rights = X86_AR_P | X86_AR_S | 0xb | X86_AR_L | X86_AR_G};
    state->seg[X86_GS].base = 0xffff888000000000ull;
    state->kernel_gs_base = 0x7f0000000000ull;
    state->lstar = 0xffffffff81000000ull;
    state->star = 0x0023001000000000ull;
    state->tsc_offset = (uint64_t)-123456789;
    state->dr[0] = 0x1234;
    state->mtrr_def_type = 0xc06;
    state->mtrr_base[1] = 0xc0000000;
    state->mtrr_mask[1] = 0xffc0000800;
    state->apic_base = 0xfee00d00;
    state->tsc_deadline = 77;
    state->mp_state = X86_MP_HALTED;
    state->events.nmi_blocked = true;
    state->xsave[160] = 0x42; /* XMM0 */
    state->xsave[512] = 3;
    assert_int_equal(kvm_accel_ops.set_state(f->vcpu, state), 0);
    assert_int_equal(kvm_accel_ops.get_state(f->vcpu, back), 0);
    assert_memory_equal(back->gpr, state->gpr, sizeof(state->gpr));
    assert_memory_equal(back->seg, state->seg, sizeof(state->seg));
    assert_int_equal(back->cr0, state->cr0);
    assert_int_equal(back->cr3, state->cr3);
    assert_int_equal(back->cr4, state->cr4);
    assert_int_equal(back->efer, state->efer);
    assert_int_equal(back->kernel_gs_base, state->kernel_gs_base);
    assert_int_equal(back->lstar, state->lstar);
    assert_int_equal(back->star, state->star);
    if (back->tsc_offset == 0) {
        print_message("this KVM, without hardware behind it, keeps no TSC offset\n");
    } else {
        assert_int_equal(back->tsc_offset, state->tsc_offset);
    }
    assert_int_equal(back->dr[0], state->dr[0]);
    assert_int_equal(back->mtrr_def_type, state->mtrr_def_type);
    assert_int_equal(back->mtrr_base[1], state->mtrr_base[1]);
    assert_int_equal(back->mtrr_mask[1], state->mtrr_mask[1]);
    assert_int_equal(back->apic_base, state->apic_base);
    assert_int_equal(back->tsc_deadline, 77);
    assert_int_equal(back->mp_state, X86_MP_HALTED);
    assert_true(back->events.nmi_blocked);
    assert_int_equal(back->xsave[160], 0x42);
    free(state);
    free(back);
}

static void test_dirty_log_names_written_pages_once(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;
    uint64_t bitmap[RAM_BYTES / GMEM_PAGE_BYTES / 64] = {0};

    LOAD(f, dirty);
    assert_int_equal(kvm_accel_ops.dirty_log_start(f->vm), 0);
    assert_int_equal(kvm_accel_ops.dirty_log_fetch(f->vm, bitmap), 0);
    memset(bitmap, 0, sizeof(bitmap));
    /* Real mode checks 64 KiB, unless the limit says more. */
    struct vcpu_state state;
    assert_int_equal(kvm_accel_ops.get_state(f->vcpu, &state), 0);
    state.seg[X86_DS].limit = 0xffffffff;
    assert_int_equal(kvm_accel_ops.set_state(f->vcpu, &state), 0);
    run_to(f, &exit, VMEXIT_HLT);
    assert_int_equal(kvm_accel_ops.dirty_log_fetch(f->vm, bitmap), 0);
    assert_int_equal(bitmap[0], 3ull << 32);
    memset(bitmap, 0, sizeof(bitmap));
    assert_int_equal(kvm_accel_ops.dirty_log_fetch(f->vm, bitmap), 0);
    assert_int_equal(bitmap[0], 0);
    assert_int_equal(kvm_accel_ops.dirty_log_stop(f->vm), 0);
}

static void test_single_step_stops_after_each_instruction(void **fixture)
{
    const struct accel_debug debug = {.single_step = true};
    struct fixture *f = *fixture;
    struct vmexit exit;
    struct vcpu_state state;

    LOAD(f, steps);
    assert_int_equal(kvm_accel_ops.set_debug(f->vcpu, &debug), 0);
    for (unsigned i = 1; i <= 3; i++) {
        run_to(f, &exit, VMEXIT_DEBUG);
        assert_int_equal(exit.debug.rip, CODE_GPA + 3 * i);
    }
    assert_int_equal(kvm_accel_ops.get_state(f->vcpu, &state), 0);
    assert_int_equal(state.gpr[X86_RAX], 1);
    assert_int_equal(state.gpr[X86_RBX], 2);
    assert_int_equal(state.gpr[X86_RCX], 3);
}

static void test_breakpoint_stops_before_the_instruction(void **fixture)
{
    const struct accel_debug debug = {.breakpoint_count = 1, .breakpoints = {CODE_GPA + 6}};
    const struct accel_debug too_many = {.breakpoint_count = 5};
    struct fixture *f = *fixture;
    struct vmexit exit;
    struct vcpu_state state;

    LOAD(f, steps);
    assert_int_equal(kvm_accel_ops.set_debug(f->vcpu, &too_many), -ENOSPC);
    assert_int_equal(kvm_accel_ops.set_debug(f->vcpu, &debug), 0);
    run_to(f, &exit, VMEXIT_DEBUG);
    assert_int_equal(exit.debug.rip, CODE_GPA + 6);
    assert_int_equal(kvm_accel_ops.get_state(f->vcpu, &state), 0);
    assert_int_equal(state.gpr[X86_RBX], 2);
    assert_int_equal(state.gpr[X86_RCX], 0);
}

static void test_ioeventfd_signals_without_an_exit(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;
    const int fd = io_eventfd();

    assert_true(fd >= 0);
    LOAD(f, doorbell);
    assert_int_equal(kvm_accel_ops.ioeventfd(f->vm, true, 0x700, 2, true, 5, fd, true), 0);
    run_to(f, &exit, VMEXIT_HLT);
    assert_int_equal(io_eventfd_drain(fd), 1);
    assert_int_equal(kvm_accel_ops.ioeventfd(f->vm, true, 0x700, 2, true, 5, fd, false), 0);
    (void)close(fd);
}

static void test_triple_fault_is_shutdown(void **fixture)
{
    struct fixture *f = *fixture;
    struct vmexit exit;

    LOAD(f, shutdown);
    /* Protected mode with an empty IDT: #UD, #GP and #DF find no gate. */
    struct vcpu_state state;
    assert_int_equal(kvm_accel_ops.get_state(f->vcpu, &state), 0);
    state.cr0 |= X86_CR0_PE;
    state.seg[X86_CS].selector = 8;
    state.idtr.limit = 0;
    assert_int_equal(kvm_accel_ops.set_state(f->vcpu, &state), 0);
    run_to(f, &exit, VMEXIT_SHUTDOWN);
}

static void test_full_irqchip_takes_lines_messages_and_reset(void **fixture)
{
    struct fixture *f = *fixture;
    const int fd = io_eventfd();

    assert_true(fd >= 0);
    assert_int_equal(kvm_accel_ops.irq_line(f->vm, 4, true), 0);
    assert_int_equal(kvm_accel_ops.irq_line(f->vm, 4, false), 0);
    assert_int_equal(kvm_accel_ops.send_msi(f->vm, 0xfee00000, 0x30), 0);
    assert_int_equal(kvm_accel_ops.msi_route(f->vm, 24, 0xfee00000, 0x31), 0);
    assert_int_equal(kvm_accel_ops.msi_route(f->vm, 24, 0xfee00000, 0x32), 0);
    assert_int_equal(kvm_accel_ops.irqfd(f->vm, 24, fd, true), 0);
    io_eventfd_signal(fd);
    assert_int_equal(kvm_accel_ops.irqfd(f->vm, 24, fd, false), 0);
    assert_int_equal(kvm_accel_ops.msi_route(f->vm, 3, 0xfee00000, 0x31), -EINVAL);
    assert_int_equal(kvm_accel_ops.irqchip_reset(f->vm), 0);
    (void)close(fd);
}

static void test_split_irqchip_routes_pins(void **fixture)
{
    struct fixture *f = *fixture;

    assert_int_equal(kvm_accel_ops.irq_line(f->vm, 4, true), -EINVAL);
    assert_int_equal(kvm_accel_ops.msi_route(f->vm, 4, 0xfee00000, 0x34), 0);
    assert_int_equal(kvm_accel_ops.irqchip_reset(f->vm), 0);
}

static void test_probe_says_why_not(void **unused)
{
    struct err err = {0};

    (void)unused;
    /* Both answers are right, each on its hosts; what must hold is the text. */
    const int rc = kvm_accel_ops.probe(&err);
    if (rc == 0) {
        assert_int_equal(err.code, 0);
    } else {
        assert_int_equal(rc, err.code);
        assert_non_null(strstr(err.text, "KVM"));
        print_message("probe: %s\n", err.text);
    }
}

static void *keep_busy(void *stop)
{
    while (!atomic_load((_Atomic bool *)stop)) {
    }
    return NULL;
}

static void test_probe_has_one_verdict_on_a_busy_host(void **unused)
{
    pthread_t threads[6];
    _Atomic bool stop = false;
    unsigned verdicts[2] = {0};

    (void)unused;
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, keep_busy, &stop), 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        struct err err = {0};
        verdicts[kvm_accel_ops.probe(&err) == 0]++;
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    assert_true(verdicts[0] == 0 || verdicts[1] == 0);
}

#define VM_TEST(name, setup) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        VM_TEST(test_ports_written_and_read, setup_user),
        VM_TEST(test_string_ports_come_one_element_at_a_time, setup_user),
        VM_TEST(test_kick_before_run_returns_at_once, setup_user),
        VM_TEST(test_kick_from_another_thread_leaves_guest, setup_user),
        VM_TEST(test_user_interrupt_wakes_halted_guest, setup_user),
        VM_TEST(test_halt_with_interrupts_off_stays, setup_user),
        VM_TEST(test_state_set_comes_back, setup_user),
        VM_TEST(test_dirty_log_names_written_pages_once, setup_user),
        VM_TEST(test_single_step_stops_after_each_instruction, setup_user),
        VM_TEST(test_breakpoint_stops_before_the_instruction, setup_user),
        VM_TEST(test_ioeventfd_signals_without_an_exit, setup_user),
        VM_TEST(test_triple_fault_is_shutdown, setup_user),
        VM_TEST(test_full_irqchip_takes_lines_messages_and_reset, setup_full),
        VM_TEST(test_split_irqchip_routes_pins, setup_split),
        cmocka_unit_test(test_probe_says_why_not),
        cmocka_unit_test(test_probe_has_one_verdict_on_a_busy_host),
    };

    if (access("/dev/kvm", R_OK | W_OK) != 0) {
        (void)printf("/dev/kvm cannot be opened here\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
