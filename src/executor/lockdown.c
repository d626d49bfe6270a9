/*
 * What a process is left with that may be the guest's: its own memory, the
 * guest's, and a few system calls with fixed arguments. Everything else ends it.
 */
#include "engine/layout.h"
#include "executor/executor.h"
#include "executor/native.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define FILTER_MAX (180u + NATIVE_MAX_THREADS)
#define ARG_LOW(n) ((uint32_t)(offsetof(struct seccomp_data, args) + 8u * (n)))
#define ARG_HIGH(n) (ARG_LOW(n) + 4u)
#define ANY_PROT (PROT_READ | PROT_WRITE) /* never PROT_EXEC */

struct filter {
    struct sock_filter code[FILTER_MAX];
    unsigned short count;
};

static void add(struct filter *f, uint16_t op, uint32_t k, uint8_t if_true, uint8_t if_false)
{
    f->code[f->count++] = (struct sock_filter){op, if_true, if_false, k};
}

static void add_return(struct filter *f, uint32_t what)
{
    add(f, BPF_RET | BPF_K, what, 0, 0);
}

/* For system call number: the next `length` instructions decide, and end with a return. */
static void begin(struct filter *f, uint32_t number, uint8_t length)
{
    add(f, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, number, 0, length);
}

static void allow(struct filter *f, uint32_t number)
{
    begin(f, number, 1);
    add_return(f, SECCOMP_RET_ALLOW);
}

/* ... when the low half of an argument is one of values. The rest of the word is not looked at
 * by the kernel either: all these are ints. */
static void allow_if(struct filter *f, uint32_t number, unsigned arg, const uint32_t *values,
                     unsigned count)
{
    begin(f, number, (uint8_t)(count + 3));
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(arg), 0, 0);
    for (unsigned i = 0; i < count; i++) {
        add(f, BPF_JMP | BPF_JEQ | BPF_K, values[i], (uint8_t)(count - i), 0);
    }
    add_return(f, SECCOMP_RET_KILL_PROCESS);
    add_return(f, SECCOMP_RET_ALLOW);
}

/* mprotect(): never executable. The whole word, for prot is an unsigned long there. */
static void allow_mprotect(struct filter *f)
{
    begin(f, SYS_mprotect, 6);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_HIGH(2), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(2), 0, 0);
    add(f, BPF_JMP | BPF_JSET | BPF_K, ~(uint32_t)ANY_PROT, 1, 0);
    add_return(f, SECCOMP_RET_ALLOW);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
}

/* mmap(): of guest memory at a fixed place, never executable. */
static void allow_mmap(struct filter *f)
{
    const uint32_t flags = MAP_SHARED | MAP_FIXED;
    const uint32_t new_only = MAP_SHARED | MAP_FIXED_NOREPLACE;

    begin(f, SYS_mmap, 12);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_HIGH(2), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 9);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(2), 0, 0);
    add(f, BPF_JMP | BPF_JSET | BPF_K, ~(uint32_t)ANY_PROT, 7, 0);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(3), 0, 0);
    add(f, BPF_ALU | BPF_AND | BPF_K, ~(uint32_t)(MAP_POPULATE | MAP_NORESERVE), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, flags, 1, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, new_only, 0, 3);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(4), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, EXECUTOR_RAM_FD, 0, 1);
    add_return(f, SECCOMP_RET_ALLOW);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
}

/* madvise(): memory given back, or asked for; of the code cache's memfd given back, too, which is
 * where mappings are put that ask for no place. */
static void allow_madvise(struct filter *f)
{
    begin(f, SYS_madvise, 12);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(2), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, MADV_DONTNEED, 9, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, MADV_POPULATE_READ, 8, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, MADV_POPULATE_WRITE, 7, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, MADV_REMOVE, 0, 5);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_HIGH(0), 0, 0);
    add(f, BPF_JMP | BPF_JGE | BPF_K, LAYOUT_PLACED_END >> 32, 3, 0);
    add(f, BPF_JMP | BPF_JGT | BPF_K, 0, 3, 0);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(0), 0, 0);
    add(f, BPF_JMP | BPF_JGE | BPF_K, LAYOUT_PLACED, 1, 0);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
    add_return(f, SECCOMP_RET_ALLOW);
}

/* tgkill(): the kick signal, to a thread of our own. */
static void allow_tgkill(struct filter *f)
{
    begin(f, SYS_tgkill, 6);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(0), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)getpid(), 0, 3);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(2), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, EXECUTOR_KICK_SIGNAL, 0, 1);
    add_return(f, SECCOMP_RET_ALLOW);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
}

/* timer_settime(): of a vCPU's own timer, whose signal is the kick. It reports nothing back. */
static void allow_timer_settime(struct filter *f)
{
    begin(f, SYS_timer_settime, 8);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(1), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, TIMER_ABSTIME, 0, 5);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_LOW(3), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
    add(f, BPF_LD | BPF_W | BPF_ABS, ARG_HIGH(3), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1);
    add_return(f, SECCOMP_RET_ALLOW);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
}

/* Runners are kicked or ended by the descriptors that were opened for them, and put on CPUs, as
 * are mappers, which answer by an eventfd, and the thread itself. */
static void allow_spaces(struct filter *f)
{
    static const uint32_t signals[] = {NATIVE_SIGNAL, SIGKILL};
    pid_t pids[NATIVE_MAX_THREADS];
    int eventfds[NATIVE_MAX_EVENTFDS];
    uint32_t threads[NATIVE_MAX_THREADS + 1] = {0};
    uint32_t readable[NATIVE_MAX_EVENTFDS + 1] = {EXECUTOR_LIFE_FD};
    unsigned pid_count = executor_native_pids(pids);
    unsigned eventfd_count = executor_native_eventfds(eventfds);

    for (unsigned i = 0; i < pid_count; i++) {
        threads[i + 1] = (uint32_t)pids[i];
    }
    for (unsigned i = 0; i < eventfd_count; i++) {
        readable[i + 1] = (uint32_t)eventfds[i];
    }
    allow_if(f, SYS_read, 0, readable, eventfd_count + 1);
    allow(f, SYS_poll); /* until one has ended */
    allow_if(f, SYS_pidfd_send_signal, 1, signals, ARRAY_LEN(signals));
    allow_if(f, SYS_sched_setaffinity, 0, threads, pid_count + 1);
}

static void build(struct filter *f)
{
    static const uint32_t futex_ops[] = {FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAIT | FUTEX_PRIVATE_FLAG,
                                         FUTEX_WAKE | FUTEX_PRIVATE_FLAG, FUTEX_CMP_REQUEUE};
    static const uint32_t bases[] = {ARCH_SET_GS};

    add(f, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch), 0, 0);
    add(f, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
    allow_if(f, SYS_futex, 1, futex_ops, ARRAY_LEN(futex_ops));
    allow(f, SYS_rt_sigreturn);
    allow(f, SYS_restart_syscall); /* of these, what a stop (SIGSTOP, a frozen group) interrupted */
    allow(f, SYS_sched_yield);
    allow_mmap(f);
    allow(f, SYS_munmap);
    allow_mprotect(f);
    allow_madvise(f);
    allow_tgkill(f);
    allow_timer_settime(f);
    allow(f, SYS_clock_gettime);
    allow_if(f, SYS_arch_prctl, 0, bases, ARRAY_LEN(bases));
    allow_spaces(f);
    allow(f, SYS_exit_group);
    add_return(f, SECCOMP_RET_KILL_PROCESS);
}

int executor_drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];

    memset(none, 0, sizeof(none));
    return syscall(SYS_capset, &header, none) == 0 ? 0 : -errno;
}

static int limit(int resource, rlim_t most)
{
    const struct rlimit limit = {most, most};

    return setrlimit((__rlimit_resource_t)resource, &limit) == 0 ? 0 : -errno;
}

int executor_lock_down(struct err *err)
{
    struct filter filter = {.count = 0};
    struct sock_fprog program = {.filter = filter.code};
    /* Descriptors below that are there for good, so that there is no new one; poll() takes no more
     * than the limit either, and looks at two. */
    int rc = limit(RLIMIT_NOFILE, EXECUTOR_SHARED_FD + 1);

    rc = rc == 0 ? limit(RLIMIT_NPROC, 0) : rc;
    rc = rc == 0 ? limit(RLIMIT_CORE, 0) : rc;
    if (rc != 0) {
        return err_set_errno(err, rc, "cannot give up what the process may do");
    }
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return err_set_errno(err, -errno, "cannot give up privileges");
    }
    build(&filter);
    program.len = filter.count;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
        return err_set_errno(err, -errno, "cannot filter system calls");
    }
    return 0;
}
