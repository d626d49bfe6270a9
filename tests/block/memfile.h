/*
 * A file in memory below an image: it logs what is done to it, so that a test
 * can tell what a power cut would have left, and fails when told to.
 */
#ifndef CORBEL_TESTS_BLOCK_MEMFILE_H
#define CORBEL_TESTS_BLOCK_MEMFILE_H

#include "block/file.h"

enum log_kind { LOG_WRITE, LOG_ZERO, LOG_TRUNCATE, LOG_FLUSH };

struct log_entry {
    enum log_kind kind;
    uint64_t offset, len; /* LOG_TRUNCATE: offset is the size */
    uint8_t *data;
};

struct memfile {
    struct block_file file;
    uint8_t *data;
    uint64_t size, capacity;
    struct log_entry *log;
    size_t log_count, log_capacity;
    bool is_logging;
    bool ignores_flush; /* a disk that lies: nothing in the log is ever certain */

    uint64_t calls;   /* that could fail, so far */
    uint64_t fail_at; /* the number of the first that does; 0: none */
    bool fails_once;
    bool fails_short; /* a write gets half of its bytes done first */
    bool fails_reads; /* reads count too */
    int failure;      /* negative errno */
};

/* The caller keeps it, also when an image has closed it; memfile_done() frees it. */
void memfile_init(struct memfile *memfile);
void memfile_done(struct memfile *memfile);
void memfile_set(struct memfile *memfile, const uint8_t *data, uint64_t size);

/* A log entry done to bytes. */
void memfile_apply(struct memfile *memfile, const struct log_entry *entry, uint64_t begin,
                   uint64_t end);

#endif
