/*
 * Whole disks in image files: opening by a user's words, copying, comparing
 * and mapping them, several parts at a time and without touching what is zero.
 *
 * Synchronous; copies and comparisons run threads of their own ("work/copy")
 * that are gone when the call returns. Progress is told on the caller's thread.
 */
#ifndef CORBEL_STORAGE_DISK_H
#define CORBEL_STORAGE_DISK_H

#include "base/error.h"
#include "block/image.h"

#include <stdbool.h>
#include <stdint.h>

struct disk_ref {
    const char *path;
    const char *format;      /* NULL: what the name's end says; the content is never asked */
    const char *backing_dir; /* where backing images may be; NULL: the image's own directory */
    bool read_only;
    bool no_backing; /* this layer alone */
    bool for_repair; /* also one that is marked as damaged, stale or unfinished (successor.h) */
    bool any_state;  /* also one that is stale or unfinished */
};

/* "raw" for .raw, .img and addresses of NBD servers, "qcow2" for .qcow2. -EINVAL when neither name nor format says it. */
int disk_parse_format(const char *path, const char *format, enum block_format *ret_format,
                      struct err *err) MUST_CHECK;

/* As block_image_open(), and for writing only what is current; the caller closes it with block_image_close(). */
int disk_open(const struct disk_ref *ref, struct err *err, struct block_image **ret_image)
    MUST_CHECK;

typedef void (*disk_progress_fn)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);

struct disk_copy {
    struct block_image *from;
    struct block_image *to;    /* at least as long, and reads as zero everywhere */
    bool compress;             /* clusters, when `to` is qcow2 */
    unsigned threads;          /* 0: as many as there are processors, up to 8 */
    disk_progress_fn progress; /* may be NULL */
    void *opaque;
};

/* Copies everything that is not zero and makes it durable. */
int disk_copy(const struct disk_copy *copy, struct err *err) MUST_CHECK;

/*
 * Whether two disks read the same. When one is longer, its rest has to be
 * zero. *ret_offset is the first byte's that differs, UINT64_MAX for none.
 */
int disk_compare(struct block_image *a, struct block_image *b, disk_progress_fn progress,
                 void *opaque, uint64_t *ret_offset, struct err *err) MUST_CHECK;

struct disk_extent {
    uint64_t start, len;
    bool is_data; /* otherwise it reads as zero */
    bool is_compressed;
    bool has_host_offset;
    uint64_t host_offset;
    unsigned depth;    /* of the layer that it comes from */
    bool is_allocated; /* some layer says what it is */
};

/* Tells every extent in order; adjacent ones of one kind as one. Ends early when fn says so (< 0). */
int disk_map(struct block_image *image, int (*fn)(void *opaque, const struct disk_extent *extent),
             void *opaque, struct err *err) MUST_CHECK;

#endif
