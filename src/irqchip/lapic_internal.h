/* What the files lapic*.c share; for them only. */
#ifndef CORBEL_IRQCHIP_LAPIC_INTERNAL_H
#define CORBEL_IRQCHIP_LAPIC_INTERNAL_H

#include "base/thread.h"
#include "irqchip/lapic.h"

/* Register offsets in the page (SDM 3A table 11-1); an x2APIC MSR is 0x800 + offset / 16. */
enum lapic_reg {
    LAPIC_ID = 0x020,
    LAPIC_VERSION = 0x030,
    LAPIC_TPR = 0x080,
    LAPIC_APR = 0x090,
    LAPIC_PPR = 0x0a0,
    LAPIC_EOI = 0x0b0,
    LAPIC_LDR = 0x0d0,
    LAPIC_DFR = 0x0e0,
    LAPIC_SVR = 0x0f0,
    LAPIC_ISR = 0x100,
    LAPIC_TMR = 0x180,
    LAPIC_IRR = 0x200,
    LAPIC_ESR = 0x280,
    LAPIC_ICR = 0x300,
    LAPIC_ICR_HIGH = 0x310,
    LAPIC_LVT_TIMER = 0x320,
    LAPIC_LVT_THERMAL = 0x330,
    LAPIC_LVT_PERF = 0x340,
    LAPIC_LVT_LINT0 = 0x350,
    LAPIC_LVT_LINT1 = 0x360,
    LAPIC_LVT_ERROR = 0x370,
    LAPIC_TMICT = 0x380,
    LAPIC_TMCCT = 0x390,
    LAPIC_TDCR = 0x3e0,
    LAPIC_SELF_IPI = 0x3f0
};

#define LAPIC_BASE_WRITABLE 0x000ffffffffffd00ull
#define LAPIC_SVR_WRITABLE 0x1ffu
#define LAPIC_ICR_WRITABLE_LOW 0x000ccfffull
#define LAPIC_VERSION_VALUE 0x00050014u /* six LVT entries, version 0x14 */
#define LAPIC_SVR_ENABLE 0x100u
#define LAPIC_LVT_MASKED 0x10000u
#define LAPIC_LVT_MODE 0x700u
#define LAPIC_LVT_TIMER_MODE 0x60000u
#define LAPIC_TIMER_ONE_SHOT 0x00000u
#define LAPIC_TIMER_PERIODIC 0x20000u
#define LAPIC_TIMER_DEADLINE 0x40000u
#define LAPIC_ESR_SEND_ILLEGAL 0x20u
#define LAPIC_ESR_RECEIVE_ILLEGAL 0x40u

/* Delivery modes (SDM 3A 11.6.1). */
enum lapic_delivery {
    LAPIC_FIXED = 0,
    LAPIC_LOWEST = 1,
    LAPIC_SMI = 2,
    LAPIC_NMI = 4,
    LAPIC_INIT = 5,
    LAPIC_STARTUP = 6,
    LAPIC_EXTINT = 7
};

struct lapic_timer {
    struct mutex mutex; /* LOCK_RANK_LAPIC: all below, vCPU thread against who tells the time */
    uint32_t initial_count;
    uint32_t divide;       /* the register */
    uint64_t deadline_ns;  /* CLOCK_MONOTONIC, 0: not armed */
    uint64_t period_ns;    /* 0: one-shot */
    uint64_t deadline_tsc; /* guest TSC, 0: not armed */
    uint64_t tsc_offset;   /* of the vCPU when it wrote the deadline */
};

struct lapic {
    struct lapic_set *set;
    unsigned index;
    struct lapic_regs *regs;
    struct lapic_timer timer;
};

struct lapic_set {
    struct lapic_set_config config;
    struct lapic_regs *own_regs; /* NULL when the registers were given */
    _Atomic bool pic_output;
    struct lapic cpus[];
};

/* One interrupt on its way. */
struct lapic_message {
    uint32_t dest;
    bool is_logical;
    bool is_broadcast;
    bool is_level;
    uint8_t vector;
    enum lapic_delivery mode;
};

static inline bool lapic_is_x2apic(const struct lapic *lapic)
{
    const uint64_t both = X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC;

    return (atomic_load_explicit(&lapic->regs->base, memory_order_relaxed) & both) == both;
}

static inline bool lapic_is_enabled(const struct lapic *lapic)
{
    return (atomic_load_explicit(&lapic->regs->base, memory_order_relaxed) &
            X86_APIC_BASE_ENABLE) != 0;
}

static inline bool lapic_is_software_enabled(const struct lapic *lapic)
{
    return lapic_is_enabled(lapic) &&
           (atomic_load_explicit(&lapic->regs->svr, memory_order_relaxed) & LAPIC_SVR_ENABLE) != 0;
}

static inline uint32_t lapic_lvt(const struct lapic *lapic, enum lapic_reg reg)
{
    return atomic_load_explicit(&lapic->regs->lvt[(reg - LAPIC_LVT_TIMER) / 16],
                                memory_order_relaxed);
}

/* Sets IRR and kicks. Any thread. */
void lapic_accept(struct lapic *lapic, uint8_t vector, bool is_level);
/* Delivers to all that match. Any thread. */
void lapic_deliver(struct lapic_set *set, const struct lapic_message *message);
/* Writes to ICR and SELF IPI. Own thread. */
void lapic_icr_send(struct lapic *lapic, uint64_t icr);

void lapic_timer_init(struct lapic *lapic);
void lapic_timer_done(struct lapic *lapic);
void lapic_timer_reset(struct lapic *lapic);
uint32_t lapic_timer_read(struct lapic *lapic, enum lapic_reg reg);
void lapic_timer_write(struct lapic *lapic, enum lapic_reg reg, uint32_t value);
/* The timer's mode in the LVT changes; called before the new value is stored. */
void lapic_timer_mode_changes(struct lapic *lapic, uint32_t old_lvt, uint32_t new_lvt);
uint64_t lapic_timer_deadline(struct lapic *lapic);
void lapic_timer_set_deadline(struct lapic *lapic, uint64_t tsc, uint64_t tsc_offset);
void lapic_timer_save(struct lapic *lapic, struct lapic_state *ret_state);
void lapic_timer_load(struct lapic *lapic, const struct lapic_state *state);

/* TPR with what follows from it; bits that a register has. */
void lapic_tpr_write(struct lapic *lapic, uint32_t value);
extern const uint32_t lapic_lvt_writable[LAPIC_LVT_COUNT];

#endif
