/*
 * Power cuts. Requests run on an image in memory whose file logs every write
 * and flush. Then the power is cut at random places of the log: what was
 * flushed is there; of what came after, each sector may have arrived or not,
 * in any order. The image that is left has to open, to pass our check and
 * qemu-img's (leaks alone are allowed), and each sector of the disk has to hold
 * what the last flush promised or something written later.
 *
 * Planted mistakes prove that all this would be seen.
 *
 * usage: crash [--cuts N] [--seed N] [--qemu-every N]
 */
#include "memfile.h"
#include "scratch.h"
#include "sectors.h"

#include "base/wire.h"
#include "block/block_int.h"
#include "block/qcow2.h"
#include "block/qcow2_int.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPS_PER_LOG 400u
#define CUTS_PER_LOG 100u
#define SNAPSHOT_NAME "s"

struct workload {
    const char *name;
    uint64_t size;
    bool has_snapshots;
    struct block_create_options options;
};

#define MIB (1ull << 20)

static const struct workload workloads[] = {
    {"64k", 8 * MIB, true, {.cluster_bytes = 65536}},
    {"4k", 4 * MIB, true, {.cluster_bytes = 4096}},
    {"512", MIB / 2, true, {.cluster_bytes = 512}},
    {"subclusters", 4 * MIB, true, {.cluster_bytes = 16384, .extended_l2 = true}},
    {"refcount1", 4 * MIB, false, {.cluster_bytes = 4096, .refcount_bits = 1}},
};

/* What the guest did, and where in the log that began and ended. */
struct event {
    enum { EVENT_CHANGE, EVENT_FLUSH, EVENT_RESTORE } kind;
    size_t begin, end;
    uint64_t first, count; /* sectors */
    uint32_t version;
    uint32_t *versions; /* EVENT_RESTORE: of all sectors */
};

static struct {
    const struct workload *w;
    struct rng rng;
    struct memfile file;
    struct block_image *image;
    struct event *events;
    size_t event_count, event_capacity;
    uint32_t *now; /* version of each sector */
    uint32_t *saved;
    bool has_saved;
    uint32_t last_version;
    uint64_t sectors;
    struct sector *model;
    unsigned qemu_every, cut_number;
    unsigned found; /* cuts that left something wrong */
    bool expects_trouble;
} t;

static struct event *add_event(int kind, size_t begin)
{
    if (t.event_count == t.event_capacity) {
        t.event_capacity = t.event_capacity ? t.event_capacity * 2 : 256;
        t.events = realloc(t.events, t.event_capacity * sizeof(*t.events));
    }
    t.events[t.event_count] = (struct event){.kind = kind, .begin = begin};
    t.events[t.event_count].end = t.file.log_count;
    return &t.events[t.event_count++];
}

static void must(int r, const char *what, const struct err *err)
{
    if (r < 0) {
        fail("%s: %s", what, err && err->code ? err->text : strerror(-r));
    }
}

static void do_flush(void)
{
    size_t begin = t.file.log_count;

    must(block_image_simple(t.image, BLOCK_FLUSH, 0, 0, false), "flush", NULL);
    (void)add_event(EVENT_FLUSH, begin);
}

static void note_change(size_t begin, uint64_t first, uint64_t count, uint32_t version)
{
    struct event *event = add_event(EVENT_CHANGE, begin);

    event->first = first;
    event->count = count;
    event->version = version;
    for (uint64_t i = 0; i < count; i++) {
        t.now[first + i] = version;
    }
}

static void do_write(uint64_t first, uint64_t count)
{
    size_t begin = t.file.log_count;
    uint8_t *buf = malloc(count * SECTOR);
    uint32_t version = ++t.last_version;

    for (uint64_t i = 0; i < count; i++) {
        fill_sector(buf + i * SECTOR, first + i, version);
    }
    must(block_image_pwrite(t.image, buf, count * SECTOR, first * SECTOR), "write", NULL);
    free(buf);
    note_change(begin, first, count, version);
}

/* Of a discard, only what reads as zero has become zero. */
static void do_zero(uint64_t first, uint64_t count)
{
    size_t begin = t.file.log_count;
    enum block_op op = rng_below(&t.rng, 2) ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
    uint8_t *buf = malloc(count * SECTOR);

    must(block_image_simple(t.image, op, first * SECTOR, count * SECTOR, rng_below(&t.rng, 2)),
         "zeroes", NULL);
    must(block_image_pread(t.image, buf, count * SECTOR, first * SECTOR), "read", NULL);
    for (uint64_t i = 0; i < count; i++) {
        if (load_le32(buf + i * SECTOR) == 0) {
            note_change(begin, first + i, 1, 0);
        }
    }
    free(buf);
}

static void do_snapshot(void)
{
    size_t begin = t.file.log_count;
    struct event *event;
    struct err err = {0};

    if (!t.has_saved) {
        must(qcow2_snapshot_create(t.image, SNAPSHOT_NAME, &err), "snapshot", &err);
        (void)add_event(EVENT_FLUSH, begin);
        memcpy(t.saved, t.now, t.sectors * sizeof(*t.now));
        t.has_saved = true;
    } else if (rng_below(&t.rng, 2)) {
        must(qcow2_snapshot_delete(t.image, SNAPSHOT_NAME, &err), "delete", &err);
        (void)add_event(EVENT_FLUSH, begin);
        t.has_saved = false;
    } else {
        must(qcow2_snapshot_apply(t.image, SNAPSHOT_NAME, &err), "apply", &err);
        event = add_event(EVENT_RESTORE, begin);
        event->versions = malloc(t.sectors * sizeof(*t.now));
        memcpy(event->versions, t.saved, t.sectors * sizeof(*t.now));
        memcpy(t.now, t.saved, t.sectors * sizeof(*t.now));
    }
}

static void one_op(void)
{
    uint64_t cluster = t.w->options.cluster_bytes / SECTOR;
    uint64_t op = rng_below(&t.rng, 100);
    uint64_t first = rng_below(&t.rng, t.sectors);
    uint64_t count = 1 + rng_below(&t.rng, rng_below(&t.rng, 3) ? 16 : 2 * cluster + 8);

    if (op < 20) {
        first = first / cluster * cluster;
        count = cluster * (1 + rng_below(&t.rng, 2));
    }
    count = count < t.sectors - first ? count : t.sectors - first;
    if (op < 15) {
        do_zero(first, count);
    } else if (op < 87) {
        do_write(first, count);
    } else if (op < 98 || !t.w->has_snapshots) {
        do_flush();
    } else {
        do_snapshot();
    }
}

static struct block_image *open_mem(struct memfile *file, bool for_repair, struct err *err)
{
    struct block_config config = {
        .format = BLOCK_FORMAT_QCOW2, .path = "cut", .fd = -1, .for_repair = for_repair};
    struct block_image *image = NULL;

    return qcow2_open(&file->file, &config, NULL, err, &image) == 0 ? image : NULL;
}

static void trouble(const char *what, uint64_t where)
{
    if (!t.expects_trouble) {
        fail("cut %u of '%s': %s (0x%llx)", t.cut_number, t.w->name, what,
             (unsigned long long)where);
    }
    t.found++;
}

static bool contents_are_fine(struct block_image *image)
{
    uint8_t *buf = malloc(t.sectors * SECTOR);
    char text[128];
    bool is_fine = block_image_pread(image, buf, t.sectors * SECTOR, 0) == 0;

    for (uint64_t i = 0; i < t.sectors && is_fine; i++) {
        if (!is_allowed(&t.model[i], i, buf + i * SECTOR)) {
            (void)snprintf(text, sizeof(text),
                           "a sector holds version %u of 0x%x, not one of %u up to %u",
                           load_le32(buf + i * SECTOR), load_le32(buf + i * SECTOR + 4) - 1,
                           t.model[i].count, t.model[i].allowed[t.model[i].count - 1]);
            trouble(text, i);
            is_fine = false;
        }
    }
    free(buf);
    return is_fine;
}

static bool check_is_fine(struct block_image *image)
{
    struct block_check_result result = {0};
    struct err err = {0};

    if (block_image_check(image, BLOCK_REPAIR_NONE, NULL, NULL, &result, &err) < 0 ||
        result.corruptions + result.errors > 0) {
        trouble("the check finds corruption", result.corruptions);
        return false;
    }
    return true;
}

/* It also has to work on: write, repair leaks, and still be right. */
static void use_on(struct block_image *image)
{
    struct block_check_result result = {0};
    struct err err = {0};
    uint8_t sector[SECTOR];
    uint64_t lba = rng_below(&t.rng, t.sectors);

    fill_sector(sector, lba, 0xffffffff);
    must(block_image_pwrite(image, sector, SECTOR, lba * SECTOR), "write after a cut", NULL);
    must(block_image_check(image, BLOCK_REPAIR_LEAKS, NULL, NULL, &result, &err), "repair", &err);
    if (result.corruptions + result.leaks + result.errors > 0) {
        trouble("leaks cannot be repaired", result.leaks);
    }
    t.model[lba].allowed[0] = 0xffffffff;
    t.model[lba].count = 1;
    (void)contents_are_fine(image);
}

static void ask_qemu(const struct memfile *cut)
{
    const char *path = scratch_path("cut.qcow2");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int status;

    if (fd < 0 || write(fd, cut->data, cut->size) != (ssize_t)cut->size) {
        fail("cannot write the cut image");
    }
    (void)close(fd);
    status = run_command(t.expects_trouble ? ~0u : 1u << 0 | 1u << 3,
                         "qemu-img check -q -f qcow2 %s", path);
    if (status != 0 && status != 3) {
        t.found++;
    }
}

static void judge(struct memfile *cut)
{
    struct sector *kept = malloc(t.sectors * sizeof(*kept));
    struct err err = {0};
    struct block_image *image;
    unsigned before = t.found;

    t.cut_number++;
    if (t.qemu_every != 0 && t.cut_number % t.qemu_every == 0) {
        ask_qemu(cut);
    }
    memcpy(kept, t.model, t.sectors * sizeof(*kept));
    image = open_mem(cut, false, &err);
    if (!image) {
        trouble(err.text, 0);
    } else {
        if (check_is_fine(image) && contents_are_fine(image) && !t.expects_trouble) {
            use_on(image);
        }
        block_image_close(image);
    }
    memcpy(t.model, kept, t.sectors * sizeof(*kept));
    free(kept);
    if (t.found > before) {
        t.found = before + 1;
    }
}

/* Power goes at log position end; everything before position flushed is certain. */
static void cut_power(const struct memfile *durable, size_t flushed, size_t end)
{
    struct memfile cut;
    size_t count = end - flushed;
    size_t *order = malloc((count + 1) * sizeof(*order));
    uint64_t style = rng_below(&t.rng, 4); /* how much of it arrived */

    memfile_init(&cut);
    memfile_set(&cut, durable->data, durable->size);
    for (size_t i = 0; i < count; i++) {
        size_t j = rng_below(&t.rng, i + 1);

        order[i] = order[j];
        order[j] = flushed + i;
    }
    for (size_t i = 0; i < count; i++) {
        const struct log_entry *entry = &t.file.log[style == 0 ? flushed + i : order[i]];

        if (style == 0 && rng_below(&t.rng, count) == 0) {
            break; /* in order up to here */
        }
        for (uint64_t at = entry->offset; at < entry->offset + entry->len;) {
            uint64_t next = (at | (SECTOR - 1)) + 1;

            next = next < entry->offset + entry->len ? next : entry->offset + entry->len;
            if (style < 2 || rng_below(&t.rng, 4) < style) {
                memfile_apply(&cut, entry, at, next);
            }
            at = next;
        }
    }
    free(order);
    judge(&cut);
    memfile_done(&cut);
}

static void begin_event(const struct event *event)
{
    if (event->kind == EVENT_CHANGE) {
        for (uint64_t i = 0; i < event->count; i++) {
            allow(&t.model[event->first + i], event->version);
        }
    } else if (event->kind == EVENT_RESTORE) {
        for (uint64_t i = 0; i < t.sectors; i++) {
            allow(&t.model[i], event->versions[i]);
        }
    }
}

static void end_event(const struct event *event)
{
    for (uint64_t i = 0; event->kind != EVENT_CHANGE && i < t.sectors; i++) {
        t.model[i].allowed[0] = t.model[i].allowed[t.model[i].count - 1];
        t.model[i].count = 1;
    }
}

/* Goes through the log once, with cuts on the way. */
static void replay(const uint8_t *base, uint64_t base_size, unsigned cuts)
{
    struct memfile durable;
    size_t begun = 0, ended = 0, flushed = 0;

    memfile_init(&durable);
    memfile_set(&durable, base, base_size);
    for (size_t at = 0; at <= t.file.log_count; at++) {
        /* One after the other; done is what has all its log entries before the cut. */
        while (ended < t.event_count && t.events[ended].begin <= at) {
            if (begun == ended) {
                begin_event(&t.events[begun++]);
            }
            if (t.events[ended].end > at) {
                break;
            }
            end_event(&t.events[ended++]);
        }
        if (rng_below(&t.rng, t.file.log_count + 1) < cuts) {
            cut_power(&durable, flushed, at);
        }
        if (at < t.file.log_count && t.file.log[at].kind == LOG_FLUSH) {
            for (size_t i = flushed; i < at; i++) {
                const struct log_entry *e = &t.file.log[i];

                memfile_apply(&durable, e, e->offset, e->offset + e->len);
            }
            flushed = at + 1;
        }
    }
    memfile_done(&durable);
}

static void start_image(enum qcow2_planted_bug bug, bool ignores_flush)
{
    struct block_create_options options = t.w->options;
    struct err err = {0};

    options.path = "memory";
    memfile_init(&t.file);
    must(qcow2_create_image(&options, t.w->size, &t.file.file, &err), "create", &err);
    t.image = open_mem(&t.file, false, &err);
    if (!t.image) {
        fail("open: %s", err.text);
    }
    to_qcow2(t.image)->planted_bug = bug;
    t.file.ignores_flush = ignores_flush;
    t.file.is_logging = true;
}

static void one_log(const struct workload *w, uint64_t seed, unsigned cuts,
                    enum qcow2_planted_bug bug, bool ignores_flush)
{
    uint8_t *base;
    uint64_t base_size;

    fail_context("seed %llu", (unsigned long long)seed);
    t.w = w;
    t.rng = (struct rng){seed};
    t.sectors = w->size / SECTOR;
    t.now = calloc(t.sectors, sizeof(*t.now));
    t.saved = calloc(t.sectors, sizeof(*t.saved));
    t.model = calloc(t.sectors, sizeof(*t.model));
    t.has_saved = false;
    t.event_count = 0;
    for (uint64_t i = 0; i < t.sectors; i++) {
        t.model[i].count = 1; /* zeroes */
    }
    start_image(bug, ignores_flush);
    base_size = t.file.size;
    base = malloc(base_size);
    memcpy(base, t.file.data, base_size);
    for (unsigned i = 0; i < OPS_PER_LOG; i++) {
        one_op();
    }
    t.file.is_logging = false;
    replay(base, base_size, cuts);
    block_image_close(t.image);
    memfile_done(&t.file);
    for (size_t i = 0; i < t.event_count; i++) {
        free(t.events[i].versions);
    }
    free(base);
    free(t.now);
    free(t.saved);
    free(t.model);
}

static void run_planted(const char *name, uint64_t seed, enum qcow2_planted_bug bug,
                        bool ignores_flush, unsigned number)
{
    t.expects_trouble = true;
    t.found = 0;
    for (unsigned i = 0; i < 6; i++) {
        one_log(&workloads[i % 2], seed + i, CUTS_PER_LOG / 2, bug, ignores_flush);
    }
    if (t.found == 0) {
        t.expects_trouble = false;
        fail("%s went unseen", name);
    }
    printf("ok %u - %s was seen in %u cuts\n", number, name, t.found);
    t.expects_trouble = false;
}

int main(int argc, char **argv)
{
    unsigned long cuts = 400, seed = 1, every = 10;
    unsigned done;

    for (int i = 1; i + 1 < argc; i += 2) {
        unsigned long value = strtoul(argv[i + 1], NULL, 10);

        if (strcmp(argv[i], "--cuts") == 0) {
            cuts = value;
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = value;
        } else if (strcmp(argv[i], "--qemu-every") == 0) {
            every = value;
        }
    }
    scratch_init();
    t.qemu_every = have_qemu_img() ? (unsigned)every : 0;
    for (unsigned log = 0; t.cut_number < cuts; log++) {
        one_log(&workloads[log % ARRAY_LEN(workloads)], seed + log, CUTS_PER_LOG, QCOW2_BUG_NONE,
                false);
    }
    done = t.cut_number;
    printf("ok 1 - %u power cuts, seed %lu\n", done, seed);
    t.qemu_every = 0;
    run_planted("a disk that ignores flushes", seed, QCOW2_BUG_NONE, true, 2);
    run_planted("a mapping before its refcount", seed, QCOW2_BUG_MAP_FIRST, false, 3);
    run_planted("a cluster reused early", seed, QCOW2_BUG_REUSE_EARLY, false, 4);
    printf("1..4\n");
    return 0;
}
