/*
 * Between the block core and the image formats.
 *
 * A format executes one request synchronously; the core decides on which
 * thread. Several requests of one image may execute at the same time.
 *
 * For data that needs no change of metadata there is a way round: map() tells
 * in memory, without waiting, where bytes of the disk lie, and the core does
 * the I/O itself. A mapped extent keeps what it names from being moved or
 * reused until unmap().
 */
#ifndef CORBEL_BLOCK_BLOCK_INT_H
#define CORBEL_BLOCK_BLOCK_INT_H

#include "block/block.h"

struct block_file;
struct block_image;

enum block_extent_kind {
    BLOCK_EXTENT_DATA,        /* in file at host_offset */
    BLOCK_EXTENT_ZERO,        /* reads as zero, by the image's own word */
    BLOCK_EXTENT_UNALLOCATED, /* reads as zero because no layer has it */
    BLOCK_EXTENT_COMPRESSED   /* only from block_image_map(), never from ops->map() */
};

struct block_extent {
    enum block_extent_kind kind;
    uint64_t len;            /* from the offset asked for, at most the length asked for */
    struct block_file *file; /* for data */
    uint64_t host_offset;
    unsigned depth;  /* the layer it comes from: 0 the image, 1 its backing image, ... */
    uint64_t cookie; /* the format's */
};

struct block_ops {
    /*
     * 0 or a negative errno; the request lies inside the image. may_wait
     * false: -EAGAIN when it would have to wait for the disk, -EOPNOTSUPP when
     * that cannot be known; nothing is lost by trying again. Any thread.
     */
    int (*execute)(struct block_image *image, struct block_request *request, bool may_wait);

    /*
     * Where len bytes from offset lie; never waits. For a write only extents
     * come back (kind data) that may be overwritten in place. -EAGAIN: use
     * execute() on a thread that may wait. Each success is followed by one
     * unmap() when the I/O is done. A short or failed read of a mapped extent
     * is repeated through execute(). Any thread. Optional.
     */
    int (*map)(struct block_image *image, bool for_write, uint64_t offset, uint64_t len,
               struct block_extent *ret_extent);
    void (*unmap)(struct block_image *image, const struct block_extent *extent);

    /*
     * As map(), but for people and tools: may wait, follows backing images,
     * holds nothing. Adjacent bytes of the same kind come as one extent as far
     * as that is cheap.
     */
    int (*lookup)(struct block_image *image, uint64_t offset, uint64_t len,
                  struct block_extent *ret_extent);

    /* Changes the size while requests may be in flight. Optional. */
    int (*resize)(struct block_image *image, uint64_t size_bytes, struct err *err);

    void (*close)(struct block_image *image);
};

/* A format's open image; begins its own struct. */
struct block_image {
    const struct block_ops *ops;
    enum block_format format;
    uint64_t size_bytes; /* changed by resize() under the format's lock; read with atomic loads */
    bool is_read_only;
    bool can_discard;
    struct block_file *file;     /* owned */
    struct block_image *backing; /* owned; NULL at the base */
};

/*
 * Opens an image and the backing images that the configuration allows.
 * The caller closes it with block_image_close().
 */
int block_image_open(const struct block_config *config, struct err *err,
                     struct block_image **ret_image) MUST_CHECK;
void block_image_close(struct block_image *image); /* accepts NULL; closes its chain */

/* Synchronous I/O with one buffer, for jobs and tools. -EINVAL when out of range. */
int block_image_pread(struct block_image *image, void *buf, uint64_t len, uint64_t offset)
    MUST_CHECK;
int block_image_pwrite(struct block_image *image, const void *buf, uint64_t len, uint64_t offset)
    MUST_CHECK;
/* For who writes much and flushes at its end: the host begins to write what it has by now. */
void block_image_write_back(struct block_image *image);
int block_image_simple(struct block_image *image, enum block_op op, uint64_t offset, uint64_t len,
                       bool may_unmap) MUST_CHECK; /* flush, discard, write zeroes */

/*
 * The formats. Each takes over file, which is open and locked, when it
 * succeeds; path is for messages only.
 */
int raw_open(struct block_file *file, const char *path, bool read_only, struct err *err,
             struct block_image **ret_image) MUST_CHECK;
/* backing is taken over too, may be NULL; what the header says of it was checked by the caller. */
int qcow2_open(struct block_file *file, const struct block_config *config,
               struct block_image *backing, struct err *err, struct block_image **ret_image)
    MUST_CHECK;
/* What the header says of the backing image; name is empty when there is none. */
int qcow2_read_backing_name(struct block_file *file, const char *path, struct err *err,
                            char *ret_name, size_t name_size, char *ret_format, size_t format_size)
    MUST_CHECK;

#endif
