/*
 * A one-shot timer that any thread may arm; it goes off on a loop's thread.
 *
 * Arming is one system call and never waits for the loop. An expiry that was
 * already on its way when the alarm is re-armed may still be delivered, so the
 * callback looks at its own state under its own lock. While the loop is held it
 * waits. CLOCK_MONOTONIC.
 */
#ifndef CORBEL_BASE_ALARM_H
#define CORBEL_BASE_ALARM_H

#include "base/compiler.h"
#include "base/loop.h"

#include <stdint.h>

struct alarm;

/* Unarmed. The loop's thread, or before it runs. -ENOMEM, -EMFILE. */
int alarm_create(struct loop *loop, loop_fn fn, void *opaque, struct alarm **ret_alarm) MUST_CHECK;
/* The loop's thread, or while it does not run. Accepts NULL. */
void alarm_destroy(struct alarm *alarm);

/* Arms or re-arms for an absolute time in ns; 0 disarms. Any thread. */
void alarm_arm(struct alarm *alarm, uint64_t deadline_ns);

#endif
