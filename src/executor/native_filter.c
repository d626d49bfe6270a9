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

/* The guest's system calls become signals; the stub's own may wake who waits for the runner's word,
 * and wait for that, until somebody else wakes it: who is found there stays there. And add
 * one to the tally. Each at its place only: what follows there is the stub's wait. */
int native_filter_runner(uintptr_t block)
{
    const uint32_t word = (uint32_t)block + NATIVE_PAGE_AT + NATIVE_R_WORD;
    const uint32_t one = (uint32_t)block + (uint32_t)(native_stub_one - native_stub_start);
    const uint32_t counted = (uint32_t)block + (uint32_t)(native_stub_counted - native_stub_start);
    const uint32_t woken = (uint32_t)block + (uint32_t)(native_stub_woken - native_stub_start);
    const uint32_t slept = (uint32_t)block + (uint32_t)(native_stub_slept - native_stub_start);
    struct sock_filter code[] = {
        LOAD(DATA(arch)),
        EQUALS(AUDIT_ARCH_X86_64, 0, 33),
        LOAD(DATA(instruction_pointer) + 4),
        EQUALS((uint32_t)(block >> 32), 0, 31),
        LOAD(DATA(instruction_pointer)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~0xfffu),
        EQUALS((uint32_t)block, 0, 28),
        LOAD(DATA(nr)),
        EQUALS(SYS_write, 15, 0),
        EQUALS(SYS_futex, 0, 25),
        LOAD(DATA(instruction_pointer)),
        EQUALS(woken, 1, 0),
        EQUALS(slept, 0, 22),
        LOAD(ARG(0)),
        EQUALS(word, 0, 20),
        LOAD(ARG(0) + 4),
        EQUALS((uint32_t)(block >> 32), 0, 18),
        LOAD(ARG(1)),
        EQUALS(FUTEX_WAKE, 15, 0),
        EQUALS(FUTEX_WAIT, 0, 15),
        LOAD(ARG(3)),
        EQUALS(0, 0, 13),
        LOAD(ARG(3) + 4),
        EQUALS(0, 10, 11),
        LOAD(DATA(instruction_pointer)),
        EQUALS(counted, 0, 9),
        LOAD(ARG(0)),
        EQUALS(NATIVE_TALLY_FD, 0, 7),
        LOAD(ARG(1)),
        EQUALS(one, 0, 5),
        LOAD(ARG(1) + 4),
        EQUALS((uint32_t)(block >> 32), 0, 3),
        LOAD(ARG(2)),
        EQUALS(8, 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(SECCOMP_RET_TRAP),
    };

    return filter_set(code, ARRAY_LEN(code));
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
