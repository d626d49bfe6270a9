/*
 * Disks of other products, and compressed ones, into raw disks of ours.
 *
 * The format is always told, never guessed: what a stranger wrote into a file
 * does not choose who reads it. Whatever must be parsed is parsed in a jail
 * (jail.h); what comes out is a fresh raw file. An image that names other
 * files (backing images, data files) is refused; the parts of a VMDK disk are
 * taken when they lie beside it and are called as it is.
 */
#ifndef CORBEL_STORAGE_IMPORT_H
#define CORBEL_STORAGE_IMPORT_H

#include "base/error.h"
#include "storage/digest.h"

#include <stdint.h>

enum import_format {
    IMPORT_RAW,
    IMPORT_QCOW2,
    IMPORT_VMDK,
    IMPORT_VHD,
    IMPORT_VHDX,
    IMPORT_VDI,
    IMPORT_OVA /* a tar file with a description, a manifest and VMDK disks */
};

enum import_compression { COMPRESSION_NONE, COMPRESSION_GZIP, COMPRESSION_XZ, COMPRESSION_ZSTD };

struct import_request {
    const char *path; /* of the source */
    enum import_format format;
    enum import_compression compression;
    const struct digest *digest; /* of the source; NULL: not known */
    uint64_t max_bytes;          /* of the disk */
    const char *target;          /* the raw file; made, must not exist */
};

/* By name: "vmdk"; "gz". -EINVAL for an unknown one. */
int import_format_parse(const char *name, enum import_format *ret_format) MUST_CHECK;
int import_compression_parse(const char *name, enum import_compression *ret_compression) MUST_CHECK;
const char *import_format_name(enum import_format format);

/* What a file's name says of it: "disk.vmdk", "disk.raw.xz". -EINVAL when that is nothing. */
int import_parse_name(const char *path, enum import_format *ret_format,
                      enum import_compression *ret_compression) MUST_CHECK;

/*
 * -EBADMSG when the source is damaged, not of its format, or not what its
 * checksum says; -EPERM when it names other files; -EFBIG when the disk would
 * be longer than allowed; -ETIME when reading it takes longer than its length
 * explains; -ENXIO when a program or the jail is missing. Then no target is
 * left.
 */
int import_disk(const struct import_request *request, struct err *err) MUST_CHECK;

#define IMPORT_CMDLINE_BYTES 480u

struct import_kernel {
    char name[96]; /* of the file on the disk */
    char cmdline[IMPORT_CMDLINE_BYTES];
};

/*
 * Copies the kernel and the initrd that a raw disk's GRUB would start first
 * into the directory, as vmlinuz and initrd. The disk has a GPT, an MBR or no
 * partitions, and them on ext2 to ext4. -ENOENT when there is none such; err
 * says what is missing; other errors are those of import_disk().
 */
int import_find_kernel(const char *disk, const char *dir, struct import_kernel *ret_kernel,
                       struct err *err) MUST_CHECK;

struct export_request {
    const char *path;          /* a disk of ours */
    const char *source_format; /* "raw" or "qcow2" */
    enum import_format format;
    const char *target; /* made, must not exist */
    /* For an OVA: what the machine is called, and its memory (0: 1024). */
    const char *name;
    unsigned memory_mib;
};

/* The other way, also in the jail. */
int import_export_disk(const struct export_request *request, struct err *err) MUST_CHECK;

#endif
