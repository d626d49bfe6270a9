/*
 * The first instructions of the executor, before the C library's. The kernel has
 * put a stack, the vdso and its data at the top of the address space, which
 * belongs to the guest (engine/layout.h): the stack is made anew below, with
 * what the C library needs of the old one, and all that lies above is unmapped.
 * Without the vdso's address in the auxiliary vector the C library makes system
 * calls for the time.
 *
 * No C library here: no TLS yet, so no stack protector either.
 */
#include "engine/layout.h"

#include <elf.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define STACK_BYTES (256u << 10)
#define RANDOM_BYTES 16u
#define AUX_MAX 40u
#define EXIT_STATUS 120

/* What the C library finds at its start: argc, argv, envp, auxv (psABI 3.4.1). */
struct first_words {
    uint64_t argc;
    const char *argv[2];
    const char *envp[1];
    Elf64_auxv_t aux[AUX_MAX];
    uint8_t random[RANDOM_BYTES];
    char name[16];
};

void executor_entry(void);
uint64_t executor_entry_stack(const uint64_t *old);

__asm__(".globl executor_entry\n"
        ".type executor_entry, @function\n"
        "executor_entry:\n\t"
        "mov %rsp, %rdi\n\t"
        "and $-16, %rsp\n\t"
        "call executor_entry_stack\n\t"
        "mov %rax, %rsp\n\t"
        "mov $11, %eax\n\t" /* munmap(LAYOUT_END ... LAYOUT_WINDOW_END) */
        "mov $0x80000000000, %rdi\n\t"
        "mov $0x7ffffffff000 - 0x80000000000, %rsi\n\t"
        "syscall\n\t"
        "test %rax, %rax\n\t"
        "jnz 1f\n\t"
        "xor %edx, %edx\n\t"
        "xor %ebp, %ebp\n\t"
        "jmp _start\n"
        "1:\n\t"
        "mov $231, %eax\n\t" /* exit_group */
        "mov $120, %edi\n\t"
        "syscall\n\t"
        "ud2\n\t"
        ".size executor_entry, . - executor_entry\n");
_Static_assert(LAYOUT_END == 0x80000000000 && LAYOUT_WINDOW_END == 0x7ffffffff000 &&
                   SYS_munmap == 11 && SYS_exit_group == 231 && EXIT_STATUS == 120,
               "as the instructions say");

static uint64_t call(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = 0;
    uint64_t result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* Entries that do not point to what goes away. */
static unsigned copy_aux(const Elf64_auxv_t *from, struct first_words *to)
{
    unsigned count = 0;

    for (; from->a_type != AT_NULL && count < AUX_MAX - 2; from++) {
        switch (from->a_type) {
        case AT_SYSINFO_EHDR:
        case AT_EXECFN:
        case AT_PLATFORM:
        case AT_BASE_PLATFORM:
            break;
        case AT_RANDOM: {
            const uint8_t *random = (const uint8_t *)from->a_un.a_val;

            for (unsigned i = 0; i < RANDOM_BYTES; i++) {
                to->random[i] = random[i];
            }
            to->aux[count].a_type = AT_RANDOM;
            to->aux[count++].a_un.a_val = (uint64_t)to->random;
            break;
        }
        default:
            to->aux[count++] = *from;
            break;
        }
    }
    to->aux[count].a_type = AT_NULL;
    return count;
}

__attribute__((used)) uint64_t executor_entry_stack(const uint64_t *old)
{
    static const char name[] = "executor";
    uint64_t words = old[0] + 2; /* argc, argv and its NULL */
    uint64_t stack = call(SYS_mmap, LAYOUT_STACKS, STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1);
    struct first_words *to =
        (struct first_words *)((stack + STACK_BYTES - sizeof(*to)) & ~(uint64_t)63);

    if (stack != LAYOUT_STACKS) {
        (void)call(SYS_exit_group, EXIT_STATUS, 0, 0, 0, 0);
    }
    while (old[words] != 0) { /* envp */
        words++;
    }
    to->argc = 1;
    for (unsigned i = 0; i < sizeof(name); i++) {
        to->name[i] = name[i];
    }
    to->argv[0] = to->name;
    to->argv[1] = NULL;
    to->envp[0] = NULL;
    (void)copy_aux((const Elf64_auxv_t *)(const void *)&old[words + 1], to);
    return (uint64_t)to;
}
