/*
 * Host signals of vCPU threads: SIGSEGV SIGBUS SIGFPE SIGILL SIGTRAP and the
 * kick signal, turned into calls by where the host was executing.
 *
 * The handlers are process-wide, installed once; the ranges are per thread. A
 * fault outside every range of its thread is a bug of ours and takes the
 * default action. The signal stack uses SS_AUTODISARM: guest code runs with
 * the guest's RSP in the host's, and the kernel must never take that value for
 * "already on the signal stack".
 */
#ifndef CORBEL_ENGINE_HOSTSIG_H
#define CORBEL_ENGINE_HOSTSIG_H

#include "base/compiler.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <ucontext.h>

#define HOSTSIG_KICK (SIGRTMIN + 4)

/*
 * Called in signal context with every signal blocked; may change the context.
 * Only async-signal-safe work. Returns false when it does not know the fault.
 */
typedef bool (*hostsig_fn)(void *opaque, int signal, siginfo_t *info, ucontext_t *context);

/* Sets up this thread: alternate stack, unblocks the signals. 0 or a negative errno. */
int hostsig_thread_init(void) MUST_CHECK;
void hostsig_thread_done(void);

/* Calls fn for synchronous faults of this thread at host addresses in [start, end).
 * At most 8 per thread; -ENOSPC. */
int hostsig_add_range(uintptr_t start, uintptr_t end, hostsig_fn fn, void *opaque) MUST_CHECK;
void hostsig_remove_range(uintptr_t start);

/* fn is called for HOSTSIG_KICK on this thread, wherever it was executing. */
void hostsig_set_kick(hostsig_fn fn, void *opaque);

#endif
