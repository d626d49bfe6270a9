/*
 * Split virtqueues alone, with a driver that keeps the rules and with drivers
 * that break each of them: whatever stands in guest memory, a chain is made of
 * values that were checked, and no walk is longer than its table.
 */
#include "base/compiler.h"
#include "base/wire.h"
#include "mem/gmem.h"
#include "test.h"
#include "virtio/virtqueue.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define MEMORY (1u << 20)
#define SIZE 8u
#define DESC 0x1000u
#define AVAIL 0x2000u
#define USED 0x3000u
#define TABLE 0x4000u /* an indirect one */
#define DATA 0x8000u
#define SEGS 16u

struct rig {
    struct gmem *gmem;
    struct virtqueue vq;
    struct virtq_seg segs[SEGS];
    struct virtq_chain chain;
};

static void put16(struct rig *rig, uint64_t at, uint16_t value)
{
    uint8_t raw[2];

    store_le16(raw, value);
    assert_int_equal(gmem_write(rig->gmem, gpa(at), raw, sizeof(raw)), 0);
}

static uint16_t get16(struct rig *rig, uint64_t at)
{
    uint8_t raw[2];

    assert_int_equal(gmem_read(rig->gmem, gpa(at), raw, sizeof(raw)), 0);
    return load_le16(raw);
}

static void put_desc(struct rig *rig, uint64_t table, unsigned index, uint64_t address,
                     uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t raw[VIRTQ_DESC_BYTES];

    store_le64(raw, address);
    store_le32(raw + 8, len);
    store_le16(raw + 12, flags);
    store_le16(raw + 14, next);
    assert_int_equal(gmem_write(rig->gmem, gpa(table + index * VIRTQ_DESC_BYTES), raw, sizeof(raw)),
                     0);
}

static void make_available(struct rig *rig, uint16_t index, uint16_t head)
{
    put16(rig, AVAIL + 4 + 2u * (index % SIZE), head);
    put16(rig, AVAIL + 2, (uint16_t)(index + 1));
}

static void start(struct rig *rig, bool has_indirect, bool has_event_idx)
{
    virtqueue_reset(&rig->vq);
    rig->vq.size = SIZE;
    rig->vq.desc = DESC;
    rig->vq.avail = AVAIL;
    rig->vq.used = USED;
    put16(rig, AVAIL, 0);
    put16(rig, AVAIL + 2, 0);
    put16(rig, USED + 2, 0);
    assert_int_equal(virtqueue_start(&rig->vq, has_indirect, has_event_idx), 0);
}

static int pop(struct rig *rig)
{
    rig->chain = (struct virtq_chain){.segs = rig->segs, .max = SEGS};
    return virtqueue_pop(&rig->vq, &rig->chain);
}

static int setup(void **state)
{
    struct rig *rig = test_calloc(1, sizeof(*rig));
    struct err err = {0};

    assert_int_equal(gmem_create(MEMORY, &err, &rig->gmem), 0);
    virtqueue_init(&rig->vq, rig->gmem, 256);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;

    gmem_destroy(rig->gmem);
    test_free(rig);
    return 0;
}

static void test_queues_that_cannot_be_are_refused(void **state)
{
    static const struct {
        uint16_t size;
        uint64_t desc, avail, used;
        int error;
    } wrong[] = {
        {0, DESC, AVAIL, USED, -EINVAL},
        {3, DESC, AVAIL, USED, -EINVAL},
        {512, DESC, AVAIL, USED, -EINVAL},
        {SIZE, DESC + 8, AVAIL, USED, -EINVAL},
        {SIZE, DESC, AVAIL + 1, USED, -EINVAL},
        {SIZE, DESC, AVAIL, USED + 2, -EINVAL},
        {SIZE, MEMORY - 16, AVAIL, USED, -EFAULT},
        {SIZE, DESC, MEMORY - 16, USED, -EFAULT},
        {SIZE, DESC, AVAIL, MEMORY - 64, -EFAULT},
        {SIZE, UINT64_MAX - 15, AVAIL, USED, -EFAULT},
        {SIZE, DESC, UINT64_MAX - 1, USED, -EFAULT},
        {SIZE, DESC, AVAIL, UINT64_MAX - 3, -EFAULT},
    };
    struct rig *rig = *state;

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        virtqueue_reset(&rig->vq);
        rig->vq.size = wrong[i].size;
        rig->vq.desc = wrong[i].desc;
        rig->vq.avail = wrong[i].avail;
        rig->vq.used = wrong[i].used;
        assert_int_equal(virtqueue_start(&rig->vq, true, true), wrong[i].error);
        assert_int_equal(pop(rig), 0);
    }
}

static void test_chains_come_in_order_across_the_wrap_of_the_index(void **state)
{
    struct rig *rig = *state;

    start(rig, false, false);
    for (unsigned i = 0; i < SIZE; i++) {
        put_desc(rig, DESC, i, DATA + i * 0x100, 16 + i, VIRTQ_DESC_F_WRITE, 0);
    }
    for (uint32_t i = 0; i < 70000; i++) {
        uint16_t head = (uint16_t)(i * 5 % SIZE);
        uint8_t used[8];

        assert_int_equal(pop(rig), 0);
        make_available(rig, (uint16_t)i, head);
        assert_int_equal(pop(rig), 1);
        assert_int_equal(rig->chain.head, head);
        assert_int_equal(rig->chain.in_count, 1);
        assert_int_equal(rig->segs[0].gpa, DATA + head * 0x100);
        assert_int_equal(virtqueue_push(&rig->vq, head, i), 0);
        assert_int_equal(virtqueue_publish(&rig->vq), 1);
        assert_int_equal(get16(rig, USED + 2), (uint16_t)(i + 1));
        assert_int_equal(gmem_read(rig->gmem, gpa(USED + 4 + i % SIZE * 8), used, 8), 0);
        assert_int_equal(load_le32(used), head);
        assert_int_equal(load_le32(used + 4), i);
    }
}

static void test_more_than_the_ring_holds_is_an_error(void **state)
{
    struct rig *rig = *state;

    for (uint32_t index = SIZE + 1; index <= UINT16_MAX; index += 321) {
        start(rig, false, false);
        put16(rig, AVAIL + 2, (uint16_t)index);
        assert_int_equal(pop(rig), -EBADMSG);
    }
    start(rig, false, false);
    make_available(rig, 0, SIZE);
    assert_int_equal(pop(rig), -EBADMSG); /* no such descriptor */
    start(rig, false, false);
    make_available(rig, 0, UINT16_MAX);
    assert_int_equal(pop(rig), -EBADMSG);
}

static void test_chains_that_break_the_rules_are_errors(void **state)
{
    static const struct {
        const char *what;
        uint64_t address;
        uint32_t len;
        uint16_t flags, next;
    } second[] = {
        {"a loop of one", DATA, 4, VIRTQ_DESC_F_NEXT, 1},
        {"a loop of two", DATA, 4, VIRTQ_DESC_F_NEXT, 0},
        {"a next one behind the table", DATA, 4, VIRTQ_DESC_F_NEXT, SIZE},
        {"the last index of all", DATA, 4, VIRTQ_DESC_F_NEXT, UINT16_MAX},
        {"a sum beyond 32 bits", DATA, UINT32_MAX, 0, 0},
        {"an indirect one not negotiated", TABLE, 16, VIRTQ_DESC_F_INDIRECT, 0},
    };
    struct rig *rig = *state;

    for (size_t i = 0; i < ARRAY_LEN(second); i++) {
        start(rig, false, false);
        put_desc(rig, DESC, 0, DATA, 16, VIRTQ_DESC_F_NEXT, 1);
        put_desc(rig, DESC, 1, second[i].address, second[i].len, second[i].flags, second[i].next);
        make_available(rig, 0, 0);
        if (pop(rig) != -EBADMSG) {
            fail_msg("%s was taken", second[i].what);
        }
    }
    start(rig, false, false); /* what the device reads comes first */
    put_desc(rig, DESC, 0, DATA, 16, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE, 1);
    put_desc(rig, DESC, 1, DATA, 16, 0, 0);
    make_available(rig, 0, 0);
    assert_int_equal(pop(rig), -EBADMSG);
}

static void test_indirect_tables_are_checked_as_rings_are(void **state)
{
    static const struct {
        const char *what;
        uint64_t address;
        uint32_t len;
        uint16_t flags;
    } wrong[] = {
        {"an empty table", TABLE, 0, VIRTQ_DESC_F_INDIRECT},
        {"half a descriptor", TABLE, 24, VIRTQ_DESC_F_INDIRECT},
        {"a next one too", TABLE, 16, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_NEXT},
        {"a table behind memory", MEMORY, 16, VIRTQ_DESC_F_INDIRECT},
        {"a table across the end of memory", MEMORY - 8, 16, VIRTQ_DESC_F_INDIRECT},
        {"a table at the end of the address space", UINT64_MAX - 7, 16, VIRTQ_DESC_F_INDIRECT},
        {"more than an index can name", TABLE, 0x10000 * 16, VIRTQ_DESC_F_INDIRECT},
    };
    struct rig *rig = *state;

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        start(rig, true, false);
        put_desc(rig, TABLE, 0, DATA, 4, 0, 0);
        put_desc(rig, DESC, 0, wrong[i].address, wrong[i].len, wrong[i].flags, 1);
        put_desc(rig, DESC, 1, DATA, 4, 0, 0);
        make_available(rig, 0, 0);
        if (pop(rig) != -EBADMSG) {
            fail_msg("%s was taken", wrong[i].what);
        }
    }
    for (unsigned kind = 0; kind < 2; kind++) { /* one in one, and a loop */
        start(rig, true, false);
        put_desc(rig, DESC, 0, TABLE, 2 * VIRTQ_DESC_BYTES, VIRTQ_DESC_F_INDIRECT, 0);
        put_desc(rig, TABLE, 0, DATA, 4, VIRTQ_DESC_F_NEXT, 1);
        put_desc(rig, TABLE, 1, TABLE, 16, kind == 0 ? VIRTQ_DESC_F_INDIRECT : VIRTQ_DESC_F_NEXT,
                 0);
        make_available(rig, 0, 0);
        assert_int_equal(pop(rig), -EBADMSG);
    }
    start(rig, true, false); /* and one that is right, behind one of the ring's */
    put_desc(rig, DESC, 2, DATA, 4, VIRTQ_DESC_F_NEXT, 5);
    put_desc(rig, DESC, 5, TABLE, 2 * VIRTQ_DESC_BYTES, VIRTQ_DESC_F_INDIRECT, 0);
    put_desc(rig, TABLE, 0, DATA + 8, 8, VIRTQ_DESC_F_NEXT, 1);
    put_desc(rig, TABLE, 1, DATA + 16, 16, VIRTQ_DESC_F_WRITE, 0);
    make_available(rig, 0, 2);
    assert_int_equal(pop(rig), 1);
    assert_int_equal(rig->chain.out_count, 2);
    assert_int_equal(rig->chain.out_bytes, 12);
    assert_int_equal(rig->chain.in_bytes, 16);
}

static void test_chains_longer_than_the_device_takes_are_errors(void **state)
{
    struct rig *rig = *state;

    for (unsigned count = SEGS; count <= SEGS + 1; count++) {
        start(rig, true, false);
        put_desc(rig, DESC, 0, TABLE, count * VIRTQ_DESC_BYTES, VIRTQ_DESC_F_INDIRECT, 0);
        for (unsigned i = 0; i < count; i++) {
            put_desc(rig, TABLE, i, DATA + i, 1, i + 1 < count ? VIRTQ_DESC_F_NEXT : 0,
                     (uint16_t)(i + 1));
        }
        make_available(rig, 0, 0);
        assert_int_equal(pop(rig), count <= SEGS ? 1 : -EBADMSG);
    }
}

static void test_what_changes_after_the_fetch_has_no_effect(void **state)
{
    struct rig *rig = *state;
    uint8_t got[8];

    start(rig, true, false);
    put_desc(rig, DESC, 0, TABLE, VIRTQ_DESC_BYTES, VIRTQ_DESC_F_INDIRECT, 0);
    put_desc(rig, TABLE, 0, DATA, 8, 0, 0);
    assert_int_equal(gmem_write(rig->gmem, gpa(DATA), "original", 8), 0);
    make_available(rig, 0, 0);
    assert_int_equal(pop(rig), 1);
    put_desc(rig, TABLE, 0, MEMORY, UINT32_MAX, VIRTQ_DESC_F_NEXT, 0);
    put_desc(rig, DESC, 0, DATA, 1, VIRTQ_DESC_F_WRITE, 0);
    put16(rig, AVAIL + 4, 7);
    assert_int_equal(rig->chain.out_bytes, 8);
    assert_int_equal(virtq_chain_read(rig->gmem, &rig->chain, 0, got, 8), 0);
    assert_memory_equal(got, "original", 8);
    assert_int_equal(virtq_chain_read(rig->gmem, &rig->chain, 1, got, 8), -EBADMSG);
    assert_int_equal(virtq_chain_write(rig->gmem, &rig->chain, 0, got, 1), -EBADMSG);
}

/* One descriptor in two guises, changed field by field while it is fetched. */
struct racer {
    struct rig *rig;
    atomic_bool stop;
};

static void *change_descriptors(void *opaque)
{
    struct racer *racer = opaque;

    while (!atomic_load(&racer->stop)) {
        put_desc(racer->rig, DESC, 0, DATA, 16, VIRTQ_DESC_F_NEXT, 1);
        put_desc(racer->rig, DESC, 0, MEMORY + 1, UINT32_MAX, VIRTQ_DESC_F_NEXT, 0);
        put_desc(racer->rig, DESC, 0, TABLE, 32, VIRTQ_DESC_F_INDIRECT, 9);
        put_desc(racer->rig, DESC, 0, DATA, 16, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, UINT16_MAX);
    }
    return NULL;
}

static void test_descriptors_that_change_meanwhile_stay_in_bounds(void **state)
{
    struct racer racer = {.rig = *state};
    struct rig *rig = racer.rig;
    pthread_t thread;
    unsigned taken = 0;
    unsigned refused = 0;

    start(rig, true, false);
    put_desc(rig, DESC, 0, DATA, 16, 0, 0);
    put_desc(rig, DESC, 1, DATA, 16, VIRTQ_DESC_F_WRITE, 0);
    put_desc(rig, TABLE, 0, DATA, 4, VIRTQ_DESC_F_NEXT, 1);
    put_desc(rig, TABLE, 1, DATA, 4, 0, 0);
    assert_int_equal(pthread_create(&thread, NULL, change_descriptors, &racer), 0);
    while (taken < 2000 || refused < 2000) {
        uint64_t out = 0;
        uint64_t in = 0;

        rig->vq.next_avail = 0;
        rig->vq.avail_seen = 0;
        make_available(rig, 0, 0);
        if (pop(rig) != 1) {
            refused++;
            continue;
        }
        taken++;
        assert_in_range(rig->chain.out_count + rig->chain.in_count, 1, SEGS);
        for (unsigned i = 0; i < rig->chain.out_count; i++) {
            out += rig->segs[i].len;
        }
        for (unsigned i = 0; i < rig->chain.in_count; i++) {
            in += rig->segs[rig->chain.out_count + i].len;
        }
        assert_int_equal(out, rig->chain.out_bytes);
        assert_int_equal(in, rig->chain.in_bytes);
    }
    atomic_store(&racer.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void push_one(struct rig *rig)
{
    assert_int_equal(virtqueue_push(&rig->vq, 0, 0), 0);
}

static void test_interrupts_are_sent_when_the_driver_asks(void **state)
{
    struct rig *rig = *state;

    start(rig, false, false);
    assert_int_equal(virtqueue_publish(&rig->vq), 0); /* nothing was pushed */
    push_one(rig);
    assert_int_equal(virtqueue_publish(&rig->vq), 1);
    put16(rig, AVAIL, VIRTQ_AVAIL_F_NO_INTERRUPT);
    push_one(rig);
    assert_int_equal(virtqueue_publish(&rig->vq), 0);

    start(rig, false, true);
    push_one(rig);
    assert_int_equal(virtqueue_publish(&rig->vq), 1); /* the first is always told */
    for (uint32_t i = 1; i < 70000; i++) {
        uint16_t event = (uint16_t)(i / 3 * 3 + 2); /* every third, across the wrap */

        put16(rig, AVAIL + 4 + 2 * SIZE, event);
        push_one(rig);
        assert_int_equal(virtqueue_publish(&rig->vq), (uint16_t)i == event);
    }
    put16(rig, AVAIL + 4 + 2 * SIZE, (uint16_t)(rig->vq.next_used + 1));
    for (unsigned i = 0; i < 3; i++) {
        push_one(rig);
    }
    assert_int_equal(virtqueue_publish(&rig->vq), 1); /* in the middle of a batch */
}

static void test_kicks_are_asked_for_behind_what_was_seen(void **state)
{
    struct rig *rig = *state;

    start(rig, false, true);
    put_desc(rig, DESC, 0, DATA, 16, 0, 0);
    for (uint32_t i = 0; i < 70000; i += 2) {
        make_available(rig, (uint16_t)i, 0);
        assert_int_equal(virtqueue_suppress_notify(&rig->vq), 0);
        assert_int_equal(pop(rig), 1);
        assert_int_equal(pop(rig), 0);
        virtqueue_unpop(&rig->vq, 1); /* not enough: one more is wanted */
        assert_int_equal(virtqueue_allow_notify(&rig->vq), 0);
        assert_int_equal(get16(rig, USED + 4 + 8 * SIZE), (uint16_t)(i + 1));
        make_available(rig, (uint16_t)(i + 1), 0); /* came before it was asked for */
        rig->vq.may_notify = false;
        assert_int_equal(virtqueue_allow_notify(&rig->vq), 1);
        assert_int_equal(pop(rig), 1);
        assert_int_equal(pop(rig), 1);
        assert_int_equal(pop(rig), 0);
    }
    start(rig, false, false);
    assert_int_equal(virtqueue_suppress_notify(&rig->vq), 0);
    assert_int_equal(get16(rig, USED), VIRTQ_USED_F_NO_NOTIFY);
    assert_int_equal(virtqueue_allow_notify(&rig->vq), 0);
    assert_int_equal(get16(rig, USED), 0);
}

#define QUEUE_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        QUEUE_TEST(test_queues_that_cannot_be_are_refused),
        QUEUE_TEST(test_chains_come_in_order_across_the_wrap_of_the_index),
        QUEUE_TEST(test_more_than_the_ring_holds_is_an_error),
        QUEUE_TEST(test_chains_that_break_the_rules_are_errors),
        QUEUE_TEST(test_indirect_tables_are_checked_as_rings_are),
        QUEUE_TEST(test_chains_longer_than_the_device_takes_are_errors),
        QUEUE_TEST(test_what_changes_after_the_fetch_has_no_effect),
        QUEUE_TEST(test_descriptors_that_change_meanwhile_stay_in_bounds),
        QUEUE_TEST(test_interrupts_are_sent_when_the_driver_asks),
        QUEUE_TEST(test_kicks_are_asked_for_behind_what_was_seen),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
