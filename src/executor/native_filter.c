/* What is left to the threads of a space. See native.h. */
#include "executor/native.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DATA(field) ((uint32_t)offsetof(struct seccomp_data, field))
#define ARG(n) (DATA(args) + 8u * (n))
#define LOAD(at) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at)
#define EQUALS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

static int filter_set(struct sock_filter *code, unsigned short count)
{
    const struct sock_fprog program = {.len = count, .filter = code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return -errno;
    }
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0 ? 0 : -errno;
}

/* Instructions that a filter is put together of. */
struct program {
    struct sock_filter code[96];
    unsigned short len;
};

static void add(struct program *p, struct sock_filter instruction)
{
    if (p->len < ARRAY_LEN(p->code)) {
        p->code[p->len] = instruction;
    }
    p->len++; /* too many are refused in the end */
}

/* Another value there than this one is trapped; so the program may be read line by line. */
static void expect(struct program *p, uint32_t at, uint32_t value)
{
    add(p, (struct sock_filter)LOAD(at));
    add(p, (struct sock_filter)EQUALS(value, 1, 0));
    add(p, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
}

/* Behind the system call at that place: expects() up to end_place(). */
static unsigned short begin_place(struct program *p, uint32_t instruction_pointer)
{
    add(p, (struct sock_filter)LOAD(DATA(instruction_pointer)));
    add(p, (struct sock_filter)EQUALS(instruction_pointer, 0, 0));
    return p->len;
}

static void end_place(struct program *p, unsigned short begin)
{
    add(p, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
    if (p->len <= ARRAY_LEN(p->code)) {
        p->code[begin - 1].jf = (uint8_t)(p->len - begin);
    }
}

static void expect_pointer(struct program *p, unsigned arg, uint64_t value)
{
    expect(p, ARG(arg), (uint32_t)value);
    expect(p, ARG(arg) + 4, (uint32_t)(value >> 32));
}

/*
 * The guest's system calls become signals; the stub's own may wake who waits for the runner's word,
 * and wait for that, until somebody else wakes it: who is found there stays there. Where it is the
 * only one it may add one to its tally, too, and map, with the key, of which an int's upper half
 * has no other use. Each at its place only: what follows there is the stub's.
 */
int native_filter_runner(uintptr_t block, const uint32_t *key)
{
#define PLACE(label) ((uint32_t)block + (uint32_t)((label)-native_stub_start))
    const uint64_t word = block + NATIVE_PAGE_AT + NATIVE_R_WORD;
    const uint64_t one = block + (uint64_t)(native_stub_one - native_stub_start);
    struct program p = {.len = 0};
    unsigned short place;

    expect(&p, DATA(arch), AUDIT_ARCH_X86_64);
    expect(&p, DATA(instruction_pointer) + 4, (uint32_t)(block >> 32));
    if (key != NULL) {
        place = begin_place(&p, PLACE(native_stub_counted));
        expect(&p, DATA(nr), SYS_write);
        expect(&p, ARG(0), NATIVE_TALLY_FD);
        expect_pointer(&p, 1, one);
        expect(&p, ARG(2), sizeof(uint64_t));
        end_place(&p, place);
        place = begin_place(&p, PLACE(native_stub_mapped));
        expect(&p, ARG(2) + 4, key[0]);
        expect(&p, ARG(3) + 4, key[1]);
        expect(&p, ARG(4) + 4, key[2]);
        add(&p, (struct sock_filter)LOAD(DATA(nr)));
        add(&p, (struct sock_filter)EQUALS(SYS_mmap, 2, 0));
        add(&p, (struct sock_filter)EQUALS(SYS_munmap, 1, 0));
        add(&p, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
        end_place(&p, place);
    }
    place = begin_place(&p, PLACE(native_stub_woken));
    expect(&p, DATA(nr), SYS_futex);
    expect_pointer(&p, 0, word);
    expect(&p, ARG(1), FUTEX_WAKE);
    end_place(&p, place);
    place = begin_place(&p, PLACE(native_stub_slept));
    expect(&p, DATA(nr), SYS_futex);
    expect_pointer(&p, 0, word);
    expect(&p, ARG(1), FUTEX_WAIT);
    expect_pointer(&p, 3, 0);
    end_place(&p, place);
    add(&p, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
    return p.len <= ARRAY_LEN(p.code) ? filter_set(p.code, p.len) : -E2BIG;
#undef PLACE
}

/* Guest memory at fixed places; its registers are nobody else's, so this is a second wall. */
int native_filter_mapper(void)
{
    struct sock_filter code[] = {
        LOAD(DATA(arch)),
        EQUALS(AUDIT_ARCH_X86_64, 0, 14),
        LOAD(DATA(nr)),
        EQUALS(SYS_munmap, 11, 0),
        EQUALS(SYS_futex, 10, 0),
        EQUALS(SYS_write, 0, 2),
        LOAD(ARG(0)),
        EQUALS(NATIVE_BELL_FD, 7, 8),
        EQUALS(SYS_mmap, 0, 7),
        LOAD(ARG(4)),
        EQUALS(NATIVE_COPY_FD, 1, 0),
        EQUALS(NATIVE_RAM_FD, 0, 4),
        LOAD(ARG(3)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~(uint32_t)MAP_POPULATE),
        EQUALS(MAP_SHARED | MAP_FIXED, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(SECCOMP_RET_KILL_PROCESS),
    };

    return filter_set(code, ARRAY_LEN(code));
}
