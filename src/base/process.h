/*
 * Processes of others, known by number and start time together: a number alone
 * may meanwhile be somebody else's. Any thread.
 */
#ifndef CORBEL_BASE_PROCESS_H
#define CORBEL_BASE_PROCESS_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Start time of a process in clock ticks since boot, 0 when there is none such or it has ended. */
uint64_t process_start_ticks(pid_t pid);

/* True while that process lives. */
bool process_is_alive(pid_t pid, uint64_t start_ticks);

/* CPU time that a thread has had, and for how long it was ready and had none. */
struct thread_times {
    uint64_t run_ns, wait_ns;
};

/* Of a thread of a process; -ENOENT when there is none such, -ENOTSUP where the host counts not. */
int process_thread_times(pid_t pid, pid_t tid, struct thread_times *ret_times) MUST_CHECK;

/* Its children, theirs, and so on, as they are now: at most max; how many. */
unsigned process_descendants(pid_t pid, pid_t *ret_pids, unsigned max);

/* The processes that a process's first thread has made and that live, in their order, at most max
 * of them: how many. 0 where the host does not tell. */
unsigned process_children(pid_t pid, pid_t *ret_pids, unsigned max);

/* A descriptor that becomes readable when the process ends; -ESRCH when it has ended already. */
int process_open(pid_t pid, uint64_t start_ticks) MUST_CHECK;

#endif
