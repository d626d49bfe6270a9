/* i8042 without keyboard or mouse: answers a probe, resets the machine, and no more. */
#include "base/thread.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

#define PORT_DATA 0x60u
#define PORT_COMMAND 0x64u

#define STATUS_OUTPUT_FULL 0x01u
#define STATUS_SYSTEM 0x04u
#define STATUS_COMMAND 0x08u
#define STATUS_UNLOCKED 0x10u
#define OUTPUT_NOT_RESET 0x01u
#define CONTROL_DEFAULT 0x74u /* both ports off, translation, self-test passed */

struct kbd_i8042 {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *data_range;
    struct bus_range *command_range;
    const struct dev_power_ops *ops;
    void *opaque;
    uint8_t output;
    bool output_full;
    uint8_t control;
    uint8_t output_port;
    uint8_t pending; /* the command that waits for its byte, 0: none */
    bool last_was_command;
};

static void answer_locked(struct kbd_i8042 *kbd, uint8_t value)
{
    kbd->output = value;
    kbd->output_full = true;
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct kbd_i8042 *kbd = opaque;
    uint8_t value = 0;

    (void)offset;
    (void)size_bytes; /* always 1 */
    mutex_lock(&kbd->mutex);
    value = kbd->output;
    kbd->output_full = false;
    mutex_unlock(&kbd->mutex);
    return value;
}

static void data_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct kbd_i8042 *kbd = opaque;
    bool reset = false;

    (void)offset;
    (void)size_bytes; /* always 1 */
    mutex_lock(&kbd->mutex);
    switch (kbd->pending) {
    case 0x60: /* write control byte */
        kbd->control = (uint8_t)value;
        break;
    case 0xd1: /* write output port */
        kbd->output_port = (uint8_t)value | OUTPUT_NOT_RESET;
        reset = (value & OUTPUT_NOT_RESET) == 0;
        break;
    case 0xd2: /* write to output buffer, as a keyboard, and as a mouse */
    case 0xd3:
        answer_locked(kbd, (uint8_t)value);
        break;
    default: /* nobody is there to answer */
        break;
    }
    kbd->pending = 0;
    kbd->last_was_command = false;
    mutex_unlock(&kbd->mutex);
    if (reset) {
        kbd->ops->reset(kbd->opaque);
    }
}

static uint64_t status_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct kbd_i8042 *kbd = opaque;
    uint8_t value = STATUS_UNLOCKED;

    (void)offset;
    (void)size_bytes; /* always 1 */
    mutex_lock(&kbd->mutex);
    value |= kbd->control & STATUS_SYSTEM;
    value |= kbd->output_full ? STATUS_OUTPUT_FULL : 0;
    value |= kbd->last_was_command ? STATUS_COMMAND : 0;
    mutex_unlock(&kbd->mutex);
    return value;
}

/* True: the reset line was pulsed. */
static bool command_locked(struct kbd_i8042 *kbd, uint8_t command)
{
    kbd->last_was_command = true;
    kbd->pending = 0;
    switch (command) {
    case 0x20: /* read control byte */
        answer_locked(kbd, kbd->control);
        break;
    case 0x60: /* these wait for a byte */
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xd4:
        kbd->pending = command;
        break;
    case 0xa7: /* disable and enable ports */
        kbd->control |= 0x20;
        break;
    case 0xa8:
        kbd->control &= (uint8_t)~0x20u;
        break;
    case 0xad:
        kbd->control |= 0x10;
        break;
    case 0xae:
        kbd->control &= (uint8_t)~0x10u;
        break;
    case 0xa9: /* test the mouse port: clock stuck low, nothing is there */
    case 0xab: /* test the keyboard port */
        answer_locked(kbd, 0x01);
        break;
    case 0xaa: /* self-test passed */
        kbd->control |= STATUS_SYSTEM;
        answer_locked(kbd, 0x55);
        break;
    case 0xc0: /* input port */
        answer_locked(kbd, 0x80);
        break;
    case 0xd0: /* output port */
        answer_locked(kbd, kbd->output_port);
        break;
    default:
        /* 0xf0 to 0xff pulse the output port's bits that are 0; bit 0 is the reset line */
        return command >= 0xf0 && (command & OUTPUT_NOT_RESET) == 0;
    }
    return false;
}

static void command_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct kbd_i8042 *kbd = opaque;
    bool reset = false;

    (void)offset;
    (void)size_bytes; /* always 1 */
    mutex_lock(&kbd->mutex);
    reset = command_locked(kbd, (uint8_t)value);
    mutex_unlock(&kbd->mutex);
    if (reset) {
        kbd->ops->reset(kbd->opaque);
    }
}

static const struct bus_ops data_ops = {
    .read = data_read,
    .write = data_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

static const struct bus_ops command_ops = {
    .read = status_read,
    .write = command_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

void kbd_i8042_reset(struct kbd_i8042 *kbd)
{
    mutex_lock(&kbd->mutex);
    kbd->output = 0;
    kbd->output_full = false;
    kbd->control = CONTROL_DEFAULT;
    kbd->output_port = OUTPUT_NOT_RESET | 0x02; /* A20 is always on */
    kbd->pending = 0;
    kbd->last_was_command = false;
    mutex_unlock(&kbd->mutex);
}

int kbd_i8042_create(const struct dev_env *env, const struct dev_power_ops *ops, void *opaque,
                     struct kbd_i8042 **ret_kbd)
{
    struct kbd_i8042 *kbd = calloc(1, sizeof(*kbd));
    int rc = 0;

    if (kbd == NULL) {
        return -ENOMEM;
    }
    mutex_init(&kbd->mutex, LOCK_RANK_DEVICE);
    kbd->bus = env->bus;
    kbd->ops = ops;
    kbd->opaque = opaque;
    kbd_i8042_reset(kbd);
    rc = bus_map(env->bus, BUS_PIO, PORT_DATA, 1, &data_ops, kbd, "i8042", &kbd->data_range);
    if (rc == 0) {
        rc = bus_map(env->bus, BUS_PIO, PORT_COMMAND, 1, &command_ops, kbd, "i8042",
                     &kbd->command_range);
    }
    if (rc != 0) {
        kbd_i8042_destroy(kbd);
        return rc;
    }
    *ret_kbd = kbd;
    return 0;
}

void kbd_i8042_destroy(struct kbd_i8042 *kbd)
{
    if (kbd == NULL) {
        return;
    }
    bus_unmap(kbd->bus, kbd->data_range);
    bus_unmap(kbd->bus, kbd->command_range);
    mutex_done(&kbd->mutex);
    free(kbd);
}
