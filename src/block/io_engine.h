/*
 * Reads and writes of files, many at a time: io_uring where the kernel grants
 * it, threads where not.
 *
 * An engine belongs to one thread at a time. The caller fills a struct io_op,
 * keeps it, with its vector and the memory behind it, unchanged, queues it,
 * ends the batch with io_engine_submit(), and gets its done callback exactly
 * once, from io_engine_submit() or io_engine_reap(). The engine's event
 * descriptor becomes readable when reaping makes progress.
 *
 * What the page cache can take or give at once is done in place: a wake-up of
 * another thread costs more than the copy. Adjacent operations of a batch that
 * follow each other become one. Reads that have to wait go to the ring; writes
 * past the page cache, and all where there is no ring, to a worker of the
 * pool, joined as they are. Transfers that end early, and what is not aligned
 * for direct I/O, are finished on a worker through the file's own table. A file
 * that carries transfers out by itself (its start operation) needs no worker.
 */
#ifndef CORBEL_BLOCK_IO_ENGINE_H
#define CORBEL_BLOCK_IO_ENGINE_H

#include "base/compiler.h"
#include "base/error.h"
#include "block/file.h"
#include "block/io_pool.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct io_engine;

enum io_backend {
    IO_BACKEND_AUTO, /* io_uring; threads when the kernel refuses that */
    IO_BACKEND_URING,
    IO_BACKEND_THREADS
};

struct io_op {
    bool is_write;
    struct block_file *file;
    uint64_t offset;   /* bytes */
    uint64_t len;      /* the sum over iov, not 0 */
    struct iovec *iov; /* may be changed by the engine */
    unsigned iov_count;
    void (*done)(struct io_op *op, int result); /* 0 or a negative errno */

    /* The engine's. */
    struct io_engine *engine;
    struct io_op *next;
    int64_t result;
    struct io_task task;
    struct block_file_transfer transfer; /* when the file carries it out itself */
};

/* For tests: what goes wrong with which operation. */
struct io_fault {
    uint64_t nth;   /* counted from 1 over reads and writes; 0: nothing */
    bool is_sticky; /* and all after it */
    bool is_short;  /* only half of it is transferred at first; error is not used */
    int error;      /* a negative errno */
};

struct io_engine_config {
    enum io_backend backend;
    struct io_pool *pool; /* ends after all work of the engine, before the engine itself */
};

/* -ENOSYS, -EPERM ... when io_uring was asked for by name and is refused; -ENOMEM, -EMFILE. */
int io_engine_create(const struct io_engine_config *config, struct err *err,
                     struct io_engine **ret_engine) MUST_CHECK;
void io_engine_destroy(struct io_engine *engine); /* nothing is in flight; accepts NULL */

/* IO_BACKEND_URING or IO_BACKEND_THREADS. */
enum io_backend io_engine_backend(const struct io_engine *engine);
const char *io_backend_name(enum io_backend backend); /* "io_uring", "threads", "auto" */
/* Why io_uring is not used: a negative errno, or 0. */
int io_engine_refusal(const struct io_engine *engine);

int io_engine_event_fd(const struct io_engine *engine); /* the engine's */

void io_engine_queue(struct io_engine *engine, struct io_op *op);
/* Starts what is queued; calls done of what has finished already. */
void io_engine_submit(struct io_engine *engine);
/* Forgets why the event descriptor is readable: before reaping. */
void io_engine_clear(struct io_engine *engine);
/* Calls done of all that has finished; starts what had to wait. How many were done. */
unsigned io_engine_reap(struct io_engine *engine);
/* Returns when reaping is worth while. */
void io_engine_wait(struct io_engine *engine);
/* Runs any task on a worker; its done comes from io_engine_reap(). */
void io_engine_call(struct io_engine *engine, struct io_task *task);

/* Queued or started, done not called; calls included. */
unsigned io_engine_in_flight(const struct io_engine *engine);

void io_engine_inject(struct io_engine *engine, const struct io_fault *fault);

struct io_engine_stats {
    uint64_t in_place, ring, workers; /* transfers by who did them */
    uint64_t merged;                  /* operations that travelled with another one */
};

void io_engine_stats(const struct io_engine *engine, struct io_engine_stats *ret_stats);

#endif
