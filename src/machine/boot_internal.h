/* What the files of boot*.c share; for them only. */
#ifndef CORBEL_MACHINE_BOOT_INTERNAL_H
#define CORBEL_MACHINE_BOOT_INTERNAL_H

#include "machine/boot.h"

#include <stdbool.h>

enum boot_mode { BOOT_LONG_MODE, BOOT_PVH };

struct boot_file {
    int fd;
    uint64_t size_bytes;
    char *path;
};

#define BOOT_HEADER_BYTES 0x1000u /* of the file, enough for every kind's headers */
#define BOOT_ZERO_PAGE_BYTES 4096u

/* Where things ended up. */
struct boot_plan {
    enum boot_mode mode;
    uint64_t entry;
    uint64_t kernel_start; /* guest memory that the kernel claims */
    uint64_t kernel_end;
    uint64_t initrd_max; /* the last byte an initrd may take */
    uint64_t initrd_gpa;
    uint64_t initrd_bytes;
    uint8_t zero_page[BOOT_ZERO_PAGE_BYTES]; /* with the kernel's setup header */
};

struct boot {
    struct gmem *gmem;
    struct acpi_config acpi;
    struct boot_file kernel;
    struct boot_file initrd; /* fd -1: none */
    char *cmdline;
    struct boot_plan plan;
};

/* The end of RAM below 4 GiB. */
uint64_t boot_low_ram_end(const struct boot *boot);

/* Copies len bytes of the file to guest memory. -ENOEXEC when the file is shorter than it was. */
int boot_copy_file(struct boot *boot, const struct boot_file *file, uint64_t offset, uint64_t len,
                   uint64_t address, struct err *err) MUST_CHECK;

/* -ENOEXEC without text when the header is not of this kind; otherwise as boot_create(). */
int boot_load_bzimage(struct boot *boot, const uint8_t *header, size_t len, struct err *err)
    MUST_CHECK;
int boot_load_elf(struct boot *boot, const uint8_t *header, size_t len, struct err *err) MUST_CHECK;

/* The memory map, also Linux' E820 entries: 20 bytes each. */
#define BOOT_E820_MAX 4
struct boot_e820 {
    uint64_t start;
    uint64_t len;
    uint32_t type; /* 1 RAM, 2 reserved */
};
unsigned boot_memory_map(const struct boot *boot, struct boot_e820 ret_map[BOOT_E820_MAX]);

/* Writes PVH's start info for what has been loaded. */
int boot_write_pvh_info(struct boot *boot, struct err *err) MUST_CHECK;

#endif
