/* Exceptions: vector, error code, where they return to, and what a handler sees. */
#include "guest.h"

static void divide_by_zero(void *arg)
{
    (void)arg;
    __asm__ volatile("xor %%edx, %%edx\n\tmov $1, %%eax\n\txor %%ecx, %%ecx\n\tdiv %%ecx"
                     :
                     :
                     : "eax", "ecx", "edx", "cc");
}

static void divide_overflow(void *arg)
{
    (void)arg;
    __asm__ volatile("mov $1, %%edx\n\txor %%eax, %%eax\n\tmov $1, %%ecx\n\tdiv %%ecx"
                     :
                     :
                     : "eax", "ecx", "edx", "cc");
}

static void undefined(void *arg)
{
    (void)arg;
    __asm__ volatile("ud2");
}

static void lock_on_register(void *arg)
{
    (void)arg;
    __asm__ volatile(".byte 0xf0, 0x01, 0xc0"); /* lock add %eax, %eax */
}

static void push_es_in_long_mode(void *arg)
{
    (void)arg;
    __asm__ volatile(".byte 0x06");
}

static void breakpoint(void *arg)
{
    (void)arg;
    __asm__ volatile("int3");
}

static void software_interrupt(void *arg)
{
    (void)arg;
    __asm__ volatile("int $0x42");
}

static void load_selector(void *arg)
{
    __asm__ volatile("mov %w0, %%ds" : : "r"((unsigned)(uintptr_t)arg));
}

static void load_stack_selector(void *arg)
{
    __asm__ volatile("mov %w0, %%ss" : : "r"((unsigned)(uintptr_t)arg));
}

static void load_task(void *arg)
{
    __asm__ volatile("ltr %w0" : : "r"((unsigned)(uintptr_t)arg));
}

static void read_byte(void *arg)
{
    uint8_t value;

    __asm__ volatile("movb (%1), %0" : "=q"(value) : "r"(arg) : "memory");
}

static void write_byte(void *arg)
{
    __asm__ volatile("movb $1, (%0)" : : "r"(arg) : "memory");
}

static void call_address(void *arg)
{
    __asm__ volatile("call *%0" : : "r"(arg) : "memory");
}

static void push_with_rsp(void *arg)
{
    __asm__ volatile("mov %%rsp, %%rbx\n\tmov %0, %%rsp\n\tpush %%rax\n\tmov %%rbx, %%rsp"
                     :
                     : "r"(arg)
                     : "rbx", "memory");
}

static void read_unknown_msr(void *arg)
{
    (void)rdmsr((uint32_t)(uintptr_t)arg);
}

static void write_reserved_cr4(void *arg)
{
    (void)arg;
    write_cr4(read_cr4() | 1ull << 40);
}

static void write_cr0_no_pe(void *arg)
{
    (void)arg;
    write_cr0(read_cr0() & ~1ull);
}

static void unaligned_sse(void *arg)
{
    __asm__ volatile("movaps (%0), %%xmm0" : : "r"(arg));
}

static void touch_sse(void *arg)
{
    (void)arg;
    __asm__ volatile("xorps %xmm0, %xmm0");
}

static void touch_x87(void *arg)
{
    (void)arg;
    __asm__ volatile("fld1\n\tfstp %st(0)");
}

static void x87_zero_divide(void *arg)
{
    static const uint16_t control = 0x33b; /* divide by zero unmasked */

    (void)arg;
    __asm__ volatile("fninit\n\tfldcw %0\n\tfld1\n\tfldz\n\tfdivrp\n\tfwait" : : "m"(control));
}

static void sse_zero_divide(void *arg)
{
    static const uint32_t mxcsr = 0x1d80; /* divide by zero unmasked */

    (void)arg;
    __asm__ volatile("ldmxcsr %0\n\tpcmpeqd %%xmm0, %%xmm0\n\tpslld $25, %%xmm0\n\t"
                     "psrld $2, %%xmm0\n\txorps %%xmm1, %%xmm1\n\tdivss %%xmm1, %%xmm0"
                     :
                     : "m"(mxcsr));
}

static void bad_iret(void *arg)
{
    (void)arg;
    __asm__ volatile("mov %%rsp, %%rax\n\tpushq $0x10\n\tpush %%rax\n\tpushfq\n\t"
                     "pushq $0x10\n\t" /* a data segment as CS */
                     "lea 1f(%%rip), %%rax\n\tpush %%rax\n\tiretq\n1:"
                     :
                     :
                     : "rax", "memory");
}

static void try_one(const char *name, void (*body)(void *), uint64_t arg)
{
    (void)catch_call(body, (void *)(uintptr_t)arg);
    show_caught(name);
}

static unsigned steps;

static void on_step(struct frame *frame)
{
    steps++;
    uint64_t dr6;
    __asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
    if (steps == 1) {
        show("single step dr6", dr6 & 0x600f);
    }
    __asm__ volatile("mov %0, %%dr6" : : "r"(0xffff0ff0ull));
    if (steps == 5) {
        frame->rflags &= ~0x100ull;
    }
}

static void single_step(void)
{
    on_vector(1, on_step);
    __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\t"
                     "nop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop"
                     :
                     :
                     : "memory", "cc");
    show("single steps", steps);
}

static uint64_t hit_rip;
static uint64_t hit_dr6;

static void on_hit(struct frame *frame)
{
    hit_rip = frame->rip;
    __asm__ volatile("mov %%dr6, %0" : "=r"(hit_dr6));
    __asm__ volatile("mov %0, %%dr6" : : "r"(0xffff0ff0ull));
    frame->rflags |= 0x10000; /* RF: go on behind the breakpoint */
}

static void hardware_breakpoint(void)
{
    uint64_t place;

    on_vector(1, on_hit);
    hit_rip = 0;
    __asm__ volatile(
        "lea 1f(%%rip), %0\n\tmov %0, %%dr0\n\tmov $0x602, %%eax\n\tmov %%rax, %%dr7\n\t"
        "nop\n1: nop\n\txor %%eax, %%eax\n\tmov $0x400, %%eax\n\tmov %%rax, %%dr7"
        : "=&r"(place)
        :
        : "rax", "memory", "cc");
    check("execution breakpoint", hit_rip == place);
    show("execution dr6", hit_dr6 & 0xf);

    static uint32_t watched;
    hit_rip = 0;
    __asm__ volatile(
        "mov %1, %%dr1\n\tmov $0xd00608, %%eax\n\tmov %%rax, %%dr7\n\t"
        "movl $5, (%1)\n1: nop\n\tmov $0x400, %%eax\n\tmov %%rax, %%dr7\n\tlea 1b(%%rip), %0"
        : "=&r"(place)
        : "r"(&watched)
        : "rax", "memory");
    show("data breakpoint after the write", hit_rip == place && watched == 5);

    show("data dr6", hit_dr6 & 0xf);
    on_vector(1, NULL);
}

static void page_faults(void)
{
    uint64_t *entry = page_entry(0x3000000);

    entry[0] = 0;
    entry[1] = 0x3001000 | 5;              /* read-only */
    entry[2] = 0x3002000 | 7 | 1ull << 63; /* no execute */
    page_l2[0x3400000 >> 21] |= 0x2000;    /* reserved in the entry of a large page */
    write_cr3(read_cr3());
    try_one("read not present", read_byte, 0x3000123);
    try_one("write not present", write_byte, 0x3000fff);
    try_one("write read-only", write_byte, 0x3001004);
    try_one("read read-only", read_byte, 0x3001004);
    try_one("execute no-execute", call_address, 0x3002008);
    try_one("read with reserved bit", read_byte, 0x3403010);
    try_one("execute not present", call_address, 0x3000010);
    write_cr0(read_cr0() & ~0x10000ull);
    try_one("write read-only without WP", write_byte, 0x3001004);
    write_cr0(read_cr0() | 0x10000);
}

int main(void)
{
    try_one("divide by zero", divide_by_zero, 0);
    try_one("divide overflow", divide_overflow, 0);
    try_one("ud2", undefined, 0);
    try_one("lock on register", lock_on_register, 0);
    try_one("push es", push_es_in_long_mode, 0);
    try_one("int3", breakpoint, 0);
    try_one("int 0x42", software_interrupt, 0);
    try_one("selector beyond table", load_selector, 0x1000);
    try_one("selector of code as stack", load_stack_selector, KERNEL_CS);
    gdt[9] = 0x00cf13000000ffffull; /* data, not present */
    try_one("not present data", load_selector, 0x48);
    try_one("not present stack", load_stack_selector, 0x48);
    try_one("data as task", load_task, 0x10);
    try_one("busy task", load_task, 0x58);
    try_one("non-canonical read", read_byte, 0x800000000000ull);
    try_one("non-canonical stack, double fault", push_with_rsp, 0x800000001000ull);
    try_one("non-canonical call", call_address, 0x1234567800000000ull);
    try_one("unknown msr", read_unknown_msr, 0x12345678);
    try_one("reserved cr4 bit", write_reserved_cr4, 0);
    try_one("paging without protection", write_cr0_no_pe, 0);
    try_one("unaligned sse", unaligned_sse, 0x200008);
    try_one("iret to data segment", bad_iret, 0);
    write_cr0(read_cr0() | 8);
    try_one("sse with TS", touch_sse, 0);
    try_one("x87 with TS", touch_x87, 0);
    write_cr0(read_cr0() & ~8ull);
    write_cr0(read_cr0() | 4);
    try_one("sse with EM", touch_sse, 0);
    try_one("x87 with EM", touch_x87, 0);
    write_cr0(read_cr0() & ~4ull);
    try_one("x87 divide by zero", x87_zero_divide, 0);
    __asm__ volatile("fninit");
    try_one("sse divide by zero", sse_zero_divide, 0);
    page_faults();
    single_step();
    hardware_breakpoint();
    return 0;
}
