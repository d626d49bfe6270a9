/*
 * What each sector of a disk may hold: a version and its own number, so that
 * old, foreign and torn contents are all told apart.
 */
#ifndef CORBEL_TESTS_BLOCK_SECTORS_H
#define CORBEL_TESTS_BLOCK_SECTORS_H

#include "base/wire.h"

#include <string.h>

#define SECTOR 512u
#define MAX_ALLOWED 24u

/* What a sector may hold: versions; 0 is zeroes. The last is what reads give now. */
struct sector {
    uint32_t allowed[MAX_ALLOWED];
    unsigned count;
};

static inline void fill_sector(uint8_t *sector, uint64_t lba, uint32_t version)
{
    for (unsigned i = 0; i < SECTOR; i += 8) {
        store_le32(sector + i, version == 0 ? 0 : version);
        store_le32(sector + i + 4, version == 0 ? 0 : (uint32_t)lba + 1);
    }
}

static inline bool is_allowed(const struct sector *s, uint64_t lba, const uint8_t *data)
{
    uint8_t want[SECTOR];

    for (unsigned i = 0; i < s->count; i++) {
        fill_sector(want, lba, s->allowed[i]);
        if (memcmp(want, data, SECTOR) == 0) {
            return true;
        }
    }
    return false;
}

static inline void allow(struct sector *s, uint32_t version)
{
    if (s->count == MAX_ALLOWED) { /* the oldest but the promised one goes; rare */
        memmove(&s->allowed[1], &s->allowed[2], (MAX_ALLOWED - 2) * sizeof(s->allowed[0]));
        s->count--;
    }
    s->allowed[s->count++] = version;
}

#endif
