/* An interrupt router that remembers what devices did to it. */
#ifndef CORBEL_TESTS_DEV_IRQ_RECORDER_H
#define CORBEL_TESTS_DEV_IRQ_RECORDER_H

#include "bus/irq.h"

#include <stdatomic.h>

#define RECORDER_LINES 32
#define RECORDER_MESSAGES 64

struct irq_recorder {
    struct irq_router router;
    _Atomic bool level[RECORDER_LINES];
    _Atomic unsigned rises[RECORDER_LINES];
    _Atomic unsigned message_count;
    uint64_t address[RECORDER_MESSAGES];
    uint32_t data[RECORDER_MESSAGES];
};

static inline void recorder_set_line(void *opaque, unsigned gsi, bool level)
{
    struct irq_recorder *recorder = opaque;

    if (level && !atomic_exchange(&recorder->level[gsi], true)) {
        atomic_fetch_add(&recorder->rises[gsi], 1);
    } else if (!level) {
        atomic_store(&recorder->level[gsi], false);
    }
}

static inline void recorder_send_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct irq_recorder *recorder = opaque;
    unsigned at = atomic_fetch_add(&recorder->message_count, 1) % RECORDER_MESSAGES;

    recorder->address[at] = address;
    recorder->data[at] = data;
}

static inline void recorder_init(struct irq_recorder *recorder)
{
    static const struct irq_ops ops = {
        .set_line = recorder_set_line,
        .send_msi = recorder_send_msi,
    };

    *recorder = (struct irq_recorder){.router = {.ops = &ops}};
    recorder->router.opaque = recorder;
}

#endif
