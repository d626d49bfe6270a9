/*
 * A small FAT volume with a few text files: what a guest's first boot reads
 * its instance's data from. Any thread; it writes one file.
 */
#ifndef CORBEL_STORAGE_SEED_H
#define CORBEL_STORAGE_SEED_H

#include "base/error.h"

#include <stddef.h>

#define SEED_MAX_FILES 8u
#define SEED_MAX_BYTES (900u << 10) /* of all files */

struct seed_file {
    const char *name; /* at most 26 letters, digits and '-' */
    const void *data;
    size_t len;
};

/*
 * Writes DIR/NAME anew, for its owner's eyes only: whole or, whatever ends
 * the process, as it was before. label: at most 11 capitals and digits. -E2BIG
 * for more than the limits.
 */
int seed_write(const char *dir, const char *name, const char *label, const struct seed_file files[],
               unsigned count, struct err *err) MUST_CHECK;

#endif
