/*
 * Disk images, without any knowledge of guests.
 *
 * A struct block is one open image with a format given by the caller, never
 * probed. Requests are asynchronous: the caller owns a struct block_request,
 * submits it to one of the image's lanes, and gets its done callback exactly
 * once. A lane is an event loop with a thread ("io/disk") of its own, so that
 * a slow disk delays nobody else, and one image can be worked on by several
 * threads; callbacks run on the lane's thread, or inside block_drain().
 *
 * block_create() opens; add what shares the loops (block_loop()); block_start()
 * runs the threads; block_stop() finishes what is in flight and joins them;
 * block_destroy() closes. Before the threads run, and after, the caller's
 * thread stands in for them.
 */
#ifndef CORBEL_BLOCK_BLOCK_H
#define CORBEL_BLOCK_BLOCK_H

#include "base/compiler.h"
#include "base/error.h"
#include "base/latency.h"
#include "base/limit.h"
#include "block/io_engine.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define BLOCK_SECTOR_BYTES 512u
#define BLOCK_MAX_LANES 8u

struct block;
struct loop;

enum block_format { BLOCK_FORMAT_RAW, BLOCK_FORMAT_QCOW2 };

#define BLOCK_MAX_LAYERS 64u /* of a chain, the image itself included */

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,       /* all writes that were done before its submission are durable */
    BLOCK_DISCARD,     /* contents are no longer needed; may do nothing */
    BLOCK_WRITE_ZEROES /* reads as zero afterwards; may_unmap: space may be given back */
};

/* What becomes of a request that the host cannot carry out. */
enum block_on_error {
    BLOCK_ON_ERROR_REPORT, /* its done callback gets the error */
    BLOCK_ON_ERROR_HOLD    /* it waits for block_retry(), and the stopped callback is told */
};

/* One image of a chain, as the caller names it. */
struct block_layer {
    enum block_format format;
    const char *path; /* opened when fd is -1; names the image in messages in any case */
    int fd;           /* taken over on success */
};

/*
 * A backing image is opened, read-only, only when the caller says so: it is
 * either the next layer of backing, whatever name the image holds, or, with
 * no backing given, a file below backing_dir that the image names with its
 * format. A chain that asks for more than that is refused.
 */
struct block_config {
    enum block_format format;
    const char *path; /* opened when fd is -1; names the image in messages in any case */
    int fd;           /* taken over on success */
    bool read_only;
    bool direct;                       /* bypass the host's cache */
    bool must_be_current;              /* not a file from which the disk went on to another */
    bool may_be_unfinished;            /* also a copy that is not whole */
    bool for_repair;                   /* open what is marked corrupt too, to check it */
    bool no_backing;                   /* leave backing images shut; to look at this layer alone */
    const struct block_layer *backing; /* from the nearest to the base */
    unsigned backing_count;
    const char *backing_dir; /* NULL: names in images are never followed */

    unsigned lanes; /* 0: one */
    enum io_backend aio;
    enum block_on_error on_error;
};

/*
 * The caller fills the upper part and keeps it, with iov and the memory behind
 * it, unchanged until done.
 */
struct block_request {
    enum block_op op;
    bool may_unmap;
    uint64_t offset;   /* bytes */
    uint64_t len;      /* bytes; for reads and writes the sum over iov; 0 for a flush */
    struct iovec *iov; /* may be changed by the image */
    unsigned iov_count;
    void (*done)(struct block_request *request, int result); /* 0 or a negative errno */

    /* The image's. */
    struct block_request *next;
    int result;
    uint64_t submitted_ns;
};

struct block_stats {
    uint64_t requests[5]; /* by enum block_op */
    /* From submission until the image had it, by enum block_op; waits for limits are in it. */
    struct latency_sum latencies[5];
    uint64_t read_bytes, written_bytes;
    uint64_t errors;
    uint64_t throttled; /* requests that waited for a limit */
};

/*
 * Opens and locks the image: many may read it, or one may write it. -EBUSY
 * when another process holds it, -EINVAL when its size is not a multiple of
 * 512, -ESTALE when the disk went on in another file or the copy is not whole
 * (see successor.h),
 * -ENOENT, -EACCES, ...; err names the file and the mend.
 */
int block_create(const struct block_config *config, struct err *err, struct block **ret_block)
    MUST_CHECK;
void block_destroy(struct block *block); /* stopped; accepts NULL */

int block_start(struct block *block, struct err *err) MUST_CHECK;
void block_stop(struct block *block); /* accepts a block that was never started */

unsigned block_lane_count(const struct block *block);
struct loop *block_loop(struct block *block, unsigned lane);
uint64_t block_size_bytes(const struct block *block);
bool block_is_read_only(const struct block *block);
bool block_can_discard(const struct block *block);

/* The file below the disk's own, by its name from the root. -ENOENT when there is none, or it has
 * no name any more. While no job runs. */
int block_backing(const struct block *block, char *ret_path, size_t size,
                  enum block_format *ret_format) MUST_CHECK;

/*
 * Hands over a request. It fails with -EINVAL when out of range, -EROFS on a
 * read-only image; as every result, this is told through done, which is never
 * called from here. The lane's thread.
 */
void block_submit(struct block *block, unsigned index, struct block_request *request);

/*
 * Ends a batch of submissions: starts what waits and delivers what is done.
 * The lane's thread, with no lock held that done takes.
 */
void block_kick(struct block *block, unsigned index);

/* Called once after each batch of done callbacks, on the same thread. Set before block_start(). */
void block_set_batch_done(struct block *block, void (*fn)(void *opaque, unsigned lane),
                          void *opaque);

/* Returns when nothing is in flight and every done has returned. Limits and holds for errors do
 * not apply meanwhile. Any thread, also a lane's. */
void block_drain(struct block *block);

/* With BLOCK_ON_ERROR_HOLD: a request has failed with error, and waits. On a lane's thread, with
 * no lock held, once until block_retry(). Set before block_start(). */
void block_set_stopped(struct block *block, void (*fn)(void *opaque, int error), void *opaque);
/* Starts again what waits because of an error. Any thread. */
void block_retry(struct block *block);
/* Whether something waits, and why: a negative errno, or 0. Any thread. */
int block_stopped_error(struct block *block);

/* From now on; any thread. -EINVAL as limit_set(). */
int block_set_limits(struct block *block, const struct limit_config *config) MUST_CHECK;
void block_limits(struct block *block, struct limit_config *ret_config);

/* Grows the image: requests wait meanwhile. -EINVAL when it would shrink or is no multiple of 512,
 * -ENOTSUP where the image cannot. Any thread but a lane's. */
int block_resize(struct block *block, uint64_t size_bytes, struct err *err) MUST_CHECK;

/* A copy; any thread. */
void block_stats(struct block *block, struct block_stats *ret_stats);

/* What moves the data. Any thread. */
enum io_backend block_backend(const struct block *block);

/* For tests: before block_start(). */
void block_inject(struct block *block, const struct io_fault *fault);

#endif
