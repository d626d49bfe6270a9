/*
 * Files from HTTP and HTTPS servers into a cache directory.
 *
 * A file whose checksum is known is kept under that checksum and fetched once,
 * from wherever; what an interrupted fetch left is gone on with, also by
 * another process and after a crash. Without a checksum nothing that a server
 * said earlier is trusted, so such a fetch begins anew. One process at a time
 * fetches one file; others wait for it and find it done.
 *
 * Synchronous, one thread. No signal handlers, no globals of ours.
 */
#ifndef CORBEL_STORAGE_FETCH_H
#define CORBEL_STORAGE_FETCH_H

#include "base/error.h"
#include "storage/digest.h"

#include <limits.h>
#include <stdint.h>

struct fetch_request {
    const char *url;
    const char *cache_dir;       /* exists */
    const struct digest *digest; /* what the file must be; NULL: whatever comes */
    uint64_t max_bytes;
    /* May be NULL. total_bytes is 0 while it is not known. */
    void (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);
    void *opaque;
};

/*
 * The file's path into ret_path[PATH_MAX]. -EBADMSG when what came is not what
 * the checksum says (nothing of it is kept), -EFBIG when it is longer than
 * allowed, -ENOSPC when the disk is full (what came is kept and gone on with),
 * -ENOENT when the server has no such file, -EINVAL for a URL that is no HTTP,
 * -EIO for the rest; err names the URL and the reason.
 */
int fetch_file(const struct fetch_request *request, char *ret_path, struct err *err) MUST_CHECK;

/* A small file (at most max_bytes) into malloc'd *ret_text, NUL-terminated. */
int fetch_to_text(const char *url, size_t max_bytes, char **ret_text, struct err *err) MUST_CHECK;

#endif
