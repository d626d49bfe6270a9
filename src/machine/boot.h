/*
 * Loads a kernel into guest memory and says with which registers it begins.
 *
 * Kinds of kernel, told apart by their contents:
 *   bzImage   Linux x86 boot protocol 2.12 or later, by its 64-bit entry
 *   ELF64     with a PVH note (XEN_ELFNOTE_PHYS32_ENTRY): 32-bit protected mode,
 *             paging off, RBX = start info (Xen's PVH boot ABI)
 *   ELF64     without: long mode at e_entry
 * PT_LOAD segments go to their physical addresses. In long mode the low 4 GiB
 * are mapped to themselves with 2 MiB pages, RSI is the address of the zero
 * page (Linux' boot parameters: command line, E820 map, initrd, RSDP),
 * interrupts are off, RSP points to a small stack, and CS, DS, ES, SS are flat.
 * A tiny test guest is an ELF64 of the last kind.
 *
 * Images are hostile: every number is bounded before use. The files stay open,
 * so that a reset loads the same kernel again. One thread at a time.
 */
#ifndef CORBEL_MACHINE_BOOT_H
#define CORBEL_MACHINE_BOOT_H

#include "base/compiler.h"
#include "base/error.h"
#include "cpu/x86.h"
#include "machine/acpi.h"
#include "mem/gmem.h"

struct boot;

/*
 * Opens and checks the files and loads everything. cmdline and initrd may be
 * NULL. -ENOENT, -EACCES ...: a file; -ENOEXEC: not a kernel, or a truncated or
 * damaged one; -E2BIG: does not fit into memory, or a too long command line.
 */
int boot_create(struct gmem *gmem, const struct acpi_config *acpi, const char *kernel,
                const char *initrd, const char *cmdline, struct err *err, struct boot **ret_boot)
    MUST_CHECK;
void boot_destroy(struct boot *boot); /* accepts NULL */

/* Loads again what boot_create() loaded; the CPUs of this mask are there now. */
int boot_load_again(struct boot *boot, uint32_t cpus_present, struct err *err) MUST_CHECK;

/* Changes a reset state of the bootstrap processor to the kernel's entry. */
void boot_set_entry(const struct boot *boot, struct vcpu_state *state);

#endif
