/*
 * Random requests of several threads on an image and, with memcpy, on a plain
 * array; snapshots, other sizes and reopening in between. At every stop the
 * image has to hold what the array holds, and qemu-img has to agree. Requests
 * go straight to the image, or through the lanes of a disk.
 *
 * usage: oracle [--ops N] [--threads N] [--seed N] [--stops N] [--only VARIANT]
 *               [--through image|io_uring|threads]
 */
#include "lanes.h"
#include "scratch.h"

#include "base/wire.h"
#include "block/block_core.h"
#include "block/file.h"
#include "block/qcow2.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_THREADS 16u
#define MAX_SNAPSHOTS 3u
/* The image is open for writing here; it is quiet while qemu-img reads. */
#define UNLOCKED "file.driver=file,file.locking=off,file.filename="
#define BACKING                                                             \
    ",backing.driver=raw,backing.file.driver=file,backing.file.locking=off" \
    ",backing.file.filename="

struct variant {
    const char *name;
    uint64_t size;
    uint64_t max_size;
    bool has_backing;
    bool can_snapshot;
    bool can_resize;
    struct block_create_options options;
};

#define MIB (1ull << 20)

static const struct variant variants[] = {
    {"raw",
     16 * MIB,
     24 * MIB,
     false,
     false,
     true,
     {.format = BLOCK_FORMAT_RAW, .cluster_bytes = 65536}},
    {"default",
     48 * MIB,
     80 * MIB,
     false,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 65536}},
    {"4k",
     12 * MIB,
     20 * MIB,
     false,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 4096}},
    {"512",
     2 * MIB,
     3 * MIB,
     false,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 512}},
    {"2m",
     48 * MIB,
     80 * MIB,
     false,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 2 * MIB}},
    {"backing",
     16 * MIB,
     24 * MIB,
     true,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 65536}},
    {"subclusters",
     16 * MIB,
     24 * MIB,
     false,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 65536, .extended_l2 = true}},
    {"subclusters-backing",
     16 * MIB,
     24 * MIB,
     true,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 16384, .extended_l2 = true}},
    {"refcount1",
     8 * MIB,
     12 * MIB,
     false,
     false,
     true,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 4096, .refcount_bits = 1}},
    {"refcount64-zstd",
     8 * MIB,
     12 * MIB,
     false,
     true,
     true,
     {.format = BLOCK_FORMAT_QCOW2,
      .cluster_bytes = 4096,
      .refcount_bits = 64,
      .compression = BLOCK_COMPRESSION_ZSTD}},
    {"version2",
     16 * MIB,
     16 * MIB,
     true,
     true,
     false,
     {.format = BLOCK_FORMAT_QCOW2, .cluster_bytes = 65536, .version = 2}},
};

struct lock {
    uint64_t begin, end;
    struct lock *next;
};

struct saved {
    char name[32];
    uint8_t *data;
    uint64_t size;
};

static struct {
    const struct variant *variant;
    bool has_lanes;
    enum io_backend aio;
    struct block *block; /* with lanes; image is its own */
    struct block_image *image;
    uint8_t *model; /* max_size bytes */
    uint64_t size;
    uint64_t seed;
    atomic_long ops_left;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    struct lock *locks; /* ranges with a request in flight */
    struct saved saved[MAX_SNAPSHOTS];
    unsigned saved_count, saved_ever;
} t;

static void range_lock(struct lock *lock, uint64_t begin, uint64_t end)
{
    bool is_taken = true;

    *lock = (struct lock){.begin = begin, .end = end};
    pthread_mutex_lock(&t.lock);
    while (is_taken) {
        is_taken = false;
        for (struct lock *other = t.locks; other; other = other->next) {
            is_taken |= begin < other->end && other->begin < end;
        }
        if (is_taken) {
            pthread_cond_wait(&t.cond, &t.lock);
        }
    }
    lock->next = t.locks;
    t.locks = lock;
    pthread_mutex_unlock(&t.lock);
}

static void range_unlock(struct lock *lock)
{
    pthread_mutex_lock(&t.lock);
    for (struct lock **link = &t.locks; *link; link = &(*link)->next) {
        if (*link == lock) {
            *link = lock->next;
            break;
        }
    }
    pthread_cond_broadcast(&t.cond);
    pthread_mutex_unlock(&t.lock);
}

static void expect(int r, const char *what, uint64_t offset, uint64_t len)
{
    if (r < 0) {
        fail("%s of 0x%llx bytes at 0x%llx: %s", what, (unsigned long long)len,
             (unsigned long long)offset, strerror(-r));
    }
}

static bool is_qcow2(void)
{
    return t.variant->options.format == BLOCK_FORMAT_QCOW2;
}

/* The way that a device's requests take, or the way of tools. */
static int request(enum block_op op, void *buf, uint64_t len, uint64_t offset, bool may_unmap)
{
    if (t.has_lanes) {
        unsigned lane = (unsigned)(offset / 512 % block_lane_count(t.block));

        return lane_request(t.block, lane, op, buf, len, offset, may_unmap);
    }
    if (op == BLOCK_READ) {
        return block_image_pread(t.image, buf, len, offset);
    }
    if (op == BLOCK_WRITE) {
        return block_image_pwrite(t.image, buf, len, offset);
    }
    return block_image_simple(t.image, op, offset, len, may_unmap);
}

static void compare(const uint8_t *is, uint64_t offset, uint64_t len)
{
    if (memcmp(is, t.model + offset, len) == 0) {
        return;
    }
    for (uint64_t i = 0; i < len; i++) {
        if (is[i] != t.model[offset + i]) {
            fail("byte 0x%llx is 0x%02x, not 0x%02x", (unsigned long long)(offset + i), is[i],
                 t.model[offset + i]);
        }
    }
}

static void fill(struct rng *rng, uint8_t *buf, uint64_t len)
{
    uint64_t kind = rng_below(rng, 4);

    if (kind == 0) {
        memset(buf, (int)rng_below(rng, 256), len);
        return;
    }
    for (uint64_t i = 0; i < len; i += 8) {
        uint64_t value = kind == 1 ? i : rng_next(rng);

        memcpy(buf + i, &value, 8);
    }
}

/* A discard may do nothing, to each sector on its own. */
static void do_discard(uint64_t offset, uint64_t len, uint8_t *buf)
{
    expect(request(BLOCK_DISCARD, NULL, len, offset, true), "discard", offset, len);
    expect(request(BLOCK_READ, buf, len, offset, false), "read", offset, len);
    for (uint64_t i = 0; i < len; i += 512) {
        static const uint8_t zeroes[512];

        if (memcmp(buf + i, zeroes, 512) == 0) {
            memset(t.model + offset + i, 0, 512);
        } else {
            compare(buf + i, offset + i, 512);
        }
    }
}

static void do_compressed(struct rng *rng, uint8_t *buf, uint64_t offset)
{
    uint64_t cluster = t.variant->options.cluster_bytes;
    struct lock lock;
    uint64_t len;

    offset &= ~(cluster - 1);
    len = t.size - offset < cluster ? t.size - offset : cluster;
    range_lock(&lock, offset, offset + len);
    fill(rng, buf, len);
    expect(qcow2_write_compressed(t.image, buf, len, offset), "compressed write", offset, len);
    memcpy(t.model + offset, buf, len);
    range_unlock(&lock);
}

/* A write through map(), as an I/O engine does it. */
static void do_mapped(struct rng *rng, uint8_t *buf, uint64_t offset, uint64_t len)
{
    struct block_extent extent;

    if (t.image->ops->map(t.image, true, offset, len, &extent) < 0) {
        return;
    }
    fill(rng, buf, len);
    expect(block_file_pwrite(extent.file, buf, extent.len, extent.host_offset), "mapped write",
           offset, extent.len);
    t.image->ops->unmap(t.image, &extent);
    memcpy(t.model + offset, buf, extent.len);
}

static void one_op(struct rng *rng, uint8_t *buf)
{
    uint64_t cluster = t.variant->options.cluster_bytes;
    uint64_t most = rng_below(rng, 8) == 0 ? 3 * cluster + 65536 : 8192;
    uint64_t offset = rng_below(rng, t.size / 512) * 512;
    uint64_t len = (rng_below(rng, most / 512) + 1) * 512;
    uint64_t op = rng_below(rng, 100);
    struct lock lock;

    len = len < t.size - offset ? len : t.size - offset;
    if (op >= 97) {
        expect(request(BLOCK_FLUSH, NULL, 0, 0, false), "flush", 0, 0);
        return;
    }
    if (op >= 94 && is_qcow2()) {
        do_compressed(rng, buf, offset);
        return;
    }
    if (op < 12 && len > 512) { /* whole clusters */
        offset &= ~(cluster - 1);
        len = cluster * (1 + rng_below(rng, 3));
        len = len < t.size - offset ? len : t.size - offset;
    }
    range_lock(&lock, offset, offset + len);
    if (op < 8) {
        do_discard(offset, len, buf);
    } else if (op < 20) {
        bool may_unmap = rng_below(rng, 2);

        expect(request(BLOCK_WRITE_ZEROES, NULL, len, offset, may_unmap), "write zeroes", offset,
               len);
        memset(t.model + offset, 0, len);
    } else if (op < 45) {
        expect(request(BLOCK_READ, buf, len, offset, false), "read", offset, len);
        compare(buf, offset, len);
    } else if (op < 55) {
        do_mapped(rng, buf, offset, len);
    } else {
        fill(rng, buf, len);
        expect(request(BLOCK_WRITE, buf, len, offset, false), "write", offset, len);
        memcpy(t.model + offset, buf, len);
    }
    range_unlock(&lock);
}

static void *worker(void *opaque)
{
    struct rng rng = {(uint64_t)(uintptr_t)opaque};
    uint8_t *buf = malloc(8 * MIB);

    while (atomic_fetch_sub(&t.ops_left, 1) > 0) {
        one_op(&rng, buf);
    }
    free(buf);
    return NULL;
}

static void open_image(void)
{
    struct block_layer backing = {BLOCK_FORMAT_RAW, scratch_path("backing.raw"), -1};
    struct block_config config = {
        .format = t.variant->options.format,
        .path = scratch_path("image"),
        .fd = -1,
        .backing = &backing,
        .backing_count = t.variant->has_backing,
        .lanes = 4,
        .aio = t.aio,
    };
    struct err err = {0};

    if (!t.has_lanes) {
        if (block_image_open(&config, &err, &t.image) < 0) {
            fail("%s", err.text);
        }
        return;
    }
    if (block_create(&config, &err, &t.block) < 0 || block_start(t.block, &err) < 0) {
        fail("%s", err.text);
    }
    if (t.aio != IO_BACKEND_AUTO && block_backend(t.block) != t.aio) {
        fail("%s is not to be had", io_backend_name(t.aio));
    }
    t.image = t.block->image;
}

static void close_image(void)
{
    if (t.has_lanes) {
        block_stop(t.block);
        block_destroy(t.block);
    } else {
        block_image_close(t.image);
    }
}

static void compare_with_qemu(void)
{
    const char *backing = t.variant->has_backing ? BACKING : "";
    const char *backing_path = t.variant->has_backing ? scratch_path("backing.raw") : "";

    if (is_qcow2()) {
        run_command(1u << 0, "qemu-img check -q -U --image-opts driver=qcow2," UNLOCKED "%s%s%s",
                    scratch_path("image"), backing, backing_path);
    }
    run_command(1u << 0,
                "qemu-img compare -q -U --image-opts driver=%s," UNLOCKED "%s%s%s"
                " driver=raw," UNLOCKED "%s",
                block_format_name(t.variant->options.format), scratch_path("image"), backing,
                backing_path, scratch_path("model.raw"));
}

static void check_all(bool with_qemu)
{
    struct block_check_result result = {0};
    struct err err = {0};
    uint8_t *buf = malloc(MIB);
    int fd;

    if (t.has_lanes) {
        atomic_store(&t.block->size_bytes, t.size); /* changed past it */
    }
    expect(request(BLOCK_FLUSH, NULL, 0, 0, false), "flush", 0, 0);
    for (uint64_t at = 0; at < t.size; at += MIB) {
        uint64_t len = t.size - at < MIB ? t.size - at : MIB;

        expect(request(BLOCK_READ, buf, len, at, false), "read", at, len);
        compare(buf, at, len);
    }
    free(buf);
    if (is_qcow2() &&
        block_image_check(t.image, BLOCK_REPAIR_NONE, NULL, NULL, &result, &err) < 0) {
        fail("%s", err.text);
    }
    if (result.corruptions + result.errors + result.leaks > 0) {
        fail("check: %llu corruptions, %llu leaks, %llu errors",
             (unsigned long long)result.corruptions, (unsigned long long)result.leaks,
             (unsigned long long)result.errors);
    }
    if (with_qemu) {
        fd = open(scratch_path("model.raw"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, t.model, t.size) != (ssize_t)t.size) {
            fail("cannot write the model");
        }
        (void)close(fd);
        compare_with_qemu();
    }
}

static void take_snapshot(void)
{
    struct saved *saved = &t.saved[t.saved_count];
    struct err err = {0};

    (void)snprintf(saved->name, sizeof(saved->name), "snap%u", t.saved_ever++);
    if (qcow2_snapshot_create(t.image, saved->name, &err) < 0) {
        fail("snapshot: %s", err.text);
    }
    saved->size = t.size;
    saved->data = malloc(t.size);
    memcpy(saved->data, t.model, t.size);
    t.saved_count++;
}

static void apply_snapshot(struct rng *rng)
{
    struct saved *saved = &t.saved[rng_below(rng, t.saved_count)];
    struct err err = {0};

    if (qcow2_snapshot_apply(t.image, saved->name, &err) < 0) {
        fail("apply: %s", err.text);
    }
    t.size = saved->size;
    memset(t.model, 0, t.variant->max_size);
    memcpy(t.model, saved->data, saved->size);
}

static void delete_snapshot(struct rng *rng)
{
    unsigned i = (unsigned)rng_below(rng, t.saved_count);
    struct err err = {0};

    if (qcow2_snapshot_delete(t.image, t.saved[i].name, &err) < 0) {
        fail("delete: %s", err.text);
    }
    free(t.saved[i].data);
    t.saved[i] = t.saved[--t.saved_count];
}

static void resize(struct rng *rng)
{
    uint64_t low = t.variant->size / 2;
    uint64_t size = low + rng_below(rng, (t.variant->max_size - low) / 512) * 512;
    struct err err = {0};

    if (block_image_resize(t.image, size, true, BLOCK_PREALLOC_OFF, &err) < 0) {
        fail("resize: %s", err.text);
    }
    if (size < t.size) {
        memset(t.model + size, 0, t.size - size);
    }
    t.size = size;
}

static void change_something(struct rng *rng)
{
    uint64_t what = rng_below(rng, 10);

    if (what < 3 && t.variant->can_snapshot && t.saved_count < MAX_SNAPSHOTS) {
        take_snapshot();
    } else if (what < 5 && t.saved_count > 0) {
        apply_snapshot(rng);
    } else if (what < 7 && t.saved_count > 0) {
        delete_snapshot(rng);
    } else if (what < 9 && t.variant->can_resize) {
        resize(rng);
    } else {
        close_image();
        open_image();
    }
}

static void make_image(struct rng *rng)
{
    struct block_create_options options = t.variant->options;
    struct err err = {0};
    int fd;

    memset(t.model, 0, t.variant->max_size);
    options.cluster_bytes = is_qcow2() ? options.cluster_bytes : 0;
    options.path = scratch_path("image");
    options.replace = true;
    options.size_bytes = t.size;
    if (t.variant->has_backing) {
        uint64_t backing = t.size * 3 / 4;

        fill(rng, t.model, backing);
        options.backing_path = "backing.raw";
        fd = open(scratch_path("backing.raw"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, t.model, backing) != (ssize_t)backing) {
            fail("cannot write the backing image");
        }
        (void)close(fd);
    }
    if (block_image_create(&options, &err) < 0) {
        fail("%s", err.text);
    }
}

static void run(const struct variant *variant, uint64_t seed, long ops, unsigned stops,
                unsigned threads, bool with_qemu)
{
    struct rng rng = {seed};
    pthread_t ids[MAX_THREADS];

    fail_context("variant %s, seed %llu", variant->name, (unsigned long long)seed);
    t.variant = variant;
    t.size = variant->size;
    t.saved_count = 0;
    t.model = malloc(variant->max_size);
    make_image(&rng);
    open_image();
    for (unsigned stop = 0; stop < stops; stop++) {
        atomic_store(&t.ops_left, ops / stops);
        for (unsigned i = 0; i < threads; i++) {
            if (pthread_create(&ids[i], NULL, worker, (void *)(uintptr_t)rng_next(&rng)) != 0) {
                fail("cannot start a thread");
            }
        }
        for (unsigned i = 0; i < threads; i++) {
            (void)pthread_join(ids[i], NULL);
        }
        check_all(with_qemu);
        change_something(&rng);
        check_all(with_qemu);
    }
    while (t.saved_count > 0) {
        apply_snapshot(&rng);
        check_all(with_qemu);
        delete_snapshot(&rng);
        check_all(with_qemu);
    }
    close_image();
    if (with_qemu && is_qcow2()) {
        run_command(1u << 0, "qemu-img check -q -f qcow2 %s", scratch_path("image"));
    }
    free(t.model);
}

static bool is_refused(enum io_backend aio)
{
    const struct io_engine_config config = {.backend = aio};
    struct io_engine *engine = NULL;
    struct err err = {0};

    if (aio != IO_BACKEND_URING || io_engine_create(&config, &err, &engine) == 0) {
        io_engine_destroy(engine);
        return false;
    }
    printf("1..0 # SKIP %s\n", err.text);
    return true;
}

int main(int argc, char **argv)
{
    unsigned long ops = 2000, threads = 8, stops = 6, seed = 1;
    const char *only = NULL;
    bool with_qemu = have_qemu_img();
    unsigned count = 0;

    for (int i = 1; i + 1 < argc; i += 2) {
        unsigned long value = strtoul(argv[i + 1], NULL, 10);

        if (strcmp(argv[i], "--ops") == 0) {
            ops = value;
        } else if (strcmp(argv[i], "--threads") == 0) {
            threads = value < MAX_THREADS ? value : MAX_THREADS;
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = value;
        } else if (strcmp(argv[i], "--stops") == 0) {
            stops = value;
        } else if (strcmp(argv[i], "--through") == 0) {
            t.has_lanes = strcmp(argv[i + 1], "image") != 0;
            t.aio = strcmp(argv[i + 1], "threads") == 0 ? IO_BACKEND_THREADS : IO_BACKEND_URING;
        } else if (strcmp(argv[i], "--only") == 0) {
            only = argv[i + 1];
        } else {
            (void)fprintf(stderr, "unknown option %s\n", argv[i]);
            return 2;
        }
    }
    if (t.has_lanes && is_refused(t.aio)) {
        return 77;
    }
    scratch_init();
    (void)pthread_mutex_init(&t.lock, NULL);
    (void)pthread_cond_init(&t.cond, NULL);
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        if (!only || strcmp(only, variants[i].name) == 0) {
            run(&variants[i], seed, (long)ops, (unsigned)stops, (unsigned)threads, with_qemu);
            printf("ok %u - %s: %lu operations of %lu threads%s\n", ++count, variants[i].name, ops,
                   threads, with_qemu ? "" : ", without qemu-img");
            (void)fflush(stdout);
        }
    }
    printf("1..%u\n", count);
    return count > 0 ? 0 : 2;
}
