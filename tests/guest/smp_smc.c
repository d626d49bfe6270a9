/* Two CPUs that write code into one cache line and run each other's, without a pause. */
#include "guest.h"

#define LINE 0x3100000ull
#define ROUNDS 5000u
#define PAGES 4u
#define TURNS 20000u
#define OWN 0x40000000u

static volatile unsigned ready;
static volatile unsigned finished;
static volatile unsigned turns;
static volatile bool other_good;

/* `mov $value, %eax; ret`, its value aligned so that a store to it is one. */
static uint64_t function_of(unsigned cpu, bool is_own)
{
    return LINE + 3 + 16 * cpu + (is_own ? 32 : 0);
}

static uint64_t page_of(unsigned cpu, unsigned page)
{
    return LINE + 4096 * (1 + cpu * PAGES + page) + 3;
}

static void set_value(uint64_t function, uint32_t value)
{
    __atomic_store_n((uint32_t *)(uintptr_t)(function + 1), value, __ATOMIC_SEQ_CST);
}

/* The same by a string instruction, for code that no other CPU runs. */
static void copy_value(uint64_t function, uint32_t value)
{
    const void *from = &value;
    void *to = (void *)(uintptr_t)(function + 1);
    uint64_t count = sizeof(value);

    __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
}

static void write_function(uint64_t function)
{
    volatile uint8_t *code = (volatile uint8_t *)(uintptr_t)function;

    code[0] = 0xb8;
    set_value(function, 0);
    code[5] = 0xc3;
}

static uint32_t call_at(uint64_t at)
{
    uint32_t value;

    __asm__ volatile("call *%1" : "=a"(value) : "r"(at) : "memory");
    return value;
}

static void meet(volatile unsigned *counter)
{
    __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
    while (*counter < 2) {
        pause();
    }
}

/*
 * What a CPU wrote itself it runs at once (SDM 3A 8.1.3); of the other's values
 * it sees them in their order, and the last one after it has serialized.
 */
static bool hammer(unsigned cpu)
{
    uint64_t theirs = function_of(1 - cpu, false);
    uint32_t last = 0;
    bool good = true;

    write_function(function_of(cpu, false));
    write_function(function_of(cpu, true));
    meet(&ready);
    (void)cpuid(0, 0);
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        uint32_t value;

        set_value(function_of(cpu, false), i);
        value = call_at(theirs);
        good = good && value >= last && value <= ROUNDS;
        last = value;
        set_value(function_of(cpu, true), OWN + i);
        good = good && call_at(function_of(cpu, true)) == OWN + i;
    }
    meet(&finished);
    (void)cpuid(0, 0);
    return good && call_at(theirs) == ROUNDS;
}

/*
 * Pages are data for one CPU and code for the other in turn, while string
 * instructions write to a page that always holds code.
 */
static bool take_turns(unsigned cpu)
{
    uint64_t own = function_of(cpu, true);
    uint64_t last[PAGES] = {0};
    bool good = true;

    write_function(own);
    for (unsigned page = 0; page < PAGES; page++) {
        write_function(page_of(cpu, page));
    }
    meet(&turns);
    (void)cpuid(0, 0);
    for (uint32_t i = 1; i <= TURNS; i++) {
        unsigned page = i % PAGES;
        uint32_t value;

        set_value(page_of(cpu, page), i);
        copy_value(own, i);
        value = call_at(page_of(1 - cpu, page));
        good = good && value >= last[page] && value <= TURNS && call_at(own) == i;
        last[page] = value;
    }
    return good;
}

static void cpu1(void)
{
    other_good = take_turns(1) && hammer(1);
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        __asm__ volatile("hlt");
    }
}

int main(void)
{
    bool good;

    apic_enable();
    ap_start(cpu1);
    good = take_turns(0) && hammer(0);
    check("CPU 0 runs what both write", good);
    while (finished < 3) {
        pause();
    }
    check("CPU 1 runs what both write", other_good);
    return 0;
}
