/* Two CPUs that halt whenever they wait, so that every lost wake-up is the end: IPIs, timers. */
#include "guest.h"

#define ROUNDS 3000u

static volatile unsigned turn; /* whose turn it is: even CPU 0's, odd CPU 1's */
static volatile unsigned ticks;
static volatile unsigned late; /* CPU 1 saw its last turn */

static void on_ipi(struct frame *frame)
{
    (void)frame;
    apic_eoi();
}

static void on_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    apic_eoi();
}

static void pass_on(uint64_t to)
{
    turn++;
    wrmsr(APIC_ICR, to << 32 | 0x41);
}

static void cpu1(void)
{
    apic_enable();
    while (turn < 2 * ROUNDS) {
        if (turn % 2 == 1) {
            pass_on(0);
        } else {
            wait_interrupt();
        }
    }
    late = 1;
    for (;;) {
        wait_interrupt();
    }
}

int main(void)
{
    on_vector(0x41, on_ipi);
    on_vector(0x50, on_tick);
    ap_start(cpu1);
    for (unsigned i = 0; i < ROUNDS; i++) {
        pass_on(1);
        while (turn % 2 == 1) {
            wait_interrupt();
        }
    }
    show("turns", turn);

    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, 0x50);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        /* From "over before HLT is reached" to "long asleep". */
        wrmsr(APIC_TIMER_INITIAL, 1 + i * i * 2);
        while (ticks == i) {
            wait_interrupt();
        }
    }
    show("ticks", ticks);
    wrmsr(APIC_ICR, 1ull << 32 | 0x41);
    while (late == 0) {
        pause();
    }
    line("both are awake");
    return 0;
}
