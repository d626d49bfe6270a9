/*
 * Where things are: directories of the user, and the programs beside ours.
 */
#ifndef CORBEL_CLI_PATHS_H
#define CORBEL_CLI_PATHS_H

#include "base/error.h"
#include "cli/cli.h"

#include <stdbool.h>

/* Finds everything in struct cli. -ENAMETOOLONG, or -ENOENT when HOME is not set. */
int paths_find(struct cli *ret_cli, struct err *err) MUST_CHECK;

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

#endif
