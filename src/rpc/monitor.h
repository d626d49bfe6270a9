/*
 * Starting a monitor (corbel-vmm): a process in a session of its own, which
 * goes on when the one that started it ends.
 *
 * The child waits before it becomes the monitor until its parent has recorded
 * who it is: a parent that ends meanwhile leaves no monitor behind that nobody
 * knows of. A lock that is handed over is held as long as the monitor lives,
 * whoever else ends. Any thread.
 */
#ifndef CORBEL_RPC_MONITOR_H
#define CORBEL_RPC_MONITOR_H

#include "base/error.h"

#include <stdint.h>
#include <sys/types.h>

#define MONITOR_READY_FD 3 /* in the monitor: its flag is --ready-fd 3 */
#define MONITOR_READY_FD_TEXT "3"
#define MONITOR_LOCK_FD 4
#define MONITOR_TAP_FD 5 /* its network card's */
#define MONITOR_TAP_FD_TEXT "5"

struct monitor_start {
    const char *name;        /* of the machine, for sentences */
    const char *program;     /* its path */
    const char *const *argv; /* its name first; NULL last; with "--ready-fd", "3" */
    const char *log;         /* standard output and error go to this file, made anew */
    int lock_fd;             /* a descriptor for the monitor to keep; -1: none */
    int tap_fd;              /* ... and one that its flags name; -1: none */
    /* Records the process before it becomes the monitor; may be NULL. An error ends it. */
    int (*record)(void *opaque, pid_t pid, uint64_t start_ticks, struct err *err);
    void *opaque;
};

struct monitor {
    pid_t pid;
    uint64_t start_ticks;
    int ready_fd; /* until monitor_await_ready() */
};

/* The process is a child of the caller's, who waits for it. Descriptors stay the caller's. */
int monitor_start(const struct monitor_start *start, struct monitor *ret_monitor, struct err *err)
    MUST_CHECK;

/*
 * Waits until its sockets listen. When it ends before, it has been waited for,
 * and its own last words are the error.
 */
int monitor_await_ready(struct monitor *monitor, const struct monitor_start *start, struct err *err)
    MUST_CHECK;

/* Waits for a child: its exit status, 128 + N for signal N. */
int monitor_wait(pid_t pid);

/* The last line of a monitor's log; empty when there is none. */
void monitor_last_words(const char *log, char *out, size_t out_size);

#endif
