/*
 * The upper half of the address space, where kernels live, with SMAP on: which
 * addresses exist, accessed and dirty bits, changed tables, stacks and locked
 * instructions there, code changed through it, string instructions that are broken
 * into, and another CPU's shootdown.
 */
#include "guest.h"

#define BASE 0xffff888000000000ull  /* all memory, by pages of 2 MiB */
#define SMALL (BASE + (1ull << 30)) /* pages of 4 KiB */
#define LAST 0xfffffffffffff000ull
#define DATA 0x3000000ull /* memory that the pages map */
#define SUPERVISOR 3u     /* present and writable */
#define A 0x20u
#define D 0x40u
#define G 0x100u
#define ROUNDS 300u

static uint64_t upper_l3[512] __attribute__((aligned(4096)));
static uint64_t upper_l2[2][512] __attribute__((aligned(4096)));
static uint64_t upper_l1[512] __attribute__((aligned(4096)));
static uint64_t last_l3[512] __attribute__((aligned(4096)));
static uint64_t last_l2[512] __attribute__((aligned(4096)));
static uint64_t last_l1[512] __attribute__((aligned(4096)));

static volatile unsigned stage; /* what CPU 1 may do */
static volatile unsigned done;  /* what CPU 1 has done */
static volatile uint64_t seen;

static uint64_t page(unsigned index)
{
    return SMALL + index * 4096ull;
}

static uint64_t frame_at(unsigned index)
{
    return DATA + index * 4096ull;
}

static void set_page(unsigned index, unsigned frame, uint64_t flags)
{
    ((volatile uint64_t *)upper_l1)[index] = frame_at(frame) | flags;
    invlpg(page(index));
}

static uint64_t bits(unsigned index)
{
    return ((volatile uint64_t *)upper_l1)[index] & (A | D);
}

ONE_COPY static uint64_t read_qword(uint64_t va)
{
    return *(volatile uint64_t *)va;
}

ONE_COPY static void write_qword(uint64_t va, uint64_t value)
{
    *(volatile uint64_t *)va = value;
}

static void read_it(void *va)
{
    (void)read_qword((uint64_t)va);
}

static void write_it(void *va)
{
    write_qword((uint64_t)va, 1);
}

static void add_it(void *va)
{
    __asm__ volatile("lock addq $1, (%0)" : : "r"(va) : "memory", "cc");
}

static void make_tables(void)
{
    for (unsigned i = 0; i < 32; i++) {
        upper_l2[0][i] = (uint64_t)i << 21 | 0x80 | SUPERVISOR;
    }
    upper_l2[1][0] = (uintptr_t)upper_l1 | SUPERVISOR;
    upper_l3[0] = (uintptr_t)upper_l2[0] | SUPERVISOR;
    upper_l3[1] = (uintptr_t)upper_l2[1] | SUPERVISOR;
    page_l4[273] = (uintptr_t)upper_l3 | SUPERVISOR;
    last_l1[511] = frame_at(9) | SUPERVISOR;
    last_l2[511] = (uintptr_t)last_l1 | SUPERVISOR;
    last_l3[511] = (uintptr_t)last_l2 | SUPERVISOR;
    page_l4[511] = (uintptr_t)last_l3 | SUPERVISOR;
    /* The lower half is the supervisor's, too, but for the page at DATA. */
    for (unsigned i = 0; i < 4 * 512; i++) {
        page_l2[i] &= i == DATA >> 21 ? ~0ull : ~4ull;
    }
    write_cr3(read_cr3());
    write_cr4(read_cr4() | CR4_SMAP | CR4_PGE);
}

static void addresses(void)
{
    static const uint64_t none[] = {
        0x800000000000ull,     0x1234567812345678ull, 0xffff7fffffffffffull, 0xffff800000000000ull,
        0xffff880000000000ull, 0xffffc90000000000ull, 0xffffffff80000000ull, 0xffffffffffffeff8ull,
    };

    for (unsigned round = 0; round < 8; round++) {
        for (unsigned i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
            const bool faulted = catch_call(read_it, (void *)none[i]);

            if (round == 7) {
                check("no such address", faulted);
                show_caught("read");
                (void)catch_call(write_it, (void *)none[i]);
                show_caught("write");
            }
        }
        (void)catch_call(read_it, (void *)DATA);
    }
    show_caught("user page");
    write_qword(LAST + 0xff8, 0x1122334455667788ull);
    show("last quadword", read_qword(BASE + frame_at(9) + 0xff8));
    (void)catch_call(read_it, (void *)(LAST + 0xffc));
    check("beyond the last byte", caught.happened || read_qword(LAST + 0xff8) != 0);
}

static void accessed_and_dirty(void)
{
    set_page(1, 1, SUPERVISOR);
    (void)read_qword(page(1));
    show("after read", bits(1));
    write_qword(page(1), 1);
    show("after write", bits(1));
    set_page(1, 1, SUPERVISOR | A);
    set_page(2, 2, SUPERVISOR | A);
    (void)read_qword(page(1));
    (void)read_qword(page(2));
    write_qword(page(2), 1);
    show("neighbour", bits(1));
    set_page(1, 1, SUPERVISOR);
    add_it((void *)page(1));
    show("after locked add", bits(1));
    set_page(1, 1, 1);
    (void)catch_call(write_it, (void *)page(1));
    show_caught("read-only");
    (void)catch_call(add_it, (void *)page(1));
    show_caught("read-only, locked");
    show("refused", bits(1) & D);
}

static void remap(void)
{
    bool good = true;

    for (unsigned i = 0; i < ROUNDS; i++) {
        write_qword(BASE + frame_at(3), 0x3000 + i);
        write_qword(BASE + frame_at(4), 0x4000 + i);
        set_page(5, 3, SUPERVISOR);
        good = good && read_qword(page(5)) == 0x3000 + i;
        set_page(5, 4, SUPERVISOR);
        good = good && read_qword(page(5)) == 0x4000 + i;
        upper_l1[5] = frame_at(3) | SUPERVISOR;
        write_cr3(read_cr3());
        good = good && read_qword(page(5)) == 0x3000 + i;
        upper_l1[5] = frame_at(4) | SUPERVISOR | G;
        write_cr4(read_cr4() & ~(uint64_t)CR4_PGE);
        write_cr4(read_cr4() | CR4_PGE);
        good = good && read_qword(page(5)) == 0x4000 + i;
        write_cr4(read_cr4() | CR4_PGE);
    }
    check("remapped", good);
    set_page(5, 0, 0);
    (void)catch_call(read_it, (void *)page(5));
    show_caught("unmapped");

    /* Two pages that do not follow each other in memory. */
    set_page(6, 8, SUPERVISOR);
    set_page(7, 6, SUPERVISOR);
    write_qword(page(7) - 3, 0x8877665544332211ull);
    show("first part", read_qword(BASE + frame_at(8) + 0xff8) >> 40);
    show("second part", read_qword(BASE + frame_at(6)) & 0xffffffffffull);
    show("across", read_qword(page(7) - 3));
    set_page(7, 0, 0);
    write_qword(page(6) + 0xff8, 0);
    (void)catch_call(write_it, (void *)(page(7) - 3));
    show_caught("second page missing");
    show("nothing written", read_qword(page(6) + 0xff8));
}

/* Calls and pushes on a stack in the upper half, from code there. */
ONE_COPY static uint64_t ackermann(uint64_t m, uint64_t n)
{
    return m == 0 ? n + 1 : n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}

static uint64_t call_upper(uint64_t (*fn)(uint64_t, uint64_t), uint64_t a, uint64_t b)
{
    uint64_t result;
    register uint64_t target __asm__("r12") = BASE + (uintptr_t)fn;
    uint64_t stack = BASE + DATA + 0x180000;

    __asm__ volatile("xchg %%rsp, %%rbx\n\tcall *%4\n\txchg %%rsp, %%rbx"
                     : "=a"(result), "+b"(stack), "+D"(a), "+S"(b)
                     : "r"(target)
                     : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

static void code(void)
{
    const uint64_t at = BASE + DATA + 0x100000;
    bool good = true;

    show("ackermann", call_upper(ackermann, 2, 40));
    for (uint32_t i = 0; i < ROUNDS; i++) {
        /* Written through one mapping, run at another, with data beside it in the page. */
        *(volatile uint8_t *)at = 0xb8;
        *(volatile uint32_t *)(at + 1) = i;
        *(volatile uint8_t *)(at + 5) = 0xc3;
        *(volatile uint64_t *)(at + 0x800) = i;
        good = good && ((uint32_t(*)(void))(uintptr_t)(at - BASE))() == i;
        good = good && *(volatile uint64_t *)(at + 0x800) == i;
    }
    check("changed code", good);
}

struct string_regs {
    uint64_t rdi, rsi, rcx, rax;
};

extern const char string_stos[]; /* the instruction in fill() */

ONE_COPY static void fill(struct string_regs *r)
{
    __asm__ volatile("string_stos: rep stosb"
                     : "+D"(r->rdi), "+c"(r->rcx)
                     : "a"(r->rax)
                     : "memory");
}

ONE_COPY static void fill_qwords(struct string_regs *r)
{
    __asm__ volatile("rep stosq" : "+D"(r->rdi), "+c"(r->rcx) : "a"(r->rax) : "memory");
}

ONE_COPY static void move_words(struct string_regs *r)
{
    __asm__ volatile("rep movsw" : "+D"(r->rdi), "+S"(r->rsi), "+c"(r->rcx) : : "memory");
}

ONE_COPY static void move_back(struct string_regs *r)
{
    __asm__ volatile("std\n\trep movsb\n\tcld"
                     : "+D"(r->rdi), "+S"(r->rsi), "+c"(r->rcx)
                     :
                     : "memory", "cc");
}

static void show_string(const char *text, const struct string_regs *r)
{
    line(text);
    show("rdi", r->rdi);
    show("rsi", r->rsi);
    show("rcx", r->rcx);
}

static struct string_regs broken; /* the registers when the page was missing */
static volatile unsigned ticks;
static volatile bool ticks_good;

/* The page that is missing comes, and the instruction goes on. */
static void bring_page(struct frame *frame)
{
    broken = (struct string_regs){frame->rdi, frame->rsi, frame->rcx, frame->rax};
    set_page(21, 21, SUPERVISOR);
}

static void on_tick(struct frame *frame)
{
    ticks++;
    if (frame->rip == (uintptr_t)string_stos) {
        ticks_good = ticks_good && frame->rdi + frame->rcx == BASE + 0x2100000;
    }
    apic_eoi();
}

static void strings_faulting(void)
{
    struct string_regs r = {page(20) + 0xfc0, 7, 16, 0x1122334455667788ull};

    on_vector(14, bring_page);
    set_page(20, 20, SUPERVISOR);
    set_page(21, 0, 0);
    fill_qwords(&r);
    broken.rsi = r.rsi; /* the compiler's */
    show_string("broken by a missing page", &broken);
    show_string("and done", &r);
    show("bits", bits(21));
    show("last stored", read_qword(page(21) + 0x38));
    show("behind it", read_qword(page(21) + 0x40));
    set_page(21, 0, 0);
    r = (struct string_regs){page(20), page(20) + 0xff0, 16, 0};
    move_words(&r);
    show_string("broken by a missing source", &broken);
    show_string("and done", &r);
    show("moved", read_qword(page(20) + 0x18));
    set_page(21, 21, SUPERVISOR);
    write_qword(page(21) + 0x10, 0xa1a2a3a4a5a6a7a8ull);
    r = (struct string_regs){page(20) + 0x107, page(21) + 0x17, 8, 0};
    move_back(&r);
    show_string("downwards", &r);
    show("moved", read_qword(page(20) + 0x100));
    on_vector(14, NULL);
    set_page(21, 21, 1);
    r = (struct string_regs){page(21), 0, 3, 0};
    (void)catch_call((void (*)(void *))fill, &r);
    show_caught("filled read-only");
    r = (struct string_regs){0x5000, 0, 0, 0};
    fill(&r);
    show_string("nothing to do", &r);
}

static void strings_on_code(void)
{
    const uint64_t at = BASE + DATA + 0x104000;
    bool good = true;

    for (uint32_t i = 0; i < ROUNDS; i++) {
        struct string_regs r = {at, 0, 4096, 0x90};

        fill(&r);
        *(volatile uint8_t *)(at + 0xf00) = 0xb8;
        *(volatile uint32_t *)(at + 0xf01) = i;
        *(volatile uint8_t *)(at + 0xf05) = 0xc3;
        good = good && r.rdi == at + 4096 &&
               ((uint32_t(*)(void))(uintptr_t)(at - BASE + 0xef8))() == i;
    }
    check("code filled anew", good);
}

static void strings_interrupted(void)
{
    ticks_good = true;
    apic_enable();
    on_vector(0x50, on_tick);
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, 0x20050);
    wrmsr(APIC_TIMER_INITIAL, 100000);
    interrupts_on();
    while (ticks < 20) {
        struct string_regs r = {BASE + 0x2000000, 0, 0x100000, ticks};

        fill(&r);
        ticks_good = ticks_good && r.rcx == 0 && r.rdi == BASE + 0x2100000;
    }
    interrupts_off();
    wrmsr(APIC_TIMER_INITIAL, 0);
    wrmsr(APIC_LVT_TIMER, 0x10050);
    check("interrupted", ticks_good);
}

static void wait_stage(unsigned wanted)
{
    while (stage != wanted) {
        pause();
    }
}

static void other_cpu(void)
{
    write_cr4(read_cr4() | CR4_SMAP | CR4_PGE);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        wait_stage(2 * i - 1);
        seen = read_qword(page(10));
        done = 2 * i - 1;
        wait_stage(2 * i);
        invlpg(page(10));
        seen = read_qword(page(10));
        add_it((void *)page(11));
        done = 2 * i;
    }
}

static void step(unsigned to)
{
    stage = to;
    while (done != to) {
        add_it((void *)page(11));
    }
}

static void shootdown(void)
{
    bool good = true;

    set_page(11, 11, SUPERVISOR);
    write_qword(page(11), 0);
    write_qword(BASE + frame_at(12), 12);
    write_qword(BASE + frame_at(14), 14);
    set_page(10, 12, SUPERVISOR);
    ap_start(other_cpu);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        unsigned to = i % 2 != 0 ? 14 : 12;

        step(2 * i - 1);
        good = good && seen == 26 - to;
        set_page(10, to, SUPERVISOR);
        step(2 * i);
        good = good && seen == to;
    }
    check("other CPU's pages", good);
    check("other CPU's additions", read_qword(page(11)) >= ROUNDS);
}

/* The tables as one of their own entries shows them: some kernels have that in slot 256. */
static void own_tables(void)
{
    const uint64_t entry = 0xffff800000000000ull + (273ull << 30);

    page_l4[256] = (uintptr_t)page_l4 | SUPERVISOR;
    write_cr3(read_cr3());
    for (unsigned i = 0; i < 8; i++) {
        check("table of the small pages",
              (read_qword(entry + (1ull << 21) + 8 * 10) | A | D) == (upper_l1[10] | A | D));
        show("still there", read_qword(BASE + frame_at(9) + 0xff8));
    }
}

int main(void)
{
    make_tables();
    accessed_and_dirty();
    remap();
    code();
    addresses();
    strings_faulting();
    strings_on_code();
    strings_interrupted();
    shootdown();
    own_tables();
    return 0;
}
