/*
 * The N-th call of the file fails, for every N: once or from then on, with
 * EIO, ENOSPC or a write cut short. Requests may fail; the image stays
 * consistent, no flushed data is lost, and when the trouble is over it goes on,
 * unless it was a flush that failed: then nothing is written before the image
 * is opened anew.
 *
 * usage: failure [--step N] [--seed N]
 */
#include "memfile.h"
#include "scratch.h"
#include "sectors.h"

#include "block/block_int.h"
#include "block/qcow2.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISK_BYTES (1ull << 20)
#define SECTORS (DISK_BYTES / SECTOR)
#define OPS 60u
#define CLUSTER_SECTORS 8u

static struct {
    struct memfile file;
    struct block_image *image;
    struct sector model[SECTORS];
    uint32_t last_version;
    bool flush_failed;
} t;

static void do_op(struct rng *rng, unsigned number)
{
    uint64_t first = rng_below(rng, SECTORS);
    uint64_t count = 1 + rng_below(rng, 24);
    uint64_t op = rng_below(rng, 10);
    uint8_t buf[24 * SECTOR];
    struct err err = {0};
    int r;

    count = count < SECTORS - first ? count : SECTORS - first;
    if (number == 20) {
        (void)!qcow2_snapshot_create(t.image, "s", &err); /* may fail, changes no contents */
    } else if (number == 45) {
        (void)!qcow2_snapshot_delete(t.image, "s", &err);
    } else if (op < 6) {
        t.last_version++;
        for (uint64_t i = 0; i < count; i++) {
            fill_sector(buf + i * SECTOR, first + i, t.last_version);
            allow(&t.model[first + i], t.last_version);
        }
        r = block_image_pwrite(t.image, buf, count * SECTOR, first * SECTOR);
        for (uint64_t i = 0; r == 0 && i < count; i++) {
            t.model[first + i].allowed[t.model[first + i].count - 1] = t.last_version;
        }
    } else if (op < 8) {
        first = first / CLUSTER_SECTORS * CLUSTER_SECTORS;
        for (uint64_t i = first; i < first + CLUSTER_SECTORS && i < SECTORS; i++) {
            allow(&t.model[i], 0);
        }
        (void)!block_image_simple(t.image, BLOCK_WRITE_ZEROES, first * SECTOR,
                                  CLUSTER_SECTORS * SECTOR, true);
    } else {
        r = block_image_simple(t.image, BLOCK_FLUSH, 0, 0, false);
        t.flush_failed |= r < 0;
        if (r == 0 && to_qcow2(t.image)->is_poisoned) {
            fail("a flush succeeds on a poisoned image");
        }
    }
}

static void expect_contents(const char *when)
{
    uint8_t *buf = malloc(DISK_BYTES);
    int r = block_image_pread(t.image, buf, DISK_BYTES, 0);

    if (r < 0) {
        fail("%s: read: %s", when, strerror(-r));
    }
    for (uint64_t i = 0; i < SECTORS; i++) {
        if (!is_allowed(&t.model[i], i, buf + i * SECTOR)) {
            fail("%s: sector %llu holds version %u", when, (unsigned long long)i,
                 load_le32(buf + i * SECTOR));
        }
        t.model[i].allowed[0] = load_le32(buf + i * SECTOR);
        t.model[i].count = 1;
    }
    free(buf);
}

static void open_image(const char *when)
{
    struct block_config config = {.format = BLOCK_FORMAT_QCOW2, .path = "memory", .fd = -1};
    struct err err = {0};

    if (qcow2_open(&t.file.file, &config, NULL, &err, &t.image) < 0) {
        fail("%s: open: %s", when, err.text);
    }
}

static void expect_no_corruption(const char *when)
{
    struct block_check_result result = {0};
    struct err err = {0};

    if (block_image_check(t.image, BLOCK_REPAIR_NONE, NULL, NULL, &result, &err) < 0) {
        fail("%s: check: %s", when, err.text);
    }
    if (result.corruptions + result.errors > 0) {
        fail("%s: %llu corruptions", when, (unsigned long long)result.corruptions);
    }
}

/* The number of calls that could have failed. */
static uint64_t run(uint64_t seed, uint64_t fail_at, int failure, bool once, bool is_short)
{
    struct block_create_options options = {.path = "memory", .cluster_bytes = 4096};
    struct rng rng = {seed};
    struct err err = {0};
    uint64_t calls;

    fail_context("seed %llu, call %llu fails with %d%s%s", (unsigned long long)seed,
                 (unsigned long long)fail_at, failure, once ? " once" : "",
                 is_short ? ", short" : "");
    memset(t.model, 0, sizeof(t.model));
    for (unsigned i = 0; i < SECTORS; i++) {
        t.model[i].count = 1;
    }
    t.flush_failed = false;
    t.last_version = 0;
    memfile_init(&t.file);
    if (qcow2_create_image(&options, DISK_BYTES, &t.file.file, &err) < 0) {
        fail("create: %s", err.text);
    }
    open_image("at first");
    t.file.calls = 0;
    t.file.fail_at = fail_at;
    t.file.fails_once = once;
    t.file.fails_short = is_short;
    t.file.fails_reads = failure == -EIO;
    t.file.failure = failure;
    for (unsigned i = 0; i < OPS; i++) {
        do_op(&rng, i);
    }
    calls = t.file.calls;
    t.file.fail_at = 0;
    /* There is space again. */
    if (!to_qcow2(t.image)->is_poisoned) {
        expect_contents("afterwards");
        if (block_image_simple(t.image, BLOCK_FLUSH, 0, 0, false) < 0) {
            fail("it does not go on when the trouble is over");
        }
        expect_no_corruption("afterwards");
    } else if (block_image_simple(t.image, BLOCK_FLUSH, 0, 0, false) == 0) {
        fail("a flush succeeds after one failed");
    }
    block_image_close(t.image);
    open_image("again");
    expect_no_corruption("again");
    expect_contents("again");
    block_image_close(t.image);
    memfile_done(&t.file);
    return calls;
}

int main(int argc, char **argv)
{
    static const struct {
        int failure;
        bool once, is_short;
    } kinds[] = {{-EIO, true, false},     {-EIO, false, false},  {-ENOSPC, true, false},
                 {-ENOSPC, false, false}, {-ENOSPC, true, true}, {-ENOSPC, false, true}};
    unsigned long step = 1, seed = 1;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--step") == 0) {
            step = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = strtoul(argv[i + 1], NULL, 10);
        }
    }
    scratch_init();
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        uint64_t calls = run(seed, 0, kinds[i].failure, false, false), runs = 0;

        for (uint64_t n = 1; n <= calls; n += step) {
            (void)run(seed, n, kinds[i].failure, kinds[i].once, kinds[i].is_short);
            runs++;
        }
        printf("ok %zu - %s%s%s at each of %llu calls\n", i + 1, strerror(-kinds[i].failure),
               kinds[i].once ? ", once" : ", for good", kinds[i].is_short ? ", half written" : "",
               (unsigned long long)runs);
    }
    printf("1..%zu\n", ARRAY_LEN(kinds));
    return 0;
}
