#include "rpc/monitor.h"

#include "base/io.h"
#include "base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#define START_MAX_MS 120000 /* a monitor that does not listen by then never will */
#define LOG_MAX_BYTES (1u << 20)
#define GO_FD 6          /* in the child, until it is the monitor */
#define FIRST_FREE_FD 10 /* above those that the monitor gets */

/* What the child needs; all descriptors are at FIRST_FREE_FD or above. */
struct child {
    const char *program;
    const char *const *argv;
    int null_fd, log_fd, ready_fd, go_fd, lock_fd, tap_fd;
};

/* A descriptor in its place, which is empty where there is none. */
static int put(int fd, int place)
{
    if (fd >= 0) {
        return dup2(fd, place);
    }
    return close(place) < 0 && errno != EBADF ? -1 : 0;
}

/* Between fork and exec, in a process that may have had threads: system calls only. */
NORETURN static void become_monitor(const struct child *child)
{
    sigset_t none;
    char go;

    (void)sigemptyset(&none);
    if (setsid() < 0 || dup2(child->null_fd, STDIN_FILENO) < 0 ||
        dup2(child->log_fd, STDOUT_FILENO) < 0 || dup2(child->log_fd, STDERR_FILENO) < 0 ||
        dup2(child->ready_fd, MONITOR_READY_FD) < 0 || dup2(child->go_fd, GO_FD) < 0 ||
        put(child->lock_fd, MONITOR_LOCK_FD) < 0 || put(child->tap_fd, MONITOR_TAP_FD) < 0) {
        _exit(126);
    }
    /* The parent's other descriptors go now: its locks must not outlive it here. */
    (void)close_range(GO_FD + 1, ~0u, 0);
    /* Without a word the parent ended, or does not want it. */
    if (read(GO_FD, &go, 1) != 1) {
        _exit(125);
    }
    (void)close(GO_FD);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    execv(child->program, (char *const *)(uintptr_t)child->argv);
    _exit(127);
}

/* A copy above those that the monitor gets, so that putting them in place overwrites none. */
static int lift(int fd)
{
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
}

static int open_log(const char *path)
{
    CLEANUP_CLOSE int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

    return lift(fd);
}

static int open_null(void)
{
    CLEANUP_CLOSE int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    return lift(fd);
}

/* A pipe whose reading or writing end is above those that the monitor gets. */
static int open_pipe(bool lift_writing, int *ret_read, int *ret_write)
{
    CLEANUP_CLOSE int lifted = -1;
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) != 0) {
        return -errno;
    }
    lifted = lift(fds[lift_writing]);
    (void)close(fds[lift_writing]);
    if (lifted < 0) {
        (void)close(fds[!lift_writing]);
        return -EMFILE;
    }
    *ret_read = lift_writing ? fds[0] : lifted;
    *ret_write = lift_writing ? lifted : fds[1];
    (void)steal_fd(&lifted);
    return 0;
}

/* Everything but the fork; half of it is open after an error. */
static int open_child(const struct monitor_start *start, struct child *child, int *ret_ready,
                      int *ret_go, struct err *err)
{
    int rc;

    child->program = start->program;
    child->argv = start->argv;
    child->null_fd = open_null();
    child->log_fd = child->null_fd < 0 ? -1 : open_log(start->log);
    if (child->log_fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be written", start->log);
    }
    rc = open_pipe(true, ret_ready, &child->ready_fd);
    if (rc == 0) {
        rc = open_pipe(false, &child->go_fd, ret_go);
    }
    child->lock_fd = lift(start->lock_fd);
    child->tap_fd = lift(start->tap_fd);
    if (rc == 0 && ((start->lock_fd >= 0 && child->lock_fd < 0) ||
                    (start->tap_fd >= 0 && child->tap_fd < 0))) {
        rc = -EMFILE;
    }
    return rc < 0 ? err_set_errno(err, rc, "the monitor of \"%s\" cannot be started", start->name)
                  : 0;
}

static void close_child(const struct child *child)
{
    const int fds[] = {child->null_fd, child->log_fd,  child->ready_fd,
                       child->go_fd,   child->lock_fd, child->tap_fd};

    for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
        if (fds[i] >= 0) {
            (void)close(fds[i]);
        }
    }
}

int monitor_start(const struct monitor_start *start, struct monitor *ret_monitor, struct err *err)
{
    struct child child = {NULL, NULL, -1, -1, -1, -1, -1, -1};
    CLEANUP_CLOSE int ready = -1;
    CLEANUP_CLOSE int go = -1;
    uint64_t start_ticks = 0;
    pid_t pid = -1;
    int rc = open_child(start, &child, &ready, &go, err);

    if (rc == 0) {
        pid = fork();
        if (pid == 0) {
            (void)close(steal_fd(&go)); /* or its own copy would keep it waiting */
            become_monitor(&child);
        }
        rc = pid < 0 ? err_set_errno(err, -errno, "the monitor of \"%s\" cannot be started",
                                     start->name)
                     : 0;
    }
    if (rc == 0) {
        start_ticks = process_start_ticks(pid);
        rc = start->record != NULL ? start->record(start->opaque, pid, start_ticks, err) : 0;
    }
    if (rc == 0) {
        rc = io_write_full(go, "g", 1); /* our own reading end is open: no SIGPIPE */
        rc =
            rc < 0 ? err_set_errno(err, rc, "the monitor of \"%s\" ended at once", start->name) : 0;
    }
    close_child(&child);
    if (rc < 0) {
        if (pid > 0) {
            (void)close(steal_fd(&go));
            (void)monitor_wait(pid);
        }
        return rc;
    }
    *ret_monitor =
        (struct monitor){.pid = pid, .start_ticks = start_ticks, .ready_fd = steal_fd(&ready)};
    return 0;
}

int monitor_wait(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return 1;
        }
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void monitor_last_words(const char *log, char *out, size_t out_size)
{
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;
    const char *line;

    out[0] = '\0';
    if (io_read_file(log, LOG_MAX_BYTES, &data, &len) < 0) {
        return;
    }
    while (len > 0 && ((char *)data)[len - 1] == '\n') {
        len--;
    }
    line = len > 0 ? memrchr(data, '\n', len) : NULL;
    line = line != NULL ? line + 1 : data;
    (void)snprintf(out, out_size, "%.*s", (int)((char *)data + len - line), line);
}

/* The monitor's last line of log becomes the error. */
static int report_failure(const struct monitor_start *start, int status, struct err *err)
{
    char words[sizeof(err->text)];

    monitor_last_words(start->log, words, sizeof(words));
    return words[0] != '\0'
               ? err_set(err, -EIO, "%s", words)
               : err_set(err, -EIO, "the monitor of \"%s\" ended at once with status %d",
                         start->name, status);
}

int monitor_await_ready(struct monitor *monitor, const struct monitor_start *start, struct err *err)
{
    struct pollfd pfd = {.fd = monitor->ready_fd, .events = POLLIN};
    char line[8];
    ssize_t n = 0;
    int rc, status;

    do {
        rc = poll(&pfd, 1, START_MAX_MS);
    } while (rc < 0 && errno == EINTR);
    if (rc > 0) {
        n = io_read_full(monitor->ready_fd, line, sizeof(line));
    }
    (void)close(steal_fd(&monitor->ready_fd));
    if (n > 0) {
        return 0;
    }
    if (rc <= 0) {
        (void)kill(monitor->pid, SIGKILL);
    }
    status = monitor_wait(monitor->pid);
    return rc > 0 ? report_failure(start, status, err)
                  : err_set(err, -ETIMEDOUT, "the monitor of \"%s\" does not start", start->name);
}
