/*
 * What a program can do and see without privilege, each checked against what the SDM and Linux
 * say. Runs in a guest as root with nothing but a kernel below it. Prints a line for each thing
 * that is not so, then how many checks there were.
 */
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096u
#define TF 0x100
#define AREA_BYTES ((size_t)8 * PAGE)
#define CPU_MASK 0xfffu

static unsigned checks;
static unsigned failures;

static void check(bool holds, const char *what, uint64_t got)
{
    checks++;
    if (!holds) {
        failures++;
        printf("user-work: not so: %s (%#llx)\n", what, (unsigned long long)got);
    }
}

/* ---- exceptions ---- */

static sigjmp_buf back;
static volatile siginfo_t seen;
static volatile int seen_signal;
static volatile uint64_t seen_rip;

static void on_exception(int number, siginfo_t *info, void *context)
{
    seen_signal = number;
    seen.si_code = info->si_code;
    seen.si_addr = info->si_addr;
    seen_rip = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    siglongjmp(back, 1);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};

    check(sigaction(number, &action, NULL) == 0, "sigaction", (uint64_t)errno);
}

#define EXPECT_SIGNAL(signal, code, what, ...)                               \
    do {                                                                     \
        seen_signal = 0;                                                     \
        if (sigsetjmp(back, 1) == 0) {                                       \
            __VA_ARGS__;                                                     \
        }                                                                    \
        check(seen_signal == (signal), what, (uint64_t)seen_signal);         \
        check(seen.si_code == (code), what " code", (uint64_t)seen.si_code); \
    } while (0)

static void test_exceptions(void)
{
    static const uint8_t aligned[32] __attribute__((aligned(16)));
    uint8_t *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile uint64_t *volatile null = (volatile uint64_t *)8;
    volatile uint64_t *wild = (volatile uint64_t *)0x8000000000001000ull;
    volatile uint64_t *kernel = (volatile uint64_t *)0xffff888000000000ull;
    volatile int zero = 0;
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        handle(signals[i], on_exception);
    }
    EXPECT_SIGNAL(SIGSEGV, SEGV_MAPERR, "NULL", (void)*null);
    check(seen.si_addr == null, "NULL address", (uint64_t)seen.si_addr);
    EXPECT_SIGNAL(SIGSEGV, SEGV_ACCERR, "read-only", *(volatile uint8_t *)(page + 5) = 1);
    check(seen.si_addr == page + 5, "read-only address", (uint64_t)seen.si_addr);
    EXPECT_SIGNAL(SIGSEGV, SEGV_ACCERR, "not executable", ((void (*)(void))page)());
    check(seen_rip == (uint64_t)page, "not executable rip", seen_rip);
    EXPECT_SIGNAL(SIGSEGV, SI_KERNEL, "not canonical", (void)*wild);
    EXPECT_SIGNAL(SIGSEGV, SEGV_MAPERR, "the kernel's", (void)*kernel);
    EXPECT_SIGNAL(SIGILL, ILL_ILLOPN, "UD2", __asm__ volatile("ud2"));
    EXPECT_SIGNAL(SIGTRAP, SI_KERNEL, "INT3", __asm__ volatile("int3"));
    EXPECT_SIGNAL(SIGFPE, FPE_INTDIV, "division", zero = 5 / zero);
    EXPECT_SIGNAL(SIGSEGV, SI_KERNEL, "HLT", __asm__ volatile("hlt"));
    EXPECT_SIGNAL(SIGSEGV, SI_KERNEL, "IN", __asm__ volatile("in $0x60, %%al" : : : "eax"));
    EXPECT_SIGNAL(SIGSEGV, SI_KERNEL, "MOVAPS",
                  __asm__ volatile("movaps 1(%0), %%xmm0"
                                   :
                                   : "r"(aligned)
                                   : "xmm0"));
    check(munmap(page, PAGE) == 0, "munmap", (uint64_t)errno);
}

static volatile unsigned steps;

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    if (++steps == 10) {
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TF;
    }
}

static void test_single_step(void)
{
    handle(SIGTRAP, on_step);
    steps = 0;
    __asm__ volatile("sub $128, %%rsp\n\tpushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\t"
                     ".rept 20\n\tnop\n\t.endr\n\tadd $128, %%rsp"
                     :
                     :
                     : "memory", "cc");
    check(steps == 10, "single steps", steps);
}

static void test_old_system_call(void)
{
    long pid = 20; /* getpid */

    __asm__ volatile("int $0x80" : "+a"(pid) : : "memory", "r8", "r9", "r10", "r11");
    check(pid == getpid(), "INT 0x80", (uint64_t)pid);
}

/* ---- what could tell of the host ---- */

static void test_cpu_number(unsigned cpu)
{
    unsigned aux;
    unsigned number = 0;
    uint32_t limit = 0;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    check(sched_setaffinity(0, sizeof(set), &set) == 0, "affinity", (uint64_t)errno);
    for (unsigned i = 0; i < 100; i++) {
        (void)__builtin_ia32_rdtscp(&aux);
        check((aux & CPU_MASK) == cpu, "RDTSCP", aux);
        check((unsigned)sched_getcpu() == cpu, "getcpu()", (uint64_t)sched_getcpu());
        check(syscall(SYS_getcpu, &number, NULL, NULL) == 0 && number == cpu, "SYS_getcpu", number);
        __asm__ volatile("lsl %1, %0" : "+r"(limit) : "r"(0x7bu));
        check((limit & CPU_MASK) == cpu, "LSL", limit);
    }
}

static void test_features(void)
{
    uint32_t a = 0;
    uint32_t b = 0;
    uint32_t c = 0;
    uint32_t d = 0;
    uint32_t low = 0;
    uint32_t high = 0;
    uint8_t *area;

    __cpuid(0x40000000, a, b, c, d);
    check(a >= 0x40000000u, "CPUID of a hypervisor", a);
    __cpuid_count(0xd, 0, a, b, c, d);
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    check(low == a && high == 0, "XGETBV", low);
    /* What XSAVE stores ends where CPUID says, also when it is asked for everything. */
    area =
        mmap(NULL, AREA_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(area != MAP_FAILED && munmap(area + AREA_BYTES, PAGE) == 0, "mmap", (uint64_t)errno);
    EXPECT_SIGNAL(0, seen.si_code, "XSAVE",
                  __asm__ volatile("mov $-1, %%eax\n\tmov $-1, %%edx\n\txsave64 (%0)"
                                   :
                                   : "r"(area + AREA_BYTES - ((b + 63) & ~63u))
                                   : "eax", "edx", "memory"));
    check(munmap(area, AREA_BYTES) == 0, "munmap", (uint64_t)errno);
}

static void test_clock(void)
{
    uint64_t last = 0;

    for (unsigned i = 0; i < 10000; i++) {
        uint64_t now = __builtin_ia32_rdtsc();

        check(now > last, "RDTSC", now);
        last = now;
    }
}

/* ---- code that changes ---- */

static uint32_t call_with(uint8_t *code, uint32_t value)
{
    code[0] = 0xb8; /* mov $value, %eax; ret */
    memcpy(code + 1, &value, sizeof(value));
    code[5] = 0xc3;
    __builtin___clear_cache((char *)code, (char *)code + 6);
    return ((uint32_t(*)(void))code)();
}

static void test_changing_code(void)
{
    uint8_t *code = mmap(NULL, (size_t)2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (uint32_t i = 0; i < 300; i++) {
        uint32_t got = call_with(code, i);

        check(got == i, "writable code", got);
        got = call_with(code + PAGE - 3, ~i); /* across the page's end */
        check(got == ~i, "writable code of two pages", got);
    }
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t got;

        check(mprotect(code, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect", (uint64_t)errno);
        code[0] = 0xb8;
        memcpy(code + 1, &i, sizeof(i));
        code[5] = 0xc3;
        check(mprotect(code, PAGE, PROT_READ | PROT_EXEC) == 0, "mprotect", (uint64_t)errno);
        got = ((uint32_t(*)(void))code)();
        check(got == i, "code that takes turns", got);
        EXPECT_SIGNAL(SIGSEGV, SEGV_ACCERR, "write to code", *(volatile uint8_t *)code = 0);
    }
    check(munmap(code, (size_t)2 * PAGE) == 0, "munmap", (uint64_t)errno);
}

/* ---- memory that changes ---- */

static void test_fork(void)
{
    enum { PAGES = 64 };
    uint8_t *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (unsigned round = 0; round < 20; round++) {
        int status = -1;
        pid_t pid;

        memset(memory, (int)round, (size_t)PAGES * PAGE);
        pid = fork();
        for (unsigned i = 0; i < PAGES; i++) {
            uint8_t *byte = memory + i * PAGE + round;

            check(*byte == round, "after fork", *byte);
            *byte = pid == 0 ? 0xcc : 0xaa;
        }
        for (unsigned i = 0; i < PAGES; i++) {
            uint8_t got = memory[i * PAGE + round];

            check(got == (pid == 0 ? 0xcc : 0xaa), "copied on write", got);
        }
        if (pid == 0) {
            _exit(failures == 0 ? 7 : 8);
        }
        check(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7, "child",
              (uint64_t)status);
    }
    check(munmap(memory, (size_t)PAGES * PAGE) == 0, "munmap", (uint64_t)errno);
}

static void test_page_crossing(void)
{
    uint8_t *memory =
        mmap(NULL, (size_t)2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile uint64_t *word = (volatile uint64_t *)(void *)(memory + PAGE - 3);

    for (uint64_t i = 1; i < 100; i++) {
        *word = i * 0x0101010101010101ull;
        check(*word == i * 0x0101010101010101ull && memory[PAGE] == (uint8_t)i, "across pages",
              *word);
        check(__atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST) == i * 0x0101010101010101ull + 1,
              "atomic across pages", *word);
    }
    check(mprotect(memory + PAGE, PAGE, PROT_READ) == 0, "mprotect", (uint64_t)errno);
    *(volatile uint8_t *)(memory + PAGE - 3) = 1;
    EXPECT_SIGNAL(SIGSEGV, SEGV_ACCERR, "across pages", *word = 0);
    check(memory[PAGE - 3] == 1, "nothing was written", memory[PAGE - 3]);
    check(munmap(memory, (size_t)2 * PAGE) == 0, "munmap", (uint64_t)errno);
}

struct pair {
    uint8_t *memory;
    _Atomic uint32_t turn;
    bool ok;
};

static void *reader(void *opaque)
{
    struct pair *pair = opaque;

    for (uint32_t i = 0; i < 500; i++) {
        while (atomic_load(&pair->turn) != 2 * i + 1) {
            (void)sched_yield();
        }
        pair->ok = pair->ok && *(volatile uint32_t *)(void *)pair->memory == i;
        *(volatile uint32_t *)(void *)(pair->memory + 8) = i;
        atomic_store(&pair->turn, 2 * i + 2);
    }
    return NULL;
}

/* Each round another page is at the same address for both threads. */
static void test_shoot_down(void)
{
    struct pair pair = {.ok = true};
    pthread_t thread;
    cpu_set_t all;

    memset(&all, 0xff, sizeof(all));
    check(sched_setaffinity(0, sizeof(all), &all) == 0, "affinity", (uint64_t)errno);
    pair.memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(pthread_create(&thread, NULL, reader, &pair) == 0, "pthread_create", 0);
    for (uint32_t i = 0; i < 500; i++) {
        void *p = mmap(pair.memory, PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

        check(p == pair.memory && *(volatile uint32_t *)(void *)(pair.memory + 8) == 0, "new page",
              (uint64_t)p);
        *(volatile uint32_t *)(void *)pair.memory = i;
        atomic_store(&pair.turn, 2 * i + 1);
        while (atomic_load(&pair.turn) != 2 * i + 2) {
            (void)sched_yield();
        }
        check(*(volatile uint32_t *)(void *)(pair.memory + 8) == i, "other thread's word", i);
    }
    check(pthread_join(thread, NULL) == 0 && pair.ok, "other thread", 0);
}

/* ---- registers ---- */

static volatile unsigned ticks;

static void on_tick(int number)
{
    (void)number;
    ticks++;
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n\tpcmpeqd %%xmm7, %%xmm7\n\tfninit\n\tfld1"
                     :
                     :
                     : "xmm0", "xmm7", "st");
    (void)getppid();
}

static void test_registers(void)
{
    struct sigaction action = {.sa_handler = on_tick};
    const struct itimerval often = {{0, 2000}, {0, 2000}};
    const struct itimerval never = {{0, 0}, {0, 0}};
    uint64_t rounds = 0;

    check(sigaction(SIGALRM, &action, NULL) == 0, "sigaction", (uint64_t)errno);
    check(setitimer(ITIMER_REAL, &often, NULL) == 0, "setitimer", (uint64_t)errno);
    while (ticks < 50) {
        uint64_t in[4] = {rounds, ~rounds, rounds * 3, 5};
        uint64_t out[4] = {0};
        double x87 = 0;
        long r = SYS_getppid;

        __asm__ volatile("movdqu (%[in]), %%xmm0\n\tmovdqu 16(%[in]), %%xmm7\n\tfldpi\n\t"
                         "mov $2000, %%ecx\n1:\tdec %%ecx\n\tjnz 1b\n\tsyscall\n\t"
                         "movdqu %%xmm0, (%[out])\n\tmovdqu %%xmm7, 16(%[out])\n\tfstpl %[x87]"
                         : "+a"(r), [x87] "=m"(x87)
                         : [in] "r"(in), [out] "r"(out)
                         : "rcx", "r11", "xmm0", "xmm7", "memory", "cc");
        check(memcmp(in, out, sizeof(in)) == 0, "XMM", out[0]);
        check(x87 > 3.14159 && x87 < 3.1416, "x87", (uint64_t)x87);
        rounds++;
    }
    check(setitimer(ITIMER_REAL, &never, NULL) == 0, "setitimer", (uint64_t)errno);
}

static void test_bases(void)
{
    uint64_t words[2] = {0x1111, 0x2222};
    uint64_t got = 0;

    check(syscall(SYS_arch_prctl, ARCH_SET_GS, words) == 0, "ARCH_SET_GS", (uint64_t)errno);
    for (unsigned i = 0; i < 100; i++) {
        __asm__ volatile("mov %%gs:8, %0" : "=r"(got));
        check(got == 0x2222, "GS base", got);
        (void)getppid();
    }
}

static void *sum(void *opaque)
{
    double *result = opaque;

    for (unsigned i = 1; i < 3000000; i++) {
        *result += 1.0 / i;
    }
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[4];
    double results[4] = {0};
    double alone = 0;

    (void)sum(&alone);
    for (unsigned i = 0; i < 4; i++) {
        check(pthread_create(&threads[i], NULL, sum, &results[i]) == 0, "pthread_create", 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        check(pthread_join(threads[i], NULL) == 0, "pthread_join", 0);
        check(memcmp(&results[i], &alone, sizeof(alone)) == 0, "sums",
              (uint64_t)(results[i] * 1e6));
    }
}

int main(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    test_exceptions();
    test_single_step();
    handle(SIGTRAP, on_exception);
    test_old_system_call();
    for (long cpu = 0; cpu < cpus; cpu++) {
        test_cpu_number((unsigned)cpu);
    }
    test_features();
    test_clock();
    test_changing_code();
    test_fork();
    test_page_crossing();
    test_shoot_down();
    test_registers();
    test_bases();
    test_threads();
    printf("user-work: %u checks, %u not so\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
