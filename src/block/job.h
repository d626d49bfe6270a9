/*
 * Work on the image of a disk in use: mirror it elsewhere, make it stand
 * alone, or put it into the image below it.
 *
 * A job has a thread of its own ("job"), copies in chunks, and holds the
 * disk's requests only for moments: for each chunk of a stream, and to switch
 * over at a mirror's end. It can be paused, limited and cancelled; whenever it
 * or the host ends, the images named before it began are whole. A disk has at
 * most one job at a time, which its owner destroys before the disk stops.
 *
 * Functions are for one thread unless they say otherwise.
 */
#ifndef CORBEL_BLOCK_JOB_H
#define CORBEL_BLOCK_JOB_H

#include "base/compiler.h"
#include "block/block.h"

struct block_job;

enum block_job_kind {
    BLOCK_JOB_MIRROR, /* copy to a new file, keep up with writes, then go on with that one */
    BLOCK_JOB_STREAM, /* copy from the backing images what they hold, then do without them */
    BLOCK_JOB_COMMIT  /* copy into the backing image, then go on with that one */
};

enum block_job_state {
    BLOCK_JOB_RUNNING,
    BLOCK_JOB_PAUSED,
    BLOCK_JOB_DONE,
    BLOCK_JOB_CANCELLED,
    BLOCK_JOB_FAILED
};

struct block_job_config {
    enum block_job_kind kind;
    const char *target; /* of a mirror: a file that is made, and does not exist yet */
    bool into_existing; /* no: it is there, as long as the disk, and reads as zero everywhere */
    enum block_format target_format;
    bool target_direct;
    uint64_t bytes_per_second; /* 0: as fast as it goes */
    /* It has ended, in whichever way; on its thread. Optional. */
    void (*ended)(void *opaque);
    void *opaque;
};

struct block_job_info {
    enum block_job_kind kind;
    enum block_job_state state;
    uint64_t done_bytes, total_bytes; /* of work; the total grows with what is written meanwhile */
    uint64_t bytes_per_second;        /* the limit now; 0: none */
    uint64_t longest_hold_ns;         /* how long requests waited at most */
    bool is_noted;                    /* in the file before, that the disk went on in another */
    struct err error;                 /* when it failed */
};

const char *block_job_kind_name(enum block_job_kind kind);
const char *block_job_state_name(enum block_job_state state);

/* -EEXIST when the target is there or holds something, -EINVAL for one of another length, or for a
 * stream or commit without backing images, -EROFS, for a commit -EBUSY while another process uses
 * the backing image and -EACCES when it may not be written, -ENOMEM. */
int block_job_start(struct block *block, const struct block_job_config *config, struct err *err,
                    struct block_job **ret_job) MUST_CHECK;
/* Cancels it if it runs, waits for its end, frees. Accepts NULL. */
void block_job_destroy(struct block_job *job);

/* Any thread. */
void block_job_info(struct block_job *job, struct block_job_info *ret_info);
void block_job_pause(struct block_job *job, bool is_paused);
/* It ends soon, unless it has ended before; a mirror's target is removed, or zero again. */
void block_job_cancel(struct block_job *job);
/* 0: no limit. */
void block_job_set_speed(struct block_job *job, uint64_t bytes_per_second);

struct block_snapshot_result {
    uint64_t hold_ns; /* how long requests waited */
    bool is_noted;    /* in the file before, that the disk went on in another */
};

/*
 * Makes a new qcow2 file over the disk's image, which stays as it is from now
 * on, and goes on with that. backing_name is written into it. No job runs.
 * -EEXIST, -EROFS for a read-only disk.
 */
int block_snapshot(struct block *block, const char *path, const char *backing_name, bool direct,
                   struct err *err, struct block_snapshot_result *ret_result) MUST_CHECK;

#endif
