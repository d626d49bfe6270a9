/*
 * The executor's process: started from memory, watched by a thread, called
 * through bells.
 *
 * Its death changes every word that somebody may sleep on, after it is marked:
 * a caller that read the word before sees it changed or is woken, one that reads
 * it later sees the mark.
 */
#include "base/io.h"
#include "proxy/proxy_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010u
#endif

/* An answer that is due is waited for from one look to the next but one; long, for a host may
 * have much else to do. */
#define LOOK_EVERY_MS 30000
#define FIRST_FREE_FD 10
#define CALL_COUNT (EXECUTOR_MAX_VCPUS + 1)
#define ANSWER_OF_THE_DEAD 0x80000000u
#define CHILD_STATUS 127

/* ---- bells ---- */

static void bell_wake(struct executor_bell *bell)
{
    (void)syscall(SYS_futex, &bell->count, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void bell_set(struct executor_bell *bell, uint32_t count)
{
    atomic_store(&bell->count, count);
    if (atomic_load(&bell->sleepers) != 0) {
        bell_wake(bell);
    }
}

static void bell_wait(struct executor_bell *bell, uint32_t seen)
{
    atomic_fetch_add(&bell->sleepers, 1);
    (void)syscall(SYS_futex, &bell->count, FUTEX_WAIT, seen, NULL, NULL, 0);
    atomic_fetch_sub(&bell->sleepers, 1);
}

/* Calls are numbered, leaving out 0, so that what was said of one is never taken for the next. */
int process_call(struct proxy_vm *vm, struct proxy_call *call, bool is_due)
{
    uint32_t count = ++call->count;

    if (count == 0) {
        count = ++call->count;
    }
    atomic_store(&call->is_due, is_due ? count : 0);
    atomic_store(&call->asks, count);
    bell_set(call->asked, count);
    for (;;) {
        uint32_t now = atomic_load(&call->answered->count);

        if (atomic_load(&vm->process.dead)) {
            return -EOWNERDEAD;
        }
        if (now == count) {
            break;
        }
        bell_wait(call->answered, now);
    }
    atomic_store_explicit(&call->asks, 0, memory_order_relaxed);
    return 0;
}

void process_hurry(struct proxy_call *call)
{
    atomic_store(&call->is_due, atomic_load(&call->asks));
}

/* ---- the watcher ---- */

static struct proxy_call *call_of(struct proxy_vm *vm, unsigned index)
{
    struct proxy_vcpu *v;

    if (index == EXECUTOR_MAX_VCPUS) {
        return &vm->service;
    }
    v = atomic_load(&vm->vcpus[index]);
    return v == NULL ? NULL : &v->call;
}

static void bury(struct proxy_vm *vm)
{
    struct executor_shared *shared = vm->shared;
    struct err why = {0};

    atomic_store(&vm->process.dead, true);
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        atomic_fetch_xor(&shared->vcpus[i].answered.count, ANSWER_OF_THE_DEAD);
        bell_wake(&shared->vcpus[i].answered);
    }
    atomic_fetch_xor(&shared->service_answered.count, ANSWER_OF_THE_DEAD);
    bell_wake(&shared->service_answered);
    atomic_fetch_xor(&shared->phase.count, ANSWER_OF_THE_DEAD);
    bell_wake(&shared->phase);
    if (vm->died != NULL) {
        (void)process_explain(vm, &why);
        vm->died(vm->opaque, &why);
    }
}

/* Has the answer of one call been due since the last look? */
static bool is_silent(struct proxy_vm *vm, uint32_t was_due[CALL_COUNT])
{
    bool silent = false;

    for (unsigned i = 0; i < CALL_COUNT; i++) {
        struct proxy_call *call = call_of(vm, i);
        uint32_t asks = call == NULL ? 0 : atomic_load(&call->asks);
        uint32_t due = call == NULL || atomic_load(&call->is_due) != asks ? 0 : asks;

        silent |= due != 0 && due == was_due[i];
        was_due[i] = due;
    }
    return silent;
}

static void *watcher_main(void *opaque)
{
    struct proxy_vm *vm = opaque;
    struct proxy_process *p = &vm->process;
    struct pollfd fds[2] = {{.fd = p->pid_fd, .events = POLLIN},
                            {.fd = p->quit_fd, .events = POLLIN}};
    uint32_t was_due[CALL_COUNT] = {0};

    for (;;) {
        int n = poll(fds, ARRAY_LEN(fds), p->look_every_ms);

        if (n > 0 && fds[1].revents != 0) {
            return NULL;
        }
        if (n > 0 && fds[0].revents != 0) {
            bury(vm);
            return NULL;
        }
        if (n == 0 && is_silent(vm, was_due)) {
            atomic_store(&p->is_silent, true);
            (void)kill(p->pid, SIGKILL);
        }
    }
}

void process_condemn(struct proxy_vm *vm)
{
    atomic_store(&vm->process.is_wrong, true);
    (void)kill(vm->process.pid, SIGKILL);
}

int process_explain(const struct proxy_vm *vm, struct err *err)
{
    const struct proxy_process *p = &vm->process;
    siginfo_t info = {0};

    if (atomic_load(&p->is_wrong)) {
        return err_set(err, -EOWNERDEAD, "the process that runs guest code answered nonsense");
    }
    if (atomic_load(&p->is_silent)) {
        return err_set(err, -EOWNERDEAD, "the process that runs guest code does not answer");
    }
    if (waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) {
        return err_set(err, -EOWNERDEAD, "the process that runs guest code is gone");
    }
    if (info.si_code == CLD_EXITED) {
        return err_set(err, -EOWNERDEAD, "the process that runs guest code ended with status %d",
                       info.si_status);
    }
    return err_set(err, -EOWNERDEAD,
                   "the process that runs guest code was killed by signal %d (%s)", info.si_status,
                   strsignal(info.si_status));
}

/* ---- start ---- */

static int image_file(const struct proxy_image *image)
{
    CLEANUP_CLOSE int fd = memfd_create("corbel-executor", MFD_CLOEXEC | MFD_EXEC);
    int rc;

    if (fd < 0 && errno == EINVAL) {
        fd = memfd_create("corbel-executor", MFD_CLOEXEC); /* before Linux 6.3 */
    }
    if (fd < 0) {
        return -errno;
    }
    rc = io_write_full(fd, image->data, image->bytes);
    return rc == 0 ? steal_fd(&fd) : rc;
}

/* In the child, which shares nothing with other threads: only system calls. */
static NORETURN void child_main(int ram_fd, int shared_fd, int life_fd, int image_fd, pid_t parent)
{
    static char name[] = "corbel-executor";
    char *argv[] = {name, NULL};
    char *envp[] = {NULL};
    int ram = fcntl(ram_fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
    int shared = fcntl(shared_fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
    int life = fcntl(life_fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
    int image = fcntl(image_fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);

    if (ram >= 0 && shared >= 0 && life >= 0 && image >= 0 &&
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 && getppid() == parent &&
        dup2(ram, EXECUTOR_RAM_FD) >= 0 && dup2(shared, EXECUTOR_SHARED_FD) >= 0 &&
        dup2(life, EXECUTOR_LIFE_FD) >= 0) {
        (void)syscall(SYS_execveat, image, "", argv, envp, AT_EMPTY_PATH);
    }
    _exit(CHILD_STATUS);
}

static int spawn(struct proxy_vm *vm, int image_fd, int life_fd, struct err *err)
{
    struct proxy_process *p = &vm->process;
    pid_t parent = getpid();
    pid_t pid = fork();

    if (pid < 0) {
        return err_set_errno(err, -errno, "cannot start a process for guest code");
    }
    if (pid == 0) {
        child_main(gmem_fd(vm->gmem), vm->shared_fd, life_fd, image_fd, parent);
    }
    p->pid = pid;
    p->pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    p->quit_fd = io_eventfd();
    if (p->pid_fd < 0 || p->quit_fd < 0) {
        return err_set_errno(err, p->pid_fd < 0 ? -errno : p->quit_fd,
                             "cannot watch the process for guest code");
    }
    return 0;
}

/* The executor's other thread waits on the same word: here it becomes what it says. */
static int wait_attached(struct proxy_vm *vm, struct err *err)
{
    struct executor_bell *phase = &vm->shared->phase;

    for (;;) {
        uint32_t now = atomic_load(&phase->count);

        if (now == EXECUTOR_ATTACHED) {
            return 0;
        }
        if (now == EXECUTOR_FAILED) {
            char text[sizeof(vm->shared->error)];

            fetch_text(vm->shared->error, sizeof(vm->shared->error), text, sizeof(text));
            return err_set(err, -EIO, "%s", text);
        }
        if (atomic_load(&vm->process.dead)) {
            return process_explain(vm, err);
        }
        bell_wait(phase, now);
    }
}

int process_start(struct proxy_vm *vm, const struct proxy_image *image, struct err *err)
{
    struct proxy_process *p = &vm->process;
    CLEANUP_CLOSE int image_fd = image_file(image);
    int ends[2];
    int rc;

    if (image_fd < 0) {
        return err_set_errno(err, image_fd, "cannot make the program for guest code");
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        return err_set_errno(err, -errno, "cannot make a socket for the process for guest code");
    }
    p->life_fd = ends[0];
    p->look_every_ms = image->patience_ms == 0 ? LOOK_EVERY_MS : image->patience_ms;
    rc = spawn(vm, image_fd, ends[1], err);
    (void)close(ends[1]);
    if (rc == 0) {
        rc = thread_start(&p->watcher, "executor", watcher_main, vm);
        p->has_watcher = rc == 0;
        if (rc != 0) {
            return err_set_errno(err, rc, "cannot watch the process for guest code");
        }
        rc = wait_attached(vm, err);
    }
    return rc;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
        *fd = -1;
    }
}

void process_stop(struct proxy_vm *vm)
{
    struct proxy_process *p = &vm->process;

    if (p->has_watcher) {
        io_eventfd_signal(p->quit_fd);
        (void)pthread_join(p->watcher, NULL);
        p->has_watcher = false;
    }
    if (p->pid > 0) {
        (void)kill(p->pid, SIGKILL);
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) {
        }
        p->pid = 0;
    }
    close_fd(&p->pid_fd);
    close_fd(&p->life_fd);
    close_fd(&p->quit_fd);
}
