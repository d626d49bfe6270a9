/*
 * Which parts of a disk were written while a job copies it.
 *
 * A bit stands for a granule of bytes. Lanes mark when a write is over; the
 * job takes marks, and copies what they name. Any thread.
 */
#ifndef CORBEL_BLOCK_TRACKER_H
#define CORBEL_BLOCK_TRACKER_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

struct block_tracker;

/* granule: a power of two. -ENOMEM. */
int block_tracker_create(uint64_t size_bytes, uint32_t granule_bytes,
                         struct block_tracker **ret_tracker) MUST_CHECK;
void block_tracker_destroy(struct block_tracker *tracker); /* accepts NULL */

void block_tracker_mark(struct block_tracker *tracker, uint64_t offset, uint64_t len);

/* Takes the next run of marks, of at most max_bytes, looking from *cursor on and round. False when
 * there is none. The run ends at the disk's end at the latest. */
bool block_tracker_take(struct block_tracker *tracker, uint64_t *cursor, uint64_t max_bytes,
                        uint64_t *ret_offset, uint64_t *ret_len);

/* About how many bytes are marked. */
uint64_t block_tracker_marked_bytes(const struct block_tracker *tracker);

#endif
