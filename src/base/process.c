#include "base/process.h"

#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>

#define STAT_FIELD_START 22 /* proc(5): starttime is the 22nd field */

uint64_t process_start_ticks(pid_t pid)
{
    char path[64];
    char text[1024];
    char *p;
    ssize_t n;
    CLEANUP_CLOSE int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    n = io_read_full(fd, text, sizeof(text) - 1);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    /* The name, field 2, may hold anything; fields are counted from the ")" that ends it. */
    p = strrchr(text, ')');
    for (int field = 2; p != NULL && field < STAT_FIELD_START; field++) {
        p = strchr(p + 1, ' ');
        /* A process that ended but was not waited for yet is no running machine. */
        if (p != NULL && field == 2 && p[1] == 'Z') {
            return 0;
        }
    }
    return p != NULL ? strtoull(p + 1, NULL, 10) : 0;
}

bool process_is_alive(pid_t pid, uint64_t start_ticks)
{
    return pid > 0 && start_ticks != 0 && process_start_ticks(pid) == start_ticks;
}

int process_open(pid_t pid, uint64_t start_ticks)
{
    CLEANUP_CLOSE int fd = pid > 0 ? pidfd_open(pid, 0) : -1;

    if (pid > 0 && fd < 0) {
        return -errno;
    }
    /* Looked at only now: the number may have been given to another process before. */
    return process_is_alive(pid, start_ticks) ? steal_fd(&fd) : -ESRCH;
}

int process_thread_times(pid_t pid, pid_t tid, struct thread_times *ret_times)
{
    char path[64];
    char text[128];
    char *end;
    ssize_t n;
    uint64_t run_ns;
    CLEANUP_CLOSE int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", pid, tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return access("/proc/self/schedstat", F_OK) == 0 ? -ENOENT : -ENOTSUP;
    }
    n = io_read_full(fd, text, sizeof(text) - 1);
    if (n <= 0) {
        return -ENOENT;
    }
    text[n] = '\0';
    run_ns = strtoull(text, &end, 10);
    *ret_times = (struct thread_times){.run_ns = run_ns, .wait_ns = strtoull(end, NULL, 10)};
    return 0;
}
