/* From long mode down to real mode and back: compatibility, protected, 16-bit protected, real. */
#include "guest.h"

/*
 * Everything below 64 KiB: the code is copied to 0x9000 and runs there. It
 * leaves long mode, goes to real mode, does BIOS-like work there (an interrupt
 * through the real-mode vector table, segment arithmetic), and comes back.
 */
extern const uint8_t modes_code[];
extern const uint8_t modes_code_end[];
uint64_t modes_saved_rsp;
void *memcpy(void *to, const void *from, size_t len);

#define RESULT 0xa000u /* words that real mode leaves */

/* clang-format off */
__asm__(
    ".text\n"
    "modes_code:\n"
    "    push %rbx\n    push %rbp\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
    "    mov %rsp, modes_saved_rsp\n"
    "    pushq $0x18\n"                       /* 32-bit code segment: compatibility mode */
    "    pushq $modes_compat - modes_code + 0x9000\n"
    "    lretq\n"
    "    .code32\n"
    "modes_compat:\n"
    "    mov $0x10, %eax\n    mov %eax, %ss\n    mov %eax, %ds\n    mov %eax, %es\n"
    "    mov $0x9000, %esp\n"
    "    mov $0xc0000080, %ecx\n    rdmsr\n"
    "    mov %eax, 0xa000\n"                   /* LMA is set here */
    "    mov %cr0, %eax\n    and $0x7fffffff, %eax\n    mov %eax, %cr0\n"   /* paging off */
    "    mov $0xc0000080, %ecx\n    rdmsr\n"
    "    mov %eax, 0xa004\n"                   /* LMA is gone, LME stays */
    "    and $0xfffffeff, %eax\n    wrmsr\n"
    "    push $0x12345678\n"
    "    pop %ebx\n"
    "    mov %ebx, 0xa008\n"
    "    ljmp $0x38, $modes_16 - modes_code + 0x9000\n"
    "    .code16\n"
    "modes_16:\n"
    "    mov $0x40, %ax\n    mov %ax, %ds\n    mov %ax, %es\n    mov %ax, %ss\n"
    "    mov %ax, %fs\n    mov %ax, %gs\n"
    "    mov %cr0, %eax\n    and $0xfffffffe, %eax\n    mov %eax, %cr0\n"
    "    ljmp $0x900, $modes_real - modes_code\n"
    "modes_real:\n"
    "    lidtl %cs:modes_real_idt - modes_code\n"
    "    xor %ax, %ax\n    mov %ax, %ss\n    mov $0x8ff0, %sp\n"
    "    mov $0x0a00, %ax\n    mov %ax, %ds\n"  /* DS:0 is 0xa000 */
    "    movw $0xbeef, 0x0c\n"
    "    push %cs\n    pop %ax\n    mov %ax, 0x10\n"
    "    xor %ax, %ax\n    mov %ax, %es\n"
    "    movw $modes_handler - modes_code, %es:0x60*4\n"
    "    movw $0x900, %es:0x60*4+2\n"
    "    mov $5, %ax\n"
    "    int $0x60\n"
    "    mov %ax, 0x14\n"
    "    pushf\n    pop %ax\n    mov %ax, 0x18\n"
    "    mov $0xffff, %ax\n    mov %ax, %es\n"
    "    mov %es:0x7010, %al\n"                 /* ffff:7010 is 0x107000: A20 is on */
    "    mov %al, 0x1c\n"
    "    mov $0x1234, %ax\n    mov $0x10, %bx\n    mul %bx\n    mov %dx, 0x20\n    mov %ax, 0x22\n"
    "    mov $3, %cx\n    xor %ax, %ax\n"
    "1:  add %cx, %ax\n    loop 1b\n"
    "    mov %ax, 0x24\n"
    "    lcall $0x900, $modes_far - modes_code\n"
    "    lgdtl %cs:modes_gdt - modes_code\n"
    "    mov %cr0, %eax\n    or $1, %eax\n    mov %eax, %cr0\n"
    "    ljmpl $0x18, $modes_prot - modes_code + 0x9000\n"
    "modes_far:\n"
    "    movw $0xfa12, 0x28\n"
    "    lret\n"
    "modes_handler:\n"
    "    add $2, %ax\n"
    "    iret\n"
    "    .code32\n"
    "modes_prot:\n"
    "    mov $0x10, %eax\n    mov %eax, %ds\n    mov %eax, %es\n    mov %eax, %ss\n"
    "    mov %eax, %fs\n    mov %eax, %gs\n"
    "    mov %cr4, %eax\n    or $0x20, %eax\n    mov %eax, %cr4\n"
    "    mov $page_l4, %eax\n    mov %eax, %cr3\n"
    "    mov $0xc0000080, %ecx\n    rdmsr\n    or $0x100, %eax\n    wrmsr\n"
    "    mov %cr0, %eax\n    or $0x80000000, %eax\n    mov %eax, %cr0\n"
    "    ljmp $0x08, $modes_long\n"
    "modes_gdt:\n"
    "    .word 0x77\n    .long gdt\n"
    "modes_real_idt:\n"
    "    .word 0x3ff\n    .long 0\n"
    "modes_code_end:\n"
    "    .code64\n"
    "modes_long:\n"
    "    mov modes_saved_rsp, %rsp\n"
    "    lidt idt_pointer\n"
    "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbp\n    pop %rbx\n"
    "    ret\n");
/* clang-format on */

static uint32_t result(unsigned offset)
{
    return *(volatile uint32_t *)(uintptr_t)(RESULT + offset);
}

static void down_and_up(void)
{
    *(volatile uint8_t *)0x107000 = 0xa2;
    memcpy((void *)0x9000, modes_code, (size_t)(modes_code_end - modes_code));
    ((void (*)(void))0x9000)();
}

int main(void)
{
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned j = 0; j < 0x30; j += 4) {
            *(volatile uint32_t *)(uintptr_t)(RESULT + j) = 0;
        }
        down_and_up();
        show("EFER in compatibility mode", result(0) & 0x500);
        show("EFER without paging", result(4) & 0x500);
        show("32-bit stack", result(8));
        show("real-mode store", result(0xc));
        show("real-mode CS", result(0x10));
        show("real-mode interrupt", result(0x14));
        show("real-mode flags", result(0x18) & 0x8000);
        show("above 1 MiB", result(0x1c));
        show("16-bit multiply", result(0x20));
        show("loop", result(0x24) & 0xffff);
        show("far call", result(0x28));
        show("long mode again", rdmsr(0xc0000080) & 0x500);
    }
    return 0;
}
