/*
 * MC146818A: time of day in UTC, alarm, periodic and update interrupts.
 *
 * Time is the host's clock plus an offset that the guest changes by setting
 * the registers. While it sets them (SET in register B) they are plain memory.
 */
#include "base/alarm.h"
#include "base/clock.h"
#include "base/thread.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PORT_INDEX 0x70u
#define CMOS_BYTES 128u
#define UPDATE_NS 244000ull /* update in progress: before the second changes */
/* A guest that asks for a shorter period gets ticks at this one. */
#define MIN_PERIOD_NS 120000ull

enum rtc_reg {
    REG_SECONDS = 0,
    REG_SECONDS_ALARM = 1,
    REG_MINUTES = 2,
    REG_MINUTES_ALARM = 3,
    REG_HOURS = 4,
    REG_HOURS_ALARM = 5,
    REG_WEEKDAY = 6,
    REG_DAY = 7,
    REG_MONTH = 8,
    REG_YEAR = 9,
    REG_A = 10,
    REG_B = 11,
    REG_C = 12,
    REG_D = 13,
    REG_CENTURY = 0x32
};

#define A_UPDATE 0x80u
#define A_DIVIDER 0x70u
#define A_DIVIDER_ON 0x20u
#define A_RATE 0x0fu
#define B_SET 0x80u
#define B_PERIODIC 0x40u
#define B_ALARM 0x20u
#define B_UPDATE 0x10u
#define B_BINARY 0x04u
#define B_24_HOURS 0x02u
#define C_IRQ 0x80u
#define D_VALID 0x80u
#define ALARM_ANY 0xc0u

struct rtc_mc146818 {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct irq_router irq;
    unsigned gsi;
    struct alarm *periodic;
    struct alarm *second;
    uint64_t periodic_next_ns; /* 0: off */
    uint64_t periodic_ns;
    uint8_t index;
    uint8_t cmos[CMOS_BYTES];
    int64_t offset_s; /* guest's clock minus host's */
    bool line;
};

static uint64_t realtime_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_REALTIME, &ts); /* cannot fail for this clock */
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint8_t to_register(const struct rtc_mc146818 *rtc, int value)
{
    if ((rtc->cmos[REG_B] & B_BINARY) != 0) {
        return (uint8_t)value;
    }
    return (uint8_t)(value / 10 << 4 | value % 10);
}

static int from_register(const struct rtc_mc146818 *rtc, uint8_t value)
{
    if ((rtc->cmos[REG_B] & B_BINARY) != 0) {
        return value;
    }
    return (value >> 4) * 10 + (value & 0xf);
}

static uint8_t hours_to_register(const struct rtc_mc146818 *rtc, int hours)
{
    if ((rtc->cmos[REG_B] & B_24_HOURS) != 0) {
        return to_register(rtc, hours);
    }
    return (uint8_t)(to_register(rtc, hours % 12 == 0 ? 12 : hours % 12) |
                     (hours >= 12 ? 0x80 : 0));
}

static int hours_from_register(const struct rtc_mc146818 *rtc, uint8_t value)
{
    if ((rtc->cmos[REG_B] & B_24_HOURS) != 0) {
        return from_register(rtc, value);
    }
    return from_register(rtc, value & 0x7f) % 12 + ((value & 0x80) != 0 ? 12 : 0);
}

/* Fills the time registers from the clock. */
static void time_load_locked(struct rtc_mc146818 *rtc)
{
    time_t now = (time_t)((int64_t)(realtime_ns() / NS_PER_S) + rtc->offset_s);
    struct tm tm;

    if ((rtc->cmos[REG_B] & B_SET) != 0 || gmtime_r(&now, &tm) == NULL) {
        return;
    }
    rtc->cmos[REG_SECONDS] = to_register(rtc, tm.tm_sec);
    rtc->cmos[REG_MINUTES] = to_register(rtc, tm.tm_min);
    rtc->cmos[REG_HOURS] = hours_to_register(rtc, tm.tm_hour);
    rtc->cmos[REG_WEEKDAY] = to_register(rtc, tm.tm_wday + 1);
    rtc->cmos[REG_DAY] = to_register(rtc, tm.tm_mday);
    rtc->cmos[REG_MONTH] = to_register(rtc, tm.tm_mon + 1);
    rtc->cmos[REG_YEAR] = to_register(rtc, tm.tm_year % 100);
    rtc->cmos[REG_CENTURY] = to_register(rtc, (tm.tm_year + 1900) / 100 % 100);
}

/* Sets the clock from the time registers. */
static void time_store_locked(struct rtc_mc146818 *rtc)
{
    struct tm tm = {
        .tm_sec = from_register(rtc, rtc->cmos[REG_SECONDS]),
        .tm_min = from_register(rtc, rtc->cmos[REG_MINUTES]),
        .tm_hour = hours_from_register(rtc, rtc->cmos[REG_HOURS]),
        .tm_mday = from_register(rtc, rtc->cmos[REG_DAY]),
        .tm_mon = from_register(rtc, rtc->cmos[REG_MONTH]) - 1,
        .tm_year = from_register(rtc, rtc->cmos[REG_CENTURY]) * 100 +
                   from_register(rtc, rtc->cmos[REG_YEAR]) - 1900,
    };

    rtc->offset_s = (int64_t)timegm(&tm) - (int64_t)(realtime_ns() / NS_PER_S);
}

static void line_update_locked(struct rtc_mc146818 *rtc)
{
    bool line = false;

    if ((rtc->cmos[REG_C] & rtc->cmos[REG_B] & (B_PERIODIC | B_ALARM | B_UPDATE)) != 0) {
        rtc->cmos[REG_C] |= C_IRQ;
    }
    line = (rtc->cmos[REG_C] & C_IRQ) != 0;
    if (line != rtc->line) {
        rtc->line = line;
        irq_set_line(&rtc->irq, rtc->gsi, line);
    }
}

/* ns between periodic events, 0: off (datasheet table 5). */
static uint64_t period_ns(const struct rtc_mc146818 *rtc)
{
    unsigned rate = rtc->cmos[REG_A] & A_RATE;

    if (rate == 0 || (rtc->cmos[REG_A] & A_DIVIDER) != A_DIVIDER_ON) {
        return 0;
    }
    if (rate <= 2) {
        rate += 7; /* 256 Hz and 128 Hz */
    }
    return NS_PER_S * (1ull << (rate - 1)) / 32768;
}

static void periodic_arm_locked(struct rtc_mc146818 *rtc)
{
    uint64_t period = period_ns(rtc);

    if (period == 0 || (rtc->cmos[REG_B] & B_PERIODIC) == 0) {
        rtc->periodic_next_ns = 0;
    } else {
        rtc->periodic_ns = period < MIN_PERIOD_NS ? MIN_PERIOD_NS : period;
        rtc->periodic_next_ns = clock_monotonic_ns() + rtc->periodic_ns;
    }
    alarm_arm(rtc->periodic, rtc->periodic_next_ns);
}

static void periodic_fired(void *opaque)
{
    struct rtc_mc146818 *rtc = opaque;
    uint64_t now = clock_monotonic_ns();

    mutex_lock(&rtc->mutex);
    if (rtc->periodic_next_ns != 0 && now >= rtc->periodic_next_ns) {
        uint64_t period = rtc->periodic_ns;

        /* ticks that were missed altogether are not made up for */
        rtc->periodic_next_ns += (1 + (now - rtc->periodic_next_ns) / period) * period;
        alarm_arm(rtc->periodic, rtc->periodic_next_ns);
        rtc->cmos[REG_C] |= B_PERIODIC;
        line_update_locked(rtc);
    }
    mutex_unlock(&rtc->mutex);
}

/* The clock ticks only for a guest that wants to hear of it. */
static void second_arm_locked(struct rtc_mc146818 *rtc)
{
    uint64_t left = NS_PER_S - realtime_ns() % NS_PER_S;
    bool wanted = (rtc->cmos[REG_B] & (B_ALARM | B_UPDATE)) != 0 && (rtc->cmos[REG_B] & B_SET) == 0;

    alarm_arm(rtc->second, wanted ? clock_monotonic_ns() + left : 0);
}

static bool alarm_field_matches(uint8_t alarm, uint8_t now)
{
    return (alarm & ALARM_ANY) == ALARM_ANY || alarm == now;
}

static void second_fired(void *opaque)
{
    struct rtc_mc146818 *rtc = opaque;
    const uint8_t *cmos = rtc->cmos;

    mutex_lock(&rtc->mutex);
    if ((cmos[REG_B] & B_SET) == 0) {
        time_load_locked(rtc);
        rtc->cmos[REG_C] |= B_UPDATE;
        if (alarm_field_matches(cmos[REG_SECONDS_ALARM], cmos[REG_SECONDS]) &&
            alarm_field_matches(cmos[REG_MINUTES_ALARM], cmos[REG_MINUTES]) &&
            alarm_field_matches(cmos[REG_HOURS_ALARM], cmos[REG_HOURS])) {
            rtc->cmos[REG_C] |= B_ALARM;
        }
        line_update_locked(rtc);
    }
    second_arm_locked(rtc);
    mutex_unlock(&rtc->mutex);
}

static uint8_t cmos_read_locked(struct rtc_mc146818 *rtc, uint8_t reg)
{
    uint8_t value = 0;

    switch (reg) {
    case REG_A:
        value = rtc->cmos[REG_A];
        if ((rtc->cmos[REG_B] & B_SET) == 0 && realtime_ns() % NS_PER_S >= NS_PER_S - UPDATE_NS) {
            value |= A_UPDATE;
        }
        return value;
    case REG_C:
        value = rtc->cmos[REG_C];
        rtc->cmos[REG_C] = 0;
        line_update_locked(rtc);
        return value;
    case REG_D:
        return D_VALID;
    default:
        time_load_locked(rtc);
        return rtc->cmos[reg];
    }
}

static void b_write_locked(struct rtc_mc146818 *rtc, uint8_t value)
{
    uint8_t old = rtc->cmos[REG_B];

    if ((value & B_SET) != 0) {
        time_load_locked(rtc); /* what is not set keeps the current time */
        value &= (uint8_t)~B_UPDATE;
    }
    rtc->cmos[REG_B] = value;
    if ((old & B_SET) != 0 && (value & B_SET) == 0) {
        time_store_locked(rtc);
    }
    line_update_locked(rtc);
    periodic_arm_locked(rtc);
    second_arm_locked(rtc);
}

static bool is_time_register(uint8_t reg)
{
    return reg == REG_CENTURY || (reg <= REG_YEAR && reg != REG_SECONDS_ALARM &&
                                  reg != REG_MINUTES_ALARM && reg != REG_HOURS_ALARM);
}

static void cmos_write_locked(struct rtc_mc146818 *rtc, uint8_t reg, uint8_t value)
{
    switch (reg) {
    case REG_A:
        rtc->cmos[REG_A] = value & (uint8_t)~A_UPDATE;
        periodic_arm_locked(rtc);
        break;
    case REG_B:
        b_write_locked(rtc, value);
        break;
    case REG_C: /* read-only */
    case REG_D:
        break;
    default:
        if (is_time_register(reg)) {
            time_load_locked(rtc);
        }
        rtc->cmos[reg] = value;
        if (is_time_register(reg) && (rtc->cmos[REG_B] & B_SET) == 0) {
            time_store_locked(rtc);
        }
        break;
    }
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct rtc_mc146818 *rtc = opaque;
    uint8_t value = 0xff; /* the index port is write-only */

    (void)size_bytes; /* always 1 */
    if (offset == 1) {
        mutex_lock(&rtc->mutex);
        value = cmos_read_locked(rtc, rtc->index);
        mutex_unlock(&rtc->mutex);
    }
    return value;
}

static void rtc_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct rtc_mc146818 *rtc = opaque;

    (void)size_bytes; /* always 1 */
    mutex_lock(&rtc->mutex);
    if (offset == 0) {
        rtc->index = (uint8_t)(value & (CMOS_BYTES - 1)); /* bit 7 masks NMI: there is none */
    } else {
        cmos_write_locked(rtc, rtc->index, (uint8_t)value);
    }
    mutex_unlock(&rtc->mutex);
}

static const struct bus_ops rtc_ops = {
    .read = rtc_read,
    .write = rtc_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

void rtc_mc146818_reset(struct rtc_mc146818 *rtc)
{
    mutex_lock(&rtc->mutex);
    rtc->index = 0;
    rtc->cmos[REG_A] = A_DIVIDER_ON | 0x06;
    rtc->cmos[REG_B] = B_24_HOURS;
    rtc->cmos[REG_C] = 0;
    line_update_locked(rtc);
    periodic_arm_locked(rtc);
    second_arm_locked(rtc);
    mutex_unlock(&rtc->mutex);
}

int rtc_mc146818_create(const struct dev_env *env, unsigned gsi, struct rtc_mc146818 **ret_rtc)
{
    struct rtc_mc146818 *rtc = calloc(1, sizeof(*rtc));
    int rc = 0;

    if (rtc == NULL) {
        return -ENOMEM;
    }
    mutex_init(&rtc->mutex, LOCK_RANK_DEVICE);
    rtc->bus = env->bus;
    rtc->irq = env->irq;
    rtc->gsi = gsi;
    rc = alarm_create(env->loop, periodic_fired, rtc, &rtc->periodic);
    if (rc == 0) {
        rc = alarm_create(env->loop, second_fired, rtc, &rtc->second);
    }
    if (rc == 0) {
        rtc_mc146818_reset(rtc);
        rc = bus_map(env->bus, BUS_PIO, PORT_INDEX, 2, &rtc_ops, rtc, "rtc", &rtc->range);
    }
    if (rc != 0) {
        rtc_mc146818_destroy(rtc);
        return rc;
    }
    *ret_rtc = rtc;
    return 0;
}

void rtc_mc146818_destroy(struct rtc_mc146818 *rtc)
{
    if (rtc == NULL) {
        return;
    }
    bus_unmap(rtc->bus, rtc->range);
    alarm_destroy(rtc->periodic);
    alarm_destroy(rtc->second);
    mutex_done(&rtc->mutex);
    free(rtc);
}
