/*
 * The virtio devices: creation and what the machine does with them.
 *
 * Modern virtio 1.2 over PCI only. A device lives on a PCI host and works on
 * an event loop: its block image's or network's own, or the one given in
 * struct virtio_env. Creation and destruction belong to the thread that builds
 * the machine, while no vCPU and none of these loops runs. The guest cannot
 * end or block anything here; what it does wrong breaks the device
 * (DEVICE_NEEDS_RESET) until it resets it.
 */
#ifndef CORBEL_VIRTIO_VIRTIO_DEVICES_H
#define CORBEL_VIRTIO_VIRTIO_DEVICES_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct block;
struct gmem;
struct loop;
struct netdev;
struct pci_host;
struct virtio_dev;

struct virtio_env {
    struct pci_host *host;
    struct gmem *gmem;
    struct loop *loop; /* of io/0 */
};

/* Frees the device and its PCI function; not the backend. Accepts NULL. */
void virtio_dev_destroy(struct virtio_dev *dev);

/*
 * As freshly created, including its PCI function. Returns when no request is
 * in flight. vCPUs are stopped; any thread otherwise.
 */
void virtio_dev_reset(struct virtio_dev *dev);

/* The PCI slot it sits in. */
unsigned virtio_dev_slot(const struct virtio_dev *dev);

/* "virtio-blk" ...; static storage. */
const char *virtio_dev_name(const struct virtio_dev *dev);

#define VIRTIO_BLK_MAX_QUEUES 8u

struct virtio_blk_config {
    struct block *block; /* outlives the device; queue i works on its lane i modulo their number */
    const char *serial;  /* at most 20 bytes, may be NULL */
    unsigned queues;     /* 0: one; at most VIRTIO_BLK_MAX_QUEUES */
};

/* Block device over an image. -ENOMEM, -ENOSPC (no PCI slot). So for all below. */
int virtio_blk_create(const struct virtio_env *env, const struct virtio_blk_config *config,
                      struct virtio_dev **ret_dev) MUST_CHECK;
/* The image has another size now: tells the guest. Any thread. */
void virtio_blk_resized(struct virtio_dev *dev);

/* Network card; mac all zero: 52:54:00:12:34:56. */
int virtio_net_create(const struct virtio_env *env, struct netdev *netdev, const uint8_t mac[6],
                      struct virtio_dev **ret_dev) MUST_CHECK;

/*
 * Console with one port. write() takes bytes from the guest on env's loop and
 * returns how many it took (fewer: it is full, and calls
 * virtio_console_output_ready() when it has room again). may_input() tells
 * that the guest has room again after virtio_console_input() took fewer bytes
 * than given. Neither may call back into the console.
 */
struct virtio_console_ops {
    size_t (*write)(void *opaque, const uint8_t *data, size_t len);
    void (*may_input)(void *opaque);
    /* Of a named port: a program of the guest opened or closed it. Any thread, with the device's
     * mutex held; must not block nor call back. */
    void (*guest_open)(void *opaque, bool is_open);
};

int virtio_console_create(const struct virtio_env *env, const struct virtio_console_ops *ops,
                          void *opaque, struct virtio_dev **ret_dev) MUST_CHECK;
/*
 * No console, but one port that the guest knows by its name (at most 63 bytes): in Linux
 * /dev/virtio-ports/NAME. What is given to it while no program has it open is dropped.
 */
int virtio_console_create_port(const struct virtio_env *env, const char *name,
                               const struct virtio_console_ops *ops, void *opaque,
                               struct virtio_dev **ret_dev) MUST_CHECK;
/* Gives bytes to the guest; how many it took. The loop's thread. */
size_t virtio_console_input(struct virtio_dev *dev, const uint8_t *data, size_t len);
void virtio_console_output_ready(struct virtio_dev *dev);

/* Entropy from getrandom(). */
int virtio_rng_create(const struct virtio_env *env, struct virtio_dev **ret_dev) MUST_CHECK;

struct virtio_balloon_stats {
    uint64_t target_bytes;    /* asked for */
    uint64_t actual_bytes;    /* given by the guest */
    uint64_t discarded_bytes; /* given back to the host so far, by balloon and free pages */
    bool has_guest_stats;
    /* As the guest says. */
    uint64_t guest_free_bytes, guest_total_bytes, guest_available_bytes, guest_cache_bytes;
    uint64_t guest_swapped_in_bytes, guest_swapped_out_bytes;
    uint64_t guest_major_faults, guest_minor_faults;
};

/* The guest gave or took back memory: what it says the balloon holds now. Any thread, with the
 * device's mutex held; must not block nor call back. */
typedef void (*virtio_balloon_fn)(void *opaque, uint64_t actual_bytes);

/* on_actual may be NULL. */
int virtio_balloon_create(const struct virtio_env *env, virtio_balloon_fn on_actual, void *opaque,
                          struct virtio_dev **ret_dev) MUST_CHECK;
/* Bytes to take from the guest, rounded down to pages, at most guest memory. Any thread. */
void virtio_balloon_set_target(struct virtio_dev *dev, uint64_t bytes);
/* Asks the guest for all its free pages once. Any thread. */
void virtio_balloon_reclaim(struct virtio_dev *dev);
/* Asks the guest for new statistics, which takes it an interrupt. Any thread. */
void virtio_balloon_ask(struct virtio_dev *dev);
/* A copy; any thread. */
void virtio_balloon_stats(struct virtio_dev *dev, struct virtio_balloon_stats *ret_stats);

#define VIRTIO_MEM_BLOCK_BYTES (4ull << 20)
/* Linux uses of the region whole ones of these only. */
#define VIRTIO_MEM_REGION_STEP (128ull << 20)

/* The guest plugged or unplugged memory: how much of the region is in use now. As above. */
typedef void (*virtio_mem_fn)(void *opaque, uint64_t plugged_bytes);

/* Memory that comes and goes: the pluggable region of env's gmem (-EINVAL without), none of it
 * plugged. on_plugged may be NULL. */
int virtio_mem_create(const struct virtio_env *env, virtio_mem_fn on_plugged, void *opaque,
                      struct virtio_dev **ret_dev) MUST_CHECK;
/* How much shall be in use, rounded up to blocks, at most the region. The driver sees to it, as
 * far as it can. Any thread. */
void virtio_mem_set_requested(struct virtio_dev *dev, uint64_t bytes);
/* The guest begins anew with none of it. vCPUs are stopped. */
void virtio_mem_unplug_all(struct virtio_dev *dev);

/*
 * Stream sockets between host and guest. A host program connects to the unix
 * socket at path, writes "CONNECT PORT\n", reads "OK HOSTPORT\n" and is then
 * connected to that port of the guest. A guest's connection to host port N
 * goes to the unix socket PATH_N. -EADDRINUSE when path is a live socket (a
 * dead one is replaced), -EINVAL for the cid (3 ... 0xfffffffe) or a too long
 * path; err says.
 */
int virtio_vsock_create(const struct virtio_env *env, uint32_t guest_cid, const char *path,
                        struct err *err, struct virtio_dev **ret_dev) MUST_CHECK;

#endif
