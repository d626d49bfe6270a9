/* The modern PCI transport (virtio 1.2 §4.1): registers in one BAR, MSI-X or INTx. */
#include "base/io.h"
#include "base/log.h"
#include "base/wire.h"
#include "bus/pci.h"
#include "virtio/virtio.h"

#include <errno.h>
#include <string.h>

#define PCI_VENDOR_VIRTIO 0x1af4u
#define PCI_DEVICE_BASE 0x1040u /* plus the device type, §4.1.2 */
#define PCI_REVISION 1u

/* BAR 0: four structures, a page each. */
#define REGS_BAR 0u
#define REGS_BAR_BYTES 0x4000u
#define MSIX_BAR 1u
#define COMMON_OFFSET 0x0000u
#define ISR_OFFSET 0x1000u
#define DEVICE_OFFSET 0x2000u
#define NOTIFY_OFFSET 0x3000u
#define PAGE_BYTES 0x1000u
#define NOTIFY_MULTIPLIER 4u

/* §4.1.4: cfg_type */
#define CAP_COMMON 1u
#define CAP_NOTIFY 2u
#define CAP_ISR 3u
#define CAP_DEVICE 4u
#define CAP_PCI 5u
#define CAP_BYTES 16u
#define CAP_LONG_BYTES 20u

/* Offsets in the common configuration structure, §4.1.4.3. */
enum common_reg {
    COMMON_DEVICE_FEATURE_SELECT = 0,
    COMMON_DEVICE_FEATURE = 4,
    COMMON_DRIVER_FEATURE_SELECT = 8,
    COMMON_DRIVER_FEATURE = 12,
    COMMON_CONFIG_VECTOR = 16,
    COMMON_NUM_QUEUES = 18,
    COMMON_STATUS = 20,
    COMMON_GENERATION = 21,
    COMMON_QUEUE_SELECT = 22,
    COMMON_QUEUE_SIZE = 24,
    COMMON_QUEUE_VECTOR = 26,
    COMMON_QUEUE_ENABLE = 28,
    COMMON_QUEUE_NOTIFY_OFF = 30,
    COMMON_QUEUE_DESC = 32,
    COMMON_QUEUE_DRIVER = 40,
    COMMON_QUEUE_DEVICE = 48,
    COMMON_BYTES = 56
};

#define ISR_QUEUE 1u
#define ISR_CONFIG 2u

static unsigned vector_count(const struct virtio_dev *dev)
{
    return dev->queue_count + 1;
}

void virtio_pci_reset_regs(struct virtio_dev *dev)
{
    dev->regs = (struct virtio_pci_regs){.config_vector = VIRTIO_NO_VECTOR};
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->queues[i].vector = VIRTIO_NO_VECTOR;
    }
}

static struct virtio_queue *selected_queue(struct virtio_dev *dev)
{
    return dev->regs.queue_select < dev->queue_count ? &dev->queues[dev->regs.queue_select] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
    return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

/* The common configuration as the driver sees it now. */
static void common_image(struct virtio_dev *dev, uint8_t image[COMMON_BYTES])
{
    const struct virtio_queue *queue = selected_queue(dev);
    const struct virtio_pci_regs *regs = &dev->regs;

    memset(image, 0, COMMON_BYTES);
    store_le32(image + COMMON_DEVICE_FEATURE_SELECT, regs->device_feature_select);
    store_le32(image + COMMON_DEVICE_FEATURE,
               feature_word(dev->host_features, regs->device_feature_select));
    store_le32(image + COMMON_DRIVER_FEATURE_SELECT, regs->driver_feature_select);
    store_le32(image + COMMON_DRIVER_FEATURE,
               feature_word(dev->driver_features, regs->driver_feature_select));
    store_le16(image + COMMON_CONFIG_VECTOR, regs->config_vector);
    store_le16(image + COMMON_NUM_QUEUES, (uint16_t)dev->queue_count);
    image[COMMON_STATUS] = virtio_dev_status(dev);
    image[COMMON_GENERATION] = dev->config_generation;
    store_le16(image + COMMON_QUEUE_SELECT, regs->queue_select);
    if (!queue) {
        return; /* size 0: no such queue */
    }
    store_le16(image + COMMON_QUEUE_SIZE, queue->vq.size);
    store_le16(image + COMMON_QUEUE_VECTOR, queue->vector);
    store_le16(image + COMMON_QUEUE_ENABLE, queue->vq.enabled);
    store_le16(image + COMMON_QUEUE_NOTIFY_OFF, (uint16_t)queue->index);
    store_le64(image + COMMON_QUEUE_DESC, queue->vq.desc);
    store_le64(image + COMMON_QUEUE_DRIVER, queue->vq.avail);
    store_le64(image + COMMON_QUEUE_DEVICE, queue->vq.used);
}

static void set_driver_feature(struct virtio_dev *dev, uint32_t value)
{
    uint32_t select = dev->regs.driver_feature_select;
    uint64_t features = dev->driver_features;

    if (select < 2) {
        features &= ~((uint64_t)UINT32_MAX << (32 * select));
        features |= (uint64_t)value << (32 * select);
        virtio_dev_set_driver_features(dev, features);
    }
}

/* A vector that does not exist reads back as "none", §4.1.5.1.2. */
static uint16_t valid_vector(const struct virtio_dev *dev, uint64_t value)
{
    return value < vector_count(dev) ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void set_half(uint64_t *address, bool is_high, uint64_t value)
{
    if (is_high) {
        *address = (*address & UINT32_MAX) | (value << 32);
    } else {
        *address = (*address & ~(uint64_t)UINT32_MAX) | (value & UINT32_MAX);
    }
}

/* Registers of the selected queue; frozen once it is enabled. */
static void write_queue_reg(struct virtio_dev *dev, unsigned offset, unsigned size, uint64_t value)
{
    struct virtio_queue *queue = selected_queue(dev);
    struct virtqueue *vq;

    if (!queue) {
        return;
    }
    if (offset == COMMON_QUEUE_VECTOR && size == 2) {
        queue->vector = valid_vector(dev, value);
        return;
    }
    vq = &queue->vq;
    if (vq->enabled || (dev->status & VIRTIO_STATUS_DRIVER_OK) != 0) {
        log_guest("%s: queue %u changed after it was enabled, ignoring", dev->ops->name,
                  queue->index);
        return;
    }
    if (offset == COMMON_QUEUE_SIZE && size == 2) {
        vq->size = (uint16_t)value;
    } else if (offset == COMMON_QUEUE_ENABLE && size == 2) {
        vq->enabled = value == 1;
    } else if (size == 4 && offset >= COMMON_QUEUE_DESC && offset < COMMON_BYTES) {
        uint64_t *address = offset < COMMON_QUEUE_DRIVER   ? &vq->desc
                            : offset < COMMON_QUEUE_DEVICE ? &vq->avail
                                                           : &vq->used;

        set_half(address, offset % 8 == 4, value);
    }
}

static void write_common(struct virtio_dev *dev, unsigned offset, unsigned size, uint64_t value)
{
    /* While a reset is under way there is nothing to configure (§2.4.1). */
    if (dev->is_resetting) {
        return;
    }
    if (offset == COMMON_DEVICE_FEATURE_SELECT && size == 4) {
        dev->regs.device_feature_select = (uint32_t)value;
    } else if (offset == COMMON_DRIVER_FEATURE_SELECT && size == 4) {
        dev->regs.driver_feature_select = (uint32_t)value;
    } else if (offset == COMMON_DRIVER_FEATURE && size == 4) {
        set_driver_feature(dev, (uint32_t)value);
    } else if (offset == COMMON_CONFIG_VECTOR && size == 2) {
        dev->regs.config_vector = valid_vector(dev, value);
    } else if (offset == COMMON_STATUS && size == 1) {
        virtio_dev_set_status(dev, (uint8_t)value);
    } else if (offset == COMMON_QUEUE_SELECT && size == 2) {
        dev->regs.queue_select = (uint16_t)value;
    } else if (offset >= COMMON_QUEUE_SIZE && offset % size == 0) {
        write_queue_reg(dev, offset, size, value);
    }
}

static uint64_t load_bytes(const uint8_t *from, unsigned size)
{
    uint8_t raw[8] = {0};

    memcpy(raw, from, size);
    return load_le64(raw);
}

static void write_device_config(struct virtio_dev *dev, unsigned offset, unsigned size,
                                uint64_t value)
{
    uint8_t raw[8];

    if (offset >= dev->config_len || size > dev->config_len - offset || !dev->ops->config_written) {
        return;
    }
    store_le64(raw, value);
    for (unsigned i = 0; i < size; i++) {
        if (dev->config_writable[offset + i] == 0) {
            return;
        }
    }
    memcpy(dev->config + offset, raw, size);
    dev->ops->config_written(dev, offset, size);
}

static uint64_t read_isr(struct virtio_dev *dev)
{
    uint8_t isr = dev->regs.isr;

    dev->regs.isr = 0;
    dev->intx_dirty = true;
    return isr;
}

/* Mutex held; size is 1, 2 or 4 and offset inside the BAR. */
static uint64_t read_locked(struct virtio_dev *dev, unsigned offset, unsigned size)
{
    uint8_t image[COMMON_BYTES];
    unsigned within = offset % PAGE_BYTES;

    switch (offset - within) {
    case COMMON_OFFSET:
        if (within < COMMON_BYTES && size <= COMMON_BYTES - within) {
            common_image(dev, image);
            return load_bytes(image + within, size);
        }
        return 0;
    case ISR_OFFSET:
        return within == 0 ? read_isr(dev) : 0;
    case DEVICE_OFFSET:
        if (within < dev->config_len && size <= dev->config_len - within) {
            return load_bytes(dev->config + within, size);
        }
        return 0;
    default:
        return 0;
    }
}

static void write_locked(struct virtio_dev *dev, unsigned offset, unsigned size, uint64_t value)
{
    unsigned within = offset % PAGE_BYTES;
    unsigned queue;

    switch (offset - within) {
    case COMMON_OFFSET:
        write_common(dev, within, size, value);
        break;
    case DEVICE_OFFSET:
        write_device_config(dev, within, size, value);
        break;
    case NOTIFY_OFFSET:
        queue = within / NOTIFY_MULTIPLIER;
        if (queue < dev->queue_count) {
            io_eventfd_signal(dev->queues[queue].fd);
        }
        break;
    default:
        break;
    }
}

static uint64_t regs_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct virtio_dev *dev = opaque;
    uint64_t value;

    virtio_dev_lock(dev);
    value = read_locked(dev, (unsigned)offset, size_bytes);
    virtio_dev_unlock(dev);
    return value;
}

static void regs_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct virtio_dev *dev = opaque;

    virtio_dev_lock(dev);
    write_locked(dev, (unsigned)offset, size_bytes, value);
    virtio_dev_unlock(dev);
}

static const struct bus_ops regs_ops = {
    .read = regs_read,
    .write = regs_write,
    .min_bytes = 1,
    .max_bytes = 4,
};

/* Where the window's fields stand, counted from the capability's bar field (§4.1.4, §4.1.4.9). */
#define WINDOW_CAP_OFFSET 4u
#define WINDOW_BAR 0u
#define WINDOW_OFFSET 4u
#define WINDOW_LENGTH 8u
#define WINDOW_DATA 12u
#define WINDOW_BYTES 16u

/* The access that the window describes is one the BAR would take. */
static bool window_is_valid(const struct virtio_pci_window *window)
{
    return window->bar == REGS_BAR && (window->len == 1 || window->len == 2 || window->len == 4) &&
           window->offset % window->len == 0 && window->offset < REGS_BAR_BYTES;
}

static uint64_t window_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct virtio_dev *dev = opaque;
    uint8_t image[WINDOW_BYTES] = {0};
    uint64_t value = 0;

    virtio_dev_lock(dev);
    image[WINDOW_BAR] = dev->window.bar;
    store_le32(image + WINDOW_OFFSET, dev->window.offset);
    store_le32(image + WINDOW_LENGTH, dev->window.len);
    if (offset == WINDOW_DATA && window_is_valid(&dev->window)) {
        store_le32(image + WINDOW_DATA,
                   (uint32_t)read_locked(dev, dev->window.offset, dev->window.len));
    }
    if (offset < WINDOW_BYTES && size_bytes <= WINDOW_BYTES - offset) {
        value = load_bytes(image + offset, size_bytes);
    }
    virtio_dev_unlock(dev);
    return value;
}

static void window_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct virtio_dev *dev = opaque;
    struct virtio_pci_window *window = &dev->window;

    virtio_dev_lock(dev);
    if (offset == WINDOW_BAR) {
        window->bar = (uint8_t)value;
    } else if (offset == WINDOW_OFFSET && size_bytes == 4) {
        window->offset = (uint32_t)value;
    } else if (offset == WINDOW_LENGTH && size_bytes == 4) {
        window->len = (uint32_t)value;
    } else if (offset == WINDOW_DATA && window_is_valid(window)) {
        write_locked(dev, window->offset, window->len, value);
    }
    virtio_dev_unlock(dev);
}

static const struct bus_ops window_ops = {
    .read = window_read,
    .write = window_write,
    .min_bytes = 1,
    .max_bytes = 4,
};

/* Body of a capability, without id and next. */
static int add_cap(struct virtio_dev *dev, uint8_t type, uint32_t offset, uint32_t len,
                   bool has_tail, uint32_t tail)
{
    uint8_t cap[CAP_LONG_BYTES] = {0};
    unsigned cap_len = has_tail ? CAP_LONG_BYTES : CAP_BYTES;

    cap[2] = (uint8_t)cap_len;
    cap[3] = type;
    cap[4] = type == CAP_PCI ? 0 : REGS_BAR;
    store_le32(cap + 8, offset);
    store_le32(cap + 12, len);
    store_le32(cap + 16, tail);
    return pci_dev_add_vendor_cap(dev->pci, cap + 2, cap_len - 2);
}

static int add_caps(struct virtio_dev *dev)
{
    int r = add_cap(dev, CAP_COMMON, COMMON_OFFSET, COMMON_BYTES, false, 0);

    if (r >= 0) {
        r = add_cap(dev, CAP_NOTIFY, NOTIFY_OFFSET, dev->queue_count * NOTIFY_MULTIPLIER, true,
                    NOTIFY_MULTIPLIER);
    }
    if (r >= 0) {
        r = add_cap(dev, CAP_ISR, ISR_OFFSET, 1, false, 0);
    }
    if (r >= 0 && dev->config_len > 0) {
        r = add_cap(dev, CAP_DEVICE, DEVICE_OFFSET, dev->config_len, false, 0);
    }
    if (r >= 0) {
        r = add_cap(dev, CAP_PCI, 0, 0, true, 0);
    }
    if (r < 0) {
        return r;
    }
    return pci_dev_hook_config(dev->pci, (unsigned)r + WINDOW_CAP_OFFSET, WINDOW_BYTES, &window_ops,
                               dev);
}

int virtio_pci_init(struct virtio_dev *dev, struct pci_host *host)
{
    const struct pci_dev_config config = {
        .name = dev->ops->name,
        .vendor_id = PCI_VENDOR_VIRTIO,
        .device_id = (uint16_t)(PCI_DEVICE_BASE + dev->ops->type),
        .subsystem_vendor_id = PCI_VENDOR_VIRTIO,
        .subsystem_id = (uint16_t)(PCI_DEVICE_BASE + dev->ops->type),
        .class_code = dev->ops->class_code,
        .subclass = dev->ops->subclass,
        .revision = PCI_REVISION,
        .bars[REGS_BAR] = {.size_bytes = REGS_BAR_BYTES, .ops = &regs_ops, .opaque = dev},
        .msix_vectors = (uint8_t)vector_count(dev),
        .msix_bar = MSIX_BAR,
        .interrupt_pin = 1,
    };
    int r = pci_dev_create(host, &config, &dev->pci);

    if (r == 0) {
        r = add_caps(dev);
    }
    for (unsigned i = 0; i < dev->queue_count && r >= 0; i++) {
        r = pci_dev_add_doorbell(dev->pci, REGS_BAR, NOTIFY_OFFSET + i * NOTIFY_MULTIPLIER, 2,
                                 dev->queues[i].fd);
    }
    return r < 0 ? r : 0;
}

void virtio_pci_done(struct virtio_dev *dev)
{
    pci_dev_destroy(dev->pci);
    dev->pci = NULL;
}

/* Bit per vector that the raised interrupts map to. */
static uint32_t take_vectors(struct virtio_dev *dev)
{
    uint32_t vectors = 0;

    for (unsigned i = 0; i < dev->queue_count; i++) {
        if ((dev->pending_queues & (1u << i)) && dev->queues[i].vector != VIRTIO_NO_VECTOR) {
            vectors |= 1u << dev->queues[i].vector;
        }
    }
    if (dev->pending_config && dev->regs.config_vector != VIRTIO_NO_VECTOR) {
        vectors |= 1u << dev->regs.config_vector;
    }
    dev->pending_queues = 0;
    dev->pending_config = false;
    return vectors;
}

/*
 * Makes the line follow the ISR. Two threads may do so at once with stale
 * levels; each looks again after it has set the line, so the last one is right.
 */
static void update_intx(struct virtio_dev *dev)
{
    bool level;
    bool now;

    mutex_lock(&dev->lock);
    dev->intx_dirty = false;
    now = dev->regs.isr != 0;
    do {
        level = now;
        mutex_unlock(&dev->lock);
        pci_set_intx(dev->pci, level);
        mutex_lock(&dev->lock);
        now = dev->regs.isr != 0;
    } while (now != level);
    mutex_unlock(&dev->lock);
}

void virtio_pci_send_interrupts(struct virtio_dev *dev)
{
    bool has_msix = pci_msix_enabled(dev->pci);
    bool is_dirty;
    uint32_t vectors = 0;

    mutex_lock(&dev->lock);
    if (has_msix) {
        vectors = take_vectors(dev);
    } else if (dev->pending_queues != 0 || dev->pending_config) {
        dev->regs.isr |=
            (dev->pending_queues ? ISR_QUEUE : 0) | (dev->pending_config ? ISR_CONFIG : 0);
        dev->pending_queues = 0;
        dev->pending_config = false;
        dev->intx_dirty = true;
    }
    is_dirty = dev->intx_dirty;
    mutex_unlock(&dev->lock);
    if (is_dirty) {
        update_intx(dev);
    }
    for (; vectors != 0; vectors &= vectors - 1) {
        pci_msix_notify(dev->pci, (unsigned)__builtin_ctz(vectors));
    }
}
