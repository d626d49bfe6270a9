#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

struct debug_exit {
    struct bus *bus;
    struct bus_range *range;
    const struct dev_power_ops *ops;
    void *opaque;
};

static uint64_t exit_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    (void)opaque;
    (void)offset;
    (void)size_bytes;
    return 0xff;
}

static void exit_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct debug_exit *dev = opaque;

    (void)offset;
    (void)size_bytes; /* always 1 */
    dev->ops->debug_exit(dev->opaque, (uint8_t)value);
}

static const struct bus_ops exit_ops = {
    .read = exit_read,
    .write = exit_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

int debug_exit_create(const struct dev_env *env, uint16_t port, const struct dev_power_ops *ops,
                      void *opaque, struct debug_exit **ret_dev)
{
    struct debug_exit *dev = calloc(1, sizeof(*dev));
    int rc = 0;

    if (dev == NULL) {
        return -ENOMEM;
    }
    dev->bus = env->bus;
    dev->ops = ops;
    dev->opaque = opaque;
    rc = bus_map(env->bus, BUS_PIO, port, 1, &exit_ops, dev, "debug exit", &dev->range);
    if (rc != 0) {
        free(dev);
        return rc;
    }
    *ret_dev = dev;
    return 0;
}

void debug_exit_destroy(struct debug_exit *dev)
{
    if (dev == NULL) {
        return;
    }
    bus_unmap(dev->bus, dev->range);
    free(dev);
}
