/*
 * Named threads and ranked mutexes.
 *
 * A thread may take a mutex only of a higher rank than all it holds; builds
 * with CORBEL_DEBUG_LOCKS abort on a wrong order. All ranks live in
 * enum lock_rank with the reason for their place.
 */
#ifndef CORBEL_BASE_THREAD_H
#define CORBEL_BASE_THREAD_H

#include "base/compiler.h"

#include <pthread.h>
#include <stdbool.h>

enum lock_rank {
    LOCK_RANK_METRICS,      /* one scrape at a time, with all that it asks of the control plane */
    LOCK_RANK_COMPUTE_CALL, /* one change of the control plane at a time, with all that it calls */
    LOCK_RANK_COMPUTE, /* the control plane's queues and tables; never held over I/O or a call of
                          the store */
    LOCK_RANK_STORE,   /* one side of a store; its I/O happens while held */
    LOCK_RANK_DRIVES,  /* a machine's table of disks; exchanges them with all vCPUs stopped */
    LOCK_RANK_MACHINE, /* life cycle: pause, resume, stop; calls down into all below */
    LOCK_RANK_PCI,     /* configuration space; moves BARs on the bus while held */
    LOCK_RANK_BUS,     /* the tables of ranges; never held while a device is called */
    LOCK_RANK_DEVICE,  /* one device's registers; raises interrupts while held */
    LOCK_RANK_PCI_IRQ, /* PCI's shared lines and MSI-X tables; devices raise through it */
    LOCK_RANK_IRQ,     /* PIC, I/O APIC, routing; delivers to local APICs while held */
    LOCK_RANK_LAPIC,   /* one local APIC; may kick a vCPU while held */
    LOCK_RANK_ENGINE,  /* translation cache and code page marks */
    LOCK_RANK_SPACE,   /* what is mapped for a guest's user code; under the engine's */
    LOCK_RANK_IMAGE, /* one disk image's metadata; its I/O happens while held, devices wait before */
    LOCK_RANK_FILE,  /* writes that cover blocks of a file in part; their I/O happens while held */
    LOCK_RANK_LEAF   /* loop queues, log: nothing is taken under these */
};

#ifdef __clang__
#define CAPABILITY(name) __attribute__((capability(name)))
#define ACQUIRE(...) __attribute__((acquire_capability(__VA_ARGS__)))
#define RELEASE(...) __attribute__((release_capability(__VA_ARGS__)))
/* For functions that take or release a lock on some ways only, which clang cannot follow. */
#define NO_LOCK_ANALYSIS __attribute__((no_thread_safety_analysis))
#define TRY_ACQUIRE(...) __attribute__((try_acquire_capability(true, __VA_ARGS__)))
#else
#define CAPABILITY(name)
#define ACQUIRE(...)
#define RELEASE(...)
#define NO_LOCK_ANALYSIS
#define TRY_ACQUIRE(...)
#endif

struct CAPABILITY("mutex") mutex {
    pthread_mutex_t raw;
    enum lock_rank rank;
};

void mutex_init(struct mutex *mutex, enum lock_rank rank);
void mutex_done(struct mutex *mutex);
void mutex_lock(struct mutex *mutex) ACQUIRE(mutex);
bool mutex_trylock(struct mutex *mutex) TRY_ACQUIRE(mutex) MUST_CHECK; /* never waits */
void mutex_unlock(struct mutex *mutex) RELEASE(mutex);

/*
 * Starts a thread with every signal blocked that is not of its own making
 * (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP and SIGSYS stay), and the given name (at most 15
 * bytes, "vcpu/0", "io/0"). 0, or a negative errno. The caller joins it.
 */
int thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *), void *opaque)
    MUST_CHECK;

#endif
