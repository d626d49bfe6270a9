/* How a process becomes a space; see native.h. It ends for good when anything fails. */
#include "executor/native.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STATUS_FAILED 121
#define STUB_BYTES 4096u
#define FIRST_SIGNALS                                    \
    {                                                    \
        SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS \
    }

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

static void must(bool ok)
{
    if (!ok) {
        _exit(STATUS_FAILED);
    }
}

static uintptr_t block_at(unsigned n)
{
    return NATIVE_OWN + (uintptr_t)n * NATIVE_BLOCK_BYTES;
}

static void map_block(const struct native_plan *plan, unsigned n)
{
    const int fixed = MAP_FIXED_NOREPLACE;
    uint8_t *block = (uint8_t *)block_at(n);
    uint64_t offset = plan->offset + (uint64_t)n * NATIVE_BLOCK_BYTES + NATIVE_PAGE_AT;
    size_t bytes = n == 0 ? STUB_BYTES : NATIVE_BLOCK_BYTES - NATIVE_PAGE_AT;

    must(mmap(block, STUB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1,
              0) == block);
    memcpy(block, native_stub_start, (size_t)(native_stub_end - native_stub_start));
    must(mprotect(block, STUB_BYTES, PROT_READ | PROT_EXEC) == 0);
    must(mmap(block + NATIVE_PAGE_AT, bytes, n == 0 ? PROT_READ : PROT_READ | PROT_WRITE,
              MAP_SHARED | fixed, plan->pages_fd, (off_t)offset) == block + NATIVE_PAGE_AT);
}

/* The executor's and its own parent's ends are its own. */
static void die_with(pid_t parent)
{
    must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 && getppid() == parent);
}

static void handle(int number, uintptr_t handler, sigset_t *wanted)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; /* it never returns: masks stay */
    action.sa_sigaction = (void (*)(int, siginfo_t *, void *))handler;
    must(sigaction(number, &action, NULL) == 0);
    (void)sigaddset(wanted, number);
}

static void set_handlers(uintptr_t block)
{
    static const int faults[] = FIRST_SIGNALS;
    const stack_t stack = {.ss_sp = (void *)(block + NATIVE_STACK_AT),
                           .ss_size = NATIVE_BLOCK_BYTES - NATIVE_STACK_AT};
    sigset_t wanted;

    (void)sigemptyset(&wanted);
    must(sigaltstack(&stack, NULL) == 0);
    for (unsigned i = 0; i < ARRAY_LEN(faults); i++) {
        handle(faults[i], block + (uintptr_t)(native_stub_fault - native_stub_start), &wanted);
    }
    handle(NATIVE_SIGNAL, block + (uintptr_t)(native_stub_kick - native_stub_start), &wanted);
    must(sigprocmask(SIG_UNBLOCK, &wanted, NULL) == 0);
}

static NORETURN void jump(uintptr_t to, uintptr_t stack)
{
    /* Nothing stays in registers, a key least of all. */
    __asm__ volatile("mov %1, %%rsp\n\t"
                     "xor %%ebx, %%ebx\n\txor %%ecx, %%ecx\n\txor %%edx, %%edx\n\t"
                     "xor %%ebp, %%ebp\n\txor %%esi, %%esi\n\txor %%edi, %%edi\n\t"
                     "xor %%r8d, %%r8d\n\txor %%r9d, %%r9d\n\txor %%r10d, %%r10d\n\t"
                     "xor %%r11d, %%r11d\n\txor %%r12d, %%r12d\n\txor %%r13d, %%r13d\n\t"
                     "xor %%r14d, %%r14d\n\txor %%r15d, %%r15d\n\t"
                     "jmp *%0"
                     :
                     : "a"(to), "r"(stack)
                     : "memory");
    __builtin_unreachable();
}

struct runner_start {
    const struct native_plan *plan;
    uintptr_t block;
    pid_t parent;
};

/* The only runner has what it counts by and maps; one of several has nothing. */
static void set_descriptors(const struct native_plan *plan)
{
    bool is_only = plan->tally >= 0;

    if (is_only) {
        must(plan->tally > NATIVE_COPY_FD && plan->copies_fd > NATIVE_COPY_FD);
        must(dup2(plan->tally, NATIVE_TALLY_FD) == NATIVE_TALLY_FD);
        must(dup2(plan->copies_fd, NATIVE_COPY_FD) == NATIVE_COPY_FD);
    }
    must(syscall(SYS_close_range, is_only ? NATIVE_COPY_FD + 1 : 0, ~0u, 0) == 0);
}

/* Nothing of the C library's stays in registers that no guest has: XSAVEC would store it. */
static void empty_vectors(void)
{
    static const uint8_t nothing[4096] ALIGNED(64) = {0};

    __asm__ volatile("xrstor64 %0" : : "m"(nothing), "a"(-1), "d"(-1));
}

static int runner_main(void *opaque)
{
    const struct runner_start *start = opaque;
    uintptr_t block = start->block;
    struct native_runner *runner = (struct native_runner *)(block + NATIVE_PAGE_AT);
    uintptr_t stack = block + NATIVE_BLOCK_BYTES - 64;

    die_with(start->parent);
    set_handlers(block);
    (void)syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0); /* where the CPU cannot, the engine looks */
    set_descriptors(start->plan);
    runner->context = stack;
    must(native_filter_runner(block, start->plan->tally >= 0 ? start->plan->key : NULL) == 0);
    empty_vectors();
    jump(block + (uintptr_t)(native_stub_begin - native_stub_start), stack - 4096);
}

/* Each is ready before the next begins: they share the C library's memory. */
static void start_runner(const struct native_plan *plan, unsigned n)
{
    struct runner_start start = {.plan = plan, .block = block_at(n), .parent = getpid()};
    struct native_runner *runner = (struct native_runner *)(start.block + NATIVE_PAGE_AT);
    void *stack = (void *)(start.block + NATIVE_BLOCK_BYTES);
    int pid;

    atomic_store(&runner->waiting, 1);
    pid = clone(runner_main, stack, CLONE_VM | CLONE_CHILD_CLEARTID, &start, NULL, NULL,
                &runner->word);
    must(pid > 0);
    runner->pid = pid;
    while (atomic_load(&runner->word) != NATIVE_WORD_STOPPED) {
        struct timespec second = {.tv_sec = 1};

        (void)syscall(SYS_futex, &runner->word, FUTEX_WAIT, NATIVE_WORD_DEAD, &second, NULL, 0);
        must(waitpid(pid, NULL, WNOHANG | __WALL) == 0);
    }
}

/* The kernel writes there at every switch; the memory goes away. Runners have none, by CLONE_VM. */
static void leave_rseq(void)
{
    void *area = (uint8_t *)__builtin_thread_pointer() + __rseq_offset;

    if (__rseq_size != 0) {
        must(syscall(SYS_rseq, area, sizeof(struct rseq), RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0);
    }
}

void native_space_main(const struct native_plan *plan)
{
    const struct rlimit none = {0, 0};

    die_with(plan->parent);
    (void)prctl(PR_SET_NAME, "corbel-user", 0, 0, 0);
    for (unsigned n = 0; n <= plan->runners; n++) {
        map_block(plan, n);
    }
    must(setrlimit(RLIMIT_CORE, &none) == 0 && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    for (unsigned n = 1; n <= plan->runners; n++) {
        start_runner(plan, n);
    }
    must(plan->bell > NATIVE_COPY_FD && plan->copies_fd > NATIVE_COPY_FD);
    must(dup2(plan->bell, NATIVE_BELL_FD) == NATIVE_BELL_FD);
    must(dup2(plan->copies_fd, NATIVE_COPY_FD) == NATIVE_COPY_FD);
    must(syscall(SYS_close_range, NATIVE_COPY_FD + 1, ~0u, 0) == 0);
    must(setrlimit(RLIMIT_NOFILE, &none) == 0 && setrlimit(RLIMIT_NPROC, &none) == 0);
    leave_rseq();
    must(native_filter_mapper() == 0);
    jump(block_at(0) + (uintptr_t)(native_stub_map - native_stub_start), 0);
}
