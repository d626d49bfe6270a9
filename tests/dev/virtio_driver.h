/*
 * A tiny virtio driver for tests: a bus, guest memory and a PCI host without a
 * CPU, and what a guest would do with them. It follows the specification, and
 * lets a test break it: rings and descriptors can be written directly.
 */
#ifndef CORBEL_TESTS_DEV_VIRTIO_DRIVER_H
#define CORBEL_TESTS_DEV_VIRTIO_DRIVER_H

#include "base/compiler.h"
#include "base/loop.h"
#include "bus/bus.h"
#include "bus/pci.h"
#include "mem/gmem.h"
#include "virtio/virtio_devices.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define TEST_RAM_BYTES (32ull << 20)
#define TEST_PLUGGABLE_BYTES (64ull << 20)
#define TEST_DATA 0x400000ull /* free for tests from here on */
#define TEST_MAX_QUEUES 8
#define TEST_VECTORS 16

#define F_INDIRECT (1ull << 28)
#define F_EVENT_IDX (1ull << 29)
#define F_VERSION_1 (1ull << 32)

enum { STATUS_ACK = 1, STATUS_DRIVER = 2, STATUS_OK = 4, STATUS_FEATURES = 8, STATUS_BROKEN = 64 };
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

struct test_machine {
    struct bus *bus;
    struct pci_host *host;
    struct gmem *gmem;
    struct loop *loop; /* runs on a thread of its own once started */
    pthread_t thread;
    bool has_thread;
    struct virtio_env env;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned msi_count[TEST_VECTORS]; /* by message data */
    unsigned line_raised;             /* rising edges of any INTx line */
    bool line;
    bool is_hostile; /* messages to anywhere are no failure */
};

struct test_seg {
    uint64_t gpa;
    uint32_t len;
    bool is_write;
};

struct test_queue {
    uint16_t size;
    uint64_t desc, avail, used;
    uint16_t next_desc;
    uint16_t avail_idx;
    uint16_t used_seen;
};

struct test_driver {
    struct test_machine *machine;
    unsigned slot;
    uint64_t common, notify, isr, device; /* addresses on the bus */
    unsigned window;                      /* configuration offset of the PCI window capability */
    uint32_t notify_multiplier;
    uint64_t features; /* negotiated */
    bool has_msix;
    unsigned queue_count;
    struct test_queue queues[TEST_MAX_QUEUES];
};

void test_machine_init(struct test_machine *machine);
void test_machine_start_loop(struct test_machine *machine);
void test_machine_stop_loop(struct test_machine *machine);
void test_machine_done(struct test_machine *machine);

uint32_t test_config_read(struct test_machine *machine, unsigned slot, unsigned offset,
                          unsigned size);
void test_config_write(struct test_machine *machine, unsigned slot, unsigned offset, unsigned size,
                       uint32_t value);
uint64_t test_mmio_read(struct test_machine *machine, uint64_t address, unsigned size);
void test_mmio_write(struct test_machine *machine, uint64_t address, unsigned size, uint64_t value);

/* Finds the function's capabilities. */
void test_driver_probe(struct test_machine *machine, unsigned slot, struct test_driver *driver);
/* Writes 0 to the status and reads until it is 0. */
void test_driver_reset(struct test_driver *driver);
/* Reset to FEATURES_OK with the wanted features that are offered (VERSION_1 always). */
void test_driver_negotiate(struct test_driver *driver, uint64_t wanted);
/* Queues of the given size (0: as offered), MSI-X or not; not DRIVER_OK yet. */
void test_driver_setup_queues(struct test_driver *driver, uint16_t size, bool use_msix);
void test_driver_ok(struct test_driver *driver);
/* All of it. */
void test_driver_start(struct test_machine *machine, unsigned slot, uint64_t wanted,
                       struct test_driver *driver);
uint8_t test_driver_status(struct test_driver *driver);
/* Blocks until the device says DEVICE_NEEDS_RESET (a configuration interrupt says when). */
void test_driver_wait_broken(struct test_driver *driver);

/* Writes one descriptor. */
void test_desc(struct test_driver *driver, uint64_t table, uint16_t index, uint64_t gpa,
               uint32_t len, uint16_t flags, uint16_t next);
/* Builds a chain and returns its head; does not make it available. */
uint16_t test_chain(struct test_driver *driver, unsigned queue, const struct test_seg *segs,
                    unsigned count);
/* The same by an indirect table at table_gpa. */
uint16_t test_chain_indirect(struct test_driver *driver, unsigned queue, uint64_t table_gpa,
                             const struct test_seg *segs, unsigned count);
void test_make_available(struct test_driver *driver, unsigned queue, uint16_t head);
void test_kick(struct test_driver *driver, unsigned queue);
/* Blocks until the next used element. */
uint32_t test_wait_used(struct test_driver *driver, unsigned queue, uint16_t *ret_head);
bool test_has_used(struct test_driver *driver, unsigned queue);
/* Chain, available, kick, wait: the length written by the device. */
uint32_t test_transfer(struct test_driver *driver, unsigned queue, const struct test_seg *segs,
                       unsigned count);

void test_write(struct test_machine *machine, uint64_t address, const void *data, size_t len);
void test_read(struct test_machine *machine, uint64_t address, void *data, size_t len);

#endif
