/*
 * What perf counts and samples with software events, seen by the program itself.
 */
#include "kernel_work.h"

#include <linux/perf_event.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, RING_PAGES = 8, SAMPLES = 20 };

/* The linker's symbols: where this program's code is. */
extern const char __executable_start[];
extern const char etext[];

static int open_event(struct perf_event_attr *attr)
{
    attr->type = PERF_TYPE_SOFTWARE;
    attr->size = sizeof(*attr);
    return (int)syscall(SYS_perf_event_open, attr, 0, -1, -1, 0);
}

static int count_faults(unsigned int pages)
{
    struct perf_event_attr attr = {.config = PERF_COUNT_SW_PAGE_FAULTS, .disabled = 1};
    size_t length = (size_t)pages * PAGE;
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = open_event(&attr);
    uint64_t count = 0;

    if (memory == MAP_FAILED || fd < 0 || madvise(memory, length, MADV_NOHUGEPAGE) != 0 ||
        ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) != 0) {
        perror("page faults cannot be counted");
        return 1;
    }
    for (unsigned int i = 0; i < pages; i++) {
        *(volatile char *)&memory[(size_t)i * PAGE] = 1;
    }
    if (ioctl(fd, PERF_EVENT_IOC_DISABLE, 0) != 0 || read(fd, &count, sizeof(count)) < 0 ||
        count != pages) {
        fprintf(stderr, "%u pages touched, %llu faults counted\n", pages,
                (unsigned long long)count);
        return 1;
    }
    (void)close(fd);
    (void)munmap(memory, length);
    return 0;
}

/* Takes what samples there are; how many, or -1 when one lies outside the program. */
static int take_samples(struct perf_event_mmap_page *ring)
{
    const char *data = (const char *)ring + PAGE;
    uint64_t mask = (uint64_t)RING_PAGES * PAGE - 1;
    uint64_t head = __atomic_load_n(&ring->data_head, __ATOMIC_ACQUIRE);
    int taken = 0;

    while (ring->data_tail < head) {
        const struct perf_event_header *header = (const void *)(data + (ring->data_tail & mask));
        uint64_t ip;

        memcpy(&ip, data + ((ring->data_tail + sizeof(*header)) & mask), sizeof(ip));
        if (header->type == PERF_RECORD_SAMPLE) {
            taken++;
            if (ip < (uintptr_t)__executable_start || ip >= (uintptr_t)etext) {
                fprintf(stderr, "a sample at %#llx\n", (unsigned long long)ip);
                return -1;
            }
        }
        __atomic_store_n(&ring->data_tail, ring->data_tail + header->size, __ATOMIC_RELEASE);
    }
    return taken;
}

static int sample_loop(void)
{
    struct perf_event_attr attr = {.config = PERF_COUNT_SW_CPU_CLOCK,
                                   .sample_period = 200000, /* ns */
                                   .sample_type = PERF_SAMPLE_IP,
                                   .exclude_kernel = 1,
                                   .disabled = 1};
    int fd = open_event(&attr);
    struct perf_event_mmap_page *ring;
    volatile uint64_t sum = 0;
    int samples = 0;

    ring = mmap(NULL, (size_t)(1 + RING_PAGES) * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || ring == MAP_FAILED || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) != 0) {
        perror("the clock cannot be sampled");
        return 1;
    }
    while (samples < SAMPLES) {
        int taken = take_samples(ring);

        if (taken < 0) {
            return 1;
        }
        samples += taken;
        for (unsigned int i = 0; i < 10000; i++) {
            sum = sum * 3 + i;
        }
    }
    (void)munmap(ring, (size_t)(1 + RING_PAGES) * PAGE);
    (void)close(fd);
    return 0;
}

int work_perf(unsigned int pages)
{
    if (count_faults(pages) != 0 || sample_loop() != 0) {
        return 1;
    }
    printf("faults=%u\n", pages);
    return 0;
}
