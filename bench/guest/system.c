/* What needs the kernel: system calls, faults, processes, pipes, signals. */
#include "bench.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t run_getppid(void)
{
    uint64_t sum = 0;

    for (int i = 0; i < 150000; i++) {
        sum += (uint64_t)syscall(SYS_getppid);
    }
    return sum;
}

static uint64_t run_stat(void)
{
    struct stat st;
    uint64_t sum = 0;

    for (int i = 0; i < 30000; i++) {
        if (stat("/proc/self", &st) != 0) {
            bench_fail("stat");
        }
        sum += st.st_nlink;
    }
    return sum;
}

static uint64_t run_read(void)
{
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    char buf[512];

    for (int i = 0; i < 100000; i++) {
        if (read(fd, buf, sizeof(buf)) != (ssize_t)sizeof(buf)) {
            bench_fail("read");
        }
    }
    (void)close(fd);
    return 0;
}

static uint64_t run_faults(void)
{
    enum { PAGES = 4096, PAGE = 4096 };
    uint64_t sum = 0;

    for (int pass = 0; pass < 4; pass++) {
        char *p =
            mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED) {
            bench_fail("mmap");
        }
        for (size_t i = 0; i < PAGES; i++) {
            p[i * PAGE] = (char)i;
            sum += (uint64_t)p[i * PAGE + 1];
        }
        (void)munmap(p, PAGES * PAGE);
    }
    return sum;
}

static uint64_t run_mprotect(void)
{
    enum { PAGE = 4096 };
    char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        bench_fail("mmap");
    }
    for (int i = 0; i < 6000; i++) {
        if (mprotect(p, 16 * PAGE, PROT_READ) != 0 ||
            mprotect(p, 16 * PAGE, PROT_READ | PROT_WRITE) != 0) {
            bench_fail("mprotect");
        }
        p[(i & 15) * PAGE] = 1;
    }
    (void)munmap(p, 16 * PAGE);
    return 0;
}

static uint64_t run_fork(void)
{
    for (int i = 0; i < 400; i++) {
        pid_t child = fork();

        if (child == 0) {
            _exit(0);
        }
        if (child < 0 || waitpid(child, NULL, 0) != child) {
            bench_fail("fork");
        }
    }
    return 0;
}

static uint64_t run_exec(void)
{
    for (int i = 0; i < 60; i++) {
        pid_t child = fork();
        int status = -1;

        if (child == 0) {
            execl("/proc/self/exe", "bench", "noop", (char *)NULL);
            _exit(1);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            bench_fail("exec");
        }
    }
    return 0;
}

/* Two processes that wake each other through two pipes. */
static uint64_t run_pipe(void)
{
    enum { ROUNDS = 8000 };
    int to[2], from[2];
    char byte = 1;
    pid_t child;

    if (pipe(to) != 0 || pipe(from) != 0) {
        bench_fail("pipe");
    }
    child = fork();
    if (child == 0) {
        for (int i = 0; i < ROUNDS; i++) {
            if (read(to[0], &byte, 1) != 1 || write(from[1], &byte, 1) != 1) {
                _exit(1);
            }
        }
        _exit(0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1) {
            bench_fail("pipe");
        }
    }
    (void)waitpid(child, NULL, 0);
    for (int i = 0; i < 2; i++) {
        (void)close(to[i]);
        (void)close(from[i]);
    }
    return 0;
}

static void file_name(char *name, size_t bytes, unsigned i)
{
    (void)snprintf(name, bytes, "/tmp/bench-file-%u", i);
}

/* Made, looked at and removed: a thousand small files. */
static uint64_t run_files(void)
{
    enum { FILES = 1000 };
    uint64_t sum = 0;
    struct stat st;
    char name[64];

    (void)mkdir("/tmp", 01777);
    for (unsigned i = 0; i < FILES; i++) {
        int fd;

        file_name(name, sizeof(name), i);
        fd = open(name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, name, sizeof(name)) != (ssize_t)sizeof(name) || close(fd) != 0) {
            bench_fail("create");
        }
    }
    for (unsigned i = 0; i < FILES; i++) {
        file_name(name, sizeof(name), i);
        if (stat(name, &st) != 0) {
            bench_fail("stat");
        }
        sum += (uint64_t)st.st_size;
    }
    for (unsigned i = 0; i < FILES; i++) {
        file_name(name, sizeof(name), i);
        if (unlink(name) != 0) {
            bench_fail("unlink");
        }
    }
    return sum;
}

/* A shell that starts a hundred processes. */
static uint64_t run_shell(void)
{
    pid_t child = fork();
    int status = -1;

    if (child == 0) {
        execl("/bin/sh", "sh", "-c",
              "i=0; while [ $i -lt 100 ]; do ( exit 0 ) || exit 1; i=$((i+1)); done", (char *)NULL);
        _exit(1);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        bench_fail("sh");
    }
    return 0;
}

static void on_signal(int number)
{
    (void)number;
}

static uint64_t run_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    (void)sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < 30000; i++) {
        (void)kill(getpid(), SIGUSR1);
    }
    return 0;
}

const struct bench system_benches[] = {
    {"system", "getppid", run_getppid, NULL, true},
    {"system", "stat", run_stat, NULL, true},
    {"system", "read", run_read, NULL, false},
    {"system", "page-faults", run_faults, NULL, false},
    {"system", "mprotect", run_mprotect, NULL, false},
    {"system", "fork", run_fork, NULL, false},
    {"system", "fork-exec", run_exec, NULL, false},
    {"system", "pipe", run_pipe, NULL, false},
    {"system", "signals", run_signals, NULL, false},
    {"system", "small-files", run_files, NULL, false},
    {"system", "shell-script", run_shell, NULL, false},
    {.name = NULL},
};
