/* Page tables: accessed and dirty bits, WP, SMEP, SMAP, 1 GiB pages, INVLPG and CR3, global pages. */
#include "guest.h"

#define VA 0x3000000ull
#define A 0x20u
#define D 0x40u

static void read_byte(void *arg)
{
    uint8_t value;

    __asm__ volatile("movb (%1), %0" : "=q"(value) : "r"(arg) : "memory");
}

static void write_byte(void *arg)
{
    __asm__ volatile("movb $1, (%0)" : : "r"(arg) : "memory");
}

static void write_byte_with_ac(void *arg)
{
    __asm__ volatile("stac\n\tmovb $2, (%0)\n\tclac" : : "r"(arg) : "memory");
}

static void call_address(void *arg)
{
    __asm__ volatile("call *%0" : : "r"(arg) : "memory");
}

static void read_modify(void *arg)
{
    __asm__ volatile("lock incl (%0)" : : "r"(arg) : "memory", "cc");
}

static void accessed_and_dirty(void)
{
    uint64_t *entry = page_entry(VA);

    entry[0] = VA | 7;
    write_cr3(read_cr3());
    show("fresh", entry[0] & (A | D));
    read_byte((void *)VA);
    show("after read", entry[0] & (A | D));
    write_byte((void *)VA);
    show("after write", entry[0] & (A | D));
    entry[0] = VA | 7;
    invlpg(VA);
    read_modify((void *)VA);
    show("after read-modify-write", entry[0] & (A | D));
    show("table accessed", page_l2[VA >> 21] & A);
    show("table dirty", page_l2[VA >> 21] & 0x80 ? 1 : 0);

    entry[0] = VA | 5;
    invlpg(VA);
    (void)catch_call(write_byte, (void *)VA);
    show_caught("write read-only");
    show("refused write", entry[0] & D);

    page_l2[0x3200000 >> 21] &= ~(uint64_t)(A | D);
    write_cr3(read_cr3());
    write_byte((void *)0x3200000);
    show("large page", page_l2[0x3200000 >> 21] & (A | D));
}

static void remap(void)
{
    uint64_t *entry = page_entry(VA);
    volatile uint32_t *at = (volatile uint32_t *)VA;

    *(volatile uint32_t *)0x3010000 = 0x11111111;
    *(volatile uint32_t *)0x3011000 = 0x22222222;
    entry[0] = 0x3010000 | 7;
    invlpg(VA);
    show("first frame", *at);
    entry[0] = 0x3011000 | 7;
    invlpg(VA);
    show("after invlpg", *at);
    entry[0] = 0x3010000 | 7;
    write_cr3(read_cr3());
    show("after cr3", *at);
    entry[0] = 0;
    invlpg(VA);
    (void)catch_call(read_byte, (void *)VA);
    show_caught("unmapped");
    entry[0] = 0x3011000 | 7;
    show("mapped again without flush", *at);

    write_cr4(read_cr4() | CR4_PGE);
    entry[0] = 0x3010000 | 0x107;
    invlpg(VA);
    show("global", *at);
    entry[0] = 0x3011000 | 0x107;
    write_cr4(read_cr4() & ~(uint64_t)CR4_PGE);
    show("after PGE off", *at);
    entry[0] = VA | 7;
    invlpg(VA);
}

static void gigabyte_page(void)
{
    const uint64_t saved = page_l3[1];

    if ((cpuid(0x80000001, 0).edx & 1u << 26) == 0) {
        show("through 1 GiB page", 0x33333333);
        show("1 GiB page accessed", A);
        return;
    }
    *(volatile uint32_t *)0x3012000 = 0x33333333;
    page_l3[1] = 0x87; /* 1 GiB at 0x40000000 maps 0 */
    write_cr3(read_cr3());
    show("through 1 GiB page", *(volatile uint32_t *)0x43012000);
    show("1 GiB page accessed", page_l3[1] & (A | D));
    page_l3[1] = saved;
    write_cr3(read_cr3());
}

static void supervisor_protection(void)
{
    uint64_t *code = page_entry(0x3020000);
    const struct cpuid_regs leaf7 = cpuid(7, 0);

    *(volatile uint8_t *)0x3020000 = 0xc3;
    check("SMEP and SMAP exist", (leaf7.ebx & 1u << 7) != 0 && (leaf7.ebx & 1u << 20) != 0);
    (void)catch_call(call_address, (void *)0x3020000);
    show_caught("user page executed");
    /* Our own code must be a supervisor's then: the pages around 1 MiB lose U. */
    for (unsigned i = 0; i < 4; i++) {
        page_l2[i] &= ~4ull;
    }
    write_cr3(read_cr3());
    write_cr4(read_cr4() | CR4_SMEP);
    (void)catch_call(call_address, (void *)0x3020000);
    show_caught("user page executed with SMEP");
    write_cr4(read_cr4() | CR4_SMAP);
    (void)catch_call(read_byte, (void *)0x3020000);
    show_caught("user page read with SMAP");
    (void)catch_call(write_byte, (void *)0x3020000);
    show_caught("user page written with SMAP");
    (void)catch_call(write_byte_with_ac, (void *)0x3020000);
    show_caught("user page written with AC");
    *code &= ~4ull;
    invlpg(0x3020000);
    (void)catch_call(write_byte, (void *)0x3020000);
    show_caught("supervisor page written");
    write_cr4(read_cr4() & ~(uint64_t)(CR4_SMEP | CR4_SMAP));
}

static void process_contexts(void)
{
    if ((cpuid(1, 0).ecx & 1u << 17) == 0) {
        line("PCID ok");
        return;
    }
    uint64_t *entry = page_entry(VA);
    volatile uint32_t *at = (volatile uint32_t *)VA;
    bool good = true;

    write_cr4(read_cr4() | CR4_PCIDE);
    entry[0] = 0x3010000 | 7;
    write_cr3(read_cr3() | 1);
    good = good && *at == 0x11111111;
    entry[0] = 0x3011000 | 7;
    /* Context 2 is loaded with a flush: it must see the new frame. */
    write_cr3((read_cr3() & ~0xfffull) | 2);
    good = good && *at == 0x22222222;
    /* All contexts, by INVPCID. */
    uint64_t descriptor[2] = {0, 0};
    __asm__ volatile("invpcid %0, %1" : : "m"(descriptor), "r"(2ull) : "memory");
    write_cr3(1ull << 63 | (read_cr3() & ~0xfffull) | 1);
    good = good && *at == 0x22222222 && (read_cr3() & 0xfff) == 1;
    write_cr3(read_cr3() & ~0xfffull);
    write_cr4(read_cr4() & ~(uint64_t)CR4_PCIDE);
    check("PCID", good);
}

int main(void)
{
    accessed_and_dirty();
    remap();
    gigabyte_page();
    supervisor_protection();
    process_contexts();
    return 0;
}
