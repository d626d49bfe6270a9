/*
 * Control groups as the daemon uses them, on a real kernel: in a guest whose host we are.
 * Prints what it found, a line each; the reader judges.
 *
 * usage: cgroup-work SECONDS [FILE]
 *
 * FILE: leaves a process behind that lives on in its group, once; its number goes to the file.
 */
#include "cgroup/cgroup.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_LIMIT (32u << 20)
#define MEMORY_WANTED (96u << 20)
#define PAGE 4096u

static struct cgroup *group;

static void must(int rc, const struct err *err, const char *what)
{
    if (rc < 0) {
        (void)printf("failed: %s: %s\n", what, err->text);
        exit(1);
    }
}

static void set(const char *id, const struct cgroup_limits *limits)
{
    struct err err = {.code = 0};

    must(cgroup_set(group, id, limits, &err), &err, id);
}

/* A process in the group that computes until it is ended. */
static pid_t burn(const char *id, const struct cgroup_limits *limits)
{
    struct err err = {.code = 0};
    pid_t pid = fork();

    if (pid == 0) {
        for (volatile unsigned i = 0;; i++) {
        }
    }
    must(cgroup_enter(group, id, limits, pid, &err), &err, id);
    return pid;
}

/* A file in the group's directory. */
static void path_of(const char *id, const struct cgroup_limits *limits, const char *file,
                    char out[CGROUP_PATHS_BYTES + 16])
{
    char paths[CGROUP_PATHS_BYTES];

    cgroup_paths(group, id, limits, paths);
    paths[strcspn(paths, "\n")] = '\0';
    (void)snprintf(out, CGROUP_PATHS_BYTES + 16, "%s/%s", paths, file);
}

/* The CPU time of a group, in microseconds. */
static unsigned long long usage(const char *id, const struct cgroup_limits *limits)
{
    char path[CGROUP_PATHS_BYTES + 16], word[64];
    unsigned long long value = 0;
    FILE *file;

    path_of(id, limits, "cpu.stat", path);
    file = fopen(path, "re");
    while (file != NULL && fscanf(file, "%63s %llu", word, &value) == 2 &&
           strcmp(word, "usage_usec") != 0) {
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return value;
}

static double seconds(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Until the kernel says that nothing is in the group any more. */
static void wait_empty(const char *id, const struct cgroup_limits *limits)
{
    char path[CGROUP_PATHS_BYTES + 16], text[256];
    struct pollfd events = {.events = POLLPRI};
    ssize_t n;

    path_of(id, limits, "cgroup.events", path);
    events.fd = open(path, O_RDONLY | O_CLOEXEC);
    while ((n = pread(events.fd, text, sizeof(text) - 1, 0)) > 0) {
        text[n] = '\0';
        if (strstr(text, "populated 0") != NULL) {
            break;
        }
        (void)poll(&events, 1, -1);
    }
    (void)close(events.fd);
}

static void end(const char *id, const struct cgroup_limits *limits, pid_t pid)
{
    struct err err = {.code = 0};

    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    wait_empty(id, limits);
    must(cgroup_remove(group, id, NULL, &err), &err, "remove");
}

static void weigh(unsigned length)
{
    const struct cgroup_limits heavy = {.cpu_weight = 200, .cpus = "0"};
    const struct cgroup_limits light = {.cpu_weight = 100, .cpus = "0"};
    unsigned long long was[2];
    pid_t pids[2];

    set("heavy", &heavy);
    set("light", &light);
    pids[0] = burn("heavy", &heavy);
    pids[1] = burn("light", &light);
    was[0] = usage("heavy", &heavy);
    was[1] = usage("light", &light);
    (void)sleep(length);
    (void)printf("weights %.3f\n", (double)(usage("heavy", &heavy) - was[0]) /
                                       (double)(usage("light", &light) - was[1]));
    end("heavy", &heavy, pids[0]);
    end("light", &light, pids[1]);
}

static void cap(unsigned length)
{
    const struct cgroup_limits half = {.cpu_weight = CGROUP_USUAL_WEIGHT, .cpu_cap = 50};
    unsigned long long was;
    double begin;
    pid_t pid;

    set("half", &half);
    pid = burn("half", &half);
    was = usage("half", &half);
    begin = seconds();
    (void)sleep(length);
    (void)printf("cap %.3f\n", (double)(usage("half", &half) - was) / 1e6 / (seconds() - begin));
    end("half", &half, pid);
}

static void limit_memory(void)
{
    const struct cgroup_limits little = {.cpu_weight = CGROUP_USUAL_WEIGHT,
                                         .memory_bytes = MEMORY_LIMIT};
    struct err err = {.code = 0};
    int ready[2];
    int status = 0;
    pid_t pid;

    set("little", &little);
    if (pipe(ready) != 0) {
        exit(1);
    }
    pid = fork();
    if (pid == 0) {
        char *memory =
            mmap(NULL, MEMORY_WANTED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char byte;

        if (memory == MAP_FAILED || read(ready[0], &byte, 1) != 1) {
            _exit(1);
        }
        for (size_t at = 0; at < MEMORY_WANTED; at += PAGE) {
            ((volatile char *)memory)[at] = 1;
        }
        _exit(0);
    }
    must(cgroup_enter(group, "little", &little, pid, &err), &err, "enter");
    if (write(ready[1], "g", 1) != 1) {
        exit(1);
    }
    (void)waitpid(pid, &status, 0);
    (void)printf("memory %s\n",
                 WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? "ended" : "not ended");
    must(cgroup_remove(group, "little", NULL, &err), &err, "remove");
}

/* As a machine that outlives the daemon; each start of that sets its limits again. */
static void leave_behind(const char *file)
{
    const struct cgroup_limits slow = {.cpu_weight = 50};
    struct err err = {.code = 0};
    FILE *out;
    pid_t pid;

    set("machine", &slow);
    out = fopen(file, "wxe");
    if (out == NULL) {
        return;
    }
    pid = fork();
    if (pid == 0) {
        for (;;) {
            (void)pause();
        }
    }
    must(cgroup_enter(group, "machine", &slow, pid, &err), &err, "machine");
    (void)fprintf(out, "%d\n", (int)pid);
    (void)fclose(out);
}

int main(int argc, char **argv)
{
    const struct cgroup_config config = {.name = "corbel-test", .may_move = true};
    const char *const names[] = {"cpu", "cpuset", "memory"};
    unsigned length = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
    struct err err = {.code = 0};

    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    must(cgroup_open(&config, &err, &group), &err, "open");
    for (unsigned i = 0; i < CGROUP_CONTROL_COUNT; i++) {
        const char *lack = cgroup_lack(group, i);

        (void)printf("%s %s\n", names[i], lack != NULL ? lack : cgroup_means(group, i));
    }
    weigh(length);
    cap(length);
    limit_memory();
    if (argc > 2) {
        leave_behind(argv[2]);
    }
    cgroup_close(group);
    (void)printf("done\n");
    return 0;
}
