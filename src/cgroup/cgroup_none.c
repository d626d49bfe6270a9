/* What is done without groups: CPUs by the scheduler's affinity. */
#include "cgroup/cgroup_int.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 20

/* Calls fn for each CPU of a list. The highest, or -EINVAL. */
static int parse_cpus(const char *text, cpu_set_t *set)
{
    long highest = -1;

    while (*text != '\0') {
        char *end = NULL;
        long first, last;

        if (*text < '0' || *text > '9') {
            return -EINVAL;
        }
        first = last = strtol(text, &end, 10);
        if (*end == '-') {
            text = end + 1;
            if (*text < '0' || *text > '9') {
                return -EINVAL;
            }
            last = strtol(text, &end, 10);
        }
        if (first > last || last > (long)CGROUP_MAX_CPU ||
            (*end == ',' ? end[1] == '\0' : *end != '\0')) {
            return -EINVAL;
        }
        for (long cpu = first; cpu <= last; cpu++) {
            CPU_SET((size_t)cpu, set);
        }
        highest = last > highest ? last : highest;
        text = end + (*end == ',');
    }
    return highest < 0 ? -EINVAL : (int)highest;
}

int cgroup_check_cpus(const char *text)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    return parse_cpus(text, &set);
}

/* How many threads had another affinity. */
static int set_threads(pid_t pid, const cpu_set_t *set, bool is_all, struct err *err)
{
    char path[32];
    const struct dirent *entry;
    DIR *tasks;
    int changed = 0, rc = 0;

    (void)snprintf(path, sizeof(path), "/proc/%d/task", pid);
    tasks = opendir(path);
    if (tasks == NULL) {
        return err_set_errno(err, -ESRCH, "process %d", pid);
    }
    while (rc == 0 && (entry = readdir(tasks)) != NULL) {
        pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
        cpu_set_t now;

        if (tid <= 0 || sched_getaffinity(tid, sizeof(now), &now) != 0 || CPU_EQUAL(&now, set)) {
            continue;
        }
        if (sched_setaffinity(tid, sizeof(*set), set) != 0 && errno != ESRCH) {
            rc = err_set_errno(err, -errno, "thread %d cannot be bound to its CPUs", tid);
        }
        changed += !is_all; /* all there are is fewer than all that were asked for */
    }
    (void)closedir(tasks);
    return rc < 0 ? rc : changed;
}

int cgroup_set_affinity(pid_t pid, const char *cpus, struct err *err)
{
    bool is_all = cpus[0] == '\0';
    cpu_set_t set;
    int rc = 1;

    CPU_ZERO(&set);
    for (size_t cpu = 0; is_all && cpu <= CGROUP_MAX_CPU; cpu++) {
        CPU_SET(cpu, &set);
    }
    if (!is_all && parse_cpus(cpus, &set) < 0) {
        return err_set(err, -EINVAL, "\"%.60s\" is no list of CPUs", cpus);
    }
    /* A thread that starts meanwhile has its maker's affinity: until none is found to change. */
    for (unsigned round = 0; rc > 0 && round < ROUNDS; round++) {
        rc = set_threads(pid, &set, is_all, err);
    }
    return rc < 0 ? rc : 0;
}
