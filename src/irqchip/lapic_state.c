/* A local APIC as something to be kept. What comes back may be anything. */
#include "irqchip/lapic_internal.h"

#define RESERVED_VECTORS 0xffffull /* 0 to 15 never arrive (SDM 3A 11.5.2) */

void lapic_save(struct lapic *lapic, struct lapic_state *ret_state)
{
    struct lapic_regs *regs = lapic->regs;

    *ret_state = (struct lapic_state){
        .base = atomic_load(&regs->base),
        .icr = regs->icr,
        .svr = atomic_load(&regs->svr),
        .ldr = atomic_load(&regs->ldr),
        .dfr = atomic_load(&regs->dfr),
        .tpr = regs->tpr,
        .esr = regs->esr,
        .esr_pending = atomic_load(&regs->esr_pending),
    };
    for (unsigned i = 0; i < ARRAY_LEN(regs->irr); i++) {
        ret_state->irr[i] = atomic_load(&regs->irr[i]);
        ret_state->tmr[i] = atomic_load(&regs->tmr[i]);
        ret_state->isr[i] = regs->isr[i];
    }
    for (unsigned i = 0; i < LAPIC_LVT_COUNT; i++) {
        ret_state->lvt[i] = atomic_load(&regs->lvt[i]);
    }
    lapic_timer_save(lapic, ret_state);
}

static uint64_t sound_base(const struct lapic *lapic, uint64_t base)
{
    base &= LAPIC_BASE_WRITABLE;
    if ((base & X86_APIC_BASE_ENABLE) == 0) {
        base &= ~X86_APIC_BASE_X2APIC;
    }
    return lapic->index == 0 ? base | X86_APIC_BASE_BSP : base & ~X86_APIC_BASE_BSP;
}

void lapic_load(struct lapic *lapic, const struct lapic_state *state)
{
    struct lapic_regs *regs = lapic->regs;

    lapic_timer_reset(lapic);
    atomic_store(&regs->base, sound_base(lapic, state->base));
    atomic_store(&regs->svr, state->svr & LAPIC_SVR_WRITABLE);
    atomic_store(&regs->ldr, state->ldr);
    atomic_store(&regs->dfr, state->dfr | 0x0fffffffu);
    atomic_store(&regs->esr_pending, state->esr_pending & 0xffu);
    regs->esr = state->esr & 0xffu;
    regs->icr = (state->icr & 0xffffffff00000000ull) | (state->icr & LAPIC_ICR_WRITABLE_LOW);
    for (unsigned i = 0; i < ARRAY_LEN(regs->irr); i++) {
        uint64_t possible = i == 0 ? ~RESERVED_VECTORS : UINT64_MAX;

        atomic_store(&regs->irr[i], state->irr[i] & possible);
        atomic_store(&regs->tmr[i], state->tmr[i] & possible);
        regs->isr[i] = state->isr[i] & possible;
    }
    for (unsigned i = 0; i < LAPIC_LVT_COUNT; i++) {
        uint32_t masked = lapic_is_software_enabled(lapic) ? 0 : LAPIC_LVT_MASKED;

        atomic_store(&regs->lvt[i], (state->lvt[i] & lapic_lvt_writable[i]) | masked);
    }
    lapic_tpr_write(lapic, state->tpr);
    lapic_timer_load(lapic, state);
}
