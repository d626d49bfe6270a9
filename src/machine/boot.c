#include "machine/boot.h"

#include "base/io.h"
#include "base/wire.h"
#include "machine/acpi.h"
#include "machine/boot_internal.h"
#include "machine/memory_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define MAX_FILE_BYTES (4ull << 30)
#define PAGE_PRESENT_WRITABLE 0x03ull
#define PAGE_LARGE 0x80ull
#define LARGE_PAGE_BYTES (2ull << 20)

/* Zero page (Documentation/arch/x86/zero-page.rst of Linux). */
#define ZP_RSDP 0x070u
#define ZP_E820_COUNT 0x1e8u
#define ZP_BOOT_FLAG 0x1feu
#define ZP_MAGIC 0x202u
#define ZP_LOADER_TYPE 0x210u
#define ZP_INITRD 0x218u
#define ZP_INITRD_SIZE 0x21cu
#define ZP_CMDLINE 0x228u
#define ZP_E820 0x2d0u
#define ZP_E820_ENTRY_BYTES 20u
#define LOADER_UNDEFINED 0xffu

/* ---- files ---- */

static int file_open(struct boot_file *file, const char *what, const char *path, struct err *err)
{
    struct stat st;

    file->path = strdup(path);
    if (file->path == NULL) {
        return err_set_errno(err, -ENOMEM, "%s \"%s\"", what, path);
    }
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0 || fstat(file->fd, &st) != 0) {
        return err_set_errno(err, -errno, "cannot open %s \"%s\"", what, path);
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, -EINVAL, "%s \"%s\" is not a regular file", what, path);
    }
    file->size_bytes = (uint64_t)st.st_size;
    if (file->size_bytes > MAX_FILE_BYTES) {
        return err_set(err, -E2BIG, "%s \"%s\" is too big", what, path);
    }
    return 0;
}

static void file_close(struct boot_file *file)
{
    if (file->fd >= 0) {
        (void)close(file->fd);
    }
    free(file->path);
    *file = (struct boot_file){.fd = -1};
}

/* Reads into iov until all is read: 0, -ENOEXEC at an early end, or an error. */
static int read_into(int fd, struct iovec *iov, unsigned count, uint64_t offset)
{
    for (unsigned i = 0; i < count; i++) {
        ssize_t n = io_pread_full(fd, iov[i].iov_base, iov[i].iov_len, offset);

        if (n < 0) {
            return (int)n;
        }
        if ((size_t)n != iov[i].iov_len) {
            return -ENOEXEC;
        }
        offset += (uint64_t)n;
    }
    return 0;
}

int boot_copy_file(struct boot *boot, const struct boot_file *file, uint64_t offset, uint64_t len,
                   uint64_t address, struct err *err)
{
    struct iovec iov[GMEM_MAX_REGIONS];
    int count = 0;
    int rc = 0;

    if (len == 0) {
        return 0;
    }
    count = gmem_pin(boot->gmem, gpa(address), len, GMEM_DEVICE_WRITES, iov, GMEM_MAX_REGIONS);
    if (count < 0) {
        return err_set(err, -E2BIG, "\"%s\" does not fit into the guest's memory", file->path);
    }
    rc = read_into(file->fd, iov, (unsigned)count, offset);
    gmem_unpin(boot->gmem, gpa(address), len, GMEM_DEVICE_WRITES);
    if (rc == -ENOEXEC) {
        return err_set(err, rc, "\"%s\" has become shorter", file->path);
    }
    return rc == 0 ? 0 : err_set_errno(err, rc, "cannot read \"%s\"", file->path);
}

/* ---- memory ---- */

uint64_t boot_low_ram_end(const struct boot *boot)
{
    const struct gmem_region *low = gmem_region(boot->gmem, 0);

    return low->gpa + low->size_bytes;
}

unsigned boot_memory_map(const struct boot *boot, struct boot_e820 ret_map[BOOT_E820_MAX])
{
    uint64_t low_end = boot_low_ram_end(boot);
    unsigned count = 3;

    ret_map[0] = (struct boot_e820){.start = 0, .len = MAP_LOW_RAM_END, .type = 1};
    ret_map[1] = (struct boot_e820){
        .start = MAP_LOW_RAM_END, .len = MAP_HIGH_RAM - MAP_LOW_RAM_END, .type = 2};
    ret_map[2] =
        (struct boot_e820){.start = MAP_HIGH_RAM, .len = low_end - MAP_HIGH_RAM, .type = 1};
    for (unsigned i = 1; i < gmem_region_count(boot->gmem) && count < BOOT_E820_MAX; i++) {
        const struct gmem_region *region = gmem_region(boot->gmem, i);

        if (region == gmem_pluggable(boot->gmem)) {
            break; /* the guest hears of it from a device */
        }
        ret_map[count] =
            (struct boot_e820){.start = region->gpa, .len = region->size_bytes, .type = 1};
        count++;
    }
    return count;
}

/* The initrd goes as high as it may, out of the kernel's way. */
static int initrd_load(struct boot *boot, struct err *err)
{
    struct boot_plan *plan = &boot->plan;
    uint64_t size = boot->initrd.size_bytes;
    uint64_t top = boot_low_ram_end(boot);

    if (boot->initrd.fd < 0 || size == 0) {
        return 0;
    }
    if (plan->initrd_max < top - 1) {
        top = plan->initrd_max + 1;
    }
    if (top < plan->kernel_end || size > top - plan->kernel_end ||
        ((top - size) & ~(uint64_t)(GMEM_PAGE_BYTES - 1)) < plan->kernel_end) {
        return err_set(err, -E2BIG,
                       "initrd \"%s\" (%llu MiB) does not fit beside the kernel: give the guest "
                       "more memory",
                       boot->initrd.path, (unsigned long long)((size + 0xfffff) >> 20));
    }
    plan->initrd_gpa = (top - size) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    plan->initrd_bytes = size;
    return boot_copy_file(boot, &boot->initrd, 0, size, plan->initrd_gpa, err);
}

static int zero_page_write(struct boot *boot)
{
    struct boot_plan *plan = &boot->plan;
    struct boot_e820 map[BOOT_E820_MAX];
    unsigned count = boot_memory_map(boot, map);
    uint8_t *zp = plan->zero_page;

    store_le64(zp + ZP_RSDP, MAP_ACPI);
    zp[ZP_E820_COUNT] = (uint8_t)count;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *entry = zp + ZP_E820 + i * ZP_E820_ENTRY_BYTES;

        store_le64(entry, map[i].start);
        store_le64(entry + 8, map[i].len);
        store_le32(entry + 16, map[i].type);
    }
    store_le16(zp + ZP_BOOT_FLAG, 0xaa55);
    memcpy(zp + ZP_MAGIC, "HdrS", 4);
    zp[ZP_LOADER_TYPE] = LOADER_UNDEFINED;
    store_le32(zp + ZP_INITRD, (uint32_t)plan->initrd_gpa);
    store_le32(zp + ZP_INITRD_SIZE, (uint32_t)plan->initrd_bytes);
    store_le32(zp + ZP_CMDLINE, (uint32_t)MAP_CMDLINE);
    return gmem_write(boot->gmem, gpa(MAP_ZERO_PAGE), zp, BOOT_ZERO_PAGE_BYTES);
}

/* PML4, PDPT and four page directories of 2 MiB pages: the low 4 GiB mapped to themselves. */
static int page_tables_write(struct boot *boot)
{
    const uint64_t pdpt = MAP_BOOT_PAGE_TABLES + GMEM_PAGE_BYTES;
    const uint64_t pd = pdpt + GMEM_PAGE_BYTES;
    uint64_t table[512] = {0};
    int rc = 0;

    table[0] = htole64(pdpt | PAGE_PRESENT_WRITABLE);
    rc = gmem_write(boot->gmem, gpa(MAP_BOOT_PAGE_TABLES), table, sizeof(table));
    for (unsigned i = 0; i < 4; i++) {
        table[i] = htole64((pd + i * GMEM_PAGE_BYTES) | PAGE_PRESENT_WRITABLE);
    }
    if (rc == 0) {
        rc = gmem_write(boot->gmem, gpa(pdpt), table, sizeof(table));
    }
    for (unsigned i = 0; rc == 0 && i < 4; i++) {
        for (unsigned e = 0; e < 512; e++) {
            uint64_t address = (i * 512ull + e) * LARGE_PAGE_BYTES;

            table[e] = htole64(address | PAGE_PRESENT_WRITABLE | PAGE_LARGE);
        }
        rc = gmem_write(boot->gmem, gpa(pd + i * GMEM_PAGE_BYTES), table, sizeof(table));
    }
    return rc;
}

/* Null, unused, 64-bit code, data, 32-bit code, busy 64-bit TSS (two slots). */
static int gdt_write(struct boot *boot)
{
    static const uint64_t gdt[7] = {
        0,
        0,
        0x00af9b000000ffffull,
        0x00cf93000000ffffull,
        0x00cf9b000000ffffull,
        0x00008b000000ffffull,
        0,
    };
    uint8_t bytes[sizeof(gdt)];

    for (unsigned i = 0; i < ARRAY_LEN(gdt); i++) {
        store_le64(bytes + 8 * i, gdt[i]);
    }
    return gmem_write(boot->gmem, gpa(MAP_BOOT_GDT), bytes, sizeof(bytes));
}

static int acpi_write(struct boot *boot)
{
    CLEANUP_FREE uint8_t *tables = malloc(MAP_ACPI_BYTES);
    int len = 0;

    if (tables == NULL) {
        return -ENOMEM;
    }
    len = acpi_build(&boot->acpi, MAP_ACPI, tables, MAP_ACPI_BYTES);
    return len < 0 ? len : gmem_write(boot->gmem, gpa(MAP_ACPI), tables, (size_t)len);
}

static int kernel_load(struct boot *boot, struct err *err)
{
    uint8_t header[BOOT_HEADER_BYTES];
    ssize_t n = io_pread_full(boot->kernel.fd, header, sizeof(header), 0);
    int rc = 0;

    if (n < 0) {
        return err_set_errno(err, (int)n, "cannot read kernel \"%s\"", boot->kernel.path);
    }
    err->code = 0;
    rc = boot_load_bzimage(boot, header, (size_t)n, err);
    if (rc == -ENOEXEC && err->code == 0) {
        rc = boot_load_elf(boot, header, (size_t)n, err);
    }
    if (rc == -ENOEXEC && err->code == 0) {
        rc = err_set(err, rc, "\"%s\" is not a kernel: neither a Linux bzImage nor an x86-64 ELF",
                     boot->kernel.path);
    }
    return rc;
}

static int boot_load(struct boot *boot, struct err *err)
{
    struct err local = {0};
    int rc = 0;

    err = err == NULL ? &local : err;
    memset(&boot->plan, 0, sizeof(boot->plan));
    rc = kernel_load(boot, err);
    if (rc == 0) {
        rc = initrd_load(boot, err);
    }
    if (rc != 0) {
        return rc;
    }
    rc = gmem_write(boot->gmem, gpa(MAP_CMDLINE), boot->cmdline, strlen(boot->cmdline) + 1);
    rc = rc != 0 ? rc : acpi_write(boot);
    rc = rc != 0 ? rc : gdt_write(boot);
    rc = rc != 0 ? rc : page_tables_write(boot);
    rc = rc != 0 ? rc : zero_page_write(boot);
    if (rc != 0) {
        return err_set_errno(err, rc, "cannot write the boot tables to guest memory");
    }
    return boot->plan.mode == BOOT_PVH ? boot_write_pvh_info(boot, err) : 0;
}

int boot_load_again(struct boot *boot, uint32_t cpus_present, struct err *err)
{
    boot->acpi.cpus_present = cpus_present;
    return boot_load(boot, err);
}

/* ---- entry ---- */

static struct x86_segment flat_segment(uint16_t selector, uint32_t access_rights)
{
    return (struct x86_segment){
        .limit = UINT32_MAX, .access_rights = access_rights, .selector = selector};
}

void boot_set_entry(const struct boot *boot, struct vcpu_state *state)
{
    const uint32_t code = X86_AR_G | X86_AR_P | X86_AR_S | 0xb;
    const struct x86_segment data =
        flat_segment(0x18, X86_AR_G | X86_AR_DB | X86_AR_P | X86_AR_S | 3);
    bool pvh = boot->plan.mode == BOOT_PVH;

    state->gdtr = (struct x86_table){.base = MAP_BOOT_GDT, .limit = 7 * 8 - 1};
    state->idtr = (struct x86_table){0};
    state->seg[X86_CS] =
        pvh ? flat_segment(0x20, code | X86_AR_DB) : flat_segment(0x10, code | X86_AR_L);
    state->seg[X86_DS] = state->seg[X86_ES] = state->seg[X86_SS] = data;
    state->seg[X86_FS] = state->seg[X86_GS] = data;
    state->seg[X86_TR] =
        (struct x86_segment){.limit = 0xffff, .access_rights = X86_AR_P | 0xb, .selector = 0x28};
    state->rip = boot->plan.entry;
    state->rflags = X86_FLAG_FIXED1;
    state->gpr[X86_RSP] = MAP_BOOT_STACK;
    state->cr0 = X86_CR0_PE | X86_CR0_ET;
    if (pvh) {
        state->gpr[X86_RBX] = MAP_PVH_INFO;
        return;
    }
    state->gpr[X86_RSI] = MAP_ZERO_PAGE;
    state->cr0 |= X86_CR0_PG | X86_CR0_NE | X86_CR0_WP | X86_CR0_MP;
    state->cr3 = MAP_BOOT_PAGE_TABLES;
    state->cr4 = X86_CR4_PAE;
    state->efer = X86_EFER_LME | X86_EFER_LMA;
}

/* ---- life cycle ---- */

static int boot_open(struct boot *boot, const char *kernel, const char *initrd, const char *cmdline,
                     struct err *err)
{
    int rc = 0;

    boot->cmdline = strdup(cmdline != NULL ? cmdline : "");
    if (boot->cmdline == NULL) {
        return err_set_errno(err, -ENOMEM, "kernel command line");
    }
    if (strlen(boot->cmdline) >= MAP_CMDLINE_MAX) {
        return err_set(err, -E2BIG, "the command line is longer than %llu bytes",
                       MAP_CMDLINE_MAX - 1);
    }
    rc = file_open(&boot->kernel, "kernel", kernel, err);
    if (rc == 0 && initrd != NULL) {
        rc = file_open(&boot->initrd, "initrd", initrd, err);
    }
    return rc;
}

int boot_create(struct gmem *gmem, const struct acpi_config *acpi, const char *kernel,
                const char *initrd, const char *cmdline, struct err *err, struct boot **ret_boot)
{
    struct boot *boot = calloc(1, sizeof(*boot));
    int rc = 0;

    if (boot == NULL) {
        return err_set_errno(err, -ENOMEM, "kernel \"%s\"", kernel);
    }
    boot->gmem = gmem;
    boot->acpi = *acpi;
    boot->kernel.fd = -1;
    boot->initrd.fd = -1;
    rc = boot_open(boot, kernel, initrd, cmdline, err);
    if (rc == 0) {
        rc = boot_load(boot, err);
    }
    if (rc != 0) {
        boot_destroy(boot);
        return rc;
    }
    *ret_boot = boot;
    return 0;
}

void boot_destroy(struct boot *boot)
{
    if (boot == NULL) {
        return;
    }
    file_close(&boot->kernel);
    file_close(&boot->initrd);
    free(boot->cmdline);
    free(boot);
}
