/*
 * Requests to a disk as its devices make them: on the thread of one of its
 * lanes, through its I/O engine; but the caller waits for the result. Any
 * thread but a lane's, while the disk is started.
 */
#ifndef CORBEL_TESTS_BLOCK_LANES_H
#define CORBEL_TESTS_BLOCK_LANES_H

#include "block/block.h"

/* 0 or a negative errno; buf is for reads and writes. */
int lane_request(struct block *block, unsigned lane, enum block_op op, void *buf, uint64_t len,
                 uint64_t offset, bool may_unmap);

#endif
