/* External interrupts: PIT through the PIC, local APIC timer, self-IPI, NMI, priorities, HLT. */
#include "guest.h"

static volatile unsigned timer_ticks;
static volatile unsigned apic_ticks;
static volatile unsigned ipis[4];
static volatile unsigned nmis;
static volatile unsigned order;
static volatile unsigned first;

static void on_pit(struct frame *frame)
{
    (void)frame;
    timer_ticks++;
    out8(0x20, 0x20);
}

static void on_apic_timer(struct frame *frame)
{
    (void)frame;
    apic_ticks++;
    apic_eoi();
}

static void on_ipi(struct frame *frame)
{
    const unsigned which = frame->vector == 0x41 ? 0 : frame->vector == 0x91 ? 1 : 2;

    ipis[which]++;
    if (order++ == 0) {
        first = (unsigned)frame->vector;
    }
    apic_eoi();
}

static void on_nmi(struct frame *frame)
{
    (void)frame;
    nmis++;
}

static void pic_init(void)
{
    out8(0x20, 0x11);
    out8(0x21, 0x20);
    out8(0x21, 4);
    out8(0x21, 1);
    out8(0xa0, 0x11);
    out8(0xa1, 0x28);
    out8(0xa1, 2);
    out8(0xa1, 1);
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
}

static void pit_through_pic(void)
{
    pic_init();
    on_vector(0x20, on_pit);
    wrmsr(APIC_LVT_LINT0, 0x700); /* ExtINT */
    out8(0x43, 0x34);             /* channel 0, rate generator */
    out8(0x40, 0xa9);
    out8(0x40, 0x04); /* 1193: a millisecond */
    out8(0x21, 0xfe);
    while (timer_ticks < 5) {
        wait_interrupt();
    }
    out8(0x21, 0xff);
    check("PIT through the PIC", timer_ticks >= 5);
    const unsigned before = timer_ticks;
    interrupts_on();
    for (unsigned i = 0; i < 1000; i++) {
        (void)in8(0x61);
    }
    interrupts_off();
    check("masked PIT is silent", timer_ticks == before);
    wrmsr(APIC_LVT_LINT0, 0x10000);
}

static void apic_timer(void)
{
    on_vector(0x50, on_apic_timer);
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, 0x50);
    wrmsr(APIC_TIMER_INITIAL, 100000);
    while (apic_ticks == 0) {
        wait_interrupt();
    }
    check("one-shot timer", apic_ticks == 1 && rdmsr(APIC_TIMER_CURRENT) == 0);
    wrmsr(APIC_LVT_TIMER, 0x20050);
    wrmsr(APIC_TIMER_INITIAL, 100000);
    while (apic_ticks < 4) {
        wait_interrupt();
    }
    wrmsr(APIC_TIMER_INITIAL, 0);
    check("periodic timer", apic_ticks >= 4);
    if ((cpuid(1, 0).ecx & 1u << 24) != 0) {
        /* A last tick may wait already. */
        interrupts_on();
        for (unsigned i = 0; i < 100; i++) {
            (void)in8(0x61);
        }
        interrupts_off();
        apic_ticks = 0;
        wrmsr(APIC_LVT_TIMER, 0x40050);
        uint32_t low;
        uint32_t high;
        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        wrmsr(0x6e0, ((uint64_t)high << 32 | low) + 200000);
        while (apic_ticks == 0) {
            wait_interrupt();
        }
        check("deadline timer", apic_ticks == 1 && rdmsr(0x6e0) == 0);
    } else {
        line("deadline timer ok");
    }
    wrmsr(APIC_LVT_TIMER, 0x10050);
}

static void self_ipis(void)
{
    on_vector(0x41, on_ipi);
    on_vector(0x91, on_ipi);
    on_vector(0xa1, on_ipi);
    wrmsr(APIC_SELF_IPI, 0x41);
    wrmsr(APIC_ICR, 0x40000 | 0x91); /* shorthand: self */
    check("nothing while interrupts are off", order == 0);
    interrupts_on();
    while (ipis[0] == 0 || ipis[1] == 0) {
        pause();
    }
    interrupts_off();
    show("higher vector first", first);
    /* TPR holds class 9 back, not class 10. */
    __asm__ volatile("mov %0, %%cr8" : : "r"(9ull));
    wrmsr(APIC_SELF_IPI, 0x91);
    wrmsr(APIC_SELF_IPI, 0xa1);
    interrupts_on();
    while (ipis[2] == 0) {
        pause();
    }
    interrupts_off();
    show("held back by TPR", ipis[1]);
    interrupts_on();
    __asm__ volatile("mov %0, %%cr8" : : "r"(0ull));
    while (ipis[1] < 2) {
        pause();
    }
    interrupts_off();
    show("after TPR", ipis[1]);
    on_vector(2, on_nmi);
    wrmsr(APIC_ICR, (rdmsr(APIC_ID) & 0xffffffff) << 32 | 0x400); /* IF does not matter */
    while (nmis == 0) {
        pause();
    }
    show("NMI", nmis);
}

/* STI holds interrupts for one instruction: the CLI behind it wins. */
static void sti_shadow(void)
{
    const unsigned before = ipis[0];

    wrmsr(APIC_SELF_IPI, 0x41);
    __asm__ volatile("sti\n\tcli" : : : "memory");
    check("sti cli takes nothing", ipis[0] == before);
    __asm__ volatile("sti\n\tnop\n\tcli" : : : "memory");
    while (ipis[0] == before) {
        wait_interrupt();
    }
    check("sti nop cli takes it", ipis[0] == before + 1);
}

int main(void)
{
    apic_enable();
    pit_through_pic();
    apic_timer();
    self_ipis();
    sti_shadow();
    return 0;
}
