/*
 * The process that has a disk in use is killed, in the middle of a live
 * operation or around it: snapshots, a stream, a commit, a mirror, a growing
 * disk. Writers write, discard, flush and read back meanwhile. Then whoever
 * starts with the file that the disk began with, and goes on where its mark
 * says so, has to find every flushed write; the images have to pass the check,
 * and qemu-img has to read the same.
 *
 * usage: kill [--kills N] [--seed N] [--only OPERATION]
 */
#include "lanes.h"
#include "scratch.h"
#include "sectors.h"

#include "base/wire.h"
#include "block/block_int.h"
#include "block/image.h"
#include "block/job.h"
#include "block/successor.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ull << 20)
#define DISK_BYTES (6 * MIB)
#define GROWN_BYTES (12 * MIB)
#define MAX_SECTORS (GROWN_BYTES / SECTOR)
#define WRITERS 3u
#define CHUNK 64u /* sectors of one writer */
#define WRITES_PER_FLUSH 12u
#define MAX_SNAPSHOTS 6u

enum operation { SNAPSHOT, STREAM, COMMIT, MIRROR, RESIZE, OPERATIONS };

static const char *const names[OPERATIONS] = {"snapshot", "stream", "commit", "mirror", "resize"};

enum phase { BEFORE, DURING, AFTER, PHASES };

/* What outlives the process that is killed. */
struct shared {
    _Atomic uint64_t writes; /* progress, to choose a moment by */
    atomic_uint phase;
    _Atomic uint64_t size, next_size; /* the disk's, and what it is becoming */
    struct sector model[MAX_SECTORS];
};

static struct {
    struct shared *shared;
    struct rng rng;
    enum operation operation;
    enum block_format format;     /* of the first file */
    enum block_format low_format; /* of the one below, where there is one */
    char first[512];
    struct block *block; /* the child's */
    unsigned half_copies;
} t;

/* What is waited for has no descriptor: it is looked at again and again, others may run meanwhile. */
static void breathe(void)
{
    const struct timespec pause = {.tv_nsec = 50000};

    (void)nanosleep(&pause, NULL);
}

/* ---- the child: writers ---- */

struct writer {
    struct rng rng;
    unsigned index; /* its chunks are those whose number is this, modulo WRITERS */
    uint32_t version;
    unsigned unflushed;
    uint8_t buf[CHUNK * SECTOR];
};

static void must(int r, const char *what, const struct err *err)
{
    if (r < 0) {
        fail("%s: %s", what, err != NULL && err->code != 0 ? err->text : strerror(-r));
    }
}

static int request(struct writer *w, enum block_op op, uint64_t first, uint64_t count)
{
    bool is_flush = op == BLOCK_FLUSH;

    return lane_request(t.block, w->index % 2, op, w->buf, is_flush ? 0 : count * SECTOR,
                        is_flush ? 0 : first * SECTOR, rng_below(&w->rng, 2));
}

/* Each sector may hold what was promised last or came later: before the request is made. */
static void allow_all(uint64_t first, uint64_t count, uint32_t version)
{
    for (uint64_t i = first; i < first + count; i++) {
        allow(&t.shared->model[i], version);
    }
    atomic_thread_fence(memory_order_seq_cst);
}

static void flush(struct writer *w)
{
    must(request(w, BLOCK_FLUSH, 0, 0), "flush", NULL);
    for (uint64_t i = 0; i < MAX_SECTORS; i++) {
        struct sector *s = &t.shared->model[i];

        if (i / CHUNK % WRITERS != w->index) {
            continue;
        }
        s->allowed[0] = s->allowed[s->count - 1];
        atomic_thread_fence(memory_order_seq_cst); /* a kill comes between any two */
        s->count = 1;
    }
    w->unflushed = 0;
}

static void expect_now(struct writer *w, uint64_t first, uint64_t count)
{
    uint8_t want[SECTOR];

    must(request(w, BLOCK_READ, first, count), "read", NULL);
    for (uint64_t i = 0; i < count; i++) {
        const struct sector *s = &t.shared->model[first + i];

        fill_sector(want, first + i, s->allowed[s->count - 1]);
        if (memcmp(want, w->buf + i * SECTOR, SECTOR) != 0) {
            fail("sector %llu reads as version %u, not %u", (unsigned long long)(first + i),
                 load_le32(w->buf + i * SECTOR), s->allowed[s->count - 1]);
        }
    }
}

/* What a discard leaves is known when it has been read. */
static void discard(struct writer *w, uint64_t first, uint64_t count)
{
    uint32_t before[CHUNK];

    for (uint64_t i = 0; i < count; i++) {
        const struct sector *s = &t.shared->model[first + i];

        before[i] = s->allowed[s->count - 1];
    }
    allow_all(first, count, 0);
    must(request(w, BLOCK_DISCARD, first, count), "discard", NULL);
    must(request(w, BLOCK_READ, first, count), "read", NULL);
    for (uint64_t i = 0; i < count; i++) {
        if (load_le32(w->buf + i * SECTOR) != 0) {
            allow(&t.shared->model[first + i], before[i]);
        }
    }
    expect_now(w, first, count);
}

static void one_request(struct writer *w)
{
    uint64_t chunks = atomic_load(&t.shared->size) / SECTOR / CHUNK / WRITERS;
    uint64_t chunk = rng_below(&w->rng, chunks) * WRITERS + w->index;
    uint64_t in_chunk = rng_below(&w->rng, CHUNK);
    uint64_t first = chunk * CHUNK + in_chunk;
    uint64_t count = 1 + rng_below(&w->rng, rng_below(&w->rng, 4) ? 8 : CHUNK);
    uint64_t op = rng_below(&w->rng, 100);

    count = count < CHUNK - in_chunk ? count : CHUNK - in_chunk;
    if (w->unflushed >= WRITES_PER_FLUSH || op < 8) {
        flush(w);
    } else if (op < 20) {
        expect_now(w, first, count);
    } else if (op < 30) {
        discard(w, first, count);
        w->unflushed += 2; /* versions */
    } else if (op < 45) {
        allow_all(first, count, 0);
        must(request(w, BLOCK_WRITE_ZEROES, first, count), "write zeroes", NULL);
        w->unflushed++;
    } else {
        w->version++;
        for (uint64_t i = 0; i < count; i++) {
            fill_sector(w->buf + i * SECTOR, first + i, w->version);
        }
        allow_all(first, count, w->version);
        must(request(w, BLOCK_WRITE, first, count), "write", NULL);
        w->unflushed++;
    }
    (void)atomic_fetch_add(&t.shared->writes, 1);
}

static void *writer_main(void *opaque)
{
    struct writer *w = opaque;

    for (;;) {
        one_request(w);
    }
    return NULL;
}

static void start_writers(void)
{
    static struct writer writers[WRITERS];
    pthread_t id;

    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].rng.state = rng_next(&t.rng);
        writers[i].index = i;
        writers[i].version = 1000 * (i + 1);
        if (pthread_create(&id, NULL, writer_main, &writers[i]) != 0) {
            fail("cannot start a thread");
        }
    }
}

/* ---- the child: operations ---- */

static void wait_for_writes(uint64_t more)
{
    uint64_t until = atomic_load(&t.shared->writes) + more;

    while (atomic_load(&t.shared->writes) < until) {
        breathe();
    }
}

static const char *numbered(const char *name, unsigned number)
{
    char text[64];

    (void)snprintf(text, sizeof(text), "%s%u", name, number);
    return scratch_path(text);
}

static void take_snapshot(unsigned number)
{
    struct block_snapshot_result result;
    struct err err = {0};
    char below[64];

    (void)snprintf(below, sizeof(below), number == 0 ? "first" : "overlay%u", number - 1);
    must(block_snapshot(t.block, numbered("overlay", number), below, false, &err, &result),
         "snapshot", &err);
    if (!result.is_noted) {
        fail("the file before the snapshot has no mark");
    }
}

static void grow(void)
{
    struct err err = {0};

    for (uint64_t size = DISK_BYTES + MIB; size <= GROWN_BYTES; size += MIB) {
        atomic_store(&t.shared->next_size, size);
        must(block_resize(t.block, size, &err), "resize", &err);
        atomic_store(&t.shared->size, size);
        wait_for_writes(rng_below(&t.rng, 12));
    }
}

static void run_job(enum block_job_kind kind)
{
    const struct block_job_config config = {
        .kind = kind,
        .target = scratch_path("mirror"),
        .target_format = rng_below(&t.rng, 2) ? BLOCK_FORMAT_RAW : BLOCK_FORMAT_QCOW2,
        .bytes_per_second = rng_below(&t.rng, 2) ? 0 : (1 + rng_below(&t.rng, 16)) * MIB,
    };
    struct block_job_info info;
    struct block_job *job = NULL;
    struct err err = {0};

    must(block_job_start(t.block, &config, &err, &job), "job", &err);
    for (unsigned i = 0; i == 0 || info.state == BLOCK_JOB_RUNNING; i++) {
        wait_for_writes(1);
        block_job_info(job, &info);
        if (i == 200) {
            block_job_set_speed(job, 0); /* the writers are faster than the limit */
        }
    }
    if (info.state != BLOCK_JOB_DONE) {
        fail("the job ended: %s", info.error.text);
    }
}

static void operate(void)
{
    switch (t.operation) {
    case SNAPSHOT:
        for (unsigned i = 0; i < MAX_SNAPSHOTS; i++) {
            take_snapshot(i);
            wait_for_writes(rng_below(&t.rng, 12));
        }
        break;
    case STREAM:
        run_job(BLOCK_JOB_STREAM);
        break;
    case COMMIT:
        if (rng_below(&t.rng, 2)) {
            take_snapshot(0);
            wait_for_writes(rng_below(&t.rng, 30));
            run_job(BLOCK_JOB_COMMIT);
        }
        run_job(BLOCK_JOB_COMMIT); /* of what an earlier run left */
        break;
    case MIRROR:
        run_job(BLOCK_JOB_MIRROR);
        break;
    default:
        grow();
    }
}

NORETURN static void child_main(void)
{
    const struct block_config config = {
        .format = t.format,
        .path = t.first,
        .fd = -1,
        .must_be_current = true,
        .backing_dir = scratch_path("."),
        .lanes = 2,
        .aio = rng_below(&t.rng, 2) ? IO_BACKEND_AUTO : IO_BACKEND_THREADS,
    };
    struct err err = {0};

    must(block_create(&config, &err, &t.block), "open", &err);
    must(block_start(t.block, &err), "start", &err);
    start_writers();
    wait_for_writes(rng_below(&t.rng, 40));
    atomic_store(&t.shared->phase, DURING);
    operate();
    atomic_store(&t.shared->phase, AFTER);
    for (;;) {
        (void)pause();
    }
}

/* ---- the images before ---- */

/* Some sectors of a version; those of a chain's upper image may be zeroes over the lower one's. */
static void fill_image(const char *path, enum block_format format, uint32_t version)
{
    const struct block_config config = {
        .format = format, .path = path, .fd = -1, .backing_dir = scratch_path(".")};
    struct block_image *image = NULL;
    struct err err = {0};
    uint8_t buf[CHUNK * SECTOR];

    must(block_image_open(&config, &err, &image), "open", &err);
    for (uint64_t first = 0; first < DISK_BYTES / SECTOR; first += CHUNK) {
        uint64_t kind = rng_below(&t.rng, 4);

        for (uint64_t i = 0; kind < 2 && i < CHUNK; i++) {
            fill_sector(buf + i * SECTOR, first + i, kind == 0 ? version : 0);
            t.shared->model[first + i].allowed[0] = kind == 0 ? version : 0;
        }
        if (kind == 0) {
            must(block_image_pwrite(image, buf, sizeof(buf), first * SECTOR), "write", NULL);
        } else if (kind == 1) {
            must(block_image_simple(image, BLOCK_WRITE_ZEROES, first * SECTOR, sizeof(buf), true),
                 "zeroes", NULL);
        }
    }
    must(block_image_simple(image, BLOCK_FLUSH, 0, 0, false), "flush", NULL);
    block_image_close(image);
}

static void make_image(const char *path, enum block_format format, const char *backing)
{
    const struct block_create_options options = {
        .format = format,
        .path = path,
        .size_bytes = DISK_BYTES,
        .cluster_bytes = format == BLOCK_FORMAT_RAW ? 0 : 4096u << rng_below(&t.rng, 5),
        .backing_path = backing,
        .backing_format = t.low_format,
    };
    struct err err = {0};

    must(block_image_create(&options, &err), "create", &err);
}

static void make_images(void)
{
    bool has_below = t.operation == STREAM || t.operation == COMMIT;

    memset(t.shared, 0, sizeof(*t.shared));
    for (uint64_t i = 0; i < MAX_SECTORS; i++) {
        t.shared->model[i].count = 1;
    }
    atomic_store(&t.shared->size, DISK_BYTES);
    atomic_store(&t.shared->next_size, DISK_BYTES);
    t.low_format = rng_below(&t.rng, 2) ? BLOCK_FORMAT_RAW : BLOCK_FORMAT_QCOW2;
    t.format = has_below ? BLOCK_FORMAT_QCOW2 : t.low_format;
    if (has_below) {
        make_image(scratch_path("below"), t.low_format, NULL);
        fill_image(scratch_path("below"), t.low_format, 1);
    }
    make_image(t.first, t.format, has_below ? "below" : NULL);
    fill_image(t.first, t.format, 2);
}

static void remove_images(void)
{
    (void)unlink(scratch_path("below"));
    (void)unlink(scratch_path("first"));
    (void)unlink(scratch_path("mirror"));
    (void)unlink(scratch_path("content"));
    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++) {
        (void)unlink(numbered("overlay", i));
    }
}

/* ---- after the kill ---- */

/* What io_uring had under way for the dead process keeps its files, and locks, a moment longer. */
static int open_when_free(const struct block_config *config, struct err *err,
                          struct block_image **ret_image)
{
    int r;

    do {
        r = block_image_open(config, err, ret_image);
        if (r == -EBUSY) {
            breathe();
        }
    } while (r == -EBUSY);
    return r;
}

/* Starting with a file that has a mark is refused; the mark says with which to start. */
static unsigned follow_marks(struct successor *disk)
{
    unsigned marks = 0;

    for (;;) {
        const struct block_config config = {
            .format = disk->format,
            .path = disk->path,
            .fd = -1,
            .must_be_current = true,
            .backing_dir = scratch_path("."),
        };
        struct block_image *image = NULL;
        struct err err = {0};
        int fd = open(disk->path, O_RDONLY | O_CLOEXEC);
        int r = open_when_free(&config, &err, &image);
        struct successor next;

        block_image_close(image);
        if (fd < 0) {
            fail("'%s' cannot be opened: %s", disk->path, strerror(errno));
        }
        if (successor_get(fd, &next) == 0) {
            must(r, "start again", &err);
            (void)close(fd);
            return marks;
        }
        (void)close(fd);
        if (r != -ESTALE || strstr(err.text, next.path) == NULL || ++marks > MAX_SNAPSHOTS + 2) {
            fail("a start with '%s' is not refused for '%s': %s", disk->path, next.path, err.text);
        }
        *disk = next;
    }
}

static void compare_content(const uint8_t *content, uint64_t size)
{
    for (uint64_t i = 0; i < size / SECTOR; i++) {
        const struct sector *s = &t.shared->model[i];

        if (!is_allowed(s, i, content + i * SECTOR)) {
            fail("sector %llu holds version %u, and %u was flushed", (unsigned long long)i,
                 load_le32(content + i * SECTOR), s->allowed[0]);
        }
    }
}

static void ask_qemu(const struct successor *disk, const uint8_t *content, uint64_t size)
{
    const char *path = scratch_path("content");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, content, size) != (ssize_t)size) {
        fail("cannot write what was read");
    }
    (void)close(fd);
    if (disk->format == BLOCK_FORMAT_QCOW2) {
        run_command(1u << 0 | 1u << 3, "qemu-img check -q -f qcow2 %s", disk->path);
    }
    run_command(1u << 0, "qemu-img compare -q -f %s -F raw %s %s", block_format_name(disk->format),
                disk->path, path);
}

static void expect_no_corruption(struct block_image *image)
{
    struct block_check_result result = {0};
    struct err err = {0};

    for (; image != NULL; image = image->backing) {
        if (image->format != BLOCK_FORMAT_QCOW2) {
            continue;
        }
        must(block_image_check(image, BLOCK_REPAIR_NONE, NULL, NULL, &result, &err), "check", &err);
        if (result.corruptions + result.errors > 0) {
            fail("the check finds %llu corruptions", (unsigned long long)result.corruptions);
        }
    }
}

/* A copy that the disk did not go on in is told to be none, or it is whole. */
static void judge_copy(const struct successor *disk)
{
    struct block_config config = {
        .path = scratch_path("mirror"), .fd = -1, .read_only = true, .format = BLOCK_FORMAT_RAW};
    int fd = open(config.path, O_RDONLY | O_CLOEXEC);
    struct block_image *image = NULL;
    struct err err = {0};
    uint8_t magic[4];
    bool is_unfinished;
    uint8_t *content;

    if (fd < 0 || strcmp(disk->path, config.path) == 0 ||
        pread(fd, magic, sizeof(magic), 0) != (ssize_t)sizeof(magic)) {
        (void)close(fd); /* gone, in use, or made just now and empty */
        return;
    }
    if (memcmp(magic, "QFI\xfb", sizeof(magic)) == 0) {
        config.format = BLOCK_FORMAT_QCOW2;
    }
    is_unfinished = successor_is_unfinished(fd);
    (void)close(fd);
    if (is_unfinished) {
        if (open_when_free(&config, &err, &image) != -ESTALE) {
            fail("half a copy can be opened");
        }
        t.half_copies++;
        return;
    }
    must(open_when_free(&config, &err, &image), "open the copy", &err);
    content = malloc(image->size_bytes);
    must(block_image_pread(image, content, image->size_bytes, 0), "read the copy", NULL);
    compare_content(content, image->size_bytes);
    free(content);
    block_image_close(image);
}

/* The number of files that the disk has left behind. */
static unsigned judge(bool with_qemu)
{
    struct successor disk = {.format = t.format};
    const struct block_config config = {
        .path = disk.path, .fd = -1, .backing_dir = scratch_path(".")};
    struct block_config ours = config;
    struct block_image *image = NULL;
    struct err err = {0};
    unsigned marks;
    uint8_t *content;
    uint64_t size;

    (void)snprintf(disk.path, sizeof(disk.path), "%s", t.first);
    marks = follow_marks(&disk);
    ours.format = disk.format;
    must(open_when_free(&ours, &err, &image), "open again", &err);
    size = image->size_bytes;
    if (size != atomic_load(&t.shared->size) && size != atomic_load(&t.shared->next_size)) {
        fail("the disk has %llu bytes", (unsigned long long)size);
    }
    content = malloc(size);
    must(block_image_pread(image, content, size, 0), "read again", NULL);
    compare_content(content, size);
    expect_no_corruption(image);
    block_image_close(image);
    if (with_qemu) {
        ask_qemu(&disk, content, size);
    }
    free(content);
    judge_copy(&disk);
    return marks;
}

/* Kills at a moment chosen by what has been done. The phase it came in. */
static enum phase kill_somewhere(pid_t child)
{
    enum phase when = rng_below(&t.rng, 8) == 0   ? BEFORE
                      : rng_below(&t.rng, 4) == 0 ? AFTER
                                                  : DURING;
    uint64_t more = rng_below(&t.rng, when == DURING ? 1 + rng_below(&t.rng, 100) : 12);
    uint64_t until = UINT64_MAX;
    int status;

    while (atomic_load(&t.shared->writes) < until) {
        if (until == UINT64_MAX && atomic_load(&t.shared->phase) >= when) {
            until = atomic_load(&t.shared->writes) + more;
        }
        if (waitpid(child, &status, WNOHANG) == child) {
            fail("the process with the disk ended by itself");
        }
        breathe();
    }
    when = atomic_load(&t.shared->phase);
    (void)kill(child, SIGKILL);
    (void)waitpid(child, &status, 0);
    return when;
}

static void run(enum operation operation, unsigned kills, unsigned long seed, unsigned number)
{
    unsigned phases[PHASES] = {0};
    unsigned switched = 0;
    bool have_qemu = have_qemu_img();

    for (unsigned i = 0; i < kills; i++) {
        pid_t child;

        fail_context("%s, kill %u of seed %lu", names[operation], i, seed);
        t.rng.state = seed + ((uint64_t)operation << 32) + i;
        t.operation = operation;
        (void)snprintf(t.first, sizeof(t.first), "%s", scratch_path("first"));
        make_images();
        child = fork();
        if (child == 0) {
            child_main();
        }
        phases[kill_somewhere(child)]++;
        switched += judge(have_qemu && i % 4 == 0) > 0;
        remove_images();
    }
    printf("ok %u - %s: %u kills, %u of them before it, %u in the middle, %u after; "
           "the disk had another file after %u, half a copy was left by %u\n",
           number, names[operation], kills, phases[BEFORE], phases[DURING], phases[AFTER], switched,
           t.half_copies);
    t.half_copies = 0;
    (void)fflush(stdout);
}

int main(int argc, char **argv)
{
    unsigned long kills = 20, seed = 1;
    const char *only = NULL;
    unsigned count = 0;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--kills") == 0) {
            kills = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--only") == 0) {
            only = argv[i + 1];
        }
    }
    scratch_init();
    if (setxattr(scratch_path("."), "user.corbel.test", "", 0, 0) != 0) {
        printf("1..0 # SKIP the file system of the scratch directory keeps no marks: %s\n",
               strerror(errno));
        return 77;
    }
    t.shared =
        mmap(NULL, sizeof(*t.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (t.shared == MAP_FAILED) {
        fail("no memory");
    }
    for (enum operation i = 0; i < OPERATIONS; i++) {
        if (only == NULL || strcmp(only, names[i]) == 0) {
            run(i, (unsigned)kills, seed, ++count);
        }
    }
    printf("1..%u\n", count);
    return count > 0 ? 0 : 2;
}
