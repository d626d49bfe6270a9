/*
 * Disks that an NBD server exports, as files below an image format.
 *
 * The address is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH.
 * libnbd speaks the protocol (fixed newstyle, structured replies); its handle
 * belongs to a thread of the file's ("io/nbd"), to which any thread hands
 * requests, so that as many are under way as were started. Whatever the server
 * says of block sizes, flush, FUA, trim and zeroes is honoured.
 *
 * When the server is lost, or silent for too long, what is under way fails
 * with -EIO, and later requests try to reach it again, once a second at most.
 * Two losses are for good, as nobody can tell what the disk holds: of a server
 * that was silent while it had writes, every request fails from then on; of
 * one that had acknowledged writes and not flushed them, every flush fails.
 * There is no lock between clients of a server.
 */
#ifndef CORBEL_BLOCK_NBD_H
#define CORBEL_BLOCK_NBD_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct block_file;

struct nbd_options {
    const char *address;
    bool read_only;
    unsigned patience_ms; /* how long the server may be silent; 0: a minute */
};

/* Whether a path is an address of a server's and no file's. */
bool nbd_is_address(const char *path);

/*
 * Connects. -EINVAL for an address that cannot be used, -EROFS when the server
 * only lets it be read, -ETIMEDOUT, -ECONNREFUSED, -ENOENT, ..., or -EIO when
 * the server speaks something else or does not have the export.
 */
int nbd_open(const struct nbd_options *options, struct err *err, struct block_file **ret_file)
    MUST_CHECK;

#define NBD_LISTED_NAME_BYTES 48u
#define NBD_MAX_LISTED 1024u

/* An export that a server lists. */
struct nbd_listed {
    char name[NBD_LISTED_NAME_BYTES]; /* may be "" */
    uint64_t size_bytes;
    bool is_read_only;
};

/*
 * What the server of an address without an export offers; *ret_list is
 * malloc'd, the caller's. Names that are too long or hold control characters,
 * and what is beyond NBD_MAX_LISTED, are left out with a warning. Errors are
 * those of nbd_open(), and -ENOTSUP for a server that keeps its list to itself.
 */
int nbd_list_exports(const char *server, struct err *err, struct nbd_listed **ret_list,
                     unsigned *ret_count) MUST_CHECK;

/* The address of a server's export, for opening it. -EINVAL when the server's has an export
 * already, or is none; -ENAMETOOLONG. */
int nbd_export_address(const char *server, const char *name, char *out, size_t size) MUST_CHECK;

#endif
