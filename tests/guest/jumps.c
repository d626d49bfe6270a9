/*
 * Calls, returns and jumps through registers, as a kernel and as a program: flags and registers
 * that outlive them, and returns to where nobody expects one, or to code that is another by then.
 */
#include "guest.h"

#define CODE 0x3100000ull
#define PAGE_BEFORE 0x3110000ull
#define PAGE_AFTER 0x3111000ull

uint64_t jumps_flags(void);
uint64_t jumps_deep(void);
uint64_t jumps_skip(void);
uint64_t jumps_away(void);
void user_flags(void);
void user_deep(void);
void user_skip(void);
void user_away(void);
uint64_t call_in(uint64_t code, void (*callee)(void));
void set_carry_after_change(void);
void change(void);

/* clang-format off */
__asm__(
    ".text\n"
    /* Flags set by a callee in another page, and before a jump through a register. */
    ".align 4096\n"
    "jumps_flags:\n"
    "    push %rbx\n"
    "    xor %r8d, %r8d\n"
    "    xor %r10d, %r10d\n"
    "    mov $7, %r11d\n"
    "    mov $1, %r9d\n"
    "    mov $5000, %ecx\n"
    "    movabs $0x9e3779b97f4a7c15, %rdx\n"
    "    lea 3f(%rip), %rsi\n"
    "1:  imul %rdx, %r9\n"
    "    call 4f\n"
    "    lahf\n"
    "    seto %al\n"
    "    movzwl %ax, %eax\n"
    "    add %rax, %r8\n"
    "    rol $7, %r8\n"
    "    lea 1(%r10), %r10\n"
    "    lea 3(%r11), %r11\n"
    "    cmp %r9d, %ecx\n"
    "    jmp *%rsi\n"
    "2:  dec %ecx\n"
    "    jnz 1b\n"
    "    lea (%r8, %r10), %rax\n"
    "    lea (%rax, %r11), %rax\n"
    "    pop %rbx\n"
    "    ret\n"
    ".align 4096\n"
    "3:  adc $0, %r8\n"
    "    lea 2b(%rip), %rax\n"
    "    jmp *%rax\n"
    "4:  mov %r9, %rax\n"
    "    lea 5f(%rip), %rbx\n"
    "    add %r9, %rax\n"
    "    jmp *%rbx\n"
    "5:  ret\n"
    /* Far more calls than any return stack holds, so deep that frames lie in several pages. */
    "jumps_deep:\n"
    "    mov $600, %edi\n"
    "6:  xor %eax, %eax\n"
    "    test %edi, %edi\n"
    "    jz 7f\n"
    "    push %rdi\n"
    "    dec %edi\n"
    "    call 6b\n"
    "    pop %rdi\n"
    "    lea (%rax, %rax, 2), %rax\n"
    "    add %rdi, %rax\n"
    "7:  ret\n"
    /* The callee returns behind the caller's next instruction every other time. */
    "jumps_skip:\n"
    "    xor %eax, %eax\n"
    "    mov $3000, %ecx\n"
    "8:  call 9f\n"
    "    add $0x100000, %rax\n"
    "    add $1, %rax\n"
    "    dec %ecx\n"
    "    jnz 8b\n"
    "    ret\n"
    "9:  test $1, %ecx\n"
    "    jz 10f\n"
    "    addq $6, (%rsp)\n"
    "10: ret\n"
    /* Out of nested calls at once, as longjmp() does. */
    "jumps_away:\n"
    "    push %rbx\n"
    "    xor %eax, %eax\n"
    "    mov $2000, %ecx\n"
    "11: mov %rsp, %rbx\n"
    "    call 12f\n"
    "    add $0x100000, %rax\n"
    "15: dec %ecx\n"
    "    jnz 11b\n"
    "    pop %rbx\n"
    "    ret\n"
    "12: call 13f\n"
    "    add $0x100, %rax\n"
    "    ret\n"
    "13: call 14f\n"
    "    add $1, %rax\n"
    "    ret\n"
    "14: test $3, %ecx\n"
    "    jnz 16f\n"
    "    mov %rbx, %rsp\n"
    "    jmp 15b\n"
    "16: ret\n"
    "user_flags: call jumps_flags\n    " USER_RETURN "\n"
    "user_deep: call jumps_deep\n    " USER_RETURN "\n"
    "user_skip: call jumps_skip\n    " USER_RETURN "\n"
    "user_away: call jumps_away\n    " USER_RETURN "\n"
    /* Calls code that calls callee, which changes what it returns to and then sets CF. */
    "call_in:\n"
    "    push %rbx\n"
    "    mov %rsi, %rbx\n"
    "    call *%rdi\n"
    "    pop %rbx\n"
    "    ret\n"
    "set_carry_after_change:\n"
    "    push %rbp\n"
    "    call change\n"
    "    pop %rbp\n"
    "    stc\n"
    "    ret\n");
/* clang-format on */

static unsigned round_number;
static void (*changer)(void);

void change(void)
{
    changer();
}

/* call *%rbx; then six bytes; ret */
static void write_code(uint64_t at, bool reads_flags)
{
    static const uint8_t forget[6] = {0x31, 0xc0, 0x90, 0x90, 0x90, 0x90}; /* xor %eax, %eax */
    static const uint8_t carry[6] = {0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0};  /* setc; movzx */
    volatile uint8_t *code = (volatile uint8_t *)at;

    code[0] = 0xff;
    code[1] = 0xd3;
    for (unsigned i = 0; i < 6; i++) {
        code[2 + i] = reads_flags ? carry[i] : forget[i];
    }
    code[8] = 0xc3;
}

static void rewrite(void)
{
    write_code(CODE, (round_number & 1) != 0);
}

/* The other frame, by INVLPG or by loading CR3. */
static void remap(void)
{
    uint64_t to = (round_number & 1) != 0 ? PAGE_AFTER : PAGE_BEFORE;

    *page_entry(CODE) = (*page_entry(CODE) & 0xfff) | to;
    if ((round_number & 2) != 0) {
        invlpg(CODE);
    } else {
        write_cr3(read_cr3());
    }
}

static bool change_rounds(void (*by)(void))
{
    bool good = true;

    changer = by;
    for (round_number = 0; round_number < 400; round_number++) {
        good = good && call_in(CODE, set_carry_after_change) == (round_number & 1);
    }
    return good;
}

static uint64_t run_user(void (*entry)(void))
{
    return user_enter((uintptr_t)entry, USER_STACK_TOP, USER_CS, USER_DS, 2);
}

int main(void)
{
    for (unsigned i = 0; i < 3; i++) {
        show("flags", jumps_flags());
        show("flags of a program", run_user(user_flags));
        show("deep", jumps_deep());
        show("deep in a program", run_user(user_deep));
        show("skipping", jumps_skip());
        show("skipping in a program", run_user(user_skip));
        show("away", jumps_away());
        show("away in a program", run_user(user_away));
    }
    write_code(CODE, false);
    check("return to changed code", change_rounds(rewrite));
    write_code(PAGE_BEFORE, false);
    write_code(PAGE_AFTER, true);
    check("return to another page", change_rounds(remap));
    return 0;
}
