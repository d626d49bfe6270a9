/*
 * Running user code in a space: the executor's side of native_page.h. Nothing
 * that a runner's page says is believed further than as registers that user code
 * may have.
 */
#include "cpu/x86.h"
#include "executor/native_int.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

/* A runner that was kicked so often, and ran each time without an answer, is killed. */
#define SILENCE_KICKS 4u
/* How often a runner that says it has stopped is looked at, then given its CPU, before it is made to. */
#define ASLEEP_TRIES 8u
#define ASLEEP_YIELDS 8u
#define KICK_AGAIN_NS 500000000u
#define SIGINFO_AT \
    304u /* behind the frame's ucontext, the kernel's own being shorter than the C library's */
#define INFO_BYTES 32u
#define TRAP_DB 1u
#define TRAP_BP 3u
#define TRAP_PF 14u
#define VSYSCALL_PAGE 0xffffffffff600000ull
#define MXCSR_BITS 0xffffu
#define XSTATE_BV 512u
#define MXCSR_AT 24u
#define FLAT_DATA 0x2bu
#define SYS_URETPROBE 335
#define USER_FLAGS \
    (X86_FLAGS_ARITH | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT | X86_FLAG_AC | X86_FLAG_ID)

static uint64_t now_ns(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- registers ---- */

static bool is_flat(const struct x86_segment *seg)
{
    return seg->selector <= 3 || seg->selector == FLAT_DATA;
}

static bool is_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

/* Could the stub load all this without a fault? */
static bool can_give(const struct vcpu_state *st)
{
    return st->rip < NATIVE_END && (st->rflags & X86_FLAG_TF) == 0 &&
           is_canonical(st->seg[X86_FS].base) && is_canonical(st->seg[X86_GS].base) &&
           is_flat(&st->seg[X86_FS]) && is_flat(&st->seg[X86_GS]) && is_flat(&st->seg[X86_DS]) &&
           is_flat(&st->seg[X86_ES]);
}

static void give(const struct spaces *spaces, const struct vcpu_state *st, struct native_runner *r)
{
    r->fs_base = st->seg[X86_FS].base;
    r->gs_base = st->seg[X86_GS].base;
    r->selectors[0] = st->seg[X86_FS].selector;
    r->selectors[1] = st->seg[X86_GS].selector;
    r->selectors[2] = st->seg[X86_DS].selector;
    r->selectors[3] = st->seg[X86_ES].selector;
    r->xmask = spaces->xmask;
    r->rip = st->rip;
    r->flags = (st->rflags & USER_FLAGS) | X86_FLAG_FIXED1 | X86_FLAG_IF;
    memcpy(r->gpr, st->gpr, sizeof(r->gpr));
    memcpy(r->xsave, st->xsave, sizeof(r->xsave));
    r->begin = 0;
}

/* Has the guest's code run since registers were given? The stub says so right before. */
static bool has_begun(const struct native_runner *r)
{
    return *(const volatile uint64_t *)&r->begin != 0;
}

static uint64_t inside_tsc(const struct native_runner *r)
{
    return has_begun(r)
               ? *(const volatile uint64_t *)&r->end - *(const volatile uint64_t *)&r->begin
               : 0;
}

/* The runner's own copy of what the kernel put into the frame; false: it is not there. */
struct frame {
    greg_t gregs[NGREG];
    siginfo_t info;
    uint64_t xstate;
};

static const uint8_t *in_block(const uint8_t *block, uintptr_t block_va, uint64_t va, size_t bytes)
{
    uint64_t at = va - block_va;

    return at >= NATIVE_STACK_AT && at < NATIVE_BLOCK_BYTES && bytes <= NATIVE_BLOCK_BYTES - at
               ? block + at
               : NULL;
}

static bool take_frame(const struct native_runner *r, uintptr_t block_va, struct frame *ret_frame)
{
    const uint8_t *block = (const uint8_t *)r - NATIVE_PAGE_AT;
    uint64_t context = *(const volatile uint64_t *)&r->context;
    const uint8_t *uc = in_block(block, block_va, context, SIGINFO_AT + INFO_BYTES);

    if (uc == NULL) {
        return false;
    }
    memcpy(ret_frame->gregs, uc + offsetof(ucontext_t, uc_mcontext.gregs),
           sizeof(ret_frame->gregs));
    memset(&ret_frame->info, 0, sizeof(ret_frame->info));
    memcpy(&ret_frame->info, uc + SIGINFO_AT, INFO_BYTES);
    memcpy(&ret_frame->xstate, uc + offsetof(ucontext_t, uc_mcontext.fpregs),
           sizeof(ret_frame->xstate));
    return true;
}

static bool take_vectors(const struct spaces *spaces, const struct native_runner *r,
                         uintptr_t block_va, uint64_t at, struct vcpu_state *st)
{
    const uint8_t *block = (const uint8_t *)r - NATIVE_PAGE_AT;
    const uint8_t *from = in_block(block, block_va, at, NATIVE_XSAVE_BYTES);
    uint64_t header[8] = {0};
    uint32_t mxcsr;

    if (from == NULL) {
        return false;
    }
    memcpy(st->xsave, from, NATIVE_XSAVE_BYTES);
    memcpy(header, st->xsave + XSTATE_BV, 8);
    header[0] &= spaces->xmask;
    memcpy(st->xsave + XSTATE_BV, header, sizeof(header));
    memcpy(&mxcsr, st->xsave + MXCSR_AT, sizeof(mxcsr));
    mxcsr &= MXCSR_BITS;
    memcpy(st->xsave + MXCSR_AT, &mxcsr, sizeof(mxcsr));
    return true;
}

static void take_selector(struct x86_segment *seg, uint64_t selector)
{
    uint16_t value = (uint16_t)selector;

    if (value <= 3 || value == FLAT_DATA) {
        seg->selector = value;
    }
}

static void take_registers(const struct native_runner *r, const greg_t *g, struct vcpu_state *st)
{
    static const int order[X86_GPR_COUNT] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                             REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                             REG_R12, REG_R13, REG_R14, REG_R15};
    uint64_t fs = *(const volatile uint64_t *)&r->fs_base;
    uint64_t gs = *(const volatile uint64_t *)&r->gs_base;
    uint64_t packed = (uint64_t)g[REG_CSGSFS]; /* CS, GS, FS, SS: 16 bits each */

    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        st->gpr[i] = (uint64_t)g[order[i]];
    }
    st->rip = (uint64_t)g[REG_RIP];
    st->rflags = (st->rflags & ~(uint64_t)USER_FLAGS) | ((uint64_t)g[REG_EFL] & USER_FLAGS);
    st->seg[X86_FS].base = is_canonical(fs) ? fs : 0;
    st->seg[X86_GS].base = is_canonical(gs) ? gs : 0;
    take_selector(&st->seg[X86_GS], packed >> 16);
    take_selector(&st->seg[X86_FS], packed >> 32);
    take_selector(&st->seg[X86_DS], *(const volatile uint64_t *)&r->selectors[2]);
    take_selector(&st->seg[X86_ES], *(const volatile uint64_t *)&r->selectors[3]);
}

/* ---- why it left ---- */

static enum native_reason call_reason(const siginfo_t *info, struct vcpu_state *st)
{
    uint64_t at = (uint64_t)(uintptr_t)info->si_call_addr;

    if (at >= VSYSCALL_PAGE && at < VSYSCALL_PAGE + 4096) {
        st->rip = at; /* the kernel has made a RET of it */
        st->gpr[X86_RSP] -= 8;
        return NATIVE_OTHER;
    }
    st->rip -= 2; /* 0F 05, CD 80 */
    return info->si_arch == AUDIT_ARCH_X86_64 ? NATIVE_SYSCALL : NATIVE_OTHER;
}

static enum native_reason fault_reason(const greg_t *g, struct vcpu_state *st,
                                       struct native_left *left)
{
    switch ((uint64_t)g[REG_TRAPNO]) {
    case TRAP_PF:
        left->address = (uint64_t)g[REG_CR2];
        left->error = (uint32_t)g[REG_ERR];
        return NATIVE_FAULT;
    case TRAP_DB:
        if ((st->rflags & X86_FLAG_TF) != 0) {
            return NATIVE_TRAP;
        }
        st->rip -= 1; /* F1 */
        return NATIVE_OTHER;
    case TRAP_BP:
        st->rip -= 1; /* CC; CD 03 is none in user code of Linux, and #GP where it is */
        return NATIVE_OTHER;
    default:
        return NATIVE_OTHER;
    }
}

/* sys_uretprobe: Linux lets no filter see it and answers SIGILL outside a trampoline of its own. */
static bool is_uretprobe(const siginfo_t *info)
{
    return info->si_signo == SIGILL && info->si_code == SI_KERNEL;
}

static enum native_reason reason(const struct frame *frame, struct vcpu_state *st,
                                 struct native_left *left)
{
    switch (frame->info.si_signo) {
    case NATIVE_SIGNAL:
        return NATIVE_KICK;
    case SIGSYS:
        return call_reason(&frame->info, st);
    default:
        if (is_uretprobe(&frame->info)) {
            st->gpr[X86_RAX] = SYS_URETPROBE;
            st->rip -= 2;
            return NATIVE_SYSCALL;
        }
        return fault_reason(frame->gregs, st, left);
    }
}

/* ---- running ---- */

static void kick_runner(struct spaces *spaces, unsigned n, unsigned vcpu)
{
    struct space *space = &spaces->space[n];

    atomic_store(&native_runner_at(space->blocks, vcpu)->kicked, 1);
    (void)syscall(SYS_pidfd_send_signal, space->pidfds[vcpu], NATIVE_SIGNAL, NULL, 0);
}

void native_kick(void *opaque, unsigned vcpu)
{
    struct spaces *spaces = opaque;
    struct turn *turn = &spaces->turns[vcpu];
    int n;

    if (atomic_exchange(&turn->kicked, true)) {
        return; /* it is on its way out */
    }
    n = atomic_load(&turn->space);
    if (n >= 0) {
        kick_runner(spaces, (unsigned)n, vcpu);
    }
}

static bool is_under_way(uint32_t word)
{
    return word == NATIVE_WORD_GO || word == NATIVE_WORD_MAPPING;
}

/* It may answer within the time of a wake-up. */
static void spin_for(const struct native_runner *r, uint32_t spin_tsc)
{
    uint64_t begin = __builtin_ia32_rdtsc();

    while (is_under_way(atomic_load_explicit(&r->word, memory_order_relaxed)) &&
           __builtin_ia32_rdtsc() - begin < spin_tsc) {
        __builtin_ia32_pause();
    }
}

/*
 * Has it really stopped? Who runs in the space can write STOPPED as well and go on, with what a
 * flush takes away from now on. The kernel knows: a runner can wait for nothing but its own word,
 * and then only we wake it. Counts who waits, by moving them from the word to the word.
 */
static bool is_asleep(struct native_runner *r, uint32_t word)
{
    return syscall(SYS_futex, &r->word, FUTEX_CMP_REQUEUE, 0, 1ul, &r->word, word) > 0;
}

/* It sleeps at once; where it has the same CPU, it needs that. */
static void let_sleep(struct native_runner *r, uint32_t word, unsigned tries)
{
    static const struct timespec shortly = {.tv_nsec = 100000};

    if (tries < ASLEEP_TRIES) {
        __builtin_ia32_pause();
    } else if (tries < ASLEEP_TRIES + ASLEEP_YIELDS) {
        (void)sched_yield();
    } else {
        (void)native_futex(&r->word, FUTEX_WAIT, word, &shortly);
    }
}

struct patience {
    uint64_t again;  /* 0: nothing is overdue */
    uint64_t cpu_ns; /* that it had used when it was kicked */
    unsigned unheard;
};

/* CPU time of a process; see clock_getcpuclockid(3), which would look whether there is one. */
static uint64_t cpu_ns(pid_t pid)
{
    const clockid_t clock = (clockid_t)(~(unsigned)pid << 3 | 2u);
    struct timespec used = {0};

    (void)clock_gettime(clock, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/*
 * An answer is due: has the runner been silent for too long? Kicks it now and then, and not more
 * often, since these signals queue, and all their frames are put on its stack at once. One that
 * the host gives no CPU to cannot answer: only kicks after which it ran count.
 */
static bool is_silent(struct spaces *spaces, unsigned n, unsigned vcpu, struct patience *p,
                      bool was_kicked)
{
    const pid_t runner = spaces->space[n].pids[vcpu];
    const uint64_t now = now_ns();

    if (p->again == 0) {
        p->cpu_ns = cpu_ns(runner);
        p->again = was_kicked ? now + KICK_AGAIN_NS : now;
    }
    if (now >= p->again) {
        const uint64_t used_ns = cpu_ns(runner);

        p->unheard += used_ns != p->cpu_ns ? 1 : 0;
        p->cpu_ns = used_ns;
        kick_runner(spaces, n, vcpu); /* it may have begun just then, or goes on beside us */
        p->again = now + KICK_AGAIN_NS;
    }
    /* The word of one that has ended does not always tell: the kernel writes there only while others
     * share the memory, and an order may be written over it. */
    return p->unheard > SILENCE_KICKS || native_has_ended(spaces->space[n].pidfds[vcpu], 0);
}

/* The mapper or the runner is to write the word. Back for no reason, whoever waits behind us may
 * have been meant: when the runner does, it goes on. False: nothing came for that long. */
static bool wait_while(struct native_runner *r, uint32_t word, const struct timespec *most)
{
    bool is_late = native_futex(&r->word, FUTEX_WAIT, word, most) < 0 && errno == ETIMEDOUT;

    if (atomic_load(&r->word) == NATIVE_WORD_GO) {
        (void)native_futex(&r->word, FUTEX_WAKE, 1, NULL);
    }
    return !is_late;
}

/* It said that it has stopped: is that so? When it may spin, it is asked later (native_confirm). */
static bool has_stopped(struct spaces *spaces, unsigned n, unsigned vcpu, struct native_runner *r,
                        uint32_t word)
{
    _Atomic uint32_t *may = &spaces->space[n].mapper->may[vcpu + 1];

    if (atomic_load(may) == NATIVE_MAY_SPIN && word == NATIVE_WORD_STOPPED) {
        spaces->space[n].stops++;
        spaces->turns[vcpu].unconfirmed = n + 1;
        return true;
    }
    /* Before it is looked at: a late kick wakes it, and others may write to its word. */
    atomic_store(may, NATIVE_MAY_NOT);
    return is_asleep(r, word);
}

/* Until the runner has stopped, or is dead: false. */
static bool wait_for(struct spaces *spaces, unsigned n, unsigned vcpu, struct native_runner *r)
{
    static const struct timespec tick = {.tv_nsec = 10000000}; /* who is not woken looks himself */
    static const struct timespec moment = {.tv_nsec = 1000000};
    const _Atomic bool *kicked = &spaces->turns[vcpu].kicked;
    struct patience patience = {0};
    unsigned tries = 0;

    spin_for(r, spaces->turns[vcpu].spin_tsc);
    atomic_store(&r->waiting, 1); /* before the word is looked at once more */
    for (;;) {
        uint32_t word = atomic_load(&r->word);

        if (word >= NATIVE_WORD_STOPPED && word <= NATIVE_WORD_ABORTED && !is_under_way(word)) {
            if (has_stopped(spaces, n, vcpu, r, word)) {
                return true;
            }
            let_sleep(r, word, tries++);
        } else if (!is_under_way(word) ||
                   (!wait_while(r, word, atomic_load(kicked) ? &moment : &tick) &&
                    native_has_ended(spaces->space[n].pidfds[vcpu], 0))) {
            return false;
        }
        if ((atomic_load(kicked) || tries > ASLEEP_TRIES + ASLEEP_YIELDS) &&
            is_silent(spaces, n, vcpu, &patience, atomic_load(kicked))) {
            return false;
        }
    }
}

static bool may_spin(const struct spaces *spaces, unsigned n, unsigned vcpu)
{
    return spaces->turns[vcpu].spin_tsc != 0 && spaces->space[n].tally >= 0;
}

/* count: changes, in the mapper's page, that the runner is to make before. It has surely stopped. */
static void let_go(struct spaces *spaces, unsigned n, unsigned vcpu, struct native_runner *r,
                   unsigned count)
{
    struct space *space = &spaces->space[n];

    atomic_store(&space->mapper->may[vcpu + 1],
                 may_spin(spaces, n, vcpu) ? NATIVE_MAY_SPIN : NATIVE_MAY_RUN);
    if (count != 0) {
        space->mapper->count = count;
        for (unsigned i = 0; i < NATIVE_KEY_WORDS; i++) {
            r->key[i] = (uint64_t)space->key[i] << 32;
        }
    }
    /* Before it is asked whether it sleeps. */
    atomic_store(&r->word, count != 0 ? NATIVE_WORD_MAPPING : NATIVE_WORD_GO);
    if (atomic_exchange(&r->sleeps, 0) != 0) {
        (void)native_futex(&r->word, FUTEX_WAKE, 1, NULL);
    }
}

static bool go(struct spaces *spaces, unsigned n, unsigned vcpu, struct native_runner *r,
               unsigned count)
{
    struct turn *turn = &spaces->turns[vcpu];
    bool stopped = true;

    atomic_store(&r->kicked, 0);
    atomic_store(&r->waiting, 0);
    atomic_store(&turn->space, (int)n);
    if (atomic_load(&turn->kicked)) {
        atomic_store(&r->kicked, 1);
    }
    if (count != 0 || atomic_load(&r->kicked) == 0) {
        let_go(spaces, n, vcpu, r, count);
        stopped = wait_for(spaces, n, vcpu, r);
    } else {
        atomic_store(&r->aborted, 1);
    }
    atomic_store(&turn->space, -1);
    atomic_store(&turn->kicked, false);
    native_turn_end(spaces, vcpu, inside_tsc(r));
    return stopped;
}

/*
 * Before a turn: is nothing owed? Where the runner spins from turn to turn, what it says is asked
 * for later. It is now when it gets the key, which only who has surely stopped may; when it spun and
 * will not; and when it did not and will, since it may have added what it was not asked for.
 */
static bool is_settled(struct spaces *spaces, unsigned n, unsigned vcpu, unsigned count)
{
    struct space *space = &spaces->space[n];
    struct turn *turn = &spaces->turns[vcpu];
    bool spins = may_spin(spaces, n, vcpu);

    if (!spins || turn->unconfirmed != n + 1 || count != 0) {
        native_confirm(spaces, vcpu);
    }
    if (spins && atomic_load(&space->mapper->may[vcpu + 1]) != NATIVE_MAY_SPIN) {
        turn->unconfirmed = n + 1;
        native_confirm(spaces, vcpu);
    }
    return !atomic_load(&space->lost);
}

/* The vCPU goes on in another space than n: its runner there need not spin any more. */
static void leave_space(struct spaces *spaces, unsigned n, unsigned vcpu)
{
    const unsigned last = spaces->turns[vcpu].last_space;

    if (last != n) {
        native_confirm(spaces, vcpu);
        atomic_store(&spaces->space[last].mapper->may[vcpu + 1], NATIVE_MAY_NOT);
    }
}

/* Makes the changes, or leaves *ret_left of them to the runner: to the only one, since others would
 * see the key. */
static int change(struct spaces *spaces, unsigned n, const struct native_change *changes,
                  unsigned count, unsigned *ret_left)
{
    *ret_left = 0;
    return spaces->vcpu_count == 1
               ? native_change_prepare(&spaces->space[n], changes, count, ret_left)
               : native_change(spaces, n, changes, count);
}

/* It did not go on, with some changes left to make perhaps; once more does no harm. why: when all
 * are made. */
static enum native_reason make_rest(struct spaces *spaces, unsigned n,
                                    const struct native_change *changes, unsigned count,
                                    enum native_reason why)
{
    if (native_change(spaces, n, changes, count) == 0) {
        return why;
    }
    return atomic_load(&spaces->space[n].lost) ? NATIVE_GONE : NATIVE_FULL;
}

/*
 * Did it stop without the order? Who said so between adding to his tally and the stub's word
 * is believed then, and the stub's word takes the order's place. The key is still in its page.
 */
static bool has_order(const struct space *space, const struct native_runner *r)
{
    bool has = true;

    for (unsigned i = 0; i < NATIVE_KEY_WORDS; i++) {
        uint64_t key = *(const volatile uint64_t *)&r->key[i];

        has = has && key == (uint64_t)space->key[i] << 32;
    }
    return has;
}

void native_run(void *opaque, unsigned n, unsigned vcpu, struct vcpu_state *st,
                const struct native_change *changes, unsigned count, struct native_left *ret_left)
{
    struct spaces *spaces = opaque;
    struct space *space = &spaces->space[n];
    struct native_runner *r = native_runner_at(space->blocks, vcpu);
    uintptr_t block_va = NATIVE_OWN + (uintptr_t)(vcpu + 1) * NATIVE_BLOCK_BYTES;
    unsigned left_to_it;
    bool has_answered;
    struct frame frame;
    uint32_t word;

    *ret_left = (struct native_left){.reason = NATIVE_GONE};
    if (atomic_load(&space->lost)) {
        return;
    }
    if (!can_give(st)) {
        ret_left->reason = make_rest(spaces, n, changes, count, NATIVE_OTHER);
        return;
    }
    leave_space(spaces, n, vcpu);
    native_turn_begin(spaces, n, vcpu, count == 0 && !space->owes_clear);
    if (change(spaces, n, changes, count, &left_to_it) != 0) {
        ret_left->reason = atomic_load(&space->lost) ? NATIVE_GONE : NATIVE_FULL;
        return;
    }
    if (!is_settled(spaces, n, vcpu, left_to_it)) {
        return;
    }
    give(spaces, st, r);
    has_answered = go(spaces, n, vcpu, r, left_to_it);
    if (!has_answered || (left_to_it != 0 && has_order(space, r))) {
        native_space_end(spaces, n);
        memset(r->key, 0, sizeof(r->key));
        ret_left->reason = has_answered || has_begun(r) ? NATIVE_LOST : NATIVE_GONE;
        return;
    }
    word = atomic_load(&r->word);
    if (word == NATIVE_WORD_FAILED && left_to_it != 0) {
        ret_left->reason = NATIVE_FULL;
        return;
    }
    if (word == NATIVE_WORD_ABORTED) {
        ret_left->reason = make_rest(spaces, n, changes, count, NATIVE_KICK);
        return;
    }
    if (left_to_it != 0) {
        space->owes_clear = false;
    }
    if (atomic_load(&r->aborted) != 0) {
        ret_left->reason = NATIVE_KICK;
        return;
    }
    if (!take_frame(r, block_va, &frame) || !take_vectors(spaces, r, block_va, frame.xstate, st)) {
        native_space_end(spaces, n);
        ret_left->reason = NATIVE_LOST;
        return;
    }
    take_registers(r, frame.gregs, st);
    ret_left->cycles = inside_tsc(r);
    ret_left->reason = reason(&frame, st, ret_left);
}
