/* What the files behind executor/native.h share. */
#ifndef CORBEL_EXECUTOR_NATIVE_INT_H
#define CORBEL_EXECUTOR_NATIVE_INT_H

#include "executor/native.h"

#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct space {
    uint8_t *blocks;
    struct native_mapper *mapper;
    int bell;
    int tally;                      /* -1: there is none, since it has several runners */
    uint32_t key[NATIVE_KEY_WORDS]; /* of its only runner */
    uint64_t tallied;
    uint64_t stops; /* that the runner said it made, when it might spin */
    int *pidfds;
    pid_t *pids;
    _Atomic bool lost;
    bool owes_clear; /* one runner: what is mapped is to go before anything runs there */
    pid_t mapper_pid;
    int mapper_pidfd;
    unsigned mapper_cpu; /* that it is pinned to, and 1; 0: to none */
};

enum turn_way { TURN_TOGETHER, TURN_APART, TURN_WAYS };

struct turn_cost {
    uint64_t cost; /* TSC, of so many turns, without what the guest's code took */
    uint32_t turns;
};

struct turn {          /* a vCPU's thread's; see native_turn.c */
    _Atomic int space; /* where it runs; -1: nowhere */
    _Atomic bool kicked;
    uint32_t cpu; /* that its threads are pinned to */
    uint64_t since;
    uint64_t begin;    /* TSC, of the turn that is taken */
    bool is_plain;     /* it maps nothing */
    uint64_t last_tsc; /* how long the last run took */
    unsigned last_space;
    unsigned unconfirmed; /* space, and 1, in which it said so since; 0: none */
    bool is_pinned;

    enum turn_way way;
    struct turn_cost ways[TURN_WAYS];
    bool is_trial; /* apart, and not judged yet */
    unsigned failures;
    uint64_t retry_at; /* TSC */
    uint32_t spin_tsc; /* for how long the vCPU's thread spins now */
};

struct spaces {
    struct native native;
    unsigned vcpu_count;
    uint32_t xmask;
    cpu_set_t allowed;
    bool can_part;                      /* the host has a second CPU for us */
    const _Atomic uint32_t *spares_cpu; /* not 0: time on it is what the guest has little of */
    struct space space[NATIVE_MAX_SPACES];
    struct turn turns[NATIVE_MAX_RUNNERS];
    pid_t pids[NATIVE_MAX_RUNNERS];
    int pidfds[NATIVE_MAX_RUNNERS];
};

static inline long native_futex(_Atomic uint32_t *word, int op, uint32_t value,
                                const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

/* native.c. As native_ops.change. */
int native_change(void *opaque, unsigned n, const struct native_change *changes, unsigned count)
    MUST_CHECK;

/* Puts them into the mapper's page only, behind a clear that is owed, for whoever is to make
 * *ret_items of them. -EINVAL. */
int native_change_prepare(struct space *space, const struct native_change *changes, unsigned count,
                          unsigned *ret_items) MUST_CHECK;

/* native_turn.c. Before there are turns. */
void native_turn_init(const struct spaces *spaces, struct turn *turn);

/*
 * native_turn.c, on the vCPU's thread. Before a turn: where both threads run and how long they
 * spin; and behind it, how much of its time was inside, in TSC. What a plain one took, in
 * which nothing is mapped, says how the next are taken.
 */
void native_turn_begin(struct spaces *spaces, unsigned n, unsigned vcpu, bool is_plain);
void native_turn_end(struct spaces *spaces, unsigned vcpu, uint64_t inside);

/* As native_ops.rest: the thread may run anywhere again. */
void native_turn_rest(void *opaque, unsigned vcpu);

/* Before the mapper is given something to do, which the calling thread sleeps for. */
void native_turn_place_mapper(struct space *space);

/* native_run.c. As native_ops.run and native_ops.kick. */
void native_run(void *opaque, unsigned n, unsigned vcpu, struct vcpu_state *st,
                const struct native_change *changes, unsigned count, struct native_left *ret_left);
void native_kick(void *opaque, unsigned vcpu);

/* native_confirm.c. Waits until the process has ended; false: it has not, that long. */
bool native_has_ended(int pidfd, int timeout_ms);

/* native_confirm.c. The space is lost: ends its processes and waits for its runners' end, so that no
 * code of it runs any more. Any thread, more than once. */
void native_space_end(struct spaces *spaces, unsigned n);

/* native_confirm.c. As native_ops.confirm. */
void native_confirm(void *opaque, unsigned vcpu);

#endif
