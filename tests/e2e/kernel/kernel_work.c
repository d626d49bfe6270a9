/*
 * usage: kernel-work calls N | ebpf SEED N | filters SEED N | perf PAGES | processes SEED N |
 *                    load KERNEL INITRD CMDLINE | kexec
 * "calls" makes N calls of probed_mix() too: a function of this program that can be probed.
 */
#include "kernel_work.h"

#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SCHED_FIFO_NUMBER = 1 };

/* A function for probes in a program; each of its instructions may get one. */
__attribute__((noinline)) uint64_t probed_mix(uint64_t a, uint64_t b);

uint64_t probed_mix(uint64_t a, uint64_t b)
{
    for (int i = 0; i < 3; i++) {
        a = (a ^ b) * 0x9e3779b97f4a7c15ull;
        b = (b << 7 | b >> 57) + a;
        if ((a & 1) != 0) {
            b = ~b;
        }
    }
    return a ^ b;
}

/* N system calls that hardly anybody else makes, and N calls of probed_mix(), whose results must be
 * those that a computation in one piece gives. */
static int work_calls(unsigned int count)
{
    uint64_t sum = 0;
    uint64_t expected = 0;

    for (unsigned int i = 0; i < count; i++) {
        if (syscall(SYS_sched_get_priority_min, SCHED_FIFO_NUMBER) != 1) {
            fprintf(stderr, "call %u has a wrong result\n", i);
            return 1;
        }
        sum += probed_mix(i, ~(uint64_t)i);
    }
    for (unsigned int i = 0; i < count; i++) {
        uint64_t a = i;
        uint64_t b = ~(uint64_t)i;

        for (int k = 0; k < 3; k++) {
            a = (a ^ b) * 0x9e3779b97f4a7c15ull;
            b = (b << 7 | b >> 57) + a;
            b = (a & 1) != 0 ? ~b : b;
        }
        expected += a ^ b;
    }
    if (sum != expected) {
        fprintf(stderr, "the sum is %#llx instead of %#llx\n", (unsigned long long)sum,
                (unsigned long long)expected);
        return 1;
    }
    printf("calls=%u\n", count);
    return 0;
}

int work_kexec_load(const char *kernel, const char *initrd, const char *cmdline)
{
    int kernel_fd = open(kernel, O_RDONLY | O_CLOEXEC);
    int initrd_fd = open(initrd, O_RDONLY | O_CLOEXEC);

    if (kernel_fd < 0 || initrd_fd < 0 ||
        syscall(SYS_kexec_file_load, kernel_fd, initrd_fd, strlen(cmdline) + 1, cmdline, 0L) != 0) {
        perror("the kernel cannot be loaded");
        return 1;
    }
    return 0;
}

static int reboot_into_loaded(void)
{
    sync();
    (void)syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
    perror("no kernel is loaded");
    return 1;
}

static unsigned int number(const char *text)
{
    return (unsigned int)strtoul(text, NULL, 0);
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";

    if (strcmp(verb, "calls") == 0 && argc == 3) {
        return work_calls(number(argv[2]));
    }
    if (strcmp(verb, "ebpf") == 0 && argc == 4) {
        return work_ebpf(number(argv[2]), number(argv[3]));
    }
    if (strcmp(verb, "filters") == 0 && argc == 4) {
        return work_filters(number(argv[2]), number(argv[3]));
    }
    if (strcmp(verb, "perf") == 0 && argc == 3) {
        return work_perf(number(argv[2]));
    }
    if (strcmp(verb, "processes") == 0 && argc == 4) {
        return work_processes(number(argv[2]), number(argv[3]));
    }
    if (strcmp(verb, "load") == 0 && argc == 5) {
        return work_kexec_load(argv[2], argv[3], argv[4]);
    }
    if (strcmp(verb, "kexec") == 0) {
        return reboot_into_loaded();
    }
    fprintf(stderr, "usage: kernel-work calls N | ebpf SEED N | filters SEED N | perf PAGES | "
                    "processes SEED N | load KERNEL INITRD CMDLINE | kexec\n");
    return 2;
}
