/*
 * Local APICs, I/O APIC and PIC together, without CPUs: the test plays the
 * vCPUs, which ask for vectors as an accelerator does.
 */
#include "base/alarm.h"
#include "base/loop.h"
#include "bus/bus.h"
#include "irqchip/i8259.h"
#include "irqchip/ioapic.h"
#include "irqchip/lapic.h"
#include "test.h"

#include <errno.h>
#include <string.h>

#define CPUS 3
#define IOAPIC_BASE 0xfec00000ull

enum { ID = 0x20, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0 };
enum { ISR = 0x100, IRR = 0x200, ESR = 0x280, ICR = 0x300, ICR_HIGH = 0x310, LVT_TIMER = 0x320 };
enum { LINT0 = 0x350, TMICT = 0x380, TMCCT = 0x390, TDCR = 0x3e0 };

struct fixture {
    struct loop *loop;
    struct bus *bus;
    struct lapic_set *lapics;
    struct alarm *alarms[CPUS];
    struct ioapic *ioapic;
    struct i8259 *pic;
    unsigned kicks[CPUS], nmis[CPUS], inits[CPUS], sipis[CPUS];
    uint8_t sipi_vector;
};

static void on_kick(void *opaque, unsigned cpu)
{
    struct fixture *f = opaque;

    f->kicks[cpu]++;
    loop_stop(f->loop);
}

static void on_nmi(void *opaque, unsigned cpu)
{
    ((struct fixture *)opaque)->nmis[cpu]++;
}

static void on_init(void *opaque, unsigned cpu)
{
    ((struct fixture *)opaque)->inits[cpu]++;
}

static void on_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
    struct fixture *f = opaque;

    f->sipis[cpu]++;
    f->sipi_vector = vector;
}

static void on_eoi(void *opaque, unsigned cpu, uint8_t vector)
{
    (void)cpu;
    ioapic_eoi(((struct fixture *)opaque)->ioapic, vector);
}

static void on_arm(void *opaque, unsigned cpu, uint64_t deadline_ns)
{
    alarm_arm(((struct fixture *)opaque)->alarms[cpu], deadline_ns);
}

static void on_alarm(void *opaque)
{
    lapic_timer_expire(opaque);
}

static int on_pic_acknowledge(void *opaque)
{
    return i8259_acknowledge(((struct fixture *)opaque)->pic);
}

static void on_pic_output(void *opaque, bool level)
{
    lapic_set_pic_output(((struct fixture *)opaque)->lapics, level);
}

static void on_msi(void *opaque, uint64_t address, uint32_t data)
{
    lapic_send_msi(((struct fixture *)opaque)->lapics, address, data);
}

static const struct irq_ops message_ops = {.send_msi = on_msi};

static const struct lapic_ops lapic_ops = {
    .kick = on_kick,
    .nmi = on_nmi,
    .init = on_init,
    .sipi = on_sipi,
    .eoi = on_eoi,
    .pic_acknowledge = on_pic_acknowledge,
    .arm = on_arm,
};

static uint32_t reg_get(struct fixture *f, unsigned cpu, unsigned reg)
{
    return (uint32_t)lapic_mmio_read(lapic_get(f->lapics, cpu), reg, 4);
}

static void reg_set(struct fixture *f, unsigned cpu, unsigned reg, uint32_t value)
{
    lapic_mmio_write(lapic_get(f->lapics, cpu), reg, 4, value);
}

static bool pending(struct fixture *f, unsigned cpu)
{
    return lapic_intr_ops.pending(lapic_get(f->lapics, cpu));
}

static int take(struct fixture *f, unsigned cpu)
{
    return lapic_intr_ops.acknowledge(lapic_get(f->lapics, cpu));
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const struct irq_router router = {.ops = &message_ops, .opaque = f};
    struct lapic_set_config config = {
        .count = CPUS,
        .timer_hz = 1000000000,
        .tsc_hz = 2000000000,
        .ops = &lapic_ops,
        .opaque = f,
    };

    assert_non_null(f);
    assert_int_equal(loop_create(&f->loop), 0);
    assert_int_equal(bus_create(&f->bus), 0);
    assert_int_equal(lapic_set_create(&config, &f->lapics), 0);
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(alarm_create(f->loop, on_alarm, lapic_get(f->lapics, i), &f->alarms[i]),
                         0);
    }
    assert_int_equal(ioapic_create(f->bus, IOAPIC_BASE, &router, NULL, &f->ioapic), 0);
    assert_int_equal(i8259_create(f->bus, on_pic_output, f, &f->pic), 0);
    for (unsigned i = 0; i < CPUS; i++) {
        reg_set(f, i, SVR, 0x1ff);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    i8259_destroy(f->pic);
    ioapic_destroy(f->ioapic);
    for (unsigned i = 0; i < CPUS; i++) {
        alarm_destroy(f->alarms[i]);
    }
    lapic_set_destroy(f->lapics);
    bus_destroy(f->bus);
    loop_destroy(f->loop);
    free(f);
    return 0;
}

static void msi(struct fixture *f, unsigned dest, uint32_t data)
{
    lapic_send_msi(f->lapics, 0xfee00000ull | dest << 12, data);
}

static void test_message_is_taken_and_ended(void **state)
{
    struct fixture *f = *state;

    assert_false(pending(f, 1));
    msi(f, 1, 0x41);
    assert_int_equal(f->kicks[1], 1);
    assert_false(pending(f, 0));
    assert_true(pending(f, 1));
    assert_int_equal(reg_get(f, 1, IRR + 0x20), 1u << 1);
    assert_int_equal(take(f, 1), 0x41);
    assert_int_equal(reg_get(f, 1, IRR + 0x20), 0);
    assert_int_equal(reg_get(f, 1, ISR + 0x20), 1u << 1);
    assert_int_equal(reg_get(f, 1, PPR), 0x40);
    assert_int_equal(take(f, 1), -1);
    reg_set(f, 1, EOI, 0);
    assert_int_equal(reg_get(f, 1, ISR + 0x20), 0);
    assert_int_equal(reg_get(f, 1, PPR), 0);
}

static void test_higher_class_interrupts_lower_waits(void **state)
{
    struct fixture *f = *state;

    msi(f, 0, 0x51);
    assert_int_equal(take(f, 0), 0x51);
    msi(f, 0, 0x5f); /* same class: waits */
    msi(f, 0, 0x31);
    assert_false(pending(f, 0));
    msi(f, 0, 0x61);
    assert_int_equal(take(f, 0), 0x61);
    reg_set(f, 0, EOI, 0);
    assert_false(pending(f, 0));
    reg_set(f, 0, EOI, 0);
    assert_int_equal(take(f, 0), 0x5f);
    reg_set(f, 0, EOI, 0);
    assert_int_equal(take(f, 0), 0x31);
    reg_set(f, 0, EOI, 0);
    reg_set(f, 0, EOI, 0); /* one too many is harmless */
}

static void test_task_priority_and_cr8_hold_back(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, TPR, 0x45);
    assert_int_equal(lapic_cr8(lapic_get(f->lapics, 0)), 4);
    msi(f, 0, 0x4f);
    assert_false(pending(f, 0));
    lapic_set_cr8(lapic_get(f->lapics, 0), 3);
    assert_int_equal(reg_get(f, 0, TPR), 0x30);
    assert_int_equal(take(f, 0), 0x4f);
}

static void test_software_disable_masks_and_refuses(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, LVT_TIMER, 0x40);
    reg_set(f, 0, SVR, 0xff);
    assert_int_equal(reg_get(f, 0, LVT_TIMER), 0x10040);
    reg_set(f, 0, LVT_TIMER, 0x40); /* stays masked */
    assert_int_equal(reg_get(f, 0, LVT_TIMER), 0x10040);
    msi(f, 0, 0x41);
    assert_false(pending(f, 0));
}

static void test_icr_destinations_in_xapic_mode(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, ICR_HIGH, 2u << 24);
    reg_set(f, 0, ICR, 0x41);
    assert_int_equal(take(f, 2), 0x41);
    reg_set(f, 0, ICR, 3u << 18 | 0x42); /* all but self */
    assert_false(pending(f, 0));
    assert_int_equal(take(f, 1), 0x42);
    reg_set(f, 2, EOI, 0);
    assert_int_equal(take(f, 2), 0x42);
    reg_set(f, 0, ICR, 1u << 18 | 0x43); /* self */
    assert_int_equal(take(f, 0), 0x43);

    for (unsigned i = 0; i < CPUS; i++) { /* logical, flat */
        reg_set(f, i, EOI, 0);
        reg_set(f, i, LDR, (1u << i) << 24);
    }
    reg_set(f, 0, ICR_HIGH, 6u << 24);
    reg_set(f, 0, ICR, 0x800 | 0x51);
    assert_false(pending(f, 0));
    assert_int_equal(take(f, 1), 0x51);
    assert_int_equal(take(f, 2), 0x51);

    for (unsigned i = 0; i < CPUS; i++) { /* logical, cluster: CPU 2 alone in cluster 1 */
        reg_set(f, i, EOI, 0);
        reg_set(f, i, DFR, 0x0fffffff);
        reg_set(f, i, LDR, (i == 2 ? 0x11u : 1u << i) << 24);
    }
    reg_set(f, 0, ICR_HIGH, 0x13u << 24);
    reg_set(f, 0, ICR, 0x800 | 0x52);
    assert_false(pending(f, 0));
    assert_false(pending(f, 1));
    assert_int_equal(take(f, 2), 0x52);
}

static void test_lowest_priority_goes_to_the_least_busy(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, TPR, 0x30);
    reg_set(f, 1, TPR, 0x20);
    reg_set(f, 2, TPR, 0x20);
    reg_set(f, 2, SVR, 0xff); /* cannot take it */
    msi(f, 0xff, 1u << 8 | 0x61);
    assert_false(pending(f, 0));
    assert_true(pending(f, 1));
    assert_false(pending(f, 2));
}

static void test_startup_messages(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, ICR_HIGH, 1u << 24);
    reg_set(f, 0, ICR, 0xc500); /* INIT, level assert */
    reg_set(f, 0, ICR, 0x8500); /* INIT, level de-assert: nothing */
    reg_set(f, 0, ICR, 0x0699);
    assert_int_equal(f->inits[1], 1);
    assert_int_equal(f->sipis[1], 1);
    assert_int_equal(f->sipi_vector, 0x99);
    reg_set(f, 0, ICR, 0x0400);
    assert_int_equal(f->nmis[1], 1);
    assert_int_equal(f->inits[0] + f->inits[2] + f->nmis[0] + f->nmis[2], 0);
    msi(f, 1, 6u << 8 | 0x99); /* a device cannot start a CPU */
    assert_int_equal(f->sipis[1], 1);
}

static void test_illegal_vectors_set_the_error_register(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, ICR, 1u << 18 | 0x0f);
    msi(f, 0, 3);
    assert_false(pending(f, 0));
    assert_int_equal(reg_get(f, 0, ESR), 0);
    reg_set(f, 0, ESR, 0);
    assert_int_equal(reg_get(f, 0, ESR), 0x60);
    reg_set(f, 0, ESR, 0);
    assert_int_equal(reg_get(f, 0, ESR), 0);
}

static int msr_set(struct fixture *f, unsigned cpu, uint32_t index, uint64_t value)
{
    return lapic_msr_write(lapic_get(f->lapics, cpu), index, value, 0);
}

static uint64_t msr_get(struct fixture *f, unsigned cpu, uint32_t index)
{
    uint64_t value = 0;

    assert_int_equal(lapic_msr_read(lapic_get(f->lapics, cpu), index, &value), 0);
    return value;
}

static void test_x2apic_registers_and_destinations(void **state)
{
    struct fixture *f = *state;
    uint64_t value = 0;

    assert_int_equal(msr_set(f, 0, 0x80b, 0), -EINVAL); /* not in x2APIC mode yet */
    for (unsigned i = 0; i < CPUS; i++) {
        uint64_t base = msr_get(f, i, X86_MSR_APIC_BASE);

        assert_int_equal(base & 0x100, i == 0 ? 0x100 : 0);
        assert_int_equal(msr_set(f, i, X86_MSR_APIC_BASE, base | 0xc00), 0);
        assert_false(lapic_claims(lapic_get(f->lapics, i), 0xfee00000));
    }
    assert_int_equal(msr_get(f, 2, 0x802), 2);
    assert_int_equal(msr_get(f, 2, 0x80d), 4);
    assert_int_equal(lapic_msr_read(lapic_get(f->lapics, 0), 0x80e, &value), -EINVAL);
    assert_int_equal(msr_set(f, 0, 0x831, 0), -EINVAL);
    assert_int_equal(msr_set(f, 0, 0x80b, 1), -EINVAL);
    assert_int_equal(msr_set(f, 0, 0x808, 1ull << 32), -EINVAL);
    assert_int_equal(msr_set(f, 0, X86_MSR_APIC_BASE, 0xfee00800), -EINVAL); /* straight back */

    assert_int_equal(msr_set(f, 0, 0x830, 2ull << 32 | 0x41), 0); /* physical */
    assert_int_equal(take(f, 2), 0x41);
    assert_int_equal(msr_set(f, 0, 0x830, 6ull << 32 | 0x800 | 0x51), 0); /* cluster 0, 1 and 2 */
    assert_int_equal(take(f, 1), 0x51);
    assert_int_equal(take(f, 2), 0x51);
    assert_false(pending(f, 0));
    assert_int_equal(msr_set(f, 0, 0x830, 0xffffffffull << 32 | 0x61), 0); /* everybody */
    assert_int_equal(take(f, 0), 0x61);
    assert_int_equal(take(f, 1), 0x61);
    assert_int_equal(msr_set(f, 1, 0x83f, 0x71), 0); /* self IPI */
    assert_int_equal(take(f, 1), 0x71);
    assert_int_equal(msr_get(f, 1, 0x813), 1u << 17 | 1u << 1); /* ISR of vectors 0x60 to 0x7f */
    assert_int_equal(msr_set(f, 1, 0x80b, 0), 0);
    assert_int_equal(msr_get(f, 1, 0x813), 1u << 1);
}

static void test_page_moves_and_odd_accesses_are_harmless(void **state)
{
    struct fixture *f = *state;
    struct lapic *lapic = lapic_get(f->lapics, 1);

    assert_true(lapic_claims(lapic, 0xfee00ffc));
    assert_int_equal(msr_set(f, 1, X86_MSR_APIC_BASE, 0xd0000800), 0);
    assert_false(lapic_claims(lapic, 0xfee00000));
    assert_true(lapic_claims(lapic, 0xd0000020));
    assert_int_equal(msr_set(f, 1, X86_MSR_APIC_BASE, 1ull << 60 | 0x800), -EINVAL);
    assert_int_equal(lapic_mmio_read(lapic, ID + 3, 1), 1);
    assert_int_equal(lapic_mmio_read(lapic, ID + 4, 4), 0);
    assert_int_equal(lapic_mmio_read(lapic, ID, 8), 0);
    lapic_mmio_write(lapic, TPR, 1, 0xff);
    lapic_mmio_write(lapic, TPR + 4, 4, 0xff);
    assert_int_equal(lapic_mmio_read(lapic, TPR, 4), 0);
    for (unsigned offset = 0; offset < 4096; offset += 4) {
        if (offset != ICR && offset != EOI) {
            lapic_mmio_write(lapic, offset, 4, 0xffffffff);
        }
        (void)lapic_mmio_read(lapic, offset, 4);
    }
}

static void run_until_kicked(struct fixture *f, unsigned cpu)
{
    f->kicks[cpu] = 0;
    while (f->kicks[cpu] == 0) {
        assert_int_equal(loop_run(f->loop), 0);
    }
}

static void test_timer_one_shot_periodic_and_deadline(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 1, TDCR, 0xb); /* divide by 1: 1 GHz */
    reg_set(f, 1, LVT_TIMER, 0x41);
    reg_set(f, 1, TMICT, 4000000000u);
    assert_true(reg_get(f, 1, TMCCT) > 1000000000u);
    reg_set(f, 1, TMICT, 0); /* stops */
    assert_int_equal(reg_get(f, 1, TMCCT), 0);
    reg_set(f, 1, TMICT, 1000000);
    run_until_kicked(f, 1);
    assert_int_equal(take(f, 1), 0x41);
    assert_int_equal(reg_get(f, 1, TMCCT), 0);
    reg_set(f, 1, EOI, 0);

    reg_set(f, 1, LVT_TIMER, 0x20042);
    reg_set(f, 1, TMICT, 1000000);
    for (unsigned i = 0; i < 3; i++) {
        run_until_kicked(f, 1);
        assert_int_equal(take(f, 1), 0x42);
        reg_set(f, 1, EOI, 0);
    }
    reg_set(f, 1, LVT_TIMER, 0x40043); /* TSC-deadline: the periodic timer is gone */
    assert_int_equal(reg_get(f, 1, TMICT), 0);
    assert_int_equal(msr_set(f, 1, X86_MSR_TSC_DEADLINE, __builtin_ia32_rdtsc() + 2000000), 0);
    assert_int_not_equal(msr_get(f, 1, X86_MSR_TSC_DEADLINE), 0);
    run_until_kicked(f, 1);
    assert_int_equal(take(f, 1), 0x43);
    assert_int_equal(msr_get(f, 1, X86_MSR_TSC_DEADLINE), 0);
    reg_set(f, 1, EOI, 0);
    assert_int_equal(msr_set(f, 1, X86_MSR_TSC_DEADLINE, 1), 0); /* in the past: at once */
    assert_int_equal(take(f, 1), 0x43);
    reg_set(f, 1, EOI, 0);
    reg_set(f, 1, LVT_TIMER, 0x10043); /* another mode: ignored */
    assert_int_equal(msr_set(f, 1, X86_MSR_TSC_DEADLINE, 1), 0);
    assert_false(pending(f, 1));
}

/* What one APIC was, another goes on with: pending, in service, level-triggered, the timer. */
static void test_state_moves_to_another_apic(void **state)
{
    struct fixture *f = *state;
    struct lapic_state kept;

    reg_set(f, 1, TPR, 0x20);
    msi(f, 1, 0x61);
    assert_int_equal(take(f, 1), 0x61);
    msi(f, 1, 0x51 | 0x8000 | 0x4000); /* level-triggered */
    reg_set(f, 1, TDCR, 0xb);
    reg_set(f, 1, LVT_TIMER, 0x20042);
    reg_set(f, 1, TMICT, 2000000);
    lapic_save(lapic_get(f->lapics, 1), &kept);
    lapic_reset(lapic_get(f->lapics, 1));

    lapic_load(lapic_get(f->lapics, 2), &kept);
    assert_int_equal(reg_get(f, 2, TPR), 0x20);
    assert_int_equal(reg_get(f, 2, PPR), 0x60);
    assert_int_equal(reg_get(f, 2, TDCR), 0xb);
    assert_int_equal(reg_get(f, 2, TMICT), 2000000);
    assert_int_equal(reg_get(f, 2, ID), 2u << 24);
    assert_false(pending(f, 2)); /* 0x61 is in service */
    reg_set(f, 2, EOI, 0);
    assert_int_equal(take(f, 2), 0x51);
    assert_int_equal(reg_get(f, 2, ISR + 0x20), 1u << 17);
    assert_int_equal(reg_get(f, 2, ISR + 0x80 + 0x20), 1u << 17); /* TMR */
    reg_set(f, 2, EOI, 0);
    for (unsigned i = 0; i < 2; i++) { /* periodic here, too */
        run_until_kicked(f, 2);
        assert_int_equal(take(f, 2), 0x42);
        reg_set(f, 2, EOI, 0);
    }

    lapic_reset(lapic_get(f->lapics, 1));
    reg_set(f, 1, SVR, 0x1ff);
    reg_set(f, 1, LVT_TIMER, 0x40043);
    assert_int_equal(msr_set(f, 1, X86_MSR_TSC_DEADLINE, __builtin_ia32_rdtsc() + 2000000), 0);
    lapic_save(lapic_get(f->lapics, 1), &kept);
    lapic_load(lapic_get(f->lapics, 2), &kept);
    assert_int_equal(msr_get(f, 2, X86_MSR_TSC_DEADLINE), msr_get(f, 1, X86_MSR_TSC_DEADLINE));
    run_until_kicked(f, 2);
    assert_int_equal(take(f, 2), 0x43);
}

static void test_any_state_is_made_sound(void **state)
{
    struct fixture *f = *state;
    struct lapic *lapic = lapic_get(f->lapics, 1);
    struct lapic_state any;

    memset(&any, 0xff, sizeof(any));
    lapic_load(lapic, &any);
    assert_int_equal(msr_get(f, 1, X86_MSR_APIC_BASE), 0x000ffffffffffc00ull);
    assert_true(take(f, 1) < 0);                        /* the highest vector is in service */
    assert_int_equal(msr_get(f, 1, 0x820) & 0xffff, 0); /* the IRR's reserved vectors */
    for (unsigned i = 0; i < 256 - 16; i++) {
        assert_int_equal(msr_set(f, 1, 0x80b, 0), 0);
    }
    assert_int_equal(msr_set(f, 1, 0x808, 0), 0);
    for (int vector = 255; vector >= 16; vector--) {
        assert_int_equal(take(f, 1), vector);
        assert_int_equal(msr_set(f, 1, 0x80b, 0), 0);
    }
    assert_false(pending(f, 1));
    any.base = X86_APIC_BASE_X2APIC; /* without ENABLE there is no such mode */
    lapic_load(lapic, &any);
    assert_int_equal(msr_get(f, 1, X86_MSR_APIC_BASE), 0);
}

/* Registers in shared memory: what a view sends there, the owner of the set delivers. */
static void test_view_delivers_to_the_set_it_views(void **state)
{
    struct fixture *f = *state;
    struct lapic_regs *regs = aligned_alloc(64, CPUS * sizeof(*regs));
    struct lapic_set_config config = {
        .count = CPUS,
        .timer_hz = 1000000000,
        .tsc_hz = 2000000000,
        .regs = regs,
        .ops = &lapic_ops,
        .opaque = f,
    };
    struct lapic_set *set = NULL;
    struct lapic_set *view = NULL;

    assert_non_null(regs);
    memset(regs, 0xff, CPUS * sizeof(*regs));
    assert_int_equal(lapic_set_create(&config, &set), 0);
    config.is_view = true;
    assert_int_equal(lapic_set_create(&config, &view), 0);
    lapic_mmio_write(lapic_get(set, 1), SVR, 4, 0x1ff);
    lapic_send_msi(view, 0xfee00000ull | 1u << 12, 0x41);
    assert_int_equal(f->kicks[1], 1);
    assert_true(lapic_intr_ops.pending(lapic_get(set, 1)));
    assert_int_equal(lapic_intr_ops.acknowledge(lapic_get(set, 1)), 0x41);
    lapic_send_msi(view, 0xfee00000ull | 2u << 12, 0x41); /* disabled */
    assert_false(lapic_intr_ops.pending(lapic_get(set, 2)));
    lapic_send_msi(view, 0xfee00000ull | 2u << 12, 0x400);
    assert_int_equal(f->nmis[2], 1);
    lapic_set_destroy(view);
    lapic_set_destroy(set);
    free(regs);
}

static void ioapic_set(struct fixture *f, unsigned pin, uint64_t entry)
{
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE, 4, 0x10 + 2 * pin + 1);
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, entry >> 32);
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE, 4, 0x10 + 2 * pin);
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, entry & 0xffffffff);
}

static uint32_t ioapic_low(struct fixture *f, unsigned pin)
{
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE, 4, 0x10 + 2 * pin);
    return (uint32_t)bus_read(f->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4);
}

static void test_ioapic_edge_counts_rises(void **state)
{
    struct fixture *f = *state;

    ioapic_set(f, 4, 1ull << 56 | 0x41);
    ioapic_set_line(f->ioapic, 4, true);
    ioapic_set_line(f->ioapic, 4, true);
    assert_int_equal(take(f, 1), 0x41);
    reg_set(f, 1, EOI, 0);
    assert_false(pending(f, 1)); /* still high is no edge */
    ioapic_set_line(f->ioapic, 4, false);
    ioapic_set_line(f->ioapic, 4, true);
    assert_int_equal(take(f, 1), 0x41);
    reg_set(f, 1, EOI, 0);
    ioapic_set_line(f->ioapic, 4, false);
    ioapic_set(f, 4, 1ull << 56 | 0x10041);
    ioapic_set_line(f->ioapic, 4, true); /* masked */
    assert_false(pending(f, 1));
    ioapic_set_line(f->ioapic, 24, true); /* no such pin */
}

static void test_ioapic_level_is_sent_again_until_released(void **state)
{
    struct fixture *f = *state;

    ioapic_set(f, 16, 0x8000 | 0x51);
    ioapic_set_line(f->ioapic, 16, true);
    assert_int_equal(ioapic_low(f, 16), 0xc051); /* remote IRR */
    assert_int_equal(take(f, 0), 0x51);
    ioapic_set_line(f->ioapic, 16, true);
    assert_false(pending(f, 0)); /* under service */
    reg_set(f, 0, EOI, 0);
    assert_int_equal(take(f, 0), 0x51); /* still asserted */
    ioapic_set_line(f->ioapic, 16, false);
    reg_set(f, 0, EOI, 0);
    assert_false(pending(f, 0));
    assert_int_equal(ioapic_low(f, 16), 0x8051);
    ioapic_set(f, 16, 0x18051);
    ioapic_set_line(f->ioapic, 16, true);
    assert_false(pending(f, 0));
    ioapic_set(f, 16, 0x8051); /* unmasked while asserted */
    assert_true(pending(f, 0));
    ioapic_set(f, 16, 0x10051); /* made an edge pin: remote IRR is cleared */
    assert_int_equal(ioapic_low(f, 16), 0x10051);
}

static void test_ioapic_registers_and_reset(void **state)
{
    struct fixture *f = *state;

    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE, 4, 1);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4), 0x00170011);
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE, 4, 0xff);
    assert_int_equal(bus_read(f->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4), 0xffffffff);
    bus_write(f->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, 0);
    ioapic_set(f, 23, UINT64_MAX);
    assert_int_equal(ioapic_low(f, 23), 0x1afff); /* status and remote IRR are read-only */
    ioapic_reset(f->ioapic);
    assert_int_equal(ioapic_low(f, 23), 0x10000);
}

static void pic_init(struct fixture *f)
{
    static const struct {
        uint16_t port;
        uint8_t value;
    } writes[] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x30}, {0xa1, 0x38}, {0x21, 4},
                  {0xa1, 2},    {0x21, 1},    {0xa1, 1},    {0x21, 0},    {0xa1, 0}};

    for (unsigned i = 0; i < sizeof(writes) / sizeof(writes[0]); i++) {
        bus_write(f->bus, BUS_PIO, writes[i].port, 1, writes[i].value);
    }
}

static void test_pic_through_lint0(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, LINT0, 0x700);
    pic_init(f);
    i8259_set_line(f->pic, 4, true);
    assert_true(pending(f, 0));
    assert_false(pending(f, 1)); /* LINT0 masked there */
    assert_int_equal(take(f, 0), 0x34);
    assert_false(pending(f, 0));
    i8259_set_line(f->pic, 8, true); /* slave, of higher rank than 4 through line 2 */
    assert_int_equal(take(f, 0), 0x38);
    i8259_set_line(f->pic, 1, true);
    assert_int_equal(take(f, 0), 0x31);
    bus_write(f->bus, BUS_PIO, 0x20, 1, 0x0b);
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0x20, 1), 0x16); /* ISR: 1, 2, 4 */
    bus_write(f->bus, BUS_PIO, 0x20, 1, 0x20);
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0x20, 1), 0x14);
    bus_write(f->bus, BUS_PIO, 0x20, 1, 0x62); /* specific EOI of 2 */
    bus_write(f->bus, BUS_PIO, 0xa0, 1, 0x20);
    bus_write(f->bus, BUS_PIO, 0x20, 1, 0x64);
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0x20, 1), 0);
    reg_set(f, 0, LINT0, 0x10700);
    i8259_set_line(f->pic, 4, false);
    i8259_set_line(f->pic, 4, true);
    assert_false(pending(f, 0));
}

static void test_pic_mask_and_spurious(void **state)
{
    struct fixture *f = *state;

    reg_set(f, 0, LINT0, 0x700);
    pic_init(f);
    bus_write(f->bus, BUS_PIO, 0x21, 1, 0x10);
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0x21, 1), 0x10);
    i8259_set_line(f->pic, 4, true);
    assert_false(pending(f, 0));
    bus_write(f->bus, BUS_PIO, 0x21, 1, 0);
    assert_true(pending(f, 0));
    i8259_set_line(f->pic, 4, false); /* gone before INTA */
    assert_int_equal(i8259_acknowledge(f->pic), 0x37);
    i8259_set_line(f->pic, 10, true);
    bus_write(f->bus, BUS_PIO, 0x4d1, 1, 0xff);
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0x4d1, 1), 0xde); /* 8 and 13 stay edge */
    i8259_reset(f->pic);
    assert_int_equal(bus_read(f->bus, BUS_PIO, 0x4d1, 1), 0);
    assert_false(pending(f, 0));
}

static void test_lapic_reset_equals_freshly_created(void **state)
{
    struct fixture *f = *state;
    uint32_t fresh[256];

    lapic_reset(lapic_get(f->lapics, 1));
    for (unsigned i = 0; i < 256; i++) {
        fresh[i] = reg_get(f, 1, i * 16 % 4096);
    }
    reg_set(f, 1, SVR, 0x1ff);
    msi(f, 1, 0x41);
    assert_int_equal(take(f, 1), 0x41);
    msi(f, 1, 0x91);
    reg_set(f, 1, TPR, 0x20);
    reg_set(f, 1, LDR, 0xff000000);
    reg_set(f, 1, LVT_TIMER, 0x20041);
    reg_set(f, 1, TDCR, 0xb);
    reg_set(f, 1, TMICT, 1000000000);
    assert_int_equal(msr_set(f, 1, X86_MSR_APIC_BASE, 0xfee00c00), 0);
    lapic_reset(lapic_get(f->lapics, 1));
    for (unsigned i = 0; i < 256; i++) {
        assert_int_equal(fresh[i], reg_get(f, 1, i * 16 % 4096));
    }
    assert_false(pending(f, 1));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_message_is_taken_and_ended),
        TEST(test_higher_class_interrupts_lower_waits),
        TEST(test_task_priority_and_cr8_hold_back),
        TEST(test_software_disable_masks_and_refuses),
        TEST(test_icr_destinations_in_xapic_mode),
        TEST(test_lowest_priority_goes_to_the_least_busy),
        TEST(test_startup_messages),
        TEST(test_illegal_vectors_set_the_error_register),
        TEST(test_x2apic_registers_and_destinations),
        TEST(test_page_moves_and_odd_accesses_are_harmless),
        TEST(test_timer_one_shot_periodic_and_deadline),
        TEST(test_state_moves_to_another_apic),
        TEST(test_any_state_is_made_sound),
        TEST(test_view_delivers_to_the_set_it_views),
        TEST(test_ioapic_edge_counts_rises),
        TEST(test_ioapic_level_is_sent_again_until_released),
        TEST(test_ioapic_registers_and_reset),
        TEST(test_pic_through_lint0),
        TEST(test_pic_mask_and_spurious),
        TEST(test_lapic_reset_equals_freshly_created),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
