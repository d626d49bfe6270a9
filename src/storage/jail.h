/*
 * One-shot jobs on files from strangers, shut in.
 *
 * The job is a child process that can open no file but those named for it,
 * make no socket and no process, gain no privilege, and has a limit on memory,
 * processor time, real time and the length of what it writes. It ends with its
 * parent. Where the kernel lacks what this needs (Landlock, seccomp) nothing
 * is run at all: -ENXIO.
 *
 * Called from a process with one thread.
 */
#ifndef CORBEL_STORAGE_JAIL_H
#define CORBEL_STORAGE_JAIL_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct jail_limits {
    uint64_t memory_bytes; /* address space; 0: 2 GiB */
    uint64_t file_bytes;   /* no file grows beyond */
    unsigned cpu_seconds;
    unsigned wall_seconds;
};

/* A file or directory that a program may open; the descriptor is the caller's. */
struct jail_path {
    int fd;
    bool may_write; /* and, in a directory, make and remove files */
};

/*
 * Runs a function of ours in a child that can open nothing at all; descriptors
 * that are open stay so. What the function says through err comes back. -ETIME
 * or -ENOMEM when a limit ended it, -EIO when it crashed.
 */
int jail_run(const struct jail_limits *limits, int (*fn)(void *opaque, struct err *err),
             void *opaque, struct err *err) MUST_CHECK;

/*
 * Runs a program of the system's that may read the system's libraries and the
 * paths given; it finds them under /proc/self/fd/N with the caller's N. Its
 * standard output goes to out, cut at out_size - 1 and NUL-terminated; its
 * first line of complaint becomes the error.
 */
int jail_exec(const struct jail_limits *limits, const struct jail_path *paths, unsigned count,
              const char *const *argv, char *out, size_t out_size, struct err *err) MUST_CHECK;

#endif
