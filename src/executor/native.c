/*
 * Running user code in a space and changing what is mapped there: the executor's
 * side of native_page.h. Nothing that a runner's page says is believed further
 * than as registers that user code may have.
 */
#include "executor/native.h"

#include "cpu/x86.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define HWCAP2_FSGSBASE 2u
#define START_MS 5000
#define SILENCE_NS 2000000000u /* a runner that was kicked answers sooner, or is killed */
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
/* Two threads that hand over this often do it best on one CPU; for how long before the scheduler may choose. */
#define SHORT_RUN_TSC 600000u
#define TOGETHER_TSC 100000000u
#define USER_FLAGS \
    (X86_FLAGS_ARITH | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT | X86_FLAG_AC | X86_FLAG_ID)

struct space {
    uint8_t *blocks;
    struct native_mapper *mapper;
    int bell;
    int *pidfds;
    pid_t *pids;
    _Atomic bool lost;
};

struct turn {          /* a vCPU's thread's */
    _Atomic int space; /* where it runs; -1: nowhere */
    _Atomic bool kicked;
    uint32_t cpu; /* that its threads keep to; UINT32_MAX: any */
    uint64_t since;
    uint64_t last_tsc; /* how long the last run took */
    unsigned last_space;
    bool is_pinned;
};

struct spaces {
    struct native native;
    unsigned vcpu_count;
    uint32_t xmask;
    cpu_set_t allowed;
    struct space space[NATIVE_MAX_SPACES];
    struct turn turns[NATIVE_MAX_RUNNERS];
    pid_t pids[NATIVE_MAX_RUNNERS];
    int pidfds[NATIVE_MAX_RUNNERS];
};

static struct spaces *process_spaces; /* of this process; set once, before its second thread */

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static uint32_t current_cpu(void)
{
    unsigned aux = 0;

    (void)__builtin_ia32_rdtscp(&aux);
    return aux & 0xfff;
}

static uint64_t now_ns(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- mappings ---- */

static int space_command(struct space *space, unsigned count)
{
    struct native_mapper *mapper = space->mapper;
    uint64_t answer = 0;

    if (atomic_load(&space->lost)) {
        return -EIO;
    }
    mapper->count = count;
    atomic_fetch_add(&mapper->go, 1);
    (void)futex(&mapper->go, FUTEX_WAKE, 1, NULL);
    while (read(space->bell, &answer, sizeof(answer)) < 0) {
        if (errno != EINTR) {
            atomic_store(&space->lost, true);
            return -EIO;
        }
    }
    return answer == 1 ? 0 : -ENOMEM;
}

static bool is_ours(const struct native_change *change)
{
    return change->va < NATIVE_LOWEST || change->va >= NATIVE_END ||
           change->bytes > NATIVE_END - change->va ||
           (change->va < NATIVE_OWN_END && change->va + change->bytes > NATIVE_OWN);
}

static int native_change(void *opaque, unsigned n, const struct native_change *changes,
                         unsigned count)
{
    struct spaces *spaces = opaque;
    struct space *space = &spaces->space[n];

    for (unsigned i = 0; i < count; i++) {
        const struct native_change *c = &changes[i];

        if (i >= NATIVE_MAX_CHANGES || is_ours(c)) {
            return -EINVAL;
        }
        space->mapper->items[i] = (struct native_item){
            .va = c->va,
            .bytes = c->bytes,
            .prot = c->prot,
            .flags = MAP_SHARED | MAP_FIXED | (c->populate ? MAP_POPULATE : 0),
            .offset = c->offset,
        };
    }
    return count == 0 ? 0 : space_command(space, count);
}

static int native_clear(void *opaque, unsigned n)
{
    struct spaces *spaces = opaque;
    struct space *space = &spaces->space[n];

    space->mapper->items[0] =
        (struct native_item){.va = NATIVE_LOWEST, .bytes = NATIVE_OWN - NATIVE_LOWEST};
    space->mapper->items[1] =
        (struct native_item){.va = NATIVE_OWN_END, .bytes = NATIVE_END - NATIVE_OWN_END};
    return space_command(space, 2) == 0 ? 0 : -EIO;
}

static bool native_is_lost(void *opaque, unsigned n)
{
    struct spaces *spaces = opaque;

    return atomic_load(&spaces->space[n].lost);
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

static enum native_reason reason(const struct frame *frame, struct vcpu_state *st,
                                 struct native_left *left)
{
    switch (frame->info.si_signo) {
    case NATIVE_SIGNAL:
        return NATIVE_KICK;
    case SIGSYS:
        return call_reason(&frame->info, st);
    default:
        return fault_reason(frame->gregs, st, left);
    }
}

/* ---- running ---- */

static void lose(struct spaces *spaces, unsigned n)
{
    struct space *space = &spaces->space[n];

    atomic_store(&space->lost, true);
    for (unsigned i = 0; i < spaces->vcpu_count; i++) {
        (void)syscall(SYS_pidfd_send_signal, space->pidfds[i], SIGKILL, NULL, 0);
    }
}

static void set_affinity(pid_t pid, const cpu_set_t *set)
{
    (void)syscall(SYS_sched_setaffinity, pid, sizeof(*set), set); /* it is about speed only */
}

/* Two threads that take turns in microseconds belong on one CPU; others wherever there is room. */
static void keep_together(struct spaces *spaces, unsigned n, unsigned vcpu)
{
    struct turn *turn = &spaces->turns[vcpu];
    uint64_t now = __builtin_ia32_rdtsc();
    bool is_short = turn->last_tsc < SHORT_RUN_TSC;
    uint32_t cpu = current_cpu();
    pid_t runner = spaces->space[n].pids[vcpu];

    if (turn->is_pinned && (!is_short || turn->cpu != cpu || turn->last_space != n ||
                            now - turn->since > TOGETHER_TSC)) {
        set_affinity(spaces->space[turn->last_space].pids[vcpu], &spaces->allowed);
        set_affinity(0, &spaces->allowed);
        turn->is_pinned = false;
        cpu = current_cpu();
    }
    if (is_short && !turn->is_pinned) {
        cpu_set_t one;

        CPU_ZERO(&one);
        CPU_SET(cpu % CPU_SETSIZE, &one);
        set_affinity(runner, &one);
        set_affinity(0, &one);
        turn->is_pinned = true;
        turn->cpu = cpu;
        turn->since = now;
    }
    turn->last_space = n;
}

static void kick_runner(struct spaces *spaces, unsigned n, unsigned vcpu)
{
    struct space *space = &spaces->space[n];

    atomic_store(&native_runner_at(space->blocks, vcpu)->kicked, 1);
    (void)syscall(SYS_pidfd_send_signal, space->pidfds[vcpu], NATIVE_SIGNAL, NULL, 0);
}

static void native_kick(void *opaque, unsigned vcpu)
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

/* Until the runner has stopped, or is dead: false. */
static bool wait_for(struct spaces *spaces, unsigned n, unsigned vcpu, struct native_runner *r)
{
    static const struct timespec second = {.tv_sec = 1};
    uint64_t silent_since = 0;

    for (;;) {
        uint32_t word = atomic_load(&r->word);

        if (word == NATIVE_WORD_STOPPED) {
            return true;
        }
        if (word != NATIVE_WORD_GO) {
            return false;
        }
        if (futex(&r->word, FUTEX_WAIT, NATIVE_WORD_GO, &second) == 0 || errno == EAGAIN) {
            continue;
        }
        if (atomic_load(&spaces->turns[vcpu].kicked)) {
            uint64_t now = now_ns();

            silent_since = silent_since == 0 ? now : silent_since;
            if (now - silent_since > SILENCE_NS) {
                return false;
            }
            kick_runner(spaces, n, vcpu); /* again: it may have begun just then */
        }
    }
}

static bool go(struct spaces *spaces, unsigned n, unsigned vcpu, struct native_runner *r)
{
    struct turn *turn = &spaces->turns[vcpu];
    uint64_t begin;
    bool stopped = true;

    keep_together(spaces, n, vcpu);
    begin = __builtin_ia32_rdtsc();
    atomic_store(&r->kicked, 0);
    atomic_store(&turn->space, (int)n);
    if (!atomic_load(&turn->kicked)) {
        atomic_store(&r->word, NATIVE_WORD_GO);
        (void)futex(&r->word, FUTEX_WAKE, 1, NULL);
        stopped = wait_for(spaces, n, vcpu, r);
    } else {
        atomic_store(&r->aborted, 1);
    }
    atomic_store(&turn->space, -1);
    atomic_store(&turn->kicked, false);
    turn->last_tsc = __builtin_ia32_rdtsc() - begin;
    return stopped;
}

static void native_run(void *opaque, unsigned n, unsigned vcpu, struct vcpu_state *st,
                       const struct native_change *changes, unsigned count,
                       struct native_left *ret_left)
{
    struct spaces *spaces = opaque;
    struct space *space = &spaces->space[n];
    struct native_runner *r = native_runner_at(space->blocks, vcpu);
    uintptr_t block_va = NATIVE_OWN + (uintptr_t)(vcpu + 1) * NATIVE_BLOCK_BYTES;
    struct frame frame;

    *ret_left = (struct native_left){.reason = NATIVE_LOST};
    if (atomic_load(&space->lost)) {
        return;
    }
    if (!can_give(st)) {
        ret_left->reason = NATIVE_OTHER;
        return;
    }
    if (native_change(spaces, n, changes, count) != 0) {
        ret_left->reason = atomic_load(&space->lost) ? NATIVE_LOST : NATIVE_FULL;
        return;
    }
    give(spaces, st, r);
    if (!go(spaces, n, vcpu, r)) {
        lose(spaces, n);
        return;
    }
    if (atomic_load(&r->aborted) != 0) {
        ret_left->reason = NATIVE_KICK;
        return;
    }
    if (!take_frame(r, block_va, &frame) || !take_vectors(spaces, r, block_va, frame.xstate, st)) {
        lose(spaces, n);
        return;
    }
    take_registers(r, frame.gregs, st);
    ret_left->reason = reason(&frame, st, ret_left);
}

static const struct native_ops native_ops = {
    .run = native_run,
    .kick = native_kick,
    .change = native_change,
    .clear = native_clear,
    .is_lost = native_is_lost,
};

/* ---- making them ---- */

/* The mapper has mapped nothing yet: its first command takes away all it has of the executor. */
static bool space_begins(struct space *space, pid_t pid)
{
    struct pollfd fds[2] = {{.fd = space->bell, .events = POLLIN},
                            {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN}};
    struct native_mapper *mapper = space->mapper;
    uint64_t answer = 0;
    bool ok;

    mapper->items[0] =
        (struct native_item){.va = NATIVE_LOWEST, .bytes = NATIVE_OWN - NATIVE_LOWEST};
    mapper->items[1] =
        (struct native_item){.va = NATIVE_OWN_END, .bytes = NATIVE_END - NATIVE_OWN_END};
    mapper->count = 2;
    atomic_fetch_add(&mapper->go, 1);
    (void)futex(&mapper->go, FUTEX_WAKE, 1, NULL);
    ok = fds[1].fd >= 0 && poll(fds, 2, START_MS) > 0 && (fds[0].revents & POLLIN) != 0 &&
         read(space->bell, &answer, sizeof(answer)) == sizeof(answer) && answer == 1;
    if (fds[1].fd >= 0) {
        (void)close(fds[1].fd);
    }
    return ok;
}

static bool space_create(struct spaces *spaces, unsigned n, struct native_plan *plan)
{
    struct space *space = &spaces->space[n];
    pid_t pid;

    space->blocks = plan->blocks;
    space->mapper = (struct native_mapper *)(void *)(plan->blocks + NATIVE_PAGE_AT);
    space->mapper->done = 1;
    space->mapper->failed = 1ull << 32;
    space->pids = spaces->pids + (size_t)n * spaces->vcpu_count;
    space->pidfds = spaces->pidfds + (size_t)n * spaces->vcpu_count;
    space->bell = eventfd(0, EFD_CLOEXEC);
    if (space->bell < 0) {
        return false;
    }
    plan->bell = space->bell;
    pid = fork();
    if (pid == 0) {
        native_space_main(plan);
    }
    if (pid < 0 || !space_begins(space, pid)) {
        return false;
    }
    for (unsigned i = 0; i < spaces->vcpu_count; i++) {
        space->pids[i] = native_runner_at(plan->blocks, i)->pid;
        space->pidfds[i] = (int)syscall(SYS_pidfd_open, space->pids[i], 0);
        if (space->pidfds[i] < 0) {
            return false;
        }
    }
    return true;
}

/* XGETBV; the builtin wants -mxsave. */
static uint32_t host_xcr0(void)
{
    uint32_t low;
    uint32_t high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool host_is_able(struct spaces *spaces)
{
    if ((getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) == 0 ||
        sched_getaffinity(0, sizeof(spaces->allowed), &spaces->allowed) != 0) {
        return false;
    }
    spaces->native.cpuid_faults = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0;
    spaces->xmask = host_xcr0() & 7u;
    return true;
}

void executor_native_create(unsigned vcpu_count, const struct native **ret_native)
{
    unsigned wanted = native_spaces_for(vcpu_count);
    size_t space_bytes = (size_t)(vcpu_count + 1) * NATIVE_BLOCK_BYTES;
    struct spaces *spaces = calloc(1, sizeof(*spaces));
    struct native_plan plan = {.runners = vcpu_count, .parent = getpid(), .pages_fd = -1};
    uint8_t *pages = MAP_FAILED;

    *ret_native = NULL;
    if (spaces == NULL || !host_is_able(spaces)) {
        return;
    }
    plan.pages_fd = memfd_create("corbel-user", MFD_CLOEXEC);
    if (plan.pages_fd >= 0 && ftruncate(plan.pages_fd, (off_t)(space_bytes * wanted)) == 0) {
        pages =
            mmap(NULL, space_bytes * wanted, PROT_READ | PROT_WRITE, MAP_SHARED, plan.pages_fd, 0);
    }
    spaces->vcpu_count = vcpu_count;
    for (unsigned i = 0; i < vcpu_count; i++) {
        atomic_store(&spaces->turns[i].space, -1);
    }
    for (unsigned n = 0; pages != MAP_FAILED && n < wanted; n++) {
        plan.blocks = pages + n * space_bytes;
        plan.offset = n * space_bytes;
        if (!space_create(spaces, n, &plan)) {
            break;
        }
        spaces->native.space_count++;
    }
    if (plan.pages_fd >= 0) {
        (void)close(plan.pages_fd);
    }
    spaces->native.ops = &native_ops;
    spaces->native.opaque = spaces;
    process_spaces = spaces;
    *ret_native = &spaces->native;
}

unsigned executor_native_pids(pid_t ret_pids[NATIVE_MAX_RUNNERS])
{
    unsigned count = 0;

    if (process_spaces != NULL) {
        count = process_spaces->native.space_count * process_spaces->vcpu_count;
        memcpy(ret_pids, process_spaces->pids, count * sizeof(*ret_pids));
    }
    return count;
}

unsigned executor_native_bells(int ret_bells[NATIVE_MAX_SPACES])
{
    unsigned count = process_spaces == NULL ? 0 : process_spaces->native.space_count;

    for (unsigned i = 0; i < count; i++) {
        ret_bells[i] = process_spaces->space[i].bell;
    }
    return count;
}
