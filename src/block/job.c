#include "block/job.h"

#include "base/log.h"
#include "base/loop.h"
#include "block/block_core.h"
#include "block/file.h"
#include "block/image.h"
#include "block/qcow2.h"
#include "block/successor.h"
#include "block/tracker.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES (512u << 10)
#define GRANULE_BYTES (64u << 10)
/* Less than this is copied while requests wait. */
#define LAST_BYTES (2u << 20)

struct block_job {
    struct block *block;
    struct block_job_config config; /* without its strings */
    char before_path[PATH_MAX];
    char target_path[PATH_MAX];
    struct block_image *target; /* of a mirror or commit, until the switch */
    struct block_tracker *tracker;
    uint8_t *chunk;
    pthread_t thread;
    bool has_thread;

    struct mutex lock; /* LEAF; guards all below */
    pthread_cond_t changed;
    struct block_job_info info;
    struct limit limit;
    bool is_cancelled;
};

const char *block_job_kind_name(enum block_job_kind kind)
{
    static const char *const names[] = {
        [BLOCK_JOB_MIRROR] = "mirror",
        [BLOCK_JOB_STREAM] = "stream",
        [BLOCK_JOB_COMMIT] = "commit",
    };

    return names[kind];
}

const char *block_job_state_name(enum block_job_state state)
{
    static const char *const names[] = {
        [BLOCK_JOB_RUNNING] = "running",     [BLOCK_JOB_PAUSED] = "paused",
        [BLOCK_JOB_DONE] = "done",           [BLOCK_JOB_FAILED] = "failed",
        [BLOCK_JOB_CANCELLED] = "cancelled",
    };

    return names[state];
}

/* ---- holds ---- */

static uint64_t hold(struct block_job *job)
{
    uint64_t start = clock_monotonic_ns();

    block_hold(job->block);
    return start;
}

static void release(struct block_job *job, uint64_t start)
{
    uint64_t ns;

    block_release(job->block);
    ns = clock_monotonic_ns() - start;
    mutex_lock(&job->lock);
    if (ns > job->info.longest_hold_ns) {
        job->info.longest_hold_ns = ns;
    }
    mutex_unlock(&job->lock);
}

/* ---- progress ---- */

/* Waits while the job is paused, or too fast by len bytes. -ECANCELED. */
static int may_go_on(struct block_job *job, uint64_t len)
{
    uint64_t when = 1;
    int r = 0;

    mutex_lock(&job->lock);
    while (r == 0 && when != 0) {
        if (job->is_cancelled) {
            r = -ECANCELED;
        } else if (job->info.state == BLOCK_JOB_PAUSED) {
            (void)pthread_cond_wait(&job->changed, &job->lock.raw); /* cannot fail */
        } else {
            when = limit_take(&job->limit, len, clock_monotonic_ns());
            if (when != 0) {
                const struct timespec until = {.tv_sec = (time_t)(when / 1000000000),
                                               .tv_nsec = (long)(when % 1000000000)};

                (void)pthread_cond_timedwait(&job->changed, &job->lock.raw, &until);
            }
        }
    }
    mutex_unlock(&job->lock);
    return r;
}

static void add_progress(struct block_job *job, uint64_t done, uint64_t total)
{
    mutex_lock(&job->lock);
    job->info.done_bytes += done;
    job->info.total_bytes += total;
    mutex_unlock(&job->lock);
}

/* ---- mirror ---- */

static int copy_run(struct block_job *job, uint64_t offset, uint64_t len)
{
    struct block_image *source = job->block->image;
    int r = block_image_pread(source, job->chunk, len, offset);

    if (r == 0) {
        r = block_image_pwrite(job->target, job->chunk, len, offset);
    }
    return r;
}

/* Whether the target, a new file or the image below, lacks this. */
static bool is_wanted(const struct block_job *job, const struct block_extent *extent)
{
    if (job->config.kind == BLOCK_JOB_COMMIT) {
        return extent->depth == 0 && extent->kind != BLOCK_EXTENT_UNALLOCATED;
    }
    return extent->kind != BLOCK_EXTENT_ZERO && extent->kind != BLOCK_EXTENT_UNALLOCATED;
}

/* Marks what the target does not have. */
static int mark_contents(struct block_job *job)
{
    struct block_image *image = job->block->image;
    uint64_t size = block_size_bytes(job->block);
    struct block_extent extent;
    int r = 0;

    for (uint64_t at = 0; at < size && r == 0; at += extent.len) {
        extent = (struct block_extent){.kind = BLOCK_EXTENT_DATA, .len = size - at};
        if (image->ops->lookup) {
            r = image->ops->lookup(image, at, size - at, &extent);
        }
        if (r == 0 && extent.len == 0) {
            r = -EIO;
        }
        if (r == 0 && is_wanted(job, &extent)) {
            block_tracker_mark(job->tracker, at, extent.len);
        }
        if (r == 0) {
            r = may_go_on(job, 0);
        }
    }
    return r;
}

/* Copies what is marked until nothing is, or, with a limit of bytes, until fewer are. */
static int copy_marked(struct block_job *job, uint64_t enough, bool is_limited)
{
    uint64_t cursor = 0;
    uint64_t offset = 0;
    uint64_t len = 0;
    int r = 0;

    while (r == 0 && block_tracker_marked_bytes(job->tracker) > enough &&
           block_tracker_take(job->tracker, &cursor, CHUNK_BYTES, &offset, &len)) {
        r = is_limited ? may_go_on(job, len) : 0;
        if (r == 0) {
            r = copy_run(job, offset, len);
        }
        add_progress(job, len, 0);
        mutex_lock(&job->lock);
        job->info.total_bytes = job->info.done_bytes + block_tracker_marked_bytes(job->tracker);
        mutex_unlock(&job->lock);
    }
    return r;
}

/* From here on a start of the machine with the file before is refused. */
static int note_switch(struct block_job *job)
{
    int r = successor_set(job->block->image->file, job->target->file, job->target->format);

    mutex_lock(&job->lock);
    job->info.is_noted = r == 0;
    mutex_unlock(&job->lock);
    return r == -EOPNOTSUPP ? 0 : r;
}

/* Everything but what is being written has been copied: the rest, and the switch. */
static int switch_over(struct block_job *job)
{
    uint64_t start = hold(job);
    struct block_image *before = NULL;
    int r = copy_marked(job, 0, false);

    if (r == 0) {
        r = block_image_simple(job->target, BLOCK_FLUSH, 0, 0, false);
    }
    if (r == 0 && job->target->size_bytes != job->block->image->size_bytes) {
        r = -ESTALE; /* resized meanwhile */
    }
    if (r == 0) {
        r = note_switch(job);
    }
    job->block->tracker = NULL;
    if (r == 0) {
        before = block_exchange(job->block, job->target);
        if (before->backing == job->target) {
            before->backing = NULL; /* it is the disk now */
        }
        job->target = NULL;
    }
    release(job, start);
    block_image_close(before);
    return r;
}

static int mirror(struct block_job *job)
{
    uint64_t start = hold(job);
    int r;

    job->block->tracker = job->tracker;
    release(job, start);
    r = mark_contents(job);
    /* A flush of much takes long: it is done before requests have to wait for one of little. */
    for (unsigned round = 0; round < 3 && r == 0; round++) {
        r = copy_marked(job, LAST_BYTES, true);
        if (r == 0) {
            r = block_image_simple(job->target, BLOCK_FLUSH, 0, 0, false);
        }
    }
    if (r == 0) {
        r = may_go_on(job, 0);
    }
    if (r == 0) {
        return switch_over(job);
    }
    start = hold(job);
    job->block->tracker = NULL;
    release(job, start);
    return r;
}

/* ---- stream ---- */

static bool is_below(const struct block_extent *extent)
{
    return extent->depth > 0 && extent->kind != BLOCK_EXTENT_ZERO &&
           extent->kind != BLOCK_EXTENT_UNALLOCATED;
}

/* The chunk was read before: what the image still has from below is written to itself. */
static int stream_write(struct block_job *job, uint64_t offset, uint64_t len)
{
    struct block_image *image = job->block->image;
    struct block_extent extent = {0};
    uint64_t start = hold(job);
    int r = 0;

    for (uint64_t at = 0; at < len && r == 0; at += extent.len) {
        r = image->ops->lookup(image, offset + at, len - at, &extent);
        if (r == 0 && extent.len == 0) {
            r = -EIO;
        }
        if (r == 0 && is_below(&extent)) {
            r = block_image_pwrite(image, job->chunk + at, extent.len, offset + at);
        }
    }
    release(job, start);
    return r;
}

static int drop_backing(struct block_job *job)
{
    struct block_image *image = job->block->image;
    struct block_image *backing = NULL;
    uint64_t start;
    int r = block_image_simple(image, BLOCK_FLUSH, 0, 0, false);

    if (r < 0) {
        return r;
    }
    start = hold(job);
    r = block_image_simple(image, BLOCK_FLUSH, 0, 0, false);
    if (r == 0) {
        r = qcow2_set_backing(image, NULL, BLOCK_FORMAT_RAW, &job->info.error);
    }
    if (r == 0) {
        backing = image->backing;
        image->backing = NULL;
    }
    release(job, start);
    block_image_close(backing);
    return r;
}

static int stream(struct block_job *job)
{
    struct block_image *image = job->block->image;
    uint64_t size = block_size_bytes(job->block);
    struct block_extent extent = {0};
    int r = 0;

    add_progress(job, 0, size);
    for (uint64_t at = 0; at < size && r == 0; at += extent.len) {
        uint64_t len = size - at < CHUNK_BYTES ? size - at : CHUNK_BYTES;

        r = image->ops->lookup(image, at, len, &extent);
        if (r == 0 && extent.len == 0) {
            r = -EIO;
        }
        if (r == 0) {
            r = may_go_on(job, is_below(&extent) ? extent.len : 0);
        }
        if (r == 0 && is_below(&extent)) {
            r = block_image_pread(image, job->chunk, extent.len, at);
            r = r == 0 ? stream_write(job, at, extent.len) : r;
        }
        add_progress(job, extent.len, 0);
    }
    return r == 0 ? drop_backing(job) : r;
}

/* ---- life ---- */

/* As it was before; what is left half done shows as such. */
static int empty_target(const struct block_image *source, struct block_image *target)
{
    int r = successor_begin(source->file, target->file);

    if (r == 0 || r == -EOPNOTSUPP) {
        r = block_image_simple(target, BLOCK_WRITE_ZEROES, 0, target->size_bytes, true);
    }
    if (r == 0) {
        r = block_image_simple(target, BLOCK_FLUSH, 0, 0, false);
    }
    return r == 0 ? successor_end(target->file) : r;
}

/* Half a copy is of no use; half a commit changes nothing that shows. */
static void drop_target(struct block_job *job)
{
    struct block_image *target = job->target;

    job->target = NULL;
    if (!target || job->config.kind != BLOCK_JOB_MIRROR) {
        return;
    }
    if (job->config.into_existing) {
        (void)!empty_target(job->block->image,
                            target); /* if the host lets us; if not, it is marked */
    } else {
        (void)unlink(job->target_path);
    }
    block_image_close(target);
}

static void *job_main(void *opaque)
{
    struct block_job *job = opaque;
    int r = job->config.kind == BLOCK_JOB_STREAM ? stream(job) : mirror(job);

    drop_target(job);
    mutex_lock(&job->lock);
    if (r < 0 && r != -ECANCELED && job->info.error.code == 0) {
        (void)err_set_errno(&job->info.error, r, "the %s failed",
                            block_job_kind_name(job->config.kind));
    }
    job->info.state = r == 0            ? BLOCK_JOB_DONE
                      : r == -ECANCELED ? BLOCK_JOB_CANCELLED
                                        : BLOCK_JOB_FAILED;
    mutex_unlock(&job->lock);
    if (r == 0 && job->config.kind != BLOCK_JOB_STREAM) {
        successor_log(job->before_path, job->target_path, job->info.is_noted);
    }
    if (job->config.ended) {
        job->config.ended(job->config.opaque);
    }
    return NULL;
}

/* Only then need nothing be written where the source has zeroes. */
static int check_empty(struct block_job *job, struct err *err)
{
    struct block_image *image = job->target;
    struct block_extent extent;
    int r = 0;

    if (image->size_bytes != block_size_bytes(job->block)) {
        return err_set(err, -EINVAL, "the mirror's target has %llu bytes; make one of %llu",
                       (unsigned long long)image->size_bytes,
                       (unsigned long long)block_size_bytes(job->block));
    }
    for (uint64_t at = 0; at < image->size_bytes && r == 0; at += extent.len) {
        uint64_t left = image->size_bytes - at;

        extent = (struct block_extent){.kind = BLOCK_EXTENT_DATA, .len = left};
        if (image->ops->lookup) {
            r = image->ops->lookup(image, at, left, &extent);
        }
        r = r == 0 && extent.len == 0 ? -EIO : r;
        if (r == 0 && extent.kind != BLOCK_EXTENT_ZERO && extent.kind != BLOCK_EXTENT_UNALLOCATED) {
            extent.len = extent.len < CHUNK_BYTES ? extent.len : CHUNK_BYTES;
            r = block_image_pread(image, job->chunk, extent.len, at);
            for (uint64_t i = 0; r == 0 && i < extent.len; i++) {
                r = job->chunk[i] == 0 ? 0 : -EEXIST;
            }
        }
    }
    return r < 0 ? err_set_errno(err, r, "the mirror's target has to read as zero everywhere") : 0;
}

/* From here on nobody takes the target for a disk. */
static int mark_target(struct block_job *job, struct err *err)
{
    const struct block_file *target = job->target->file;
    int r = successor_begin(job->block->image->file, target);

    if (r == -EOPNOTSUPP) {
        log_warn("'%s' cannot be marked as unfinished, because its file system keeps no such "
                 "marks; ignoring that, but do not use it before the mirror is done",
                 job->target_path);
        r = 0;
    }
    if (r == 0) {
        r = successor_prepare(target);
    }
    return r < 0 ? err_set_errno(err, r, "cannot make '%s' durable", job->target_path) : 0;
}

static int open_target(struct block_job *job, struct err *err)
{
    const struct block_config config = {
        .format = job->config.target_format,
        .path = job->target_path,
        .fd = -1,
        .direct = job->config.target_direct,
        .may_be_unfinished = true,
    };
    int r = block_image_open(&config, err, &job->target);

    if (r < 0 || !job->config.into_existing) {
        return r;
    }
    if (job->target->file->fd >= 0 && successor_is_unfinished(job->target->file->fd)) {
        r = empty_target(job->block->image, job->target); /* of what an earlier one left */
        r = r < 0 ? err_set_errno(err, r, "cannot empty '%s'", job->target_path) : 0;
    }
    return r < 0 ? r : check_empty(job, err);
}

static int make_target(struct block_job *job, struct err *err)
{
    const struct block_create_options options = {
        .format = job->config.target_format,
        .path = job->target_path,
        .size_bytes = block_size_bytes(job->block),
        .is_unfinished = true,
    };
    bool is_new = !job->config.into_existing;
    int r = is_new ? block_image_create(&options, err) : 0;

    if (r < 0) {
        return r;
    }
    r = open_target(job, err);
    if (r == 0) {
        r = mark_target(job, err);
    }
    if (r < 0) {
        block_image_close(job->target);
        job->target = NULL;
    }
    if (r < 0 && is_new) {
        (void)unlink(job->target_path);
    }
    return r;
}

static int take_backing(struct block_job *job, struct err *err)
{
    uint64_t size = block_size_bytes(job->block);
    struct block_image *backing;

    if (job->block->image->backing->is_read_only) {
        int r = block_reopen_backing(job->block, err);

        if (r < 0) {
            return r;
        }
    }
    backing = job->block->image->backing;
    if (backing->size_bytes < size) {
        int r = backing->ops->resize ? backing->ops->resize(backing, size, err) : -ENOTSUP;

        if (r < 0) {
            return err_set_errno(err, r, "the backing image is smaller, and does not grow");
        }
    }
    job->target = backing;
    (void)!block_file_path(backing->file, job->target_path,
                           sizeof(job->target_path)); /* for logs */
    return 0;
}

static int job_init(struct block_job *job, struct err *err)
{
    const struct block_job_config *config = &job->config;
    struct block *block = job->block;

    if (config->kind != BLOCK_JOB_MIRROR &&
        (!block->image->backing || block->image->format != BLOCK_FORMAT_QCOW2)) {
        return err_set(err, -EINVAL, "this disk has no backing image");
    }
    if (block_is_read_only(block)) {
        return err_set(err, -EROFS, "this disk is read-only");
    }
    (void)!block_file_path(block->image->file, job->before_path, sizeof(job->before_path));
    job->chunk = aligned_alloc(4096, CHUNK_BYTES);
    if (!job->chunk ||
        block_tracker_create(block_size_bytes(block), GRANULE_BYTES, &job->tracker) != 0) {
        return err_set(err, -ENOMEM, "no memory for a job");
    }
    if (config->kind == BLOCK_JOB_COMMIT) {
        return take_backing(job, err);
    }
    return config->kind == BLOCK_JOB_MIRROR ? make_target(job, err) : 0;
}

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    (void)pthread_condattr_init(&attr); /* none of these can fail on Linux */
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &attr);
    (void)pthread_condattr_destroy(&attr);
}

int block_job_start(struct block *block, const struct block_job_config *config, struct err *err,
                    struct block_job **ret_job)
{
    struct block_job *job = calloc(1, sizeof(*job));
    int r;

    if (!job) {
        return err_set(err, -ENOMEM, "no memory for a job");
    }
    job->block = block;
    job->config = *config;
    job->info.kind = config->kind;
    (void)snprintf(job->target_path, sizeof(job->target_path), "%s",
                   config->target ? config->target : "");
    mutex_init(&job->lock, LOCK_RANK_LEAF);
    cond_init(&job->changed);
    block_job_set_speed(job, config->bytes_per_second);
    r = job_init(job, err);
    if (r == 0) {
        job->has_thread = true;
        r = thread_start(&job->thread, "job", job_main, job);
        if (r < 0) {
            job->has_thread = false;
            (void)err_set_errno(err, r, "cannot start the job's thread");
        }
    }
    if (r < 0) {
        block_job_destroy(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

void block_job_destroy(struct block_job *job)
{
    if (!job) {
        return;
    }
    if (job->has_thread) {
        block_job_cancel(job);
        (void)pthread_join(job->thread, NULL); /* ours and joinable */
    }
    drop_target(job); /* its thread never ran */
    block_tracker_destroy(job->tracker);
    (void)pthread_cond_destroy(&job->changed);
    mutex_done(&job->lock);
    free(job->chunk);
    free(job);
}

void block_job_info(struct block_job *job, struct block_job_info *ret_info)
{
    mutex_lock(&job->lock);
    *ret_info = job->info;
    mutex_unlock(&job->lock);
}

void block_job_pause(struct block_job *job, bool is_paused)
{
    mutex_lock(&job->lock);
    if (job->info.state <= BLOCK_JOB_PAUSED) {
        job->info.state = is_paused ? BLOCK_JOB_PAUSED : BLOCK_JOB_RUNNING;
    }
    (void)pthread_cond_broadcast(&job->changed); /* cannot fail */
    mutex_unlock(&job->lock);
}

void block_job_cancel(struct block_job *job)
{
    mutex_lock(&job->lock);
    job->is_cancelled = true;
    (void)pthread_cond_broadcast(&job->changed); /* cannot fail */
    mutex_unlock(&job->lock);
}

void block_job_set_speed(struct block_job *job, uint64_t bytes_per_second)
{
    const struct limit_config config = {
        .bytes_per_second = bytes_per_second < LIMIT_MAX_RATE ? bytes_per_second : 0};

    int r;

    mutex_lock(&job->lock);
    r = limit_set(&job->limit, &config, clock_monotonic_ns());
    assert(r == 0); /* in bounds */
    (void)r;
    job->info.bytes_per_second = config.bytes_per_second;
    (void)pthread_cond_broadcast(&job->changed); /* cannot fail */
    mutex_unlock(&job->lock);
}
