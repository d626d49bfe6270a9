/*
 * What a kernel and its programs do all day: demand paging, system calls that return by SYSRET and
 * by IRET, and a timer that interrupts user mode. The kernel's entry is not the user's to read.
 */
#include "guest.h"

#define STAR 0xc0000081u
#define LSTAR 0xc0000082u
#define SFMASK 0xc0000084u
#define AREA 0x3800000u
#define PAGES 64u
#define CALLS 1000u
#define TICKS 5u
#define TIMER_VECTOR 0x50

void user_call(void);
void user_touch(void);
void user_calls(void);
void user_wait(void);
void call_entry(void);

extern uint64_t calls;

/* clang-format off */
__asm__(
    /* SYSCALL by odd RAX returns by SYSRET, by even RAX by IRET. */
    ".text\n"
    ".align 4096\n"
    "call_entry:\n"
    "    mov %rsp, call_user_rsp(%rip)\n"
    "    lea call_stack_top(%rip), %rsp\n"
    "    incq calls(%rip)\n"
    "    test $1, %eax\n"
    "    jz 1f\n"
    "    lea 7(%rax), %rax\n"
    "    mov call_user_rsp(%rip), %rsp\n"
    "    sysretq\n"
    "1:  lea 8(%rax), %rax\n"
    "    pushq $0x2b\n"
    "    pushq call_user_rsp(%rip)\n"
    "    push %r11\n"
    "    pushq $0x33\n"
    "    push %rcx\n"
    "    iretq\n"
    ".align 4096\n"
    "user_call:\n"
    "    mov $35, %eax\n"
    "    syscall\n"
    "    " USER_RETURN "\n"
    /* Adds the first words of PAGES pages, which the kernel fills when they are touched. */
    "user_touch:\n"
    "    mov $0x3800000, %ebx\n"
    "    xor %eax, %eax\n"
    "    mov $64, %ecx\n"
    "2:  add (%rbx), %rax\n"
    "    add $4096, %rbx\n"
    "    dec %ecx\n"
    "    jnz 2b\n"
    "    " USER_RETURN "\n"
    "user_calls:\n"
    "    xor %eax, %eax\n"
    "    mov $1000, %ebx\n"
    "    mov $0x1234567, %r15d\n"
    "    movq %r15, %xmm7\n"
    "3:  syscall\n"
    "    dec %ebx\n"
    "    jnz 3b\n"
    "    movq %xmm7, %rcx\n"
    "    sub %rcx, %r15\n"
    "    add %r15, %rax\n"
    "    " USER_RETURN "\n"
    /* Counts in registers until the timer's handler has been here often enough. */
    "user_wait:\n"
    "    xor %eax, %eax\n"
    "    xor %ebx, %ebx\n"
    "4:  inc %rax\n"
    "    inc %rbx\n"
    "    cmpl $5, ticks\n"
    "    jb 4b\n"
    "    sub %rbx, %rax\n"
    "    " USER_RETURN "\n"
    ".bss\n"
    ".align 16\n"
    ".skip 1024\n"
    "call_stack_top:\n"
    "call_user_rsp: .skip 8\n"
    "calls: .skip 8\n"
    ".text\n");
/* clang-format on */

static unsigned faults;
volatile unsigned ticks;
static unsigned user_ticks;

static void on_fault(struct frame *frame)
{
    uint64_t address;

    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    if (address < AREA || address >= AREA + PAGES * 4096 || (frame->error & 1) != 0) {
        show("unexpected fault at", address);
        guest_exit(2);
    }
    *page_entry(address) |= 1;
    *(uint64_t *)(uintptr_t)(address & ~4095ull) = faults;
    faults++;
}

static void on_timer(struct frame *frame)
{
    ticks++;
    user_ticks += (frame->cs & 3) == 3 ? 1 : 0;
    apic_eoi();
}

static uint64_t run_user(void (*entry)(void), uint64_t flags)
{
    return user_enter((uintptr_t)entry, USER_STACK_TOP, USER_CS, USER_DS, flags);
}

int main(void)
{
    wrmsr(STAR, (uint64_t)0x23 << 48 | (uint64_t)KERNEL_CS << 32);
    wrmsr(LSTAR, (uintptr_t)call_entry);
    wrmsr(SFMASK, 0x200);
    *page_entry((uintptr_t)call_entry) &= ~4ull;
    for (unsigned i = 0; i < PAGES; i++) {
        *page_entry(AREA + 4096 * i) &= ~1ull;
    }
    page_l2[AREA >> 21] |= 0x20; /* accessed: it is read below, and who sets it when is not said */
    write_cr3(read_cr3());
    on_vector(14, on_fault);
    line("ready");

    /* The very first thing that user mode does is a system call. */
    show("first call", run_user(user_call, 2));
    show("touched", run_user(user_touch, 2));
    show("faults", faults);
    show("called", run_user(user_calls, 2));
    show("calls", calls);

    apic_enable();
    on_vector(TIMER_VECTOR, on_timer);
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    /* One that came while the kernel took none is there when user mode begins. */
    ticks = 4;
    wrmsr(APIC_LVT_TIMER, TIMER_VECTOR);
    wrmsr(APIC_TIMER_INITIAL, 1000);
    while (rdmsr(APIC_TIMER_CURRENT) != 0) {
    }
    show("came before", run_user(user_wait, 0x202));
    ticks = 0;
    user_ticks = 0;
    wrmsr(APIC_LVT_TIMER, 0x20000 | TIMER_VECTOR);
    wrmsr(APIC_TIMER_INITIAL, 1000000);
    show("waited", run_user(user_wait, 0x202));
    wrmsr(APIC_LVT_TIMER, 0x10000);
    check("interrupts came in user mode", user_ticks >= TICKS);
    return 0;
}
