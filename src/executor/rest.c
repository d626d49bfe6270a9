/*
 * A guest that hardly runs needs little of what was translated while it did,
 * most of all while it booted: that memory goes back to the host.
 *
 * Each vCPU adds up its sleep. The one that slept nearly all of a stretch of
 * time lets the engine trim itself, unless another is in guest code just then.
 * What is needed still is translated again; so that a guest which needs much of
 * it does not pay often, the stretch doubles each time.
 */
#include "engine/engine.h"
#include "executor/executor.h"

/* By the CPU's clock, for there is none here that costs no system call: some ten seconds. */
#define STRETCH_TICKS (1ull << 35)
#define STRETCH_MAX_TICKS (64 * STRETCH_TICKS)
#define AWAKE_SHARE 20u /* less than this part of it */

static bool others_run(const struct executor_thread *t)
{
    const struct executor *executor = t->executor;

    for (unsigned i = 0; i < executor->shared->vcpu_count; i++) {
        const struct executor_thread *other = &executor->threads[i];

        if (other != t && atomic_load(&other->page->place) == EXECUTOR_IN_GUEST) {
            return true;
        }
    }
    return false;
}

uint64_t executor_rest_begin(struct executor_thread *t)
{
    uint64_t now = __builtin_ia32_rdtsc();
    uint64_t passed = now - t->rest_since;

    if (t->rest_since != 0 && passed < t->rest_stretch) {
        return now;
    }
    if (t->rest_since == 0) {
        t->rest_stretch = STRETCH_TICKS;
    } else if (passed - t->rest_asleep < passed / AWAKE_SHARE && !others_run(t)) {
        t->rest_stretch *= engine_trim(t->vcpu) && t->rest_stretch < STRETCH_MAX_TICKS ? 2 : 1;
        now = __builtin_ia32_rdtsc();
    }
    t->rest_since = now;
    t->rest_asleep = 0;
    return now;
}

void executor_rest_end(struct executor_thread *t, uint64_t since)
{
    t->rest_asleep += __builtin_ia32_rdtsc() - since;
}
