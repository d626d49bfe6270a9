/*
 * The chips of a PC that are neither interrupt controllers nor virtio.
 *
 * Each is created on a bus by the thread that builds the machine, before vCPUs
 * and the loop run, and destroyed after both have stopped. Register accesses
 * come from any vCPU thread; each chip has a mutex (LOCK_RANK_DEVICE). reset
 * makes it as freshly created; vCPUs are stopped then. Creation fails with
 * -ENOMEM, -EMFILE, or -EEXIST where the addresses are taken. destroy accepts
 * NULL.
 */
#ifndef CORBEL_DEV_DEV_H
#define CORBEL_DEV_DEV_H

#include "base/compiler.h"
#include "bus/bus.h"
#include "bus/irq.h"

#include <stdbool.h>
#include <stdint.h>

struct chardev;
struct loop;

struct dev_env {
    struct bus *bus;
    struct loop *loop;
    struct irq_router irq;
};

/* 16550A serial port (PC16550D datasheet), eight ports from base. The chardev outlives it. */
struct uart_16550;
int uart_16550_create(const struct dev_env *env, uint16_t base, unsigned gsi,
                      struct chardev *chardev, struct uart_16550 **ret_uart) MUST_CHECK;
void uart_16550_destroy(struct uart_16550 *uart);
void uart_16550_reset(struct uart_16550 *uart);

/* MC146818 real-time clock with 128 bytes of CMOS, ports 0x70 and 0x71; runs on UTC. A reset
 * keeps time and CMOS, as its battery does. */
struct rtc_mc146818;
int rtc_mc146818_create(const struct dev_env *env, unsigned gsi, struct rtc_mc146818 **ret_rtc)
    MUST_CHECK;
void rtc_mc146818_destroy(struct rtc_mc146818 *rtc);
void rtc_mc146818_reset(struct rtc_mc146818 *rtc);

/* i8254 interval timer, ports 0x40 to 0x43, and port 0x61 with channel 2's gate and output.
 * Channel 0 drives gsi. */
struct pit_i8254;
int pit_i8254_create(const struct dev_env *env, unsigned gsi, struct pit_i8254 **ret_pit)
    MUST_CHECK;
void pit_i8254_destroy(struct pit_i8254 *pit);
void pit_i8254_reset(struct pit_i8254 *pit);

/* What a chip asks of the machine; any vCPU thread, with no lock held. */
struct dev_power_ops {
    void (*reset)(void *opaque);
    void (*power_off)(void *opaque);
    void (*debug_exit)(void *opaque, uint8_t code);
};

/* i8042 keyboard controller without keyboard, ports 0x60 and 0x64: for its reset line. */
struct kbd_i8042;
int kbd_i8042_create(const struct dev_env *env, const struct dev_power_ops *ops, void *opaque,
                     struct kbd_i8042 **ret_kbd) MUST_CHECK;
void kbd_i8042_destroy(struct kbd_i8042 *kbd);
void kbd_i8042_reset(struct kbd_i8042 *kbd);

/*
 * ACPI fixed hardware (ACPI 6.3 §4.8), ACPI_PM_PORTS ports from base: PM1a event and
 * control, the PM timer, and a reset register. SCI on gsi, active high. S5 by
 * SLP_TYP ACPI_PM_SLP_TYP_S5.
 */
#define ACPI_PM_PORTS 32u
#define ACPI_PM_EVENT 0x0u   /* 4 bytes */
#define ACPI_PM_CONTROL 0x4u /* 2 bytes */
#define ACPI_PM_TIMER 0x8u   /* 4 bytes */
#define ACPI_PM_RESET 0xcu   /* 1 byte */
#define ACPI_PM_GPE 0x10u    /* 2 bytes: status and enable of eight general purpose events */
#define ACPI_PM_RESET_VALUE 0x01u
#define ACPI_PM_SLP_TYP_S5 5u

struct acpi_pm;
int acpi_pm_create(const struct dev_env *env, uint16_t base, unsigned gsi,
                   const struct dev_power_ops *ops, void *opaque, struct acpi_pm **ret_pm)
    MUST_CHECK;
void acpi_pm_destroy(struct acpi_pm *pm);
void acpi_pm_reset(struct acpi_pm *pm);
/* True when the guest has enabled the button and so will hear of it. Any thread. */
bool acpi_pm_press_power_button(struct acpi_pm *pm);
/* A general purpose event (0 to 7, §4.8.4.1) happens. Any thread. */
void acpi_pm_raise_gpe(struct acpi_pm *pm, unsigned event);

/*
 * Registers for up to 32 devices that come and go, of a bit each, for methods in the DSDT:
 * those that came, and those that shall leave (reading takes the bits); to be written, those
 * that the guest has let go; those that are there; and, as _OST has it, of whom the guest
 * says what (ACPI 6.3 §6.3.5). gpe (0 to 7) is raised when there is something to read.
 */
#define HOTPLUG_PORTS 24u
#define HOTPLUG_CAME 0x0u /* 4 bytes each */
#define HOTPLUG_LEAVE 0x4u
#define HOTPLUG_EJECT 0x8u
#define HOTPLUG_PRESENT 0xcu
#define HOTPLUG_WHO 0x10u
#define HOTPLUG_STATUS 0x14u

/* On a vCPU's thread, which must not be blocked. */
struct hotplug_ops {
    void (*ejected)(void *opaque, uint32_t devices);             /* the guest lets go of them */
    uint32_t (*present)(void *opaque);                           /* may be NULL */
    void (*status)(void *opaque, unsigned index, uint32_t code); /* may be NULL; index < 32 */
};

struct hotplug_config {
    uint16_t base;
    unsigned gpe;
    struct acpi_pm *pm;
    const struct hotplug_ops *ops;
    void *opaque;
};

struct hotplug;
int hotplug_create(const struct dev_env *env, const struct hotplug_config *config,
                   struct hotplug **ret_hotplug) MUST_CHECK;
void hotplug_destroy(struct hotplug *hotplug);
void hotplug_reset(struct hotplug *hotplug);
/* Tells the guest of device index (below 32). The later of the two holds. Any thread. */
void hotplug_came(struct hotplug *hotplug, unsigned index);
void hotplug_ask(struct hotplug *hotplug, unsigned index);

/* One port for test guests: a byte written ends the machine with it as code. */
struct debug_exit;
int debug_exit_create(const struct dev_env *env, uint16_t port, const struct dev_power_ops *ops,
                      void *opaque, struct debug_exit **ret_dev) MUST_CHECK;
void debug_exit_destroy(struct debug_exit *dev);

#endif
