#include "storage/disk.h"

#include "base/thread.h"
#include "block/block_int.h"
#include "block/nbd.h"
#include "block/qcow2.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES (4u << 20) /* a multiple of the longest cluster */
#define MAX_THREADS 8u
#define RAW_GRAIN_BYTES 4096u /* zeroes of this length become a hole */

int disk_parse_format(const char *path, const char *format, enum block_format *ret_format,
                      struct err *err)
{
    const char *dot = strrchr(path, '.');

    if (format != NULL) {
        return block_format_parse(format, ret_format) < 0
                   ? err_set(err, -EINVAL, "the format is raw or qcow2, not \"%.40s\"", format)
                   : 0;
    }
    if (nbd_is_address(path)) { /* what a server exports is a disk's bytes, unless said otherwise */
        *ret_format = BLOCK_FORMAT_RAW;
        return 0;
    }
    if (dot != NULL && (strcmp(dot, ".raw") == 0 || strcmp(dot, ".img") == 0)) {
        *ret_format = BLOCK_FORMAT_RAW;
        return 0;
    }
    if (dot != NULL && strcmp(dot, ".qcow2") == 0) {
        *ret_format = BLOCK_FORMAT_QCOW2;
        return 0;
    }
    return err_set(err, -EINVAL,
                   "the name of \"%.200s\" does not tell its format; say raw or qcow2", path);
}

int disk_open(const struct disk_ref *ref, struct err *err, struct block_image **ret_image)
{
    struct block_config config = {.path = ref->path, .fd = -1};
    char copy[PATH_MAX];
    int rc = disk_parse_format(ref->path, ref->format, &config.format, err);

    if (rc < 0) {
        return rc;
    }
    if (strlen(ref->path) >= sizeof(copy)) {
        return err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    memcpy(copy, ref->path, strlen(ref->path) + 1);
    config.read_only = ref->read_only;
    config.no_backing = ref->no_backing;
    config.for_repair = ref->for_repair;
    config.may_be_unfinished = ref->any_state || ref->for_repair;
    config.must_be_current = !ref->read_only && !config.may_be_unfinished;
    config.backing_dir = ref->backing_dir != NULL    ? ref->backing_dir
                         : nbd_is_address(ref->path) ? NULL
                                                     : dirname(copy);
    return block_image_open(&config, err, ret_image);
}

static bool is_zero(const unsigned char *data, size_t len)
{
    return len == 0 || (data[0] == 0 && memcmp(data, data + 1, len - 1) == 0);
}

/* Where bytes of the disk lie; never longer than asked for, never empty. */
static int look_up(struct block_image *image, uint64_t offset, uint64_t len,
                   struct block_extent *ret_extent)
{
    int rc = image->ops->lookup(image, offset, len, ret_extent);

    if (rc == 0 && (ret_extent->len == 0 || ret_extent->len > len)) {
        rc = -EIO;
    }
    return rc;
}

static bool reads_as_zero(const struct block_extent *extent)
{
    return extent->kind == BLOCK_EXTENT_ZERO || extent->kind == BLOCK_EXTENT_UNALLOCATED;
}

/* Work in chunks, which threads take one after another. */
struct chunks {
    uint64_t total;
    _Atomic uint64_t next; /* offset of the first chunk that nobody has */
    _Atomic uint64_t done; /* bytes */
    _Atomic int error;     /* the first thread's that failed */
    int (*work)(void *opaque, unsigned char *buf, uint64_t offset, uint64_t len);
    /* How many bytes from there on need no work at all; at least what is known cheaply. */
    uint64_t (*idle)(void *opaque, uint64_t offset);
    void *opaque;
    disk_progress_fn progress;
    void *progress_opaque;
};

/* Nobody needs to take the chunks from `offset` on that lie in a run without work, as thin disks may
 * be longer than there is time to look at each. True when the one of `len` bytes there does, too. */
static bool skip_idle(struct chunks *chunks, uint64_t offset, uint64_t len)
{
    uint64_t run = chunks->idle(chunks->opaque, offset);
    uint64_t end =
        run < chunks->total - offset ? (offset + run) / CHUNK_BYTES * CHUNK_BYTES : chunks->total;
    uint64_t next = atomic_load(&chunks->next);

    while (next < end && !atomic_compare_exchange_weak(&chunks->next, &next, end)) {
    }
    if (next < end) {
        (void)atomic_fetch_add(&chunks->done, end - next);
    }
    return run >= len;
}

static void work_off(struct chunks *chunks, bool tells)
{
    unsigned char *buf = malloc(2 * (size_t)CHUNK_BYTES);
    int rc = buf != NULL ? 0 : -ENOMEM;

    while (rc == 0 && atomic_load(&chunks->error) == 0) {
        uint64_t offset = atomic_fetch_add(&chunks->next, CHUNK_BYTES);
        uint64_t len;

        if (offset >= chunks->total) {
            break;
        }
        len = chunks->total - offset < CHUNK_BYTES ? chunks->total - offset : CHUNK_BYTES;
        if (!skip_idle(chunks, offset, len)) {
            rc = chunks->work(chunks->opaque, buf, offset, len);
        }
        (void)atomic_fetch_add(&chunks->done, len);
        if (tells && chunks->progress != NULL) {
            chunks->progress(chunks->progress_opaque, atomic_load(&chunks->done), chunks->total);
        }
    }
    free(buf);
    if (rc < 0) {
        int none = 0;

        (void)atomic_compare_exchange_strong(&chunks->error, &none, rc);
    }
}

static void *thread_main(void *opaque)
{
    work_off(opaque, false);
    return NULL;
}

/* Runs all chunks on this thread and up to threads - 1 more. 0, or the first error. */
static int run_chunks(struct chunks *chunks, unsigned threads)
{
    pthread_t started[MAX_THREADS];
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = 0;

    if (threads == 0) {
        threads = processors > 1 ? (unsigned)processors : 1;
    }
    threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    while (count + 1 < threads &&
           thread_start(&started[count], "work/copy", thread_main, chunks) == 0) {
        count++; /* fewer threads do it too */
    }
    work_off(chunks, true);
    for (unsigned i = 0; i < count; i++) {
        (void)pthread_join(started[i], NULL); /* the thread is ours and joinable */
    }
    return atomic_load(&chunks->error);
}

struct copy_job {
    const struct disk_copy *copy;
    uint32_t grain; /* what is written or left out as a whole */
};

static int write_grain_run(const struct copy_job *job, const unsigned char *buf, uint64_t len,
                           uint64_t offset)
{
    struct block_image *to = job->copy->to;

    if (!job->copy->compress) {
        return block_image_pwrite(to, buf, len, offset);
    }
    for (uint64_t done = 0; done < len;) {
        uint64_t part = len - done < job->grain ? len - done : job->grain;
        int rc = qcow2_write_compressed(to, buf + done, part, offset + done);

        if (rc < 0) {
            return rc;
        }
        done += part;
    }
    return 0;
}

/* Writes the runs of grains that are not zero; offset is at a grain's begin. */
static int write_nonzero(const struct copy_job *job, const unsigned char *buf, uint64_t len,
                         uint64_t offset)
{
    uint64_t run = 0; /* begin of the grains that are to be written */
    uint64_t at = 0;
    int rc = 0;

    while (rc == 0 && at < len) {
        uint64_t part = len - at < job->grain ? len - at : job->grain;

        if (is_zero(buf + at, part)) {
            rc = at > run ? write_grain_run(job, buf + run, at - run, offset + run) : 0;
            run = at + part;
        }
        at += part;
    }
    return rc == 0 && at > run ? write_grain_run(job, buf + run, at - run, offset + run) : rc;
}

/* Fills buf from the image; what is known to be zero is not read. *ret_any: whether it may not be. */
static int read_chunk(struct block_image *image, unsigned char *buf, uint64_t offset, uint64_t len,
                      bool *ret_any)
{
    bool any = false;

    for (uint64_t done = 0; done < len;) {
        struct block_extent extent;
        int rc = look_up(image, offset + done, len - done, &extent);

        if (rc < 0) {
            return rc;
        }
        if (reads_as_zero(&extent)) {
            memset(buf + done, 0, extent.len);
        } else {
            rc = block_image_pread(image, buf + done, extent.len, offset + done);
            any = true;
        }
        if (rc < 0) {
            return rc;
        }
        done += extent.len;
    }
    *ret_any = any;
    return 0;
}

static int copy_chunk(void *opaque, unsigned char *buf, uint64_t offset, uint64_t len)
{
    const struct copy_job *job = opaque;
    bool any = false;
    int rc = read_chunk(job->copy->from, buf, offset, len, &any);

    if (rc == 0 && any) {
        rc = write_nonzero(job, buf, len, offset);
        block_image_write_back(job->copy->to); /* the disk works beside, not only at the end */
    }
    return rc;
}

/* The bytes that are known to be zero from there on. */
static uint64_t zeroes_from(struct block_image *image, uint64_t offset)
{
    struct block_extent extent;

    if (offset >= image->size_bytes) {
        return UINT64_MAX;
    }
    return look_up(image, offset, image->size_bytes - offset, &extent) == 0 &&
                   reads_as_zero(&extent)
               ? extent.len
               : 0;
}

static uint64_t copy_idle(void *opaque, uint64_t offset)
{
    const struct copy_job *job = opaque;

    return zeroes_from(job->copy->from, offset);
}

int disk_copy(const struct disk_copy *copy, struct err *err)
{
    struct copy_job job = {.copy = copy, .grain = RAW_GRAIN_BYTES};
    struct block_image_info info;
    struct chunks chunks = {
        .total = copy->from->size_bytes,
        .work = copy_chunk,
        .idle = copy_idle,
        .opaque = &job,
        .progress = copy->progress,
        .progress_opaque = copy->opaque,
    };
    int rc = block_image_info(copy->to, &info);

    if (rc == 0 && info.format == BLOCK_FORMAT_QCOW2) {
        job.grain = info.cluster_bytes;
    }
    if (rc == 0) {
        rc = run_chunks(&chunks, copy->threads);
    }
    if (rc == 0) {
        rc = block_image_simple(copy->to, BLOCK_FLUSH, 0, 0, false);
    }
    return rc < 0 ? err_set_errno(err, rc, "the disk cannot be copied") : 0;
}

struct compare_job {
    struct block_image *a, *b;
    _Atomic uint64_t first; /* difference found so far */
};

static void note_difference(struct compare_job *job, const unsigned char *a, const unsigned char *b,
                            uint64_t offset, uint64_t len)
{
    uint64_t at = 0;
    uint64_t known = atomic_load(&job->first);

    while (at < len && a[at] == b[at]) {
        at++;
    }
    while (offset + at < known && !atomic_compare_exchange_weak(&job->first, &known, offset + at)) {
    }
}

/* What lies beyond the end of the shorter disk reads as zero. */
static int read_padded(struct block_image *image, unsigned char *buf, uint64_t offset, uint64_t len)
{
    uint64_t size = image->size_bytes;
    uint64_t inside = offset >= size ? 0 : size - offset < len ? size - offset : len;
    bool any;

    memset(buf + inside, 0, len - inside);
    return inside > 0 ? read_chunk(image, buf, offset, inside, &any) : 0;
}

static int compare_chunk(void *opaque, unsigned char *buf, uint64_t offset, uint64_t len)
{
    struct compare_job *job = opaque;
    unsigned char *other = buf + CHUNK_BYTES;
    int rc;

    if (atomic_load(&job->first) < offset) {
        return 0;
    }
    rc = read_padded(job->a, buf, offset, len);
    rc = rc < 0 ? rc : read_padded(job->b, other, offset, len);
    if (rc == 0 && memcmp(buf, other, len) != 0) {
        note_difference(job, buf, other, offset, len);
    }
    return rc;
}

static uint64_t compare_idle(void *opaque, uint64_t offset)
{
    const struct compare_job *job = opaque;
    uint64_t a = zeroes_from(job->a, offset);
    uint64_t b = a > 0 ? zeroes_from(job->b, offset) : 0;

    return a < b ? a : b;
}

int disk_compare(struct block_image *a, struct block_image *b, disk_progress_fn progress,
                 void *opaque, uint64_t *ret_offset, struct err *err)
{
    struct compare_job job = {.a = a, .b = b, .first = UINT64_MAX};
    struct chunks chunks = {
        .total = a->size_bytes > b->size_bytes ? a->size_bytes : b->size_bytes,
        .work = compare_chunk,
        .idle = compare_idle,
        .opaque = &job,
        .progress = progress,
        .progress_opaque = opaque,
    };
    int rc = run_chunks(&chunks, 0);

    if (rc < 0) {
        return err_set_errno(err, rc, "the disks cannot be read");
    }
    *ret_offset = atomic_load(&job.first);
    return 0;
}

static void describe(const struct block_extent *found, uint64_t start, struct disk_extent *ret)
{
    *ret = (struct disk_extent){
        .start = start,
        .len = found->len,
        .is_data = !reads_as_zero(found),
        .is_compressed = found->kind == BLOCK_EXTENT_COMPRESSED,
        .has_host_offset = found->kind == BLOCK_EXTENT_DATA,
        .host_offset = found->kind == BLOCK_EXTENT_DATA ? found->host_offset : 0,
        .depth = found->depth,
        .is_allocated = found->kind != BLOCK_EXTENT_UNALLOCATED,
    };
}

static bool continues(const struct disk_extent *a, const struct disk_extent *b)
{
    return a->is_data == b->is_data && a->is_compressed == b->is_compressed &&
           a->is_allocated == b->is_allocated && a->depth == b->depth &&
           a->has_host_offset == b->has_host_offset &&
           (!a->has_host_offset || a->host_offset + a->len == b->host_offset);
}

int disk_map(struct block_image *image, int (*fn)(void *opaque, const struct disk_extent *extent),
             void *opaque, struct err *err)
{
    struct disk_extent pending = {.len = 0};
    uint64_t offset = 0;
    int rc = 0;

    while (rc == 0 && offset < image->size_bytes) {
        struct block_extent found;
        struct disk_extent extent;

        rc = look_up(image, offset, image->size_bytes - offset, &found);
        if (rc < 0) {
            return err_set_errno(err, rc, "the image cannot be mapped at %llu",
                                 (unsigned long long)offset);
        }
        describe(&found, offset, &extent);
        if (pending.len > 0 && continues(&pending, &extent)) {
            pending.len += extent.len;
        } else {
            rc = pending.len > 0 ? fn(opaque, &pending) : 0;
            pending = extent;
        }
        offset += found.len;
    }
    return rc == 0 && pending.len > 0 ? fn(opaque, &pending) : rc;
}
