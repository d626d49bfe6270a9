#include "executor/executor.h"

#include <linux/futex.h>
#include <sys/syscall.h>

uint32_t executor_bell_wait(struct executor_bell *bell, uint32_t seen)
{
    uint32_t now = atomic_load(&bell->count);

    while (now == seen) {
        atomic_fetch_add(&bell->sleepers, 1);
        (void)syscall(SYS_futex, &bell->count, FUTEX_WAIT, seen, NULL, NULL, 0);
        atomic_fetch_sub(&bell->sleepers, 1);
        now = atomic_load(&bell->count);
    }
    return now;
}

static void bell_ring(struct executor_bell *bell)
{
    if (atomic_load(&bell->sleepers) != 0) {
        (void)syscall(SYS_futex, &bell->count, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
}

void executor_bell_set(struct executor_bell *bell, uint32_t count)
{
    atomic_store(&bell->count, count);
    bell_ring(bell);
}

void executor_bell_add(struct executor_bell *bell)
{
    atomic_fetch_add(&bell->count, 1);
    bell_ring(bell);
}
