/* Linux bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst of Linux). */
#include "base/wire.h"
#include "machine/boot_internal.h"
#include "machine/memory_map.h"

#include <errno.h>
#include <string.h>

/* The setup header, at these offsets in the file and in the zero page. */
#define HDR_START 0x1f1u
#define HDR_SETUP_SECTS 0x1f1u
#define HDR_SYSSIZE 0x1f4u
#define HDR_BOOT_FLAG 0x1feu
#define HDR_JUMP_LENGTH 0x201u
#define HDR_MAGIC 0x202u
#define HDR_VERSION 0x206u
#define HDR_LOAD_FLAGS 0x211u
#define HDR_INITRD_MAX 0x22cu
#define HDR_ALIGNMENT 0x230u
#define HDR_RELOCATABLE 0x234u
#define HDR_XLOAD_FLAGS 0x236u
#define HDR_CMDLINE_SIZE 0x238u
#define HDR_PREFERRED 0x258u
#define HDR_INIT_SIZE 0x260u
#define HDR_END_MAX 0x290u

#define BOOT_FLAG 0xaa55u
#define MAGIC "HdrS"
#define VERSION_NEEDED 0x020cu
#define XLOAD_KERNEL_64 0x0001u
#define ENTRY_64 0x200u

static bool is_bzimage(const uint8_t *header, size_t len)
{
    return len >= HDR_END_MAX && load_le16(header + HDR_BOOT_FLAG) == BOOT_FLAG &&
           memcmp(header + HDR_MAGIC, MAGIC, 4) == 0;
}

/* Where the kernel runs: its preferred address, or above 1 MiB where it may be moved. */
static int placement(struct boot *boot, const uint8_t *header, uint64_t payload, struct err *err)
{
    struct boot_plan *plan = &boot->plan;
    uint64_t ram_end = boot_low_ram_end(boot);
    uint64_t start = load_le64(header + HDR_PREFERRED);
    uint64_t need = load_le32(header + HDR_INIT_SIZE);
    uint64_t align = load_le32(header + HDR_ALIGNMENT);

    need = need < payload ? payload : need;
    if ((start < MAP_HIGH_RAM || start > ram_end || need > ram_end - start) &&
        header[HDR_RELOCATABLE] != 0 && align >= 4096 && align <= (1u << 30) &&
        (align & (align - 1)) == 0) {
        start = (MAP_HIGH_RAM + align - 1) & ~(align - 1);
    }
    if (start < MAP_HIGH_RAM || start > ram_end || need > ram_end - start) {
        return err_set(err, -E2BIG,
                       "kernel \"%s\" needs %llu MiB at %#llx: give the guest more memory",
                       boot->kernel.path, (unsigned long long)((need + 0xfffff) >> 20),
                       (unsigned long long)start);
    }
    plan->kernel_start = start;
    plan->kernel_end = start + need;
    plan->entry = start + ENTRY_64;
    return 0;
}

static int header_check(struct boot *boot, const uint8_t *header, struct err *err)
{
    unsigned version = load_le16(header + HDR_VERSION);
    uint32_t cmdline_max = load_le32(header + HDR_CMDLINE_SIZE);

    if (version < VERSION_NEEDED) {
        return err_set(
            err, -ENOEXEC,
            "kernel \"%s\" speaks boot protocol %u.%u; 2.12 (Linux 3.8) or later is needed",
            boot->kernel.path, version >> 8, version & 0xff);
    }
    if ((load_le16(header + HDR_XLOAD_FLAGS) & XLOAD_KERNEL_64) == 0) {
        return err_set(err, -ENOEXEC, "kernel \"%s\" has no 64-bit entry: is it a 32-bit kernel?",
                       boot->kernel.path);
    }
    if (strlen(boot->cmdline) > cmdline_max) {
        return err_set(err, -E2BIG,
                       "the command line is longer than the %u bytes that \"%s\" takes",
                       cmdline_max, boot->kernel.path);
    }
    return 0;
}

int boot_load_bzimage(struct boot *boot, const uint8_t *header, size_t len, struct err *err)
{
    struct boot_plan *plan = &boot->plan;
    uint64_t setup = 0;
    uint64_t payload = 0;
    size_t header_end = 0;
    int rc = 0;

    if (!is_bzimage(header, len)) {
        return -ENOEXEC;
    }
    setup = ((header[HDR_SETUP_SECTS] == 0 ? 4u : header[HDR_SETUP_SECTS]) + 1u) * 512u;
    payload = (uint64_t)load_le32(header + HDR_SYSSIZE) * 16;
    if (setup >= boot->kernel.size_bytes || payload == 0) {
        return err_set(err, -ENOEXEC, "kernel \"%s\" is truncated", boot->kernel.path);
    }
    /* syssize is rounded up to 16 bytes; what follows it in the file is a signature. */
    if (payload > boot->kernel.size_bytes - setup + 15) {
        return err_set(err, -ENOEXEC, "kernel \"%s\" is truncated: %llu bytes of %llu",
                       boot->kernel.path, (unsigned long long)boot->kernel.size_bytes,
                       (unsigned long long)(setup + payload));
    }
    if (payload > boot->kernel.size_bytes - setup) {
        payload = boot->kernel.size_bytes - setup;
    }
    rc = header_check(boot, header, err);
    if (rc == 0) {
        rc = placement(boot, header, payload, err);
    }
    if (rc != 0) {
        return rc;
    }
    plan->mode = BOOT_LONG_MODE;
    plan->initrd_max = load_le32(header + HDR_INITRD_MAX);
    header_end = HDR_MAGIC + header[HDR_JUMP_LENGTH];
    header_end = header_end > HDR_END_MAX ? HDR_END_MAX : header_end;
    memcpy(plan->zero_page + HDR_START, header + HDR_START, header_end - HDR_START);
    return boot_copy_file(boot, &boot->kernel, setup, payload, plan->kernel_start, err);
}
