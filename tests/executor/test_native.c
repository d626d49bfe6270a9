/*
 * Spaces (executor/native.h): small machine code at an address of its own, in
 * a process that the test makes as the executor does, and what comes back.
 */
#include "native_rig.h"

#include <errno.h>
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

static void *run_second(void *opaque)
{
    _Atomic bool *stop = opaque;
    struct vcpu_state second = st;

    while (!atomic_load(stop)) {
        struct native_left why;

        native->ops->run(native->opaque, 0, 1, &second, NULL, 0, &why);
        if (why.reason != NATIVE_FAULT && why.reason != NATIVE_KICK) {
            return opaque;
        }
    }
    return NULL;
}

/* Another vCPU goes in and out meanwhile: the space's mapper is only for who clears. */
static void test_clear_beside_another_that_runs(void **state)
{
    _Atomic bool stop = false;
    pthread_t other;
    void *wrong;

    (void)state;
    if (vcpu_count < 2) {
        return;
    }
    put((const uint8_t[]){0x0f, 0x05}, 2);
    st.rip = CODE + PAGE; /* where nothing is */
    assert_int_equal(pthread_create(&other, NULL, run_second, &stop), 0);
    for (unsigned i = 0; i < 5000; i++) {
        assert_int_equal(native->ops->clear(native->opaque, 0), 0);
    }
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(other, &wrong), 0);
    assert_null(wrong);
}

/* ---- processes that wait, or end ---- */

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
    assert_in_range(left.reason, NATIVE_GONE, NATIVE_LOST); /* as it ran just then, or not */
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(kicks, NULL), 0);
    assert_true(native->ops->is_lost(native->opaque, last));
}

struct killing {
    pid_t pid;
    bool waits; /* until the code writes to its page of data */
};

static void *kill_once(void *opaque)
{
    const struct killing *killing = opaque;
    volatile uint8_t *data = ram + PAGE;

    while (killing->waits && *data == 0) {
        (void)sched_yield();
    }
    (void)kill(killing->pid, SIGKILL);
    return NULL;
}

static void await_end(int pidfd)
{
    struct pollfd fd = {.fd = pidfd, .events = POLLIN};

    assert_int_equal(poll(&fd, 1, -1), 1);
}

/* No kick has it looked at: a guest without a tick may send none. */
static void test_end_is_seen_without_a_kick(void **state)
{
    /* syscall; and, behind it: movb $1,(%rdi); 1: jmp 1b */
    static const uint8_t code[] = {0x0f, 0x05, 0xc6, 0x07, 0x01, 0xeb, 0xfe};

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        bool is_mapper = (i & 1) != 0;
        struct killing killing = {.waits = (i & 2) != 0};
        const struct space *space;
        pthread_t thread;

        renew();
        space = ((const struct spaces *)native->opaque)->space;
        ram[PAGE] = 0;
        put(code, sizeof(code));
        assert_int_equal(run(), NATIVE_SYSCALL);
        st.rip = CODE + 2;
        st.gpr[X86_RDI] = DATA;
        killing.pid = is_mapper ? space->mapper_pid : space->pids[0];
        if (killing.waits) {
            assert_int_equal(pthread_create(&thread, NULL, kill_once, &killing), 0);
        } else {
            (void)kill_once(&killing);
            await_end(space->pidfds[0]); /* of a mapper's end, too */
        }
        assert_int_equal(run(), killing.waits ? NATIVE_LOST : NATIVE_GONE);
        assert_true(native->ops->is_lost(native->opaque, 0));
        assert_int_equal(run(), NATIVE_GONE);
        if (killing.waits) {
            assert_int_equal(pthread_join(thread, NULL), 0);
        }
        await_end(space->mapper_pidfd);
    }
    renew();
}

static void *change_late(void *opaque)
{
    const struct native_change change = {.va = DATA, .bytes = PAGE, .prot = PROT_READ};
    int *ret = opaque;

    *ret = native->ops->change(native->opaque, 0, &change, 1);
    return NULL;
}

/* A host that is short of memory kills one process, and not who waits for it. */
static void test_end_of_a_mapper_is_seen(void **state)
{
    const struct native_change change = {.va = DATA, .bytes = PAGE, .prot = PROT_READ};
    const struct spaces *spaces;
    pthread_t thread;
    int r = 0;

    (void)state;
    renew();
    spaces = native->opaque;
    (void)kill(spaces->space[0].mapper_pid, SIGSTOP);
    assert_int_equal(pthread_create(&thread, NULL, change_late, &r), 0);
    (void)kill(spaces->space[0].mapper_pid, SIGKILL);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(r, -EIO);
    assert_true(native->ops->is_lost(native->opaque, 0));
    assert_int_equal(native->ops->change(native->opaque, 0, &change, 1), -EIO);
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
        cmocka_unit_test(test_clear_beside_another_that_runs),
        cmocka_unit_test(test_starved_one_is_waited_for),
        cmocka_unit_test(test_end_of_a_space_is_seen),
        cmocka_unit_test(test_end_of_a_mapper_is_seen),
        cmocka_unit_test(test_end_is_seen_without_a_kick),
    };

    vcpu_count = argc > 1 ? (unsigned)atoi(argv[1]) : vcpu_count;
    return cmocka_run_group_tests(tests, native_rig_set_up, NULL);
}
