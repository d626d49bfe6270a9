#include "base/process.h"

#include "base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
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

/* The parent's number, 0 when there is no such process (any more). */
static pid_t parent_of(pid_t pid)
{
    char path[64];
    char text[512];
    const char *p;
    ssize_t n;
    CLEANUP_CLOSE int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : io_read_full(fd, text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    p = strrchr(text, ')'); /* then the state, a letter, and the parent */
    return p != NULL && strlen(p) > 4 ? (pid_t)strtol(p + 4, NULL, 10) : 0;
}

static bool is_among(const pid_t *pids, unsigned count, pid_t pid)
{
    for (unsigned i = 0; i < count; i++) {
        if (pids[i] == pid) {
            return true;
        }
    }
    return false;
}

/* One look at all processes; children mostly come after their parents. */
static unsigned add_children(pid_t pid, pid_t *pids, unsigned count, unsigned max)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;

    while (proc != NULL && count < max && (entry = readdir(proc)) != NULL) {
        pid_t child = (pid_t)strtol(entry->d_name, NULL, 10);
        pid_t parent = child > 0 && !is_among(pids, count, child) ? parent_of(child) : 0;

        if (parent != 0 && (parent == pid || is_among(pids, count, parent))) {
            pids[count++] = child;
        }
    }
    if (proc != NULL) {
        (void)closedir(proc);
    }
    return count;
}

unsigned process_descendants(pid_t pid, pid_t *ret_pids, unsigned max)
{
    unsigned count = 0, before;

    do {
        before = count;
        count = add_children(pid, ret_pids, count, max);
    } while (count > before && count < max);
    return count;
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

unsigned process_children(pid_t pid, pid_t *ret_pids, unsigned max)
{
    char path[64];
    char text[2048];
    char *at = text;
    char *end;
    ssize_t n;
    unsigned count = 0;
    CLEANUP_CLOSE int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? io_read_full(fd, text, sizeof(text) - 1) : -1;
    text[n > 0 ? n : 0] = '\0';
    while (count < max) {
        long child = strtol(at, &end, 10);

        if (end == at || child <= 0) {
            break;
        }
        ret_pids[count++] = (pid_t)child;
        at = end;
    }
    return count;
}
