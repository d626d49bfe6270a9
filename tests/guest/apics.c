/*
 * Two local APICs: messages in numbers, the order of what waits, timers that are
 * never early, level-triggered lines until their EOI, CPUs that are started anew,
 * the PIC beside it all.
 */
#include "guest.h"

#define STORM_ROUNDS 300u
#define STORM_FIRST 0x60u
#define STORM_VECTORS 16u
#define RESTARTS 30u
#define IOAPIC 0xfec00000ull
#define SERIAL_PIN 4u
#define LEVEL_VECTOR 0x51u
#define TIMER_VECTOR 0x50u

static volatile unsigned seen[2][STORM_VECTORS];
static volatile unsigned done;
static volatile unsigned ready;
static volatile unsigned log_count;
static volatile uint8_t log_vectors[STORM_VECTORS];
static volatile unsigned level_count;
static volatile unsigned nmis;
static volatile unsigned ticks;
static volatile unsigned pit_ticks;
static volatile uint64_t tick_tsc;
static volatile unsigned waiting; /* of a CPU that was started anew: IRR then */

static uint64_t rdtsc(void)
{
    uint32_t low;
    uint32_t high;

    __asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static unsigned self(void)
{
    return (unsigned)rdmsr(APIC_ID);
}

static void send(unsigned to, unsigned vector)
{
    wrmsr(APIC_ICR, (uint64_t)to << 32 | vector);
}

static void on_storm(struct frame *frame)
{
    seen[self()][frame->vector - STORM_FIRST]++;
    apic_eoi();
}

/* Each message is one delivery: the next is sent when it was seen. */
static void storm(unsigned to)
{
    interrupts_on();
    for (unsigned i = 1; i <= STORM_ROUNDS; i++) {
        for (unsigned v = 0; v < STORM_VECTORS; v++) {
            send(to, STORM_FIRST + v);
        }
        for (unsigned v = 0; v < STORM_VECTORS; v++) {
            while (seen[to][v] < i) {
                pause();
            }
        }
    }
    interrupts_off();
}

static void on_logged(struct frame *frame)
{
    log_vectors[log_count] = (uint8_t)frame->vector;
    log_count++;
    apic_eoi();
}

static void cpu1(void)
{
    apic_enable();
    ready = 1;
    storm(0);
    interrupts_on();
    done = 1;
    while (done == 1) { /* until all have arrived here, too */
        pause();
    }
    interrupts_off();
    done = 3;
    while (ready == 1) {
        pause();
    }
    interrupts_on();
    while (log_count < STORM_VECTORS) {
        pause();
    }
    done = 4;
    for (;;) {
        __asm__ volatile("hlt"); /* level-triggered interrupts find it here */
    }
}

static void messages(void)
{
    for (unsigned v = 0; v < STORM_VECTORS; v++) {
        on_vector((uint8_t)(STORM_FIRST + v), on_storm);
    }
    ap_start(cpu1);
    while (ready == 0) {
        pause();
    }
    storm(1);
    interrupts_on();
    while (done == 0) {
        pause();
    }
    interrupts_off();
    done = 2;
    bool exact = true;
    for (unsigned v = 0; v < STORM_VECTORS; v++) {
        exact = exact && seen[0][v] == STORM_ROUNDS && seen[1][v] == STORM_ROUNDS;
    }
    check("each message arrives once", exact);

    while (done != 3) {
        pause();
    }
    for (unsigned i = 0; i < STORM_VECTORS; i++) { /* in an order of no meaning: 7 i mod 16 */
        const unsigned vector = STORM_FIRST + i * 7 % STORM_VECTORS;

        on_vector((uint8_t)vector, on_logged);
    }
    for (unsigned i = 0; i < STORM_VECTORS; i++) {
        send(1, STORM_FIRST + i * 7 % STORM_VECTORS);
    }
    ready = 2;
    while (done != 4) {
        pause();
    }
    bool descending = log_count == STORM_VECTORS;
    for (unsigned i = 0; i < STORM_VECTORS; i++) {
        descending = descending && log_vectors[i] == STORM_FIRST + STORM_VECTORS - 1 - i;
    }
    check("the highest comes first", descending);
}

/* The transmitter is empty, which holds the line until it is asked what it wants. */
static void on_level(struct frame *frame)
{
    (void)frame;
    if (level_count % 3 == 2) {
        (void)in8(PORT_SERIAL + 2);
    }
    level_count++; /* the other CPU goes on: nothing of the serial port's may follow */
    apic_eoi();
}

static void ioapic_write(unsigned index, uint32_t value)
{
    *(volatile uint32_t *)IOAPIC = index;
    *(volatile uint32_t *)(IOAPIC + 0x10) = value;
}

static void level_triggered(unsigned cpu)
{
    level_count = 0;
    on_vector(LEVEL_VECTOR, on_level);
    ioapic_write(0x10 + 2 * SERIAL_PIN + 1, cpu << 24);
    ioapic_write(0x10 + 2 * SERIAL_PIN, 0x8000u | LEVEL_VECTOR);
    for (unsigned i = 1; i <= 20; i++) {
        out8(PORT_SERIAL + 4, 0x0b);
        out8(PORT_SERIAL + 1, 0x02);
        while (level_count < 3 * i) {
            if (cpu == 0) {
                wait_interrupt();
            } else {
                pause();
            }
        }
        out8(PORT_SERIAL + 1, 0);
    }
    ioapic_write(0x10 + 2 * SERIAL_PIN, 0x10000u);
    interrupts_on();
    for (unsigned i = 0; i < 100; i++) {
        (void)in8(0x61);
    }
    interrupts_off();
    show("level-triggered", level_count);
}

static void on_tick(struct frame *frame)
{
    (void)frame;
    tick_tsc = rdtsc();
    ticks++;
    apic_eoi();
}

/* From "over at once" to "long asleep", halted and busy by turns. */
static void deadlines(void)
{
    bool early = false;

    if ((cpuid(1, 0).ecx & 1u << 24) != 0) {
        on_vector(TIMER_VECTOR, on_tick);
        wrmsr(APIC_LVT_TIMER, 0x40000 | TIMER_VECTOR);
        for (unsigned i = 0; i < 300; i++) {
            const uint64_t deadline = rdtsc() + 1 + (uint64_t)i * i * 20;

            wrmsr(0x6e0, deadline);
            if (i % 2 == 0) {
                while (ticks == i) {
                    wait_interrupt();
                }
            } else {
                interrupts_on();
                while (ticks == i) {
                }
                interrupts_off();
            }
            early = early || tick_tsc < deadline;
        }
        early = early || ticks != 300;
        wrmsr(APIC_LVT_TIMER, 0x10000 | TIMER_VECTOR);
    }
    check("no deadline is early", !early);
}

static void on_nmi(struct frame *frame)
{
    (void)frame;
    nmis++;
}

/* What a CPU does when it is started: leaves something behind, and stays as its number says. */
static void cpu1_again(void)
{
    static unsigned round;
    const unsigned how = round++ % 3;

    apic_enable();
    waiting |= (unsigned)rdmsr(0x823); /* IRR, vectors 0x60 to 0x7f */
    wrmsr(APIC_SELF_IPI, STORM_FIRST);
    waiting |= rdmsr(0x823) == 1 ? 0 : 2;
    __atomic_store_n(&ready, round, __ATOMIC_SEQ_CST);
    if (how == 0) {
        for (;;) {
            pause();
        }
    }
    for (;;) {
        __asm__ volatile("hlt"); /* with interrupts off: an NMI or INIT ends it */
    }
}

static void started_anew(void)
{
    on_vector(2, on_nmi);
    for (unsigned i = 1; i <= RESTARTS; i++) {
        ap_start(cpu1_again);
        while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) != i) {
            pause();
        }
        send(1, 0x400); /* NMI */
        while (nmis < i) {
            pause();
        }
    }
    show("started anew", ready);
    check("nothing is left of before", waiting == 0);
    show("NMIs", nmis);
}

static void on_pit(struct frame *frame)
{
    (void)frame;
    pit_ticks++;
    out8(0x20, 0x20);
}

/* The PIC's interrupt and the APIC's wait together, with interrupts off. */
static void both_sources(void)
{
    static const uint8_t pic[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4},    {0x21, 1},
                                     {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 2},    {0xa1, 1},
                                     {0x21, 0xff}, {0xa1, 0xff}, {0x43, 0x30}, {0x40, 0x10},
                                     {0x40, 0}};

    for (unsigned i = 0; i < sizeof(pic) / sizeof(pic[0]); i++) {
        out8(pic[i][0], pic[i][1]);
    }
    on_vector(0x20, on_pit);
    on_vector(TIMER_VECTOR, on_tick);
    ticks = 0;
    wrmsr(APIC_LVT_LINT0, 0x700); /* ExtINT */
    do {
        out8(0x20, 0x0a); /* the PIC's IRR */
    } while ((in8(0x20) & 1) == 0);
    wrmsr(APIC_SELF_IPI, TIMER_VECTOR);
    out8(0x21, 0xfe);
    check("both wait", ticks == 0 && pit_ticks == 0);
    while (ticks == 0 || pit_ticks == 0) {
        wait_interrupt();
    }
    out8(0x21, 0xff);
    wrmsr(APIC_LVT_LINT0, 0x10000);
    check("both came once", ticks == 1 && pit_ticks == 1);
}

int main(void)
{
    apic_enable();
    messages();
    level_triggered(0);
    level_triggered(1);
    deadlines();
    ready = 0;
    started_anew();
    both_sources();
    return 0;
}
