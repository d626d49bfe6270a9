#include "machine/acpi.h"

#include "base/wire.h"
#include "bus/pci.h"
#include "dev/dev.h"
#include "machine/aml.h"
#include "machine/memory_map.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define HEADER_BYTES 36u
#define RSDP_BYTES 36u
#define FADT_BYTES 276u
#define FACS_BYTES 64u

#define OEM_ID "CORBEL"
#define OEM_TABLE_ID "CORBELPC"

/* The registers of dev/hotplug.c, in their order. */
#define HOTPLUG_NAMES "CAMELEAVEJCTPRESWHO_STAT"

/* Notify()'s codes (§5.6.6). */
#define NOTIFY_DEVICE_CHECK 1u
#define NOTIFY_EJECT_REQUEST 3u

/* MADT flags of a local APIC (§5.2.12.2). */
#define LAPIC_ENABLED 1u
#define LAPIC_ONLINE_CAPABLE 2u
#define LAPIC_ENTRY_BYTES 8u

/* MADT interrupt flags: polarity and trigger. */
#define MPS_ACTIVE_HIGH_LEVEL 0x000du

struct tables {
    uint8_t *out;
    size_t capacity;
    size_t len;
    uint64_t base;
    bool overflow;
};

static uint8_t checksum(const uint8_t *data, size_t len)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++) {
        sum = (uint8_t)(sum + data[i]);
    }
    return (uint8_t)-sum;
}

/* Room for len zeroed bytes at the next multiple of align; NULL when there is none. */
static uint8_t *table_alloc(struct tables *tables, size_t len, size_t align, uint64_t *ret_gpa)
{
    size_t start = (tables->len + align - 1) & ~(align - 1);

    if (tables->overflow || start > tables->capacity || len > tables->capacity - start) {
        tables->overflow = true;
        return NULL;
    }
    memset(tables->out + start, 0, len);
    tables->len = start + len;
    *ret_gpa = tables->base + start;
    return tables->out + start;
}

/* The header all tables but RSDP and FACS begin with; the rest is filled in already. */
static void table_finish(uint8_t *table, const char *signature, size_t len, uint8_t revision)
{
    memcpy(table, signature, 4);
    store_le32(table + 4, (uint32_t)len);
    table[8] = revision;
    table[9] = 0;
    memcpy(table + 10, OEM_ID, 6);
    memcpy(table + 16, OEM_TABLE_ID, 8);
    store_le32(table + 24, 1);
    memcpy(table + 28, "CRBL", 4);
    store_le32(table + 32, 1);
    table[9] = checksum(table, len);
}

/* ---- DSDT ---- */

static void interrupt_routes(struct aml *aml)
{
    aml_name(aml, "_PRT");
    aml_open_package(aml, PCI_MAX_SLOTS);
    for (unsigned slot = 0; slot < PCI_MAX_SLOTS; slot++) {
        aml_open_package(aml, 4);
        aml_integer(aml, slot << 16 | 0xffff);
        aml_integer(aml, 0); /* INTA# */
        aml_integer(aml, 0); /* a GSI, not a link device */
        aml_integer(aml, pci_slot_gsi(slot));
        aml_close(aml);
    }
    aml_close(aml);
}

/*
 * Every slot but the bridge's can be ejected (§6.3.3). LOOK asks the registers
 * which slots got a device (device check, 1) or shall lose one (eject request, 3).
 */
static void hotplug_slots(struct aml *aml)
{
    char name[8];

    aml_registers(aml, "HPIO", HOTPLUG_NAMES, MAP_PORT_PCI_HOTPLUG);
    for (unsigned slot = 1; slot < PCI_MAX_SLOTS; slot++) {
        (void)snprintf(name, sizeof(name), "SL%02u", slot);
        aml_open_device(aml, name);
        aml_name(aml, "_ADR");
        aml_integer(aml, slot << 16);
        aml_name(aml, "_SUN");
        aml_integer(aml, slot);
        aml_open_method(aml, "_EJ0", 1);
        aml_store(aml, 1u << slot, "EJCT");
        aml_close(aml);
        aml_close(aml);
    }
    aml_open_method(aml, "LOOK", 0);
    aml_load_local(aml, 0, "CAME");
    aml_load_local(aml, 1, "LEAV");
    for (unsigned slot = 1; slot < PCI_MAX_SLOTS; slot++) {
        (void)snprintf(name, sizeof(name), "SL%02u", slot);
        aml_notify_if(aml, 0, 1u << slot, name, NOTIFY_DEVICE_CHECK);
        aml_notify_if(aml, 1, 1u << slot, name, NOTIFY_EJECT_REQUEST);
    }
    aml_close(aml);
}

static void pci_root(struct aml *aml)
{
    aml_open_device(aml, "PCI0");
    aml_name(aml, "_HID");
    aml_eisa_id(aml, "PNP0A03");
    aml_name(aml, "_UID");
    aml_integer(aml, 0);
    aml_name(aml, "_BBN");
    aml_integer(aml, 0);
    aml_name(aml, "_CRS");
    aml_open_resources(aml);
    aml_bus_range(aml, 0, 0);
    aml_io(aml, 0xcf8, 8);
    aml_io_range(aml, 0x0000, 0x0cf7);
    aml_io_range(aml, 0x0d00, 0xffff);
    aml_memory_range(aml, (uint32_t)MAP_PCI_WINDOW,
                     (uint32_t)(MAP_PCI_WINDOW + MAP_PCI_WINDOW_BYTES - 1));
    aml_close_resources(aml);
    interrupt_routes(aml);
    hotplug_slots(aml);
    aml_close(aml);
}

/* A local APIC as the MADT has it, and _MAT (§6.2.10). */
static void lapic_entry(uint8_t out[LAPIC_ENTRY_BYTES], unsigned cpu, uint32_t flags)
{
    out[0] = 0;
    out[1] = LAPIC_ENTRY_BYTES;
    out[2] = (uint8_t)cpu;
    out[3] = (uint8_t)cpu;
    store_le32(out + 4, flags);
}

/* A processor device (§8.4): whether it is there, how it is let go, and what came of asking. */
static void processor(struct aml *aml, unsigned cpu, const char *name)
{
    uint8_t entry[LAPIC_ENTRY_BYTES];

    lapic_entry(entry, cpu, LAPIC_ENABLED);
    aml_open_device(aml, name);
    aml_name(aml, "_HID");
    aml_string(aml, "ACPI0007");
    aml_name(aml, "_UID");
    aml_integer(aml, cpu);
    aml_name(aml, "_MAT");
    aml_buffer(aml, entry, sizeof(entry));
    aml_open_method(aml, "_STA", 0);
    aml_load_local(aml, 0, "PRES");
    aml_return_if(aml, 0, 1u << cpu, 0x0f);
    aml_return(aml, 0);
    aml_close(aml);
    if (cpu != 0) {
        aml_open_method(aml, "_EJ0", 1);
        aml_store(aml, 1u << cpu, "EJCT");
        aml_close(aml);
    }
    aml_open_method(aml, "_OST", 3);
    aml_store(aml, cpu, "WHO_");
    aml_store_argument(aml, 1, "STAT");
    aml_close(aml);
    aml_close(aml);
}

static void processors(struct aml *aml, const struct acpi_config *config)
{
    char name[8];

    aml_open_device(aml, "CPUS");
    aml_name(aml, "_HID");
    aml_string(aml, "ACPI0010");
    aml_name(aml, "_CID");
    aml_eisa_id(aml, "PNP0A05");
    aml_registers(aml, "HPIO", HOTPLUG_NAMES, MAP_PORT_CPU_HOTPLUG);
    for (unsigned i = 0; i < config->cpus_max; i++) {
        (void)snprintf(name, sizeof(name), "C%03u", i % 1000);
        processor(aml, i, name);
    }
    aml_open_method(aml, "LOOK", 0);
    aml_load_local(aml, 0, "CAME");
    aml_load_local(aml, 1, "LEAV");
    for (unsigned i = 0; i < config->cpus_max; i++) {
        (void)snprintf(name, sizeof(name), "C%03u", i % 1000);
        aml_notify_if(aml, 0, 1u << i, name, NOTIFY_DEVICE_CHECK);
        aml_notify_if(aml, 1, 1u << i, name, NOTIFY_EJECT_REQUEST);
    }
    aml_close(aml);
    aml_close(aml);
}

/* The events that devices came or shall leave (§5.6.4.1.1): edge-triggered. */
static void hotplug_events(struct aml *aml, const struct acpi_config *config)
{
    aml_open_scope(aml, "\\_GPE");
    aml_open_method(aml, "_E01", 0); /* MAP_GPE_PCI_HOTPLUG */
    aml_call(aml, "PCI0", "LOOK");
    aml_close(aml);
    if (config->has_cpu_hotplug) {
        aml_open_method(aml, "_E02", 0); /* MAP_GPE_CPU_HOTPLUG */
        aml_call(aml, "CPUS", "LOOK");
        aml_close(aml);
    }
    aml_close(aml);
}

/* A chip with ports and a line. */
static void isa_device(struct aml *aml, const char *name, const char *hid, uint16_t port,
                       uint8_t ports, unsigned irq)
{
    aml_open_device(aml, name);
    aml_name(aml, "_HID");
    aml_eisa_id(aml, hid);
    aml_name(aml, "_UID");
    aml_integer(aml, 0);
    aml_name(aml, "_STA");
    aml_integer(aml, 0x0f);
    aml_name(aml, "_CRS");
    aml_open_resources(aml);
    aml_io(aml, port, ports);
    aml_irq(aml, irq);
    aml_close_resources(aml);
    aml_close(aml);
}

static uint64_t dsdt_build(struct tables *tables, const struct acpi_config *config)
{
    size_t room = tables->capacity - tables->len;
    uint64_t at = 0;
    struct aml aml;
    uint8_t *table = NULL;

    if (tables->overflow || room < HEADER_BYTES + 16) {
        tables->overflow = true;
        return 0;
    }
    table = tables->out + ((tables->len + 15) & ~15ull);
    aml_init(&aml, table + HEADER_BYTES, room - HEADER_BYTES - 16);
    aml_open_scope(&aml, "\\_SB_");
    pci_root(&aml);
    isa_device(&aml, "COM1", "PNP0501", MAP_PORT_COM1, 8, MAP_GSI_COM1);
    isa_device(&aml, "RTC0", "PNP0B00", 0x70, 2, MAP_GSI_RTC);
    if (config->has_cpu_hotplug) {
        processors(&aml, config);
    }
    aml_close(&aml);
    hotplug_events(&aml, config);
    aml_name(&aml, "\\_S5_");
    aml_open_package(&aml, 4);
    aml_integer(&aml, ACPI_PM_SLP_TYP_S5);
    aml_integer(&aml, 0);
    aml_integer(&aml, 0);
    aml_integer(&aml, 0);
    aml_close(&aml);
    if (aml.overflow) {
        tables->overflow = true;
        return 0;
    }
    tables->len = (size_t)(table - tables->out) + HEADER_BYTES + aml.len;
    at = tables->base + (uint64_t)(table - tables->out);
    table_finish(table, "DSDT", HEADER_BYTES + aml.len, 2);
    return at;
}

/* ---- FADT and FACS ---- */

static uint64_t facs_build(struct tables *tables)
{
    uint64_t at = 0;
    uint8_t *facs = table_alloc(tables, FACS_BYTES, 64, &at);

    if (facs == NULL) {
        return 0;
    }
    memcpy(facs, "FACS", 4);
    store_le32(facs + 4, FACS_BYTES);
    facs[32] = 2; /* version */
    return at;
}

/* A generic address in port space (§5.2.3.2). */
static void port_address(uint8_t *out, uint16_t port, uint8_t bits, uint8_t access)
{
    out[0] = 1;
    out[1] = bits;
    out[2] = 0;
    out[3] = access; /* 1 byte, 2 word, 3 dword */
    store_le64(out + 4, port);
}

/* Offsets as in §5.2.9. */
static uint64_t fadt_build(struct tables *tables, uint64_t facs, uint64_t dsdt)
{
    const uint32_t flags = 1u << 0 | /* WBINVD works */
                           1u << 2 | /* C1 on every processor */
                           1u << 5 | /* no sleep button */
                           1u << 6 | /* the RTC wakes nothing */
                           1u << 8 | /* 32-bit PM timer */
                           1u << 10; /* reset register */
    uint64_t at = 0;
    uint8_t *fadt = table_alloc(tables, FADT_BYTES, 16, &at);

    if (fadt == NULL) {
        return 0;
    }
    store_le32(fadt + 36, (uint32_t)facs);
    store_le32(fadt + 40, (uint32_t)dsdt);
    fadt[45] = 4; /* preferred profile: enterprise server */
    store_le16(fadt + 46, MAP_GSI_SCI);
    store_le32(fadt + 56, MAP_PORT_ACPI_PM + ACPI_PM_EVENT);
    store_le32(fadt + 64, MAP_PORT_ACPI_PM + ACPI_PM_CONTROL);
    store_le32(fadt + 76, MAP_PORT_ACPI_PM + ACPI_PM_TIMER);
    fadt[88] = 4; /* lengths: event, control, timer */
    fadt[89] = 2;
    fadt[91] = 4;
    store_le32(fadt + 80, MAP_PORT_ACPI_PM + ACPI_PM_GPE);
    fadt[92] = 2;
    store_le16(fadt + 96, 0xfff); /* no C2, no C3 */
    store_le16(fadt + 98, 0xfff);
    fadt[108] = 0x32;                          /* the RTC's century register */
    store_le16(fadt + 109, 1u << 0 | 1u << 2); /* ISA devices; no VGA; no i8042 keyboard */
    store_le32(fadt + 112, flags);
    port_address(fadt + 116, MAP_PORT_ACPI_PM + ACPI_PM_RESET, 8, 1);
    fadt[128] = ACPI_PM_RESET_VALUE;
    fadt[131] = 3; /* minor version: 6.3 */
    store_le64(fadt + 140, dsdt);
    port_address(fadt + 148, MAP_PORT_ACPI_PM + ACPI_PM_EVENT, 32, 2);
    port_address(fadt + 172, MAP_PORT_ACPI_PM + ACPI_PM_CONTROL, 16, 2);
    port_address(fadt + 208, MAP_PORT_ACPI_PM + ACPI_PM_TIMER, 32, 3);
    port_address(fadt + 220, MAP_PORT_ACPI_PM + ACPI_PM_GPE, 16, 1);
    memcpy(fadt + 268, OEM_TABLE_ID, 8); /* hypervisor vendor */
    table_finish(fadt, "FACP", FADT_BYTES, 6);
    return at;
}

/* ---- MADT ---- */

static void override_entry(uint8_t *out, uint8_t isa_irq, uint32_t gsi, uint16_t flags)
{
    out[0] = 2;
    out[1] = 10;
    out[2] = 0; /* ISA */
    out[3] = isa_irq;
    store_le32(out + 4, gsi);
    store_le16(out + 8, flags);
}

static uint64_t madt_build(struct tables *tables, const struct acpi_config *config)
{
    size_t len = HEADER_BYTES + 8 + config->cpus_max * LAPIC_ENTRY_BYTES + 12 + 10 + 10 + 6;
    uint64_t at = 0;
    uint8_t *madt = table_alloc(tables, len, 16, &at);
    uint8_t *entry = NULL;

    if (madt == NULL) {
        return 0;
    }
    store_le32(madt + 36, (uint32_t)MAP_LAPIC);
    store_le32(madt + 40, 1); /* there are 8259s as well */
    entry = madt + 44;
    for (unsigned i = 0; i < config->cpus_max; i++) {
        bool is_present = (config->cpus_present & 1u << i) != 0;

        lapic_entry(entry, i, is_present ? LAPIC_ENABLED : LAPIC_ONLINE_CAPABLE);
        entry += LAPIC_ENTRY_BYTES;
    }
    entry[0] = 1; /* I/O APIC, GSIs from 0 */
    entry[1] = 12;
    store_le32(entry + 4, (uint32_t)MAP_IOAPIC);
    entry += 12;
    override_entry(entry, MAP_GSI_PIT, MAP_IOAPIC_PIT_PIN, 0);
    override_entry(entry + 10, MAP_GSI_SCI, MAP_GSI_SCI, MPS_ACTIVE_HIGH_LEVEL);
    entry += 20;
    entry[0] = 4; /* LINT1 of every processor is NMI */
    entry[1] = 6;
    entry[2] = 0xff;
    entry[5] = 1;
    table_finish(madt, "APIC", len, 5);
    return at;
}

static uint64_t xsdt_build(struct tables *tables, uint64_t fadt, uint64_t madt)
{
    size_t len = HEADER_BYTES + 16;
    uint64_t at = 0;
    uint8_t *xsdt = table_alloc(tables, len, 16, &at);

    if (xsdt == NULL) {
        return 0;
    }
    store_le64(xsdt + 36, fadt);
    store_le64(xsdt + 44, madt);
    table_finish(xsdt, "XSDT", len, 1);
    return at;
}

int acpi_build(const struct acpi_config *config, uint64_t base, uint8_t *out, size_t capacity)
{
    struct tables tables = {.out = out, .capacity = capacity, .base = base};
    uint64_t at = 0;
    uint64_t dsdt = 0;
    uint64_t facs = 0;
    uint64_t fadt = 0;
    uint64_t madt = 0;
    uint64_t xsdt = 0;
    uint8_t *rsdp = table_alloc(&tables, RSDP_BYTES, 16, &at);

    dsdt = dsdt_build(&tables, config);
    facs = facs_build(&tables);
    fadt = fadt_build(&tables, facs, dsdt);
    madt = madt_build(&tables, config);
    xsdt = xsdt_build(&tables, fadt, madt);
    if (tables.overflow) {
        return -ENOSPC;
    }
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, OEM_ID, 6);
    rsdp[15] = 2; /* revision */
    store_le32(rsdp + 20, RSDP_BYTES);
    store_le64(rsdp + 24, xsdt);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, RSDP_BYTES);
    return (int)tables.len;
}
