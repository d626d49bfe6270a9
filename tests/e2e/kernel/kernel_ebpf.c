/*
 * Random eBPF programs: straight lines of arithmetic, stack accesses and atomics with short forward
 * jumps. The kernel compiles each with its JIT and runs it on a packet of ours; a model here computes
 * what it must return.
 */
#include "kernel_work.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    ETHERNET = 14, /* bytes of a packet that the program does not see */
    PACKET = 96,
    LENGTH = 120, /* random instructions of a program */
    PROGRAM_MAX = LENGTH + 64,
    SLOTS = 8, /* 64-bit words of its stack */
    REGISTERS = 10,
    RUNS = 4, /* packets per program */
};

struct program {
    struct bpf_insn insns[PROGRAM_MAX];
    unsigned int count;
};

struct machine {
    uint64_t regs[REGISTERS];
    uint64_t stack[SLOTS];
};

static void emit(struct program *p, uint8_t code, unsigned int dst, unsigned int src, int off,
                 int32_t imm)
{
    p->insns[p->count++] = (struct bpf_insn){
        .code = code, .dst_reg = dst & 15, .src_reg = src & 15, .off = (int16_t)off, .imm = imm};
}

static unsigned int some_register(uint64_t *random)
{
    return (unsigned int)(work_random(random) % REGISTERS);
}

static int16_t slot_offset(unsigned int slot)
{
    return (int16_t)(-8 * (int)(slot + 1));
}

/* Fills the stack and all registers from the packet, so that the verifier knows none of them. */
static void emit_prologue(struct program *p)
{
    emit(p, BPF_ALU64 | BPF_MOV | BPF_X, 6, 1, 0, 0);
    for (unsigned int slot = 0; slot < SLOTS; slot++) {
        emit(p, BPF_LD | BPF_ABS | BPF_W, 0, 0, 0, (int32_t)(slot * 8));
        emit(p, BPF_STX | BPF_MEM | BPF_W, 10, 0, slot_offset(slot), 0);
        emit(p, BPF_LD | BPF_ABS | BPF_W, 0, 0, 0, (int32_t)(slot * 8 + 4));
        emit(p, BPF_STX | BPF_MEM | BPF_W, 10, 0, slot_offset(slot) + 4, 0);
    }
    for (unsigned int reg = 0; reg < REGISTERS; reg++) {
        emit(p, BPF_LDX | BPF_MEM | BPF_DW, reg, 10, slot_offset(reg % SLOTS), 0);
    }
}

/* r0 = all registers and the stack, folded. */
static void emit_epilogue(struct program *p)
{
    for (unsigned int reg = 1; reg < REGISTERS; reg++) {
        emit(p, BPF_ALU64 | BPF_XOR | BPF_X, 0, reg, 0, 0);
        emit(p, BPF_ALU64 | BPF_MUL | BPF_K, 0, 0, 0, 0x01000193);
    }
    for (unsigned int slot = 0; slot < SLOTS; slot++) {
        emit(p, BPF_LDX | BPF_MEM | BPF_DW, 1, 10, slot_offset(slot), 0);
        emit(p, BPF_ALU64 | BPF_XOR | BPF_X, 0, 1, 0, 0);
        emit(p, BPF_ALU64 | BPF_MUL | BPF_K, 0, 0, 0, 0x01000193);
    }
    emit(p, BPF_ALU64 | BPF_MOV | BPF_X, 1, 0, 0, 0);
    emit(p, BPF_ALU64 | BPF_RSH | BPF_K, 1, 0, 0, 32);
    emit(p, BPF_ALU64 | BPF_XOR | BPF_X, 0, 1, 0, 0);
    emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static void emit_arithmetic(struct program *p, uint64_t *random)
{
    static const uint8_t ops[] = {BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_OR,   BPF_AND, BPF_LSH,
                                  BPF_RSH, BPF_NEG, BPF_MOD, BPF_XOR, BPF_ARSH, BPF_MOV};
    uint8_t op = ops[work_random(random) % sizeof(ops)];
    uint8_t class = work_random(random) % 2 == 0 ? BPF_ALU64 : BPF_ALU;
    unsigned int dst = some_register(random);
    unsigned int src = some_register(random);
    bool is_shift = op == BPF_LSH || op == BPF_RSH || op == BPF_ARSH;
    int32_t imm = (int32_t)work_random(random);

    if (op == BPF_NEG) {
        emit(p, class | op, dst, 0, 0, 0);
    } else if (work_random(random) % 2 == 0) {
        if (is_shift) { /* beyond the width a shift is undefined */
            emit(p, BPF_ALU64 | BPF_AND | BPF_K, src, 0, 0, class == BPF_ALU64 ? 63 : 31);
        }
        emit(p, class | op | BPF_X, dst, src, 0, 0);
    } else {
        if (is_shift) {
            imm &= class == BPF_ALU64 ? 63 : 31;
        }
        if ((op == BPF_DIV || op == BPF_MOD) && imm == 0) {
            imm = 7;
        }
        emit(p, class | op | BPF_K, dst, 0, 0, imm);
    }
}

static void emit_memory(struct program *p, uint64_t *random)
{
    static const uint8_t sizes[] = {BPF_B, BPF_H, BPF_W, BPF_DW};
    static const int bytes[] = {1, 2, 4, 8};
    static const int32_t atomics[] = {BPF_ADD,
                                      BPF_AND,
                                      BPF_OR,
                                      BPF_XOR,
                                      BPF_ADD | BPF_FETCH,
                                      BPF_AND | BPF_FETCH,
                                      BPF_OR | BPF_FETCH,
                                      BPF_XOR | BPF_FETCH,
                                      BPF_XCHG,
                                      BPF_CMPXCHG};
    unsigned int size = work_random(random) % 4;
    unsigned int slot = work_random(random) % SLOTS;
    unsigned int reg = some_register(random);
    int inside = (int)(work_random(random) % (8 / (unsigned int)bytes[size])) * bytes[size];
    int offset = slot_offset(slot) + inside;

    switch (work_random(random) % 4) {
    case 0:
        emit(p, BPF_LDX | BPF_MEM | sizes[size], reg, 10, offset, 0);
        break;
    case 1:
        emit(p, BPF_STX | BPF_MEM | sizes[size], 10, reg, offset, 0);
        break;
    case 2:
        emit(p, BPF_ST | BPF_MEM | sizes[size], 10, 0, offset, (int32_t)work_random(random));
        break;
    default:
        if (size < 2) { /* atomics are of 4 and 8 bytes */
            size += 2;
            offset = slot_offset(slot);
        }
        emit(p, BPF_STX | BPF_ATOMIC | sizes[size], 10, reg, offset,
             atomics[work_random(random) % (sizeof(atomics) / sizeof(atomics[0]))]);
        break;
    }
}

/* A jump over the next instruction, which has no part of its own before it. */
static void emit_jump(struct program *p, uint64_t *random)
{
    static const uint8_t ops[] = {BPF_JEQ, BPF_JGT,  BPF_JGE,  BPF_JSET, BPF_JNE, BPF_JSGT,
                                  BPF_JLT, BPF_JSGE, BPF_JSLT, BPF_JSLE, BPF_JLE};
    uint8_t op = ops[work_random(random) % sizeof(ops)];
    uint8_t class = work_random(random) % 2 == 0 ? BPF_JMP : BPF_JMP32;
    unsigned int dst = some_register(random);

    if (work_random(random) % 2 == 0) {
        emit(p, class | op | BPF_X, dst, some_register(random), 1, 0);
    } else {
        emit(p, class | op | BPF_K, dst, 0, 1, (int32_t)work_random(random));
    }
    emit(p, BPF_ALU64 | BPF_XOR | BPF_K, some_register(random), 0, 0, (int32_t)work_random(random));
}

static void make_program(struct program *p, uint64_t *random)
{
    static const int32_t widths[] = {16, 32, 64};

    p->count = 0;
    emit_prologue(p);
    /* A step is two instructions at most. */
    while (p->count < LENGTH) {
        switch (work_random(random) % 8) {
        case 0:
        case 1:
            emit_memory(p, random);
            break;
        case 2:
            emit_jump(p, random);
            break;
        case 3:
            emit(p, BPF_ALU | BPF_END | (work_random(random) % 2 == 0 ? BPF_TO_BE : BPF_TO_LE),
                 some_register(random), 0, 0, widths[work_random(random) % 3]);
            break;
        default:
            emit_arithmetic(p, random);
            break;
        }
    }
    emit_epilogue(p);
}

static uint64_t model_divide(uint8_t op, uint64_t a, uint64_t b)
{
    if (op == BPF_DIV) {
        return b == 0 ? 0 : a / b;
    }
    return b == 0 ? a : a % b;
}

static uint64_t model_alu64(uint8_t op, uint64_t a, uint64_t b)
{
    switch (op) {
    case BPF_ADD:
        return a + b;
    case BPF_SUB:
        return a - b;
    case BPF_MUL:
        return a * b;
    case BPF_OR:
        return a | b;
    case BPF_AND:
        return a & b;
    case BPF_LSH:
        return a << (b & 63);
    case BPF_RSH:
        return a >> (b & 63);
    case BPF_NEG:
        return -a;
    case BPF_XOR:
        return a ^ b;
    case BPF_ARSH:
        return (uint64_t)((int64_t)a >> (b & 63));
    case BPF_MOV:
        return b;
    default:
        return model_divide(op, a, b);
    }
}

static uint64_t model_alu32(uint8_t op, uint64_t a, uint64_t b)
{
    if (op == BPF_ARSH) {
        return (uint32_t)((int32_t)a >> (b & 31));
    }
    return (uint32_t)model_alu64(op, (uint32_t)a, (uint32_t)b);
}

static uint64_t model_swap(bool big, int32_t width, uint64_t a)
{
    switch (width) {
    case 16:
        return big ? __builtin_bswap16((uint16_t)a) : (uint16_t)a;
    case 32:
        return big ? __builtin_bswap32((uint32_t)a) : (uint32_t)a;
    default:
        return big ? __builtin_bswap64(a) : a;
    }
}

static bool model_compare_signed(uint8_t op, int64_t a, int64_t b)
{
    switch (op) {
    case BPF_JSGT:
        return a > b;
    case BPF_JSGE:
        return a >= b;
    case BPF_JSLT:
        return a < b;
    default:
        return a <= b;
    }
}

static bool model_compare(uint8_t op, bool narrow, uint64_t a, uint64_t b)
{
    if (narrow) {
        a = (uint32_t)a;
        b = (uint32_t)b;
    }
    switch (op) {
    case BPF_JEQ:
        return a == b;
    case BPF_JGT:
        return a > b;
    case BPF_JGE:
        return a >= b;
    case BPF_JSET:
        return (a & b) != 0;
    case BPF_JNE:
        return a != b;
    case BPF_JLT:
        return a < b;
    case BPF_JLE:
        return a <= b;
    default:
        return narrow ? model_compare_signed(op, (int32_t)a, (int32_t)b)
                      : model_compare_signed(op, (int64_t)a, (int64_t)b);
    }
}

static unsigned int access_bytes(uint8_t code)
{
    switch (BPF_SIZE(code)) {
    case BPF_B:
        return 1;
    case BPF_H:
        return 2;
    case BPF_W:
        return 4;
    default:
        return 8;
    }
}

static void model_atomic(struct machine *m, const struct bpf_insn *insn, uint8_t *place)
{
    unsigned int bytes = access_bytes(insn->code);
    uint64_t mask = bytes == 8 ? UINT64_MAX : UINT32_MAX;
    uint64_t src = m->regs[insn->src_reg] & mask;
    uint64_t old = 0;
    uint64_t new = 0;

    memcpy(&old, place, bytes);
    if (insn->imm == BPF_CMPXCHG) {
        new = old == (m->regs[0] & mask) ? src : old;
        m->regs[0] = old;
    } else if (insn->imm == BPF_XCHG) {
        new = src;
        m->regs[insn->src_reg] = old;
    } else {
        new = model_alu64((uint8_t)(insn->imm & 0xf0), old, src) & mask;
        if ((insn->imm & BPF_FETCH) != 0) {
            m->regs[insn->src_reg] = old;
        }
    }
    memcpy(place, &new, bytes);
}

static uint8_t *model_place(struct machine *m, int16_t offset)
{
    /* The stack grows down: slot 0 is the highest word. */
    unsigned int slot = (unsigned int)(-offset - 1) / 8;

    return (uint8_t *)&m->stack[slot] + (offset + 8 * (int)(slot + 1));
}

static void model_memory(struct machine *m, const struct bpf_insn *insn)
{
    unsigned int bytes = access_bytes(insn->code);
    uint8_t *place = model_place(m, insn->off);
    uint64_t value = (uint64_t)(int64_t)insn->imm;

    if (BPF_CLASS(insn->code) == BPF_LDX) {
        value = 0;
        memcpy(&value, place, bytes);
        m->regs[insn->dst_reg] = value;
    } else if (BPF_MODE(insn->code) == BPF_ATOMIC) {
        model_atomic(m, insn, place);
    } else {
        if (BPF_CLASS(insn->code) == BPF_STX) {
            value = m->regs[insn->src_reg];
        }
        memcpy(place, &value, bytes);
    }
}

/* One instruction; how many the next one is away. */
static unsigned int model_step(struct machine *m, const struct bpf_insn *insn,
                               const uint8_t *packet)
{
    uint64_t source =
        BPF_SRC(insn->code) == BPF_X ? m->regs[insn->src_reg] : (uint64_t)(int64_t)insn->imm;
    uint64_t *dst = &m->regs[insn->dst_reg % REGISTERS];
    uint8_t op = BPF_OP(insn->code);
    uint32_t word;

    switch (BPF_CLASS(insn->code)) {
    case BPF_ALU64:
        *dst = model_alu64(op, *dst, source);
        return 1;
    case BPF_ALU:
        *dst = op == BPF_END ? model_swap(BPF_SRC(insn->code) == BPF_TO_BE, insn->imm, *dst)
                             : model_alu32(op, *dst, source);
        return 1;
    case BPF_LD:
        memcpy(&word, packet + ETHERNET + insn->imm, sizeof(word));
        m->regs[0] = __builtin_bswap32(word);
        return 1;
    case BPF_JMP:
    case BPF_JMP32:
        return model_compare(op, BPF_CLASS(insn->code) == BPF_JMP32, *dst, source)
                   ? 1 + (unsigned int)insn->off
                   : 1;
    default:
        model_memory(m, insn);
        return 1;
    }
}

static uint32_t model_run(const struct program *p, const uint8_t *packet)
{
    struct machine m = {0};
    unsigned int at = 0;

    while (p->insns[at].code != (BPF_JMP | BPF_EXIT)) {
        at += model_step(&m, &p->insns[at], packet);
    }
    return (uint32_t)m.regs[0];
}

static int load(const struct program *p)
{
    static char log[65536];
    union bpf_attr attr = {
        .prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
        .insn_cnt = p->count,
        .insns = (uintptr_t)p->insns,
        .license = (uintptr_t) "GPL",
    };
    long fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));

    if (fd < 0) {
        int error = errno;

        attr.log_buf = (uintptr_t)log;
        attr.log_size = sizeof(log);
        attr.log_level = 1;
        (void)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
        fprintf(stderr, "a program was refused: %s\n%s\n", strerror(error),
                strlen(log) > 2000 ? log + strlen(log) - 2000 : log);
    }
    return (int)fd;
}

static bool is_compiled(int fd)
{
    struct bpf_prog_info info = {0};
    union bpf_attr attr = {
        .info = {.bpf_fd = (uint32_t)fd, .info_len = sizeof(info), .info = (uintptr_t)&info}};

    return syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)) == 0 &&
           info.jited_prog_len != 0;
}

static int run_on_packets(const struct program *p, int fd, uint64_t *random)
{
    uint8_t packet[PACKET];

    for (unsigned int run = 0; run < RUNS; run++) {
        uint32_t expected;
        union bpf_attr attr = {.test = {.prog_fd = (uint32_t)fd,
                                        .data_size_in = PACKET,
                                        .data_in = (uintptr_t)packet,
                                        .repeat = 3}};

        for (unsigned int i = 0; i < PACKET; i++) {
            /* Long runs of one byte make small numbers, carries and equal registers likelier. */
            packet[i] = run % 2 == 0 ? (uint8_t)work_random(random) : (uint8_t) - (i / 11 % 2);
        }
        expected = model_run(p, packet);
        if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)) != 0) {
            fprintf(stderr, "a program did not run: %s\n", strerror(errno));
            return 1;
        }
        if (attr.test.retval != expected) {
            fprintf(stderr, "a program returned %#x, the model %#x\n", attr.test.retval, expected);
            return 1;
        }
    }
    return 0;
}

int work_ebpf(uint64_t seed, unsigned int programs)
{
    static struct program p;
    uint64_t random = seed;
    unsigned int compiled = 0;

    for (unsigned int i = 0; i < programs; i++) {
        int fd;
        int rc;

        make_program(&p, &random);
        fd = load(&p);
        if (fd < 0) {
            return 1;
        }
        compiled += is_compiled(fd);
        rc = run_on_packets(&p, fd, &random);
        (void)close(fd);
        if (rc != 0) {
            fprintf(stderr, "seed %llu, program %u\n", (unsigned long long)seed, i);
            return 1;
        }
    }
    if (compiled != programs) {
        fprintf(stderr, "the JIT compiled %u of %u programs\n", compiled, programs);
        return 1;
    }
    printf("programs=%u\n", programs);
    return 0;
}
