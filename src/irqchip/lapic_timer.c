/* The local APIC's timer (SDM 3A 11.5.4): one-shot, periodic, TSC-deadline. */
#include "base/clock.h"
#include "irqchip/lapic_internal.h"

/* A guest that asks for a shorter period gets this one, so that it cannot keep the loop busy. */
#define MIN_PERIOD_NS 20000ull
#define MAX_DELTA_NS (365ull * 86400 * NS_PER_S)
#define DIVIDE_WRITABLE 0xbu

/* ticks of a clock of hz in ns, rounded up, at most MAX_DELTA_NS. */
static uint64_t ticks_to_ns(uint64_t ticks, uint64_t hz)
{
    unsigned __int128 ns = ((unsigned __int128)ticks * NS_PER_S + hz - 1) / hz;

    return ns > MAX_DELTA_NS ? MAX_DELTA_NS : (uint64_t)ns;
}

/* Divide configuration (SDM 3A figure 11-10): bits 3, 1, 0. */
static unsigned divisor(uint32_t divide)
{
    unsigned code = (divide & 3u) | ((divide >> 1) & 4u);

    return code == 7 ? 1 : 2u << code;
}

static void arm_locked(struct lapic *lapic, uint64_t deadline_ns)
{
    const struct lapic_set_config *config = &lapic->set->config;

    lapic->timer.deadline_ns = deadline_ns;
    config->ops->arm(config->opaque, lapic->index, deadline_ns);
}

static void disarm_locked(struct lapic *lapic)
{
    if (lapic->timer.deadline_ns != 0) {
        arm_locked(lapic, 0);
    }
    lapic->timer.period_ns = 0;
    lapic->timer.deadline_tsc = 0;
}

static uint64_t guest_tsc(const struct lapic_timer *timer)
{
    return __builtin_ia32_rdtsc() + timer->tsc_offset;
}

/* Arms for deadline_tsc, or returns true when that has passed. */
static bool deadline_arm_locked(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now = guest_tsc(timer);

    if (now >= timer->deadline_tsc) {
        disarm_locked(lapic);
        return true;
    }
    arm_locked(lapic, clock_monotonic_ns() +
                          ticks_to_ns(timer->deadline_tsc - now, lapic->set->config.tsc_hz));
    return false;
}

/* Decides under the lock what an expiry at this moment means; true: deliver. */
static bool expire_locked(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t now = timer->deadline_ns == 0 ? 0 : clock_monotonic_ns();

    if (timer->deadline_ns == 0 || now < timer->deadline_ns) {
        return false; /* re-armed or disarmed since it went off */
    }
    if (timer->deadline_tsc != 0) {
        timer->deadline_ns = 0;            /* it went off */
        return deadline_arm_locked(lapic); /* the two clocks may drift apart a little */
    }
    if (timer->period_ns == 0) {
        timer->deadline_ns = 0;
        return true;
    }
    /* Periods that were missed altogether are not made up for. */
    timer->deadline_ns += (1 + (now - timer->deadline_ns) / timer->period_ns) * timer->period_ns;
    arm_locked(lapic, timer->deadline_ns);
    return true;
}

static void timer_deliver(struct lapic *lapic)
{
    uint32_t lvt = lapic_lvt(lapic, LAPIC_LVT_TIMER);

    if ((lvt & LAPIC_LVT_MASKED) == 0 && lapic_is_software_enabled(lapic)) {
        lapic_accept(lapic, (uint8_t)lvt, false);
    }
}

void lapic_timer_expire(struct lapic *lapic)
{
    bool deliver = false;

    mutex_lock(&lapic->timer.mutex);
    deliver = expire_locked(lapic);
    mutex_unlock(&lapic->timer.mutex);
    if (deliver) {
        timer_deliver(lapic);
    }
}

void lapic_timer_init(struct lapic *lapic)
{
    mutex_init(&lapic->timer.mutex, LOCK_RANK_LAPIC);
}

void lapic_timer_done(struct lapic *lapic)
{
    mutex_done(&lapic->timer.mutex);
}

void lapic_timer_reset(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;

    mutex_lock(&timer->mutex);
    disarm_locked(lapic);
    timer->initial_count = 0;
    timer->divide = 0;
    mutex_unlock(&timer->mutex);
}

static uint64_t count_to_ns(const struct lapic *lapic, uint32_t count)
{
    return ticks_to_ns((uint64_t)count * divisor(lapic->timer.divide), lapic->set->config.timer_hz);
}

static uint32_t current_count_locked(const struct lapic *lapic)
{
    const struct lapic_timer *timer = &lapic->timer;
    uint64_t now = clock_monotonic_ns();
    unsigned __int128 ticks = 0;

    if (timer->deadline_ns <= now || timer->deadline_tsc != 0) {
        return 0;
    }
    ticks = (unsigned __int128)(timer->deadline_ns - now) * lapic->set->config.timer_hz / NS_PER_S /
            divisor(timer->divide);
    return ticks > timer->initial_count ? timer->initial_count : (uint32_t)ticks;
}

uint32_t lapic_timer_read(struct lapic *lapic, enum lapic_reg reg)
{
    struct lapic_timer *timer = &lapic->timer;
    uint32_t value = 0;

    mutex_lock(&timer->mutex);
    if (reg == LAPIC_TMICT) {
        value = timer->initial_count;
    } else if (reg == LAPIC_TDCR) {
        value = timer->divide;
    } else {
        value = current_count_locked(lapic);
    }
    mutex_unlock(&timer->mutex);
    return value;
}

static uint64_t period_of(const struct lapic *lapic)
{
    uint64_t period = count_to_ns(lapic, lapic->timer.initial_count);

    return period < MIN_PERIOD_NS ? MIN_PERIOD_NS : period;
}

static void count_start_locked(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;
    uint32_t mode = lapic_lvt(lapic, LAPIC_LVT_TIMER) & LAPIC_LVT_TIMER_MODE;
    uint64_t delta = count_to_ns(lapic, timer->initial_count);

    disarm_locked(lapic);
    if (timer->initial_count == 0) {
        return;
    }
    if (mode == LAPIC_TIMER_PERIODIC) {
        timer->period_ns = period_of(lapic);
        delta = timer->period_ns;
    }
    arm_locked(lapic, clock_monotonic_ns() + delta);
}

void lapic_timer_write(struct lapic *lapic, enum lapic_reg reg, uint32_t value)
{
    struct lapic_timer *timer = &lapic->timer;
    uint32_t mode = lapic_lvt(lapic, LAPIC_LVT_TIMER) & LAPIC_LVT_TIMER_MODE;

    mutex_lock(&timer->mutex);
    if (reg == LAPIC_TDCR) {
        timer->divide = value & DIVIDE_WRITABLE;
    } else if (mode != LAPIC_TIMER_DEADLINE) {
        timer->initial_count = value;
        count_start_locked(lapic);
    }
    mutex_unlock(&timer->mutex);
}

void lapic_timer_mode_changes(struct lapic *lapic, uint32_t old_lvt, uint32_t new_lvt)
{
    struct lapic_timer *timer = &lapic->timer;
    uint32_t old_mode = old_lvt & LAPIC_LVT_TIMER_MODE;
    uint32_t new_mode = new_lvt & LAPIC_LVT_TIMER_MODE;

    if (old_mode == new_mode) {
        return;
    }
    mutex_lock(&timer->mutex);
    if (old_mode == LAPIC_TIMER_DEADLINE || new_mode == LAPIC_TIMER_DEADLINE) {
        disarm_locked(lapic);
        timer->initial_count = 0;
    } else if (new_mode == LAPIC_TIMER_PERIODIC && timer->deadline_ns != 0) {
        timer->period_ns = period_of(lapic);
    } else {
        timer->period_ns = 0;
    }
    mutex_unlock(&timer->mutex);
}

uint64_t lapic_timer_deadline(struct lapic *lapic)
{
    struct lapic_timer *timer = &lapic->timer;
    uint64_t tsc = 0;

    mutex_lock(&timer->mutex);
    tsc = timer->deadline_tsc;
    mutex_unlock(&timer->mutex);
    return tsc;
}

void lapic_timer_set_deadline(struct lapic *lapic, uint64_t tsc, uint64_t tsc_offset)
{
    struct lapic_timer *timer = &lapic->timer;
    bool deliver = false;

    if ((lapic_lvt(lapic, LAPIC_LVT_TIMER) & LAPIC_LVT_TIMER_MODE) != LAPIC_TIMER_DEADLINE) {
        return; /* SDM 3A 11.5.4.1: writes are ignored in the other modes */
    }
    mutex_lock(&timer->mutex);
    if (tsc == 0) {
        disarm_locked(lapic);
    } else {
        timer->tsc_offset = tsc_offset;
        timer->deadline_tsc = tsc;
        deliver = deadline_arm_locked(lapic);
    }
    mutex_unlock(&timer->mutex);
    if (deliver) {
        timer_deliver(lapic);
    }
}

void lapic_timer_save(struct lapic *lapic, struct lapic_state *ret_state)
{
    struct lapic_timer *timer = &lapic->timer;

    mutex_lock(&timer->mutex);
    ret_state->timer_initial_count = timer->initial_count;
    ret_state->timer_divide = timer->divide;
    ret_state->timer_deadline_tsc = timer->deadline_tsc;
    ret_state->timer_tsc_offset = timer->tsc_offset;
    ret_state->timer_left_ns = 0;
    if (timer->deadline_tsc == 0 && timer->deadline_ns != 0) {
        uint64_t now = clock_monotonic_ns();

        /* One that has just run out is to go off, not to be forgotten. */
        ret_state->timer_left_ns = timer->deadline_ns > now ? timer->deadline_ns - now : 1;
    }
    mutex_unlock(&timer->mutex);
}

void lapic_timer_load(struct lapic *lapic, const struct lapic_state *state)
{
    struct lapic_timer *timer = &lapic->timer;
    uint32_t mode = lapic_lvt(lapic, LAPIC_LVT_TIMER) & LAPIC_LVT_TIMER_MODE;

    mutex_lock(&timer->mutex);
    disarm_locked(lapic);
    timer->initial_count = state->timer_initial_count;
    timer->divide = state->timer_divide & DIVIDE_WRITABLE;
    if (mode != LAPIC_TIMER_DEADLINE && state->timer_left_ns != 0) {
        uint64_t left = state->timer_left_ns > MAX_DELTA_NS ? MAX_DELTA_NS : state->timer_left_ns;

        timer->period_ns = mode == LAPIC_TIMER_PERIODIC ? period_of(lapic) : 0;
        arm_locked(lapic, clock_monotonic_ns() + left);
    }
    mutex_unlock(&timer->mutex);
    lapic_timer_set_deadline(lapic, state->timer_deadline_tsc, state->timer_tsc_offset);
}
