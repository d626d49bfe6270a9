/* Clock, timer, keyboard controller and ACPI registers on a real bus. */
#include "base/loop.h"
#include "bus/bus.h"
#include "dev/dev.h"
#include "irq_recorder.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PM 0x600u
#define PLUG 0x640u
#define GSI_PIT 0u
#define GSI_RTC 8u
#define GSI_SCI 9u

struct fixture {
    struct loop *loop;
    struct bus *bus;
    struct irq_recorder irq;
    struct irq_router outer; /* ends the loop's run when a line rises */
    struct rtc_mc146818 *rtc;
    struct pit_i8254 *pit;
    struct kbd_i8042 *kbd;
    struct acpi_pm *pm;
    struct hotplug *hotplug;
    uint32_t ejected;
    unsigned status_of;
    uint32_t status;
    struct debug_exit *exit;
    unsigned resets, power_offs, exits;
    uint8_t exit_code;
};

static void on_reset(void *opaque)
{
    ((struct fixture *)opaque)->resets++;
}

static void on_power_off(void *opaque)
{
    ((struct fixture *)opaque)->power_offs++;
}

static void on_exit_code(void *opaque, uint8_t code)
{
    struct fixture *f = opaque;

    f->exits++;
    f->exit_code = code;
}

static void set_line(void *opaque, unsigned gsi, bool level)
{
    struct fixture *f = opaque;

    irq_set_line(&f->irq.router, gsi, level);
    if (level) {
        loop_stop(f->loop);
    }
}

static const struct irq_ops outer_ops = {.set_line = set_line};
static const struct dev_power_ops power_ops = {
    .reset = on_reset, .power_off = on_power_off, .debug_exit = on_exit_code};

static void on_ejected(void *opaque, uint32_t devices)
{
    ((struct fixture *)opaque)->ejected |= devices;
}

static uint32_t on_present(void *opaque)
{
    (void)opaque;
    return 0x55;
}

static void on_status(void *opaque, unsigned index, uint32_t code)
{
    struct fixture *f = opaque;

    f->status_of = index;
    f->status = code;
}

static const struct hotplug_ops hotplug_ops = {
    .ejected = on_ejected, .present = on_present, .status = on_status};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct hotplug_config hotplug = {.base = PLUG, .gpe = 2, .ops = &hotplug_ops, .opaque = f};
    struct dev_env env = {0};

    assert_non_null(f);
    recorder_init(&f->irq);
    f->outer = (struct irq_router){.ops = &outer_ops, .opaque = f};
    assert_int_equal(loop_create(&f->loop), 0);
    assert_int_equal(bus_create(&f->bus), 0);
    env = (struct dev_env){.bus = f->bus, .loop = f->loop, .irq = f->outer};
    assert_int_equal(rtc_mc146818_create(&env, GSI_RTC, &f->rtc), 0);
    assert_int_equal(pit_i8254_create(&env, GSI_PIT, &f->pit), 0);
    assert_int_equal(kbd_i8042_create(&env, &power_ops, f, &f->kbd), 0);
    assert_int_equal(acpi_pm_create(&env, PM, GSI_SCI, &power_ops, f, &f->pm), 0);
    hotplug.pm = f->pm;
    assert_int_equal(hotplug_create(&env, &hotplug, &f->hotplug), 0);
    assert_int_equal(debug_exit_create(&env, 0xf4, &power_ops, f, &f->exit), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    debug_exit_destroy(f->exit);
    hotplug_destroy(f->hotplug);
    acpi_pm_destroy(f->pm);
    kbd_i8042_destroy(f->kbd);
    pit_i8254_destroy(f->pit);
    rtc_mc146818_destroy(f->rtc);
    bus_destroy(f->bus);
    loop_destroy(f->loop);
    free(f);
    return 0;
}

static uint32_t in(struct fixture *f, uint16_t port, unsigned size)
{
    return (uint32_t)bus_read(f->bus, BUS_PIO, port, size);
}

static void out(struct fixture *f, uint16_t port, unsigned size, uint32_t value)
{
    bus_write(f->bus, BUS_PIO, port, size, value);
}

static uint8_t cmos_get(struct fixture *f, uint8_t reg)
{
    out(f, 0x70, 1, reg);
    return (uint8_t)in(f, 0x71, 1);
}

static void cmos_set(struct fixture *f, uint8_t reg, uint8_t value)
{
    out(f, 0x70, 1, reg);
    out(f, 0x71, 1, value);
}

/* Runs the devices' loop until the line has risen once more. */
static void wait_rise(struct fixture *f, unsigned gsi)
{
    unsigned before = f->irq.rises[gsi];

    while (f->irq.rises[gsi] == before) {
        assert_int_equal(loop_run(f->loop), 0);
    }
}

static unsigned from_bcd(uint8_t value)
{
    return (value >> 4) * 10u + (value & 15u);
}

static void set_time(struct fixture *f, const uint8_t time[7])
{
    static const uint8_t regs[7] = {0, 2, 4, 7, 8, 9, 0x32};

    cmos_set(f, 0x0b, 0x82);
    for (unsigned i = 0; i < 7; i++) {
        cmos_set(f, regs[i], time[i]);
    }
    assert_int_equal(cmos_get(f, 0), time[0]); /* stands still while it is being set */
    cmos_set(f, 0x0b, 0x02);
}

static void test_rtc_tells_utc(void **state)
{
    struct fixture *f = *state;
    struct tm before, after;
    time_t t0 = time(NULL);
    unsigned year = from_bcd(cmos_get(f, 0x32)) * 100 + from_bcd(cmos_get(f, 9));
    unsigned day = from_bcd(cmos_get(f, 7));
    unsigned hour = from_bcd(cmos_get(f, 4));
    time_t t1 = time(NULL);

    gmtime_r(&t0, &before);
    gmtime_r(&t1, &after);
    assert_in_range(year, before.tm_year + 1900, after.tm_year + 1900);
    assert_true(day == (unsigned)before.tm_mday || day == (unsigned)after.tm_mday);
    assert_true(hour == (unsigned)before.tm_hour || hour == (unsigned)after.tm_hour);
    assert_int_equal(cmos_get(f, 0x0d), 0x80);
}

static void test_rtc_keeps_the_time_it_is_given(void **state)
{
    struct fixture *f = *state;
    static const uint8_t leap[7] = {0x50, 0x59, 0x23, 0x28, 0x02, 0x24, 0x20};

    set_time(f, leap);
    assert_int_equal(cmos_get(f, 9), 0x24);
    assert_true(cmos_get(f, 7) == 0x28 || cmos_get(f, 7) == 0x29); /* 2024 has a 29th of February */
    rtc_mc146818_reset(f->rtc);
    assert_int_equal(cmos_get(f, 0x32), 0x20); /* a battery keeps it */
    cmos_set(f, 0x40, 0x5a);
    rtc_mc146818_reset(f->rtc);
    assert_int_equal(cmos_get(f, 0x40), 0x5a);
    cmos_set(f, 0x0b, 0x06); /* binary, 24 hours */
    assert_int_equal(cmos_get(f, 9), 24);
    cmos_set(f, 0x0b, 0x00); /* BCD, 12 hours */
    assert_int_equal(cmos_get(f, 4) & 0x60, 0);
    static const uint8_t nonsense[7] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    set_time(f, nonsense); /* no date at all: whatever it is, it is survived */
    (void)cmos_get(f, 9);
}

static void test_rtc_periodic_interrupt_until_read(void **state)
{
    struct fixture *f = *state;

    cmos_set(f, 0x0a, 0x26); /* 1024 Hz */
    cmos_set(f, 0x0b, 0x42);
    for (unsigned i = 0; i < 3; i++) {
        wait_rise(f, GSI_RTC);
        assert_int_equal(cmos_get(f, 0x0c) & 0xc0, 0xc0);
        assert_false(f->irq.level[GSI_RTC]);
        assert_int_equal(cmos_get(f, 0x0c) & 0x80, 0);
    }
    cmos_set(f, 0x0b, 0x02);
}

static void test_rtc_update_and_alarm(void **state)
{
    struct fixture *f = *state;

    for (uint8_t reg = 1; reg <= 5; reg += 2) {
        cmos_set(f, reg, 0xff); /* any second, minute, hour */
    }
    cmos_set(f, 0x0b, 0x32);
    wait_rise(f, GSI_RTC);
    assert_int_equal(cmos_get(f, 0x0c) & 0xb0, 0xb0);
}

static void pit_start(struct fixture *f, unsigned channel, unsigned mode, uint16_t count)
{
    out(f, 0x43, 1, channel << 6 | 0x30 | mode << 1);
    out(f, (uint16_t)(0x40 + channel), 1, count & 0xff);
    out(f, (uint16_t)(0x40 + channel), 1, count >> 8);
}

static void test_pit_interrupts_once_or_again(void **state)
{
    struct fixture *f = *state;

    pit_start(f, 0, 0, 1193);
    assert_false(f->irq.level[GSI_PIT]);
    wait_rise(f, GSI_PIT);
    out(f, 0x43, 1, 0xe2); /* read back the status of channel 0 */
    assert_int_equal(in(f, 0x40, 1), 0xb0);
    pit_start(f, 0, 2, 1193);
    for (unsigned i = 0; i < 3; i++) {
        wait_rise(f, GSI_PIT);
    }
    out(f, 0x43, 1, 0x30); /* a new mode stops it */
    assert_false(f->irq.level[GSI_PIT]);
}

static uint16_t pit_read(struct fixture *f, unsigned channel)
{
    uint16_t low = (uint16_t)in(f, (uint16_t)(0x40 + channel), 1);

    return (uint16_t)(low | in(f, (uint16_t)(0x40 + channel), 1) << 8);
}

static void test_pit_latch_holds_the_count(void **state)
{
    struct fixture *f = *state;
    uint16_t first = 0;

    pit_start(f, 1, 2, 0); /* 65536 */
    out(f, 0x43, 1, 0x40);
    first = pit_read(f, 1);
    do { /* the counter itself goes on */
        out(f, 0x43, 1, 0x40);
    } while (pit_read(f, 1) == first);
    out(f, 0x43, 1, 0x50); /* low byte only */
    out(f, 0x41, 1, 7);
    assert_in_range(in(f, 0x41, 1), 1, 7);
    assert_int_equal(in(f, 0x43, 1), 0xff);
}

static void test_pit_channel_2_obeys_its_gate(void **state)
{
    struct fixture *f = *state;
    uint16_t held = 0;

    out(f, 0x61, 1, 0);
    pit_start(f, 2, 0, 60000);
    held = pit_read(f, 2);
    assert_int_equal(held, 60000);
    assert_int_equal(pit_read(f, 2), held); /* the gate is low: it stands still */
    assert_int_equal(in(f, 0x61, 1) & 0x20, 0);
    pit_start(f, 2, 0, 1193);
    out(f, 0x61, 1, 1);
    while ((in(f, 0x61, 1) & 0x20) == 0) { /* a millisecond later the output rises */
    }
    out(f, 0x61, 1, 0xfc);
    assert_int_equal(in(f, 0x61, 1) & 0xcf, 0); /* only gate and speaker can be written */
}

static void test_kbd_pulses_reset_and_answers_probes(void **state)
{
    struct fixture *f = *state;

    out(f, 0x64, 1, 0xaa);
    assert_int_equal(in(f, 0x64, 1) & 1, 1);
    assert_int_equal(in(f, 0x60, 1), 0x55);
    assert_int_equal(in(f, 0x64, 1) & 1, 0);
    out(f, 0x64, 1, 0x60);
    out(f, 0x60, 1, 0x47);
    out(f, 0x64, 1, 0x20);
    assert_int_equal(in(f, 0x60, 1), 0x47);
    out(f, 0x60, 1, 0xff); /* nobody answers */
    assert_int_equal(in(f, 0x64, 1) & 1, 0);
    assert_int_equal(f->resets, 0);
    out(f, 0x64, 1, 0xff); /* pulses nothing */
    assert_int_equal(f->resets, 0);
    out(f, 0x64, 1, 0xfe);
    assert_int_equal(f->resets, 1);
    out(f, 0x64, 1, 0xd1);
    out(f, 0x60, 1, 0x02);
    assert_int_equal(f->resets, 2);
    kbd_i8042_reset(f->kbd);
    out(f, 0x64, 1, 0x20);
    assert_int_equal(in(f, 0x60, 1), 0x74);
}

static void test_power_button_raises_sci(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(in(f, PM + 4, 2) & 1, 1); /* SCI_EN */
    acpi_pm_press_power_button(f->pm);
    assert_false(f->irq.level[GSI_SCI]);
    out(f, PM + 2, 2, 0x100);
    assert_true(f->irq.level[GSI_SCI]);
    assert_int_equal(in(f, PM, 2) & 0x100, 0x100);
    out(f, PM, 2, 0); /* writing 0 clears nothing */
    assert_true(f->irq.level[GSI_SCI]);
    out(f, PM, 2, 0x100);
    assert_false(f->irq.level[GSI_SCI]);
    assert_int_equal(in(f, PM, 4), 0x100u << 16);
}

static void test_sleep_and_reset_registers(void **state)
{
    struct fixture *f = *state;

    out(f, PM + 4, 2, 3u << 10 | 0x2000); /* S3: there is none */
    assert_int_equal(f->power_offs, 0);
    out(f, PM + 4, 2, 5u << 10);
    assert_int_equal(f->power_offs, 0);
    out(f, PM + 4, 2, 5u << 10 | 0x2000);
    assert_int_equal(f->power_offs, 1);
    out(f, PM + 5, 1, 0x34); /* the same by its upper byte */
    assert_int_equal(f->power_offs, 2);
    assert_int_equal(in(f, PM + 4, 2) & 0x2000, 0); /* SLP_EN reads as 0 */
    out(f, PM + 0xc, 1, 0x55);
    assert_int_equal(f->resets, 0);
    out(f, PM + 0xc, 1, 1);
    assert_int_equal(f->resets, 1);
    out(f, 0xf4, 1, 42);
    assert_int_equal(f->exits, 1);
    assert_int_equal(f->exit_code, 42);
}

static void test_pm_timer_counts_at_its_rate(void **state)
{
    struct fixture *f = *state;
    uint64_t ns0 = clock_monotonic_ns();
    uint32_t t0 = in(f, PM + 8, 4);
    uint64_t ns1 = clock_monotonic_ns();
    uint32_t t1 = t0;
    uint64_t ns2 = 0, ns3 = 0;

    while (t1 - t0 < 3580) { /* a millisecond */
        ns2 = clock_monotonic_ns();
        t1 = in(f, PM + 8, 4);
        ns3 = clock_monotonic_ns();
    }
    /* Whatever the scheduler did, the reads happened between the clock's. */
    assert_true((t1 - t0) <= (ns3 - ns0) * 3579545 / 1000000000 + 2);
    assert_true((t1 - t0) + 2 >= (ns2 - ns1) * 3579545 / 1000000000);
}

static void test_odd_accesses_and_reset_of_acpi(void **state)
{
    struct fixture *f = *state;

    for (unsigned port = PM; port < PM + ACPI_PM_PORTS; port++) {
        for (unsigned size = 1; size <= 4; size *= 2) {
            (void)in(f, (uint16_t)port, size);
            if (port != PM + 5 && port != PM + 4 && port != PM + 3 && port != PM + 2) {
                out(f, (uint16_t)port, size, 0xfefefefe);
            }
        }
    }
    out(f, PM + 2, 2, 0xffff);
    acpi_pm_press_power_button(f->pm);
    assert_true(f->irq.level[GSI_SCI]);
    acpi_pm_reset(f->pm);
    assert_false(f->irq.level[GSI_SCI]);
    assert_int_equal(in(f, PM, 4) & 0xfffffffe, 0);
    assert_int_equal(in(f, PM + 4, 2), 1);
}

static void test_hotplug_says_who_comes_and_goes(void **state)
{
    struct fixture *f = *state;

    out(f, PM + 0x11, 1, 1u << 2); /* the event is enabled */
    hotplug_came(f->hotplug, 3);
    hotplug_ask(f->hotplug, 31);
    assert_true(f->irq.level[GSI_SCI]);
    out(f, PM + 0x10, 1, 1u << 2);
    assert_false(f->irq.level[GSI_SCI]);
    assert_int_equal(in(f, PLUG + HOTPLUG_CAME, 4), 1u << 3);
    assert_int_equal(in(f, PLUG + HOTPLUG_CAME, 4), 0);
    hotplug_came(f->hotplug, 31); /* the later word holds */
    assert_int_equal(in(f, PLUG + HOTPLUG_LEAVE, 4), 0);
    assert_int_equal(in(f, PLUG + HOTPLUG_CAME, 4), 1u << 31);
    assert_int_equal(in(f, PLUG + HOTPLUG_PRESENT, 4), 0x55);
    out(f, PLUG + HOTPLUG_EJECT, 4, 0x80000001);
    assert_int_equal(f->ejected, 0x80000001);
    out(f, PLUG + HOTPLUG_WHO, 4, 5);
    out(f, PLUG + HOTPLUG_STATUS, 4, 0x81);
    assert_int_equal(f->status_of, 5);
    assert_int_equal(f->status, 0x81);
    out(f, PLUG + HOTPLUG_WHO, 4, 32); /* nobody */
    out(f, PLUG + HOTPLUG_STATUS, 4, 1);
    assert_int_equal(f->status, 0x81);
    hotplug_ask(f->hotplug, 1);
    hotplug_reset(f->hotplug);
    assert_int_equal(in(f, PLUG + HOTPLUG_LEAVE, 4), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_rtc_tells_utc),
        TEST(test_rtc_keeps_the_time_it_is_given),
        TEST(test_rtc_periodic_interrupt_until_read),
        TEST(test_rtc_update_and_alarm),
        TEST(test_pit_interrupts_once_or_again),
        TEST(test_pit_latch_holds_the_count),
        TEST(test_pit_channel_2_obeys_its_gate),
        TEST(test_kbd_pulses_reset_and_answers_probes),
        TEST(test_power_button_raises_sci),
        TEST(test_sleep_and_reset_registers),
        TEST(test_pm_timer_counts_at_its_rate),
        TEST(test_odd_accesses_and_reset_of_acpi),
        TEST(test_hotplug_says_who_comes_and_goes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
