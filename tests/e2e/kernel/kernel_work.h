/*
 * A static program for the Debian guest: work that uses what Linux changes in its own code while it
 * runs, and checks each result. One verb per file; each returns 0, or says on standard error what is
 * wrong and returns 1.
 */
#ifndef CORBEL_TESTS_KERNEL_WORK_H
#define CORBEL_TESTS_KERNEL_WORK_H

#include <stdint.h>

/* Random eBPF programs, run by the kernel's JIT and by a model of ours. */
int work_ebpf(uint64_t seed, unsigned int programs);

/* Classic BPF: filters on a socket, and seccomp filters in child processes. */
int work_filters(uint64_t seed, unsigned int rounds);

/* perf_event_open(): counts page faults, samples a loop. */
int work_perf(unsigned int pages);

/* Children that share memory with us, signals with values, faults that are mended, sums of floats. */
int work_processes(uint64_t seed, unsigned int rounds);

/* Loads a kernel for `reboot(LINUX_REBOOT_CMD_KEXEC)`. */
int work_kexec_load(const char *kernel, const char *initrd, const char *cmdline);

/* The next of a sequence of random numbers. */
static inline uint64_t work_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

#endif
