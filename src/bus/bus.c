/*
 * The table of ranges and doorbells, and the splitting of accesses.
 *
 * Ranges stand in an array sorted by base. A lookup counts itself into the
 * range under the bus mutex and calls the device without it; bus_unmap() takes
 * the range out of the table and waits for that count to fall to zero.
 */
#include "bus/bus.h"

#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUS_MAX_RANGES 512u
#define BUS_MAX_DOORBELLS 1024u
#define BUS_SPACES 2

struct bus_range {
    uint64_t base;
    uint64_t last; /* inclusive, so that a range may end at the top of the space */
    const struct bus_ops *ops;
    void *opaque;
    const char *name;
    enum bus_space space;
    unsigned users; /* callbacks running; under the bus mutex */
};

struct doorbell {
    uint64_t address;
    uint64_t data;
    int fd;
    uint8_t size_bytes; /* 0: any */
    bool match;
    bool is_hooked; /* the accelerator knows it too */
};

struct bus_table {
    struct bus_range **ranges; /* sorted by base */
    unsigned range_count;
    struct doorbell *doorbells; /* sorted by address */
    unsigned doorbell_count;
};

struct bus {
    struct mutex mutex;
    pthread_cond_t idle; /* a range's users fell to zero */
    struct bus_table spaces[BUS_SPACES];
    struct bus_doorbell_hook hook;
    bool has_hook;
};

int bus_create(struct bus **ret_bus)
{
    struct bus *bus = calloc(1, sizeof(*bus));

    if (bus == NULL) {
        return -ENOMEM;
    }
    if (pthread_cond_init(&bus->idle, NULL) != 0) {
        free(bus);
        return -ENOMEM;
    }
    mutex_init(&bus->mutex, LOCK_RANK_BUS);
    for (unsigned i = 0; i < BUS_SPACES; i++) {
        bus->spaces[i].ranges = calloc(BUS_MAX_RANGES, sizeof(struct bus_range *));
        bus->spaces[i].doorbells = calloc(BUS_MAX_DOORBELLS, sizeof(struct doorbell));
        if (bus->spaces[i].ranges == NULL || bus->spaces[i].doorbells == NULL) {
            bus_destroy(bus);
            return -ENOMEM;
        }
    }
    *ret_bus = bus;
    return 0;
}

void bus_destroy(struct bus *bus)
{
    if (bus == NULL) {
        return;
    }
    for (unsigned i = 0; i < BUS_SPACES; i++) {
        struct bus_table *table = &bus->spaces[i];

        for (unsigned r = 0; r < table->range_count; r++) {
            free(table->ranges[r]); /* NOLINT(clang-analyzer-core.NullDereference): then no count */
        }
        free(table->ranges);
        free(table->doorbells);
    }
    mutex_done(&bus->mutex);
    (void)pthread_cond_destroy(&bus->idle);
    free(bus);
}

/* The index of the first range that ends at or after address. */
static unsigned range_lower_bound(const struct bus_table *table, uint64_t address)
{
    unsigned low = 0;
    unsigned high = table->range_count;

    while (low < high) {
        unsigned mid = low + (high - low) / 2;

        if (table->ranges[mid]->last < address) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

static bool ops_are_valid(const struct bus_ops *ops)
{
    bool min_ok =
        ops->min_bytes == 1 || ops->min_bytes == 2 || ops->min_bytes == 4 || ops->min_bytes == 8;
    bool max_ok =
        ops->max_bytes == 1 || ops->max_bytes == 2 || ops->max_bytes == 4 || ops->max_bytes == 8;

    return min_ok && max_ok && ops->min_bytes <= ops->max_bytes;
}

static int range_insert_locked(struct bus_table *table, struct bus_range *range)
{
    unsigned at = range_lower_bound(table, range->base);

    if (at < table->range_count && table->ranges[at]->base <= range->last) {
        return -EEXIST;
    }
    if (table->range_count == BUS_MAX_RANGES) {
        return -ENOSPC;
    }
    memmove(&table->ranges[at + 1], &table->ranges[at],
            (table->range_count - at) * sizeof(struct bus_range *));
    table->ranges[at] = range;
    table->range_count++;
    return 0;
}

int bus_map(struct bus *bus, enum bus_space space, uint64_t base, uint64_t len,
            const struct bus_ops *ops, void *opaque, const char *name, struct bus_range **ret_range)
{
    uint64_t limit = space == BUS_PIO ? 0xffff : UINT64_MAX;
    struct bus_range *range = NULL;
    int rc = 0;

    if (len == 0 || base > limit || len - 1 > limit - base || !ops_are_valid(ops)) {
        return -EINVAL;
    }
    range = calloc(1, sizeof(*range));
    if (range == NULL) {
        return -ENOMEM;
    }
    range->base = base;
    range->last = base + (len - 1);
    range->ops = ops;
    range->opaque = opaque;
    range->name = name;
    range->space = space;

    mutex_lock(&bus->mutex);
    rc = range_insert_locked(&bus->spaces[space], range);
    mutex_unlock(&bus->mutex);
    if (rc != 0) {
        free(range);
        return rc;
    }
    *ret_range = range;
    return 0;
}

void bus_unmap(struct bus *bus, struct bus_range *range)
{
    struct bus_table *table = NULL;
    unsigned at = 0;

    if (range == NULL) {
        return;
    }
    mutex_lock(&bus->mutex);
    table = &bus->spaces[range->space];
    at = range_lower_bound(table, range->base);
    assert(at < table->range_count && table->ranges[at] == range);
    memmove(&table->ranges[at], &table->ranges[at + 1],
            (table->range_count - at - 1) * sizeof(struct bus_range *));
    table->range_count--;
    while (range->users > 0) {
        (void)pthread_cond_wait(&bus->idle, &bus->mutex.raw);
    }
    mutex_unlock(&bus->mutex);
    free(range);
}

/* The range that holds address, counted in; or NULL. */
static struct bus_range *range_get(struct bus *bus, enum bus_space space, uint64_t address)
{
    const struct bus_table *table = &bus->spaces[space];
    struct bus_range *range = NULL;
    unsigned at = 0;

    mutex_lock(&bus->mutex);
    at = range_lower_bound(table, address);
    if (at < table->range_count && table->ranges[at]->base <= address) {
        range = table->ranges[at];
        range->users++;
    }
    mutex_unlock(&bus->mutex);
    return range;
}

static void range_put(struct bus *bus, struct bus_range *range)
{
    mutex_lock(&bus->mutex);
    range->users--;
    if (range->users == 0) {
        (void)pthread_cond_broadcast(&bus->idle);
    }
    mutex_unlock(&bus->mutex);
}

/* The largest aligned power of two that fits in left bytes, the range and the device's maximum. */
static unsigned piece_size(const struct bus_range *range, uint64_t address, unsigned left)
{
    uint64_t offset = address - range->base;
    uint64_t room = range->last - address; /* bytes after the first */
    unsigned size = range->ops->max_bytes;

    while (size > left || (offset & (size - 1)) != 0 || size - 1 > room) {
        size /= 2;
    }
    return size;
}

static uint64_t mask_of(unsigned size_bytes)
{
    return size_bytes >= 8 ? UINT64_MAX : (1ull << (size_bytes * 8)) - 1;
}

static uint64_t range_read(const struct bus_range *range, uint64_t address, unsigned size)
{
    uint64_t offset = address - range->base;
    unsigned min = range->ops->min_bytes;
    uint64_t unit = offset & ~(uint64_t)(min - 1);

    if (size >= min) {
        return range->ops->read(range->opaque, offset, size) & mask_of(size);
    }
    if (min - 1 > range->last - range->base - unit) {
        return mask_of(size);
    }
    return (range->ops->read(range->opaque, unit, min) >> ((offset - unit) * 8)) & mask_of(size);
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes)
{
    uint64_t value = 0;
    unsigned done = 0;

    while (done < size_bytes) {
        struct bus_range *range = range_get(bus, space, address + done);
        unsigned size = 1;
        uint64_t piece = 0xff;

        if (range != NULL) {
            size = piece_size(range, address + done, size_bytes - done);
            piece = range_read(range, address + done, size);
            range_put(bus, range);
        }
        value |= piece << (done * 8);
        done += size;
    }
    return value;
}

/* The index of the first doorbell at or after address. */
static unsigned doorbell_lower_bound(const struct bus_table *table, uint64_t address)
{
    unsigned low = 0;
    unsigned high = table->doorbell_count;

    while (low < high) {
        unsigned mid = low + (high - low) / 2;

        if (table->doorbells[mid].address < address) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

/* True when the write rang at least one doorbell and is thereby done. */
static bool doorbell_ring(struct bus *bus, enum bus_space space, uint64_t address,
                          unsigned size_bytes, uint64_t value)
{
    const struct bus_table *table = &bus->spaces[space];
    bool rang = false;

    mutex_lock(&bus->mutex);
    for (unsigned i = doorbell_lower_bound(table, address);
         i < table->doorbell_count && table->doorbells[i].address == address; i++) {
        const struct doorbell *bell = &table->doorbells[i];

        if (bell->size_bytes != 0 && bell->size_bytes != size_bytes) {
            continue;
        }
        if (bell->match && bell->data != (value & mask_of(size_bytes))) {
            continue;
        }
        io_eventfd_signal(bell->fd);
        rang = true;
    }
    mutex_unlock(&bus->mutex);
    return rang;
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes,
               uint64_t value)
{
    unsigned done = 0;

    if (doorbell_ring(bus, space, address, size_bytes, value)) {
        return;
    }
    while (done < size_bytes) {
        struct bus_range *range = range_get(bus, space, address + done);
        unsigned size = 1;

        if (range != NULL) {
            size = piece_size(range, address + done, size_bytes - done);
            if (size >= range->ops->min_bytes) {
                range->ops->write(range->opaque, address + done - range->base, size,
                                  (value >> (done * 8)) & mask_of(size));
            }
            range_put(bus, range);
        }
        done += size;
    }
}

void bus_set_doorbell_hook(struct bus *bus, const struct bus_doorbell_hook *hook)
{
    mutex_lock(&bus->mutex);
    bus->hook = *hook;
    bus->has_hook = hook->set != NULL;
    mutex_unlock(&bus->mutex);
}

int bus_doorbell_add(struct bus *bus, enum bus_space space, uint64_t address, unsigned size_bytes,
                     bool match, uint64_t data, int fd)
{
    struct bus_table *table = &bus->spaces[space];
    struct doorbell bell = {
        .address = address,
        .data = data,
        .fd = fd,
        .size_bytes = (uint8_t)size_bytes,
        .match = match,
    };
    unsigned at = 0;
    int rc = 0;

    if (size_bytes > 8 || (size_bytes & (size_bytes - 1)) != 0 || fd < 0) {
        return -EINVAL;
    }
    mutex_lock(&bus->mutex);
    if (table->doorbell_count == BUS_MAX_DOORBELLS) {
        rc = -ENOSPC;
    } else {
        at = doorbell_lower_bound(table, address);
        memmove(&table->doorbells[at + 1], &table->doorbells[at],
                (table->doorbell_count - at) * sizeof(bell));
        bell.is_hooked = bus->has_hook && bus->hook.set(bus->hook.opaque, space, address,
                                                        size_bytes, match, data, fd, true) == 0;
        table->doorbells[at] = bell;
        table->doorbell_count++;
    }
    mutex_unlock(&bus->mutex);
    return rc;
}

void bus_doorbell_remove(struct bus *bus, enum bus_space space, uint64_t address, int fd)
{
    struct bus_table *table = &bus->spaces[space];

    mutex_lock(&bus->mutex);
    for (unsigned i = doorbell_lower_bound(table, address);
         i < table->doorbell_count && table->doorbells[i].address == address; i++) {
        struct doorbell *bell = &table->doorbells[i];

        if (bell->fd != fd) {
            continue;
        }
        if (bell->is_hooked) {
            (void)bus->hook.set(bus->hook.opaque, space, address, bell->size_bytes, bell->match,
                                bell->data, fd, false); /* nothing can be done about a refusal */
        }
        memmove(bell, bell + 1, (table->doorbell_count - i - 1) * sizeof(*bell));
        table->doorbell_count--;
        break;
    }
    mutex_unlock(&bus->mutex);
}
