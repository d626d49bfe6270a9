/*
 * The file below an image format: bytes on a disk, no meaning.
 *
 * A format owns the struct block_file it was opened with and closes it. All
 * calls are synchronous, thread-safe, and may run side by side; what
 * overlapping calls in flight leave behind is one or the other, per sector.
 * Each returns 0 or a negative errno: short transfers and EINTR are handled
 * inside. Besides the file on the host, tests stand wrappers behind the same
 * table that record, delay and fail.
 */
#ifndef CORBEL_BLOCK_FILE_H
#define CORBEL_BLOCK_FILE_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct block_file;

/* One read or write that somebody else carries out. The caller keeps it, its vector and the memory
 * behind it, unchanged until done. */
struct block_file_transfer {
    bool is_write;
    uint64_t offset;   /* bytes */
    uint64_t len;      /* the sum over iov, not 0 */
    struct iovec *iov; /* may be changed */
    unsigned iov_count;
    void (*done)(struct block_file_transfer *transfer, int result); /* 0 or a negative errno */
};

struct block_file_ops {
    /* May change iov. Past the end: zeroes when the file says so, otherwise -EIO. */
    int (*preadv)(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset);
    /* The same, but -EAGAIN when it would wait for the disk, -EOPNOTSUPP when that is not known;
     * leaves iov as it is. Optional. */
    int (*preadv_nowait)(struct block_file *file, const struct iovec *iov, unsigned count,
                         uint64_t offset);
    /* May change iov; extends the file where needed. */
    int (*pwritev)(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset);
    /* Reads as zero afterwards; may_unmap: the space may be given back. */
    int (*write_zeroes)(struct block_file *file, uint64_t offset, uint64_t len, bool may_unmap);
    /* Contents are no longer needed; 0 also where the host cannot give space back. */
    int (*discard)(struct block_file *file, uint64_t offset, uint64_t len);
    int (*truncate)(struct block_file *file, uint64_t size_bytes);
    /* Reserves space, and extends the file to it; contents stay. -EOPNOTSUPP where impossible. */
    int (*allocate)(struct block_file *file, uint64_t offset, uint64_t len);
    /* All that was written before is durable. Once failed it fails for ever. */
    int (*flush)(struct block_file *file);
    int (*get_size)(struct block_file *file, uint64_t *ret_size_bytes);
    /* Has the host begin to write what its cache holds of the file, and does not wait: for who will
     * flush after much more. Optional. */
    void (*write_back)(struct block_file *file);
    /* Begins a transfer and returns at once; its done comes once, on a thread of the file's, from
     * which nothing of the file may be called. For files that wait for a peer instead of a disk.
     * -EAGAIN when it has to be one of the calls above. Optional. */
    int (*start)(struct block_file *file, struct block_file_transfer *transfer);
    /* Whether bytes are known to read as zero, and how far (at most len) that answer reaches: for
     * files without a descriptor that could be asked. Optional. */
    int (*status)(struct block_file *file, uint64_t offset, uint64_t len, bool *ret_is_zero,
                  uint64_t *ret_len);
    void (*close)(struct block_file *file);
};

struct block_file {
    const struct block_file_ops *ops;
    int fd; /* for I/O engines that bypass the table; -1 when they must not */
    bool is_read_only;
    bool is_device;       /* a block device: its size is fixed */
    bool zeroes_past_end; /* set by the format */
    uint32_t alignment;   /* of offsets, lengths and memory; 1 when nothing is asked for */
};

struct block_file_options {
    const char *path; /* opened when fd is -1; names the file in messages in any case */
    int fd;           /* taken over on success */
    bool read_only;
    bool direct; /* bypasses the host's cache; unaligned calls go through a buffer */
};

/*
 * Opens an NBD export when no descriptor is given and the path is an address
 * of one (nbd.h). Otherwise
 * opens and locks a regular file or block device on the host: many may read
 * it, or one may write it. -EBUSY when another process holds it, -EINVAL when
 * it is neither, -ENOENT, -EACCES, ...; err names the file and the mend.
 */
int block_file_open(const struct block_file_options *options, struct err *err,
                    struct block_file **ret_file) MUST_CHECK;

/*
 * Makes a file that was opened past the host's cache take calls of any
 * alignment; its own field tells what needs no copy. On failure the file is as
 * before.
 */
int block_file_make_direct(struct err *err, struct block_file **file) MUST_CHECK;
/* The same for a file that asks for blocks of so many bytes, a power of two, for another reason. */
int block_file_make_aligned(uint32_t alignment, struct err *err, struct block_file **file)
    MUST_CHECK;

/* Makes an empty file; -EEXIST when there is one and replace is false. Locked for writing. */
int block_file_create(const char *path, bool replace, struct err *err, struct block_file **ret_file)
    MUST_CHECK;

void block_file_close(struct block_file *file); /* accepts NULL */

/* One buffer instead of a vector. */
int block_file_pread(struct block_file *file, void *buf, uint64_t len, uint64_t offset) MUST_CHECK;
int block_file_pwrite(struct block_file *file, const void *buf, uint64_t len, uint64_t offset)
    MUST_CHECK;

/* Drops the first done bytes of a vector. */
void block_iov_advance(struct iovec **iov, unsigned *count, uint64_t done);

#endif
