/*
 * Port and memory-mapped I/O: which device answers an address.
 *
 * Ranges never overlap. A device sees offsets, not addresses, and does not know
 * where it lives. Dispatch may run on any vCPU thread; a device guards itself
 * with its own mutex. Unclaimed reads give all-ones, unclaimed writes are
 * dropped. Accesses reach the device only in sizes its range allows; others
 * are split or refused here.
 */
#ifndef CORBEL_BUS_BUS_H
#define CORBEL_BUS_BUS_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

struct bus;
struct bus_range;

enum bus_space { BUS_PIO, BUS_MMIO };

struct bus_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size_bytes);
    void (*write)(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value);
    uint8_t min_bytes; /* 1, 2, 4 or 8: smaller accesses read the containing unit / are dropped */
    uint8_t max_bytes; /* larger accesses are split, low address first */
};

/*
 * A doorbell: a write to an address that only signals an eventfd and does not
 * reach a range there. size_bytes 0 matches any size. The hook lets the machine
 * register it with the accelerator (ioeventfd); where there is none, or it
 * fails, the bus signals it itself.
 */
struct bus_doorbell_hook {
    int (*set)(void *opaque, enum bus_space space, uint64_t address, unsigned size_bytes,
               bool match, uint64_t data, int fd, bool add);
    void *opaque;
};

int bus_create(struct bus **ret_bus) MUST_CHECK;
void bus_destroy(struct bus *bus); /* accepts NULL */

/* -EEXIST when it overlaps, -EINVAL for an empty or wrapping range. name: static storage. */
int bus_map(struct bus *bus, enum bus_space space, uint64_t base, uint64_t len,
            const struct bus_ops *ops, void *opaque, const char *name, struct bus_range **ret_range)
    MUST_CHECK;
/* After it returns no callback of the range runs or will run. Not from inside that callback's lock. */
void bus_unmap(struct bus *bus, struct bus_range *range); /* accepts NULL */

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes);
void bus_write(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes,
               uint64_t value);

void bus_set_doorbell_hook(struct bus *bus, const struct bus_doorbell_hook *hook);
int bus_doorbell_add(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes,
                     bool match, uint64_t data, int fd) MUST_CHECK;
void bus_doorbell_remove(struct bus *bus, enum bus_space space, uint64_t address, int fd);

#endif
