#include "virtio/virtqueue.h"

#include "base/wire.h"

#include <errno.h>
#include <stdatomic.h>

/* virtio 1.2 §2.7: alignment of descriptor table, available and used ring. */
#define DESC_ALIGN 16u
#define AVAIL_ALIGN 2u
#define USED_ALIGN 4u

/* Fields of the rings (§2.7.6, §2.7.8): flags, index, then the entries. */
#define RING_FLAGS 0u
#define RING_INDEX 2u
#define RING_ENTRIES 4u
#define USED_ENTRY_BYTES 8u

struct desc {
    uint64_t gpa;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

static uint64_t avail_entry(const struct virtqueue *vq, uint16_t index)
{
    return vq->avail + RING_ENTRIES + 2u * (uint64_t)(index & (vq->size - 1u));
}

static uint64_t used_event(const struct virtqueue *vq)
{
    return vq->avail + RING_ENTRIES + 2u * (uint64_t)vq->size;
}

static uint64_t avail_event(const struct virtqueue *vq)
{
    return vq->used + RING_ENTRIES + USED_ENTRY_BYTES * (uint64_t)vq->size;
}

void virtqueue_init(struct virtqueue *vq, struct gmem *gmem, uint16_t max_size)
{
    *vq = (struct virtqueue){.gmem = gmem, .max_size = max_size, .size = max_size};
}

void virtqueue_reset(struct virtqueue *vq)
{
    virtqueue_init(vq, vq->gmem, vq->max_size);
}

/* 0 when [address, address + len) is RAM. */
static int check_ram(struct virtqueue *vq, uint64_t address, uint64_t len)
{
    struct iovec iov[GMEM_MAX_REGIONS];
    int n = gmem_pin(vq->gmem, gpa(address), len, GMEM_DEVICE_READS, iov, ARRAY_LEN(iov));

    if (n < 0) {
        return -EFAULT;
    }
    gmem_unpin(vq->gmem, gpa(address), len, GMEM_DEVICE_READS);
    return 0;
}

int virtqueue_start(struct virtqueue *vq, bool has_indirect, bool has_event_idx)
{
    uint64_t size = vq->size;

    if (size == 0 || size > vq->max_size || (size & (size - 1)) != 0) {
        return -EINVAL;
    }
    if (vq->desc % DESC_ALIGN != 0 || vq->avail % AVAIL_ALIGN != 0 || vq->used % USED_ALIGN != 0) {
        return -EINVAL;
    }
    if (check_ram(vq, vq->desc, size * VIRTQ_DESC_BYTES) != 0 ||
        check_ram(vq, vq->avail, RING_ENTRIES + 2 * size + 2) != 0 ||
        check_ram(vq, vq->used, RING_ENTRIES + USED_ENTRY_BYTES * size + 2) != 0) {
        return -EFAULT;
    }
    vq->has_indirect = has_indirect;
    vq->has_event_idx = has_event_idx;
    vq->may_notify = true;
    vq->running = true;
    return 0;
}

static int read_desc(struct virtqueue *vq, uint64_t table, uint16_t index, struct desc *ret_desc)
{
    uint8_t raw[VIRTQ_DESC_BYTES];
    uint64_t address;

    if (!ck_add_u64(table, (uint64_t)index * VIRTQ_DESC_BYTES, &address) ||
        gmem_read(vq->gmem, gpa(address), raw, sizeof(raw)) != 0) {
        return -EBADMSG;
    }
    ret_desc->gpa = load_le64(raw);
    ret_desc->len = load_le32(raw + 8);
    ret_desc->flags = load_le16(raw + 12);
    ret_desc->next = load_le16(raw + 14);
    return 0;
}

static int add_segment(struct virtq_chain *chain, const struct desc *desc)
{
    bool is_in = (desc->flags & VIRTQ_DESC_F_WRITE) != 0;
    uint32_t *sum = is_in ? &chain->in_bytes : &chain->out_bytes;
    uint16_t count = (uint16_t)(chain->out_count + chain->in_count);

    /* §2.7.4.2: all readable before all writable; §2.7.5: less than 2^32 bytes. */
    if (count >= chain->max || (!is_in && chain->in_count > 0) ||
        __builtin_add_overflow(*sum, desc->len, sum)) {
        return -EBADMSG;
    }
    chain->segs[count] = (struct virtq_seg){.gpa = desc->gpa, .len = desc->len};
    if (is_in) {
        chain->in_count++;
    } else {
        chain->out_count++;
    }
    return 0;
}

/*
 * Walks one table from index on. *ret_indirect is left with the descriptor
 * that names an indirect table, if the chain ends in one.
 */
static int walk_table(struct virtqueue *vq, uint64_t table, uint32_t entries, uint16_t index,
                      bool may_indirect, struct virtq_chain *chain, struct desc *ret_indirect)
{
    struct desc desc;

    /* At most entries steps: a longer chain has a loop. */
    for (uint32_t step = 0; step < entries; step++) {
        if (index >= entries || read_desc(vq, table, index, &desc) != 0) {
            return -EBADMSG;
        }
        if (desc.flags & VIRTQ_DESC_F_INDIRECT) {
            /* §2.7.5.3.1: only where negotiated, never nested, never with a next one. */
            if (!may_indirect || (desc.flags & VIRTQ_DESC_F_NEXT) || desc.len == 0 ||
                desc.len % VIRTQ_DESC_BYTES != 0) {
                return -EBADMSG;
            }
            *ret_indirect = desc;
            return 0;
        }
        if (add_segment(chain, &desc) != 0) {
            return -EBADMSG;
        }
        if ((desc.flags & VIRTQ_DESC_F_NEXT) == 0) {
            return 0;
        }
        index = desc.next;
    }
    return -EBADMSG;
}

static int fetch_chain(struct virtqueue *vq, uint16_t head, struct virtq_chain *chain)
{
    struct desc indirect = {0};
    int r;

    chain->head = head;
    chain->out_count = 0;
    chain->in_count = 0;
    chain->out_bytes = 0;
    chain->in_bytes = 0;
    r = walk_table(vq, vq->desc, vq->size, head, vq->has_indirect, chain, &indirect);
    if (r == 0 && indirect.len != 0) {
        uint32_t entries = indirect.len / VIRTQ_DESC_BYTES;

        if (entries > UINT16_MAX) {
            return -EBADMSG;
        }
        r = walk_table(vq, indirect.gpa, entries, 0, false, chain, &indirect);
    }
    return r;
}

static int load_avail(struct virtqueue *vq)
{
    uint16_t index;

    if (gmem_load_le16(vq->gmem, gpa(vq->avail + RING_INDEX), &index) != 0 ||
        (uint16_t)(index - vq->next_avail) > vq->size) {
        return -EBADMSG;
    }
    vq->avail_seen = index;
    return 0;
}

int virtqueue_pop(struct virtqueue *vq, struct virtq_chain *chain)
{
    uint16_t head;
    int r;

    if (!vq->running) {
        return 0;
    }
    if (vq->avail_seen == vq->next_avail) {
        r = load_avail(vq);
        if (r < 0) {
            return r;
        }
        if (vq->avail_seen == vq->next_avail) {
            return 0;
        }
    }
    if (gmem_load_le16(vq->gmem, gpa(avail_entry(vq, vq->next_avail)), &head) != 0 ||
        head >= vq->size) {
        return -EBADMSG;
    }
    r = fetch_chain(vq, head, chain);
    if (r < 0) {
        return r;
    }
    vq->next_avail++;
    return 1;
}

void virtqueue_unpop(struct virtqueue *vq, uint16_t count)
{
    vq->next_avail = (uint16_t)(vq->next_avail - count);
}

int virtqueue_push(struct virtqueue *vq, uint16_t head, uint32_t len)
{
    uint8_t raw[USED_ENTRY_BYTES];
    uint64_t slot = vq->next_used & (vq->size - 1u);

    store_le32(raw, head);
    store_le32(raw + 4, len);
    if (gmem_write(vq->gmem, gpa(vq->used + RING_ENTRIES + slot * USED_ENTRY_BYTES), raw,
                   sizeof(raw)) != 0) {
        return -EBADMSG;
    }
    vq->next_used++;
    return 0;
}

/* §2.7.7.2: does going from old to now pass the index the driver named? */
static bool passes_event(uint16_t event, uint16_t now, uint16_t old)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

int virtqueue_publish(struct virtqueue *vq)
{
    uint16_t value;
    uint16_t old = vq->signalled;
    bool was_valid = vq->signalled_valid;

    if (vq->next_used == vq->published) {
        return 0;
    }
    if (gmem_store_le16(vq->gmem, gpa(vq->used + RING_INDEX), vq->next_used) != 0) {
        return -EBADMSG;
    }
    vq->published = vq->next_used;
    /* The index must be visible before we look whether the driver sleeps: it does both the
     * other way round, and one of us has to see the other. */
    atomic_thread_fence(memory_order_seq_cst);
    if (!vq->has_event_idx) {
        if (gmem_load_le16(vq->gmem, gpa(vq->avail + RING_FLAGS), &value) != 0) {
            return -EBADMSG;
        }
        return (value & VIRTQ_AVAIL_F_NO_INTERRUPT) == 0;
    }
    if (gmem_load_le16(vq->gmem, gpa(used_event(vq)), &value) != 0) {
        return -EBADMSG;
    }
    vq->signalled = vq->next_used;
    vq->signalled_valid = true;
    return !was_valid || passes_event(value, vq->next_used, old);
}

int virtqueue_suppress_notify(struct virtqueue *vq)
{
    if (!vq->running || !vq->may_notify) {
        return 0;
    }
    vq->may_notify = false;
    /* With an event index, leaving the index behind is enough. */
    if (!vq->has_event_idx &&
        gmem_store_le16(vq->gmem, gpa(vq->used + RING_FLAGS), VIRTQ_USED_F_NO_NOTIFY) != 0) {
        return -EBADMSG;
    }
    return 0;
}

int virtqueue_allow_notify(struct virtqueue *vq)
{
    /* Not next_avail: chains that were seen and put back bring no kick again. */
    uint16_t seen = vq->avail_seen;
    int r;

    if (!vq->running) {
        return 0;
    }
    vq->may_notify = true;
    if (vq->has_event_idx) {
        r = gmem_store_le16(vq->gmem, gpa(avail_event(vq)), seen);
    } else {
        r = gmem_store_le16(vq->gmem, gpa(vq->used + RING_FLAGS), 0);
    }
    if (r != 0) {
        return -EBADMSG;
    }
    /* As in virtqueue_publish, with the roles exchanged. */
    atomic_thread_fence(memory_order_seq_cst);
    r = load_avail(vq);
    if (r < 0) {
        return r;
    }
    return vq->avail_seen != seen;
}
