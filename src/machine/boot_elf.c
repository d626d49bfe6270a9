/* ELF64 kernels: PVH by their note (Xen's docs/misc/pvh.pandoc), others in long mode. */
#include "base/io.h"
#include "base/wire.h"
#include "machine/boot_internal.h"
#include "machine/memory_map.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#define MAX_PROGRAM_HEADERS 64u
#define MAX_NOTES_BYTES 65536u
#define NOTE_PHYS32_ENTRY 18u

#define PVH_MAGIC 0x336ec578u
#define PVH_INFO_BYTES 56u
#define PVH_MODULE_BYTES 32u
#define PVH_MAP_ENTRY_BYTES 24u

static int damaged(const struct boot *boot, const char *what, struct err *err)
{
    return err_set(err, -ENOEXEC, "kernel \"%s\" is a damaged ELF file: %s", boot->kernel.path,
                   what);
}

/* Copies one segment and zeroes the rest of its memory. */
static int segment_load(struct boot *boot, const Elf64_Phdr *ph, struct err *err)
{
    struct boot_plan *plan = &boot->plan;
    uint64_t ram_end = boot_low_ram_end(boot);
    uint64_t file_size = boot->kernel.size_bytes;
    int rc = 0;

    if (ph->p_filesz > ph->p_memsz || ph->p_offset > file_size ||
        ph->p_filesz > file_size - ph->p_offset) {
        return damaged(boot, "a segment reaches beyond the end of the file", err);
    }
    if (ph->p_paddr > ram_end || ph->p_memsz > ram_end - ph->p_paddr) {
        return err_set(
            err, -E2BIG, "kernel \"%s\" wants %llu bytes at %#llx: give the guest more memory",
            boot->kernel.path, (unsigned long long)ph->p_memsz, (unsigned long long)ph->p_paddr);
    }
    if (ph->p_paddr < MAP_HIGH_RAM) {
        return err_set(err, -ENOEXEC, "kernel \"%s\" has a segment at %#llx; 1 MiB is the lowest",
                       boot->kernel.path, (unsigned long long)ph->p_paddr);
    }
    rc = boot_copy_file(boot, &boot->kernel, ph->p_offset, ph->p_filesz, ph->p_paddr, err);
    if (rc == 0 && ph->p_memsz > ph->p_filesz) {
        rc = gmem_fill(boot->gmem, gpa(ph->p_paddr + ph->p_filesz), 0, ph->p_memsz - ph->p_filesz);
    }
    if (rc == 0 && ph->p_paddr < plan->kernel_start) {
        plan->kernel_start = ph->p_paddr;
    }
    if (rc == 0 && ph->p_paddr + ph->p_memsz > plan->kernel_end) {
        plan->kernel_end = ph->p_paddr + ph->p_memsz;
    }
    return rc;
}

/* Looks for the PVH note among len bytes of notes; sets the mode when it is there. */
static void notes_search(struct boot_plan *plan, const uint8_t *notes, size_t len)
{
    size_t at = 0;

    while (len - at >= 12) {
        uint64_t name_len = load_le32(notes + at);
        uint64_t desc_len = load_le32(notes + at + 4);
        uint32_t type = load_le32(notes + at + 8);
        uint64_t name = at + 12;
        uint64_t desc = name + ((name_len + 3) & ~3ull);
        uint64_t next = desc + ((desc_len + 3) & ~3ull);

        if (next > len) {
            return;
        }
        if (type == NOTE_PHYS32_ENTRY && name_len == 4 && memcmp(notes + name, "Xen", 4) == 0 &&
            desc_len >= 4) {
            plan->mode = BOOT_PVH;
            plan->entry = load_le32(notes + desc);
            return;
        }
        at = next;
    }
}

static int notes_read(struct boot *boot, const Elf64_Phdr *ph, struct err *err)
{
    CLEANUP_FREE uint8_t *notes = NULL;
    ssize_t n = 0;

    if (ph->p_filesz > MAX_NOTES_BYTES) {
        return 0; /* no kernel has that many */
    }
    notes = malloc(ph->p_filesz + 1);
    if (notes == NULL) {
        return err_set_errno(err, -ENOMEM, "kernel \"%s\"", boot->kernel.path);
    }
    n = io_pread_full(boot->kernel.fd, notes, ph->p_filesz, ph->p_offset);
    if (n < 0 || (size_t)n != ph->p_filesz) {
        return damaged(boot, "its notes reach beyond the end of the file", err);
    }
    notes_search(&boot->plan, notes, (size_t)n);
    return 0;
}

static int segments_load(struct boot *boot, const Elf64_Ehdr *eh, struct err *err)
{
    unsigned loaded = 0;

    for (unsigned i = 0; i < eh->e_phnum; i++) {
        Elf64_Phdr ph;
        ssize_t n = io_pread_full(boot->kernel.fd, &ph, sizeof(ph), eh->e_phoff + i * sizeof(ph));
        int rc = 0;

        if (n != (ssize_t)sizeof(ph)) {
            return damaged(boot, "its program headers reach beyond the end of the file", err);
        }
        if (ph.p_type == PT_LOAD && ph.p_memsz != 0) {
            rc = segment_load(boot, &ph, err);
            loaded++;
        } else if (ph.p_type == PT_NOTE) {
            rc = notes_read(boot, &ph, err);
        }
        if (rc != 0) {
            return rc;
        }
    }
    return loaded != 0 ? 0 : damaged(boot, "nothing to load", err);
}

int boot_load_elf(struct boot *boot, const uint8_t *header, size_t len, struct err *err)
{
    struct boot_plan *plan = &boot->plan;
    Elf64_Ehdr eh;
    int rc = 0;

    if (len < sizeof(eh) || memcmp(header, ELFMAG, SELFMAG) != 0) {
        return -ENOEXEC;
    }
    memcpy(&eh, header, sizeof(eh));
    if (eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_ident[EI_DATA] != ELFDATA2LSB ||
        eh.e_machine != EM_X86_64 || eh.e_type != ET_EXEC) {
        return err_set(err, -ENOEXEC,
                       "\"%s\" is an ELF file, but not a statically linked x86-64 kernel",
                       boot->kernel.path);
    }
    if (eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phnum == 0 ||
        eh.e_phnum > MAX_PROGRAM_HEADERS || eh.e_phoff > boot->kernel.size_bytes) {
        return damaged(boot, "its program headers make no sense", err);
    }
    plan->mode = BOOT_LONG_MODE;
    plan->entry = eh.e_entry;
    plan->kernel_start = UINT64_MAX;
    plan->kernel_end = 0;
    plan->initrd_max = UINT32_MAX;
    rc = segments_load(boot, &eh, err);
    if (rc != 0) {
        return rc;
    }
    if (plan->entry < plan->kernel_start || plan->entry >= plan->kernel_end) {
        return damaged(boot, "its entry lies outside its segments", err);
    }
    return 0;
}

int boot_write_pvh_info(struct boot *boot, struct err *err)
{
    const struct boot_plan *plan = &boot->plan;
    uint8_t info[PVH_INFO_BYTES + PVH_MODULE_BYTES + BOOT_E820_MAX * PVH_MAP_ENTRY_BYTES] = {0};
    uint8_t *module = info + PVH_INFO_BYTES;
    uint8_t *entry = module + PVH_MODULE_BYTES;
    struct boot_e820 map[BOOT_E820_MAX];
    unsigned count = boot_memory_map(boot, map);
    int rc = 0;

    store_le32(info, PVH_MAGIC);
    store_le32(info + 4, 1); /* version: with a memory map */
    if (plan->initrd_bytes != 0) {
        store_le32(info + 12, 1);
        store_le64(info + 16, MAP_PVH_INFO + PVH_INFO_BYTES);
        store_le64(module, plan->initrd_gpa);
        store_le64(module + 8, plan->initrd_bytes);
    }
    store_le64(info + 24, MAP_CMDLINE);
    store_le64(info + 32, MAP_ACPI);
    store_le64(info + 40, MAP_PVH_INFO + PVH_INFO_BYTES + PVH_MODULE_BYTES);
    store_le32(info + 48, count);
    for (unsigned i = 0; i < count; i++) {
        store_le64(entry, map[i].start);
        store_le64(entry + 8, map[i].len);
        store_le32(entry + 16, map[i].type);
        entry += PVH_MAP_ENTRY_BYTES;
    }
    rc = gmem_write(boot->gmem, gpa(MAP_PVH_INFO), info, sizeof(info));
    return rc == 0 ? 0 : err_set_errno(err, rc, "start info");
}
