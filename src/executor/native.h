/*
 * Spaces (engine/native.h) as the executor has them: processes made at its start,
 * since it can make none later. Of each space one process maps and unmaps (the
 * mapper: it has the descriptor of RAM, and is told by the executor only), and
 * one for each vCPU runs the guest's user code (a runner: no descriptor, no system call
 * but waiting; where it is the only one, it also has a tally to add to, and
 * maps, with a key that no guest sees). They share one address space. See native_page.h.
 */
#ifndef CORBEL_EXECUTOR_NATIVE_H
#define CORBEL_EXECUTOR_NATIVE_H

#include "base/compiler.h"
#include "engine/native.h"
#include "executor/native_page.h"

#include <sys/types.h>

#define NATIVE_MAX_RUNNERS 64u                                      /* of all spaces */
#define NATIVE_MAX_THREADS (NATIVE_MAX_RUNNERS + NATIVE_MAX_SPACES) /* ... and their mappers */

#define NATIVE_MAX_EVENTFDS (2u * NATIVE_MAX_SPACES)
#define NATIVE_KEY_WORDS 3u

/* Each takes the better part of a millisecond to make; few guest processes
 * compute at the same time. */
#define NATIVE_SPARE_SPACES 2u
#define NATIVE_SPACES_PER_VCPU 2u

static inline unsigned native_spaces_for(unsigned vcpu_count)
{
    unsigned count = NATIVE_SPARE_SPACES + NATIVE_SPACES_PER_VCPU * vcpu_count;

    count = count < NATIVE_MAX_SPACES ? count : NATIVE_MAX_SPACES;
    return count < NATIVE_MAX_RUNNERS / vcpu_count ? count : NATIVE_MAX_RUNNERS / vcpu_count;
}

/* What a new space is to map: its part of the shared pages. */
struct native_plan {
    int pages_fd;  /* of all spaces' blocks */
    int copies_fd; /* of pages that stand for some of RAM's */
    int bell;      /* the mapper's eventfd */
    int tally;     /* the only runner's; -1: there are more */
    uint32_t key[NATIVE_KEY_WORDS];
    uint64_t offset;  /* of the space's blocks in pages_fd */
    uint8_t *blocks;  /* the same, mapped here */
    unsigned runners; /* a block each, behind the mapper's */
    pid_t parent;     /* whose end is the space's */
};

static inline struct native_runner *native_runner_at(uint8_t *blocks, unsigned vcpu)
{
    return (struct native_runner *)(void *)(blocks + (size_t)(vcpu + 1) * NATIVE_BLOCK_BYTES +
                                            NATIVE_PAGE_AT);
}

/* native_space.c: becomes the space; in a process made for it by fork. */
void native_space_main(const struct native_plan *plan) NORETURN;

/* native_filter.c: the calling thread's system calls from here on. key: NATIVE_KEY_WORDS, by which
 * the only runner may map; NULL for one of several. -errno. */
int native_filter_runner(uintptr_t block, const uint32_t *key) MUST_CHECK;
int native_filter_mapper(void) MUST_CHECK;

/*
 * native.c. Makes the spaces; the first thread, before there is another and before
 * RAM is mapped. Where the host does not allow them there are none, which is no
 * error; *ret_native is the process's. spares_cpu: not 0 while no thread is to spin; it
 * outlives them, any thread may write to it.
 */
void executor_native_create(unsigned vcpu_count, const _Atomic uint32_t *spares_cpu,
                            const struct native **ret_native);

/* The vCPU's thread leaves the engine: none of its user code goes on meanwhile. */
void executor_native_leave(unsigned vcpu);

/* For lockdown.c: the processes of mappers and runners, and the eventfds of both; how many. */
unsigned executor_native_pids(pid_t ret_pids[NATIVE_MAX_THREADS]);
unsigned executor_native_eventfds(int ret_fds[NATIVE_MAX_EVENTFDS]);

#endif
