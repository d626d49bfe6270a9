/* The hardware of the machine: built from top to bottom, taken down from bottom to top. */
#include "base/io.h"
#include "base/loop.h"
#include "bus/pci.h"
#include "dev/chardev.h"
#include "dev/console_log.h"
#include "engine/engine.h"
#include "machine/accel_table.h"
#include "machine/boot.h"
#include "machine/machine_internal.h"
#include "machine/memory_map.h"
#include "netdev/netdev.h"
#include "virtio/virtio_devices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* The name that guest agents look for. */
#define AGENT_PORT "org.qemu.guest_agent.0"

/* ---- power ---- */

static void on_reset(void *opaque)
{
    machine_request_reset(opaque);
}

static void on_power_off(void *opaque)
{
    machine_request_end(opaque, MACHINE_END_POWEROFF, 0, NULL);
}

static void on_debug_exit(void *opaque, uint8_t code)
{
    machine_request_end(opaque, MACHINE_END_DEBUG_EXIT, code, NULL);
}

static const struct dev_power_ops power_ops = {
    .reset = on_reset,
    .power_off = on_power_off,
    .debug_exit = on_debug_exit,
};

/* ---- accelerator ---- */

static void on_died(void *opaque, const struct err *why)
{
    machine_request_end(opaque, MACHINE_END_ERROR, 0, why);
}

/*
 * In lock step the guest takes a hundred times as long for what it does, and for what it gives up
 * after some seconds it would. So its clock, the TSC, is said to run faster than it does.
 */
#define CHECK_CLOCK_RATIO 16u

static int vm_create(struct machine *machine, struct err *err)
{
    const struct machine_config *config = &machine->config;
    struct accel_caps caps = {0};
    struct accel_vm_config vm_config = {
        .gmem = machine->gmem,
        .stepper = &accel_stepper,
        .vcpu_count = config->cpus_max,
        .reference_only = config->engine_reference,
        .check = config->engine_check,
        .native_when = config->engine_native,
        .code_cache_bytes = config->code_cache_bytes,
        .died = on_died,
        .opaque = machine,
    };
    bool is_split_wanted;
    int rc;

    machine->tsc_hz = cpuid_tsc_hz();
    if (config->engine_check) {
        cpuid_set_tsc_hz(machine->tsc_hz * CHECK_CLOCK_RATIO);
    }
    rc = accel_choose(config->engine, err, &machine->accel, machine->engine_reason,
                      sizeof(machine->engine_reason), &vm_config.emulated);

    if (rc != 0) {
        return rc;
    }
    if (config->engine_reference) {
        machine->accel = &engine_accel_ops; /* to look into the engine: in this process */
    }
    machine->accel->caps(&caps);
    is_split_wanted = config->kvm_split_irqchip && caps.irqchip_split;
    machine->irqchip = VM_IRQCHIP_USER;
    if (caps.irqchip_full && !vm_config.emulated && !is_split_wanted) {
        machine->irqchip = VM_IRQCHIP_FULL; /* the stepper takes interrupts too */
    } else if (is_split_wanted ||
               (caps.irqchip_split && !caps.irqchip_full && !config->engine_check)) {
        machine->irqchip = VM_IRQCHIP_SPLIT; /* lock step: deadlines in the host's time are ours */
    }
    vm_config.irqchip = machine->irqchip;
    if (vm_config.emulated && machine->irqchip == VM_IRQCHIP_USER) {
        size_t len = strlen(machine->engine_reason);

        (void)snprintf(machine->engine_reason + len, sizeof(machine->engine_reason) - len,
                       "; our interpreter runs user mode");
    }
    return machine->accel->vm_create(&vm_config, err, &machine->vm);
}

static int doorbell_set(void *opaque, enum bus_space space, uint64_t address, unsigned size_bytes,
                        bool match, uint64_t data, int fd, bool add)
{
    struct machine *machine = opaque;

    return machine->accel->ioeventfd(machine->vm, space == BUS_PIO, address, size_bytes, match,
                                     data, fd, add);
}

static int bus_build(struct machine *machine, struct err *err)
{
    const struct bus_doorbell_hook hook = {.set = doorbell_set, .opaque = machine};
    struct accel_caps caps = {0};
    int rc = bus_create(&machine->bus);

    if (rc != 0) {
        return err_set_errno(err, rc, "cannot make the bus");
    }
    machine->accel->caps(&caps);
    if (caps.ioeventfd && machine->accel->ioeventfd != NULL) {
        bus_set_doorbell_hook(machine->bus, &hook);
    }
    return 0;
}

/* ---- chips ---- */

static int chardev_build(struct machine *machine, const struct machine_chardev *config,
                         const char *what, struct err *err, struct chardev **ret_chardev)
{
    struct chardev_config chardev_config = {.in_fd = -1, .out_fd = -1, .listen_fd = -1};
    int rc = 0;

    if (config->kind == MACHINE_CHARDEV_FDS) {
        chardev_config.in_fd = config->in_fd;
        chardev_config.out_fd = config->out_fd;
        chardev_config.keep_fds = config->keep_fds;
    } else if (config->kind == MACHINE_CHARDEV_LISTEN) {
        chardev_config.listen_fd = config->listen_fd;
    }
    rc = chardev_create(machine->loop, &chardev_config, ret_chardev);
    return rc == 0 ? 0 : err_set_errno(err, rc, "cannot use the %s's descriptors", what);
}

/* Keeps the serial port's output in a file, too. */
static int serial_log_build(struct machine *machine, struct err *err)
{
    struct console_log *log = NULL;
    int rc = machine->config.serial.is_logged
                 ? console_log_create(machine->loop, machine->config.serial.log_fd, &log)
                 : 0;

    if (rc < 0) {
        return err_set_errno(err, rc, "cannot use the serial port's log");
    }
    if (log != NULL) {
        chardev_set_log(machine->serial, log);
    }
    return 0;
}

/* What lets PCI devices and, where there may be more of them, CPUs come and go. */
static int hotplug_build(struct machine *machine, const struct dev_env *env)
{
    struct hotplug_config config = {
        .base = MAP_PORT_PCI_HOTPLUG,
        .gpe = MAP_GPE_PCI_HOTPLUG,
        .pm = machine->pm,
        .ops = &drives_hotplug_ops,
        .opaque = machine,
    };
    int rc = hotplug_create(env, &config, &machine->hotplug);

    if (rc == 0 && machine->config.cpus_max > machine->config.cpus) {
        config.base = MAP_PORT_CPU_HOTPLUG;
        config.gpe = MAP_GPE_CPU_HOTPLUG;
        config.ops = &cpus_hotplug_ops;
        rc = hotplug_create(env, &config, &machine->cpu_hotplug);
    }
    return rc;
}

static int chips_build(struct machine *machine, struct err *err)
{
    const struct dev_env env = {.bus = machine->bus, .loop = machine->loop, .irq = machine->irq};
    int rc = 0;

    if (machine->irqchip != VM_IRQCHIP_FULL) { /* else the accelerator has it */
        rc = pit_i8254_create(&env, MAP_GSI_PIT, &machine->pit);
    }
    if (rc == 0) {
        rc = rtc_mc146818_create(&env, MAP_GSI_RTC, &machine->rtc);
    }
    if (rc == 0) {
        rc = kbd_i8042_create(&env, &power_ops, machine, &machine->kbd);
    }
    if (rc == 0) {
        rc = acpi_pm_create(&env, MAP_PORT_ACPI_PM, MAP_GSI_SCI, &power_ops, machine, &machine->pm);
    }
    if (rc == 0) {
        rc = hotplug_build(machine, &env);
    }
    if (rc == 0 && machine->config.has_debug_exit) {
        rc =
            debug_exit_create(&env, MAP_PORT_DEBUG_EXIT, &power_ops, machine, &machine->debug_exit);
    }
    if (rc != 0) {
        return err_set_errno(err, rc, "cannot make the machine's chips");
    }
    rc = chardev_build(machine, &machine->config.serial, "serial port", err, &machine->serial);
    if (rc != 0) {
        return rc;
    }
    rc = serial_log_build(machine, err);
    if (rc != 0) {
        return rc;
    }
    rc = uart_16550_create(&env, MAP_PORT_COM1, MAP_GSI_COM1, machine->serial, &machine->uart);
    return rc == 0 ? 0 : err_set_errno(err, rc, "cannot make the serial port");
}

/* ---- virtio ---- */

static int virtio_built(struct machine *machine, int rc, struct virtio_dev *dev, const char *what,
                        struct err *err)
{
    if (rc != 0) {
        return err_set_errno(err, rc, "cannot make the virtual %s", what);
    }
    machine->virtio[machine->virtio_count] = dev;
    machine->virtio_count++;
    return 0;
}

static void on_address(void *opaque)
{
    struct machine *machine = opaque;

    io_eventfd_signal(machine->event_fd); /* who watches looks for itself */
}

static int user_net_create(struct machine *machine, struct err *err)
{
    const struct machine_net *net = &machine->config.net;
    struct netdev_user_config config = {.forward_count = net->forward_count};

    for (unsigned i = 0; i < net->forward_count; i++) {
        config.forwards[i] = (struct netdev_forward){
            .host_address = net->forwards[i].host_address,
            .host_port = net->forwards[i].host_port,
            .guest_port = net->forwards[i].guest_port,
            .is_udp = net->forwards[i].is_udp,
        };
    }
    return netdev_user_create(&config, err, &machine->netdev);
}

static int tap_net_create(struct machine *machine, struct err *err)
{
    const struct machine_net *net = &machine->config.net;
    CLEANUP_CLOSE int fd = fcntl(net->tap_fd, F_DUPFD_CLOEXEC, 0);
    struct netdev_tap_config config = {
        .fd = fd, .mtu = net->tap_mtu, .is_guarded = net->is_guarded};
    int rc;

    if (fd < 0) {
        return err_set_errno(err, -errno, "the network card's tap cannot be taken");
    }
    memcpy(config.mac, net->mac, sizeof(config.mac));
    rc = netdev_tap_create(&config, err, &machine->netdev);
    if (rc == 0) {
        (void)steal_fd(&fd);
    }
    return rc;
}

static int net_build(struct machine *machine, const struct virtio_env *env, struct err *err)
{
    const struct machine_net *net = &machine->config.net;
    struct virtio_dev *dev = NULL;
    int rc = 0;

    if (!net->is_present) {
        return 0;
    }
    rc = net->is_tap ? tap_net_create(machine, err) : user_net_create(machine, err);
    if (rc != 0) {
        return rc;
    }
    rc = netdev_set_limits(machine->netdev, &net->limits);
    if (rc != 0) {
        return err_set_errno(err, rc, "the network card cannot be limited");
    }
    netdev_watch_address(machine->netdev, on_address, machine);
    rc = virtio_net_create(env, machine->netdev, net->mac, &dev);
    return virtio_built(machine, rc, dev, "network card", err);
}

/* On a vCPU's thread: who watches the machine looks for itself. */
static void on_balloon(void *opaque, uint64_t actual_bytes)
{
    struct machine *machine = opaque;

    if (atomic_exchange(&machine->balloon_bytes, actual_bytes) != actual_bytes) {
        if (atomic_load(&machine->memory_given_up) != 0) {
            (void)atomic_fetch_add(&machine->size_changes, 1);
        }
        io_eventfd_signal(machine->event_fd);
    }
}

/* A virtio console or port and its chardev: two ways of saying the same. */
static size_t port_write(void *opaque, const uint8_t *data, size_t len)
{
    struct machine_port *port = opaque;
    size_t taken = chardev_write(port->chardev, data, len);

    if (taken < len) {
        (void)chardev_room(port->chardev); /* asks to be told of room */
    }
    return taken;
}

static void port_may_input(void *opaque)
{
    struct machine_port *port = opaque;

    chardev_input_ready(port->chardev);
}

static void port_guest_open(void *opaque, bool is_open)
{
    struct machine_port *port = opaque;

    atomic_store(&port->machine->is_agent_there, is_open);
    io_eventfd_signal(port->machine->event_fd);
}

static size_t port_input(void *opaque, const uint8_t *data, size_t len)
{
    struct machine_port *port = opaque;

    return virtio_console_input(port->dev, data, len);
}

static void port_output_ready(void *opaque)
{
    struct machine_port *port = opaque;

    virtio_console_output_ready(port->dev);
}

/* name: of a named port; NULL: a console. */
static int port_build(struct machine *machine, const struct virtio_env *env,
                      const struct machine_chardev *config, const char *name,
                      struct machine_port *port, struct err *err)
{
    static const struct virtio_console_ops device_ops = {
        .write = port_write,
        .may_input = port_may_input,
        .guest_open = port_guest_open,
    };
    static const struct chardev_frontend_ops chardev_ops = {
        .input = port_input,
        .output_ready = port_output_ready,
    };
    const char *what = name != NULL ? "guest agent's port" : "console";
    int rc = 0;

    if (config->kind == MACHINE_CHARDEV_NONE) {
        return 0;
    }
    port->machine = machine;
    rc = chardev_build(machine, config, what, err, &port->chardev);
    if (rc != 0) {
        return rc;
    }
    rc = name != NULL ? virtio_console_create_port(env, name, &device_ops, port, &port->dev)
                      : virtio_console_create(env, &device_ops, port, &port->dev);
    chardev_set_frontend(port->chardev, &chardev_ops, port);
    return virtio_built(machine, rc, port->dev, what, err);
}

static int virtio_build(struct machine *machine, struct err *err)
{
    const struct machine_config *config = &machine->config;
    const struct virtio_env env = {
        .host = machine->pci, .gmem = machine->gmem, .loop = machine->loop};
    struct virtio_dev *dev = NULL;
    int rc = drives_create(machine, err);

    if (rc == 0) {
        rc = net_build(machine, &env, err);
    }
    if (rc == 0) {
        rc = port_build(machine, &env, &config->console, NULL, &machine->console, err);
    }
    if (rc == 0) {
        rc = port_build(machine, &env, &config->agent, AGENT_PORT, &machine->agent, err);
    }
    if (rc == 0 && config->has_rng) {
        rc = virtio_rng_create(&env, &dev);
        rc = virtio_built(machine, rc, dev, "entropy device", err);
    }
    if (rc == 0 && config->has_balloon) {
        rc = virtio_balloon_create(&env, on_balloon, machine, &machine->balloon);
        rc = virtio_built(machine, rc, machine->balloon, "balloon", err);
    }
    if (rc == 0 && gmem_pluggable(machine->gmem) != NULL) {
        rc = virtio_mem_create(&env, memory_on_plugged, machine, &machine->plugged);
        rc = virtio_built(machine, rc, machine->plugged, "memory device", err);
    }
    if (rc == 0 && config->has_vsock) {
        rc = virtio_vsock_create(&env, config->vsock_guest_cid, config->vsock_socket_path, err,
                                 &dev);
        rc = rc != 0 ? rc : virtio_built(machine, 0, dev, "socket device", err);
    }
    return rc;
}

/* ---- all of it ---- */

int pc_create(struct machine *machine, struct err *err)
{
    const struct machine_config *config = &machine->config;
    int rc = gmem_create_pluggable(config->memory_bytes, memory_pluggable_bytes(config), err,
                                   &machine->gmem);

    if (rc == 0) {
        const struct acpi_config acpi = {
            .cpus_present = atomic_load(&machine->cpus_present),
            .cpus_max = config->cpus_max,
            .has_cpu_hotplug = config->cpus_max > config->cpus,
        };

        rc = boot_create(machine->gmem, &acpi, config->kernel, config->initrd, config->cmdline, err,
                         &machine->boot);
    }
    if (rc == 0) {
        rc = vm_create(machine, err);
    }
    if (rc == 0) {
        rc = loop_create(&machine->loop);
        rc = rc == 0 ? 0 : err_set_errno(err, rc, "cannot make an event loop");
    }
    if (rc == 0) {
        rc = bus_build(machine, err);
    }
    if (rc == 0) {
        rc = pc_irq_create(machine, err);
    }
    if (rc == 0) {
        rc = chips_build(machine, err);
    }
    if (rc == 0) {
        rc = pci_host_create(machine->bus, &machine->irq, MAP_PCI_WINDOW, MAP_PCI_WINDOW_BYTES,
                             &machine->pci);
        rc = rc == 0 ? 0 : err_set_errno(err, rc, "cannot make the PCI bus");
    }
    if (rc == 0) {
        rc = virtio_build(machine, err);
    }
    for (unsigned i = 0; rc == 0 && i < config->cpus_max; i++) {
        cpuid_table_init(&machine->vcpus[i].cpuid, i, config->cpus_max);
        pc_irq_vcpu_env(machine, &machine->vcpus[i]);
    }
    return rc;
}

void pc_destroy(struct machine *machine)
{
    drives_stop(machine);
    if (machine->netdev != NULL) {
        netdev_stop(machine->netdev);
    }
    while (machine->virtio_count > 0) {
        machine->virtio_count--;
        virtio_dev_destroy(machine->virtio[machine->virtio_count]);
    }
    drives_destroy(machine);
    netdev_destroy(machine->netdev);
    pci_host_destroy(machine->pci);
    uart_16550_destroy(machine->uart);
    chardev_destroy(machine->agent.chardev);
    chardev_destroy(machine->console.chardev);
    chardev_destroy(machine->serial);
    debug_exit_destroy(machine->debug_exit);
    hotplug_destroy(machine->cpu_hotplug);
    hotplug_destroy(machine->hotplug);
    acpi_pm_destroy(machine->pm);
    kbd_i8042_destroy(machine->kbd);
    rtc_mc146818_destroy(machine->rtc);
    pit_i8254_destroy(machine->pit);
    pc_irq_destroy(machine);
    bus_destroy(machine->bus);
    loop_destroy(machine->loop);
    if (machine->vm != NULL) {
        machine->accel->vm_destroy(machine->vm);
    }
    boot_destroy(machine->boot);
    gmem_destroy(machine->gmem);
}

int pc_start(struct machine *machine, struct err *err)
{
    int rc = drives_start(machine, err);

    if (rc == 0 && machine->netdev != NULL) {
        rc = netdev_start(machine->netdev, err);
    }
    return rc;
}

int pc_reset(struct machine *machine, struct err *err)
{
    int rc = 0;

    drives_reset(machine);
    for (unsigned i = 0; i < machine->virtio_count; i++) {
        virtio_dev_reset(machine->virtio[i]);
    }
    if (machine->plugged != NULL) {
        virtio_mem_unplug_all(machine->plugged);
    }
    pci_host_reset(machine->pci);
    uart_16550_reset(machine->uart);
    acpi_pm_reset(machine->pm);
    hotplug_reset(machine->hotplug);
    if (machine->cpu_hotplug != NULL) {
        hotplug_reset(machine->cpu_hotplug);
    }
    kbd_i8042_reset(machine->kbd);
    rtc_mc146818_reset(machine->rtc);
    if (machine->pit != NULL) {
        pit_i8254_reset(machine->pit);
    }
    rc = pc_irq_reset(machine);
    if (rc != 0) {
        return err_set_errno(err, rc, "cannot reset the interrupt controllers");
    }
    for (unsigned i = 0; i < gmem_region_count(machine->gmem); i++) {
        const struct gmem_region *region = gmem_region(machine->gmem, i);

        rc = gmem_discard(machine->gmem, gpa(region->gpa), region->size_bytes);
        if (rc != 0) {
            return err_set_errno(err, rc, "cannot clear the guest's memory");
        }
    }
    return boot_load_again(machine->boot, cpus_reset(machine), err);
}

void pc_initial_state(const struct machine *machine, unsigned cpu, struct vcpu_state *ret_state)
{
    vcpu_state_reset(ret_state, cpu == 0);
    if (cpu == 0) {
        boot_set_entry(machine->boot, ret_state);
    }
}
