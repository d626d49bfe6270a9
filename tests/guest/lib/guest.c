#include "guest.h"

#include "ports.h"

struct caught caught;
uint8_t user_stack[4096] __attribute__((aligned(16)));

extern const uint8_t entries[];
extern const uint8_t trampoline[];
extern const uint8_t trampoline_end[];
extern uint8_t tss1[104];
void user_return(void);
void lib_init(void);
void entry_handle(struct frame *frame);
void ap_main(void);

static vector_fn vector_fns[256];
static bool catching;
static uint64_t catch_rip;
static uint64_t catch_rsp;
static uint64_t catch_rbp;
static void (*ap_fn)(void);
static bool ap_running;
static uint8_t fault_stack[4096] __attribute__((aligned(16)));
static uint64_t small_pages[8][512] __attribute__((aligned(4096)));
static unsigned small_pages_used;

/* The compiler may ask for these. */
void *memcpy(void *to, const void *from, size_t len);
void *memset(void *to, int byte, size_t len);
int memcmp(const void *a, const void *b, size_t len);

void *memcpy(void *to, const void *from, size_t len)
{
    void *start = to;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
    return start;
}

void *memset(void *to, int byte, size_t len)
{
    void *start = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *x = a;
    const uint8_t *y = b;

    for (size_t i = 0; i < len; i++) {
        if (x[i] != y[i]) {
            return x[i] < y[i] ? -1 : 1;
        }
    }
    return 0;
}

void put_char(char c)
{
    while ((in8(PORT_SERIAL + 5) & 0x20) == 0) {
    }
    out8(PORT_SERIAL, (uint8_t)c);
}

void put(const char *text)
{
    while (*text != '\0') {
        put_char(*text++);
    }
}

void put_hex(uint64_t value)
{
    bool begun = false;

    for (int shift = 60; shift >= 0; shift -= 4) {
        const unsigned digit = (value >> shift) & 15;
        if (digit != 0 || begun || shift == 0) {
            put_char("0123456789abcdef"[digit]);
            begun = true;
        }
    }
}

void put_dec(uint64_t value)
{
    char digits[20];
    unsigned n = 0;

    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    while (n > 0) {
        put_char(digits[--n]);
    }
}

void line(const char *text)
{
    put(text);
    put_char('\n');
}

void show(const char *text, uint64_t value)
{
    put(text);
    put_char(' ');
    put_hex(value);
    put_char('\n');
}

void check(const char *text, bool good)
{
    put(text);
    line(good ? " ok" : " FAILED");
    if (!good) {
        guest_exit(1);
    }
}

void guest_exit(int status)
{
    out8(PORT_DEBUG_EXIT, (uint8_t)status);
    for (;;) {
        __asm__ volatile("cli\n\thlt");
    }
}

void power_off(void)
{
    out16(PORT_PM1_CONTROL, (uint16_t)(PM1_SLP_EN | PM1_SLP_TYP_S5));
}

void gate_set(uint8_t vector, uint64_t offset, uint8_t dpl, uint8_t type, uint8_t ist)
{
    uint32_t *entry = (uint32_t *)(void *)&idt[16 * vector];

    entry[0] = (uint32_t)KERNEL_CS << 16 | (offset & 0xffff);
    entry[1] =
        (uint32_t)(offset & 0xffff0000) | 0x8000u | (uint32_t)dpl << 13 | (uint32_t)type << 8 | ist;
    entry[2] = (uint32_t)(offset >> 32);
    entry[3] = 0;
}

static void tss_set(unsigned slot, const uint8_t *tss)
{
    const uint64_t base = (uintptr_t)tss;

    gdt[slot] = 103 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[slot + 1] = base >> 32;
}

void lib_init(void)
{
    for (unsigned i = 0; i < 256; i++) {
        gate_set((uint8_t)i, (uintptr_t)entries + 16 * i, 0, 0xe, 0);
    }
    gate_set(3, (uintptr_t)entries + 16 * 3, 3, 0xe, 0);
    gate_set(4, (uintptr_t)entries + 16 * 4, 3, 0xe, 0);
    gate_set(0x80, (uintptr_t)entries + 16 * 0x80, 3, 0xe, 0);
    const uint64_t ist1 = (uintptr_t)(fault_stack + sizeof(fault_stack));
    memcpy(&tss0[36], &ist1, sizeof(ist1));
    gate_set(8, (uintptr_t)entries + 16 * 8, 0, 0xe, 1);
    tss0[102] = sizeof(tss0); /* no I/O permission map */
    tss_set(11, tss0);
    tss_set(13, tss1);
    __asm__ volatile("lidt idt_pointer\n\tltr %w0" : : "r"(0x58));
    /* Both PICs: all masked, so that only what a test asks for comes. */
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
}

void on_vector(uint8_t vector, vector_fn fn)
{
    vector_fns[vector] = fn;
}

/* UD1 at CPL 3 is how user code comes back. */
static bool is_user_return(const struct frame *frame)
{
    const uint8_t *code = (const uint8_t *)(uintptr_t)frame->rip;

    return frame->vector == 6 && (frame->cs & 3) == 3 && code[0] == 0x0f && code[1] == 0xb9;
}

void entry_handle(struct frame *frame)
{
    const uint8_t vector = (uint8_t)frame->vector;

    if (is_user_return(frame)) {
        frame->rip = (uintptr_t)user_return;
        frame->cs = KERNEL_CS;
        frame->ss = KERNEL_DS;
        frame->rflags = 2;
        return;
    }
    if (vector_fns[vector] != NULL) {
        vector_fns[vector](frame);
        return;
    }
    __asm__ volatile("mov %%cr2, %0" : "=r"(caught.cr2));
    caught.happened = true;
    caught.vector = vector;
    caught.error = frame->error;
    caught.rip = frame->rip;
    caught.rflags = frame->rflags;
    caught.cs = frame->cs;
    if (!catching) {
        put("unexpected vector ");
        put_dec(vector);
        show(" at", frame->rip);
        show("error", frame->error);
        show("cr2", caught.cr2);
        guest_exit(2);
    }
    /* Back into catch_call(), from user mode and from another stack too. */
    catching = false;
    frame->rip = catch_rip;
    frame->rsp = catch_rsp;
    frame->rbp = catch_rbp;
    frame->cs = KERNEL_CS;
    frame->ss = KERNEL_DS;
    frame->rflags = 2;
}

bool ONE_COPY catch_call(void (*body)(void *), void *arg)
{
    caught = (struct caught){0};
    catching = true;
    __asm__ volatile("push %%rbp\n\t"
                     "push %%rbx\n\t"
                     "lea 1f(%%rip), %%rax\n\t"
                     "mov %%rax, %2\n\t"
                     "mov %%rsp, %3\n\t"
                     "mov %%rbp, %4\n\t"
                     "mov %%rsp, %%rbx\n\t"
                     "and $-16, %%rsp\n\t"
                     "call *%0\n\t"
                     "mov %%rbx, %%rsp\n\t"
                     "1: pop %%rbx\n\t"
                     "pop %%rbp"
                     : "+S"(body), "+D"(arg), "=m"(catch_rip), "=m"(catch_rsp), "=m"(catch_rbp)
                     :
                     : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                       "memory", "cc");
    catching = false;
    return caught.happened;
}

void show_caught(const char *text)
{
    put(text);
    if (!caught.happened) {
        line(" nothing");
        return;
    }
    put(" vector ");
    put_dec(caught.vector);
    put(" error ");
    put_hex(caught.error);
    if (caught.vector == 14) {
        put(" address ");
        put_hex(caught.cr2);
    }
    put_char('\n');
}

uint64_t *page_entry(uint64_t va)
{
    uint64_t *large = &page_l2[va >> 21];

    if ((*large & 0x80) != 0) {
        uint64_t *table = small_pages[small_pages_used++];
        for (unsigned i = 0; i < 512; i++) {
            table[i] = (va & ~0x1fffffull) + 4096ull * i + 7;
        }
        *large = (uintptr_t)table | 7;
        write_cr3(read_cr3());
    }
    uint64_t *table = (uint64_t *)(uintptr_t)(*large & ~0xfffull);
    return &table[va >> 12 & 511];
}

void apic_enable(void)
{
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(APIC_SVR, 0x1ff);
}

void apic_eoi(void)
{
    wrmsr(APIC_EOI, 0);
}

void ap_main(void)
{
    __asm__ volatile("ltr %w0" : : "r"(0x68));
    __atomic_store_n(&ap_running, true, __ATOMIC_SEQ_CST);
    ap_fn();
}

void ap_start(void (*fn)(void))
{
    ap_fn = fn;
    ap_running = false;
    gdt[0x68 / 8] &= ~(1ull << 41); /* its TSS, which is busy when it has run before */
    memcpy((void *)0x8000, trampoline, (size_t)(trampoline_end - trampoline));
    apic_enable();
    wrmsr(APIC_ICR, 1ull << 32 | 0x4500); /* INIT */
    wrmsr(APIC_ICR, 1ull << 32 | 0x4608); /* SIPI, page 8 */
    while (!__atomic_load_n(&ap_running, __ATOMIC_SEQ_CST)) {
        pause();
    }
}
