/*
 * What only qcow2 images can do: internal snapshots, dirty bitmaps, compressed
 * writes. Format: docs/interop/qcow2 of its authors, version 3 (and 2).
 *
 * All functions take an image of that format, opened with block_image_open(),
 * and return -ENOTSUP for any other. They are synchronous and may run while
 * requests are in flight; those wait. Any thread that may wait.
 */
#ifndef CORBEL_BLOCK_QCOW2_H
#define CORBEL_BLOCK_QCOW2_H

#include "block/image.h"

#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_BITMAPS 1024u

struct qcow2_snapshot_info {
    char id[64];
    char name[256];
    uint64_t size_bytes; /* of the disk then */
    uint64_t vm_state_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
};

/* The disk as it is now, under a name; -EEXIST when taken. Writable images only. */
int qcow2_snapshot_create(struct block_image *image, const char *name, struct err *err) MUST_CHECK;
/* The disk becomes what it was; by name or id. Its size too. */
int qcow2_snapshot_apply(struct block_image *image, const char *name, struct err *err) MUST_CHECK;
int qcow2_snapshot_delete(struct block_image *image, const char *name, struct err *err) MUST_CHECK;
/* *ret_infos is malloc'd, the caller's. */
int qcow2_snapshot_list(struct block_image *image, struct qcow2_snapshot_info **ret_infos,
                        unsigned *ret_count, struct err *err) MUST_CHECK;
/* Reads bytes of a snapshot. */
int qcow2_snapshot_read(struct block_image *image, const char *name, void *buf, uint64_t len,
                        uint64_t offset, struct err *err) MUST_CHECK;

/* One whole cluster, or the end of the disk, compressed; stored as it is when that is not smaller.
 * offset is a multiple of the cluster size. */
int qcow2_write_compressed(struct block_image *image, const void *buf, uint64_t len,
                           uint64_t offset) MUST_CHECK;

/* Changes only what the header says of the backing image; path NULL: none. The guest-visible
 * contents must be the same through the new one. */
int qcow2_set_backing(struct block_image *image, const char *path, enum block_format format,
                      struct err *err) MUST_CHECK;

struct qcow2_bitmap_info {
    char name[1024];
    uint32_t granularity_bytes;
    bool is_enabled;      /* writes are being marked */
    bool is_inconsistent; /* was in use when the image was not closed; can only be removed */
    uint64_t dirty_bytes; /* 0 when inconsistent */
};

int qcow2_bitmap_add(struct block_image *image, const char *name, uint32_t granularity_bytes,
                     struct err *err) MUST_CHECK;
int qcow2_bitmap_remove(struct block_image *image, const char *name, struct err *err) MUST_CHECK;
int qcow2_bitmap_set_enabled(struct block_image *image, const char *name, bool is_enabled,
                             struct err *err) MUST_CHECK;
int qcow2_bitmap_clear(struct block_image *image, const char *name, struct err *err) MUST_CHECK;
int qcow2_bitmap_list(struct block_image *image, struct qcow2_bitmap_info **ret_infos,
                      unsigned *ret_count, struct err *err) MUST_CHECK;
/* The next marked range at or after offset: 0 with *ret_len 0 when there is none. */
int qcow2_bitmap_next(struct block_image *image, const char *name, uint64_t offset,
                      uint64_t *ret_offset, uint64_t *ret_len, struct err *err) MUST_CHECK;

#endif
