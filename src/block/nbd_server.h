/*
 * The serving side of NBD: one image as an export, for clients of all kinds.
 *
 * Fixed newstyle, structured replies, base:allocation; requests are carried
 * out one after the other per client, and clients side by side, each on a
 * thread of its own. All clients see one image, and a flush by one covers the
 * writes of all, so that several connections of one client are safe.
 *
 * A client is hostile: every length is bounded before it is used, a client
 * costs at most a buffer of 1 MiB, its greeting has to be over in time, and
 * one that takes no answers is dropped. No encryption and no names of users:
 * whoever may open the socket may use the image.
 */
#ifndef CORBEL_BLOCK_NBD_SERVER_H
#define CORBEL_BLOCK_NBD_SERVER_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

#define NBD_SERVER_MAX_NAME 255u

struct block_image;

struct nbd_served {
    struct block_image *image; /* open for writing unless read_only */
    const char *name;          /* of the export; clients may leave it out */
    bool read_only;
};

/* A client's two directions. Both return 0 when all of len went through, or a negative errno. */
struct nbd_client {
    int (*receive)(struct nbd_client *client, void *buf, size_t len);
    int (*send)(struct nbd_client *client, const void *buf, size_t len);
    /* The greeting is over; optional. */
    void (*greeted)(struct nbd_client *client);
};

/* Talks to a client until it leaves or misbehaves. Any thread; as many at a time as there are. */
void nbd_server_talk(const struct nbd_served *served, struct nbd_client *client);

/*
 * Takes clients of a listening socket until stop_fd becomes readable, then
 * ends theirs and returns; 0, or a negative errno when it could not begin or
 * go on. Both descriptors stay the caller's.
 */
int nbd_server_run(const struct nbd_served *served, int listener, int stop_fd, struct err *err)
    MUST_CHECK;

#endif
