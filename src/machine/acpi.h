/*
 * The ACPI tables (ACPI 6.3): RSDP, XSDT, FADT, FACS, MADT and DSDT.
 *
 * They describe what pc.c builds, from memory_map.h. Pure; one thread.
 */
#ifndef CORBEL_MACHINE_ACPI_H
#define CORBEL_MACHINE_ACPI_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What differs from machine to machine. */
struct acpi_config {
    uint32_t cpus_present; /* a bit each */
    unsigned cpus_max;     /* at most 32 */
    bool has_cpu_hotplug;  /* they can come and go */
};

/* Writes the tables for their place at guest address base into out; the RSDP comes first.
 * Returns the bytes used, or -ENOSPC. */
int acpi_build(const struct acpi_config *config, uint64_t base, uint8_t *out, size_t capacity)
    MUST_CHECK;

#endif
