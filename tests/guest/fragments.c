/*
 * Memory that is mapped many times over, with code in every other page of it:
 * more pieces, when each is write-protected, than a host gives a process. Two
 * CPUs work there, and nothing may be lost but time.
 */
#include "guest.h"

#define UPPER 0xffff888000000000ull
#define DATA 0x1000000ull /* 16 MiB, mapped ALIASES times in the upper half */
#define DATA_REGIONS 8u
#define ALIASES 48u
#define PAGES (DATA_REGIONS * 512u)
#define LARGE_PAGE 0x83u /* present, writable, supervisor's */

static uint64_t upper_l3[512] __attribute__((aligned(4096)));
static uint64_t upper_l2[512] __attribute__((aligned(4096)));
static volatile unsigned arrived;
static volatile bool other_good;

static uint64_t place(unsigned alias, unsigned page)
{
    return UPPER + ((uint64_t)(alias % ALIASES) * DATA_REGIONS << 21) + page * 4096ull;
}

static void make_tables(void)
{
    for (unsigned i = 0; i < ALIASES * DATA_REGIONS; i++) {
        upper_l2[i] = (DATA + ((uint64_t)(i % DATA_REGIONS) << 21)) | LARGE_PAGE;
    }
    upper_l3[0] = (uintptr_t)upper_l2 | 3;
    page_l4[273] = (uintptr_t)upper_l3 | 3;
}

/* `mov $value, %eax; ret`, written through one mapping. */
static void write_code(unsigned alias, unsigned page, uint32_t value)
{
    volatile uint8_t *code = (volatile uint8_t *)(uintptr_t)place(alias, page);

    code[3] = 0xb8;
    *(volatile uint32_t *)(code + 4) = value;
    code[8] = 0xc3;
}

static uint32_t run_code(unsigned alias, unsigned page)
{
    return ((uint32_t(*)(void))(uintptr_t)(place(alias, page) + 3))();
}

static void add_to(unsigned alias, unsigned page)
{
    volatile uint64_t *sum = (volatile uint64_t *)(uintptr_t)place(alias, page);

    __asm__ volatile("lock incq %0" : "+m"(*sum) : : "cc");
    sum[1 + alias % 8] = page;
}

static void touch_all(unsigned cpu)
{
    for (unsigned i = 0; i < ALIASES; i++) {
        for (unsigned region = 0; region < DATA_REGIONS; region++) {
            add_to(i, region * 512 + 1 + 2 * cpu);
        }
    }
}

/* Each CPU has the code of every other pair of pages; they share what lies between. */
static bool work(unsigned cpu, uint32_t round)
{
    bool good = true;

    for (unsigned page = 2 * cpu; page < PAGES; page += 4) {
        unsigned alias = page * 7 + round;

        write_code(alias, page, page + round);
        good = good && run_code(alias + 11, page) == page + round;
        write_code(alias + 5, page, ~page);
        good = good && run_code(alias + 17, page) == (uint32_t)~page;
        add_to(alias + 23, page + 1);
        add_to(alias + 31, (page + 3) % PAGES);
    }
    return good;
}

static void meet(unsigned count)
{
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    while (arrived < count) {
        pause();
    }
}

static bool take_part(unsigned cpu)
{
    bool good;

    write_cr4(read_cr4() | CR4_SMAP | CR4_PGE);
    meet(2);
    touch_all(cpu);
    meet(4);
    good = work(cpu, 1);
    good = work(cpu, 2) && good;
    meet(6);
    return good;
}

static void cpu1(void)
{
    other_good = take_part(1);
    meet(8);
    for (;;) {
        __asm__ volatile("hlt");
    }
}

int main(void)
{
    uint64_t sum = 0;
    bool good;

    make_tables();
    for (unsigned i = 0; i < 4 * 512; i++) {
        page_l2[i] &= ~4ull; /* the supervisor's, as SMAP wants it */
    }
    write_cr3(read_cr3());
    ap_start(cpu1);
    good = take_part(0);
    meet(8);
    check("CPU 0 runs what it wrote", good);
    check("CPU 1 runs what it wrote", other_good);
    good = true;
    for (unsigned page = 0; page < PAGES; page += 2) {
        good = good && run_code(page + 3, page) == (uint32_t)~page;
        sum += *(volatile uint64_t *)(uintptr_t)place(page + 9, page + 1);
    }
    check("the code is still there", good);
    show("additions", sum);
    return 0;
}
