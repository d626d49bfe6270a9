/* Between the parts of the importer. */
#ifndef CORBEL_STORAGE_IMPORT_INTERNAL_H
#define CORBEL_STORAGE_IMPORT_INTERNAL_H

#include "storage/import.h"
#include "storage/jail.h"

/* Part of a file: where a disk's bytes lie. */
struct import_part {
    int fd;
    uint64_t offset, len;
};

/* Time in proportion to what there is to read, so that a small file cannot ask for much. */
void import_limits(uint64_t source_bytes, uint64_t max_bytes, struct jail_limits *ret_limits);

/* import_compressed.c: unpacks all of `in` to the empty file `out`, in a jail. */
int import_decompress(const struct import_part *in, enum import_compression compression,
                      uint64_t max_bytes, int out, struct err *err) MUST_CHECK;

/* Copies to the empty file `out`, leaving out what is zero. Parses nothing. */
int import_copy_sparse(const struct import_part *in, int out, struct err *err) MUST_CHECK;

/* As it, to a place in `out`, whose length stays. 0, or a negative errno. */
int import_copy_part(const struct import_part *in, int out, uint64_t offset) MUST_CHECK;
/* Writes what is not zero of some bytes. */
int import_write_sparse(int out, const char *data, size_t len, uint64_t offset) MUST_CHECK;

/* import_ova.c: finds the disk in the archive and checks the archive's manifest, in a jail. */
int import_find_in_ova(int fd, uint64_t len, struct import_part *ret_disk, struct err *err)
    MUST_CHECK;

/* import_qcow2.c: all of `in` by our own reader, in a jail. */
int import_qcow2(const struct import_part *in, uint64_t max_bytes, int out, struct err *err)
    MUST_CHECK;

/* import_foreign.c: what qemu-img reads, in a jail. */
int import_foreign(const struct import_part *in, enum import_format format, uint64_t max_bytes,
                   int out, struct err *err) MUST_CHECK;

/* import_vmdk.c: a VMDK disk whose parts lie beside the text at `path`, which `in` has open. */
bool import_is_vmdk_text(const struct import_part *in);
int import_vmdk_parts(const struct import_part *in, const char *path, uint64_t max_bytes, int out,
                      struct err *err) MUST_CHECK;

/* export_ova.c: the VMDK comes from import_export_disk(). */
int export_ova(const struct export_request *request, struct err *err) MUST_CHECK;

#endif
