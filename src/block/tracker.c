#include "block/tracker.h"

#include <errno.h>
#include <stdatomic.h>

#define WORD_BITS 64u

struct block_tracker {
    uint64_t size_bytes;
    unsigned shift;
    uint64_t bits;
    _Atomic uint64_t marked;
    _Atomic uint64_t words[];
};

int block_tracker_create(uint64_t size_bytes, uint32_t granule_bytes,
                         struct block_tracker **ret_tracker)
{
    unsigned shift = (unsigned)__builtin_ctz(granule_bytes);
    uint64_t bits = (size_bytes + granule_bytes - 1) >> shift;
    struct block_tracker *tracker =
        calloc(1, sizeof(*tracker) + (bits / WORD_BITS + 1) * sizeof(uint64_t));

    if (!tracker) {
        return -ENOMEM;
    }
    tracker->size_bytes = size_bytes;
    tracker->shift = shift;
    tracker->bits = bits;
    *ret_tracker = tracker;
    return 0;
}

void block_tracker_destroy(struct block_tracker *tracker)
{
    free(tracker);
}

void block_tracker_mark(struct block_tracker *tracker, uint64_t offset, uint64_t len)
{
    uint64_t last;

    if (len == 0 || offset >= tracker->size_bytes) {
        return;
    }
    last = (offset + len - 1) >> tracker->shift;
    for (uint64_t bit = offset >> tracker->shift; bit <= last && bit < tracker->bits; bit++) {
        uint64_t mask = 1ull << (bit % WORD_BITS);

        if ((atomic_fetch_or(&tracker->words[bit / WORD_BITS], mask) & mask) == 0) {
            (void)atomic_fetch_add(&tracker->marked, 1);
        }
    }
}

/* Clears a bit; whether it was set. */
static bool take_bit(struct block_tracker *tracker, uint64_t bit)
{
    uint64_t mask = 1ull << (bit % WORD_BITS);

    if ((atomic_fetch_and(&tracker->words[bit / WORD_BITS], ~mask) & mask) == 0) {
        return false;
    }
    (void)atomic_fetch_sub(&tracker->marked, 1);
    return true;
}

/* The first set bit in [from, to), or to. */
static uint64_t find_bit(const struct block_tracker *tracker, uint64_t from, uint64_t to)
{
    while (from < to) {
        uint64_t word = atomic_load(&tracker->words[from / WORD_BITS]) >> (from % WORD_BITS);

        if (word != 0) {
            from += (unsigned)__builtin_ctzll(word);
            return from < to ? from : to;
        }
        from = (from / WORD_BITS + 1) * WORD_BITS;
    }
    return to;
}

bool block_tracker_take(struct block_tracker *tracker, uint64_t *cursor, uint64_t max_bytes,
                        uint64_t *ret_offset, uint64_t *ret_len)
{
    uint64_t start = *cursor >> tracker->shift;
    uint64_t bit;
    uint64_t end;

    if (start >= tracker->bits) {
        start = 0;
    }
    bit = find_bit(tracker, start, tracker->bits);
    if (bit == tracker->bits) {
        bit = find_bit(tracker, 0, start);
        if (bit == start) {
            return false;
        }
    }
    if (!take_bit(tracker, bit)) {
        return false; /* somebody else took it */
    }
    end = bit + 1;
    while (end < tracker->bits && ((end + 1 - bit) << tracker->shift) <= max_bytes &&
           take_bit(tracker, end)) {
        end++;
    }
    *ret_offset = bit << tracker->shift;
    *ret_len = (end << tracker->shift) - *ret_offset;
    if (*ret_len > tracker->size_bytes - *ret_offset) {
        *ret_len = tracker->size_bytes - *ret_offset;
    }
    *cursor = end << tracker->shift;
    return true;
}

uint64_t block_tracker_marked_bytes(const struct block_tracker *tracker)
{
    return atomic_load(&tracker->marked) << tracker->shift;
}
