/*
 * An epoll event loop: descriptors, timers and deferred calls.
 *
 * A loop belongs to the thread that calls loop_run(); every function here is
 * for that thread (or before the loop runs), except loop_defer(),
 * loop_hold() and loop_stop(), which any thread may call. Callbacks may add and remove
 * handlers, also their own. CLOCK_MONOTONIC throughout.
 */
#ifndef CORBEL_BASE_LOOP_H
#define CORBEL_BASE_LOOP_H

#include "base/clock.h"
#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_fd;
struct loop_timer;

/* events: EPOLLIN, EPOLLOUT, EPOLLHUP ... as epoll reports them. */
typedef void (*loop_fd_fn)(void *opaque, uint32_t events);
typedef void (*loop_fn)(void *opaque);

/* 0, or -ENOMEM, -EMFILE, ... */
int loop_create(struct loop **ret_loop) MUST_CHECK;

/* Accepts NULL. Handlers still registered are freed; their fds are not closed. */
void loop_destroy(struct loop *loop);

/* Runs until loop_stop(). Returns 0, or a negative errno from epoll_wait. */
int loop_run(struct loop *loop) MUST_CHECK;

/* Makes loop_run() return soon. Any thread, async-signal-safe. */
void loop_stop(struct loop *loop);

/* Watches fd; the caller keeps the fd and removes the handler before closing it. */
int loop_add_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn fn, void *opaque,
                struct loop_fd **ret_handler) MUST_CHECK;
int loop_set_events(struct loop_fd *handler, uint32_t events) MUST_CHECK;
void loop_remove_fd(struct loop_fd *handler); /* accepts NULL */

/*
 * While the loop is held, handlers that are marked so are not called, and what
 * happens to their descriptors wakes nobody; it is told at the end of it. Any thread.
 */
void loop_hold(struct loop *loop, bool is_held);
int loop_mark_held(struct loop_fd *handler) MUST_CHECK;

/* A one-shot timer, created unarmed. */
int loop_add_timer(struct loop *loop, loop_fn fn, void *opaque, struct loop_timer **ret_timer)
    MUST_CHECK;
/* Arms or re-arms for an absolute CLOCK_MONOTONIC time in ns. */
void loop_arm_timer(struct loop_timer *timer, uint64_t deadline_ns);
void loop_disarm_timer(struct loop_timer *timer);
void loop_remove_timer(struct loop_timer *timer); /* accepts NULL */

/* Calls fn(opaque) on the loop's thread, in order of submission. Any thread. */
int loop_defer(struct loop *loop, loop_fn fn, void *opaque) MUST_CHECK;

#endif
