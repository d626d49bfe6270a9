/*
 * What every test guest has: output on the serial port, exceptions that a test
 * expects, interrupts, a second CPU, user mode, and the way out.
 *
 * A guest prints lines and ends; the runner compares the lines. Nothing that
 * differs from one correct machine to the next may be printed.
 */
#ifndef CORBEL_TESTS_GUEST_H
#define CORBEL_TESTS_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A function that exists once, for labels and breakpoints in it. */
#ifdef __clang__
#define ONE_COPY __attribute__((noinline))
#else
#define ONE_COPY __attribute__((noinline, noclone))
#endif

#define PORT_SERIAL 0x3f8

#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define KERNEL_CS32 0x18
#define USER_CS32 0x23
#define USER_DS 0x2b
#define USER_CS 0x33
#define KERNEL_CS16 0x38
#define KERNEL_DS16 0x40

#define CR4_TSD 0x4u
#define CR4_DE 0x8u
#define CR4_PGE 0x80u
#define CR4_UMIP 0x800u
#define CR4_FSGSBASE 0x10000u
#define CR4_PCIDE 0x20000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u

/* As entry_common in start.S builds it. */
struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

/* The last exception that a test caught. */
struct caught {
    bool happened;
    uint8_t vector;
    uint64_t error;
    uint64_t rip;
    uint64_t cr2;
    uint64_t rflags;
    uint64_t cs;
};

extern struct caught caught;
extern uint64_t gdt[];
extern uint64_t page_l4[512];
extern uint64_t page_l3[512];
extern uint64_t page_l2[4 * 512];
extern uint8_t idt[4096];
extern uint8_t tss0[104];

int main(void);

/* Output. */
void put_char(char c);
void put(const char *text);
void put_hex(uint64_t value);
void put_dec(uint64_t value);
void line(const char *text);
/* "text hex\n" */
void show(const char *text, uint64_t value);
/* "text ok\n", or "text FAILED\n" and the guest ends with status 1. */
void check(const char *text, bool good);

/* Ends the machine with the debug-exit port. */
void guest_exit(int status) __attribute__((noreturn));
/* ACPI S5 by the PM1 control port. */
void power_off(void);

/*
 * Runs body; an exception in it goes on behind it with `caught` filled. The
 * body must not leave otherwise and may not change the stack pointer for good.
 */
bool catch_call(void (*body)(void *), void *arg);
void show_caught(const char *text);

/* The handler of one vector instead of catching; returns to the interrupted code. */
typedef void (*vector_fn)(struct frame *frame);
void on_vector(uint8_t vector, vector_fn fn);
/* One IDT entry. type 0xe interrupt gate, 0xf trap gate; ist 0 none. */
void gate_set(uint8_t vector, uint64_t offset, uint8_t dpl, uint8_t type, uint8_t ist);

#define USER_RETURN "ud1 %eax, %eax"
/* User mode. The stack is given by its top; the code returns by USER_RETURN. */
uint64_t user_enter(uint64_t rip, uint64_t rsp, uint64_t cs, uint64_t ss, uint64_t rflags);
extern uint8_t user_stack[4096];
#define USER_STACK_TOP ((uint64_t)(uintptr_t)(user_stack + sizeof(user_stack)))

/* Splits the 2 MiB page around va into 4 KiB pages and returns the entry of va's page. */
uint64_t *page_entry(uint64_t va);

/* Local APIC in x2APIC mode. */
void apic_enable(void);
void apic_eoi(void);
#define APIC_ID 0x802u
#define APIC_EOI 0x80bu
#define APIC_SVR 0x80fu
#define APIC_ICR 0x830u
#define APIC_LVT_TIMER 0x832u
#define APIC_LVT_LINT0 0x835u
#define APIC_TIMER_INITIAL 0x838u
#define APIC_TIMER_CURRENT 0x839u
#define APIC_TIMER_DIVIDE 0x83eu
#define APIC_SELF_IPI 0x83fu

/* Starts CPU 1, whatever it does just then: it calls fn in long mode with its own stack and interrupts off. */
void ap_start(void (*fn)(void));

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;

    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint64_t rdmsr(uint32_t index)
{
    uint32_t low;
    uint32_t high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static inline uint64_t read_cr0(void)
{
    uint64_t value;

    __asm__ volatile("mov %%cr0, %0" : "=r"(value));
    return value;
}

static inline void write_cr0(uint64_t value)
{
    __asm__ volatile("mov %0, %%cr0" : : "r"(value) : "memory");
}

static inline uint64_t read_cr3(void)
{
    uint64_t value;

    __asm__ volatile("mov %%cr3, %0" : "=r"(value));
    return value;
}

static inline void write_cr3(uint64_t value)
{
    __asm__ volatile("mov %0, %%cr3" : : "r"(value) : "memory");
}

static inline uint64_t read_cr4(void)
{
    uint64_t value;

    __asm__ volatile("mov %%cr4, %0" : "=r"(value));
    return value;
}

static inline void write_cr4(uint64_t value)
{
    __asm__ volatile("mov %0, %%cr4" : : "r"(value) : "memory");
}

static inline void invlpg(uint64_t va)
{
    __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}

static inline void interrupts_on(void)
{
    __asm__ volatile("sti" : : : "memory");
}

static inline void interrupts_off(void)
{
    __asm__ volatile("cli" : : : "memory");
}

/* Sleeps until an interrupt; none can be lost between the two instructions. */
static inline void wait_interrupt(void)
{
    __asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

static inline void pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid_regs cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r;

    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(subleaf));
    return r;
}

#endif
