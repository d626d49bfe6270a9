/* Registers, priorities and life cycle of the local APIC. */
#include "irqchip/lapic.h"

#include "base/log.h"
#include "irqchip/lapic_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

const uint32_t lapic_lvt_writable[LAPIC_LVT_COUNT] = {
    0x000700ffu, /* timer: vector, mask, mode */
    0x000107ffu, /* thermal: vector, delivery mode, mask */
    0x000107ffu, /* performance counters */
    0x0001a7ffu, /* LINT0: also polarity and trigger */
    0x0001a7ffu, /* LINT1 */
    0x000100ffu  /* error: vector, mask */
};

/* ---- priorities ---- */

/* The highest vector in a set of 256, or -1. */
static int highest_irr(const struct lapic *lapic)
{
    for (int i = 3; i >= 0; i--) {
        uint64_t word = atomic_load_explicit(&lapic->regs->irr[i], memory_order_relaxed);

        if (word != 0) {
            return i * 64 + 63 - __builtin_clzll(word);
        }
    }
    return -1;
}

static int highest_isr(const struct lapic *lapic)
{
    for (int i = 3; i >= 0; i--) {
        if (lapic->regs->isr[i] != 0) {
            return i * 64 + 63 - __builtin_clzll(lapic->regs->isr[i]);
        }
    }
    return -1;
}

/* SDM 3A 11.8.3.1. */
static void ppr_update(struct lapic *lapic)
{
    int isr = highest_isr(lapic);
    uint32_t isr_class = isr < 0 ? 0 : (uint32_t)isr & 0xf0u;
    uint32_t ppr = (lapic->regs->tpr & 0xf0u) >= isr_class ? lapic->regs->tpr : isr_class;

    atomic_store_explicit(&lapic->regs->ppr, ppr, memory_order_relaxed);
}

/* The vector that may be delivered now, or -1. */
static int deliverable(const struct lapic *lapic)
{
    int vector = highest_irr(lapic);
    uint32_t ppr = atomic_load_explicit(&lapic->regs->ppr, memory_order_relaxed);

    return vector >= 0 && ((uint32_t)vector & 0xf0u) > (ppr & 0xf0u) ? vector : -1;
}

/* The PIC speaks through LINT0 in ExtINT mode, or directly while the APIC is off. */
bool lapic_passes_pic(const struct lapic *lapic)
{
    uint32_t lint0 = lapic_lvt(lapic, LAPIC_LVT_LINT0);

    if (!lapic_is_enabled(lapic)) {
        return lapic->index == 0;
    }
    return (lint0 & (LAPIC_LVT_MASKED | LAPIC_LVT_MODE)) == (uint32_t)LAPIC_EXTINT << 8;
}

static bool pic_pending(const struct lapic *lapic)
{
    return atomic_load_explicit(&lapic->set->pic_output, memory_order_acquire) &&
           lapic_passes_pic(lapic);
}

static bool lapic_pending(void *opaque)
{
    const struct lapic *lapic = opaque;

    return deliverable(lapic) >= 0 || pic_pending(lapic);
}

static int lapic_acknowledge(void *opaque)
{
    struct lapic *lapic = opaque;
    int vector = -1;

    if (pic_pending(lapic)) {
        vector = lapic->set->config.ops->pic_acknowledge(lapic->set->config.opaque);
        if (vector >= 0) {
            return vector;
        }
    }
    vector = deliverable(lapic);
    if (vector >= 0) {
        uint64_t bit = 1ull << (vector % 64);

        atomic_fetch_and_explicit(&lapic->regs->irr[vector / 64], ~bit, memory_order_acquire);
        lapic->regs->isr[vector / 64] |= bit;
        ppr_update(lapic);
    }
    return vector;
}

const struct vcpu_intr_ops lapic_intr_ops = {
    .pending = lapic_pending,
    .acknowledge = lapic_acknowledge,
};

void lapic_accept(struct lapic *lapic, uint8_t vector, bool is_level)
{
    uint64_t bit = 1ull << (vector % 64);
    uint64_t old = 0;

    if (vector < 16) {
        atomic_fetch_or_explicit(&lapic->regs->esr_pending, LAPIC_ESR_RECEIVE_ILLEGAL,
                                 memory_order_relaxed);
        return;
    }
    if (is_level) {
        atomic_fetch_or_explicit(&lapic->regs->tmr[vector / 64], bit, memory_order_relaxed);
    } else {
        atomic_fetch_and_explicit(&lapic->regs->tmr[vector / 64], ~bit, memory_order_relaxed);
    }
    old = atomic_fetch_or_explicit(&lapic->regs->irr[vector / 64], bit, memory_order_seq_cst);
    if ((old & bit) == 0) {
        lapic->set->config.ops->kick(lapic->set->config.opaque, lapic->index);
    }
}

static void eoi(struct lapic *lapic)
{
    int vector = highest_isr(lapic);
    uint64_t bit = 0;

    if (vector < 0) {
        return;
    }
    bit = 1ull << (vector % 64);
    lapic->regs->isr[vector / 64] &= ~bit;
    ppr_update(lapic);
    if ((atomic_load_explicit(&lapic->regs->tmr[vector / 64], memory_order_relaxed) & bit) != 0) {
        lapic->set->config.ops->eoi(lapic->set->config.opaque, lapic->index, (uint8_t)vector);
    }
}

/* ---- registers ---- */

static uint32_t id_register(const struct lapic *lapic)
{
    return lapic_is_x2apic(lapic) ? lapic->index : lapic->index << 24;
}

static uint32_t bitmap_read(const struct lapic *lapic, unsigned offset)
{
    unsigned word = ((offset & 0x7f) / 16) / 2;
    unsigned shift = (((offset & 0x7f) / 16) % 2) * 32;
    uint64_t value = 0;

    if (offset < LAPIC_TMR) {
        value = lapic->regs->isr[word];
    } else if (offset < LAPIC_IRR) {
        value = atomic_load_explicit(&lapic->regs->tmr[word], memory_order_relaxed);
    } else {
        value = atomic_load_explicit(&lapic->regs->irr[word], memory_order_relaxed);
    }
    return (uint32_t)(value >> shift);
}

static bool is_lvt(unsigned offset)
{
    return offset >= LAPIC_LVT_TIMER && offset <= LAPIC_LVT_ERROR;
}

/* 0, or -EINVAL for a register that does not exist. */
static int reg_read(struct lapic *lapic, unsigned offset, uint32_t *ret_value)
{
    if (offset >= LAPIC_ISR && offset < LAPIC_ESR) {
        *ret_value = bitmap_read(lapic, offset);
        return 0;
    }
    if (is_lvt(offset)) {
        *ret_value = lapic_lvt(lapic, (enum lapic_reg)offset);
        return 0;
    }
    switch (offset) {
    case LAPIC_ID:
        *ret_value = id_register(lapic);
        return 0;
    case LAPIC_VERSION:
        *ret_value = LAPIC_VERSION_VALUE;
        return 0;
    case LAPIC_TPR:
        *ret_value = lapic->regs->tpr;
        return 0;
    case LAPIC_PPR:
        *ret_value = atomic_load_explicit(&lapic->regs->ppr, memory_order_relaxed);
        return 0;
    case LAPIC_LDR:
        *ret_value = atomic_load_explicit(&lapic->regs->ldr, memory_order_relaxed);
        return 0;
    case LAPIC_SVR:
        *ret_value = atomic_load_explicit(&lapic->regs->svr, memory_order_relaxed);
        return 0;
    case LAPIC_ESR:
        *ret_value = lapic->regs->esr;
        return 0;
    case LAPIC_ICR:
        *ret_value = (uint32_t)lapic->regs->icr;
        return 0;
    case LAPIC_TMICT:
    case LAPIC_TMCCT:
    case LAPIC_TDCR:
        *ret_value = lapic_timer_read(lapic, (enum lapic_reg)offset);
        return 0;
    default:
        return -EINVAL;
    }
}

static void lvt_write(struct lapic *lapic, unsigned offset, uint32_t value)
{
    unsigned index = (offset - LAPIC_LVT_TIMER) / 16;

    value &= lapic_lvt_writable[index];
    if (!lapic_is_software_enabled(lapic)) {
        value |= LAPIC_LVT_MASKED;
    }
    if (offset == LAPIC_LVT_TIMER) {
        lapic_timer_mode_changes(lapic, lapic_lvt(lapic, LAPIC_LVT_TIMER), value);
    }
    atomic_store_explicit(&lapic->regs->lvt[index], value, memory_order_relaxed);
}

static void svr_write(struct lapic *lapic, uint32_t value)
{
    atomic_store_explicit(&lapic->regs->svr, value & LAPIC_SVR_WRITABLE, memory_order_relaxed);
    if ((value & LAPIC_SVR_ENABLE) == 0) {
        for (unsigned i = 0; i < LAPIC_LVT_COUNT; i++) {
            atomic_fetch_or_explicit(&lapic->regs->lvt[i], LAPIC_LVT_MASKED, memory_order_relaxed);
        }
    }
}

void lapic_tpr_write(struct lapic *lapic, uint32_t value)
{
    lapic->regs->tpr = value & 0xff;
    ppr_update(lapic);
}

/* 0, or -EINVAL for a register that does not exist or cannot be written. */
static int reg_write(struct lapic *lapic, unsigned offset, uint32_t value)
{
    if (is_lvt(offset)) {
        lvt_write(lapic, offset, value);
        return 0;
    }
    switch (offset) {
    case LAPIC_TPR:
        lapic_tpr_write(lapic, value);
        return 0;
    case LAPIC_EOI:
        eoi(lapic);
        return 0;
    case LAPIC_SVR:
        svr_write(lapic, value);
        return 0;
    case LAPIC_ESR:
        lapic->regs->esr =
            atomic_exchange_explicit(&lapic->regs->esr_pending, 0, memory_order_relaxed);
        return 0;
    case LAPIC_TMICT:
    case LAPIC_TDCR:
        lapic_timer_write(lapic, (enum lapic_reg)offset, value);
        return 0;
    default:
        return -EINVAL;
    }
}

/* ---- the page ---- */

bool lapic_claims(const struct lapic *lapic, uint64_t gpa)
{
    uint64_t base = atomic_load_explicit(&lapic->regs->base, memory_order_relaxed);

    return (base & (X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC)) == X86_APIC_BASE_ENABLE &&
           (gpa & ~(uint64_t)(LAPIC_PAGE_BYTES - 1)) == (base & ~(uint64_t)(LAPIC_PAGE_BYTES - 1));
}

uint64_t lapic_mmio_read(struct lapic *lapic, unsigned offset, unsigned size_bytes)
{
    unsigned reg = offset & 0xff0u;
    unsigned byte = offset & 0xfu;
    uint32_t value = 0;

    if (byte >= 4 || size_bytes > 4 - byte) {
        return 0; /* only the first dword of each 16 bytes exists */
    }
    if (reg == LAPIC_DFR) {
        value = atomic_load_explicit(&lapic->regs->dfr, memory_order_relaxed);
    } else if (reg == LAPIC_ICR_HIGH) {
        value = (uint32_t)(lapic->regs->icr >> 32);
    } else if (reg_read(lapic, reg, &value) != 0) {
        return 0;
    }
    return value >> (byte * 8);
}

void lapic_mmio_write(struct lapic *lapic, unsigned offset, unsigned size_bytes, uint64_t value)
{
    if ((offset & 0xfu) != 0 || size_bytes != 4) {
        return; /* SDM 3A 11.4.1: only aligned dwords are defined */
    }
    switch (offset & 0xff0u) {
    case LAPIC_LDR:
        atomic_store_explicit(&lapic->regs->ldr, (uint32_t)value & 0xff000000u,
                              memory_order_relaxed);
        break;
    case LAPIC_DFR:
        atomic_store_explicit(&lapic->regs->dfr, (uint32_t)value | 0x0fffffffu,
                              memory_order_relaxed);
        break;
    case LAPIC_ICR:
        lapic->regs->icr = (lapic->regs->icr & ~0xffffffffull) | (value & LAPIC_ICR_WRITABLE_LOW);
        lapic_icr_send(lapic, lapic->regs->icr);
        break;
    case LAPIC_ICR_HIGH:
        lapic->regs->icr = (lapic->regs->icr & 0xffffffffull) | (value & 0xff000000ull) << 32;
        break;
    default:
        (void)reg_write(lapic, offset & 0xff0u, (uint32_t)value); /* unknown: dropped */
        break;
    }
}

/* ---- MSRs ---- */

bool lapic_owns_msr(uint32_t index)
{
    return index == X86_MSR_APIC_BASE || index == X86_MSR_TSC_DEADLINE ||
           (index >= X86_MSR_X2APIC_FIRST && index <= X86_MSR_X2APIC_LAST);
}

int lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *ret_value)
{
    unsigned reg = (index - X86_MSR_X2APIC_FIRST) * 16;
    uint32_t value = 0;

    if (index == X86_MSR_APIC_BASE) {
        *ret_value = atomic_load_explicit(&lapic->regs->base, memory_order_relaxed);
        return 0;
    }
    if (index == X86_MSR_TSC_DEADLINE) {
        *ret_value = lapic_timer_deadline(lapic);
        return 0;
    }
    if (!lapic_owns_msr(index) || !lapic_is_x2apic(lapic)) {
        return -EINVAL;
    }
    if (reg == LAPIC_ICR) {
        *ret_value = lapic->regs->icr;
        return 0;
    }
    if (reg_read(lapic, reg, &value) != 0) {
        return -EINVAL;
    }
    *ret_value = value;
    return 0;
}

/* SDM 3A 11.12.5: which changes of mode are legal. */
static int base_write(struct lapic *lapic, uint64_t value)
{
    uint64_t old = atomic_load_explicit(&lapic->regs->base, memory_order_relaxed);
    bool was_x2apic = lapic_is_x2apic(lapic);
    uint64_t mode = value & (X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC);

    if ((value & ~(LAPIC_BASE_WRITABLE | X86_APIC_BASE_BSP)) != 0 || mode == X86_APIC_BASE_X2APIC ||
        (was_x2apic && mode == X86_APIC_BASE_ENABLE) ||
        ((old & X86_APIC_BASE_ENABLE) == 0 && (mode & X86_APIC_BASE_X2APIC) != 0)) {
        return -EINVAL;
    }
    value = (value & ~X86_APIC_BASE_BSP) | (old & X86_APIC_BASE_BSP);
    atomic_store_explicit(&lapic->regs->base, value, memory_order_relaxed);
    if (!was_x2apic && lapic_is_x2apic(lapic)) {
        uint32_t ldr = (lapic->index >> 4) << 16 | 1u << (lapic->index & 15);

        atomic_store_explicit(&lapic->regs->ldr, ldr, memory_order_relaxed);
        lapic->regs->icr = 0;
    }
    return 0;
}

static int x2apic_write(struct lapic *lapic, unsigned reg, uint64_t value)
{
    if (reg == LAPIC_ICR) {
        lapic->regs->icr = (value & 0xffffffff00000000ull) | (value & LAPIC_ICR_WRITABLE_LOW);
        lapic_icr_send(lapic, lapic->regs->icr);
        return 0;
    }
    if (value > UINT32_MAX || ((reg == LAPIC_EOI || reg == LAPIC_ESR) && value != 0)) {
        return -EINVAL;
    }
    if (reg == LAPIC_SELF_IPI) {
        lapic_icr_send(lapic, 1ull << 18 | (value & 0xff));
        return 0;
    }
    return reg_write(lapic, reg, (uint32_t)value);
}

int lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value, uint64_t tsc_offset)
{
    if (index == X86_MSR_APIC_BASE) {
        return base_write(lapic, value);
    }
    if (index == X86_MSR_TSC_DEADLINE) {
        lapic_timer_set_deadline(lapic, value, tsc_offset);
        return 0;
    }
    if (!lapic_owns_msr(index) || !lapic_is_x2apic(lapic)) {
        return -EINVAL;
    }
    return x2apic_write(lapic, (index - X86_MSR_X2APIC_FIRST) * 16, value);
}

void lapic_set_cr8(struct lapic *lapic, uint8_t cr8)
{
    lapic_tpr_write(lapic, (uint32_t)cr8 << 4);
}

uint8_t lapic_cr8(const struct lapic *lapic)
{
    return (uint8_t)(lapic->regs->tpr >> 4);
}

void lapic_set_pic_output(struct lapic_set *set, bool level)
{
    atomic_store_explicit(&set->pic_output, level, memory_order_seq_cst);
    for (unsigned i = 0; level && i < set->config.count; i++) {
        if (pic_pending(&set->cpus[i])) {
            set->config.ops->kick(set->config.opaque, i);
        }
    }
}

/* ---- life cycle ---- */

void lapic_init_ipi(struct lapic *lapic)
{
    lapic_timer_reset(lapic);
    for (unsigned i = 0; i < 4; i++) {
        atomic_store_explicit(&lapic->regs->irr[i], 0, memory_order_relaxed);
        atomic_store_explicit(&lapic->regs->tmr[i], 0, memory_order_relaxed);
        lapic->regs->isr[i] = 0;
    }
    for (unsigned i = 0; i < LAPIC_LVT_COUNT; i++) {
        atomic_store_explicit(&lapic->regs->lvt[i], LAPIC_LVT_MASKED, memory_order_relaxed);
    }
    atomic_store_explicit(&lapic->regs->svr, 0xff, memory_order_relaxed);
    atomic_store_explicit(&lapic->regs->dfr, UINT32_MAX, memory_order_relaxed);
    if (!lapic_is_x2apic(lapic)) {
        atomic_store_explicit(&lapic->regs->ldr, 0, memory_order_relaxed);
    }
    atomic_store_explicit(&lapic->regs->esr_pending, 0, memory_order_relaxed);
    lapic->regs->esr = 0;
    lapic->regs->icr = 0;
    lapic_tpr_write(lapic, 0);
}

void lapic_reset(struct lapic *lapic)
{
    uint64_t base = X86_APIC_DEFAULT_BASE | X86_APIC_BASE_ENABLE;

    if (lapic->index == 0) {
        base |= X86_APIC_BASE_BSP;
    }
    atomic_store_explicit(&lapic->regs->base, base, memory_order_relaxed);
    lapic_init_ipi(lapic);
    if (lapic->index == 0) {
        atomic_store_explicit(&lapic->regs->lvt[(LAPIC_LVT_LINT0 - LAPIC_LVT_TIMER) / 16],
                              (uint32_t)LAPIC_EXTINT << 8, memory_order_relaxed);
        atomic_store_explicit(&lapic->set->pic_output, false, memory_order_relaxed);
    }
}

int lapic_set_create(const struct lapic_set_config *config, struct lapic_set **ret_set)
{
    struct lapic_set *set = NULL;

    assert(config->count >= 1 && config->count <= LAPIC_MAX_CPUS);
    assert(!config->is_view || config->regs != NULL);
    set = calloc(1, sizeof(*set) + config->count * sizeof(struct lapic));
    if (set == NULL) {
        return -ENOMEM;
    }
    set->config = *config;
    if (config->regs == NULL) {
        size_t bytes = config->count * sizeof(*config->regs);

        set->own_regs = aligned_alloc(64, bytes);
        if (set->own_regs == NULL) {
            free(set);
            return -ENOMEM;
        }
        memset(set->own_regs, 0, bytes);
    }
    for (unsigned i = 0; i < config->count; i++) {
        struct lapic *lapic = &set->cpus[i];

        lapic->set = set;
        lapic->index = i;
        lapic->regs = config->regs == NULL ? &set->own_regs[i] : &config->regs[i];
        lapic_timer_init(lapic);
        if (!config->is_view) {
            lapic_reset(lapic);
        }
    }
    *ret_set = set;
    return 0;
}

void lapic_set_destroy(struct lapic_set *set)
{
    if (set == NULL) {
        return;
    }
    for (unsigned i = 0; i < set->config.count; i++) {
        lapic_timer_done(&set->cpus[i]);
    }
    free(set->own_regs);
    free(set);
}

struct lapic *lapic_get(struct lapic_set *set, unsigned index)
{
    assert(index < set->config.count);
    return &set->cpus[index];
}
