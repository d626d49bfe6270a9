#include "storage/jail.h"

#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <poll.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_MEMORY_BYTES (2ull << 30)
#define MAX_OPEN_FILES 64u
#define EXIT_TOLD 3     /* of a function: err came through the pipe */
#define EXIT_NO_JAIL 12 /* the walls could not be put up */

/* In later kernels' headers; the rights are of ABI 2 and 3. */
#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ULL << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

#define RIGHTS_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_EXECUTE)
#define RIGHTS_FILE \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE)
#define RIGHTS_DIR                                                             \
    (RIGHTS_FILE | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | \
     LANDLOCK_ACCESS_FS_REMOVE_FILE)

/* What programs need besides the files of the job. */
static const char *const system_paths[] = {"/usr/bin", "/usr/sbin", "/usr/lib",        "/usr/lib64",
                                           "/lib",     "/lib64",    "/etc/ld.so.cache"};

/* Everything that computing and file I/O need; anything else is answered with ENOSYS. */
static const int allowed_calls[] = {
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(preadv2),
    SCMP_SYS(pwritev2),
    SCMP_SYS(close),
    SCMP_SYS(fstat),
    SCMP_SYS(stat),
    SCMP_SYS(lstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(statx),
    SCMP_SYS(statfs),
    SCMP_SYS(fstatfs),
    SCMP_SYS(lseek),
    SCMP_SYS(mmap),
    SCMP_SYS(mprotect),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    SCMP_SYS(open),
    SCMP_SYS(openat),
    SCMP_SYS(access),
    SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(getcwd),
    SCMP_SYS(fcntl),
    SCMP_SYS(ioctl),
    SCMP_SYS(dup),
    SCMP_SYS(dup2),
    SCMP_SYS(dup3),
    SCMP_SYS(pipe),
    SCMP_SYS(pipe2),
    SCMP_SYS(eventfd2),
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(select),
    SCMP_SYS(pselect6),
    SCMP_SYS(futex),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(set_tid_address),
    SCMP_SYS(arch_prctl),
    SCMP_SYS(prctl),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(rt_sigpending),
    SCMP_SYS(signalfd4),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(gettid),
    SCMP_SYS(getpid),
    SCMP_SYS(getppid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(tgkill),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(getrandom),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(prlimit64),
    SCMP_SYS(getrlimit),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(sync_file_range),
    SCMP_SYS(copy_file_range),
    SCMP_SYS(fadvise64),
    SCMP_SYS(flock),
    SCMP_SYS(umask),
    SCMP_SYS(getdents64),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(membarrier),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(execve),
};

static int limit(int resource, uint64_t value)
{
    struct rlimit r = {.rlim_cur = value, .rlim_max = value};

    return setrlimit((__rlimit_resource_t)resource, &r) == 0 ? 0 : -errno;
}

static int set_limits(const struct jail_limits *limits)
{
    uint64_t memory = limits->memory_bytes != 0 ? limits->memory_bytes : DEFAULT_MEMORY_BYTES;
    int rc = limit(RLIMIT_AS, memory);

    rc = rc < 0 ? rc : limit(RLIMIT_FSIZE, limits->file_bytes);
    rc = rc < 0 ? rc : limit(RLIMIT_CPU, limits->cpu_seconds);
    rc = rc < 0 ? rc : limit(RLIMIT_NOFILE, MAX_OPEN_FILES);
    rc = rc < 0 ? rc : limit(RLIMIT_CORE, 0);
    (void)alarm(limits->wall_seconds); /* outlives exec; the default action ends the process */
    return rc;
}

/* Root's rights over other people's files are rights too. */
static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = 0}};

    for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
        /* Fails for those without CAP_SETPCAP, who have none to gain by exec either. */
        (void)prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    }
    return syscall(SYS_capset, &header, data) == 0 ? 0 : -errno;
}

static int allow_path(int ruleset, int fd, uint64_t rights, uint64_t handled)
{
    struct landlock_path_beneath_attr rule = {.parent_fd = fd};
    struct stat st;

    if (fstat(fd, &st) != 0) {
        return -errno;
    }
    if (!S_ISDIR(st.st_mode)) {
        rights &= RIGHTS_FILE | LANDLOCK_ACCESS_FS_EXECUTE;
    }
    rule.allowed_access = rights & handled;
    return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0
               ? 0
               : -errno;
}

static int allow_system(int ruleset, uint64_t handled)
{
    for (size_t i = 0; i < ARRAY_LEN(system_paths); i++) {
        CLEANUP_CLOSE int fd = open(system_paths[i], O_PATH | O_CLOEXEC);
        int rc;

        if (fd < 0) {
            continue; /* not every system has all of them */
        }
        rc = allow_path(ruleset, fd, RIGHTS_READ | LANDLOCK_ACCESS_FS_READ_DIR, handled);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int shut_file_system(const struct jail_path *paths, unsigned count, bool is_program)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct landlock_ruleset_attr attr = {.handled_access_fs = (1ULL << 13) - 1};
    CLEANUP_CLOSE int ruleset = -1;
    int rc = 0;

    if (abi < 1) {
        return -ENXIO;
    }
    attr.handled_access_fs |= abi >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0;
    attr.handled_access_fs |= abi >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0;
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
    if (ruleset < 0) {
        return -errno;
    }
    if (is_program) {
        rc = allow_system(ruleset, attr.handled_access_fs);
    }
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        rc = allow_path(ruleset, paths[i].fd,
                        paths[i].may_write ? RIGHTS_DIR : LANDLOCK_ACCESS_FS_READ_FILE,
                        attr.handled_access_fs);
    }
    if (rc == 0 && syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
        rc = -errno;
    }
    return rc;
}

static int shut_kernel(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    int rc = filter != NULL ? 0 : -ENOMEM;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(allowed_calls); i++) {
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0);
    }
    /* Threads, but no processes. */
    if (rc == 0) {
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                              SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    }
    rc = rc == 0 ? seccomp_load(filter) : rc;
    seccomp_release(filter);
    return rc;
}

static int shut_in(const struct jail_limits *limits, const struct jail_path *paths, unsigned count,
                   bool is_program)
{
    int rc = set_limits(limits);

    rc = rc < 0 ? rc : drop_capabilities();
    if (rc == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        rc = -errno;
    }
    rc = rc < 0 ? rc : shut_file_system(paths, count, is_program);
    return rc < 0 ? rc : shut_kernel();
}

/* What both kinds of children begin with. */
static int begin_child(pid_t parent)
{
    sigset_t none;

    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGXFSZ, SIG_IGN); /* NOLINT(cert-err33-c): a limit on length is an error */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) {
        return -ESRCH;
    }
    return setsid() >= 0 ? 0 : -errno;
}

static int tell_limit(int status, const struct jail_limits *limits, struct err *err)
{
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGALRM ||
                                WTERMSIG(status) == SIGKILL)) {
        return err_set(err, -ETIME,
                       "reading the image took longer than it may (%u s of processor, %u s in all)",
                       limits->cpu_seconds, limits->wall_seconds);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NO_JAIL) {
        return err_set(err, -ENXIO,
                       "images of strangers are only read shut in, and this kernel lacks Landlock "
                       "or seccomp");
    }
    return err_set(err, -EIO, "the reader of the image ended unexpectedly (status %d)", status);
}

static int await_child(pid_t child)
{
    int status = 0;

    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) {
            return -1;
        }
    }
    return status;
}

NORETURN static void run_function(const struct jail_limits *limits,
                                  int (*fn)(void *opaque, struct err *err), void *opaque, int told,
                                  pid_t parent)
{
    struct err err = {.code = 0};
    int rc;

    if (begin_child(parent) < 0 || shut_in(limits, NULL, 0, false) < 0) {
        _exit(EXIT_NO_JAIL);
    }
    rc = fn(opaque, &err);
    if (rc == 0) {
        _exit(0);
    }
    err.code = rc;
    if (io_write_full(told, &err, sizeof(err)) < 0) {
        _exit(1);
    }
    _exit(EXIT_TOLD);
}

int jail_run(const struct jail_limits *limits, int (*fn)(void *opaque, struct err *err),
             void *opaque, struct err *err)
{
    struct err told = {.code = 0};
    pid_t parent = getpid();
    int ends[2];
    pid_t child;
    int status;
    ssize_t n;

    if (pipe2(ends, O_CLOEXEC) != 0) {
        return err_set_errno(err, -errno, "no pipe can be made");
    }
    child = fork();
    if (child == 0) {
        run_function(limits, fn, opaque, ends[1], parent);
    }
    (void)close(ends[1]);
    if (child < 0) {
        (void)close(ends[0]);
        return err_set_errno(err, -errno, "no process can be made");
    }
    n = io_read_full(ends[0], &told, sizeof(told));
    (void)close(ends[0]);
    status = await_child(child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_TOLD && n == (ssize_t)sizeof(told) &&
        told.code < 0 && memchr(told.text, '\0', sizeof(told.text)) != NULL) {
        return err_set(err, told.code, "%s", told.text);
    }
    return tell_limit(status, limits, err);
}

NORETURN static void run_program(const struct jail_limits *limits, const struct jail_path *paths,
                                 unsigned count, const char *const *argv, const int *outputs,
                                 pid_t parent)
{
    static char *const environment[] = {"LC_ALL=C.UTF-8", "MALLOC_ARENA_MAX=2", NULL};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (begin_child(parent) < 0 || null < 0 || dup2(null, STDIN_FILENO) < 0 ||
        dup2(outputs[0], STDOUT_FILENO) < 0 || dup2(outputs[1], STDERR_FILENO) < 0 ||
        chdir("/") != 0) {
        _exit(EXIT_NO_JAIL);
    }
    for (unsigned i = 0; i < count; i++) {
        if (fcntl(paths[i].fd, F_SETFD, 0) != 0) {
            _exit(EXIT_NO_JAIL);
        }
    }
    if (shut_in(limits, paths, count, true) < 0) {
        _exit(EXIT_NO_JAIL);
    }
    execve(argv[0], (char *const *)(uintptr_t)argv, environment);
    _exit(127);
}

/* A text being read from a pipe; what does not fit is read and dropped. */
struct catcher {
    int fd;
    char *text;
    size_t size;
    size_t len;
};

static bool catch_some(struct catcher *c)
{
    char buf[4096];
    ssize_t n = read(c->fd, buf, sizeof(buf));
    size_t room = c->size - 1 - c->len;

    if (n < 0) {
        return errno == EINTR;
    }
    memcpy(c->text + c->len, buf, (size_t)n < room ? (size_t)n : room);
    c->len += (size_t)n < room ? (size_t)n : room;
    c->text[c->len] = '\0';
    return n > 0;
}

static void catch_all(struct catcher *a, struct catcher *b)
{
    struct pollfd polls[2] = {{.fd = a->fd, .events = POLLIN}, {.fd = b->fd, .events = POLLIN}};
    struct catcher *catchers[2] = {a, b};

    while (polls[0].fd >= 0 || polls[1].fd >= 0) {
        if (poll(polls, 2, -1) < 0 && errno != EINTR) {
            return;
        }
        for (unsigned i = 0; i < 2; i++) {
            if (polls[i].fd >= 0 && polls[i].revents != 0 && !catch_some(catchers[i])) {
                polls[i].fd = -1;
            }
        }
    }
}

static int tell_exit(int status, const char *const *argv, char *complaint,
                     const struct jail_limits *limits, struct err *err)
{
    const char *name = strrchr(argv[0], '/');

    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        return err_set(err, -ENXIO, "%s is missing; install it: sudo apt-get install qemu-utils",
                       argv[0]);
    }
    if (WIFEXITED(status) && complaint[0] != '\0') {
        complaint[strcspn(complaint, "\n")] = '\0';
        return err_set(err, -EBADMSG, "%s says: %s", name != NULL ? name + 1 : argv[0], complaint);
    }
    return tell_limit(status, limits, err);
}

int jail_exec(const struct jail_limits *limits, const struct jail_path *paths, unsigned count,
              const char *const *argv, char *out, size_t out_size, struct err *err)
{
    char complaint[256] = "";
    struct catcher output = {.text = out, .size = out_size};
    struct catcher errors = {.text = complaint, .size = sizeof(complaint)};
    pid_t parent = getpid();
    int pipe_out[2];
    int pipe_err[2];
    pid_t child;

    out[0] = '\0';
    if (pipe2(pipe_out, O_CLOEXEC) != 0) {
        return err_set_errno(err, -errno, "no pipe can be made");
    }
    if (pipe2(pipe_err, O_CLOEXEC) != 0) {
        (void)close(pipe_out[0]);
        (void)close(pipe_out[1]);
        return err_set_errno(err, -errno, "no pipe can be made");
    }
    child = fork();
    if (child == 0) {
        run_program(limits, paths, count, argv, (int[]){pipe_out[1], pipe_err[1]}, parent);
    }
    (void)close(pipe_out[1]);
    (void)close(pipe_err[1]);
    output.fd = pipe_out[0];
    errors.fd = pipe_err[0];
    if (child > 0) {
        catch_all(&output, &errors);
    }
    (void)close(pipe_out[0]);
    (void)close(pipe_err[0]);
    if (child < 0) {
        return err_set_errno(err, -EAGAIN, "no process can be made");
    }
    return tell_exit(await_child(child), argv, complaint, limits, err);
}
