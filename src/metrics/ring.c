#include "base/io.h"
#include "base/wire.h"
#include "metrics/metrics_int.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define MAGIC "corbelH1"
#define LINE_BYTES 64u
#define CHUNK_LINES 512u

struct header {
    char magic[8];
    le32_t period_s, lines;
    uint8_t unused[LINE_BYTES - 16];
};

struct raw_line {
    le32_t period;
    le32_t values[RING_VALUES];
};

static_assert(sizeof(struct header) == LINE_BYTES, "one line");
static_assert(sizeof(struct raw_line) == LINE_BYTES, "no line crosses a page");

static bool header_fits(int fd, unsigned period_s)
{
    struct header header;

    return io_pread_full(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
           memcmp(header.magic, MAGIC, sizeof(header.magic)) == 0 &&
           le32_get(header.period_s) == period_s && le32_get(header.lines) == METRICS_KEPT_PERIODS;
}

static int begin_file(int fd, unsigned period_s)
{
    struct header header = {.period_s = le32_make(period_s),
                            .lines = le32_make(METRICS_KEPT_PERIODS)};

    memcpy(header.magic, MAGIC, sizeof(header.magic));
    return ftruncate(fd, 0) != 0 ? -errno : io_pwrite_full(fd, &header, sizeof(header), 0);
}

static uint64_t line_offset(uint32_t period)
{
    return LINE_BYTES + (uint64_t)(period % METRICS_KEPT_PERIODS) * LINE_BYTES;
}

int ring_write(const char *path, unsigned period_s, const struct ring_line *line)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct raw_line raw = {.period = le32_make(line->period)};
    int rc = 0;

    if (fd < 0) {
        return -errno;
    }
    for (unsigned i = 0; i < RING_VALUES; i++) {
        uint32_t bits;

        memcpy(&bits, &line->values[i], sizeof(bits));
        raw.values[i] = le32_make(bits);
    }
    if (!header_fits(fd, period_s)) {
        rc = begin_file(fd, period_s);
    }
    return rc < 0 ? rc : io_pwrite_full(fd, &raw, sizeof(raw), line_offset(line->period));
}

static void tell_line(const struct raw_line *raw, uint32_t period,
                      void (*fn)(void *opaque, const struct ring_line *line), void *opaque)
{
    struct ring_line line = {.period = period};

    if (le32_get(raw->period) != period) {
        return; /* of another day, or never written */
    }
    for (unsigned i = 0; i < RING_VALUES; i++) {
        uint32_t bits = le32_get(raw->values[i]);

        memcpy(&line.values[i], &bits, sizeof(bits));
    }
    fn(opaque, &line);
}

int ring_read(const char *path, unsigned period_s, uint32_t first, uint32_t last,
              void (*fn)(void *opaque, const struct ring_line *line), void *opaque)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct raw_line *lines;
    int rc = 0;

    if (fd < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!header_fits(fd, period_s)) {
        return 0;
    }
    lines = calloc(CHUNK_LINES, sizeof(*lines));
    if (lines == NULL) {
        return -ENOMEM;
    }
    for (uint64_t period = first; rc == 0 && period <= last;) {
        uint64_t to_end = METRICS_KEPT_PERIODS - period % METRICS_KEPT_PERIODS;
        uint64_t count = last - period + 1;
        ssize_t n;

        count = count < to_end ? count : to_end;
        count = count < CHUNK_LINES ? count : CHUNK_LINES;
        n = io_pread_full(fd, lines, count * sizeof(*lines), line_offset((uint32_t)period));
        rc = n < 0 ? (int)n : 0;
        /* A file ends behind the last line that was written. */
        for (uint64_t i = 0; rc == 0 && i < (uint64_t)n / sizeof(*lines); i++) {
            tell_line(&lines[i], (uint32_t)(period + i), fn, opaque);
        }
        period += count;
    }
    free(lines);
    return rc;
}
