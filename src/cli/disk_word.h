/*
 * What the verbs for disks in files have in common: the words that name a
 * disk, and the line that tells how far the work is.
 */
#ifndef CORBEL_CLI_DISK_WORD_H
#define CORBEL_CLI_DISK_WORD_H

#include "block/image.h"
#include "cli/cli.h"
#include "storage/disk.h"

#include <time.h>

/* A disk by the options' format and directory of backing images. The caller closes it. */
int disk_word_open(const struct disk_options *options, const char *path, bool read_only,
                   struct err *err, struct block_image **ret_image) MUST_CHECK;

/* NULL leaves *ret_prealloc alone. -EINVAL. */
int disk_parse_prealloc(const char *word, enum block_prealloc *ret_prealloc, struct err *err)
    MUST_CHECK;

/* NULL where nobody looks; its opaque is a time_t of 0, which the end takes. */
disk_progress_fn disk_choose_progress(void);
void disk_end_progress(time_t last);

#endif
