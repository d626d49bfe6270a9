/* Two CPUs: start-up, locked instructions, IPIs both ways, TLB shootdown, code changed by the other. */
#include "guest.h"

#define ROUNDS 2000u
#define VA 0x3000000ull

static volatile unsigned stage; /* what CPU 1 may do */
static volatile unsigned done;  /* what CPU 1 has done */
static volatile unsigned ipis;
static uint64_t counters[4];
static uint64_t pair[2] __attribute__((aligned(16)));
static volatile uint32_t remote_value;
static volatile unsigned shot;

static void count_locked(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("lock incq %0" : "+m"(counters[0]) : : "memory", "cc");
        uint64_t one = 1;
        __asm__ volatile("lock xaddq %1, %0" : "+m"(counters[1]), "+r"(one) : : "memory", "cc");
        uint64_t old = __atomic_load_n(&counters[2], __ATOMIC_RELAXED);
        uint8_t ok;
        do {
            uint64_t next = old + 1;
            __asm__ volatile("lock cmpxchgq %3, %1\n\tsetz %2"
                             : "+a"(old), "+m"(counters[2]), "=q"(ok)
                             : "r"(next)
                             : "memory", "cc");
        } while (ok == 0);
        uint64_t low = pair[0];
        uint64_t high = pair[1];
        do {
            const uint64_t next_low = low + 1;
            const uint64_t next_high = high - 1;
            __asm__ volatile("lock cmpxchg16b %2\n\tsetz %3"
                             : "+a"(low), "+d"(high), "+m"(pair), "=q"(ok)
                             : "b"(next_low), "c"(next_high)
                             : "memory", "cc");
        } while (ok == 0);
    }
}

static void on_ipi(struct frame *frame)
{
    (void)frame;
    __atomic_fetch_add(&ipis, 1, __ATOMIC_SEQ_CST);
    apic_eoi();
}

static void on_shootdown(struct frame *frame)
{
    (void)frame;
    invlpg(VA);
    shot = 1;
    apic_eoi();
}

static void wait_stage(unsigned wanted)
{
    while (__atomic_load_n(&stage, __ATOMIC_SEQ_CST) < wanted) {
        pause();
    }
}

static void finish(unsigned what)
{
    __atomic_store_n(&done, what, __ATOMIC_SEQ_CST);
}

static uint32_t call_patched(void)
{
    uint32_t value;

    __asm__ volatile("call *%1" : "=a"(value) : "r"(0x3100000ull) : "memory");
    return value;
}

static void cpu1(void)
{
    apic_enable();
    remote_value = (uint32_t)rdmsr(APIC_ID);
    finish(1);
    wait_stage(2);
    count_locked();
    finish(2);
    wait_stage(3);
    interrupts_on();
    wrmsr(APIC_ICR, 0x41); /* to CPU 0 */
    while (ipis < 2) {
        pause();
    }
    finish(3);
    /* Reads through the mapping until CPU 0 has changed it and said so. */
    uint32_t seen = *(volatile uint32_t *)VA;
    remote_value = seen;
    finish(4);
    while (shot == 0) {
        seen = *(volatile uint32_t *)VA;
    }
    remote_value = *(volatile uint32_t *)VA;
    finish(5);
    wait_stage(6);
    bool good = true;
    for (uint32_t i = 0; i < 50; i++) {
        while (__atomic_load_n(&stage, __ATOMIC_SEQ_CST) < 100 + i) {
            pause();
        }
        struct cpuid_regs serialize = cpuid(0, 0);
        (void)serialize;
        good = good && call_patched() == i;
        finish(100 + i);
    }
    remote_value = good ? 1 : 0;
    finish(1000);
    interrupts_off();
    for (;;) {
        __asm__ volatile("hlt");
    }
}

static void wait_done(unsigned what)
{
    while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < what) {
        pause();
    }
}

static void go(unsigned what)
{
    __atomic_store_n(&stage, what, __ATOMIC_SEQ_CST);
}

int main(void)
{
    uint64_t *entry = page_entry(VA);

    on_vector(0x41, on_ipi);
    on_vector(0x42, on_shootdown);
    *(volatile uint32_t *)0x3010000 = 0x11111111;
    *(volatile uint32_t *)0x3011000 = 0x22222222;
    entry[0] = 0x3010000 | 7;
    ap_start(cpu1);
    wait_done(1);
    show("other CPU's APIC", remote_value);

    go(2);
    count_locked();
    wait_done(2);
    show("lock inc", counters[0]);
    show("lock xadd", counters[1]);
    show("lock cmpxchg", counters[2]);
    show("lock cmpxchg16b", pair[0] + pair[1] == 0 ? pair[0] : 0);

    interrupts_on();
    go(3);
    wrmsr(APIC_ICR, 1ull << 32 | 0x41);
    wait_done(3);
    show("IPIs", ipis);

    wait_done(4);
    show("before shootdown", remote_value);
    entry[0] = 0x3011000 | 7;
    wrmsr(APIC_ICR, 1ull << 32 | 0x42);
    wait_done(5);
    show("after shootdown", remote_value);

    /* mov $i, %eax; ret: written here, called there. */
    volatile uint8_t *code = (volatile uint8_t *)0x3100000;
    go(6);
    for (uint32_t i = 0; i < 50; i++) {
        code[0] = 0xb8;
        *(volatile uint32_t *)(code + 1) = i;
        code[5] = 0xc3;
        go(100 + i);
        wait_done(100 + i);
    }
    wait_done(1000);
    show("cross-modified code", remote_value);
    interrupts_off();
    return 0;
}
