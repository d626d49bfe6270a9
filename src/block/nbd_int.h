/*
 * Between the parts of the NBD client: nbd.c has the connection and its
 * thread, nbd_ops.c what one request does with it.
 */
#ifndef CORBEL_BLOCK_NBD_INT_H
#define CORBEL_BLOCK_NBD_INT_H

#include "base/thread.h"
#include "block/file.h"
#include "block/nbd_lib.h"

#include <stdatomic.h>

enum nbd_kind { NBD_READ, NBD_WRITE, NBD_FLUSH, NBD_TRIM, NBD_ZERO, NBD_STATUS };

/* One request. It goes to the server in pieces, one after the other. */
struct nbd_op {
    struct nbd_file *nbd;
    enum nbd_kind kind;
    bool may_unmap;
    uint64_t offset, len; /* what is left */
    struct iovec *iov;
    unsigned iov_count;
    void (*done)(struct nbd_op *op); /* on the file's thread; the op is not looked at afterwards */
    int result;

    /* For NBD_STATUS. */
    bool is_zero;
    uint64_t known_bytes;

    /* The connection's. */
    struct nbd_op *next;        /* queued or answered */
    struct nbd_op **prev_under; /* under way */
    struct nbd_op *next_under;
    uint8_t *bounce;  /* for pieces that several parts of the vector make up */
    uint64_t piece;   /* bytes of the one under way */
    bool is_held;     /* libnbd has the piece, */
    bool is_answered; /* or has answered it */
    bool is_bounced;
    uint64_t writes_before; /* of a flush: how many it covers */
};

struct nbd_list {
    struct nbd_op *first;
    struct nbd_op **end;
};

/* What the server said of the export. */
struct nbd_export {
    uint64_t size_bytes;
    uint32_t min_block, max_bytes;
    bool is_read_only, can_flush, can_fua, can_trim, can_zero, has_status;
};

struct nbd_file {
    struct block_file file;
    struct nbd_lib lib;
    char *address;
    unsigned patience_ms;
    struct nbd_export export; /* fixed at opening */
    pthread_t thread;
    bool has_thread;
    int event_fd;
    atomic_bool flush_failed;

    struct mutex lock; /* LEAF; guards the two below, and is_over of those who wait */
    struct nbd_list queued;
    bool is_stopping;
    pthread_cond_t over;

    /* The thread's. */
    struct nbd_handle *handle; /* NULL when there is no connection */
    struct nbd_op *under_way;
    struct nbd_list answered;
    bool is_lost; /* for good */
    uint64_t retry_at_ns;
    uint64_t deadline_ns;              /* for the next sign of life; while something is under way */
    uint64_t writes_done, writes_safe; /* counted, the latter by flushes */
    unsigned writes_under_way;
};

/* nbd.c: to the thread. Any thread but that one. */
void nbd_submit(struct nbd_file *nbd, struct nbd_op *op);

/* nbd_ops.c: gives the next piece to the handle: 0, or a negative errno. */
int nbd_op_send(struct nbd_op *op);
/* After a piece was answered with success: true when that was the last. */
bool nbd_op_advance(struct nbd_op *op);

extern const struct block_file_ops nbd_file_ops;
extern const struct block_file_ops nbd_file_ops_status; /* when the server tells what is zero */

void nbd_list_init(struct nbd_list *list);
void nbd_list_append(struct nbd_list *list, struct nbd_op *op);
struct nbd_op *nbd_list_take(struct nbd_list *list);

/* Stops the thread and frees. */
void nbd_close_file(struct nbd_file *nbd);

#endif
