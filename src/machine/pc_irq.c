/*
 * Interrupt wiring. Who has the chips depends on the accelerator:
 *   full    all in the accelerator; lines and messages go straight to it
 *   split   local APICs in the accelerator, PIC and I/O APIC ours
 *   user    all ours
 */
#include "base/alarm.h"
#include "irqchip/i8259.h"
#include "irqchip/ioapic.h"
#include "irqchip/lapic.h"
#include "machine/machine_internal.h"
#include "machine/memory_map.h"

#include "base/log.h"

#define ISA_LINES 16u

/* ---- lines and messages ---- */

static void full_set_line(void *opaque, unsigned gsi, bool level)
{
    struct machine *machine = opaque;

    if (machine->accel->irq_line(machine->vm, gsi, level) != 0) {
        log_warn("interrupt line %u cannot be set, ignoring", gsi);
    }
}

static void accel_send_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct machine *machine = opaque;

    if (machine->accel->send_msi(machine->vm, address, data) != 0) {
        log_guest("interrupt message %#x to %#llx goes nowhere", data, (unsigned long long)address);
    }
}

/* The PIC sees the ISA lines, the I/O APIC all. */
static void chips_set_line(void *opaque, unsigned gsi, bool level)
{
    struct machine *machine = opaque;

    if (gsi < ISA_LINES) {
        i8259_set_line(machine->pic, gsi, level);
    }
    ioapic_set_line(machine->ioapic, gsi == MAP_GSI_PIT ? MAP_IOAPIC_PIT_PIN : gsi, level);
}

static void lapics_send_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct machine *machine = opaque;

    lapic_send_msi(machine->lapics, address, data);
}

static const struct irq_ops full_ops = {
    .set_line = full_set_line,
    .send_msi = accel_send_msi,
};

static const struct irq_ops split_ops = {
    .set_line = chips_set_line,
    .send_msi = accel_send_msi,
};

static const struct irq_ops user_ops = {
    .set_line = chips_set_line,
    .send_msi = lapics_send_msi,
};

/* ---- what the local APICs ask ---- */

static void on_kick(void *opaque, unsigned cpu)
{
    struct machine *machine = opaque;

    vcpu_kick(&machine->vcpus[cpu]);
}

static void on_nmi(void *opaque, unsigned cpu)
{
    struct machine *machine = opaque;

    vcpu_request(&machine->vcpus[cpu], VCPU_REQUEST_NMI);
}

static void on_init(void *opaque, unsigned cpu)
{
    struct machine *machine = opaque;

    vcpu_request(&machine->vcpus[cpu], VCPU_REQUEST_INIT);
}

static void on_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
    struct machine *machine = opaque;

    atomic_store(&machine->vcpus[cpu].sipi_vector, vector);
    vcpu_request(&machine->vcpus[cpu], VCPU_REQUEST_SIPI);
}

static void on_eoi(void *opaque, unsigned cpu, uint8_t vector)
{
    struct machine *machine = opaque;

    (void)cpu;
    ioapic_eoi(machine->ioapic, vector);
}

static int on_pic_acknowledge(void *opaque)
{
    struct machine *machine = opaque;

    return i8259_acknowledge(machine->pic);
}

static void on_arm(void *opaque, unsigned cpu, uint64_t deadline_ns)
{
    struct machine *machine = opaque;

    alarm_arm(machine->vcpus[cpu].apic_alarm, deadline_ns);
}

static void on_alarm(void *opaque)
{
    lapic_timer_expire(opaque);
}

static const struct lapic_ops lapic_ops = {
    .kick = on_kick,
    .nmi = on_nmi,
    .init = on_init,
    .sipi = on_sipi,
    .eoi = on_eoi,
    .pic_acknowledge = on_pic_acknowledge,
    .arm = on_arm,
};

/* ---- the PIC's output ---- */

/* Split: the accelerator's bootstrap processor takes the PIC's vectors from here. */
static bool split_pending(void *opaque)
{
    struct machine_vcpu *vcpu = opaque;

    return vcpu->index == 0 && atomic_load(&vcpu->machine->pic_output);
}

static int split_acknowledge(void *opaque)
{
    struct machine_vcpu *vcpu = opaque;

    return split_pending(opaque) ? i8259_acknowledge(vcpu->machine->pic) : -1;
}

static const struct vcpu_intr_ops split_intr_ops = {
    .pending = split_pending,
    .acknowledge = split_acknowledge,
};

static void on_pic_output(void *opaque, bool level)
{
    struct machine *machine = opaque;

    atomic_store(&machine->pic_output, level);
    if (machine->irqchip == VM_IRQCHIP_USER) {
        lapic_set_pic_output(machine->lapics, level);
    } else if (level) {
        vcpu_kick(&machine->vcpus[0]);
    }
}

/* Split: the accelerator reports EOIs of the vectors it knows the pins to use. */
static void on_route(void *opaque, unsigned pin, uint64_t address, uint32_t data)
{
    struct machine *machine = opaque;

    if (machine->accel->msi_route(machine->vm, pin, address, data) != 0) {
        log_guest("interrupt pin %u cannot be routed", pin);
    }
}

/* ---- life cycle ---- */

static int lapics_create(struct machine *machine)
{
    const struct lapic_set_config config = {
        .count = machine->config.cpus_max,
        .timer_hz = CPUID_CRYSTAL_HZ,
        .tsc_hz = machine->tsc_hz,
        .ops = &lapic_ops,
        .opaque = machine,
    };
    int rc = lapic_set_create(&config, &machine->lapics);

    for (unsigned i = 0; rc == 0 && i < machine->config.cpus_max; i++) {
        rc = alarm_create(machine->loop, on_alarm, lapic_get(machine->lapics, i),
                          &machine->vcpus[i].apic_alarm);
    }
    return rc;
}

static int chips_create(struct machine *machine)
{
    bool split = machine->irqchip == VM_IRQCHIP_SPLIT;
    int rc = split ? 0 : lapics_create(machine);

    if (rc == 0) {
        rc = i8259_create(machine->bus, on_pic_output, machine, &machine->pic);
    }
    if (rc == 0) {
        bool tell = split && machine->accel->msi_route != NULL;

        rc = ioapic_create(machine->bus, MAP_IOAPIC, &machine->irq, tell ? on_route : NULL,
                           &machine->ioapic);
    }
    return rc;
}

int pc_irq_create(struct machine *machine, struct err *err)
{
    static const struct irq_ops *const ops[] = {
        [VM_IRQCHIP_USER] = &user_ops,
        [VM_IRQCHIP_SPLIT] = &split_ops,
        [VM_IRQCHIP_FULL] = &full_ops,
    };
    int rc = 0;

    machine->irq = (struct irq_router){.ops = ops[machine->irqchip], .opaque = machine};
    if (machine->irqchip != VM_IRQCHIP_FULL) {
        rc = chips_create(machine);
    }
    return rc == 0 ? 0 : err_set_errno(err, rc, "cannot make the interrupt controllers");
}

void pc_irq_destroy(struct machine *machine)
{
    ioapic_destroy(machine->ioapic);
    machine->ioapic = NULL;
    i8259_destroy(machine->pic);
    machine->pic = NULL;
    for (unsigned i = 0; i < machine->config.cpus_max; i++) {
        alarm_destroy(machine->vcpus[i].apic_alarm);
        machine->vcpus[i].apic_alarm = NULL;
    }
    lapic_set_destroy(machine->lapics);
    machine->lapics = NULL;
}

int pc_irq_reset(struct machine *machine)
{
    if (machine->ioapic != NULL) {
        ioapic_reset(machine->ioapic);
        i8259_reset(machine->pic);
    }
    for (unsigned i = 0; machine->lapics != NULL && i < machine->config.cpus_max; i++) {
        lapic_reset(lapic_get(machine->lapics, i));
    }
    if (machine->irqchip != VM_IRQCHIP_USER && machine->accel->irqchip_reset != NULL) {
        return machine->accel->irqchip_reset(machine->vm);
    }
    return 0;
}

void pc_irq_vcpu_env(struct machine *machine, struct machine_vcpu *vcpu)
{
    vcpu->env.cpuid = &vcpu->cpuid;
    if (machine->irqchip == VM_IRQCHIP_USER) {
        vcpu->lapic = lapic_get(machine->lapics, vcpu->index);
        vcpu->env.intr = &lapic_intr_ops;
        vcpu->env.opaque = vcpu->lapic;
    } else if (machine->irqchip == VM_IRQCHIP_SPLIT) {
        vcpu->env.intr = &split_intr_ops;
        vcpu->env.opaque = vcpu;
    }
}
