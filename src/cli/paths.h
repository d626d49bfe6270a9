/*
 * Where things are: directories of the user, and the programs beside ours.
 */
#ifndef CORBEL_CLI_PATHS_H
#define CORBEL_CLI_PATHS_H

#include "base/error.h"
#include "base/path.h"
#include "cli/cli.h"

/* Finds everything in struct cli. -ENAMETOOLONG, or -ENOENT when HOME is not set. */
int paths_find(struct cli *ret_cli, struct err *err) MUST_CHECK;

#endif
