/*
 * The PC's chips under a guest that does anything: ports, the I/O APIC, PCI
 * configuration space and BARs, local APICs by page and MSR, lines that move.
 * Input: steps of one opcode byte and its operands.
 */
#include "base/alarm.h"
#include "base/loop.h"
#include "base/wire.h"
#include "bus/bus.h"
#include "bus/pci.h"
#include "dev/chardev.h"
#include "dev/dev.h"
#include "irqchip/i8259.h"
#include "irqchip/ioapic.h"
#include "irqchip/lapic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CPUS 2
#define MAX_STEPS 400u
#define IOAPIC_BASE 0xfec00000ull
#define WINDOW 0xc0000000ull
#define HOTPLUG 0x640u

struct pc {
    struct loop *loop;
    struct bus *bus;
    struct lapic_set *lapics;
    struct alarm *alarms[CPUS];
    struct ioapic *ioapic;
    struct i8259 *pic;
    struct chardev *chardev;
    struct uart_16550 *uart;
    struct rtc_mc146818 *rtc;
    struct pit_i8254 *pit;
    struct kbd_i8042 *kbd;
    struct acpi_pm *pm;
    struct hotplug *hotplug;
    struct pci_host *host;
    struct pci_dev *dev;
};

struct input {
    const uint8_t *data;
    size_t len;
};

static uint8_t u8(struct input *in)
{
    if (in->len == 0) {
        return 0;
    }
    in->len--;
    return *in->data++;
}

static uint32_t u32(struct input *in)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < 4; i++) {
        value = value << 8 | u8(in);
    }
    return value;
}

/* ---- wiring ---- */

static void on_cpu(void *opaque, unsigned cpu)
{
    (void)opaque;
    if (cpu >= CPUS) {
        abort();
    }
}

static void on_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
    (void)vector;
    on_cpu(opaque, cpu);
}

static void on_eoi(void *opaque, unsigned cpu, uint8_t vector)
{
    (void)cpu;
    ioapic_eoi(((struct pc *)opaque)->ioapic, vector);
}

static void on_arm(void *opaque, unsigned cpu, uint64_t deadline_ns)
{
    alarm_arm(((struct pc *)opaque)->alarms[cpu], deadline_ns);
}

static void on_alarm(void *opaque)
{
    lapic_timer_expire(opaque);
}

static int on_pic_acknowledge(void *opaque)
{
    return i8259_acknowledge(((struct pc *)opaque)->pic);
}

static void on_pic_output(void *opaque, bool level)
{
    struct pc *pc = opaque;

    lapic_set_pic_output(pc->lapics, level);
}

static void set_line(void *opaque, unsigned gsi, bool level)
{
    struct pc *pc = opaque;

    if (gsi < 16) {
        i8259_set_line(pc->pic, gsi, level);
    }
    ioapic_set_line(pc->ioapic, gsi == 0 ? 2 : gsi, level);
}

static void send_msi(void *opaque, uint64_t address, uint32_t data)
{
    lapic_send_msi(((struct pc *)opaque)->lapics, address, data);
}

static void on_power(void *opaque)
{
    (void)opaque;
}

static void on_exit_code(void *opaque, uint8_t code)
{
    (void)opaque;
    (void)code;
}

static void on_ejected(void *opaque, uint32_t devices)
{
    struct pc *pc = opaque;

    hotplug_came(pc->hotplug, devices % 32);
}

static uint32_t on_present(void *opaque)
{
    (void)opaque;
    return 1;
}

static void on_status(void *opaque, unsigned index, uint32_t code)
{
    struct pc *pc = opaque;

    (void)code;
    if (index >= 32) {
        abort();
    }
    hotplug_ask(pc->hotplug, index);
}

static const struct hotplug_ops hotplug_ops = {
    .ejected = on_ejected, .present = on_present, .status = on_status};
static const struct irq_ops irq_ops = {.set_line = set_line, .send_msi = send_msi};
static const struct dev_power_ops power_ops = {
    .reset = on_power, .power_off = on_power, .debug_exit = on_exit_code};
static const struct lapic_ops lapic_ops = {.kick = on_cpu,
                                           .nmi = on_cpu,
                                           .init = on_cpu,
                                           .sipi = on_sipi,
                                           .eoi = on_eoi,
                                           .pic_acknowledge = on_pic_acknowledge,
                                           .arm = on_arm};

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    if (size > 8 || offset > 0x4000 - size) {
        abort();
    }
    return offset;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)bar_read(opaque, offset, size);
    (void)value;
}

static const struct bus_ops bar_ops = {
    .read = bar_read, .write = bar_write, .min_bytes = 1, .max_bytes = 8};

static void must(int rc)
{
    if (rc != 0) {
        abort();
    }
}

static void build(struct pc *pc)
{
    const struct irq_router router = {.ops = &irq_ops, .opaque = pc};
    const struct chardev_config chardev = {.in_fd = -1, .out_fd = -1, .listen_fd = -1};
    struct hotplug_config hotplug;
    const struct pci_dev_config function = {
        .name = "function",
        .vendor_id = 1,
        .bars = {[0] = {.size_bytes = 0x4000, .is_64bit = true, .ops = &bar_ops},
                 [3] = {.size_bytes = 0x4000, .ops = &bar_ops}},
        .msix_vectors = 64,
        .msix_bar = 2,
        .interrupt_pin = 1,
    };
    struct lapic_set_config lapics = {.count = CPUS,
                                      .timer_hz = 1000000000,
                                      .tsc_hz = 2000000000,
                                      .ops = &lapic_ops,
                                      .opaque = pc};
    struct dev_env env = {.irq = router};

    must(loop_create(&pc->loop));
    must(bus_create(&pc->bus));
    env.loop = pc->loop;
    env.bus = pc->bus;
    must(lapic_set_create(&lapics, &pc->lapics));
    for (unsigned i = 0; i < CPUS; i++) {
        must(alarm_create(pc->loop, on_alarm, lapic_get(pc->lapics, i), &pc->alarms[i]));
    }
    must(i8259_create(pc->bus, on_pic_output, pc, &pc->pic));
    must(ioapic_create(pc->bus, IOAPIC_BASE, &router, NULL, &pc->ioapic));
    must(chardev_create(pc->loop, &chardev, &pc->chardev));
    must(uart_16550_create(&env, 0x3f8, 4, pc->chardev, &pc->uart));
    must(rtc_mc146818_create(&env, 8, &pc->rtc));
    must(pit_i8254_create(&env, 0, &pc->pit));
    must(kbd_i8042_create(&env, &power_ops, pc, &pc->kbd));
    must(acpi_pm_create(&env, 0x600, 9, &power_ops, pc, &pc->pm));
    hotplug = (struct hotplug_config){
        .base = HOTPLUG, .gpe = 2, .pm = pc->pm, .ops = &hotplug_ops, .opaque = pc};
    must(hotplug_create(&env, &hotplug, &pc->hotplug));
    must(pci_host_create(pc->bus, &router, WINDOW, 0x100000, &pc->host));
    must(pci_dev_create(pc->host, &function, &pc->dev));
}

static void destroy(struct pc *pc)
{
    pci_dev_destroy(pc->dev);
    pci_host_destroy(pc->host);
    hotplug_destroy(pc->hotplug);
    acpi_pm_destroy(pc->pm);
    kbd_i8042_destroy(pc->kbd);
    pit_i8254_destroy(pc->pit);
    rtc_mc146818_destroy(pc->rtc);
    uart_16550_destroy(pc->uart);
    chardev_destroy(pc->chardev);
    ioapic_destroy(pc->ioapic);
    i8259_destroy(pc->pic);
    for (unsigned i = 0; i < CPUS; i++) {
        alarm_destroy(pc->alarms[i]);
    }
    lapic_set_destroy(pc->lapics);
    bus_destroy(pc->bus);
    loop_destroy(pc->loop);
}

/* ---- steps ---- */

static void access_bus(struct pc *pc, struct input *in, enum bus_space space, uint64_t address)
{
    uint8_t how = u8(in);
    unsigned size = 1u << (how & 3);

    if ((how & 0x80) != 0) {
        bus_write(pc->bus, space, address, size, u32(in) | (uint64_t)how << 40);
    } else {
        (void)bus_read(pc->bus, space, address, size);
    }
}

static void step_port(struct pc *pc, struct input *in)
{
    static const uint16_t ports[16] = {0x20, 0xa0, 0x4d0, 0x40,  0x42,  0x61,  0x60,  0x64,
                                       0x70, 0x71, 0x3f8, 0x3fc, 0x600, 0x60a, 0xcf8, 0xcfc};
    uint8_t which = u8(in);

    if ((which & 0xc0) == 0xc0) {
        access_bus(pc, in, BUS_PIO, HOTPLUG + (which & 0x1fu));
        return;
    }
    access_bus(pc, in, BUS_PIO, ports[which & 15] + (which >> 4 & 3u));
}

static void step_config(struct pc *pc, struct input *in)
{
    uint8_t reg = u8(in);

    bus_write(pc->bus, BUS_PIO, 0xcf8, 4, 0x80000800u | (reg & 0xfc));
    access_bus(pc, in, BUS_PIO, 0xcfc + (reg & 3u));
}

static void step_memory(struct pc *pc, struct input *in)
{
    uint8_t where = u8(in);
    uint64_t base = (where & 1) != 0 ? IOAPIC_BASE : WINDOW + (where >> 4) * 0x1000ull;

    access_bus(pc, in, BUS_MMIO, base + (u8(in) & (where & 2 ? 0xffu : 0x13u)));
}

static void step_lapic(struct pc *pc, struct input *in)
{
    uint8_t how = u8(in);
    struct lapic *lapic = lapic_get(pc->lapics, how & 1);
    uint32_t index = (how & 2) != 0 ? 0x800u + u8(in) : 0x1bu;
    unsigned offset = (u8(in) * 16u + (how >> 6) * 4u) & 0xfffu;
    uint64_t value = u32(in);

    int rc = 0;

    switch (how >> 2 & 7) {
    case 0:
        (void)lapic_mmio_read(lapic, offset, 1u << (how >> 5 & 3));
        break;
    case 1:
        lapic_mmio_write(lapic, offset, 4, value);
        break;
    case 2:
        rc = lapic_msr_read(lapic, index, &value);
        break;
    case 3:
        value = (how & 2) != 0 ? value : 0xfee00000 | (value & 0xfff);
        rc = lapic_msr_write(lapic, index, value, 0);
        break;
    case 4:
        rc = lapic_msr_write(lapic, X86_MSR_TSC_DEADLINE, value << (how >> 5), value);
        break;
    case 5:
        if (lapic_intr_ops.pending(lapic) && lapic_intr_ops.acknowledge(lapic) > 255) {
            abort();
        }
        break;
    case 6:
        lapic_set_cr8(lapic, (uint8_t)(value & 15));
        break;
    default:
        lapic_init_ipi(lapic);
        break;
    }
    if (rc != 0 && rc != -EINVAL) {
        abort(); /* #GP is the only answer besides success */
    }
}

static void stop_loop(void *opaque)
{
    loop_stop(opaque);
}

static void step_outside(struct pc *pc, struct input *in)
{
    uint8_t what = u8(in);

    switch (what & 7) {
    case 0:
        set_line(pc, what >> 3, (u8(in) & 1) != 0);
        break;
    case 1:
        pci_msix_notify(pc->dev, u8(in));
        break;
    case 2:
        pci_set_intx(pc->dev, (what & 8) != 0);
        break;
    case 3:
        acpi_pm_press_power_button(pc->pm);
        break;
    case 4:
        hotplug_reset(pc->hotplug);
        pci_host_reset(pc->host);
        break;
    case 5:
        lapic_send_msi(pc->lapics, u32(in), u32(in));
        break;
    default:
        must(loop_defer(pc->loop, stop_loop, pc->loop));
        must(loop_run(pc->loop));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {.data = data, .len = len};
    struct pc pc = {0};

    build(&pc);
    for (unsigned i = 0; i < MAX_STEPS && in.len > 0; i++) {
        switch (u8(&in) % 5) {
        case 0:
            step_port(&pc, &in);
            break;
        case 1:
            step_config(&pc, &in);
            break;
        case 2:
            step_memory(&pc, &in);
            break;
        case 3:
            step_lapic(&pc, &in);
            break;
        default:
            step_outside(&pc, &in);
            break;
        }
    }
    destroy(&pc);
    return 0;
}
