/*
 * Where a console's bytes go: descriptors, or whoever connects to a socket.
 *
 * One loop's thread reads and writes; chardev_write() and chardev_input_ready()
 * are for any thread and never block: output waits in a bounded ring. While a
 * peer is there but does not read, the ring fills and chardev_room() becomes 0;
 * after CHARDEV_STALL_NS without progress output is dropped and counted until
 * the peer reads again. While nobody is there, the ring keeps the latest
 * output for the next peer.
 */
#ifndef CORBEL_DEV_CHARDEV_H
#define CORBEL_DEV_CHARDEV_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHARDEV_RING_BYTES 65536u
#define CHARDEV_STALL_NS 2000000000ull

struct chardev;
struct console_log;
struct loop;

struct chardev_config {
    int in_fd;     /* -1: none */
    int out_fd;    /* -1: none; may be in_fd */
    int listen_fd; /* -1, or a listening stream socket (in_fd and out_fd are -1 then) */
    bool keep_fds; /* stdio: never closed, flags never changed */
};

/* The device's side; called on the loop's thread, with no lock held. */
struct chardev_frontend_ops {
    /* Takes input, returns how many bytes; after fewer than len it calls chardev_input_ready(). */
    size_t (*input)(void *opaque, const uint8_t *data, size_t len);
    /* chardev_room() was 0 and is no longer. */
    void (*output_ready)(void *opaque);
};

/* Takes the descriptors over on success. -ENOMEM, -EMFILE, -EPERM for a strange descriptor. */
int chardev_create(struct loop *loop, const struct chardev_config *config,
                   struct chardev **ret_chardev) MUST_CHECK;
/* The loop is stopped; writes out what can be written at once. Accepts NULL. */
void chardev_destroy(struct chardev *chardev);

/* Before the loop runs. */
void chardev_set_frontend(struct chardev *chardev, const struct chardev_frontend_ops *ops,
                          void *opaque);

/* Keeps what the device writes, whoever else reads it; takes the log over. Before the loop runs. */
void chardev_set_log(struct chardev *chardev, struct console_log *log);

size_t chardev_room(struct chardev *chardev);
/* Returns how many bytes it took. */
size_t chardev_write(struct chardev *chardev, const uint8_t *data, size_t len);
void chardev_input_ready(struct chardev *chardev);

struct chardev_stats {
    uint64_t in_bytes;
    uint64_t out_bytes;
    uint64_t dropped_bytes;
};

void chardev_stats(struct chardev *chardev, struct chardev_stats *ret_stats);

#endif
