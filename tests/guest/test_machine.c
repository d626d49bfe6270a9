/*
 * The life of a machine on the software engine: states, pause, reset, stop,
 * while its CPUs spin, halt or wait to be started.
 */
#include "base/io.h"
#include "machine/machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOAD 0x200000u
#define COUNTER 0x300000u

/* lock incq COUNTER; jmp back */
static const uint8_t spin[] = {0xf0, 0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0xeb, 0xf5};
/* cli; hlt; jmp back */
static const uint8_t dead[] = {0xfa, 0xf4, 0xeb, 0xfc};
/* mov $0x600, %dx; add $0xc, %dx; mov $1, %al; out %al, %dx; jmp to itself: the reset register */
static const uint8_t resets[] = {0x66, 0xba, 0x00, 0x06, 0x66, 0x83, 0xc2,
                                 0x0c, 0xb0, 0x01, 0xee, 0xeb, 0xfe};

struct fixture {
    char path[40];
    struct machine_config config;
    struct machine *machine;
    struct err err;
};

static void make_kernel(struct fixture *f, const uint8_t *code, size_t len)
{
    struct {
        Elf64_Ehdr eh;
        Elf64_Phdr ph;
        uint8_t code[32];
    } elf = {0};
    int fd = 0;

    memcpy(elf.eh.e_ident, ELFMAG, SELFMAG);
    elf.eh.e_ident[EI_CLASS] = ELFCLASS64;
    elf.eh.e_ident[EI_DATA] = ELFDATA2LSB;
    elf.eh.e_type = ET_EXEC;
    elf.eh.e_machine = EM_X86_64;
    elf.eh.e_entry = LOAD;
    elf.eh.e_phoff = sizeof(elf.eh);
    elf.eh.e_phentsize = sizeof(elf.ph);
    elf.eh.e_phnum = 1;
    elf.ph = (Elf64_Phdr){.p_type = PT_LOAD,
                          .p_offset = sizeof(elf.eh) + sizeof(elf.ph),
                          .p_paddr = LOAD,
                          .p_filesz = sizeof(elf.code),
                          .p_memsz = sizeof(elf.code)};
    assert_true(len <= sizeof(elf.code));
    memcpy(elf.code, code, len);
    strcpy(f->path, "/tmp/corbel-test-machine-XXXXXX");
    fd = mkstemp(f->path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &elf, sizeof(elf)), sizeof(elf));
    close(fd);
}

static void create(struct fixture *f, const uint8_t *code, size_t len)
{
    *f = (struct fixture){0};
    make_kernel(f, code, len);
    machine_config_init(&f->config);
    f->config.engine = MACHINE_ENGINE_SOFT;
    f->config.cpus = 2;
    f->config.memory_bytes = 32u << 20;
    f->config.kernel = f->path;
    if (machine_create(&f->config, &f->err, &f->machine) != 0) {
        fail_msg("%s", f->err.text);
    }
}

static void done(struct fixture *f)
{
    machine_destroy(f->machine);
    unlink(f->path);
}

static uint64_t counter(struct fixture *f)
{
    uint64_t value = 0;

    assert_int_equal(gmem_load_le64(machine_gmem(f->machine), gpa(COUNTER), &value), 0);
    return value;
}

static void wait_progress(struct fixture *f)
{
    uint64_t before = counter(f);

    while (counter(f) == before) {
        (void)usleep(0);
    }
}

static void expect_state(struct fixture *f, enum machine_state state)
{
    struct machine_status status;

    machine_status(f->machine, &status);
    assert_string_equal(machine_state_name(status.state), machine_state_name(state));
}

static void test_states_follow_the_calls(void **unused)
{
    struct fixture f;
    struct vcpu_state cpu;

    (void)unused;
    create(&f, spin, sizeof(spin));
    expect_state(&f, MACHINE_CREATED);
    assert_int_equal(machine_pause(f.machine), -EINVAL);
    assert_int_equal(machine_resume(f.machine), -EINVAL);
    assert_int_equal(machine_reset(f.machine), -EINVAL);
    assert_int_equal(machine_powerdown(f.machine), -EINVAL);
    assert_int_equal(machine_start(f.machine, &f.err), 0);
    assert_int_equal(machine_start(f.machine, &f.err), -EINVAL);
    wait_progress(&f);
    assert_int_equal(machine_cpu_get_state(f.machine, 0, &cpu), -EBUSY);
    assert_int_equal(machine_pause(f.machine), 0);
    assert_int_equal(machine_pause(f.machine), 0);
    expect_state(&f, MACHINE_PAUSED);
    assert_int_equal(machine_cpu_get_state(f.machine, 0, &cpu), 0);
    assert_in_range(cpu.rip, LOAD, LOAD + sizeof(spin));
    assert_int_equal(machine_cpu_get_state(f.machine, 2, &cpu), -EINVAL);
    assert_int_equal(machine_resume(f.machine), 0);
    wait_progress(&f);
    machine_stop(f.machine);
    expect_state(&f, MACHINE_ENDED);
    assert_int_equal(machine_wait(f.machine), MACHINE_END_STOP);
    assert_int_equal(machine_resume(f.machine), -EINVAL);
    machine_stop(f.machine);
    assert_int_not_equal(io_eventfd_drain(machine_event_fd(f.machine)), 0);
    done(&f);
}

static void test_pause_stops_and_resume_goes_on(void **unused)
{
    struct fixture f;

    (void)unused;
    create(&f, spin, sizeof(spin));
    assert_int_equal(machine_start(f.machine, &f.err), 0);
    for (unsigned i = 0; i < 200; i++) {
        uint64_t at = 0;

        wait_progress(&f);
        assert_int_equal(machine_pause(f.machine), 0);
        at = counter(&f);
        assert_int_equal(counter(&f), at);
        assert_int_equal(machine_resume(f.machine), 0);
    }
    done(&f); /* destroyed while it runs */
}

static void test_registers_can_be_changed_while_paused(void **unused)
{
    struct fixture f;
    struct vcpu_state cpu;

    (void)unused;
    create(&f, dead, sizeof(dead));
    assert_int_equal(machine_start(f.machine, &f.err), 0);
    assert_int_equal(machine_pause(f.machine), 0);
    assert_int_equal(gmem_write(machine_gmem(f.machine), gpa(LOAD + 0x1000), spin, sizeof(spin)),
                     0);
    assert_int_equal(machine_cpu_get_state(f.machine, 0, &cpu), 0);
    cpu.rip = LOAD + 0x1000;
    cpu.mp_state = X86_MP_RUNNABLE;
    assert_int_equal(machine_cpu_set_state(f.machine, 0, &cpu), 0);
    assert_int_equal(machine_resume(f.machine), 0);
    wait_progress(&f);
    assert_int_equal(machine_pause(f.machine), 0);
    done(&f); /* destroyed while paused */
}

static void test_halted_for_good_is_still_obedient(void **unused)
{
    struct fixture f;

    (void)unused;
    create(&f, dead, sizeof(dead));
    assert_int_equal(machine_start(f.machine, &f.err), 0);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(machine_pause(f.machine), 0);
        assert_int_equal(machine_resume(f.machine), 0);
    }
    assert_int_equal(machine_powerdown(f.machine), -EAGAIN); /* the guest does not listen */
    machine_stop(f.machine);
    done(&f);
}

static unsigned reset_count(struct fixture *f)
{
    struct machine_status status;

    machine_status(f->machine, &status);
    return status.resets;
}

static void wait_resets(struct fixture *f, unsigned wanted)
{
    while (reset_count(f) < wanted) {
        (void)usleep(0);
    }
}

static void test_reset_begins_again_with_fresh_memory(void **unused)
{
    struct fixture f;

    (void)unused;
    create(&f, spin, sizeof(spin));
    assert_int_equal(machine_start(f.machine, &f.err), 0);
    for (unsigned i = 1; i <= 10; i++) {
        wait_progress(&f);
        assert_int_equal(machine_reset(f.machine), 0);
        wait_resets(&f, i);
    }
    assert_int_equal(machine_pause(f.machine), 0);
    assert_int_equal(machine_reset(f.machine), 0);
    wait_resets(&f, 11);
    expect_state(&f, MACHINE_PAUSED); /* a paused machine stays paused */
    assert_int_equal(counter(&f), 0);
    assert_int_equal(machine_resume(f.machine), 0);
    wait_progress(&f);
    done(&f);
}

static void test_guest_that_only_resets_can_be_stopped(void **unused)
{
    struct fixture f;

    (void)unused;
    for (unsigned i = 0; i < 20; i++) { /* in the middle of one, too */
        create(&f, resets, sizeof(resets));
        assert_int_equal(machine_start(f.machine, &f.err), 0);
        wait_resets(&f, 5);
        assert_int_equal(machine_pause(f.machine), 0);
        assert_int_equal(machine_resume(f.machine), 0);
        machine_stop(f.machine);
        done(&f);
    }
}

static void test_machines_live_side_by_side(void **unused)
{
    struct fixture f[3];

    (void)unused;
    for (unsigned i = 0; i < 3; i++) {
        create(&f[i], spin, sizeof(spin));
        assert_int_equal(machine_start(f[i].machine, &f[i].err), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        wait_progress(&f[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        done(&f[i]);
    }
    create(&f[0], spin, sizeof(spin));
    done(&f[0]); /* never started */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states_follow_the_calls),
        cmocka_unit_test(test_pause_stops_and_resume_goes_on),
        cmocka_unit_test(test_registers_can_be_changed_while_paused),
        cmocka_unit_test(test_halted_for_good_is_still_obedient),
        cmocka_unit_test(test_reset_begins_again_with_fresh_memory),
        cmocka_unit_test(test_guest_that_only_resets_can_be_stopped),
        cmocka_unit_test(test_machines_live_side_by_side),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
