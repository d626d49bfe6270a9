/*
 * Between the block core and the image formats.
 *
 * A format executes one request synchronously; the core decides on which
 * thread. Several requests of one image may execute at the same time.
 */
#ifndef CORBEL_BLOCK_BLOCK_INT_H
#define CORBEL_BLOCK_BLOCK_INT_H

#include "block/block.h"

struct block_image;

struct block_ops {
    /*
     * 0 or a negative errno; the request lies inside the image. may_wait
     * false: -EAGAIN when it would have to wait for the disk, -EOPNOTSUPP when
     * that cannot be known; nothing is lost by trying again.
     */
    int (*execute)(struct block_image *image, struct block_request *request, bool may_wait);
    void (*close)(struct block_image *image);
};

/* A format's open image; begins its own struct. */
struct block_image {
    const struct block_ops *ops;
    uint64_t size_bytes;
    bool is_read_only;
    bool can_discard;
};

/* raw.c: a regular file or block device, as it is. */
int raw_open(const struct block_config *config, struct err *err, struct block_image **ret_image)
    MUST_CHECK;

#endif
