/*
 * A disk as a chain of files in one directory: a head that is written, on
 * layers that are not, each named by the one above. A layer's name is its own
 * wherever it is linked, so any directory may have any part of a chain from
 * some layer down; a layer is gone when the last directory lets it go. Whoever
 * uses these calls keeps the head's name, and gives each new one a name that
 * was never used.
 *
 * Synchronous, any thread; nobody else works on the directory meanwhile.
 * Errors: a negative errno, with the sentence in err.
 */
#ifndef CORBEL_STORAGE_LAYERS_H
#define CORBEL_STORAGE_LAYERS_H

#include "base/error.h"
#include "block/block.h"

#define LAYERS_MAX 60u /* of a chain */
#define LAYERS_NAME_BYTES 64u

struct layers {
    unsigned count; /* from the top down */
    char names[LAYERS_MAX][LAYERS_NAME_BYTES];
    uint64_t size_bytes; /* of the top, as a disk */
};

/* The chain from `top` down. -EBUSY when `top` is being written, -EMLINK for too long a chain,
 * -EINVAL for one that leaves the directory. */
int layers_list(const char *dir, const char *top, struct layers *ret_layers, struct err *err)
    MUST_CHECK;

/* A new, empty head on `below`, of its length or longer: whole or not at all. One that is there
 * already stays. */
int layers_make_head(const char *dir, const char *head, const char *below, uint64_t size_bytes,
                     struct err *err) MUST_CHECK;

/* Links the whole chain from `top` down into another directory; what is there already stays. */
int layers_link(const char *from, const char *top, const char *to, struct err *err) MUST_CHECK;

/* Takes away layers that `head` does not stand on. */
int layers_tidy(const char *dir, const char *head, struct err *err) MUST_CHECK;

/*
 * Puts the head and the layers that no other directory has into one, which has
 * the head's name; then fewer stand on each other. May be repeated after it was
 * interrupted; until it is done the disk reads as before.
 */
int layers_merge(const char *dir, const char *head, struct err *err) MUST_CHECK;

#endif
