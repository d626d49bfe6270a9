/* CPL 3: IRET to it, system calls, what it may not do, and its 32-bit code segment. */
#include "guest.h"

#define STAR 0xc0000081u
#define LSTAR 0xc0000082u
#define SFMASK 0xc0000084u
#define EFER_SCE 1u

void syscall_entry(void);
void user_syscall(void);
void user_syscall32(void);
void user_sysenter(void);
void sysenter_entry(void);
void user32(void);

extern uint64_t seen_rcx;
extern uint64_t seen_r11;
extern uint64_t seen_cs;
extern uint64_t seen_ss;
extern uint64_t seen_flags;
extern uint64_t expected_rcx;

/* clang-format off */
__asm__(
    ".text\n"
    "user_syscall:\n"
    "    mov $41, %eax\n"
    "    mov $0x1234, %r10d\n"
    "    syscall\n"
    "user_syscall_after:\n"
    "    cmp $user_syscall_after, %rcx\n" /* RCX is the return address */
    "    mov %cs, %edx\n"
    "    shl $8, %rax\n"
    "    or %rdx, %rax\n"
    "    ud1 %eax, %eax\n"
    "syscall_entry:\n"
    "    mov %rcx, seen_rcx(%rip)\n"
    "    mov %r11, seen_r11(%rip)\n"
    "    mov %cs, %edx\n"
    "    mov %rdx, seen_cs(%rip)\n"
    "    mov %ss, %edx\n"
    "    mov %rdx, seen_ss(%rip)\n"
    "    mov %rsp, %rdx\n"
    "    lea syscall_stack_top(%rip), %rsp\n"
    "    pushfq\n"
    "    pop seen_flags(%rip)\n"
    "    mov %rdx, %rsp\n"
    "    inc %rax\n"
    "    sysretq\n"
    "user_sysenter:\n"
    "    mov $50, %eax\n"
    "    mov %rsp, %rcx\n"
    "    lea 1f(%rip), %rdx\n"
    "    sysenter\n"
    "    ud2\n"
    "1:  mov %cs, %edx\n"
    "    shl $8, %rax\n"
    "    or %rdx, %rax\n"
    "    ud1 %eax, %eax\n"
    "sysenter_entry:\n"
    "    inc %rax\n"
    "    .byte 0x48, 0x0f, 0x35\n" /* rex.w sysexit, which not every assembler knows */
    /* 32-bit user code: what long mode has not, and wrap-around at 32 bits. */
    "    .code32\n"
    "user32:\n"
    "    mov $0xfffffffe, %eax\n"
    "    add $4, %eax\n"
    "    push %eax\n"
    "    pusha\n"
    "    popa\n"
    "    mov $0x0507, %eax\n"
    "    aad\n"                    /* 5 * 10 + 7 = 57 */
    "    aam\n"                    /* 5, 7 */
    "    add $9, %al\n"
    "    aaa\n"                    /* 6, 6 */
    "    push %eax\n"
    "    mov $0x29, %al\n"
    "    add $0x18, %al\n"
    "    daa\n"                    /* 47 */
    "    movzx %al, %ecx\n"
    "    pop %eax\n"
    "    shl $8, %ecx\n"
    "    shl $8, %ecx\n"
    "    or %ecx, %eax\n"
    "    pop %edx\n"
    "    inc %edx\n"               /* one-byte INC: 0x42 */
    "    shl $24, %edx\n"
    "    or %edx, %eax\n"
    "    ud1 %eax, %eax\n"
    "user32_into:\n"
    "    mov $0x7fffffff, %eax\n"
    "    inc %eax\n"
    "    into\n"
    "    ud1 %eax, %eax\n"
    "user32_bound:\n"
    "    mov $0x2b, %eax\n"       /* IRET to CPL 3 has emptied DS */
    "    mov %eax, %ds\n"
    "    mov $9, %eax\n"
    "    bound %eax, bounds\n"
    "    ud1 %eax, %eax\n"
    "    .align 8\n"
    "bounds: .long 1, 8\n"
    "    .code64\n"
    ".bss\n"
    ".skip 256\n"
    "syscall_stack_top:\n"
    "seen_rcx: .skip 8\nseen_r11: .skip 8\nseen_cs: .skip 8\nseen_ss: .skip 8\nseen_flags: .skip 8\n"
    ".text\n");
/* clang-format on */

void user_syscall_after(void);
void user32_into(void);
void user32_bound(void);

static uint64_t run_user(void *entry, uint64_t flags)
{
    return user_enter((uintptr_t)entry, USER_STACK_TOP, USER_CS, USER_DS, flags);
}

static uint64_t run_user32(void *entry)
{
    return user_enter((uintptr_t)entry, USER_STACK_TOP, USER_CS32, USER_DS, 2);
}

static void catch_user(void *entry)
{
    (void)run_user(entry, 2);
}

static void catch_user_ac(void *entry)
{
    (void)run_user(entry, 0x40002);
}

static void catch_user32(void *entry)
{
    (void)run_user32(entry);
}

#define USER_CODE(name, text) \
    void name(void);          \
    __asm__(".text\n" #name ":\n" text "\n " USER_RETURN "\n")

USER_CODE(user_plain,
          "mov $0x77, %eax\n mov %cs, %edx\n and $3, %edx\n shl $8, %edx\n or %edx, %eax");
USER_CODE(user_hlt, "hlt");
USER_CODE(user_cli, "cli");
USER_CODE(user_in, "in $0x80, %al");
USER_CODE(user_cr, "mov %cr0, %rax");
USER_CODE(user_msr, "mov $0xc0000080, %ecx\n rdmsr");
USER_CODE(user_int, "int $0x42");
USER_CODE(user_int3, "int3");
USER_CODE(user_int80, "int $0x80");
USER_CODE(user_sgdt, "sub $16, %rsp\n sgdt (%rsp)");
USER_CODE(user_rdtsc, "rdtsc\n mov $1, %eax");
USER_CODE(user_write_kernel, "movb $0, 0x3800000");
USER_CODE(user_unaligned, "mov 1(%rsp), %eax");
USER_CODE(user_kernel_selector, "mov $0x10, %eax\n mov %eax, %ds");
USER_CODE(user_popf, "pushfq\n orq $0x200, (%rsp)\n popfq\n pushfq\n pop %rax");
USER_CODE(user_far,
          "push $0x33\n push $user_far_target\n lretq\n user_far_target: mov $0x99, %eax");
USER_CODE(user_swapgs, "swapgs");
USER_CODE(user_fsgs, "mov $0x123456789, %rdx\n wrgsbase %rdx\n rdgsbase %rax");

static void try_user(const char *name, void *entry)
{
    (void)catch_call(catch_user, entry);
    show_caught(name);
}

static uint64_t kept;

static void run_and_keep(void *entry)
{
    kept = run_user(entry, 0x402);
}

static void run32_and_keep(void *entry)
{
    kept = run_user32(entry);
}

static void system_calls(void)
{
    wrmsr(0xc0000080, rdmsr(0xc0000080) | EFER_SCE);
    wrmsr(STAR, (uint64_t)0x23 << 48 | (uint64_t)KERNEL_CS << 32);
    wrmsr(LSTAR, (uintptr_t)syscall_entry);
    wrmsr(SFMASK, 0x600); /* IF and DF */
    (void)catch_call(run_and_keep, user_syscall);
    show_caught("syscall");
    show("syscall result", kept);
    check("RCX is the return address", seen_rcx == (uintptr_t)user_syscall_after);
    show("R11 is RFLAGS", seen_r11 & 0x400);
    show("kernel CS", seen_cs);
    show("kernel SS", seen_ss);
    show("masked flags", seen_flags & 0x600);

    wrmsr(0x174, KERNEL_CS);
    wrmsr(0x175, USER_STACK_TOP - 2048);
    wrmsr(0x176, (uintptr_t)sysenter_entry);
}

/* SYSENTER exists in long mode on Intel's CPUs only. */
static void fast_enter(void)
{
    const bool intel = cpuid(0, 0).ebx == 0x756e6547;

    if (!intel) {
        line("sysenter result 332b");
        return;
    }
    /* SYSEXIT takes CS from the MSR plus 32 and does not look into the table. */
    kept = 0;
    (void)catch_call(run_and_keep, user_sysenter);
    show("sysenter result", kept);
}

int main(void)
{
    /* First, as every program of a real system, it faults: KVM's accelerator waits for that. */
    page_l2[0x3800000 >> 21] &= ~4ull;
    write_cr3(read_cr3());
    try_user("write kernel page", user_write_kernel);
    show("plain", run_user(user_plain, 2));
    try_user("hlt", user_hlt);
    try_user("cli", user_cli);
    try_user("in", user_in);
    try_user("mov from cr0", user_cr);
    try_user("rdmsr", user_msr);
    try_user("int 0x42", user_int);
    try_user("int3", user_int3);
    try_user("int 0x80", user_int80);
    try_user("kernel selector", user_kernel_selector);
    try_user("swapgs", user_swapgs);
    try_user("sgdt", user_sgdt);
    write_cr4(read_cr4() | CR4_UMIP);
    try_user("sgdt with UMIP", user_sgdt);
    write_cr4(read_cr4() & ~(uint64_t)CR4_UMIP);
    try_user("rdtsc", user_rdtsc);
    write_cr4(read_cr4() | CR4_TSD);
    try_user("rdtsc with TSD", user_rdtsc);
    write_cr4(read_cr4() & ~(uint64_t)CR4_TSD);
    try_user("wrgsbase not enabled", user_fsgs);
    write_cr4(read_cr4() | CR4_FSGSBASE);
    show("wrgsbase", run_user(user_fsgs, 2));
    write_cr4(read_cr4() & ~(uint64_t)CR4_FSGSBASE);
    show("popf cannot set IF", run_user(user_popf, 2) & 0x200);
    show("far return", run_user(user_far, 2));
    write_cr0(read_cr0() | 0x40000); /* AM */
    (void)catch_call(catch_user, user_unaligned);
    show_caught("unaligned without AC");
    (void)catch_call(catch_user_ac, user_unaligned);
    show_caught("unaligned with AC");
    system_calls();
    fast_enter();
    kept = 0;
    (void)catch_call(run32_and_keep, user32);
    show("32-bit", kept);
    (void)catch_call(catch_user32, user32_into);
    show_caught("into");
    (void)catch_call(catch_user32, user32_bound);
    show_caught("bound");
    return 0;
}
