/*
 * What the importer runs in its jails: the parsers of strangers' bytes, and
 * what each shares with the importer, which judges all of it again. Apart from
 * their jails so that tests/fuzz can call them without one.
 *
 * Each takes its structure as an opaque one, as jail_run() wants it, and says through
 * err what is wrong.
 */
#ifndef CORBEL_STORAGE_IMPORT_JAILED_H
#define CORBEL_STORAGE_IMPORT_JAILED_H

#include "storage/import_internal.h"

/* ---- import_vmdk.c ---- */

#define IMPORT_VMDK_MAX_EXTENTS 512u
#define IMPORT_VMDK_NAME_BYTES 256u

enum import_extent_kind { EXTENT_ZERO, EXTENT_FLAT, EXTENT_SPARSE };

struct import_extent {
    enum import_extent_kind kind;
    uint64_t sectors;
    uint64_t first; /* in the disk */
    uint64_t file_sector;
    char name[IMPORT_VMDK_NAME_BYTES];
    int fd;
};

struct import_vmdk {
    struct import_part text;
    int out;
    struct import_extent extents[IMPORT_VMDK_MAX_EXTENTS];
    unsigned count;
    uint64_t sectors;
};

/* Reads the text into the list of extents, whose files it does not open. */
int import_vmdk_read_text(void *opaque, struct err *err) MUST_CHECK;
/* Copies what the extents' files hold to `out`. */
int import_vmdk_copy_extents(void *opaque, struct err *err) MUST_CHECK;

/* ---- import_kernel.c ---- */

#define IMPORT_MAX_PLACES 16u
#define IMPORT_KERNEL_PATH_BYTES 256u

/* Where file systems of the ext family begin on a disk. */
struct import_places {
    int fd;
    uint64_t offsets[IMPORT_MAX_PLACES];
    unsigned count;
};

int import_look_for_places(void *opaque, struct err *err) MUST_CHECK;

/* What a GRUB configuration starts first. */
struct import_choice {
    char *text; /* ended by NUL; it is changed */
    char kernel[IMPORT_KERNEL_PATH_BYTES];
    char initrd[IMPORT_KERNEL_PATH_BYTES];
    char cmdline[IMPORT_CMDLINE_BYTES];
};

int import_read_grub(void *opaque, struct err *err) MUST_CHECK;

/* ---- import_ext.c ---- */

/* A file on an ext2, ext3 or ext4 file system that begins at an offset of the disk. */
struct import_ext_file {
    int disk;
    uint64_t offset;
    const char *path; /* from its root, without symbolic links in it */
    int out;          /* an empty file that it is copied to; -1: into text */
    char *text;       /* ended by NUL */
    size_t text_bytes;
};

/* -ENOENT when there is no such file, -EFBIG when it is longer than 1 GiB or the text. */
int import_read_ext_file(void *opaque, struct err *err) MUST_CHECK;

/* ---- import_ova.c ---- */

#define IMPORT_OVA_MAX_ENTRIES 64u
#define IMPORT_OVA_NAME_BYTES 101u

struct import_ova_entry {
    char name[IMPORT_OVA_NAME_BYTES];
    uint64_t offset, len;
};

struct import_ova {
    int fd;
    uint64_t len;
    struct import_ova_entry entries[IMPORT_OVA_MAX_ENTRIES];
    unsigned count;
    uint64_t disk_offset, disk_len; /* the result */
};

int import_search_ova(void *opaque, struct err *err) MUST_CHECK;

#endif
