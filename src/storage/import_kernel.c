/*
 * The kernel of a whole disk, for machines that have no firmware to find it:
 * what the disk's GRUB would start first. UEFI 2.10 §5.3 and the MBR for
 * partitions; ext2 to ext4 by import_ext.c. All of it in jails.
 */
#include "base/io.h"
#include "base/wire.h"
#include "storage/import_jailed.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR_BYTES 512u
#define GPT_ENTRY_BYTES 128u
#define GPT_MAX_ENTRIES 128u
#define MAX_SECTORS (INT64_MAX / SECTOR_BYTES)
#define EXT_MAGIC_AT (1024u + 56u)
#define EXT_MAGIC 0xef53u
#define MAX_CONFIG_BYTES (512u << 10)
#define MAX_FILE_BYTES (1ull << 30)
#define SERIAL_CONSOLE "console=ttyS0"

static const char *const configs[] = {"/boot/grub/grub.cfg", "/grub/grub.cfg",
                                      "/boot/grub2/grub.cfg", "/grub2/grub.cfg"};

/* ---- partitions; in the jail ---- */

static int read_sector(int fd, uint64_t sector, void *buf)
{
    ssize_t n =
        sector < MAX_SECTORS ? io_pread_full(fd, buf, SECTOR_BYTES, sector * SECTOR_BYTES) : -EIO;

    return n == SECTOR_BYTES ? 0 : -EIO;
}

static void note_place(struct import_places *places, uint64_t sector)
{
    unsigned char magic[2];
    uint64_t offset = sector * SECTOR_BYTES;

    if (places->count < IMPORT_MAX_PLACES && sector < MAX_SECTORS &&
        io_pread_full(places->fd, magic, sizeof(magic), offset + EXT_MAGIC_AT) == sizeof(magic) &&
        load_le16(magic) == EXT_MAGIC) {
        places->offsets[places->count++] = offset;
    }
}

static void look_in_gpt(struct import_places *places, const unsigned char *header)
{
    static const unsigned char unused[16];
    uint64_t table = load_le64(header + 72);
    uint32_t entries = load_le32(header + 80);
    unsigned char sector[SECTOR_BYTES];

    if (load_le32(header + 84) != GPT_ENTRY_BYTES || table >= MAX_SECTORS) {
        return;
    }
    entries = entries < GPT_MAX_ENTRIES ? entries : GPT_MAX_ENTRIES;
    for (uint32_t i = 0; i < entries; i++) {
        const unsigned char *entry = sector + (size_t)(i % 4) * GPT_ENTRY_BYTES;

        if (i % 4 == 0 && read_sector(places->fd, table + i / 4, sector) < 0) {
            return;
        }
        if (memcmp(entry, unused, sizeof(unused)) != 0) {
            note_place(places, load_le64(entry + 32));
        }
    }
}

int import_look_for_places(void *opaque, struct err *err)
{
    struct import_places *places = opaque;
    unsigned char first[SECTOR_BYTES];
    unsigned char second[SECTOR_BYTES];

    if (read_sector(places->fd, 0, first) < 0 || read_sector(places->fd, 1, second) < 0) {
        return err_set(err, -EIO, "the disk is too short");
    }
    if (memcmp(second, "EFI PART", 8) == 0) {
        look_in_gpt(places, second);
    } else if (load_le16(first + 510) == 0xaa55) {
        for (unsigned i = 0; i < 4; i++) {
            note_place(places, load_le32(first + 446 + (size_t)16 * i + 8));
        }
    }
    if (places->count == 0) {
        note_place(places, 0);
    }
    return places->count > 0 ? 0 : err_set(err, -ENOENT, "no ext4 file system is on it");
}

/* ---- GRUB's configuration; in the jail ---- */

/* What a file may be called. */
static bool is_plain_path(const char *path)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._+~/";

    return path[0] == '/' && strlen(path) < IMPORT_KERNEL_PATH_BYTES &&
           strspn(path, plain) == strlen(path);
}

/* Words that only GRUB can resolve are left out. */
static int take_cmdline(char **save, char *out)
{
    const char *word;
    size_t len = 0;

    out[0] = '\0';
    while ((word = strtok_r(NULL, " \t", save)) != NULL) {
        int n;

        if (strchr(word, '$') != NULL) {
            continue;
        }
        n = snprintf(out + len, IMPORT_CMDLINE_BYTES - len, "%s%s", len > 0 ? " " : "", word);
        if (n < 0 || (size_t)n >= IMPORT_CMDLINE_BYTES - len) {
            return -E2BIG;
        }
        len += (size_t)n;
    }
    for (const char *p = out; *p != '\0'; p++) {
        if (*p < ' ' || *p > '~') {
            return -EBADMSG;
        }
    }
    if (strstr(out, SERIAL_CONSOLE) == NULL) {
        if (len + sizeof(" " SERIAL_CONSOLE) > IMPORT_CMDLINE_BYTES) {
            return -E2BIG;
        }
        memcpy(out + len, " " SERIAL_CONSOLE, sizeof(" " SERIAL_CONSOLE));
    }
    return 0;
}

/* True when there is nothing more to look for. */
static bool take_line(struct import_choice *choice, char *line)
{
    char *save = NULL;
    const char *command = strtok_r(line, " \t", &save);
    const char *path = command != NULL ? strtok_r(NULL, " \t", &save) : NULL;

    if (path == NULL || !is_plain_path(path)) {
        return false;
    }
    if (strncmp(command, "initrd", 6) == 0 && choice->kernel[0] != '\0') {
        (void)snprintf(choice->initrd, sizeof(choice->initrd), "%s", path);
        return true;
    }
    if (strncmp(command, "linux", 5) == 0 && choice->kernel[0] == '\0' &&
        take_cmdline(&save, choice->cmdline) == 0) {
        (void)snprintf(choice->kernel, sizeof(choice->kernel), "%s", path);
    }
    return false;
}

int import_read_grub(void *opaque, struct err *err)
{
    struct import_choice *choice = opaque;
    char *save = NULL;

    for (char *line = strtok_r(choice->text, "\r\n", &save); line != NULL;
         line = strtok_r(NULL, "\r\n", &save)) {
        if (take_line(choice, line)) {
            return 0;
        }
    }
    return err_set(err, -ENOENT, "its GRUB names no Linux with an initrd");
}

/* ---- files of the disk ---- */

static const struct jail_limits limits_of_files = {
    .file_bytes = MAX_FILE_BYTES, .cpu_seconds = 60, .wall_seconds = 300};

static int extract(int disk, uint64_t offset, const char *from, const char *to, struct err *err)
{
    CLEANUP_CLOSE int out = open(to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct import_ext_file file = {.disk = disk, .offset = offset, .path = from, .out = out};
    struct stat st;
    int rc;

    if (out < 0) {
        return err_set_errno(err, -errno, "%s cannot be made", to);
    }
    rc = jail_run(&limits_of_files, import_read_ext_file, &file, err);
    if (rc == -ENOENT || (rc == 0 && (fstat(out, &st) != 0 || st.st_size == 0))) {
        rc = err_set(err, -ENOENT, "it has no file %.100s, which its GRUB names", from);
    }
    if (rc == 0 && fsync(out) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be written", to);
    }
    if (rc < 0) {
        (void)unlink(to);
    }
    return rc;
}

/* text has MAX_CONFIG_BYTES, which the jail's child writes too. */
static int choose(int disk, uint64_t offset, char *text, struct import_choice *choice,
                  struct err *err)
{
    const struct jail_limits limits = {.cpu_seconds = 10, .wall_seconds = 60};
    int rc = err_set(err, -ENOENT, "no GRUB is on it");

    for (size_t i = 0; rc == -ENOENT && i < ARRAY_LEN(configs); i++) {
        struct import_ext_file file = {.disk = disk,
                                       .offset = offset,
                                       .path = configs[i],
                                       .out = -1,
                                       .text = text,
                                       .text_bytes = MAX_CONFIG_BYTES};
        struct err why;
        int read = jail_run(&limits_of_files, import_read_ext_file, &file, &why);

        if (read < 0 && read != -ENOENT) {
            *err = why;
            return read;
        }
        if (read == 0 && text[0] != '\0') {
            text[MAX_CONFIG_BYTES - 1] = '\0'; /* the child could have been taken over */
            memset(choice, 0, sizeof(*choice));
            choice->text = text;
            rc = jail_run(&limits, import_read_grub, choice, err);
        }
    }
    return rc;
}

/* ---- together ---- */

struct work {
    char text[MAX_CONFIG_BYTES];
    struct import_places places;
    struct import_choice choice;
};

static int take(int disk, uint64_t offset, const struct import_choice *found, const char *dir,
                struct import_kernel *ret_kernel, struct err *err)
{
    struct import_choice choice = *found;
    const char *slash;
    char kernel[PATH_MAX];
    char initrd[PATH_MAX];
    int rc;

    /* A child that was taken over could have written anything. */
    choice.kernel[sizeof(choice.kernel) - 1] = '\0';
    choice.initrd[sizeof(choice.initrd) - 1] = '\0';
    choice.cmdline[sizeof(choice.cmdline) - 1] = '\0';
    if (!is_plain_path(choice.kernel) || !is_plain_path(choice.initrd)) {
        return err_set(err, -EBADMSG, "its GRUB names files in a way that is not known here");
    }
    if (snprintf(kernel, sizeof(kernel), "%s/vmlinuz", dir) >= (int)sizeof(kernel) ||
        snprintf(initrd, sizeof(initrd), "%s/initrd", dir) >= (int)sizeof(initrd)) {
        return err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    rc = extract(disk, offset, choice.kernel, kernel, err);
    if (rc == 0) {
        rc = extract(disk, offset, choice.initrd, initrd, err);
        if (rc < 0) {
            (void)unlink(kernel);
        }
    }
    if (rc == 0) {
        slash = strrchr(choice.kernel, '/');
        (void)snprintf(ret_kernel->name, sizeof(ret_kernel->name), "%.90s", slash + 1);
        memcpy(ret_kernel->cmdline, choice.cmdline, sizeof(ret_kernel->cmdline));
    }
    return rc;
}

static int search(int disk, struct work *work, const char *dir, struct import_kernel *ret_kernel,
                  struct err *err)
{
    const struct jail_limits limits = {.cpu_seconds = 10, .wall_seconds = 60};
    int rc;

    work->places.fd = disk;
    rc = jail_run(&limits, import_look_for_places, &work->places, err);
    if (rc < 0) {
        return rc;
    }
    rc = -ENOENT;
    for (unsigned i = 0; rc < 0 && rc != -ENXIO && i < work->places.count && i < IMPORT_MAX_PLACES;
         i++) {
        rc = choose(disk, work->places.offsets[i], work->text, &work->choice, err);
        if (rc == 0) {
            rc = take(disk, work->places.offsets[i], &work->choice, dir, ret_kernel, err);
        }
    }
    return rc;
}

int import_find_kernel(const char *disk, const char *dir, struct import_kernel *ret_kernel,
                       struct err *err)
{
    CLEANUP_CLOSE int fd = open(disk, O_RDONLY | O_CLOEXEC);
    struct work *work;
    int rc;

    if (fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be read", disk);
    }
    work = mmap(NULL, sizeof(*work), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (work == MAP_FAILED) {
        return err_set_errno(err, -errno, "out of memory");
    }
    rc = search(fd, work, dir, ret_kernel, err);
    (void)munmap(work, sizeof(*work));
    return rc;
}
