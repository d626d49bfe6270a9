/*
 * Intel 8254: counters are computed from the time since they were loaded, not
 * counted. Channel 0 interrupts through an alarm; channel 1 (memory refresh)
 * only counts; channel 2 has its gate and output in port 0x61.
 */
#include "base/alarm.h"
#include "base/clock.h"
#include "base/thread.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

#define PORT_COUNTERS 0x40u
#define PORT_CONTROL_OFFSET 3u
#define PORT_SYSTEM 0x61u
#define PIT_HZ 1193182ull
/* Shorter periods are stretched to this one, so that a guest cannot keep the loop busy. */
#define MIN_PERIOD_NS 100000ull
#define REFRESH_NS 15085ull

#define SYSTEM_GATE2 0x01u
#define SYSTEM_SPEAKER 0x02u
#define SYSTEM_REFRESH 0x10u
#define SYSTEM_OUTPUT2 0x20u

#define RW_LATCH 0u
#define RW_LOW 1u
#define RW_HIGH 2u
#define RW_BOTH 3u

struct counter {
    uint8_t mode; /* 0 to 5 */
    uint8_t rw;
    bool is_bcd;
    bool gate;
    bool is_loaded;      /* a count was written since the mode was set */
    bool is_triggered;   /* modes 1 and 5: the gate has risen */
    uint32_t reload;     /* 1 to 65536 (10000 in BCD) */
    uint64_t start_ns;   /* counting began, or went on */
    uint64_t base_ticks; /* counted before start_ns */
    uint8_t write_low;
    bool write_second; /* the high byte of RW_BOTH comes next */
    bool read_second;
    bool count_latched;
    uint16_t latch;
    bool latch_second;
    bool status_latched;
    uint8_t status;
};

struct pit_i8254 {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct bus_range *system_range;
    struct irq_router irq;
    unsigned gsi;
    struct alarm *alarm;
    struct counter counters[3];
    uint64_t next_ns;   /* channel 0's next interrupt, 0: none */
    uint64_t period_ns; /* 0: one shot */
    uint8_t system;     /* port 0x61, the bits that can be written */
};

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (ticks * NS_PER_S + PIT_HZ - 1) / PIT_HZ;
}

static bool is_counting(const struct counter *counter)
{
    if (!counter->is_loaded) {
        return false;
    }
    if (counter->mode == 1 || counter->mode == 5) {
        return counter->is_triggered;
    }
    return counter->gate;
}

static uint64_t ticks_at(const struct counter *counter, uint64_t now)
{
    uint64_t ticks = counter->base_ticks;

    if (is_counting(counter) && now > counter->start_ns) {
        ticks += (uint64_t)((unsigned __int128)(now - counter->start_ns) * PIT_HZ / NS_PER_S);
    }
    return ticks;
}

static uint16_t count_at(const struct counter *counter, uint64_t now)
{
    uint64_t ticks = ticks_at(counter, now);
    uint32_t modulus = counter->is_bcd ? 10000 : 65536;
    uint32_t count = 0;

    if (counter->mode == 2) {
        count = counter->reload - (uint32_t)(ticks % counter->reload);
    } else if (counter->mode == 3) {
        count = counter->reload - (uint32_t)(ticks * 2 % counter->reload);
    } else {
        count = (counter->reload + modulus - (uint32_t)(ticks % modulus)) % modulus;
    }
    count %= modulus;
    if (counter->is_bcd) {
        return (uint16_t)(count / 1000 << 12 | count / 100 % 10 << 8 | count / 10 % 10 << 4 |
                          count % 10);
    }
    return (uint16_t)count;
}

static bool output_at(const struct counter *counter, uint64_t now)
{
    uint64_t ticks = ticks_at(counter, now);

    if (!counter->is_loaded) {
        return counter->mode != 0;
    }
    switch (counter->mode) {
    case 0:
        return ticks >= counter->reload;
    case 1:
        return !counter->is_triggered || ticks >= counter->reload;
    case 2:
        return ticks % counter->reload != counter->reload - 1;
    case 3:
        return !counter->gate || ticks % counter->reload < (counter->reload + 1) / 2;
    default:
        return ticks != counter->reload;
    }
}

static void channel0_arm_locked(struct pit_i8254 *pit)
{
    const struct counter *counter = &pit->counters[0];

    pit->next_ns = 0;
    pit->period_ns = 0;
    if (is_counting(counter)) {
        uint64_t delta = ticks_to_ns(counter->reload);

        if (counter->mode == 2 || counter->mode == 3) {
            pit->period_ns = delta < MIN_PERIOD_NS ? MIN_PERIOD_NS : delta;
            delta = pit->period_ns;
        }
        pit->next_ns = counter->start_ns + delta;
    }
    alarm_arm(pit->alarm, pit->next_ns);
}

/* The output falls and rises: an edge, and high until the counter is programmed anew. */
static void channel0_fired(void *opaque)
{
    struct pit_i8254 *pit = opaque;
    uint64_t now = clock_monotonic_ns();

    mutex_lock(&pit->mutex);
    if (pit->next_ns != 0 && now >= pit->next_ns) {
        if (pit->period_ns != 0) {
            /* ticks that were missed altogether are not made up for */
            pit->next_ns += (1 + (now - pit->next_ns) / pit->period_ns) * pit->period_ns;
            alarm_arm(pit->alarm, pit->next_ns);
        } else {
            pit->next_ns = 0;
        }
        irq_set_line(&pit->irq, pit->gsi, false);
        irq_set_line(&pit->irq, pit->gsi, true);
    }
    mutex_unlock(&pit->mutex);
}

static void counter_load_locked(struct pit_i8254 *pit, unsigned index, uint16_t value)
{
    struct counter *counter = &pit->counters[index];
    uint32_t count = value;

    if (counter->is_bcd) {
        count = (value >> 12) * 1000u + ((value >> 8) & 15u) * 100 + ((value >> 4) & 15u) * 10 +
                (value & 15u);
    }
    if (count == 0) {
        count = counter->is_bcd ? 10000 : 65536;
    }
    counter->reload = count;
    counter->is_loaded = true;
    counter->is_triggered = false;
    counter->base_ticks = 0;
    counter->start_ns = clock_monotonic_ns();
    if (index == 0) {
        if (counter->mode == 0) {
            irq_set_line(&pit->irq, pit->gsi, false);
        }
        channel0_arm_locked(pit);
    }
}

static void counter_write_locked(struct pit_i8254 *pit, unsigned index, uint8_t value)
{
    struct counter *counter = &pit->counters[index];

    switch (counter->rw) {
    case RW_LOW:
        counter_load_locked(pit, index, value);
        break;
    case RW_HIGH:
        counter_load_locked(pit, index, (uint16_t)(value << 8));
        break;
    default:
        if (!counter->write_second) {
            counter->write_low = value;
            counter->write_second = true;
        } else {
            counter->write_second = false;
            counter_load_locked(pit, index, (uint16_t)(value << 8 | counter->write_low));
        }
        break;
    }
}

/* One byte of a 16-bit value, as the read/write mode says; *second alternates in RW_BOTH. */
static uint8_t byte_of(const struct counter *counter, uint16_t value, bool *second, bool *ret_last)
{
    bool high = counter->rw == RW_HIGH || (counter->rw == RW_BOTH && *second);

    *ret_last = counter->rw != RW_BOTH || *second;
    if (counter->rw == RW_BOTH) {
        *second = !*second;
    }
    return (uint8_t)(high ? value >> 8 : value);
}

static uint8_t counter_read_locked(struct counter *counter)
{
    bool last = false;
    uint8_t value = 0;

    if (counter->status_latched) {
        counter->status_latched = false;
        return counter->status;
    }
    if (counter->count_latched) {
        value = byte_of(counter, counter->latch, &counter->latch_second, &last);
        counter->count_latched = !last;
        return value;
    }
    return byte_of(counter, count_at(counter, clock_monotonic_ns()), &counter->read_second, &last);
}

static void count_latch(struct counter *counter)
{
    if (!counter->count_latched) {
        counter->latch = count_at(counter, clock_monotonic_ns());
        counter->count_latched = true;
        counter->latch_second = false;
    }
}

static void status_latch(struct counter *counter)
{
    if (!counter->status_latched) {
        counter->status = (uint8_t)((output_at(counter, clock_monotonic_ns()) ? 0x80 : 0) |
                                    (counter->is_loaded ? 0 : 0x40) | counter->rw << 4 |
                                    counter->mode << 1 | (counter->is_bcd ? 1 : 0));
        counter->status_latched = true;
    }
}

static void control_write_locked(struct pit_i8254 *pit, uint8_t value)
{
    unsigned index = value >> 6;
    struct counter *counter = NULL;

    if (index == 3) { /* read-back command: 0 bits latch count and status */
        for (unsigned i = 0; i < 3; i++) {
            if ((value & (2u << i)) != 0 && (value & 0x20) == 0) {
                count_latch(&pit->counters[i]);
            }
            if ((value & (2u << i)) != 0 && (value & 0x10) == 0) {
                status_latch(&pit->counters[i]);
            }
        }
        return;
    }
    counter = &pit->counters[index];
    if (((value >> 4) & 3) == RW_LATCH) {
        count_latch(counter);
        return;
    }
    counter->rw = (value >> 4) & 3;
    counter->mode = (value >> 1) & 7;
    if (counter->mode > 5) {
        counter->mode -= 4; /* modes 2 and 3 ignore their high bit */
    }
    counter->is_bcd = (value & 1) != 0;
    counter->is_loaded = false;
    counter->is_triggered = false;
    counter->base_ticks = 0;
    counter->write_second = counter->read_second = false;
    counter->count_latched = counter->status_latched = false;
    if (index == 0) {
        irq_set_line(&pit->irq, pit->gsi, false);
        channel0_arm_locked(pit);
    }
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct pit_i8254 *pit = opaque;
    uint8_t value = 0xff; /* the control word cannot be read */

    (void)size_bytes; /* always 1 */
    if (offset < PORT_CONTROL_OFFSET) {
        mutex_lock(&pit->mutex);
        value = counter_read_locked(&pit->counters[offset]);
        mutex_unlock(&pit->mutex);
    }
    return value;
}

static void pit_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct pit_i8254 *pit = opaque;

    (void)size_bytes; /* always 1 */
    mutex_lock(&pit->mutex);
    if (offset < PORT_CONTROL_OFFSET) {
        counter_write_locked(pit, (unsigned)offset, (uint8_t)value);
    } else {
        control_write_locked(pit, (uint8_t)value);
    }
    mutex_unlock(&pit->mutex);
}

/* What a gate does depends on the mode (datasheet, "gate pin operations"). */
static void gate_set_locked(struct counter *counter, bool gate)
{
    uint64_t now = clock_monotonic_ns();

    if (gate == counter->gate) {
        return;
    }
    if (!gate) {
        if (counter->mode != 1 && counter->mode != 5) {
            counter->base_ticks = ticks_at(counter, now);
        }
        counter->gate = false;
        return;
    }
    counter->gate = true;
    if (counter->mode != 0 && counter->mode != 4) {
        counter->base_ticks = 0;
        counter->is_triggered = true;
    }
    counter->start_ns = now;
}

static uint64_t system_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct pit_i8254 *pit = opaque;
    uint64_t now = clock_monotonic_ns();
    uint8_t value = 0;

    (void)offset;
    (void)size_bytes; /* always 1 */
    mutex_lock(&pit->mutex);
    value = pit->system;
    value |= (now / REFRESH_NS) % 2 != 0 ? SYSTEM_REFRESH : 0;
    value |= output_at(&pit->counters[2], now) ? SYSTEM_OUTPUT2 : 0;
    mutex_unlock(&pit->mutex);
    return value;
}

static void system_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct pit_i8254 *pit = opaque;

    (void)offset;
    (void)size_bytes; /* always 1 */
    mutex_lock(&pit->mutex);
    pit->system = (uint8_t)value & (SYSTEM_GATE2 | SYSTEM_SPEAKER);
    gate_set_locked(&pit->counters[2], (value & SYSTEM_GATE2) != 0);
    mutex_unlock(&pit->mutex);
}

static const struct bus_ops pit_ops = {
    .read = pit_read,
    .write = pit_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

static const struct bus_ops system_ops = {
    .read = system_read,
    .write = system_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

void pit_i8254_reset(struct pit_i8254 *pit)
{
    mutex_lock(&pit->mutex);
    for (unsigned i = 0; i < 3; i++) {
        pit->counters[i] = (struct counter){
            .mode = 3,
            .rw = RW_BOTH,
            .gate = i != 2,
            .reload = 65536,
            .start_ns = clock_monotonic_ns(),
        };
    }
    pit->system = 0;
    irq_set_line(&pit->irq, pit->gsi, false);
    channel0_arm_locked(pit);
    mutex_unlock(&pit->mutex);
}

int pit_i8254_create(const struct dev_env *env, unsigned gsi, struct pit_i8254 **ret_pit)
{
    struct pit_i8254 *pit = calloc(1, sizeof(*pit));
    int rc = 0;

    if (pit == NULL) {
        return -ENOMEM;
    }
    mutex_init(&pit->mutex, LOCK_RANK_DEVICE);
    pit->bus = env->bus;
    pit->irq = env->irq;
    pit->gsi = gsi;
    rc = alarm_create(env->loop, channel0_fired, pit, &pit->alarm);
    if (rc == 0) {
        pit_i8254_reset(pit);
        rc = bus_map(env->bus, BUS_PIO, PORT_COUNTERS, 4, &pit_ops, pit, "pit", &pit->range);
    }
    if (rc == 0) {
        rc = bus_map(env->bus, BUS_PIO, PORT_SYSTEM, 1, &system_ops, pit, "port 61",
                     &pit->system_range);
    }
    if (rc != 0) {
        pit_i8254_destroy(pit);
        return rc;
    }
    *ret_pit = pit;
    return 0;
}

void pit_i8254_destroy(struct pit_i8254 *pit)
{
    if (pit == NULL) {
        return;
    }
    bus_unmap(pit->bus, pit->range);
    bus_unmap(pit->bus, pit->system_range);
    alarm_destroy(pit->alarm);
    mutex_done(&pit->mutex);
    free(pit);
}
