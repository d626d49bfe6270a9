/* The block core on real files: engines, merging, failures of the host, holds, limits. */
#include "base/compiler.h"
#include "base/loop.h"
#include "block/block.h"
#include "block/block_core.h"
#include "block/tracker.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define DISK_BYTES (1u << 20)
#define OPS 64u
#define MAX_BYTES 32768u

/* How an image is opened in a run of a test. */
struct mode {
    enum io_backend aio;
    bool direct;
    enum block_on_error on_error;
    unsigned lanes;
};

struct op {
    struct block_request request;
    struct iovec iov[2];
    uint8_t *data;
    int result;
    bool is_done;
};

struct rig {
    char path[64];
    struct block *block;
    uint8_t *model;
    struct op ops[OPS];
    unsigned done;
    uint32_t random;
};

static const struct mode modes[] = {
    {IO_BACKEND_AUTO, false, BLOCK_ON_ERROR_REPORT, 1},
    {IO_BACKEND_THREADS, false, BLOCK_ON_ERROR_REPORT, 1},
    {IO_BACKEND_AUTO, true, BLOCK_ON_ERROR_REPORT, 1},
    {IO_BACKEND_THREADS, true, BLOCK_ON_ERROR_HOLD, 1},
};

static uint32_t next_random(struct rig *rig)
{
    rig->random = rig->random * 1664525u + 1013904223u;
    return rig->random >> 8;
}

/* On a file system that takes direct I/O, which /tmp need not be. */
static void make_path(struct rig *rig)
{
    int fd;

    snprintf(rig->path, sizeof(rig->path), "corbel-test-core-XXXXXX");
    fd = mkstemp(rig->path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    close(fd);
}

static struct rig *rig_create(const struct mode *mode)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct block_config config = {.fd = -1,
                                  .direct = mode->direct,
                                  .aio = mode->aio,
                                  .on_error = mode->on_error,
                                  .lanes = mode->lanes};
    struct err err = {0};

    assert_non_null(rig);
    rig->random = 1;
    make_path(rig);
    config.path = rig->path;
    if (block_create(&config, &err, &rig->block) != 0) {
        print_message("%s\n", err.text);
        fail();
    }
    rig->model = calloc(1, DISK_BYTES);
    assert_non_null(rig->model);
    for (unsigned i = 0; i < OPS; i++) {
        rig->ops[i].data = aligned_alloc(4096, MAX_BYTES);
        assert_non_null(rig->ops[i].data);
    }
    return rig;
}

static void rig_destroy(struct rig *rig)
{
    block_stop(rig->block);
    block_destroy(rig->block);
    unlink(rig->path);
    for (unsigned i = 0; i < OPS; i++) {
        free(rig->ops[i].data);
    }
    free(rig->model);
    free(rig);
}

static void on_done(struct block_request *request, int result)
{
    struct op *op = container_of(request, struct op, request);

    assert_false(op->is_done);
    op->is_done = true;
    op->result = result;
}

/* One request of two pieces, its data ready in op->data. */
static void submit(struct rig *rig, struct op *op, enum block_op kind, uint64_t offset,
                   uint64_t len)
{
    uint64_t first = len > 512 ? len / 1024 * 512 : len;

    op->is_done = false;
    op->iov[0] = (struct iovec){op->data, first};
    op->iov[1] = (struct iovec){op->data + first, len - first};
    op->request = (struct block_request){
        .op = kind,
        .offset = offset,
        .len = len,
        .iov = op->iov,
        .iov_count = len > first ? 2 : 1,
        .done = on_done,
    };
    block_submit(rig->block, 0, &op->request);
}

static void fill(struct rig *rig, struct op *op, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++) {
        op->data[i] = (uint8_t)next_random(rig);
    }
}

static void check_disk(struct rig *rig)
{
    struct op *op = &rig->ops[0];

    for (uint64_t at = 0; at < DISK_BYTES; at += MAX_BYTES) {
        memset(op->data, 0xee, MAX_BYTES);
        submit(rig, op, BLOCK_READ, at, MAX_BYTES);
        block_drain(rig->block);
        assert_int_equal(op->result, 0);
        assert_memory_equal(op->data, rig->model + at, MAX_BYTES);
    }
}

/* A batch of writes that do not overlap, the first ones adjacent. */
static void write_batch(struct rig *rig, unsigned count)
{
    uint64_t slot = DISK_BYTES / count;
    uint64_t at = 0;

    for (unsigned i = 0; i < count; i++) {
        uint64_t len = 512 * (1 + next_random(rig) % (slot / 512));

        if (len > MAX_BYTES) {
            len = MAX_BYTES;
        }
        if (i >= count / 2) {
            at = slot * i;
        }
        fill(rig, &rig->ops[i], len);
        memcpy(rig->model + at, rig->ops[i].data, len);
        submit(rig, &rig->ops[i], BLOCK_WRITE, at, len);
        at += len;
    }
}

static void check_results(struct rig *rig, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        assert_true(rig->ops[i].is_done);
        assert_int_equal(rig->ops[i].result, 0);
    }
}

static void test_every_engine_reads_what_was_written(void **state)
{
    (void)state;
    for (unsigned m = 0; m < ARRAY_LEN(modes); m++) {
        struct rig *rig = rig_create(&modes[m]);

        for (unsigned round = 0; round < 8; round++) {
            write_batch(rig, OPS);
            block_drain(rig->block);
            check_results(rig, OPS);
            check_disk(rig);
        }
        rig_destroy(rig);
    }
}

static void test_adjacent_requests_travel_together(void **state)
{
    (void)state;
    for (unsigned m = 0; m < ARRAY_LEN(modes); m++) {
        struct rig *rig = rig_create(&modes[m]);
        struct io_engine_stats stats;

        write_batch(rig, 16);
        block_drain(rig->block);
        io_engine_stats(rig->block->lanes[0].engine, &stats);
        assert_true(stats.merged >= 7); /* the first eight follow each other */
        check_results(rig, 16);
        check_disk(rig);
        rig_destroy(rig);
    }
}

/* Long ones, several at once, of which other threads may take some. */
static void test_long_reads_of_a_batch_arrive_once_each(void **state)
{
    (void)state;
    for (unsigned m = 0; m < ARRAY_LEN(modes); m++) {
        struct rig *rig = rig_create(&modes[m]);

        write_batch(rig, OPS);
        block_drain(rig->block);
        for (unsigned round = 0; round < 32; round++) {
            for (unsigned i = 0; i < OPS; i++) {
                memset(rig->ops[i].data, 0xee, MAX_BYTES);
                submit(rig, &rig->ops[i], BLOCK_READ, (uint64_t)i * MAX_BYTES % DISK_BYTES,
                       MAX_BYTES);
            }
            block_drain(rig->block);
            check_results(rig, OPS);
            for (unsigned i = 0; i < OPS; i++) {
                assert_memory_equal(rig->ops[i].data,
                                    rig->model + (uint64_t)i * MAX_BYTES % DISK_BYTES, MAX_BYTES);
            }
        }
        rig_destroy(rig);
    }
}

/* The host lets files grow to a limit that lies within a joined transfer: what is below is written. */
static void test_a_joined_failure_is_only_told_to_who_failed(void **state)
{
    struct rlimit old;
    struct rlimit limit;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){.rlim_cur = 5 * 4096, .rlim_max = old.rlim_max};
    assert_true(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    for (unsigned m = 0; m < 3; m++) {
        struct rig *rig = rig_create(&modes[m]);
        struct io_engine_stats stats;

        for (unsigned i = 0; i < 8; i++) {
            fill(rig, &rig->ops[i], 4096);
            submit(rig, &rig->ops[i], BLOCK_WRITE, (uint64_t)i * 4096, 4096);
        }
        for (unsigned i = 0; i < 5; i++) {
            memcpy(rig->model + (size_t)i * 4096, rig->ops[i].data, 4096);
        }
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        block_drain(rig->block);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        io_engine_stats(rig->block->lanes[0].engine, &stats);
        assert_true(stats.merged >= 7);
        for (unsigned i = 0; i < 8; i++) {
            assert_true(rig->ops[i].is_done);
            assert_int_equal(rig->ops[i].result, i < 5 ? 0 : -EFBIG);
        }
        check_disk(rig);
        rig_destroy(rig);
    }
}

static void test_odd_addresses_of_direct_disks_are_served(void **state)
{
    struct rig *rig = rig_create(&modes[2]);
    struct op *op = &rig->ops[0];

    (void)state;
    fill(rig, op, 8192);
    for (unsigned shift = 1; shift < 512; shift += 170) {
        op->is_done = false;
        op->iov[0] = (struct iovec){op->data + shift, 1536};
        op->request = (struct block_request){.op = BLOCK_WRITE,
                                             .offset = 512 * shift,
                                             .len = 1536,
                                             .iov = op->iov,
                                             .iov_count = 1,
                                             .done = on_done};
        memcpy(rig->model + 512 * shift, op->data + shift, 1536);
        block_submit(rig->block, 0, &op->request);
        block_drain(rig->block);
        assert_int_equal(op->result, 0);
    }
    check_disk(rig);
    rig_destroy(rig);
}

/* Every N-th transfer fails in each way: short ones are finished, errors reach their request only. */
static void test_each_failing_transfer_is_told(void **state)
{
    static const int errors[] = {-EIO, -ENOSPC, 0};

    (void)state;
    for (unsigned m = 0; m < 3; m++) {
        for (unsigned e = 0; e < ARRAY_LEN(errors); e++) {
            for (uint64_t nth = 1; nth <= 12; nth++) {
                struct rig *rig = rig_create(&modes[m]);
                const struct io_fault fault = {
                    .nth = nth, .is_short = errors[e] == 0, .error = errors[e]};
                unsigned failed = 0;

                block_inject(rig->block, &fault);
                for (unsigned i = 0; i < 12; i++) {
                    uint64_t at = (uint64_t)i * 65536;

                    fill(rig, &rig->ops[i], 4096);
                    submit(rig, &rig->ops[i], BLOCK_WRITE, at, 4096);
                    block_drain(rig->block);
                    assert_true(rig->ops[i].is_done);
                    if (rig->ops[i].result == 0) {
                        memcpy(rig->model + at, rig->ops[i].data, 4096);
                    } else {
                        assert_int_equal(rig->ops[i].result, errors[e]);
                        failed++;
                    }
                }
                assert_int_equal(failed, errors[e] == 0 ? 0 : 1);
                block_inject(rig->block, &(struct io_fault){0});
                check_disk(rig);
                rig_destroy(rig);
            }
        }
    }
}

struct stop_seen {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int error;
};

static void on_stopped(void *opaque, int error)
{
    struct stop_seen *seen = opaque;

    pthread_mutex_lock(&seen->lock);
    seen->error = error;
    pthread_cond_signal(&seen->cond);
    pthread_mutex_unlock(&seen->lock);
}

static void submit_write(void *opaque)
{
    struct rig *rig = opaque;

    submit(rig, &rig->ops[0], BLOCK_WRITE, 4096, 8192);
    block_kick(rig->block, 0);
}

static void test_held_failures_are_repeated(void **state)
{
    const struct mode mode = {IO_BACKEND_AUTO, false, BLOCK_ON_ERROR_HOLD, 1};
    const struct io_fault fault = {.nth = 1, .error = -ENOSPC};
    struct stop_seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    struct rig *rig = rig_create(&mode);
    struct err err;

    (void)state;
    block_inject(rig->block, &fault);
    block_set_stopped(rig->block, on_stopped, &seen);
    fill(rig, &rig->ops[0], 8192);
    memcpy(rig->model + 4096, rig->ops[0].data, 8192);
    assert_int_equal(block_start(rig->block, &err), 0);
    assert_int_equal(loop_defer(block_loop(rig->block, 0), submit_write, rig), 0);
    pthread_mutex_lock(&seen.lock);
    while (seen.error == 0) {
        pthread_cond_wait(&seen.cond, &seen.lock);
    }
    pthread_mutex_unlock(&seen.lock);
    assert_int_equal(seen.error, -ENOSPC);
    assert_int_equal(block_stopped_error(rig->block), -ENOSPC);
    block_retry(rig->block);
    /* A hold returns when nothing is under way; the write comes before it or after the release. */
    block_hold(rig->block);
    block_release(rig->block);
    block_stop(rig->block);
    assert_true(rig->ops[0].is_done);
    check_disk(rig);
    assert_int_equal(rig->ops[0].result, 0);
    rig_destroy(rig);
}

/* ---- holds: a lane that writes without end, and someone who wants it quiet ---- */

struct stream {
    struct rig *rig;
    unsigned lane;
    struct block_request request;
    struct iovec iov;
    uint8_t *data;
    atomic_uint writes;
    atomic_bool stop;
};

static void stream_next(void *opaque)
{
    struct stream *stream = opaque;

    block_submit(stream->rig->block, stream->lane, &stream->request);
    block_kick(stream->rig->block, stream->lane);
}

static void on_streamed(struct block_request *request, int result)
{
    struct stream *stream = container_of(request, struct stream, request);

    assert_int_equal(result, 0);
    (void)atomic_fetch_add(&stream->writes, 1);
    if (!atomic_load(&stream->stop)) {
        stream->iov = (struct iovec){stream->data, 4096};
        assert_int_equal(
            loop_defer(block_loop(stream->rig->block, stream->lane), stream_next, stream), 0);
    }
}

static void test_a_hold_stops_all_lanes(void **state)
{
    const struct mode mode = {IO_BACKEND_AUTO, false, BLOCK_ON_ERROR_REPORT, 2};
    struct rig *rig = rig_create(&mode);
    struct stream streams[2];
    struct err err;

    (void)state;
    assert_int_equal(block_start(rig->block, &err), 0);
    for (unsigned i = 0; i < 2; i++) {
        streams[i] = (struct stream){.rig = rig, .lane = i, .data = rig->ops[i].data};
        streams[i].iov = (struct iovec){streams[i].data, 4096};
        streams[i].request = (struct block_request){.op = BLOCK_WRITE,
                                                    .offset = i * 4096,
                                                    .len = 4096,
                                                    .iov = &streams[i].iov,
                                                    .iov_count = 1,
                                                    .done = on_streamed};
        assert_int_equal(loop_defer(block_loop(rig->block, i), stream_next, &streams[i]), 0);
    }
    for (unsigned round = 0; round < 50; round++) {
        unsigned before[2];
        unsigned seen = atomic_load(&streams[0].writes);

        while (atomic_load(&streams[0].writes) == seen) {
            (void)sched_yield();
        }
        block_hold(rig->block);
        before[0] = atomic_load(&streams[0].writes);
        before[1] = atomic_load(&streams[1].writes);
        for (unsigned i = 0; i < 100; i++) {
            (void)sched_yield();
        }
        assert_int_equal(atomic_load(&streams[0].writes), before[0]);
        assert_int_equal(atomic_load(&streams[1].writes), before[1]);
        block_release(rig->block);
    }
    atomic_store(&streams[0].stop, true);
    atomic_store(&streams[1].stop, true);
    rig_destroy(rig);
}

/* ---- limits ---- */

static void test_buckets_account_for_each_token(void **state)
{
    const struct limit_config config = {.bytes_per_second = 1000000, .burst_bytes = 100000};
    const uint64_t second = 1000000000;
    struct limit limit = {0};
    uint64_t now = 5 * second;

    (void)state;
    assert_int_equal(limit_set(&limit, &config, now), 0);
    assert_int_equal(limit_take(&limit, 60000, now), 0);
    assert_int_equal(limit_take(&limit, 60000, now), 0); /* may go into debt: 20000 */
    assert_int_equal(limit_take(&limit, 1, now), now + 20001000);
    assert_int_equal(limit_take(&limit, 1, now + 20000000), now + 20001000);
    assert_int_equal(limit_take(&limit, 1, now + 20001000), 0);
    now += 10 * second; /* a long rest fills it to the burst and no more */
    assert_int_equal(limit_take(&limit, 100000, now), 0);
    assert_int_equal(limit_take(&limit, 1, now), now + 1000);
    assert_int_equal(limit_take(&limit, 0, now), 0); /* no bytes, no limit of operations */
}

static void test_rates_hold_over_time_without_drift(void **state)
{
    const struct limit_config config = {.ops_per_second = 7, .burst_ops = 2};
    struct limit limit = {0};
    uint64_t now = 0;
    unsigned taken = 0;

    (void)state;
    assert_int_equal(limit_set(&limit, &config, now), 0);
    while (now < 1000ull * 1000000000) {
        uint64_t when = limit_take(&limit, 4096, now);

        if (when == 0) {
            taken++;
        } else {
            assert_true(when > now);
            now = when;
        }
    }
    assert_in_range(taken, 7001, 7002); /* the burst, and seven for each of 1000 s */
    assert_int_equal(limit_set(&limit, &(struct limit_config){.burst_ops = UINT64_MAX}, 0),
                     -EINVAL);
}

static void test_trackers_give_back_what_was_marked(void **state)
{
    struct block_tracker *tracker = NULL;
    uint64_t cursor = 0, offset = 0, len = 0;

    (void)state;
    assert_int_equal(block_tracker_create(DISK_BYTES - 512, 4096, &tracker), 0);
    assert_false(block_tracker_take(tracker, &cursor, 65536, &offset, &len));
    block_tracker_mark(tracker, 4095, 2);
    block_tracker_mark(tracker, DISK_BYTES - 1024, 512);
    assert_true(block_tracker_take(tracker, &cursor, 65536, &offset, &len));
    assert_int_equal(offset, 0);
    assert_int_equal(len, 8192);
    assert_true(block_tracker_take(tracker, &cursor, 65536, &offset, &len));
    assert_int_equal(offset, DISK_BYTES - 4096);
    assert_int_equal(len, 4096 - 512); /* the disk ends there */
    assert_int_equal(block_tracker_marked_bytes(tracker), 0);
    block_tracker_destroy(tracker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_engine_reads_what_was_written),
        cmocka_unit_test(test_adjacent_requests_travel_together),
        cmocka_unit_test(test_long_reads_of_a_batch_arrive_once_each),
        cmocka_unit_test(test_a_joined_failure_is_only_told_to_who_failed),
        cmocka_unit_test(test_odd_addresses_of_direct_disks_are_served),
        cmocka_unit_test(test_each_failing_transfer_is_told),
        cmocka_unit_test(test_held_failures_are_repeated),
        cmocka_unit_test(test_a_hold_stops_all_lanes),
        cmocka_unit_test(test_buckets_account_for_each_token),
        cmocka_unit_test(test_rates_hold_over_time_without_drift),
        cmocka_unit_test(test_trackers_give_back_what_was_marked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
