/*
 * The single file: every program, and what they need of files, in one executable (src/bundle).
 * Programs that are files of their own get NULL where one of these is asked for. Constant; any thread.
 */
#ifndef CORBEL_BASE_BUNDLE_H
#define CORBEL_BASE_BUNDLE_H

#include "base/error.h"

#include <stddef.h>

/*
 * How a program of the single file starts another one: the file that it runs itself, also when
 * that was moved, removed or replaced meanwhile. argv[0] says which program it is to be.
 */
#define BUNDLE_PROGRAM "/proc/self/exe"

struct bundle_file {
    const char *name; /* a relative path */
    const char *data, *end;
    unsigned mode;
};

struct bundle {
    const struct bundle_file *files;
    size_t file_count;
};

/* The file of that name, or NULL; bundle may be NULL. */
const struct bundle_file *bundle_find(const struct bundle *bundle, const char *name);

/* Writes every file whose name begins with prefix ("guests/busybox/") into dir, under the rest of
 * its name. After an error some may be there. */
int bundle_unpack(const struct bundle *bundle, const char *prefix, const char *dir, struct err *err)
    MUST_CHECK;

/* argv[0] for what is run from path: path, or, where that is BUNDLE_PROGRAM, the program's name. */
const char *bundle_argument(const char *path, const char *name);

#endif
