/*
 * One process at a time has the store. The lock goes with it, however it ends;
 * but a process that it was about to start, and that has not become another
 * program yet, has the lock as well for some moments longer. So the file says
 * whose it is, and who finds it locked by nobody that lives waits.
 */
#include "base/clock.h"
#include "base/process.h"
#include "store/store_sqlite_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#define ORPHAN_NS 20000000000ull /* how long a process may take to become another program */
#define POLL_US 1000

/* Also when it cannot be told. */
static bool owner_lives(int fd)
{
    char text[64] = "";
    char *end = text;
    long pid;

    if (pread(fd, text, sizeof(text) - 1, 0) <= 0) {
        return true;
    }
    pid = strtol(text, &end, 10);
    return pid <= 0 || process_start_ticks((pid_t)pid) == strtoull(end, NULL, 10);
}

/* On a full disk it stays empty, and who comes is refused at once. */
static void note_owner(int fd)
{
    char text[64];
    int n = snprintf(text, sizeof(text), "%ld %llu\n", (long)getpid(),
                     (unsigned long long)process_start_ticks(getpid()));

    if (ftruncate(fd, 0) == 0) {
        (void)!pwrite(fd, text, (size_t)n, 0);
    }
}

int sqlite_lock(const char *path, int *ret_fd, struct err *err)
{
    uint64_t end_ns = clock_monotonic_ns() + ORPHAN_NS;
    char name[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int n = snprintf(name, sizeof(name), "%s.lock", path);

    if (n < 0 || (size_t)n >= sizeof(name)) {
        return err_set(err, -ENAMETOOLONG, "the path %.60s... is too long", path);
    }
    fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", name);
    }
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            return err_set_errno(err, -errno, "%s cannot be locked", name);
        }
        if (owner_lives(fd) || clock_monotonic_ns() >= end_ns) {
            return err_set(err, -EBUSY, "another process has %s open", path);
        }
        (void)usleep(POLL_US);
    }
    note_owner(fd);
    *ret_fd = steal_fd(&fd);
    return 0;
}
