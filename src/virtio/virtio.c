#include "virtio/virtio.h"

#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "bus/pci.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

/* Rounds of process() before other users of the loop get their turn. */
#define PROCESS_ROUNDS 4u

const char *virtio_dev_name(const struct virtio_dev *dev)
{
    return dev->ops->name;
}

unsigned virtio_dev_slot(const struct virtio_dev *dev)
{
    return pci_dev_slot(dev->pci);
}

void virtio_dev_lock(struct virtio_dev *dev)
{
    mutex_lock(&dev->lock);
}

void virtio_dev_unlock(struct virtio_dev *dev)
{
    bool has_pending = dev->pending_queues != 0 || dev->pending_config || dev->intx_dirty;

    mutex_unlock(&dev->lock);
    if (has_pending) {
        virtio_pci_send_interrupts(dev);
    }
}

bool virtio_dev_is_live(const struct virtio_dev *dev)
{
    return (dev->status & VIRTIO_STATUS_DRIVER_OK) != 0 &&
           (dev->status & VIRTIO_STATUS_NEEDS_RESET) == 0 && !dev->is_resetting;
}

bool virtio_dev_has(const struct virtio_dev *dev, uint64_t feature)
{
    return (dev->driver_features & feature) != 0;
}

void virtio_dev_config_changed(struct virtio_dev *dev)
{
    dev->config_generation++;
    if (dev->status & VIRTIO_STATUS_DRIVER_OK) {
        dev->pending_config = true;
    }
}

static void stop_queues(struct virtio_dev *dev)
{
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->queues[i].vq.running = false;
    }
}

void virtio_dev_break(struct virtio_dev *dev, const char *why)
{
    if (dev->status & VIRTIO_STATUS_NEEDS_RESET) {
        return;
    }
    log_guest("%s: %s; the device stops until the guest resets it", dev->ops->name, why);
    dev->status |= VIRTIO_STATUS_NEEDS_RESET;
    stop_queues(dev);
    if (dev->status & VIRTIO_STATUS_DRIVER_OK) {
        dev->pending_config = true;
    }
}

bool virtio_dev_pop(struct virtio_dev *dev, unsigned queue, struct virtq_chain *chain)
{
    int r = virtqueue_pop(&dev->queues[queue].vq, chain);

    if (r < 0) {
        virtio_dev_break(dev, "bad descriptor chain or ring index");
    }
    return r > 0;
}

void virtio_dev_push(struct virtio_dev *dev, unsigned queue, uint16_t head, uint32_t len)
{
    struct virtqueue *vq = &dev->queues[queue].vq;

    if (vq->running && virtqueue_push(vq, head, len) != 0) {
        virtio_dev_break(dev, "used ring outside memory");
    }
}

void virtio_dev_publish(struct virtio_dev *dev, unsigned queue)
{
    struct virtqueue *vq = &dev->queues[queue].vq;
    int r = vq->running ? virtqueue_publish(vq) : 0;

    if (r < 0) {
        virtio_dev_break(dev, "ring outside memory");
    } else if (r > 0) {
        dev->pending_queues |= 1u << queue;
    }
}

bool virtio_dev_want_kick(struct virtio_dev *dev, unsigned queue)
{
    int r = virtqueue_allow_notify(&dev->queues[queue].vq);

    if (r < 0) {
        virtio_dev_break(dev, "bad ring index");
    }
    return r > 0;
}

void virtio_dev_get_request(struct virtio_dev *dev)
{
    dev->in_flight++;
}

static void finish_reset(struct virtio_dev *dev)
{
    dev->is_resetting = false;
    dev->status = 0;
    dev->driver_features = 0;
    for (unsigned i = 0; i < dev->queue_count; i++) {
        virtqueue_reset(&dev->queues[i].vq);
    }
    virtio_pci_reset_regs(dev);
    dev->pending_queues = 0;
    dev->pending_config = false;
    dev->intx_dirty = true;
    dev->ops->reset(dev);
}

void virtio_dev_put_request(struct virtio_dev *dev)
{
    assert(dev->in_flight > 0);
    dev->in_flight--;
    if (dev->in_flight == 0 && dev->is_resetting) {
        finish_reset(dev);
    }
}

static void begin_reset(struct virtio_dev *dev)
{
    stop_queues(dev);
    if (dev->in_flight > 0) {
        dev->is_resetting = true;
    } else {
        finish_reset(dev);
    }
}

void virtio_dev_set_driver_features(struct virtio_dev *dev, uint64_t features)
{
    if ((dev->status & VIRTIO_STATUS_FEATURES_OK) == 0 && !dev->is_resetting) {
        dev->driver_features = features;
    }
}

static bool features_are_ok(const struct virtio_dev *dev)
{
    return (dev->driver_features & ~dev->host_features) == 0 &&
           virtio_dev_has(dev, VIRTIO_F_VERSION_1);
}

static void activate(struct virtio_dev *dev)
{
    for (unsigned i = 0; i < dev->queue_count; i++) {
        struct virtio_queue *queue = &dev->queues[i];

        if (!queue->vq.enabled) {
            continue;
        }
        if (virtqueue_start(&queue->vq, virtio_dev_has(dev, VIRTIO_F_INDIRECT_DESC),
                            virtio_dev_has(dev, VIRTIO_F_EVENT_IDX)) != 0) {
            virtio_dev_break(dev, "bad queue size or ring address");
            return;
        }
        /* What the driver made available before DRIVER_OK brings no kick. */
        io_eventfd_signal(queue->fd);
    }
    if (dev->ops->activate) {
        dev->ops->activate(dev);
    }
}

uint8_t virtio_dev_status(const struct virtio_dev *dev)
{
    return dev->status;
}

void virtio_dev_set_status(struct virtio_dev *dev, uint8_t status)
{
    uint8_t added = (uint8_t)(status & ~dev->status & ~VIRTIO_STATUS_NEEDS_RESET);

    if (dev->is_resetting) {
        return;
    }
    if (status == 0) {
        begin_reset(dev);
        return;
    }
    if ((added & VIRTIO_STATUS_FEATURES_OK) && !features_are_ok(dev)) {
        added &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    }
    if ((added & VIRTIO_STATUS_DRIVER_OK) &&
        ((dev->status | added) & VIRTIO_STATUS_FEATURES_OK) == 0) {
        added &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
        log_guest("%s: DRIVER_OK without FEATURES_OK, ignoring", dev->ops->name);
    }
    dev->status |= added;
    if (added & VIRTIO_STATUS_DRIVER_OK) {
        activate(dev);
    }
}

/* One turn at a queue; true when work is left. */
static bool process_locked(struct virtio_queue *queue)
{
    struct virtio_dev *dev = queue->dev;
    enum virtio_progress progress = VIRTIO_AGAIN;
    int r;

    if (!virtio_dev_is_live(dev) || !queue->vq.running) {
        return false;
    }
    if (virtqueue_suppress_notify(&queue->vq) < 0) {
        virtio_dev_break(dev, "ring outside memory");
        return false;
    }
    for (unsigned round = 0; round < PROCESS_ROUNDS; round++) {
        progress = dev->ops->process(dev, queue->index);
        if (progress == VIRTIO_QUIET || !queue->vq.running) {
            return false;
        }
        if (progress == VIRTIO_DONE) {
            r = virtqueue_allow_notify(&queue->vq);
            if (r < 0) {
                virtio_dev_break(dev, "bad ring index");
            }
            if (r <= 0) {
                return false;
            }
            if (virtqueue_suppress_notify(&queue->vq) < 0) {
                virtio_dev_break(dev, "ring outside memory");
                return false;
            }
        }
    }
    return true;
}

static void on_doorbell(void *opaque, uint32_t events)
{
    struct virtio_queue *queue = opaque;
    struct virtio_dev *dev = queue->dev;
    bool again;

    (void)events; /* only EPOLLIN is asked for */
    (void)io_eventfd_drain(queue->fd);
    virtio_dev_lock(dev);
    again = process_locked(queue);
    virtio_dev_unlock(dev);
    if (dev->ops->after_process) {
        dev->ops->after_process(dev, queue->index);
    }
    if (again) {
        io_eventfd_signal(queue->fd);
    }
}

static int init_events(struct virtio_dev *dev, const struct virtio_dev_config *config)
{
    int r = 0;

    for (unsigned i = 0; i < dev->queue_count && r >= 0; i++) {
        r = io_eventfd();
        if (r >= 0) {
            dev->queues[i].fd = r;
            r = loop_add_fd(config->queue_loops[i] ? config->queue_loops[i] : dev->loop,
                            dev->queues[i].fd, EPOLLIN, on_doorbell, &dev->queues[i],
                            &dev->queues[i].handler);
        }
    }
    return r;
}

int virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_config *config)
{
    int r;

    assert(config->queue_count <= VIRTIO_MAX_QUEUES);
    assert(config->config_len <= VIRTIO_CONFIG_BYTES);
    dev->ops = config->ops;
    dev->gmem = config->gmem;
    dev->loop = config->loop;
    dev->host_features =
        config->features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    dev->queue_count = config->queue_count;
    dev->config_len = config->config_len;
    mutex_init(&dev->lock, LOCK_RANK_DEVICE);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->queues[i] = (struct virtio_queue){.dev = dev, .index = i, .fd = -1};
        virtqueue_init(&dev->queues[i].vq, dev->gmem, config->queue_sizes[i]);
    }
    virtio_pci_reset_regs(dev);
    r = init_events(dev, config);
    if (r >= 0) {
        r = virtio_pci_init(dev, config->host);
    }
    if (r < 0) {
        virtio_dev_done(dev);
        return r;
    }
    return 0;
}

static void close_event(struct loop_fd *handler, int fd)
{
    loop_remove_fd(handler);
    if (fd >= 0) {
        (void)close(fd); /* an eventfd has nothing to lose */
    }
}

void virtio_dev_done(struct virtio_dev *dev)
{
    virtio_pci_done(dev);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        close_event(dev->queues[i].handler, dev->queues[i].fd);
    }
    mutex_done(&dev->lock);
}

void virtio_dev_destroy(struct virtio_dev *dev)
{
    if (dev) {
        dev->ops->destroy(dev);
    }
}

void virtio_dev_reset(struct virtio_dev *dev)
{
    virtio_dev_lock(dev);
    if (!dev->is_resetting) {
        begin_reset(dev);
    }
    virtio_dev_unlock(dev);
    if (dev->ops->drain) {
        dev->ops->drain(dev);
    }
    pci_dev_reset(dev->pci);
    virtio_dev_lock(dev);
    assert(!dev->is_resetting);
    dev->window = (struct virtio_pci_window){0};
    virtio_dev_unlock(dev);
}
