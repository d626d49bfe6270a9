/*
 * How a vCPU's thread and its runner take turns. Together: on one CPU, each asleep
 * while the other runs; a switch there costs a few microseconds, a wake-up of
 * another CPU many times that. Apart: on two CPUs, the vCPU's thread spinning for a
 * moment while the runner runs, which saves a switch where a CPU is idle and costs
 * whole time slices where none is. The runner spins, too, where it is the only one in its
 * space (native_confirm.c); else only what the kernel has put to sleep has surely stopped. What a
 * turn costs is measured for both, and the cheaper one is kept; the other is tried again now
 * and then.
 */
#include "executor/native_int.h"

/* Turns that are longer neither keep together nor spin. */
#define SHORT_TURN_TSC 600000u
#define SPIN_TSC 300000u
/* For how long two threads keep to one CPU before the scheduler may choose another for them. */
#define TOGETHER_TSC 100000000u
/* Turns after which one way is judged, and for how long the other one is left then. */
#define JUDGE_TURNS 48u
#define RETRY_TSC 100000000ull
#define RETRY_DOUBLINGS 6u
/* What one costs together, while that was not tried. */
#define TOGETHER_GUESS_TSC 50000u
/* A turn that was longer had to wait for somebody else: how long says nothing more. */
#define COST_MAX_TSC 400000u

static uint32_t current_cpu(void)
{
    unsigned aux = 0;

    (void)__builtin_ia32_rdtscp(&aux);
    return aux & 0xfff;
}

static void set_affinity(pid_t pid, const cpu_set_t *set)
{
    (void)syscall(SYS_sched_setaffinity, pid, sizeof(*set), set); /* it is about speed only */
}

static void unpin(struct spaces *spaces, struct turn *turn, unsigned vcpu)
{
    const struct space *space = &spaces->space[turn->last_space];

    if (!atomic_load(&space->lost)) { /* or its number may be another's */
        set_affinity(space->pids[vcpu], &spaces->allowed);
    }
    set_affinity(0, &spaces->allowed);
    turn->is_pinned = false;
}

static void pin(const struct spaces *spaces, struct turn *turn, unsigned n, unsigned vcpu,
                uint64_t now)
{
    cpu_set_t one;

    turn->cpu = current_cpu();
    CPU_ZERO(&one);
    CPU_SET(turn->cpu % CPU_SETSIZE, &one);
    set_affinity(spaces->space[n].pids[vcpu], &one);
    set_affinity(0, &one);
    turn->is_pinned = true;
    turn->since = now;
}

/* The mean of what turns cost this way, of which there were some: they are forgotten by halves. */
static uint64_t mean_cost(const struct turn *turn, enum turn_way way)
{
    return turn->ways[way].cost / turn->ways[way].turns;
}

static void forget(struct turn *turn, enum turn_way way)
{
    turn->ways[way] = (struct turn_cost){0};
}

/* Enough turns were taken this way: is it the cheaper one? */
static void judge(struct turn *turn, uint64_t now)
{
    if (turn->way == TURN_TOGETHER) {
        if (now >= turn->retry_at) {
            forget(turn, TURN_APART);
            turn->way = TURN_APART;
            turn->is_trial = true;
        }
    } else if (mean_cost(turn, TURN_APART) >= mean_cost(turn, TURN_TOGETHER) * 5 / 4) {
        turn->way = TURN_TOGETHER;
        turn->failures = turn->is_trial ? turn->failures + (turn->failures < RETRY_DOUBLINGS) : 0;
        turn->retry_at = now + (RETRY_TSC << turn->failures);
    } else {
        turn->is_trial = false;
    }
    /* The latest count; what was before fades. */
    turn->ways[turn->way].cost /= 2;
    turn->ways[turn->way].turns /= 2;
}

void native_turn_init(const struct spaces *spaces, struct turn *turn)
{
    turn->way = TURN_TOGETHER;
    if (spaces->vcpu_count == 1 && spaces->can_part) {
        /* Where runners spin, a turn apart wakes nobody: it is the cheaper one until that is seen
         * to be otherwise. */
        turn->way = TURN_APART;
        turn->ways[TURN_TOGETHER] = (struct turn_cost){
            .cost = (uint64_t)JUDGE_TURNS * TOGETHER_GUESS_TSC, .turns = JUDGE_TURNS};
    }
}

static bool may_part(const struct spaces *spaces)
{
    return spaces->can_part && atomic_load_explicit(spaces->spares_cpu, memory_order_relaxed) == 0;
}

void native_turn_begin(struct spaces *spaces, unsigned n, unsigned vcpu, bool is_plain)
{
    struct turn *turn = &spaces->turns[vcpu];
    uint64_t now = __builtin_ia32_rdtsc();
    bool is_short = turn->last_tsc < SHORT_TURN_TSC;
    bool is_together;

    turn->begin = now;
    turn->is_plain = is_plain;
    if (!may_part(spaces)) {
        turn->way = TURN_TOGETHER;
    }
    is_together = turn->way == TURN_TOGETHER && is_short;

    if (turn->is_pinned && (!is_together || turn->cpu != current_cpu() || turn->last_space != n ||
                            now - turn->since > TOGETHER_TSC)) {
        unpin(spaces, turn, vcpu);
    }
    if (is_together && !turn->is_pinned) {
        pin(spaces, turn, n, vcpu, now);
    }
    turn->last_space = n;
    turn->spin_tsc = turn->way == TURN_APART && turn->last_tsc < SPIN_TSC ? SPIN_TSC : 0;
}

void native_turn_end(struct spaces *spaces, unsigned vcpu, uint64_t inside)
{
    struct turn *turn = &spaces->turns[vcpu];
    struct turn_cost *cost = &turn->ways[turn->way];
    uint64_t now = __builtin_ia32_rdtsc();
    uint64_t took = now - turn->begin;
    uint64_t lost = took - (inside < took ? inside : took);

    turn->last_tsc = took;
    if (!turn->is_plain) {
        return;
    }
    cost->cost += lost < COST_MAX_TSC ? lost : COST_MAX_TSC;
    if (++cost->turns >= JUDGE_TURNS && may_part(spaces)) {
        judge(turn, now);
    }
}

void native_turn_rest(void *opaque, unsigned vcpu)
{
    struct spaces *spaces = opaque;

    if (spaces->turns[vcpu].is_pinned) {
        unpin(spaces, &spaces->turns[vcpu], vcpu);
    }
}

/* It works while its caller sleeps: on another CPU it would wait for a wake-up or a spinning runner. */
void native_turn_place_mapper(struct space *space)
{
    unsigned cpu = current_cpu() % CPU_SETSIZE;

    if (space->mapper_cpu != cpu + 1) {
        cpu_set_t one;

        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        set_affinity(space->mapper_pid, &one);
        space->mapper_cpu = cpu + 1;
    }
}
