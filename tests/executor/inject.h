/* What test_executor asks of the code that it puts into an executor (inject.c). */
#ifndef CORBEL_TEST_INJECT_H
#define CORBEL_TEST_INJECT_H

#include <stdint.h>

#define INJECT_GPA 0x2000u /* in guest memory */

enum inject_op {
    INJECT_NOTHING,
    INJECT_CODE,     /* machine code with these registers */
    INJECT_SCRIBBLE, /* random bytes into all that the monitor reads, answers among them */
    INJECT_NEVER     /* no answer, ever */
};

struct inject {
    uint32_t op;
    uint32_t code_bytes;
    uint64_t rax, rdi, rsi, rdx, r10, r8, r9;
    uint64_t result; /* RAX afterwards */
    uint8_t code[512];
};

#endif
