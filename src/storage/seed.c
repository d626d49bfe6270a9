/* FAT12 as in Microsoft's FAT specification (fatgen103), with long names. */
#include "storage/seed.h"

#include "base/io.h"
#include "base/path.h"
#include "base/wire.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u
#define SECTORS 2048u
#define FAT_SECTORS 6u /* 12 bits for each of some 2,000 clusters of a sector each */
#define FAT_START 1u
#define ROOT_START (FAT_START + 2 * FAT_SECTORS)
#define ROOT_ENTRIES 32u
#define ROOT_SECTORS (ROOT_ENTRIES * 32 / SECTOR)
#define DATA_START (ROOT_START + ROOT_SECTORS)
#define FIRST_CLUSTER 2u
#define MAX_CLUSTERS (SECTORS - DATA_START)
#define END_OF_CHAIN 0xfffu
#define LONG_NAME_CHARS 13u
#define SHORT_NAME_BYTES 11u

#define ATTRIBUTE_READ_ONLY 0x01u
#define ATTRIBUTE_LABEL 0x08u
#define ATTRIBUTE_LONG_NAME 0x0fu

struct volume {
    uint8_t *bytes;
    unsigned next_cluster;
    unsigned next_entry;
};

static void put_boot_sector(struct volume *volume, const char *label)
{
    uint8_t *s = volume->bytes;

    memcpy(s,
           "\xeb\x3c\x90"
           "CORBEL  ",
           11);
    store_le16(s + 11, SECTOR);
    s[13] = 1; /* sectors of a cluster */
    store_le16(s + 14, FAT_START);
    s[16] = 2; /* tables */
    store_le16(s + 17, ROOT_ENTRIES);
    store_le16(s + 19, SECTORS);
    s[21] = 0xf8; /* a fixed disk */
    store_le16(s + 22, FAT_SECTORS);
    store_le16(s + 24, 32); /* sectors of a track, and heads: of no meaning */
    store_le16(s + 26, 2);
    s[36] = 0x80;
    s[38] = 0x29;
    store_le32(s + 39, 0xc1da7a00u); /* its number */
    memcpy(s + 43, label, SHORT_NAME_BYTES);
    memcpy(s + 54, "FAT12   ", 8);
    s[510] = 0x55;
    s[511] = 0xaa;
}

static void put_fat(struct volume *volume, unsigned cluster, unsigned value)
{
    for (unsigned copy = 0; copy < 2; copy++) {
        uint8_t *at = volume->bytes + (FAT_START + copy * FAT_SECTORS) * SECTOR + cluster * 3 / 2;
        unsigned old = load_le16(at);

        store_le16(at, (uint16_t)(cluster % 2 == 0 ? (old & 0xf000u) | value
                                                   : (old & 0x000fu) | value << 4));
    }
}

static uint8_t *take_entry(struct volume *volume)
{
    return volume->bytes + ROOT_START * SECTOR + 32u * volume->next_entry++;
}

static uint8_t checksum(const uint8_t name[SHORT_NAME_BYTES])
{
    uint8_t sum = 0;

    for (unsigned i = 0; i < SHORT_NAME_BYTES; i++) {
        sum = (uint8_t)((sum >> 1 | sum << 7) + name[i]);
    }
    return sum;
}

/* The entries of a long name come before the short one's, its last part first. */
static void put_long_name(struct volume *volume, const char *name, uint8_t sum)
{
    static const uint8_t places[LONG_NAME_CHARS] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
    size_t len = strlen(name);
    unsigned parts = (unsigned)((len + LONG_NAME_CHARS - 1) / LONG_NAME_CHARS);

    for (unsigned part = parts; part >= 1; part--) {
        uint8_t *entry = take_entry(volume);

        entry[0] = (uint8_t)(part | (part == parts ? 0x40u : 0u));
        entry[11] = ATTRIBUTE_LONG_NAME;
        entry[13] = sum;
        for (size_t i = 0; i < LONG_NAME_CHARS; i++) {
            size_t at = (part - 1) * LONG_NAME_CHARS + i;

            store_le16(entry + places[i], at < len    ? (uint16_t)(unsigned char)name[at]
                                          : at == len ? 0
                                                      : 0xffff);
        }
    }
}

static void put_file(struct volume *volume, const struct seed_file *file, unsigned index)
{
    unsigned clusters = (unsigned)((file->len + SECTOR - 1) / SECTOR);
    unsigned first = volume->next_cluster;
    char short_name[SHORT_NAME_BYTES + 1];
    uint8_t *entry;

    (void)snprintf(short_name, sizeof(short_name), "FILE~%u     ", index + 1);
    short_name[8] = short_name[9] = short_name[10] = ' ';
    put_long_name(volume, file->name, checksum((const uint8_t *)short_name));
    entry = take_entry(volume);
    memcpy(entry, short_name, SHORT_NAME_BYTES);
    entry[11] = ATTRIBUTE_READ_ONLY;
    store_le16(entry + 26, (uint16_t)(clusters > 0 ? first : 0));
    store_le32(entry + 28, (uint32_t)file->len);
    if (file->len > 0) {
        memcpy(volume->bytes + (size_t)(DATA_START + first - FIRST_CLUSTER) * SECTOR, file->data,
               file->len);
    }
    for (unsigned i = 0; i < clusters; i++) {
        put_fat(volume, first + i, i + 1 < clusters ? first + i + 1 : END_OF_CHAIN);
    }
    volume->next_cluster += clusters;
}

static int fill(struct volume *volume, const char *label, const struct seed_file files[],
                unsigned count, struct err *err)
{
    char padded[SHORT_NAME_BYTES + 1];
    size_t total = 0;
    uint8_t *entry;

    for (unsigned i = 0; i < count; i++) {
        if (files[i].len > SEED_MAX_BYTES || strlen(files[i].name) > 2 * LONG_NAME_CHARS) {
            return err_set(err, -E2BIG, "%s is too long for instance data", files[i].name);
        }
        total += files[i].len;
    }
    if (count > SEED_MAX_FILES || total > SEED_MAX_BYTES) {
        return err_set(err, -E2BIG, "the instance's data has more than %u bytes", SEED_MAX_BYTES);
    }
    (void)snprintf(padded, sizeof(padded), "%-11.11s", label);
    put_boot_sector(volume, padded);
    put_fat(volume, 0, 0xff8);
    put_fat(volume, 1, END_OF_CHAIN);
    entry = take_entry(volume);
    memcpy(entry, padded, SHORT_NAME_BYTES);
    entry[11] = ATTRIBUTE_LABEL;
    for (unsigned i = 0; i < count; i++) {
        put_file(volume, &files[i], i);
    }
    return 0;
}

/* Where nothing stands, the file has holes. */
static int write_sparse(int fd, const struct volume *volume)
{
    static const uint8_t zeros[SECTOR];
    int rc = ftruncate(fd, (off_t)SECTORS * SECTOR) != 0 ? -errno : 0;

    for (unsigned i = 0; rc == 0 && i < SECTORS; i++) {
        const uint8_t *sector = volume->bytes + (size_t)i * SECTOR;

        if (memcmp(sector, zeros, SECTOR) != 0) {
            rc = lseek(fd, (off_t)i * SECTOR, SEEK_SET) < 0 ? -errno
                                                            : io_write_full(fd, sector, SECTOR);
        }
    }
    return rc;
}

static int put_volume(const struct volume *volume, const char *dir, const char *name,
                      struct err *err)
{
    char path[PATH_MAX], making[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(path, err, "%s/%s", dir, name);

    rc = rc < 0 ? rc : path_format(making, err, "%s/.%s.making", dir, name);
    if (rc < 0) {
        return rc;
    }
    (void)unlink(making); /* of one that was ended on the way */
    fd = open(making, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    rc = fd < 0 ? -errno : write_sparse(fd, volume);
    if (rc == 0 && rename(making, path) != 0) {
        rc = -errno;
    }
    if (rc < 0) {
        (void)unlink(making);
        return err_set_errno(err, rc, "%s cannot be written", path);
    }
    return 0;
}

int seed_write(const char *dir, const char *name, const char *label, const struct seed_file files[],
               unsigned count, struct err *err)
{
    struct volume volume = {.bytes = calloc(SECTORS, SECTOR), .next_cluster = FIRST_CLUSTER};
    int rc;

    static_assert(SEED_MAX_BYTES / SECTOR + SEED_MAX_FILES <= MAX_CLUSTERS, "all files fit");
    static_assert(1 + 3 * SEED_MAX_FILES <= ROOT_ENTRIES, "all names fit");
    if (volume.bytes == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = fill(&volume, label, files, count, err);
    rc = rc < 0 ? rc : put_volume(&volume, dir, name, err);
    free(volume.bytes);
    return rc;
}
