/*
 * Every guest-physical address, port and interrupt number of the machine.
 * docs/memory-map.md is the same as a table. RAM itself is in mem/gmem.h: from
 * 0 to GMEM_HOLE_START, and from GMEM_HOLE_END on.
 */
#ifndef CORBEL_MACHINE_MEMORY_MAP_H
#define CORBEL_MACHINE_MEMORY_MAP_H

/* Low RAM that the loader fills before the kernel runs; the kernel owns it afterwards. */
#define MAP_BOOT_GDT 0x00000500ull
#define MAP_PVH_INFO 0x00006000ull /* start info, its module list, its memory map */
#define MAP_ZERO_PAGE 0x00007000ull
#define MAP_BOOT_STACK 0x00008ff0ull
#define MAP_BOOT_PAGE_TABLES 0x00009000ull /* PML4, PDPT, four page directories: 4 GiB */
#define MAP_CMDLINE 0x00020000ull
#define MAP_CMDLINE_MAX 0x00010000ull

/* The end of conventional memory; what lies between it and 1 MiB is reserved in the E820 map. */
#define MAP_LOW_RAM_END 0x000a0000ull
#define MAP_ACPI 0x000e0000ull /* where Linux also searches for the RSDP */
#define MAP_ACPI_BYTES 0x00010000ull
#define MAP_HIGH_RAM 0x00100000ull

/* Between RAM below 4 GiB and the interrupt controllers: PCI's 32-bit window. */
#define MAP_PCI_WINDOW 0xc0000000ull
#define MAP_PCI_WINDOW_BYTES 0x3ec00000ull
#define MAP_IOAPIC 0xfec00000ull
#define MAP_LAPIC 0xfee00000ull

/* Ports. The chips at fixed PC ports (0x20 to 0x71, 0xa0, 0x4d0, 0xcf8) know their own. */
#define MAP_PORT_DEBUG_EXIT 0xf4u /* only with machine_config.has_debug_exit */
#define MAP_PORT_COM1 0x3f8u
#define MAP_PORT_ACPI_PM 0x600u
#define MAP_PORT_PCI_HOTPLUG 0x620u
#define MAP_PORT_CPU_HOTPLUG 0x640u

/* General purpose events: something to read at the hotplug registers. */
#define MAP_GPE_PCI_HOTPLUG 1u
#define MAP_GPE_CPU_HOTPLUG 2u

/* Interrupts. GSI 0 to 15 are the ISA lines, 16 to 23 PCI's (pci_slot_gsi()). ISA line 0 is
 * wired to pin 2 of the I/O APIC. */
#define MAP_GSI_PIT 0u
#define MAP_GSI_COM1 4u
#define MAP_GSI_RTC 8u
#define MAP_GSI_SCI 9u
#define MAP_IOAPIC_PIT_PIN 2u

#endif
