/* Interrupts and doorbells that the kernel delivers by itself. */
#include "kvm/kvm_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void route_pin(struct kvm_irq_routing *routing, unsigned gsi, unsigned chip, unsigned pin)
{
    routing->entries[routing->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = chip, .pin = pin},
    };
}

/*
 * KVM_SET_GSI_ROUTING replaces all routes, so the pins of the in-kernel PIC and
 * I/O APIC are said again. GSI 0 is pin 2 of the I/O APIC, as ACPI overrides it.
 */
static void routes_init(struct kvm_vm *vm)
{
    if (vm->irqchip != VM_IRQCHIP_FULL) {
        return;
    }
    for (unsigned gsi = 0; gsi < KVM_IOAPIC_PINS; gsi++) {
        if (gsi < 16 && gsi != 2) {
            route_pin(vm->routing, gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
                      gsi & 7);
        }
        if (gsi != 2) {
            route_pin(vm->routing, gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi);
        }
    }
}

static int chips_save(struct kvm_vm *vm)
{
    for (unsigned i = 0; i < ARRAY_LEN(vm->chips); i++) {
        vm->chips[i].chip_id = i;
        const int rc = kvm_ioctl(vm->vm_fd, KVM_GET_IRQCHIP, &vm->chips[i]);
        if (rc < 0) {
            return rc;
        }
    }
    return kvm_ioctl(vm->vm_fd, KVM_GET_PIT2, &vm->pit);
}

static int full_create(struct kvm_vm *vm)
{
    /* The dummy speaker answers port 0x61, whose gate of channel 2 guests calibrate with. */
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};

    int rc = kvm_ioctl(vm->vm_fd, KVM_CREATE_IRQCHIP, NULL);
    if (rc == 0) {
        rc = kvm_ioctl(vm->vm_fd, KVM_CREATE_PIT2, &pit);
    }
    if (rc == 0) {
        rc = kvm_ioctl(vm->vm_fd, KVM_SET_GSI_ROUTING, vm->routing);
    }
    if (rc == 0) {
        rc = chips_save(vm);
    }
    return rc;
}

int kvm_irqchip_create(struct kvm_vm *vm, struct err *err)
{
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {KVM_IOAPIC_PINS}};
    int rc = 0;

    vm->routing = calloc(1, sizeof(*vm->routing) + (2 * KVM_IOAPIC_PINS + KVM_MAX_MSI_ROUTES) *
                                                       sizeof(struct kvm_irq_routing_entry));
    if (vm->routing == NULL) {
        return err_set_errno(err, -ENOMEM, "KVM interrupt routes");
    }
    routes_init(vm);
    if (vm->irqchip == VM_IRQCHIP_FULL) {
        rc = full_create(vm);
    } else if (vm->irqchip == VM_IRQCHIP_SPLIT) {
        rc = kvm_ioctl(vm->vm_fd, KVM_ENABLE_CAP, &split);
    }
    if (rc < 0) {
        return err_set_errno(err, rc, "KVM cannot make the interrupt controllers");
    }
    return 0;
}

int kvm_irqchip_reset(struct accel_vm *accel_vm)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);
    int rc = 0;

    if (vm->irqchip == VM_IRQCHIP_FULL) {
        for (unsigned i = 0; rc == 0 && i < ARRAY_LEN(vm->chips); i++) {
            rc = kvm_ioctl(vm->vm_fd, KVM_SET_IRQCHIP, &vm->chips[i]);
        }
        if (rc == 0) {
            rc = kvm_ioctl(vm->vm_fd, KVM_SET_PIT2, &vm->pit);
        }
    }
    if (kvm_vm_has_lapic(vm)) {
        for (unsigned i = 0; rc == 0 && i < vm->cpu_count; i++) {
            const int fd = atomic_load(&vm->cpu_fds[i]);
            if (fd >= 0) {
                rc = kvm_ioctl(fd, KVM_SET_LAPIC, &vm->lapic[i]);
            }
        }
    }
    return rc;
}

int kvm_irq_line(struct accel_vm *accel_vm, unsigned gsi, bool level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};

    if (kvm_vm_of(accel_vm)->irqchip != VM_IRQCHIP_FULL) {
        return -EINVAL;
    }
    const int rc = kvm_ioctl(kvm_vm_of(accel_vm)->vm_fd, KVM_IRQ_LINE, &line);
    return rc < 0 ? rc : 0;
}

int kvm_send_msi(struct accel_vm *accel_vm, uint64_t address, uint32_t data)
{
    struct kvm_msi msi = {
        .address_lo = (uint32_t)address,
        .address_hi = (uint32_t)(address >> 32),
        .data = data,
    };

    /* Positive: delivered. 0: the guest has no such CPU or blocks it, as on a real bus. */
    const int rc = kvm_ioctl(kvm_vm_of(accel_vm)->vm_fd, KVM_SIGNAL_MSI, &msi);
    return rc < 0 ? rc : 0;
}

int kvm_ioeventfd(struct accel_vm *accel_vm, bool is_pio, uint64_t address, unsigned size_bytes,
                  bool match, uint64_t data, int fd, bool add)
{
    struct kvm_ioeventfd request = {
        .datamatch = match ? data : 0,
        .addr = address,
        .len = size_bytes,
        .fd = fd,
        .flags = (is_pio ? KVM_IOEVENTFD_FLAG_PIO : 0) |
                 (match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
                 (add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
    };

    return kvm_ioctl(kvm_vm_of(accel_vm)->vm_fd, KVM_IOEVENTFD, &request);
}

static struct kvm_irq_routing_entry *route_find(struct kvm_irq_routing *routing, unsigned gsi)
{
    for (uint32_t i = 0; i < routing->nr; i++) {
        if (routing->entries[i].gsi == gsi && routing->entries[i].type == KVM_IRQ_ROUTING_MSI) {
            return &routing->entries[i];
        }
    }
    return NULL;
}

int kvm_msi_route(struct accel_vm *accel_vm, unsigned gsi, uint64_t address, uint32_t data)
{
    struct kvm_vm *vm = kvm_vm_of(accel_vm);
    int rc = 0;

    if (!kvm_vm_has_lapic(vm) || (vm->irqchip == VM_IRQCHIP_FULL && gsi < KVM_IOAPIC_PINS)) {
        return -EINVAL;
    }
    mutex_lock(&vm->lock);
    struct kvm_irq_routing_entry *entry = route_find(vm->routing, gsi);
    if (entry == NULL && vm->route_count == KVM_MAX_MSI_ROUTES) {
        rc = -ENOSPC;
    } else {
        if (entry == NULL) {
            entry = &vm->routing->entries[vm->routing->nr++];
            vm->route_count++;
        }
        *entry = (struct kvm_irq_routing_entry){
            .gsi = gsi,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)address,
                      .address_hi = (uint32_t)(address >> 32),
                      .data = data},
        };
        rc = kvm_ioctl(vm->vm_fd, KVM_SET_GSI_ROUTING, vm->routing);
    }
    mutex_unlock(&vm->lock);
    return rc;
}

int kvm_irqfd(struct accel_vm *accel_vm, unsigned gsi, int fd, bool add)
{
    struct kvm_irqfd request = {
        .fd = (uint32_t)fd,
        .gsi = gsi,
        .flags = add ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
    };

    return kvm_ioctl(kvm_vm_of(accel_vm)->vm_fd, KVM_IRQFD, &request);
}
