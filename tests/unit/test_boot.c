/* Kernels good, bad and hostile; what is in memory afterwards; the ACPI tables. */
#include "base/wire.h"
#include "machine/acpi.h"
#include "machine/boot.h"
#include "machine/memory_map.h"
#include "test.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RAM (64u << 20)
#define SETUP_BYTES (5u * 512)
#define PAYLOAD_BYTES 4096u

struct fixture {
    struct gmem *gmem;
    char path[32];
    int fd;
    struct err err;
    struct boot *boot;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    assert_int_equal(gmem_create(RAM, &f->err, &f->gmem), 0);
    strcpy(f->path, "/tmp/corbel-test-boot-XXXXXX");
    f->fd = mkstemp(f->path);
    assert_true(f->fd >= 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    boot_destroy(f->boot);
    gmem_destroy(f->gmem);
    close(f->fd);
    unlink(f->path);
    free(f);
    return 0;
}

static void file_set(struct fixture *f, const void *data, size_t len)
{
    assert_int_equal(ftruncate(f->fd, 0), 0);
    assert_int_equal(pwrite(f->fd, data, len, 0), (ssize_t)len);
}

static int create(struct fixture *f, const char *initrd, const char *cmdline)
{
    boot_destroy(f->boot);
    f->boot = NULL;
    f->err = (struct err){0};
    const struct acpi_config acpi = {.cpus_present = 3, .cpus_max = 2};

    return boot_create(f->gmem, &acpi, f->path, initrd, cmdline, &f->err, &f->boot);
}

static void fails(struct fixture *f, int code, const char *words)
{
    assert_int_equal(create(f, NULL, "x"), code);
    assert_int_equal(f->err.code, code);
    if (strstr(f->err.text, words) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", f->err.text, words);
    }
}

/* A bzImage as small as one can be: a setup header and a page of payload. */
static void make_bzimage(uint8_t image[SETUP_BYTES + PAYLOAD_BYTES])
{
    memset(image, 0, SETUP_BYTES + PAYLOAD_BYTES);
    memset(image + SETUP_BYTES, 0xab, PAYLOAD_BYTES);
    image[0x1f1] = 4;
    store_le32(image + 0x1f4, PAYLOAD_BYTES / 16);
    store_le16(image + 0x1fe, 0xaa55);
    image[0x201] = 0x66;
    memcpy(image + 0x202, "HdrS", 4);
    store_le16(image + 0x206, 0x020f);
    store_le32(image + 0x22c, 0x7fffffff);
    store_le32(image + 0x230, 0x200000);
    image[0x234] = 1;
    store_le16(image + 0x236, 1);
    store_le32(image + 0x238, 2047);
    store_le64(image + 0x258, 0x1000000);
    store_le32(image + 0x260, 0x100000);
}

static uint32_t load32(struct fixture *f, uint64_t address)
{
    uint8_t bytes[4];

    assert_int_equal(gmem_read(f->gmem, gpa(address), bytes, 4), 0);
    return load_le32(bytes);
}

static void test_bzimage_is_placed_and_described(void **state)
{
    struct fixture *f = *state;
    static uint8_t image[SETUP_BYTES + PAYLOAD_BYTES];
    struct vcpu_state cpu;
    char cmdline[8] = {0};
    uint32_t initrd = 0;

    make_bzimage(image);
    file_set(f, image, sizeof(image));
    assert_int_equal(create(f, f->path, "abc"), 0);
    assert_int_equal(load32(f, 0x1000000), 0xabababab);
    assert_int_equal(gmem_read(f->gmem, gpa(MAP_CMDLINE), cmdline, 4), 0);
    assert_string_equal(cmdline, "abc");
    assert_int_equal(load32(f, MAP_ZERO_PAGE + 0x228), MAP_CMDLINE);
    assert_int_equal(load32(f, MAP_ZERO_PAGE + 0x70), MAP_ACPI);
    assert_int_equal(load32(f, MAP_ZERO_PAGE + 0x258), 0x1000000); /* the kernel's own header */
    initrd = load32(f, MAP_ZERO_PAGE + 0x218);
    assert_int_equal(load32(f, MAP_ZERO_PAGE + 0x21c), sizeof(image));
    assert_int_equal(initrd % 4096, 0);
    assert_in_range(initrd, 0x1100000, RAM - sizeof(image));
    assert_int_equal(load32(f, initrd + SETUP_BYTES), 0xabababab);

    vcpu_state_reset(&cpu, true);
    boot_set_entry(f->boot, &cpu);
    assert_int_equal(cpu.rip, 0x1000200);
    assert_int_equal(cpu.gpr[X86_RSI], MAP_ZERO_PAGE);
    assert_int_equal(cpu.cr3, MAP_BOOT_PAGE_TABLES);
    assert_int_equal(cpu.seg[X86_CS].access_rights & X86_AR_L, X86_AR_L);
}

static void test_reload_brings_everything_back(void **state)
{
    struct fixture *f = *state;
    static uint8_t image[SETUP_BYTES + PAYLOAD_BYTES];

    make_bzimage(image);
    file_set(f, image, sizeof(image));
    assert_int_equal(create(f, NULL, NULL), 0);
    assert_int_equal(gmem_fill(f->gmem, gpa(0), 0, RAM), 0);
    assert_int_equal(boot_load_again(f->boot, 1, &f->err), 0);
    assert_int_equal(load32(f, 0x1000000), 0xabababab);
    assert_int_equal(load32(f, MAP_ACPI), 0x20445352);
    assert_int_equal(ftruncate(f->fd, SETUP_BYTES + 8), 0); /* the file shrank meanwhile */
    assert_int_equal(boot_load_again(f->boot, 1, &f->err), -ENOEXEC);
}

static void test_files_that_are_no_kernel_are_refused(void **state)
{
    struct fixture *f = *state;
    static uint8_t image[SETUP_BYTES + PAYLOAD_BYTES];

    file_set(f, "", 0);
    fails(f, -ENOEXEC, "is not a kernel");
    file_set(f, "#!/bin/sh\n", 10);
    fails(f, -ENOEXEC, "is not a kernel");
    memset(image, 0x55, sizeof(image));
    file_set(f, image, sizeof(image));
    fails(f, -ENOEXEC, "is not a kernel");
    make_bzimage(image);
    file_set(f, image, 0x280);
    fails(f, -ENOEXEC, "is not a kernel");
    file_set(f, image, SETUP_BYTES);
    fails(f, -ENOEXEC, "truncated");
    file_set(f, image, sizeof(image) - 16);
    fails(f, -ENOEXEC, "truncated");
    store_le16(image + 0x206, 0x0200);
    file_set(f, image, sizeof(image));
    fails(f, -ENOEXEC, "boot protocol 2.0");
    make_bzimage(image);
    store_le16(image + 0x236, 0);
    file_set(f, image, sizeof(image));
    fails(f, -ENOEXEC, "no 64-bit entry");
    make_bzimage(image);
    store_le32(image + 0x1f4, 0xffffffff);
    file_set(f, image, sizeof(image));
    fails(f, -ENOEXEC, "truncated");
}

static void test_kernels_that_do_not_fit_say_so(void **state)
{
    struct fixture *f = *state;
    static uint8_t image[SETUP_BYTES + PAYLOAD_BYTES];
    struct vcpu_state cpu;

    make_bzimage(image);
    store_le32(image + 0x260, RAM);
    file_set(f, image, sizeof(image));
    fails(f, -E2BIG, "more memory");
    store_le32(image + 0x260, RAM - (3u << 20)); /* only lower down */
    file_set(f, image, sizeof(image));
    assert_int_equal(create(f, NULL, NULL), 0);
    vcpu_state_reset(&cpu, true);
    boot_set_entry(f->boot, &cpu);
    assert_int_equal(cpu.rip, 0x200200);
    store_le64(image + 0x258, UINT64_MAX - 100);
    store_le32(image + 0x230, 3); /* no alignment at all */
    file_set(f, image, sizeof(image));
    fails(f, -E2BIG, "more memory");
    make_bzimage(image);
    store_le32(image + 0x238, 0);
    file_set(f, image, sizeof(image));
    fails(f, -E2BIG, "command line");
    make_bzimage(image);
    store_le32(image + 0x260, RAM - 0x1000000); /* no room for an initrd */
    file_set(f, image, sizeof(image));
    assert_int_equal(create(f, f->path, NULL), -E2BIG);
    assert_non_null(strstr(f->err.text, "initrd"));
}

static void test_missing_files_are_named(void **state)
{
    const struct acpi_config acpi = {.cpus_present = 1, .cpus_max = 1};
    struct fixture *f = *state;

    assert_int_equal(
        boot_create(f->gmem, &acpi, "/nonexistent/vmlinuz", NULL, NULL, &f->err, &f->boot),
        -ENOENT);
    assert_non_null(strstr(f->err.text, "/nonexistent/vmlinuz"));
    assert_int_equal(boot_create(f->gmem, &acpi, "/tmp", NULL, NULL, &f->err, &f->boot), -EINVAL);
    assert_int_equal(create(f, "/nonexistent/initrd", NULL), -ENOENT);
    assert_non_null(strstr(f->err.text, "/nonexistent/initrd"));
}

struct elf {
    Elf64_Ehdr eh;
    Elf64_Phdr ph[2];
    uint8_t note[24];
    uint8_t text[64];
};

static struct elf make_elf(void)
{
    struct elf elf = {0};

    memcpy(elf.eh.e_ident, ELFMAG, SELFMAG);
    elf.eh.e_ident[EI_CLASS] = ELFCLASS64;
    elf.eh.e_ident[EI_DATA] = ELFDATA2LSB;
    elf.eh.e_type = ET_EXEC;
    elf.eh.e_machine = EM_X86_64;
    elf.eh.e_entry = 0x200010;
    elf.eh.e_phoff = offsetof(struct elf, ph);
    elf.eh.e_phentsize = sizeof(Elf64_Phdr);
    elf.eh.e_phnum = 1;
    elf.ph[0] = (Elf64_Phdr){.p_type = PT_LOAD,
                             .p_offset = offsetof(struct elf, text),
                             .p_paddr = 0x200000,
                             .p_filesz = sizeof(elf.text),
                             .p_memsz = 8192};
    elf.ph[1] = (Elf64_Phdr){
        .p_type = PT_NOTE, .p_offset = offsetof(struct elf, note), .p_filesz = sizeof(elf.note)};
    store_le32(elf.note, 4);
    store_le32(elf.note + 4, 8);
    store_le32(elf.note + 8, 18);
    memcpy(elf.note + 12, "Xen", 4);
    store_le32(elf.note + 16, 0x200020);
    memset(elf.text, 0x90, sizeof(elf.text));
    return elf;
}

static void test_elf_enters_in_long_mode_or_by_pvh(void **state)
{
    struct fixture *f = *state;
    struct elf elf = make_elf();
    struct vcpu_state cpu;

    file_set(f, &elf, sizeof(elf));
    assert_int_equal(gmem_fill(f->gmem, gpa(0x200000), 0xff, 8192), 0);
    assert_int_equal(create(f, NULL, "c"), 0);
    assert_int_equal(load32(f, 0x20003c), 0x90909090);
    assert_int_equal(load32(f, 0x200040), 0); /* the rest of its memory is zero */
    assert_int_equal(load32(f, 0x201ffc), 0);
    vcpu_state_reset(&cpu, true);
    boot_set_entry(f->boot, &cpu);
    assert_int_equal(cpu.rip, 0x200010);
    assert_int_equal(cpu.gpr[X86_RSI], MAP_ZERO_PAGE);

    elf.eh.e_phnum = 2;
    file_set(f, &elf, sizeof(elf));
    assert_int_equal(create(f, NULL, "c"), 0);
    vcpu_state_reset(&cpu, true);
    boot_set_entry(f->boot, &cpu);
    assert_int_equal(cpu.rip, 0x200020);
    assert_int_equal(cpu.gpr[X86_RBX], MAP_PVH_INFO);
    assert_int_equal(cpu.cr0 & (X86_CR0_PG | X86_CR0_PE), X86_CR0_PE);
    assert_int_equal(load32(f, MAP_PVH_INFO), 0x336ec578);
    assert_int_equal(load32(f, MAP_PVH_INFO + 24), MAP_CMDLINE);
    assert_int_equal(load32(f, MAP_PVH_INFO + 48), 3);
}

static void test_damaged_elf_is_refused(void **state)
{
    struct fixture *f = *state;
    struct elf elf = make_elf();

    file_set(f, &elf, offsetof(struct elf, text) + 10);
    fails(f, -ENOEXEC, "beyond the end");
    elf.eh.e_phnum = 65;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "program headers");
    elf = make_elf();
    elf.eh.e_phoff = UINT64_MAX - 8;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "program headers");
    elf = make_elf();
    elf.eh.e_machine = EM_AARCH64;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "not a statically linked x86-64 kernel");
    elf = make_elf();
    elf.ph[0].p_memsz = 8;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "beyond the end");
    elf = make_elf();
    elf.ph[0].p_paddr = UINT64_MAX - 4096;
    file_set(f, &elf, sizeof(elf));
    fails(f, -E2BIG, "more memory");
    elf = make_elf();
    elf.ph[0].p_memsz = UINT64_MAX;
    file_set(f, &elf, sizeof(elf));
    fails(f, -E2BIG, "more memory");
    elf = make_elf();
    elf.ph[0].p_paddr = MAP_ACPI;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "1 MiB");
    elf = make_elf();
    elf.eh.e_entry = 0x300000;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "entry");
    elf = make_elf();
    elf.ph[0].p_type = PT_NULL;
    file_set(f, &elf, sizeof(elf));
    fails(f, -ENOEXEC, "nothing to load");
    elf = make_elf();
    elf.eh.e_phnum = 2;
    store_le32(elf.note, UINT32_MAX); /* a note longer than the notes */
    file_set(f, &elf, sizeof(elf));
    assert_int_equal(create(f, NULL, NULL), 0);
}

/* The table with this signature, found as a guest finds it; its checksum holds. */
static const uint8_t *acpi_find(const uint8_t *tables, int len, const char *signature)
{
    const uint8_t *xsdt = tables + (load_le64(tables + 24) - MAP_ACPI);

    for (uint32_t at = 36; at < load_le32(xsdt + 4); at += 8) {
        uint64_t offset = load_le64(xsdt + at) - MAP_ACPI;
        uint8_t sum = 0;

        assert_true(offset < (uint64_t)len);
        if (memcmp(tables + offset, signature, 4) == 0) {
            for (uint32_t i = 0; i < load_le32(tables + offset + 4); i++) {
                sum = (uint8_t)(sum + tables[offset + i]);
            }
            assert_int_equal(sum, 0);
            return tables + offset;
        }
    }
    fail_msg("no table %s", signature);
    return NULL;
}

static void test_acpi_tables_are_linked_and_sound(void **state)
{
    static uint8_t tables[MAP_ACPI_BYTES];
    const uint8_t *fadt = NULL, *madt = NULL, *dsdt = NULL;
    const struct acpi_config config = {.cpus_present = 5, .cpus_max = 3, .has_cpu_hotplug = true};
    unsigned cpus = 0, present = 0;
    uint8_t sum = 0;
    int len = acpi_build(&config, MAP_ACPI, tables, sizeof(tables));

    (void)state;
    assert_true(len > 0);
    assert_memory_equal(tables, "RSD PTR ", 8);
    for (unsigned i = 0; i < 36; i++) {
        sum = (uint8_t)(sum + tables[i]);
    }
    assert_int_equal(sum, 0);
    fadt = acpi_find(tables, len, "FACP");
    assert_int_equal(load_le16(fadt + 46), MAP_GSI_SCI);
    assert_int_equal(load_le32(fadt + 76), MAP_PORT_ACPI_PM + 8);
    dsdt = tables + (load_le64(fadt + 140) - MAP_ACPI);
    assert_memory_equal(dsdt, "DSDT", 4);
    madt = acpi_find(tables, len, "APIC");
    for (uint32_t at = 44; at < load_le32(madt + 4); at += madt[at + 1]) {
        assert_true(madt[at + 1] >= 2);
        cpus += madt[at] == 0;
        present |= madt[at] == 0 && (load_le32(madt + at + 4) & 1) != 0 ? 1u << madt[at + 3] : 0;
    }
    assert_int_equal(cpus, 3);
    assert_int_equal(present, 5);
    for (unsigned room = 0; room < (unsigned)len; room += 16) {
        uint8_t *small = malloc(room + 1);

        assert_non_null(small);
        assert_int_equal(acpi_build(&config, MAP_ACPI, small, room), -ENOSPC);
        free(small);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_bzimage_is_placed_and_described),
        TEST(test_reload_brings_everything_back),
        TEST(test_files_that_are_no_kernel_are_refused),
        TEST(test_kernels_that_do_not_fit_say_so),
        TEST(test_missing_files_are_named),
        TEST(test_elf_enters_in_long_mode_or_by_pvh),
        TEST(test_damaged_elf_is_refused),
        cmocka_unit_test(test_acpi_tables_are_linked_and_sound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
