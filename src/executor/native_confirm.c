/*
 * Has a runner really stopped that may spin? It says so where the guest's user can
 * write, too; what it has added to its tally tells (native_stub.S). A look costs a
 * system call, and there is time for it until the guest's kernel relies on it: until
 * a flush, since before that user code might as well have run on with what the TLB has.
 *
 * Compiled for general registers only: the guest's vector registers may be live.
 */
#include "executor/native_int.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>

static long system_call(long number, long a, long b, long c, long d)
{
    register long fourth __asm__("r10") = d;
    long rc;

    __asm__ volatile("syscall"
                     : "=a"(rc)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
    return rc;
}

#define STATUS_BLIND 1

bool native_has_ended(int pidfd, int timeout_ms)
{
    struct pollfd fd = {.fd = pidfd, .events = POLLIN};
    long r;

    do {
        r = system_call(SYS_poll, (long)&fd, 1, timeout_ms, 0);
    } while (r == -EINTR);
    if (r < 0) {
        /* Nobody could tell any more whether guest code runs. */
        (void)system_call(SYS_exit_group, STATUS_BLIND, 0, 0, 0);
    }
    return r > 0;
}

void native_space_end(struct spaces *spaces, unsigned n)
{
    struct space *space = &spaces->space[n];

    atomic_store(&space->lost, true);
    (void)system_call(SYS_pidfd_send_signal, space->mapper_pidfd, SIGKILL, 0, 0);
    for (unsigned i = 0; i < spaces->vcpu_count; i++) {
        (void)system_call(SYS_pidfd_send_signal, space->pidfds[i], SIGKILL, 0, 0);
    }
    for (unsigned i = 0; i < spaces->vcpu_count; i++) {
        while (!native_has_ended(space->pidfds[i], -1)) {
        }
    }
}

void native_confirm(void *opaque, unsigned vcpu)
{
    struct spaces *spaces = opaque;
    struct turn *turn = &spaces->turns[vcpu];
    struct space *space;
    uint64_t more = 0;

    if (turn->unconfirmed == 0) {
        return;
    }
    space = &spaces->space[turn->unconfirmed - 1];
    turn->unconfirmed = 0;
    if (system_call(SYS_read, space->tally, (long)&more, sizeof(more), 0) == sizeof(more)) {
        space->tallied += more;
    }
    if (space->tallied != space->stops) {
        native_space_end(spaces, (unsigned)(space - spaces->space));
    }
}
