#include "engine/hostsig.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#define HOSTSIG_RANGES 8
/* Beside the frame, which grows with the CPU's vector state. */
#define HOSTSIG_STACK_BYTES (64u * 1024)
#define HOSTSIG_GUARD_BYTES 4096u

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

struct hostsig_range {
    uintptr_t start;
    uintptr_t end; /* 0: free */
    hostsig_fn fn;
    void *opaque;
};

/* What the handler of a thread sees. Written by that thread only, fields before `end`. */
struct hostsig_thread {
    struct hostsig_range ranges[HOSTSIG_RANGES];
    hostsig_fn kick;
    void *kick_opaque;
    void *stack;
    size_t stack_bytes;
    unsigned users; /* hostsig_thread_init() calls not yet undone */
    stack_t old_stack;
};

static _Thread_local struct hostsig_thread thread_state;

static const int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

/* As if nobody had a handler: the instruction faults again, or the signal is sent again. */
static void take_default_action(int signal_number, const siginfo_t *info)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = SIG_DFL;
    (void)sigaction(signal_number, &action, NULL); /* nothing to do about a failure here */
    if (info->si_code <= 0 || signal_number == SIGTRAP) {
        (void)raise(signal_number);
    }
}

static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    const uintptr_t rip = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
    const int saved_errno = errno;

    for (unsigned i = 0; i < HOSTSIG_RANGES; i++) {
        const struct hostsig_range *range = &thread_state.ranges[i];

        if (rip >= range->start && rip < range->end &&
            range->fn(range->opaque, signal_number, info, uc)) {
            errno = saved_errno;
            return;
        }
    }
    take_default_action(signal_number, info);
    errno = saved_errno;
}

static void on_kick(int signal_number, siginfo_t *info, void *context)
{
    const int saved_errno = errno;

    if (thread_state.kick != NULL) {
        (void)thread_state.kick(thread_state.kick_opaque, signal_number, info, context);
    }
    errno = saved_errno;
}

static int install_result; /* of the one call of install_handlers() */

static void install_handlers(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    action.sa_sigaction = on_fault;
    for (size_t i = 0; i < ARRAY_LEN(fault_signals); i++) {
        if (sigaction(fault_signals[i], &action, NULL) != 0) {
            install_result = -errno;
            return;
        }
    }
    action.sa_sigaction = on_kick;
    if (sigaction(HOSTSIG_KICK, &action, NULL) != 0) {
        install_result = -errno;
    }
}

static int unblock_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_LEN(fault_signals); i++) {
        sigaddset(&set, fault_signals[i]);
    }
    sigaddset(&set, HOSTSIG_KICK);
    return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static int set_signal_stack(struct hostsig_thread *t)
{
    const size_t frame_bytes = getauxval(AT_MINSIGSTKSZ);
    const size_t bytes =
        (HOSTSIG_GUARD_BYTES + HOSTSIG_STACK_BYTES + frame_bytes + 4095) & ~(size_t)4095;
    stack_t stack;
    uint8_t *mapping;

    mapping =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED) {
        return -errno;
    }
    memset(&stack, 0, sizeof(stack));
    stack.ss_sp = mapping + HOSTSIG_GUARD_BYTES;
    stack.ss_size = bytes - HOSTSIG_GUARD_BYTES;
    stack.ss_flags = (int)SS_AUTODISARM;
    if (mprotect(mapping, HOSTSIG_GUARD_BYTES, PROT_NONE) != 0 ||
        sigaltstack(&stack, &t->old_stack) != 0) {
        const int code = -errno;

        (void)munmap(mapping, bytes); /* ours alone */
        return code;
    }
    t->stack = mapping;
    t->stack_bytes = bytes;
    return 0;
}

int hostsig_thread_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct hostsig_thread *t = &thread_state;
    int rc;

    if (t->users > 0) {
        t->users++;
        return 0;
    }
    rc = -pthread_once(&once, install_handlers);
    if (rc == 0) {
        rc = install_result;
    }
    if (rc == 0) {
        rc = set_signal_stack(t);
    }
    if (rc != 0) {
        return rc;
    }
    t->users = 1;
    rc = unblock_signals();
    if (rc != 0) {
        hostsig_thread_done();
    }
    return rc;
}

void hostsig_thread_done(void)
{
    struct hostsig_thread *t = &thread_state;

    if (t->users == 0 || --t->users > 0) {
        return;
    }
    t->kick = NULL;
    if (t->old_stack.ss_size == 0) {
        t->old_stack.ss_flags = SS_DISABLE;
    }
    (void)sigaltstack(&t->old_stack, NULL); /* it was valid when it was read */
    (void)munmap(t->stack, t->stack_bytes);
    memset(t, 0, sizeof(*t));
}

int hostsig_add_range(uintptr_t start, uintptr_t end, hostsig_fn fn, void *opaque)
{
    for (unsigned i = 0; i < HOSTSIG_RANGES; i++) {
        struct hostsig_range *range = &thread_state.ranges[i];

        if (range->end == 0) {
            range->start = start;
            range->fn = fn;
            range->opaque = opaque;
            /* A signal may come between any two of these. */
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
            range->end = end;
            return 0;
        }
    }
    return -ENOSPC;
}

void hostsig_remove_range(uintptr_t start)
{
    for (unsigned i = 0; i < HOSTSIG_RANGES; i++) {
        struct hostsig_range *range = &thread_state.ranges[i];

        if (range->end != 0 && range->start == start) {
            range->end = 0;
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
            return;
        }
    }
}

void hostsig_set_kick(hostsig_fn fn, void *opaque)
{
    struct hostsig_thread *t = &thread_state;

    t->kick = NULL;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    t->kick_opaque = opaque;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    t->kick = fn;
}
