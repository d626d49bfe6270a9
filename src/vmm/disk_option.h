/*
 * A disk in text: "FILE[,OPTION]...", as --disk and the command disk-add take
 * it.
 *
 * Options are cut off from the end as far as they are known, so that the
 * file's name may hold commas. Main thread.
 */
#ifndef CORBEL_VMM_DISK_OPTION_H
#define CORBEL_VMM_DISK_OPTION_H

#include "base/compiler.h"
#include "base/error.h"

struct machine_disk;

/*
 * Reads text, which it changes and *ret_disk points into. -EINVAL, and a
 * sentence that begins with place.
 */
int disk_option_parse(char *text, const char *place, struct err *err, struct machine_disk *ret_disk)
    MUST_CHECK;

/* For the help. */
#define DISK_OPTION_VALUE "FILE[,ro][,OPTION=VALUE]..."

#endif
