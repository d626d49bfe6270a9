/*
 * Paths: formatting, making and removing; and names that become parts of them.
 *
 * Any thread. Errors: a negative errno, with the sentence in err.
 */
#ifndef CORBEL_BASE_PATH_H
#define CORBEL_BASE_PATH_H

#include "base/error.h"

#include <limits.h>
#include <stdbool.h>

struct sockaddr_un;

/* Formats a path into out[PATH_MAX]; -ENAMETOOLONG when it does not fit. */
int path_format(char *out, struct err *err, const char *fmt, ...) PRINTF_LIKE(3, 4) MUST_CHECK;

/* mkdir -p with mode 0700. */
int path_make_dirs(const char *path, struct err *err) MUST_CHECK;

/* As path_make_dirs, for a directory in /tmp: refuses one that others own or may write. */
int path_make_private(const char *path, struct err *err) MUST_CHECK;

/* Removes a file, or a directory with all in it, following no link. Absent is fine. */
int path_remove(const char *path, struct err *err) MUST_CHECK;

/* As path_remove, on a way out that has an error to tell already. */
void path_discard(const char *path);

bool path_exists(const char *path);

/*
 * Whether text may name an image or instance: a letter or digit, then letters,
 * digits, ".", "_" and "-", at most 40 in all. -EINVAL otherwise.
 */
int path_check_name(const char *text, struct err *err) MUST_CHECK;

/*
 * A directory of this user: base/corbel and leaf, where base is $variable when
 * that is an absolute path, else $HOME/fallback. -ENOENT when HOME is not set.
 */
int path_find_home(char *out, const char *variable, const char *fallback, const char *leaf,
                   struct err *err) MUST_CHECK;

/* Where this user's sockets belong: $XDG_RUNTIME_DIR/name, or /tmp/name-UID. */
int path_find_runtime(char *out, const char *name, struct err *err) MUST_CHECK;

/* The address of a unix socket; -ENAMETOOLONG when that has no room for the path. */
int path_to_unix(const char *path, struct sockaddr_un *ret_address) MUST_CHECK;

/* A program in the directory of this one. */
int path_find_beside(char *out, const char *name, struct err *err) MUST_CHECK;

#endif
