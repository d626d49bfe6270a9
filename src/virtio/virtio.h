/*
 * The core of every virtio device: features, status, reset, configuration
 * space, and the way from doorbell to queue to interrupt (virtio 1.2 §2, §3).
 *
 * Threads: vCPUs reach the registers (virtio_pci.c); the device's loop
 * processes queues. Both hold the device's mutex (LOCK_RANK_DEVICE), never
 * while blocking and never while calling PCI: interrupts that are raised under
 * the mutex leave in virtio_dev_unlock().
 *
 * Reset by the guest takes effect at once for rings and state; the status
 * register reads as before until the last request in flight has come back
 * (§2.4.2), so nobody waits.
 */
#ifndef CORBEL_VIRTIO_VIRTIO_H
#define CORBEL_VIRTIO_VIRTIO_H

#include "base/compiler.h"
#include "base/thread.h"
#include "virtio/virtio_devices.h"
#include "virtio/virtqueue.h"

#include <stdbool.h>
#include <stdint.h>

#define VIRTIO_MAX_QUEUES 8u
#define VIRTIO_CONFIG_BYTES 64u
#define VIRTIO_NO_VECTOR 0xffffu

/* §2.1 */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01u
#define VIRTIO_STATUS_DRIVER 0x02u
#define VIRTIO_STATUS_DRIVER_OK 0x04u
#define VIRTIO_STATUS_FEATURES_OK 0x08u
#define VIRTIO_STATUS_NEEDS_RESET 0x40u
#define VIRTIO_STATUS_FAILED 0x80u

/* §6 */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

/* §5 */
enum virtio_type {
    VIRTIO_TYPE_NET = 1,
    VIRTIO_TYPE_BLK = 2,
    VIRTIO_TYPE_CONSOLE = 3,
    VIRTIO_TYPE_RNG = 4,
    VIRTIO_TYPE_BALLOON = 5,
    VIRTIO_TYPE_VSOCK = 19,
    VIRTIO_TYPE_MEM = 24
};

/* What became of a call to process(). */
enum virtio_progress {
    VIRTIO_DONE,  /* the queue is empty: ask the driver to kick when it is not */
    VIRTIO_AGAIN, /* the work budget is used up: call again soon */
    VIRTIO_QUIET  /* needs no kick now; the device asks for one when it does */
};

/* All but destroy and after_process run with the mutex held. */
struct virtio_dev_ops {
    const char *name;
    enum virtio_type type;
    uint8_t class_code, subclass; /* PCI */
    /* The driver said DRIVER_OK; any thread. Optional. */
    void (*activate)(struct virtio_dev *dev);
    /* The driver kicked queue index, or nobody did; the queue's loop's thread. Bounded work. */
    enum virtio_progress (*process)(struct virtio_dev *dev, unsigned index);
    /* After a round of process() of queue index, without the mutex; its loop's thread. Optional. */
    void (*after_process)(struct virtio_dev *dev, unsigned index);
    /* The driver wrote these bytes of dev->config, all of them marked writable. Optional. */
    void (*config_written)(struct virtio_dev *dev, unsigned offset, unsigned len);
    /* Back to the state after creation; nothing is in flight. Any thread. */
    void (*reset)(struct virtio_dev *dev);
    /* Returns when nothing is in flight; without the mutex, any thread. Optional. */
    void (*drain)(struct virtio_dev *dev);
    /* Frees the device, which is detached already. */
    void (*destroy)(struct virtio_dev *dev);
};

struct virtio_queue {
    struct virtqueue vq;
    struct virtio_dev *dev;
    unsigned index;
    uint16_t vector;
    int fd; /* doorbell */
    struct loop_fd *handler;
};

/* Registers of the PCI transport (§4.1.4), reset with the device. */
struct virtio_pci_regs {
    uint32_t device_feature_select;
    uint32_t driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector;
    uint8_t isr;
};

/* The window of §4.1.4.9; part of PCI configuration space. */
struct virtio_pci_window {
    uint8_t bar;
    uint32_t offset;
    uint32_t len;
};

struct virtio_dev {
    const struct virtio_dev_ops *ops;
    struct gmem *gmem;
    struct loop *loop;
    struct pci_dev *pci;
    uint64_t host_features; /* fixed at creation */
    unsigned queue_count;   /* fixed at creation */
    uint16_t config_len;    /* fixed at creation */

    struct mutex lock; /* guards all below */
    uint8_t status;
    uint8_t config_generation;
    bool is_resetting;  /* status 0 was written, requests are in flight */
    unsigned in_flight; /* requests that hold guest memory */
    uint64_t driver_features;
    uint8_t config[VIRTIO_CONFIG_BYTES];
    uint8_t config_writable[VIRTIO_CONFIG_BYTES]; /* mask; fixed at creation */
    struct virtio_queue queues[VIRTIO_MAX_QUEUES];
    struct virtio_pci_regs regs;
    struct virtio_pci_window window;

    uint32_t pending_queues; /* interrupts to send at unlock: bit per queue */
    bool pending_config;
    bool intx_dirty; /* the INTx level may differ from the ISR */
};

struct virtio_dev_config {
    const struct virtio_dev_ops *ops;
    struct pci_host *host;
    struct gmem *gmem;
    struct loop *loop;
    uint64_t features; /* beyond those that the core adds */
    uint16_t config_len;
    unsigned queue_count;
    uint16_t queue_sizes[VIRTIO_MAX_QUEUES];
    struct loop *queue_loops[VIRTIO_MAX_QUEUES]; /* NULL: loop */
};

/*
 * For a device's create and destroy functions. init registers doorbells and
 * the PCI function; dev->config may be filled before the guest runs.
 */
int virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_config *config) MUST_CHECK;
void virtio_dev_done(struct virtio_dev *dev);

void virtio_dev_lock(struct virtio_dev *dev) ACQUIRE(dev->lock);
/* Releases the mutex and sends the interrupts raised under it. */
void virtio_dev_unlock(struct virtio_dev *dev) RELEASE(dev->lock);

/* All below: mutex held. */

/* DRIVER_OK, not broken, not being reset. */
bool virtio_dev_is_live(const struct virtio_dev *dev);
bool virtio_dev_has(const struct virtio_dev *dev, uint64_t feature);
/* The guest broke the rules: DEVICE_NEEDS_RESET (§2.1.2) and one rate-limited line. */
void virtio_dev_break(struct virtio_dev *dev, const char *why);
/* The device changed dev->config. */
void virtio_dev_config_changed(struct virtio_dev *dev);

/* The driver writes the status register (§2.1, §3.1). */
void virtio_dev_set_status(struct virtio_dev *dev, uint8_t status);
/* What the driver reads there. */
uint8_t virtio_dev_status(const struct virtio_dev *dev);
void virtio_dev_set_driver_features(struct virtio_dev *dev, uint64_t features);

/* False when the ring is empty or the device broke over it. */
bool virtio_dev_pop(struct virtio_dev *dev, unsigned queue, struct virtq_chain *chain) MUST_CHECK;
void virtio_dev_push(struct virtio_dev *dev, unsigned queue, uint16_t head, uint32_t len);
/* Publishes pushes and raises the interrupt if the driver wants it. */
void virtio_dev_publish(struct virtio_dev *dev, unsigned queue);
/* Asks for a kick of a queue left VIRTIO_QUIET; true when there is work already. */
bool virtio_dev_want_kick(struct virtio_dev *dev, unsigned queue) MUST_CHECK;

/* A request holds guest memory until it is put. */
void virtio_dev_get_request(struct virtio_dev *dev);
void virtio_dev_put_request(struct virtio_dev *dev);

/* virtio_pci.c */
int virtio_pci_init(struct virtio_dev *dev, struct pci_host *host) MUST_CHECK;
void virtio_pci_done(struct virtio_dev *dev);
void virtio_pci_reset_regs(struct virtio_dev *dev);
/* Sends what is pending. The mutex is taken, and never held while PCI is called. */
void virtio_pci_send_interrupts(struct virtio_dev *dev);

#endif
