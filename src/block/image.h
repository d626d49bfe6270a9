/*
 * Image files as a whole: making them, looking at them, changing their shape.
 *
 * Synchronous, for the command line, jobs and the control plane; no thread of
 * their own. Errors come as a negative errno with a text for people. Images
 * are opened through the same rules as a guest's disk (block.h): the format is
 * always given, backing images only as the configuration allows.
 */
#ifndef CORBEL_BLOCK_IMAGE_H
#define CORBEL_BLOCK_IMAGE_H

#include "block/block.h"

struct block_image;

enum block_prealloc {
    BLOCK_PREALLOC_OFF,
    BLOCK_PREALLOC_METADATA, /* all clusters have a place, the file stays sparse */
    BLOCK_PREALLOC_FALLOC,   /* and the host has reserved the space */
    BLOCK_PREALLOC_FULL      /* and zeroes have been written to it */
};

enum block_compression { BLOCK_COMPRESSION_ZLIB, BLOCK_COMPRESSION_ZSTD };

/* Zero in a field means its default. */
struct block_create_options {
    enum block_format format;
    const char *path;
    bool replace;        /* an existing file */
    bool is_unfinished;  /* marked as not whole, where the file system can (successor.h) */
    uint64_t size_bytes; /* 0 with a backing image: as large as that */
    enum block_prealloc prealloc;

    /* qcow2 only */
    uint32_t cluster_bytes; /* 512 to 2 MiB; 64 KiB */
    uint32_t refcount_bits; /* 1, 2, 4, ... 64; 16 */
    unsigned version;       /* 2 or 3; 3 */
    bool extended_l2;
    bool lazy_refcounts;
    enum block_compression compression;
    const char *backing_path; /* written into the header as it is, not opened */
    enum block_format backing_format;
};

int block_image_create(const struct block_create_options *options, struct err *err) MUST_CHECK;

struct block_image_info {
    enum block_format format;
    uint64_t size_bytes;
    uint64_t file_bytes;      /* length of the file */
    uint64_t allocated_bytes; /* that the host spent on it */
    /* qcow2 only */
    unsigned version;
    uint32_t cluster_bytes, refcount_bits;
    bool extended_l2, lazy_refcounts, is_dirty, is_corrupt;
    enum block_compression compression;
    char backing_path[1024]; /* as in the header; empty when there is none */
    bool has_backing_format;
    enum block_format backing_format;
    unsigned snapshots, bitmaps;
};

int block_image_info(struct block_image *image, struct block_image_info *ret_info) MUST_CHECK;

/* Grows or shrinks; shrinking must be asked for, because it throws data away. */
int block_image_resize(struct block_image *image, uint64_t size_bytes, bool may_shrink,
                       enum block_prealloc prealloc, struct err *err) MUST_CHECK;

/* Copies what this layer holds into its backing image, which was opened writable by other means:
 * target. Flushes target. */
int block_image_commit(struct block_image *image, struct block_image *target, struct err *err)
    MUST_CHECK;

struct block_check_result {
    /* What there is, after a repair what is left; errors: of the check itself, such as unreadable
     * parts. */
    uint64_t corruptions, leaks, errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, compressed_clusters, fragmented_clusters;
    uint64_t image_end_bytes;
};

enum block_repair { BLOCK_REPAIR_NONE, BLOCK_REPAIR_LEAKS, BLOCK_REPAIR_ALL };

/* One sentence for each finding; may be NULL. */
typedef void (*block_check_report_fn)(void *opaque, const char *text);

/* 0 when the check could run, whatever it found. Requests must not be in flight for a repair. */
int block_image_check(struct block_image *image, enum block_repair repair,
                      block_check_report_fn report, void *opaque,
                      struct block_check_result *ret_result, struct err *err) MUST_CHECK;

/* The name of a format in options and messages, and back; -EINVAL for an unknown name. */
const char *block_format_name(enum block_format format);
int block_format_parse(const char *name, enum block_format *ret_format) MUST_CHECK;

#endif
