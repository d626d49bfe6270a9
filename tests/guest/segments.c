/* Segments: limits and types in 32-bit code, LAR LSL VERR, call gates, FS and GS bases, loads. */
#include "guest.h"

#define TEST_SELECTOR 0x48u

static void set_test_segment(uint32_t base, uint32_t limit, uint8_t access, uint8_t flags)
{
    gdt[9] = (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
             (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 |
             (uint64_t)(base >> 24) << 56;
}

/*
 * Runs in the 32-bit code segment at CPL 0 (compatibility mode), where limits
 * count: FS = selector, then loads or stores at offset. Code and stack below 4 GiB.
 */
struct access {
    uint32_t selector;
    uint32_t offset;
    uint32_t width;
    uint32_t is_write;
};

void segment_access(const struct access *access);
/* clang-format off */
__asm__(
    ".text\n"
    "segment_access:\n"
    "    push %rbx\n"
    "    mov %rsp, %rbx\n"
    "    pushq $0x18\n"
    "    lea 1f(%rip), %rax\n"
    "    push %rax\n"
    "    lretq\n"
    "    .code32\n"
    "1:  mov (%edi), %eax\n"
    "    mov %ax, %fs\n"
    "    mov 4(%edi), %edx\n"
    "    cmpl $0, 12(%edi)\n"
    "    jne 3f\n"
    "    cmpl $1, 8(%edi)\n"
    "    je 2f\n"
    "    mov %fs:(%edx), %ecx\n"
    "    jmp 4f\n"
    "2:  movb %fs:(%edx), %cl\n"
    "    jmp 4f\n"
    "3:  movl $0x5a5a5a5a, %fs:(%edx)\n"
    "4:  ljmp $0x08, $5f\n"
    "    .code64\n"
    "5:  mov %rbx, %rsp\n"
    "    xor %ecx, %ecx\n"
    "    mov %ecx, %fs\n"
    "    pop %rbx\n"
    "    ret\n");
/* clang-format on */

static void access_body(void *arg)
{
    segment_access(arg);
}

static void try_access(const char *name, uint32_t offset, uint32_t width, bool is_write)
{
    static struct access access;

    access = (struct access){TEST_SELECTOR, offset, width, is_write};
    (void)catch_call(access_body, &access);
    show_caught(name);
}

static void limits(void)
{
    set_test_segment(0x3000000, 0xfff, 0x93, 0x4);
    try_access("last dword", 0xffc, 4, false);
    try_access("dword beyond limit", 0xffd, 4, false);
    try_access("last byte", 0xfff, 1, false);
    try_access("byte beyond limit", 0x1000, 1, false);
    set_test_segment(0x3000000, 0xfff, 0x91, 0x4);
    try_access("write to read-only", 0, 4, true);
    try_access("read of read-only", 0, 4, false);
    set_test_segment(0x3000000, 0, 0x93, 0xc);
    try_access("page granular", 0xffc, 4, true);
    try_access("beyond page granular", 0x1000, 4, true);
    set_test_segment(0x3000000, 0xfff, 0x97, 0x4);
    try_access("expand-down below", 0xfff, 1, false);
    try_access("expand-down above", 0x1000, 1, false);
    set_test_segment(0x3000000, 0xfff, 0x99, 0x4);
    try_access("execute-only", 0, 4, false);
    set_test_segment(0x3000000, 0xfff, 0x93, 0x4);
    *(volatile uint32_t *)0x3000010 = 0x99;
    try_access("base is added", 0x10, 4, true);
    show("written", *(volatile uint32_t *)0x3000010);
    check("accessed bit is set", (gdt[9] >> 40 & 1) == 1);
    set_test_segment(0x3000000, 0xfff, 0x92, 0x4);
    try_access("not yet accessed", 0, 4, false);
    check("load sets accessed", (gdt[9] >> 40 & 1) == 1);
}

static void queries(void)
{
    uint32_t value;
    uint8_t zero;

    set_test_segment(0x3000000, 0x123, 0x93, 0xc);
    __asm__ volatile("lar %2, %0\n\tsetz %1" : "=r"(value), "=q"(zero) : "r"(TEST_SELECTOR) : "cc");
    show("lar", value);
    show("lar zf", zero);
    __asm__ volatile("lsl %2, %0\n\tsetz %1" : "=r"(value), "=q"(zero) : "r"(TEST_SELECTOR) : "cc");
    show("lsl", value);
    value = 0x77;
    __asm__ volatile("lar %2, %0\n\tsetz %1" : "+r"(value), "=q"(zero) : "r"(0x1000) : "cc");
    show("lar beyond table", value);
    show("lar beyond table zf", zero);
    __asm__ volatile("verr %w1\n\tsetz %0" : "=q"(zero) : "r"(KERNEL_CS) : "cc");
    show("verr code", zero);
    __asm__ volatile("verw %w1\n\tsetz %0" : "=q"(zero) : "r"(KERNEL_CS) : "cc");
    show("verw code", zero);
    __asm__ volatile("verw %w1\n\tsetz %0" : "=q"(zero) : "r"(KERNEL_DS) : "cc");
    show("verw data", zero);
    uint16_t str;
    __asm__ volatile("str %0" : "=r"(str));
    show("str", str);
    __asm__ volatile("sldt %0" : "=r"(str));
    show("sldt", str);
    uint64_t msw;
    __asm__ volatile("smsw %0" : "=r"(msw));
    show("smsw", msw & 0xffff);
}

static void load_null_ss(void *arg)
{
    (void)arg;
    __asm__ volatile("xor %%eax, %%eax\n\tmov %%eax, %%ss\n\tmov $0x10, %%eax\n\tmov %%eax, %%ss"
                     :
                     :
                     : "eax");
}

static void bases(void)
{
    static uint64_t fs_data = 0xf5f5;
    static uint64_t gs_data = 0x6565;
    uint64_t value;

    wrmsr(0xc0000100, (uintptr_t)&fs_data);
    wrmsr(0xc0000101, (uintptr_t)&gs_data);
    __asm__ volatile("mov %%fs:0, %0" : "=r"(value));
    show("fs base", value);
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    show("gs base", value);
    wrmsr(0xc0000102, (uintptr_t)&fs_data);
    __asm__ volatile("swapgs\n\tmov %%gs:0, %0\n\tswapgs" : "=r"(value));
    show("swapgs", value);
    /* Loading a selector replaces the base by the descriptor's 32 bits. */
    set_test_segment(0x3000000, 0xfff, 0x93, 0x4);
    __asm__ volatile("mov %w0, %%fs" : : "r"(TEST_SELECTOR));
    show("base after load", rdmsr(0xc0000100));
    write_cr4(read_cr4() | CR4_FSGSBASE);
    __asm__ volatile("wrfsbase %1\n\trdfsbase %0" : "=r"(value) : "r"(0xffff800000001234ull));
    show("wrfsbase", value);
    write_cr4(read_cr4() & ~(uint64_t)CR4_FSGSBASE);
    __asm__ volatile("mov %w0, %%fs" : : "r"(0));
    __asm__ volatile("mov %w0, %%gs" : : "r"(0));
    (void)catch_call(load_null_ss, NULL);
    show_caught("null stack segment at CPL 0");
    /* In 64-bit mode DS has no base and no limit. */
    __asm__ volatile("mov %w0, %%ds" : : "r"(TEST_SELECTOR));
    value = *(volatile uint64_t *)&gs_data;
    __asm__ volatile("mov %w0, %%ds" : : "r"(KERNEL_DS));
    show("ds is flat", value);
}

int main(void)
{
    limits();
    queries();
    bases();
    return 0;
}
