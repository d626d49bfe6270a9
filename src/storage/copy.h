/*
 * Files from an image's directory into an instance's. Each returns 0 or a
 * negative errno with the sentence in err, and leaves no half copy.
 */
#ifndef CORBEL_STORAGE_COPY_H
#define CORBEL_STORAGE_COPY_H

#include "base/error.h"

/* A hard link, or a copy where the file systems differ. A file absent in `from` is fine. */
int copy_link_file(const char *from, const char *to, const char *name, struct err *err) MUST_CHECK;

/* A symbolic link. */
int copy_symlink_file(const char *from, const char *to, const char *name, struct err *err)
    MUST_CHECK;

/* A copy of its own: shared blocks where the file system can, else holes stay holes. */
int copy_sparse_file(const char *from, const char *to, const char *name, struct err *err)
    MUST_CHECK;

#endif
