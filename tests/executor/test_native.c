/*
 * Spaces (executor/native.h): small machine code at an address of its own, in
 * a process that the test makes as the executor does, and what comes back.
 */
#include "test.h"

#include "cpu/x86.h"
#include "executor/native.h"
#include "executor/native_int.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RAM_BYTES (16u << 20)
#define CODE 0x400000ull
#define DATA 0x7ffe00000000ull
#define PAGE 4096u

static unsigned vcpu_count = 2;
static _Atomic uint32_t spares_cpu;
static const struct native *native;
static uint8_t *ram;
static struct vcpu_state st;
static struct native_left left;

/* Code at CODE, a page of data at DATA, and stack in its upper half. */
static void put(const void *code, size_t len)
{
    const struct native_change changes[] = {
        {.va = CODE, .bytes = PAGE, .offset = 0, .prot = PROT_READ | PROT_EXEC},
        {.va = DATA, .bytes = PAGE, .offset = PAGE, .prot = PROT_READ | PROT_WRITE},
    };

    assert_int_equal(native->ops->clear(native->opaque, 0), 0);
    memset(ram, 0xcc, PAGE);
    memcpy(ram, code, len);
    assert_int_equal(native->ops->change(native->opaque, 0, changes, 2), 0);
    memset(&st, 0, sizeof(st));
    st.rip = CODE;
    st.gpr[X86_RSP] = DATA + PAGE;
    st.rflags = X86_FLAG_FIXED1 | X86_FLAG_IF;
    st.xsave[0] = 0x7f; /* FCW, MXCSR as after reset */
    st.xsave[1] = 0x03;
    st.xsave[24] = 0x80;
    st.xsave[25] = 0x1f;
}

static enum native_reason run(void)
{
    native->ops->run(native->opaque, 0, 0, &st, NULL, 0, &left);
    return left.reason;
}

/* To the system call; a signal that comes late ends a run, too, for no reason. */
static void run_past_kicks(void)
{
    while (run() == NATIVE_KICK) {
    }
    assert_int_equal(left.reason, NATIVE_SYSCALL);
}

static enum native_reason run_code(const void *code, size_t len)
{
    put(code, len);
    return run();
}

static void test_system_call(void **state)
{
    /* mov $7,%ebx; stc; syscall */
    static const uint8_t code[] = {0xbb, 7, 0, 0, 0, 0xf9, 0x0f, 0x05};

    (void)state;
    put(code, sizeof(code));
    st.gpr[X86_RAX] = 0xffffffff00000027ull; /* one that the host has, but for the upper half */
    st.gpr[X86_R15] = 0x1122334455667788ull;
    assert_int_equal(run(), NATIVE_SYSCALL);
    assert_int_equal(st.rip, CODE + 6);
    assert_int_equal(st.gpr[X86_RBX], 7);
    assert_int_equal(st.gpr[X86_RAX], 0xffffffff00000027ull);
    assert_int_equal(st.gpr[X86_RCX], CODE + 8);
    assert_int_equal(st.gpr[X86_R15], 0x1122334455667788ull);
    assert_int_equal(st.gpr[X86_RSP], DATA + PAGE);
    assert_true((st.rflags & X86_FLAG_CF) != 0);
}

/* Whatever number it has, also one that the host's filters never see, it is the guest's. */
static void test_system_calls_of_all_numbers(void **state)
{
    static const uint8_t code[] = {0x0f, 0x05};
    const unsigned uprobe = 336; /* silent on hosts that have it: native_scan.c */

    (void)state;
    put(code, sizeof(code));
    for (unsigned number = 0; number < 1024; number++) {
        st.rip = CODE;
        st.gpr[X86_RAX] = number;
        if (number != uprobe) {
            assert_int_equal(run(), NATIVE_SYSCALL);
            assert_int_equal(st.gpr[X86_RAX], number);
            assert_int_equal(st.rip, CODE);
            assert_int_equal(st.gpr[X86_RCX], CODE + 2);
        }
    }
}

static void test_old_system_call(void **state)
{
    static const uint8_t code[] = {0xb8, 20, 0, 0, 0, 0xcd, 0x80};

    (void)state;
    assert_int_equal(run_code(code, sizeof(code)), NATIVE_OTHER);
    assert_int_equal(st.rip, CODE + 5);
    assert_int_equal(st.gpr[X86_RAX], 20);
}

static void test_faults(void **state)
{
    /* mov %eax,(%rdi) */
    static const uint8_t store[] = {0x90, 0x89, 0x07};

    (void)state;
    put(store, sizeof(store));
    st.gpr[X86_RDI] = DATA + 2 * PAGE + 12;
    assert_int_equal(run(), NATIVE_FAULT);
    assert_int_equal(st.rip, CODE + 1);
    assert_int_equal(left.address, DATA + 2 * PAGE + 12);
    assert_int_equal(left.error & (X86_PF_WRITE | X86_PF_USER | X86_PF_FETCH),
                     X86_PF_WRITE | X86_PF_USER);

    /* ... on a page that may be read */
    st.gpr[X86_RDI] = CODE;
    assert_int_equal(run(), NATIVE_FAULT);
    assert_int_equal(left.error & X86_PF_PRESENT, X86_PF_PRESENT);

    /* ... with the mapping in the same call it is done: INT3 follows */
    {
        const struct native_change change = {
            .va = CODE, .bytes = PAGE, .prot = PROT_READ | PROT_WRITE | PROT_EXEC};

        st.gpr[X86_RAX] = 0x90909090;
        st.gpr[X86_RDI] = CODE + 16;
        native->ops->run(native->opaque, 0, 0, &st, &change, 1, &left);
        assert_int_equal(left.reason, NATIVE_OTHER);
        assert_int_equal(st.rip, CODE + 3);
        assert_int_equal(ram[19], 0x90);
    }

    /* Fetching where nothing is */
    st.rip = CODE + PAGE;
    assert_int_equal(run(), NATIVE_FAULT);
    assert_int_equal(st.rip, CODE + PAGE);
    assert_int_equal(left.address, CODE + PAGE);

    /* Not canonical: #GP without an address */
    st.rip = CODE + 1;
    st.gpr[X86_RDI] = 0x800000000000ull;
    assert_int_equal(run(), NATIVE_OTHER);
    assert_int_equal(st.rip, CODE + 1);
}

static void test_other(void **state)
{
    static const uint8_t codes[][4] = {
        {0x0f, 0x0b},       /* ud2 */
        {0xf4},             /* hlt */
        {0xf7, 0xf1},       /* div %ecx */
        {0xcc},             /* int3 */
        {0xf1},             /* int1 */
        {0xe4, 0x60},       /* in */
        {0xcd, 0x21},       /* int 0x21 */
        {0x0f, 0x22, 0xd8}, /* mov %rax,%cr3 */
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(codes); i++) {
        assert_int_equal(run_code(codes[i], sizeof(codes[i])), NATIVE_OTHER);
        assert_int_equal(st.rip, CODE);
    }
}

static void test_cpuid(void **state)
{
    static const uint8_t code[] = {0x0f, 0xa2, 0x0f, 0x05};

    (void)state;
    assert_int_equal(run_code(code, sizeof(code)),
                     native->cpuid_faults ? NATIVE_OTHER : NATIVE_SYSCALL);
}

static void test_vectors_and_bases(void **state)
{
    /* movaps %xmm1,%xmm0; vextracti128 ymm2 -> xmm3; mov %fs:0,%rax; mov %gs:8,%rbx; rdfsbase rcx... */
    static const uint8_t code[] = {0x0f, 0x28, 0xc1,                         /* movaps */
                                   0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, /* fs */
                                   0x65, 0x48, 0x8b, 0x1c, 0x25, 8, 0, 0, 0, /* gs */
                                   0xf3, 0x48, 0x0f, 0xae, 0xd2,             /* wrfsbase rdx */
                                   0xd9, 0xe8,                               /* fld1 */
                                   0x0f, 0x05};
    uint64_t one = 0x3ff0000000000000ull;

    (void)state;
    put(code, sizeof(code));
    memcpy(ram + PAGE, &one, 8);
    memcpy(ram + PAGE + 8, &one, 8);
    st.seg[X86_FS].base = DATA;
    st.seg[X86_GS].base = DATA;
    st.gpr[X86_RDX] = 0x123456789000ull;
    memset(st.xsave + 160 + 16, 0x5a, 16); /* xmm1 */
    st.xsave[512] = 2;
    assert_int_equal(run(), NATIVE_SYSCALL);
    assert_int_equal(st.gpr[X86_RAX], one);
    assert_int_equal(st.gpr[X86_RBX], one);
    assert_int_equal(st.seg[X86_FS].base, 0x123456789000ull);
    assert_int_equal(st.seg[X86_GS].base, DATA);
    assert_memory_equal(st.xsave + 160, st.xsave + 160 + 16, 16);
    assert_int_equal(st.xsave[160], 0x5a);
    assert_int_equal(st.xsave[512] & 3, 3);
    assert_int_equal(st.xsave[32 + 9], 0x3f); /* ST0 is 1.0 */
    /* ... and another's are not left in the registers */
    put(code, sizeof(code));
    st.seg[X86_FS].base = st.seg[X86_GS].base = DATA;
    assert_int_equal(run(), NATIVE_SYSCALL);
    assert_int_equal(st.xsave[160 + 16], 0);
}

static void test_trap_flag(void **state)
{
    /* pushfq; orl $0x100,(%rsp); popfq; nop; nop */
    static const uint8_t code[] = {0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90};

    (void)state;
    assert_int_equal(run_code(code, sizeof(code)), NATIVE_TRAP);
    assert_int_equal(st.rip, CODE + 10);
    assert_true((st.rflags & X86_FLAG_TF) != 0);
    assert_int_equal(run(), NATIVE_OTHER); /* the next is for somebody else */
}

static void *kick_main(void *opaque)
{
    volatile uint64_t *counter = opaque;

    while (*counter < 1000) {
        (void)sched_yield();
    }
    native->ops->kick(native->opaque, 0);
    return NULL;
}

static void test_kick(void **state)
{
    /* 1: incq (%rdi); jmp 1b */
    static const uint8_t code[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};
    pthread_t thread;
    uint64_t before;

    (void)state;
    put(code, sizeof(code));
    for (unsigned i = 0; i < 200; i++) {
        *(volatile uint64_t *)(void *)(ram + PAGE) = 0;
        st.gpr[X86_RDI] = DATA;
        assert_int_equal(pthread_create(&thread, NULL, kick_main, ram + PAGE), 0);
        while (run() == NATIVE_KICK && *(volatile uint64_t *)(void *)(ram + PAGE) < 1000) {
        }
        assert_int_equal(left.reason, NATIVE_KICK);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_true(st.rip == CODE || st.rip == CODE + 3);
    }
    /* Before it begins: nothing runs. */
    native->ops->kick(native->opaque, 0);
    before = *(uint64_t *)(void *)(ram + PAGE);
    assert_int_equal(run(), NATIVE_KICK);
    assert_int_equal(*(uint64_t *)(void *)(ram + PAGE), before);
}

static void *kick_often(void *opaque)
{
    _Atomic bool *stop = opaque;

    while (!atomic_load(stop)) {
        native->ops->kick(native->opaque, 0);
    }
    return NULL;
}

/* Kicks at any moment lose and repeat nothing: each system call counts once. */
static void test_kicks_everywhere(void **state)
{
    /* 1: inc %rbx; syscall; jmp 1b */
    static const uint8_t code[] = {0x48, 0xff, 0xc3, 0x0f, 0x05, 0xeb, 0xf9};
    _Atomic bool stop = false;
    pthread_t thread;
    uint64_t calls = 0;

    (void)state;
    put(code, sizeof(code));
    assert_int_equal(pthread_create(&thread, NULL, kick_often, &stop), 0);
    while (calls < 5000) {
        enum native_reason reason = run();

        assert_true(reason == NATIVE_SYSCALL || reason == NATIVE_KICK);
        if (reason == NATIVE_SYSCALL) {
            calls++;
            assert_int_equal(st.rip, CODE + 3);
            assert_int_equal(st.gpr[X86_RBX], calls);
            st.rip += 2;
        }
    }
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* Turns of all lengths, often enough that both ways of taking them come, lose no word. */
static void test_turns_of_any_length(void **state)
{
    /* mov %rax,%rcx; 1: loop 1b; inc %rbx; syscall */
    static const uint8_t code[] = {0x48, 0x89, 0xc1, 0xe2, 0xfe, 0x48, 0xff, 0xc3, 0x0f, 0x05};

    (void)state;
    put(code, sizeof(code));
    for (unsigned i = 0; i < 3000; i++) {
        st.rip = CODE;
        st.gpr[X86_RAX] = i % 64 == 0 ? 1u << 20 : 1000u + i % 1000;
        while (run() == NATIVE_KICK) {
        }
        assert_int_equal(left.reason, NATIVE_SYSCALL);
        assert_int_equal(st.gpr[X86_RBX], i + 1);
        assert_int_equal(st.gpr[X86_RCX], CODE + sizeof(code));
    }
}

/* Threads that were kept together are not for the rest of their lives. */
static void test_thread_at_rest_runs_anywhere(void **state)
{
    static const uint8_t code[] = {0x0f, 0x05};
    cpu_set_t before;
    cpu_set_t now;

    (void)state;
    if (vcpu_count < 2) {
        return; /* the first has had turns */
    }
    native->ops->rest(native->opaque, 0);
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    put(code, sizeof(code));
    native->ops->run(native->opaque, 0, 1, &st, NULL, 0, &left); /* vCPU 1's first turn */
    assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
    assert_int_equal(CPU_COUNT(&now), 1);
    native->ops->rest(native->opaque, 1);
    assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
    assert_true(CPU_EQUAL(&before, &now));
}

/* ---- a user who knows what lies beside him ---- */

static uint64_t own_block(void)
{
    return NATIVE_OWN + NATIVE_BLOCK_BYTES;
}

#define STUB_TALLY 0
#define STUB_WAKE 1
#define STUB_CALLS 6 /* with the mapper's */

/* Where the stub's n-th SYSCALL is. */
static uint64_t stub_call(unsigned n)
{
    for (const uint8_t *at = native_stub_start; at + 1 < native_stub_end; at++) {
        if (at[0] == 0x0f && at[1] == 0x05 && n-- == 0) {
            return own_block() + (uint64_t)(at - native_stub_start);
        }
    }
    fail();
    return 0;
}

/*
 * The stub's own system calls do nothing but wait and wake, whoever jumps there:
 * he begins again where he was let in, until somebody kicks him.
 */
static void test_stub_gives_no_system_call(void **state)
{
    static const uint64_t numbers[] = {SYS_mmap,   SYS_munmap, SYS_mprotect,  SYS_rt_sigreturn,
                                       SYS_write,  SYS_open,   SYS_kill,      SYS_clone,
                                       SYS_execve, SYS_exit,   SYS_exit_group};
    /* incq (%rsi); jmp *%rbx */
    static const uint8_t jump_there[] = {0x48, 0xff, 0x06, 0xff, 0xe3};
    static const uint8_t load[] = {0x8a, 0x07, 0x0f, 0x05};
    _Atomic bool stop;
    pthread_t thread;

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(numbers); i++) {
        volatile uint64_t *tries = (void *)(ram + PAGE);

        put(jump_there, sizeof(jump_there));
        *tries = 0;
        st.gpr[X86_RAX] = numbers[i];
        st.gpr[X86_RBX] = stub_call(STUB_WAKE);
        st.gpr[X86_RDI] = DATA;
        st.gpr[X86_RSI] = DATA;
        atomic_store(&stop, false);
        assert_int_equal(pthread_create(&thread, NULL, kick_often, &stop), 0);
        while (*tries < 3) {
            assert_int_equal(run(), NATIVE_KICK);
        }
        atomic_store(&stop, true);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_false(native->ops->is_lost(native->opaque, 0));
        memcpy(ram, load, sizeof(load));
        do {
            st.rip = CODE;
        } while (run() == NATIVE_KICK);
        assert_int_equal(left.reason, NATIVE_SYSCALL); /* its page is still there */
    }
}

static void test_mapper_is_out_of_reach(void **state)
{
    /* mov %eax,(%rdi) */
    static const uint8_t code[] = {0x89, 0x07};
    static const uint64_t places[] = {NATIVE_OWN, NATIVE_OWN + NATIVE_PAGE_AT,
                                      NATIVE_OWN + NATIVE_PAGE_AT + NATIVE_M_ITEMS};

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        put(code, sizeof(code));
        st.gpr[X86_RDI] = places[i];
        assert_int_equal(run(), NATIVE_FAULT);
        assert_int_equal(left.address, places[i]);
    }
    /* Nor is there anything of the process that made it. */
    put((const uint8_t[]){0x8b, 0x07}, 2);
    st.gpr[X86_RDI] = (uint64_t)(uintptr_t)ram;
    assert_int_equal(run(), NATIVE_FAULT);
    st.gpr[X86_RDI] = (uint64_t)(uintptr_t)&left;
    assert_int_equal(run(), NATIVE_FAULT);
}

static void *starve(void *opaque)
{
    const struct spaces *spaces = opaque;
    const struct timespec longer = {.tv_sec = 3}; /* than a runner has for its answer */
    pid_t runner = spaces->space[0].pids[0];

    (void)kill(runner, SIGSTOP);
    native->ops->kick(native->opaque, 0);
    (void)nanosleep(&longer, NULL);
    (void)kill(runner, SIGCONT);
    return NULL;
}

/* With its mapper a space ends; with one runner its word says nothing of it. */
static void test_end_of_a_space_is_seen(void **state)
{
    static const uint8_t code[] = {0xeb, 0xfe};
    const struct native_change change = {.va = CODE, .bytes = PAGE, .prot = PROT_READ | PROT_EXEC};
    const unsigned last = native->space_count - 1;
    const struct spaces *spaces = native->opaque;
    _Atomic bool stop = false;
    pthread_t kicks;

    (void)state;
    put(code, sizeof(code));
    assert_int_equal(native->ops->change(native->opaque, last, &change, 1), 0);
    assert_int_equal(pthread_create(&kicks, NULL, kick_often, &stop), 0);
    native->ops->run(native->opaque, last, 0, &st, NULL, 0, &left);
    assert_int_equal(left.reason, NATIVE_KICK);
    (void)kill(spaces->space[last].mapper_pid, SIGKILL);
    do {
        native->ops->run(native->opaque, last, 0, &st, NULL, 0, &left);
    } while (left.reason == NATIVE_KICK);
    assert_int_equal(left.reason, NATIVE_LOST);
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(kicks, NULL), 0);
    assert_true(native->ops->is_lost(native->opaque, last));
}

/* A host that has no time for him is no fault of his. */
static void test_starved_one_is_waited_for(void **state)
{
    /* 1: jmp 1b */
    static const uint8_t code[] = {0xeb, 0xfe};
    pthread_t thread;

    (void)state;
    put(code, sizeof(code));
    assert_int_equal(pthread_create(&thread, NULL, starve, native->opaque), 0);
    assert_int_equal(run(), NATIVE_KICK);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_false(native->ops->is_lost(native->opaque, 0));
}

/* He says that nobody waits for him, when the other one already sleeps. */
static void test_silent_one_is_heard(void **state)
{
    /* 1: loop 1b; movl $0,(%rdi); syscall */
    static const uint8_t code[] = {0xe2, 0xfe, 0xc7, 0x07, 0, 0, 0, 0, 0x0f, 0x05};

    (void)state;
    put(code, sizeof(code));
    st.gpr[X86_RCX] = 1u << 24;
    st.gpr[X86_RDI] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WAITING;
    assert_int_equal(run(), NATIVE_SYSCALL);
    assert_int_equal(st.gpr[X86_RCX], CODE + sizeof(code));
}

/* Goes on for a while: other processes' turns, one after another. */
static void let_others_run(void)
{
    const struct native_change change = {
        .va = CODE + PAGE, .bytes = PAGE, .offset = 2ull * PAGE, .prot = PROT_READ};

    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(native->ops->change(native->opaque, 0, &change, 1), 0);
        (void)sched_yield();
    }
}

/* He says that he has stopped, and goes on: beside the guest's kernel, with pages it took away. */
static void test_who_says_he_stopped_has_stopped(void **state)
{
    /* movl $2,(%rdi); 1: incq (%rsi); jmp 1b */
    static const uint8_t code[] = {0xc7, 0x07, NATIVE_WORD_STOPPED, 0, 0, 0, 0x48, 0xff, 0x06,
                                   0xeb, 0xfb};
    volatile uint64_t *tries = (void *)(ram + PAGE);

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        uint64_t before;

        put(code, sizeof(code));
        st.gpr[X86_RDI] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WORD;
        st.gpr[X86_RSI] = DATA;
        (void)run();
        before = *tries;
        let_others_run();
        assert_int_equal(*tries, before);
        assert_false(native->ops->is_lost(native->opaque, 0));
    }
    assert_int_equal(run_code((const uint8_t[]){0x0f, 0x05}, 2), NATIVE_SYSCALL);
}

static long futex(void *word, int op, uint32_t value, uintptr_t more, void *other)
{
    return syscall(SYS_futex, word, op, value, more, other, 0);
}

static void *sleep_main(void *opaque)
{
    (void)futex(opaque, FUTEX_WAIT, 0, 0, NULL);
    return NULL;
}

/* The stub waits for its own word and wakes who waits for that: no other runner, nobody else. */
static void test_stub_wakes_nobody_else(void **state)
{
    /* incl 8(%rsi); mov %ecx,%esi; jmp *%rbx */
    static const uint8_t code[] = {0xff, 0x46, 0x08, 0x89, 0xce, 0xff, 0xe3};
    uint32_t *word = (void *)(ram + PAGE);
    volatile uint64_t *tries = (void *)(ram + PAGE + 8);
    pthread_t sleeper;
    pthread_t kicks;
    _Atomic bool stop = false;

    (void)state;
    put(code, sizeof(code));
    memset(ram + PAGE, 0, 16);
    assert_int_equal(pthread_create(&sleeper, NULL, sleep_main, word), 0);
    while (futex(word, FUTEX_REQUEUE, 0, 1, word) != 1) {
        (void)sched_yield();
    }
    st.gpr[X86_RAX] = SYS_futex;
    st.gpr[X86_RBX] = stub_call(STUB_WAKE);
    st.gpr[X86_RDI] = st.gpr[X86_RSI] = DATA;
    st.gpr[X86_RDX] = 1;
    st.gpr[X86_RCX] = FUTEX_WAKE;
    assert_int_equal(pthread_create(&kicks, NULL, kick_often, &stop), 0);
    while (*tries < 3) {
        assert_int_equal(run(), NATIVE_KICK);
    }
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(kicks, NULL), 0);
    assert_int_equal(futex(word, FUTEX_WAKE, 1, 0, NULL), 1);
    assert_int_equal(pthread_join(sleeper, NULL), 0);
}

/* Another vCPU's runner says that this one is to go on, and a kick comes late. */
static void test_stopped_one_stays_stopped(void **state)
{
    /* incq (%rsi); syscall */
    static const uint8_t code[] = {0x48, 0xff, 0x06, 0x0f, 0x05};
    /* mov PID(%rdi),%ebx; movl $0,KICKED(%rdi); movl $GO,(%rdi); syscall */
    static const uint8_t other[] = {0x8b,
                                    0x9f,
                                    offsetof(struct native_runner, pid) & 0xff,
                                    offsetof(struct native_runner, pid) >> 8,
                                    0,
                                    0,
                                    0xc7,
                                    0x47,
                                    NATIVE_R_KICKED,
                                    0,
                                    0,
                                    0,
                                    0,
                                    0xc7,
                                    0x07,
                                    NATIVE_WORD_GO,
                                    0,
                                    0,
                                    0,
                                    0x0f,
                                    0x05};
    volatile uint64_t *count = (void *)(ram + PAGE);
    struct vcpu_state second;

    (void)state;
    if (vcpu_count < 2) {
        return; /* there is no other */
    }
    for (unsigned i = 0; i < 20; i++) {
        put(code, sizeof(code));
        memcpy(ram + 0x800, other, sizeof(other));
        *count = 0;
        second = st;
        st.gpr[X86_RSI] = DATA;
        run_past_kicks();
        second.rip = CODE + 0x800;
        second.gpr[X86_RDI] = own_block() + NATIVE_PAGE_AT;
        do {
            native->ops->run(native->opaque, 0, 1, &second, NULL, 0, &left);
        } while (left.reason == NATIVE_KICK);
        assert_int_equal(left.reason, NATIVE_SYSCALL);
        assert_int_equal(kill((pid_t)second.gpr[X86_RBX], NATIVE_SIGNAL), 0);
        let_others_run();
        assert_int_equal(*count, 1);
        st.rip = CODE;
        run_past_kicks();
        assert_int_equal(*count, 2);
    }
}

/* ---- one vCPU: its runner may spin ---- */

static struct spaces *spin(void)
{
    struct spaces *spaces = native->opaque;

    spaces->turns[0].way = TURN_APART;
    spaces->turns[0].last_tsc = 0;
    spaces->turns[0].ways[TURN_APART] = (struct turn_cost){.turns = 1};
    spaces->turns[0].ways[TURN_TOGETHER] = (struct turn_cost){.cost = UINT32_MAX, .turns = 1};
    return spaces;
}

static void test_who_spins_is_believed_when_it_counts(void **state)
{
    static const uint8_t code[] = {0x0f, 0x05};
    struct spaces *spaces = native->opaque;
    uint64_t stops = spaces->space[0].stops;

    (void)state;
    if (spaces->vcpu_count != 1) {
        return;
    }
    put(code, sizeof(code));
    for (unsigned i = 0; i < 2000; i++) {
        (void)spin();
        st.rip = CODE;
        run_past_kicks();
        if (i % 5 == 0) {
            native->ops->confirm(native->opaque, 0);
        }
        assert_false(native->ops->is_lost(native->opaque, 0));
    }
    assert_true(spaces->space[0].stops >= stops + 2000);
    assert_true(spaces->space[0].tallied >= stops + 1900);
}

/* Where CPU time is counted, none is spent on waiting: the threads keep together. */
static void test_who_is_to_spare_time_does_not_spin(void **state)
{
    static const uint8_t code[] = {0x0f, 0x05};
    struct spaces *spaces = native->opaque;
    uint64_t stops;

    (void)state;
    put(code, sizeof(code));
    atomic_store(&spares_cpu, 1);
    stops = spaces->space[0].stops;
    for (unsigned i = 0; i < 200; i++) {
        (void)spin();
        st.rip = CODE;
        run_past_kicks();
        assert_int_equal(spaces->turns[0].spin_tsc, 0);
    }
    assert_int_equal(spaces->space[0].stops, stops);
    atomic_store(&spares_cpu, 0);
}

/* Before the guest's kernel takes pages away, he is asked; then he is no more. */
static void test_liar_who_spins_is_ended(void **state)
{
    /* movl $2,(%rdi); 1: incq (%rsi); jmp 1b */
    static const uint8_t code[] = {0xc7, 0x07, NATIVE_WORD_STOPPED, 0, 0, 0, 0x48, 0xff, 0x06,
                                   0xeb, 0xfb};
    volatile uint64_t *tries = (void *)(ram + PAGE);
    struct spaces *spaces = native->opaque;
    const struct native_change changes[] = {
        {.va = CODE, .bytes = PAGE, .offset = 0, .prot = PROT_READ | PROT_EXEC},
        {.va = DATA, .bytes = PAGE, .offset = PAGE, .prot = PROT_READ | PROT_WRITE},
    };
    uint64_t before;

    (void)state;
    if (spaces->vcpu_count != 1) {
        return;
    }
    put(code, sizeof(code));
    st.rip = CODE + PAGE - 1; /* INT3 */
    native->ops->run(native->opaque, 1, 0, &st, changes, 2, &left);
    assert_int_equal(left.reason, NATIVE_OTHER);
    st.rip = CODE;
    st.gpr[X86_RDI] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WORD;
    st.gpr[X86_RSI] = DATA;
    (void)spin();
    native->ops->run(native->opaque, 1, 0, &st, NULL, 0, &left);
    assert_false(native->ops->is_lost(native->opaque, 1));
    for (before = *tries; *tries == before;) {
        (void)sched_yield(); /* he goes on */
    }
    native->ops->confirm(native->opaque, 0);
    assert_true(native->ops->is_lost(native->opaque, 1));
    before = *tries;
    let_others_run();
    assert_int_equal(*tries, before);
    native->ops->run(native->opaque, 1, 0, &st, NULL, 0, &left);
    assert_int_equal(left.reason, NATIVE_LOST);
}

/* Wherever in the stub he jumps to: nobody's tally is higher than the times he stopped. */
static void test_tally_is_not_saved_up(void **state)
{
    /* movl $2,(%r9), of which there may be some; jmp *%rbx */
    static const uint8_t code[] = {0x41, 0xc7, 0x01, NATIVE_WORD_STOPPED, 0, 0, 0, 0xff, 0xe3};
    struct spaces *spaces = native->opaque;
    struct space *space = &spaces->space[2];
    const struct native_change change = {
        .va = CODE, .bytes = PAGE, .offset = 0, .prot = PROT_READ | PROT_EXEC};
    pthread_t kicks;
    _Atomic bool stop = false;

    (void)state;
    if (spaces->vcpu_count != 1) {
        return;
    }
    put(code, sizeof(code));
    assert_int_equal(native->ops->change(native->opaque, 2, &change, 1), 0);
    assert_int_equal(pthread_create(&kicks, NULL, kick_often, &stop), 0);
    for (unsigned i = 0; i < 40 * STUB_CALLS && !native->ops->is_lost(native->opaque, 2); i++) {
        (void)spin();
        st.rip = CODE + (i % 2 == 0 ? 7 : 0);
        st.gpr[X86_RAX] = SYS_write;
        st.gpr[X86_RBX] = stub_call(i / 2 % STUB_CALLS);
        st.gpr[X86_RDI] = NATIVE_TALLY_FD;
        st.gpr[X86_RSI] = own_block() + (uint64_t)(native_stub_one - native_stub_start);
        st.gpr[X86_RDX] = 8;
        st.gpr[X86_R9] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WORD;
        native->ops->run(native->opaque, 2, 0, &st, NULL, 0, &left);
        spaces->turns[0].unconfirmed = i % 3 == 0 ? 3 : 0;
        native->ops->confirm(native->opaque, 0);
        assert_true(space->tallied <= space->stops);
    }
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(kicks, NULL), 0);
    spaces->turns[0].unconfirmed = 0;
}

/* New spaces: what one test does to them is not the next one's. */
static void renew(void)
{
    executor_native_create(vcpu_count, &spares_cpu, &native);
    assert_non_null(native);
}

static void spin_not(void)
{
    struct spaces *spaces = native->opaque;

    spaces->turns[0].way = TURN_APART;
    spaces->turns[0].last_tsc = 400000; /* longer than anybody spins for */
}

/* Nor does he add to it when nobody asks, to lie when somebody does. */
static void test_tally_is_not_added_to_for_later(void **state)
{
    static const uint8_t jump[] = {0xff, 0xe3}; /* jmp *%rbx */
    static const uint8_t lie[] = {0xc7, 0x07, NATIVE_WORD_STOPPED, 0, 0, 0, 0x48, 0xff, 0x06,
                                  0xeb, 0xfb};
    volatile uint64_t *tries = (void *)(ram + PAGE);
    uint64_t before;

    (void)state;
    if (vcpu_count != 1) {
        return;
    }
    renew();
    assert_int_equal(run_code((const uint8_t[]){0x0f, 0x05}, 2), NATIVE_SYSCALL);
    native->ops->confirm(native->opaque, 0);
    put(jump, sizeof(jump));
    st.gpr[X86_RAX] = SYS_write;
    st.gpr[X86_RBX] = stub_call(STUB_TALLY);
    st.gpr[X86_RDI] = NATIVE_TALLY_FD;
    st.gpr[X86_RSI] = own_block() + (uint64_t)(native_stub_one - native_stub_start);
    st.gpr[X86_RDX] = 8;
    spin_not();
    (void)run();
    put(lie, sizeof(lie));
    st.gpr[X86_RDI] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WORD;
    st.gpr[X86_RSI] = DATA;
    (void)spin();
    (void)run();
    native->ops->confirm(native->opaque, 0);
    assert_true(native->ops->is_lost(native->opaque, 0));
    before = *tries;
    for (unsigned i = 0; i < 100; i++) {
        (void)sched_yield();
    }
    assert_int_equal(*tries, before);
    renew();
}

/* He lies, goes on, and stops when the mapper is at work for him: changes are made in turn. */
static void test_liar_is_ended_before_the_mapper_works_for_him(void **state)
{
    /* movl $2,(%r9); 1: cmpl $2,(%r9); je 1b; jmp *%rbx */
    static const uint8_t lie[] = {0x41, 0xc7, 0x01, 2,    0,    0,    0,   0x41,
                                  0x83, 0x39, 0x02, 0x74, 0xfa, 0xff, 0xe3};
    const struct native_change change = {
        .va = CODE + PAGE, .bytes = PAGE, .offset = 2ull * PAGE, .prot = PROT_READ};

    (void)state;
    if (vcpu_count != 1) {
        return;
    }
    renew();
    assert_int_equal(run_code((const uint8_t[]){0x0f, 0x05}, 2), NATIVE_SYSCALL);
    put(lie, sizeof(lie));
    st.gpr[X86_RAX] = SYS_write;
    st.gpr[X86_RBX] = stub_call(STUB_TALLY);
    st.gpr[X86_RDI] = NATIVE_TALLY_FD;
    st.gpr[X86_RSI] = own_block() + (uint64_t)(native_stub_one - native_stub_start);
    st.gpr[X86_RDX] = 8;
    st.gpr[X86_R9] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WORD;
    (void)spin();
    (void)run();
    spin_not();
    native->ops->run(native->opaque, 0, 0, &st, &change, 1, &left);
    assert_int_equal(left.reason, NATIVE_LOST);
    renew();
}

/* He scribbles over his own block and stops for ever: his space may be lost, no other. */
static void test_scribbler_loses_his_own_space(void **state)
{
    /* rep stosb over the block's page and stack, then syscall */
    static const uint8_t code[] = {0xf3, 0xaa, 0x0f, 0x05};
    unsigned lost = 0;

    (void)state;
    for (unsigned value = 0; value < 256 && lost < native->space_count - 2; value++) {
        const struct native_change change = {
            .va = CODE, .bytes = PAGE, .prot = PROT_READ | PROT_EXEC};
        unsigned space = native->space_count - 2 - lost;

        put(code, sizeof(code));
        if (native->ops->clear(native->opaque, space) != 0) {
            lost++;
            continue;
        }
        assert_int_equal(native->ops->change(native->opaque, space, &change, 1), 0);
        st.gpr[X86_RAX] = value;
        st.gpr[X86_RDI] = own_block() + NATIVE_PAGE_AT;
        st.gpr[X86_RCX] = NATIVE_BLOCK_BYTES - NATIVE_PAGE_AT;
        native->ops->kick(native->opaque, 0); /* so that a silent one is not waited for */
        native->ops->run(native->opaque, space, 0, &st, NULL, 0, &left);
        native->ops->run(native->opaque, space, 0, &st, NULL, 0, &left);
        lost += native->ops->is_lost(native->opaque, space) ? 1 : 0;
    }
    assert_int_equal(run_code((const uint8_t[]){0x0f, 0x05}, 2), NATIVE_SYSCALL);
}

static int set_up(void **state)
{
    int fd = memfd_create("ram", 0);

    (void)state;
    if (fd < 0 || ftruncate(fd, RAM_BYTES) != 0 || dup2(fd, NATIVE_RAM_FD) != NATIVE_RAM_FD) {
        return -1;
    }
    executor_native_create(vcpu_count, &spares_cpu, &native);
    ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, NATIVE_RAM_FD, 0);
    return native == NULL || native->space_count == 0 || ram == MAP_FAILED ? -1 : 0;
}

/* argv[1]: for how many vCPUs */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_system_call),
        cmocka_unit_test(test_system_calls_of_all_numbers),
        cmocka_unit_test(test_old_system_call),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_other),
        cmocka_unit_test(test_cpuid),
        cmocka_unit_test(test_vectors_and_bases),
        cmocka_unit_test(test_trap_flag),
        cmocka_unit_test(test_kick),
        cmocka_unit_test(test_kicks_everywhere),
        cmocka_unit_test(test_turns_of_any_length),
        cmocka_unit_test(test_thread_at_rest_runs_anywhere),
        cmocka_unit_test(test_stub_gives_no_system_call),
        cmocka_unit_test(test_mapper_is_out_of_reach),
        cmocka_unit_test(test_starved_one_is_waited_for),
        cmocka_unit_test(test_silent_one_is_heard),
        cmocka_unit_test(test_who_says_he_stopped_has_stopped),
        cmocka_unit_test(test_stub_wakes_nobody_else),
        cmocka_unit_test(test_stopped_one_stays_stopped),
        cmocka_unit_test(test_who_spins_is_believed_when_it_counts),
        cmocka_unit_test(test_who_is_to_spare_time_does_not_spin),
        cmocka_unit_test(test_liar_who_spins_is_ended),
        cmocka_unit_test(test_tally_is_not_saved_up),
        cmocka_unit_test(test_tally_is_not_added_to_for_later),
        cmocka_unit_test(test_liar_is_ended_before_the_mapper_works_for_him),
        cmocka_unit_test(test_end_of_a_space_is_seen),
        cmocka_unit_test(test_scribbler_loses_his_own_space),
    };

    vcpu_count = argc > 1 ? (unsigned)atoi(argv[1]) : vcpu_count;
    return cmocka_run_group_tests(tests, set_up, NULL);
}
