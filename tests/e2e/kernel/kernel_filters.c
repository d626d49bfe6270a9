/*
 * Classic BPF, which the kernel turns into eBPF and compiles: filters on a socket, whose packets
 * come through or do not, and seccomp filters in children, whose system calls fail as the filter says.
 */
#include "kernel_work.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    PACKETS = 32,
    PACKET = 24,
    CALLS = 64,
    FIRST_ERROR = 1000, /* errors that no system call gives of itself */
    ERROR_MASK = 1023,
};

/* Passes a packet whose two words at `at` give a number below `limit` modulo `modulus`. */
struct rule {
    uint32_t at;
    uint32_t modulus;
    uint32_t limit;
};

static bool rule_passes(const struct rule *rule, const uint8_t *packet)
{
    uint32_t words[2];

    memcpy(words, packet + rule->at, sizeof(words));
    return (__builtin_bswap32(words[0]) ^ __builtin_bswap32(words[1]) * 3) % rule->modulus <
           rule->limit;
}

static int rule_attach(const struct rule *rule, int fd)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, rule->at + 4),
        BPF_STMT(BPF_ALU | BPF_MUL | BPF_K, 3),
        BPF_STMT(BPF_MISC | BPF_TAX, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, rule->at),
        BPF_STMT(BPF_ALU | BPF_XOR | BPF_X, 0),
        BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, rule->modulus),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, rule->limit, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, 0xffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
}

/* Sends packets through a filter and checks which come out. */
static int filter_packets(const struct rule *rule, const int *ends, uint64_t *random)
{
    uint8_t sent[PACKET];
    uint8_t got[PACKET];

    for (unsigned int i = 0; i < PACKETS; i++) {
        ssize_t length;

        for (unsigned int byte = 0; byte < PACKET; byte++) {
            sent[byte] = (uint8_t)work_random(random);
        }
        /* A packet that the filter drops is an error to the sender on such sockets. */
        if (send(ends[0], sent, PACKET, MSG_DONTWAIT) < 0 && errno != EPERM) {
            perror("send");
            return 1;
        }
        length = recv(ends[1], got, PACKET, MSG_DONTWAIT);
        if (rule_passes(rule, sent) != (length == PACKET) ||
            (length == PACKET && memcmp(sent, got, PACKET) != 0)) {
            fprintf(stderr, "packet %u: %zd bytes came through\n", i, length);
            return 1;
        }
    }
    return 0;
}

static int check_socket(uint64_t *random)
{
    struct rule rule = {.at = (uint32_t)(work_random(random) % (PACKET - 8)),
                        .modulus = (uint32_t)(2 + work_random(random) % 1000)};
    int ends[2];
    int rc;

    rule.limit = (uint32_t)(work_random(random) % (rule.modulus + 1));
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0 || rule_attach(&rule, ends[1]) != 0) {
        perror("a filter could not be attached");
        return 1;
    }
    rc = filter_packets(&rule, ends, random);
    (void)close(ends[0]);
    (void)close(ends[1]);
    return rc;
}

/* getpriority(who) fails with a number made of `who`; everything else is allowed. */
static int forbid(uint32_t factor)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_ALU | BPF_MUL | BPF_K, factor),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ERROR_MASK),
        BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, FIRST_ERROR),
        BPF_STMT(BPF_ALU | BPF_OR | BPF_K, SECCOMP_RET_ERRNO),
        BPF_STMT(BPF_RET | BPF_A, 0),
    };
    struct sock_fprog program = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
               ? -1
               : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int run_forbidden(uint32_t factor)
{
    if (forbid(factor) != 0) {
        return 2;
    }
    for (uint32_t who = 0; who < CALLS; who++) {
        long rc = syscall(SYS_getpriority, 0, who);

        if (rc != -1 || (uint32_t)errno != FIRST_ERROR + ((who * factor) & ERROR_MASK) ||
            syscall(SYS_getppid) <= 0) {
            return 3;
        }
    }
    return 0;
}

static int check_seccomp(uint64_t *random)
{
    uint32_t factor = (uint32_t)(work_random(random) % 100000);
    int status = -1;
    pid_t child = fork();

    if (child == 0) {
        _exit(run_forbidden(factor));
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        fprintf(stderr, "a child with a filter ended with %#x (factor %u)\n", status, factor);
        return 1;
    }
    return 0;
}

int work_filters(uint64_t seed, unsigned int rounds)
{
    uint64_t random = seed;

    for (unsigned int i = 0; i < rounds; i++) {
        if (check_socket(&random) != 0 || check_seccomp(&random) != 0) {
            fprintf(stderr, "seed %llu, round %u\n", (unsigned long long)seed, i);
            return 1;
        }
    }
    printf("filters=%u\n", rounds);
    return 0;
}
