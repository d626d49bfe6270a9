/*
 * Split virtqueues (virtio 1.2 §2.7): taking chains from the driver, giving
 * them back, and keeping both sides from waking each other needlessly.
 *
 * A virtqueue belongs to a device and is guarded by the device's mutex. All it
 * knows of the guest is untrusted: every descriptor is fetched once into a
 * host-side chain, whose length, direction and sums are checked; a host
 * pointer into guest memory never leaves this module but as iovecs for the
 * kernel (virtq_chain_pin). Errors are -EBADMSG: the driver broke the rules,
 * and the device must stop.
 */
#ifndef CORBEL_VIRTIO_VIRTQUEUE_H
#define CORBEL_VIRTIO_VIRTQUEUE_H

#include "base/compiler.h"
#include "mem/gmem.h"

#include <stdbool.h>
#include <stdint.h>

#define VIRTQ_MAX_SIZE 1024u
#define VIRTQ_DESC_BYTES 16u

/* virtio 1.2 §2.7.5 */
#define VIRTQ_DESC_F_NEXT 1u
#define VIRTQ_DESC_F_WRITE 2u
#define VIRTQ_DESC_F_INDIRECT 4u
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1u
#define VIRTQ_USED_F_NO_NOTIFY 1u

struct virtq_seg {
    uint64_t gpa; /* not checked against RAM: the accessors below do */
    uint32_t len;
};

/* A chain as fetched: out_count device-readable segments, then in_count writable ones. */
struct virtq_chain {
    struct virtq_seg *segs; /* the caller's, room for max */
    uint16_t max;
    uint16_t head;
    uint16_t out_count;
    uint16_t in_count;
    uint32_t out_bytes;
    uint32_t in_bytes;
};

struct virtqueue {
    struct gmem *gmem;
    uint16_t max_size; /* fixed at creation */

    /* As the driver sets them; frozen once enabled (§4.1.4.3.2). */
    uint16_t size;
    bool enabled;
    uint64_t desc, avail, used;

    bool running; /* validated, may be popped */
    bool has_event_idx;
    bool has_indirect;
    bool may_notify;      /* the driver has been asked to kick */
    bool signalled_valid; /* signalled holds the index of the last decision */
    uint16_t next_avail;  /* next entry of the available ring to take */
    uint16_t avail_seen;  /* the driver's index when last loaded */
    uint16_t next_used;   /* our index, including what is not published yet */
    uint16_t published;   /* our index as the driver sees it */
    uint16_t signalled;
};

void virtqueue_init(struct virtqueue *vq, struct gmem *gmem, uint16_t max_size);

/* As freshly initialized. */
void virtqueue_reset(struct virtqueue *vq);

/*
 * Starts an enabled queue. -EINVAL when size is no power of two up to the
 * maximum or an address is misaligned; -EFAULT when a ring lies outside RAM.
 */
int virtqueue_start(struct virtqueue *vq, bool has_indirect, bool has_event_idx) MUST_CHECK;

/* 1 and a chain, 0 when the ring is empty, -EBADMSG. chain->segs and max are set by the caller. */
int virtqueue_pop(struct virtqueue *vq, struct virtq_chain *chain) MUST_CHECK;

/* Takes back the last count pops, none of which was pushed. */
void virtqueue_unpop(struct virtqueue *vq, uint16_t count);

/* Gives a chain back, len bytes of it written; the driver sees it after virtqueue_publish(). */
int virtqueue_push(struct virtqueue *vq, uint16_t head, uint32_t len) MUST_CHECK;

/* Publishes all pushes. 1 when the driver wants an interrupt, 0 when not, -EBADMSG. */
int virtqueue_publish(struct virtqueue *vq) MUST_CHECK;

/* Asks the driver not to kick. */
int virtqueue_suppress_notify(struct virtqueue *vq) MUST_CHECK;
/*
 * Asks it to kick at the next chain after those that virtqueue_pop() has seen.
 * 1 when more was made available meanwhile: process it, no kick comes.
 */
int virtqueue_allow_notify(struct virtqueue *vq) MUST_CHECK;

/*
 * Copies from the device-readable bytes, or to the writable bytes, of a chain
 * at an offset. -EBADMSG when the chain is too short or leaves RAM.
 */
int virtq_chain_read(struct gmem *gmem, const struct virtq_chain *chain, uint32_t offset, void *buf,
                     uint32_t len) MUST_CHECK;
int virtq_chain_write(struct gmem *gmem, const struct virtq_chain *chain, uint32_t offset,
                      const void *buf, uint32_t len) MUST_CHECK;

/*
 * Describes len bytes at offset of one direction for kernel I/O: the number of
 * iovecs, or -EBADMSG (too short, outside RAM, more than max).
 */
int virtq_chain_pin(struct gmem *gmem, const struct virtq_chain *chain, enum gmem_dir dir,
                    uint32_t offset, uint32_t len, struct iovec *iov, unsigned max) MUST_CHECK;
void virtq_chain_unpin(struct gmem *gmem, const struct virtq_chain *chain, enum gmem_dir dir,
                       uint32_t offset, uint32_t len);

#endif
