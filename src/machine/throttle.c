/*
 * A cap on the CPU time of a machine, for hosts whose control groups cannot:
 * the machine has an account, which fills with time, and from which all its
 * processes draw together. When it is overdrawn the vCPUs rest.
 *
 * What is drawn is what the host's scheduler says, so that a machine that had
 * to wait for a busy host does not pay for that. All on the loop's thread, but
 * for machine_set_cpu_cap().
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/process.h"
#include "machine/machine_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* The account never holds more than this much of filling: what a machine did not use, or the host
 * was too busy to give it, it may use later. */
#define BURST_NS (100 * NS_PER_MS)
/* Who rests goes on with this much: how long it runs and rests in turn. */
#define RESUME_NS (10 * NS_PER_MS)
#define SHORTEST_NS (1 * NS_PER_MS)
#define LONGEST_NS (20 * NS_PER_MS)
/* How often new processes are looked for: those of the engine are made at its start. */
#define LOOK_EVERY_NS (10000 * NS_PER_MS)
#define MAX_PROCESSES 128

struct payer {
    pid_t pid;
    uint64_t seen_ns; /* CPU time at the last look */
};

struct throttle {
    struct loop_timer *timer;
    unsigned percent; /* 0: no cap */
    int64_t account_ns;
    uint64_t last_ns, own_ns, looked_ns;
    struct payer payers[MAX_PROCESSES];
    unsigned payer_count;
};

static uint64_t read_clock(clockid_t clock)
{
    struct timespec time = {0};

    return clock_gettime(clock, &time) == 0
               ? (uint64_t)time.tv_sec * 1000 * NS_PER_MS + (uint64_t)time.tv_nsec
               : 0;
}

/* CPU time of another process; 0 when it has ended. */
static uint64_t time_of(pid_t pid)
{
    clockid_t clock;

    return clock_getcpuclockid(pid, &clock) == 0 ? read_clock(clock) : 0;
}

/* Processes of the engine; what a new one has used before is not held against it. */
static void find_payers(struct throttle *throttle)
{
    pid_t pids[MAX_PROCESSES];
    struct payer found[MAX_PROCESSES];
    unsigned count = process_descendants(getpid(), pids, MAX_PROCESSES);

    for (unsigned i = 0; i < count; i++) {
        found[i] = (struct payer){.pid = pids[i], .seen_ns = time_of(pids[i])};
        for (unsigned j = 0; j < throttle->payer_count; j++) {
            if (throttle->payers[j].pid == pids[i]) {
                found[i] = throttle->payers[j];
            }
        }
    }
    throttle->payer_count = count;
    for (unsigned i = 0; i < count; i++) {
        throttle->payers[i] = found[i];
    }
}

/* CPU time since the last call. */
static uint64_t take_used(struct throttle *throttle)
{
    uint64_t own_ns = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t used_ns = own_ns - throttle->own_ns;

    throttle->own_ns = own_ns;
    for (unsigned i = 0; i < throttle->payer_count; i++) {
        struct payer *payer = &throttle->payers[i];
        uint64_t now_ns = time_of(payer->pid);

        if (now_ns > payer->seen_ns) {
            used_ns += now_ns - payer->seen_ns;
            payer->seen_ns = now_ns;
        }
    }
    return used_ns;
}

static void set_throttled(struct machine *machine, bool is_throttled)
{
    if (atomic_exchange(&machine->is_throttled, is_throttled) != is_throttled) {
        latency_count(&machine->rests, is_throttled);
        for (unsigned i = 0; i < machine->config.cpus_max; i++) {
            vcpu_kick(&machine->vcpus[i]);
        }
    }
}

static uint64_t count_cpus(const struct machine *machine)
{
    return (uint64_t)__builtin_popcount(atomic_load(&machine->cpus_present));
}

/* When the account will hold enough again, or empty at the soonest. */
static uint64_t find_wait(const struct machine *machine, const struct throttle *throttle,
                          int64_t resume_ns)
{
    uint64_t all = 100 * count_cpus(machine);
    uint64_t rate = throttle->percent * count_cpus(machine);
    uint64_t wait_ns;

    if (atomic_load(&machine->is_throttled)) {
        wait_ns = (uint64_t)(resume_ns - throttle->account_ns) * 100 / rate;
    } else {
        wait_ns = all > rate ? (uint64_t)throttle->account_ns * 100 / (all - rate) : LONGEST_NS;
    }
    return wait_ns < SHORTEST_NS ? SHORTEST_NS : wait_ns > LONGEST_NS ? LONGEST_NS : wait_ns;
}

static void on_time(void *opaque)
{
    struct machine *machine = opaque;
    struct throttle *throttle = machine->throttle;
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t rate = throttle->percent * count_cpus(machine);
    int64_t burst_ns = (int64_t)(BURST_NS * rate / 100);
    int64_t resume_ns = (int64_t)(RESUME_NS * rate / 100);

    if (throttle->percent == 0) {
        set_throttled(machine, false);
        return;
    }
    if (now_ns - throttle->looked_ns >= LOOK_EVERY_NS) {
        find_payers(throttle);
        throttle->looked_ns = now_ns;
    }
    throttle->account_ns += (int64_t)((now_ns - throttle->last_ns) * rate / 100);
    throttle->account_ns -= (int64_t)take_used(throttle);
    throttle->last_ns = now_ns;
    if (throttle->account_ns > burst_ns) {
        throttle->account_ns = burst_ns;
    }
    if (throttle->account_ns >= resume_ns) {
        set_throttled(machine, false);
    } else if (throttle->account_ns <= 0) {
        set_throttled(machine, true);
    }
    loop_arm_timer(throttle->timer, now_ns + find_wait(machine, throttle, resume_ns));
}

int throttle_set(struct machine *machine, unsigned percent)
{
    struct throttle *throttle = machine->throttle;

    if (throttle == NULL) {
        throttle = calloc(1, sizeof(*throttle));
        if (throttle == NULL ||
            loop_add_timer(machine->loop, on_time, machine, &throttle->timer) < 0) {
            free(throttle);
            return -ENOMEM;
        }
        machine->throttle = throttle;
    }
    if (throttle->percent == 0) {
        throttle->payer_count = 0;
        find_payers(throttle);
        throttle->looked_ns = throttle->last_ns = clock_monotonic_ns();
        throttle->own_ns = read_clock(CLOCK_PROCESS_CPUTIME_ID);
        throttle->account_ns = (int64_t)SHORTEST_NS;
    }
    throttle->percent = percent;
    loop_arm_timer(throttle->timer, clock_monotonic_ns());
    return 0;
}

void throttle_spare(struct machine *machine, bool spares)
{
    if (machine->vm != NULL && machine->accel->spare_cpu != NULL) {
        machine->accel->spare_cpu(machine->vm, spares);
    }
}

struct cap_call {
    struct machine *machine;
    unsigned percent;
    bool spares;
};

static void take_cap(void *opaque)
{
    struct cap_call *call = opaque;

    throttle_spare(call->machine, call->percent != 0 || call->spares);
    if ((call->machine->throttle != NULL || call->percent != 0) &&
        throttle_set(call->machine, call->percent) < 0) {
        log_error("no memory to cap the CPUs");
    }
    free(call);
}

int machine_set_cpu_cap(struct machine *machine, unsigned percent, bool spares)
{
    struct cap_call *call = percent <= 100 ? malloc(sizeof(*call)) : NULL;
    int rc;

    if (call == NULL) {
        return percent <= 100 ? -ENOMEM : -EINVAL;
    }
    *call = (struct cap_call){.machine = machine, .percent = percent, .spares = spares};
    rc = loop_defer(machine->loop, take_cap, call);
    if (rc < 0) {
        free(call);
    }
    return rc;
}

void throttle_destroy(struct machine *machine)
{
    free(machine->throttle);
    machine->throttle = NULL;
}
