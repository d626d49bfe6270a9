/*
 * Threads for what may wait: tasks run on one of a few workers ("work/disk")
 * and come back to the port that sent them.
 *
 * The caller owns a struct io_task, unchanged, from io_port_submit() until its
 * done callback has been called by io_port_deliver(), on the thread that
 * delivers. A port belongs to one thread at a time; its event descriptor
 * becomes readable when something can be delivered. Workers start when there
 * is work for them, up to the limit, and live until the pool is destroyed.
 */
#ifndef CORBEL_BLOCK_IO_POOL_H
#define CORBEL_BLOCK_IO_POOL_H

#include "base/compiler.h"
#include "base/thread.h"

#include <stdbool.h>

struct io_pool;

struct io_task {
    void (*run)(struct io_task *task);  /* on a worker */
    void (*done)(struct io_task *task); /* on the port's thread */

    /* The pool's. */
    struct io_port *port;
    struct io_task *next;
    bool is_offered;
};

struct io_task_list {
    struct io_task *first;
    struct io_task **end; /* where the next one is linked */
};

struct io_port {
    struct io_pool *pool;
    int event_fd;             /* signalled; the owner's */
    struct io_task_list done; /* guarded by the pool's mutex */
    unsigned in_flight;       /* submitted, done not called; the port's thread */
    unsigned offered;         /* on the work list; guarded by the pool's mutex */
};

int io_pool_create(unsigned max_workers, struct io_pool **ret_pool) MUST_CHECK;
void io_pool_destroy(struct io_pool *pool); /* nothing is in flight; before its ports' event
                                             * descriptors are closed; accepts NULL */

void io_port_init(struct io_port *port, struct io_pool *pool, int event_fd);

/* Runs the task in place, and delivers it later, when no worker can be had. The port's thread. */
void io_port_submit(struct io_port *port, struct io_task *task);

/* For work that the port's thread will do itself unless a worker is faster: begun by either, once,
 * after io_port_take_back() has or has not given it back. The port's thread. */
void io_port_offer(struct io_port *port, struct io_task *task);
/* The first offered task of the port that nobody has begun; no longer in flight. NULL: none. */
struct io_task *io_port_take_back(struct io_port *port);

/* For a task that runs elsewhere: announces it (the port's thread), and ends it (any thread). */
void io_port_expect(struct io_port *port, struct io_task *task);
void io_port_post(struct io_task *task);
void io_port_forget(struct io_port *port); /* it will not run after all */

/* Calls done of all that have run; how many. The port's thread. */
unsigned io_port_deliver(struct io_port *port);

#endif
