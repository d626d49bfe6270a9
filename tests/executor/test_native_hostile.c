/*
 * Code in a space (executor/native.h) that knows what lies beside it: it jumps into our code,
 * scribbles over its block and lies about having stopped.
 */
#include "native_rig.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STUB_TALLY 0
#define STUB_WAKE 1
#define STUB_MAP 3
#define STUB_CALLS 7 /* with the mapper's */

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
    assert_int_equal(left.reason, NATIVE_GONE);
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
    assert_int_equal(left.reason, NATIVE_GONE);
    renew();
}

/* ---- one vCPU: its runner maps ---- */

static bool is_mapped(uint64_t va)
{
    /* mov (%rdi),%al; syscall */
    memcpy(ram, (const uint8_t[]){0x8a, 0x07, 0x0f, 0x05}, 4);
    st.gpr[X86_RDI] = va;
    do {
        st.rip = CODE;
    } while (run() == NATIVE_KICK);
    assert_true(left.reason == NATIVE_SYSCALL || left.reason == NATIVE_FAULT);
    return left.reason == NATIVE_SYSCALL;
}

/* Without the key, the place from where it maps is one like any other. */
static void test_nobody_maps_without_the_key(void **state)
{
    /* incq (%rcx); jmp *%rbx */
    static const uint8_t code[] = {0x48, 0xff, 0x01, 0xff, 0xe3};
    const uint64_t there = CODE + 16ull * PAGE;
    volatile uint64_t *tries = (void *)(ram + PAGE);
    _Atomic bool stop;
    pthread_t kicks;

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        put(code, sizeof(code));
        *tries = 0;
        st.gpr[X86_RAX] = i % 2 == 0 ? SYS_mmap : SYS_munmap;
        st.gpr[X86_RBX] = stub_call(STUB_MAP) - (i / 2 == 0 ? 0 : 9); /* ... with or without `or` */
        st.gpr[X86_RCX] = DATA;
        st.gpr[X86_RDI] = i % 2 == 0 ? there : DATA;
        st.gpr[X86_RSI] = PAGE;
        st.gpr[X86_RDX] = PROT_READ | PROT_WRITE;
        st.gpr[X86_R10] = MAP_SHARED | MAP_FIXED;
        st.gpr[X86_R8] = NATIVE_RAM_FD;
        atomic_store(&stop, false);
        assert_int_equal(pthread_create(&kicks, NULL, kick_often, &stop), 0);
        while (*tries < 3) {
            assert_int_equal(run(), NATIVE_KICK);
        }
        atomic_store(&stop, true);
        assert_int_equal(pthread_join(kicks, NULL), 0);
        assert_false(native->ops->is_lost(native->opaque, 0));
        assert_false(is_mapped(there));
        assert_true(is_mapped(DATA));
    }
}

static void expect_no_key_in(const struct spaces *spaces, unsigned n)
{
    const uint8_t *block = spaces->space[n].blocks + NATIVE_BLOCK_BYTES;

    for (unsigned i = 0; i < NATIVE_KEY_WORDS; i++) {
        assert_null(memmem(block, NATIVE_BLOCK_BYTES, &spaces->space[n].key[i], sizeof(uint32_t)));
    }
}

static void expect_no_key(const struct spaces *spaces)
{
    expect_no_key_in(spaces, 0);
    for (unsigned i = 0; i < NATIVE_KEY_WORDS; i++) {
        for (unsigned reg = 0; reg < X86_GPR_COUNT; reg++) {
            assert_int_not_equal(st.gpr[reg] >> 32, spaces->space[0].key[i]);
        }
    }
}

/* Kicked at whichever change, it makes all of them and leaves the key nowhere. */
static void test_key_is_left_nowhere(void **state)
{
    /* mov (%rdi),%ebx; mov (%rsi),%ebp; syscall */
    static const uint8_t code[] = {0x8b, 0x1f, 0x8b, 0x2e, 0x0f, 0x05};
    const struct spaces *spaces = native->opaque;
    const struct native_runner *r = native_runner_at(spaces->space[0].blocks, 0);
    const uint64_t there = CODE + 16ull * PAGE;
    _Atomic bool stop = false;
    unsigned aborted = 0;
    pthread_t kicks;

    (void)state;
    if (spaces->vcpu_count != 1) {
        return;
    }
    put(code, sizeof(code));
    st.gpr[X86_RDI] = there;
    st.gpr[X86_RSI] = there + PAGE;
    assert_int_equal(pthread_create(&kicks, NULL, kick_often, &stop), 0);
    for (uint32_t i = 0; i < 2000 || aborted < 20; i++) {
        const struct native_change changes[] = {
            {.va = there, .bytes = PAGE, .offset = (2 + i % 8ull) * PAGE, .prot = PROT_READ},
            {.va = there + PAGE, .bytes = PAGE},
            {.va = there + PAGE,
             .bytes = PAGE,
             .offset = (10 + i % 8ull) * PAGE,
             .prot = PROT_READ},
        };

        memcpy(ram + changes[0].offset, &i, sizeof(i));
        memcpy(ram + changes[2].offset, &i, sizeof(i));
        if (i % 2 == 0) {
            (void)spin();
        }
        st.rip = CODE;
        native->ops->run(native->opaque, 0, 0, &st, changes, 3, &left);
        aborted += atomic_load(&r->word) == NATIVE_WORD_ABORTED ? 1 : 0;
        expect_no_key(spaces);
        while (left.reason == NATIVE_KICK) {
            (void)run();
            expect_no_key(spaces);
        }
        assert_int_equal(left.reason, NATIVE_SYSCALL);
        assert_int_equal(st.gpr[X86_RBX], i);
        assert_int_equal(st.gpr[X86_RBP], i);
    }
    atomic_store(&stop, true);
    assert_int_equal(pthread_join(kicks, NULL), 0);
}

/* Nor is it anywhere in a space in which nobody has run yet. */
static void test_key_is_nowhere_from_the_start(void **state)
{
    (void)state;
    renew();
    for (unsigned n = 0; n < native->space_count; n++) {
        expect_no_key_in(native->opaque, n);
    }
}

/*
 * He says that he has stopped when he has just added to his tally: what his stub writes behind that
 * takes the place of the order, and the key stays. Here the tally is added to for him, and
 * he waits for the order.
 */
static void test_who_overwrites_the_order_is_ended(void **state)
{
    /* movl $2,(%r9); 1: cmpl $3,(%r9); jne 1b; jmp *%rbx */
    static const uint8_t lie[] = {0x41, 0xc7, 0x01, NATIVE_WORD_STOPPED, 0,    0,    0,
                                  0x41, 0x83, 0x39, NATIVE_WORD_MAPPING, 0x75, 0xfa, 0xff,
                                  0xe3};
    const struct native_change change = {.va = DATA, .bytes = PAGE};
    const struct spaces *spaces;

    (void)state;
    if (vcpu_count != 1) {
        return;
    }
    renew();
    spaces = native->opaque;
    assert_int_equal(run_code((const uint8_t[]){0x0f, 0x05}, 2), NATIVE_SYSCALL);
    put(lie, sizeof(lie));
    st.gpr[X86_RBX] = own_block() + (uint64_t)(native_stub_counted - native_stub_start);
    st.gpr[X86_R9] = own_block() + NATIVE_PAGE_AT + NATIVE_R_WORD;
    (void)spin();
    (void)run();
    assert_int_equal(write(spaces->space[0].tally, native_stub_one, 8), 8);
    (void)spin();
    native->ops->run(native->opaque, 0, 0, &st, &change, 1, &left);
    expect_no_key_in(spaces, 0);
    assert_int_equal(left.reason, NATIVE_LOST);
    renew();
}

/* What is cleared is gone before anything runs there, and what is mapped then is there. */
static void test_clear_comes_before_what_runs_next(void **state)
{
    const struct native_change change = {
        .va = CODE, .bytes = PAGE, .offset = 0, .prot = PROT_READ | PROT_EXEC};

    (void)state;
    put((const uint8_t[]){0x8a, 0x07, 0x0f, 0x05}, 4);
    assert_true(is_mapped(DATA));
    assert_int_equal(native->ops->clear(native->opaque, 0), 0);
    st.rip = CODE;
    assert_int_equal(run(), NATIVE_FAULT);
    assert_int_equal(left.address, CODE);
    assert_int_equal(native->ops->clear(native->opaque, 0), 0);
    st.gpr[X86_RDI] = DATA;
    do {
        native->ops->run(native->opaque, 0, 0, &st, &change, 1, &left);
    } while (left.reason == NATIVE_KICK);
    assert_int_equal(left.reason, NATIVE_FAULT);
    assert_int_equal(left.address, DATA);
}

/* At an address where nothing can run, he does not keep what is taken away before. */
static void test_changes_are_made_wherever_he_is(void **state)
{
    const struct native_change change = {.va = DATA, .bytes = PAGE};

    (void)state;
    put((const uint8_t[]){0x8a, 0x07, 0x0f, 0x05}, 4);
    assert_true(is_mapped(DATA));
    st.rip = NATIVE_END;
    native->ops->run(native->opaque, 0, 0, &st, &change, 1, &left);
    assert_int_equal(left.reason, NATIVE_OTHER);
    assert_int_equal(st.rip, NATIVE_END);
    assert_false(is_mapped(DATA));
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

/* argv[1]: for how many vCPUs */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stub_gives_no_system_call),
        cmocka_unit_test(test_mapper_is_out_of_reach),
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
        cmocka_unit_test(test_nobody_maps_without_the_key),
        cmocka_unit_test(test_key_is_left_nowhere),
        cmocka_unit_test(test_key_is_nowhere_from_the_start),
        cmocka_unit_test(test_who_overwrites_the_order_is_ended),
        cmocka_unit_test(test_clear_comes_before_what_runs_next),
        cmocka_unit_test(test_changes_are_made_wherever_he_is),
        cmocka_unit_test(test_scribbler_loses_his_own_space),
    };

    vcpu_count = argc > 1 ? (unsigned)atoi(argv[1]) : vcpu_count;
    return cmocka_run_group_tests(tests, native_rig_set_up, NULL);
}
