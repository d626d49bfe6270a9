/*
 * Work whose results are known: children that write into memory they share with us by copy on write,
 * signals with values, faults that a handler mends, and sums of floats under a timer that interrupts.
 */
#include "kernel_work.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, WORDS = PAGES * PAGE / 8, SIGNALS = 50, TERMS = 20000 };

static volatile sig_atomic_t ticks;
static volatile sig_atomic_t mended;
static volatile long value_sum;
static char *guarded;

static void on_timer(int number)
{
    /* Vector registers of the interrupted loop must come through this. */
    volatile double x = number;

    for (int i = 0; i < 8; i++) {
        x = x * 1.5 + i;
    }
    ticks++;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    char *page = (char *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));

    (void)number;
    (void)context;
    if (page < guarded || page >= guarded + (size_t)PAGES * PAGE ||
        mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0) {
        _exit(4);
    }
    mended++;
}

static void on_value(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    value_sum += info->si_value.sival_int;
}

static int handle(int number, void (*plain)(int), void (*full)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_flags = SA_RESTART};

    if (full != NULL) {
        action.sa_flags |= SA_SIGINFO;
        action.sa_sigaction = full;
    } else {
        action.sa_handler = plain;
    }
    return sigaction(number, &action, NULL);
}

static void fill(uint64_t *memory, uint64_t seed)
{
    for (size_t i = 0; i < WORDS; i++) {
        memory[i] = work_random(&seed);
    }
}

static size_t first_difference(const uint64_t *memory, uint64_t seed)
{
    size_t i = 0;

    while (i < WORDS && memory[i] == work_random(&seed)) {
        i++;
    }
    return i;
}

/* A child sees what we wrote, writes its own, and we still see ours. */
static int check_fork(uint64_t *memory, uint64_t seed)
{
    int status = -1;
    pid_t child;

    fill(memory, seed);
    child = fork();
    if (child == 0) {
        if (first_difference(memory, seed) != WORDS) {
            _exit(2);
        }
        fill(memory, ~seed);
        _exit(first_difference(memory, ~seed) == WORDS ? 0 : 3);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0 ||
        first_difference(memory, seed) != WORDS) {
        fprintf(stderr, "fork: the child's status %#x, our memory differs at word %zu\n", status,
                first_difference(memory, seed));
        return 1;
    }
    return 0;
}

/* Each of a child's signals comes once, with its value. */
static int check_values(void)
{
    const long before = value_sum;
    const long expected = (long)SIGNALS * (SIGNALS + 1) / 2;
    int status = -1;
    pid_t child = fork();

    if (child == 0) {
        for (int i = 1; i <= SIGNALS; i++) {
            if (sigqueue(getppid(), SIGRTMIN, (union sigval){.sival_int = i}) != 0) {
                _exit(2);
            }
        }
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0 ||
        value_sum - before != expected) {
        fprintf(stderr, "signals: sum %ld instead of %ld, the child's status %#x\n",
                value_sum - before, expected, status);
        return 1;
    }
    return 0;
}

static int check_faults(void)
{
    const int before = mended;
    long sum = 0;

    if (mprotect(guarded, (size_t)PAGES * PAGE, PROT_NONE) != 0) {
        perror("mprotect");
        return 1;
    }
    for (int i = 0; i < PAGES; i++) {
        ((volatile char *)guarded)[i * PAGE + i] = (char)i;
    }
    for (int i = 0; i < PAGES; i++) {
        sum += guarded[i * PAGE + i];
    }
    if (mended - before != PAGES || sum != (long)PAGES * (PAGES - 1) / 2) {
        fprintf(stderr, "faults: %d mended, sum %ld\n", mended - before, sum);
        return 1;
    }
    return 0;
}

static double sum_terms(void)
{
    double sum = 0;

    for (int i = 1; i <= TERMS; i++) {
        sum += 1.0 / ((double)i * i);
    }
    return sum;
}

static int check_floats(double expected)
{
    struct itimerval often = {.it_interval = {.tv_usec = 1000}, .it_value = {.tv_usec = 1000}};
    struct itimerval never = {0};
    const int before = ticks;
    double sum;

    if (setitimer(ITIMER_REAL, &often, NULL) != 0) {
        perror("setitimer");
        return 1;
    }
    do {
        sum = sum_terms();
    } while (ticks == before && sum == expected);
    (void)setitimer(ITIMER_REAL, &never, NULL);
    if (sum != expected) {
        fprintf(stderr, "floats: sum %.17g instead of %.17g\n", sum, expected);
        return 1;
    }
    return 0;
}

int work_processes(uint64_t seed, unsigned int rounds)
{
    static uint64_t memory[WORDS] __attribute__((aligned(PAGE)));
    const double expected = sum_terms();

    guarded = mmap(NULL, (size_t)PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guarded == MAP_FAILED || handle(SIGALRM, on_timer, NULL) != 0 ||
        handle(SIGSEGV, NULL, on_fault) != 0 || handle(SIGRTMIN, NULL, on_value) != 0) {
        perror("no handlers");
        return 1;
    }
    for (unsigned int i = 0; i < rounds; i++) {
        if (check_fork(memory, work_random(&seed)) != 0 || check_values() != 0 ||
            check_faults() != 0 || check_floats(expected) != 0) {
            fprintf(stderr, "round %u\n", i);
            return 1;
        }
    }
    printf("rounds=%u\n", rounds);
    return 0;
}
