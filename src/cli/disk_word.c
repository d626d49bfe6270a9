#include "cli/disk_word.h"

#include "cli/disk_state.h"
#include "storage/disk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* On a terminal, a line that is written over at most once a second. */
static void show_progress(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    time_t *last = opaque;
    time_t now = time(NULL);

    if (now != *last) {
        *last = now;
        (void)fprintf(stderr, "\r%3u %%", (unsigned)(done_bytes * 100 / total_bytes));
    }
}

disk_progress_fn disk_choose_progress(void)
{
    return isatty(STDERR_FILENO) == 1 ? show_progress : NULL;
}

void disk_end_progress(time_t last)
{
    if (last != 0) {
        (void)fputs("\r      \r", stderr);
    }
}

int disk_word_open(const struct disk_options *options, const char *path, bool read_only,
                   struct err *err, struct block_image **ret_image)
{
    const struct disk_ref ref = {
        .path = path,
        .format = options->format,
        .backing_dir = options->backing_dir,
        .read_only = read_only,
    };

    if (read_only) {
        disk_warn_when_stale(path);
    }
    return disk_open(&ref, err, ret_image);
}

int disk_parse_prealloc(const char *word, enum block_prealloc *ret_prealloc, struct err *err)
{
    static const char *const words[] = {
        [BLOCK_PREALLOC_OFF] = "off",
        [BLOCK_PREALLOC_METADATA] = "metadata",
        [BLOCK_PREALLOC_FALLOC] = "falloc",
        [BLOCK_PREALLOC_FULL] = "full",
    };

    for (size_t i = 0; word != NULL && i < ARRAY_LEN(words); i++) {
        if (strcmp(word, words[i]) == 0) {
            *ret_prealloc = (enum block_prealloc)i;
            return 0;
        }
    }
    return word == NULL
               ? 0
               : err_set(err, -EINVAL, "--preallocation takes off, metadata, falloc or full");
}
